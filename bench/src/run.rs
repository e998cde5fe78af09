//! One measurement from beginning to end: server, records, client threads, and what they counted.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use linerate_client::{ConnectError, Order, Session, SessionConfig};
use linerate_dataplane::{
    FaultyPort, PacketPort, Port, UdpConfig, UdpPort,
    packet::PacketConfig,
    pin::pin_to_core,
    port::FRAMES_CUT_OFF,
    privilege::drop_all,
    transport::Transport,
    xdp::{self, XdpConfig},
};
use linerate_proto::wire::{STAT_COUNT, Statistic};
use linerate_server::{
    Datagrams, Server, ServerConfig, StartError,
    stats::{process_rss_len, sum},
};

use crate::{
    check::{
        Checker, Elsewhere, Watch,
        versions::{Snapshot, VersionTable},
    },
    core_to_core::core_to_core_ns,
    load::{LoadPlan, LoadReport, preload, run_load},
    options::{Cpus, RunOptions},
    output::{Environment, Kind, Report},
    workload::{STREAM_LEN, STREAMS_MAX, Stream, draw_streams},
};

/// Why rings are not measured on one host.
const RINGS_NEED_TWO: &str = "rings are those of an interface between two hosts: give the --target of a server on \
                              another one, or use `linerate-bench wire`";

/// How often a thread that waits for others looks whether they are there.
const RENDEZVOUS_INTERVAL: Duration = Duration::from_micros(200);

/// How often the progress bar is moved.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Measures once with a store behind the answers. Stops early, with an error, when `stop` is set.
///
/// # Errors
/// A sentence that names what went wrong.
pub fn run(options: &RunOptions, stop: &AtomicBool) -> anyhow::Result<Report> {
    run_with(options, stop, None)
}

/// As [`run`], perhaps together with other processes.
pub(crate) fn run_with(
    options: &RunOptions,
    stop: &AtomicBool,
    together: Option<&mut Together<'_>>,
) -> anyhow::Result<Report> {
    #[cfg(feature = "mutants")]
    if let Some(mutant) = options.mutant {
        eprintln!("linerate-bench: warning: makes the mistake `{}` on purpose", mutant.name());
        linerate_proto::mutants::activate(Some(mutant));
    }
    let (options, transport, why) = &options.settled()?;
    if let Some(why) = why {
        eprintln!("linerate-bench: chose {transport}: {why}");
    }
    let udp = |addrs: &[SocketAddr]| UdpPort::connect(addrs, options.port(&options.session()));
    match transport {
        Transport::Udp => run_datagrams(options, stop, together, Datagrams::Udp, udp, udp),
        Transport::Packet => {
            anyhow::ensure!(options.target != "embedded", RINGS_NEED_TWO);
            let open = |addrs: &[SocketAddr]| PacketPort::connect(addrs, PacketConfig::default());
            run_datagrams(options, stop, together, Datagrams::Packet, open, plain_udp)
        }
        Transport::Xdp => {
            anyhow::ensure!(options.target != "embedded", RINGS_NEED_TWO);
            // All threads share the queues of the interface, which can be opened only once.
            let opened = Mutex::new(None);
            let open = |addrs: &[SocketAddr]| {
                let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
                if opened.is_none() {
                    *opened = Some(xdp::connect(addrs, options.threads.into(), XdpConfig::default())?);
                }
                Ok(opened.as_mut().and_then(Vec::pop).expect("a port for each thread"))
            };
            run_datagrams(options, stop, together, Datagrams::Xdp, open, plain_udp)
        }
        Transport::Tcp => {
            anyhow::ensure!(
                options.faults(0).is_none(),
                "a TCP connection loses, duplicates and reorders nothing: give --loss, --dup and --reorder with another \
                 --transport"
            );
            let start = |config| Server::start(&ServerConfig { datagrams: None, tcp: true, ..config });
            let connect = |servers: &[SocketAddr], config, _| Session::connect_tcp(servers, config);
            let control = |servers: &[SocketAddr], config| Session::connect_tcp(servers, config);
            let ports = RunPorts { label: transport.name(), start, connect, control, shares_cpus: false };
            run_over(options, stop, ports, draw(options)?, &mut || Ok(()), together)
        }
    }
}

