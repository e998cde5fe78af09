//! The blocking client: a call, an answer.

use std::{fmt, io, net::SocketAddr, num::NonZeroU32, time::Duration};

use linerate_dataplane::{PacketPort, Port, TcpPort, UdpPort, XdpPort};
use linerate_proto::{
    flow::{Ended, Outcome, PushError, check_lengths},
    wire::{Condition, Operation, Reason, STAT_COUNT, Terms},
};

use crate::{
    ends::{Added, Entry, Written},
    error::{ConnectError, Error},
    session::{Session, SessionConfig, open_packet, open_tcp, open_udp, open_xdp},
};

/// A client whose calls return when their answer is here.
///
/// For a few operations at a time; `multi_get` and `multi_put` travel in as few datagrams as possible. Programs that
/// want the full rate use a [`Session`]. After a server has restarted, the next call opens a new session.
///
/// ```
/// use linerate_client::{Client, SessionConfig};
/// # let server = linerate_server::Server::start(&linerate_server::ServerConfig {
/// #     port: 0, memory_len: 64 << 20, ..Default::default() })?;
/// # let addr = server.addr();
/// let mut client = Client::connect_udp(&[addr], SessionConfig::default())?;
/// client.put(b"colour", b"green")?;
/// assert_eq!(client.get(b"colour")?.as_deref(), Some(&b"green"[..]));
/// assert!(client.delete(b"colour")?);
/// assert_eq!(client.get(b"colour")?, None);
///
/// client.multi_put(&[(b"a", b"1"), (b"b", b"2")])?;
/// let values = client.multi_get(&[b"b", b"c"])?;
/// assert_eq!(values, [Some(b"2".to_vec()), None]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Client<P: Port> {
    session: Session<P>,
    /// Opens a port to servers, once more when the cluster has changed.
    open: Box<Open<P>>,
}

/// Opens a port to the cores at these addresses.
type Open<P> = dyn FnMut(&[SocketAddr]) -> io::Result<P> + Send;

impl<P: Port> fmt::Debug for Client<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.session).finish()
    }
}

impl Client<UdpPort> {
    /// Connects over UDP. `servers`: the address of core 0 of a server, or of several of one cluster.
    ///
    /// # Errors
    /// A sentence that names the server and what is wrong.
    pub fn connect_udp(servers: &[SocketAddr], config: SessionConfig) -> Result<Self, ConnectError> {
        Self::connect(servers, config, open_udp(config))
    }
}

impl Client<TcpPort> {
    /// Connects over TCP. `servers`: the address of core 0 of a server, or of several of one cluster.
    ///
    /// # Errors
    /// A sentence that names the server and what is wrong.
    pub fn connect_tcp(servers: &[SocketAddr], config: SessionConfig) -> Result<Self, ConnectError> {
        Self::connect(servers, config, open_tcp())
    }
}

impl Client<PacketPort> {
    /// Connects over AF_PACKET rings, as [`Session::connect_packet`].
    ///
    /// # Errors
    /// A sentence that names the server, the interface or the missing capability, and what is wrong.
    pub fn connect_packet(servers: &[SocketAddr], config: SessionConfig) -> Result<Self, ConnectError> {
        Self::connect(servers, config, open_packet())
    }
}

impl Client<XdpPort> {
    /// Connects over AF_XDP rings, as [`Session::connect_xdp`].
    ///
    /// # Errors
    /// A sentence that names the server, the interface or the missing capability, and what is wrong.
    pub fn connect_xdp(servers: &[SocketAddr], config: SessionConfig) -> Result<Self, ConnectError> {
        Self::connect(servers, config, open_xdp())
    }
}

/// A blocking client can always tell what the server knows of a value: it has time for the twelve bytes.
const fn telling(config: SessionConfig) -> SessionConfig {
    SessionConfig { versions: true, lifetimes: true, ..config }
}

/// What one operation ended with, kept beyond the sink.
type End = Result<Option<Vec<u8>>, Error>;

