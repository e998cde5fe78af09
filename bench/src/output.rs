//! What a run reports: the JSON that scripts rely on, and tables for people.

use std::{
    convert::Infallible,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use comfy_table::{Cell, CellAlignment, LineStyle, Table, presets::UTF8_HORIZONTAL_ONLY};
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    check::CheckReport,
    latency::LatencyUs,
    series::Series,
    watch::{losses::Losses, nic::NicFacts, verdict::Verdict},
    workload::{TraceConfig, ValueLaw},
};

/// One measurement. The names are a contract: fields may be added, but none is renamed or given another unit.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether a store was behind the answers.
    pub kind: Kind,
    /// Whether the run ended early, so that these are the figures of what was measured until then.
    pub partial: bool,
    /// Why it ended early, in one sentence.
    pub failure: Option<String>,
    /// `closed`: a batch is begun when one has ended; `open`: operations are begun when they are due.
    #[serde(rename = "loop")]
    pub loop_kind: &'static str,
    /// Operations per second that were asked for, in an open loop.
    pub offered_ops_per_sec: Option<f64>,
    /// Operations per second that were due in the measured time: what was asked for, but for chance.
    pub due_ops_per_sec: Option<f64>,
    /// Of the operations that were due, those per second that were answered in the measured time: a read-modify-write is one
    /// here, and two in `ops_per_sec`.
    pub achieved_ops_per_sec: Option<f64>,
    /// How an embedded server's port works here, for people; `None` for others and for a ceiling.
    pub mode: Option<String>,
    /// Operations per second of the measured time that travelled and were answered.
    pub ops_per_sec: f64,
    /// Gets of these per second.
    pub gets_per_sec: f64,
    /// Puts of these per second.
    pub puts_per_sec: f64,
    /// Gets per second that did not travel but were told the answer of an equal one, which is in no figure above; `None`
    /// when each travelled for itself. The other figures (hits, latencies, errors, what was checked) are of all gets.
    pub coalesced_per_sec: Option<f64>,
    /// Records per second that were got and then put, each of which is a get and a put in the figures above; `None` without
    /// such.
    pub rmws_per_sec: Option<f64>,
    /// From handing such a get to the session until the result of the put is handed out, in µs.
    pub rmw_latency_us: Option<LatencyUs>,
    /// Writes that changed nothing because their condition was not met, which are in the figures above; `None` when there are
    /// no conditions.
    pub conditions_unmet: Option<u64>,
    /// Share of the gets that found a value, 0 to 1.
    pub hit_ratio: f64,
    /// Operations in the measured time that travelled and were answered.
    pub ops: u64,
    /// Time measured in seconds, warm-up excluded.
    pub duration_s: f64,
    /// From handing an operation to the session until its result is handed out, in µs; in an open loop from when it was
    /// due, whether or not it could be handed over then.
    pub latency_us: LatencyUs,
    /// Operations whose latencies these are: those that ended in the measured time, well or not, those that were in flight at its
    /// end, and, in an open loop, those that were due and begun later or not at all.
    pub latency_count: u64,
    /// The distribution: latencies in µs, rising, each with the share of operations that took at most so long.
    pub latency_cdf: Vec<[f64; 2]>,
    /// From sending a request until its last result has arrived, in µs, counted once per request; in an open loop, where
    /// each operation is due for itself, the same as `latency_us`.
    pub batch_latency_us: LatencyUs,
    /// Datagrams that the clients sent.
    pub datagrams_tx: u64,
    /// Datagrams that the clients received.
    pub datagrams_rx: u64,
    /// Datagrams per second that the servers sent in the measured time; `None` for a ceiling.
    pub reply_datagrams_per_sec: Option<f64>,
    /// Datagrams that an embedded server sent from its start to its end, not only in the measured time.
    #[serde(skip)]
    pub server_datagrams_tx: Option<u64>,
    /// Requests sent again.
    pub retransmits: u64,
    /// Datagrams that the kernel dropped because a receive queue was full, on both sides as far as they are known.
    pub rx_overflow_drops: u64,
    /// Operations that ended as "not executed".
    pub errors: u64,
    /// Operations of which nobody knows whether they were executed.
    pub outcome_unknown: u64,
    /// Operations that were due in an open loop but could not be sent, even some time after the end.
    pub unsent: u64,
    /// Values that no put can have written; `None` when they were not checked.
    pub wrong_values: Option<u64>,
    /// What the check of every operation says; `None` when there was none.
    pub check: Option<CheckReport>,
    /// CPU time of all server workers, in per cent of one core; `None` when there are none or they did not tell.
    pub server_cpu_pct: Option<f64>,
    /// CPU time of all client threads, in per cent of one core.
    pub client_cpu_pct: f64,
    /// Share of the time in which client threads had something to send or something came, 0 to 1: a client at 1 is what
    /// limits the run. `None` for a ceiling.
    pub client_busy_share: Option<f64>,
    /// CPU time of the client threads per operation in ns. Threads that spin use it all, whatever they do: this is what an
    /// operation costs only where `client_busy_share` is 1, as with `--target null`.
    pub generator_ns_per_op: f64,
    /// Resident memory of the server's process in bytes, which an embedded one shares with the clients; `None` when there
    /// is none or it did not tell.
    pub server_rss_bytes: Option<u64>,
    /// Round trip of a cache line between the first server core and the first client core in ns, the worse of before
    /// and after; `None` when it was not measured.
    pub core_to_core_ns: Option<f64>,
    /// The same before the run.
    pub core_to_core_before_ns: Option<f64>,
    /// The same after the run.
    pub core_to_core_after_ns: Option<f64>,
    /// What was counted second by second; in intervals of a 3,600th of the duration when that is longer.
    pub series: Series,
    /// What can be said of these figures: what limited them, and what makes them doubtful.
    pub verdicts: Vec<Verdict>,
    /// Datagrams lost, by the layer that lost them; `None` for a ceiling.
    pub loss_by_layer: Option<Losses>,
    /// The interface that led to the server; `None` when it is not known.
    pub nic: Option<NicFacts>,
    /// What was asked for.
    pub config: Config,
    /// Where it ran.
    pub environment: Environment,
}

