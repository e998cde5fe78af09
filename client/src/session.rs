//! The asynchronous client of one thread: operations in, outcomes out, all cores of all servers behind one port.

use std::{
    fmt, io,
    net::SocketAddr,
    num::NonZeroU32,
    time::{Duration, Instant as SystemInstant, SystemTime, UNIX_EPOCH},
};

use linerate_dataplane::{
    Outbox, PacketPort, Peer, Port, TcpPort, UdpPort, XdpPort,
    packet::PacketConfig,
    tcp::TcpConfig,
    udp::UdpConfig,
    wait::wait,
    xdp::{self, XdpConfig},
};
use linerate_proto::{
    Drops, Instant, Key,
    cluster::{ClusterSpec, Member},
    flow::{Ended, Flow, FlowConfig, FlowCounters, PushError, ServerInfo, check_lengths},
    hash::key_hash,
    placement::{ClusterMap, Owner},
    wire::{DATAGRAM_LEN_MAX, Operation, STAT_COUNT, Terms, nonce_of},
};

use crate::{
    coalesce::Coalescing,
    error::ConnectError,
    order::{InFlight, Order},
};

/// How a session is set up.
#[derive(Clone, Copy, Debug)]
pub struct SessionConfig {
    /// Requests that can be in flight to each core, 1..=256.
    pub window: u16,
    /// Operations per request, 1..=255.
    pub operations_max: u8,
    /// Whether datagrams carry a checksum even over loopback. Elsewhere they always do.
    pub checksum: bool,
    /// Whether to ask for the version of each key ([`Ended::version`]); 8 bytes per result.
    pub versions: bool,
    /// Whether to ask for the time that each value read has left to live ([`Ended::ttl_ms`]); 4 bytes per result of a read.
    pub lifetimes: bool,
    /// Names this client to the servers, the same at each start of the program, so that a session that a former start has
    /// left behind ends at once and not with its lease. No two clients of one machine may have the same at a time. `None`:
    /// random.
    pub client_id: Option<u64>,
    /// Which operations may be in flight together.
    pub order: Order,
    /// Whether gets of one key that would travel in the same request travel once, and are all told its answer. It costs each
    /// operation some nanoseconds, and gains where few keys are asked for often.
    pub coalesce: bool,
    /// Requests that are collected before they are sent as one train, unless [`linger`](Self::linger) passes first.
    pub burst: usize,
    /// Longest time that an operation waits for others to travel with, while some are in flight.
    pub linger: Duration,
    /// Least time before a request is sent again: 200 µs for a program that polls all the time, 1 ms for one that
    /// sleeps in between.
    pub rto_floor: Duration,
    /// Time after which an operation is given up, and a connection that was not made.
    pub timeout: Duration,
    /// Receive buffer to ask the kernel for, in bytes as it charges them (UDP). With less, fewer answers are asked for at
    /// a time.
    pub receive_buffer_len: usize,
    /// Whether to send and receive trains (UDP).
    pub trains: bool,
}

impl Default for SessionConfig {
    /// A window of 48 requests of up to 255 operations, sent 16 at a time or after 20 µs; given up after 5 s.
    fn default() -> Self {
        Self {
            window: 48,
            operations_max: u8::MAX,
            checksum: false,
            versions: false,
            lifetimes: false,
            client_id: None,
            order: Order::None,
            coalesce: false,
            burst: 16,
            linger: Duration::from_micros(20),
            rto_floor: Duration::from_micros(200),
            timeout: Duration::from_secs(5),
            receive_buffer_len: UdpConfig::default().receive_buffer_len,
            trains: true,
        }
    }
}

/// What a session has counted so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionCounters {
    /// Requests, replies and what was sent again, over all cores.
    pub flows: FlowCounters,
    /// Datagrams and bytes.
    pub port: linerate_dataplane::PortCounters,
    /// Datagrams from servers that had no effect, by reason.
    pub drops: Drops,
    /// Gets answered by another's answer ([`SessionConfig::coalesce`]).
    pub coalesced: u64,
}

impl SessionCounters {
    /// What was counted since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            flows: self.flows.minus(earlier.flows),
            port: self.port.minus(earlier.port),
            drops: self.drops.minus(earlier.drops),
            coalesced: self.coalesced - earlier.coalesced,
        }
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            flows: self.flows.plus(other.flows),
            port: self.port.plus(other.port),
            drops: self.drops.plus(other.drops),
            coalesced: self.coalesced + other.coalesced,
        }
    }
}

