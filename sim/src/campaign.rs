//! Many seeds on several threads, with a result that does not depend on how many.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::sync_channel,
    },
    thread,
    time::Instant as SystemInstant,
};

use linerate_dataplane::sim::mix;
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::run::{FaultTally, Plan, SeedReport, run_seed};

/// Failed seeds that are named.
const FAILED_MAX: usize = 100;

/// The first seed that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Its number.
    pub seed: u64,
    /// What was wrong first.
    pub what: String,
}

/// What became of many seeds. The names are a contract: fields may be added, but none is renamed or given another unit.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Seeds that were run.
    pub seeds: u64,
    /// Operations pushed.
    pub ops: u64,
    /// Rules broken.
    pub violations: u64,
    /// Seeds of which something never came to an end once all was well.
    pub stuck: u64,
    /// What went wrong by design, by name.
    #[serde(serialize_with = "by_name")]
    pub faults: Vec<(&'static str, u64)>,
    /// Seeds per hour of wall time, over all threads.
    pub seeds_per_hour: f64,
    /// Hash over the traces of all seeds, in the order of the seeds; 16 hexadecimal digits.
    pub trace_hash: String,
    /// Operations that ended in a result.
    pub ops_with_result: u64,
    /// Operations that ended as not executed.
    pub ops_not_executed: u64,
    /// Operations of which nobody knows whether they took effect.
    pub ops_unknown: u64,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Virtual time of all seeds in seconds.
    pub virtual_s: f64,
    /// Wall time in seconds.
    pub wall_s: f64,
    /// Threads that ran seeds.
    pub threads: usize,
    /// First failure in the order of the seeds.
    pub first_failure: Option<Failure>,
    /// Seeds that failed, the first hundred of them.
    pub failed_seeds: Vec<u64>,
    /// Whether all seeds asked for were run.
    pub complete: bool,
}

fn by_name<S: Serializer>(faults: &[(&'static str, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(faults.len()))?;
    for (name, count) in faults {
        map.serialize_entry(name, count)?;
    }
    map.end()
}

impl Summary {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.violations == 0 && self.stuck == 0
    }

    fn take(&mut self, hash: &mut u64, report: &SeedReport) {
        self.seeds += 1;
        self.ops += report.ops;
        self.violations += report.violation_count;
        self.stuck += u64::from(report.stuck.is_some());
        self.ops_with_result += report.ends.results;
        self.ops_not_executed += report.ends.not_executed;
        self.ops_unknown += report.ends.unknown + report.ends.abandoned;
        self.datagrams += report.datagrams;
        self.virtual_s += report.elapsed.as_secs_f64();
        let FaultTally(faults) = report.faults;
        for (index, (name, count)) in faults.into_iter().enumerate() {
            match self.faults.get_mut(index) {
                Some((_, sum)) => *sum += count,
                None => self.faults.push((name, count)),
            }
        }
        *hash = mix(mix(*hash, report.seed), report.trace_hash);
        if !report.is_clean() && self.failed_seeds.len() < FAILED_MAX {
            self.failed_seeds.push(report.seed);
        }
        if self.first_failure.is_none() {
            self.first_failure = report.failure().map(|what| Failure { seed: report.seed, what });
        }
    }
}

/// Runs all `seeds` on `threads` threads, until `stop` is set. Each report is handed to `each`, in the order of the seeds.
///
/// # Panics
/// Without threads.
pub fn run_seeds(
    seeds: Range<u64>,
    plan: &Plan,
    threads: usize,
    stop: &AtomicBool,
    mut each: impl FnMut(&SeedReport),
) -> Summary {
    assert!(threads > 0, "a campaign without threads");
    let started = SystemInstant::now();
    let next = AtomicU64::new(seeds.start);
    let mut summary = Summary { threads, ..Summary::default() };
    let mut hash = 0;
    // The channel is short, so that no thread runs far ahead of a seed that takes long.
    let (sender, receiver) = sync_channel(4 * threads);
    thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next, end) = (sender.clone(), &next, seeds.end);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || sender.send(run_seed(seed, plan)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut expected = seeds.start;
        for report in receiver {
            early.insert(report.seed, report);
            while let Some(report) = early.remove(&expected) {
                summary.take(&mut hash, &report);
                each(&report);
                expected += 1;
            }
        }
    });
    summary.wall_s = started.elapsed().as_secs_f64();
    summary.seeds_per_hour = summary.seeds as f64 * 3_600.0 / summary.wall_s;
    summary.trace_hash = format!("{hash:016x}");
    summary.complete = summary.seeds == seeds.end - seeds.start;
    summary
}
