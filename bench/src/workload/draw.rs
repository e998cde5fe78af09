//! One operation, with its key written out.

use std::num::NonZeroU32;

use linerate_client::{HEAD_LEN, Key};
use zerocopy::{Immutable, IntoBytes};

use super::RECORDS_MAX;
use crate::key::KeyBuffer;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Gets a record.
    Get,
    /// Puts it.
    Put,
    /// Puts it if it is not there.
    PutIfAbsent,
    /// Puts it if it is there.
    PutIfPresent,
    /// Removes it.
    Delete,
    /// Adds 1 to the number that its value is.
    Increment,
    /// Takes 1 from it.
    Decrement,
    /// Gets a value that may be a number, and not one that this program has filled.
    GetNumber,
    /// Gets one of the newest records: the draw names the record that it is if none is inserted.
    GetLatest,
    /// Puts a record that is not there yet. Which one is known when it is pushed.
    Insert,
    /// Gets a record in order to put it then.
    Rmw,
    /// The put that ends an [`Rmw`](Self::Rmw).
    Update,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Get,
        Self::Put,
        Self::PutIfAbsent,
        Self::PutIfPresent,
        Self::Delete,
        Self::Increment,
        Self::Decrement,
        Self::GetNumber,
        Self::GetLatest,
        Self::Insert,
        Self::Rmw,
        Self::Update,
    ];

    /// From its number, of which the low four bits count. All numbers that a draw or a tag holds are one's.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        let index = (bits & 15) as usize;
        if index < Self::ALL.len() { Self::ALL[index] } else { Self::Get }
    }

    /// Whether it changes something.
    #[inline]
    #[must_use]
    pub const fn is_write(self) -> bool {
        !matches!(self, Self::Get | Self::GetNumber | Self::GetLatest | Self::Rmw)
    }

    /// Whether its record is known only when it is pushed.
    #[inline]
    #[must_use]
    pub const fn is_relative(self) -> bool {
        matches!(self, Self::GetLatest | Self::Insert)
    }

    /// Whether its end is the beginning of something.
    #[inline]
    #[must_use]
    pub const fn has_sequel(self) -> bool {
        self as u8 >= Self::Insert as u8
    }
}

/// One operation of a [`Stream`](super::Stream): what it does, and which record's key it is on.
///
/// The key is written out here, since making it costs as much as all else that the client does with an operation. One of a
/// trace may be too long for that; it lies in the stream's table, and what the trace says of a put takes its place.
///
/// ```text
/// │ key 11, or value length 4 · seconds to live 4 · 0 │ kind 4 bits · key length 4 bits, 15: in the table │ write 1 bit · record 31 │
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Immutable, IntoBytes)]
#[repr(C)]
pub struct Draw {
    key: [u8; 11],
    kind_and_key_len: u8,
    /// The record in the low 31 bits, and in the highest whether it is written.
    pub(super) operation: u32,
}

const _: () = assert!(size_of::<Draw>() == HEAD_LEN);

impl Draw {
    const WRITE: u32 = 1 << 31;

    /// A key length that says: in the table.
    const IN_TABLE: u8 = 15;

    /// An operation on `record` by its number.
    #[inline]
    #[must_use]
    pub fn new(record: u32, kind: Kind) -> Self {
        debug_assert!(record < RECORDS_MAX);
        let mut buffer = KeyBuffer::new();
        let key = buffer.key(record);
        let mut draw = Self {
            key: [0; 11],
            kind_and_key_len: (kind as u8) << 4 | key.len() as u8,
            operation: Self::operation(record, kind),
        };
        draw.key[..key.len()].copy_from_slice(key.bytes());
        draw
    }

    /// A put of `record`.
    #[must_use]
    pub fn put(record: u32) -> Self {
        Self::new(record, Kind::Put)
    }