/// A thread's connection to all cores of one or more servers.
///
/// Operations are taken by [`get`](Self::get), [`put`](Self::put), [`put_with`](Self::put_with), [`add`](Self::add) and
/// [`delete`](Self::delete) together with a tag of the caller's choosing, packed into requests by the core that owns their key, and sent by [`poll`](Self::poll), which
/// also hands out what has come back. Each operation taken ends in exactly one
/// [`Outcome`](linerate_proto::flow::Outcome). Operations in flight together are concurrent: the order of their effects is
/// that of the calls only as far as [`SessionConfig::order`] says.
///
/// ```
/// use linerate_client::{Outcome, Session, SessionConfig};
/// # let server = linerate_server::Server::start(&linerate_server::ServerConfig {
/// #     port: 0, memory_len: 64 << 20, ..Default::default() })?;
/// # let addr = server.addr();
/// let mut session = Session::connect_udp(&[addr], SessionConfig::default())?;
/// session.put(b"colour", b"green", 1)?;
/// session.run(|ended| assert_eq!(ended.outcome, Outcome::Done))?;
/// session.get(b"colour", 2)?;
/// session.get(b"shape", 3)?;
/// session.run(|ended| match ended.tag {
///     2 => assert_eq!(ended.outcome, Outcome::Value(b"green")),
///     _ => assert_eq!(ended.outcome, Outcome::NotFound),
/// })?;
/// session.add(b"visits", 5, None, 4)?;
/// session.run(|ended| assert_eq!(ended.outcome, Outcome::Value(&0u64.to_be_bytes())))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Session<P: Port> {
    port: P,
    flows: Vec<CoreFlow>,
    /// Index in `flows` of core 0 of each node.
    nodes: Vec<usize>,
    cluster: ClusterSpec,
    map: Box<ClusterMap>,
    config: SessionConfig,
    started: SystemInstant,
    /// What was counted by former maps.
    retired: SessionCounters,
    drops: Drops,
    /// When the port is looked after next.
    next_check: Instant,
    /// What stands between the caller and the flows, if anything does.
    between: Option<Box<Between>>,
    /// Whether an operation was held back since the last poll: those that it waits for should not wait themselves.
    holding: bool,
}

/// What operations go through on their way to the flows, and their ends on the way back.
struct Between {
    order: Option<InFlight>,
    /// Beneath the order: it sees only what may be in flight together.
    coalescing: Option<Coalescing>,
}

impl Between {
    /// `None` if nothing needs to know of operations but the flows.
    fn of(config: &SessionConfig) -> Option<Box<Self>> {
        let order = InFlight::of(config.order);
        let coalescing = config.coalesce.then(|| Coalescing::new(config.window, config.operations_max));
        (order.is_some() || coalescing.is_some()).then(|| Box::new(Self { order, coalescing }))
    }

    /// Tells the caller of an end that a flow tells of.
    #[inline]
    fn end(&mut self, ended: Ended<'_>, sink: &mut impl FnMut(Ended<'_>)) {
        let Self { order, coalescing } = self;
        let mut sink = |ended: Ended<'_>| match order {
            None => sink(ended),
            Some(order) => sink(order.end_of(ended)),
        };
        match coalescing {
            None => sink(ended),
            Some(coalescing) => coalescing.end(ended, sink),
        }
    }
}

/// The flow to one core and where it is.
struct CoreFlow {
    flow: Flow,
    peer: Peer,
}

impl<P: Port> fmt::Debug for Session<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addrs: Vec<_> = self.flows.iter().map(|core| core.peer.addr).collect();
        f.debug_struct("Session").field("cores", &addrs).finish_non_exhaustive()
    }
}

impl Session<UdpPort> {
    /// Connects over UDP. `servers`: the address of core 0 of a server, or of several of one cluster.
    ///
    /// # Errors
    /// A sentence that names the server and what is wrong.
    pub fn connect_udp(servers: &[SocketAddr], config: SessionConfig) -> Result<Self, ConnectError> {
        Self::connect(servers, config, open_udp(config))
    }
}

impl Session<TcpPort> {
    /// Connects over TCP. `servers`: the address of core 0 of a server, or of several of one cluster.
    ///
    /// # Errors
    /// A sentence that names the server and what is wrong.
    pub fn connect_tcp(servers: &[SocketAddr], config: SessionConfig) -> Result<Self, ConnectError> {
        Self::connect(servers, config, open_tcp())
    }
}

impl Session<PacketPort> {
    /// Connects past the kernel's sockets, over AF_PACKET rings of the interface that leads to the servers (IPv4).
    /// `servers`: the address of core 0 of one, or of several of one cluster.
    ///
    /// # Errors
    /// A sentence that names the server, the interface or the missing capability, and what is wrong.
    pub fn connect_packet(servers: &[SocketAddr], config: SessionConfig) -> Result<Self, ConnectError> {
        Self::connect(servers, config, open_packet())
    }
}

impl Session<XdpPort> {
    /// Connects past the kernel's network stack, over AF_XDP rings of the interface that leads to the servers (IPv4).
    /// `servers`: the address of core 0 of one, or of several of one cluster.
    ///
    /// The session takes all queues of the interface. Threads that share an interface open their ports together
    /// ([`xdp::connect`]) and [connect](Self::connect) with one each.
    ///
    /// # Errors
    /// A sentence that names the server, the interface or the missing capability, and what is wrong.
    pub fn connect_xdp(servers: &[SocketAddr], config: SessionConfig) -> Result<Self, ConnectError> {
        Self::connect(servers, config, open_xdp())
    }
}

/// Opens a way to all contacts, or, if there is a kind that can not be opened towards one that is down, to any of them.
fn open_any<T>(
    contacts: &mut Vec<SocketAddr>,
    mut open: impl FnMut(&[SocketAddr]) -> io::Result<T>,
) -> io::Result<T> {
    let error = match open(contacts) {
        Ok(way) => return Ok(way),
        Err(error) => error,
    };
    for &contact in contacts.iter().filter(|_| contacts.len() > 1) {
        if let Ok(way) = open(&[contact]) {
            *contacts = vec![contact];
            return Ok(way);
        }
    }
    Err(error)
}

pub(crate) fn open_udp(
    config: SessionConfig,
) -> impl FnMut(&[SocketAddr]) -> io::Result<UdpPort> + Send + 'static {
    let SessionConfig { trains, receive_buffer_len, .. } = config;
    move |addrs| UdpPort::connect(addrs, UdpConfig { trains, receive_buffer_len, ..UdpConfig::default() })
}

