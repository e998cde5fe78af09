//! What to run: a file, presets and the command line, put together and checked once.

use std::{
    collections::BTreeSet, fmt::Display, fs, iter, net::IpAddr, ops::RangeInclusive, path::PathBuf,
    str::FromStr,
};

use anyhow::Context;
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use linerate_dataplane::{
    netns::HOSTS_MAX,
    transport::{Transport, Wanted},
};
use linerate_proto::placement::Placement;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use serde::{Deserialize, Serialize, Serializer};

use super::{
    hosts::{Host, find_hosts},
    presets::{self, Point},
};
use crate::{
    options::RunOptions,
    output::JsonTarget,
    wire::rate::{LINE_RATE, Rate},
    workload::Inserts,
};

/// Most nodes of one kind.
const NODES_MAX: i64 = 64;

/// Longest time by which clocks may differ unless said otherwise, in seconds.
const CLOCK_SKEW_MAX: f64 = 1.0;

/// Options of a run that are not of the load: they follow from the nodes.
const NOT_OF_LOAD: [&str; 12] = [
    "target",
    "cluster",
    "transport",
    "server-cores",
    "memory",
    "stall",
    "threads",
    "check-shared",
    "idle",
    "json",
    "keep",
    "results",
];

/// A run of many nodes. What is typed here goes before what the file says.
#[derive(Clone, Debug, Args)]
pub struct ClusterRunOptions {
    /// What to run, as TOML [default: one server and one client]
    pub spec: Option<PathBuf>,
    /// How nodes are started: on hosts by ssh, in network namespaces (netns, needs root), or all on loopback (local)
    /// [default: ssh when there are hosts, otherwise local]
    #[arg(long)]
    pub launcher: Option<Launcher>,
    /// sNcM for N servers and M clients, such as s4c4; or a series: linearity, scale-clients, sessions, order
    #[arg(long)]
    pub preset: Option<String>,
    /// Hosts for ssh, servers first: name, user@name, and =ADDRESS behind it if data goes elsewhere
    #[arg(long, value_delimiter = ',', value_name = "HOST,…")]
    pub hosts: Vec<String>,
    /// The same from a file, one host per line
    #[arg(long, conflicts_with = "hosts", value_name = "FILE")]
    pub hosts_file: Option<PathBuf>,
    /// Cores of each server [default: all of its host, 1 without hosts]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..))]
    pub server_cores: Option<u8>,
    /// Memory of each server, such as 8GiB
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// What to speak: udp, tcp, packet, xdp or auto
    #[arg(long)]
    pub transport: Option<Wanted>,
    /// Threads of each client [default: one for each core of its host, 1 without hosts]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Rate of each node's link in network namespaces, such as 10gbit
    #[arg(long)]
    pub rate: Option<Rate>,
    /// Largest IP packet in network namespaces
    #[arg(long, value_parser = clap::value_parser!(u16).range(576..=9216))]
    pub mtu: Option<u16>,
    /// Seconds to measure
    #[arg(long)]
    pub duration: Option<String>,
    /// Seconds of load before that
    #[arg(long)]
    pub warmup: Option<String>,
    /// Records stored before
    #[arg(long)]
    pub records: Option<String>,
    /// Workload of YCSB: a, b, c, d or f
    #[arg(long)]
    pub workload: Option<String>,
    /// Law by which keys are chosen: zipf, uniform, scrambled, latest or hotspot
    #[arg(long)]
    pub distribution: Option<String>,
    /// Exponent of the Zipf law
    #[arg(long)]
    pub theta: Option<String>,
    /// Bytes per value: a number, a range such as 64-256, a weighted list such as 100:0.7,4096-8192:0.3, or etc
    #[arg(long)]
    pub value_len: Option<String>,
    /// Operations of a batch
    #[arg(long)]
    pub batch: Option<String>,
    /// Batches in flight per session and server core
    #[arg(long)]
    pub window: Option<String>,
    /// Order of the operations of one session: none, key or strict
    #[arg(long)]
    pub order: Option<String>,
    /// Seed of all random choices
    #[arg(long)]
    pub seed: Option<String>,
    /// Check that each value got was put at its key
    #[arg(long)]
    pub verify: bool,
    /// Check every operation for linearizability
    #[arg(long)]
    pub check: bool,
    /// Send gets of one key that would travel in the same request once; counted apart
    #[arg(long)]
    pub coalesce: bool,
    /// Folder for the results [default: cluster-results/DATE-NAME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write the result as JSON to this file, - for standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<JsonTarget>,
}

impl ClusterRunOptions {
    /// What was typed of the load, by the names of `linerate-bench run`.
    fn load(&self) -> impl Iterator<Item = (&'static str, toml::Value)> {
        let texts = [
            ("duration", &self.duration),
            ("warmup", &self.warmup),
            ("records", &self.records),
            ("workload", &self.workload),
            ("distribution", &self.distribution),
            ("theta", &self.theta),
            ("value_len", &self.value_len),
            ("batch", &self.batch),
            ("window", &self.window),
            ("order", &self.order),
            ("seed", &self.seed),
        ];
        let flags = [("verify", self.verify), ("check", self.check), ("coalesce", self.coalesce)];
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name, typed_value(text.as_deref()?))));
        texts.chain(flags.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| (name, true.into())))
    }
}

