//! The run from beginning to end: nodes up, servers serving, records stored, all clients at once, everything collected, and
//! nothing left, whatever happens in between.

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use linerate_dataplane::{
    pin::allowed_cores,
    transport::{Transport, Wanted},
};
use linerate_proto::cluster::{ClusterSpec, Member};
use serde_json::Value;

use super::{
    ground::{Ground, Programs},
    message::{CpuChoice, Event, Hello, Load, Measure, Order, Sample, Serve, ServerStatistics},
    node::{SERVER_LOG, intervals, unix_ns},
    report::{ClusterReport, ClusterResult, NodeFacts, RunFacts, SeriesPoint},
    spec::{ClusterRunOptions, Launcher, Role, Spec, plan},
};
use crate::{
    check::Elsewhere,
    output::{Environment, json, write_file},
    results::new_folder,
    run::progress_bar,
    wire::rate::frame_len_max,
};

/// Where results are kept unless said otherwise.
const RESULTS: &str = "cluster-results";

/// Longest wait for a node process to say its name, and for a short question.
const HELLO_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest wait for servers, which may have to take all their memory from the system.
const SERVE_TIMEOUT: Duration = Duration::from_secs(200);

/// Longest wait for the records: some million are stored in a second, also by a build without optimisation in a minute.
const STORE_TIMEOUT: Duration = Duration::from_secs(1_800);

/// Longest wait for clients to draw their operations and to connect.
const READY_TIMEOUT: Duration = Duration::from_secs(300);

/// Time beyond the load itself until everything of it must have been told.
const MEASURE_SLACK: Duration = Duration::from_secs(60);

/// From the order to begin until the beginning, at least; some round trips to the farthest node more.
const LEAD_MIN: Duration = Duration::from_millis(300);

/// Times that a clock is asked; the quickest answer tells most.
const CLOCK_QUESTIONS: usize = 9;

/// Time for node processes to end by themselves, with their servers.
const END_GRACE: Duration = Duration::from_secs(10);

/// How often it is looked whether somebody wants this to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Measures what the options ask for. A run that does not come to its end is reported as far as it came, with the reason in
/// the report.
///
/// # Errors
/// What is wrong with the options, or what kept the first run from beginning.
pub fn cluster_run(options: &ClusterRunOptions, stop: &AtomicBool) -> anyhow::Result<ClusterResult> {
    let points = plan(options)?;
    let [(_, first), ..] = &points[..] else { anyhow::bail!("nothing to run") };
    let programs = Programs::find(first)?;
    let folder = result_folder(options, &first.name)?;
    if let [(_, spec)] = &points[..] {
        return Ok(ClusterResult::One(Box::new(run_point(spec, &programs, &folder, stop)?)));
    }
    let (mut reports, mut failure) = (Vec::new(), None);
    for (label, spec) in &points {
        let folder = folder.join(label.replace(' ', "-"));
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        eprintln!("{label}:");
        match run_point(spec, &programs, &folder, stop) {
            Ok(report) => {
                failure.clone_from(&report.failure);
                reports.push(SeriesPoint { label: label.clone(), report });
            }
            Err(error) => failure = Some(format!("{error:#}")),
        }
        if failure.is_some() {
            break;
        }
    }
    let series = options.preset.clone().unwrap_or_else(|| first.name.clone());
    let folder_name = folder.display().to_string();
    let result = ClusterResult::Series {
        series,
        partial: failure.is_some(),
        failure,
        folder: folder_name,
        points: reports,
    };
    write_file(&folder.join("report.json"), &json(&result)?)?;
    Ok(result)
}

fn result_folder(options: &ClusterRunOptions, name: &str) -> anyhow::Result<PathBuf> {
    let Some(folder) = &options.out else {
        let date = Environment::look(SystemTime::now()).date;
        let date: String =
            date.chars().filter(|char| char.is_ascii_digit() || "-T".contains(*char)).collect();
        return Ok(new_folder(Path::new(RESULTS), &format!("{date}-{name}"))?);
    };
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let is_empty = folder.read_dir().is_ok_and(|mut entries| entries.next().is_none());
    anyhow::ensure!(is_empty, "--out: {} holds something already, give a new folder", folder.display());
    Ok(folder.clone())
}

