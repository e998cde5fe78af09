//! What a simulated network may do to datagrams, and what it has done.

use std::time::Duration;

/// How badly a network treats datagrams; the shares are probabilities, 0.0..=1.0, each decided for itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Faults {
    /// Share that never arrives.
    pub loss: f64,
    /// Share that arrives a second time, at a time of its own.
    pub duplication: f64,
    /// Share that is held back for up to ten times the longest delay, so that others overtake it.
    pub reordering: f64,
    /// Share of which one bit is flipped.
    pub corruption: f64,
    /// Share that is cut off at a random length, perhaps to nothing.
    pub truncation: f64,
    /// Share of which a copy also reaches a port that it is not for.
    pub misdelivery: f64,
    /// Share of which a copy also arrives in the name of another port.
    pub spoofing: f64,
    /// Share after which a datagram of the past is sent once more: from and to whom it was then, however long ago.
    pub replay: f64,
    /// Shortest and longest time on the way.
    pub delay: (Duration, Duration),
    /// Share that takes longer than that, and by how much at most. All magnitudes of the extra time are alike likely.
    pub tail: (f64, Duration),
    /// Longest datagram that the path carries, in bytes; longer ones vanish without a word.
    pub datagram_len_max: usize,
    /// Size of each port's receive queue in bytes, charged for as the kernel does; what does not fit is dropped.
    pub queue_len: usize,
}

impl Faults {
    /// A network that does nothing wrong and takes 10 µs, with room for 4,096 full datagrams at each port.
    pub const NONE: Self = Self {
        loss: 0.0,
        duplication: 0.0,
        reordering: 0.0,
        corruption: 0.0,
        truncation: 0.0,
        misdelivery: 0.0,
        spoofing: 0.0,
        replay: 0.0,
        delay: (Duration::from_micros(10), Duration::from_micros(10)),
        tail: (0.0, Duration::ZERO),
        datagram_len_max: usize::MAX,
        queue_len: 4_096 * 2_304,
    };
}

/// What a network has done so far, in datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Handed over by ports, or injected.
    pub sent: u64,
    /// Lost.
    pub lost: u64,
    /// Carried twice.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// Damaged in one bit.
    pub corrupted: u64,
    /// Cut off.
    pub truncated: u64,
    /// Copied to a port that they were not for.
    pub misdelivered: u64,
    /// Copied in the name of another port.
    pub spoofed: u64,
    /// Sent once more, long after.
    pub replayed: u64,
    /// Much later than usual.
    pub delayed: u64,
    /// Kept waiting at a link that stood still.
    pub clogged: u64,
    /// Lost because they were too long for the path.
    pub oversized: u64,
    /// Lost because sender and receiver were parted.
    pub parted: u64,
    /// Put into a port's receive queue.
    pub delivered: u64,
    /// Dropped at a full receive queue.
    pub overflowed: u64,
    /// Dropped for want of a port at their address.
    pub undeliverable: u64,
}

/// What became of one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Handed over by its sender.
    Sent,
    /// Lost.
    Lost,
    /// Carried twice.
    Duplicated,
    /// One bit flipped.
    Corrupted,
    /// Cut off.
    Truncated,
    /// A copy is on its way to this other receiver.
    Misdelivered,
    /// A copy is on its way in the name of this other sender.
    Spoofed,
    /// Sent once more, long after.
    Replayed,
    /// Waits at a link that stands still.
    Clogged,
    /// Lost between parted ports.
    Parted,
    /// Too long for the path.
    Oversized,
    /// Put into the receive queue.
    Delivered,
    /// Dropped at the full receive queue.
    Overflowed,
    /// Dropped for want of a port.
    Undeliverable,
}
