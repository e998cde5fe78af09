//! The same operations with the stores that everybody has: Redis, Valkey and memcached, as they are installed here.
//!
//! Each server runs on the CPU that linerate's server core has and each client on that of linerate's client, one after the
//! other, linerate in between. The clients are of this crate and as tight as linerate's own (`drive`): they draw the same
//! keys, put the same values and read every byte that they get. A peer is driven in several dialects and at several depths
//! for a moment each (`setting`); the best two are then measured at full length, and the better one counts.

mod drive;
#[cfg(test)]
mod fake;
mod memcached;
mod request;
mod resp;
mod server;
mod setting;
mod wire;

use std::{
    collections::BTreeMap,
    iter,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use comfy_table::Cell;
use indicatif::ProgressBar;
use linerate_dataplane::{
    pin::pin_to_core,
    transport::{Transport, Wanted},
};
use serde::Serialize;

use self::{
    drive::{DATAGRAM_VALUE_LEN_MAX, Driven, Plan, drive, preload},
    request::Look,
    server::{Needs, PeerServer, Program},
    setting::{DATAGRAMS, Dialect, RESP, Setting, TEXT, fitting_settings},
};
use crate::{
    latency::LatencyUs,
    median::middle,
    options::{Cpus, Distribution, RunOptions, seconds},
    output::{Environment, JsonTarget, Report, number, plain_table, shown},
    repeated::run_whole,
    results::KeepOptions,
    run::{Drawn, check_stop, progress_bar},
    workload::{RECORDS_MAX, Stream, Theta, ValueLen, Workload},
};

/// Seconds for which each setting of a peer is tried, and before that without counting.
const PROBE: f64 = 0.4;
const PROBE_WARMUP: f64 = 0.1;

/// Settings that are measured at full length after that: the second best of a moment may be the best in the long run.
const FINALISTS: usize = 2;

/// Seconds of load before each measurement at full length.
const WARMUP: f64 = 0.5;

/// Share of the operations that may get lost with datagrams. Such losses come from moments in which the client did not run.
const UNANSWERED_SHARE_MAX: f64 = 0.001;

/// A core that has at least so much to do, in %, is the limit. Ticks of the kernel's clock are a part of what is missing.
const BUSY_PCT: f64 = 90.0;

/// How often the progress bar is moved.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A comparison with other stores: one server core, one client core.
#[derive(Clone, Debug, Args)]
pub struct PeersOptions {
    /// Peers to compare with [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub peers: Vec<Peer>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub duration: f64,
    /// What linerate speaks: udp or tcp
    #[arg(long, default_value = "udp", value_parser = transport)]
    pub transport: Transport,
    /// Share of gets: a 50 %, b 95 %, c 100 %; the rest are puts
    #[arg(long, default_value = "b", value_parser = workload)]
    pub workload: Workload,
    /// Law by which keys are chosen
    #[arg(long, default_value = "zipf")]
    pub distribution: Distribution,
    /// Exponent of the Zipf law, 0 to 10
    #[arg(long, default_value = "0.99")]
    pub theta: Theta,
    /// Records stored before
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(RECORDS_MAX)))]
    pub records: u32,
    /// Bytes per value: a number, or a range such as 64-256
    #[arg(long, default_value = "128")]
    pub value_len: ValueLen,
    /// Operations of a batch of linerate's, and at most of a request, 1 to 255; the peers have settings of their own
    #[arg(long, default_value_t = 110, value_parser = clap::value_parser!(u8).range(1..))]
    pub batch: u8,
    /// Batches of linerate's in flight, 1 to 128
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub window: u16,
    /// Check that each value got was put at its key, also with the peers
    #[arg(long)]
    pub verify: bool,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the result as JSON to this file, - for standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<JsonTarget>,
    /// Whether and where it is kept.
    #[command(flatten)]
    pub place: KeepOptions,
}

/// Parses a workload that all of them can do alike.
fn workload(text: &str) -> Result<Workload, String> {
    let workload: Workload = text.parse().map_err(|error| format!("{error}"))?;
    match workload {
        Workload::A | Workload::B | Workload::C => Ok(workload),
        _ => Err("peers are compared by gets and puts alone: give a, b or c".to_owned()),
    }
}

impl PeersOptions {
    /// The run of linerate that peers are compared with.
    #[must_use]
    pub fn run(&self) -> RunOptions {
        RunOptions {
            transport: Wanted::Is(self.transport),
            workload: self.workload,
            distribution: Some(self.distribution),
            theta: self.theta,
            records: self.records,
            value_len: self.value_len.into(),
            duration: self.duration,
            warmup: WARMUP.min(self.duration),
            batch: self.batch,
            window: self.window,
            verify: self.verify,
            seed: self.seed,
            ..RunOptions::defaults()
        }
    }
}

fn transport(text: &str) -> Result<Transport, String> {
    match text {
        "udp" => Ok(Transport::Udp),
        "tcp" => Ok(Transport::Tcp),
        _ => Err(format!("`{text}` does not go over loopback: give udp or tcp")),
    }
}

