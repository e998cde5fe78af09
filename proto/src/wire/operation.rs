//! Operations of a request.
//!
//! ```text
//! get, delete │ opcode │ key_len │ key …                                        2 bytes beside the key
//! put         │ opcode │ key_len │ value_len (2) │ [terms] │ key … │ value …     4 bytes beside key and value, or 8 to 16
//! commit      │ opcode │ key_len │ 0 (2) │ number (4) │ [terms] │ key …           8 bytes beside the key, or 12 to 20
//! add         │ opcode │ key_len │ 0 (2) │ delta (8) │ [time to live (4)] │ key …  12 bytes beside the key, or 16
//! ```

use std::num::NonZeroU32;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be};

use crate::{
    drops::DropReason,
    key::{HEAD_LEN, Key},
    wire::{
        BODY_LEN_MAX,
        terms::{Condition, OPTIONS, Terms},
    },
};

/// Longest key in bytes; the shortest has 1.
pub const KEY_LEN_MAX: usize = 255;

/// What an operation does: the low four bits of its first byte. The high four are options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
struct Opcode(u8);

impl Opcode {
    const GET: Self = Self(1);
    const PUT: Self = Self(2);
    const DELETE: Self = Self(3);
    const COMMIT: Self = Self(7);
    const ADD: Self = Self(8);

    /// Without its options.
    const fn plain(self) -> Self {
        Self(self.0 & !OPTIONS)
    }