/// Measures over ports that `open` opens for the load and `open_control` for what goes on beside it, behind a bad network if
/// there is to be one.
fn run_datagrams<P: Port, Q: Port>(
    options: &RunOptions,
    stop: &AtomicBool,
    together: Option<&mut Together<'_>>,
    datagrams: Datagrams,
    open: impl Fn(&[SocketAddr]) -> io::Result<P> + Sync,
    open_control: impl Fn(&[SocketAddr]) -> io::Result<Q> + Sync,
) -> anyhow::Result<Report> {
    let label = options.transport.name();
    let start = |config| Server::start(&ServerConfig { datagrams: Some(datagrams), tcp: false, ..config });
    let control = |servers: &[SocketAddr], config| Session::connect(servers, config, &open_control);
    let streams = draw(options)?;
    let probe = &mut || Ok(());
    let shares_cpus = false;
    if options.faults(0).is_none() {
        let connect = |servers: &[SocketAddr], config, _| Session::connect(servers, config, &open);
        return run_over(
            options,
            stop,
            RunPorts { label, start, connect, control, shares_cpus },
            streams,
            probe,
            together,
        );
    }
    let connect = |servers: &[SocketAddr], config, number| {
        let faults = options.faults(number).expect("there are some");
        Session::connect(servers, config, |addrs| FaultyPort::new(open(addrs)?, faults))
    };
    let ports = RunPorts { label, start, connect, control, shares_cpus };
    run_over(options, stop, ports, streams, probe, together)
}

/// A socket beside rings. Nothing cuts its trains before they reach the rings of another process on this machine.
pub(crate) fn plain_udp(addrs: &[SocketAddr]) -> io::Result<UdpPort> {
    UdpPort::connect(addrs, UdpConfig { trains: false, ..UdpConfig::default() })
}

/// The ports that a run goes through.
pub(crate) struct RunPorts<Start, Connect, Control> {
    /// What they are called while it runs.
    pub(crate) label: &'static str,
    /// Starts an embedded server: gets cores, memory and how to wait, and says where to listen.
    pub(crate) start: Start,
    /// The session of the client thread with this number, from 1 on.
    pub(crate) connect: Connect,
    /// A session to store records and to ask for statistics.
    pub(crate) control: Control,
    /// Whether the client threads' CPUs have something else to do for them.
    pub(crate) shares_cpus: bool,
}

/// What a run does together with those of other processes.
pub(crate) struct Together<'a> {
    /// Grows as operations end, for whoever watches.
    pub(crate) live: &'a AtomicU64,
    /// What values name as the process that wrote them, or the first of several that share a check.
    pub(crate) process: u16,
    /// Whether this one stores the records.
    pub(crate) stores: bool,
    /// Whether threads must let others have their CPUs.
    pub(crate) shares_cpus: bool,
    /// Called when this one has stored the records; otherwise waits until they are.
    pub(crate) stored: &'a mut dyn FnMut() -> anyhow::Result<()>,
    /// Called when all sessions are there; waits until it is known when the load begins.
    pub(crate) ready: &'a mut dyn FnMut() -> anyhow::Result<Instant>,
    /// Called when nothing of this one is in flight any more, with its puts acknowledged and of unknown outcome; waits for
    /// the others.
    pub(crate) ended: &'a mut dyn FnMut(u64, u64) -> anyhow::Result<Elsewhere>,
    /// The statistics of each server core at the beginning and at the end of what is counted.
    pub(crate) statistics: Vec<CoreStatistics>,
}

/// What a server core said before and after.
#[derive(Clone, Debug)]
pub(crate) struct CoreStatistics {
    pub(crate) addr: SocketAddr,
    pub(crate) before: Box<[u64; STAT_COUNT]>,
    pub(crate) after: Box<[u64; STAT_COUNT]>,
}

