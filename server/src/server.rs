//! Starting and stopping the cores of a node.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant as SystemInstant},
};

use bytesize::ByteSize;
use linerate_dataplane::{
    PacketPort, Port, TcpPort, UdpPort, XdpPort,
    packet::PacketConfig,
    pin::pin_to_core,
    privilege::drop_all,
    udp::UdpConfig,
    xdp::{self, XdpConfig},
};
use linerate_proto::{
    Instant,
    cluster::{Member, Membership},
    session::SessionConfig,
    wire::{DATAGRAM_LEN_MAX, STAT_COUNT},
};

use crate::{
    core_loop::{self, CorePorts, Idle, Orders},
    memory::Plan,
    stats::{Published, sum},
    store::{AtCapacity, Store},
    watcher::Watcher,
    worker::Worker,
};

/// Stack of a core's thread: ten times what it uses, and too little for a huge page, which would count as used.
const STACK_LEN: usize = 1 << 20;

/// Least receive buffer in bytes: some ten full datagrams, so that a few clients can be served at all.
pub const RECEIVE_BUFFER_LEN_MIN: usize = 32 << 10;

/// Largest receive buffer in bytes: what setsockopt(2) can say.
pub const RECEIVE_BUFFER_LEN_MAX: usize = 1 << 30;

/// A session ends after this long without a word.
const LEASE: Duration = Duration::from_secs(60);

/// Tries to find consecutive free ports when the kernel chooses the first.
const PORT_TRIES: usize = 64;

/// How a server is set up. Checked by [`Server::start`].
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Address to listen at.
    pub listen: IpAddr,
    /// UDP and TCP port of core 0; core i listens at this + i. 0: the kernel chooses.
    pub port: u16,
    /// The CPU that each core is pinned to; as many cores as entries, 1..=255.
    pub cpus: Vec<usize>,
    /// Memory for everything together, in bytes: the stores of all cores, sessions, long values on their way in, the ports'
    /// buffers and rings, and the program. [`Plan`] says how it is shared out, and how little is too little. What the kernel
    /// keeps in sockets is not in it.
    pub memory_len: usize,
    /// What becomes of a put when the memory of its shard is full.
    pub at_capacity: AtCapacity,
    /// Whether to take all memory from the system before serving, each core its own. Without, requests wait for it as the
    /// store fills: 100 to 200 µs for each 2 MiB.
    pub prefault: bool,
    /// Receive buffer of each core's UDP socket in bytes, as the kernel charges them: what clients may have in flight
    /// together follows from it. At least [`RECEIVE_BUFFER_LEN_MIN`].
    pub receive_buffer_len: usize,
    /// What a core does when nothing arrives.
    pub idle: Idle,
    /// What carries datagrams, if anything.
    pub datagrams: Option<Datagrams>,
    /// Whether to listen on TCP.
    pub tcp: bool,
    /// Whether to listen at other than loopback addresses although nobody has to authenticate.
    pub insecure_no_auth: bool,
    /// Which node of which cluster it is; `None` for a server that is alone and owns all keys. Address, port and number of
    /// cores are those of the map.
    pub cluster: Option<Arc<Membership>>,
}

impl Default for ServerConfig {
    /// Loopback, port 4100, one core on CPU 0, 1 GiB, UDP and TCP.
    fn default() -> Self {
        Self {
            listen: [127, 0, 0, 1].into(),
            port: 4100,
            cpus: vec![0],
            memory_len: 1 << 30,
            at_capacity: AtCapacity::default(),
            prefault: false,
            receive_buffer_len: UdpConfig::default().receive_buffer_len,
            idle: Idle::default(),
            datagrams: Some(Datagrams::Udp),
            tcp: true,
            insecure_no_auth: false,
            cluster: None,
        }
    }
}

