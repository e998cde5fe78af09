//! Traces: which records are asked for one after the other.

use std::str::FromStr;

use rand::{RngExt, SeedableRng, distr::Distribution, rngs::Xoshiro256PlusPlus};
use rand_distr::Zipf;

/// The law of a trace: Zipf, and what disturbs it. Lengths and times are in parts of the key space.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceLaw {
    /// What it is called on the command line.
    pub name: &'static str,
    theta: f64,
    scans: Option<Scans>,
    shifts: Option<Shifts>,
    /// Accesses under the Zipf law after which one record, chosen by that law, changes its rank with any other.
    churn: Option<usize>,
}

/// Runs of records that are in no other place of the trace.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scans {
    /// Part of all accesses.
    share: f64,
    /// Accesses of one run.
    run: f64,
    /// Times that each record comes, [`REPEAT_DISTANCE`] accesses apart.
    repeats: u32,
}

/// Accesses between one and the next to the same record, within a scan that repeats its records.
const REPEAT_DISTANCE: u32 = 50;

/// Ranks that are dealt anew from time to time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shifts {
    /// Accesses under the Zipf law between two.
    every: usize,
    /// Part of the ranks that take part.
    share: f64,
}

const fn zipf(name: &'static str, theta: f64) -> TraceLaw {
    TraceLaw { name, theta, scans: None, shifts: None, churn: None }
}

const fn scan(name: &'static str, share: f64, run: f64) -> TraceLaw {
    TraceLaw { scans: Some(Scans { share, run, repeats: 1 }), ..zipf(name, 0.99) }
}

const fn shift(name: &'static str, share: f64, every: usize) -> TraceLaw {
    TraceLaw { shifts: Some(Shifts { every, share }), ..zipf(name, 0.99) }
}

/// All traces. Exponents are those of YCSB and of what is more and less skewed; where popularity changes, everything that a
/// cache has learned becomes wrong at once (`shift-100`), in part, or a little at a time.
pub const TRACES: [TraceLaw; 12] = [
    zipf("zipf-0.99", 0.99),
    zipf("zipf-0.80", 0.8),
    zipf("zipf-1.10", 1.1),
    scan("scan-20", 0.2, 0.01),
    scan("scan-35", 0.35, 0.1),
    scan("scan-50", 0.5, 0.5),
    shift("shift-10", 0.1, 1),
    shift("shift-50", 0.5, 5),
    shift("shift-100", 1.0, 2),
    TraceLaw { churn: Some(100), ..zipf("churn", 0.99) },
    TraceLaw { churn: Some(100), ..scan("churn-scan-20", 0.2, 0.05) },
    TraceLaw { scans: Some(Scans { share: 0.35, run: 0.05, repeats: 2 }), ..zipf("scan-35-twice", 0.99) },
];

impl FromStr for TraceLaw {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        TRACES.into_iter().find(|law| law.name == name).ok_or_else(|| {
            let names = TRACES.map(|law| law.name).join(", ");
            format!("`{name}` is no trace; give one or more of {names}")
        })
    }
}

impl TraceLaw {
    /// A trace of so many accesses. Records below `keys` are the key space, those from there on the scans'.
    #[must_use]
    pub fn draw(&self, keys: u32, accesses: usize, seed: u64) -> Vec<u32> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let ranks = Zipf::new(f64::from(keys), self.theta).expect("at least one key, θ ≥ 0");
        let rank = |random: &mut Xoshiro256PlusPlus| ranks.sample(random) as usize - 1;
        let part = |share: f64| (f64::from(keys) * share) as usize;
        // Otherwise the records with the shortest keys, and neighbours in the store, would be the most popular ones.
        let mut records: Vec<u32> = (0..keys).collect();
        deal(&mut records, 1.0, &mut random);
        let gap =
            self.scans.map(|scans| (part(scans.run) as f64 * (1.0 - scans.share) / scans.share) as usize);
        let mut trace = Vec::with_capacity(accesses);
        let (mut next_scanned, mut drawn) = (keys, 0_usize);
        while trace.len() < accesses {
            drawn += 1;
            if let Some(Shifts { every, share }) = self.shifts
                && drawn.is_multiple_of(every * keys as usize)
            {
                deal(&mut records, share, &mut random);
            }
            if self.churn.is_some_and(|every| drawn.is_multiple_of(every)) {
                records.swap(rank(&mut random), random.random_range(0..keys as usize));
            }
            trace.push(records[rank(&mut random)]);
            if let (Some(scans), Some(gap)) = (self.scans, gap)
                && drawn.is_multiple_of(gap)
            {
                next_scanned = scans.push(&mut trace, next_scanned, part(scans.run));
            }
        }
        trace.truncate(accesses);
        trace
    }
}