/// A store to compare with, and how it is spoken with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// redis-server: pipelined GET and SET, and MGET.
    Redis,
    /// valkey-server: the same.
    Valkey,
    /// memcached, its text protocol over TCP: get of many keys.
    Memcached,
    /// memcached over UDP: the same in datagrams.
    MemcachedUdp,
}

impl Peer {
    /// Its name in results and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Valkey => "valkey",
            Self::Memcached => "memcached",
            Self::MemcachedUdp => "memcached-udp",
        }
    }

    const fn program(self) -> Program {
        match self {
            Self::Redis => Program::Redis,
            Self::Valkey => Program::Valkey,
            Self::Memcached | Self::MemcachedUdp => Program::Memcached,
        }
    }

    const fn settings(self) -> &'static [Setting] {
        match self {
            Self::Redis | Self::Valkey => &RESP,
            Self::Memcached => &TEXT,
            Self::MemcachedUdp => &DATAGRAMS,
        }
    }

    /// In which dialect records are stored: one that loses nothing.
    const fn preload_dialect(self) -> Dialect {
        match self {
            Self::Redis | Self::Valkey => Dialect::RespGet,
            Self::Memcached | Self::MemcachedUdp => Dialect::Text,
        }
    }
}

/// All of a comparison. The names are a contract, as those of [`Report`].
#[derive(Clone, Debug, Serialize)]
pub struct PeersReport {
    /// `peers`.
    pub kind: &'static str,
    /// What the peers are compared with.
    pub linerate: LinerateResult,
    /// Those that could be measured.
    pub peers: Vec<PeerResult>,
    /// How many times as fast as each of them linerate was in the rounds before and after it, whose mean counts.
    pub ratios: BTreeMap<&'static str, f64>,
    /// The same with the slowest and the fastest of all rounds.
    pub ratio_ranges: BTreeMap<&'static str, RatioRange>,
    /// Those that could not, a sentence each that begins with the name and tells what to do, or what went wrong.
    pub missing: Vec<String>,
    /// Whether it ended before all were measured.
    pub partial: bool,
    /// Why it did, in one sentence.
    pub failure: Option<String>,
    /// Where it ran.
    pub environment: Environment,
}

/// Between what a ratio lies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RatioRange {
    /// With the slowest round of linerate.
    pub min: f64,
    /// With the fastest one.
    pub max: f64,
}

/// What linerate does in the same place.
#[derive(Clone, Debug, Serialize)]
pub struct LinerateResult {
    /// Operations per second, the median of the rounds (of an even number the lower one in the middle).
    pub ops_per_sec: f64,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// CPU time of the server in the median round, in per cent of one core.
    pub server_cpu_pct: f64,
    /// CPU time of the client in the median round, in per cent of one core.
    pub client_cpu_pct: f64,
    /// Time in which the client had something to send or to receive in the median round, in %.
    pub client_busy_pct: f64,
    /// As [`PeerResult::limit`].
    pub limit: &'static str,
    /// Of the median round, in µs: from sending a request until its last result, once per request, as the peers' is from
    /// writing a request until its last answer.
    pub latency_us: LatencyUs,
    /// Batches that travelled and how many at once, in words.
    pub settings: String,
    /// Operations per second of each round: before the first peer that was measured, between two, and after the last one.
    pub rounds_ops_per_sec: Vec<f64>,
    /// Those of the slowest round.
    pub min: f64,
    /// Those of the fastest round.
    pub max: f64,
    /// The median round; wrong values are those of all rounds.
    pub report: Report,
}

/// What a peer does at its best.
#[derive(Clone, Debug, Serialize)]
pub struct PeerResult {
    /// As [`Peer::name`].
    pub name: &'static str,
    /// As it says itself.
    pub version: String,
    /// Operations answered per second.
    pub ops_per_sec: f64,
    /// How it was asked, in words.
    pub settings: String,
    /// CPU time of all its threads, in per cent of one core.
    pub server_cpu_pct: f64,
    /// CPU time of the client, in per cent of one core; it spins.
    pub client_cpu_pct: f64,
    /// Time in which the client had something to send or to receive, in %.
    pub client_busy_pct: f64,
    /// What was busy all the time: `server`, `client`, `both`, or `neither`, when each waited for the other.
    pub limit: &'static str,
    /// Gets of these operations per second.
    pub gets_per_sec: f64,
    /// Puts of these operations per second.
    pub puts_per_sec: f64,
    /// Share of the gets that found a value, always 1: otherwise it would be among the missing.
    pub hit_ratio: f64,
    /// Operations without an answer, since datagrams got lost; these are in no other figure.
    pub unanswered: u64,
    /// Values that no put can have written; `None` when they were not checked.
    pub wrong_values: Option<u64>,
    /// From writing a request until its last answer, in µs, counted once per operation.
    pub latency_us: LatencyUs,
    /// Time measured in seconds.
    pub duration_s: f64,
    /// All that was tried, in this order.
    pub tried: Vec<Tried>,
}

