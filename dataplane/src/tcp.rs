//! The stream port: the datagrams of the other ports, each behind its length, over TCP.
//!
//! ```text
//!  stream │ len 2 (big-endian) │ datagram, 1 to datagram_len_max bytes │ len │ datagram │ …
//! ```
//! It is the fallback for networks that do not carry UDP well, and what the other ports are compared with. A client
//! thread has one connection per server core. The kernel delivers in order and without loss, yet datagrams are
//! dropped, and counted, where keeping them would mean unbounded memory or a wait: when a peer does not take its
//! answers, and while there is no connection. The protocol above retransmits, as it does everywhere.
//!
//! **Memory is bounded by construction**, to [`TcpConfig::memory_len`]. Receiving takes
//! [`rx_slices`](TcpConfig::rx_slices) × 128 KiB, which the connections that a burst reads share, and for each connection
//! as much as the beginning of a datagram; sending takes [`tx_chunks`](TcpConfig::tx_chunks) × 64 KiB, all queues
//! included. The list of a burst's datagrams has a limit too: what would not fit it stays in the sockets until the next.
//! Beside this the kernel keeps up to `net.ipv4.tcp_rmem[2]` + `tcp_wmem[2]` bytes per connection (tcp(7)).
//!
//! **A slow reader** keeps chunks of the outbox busy. A server therefore reads no requests from a connection whose
//! answers wait for the socket: the requests wait in theirs, and TCP tells the peer. (A client goes on reading:
//! if both ends held back, neither would ever go on.) What a connection may queue is limited, further trains
//! to it are dropped, and all queues together leave a quarter of the chunks to the others: beyond it, a
//! connection keeps one train only, and is closed when it has taken nothing of it for a second.

mod connection;
mod dial;

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    mem,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use socket2::{Domain, Protocol, Socket, Type};

use self::{
    connection::{Connection, End, FRAME_LEN_MIN, RX_SLICE_LEN},
    dial::Dial,
};
use crate::{
    outbox::{Framing, Outbox, STREAM_PREFIX_LEN, Train},
    port::{Inbox, Peer, Port, PortCounters, Received},
    region::{MAPPING_UNIT, Region},
};

/// Most connections served per burst; the kernel rotates through all that are ready. 32 full slices are 4 MiB, already
/// more than a second-level cache holds.
const EVENTS_MAX: usize = 32;

/// A burst ends early when its datagrams are on average shorter than this many bytes: twice the shortest that the protocol
/// has, and a list of them takes less than a fifth of their memory.
const RX_LISTED_LEN: usize = 64;

/// Connections accepted per burst: a flood of them must not keep the others waiting.
const ACCEPTS_MAX: usize = 16;

/// Connections that wait for `accept`; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 1_024;

/// What the listening socket's events carry; connections' carry their place in the table.
const LISTENER: u64 = u64::MAX;

/// How often timeouts are looked at: a fraction of the shortest of them.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// Most connections. Each takes a descriptor, and systems rarely allow a process more of them than some ten thousands.
const CONNECTIONS_MAX: usize = 32_768;

/// Bytes for each place in the table: itself among the free ones, and by its number in a hash table, which may be less than
/// half full.
const PLACE_LEN: usize = size_of::<usize>() + 3 * size_of::<(u32, usize)>();

/// Settings of a [`TcpPort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// Longest datagram in bytes, at least 1. A longer one on a connection closes it.
    pub datagram_len_max: u16,
    /// Places in the connection table of a server, 1 to 32,768; a client has one for each server.
    pub connections_max: usize,
    /// Connections that are read in one burst, 1 to 32; 128 KiB each.
    pub rx_slices: usize,
    /// 64 KiB chunks for datagrams to send, at least 4. Twice `connections_max` is safe: if all of those
    /// get stuck within a train, the port is still not stuck.
    pub tx_chunks: usize,
    /// Chunks that may wait for one connection, at least 1.
    pub tx_chunks_per_connection: usize,
    /// A connection from which nothing has arrived for so long is closed, sooner or later.
    pub idle_timeout: Duration,
}

