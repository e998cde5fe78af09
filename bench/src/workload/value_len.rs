//! How long values are.

use std::{error, fmt, str::FromStr, sync::Arc};

use linerate_proto::wire::{Operation, VALUE_LEN_MAX};
use serde::{Serialize, Serializer};

use crate::key::key_len;

/// Lengths of values in bytes: always the same (`128`), or any from a range with the same probability (`64-256`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueLen {
    min: u32,
    max: u32,
}

impl ValueLen {
    /// Longest value. One that does not fit a datagram travels in pieces.
    pub const MAX: usize = VALUE_LEN_MAX;

    /// Values of `min` to `max` bytes, both included.
    ///
    /// # Errors
    /// When the range runs backwards or reaches beyond [`Self::MAX`].
    pub const fn new(min: usize, max: usize) -> Result<Self, ValueLenError> {
        if min > max {
            return Err(ValueLenError::Backwards { min, max });
        }
        if max > Self::MAX {
            return Err(ValueLenError::TooLong { len: max, max: Self::MAX });
        }
        Ok(Self { min: min as u32, max: max as u32 })
    }

    /// Checks that each value fits a datagram together with the longest key of `records` records.
    ///
    /// # Errors
    /// [`ValueLenError::TooLong`] when the longest does not.
    pub const fn check_fits_datagram(self, records: u32) -> Result<(), ValueLenError> {
        let max = Operation::inline_value_len_max(key_len(records.saturating_sub(1)));
        if self.max() > max { Err(ValueLenError::TooLong { len: self.max(), max }) } else { Ok(()) }
    }

    /// Shortest length.
    #[inline]
    #[must_use]
    pub const fn min(self) -> usize {
        self.min as usize
    }

    /// Longest length.
    #[inline]
    #[must_use]
    pub const fn max(self) -> usize {
        self.max as usize
    }

    /// Whether `len` is one of the lengths.
    #[inline]
    #[must_use]
    pub const fn contains(self, len: usize) -> bool {
        self.min() <= len && len <= self.max()
    }

    /// The length that belongs to a uniformly random number.
    #[inline]
    #[must_use]
    pub const fn pick(self, random: u32) -> usize {
        // Scales instead of dividing (Lemire, "Fast random integer generation in an interval", 2019). Without his
        // rejection step a length is off its probability by at most 1 in 2^12 if there are 2^20 of them, 1 in 2^22 if
        // there are a thousand.
        let count = (self.max - self.min) as u64 + 1;
        self.min() + ((random as u64 * count) >> 32) as usize
    }
}

impl FromStr for ValueLen {
    type Err = ValueLenError;

    fn from_str(text: &str) -> Result<Self, ValueLenError> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let parse = |len: &str| len.trim().parse().map_err(|_| ValueLenError::Malformed(text.to_owned()));
        Self::new(parse(min)?, parse(max)?)
    }
}

impl fmt::Display for ValueLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min) } else { write!(f, "{}-{}", self.min, self.max) }
    }
}

/// A number when there is one length, the text `64-256` when there are many: what was asked for, in both cases.
impl Serialize for ValueLen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.min == self.max { serializer.serialize_u32(self.min) } else { serializer.collect_str(self) }
    }
}

/// How the lengths of values are spread: what `--value-len` takes. Cheap to clone.
#[derive(Clone, Debug)]
pub enum ValueLaw {
    /// All lengths of a range alike (`128`, `64-256`).
    Even(ValueLen),
    /// Ranges with weights (`100:0.5,1000:0.3,4096-8192:0.2`): as typed, and the table.
    Weighted(Arc<str>, Arc<LenTable>),
    /// The values of Facebook's ETC pool (`etc`).
    Etc(Arc<LenTable>),
}

impl ValueLaw {
    /// Shortest and longest length.
    #[must_use]
    pub fn lens(&self) -> ValueLen {
        match self {
            Self::Even(lens) => *lens,
            Self::Weighted(_, table) | Self::Etc(table) => table.lens,
        }
    }

    /// The length that belongs to a uniformly random number.
    #[inline]
    #[must_use]
    pub fn pick(&self, random: u32) -> usize {
        match self {
            Self::Even(lens) => lens.pick(random),
            Self::Weighted(_, table) | Self::Etc(table) => table.pick(random),
        }
    }

    /// Bytes to reckon with for one of many values: the longest of an even range, otherwise the mean, as the longest may be
    /// rare.
    #[must_use]
    pub fn planned_len(&self) -> usize {
        match self {
            Self::Even(lens) => lens.max(),
            Self::Weighted(_, table) | Self::Etc(table) => table.mean().ceil() as usize,
        }
    }
}

