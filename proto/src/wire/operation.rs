//! Operations of a request.
//!
//! ```text
//! get, delete │ opcode │ key_len │ key …                          2 bytes beside the key
//! put         │ opcode │ key_len │ value_len (2) │ key … │ value …   4 bytes beside key and value
//! commit      │ opcode │ key_len │ 0 (2) │ number (4) │ key …         8 bytes beside the key
//! ```

use std::num::NonZeroU32;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be};

use crate::{
    drops::DropReason,
    key::{HEAD_LEN, Key},
    wire::BODY_LEN_MAX,
};

/// Longest key in bytes; the shortest has 1.
pub const KEY_LEN_MAX: usize = 255;

/// What an operation does: the low four bits of its first byte. The high four are for options and 0 as yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
struct Opcode(u8);

impl Opcode {
    const GET: Self = Self(1);
    const PUT: Self = Self(2);
    const DELETE: Self = Self(3);
    const COMMIT: Self = Self(7);
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct OperationHeader {
    opcode: Opcode,
    key_len: u8,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct PutHeader {
    operation: OperationHeader,
    value_len: be::U16,
}

const _: () = assert!(size_of::<OperationHeader>() == 2);
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct CommitHeader {
    operation: OperationHeader,
    spare: be::U16,
    number: be::U32,
}

const _: () = assert!(size_of::<PutHeader>() == 4);
const _: () = assert!(size_of::<CommitHeader>() == 8);

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
    /// The key has a value, and it is the one that the write of this version stored.
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

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Reads a value.
    Get,
    /// Stores a value.
    Put,
    /// Removes a key.
    Delete,
    /// Stores the long value whose pieces were sent under this number.
    Commit(u32),
}

/// One operation, borrowing key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation<'a> {
    /// What it does.
    pub kind: OperationKind,
    /// 1..=255 bytes.
    pub key: Key<'a>,
    /// What a put stores; empty for the others.
    pub value: &'a [u8],
}

impl<'a> Operation<'a> {
    /// Reads `key`.
    #[must_use]
    pub fn get(key: impl Into<Key<'a>>) -> Self {
        Self { kind: OperationKind::Get, key: key.into(), value: &[] }
    }

    /// Stores `value` at `key`.
    #[must_use]
    pub fn put(key: impl Into<Key<'a>>, value: &'a [u8]) -> Self {
        Self { kind: OperationKind::Put, key: key.into(), value }
    }

    /// Removes `key`.
    #[must_use]
    pub fn delete(key: impl Into<Key<'a>>) -> Self {
        Self { kind: OperationKind::Delete, key: key.into(), value: &[] }
    }

    /// Stores at `key` the long value that was sent in pieces under `number`.
    #[must_use]
    pub fn commit(key: impl Into<Key<'a>>, number: u32) -> Self {
        Self { kind: OperationKind::Commit(number), key: key.into(), value: &[] }
    }

    /// Whether it changes nothing.
    #[inline]
    #[must_use]
    pub const fn is_read(&self) -> bool {
        matches!(self.kind, OperationKind::Get)
    }

    /// Longest value that a put of a key of `key_len` bytes carries itself, in a full datagram: 1,173 to 1,427 bytes. Longer
    /// ones are sent in pieces.
    #[must_use]
    pub const fn inline_value_len_max(key_len: usize) -> usize {
        BODY_LEN_MAX - size_of::<PutHeader>() - key_len
    }

    /// Bytes on the wire.
    #[inline]
    #[must_use]
    pub const fn wire_len(&self) -> usize {
        match self.kind {
            OperationKind::Put => size_of::<PutHeader>() + self.key.len() + self.value.len(),
            OperationKind::Get | OperationKind::Delete => size_of::<OperationHeader>() + self.key.len(),
            OperationKind::Commit(_) => size_of::<CommitHeader>() + self.key.len(),
        }
    }

