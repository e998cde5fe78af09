//! All ports on real frames: server and client in network namespaces of their own, with a virtual cable between them.
//!
//! Loopback flatters trains, which cross it whole. Here they cross a pair of veth(4) interfaces whose features are set so
//! that the kernel cuts them to the MTU in software before they leave, and joins them again only behind the cable. What is
//! left to the interfaces is what nearly every network card does, the checksums of what the kernel sends. The interfaces'
//! own counters show that it was so: a port whose frames are longer than the MTU, or fewer than its datagrams, has no
//! result. One thing is harder than on a real cable: the kernel receives (and joins) a frame on the CPU that sent it.
//!
//! A cable of a certain rate is a token bucket (tc-tbf(8)) at the server's interface. It holds trains back whole and the
//! kernel cuts them behind it, where the bucket of a real card's driver would be. Cutting first and putting each frame
//! through a bucket of its own, in a namespace between the two, would need a third core. The bucket charges a train as the
//! frames that it will be (the kernel adds the headers of all its segments to its length), but nothing for what Ethernet
//! puts between frames, so its rate is lowered by that share of a full frame. Whether the rate was kept is not taken from
//! it but from the frames that the interface has counted, each with all that is around it on a cable.

pub mod rate;

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::atomic::AtomicBool,
    time::{Instant, SystemTime},
};

use clap::ValueEnum;
use comfy_table::Cell;
use linerate_client::{Session, SessionConfig};
use linerate_dataplane::{
    PacketPort, Port, TcpPort, UdpConfig, UdpPort, XdpPort,
    netns::{End, Namespace, Offloads, Pair, PairConfig},
    packet::PacketConfig,
    tcp::TcpConfig,
    xdp::{self, XdpConfig},
};
use linerate_server::{Datagrams, Server, ServerConfig, StartError};
use serde::{Serialize, Serializer};

use self::rate::{LINE_RATE, Rate, frame_len_max, gbit_per_sec};
use crate::{
    ceiling::{CeilingPorts, ceiling_over, each_core},
    options::{Cpus, RunOptions, WireOptions},
    output::{Environment, Report, number, plain_table, shown},
    run::{RunPorts, check_stop, draw, plain_udp, run_over},
    watch::counters::{CpuShares, CpuTime, FrameCount, InterfaceCounters},
    workload::Stream,
};

/// Largest IP packet in bytes: what Ethernet carries everywhere.
const MTU: u16 = 1_500;

/// Bytes that the token bucket lets through at once: with less than two trains the link runs dry between them.
const BUCKET_LEN: u32 = 256 << 10;

/// Bytes that wait at the token bucket at most; the server's send buffer is smaller.
const BUCKET_QUEUE_LEN: u32 = 16 << 20;

/// A port whose frames are less than this share of its datagrams has sent several in one.
const FRAMES_PER_DATAGRAM_MIN: f64 = 0.99;

/// Rounds when each is long enough: an odd number, for a median.
const ROUNDS: u32 = 3;

/// Shortest round in seconds that is worth having several of.
const ROUND_MIN: f64 = 1.0;

/// Longest measurement of a ceiling in one round, in seconds: it settles at once.
const CEILING_MAX: f64 = 1.0;

/// A port to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum WirePort {
    /// Kernel UDP with trains.
    Udp,
    /// Kernel UDP, each datagram for itself.
    UdpPlain,
    /// Rings of AF_PACKET.
    Packet,
    /// Rings of AF_XDP.
    Xdp,
    /// The same datagrams over a connection.
    Tcp,
}

impl WirePort {
    /// The name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::UdpPlain => "udp-plain",
            Self::Packet => "packet",
            Self::Xdp => "xdp",
            Self::Tcp => "tcp",
        }
    }
}

/// A comparison of ports. The names are a contract, like those of [`Report`].
#[derive(Clone, Debug, Serialize)]
pub struct WireReport {
    /// What each port reached, in the order of [`WirePort`].
    #[serde(serialize_with = "by_name")]
    pub ports: Vec<(&'static str, WireResult)>,
    /// Largest IP packet on the link in bytes.
    pub mtu: u16,
    /// Rounds that the measurements were spread over; each result is that of the median round.
    pub rounds: u32,
    /// What counts as line rate, in bits per second.
    pub line_rate_bits_per_sec: Rate,
    /// The rate asked for, in bits per second.
    pub shaped_rate_bits_per_sec: Option<Rate>,
    /// Where it ran.
    pub environment: Environment,
}

/// What became of one port.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum WireResult {
    /// It was measured.
    Measured(Box<Measured>),
    /// It could not be.
    Refused {
        /// Why, in one sentence.
        error: String,
    },
}

