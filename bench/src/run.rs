//! One measurement from beginning to end: server, records, client threads, and what they counted.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
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
    core_loop::Idle,
    stats::{process_rss_len, sum},
};

use crate::{
    check::{
        Checker, Elsewhere, Watch,
        versions::{Snapshot, VersionTable},
    },
    core_to_core::core_to_core_ns,
    load::{Interval, Lane, LoadReport, interval_end, preload, run_load},
    null::null,
    options::{Cpus, RunOptions},
    output::{Environment, Kind, Report},
    series::{Collector, Look, Series, ServerPoint},
    watch::{
        host::{HostReading, Role, WatchedCpu, busy_share, others_share, stolen_share},
        losses::{LossFacts, Losses, ServerLossFacts, is_here},
        nic::{NicFacts, interface_towards},
        verdict::{RunFacts, Verdict, verdicts},
    },
    workload::{Inserts, Stream, StreamLaw, Workload, draw_streams},
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
    run_with(options, stop, &mut Drawn::default(), None)
}

/// As [`run`], with the operations of the run before if its law, seed and sessions were the same, and perhaps together with
/// other processes.
pub(crate) fn run_with(
    options: &RunOptions,
    stop: &AtomicBool,
    drawn: &mut Drawn,
    together: Option<&mut Together<'_>>,
) -> anyhow::Result<Report> {
    #[cfg(feature = "mutants")]
    if let Some(mutant) = options.mutant {
        eprintln!("linerate-bench: warning: makes the mistake `{}` on purpose", mutant.name());
        linerate_proto::mutants::activate(Some(mutant));
    }
    let (options, transport, why) = &options.settled()?;
    if options.target == "null" {
        return null(options, stop);
    }
    if let Some(why) = why {
        eprintln!("linerate-bench: chose {transport}: {why}");
    }
    let udp = |addrs: &[SocketAddr]| UdpPort::connect(addrs, options.port(&options.session()));
    match transport {
        Transport::Udp => run_datagrams(options, stop, drawn, together, Datagrams::Udp, udp, udp),
        Transport::Packet => {
            anyhow::ensure!(options.target != "embedded", RINGS_NEED_TWO);
            let open = |addrs: &[SocketAddr]| PacketPort::connect(addrs, PacketConfig::default());
            run_datagrams(options, stop, drawn, together, Datagrams::Packet, open, plain_udp)
        }
        Transport::Xdp => {
            anyhow::ensure!(options.target != "embedded", RINGS_NEED_TWO);
            // All threads share the queues of the interface, which can be opened only once.
            let opened = Mutex::new(None);
            let open = |addrs: &[SocketAddr]| {
                let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
                if opened.is_none() {
                    *opened = Some(xdp::connect(addrs, options.clients(), XdpConfig::default())?);
                }
                Ok(opened.as_mut().and_then(Vec::pop).expect("a port for each thread"))
            };
            run_datagrams(options, stop, drawn, together, Datagrams::Xdp, open, plain_udp)
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
            run_over(options, stop, ports, drawn.streams(options)?, &mut || Ok(()), together)
        }
    }
}

