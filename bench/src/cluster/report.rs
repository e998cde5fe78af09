//! What a run of many nodes reports: JSON that scripts rely on, and a table for people.

use std::{collections::BTreeMap, net::SocketAddr};

use comfy_table::Cell;
use linerate_proto::{
    cluster::ClusterSpec,
    placement::{Owner, PARTITIONS},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    message::{Sample, ServerStatistics},
    spec::{Launcher, Role, Spec},
};
use crate::{
    line_rate::{ModelInput, Prediction, predict},
    output::{Environment, number, plain_table, shown},
    workload::{KeyDistribution, ValueLaw},
};

/// What was measured: one run, or a series of them.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum ClusterResult {
    /// One run.
    One(Box<ClusterReport>),
    /// Several, one after the other.
    Series {
        /// The name of the preset.
        series: String,
        /// Whether a run is missing or partial.
        partial: bool,
        /// Why.
        failure: Option<String>,
        /// Where everything is kept.
        folder: String,
        /// What each has shown.
        points: Vec<SeriesPoint>,
    },
}

impl ClusterResult {
    /// All runs.
    pub fn reports(&self) -> impl Iterator<Item = &ClusterReport> {
        let (one, points) = match self {
            Self::One(report) => (Some(&**report), &[][..]),
            Self::Series { points, .. } => (None, &points[..]),
        };
        one.into_iter().chain(points.iter().map(|point| &point.report))
    }
}

impl ClusterResult {
    /// Why it did not come to its end, and where that is kept which there is.
    #[must_use]
    pub fn failure(&self) -> Option<(&str, &str)> {
        let (failure, folder) = match self {
            Self::One(report) => (&report.failure, &report.folder),
            Self::Series { failure, folder, .. } => (failure, folder),
        };
        Some((failure.as_deref()?, folder))
    }
}

/// One run of a series.
#[derive(Clone, Debug, Serialize)]
pub struct SeriesPoint {
    /// What is different about it.
    pub label: String,
    /// What it has shown.
    #[serde(flatten)]
    pub report: ClusterReport,
}

/// One run of many nodes. The names are a contract: fields may be added, but none is renamed or given another unit.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterReport {
    /// Always `cluster`.
    pub kind: &'static str,
    /// Of the spec.
    pub name: String,
    /// `ssh`, `netns` or `local`.
    pub launcher: &'static str,
    /// Whether it did not come to its end, so that figures are missing or of fewer seconds.
    pub partial: bool,
    /// Why not.
    pub failure: Option<String>,
    /// Operations answered to all clients: the median over the seconds measured.
    pub total_ops_per_sec: f64,
    /// The mean over the time measured.
    pub total_ops_per_sec_mean: f64,
    /// Operations that came to a node or core that does not own their key, in the measured time.
    pub misrouted: u64,
    /// How far the share of any node or core of the partitions is from a fair one at most, in per cent of that.
    pub partition_balance_pct: f64,
    /// Whether nodes of one machine had to share its CPUs: such figures say that it works, not how fast a cluster is.
    pub shared_cpus: bool,
    /// What counts as line rate, in bits per second.
    pub line_rate_bits_per_sec: u64,
    /// The largest share of line rate of any node; `None` on loopback, which is no line.
    pub line_rate_share_max: Option<f64>,
    /// What full network cards of so many servers and clients allow by calculation, and the cores that takes at the CPU time
    /// per datagram that the servers were seen to take; `None` on loopback, and for values that fit no datagram.
    pub model: Option<Prediction>,
    /// Operations that ended as "not executed".
    pub errors: u64,
    /// Operations of which nobody knows whether they were executed.
    pub outcome_unknown: u64,
    /// Gets per second that did not travel but were told the answer of an equal one, which is in no figure above; `None` when
    /// each travelled for itself.
    pub coalesced_per_sec: Option<f64>,
    /// Requests sent again.
    pub retransmits: u64,
    /// Values that no put can have written; `None` when they were not checked.
    pub wrong_values: Option<u64>,
    /// What the check of every operation says; `None` when there was none.
    pub check: Option<CheckTotals>,
    /// Operations answered to all clients in each second.
    pub ops_per_sec: Vec<f64>,
    /// What each node has shown.
    pub nodes: Vec<NodeReport>,
    /// Where everything is kept.
    pub folder: String,
    /// What was asked for.
    pub(crate) spec: Spec,
    /// Where the coordinator ran.
    pub environment: Environment,
}

