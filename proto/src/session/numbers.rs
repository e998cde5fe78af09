//! Numbers that results of writes come with: what an add has found, and the version that kept a write from its effect.
//!
//! A slot keeps one byte per result, which does for puts and deletes. Few writes have more to tell, and only their slots
//! get memory for it, no more than their requests need. It stays with the slot until the session ends, so that a client
//! that adds all the time has it allocated once.

use crate::wire::{BODY_LEN_MAX, Flags, result_len};

/// Numbers that the reply to a write has room for: each result of one takes ten bytes at least.
pub(super) const NUMBERS_MAX: usize = BODY_LEN_MAX / (result_len(Flags::NONE) + size_of::<Number>());

/// In network order, as it travels.
pub(super) type Number = [u8; 8];

type OfSlot = Box<[Number]>;

/// The numbers of a session's slots.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// By slot; empty as long as no slot has any.
    slots: Box<[OfSlot]>,
}

impl Numbers {
    /// Room for the numbers of a slot, with those that it keeps.
    pub(super) fn of(&self, slot: usize) -> &[Number] {
        self.slots.get(slot).map_or(&[], |numbers| numbers)
    }

    pub(super) fn of_mut(&mut self, slot: usize) -> &mut [Number] {
        self.slots.get_mut(slot).map_or(&mut [], |numbers| numbers)
    }

    /// Gives one of `slots` slots room for `count` numbers, if that takes no more than `room` bytes.
    pub(super) fn grow(&mut self, slot: usize, slots: usize, count: usize, room: usize) -> bool {
        let table_len = if self.slots.is_empty() { slots * size_of::<OfSlot>() } else { 0 };
        let more_len = count.saturating_sub(self.of(slot).len()) * size_of::<Number>();
        if table_len + more_len > room {
            return false;
        }
        if self.slots.is_empty() {
            self.slots = vec![OfSlot::default(); slots].into_boxed_slice();
        }
        let mut numbers = std::mem::take(&mut self.slots[slot]).into_vec();
        numbers.reserve_exact(count.saturating_sub(numbers.len()));
        numbers.resize(count.max(numbers.len()), Number::default());
        self.slots[slot] = numbers.into_boxed_slice();
        true
    }

    /// Bytes allocated.
    pub(super) fn memory_len(&self) -> usize {
        let numbers: usize = self.slots.iter().map(|numbers| numbers.len()).sum();
        self.slots.len() * size_of::<OfSlot>() + numbers * size_of::<Number>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: memory is taken when it is needed, within the room that there is, and what is kept stays when it grows.
    /// Method: a slot grows by steps; each is refused with a byte less than it takes.
    #[test]
    fn memory_is_taken_as_needed() {
        let mut numbers = Numbers::default();
        assert_eq!((numbers.memory_len(), numbers.of(3)), (0, &[][..]));
        let mut before = 0;
        for (count, more_len) in [(1, 4 * 16 + 8), (1, 0), (5, 4 * 8), (NUMBERS_MAX, (NUMBERS_MAX - 5) * 8)] {
            assert!(more_len == 0 || !numbers.grow(3, 4, count, more_len - 1));
            assert_eq!(numbers.memory_len(), before, "nothing is taken in vain");
            assert!(numbers.grow(3, 4, count, more_len));
            assert_eq!(numbers.memory_len(), before + more_len);
            assert!(numbers.of(3).iter().take(before.min(1)).all(|number| *number == [7; 8]));
            numbers.of_mut(3)[0] = [7; 8];
            before = numbers.memory_len();
        }
        assert!(numbers.of(0).is_empty() && numbers.of_mut(4).is_empty());
    }
}
