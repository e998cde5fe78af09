//! The four messages that open a session, and its refusal.
//!
//! ```text
//! client                                    server core
//!   HELLO  256 B      nonce            ──▶                       keeps nothing
//!          ◀──  COOKIE  64 B  nonce, cookie(address, nonce)
//!   OPEN   as long as nonce, cookie    ──▶                       cookie good: makes a session
//!          datagrams shall be
//!          ◀──  OPENED  as long as the OPEN  session, token, window …       or REFUSED, 40 B
//! ```
//! All carry the trailer at their end. No answer is longer than its question, so a forged source address gains nobody
//! anything. The OPEN that comes through, and the OPENED of the same length that comes back, prove that the path carries
//! datagrams of this length in both directions: the client tries [`DATAGRAM_LENS`] from the longest on.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be};

use crate::wire::{Common, DATAGRAM_LEN_MAX, TRAILER_LEN};

/// Ties the four messages together: the client's id (8 bytes) and the generation of its session (8 bytes, a number in
/// network byte order).
///
/// The id is random, or chosen so that it is the same in each run of a client. The generation grows with each handshake:
/// a session ends all older ones of its client at the same core, so that what they have left on the way has no effect.
pub type Nonce = [u8; 16];

/// The nonce of a client's session.
#[must_use]
pub const fn nonce_of(client_id: u64, generation: u64) -> Nonce {
    ((client_id as u128) << 64 | generation as u128).to_be_bytes()
}

/// The client that a nonce is of.
#[must_use]
pub const fn client_id(nonce: &Nonce) -> u64 {
    (u128::from_be_bytes(*nonce) >> 64) as u64
}

/// Which of its client's sessions a nonce is of: later ones have higher numbers.
#[must_use]
pub const fn generation(nonce: &Nonce) -> u64 {
    u128::from_be_bytes(*nonce) as u64
}

/// Lengths of datagrams that clients try in turn: an unfragmented packet of 1,500 bytes over IPv4, the same over IPv6,
/// what the usual tunnels leave of it (80 bytes less), and IPv6's least packet of 1,280 bytes (RFC 8200 §5).
pub const DATAGRAM_LENS: [usize; 4] = [DATAGRAM_LEN_MAX, 1_452, 1_392, 1_232];

/// Proof that its bearer receives what is sent to the address it was made for.
pub type Cookie = [u8; 16];

/// Length of HELLO with its trailer, and of OPEN before it is padded: no answer to them is longer than they are.
const PADDED_LEN: usize = 256;

/// Client → server: asks for a cookie.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Hello {
    /// Kind; session and token 0.
    pub common: Common,
    /// Chosen by the client.
    pub nonce: Nonce,
    /// Zeros.
    pub padding: [u8; PADDED_LEN - TRAILER_LEN - 32],
}

/// Server → client: the cookie.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CookieReply {
    /// Kind; session and token 0.
    pub common: Common,
    /// As in the hello.
    pub nonce: Nonce,
    /// To be repeated in the open within 60 s.
    pub cookie: Cookie,
    /// Random number of the server's present run.
    pub boot_id: be::U64,
    /// Zeros.
    pub spare: [u8; 4],
}

/// Client → server: asks for a session. More zeros follow, and then the trailer.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Open {
    /// Kind; session and token 0.
    pub common: Common,
    /// As in the hello.
    pub nonce: Nonce,
    /// From the cookie reply.
    pub cookie: Cookie,
    /// Slots wanted, 1..=256.
    pub window: be::U16,
    /// 1: every datagram shall carry a checksum; 0: none, which the server grants to loopback addresses only.
    pub checksum: u8,
    /// Zeros.
    pub padding: [u8; PADDED_LEN - TRAILER_LEN - 51],
}

/// Server → client: the session. Zeros follow up to the length of the open, and then the trailer.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Opened {
    /// Kind; session and token are those of the new session.
    pub common: Common,
    /// As in the open.
    pub nonce: Nonce,
    /// Random number of the server's present run.
    pub boot_id: be::U64,
    /// Changes whenever the contents of the store are lost.
    pub data_epoch: be::U64,
    /// UDP and TCP port of core 0; core i has this + i.
    pub base_port: be::U16,
    /// Cores of this node, 1..=255.
    pub cores: u8,
    /// The core that answers.
    pub core: u8,
    /// Slots granted, 1..=256.
    pub window: be::U16,
    /// Requests that may be in flight to begin with, 1..=255.
    pub credit: u8,
    /// 1: every datagram of the session carries a checksum.
    pub checksum: u8,
    /// Largest datagram in bytes, either way: that of the open and of this, or 1,472 on a stream.
    pub datagram_len_max: be::U16,
    /// Seconds without a word from the client after which the session ends.
    pub lease_s: be::U16,
    /// Epoch of the cluster map; 0 for a server that is alone.
    pub epoch: be::U16,
    /// Digest of the cluster map: servers of one epoch whose digests differ have different maps.
    pub map_digest: be::U64,
    /// Id of the node in the cluster map.
    pub node_id: be::U64,
    /// Zeros.
    pub spare: [u8; 14],
}

/// Server → client: no session now.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Refused {
    /// Kind; session and token 0.
    pub common: Common,
    /// As in the open.
    pub nonce: Nonce,
    /// Why.
    pub reason: RefusalReason,
    /// 0.
    pub spare: u8,
    /// Milliseconds after which asking again makes sense.
    pub retry_after_ms: be::U16,
}

