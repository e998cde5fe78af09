//! A slot: the number of its last request, and the results of that request if it wrote.

use super::numbers::Number;
use crate::mutants::{Mutant, is_active};
use crate::wire::{Flags, OPERATIONS_MAX, OpResult, Reason, RequestHeader};

const CODE_DONE: u8 = 0;
const CODE_NOT_FOUND: u8 = 1;
const CODE_REASON: u8 = 2;

/// A refusal that tells of the core's epoch, which needs not be kept.
const CODE_MOVED: u8 = 251;

/// Results that come with a number, which is kept beside the slot.
const CODE_NOT_A_NUMBER: u8 = 252;
const CODE_EXISTS: u8 = 253;
const CODE_CHANGED: u8 = 254;
const CODE_SUM: u8 = 255;

/// The last request of one slot, and its results if it wrote.
#[derive(Clone, Debug)]
pub struct Slot {
    last_seq: u32,
    /// Whether the last request may not be executed again. Reads and the pieces of long values may.
    writes: bool,
    /// Whether the last request was answered.
    answered: bool,
    /// Results kept, and those of them that have a number.
    count: u8,
    number_count: u8,
    /// The session's round of credits when the last request was first answered.
    round: u32,
    /// The shard's version before the write.
    base_version: u64,
    /// One result each: [`CODE_DONE`], [`CODE_NOT_FOUND`], above that the reason of a refusal, or from
    /// [`CODE_NOT_A_NUMBER`] on one with a number. Versions of writes follow from the base, because nobody else writes while a
    /// request is executed.
    codes: [u8; OPERATIONS_MAX],
}

// What the text of record says a slot takes.
const _: () = assert!(size_of::<Slot>() == 280);

/// How a request's number stands to its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// Above the last.
    New,
    /// The last, and of the same sort.
    Again,
    /// The last, which was for the other sort of request: no honest client does that.
    Confused,
    /// Below the last, or 0.
    Late,
}

impl Slot {
    pub(super) const EMPTY: Self = Self {
        last_seq: 0,
        writes: false,
        answered: false,
        count: 0,
        number_count: 0,
        round: 0,
        base_version: 0,
        codes: [0; OPERATIONS_MAX],
    };

    #[inline]
    pub(super) fn age(&self, header: &RequestHeader) -> Age {
        let seq = header.seq.get();
        if is_active(Mutant::StaleSeqAccepted) && seq != self.last_seq {
            return Age::New;
        }
        if is_active(Mutant::GapRefused) && seq > self.last_seq + 1 {
            return Age::Late;
        }
        if seq > self.last_seq {
            Age::New
        } else if seq < self.last_seq || seq == 0 {
            Age::Late
        } else if self.writes == writes(header) {
            Age::Again
        } else {
            Age::Confused
        }
    }

    /// Makes a new request the slot's last; what was kept of the one before is forgotten.
    #[inline]
    pub(super) const fn occupy(&mut self, header: &RequestHeader) {
        self.last_seq = header.seq.get();
        self.writes = writes(header);
        self.answered = false;
        self.count = 0;
    }

    /// Whether the last request may not be executed again.
    #[inline]
    pub(super) const fn writes(&self) -> bool {
        self.writes
    }

    /// Forgets the last request, as if it had never come.
    pub fn forget(&mut self) {
        self.last_seq -= 1;
        self.count = 0;
    }

    /// The request is being answered, in this round of its session's credits. Only the first answer counts, because it
    /// may be that which the client hears.
    #[inline]
    pub(super) fn answer(&mut self, header: &RequestHeader, round: u32) {
        if !self.answered && header.seq.get() == self.last_seq {
            self.answered = true;
            self.round = round;
        }
    }

    /// The round in which the last request was first answered, if it was.
    #[inline]
    pub(super) const fn answered_in(&self) -> Option<u32> {
        if self.answered { Some(self.round) } else { None }
    }

    /// Whether what is kept are the results of this request.
    #[inline]
    pub(super) fn has_kept(&self, header: &RequestHeader) -> bool {
        self.writes && self.last_seq == header.seq.get() && self.count > 0
    }