pub(crate) fn open_tcp() -> impl FnMut(&[SocketAddr]) -> io::Result<TcpPort> + Send + 'static {
    |addrs| TcpPort::connect(addrs, TcpConfig::default())
}

pub(crate) fn open_packet() -> impl FnMut(&[SocketAddr]) -> io::Result<PacketPort> + Send + 'static {
    |addrs| PacketPort::connect(addrs, PacketConfig::default())
}

pub(crate) fn open_xdp() -> impl FnMut(&[SocketAddr]) -> io::Result<XdpPort> + Send + 'static {
    |addrs| {
        let mut ports = xdp::connect(addrs, 1, XdpConfig::default())?;
        Ok(ports.pop().expect("as many ports as asked for"))
    }
}

impl<P: Port> Session<P> {
    /// Connects through ports that `open` makes for a list of server addresses: one, or two if the first does not
    /// [reach](Port::reach) all cores.
    ///
    /// `servers` are asked, at their core 0, for the cluster map; any one of the cluster's will do, and of several those that
    /// answer. Then all cores of all its nodes are connected.
    ///
    /// # Errors
    /// A sentence that names the server and what is wrong.
    pub fn connect(
        servers: &[SocketAddr],
        config: SessionConfig,
        mut open: impl FnMut(&[SocketAddr]) -> io::Result<P>,
    ) -> Result<Self, ConnectError> {
        let mut contacts = servers.to_vec();
        contacts.sort_unstable();
        contacts.dedup();
        let port = open_any(&mut contacts, &mut open)?;
        let mut session = Self::open(port, config);
        session.join(contacts, &mut open, &mut None)?;
        Ok(session)
    }

    /// Opens sessions with all cores of the cluster that the contacts belong to. If that takes another port, the present one
    /// becomes `kept`, unless one is there.
    fn join(
        &mut self,
        mut contacts: Vec<SocketAddr>,
        open: &mut impl FnMut(&[SocketAddr]) -> io::Result<P>,
        kept: &mut Option<P>,
    ) -> Result<(), ConnectError> {
        for _ in 0..MAP_CHANGES_MAX {
            // A later start of the same client has a later generation.
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let generation = since_1970.as_nanos() as u64;
            let client_id = self.config.client_id.unwrap_or_else(rand::random);
            open_any(&mut contacts, |addrs| self.reach(addrs, open, kept))?;
            // Which core of its server an address belongs to is only known afterwards.
            let asked: Vec<_> = contacts.iter().map(|&addr| (addr, None)).collect();
            self.flows = core_flows(&self.port, &asked, &self.config, 0, (client_id, generation));
            self.open_some()?;
            let (cluster, teller) = self.learn_cluster()?;
            let cores = self.places(&cluster, teller)?;
            let told_by = self.flows[teller].peer.addr;
            if cluster.is_alone() && cores.len() == 1 {
                let teller = self.flows.swap_remove(teller);
                // Those that have not answered own nothing.
                self.close();
                self.flows = vec![teller];
                self.adopt(cluster, vec![0]);
                return Ok(());
            }
            // One more session at core 0 than needed would hold its slots until the lease ends.
            self.close();
            let addrs: Vec<_> = cores.iter().map(|&(addr, _)| addr).collect();
            self.reach(&addrs, open, kept)?;
            let client_id = self.config.client_id.unwrap_or_else(rand::random);
            // Above those that the first sessions have used.
            let client = (client_id, generation + (1 << 20));
            self.flows = core_flows(&self.port, &cores, &self.config, cluster.epoch(), client);
            let firsts = (0..cores.len()).filter(|&index| cores[index].1 == Some(0)).collect();
            self.adopt(cluster, firsts);
            self.reopen()?;
            match self.newer_map(told_by)? {
                Some(addr) => contacts = vec![addr],
                None => return Ok(()),
            }
            self.close();
        }
        Err(ConnectError::Unsettled)
    }

    /// What one server says: the cluster map that it has, and of itself. No other server is asked.
    ///
    /// # Errors
    /// When it does not answer, or `open` fails.
    pub fn ask_map(
        server: SocketAddr,
        config: SessionConfig,
        open: impl FnOnce(&[SocketAddr]) -> io::Result<P>,
    ) -> Result<(ClusterSpec, ServerInfo), ConnectError> {
        let client = (config.client_id.unwrap_or_else(rand::random), 1);
        let mut session = Self::open(open(&[server])?, config);
        session.flows = core_flows(&session.port, &[(server, None)], &config, 0, client);
        session.open_some()?;
        let (cluster, teller) = session.learn_cluster()?;
        let info = session.flows[teller].flow.info().copied();
        Ok((cluster, info.expect("it was told when the session was opened")))
    }

    /// Sees to it that the port reaches these addresses, or takes another one that does.
    fn reach(
        &mut self,
        addrs: &[SocketAddr],
        open: &mut impl FnMut(&[SocketAddr]) -> io::Result<P>,
        kept: &mut Option<P>,
    ) -> io::Result<()> {
        if !self.port.reach(addrs)? {
            let former = std::mem::replace(&mut self.port, open(addrs)?);
            kept.get_or_insert(former);
        }
        Ok(())
    }