/// One run, kept in `folder`.
fn run_point(
    spec: &Spec,
    programs: &Programs,
    folder: &Path,
    stop: &AtomicBool,
) -> anyhow::Result<ClusterReport> {
    // Absolute, as the nodes need not be where this process is.
    let folder = fs::canonicalize(folder).with_context(|| format!("cannot use {}", folder.display()))?;
    let environment = Environment::look(SystemTime::now());
    let count = spec.nodes.len();
    say(&format!("preparing {count} nodes ({})", spec.launcher.name()));
    let mut cluster = Cluster::start(spec, programs, &folder, stop)?;
    let outcome = cluster.measure(programs);
    say("collecting");
    let complaints = cluster.end();
    for complaint in &complaints {
        eprintln!("linerate-bench: warning: {complaint}");
    }
    let failure = outcome.err().map(|error| format!("{error:#}"));
    let shown = env::current_dir().ok().and_then(|here| folder.strip_prefix(here).ok().map(Path::to_owned));
    let report = cluster.report(failure, shown.unwrap_or_else(|| folder.clone()), environment);
    write_file(&folder.join("report.json"), &json(&report)?)?;
    Ok(report)
}

/// A line for whoever waits.
fn say(what: &str) {
    eprintln!("cluster: {what}");
}

/// What comes from a node.
enum Said {
    Event(Event),
    /// Something that is no event.
    Noise(String),
    /// Nothing any more.
    Gone,
}

/// A node and what is known of it.
struct Running {
    name: String,
    role: Role,
    folder: PathBuf,
    child: Child,
    /// Dropped to end it.
    stdin: Option<ChildStdin>,
    samples_log: File,
    hello: Option<Hello>,
    /// By how much its clock is ahead, in nanoseconds.
    offset_ns: i64,
    addr: Option<SocketAddr>,
    samples: Vec<Sample>,
    /// Puts acknowledged and of unknown outcome.
    writes: Option<(u64, u64)>,
    is_done: bool,
    report: Option<Value>,
}

/// All nodes of a run.
struct Cluster<'a> {
    spec: Arc<Spec>,
    folder: &'a Path,
    ground: Ground,
    nodes: Vec<Running>,
    said: Receiver<(usize, Said)>,
    stop: &'a AtomicBool,
    map: Option<ClusterSpec>,
    servers: Vec<ServerStatistics>,
    /// Versions that the clients of this machine share.
    versions: Option<PathBuf>,
    /// What the order to begin may take to reach every node.
    lead: Duration,
}

impl<'a> Cluster<'a> {
    /// Starts all node processes.
    fn start(
        spec: &Spec,
        programs: &Programs,
        folder: &'a Path,
        stop: &'a AtomicBool,
    ) -> anyhow::Result<Self> {
        let ground = Ground::prepare(spec, programs)?;
        let (send, said) = channel();
        let mut cluster = Self {
            spec: Arc::new(spec.clone()),
            folder,
            ground,
            nodes: Vec::new(),
            said,
            stop,
            map: None,
            servers: Vec::new(),
            versions: None,
            lead: LEAD_MIN,
        };
        for (index, node) in spec.nodes.iter().enumerate() {
            anyhow::ensure!(!stop.load(Ordering::Relaxed), "interrupted");
            let folder = folder.join(&node.name);
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
            let create = |name: &str| {
                let path = folder.join(name);
                File::create(&path).with_context(|| format!("cannot write {}", path.display()))
            };
            let samples_log = create("samples.jsonl")?;
            let mut child = cluster.ground.spawn(index, spec, programs, &folder, create("node.log")?)?;
            let stdin = child.stdin.take();
            let stdout = child.stdout.take().context("a pipe was asked for")?;
            listen(index, stdout, send.clone());
            cluster.nodes.push(Running {
                name: node.name.clone(),
                role: node.role,
                folder,
                child,
                stdin,
                samples_log,
                hello: None,
                offset_ns: 0,
                addr: None,
                samples: Vec::new(),
                writes: None,
                is_done: false,
                report: None,
            });
        }
        Ok(cluster)
    }

    /// Everything from the first word of the nodes to the last.
    fn measure(&mut self, programs: &Programs) -> anyhow::Result<()> {
        self.meet()?;
        self.set_clocks()?;
        self.find_places()?;
        self.check_routes()?;
        self.start_servers(programs)?;
        self.start_clients()?;
        self.run_load()
    }

