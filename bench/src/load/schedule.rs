//! When operations are due in an open loop: at moments that do not depend on how fast answers come.
//!
//! Latency counts from these moments, so that a server which stands still for 100 ms is seen to: all operations that were
//! due meanwhile have waited, whether or not the client could send them (G. Tene's "coordinated omission"; wrk2).

use std::{error, fmt, str::FromStr, sync::OnceLock};

use linerate_client::Instant;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

/// Gaps of the exponential law that are dealt in one round; see [`Arrivals::Poisson`].
pub(crate) const GAPS: usize = 1 << 16;

/// Operations that are gone through one by one when nobody will begin them any more: of more, only so many moments.
const REST_MAX: u64 = 1_000;

/// Most operations of a burst.
const BURST_MAX: u32 = 1_000_000;

/// The law of the moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// The same time between one and the next.
    Fixed,
    /// Exponential times between one and the next, as those of many clients who know nothing of each other.
    ///
    /// They are dealt out like cards: 65,536 quantiles of the law in a random order, again and again in another one. So
    /// each stretch of that many takes exactly the time that it should, and the rate over seconds is the one asked for
    /// rather than one off by chance; within a stretch gaps are as independent as cards of a large pack.
    Poisson,
    /// So many at a time, with the same time between bursts.
    Burst(u32),
}

impl FromStr for Arrivals {
    type Err = ArrivalsError;

    fn from_str(text: &str) -> Result<Self, ArrivalsError> {
        let burst = || {
            let count: u32 = text.strip_prefix("burst:")?.parse().ok()?;
            (1..=BURST_MAX).contains(&count).then_some(Self::Burst(count))
        };
        match text {
            "fixed" => Ok(Self::Fixed),
            "poisson" => Ok(Self::Poisson),
            _ => burst().ok_or_else(|| ArrivalsError(text.to_owned())),
        }
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed => f.write_str("fixed"),
            Self::Poisson => f.write_str("poisson"),
            Self::Burst(count) => write!(f, "burst:{count}"),
        }
    }
}

/// What was given as arrivals and is none; displayed as one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrivalsError(String);

impl fmt::Display for ArrivalsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no way to arrive: give fixed, poisson, or burst:N with N from 1 to {BURST_MAX}",
            self.0
        )
    }
}

impl error::Error for ArrivalsError {}

/// How fast and by which law the operations of one session are due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Operations per second, above 0.
    pub rate: f64,
    /// The law.
    pub arrivals: Arrivals,
    /// Seed of what is random about it.
    pub seed: u64,
}

/// The moments, one after the other, for ever.
#[derive(Debug)]
pub(super) struct Schedule {
    begun: Instant,
    /// Of the next operation, in ns since the beginning.
    next_ns: f64,
    mean_ns: f64,
    gaps: Gaps,
}

#[derive(Debug)]
enum Gaps {
    Fixed,
    Burst { count: u32, left: u32 },
    Poisson(Box<Deck>),
}

impl Schedule {
    /// Begins at `now`. Sessions with other seeds begin at other moments, within the first gap.
    pub(super) fn new(pace: &Pace, now: Instant) -> Self {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(pace.seed);
        let mean_ns = 1e9 / pace.rate;
        let first: f64 = random.random();
        let (gaps, first_gap) = match pace.arrivals {
            Arrivals::Fixed => (Gaps::Fixed, first),
            Arrivals::Poisson => {
                let mut deck = Deck::new(random);
                let gap = deck.deal();
                (Gaps::Poisson(Box::new(deck)), gap)
            }
            Arrivals::Burst(count) => (Gaps::Burst { count, left: count - 1 }, first * f64::from(count)),
        };
        Self { begun: now, next_ns: first_gap * mean_ns, mean_ns, gaps }
    }

    /// When the next operation is due.
    #[inline]
    pub(super) fn next(&self) -> Instant {
        Instant::from_nanos(self.begun.as_nanos().saturating_add(self.next_ns as u64))
    }

    /// Goes through what is due before `end`, many at a time when there are very many: `each` is told when, and how many.
    pub(super) fn rest(&mut self, end: Instant, mut each: impl FnMut(Instant, u64)) {
        let left = || end.as_nanos().saturating_sub(self.next().as_nanos()) as f64 / self.mean_ns;
        let count = left();
        if count > REST_MAX as f64 {
            let step = (count / REST_MAX as f64) as u64;
            for _ in 0..REST_MAX {
                each(self.next(), step);
                self.next_ns += step as f64 * self.mean_ns;
            }
        }
        while self.next() < end {
            each(self.next(), 1);
            self.advance();
        }
    }

