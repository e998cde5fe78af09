//! From operations, and from the steps of long values, to requests.

use super::{
    Flow,
    slot::{PARTS, Phase, RANGES, READS, Slot, WRITES},
    transfer::{PieceLens, Step},
    types::PushError,
};
use crate::{
    session::part_len,
    time::Instant,
    wire::{Flags, Operation, RequestHeader, TRAILER_LEN_MAX, Terms, result_len},
};

/// Long values on their way beyond which nothing else is taken.
const TRANSFERS_MAX: usize = 1_024;

impl Flow {
    /// Takes a put whose value does not fit a datagram.
    #[cold]
    #[inline(never)]
    pub(super) fn push_long(
        &mut self,
        now: Instant,
        key: &[u8],
        value: &[u8],
        terms: Terms,
        tag: u64,
    ) -> Result<(), PushError> {
        if !self.is_open() || !self.transfers.has_room_for_put(value.len()) {
            return Err(PushError::Full);
        }
        self.transfers.begin_put(now, tag, key, value, terms);
        Ok(())
    }

    /// Writes what the transfers have to send into requests, as far as there are slots.
    pub(super) fn pump_transfers(&mut self, now: Instant) {
        let lens = self.piece_lens();
        let mut transfers = std::mem::take(&mut self.transfers);
        transfers.pump(now, lens, |pushed_at, step| self.push_step(pushed_at, step));
        self.transfers = transfers;
        self.close(RANGES);
        self.close(PARTS);
    }

    /// Writes a step of a transfer into a request; `false` when there is no slot for it.
    pub(super) fn push_step(&mut self, pushed_at: Instant, step: Step<'_>) -> bool {
        let (class, len) = match &step {
            Step::Range(range, _) => (RANGES, range.wire_len()),
            Step::Piece(piece, _) => (PARTS, piece.wire_len()),
            Step::Commit(key, number, terms, _) => {
                (WRITES, Operation::commit(*key, *number, *terms).wire_len())
            }
        };
        let index = match self.filling[class] {
            Some(index) if usize::from(self.slots[index as usize].len) + len <= self.full_len => index,
            _ => match self.begin(pushed_at, class) {
                Some(index) => index,
                None => return false,
            },
        };
        let slot = &mut self.slots[index as usize];
        let out = &mut self.bytes[index as usize][usize::from(slot.len)..];
        let (written, tag) = match step {
            Step::Range(range, tag) => (range.write(out), tag),
            Step::Piece(piece, tag) => (piece.write(out), tag),
            Step::Commit(key, number, terms, tag) => (Operation::commit(key, number, terms).write(out), tag),
        };
        debug_assert_eq!(written, Some(len), "room was checked above");
        self.tags[index as usize][slot.count as usize] = tag;
        slot.len += len as u16;
        slot.count += 1;
        if slot.count == slot.limit {
            self.close(class);
        }
        true
    }

    /// Pieces that fill a datagram of this session.
    pub(super) fn piece_lens(&self) -> PieceLens {
        let body_len = self.full_len - size_of::<RequestHeader>();
        let datagram_len = self.full_len + TRAILER_LEN_MAX;
        let range = body_len - result_len(self.extras(RANGES));
        PieceLens { range, part: part_len(datagram_len) }
    }

    /// Flags of what the results of a request are to tell. Only reads have to do with times to live.
    #[inline]
    pub(super) const fn extras(&self, class: usize) -> Flags {
        let reads = matches!(class, READS | RANGES);
        Flags::VERSIONS.when(self.config.versions).with(Flags::LIFETIMES.when(self.config.lifetimes && reads))
    }

    /// Closes the request of writes that is being filled, if with an add in it its results might not fit one datagram.
    #[cold]
    pub(super) fn make_room_for_add(&mut self) {
        if let Some(index) = self.filling[WRITES]
            && self.slots[index as usize].count >= self.operations_max_with_adds
        {
            self.close(WRITES);
        }
    }

    /// Begins a request of the caller's operations. While long values are on their way, some slots are kept for them: a
    /// caller who refills every slot at once would otherwise never let them go on.
    #[inline(never)]
    pub(super) fn begin_for_caller(&mut self, now: Instant, class: usize) -> Option<u8> {
        if !self.transfers.is_empty() {
            let kept = usize::from(self.window / 4).max(1);
            if self.free.len() <= kept || self.transfers.count() >= TRANSFERS_MAX {
                return None;
            }
        }
        self.begin(now, class)
    }

    /// Closes what is being filled and begins the next request.
    #[inline(never)]
    pub(super) fn begin(&mut self, now: Instant, class: usize) -> Option<u8> {
        self.close(class);
        let index = self.free.pop()?;
        let slot = &mut self.slots[index as usize];
        *slot = Slot {
            phase: Phase::Filling,
            class: class as u8,
            limit: self.operations_max[class],
            seq: slot.seq,
            len: size_of::<RequestHeader>() as u16,
            pushed_at: now,
            ..Slot::FREE
        };
        self.filling[class] = Some(index);
        if class == READS {
            self.latest_gets = (index, self.latest_gets.1 + 1);
        }
        Some(index)
    }

    pub(super) fn close(&mut self, class: usize) {
        if let Some(index) = self.filling[class].take() {
            let slot = &mut self.slots[index as usize];
            slot.phase = Phase::Ready;
            slot.missing = slot.count;
            self.ready[class].push_back(index);
        }
    }
}
