//! One operation, with its key written out.

use linerate_client::{HEAD_LEN, Key};
use zerocopy::{Immutable, IntoBytes};

use super::RECORDS_MAX;
use crate::key::KeyBuffer;

/// One operation of a [`Stream`]: which record, its key, and whether to put.
///
/// The key is written out here, since making it costs as much as all else that the client does with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Immutable, IntoBytes)]
#[repr(C)]
pub struct Draw {
    key: [u8; 11],
    key_len: u8,
    /// The record in the low 31 bits, and in the highest whether it is a put.
    pub(super) operation: u32,
}

const _: () = assert!(size_of::<Draw>() == HEAD_LEN);

impl Draw {
    const PUT: u32 = 1 << 31;

    pub(super) fn new(record: u32, is_put: bool) -> Self {
        debug_assert!(record < RECORDS_MAX);
        let mut buffer = KeyBuffer::new();
        let key = buffer.key(record);
        let mut draw = Self {
            key: [0; 11],
            key_len: key.len() as u8,
            operation: record | if is_put { Self::PUT } else { 0 },
        };
        draw.key[..key.len()].copy_from_slice(key.bytes());
        draw
    }

    /// A put of `record`.
    #[must_use]
    pub fn put(record: u32) -> Self {
        Self::new(record, true)
    }

    /// Index of the record, 0 to `records - 1`.
    #[inline]
    #[must_use]
    pub const fn record(&self) -> u32 {
        self.operation & !Self::PUT
    }

    /// Key of the record.
    #[inline]
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        Key::in_window(zerocopy::transmute_ref!(self), self.key_len.into())
    }

    /// Whether to put; otherwise get.
    #[inline]
    #[must_use]
    pub const fn is_put(&self) -> bool {
        self.operation & Self::PUT != 0
    }
}

impl Default for Draw {
    fn default() -> Self {
        Self::new(0, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the extreme records survive packing. Method: both kinds of the first and last record.
    #[test]
    fn draws_keep_record_and_kind() {
        for (record, is_put) in [(0, false), (0, true), (RECORDS_MAX - 1, false), (RECORDS_MAX - 1, true)] {
            let draw = Draw::new(record, is_put);
            assert_eq!((draw.record(), draw.is_put()), (record, is_put));
        }
    }
}