    /// Goes on to the one after.
    #[inline]
    pub(super) fn advance(&mut self) {
        let gap = match &mut self.gaps {
            Gaps::Fixed => 1.0,
            Gaps::Poisson(deck) => deck.deal(),
            Gaps::Burst { left, .. } if *left > 0 => {
                *left -= 1;
                0.0
            }
            Gaps::Burst { count, left } => {
                *left = *count - 1;
                f64::from(*count)
            }
        };
        self.next_ns += gap * self.mean_ns;
    }
}

/// Quantiles of the exponential law with mean 1 that are dealt in a random order, then in another.
///
/// The orders are permutations of 16 bits, made of steps that can each be undone (additions, multiplications by odd numbers,
/// shifts onto themselves) with numbers that are drawn for each round: nothing is stored for a session, and a card costs a few
/// nanoseconds.
#[derive(Debug)]
struct Deck {
    gaps: &'static [f32; GAPS],
    dealt: u16,
    keys: [u16; 6],
    random: Xoshiro256PlusPlus,
}

impl Deck {
    fn new(random: Xoshiro256PlusPlus) -> Self {
        static GAPS_OF_ALL: OnceLock<Box<[f32; GAPS]>> = OnceLock::new();
        let gaps = GAPS_OF_ALL.get_or_init(|| {
            let quantile = |index: usize| -(1.0 - (index as f64 + 0.5) / GAPS as f64).ln();
            // The midpoints of the last quantile are a little too short: the mean would be off by 5 in a million.
            let mean = (0..GAPS).map(quantile).sum::<f64>() / GAPS as f64;
            let gaps: Vec<_> = (0..GAPS).map(|index| (quantile(index) / mean) as f32).collect();
            gaps.try_into().expect("as many as there are indices")
        });
        let mut deck = Self { gaps, dealt: 0, keys: [0; 6], random };
        deck.shuffle();
        deck
    }

    fn shuffle(&mut self) {
        self.keys = std::array::from_fn(|_| self.random.random());
        // Only by odd numbers can a multiplication be undone.
        self.keys[1..4].iter_mut().for_each(|key| *key |= 1);
    }