/// One setting of a peer, and what it gave.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// In words.
    pub settings: String,
    /// Operations answered per second, in a short time; `None` when it did not work.
    pub ops_per_sec: Option<f64>,
    /// Why it did not, in one sentence.
    pub error: Option<String>,
}

impl Tried {
    fn of(setting: Setting, result: &anyhow::Result<Driven>) -> Self {
        Self {
            settings: setting.to_string(),
            ops_per_sec: result.as_ref().ok().map(Driven::ops_per_sec),
            error: result.as_ref().err().map(|error| format!("it {error:#}")),
        }
    }
}

/// Measures linerate and every peer that is installed. Ends early when `stop` is set, with what there is by then, if
/// anything.
///
/// # Errors
/// When linerate cannot be measured; of a peer that cannot, the report says so.
pub fn peers(options: &PeersOptions, stop: &AtomicBool) -> anyhow::Result<PeersReport> {
    let environment = Environment::look(SystemTime::now());
    let wanted = Peer::value_variants().iter().copied();
    let wanted = wanted.filter(|peer| options.peers.is_empty() || options.peers.contains(peer));
    let mut missing = Vec::new();
    let mut found: Vec<(Peer, PathBuf)> = Vec::new();
    for peer in wanted {
        match peer.program().find() {
            Some(file) => found.push((peer, file)),
            None => missing.push(not_installed(peer)),
        }
    }
    let run_options = options.run();
    let cpus = Cpus::assign(1, 1)?;
    let mut drawn = Drawn::default();
    let stream = drawn.streams(&run_options)?.remove(0);
    let bench = Bench { options, run_options: &run_options, cpus: &cpus, stream: &stream, stop };
    let taken = take_turns(
        &found,
        stop,
        || run_whole(&run_options, stop, &mut drawn),
        |(peer, file)| bench.measure(*peer, file),
    )?;
    for ((peer, file), error) in taken.refused {
        missing.push(format!("{}: found as {}, but it {error:#}", peer.name(), file.display()));
    }
    Ok(report(options, taken.rounds, taken.results, missing, taken.failure, environment))
}

/// What was measured by turns.
struct Turns<'a, P, L, R> {
    /// Of linerate: the first before the first result, then one after each.
    rounds: Vec<L>,
    /// Of those peers that could be measured.
    results: Vec<R>,
    /// The others.
    refused: Vec<(&'a P, anyhow::Error)>,
    /// Why these are not all.
    failure: Option<String>,
}

/// Measures linerate, and after each peer that could be measured again. What was measured until `stop` was set or linerate
/// failed is kept.
///
/// # Errors
/// When not even the first round of linerate could be measured.
fn take_turns<'a, P, L, R>(
    peers: &'a [P],
    stop: &AtomicBool,
    mut linerate: impl FnMut() -> anyhow::Result<L>,
    mut measure: impl FnMut(&P) -> anyhow::Result<R>,
) -> anyhow::Result<Turns<'a, P, L, R>> {
    let first = linerate()?;
    let mut turns = Turns { rounds: vec![first], results: Vec::new(), refused: Vec::new(), failure: None };
    for peer in peers {
        match measure(peer) {
            Ok(result) => turns.results.push(result),
            Err(_) if stop.load(Ordering::Relaxed) => {
                turns.failure = Some("interrupted".to_owned());
                break;
            }
            Err(error) => {
                turns.refused.push((peer, error));
                continue;
            }
        }
        match linerate() {
            Ok(round) => turns.rounds.push(round),
            Err(error) => {
                let is_stopped = stop.load(Ordering::Relaxed);
                turns.failure = Some(if is_stopped {
                    "interrupted".to_owned()
                } else {
                    format!("a later round of linerate failed: {error:#}")
                });
                break;
            }
        }
    }
    Ok(turns)
}

/// Puts together what was measured by turns.
fn report(
    options: &PeersOptions,
    rounds: Vec<Report>,
    peers: Vec<PeerResult>,
    missing: Vec<String>,
    failure: Option<String>,
    environment: Environment,
) -> PeersReport {
    let linerate = LinerateResult::of(rounds, options);
    let beside = linerate.rounds_ops_per_sec.iter().enumerate().map(|(index, &before)| {
        // The last peer may have no round behind it.
        let after = linerate.rounds_ops_per_sec.get(index + 1).copied().unwrap_or(before);
        (before + after) / 2.0
    });
    PeersReport {
        kind: "peers",
        ratios: peers
            .iter()
            .zip(beside)
            .map(|(peer, beside)| (peer.name, beside / peer.ops_per_sec))
            .collect(),
        ratio_ranges: peers
            .iter()
            .map(|peer| {
                let [min, max] = [linerate.min, linerate.max].map(|ops| ops / peer.ops_per_sec);
                (peer.name, RatioRange { min, max })
            })
            .collect(),
        linerate,
        peers,
        missing,
        partial: failure.is_some(),
        failure,
        environment,
    }
}

