//! Bytes on the wire: layouts, total parsers and writers.
//!
//! ```text
//!  0        1        2        3        4                7 8                              15
//! ├────────┼────────┼────────┼────────┼─────────────────┼────────────────────────────────┤
//! │ver|kind│ flags  │  slot  │attempt │     session     │             token              │  Common, 16 bytes
//! ├────────┴────────┴────────┴────────┼────────┬────────┴────────┬───────┬───────────────┘
//! │                seq                │ count  │      epoch      │ spare │                   request, 8 bytes
//! │                seq                │ first  │ count  │ credit │ delay │                   reply, 8 bytes
//! ├───────────────────────────────────┴────────┴────────┴────────┴───────┤
//! │ operations or results … │ zero padding … │ CRC32C (4, when flagged)  │
//! └──────────────────────────────────────────────────────────────────────┘
//! ```
//! Everything is in network byte order and has alignment 1. Every byte pattern is a valid value of every layout, so a
//! parser only ever has to check lengths and ranges. `PROTOCOL.md` beside this crate is the text of record.

mod handshake;
mod operation;
mod result;
mod stats;
mod terms;
mod trailer;
mod transfer;

pub use handshake::{
    Cookie, CookieReply, DATAGRAM_LENS, Hello, Nonce, Open, Opened, RefusalReason, Refused, client_id,
    generation, nonce_of,
};
pub use operation::{Gets, KEY_LEN_MAX, Operation, OperationKind, Operations};
pub(crate) use result::result_len;
pub use result::{LongValue, Meta, OpResult, Reason, ReplyBuilder, Results};
pub use stats::{STAT_COUNT, STAT_NAMES, Statistic, Statistics};
pub use terms::{Condition, Terms};
pub use trailer::{TRAILER_LEN, check_trailer, write_trailer};
pub use transfer::{PART_HEADER_LEN, Piece, Pieces, Range, Ranges};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be};

use crate::drops::DropReason;

/// The protocol version that this crate speaks.
pub const VERSION: u8 = 1;

/// Payload of a UDP datagram in an unfragmented 1,500-byte IPv4 packet: 1,500 − 20 − 8. Nothing larger is sent.
pub const DATAGRAM_LEN_MAX: usize = 1_472;

/// No path carries less: the UDP payload of IPv4's least packet of 576 bytes that every host takes (RFC 791 §3.1), rounded
/// up to that packet.
pub const DATAGRAM_LEN_MIN: usize = 576;

/// Room kept for the trailer in every datagram. It is what an authentication tag will need, so that limits on keys and
/// values do not change when one replaces the checksum.
pub const TRAILER_LEN_MAX: usize = 16;

/// Bytes of operations or results that a datagram of full length carries: 1,432, which is 11 results of 128 bytes.
pub const BODY_LEN_MAX: usize = DATAGRAM_LEN_MAX - size_of::<RequestHeader>() - TRAILER_LEN_MAX;

/// Operations in one request.
pub const OPERATIONS_MAX: usize = u8::MAX as usize;

/// Datagrams that one request may be answered with; operations beyond are marked not executed.
pub const REPLY_DATAGRAMS_MAX: usize = 64;

/// Longest value in bytes: 1 MiB. One that does not fit a datagram travels in pieces.
pub const VALUE_LEN_MAX: usize = 1 << 20;

/// Requests shorter than this are padded by the client, so that `NO_SESSION`, at 36 bytes, never answers with more
/// bytes than were asked.
pub const REQUEST_LEN_MIN: usize = 40;

/// Version (high four bits) and kind (low four bits) of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct Kind(pub u8);

impl Kind {
    /// Client → server: who is there? Padded to 256 bytes.
    pub const HELLO: Self = Self::this_version(1);
    /// Server → client: a cookie that proves the client's address. No state is kept for it.
    pub const COOKIE: Self = Self::this_version(2);
    /// Client → server: open a session; carries the cookie. Padded to the length that datagrams shall have.
    pub const OPEN: Self = Self::this_version(3);
    /// Server → client: the session.
    pub const OPENED: Self = Self::this_version(4);
    /// Server → client: no session now, and why.
    pub const REFUSED: Self = Self::this_version(5);
    /// Client → server: operations.
    pub const REQUEST: Self = Self::this_version(6);
    /// Server → client: results.
    pub const REPLY: Self = Self::this_version(7);
    /// Server → client: the session named is not known (any more). Echoes session and token.
    pub const NO_SESSION: Self = Self::this_version(8);
    /// Client → server, in a session: are you there?
    pub const PING: Self = Self::this_version(9);
    /// Server → client: the answer, which repeats the ping.
    pub const PONG: Self = Self::this_version(10);
    /// Client → server, in a session: what have you counted?
    pub const STATS: Self = Self::this_version(11);
    /// Server → client: the counters of the core asked.
    pub const STATISTICS: Self = Self::this_version(12);
    /// Client → server: the session is no longer needed. Not answered.
    pub const CLOSE: Self = Self::this_version(13);
    /// Client → server, in a session: what is the cluster map, from a certain node on?
    pub const MAP: Self = Self::this_version(14);
    /// Server → client: a page of the cluster map.
    pub const MAP_PAGE: Self = Self::this_version(15);