/// What answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A server with its store.
    Run,
    /// Datagrams of the same shape from a server that has no store: what the packets allow.
    Ceiling,
    /// The client itself, without network, server and store: what the client costs.
    Null,
}

/// What was asked for, after resolving defaults.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// `embedded`, `null`, or the addresses of running servers.
    pub target: String,
    /// `udp` or `tcp`; in a comparison the name of the port.
    pub transport: String,
    /// `a`, `b`, `c`, `d` or `f`; `mix` when a share of gets was given, `trace` when one is replayed.
    pub workload: String,
    /// Share of gets among the operations; `None` for a trace.
    pub read_share: Option<f64>,
    /// Exponent of the Zipf law; 0 for laws without one.
    pub theta: f64,
    /// `zipf`, `uniform`, `scrambled`, `latest`, `hotspot` or `trace`.
    pub distribution: String,
    /// Share of the records that are hot, and of the operations on them; `None` for other laws.
    pub hotspot: Option<[f64; 2]>,
    /// Share of the operations that the law gives to its hottest key, 0 to 1; with workload d, of the gets.
    pub hottest_key_share: f64,
    /// Records stored before the run.
    pub records: u32,
    /// Records that each process inserts before it begins again with the first one inserted; `None` without inserts.
    pub inserts_max: Option<u32>,
    /// What is replayed, if anything.
    pub trace: Option<TraceConfig>,
    /// Bytes per value: a number, a range like `64-256`, a list like `100:0.7,4096-8192:0.3`, or `etc`.
    pub value_len: ValueLaw,
    /// Server workers, one per core.
    pub server_cores: usize,
    /// Client threads, one per core.
    pub threads: usize,
    /// Sessions of all threads together.
    pub sessions: usize,
    /// Operations per second asked for, of all sessions together; `None` in a closed loop.
    pub rate: Option<f64>,
    /// Law by which the operations of each session are due in an open loop; `None` in a closed one.
    pub arrivals: Option<String>,
    /// Time in ms for which the server stood still on purpose.
    pub stall_ms: Option<u64>,
    /// Memory of an embedded server in bytes; `None` when there is none.
    pub memory_bytes: Option<u64>,
    /// Whether client, servers and host were looked at each second.
    pub watch: bool,
    /// Seconds to measure.
    pub duration_s: f64,
    /// Seconds before that which do not count.
    pub warmup_s: f64,
    /// `none`, `key` or `strict`.
    pub order: String,
    /// Whether gets of one key that would travel in the same request travelled once.
    pub coalesce: bool,
    /// Whether each received value was checked.
    pub verify: bool,
    /// Whether every operation was checked for linearizability.
    pub check: bool,
    /// Share of the datagrams lost on purpose, in each direction.
    pub loss: f64,
    /// Share of the datagrams delivered twice on purpose.
    pub dup: f64,
    /// Share of the datagrams held back on purpose.
    pub reorder: f64,
    /// Operations per request, at most.
    pub batch: usize,
    /// Batches in flight per session and server core, at most.
    pub window: usize,
    /// Seed of all random choices.
    pub seed: u64,
    /// Whether datagrams carried a checksum of ours.
    pub checksum: bool,
    /// `spin` or `epoll`: what a server without work does.
    pub idle: String,
}

