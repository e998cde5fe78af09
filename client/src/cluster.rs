//! `linerate cluster`: who owns what, whether servers agree on it, and what a change would move.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, bail, ensure};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use linerate_client::{
    ConnectError, ServerInfo, Session, SessionConfig, contact_points, is_map_file, read_map,
};
use linerate_dataplane::{
    TcpPort, UdpConfig, UdpPort,
    resolve::resolve,
    tcp::TcpConfig,
    transport::{Transport, Wanted},
};
use linerate_proto::{
    cluster::{ClusterSpec, Member, PORT},
    placement::{ClusterMap, PARTITIONS, Partition, Placement},
};
use serde::Serialize;

use crate::say;

/// What to do with a cluster map.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Shows who owns what; of servers, whether all have the same map
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Says what a change would move; changes nothing but the file of --write
    Plan(PlanOptions),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("change").required(true).multiple(true)))]
pub(crate) struct PlanOptions {
    /// Add a node, with the next free id and as many cores as the others have, unless it is said
    #[arg(long, group = "change", value_name = "HOST[:PORT][/CORES]")]
    add: Vec<String>,
    /// Remove the node of this id
    #[arg(long, group = "change", value_name = "ID")]
    remove: Vec<u64>,
    /// Take nodes and placement of this map
    #[arg(long, group = "change", value_name = "FILE", conflicts_with_all = ["add", "remove", "placement"])]
    to: Option<String>,
    /// Place partitions in this way
    #[arg(long, group = "change")]
    placement: Option<PlacementName>,
    /// Write the changed map there, with the next epoch
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(long, requires = "write")]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PlacementName {
    Rendezvous,
    Modulo,
}

impl From<PlacementName> for Placement {
    fn from(name: PlacementName) -> Self {
        match name {
            PlacementName::Rendezvous => Self::Rendezvous,
            PlacementName::Modulo => Self::Modulo,
        }
    }
}

/// Returns whether all servers that were asked agree. `target`: a map's file, or servers.
pub(crate) fn execute(
    command: &ClusterCommand,
    target: &str,
    transport: Wanted,
    config: SessionConfig,
) -> anyhow::Result<bool> {
    let asking = Asking { over_tcp: matches!(transport, Wanted::Is(Transport::Tcp)), config };
    let (map, told) = if is_map_file(target) {
        (read_map(target)?, Vec::new())
    } else {
        asking.all(&contact_points(target)?)?
    };
    let disagreements = disagreements(&told);
    match command {
        ClusterCommand::Show { json } => show(&map, &told, &disagreements, *json)?,
        ClusterCommand::Plan(options) => {
            // What is planned from must be what all have.
            if disagreements.is_empty() {
                plan(&map, options)?;
            }
        }
    }
    disagreements.iter().for_each(|disagreement| eprintln!("linerate: {disagreement}"));
    Ok(disagreements.is_empty())
}

/// How servers are asked: a question or two need no rings.
#[derive(Clone, Copy)]
struct Asking {
    over_tcp: bool,
    config: SessionConfig,
}

/// What became of the question for a server's map.
type Answer = Result<(ClusterSpec, ServerInfo), ConnectError>;

/// What a server has told.
struct Told {
    addr: SocketAddr,
    /// The node that the newest map has there.
    expected: Option<u64>,
    answer: Answer,
}

impl Asking {
    fn one(&self, server: SocketAddr) -> Answer {
        if self.over_tcp {
            Session::ask_map(server, self.config, |addrs| TcpPort::connect(addrs, TcpConfig::default()))
        } else {
            Session::ask_map(server, self.config, |addrs| UdpPort::connect(addrs, UdpConfig::default()))
        }
    }

    /// Asks servers at the same time.
    fn these(&self, servers: &[SocketAddr]) -> Vec<Told> {
        thread::scope(|scope| {
            let asked: Vec<_> =
                servers.iter().map(|&addr| (addr, scope.spawn(move || self.one(addr)))).collect();
            let told = asked.into_iter().map(|(addr, thread)| Told {
                addr,
                expected: None,
                answer: thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            });
            told.collect()
        })
    }

