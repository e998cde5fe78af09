//! The four messages that open a session, and its refusal.
//!
//! ```text
//! client                                server core
//!   HELLO  256 B  nonce            ──▶                       keeps nothing
//!          ◀──  COOKIE  64 B  nonce, cookie(address, nonce)
//!   OPEN   256 B  nonce, cookie    ──▶                       cookie good: makes a session
//!          ◀──  OPENED  96 B  session, token, window …       or REFUSED, 40 B
//! ```
//! All carry the trailer. Each answer is shorter than its question, so a forged source address gains nobody anything.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be};

use crate::wire::{Common, TRAILER_LEN};

/// Chosen by the client, different for each attempt to open a session; ties the four messages together.
pub type Nonce = [u8; 16];

/// Proof that its bearer receives what is sent to the address it was made for.
pub type Cookie = [u8; 16];

/// Length of HELLO and OPEN with their trailer: longer than any answer to them.
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

/// Client → server: asks for a session.
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

/// Server → client: the session.
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
    /// Largest datagram in bytes, either way.
    pub datagram_len_max: be::U16,
    /// Seconds without a word from the client after which the session ends.
    pub lease_s: be::U16,
    /// Epoch of the cluster map.
    pub epoch: be::U16,
    /// Zeros.
    pub spare: [u8; 30],
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
}

const _: () = assert!(size_of::<Hello>() + TRAILER_LEN == PADDED_LEN);
const _: () = assert!(size_of::<CookieReply>() + TRAILER_LEN == 64);
const _: () = assert!(size_of::<Open>() + TRAILER_LEN == PADDED_LEN);
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
            spare: [0; 30],
        };
        let mut out = [0xee; 96];
        assert_eq!(seal(&opened, &mut out), 96);
        assert_eq!(out[..2], [0x14, 1]);
        assert_eq!(out[16..32], [0x20; 16]);
        assert_eq!(out[32..40], [0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37]);
        assert_eq!(out[40..48], [0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47]);
        assert_eq!(out[48..62], [0x10, 0x04, 8, 3, 1, 0, 48, 1, 0x05, 0xc0, 0, 60, 0, 5]);
        assert_eq!(out[62..92], [0; 30][..]);
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