/// Measures over ports that `open` opens for the load and `open_control` for what goes on beside it, behind a bad network if
/// there is to be one.
fn run_datagrams<P: Port, Q: Port>(
    options: &RunOptions,
    stop: &AtomicBool,
    drawn: &mut Drawn,
    together: Option<&mut Together<'_>>,
    datagrams: Datagrams,
    open: impl Fn(&[SocketAddr]) -> io::Result<P> + Sync,
    open_control: impl Fn(&[SocketAddr]) -> io::Result<Q> + Sync,
) -> anyhow::Result<Report> {
    let label = options.transport.name();
    let start = |config| Server::start(&ServerConfig { datagrams: Some(datagrams), tcp: false, ..config });
    let control = |servers: &[SocketAddr], config| Session::connect(servers, config, &open_control);
    let streams = drawn.streams(options)?;
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
    if options.inserts() {
        Inserts::begin(options.records, process, options.inserts_max(), &mut streams)?;
    }
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
    let mut watch_check = checker.map(Watch::new);
    let host = WatchedHost::towards(servers.first().map(SocketAddr::ip), &cpus);
    let pause = |duration| server.iter().for_each(|server: &Server| server.pause(duration));
    let load = Load {
        options,
        stop,
        label,
        live: together.as_ref().map_or(&alone, |together| together.live),
        cpus: &cpus.clients,
        server_cores,
        checker,
        is_crowded: cpus.is_crowded || shares_cpus,
        host: host.as_ref(),
    };
    let connect = |number| connect(&servers, options.session(), number);
    let mut beside = Beside {
        ready: &mut || together.as_mut().map_or_else(|| Ok(Instant::now()), |together| (together.ready)()),
        look: &mut || each_core(&mut control),
        check: watch_check.as_mut(),
        probe,
        pause: &pause,
    };
    let measured = load.measure(streams, connect, &mut beside)?;
    if together.is_some() {
        // The others must know that this one has not done its part.
        check_stop(stop)?;
    }
    let Measured { total, series, before, after, failure } = measured;
    let (acknowledged, unknown) = checker.map_or((0, 0), Checker::writes);
    let elsewhere = match &mut together {
        Some(together) => (together.ended)(acknowledged, unknown)?,
        None => Elsewhere::Nobody,
    };
    let check = match (checker, watch_check) {
        (Some(checker), Some(watch)) => Some(checker.finish(watch, elsewhere, look)?),
        _ => None,
    };
    // Without its last word what a server has counted is unknown.
    let is_told = after.is_some();
    let after = after.unwrap_or_else(|| before.clone());
    if let Some(together) = together {
        anyhow::ensure!(
            is_told,
            "{}",
            failure.unwrap_or_else(|| "a server has told no statistics".to_owned())
        );
        let cores = control.cores().map(|(addr, _)| addr).zip(before.clone().into_iter().zip(after.clone()));
        together.statistics =
            cores.map(|(addr, (before, after))| CoreStatistics { addr, before, after }).collect();
    }
    let cpu_pct_of_each = if is_told { cpu_pct_of_each(&before, &after) } else { Vec::new() };
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
    if total.counters.port.rx_truncated > 0 {
        eprintln!("linerate-bench: warning: {FRAMES_CUT_OFF}");
    }
    let report = Report {
        check,
        series,
        core_to_core_ns: worse(core_to_core_before_ns, core_to_core_after_ns),
        core_to_core_before_ns,
        core_to_core_after_ns,
        mode,
        reply_datagrams_per_sec: is_told.then_some(reply_datagrams_per_sec),
        server_datagrams_tx,
        server_cpu_pct: is_told.then_some(server_cpu_pct),
        server_rss_bytes: is_told.then_some(server_rss_bytes),
        config: options.config(server_cores),
        ..summarise(Kind::Run, options, &total, environment)
    };
    let nic = host.map(|host| NicFacts::of(&host.interface));
    let losses = Losses::of(&LossFacts {
        hosts: &report.series.hosts(),
        client_port: total.counters.port,
        client_drops: total.counters.drops,
        server: is_told.then_some(ServerLossFacts {
            before: &before,
            after: &after,
            is_here: servers.iter().all(|server| is_here(server.ip())),
        }),
    });
    let is_embedded_and_sleeps = embedded && options.idle == Idle::Epoll;
    let report = Report {
        verdicts: judge(
            options,
            &report,
            &total,
            &Judged {
                server_cpu_pct: cpu_pct_of_each,
                losses,
                nic: nic.as_ref(),
                server_spins: !is_embedded_and_sleeps,
                is_crowded: cpus.is_crowded,
                shares_cpus,
            },
        ),
        loss_by_layer: Some(losses),
        nic,
        ..report
    };
    let overflowed = report.rx_overflow_drops + grown(Statistic::RxOverflowDrops);
    finished(Report { rx_overflow_drops: overflowed, ..report }, options, failure, stop)
}

/// What a run is judged by beside its report.
pub(crate) struct Judged<'a> {
    pub(crate) losses: Losses,
    pub(crate) nic: Option<&'a NicFacts>,
    /// CPU time of each server core in per cent of one CPU.
    pub(crate) server_cpu_pct: Vec<f64>,
    /// Whether nothing is known of how busy servers are.
    pub(crate) server_spins: bool,
    pub(crate) is_crowded: bool,
    /// Whether others are meant to use the CPUs: the kernel's receivers, or other processes of a cluster.
    pub(crate) shares_cpus: bool,
}

