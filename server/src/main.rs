//! `linerate-server`: serves one node until it is told to stop.

#![forbid(unsafe_code)]

mod cluster;
mod manager;

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use bytesize::ByteSize;
use clap::Parser;
use linerate_dataplane::{
    pin::{CoreList, allowed_cores},
    port::FRAMES_CUT_OFF,
    privilege,
    transport::{self, Transport, Wanted},
};
use linerate_proto::{
    cluster::PORT,
    wire::{STAT_COUNT, Statistic},
};
use linerate_server::{
    AtCapacity, Datagrams, Server, ServerConfig, StartError,
    core_loop::Idle,
    memory::HugePages,
    stats::{drops_in_words, process_rss_len},
};

/// In-memory key-value store that answers at line rate: one pinned thread per core, each with its own port and its own
/// shard.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Address to listen at [default: 127.0.0.1, or that of the node in the cluster map]
    #[arg(long)]
    listen: Option<IpAddr>,
    /// UDP and TCP port of the first core; core i listens at this + i; 0 lets the kernel choose [default: 4100, or that of
    /// the node in the cluster map]
    #[arg(long)]
    port: Option<u16>,
    /// The cluster that it is part of, the same for all servers: the file of a cluster map, or host[:port][/cores],… in
    /// the order of the node ids 1, 2, …
    #[arg(long, requires = "node_id", value_name = "FILE|HOST,…")]
    cluster: Option<String>,
    /// Which node of the cluster it is
    #[arg(long, requires = "cluster", value_name = "ID")]
    node_id: Option<u64>,
    /// CPUs to pin the cores to, such as 0-3 or 0,2,4-5 [default: the first one allowed]
    #[arg(long)]
    cores: Option<CoreList>,
    /// Memory for everything together, such as 512MiB or 16GiB: keys and values, sessions, buffers and rings, and the
    /// program. The server does not take more; what the kernel keeps in sockets is not in it
    #[arg(long, default_value = "1GiB")]
    memory: ByteSize,
    /// What becomes of a put when the memory of its core is full: refuse it, or evict what is least likely to be asked for
    #[arg(long, default_value = "refuse", value_parser = at_capacity)]
    at_capacity: AtCapacity,
    /// Take all memory from the system before serving. Without, requests wait for it as the store fills: 100 to 200 µs for
    /// each 2 MiB
    #[arg(long)]
    prefault: bool,
    /// Receive buffer of each core's UDP socket: what all clients together may have in flight follows from it. More than
    /// the system's net.core.rmem_max takes root
    #[arg(long, default_value = "64MiB")]
    receive_buffer: ByteSize,
    /// What a core does when nothing arrives: spin (lowest latency, a whole CPU) or epoll (spin briefly, then sleep)
    #[arg(long, default_value = "epoll")]
    idle: Idle,
    /// What to listen on: one of udp, packet (AF_PACKET rings), xdp (AF_XDP rings) and auto (the best of these for the
    /// interface), and tcp. Rings need the address of one interface and the capability to open them
    #[arg(long, alias = "transports", value_delimiter = ',', default_value = "udp,tcp")]
    transport: Vec<Wanted>,
    /// Seconds between two lines of statistics; 0 prints none
    #[arg(long, default_value_t = 1, value_name = "SECONDS")]
    stats_interval: u64,
    /// Listen at other than loopback addresses although anybody who reaches them can read and change the data
    #[arg(long)]
    insecure_no_auth: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("linerate-server: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let config = resolve(options)?;
    // Until it serves, a signal ends the program at once: there is nothing to lose, and starting may take long.
    let server = start(&config)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in signal_hook::consts::TERM_SIGNALS {
        signal_hook::flag::register(*signal, Arc::clone(&stop)).context("cannot handle signals")?;
    }
    // The cores have done so themselves. All that was to be opened is open.
    privilege::drop_all()?;
    let huge_pages = HugePages::of_system();
    let when_full = match config.at_capacity {
        AtCapacity::Refuse => "refuses puts",
        AtCapacity::Evict => "evicts",
    };
    say(&format!("linerate-server: {}; {huge_pages}; when full it {when_full}", server.plan()));
    say(&format!(
        "linerate-server: serving at {}, cores on CPUs {}, memory {}, {}",
        server.addrs().iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        config.cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        options.memory,
        listens(&config, server.mode()),
    ));
    if let Some(cluster) = &config.cluster {
        let spec = cluster.spec();
        say(&format!(
            "linerate-server: node {} of {}, epoch {} of the cluster map, digest {:016x}",
            cluster.member().id,
            spec.members().len(),
            spec.epoch(),
            spec.digest(),
        ));
    }
    for warning in server.warning().into_iter().chain(huge_pages.warning()) {
        eprintln!("linerate-server: warning: {warning}");
    }
    if let Err(error) = manager::serving(&format!("serving at {}", server.addr())) {
        eprintln!("linerate-server: warning: cannot tell the service manager at $NOTIFY_SOCKET: {error}");
    }
    report_until(&server, &stop, options.stats_interval);
    manager::stopping();
    let failed = server.has_failed();
    let totals = server.stop().context("a core ended by itself")?;
    say(&total_line(&totals));
    anyhow::ensure!(!failed || stop.load(Ordering::Relaxed), "a core ended by itself");
    Ok(())
}

