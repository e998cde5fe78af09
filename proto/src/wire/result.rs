//! Results of a reply.
//!
//! ```text
//! │ status (3 bits) │ len (13 bits) │ version (8), if asked for │ time to live (4), if asked for │ value …
//! ```
//! `len` is the value's length for a value, the reason for an operation that was not executed, 12 for the
//! description of a value that is too long for a datagram, and 0 otherwise.

use std::num::NonZeroU32;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be};

use crate::{
    drops::DropReason,
    wire::{
        DATAGRAM_LEN_MAX, DATAGRAM_LEN_MIN, Flags, ReplyHeader, TRAILER_LEN, TRAILER_LEN_MAX, write_trailer,
    },
};

const STATUS_VALUE: u16 = 0;
const STATUS_NOT_FOUND: u16 = 1;
const STATUS_DONE: u16 = 2;
const STATUS_NOT_EXECUTED: u16 = 3;
const STATUS_LONG: u16 = 4;

const STATUS_SHIFT: u32 = 13;
const LEN_MASK: u16 = (1 << STATUS_SHIFT) - 1;

/// Reasons from here on mean that the key has moved, and carry the low bits of an epoch.
const CODE_MOVED: u16 = 1 << 12;
const EPOCH_MASK: u16 = CODE_MOVED - 1;

/// Bytes of a result's word, of its version and of its time to live.
const WORD_LEN: usize = size_of::<be::U16>();
const VERSION_LEN: usize = size_of::<be::U64>();
const TTL_LEN: usize = size_of::<be::U32>();

const LEN_WITH_VERSION: usize = WORD_LEN + VERSION_LEN;

/// Why an operation was not executed, and never will be under its sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The shard's memory is full.
    #[error("the shard's memory is full: delete something, or give the server more --memory")]
    NoSpace,
    /// The key belongs to another core of the node.
    #[error("the key belongs to another core: client and server do not agree on the placement")]
    WrongCore,
    /// The key belongs to another node, or the client goes by a cluster map of another epoch.
    #[error("the key belongs to another node: the server's cluster map has epoch {epoch} (modulo 4096)")]
    Moved {
        /// Epoch of the server's cluster map, its low 12 bits.
        epoch: u16,
    },
    /// The reply to its request was full; ask again.
    #[error("the reply was full")]
    ReplyFull,
    /// It was not answered before the deadline, and can have had no effect.
    #[error("no answer before the deadline")]
    Deadline,
    /// The session was lost before it was sent.
    #[error("the session was lost before it was sent")]
    SessionLost,
    /// The pieces of the long value are not, or no longer, all at the server.
    #[error("the server did not have all pieces of the value (any more)")]
    NotStaged,
    /// The server receives as many long values as it has room for.
    #[error("the server has no room to receive another long value now")]
    StagingFull,
    /// The value has another version than the operation names.
    #[error("the value has changed: it has another version")]
    Changed,
    /// A put that was to store only an absent key's value found one.
    #[error("the key has a value already")]
    Exists,
    /// What was to be added to is no number: a value of other than eight bytes.
    #[error("the value is no number: adding needs one of exactly 8 bytes")]
    NotANumber,
    /// A reason that this version does not know.
    #[error("the server's reason {0}, unknown to this version")]
    Other(u16),
}

impl Reason {
    /// The number on the wire, 13 bits.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::NoSpace => 1,
            Self::WrongCore => 2,
            Self::ReplyFull => 3,
            Self::Deadline => 4,
            Self::SessionLost => 5,
            Self::NotStaged => 6,
            Self::StagingFull => 7,
            Self::Changed => 8,
            Self::Exists => 9,
            Self::NotANumber => 10,
            Self::Moved { epoch } => CODE_MOVED | epoch & EPOCH_MASK,
            Self::Other(code) => code & LEN_MASK,
        }
    }

    /// The reason of a number on the wire.
    #[must_use]
    pub const fn from_code(code: u16) -> Self {
        match code {
            1 => Self::NoSpace,
            2 => Self::WrongCore,
            3 => Self::ReplyFull,
            4 => Self::Deadline,
            5 => Self::SessionLost,
            6 => Self::NotStaged,
            7 => Self::StagingFull,
            8 => Self::Changed,
            9 => Self::Exists,
            10 => Self::NotANumber,
            CODE_MOVED..=LEN_MASK => Self::Moved { epoch: code & EPOCH_MASK },
            other => Self::Other(other),
        }
    }
}