    /// Writes the operation to the start of `out` and returns its length, or `None` when there is not enough room: its
    /// length and 16 bytes more, which may be overwritten with anything.
    ///
    /// # Panics
    /// When the key has no or more than 255 bytes, or the value more than 65,535: the caller has checked both.
    #[inline(always)]
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        assert!((1..=KEY_LEN_MAX).contains(&self.key.len()), "key of {} bytes", self.key.len());
        let key_len = self.key.len() as u8;
        let len = self.wire_len();
        let out = out.get_mut(..len + HEAD_LEN)?;
        match self.kind {
            OperationKind::Get | OperationKind::Delete => {
                let opcode = if self.is_read() { Opcode::GET } else { Opcode::DELETE };
                let (header, key) = out.split_at_mut(size_of::<OperationHeader>());
                header.copy_from_slice(OperationHeader { opcode, key_len }.as_bytes());
                self.key.copy_to(key);
            }
            OperationKind::Put => {
                let operation = OperationHeader { opcode: Opcode::PUT, key_len };
                let value_len =
                    u16::try_from(self.value.len()).expect("value length checked by the caller").into();
                let (header, rest) = out.split_at_mut(size_of::<PutHeader>());
                header.copy_from_slice(PutHeader { operation, value_len }.as_bytes());
                self.key.copy_to(rest);
                rest[self.key.len()..][..self.value.len()].copy_from_slice(self.value);
            }
            OperationKind::Commit(number) => {
                let operation = OperationHeader { opcode: Opcode::COMMIT, key_len };
                let commit = CommitHeader { operation, spare: 0.into(), number: number.into() };
                let (header, key) = out.split_at_mut(size_of::<CommitHeader>());
                header.copy_from_slice(commit.as_bytes());
                self.key.copy_to(key);
            }
        }
        Some(len)
    }

    /// Reads one operation from the start of `bytes` and returns it with the bytes behind it.
    ///
    /// # Errors
    /// `Malformed` when the opcode is unknown, the key empty, key and value too long together, or the bytes end early.
    #[inline(always)]
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), DropReason> {
        const MALFORMED: DropReason = DropReason::Malformed;
        let (header, rest) = OperationHeader::ref_from_prefix(bytes).map_err(|_| MALFORMED)?;
        let key_len = header.key_len as usize;
        if key_len == 0 {
            return Err(MALFORMED);
        }
        match header.opcode {
            Opcode::GET => {
                let (key, rest) = Key::split_from(rest, key_len).ok_or(MALFORMED)?;
                Ok((Self::get(key), rest))
            }
            Opcode::PUT => {
                let (header, rest) = PutHeader::ref_from_prefix(bytes).map_err(|_| MALFORMED)?;
                let (key, rest) = Key::split_from(rest, key_len).ok_or(MALFORMED)?;
                let (value, rest) =
                    rest.split_at_checked(header.value_len.get() as usize).ok_or(MALFORMED)?;
                let operation = Self::put(key, value);
                // Longer ones come in pieces; a request that holds one is none of this protocol.
                if operation.wire_len() <= BODY_LEN_MAX { Ok((operation, rest)) } else { Err(MALFORMED) }
            }
            Opcode::DELETE => {
                let (key, rest) = Key::split_from(rest, key_len).ok_or(MALFORMED)?;
                Ok((Self::delete(key), rest))
            }
            Opcode::COMMIT => {
                let (header, rest) = CommitHeader::ref_from_prefix(bytes).map_err(|_| MALFORMED)?;
                let (key, rest) = Key::split_from(rest, key_len).ok_or(MALFORMED)?;
                Ok((Self::commit(key, header.number.get()), rest))
            }
            _ => Err(MALFORMED),
        }
    }
}

/// The operations of a request, one by one; ends after the first error.
#[derive(Clone, Copy, Debug)]
pub struct Operations<'a> {
    rest: &'a [u8],
    left: u8,
    read_only: bool,
}

impl<'a> Operations<'a> {
    /// Reads `count` operations from `body`; bytes behind them are padding.
    #[must_use]
    pub const fn new(body: &'a [u8], count: u8, read_only: bool) -> Self {
        Self { rest: body, left: count, read_only }
    }
}

impl<'a> Iterator for Operations<'a> {
    type Item = Result<Operation<'a>, DropReason>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        match Operation::parse(self.rest) {
            Ok((operation, rest)) if operation.is_read() == self.read_only => {
                self.rest = rest;
                Some(Ok(operation))
            }
            _ => {
                self.left = 0;
                Some(Err(DropReason::Malformed))
            }
        }
    }
}

/// The keys of a request that holds nothing but gets, one by one; ends after the first error.
///
/// What [`Operations`] would say of it, without the cases that can not occur there: this is the way of nearly every
/// operation, and half of the other's cost.
#[derive(Clone, Copy, Debug)]
pub struct Gets<'a> {
    rest: &'a [u8],
    left: u8,
}

impl<'a> Gets<'a> {
    /// Reads `count` gets from `body`; bytes behind them are padding.
    #[must_use]
    pub const fn new(body: &'a [u8], count: u8) -> Self {
        Self { rest: body, left: count }
    }
}