/// A text of the command line as a value of the file.
fn typed_value(text: &str) -> toml::Value {
    let number = text.parse().map(toml::Value::Integer);
    let number = number.or_else(|_| text.parse().map(toml::Value::Float));
    number.ok().filter(|value| value.to_string() == text).unwrap_or_else(|| text.into())
}

/// How nodes are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Launcher {
    /// On hosts, by the system's ssh.
    Ssh,
    /// In network namespaces of this machine, on a switch.
    Netns,
    /// On this machine's loopback.
    Local,
}

impl Launcher {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ssh => "ssh",
            Self::Netns => "netns",
            Self::Local => "local",
        }
    }

    /// Whether all nodes are on this machine.
    pub(crate) const fn is_here(self) -> bool {
        !matches!(self, Self::Ssh)
    }
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Server,
    Client,
}

impl Role {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// The file as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SpecFile {
    name: Option<String>,
    pub(crate) launcher: Option<Launcher>,
    preset: Option<String>,
    pub(crate) hosts: Vec<String>,
    pub(crate) node: Vec<NodeFile>,
    servers: ServersFile,
    clients: ClientsFile,
    load: toml::Table,
    network: NetworkFile,
    placement: Option<Placement>,
    copy: Option<bool>,
    binaries: Option<PathBuf>,
    directory: Option<PathBuf>,
    ssh_options: Vec<String>,
    clock_skew_max: Option<f64>,
}

/// A node of the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeFile {
    pub(crate) name: Option<String>,
    pub(crate) ssh: Option<String>,
    pub(crate) addr: Option<IpAddr>,
    pub(crate) role: Option<Role>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ServersFile {
    count: Option<i64>,
    cores: Option<i64>,
    memory: Option<String>,
    transport: Option<String>,
    port: Option<i64>,
    at_capacity: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ClientsFile {
    count: Option<i64>,
    threads: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NetworkFile {
    mtu: Option<i64>,
    rate: Option<String>,
    line_rate: Option<String>,
}

/// One point to measure, with everything decided.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) launcher: Launcher,
    pub(crate) placement: Placement,
    pub(crate) copy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) binaries: Option<PathBuf>,
    pub(crate) directory: PathBuf,
    pub(crate) ssh_options: Vec<String>,
    pub(crate) clock_skew_max: f64,
    pub(crate) servers: Servers,
    pub(crate) clients: Clients,
    pub(crate) load: toml::Table,
    pub(crate) network: Network,
    #[serde(rename = "node")]
    pub(crate) nodes: Vec<PlannedNode>,
    /// The same load as options.
    #[serde(skip)]
    pub(crate) run: RunOptions,
    /// What the hosts decide, as nobody said it.
    #[serde(skip)]
    open: Open,
}

