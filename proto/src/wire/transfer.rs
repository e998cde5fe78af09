//! Pieces of values that do not fit a datagram, in requests of [`Flags::TRANSFER`](crate::wire::Flags::TRANSFER).
//!
//! ```text
//! range │ opcode │ key_len │ len (2) │ offset (4) │ version (8) │ key …     16 bytes beside the key
//! begin │ opcode │ 0       │ 0 (2)   │ number (4) │ len (4)                 12 bytes
//! part  │ opcode │ 0       │ len (2) │ number (4) │ offset (4)  │ bytes …   12 bytes beside the piece
//! ```
//! Ranges are read and harm nobody when they are read twice. Begins and parts fill a staging area that nobody sees until a
//! commit, an operation of a plain request, makes it the value of a key.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be};

use crate::{
    drops::DropReason,
    key::{HEAD_LEN, Key},
    wire::{KEY_LEN_MAX, VALUE_LEN_MAX},
};

const OPCODE_RANGE: u8 = 4;
const OPCODE_BEGIN: u8 = 5;
const OPCODE_PART: u8 = 6;

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct RangeHeader {
    opcode: u8,
    key_len: u8,
    len: be::U16,
    offset: be::U32,
    version: be::U64,
}

/// Of begins and parts.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct PieceHeader {
    opcode: u8,
    spare: u8,
    /// Bytes that follow.
    len: be::U16,
    number: be::U32,
    /// Offset of a part, length of the whole value of a begin.
    position: be::U32,
}

const _: () = assert!(size_of::<RangeHeader>() == 16);
const _: () = assert!(size_of::<PieceHeader>() == PART_HEADER_LEN);

/// Bytes of a part before the piece.
pub const PART_HEADER_LEN: usize = 12;

/// Bytes of a value of a certain version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<'a> {
    /// 1..=255 bytes.
    pub key: Key<'a>,
    /// The version that the value must have; 0: any, and the answer is that of a get.
    pub version: u64,
    /// Index of the first byte.
    pub offset: u32,
    /// Bytes wanted, no more than fit a reply.
    pub len: u16,
}

impl<'a> Range<'a> {
    /// Bytes on the wire.
    #[must_use]
    pub const fn wire_len(&self) -> usize {
        size_of::<RangeHeader>() + self.key.len()
    }

    /// Writes the range to the start of `out` and returns its length, or `None` when there is not enough room: its length
    /// and 16 bytes more, which may be overwritten with anything.
    ///
    /// # Panics
    /// When the key has no or more than 255 bytes: the caller has checked it.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        assert!((1..=KEY_LEN_MAX).contains(&self.key.len()), "key of {} bytes", self.key.len());
        let len = self.wire_len();
        let (header, key) = out.get_mut(..len + HEAD_LEN)?.split_at_mut(size_of::<RangeHeader>());
        let range = RangeHeader {
            opcode: OPCODE_RANGE,
            key_len: self.key.len() as u8,
            len: self.len.into(),
            offset: self.offset.into(),
            version: self.version.into(),
        };
        header.copy_from_slice(range.as_bytes());
        self.key.copy_to(key);
        Some(len)
    }

    /// Reads one range from the start of `bytes` and returns it with the bytes behind it.
    ///
    /// # Errors
    /// `Malformed` when it is none, the key is empty, or the bytes end early.
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), DropReason> {
        const MALFORMED: DropReason = DropReason::Malformed;
        let (header, rest) = RangeHeader::ref_from_prefix(bytes).map_err(|_| MALFORMED)?;
        if header.opcode != OPCODE_RANGE || header.key_len == 0 {
            return Err(MALFORMED);
        }
        let (key, rest) = Key::split_from(rest, header.key_len.into()).ok_or(MALFORMED)?;
        let (version, offset, len) = (header.version.get(), header.offset.get(), header.len.get());
        Ok((Self { key, version, offset, len }, rest))
    }
}

/// A step of sending a long value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Asks for room.
    Begin {
        /// Number of the transfer, growing within a session.
        number: u32,
        /// Length of the whole value, 1..=1 MiB.
        len: u32,
    },
    /// Some of the bytes.
    Part {
        /// Number of the transfer.
        number: u32,
        /// Index of the first byte.
        offset: u32,
        /// At least one.
        bytes: &'a [u8],
    },
}

impl<'a> Piece<'a> {
    /// Bytes on the wire.
    #[must_use]
    pub const fn wire_len(&self) -> usize {
        match self {
            Self::Begin { .. } => PART_HEADER_LEN,
            Self::Part { bytes, .. } => PART_HEADER_LEN + bytes.len(),
        }
    }

