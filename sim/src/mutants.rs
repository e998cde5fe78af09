//! The proof that the simulator can say no: deliberate faults, each of which some seed must find.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use linerate_proto::mutants::Mutant;
use serde::Serialize;

/// What became of one mutant. The names are a contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fate {
    /// The mutant.
    pub name: &'static str,
    /// The first seed that found it, counted from 0; `None` when it has survived.
    pub killed_at_seed: Option<u64>,
    /// What that seed found.
    pub found: Option<String>,
}

/// What became of all mutants. The names are a contract.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fates {
    /// In the order of [`Mutant::ALL`].
    pub mutants: Vec<Fate>,
}

impl Fates {
    /// Those that no seed has found.
    pub fn survivors(&self) -> impl Iterator<Item = &Fate> {
        self.mutants.iter().filter(|fate| fate.killed_at_seed.is_none())
    }
}

/// Seeds within which a mutant must be found: those that break a promise soon, those that only stop somebody from going on
/// (and those that a promise outlives by luck) in time.
#[must_use]
pub const fn seeds_max(mutant: Mutant) -> u64 {
    match mutant {
        Mutant::GapRefused | Mutant::NoRetransmission => 2_000,
        _ => 20,
    }
}

/// Runs seeds from 0 on against one mutant, on `threads` threads, until one fails; `fails` runs a seed and says what it
/// found.
pub fn hunt(
    mutant: Mutant,
    threads: usize,
    stop: &AtomicBool,
    fails: impl Fn(u64) -> Option<String> + Sync,
) -> Fate {
    let seeds = 0..seeds_max(mutant);
    let (killed_at_seed, found) = first_failure(seeds, threads, stop, fails).unzip();
    Fate { name: mutant.name(), killed_at_seed, found }
}

/// The first seed that fails, whatever the threads' order, and what it found.
fn first_failure(
    seeds: Range<u64>,
    threads: usize,
    stop: &AtomicBool,
    fails: impl Fn(u64) -> Option<String> + Sync,
) -> Option<(u64, String)> {
    let next = AtomicU64::new(seeds.start);
    // Nobody begins a seed above one that is known to fail.
    let end = AtomicU64::new(seeds.end);
    let mut failures: Vec<(u64, String)> = std::thread::scope(|scope| {
        let hunters: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut failures = Vec::new();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= end.load(Ordering::Relaxed) || stop.load(Ordering::Relaxed) {
                            return failures;
                        }
                        if let Some(what) = fails(seed) {
                            end.fetch_min(seed, Ordering::Relaxed);
                            failures.push((seed, what));
                        }
                    }
                })
            })
            .collect();
        hunters
            .into_iter()
            .flat_map(|hunter| hunter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    failures.sort_unstable();
    failures.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_does_not_depend_on_threads() {
        let stop = AtomicBool::new(false);
        let fails = |seed| [7, 8, 30].contains(&seed).then(|| format!("seed {seed}"));
        for threads in [1, 2, 5] {
            assert_eq!(first_failure(0..50, threads, &stop, fails), Some((7, "seed 7".to_owned())));
            assert_eq!(first_failure(9..30, threads, &stop, fails), None);
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(first_failure(0..50, 2, &stop, fails), None);
    }

    #[test]
    fn the_names_of_the_result_are_as_scripts_expect() {
        let fates = Fates {
            mutants: vec![
                Fate { name: "no_dedup", killed_at_seed: Some(0), found: Some("it".to_owned()) },
                Fate { name: "lost_write", killed_at_seed: None, found: None },
            ],
        };
        let text = serde_json::to_string(&fates).unwrap();
        assert!(
            text.starts_with(r#"{"mutants":[{"name":"no_dedup","killed_at_seed":0,"found":"it"},"#),
            "{text}"
        );
        assert!(text.contains(r#"{"name":"lost_write","killed_at_seed":null"#), "{text}");
        assert_eq!(fates.survivors().map(|fate| fate.name).collect::<Vec<_>>(), ["lost_write"]);
    }
}