/// What can be said of the figures of a run.
pub(crate) fn judge(
    options: &RunOptions,
    report: &Report,
    total: &LoadReport,
    judged: &Judged<'_>,
) -> Vec<Verdict> {
    let hosts = report.series.hosts();
    let threads = usize::from(options.threads);
    let busy = || busy_share(&hosts, Role::Server);
    let others = |role, own_pct: Option<f64>| {
        let own_pct = own_pct.filter(|_| !judged.shares_cpus)?;
        others_share(&hosts, role, own_pct)
    };
    verdicts(&RunFacts {
        client_cpu_pct: vec![report.client_cpu_pct / threads as f64; threads],
        clients_spin: !judged.is_crowded,
        client_busy_share: report.client_busy_share,
        server_cpu_pct: judged.server_cpu_pct.clone(),
        server_spins: judged.server_spins,
        server_busy_share: if judged.server_spins { None } else { busy() },
        series: report.series.points.iter().map(|point| point.ops_per_sec).collect(),
        offered_ops_per_sec: report.offered_ops_per_sec,
        due_ops_per_sec: report.due_ops_per_sec,
        due_answered_per_sec: report.achieved_ops_per_sec,
        line_rate_share: judged.nic.and_then(|nic| nic.line_rate_share(&hosts)),
        requests: total.counters.flows.requests,
        retransmits: total.counters.flows.retransmits,
        datagrams: total.counters.port.tx_datagrams + total.counters.port.rx_datagrams,
        losses: Some(judged.losses),
        stolen_share: stolen_share(&hosts),
        others_share: others(Role::Server, report.server_cpu_pct)
            .into_iter()
            .chain(others(Role::Client, Some(report.client_cpu_pct)))
            .reduce(f64::max),
        core_to_core_before_ns: report.core_to_core_before_ns,
        core_to_core_after_ns: report.core_to_core_after_ns,
        is_crowded: judged.is_crowded,
    })
}

/// A report of what was measured, which may not be all that was asked for.
///
/// # Errors
/// Why there is nothing to report.
pub(crate) fn finished(
    report: Report,
    options: &RunOptions,
    failure: Option<String>,
    stop: &AtomicBool,
) -> anyhow::Result<Report> {
    let (seconds, duration) = (report.duration_s, options.duration);
    let interrupted =
        || format!("interrupted after {seconds:.1} of the {duration} s that were to be measured");
    let failure = failure.or_else(|| stop.load(Ordering::Relaxed).then(interrupted));
    if report.ops == 0 {
        let nothing =
            || format!("not one operation was answered within {duration} s, although the server is there");
        anyhow::bail!(failure.unwrap_or_else(nothing));
    }
    Ok(Report { partial: failure.is_some(), failure, ..report })
}

/// What the threads that make the load have in common.
pub(crate) struct Load<'a> {
    pub(crate) options: &'a RunOptions,
    pub(crate) stop: &'a AtomicBool,
    /// What it is called while it runs.
    pub(crate) label: &'a str,
    /// Operations ended so far.
    pub(crate) live: &'a AtomicU64,
    /// One for each thread.
    pub(crate) cpus: &'a [usize],
    /// Cores that each session goes to.
    pub(crate) server_cores: usize,
    pub(crate) checker: Option<&'a Checker>,
    /// Whether threads must let others have their CPUs.
    pub(crate) is_crowded: bool,
    /// What of this machine is looked at each second, if it can be.
    pub(crate) host: Option<&'a WatchedHost>,
}

/// What goes on beside the load, in the thread that watches it.
pub(crate) struct Beside<'a, 'c> {
    /// Called when all sessions are there; waits until it is known when the load begins.
    pub(crate) ready: &'a mut dyn FnMut() -> anyhow::Result<Instant>,
    /// Asks each server core for its statistics.
    pub(crate) look: &'a mut dyn FnMut() -> anyhow::Result<EachCore>,
    pub(crate) check: Option<&'a mut Watch<'c>>,
    /// Called at the beginning and at the end of what is counted.
    pub(crate) probe: &'a mut dyn FnMut() -> anyhow::Result<()>,
    /// Makes the server stand still for so long.
    pub(crate) pause: &'a dyn Fn(Duration),
}

/// What came of a load.
pub(crate) struct Measured {
    pub(crate) total: LoadReport,
    pub(crate) series: Series,
    /// What the server cores had counted before and after; they may be gone by then.
    pub(crate) before: EachCore,
    pub(crate) after: Option<EachCore>,
    /// Why what was counted is not all.
    pub(crate) failure: Option<String>,
}

