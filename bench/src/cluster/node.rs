//! One node: does what the coordinator orders, on a machine or in a namespace, and leaves nothing behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use clap::Args;
use linerate_client::{ConnectError, Session, SessionConfig};
use linerate_dataplane::{
    Port,
    pin::{CoreList, allowed_cores},
};
use linerate_proto::wire::{STAT_COUNT, STAT_NAMES};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::{
    message::{CpuChoice, Event, Hello, Load, Measure, Order, Serve, ServerStatistics},
    pidfile::Process,
    sample::Reading,
};
use crate::{
    options::RunOptions,
    program,
    run::{CoreStatistics, Drawn, Together, run_with},
    watch::nic::{interface_towards, tune_status},
};

/// How often a node that waits looks whether its server is still there.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Longest time that a server may take to begin: it may have to take all of its memory from the system.
const SERVE_TIMEOUT: Duration = Duration::from_secs(180);

/// Time for a server to end by itself.
const SERVER_GRACE: Duration = Duration::from_secs(3);

/// Where CloudLab's machines say which interface is the control network's.
const CONTROL_INTERFACE: &str = "/var/emulab/boot/controlif";

/// Name of the PID file of a node, and of its server.
const NODE_PID: &str = "node.pid";
const SERVER_PID: &str = "server.pid";

/// Name of the server's log.
pub(crate) const SERVER_LOG: &str = "server.log";

/// Options of a node process.
#[derive(Clone, Debug, Args)]
pub struct NodeOptions {
    /// Folder for its PID files and the log of its server
    #[arg(long)]
    pub folder: PathBuf,
    /// Programs whose checksums are told
    #[arg(long)]
    pub sum: Vec<PathBuf>,
}

/// Is a node until its standard input ends.
///
/// # Errors
/// When its folder cannot be written; everything else is told to the coordinator.
pub fn node(options: &NodeOptions, stop: &AtomicBool) -> anyhow::Result<()> {
    fs::create_dir_all(&options.folder)
        .with_context(|| format!("cannot create {}", options.folder.display()))?;
    let own = Process::find(std::process::id() as i32).context("/proc does not show this process")?;
    own.write(&options.folder.join(NODE_PID))?;
    let left = Left { folder: options.folder.clone(), server: Arc::default() };
    let orders = read_orders(left.clone());
    let mut node = Node { folder: &options.folder, orders, left, stop, interface: "lo".into() };
    tell(&Event::Hello(Box::new(hello(options)?)))?;
    let ended = node.obey();
    if let Err(error) = &ended {
        // A coordinator that is gone needs no telling.
        let _ = tell(&Event::Failed { error: format!("{error:#}") });
        eprintln!("linerate-bench: {error:#}");
        // It says when this node may go: until then its server can still be asked for.
        while node.orders.recv().is_ok() {}
    }
    node.left.clean_up();
    Ok(())
}

/// What has to go when the node does.
#[derive(Clone)]
struct Left {
    folder: PathBuf,
    server: Arc<Mutex<Option<Child>>>,
}

impl Left {
    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clean_up(&self) {
        // Held to the end: nobody is to wonder why the server is gone.
        let mut server = self.server();
        if let Some(child) = server.as_mut()
            && Process::find(child.id() as i32).is_none_or(|process| process.end(SERVER_GRACE))
        {
            let _ = child.wait();
            let _ = fs::remove_file(self.folder.join(SERVER_PID));
        }
        let _ = fs::remove_file(self.folder.join(NODE_PID));
        // What the process does until it ends finds no server, and does not miss it.
        *server = None;
    }
}

/// Reads orders until the input ends, and then ends the process whatever it is doing.
fn read_orders(left: Left) -> Receiver<Order> {
    let (send, orders) = channel();
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(order) => drop(send.send(order)),
                Err(error) => {
                    let error = format!("cannot understand the order `{line}`: {error}");
                    let _ = tell(&Event::Failed { error });
                }
            }
        }
        left.clean_up();
        std::process::exit(0);
    });
    orders
}

/// Says something to the coordinator.
fn tell(event: &Event) -> anyhow::Result<()> {
    let line = serde_json::to_string(event)? + "\n";
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).context("the coordinator is gone")
}