impl WireResult {
    /// The measurement, if there is one.
    #[must_use]
    pub fn measured(&self) -> Option<&Measured> {
        match self {
            Self::Measured(measured) => Some(measured),
            Self::Refused { .. } => None,
        }
    }
}

/// What a port reached.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// The run of the median round; wrong values are those of all rounds.
    #[serde(flatten)]
    pub report: Report,
    /// Frames per second that left the server's interface.
    pub frames_per_sec: f64,
    /// Frames that found no room at either end, in the median round.
    pub frames_dropped: u64,
    /// What these frames take on a cable in Gbit/s, with preamble, checksum and gap.
    pub gbit_per_sec: f64,
    /// The share of line rate that this is, or of the rate that was asked for.
    pub line_rate_share: f64,
    /// Operations per second without a store, in the median round.
    pub ceiling_ops_per_sec: Option<f64>,
    /// Where the time of the server's CPU went.
    pub server_cpu: CpuShares,
    /// Where the time of the client's CPU went.
    pub client_cpu: CpuShares,
    /// Operations per second of each round, with a store.
    pub rounds_ops_per_sec: Vec<f64>,
    /// The same port over a cable of the rate that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shaped: Option<Box<WireResult>>,
}

/// Compares the ports. Ends early, with an error, when `stop` is set.
///
/// # Errors
/// A sentence that names the privilege or program that is missing and how to get it, or what else went wrong with all
/// ports alike.
pub fn wire(options: &WireOptions, stop: &AtomicBool) -> anyhow::Result<WireReport> {
    anyhow::ensure!(
        options.rate.is_none() || options.ports.contains(&WirePort::Udp),
        "--rate is for udp, which is not among the --ports"
    );
    let run = options.run();
    run.check()?;
    let environment = Environment::look(SystemTime::now());
    // What is missing should show before, not after minutes.
    let cpus = Cpus::assign(1, 1)?;
    let cable = Cable::new(WirePort::Udp, &cpus)?;
    options.rate.map_or(Ok(()), |rate| cable.shape(rate))?;
    drop(cable);
    let streams = draw(&run)?;
    let rounds = if options.duration >= f64::from(ROUNDS) * ROUND_MIN { ROUNDS } else { 1 };
    let round = RunOptions { duration: options.duration / f64::from(rounds), ..run };
    let ports: BTreeSet<_> = options.ports.iter().copied().collect();
    let mut all: Vec<_> = ports.into_iter().map(|port| (port, Rounds::default())).collect();
    for _ in 0..rounds {
        for (port, results) in &mut all {
            // A new cable each time: the kernel gives some things back only after a while, as the queues of AF_XDP.
            let bench = || Bench::new(*port, &cpus, stop);
            // A port that was refused once is not asked again.
            results.plain.add(|| whole(bench()?.run(&round, streams.clone(), LINE_RATE)?), stop)?;
            if !results.plain.is_refused() {
                results.ceiling.add(|| bench()?.ceiling(&round, &streams), stop)?;
            }
            if let (WirePort::Udp, Some(rate), false) = (*port, options.rate, results.plain.is_refused()) {
                results.shaped.add(|| whole(bench()?.run_shaped(&round, streams.clone(), rate)?), stop)?;
            }
        }
    }
    let results =
        all.into_iter().map(|(port, results)| (port.name(), results.result(options.rate.is_some())));
    Ok(WireReport {
        ports: results.collect(),
        mtu: MTU,
        rounds,
        line_rate_bits_per_sec: LINE_RATE,
        shaped_rate_bits_per_sec: options.rate,
        environment,
    })
}

/// Two namespaces and what connects them.
struct Cable {
    server: End,
    client: End,
    /// Whether each end takes frames in on its own CPU, and if not, why not; `None` where the sender does it.
    receivers: Option<Result<(), String>>,
}