impl Default for TcpConfig {
    /// 1,472-byte datagrams as on UDP, 256 connections, of which 32 are read in one burst, 512 chunks (32 MiB), 32 for each
    /// connection, and 120 seconds.
    fn default() -> Self {
        Self::for_connections(256)
    }
}

impl TcpConfig {
    /// The default for so many connections instead of 256, with everything else in proportion.
    ///
    /// # Panics
    /// For none or more than 256.
    #[must_use]
    pub fn for_connections(connections: usize) -> Self {
        assert!((1..=256).contains(&connections), "{connections} connections");
        Self {
            datagram_len_max: 1_472,
            connections_max: connections,
            rx_slices: (connections / 8).max(4),
            tx_chunks: (2 * connections).max(4),
            tx_chunks_per_connection: (connections / 8).max(4),
            idle_timeout: Duration::from_secs(120),
        }
    }

    /// The default, or as much of it as fits into `memory_len` bytes; never less than for 16 connections.
    #[must_use]
    pub fn within(memory_len: usize) -> Self {
        let fits = |connections: &usize| Self::for_connections(*connections).memory_len() <= memory_len;
        Self::for_connections((16..=256).rev().find(fits).unwrap_or(16))
    }

    /// Bytes of memory that a server's port with these settings takes at most.
    #[must_use]
    pub fn memory_len(&self) -> usize {
        let table = self.connections_max * (connection::memory_len(self) + PLACE_LEN);
        let rx = self.rx_slices * RX_SLICE_LEN + self.connections_max * self.kept_len();
        let inbox = Inbox::memory_len_of(EVENTS_MAX, self.listed_max());
        let tx = Outbox::memory_len_of(self.tx_chunks) + self.tx_chunks * size_of::<Train>();
        // Each of the three mappings is rounded up.
        table + rx + inbox + tx + 3 * MAPPING_UNIT
    }

    /// Bytes to keep of a datagram that has not arrived as a whole, length included.
    const fn kept_len(&self) -> usize {
        STREAM_PREFIX_LEN + self.datagram_len_max as usize - 1
    }

    /// Datagrams of one burst.
    fn listed_max(&self) -> usize {
        // A read is as long as there is room for its datagrams were they all of one byte. With room for what is kept of one
        // and something more, every connection gets on.
        (self.rx_slices * RX_SLICE_LEN / RX_LISTED_LEN).max(self.kept_len() / FRAME_LEN_MIN + 1)
    }

    fn check(&self) -> io::Result<()> {
        let broken = if self.datagram_len_max == 0 {
            "datagram_len_max is 0"
        } else if !(1..=CONNECTIONS_MAX).contains(&self.connections_max) {
            "connections_max is not within 1..=32768"
        } else if !(1..=EVENTS_MAX).contains(&self.rx_slices) {
            "rx_slices is not within 1..=32"
        } else if self.tx_chunks < 4 {
            "tx_chunks is below 4"
        } else if self.tx_chunks_per_connection == 0 {
            "tx_chunks_per_connection is 0"
        } else {
            return Ok(());
        };
        Err(io::Error::new(ErrorKind::InvalidInput, broken))
    }
}

/// A [`Port`] over TCP: the listening end of one server core, or a client thread's connections to servers.
///
/// On a server, the [`Peer`] of a received datagram names the connection it came over, and answers take that
/// very connection; once it is gone they are dropped and counted. On a client, [`Peer::datagram`] with a server's
/// address stands for the connection to it, whichever that is at the moment; received datagrams carry the
/// connection's number too, by which a client notices that it was replaced.
#[derive(Debug)]
pub struct TcpPort {
    config: TcpConfig,
    local_addr: SocketAddr,
    role: Role,
    epoll: Epoll,
    /// What epoll reported last; kept to be reused.
    events: [EpollEvent; EVENTS_MAX],
    /// The connection table.
    connections: Vec<Option<Connection>>,
    /// By place, what has arrived of a connection's next datagram.
    kept: Region<u8>,
    /// Place of each live connection by its number.
    places: HashMap<u32, usize>,
    number_next: u32,
    /// What the last burst has read: a slice for each connection that was served.
    memory: Region<u8>,
    inbox: Inbox,
    outbox: Outbox,
    /// The trains of the flush under way; empty between flushes, kept to be reused.
    trains: Vec<Train>,
    counters: PortCounters,
    sweep_at: Instant,
}