fn hello(options: &NodeOptions) -> anyhow::Result<Hello> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    Ok(Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        builds: options.sum.iter().map(|path| checksum(path)).collect::<anyhow::Result<_>>()?,
        host: read("/proc/sys/kernel/hostname"),
        kernel: read("/proc/sys/kernel/osrelease"),
        cores: physical_cores(&allowed_cores()?),
        pid: std::process::id() as i32,
        tune: tune_status(),
    })
}

/// How many of these CPUs are not the second hyper-thread of a core.
fn physical_cores(cpus: &[usize]) -> usize {
    let siblings = |cpu: &usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        fs::read_to_string(path).unwrap_or_else(|_| cpu.to_string())
    };
    cpus.iter().map(siblings).collect::<BTreeSet<_>>().len()
}

/// The checksum of a file as sha256sum(1) prints it.
pub(crate) fn checksum(path: &Path) -> anyhow::Result<String> {
    let output = Command::new("sha256sum").arg(path).stdin(Stdio::null()).output();
    let output = output.context("cannot run `sha256sum`: install the package coreutils")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let sum = text.split_whitespace().next().filter(|_| output.status.success());
    sum.map(str::to_owned).with_context(|| format!("cannot read the program {}", path.display()))
}

/// Nanoseconds since 1970 by this machine's clock.
pub(crate) fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// The moment that this machine's clock calls so.
fn instant_of(at_unix_ns: u64) -> Instant {
    Instant::now() + Duration::from_nanos(at_unix_ns.saturating_sub(unix_ns()))
}

struct Node<'a> {
    folder: &'a Path,
    orders: Receiver<Order>,
    left: Left,
    stop: &'a AtomicBool,
    /// Where its data goes in and out.
    interface: String,
}