/// Starts the server, and says why that takes its time if it does.
fn start(config: &ServerConfig) -> Result<Server, StartError> {
    if !config.prefault {
        return Server::start(config);
    }
    std::thread::scope(|scope| {
        let (started, waiting) = channel::<()>();
        scope.spawn(move || {
            while waiting.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                let (taken, all) = (ByteSize(process_rss_len()), ByteSize(config.memory_len as u64));
                let progress = format!("taking memory from the system, {taken} of {all} so far");
                eprintln!("linerate-server: {progress}");
                manager::starting(&progress);
            }
        });
        let server = Server::start(config);
        drop(started);
        server
    })
}

/// Prints a line. A reader that is gone is no reason to stop serving.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// What was typed, checked against this machine.
fn resolve(options: &Options) -> anyhow::Result<ServerConfig> {
    let allowed = allowed_cores().context("cannot tell which CPUs this process may use")?;
    let cpus = match &options.cores {
        Some(list) => {
            list.check(&allowed)?;
            list.cores().to_vec()
        }
        None => allowed.first().map(|&first| vec![first]).context("this process may use no CPU at all")?,
    };
    let memory_len =
        usize::try_from(options.memory.as_u64()).context("more --memory than can be addressed")?;
    let cluster = match (&options.cluster, options.node_id) {
        (Some(text), Some(id)) => {
            let cores = u8::try_from(cpus.len()).context("more than 255 --cores")?;
            Some(Arc::new(cluster::membership(text, id, cores)?))
        }
        _ => None,
    };
    let mapped = cluster
        .as_ref()
        .map(|cluster| cluster.member().addr)
        .unwrap_or_else(|| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
    let listen = options.listen.unwrap_or_else(|| mapped.ip());
    let port = options.port.unwrap_or_else(|| mapped.port());
    let (datagrams, tcp) = transports(options, listen)?;
    Ok(ServerConfig {
        listen,
        port,
        cluster,
        cpus,
        memory_len,
        at_capacity: options.at_capacity,
        prefault: options.prefault,
        receive_buffer_len: usize::try_from(options.receive_buffer.as_u64()).unwrap_or(usize::MAX),
        idle: options.idle,
        datagrams,
        tcp,
        insecure_no_auth: options.insecure_no_auth,
    })
}

fn at_capacity(text: &str) -> Result<AtCapacity, String> {
    match text {
        "refuse" => Ok(AtCapacity::Refuse),
        "evict" => Ok(AtCapacity::Evict),
        _ => Err(format!("`{text}` is nothing that a full memory can do: give refuse or evict")),
    }
}

/// What carries datagrams, and whether TCP is listened on.
fn transports(options: &Options, listen: IpAddr) -> anyhow::Result<(Option<Datagrams>, bool)> {
    let mut datagrams = None;
    let mut tcp = false;
    for wanted in &options.transport {
        let transport = match *wanted {
            Wanted::Is(transport) => transport,
            Wanted::Auto => {
                let (transport, why) = transport::best(listen);
                say(&format!("linerate-server: chose {transport}: {why}"));
                transport
            }
        };
        let chosen = match transport {
            Transport::Tcp => {
                tcp = true;
                continue;
            }
            Transport::Udp => Datagrams::Udp,
            Transport::Packet => Datagrams::Packet,
            Transport::Xdp => Datagrams::Xdp,
        };
        anyhow::ensure!(
            datagrams.replace(chosen).is_none(),
            "udp, packet, xdp and auto take the same port: give one of them to --transport, and tcp beside it if wanted"
        );
    }
    Ok((datagrams, tcp))
}

/// In what way a server listens.
fn listens(config: &ServerConfig, mode: &str) -> String {
    match (config.datagrams, config.tcp) {
        (Some(_), true) => format!("{mode}, and TCP"),
        (Some(_), false) => mode.to_owned(),
        (None, _) => "TCP".to_owned(),
    }
}

/// Prints a line of statistics every `interval_s` seconds until a signal comes or a core ends.
fn report_until(server: &Server, stop: &AtomicBool, interval_s: u64) {
    /// How soon a signal is acted upon.
    const CHECK_INTERVAL: Duration = Duration::from_millis(20);
    let mut before = (Instant::now(), server.stats());
    let mut warned = false;
    let mut watchdog = manager::Watchdog::of_environment();
    while !stop.load(Ordering::Relaxed) && !server.has_failed() {
        std::thread::sleep(CHECK_INTERVAL);
        watchdog.watch(Instant::now(), || {
            server.core_stats().iter().map(|core| core[Statistic::UptimeNs as usize]).collect()
        });
        if !warned && server.stats()[Statistic::RxTruncated as usize] > 0 {
            warned = true;
            eprintln!("linerate-server: warning: {FRAMES_CUT_OFF}");
        }
        let since = before.0.elapsed();
        if interval_s > 0 && since >= Duration::from_secs(interval_s) {
            let stats = server.stats();
            let line = interval_line(&stats, &before.1, since);
            say(&line);
            manager::status(&line);
            before = (Instant::now(), stats);
        }
    }
}

fn interval_line(now: &[u64; STAT_COUNT], before: &[u64; STAT_COUNT], elapsed: Duration) -> String {
    let grown: [u64; STAT_COUNT] = std::array::from_fn(|index| now[index].saturating_sub(before[index]));
    let rate = |statistic: Statistic| grown[statistic as usize] as f64 / elapsed.as_secs_f64();
    let (gets, puts) = (rate(Statistic::Gets), rate(Statistic::Puts));
    let ops = gets + puts + rate(Statistic::Deletes);
    format!(
        "{gets:.0} get/s  {puts:.0} put/s  {ops:.0} ops/s  hit ratio {}  {} records  {} sessions{}",
        hit_ratio(&grown),
        now[Statistic::Records as usize],
        now[Statistic::Sessions as usize],
        losses(&grown),
    )
}

fn total_line(totals: &[u64; STAT_COUNT]) -> String {
    let total = |statistic: Statistic| totals[statistic as usize];
    format!(
        "total: {} gets, {} puts, {} deletes, hit ratio {}, {} replays, {} sessions, {} records{}",
        total(Statistic::Gets),
        total(Statistic::Puts),
        total(Statistic::Deletes),
        hit_ratio(totals),
        total(Statistic::Replays),
        total(Statistic::SessionsOpened),
        total(Statistic::Records),
        losses(totals),
    )
}

fn hit_ratio(stats: &[u64; STAT_COUNT]) -> String {
    match stats[Statistic::Gets as usize] {
        0 => "-".to_owned(),
        gets => format!("{:.4}", stats[Statistic::Hits as usize] as f64 / gets as f64),
    }
}

/// What was lost or refused, by layer and reason; empty when nothing was.
fn losses(stats: &[u64; STAT_COUNT]) -> String {
    let mut parts = Vec::new();
    let kernel = [
        (Statistic::RxOverflowDrops, "overflowed the receive queue"),
        (Statistic::RxTruncated, "were cut off"),
        (Statistic::RxBadFrames, "had broken headers"),
        (Statistic::RxBadChecksums, "had wrong checksums"),
        (Statistic::RxFragments, "were fragments"),
        (Statistic::RxIpv6, "were IPv6"),
        (Statistic::RxWrongDestination, "were for another address"),
        (Statistic::RxHandedOver, "came in at another core's queue"),
        (Statistic::RxHandoverDrops, "could not be handed over"),
        (Statistic::TxDropped, "could not be sent"),
        (Statistic::NoSpace, "puts found no space"),
        (Statistic::WrongCore, "operations came to the wrong core"),
        (Statistic::Moved, "operations came to the wrong node"),
        (Statistic::SessionsRefused, "sessions were refused"),
        (Statistic::ConnectionsRefused, "connections were refused"),
        (Statistic::ConnectionsDropped, "connections were dropped"),
    ];
    for (statistic, what) in kernel {
        let count = stats[statistic as usize];
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    let dropped = drops_in_words(stats);
    if !dropped.is_empty() {
        parts.push(format!("dropped: {dropped}"));
    }
    if parts.is_empty() { String::new() } else { format!("  ({})", parts.join("; ")) }
}