    /// Waits until all nodes are there, and looks whether they are the same program.
    fn meet(&mut self) -> anyhow::Result<()> {
        self.until(
            "say that it is there",
            HELLO_TIMEOUT,
            |_| true,
            |node, event| match event {
                Event::Hello(hello) => {
                    node.hello = Some(*hello);
                    true
                }
                _ => false,
            },
        )?;
        let first = self.nodes[0].hello.as_ref().map(|hello| (self.nodes[0].name.clone(), hello.clone()));
        for node in &self.nodes {
            let (Some((first_name, first)), Some(hello)) = (&first, &node.hello) else { continue };
            check_programs((&node.name, hello), (first_name, first))?;
            if let Some(tune) = &hello.tune {
                write_file(&node.folder.join("tune.json"), &json(tune)?)?;
            }
        }
        let fewest = |role: Role| {
            let nodes = self.nodes.iter().filter(|node| node.role == role);
            nodes.filter_map(|node| Some(node.hello.as_ref()?.cores)).min().unwrap_or(1)
        };
        let (servers, clients) = (fewest(Role::Server), fewest(Role::Client));
        Arc::make_mut(&mut self.spec).settle(servers, clients);
        write_file(&self.folder.join("spec.toml"), &toml::to_string(&*self.spec)?)?;
        Ok(())
    }

    /// Finds out by how much the clock of each node is ahead.
    fn set_clocks(&mut self) -> anyhow::Result<()> {
        for index in 0..self.nodes.len() {
            let mut best: Option<(u64, i64)> = None;
            for _ in 0..CLOCK_QUESTIONS {
                let asked = unix_ns();
                self.order(index, &Order::Tell)?;
                let mut there = 0;
                self.until(
                    "tell its time",
                    HELLO_TIMEOUT,
                    |at| at == index,
                    |_, event| match event {
                        Event::Clock { unix_ns } => {
                            there = unix_ns;
                            true
                        }
                        _ => false,
                    },
                )?;
                let answered = unix_ns();
                let answer = clock_offset(asked, there, answered);
                best = Some(best.map_or(answer, |best| best.min(answer)));
            }
            let (took_ns, offset_ns) = best.unwrap_or_default();
            self.lead = self.lead.max(LEAD_MIN + Duration::from_nanos(took_ns) * 4);
            let node = &mut self.nodes[index];
            node.offset_ns = offset_ns;
            check_skew(&node.name, offset_ns, self.spec.clock_skew_max)?;
        }
        Ok(())
    }

    /// Decides where each node is, and the cluster map.
    fn find_places(&mut self) -> anyhow::Result<()> {
        let ports = self.ground.ports(&self.spec)?;
        let mut members = Vec::new();
        for (index, node) in self.spec.nodes.iter().enumerate() {
            let ip = self.ground.addr(index, node)?;
            let port = match node.role {
                Role::Server => ports[members.len()],
                Role::Client => 0,
            };
            let addr = SocketAddr::new(ip, port);
            self.nodes[index].addr = Some(addr);
            if node.role == Role::Server {
                members.push(Member { id: members.len() as u64 + 1, addr, cores: self.spec.servers.cores });
            }
        }
        let map = ClusterSpec::new(1, self.spec.placement, members).context("servers")?;
        write_file(&self.folder.join("cluster.toml"), map.to_string())?;
        self.map = Some(map);
        Ok(())
    }

    /// Asks each node by which interface it reaches those that it has to do with. Load on CloudLab's control network is
    /// against its rules.
    fn check_routes(&mut self) -> anyhow::Result<()> {
        let addrs: Vec<_> = self.nodes.iter().filter_map(|node| Some((node.role, node.addr?.ip()))).collect();
        for index in 0..self.nodes.len() {
            let role = self.nodes[index].role;
            let to = addrs.iter().filter(|(other, _)| *other != role).map(|(_, ip)| *ip).collect();
            self.order(index, &Order::Routes { to })?;
        }
        let mut refused = None;
        self.until(
            "tell its routes",
            HELLO_TIMEOUT,
            |_| true,
            |node, event| match event {
                Event::Routes { interfaces, control } => {
                    refused = refused
                        .take()
                        .or_else(|| check_control(&node.name, &interfaces, control.as_deref()).err());
                    true
                }
                _ => false,
            },
        )?;
        refused.map_or(Ok(()), Err)
    }