    /// An operation of a trace, on the record whose key is in a table under its number. A put's value has `value_len` bytes and
    /// lives for `ttl_s` seconds, for ever if that is 0.
    #[must_use]
    pub fn traced(record: u32, kind: Kind, value_len: u32, ttl_s: u32) -> Self {
        debug_assert!(record < RECORDS_MAX);
        let mut key = [0; 11];
        key[..4].copy_from_slice(&value_len.to_le_bytes());
        key[4..8].copy_from_slice(&ttl_s.to_le_bytes());
        let kind_and_key_len = (kind as u8) << 4 | Self::IN_TABLE;
        Self { key, kind_and_key_len, operation: Self::operation(record, kind) }
    }

    const fn operation(record: u32, kind: Kind) -> u32 {
        record | if kind.is_write() { Self::WRITE } else { 0 }
    }

    /// Index of the record, 0 to `records - 1`.
    #[inline]
    #[must_use]
    pub const fn record(&self) -> u32 {
        self.operation & !Self::WRITE
    }

    /// Whether the key is in the stream's table, under the record's number.
    #[inline]
    #[must_use]
    pub const fn is_traced(&self) -> bool {
        self.kind_and_key_len & 15 == Self::IN_TABLE
    }

    /// Key of the record.
    ///
    /// # Panics
    /// Perhaps, when it is in a table.
    #[inline]
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        Key::in_window(zerocopy::transmute_ref!(self), (self.kind_and_key_len & 15).into())
    }

    /// What it does.
    #[inline]
    #[must_use]
    pub const fn kind(&self) -> Kind {
        Kind::from_bits(self.kind_bits())
    }

    /// The same as a number below 16, as [`Kind::from_bits`] takes it.
    #[inline]
    #[must_use]
    pub const fn kind_bits(&self) -> u8 {
        self.kind_and_key_len >> 4
    }

    /// Whether it writes; otherwise it gets.
    #[inline]
    #[must_use]
    pub const fn is_put(&self) -> bool {
        self.operation & Self::WRITE != 0
    }

    /// Bytes of a traced put's value.
    #[inline]
    #[must_use]
    pub const fn value_len(&self) -> usize {
        let [a, b, c, d, ..] = self.key;
        u32::from_le_bytes([a, b, c, d]) as usize
    }

    /// Milliseconds that a traced put's value lives; `None`: for ever.
    #[inline]
    #[must_use]
    pub const fn ttl_ms(&self) -> Option<NonZeroU32> {
        let [_, _, _, _, a, b, c, d, ..] = self.key;
        // What does not fit, 49 days, is longer than any run.
        NonZeroU32::new(u32::from_le_bytes([a, b, c, d]).saturating_mul(1_000))
    }
}

impl Default for Draw {
    fn default() -> Self {
        Self::new(0, Kind::Get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every kind survives packing, with the extreme records, and knows its number. Method: all of them, in both
    /// forms.
    #[test]
    fn draws_keep_record_and_kind() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_bits(kind as u8), kind);
            for record in [0, 7, 1_000_000, RECORDS_MAX - 1] {
                let draw = Draw::new(record, kind);
                assert_eq!((draw.record(), draw.kind(), draw.is_put()), (record, kind, kind.is_write()));
                assert_eq!(draw.key(), Key::new(record.to_string().as_bytes()));
                assert!(!draw.is_traced());
                let draw = Draw::traced(record, kind, 1 << 20, 3_600);
                assert_eq!((draw.record(), draw.kind(), draw.is_put()), (record, kind, kind.is_write()));
                assert_eq!((draw.value_len(), draw.is_traced()), (1 << 20, true));
                assert_eq!(draw.ttl_ms(), NonZeroU32::new(3_600_000));
            }
        }
        assert_eq!(Draw::traced(0, Kind::Put, 0, 0).ttl_ms(), None);
        assert_eq!(Draw::traced(0, Kind::Put, 0, u32::MAX).ttl_ms(), NonZeroU32::new(u32::MAX));
        assert_eq!(Kind::ALL.iter().filter(|kind| kind.has_sequel()).count(), 3);
        assert_eq!(Kind::ALL.iter().filter(|kind| kind.is_write()).count(), 8);
    }
}
