//! How long values are.

use std::{error, fmt, str::FromStr};

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
}