    /// Writes the step to the start of `out` and returns its length, or `None` when there is not enough room.
    ///
    /// # Panics
    /// When a part has more than 65,535 bytes.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let (opcode, number, position, bytes) = match *self {
            Self::Begin { number, len } => (OPCODE_BEGIN, number, len, &[][..]),
            Self::Part { number, offset, bytes } => (OPCODE_PART, number, offset, bytes),
        };
        let len = self.wire_len();
        let (header, rest) = out.get_mut(..len)?.split_at_mut(PART_HEADER_LEN);
        let piece = PieceHeader {
            opcode,
            spare: 0,
            len: u16::try_from(bytes.len()).expect("a part fits a datagram").into(),
            number: number.into(),
            position: position.into(),
        };
        header.copy_from_slice(piece.as_bytes());
        rest.copy_from_slice(bytes);
        Some(len)
    }

    /// Reads one step from the start of `bytes` and returns it with the bytes behind it.
    ///
    /// # Errors
    /// `Malformed` when it is none, a begin is of no length or too long, a part is empty, or the bytes end early.
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), DropReason> {
        const MALFORMED: DropReason = DropReason::Malformed;
        let (header, rest) = PieceHeader::ref_from_prefix(bytes).map_err(|_| MALFORMED)?;
        let (number, position) = (header.number.get(), header.position.get());
        let (bytes, rest) = rest.split_at_checked(header.len.get().into()).ok_or(MALFORMED)?;
        match header.opcode {
            OPCODE_BEGIN if bytes.is_empty() && (1..=VALUE_LEN_MAX as u32).contains(&position) => {
                Ok((Self::Begin { number, len: position }, rest))
            }
            OPCODE_PART if !bytes.is_empty() => Ok((Self::Part { number, offset: position, bytes }, rest)),
            _ => Err(MALFORMED),
        }
    }
}

macro_rules! steps {
    ($(#[$doc:meta])* $name:ident of $item:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<'a> {
            rest: &'a [u8],
            left: u8,
        }

        impl<'a> $name<'a> {
            /// Reads `count` of them from `body`; bytes behind them are padding.
            #[must_use]
            pub const fn new(body: &'a [u8], count: u8) -> Self {
                Self { rest: body, left: count }
            }
        }

        impl<'a> Iterator for $name<'a> {
            type Item = Result<$item<'a>, DropReason>;

            fn next(&mut self) -> Option<Self::Item> {
                self.left = self.left.checked_sub(1)?;
                let parsed = $item::parse(self.rest);
                match parsed {
                    Ok((_, rest)) => self.rest = rest,
                    Err(_) => self.left = 0,
                }
                Some(parsed.map(|(item, _)| item))
            }
        }
    };
}

steps! {
    /// The ranges of a request, one by one; ends after the first error.
    Ranges of Range
}
steps! {
    /// The begins and parts of a request, one by one; ends after the first error.
    Pieces of Piece
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_golden_both_ways_and_in_every_truncation() {
        let range =
            Range { key: Key::new(b"key"), version: 0x0102_0304_0506_0708, offset: 0x1_0203, len: 1_430 };
        let bytes = b"\x04\x03\x05\x96\x00\x01\x02\x03\x01\x02\x03\x04\x05\x06\x07\x08key";
        let mut out = [0; 64];
        assert_eq!(range.write(&mut out), Some(bytes.len()));
        assert_eq!(&out[..bytes.len()], bytes);
        assert_eq!(Range::parse(bytes), Ok((range, &[][..])));
        for len in 0..bytes.len() {
            assert_eq!(Range::parse(&bytes[..len]), Err(DropReason::Malformed), "{len}");
            assert_eq!(range.write(&mut out[..len + HEAD_LEN]), None, "{len}");
        }
    }

    #[test]
    fn pieces_are_golden_both_ways_and_in_every_truncation() {
        let pieces = [
            (
                Piece::Begin { number: 7, len: 0x10_0000 },
                &b"\x05\x00\x00\x00\x00\x00\x00\x07\x00\x10\x00\x00"[..],
            ),
            (
                Piece::Part { number: 7, offset: 1_420, bytes: b"abc" },
                b"\x06\x00\x00\x03\x00\x00\x00\x07\x00\x00\x05\x8cabc",
            ),
        ];
        for (piece, bytes) in pieces {
            let mut out = [0; 32];
            assert_eq!(piece.write(&mut out), Some(bytes.len()));
            assert_eq!(&out[..bytes.len()], bytes);
            assert_eq!(Piece::parse(bytes), Ok((piece, &[][..])));
            for len in 0..bytes.len() {
                assert_eq!(Piece::parse(&bytes[..len]), Err(DropReason::Malformed), "{len}");
                assert_eq!(piece.write(&mut out[..len]), None, "{len}");
            }
        }
    }

    #[test]
    fn what_no_client_sends_is_malformed() {
        for bytes in [
            &b"\x05\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00"[..],
            b"\x05\x00\x00\x00\x00\x00\x00\x07\x00\x10\x00\x01",
            b"\x05\x00\x00\x01\x00\x00\x00\x07\x00\x00\x00\x05x",
            b"\x06\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00",
            b"\x07\x00\x00\x01\x00\x00\x00\x07\x00\x00\x00\x00x",
        ] {
            assert_eq!(Piece::parse(bytes), Err(DropReason::Malformed), "{bytes:?}");
        }
        let no_key = b"\x04\x00\x05\x96\x00\x01\x02\x03\x01\x02\x03\x04\x05\x06\x07\x08key";
        assert_eq!(Range::parse(no_key), Err(DropReason::Malformed));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), count: u8) {
            let ranges: Vec<_> = Ranges::new(&bytes, count).collect();
            let pieces: Vec<_> = Pieces::new(&bytes, count).collect();
            prop_assert!(ranges.len() <= count as usize && pieces.len() <= count as usize);
            prop_assert!(ranges.iter().rev().skip(1).all(Result::is_ok), "nothing follows an error");
            prop_assert!(pieces.iter().rev().skip(1).all(Result::is_ok), "nothing follows an error");
        }
    }
}