impl From<ValueLen> for ValueLaw {
    fn from(lens: ValueLen) -> Self {
        Self::Even(lens)
    }
}

/// Laws are equal when they are written alike.
impl PartialEq for ValueLaw {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Even(one), Self::Even(other)) => one == other,
            (Self::Weighted(one, _), Self::Weighted(other, _)) => one == other,
            (one, other) => matches!((one, other), (Self::Etc(_), Self::Etc(_))),
        }
    }
}

impl FromStr for ValueLaw {
    type Err = ValueLenError;

    fn from_str(text: &str) -> Result<Self, ValueLenError> {
        if text.trim() == "etc" {
            return Ok(Self::Etc(Arc::new(LenTable::etc())));
        }
        if !text.contains([':', ',']) {
            return text.parse().map(Self::Even).map_err(|error| match error {
                ValueLenError::Malformed(text) => ValueLenError::NoLaw(text),
                error => error,
            });
        }
        let mut parts = Vec::new();
        for part in text.split(',') {
            let (lens, weight) =
                part.split_once(':').ok_or_else(|| ValueLenError::NoWeight(part.trim().to_owned()))?;
            let lens: ValueLen = lens.parse()?;
            let weight =
                weight.trim().parse().ok().filter(|weight: &f64| weight.is_finite() && *weight > 0.0);
            parts.push((lens, weight.ok_or_else(|| ValueLenError::NoWeight(part.trim().to_owned()))?));
        }
        let all: f64 = parts.iter().map(|(_, weight)| weight).sum();
        if let Some((lens, _)) = parts.iter().find(|(_, weight)| weight / all < LenTable::SHARE_MIN) {
            return Err(ValueLenError::Rare(*lens));
        }
        Ok(Self::Weighted(text.trim().into(), Arc::new(LenTable::weighted(&parts))))
    }
}

impl fmt::Display for ValueLaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Even(lens) => lens.fmt(f),
            Self::Weighted(text, _) => f.write_str(text),
            Self::Etc(_) => f.write_str("etc"),
        }
    }
}

/// A number when there is one length, otherwise the text that was typed.
impl Serialize for ValueLaw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Even(lens) => lens.serialize(serializer),
            Self::Weighted(..) | Self::Etc(_) => serializer.collect_str(self),
        }
    }
}

/// Lengths by their rank: entry `i` of 4,096 is the length that a share of (i + ½) / 4,096 of all values is shorter than, so
/// that drawing one costs a shift and a load. The last entry, where the long tail of a law is, has 4,096 of its own.
///
/// The table has the law's distribution function to within 1 / 8,192, and to within 1 / 2^25 in the last part. Its 32 KiB
/// lie in a first- or second-level cache; of the second half hardly anything does.
#[derive(Debug)]
pub struct LenTable {
    lens: ValueLen,
    usual: Box<[u32; Self::LEN]>,
    longest: Box<[u32; Self::LEN]>,
}

impl LenTable {
    const BITS: u32 = 12;
    const LEN: usize = 1 << Self::BITS;

    /// Smallest share that a length of a list may have; less would be lost between the entries.
    const SHARE_MIN: f64 = 0.001;

    /// The table of a law whose quantiles `len_at` tells, for numbers between 0 and 1.
    fn new(len_at: impl Fn(f64) -> u32) -> Self {
        let at = |from: f64, step: f64| {
            let len = |index: usize| len_at(from + (index as f64 + 0.5) * step);
            let lens: Box<[u32]> = (0..Self::LEN).map(len).collect();
            lens.try_into().expect("as many as were made")
        };
        let step = 1.0 / Self::LEN as f64;
        let usual: Box<[u32; Self::LEN]> = at(0.0, step);
        let longest: Box<[u32; Self::LEN]> = at(1.0 - step, step * step);
        let all = || usual.iter().chain(longest.iter()).copied();
        let lens = ValueLen { min: all().min().unwrap_or(0), max: all().max().unwrap_or(0) };
        Self { lens, usual, longest }
    }