    fn start_servers(&mut self, programs: &Programs) -> anyhow::Result<()> {
        let Cpus { cpus, .. } = self.cpus()?;
        say(&format!("starting {} servers", self.spec.servers.count));
        let spec = Arc::clone(&self.spec);
        let transport = spec.servers.transport;
        let map = self.map.as_ref().map(ToString::to_string);
        let servers: Vec<_> = self.of(Role::Server).collect();
        for (number, &index) in servers.iter().enumerate() {
            let arguments = [
                format!("--node-id={}", number + 1),
                format!("--memory={}B", spec.servers.memory.as_u64()),
                format!("--transport={}", transport.name()),
                format!("--at-capacity={}", spec.servers.at_capacity),
                "--idle=epoll".to_owned(),
                // The network is the experiment's own.
                "--insecure-no-auth".to_owned(),
            ];
            let ping = match transport {
                Wanted::Is(Transport::Udp | Transport::Tcp) => self.nodes[index].addr,
                // Rings see nothing of what their own host sends.
                _ => None,
            };
            let order = Order::Serve(Serve {
                program: self.ground.server_program(programs),
                arguments: arguments.into(),
                cpus: match &cpus {
                    Some(cpus) => CpuChoice::These(cpus[index].clone()),
                    None => CpuChoice::First(spec.servers.cores.into()),
                },
                map: map.clone(),
                ping: ping.map(|addr| addr.to_string()),
                is_tcp: transport == Wanted::Is(Transport::Tcp),
            });
            self.order(index, &order)?;
        }
        let is_server: Vec<_> = self.nodes.iter().map(|node| node.role == Role::Server).collect();
        let serving = |_: &mut Running, event| matches!(event, Event::Serving { .. });
        self.until("have its server answer", SERVE_TIMEOUT, |index| is_server[index], serving)
    }

    fn start_clients(&mut self) -> anyhow::Result<()> {
        let Cpus { cpus, is_crowded } = self.cpus()?;
        let spec = Arc::clone(&self.spec);
        let mut shared = Vec::new();
        if spec.run.check && spec.launcher.is_here() {
            let memory = Path::new("/dev/shm");
            let folder = if memory.is_dir() { memory } else { self.folder };
            let path = folder.join(format!("linerate-versions-{:016x}", rand::random::<u64>()));
            shared.push(format!("--check-shared={}", path.display()));
            self.versions = Some(path);
        }
        let clients: Vec<_> = self.of(Role::Client).collect();
        say(&format!("storing {} records", spec.run.records));
        for (number, &index) in clients.iter().enumerate() {
            let load = Order::Load(Load {
                arguments: [spec.client_arguments(number), shared.clone()].concat(),
                cpus: cpus.as_ref().map(|cpus| cpus[index].clone()),
                map: self.map.as_ref().map(ToString::to_string),
                // Those that share a check get their numbers from there.
                process: if shared.is_empty() { number as u16 + 1 } else { 0 },
                stores: number == 0,
                shares_cpus: is_crowded,
            });
            self.order(index, &load)?;
        }
        let [first, others @ ..] = &clients[..] else { anyhow::bail!("clients.count: there is none") };
        let stored = |_: &mut Running, event| matches!(event, Event::Stored);
        self.until("store the records", STORE_TIMEOUT, |index| index == *first, stored)?;
        for &index in others {
            self.order(index, &Order::Stored)?;
        }
        let ready = |_: &mut Running, event| matches!(event, Event::Ready);
        self.until("get ready", READY_TIMEOUT, |index| clients.contains(&index), ready)?;
        // Everybody has it open: without a name nothing can be left of it.
        self.forget_versions();
        say("ready");
        Ok(())
    }