/// The checks of all clients together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckTotals {
    /// Operations whose version was checked, warm-up included.
    pub ops_checked: u64,
    /// Operations that the zone check has judged.
    pub sampled_ops: u64,
    /// What went wrong, of all kinds.
    pub violations: u64,
    /// The first of them in words.
    pub first_violation: Option<String>,
    /// Windows of sampled operations that were judged.
    pub windows: u64,
    /// Data epochs of the servers that were seen.
    pub data_epochs: u64,
    /// Version tables: one per machine with clients, since memory is what shares them.
    pub tables: usize,
    /// The audit of all writes.
    pub audit: AuditTotals,
}

/// Whether the writes of all clients add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditTotals {
    /// Puts acknowledged to all clients.
    pub acknowledged: u64,
    /// Puts whose outcome nobody knows.
    pub unknown: u64,
    /// Writes that the servers say took effect.
    pub grown: u64,
    /// Why the three could not be compared, if they could not.
    pub impossible: Option<String>,
}

/// What one node has shown: medians over the seconds measured, and sums of what was lost.
#[derive(Clone, Debug, Serialize)]
pub struct NodeReport {
    /// Its name in this run.
    pub name: String,
    /// `server` or `client`.
    pub role: &'static str,
    /// The name of the host itself.
    pub host: Option<String>,
    /// Where its data goes in and out.
    pub addr: Option<String>,
    /// Operations per second that a client saw answered; of a server what it has executed in the measured time, per second.
    pub median_ops_per_sec: f64,
    /// CPU time of its processes in per cent of one core.
    pub cpu_pct: f64,
    /// CPU time of its whole machine in per cent of one core.
    pub host_cpu_pct: f64,
    /// Resident memory of its processes.
    pub rss_bytes: u64,
    /// What its frames took on a cable, with preamble, checksum and gap. `None` on loopback, which all nodes share.
    pub tx_gbit: Option<f64>,
    /// The same for what it received.
    pub rx_gbit: Option<f64>,
    /// The share of line rate of the fuller direction.
    pub line_rate_share: Option<f64>,
    /// Frames sent per second.
    pub tx_frames_per_sec: Option<f64>,
    /// Frames received per second.
    pub rx_frames_per_sec: Option<f64>,
    /// Mean length of the frames sent, without what Ethernet puts around them.
    pub tx_frame_bytes: f64,
    /// Frames that its interface dropped.
    pub nic_drops: u64,
    /// Datagrams that found a full receive buffer.
    pub udp_rcvbuf_errors: u64,
    /// Packets that found a full queue of a CPU, on its whole machine.
    pub softnet_drops: u64,
    /// What a server says it has lost, dropped, refused or answered again in the measured time, by the names of its statistics;
    /// what is 0 is left out.
    pub losses: BTreeMap<String, u64>,
    /// Seconds that these figures are of.
    pub seconds: usize,
    /// By how much its clock is ahead of the coordinator's, in ms.
    pub clock_offset_ms: f64,
    /// Release of its kernel.
    pub kernel: Option<String>,
    /// Latencies of a client.
    pub latency_us: Option<Value>,
    /// What `setup/tune-nic.sh status --json` says there.
    pub tune: Option<Value>,
}

/// The part of a client's report that is added up.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ClientFigures {
    errors: u64,
    outcome_unknown: u64,
    retransmits: u64,
    coalesced_per_sec: Option<f64>,
    wrong_values: Option<u64>,
    check: Option<CheckTotals>,
}

/// Everything known of one node when it is reported.
pub(crate) struct NodeFacts<'a> {
    pub(crate) name: &'a str,
    pub(crate) role: Role,
    pub(crate) host: Option<String>,
    pub(crate) kernel: Option<String>,
    pub(crate) addr: Option<String>,
    pub(crate) clock_offset_ms: f64,
    pub(crate) samples: &'a [Sample],
    pub(crate) report: Option<&'a Value>,
    pub(crate) tune: Option<Value>,
}

/// Everything known of a run when it is reported.
pub(crate) struct RunFacts<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) map: Option<&'a ClusterSpec>,
    pub(crate) nodes: Vec<NodeFacts<'a>>,
    /// What the first client was told by the servers.
    pub(crate) servers: &'a [ServerStatistics],
    pub(crate) failure: Option<String>,
    pub(crate) shared_cpus: bool,
    pub(crate) folder: String,
    pub(crate) environment: Environment,
}