/// What carries a server's datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagrams {
    /// Sockets of the kernel, in trains.
    Udp,
    /// Sockets of the kernel, each datagram for itself; to compare with.
    UdpPlain,
    /// AF_PACKET rings of the interface that is listened at.
    Packet,
    /// AF_XDP rings of it.
    Xdp,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A public address without protection.
    #[error(
        "refusing to listen at {0}: anybody who reaches it could read and change the data; listen at a loopback \
         address, or say --insecure-no-auth if the network is yours alone"
    )]
    Exposed(IpAddr),
    /// Number of cores.
    #[error("{0} cores: give 1..=255")]
    Cores(usize),
    /// Another node than the map says.
    #[error(
        "node {id} is at {expected} with {expected_cores} cores in the cluster map, but this server listens at {found} with \
         {found_cores}: change --listen, --port or --cores, or the map on all servers"
    )]
    OtherThanMapped {
        /// Id of the node.
        id: u64,
        /// What the map has.
        expected: SocketAddr,
        /// What the map has.
        expected_cores: u8,
        /// What the server has.
        found: SocketAddr,
        /// What the server has.
        found_cores: usize,
    },
    /// Ports beyond the last.
    #[error("port {port} with {cores} cores ends beyond 65535: give a port of at most {}", 65_536 - cores)]
    Ports {
        /// First port.
        port: u16,
        /// Number of cores.
        cores: usize,
    },
    /// Memory.
    #[error(
        "{} of memory for {cores} cores: give at least {} MiB, because buffers and program count too",
        ByteSize(*.memory_len as u64),
        .least_len.div_ceil(1 << 20)
    )]
    Memory {
        /// Bytes given.
        memory_len: usize,
        /// Number of cores.
        cores: usize,
        /// Bytes that would do.
        least_len: usize,
    },
    /// Receive buffer.
    #[error(
        "a receive buffer of {0} bytes: give {RECEIVE_BUFFER_LEN_MIN} to {RECEIVE_BUFFER_LEN_MAX} (32 KiB to 1 GiB)"
    )]
    ReceiveBuffer(usize),
    /// Neither datagrams nor TCP.
    #[error("nothing to listen on: give one of udp, packet and xdp, tcp, or both")]
    Transports,
    /// Rings of no interface in particular.
    #[error(
        "rings are those of one interface and speak IPv4 only: listen at its IPv4 address instead of {0}"
    )]
    Rings(IpAddr),
    /// What the system said.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    addrs: Vec<SocketAddr>,
    published: Vec<Published>,
    plan: Plan,
    mode: String,
    warning: Option<String>,
    orders: Arc<Orders>,
    started: SystemInstant,
    threads: Vec<JoinHandle<io::Result<()>>>,
    _watcher: Watcher,
}

impl Server {
    /// Opens all ports, maps all memory, and starts one pinned thread per core. These threads give up all capabilities for
    /// good; the calling thread and others keep theirs.
    ///
    /// # Errors
    /// A sentence that names what is wrong and what would be right.
    pub fn start(config: &ServerConfig) -> Result<Self, StartError> {
        check(config)?;
        match config.datagrams {
            None => Self::serve::<UdpPort>(config, |_| Ok(Opened::default())),
            Some(Datagrams::Udp) => Self::serve(config, |addrs| open_udp(addrs, config, true)),
            Some(Datagrams::UdpPlain) => Self::serve(config, |addrs| open_udp(addrs, config, false)),
            Some(Datagrams::Packet) => Self::serve(config, open_packet),
            Some(Datagrams::Xdp) => Self::serve(config, open_xdp),
        }
    }

