//! Networks to run the suite on: a simulated one with faults, UDP and TCP over loopback, and rings between hosts behind
//! a switch.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant as SystemInstant},
};

use linerate_client::{Client, ConnectError, Instant, Session, SessionConfig};
use linerate_dataplane::{
    PacketPort, Port, TcpPort, UdpPort, XdpPort,
    netns::{End, Namespace, PairConfig, Switch},
    packet::PacketConfig,
    pin::allowed_cores,
    sim::{Faults, SimNetwork, SimPort},
    tcp::TcpConfig,
    udp::UdpConfig,
    xdp::{self, XdpConfig},
};
use linerate_proto::{cluster::Membership, session, wire::STAT_COUNT};
use linerate_server::{
    Datagrams, Server, ServerConfig, StartError,
    core_loop::Idle,
    stats::Published,
    store::{AtCapacity, Store},
    worker::Worker,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::blocking::Connect;

/// What the server of a test is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// Cores of the server.
    pub(crate) cores: u8,
    /// Whether its memory is as small as it can be.
    pub(crate) small: bool,
    /// Whether the network does nothing wrong, where that can be chosen.
    pub(crate) faultless: bool,
}

impl Setup {
    pub(crate) const fn cores(cores: u8) -> Self {
        Self { cores, small: false, faultless: false }
    }
}

/// A network with a server on it.
pub(crate) trait Rig: Sized {
    type Port: Port;

    /// Starts a server. `seed` decides everything random.
    fn start(seed: u64, setup: Setup) -> Self;

    /// A session that believes in `cores` cores. It does not wait for the handshake.
    fn attach(&mut self, cores: u8, config: SessionConfig, seed: u64) -> Session<Self::Port>;

    /// The time that `session` is to be told.
    fn now(&self, session: &Session<Self::Port>) -> Instant;

    /// Lets the server work and time pass. `busy`: something has arrived since the last call.
    fn pass(&mut self, busy: bool);

    /// Time since the start, virtual or not.
    fn elapsed(&self) -> Duration;

    /// [`elapsed`](Self::elapsed) beyond which a wait for anything means that it will never come.
    fn patience(&self) -> Duration;

    /// Ends the server; what it stored is lost.
    fn stop(&mut self);

    /// Starts a server anew at the same address.
    fn restart(&mut self);

    /// The statistics of each core; up to a moment old.
    fn stats(&mut self) -> Vec<[u64; STAT_COUNT]>;
}

/// Runs `test` with the seeds 0..`count`, or with the one that the environment names; tells the seed of a failure.
pub(crate) fn for_seeds(count: u64, test: impl Fn(u64)) {
    struct Tell(u64);
    impl Drop for Tell {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("failed with seed {0}; LINERATE_SEED={0} runs it alone", self.0);
            }
        }
    }
    let only =
        std::env::var("LINERATE_SEED").ok().map(|seed| seed.parse().expect("LINERATE_SEED is a number"));
    for seed in only.map_or(0..count, |seed| seed..seed + 1) {
        let tell = Tell(seed);
        test(tell.0);
    }
}

/// Workers and sessions over a [`SimNetwork`] on virtual time.
pub(crate) struct SimRig {
    pub(crate) network: SimNetwork,
    setup: Setup,
    workers: Vec<(Worker, SimPort, Published)>,
    random: StdRng,
    boots: u64,
    clients: u16,
    client_addr: [u8; 4],
    /// How far time goes when nothing is on the way; doubles while that stays so.
    stride: Duration,
}

/// How often a server that was stopped is started again while its port is in use: for five seconds.
const RESTART_TRIES: u32 = 50;

/// Shortest step of virtual time.
const STRIDE_MIN: Duration = Duration::from_micros(20);

/// Longest: below the least granularity of a client's timers.
const STRIDE_MAX: Duration = Duration::from_millis(2);

impl SimRig {
    fn faults(random: &mut StdRng, checksum: bool) -> Faults {
        let longest = Duration::from_micros(random.random_range(10..200));
        Faults {
            loss: random.random_range(0.0..0.15),
            duplication: random.random_range(0.0..0.15),
            reordering: random.random_range(0.0..0.3),
            corruption: if checksum { random.random_range(0.0..0.05) } else { 0.0 },
            delay: (Duration::from_micros(5), longest),
            // What the kernel charges for so many full datagrams.
            queue_len: [64, 256, 4_096][random.random_range(0..3)] * 2_304,
            ..Faults::NONE
        }
    }

    pub(crate) fn server_addr(core: u8) -> SocketAddr {
        ([10, 0, 0, 1], 4_100 + u16::from(core)).into()
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::from_nanos(self.network.now().as_nanos() as u64)
    }

    /// Lets the workers answer what has arrived, without time passing.
    pub(crate) fn serve(&mut self) {
        let now = self.now();
        for (worker, port, _) in &mut self.workers {
            while worker.turn(port, || now).expect("a sim port never breaks") > 0 {}
        }
    }
}

impl Rig for SimRig {
    type Port = SimPort;