impl Node<'_> {
    /// Follows orders until there are no more.
    fn obey(&mut self) -> anyhow::Result<()> {
        while let Some(order) = self.next()? {
            match order {
                Order::Tell => tell(&Event::Clock { unix_ns: unix_ns() })?,
                Order::Routes { to } => self.tell_routes(&to)?,
                Order::Serve(serve) => self.serve(serve)?,
                Order::Load(load) => self.load(load)?,
                Order::Measure(measure) => self.watch_server(measure)?,
                Order::Stored | Order::Ended(_) => {}
            }
        }
        Ok(())
    }

    /// The next order; `None` when this process was told to end.
    fn next(&self) -> anyhow::Result<Option<Order>> {
        loop {
            self.check_server()?;
            match self.orders.recv_timeout(LOOK_INTERVAL) {
                Ok(order) => return Ok(Some(order)),
                Err(RecvTimeoutError::Timeout) if !self.stop.load(Ordering::Relaxed) => {}
                Err(_) => return Ok(None),
            }
        }
    }

    fn tell_routes(&mut self, to: &[IpAddr]) -> anyhow::Result<()> {
        let interfaces =
            to.iter().map(|&addr| interface_towards(addr)).collect::<anyhow::Result<Vec<_>>>()?;
        if let Some(first) = interfaces.first() {
            self.interface.clone_from(first);
        }
        let control = fs::read_to_string(CONTROL_INTERFACE).ok();
        let control = control.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        tell(&Event::Routes { interfaces, control })
    }

    /// Starts the server and waits until it answers.
    fn serve(&self, serve: Serve) -> anyhow::Result<()> {
        let Serve { program, mut arguments, cpus, map, ping, is_tcp } = serve;
        let cpus = match cpus {
            CpuChoice::These(cpus) => cpus,
            CpuChoice::First(count) => {
                let allowed = allowed_cores()?;
                anyhow::ensure!(
                    count <= allowed.len(),
                    "servers.cores is {count}, but this machine has {} CPUs",
                    allowed.len()
                );
                allowed[..count].to_vec()
            }
        };
        arguments.extend(["--cores".to_owned(), CoreList::new(cpus)?.to_string()]);
        self.write_map(map, &mut arguments)?;
        let log_path = self.folder.join(SERVER_LOG);
        let log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
        let mut child = program::command(&program, None)
            .args(&arguments)
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let process = Process::find(child.id() as i32).context("the server ended at once")?;
        process.write(&self.folder.join(SERVER_PID))?;
        let stdout = child.stdout.take().context("a pipe was asked for")?;
        *self.left.server() = Some(child);
        let lines = copy_lines(stdout, log);
        let line = self.wait_for_line(&lines)?;
        thread::spawn(move || while lines.recv().is_ok() {});
        if let Some(addr) = ping {
            answers(&addr, is_tcp).with_context(|| format!("the server at {addr} does not answer"))?;
        }
        tell(&Event::Serving { line })
    }

    /// Waits until the server says that it serves.
    fn wait_for_line(&self, lines: &Receiver<String>) -> anyhow::Result<String> {
        let begun = Instant::now();
        while begun.elapsed() < SERVE_TIMEOUT {
            match lines.recv_timeout(LOOK_INTERVAL) {
                Ok(line) if line.contains("serving at") => return Ok(line),
                Ok(_) => continue,
                Err(RecvTimeoutError::Timeout) => {}
                // It is about to end: the pipe closes before that.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK_INTERVAL),
            }
            self.check_server()?;
        }
        anyhow::bail!("the server does not serve after {} s", SERVE_TIMEOUT.as_secs())
    }

    /// An error when there is a server and it has ended, with the last thing that it said.
    fn check_server(&self) -> anyhow::Result<()> {
        let mut server = self.left.server();
        let Some(status) = server.as_mut().map(Child::try_wait).transpose()?.flatten() else {
            return Ok(());
        };
        *server = None;
        let log = fs::read_to_string(self.folder.join(SERVER_LOG)).unwrap_or_default();
        match log.lines().rfind(|line| line.starts_with("linerate-server: ") && !line.contains("warning")) {
            Some(line) if status.code() == Some(2) => anyhow::bail!("{line}"),
            _ => anyhow::bail!("linerate-server ended by itself ({status})"),
        }
    }

    /// Writes the cluster map to a file and adds its path to arguments that end in `--cluster`.
    fn write_map(&self, map: Option<String>, arguments: &mut Vec<String>) -> anyhow::Result<()> {
        if let Some(map) = map {
            let path = self.folder.join("cluster.toml");
            fs::write(&path, map).with_context(|| format!("cannot write {}", path.display()))?;
            arguments.extend(["--cluster".to_owned(), path.display().to_string()]);
        }
        Ok(())
    }

    /// Samples a server.
    fn watch_server(&self, measure: Measure) -> anyhow::Result<()> {
        let pid = self.left.server().as_ref().context("there is no server to look at")?.id() as i32;
        let interface = self.interface.clone();
        let sampler = start_sampler(measure, vec![pid], interface, Arc::default());
        while !sampler.is_finished() {
            self.check_server()?;
            thread::sleep(LOOK_INTERVAL);
        }
        joined(sampler)?;
        tell(&Event::Done { report: None, servers: Vec::new() })
    }

    /// Runs the load of a client.
    fn load(&self, load: Load) -> anyhow::Result<()> {
        let mut arguments = load.arguments;
        self.write_map(load.map, &mut arguments)?;
        let options = RunOptions::of_arguments(&arguments)?;
        if let Some(cpus) = &load.cpus {
            let mut set = CpuSet::new();
            cpus.iter().try_for_each(|&cpu| set.set(cpu))?;
            sched_setaffinity(Pid::from_raw(0), &set).context("cannot choose CPUs")?;
        }
        let live = Arc::new(AtomicU64::new(0));
        let mut sampler = None;
        let (orders, stop, interface) = (&self.orders, self.stop, &self.interface);
        let wait = |wanted: fn(&Order) -> bool| wait_for(orders, stop, wanted);
        let mut stored = || {
            if load.stores {
                tell(&Event::Stored)
            } else {
                wait(|order| matches!(order, Order::Stored)).map(drop)
            }
        };
        let mut ready = || {
            tell(&Event::Ready)?;
            let Order::Measure(measure) = wait(|order| matches!(order, Order::Measure(_)))? else {
                unreachable!("only this is waited for")
            };
            let own = vec![std::process::id() as i32];
            sampler = Some(start_sampler(measure, own, interface.clone(), Arc::clone(&live)));
            Ok(instant_of(measure.at_unix_ns))
        };
        let mut ended = |acknowledged, unknown| {
            tell(&Event::Ended { acknowledged, unknown })?;
            match wait(|order| matches!(order, Order::Ended(_)))? {
                Order::Ended(elsewhere) => Ok(elsewhere),
                _ => unreachable!("only this is waited for"),
            }
        };
        let mut together = Together {
            live: &live,
            process: load.process,
            stores: load.stores,
            shares_cpus: load.shares_cpus,
            stored: &mut stored,
            ready: &mut ready,
            ended: &mut ended,
            statistics: Vec::new(),
        };
        let report = run_with(&options, stop, &mut Drawn::default(), Some(&mut together))?;
        let servers = together.statistics.iter().map(named).collect();
        if let Some(sampler) = sampler {
            joined(sampler)?;
        }
        tell(&Event::Done { report: Some(serde_json::to_value(report)?), servers })
    }
}