impl ClusterReport {
    /// Puts together what the nodes have told, as far as they have.
    pub(crate) fn of(facts: RunFacts<'_>) -> Self {
        let RunFacts { spec, map, nodes, servers, failure, shared_cpus, folder, environment } = facts;
        let reports: Vec<_> = nodes.iter().map(|node| node_report(node, spec, servers)).collect();
        let clients: Vec<_> = nodes.iter().filter(|node| node.role == Role::Client).collect();
        let figures: Vec<ClientFigures> =
            clients.iter().filter_map(|client| serde_json::from_value(client.report?.clone()).ok()).collect();
        let sum = |count: fn(&ClientFigures) -> u64| figures.iter().map(count).sum();
        let ops_per_sec = seconds_of_all(&clients.iter().map(|client| client.samples).collect::<Vec<_>>());
        Self {
            kind: "cluster",
            name: spec.name.clone(),
            launcher: spec.launcher.name(),
            partial: failure.is_some(),
            failure,
            total_ops_per_sec: median(ops_per_sec.iter().copied()),
            total_ops_per_sec_mean: clients.iter().map(|client| mean_rate(client.samples)).sum(),
            misrouted: servers.iter().map(|core| grown(core, "wrong_core") + grown(core, "moved")).sum(),
            partition_balance_pct: map.map_or(0.0, balance_pct),
            shared_cpus,
            line_rate_bits_per_sec: spec.network.line_rate.bits_per_sec(),
            model: map.and_then(|map| model(spec, map, &reports)),
            line_rate_share_max: reports.iter().filter_map(|node| node.line_rate_share).reduce(f64::max),
            errors: sum(|client| client.errors),
            outcome_unknown: sum(|client| client.outcome_unknown),
            coalesced_per_sec: figures
                .iter()
                .filter_map(|client| client.coalesced_per_sec)
                .reduce(|sum, next| sum + next),
            retransmits: sum(|client| client.retransmits),
            wrong_values: figures
                .iter()
                .filter_map(|client| client.wrong_values)
                .reduce(|sum, next| sum + next),
            check: check_totals(&figures, if spec.launcher.is_here() { 1 } else { figures.len() }),
            ops_per_sec,
            nodes: reports,
            folder,
            spec: spec.clone(),
            environment,
        }
    }
}

/// What the cards of this cluster allow for this load.
fn model(spec: &Spec, map: &ClusterSpec, nodes: &[NodeReport]) -> Option<Prediction> {
    let ns_per_datagram = |node: &NodeReport| {
        let frames_per_sec = node.tx_frames_per_sec.filter(|_| node.role == Role::Server.name())?;
        (frames_per_sec > 0.0).then_some(node.cpu_pct * 1e7 / frames_per_sec)
    };
    let measured: Vec<f64> = nodes.iter().filter_map(ns_per_datagram).collect();
    // The model knows only these laws.
    let ValueLaw::Even(value_len) = spec.run.value_len else { return None };
    let law = spec.run.law();
    if !matches!(law.keys, KeyDistribution::Zipf(_) | KeyDistribution::Uniform) {
        return None;
    }
    let input = ModelInput {
        cluster: map.clone(),
        clients: u16::try_from(spec.clients.count).ok()?,
        law,
        value_len,
        batch: spec.run.batch,
        line_rate: spec.network.line_rate,
        mtu: spec.network.mtu,
        ns_per_datagram: (!measured.is_empty()).then(|| median(measured)),
    };
    predict(&input).ok().filter(|_| spec.launcher != Launcher::Local)
}

fn node_report(node: &NodeFacts<'_>, spec: &Spec, servers: &[ServerStatistics]) -> NodeReport {
    let samples = node.samples;
    let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value));
    let sum = |value: fn(&Sample) -> u64| samples.iter().map(value).sum::<u64>();
    let of_line = |value: fn(&Sample) -> f64| (spec.launcher != Launcher::Local).then(|| of(value));
    let (tx_gbit, rx_gbit) = (of_line(|sample| sample.tx_gbit), of_line(|sample| sample.rx_gbit));
    NodeReport {
        name: node.name.to_owned(),
        role: node.role.name(),
        host: node.host.clone(),
        addr: node.addr.clone(),
        median_ops_per_sec: match node.role {
            Role::Client => of(|sample| sample.ops as f64 / sample.seconds),
            Role::Server => executed_per_sec(node.addr.as_deref(), spec.servers.cores, servers),
        },
        cpu_pct: of(|sample| sample.cpu_pct),
        host_cpu_pct: of(|sample| sample.host_cpu_pct),
        rss_bytes: of(|sample| sample.rss_bytes as f64) as u64,
        tx_gbit,
        rx_gbit,
        line_rate_share: tx_gbit
            .into_iter()
            .chain(rx_gbit)
            .reduce(f64::max)
            .map(|gbit| spec.network.line_rate.share(gbit)),
        tx_frames_per_sec: of_line(|sample| sample.tx_frames as f64 / sample.seconds),
        rx_frames_per_sec: of_line(|sample| sample.rx_frames as f64 / sample.seconds),
        tx_frame_bytes: sum(|sample| sample.tx_bytes) as f64 / sum(|sample| sample.tx_frames).max(1) as f64,
        nic_drops: sum(|sample| sample.nic_drops),
        udp_rcvbuf_errors: sum(|sample| sample.udp_rcvbuf_errors),
        softnet_drops: sum(|sample| sample.softnet_drops),
        losses: match node.role {
            Role::Client => BTreeMap::new(),
            Role::Server => losses(node.addr.as_deref(), spec.servers.cores, servers),
        },
        seconds: samples.len(),
        clock_offset_ms: node.clock_offset_ms,
        kernel: node.kernel.clone(),
        latency_us: node.report.map(|report| report["latency_us"].clone()),
        tune: node.tune.clone(),
    }
}

