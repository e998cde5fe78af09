//! Results of a reply.
//!
//! ```text
//! │ status (3 bits) │ len (13 bits) │ value …       2 bytes beside the value
//! ```
//! `len` is the value's length for a found value, the reason for an operation that was not executed, and 0 otherwise.

use zerocopy::{FromBytes, IntoBytes, network_endian as be};

use crate::{
    drops::DropReason,
    wire::{DATAGRAM_LEN_MAX, Flags, ReplyHeader, TRAILER_LEN, TRAILER_LEN_MAX, write_trailer},
};

const STATUS_VALUE: u16 = 0;
const STATUS_NOT_FOUND: u16 = 1;
const STATUS_DONE: u16 = 2;
const STATUS_NOT_EXECUTED: u16 = 3;

const STATUS_SHIFT: u32 = 13;
const LEN_MASK: u16 = (1 << STATUS_SHIFT) - 1;

/// A datagram without trailer that is full.
const FULL_LEN: usize = DATAGRAM_LEN_MAX - TRAILER_LEN_MAX;

/// From this length on a datagram is filled up with zeros.
const NEARLY_FULL_LEN: usize = FULL_LEN / 4 * 3;

/// Why an operation was not executed, and never will be under its sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The shard's memory is full.
    #[error("the shard's memory is full: delete something, or give the server more --memory")]
    NoSpace,
    /// The key belongs to another core or node.
    #[error("the key belongs to another core: client and server do not agree on the placement")]
    WrongCore,
    /// The reply to its request was full; ask again.
    #[error("the reply was full")]
    ReplyFull,
    /// It was not answered before the deadline, and can have had no effect.
    #[error("no answer before the deadline")]
    Deadline,
    /// The session was lost before it was sent.
    #[error("the session was lost before it was sent")]
    SessionLost,
    /// A reason that this version does not know.
    #[error("the server's reason {0}, unknown to this version")]
    Other(u16),
}

impl Reason {
    const fn code(self) -> u16 {
        match self {
            Self::NoSpace => 1,
            Self::WrongCore => 2,
            Self::ReplyFull => 3,
            Self::Deadline => 4,
            Self::SessionLost => 5,
            Self::Other(code) => code & LEN_MASK,
        }
    }

    const fn from_code(code: u16) -> Self {
        match code {
            1 => Self::NoSpace,
            2 => Self::WrongCore,
            3 => Self::ReplyFull,
            4 => Self::Deadline,
            5 => Self::SessionLost,
            other => Self::Other(other),
        }
    }
}

/// What became of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpResult<'a> {
    /// A get found this value.
    Value(&'a [u8]),
    /// A get or delete found no such key.
    NotFound,
    /// A put or delete took effect.
    Done,
    /// It had no effect.
    NotExecuted(Reason),
}

impl<'a> OpResult<'a> {
    /// Reads one result from the start of `bytes` and returns it with the bytes behind it.
    ///
    /// # Errors
    /// `Malformed` when the status is unknown or the bytes end early.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), DropReason> {
        let (word, rest) = be::U16::ref_from_prefix(bytes).map_err(|_| DropReason::Malformed)?;
        let (status, len) = (word.get() >> STATUS_SHIFT, word.get() & LEN_MASK);
        match status {
            STATUS_VALUE => {
                let (value, rest) = rest.split_at_checked(len as usize).ok_or(DropReason::Malformed)?;
                Ok((Self::Value(value), rest))
            }
            STATUS_NOT_FOUND => Ok((Self::NotFound, rest)),
            STATUS_DONE => Ok((Self::Done, rest)),
            STATUS_NOT_EXECUTED => Ok((Self::NotExecuted(Reason::from_code(len)), rest)),
            _ => Err(DropReason::Malformed),
        }
    }

    #[inline]
    const fn word(&self) -> u16 {
        match self {
            Self::Value(value) => STATUS_VALUE << STATUS_SHIFT | value.len() as u16,
            Self::NotFound => STATUS_NOT_FOUND << STATUS_SHIFT,
            Self::Done => STATUS_DONE << STATUS_SHIFT,
            Self::NotExecuted(reason) => STATUS_NOT_EXECUTED << STATUS_SHIFT | reason.code(),
        }
    }
}