    /// Connects again, by the newest cluster map that its servers have; everything taken must have
    /// [ended](Self::is_idle) before. To be called when the session [is stale](Self::is_stale); `open` as for
    /// [`connect`](Self::connect). On an error the session is as it was.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Panics
    /// While operations are in flight.
    pub fn refresh(
        &mut self,
        mut open: impl FnMut(&[SocketAddr]) -> io::Result<P>,
    ) -> Result<(), ConnectError> {
        assert!(self.is_idle(), "operations in flight belong to the former map");
        let known = self.cluster.members().iter().map(|member| member.addr);
        // A server that is alone does not know its address.
        let contacts: Vec<_> = match self.cluster.is_alone() {
            true => self.flows.first().map(|core| core.peer.addr).into_iter().collect(),
            false => known.collect(),
        };
        let counted = self.counters();
        let mut flows = std::mem::take(&mut self.flows);
        let nodes = std::mem::take(&mut self.nodes);
        let (cluster, map) = (self.cluster.clone(), self.map.clone());
        let between = self.between.take();
        let mut kept = None;
        if let Err(error) = self.join(contacts, &mut open, &mut kept) {
            self.close();
            (self.flows, self.nodes, self.cluster, self.map) = (flows, nodes, cluster, map);
            self.between = between;
            if let Some(port) = kept {
                self.port = port;
            }
            return Err(error);
        }
        say_goodbyes(self.now(), &mut flows, kept.as_mut().unwrap_or(&mut self.port));
        self.retired.flows = counted.flows;
        self.retired.coalesced = counted.coalesced;
        if kept.is_some() {
            self.retired.port = counted.port;
        }
        Ok(())
    }

    /// Whether a server has another cluster map than this session goes by: operations end as
    /// [`Moved`](crate::Reason::Moved) until it is [refreshed](Self::refresh).
    #[must_use]
    pub fn is_stale(&self) -> bool {
        let (epoch, digest) = (self.cluster.epoch(), self.cluster.digest());
        self.flows.iter().any(|core| {
            let differs = |info: &ServerInfo| (info.epoch, info.map_digest) != (epoch, digest);
            core.flow.counters().moved > 0 || core.flow.info().is_some_and(differs)
        })
    }

    /// The cluster that this session goes by; for a server that is alone, one node without an address.
    #[must_use]
    pub const fn cluster(&self) -> &ClusterSpec {
        &self.cluster
    }

    /// A session with the cores of one node that are known already, over a port that is open already. Nothing is sent
    /// yet: [`poll`](Self::poll) makes the connections, and [`is_open`](Self::is_open) tells when they are made.
    ///
    /// Together with `poll`, [`push`](Self::push) and a sink this runs without a clock or an operating system: `seed`
    /// decides everything random. With a client id it is the client's generation too, and must be higher than at its
    /// former start.
    ///
    /// # Panics
    /// Without cores, or with more than 255.
    #[must_use]
    pub fn attach(port: P, cores: &[SocketAddr], config: SessionConfig, seed: u64) -> Self {
        let (client_id, generation) = config.client_id.map_or((seed, 0), |client_id| (client_id, seed));
        // A single one may be any of its node's.
        let number = |core: u8| (cores.len() > 1).then_some(core);
        let alone = ClusterSpec::alone(u8::try_from(cores.len()).expect("1 to 255 cores"));
        let cores: Vec<_> = cores.iter().zip(0..).map(|(&addr, core)| (addr, number(core))).collect();
        let mut session = Self::open(port, config);
        session.flows = core_flows(&session.port, &cores, &config, alone.epoch(), (client_id, generation));
        session.adopt(alone, vec![0]);
        session
    }

    /// With nobody yet.
    fn open(port: P, config: SessionConfig) -> Self {
        let cluster = ClusterSpec::alone(1);
        Self {
            port,
            flows: Vec::new(),
            nodes: Vec::new(),
            map: Box::new(cluster.map()),
            cluster,
            config,
            started: SystemInstant::now(),
            retired: SessionCounters::default(),
            drops: Drops::default(),
            next_check: Instant::default(),
            between: None,
            holding: false,
        }
    }

    /// Goes by a map from now on. `firsts`: index of the flow to core 0 of each of its nodes.
    fn adopt(&mut self, cluster: ClusterSpec, firsts: Vec<usize>) {
        *self.map = cluster.map();
        self.cluster = cluster;
        self.nodes = firsts;
        self.between = Between::of(&self.config);
    }

    /// Waits until there is a session with every core, or with some while the others stay silent.
    fn open_some(&mut self) -> Result<(), ConnectError> {
        let begun = self.now();
        let grace = CONTACT_GRACE.min(self.config.timeout / 4);
        let mut some_open_at = None;
        loop {
            let now = self.now();
            if self.is_open() || some_open_at.is_some_and(|at| now.since(at) > grace) {
                return Ok(());
            }
            if some_open_at.is_none() && self.flows.iter().any(|core| core.flow.is_open()) {
                some_open_at = Some(now);
            }
            if now.since(begun) > self.config.timeout {
                return Err(self.silence_of(0));
            }
            if self.turn(now, &mut |_| {})? == 0 {
                self.wait(Duration::from_millis(1))?;
            }
        }
    }