    fn start(seed: u64, setup: Setup) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        // The server wants checksums of all but loopback addresses, and only with them corruption is survivable.
        let checksum = random.random_bool(0.5);
        let faults = if setup.faultless { Faults::NONE } else { Self::faults(&mut random, checksum) };
        let mut rig = Self {
            network: SimNetwork::new(seed, faults),
            setup,
            workers: Vec::new(),
            random,
            boots: 0,
            clients: 0,
            client_addr: if checksum { [10, 0, 0, 2] } else { [127, 0, 0, 1] },
            stride: STRIDE_MIN,
        };
        rig.restart();
        rig
    }

    fn attach(&mut self, cores: u8, config: SessionConfig, seed: u64) -> Session<SimPort> {
        self.clients += 1;
        let port = self.network.port((self.client_addr, 5_000 + self.clients).into()).expect("a new address");
        let addrs: Vec<_> = (0..cores).map(Self::server_addr).collect();
        Session::attach(port, &addrs, config, seed)
    }

    fn now(&self, _session: &Session<SimPort>) -> Instant {
        Self::now(self)
    }

    fn pass(&mut self, busy: bool) {
        self.serve();
        if busy {
            self.stride = STRIDE_MIN;
        }
        let now = self.network.now();
        let arrival = self.network.next_arrival().map(|at| at.saturating_sub(now));
        if let Some(wait) = arrival.filter(|&wait| wait <= self.stride) {
            self.network.advance(wait.max(Duration::from_nanos(100)));
            self.stride = STRIDE_MIN;
        } else {
            self.network.advance(self.stride);
            self.stride = (self.stride * 2).min(STRIDE_MAX);
        }
    }

    fn elapsed(&self) -> Duration {
        self.network.now()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(600)
    }

    fn stop(&mut self) {
        self.workers.clear();
    }

    fn restart(&mut self) {
        self.workers.clear();
        self.boots += 1;
        for core in 0..self.setup.cores {
            let port = self.network.port(Self::server_addr(core)).expect("the old port is unplugged");
            let published = Published::default();
            let sessions = session::SessionConfig {
                secret: u128::from(self.boots).to_le_bytes(),
                boot_id: self.boots,
                data_epoch: self.boots,
                base_port: Self::server_addr(0).port(),
                cores: self.setup.cores,
                core,
                epoch: 0,
                map_digest: 0,
                node_id: 0,
                memory_len_max: 1 << 20,
                staging_len_max: 2 << 20,
                lease: Duration::from_secs(60),
                queue_datagrams: port.rx_queue_datagrams(1_472),
            };
            let memory_len = if self.setup.small { 128 << 10 } else { 4 << 20 };
            let store = Store::new(memory_len, AtCapacity::Refuse, self.random.random())
                .expect("memory for a small store");
            let cluster = Arc::new(Membership::alone(self.setup.cores));
            self.workers.push((Worker::new(store, sessions, cluster, published.clone()), port, published));
        }
    }

    fn stats(&mut self) -> Vec<[u64; STAT_COUNT]> {
        let uptime = self.network.now();
        let each = self.workers.iter_mut().map(|(worker, port, published)| {
            worker.publish(&port.counters(), uptime);
            published.values()
        });
        each.collect()
    }
}

/// A server on a network of the kernel's, with clients that `P` opens ports for.
pub(crate) struct LiveRig<P: Live> {
    server: Option<Server>,
    config: ServerConfig,
    addrs: Vec<SocketAddr>,
    started: SystemInstant,
    network: P::Network,
}

/// Over UDP.
pub(crate) type UdpRig = LiveRig<UdpPort>;

/// Over TCP.
pub(crate) type TcpRig = LiveRig<TcpPort>;

/// Over AF_PACKET rings.
pub(crate) type PacketRig = LiveRig<PacketPort>;

/// Over AF_XDP rings.
pub(crate) type XdpRig = LiveRig<XdpPort>;

/// Ways to open a client's port, and the network that it is for.
pub(crate) trait Live: Port + Sized + Send {
    type Network: Network;

    /// What the server listens on.
    const TRANSPORTS: (Option<Datagrams>, bool);

    /// Opens a client's port for servers at these addresses.
    fn open(addrs: &[SocketAddr]) -> io::Result<Self>;
}

impl Live for UdpPort {
    type Network = Loopback;
    const TRANSPORTS: (Option<Datagrams>, bool) = (Some(Datagrams::Udp), true);

    fn open(addrs: &[SocketAddr]) -> io::Result<Self> {
        Self::connect(addrs, UdpConfig::default())
    }
}

impl Live for TcpPort {
    type Network = Loopback;
    const TRANSPORTS: (Option<Datagrams>, bool) = (Some(Datagrams::Udp), true);

    fn open(addrs: &[SocketAddr]) -> io::Result<Self> {
        Self::connect(addrs, TcpConfig::default())
    }
}

impl Live for PacketPort {
    type Network = Wire;
    const TRANSPORTS: (Option<Datagrams>, bool) = (Some(Datagrams::Packet), false);

    fn open(addrs: &[SocketAddr]) -> io::Result<Self> {
        Self::connect(addrs, PacketConfig::default())
    }
}