/// The results of a reply, one by one; ends after the first error.
#[derive(Clone, Copy, Debug)]
pub struct Results<'a> {
    rest: &'a [u8],
    left: u8,
}

impl<'a> Results<'a> {
    /// Reads `count` results from `body`; bytes behind them are padding.
    #[must_use]
    pub const fn new(body: &'a [u8], count: u8) -> Self {
        Self { rest: body, left: count }
    }
}

impl<'a> Iterator for Results<'a> {
    type Item = Result<OpResult<'a>, DropReason>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        match OpResult::parse(self.rest) {
            Ok((result, rest)) => {
                self.rest = rest;
                Some(Ok(result))
            }
            Err(reason) => {
                self.left = 0;
                Some(Err(reason))
            }
        }
    }
}

/// Writes one reply datagram into a slice: header, results, padding, trailer.
#[derive(Debug)]
pub struct ReplyBuilder<'a> {
    bytes: &'a mut [u8; DATAGRAM_LEN_MAX],
    used: usize,
    count: u8,
}

impl<'a> ReplyBuilder<'a> {
    /// Starts a reply in `bytes`.
    ///
    /// # Panics
    /// When `bytes` is shorter than [`DATAGRAM_LEN_MAX`].
    #[inline]
    #[must_use]
    pub fn new(bytes: &'a mut [u8]) -> Self {
        let bytes = bytes.first_chunk_mut().expect("room for a whole datagram");
        Self { bytes, used: size_of::<ReplyHeader>(), count: 0 }
    }

    /// Adds a result; `false`, and nothing changes, when there is no room for it.
    #[inline]
    #[must_use]
    pub fn push(&mut self, result: OpResult<'_>) -> bool {
        let value = if let OpResult::Value(value) = result { value } else { &[] };
        let end = self.used + 2 + value.len();
        if end > FULL_LEN || self.count == u8::MAX {
            return false;
        }
        let (word, rest) = self.bytes[self.used..end].split_at_mut(2);
        word.copy_from_slice(&result.word().to_be_bytes());
        rest.copy_from_slice(value);
        self.used = end;
        self.count += 1;
        true
    }

    /// Longest value that there is room for.
    #[inline]
    #[must_use]
    pub const fn room(&self) -> usize {
        (FULL_LEN - 2).saturating_sub(self.used)
    }

    /// Whether there is room for `result` and, behind it, for `more` results without a value.
    #[must_use]
    pub fn fits(&self, result: &OpResult<'_>, more: usize) -> bool {
        let value_len = if let OpResult::Value(value) = result { value.len() } else { 0 };
        self.used + 2 + value_len + 2 * more <= FULL_LEN
    }

    /// Adds `count` results that were written before; `false`, and nothing changes, when there is no room for them.
    #[must_use]
    pub fn push_written(&mut self, results: &[u8], count: u8) -> bool {
        let end = self.used + results.len();
        if end > FULL_LEN || self.count.checked_add(count).is_none() {
            return false;
        }
        self.bytes[self.used..end].copy_from_slice(results);
        self.used = end;
        self.count += count;
        true
    }

    /// Results added so far.
    #[inline]
    #[must_use]
    pub const fn count(&self) -> u8 {
        self.count
    }

    /// The bytes of the results added so far.
    #[must_use]
    pub fn results(&self) -> &[u8] {
        &self.bytes[size_of::<ReplyHeader>()..self.used]
    }