    /// Has all begin at one instant, and waits for what they have to tell.
    fn run_load(&mut self) -> anyhow::Result<()> {
        let spec = Arc::clone(&self.spec);
        let at = unix_ns() + self.lead.as_nanos() as u64;
        for index in 0..self.nodes.len() {
            let at_unix_ns = at.saturating_add_signed(self.nodes[index].offset_ns);
            let (warmup_s, duration_s) = (spec.run.warmup, spec.run.duration);
            self.order(index, &Order::Measure(Measure { at_unix_ns, warmup_s, duration_s }))?;
        }
        let seconds = self.lead + Duration::from_secs_f64(spec.run.warmup + spec.run.duration);
        let count = intervals(spec.run.duration);
        say(&format!("measuring for {} s", spec.run.duration));
        let bar = progress_bar(count.into(), "measuring");
        let clients: Vec<_> = self.of(Role::Client).collect();
        let mut told = vec![(0, 0.0); count as usize];
        let measured = self.until(
            "end its load",
            seconds + MEASURE_SLACK,
            |_| true,
            |node, event| match event {
                Event::Sample(sample) if node.role == Role::Client => {
                    if let Some((nodes, ops)) = told.get_mut(sample.index as usize) {
                        *nodes += 1;
                        *ops += sample.ops as f64 / sample.seconds;
                        if *nodes == clients.len() {
                            bar.set_position(u64::from(sample.index) + 1);
                            bar.set_message(format!("{:.2} Mop/s", *ops / 1e6));
                        }
                    }
                    false
                }
                Event::Ended { acknowledged, unknown } => {
                    node.writes = Some((acknowledged, unknown));
                    true
                }
                Event::Done { .. } => node.role == Role::Server,
                _ => false,
            },
        );
        bar.finish_and_clear();
        measured?;
        self.tell_ended(&clients)?;
        let mut servers = Vec::new();
        self.until(
            "report",
            MEASURE_SLACK * 2,
            |index| clients.contains(&index),
            |node, event| match event {
                Event::Done { report, servers: told } => {
                    node.report = report;
                    node.is_done = true;
                    if servers.is_empty() {
                        servers = told;
                    }
                    true
                }
                _ => false,
            },
        )?;
        self.servers = servers;
        for node in self.nodes.iter().filter(|node| node.role == Role::Client) {
            write_file(&node.folder.join("result.json"), &json(&node.report)?)?;
        }
        for &index in &clients {
            if let Some(failure) = self.nodes[index].report.as_ref().and_then(why_partial) {
                return Err(self.failure(index, failure));
            }
        }
        self.check_frames()
    }

    /// Tells all clients that nothing is in flight any more, and who counts up the writes.
    fn tell_ended(&mut self, clients: &[usize]) -> anyhow::Result<()> {
        let is_shared = self.spec.launcher.is_here() || clients.len() == 1;
        for (number, &index) in clients.iter().enumerate() {
            let elsewhere = if is_shared {
                Elsewhere::Nobody
            } else if number > 0 {
                Elsewhere::Audits
            } else {
                let others = clients[1..].iter().filter_map(|&other| self.nodes[other].writes);
                let (acknowledged, unknown) =
                    others.fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
                Elsewhere::Counted { acknowledged, unknown }
            };
            self.order(index, &Order::Ended(elsewhere))?;
        }
        Ok(())
    }

    /// Whether virtual links have carried real frames.
    fn check_frames(&self) -> anyhow::Result<()> {
        if self.spec.launcher != Launcher::Netns {
            return Ok(());
        }
        let mtu = self.spec.network.mtu;
        for node in &self.nodes {
            let (bytes, frames) = node
                .samples
                .iter()
                .fold((0, 0), |sum, sample| (sum.0 + sample.tx_bytes, sum.1 + sample.tx_frames));
            let mean = bytes as f64 / frames.max(1) as f64;
            anyhow::ensure!(
                mean <= frame_len_max(mtu) as f64,
                "node {}: frames of {mean:.0} bytes on average left by a link with an MTU of {mtu}, so this kernel sends trains whole \
                 although the interface was told not to",
                node.name
            );
        }
        Ok(())
    }