    /// Asks the servers named, and all others of the newest map among theirs.
    fn all(&self, contacts: &[SocketAddr]) -> anyhow::Result<(ClusterSpec, Vec<Told>)> {
        let mut contacts = contacts.to_vec();
        contacts.sort_unstable();
        contacts.dedup();
        let mut told = self.these(&contacts);
        let maps = told.iter().filter_map(|told| told.answer.as_ref().ok());
        let Some(newest) = maps.map(|(map, _)| map).max_by_key(|map| map.epoch()).cloned() else {
            return Err(told.swap_remove(0).answer.expect_err("none has told a map").into());
        };
        if !newest.is_alone() {
            let others: Vec<_> = newest
                .members()
                .iter()
                .map(|member| member.addr)
                .filter(|addr| !contacts.contains(addr))
                .collect();
            told.extend(self.these(&others));
        }
        for told in &mut told {
            let at = newest.members().iter().find(|member| member.addr == told.addr);
            told.expected = at.map(|member| member.id);
        }
        Ok((newest, told))
    }
}

/// In what servers differ from the first that has the newest map, a sentence each.
fn disagreements(told: &[Told]) -> Vec<String> {
    let answered = told.iter().filter_map(|told| Some((told, told.answer.as_ref().ok()?)));
    let epoch = answered.clone().map(|(_, (map, _))| map.epoch()).max();
    let Some((newest, (map, _))) = answered.clone().find(|(_, (map, _))| Some(map.epoch()) == epoch) else {
        return Vec::new();
    };
    let of = |told: &Told| match &told.answer {
        Err(error) => Some(error.to_string()),
        Ok((other, _)) if other.is_alone() && !map.is_alone() => Some(format!(
            "{} is alone and owns all keys, while {} has the cluster map of epoch {}",
            told.addr,
            newest.addr,
            map.epoch()
        )),
        Ok((other, _)) if other.epoch() != map.epoch() => Some(format!(
            "{} has the cluster map of epoch {}, {} that of epoch {}",
            told.addr,
            other.epoch(),
            newest.addr,
            map.epoch()
        )),
        Ok((other, _)) if other.is_alone() && told.addr != newest.addr => {
            Some(format!("{} and {} are both alone: each owns all keys", newest.addr, told.addr))
        }
        Ok((other, _)) if other.digest() != map.digest() => Some(format!(
            "{} and {} have different cluster maps of the same epoch {}",
            newest.addr,
            told.addr,
            map.epoch()
        )),
        Ok((_, info)) => told.expected.filter(|expected| *expected != info.node_id).map(|expected| {
            format!(
                "the cluster map has node {expected} at {}, but node {} answers there",
                told.addr, info.node_id
            )
        }),
    };
    told.iter().filter_map(of).collect()
}