/// Why a session was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct RefusalReason(pub u8);

impl RefusalReason {
    /// The memory for sessions is used up.
    pub const SESSIONS_FULL: Self = Self(1);
    /// One datagram of each session would be more than the receive queue is sure to take.
    pub const QUEUE_FULL: Self = Self(2);
    /// The client's machine or network has its share of the sessions.
    pub const SOURCE_FULL: Self = Self(3);
    /// The client has a newer session, which this one may not end.
    pub const FENCED: Self = Self(4);
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::SESSIONS_FULL => {
                "its memory for sessions is used up: close some clients, or give the server more --memory"
            }
            Self::QUEUE_FULL => {
                "its receive queue is shared out among as many sessions as it can take: close some clients, or give \
                 the server more --receive-buffer (as root, or with a higher net.core.rmem_max)"
            }
            Self::SOURCE_FULL => {
                "this machine already has half of the sessions that the server can hold, which is all that one \
                 machine may have: close some of its clients"
            }
            Self::FENCED => {
                "a newer session of the same client id is open: give each client an id of its own, or wait until the \
                 newer session has ended"
            }
            Self(reason) => return write!(f, "for reason {reason}, which this version does not know"),
        })
    }
}

const _: () = assert!(size_of::<Hello>() + TRAILER_LEN == PADDED_LEN);
const _: () = assert!(size_of::<CookieReply>() + TRAILER_LEN == 64);
const _: () = assert!(size_of::<Open>() + TRAILER_LEN == PADDED_LEN);
const _: () = assert!(size_of::<Open>() + TRAILER_LEN <= DATAGRAM_LENS[3]);
const _: () = assert!(size_of::<Opened>() + TRAILER_LEN == 96);
const _: () = assert!(size_of::<Refused>() + TRAILER_LEN == 40);

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::wire::{Flags, Kind, open, seal, tests::common};

    /// Goal: offsets never move silently. Method: a distinct byte in each field, compared with literal positions.
    #[test]
    fn opened_is_golden() {
        let opened = Opened {
            common: common(Kind::OPENED, Flags::CHECKSUM),
            nonce: [0x20; 16],
            boot_id: 0x3031_3233_3435_3637.into(),
            data_epoch: 0x4041_4243_4445_4647.into(),
            base_port: 4_100.into(),
            cores: 8,
            core: 3,
            window: 256.into(),
            credit: 48,
            checksum: 1,
            datagram_len_max: 1_472.into(),
            lease_s: 60.into(),
            epoch: 5.into(),
            map_digest: 0x5051_5253_5455_5657.into(),
            node_id: 0x6061_6263_6465_6667.into(),
            spare: [0; 14],
        };
        let mut out = [0xee; 96];
        assert_eq!(seal(&opened, &mut out), 96);
        assert_eq!(out[..2], [0x14, 1]);
        assert_eq!(out[16..32], [0x20; 16]);
        assert_eq!(out[32..40], [0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37]);
        assert_eq!(out[40..48], [0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47]);
        assert_eq!(out[48..62], [0x10, 0x04, 8, 3, 1, 0, 48, 1, 0x05, 0xc0, 0, 60, 0, 5]);
        assert_eq!(out[62..70], [0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57]);
        assert_eq!(out[70..78], [0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67]);
        assert_eq!(out[78..92], [0; 14][..]);
        let (_, body) = open(&out).unwrap();
        assert_eq!(body.len(), 76);
        assert_eq!(Opened::ref_from_bytes(&out[..92]).unwrap().as_bytes(), opened.as_bytes());
    }

    #[test]
    fn open_and_cookie_are_golden() {
        let mut request = Open::new_zeroed();
        request.common = common(Kind::OPEN, Flags::CHECKSUM);
        request.nonce = [0x20; 16];
        request.cookie = [0x30; 16];
        request.window = 48.into();
        request.checksum = 1;
        assert_eq!(request.as_bytes()[..2], [0x13, 1]);
        assert_eq!(request.as_bytes()[16..51], [&[0x20; 16][..], &[0x30; 16], &[0, 48, 1]].concat());
        let mut reply = CookieReply::new_zeroed();
        reply.common = common(Kind::COOKIE, Flags::CHECKSUM);
        reply.cookie = [0x30; 16];
        reply.boot_id = 1.into();
        assert_eq!(reply.as_bytes()[..2], [0x12, 1]);
        assert_eq!(reply.as_bytes()[32..60], [&[0x30; 16][..], &[0, 0, 0, 0, 0, 0, 0, 1], &[0; 4]].concat());
    }

    #[test]
    fn hello_and_refused_are_golden() {
        let mut hello = Hello::new_zeroed();
        hello.common = common(Kind::HELLO, Flags::CHECKSUM);
        hello.nonce = [0x20; 16];
        assert_eq!(hello.as_bytes()[..2], [0x11, 1]);
        assert_eq!(hello.as_bytes()[16..], [&[0x20; 16][..], &[0; 220]].concat());
        let refused = Refused {
            common: common(Kind::REFUSED, Flags::CHECKSUM),
            nonce: [0x20; 16],
            reason: RefusalReason::SESSIONS_FULL,
            spare: 0,
            retry_after_ms: 0x0102.into(),
        };
        assert_eq!(refused.as_bytes()[..2], [0x15, 1]);
        assert_eq!(refused.as_bytes()[32..], [1, 0, 1, 2]);
    }
}