/// Which side had something to do all the time.
fn limit(server_cpu_pct: f64, client_busy_pct: f64) -> &'static str {
    match (server_cpu_pct >= BUSY_PCT, client_busy_pct >= BUSY_PCT) {
        (true, true) => "both",
        (true, false) => "server",
        (false, true) => "client",
        (false, false) => "neither",
    }
}

fn not_installed(peer: Peer) -> String {
    let (name, program) = (peer.name(), peer.program().file_name());
    let since = match peer {
        Peer::Valkey => ", on Debian 13 and Ubuntu 24.04 or later",
        _ => "",
    };
    format!("{name}: {program} is not installed; `apt-get install {program}` gets it{since}")
}

/// What all peers are measured with.
struct Bench<'a> {
    options: &'a PeersOptions,
    run_options: &'a RunOptions,
    cpus: &'a Cpus,
    stream: &'a Stream,
    stop: &'a AtomicBool,
}

impl Bench<'_> {
    /// Measures one peer.
    ///
    /// # Errors
    /// A sentence that fits behind its name: what it did.
    fn measure(&self, peer: Peer, file: &Path) -> anyhow::Result<PeerResult> {
        let PeersOptions { records, value_len, .. } = *self.options;
        anyhow::ensure!(
            peer != Peer::MemcachedUdp || value_len.max() <= DATAGRAM_VALUE_LEN_MAX,
            "sends values of more than {DATAGRAM_VALUE_LEN_MAX} bytes in several datagrams, which is not measured: give a \
             smaller --value-len"
        );
        let needs = Needs {
            records,
            value_len,
            // Classes of sizes, and what is never given back, take up to as much again.
            memory_len: 2 * self.run_options.memory_len(),
            udp: peer == Peer::MemcachedUdp,
            cpu: self.cpus.server[0],
        };
        let mut server = PeerServer::start(peer.program(), file, needs, self.stop)?;
        let result = self.measure_server(peer, &server);
        // That it has ended says more than that it no longer answers.
        result.map_err(|error| match server.end() {
            Some(end) => error.context(end),
            None => error,
        })
    }

    fn measure_server(&self, peer: Peer, server: &PeerServer) -> anyhow::Result<PeerResult> {
        let bar = progress_bar(self.options.records.into(), peer.name());
        bar.set_message("storing records");
        let stored = self.on_client_cpu(|| {
            let (records, value_len) = (self.options.records, self.options.value_len);
            let progress = |count| bar.set_position(count);
            preload(server.addr, peer.preload_dialect(), records, value_len, self.stop, progress)
        });
        bar.finish_and_clear();
        stored.context("could not be given the records")?;

        let settings = &fitting_settings(peer.settings(), self.options.value_len)[..];
        let bar = progress_bar((settings.len() + FINALISTS) as u64, peer.name());
        let measured = find_best(settings, self.options.duration, self.stop, |setting, warmup, duration| {
            let driven = self.drive(setting, server, warmup, duration, &bar);
            bar.inc(1);
            driven
        });
        bar.finish_and_clear();
        let (setting, driven, tried) = measured?;
        let tally = &driven.tally;
        let (server_cpu_pct, client_busy_pct) = (
            driven.server_cpu.map_or(0.0, |cpu| driven.pct(cpu)),
            100.0 - driven.pct(driven.idle.min(driven.elapsed)),
        );
        let per_sec = |count: u64| driven.ops_per_sec() * count as f64 / tally.ops().max(1) as f64;
        Ok(PeerResult {
            name: peer.name(),
            version: server.version.clone(),
            ops_per_sec: driven.ops_per_sec(),
            settings: setting.to_string(),
            server_cpu_pct,
            client_cpu_pct: driven.pct(driven.client_cpu),
            client_busy_pct,
            limit: limit(server_cpu_pct, client_busy_pct),
            gets_per_sec: per_sec(tally.hits + tally.misses),
            puts_per_sec: per_sec(tally.puts),
            hit_ratio: 1.0,
            unanswered: tally.unanswered,
            wrong_values: self.options.verify.then_some(tally.wrong_values),
            latency_us: tally.latency.summary(),
            duration_s: driven.elapsed.as_secs_f64(),
            tried,
        })
    }

    /// Measures one setting.
    fn drive(
        &self,
        setting: Setting,
        server: &PeerServer,
        warmup: f64,
        duration: f64,
        bar: &ProgressBar,
    ) -> anyhow::Result<Driven> {
        let plan = Plan {
            addr: server.addr,
            setting,
            look: Look { value_len: self.options.value_len, verify: self.options.verify },
            warmup: Duration::from_secs_f64(warmup),
            duration: Duration::from_secs_f64(duration),
            yields: self.cpus.is_crowded,
            stop: self.stop,
        };
        let live = AtomicU64::new(0);
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                pin_to_core(self.cpus.clients[0])?;
                drive(&plan, &mut self.stream.clone(), &live, &|| server.cpu())
            });
            let mut last = 0;
            while !client.is_finished() {
                thread::sleep(PROGRESS_INTERVAL);
                let count = live.load(Ordering::Relaxed);
                let rate = (count - last) as f64 / PROGRESS_INTERVAL.as_secs_f64();
                last = count;
                bar.set_message(format!("{:.2} Mop/s, {setting}", rate / 1e6));
            }
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Does something where the client runs.
    fn on_client_cpu<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                pin_to_core(self.cpus.clients[0])?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Tries all settings for a moment, by `drive`, which is told the seconds before and of the measurement, and then the best of