    /// The newest cluster map of the servers that have answered, and the index of one that has it.
    fn learn_cluster(&mut self) -> Result<(ClusterSpec, usize), ConnectError> {
        let mut answered = self.flows.iter().enumerate().filter_map(|(index, core)| {
            Some((index, core.peer.addr, core.flow.info().copied().filter(|_| core.flow.is_open())?))
        });
        let Some(mut newest) = answered.next() else { return Err(self.silence_of(0)) };
        for other in answered {
            let (epoch, other_epoch) = (newest.2.epoch, other.2.epoch);
            if epoch == 0 || other_epoch == 0 {
                let alone = if epoch == 0 { newest.1 } else { other.1 };
                let beside = if epoch == 0 { other.1 } else { newest.1 };
                return Err(ConnectError::Alone { alone, beside });
            }
            if epoch == other_epoch && newest.2.map_digest != other.2.map_digest {
                return Err(ConnectError::Disagreement { epoch, servers: [newest.1, other.1] });
            }
            if other_epoch > epoch {
                newest = other;
            }
        }
        let (index, addr, _) = newest;
        let begun = self.now();
        let mut asked_at = None;
        loop {
            let now = self.now();
            if asked_at.is_none_or(|asked_at| now.since(asked_at) > ASK_AGAIN_AFTER) {
                asked_at = Some(now);
                self.flows[index].flow.ask_cluster();
            }
            if self.turn(now, &mut |_| {})? == 0 {
                self.wait(Duration::from_millis(1))?;
            }
            if let Some(cluster) = self.flows[index].flow.take_cluster() {
                return Ok((cluster, index));
            }
            if now.since(begun) > self.config.timeout {
                return Err(ConnectError::NoMap(addr, self.config.timeout));
            }
        }
    }

    /// Address and number of each core of the cluster, node by node. A server that is alone is where it was found.
    fn places(
        &self,
        cluster: &ClusterSpec,
        teller: usize,
    ) -> Result<Vec<(SocketAddr, Option<u8>)>, ConnectError> {
        let teller = &self.flows[teller];
        let found = SocketAddr::new(
            teller.peer.addr.ip(),
            teller.flow.info().map_or_else(|| teller.peer.addr.port(), |info| info.base_port),
        );
        let place = |member: &Member| {
            let addr = if cluster.is_alone() { found } else { member.addr };
            if addr.is_ipv4() != found.is_ipv4() && !cluster.is_alone() {
                return Err(ConnectError::AddressFamily { server: found, node: member.id, addr });
            }
            Ok(Member { addr, ..*member })
        };
        let members: Vec<_> = cluster.members().iter().map(place).collect::<Result<_, _>>()?;
        Ok(members.iter().flat_map(|member| member.core_addrs().zip((0..).map(Some))).collect())
    }

    /// The address of a server that has a newer map than this session was told, if one has; else that all have this one.
    fn newer_map(&self, told_by: SocketAddr) -> Result<Option<SocketAddr>, ConnectError> {
        let (epoch, digest) = (self.cluster.epoch(), self.cluster.digest());
        let mut node = 0;
        for (index, core) in self.flows.iter().enumerate() {
            node += usize::from(self.nodes.get(node + 1).is_some_and(|&first| first <= index));
            let (addr, Some(info)) = (core.peer.addr, core.flow.info()) else { continue };
            let expected = self.cluster.members()[node].id;
            if info.epoch > epoch {
                return Ok(Some(addr));
            }
            if info.epoch == 0 && epoch > 0 {
                return Err(ConnectError::Alone { alone: addr, beside: told_by });
            }
            if info.epoch < epoch {
                return Err(ConnectError::Outdated { server: addr, epoch: info.epoch, newest: epoch });
            }
            if info.map_digest != digest {
                return Err(ConnectError::Disagreement { epoch, servers: [told_by, addr] });
            }
            if info.node_id != expected {
                return Err(ConnectError::OtherNode { server: addr, node: info.node_id, expected });
            }
        }
        Ok(None)
    }

    /// Why there is no session with a core.
    fn silence_of(&self, index: usize) -> ConnectError {
        let CoreFlow { flow, peer } = &self.flows[index];
        match flow.refusal() {
            Some(reason) => ConnectError::Refused(peer.addr, reason),
            None => ConnectError::NoAnswer(peer.addr, self.config.timeout),
        }
    }

    /// Waits until there is a session with every core: at the start, and again after a server was lost.
    ///
    /// # Errors
    /// The first server that did not answer within the timeout.
    pub(crate) fn reopen(&mut self) -> Result<(), ConnectError> {
        let begun = self.now();
        while let Some(closed) = self.flows.iter().position(|core| !core.flow.is_open()) {
            if self.now().since(begun) > self.config.timeout {
                return Err(self.silence_of(closed));
            }
            if self.turn(self.now(), &mut |_| {})? == 0 {
                self.wait(Duration::from_millis(1))?;
            }
        }
        Ok(())
    }