/// By how much a statistic has grown.
fn grown(core: &ServerStatistics, name: &str) -> u64 {
    let of = |values: &BTreeMap<String, u64>| values.get(name).copied().unwrap_or(0);
    of(&core.after).saturating_sub(of(&core.before))
}

/// What the cores of the server at `addr` have said.
fn cores_at<'a>(
    addr: Option<&str>,
    cores: u8,
    servers: &'a [ServerStatistics],
) -> impl Iterator<Item = &'a ServerStatistics> {
    let first: Option<SocketAddr> = addr.and_then(|addr| addr.parse().ok());
    let is_its = move |core: &&ServerStatistics| {
        let Some((first, addr)) = first.zip(core.addr.parse::<SocketAddr>().ok()) else { return false };
        let ports = u32::from(first.port())..u32::from(first.port()) + u32::from(cores);
        addr.ip() == first.ip() && ports.contains(&addr.port().into())
    };
    servers.iter().filter(is_its)
}

/// Operations per second that a server has executed.
fn executed_per_sec(addr: Option<&str>, cores: u8, servers: &[ServerStatistics]) -> f64 {
    let rate = |core: &ServerStatistics| {
        let count: u64 = ["gets", "puts", "deletes", "adds"].iter().map(|name| grown(core, name)).sum();
        count as f64 / grown(core, "uptime_ns").max(1) as f64 * 1e9
    };
    cores_at(addr, cores, servers).map(rate).sum()
}

/// Statistics of things that should not happen, as far as they have grown.
fn losses(addr: Option<&str>, cores: u8, servers: &[ServerStatistics]) -> BTreeMap<String, u64> {
    let is_loss = |name: &str| {
        let begins = ["drop_", "rx_overflow", "rx_truncated", "rx_bad", "rx_handed", "rx_handover"];
        let all = ["tx_dropped", "soft_errors", "no_space", "wrong_core", "moved", "replays", "evicted"];
        begins.iter().any(|begin| name.starts_with(begin)) || all.contains(&name)
    };
    let mut losses = BTreeMap::new();
    for core in cores_at(addr, cores, servers) {
        for name in core.after.keys().filter(|name| is_loss(name)) {
            *losses.entry(name.clone()).or_insert(0) += grown(core, name);
        }
    }
    losses.retain(|_, count| *count > 0);
    losses
}

/// The middle of the values, or the mean of the two in the middle; 0 of none.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    crate::median::median(values).unwrap_or(0.0)
}

/// Operations per second of all together, for each second that all have told of.
fn seconds_of_all(clients: &[&[Sample]]) -> Vec<f64> {
    let count = clients.iter().map(|samples| samples.len()).min().unwrap_or(0);
    let rate =
        |index: usize| clients.iter().map(|samples| samples[index].ops as f64 / samples[index].seconds).sum();
    (0..count).map(rate).collect()
}

fn mean_rate(samples: &[Sample]) -> f64 {
    let seconds: f64 = samples.iter().map(|sample| sample.seconds).sum();
    samples.iter().map(|sample| sample.ops as f64).sum::<f64>() / seconds.max(1e-9)
}

/// How far the partitions of any node or core are from a fair share at most, in per cent of that.
pub(crate) fn balance_pct(cluster: &ClusterSpec) -> f64 {
    let map = cluster.map();
    let members = cluster.members();
    let cores: usize = members.iter().map(|member| usize::from(member.cores)).sum();
    let fair = PARTITIONS as f64 / cores.max(1) as f64;
    let off = |count: usize, fair: f64| (count as f64 / fair - 1.0).abs() * 100.0;
    let of_node = |(node, member): (u16, &linerate_proto::cluster::Member)| {
        let whole = map.share(|owner| owner.node == node).len();
        let each =
            (0..member.cores).map(|core| off(map.share(|owner| owner == Owner { node, core }).len(), fair));
        each.fold(off(whole, fair * f64::from(member.cores)), f64::max)
    };
    (0..).zip(members).map(of_node).fold(0.0, f64::max)
}

