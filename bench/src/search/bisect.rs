//! The search itself, which knows nothing of what it measures.
//!
//! Runs are noisy, and near the limit a rate is kept in some of them. So a rate counts as kept when most of a few trials keep
//! it, the interval between the highest rate kept and the lowest missed is halved until it is narrow, and then the rate that
//! was found has to hold in trials of its own: those that led to it were selected for being good. It holds when, with 95 %
//! confidence, a run keeps it more often than not. When it does not, the next lower one has to, in steps that grow. Each such
//! attempt is another chance to hold by luck. So the 5 % that luck may have are shared out among all attempts: three quarters to
//! the first, and of the rest to the k-th the part 1 / (k (k − 1)), which add up to 1. A later attempt has as many more trials as its
//! share asks for.

use serde::Serialize;

use super::slo::Trial;

/// Lowest rate that is tried, in operations per second.
pub(crate) const RATE_MIN: f64 = 1_000.0;

/// Share of the closed loop's throughput that is tried first.
const FIRST: f64 = 0.5;

/// The highest rate tried, in times the closed loop's throughput: that is about what the system can do at all.
const HIGHEST: f64 = 2.0;

/// Factors between the rates tried until both a kept and a missed one are known.
const UP: f64 = 1.5;
const DOWN: f64 = 4.0;

/// How sure it has to be that the rate that holds is kept more often than not, with all attempts to find one.
const LEVEL: f64 = 0.95;

/// What the first attempt may have of the chance that is left to luck; five of five trials have 0.63 of it, seven of eight 0.7.
const FIRST_PART: f64 = 0.75;

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Operations per second of the closed loop.
    pub throughput: f64,
    /// The interval to end with, as a share of the rate; above 0.
    pub precision: f64,
    /// Trials of a rate at most, of which most count.
    pub repeats: u32,
    /// Trials of the rate that was found, 5 or more: fewer can never be sure enough. Later attempts may need more.
    pub confirmations: u32,
}

/// With fewer trials the first attempt can never be sure enough: one half to the fifth is less than its share, to the fourth more.
pub(crate) const CONFIRMATIONS_MIN: u32 = 5;

/// What a search has found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Found {
    /// The highest rate that held, or that was kept when the search was interrupted.
    pub lower: Option<f64>,
    /// The lowest rate above it that was missed; `None` when everything was kept.
    pub upper: Option<f64>,
    /// How sure it is; `None` when nothing held.
    pub confidence: Option<Confidence>,
    /// Whether it came to its end.
    pub is_complete: bool,
}

/// How sure it is that a rate is kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Confidence {
    /// With what confidence the bound is one, with all attempts.
    pub level: f64,
    /// Rates that had to hold until one did.
    pub attempts: u32,
    /// Trials of the rate, after it was found.
    pub trials: u32,
    /// Those that kept it.
    pub kept: u32,
    /// Lower bound of the probability that a run keeps it (Clopper and Pearson 1934, one-sided).
    pub pass_probability_min: f64,
}

/// Searches; `measure` tries a rate, or is `None` to stop. All trials are added to `trials`.
pub fn search(plan: &Plan, trials: &mut Vec<Trial>, measure: impl FnMut(f64) -> Option<Trial>) -> Found {
    let mut search = Search { plan, trials, measure, kept: Vec::new(), found: Found::default() };
    search.found.is_complete = search.run().is_some();
    search.found
}

impl Plan {
    fn first(&self) -> f64 {
        whole(FIRST * self.throughput)
    }

    /// The highest rate that is tried.
    pub(super) fn highest(&self) -> f64 {
        whole(HIGHEST * self.throughput)
    }
}

/// A rate that can be asked for.
fn whole(rate: f64) -> f64 {
    rate.round().max(RATE_MIN)
}

struct Search<'a, M> {
    plan: &'a Plan,
    trials: &'a mut Vec<Trial>,
    measure: M,
    /// Rates that most trials kept.
    kept: Vec<f64>,
    found: Found,
}