/// Where and from what a measurement was made. What the machine does not tell is `None`.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// Date and time of the start, in UTC, like `2026-01-31T12:34:56Z`.
    pub date: String,
    /// Version of this crate.
    pub version: &'static str,
    /// Commit of the sources, with `-dirty` behind it when they were changed since.
    pub commit: Option<String>,
    /// `release` or `debug`: a figure of the latter means nothing.
    pub build: &'static str,
    /// Release of the kernel (`uname -r`).
    pub kernel: Option<String>,
    /// Model of the processor as the kernel names it.
    pub cpu_model: Option<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory of the machine in bytes.
    pub memory_bytes: Option<u64>,
}

impl Environment {
    /// Looks around. To be called before any thread is pinned, as only the cores allowed to the caller are counted.
    #[must_use]
    pub fn look(now: SystemTime) -> Self {
        let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            date: utc(now),
            version: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned()),
            cpu_model: field(&cpu_info, "model name").map(str::to_owned),
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_bytes("MemTotal"),
        }
    }
}

/// What the kernel says of the machine's memory under this name, in bytes.
pub(crate) fn memory_bytes(name: &str) -> Option<u64> {
    let lines = fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = field(&lines, name)?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The value of the first line `name : value`.
fn field<'a>(lines: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = lines.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

/// The commit that the build was told (`LINERATE_COMMIT`), or else that of the source folder as it is now. That folder
/// may be gone or have moved on since the build, and git may be missing: this is a best effort.
fn commit() -> Option<String> {
    if let Some(commit) = option_env!("LINERATE_COMMIT") {
        return Some(commit.to_owned());
    }
    // No tag matches the pattern, so that the answer is always a hash.
    let arguments = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"];
    let output = Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| commit.trim().to_owned()).filter(|commit| !commit.is_empty())
}

/// Date and time of day in UTC, to the second, as in RFC 3339.
fn utc(now: SystemTime) -> String {
    // A clock before 1970 is not set at all.
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or_default()
        .to_string()
}

/// Where JSON goes: `-` is the standard output, anything else a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonTarget {
    /// Standard output; what is meant for people belongs on standard error then.
    Stdout,
    /// A file, which is replaced.
    File(PathBuf),
}

impl FromStr for JsonTarget {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "-" { Self::Stdout } else { Self::File(text.into()) })
    }
}

impl JsonTarget {
    /// Checks that the file could be written, before anything is measured in vain.
    ///
    /// # Errors
    /// As [`write`](Self::write); what was made to find out is removed again.
    pub fn check(&self) -> io::Result<()> {
        let Self::File(path) = self else { return Ok(()) };
        let written = if is_special(path) {
            // Opening one may already do something.
            Ok(())
        } else {
            Replacement::begin(path).and_then(Replacement::give_up)
        };
        written.map_err(|error| write_error(&format!("\"{}\"", path.display()), &error))
    }