impl Cable {
    /// A cable on which `port` is at its best. One that gives each frame to the kernel for itself is not helped by what
    /// puts frames together. And with AF_XDP the sender's core would have to do all of the work of both sides, which a
    /// network card does not ask of it: with a receiving thread on each side's own CPU it carries a quarter more, while the
    /// others, which pay for fewer or longer passes, lose by it.
    fn new(port: WirePort, cpus: &Cpus) -> io::Result<Self> {
        let config = PairConfig { queues: 1, mtu: MTU, offloads: Offloads::SummedFrames };
        let Pair { a: server, b: client } = Pair::new(&Namespace::new()?, &Namespace::new()?, config)?;
        let mut receivers = None;
        match port {
            WirePort::Udp | WirePort::UdpPlain | WirePort::Tcp => {}
            WirePort::Packet => {
                server.leave_apart()?;
                client.leave_apart()?;
            }
            WirePort::Xdp => {
                let started =
                    server.receive_on(cpus.server[0]).and_then(|()| client.receive_on(cpus.clients[0]));
                receivers = Some(started.map_err(|error| error.to_string()));
            }
        }
        Ok(Self { server, client, receivers })
    }

    /// Whether the CPUs of both sides are shared with threads that receive.
    fn has_receivers(&self) -> bool {
        matches!(self.receivers, Some(Ok(())))
    }

    /// What is special about it, to be told with the result.
    fn mode(&self, port: WirePort) -> Option<String> {
        match (&self.receivers, port) {
            (Some(Ok(())), _) => Some("a kernel thread on each side's own CPU receives".to_owned()),
            (Some(Err(error)), _) => Some(format!("the sender's CPU receives, too ({error})")),
            (None, WirePort::Packet) => Some("GRO off".to_owned()),
            (None, _) => None,
        }
    }

    /// Lets the server's frames through at a rate that is that of a cable.
    fn shape(&self, rate: Rate) -> io::Result<()> {
        shape(&self.server, rate, MTU)
    }

    fn counters(&self) -> io::Result<[InterfaceCounters; 2]> {
        let of = |end: &End| end.namespace.run(|| InterfaceCounters::of(&end.interface));
        Ok([of(&self.server)?, of(&self.client)?])
    }
}

/// Lets what leaves by an interface through at a rate that is that of a cable.
pub(crate) fn shape(end: &End, rate: Rate, mtu: u16) -> io::Result<()> {
    let rate = format!("{}bit", rate.without_gaps(mtu).bits_per_sec());
    let (burst, limit) = (BUCKET_LEN.to_string(), BUCKET_QUEUE_LEN.to_string());
    let bucket = ["tbf", "rate", &rate, "burst", &burst, "limit", &limit];
    let place = ["qdisc", "add", "dev", &end.interface, "root"];
    end.namespace.command("tc", &[&place[..], &bucket].concat()).map(drop)
}

/// What the kernel had counted at one moment.
struct Sample {
    at: Instant,
    /// Of the server's and the client's interface.
    interfaces: [InterfaceCounters; 2],
    /// Of the server's and the client's CPU.
    cpus: Vec<CpuTime>,
}

/// One port on a cable of its own.
pub(crate) struct Bench<'a> {
    cable: Cable,
    cpus: &'a Cpus,
    port: WirePort,
    stop: &'a AtomicBool,
}

impl<'a> Bench<'a> {
    /// A cable on which `port` is at its best, between the first CPUs of both sides. Ends when it is dropped.
    ///
    /// # Errors
    /// A sentence that names the privilege that is missing.
    pub(crate) fn new(port: WirePort, cpus: &'a Cpus, stop: &'a AtomicBool) -> io::Result<Self> {
        Ok(Self { cable: Cable::new(port, cpus)?, cpus, port, stop })
    }