/// them at full length. A setting that does not work is left out.
///
/// # Errors
/// A sentence that fits behind the peer's name: that its answers were wrong, or why no setting works.
fn find_best(
    settings: &[Setting],
    duration: f64,
    stop: &AtomicBool,
    mut drive: impl FnMut(Setting, f64, f64) -> anyhow::Result<Driven>,
) -> anyhow::Result<(Setting, Driven, Vec<Tried>)> {
    let (mut tried, mut ranked, mut failed) = (Vec::with_capacity(settings.len()), Vec::new(), None);
    let mut measure = |setting, warmup: f64, duration| -> anyhow::Result<anyhow::Result<Driven>> {
        let driven = drive(setting, warmup.min(duration), duration);
        check_stop(stop)?;
        if let Ok(driven) = &driven {
            check_answers(driven)?;
        }
        Ok(driven.and_then(|driven| {
            anyhow::ensure!(driven.tally.ops() > 0, "answered nothing that was asked for");
            Ok(driven)
        }))
    };
    for &setting in settings {
        let result = measure(setting, PROBE_WARMUP, PROBE.min(duration))?;
        tried.push(Tried::of(setting, &result));
        match result {
            // Without losses first: what is lost counts as nothing, and hides what the loss has cost.
            Ok(driven) => ranked.push((setting, !loses_much(&driven), driven.ops_per_sec())),
            // The first error says most: a server that has ended takes no connections afterwards.
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    ranked.sort_by(|(_, one_whole, one), (_, other_whole, other)| {
        other_whole.cmp(one_whole).then(other.total_cmp(one))
    });
    let mut finals: Vec<(Setting, Driven)> = Vec::with_capacity(FINALISTS);
    for (setting, ..) in ranked {
        match measure(setting, WARMUP, duration)? {
            Ok(driven) => finals.push((setting, driven)),
            Err(error) => failed = failed.or(Some(error)),
        }
        if finals.len() == FINALISTS {
            break;
        }
    }
    if let (true, Some(error)) = (finals.is_empty(), failed) {
        return Err(error);
    }
    let kept = finals.into_iter().filter(|(_, driven)| !loses_much(driven));
    let best = kept.max_by(|(_, a), (_, b)| a.ops_per_sec().total_cmp(&b.ops_per_sec()));
    let (setting, driven) = best.with_context(|| {
        format!("left more than {} % of the operations without an answer", UNANSWERED_SHARE_MAX * 100.0)
    })?;
    Ok((setting, driven, tried))
}

/// Whether a peer has answered rightly: one that has not is compared in no setting.
fn check_answers(driven: &Driven) -> anyhow::Result<()> {
    let tally = &driven.tally;
    anyhow::ensure!(tally.misses == 0, "lost records: {} gets found nothing", tally.misses);
    anyhow::ensure!(
        tally.wrong_values == 0,
        "answered with {} values that were never put at their keys",
        tally.wrong_values
    );
    Ok(())
}

fn loses_much(driven: &Driven) -> bool {
    let tally = &driven.tally;
    tally.unanswered as f64 > (tally.ops() + tally.unanswered) as f64 * UNANSWERED_SHARE_MAX
}

impl LinerateResult {
    /// Of at least one round.
    fn of(rounds: Vec<Report>, options: &PeersOptions) -> Self {
        let rounds_ops_per_sec: Vec<_> = rounds.iter().map(|report| report.ops_per_sec).collect();
        let wrong_values =
            rounds.iter().filter_map(|report| report.wrong_values).reduce(|one, other| one + other);
        let min = rounds_ops_per_sec.iter().copied().fold(f64::INFINITY, f64::min);
        let max = rounds_ops_per_sec.iter().copied().fold(0.0, f64::max);
        let mut report = middle(rounds, |report| report.ops_per_sec).expect("there is a round");
        report.wrong_values = wrong_values;
        let (server_cpu_pct, client_busy_pct) =
            (report.server_cpu_pct.unwrap_or(0.0), report.client_busy_share.unwrap_or(0.0) * 100.0);
        Self {
            ops_per_sec: report.ops_per_sec,
            transport: options.transport.name(),
            server_cpu_pct,
            client_cpu_pct: report.client_cpu_pct,
            client_busy_pct,
            limit: limit(server_cpu_pct, client_busy_pct),
            latency_us: report.batch_latency_us,
            settings: format!("batches of {} × {} in flight", options.batch, options.window),
            rounds_ops_per_sec,
            min,
            max,
            report,
        }
    }
}

/// A line for linerate and for each peer, and below what is missing. Ends without a line feed.
#[must_use]
pub fn peers_table(report: &PeersReport) -> String {
    let mut table = plain_table();
    let heads = ["", "version", "Mop/s", "linerate :", "server CPU %", "p50 µs", "p99 µs", "limit"];
    let heads = heads.into_iter().map(|head| number(head.to_owned()));
    table.set_header(heads.chain(iter::once(Cell::new("settings"))));
    let LinerateResult { ops_per_sec, transport, server_cpu_pct, limit, latency_us, settings, .. } =
        &report.linerate;
    let (name, version) = (format!("linerate {transport}"), report.environment.version.to_owned());
    let LatencyUs { p50, p99, .. } = *latency_us;
    let figures = [*ops_per_sec, *server_cpu_pct, p50, p99];
    table.add_row(row(&name, version, figures, None, limit, settings));
    for peer in &report.peers {
        let LatencyUs { p50, p99, .. } = peer.latency_us;
        let figures = [peer.ops_per_sec, peer.server_cpu_pct, p50, p99];
        let ratio = report.ratios.get(peer.name).copied();
        table.add_row(row(peer.name, peer.version.clone(), figures, ratio, peer.limit, &peer.settings));
    }
    let rounds = &report.linerate;
    let mut text = format!(
        "{}\n\none server core and one client core; of linerate the median of {} rounds, {:.1} to {:.1} Mop/s",
        table.trim_fmt(),
        rounds.rounds_ops_per_sec.len(),
        rounds.min / 1e6,
        rounds.max / 1e6
    );
    for missing in &report.missing {
        text += &format!("\nnot measured: {missing}");
    }
    if let Some(failure) = &report.failure {
        text += &format!("\npartial: {failure}");
    }
    text
}

fn row(
    name: &str,
    version: String,
    [ops_per_sec, server_cpu_pct, p50, p99]: [f64; 4],
    ratio: Option<f64>,
    limit: &str,
    settings: &str,
) -> Vec<Cell> {
    let ratio = ratio.map_or_else(String::new, |ratio| shown(Some(ratio), 1));
    let numbers = [
        version,
        shown(Some(ops_per_sec / 1e6), 2),
        ratio,
        shown(Some(server_cpu_pct), 0),
        shown(Some(p50), 0),
        shown(Some(p99), 0),
        limit.to_owned(),
    ];
    let numbers = numbers.into_iter().map(number);
    iter::once(Cell::new(name)).chain(numbers).chain(iter::once(Cell::new(settings))).collect()
}

/// Whether nothing, or not all, was measured, as an error.
///
/// # Errors
/// A sentence.
pub fn peers_verdict(report: &PeersReport) -> anyhow::Result<()> {
    if let Some(failure) = &report.failure {
        anyhow::bail!("{failure}: what was measured until then is not all");
    }
    anyhow::ensure!(
        !report.peers.is_empty(),
        "no peer could be measured, so there is nothing to compare linerate with; {}",
        report.missing.join("; ")
    );
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::{request::Tally, *};
    use crate::output::tests::report;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: PeersOptions,
    }

    fn options(line: &str) -> Result<PeersOptions, String> {
        let words = ["peers"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.options).map_err(|error| error.to_string())
    }

    pub(crate) fn peer(name: &'static str, ops_per_sec: f64) -> PeerResult {
        PeerResult {
            name,
            version: "1.2.3".to_owned(),
            ops_per_sec,
            settings: RESP[0].to_string(),
            server_cpu_pct: 99.0,
            client_cpu_pct: 100.0,
            client_busy_pct: 12.5,
            limit: "server",
            gets_per_sec: ops_per_sec * 0.95,
            puts_per_sec: ops_per_sec * 0.05,
            hit_ratio: 1.0,
            unanswered: 0,
            wrong_values: None,
            latency_us: LatencyUs {
                p50: 300.0,
                p90: 400.0,
                p99: 450.0,
                p999: 1_234.0,
                p9999: 1_500.0,
                max: 2_000.0,
            },
            duration_s: 5.0,
            tried: vec![Tried { settings: RESP[0].to_string(), ops_per_sec: Some(ops_per_sec), error: None }],
        }
    }

    pub(crate) fn peers_report(peers: Vec<PeerResult>) -> PeersReport {
        let rounds = [40.0, 20.0, 30.0].map(|mops| Report { ops_per_sec: mops * 1e6, ..report() });
        let missing = vec![not_installed(Peer::Valkey)];
        super::report(&options("").unwrap(), rounds.into(), peers, missing, None, report().environment)
    }

    /// Goal: what is typed is understood, linerate runs with it, and a refusal names what is allowed. Method: good and bad
    /// values.
    #[test]
    fn options_are_checked() {
        let good = options("--peers redis,memcached-udp --transport tcp --duration 2 --workload c --verify")
            .unwrap();
        assert_eq!(good.peers, [Peer::Redis, Peer::MemcachedUdp]);
        let run = good.run();
        assert_eq!(
            (run.transport, run.workload, run.verify),
            (Wanted::Is(Transport::Tcp), Workload::C, true)
        );
        assert_eq!((run.duration, run.server_cores, run.threads), (2.0, 1, 1));
        for (line, allowed) in [
            ("--transport xdp", "give udp or tcp"),
            ("--peers keydb", "memcached-udp"),
            ("--duration 0", "give 0.05 to 86400 seconds"),
        ] {
            let refusal = options(line).unwrap_err();
            assert!(refusal.contains(allowed), "{line}: {refusal}");
        }
    }

    /// Goal: the names that scripts rely on are there. Method: every name of the contract.
    #[test]
    fn the_json_keeps_its_contract() {
        let value = serde_json::to_value(peers_report(vec![peer("redis", 2.5e6)])).unwrap();
        assert_eq!(value["kind"], "peers");
        assert_eq!(value["linerate"]["ops_per_sec"], 30e6);
        assert_eq!(value["linerate"]["transport"], "udp");
        assert_eq!(value["linerate"]["server_cpu_pct"], 99.5);
        assert_eq!(value["linerate"]["rounds_ops_per_sec"], serde_json::json!([40e6, 20e6, 30e6]));
        assert_eq!((&value["linerate"]["min"], &value["linerate"]["max"]), (&20e6.into(), &40e6.into()));
        let peer = &value["peers"][0];
        assert_eq!((&peer["name"], &peer["version"]), (&"redis".into(), &"1.2.3".into()));
        assert_eq!((&peer["ops_per_sec"], &peer["server_cpu_pct"]), (&2.5e6.into(), &99.0.into()));
        assert_eq!(peer["settings"], "MGET 100 × 8 in flight × 4 connections");
        assert_eq!(value["linerate"]["latency_us"], value["linerate"]["report"]["batch_latency_us"]);
        // 40 and 20 Mop/s were beside it.
        assert_eq!(value["ratios"], serde_json::json!({ "redis": 12.0 }));
        assert_eq!(value["ratio_ranges"], serde_json::json!({ "redis": { "min": 8.0, "max": 16.0 } }));
        assert_eq!(
            value["missing"],
            serde_json::json!([
                "valkey: valkey-server is not installed; `apt-get install valkey-server` gets it, on Debian 13 and \
                 Ubuntu 24.04 or later"
            ])
        );
        assert_eq!(value["partial"], false);
    }

    /// Goal: people see who is how fast, and what is missing. Method: the lines of a table.
    #[test]
    fn the_table_compares() {
        let report = peers_report(vec![peer("redis", 2.5e6), peer("memcached", 2e6)]);
        let table = peers_table(&report);
        println!("{table}");
        let line = |start: &str| {
            let line = table.lines().find(|line| line.trim_start().starts_with(start)).unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            line("linerate udp"),
            "linerate udp 0.1.0 30.00 100 51 88 server batches of 110 × 48 in flight"
        );
        assert_eq!(
            line("redis"),
            "redis 1.2.3 2.50 12.0 99 300 450 server MGET 100 × 8 in flight × 4 connections"
        );
        assert!(line("memcached").starts_with("memcached 1.2.3 2.00 12.5 "));
        assert!(line("one server core").ends_with("the median of 3 rounds, 20.0 to 40.0 Mop/s"));
        assert!(line("not measured: ").starts_with("not measured: valkey: valkey-server is not installed; "));
    }

    /// Goal: a comparison with nobody, or one that was interrupted, is an error, with what to do. Method: each.
    #[test]
    fn a_comparison_needs_a_peer() {
        peers_verdict(&peers_report(vec![peer("redis", 2.5e6)])).unwrap();
        let error = peers_verdict(&peers_report(Vec::new())).unwrap_err().to_string();
        assert!(
            error.starts_with("no peer could be measured") && error.contains("apt-get install"),
            "{error}"
        );
        let failure = Some("interrupted".to_owned());
        let partial = PeersReport { partial: true, failure, ..peers_report(vec![peer("redis", 2.5e6)]) };
        assert!(peers_verdict(&partial).unwrap_err().to_string().starts_with("interrupted"));
        assert!(peers_table(&partial).contains("partial"));
    }

    #[test]
    fn the_median_of_an_even_number_of_rounds_is_measured() {
        let rounds = [4.0, 1.0, 3.0, 2.0].map(|mops| Report { ops_per_sec: mops, ..report() });
        let linerate = LinerateResult::of(rounds.into(), &options("").unwrap());
        assert_eq!((linerate.ops_per_sec, linerate.report.ops_per_sec), (2.0, 2.0));
    }

    /// Goal: wrong values of any round are reported. Method: they are in rounds that are not the median.
    #[test]
    fn wrong_values_of_all_rounds_count() {
        let mut rounds = [1.0, 2.0, 3.0].map(|ops_per_sec| Report { ops_per_sec, ..report() });
        (rounds[0].wrong_values, rounds[1].wrong_values, rounds[2].wrong_values) =
            (Some(2), Some(0), Some(3));
        let linerate = LinerateResult::of(rounds.into(), &options("--verify").unwrap());
        assert_eq!((linerate.ops_per_sec, linerate.report.wrong_values), (2.0, Some(5)));
    }

    #[test]
    fn who_is_busy_is_the_limit() {
        let all = [(99.0, 50.0), (50.0, 99.0), (99.0, 100.0), (50.0, 50.0)];
        assert_eq!(
            all.map(|(server, client)| limit(server, client)),
            ["server", "client", "both", "neither"]
        );
    }

    /// Goal: what was measured before linerate failed or Ctrl-C came is kept and marked, and a peer that fails costs the
    /// others nothing. Method: three peers, the second of which fails, and an end at each step.
    #[test]
    fn what_was_measured_is_kept() {
        let (never, peers) = (AtomicBool::new(false), ["a", "b", "c"]);
        let works = |peer: &&'static str| match *peer {
            "b" => anyhow::bail!("no luck"),
            peer => Ok(peer),
        };
        let all = take_turns(&peers, &never, || Ok(1), works).unwrap();
        assert_eq!((all.rounds.len(), all.results, all.failure), (3, vec!["a", "c"], None));
        assert_eq!((*all.refused[0].0, all.refused[0].1.to_string()), ("b", "no luck".to_owned()));
        let mut round = 0;
        let lost = take_turns(
            &peers,
            &never,
            || {
                round += 1;
                anyhow::ensure!(round < 2, "a port was lost");
                Ok(round)
            },
            works,
        )
        .unwrap();
        assert_eq!((lost.rounds, lost.results), (vec![1], vec!["a"]));
        assert_eq!(lost.failure.unwrap(), "a later round of linerate failed: a port was lost");
        let stop = AtomicBool::new(false);
        let stopped = take_turns(
            &peers,
            &stop,
            || Ok(1),
            |_| -> anyhow::Result<()> {
                stop.store(true, Ordering::Relaxed);
                anyhow::bail!("interrupted")
            },
        )
        .unwrap();
        assert_eq!((stopped.rounds.len(), stopped.refused.len()), (1, 0));
        assert_eq!(stopped.failure.as_deref(), Some("interrupted"));
        let at_once =
            take_turns(&peers, &never, || -> anyhow::Result<()> { anyhow::bail!("no route") }, works);
        assert_eq!(at_once.err().unwrap().to_string(), "no route");
    }

    fn driven(tally: Tally) -> Driven {
        let (elapsed, none) = (Duration::from_secs(1), Duration::ZERO);
        Driven { elapsed, tally, client_cpu: none, idle: none, server_cpu: None }
    }

    /// Goal: a setting that fails is left out with its reason, and a wrong answer is not overlooked. Method: settings of
    /// which some fail, at once or at full length.
    #[test]
    fn settings_that_fail_are_left_out() {
        let never = AtomicBool::new(false);
        let puts = |puts| driven(Tally { puts, ..Tally::default() });
        let (best, of_best, tried) = find_best(&RESP[..4], 5.0, &never, |setting, _, duration| {
            match RESP.iter().position(|of| *of == setting).unwrap() {
                0 => anyhow::bail!("takes no connection"),
                // The fastest one fails at full length.
                1 if duration > 1.0 => anyhow::bail!("has not answered for 5 s"),
                1 => Ok(puts(900)),
                2 => Ok(puts(200)),
                _ => Ok(puts(300)),
            }
        })
        .unwrap();
        assert_eq!((best, of_best.tally.puts), (RESP[3], 300));
        assert_eq!(tried[0].error.as_deref(), Some("it takes no connection"));
        assert_eq!((tried[0].ops_per_sec, tried[1].ops_per_sec), (None, Some(900.0)));
        let error = |result: &dyn Fn() -> anyhow::Result<Driven>| {
            find_best(&RESP[..4], 5.0, &never, |_, _, _| result()).unwrap_err().to_string()
        };
        assert_eq!(error(&|| anyhow::bail!("takes no connection")), "takes no connection");
        assert_eq!(error(&|| Ok(puts(0))), "answered nothing that was asked for");
        let wrong = Tally { hits: 1, wrong_values: 1, ..Tally::default() };
        assert!(
            error(&|| Ok(driven(wrong.clone()))).starts_with("answered with 1 values that were never put")
        );
        let lost = Tally { hits: 9, misses: 1, ..Tally::default() };
        assert!(error(&|| Ok(driven(lost.clone()))).starts_with("lost records: 1"));
    }
}