/// What was not said.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    cores: bool,
    memory: bool,
    threads: bool,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Servers {
    pub(crate) count: usize,
    pub(crate) cores: u8,
    #[serde(serialize_with = "as_bytes")]
    pub(crate) memory: ByteSize,
    #[serde(serialize_with = "as_name")]
    pub(crate) transport: Wanted,
    /// Of the first core; on loopback of the first server's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
    pub(crate) at_capacity: String,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Clients {
    pub(crate) count: usize,
    pub(crate) threads: u16,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Network {
    pub(crate) mtu: u16,
    #[serde(serialize_with = "as_rate", skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<Rate>,
    #[serde(serialize_with = "as_line_rate")]
    pub(crate) line_rate: Rate,
}

/// A node and where it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PlannedNode {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// What ssh calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ssh: Option<String>,
    /// Where its data goes in and out, if that was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) addr: Option<IpAddr>,
}

impl Spec {
    /// Gives servers and clients all cores of their hosts, of which these are the fewest, unless others were asked for.
    pub(crate) fn settle(&mut self, server_cores: usize, client_cores: usize) {
        if self.open.cores {
            self.servers.cores = server_cores.clamp(1, 255) as u8;
        }
        if self.open.threads {
            // Each thread needs a session.
            let threads_max = self.run.sessions.unwrap_or(1_024);
            self.clients.threads = client_cores.clamp(1, threads_max.into()) as u16;
            self.run.threads = self.clients.threads;
        }
        if self.open.memory {
            self.servers.memory = default_memory(&self.run, self.servers.count, self.servers.cores);
        }
    }

    /// The arguments of `linerate-bench run` on the client with this number, from 0 on, but for where the servers are. Each has
    /// its share of the rate, and a seed of its own, so that not all do the same at the same moments.
    pub(crate) fn client_arguments(&self, number: usize) -> Vec<String> {
        let mut load = self.load.clone();
        load.remove("seed");
        let rate = load.remove("rate").and(self.run.rate);
        let mut arguments = arguments_of(&load);
        arguments.extend(rate.map(|rate| format!("--rate={}", rate / self.clients.count as f64)));
        arguments.push(format!("--seed={}", client_seed(self.run.seed, number)));
        arguments.push(format!("--transport={}", self.servers.transport.name()));
        arguments.push(format!("--threads={}", self.clients.threads));
        arguments
    }
}

/// The seed of a client: the first has that of the load, the others what is drawn from it one after the other.
fn client_seed(seed: u64, number: usize) -> u64 {
    let drawn = Xoshiro256PlusPlus::seed_from_u64(seed).random_iter();
    iter::once(seed).chain(drawn).nth(number).expect("numbers are drawn for ever")
}

/// The points that the options ask for, in their order, with the label of each in the series.
///
/// # Errors
/// A sentence that names file or option, field, and what is allowed.
pub(crate) fn plan(options: &ClusterRunOptions) -> anyhow::Result<Vec<(String, Spec)>> {
    let (origin, file) = match &options.spec {
        Some(path) => {
            let name = path.display().to_string();
            let text = fs::read_to_string(path).with_context(|| format!("cannot read the spec {name}"))?;
            let file = parse(&name, &text)?;
            (name, file)
        }
        None => ("cluster run".to_owned(), SpecFile::default()),
    };
    let hosts = find_hosts(&origin, options, &file)?;
    let by_hosts = if hosts.is_empty() { Launcher::Local } else { Launcher::Ssh };
    let launcher = options.launcher.or(file.launcher).unwrap_or(by_hosts);
    let points = match options.preset.as_ref().or(file.preset.as_ref()) {
        Some(name) => presets::points(name).map_err(|error| anyhow::anyhow!("{origin}: preset: {error}"))?,
        None => vec![Point::default()],
    };
    let resolve = |point: &Point| resolve(&origin, options, &file, launcher, &hosts, point);
    points.iter().map(|point| Ok((point.label.clone(), resolve(point)?))).collect()
}

fn parse(name: &str, text: &str) -> anyhow::Result<SpecFile> {
    toml::from_str(text).map_err(|error| {
        let line =
            error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let reason = error.message().trim().replace('\n', ", ");
        anyhow::anyhow!("{name}, line {line}: {reason}")
    })
}

/// A number from the file, checked.
fn ranged<T: TryFrom<i64>>(
    field: impl Display,
    value: Option<i64>,
    range: RangeInclusive<i64>,
) -> anyhow::Result<Option<T>> {
    let Some(value) = value else { return Ok(None) };
    let fits = range.contains(&value).then(|| T::try_from(value).ok()).flatten();
    let (start, end) = range.into_inner();
    fits.map(Some).with_context(|| format!("{field}: {value} is not allowed, give {start} to {end}"))
}

/// A word from the file, parsed.
fn worded<T: FromStr<Err: Display>>(field: impl Display, text: Option<&str>) -> anyhow::Result<Option<T>> {
    text.map(|text| text.parse().map_err(|error| anyhow::anyhow!("{field}: {error}"))).transpose()
}

/// A word from the file that is one of these.
fn one_of(field: impl Display, text: Option<&str>, allowed: [&str; 2]) -> anyhow::Result<String> {
    let text = text.unwrap_or(allowed[0]);
    anyhow::ensure!(
        allowed.contains(&text),
        "{field}: `{text}` is not allowed, give {}",
        allowed.join(" or ")
    );
    Ok(text.to_owned())
}

fn resolve(
    origin: &str,
    options: &ClusterRunOptions,
    file: &SpecFile,
    launcher: Launcher,
    hosts: &[Host],
    point: &Point,
) -> anyhow::Result<Spec> {
    let SpecFile { servers, clients, network, .. } = file;
    let field = |name: &str| format!("{origin}: {name}");
    let server_count = ranged(field("servers.count"), servers.count, 1..=NODES_MAX)?;
    let client_count = ranged(field("clients.count"), clients.count, 1..=NODES_MAX)?;
    let (server_count, client_count) = (point.servers.or(server_count), point.clients.or(client_count));
    let nodes = match launcher {
        Launcher::Ssh => assign(origin, hosts, server_count, client_count)?,
        Launcher::Netns | Launcher::Local => numbered(server_count.unwrap_or(1), client_count.unwrap_or(1)),
    };
    anyhow::ensure!(
        nodes.len() <= usize::from(HOSTS_MAX),
        "{origin}: {} nodes are too many, {HOSTS_MAX} are possible",
        nodes.len()
    );
    let count = |role| nodes.iter().filter(|node| node.role == role).count();
    let (server_count, client_count) = (count(Role::Server), count(Role::Client));

    let mut load = file.load.clone();
    check_names(origin, &load)?;
    load.extend(point.order.map(|order| ("order".to_owned(), order.into())));
    load.extend(options.load().map(|(name, value)| (name.to_owned(), value)));
    let threads = ranged(field("clients.threads"), clients.threads, 1..=1024)?;
    let given_threads = point.threads.or(options.threads).or(threads);
    let threads = given_threads.unwrap_or(1);
    let transport = worded(field("servers.transport"), servers.transport.as_deref())?;
    let transport = options.transport.or(transport).unwrap_or(Wanted::Is(Transport::Udp));
    let run = RunOptions { transport, threads, ..check_load(origin, &load)? };
    check_run(&run, client_count).map_err(|error| anyhow::anyhow!("{origin}: load: {error:#}"))?;

    let cores = ranged(field("servers.cores"), servers.cores, 1..=255)?;
    let given_cores = options.server_cores.or(cores);
    let cores = given_cores.unwrap_or(1);
    let memory = worded(field("servers.memory"), servers.memory.as_deref())?;
    let given_memory = options.memory.or(memory);
    let memory = given_memory.unwrap_or_else(|| default_memory(&run, server_count, cores));
    // Nodes on one machine share its cores; hosts have theirs for themselves.
    let is_open = |is_given: bool| !is_given && launcher == Launcher::Ssh;
    let mtu = ranged(field("network.mtu"), network.mtu, 576..=9_216)?;
    let rate = options.rate.or(worded(field("network.rate"), network.rate.as_deref())?);
    anyhow::ensure!(
        rate.is_none() || launcher == Launcher::Netns,
        "{}: only the launcher netns limits a rate, not {}",
        field("network.rate"),
        launcher.name()
    );
    let line_rate = worded(field("network.line_rate"), network.line_rate.as_deref())?;
    let clock_skew_max = file.clock_skew_max.unwrap_or(CLOCK_SKEW_MAX);
    anyhow::ensure!(
        (0.001..=3_600.0).contains(&clock_skew_max),
        "{}: {clock_skew_max} is not allowed, give 0.001 to 3600 seconds",
        field("clock_skew_max")
    );
    let name = file.name.clone().unwrap_or_else(|| format!("s{server_count}c{client_count}"));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    anyhow::ensure!(
        (1..=64).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.'),
        "{}: `{name}` is not allowed, give 1 to 64 letters, digits and the signs - _ .",
        field("name")
    );
    Ok(Spec {
        name,
        launcher,
        placement: file.placement.unwrap_or_default(),
        copy: file.copy.unwrap_or(true),
        binaries: file.binaries.clone(),
        directory: file.directory.clone().unwrap_or_else(|| "/tmp/linerate-cluster".into()),
        ssh_options: file.ssh_options.clone(),
        clock_skew_max,
        servers: Servers {
            count: server_count,
            cores,
            memory,
            transport,
            port: ranged(field("servers.port"), servers.port, 1_024..=65_280)?,
            at_capacity: one_of(
                field("servers.at_capacity"),
                servers.at_capacity.as_deref(),
                ["refuse", "evict"],
            )?,
        },
        clients: Clients { count: client_count, threads },
        load,
        network: Network {
            mtu: options.mtu.or(mtu).unwrap_or(1_500),
            rate,
            line_rate: line_rate.or(rate).unwrap_or(LINE_RATE),
        },
        nodes,
        run,
        open: Open {
            cores: is_open(given_cores.is_some()),
            memory: is_open(given_memory.is_some()),
            threads: is_open(given_threads.is_some()),
        },
    })
}

/// Memory for the records of one server, half as much again since shares are not quite equal.
fn default_memory(run: &RunOptions, servers: usize, cores: u8) -> ByteSize {
    let records = RunOptions { server_cores: 0, ..run.clone() }.memory_len();
    let all = records / servers * 3 / 2 + usize::from(cores) * (96 << 20);
    ByteSize::mib((all >> 20) as u64)
}

/// The names of a load's fields.
fn load_fields() -> Vec<(String, bool)> {
    let all = RunOptions::names().into_iter();
    let of_load = all.filter(|(name, _)| !NOT_OF_LOAD.contains(&name.as_str()));
    of_load.map(|(name, takes_value)| (name.replace('-', "_"), takes_value)).collect()
}

fn check_names(origin: &str, load: &toml::Table) -> anyhow::Result<()> {
    let known: Vec<_> = load_fields().into_iter().map(|(name, _)| name).collect();
    match load.keys().find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(name) => {
            anyhow::bail!("{origin}: load.{name}: unknown, the fields of load are {}", known.join(", "))
        }
    }
}