    /// Measures with a store, and what the cable carried meanwhile.
    pub(crate) fn run(
        &self,
        options: &RunOptions,
        streams: Vec<Stream>,
        line_rate: Rate,
    ) -> anyhow::Result<Measured> {
        let mut samples = Vec::with_capacity(2);
        let mut probe = || {
            samples.push(self.sample()?);
            Ok(())
        };
        let at_start = self.cable.counters()?;
        let report = self.cable.client.namespace.run(|| self.run_inside(options, streams, &mut probe))?;
        let at_end = self.cable.counters()?;
        let datagrams = report.server_datagrams_tx.filter(|_| self.port != WirePort::Tcp);
        check_frames(at_end[0].tx.minus(at_start[0].tx), datagrams)?;
        check_frames(at_end[1].tx.minus(at_start[1].tx), None)?;
        let (Some(before), Some(after)) = (samples.first(), samples.last()) else {
            anyhow::bail!("nobody looked at the run");
        };
        let seconds = (after.at - before.at).as_secs_f64();
        anyhow::ensure!(
            seconds >= options.duration / 2.0,
            "the machine was too busy: {seconds:.3} s of {} s were looked at",
            options.duration
        );
        let [server, client] = [0, 1].map(|end| (before.interfaces[end], after.interfaces[end]));
        let sent = server.1.tx.minus(server.0.tx);
        let dropped = |(before, after): (InterfaceCounters, InterfaceCounters)| {
            after.rx.minus(before.rx).dropped + after.tx.minus(before.tx).dropped
        };
        let gbit_per_sec = gbit_per_sec(sent, seconds);
        Ok(Measured {
            report,
            frames_per_sec: sent.frames as f64 / seconds,
            frames_dropped: dropped(server) + dropped(client),
            gbit_per_sec,
            line_rate_share: line_rate.share(gbit_per_sec),
            ceiling_ops_per_sec: None,
            server_cpu: after.cpus[0].shares_since(before.cpus[0]),
            client_cpu: after.cpus[1].shares_since(before.cpus[1]),
            rounds_ops_per_sec: Vec::new(),
            shaped: None,
        })
    }

    /// The same over a cable of a certain rate.
    fn run_shaped(&self, options: &RunOptions, streams: Vec<Stream>, rate: Rate) -> anyhow::Result<Measured> {
        self.cable.shape(rate)?;
        let mut measured = self.run(options, streams, rate)?;
        if let Some(mode) = &mut measured.report.mode {
            *mode += &format!(", behind a token bucket of {rate}");
        }
        Ok(measured)
    }

    /// Operations per second without a store.
    fn ceiling(&self, options: &RunOptions, streams: &[Stream]) -> anyhow::Result<f64> {
        let options = RunOptions { duration: options.duration.min(CEILING_MAX), ..options.clone() };
        let report = self.cable.client.namespace.run(|| self.ceiling_inside(&options, streams))?;
        Ok(report.ops_per_sec)
    }

    fn sample(&self) -> anyhow::Result<Sample> {
        let cpus = [self.cpus.server[0], self.cpus.clients[0]];
        Ok(Sample { at: Instant::now(), interfaces: self.cable.counters()?, cpus: CpuTime::of(&cpus)? })
    }

    /// Runs in the client's namespace.
    fn run_inside(
        &self,
        options: &RunOptions,
        streams: Vec<Stream>,
        probe: &mut (dyn FnMut() -> anyhow::Result<()> + Send),
    ) -> anyhow::Result<Report> {
        let label = self.port.name();
        let shares_cpus = self.cable.has_receivers();
        let start = |config| self.start(config);
        let report = match self.port {
            WirePort::Udp | WirePort::UdpPlain => {
                let trains = self.port == WirePort::Udp;
                let connect = |servers: &[SocketAddr], config: SessionConfig, _| {
                    let config = SessionConfig { trains, ..config };
                    Session::connect(servers, config, |addrs| UdpPort::connect(addrs, options.port(&config)))
                };
                let control = |servers: &[SocketAddr], config| connect(servers, config, 0);
                run_over(
                    options,
                    self.stop,
                    RunPorts { label, start, connect, control, shares_cpus },
                    streams,
                    probe,
                    None,
                )
            }
            WirePort::Tcp => {
                let connect = |servers: &[SocketAddr], config, _| Session::connect_tcp(servers, config);
                let control = |servers: &[SocketAddr], config| connect(servers, config, 0);
                run_over(
                    options,
                    self.stop,
                    RunPorts { label, start, connect, control, shares_cpus },
                    streams,
                    probe,
                    None,
                )
            }
            WirePort::Packet => self.run_rings(options, streams, probe, |servers| {
                PacketPort::connect(servers, PacketConfig::default())
            }),
            WirePort::Xdp => self.run_rings(options, streams, probe, connect_xdp),
        };
        let mut report = report?;
        report.config.transport = self.port.name().to_owned();
        if self.port == WirePort::Tcp {
            report.mode = Some("one TCP connection".to_owned());
        }
        if let (Some(mode), Some(cable)) = (&mut report.mode, self.cable.mode(self.port)) {
            *mode += &format!("; {cable}");
        }
        Ok(report)
    }