impl<M: FnMut(f64) -> Option<Trial>> Search<'_, M> {
    fn run(&mut self) -> Option<()> {
        self.bracket()?;
        self.halve()?;
        self.confirm()
    }

    fn is_kept(&mut self, rate: f64) -> Option<bool> {
        let trial = (self.measure)(rate)?;
        let kept = trial.kept;
        self.trials.push(trial);
        Some(kept)
    }

    /// Whether most trials keep a rate; ends as soon as that is known.
    fn is_mostly_kept(&mut self, rate: f64) -> Option<bool> {
        let (mut kept, mut missed) = (0, 0);
        let most = self.plan.repeats / 2 + 1;
        while kept < most && missed < most && kept + missed < self.plan.repeats {
            if self.is_kept(rate)? { kept += 1 } else { missed += 1 }
        }
        let is_kept = kept >= most;
        if is_kept {
            self.kept.push(rate);
            self.found.lower = Some(rate);
        } else {
            self.found.upper = Some(rate);
        }
        Some(is_kept)
    }

    /// Finds a rate that is kept and one that is not, as far as there are such.
    fn bracket(&mut self) -> Option<()> {
        let mut rate = self.plan.first();
        while self.found.lower.is_none() || self.found.upper.is_none() {
            let (is_kept, highest) = (self.is_mostly_kept(rate)?, self.plan.highest());
            if rate == if is_kept { highest } else { RATE_MIN } {
                break;
            }
            rate = whole(if is_kept { (rate * UP).min(highest) } else { rate / DOWN });
        }
        Some(())
    }

    /// Narrows the interval between them.
    fn halve(&mut self) -> Option<()> {
        while let Found { lower: Some(lower), upper: Some(upper), .. } = self.found {
            let middle = whole((lower * upper).sqrt());
            if upper <= lower * (1.0 + self.plan.precision) || middle <= lower || middle >= upper {
                break;
            }
            self.is_mostly_kept(middle)?;
        }
        Some(())
    }

    /// Goes down from the rate that was found until one holds.
    fn confirm(&mut self) -> Option<()> {
        let Some(mut rate) = self.found.lower else { return Some(()) };
        let mut step = self.plan.precision;
        for attempt in 1.. {
            if let Some(confidence) = self.holds(rate, attempt)? {
                (self.found.lower, self.found.confidence) = (Some(rate), Some(confidence));
                break;
            }
            self.found.upper = Some(rate);
            // The next one was not tried yet.
            let lower = self.kept.iter().copied().filter(|kept| *kept < rate);
            self.found.lower = lower.reduce(f64::max);
            if rate <= RATE_MIN {
                break;
            }
            rate = whole((rate / (1.0 + step)).floor());
            step += self.plan.precision;
        }
        Some(())
    }

    /// Whether a rate is kept more often than not, as far as can be known.
    fn holds(&mut self, rate: f64, attempt: u32) -> Option<Option<Confidence>> {
        let level = attempt_level(attempt);
        let (count, mut kept) = (attempt_trials(self.plan, attempt), 0);
        for trial in 0..count {
            if self.is_kept(rate)? {
                kept += 1;
                self.found.lower = Some(self.found.lower.map_or(rate, |lower| lower.max(rate)));
            }
            let at_best = kept + count - trial - 1;
            if probability_min(at_best, count, level) <= 0.5 {
                return Some(None);
            }
        }
        let pass_probability_min = probability_min(kept, count, level);
        Some(Some(Confidence { level: LEVEL, attempts: attempt, trials: count, kept, pass_probability_min }))
    }
}

/// How sure an attempt has to be, of which the first is 1, so that all together are as sure as [`LEVEL`] says.
fn attempt_level(attempt: u32) -> f64 {
    let number = f64::from(attempt);
    let part = if attempt == 1 { FIRST_PART } else { (1.0 - FIRST_PART) / (number * (number - 1.0)) };
    1.0 - (1.0 - LEVEL) * part
}

