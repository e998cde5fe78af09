//! How keys are chosen.

use std::{collections::HashMap, error, fmt, str::FromStr};

/// Exponent of a Zipf law, 0 to 10: 0 is uniform, and at 10 all but a thousandth of the operations are on one record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Theta(f64);

impl Theta {
    /// YCSB's usual exponent.
    pub const YCSB: Self = Self(0.99);

    /// Takes an exponent.
    ///
    /// # Errors
    /// When it is not a number from 0 to 10.
    pub fn new(theta: f64) -> Result<Self, ThetaError> {
        if (0.0..=10.0).contains(&theta) { Ok(Self(theta)) } else { Err(ThetaError(theta.to_string())) }
    }

    /// The exponent.
    #[must_use]
    pub const fn exponent(self) -> f64 {
        self.0
    }
}

impl FromStr for Theta {
    type Err = ThetaError;

    fn from_str(text: &str) -> Result<Self, ThetaError> {
        text.trim().parse().map_err(|_| ThetaError(text.to_owned())).and_then(Self::new)
    }
}

impl fmt::Display for Theta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What was given as a Zipf exponent and is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThetaError(String);

impl fmt::Display for ThetaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the Zipf exponent \"{}\" is not allowed; it is a number from 0 (uniform) to 10, as in 0.99",
            self.0
        )
    }
}

impl error::Error for ThetaError {}

/// A part of a whole, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(f64);

impl Share {
    /// Takes a share.
    ///
    /// # Errors
    /// When it is not a number from 0 to 1.
    pub fn new(share: f64) -> Result<Self, ShareError> {
        if (0.0..=1.0).contains(&share) { Ok(Self(share)) } else { Err(ShareError(share.to_string())) }
    }

    /// The share as a number.
    #[must_use]
    pub const fn value(self) -> f64 {
        self.0
    }
}

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        text.trim().parse().map_err(|_| ShareError(text.to_owned())).and_then(Self::new)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What was given as a share and is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareError(String);

impl fmt::Display for ShareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the share \"{}\" is not allowed; it is a number from 0 to 1, as in 0.8", self.0)
    }
}

impl error::Error for ShareError {}

/// A part of the records that gets a part of the operations, as YCSB's `HotspotIntegerGenerator` draws: the first records
/// are the hot ones, and within both parts all records are alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hotspot {
    /// Share of the records that are hot.
    pub set: Share,
    /// Share of the operations that are on these.
    pub ops: Share,
}

impl Hotspot {
    /// What YCSB's own configuration has: 80 % of the operations on 20 % of the records.
    pub const YCSB: Self = Self { set: Share(0.2), ops: Share(0.8) };

    /// How many of `records` are hot: rounded down as in YCSB, but at least one.
    #[must_use]
    pub fn hot(self, records: u32) -> u32 {
        ((f64::from(records) * self.set.0) as u32).clamp(1, records)
    }

    /// Probability of an operation on the hot records: 1 when there are no others.
    #[must_use]
    pub fn hot_share(self, records: u32) -> f64 {
        if self.hot(records) == records { 1.0 } else { self.ops.0 }
    }
}

/// How the record of an operation is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeyDistribution {
    /// All records alike.
    Uniform,
    /// Record `i` with a probability proportional to 1 / (i + 1)^θ. This is the plain law over the records themselves:
    /// record 0 is the hottest, record 1 the next, and with a million records and θ = 0.99 record 0 gets 6.5 % of the
    /// operations. (The order of the records means nothing to linerate, which places keys by their hash.)
    Zipf(Theta),
    /// As YCSB's `ScrambledZipfianGenerator` draws, which is what its workloads call "zipfian": see [`ScrambledZipf`].
    Scrambled(Theta),
    /// The newest record is the hottest, by the plain Zipf law over so many newest ones as there were at the beginning.
    Latest(Theta),
    /// A part of the records gets a part of the operations.
    Hotspot(Hotspot),
}