impl Load<'_> {
    /// Has each thread open its sessions, lets them begin together, and collects what they count. `connect` opens the
    /// session with this number, from 1 on.
    pub(crate) fn measure<P: Port>(
        &self,
        streams: Vec<Stream>,
        connect: impl Fn(u64) -> Result<Session<P>, ConnectError> + Sync,
        beside: &mut Beside<'_, '_>,
    ) -> anyhow::Result<Measured> {
        let threads = self.cpus.len();
        let mut shares: Vec<Vec<(u16, Stream)>> = (0..threads).map(|_| Vec::new()).collect();
        for (index, stream) in streams.into_iter().enumerate() {
            shares[index % threads].push((index as u16 + 1, stream));
        }
        let meetings = Meetings { begin: Rendezvous::new(threads + 1), end: Rendezvous::new(threads) };
        let halt = AtomicBool::new(false);
        let mut collector = Collector::new(threads, self.options.interval());
        let (send, receive) = channel();
        thread::scope(|scope| {
            let threads: Vec<_> = shares
                .into_iter()
                .zip(self.cpus)
                .enumerate()
                .map(|(index, (share, &cpu))| {
                    let (meetings, halt, connect, send) = (&meetings, &halt, &connect, send.clone());
                    scope.spawn(move || {
                        let _arrives = Arrives(meetings);
                        let ended = self.client_thread(index, meetings, halt, share, cpu, connect, send);
                        if ended.is_err() {
                            halt.store(true, Ordering::Relaxed);
                        }
                        ended
                    })
                })
                .collect();
            drop(send);
            while !meetings.begin.lacks_only_one() {
                thread::sleep(RENDEZVOUS_INTERVAL);
            }
            let agreed = (beside.ready)();
            match &agreed {
                Ok(at) => thread::sleep(at.saturating_duration_since(Instant::now())),
                // The threads begin all the same, to end at once.
                Err(_) => halt.store(true, Ordering::Relaxed),
            }
            meetings.begin.arrive();
            let begun = SystemTime::now() + self.options.times().0;
            let watched = self.watch(beside, &halt, &receive, &mut collector);
            if watched.is_err() {
                halt.store(true, Ordering::Relaxed);
            }
            // Until the last thread has ended.
            receive.iter().for_each(|told| told.give_to(&mut collector));
            let ended: Vec<anyhow::Result<()>> = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect();
            let ended = ended.into_iter().collect::<anyhow::Result<()>>();
            collector.finish();
            agreed?;
            if collector.total().elapsed.is_zero() {
                ended?;
                anyhow::bail!("interrupted");
            }
            let Watched { before, after, looks } = watched?;
            let failure =
                ended.err().or_else(|| after.as_ref().err().map(|error| anyhow::anyhow!("{error:#}")));
            let total = collector.total();
            let mut series = collector.into_series(begun);
            series.add_looks(looks);
            let failure = failure.map(|error| format!("{error:#}"));
            Ok(Measured { total, series, before, after: after.ok(), failure })
        })
    }

    #[expect(clippy::too_many_arguments, reason = "all that a thread is given")]
    fn client_thread<P: Port>(
        &self,
        index: usize,
        meetings: &Meetings,
        halt: &AtomicBool,
        share: Vec<(u16, Stream)>,
        cpu: usize,
        connect: impl Fn(u64) -> Result<Session<P>, ConnectError>,
        send: Sender<Told>,
    ) -> anyhow::Result<()> {
        pin_to_core(cpu)?;
        let numbers = share.iter().map(|&(number, _)| number);
        let mut sessions: Vec<_> = numbers.map(|number| connect(number.into())).collect::<Result<_, _>>()?;
        // Everything is open.
        drop_all()?;
        let mut lanes: Vec<_> = sessions
            .iter_mut()
            .zip(share)
            .map(|(session, (number, stream))| {
                let plan =
                    self.options.plan(number, &stream, self.server_cores, self.is_crowded, self.checker);
                Lane::new(session, stream, plan, self.checker)
            })
            .collect();
        let lost = "a client thread lost its port";
        meetings.begin.meet(&mut lanes, halt).context(lost)?;
        let (give_back, spare) = channel();
        let sink = |interval, report| {
            let told = Told {
                interval: Interval { thread: index, index: interval, report },
                give_back: give_back.clone(),
            };
            // That nobody listens any more is no reason to stop.
            let _ = send.send(told);
            spare.try_recv().unwrap_or_default()
        };
        run_load(&mut lanes, &self.options.load_times(), self.live, halt, sink).context(lost)?;
        meetings.end.meet(&mut lanes, halt).context(lost)
    }

    /// Shows progress while the threads run, collects what they count, and looks at servers and host at the beginning of
    /// what is counted and after each interval.
    fn watch(
        &self,
        beside: &mut Beside<'_, '_>,
        halt: &AtomicBool,
        receive: &Receiver<Told>,
        collector: &mut Collector,
    ) -> anyhow::Result<Watched> {
        let options = self.options;
        let (warmup, duration) = options.times();
        let begun = Instant::now();
        let bar = progress_bar((warmup + duration).as_millis() as u64, "measuring");
        let (mut eyes, mut looks) = (None, Vec::new());
        let look_after = |from| warmup + interval_end(from, options.interval(), duration);
        let mut next_look = look_after(Duration::ZERO);
        let mut stall = options.stall_at();
        let mut last = (Instant::now(), 0);
        while begun.elapsed() < warmup + duration && !halt.load(Ordering::Relaxed) {
            if self.stop.load(Ordering::Relaxed) {
                halt.store(true, Ordering::Relaxed);
                break;
            }
            if eyes.is_none() && begun.elapsed() >= warmup {
                eyes = Some(Eyes::open(beside, self.host.filter(|_| options.watches()))?);
                (beside.probe)()?;
            }
            if let Some((_, stall)) = stall.take_if(|(at, _)| begun.elapsed() >= *at) {
                (beside.pause)(stall);
            }
            let mut until = if eyes.is_none() { warmup } else { (warmup + duration).min(next_look) };
            if let Some((at, _)) = stall {
                until = until.min(at);
            }
            thread::sleep(PROGRESS_INTERVAL.min(until.saturating_sub(begun.elapsed())));
            receive.try_iter().for_each(|told| told.give_to(collector));
            // The last one is taken at the end.
            if begun.elapsed() >= next_look && next_look < warmup + duration {
                next_look = look_after(next_look - warmup);
                if let Some(eyes) = &mut eyes {
                    // A server that does not answer now may do so later.
                    looks.push(eyes.look(beside).0);
                }
            }
            if let Some(check) = &mut beside.check {
                check.turn(Instant::now());
            }
            let (now, live) = (Instant::now(), self.live.load(Ordering::Relaxed));
            let rate = (live - last.1) as f64 / (now - last.0).as_secs_f64().max(1e-9);
            last = (now, live);
            bar.set_position(begun.elapsed().as_millis() as u64);
            bar.set_message(format!("{}: {:.1} Mop/s", self.label, rate / 1e6));
        }
        bar.finish_and_clear();
        (beside.probe)()?;
        let mut eyes = match eyes {
            Some(eyes) => eyes,
            None => Eyes::open(beside, None)?,
        };
        let (look, after) = eyes.look(beside);
        looks.push(look);
        Ok(Watched { before: eyes.first, after, looks })
    }
}