#[derive(Debug)]
enum Role {
    Server {
        listener: Socket,
        /// Places that no connection has.
        free: Vec<usize>,
        /// Whether accepting failed for want of something, and waits for the next sweep.
        paused: bool,
    },
    Client {
        /// The servers; each has the place of its index.
        dials: Vec<Dial>,
        places: HashMap<SocketAddr, usize>,
    },
}

impl TcpPort {
    /// Listens on `addr`, exclusively; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// `InvalidInput` for a setting out of range, else those of socket(2), bind(2), listen(2), epoll_create(2) and
    /// mmap(2), with the address in the message.
    pub fn listen(addr: SocketAddr, config: TcpConfig) -> io::Result<Self> {
        Self::try_listen(addr, config).map_err(|error| named(addr, "listen", &error))
    }

    fn try_listen(addr: SocketAddr, config: TcpConfig) -> io::Result<Self> {
        config.check()?;
        let socket_type = Type::STREAM.nonblocking();
        let listener = Socket::new(Domain::for_address(addr), socket_type, Some(Protocol::TCP))?;
        // A restarted server gets its port back while old connections linger in TIME_WAIT. Unlike SO_REUSEPORT, on
        // Linux this never lets two sockets listen on one port (socket(7)).
        listener.set_reuse_address(true)?;
        listener.bind(&addr.into())?;
        listener.listen(BACKLOG)?;
        let local_addr = listener.local_addr()?.as_socket().ok_or(ErrorKind::AddrNotAvailable)?;
        let free = (0..config.connections_max).rev().collect();
        let role = Role::Server { listener, free, paused: false };
        Self::new(config, config.connections_max, local_addr, role)
    }

    /// Starts to connect to every one of `servers`; several mentions of an address count once.
    ///
    /// A connection that did not come about, or has ended, is tried again when something is to be sent to its server,
    /// with pauses of 10 ms doubling to 1 s; until it is up, datagrams to that server are dropped and counted.
    /// `connections_max` does not matter here.
    ///
    /// # Errors
    /// `InvalidInput` for a setting out of range or more than 32,768 servers, else those of epoll_create(2) and
    /// mmap(2). A server that does not answer is no error.
    pub fn connect(servers: &[SocketAddr], config: TcpConfig) -> io::Result<Self> {
        let now = Instant::now();
        let mut places = HashMap::with_capacity(servers.len());
        let mut dials = Vec::with_capacity(servers.len());
        for &addr in servers {
            places.entry(addr).or_insert_with(|| {
                dials.push(Dial::new(addr, now));
                dials.len() - 1
            });
        }
        let count = dials.len();
        let local_addr = (Ipv4Addr::UNSPECIFIED, 0).into();
        let config = TcpConfig { rx_slices: config.rx_slices.min(count.max(1)), ..config };
        TcpConfig { connections_max: count.max(1), ..config }
            .check()
            .and_then(|()| Self::new(config, count, local_addr, Role::Client { dials, places }))
            .map(|mut port| {
                (0..count).for_each(|place| port.dial(place, now));
                port
            })
            .map_err(|error| named(local_addr, "connect", &error))
    }