impl KeyDistribution {
    /// `uniform`, `zipf`, `scrambled`, `latest` or `hotspot`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf(_) => "zipf",
            Self::Scrambled(_) => "scrambled",
            Self::Latest(_) => "latest",
            Self::Hotspot(_) => "hotspot",
        }
    }

    /// Exponent of the law; that of laws without one is 0.
    #[must_use]
    pub const fn exponent(self) -> f64 {
        match self {
            Self::Uniform | Self::Hotspot(_) => 0.0,
            Self::Zipf(theta) | Self::Scrambled(theta) | Self::Latest(theta) => theta.exponent(),
        }
    }

    /// Probability of the hottest of `records` records, from the law itself and not from what was drawn.
    ///
    /// Exact to rounding, but for the scrambled law. There the hottest record is that of the hottest rank, or of several hot
    /// ones, and besides it gets its part of the billions of ranks behind them. The first 65,536 ranks are hashed one by
    /// one; the others are taken to be spread evenly. As they fall on records independently of each other, one record's part
    /// of them is off by √(Σp² / records), with Σp² = 3e-8 at θ = 0.99: with a million records 5 millionths of the
    /// result, with two records a quarter of a thousandth.
    ///
    /// # Panics
    /// When there are no records.
    #[must_use]
    pub fn hottest_share(self, records: u32) -> f64 {
        assert!(records > 0, "no records");
        match self {
            Self::Uniform => 1.0 / f64::from(records),
            Self::Zipf(theta) | Self::Latest(theta) => 1.0 / harmonic(records.into(), theta.exponent()),
            Self::Scrambled(theta) => ScrambledZipf::new(theta).hottest_share(records),
            Self::Hotspot(hotspot) => {
                let (hot, share) = (hotspot.hot(records), hotspot.hot_share(records));
                let cold = f64::from(records - hot).max(1.0);
                (share / f64::from(hot)).max((1.0 - share) / cold)
            }
        }
    }
}

impl fmt::Display for KeyDistribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => write!(f, "uniform"),
            Self::Zipf(theta) => write!(f, "Zipf {theta}"),
            Self::Scrambled(theta) => write!(f, "scrambled Zipf {theta}"),
            Self::Latest(theta) => write!(f, "latest, Zipf {theta}"),
            Self::Hotspot(Hotspot { set, ops }) => {
                write!(f, "hotspot, {ops} of the operations on {set} of the records")
            }
        }
    }
}

/// The law of YCSB's `ScrambledZipfianGenerator` (core/src/main/java/site/ycsb/generator/): a rank out of 10^10 + 1 by a
/// Zipf law, hashed, modulo the number of records. Hot records so lie scattered, and each record has many ranks, so that
/// the law is flatter than the plain one: the hottest of a million records gets 3.8 % at θ = 0.99 instead of 6.5 %.
///
/// The rank is found as in YCSB by the approximation of Gray et al. ("Quickly Generating Billion-Record Synthetic
/// Databases", SIGMOD 1994): exact for the first two ranks, a continuous power law for the others. With
/// g(y) = (e^((1 − θ)·y) − 1) / (1 − θ), which is y at θ = 1, a rank is at least x ≥ 2 with a probability
/// proportional to g(ln(x / items)).
#[derive(Clone, Copy, Debug)]
pub struct ScrambledZipf {
    zeta: f64,
    /// Sum of the first two weights.
    two: f64,
    /// 1 − θ.
    left: f64,
    /// g at rank 2.
    at_two: f64,
}

impl ScrambledZipf {
    /// Ranks: YCSB counts 0 and 10^10 both in.
    pub const RANKS: u64 = 10_000_000_001;

    /// What YCSB has for the sum of all weights at θ = 0.99, which it does not add up again.
    const ZETA_YCSB: f64 = 26.469_028_201_783_02;

    /// Ranks that are hashed one by one to find the hottest record.
    const RANKS_HASHED: u64 = 1 << 16;

    /// The law with this exponent.
    #[must_use]
    pub fn new(theta: Theta) -> Self {
        let items = Self::RANKS as f64;
        let zeta = if theta == Theta::YCSB { Self::ZETA_YCSB } else { harmonic(items, theta.exponent()) };
        let left = 1.0 - theta.exponent();
        let two = 1.0 + 0.5_f64.powf(theta.exponent());
        Self { zeta, two, left, at_two: power(left, (2.0 / items).ln()) }
    }

    /// The rank that belongs to a number from 0 to below 1.
    #[must_use]
    pub fn rank(&self, uniform: f64) -> u64 {
        let weight = uniform * self.zeta;
        if weight < 1.0 {
            return 0;
        }
        if weight < self.two {
            return 1;
        }
        let height = (1.0 - uniform) * self.at_two / (1.0 - self.two / self.zeta);
        let log = if self.left == 0.0 { height } else { (self.left * height).ln_1p() / self.left };
        // Rounding could reach one beyond the last.
        ((Self::RANKS as f64 * log.exp()) as u64).min(Self::RANKS - 1)
    }

    /// Probability of a rank of at least `rank`.
    #[must_use]
    pub fn share_from(&self, rank: u64) -> f64 {
        match rank {
            0 => 1.0,
            1 => 1.0 - 1.0 / self.zeta,
            _ => {
                let height = power(self.left, (rank as f64 / Self::RANKS as f64).ln());
                (1.0 - self.two / self.zeta) * (height / self.at_two)
            }
        }
    }