    /// Completes the datagram: pads it with zeros to `len_min` bytes (as far as a datagram may reach), or to its full
    /// length if it is more than three quarters full, so that datagrams of values of all lengths make one train; writes the
    /// header with the true count, and the trailer if the header's flags want one. Returns the datagram's length.
    #[inline]
    pub fn finish(self, header: ReplyHeader, len_min: usize) -> usize {
        let checksum = header.common.flags.contains(Flags::CHECKSUM);
        let trailer_len = if checksum { TRAILER_LEN } else { 0 };
        let len_min = if self.used >= NEARLY_FULL_LEN { FULL_LEN + trailer_len } else { len_min };
        let len = (self.used + trailer_len).max(len_min.min(DATAGRAM_LEN_MAX));
        self.bytes[self.used..len].fill(0);
        let header = ReplyHeader { count: self.count, ..header };
        self.bytes[..size_of::<ReplyHeader>()].copy_from_slice(header.as_bytes());
        if checksum {
            write_trailer(&mut self.bytes[..len]);
        }
        len
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{BODY_LEN_MAX, Kind, open, tests::common};

    const GOLDEN: [(OpResult<'static>, &[u8]); 6] = [
        (OpResult::Value(b"abc"), b"\x00\x03abc"),
        (OpResult::Value(b""), b"\x00\x00"),
        (OpResult::NotFound, b"\x20\x00"),
        (OpResult::Done, b"\x40\x00"),
        (OpResult::NotExecuted(Reason::NoSpace), b"\x60\x01"),
        (OpResult::NotExecuted(Reason::Other(8_191)), b"\x7f\xff"),
    ];

    fn header(flags: Flags) -> ReplyHeader {
        ReplyHeader {
            common: common(Kind::REPLY, flags),
            seq: 9.into(),
            first: 4,
            count: 0,
            credit: 1,
            queue_delay: 0,
        }
    }

    #[test]
    fn golden_bytes_both_ways_and_every_truncation() {
        for (result, bytes) in GOLDEN {
            let mut out = [0xee; DATAGRAM_LEN_MAX];
            let mut builder = ReplyBuilder::new(&mut out);
            assert!(builder.push(result));
            assert_eq!(builder.results(), bytes);
            assert_eq!(OpResult::parse(bytes), Ok((result, &[][..])));
            for len in 0..bytes.len() {
                assert_eq!(OpResult::parse(&bytes[..len]), Err(DropReason::Malformed), "{len} of {bytes:?}");
            }
        }
    }

    #[test]
    fn reasons_survive_the_wire() {
        for code in 0..=LEN_MASK {
            assert_eq!(Reason::from_code(code).code(), code);
        }
    }

    #[test]
    fn unknown_statuses_are_malformed() {
        for status in 4..8u16 {
            assert_eq!(OpResult::parse(&(status << STATUS_SHIFT).to_be_bytes()), Err(DropReason::Malformed));
        }
    }

    #[test]
    fn eleven_values_of_128_bytes_fill_a_datagram() {
        let mut out = [0; DATAGRAM_LEN_MAX];
        let mut builder = ReplyBuilder::new(&mut out);
        for _ in 0..11 {
            assert!(builder.push(OpResult::Value(&[7; 128])));
        }
        assert!(!builder.push(OpResult::Value(&[7; 128])));
        assert!(builder.push(OpResult::NotFound), "a short one still fits");
        assert_eq!(builder.finish(header(Flags::NONE), 0), 24 + 11 * 130 + 2);
        for (value_len, full) in [(1_060, false), (1_066, true)] {
            let mut builder = ReplyBuilder::new(&mut out);
            assert!(builder.push(OpResult::Value(&vec![7; value_len])));
            let len = if full { 24 + BODY_LEN_MAX } else { 24 + 2 + value_len };
            assert_eq!(builder.finish(header(Flags::NONE), 0), len, "{value_len}");
        }
    }

    #[test]
    fn padding_is_zero_and_the_trailer_comes_last() {
        let mut out = [0xee; DATAGRAM_LEN_MAX];
        let mut builder = ReplyBuilder::new(&mut out);
        assert!(builder.push_written(b"\x40\x00\x20\x00", 2));
        let len = builder.finish(header(Flags::CHECKSUM), 100);
        assert_eq!(len, 100);
        let (_, body) = open(&out[..len]).unwrap();
        assert_eq!(body.len(), 100 - 16 - 4);
        let results: Vec<_> = Results::new(&body[8..], 2).collect();
        assert_eq!(results, [Ok(OpResult::Done), Ok(OpResult::NotFound)]);
        assert!(body[12..].iter().all(|&byte| byte == 0));
        assert_eq!(body[5], 2, "the count is the builder's");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), count: u8) {
            let outcomes: Vec<_> = Results::new(&bytes, count).collect();
            prop_assert!(outcomes.len() <= count as usize);
            prop_assert!(outcomes.iter().rev().skip(1).all(Result::is_ok), "nothing follows an error");
        }
    }
}