    fn new(config: TcpConfig, places: usize, local_addr: SocketAddr, role: Role) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        if let Role::Server { listener, .. } = &role {
            epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        }
        Ok(Self {
            config,
            local_addr,
            role,
            epoll,
            events: [EpollEvent::empty(); EVENTS_MAX],
            connections: (0..places).map(|_| None).collect(),
            kept: Region::zeroed(places * config.kept_len())?,
            places: HashMap::with_capacity(places),
            number_next: 0,
            memory: Region::zeroed(config.rx_slices * RX_SLICE_LEN)?,
            inbox: Inbox::with_capacity(EVENTS_MAX, config.listed_max()),
            outbox: Outbox::new(config.tx_chunks, Framing::Stream)?,
            trains: Vec::with_capacity(config.tx_chunks),
            counters: PortCounters::default(),
            sweep_at: Instant::now() + SWEEP_INTERVAL,
        })
    }

    /// `rx_burst` with the time as an argument.
    fn receive(&mut self, now: Instant) -> io::Result<usize> {
        self.inbox.clear();
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_INTERVAL;
            self.sweep(now);
        }
        let ready = match self.epoll.wait(&mut self.events[..self.config.rx_slices], EpollTimeout::ZERO) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(named(self.local_addr, "epoll_wait", &errno.into())),
        };
        let mut knocked = false;
        for index in 0..ready {
            let event = self.events[index];
            match event.data() {
                LISTENER => knocked = true,
                place => self.serve(place as usize, event.events(), index, now),
            }
        }
        // Only now, so that a place that became free above does not get the rest of its old connection's events.
        if knocked {
            self.accept_waiting(now);
        }
        Ok(self.inbox.count())
    }

    /// `tx_flush` with the time as an argument.
    fn transmit(&mut self, now: Instant) {
        let mut trains = mem::take(&mut self.trains);
        self.outbox.detach(|train| trains.push(train));
        let mut ahead = trains.len();
        for train in trains.drain(..) {
            ahead -= 1;
            match self.place_of(&train.peer, now) {
                Some(place) => self.transmit_train(place, train, ahead, now),
                None => self.drop_train(&train),
            }
        }
        self.trains = trains;
    }

    /// What epoll reported of one connection: first out with what waits, since that decides whether to read. `slice` is the
    /// number of the one to read into.
    fn serve(&mut self, place: usize, events: EpollFlags, slice: usize, now: Instant) {
        let Some(connection) = &mut self.connections[place] else { return };
        let failed = events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        let mut outcome = Ok(());
        if connection.is_connecting() && (failed || events.contains(EpollFlags::EPOLLOUT)) {
            outcome = connection.finish_connecting();
            self.counters.connections_opened += u64::from(outcome.is_ok());
        }
        if outcome.is_ok() && events.contains(EpollFlags::EPOLLOUT) {
            outcome = connection.transmit(&mut self.outbox, &mut self.counters, now);
        }
        let reads = connection.wanted(self.role.holds_back()).contains(EpollFlags::EPOLLIN);
        if outcome.is_ok() && reads && (failed || events.contains(EpollFlags::EPOLLIN)) {
            let base = slice * RX_SLICE_LEN;
            let kept_len = self.config.kept_len();
            let received_before = self.inbox.count();
            outcome = connection.receive(
                &mut self.kept[place * kept_len..][..kept_len],
                (&mut self.memory[base..base + RX_SLICE_LEN], base),
                usize::from(self.config.datagram_len_max),
                &mut self.inbox,
                &mut self.counters,
                now,
            );
            if let Role::Client { dials, .. } = &mut self.role
                && self.inbox.count() > received_before
            {
                dials[place].answered();
            }
        } else if outcome.is_ok() && failed {
            // Nobody will ever take what waits, and epoll cannot be told not to report it.
            outcome = Err(End::Failed);
        }
        self.settle(place, outcome, now);
    }

    /// Sends one train after everything that already waits for its connection, or drops it as a whole, so that the
    /// framing never breaks. `ahead` is the number of trains still to be handled in this flush.
    fn transmit_train(&mut self, place: usize, train: Train, ahead: usize, now: Instant) {
        let Some(connection) = &mut self.connections[place] else { return self.drop_train(&train) };
        let mut outcome = connection.transmit(&mut self.outbox, &mut self.counters, now);
        // This train's chunk is neither queued nor free.
        let queued = self.config.tx_chunks - self.outbox.free_chunks() - ahead - 1;
        let queue_max =
            if is_scarce(queued, self.config.tx_chunks) { 1 } else { self.config.tx_chunks_per_connection };
        if outcome.is_err() || connection.queued() >= queue_max {
            self.drop_train(&train);
            return self.settle(place, outcome, now);
        }
        let was_connecting = connection.is_connecting();
        connection.enqueue(train, now);
        outcome = connection.transmit(&mut self.outbox, &mut self.counters, now);
        if connection.is_connecting() {
            // Kept until the server is back, it would arrive long after it was sent again.
            connection.abandon(&mut self.outbox, &mut self.counters);
        } else if was_connecting {
            self.counters.connections_opened += 1;
        }
        self.settle(place, outcome, now);
    }

    fn drop_train(&mut self, train: &Train) {
        self.counters.tx_dropped += u64::from(train.count);
        self.outbox.release(train.chunk);
    }

    /// The place of the connection to a peer; a client connects to a server that it has lost, if it is time to.
    fn place_of(&mut self, peer: &Peer, now: Instant) -> Option<usize> {
        if let Some(number) = peer.connection {
            return self.places.get(&number).copied();
        }
        let Role::Client { places, dials } = &self.role else { return None };
        let place = *places.get(&peer.addr)?;
        if self.connections[place].is_none() && dials[place].is_due(now) {
            self.dial(place, now);
        }
        Some(place)
    }

    /// Starts a client's connection to the server of that place.
    fn dial(&mut self, place: usize, now: Instant) {
        let Role::Client { dials, .. } = &mut self.role else { unreachable!("a server dials nobody") };
        let addr = dials[place].addr;
        let started = dial::connecting(addr).and_then(|socket| self.open(place, socket, addr, true, now));
        if started.is_err() {
            self.counters.soft_errors += 1;
            if let Role::Client { dials, .. } = &mut self.role {
                dials[place].ended(now);
            }
        }
    }

    /// Accepts what has knocked, up to `ACCEPTS_MAX`.
    fn accept_waiting(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_MAX {
            let Role::Server { listener, free, .. } = &mut self.role else { return };
            let (socket, addr) = match listener.accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.counters.soft_errors += 1;
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) {
                        continue;
                    }
                    // Most likely out of descriptors or memory: the connection keeps knocking, and trying again at
                    // once would only burn the time in which something may become free.
                    return self.pause_accepting(true);
                }
            };
            let (Some(addr), Some(place)) = (addr.as_socket(), free.pop()) else {
                self.counters.connections_refused += 1;
                continue;
            };
            let opened =
                socket.set_tcp_nodelay(true).and_then(|()| self.open(place, socket, addr, false, now));
            match (opened, &mut self.role) {
                (Err(_), Role::Server { free, .. }) => {
                    self.counters.soft_errors += 1;
                    free.push(place);
                }
                _ => self.counters.connections_opened += 1,
            }
        }
    }

    /// Enters a connection into the table and into epoll.
    fn open(
        &mut self,
        place: usize,
        socket: Socket,
        addr: SocketAddr,
        connecting: bool,
        now: Instant,
    ) -> io::Result<()> {
        // After 2^32 connections the numbers start over; whoever held on to the old one has long been told.
        while self.places.contains_key(&self.number_next) {
            self.number_next = self.number_next.wrapping_add(1);
        }
        let number = self.number_next;
        let peer = Peer { addr, local: None, connection: Some(number), mac: [0; 6] };
        let mut connection = Connection::new(socket, peer, connecting, now);
        let wanted = connection.wanted(self.role.holds_back());
        self.epoll.add(&connection.socket, EpollEvent::new(wanted, place as u64))?;
        connection.watched_for(wanted, now);
        self.number_next = number.wrapping_add(1);
        self.places.insert(number, place);
        self.connections[place] = Some(connection);
        Ok(())
    }

    /// Tells epoll what a connection now waits for, or closes it when it is over.
    fn settle(&mut self, place: usize, outcome: Result<(), End>, now: Instant) {
        let Some(connection) = &mut self.connections[place] else { return };
        let wanted = connection.wanted(self.role.holds_back());
        let outcome = outcome.and_then(|()| {
            if wanted == connection.interest() {
                return Ok(());
            }
            connection.watched_for(wanted, now);
            let mut event = EpollEvent::new(wanted, place as u64);
            self.epoll.modify(&connection.socket, &mut event).map_err(|_| End::Failed)
        });
        if let Err(end) = outcome {
            self.close(place, end, now);
        }
    }

    fn close(&mut self, place: usize, end: End, now: Instant) {
        let Some(mut connection) = self.connections[place].take() else { return };
        match end {
            End::Finished | End::Idle => {}
            End::Failed => self.counters.soft_errors += 1,
            End::BrokeFraming | End::Slow => self.counters.connections_dropped += 1,
        }
        connection.abandon(&mut self.outbox, &mut self.counters);
        let number = connection.peer.connection.expect("`open` numbers every connection");
        self.places.remove(&number);
        match &mut self.role {
            Role::Server { free, .. } => free.push(place),
            Role::Client { dials, .. } => dials[place].ended(now),
        }
        // Dropping the socket closes its only descriptor, which takes it out of epoll (epoll(7), question 6).
    }

    /// Closes what has been silent, stuck or connecting for too long, and accepts again after a pause.
    fn sweep(&mut self, now: Instant) {
        for place in 0..self.connections.len() {
            let Some(connection) = &self.connections[place] else { continue };
            let queued = self.config.tx_chunks - self.outbox.free_chunks() - self.outbox.trains().len();
            let scarce = is_scarce(queued, self.config.tx_chunks);
            if let Some(end) = connection.overdue(self.config.idle_timeout, scarce, now) {
                self.close(place, end, now);
            }
        }
        self.pause_accepting(false);
    }

    /// Stops, or starts again, to watch the listener.
    fn pause_accepting(&mut self, pause: bool) {
        let Role::Server { listener, paused, .. } = &mut self.role else { return };
        if *paused == pause {
            return;
        }
        let interest = if pause { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        // Changing a watched descriptor needs no memory. Were it to fail nevertheless, the next burst or sweep tries
        // it again.
        match self.epoll.modify(listener, &mut EpollEvent::new(interest, LISTENER)) {
            Ok(()) => *paused = pause,
            Err(_) => self.counters.soft_errors += 1,
        }
    }
}