/// What became of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpResult<'a> {
    /// A get found this value. An add found this number, in eight bytes, and has added to it.
    Value(&'a [u8]),
    /// A get or delete, or a put that was to replace something, found no such key.
    NotFound,
    /// A put or delete took effect.
    Done,
    /// It had no effect.
    NotExecuted(Reason),
    /// A get found a value that does not fit a datagram; its bytes are to be asked for by version and range.
    Long(&'a LongValue),
}

/// What a get learns of a value that does not fit a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LongValue {
    /// Version that the value has; ranges of another version are refused.
    pub version: be::U64,
    /// Length of the value in bytes.
    pub len: be::U32,
}

const _: () = assert!(size_of::<LongValue>() == 12);

/// What a result tells beside what became of the operation, if it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Version of the key; 0 when not asked for.
    pub version: u64,
    /// Milliseconds that a value which was read has left to live, up to 9 less than is true. `None`: for ever, or not
    /// asked for.
    pub ttl_ms: Option<NonZeroU32>,
}

/// Bytes of a result beside its value, in a reply of these flags.
pub(crate) const fn result_len(flags: Flags) -> usize {
    let version_len = if flags.contains(Flags::VERSIONS) { VERSION_LEN } else { 0 };
    WORD_LEN + version_len + if flags.contains(Flags::LIFETIMES) { TTL_LEN } else { 0 }
}

impl<'a> OpResult<'a> {
    /// Reads one result, with its version if the reply is of [`Flags::VERSIONS`], from the start of `bytes`; returns it
    /// with the version, 0 if there is none, and the bytes behind it.
    ///
    /// # Errors
    /// `Malformed` when the status is unknown or the bytes end early.
    #[inline(always)]
    pub fn parse(bytes: &'a [u8], versions: bool) -> Result<(Self, u64, &'a [u8]), DropReason> {
        let (result, meta, rest) = Self::parse_as::<false>(bytes, versions)?;
        Ok((result, meta.version, rest))
    }

    /// The same in a reply that may be of [`Flags::LIFETIMES`] as well.
    #[inline(always)]
    fn parse_as<const LIFETIMES: bool>(
        bytes: &'a [u8],
        versions: bool,
    ) -> Result<(Self, Meta, &'a [u8]), DropReason> {
        const MALFORMED: DropReason = DropReason::Malformed;
        let (word, mut rest) = be::U16::ref_from_prefix(bytes).map_err(|_| MALFORMED)?;
        let mut meta = Meta::default();
        if versions {
            let (number, behind) = be::U64::ref_from_prefix(rest).map_err(|_| MALFORMED)?;
            (meta.version, rest) = (number.get(), behind);
        }
        if LIFETIMES {
            let (ttl_ms, behind) = be::U32::ref_from_prefix(rest).map_err(|_| MALFORMED)?;
            (meta.ttl_ms, rest) = (NonZeroU32::new(ttl_ms.get()), behind);
        }
        let (status, len) = (word.get() >> STATUS_SHIFT, word.get() & LEN_MASK);
        match status {
            STATUS_VALUE => {
                let (value, rest) = rest.split_at_checked(len as usize).ok_or(MALFORMED)?;
                Ok((Self::Value(value), meta, rest))
            }
            STATUS_NOT_FOUND => Ok((Self::NotFound, meta, rest)),
            STATUS_DONE => Ok((Self::Done, meta, rest)),
            STATUS_NOT_EXECUTED => Ok((Self::NotExecuted(Reason::from_code(len)), meta, rest)),
            STATUS_LONG if usize::from(len) == size_of::<LongValue>() => {
                let (long, rest) = LongValue::ref_from_prefix(rest).map_err(|_| MALFORMED)?;
                Ok((Self::Long(long), meta, rest))
            }
            _ => Err(MALFORMED),
        }
    }

    #[inline]
    const fn word(&self) -> u16 {
        match self {
            Self::Value(value) => STATUS_VALUE << STATUS_SHIFT | value.len() as u16,
            Self::NotFound => STATUS_NOT_FOUND << STATUS_SHIFT,
            Self::Done => STATUS_DONE << STATUS_SHIFT,
            Self::NotExecuted(reason) => STATUS_NOT_EXECUTED << STATUS_SHIFT | reason.code(),
            Self::Long(_) => STATUS_LONG << STATUS_SHIFT | size_of::<LongValue>() as u16,
        }
    }