fn check_totals(clients: &[ClientFigures], tables: usize) -> Option<CheckTotals> {
    let checks: Vec<_> = clients.iter().filter_map(|client| client.check.as_ref()).collect();
    let first = checks.first()?;
    let sum = |count: fn(&CheckTotals) -> u64| checks.iter().map(|check| count(check)).sum();
    // One of them has done the audit for all.
    let audit = checks.iter().map(|check| &check.audit).find(|audit| audit.impossible.is_none());
    Some(CheckTotals {
        ops_checked: sum(|check| check.ops_checked),
        sampled_ops: sum(|check| check.sampled_ops),
        violations: sum(|check| check.violations),
        first_violation: checks.iter().find_map(|check| check.first_violation.clone()),
        windows: sum(|check| check.windows),
        data_epochs: checks.iter().map(|check| check.data_epochs).max().unwrap_or(0),
        tables,
        audit: audit.unwrap_or(&first.audit).clone(),
    })
}

/// Everything for people: the share of line rate first. Ends without a line feed.
#[must_use]
pub fn cluster_table(result: &ClusterResult) -> String {
    match result {
        ClusterResult::One(report) => one_table(report),
        ClusterResult::Series { series, points, folder, .. } => {
            format!("{}\n\nkept in {folder}", series_table(series, points))
        }
    }
}

fn one_table(report: &ClusterReport) -> String {
    let mut table = plain_table();
    let names =
        ["node", "of line rate %", "Mop/s", "CPU %", "memory MiB", "out Gbit/s", "in Gbit/s", "drops"];
    table
        .set_header(names.map(|name| if name == "node" { Cell::new(name) } else { number(name.to_owned()) }));
    let mut row = |name: &str, values: [(Option<f64>, usize); 7]| {
        let values = values.map(|(value, decimals)| number(shown(value, decimals)));
        table.add_row([Cell::new(name)].into_iter().chain(values));
    };
    for node in &report.nodes {
        let drops = node.nic_drops + node.udp_rcvbuf_errors;
        row(
            &node.name,
            [
                (node.line_rate_share.map(|share| share * 100.0), 1),
                (Some(node.median_ops_per_sec / 1e6), 3),
                (Some(node.cpu_pct), 0),
                (Some(node.rss_bytes as f64 / 1_048_576.0), 0),
                (node.tx_gbit, 2),
                (node.rx_gbit, 2),
                (Some(drops as f64), 0),
            ],
        );
    }
    for role in [Role::Server, Role::Client] {
        let nodes = || report.nodes.iter().filter(|node| node.role == role.name());
        let sum = |value: fn(&NodeReport) -> Option<f64>| {
            nodes().map(value).reduce(|sum, next| sum.zip(next).map(|(sum, next)| sum + next)).flatten()
        };
        let count = nodes().count().max(1) as f64;
        row(
            &format!("all {}s", role.name()),
            [
                (sum(|node| node.line_rate_share).map(|share| share / count * 100.0), 1),
                (sum(|node| Some(node.median_ops_per_sec / 1e6)), 3),
                (sum(|node| Some(node.cpu_pct)), 0),
                (sum(|node| Some(node.rss_bytes as f64 / 1_048_576.0)), 0),
                (sum(|node| node.tx_gbit), 2),
                (sum(|node| node.rx_gbit), 2),
                (sum(|node| Some((node.nic_drops + node.udp_rcvbuf_errors) as f64)), 0),
            ],
        );
    }
    let headline = match report.line_rate_share_max {
        Some(share) => {
            format!(
                "{:.1} % of line rate ({}) at the fullest node",
                share * 100.0,
                report.spec.network.line_rate
            )
        }
        None => "over loopback, which is no line".to_owned(),
    };
    let mut text = format!(
        "{} by {}: {headline}\n{}\n\ntotal {:.3} Mop/s (median of {} s; mean {:.3}), {} misrouted, partitions within \
         {:.2} %",
        report.name,
        report.launcher,
        table.trim_fmt(),
        report.total_ops_per_sec / 1e6,
        report.ops_per_sec.len(),
        report.total_ops_per_sec_mean / 1e6,
        report.misrouted,
        report.partition_balance_pct,
    );
    if let Some(model) = &report.model {
        text += &format!("\nfull cards would allow {:.2} Mop/s", model.ops_per_sec / 1e6);
        if let (Some(cores), Some(core)) = (model.cores, model.busiest_core) {
            text += &format!(
                ", for which the busiest server needs {cores:.1} cores and its busiest core is {core:.2} busy"
            );
        }
    }
    if let Some(coalesced) = report.coalesced_per_sec {
        text += &format!("\nbeside these {:.3} M/s gets were coalesced", coalesced / 1e6);
    }
    if let Some(check) = &report.check {
        text += &format!(
            "\nchecked {} operations: {} violations",
            shown(Some(check.ops_checked as f64), 0),
            check.violations
        );
    }
    if report.shared_cpus {
        text += "\nnodes shared CPUs: these figures say that it works, not how fast a cluster is";
    }
    if report.partial {
        text += "\npartial: the run did not come to its end";
    }
    text + &format!("\nkept in {}", report.folder)
}

