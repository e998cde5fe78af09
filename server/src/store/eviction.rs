//! Which items go when a store that may evict needs room.
//!
//! A form of S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023) without queues: the
//! order of the index, which is that of the keys' hashes and so as good as random, takes their place, and two hands go
//! round it. An entry is a newcomer or a resident, and counts its uses up to three; these three bits in its tag are all
//! that the policy keeps.
//!
//! * While more than a tenth of the memory is the newcomers', the first hand goes on to the next newcomers: one that was
//!   used becomes a resident, one that was not goes.
//! * Otherwise the second hand goes on to the next residents, and takes one use from each until it finds one without.
//! * Who goes leaves a ghost, the tag, in a slot that is not in use. A key that comes back while its ghost is there is a
//!   resident at once.
//! * Longer items need more uses to stay, as more others could be in their place.
//!
//! So what is read only once, as in a scan, passes through a tenth of the memory and leaves the rest alone. Nothing but the
//! index is looked at for it, one line after another. Hit ratios: `docs/eviction.md`.

use super::{
    index::{Bucket, Index, Position},
    tags::USES_MASK,
};

/// One part in this many of the memory may be newcomers'.
const NEWCOMER_SHARE: usize = 10;

/// Lines of the index that a hand goes over for one victim; then the least used that it has met goes. Bounds the time of
/// one eviction at some two microseconds.
const LINES_MAX: u32 = 32;

/// What a tag says of an entry's uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Uses(u16);

impl Uses {
    /// A newcomer that has not been used.
    pub(super) const NEWCOMER: Self = Self(0);
    const RESIDENT: Self = Self(0b100);

    const COUNT: u16 = 0b011;

    /// Above those of any resident.
    const NEVER: u16 = 0b1000;

    /// What a resident begins with: so much that it goes at the second hand's first visit, unless it is used before.
    const fn resident(bulk: u16) -> Self {
        Self(Self::RESIDENT.0 | if bulk < 2 { bulk } else { 2 })
    }

    /// What a key begins with that comes back while its ghost is there.
    pub(super) const fn returned(bulk: u16) -> Self {
        if bulk < 2 { Self::resident(bulk) } else { Self::NEWCOMER }
    }

    /// Of three bits.
    pub(super) const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    pub(super) const fn bits(self) -> u16 {
        self.0
    }

    pub(super) const fn is_newcomer(self) -> bool {
        self.0 < Self::RESIDENT.0
    }

    const fn count(self) -> u16 {
        self.0 & Self::COUNT
    }

    /// One use more, as far as they are counted.
    #[inline(always)]
    pub(super) const fn more(self) -> Self {
        if self.count() < Self::COUNT { Self(self.0 + 1) } else { self }
    }

    const fn fewer(self) -> Self {
        if self.count() > 0 { Self(self.0 - 1) } else { self }
    }
}

const _: () = assert!(USES_MASK.count_ones() == 3);

/// Lines without an entry that the hands go over for one victim, in an index that has grown for more keys than there are
/// now. Bounds the time likewise; whoever needs room then has to clear a stretch of memory.
const EMPTY_LINES_MAX: u32 = 2_048;

/// The two hands.
#[derive(Debug, Default)]
pub(super) struct Hands {
    newcomers: Position,
    residents: Position,
}

impl Hands {
    /// The entry that goes next; `None` if there is none, or none near.
    pub(super) fn victim(&mut self, index: &mut Index, lines: &mut [Bucket]) -> Option<Position> {
        if index.entry_count() == 0 {
            return None;
        }
        let (mut left, mut empty_left) = (LINES_MAX, EMPTY_LINES_MAX);
        while left > 0 && empty_left > 0 && index.newcomers_exceed(NEWCOMER_SHARE) {
            let Some(entry) = index.entry_if_any(lines, self.newcomers) else {
                let spent = if self.newcomers.slot == 0 { &mut empty_left } else { &mut left };
                *spent -= 1;
                index.next_line(&mut self.newcomers);
                continue;
            };
            if entry.uses() == Uses::NEWCOMER {
                // Another entry takes its slot, to be looked at next.
                return Some(self.newcomers);
            }
            if entry.uses().is_newcomer() {
                index.set_uses(lines, self.newcomers, Uses::resident(index.bulk(entry)));
            }
            self.newcomers.slot += 1;
        }
        let mut least: Option<(Uses, Position)> = None;
        let (mut left, mut empty_left) = (LINES_MAX, EMPTY_LINES_MAX);
        while left > 0 && empty_left > 0 {
            let place = self.residents;
            let Some(entry) = index.entry_if_any(lines, place) else {
                let spent = if place.slot == 0 { &mut empty_left } else { &mut left };
                *spent -= 1;
                index.next_line(&mut self.residents);
                continue;
            };
            let mut uses = entry.uses();
            if uses.is_newcomer() {
                // It goes only if nobody else is there.
                uses = Uses(Uses::NEVER);
            } else if uses.count() <= index.bulk(entry) {
                return Some(place);
            } else {
                uses = uses.fewer();
                index.set_uses(lines, place, uses);
            }
            if least.is_none_or(|(least, _)| uses.bits() < least.bits()) {
                least = Some((uses, place));
            }
            self.residents.slot += 1;
        }
        least.map(|(_, place)| place)
    }
}