    /// Rings of an interface serve one port: records are stored, and statistics asked for, through a plain socket.
    fn run_rings<P: Port>(
        &self,
        options: &RunOptions,
        streams: Vec<Stream>,
        probe: &mut dyn FnMut() -> anyhow::Result<()>,
        open: impl Fn(&[SocketAddr]) -> io::Result<P> + Sync,
    ) -> anyhow::Result<Report> {
        let ports = RunPorts {
            label: self.port.name(),
            start: |config| self.start(config),
            connect: |servers: &[SocketAddr], config, _| Session::connect(servers, config, &open),
            control: |servers: &[SocketAddr], config| Session::connect(servers, config, plain_udp),
            shares_cpus: self.cable.has_receivers(),
        };
        run_over(options, self.stop, ports, streams, probe, None)
    }

    /// Starts the server at the other end of the cable.
    fn start(&self, config: ServerConfig) -> Result<Server, StartError> {
        let config = ServerConfig {
            listen: self.cable.server.addr.into(),
            // Nobody else reaches the cable.
            insecure_no_auth: true,
            datagrams: self.datagrams(),
            tcp: self.port == WirePort::Tcp,
            ..config
        };
        self.cable.server.namespace.run(|| Server::start(&config))
    }

    /// Runs in the client's namespace.
    fn ceiling_inside(&self, options: &RunOptions, streams: &[Stream]) -> anyhow::Result<Report> {
        let label = self.port.name();
        let shares_cpus = self.cable.has_receivers();
        let at = SocketAddr::new(self.cable.server.addr.into(), 0);
        let server = &self.cable.server.namespace;
        let enter = || server.enter();
        match self.port {
            WirePort::Udp | WirePort::UdpPlain => {
                let config = UdpConfig { trains: self.port == WirePort::Udp, ..UdpConfig::default() };
                let listen = each_core(|| server.run(|| UdpPort::bind(at, config)));
                let connect = |addr| UdpPort::connect(&[addr], config);
                ceiling_over(
                    options,
                    self.stop,
                    CeilingPorts { label, enter, listen, connect, shares_cpus },
                    streams,
                )
            }
            WirePort::Tcp => {
                let listen = each_core(|| server.run(|| TcpPort::listen(at, TcpConfig::default())));
                let connect = |addr| TcpPort::connect(&[addr], TcpConfig::default());
                ceiling_over(
                    options,
                    self.stop,
                    CeilingPorts { label, enter, listen, connect, shares_cpus },
                    streams,
                )
            }
            WirePort::Packet => {
                let config = PacketConfig::default();
                let listen = each_core(|| server.run(|| PacketPort::bind(at, config)));
                let connect = |addr| PacketPort::connect(&[addr], config);
                ceiling_over(
                    options,
                    self.stop,
                    CeilingPorts { label, enter, listen, connect, shares_cpus },
                    streams,
                )
            }
            WirePort::Xdp => {
                let listen = |cores| server.run(|| xdp::open(&vec![at; cores], XdpConfig::default()));
                let connect = |addr| connect_xdp(&[addr]);
                ceiling_over(
                    options,
                    self.stop,
                    CeilingPorts { label, enter, listen, connect, shares_cpus },
                    streams,
                )
            }
        }
    }

    const fn datagrams(&self) -> Option<Datagrams> {
        match self.port {
            WirePort::Udp => Some(Datagrams::Udp),
            WirePort::UdpPlain => Some(Datagrams::UdpPlain),
            WirePort::Packet => Some(Datagrams::Packet),
            WirePort::Xdp => Some(Datagrams::Xdp),
            WirePort::Tcp => None,
        }
    }
}

/// A measurement that went to its end; the error is why it did not.
fn whole(measured: Measured) -> anyhow::Result<Measured> {
    match measured.report.failure {
        Some(failure) => anyhow::bail!(failure),
        None => Ok(measured),
    }
}