impl<P: Port> Client<P> {
    /// Connects through ports that `open` opens, as [`Session::connect`].
    ///
    /// # Errors
    /// A sentence that names the server and what is wrong.
    pub fn connect(
        servers: &[SocketAddr],
        config: SessionConfig,
        mut open: impl FnMut(&[SocketAddr]) -> io::Result<P> + Send + 'static,
    ) -> Result<Self, ConnectError> {
        let session = Session::connect(servers, telling(config), &mut open)?;
        Ok(Self { session, open: Box::new(open) })
    }

    /// The session beneath.
    #[must_use]
    pub const fn session(&self) -> &Session<P> {
        &self.session
    }

    /// The value of `key`, if it has one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key of 0 or more than 255 bytes, [`Error::NotExecuted`] when no answer came in time.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let mut values = self.multi_get(&[key])?;
        Ok(values.pop().expect("one key, one result"))
    }

    /// Stores `value` at `key`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when key or value are outside the limits, [`Error::NotExecuted`] when it certainly had no
    /// effect, [`Error::OutcomeUnknown`] when it was sent and no answer came in time.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.multi_put(&[(key, value)])
    }

    /// Stores `value` at `key` on terms: only if a condition is met, or for some time.
    ///
    /// ```
    /// # use linerate_client::{Client, Condition, SessionConfig, Terms, Written};
    /// # let server = linerate_server::Server::start(&linerate_server::ServerConfig {
    /// #     port: 0, memory_len: 64 << 20, ..Default::default() })?;
    /// # let mut client = Client::connect_udp(&[server.addr()], SessionConfig::default())?;
    /// // A lock that its owner loses after a second.
    /// let lock = Terms::only_if(Condition::Absent).for_ms(std::num::NonZeroU32::new(1_000));
    /// assert!(client.put_with(b"lock", b"owner", lock)?.is_done());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`put`](Self::put); [`Error::Invalid`] for version 0, too.
    pub fn put_with(&mut self, key: &[u8], value: &[u8], terms: Terms) -> Result<Written, Error> {
        self.execute_one(
            Operation::put_on(key, value, terms),
            |&Ended { outcome, version, .. }| match outcome {
                Outcome::Done => Some(Written::Done { version }),
                Outcome::NotFound => Some(Written::NotFound),
                Outcome::NotExecuted(Reason::Exists) => Some(Written::Exists { version }),
                Outcome::NotExecuted(Reason::Changed) => Some(Written::Changed { version }),
                Outcome::Value(_) | Outcome::NotExecuted(_) | Outcome::OutcomeUnknown => None,
            },
        )
    }

    /// Stores `value` at `key` if that has no value: ends as `Done` or `Exists`.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_if_absent(&mut self, key: &[u8], value: &[u8]) -> Result<Written, Error> {
        self.put_with(key, value, Terms::only_if(Condition::Absent))
    }

    /// Stores `value` at `key` if that has a value: ends as `Done` or `NotFound`.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_if_present(&mut self, key: &[u8], value: &[u8]) -> Result<Written, Error> {
        self.put_with(key, value, Terms::only_if(Condition::Present))
    }

    /// Stores `value` at `key` if its present value has this version, 1 or above: ends as `Done`, `Changed` or `NotFound`.
    ///
    /// ```
    /// # use linerate_client::{Client, SessionConfig, Written};
    /// # let server = linerate_server::Server::start(&linerate_server::ServerConfig {
    /// #     port: 0, memory_len: 64 << 20, ..Default::default() })?;
    /// # let mut client = Client::connect_udp(&[server.addr()], SessionConfig::default())?;
    /// client.put(b"colour", b"green")?;
    /// let entry = client.get_entry(b"colour")?.expect("it was just stored");
    /// let written = client.compare_and_put(b"colour", b"blue", entry.version)?;
    /// assert!(written.is_done());
    /// let again = client.compare_and_put(b"colour", b"red", entry.version)?;
    /// assert!(matches!(again, Written::Changed { version } if version > entry.version));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`put`](Self::put); [`Error::Invalid`] for version 0, too.
    pub fn compare_and_put(&mut self, key: &[u8], value: &[u8], version: u64) -> Result<Written, Error> {
        self.put_with(key, value, Terms::only_if(Condition::Version(version)))
    }

    /// Adds `delta` to the number that the value of `key` is, eight bytes in network order; no value counts as 0, and then
    /// the number lives for `ttl_ms` (`None`: for ever). The sum wraps at the ends.
    ///
    /// ```
    /// # use linerate_client::{Added, Client, SessionConfig};
    /// # let server = linerate_server::Server::start(&linerate_server::ServerConfig {
    /// #     port: 0, memory_len: 64 << 20, ..Default::default() })?;
    /// # let mut client = Client::connect_udp(&[server.addr()], SessionConfig::default())?;
    /// assert!(matches!(client.add(b"visits", 5, None)?, Added::Sum { number: 5, .. }));
    /// assert!(matches!(client.add(b"visits", -7, None)?, Added::Sum { number: -2, .. }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn add(&mut self, key: &[u8], delta: i64, ttl_ms: Option<NonZeroU32>) -> Result<Added, Error> {
        let operation = Operation::add(key, delta.cast_unsigned(), ttl_ms);
        self.execute_one(operation, |&Ended { outcome, version, .. }| match outcome {
            Outcome::Value(former) => {
                let number = i64::from_be_bytes(former.try_into().ok()?).wrapping_add(delta);
                Some(Added::Sum { number, version })
            }
            Outcome::NotExecuted(Reason::NotANumber) => Some(Added::NotANumber { version }),
            Outcome::NotFound | Outcome::Done | Outcome::NotExecuted(_) | Outcome::OutcomeUnknown => None,
        })
    }

    /// The value of `key`, if it has one, with its version and the time that it has left to live.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn get_entry(&mut self, key: &[u8]) -> Result<Option<Entry>, Error> {
        self.execute_one(Operation::get(key), |ended| match ended.outcome {
            Outcome::Value(value) => Some(Some(Entry {
                value: value.to_vec(),
                version: ended.version,
                ttl: ended.ttl_ms.map(|ttl_ms| Duration::from_millis(ttl_ms.get().into())),
            })),
            Outcome::NotFound => Some(None),
            Outcome::Done | Outcome::NotExecuted(_) | Outcome::OutcomeUnknown => None,
        })
    }

    /// Removes `key`; `false` when there was none.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, Error> {
        let ended = self.execute(&[Operation::delete(key)])?.pop().expect("one operation, one end");
        Ok(ended?.is_some())
    }

    /// The values of many keys, in their order.
    ///
    /// # Errors
    /// As [`get`](Self::get), the first that occurs; the other keys were read all the same.
    pub fn multi_get<K: AsRef<[u8]>>(&mut self, keys: &[K]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let operations: Vec<_> = keys.iter().map(|key| Operation::get(key.as_ref())).collect();
        self.execute(&operations)?.into_iter().collect()
    }

    /// Stores many values; each takes effect for itself, in no particular order.
    ///
    /// # Errors
    /// As [`put`](Self::put), the first that occurs; the other puts were tried all the same. But with a length outside the
    /// limits nothing is stored at all, and [`Error::Connect`] says that a server was lost midway: puts before it took
    /// effect or not.
    pub fn multi_put<K: AsRef<[u8]>, V: AsRef<[u8]>>(&mut self, pairs: &[(K, V)]) -> Result<(), Error> {
        let operations: Vec<_> =
            pairs.iter().map(|(key, value)| Operation::put(key.as_ref(), value.as_ref())).collect();
        self.execute(&operations)?.into_iter().try_for_each(|ended| ended.map(|_| ()))
    }

    /// The statistics of each core, in the order of [`STAT_NAMES`](linerate_proto::wire::STAT_NAMES), with its address.
    ///
    /// # Errors
    /// When the port is broken for good.
    #[expect(clippy::type_complexity, reason = "a list of pairs, each half obvious")]
    pub fn statistics(&mut self) -> Result<Vec<(SocketAddr, Option<Box<[u64; STAT_COUNT]>>)>, Error> {
        let answers = self.session.statistics(&mut |_| {})?;
        Ok(self.session.cores().map(|(addr, _)| addr).zip(answers).collect())
    }

    /// One round trip to each core, with its address; `None` for a core that did not answer in time.
    ///
    /// # Errors
    /// When the port is broken for good.
    pub fn ping(&mut self) -> Result<Vec<(SocketAddr, Option<Duration>)>, Error> {
        let answers = self.session.ping(&mut |_| {})?;
        Ok(self.session.cores().map(|(addr, _)| addr).zip(answers).collect())
    }

    /// Executes operations of any kind together; one end for each, in their order. A found value or an effect is
    /// `Some`, a missing key `None`.
    fn execute(&mut self, operations: &[Operation<'_>]) -> Result<Vec<End>, Error> {
        let mut ends: Vec<End> = operations.iter().map(|_| Ok(None)).collect();
        self.run(operations, |Ended { tag, outcome, data_epoch, .. }| {
            ends[tag as usize] = match outcome {
                Outcome::Value(value) => Ok(Some(value.to_vec())),
                Outcome::Done => Ok(Some(Vec::new())),
                Outcome::NotFound => Ok(None),
                Outcome::NotExecuted(reason) => Err(Error::NotExecuted(reason)),
                Outcome::OutcomeUnknown => Err(Error::OutcomeUnknown { data_epoch }),
            };
        })?;
        Ok(ends)
    }

    /// Executes one operation; `understand` makes of its end what it means, or nothing when it means what it always does.
    fn execute_one<T>(
        &mut self,
        operation: Operation<'_>,
        mut understand: impl FnMut(&Ended<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        let mut end = None;
        self.run(&[operation], |ended| {
            end = Some(understand(&ended).ok_or(match ended.outcome {
                Outcome::NotExecuted(reason) => Error::NotExecuted(reason),
                Outcome::OutcomeUnknown => Error::OutcomeUnknown { data_epoch: ended.data_epoch },
                Outcome::Value(_) | Outcome::NotFound | Outcome::Done => Error::Unexpected,
            }));
        })?;
        end.expect("each operation ends")
    }

    /// Executes operations together; each ends in `sink`, with its position for a tag. What is refused because its key is
    /// elsewhere is tried again by the newest cluster map: it has had no effect.
    fn run(&mut self, operations: &[Operation<'_>], mut sink: impl FnMut(Ended<'_>)) -> Result<(), Error> {
        operations.iter().try_for_each(check_lengths).map_err(Error::Invalid)?;
        let mut left: Vec<usize> = (0..operations.len()).collect();
        for refreshes in 0..=REFRESHES_MAX {
            // Not afterwards: what has ended well must not be told as an error because the servers do not agree.
            if self.session.is_stale() {
                self.session.refresh(&mut self.open)?;
            }
            let mut elsewhere = Vec::new();
            self.run_some(operations, &left, |ended| match ended.outcome {
                Outcome::NotExecuted(Reason::Moved { .. } | Reason::WrongCore)
                    if refreshes < REFRESHES_MAX =>
                {
                    elsewhere.push(ended.tag as usize);
                }
                _ => sink(ended),
            })?;
            if elsewhere.is_empty() {
                break;
            }
            left = elsewhere;
        }
        Ok(())
    }

    /// Executes those of the operations that have these positions.
    fn run_some(
        &mut self,
        operations: &[Operation<'_>],
        positions: &[usize],
        mut sink: impl FnMut(Ended<'_>),
    ) -> Result<(), Error> {
        for &index in positions {
            let (operation, tag) = (operations[index], index as u64);
            let mut pushed = self.session.push(self.session.now(), operation, tag);
            if pushed == Err(PushError::Full) {
                // Everything before it ends first; then there is room, unless the session is lost.
                self.session.run(&mut sink)?;
                self.session.reopen()?;
                pushed = self.session.push(self.session.now(), operation, tag);
            }
            pushed.map_err(Error::Invalid)?;
        }
        Ok(self.session.run(sink)?)
    }
}

/// How often operations are tried again because the cluster has changed.
const REFRESHES_MAX: usize = 3;