/// Measures once, with an operation stream for each client thread; `probe` is called at the beginning and at the end of
/// what is counted.
pub(crate) fn run_over<P: Port, Q: Port>(
    options: &RunOptions,
    stop: &AtomicBool,
    ports: RunPorts<
        impl Fn(ServerConfig) -> Result<Server, StartError>,
        impl Fn(&[SocketAddr], SessionConfig, u64) -> Result<Session<P>, ConnectError> + Sync,
        impl Fn(&[SocketAddr], SessionConfig) -> Result<Session<Q>, ConnectError> + Sync,
    >,
    mut streams: Vec<Stream>,
    probe: &mut dyn FnMut() -> anyhow::Result<()>,
    mut together: Option<&mut Together<'_>>,
) -> anyhow::Result<Report> {
    let RunPorts { label, start, connect, control, shares_cpus } = ports;
    let environment = Environment::look(SystemTime::now());
    let remote = options.servers()?;
    let embedded_cores = if remote.is_some() { 0 } else { options.server_cores.into() };
    let cpus = Cpus::assign(embedded_cores, options.threads.into())?;
    let core_to_core_before_ns = core_to_core(&cpus)?;
    check_stop(stop)?;

    let rss_before = process_rss_len();
    let server = if remote.is_none() { Some(start_server(options, &cpus, start)?) } else { None };
    let servers = remote.unwrap_or_else(|| server.iter().map(Server::addr).collect());
    let ask = || control(&servers, SessionConfig { window: 1, ..options.session() });
    let look = || snapshot(&mut ask()?);
    let stores = together.as_ref().is_none_or(|together| together.stores);
    if let Some(together) = together.as_mut().filter(|_| !stores) {
        (together.stored)()?;
    }
    let process = together.as_ref().map_or(0, |together| together.process);
    let checker = if options.checks() { Some(start_check(options, &servers, process, &look)?) } else { None };
    let checker = checker.as_ref();
    if stores {
        store_records(options, stop, cpus.clients[0], checker, || {
            // Each record is stored once: whatever order the load has, none is needed here, and one would take long.
            let config = SessionConfig { operations_max: u8::MAX, order: Order::None, ..options.session() };
            control(&servers, config)
        })?;
        if let Some(together) = &mut together {
            (together.stored)()?;
        }
    }
    let rss_grown = process_rss_len().saturating_sub(rss_before);

    let mut control = ask()?;
    let server_cores = control.cores().count();
    let alone = AtomicU64::new(0);
    let shares_cpus = shares_cpus || together.as_ref().is_some_and(|together| together.shares_cpus);
    let shared = Shared {
        live: together.as_ref().map_or(&alone, |together| together.live),
        stop,
        begin: Rendezvous::new(streams.len() + 1),
        end: Rendezvous::new(streams.len()),
        checker,
        is_crowded: cpus.is_crowded || shares_cpus,
    };
    let mut watch_check = checker.map(Watch::new);
    let (reports, before, after) = thread::scope(|scope| {
        let threads: Vec<_> = streams
            .iter_mut()
            .zip(&cpus.clients)
            .zip(1..)
            .map(|((stream, &cpu), number)| {
                let (shared, servers, connect) = (&shared, &servers, &connect);
                scope.spawn(move || {
                    client_thread(options, shared, stream, cpu, number, server_cores, || {
                        connect(servers, options.session(), number.into())
                    })
                })
            })
            .collect();
        while !shared.begin.lacks_only_one() {
            thread::sleep(RENDEZVOUS_INTERVAL);
        }
        let agreed = together.as_mut().map_or_else(|| Ok(Instant::now()), |together| (together.ready)());
        match &agreed {
            Ok(at) => thread::sleep(at.saturating_duration_since(Instant::now())),
            // The threads begin all the same, to end at once.
            Err(_) => stop.store(true, Ordering::Relaxed),
        }
        shared.begin.arrive();
        let sampled = watch(options, &shared, label, &mut control, watch_check.as_mut(), probe);
        let reports: anyhow::Result<Vec<LoadReport>> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        agreed?;
        let reports = reports?;
        let (before, after) = sampled?;
        anyhow::Ok((reports, before, after))
    })?;
    check_stop(stop)?;
    let (acknowledged, unknown) = checker.map_or((0, 0), Checker::writes);
    let elsewhere = match &mut together {
        Some(together) => (together.ended)(acknowledged, unknown)?,
        None => Elsewhere::Nobody,
    };
    let check = match (checker, watch_check) {
        (Some(checker), Some(watch)) => Some(checker.finish(watch, elsewhere, look)?),
        _ => None,
    };
    if let Some(together) = together {
        let cores = control.cores().map(|(addr, _)| addr).zip(before.clone().into_iter().zip(after.clone()));
        together.statistics =
            cores.map(|(addr, (before, after))| CoreStatistics { addr, before, after }).collect();
    }
    let [before, after] = [before, after].map(|cores| sum(cores.into_iter().map(|values| *values)));
    drop(control);
    let embedded = server.is_some();
    let mode = server.as_ref().map(|server| server.mode().to_owned());
    let server_datagrams_tx = match server {
        Some(server) => Some(server.stop()?[Statistic::TxDatagrams as usize]),
        None => None,
    };
    let core_to_core_after_ns = core_to_core(&cpus)?;

    let grown = |statistic: Statistic| after[statistic as usize].saturating_sub(before[statistic as usize]);
    // Uptime is the process's, CPU time the sum over its cores.
    let server_cpu_pct = grown(Statistic::CpuNs) as f64 / grown(Statistic::UptimeNs).max(1) as f64 * 100.0;
    let reply_datagrams_per_sec =
        grown(Statistic::TxDatagrams) as f64 / grown(Statistic::UptimeNs).max(1) as f64 * 1e9;
    let server_rss_bytes = if embedded { rss_grown } else { after[Statistic::RssBytes as usize] };
    let report = Report {
        check,
        core_to_core_ns: worse(core_to_core_before_ns, core_to_core_after_ns),
        core_to_core_before_ns,
        core_to_core_after_ns,
        mode,
        reply_datagrams_per_sec: Some(reply_datagrams_per_sec),
        server_datagrams_tx,
        server_cpu_pct: Some(server_cpu_pct),
        server_rss_bytes: Some(server_rss_bytes),
        config: options.config(server_cores),
        ..summarise(Kind::Run, options, &reports, environment)
    };
    if reports.iter().any(|report| report.counters.port.rx_truncated > 0) {
        eprintln!("linerate-bench: warning: {FRAMES_CUT_OFF}");
    }
    anyhow::ensure!(
        report.ops > 0,
        "not one operation was answered within {} s, although the server is there",
        options.duration
    );
    let overflowed = report.rx_overflow_drops + grown(Statistic::RxOverflowDrops);
    Ok(Report { rx_overflow_drops: overflowed, ..report })
}