/// The port of the only client thread.
fn connect_xdp(servers: &[SocketAddr]) -> io::Result<XdpPort> {
    let mut ports = xdp::connect(servers, 1, XdpConfig::default())?;
    Ok(ports.pop().expect("as many ports as asked for"))
}

/// Whether what crossed the cable were frames of its MTU and, where it is known how many datagrams they carried, one for
/// each.
fn check_frames(sent: FrameCount, datagrams: Option<u64>) -> anyhow::Result<()> {
    let len_mean = sent.bytes as f64 / sent.frames.max(1) as f64;
    anyhow::ensure!(
        len_mean <= frame_len_max(MTU) as f64,
        "frames of {len_mean:.0} bytes on average crossed a link with an MTU of {MTU}, so this kernel sends trains whole \
         although the interface was told not to"
    );
    let (frames, datagrams) = (sent.frames + sent.dropped, datagrams.unwrap_or(0));
    anyhow::ensure!(
        frames as f64 >= datagrams as f64 * FRAMES_PER_DATAGRAM_MIN,
        "{frames} frames carried {datagrams} datagrams, so several crossed as one"
    );
    Ok(())
}

/// The results of one port.
#[derive(Default)]
struct Rounds {
    plain: Series<Measured>,
    ceiling: Series<f64>,
    shaped: Series<Measured>,
}

impl Rounds {
    fn result(self, is_shaped: bool) -> WireResult {
        let mut measured = match median_run(self.plain) {
            Ok(measured) => measured,
            Err(error) => return WireResult::Refused { error },
        };
        match self.ceiling.median(f64::total_cmp) {
            Ok(ceiling) => measured.ceiling_ops_per_sec = Some(ceiling),
            Err(error) => return WireResult::Refused { error },
        }
        if is_shaped && measured.report.config.transport == WirePort::Udp.name() {
            measured.shaped = Some(Box::new(match median_run(self.shaped) {
                Ok(shaped) => WireResult::Measured(Box::new(shaped)),
                Err(error) => WireResult::Refused { error },
            }));
        }
        WireResult::Measured(Box::new(measured))
    }
}

/// The median run, with what is of all of them.
fn median_run(series: Series<Measured>) -> Result<Measured, String> {
    let speeds: Vec<f64> = series.results.iter().map(|run| run.report.ops_per_sec).collect();
    let wrong = series.results.iter().filter_map(|run| run.report.wrong_values).sum();
    let mut median =
        series.median(|one, other| one.report.ops_per_sec.total_cmp(&other.report.ops_per_sec))?;
    median.report.wrong_values = Some(wrong);
    median.rounds_ops_per_sec = speeds;
    Ok(median)
}

/// The results of the same measurement in several rounds, or the first error.
struct Series<T> {
    results: Vec<T>,
    error: Option<String>,
}

impl<T> Default for Series<T> {
    fn default() -> Self {
        Self { results: Vec::new(), error: None }
    }
}

impl<T> Series<T> {
    /// Measures once more, unless there was an error already.
    ///
    /// # Errors
    /// Only when `stop` is set.
    fn add(&mut self, measure: impl FnOnce() -> anyhow::Result<T>, stop: &AtomicBool) -> anyhow::Result<()> {
        if !self.is_refused() {
            match measure() {
                Ok(result) => self.results.push(result),
                Err(error) => self.error = Some(format!("{error:#}")),
            }
        }
        check_stop(stop)
    }

    const fn is_refused(&self) -> bool {
        self.error.is_some()
    }

    fn median(mut self, order: impl Fn(&T, &T) -> std::cmp::Ordering) -> Result<T, String> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.results.sort_by(order);
        let middle = self.results.len() / 2;
        Ok(self.results.swap_remove(middle))
    }
}

/// A line of the table: its name, its unit, how many decimals it has, and where it comes from.
type Line = (&'static str, &'static str, usize, fn(&Measured) -> Option<f64>);