    /// The record of a rank: YCSB's `Utils.hash`, an FNV-1a hash over the rank's eight bytes whose sign is dropped.
    #[must_use]
    pub fn record(rank: u64, records: u32) -> u32 {
        // Offset and prime of the 64-bit FNV hashes.
        let hash = rank.to_le_bytes().into_iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        (hash.cast_signed().unsigned_abs() % u64::from(records)) as u32
    }

    fn hottest_share(&self, records: u32) -> f64 {
        let mut shares = HashMap::new();
        for rank in 0..Self::RANKS_HASHED {
            let share = self.share_from(rank) - self.share_from(rank + 1);
            *shares.entry(Self::record(rank, records)).or_insert(0.0) += share;
        }
        let others = self.share_from(Self::RANKS_HASHED) / f64::from(records);
        shares.into_values().fold(0.0, f64::max) + others
    }
}

/// ∫ e^(left·y) dy from 0 to `log`.
fn power(left: f64, log: f64) -> f64 {
    if left == 0.0 { log } else { (left * log).exp_m1() / left }
}

/// Σ i^-θ for i from 1 to `count`, of any size: the first thousand one by one, the others by the Euler–Maclaurin formula,
/// whose first neglected term is below 1e-16 of the sum there for every allowed θ.
#[must_use]
pub(super) fn harmonic(count: f64, theta: f64) -> f64 {
    const SUMMED: f64 = 1_000.0;
    let weight = |number: f64| number.powf(-theta);
    let first = count.min(SUMMED - 1.0);
    let head: f64 = (1..=first as u32).rev().map(|number| weight(number.into())).sum();
    if count < SUMMED {
        return head;
    }
    let integral = SUMMED.powf(1.0 - theta) * power(1.0 - theta, (count / SUMMED).ln());
    let ends = (weight(SUMMED) + weight(count)) / 2.0;
    let slopes = theta * (SUMMED.powf(-theta - 1.0) - count.powf(-theta - 1.0)) / 12.0;
    let bends = theta * (theta + 1.0) * (theta + 2.0);
    let bends = bends * (SUMMED.powf(-theta - 3.0) - count.powf(-theta - 3.0)) / 720.0;
    head + (integral + ends + slopes - bends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_checked() {
        for (text, exponent) in [("0.99", 0.99), ("0", 0.0), ("10", 10.0), (" 1.2 ", 1.2)] {
            assert_eq!(text.parse::<Theta>().map(Theta::exponent), Ok(exponent));
        }
        for text in ["-0.1", "10.1", "NaN", "inf", "", "high"] {
            let error = text.parse::<Theta>().expect_err(text).to_string();
            assert!(error.contains("is not allowed; it is a number from 0 (uniform) to 10"), "{error}");
        }
        assert_eq!(Theta::YCSB.to_string(), "0.99");
        assert_eq!(KeyDistribution::Zipf(Theta::YCSB).to_string(), "Zipf 0.99");
    }

    /// Goal: the sums that laws rest on are right. Method: added up one by one where that is feasible, YCSB's own constant
    /// where it is not, and π²/6.
    #[test]
    fn harmonic_numbers_are_exact() {
        for theta in [0.0, 0.5, 0.99, 1.0, 1.5, 10.0] {
            for count in [1_u32, 2, 999, 1_000, 1_001, 100_000] {
                let sum: f64 = (1..=count).rev().map(|number| f64::from(number).powf(-theta)).sum();
                let found = harmonic(count.into(), theta);
                assert!((found / sum - 1.0).abs() < 1e-12, "{count}, θ = {theta}: {found} for {sum}");
            }
        }
        assert!((harmonic(1e10, 0.99) - ScrambledZipf::ZETA_YCSB).abs() < 1e-7, "{}", harmonic(1e10, 0.99));
        assert!((harmonic(1e18, 2.0) - std::f64::consts::PI.powi(2) / 6.0).abs() < 1e-12);
    }

    /// Goal: ranks are those of YCSB's formula, at every exponent. Method: that formula as Gray et al. have it, for numbers
    /// over the whole range; then the probability of ranks against the numbers that yield them.
    #[test]
    fn scrambled_ranks_follow_the_formula() {
        let items = ScrambledZipf::RANKS as f64;
        for theta in [0.0, 0.5, 0.99, 1.2, 2.0] {
            let law = ScrambledZipf::new(Theta::new(theta).unwrap());
            let eta = (1.0 - (2.0 / items).powf(1.0 - theta)) / (1.0 - law.two / law.zeta);
            for step in 0..10_000 {
                let uniform = f64::from(step) / 10_000.0;
                let weight = uniform * law.zeta;
                let expected = if weight < 1.0 {
                    0.0
                } else if weight < law.two {
                    1.0
                } else {
                    items * (eta * uniform - eta + 1.0).powf(1.0 / (1.0 - theta))
                };
                let rank = law.rank(uniform) as f64;
                assert!(
                    (rank - expected).abs() <= 1.0 + 1e-6 * expected,
                    "θ = {theta}, {uniform}: {rank} for {expected}"
                );
            }
        }
        for theta in [0.5, 0.99, 1.0, 1.3] {
            let law = ScrambledZipf::new(Theta::new(theta).unwrap());
            for rank in [1, 2, 3, 10, 1_000, 1_000_000_000] {
                let begins = 1.0 - law.share_from(rank);
                let below = law.rank(begins * (1.0 - 1e-12) - 1e-13);
                let above = law.rank(begins * (1.0 + 1e-12) + 1e-13);
                assert!(below <= rank && rank <= above + 1, "θ = {theta}, {rank}: {below} to {above}");
                assert!(
                    rank > 1_000 || (below + 1, above) == (rank, rank),
                    "θ = {theta}, {rank}: {below}, {above}"
                );
            }
            assert_eq!((law.share_from(0), law.rank(0.0)), (1.0, 0));
            assert!(law.share_from(ScrambledZipf::RANKS).abs() < 1e-12);
        }
    }

    /// Goal: ranks are hashed as YCSB does. Method: what its arithmetic, with signed numbers, gives for known ranks.
    #[test]
    fn scrambled_records_are_hashed() {
        for rank in [0_u64, 1, 2, 255, 256, 12_345_678_901] {
            let (mut value, mut hash) = (rank as i64, 0xcbf2_9ce4_8422_2325_u64 as i64);
            for _ in 0..8 {
                hash = (hash ^ (value & 0xff)).wrapping_mul(1_099_511_628_211);
                value >>= 8;
            }
            for records in [1, 1_000, 1_000_000, i32::MAX as u32] {
                assert_eq!(i64::from(ScrambledZipf::record(rank, records)), hash.abs() % i64::from(records));
            }
        }
    }

    /// Goal: the share of the hottest record that reports quote. Method: each law's definition, and for the scrambled one
    /// all the more ranks hashed, on few records and on many.
    #[test]
    fn the_hottest_share_is_the_laws() {
        let close = |found: f64, expected: f64, by: f64| {
            assert!((found / expected - 1.0).abs() < by, "{found} for {expected}");
        };
        close(KeyDistribution::Uniform.hottest_share(50), 0.02, 1e-12);
        close(KeyDistribution::Zipf(Theta::YCSB).hottest_share(1_000_000), 0.065, 0.01);
        close(KeyDistribution::Latest(Theta::new(1.0).unwrap()).hottest_share(2), 2.0 / 3.0, 1e-12);
        close(KeyDistribution::Hotspot(Hotspot::YCSB).hottest_share(1_000), 0.8 / 200.0, 1e-12);
        let cold = Hotspot { set: Share(0.5), ops: Share(0.1) };
        close(KeyDistribution::Hotspot(cold).hottest_share(10), 0.9 / 5.0, 1e-12);
        let all = Hotspot { set: Share(1.0), ops: Share(0.1) };
        close(KeyDistribution::Hotspot(all).hottest_share(10), 0.1, 1e-12);
        let law = ScrambledZipf::new(Theta::YCSB);
        close(KeyDistribution::Scrambled(Theta::YCSB).hottest_share(1_000_000), 0.0378, 0.01);
        for (records, by) in [(2_usize, 1e-3), (100, 1e-3), (10_000, 1e-4)] {
            const HASHED: u64 = 1 << 20;
            let others = law.share_from(HASHED) / records as f64;
            let mut shares = vec![others; records];
            for rank in 0..HASHED {
                let share = law.share_from(rank) - law.share_from(rank + 1);
                shares[ScrambledZipf::record(rank, records as u32) as usize] += share;
            }
            let hottest = shares.into_iter().fold(0.0, f64::max);
            close(KeyDistribution::Scrambled(Theta::YCSB).hottest_share(records as u32), hottest, by);
        }
    }

    #[test]
    fn shares_are_checked() {
        for (text, share) in [("0", 0.0), ("1", 1.0), (" 0.25 ", 0.25)] {
            assert_eq!(text.parse::<Share>().map(Share::value), Ok(share));
        }
        for text in ["-0.1", "1.1", "NaN", "", "half"] {
            let error = text.parse::<Share>().expect_err(text).to_string();
            assert!(error.contains("is not allowed; it is a number from 0 to 1, as in 0.8"), "{error}");
        }
        assert_eq!([1, 4, 100].map(|records| Hotspot::YCSB.hot(records)), [1, 1, 20]);
    }
}