/// What was seen beside a load.
struct Watched {
    before: EachCore,
    after: anyhow::Result<EachCore>,
    looks: Vec<Look>,
}

/// What servers and host have counted up to the last look.
struct Eyes<'a> {
    first: EachCore,
    told: EachCore,
    host: Option<&'a WatchedHost>,
    reading: Option<HostReading>,
}

impl<'a> Eyes<'a> {
    fn open(beside: &mut Beside<'_, '_>, host: Option<&'a WatchedHost>) -> anyhow::Result<Self> {
        let first = (beside.look)()?;
        Ok(Self { told: first.clone(), first, reading: host.and_then(WatchedHost::read), host })
    }

    /// What has happened since the last look, and what the servers say now.
    fn look(&mut self, beside: &mut Beside<'_, '_>) -> (Look, anyhow::Result<EachCore>) {
        let now = (beside.look)();
        let server = now.as_ref().ok().and_then(|now| ServerPoint::between(&self.told, now));
        if let Ok(now) = &now {
            self.told.clone_from(now);
        }
        let reading = self.host.and_then(WatchedHost::read);
        let host = self.reading.as_ref().zip(reading.as_ref()).map(|(before, now)| now.since(before));
        self.reading = reading.or_else(|| self.reading.take());
        (Look { server, host, client_rss_bytes: process_rss_len() }, now)
    }
}

