//! Deliberate faults, to prove that the checks find real ones.
//!
//! A build with the feature `mutants` can be told to make one of these mistakes; the simulator and the live checker must
//! then complain. Without the feature, which no release has, [`is_active`] is `false` at compile time and nothing of a
//! mutant is left in the program.

use std::str::FromStr;

macro_rules! mutants {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// A mistake that somebody could make.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Mutant { $($(#[doc = $doc])+ $variant,)+ }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Name on command lines and in results.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

mutants! {
    /// Server: a write that comes again is executed again.
    NoDedup = "no_dedup",
    /// Server: a write all of which was refused leaves no trace in its slot, so that a late duplicate is executed.
    RefusalNotRecorded = "refusal_not_recorded",
    /// Server: a number below the slot's last counts as new.
    StaleSeqAccepted = "stale_seq_accepted",
    /// Server: a number that leaves a gap behind the slot's last is dropped.
    GapRefused = "gap_refused",
    /// Server: a request of an unknown session makes one.
    ImplicitSession = "implicit_session",
    /// Server: the token of a session is that of every other in its place.
    SessionIdReuse = "session_id_reuse",
    /// Server: a session whose lease has run out goes on with empty slots.
    LeaseForgetsSlots = "lease_forgets_slots",
    /// Server: a cookie is good for any address.
    CookieNotBound = "cookie_not_bound",
    /// Both: a long value is committed before all pieces are known to be there, and without a look at whether they are.
    PartialCommit = "partial_commit",
    /// Server: a range is read of whatever version there is.
    RangeOfAnyVersion = "range_of_any_version",
    /// Server: a put that replaces a value keeps its version.
    VersionKept = "version_kept",
    /// Server: a write that comes again is executed again if it has an add.
    AddRepeated = "add_repeated",
    /// Server: a put on terms does not look at its condition.
    ConditionIgnored = "condition_ignored",
    /// Server: now and then a put is acknowledged and not stored.
    LostWrite = "lost_write",
    /// Both: checksums are not looked at.
    ChecksumIgnored = "checksum_ignored",
    /// Client: more requests are in flight than the server has credited.
    CreditIgnored = "credit_ignored",
    /// Client: the first datagram of a reply counts as all of it.
    PartialReplyWhole = "partial_reply_whole",
    /// Client: an answer to an earlier request of the slot counts as that to the present one.
    StaleReplyAccepted = "stale_reply_accepted",
    /// Client: a write that is sent again gets a new number.
    RetransmitRenumbered = "retransmit_renumbered",
    /// Client: writes in flight when the session is lost are sent again in the next one.
    WriteRetriedInNewSession = "write_retried_in_new_session",
    /// Client: a write that was sent and given up counts as not executed.
    UnknownIsNotExecuted = "unknown_is_not_executed",
    /// Client: a get joins an equal one that was sent already, and ends with an answer that may be older than itself.
    CoalesceInFlight = "coalesce_in_flight",
    /// Client: nothing is ever sent again.
    NoRetransmission = "no_retransmission",
}

impl FromStr for Mutant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.iter().copied().find(|mutant| mutant.name() == text);
        named.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|mutant| mutant.name()).collect();
            format!("`{text}` is no mutant: give one of {}", names.join(", "))
        })
    }
}

/// Whether this mistake is to be made.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[must_use]
pub const fn is_active(_mutant: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use chosen::{activate, is_active};

#[cfg(feature = "mutants")]
mod chosen {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Mutant;

    const NONE: u8 = u8::MAX;

    static ACTIVE: AtomicU8 = AtomicU8::new(NONE);

    /// Has this process make one mistake from now on, or none.
    pub fn activate(mutant: Option<Mutant>) {
        ACTIVE.store(mutant.map_or(NONE, |mutant| mutant as u8), Ordering::Relaxed);
    }

    /// Whether this mistake is to be made.
    #[inline]
    #[must_use]
    pub fn is_active(mutant: Mutant) -> bool {
        ACTIVE.load(Ordering::Relaxed) == mutant as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_differ() {
        for (index, &mutant) in Mutant::ALL.iter().enumerate() {
            assert_eq!(mutant.name().parse(), Ok(mutant));
            assert!(Mutant::ALL[..index].iter().all(|other| other.name() != mutant.name()));
            assert!(!is_active(mutant));
        }
        assert!("typo".parse::<Mutant>().unwrap_err().contains("no_dedup, "));
    }
}
