//! On what terms a write takes effect, and the options of an operation that say so.
//!
//! ```text
//! opcode:  │ condition (3 bits) │ time to live (1 bit) │ operation (4 bits) │
//! header … │ version (8), of condition 3 │ time to live (4), if there is one │ key …
//! ```

use std::num::NonZeroU32;

use zerocopy::{FromBytes, IntoBytes, network_endian as be};

/// Bit of the opcode: the value does not live for ever.
const TTL: u8 = 0x10;

const CONDITION_SHIFT: u32 = 5;
const ABSENT: u8 = 1;
const PRESENT: u8 = 2;
const VERSION: u8 = 3;

/// Bits of the opcode that are options.
pub(super) const OPTIONS: u8 = 0xf0;

/// What must be so for a put to have an effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    #[default]
    Always,
    /// The key has no value.
    Absent,
    /// The key has a value.
    Present,
    /// The key has a value, and it is the one that the write of this version, 1 or above, stored.
    Version(u64),
}

/// On what terms a put stores its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// When not met, the put has no effect.
    pub condition: Condition,
    /// Milliseconds after which the value is gone; `None`: never.
    pub ttl_ms: Option<NonZeroU32>,
}

impl Terms {
    /// No condition, and a value that lives for ever.
    pub const NONE: Self = Self { condition: Condition::Always, ttl_ms: None };

    /// Only if the condition is met.
    #[must_use]
    pub const fn only_if(condition: Condition) -> Self {
        Self { condition, ttl_ms: None }
    }

    /// The same with a time to live.
    #[must_use]
    pub const fn for_ms(self, ttl_ms: Option<NonZeroU32>) -> Self {
        Self { ttl_ms, ..self }
    }

    /// Bits of the opcode.
    pub(super) const fn options(self) -> u8 {
        let condition = match self.condition {
            Condition::Always => 0,
            Condition::Absent => ABSENT,
            Condition::Present => PRESENT,
            Condition::Version(_) => VERSION,
        };
        condition << CONDITION_SHIFT | if self.ttl_ms.is_some() { TTL } else { 0 }
    }

    /// Bytes behind the header.
    pub(super) const fn extension_len(self) -> usize {
        let version_len =
            if matches!(self.condition, Condition::Version(_)) { size_of::<be::U64>() } else { 0 };
        version_len + if self.ttl_ms.is_some() { size_of::<be::U32>() } else { 0 }
    }

    /// Writes the bytes behind the header; `out` has just as many.
    pub(super) fn write(self, out: &mut [u8]) {
        let mut rest = out;
        if let Condition::Version(version) = self.condition {
            let (bytes, behind) = rest.split_at_mut(size_of::<be::U64>());
            bytes.copy_from_slice(be::U64::new(version).as_bytes());
            rest = behind;
        }
        if let Some(ttl_ms) = self.ttl_ms {
            rest.copy_from_slice(be::U32::new(ttl_ms.get()).as_bytes());
        }
    }

    /// Reads the terms that the options of `opcode` announce, and returns them with the bytes behind; `None` when the
    /// options are unknown, a version or time to live is 0, or the bytes end early.
    #[cold]
    pub(super) fn split_from(opcode: u8, bytes: &[u8]) -> Option<(Self, &[u8])> {
        let mut rest = bytes;
        let condition = match opcode >> CONDITION_SHIFT {
            0 => Condition::Always,
            ABSENT => Condition::Absent,
            PRESENT => Condition::Present,
            VERSION => {
                let (version, behind) = be::U64::ref_from_prefix(rest).ok()?;
                rest = behind;
                Condition::Version(Some(version.get()).filter(|&version| version > 0)?)
            }
            _ => return None,
        };
        let mut ttl_ms = None;
        if opcode & TTL != 0 {
            let (ttl, behind) = be::U32::ref_from_prefix(rest).ok()?;
            rest = behind;
            ttl_ms = Some(NonZeroU32::new(ttl.get())?);
        }
        Some((Self { condition, ttl_ms }, rest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Goal: options and bytes never change silently. Method: literal ones, both ways, and every truncation.
    #[test]
    fn golden_bytes_both_ways_and_every_truncation() {
        let ttl_ms = NonZeroU32::new(0x0a0b_0c0d);
        let version = Condition::Version(0x0102_0304_0506_0708);
        for (terms, options, bytes) in [
            (Terms::NONE, 0x00, &b""[..]),
            (Terms::NONE.for_ms(ttl_ms), 0x10, b"\x0a\x0b\x0c\x0d"),
            (Terms::only_if(Condition::Absent), 0x20, b""),
            (Terms::only_if(Condition::Absent).for_ms(ttl_ms), 0x30, b"\x0a\x0b\x0c\x0d"),
            (Terms::only_if(Condition::Present), 0x40, b""),
            (Terms::only_if(Condition::Present).for_ms(ttl_ms), 0x50, b"\x0a\x0b\x0c\x0d"),
            (Terms::only_if(version), 0x60, b"\x01\x02\x03\x04\x05\x06\x07\x08"),
            (
                Terms::only_if(version).for_ms(ttl_ms),
                0x70,
                b"\x01\x02\x03\x04\x05\x06\x07\x08\x0a\x0b\x0c\x0d",
            ),
        ] {
            assert_eq!((terms.options(), terms.extension_len()), (options, bytes.len()), "{terms:?}");
            let mut out = vec![0xee; bytes.len()];
            terms.write(&mut out);
            assert_eq!(out, bytes, "{terms:?}");
            let followed = [bytes, b"key"].concat();
            assert_eq!(Terms::split_from(options | 2, &followed), Some((terms, &b"key"[..])));
            for len in 0..bytes.len() {
                assert_eq!(Terms::split_from(options, &bytes[..len]), None, "{len} of {terms:?}");
            }
        }
    }

    #[test]
    fn zeros_and_unknown_options_are_refused() {
        assert_eq!(Terms::split_from(0x12, &[0; 4]), None, "a time to live of nothing");
        assert_eq!(Terms::split_from(0x62, &[0; 8]), None, "a version that no value has");
        for options in [0x80, 0x90, 0xa0, 0xc0, 0xe0, 0xf0] {
            assert_eq!(Terms::split_from(options | 2, &[1; 12]), None, "{options:#x}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(opcode: u8, bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            if let Some((terms, rest)) = Terms::split_from(opcode, &bytes) {
                prop_assert_eq!(terms.options(), opcode & OPTIONS);
                prop_assert_eq!(terms.extension_len() + rest.len(), bytes.len());
            }
        }
    }
}