fn series_table(series: &str, points: &[SeriesPoint]) -> String {
    let mut table = plain_table();
    let names = [
        series,
        "Mop/s",
        "to the first",
        "of line rate %",
        "server CPU %",
        "client CPU %",
        "p99 µs",
        "misrouted",
    ];
    table.set_header(names.iter().enumerate().map(|(index, name)| match index {
        0 => Cell::new(name),
        _ => number((*name).to_owned()),
    }));
    let first = points.first().map_or(0.0, |point| point.report.total_ops_per_sec);
    for SeriesPoint { label, report } in points {
        let cpu = |role: Role| {
            let nodes = report.nodes.iter().filter(|node| node.role == role.name());
            nodes.map(|node| node.cpu_pct).sum::<f64>()
        };
        let latencies = report.nodes.iter().filter_map(|node| node.latency_us.as_ref()?["p99"].as_f64());
        let values = [
            (Some(report.total_ops_per_sec / 1e6), 3),
            ((first > 0.0).then(|| report.total_ops_per_sec / first), 2),
            (report.line_rate_share_max.map(|share| share * 100.0), 1),
            (Some(cpu(Role::Server)), 0),
            (Some(cpu(Role::Client)), 0),
            (latencies.reduce(f64::max), 0),
            (Some(report.misrouted as f64), 0),
        ];
        let label = if report.partial { format!("{label} (partial)") } else { label.clone() };
        let values = values.map(|(value, decimals)| number(shown(value, decimals)));
        table.add_row([Cell::new(label)].into_iter().chain(values));
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use linerate_proto::{cluster::Member, placement::Placement};
    use serde_json::json;

    use super::*;
    use crate::{
        cluster::spec::{ClusterRunOptions, plan},
        output::tests::report,
    };

    #[test]
    fn medians_are_in_the_middle() {
        for (values, expected) in [
            (&[][..], 0.0),
            (&[3.0], 3.0),
            (&[1.0, 2.0], 1.5),
            (&[9.0, 1.0, 2.0], 2.0),
            (&[4.0, 1.0, 100.0, 2.0], 3.0),
        ] {
            assert_eq!(median(values.iter().copied()), expected, "{values:?}");
        }
    }

    fn sample(index: u32, ops: u64, seconds: f64) -> Sample {
        Sample {
            index,
            seconds,
            ops,
            cpu_pct: 10.0 * f64::from(index),
            rss_bytes: 1 << 20,
            tx_frames: 1_000,
            tx_bytes: 1_000_000,
            tx_gbit: 2.0,
            rx_gbit: 5.0,
            nic_drops: 1,
            ..Sample::default()
        }
    }

    /// Goal: the total is the median of the seconds that all clients have told of. Method: clients of different speed and
    /// length.
    #[test]
    fn seconds_are_added_up() {
        let first = [sample(0, 10, 1.0), sample(1, 20, 1.0), sample(2, 60, 2.0)];
        let second = [sample(0, 1, 1.0), sample(1, 2, 1.0)];
        assert_eq!(seconds_of_all(&[&first, &second]), [11.0, 22.0]);
        assert_eq!(seconds_of_all(&[&first]), [10.0, 20.0, 30.0]);
        assert_eq!(seconds_of_all(&[&first, &[]]), [0.0; 0]);
        assert_eq!(mean_rate(&first), 22.5);
        assert_eq!(mean_rate(&[]), 0.0);
    }

    fn cluster(cores: &[u8]) -> ClusterSpec {
        let member = |(id, &cores): (u64, &u8)| {
            let addr = (Ipv4Addr::new(10, 0, 0, id as u8), 4_100).into();
            Member { id, addr, cores }
        };
        ClusterSpec::new(1, Placement::Rendezvous, (1..).zip(cores).map(member).collect()).unwrap()
    }

    /// Goal: the balance is what is furthest from fair. Method: shares that divide evenly, and some that can not.
    #[test]
    fn balance_is_the_worst_share() {
        assert_eq!(balance_pct(&cluster(&[1, 1, 1, 1])), 0.0);
        assert_eq!(balance_pct(&cluster(&[1])), 0.0);
        let three = balance_pct(&cluster(&[1, 1, 1]));
        // 1,366 is the fair share rounded up, and two of them leave 1,364.
        let expected = 100.0 * (1.0 - 1_364.0 / (4_096.0 / 3.0));
        assert!((three - expected).abs() < 1e-9, "{three}");
        let unlike = balance_pct(&cluster(&[1, 2, 5]));
        assert!((0.0..5.0).contains(&unlike), "{unlike}");
    }

    /// A report of a server and a client, with a different number wherever it counts.
    fn facts_reported(failure: Option<&str>) -> ClusterReport {
        let options = ClusterRunOptions {
            launcher: Some(Launcher::Netns),
            ..crate::cluster::spec::tests::typed("--preset s1c1")
        };
        let (_, spec) = plan(&options).unwrap().remove(0);
        let statistics = |gets: u64, moved: u64, uptime_ns: u64| {
            [
                ("gets", gets),
                ("puts", 10),
                ("wrong_core", 1),
                ("moved", moved),
                ("uptime_ns", uptime_ns),
                ("drop_stale", moved),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into()
        };
        let servers = [ServerStatistics {
            addr: "10.0.0.1:4100".to_owned(),
            before: statistics(1_000, 2, 1_000_000_000),
            after: statistics(5_000, 5, 3_000_000_000),
        }];
        let client = json!({
            "errors": 1, "outcome_unknown": 2, "retransmits": 3, "wrong_values": 0, "latency_us": { "p99": 77.0 },
            "check": {
                "ops_checked": 44, "sampled_ops": 5, "violations": 0, "first_violation": null, "windows": 6, "data_epochs": 1,
                "not_sampled": null,
                "audit": { "acknowledged": 7, "unknown": 0, "grown": 7, "impossible": null }
            }
        });
        let samples = [sample(0, 100, 1.0), sample(1, 300, 1.0), sample(2, 200, 1.0)];
        let node = |role: Role, name, addr: &str, report| NodeFacts {
            name,
            role,
            host: Some("host".to_owned()),
            kernel: None,
            addr: Some(addr.to_owned()),
            clock_offset_ms: 0.5,
            samples: &samples,
            report,
            tune: None,
        };
        ClusterReport::of(RunFacts {
            spec: &spec,
            map: Some(&cluster(&[1])),
            nodes: vec![
                node(Role::Server, "server1", "10.0.0.1:4100", None),
                node(Role::Client, "client1", "10.0.0.2", Some(&client)),
            ],
            servers: &servers,
            failure: failure.map(str::to_owned),
            shared_cpus: false,
            folder: "cluster-results/x".to_owned(),
            environment: report().environment,
        })
    }

    fn keys(value: &Value) -> Vec<&str> {
        value.as_object().unwrap().keys().map(String::as_str).collect()
    }

    fn sorted(names: &str) -> Vec<&str> {
        let mut names: Vec<_> = names.split_whitespace().collect();
        names.sort_unstable();
        names
    }

    /// Goal: the names that scripts rely on are there, and the figures are what their names say. Method: every name, and the
    /// values, of facts made by hand.
    #[test]
    fn the_json_keeps_its_contract() {
        let value = serde_json::to_value(facts_reported(None)).unwrap();
        let names = "kind name launcher partial failure total_ops_per_sec total_ops_per_sec_mean misrouted \
                     partition_balance_pct shared_cpus line_rate_bits_per_sec line_rate_share_max model errors outcome_unknown retransmits coalesced_per_sec \
                     wrong_values check ops_per_sec nodes folder spec environment";
        assert_eq!(keys(&value), sorted(names));
        let names = "name role host addr median_ops_per_sec cpu_pct host_cpu_pct rss_bytes tx_gbit rx_gbit line_rate_share \
                     tx_frames_per_sec rx_frames_per_sec tx_frame_bytes nic_drops udp_rcvbuf_errors softnet_drops losses seconds \
                     clock_offset_ms kernel latency_us tune";
        assert_eq!(keys(&value["nodes"][0]), sorted(names));
        let names = "ops_checked sampled_ops violations first_violation windows data_epochs tables audit";
        assert_eq!(keys(&value["check"]), sorted(names));
        assert_eq!(keys(&value["check"]["audit"]), sorted("acknowledged unknown grown impossible"));
        let model = &value["model"];
        assert_eq!(model["servers"], value["spec"]["servers"]["count"]);
        assert!(model["ops_per_sec"].as_f64().unwrap() > 1e6 && model["cores"].as_f64().unwrap() > 0.0);
        for (place, expected) in [
            ("/kind", json!("cluster")),
            ("/launcher", json!("netns")),
            ("/partial", json!(false)),
            ("/total_ops_per_sec", json!(200.0)),
            ("/total_ops_per_sec_mean", json!(200.0)),
            ("/misrouted", json!(3)),
            ("/partition_balance_pct", json!(0.0)),
            ("/line_rate_bits_per_sec", json!(10_000_000_000_u64)),
            ("/line_rate_share_max", json!(0.5)),
            ("/errors", json!(1)),
            ("/outcome_unknown", json!(2)),
            ("/retransmits", json!(3)),
            ("/wrong_values", json!(0)),
            ("/check/ops_checked", json!(44)),
            ("/check/tables", json!(1)),
            ("/check/audit/grown", json!(7)),
            ("/ops_per_sec/1", json!(300.0)),
            ("/nodes/0/role", json!("server")),
            ("/nodes/0/median_ops_per_sec", json!(2_000.0)),
            ("/nodes/0/losses", json!({ "drop_stale": 3, "moved": 3 })),
            ("/nodes/0/latency_us", Value::Null),
            ("/nodes/1/name", json!("client1")),
            ("/nodes/1/median_ops_per_sec", json!(200.0)),
            ("/nodes/1/cpu_pct", json!(10.0)),
            ("/nodes/1/rss_bytes", json!(1 << 20)),
            ("/nodes/1/tx_gbit", json!(2.0)),
            ("/nodes/1/rx_gbit", json!(5.0)),
            ("/nodes/1/line_rate_share", json!(0.5)),
            ("/nodes/1/tx_frame_bytes", json!(1_000.0)),
            ("/nodes/1/nic_drops", json!(3)),
            ("/nodes/1/seconds", json!(3)),
            ("/nodes/1/latency_us/p99", json!(77.0)),
            ("/spec/servers/count", json!(1)),
        ] {
            assert_eq!(value.pointer(place), Some(&expected), "{place}");
        }
        let partial = serde_json::to_value(facts_reported(Some("node x died"))).unwrap();
        assert_eq!((&partial["partial"], &partial["failure"]), (&json!(true), &json!("node x died")));
    }

    /// Goal: people see the share of line rate first, then each node, then all; a series has a line per run. Method: tables of
    /// known reports.
    #[test]
    fn tables_are_for_people() {
        let one = ClusterResult::One(Box::new(facts_reported(None)));
        assert_eq!(one.failure(), None);
        let table = cluster_table(&one);
        println!("{table}");
        assert!(
            table.starts_with("s1c1 by netns: 50.0 % of line rate (10 Gbit/s) at the fullest node\n"),
            "{table}"
        );
        let line = |table: &str, start: &str| {
            let line = table.lines().find(|line| line.trim_start().starts_with(start));
            line.unwrap_or_else(|| panic!("{start}")).split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line(&table, "server1"), "server1 50.0 0.002 10 1 2.00 5.00 3");
        assert_eq!(line(&table, "all clients"), "all clients 50.0 0.000 10 1 2.00 5.00 3");
        assert!(
            table.contains("3 misrouted") && table.contains("checked 44 operations: 0 violations"),
            "{table}"
        );
        let points = [None, Some("it broke")]
            .map(|failure| SeriesPoint { label: "s1c1".to_owned(), report: facts_reported(failure) });
        let failure = Some("it broke".to_owned());
        let series = ClusterResult::Series {
            series: "linearity".to_owned(),
            partial: true,
            failure,
            folder: "f".to_owned(),
            points: points.into(),
        };
        assert_eq!(series.failure(), Some(("it broke", "f")));
        let table = cluster_table(&series);
        println!("{table}");
        assert_eq!(line(&table, "s1c1 (partial)"), "s1c1 (partial) 0.000 1.00 50.0 10 10 77 3");
    }

    /// Goal: an audit counts when any client has made it, and its absence is explained. Method: clients with and without.
    #[test]
    fn one_audit_is_for_all() {
        let client = |violations, impossible: Option<&str>| ClientFigures {
            check: Some(CheckTotals {
                ops_checked: 10,
                violations,
                audit: AuditTotals {
                    acknowledged: 5,
                    impossible: impossible.map(str::to_owned),
                    ..AuditTotals::default()
                },
                ..CheckTotals::default()
            }),
            ..ClientFigures::default()
        };
        let totals = check_totals(&[client(0, Some("elsewhere")), client(2, None)], 2).unwrap();
        assert_eq!((totals.ops_checked, totals.violations, totals.tables), (20, 2, 2));
        assert_eq!(totals.audit.impossible, None);
        let none = check_totals(&[client(0, Some("elsewhere"))], 1).unwrap();
        assert_eq!(none.audit.impossible.as_deref(), Some("elsewhere"));
        assert_eq!(check_totals(&[ClientFigures::default()], 1), None);
    }
}
