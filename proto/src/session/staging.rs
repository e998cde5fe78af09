//! Long values on their way in: pieces that arrive in any order, more than once, until the value is whole.
//!
//! Nothing here has an effect on the store. A transfer has a number that the client counts up, begins with the length of
//! its value, takes pieces, and is taken out whole by the request that stores it. A repeated piece or beginning is
//! simply done again. What is never completed is forgotten, so that a client can not fill the memory and go.

use std::time::Duration;

use crate::{
    mutants::{Mutant, is_active},
    time::Instant,
    wire::{DATAGRAM_LEN_MIN, PART_HEADER_LEN, Reason, RequestHeader, TRAILER_LEN_MAX, VALUE_LEN_MAX},
};

/// Pieces begin at multiples of this many bytes, and all but the last are as long as a multiple of it: so the server need
/// not know how long a client's pieces are, and keeps one bit per so many bytes.
pub const PART_UNIT: usize = 64;

/// Transfers of one session at a time.
pub const TRANSFERS_MAX: usize = 16;

/// Bytes that the values of one session's transfers have together: four of the longest.
pub const STAGED_LEN_MAX: usize = 4 * VALUE_LEN_MAX;

/// A transfer is forgotten when nothing of it has come for so long: longer than a client's longest timeout, and shorter
/// than what callers usually wait for an operation, so that what one has given up does not keep the next one out.
pub const TRANSFER_IDLE_MAX: Duration = Duration::from_secs(3);

/// Bytes of a value that a request of one piece carries when datagrams have `datagram_len` bytes: 1,408 of 1,472.
///
/// # Panics
/// When no session has datagrams so short.
#[must_use]
pub const fn part_len(datagram_len: usize) -> usize {
    assert!(datagram_len >= DATAGRAM_LEN_MIN, "no session has datagrams so short");
    let room = datagram_len - size_of::<RequestHeader>() - TRAILER_LEN_MAX - PART_HEADER_LEN;
    room / PART_UNIT * PART_UNIT
}

/// Memory that all transfers of a core have together.
#[derive(Clone, Copy, Debug)]
pub(super) struct StagingMemory {
    len: usize,
    len_max: usize,
}

impl StagingMemory {
    pub(super) const fn new(len_max: usize) -> Self {
        Self { len: 0, len_max }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// What one source may have of it: half, and in any case one value. All programs of the server's own machine are one
    /// source, which may have all.
    pub(super) fn share(&self, is_loopback: bool) -> usize {
        if is_loopback { self.len_max } else { (self.len_max / 2).max(charge(VALUE_LEN_MAX)) }
    }
}

/// The transfers of one session.
#[derive(Debug, Default)]
pub(super) struct Staging {
    transfers: Vec<Transfer>,
    /// The last number begun; those not above it that are not here are over.
    last: Option<u32>,
}

#[derive(Debug)]
struct Transfer {
    number: u32,
    bytes: Box<[u8]>,
    /// One bit per unit, set when it is here.
    here: Box<[u64]>,
    units_missing: usize,
    touched_at: Instant,
}

impl Staging {
    pub(super) fn begin(
        &mut self,
        now: Instant,
        number: u32,
        len: u32,
        room: usize,
        memory: &mut StagingMemory,
    ) -> Result<(), Reason> {
        let len = len as usize;
        if let Some(transfer) = self.transfers.iter_mut().find(|transfer| transfer.number == number) {
            transfer.touched_at = now;
            return if transfer.bytes.len() == len { Ok(()) } else { Err(Reason::NotStaged) };
        }
        // Numbers may wrap (RFC 1982): at some ten thousand transfers a second that takes days, and sessions last longer.
        let is_new = number > 0 && self.last.is_none_or(|last| number.wrapping_sub(last).cast_signed() > 0);
        if !is_new || len == 0 || len > VALUE_LEN_MAX {
            return Err(Reason::NotStaged);
        }
        let staged_len: usize = self.transfers.iter().map(|transfer| transfer.bytes.len()).sum();
        if self.transfers.len() == TRANSFERS_MAX
            || staged_len + len > STAGED_LEN_MAX
            || charge(len) > room
            || memory.len + charge(len) > memory.len_max
        {
            return Err(Reason::StagingFull);
        }
        memory.len += charge(len);
        self.last = Some(number);
        self.transfers.push(Transfer {
            number,
            bytes: vec![0; len].into_boxed_slice(),
            here: vec![0; words(len)].into_boxed_slice(),
            units_missing: len.div_ceil(PART_UNIT),
            touched_at: now,
        });
        Ok(())
    }

    pub(super) fn part(
        &mut self,
        now: Instant,
        number: u32,
        offset: u32,
        bytes: &[u8],
    ) -> Result<(), Reason> {
        let transfer = self.transfers.iter_mut().find(|transfer| transfer.number == number);
        let transfer = transfer.ok_or(Reason::NotStaged)?;
        let start = offset as usize;
        let end = start + bytes.len();
        let is_last = end == transfer.bytes.len();
        if bytes.is_empty()
            || !start.is_multiple_of(PART_UNIT)
            || !(is_last || bytes.len().is_multiple_of(PART_UNIT))
        {
            return Err(Reason::NotStaged);
        }
        transfer.bytes.get_mut(start..end).ok_or(Reason::NotStaged)?.copy_from_slice(bytes);
        transfer.touched_at = now;
        for unit in start / PART_UNIT..end.div_ceil(PART_UNIT) {
            let (word, bit) = (&mut transfer.here[unit / 64], 1 << (unit % 64));
            transfer.units_missing -= usize::from(*word & bit == 0);
            *word |= bit;
        }
        Ok(())
    }

    /// Takes a transfer out when all of it is here.
    pub(super) fn take(&mut self, number: u32, memory: &mut StagingMemory) -> Option<Box<[u8]>> {
        let enough = |transfer: &Transfer| transfer.units_missing == 0 || is_active(Mutant::PartialCommit);
        let whole = |transfer: &Transfer| transfer.number == number && enough(transfer);
        let index = self.transfers.iter().position(whole)?;
        let transfer = self.transfers.swap_remove(index);
        memory.len -= charge(transfer.bytes.len());
        self.tidy();
        Some(transfer.bytes)
    }

    /// Forgets transfers of which nothing has come for long.
    pub(super) fn expire(&mut self, now: Instant, memory: &mut StagingMemory) {
        self.transfers.retain(|transfer| {
            let keep = now.since(transfer.touched_at) <= TRANSFER_IDLE_MAX;
            if !keep {
                memory.len -= charge(transfer.bytes.len());
            }
            keep
        });
        self.tidy();
    }

    /// Forgets all.
    pub(super) fn clear(&mut self, memory: &mut StagingMemory) {
        memory.len -= self.transfers.drain(..).map(|transfer| charge(transfer.bytes.len())).sum::<usize>();
        self.tidy();
    }

    /// Gives back the room of transfers that are over: what sessions have once used must not add up.
    fn tidy(&mut self) {
        self.transfers.shrink_to(if self.transfers.is_empty() { 0 } else { LIST_MIN });
    }
}

/// Places that a list has from its first transfer on; then it doubles.
const LIST_MIN: usize = 4;

/// Memory that a transfer of `len` bytes takes; alone in its list, it has all of the list's first places.
const fn charge(len: usize) -> usize {
    len + 8 * words(len) + LIST_MIN * size_of::<Transfer>()
}

/// Words of one bit per unit.
const fn words(len: usize) -> usize {
    len.div_ceil(64 * PART_UNIT)
}