/// A cluster map as it is shown. The names are a contract.
#[derive(Debug, Serialize)]
struct Shown {
    epoch: u16,
    placement: Placement,
    /// In hexadecimal.
    digest: String,
    partitions: usize,
    nodes: Vec<ShownNode>,
    /// `null` for a map of a file.
    servers: Option<Vec<ShownServer>>,
    disagreements: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ShownNode {
    id: u64,
    addr: String,
    cores: u8,
    partitions: usize,
    /// Of all partitions, 0 to 1.
    share: f64,
    /// From its fair share, which is by its cores, in per cent of that.
    deviation_pct: f64,
    partitions_per_core_min: usize,
    partitions_per_core_max: usize,
}

#[derive(Debug, Serialize)]
struct ShownServer {
    addr: String,
    node_id: Option<u64>,
    epoch: Option<u16>,
    digest: Option<String>,
}

fn hex(digest: u64) -> String {
    format!("{digest:016x}")
}

/// Partitions that a node of so many of all cores should have.
fn fair(cores: u8, map: &ClusterSpec) -> f64 {
    let all: usize = map.members().iter().map(|member| usize::from(member.cores)).sum();
    PARTITIONS as f64 * f64::from(cores) / all as f64
}

/// In per cent.
fn deviation(of: f64, from: f64) -> f64 {
    (of / from - 1.0) * 100.0
}

fn show(map: &ClusterSpec, told: &[Told], disagreements: &[String], json: bool) -> anyhow::Result<()> {
    let counts = map.map().counts();
    let node = |(member, counts): (&Member, &Vec<usize>)| {
        let partitions = counts.iter().sum();
        // A server that is alone does not know its address.
        let found = told.first().filter(|_| map.is_alone()).map_or(member.addr, |told| told.addr);
        ShownNode {
            id: member.id,
            addr: found.to_string(),
            cores: member.cores,
            partitions,
            share: partitions as f64 / PARTITIONS as f64,
            deviation_pct: deviation(partitions as f64, fair(member.cores, map)),
            partitions_per_core_min: counts.iter().copied().min().unwrap_or(0),
            partitions_per_core_max: counts.iter().copied().max().unwrap_or(0),
        }
    };
    let server = |told: &Told| {
        let answer = told.answer.as_ref().ok();
        ShownServer {
            addr: told.addr.to_string(),
            node_id: answer.map(|(_, info)| info.node_id),
            epoch: answer.map(|(map, _)| map.epoch()),
            digest: answer.map(|(map, _)| hex(map.digest())),
        }
    };
    let shown = Shown {
        epoch: map.epoch(),
        placement: map.placement(),
        digest: hex(map.digest()),
        partitions: PARTITIONS,
        nodes: map.members().iter().zip(&counts).map(node).collect(),
        servers: (!told.is_empty()).then(|| told.iter().map(server).collect()),
        disagreements: disagreements.to_vec(),
    };
    if json {
        return say(&serde_json::to_string_pretty(&shown)?);
    }
    say(shown_table(&shown).trim_end())
}

const fn placement_name(placement: Placement) -> &'static str {
    match placement {
        Placement::Rendezvous => "rendezvous",
        Placement::Modulo => "modulo",
    }
}

fn shown_table(shown: &Shown) -> String {
    let mut text =
        format!("epoch {}, {}, digest {}\n", shown.epoch, placement_name(shown.placement), shown.digest);
    let width = shown.nodes.iter().map(|node| node.addr.len()).max().unwrap_or(0).max("address".len());
    let line = |cells: [String; 7]| {
        let [id, addr, cores, partitions, share, deviation, per_core] = cells;
        format!(
            "{id:>6}  {addr:<width$}  {cores:>5}  {partitions:>10}  {share:>8}  {deviation:>9}  {per_core:>8}\n"
        )
    };
    text += &line(
        ["node", "address", "cores", "partitions", "share", "from fair", "per core"].map(str::to_owned),
    );
    for node in &shown.nodes {
        let (min, max) = (node.partitions_per_core_min, node.partitions_per_core_max);
        text += &line([
            node.id.to_string(),
            node.addr.clone(),
            node.cores.to_string(),
            node.partitions.to_string(),
            format!("{:.2} %", node.share * 100.0),
            format!("{:+.2} %", node.deviation_pct),
            if min == max { min.to_string() } else { format!("{min}–{max}") },
        ]);
    }
    if let Some(servers) = &shown.servers
        && shown.disagreements.is_empty()
        && shown.epoch > 0
    {
        let _ = writeln!(text, "all {} servers have this map", servers.len());
    }
    text
}