    /// Writes `value` as one JSON object, indented, with a line feed behind it. A file has the old content until it has all of the
    /// new one.
    ///
    /// # Errors
    /// A sentence that names the file and what the system said.
    pub fn write(&self, value: &impl Serialize) -> io::Result<()> {
        let text = json(value)?;
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
                written.map_err(|error| write_error("the standard output", &error))
            }
            Self::File(path) if is_special(path) => write_file(path, text),
            Self::File(path) => replace_file(path, &text),
        }
    }
}

pub(crate) fn json(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

pub(crate) fn write_file(path: &Path, text: impl AsRef<[u8]>) -> io::Result<()> {
    fs::write(path, text).map_err(|error| write_error(&format!("\"{}\"", path.display()), &error))
}

/// Writes a file anew. Whoever reads it meanwhile, or after this process was killed, finds the old content or the new one.
///
/// # Errors
/// A sentence that names the file.
pub(crate) fn replace_file(path: &Path, text: &str) -> io::Result<()> {
    let written = Replacement::begin(path).and_then(|replacement| replacement.finish(text));
    written.map_err(|error| write_error(&format!("\"{}\"", path.display()), &error))
}

/// Whether something else than a file is there: what is written to a device, a pipe or another process's output goes there at
/// once.
fn is_special(path: &Path) -> bool {
    let is_system = path.starts_with("/proc") || (path.starts_with("/dev") && !path.starts_with("/dev/shm"));
    is_system || path.metadata().is_ok_and(|data| !data.is_file() && !data.is_dir())
}

/// A file beside another one, whose place it will take.
struct Replacement {
    file: fs::File,
    /// Where it is.
    path: PathBuf,
    /// Where it will be.
    place: PathBuf,
}

impl Replacement {
    fn begin(path: &Path) -> io::Result<Self> {
        // What a link points to is replaced, not the link.
        let place = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if place.exists() {
            // A file that may not be written is not replaced, and a folder cannot be.
            fs::OpenOptions::new().append(true).open(&place)?;
        }
        let name = place.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
        let name = format!(".{}.{}", name.to_string_lossy(), std::process::id());
        let path = place.with_file_name(name);
        Ok(Self { file: fs::File::create(&path)?, path, place })
    }

    fn finish(mut self, text: &str) -> io::Result<()> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        let renamed = written.and_then(|()| fs::rename(&self.path, &self.place));
        if renamed.is_err() {
            let _ = fs::remove_file(&self.path);
        }
        renamed
    }

    fn give_up(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

fn write_error(to: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write the result to {to}: {error}"))
}

/// A figure of a table: its name, its unit, how many decimals it has, and where it comes from.
struct Figure {
    name: &'static str,
    unit: &'static str,
    decimals: usize,
    of: Source,
    /// Whether the ratio of two of them says something.
    is_compared: bool,
}

type Source = fn(&Report) -> Option<f64>;

const fn figure(name: &'static str, unit: &'static str, decimals: usize, of: Source) -> Figure {
    Figure { name, unit, decimals, of, is_compared: false }
}

const fn compared(name: &'static str, unit: &'static str, decimals: usize, of: Source) -> Figure {
    Figure { is_compared: true, ..figure(name, unit, decimals, of) }
}

/// The lines of a table, in their order.
const FIGURES: [Figure; 37] = [
    compared("throughput", "Mop/s", 2, |report| Some(report.ops_per_sec / 1e6)),
    figure("  offered", "Mop/s", 2, |report| Some(report.offered_ops_per_sec? / 1e6)),
    compared("  gets", "Mop/s", 2, |report| Some(report.gets_per_sec / 1e6)),
    compared("  puts", "Mop/s", 2, |report| Some(report.puts_per_sec / 1e6)),
    compared("coalesced gets, not in these", "Mop/s", 2, |report| Some(report.coalesced_per_sec? / 1e6)),
    compared("gets with a put behind", "M/s", 2, |report| Some(report.rmws_per_sec? / 1e6)),
    figure("conditions not met", "", 0, |report| Some(report.conditions_unmet? as f64)),
    figure("hit ratio", "%", 2, |report| Some(report.hit_ratio * 100.0)),
    compared("latency p50", "µs", 1, |report| Some(report.latency_us.p50)),
    compared("  p90", "µs", 1, |report| Some(report.latency_us.p90)),
    compared("  p99", "µs", 1, |report| Some(report.latency_us.p99)),
    compared("  p99.9", "µs", 1, |report| Some(report.latency_us.p999)),
    compared("  p99.99", "µs", 1, |report| Some(report.latency_us.p9999)),
    compared("  max", "µs", 1, |report| Some(report.latency_us.max)),
    compared("batch latency p50", "µs", 1, |report| Some(report.batch_latency_us.p50)),
    compared("  p99", "µs", 1, |report| Some(report.batch_latency_us.p99)),
    compared("  p99.9", "µs", 1, |report| Some(report.batch_latency_us.p999)),
    figure("datagrams sent", "", 0, |report| Some(report.datagrams_tx as f64)),
    figure("datagrams received", "", 0, |report| Some(report.datagrams_rx as f64)),
    compared("replies sent", "M/s", 3, |report| Some(report.reply_datagrams_per_sec? / 1e6)),
    figure("retransmits", "", 0, |report| Some(report.retransmits as f64)),
    figure("receive overflows", "", 0, |report| Some(report.rx_overflow_drops as f64)),
    figure("errors", "", 0, |report| Some(report.errors as f64)),
    figure("outcome unknown", "", 0, |report| Some(report.outcome_unknown as f64)),
    figure("due and not sent", "", 0, |report| Some(report.unsent as f64)),
    figure("wrong values", "", 0, |report| report.wrong_values.map(|count| count as f64)),
    figure("checked operations", "", 0, |report| Some(report.check.as_ref()?.ops_checked as f64)),
    figure("  sampled", "", 0, |report| Some(report.check.as_ref()?.sampled_ops as f64)),
    figure("  violations", "", 0, |report| Some(report.check.as_ref()?.violations as f64)),
    figure("server CPU", "%", 1, |report| report.server_cpu_pct),
    figure("client CPU", "%", 1, |report| Some(report.client_cpu_pct)),
    figure("client busy", "%", 1, |report| Some(report.client_busy_share? * 100.0)),
    figure("client time per operation", "ns", 1, |report| Some(report.generator_ns_per_op)),
    figure("server memory", "MiB", 1, |report| {
        report.server_rss_bytes.map(|bytes| bytes as f64 / 1_048_576.0)
    }),
    figure("core to core before", "ns", 0, |report| report.core_to_core_before_ns),
    figure("  after", "ns", 0, |report| report.core_to_core_after_ns),
    figure("measured", "s", 1, |report| Some(report.duration_s)),
];

/// A table of one or more measurements side by side, each under its label, with the ratio first : second when there are
/// just two. What was not measured is a dash. Ends without a line feed.
#[must_use]
pub fn table(reports: &[(&str, &Report)]) -> String {
    let mut table = plain_table();
    let ratio = match reports {
        [(first, _), (second, _)] => Some(format!("{first} : {second}")),
        _ => None,
    };
    let labels = ["", ""].into_iter().chain(reports.iter().map(|&(label, _)| label));
    table.set_header(labels.map(str::to_owned).chain(ratio.clone()).map(number));
    for figure in &FIGURES {
        let values: Vec<_> = reports.iter().map(|(_, report)| (figure.of)(report)).collect();
        let shown = values.iter().map(|value| number(shown(*value, figure.decimals)));
        let ratio = ratio.iter().map(|_| match values[..] {
            [Some(first), Some(second)] if figure.is_compared && second > 0.0 => {
                number(format!("{:.2}", first / second))
            }
            _ => number(String::new()),
        });
        table.add_row([Cell::new(figure.name), Cell::new(figure.unit)].into_iter().chain(shown).chain(ratio));
    }
    table.trim_fmt()
}

/// The figures of a table as comma-separated values: name, unit, number; what was not measured has none.
pub(crate) fn summary_csv(report: &Report) -> String {
    let lines = FIGURES.iter().map(|figure| {
        let value = (figure.of)(report).map(|value| value.to_string()).unwrap_or_default();
        // One name has a comma in it.
        format!("\"{}\",{},{value}\n", figure.name.trim(), figure.unit)
    });
    std::iter::once("figure,unit,value\n".to_owned()).chain(lines).collect()
}

/// A table without lines between its rows.
pub(crate) fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table
}

pub(crate) fn number(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// `value` with so many decimals, digits in groups of three.
pub(crate) fn shown(value: Option<f64>, decimals: usize) -> String {
    let Some(value) = value else { return "–".to_owned() };
    let plain = format!("{value:.decimals$}");
    let whole = plain.find('.').unwrap_or(plain.len());
    let mut grouped = String::with_capacity(plain.len() + whole / 3);
    for (index, digit) in plain.char_indices() {
        let follows_digit = grouped.ends_with(|last: char| last.is_ascii_digit());
        if index < whole && follows_digit && (whole - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::Value;

    use super::*;

    /// A report with a different number in each field.
    pub(crate) fn report() -> Report {
        Report {
            kind: Kind::Run,
            partial: false,
            failure: None,
            loop_kind: "closed",
            offered_ops_per_sec: None,
            due_ops_per_sec: None,
            achieved_ops_per_sec: None,
            mode: Some("UDP sockets, in trains".to_owned()),
            ops_per_sec: 41_234_567.0,
            gets_per_sec: 39_172_839.0,
            puts_per_sec: 2_061_728.0,
            coalesced_per_sec: None,
            rmws_per_sec: None,
            rmw_latency_us: None,
            conditions_unmet: None,
            hit_ratio: 1.0,
            ops: 329_876_543,
            duration_s: 8.0,
            latency_us: LatencyUs {
                p50: 61.5,
                p90: 80.0,
                p99: 98.25,
                p999: 1_234.5,
                p9999: 4_000.0,
                max: 4_321.0,
            },
            latency_count: 329_876_600,
            latency_cdf: vec![[61.5, 0.5], [4_321.0, 1.0]],
            batch_latency_us: LatencyUs {
                p50: 51.0,
                p90: 70.0,
                p99: 88.0,
                p999: 1_200.0,
                p9999: 4_100.0,
                max: 4_300.0,
            },
            datagrams_tx: 3_000_000,
            datagrams_rx: 33_000_000,
            reply_datagrams_per_sec: Some(4_100_000.0),
            server_datagrams_tx: Some(35_000_000),
            retransmits: 2,
            rx_overflow_drops: 0,
            errors: 0,
            outcome_unknown: 0,
            unsent: 0,
            wrong_values: Some(0),
            check: Some(CheckReport { ops_checked: 336_543_210, ..CheckReport::default() }),
            server_cpu_pct: Some(99.5),
            client_cpu_pct: 99.9,
            client_busy_share: Some(0.75),
            generator_ns_per_op: 24.2,
            server_rss_bytes: Some(256 << 20),
            core_to_core_ns: Some(106.0),
            core_to_core_before_ns: Some(105.0),
            core_to_core_after_ns: Some(106.0),
            series: Series::empty(),
            verdicts: Vec::new(),
            loss_by_layer: None,
            nic: None,
            config: Config {
                target: "embedded".to_owned(),
                transport: "udp".to_owned(),
                workload: "b".to_owned(),
                read_share: Some(0.95),
                theta: 0.99,
                distribution: "zipf".to_owned(),
                hotspot: None,
                hottest_key_share: 0.065,
                records: 1_000_000,
                inserts_max: None,
                trace: None,
                value_len: "128".parse().unwrap(),
                server_cores: 1,
                threads: 1,
                sessions: 1,
                rate: None,
                arrivals: None,
                stall_ms: None,
                memory_bytes: Some(256 << 20),
                watch: true,
                duration_s: 8.0,
                warmup_s: 1.0,
                order: "none".to_owned(),
                coalesce: false,
                verify: true,
                check: true,
                loss: 0.0,
                dup: 0.0,
                reorder: 0.0,
                batch: 110,
                window: 16,
                seed: 1,
                checksum: false,
                idle: "spin".to_owned(),
            },
            environment: Environment {
                date: "2026-01-31T12:34:56Z".to_owned(),
                version: "0.1.0",
                commit: None,
                build: "release",
                kernel: Some("6.1.0".to_owned()),
                cpu_model: Some("A Processor".to_owned()),
                cores: 2,
                memory_bytes: Some(8 << 30),
            },
        }
    }

    fn keys(value: &Value) -> Vec<&str> {
        value.as_object().unwrap().keys().map(String::as_str).collect()
    }

    /// Goal: the names that scripts rely on are there, with numbers in the unit that they name. Method: every name of
    /// the contract, and the values of those that are not plain copies.
    #[test]
    fn the_json_keeps_its_contract() {
        let value: Value = serde_json::from_str(&json(&report()).unwrap()).unwrap();
        for name in [
            "ops_per_sec",
            "gets_per_sec",
            "puts_per_sec",
            "hit_ratio",
            "ops",
            "duration_s",
            "datagrams_tx",
            "datagrams_rx",
            "reply_datagrams_per_sec",
            "retransmits",
            "rx_overflow_drops",
            "errors",
            "outcome_unknown",
            "wrong_values",
            "server_cpu_pct",
            "client_cpu_pct",
            "server_rss_bytes",
            "core_to_core_ns",
            "core_to_core_before_ns",
            "core_to_core_after_ns",
        ] {
            assert!(value[name].is_number(), "{name}: {}", value[name]);
        }
        for name in ["latency_us", "batch_latency_us"] {
            assert_eq!(keys(&value[name]), ["max", "p50", "p90", "p99", "p999", "p9999"]);
        }
        let mut config: Vec<_> =
            "target transport workload read_share theta distribution hotspot hottest_key_share records inserts_max trace \
             value_len server_cores threads sessions rate arrivals stall_ms memory_bytes watch \
             duration_s warmup_s order coalesce verify check loss dup reorder batch window seed checksum idle"
                .split_whitespace()
                .collect();
        config.sort_unstable();
        assert_eq!(keys(&value["config"]), config);
        assert_eq!(value["config"]["workload"], "b");
        assert_eq!(value["config"]["value_len"], 128);
        assert_eq!(value["check"]["ops_checked"], 336_543_210);
        for name in ["sampled_ops", "violations", "windows", "data_epochs"] {
            assert_eq!(value["check"][name], 0, "{name}");
        }
        assert_eq!(value["check"]["first_violation"], Value::Null);
        assert_eq!(keys(&value["check"]["audit"]), ["acknowledged", "grown", "impossible", "unknown"]);
        assert_eq!((&value["kind"], &value["coalesced_per_sec"]), (&"run".into(), &Value::Null));
        assert_eq!(value["environment"]["commit"], Value::Null);
    }

    /// Goal: a table names units, aligns numbers and compares two results where that means something. Method: the whole
    /// table of two known reports.
    #[test]
    fn two_reports_are_compared() {
        let (udp, mut tcp) = (report(), report());
        tcp.ops_per_sec = udp.ops_per_sec / 1.25;
        tcp.wrong_values = None;
        tcp.coalesced_per_sec = Some(8_000_000.0);
        let table = table(&[("UDP", &udp), ("TCP", &tcp)]);
        println!("{table}");
        let line = |start: &str| {
            let mut lines = table.lines().filter(|line| line.trim_start().starts_with(start));
            lines
                .next()
                .unwrap_or_else(|| panic!("no line {start}"))
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(line("UDP"), "UDP TCP UDP : TCP");
        assert_eq!(line("throughput"), "throughput Mop/s 41.23 32.99 1.25");
        assert_eq!(line("coalesced"), "coalesced gets, not in these Mop/s – 8.00");
        assert_eq!(line("hit ratio"), "hit ratio % 100.00 100.00");
        assert_eq!(line("latency p50"), "latency p50 µs 61.5 61.5 1.00");
        assert_eq!(line("p99.9"), "p99.9 µs 1,234.5 1,234.5 1.00");
        assert_eq!(line("datagrams received"), "datagrams received 33,000,000 33,000,000");
        assert_eq!(line("wrong values"), "wrong values 0 –");
        assert_eq!(line("server memory"), "server memory MiB 256.0 256.0");
        // Right-aligned: the last digits of a column stand below each other.
        let ends = |start: &str, number: &str| {
            let line = table.lines().find(|line| line.trim_start().starts_with(start)).unwrap();
            line[..line.find(number).unwrap() + number.len()].chars().count()
        };
        assert_eq!(ends("throughput", "41.23"), ends("datagrams received", "33,000,000"));
    }

    /// Goal: one, three and no reports make tables too, without a ratio. Method: look for it.
    #[test]
    fn any_number_of_reports_makes_a_table() {
        let report = report();
        for count in [0, 1, 3] {
            let table = table(&vec![("UDP", &report); count]);
            assert!(!table.contains(" : "), "{table}");
            assert_eq!(table.matches("41.23").count(), count);
        }
    }

    #[test]
    fn numbers_are_grouped() {
        for (value, decimals, text) in [
            (0.0, 0, "0"),
            (999.0, 0, "999"),
            (1_000.0, 0, "1,000"),
            (123_456.0, 0, "123,456"),
            (1_234_567.891, 2, "1,234,567.89"),
            (999.96, 1, "1,000.0"),
            (-1_000.0, 0, "-1,000"),
            (-100.0, 0, "-100"),
        ] {
            assert_eq!(shown(Some(value), decimals), text);
        }
        assert_eq!(shown(None, 2), "–");
    }

    /// Goal: dates are in UTC and to the second, as scripts and folder names expect. Method: known seconds (from date(1)).
    #[test]
    fn dates_are_rfc_3339_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_769_862_896, "2026-01-31T12:34:56Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    /// Goal: looking around works on this machine and never fails. Method: what every Linux tells.
    #[test]
    fn the_environment_is_seen() {
        let environment = Environment::look(UNIX_EPOCH);
        println!("{environment:?}");
        assert_eq!(environment.date, "1970-01-01T00:00:00Z");
        assert!(environment.cores > 0);
        assert!(environment.memory_bytes.is_some_and(|bytes| bytes > 1 << 20));
        assert!(environment.kernel.is_some_and(|kernel| !kernel.is_empty()));
        assert_eq!(field("a: 1\nmodel name\t: A Processor\n", "model name"), Some("A Processor"));
        assert_eq!(field("model name\n", "model name"), None);
    }

    /// Goal: JSON goes where it should, and a refusal names the file. Method: a file, and one in a folder that is none.
    #[test]
    fn json_goes_to_a_file() {
        assert_eq!("-".parse(), Ok(JsonTarget::Stdout));
        let path = std::env::temp_dir().join(format!("linerate-bench-json-{}", std::process::id()));
        let target: JsonTarget = path.to_str().unwrap().parse().unwrap();
        target.write(&[1, 2]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\n  1,\n  2\n]\n");
        fs::remove_file(&path).unwrap();
        let missing = JsonTarget::File(path.join("result.json"));
        for error in [missing.check(), missing.write(&1)] {
            let error = error.unwrap_err().to_string();
            let expected = format!("cannot write the result to \"{}/result.json\": ", path.display());
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    /// Goal: whether a file can be written shows before, and looking leaves everything as it was; it is replaced as a whole and
    /// through links, and what is no file is written to. Method: a folder with a file and a link, and what the system has.
    #[test]
    fn json_replaces_whole_files() {
        let folder = std::env::temp_dir().join(format!("linerate-bench-json-whole-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let (file, link) = (folder.join("result.json"), folder.join("link"));
        let names = || fs::read_dir(&folder).unwrap().count();
        JsonTarget::File(file.clone()).check().unwrap();
        assert_eq!(names(), 0);
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        // Whoever reads the old one goes on doing so.
        let mut reader = fs::File::open(&file).unwrap();
        JsonTarget::File(link.clone()).check().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "old");
        JsonTarget::File(link.clone()).write(&1).unwrap();
        assert_eq!((fs::read_to_string(&file).unwrap().as_str(), names()), ("1\n", 2));
        assert!(link.is_symlink());
        assert_eq!(io::read_to_string(&mut reader).unwrap(), "old");
        assert!(JsonTarget::File(folder.clone()).check().is_err());
        for special in ["/dev/null", "/dev/stdout", "-"] {
            special.parse::<JsonTarget>().unwrap().check().unwrap();
        }
        JsonTarget::File("/dev/null".into()).write(&1).unwrap();
        fs::remove_dir_all(&folder).unwrap();
    }
}
