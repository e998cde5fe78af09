//! What a flow is told, and what it tells: configuration, outcomes, errors, counters.

use std::{num::NonZeroU32, time::Duration};

use crate::wire::{KEY_LEN_MAX, Nonce, Reason, VALUE_LEN_MAX};

/// What a flow is told at its start.
#[derive(Clone, Copy, Debug)]
pub struct FlowConfig {
    /// Slots to ask for, 1..=256: requests that can be in flight.
    pub window: u16,
    /// Operations per request, 1..=255.
    pub operations_max: u8,
    /// Whether to ask for checksums even where the server would do without (loopback).
    pub checksum: bool,
    /// Whether to ask for the versions of keys.
    pub versions: bool,
    /// Whether to ask for the time that keys have left to live.
    pub lifetimes: bool,
    /// Least time before a request is sent again: 200 µs for a client that spins, 1 ms for one that sleeps.
    pub rto_floor: Duration,
    /// Time after which an operation is given up.
    pub timeout: Duration,
    /// Full datagrams that the port's receive queue has room for: no more answers than fit are asked for at a time.
    pub reply_datagrams_max: usize,
    /// Number of the core that this flow is meant for, if it is known: another one's session is not taken.
    pub core: Option<u8>,
    /// Epoch of the cluster map that chose this core.
    pub epoch: u16,
    /// The nonce of the first handshake; the jitter of the timers grows out of it too. The client's id is random, or
    /// chosen to be the same whenever the client starts: then the generation is higher at each start.
    pub seed: Nonce,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// A get found this value, lent until the sink returns. An add found this number, eight bytes in network order, and has
    /// added to it, once.
    Value(&'a [u8]),
    /// A get or delete found no such key, or a put that was to replace a value did.
    NotFound,
    /// A put or delete took effect, once.
    Done,
    /// It had no effect and never will.
    NotExecuted(Reason),
    /// A write was sent and not answered: it may have taken effect, once, or not.
    OutcomeUnknown,
}

/// The end of an operation, as sinks are told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended<'a> {
    /// As given with the operation.
    pub tag: u64,
    /// What became of it.
    pub outcome: Outcome<'a>,
    /// If versions were asked for: of a found value, the version that its put was given; of an effective write, its own;
    /// of an absent key, the shard's at that moment; of a key that kept a write from its effect, as of a get then. A shard's
    /// versions count its effective writes. Otherwise 0.
    pub version: u64,
    /// If lifetimes were asked for: milliseconds that a found value has left to live, up to 9 less than is true; `None` if it does not
    /// expire.
    pub ttl_ms: Option<NonZeroU32>,
    /// Epoch of the data that it concerns. After an unknown outcome, the newest that is known: another one than before
    /// says that the server has lost its data since.
    pub data_epoch: u64,
}

/// Why an operation was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// All slots are in use: poll, then push again.
    #[error("all slots are in use")]
    Full,
    /// The key's length.
    #[error("key of {0} bytes: a key has 1..={KEY_LEN_MAX} bytes")]
    KeyLen(usize),
    /// The value's length.
    #[error("value of {0} bytes: a value has 0..={VALUE_LEN_MAX} bytes")]
    ValueLen(usize),
    /// A put on condition of a version that no value has.
    #[error(
        "version 0: a value has a version of 1 or above; ask for an absent key, if none shall be replaced"
    )]
    NoVersion,
}

/// What the server said of itself when it opened the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// Random number of the server's present run.
    pub boot_id: u64,
    /// Changes whenever the contents of the store are lost.
    pub data_epoch: u64,
    /// UDP and TCP port of core 0.
    pub base_port: u16,
    /// Cores of the node.
    pub cores: u8,
    /// The core that this flow talks to.
    pub core: u8,
    /// Epoch of the server's cluster map; 0 when it is alone.
    pub epoch: u16,
    /// Digest of the server's cluster map.
    pub map_digest: u64,
    /// Id of the server's node in it.
    pub node_id: u64,
    /// Slots granted.
    pub window: u16,
    /// Whether datagrams carry a checksum.
    pub checksum: bool,
    /// Longest datagram that the path carries in both directions, in bytes.
    pub datagram_len: usize,
    /// Time without a word after which the server ends the session.
    pub lease: Duration,
}

/// Totals of one flow since its start, in datagrams unless named otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounters {
    /// Requests sent for the first time.
    pub requests: u64,
    /// Requests sent again, whole or in part.
    pub retransmits: u64,
    /// Of these, before their timeout because later requests were answered.
    pub early_retransmits: u64,
    /// Replies taken.
    pub replies: u64,
    /// Sessions opened.
    pub sessions: u64,
    /// Operations refused because their key has [moved](Reason::Moved).
    pub moved: u64,
}

impl FlowCounters {
    /// What was counted since an earlier reading.
    #[must_use]
    pub const fn minus(self, earlier: Self) -> Self {
        Self {
            requests: self.requests - earlier.requests,
            retransmits: self.retransmits - earlier.retransmits,
            early_retransmits: self.early_retransmits - earlier.early_retransmits,
            replies: self.replies - earlier.replies,
            sessions: self.sessions - earlier.sessions,
            moved: self.moved - earlier.moved,
        }
    }

    /// The sum of two flows' totals.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            retransmits: self.retransmits + other.retransmits,
            early_retransmits: self.early_retransmits + other.early_retransmits,
            replies: self.replies + other.replies,
            sessions: self.sessions + other.sessions,
            moved: self.moved + other.moved,
        }
    }
}