    const fn this_version(kind: u8) -> Self {
        Self(VERSION << 4 | kind)
    }

    /// The version that the datagram claims to be of.
    #[must_use]
    pub const fn version(self) -> u8 {
        self.0 >> 4
    }
}

/// Properties of a datagram, one bit each; bits not named here are 0 and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct Flags(pub u8);

impl Flags {
    /// No property.
    pub const NONE: Self = Self(0);
    /// The last four bytes are the CRC32C of all bytes before them.
    pub const CHECKSUM: Self = Self(1);
    /// The request changes nothing: it holds gets only, or with [`TRANSFER`](Self::TRANSFER) ranges. Without it, it holds
    /// none of them.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// Request: each result shall carry the version of its key. Reply: each does.
    pub const VERSIONS: Self = Self(1 << 2);
    /// The request moves pieces of long values: ranges when it is read-only, else begins and parts.
    pub const TRANSFER: Self = Self(1 << 3);
    /// Request: each result shall carry the time that its key has left to live. Reply: each does.
    pub const LIFETIMES: Self = Self(1 << 4);

    /// Whether all bits of `other` are set.
    #[inline]
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of properties.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// `self` when `condition` holds, else nothing.
    #[must_use]
    pub const fn when(self, condition: bool) -> Self {
        if condition { self } else { Self::NONE }
    }
}

/// The first 16 bytes of every datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Common {
    /// Version and kind.
    pub kind: Kind,
    /// Properties.
    pub flags: Flags,
    /// Slot of the exactly-once table, below the window; 0 outside requests and replies.
    pub slot: u8,
    /// How often the request was sent before, modulo 256; a reply repeats it.
    pub attempt: u8,
    /// Session index at the server's core; 0 before there is one.
    pub session: be::U32,
    /// Session token, unguessable; 0 before there is one.
    pub token: be::U64,
}

/// Header of a [`Kind::REQUEST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RequestHeader {
    /// Kind, flags, slot, attempt, session, token.
    pub common: Common,
    /// Grows by at least one with each new request of a slot; 1 is the first.
    pub seq: be::U32,
    /// Operations that follow, 1..=255; at most 64 ranges.
    pub count: u8,
    /// Epoch of the cluster map that the client addressed this core by.
    pub epoch: be::U16,
    /// 0, ignored.
    pub spare: u8,
}

/// Header of a [`Kind::REPLY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReplyHeader {
    /// Kind, flags; slot, attempt, session and token as in the request.
    pub common: Common,
    /// As in the request.
    pub seq: be::U32,
    /// Index of the operation that the first result belongs to.
    pub first: u8,
    /// Results that follow, 1..=255.
    pub count: u8,
    /// Requests that the client may have in flight to this core from now on, 1..=255.
    pub credit: u8,
    /// Time from the burst's arrival to this reply, in units of 4 µs; 255 stands for 1,020 µs and more.
    pub queue_delay: u8,
}

const _: () = assert!(size_of::<Common>() == 16);
const _: () = assert!(size_of::<RequestHeader>() == 24);
const _: () = assert!(size_of::<ReplyHeader>() == 24);
const _: () = assert!(11 * (128 + 2) <= BODY_LEN_MAX);

/// A ping or pong, or a question for statistics or for the cluster map: 24 bytes and trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ping {
    /// Kind, session, token.
    pub common: Common,
    /// Chosen by the client, repeated by the server. In a question for the map: how many nodes to leave out.
    pub echo: be::U64,
}

/// Says that a session is not known: 32 bytes and trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NoSession {
    /// Kind; session and token as in the datagram that named them.
    pub common: Common,
    /// Random number of the server's present run.
    pub boot_id: be::U64,
    /// Changes whenever the contents of the store are lost.
    pub data_epoch: be::U64,
}

const _: () = assert!(size_of::<Ping>() == 24);
const _: () = assert!(size_of::<NoSession>() + TRAILER_LEN <= REQUEST_LEN_MIN);