/// The load as options; each field is tried by itself first, to name the one that is wrong.
fn check_load(origin: &str, load: &toml::Table) -> anyhow::Result<RunOptions> {
    let fields = load_fields();
    for (name, value) in load {
        let is_flag = fields.iter().any(|(known, takes_value)| known == name && !takes_value);
        anyhow::ensure!(
            value.is_bool() == is_flag && !value.is_table() && !value.is_array(),
            "{origin}: load.{name}: {value} is not allowed, give {}",
            if is_flag { "true or false" } else { "a number or a text" }
        );
        let alone = toml::Table::from_iter([(name.clone(), value.clone())]);
        RunOptions::of_arguments(&arguments_of(&alone))
            .map_err(|error| anyhow::anyhow!("{origin}: load.{name}: {value} is not allowed: {error}"))?;
    }
    RunOptions::of_arguments(&arguments_of(load)).map_err(|error| anyhow::anyhow!("{origin}: load: {error}"))
}

/// What the options of one client, and those of all together, contradict.
fn check_run(run: &RunOptions, clients: usize) -> anyhow::Result<()> {
    run.check()?;
    if run.inserts() {
        // Processes have numbers from 1 on here.
        Inserts::numbers(run.records, clients as u16, run.inserts_max(), run.clients() as u32)?;
    }
    if let Some(rate) = run.rate {
        let share = format!("--rate={}", rate / clients as f64);
        RunOptions::of_arguments(&[share]).with_context(|| {
            format!("--rate {rate} is that of all {clients} clients together, which have too little each")
        })?;
    }
    Ok(())
}