/// The lines of the table, in their order.
const LINES: [Line; 22] = [
    ("throughput", "Mop/s", 2, |measured| Some(measured.report.ops_per_sec / 1e6)),
    ("  without a store", "Mop/s", 2, |measured| Some(measured.ceiling_ops_per_sec? / 1e6)),
    ("reply datagrams", "M/s", 3, |measured| Some(measured.report.reply_datagrams_per_sec? / 1e6)),
    ("frames", "M/s", 3, |measured| Some(measured.frames_per_sec / 1e6)),
    ("  dropped", "", 0, |measured| Some(measured.frames_dropped as f64)),
    ("on the wire", "Gbit/s", 2, |measured| Some(measured.gbit_per_sec)),
    ("  share of the rate", "%", 1, |measured| Some(measured.line_rate_share * 100.0)),
    ("latency p50", "µs", 1, |measured| Some(measured.report.latency_us.p50)),
    ("  p99", "µs", 1, |measured| Some(measured.report.latency_us.p99)),
    ("  p99.9", "µs", 1, |measured| Some(measured.report.latency_us.p999)),
    ("retransmits", "", 0, |measured| Some(measured.report.retransmits as f64)),
    ("wrong values", "", 0, |measured| measured.report.wrong_values.map(|count| count as f64)),
    ("server CPU: user", "%", 0, |measured| Some(measured.server_cpu.user * 100.0)),
    ("  system", "%", 0, |measured| Some(measured.server_cpu.system * 100.0)),
    ("  softirq", "%", 0, |measured| Some(measured.server_cpu.softirq * 100.0)),
    ("  idle", "%", 0, |measured| Some(measured.server_cpu.idle * 100.0)),
    ("client CPU: user", "%", 0, |measured| Some(measured.client_cpu.user * 100.0)),
    ("  system", "%", 0, |measured| Some(measured.client_cpu.system * 100.0)),
    ("  softirq", "%", 0, |measured| Some(measured.client_cpu.softirq * 100.0)),
    ("  idle", "%", 0, |measured| Some(measured.client_cpu.idle * 100.0)),
    ("core to core before", "ns", 0, |measured| measured.report.core_to_core_before_ns),
    ("  after", "ns", 0, |measured| measured.report.core_to_core_after_ns),
];

/// The ports side by side, and below how each works or why it was not measured. Ends without a line feed.
#[must_use]
pub fn wire_table(report: &WireReport) -> String {
    let results: Vec<(String, &WireResult)> = report
        .ports
        .iter()
        .flat_map(|(name, result)| {
            let shaped = result.measured().and_then(|measured| measured.shaped.as_deref());
            let shaped = shaped.map(|shaped| (format!("{name} shaped"), shaped));
            std::iter::once(((*name).to_owned(), result)).chain(shaped)
        })
        .collect();
    let measured: Vec<_> =
        results.iter().filter_map(|(name, result)| Some((name, result.measured()?))).collect();
    let mut table = plain_table();
    let names = measured.iter().map(|(name, _)| (*name).clone());
    table.set_header(["", ""].map(str::to_owned).into_iter().chain(names).map(number));
    for (name, unit, decimals, of) in LINES {
        let values = measured.iter().map(|(_, measured)| number(shown(of(measured), decimals)));
        table.add_row([Cell::new(name), Cell::new(unit)].into_iter().chain(values));
    }
    let mut text = if measured.is_empty() { String::new() } else { table.trim_fmt() + "\n" };
    for (name, result) in &results {
        text += &match result {
            WireResult::Measured(measured) => {
                format!("\n{name}: {}", measured.report.mode.as_deref().unwrap_or("?"))
            }
            WireResult::Refused { error } => format!("\n{name} was not measured: {error}"),
        };
    }
    text
}

