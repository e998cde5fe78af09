//! A request's state, and of which class it is.

use super::bits::Bits;
use crate::{time::Instant, wire::Flags};

/// Kinds of requests.
pub(super) const READS: usize = 0;
pub(super) const WRITES: usize = 1;
/// Of long values that are read, and that are written.
pub(super) const RANGES: usize = 2;
pub(super) const PARTS: usize = 3;
pub(super) const CLASSES: usize = 4;

/// Flags that tell the server of which class a request is.
pub(super) const CLASS_FLAGS: [Flags; CLASSES] =
    [Flags::READ_ONLY, Flags::NONE, Flags::READ_ONLY.with(Flags::TRANSFER), Flags::TRANSFER];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Free,
    /// Takes operations.
    Filling,
    /// Complete, not sent in this session.
    Ready,
    InFlight,
}

/// A request's state; its bytes and tags lie in arrays beside, so that scans stay short.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) phase: Phase,
    pub(super) class: u8,
    /// Whether any copy was ever sent, in any session.
    pub(super) exposed: bool,
    /// Waits in `resend`.
    pub(super) lost: bool,
    pub(super) attempt: u8,
    pub(super) seq: u32,
    pub(super) count: u8,
    /// Operations that it may have: their results fit one datagram, if they must.
    pub(super) limit: u8,
    /// Whether it has adds, whose results are longer than other writes'.
    pub(super) adds: bool,
    /// Operations without a result.
    pub(super) missing: u8,
    /// Bytes, header included.
    pub(super) len: u16,
    pub(super) pushed_at: Instant,
    pub(super) sent_at: Instant,
    /// Number of the latest transmission, counted over the flow.
    pub(super) number: u64,
    /// Datagrams that the answer is expected to take while it is in flight, and those that have come.
    pub(super) expected: u16,
    pub(super) replies: u16,
    pub(super) received: Bits,
    /// Operations that the server had no room for in its reply.
    pub(super) refused: Bits,
}

impl Slot {
    pub(super) const FREE: Self = Self {
        phase: Phase::Free,
        class: 0,
        exposed: false,
        lost: false,
        attempt: 0,
        seq: 0,
        count: 0,
        limit: u8::MAX,
        adds: false,
        missing: 0,
        len: 0,
        pushed_at: Instant::from_nanos(0),
        sent_at: Instant::from_nanos(0),
        number: 0,
        expected: 0,
        replies: 0,
        received: Bits::NONE,
        refused: Bits::NONE,
    };

    pub(super) const fn writes(&self) -> bool {
        self.class as usize == WRITES
    }
}