/// What client threads and the thread that watches them share.
struct Shared<'a> {
    /// Operations ended so far.
    live: &'a AtomicU64,
    stop: &'a AtomicBool,
    begin: Rendezvous,
    end: Rendezvous,
    checker: Option<&'a Checker>,
    is_crowded: bool,
}

/// Where threads wait for each other, each in its own way.
struct Rendezvous {
    expected: usize,
    arrived: AtomicUsize,
}

impl Rendezvous {
    const fn new(expected: usize) -> Self {
        Self { expected, arrived: AtomicUsize::new(0) }
    }

    fn arrive(&self) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
    }

    fn is_complete(&self) -> bool {
        self.arrived.load(Ordering::Acquire) >= self.expected
    }

    fn lacks_only_one(&self) -> bool {
        self.arrived.load(Ordering::Acquire) + 1 >= self.expected
    }

    /// Waits for the others, and goes on to look after the session's port meanwhile: datagrams for another thread may
    /// come in there.
    fn meet<P: Port>(&self, session: &mut Session<P>) -> io::Result<()> {
        self.arrive();
        while !self.is_complete() {
            if session.poll(session.now(), &mut |_| {})? == 0 {
                thread::sleep(RENDEZVOUS_INTERVAL);
            }
        }
        Ok(())
    }
}

fn client_thread<P: Port>(
    options: &RunOptions,
    shared: &Shared<'_>,
    stream: &mut Stream,
    cpu: usize,
    number: u16,
    server_cores: usize,
    connect: impl FnOnce() -> Result<Session<P>, ConnectError>,
) -> anyhow::Result<LoadReport> {
    // All threads begin together, also when one could not connect: the others must not wait for it.
    let session = pin_to_core(cpu).map_err(anyhow::Error::from).and_then(|()| {
        let session = connect()?;
        // Everything is open.
        drop_all()?;
        Ok(session)
    });
    let mut session = match session {
        Ok(session) => session,
        Err(error) => {
            shared.begin.arrive();
            shared.end.arrive();
            return Err(error);
        }
    };
    let met = shared.begin.meet(&mut session);
    let (warmup, duration) = options.times();
    let plan = LoadPlan {
        process: shared.checker.map_or(0, Checker::process),
        thread: number,
        batch: options.batch.into(),
        batches_in_flight: usize::from(options.window) * server_cores,
        value_len: options.value_len,
        verify: options.verifies(),
        sleeps: shared.is_crowded,
        warmup,
        duration,
    };
    let result =
        met.and_then(|()| run_load(&mut session, stream, &plan, shared.checker, shared.live, shared.stop));
    let met = shared.end.meet(&mut session);
    result.and_then(|report| met.map(|()| report)).context("a client thread lost its port")
}