    /// The next one of this round.
    #[inline]
    fn deal(&mut self) -> f64 {
        let [first, times_1, times_2, times_3, plus_1, plus_2] = self.keys;
        let mut card = (self.dealt ^ first).wrapping_mul(times_1).wrapping_add(plus_1);
        card = (card ^ (card >> 7)).wrapping_mul(times_2).wrapping_add(plus_2);
        card = (card ^ (card >> 9)).wrapping_mul(times_3);
        card ^= card >> 8;
        self.dealt = self.dealt.wrapping_add(1);
        if self.dealt == 0 {
            self.shuffle();
        }
        self.gaps[usize::from(card)].into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 11;

    fn moments(arrivals: Arrivals, rate: f64, count: usize) -> Vec<f64> {
        println!("seed {SEED}");
        let mut schedule = Schedule::new(&Pace { rate, arrivals, seed: SEED }, Instant::from_nanos(500));
        let moments = (0..count).map(|_| {
            let next = schedule.next();
            schedule.advance();
            next.since(Instant::from_nanos(500)).as_nanos() as f64
        });
        moments.collect()
    }

    /// Goal: over many operations each law has the rate asked for, far within a thousandth. Method: when the last of
    /// several rounds of the deck is due.
    #[test]
    fn each_law_keeps_the_rate() {
        for arrivals in [Arrivals::Fixed, Arrivals::Poisson, Arrivals::Burst(100)] {
            for rate in [0.5, 1_000.0, 1e6, 3.7e7] {
                let moments = moments(arrivals, rate, 4 * GAPS);
                let expected = (4 * GAPS) as f64 / rate * 1e9;
                let off = (moments[4 * GAPS - 1] - expected).abs() / expected;
                assert!(off < 0.000_5, "{arrivals} at {rate}: off by {off}");
                assert!(moments.is_sorted());
            }
        }
    }

    /// Goal: Poisson arrivals are exponential and do not depend on each other. Method: in stretches of one mean gap, the
    /// counts of 0, 1, 2, 3 and more against e^-1 / k! by χ², and the correlation of neighbouring gaps.
    #[test]
    fn poisson_arrivals_are_those_of_the_law() {
        let moments = moments(Arrivals::Poisson, 1e6, 3 * GAPS);
        let mut counts = vec![0_usize; 3 * GAPS - 1_000];
        for moment in moments {
            if let Some(count) = counts.get_mut((moment / 1_000.0) as usize) {
                *count += 1;
            }
        }
        let total = counts.len() as f64;
        let mut chi_square = 0.0;
        let mut probability = (-1.0_f64).exp();
        let mut rest = 1.0;
        for k in 0..5 {
            let is_k = |count: &&usize| if k == 4 { **count >= 4 } else { **count == k };
            let share = if k == 4 { rest } else { probability };
            let seen = counts.iter().filter(is_k).count() as f64;
            chi_square += (seen - share * total).powi(2) / (share * total);
            rest -= probability;
            probability /= (k + 1) as f64;
        }
        // Four degrees of freedom: beyond 23.5 with a probability of one in ten thousand.
        assert!(chi_square < 23.5, "χ² = {chi_square}");
        let counts: Vec<_> = counts.into_iter().map(|count| count as f64 - 1.0).collect();
        let covariance = counts.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / total;
        assert!(covariance.abs() < 5.0 / total.sqrt(), "{covariance}");
    }

    /// Goal: a round of the deck holds each quantile once, and the next has another order. Method: sort them.
    #[test]
    fn each_quantile_is_dealt_once_a_round() {
        let mut deck = Deck::new(Xoshiro256PlusPlus::seed_from_u64(SEED));
        let mut round = || (0..GAPS).map(|_| deck.deal()).collect::<Vec<_>>();
        let (first, second) = (round(), round());
        assert!(first != second);
        let sorted = |mut gaps: Vec<f64>| {
            gaps.sort_by(f64::total_cmp);
            gaps
        };
        assert!(sorted(first.clone()) == sorted(second));
        let mean = first.iter().sum::<f64>() / GAPS as f64;
        assert!((mean - 1.0).abs() < 1e-6, "{mean}");
    }

    /// Goal: what is never begun is counted, in bounded time, and as due when it was. Method: few and very many.
    #[test]
    fn the_rest_is_gone_through() {
        for (rate, seconds) in [(1e3, 0.5), (1e9, 60.0), (2e5, 0.1)] {
            for arrivals in [Arrivals::Fixed, Arrivals::Poisson, Arrivals::Burst(10)] {
                let begun = Instant::from_nanos(1_000);
                let mut schedule = Schedule::new(&Pace { rate, arrivals, seed: SEED }, begun);
                let end = begun + std::time::Duration::from_secs_f64(seconds);
                let (mut count, mut calls, mut sum_s) = (0_u64, 0_u64, 0.0);
                schedule.rest(end, |due, many| {
                    assert!(due < end);
                    (count, calls) = (count + many, calls + 1);
                    sum_s += due.since(begun).as_secs_f64() * many as f64;
                });
                let expected = rate * seconds;
                let off = (count as f64 / expected - 1.0).abs();
                assert!(off < 5.0 / expected.sqrt() + 0.03, "{count} for {expected}, {arrivals}");
                assert!(calls < 5 * REST_MAX, "{calls} calls");
                let mean_s = sum_s / count as f64;
                assert!((mean_s / seconds - 0.5).abs() < 0.08, "{mean_s} of {seconds} s, {arrivals}");
                assert!(schedule.next() >= end);
            }
        }
    }

    /// Goal: bursts come whole. Method: the moments of three.
    #[test]
    fn bursts_come_whole() {
        let moments = moments(Arrivals::Burst(3), 1e6, 9);
        let firsts: Vec<_> = moments.chunks(3).map(|burst| burst[0]).collect();
        assert!(moments.chunks(3).all(|burst| burst.iter().all(|&moment| moment == burst[0])), "{moments:?}");
        for pair in firsts.windows(2) {
            assert!((pair[1] - pair[0] - 3_000.0).abs() <= 1.0, "{firsts:?}");
        }
    }

    #[test]
    fn arrivals_are_read_and_refused() {
        for (text, arrivals) in
            [("fixed", Arrivals::Fixed), ("poisson", Arrivals::Poisson), ("burst:64", Arrivals::Burst(64))]
        {
            assert_eq!(text.parse(), Ok(arrivals));
            assert_eq!(arrivals.to_string(), text);
        }
        for text in ["", "burst", "burst:", "burst:0", "burst:1000001", "uniform", "Poisson"] {
            let error = text.parse::<Arrivals>().unwrap_err().to_string();
            assert!(error.contains("give fixed, poisson, or burst:N with N from 1 to 1000000"), "{error}");
        }
    }
}