    /// Each range with its weight, in ascending order of their beginnings.
    fn weighted(parts: &[(ValueLen, f64)]) -> Self {
        let mut parts = parts.to_vec();
        parts.sort_by_key(|(lens, _)| (lens.min, lens.max));
        let all: f64 = parts.iter().map(|(_, weight)| weight).sum();
        let table = Self::new(|share| {
            let mut left = share * all;
            for (lens, weight) in &parts {
                if left < *weight {
                    return lens.pick((left / weight * 2_f64.powi(32)) as u32) as u32;
                }
                left -= weight;
            }
            // Rounding has left something over.
            parts.last().map_or(0, |(lens, _)| lens.max)
        });
        let ends = parts.iter().map(|(lens, _)| (lens.min, lens.max));
        let (min, max) = ends.fold((u32::MAX, 0), |all, lens| (all.0.min(lens.0), all.1.max(lens.1)));
        Self { lens: ValueLen { min, max }, ..table }
    }

    /// The values of Facebook's ETC pool as Atikoglu et al. model them ("Workload Analysis of a Large-Scale Key-Value Store",
    /// SIGMETRICS 2012, section 3 and table 5): lengths below 15 bytes have a probability each; from 15 bytes on a
    /// generalized Pareto law with θ = 0, σ = 214.476, k = 0.348238 goes on, which is read here as the part beyond 15.
    ///
    /// Cut off at [`ValueLen::MAX`], which would touch 3 values in 10^10; the table itself ends at 209 KB, which one
    /// value in 2^25 exceeds.
    fn etc() -> Self {
        let table = Self::new(|share| etc_len_at(share) as u32);
        Self { lens: ValueLen { min: 0, max: table.lens.max }, ..table }
    }

    #[inline]
    fn pick(&self, random: u32) -> usize {
        let index = (random >> (32 - Self::BITS)) as usize;
        if index < Self::LEN - 1 {
            self.usual[index] as usize
        } else {
            self.longest[(random >> (32 - 2 * Self::BITS)) as usize % Self::LEN] as usize
        }
    }

    fn mean(&self) -> f64 {
        let sum = |lens: &[u32]| lens.iter().map(|&len| f64::from(len)).sum::<f64>();
        let longest = sum(&self.longest[..]) / Self::LEN as f64;
        (sum(&self.usual[..Self::LEN - 1]) + longest) / Self::LEN as f64
    }
}

/// Probabilities of 0, 1, … 14 bytes.
const ETC_SHORT: [f64; 15] = [
    0.00536, 0.00047, 0.17820, 0.09239, 0.00018, 0.02740, 0.00065, 0.00606, 0.00023, 0.00837, 0.00837,
    0.08989, 0.00092, 0.00326, 0.01980,
];

const ETC_SIGMA: f64 = 214.476;
const ETC_K: f64 = 0.348_238;

/// The length that a share of the ETC values is shorter than.
fn etc_len_at(share: f64) -> usize {
    let mut left = share;
    for (len, probability) in ETC_SHORT.into_iter().enumerate() {
        if left < probability {
            return len;
        }
        left -= probability;
    }
    let beyond = left / (1.0 - ETC_SHORT.iter().sum::<f64>());
    let len = ETC_SHORT.len() as f64 + ETC_SIGMA * ((1.0 - beyond).powf(-ETC_K) - 1.0) / ETC_K;
    (len as usize).min(ValueLen::MAX)
}

/// Why a length of values is refused; displayed as one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueLenError {
    /// Neither a number nor a range of two.
    Malformed(String),
    /// The range counts down.
    Backwards {
        /// Its left end.
        min: usize,
        /// Its right end, smaller.
        max: usize,
    },
    /// Nor a list or `etc`.
    NoLaw(String),
    /// This part of a list does not say how often.
    NoWeight(String),
    /// A length of a list that is hardly ever drawn.
    Rare(ValueLen),
    /// No value can have `len` bytes.
    TooLong {
        /// What was asked for.
        len: usize,
        /// What would fit.
        max: usize,
    },
}

impl fmt::Display for ValueLenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(text) => write!(
                f,
                "the value length \"{text}\" is neither a number of bytes like 128 nor a range like 64-256, within 0 to {}",
                ValueLen::MAX
            ),
            Self::Backwards { min, max } => {
                write!(f, "the range of value lengths {min}-{max} runs backwards; write {max}-{min}")
            }
            Self::NoLaw(text) => write!(
                f,
                "the value length \"{text}\" is neither a number of bytes like 128, a range like 64-256, nor a weighted list like \
                 100:0.7,4096-8192:0.3, all within 0 to {}, nor etc",
                ValueLen::MAX
            ),
            Self::NoWeight(part) => write!(
                f,
                "\"{part}\" in a list of value lengths lacks its weight, a number above 0: write it like 100:0.5,4096-8192:0.2"
            ),
            Self::Rare(lens) => write!(
                f,
                "the value length {lens} has a share of less than {} of its list, which is too little to be drawn; give it \
                 more or leave it out",
                LenTable::SHARE_MIN
            ),
            Self::TooLong { len, max } => {
                write!(f, "values of {len} bytes are too long; the allowed lengths are 0 to {max} bytes")
            }
        }
    }
}

