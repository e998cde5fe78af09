//! The counters that a core tells its clients: an array of numbers in a fixed order that only ever grows at its end.
//!
//! Nothing arrives without a trace: at rest, the datagrams received are the requests executed, replayed and refused, the
//! controls, and those dropped for any reason.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be};

use crate::wire::{Common, DATAGRAM_LEN_MAX, TRAILER_LEN_MAX};

macro_rules! statistics {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// One counter or gauge of a core; the number is its place in [`Statistics`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Statistic { $($(#[$doc])+ $variant,)+ }

        /// Names in the order of [`Statistics`]: lower case, unit last.
        pub const STAT_NAMES: &[&str] = &[$($name,)+];
    };
}

statistics! {
    /// Gets executed; ranges are not counted.
    Gets = "gets",
    /// Gets that found their key.
    Hits = "hits",
    /// Puts and commits executed.
    Puts = "puts",
    /// Deletes executed.
    Deletes = "deletes",
    /// Operations refused because the memory was full.
    NoSpace = "no_space",
    /// Operations refused because another core owns their key.
    WrongCore = "wrong_core",
    /// Requests executed.
    Requests = "requests",
    /// Writes answered again from their slot.
    Replays = "replays",
    /// Sessions open now.
    Sessions = "sessions",
    /// Sessions opened so far.
    SessionsOpened = "sessions_opened",
    /// Requests for a session refused so far.
    SessionsRefused = "sessions_refused",
    /// Keys stored now.
    Records = "records",
    /// Bytes of items now, headers and rounding included.
    ItemsBytes = "items_bytes",
    /// Bytes of the index now.
    IndexBytes = "index_bytes",
    /// Bytes of the session slots now.
    SessionsBytes = "sessions_bytes",
    /// Cap of index and items in bytes.
    MemoryBytes = "memory_bytes",
    /// CPU time of the core's thread in nanoseconds.
    CpuNs = "cpu_ns",
    /// Resident memory of the whole server process in bytes.
    RssBytes = "rss_bytes",
    /// Nanoseconds since the server's start.
    UptimeNs = "uptime_ns",
    /// Datagrams received.
    RxDatagrams = "rx_datagrams",
    /// Bytes received.
    RxBytes = "rx_bytes",
    /// Trains received.
    RxTrains = "rx_trains",
    /// Datagrams cut off by a buffer.
    RxTruncated = "rx_truncated",
    /// Datagrams that the kernel dropped at a full receive queue.
    RxOverflowDrops = "rx_overflow_drops",
    /// Datagrams sent.
    TxDatagrams = "tx_datagrams",
    /// Bytes sent.
    TxBytes = "tx_bytes",
    /// Trains sent.
    TxTrains = "tx_trains",
    /// Datagrams that could not be sent.
    TxDropped = "tx_dropped",
    /// System-call errors survived.
    SoftErrors = "soft_errors",
    /// Connections accepted.
    ConnectionsOpened = "connections_opened",
    /// Connections turned away.
    ConnectionsRefused = "connections_refused",
    /// Connections closed for broken framing or slowness.
    ConnectionsDropped = "connections_dropped",
    /// Dropped: shorter than its kind's layout.
    DropTruncated = "drop_truncated",
    /// Dropped: longer than the largest datagram, of the protocol or of its session.
    DropOversized = "drop_oversized",
    /// Dropped: unknown version.
    DropVersion = "drop_version",
    /// Dropped: unknown kind.
    DropKind = "drop_kind",
    /// Dropped: checksum wrong or absent.
    DropChecksum = "drop_checksum",
    /// Dropped: does not parse.
    DropMalformed = "drop_malformed",
    /// Dropped: unknown session or token.
    DropUnknownSession = "drop_unknown_session",
    /// Dropped: session of another address, or one without checksums named from elsewhere.
    DropWrongPeer = "drop_wrong_peer",
    /// Dropped: slot outside the window.
    DropSlot = "drop_slot",
    /// Dropped: late duplicate.
    DropStale = "drop_stale",
    /// Dropped: bad cookie.
    DropCookie = "drop_cookie",
    /// Dropped: nobody asked.
    DropUnexpected = "drop_unexpected",
    /// Dropped: no room for the answer.
    DropNoRoom = "drop_no_room",
    /// Dropped: handshakes beyond the budget.
    DropBudget = "drop_budget",
    /// The shard's version: writes that took effect so far.
    Version = "version",
    /// Sessions ended because their client opened a newer one.
    SessionsFenced = "sessions_fenced",
    /// Bytes of long values that are being received now.
    StagedBytes = "staged_bytes",
    /// Requests refused because another core owns a key of theirs.
    RequestsRefused = "requests_refused",
    /// Datagrams other than requests that were understood: handshakes, pings, questions for statistics, goodbyes.
    Controls = "controls",
    /// Frames whose headers do not parse (`packet` and `xdp`).
    RxBadFrames = "rx_bad_frames",
    /// Frames with a wrong IPv4 or UDP checksum.
    RxBadChecksums = "rx_bad_checksums",
    /// Fragments of IPv4 datagrams, left to the kernel.
    RxFragments = "rx_fragments",
    /// Frames with a VLAN tag, left to the kernel.
    RxVlan = "rx_vlan",
    /// IPv6 datagrams to the core's port, left to the kernel.
    RxIpv6 = "rx_ipv6",
    /// Datagrams to the core's port at another Ethernet or IP address, left to the kernel.
    RxWrongDestination = "rx_wrong_destination",
    /// Datagrams that arrived at another core's queue and were handed over.
    RxHandedOver = "rx_handed_over",
    /// Datagrams for another core that could not be handed over.
    RxHandoverDrops = "rx_handover_drops",
    /// Adds executed.
    Adds = "adds",
    /// Puts, commits and adds that had no effect because of what their key held, or did not hold.
    ConditionsFailed = "conditions_failed",
    /// Keys removed because their time had come.
    Expired = "expired",
    /// Keys removed to make room.
    Evicted = "evicted",
    /// Bytes of the whole server process that are resident in huge pages.
    HugePageBytes = "huge_page_bytes",
    /// Bytes of the memory of this core's ports.
    BuffersBytes = "buffers_bytes",
    /// This core's share of all memory that the server may take, in bytes.
    MemoryLimitBytes = "memory_limit_bytes",
    /// Operations refused because another node owns their key, or the client's cluster map is of another epoch.
    Moved = "moved",
}