    /// The CPUs of each node where all share this machine's, servers first, and whether there are too few.
    fn cpus(&self) -> anyhow::Result<Cpus> {
        if !self.spec.launcher.is_here() {
            return Ok(Cpus { cpus: None, is_crowded: false });
        }
        let allowed = allowed_cores().context("cannot tell which CPUs this process may use")?;
        let cores = usize::from(self.spec.servers.cores);
        anyhow::ensure!(
            cores <= allowed.len(),
            "servers.cores: {cores} is not allowed, as this machine has {} CPUs",
            allowed.len()
        );
        let threads = usize::from(self.spec.clients.threads);
        let mut next = allowed.iter().copied().cycle();
        let of = |node: &Running| match node.role {
            Role::Server => cores,
            Role::Client => threads,
        };
        let all: usize = self.nodes.iter().map(of).sum();
        // Servers come first among the nodes.
        let cpus = self.nodes.iter().map(|node| {
            let mut cpus: Vec<_> = next.by_ref().take(of(node)).collect();
            if node.role == Role::Client {
                cpus.sort_unstable();
                cpus.dedup();
            }
            cpus
        });
        let cpus = cpus.collect();
        Ok(Cpus { cpus: Some(cpus), is_crowded: all > allowed.len() })
    }

    fn of(&self, role: Role) -> impl Iterator<Item = usize> {
        self.nodes.iter().enumerate().filter(move |(_, node)| node.role == role).map(|(index, _)| index)
    }

    /// Orders a node to do something.
    fn order(&mut self, index: usize, order: &Order) -> anyhow::Result<()> {
        let line = serde_json::to_string(order)? + "\n";
        let written = self.nodes[index].stdin.as_mut().map(|stdin| stdin.write_all(line.as_bytes()));
        match written {
            Some(Ok(())) => Ok(()),
            // Why it is gone is among what it has said.
            _ => {
                let nobody = |_: &mut Running, _| false;
                self.until("take an order", END_GRACE, |at| at == index, nobody)
            }
        }
    }

    /// Waits until `take` has accepted an event of each node that is `wanted`.
    fn until(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(usize) -> bool,
        mut take: impl FnMut(&mut Running, Event) -> bool,
    ) -> anyhow::Result<()> {
        let mut waiting: Vec<_> = (0..self.nodes.len()).filter(|&index| wanted(index)).collect();
        let deadline = Instant::now() + limit;
        while let Some(&late) = waiting.first() {
            anyhow::ensure!(!self.stop.load(Ordering::Relaxed), "interrupted");
            let (index, said) = match self.said.recv_timeout(LOOK_INTERVAL) {
                Ok(said) => said,
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => continue,
                Err(_) => {
                    return Err(self.failure(late, &format!("did not {what} within {} s", limit.as_secs())));
                }
            };
            let event = match said {
                Said::Event(event) => event,
                // What a login shell prints before the node has the word.
                Said::Noise(_) if self.nodes[index].hello.is_none() => continue,
                Said::Noise(line) => {
                    return Err(self.failure(index, &format!("said `{line}`, which is no event")));
                }
                Said::Gone => return Err(self.gone(index)),
            };
            if let Event::Failed { error } = &event {
                return Err(self.failure(index, error));
            }
            let node = &mut self.nodes[index];
            if let Event::Sample(sample) = &event {
                writeln!(node.samples_log, "{}", serde_json::to_string(sample)?)
                    .context("cannot keep a sample")?;
                node.samples.push(sample.clone());
            }
            if take(node, event) {
                waiting.retain(|&other| other != index);
            }
        }
        Ok(())
    }

    /// What is wrong with a node, and where more is to be read.
    fn failure(&self, index: usize, what: &str) -> anyhow::Error {
        let node = &self.nodes[index];
        let log = node.folder.join(if what.contains("linerate-server") { SERVER_LOG } else { "node.log" });
        anyhow::anyhow!("node {} ({}): {what}; its log is {}", node.name, node.role.name(), log.display())
    }

    /// A node whose output has ended.
    fn gone(&mut self, index: usize) -> anyhow::Error {
        let node = &mut self.nodes[index];
        let asked = Instant::now();
        let mut status = None;
        while status.is_none() && asked.elapsed() < END_GRACE {
            status = node.child.try_wait().ok().flatten();
            thread::sleep(Duration::from_millis(5));
        }
        let status = status.map_or_else(|| "its output has ended".to_owned(), |status| status.to_string());
        let log = fs::read_to_string(node.folder.join("node.log")).unwrap_or_default();
        let is_reason = |line: &&str| !line.is_empty() && !line.to_lowercase().contains("warning");
        let last = log.lines().map(str::trim).rfind(is_reason);
        let last = last.map(|line| format!(": {line}")).unwrap_or_default();
        self.failure(index, &format!("ended before its time ({status}){last}"))
    }