/// What a change moves. The names are a contract.
#[derive(Debug, Serialize)]
struct Plan {
    epoch: u16,
    new_epoch: u16,
    placement: Placement,
    new_placement: Placement,
    partitions: usize,
    /// Partitions that get another node.
    moved: usize,
    /// Of all partitions, 0 to 1.
    moved_share: f64,
    /// The least that could move for each node to have its fair share: 1/N for an equal node among N.
    ideal_share: f64,
    /// Of `moved_share` from `ideal_share`, in per cent of that; `null` when nothing would have to move.
    deviation_pct: Option<f64>,
    /// Partitions that stay with their node but get another core of it.
    moved_between_cores: usize,
    nodes: Vec<PlannedNode>,
}

#[derive(Debug, Serialize)]
struct PlannedNode {
    id: u64,
    addr: String,
    cores: u8,
    /// Partitions that it has before.
    before: usize,
    gains: usize,
    loses: usize,
    /// Partitions that it has afterwards.
    after: usize,
}

fn plan(map: &ClusterSpec, options: &PlanOptions) -> anyhow::Result<()> {
    ensure!(
        !map.is_alone(),
        "a server that is alone has no cluster map to change: start it with --cluster and --node-id"
    );
    let changed = changed(map, options)?;
    let plan = compare(map, &changed);
    if let Some(path) = &options.write {
        write_map(path, &changed, options.force)?;
        eprintln!("linerate: wrote the cluster map of epoch {} to {}", changed.epoch(), path.display());
    }
    if options.json {
        return say(&serde_json::to_string_pretty(&plan)?);
    }
    say(plan_table(&plan).trim_end())
}

/// The map that was asked for, of the next epoch.
fn changed(map: &ClusterSpec, options: &PlanOptions) -> anyhow::Result<ClusterSpec> {
    let epoch =
        map.epoch().checked_add(1).context("epoch 65535 is the last: start all servers anew with epoch 1")?;
    if let Some(path) = &options.to {
        let to = read_map(path)?;
        return Ok(ClusterSpec::new(epoch, to.placement(), to.members().to_vec())?);
    }
    let mut members = map.members().to_vec();
    // An id is never used again, not even that of a node which goes now.
    let mut id = members.iter().map(|member| member.id).max().unwrap_or(0);
    for &removed in &options.remove {
        map.member(removed)?;
        ensure!(
            members.iter().any(|member| member.id == removed),
            "node {removed} is removed twice: name it once"
        );
        members.retain(|member| member.id != removed);
    }
    for text in &options.add {
        id += 1;
        let (host, cores) = match text.rsplit_once('/') {
            Some((host, cores)) => {
                let cores = cores.parse().ok().filter(|cores| (1..=255).contains(cores));
                (host, cores.with_context(|| format!("`{text}` has no number of cores behind the slash: give 1 to 255"))?)
            }
            None => (&text[..], common_cores(map).with_context(|| {
                format!("`{text}` does not say how many cores it has, and the nodes differ in theirs: give {text}/CORES")
            })?),
        };
        members.push(Member { id, addr: resolve(host, PORT)?, cores });
    }
    let placement = options.placement.map_or_else(|| map.placement(), Placement::from);
    Ok(ClusterSpec::new(epoch, placement, members)?)
}

/// The number of cores that all nodes have.
fn common_cores(map: &ClusterSpec) -> Option<u8> {
    let first = map.members().first()?.cores;
    map.members().iter().all(|member| member.cores == first).then_some(first)
}