/// Shows progress while the threads run, and takes the servers' statistics at the beginning and at the end of what is
/// counted.
fn watch<P: Port>(
    options: &RunOptions,
    shared: &Shared<'_>,
    label: &str,
    control: &mut Session<P>,
    mut check: Option<&mut Watch<'_>>,
    probe: &mut dyn FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<(EachCore, EachCore)> {
    let (warmup, duration) = options.times();
    let begun = Instant::now();
    let bar = progress_bar((warmup + duration).as_millis() as u64, "measuring");
    let mut before = None;
    let mut last = (Instant::now(), 0);
    while begun.elapsed() < warmup + duration && !shared.stop.load(Ordering::Relaxed) {
        if before.is_none() && begun.elapsed() >= warmup {
            before = Some(each_core(control)?);
            probe()?;
        }
        let until = if before.is_none() { warmup } else { warmup + duration };
        thread::sleep(PROGRESS_INTERVAL.min(until.saturating_sub(begun.elapsed())));
        if let Some(check) = &mut check {
            check.turn(Instant::now());
        }
        let (now, live) = (Instant::now(), shared.live.load(Ordering::Relaxed));
        let rate = (live - last.1) as f64 / (now - last.0).as_secs_f64().max(1e-9);
        last = (now, live);
        bar.set_position(begun.elapsed().as_millis() as u64);
        bar.set_message(format!("{label}: {:.1} Mop/s", rate / 1e6));
    }
    bar.finish_and_clear();
    probe()?;
    let after = each_core(control)?;
    Ok((before.unwrap_or_else(|| after.clone()), after))
}

/// Begins the check, alone or with other processes.
fn start_check(
    options: &RunOptions,
    servers: &[SocketAddr],
    process: u16,
    look: &impl Fn() -> anyhow::Result<Snapshot>,
) -> anyhow::Result<Checker> {
    let shape = options.table_shape(servers);
    let table = match &options.check_shared {
        Some(path) => VersionTable::shared(path, shape, look)?,
        // Whoever has a number of its own is not to be taken for another by chance.
        None if process > 0 => VersionTable::private(shape, 0, &look()?)?,
        None => VersionTable::private(shape, rand::random(), &look()?)?,
    };
    Ok(Checker::new(table, options.threads.into(), options.value_len).counting_from(process))
}

/// What a fresh session is told by the servers about their data.
fn snapshot<P: Port>(control: &mut Session<P>) -> anyhow::Result<Snapshot> {
    let version = statistics(control)?[Statistic::Version as usize];
    let data_epochs = control.cores().filter_map(|(_, info)| info).map(|info| info.data_epoch);
    Ok(Snapshot { version, data_epochs: data_epochs.collect() })
}

/// The statistics of all cores together.
fn statistics<P: Port>(control: &mut Session<P>) -> anyhow::Result<[u64; STAT_COUNT]> {
    Ok(sum(each_core(control)?.into_iter().map(|values| *values)))
}

/// The statistics of each core, in the session's order.
type EachCore = Vec<Box<[u64; STAT_COUNT]>>;

fn each_core<P: Port>(control: &mut Session<P>) -> anyhow::Result<EachCore> {
    let answers = control.statistics(&mut |_| {})?;
    let told = control.cores().zip(answers).map(|((addr, _), answer)| {
        answer.with_context(|| format!("{addr} has not told its statistics: is the server still there?"))
    });
    told.collect()
}

fn start_server(
    options: &RunOptions,
    cpus: &Cpus,
    start: impl Fn(ServerConfig) -> Result<Server, StartError>,
) -> anyhow::Result<Server> {
    let config = ServerConfig {
        port: 0,
        cpus: cpus.server.clone(),
        memory_len: options.memory_len(),
        idle: options.idle,
        ..ServerConfig::default()
    };
    let server = start(config).context("cannot start the embedded server")?;
    if let Some(warning) = server.warning() {
        eprintln!("linerate-bench: warning: {warning}");
    }
    Ok(server)
}

/// Stores all records from a thread of its own, so that this one stays free to run anywhere.
fn store_records<P: Port>(
    options: &RunOptions,
    stop: &AtomicBool,
    cpu: usize,
    checker: Option<&Checker>,
    connect: impl Fn() -> Result<Session<P>, ConnectError> + Sync,
) -> anyhow::Result<()> {
    let bar = progress_bar(options.records.into(), "storing records");
    let stored = thread::scope(|scope| {
        let storing = scope.spawn(|| {
            pin_to_core(cpu)?;
            let progress = |done| bar.set_position(done);
            preload(&mut connect()?, options.records, options.value_len, checker, stop, progress)?;
            anyhow::Ok(())
        });
        storing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    bar.finish_and_clear();
    stored?;
    check_stop(stop)
}

/// Draws what the threads will do. Beyond [`STREAMS_MAX`] threads share streams, so that memory is bounded.
pub(crate) fn draw(options: &RunOptions) -> anyhow::Result<Vec<Stream>> {
    let threads = usize::from(options.threads);
    let count = threads.min(STREAMS_MAX);
    let bar = progress_bar((count * STREAM_LEN) as u64, "drawing operations");
    let streams =
        draw_streams(&options.law(), count, STREAM_LEN, options.seed, |drawn| bar.inc(drawn as u64));
    bar.finish_and_clear();
    let parts = threads.div_ceil(count);
    Ok((0..threads).map(|thread| streams[thread % count].share(thread / count, parts)).collect())
}

pub(crate) fn core_to_core(cpus: &Cpus) -> io::Result<Option<f64>> {
    match (cpus.server.first(), cpus.clients.first()) {
        (Some(&server), Some(&client)) => core_to_core_ns(server, client),
        _ => Ok(None),
    }
}

pub(crate) fn worse(before: Option<f64>, after: Option<f64>) -> Option<f64> {
    before.into_iter().chain(after).reduce(f64::max)
}

pub(crate) fn check_stop(stop: &AtomicBool) -> anyhow::Result<()> {
    anyhow::ensure!(!stop.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// Adds up what the threads have counted; what only the caller knows is left empty.
pub(crate) fn summarise(
    kind: Kind,
    options: &RunOptions,
    reports: &[LoadReport],
    environment: Environment,
) -> Report {
    let mut total = LoadReport::default();
    for report in reports {
        total.latency.merge(&report.latency);
        total.batch_latency.merge(&report.batch_latency);
    }
    let sum = |count: fn(&LoadReport) -> u64| reports.iter().map(count).sum::<u64>();
    let elapsed =
        reports.iter().map(|report| report.elapsed).max().unwrap_or_default().as_secs_f64().max(1e-9);
    let coalesced = sum(|report| report.counters.coalesced);
    // What did not travel is no work of the store or the network, and must not look like it.
    let gets = sum(|report| report.gets) - coalesced;
    let puts = sum(|report| report.puts);
    let cpu: f64 = reports.iter().map(|report| report.cpu.as_secs_f64()).sum();
    Report {
        kind,
        mode: None,
        ops_per_sec: (gets + puts) as f64 / elapsed,
        gets_per_sec: gets as f64 / elapsed,
        puts_per_sec: puts as f64 / elapsed,
        coalesced_per_sec: options.coalesce.then(|| coalesced as f64 / elapsed),
        hit_ratio: sum(|report| report.hits) as f64 / (gets + coalesced).max(1) as f64,
        ops: gets + puts,
        duration_s: elapsed,
        latency_us: total.latency.summary(),
        batch_latency_us: total.batch_latency.summary(),
        datagrams_tx: sum(|report| report.counters.port.tx_datagrams),
        datagrams_rx: sum(|report| report.counters.port.rx_datagrams),
        reply_datagrams_per_sec: None,
        server_datagrams_tx: None,
        retransmits: sum(|report| report.counters.flows.retransmits),
        rx_overflow_drops: sum(|report| report.counters.port.rx_overflow_drops),
        errors: sum(|report| report.errors),
        outcome_unknown: sum(|report| report.outcome_unknown),
        wrong_values: options.verifies().then(|| sum(|report| report.wrong_values)),
        check: None,
        server_cpu_pct: None,
        client_cpu_pct: cpu / elapsed * 100.0,
        server_rss_bytes: None,
        core_to_core_ns: None,
        core_to_core_before_ns: None,
        core_to_core_after_ns: None,
        config: options.config(options.server_cores.into()),
        environment,
    }
}

/// A bar on standard error; invisible when that is no terminal.
pub(crate) fn progress_bar(len: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:20} {wide_bar} {percent:>3} % {msg}");
    let bar = ProgressBar::new(len).with_prefix(what);
    bar.set_style(style.expect("the template is valid"));
    bar
}

/// A flag that Ctrl-C sets.
///
/// # Errors
/// When the handler cannot be installed.
pub fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in signal_hook::consts::TERM_SIGNALS {
        // The second one ends the process at once.
        signal_hook::flag::register_conditional_shutdown(*signal, 130, Arc::clone(&stop))?;
        signal_hook::flag::register(*signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}