/// Checks what all datagrams have in common and returns it with the bytes behind it, trailer removed.
///
/// # Errors
/// `Truncated`, `Version` or `Checksum`.
#[inline]
pub fn open(datagram: &[u8]) -> Result<(&Common, &[u8]), DropReason> {
    let (common, _) = Common::ref_from_prefix(datagram).map_err(|_| DropReason::Truncated)?;
    if common.kind.version() != VERSION {
        return Err(DropReason::Version);
    }
    let datagram = if common.flags.contains(Flags::CHECKSUM) { check_trailer(datagram)? } else { datagram };
    let body = datagram.get(size_of::<Common>()..).ok_or(DropReason::Truncated)?;
    Ok((common, body))
}

/// Writes `message` with a trailer behind it, flagging it so, and returns the datagram's length.
///
/// # Panics
/// When `out` is shorter than message and trailer: the caller chose both.
pub fn seal<M: IntoBytes + Immutable>(message: &M, out: &mut [u8]) -> usize {
    seal_padded(message, size_of::<M>() + TRAILER_LEN, out)
}

/// The same with zeros between message and trailer, so that the datagram has `len` bytes.
///
/// # Panics
/// When `len` is shorter than message and trailer, or `out` shorter than `len`.
pub fn seal_padded<M: IntoBytes + Immutable>(message: &M, len: usize, out: &mut [u8]) -> usize {
    let (head, padding) = out[..len - TRAILER_LEN].split_at_mut(size_of::<M>());
    head.copy_from_slice(message.as_bytes());
    padding.fill(0);
    write_trailer(&mut out[..len]);
    len
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn common(kind: Kind, flags: Flags) -> Common {
        Common {
            kind,
            flags,
            slot: 2,
            attempt: 3,
            session: 0x0405_0607.into(),
            token: 0x08090a0b_0c0d0e0f.into(),
        }
    }

    /// Goal: the layout never changes silently. Method: literal bytes, both ways.
    #[test]
    fn request_header_is_golden_both_ways() {
        let header = RequestHeader {
            common: common(Kind::REQUEST, Flags::READ_ONLY),
            seq: 0x1011_1213.into(),
            count: 0x14,
            epoch: 0x1516.into(),
            spare: 0,
        };
        let bytes = [
            0x16, 0x02, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e,
            0x0f, // common
            0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x00,
        ];
        assert_eq!(header.as_bytes(), bytes);
        assert_eq!(RequestHeader::ref_from_bytes(&bytes).unwrap(), &header);
    }

    #[test]
    fn reply_header_is_golden_both_ways() {
        let header = ReplyHeader {
            common: common(Kind::REPLY, Flags::NONE),
            seq: 1.into(),
            first: 11,
            count: 12,
            credit: 48,
            queue_delay: 255,
        };
        let bytes = [
            0x17, 0x00, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e,
            0x0f, // common
            0x00, 0x00, 0x00, 0x01, 0x0b, 0x0c, 0x30, 0xff,
        ];
        assert_eq!(header.as_bytes(), bytes);
        assert_eq!(ReplyHeader::ref_from_bytes(&bytes).unwrap(), &header);
    }

    #[test]
    fn ping_and_no_session_are_golden() {
        let ping = Ping { common: common(Kind::PING, Flags::NONE), echo: 0x1011_1213_1415_1617.into() };
        let bytes = [
            0x19, 0x00, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f,
            0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17,
        ];
        assert_eq!(ping.as_bytes(), bytes);
        let refusal = NoSession {
            common: common(Kind::NO_SESSION, Flags::CHECKSUM),
            boot_id: 1.into(),
            data_epoch: 2.into(),
        };
        let mut out = [0; 36];
        assert_eq!(seal(&refusal, &mut out), 36);
        assert_eq!(out[..2], [0x18, 0x01]);
        assert_eq!(out[16..32], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert!(open(&out).is_ok());
    }

    #[test]
    fn an_unknown_version_is_named_as_such() {
        let mut bytes = [0; 24];
        bytes[0] = 0x26;
        assert_eq!(open(&bytes), Err(DropReason::Version));
    }

    #[test]
    fn every_truncation_of_a_sealed_datagram_is_refused() {
        let ping = Ping { common: common(Kind::PING, Flags::CHECKSUM), echo: 7.into() };
        let mut out = [0; 28];
        seal(&ping, &mut out);
        assert_eq!(open(&out).unwrap().1, 7u64.to_be_bytes());
        for len in 0..out.len() {
            let reason = open(&out[..len]).unwrap_err();
            let expected = if len < 16 { DropReason::Truncated } else { DropReason::Checksum };
            assert_eq!(reason, expected, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = open(&bytes);
        }
    }
}