impl<'a> Iterator for Gets<'a> {
    type Item = Result<Key<'a>, DropReason>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        if let Ok((header, rest)) = OperationHeader::ref_from_prefix(self.rest)
            && header.opcode == Opcode::GET
            && header.key_len > 0
            && let Some((key, rest)) = Key::split_from(rest, header.key_len.into())
        {
            self.rest = rest;
            return Some(Ok(key));
        }
        self.left = 0;
        Some(Err(DropReason::Malformed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn golden() -> [(Operation<'static>, &'static [u8]); 4] {
        [
            (Operation::get(&b"key"[..]), b"\x01\x03key"),
            (Operation::put(&b"k"[..], b"value"), b"\x02\x01\x00\x05kvalue"),
            (Operation::delete(&b"ab"[..]), b"\x03\x02ab"),
            (Operation::commit(&b"ab"[..], 0x0102_0304), b"\x07\x02\x00\x00\x01\x02\x03\x04ab"),
        ]
    }

    #[test]
    fn golden_bytes_both_ways_and_every_truncation() {
        for (operation, bytes) in golden() {
            let mut out = [0; 32];
            assert_eq!(operation.write(&mut out), Some(bytes.len()));
            assert_eq!(&out[..bytes.len()], bytes);
            assert_eq!(Operation::parse(bytes), Ok((operation, &[][..])));
            for len in 0..bytes.len() {
                assert_eq!(Operation::parse(&bytes[..len]), Err(DropReason::Malformed), "{len} of {bytes:?}");
                assert_eq!(operation.write(&mut out[..len + HEAD_LEN]), None, "{len} of {bytes:?}");
            }
        }
    }

    #[test]
    fn unknown_opcodes_options_and_empty_keys_are_malformed() {
        for bytes in [&b"\x00\x01k"[..], b"\x04\x01k", b"\x11\x01k", b"\x01\x00k", b"\x02\x00\x00\x01v"] {
            assert_eq!(Operation::parse(bytes), Err(DropReason::Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn reads_and_writes_do_not_mix() {
        let body = b"\x01\x01a\x03\x01b";
        let outcomes: Vec<_> = Operations::new(body, 2, true).collect();
        assert_eq!(outcomes, [Ok(Operation::get(&b"a"[..])), Err(DropReason::Malformed)]);
        let outcomes: Vec<_> = Operations::new(body, 2, false).collect();
        assert_eq!(outcomes, [Err(DropReason::Malformed)]);
    }

    #[test]
    fn the_longest_value_fits_a_request_exactly() {
        for key_len in [1, 255] {
            let (key, value) = (vec![1; key_len], vec![2; Operation::inline_value_len_max(key_len)]);
            assert_eq!(Operation::put(&key[..], &value).wire_len(), BODY_LEN_MAX);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            key in proptest::collection::vec(any::<u8>(), 1..=255),
            value in proptest::collection::vec(any::<u8>(), 0..300),
            kind in 0..4,
        ) {
            let operation = match kind {
                0 => Operation::get(&key[..]),
                1 => Operation::put(&key[..], &value),
                2 => Operation::commit(&key[..], 7),
                _ => Operation::delete(&key[..]),
            };
            let mut out = [0xee; 600];
            let len = operation.write(&mut out).unwrap();
            prop_assert_eq!(len, operation.wire_len());
            let (read, rest) = Operation::parse(&out).unwrap();
            prop_assert_eq!(read, operation);
            prop_assert_eq!(rest.len(), out.len() - len);
        }

        #[test]
        fn gets_are_operations(keys in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..=40), 0..20)) {
            let mut body = Vec::new();
            for key in &keys {
                let len = body.len();
                body.resize(len + 2 + key.len() + HEAD_LEN, 0);
                let written = Operation::get(key).write(&mut body[len..]).unwrap();
                body.truncate(len + written);
            }
            let gets: Vec<_> = Gets::new(&body, keys.len() as u8).map(|key| key.unwrap().bytes().to_vec()).collect();
            prop_assert_eq!(gets, keys);
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            count: u8,
            read_only: bool,
        ) {
            let outcomes: Vec<_> = Operations::new(&bytes, count, read_only).collect();
            prop_assert!(outcomes.len() <= count as usize);
            prop_assert!(outcomes.iter().rev().skip(1).all(Result::is_ok), "nothing follows an error");
            let gets: Vec<_> = Gets::new(&bytes, count).collect();
            let reads: Vec<_> = Operations::new(&bytes, count, true).map(|get| get.map(|get| get.key)).collect();
            prop_assert_eq!(gets, reads);
        }
    }
}