    /// The time that this session's calls count from.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::from_nanos(self.started.elapsed().as_nanos() as u64)
    }

    /// A function that tells the same time as [`now`](Self::now), for sinks, which can not ask the session itself.
    pub fn clock(&self) -> impl Fn() -> Instant + Copy + use<P> {
        let started = self.started;
        move || Instant::from_nanos(started.elapsed().as_nanos() as u64)
    }

    /// Reads `key`.
    ///
    /// # Errors
    /// [`PushError::Full`]: poll first, then try again. Otherwise what is wrong with the key.
    #[inline]
    pub fn get(&mut self, key: &[u8], tag: u64) -> Result<(), PushError> {
        self.push(self.now(), Operation::get(key), tag)
    }

    /// Stores `value` at `key`.
    ///
    /// # Errors
    /// [`PushError::Full`]: poll first. Otherwise what is wrong with key or value.
    #[inline]
    pub fn put(&mut self, key: &[u8], value: &[u8], tag: u64) -> Result<(), PushError> {
        self.push(self.now(), Operation::put(key, value), tag)
    }

    /// Stores `value` at `key` on terms: only if a condition is met, or for some time. A condition that is not met ends as
    /// `NotExecuted` of [`Exists`](crate::Reason::Exists) or [`Changed`](crate::Reason::Changed), or as `NotFound` when there is no value
    /// where one was wanted.
    ///
    /// # Errors
    /// [`PushError::Full`]: poll first. Otherwise what is wrong with key, value or terms.
    #[inline]
    pub fn put_with(&mut self, key: &[u8], value: &[u8], terms: Terms, tag: u64) -> Result<(), PushError> {
        self.push(self.now(), Operation::put_on(key, value, terms), tag)
    }

    /// Adds `delta`, which may be negative, to the number that the value of `key` is: eight bytes in network order, 0 if
    /// there is no value, and then it lives for `ttl_ms`. Ends as `Value` of the number before; the sum is taken modulo
    /// 2^64. A value of another length ends it as `NotExecuted` of [`NotANumber`](crate::Reason::NotANumber).
    ///
    /// # Errors
    /// [`PushError::Full`]: poll first. Otherwise what is wrong with the key.
    #[inline]
    pub fn add(
        &mut self,
        key: &[u8],
        delta: i64,
        ttl_ms: Option<NonZeroU32>,
        tag: u64,
    ) -> Result<(), PushError> {
        self.push(self.now(), Operation::add(key, delta.cast_unsigned(), ttl_ms), tag)
    }

    /// Removes `key`.
    ///
    /// # Errors
    /// [`PushError::Full`]: poll first. Otherwise what is wrong with the key.
    #[inline]
    pub fn delete(&mut self, key: &[u8], tag: u64) -> Result<(), PushError> {
        self.push(self.now(), Operation::delete(key), tag)
    }

    /// Takes an operation at a time that the caller has read already: reading the clock costs as much as the rest.
    ///
    /// # Errors
    /// As [`get`](Self::get) and [`put`](Self::put).
    #[inline(always)]
    pub fn push(&mut self, now: Instant, operation: Operation<'_>, tag: u64) -> Result<(), PushError> {
        if self.between.is_some() {
            self.push_between(now, operation, tag)
        } else {
            self.take(now, operation, tag)
        }
    }

    /// Takes an operation through what is between.
    fn push_between(&mut self, now: Instant, operation: Operation<'_>, tag: u64) -> Result<(), PushError> {
        let Some(mut between) = self.between.take() else { return self.take(now, operation, tag) };
        let Between { order, coalescing } = &mut *between;
        let taken = match order {
            None => self.take_coalescing(now, operation, tag, coalescing.as_mut()),
            Some(order) if order.admits(&operation) => {
                let ticket = order.begin(&operation, tag);
                self.take_coalescing(now, operation, ticket, coalescing.as_mut()).inspect_err(|_| {
                    order.end(ticket);
                })
            }
            Some(_) => {
                self.holding = true;
                check_lengths(&operation).and(Err(PushError::Full))
            }
        };
        self.between = Some(between);
        taken
    }

    /// Takes an operation whose turn it is.
    fn take_coalescing(
        &mut self,
        now: Instant,
        operation: Operation<'_>,
        tag: u64,
        coalescing: Option<&mut Coalescing>,
    ) -> Result<(), PushError> {
        let Some(coalescing) = coalescing else { return self.take(now, operation, tag) };
        let place = (self.flow_of(operation.key), self.flows.len());
        coalescing.push(&mut self.flows[place.0].flow, place, now, operation, tag)
    }

    /// Gives an operation to the core that owns its key.
    #[inline(always)]
    fn take(&mut self, now: Instant, operation: Operation<'_>, tag: u64) -> Result<(), PushError> {
        let index = self.flow_of(operation.key);
        self.flows[index].flow.push(now, operation, tag)
    }

    /// Index of the core that owns a key.
    #[inline(always)]
    fn flow_of(&self, key: Key<'_>) -> usize {
        if self.flows.len() == 1 {
            return 0;
        }
        let Owner { node, core } = self.map.owner_of_key(key);
        self.nodes[usize::from(node)] + usize::from(core)
    }

    /// Sends what is due, takes what has arrived, and hands outcomes to `sink`; returns how many datagrams arrived.
    /// Never blocks.
    ///
    /// Operations are held back for a moment to travel together: until `burst` requests are complete, until the oldest
    /// has waited for `linger`, or not at all while nothing is in flight.
    ///
    /// # Errors
    /// When the port is broken for good.
    #[inline]
    pub fn poll(&mut self, now: Instant, sink: &mut impl FnMut(Ended<'_>)) -> io::Result<usize> {
        self.poll_timers(now, sink);
        for core in &mut self.flows {
            let flow = &mut core.flow;
            let idle = flow.in_flight() == 0 || self.holding;
            let lingered =
                || flow.waiting_since().is_some_and(|since| now.since(since) >= self.config.linger);
            if idle || lingered() {
                flow.flush();
            } else if flow.ready() < self.config.burst && !flow.has_urgent() {
                continue;
            }
            transmit(now, core, self.port.split().1);
        }
        self.holding = false;
        self.exchange(now, sink)
    }

    /// Sends all that was taken so far without waiting for company, then polls.
    ///
    /// # Errors
    /// When the port is broken for good.
    pub fn flush(&mut self, now: Instant, sink: &mut impl FnMut(Ended<'_>)) -> io::Result<usize> {
        self.flows.iter_mut().for_each(|core| core.flow.flush());
        self.turn(now, sink)
    }

    /// Polls until every operation taken so far has ended, sleeping while there is nothing to do.
    ///
    /// # Errors
    /// When the port is broken for good.
    pub fn run(&mut self, mut sink: impl FnMut(Ended<'_>)) -> io::Result<()> {
        let mut last_busy = self.now();
        loop {
            let now = self.now();
            if self.flush(now, &mut sink)? > 0 {
                last_busy = now;
            }
            if self.is_idle() {
                return Ok(());
            }
            if now.since(last_busy) > SPIN_BEFORE_SLEEP {
                self.wait(SLEEP_MAX)?;
            }
        }
    }

    /// Sleeps until a datagram arrives, a timer is due, or `longest` has passed.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn wait(&self, longest: Duration) -> io::Result<()> {
        let next =
            self.flows.iter().map(|core| core.flow.next_timeout()).min().unwrap_or(Instant::FAR_FUTURE);
        let timeout = next.since(self.now()).min(longest);
        match self.port.wait_fd() {
            Some(fd) => wait(&[fd], timeout),
            None => Ok(()),
        }
    }

    /// Whether there is a session with every core.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.flows.iter().all(|core| core.flow.is_open())
    }

    /// Whether every operation taken so far has ended.
    #[inline]
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.flows.iter().all(|core| core.flow.is_idle())
    }

    /// The cores connected to: address and what each says of itself.
    pub fn cores(&self) -> impl Iterator<Item = (SocketAddr, Option<&ServerInfo>)> {
        self.flows.iter().map(|core| (core.peer.addr, core.flow.info()))
    }

    /// Gets that did not travel so far: [`SessionCounters::coalesced`] by itself, at no cost.
    #[inline]
    #[must_use]
    pub fn coalesced(&self) -> u64 {
        let coalescing = self.between.as_ref().and_then(|between| between.coalescing.as_ref());
        self.retired.coalesced + coalescing.map_or(0, Coalescing::coalesced)
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> SessionCounters {
        let flows = self.flows.iter().map(|core| core.flow.counters());
        let present = SessionCounters {
            flows: flows.fold(FlowCounters::default(), FlowCounters::plus),
            port: self.port.counters(),
            drops: self.drops,
            coalesced: self.coalesced() - self.retired.coalesced,
        };
        self.retired.plus(&present)
    }

    /// Measures one round trip to each core, in the order of [`cores`](Self::cores); `None` for a core that did not
    /// answer in time. What ends meanwhile goes to `sink`.
    ///
    /// # Errors
    /// When the port is broken for good.
    pub fn ping(&mut self, sink: &mut impl FnMut(Ended<'_>)) -> io::Result<Vec<Option<Duration>>> {
        // A pong that comes in the very turn that the ping leaves in seems to have taken no time.
        self.ask(sink, Flow::ping, |flow, elapsed| {
            flow.take_pong().map(|rtt| if rtt.is_zero() { elapsed } else { rtt })
        })
    }

    /// Asks each core for its statistics, in the order of [`cores`](Self::cores); `None` for a core that did not answer
    /// in time.
    ///
    /// # Errors
    /// When the port is broken for good.
    pub fn statistics(
        &mut self,
        sink: &mut impl FnMut(Ended<'_>),
    ) -> io::Result<Vec<Option<Box<[u64; STAT_COUNT]>>>> {
        self.ask(sink, Flow::ask_statistics, |flow, _| flow.take_statistics())
    }

    /// Asks each core something, again as often as needed, until all have answered or the time is up. `take` is told how
    /// long ago that was.
    fn ask<T>(
        &mut self,
        sink: &mut impl FnMut(Ended<'_>),
        ask: impl Fn(&mut Flow),
        take: impl Fn(&mut Flow, Duration) -> Option<T>,
    ) -> io::Result<Vec<Option<T>>> {
        let begun = self.now();
        let mut answers: Vec<Option<T>> = self.flows.iter().map(|_| None).collect();
        let mut asked_at = None;
        while answers.iter().any(Option::is_none) && self.now().since(begun) < self.config.timeout {
            let now = self.now();
            let again = asked_at.is_none_or(|asked_at| now.since(asked_at) > ASK_AGAIN_AFTER);
            if again {
                asked_at = Some(now);
                let unanswered = self.flows.iter_mut().zip(&answers).filter(|(_, answer)| answer.is_none());
                unanswered.for_each(|(core, _)| ask(&mut core.flow));
            }
            if self.turn(now, sink)? == 0 {
                self.wait(ASK_AGAIN_AFTER)?;
            }
            let elapsed = self.now().since(asked_at.unwrap_or(now));
            for (core, answer) in self.flows.iter_mut().zip(&mut answers) {
                *answer = answer.take().or_else(|| take(&mut core.flow, elapsed));
            }
        }
        Ok(answers)
    }

    /// Looks after the port now and then.
    #[inline]
    fn check_port(&mut self, now: Instant) -> io::Result<()> {
        if now >= self.next_check {
            self.next_check = now + CHECK_INTERVAL;
            self.port.check()?;
        }
        Ok(())
    }

    /// Sends everything that is complete or due, then exchanges datagrams.
    fn turn(&mut self, now: Instant, sink: &mut impl FnMut(Ended<'_>)) -> io::Result<usize> {
        self.poll_timers(now, sink);
        for core in &mut self.flows {
            transmit(now, core, self.port.split().1);
        }
        self.exchange(now, sink)
    }

    /// Hands the outbox to the kernel and takes what has arrived.
    #[inline]
    fn exchange(&mut self, now: Instant, sink: &mut impl FnMut(Ended<'_>)) -> io::Result<usize> {
        self.check_port(now)?;
        if !self.port.split().1.is_empty() {
            self.port.tx_flush()?;
        }
        let count = self.port.rx_burst()?;
        if count > 0 {
            match self.between.take() {
                None => self.receive(now, sink),
                Some(mut between) => {
                    self.receive(now, &mut |ended: Ended<'_>| between.end(ended, sink));
                    self.between = Some(between);
                }
            }
        }
        Ok(count)
    }

    /// Hands what has arrived to the flows.
    #[inline]
    fn receive(&mut self, now: Instant, sink: &mut impl FnMut(Ended<'_>)) {
        let (received, _) = self.port.split();
        let mut index = 0;
        for datagram in received.iter() {
            // A train comes from one core.
            let is_of = |core: &CoreFlow| core.peer.addr == datagram.peer.addr;
            if self.flows.len() > 1 && !is_of(&self.flows[index]) {
                let Some(found) = self.flows.iter().position(is_of) else {
                    self.drops.count(linerate_proto::DropReason::WrongPeer);
                    continue;
                };
                index = found;
            }
            if let Err(reason) = self.flows[index].flow.receive(now, datagram.bytes, sink) {
                self.drops.count(reason);
            }
        }
    }

    /// Lets time act on what is in flight or waits, before anything is sent: what is past its deadline no longer is.
    #[inline]
    fn poll_timers(&mut self, now: Instant, sink: &mut impl FnMut(Ended<'_>)) {
        match &mut self.between {
            None => self.flows.iter_mut().for_each(|core| core.flow.poll_timers(now, sink)),
            Some(between) => {
                let sink = &mut |ended: Ended<'_>| between.end(ended, sink);
                self.flows.iter_mut().for_each(|core| core.flow.poll_timers(now, sink));
            }
        }
    }

    /// Says goodbye to all cores, so that they need not wait for the lease to end. What was not answered ends unknown
    /// or not executed, without a word to anybody.
    fn close(&mut self) {
        say_goodbyes(self.now(), &mut self.flows, &mut self.port);
    }
}

impl<P: Port> Drop for Session<P> {
    fn drop(&mut self) {
        self.close();
    }
}

/// Time that a waiting call looks for answers before it lets the CPU go.
const SPIN_BEFORE_SLEEP: Duration = Duration::from_micros(50);

/// How often the port is looked after.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Longest sleep of a waiting call.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// A question other than a request is asked again after this long.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// How often the cluster map may be found to have changed while connecting by it.
const MAP_CHANGES_MAX: usize = 4;

/// Servers that stay silent are waited for no longer than this once another one has answered.
const CONTACT_GRACE: Duration = Duration::from_millis(500);

/// The client id of one flow of a client: its own, so that nobody can pass one core's answer off as another's, and not
/// that of another client's flow, whose id may be the next number and whose flows may have another order.
fn flow_id(client_id: u64, index: u64) -> u64 {
    key_hash(Key::new([client_id.to_be_bytes(), index.to_be_bytes()].as_flattened()))
}

/// The flows to all cores of a session. `cores`: address of each, and its number where that is known.
fn core_flows(
    port: &impl Port,
    cores: &[(SocketAddr, Option<u8>)],
    config: &SessionConfig,
    epoch: u16,
    (client_id, generation): (u64, u64),
) -> Vec<CoreFlow> {
    // Three quarters of the queue are shared out; the rest is for answers that come late or twice.
    let reply_datagrams_max = port.rx_queue_datagrams(DATAGRAM_LEN_MAX) / 4 * 3 / cores.len().max(1);
    let flow = |(&(addr, core), index): (&(SocketAddr, Option<u8>), u64)| {
        let flow = Flow::new(FlowConfig {
            window: config.window,
            operations_max: config.operations_max,
            checksum: config.checksum,
            versions: config.versions,
            lifetimes: config.lifetimes,
            rto_floor: config.rto_floor,
            timeout: config.timeout,
            reply_datagrams_max,
            core,
            epoch,
            seed: nonce_of(flow_id(client_id, index), generation),
        });
        CoreFlow { flow, peer: Peer::datagram(addr) }
    };
    cores.iter().zip(0..).map(flow).collect()
}

/// Ends the sessions of flows.
fn say_goodbyes(now: Instant, flows: &mut [CoreFlow], port: &mut impl Port) {
    for core in flows {
        core.flow.abandon(&mut |_| {});
        core.flow.say_goodbye();
        transmit(now, core, port.split().1);
    }
    // The lease is there for goodbyes that get lost.
    let _ = port.tx_flush();
}

/// Writes what a flow has to send into the outbox, as far as there is room.
#[inline]
fn transmit(now: Instant, core: &mut CoreFlow, outbox: &mut Outbox) {
    while let Some(len) = core.flow.poll_transmit(now) {
        let Some(slot) = outbox.begin(&core.peer, len) else { break };
        core.flow.emit(now, slot.bytes);
        outbox.commit(len);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Goal: no flow of a client ends the session of another client's flow. Method: clients numbered from 0 and from
    /// elsewhere, with as many flows as there can be.
    #[test]
    fn flows_of_neighbouring_clients_have_ids_of_their_own() {
        let clients = (0..64).chain([u64::MAX, 1 << 48, 0x0123_4567_89ab_cdef]);
        let ids: Vec<_> =
            clients.flat_map(|client| (0..512).map(move |index| flow_id(client, index))).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    }
}