fn by_name<S: Serializer>(ports: &[(&'static str, WireResult)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(ports.iter().map(|(name, result)| (name, result)))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::output::{json, tests::report};

    fn measured(ops_per_sec: f64, wrong: u64) -> Measured {
        let report = Report { ops_per_sec, wrong_values: Some(wrong), ..report() };
        Measured {
            report,
            frames_per_sec: 700_000.0,
            frames_dropped: 3,
            gbit_per_sec: 8.6,
            line_rate_share: 0.86,
            ceiling_ops_per_sec: None,
            server_cpu: CpuShares { user: 0.5, system: 0.3, softirq: 0.2, idle: 0.0, stolen: 0.0 },
            client_cpu: CpuShares::default(),
            rounds_ops_per_sec: Vec::new(),
            shaped: None,
        }
    }

    fn series<T>(results: Vec<T>) -> Series<T> {
        Series { results, error: None }
    }

    /// Goal: the median round is reported, but wrong values of any round; an error of one round is that of the port.
    /// Method: rounds with known figures.
    #[test]
    fn rounds_become_one_result() {
        let runs = || series(vec![measured(3e6, 0), measured(1e6, 2), measured(2e6, 1)]);
        let rounds = Rounds { plain: runs(), ceiling: series(vec![9e6, 7e6, 8e6]), shaped: runs() };
        let result = rounds.result(true);
        let measured = result.measured().unwrap();
        assert_eq!(measured.report.ops_per_sec, 2e6);
        assert_eq!(measured.report.wrong_values, Some(3));
        assert_eq!(measured.ceiling_ops_per_sec, Some(8e6));
        assert_eq!(measured.rounds_ops_per_sec, [3e6, 1e6, 2e6]);
        assert_eq!(measured.shaped.as_ref().unwrap().measured().unwrap().report.ops_per_sec, 2e6);
        let broken = || Series { results: vec![1e6], error: Some("no".to_owned()) };
        let rounds = Rounds { plain: runs(), ceiling: broken(), shaped: runs() };
        assert!(matches!(rounds.result(true), WireResult::Refused { error } if error == "no"));
    }

    /// Goal: a run that lost its client on the way has no result, whatever it had measured before. Method: one that did, one that
    /// did not.
    #[test]
    fn what_ended_early_is_refused() {
        assert!(whole(measured(1e6, 0)).is_ok());
        let mut lost = measured(1e6, 0);
        lost.report = Report {
            partial: true,
            failure: Some("a client thread lost its port".to_owned()),
            ..lost.report
        };
        assert_eq!(whole(lost).unwrap_err().to_string(), "a client thread lost its port");
    }

    /// Goal: super-packets and datagrams that cross together are seen. Method: counts just right and just wrong.
    #[test]
    fn what_is_no_frame_is_refused() {
        let sent = |frames, bytes| FrameCount { frames, bytes, ..FrameCount::default() };
        assert!(check_frames(sent(1_000, 1_514_000), Some(1_000)).is_ok());
        assert!(check_frames(sent(0, 0), None).is_ok());
        assert!(check_frames(FrameCount { dropped: 10, ..sent(990, 990_000) }, Some(1_000)).is_ok());
        let long = check_frames(sent(1_000, 1_515_000), None).unwrap_err().to_string();
        assert!(long.contains("1515 bytes") && long.contains("MTU of 1500"), "{long}");
        let few = check_frames(sent(500, 50_000), Some(1_000)).unwrap_err().to_string();
        assert!(few.starts_with("500 frames carried 1000 datagrams"), "{few}");
    }

    /// Goal: JSON keeps the ports' order and the names; the table has a column per measurement and a line per refusal.
    /// Method: a report with one of each.
    #[test]
    fn a_comparison_is_shown() {
        let shaped = Some(Box::new(WireResult::Measured(Box::new(measured(1e6, 0)))));
        let udp = Measured { shaped, ceiling_ops_per_sec: Some(12e6), ..measured(7e6, 0) };
        let refused = WireResult::Refused { error: "no rings".to_owned() };
        let report = WireReport {
            ports: vec![("udp", WireResult::Measured(Box::new(udp))), ("packet", refused)],
            mtu: MTU,
            rounds: 1,
            line_rate_bits_per_sec: LINE_RATE,
            shaped_rate_bits_per_sec: None,
            environment: report().environment,
        };
        let text = json(&report).unwrap();
        assert!(text.find("\"udp\"") < text.find("\"packet\""), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["ports"]["udp"]["ops_per_sec"], 7e6);
        assert_eq!(value["ports"]["udp"]["server_cpu"]["user"], 0.5);
        assert_eq!(value["ports"]["udp"]["shaped"]["ops_per_sec"], 1e6);
        assert_eq!(value["ports"]["packet"], serde_json::json!({ "error": "no rings" }));
        assert_eq!(value["line_rate_bits_per_sec"], 10_000_000_000_u64);
        let table = wire_table(&report);
        println!("{table}");
        let line = |start: &str| table.lines().find(|line| line.trim_start().starts_with(start)).unwrap();
        assert_eq!(line("udp").split_whitespace().collect::<Vec<_>>(), ["udp", "udp", "shaped"]);
        assert!(line("without a store").trim_end().ends_with('–'));
        assert_eq!(line("packet was"), "packet was not measured: no rings");
    }
}