    const fn with(self, terms: Terms) -> Self {
        Self(self.0 | terms.options())
    }
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

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct CommitHeader {
    operation: OperationHeader,
    spare: be::U16,
    number: be::U32,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct AddHeader {
    operation: OperationHeader,
    spare: be::U16,
    delta: be::U64,
}

const _: () = assert!(size_of::<OperationHeader>() == 2);
const _: () = assert!(size_of::<PutHeader>() == 4);
const _: () = assert!(size_of::<CommitHeader>() == 8);
const _: () = assert!(size_of::<AddHeader>() == 12);

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Reads a value.
    Get,
    /// Stores a value.
    Put,
    /// Stores a value on terms. These are never [`Terms::NONE`].
    PutOn(Terms),
    /// Removes a key.
    Delete,
    /// Stores the long value whose pieces were sent under this number.
    Commit(u32, Terms),
    /// Adds to the number that a key's value is, and tells what it was before.
    Add {
        /// What to add, modulo 2^64: so numbers may be understood as signed or unsigned.
        delta: u64,
        /// Milliseconds after which the number is gone; counts only if the key had no value.
        ttl_ms: Option<NonZeroU32>,
    },
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

    /// Stores `value` at `key` on terms.
    #[must_use]
    pub fn put_on(key: impl Into<Key<'a>>, value: &'a [u8], terms: Terms) -> Self {
        let kind = if terms == Terms::NONE { OperationKind::Put } else { OperationKind::PutOn(terms) };
        Self { kind, key: key.into(), value }
    }

    /// Adds `delta`, modulo 2^64, to the number that the value of `key` is: eight bytes in network order. An absent key
    /// counts as 0, and only then gets the time to live.
    #[must_use]
    pub fn add(key: impl Into<Key<'a>>, delta: u64, ttl_ms: Option<NonZeroU32>) -> Self {
        Self { kind: OperationKind::Add { delta, ttl_ms }, key: key.into(), value: &[] }
    }

    /// Removes `key`.
    #[must_use]
    pub fn delete(key: impl Into<Key<'a>>) -> Self {
        Self { kind: OperationKind::Delete, key: key.into(), value: &[] }
    }

    /// Stores at `key`, on terms, the long value that was sent in pieces under `number`.
    #[must_use]
    pub fn commit(key: impl Into<Key<'a>>, number: u32, terms: Terms) -> Self {
        Self { kind: OperationKind::Commit(number, terms), key: key.into(), value: &[] }
    }

    /// Whether it changes nothing.
    #[inline]
    #[must_use]
    pub const fn is_read(&self) -> bool {
        matches!(self.kind, OperationKind::Get)
    }

    /// On what terms it stores a value, if it does.
    #[inline]
    #[must_use]
    pub const fn terms(&self) -> Terms {
        match self.kind {
            OperationKind::PutOn(terms) | OperationKind::Commit(_, terms) => terms,
            OperationKind::Add { ttl_ms, .. } => Terms::NONE.for_ms(ttl_ms),
            OperationKind::Get | OperationKind::Put | OperationKind::Delete => Terms::NONE,
        }
    }

    /// Longest value that a put of a key of `key_len` bytes carries itself, in a full datagram: 1,173 to 1,427 bytes, and
    /// less by up to 12 bytes on terms. Longer ones are sent in pieces.
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
            OperationKind::PutOn(terms) => {
                size_of::<PutHeader>() + terms.extension_len() + self.key.len() + self.value.len()
            }
            OperationKind::Commit(_, terms) => {
                size_of::<CommitHeader>() + terms.extension_len() + self.key.len()
            }
            OperationKind::Add { ttl_ms, .. } => {
                size_of::<AddHeader>() + Terms::NONE.for_ms(ttl_ms).extension_len() + self.key.len()
            }
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
            OperationKind::PutOn(terms) => {
                let operation = OperationHeader { opcode: Opcode::PUT.with(terms), key_len };
                let value_len =
                    u16::try_from(self.value.len()).expect("value length checked by the caller").into();
                let rest = write_head(out, &PutHeader { operation, value_len }, terms);
                self.key.copy_to(rest);
                rest[self.key.len()..][..self.value.len()].copy_from_slice(self.value);
            }
            OperationKind::Commit(number, terms) => {
                let operation = OperationHeader { opcode: Opcode::COMMIT.with(terms), key_len };
                let commit = CommitHeader { operation, spare: 0.into(), number: number.into() };
                self.key.copy_to(write_head(out, &commit, terms));
            }
            OperationKind::Add { delta, ttl_ms } => {
                let terms = Terms::NONE.for_ms(ttl_ms);
                let operation = OperationHeader { opcode: Opcode::ADD.with(terms), key_len };
                let add = AddHeader { operation, spare: 0.into(), delta: delta.into() };
                self.key.copy_to(write_head(out, &add, terms));
            }
        }
        Some(len)
    }

    /// Reads one operation from the start of `bytes` and returns it with the bytes behind it.
    ///
    /// # Errors
    /// `Malformed` when opcode or options are unknown, the key empty, a version or time to live 0, the whole too long, or
    /// the bytes end early.
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
            Opcode(opcode) => match header.opcode.plain() {
                Opcode::PUT => {
                    let (header, rest) = PutHeader::ref_from_prefix(bytes).map_err(|_| MALFORMED)?;
                    let (terms, rest) = Terms::split_from(opcode, rest).ok_or(MALFORMED)?;
                    let (key, rest) = Key::split_from(rest, key_len).ok_or(MALFORMED)?;
                    let (value, rest) =
                        rest.split_at_checked(header.value_len.get() as usize).ok_or(MALFORMED)?;
                    let operation = Self::put_on(key, value, terms);
                    if operation.wire_len() <= BODY_LEN_MAX { Ok((operation, rest)) } else { Err(MALFORMED) }
                }
                Opcode::COMMIT => {
                    let (header, rest) = CommitHeader::ref_from_prefix(bytes).map_err(|_| MALFORMED)?;
                    let (terms, rest) = Terms::split_from(opcode, rest).ok_or(MALFORMED)?;
                    let (key, rest) = Key::split_from(rest, key_len).ok_or(MALFORMED)?;
                    Ok((Self::commit(key, header.number.get(), terms), rest))
                }
                Opcode::ADD => {
                    let (header, rest) = AddHeader::ref_from_prefix(bytes).map_err(|_| MALFORMED)?;
                    let (terms, rest) = Terms::split_from(opcode, rest).ok_or(MALFORMED)?;
                    if terms.condition != Condition::Always {
                        return Err(MALFORMED);
                    }
                    let (key, rest) = Key::split_from(rest, key_len).ok_or(MALFORMED)?;
                    Ok((Self::add(key, header.delta.get(), terms.ttl_ms), rest))
                }
                _ => Err(MALFORMED),
            },
        }
    }
}