impl Role {
    /// Whether nothing is read from a connection while something waits to be sent over it.
    const fn holds_back(&self) -> bool {
        matches!(self, Self::Server { .. })
    }
}

/// Whether connections' queues hold more than three quarters of all chunks.
const fn is_scarce(queued: usize, chunks: usize) -> bool {
    queued * 4 > chunks * 3
}

fn named(addr: SocketAddr, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("tcp port {addr}: {what}: {error}"))
}

impl Port for TcpPort {
    fn rx_burst(&mut self) -> io::Result<usize> {
        self.receive(Instant::now())
    }

    fn split(&mut self) -> (Received<'_>, &mut Outbox) {
        (Received::new(&self.memory[..], &self.inbox), &mut self.outbox)
    }

    fn tx_flush(&mut self) -> io::Result<()> {
        if self.outbox.is_empty() {
            // Only takes back what was begun and never committed.
            self.outbox.reset();
        } else {
            self.transmit(Instant::now());
        }
        Ok(())
    }

    /// Where a server listens; unspecified for a client, whom nobody can reach.
    fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    fn reach(&mut self, addrs: &[SocketAddr]) -> io::Result<bool> {
        Ok(match &self.role {
            Role::Server { .. } => false,
            Role::Client { places, .. } => addrs.iter().all(|addr| places.contains_key(addr)),
        })
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn rx_queue_datagrams(&self, _len: usize) -> usize {
        usize::MAX
    }

    fn memory_len(&self) -> usize {
        let connection_len = connection::memory_len(&self.config) + PLACE_LEN;
        self.connections.capacity() * connection_len
            + self.kept.memory_len()
            + self.memory.memory_len()
            + self.inbox.memory_len()
            + self.outbox.memory_len()
            + self.trains.capacity() * size_of::<Train>()
    }

    fn populate(&mut self) -> io::Result<()> {
        self.kept.populate()?;
        self.memory.populate()?;
        self.outbox.populate()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.0.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    /// Far more than loopback takes, so that only a hang reaches it.
    const DEADLINE: Duration = Duration::from_secs(60);

    /// More than the second after which a connection counts as stuck.
    const STALLED: Duration = Duration::from_secs(2);

    fn listen(config: TcpConfig) -> TcpPort {
        TcpPort::listen((Ipv4Addr::LOCALHOST, 0).into(), config).unwrap()
    }

    /// Receives at the made-up time `now` until `done` holds.
    fn receive_until(port: &mut TcpPort, now: Instant, done: impl Fn(&TcpPort) -> bool) {
        let start = Instant::now();
        while !done(port) {
            port.receive(now).unwrap();
            assert!(start.elapsed() < DEADLINE, "no progress: {:?}", port.counters);
        }
    }

    fn live(port: &TcpPort) -> usize {
        port.connections.iter().flatten().count()
    }

    /// Goal: the idle timeout counts from what arrived last. Method: of two connections one speaks in between, seen
    /// by the port at made-up times.
    #[test]
    fn a_silent_connection_is_closed_and_a_speaking_one_is_kept() {
        let mut port = listen(TcpConfig::default());
        let timeout = port.config.idle_timeout;
        let start = Instant::now();
        let silent = TcpStream::connect(port.local_addr).unwrap();
        receive_until(&mut port, start, |port| live(port) == 1);
        let speaking = TcpStream::connect(port.local_addr).unwrap();
        receive_until(&mut port, start, |port| live(port) == 2);

        io::Write::write_all(&mut &speaking, &[0, 1, 7]).unwrap();
        receive_until(&mut port, start + timeout / 2, |port| port.counters.rx_datagrams == 1);
        port.receive(start + timeout).unwrap();
        assert_eq!(live(&port), 1);
        assert_eq!(io::Read::read(&mut &silent, &mut [0]).unwrap(), 0, "the silent one is closed");
        port.receive(start + timeout * 2).unwrap();
        assert_eq!(live(&port), 0);
        assert_eq!(port.counters.connections_dropped, 0, "idleness is no offence");
    }

    /// Goal: a peer that takes nothing cannot keep scarce chunks. Method: full trains to a peer that never reads,
    /// until its queue leaves less than a quarter; then the clock is moved.
    #[test]
    fn a_stuck_connection_is_closed_only_when_chunks_are_scarce() {
        let config = TcpConfig { tx_chunks: 16, tx_chunks_per_connection: 16, ..TcpConfig::default() };
        let mut port = listen(config);
        let start = Instant::now();
        let reader = TcpStream::connect(port.local_addr).unwrap();
        receive_until(&mut port, start, |port| live(port) == 1);
        let peer = port.connections[0].as_ref().unwrap().peer;

        let mut committed = 0;
        let mut send_until_queued = |port: &mut TcpPort, count: usize| {
            while config.tx_chunks - port.outbox.free_chunks() < count {
                // One chunk's worth, so that the queue grows by one chunk at a time.
                for _ in 0..44 {
                    assert!(port.outbox.begin(&peer, 1_472).is_some());
                    port.outbox.commit(1_472);
                    committed += 1;
                }
                port.transmit(start);
            }
            committed
        };
        send_until_queued(&mut port, 12);
        port.receive(start + STALLED).unwrap();
        assert_eq!(live(&port), 1, "chunks are not scarce yet");
        let committed = send_until_queued(&mut port, 13);
        port.receive(start + STALLED / 4).unwrap();
        assert_eq!(live(&port), 1, "not stuck for long");
        port.receive(start + STALLED * 2).unwrap();
        assert_eq!(live(&port), 0);
        assert_eq!(port.counters.connections_dropped, 1);
        assert_eq!(port.outbox.free_chunks(), config.tx_chunks);
        assert_eq!(port.counters.tx_datagrams + port.counters.tx_dropped, committed);
        drop(reader);
    }

    /// Goal: being out of descriptors ends. Method: the pause is entered by hand, since lowering the process's limit
    /// would hit the other tests; nothing may be accepted before the next sweep, and everything after it.
    #[test]
    fn accepting_pauses_until_the_next_sweep() {
        let mut port = listen(TcpConfig::default());
        let start = Instant::now();
        port.receive(start + SWEEP_INTERVAL).unwrap();
        port.pause_accepting(true);
        let _client = TcpStream::connect(port.local_addr).unwrap();
        for _ in 0..100 {
            port.receive(start + SWEEP_INTERVAL).unwrap();
        }
        assert_eq!(live(&port), 0);
        receive_until(&mut port, start + 3 * SWEEP_INTERVAL, |port| live(port) == 1);
    }

    /// Goal: a server that never answers a SYN is given up and tried again. Method: a listener whose queue is full
    /// drops SYNs; the port sees made-up times.
    #[test]
    fn connecting_times_out_and_is_tried_again() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let addr = listener.local_addr().unwrap().as_socket().unwrap();
        // A backlog of 0 queues one connection (the kernel compares with `>`).
        let _queued = TcpStream::connect(addr).unwrap();

        let mut port = TcpPort::connect(&[addr], TcpConfig::default()).unwrap();
        let start = Instant::now();
        let put = |port: &mut TcpPort| {
            port.outbox.begin(&Peer::datagram(addr), 1).unwrap().bytes[0] = 7;
            port.outbox.commit(1);
        };
        put(&mut port);
        port.transmit(start);
        assert_eq!((live(&port), port.counters.tx_dropped), (1, 1), "still connecting");
        port.receive(start + Duration::from_secs(6)).unwrap();
        assert_eq!((live(&port), port.counters.soft_errors), (0, 1));
        put(&mut port);
        port.transmit(start + Duration::from_secs(6));
        assert_eq!(live(&port), 0, "too early");
        put(&mut port);
        port.transmit(start + Duration::from_secs(7));
        assert_eq!((live(&port), port.counters.tx_dropped), (1, 3), "connecting again");
        assert_eq!(port.outbox.free_chunks(), port.config.tx_chunks);
    }

    /// Goal: what settings say that they take is what a port takes, and what is given is made use of. Method: ports of all
    /// sizes, and settings within memory of all sizes.
    #[test]
    fn memory_is_what_the_settings_say() {
        for connections in [1, 2, 15, 16, 17, 100, 255, 256] {
            let config = TcpConfig::for_connections(connections);
            let port = listen(config);
            let (said, taken) = (config.memory_len(), port.memory_len());
            assert!(taken <= said && said - taken <= 4 * MAPPING_UNIT, "{connections}: {said} and {taken}");
        }
        assert_eq!(TcpConfig::for_connections(256), TcpConfig::default());
        assert_eq!(TcpConfig::within(usize::MAX), TcpConfig::default());
        assert_eq!(TcpConfig::within(0), TcpConfig::for_connections(16));
        for memory_len in (4 << 20..64 << 20).step_by(777_777) {
            let config = TcpConfig::within(memory_len);
            assert!(config.memory_len() <= memory_len, "{memory_len}: {config:?}");
            let more = TcpConfig::for_connections((config.connections_max + 1).min(256));
            assert!(more == config || more.memory_len() > memory_len, "{memory_len}: {config:?}");
            // What stuck connections can hold leaves as much again.
            assert!(config.tx_chunks >= 2 * config.connections_max);
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let good = TcpConfig::default();
        for bad in [
            TcpConfig { datagram_len_max: 0, ..good },
            TcpConfig { connections_max: 0, ..good },
            TcpConfig { connections_max: CONNECTIONS_MAX + 1, ..good },
            TcpConfig { rx_slices: 0, ..good },
            TcpConfig { rx_slices: EVENTS_MAX + 1, ..good },
            TcpConfig { tx_chunks: 3, ..good },
            TcpConfig { tx_chunks_per_connection: 0, ..good },
        ] {
            let error = TcpPort::listen((Ipv4Addr::LOCALHOST, 0).into(), bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
        }
    }
}