    /// What follows word and version.
    #[inline]
    fn payload(&self) -> &'a [u8] {
        match self {
            Self::Value(value) => value,
            Self::Long(long) => long.as_bytes(),
            Self::NotFound | Self::Done | Self::NotExecuted(_) => &[],
        }
    }
}

/// The results of a reply, one by one; ends after the first error.
#[derive(Clone, Copy, Debug)]
pub struct Results<'a> {
    rest: &'a [u8],
    left: u8,
    flags: Flags,
}

impl<'a> Results<'a> {
    /// Reads `count` results from `body` of a reply of these flags; bytes behind them are padding.
    #[must_use]
    pub const fn new(body: &'a [u8], count: u8, flags: Flags) -> Self {
        Self { rest: body, left: count, flags }
    }
}

impl<'a> Iterator for Results<'a> {
    type Item = Result<(OpResult<'a>, Meta), DropReason>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let versions = self.flags.contains(Flags::VERSIONS);
        let parsed = if self.flags.contains(Flags::LIFETIMES) {
            OpResult::parse_as::<true>(self.rest, versions)
        } else {
            OpResult::parse_as::<false>(self.rest, versions)
        };
        match parsed {
            Ok((result, meta, rest)) => {
                self.rest = rest;
                Some(Ok((result, meta)))
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
    /// Bytes of a result before its value.
    head_len: u8,
    /// Length of a full datagram without trailer.
    full_len: usize,
}

impl<'a> ReplyBuilder<'a> {
    /// Starts a reply of at most `datagram_len` bytes in `bytes`, whose results have what `flags` say.
    ///
    /// # Panics
    /// When `bytes` is shorter than [`DATAGRAM_LEN_MAX`], or `datagram_len` longer or too short for a header.
    #[inline]
    #[must_use]
    pub fn new(bytes: &'a mut [u8], datagram_len: usize, flags: Flags) -> Self {
        let bytes = bytes.first_chunk_mut().expect("room for a whole datagram");
        assert!((DATAGRAM_LEN_MIN..=DATAGRAM_LEN_MAX).contains(&datagram_len), "{datagram_len} bytes");
        let full_len = datagram_len - TRAILER_LEN_MAX;
        let head_len = result_len(flags) as u8;
        Self { bytes, used: size_of::<ReplyHeader>(), count: 0, head_len, full_len }
    }

    /// Adds a result; `false`, and nothing changes, when there is no room for it.
    #[must_use]
    pub fn push(&mut self, result: OpResult<'_>, meta: Meta) -> bool {
        match self.head_len() {
            WORD_LEN => self.push_as::<false>(result, meta.version),
            LEN_WITH_VERSION => self.push_as::<true>(result, meta.version),
            head_len => self.push_mortal(result, meta, head_len),
        }
    }

    /// [`push`](Self::push) for a caller who knows whether the results have versions, and so need not look each time. They
    /// have no times to live.
    ///
    /// # Panics
    /// In debug builds, when they have not or have, against `VERSIONS`.
    #[inline(always)]
    #[must_use]
    pub fn push_as<const VERSIONS: bool>(&mut self, result: OpResult<'_>, version: u64) -> bool {
        let head_len = if VERSIONS { LEN_WITH_VERSION } else { WORD_LEN };
        debug_assert_eq!(head_len, self.head_len());
        let value = result.payload();
        let end = self.used + head_len + value.len();
        if end > self.full_len || self.count == u8::MAX {
            return false;
        }
        let (head, rest) = self.bytes[self.used..end].split_at_mut(head_len);
        head[..WORD_LEN].copy_from_slice(&result.word().to_be_bytes());
        if VERSIONS {
            head[WORD_LEN..].copy_from_slice(&version.to_be_bytes());
        }
        rest.copy_from_slice(value);
        self.used = end;
        self.count += 1;
        true
    }

    /// The same for results that have times to live.
    #[cold]
    fn push_mortal(&mut self, result: OpResult<'_>, meta: Meta, head_len: usize) -> bool {
        let value = result.payload();
        let end = self.used + head_len + value.len();
        if end > self.full_len || self.count == u8::MAX {
            return false;
        }
        let (head, rest) = self.bytes[self.used..end].split_at_mut(head_len);
        let (word, head) = head.split_at_mut(WORD_LEN);
        let (version, ttl_ms) = head.split_at_mut(head.len() - TTL_LEN);
        word.copy_from_slice(&result.word().to_be_bytes());
        version.copy_from_slice(&meta.version.to_be_bytes()[..version.len()]);
        ttl_ms.copy_from_slice(&meta.ttl_ms.map_or(0, NonZeroU32::get).to_be_bytes());
        rest.copy_from_slice(value);
        self.used = end;
        self.count += 1;
        true
    }

    /// Bytes that there is room for.
    #[inline]
    #[must_use]
    pub const fn room(&self) -> usize {
        self.full_len - self.used
    }

    /// Bytes of a result before its value.
    #[inline]
    const fn head_len(&self) -> usize {
        self.head_len as usize
    }

    /// Longest value that an empty datagram has room for.
    #[inline]
    #[must_use]
    pub const fn value_len_max(&self) -> usize {
        self.full_len - size_of::<ReplyHeader>() - self.head_len()
    }

    /// Whether there is room for the description of a long value and, behind it, for `more` results without a value.
    #[must_use]
    pub const fn fits_long(&self, more: usize) -> bool {
        self.used + size_of::<LongValue>() + self.head_len() * (1 + more) <= self.full_len
    }

    /// Whether there is room for `result` and, behind it, for `more` results without a value.
    #[must_use]
    pub fn fits(&self, result: &OpResult<'_>, more: usize) -> bool {
        self.used + result.payload().len() + self.head_len() * (1 + more) <= self.full_len
    }

    /// Results added so far.
    #[inline]
    #[must_use]
    pub const fn count(&self) -> u8 {
        self.count
    }

    /// Completes the datagram: pads it with zeros to `len_min` bytes (as far as a datagram may reach), or to its full
    /// length if it is more than three quarters full, so that datagrams of values of all lengths make one train; writes the
    /// header with the true count, and the trailer if the header's flags want one. Returns the datagram's length.
    #[inline]
    pub fn finish(self, header: ReplyHeader, len_min: usize) -> usize {
        let checksum = header.common.flags.contains(Flags::CHECKSUM);
        let trailer_len = if checksum { TRAILER_LEN } else { 0 };
        let nearly_full = self.used >= self.full_len / 4 * 3;
        let len_min = if nearly_full { self.full_len + trailer_len } else { len_min };
        let len = (self.used + trailer_len).max(len_min.min(self.full_len + trailer_len));
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

    const LONG: LongValue =
        LongValue { version: be::U64::from_bytes(*b"abcdefgh"), len: be::U32::from_bytes([0, 16, 0, 0]) };

    /// Results as word and what follows the version, if there is one.
    const GOLDEN: [(OpResult<'static>, &[u8; 2], &[u8]); 9] = [
        (OpResult::Value(b"abc"), b"\x00\x03", b"abc"),
        (OpResult::Value(b""), b"\x00\x00", b""),
        (OpResult::NotFound, b"\x20\x00", b""),
        (OpResult::Done, b"\x40\x00", b""),
        (OpResult::NotExecuted(Reason::NoSpace), b"\x60\x01", b""),
        (OpResult::NotExecuted(Reason::Other(4_095)), b"\x6f\xff", b""),
        (OpResult::NotExecuted(Reason::Moved { epoch: 5 }), b"\x70\x05", b""),
        (OpResult::NotExecuted(Reason::Moved { epoch: 4_095 }), b"\x7f\xff", b""),
        (OpResult::Long(&LONG), b"\x80\x0c", b"abcdefgh\x00\x10\x00\x00"),
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

    /// All combinations of what a result may have beside its value.
    const EXTRAS: [Flags; 4] =
        [Flags::NONE, Flags::VERSIONS, Flags::LIFETIMES, Flags::VERSIONS.with(Flags::LIFETIMES)];

    const META: Meta = Meta { version: 0x0102_0304_0506_0708, ttl_ms: NonZeroU32::new(0x0a0b_0c0d) };

    #[test]
    fn golden_bytes_both_ways_and_every_truncation() {
        for ((result, word, payload), flags) in
            GOLDEN.into_iter().flat_map(|it| EXTRAS.map(|flags| (it, flags)))
        {
            let (versions, lifetimes) = (flags.contains(Flags::VERSIONS), flags.contains(Flags::LIFETIMES));
            let version: &[u8] = if versions { b"\x01\x02\x03\x04\x05\x06\x07\x08" } else { b"" };
            let ttl_ms: &[u8] = if lifetimes { b"\x0a\x0b\x0c\x0d" } else { b"" };
            let bytes = [word, version, ttl_ms, payload].concat();
            let mut out = [0xee; DATAGRAM_LEN_MAX];
            let mut builder = ReplyBuilder::new(&mut out, DATAGRAM_LEN_MAX, flags);
            assert!(builder.push(result, META));
            let len = builder.finish(header(Flags::NONE), 0);
            assert_eq!(out[size_of::<ReplyHeader>()..len], bytes);
            let meta = Meta {
                version: if versions { META.version } else { 0 },
                ttl_ms: META.ttl_ms.filter(|_| lifetimes),
            };
            assert_eq!(Results::new(&bytes, 1, flags).next(), Some(Ok((result, meta))));
            if !lifetimes {
                assert_eq!(OpResult::parse(&bytes, versions), Ok((result, meta.version, &[][..])));
            }
            for len in 0..bytes.len() {
                let parsed = Results::new(&bytes[..len], 1, flags).next();
                assert_eq!(parsed, Some(Err(DropReason::Malformed)), "{len} of {bytes:?}");
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
            let word = (status << STATUS_SHIFT).to_be_bytes();
            assert_eq!(OpResult::parse(&[&word[..], &[0; 20]].concat(), false), Err(DropReason::Malformed));
        }
    }

    #[test]
    fn eleven_values_of_128_bytes_fill_a_datagram() {
        let mut out = [0; DATAGRAM_LEN_MAX];
        let mut builder = ReplyBuilder::new(&mut out, DATAGRAM_LEN_MAX, Flags::NONE);
        for _ in 0..11 {
            assert!(builder.push(OpResult::Value(&[7; 128]), Meta::default()));
        }
        assert!(!builder.push(OpResult::Value(&[7; 128]), Meta::default()));
        assert!(builder.push(OpResult::NotFound, Meta::default()), "a short one still fits");
        assert_eq!(builder.finish(header(Flags::NONE), 0), 24 + 11 * 130 + 2);
        for (value_len, full) in [(1_060, false), (1_066, true)] {
            let mut builder = ReplyBuilder::new(&mut out, DATAGRAM_LEN_MAX, Flags::NONE);
            assert!(builder.push(OpResult::Value(&vec![7; value_len]), Meta::default()));
            let len = if full { 24 + BODY_LEN_MAX } else { 24 + 2 + value_len };
            assert_eq!(builder.finish(header(Flags::NONE), 0), len, "{value_len}");
        }
    }

    /// Goal: a session on a narrow path gets no datagram that does not pass. Method: values until one does not fit, with
    /// and without versions.
    #[test]
    fn a_reply_keeps_to_its_datagram_len() {
        for (flags, value_count) in EXTRAS.into_iter().zip([9, 8, 8, 8]) {
            let mut out = [0; DATAGRAM_LEN_MAX];
            let mut builder = ReplyBuilder::new(&mut out, 1_232, flags);
            let pushed = (0..20).take_while(|_| builder.push(OpResult::Value(&[7; 128]), META)).count();
            assert_eq!(pushed, value_count);
            assert!(builder.finish(header(Flags::CHECKSUM), 1_472) <= 1_232);
        }
    }

    #[test]
    fn padding_is_zero_and_the_trailer_comes_last() {
        let mut out = [0xee; DATAGRAM_LEN_MAX];
        let mut builder = ReplyBuilder::new(&mut out, DATAGRAM_LEN_MAX, Flags::NONE);
        assert!(builder.push(OpResult::Done, META));
        assert!(builder.push(OpResult::NotFound, META));
        let len = builder.finish(header(Flags::CHECKSUM), 100);
        assert_eq!(len, 100);
        let (_, body) = open(&out[..len]).unwrap();
        assert_eq!(body.len(), 100 - 16 - 4);
        let results: Vec<_> = Results::new(&body[8..], 2, Flags::NONE).collect();
        assert_eq!(
            results,
            [Ok((OpResult::Done, Meta::default())), Ok((OpResult::NotFound, Meta::default()))]
        );
        assert!(body[12..].iter().all(|&byte| byte == 0));
        assert_eq!(body[5], 2, "the count is the builder's");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), count: u8, flags: u8) {
            let outcomes: Vec<_> = Results::new(&bytes, count, Flags(flags)).collect();
            prop_assert!(outcomes.len() <= count as usize);
            prop_assert!(outcomes.iter().rev().skip(1).all(Result::is_ok), "nothing follows an error");
        }
    }
}