/// Writes what comes before the key of an operation on terms, and returns the room behind it.
#[inline]
fn write_head<'o>(out: &'o mut [u8], header: &(impl IntoBytes + Immutable), terms: Terms) -> &'o mut [u8] {
    let (head, rest) = out.split_at_mut(header.as_bytes().len());
    head.copy_from_slice(header.as_bytes());
    let (extension, rest) = rest.split_at_mut(terms.extension_len());
    terms.write(extension);
    rest
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

    fn golden() -> [(Operation<'static>, &'static [u8]); 11] {
        let ttl_ms = NonZeroU32::new(5_000);
        let version = Terms::only_if(Condition::Version(9));
        [
            (Operation::get(&b"key"[..]), b"\x01\x03key"),
            (Operation::put(&b"k"[..], b"value"), b"\x02\x01\x00\x05kvalue"),
            (Operation::delete(&b"ab"[..]), b"\x03\x02ab"),
            (Operation::commit(&b"ab"[..], 0x0102_0304, Terms::NONE), b"\x07\x02\x00\x00\x01\x02\x03\x04ab"),
            (
                Operation::put_on(&b"k"[..], b"value", Terms::NONE.for_ms(ttl_ms)),
                b"\x12\x01\x00\x05\x00\x00\x13\x88kvalue",
            ),
            (
                Operation::put_on(&b"k"[..], b"value", Terms::only_if(Condition::Absent)),
                b"\x22\x01\x00\x05kvalue",
            ),
            (Operation::put_on(&b"k"[..], b"", Terms::only_if(Condition::Present)), b"\x42\x01\x00\x00k"),
            (
                Operation::put_on(&b"k"[..], b"value", version.for_ms(ttl_ms)),
                b"\x72\x01\x00\x05\x00\x00\x00\x00\x00\x00\x00\x09\x00\x00\x13\x88kvalue",
            ),
            (
                Operation::commit(&b"ab"[..], 7, version),
                b"\x67\x02\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x09ab",
            ),
            (Operation::add(&b"n"[..], u64::MAX, None), b"\x08\x01\x00\x00\xff\xff\xff\xff\xff\xff\xff\xffn"),
            (
                Operation::add(&b"n"[..], 1, ttl_ms),
                b"\x18\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x13\x88n",
            ),
        ]
    }

    #[test]
    fn golden_bytes_both_ways_and_every_truncation() {
        for (operation, bytes) in golden() {
            let mut out = [0; 64];
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
        for bytes in [
            &b"\x00\x01k"[..],
            b"\x04\x01k",
            b"\x11\x01kkkkkkkkk",
            b"\x13\x01kkkkkkkkk",
            b"\x21\x01k",
            b"\x23\x01k",
            b"\x01\x00k",
            b"\x02\x00\x00\x01v",
            b"\x12\x01\x00\x00\x00\x00\x00\x00k",
            b"\x62\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00k",
            b"\x82\x01\x00\x00k",
            b"\x28\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01n",
            b"\x18\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00n",
        ] {
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
            let terms = Terms::only_if(Condition::Version(1)).for_ms(NonZeroU32::new(1));
            for (len, fits) in [(value.len() - 12, true), (value.len() - 11, false)] {
                let operation = Operation::put_on(&key[..], &value[..len], terms);
                let mut out = vec![0; BODY_LEN_MAX + 1 + HEAD_LEN];
                let written = operation.write(&mut out).unwrap();
                let parsed = Operation::parse(&out[..written]);
                assert_eq!(parsed, if fits { Ok((operation, &[][..])) } else { Err(DropReason::Malformed) });
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            key in proptest::collection::vec(any::<u8>(), 1..=255),
            value in proptest::collection::vec(any::<u8>(), 0..300),
            kind in 0..6,
            condition in prop_oneof![
                Just(Condition::Always),
                Just(Condition::Absent),
                Just(Condition::Present),
                (1u64..).prop_map(Condition::Version),
            ],
            ttl_ms: u32,
        ) {
            let terms = Terms { condition, ttl_ms: NonZeroU32::new(ttl_ms) };
            let operation = match kind {
                0 => Operation::get(&key[..]),
                1 => Operation::put(&key[..], &value),
                2 => Operation::commit(&key[..], 7, terms),
                3 => Operation::put_on(&key[..], &value, terms),
                4 => Operation::add(&key[..], ttl_ms.into(), terms.ttl_ms),
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