    fn forget_versions(&mut self) {
        if let Some(path) = self.versions.take() {
            let _ = fs::remove_file(path);
        }
    }

    /// Ends all nodes, and what they have left; returns what could not be done. Nothing happens the second time.
    fn end(&mut self) -> Vec<String> {
        self.forget_versions();
        for node in &mut self.nodes {
            node.stdin = None;
        }
        let mut complaints = Vec::new();
        let deadline = Instant::now() + END_GRACE;
        for (node, planned) in self.nodes.iter_mut().zip(&self.spec.nodes) {
            let mut is_gone = false;
            while !is_gone && Instant::now() < deadline {
                is_gone = !matches!(node.child.try_wait(), Ok(None));
                if !is_gone {
                    thread::sleep(Duration::from_millis(5));
                }
            }
            if let Some(complaint) = self.ground.tidy(planned, &node.folder) {
                complaints.push(format!("node {}: {complaint}", node.name));
            }
            if !is_gone {
                let _ = node.child.kill();
            }
            let _ = node.child.wait();
        }
        complaints
    }

    fn report(&self, failure: Option<String>, folder: PathBuf, environment: Environment) -> ClusterReport {
        let facts = |node: &'_ Running| NodeFacts {
            name: "",
            role: node.role,
            host: node.hello.as_ref().map(|hello| hello.host.clone()),
            kernel: node.hello.as_ref().map(|hello| hello.kernel.clone()),
            addr: node.addr.map(|addr| match node.role {
                Role::Server => addr.to_string(),
                Role::Client => addr.ip().to_string(),
            }),
            clock_offset_ms: node.offset_ns as f64 / 1e6,
            samples: &[],
            report: None,
            tune: node.hello.as_ref().and_then(|hello| hello.tune.clone()),
        };
        let nodes = self.nodes.iter().map(|node| NodeFacts {
            name: &node.name,
            samples: &node.samples,
            report: node.report.as_ref(),
            ..facts(node)
        });
        ClusterReport::of(RunFacts {
            spec: &self.spec,
            map: self.map.as_ref(),
            nodes: nodes.collect(),
            servers: &self.servers,
            failure,
            shared_cpus: self.cpus().is_ok_and(|cpus| cpus.is_crowded),
            folder: folder.display().to_string(),
            environment,
        })
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Why a client's report is not of all that was asked for: it was interrupted, or has lost a port.
fn why_partial(report: &Value) -> Option<&str> {
    report["failure"].as_str()
}

/// The CPUs of all nodes.
struct Cpus {
    cpus: Option<Vec<Vec<usize>>>,
    is_crowded: bool,
}

/// Reads what a node says until it says nothing any more.
fn listen(index: usize, stdout: ChildStdout, send: Sender<(usize, Said)>) {
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let said = serde_json::from_str(&line).map_or(Said::Noise(line), Said::Event);
            if send.send((index, said)).is_err() {
                return;
            }
        }
        let _ = send.send((index, Said::Gone));
    });
}

/// How long an answer took, and by how much the clock that gave it is ahead if it gave it half-way.
fn clock_offset(asked_ns: u64, there_ns: u64, answered_ns: u64) -> (u64, i64) {
    let took = answered_ns.saturating_sub(asked_ns);
    (took, there_ns.wrapping_sub(asked_ns + took / 2).cast_signed())
}

fn check_skew(node: &str, offset_ns: i64, max_s: f64) -> anyhow::Result<()> {
    let offset_s = offset_ns as f64 / 1e9;
    anyhow::ensure!(
        offset_s.abs() <= max_s,
        "node {node}: its clock is {:.3} s {} that of the coordinator, clock_skew_max allows {max_s} s: let chrony or ntpd set it",
        offset_s.abs(),
        if offset_s > 0.0 { "ahead of" } else { "behind" }
    );
    Ok(())
}

