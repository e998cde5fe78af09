//! Why a datagram was dropped, counted by reason.

/// Why a datagram had no effect. Bytes from the network are never worth more than one of these counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DropReason {
    /// Shorter than its kind's layout.
    Truncated,
    /// Longer than the largest datagram of the protocol.
    Oversized,
    /// Of a protocol version that is not spoken here.
    Version,
    /// Of a kind that does not exist or goes the other way.
    Kind,
    /// Checksum wrong, or absent where the session wants one.
    Checksum,
    /// Operations or results that do not parse: length, opcode, or reads and writes mixed.
    Malformed,
    /// Names a session that does not exist, or not with this token.
    UnknownSession,
    /// Names a session that belongs to another address.
    WrongPeer,
    /// Slot at or above the session's window.
    Slot,
    /// Sequence number below the slot's last: a late duplicate.
    Stale,
    /// A cookie that is wrong, too old, or for another address.
    Cookie,
    /// Nothing waits for this answer (any more).
    Unexpected,
    /// No room for the answer: slow readers hold all of it.
    NoRoom,
    /// More handshakes than are answered per second, of one source or of all.
    Budget,
}

/// Number of reasons.
const COUNT: usize = DropReason::ALL.len();

impl DropReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 14] = [
        Self::Truncated,
        Self::Oversized,
        Self::Version,
        Self::Kind,
        Self::Checksum,
        Self::Malformed,
        Self::UnknownSession,
        Self::WrongPeer,
        Self::Slot,
        Self::Stale,
        Self::Cookie,
        Self::Unexpected,
        Self::NoRoom,
        Self::Budget,
    ];

    /// Name in statistics: lower case, words joined by `_`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Oversized => "oversized",
            Self::Version => "version",
            Self::Kind => "kind",
            Self::Checksum => "checksum",
            Self::Malformed => "malformed",
            Self::UnknownSession => "unknown_session",
            Self::WrongPeer => "wrong_peer",
            Self::Slot => "slot",
            Self::Stale => "stale",
            Self::Cookie => "cookie",
            Self::Unexpected => "unexpected",
            Self::NoRoom => "no_room",
            Self::Budget => "budget",
        }
    }
}

/// Dropped datagrams by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops([u64; COUNT]);

impl Drops {
    /// Counts one datagram.
    #[inline]
    pub const fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(std::array::from_fn(|reason| self.0[reason] + other.0[reason]))
    }

    /// What was counted since an earlier reading.
    #[must_use]
    pub fn minus(self, earlier: Self) -> Self {
        Self(std::array::from_fn(|reason| self.0[reason].wrapping_sub(earlier.0[reason])))
    }

    /// Datagrams dropped for `reason`.
    #[must_use]
    pub const fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Datagrams dropped for any reason.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter_and_name() {
        let mut drops = Drops::default();
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert!(DropReason::ALL[..index].iter().all(|other| other.name() != reason.name()));
            drops.count(reason);
            assert_eq!(drops.of(reason), 1);
        }
        assert_eq!(drops.total(), 14);
    }
}