/// The part of this machine that has to do with a run.
pub(crate) struct WatchedHost {
    interface: String,
    cpus: Vec<WatchedCpu>,
}

impl WatchedHost {
    /// The CPUs, and the interface that leads to the server. A machine that does not tell is not watched.
    pub(crate) fn towards(server: Option<IpAddr>, cpus: &Cpus) -> Option<Self> {
        let interface = interface_towards(server.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))).ok()?;
        Some(Self { interface, cpus: WatchedCpu::all(cpus).ok()? })
    }

    fn read(&self) -> Option<HostReading> {
        HostReading::take(&self.interface, &self.cpus).ok()
    }
}

/// Where client threads meet before and after.
struct Meetings {
    begin: Rendezvous,
    end: Rendezvous,
}

/// Has a thread arrive everywhere when it ends, however it ends: the others must not wait for it.
struct Arrives<'a>(&'a Meetings);

impl Drop for Arrives<'_> {
    fn drop(&mut self) {
        // More than are expected is no harm: whoever ends regularly has met the others already.
        self.0.begin.arrive();
        self.0.end.arrive();
    }
}

/// What a client thread has counted, and where the memory of it goes when that has been added up.
struct Told {
    interval: Interval,
    give_back: Sender<LoadReport>,
}

impl Told {
    fn give_to(self, collector: &mut Collector) {
        collector.take(&self.interval);
        // A thread that has ended needs none.
        let _ = self.give_back.send(self.interval.report.emptied());
    }
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