/// A table of options as arguments.
fn arguments_of(load: &toml::Table) -> Vec<String> {
    let argument = |(name, value): (&String, &toml::Value)| {
        let name = name.replace('_', "-");
        match value {
            toml::Value::Boolean(true) => Some(format!("--{name}")),
            toml::Value::Boolean(false) => None,
            toml::Value::String(text) => Some(format!("--{name}={text}")),
            other => Some(format!("--{name}={other}")),
        }
    };
    load.iter().filter_map(argument).collect()
}

/// The nodes of a launcher that makes its own.
fn numbered(servers: usize, clients: usize) -> Vec<PlannedNode> {
    let named = |role: Role, count| {
        (1..=count).map(move |number| PlannedNode {
            name: format!("{}{number}", role.name()),
            role,
            ssh: None,
            addr: None,
        })
    };
    named(Role::Server, servers).chain(named(Role::Client, clients)).collect()
}

/// Roles for hosts: those that were said, then servers, then clients.
fn assign(
    origin: &str,
    hosts: &[Host],
    servers: Option<usize>,
    clients: Option<usize>,
) -> anyhow::Result<Vec<PlannedNode>> {
    anyhow::ensure!(
        !hosts.is_empty(),
        "{origin}: the launcher ssh needs hosts: give hosts or [[node]] in the file, --hosts, or run it on CloudLab"
    );
    let said = |role| hosts.iter().filter(|host| host.role == Some(role)).count();
    let servers = servers.unwrap_or_else(|| said(Role::Server).max(1));
    let clients = clients.unwrap_or_else(|| hosts.len().saturating_sub(servers).max(1));
    anyhow::ensure!(
        servers + clients <= hosts.len(),
        "{origin}: {servers} servers and {clients} clients need {} hosts, but there are {}: {}",
        servers + clients,
        hosts.len(),
        hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(", ")
    );
    let mut nodes: Vec<PlannedNode> = Vec::new();
    for (role, count) in [(Role::Server, servers), (Role::Client, clients)] {
        let fixed = hosts.iter().filter(|host| host.role == Some(role));
        let free = hosts.iter().filter(|host| host.role.is_none());
        let taken: BTreeSet<_> = nodes.iter().map(|node| node.name.clone()).collect();
        let chosen = fixed.chain(free).filter(|host| !taken.contains(&host.name)).take(count);
        let before = nodes.len();
        nodes.extend(chosen.map(|host| PlannedNode {
            name: host.name.clone(),
            role,
            ssh: Some(host.ssh.clone()),
            addr: host.addr,
        }));
        let found = nodes.len() - before;
        anyhow::ensure!(
            found == count,
            "{origin}: {count} nodes of the role {} are wanted, but only {found} hosts may have it",
            role.name()
        );
    }
    Ok(nodes)
}

fn as_bytes<S: Serializer>(value: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{}B", value.as_u64()))
}

fn as_name<S: Serializer>(value: &Wanted, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.name())
}

fn as_rate<S: Serializer>(value: &Option<Rate>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(typed).serialize(serializer)
}

fn as_line_rate<S: Serializer>(value: &Rate, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&typed(value))
}