/// Waits for an order, past others.
fn wait_for(
    orders: &Receiver<Order>,
    stop: &AtomicBool,
    wanted: fn(&Order) -> bool,
) -> anyhow::Result<Order> {
    loop {
        match orders.recv_timeout(LOOK_INTERVAL) {
            Ok(Order::Tell) => tell(&Event::Clock { unix_ns: unix_ns() })?,
            Ok(order) if wanted(&order) => return Ok(order),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => {
                anyhow::ensure!(!stop.load(Ordering::Relaxed), "told to end");
            }
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the coordinator is gone"),
        }
    }
}

/// Copies lines to the log and to whoever listens.
fn copy_lines(from: impl io::Read + Send + 'static, mut log: File) -> Receiver<String> {
    let (send, lines): (Sender<String>, _) = channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            // A full disk does not end the run.
            let _ = writeln!(log, "{line}");
            let _ = send.send(line);
        }
    });
    lines
}

/// Whether every core of the server answers.
fn answers(addr: &str, is_tcp: bool) -> anyhow::Result<()> {
    let addr: SocketAddr = addr.to_socket_addrs()?.next().context("no address")?;
    let config = SessionConfig { window: 1, ..SessionConfig::default() };
    if is_tcp {
        pinged(Session::connect_tcp(&[addr], config))
    } else {
        pinged(Session::connect_udp(&[addr], config))
    }
}

fn pinged<P: Port>(session: Result<Session<P>, ConnectError>) -> anyhow::Result<()> {
    let pongs = session?.ping(&mut |_| {})?;
    anyhow::ensure!(pongs.iter().all(Option::is_some), "a core does not answer");
    Ok(())
}

/// Takes a sample of each interval of the time that is counted and tells it.
fn start_sampler(
    measure: Measure,
    processes: Vec<i32>,
    interface: String,
    live: Arc<AtomicU64>,
) -> JoinHandle<anyhow::Result<()>> {
    let from = instant_of(measure.at_unix_ns) + Duration::from_secs_f64(measure.warmup_s);
    let count = intervals(measure.duration_s);
    let interval = Duration::from_secs_f64(measure.duration_s) / count;
    thread::spawn(move || {
        let read = |at: Instant| {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            Reading::take(&processes, &interface, live.load(Ordering::Relaxed))
        };
        let mut before = read(from)?;
        for index in 0..count {
            let now = read(from + interval * (index + 1))?;
            tell(&Event::Sample(now.since(&before, index)))?;
            before = now;
        }
        Ok(())
    })
}

/// Intervals that a measurement is cut into: of a second, as nearly as it goes.
pub(crate) fn intervals(duration_s: f64) -> u32 {
    (duration_s.round() as u32).max(1)
}

fn joined(sampler: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    sampler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn named(core: &CoreStatistics) -> ServerStatistics {
    let named = |values: &[u64; STAT_COUNT]| -> BTreeMap<String, u64> {
        STAT_NAMES.iter().map(|&name| name.to_owned()).zip(values.iter().copied()).collect()
    };
    ServerStatistics { addr: core.addr.to_string(), before: named(&core.before), after: named(&core.after) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_is_cut_into_seconds() {
        for (duration, count) in [(0.05, 1), (0.4, 1), (1.0, 1), (2.4, 2), (5.0, 5), (86_400.0, 86_400)] {
            assert_eq!(intervals(duration), count, "{duration}");
        }
    }

    #[test]
    fn cores_are_counted() {
        let cpus = allowed_cores().unwrap();
        assert!((1..=cpus.len()).contains(&physical_cores(&cpus)));
        assert_eq!(physical_cores(&[usize::MAX, usize::MAX - 1]), 2, "a CPU that tells nothing is a core");
    }

    #[test]
    fn checksums_are_those_of_sha256() {
        let sum = checksum(Path::new("/dev/null")).unwrap();
        assert_eq!(sum, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert!(checksum(Path::new("/nothing")).is_err());
    }
}