impl Scans {
    /// Adds one run, which begins with the record `first`; returns the first of the next run.
    fn push(&self, trace: &mut Vec<u32>, first: u32, len: usize) -> u32 {
        if self.repeats == 1 {
            trace.extend(first..first + len as u32);
            return first + len as u32;
        }
        let stretches = len as u32 / (REPEAT_DISTANCE * self.repeats);
        for stretch in 0..stretches {
            let start = first + stretch * REPEAT_DISTANCE;
            for _ in 0..self.repeats {
                trace.extend(start..start + REPEAT_DISTANCE);
            }
        }
        first + stretches * REPEAT_DISTANCE
    }
}

/// Shuffles the records of a random part of the ranks.
fn deal(records: &mut [u32], share: f64, random: &mut Xoshiro256PlusPlus) {
    let chosen: Vec<usize> = (0..records.len()).filter(|_| random.random::<f64>() < share).collect();
    for last in (1..chosen.len()).rev() {
        records.swap(chosen[last], chosen[random.random_range(0..=last)]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const KEYS: u32 = 10_000;
    const ACCESSES: usize = 100_000;

    /// Goal: scans have the share that the trace's name says, and each of their records comes as often as it should.
    /// Method: count, in all traces; the last run may be cut short.
    #[test]
    fn scans_have_their_share() {
        for (name, share, repeats) in [
            ("zipf-0.99", 0.0, 0),
            ("scan-20", 0.2, 1),
            ("scan-35", 0.35, 1),
            ("scan-50", 0.5, 1),
            ("churn-scan-20", 0.2, 1),
            ("scan-35-twice", 0.35, 2),
        ] {
            let trace = name.parse::<TraceLaw>().unwrap().draw(KEYS, ACCESSES, 1);
            assert_eq!(trace.len(), ACCESSES);
            let mut counts = HashMap::new();
            trace
                .iter()
                .filter(|&&record| record >= KEYS)
                .for_each(|record| *counts.entry(record).or_insert(0) += 1);
            let scanned = counts.values().sum::<u32>();
            let measured = f64::from(scanned) / ACCESSES as f64;
            assert!((measured - share).abs() < 0.03, "{name}: {measured}");
            let others = counts.values().filter(|&&count| count != repeats).count();
            assert!(others <= REPEAT_DISTANCE as usize, "{name}: {others}");
        }
    }

    /// Goal: where popularity changes, the most popular record does not stay the same, and elsewhere it does; a seed gives
    /// one trace. Method: the most frequent record of each stretch of one key space.
    #[test]
    fn popularity_changes_where_it_should() {
        for law in TRACES {
            let trace = law.draw(KEYS, ACCESSES, 2);
            assert_eq!(trace, law.draw(KEYS, ACCESSES, 2), "{}", law.name);
            assert_ne!(trace, law.draw(KEYS, ACCESSES, 3), "{}", law.name);
            let mut leaders: Vec<u32> = trace
                .chunks_exact(KEYS as usize)
                .map(|stretch| {
                    let mut counts = HashMap::new();
                    stretch.iter().for_each(|record| *counts.entry(*record).or_insert(0) += 1);
                    counts.into_iter().max_by_key(|&(record, count)| (count, record)).unwrap().0
                })
                .collect();
            leaders.sort_unstable();
            leaders.dedup();
            match law.name {
                "shift-100" | "churn" => assert!(leaders.len() > 1, "{}", law.name),
                name if name.starts_with("zipf") || name.starts_with("scan") => {
                    assert_eq!(leaders.len(), 1, "{name}");
                }
                _ => {}
            }
        }
    }

    #[test]
    fn an_unknown_trace_is_refused_with_the_names() {
        let error = "zipf".parse::<TraceLaw>().unwrap_err();
        assert!(error.starts_with("`zipf` is no trace; give one or more of zipf-0.99, "), "{error}");
    }
}