/// Whether a node runs the same programs as this one and as another.
fn check_programs((name, hello): (&str, &Hello), (other, first): (&str, &Hello)) -> anyhow::Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    anyhow::ensure!(
        hello.version == own,
        "node {name}: linerate-bench is version {} there and {own} here, copy = true brings the same to all",
        hello.version
    );
    anyhow::ensure!(
        hello.builds == first.builds,
        "node {name}: linerate-bench or linerate-server is another build than on node {other}, copy = true brings the same to all"
    );
    Ok(())
}

/// Whether none of the interfaces is the control network's.
fn check_control(node: &str, interfaces: &[String], control: Option<&str>) -> anyhow::Result<()> {
    match control.filter(|control| interfaces.iter().any(|interface| interface == control)) {
        None => Ok(()),
        Some(control) => anyhow::bail!(
            "node {node}: the other nodes are reached over {control}, the interface of the control network, on which load is \
             not allowed: give each node its addr in the experiment's network"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Report, tests::report};

    /// Goal: the difference of two clocks is found although the question takes time. Method: answers half-way, at once and
    /// late, by clocks that are ahead and behind.
    #[test]
    fn clocks_are_compared() {
        for (asked, there, answered, expected) in [
            (1_000, 1_050, 1_100, (100, 0)),
            (1_000, 6_050, 1_100, (100, 5_000)),
            (10_000, 5_050, 10_100, (100, -5_000)),
            (1_000, 1_000, 1_100, (100, -50)),
            (1_000, 1_100, 1_100, (100, 50)),
            (u64::MAX, 0, u64::MAX, (0, 1)),
        ] {
            assert_eq!(clock_offset(asked, there, answered), expected);
        }
        for (offset_ns, max_s, good) in [
            (0, 1.0, true),
            (999_999_999, 1.0, true),
            (1_000_000_001, 1.0, false),
            (-2_000_000, 0.001, false),
        ] {
            let checked = check_skew("node3", offset_ns, max_s);
            assert_eq!(checked.is_ok(), good, "{offset_ns}");
        }
        let behind = check_skew("node3", -2_500_000_000, 1.0).unwrap_err().to_string();
        assert!(
            behind.starts_with(
                "node node3: its clock is 2.500 s behind that of the coordinator, clock_skew_max allows 1 s"
            ),
            "{behind}"
        );
    }

    fn hello() -> Hello {
        Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            builds: vec!["a".to_owned(), "b".to_owned()],
            host: String::new(),
            kernel: String::new(),
            cores: 1,
            pid: 1,
            tune: None,
        }
    }

    /// Goal: unlike programs are not measured together, and the sentence names the node. Method: another version, another
    /// build.
    #[test]
    fn unlike_programs_are_refused() {
        assert!(check_programs(("a", &hello()), ("b", &hello())).is_ok());
        let old = Hello { version: "0.0.0".to_owned(), ..hello() };
        let error = check_programs(("node7", &old), ("node1", &hello())).unwrap_err().to_string();
        assert!(error.starts_with("node node7: linerate-bench is version 0.0.0 there and "), "{error}");
        let other = Hello { builds: vec!["a".to_owned(), "c".to_owned()], ..hello() };
        let error = check_programs(("node7", &other), ("node1", &hello())).unwrap_err().to_string();
        assert!(error.contains("node7") && error.contains("another build than on node node1"), "{error}");
    }

    /// Goal: a client that has lost a port on the way is not taken for one that is done. Method: the reports of one that did and of
    /// one that did not.
    #[test]
    fn partial_reports_are_seen() {
        let whole = report();
        assert_eq!(why_partial(&serde_json::to_value(&whole).unwrap()), None);
        let lost =
            Report { partial: true, failure: Some("a client thread lost its port".to_owned()), ..whole };
        assert_eq!(why_partial(&serde_json::to_value(&lost).unwrap()), lost.failure.as_deref());
    }

    /// Goal: load never leaves by the control network. Method: routes over it, beside it, and where there is none.
    #[test]
    fn the_control_network_is_spared() {
        let interfaces = ["eno1d1".to_owned(), "eno1".to_owned()];
        assert!(check_control("node0", &interfaces, None).is_ok());
        assert!(check_control("node0", &interfaces[..1], Some("eno1")).is_ok());
        let error = check_control("node0", &interfaces, Some("eno1")).unwrap_err().to_string();
        assert!(error.starts_with("node node0: the other nodes are reached over eno1, "), "{error}");
    }
}