/// Trials of an attempt: as many as were asked for, or as are needed for any result to be sure enough.
fn attempt_trials(plan: &Plan, attempt: u32) -> u32 {
    let level = attempt_level(attempt);
    let mut count = plan.confirmations;
    while probability_min(count, count, level) <= 0.5 {
        count += 1;
    }
    count
}

/// The probability of success that, with so many successes in `count` trials, is too low only with a chance of
/// `1 - level`: the one at which so many or more are that improbable.
#[must_use]
pub fn probability_min(successes: u32, count: u32, level: f64) -> f64 {
    if successes == 0 {
        return 0.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    // Each halves the interval: 60 are the digits of the type.
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        *if at_least(successes, count, middle) < 1.0 - level { &mut low } else { &mut high } = middle;
    }
    low
}

/// The probability of so many successes or more.
fn at_least(successes: u32, count: u32, probability: f64) -> f64 {
    let mut sum = 0.0;
    for number in successes..=count {
        let ways = (0..number).map(|of| f64::from(count - of) / f64::from(of + 1)).product::<f64>();
        sum += ways * probability.powi(number as i32) * (1.0 - probability).powi((count - number) as i32);
    }
    sum
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::latency::LatencyUs;

    const PLAN: Plan = Plan { throughput: 4e6, precision: 0.02, repeats: 3, confirmations: 5 };

    fn trial(rate: f64, kept: bool) -> Trial {
        let latency_us = LatencyUs::default();
        Trial { rate, ops_per_sec: rate, latency_us, loss: 0.0, retransmits: 0, kept, why: None }
    }

    /// Trials that a search takes at most.
    fn trials_max(plan: &Plan) -> u32 {
        let down = (plan.first() / RATE_MIN).log(DOWN).ceil() as u32 + 1;
        let up = (HIGHEST / FIRST).log(UP).ceil() as u32 + 1;
        let halvings = (DOWN.ln() / plan.precision.ln_1p()).log2().ceil().max(0.0) as u32 + 1;
        let (mut rate, mut step, mut attempts) = (plan.highest(), plan.precision, 2);
        while rate > RATE_MIN {
            (rate, step, attempts) = (rate / (1.0 + step), step + plan.precision, attempts + 1);
        }
        let confirmations = (1..=attempts).map(|attempt| attempt_trials(plan, attempt)).sum::<u32>();
        (down.max(up) + halvings) * plan.repeats + confirmations
    }

    /// Searches in a system that keeps a rate or not; the number of trials is bounded.
    fn find(plan: &Plan, mut keeps: impl FnMut(f64) -> bool) -> (Found, Vec<Trial>) {
        let mut trials = Vec::new();
        let found = search(plan, &mut trials, |rate| Some(trial(rate, keeps(rate))));
        assert!(trials.len() <= trials_max(plan) as usize, "{} trials of {}", trials.len(), trials_max(plan));
        // Rates are whole numbers.
        assert!(
            trials.iter().all(|trial| (RATE_MIN..=2.0 * plan.throughput + 1.0).contains(&trial.rate)),
            "{trials:?}"
        );
        (found, trials)
    }

    /// Goal: without noise the limit is found to the precision asked for. Method: limits of all orders of magnitude, and
    /// precisions.
    #[test]
    fn a_sharp_limit_is_found() {
        for precision in [0.001, 0.02, 0.3] {
            for limit in [1_000.0, 1_300.0, 50_000.0, 1e6, 1.99e6, 2e6, 2.01e6, 3.9e6, 7.9e6] {
                let plan = Plan { precision, ..PLAN };
                let (found, _) = find(&plan, |rate| rate <= limit);
                let Found { lower: Some(lower), upper: Some(upper), confidence: Some(confidence), .. } =
                    found
                else {
                    panic!("{limit}: {found:?}")
                };
                assert!(lower <= limit && limit < upper, "{limit}: {found:?}");
                // Rates are whole numbers.
                assert!(upper <= lower * (1.0 + precision) + 1.0, "{limit}: {found:?}");
                assert!(found.is_complete && (confidence.kept, confidence.trials) == (5, 5), "{found:?}");
            }
        }
    }

    /// Goal: the search ends where there is no limit. Method: a system that never keeps anything, and one that always does.
    #[test]
    fn no_limit_is_told() {
        for throughput in [0.0, 900.0, 4e6, 1e9] {
            let plan = Plan { throughput, ..PLAN };
            let (never, trials) = find(&Plan { throughput: throughput.max(RATE_MIN), ..plan }, |_| false);
            assert_eq!((never.lower, never.upper, never.confidence), (None, Some(RATE_MIN), None));
            assert!(never.is_complete && trials.last().unwrap().rate == RATE_MIN);
        }
        let (always, _) = find(&PLAN, |_| true);
        assert_eq!((always.lower, always.upper), (Some(8e6), None));
        assert!(always.confidence.unwrap().pass_probability_min > 0.5);
    }

    /// Goal: with noise as of a real system the rate that is found keeps its promise, and is not far below what is possible.
    /// Method: latencies as of an M/M/1 queue, whose quantiles grow as 1 / (capacity − rate), times lognormal noise of
    /// seeded generators; the rate at which half of the runs keep the limit is known.
    #[test]
    fn a_noisy_queue_is_searched() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let (mut optimistic, mut rounds) = (0, 0);
        for case in 0..200 {
            let mut random = StdRng::seed_from_u64(seed.wrapping_add(case));
            let capacity = random.random_range(0.5..1.9) * PLAN.throughput;
            let spread = [0.02, 0.1, 0.3][case as usize % 3];
            // p99 = ln(100) / (capacity - rate): the limit is reached at 80 % of the capacity.
            let limit = 100_f64.ln() / (0.2 * capacity);
            let (found, _) = find(&PLAN, |rate| {
                let normal = (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0;
                rate < capacity && 100_f64.ln() / (capacity - rate) * (spread * normal).exp() <= limit
            });
            let rate = found.lower.unwrap();
            let half = 0.8 * capacity;
            optimistic += u32::from(rate > half);
            rounds += 1;
            assert!(rate > 0.6 * half && rate < 1.1 * half, "case {case}: {rate} instead of {half}");
        }
        // Rates above are those that half of the runs miss: they hold by luck only, in 5 % of all searches at most, with four
        // standard deviations of 200 searches.
        assert!(optimistic * 8 <= rounds, "{optimistic} of {rounds}");
    }

    /// Goal: noise without any law does not keep the search from ending. Method: runs that are kept by a coin, whatever the
    /// rate; bounded by `find`.
    #[test]
    fn it_ends_whatever_happens() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        for case in 0..300 {
            let mut random = StdRng::seed_from_u64(seed.wrapping_add(case));
            let share = random.random::<f64>();
            let plan = Plan {
                throughput: 10_f64.powf(random.random_range(3.0..9.0)),
                precision: [0.001, 0.02, 1.0][case as usize % 3],
                repeats: random.random_range(1..6),
                confirmations: random.random_range(5..12),
            };
            let (found, trials) = find(&plan, |_| random.random_bool(share));
            assert!(found.is_complete && !trials.is_empty());
            if let Some(rate) = found.lower {
                let confidence = found.confidence.unwrap();
                let at = trials.iter().rev().take_while(|trial| trial.rate == rate);
                assert!(at.count() >= confidence.trials as usize && confidence.pass_probability_min > 0.5);
            }
        }
    }

    /// Goal: a rate that was found by luck is not reported. Method: a system that keeps 3 Mop/s in its first trials, and
    /// later only 2.
    #[test]
    fn luck_is_found_out() {
        let mut count = 0;
        let (found, trials) = find(&PLAN, |rate| {
            count += 1;
            rate <= if count < 17 { 3e6 } else { 2e6 }
        });
        let rate = found.lower.unwrap();
        assert!((1.5e6..=2e6).contains(&rate), "{found:?}");
        assert!(found.upper.unwrap() > 2e6 && trials.len() < 60, "{found:?} {}", trials.len());
    }

    /// Goal: what is known when a search is stopped is told as that, and never a rate that was not tried. Method: stop after each
    /// number of trials, in a system that is always alike and in one that becomes slower while rates have to hold.
    #[test]
    fn a_stopped_search_tells_what_it_knows() {
        for limit_later in [3e6, 1e6] {
            let keeps = |count: usize, rate: f64| rate <= if count < 17 { 3e6 } else { limit_later };
            let mut count = 0;
            let (_, all) = find(&PLAN, |rate| {
                count += 1;
                keeps(count - 1, rate)
            });
            for count in 0..all.len() {
                let mut trials = Vec::new();
                let mut left = 0..count;
                let found = search(&PLAN, &mut trials, |rate| {
                    let number = left.next()?;
                    Some(trial(rate, keeps(number, rate)))
                });
                assert_eq!(trials[..], all[..count]);
                assert!(!found.is_complete && found.confidence.is_none());
                let was = |rate, kept| trials.iter().any(|trial| trial.rate == rate && trial.kept == kept);
                assert!(found.lower.is_none_or(|lower| was(lower, true)), "{found:?}");
                assert!(found.upper.is_none_or(|upper| was(upper, false)), "{found:?}");
                assert!(found.lower.zip(found.upper).is_none_or(|(lower, upper)| lower < upper), "{found:?}");
            }
        }
    }

    /// Goal: many attempts are no more sure to hold by luck than one. Method: the sum of what each may have, and the
    /// probability that coins give it.
    #[test]
    fn attempts_share_the_chance_of_luck() {
        let mut luck = 0.0;
        for attempt in 1..=200 {
            let count = attempt_trials(&PLAN, attempt);
            let needed = (0..=count).find(|kept| probability_min(*kept, count, attempt_level(attempt)) > 0.5);
            luck += at_least(needed.unwrap(), count, 0.5);
        }
        assert!(luck < 1.0 - LEVEL, "{luck}");
        let counts = [1, 2, 3, 10].map(|attempt| attempt_trials(&PLAN, attempt));
        assert_eq!(counts, [5, 8, 9, 13]);
    }

    /// Goal: the bound is that of Clopper and Pearson. Method: all successes, where it is a root, and values from the
    /// definition by the beta distribution.
    #[test]
    fn the_bound_is_exact() {
        for count in 1..30 {
            let expected = 0.05_f64.powf(1.0 / f64::from(count));
            assert!((probability_min(count, count, 0.95) - expected).abs() < 1e-9, "{count}");
        }
        assert_eq!(probability_min(0, 5, 0.95), 0.0);
        assert!((probability_min(1, 10, 0.95) - (1.0 - 0.95_f64.powf(0.1))).abs() < 1e-9);
        // At the bound, so many successes or more have a chance of 5 %.
        for (successes, count) in [(4, 5), (7, 8), (9, 10), (50, 60)] {
            let bound = probability_min(successes, count, 0.95);
            assert!((at_least(successes, count, bound) - 0.05).abs() < 1e-9, "{successes} of {count}");
        }
        let level = attempt_level(1);
        assert!(probability_min(CONFIRMATIONS_MIN, CONFIRMATIONS_MIN, level) > 0.5);
        assert!(probability_min(CONFIRMATIONS_MIN - 1, CONFIRMATIONS_MIN - 1, level) < 0.5);
    }
}