    /// Waits for the others, unless one has failed, and goes on to look after the sessions' ports meanwhile: datagrams for
    /// another thread may come in there. Whoever meets arrives by what [`Arrives`] does at the latest.
    fn meet<P: Port>(&self, lanes: &mut [Lane<'_, P>], halt: &AtomicBool) -> io::Result<()> {
        self.arrive();
        while !self.is_complete() && !halt.load(Ordering::Relaxed) {
            let mut arrived = 0;
            for lane in &mut *lanes {
                arrived += lane.look_after()?;
            }
            if arrived == 0 {
                thread::sleep(RENDEZVOUS_INTERVAL);
            }
        }
        Ok(())
    }
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
    Ok(Checker::new(table, options.clients(), options.value_len.lens()).counting_from(process))
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

/// CPU time of each core between two readings, in per cent of one CPU.
fn cpu_pct_of_each(before: &EachCore, after: &EachCore) -> Vec<f64> {
    let of_core = |before: &[u64; STAT_COUNT], after: &[u64; STAT_COUNT]| {
        let grown =
            |statistic: Statistic| after[statistic as usize].saturating_sub(before[statistic as usize]);
        grown(Statistic::CpuNs) as f64 / grown(Statistic::UptimeNs).max(1) as f64 * 100.0
    };
    before.iter().zip(after).map(|(before, after)| of_core(before, after)).collect()
}

/// The statistics of each core, in the session's order.
pub(crate) type EachCore = Vec<Box<[u64; STAT_COUNT]>>;

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
    if options.trace.is_some() {
        // A trace brings its own records, to a store that has none yet.
        return Ok(());
    }
    let bar = progress_bar(options.records.into(), "storing records");
    let stored = thread::scope(|scope| {
        let storing = scope.spawn(|| {
            pin_to_core(cpu)?;
            let progress = |done| bar.set_position(done);
            preload(&mut connect()?, options.records, &options.value_len, checker, stop, progress)?;
            anyhow::Ok(())
        });
        storing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    bar.finish_and_clear();
    stored?;
    check_stop(stop)
}

/// What the sessions of the last run did, for the next one: drawing it can take longer than a short run.
#[derive(Default)]
pub(crate) struct Drawn(Option<(DrawnBy, Vec<Stream>)>);

/// What streams depend on: their law, seed and length, and how many sessions there are.
type DrawnBy = (StreamLaw, u64, usize, usize);

impl Drawn {
    /// What the sessions will do, from the beginning.
    pub(crate) fn streams(&mut self, options: &RunOptions) -> anyhow::Result<Vec<Stream>> {
        if options.replayed().is_some() {
            // Nothing is drawn.
            return draw(options);
        }
        let by = (options.law(), options.seed, options.stream_len(), options.clients());
        if let Some((_, streams)) = self.0.as_ref().filter(|(drawn_by, _)| *drawn_by == by) {
            return Ok(streams.clone());
        }
        // First the old ones go: there is not memory for both on every machine.
        self.0 = None;
        let streams = draw(options)?;
        self.0 = Some((by, streams.clone()));
        Ok(streams)
    }
}

/// Draws what the sessions will do. Many of them share streams, so that memory is bounded.
pub(crate) fn draw(options: &RunOptions) -> anyhow::Result<Vec<Stream>> {
    let clients = options.clients();
    if let Some(trace) = options.replayed() {
        let streams = trace.streams(clients)?;
        if let Some(warning) = trace.unevenness(&streams).filter(|_| options.rate.is_none()) {
            eprintln!("linerate-bench: warning: {warning}");
        }
        return Ok(streams);
    }
    let (count, len) = (options.stream_count(), options.stream_len());
    let bar = progress_bar((count * len) as u64, "drawing operations");
    let streams = draw_streams(&options.law(), count, len, options.seed, |drawn| bar.inc(drawn as u64));
    bar.finish_and_clear();
    let parts = clients.div_ceil(count);
    Ok((0..clients).map(|client| streams[client % count].share(client / count, parts)).collect())
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

/// The figures of what clients have counted in all; what only the caller knows is left empty.
pub(crate) fn summarise(
    kind: Kind,
    options: &RunOptions,
    total: &LoadReport,
    environment: Environment,
) -> Report {
    let elapsed = total.elapsed.as_secs_f64().max(1e-9);
    let counters = &total.counters;
    let coalesced = counters.coalesced;
    // What did not travel is no work of the store or the network, and must not look like it.
    let (gets, puts) = (total.gets.saturating_sub(coalesced), total.puts);
    let cpu_s = total.cpu.as_secs_f64();
    let is_open = options.rate.is_some();
    let batch_latency = if is_open { &total.latency } else { &total.batch_latency };
    let has_rmws = kind != Kind::Ceiling && options.workload == Workload::F && options.trace.is_none();
    Report {
        kind,
        partial: false,
        failure: None,
        mode: None,
        loop_kind: if is_open { "open" } else { "closed" },
        offered_ops_per_sec: options.rate,
        due_ops_per_sec: is_open.then(|| (total.due + total.unsent) as f64 / elapsed),
        achieved_ops_per_sec: is_open.then(|| total.begun_and_answered() as f64 / elapsed),
        ops_per_sec: (gets + puts) as f64 / elapsed,
        gets_per_sec: gets as f64 / elapsed,
        puts_per_sec: puts as f64 / elapsed,
        coalesced_per_sec: options.coalesce.then(|| coalesced as f64 / elapsed),
        rmws_per_sec: has_rmws.then(|| total.rmws as f64 / elapsed),
        rmw_latency_us: has_rmws.then(|| total.rmw_latency.summary()),
        conditions_unmet: options.trace.is_some().then_some(total.conditions_unmet),
        hit_ratio: total.hits as f64 / (gets + coalesced).max(1) as f64,
        ops: gets + puts,
        duration_s: elapsed,
        latency_us: total.latency.summary(),
        latency_count: total.latency.count(),
        latency_cdf: total.latency.distribution(),
        batch_latency_us: batch_latency.summary(),
        datagrams_tx: counters.port.tx_datagrams,
        datagrams_rx: counters.port.rx_datagrams,
        reply_datagrams_per_sec: None,
        server_datagrams_tx: None,
        retransmits: counters.flows.retransmits,
        rx_overflow_drops: counters.port.rx_overflow_drops,
        errors: total.errors,
        outcome_unknown: total.outcome_unknown,
        unsent: total.unsent,
        wrong_values: options.verifies().then_some(total.wrong_values),
        check: None,
        server_cpu_pct: None,
        client_cpu_pct: cpu_s / elapsed * 100.0,
        client_busy_share: Some(
            (1.0 - total.idle.as_secs_f64() / elapsed / options.clients() as f64).clamp(0.0, 1.0),
        ),
        generator_ns_per_op: cpu_s * 1e9 / (gets + puts).max(1) as f64,
        server_rss_bytes: None,
        core_to_core_ns: None,
        core_to_core_before_ns: None,
        core_to_core_after_ns: None,
        series: Series::empty(),
        verdicts: Vec::new(),
        loss_by_layer: None,
        nic: None,
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