    /// `open`: opens the ports of all cores for datagrams.
    fn serve<P: Port + Send + 'static>(
        config: &ServerConfig,
        open: impl Fn(&[SocketAddr]) -> io::Result<Opened<P>>,
    ) -> Result<Self, StartError> {
        let cores = config.cpus.len();
        let AllPorts { addrs, plan, opened: Opened { ports, mode, warning } } = open_ports(config, open)?;
        let secret = rand::random();
        let boot_id = rand::random();
        let data_epoch = rand::random();
        let cluster = config.cluster.clone().unwrap_or_else(|| Arc::new(Membership::alone(cores as u8)));
        let map_digest = cluster.spec().digest();
        let orders = Arc::new(Orders::default());
        let started = SystemInstant::now();
        let published: Vec<_> = (0..cores).map(|_| Published::default()).collect();
        let mut server = Self {
            _watcher: Watcher::start(published.clone())?,
            published,
            addrs,
            plan,
            mode,
            warning,
            orders,
            started,
            threads: Vec::with_capacity(cores),
        };
        let mut preparing = Vec::with_capacity(cores);
        for (core, (ports, &cpu)) in ports.into_iter().zip(&config.cpus).enumerate() {
            let plan = server.plan.cores[core];
            server.published[core].store_plan(&plan);
            let queue_datagrams =
                ports.datagrams.as_ref().map_or(usize::MAX, |port| port.rx_queue_datagrams(DATAGRAM_LEN_MAX));
            let sessions = SessionConfig {
                secret,
                boot_id,
                data_epoch,
                base_port: server.addrs[0].port(),
                cores: cores as u8,
                core: core as u8,
                epoch: cluster.spec().epoch(),
                map_digest,
                node_id: cluster.member().id,
                memory_len_max: plan.sessions_len,
                staging_len_max: plan.staging_len,
                lease: LEASE,
                queue_datagrams,
            };
            let store = Store::new(plan.store_len, config.at_capacity, rand::random())?;
            let mut worker =
                Worker::new(store, sessions, Arc::clone(&cluster), server.published[core].clone());
            let mut ports = ports;
            let (idle, prefault, orders) = (config.idle, config.prefault, Arc::clone(&server.orders));
            let (ready, prepared) = std::sync::mpsc::channel();
            let thread = std::thread::Builder::new().name(format!("core-{core}")).stack_size(STACK_LEN);
            let thread = thread.spawn(move || {
                let mut prepare = || {
                    pin_to_core(cpu)?;
                    // Everything is open: whoever takes this thread over by a datagram shall have nothing more.
                    drop_all()?;
                    if prefault {
                        ports.populate()?;
                        worker.prefault()?;
                    }
                    io::Result::Ok(())
                };
                let result = prepare();
                let failed = result.is_err();
                let _ = ready.send(result);
                if failed {
                    return Ok(());
                }
                let clock = || Instant::from_nanos(started.elapsed().as_nanos() as u64);
                core_loop::run(worker, ports, idle, &orders, clock)
            })?;
            server.threads.push(thread);
            preparing.push(prepared);
        }
        for prepared in preparing {
            prepared.recv().map_err(|_| io::Error::other("the core's thread ended at its start"))??;
        }
        Ok(server)
    }

    /// The address of core 0, which clients are given.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addrs[0]
    }

    /// The addresses of all cores.
    #[must_use]
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// The latest statistics of each core, in the order of [`STAT_NAMES`](linerate_proto::wire::STAT_NAMES).
    #[must_use]
    pub fn core_stats(&self) -> Vec<[u64; STAT_COUNT]> {
        self.published.iter().map(Published::values).collect()
    }

    /// The latest statistics of all cores together.
    #[must_use]
    pub fn stats(&self) -> [u64; STAT_COUNT] {
        sum(self.core_stats())
    }

    /// Where its memory goes.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What carries the datagrams and how, in a line for people.
    #[must_use]
    pub fn mode(&self) -> &str {
        &self.mode
    }

    /// What works but could work better, and what to do about it.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Whether a core has ended by itself, which only a broken port makes it do.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Has all cores leave everything lying for so long, from now on, as if the machine had taken their CPUs away: requests
    /// wait, and are answered afterwards as far as the receive queues have held them. It is there to see what clients and
    /// their measurements make of it. A core that sleeps because nothing arrives notices within 50 ms.
    pub fn pause(&self, duration: Duration) {
        self.orders.pause(Instant::from_nanos((self.started.elapsed() + duration).as_nanos() as u64));
    }

    /// Stops all cores after they have answered what has arrived, and returns the final statistics.
    ///
    /// # Errors
    /// What made a core end before.
    ///
    /// # Panics
    /// When a core has panicked.
    pub fn stop(mut self) -> io::Result<[u64; STAT_COUNT]> {
        self.orders.stop();
        for thread in self.threads.drain(..) {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(self.stats())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.orders.stop();
        for thread in self.threads.drain(..) {
            // A failure was already shown by whoever asked `has_failed` or `stop`.
            let _ = thread.join();
        }
    }
}

fn check(config: &ServerConfig) -> Result<(), StartError> {
    let cores = config.cpus.len();
    if !config.listen.to_canonical().is_loopback() && !config.insecure_no_auth {
        return Err(StartError::Exposed(config.listen));
    }
    if cores == 0 || cores > u8::MAX.into() {
        return Err(StartError::Cores(cores));
    }
    if usize::from(config.port) + cores > 65_536 {
        return Err(StartError::Ports { port: config.port, cores });
    }
    if !(RECEIVE_BUFFER_LEN_MIN..=RECEIVE_BUFFER_LEN_MAX).contains(&config.receive_buffer_len) {
        return Err(StartError::ReceiveBuffer(config.receive_buffer_len));
    }
    if let Some(cluster) = &config.cluster {
        let Member { id, addr, cores: expected_cores } = *cluster.member();
        let ip_fits = config.listen.is_unspecified() || config.listen.to_canonical() == addr.ip();
        if !ip_fits || config.port != addr.port() || cores != usize::from(expected_cores) {
            let found = SocketAddr::new(config.listen, config.port);
            let found_cores = cores;
            return Err(StartError::OtherThanMapped {
                id,
                expected: addr,
                expected_cores,
                found,
                found_cores,
            });
        }
    }
    let rings = matches!(config.datagrams, Some(Datagrams::Packet | Datagrams::Xdp));
    if rings && (config.listen.is_ipv6() || config.listen.is_unspecified()) {
        return Err(StartError::Rings(config.listen));
    }
    if config.datagrams.is_none() && !config.tcp {
        return Err(StartError::Transports);
    }
    Ok(())
}