impl error::Error for ValueLenError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: value lengths are read, written and refused as documented. Method: one text per case.
    #[test]
    fn value_lengths_are_read_and_written() {
        for (text, min, max, shown) in [
            ("128", 128, 128, "128"),
            ("64-256", 64, 256, "64-256"),
            (" 64 - 256 ", 64, 256, "64-256"),
            ("0", 0, 0, "0"),
            ("7-7", 7, 7, "7"),
            ("0-1048576", 0, 1_048_576, "0-1048576"),
        ] {
            let lens: ValueLen = text.parse().unwrap();
            assert_eq!((lens.min(), lens.max(), lens.to_string().as_str()), (min, max, shown), "{text}");
        }
        for (text, reason) in [
            ("", "within 0 to 1048576"),
            ("-5", "the value length \"-5\" is neither"),
            ("64-", "the value length \"64-\" is neither"),
            ("1-2-3", "the value length \"1-2-3\" is neither"),
            ("1KiB", "the value length \"1KiB\" is neither"),
            ("256-64", "256-64 runs backwards; write 64-256"),
            ("1048577", "values of 1048577 bytes are too long; the allowed lengths are 0 to 1048576 bytes"),
            ("0-2000000", "values of 2000000 bytes are too long"),
        ] {
            let error = text.parse::<ValueLen>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
        let (fixed, range) = (ValueLen::new(128, 128).unwrap(), ValueLen::new(64, 256).unwrap());
        assert_eq!(serde_json::to_string(&[fixed, range]).unwrap(), r#"[128,"64-256"]"#);
    }

    /// Goal: longer keys leave less room. Method: the number of records at which the longest key grows.
    #[test]
    fn the_longest_value_depends_on_the_number_of_records() {
        for (records, max) in [(1, 1_427), (10, 1_427), (11, 1_426), (1_000_000, 1_422), (1_000_001, 1_421)] {
            assert_eq!(ValueLen::new(0, max).unwrap().check_fits_datagram(records), Ok(()));
            let longer = ValueLen::new(0, max + 1).unwrap().check_fits_datagram(records);
            assert_eq!(longer, Err(ValueLenError::TooLong { len: max + 1, max }), "{records} records");
        }
    }

    /// Goal: picked lengths stay in the range, reach both ends, and are equally frequent. Method: evenly spaced
    /// "random" numbers, and the extremes.
    #[test]
    fn picked_lengths_cover_the_range_evenly() {
        let lens = ValueLen::new(64, 256).unwrap();
        assert_eq!((lens.pick(0), lens.pick(u32::MAX)), (64, 256));
        let mut counts = [0_u32; 257];
        (0..193_000_u64).for_each(|index| counts[lens.pick((index * (1 << 32) / 193_000) as u32)] += 1);
        assert!(counts[64..].iter().all(|count| (999..=1_001).contains(count)), "{counts:?}");
        let fixed = ValueLen::new(128, 128).unwrap();
        assert!([0, 1 << 31, u32::MAX].into_iter().all(|random| fixed.pick(random) == 128));
    }

    /// Goal: lists and `etc` are read, written and refused as documented. Method: one text per case.
    #[test]
    fn laws_of_lengths_are_read_and_written() {
        for (text, min, max, shown) in [
            ("128", 128, 128, "128"),
            ("64-256", 64, 256, "\"64-256\""),
            ("100:0.5,1000:0.3,4096-8192:0.2", 100, 8_192, "\"100:0.5,1000:0.3,4096-8192:0.2\""),
            ("100:5", 100, 100, "\"100:5\""),
        ] {
            let law: ValueLaw = text.parse().unwrap();
            assert_eq!((law.lens().min(), law.lens().max()), (min, max), "{text}");
            assert_eq!(serde_json::to_string(&law).unwrap(), shown);
            assert_eq!(law.to_string().parse::<ValueLaw>().unwrap(), law);
        }
        let etc: ValueLaw = "etc".parse().unwrap();
        assert_eq!((serde_json::to_string(&etc).unwrap().as_str(), etc.lens().min()), ("\"etc\"", 0));
        for (text, reason) in [
            (
                "1KiB",
                "\"1KiB\" is neither a number of bytes like 128, a range like 64-256, nor a weighted list",
            ),
            ("256-64", "256-64 runs backwards; write 64-256"),
            ("100,200:1", "\"100\" in a list of value lengths lacks its weight"),
            ("100:", "\"100:\" in a list of value lengths lacks its weight"),
            ("100:-1", "\"100:-1\" in a list of value lengths lacks its weight"),
            ("100:NaN", "lacks its weight"),
            ("x:1", "the value length \"x\" is neither"),
            ("100:1,", "\"\" in a list of value lengths lacks its weight"),
            ("100:1,200:0.0005", "the value length 200 has a share of less than 0.001"),
            ("9-8:1", "9-8 runs backwards"),
            ("1048577:1", "values of 1048577 bytes are too long"),
        ] {
            let error = text.parse::<ValueLaw>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    /// Share of the picked lengths that are at most each of `lens`, over evenly spaced numbers.
    fn picked(law: &ValueLaw, lens: &[usize]) -> Vec<f64> {
        const PICKS: u32 = 1 << 20;
        let mut counts = vec![0_u32; lens.len()];
        for index in 0..PICKS {
            let len = law.pick(index << 12 | 0x800);
            assert!(law.lens().contains(len), "{len}");
            lens.iter().zip(&mut counts).for_each(|(&bound, count)| *count += u32::from(len <= bound));
        }
        counts.iter().map(|&count| f64::from(count) / f64::from(PICKS)).collect()
    }

    /// Goal: what is drawn from a list has the weights and is even within a range. Method: the distribution function at
    /// several lengths against the exact one, within the width of two entries.
    #[test]
    fn lists_are_drawn_by_weight() {
        let law: ValueLaw = "1000:3, 100:5, 4096-8192:2".parse().unwrap();
        let bounds = [99, 100, 999, 1_000, 4_095, 5_119, 6_143, 7_167, 8_192];
        let exact = [0.0, 0.5, 0.5, 0.8, 0.8, 0.85, 0.9, 0.95, 1.0];
        for ((bound, share), exact) in bounds.iter().zip(picked(&law, &bounds)).zip(exact) {
            assert!((share - exact).abs() <= 2.0 / 4_096.0, "{share} of {exact} up to {bound}");
        }
        let mean = 0.3 * 1_000.0 + 0.5 * 100.0 + 0.2 * 6_144.0;
        assert!((law.planned_len() as f64 / mean - 1.0).abs() < 0.01, "{}", law.planned_len());
    }

    /// Goal: `etc` has the published law, its tail included. Method: the distribution function against the published
    /// probabilities, added up, and the Pareto law's formula; the mean against its integral.
    #[test]
    fn etc_is_drawn_by_the_published_law() {
        let law: ValueLaw = "etc".parse().unwrap();
        let short: f64 = ETC_SHORT.iter().sum();
        assert!((short - 0.441_55).abs() < 1e-9);
        let at_most = |len: usize| match len {
            ..15 => ETC_SHORT[..=len].iter().sum(),
            // A length of n bytes is all of n to n + 1.
            _ => 1.0 - (1.0 - short) * (1.0 + ETC_K * (len as f64 - 14.0) / ETC_SIGMA).powf(-1.0 / ETC_K),
        };
        let bounds = [0, 2, 3, 10, 14, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000];
        for (&bound, share) in bounds.iter().zip(picked(&law, &bounds)) {
            let exact: f64 = at_most(bound);
            assert!((share - exact).abs() <= 1.5 / 4_096.0, "{share} of {exact} up to {bound}");
        }
        // The tail, of which there is one in 4,096: shares of that.
        let bounds = [9_000, 12_000, 20_000, 50_000, 100_000];
        for (&bound, share) in bounds.iter().zip(picked(&law, &bounds)) {
            let (share, exact) = ((1.0 - share) * 4_096.0, (1.0 - at_most(bound)) * 4_096.0);
            assert!((share - exact).abs() <= 0.01, "{share} of {exact} beyond {bound}");
        }
        let table_mean = LenTable::etc().mean();
        let lengths = (0..15).map(|len| len as f64 * ETC_SHORT[len]).sum::<f64>();
        // A length is rounded down, by half a byte on average.
        let mean = lengths + (1.0 - short) * (14.5 + ETC_SIGMA / (1.0 - ETC_K));
        assert!((table_mean / mean - 1.0).abs() < 0.005, "{table_mean} for {mean}");
        // What the documentation says of the ends.
        let beyond = 1.0 - at_most(ValueLen::MAX - 1);
        assert!((2e-10..4e-10).contains(&beyond), "{beyond}");
        assert!((200_000..350_000).contains(&law.lens().max()), "{}", law.lens().max());
    }
}