/// Number of statistics.
pub const STAT_COUNT: usize = STAT_NAMES.len();

/// Server → client: the counters of one core. A longer array comes from a newer server: what is beyond is ignored.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Statistics {
    /// Kind; session and token as in the question.
    pub common: Common,
    /// As in the question.
    pub echo: be::U64,
    /// In the order of [`STAT_NAMES`].
    pub values: [be::U64; STAT_COUNT],
}

const _: () = assert!(size_of::<Statistics>() + TRAILER_LEN_MAX <= DATAGRAM_LEN_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drops::DropReason;

    /// Goal: scripts and older clients find each number where it was. Method: literal places, and the drop reasons in
    /// their own order in one piece.
    #[test]
    fn places_are_golden() {
        assert_eq!(STAT_COUNT, 67);
        assert_eq!(STAT_NAMES[Statistic::Gets as usize], "gets");
        assert_eq!(STAT_NAMES[8], "sessions");
        assert_eq!(STAT_NAMES[23], "rx_overflow_drops");
        assert_eq!(STAT_NAMES[59..61], ["adds", "conditions_failed"]);
        assert_eq!(STAT_NAMES[65..], ["memory_limit_bytes", "moved"]);
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            let name = STAT_NAMES[Statistic::DropTruncated as usize + index];
            assert_eq!(name.strip_prefix("drop_"), Some(reason.name()));
        }
        assert_eq!(std::mem::offset_of!(Statistics, values), 24);
    }
}