impl Live for XdpPort {
    type Network = Wire;
    const TRANSPORTS: (Option<Datagrams>, bool) = (Some(Datagrams::Xdp), false);

    fn open(addrs: &[SocketAddr]) -> io::Result<Self> {
        let mut ports = xdp::connect(addrs, 1, XdpConfig::default())?;
        Ok(ports.pop().expect("as many ports as asked for"))
    }
}

/// Where servers and clients run.
pub(crate) trait Network {
    /// A network whose server will have so many cores.
    fn new(cores: u8) -> Self;

    /// The server's address.
    fn server_addr(&self) -> IpAddr;

    /// Does something where the server is.
    fn at_server<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R;

    /// Does something where a new client is.
    fn at_client<R: Send>(&mut self, work: impl FnOnce() -> R + Send) -> R;
}

/// This machine.
pub(crate) struct Loopback;

impl Network for Loopback {
    fn new(_cores: u8) -> Self {
        Self
    }

    fn server_addr(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }

    fn at_server<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    fn at_client<R: Send>(&mut self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }
}

/// Hosts of their own behind a switch: a ring may need an interface for itself.
pub(crate) struct Wire {
    switch: Switch,
    server: End,
}

impl Network for Wire {
    fn new(cores: u8) -> Self {
        let config = PairConfig { queues: cores.into(), ..PairConfig::default() };
        let mut switch = Switch::new(config).expect("namespaces are available");
        let server = switch.host().expect("a switch takes hosts");
        Self { switch, server }
    }

    fn server_addr(&self) -> IpAddr {
        self.server.addr.into()
    }

    fn at_server<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.server.namespace.run(work)
    }

    fn at_client<R: Send>(&mut self, work: impl FnOnce() -> R + Send) -> R {
        self.switch.host().expect("a switch takes hosts").namespace.run(work)
    }
}

/// Runs a test that needs namespaces and rings, or says why it can not.
#[track_caller]
pub(crate) fn with_rings(test: impl FnOnce(u64)) {
    if Namespace::is_available() {
        test(0);
    }
}

impl<P: Live> LiveRig<P> {
    /// Address of core 0.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addrs[0]
    }

    /// A blocking client of the server.
    pub(crate) fn client(
        &mut self,
        connect: Connect<P>,
        config: SessionConfig,
    ) -> Result<Client<P>, ConnectError> {
        let addr = self.addr();
        self.network.at_client(|| connect(&[addr], config))
    }
}

/// Starts a server at a port below those that the kernel gives to other sockets meanwhile, so that it is free again
/// for a restart.
fn start_somewhere(network: &impl Network, mut config: ServerConfig) -> (Server, ServerConfig) {
    for _ in 0..100 {
        config.port = rand::random_range(12_000..32_000);
        match network.at_server(|| Server::start(&config)) {
            Ok(server) => return (server, config),
            Err(StartError::Io(error)) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no free port in 100 tries");
}

impl<P: Live> Rig for LiveRig<P> {
    type Port = P;

    fn start(_seed: u64, setup: Setup) -> Self {
        let allowed = allowed_cores().expect("this process runs on some core");
        let cores = usize::from(setup.cores);
        let memory_per_core = if setup.small { 24 << 20 } else { 32 << 20 };
        let network = P::Network::new(setup.cores);
        let (datagrams, tcp) = P::TRANSPORTS;
        let (server, config) = start_somewhere(
            &network,
            ServerConfig {
                listen: network.server_addr(),
                cpus: allowed.iter().copied().cycle().take(cores).collect(),
                memory_len: memory_per_core * cores,
                idle: Idle::Epoll,
                datagrams,
                tcp,
                insecure_no_auth: true,
                ..ServerConfig::default()
            },
        );
        let addrs = server.addrs().to_vec();
        Self { server: Some(server), config, addrs, started: SystemInstant::now(), network }
    }

    fn attach(&mut self, cores: u8, config: SessionConfig, seed: u64) -> Session<P> {
        let addrs = &self.addrs[..cores.into()];
        let port = self.network.at_client(|| P::open(addrs)).expect("a client opens its port");
        Session::attach(port, addrs, config, seed)
    }

    fn now(&self, session: &Session<P>) -> Instant {
        session.now()
    }

    fn pass(&mut self, busy: bool) {
        if !busy {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn stop(&mut self) {
        let server = self.server.take().expect("a server runs");
        assert!(!server.has_failed(), "a core has ended by itself");
        server.stop().expect("no port broke");
    }

    fn restart(&mut self) {
        if self.server.is_some() {
            self.stop();
        }
        // Another test's socket may have been given the port meanwhile.
        for _ in 0..RESTART_TRIES {
            let config = &self.config;
            match self.network.at_server(|| Server::start(config)) {
                Err(StartError::Io(error)) if error.kind() == io::ErrorKind::AddrInUse => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                server => {
                    self.server = Some(server.expect("the server starts as before"));
                    return;
                }
            }
        }
        panic!("the port of the server is still in use");
    }

    fn stats(&mut self) -> Vec<[u64; STAT_COUNT]> {
        self.server.as_ref().map(Server::core_stats).unwrap_or_default()
    }
}