/// The ports of all cores for datagrams, and what there is to say of them.
struct Opened<P> {
    ports: Vec<P>,
    mode: String,
    warning: Option<String>,
}

impl<P> Default for Opened<P> {
    fn default() -> Self {
        Self { ports: Vec::new(), mode: "no datagrams".to_owned(), warning: None }
    }
}

fn open_udp(addrs: &[SocketAddr], config: &ServerConfig, trains: bool) -> io::Result<Opened<UdpPort>> {
    let udp = UdpConfig { receive_buffer_len: config.receive_buffer_len, trains, ..UdpConfig::default() };
    let ports: Vec<_> = addrs.iter().map(|&addr| UdpPort::bind(addr, udp)).collect::<io::Result<_>>()?;
    let shortfall = ports.first().and_then(UdpPort::buffer_shortfall);
    let mode =
        if trains { "UDP sockets, in trains" } else { "UDP sockets, each datagram for itself" }.to_owned();
    Ok(Opened { ports, mode, warning: shortfall.map(|shortfall| shortfall.to_string()) })
}

fn open_packet(addrs: &[SocketAddr]) -> io::Result<Opened<PacketPort>> {
    let bind = |&addr: &SocketAddr| PacketPort::bind(addr, PacketConfig::default());
    let ports: Vec<_> = addrs.iter().map(bind).collect::<io::Result<_>>()?;
    let mode = ports.first().map(PacketPort::mode).unwrap_or_default();
    let on_loopback = addrs.first().is_some_and(|addr| addr.ip().is_loopback());
    let warning = on_loopback.then(|| {
        "rings on the loopback are heard by rings only: listen at the address of an interface, or on udp"
            .to_owned()
    });
    Ok(Opened { ports, mode, warning })
}

fn open_xdp(addrs: &[SocketAddr]) -> io::Result<Opened<XdpPort>> {
    let ports = xdp::open(addrs, XdpConfig::default())?;
    let mode = ports.first().map(XdpPort::mode).unwrap_or_default();
    let warning = ports.first().and_then(XdpPort::warning);
    Ok(Opened { ports, mode, warning })
}

/// The addresses of all cores, their ports, and what memory that leaves for what.
struct AllPorts<P> {
    addrs: Vec<SocketAddr>,
    plan: Plan,
    opened: Opened<CorePorts<P>>,
}

/// Opens the ports of all cores at consecutive numbers.
fn open_ports<P: Port>(
    config: &ServerConfig,
    open: impl Fn(&[SocketAddr]) -> io::Result<Opened<P>>,
) -> Result<AllPorts<P>, StartError> {
    if config.port != 0 {
        return open_ports_at(config, config.port, &open);
    }
    // The kernel finds the first; whether those behind it are free shows when they are bound.
    let mut tried = Err(StartError::Io(io::ErrorKind::AddrInUse.into()));
    for _ in 0..PORT_TRIES {
        let probe = std::net::UdpSocket::bind((config.listen, 0))?;
        let port = probe.local_addr()?.port();
        drop(probe);
        if usize::from(port) + config.cpus.len() > 65_536 {
            continue;
        }
        tried = open_ports_at(config, port, &open);
        if !matches!(&tried, Err(StartError::Io(error)) if error.kind() == io::ErrorKind::AddrInUse) {
            break;
        }
    }
    tried
}

fn open_ports_at<P: Port>(
    config: &ServerConfig,
    port: u16,
    open: &impl Fn(&[SocketAddr]) -> io::Result<Opened<P>>,
) -> Result<AllPorts<P>, StartError> {
    let cores = config.cpus.len();
    let addrs: Vec<_> = (0..cores).map(|core| SocketAddr::new(config.listen, port + core as u16)).collect();
    let Opened { ports, mode, warning } = open(&addrs)?;
    let lens: Vec<_> = (0..cores).map(|core| ports.get(core).map_or(0, Port::memory_len)).collect();
    let plan = Plan::new(config.memory_len, &lens, config.tcp).map_err(|least_len| StartError::Memory {
        memory_len: config.memory_len,
        cores,
        least_len,
    })?;
    let mut datagrams = ports.into_iter();
    let with_tcp = |&addr: &SocketAddr| {
        let tcp = plan.tcp.map(|tcp| TcpPort::listen(addr, tcp)).transpose()?;
        Ok(CorePorts { datagrams: datagrams.next(), tcp })
    };
    let ports = addrs.iter().map(with_tcp).collect::<io::Result<_>>()?;
    Ok(AllPorts { addrs, plan, opened: Opened { ports, mode, warning } })
}