    /// Begins to keep the results of the write that this slot was admitted for, so that a duplicate is answered and not
    /// executed; the shard has had `base_version` writes so far.
    #[inline]
    pub const fn begin(&mut self, base_version: u64) {
        self.base_version = base_version;
        self.count = 0;
        self.number_count = 0;
    }

    /// Results kept.
    pub(super) const fn count(&self) -> usize {
        self.count as usize
    }

    /// Results kept that have a number.
    #[inline]
    pub(super) const fn number_count(&self) -> usize {
        self.number_count as usize
    }

    /// Keeps the next result, which has no number.
    ///
    /// # Panics
    /// When a write cannot have it, or it is the 256th.
    #[inline]
    pub fn keep(&mut self, result: &OpResult<'_>) {
        let code = match result {
            OpResult::Done => CODE_DONE,
            OpResult::NotFound => CODE_NOT_FOUND,
            OpResult::NotExecuted(Reason::Moved { .. }) => CODE_MOVED,
            OpResult::NotExecuted(reason) => u8::try_from(reason.code())
                .ok()
                .and_then(|code| code.checked_add(CODE_REASON))
                .filter(|&code| code < CODE_MOVED)
                .expect("a reason that this version knows"),
            OpResult::Value(_) | OpResult::Long(_) => {
                unreachable!("these have numbers, or are none of writes")
            }
        };
        self.codes[usize::from(self.count)] = code;
        self.count += 1;
    }

    /// Keeps the next result, a sum, whose former number is written to the next of `numbers`.
    pub(super) fn keep_sum(&mut self, former: u64, numbers: &mut [Number]) {
        self.keep_numbered(CODE_SUM, former, numbers);
    }

    /// Keeps the next result, a refusal that tells of the version that the key has.
    pub(super) fn keep_refusal(&mut self, reason: Reason, version: u64, numbers: &mut [Number]) {
        let code = match reason {
            Reason::NotANumber => CODE_NOT_A_NUMBER,
            Reason::Exists => CODE_EXISTS,
            Reason::Changed => CODE_CHANGED,
            reason => unreachable!("no refusal for a version: {reason}"),
        };
        self.keep_numbered(code, version, numbers);
    }

    fn keep_numbered(&mut self, code: u8, number: u64, numbers: &mut [Number]) {
        numbers[usize::from(self.number_count)] = number.to_be_bytes();
        self.number_count += 1;
        self.codes[usize::from(self.count)] = code;
        self.count += 1;
    }

    /// The results kept, each with its version; `epoch` is that of the core's cluster map.
    #[inline]
    pub(super) fn kept<'k>(
        &'k self,
        numbers: &'k [Number],
        epoch: u16,
    ) -> impl Iterator<Item = (OpResult<'k>, u64)> {
        let mut version = self.base_version;
        let mut numbers = numbers.iter();
        let mut number = move || numbers.next().expect("each result that has a number has kept it");
        self.codes[..usize::from(self.count)].iter().map(move |&code| match code {
            CODE_DONE => {
                version += 1;
                (OpResult::Done, version)
            }
            CODE_NOT_FOUND => (OpResult::NotFound, version),
            CODE_SUM => {
                version += 1;
                (OpResult::Value(number()), version)
            }
            CODE_NOT_A_NUMBER => refusal(Reason::NotANumber, number()),
            CODE_EXISTS => refusal(Reason::Exists, number()),
            CODE_CHANGED => refusal(Reason::Changed, number()),
            CODE_MOVED => (OpResult::NotExecuted(Reason::Moved { epoch }), 0),
            reason => (OpResult::NotExecuted(Reason::from_code((reason - CODE_REASON).into())), 0),
        })
    }
}

const fn refusal(reason: Reason, version: &Number) -> (OpResult<'static>, u64) {
    (OpResult::NotExecuted(reason), u64::from_be_bytes(*version))
}

/// Whether a request has effects that may not be repeated.
#[inline]
const fn writes(header: &RequestHeader) -> bool {
    let flags = header.common.flags;
    !flags.contains(Flags::READ_ONLY) && !flags.contains(Flags::TRANSFER)
}