/// A rate as it is typed.
fn typed(rate: &Rate) -> String {
    format!("{}mbit", rate.bits_per_sec() as f64 / 1e6)
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        options: ClusterRunOptions,
    }

    /// The options of a command line.
    pub(crate) fn typed(words: &str) -> ClusterRunOptions {
        Typed::try_parse_from(["run"].into_iter().chain(words.split_whitespace())).unwrap().options
    }

    /// What a file of this content and these options come to.
    fn plan_of(text: &str, words: &str) -> anyhow::Result<Vec<(String, Spec)>> {
        let number: u64 = rand::random();
        let path = std::env::temp_dir().join(format!("linerate-spec-{number:016x}.toml"));
        fs::write(&path, text).unwrap();
        let planned = plan(&ClusterRunOptions { spec: Some(path.clone()), ..typed(words) });
        fs::remove_file(&path).unwrap();
        // The folder is this machine's.
        planned.map_err(|error| {
            anyhow::anyhow!("{}", format!("{error:#}").replace(path.to_str().unwrap(), "x.toml"))
        })
    }

    fn one(text: &str, words: &str) -> Spec {
        let mut points = plan_of(text, words).unwrap();
        assert_eq!(points.len(), 1);
        points.remove(0).1
    }

    const WHOLE: &str = r#"
        name = "whole"
        launcher = "ssh"
        placement = "modulo"
        copy = false
        binaries = "/opt/linerate"
        directory = "/local/linerate"
        ssh_options = ["-p", "2222"]
        clock_skew_max = 0.25

        [servers]
        count = 1
        cores = 8
        memory = "4GiB"
        transport = "tcp"
        port = 5000
        at_capacity = "evict"

        [clients]
        count = 2
        threads = 4

        [load]
        workload = "a"
        distribution = "latest"
        theta = 0.5
        records = 1000
        value_len = "16-64"
        batch = 8
        window = 4
        order = "key"
        duration = 2
        warmup = 0.5
        check = true
        verify = false
        seed = 7

        [network]
        mtu = 9000
        line_rate = "25gbit"

        [[node]]
        name = "c"
        addr = "10.10.1.3"
        role = "client"
        [[node]]
        ssh = "root@s"
        [[node]]
        ssh = "d"
    "#;

    /// Goal: every field of the file arrives. Method: a file with all of them.
    #[test]
    fn a_whole_file_is_understood() {
        let spec = one(WHOLE, "");
        assert_eq!(
            (spec.name.as_str(), spec.launcher, spec.placement),
            ("whole", Launcher::Ssh, Placement::Modulo)
        );
        assert_eq!((spec.copy, spec.clock_skew_max), (false, 0.25));
        assert_eq!(spec.directory, PathBuf::from("/local/linerate"));
        assert_eq!(spec.binaries, Some("/opt/linerate".into()));
        assert_eq!(spec.ssh_options, ["-p", "2222"]);
        let Servers { count, cores, memory, transport, port, ref at_capacity } = spec.servers;
        assert_eq!((count, cores, memory, port), (1, 8, ByteSize::gib(4), Some(5000)));
        assert_eq!((transport, at_capacity.as_str()), (Wanted::Is(Transport::Tcp), "evict"));
        assert_eq!((spec.clients.count, spec.clients.threads), (2, 4));
        assert_eq!((spec.network.mtu, spec.network.rate), (9_000, None));
        assert_eq!(spec.network.line_rate, "25gbit".parse().unwrap());
        let nodes: Vec<_> =
            spec.nodes.iter().map(|node| (node.name.as_str(), node.role, node.addr)).collect();
        let addr = "10.10.1.3".parse().ok();
        assert_eq!(nodes, [("s", Role::Server, None), ("c", Role::Client, addr), ("d", Role::Client, None)]);
        assert_eq!(spec.nodes[0].ssh.as_deref(), Some("root@s"));
        let run = &spec.run;
        assert_eq!((run.records, run.batch, run.window, run.seed, run.threads), (1_000, 8, 4, 7, 4));
        assert_eq!((run.duration, run.warmup, run.check, run.verify), (2.0, 0.5, true, false));
        assert_eq!((run.order.name(), run.theta.exponent()), ("key", 0.5));
        let again = RunOptions::of_arguments(&spec.client_arguments(0)).unwrap();
        assert_eq!(format!("{again:?}"), format!("{run:?}"), "the first client gets the same load");
    }

    /// Goal: the clients have the rate together, and neither the same operations nor the same moments; a run can be repeated.
    /// Method: the options of each of three, twice; without a rate there is none.
    #[test]
    fn clients_share_the_rate_and_no_seed() {
        let spec = one("preset = \"s1c3\"\n[load]\nrate = 9000\narrivals = \"fixed\"\nseed = 7\n", "");
        assert_eq!((spec.run.rate, spec.run.seed), (Some(9_000.0), 7));
        let of = |number| RunOptions::of_arguments(&spec.client_arguments(number)).unwrap();
        let seeds: Vec<_> = (0..3).map(|number| of(number).seed).collect();
        assert_eq!(seeds[0], 7);
        assert!(seeds[1] != 7 && seeds[2] != 7 && seeds[1] != seeds[2], "{seeds:?}");
        for (number, seed) in seeds.iter().enumerate() {
            let options = of(number);
            assert_eq!((options.rate, options.seed), (Some(3_000.0), *seed));
            assert_eq!(options.arrivals.map(|arrivals| arrivals.to_string()), Some("fixed".to_owned()));
        }
        let closed = one("preset = \"s1c2\"\n", "");
        assert_eq!(RunOptions::of_arguments(&closed.client_arguments(1)).unwrap().rate, None);
    }

    /// Goal: what was resolved is kept so that it can be run again. Method: print it, and read that.
    #[test]
    fn the_resolved_spec_is_a_spec() {
        for (text, words) in
            [(WHOLE, ""), ("", ""), ("", "--launcher netns --preset s4c4 --rate 10gbit --check")]
        {
            let spec = one(text, words);
            let printed = toml::to_string(&spec).unwrap();
            // The nodes of launchers that make their own are only told.
            let again = one(&printed, "");
            assert_eq!(toml::to_string(&again).unwrap(), printed, "{words}");
        }
    }

    /// Goal: the command line goes before the preset, and that before the file. Method: the same thing said by each.
    #[test]
    fn what_is_typed_goes_first() {
        let text =
            "launcher = \"local\"\npreset = \"s1c2\"\n[servers]\ncount = 3\n[load]\nrecords = 10\nseed = 4\n";
        let spec = one(text, "--records 20 --threads 2 --transport tcp --preset s2c3");
        assert_eq!((spec.servers.count, spec.clients.count, spec.clients.threads), (2, 3, 2));
        assert_eq!((spec.run.records, spec.run.seed), (20, 4));
        assert_eq!(spec.servers.transport, Wanted::Is(Transport::Tcp));
        assert_eq!(one(text, "").servers.count, 1, "a preset goes before counts");
        let order = plan_of("launcher = \"local\"\n[load]\norder = \"key\"\n", "--preset order").unwrap();
        let orders: Vec<_> =
            order.iter().map(|(label, spec)| (label.as_str(), spec.run.order.name())).collect();
        assert_eq!(orders, [("order none", "none"), ("order strict", "strict")]);
        assert_eq!(one("", "--hosts a,b").launcher, Launcher::Ssh, "hosts are for ssh");
        assert_eq!(one("", "--hosts a,b,c").clients.count, 2, "all that are left are clients");
        let rate = one("", "--launcher netns --rate 5gbit").network;
        assert_eq!(
            rate.line_rate,
            "5gbit".parse().unwrap(),
            "a limited link is full when its rate is reached"
        );
    }

    /// Goal: hosts are used whole unless something else was said. Method: settle with and without.
    #[test]
    fn hosts_decide_what_nobody_said() {
        let settled = |words: &str| {
            let mut spec = one("", words);
            spec.settle(8, 6);
            (spec.servers.cores, spec.clients.threads, spec.run.threads, spec.servers.memory)
        };
        let (cores, threads, run_threads, memory) = settled("--hosts a,b --records 1000");
        assert_eq!((cores, threads, run_threads), (8, 6, 6));
        assert!(memory >= ByteSize::mib(8 * 96), "{memory}");
        let (cores, threads, _, memory) = settled("--hosts a,b --server-cores 2 --threads 3 --memory 1GiB");
        assert_eq!((cores, threads, memory), (2, 3, ByteSize::gib(1)));
        assert_eq!(settled("--launcher local").0, 1);
        let mut spec = one("[load]\nsessions = 4\n", "--hosts a,b");
        spec.settle(8, 6);
        assert_eq!(
            (spec.clients.threads, spec.run.check().is_ok()),
            (4, true),
            "each thread needs a session"
        );
    }

    /// Goal: whatever is wrong is said in one sentence with file, field and what is allowed. Method: one mistake after the
    /// other.
    #[test]
    fn mistakes_are_named() {
        for (text, words, expected) in [
            ("a = 1\n", "", "x.toml, line 1: unknown field `a`, expected one of"),
            ("[servers]\n\ncores = \"x\"\n", "", "x.toml, line 3: invalid type: string \"x\", expected i64"),
            ("[servers\n", "", "x.toml, line 1: "),
            (
                "launcher = \"mpi\"\n",
                "",
                "x.toml, line 1: unknown variant `mpi`, expected one of `ssh`, `netns`, `local`",
            ),
            ("placement = \"ring\"\n", "", "x.toml, line 1: unknown variant `ring`"),
            ("preset = \"s9\"\n", "", "x.toml: preset: `s9` is none: give sNcM"),
            ("[servers]\ncount = 0\n", "", "x.toml: servers.count: 0 is not allowed, give 1 to 64"),
            ("[clients]\ncount = 65\n", "", "x.toml: clients.count: 65 is not allowed, give 1 to 64"),
            (
                "[clients]\nthreads = 1025\n",
                "",
                "x.toml: clients.threads: 1025 is not allowed, give 1 to 1024",
            ),
            ("[servers]\ncores = 256\n", "", "x.toml: servers.cores: 256 is not allowed, give 1 to 255"),
            ("[servers]\nport = 80\n", "", "x.toml: servers.port: 80 is not allowed, give 1024 to 65280"),
            ("[servers]\nmemory = \"much\"\n", "", "x.toml: servers.memory: "),
            (
                "[servers]\ntransport = \"pigeon\"\n",
                "",
                "x.toml: servers.transport: `pigeon` is no transport",
            ),
            (
                "[servers]\nat_capacity = \"burn\"\n",
                "",
                "x.toml: servers.at_capacity: `burn` is not allowed, give refuse or evict",
            ),
            ("[network]\nmtu = 100\n", "", "x.toml: network.mtu: 100 is not allowed, give 576 to 9216"),
            (
                "[network]\nrate = \"fast\"\n",
                "",
                "x.toml: network.rate: `fast` is no rate: give 1mbit to 100gbit",
            ),
            (
                "[network]\nrate = \"1gbit\"\n",
                "--launcher local",
                "x.toml: network.rate: only the launcher netns limits a rate, not local",
            ),
            ("[network]\nline_rate = \"0gbit\"\n", "", "x.toml: network.line_rate: give 1mbit to 100gbit"),
            (
                "clock_skew_max = 0\n",
                "",
                "x.toml: clock_skew_max: 0 is not allowed, give 0.001 to 3600 seconds",
            ),
            ("name = \"../x\"\n", "", "x.toml: name: `../x` is not allowed, give 1 to 64 letters"),
            ("[load]\nspeed = 1\n", "", "x.toml: load.speed: unknown, the fields of load are workload, "),
            ("[load]\ntarget = \"embedded\"\n", "", "x.toml: load.target: unknown, the fields of load are"),
            ("[load]\nstall = 10\n", "", "x.toml: load.stall: unknown, the fields of load are"),
            ("[load]\nmemory = \"1GiB\"\n", "", "x.toml: load.memory: unknown, the fields of load are"),
            ("[load]\nresults = \"x\"\n", "", "x.toml: load.results: unknown, the fields of load are"),
            (
                "[load]\nsessions = 2\n",
                "--threads 3",
                "x.toml: load: --sessions 2 are fewer than --threads 3: each thread needs one at least",
            ),
            (
                "[load]\narrivals = \"fixed\"\n",
                "",
                "x.toml: load: --arrivals fixed is for an open loop: give --rate",
            ),
            (
                "[load]\ntheta = 0.5\ndistribution = \"uniform\"\n",
                "",
                "x.toml: load: --theta is the exponent of a Zipf law, and --distribution uniform has none",
            ),
            (
                "[load]\nrate = 0.001\n",
                "--preset s1c2",
                "x.toml: load: --rate 0.001 is that of all 2 clients together, which have too little each: give 0.001",
            ),
            (
                "[load]\nworkload = \"d\"\n",
                "--check",
                "x.toml: load: --check knows the records that are stored before the run",
            ),
            (
                "[load]\nworkload = \"d\"\n",
                "--records 2147000000",
                "x.toml: load: --workload d leaves no numbers",
            ),
            (
                "[load]\nrecords = 0\n",
                "",
                "x.toml: load.records: 0 is not allowed: 0 is not in 1..=2147483647",
            ),
            (
                "[load]\nworkload = \"z\"\n",
                "",
                "x.toml: load.workload: \"z\" is not allowed: give one of a, b, c, d, f",
            ),
            ("[load]\ncheck = 1\n", "", "x.toml: load.check: 1 is not allowed, give true or false"),
            (
                "[load]\nbatch = true\n",
                "",
                "x.toml: load.batch: true is not allowed, give a number or a text",
            ),
            ("", "--duration 0", "x.toml: load.duration: 0 is not allowed: give 0.05 to 86400 seconds"),
            ("launcher = \"ssh\"\n", "", "x.toml: the launcher ssh needs hosts: "),
            (
                "",
                "--hosts a --preset s2c1",
                "x.toml: 2 servers and 1 clients need 3 hosts, but there are 1: a",
            ),
            ("", "--hosts a,a", "--hosts: the host a is there twice"),
            ("", "--launcher local --hosts a,b", "--hosts: the launcher local makes its own nodes"),
            (
                "hosts = [\"a\"]\n[[node]]\nname = \"b\"\n",
                "",
                "x.toml: hosts and [[node]] say the same, give one of them",
            ),
            ("[[node]]\nrole = \"server\"\n", "", "x.toml: a [[node]] has neither name nor ssh"),
            ("[[node]]\nname = \"a\"\nrole = \"king\"\n", "", "x.toml, line 3: unknown variant `king`"),
            ("[[node]]\nname = \"a\"\naddr = \"b\"\n", "", "x.toml, line 3: invalid IP address syntax"),
            (
                "[[node]]\nname = \"a\"\nrole = \"client\"\n[[node]]\nname = \"b\"\nrole = \"client\"\n",
                "",
                "x.toml: 1 nodes of the role server are wanted, but only 0 hosts may have it",
            ),
        ] {
            let error = plan_of(text, words).err().unwrap_or_else(|| panic!("{text} {words}")).to_string();
            assert!(error.starts_with(expected), "{text}{words}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