fn compare(from: &ClusterSpec, to: &ClusterSpec) -> Plan {
    let (before, after) = (from.map(), to.map());
    let owner = |map: &ClusterMap, partition| {
        let owner = map.owner(partition);
        (map.nodes()[usize::from(owner.node)].id, owner.core)
    };
    let mut ids: Vec<_> = from.members().iter().chain(to.members()).map(|member| member.id).collect();
    ids.sort_unstable();
    ids.dedup();
    let node = |&id: &u64| {
        let member = to.member(id).or_else(|_| from.member(id)).expect("it is of one of them");
        let Member { addr, cores, .. } = *member;
        PlannedNode { id, addr: addr.to_string(), cores, before: 0, gains: 0, loses: 0, after: 0 }
    };
    let mut nodes: Vec<_> = ids.iter().map(node).collect();
    let (mut moved, mut moved_between_cores) = (0, 0);
    for partition in Partition::all() {
        let (old, new) = (owner(&before, partition), owner(&after, partition));
        let position = |id: u64| ids.binary_search(&id).expect("all owners are listed");
        let (source, target) = (position(old.0), position(new.0));
        nodes[source].before += 1;
        nodes[target].after += 1;
        if source != target {
            moved += 1;
            nodes[source].loses += 1;
            nodes[target].gains += 1;
        } else if old.1 != new.1 {
            moved_between_cores += 1;
        }
    }
    let fair_of = |map: &ClusterSpec, id| map.member(id).map_or(0.0, |member| fair(member.cores, map));
    let gained = |&id: &u64| (fair_of(to, id) - fair_of(from, id)).max(0.0);
    let ideal_share = ids.iter().map(gained).sum::<f64>() / PARTITIONS as f64;
    let moved_share = moved as f64 / PARTITIONS as f64;
    Plan {
        epoch: from.epoch(),
        new_epoch: to.epoch(),
        placement: from.placement(),
        new_placement: to.placement(),
        partitions: PARTITIONS,
        moved,
        moved_share,
        ideal_share,
        deviation_pct: (ideal_share > 0.0).then(|| deviation(moved_share, ideal_share)),
        moved_between_cores,
        nodes,
    }
}

fn plan_table(plan: &Plan) -> String {
    let mut text = format!("epoch {} to {}", plan.epoch, plan.new_epoch);
    if plan.placement != plan.new_placement {
        let _ =
            write!(text, ", {} to {}", placement_name(plan.placement), placement_name(plan.new_placement));
    }
    let _ = write!(
        text,
        "\nmoves {} of {} partitions, {:.2} %; the least for fair shares is {:.2} %",
        plan.moved,
        plan.partitions,
        plan.moved_share * 100.0,
        plan.ideal_share * 100.0
    );
    if let Some(deviation) = plan.deviation_pct {
        let _ = write!(text, " ({deviation:+.1} %)");
    }
    text.push('\n');
    if plan.moved_between_cores > 0 {
        let _ = writeln!(text, "and {} between cores of the same node", plan.moved_between_cores);
    }
    let width = plan.nodes.iter().map(|node| node.addr.len()).max().unwrap_or(0).max("address".len());
    let line = |cells: [String; 7]| {
        let [id, addr, cores, before, gains, loses, after] = cells;
        format!("{id:>6}  {addr:<width$}  {cores:>5}  {before:>6}  {gains:>6}  {loses:>6}  {after:>6}\n")
    };
    text += &line(["node", "address", "cores", "before", "gains", "loses", "after"].map(str::to_owned));
    for node in &plan.nodes {
        let counts = [node.before, node.gains, node.loses, node.after].map(|count| count.to_string());
        let [before, gains, loses, after] = counts;
        text += &line([
            node.id.to_string(),
            node.addr.clone(),
            node.cores.to_string(),
            before,
            gains,
            loses,
            after,
        ]);
    }
    text
}

/// Writes a map so that its file is there as a whole or not at all.
fn write_map(path: &Path, map: &ClusterSpec, force: bool) -> anyhow::Result<()> {
    let name = path.file_name().with_context(|| format!("{} is no file", path.display()))?;
    let mut beside = name.to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(beside);
    let write = || {
        let mut file = File::create_new(&beside)?;
        file.write_all(map.to_string().as_bytes())?;
        file.sync_all()?;
        // A link is refused where something is already, a renaming is not.
        if force { fs::rename(&beside, path) } else { fs::hard_link(&beside, path) }
    };
    let written = write();
    let _ = fs::remove_file(&beside);
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{} is there already: give --force to replace it, or another name", path.display())
        }
        written => written.with_context(|| format!("can not write the cluster map to {}", path.display())),
    }
}
