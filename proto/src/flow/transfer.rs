//! Long values on their way: asked for range by range, or sent part by part and then committed.
//!
//! ```text
//! get   Ask ──▶ Ranges ──▶ ended          put   Begin ──▶ Parts ──▶ Commit ──▶ a write like any other
//!        ▲         │ changed                      ▲         │ not staged
//!        └─────────┘                              └─────────┘
//! ```
//! A get reads one version: when the value is replaced meanwhile, it begins again. A put has no effect before its commit, so
//! that everything before may be repeated and given up at will.

use std::{collections::VecDeque, num::NonZeroU32, time::Duration};

use crate::{
    flow::{Ended, Outcome},
    key::Key,
    mutants::{Mutant, is_active},
    time::Instant,
    wire::{LongValue, Meta, OpResult, Piece, Range, Reason, Terms, VALUE_LEN_MAX},
};

/// Transfers that are worked on at a time; others wait without a buffer.
const ACTIVE_MAX: usize = 16;

/// Puts waiting and under way, and the bytes of their values, both as many as a server stages for a session.
const PUTS_MAX: usize = 16;
const PUTS_LEN_MAX: usize = 4 << 20;

/// How often a get begins again because the value was replaced.
const RESTARTS_MAX: u32 = 16;

/// Time until a server that had no room for a put is asked again.
const STAGING_RETRY: Duration = Duration::from_millis(2);

/// Stands for the question before the pieces, where otherwise the offset of a piece stands.
const QUESTION: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A get asks whether the value is (still) long, and of which version.
    Ask {
        asked: bool,
    },
    Ranges,
    /// A put asks for room.
    Begin {
        asked: bool,
        /// Whether the server had no room when it was last asked.
        refused: bool,
        not_before: Instant,
    },
    Parts,
    /// All parts are there.
    Commit {
        written: bool,
    },
}

impl State {
    const fn is_put(self) -> bool {
        matches!(self, Self::Begin { .. } | Self::Parts | Self::Commit { .. })
    }
}

#[derive(Debug)]
struct Transfer {
    /// Told to the server for puts; answers to another number are of an earlier try. Puts and gets count apart.
    number: u32,
    tag: u64,
    key: Box<[u8]>,
    pushed_at: Instant,
    state: State,
    /// Of a put.
    terms: Terms,
    /// Of a get: filled range by range.
    value: Vec<u8>,
    version: u64,
    /// What a get was told together with the version.
    ttl_ms: Option<NonZeroU32>,
    piece_len: usize,
    /// Offset of the next piece to ask for or to send.
    next: usize,
    /// Offsets from which on answers gave less than the piece that was asked for, or no answer came.
    rests: Vec<usize>,
    /// Bytes without an answer.
    missing: usize,
    restarts: u32,
}

/// What the flow is to write into a request next, and the tag of its answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    Range(Range<'a>, u64),
    Piece(Piece<'a>, u64),
    /// Key, number, terms and the tag of the put.
    Commit(Key<'a>, u32, Terms, u64),
}

/// Lengths of pieces that fill a datagram of the session.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PieceLens {
    pub(super) range: usize,
    pub(super) part: usize,
}

/// The long values of one flow.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    /// Oldest first; those that end are near the front, where taking one out moves few others.
    list: VecDeque<Transfer>,
    /// Last numbers given out. Those of puts are told to the server, which compares them with those before: so gets must
    /// not use them up.
    put_number: u32,
    get_number: u32,
}

impl Transfers {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    /// Whether a put of `len` bytes may be taken.
    pub(super) fn has_room_for_put(&self, len: usize) -> bool {
        let puts = self.list.iter().filter(|transfer| transfer.is_put());
        let (count, total) = puts.fold((0, 0), |(count, total), put| (count + 1, total + put.value.len()));
        count < PUTS_MAX && total + len <= PUTS_LEN_MAX
    }

    /// Begins to fetch a value that turned out to be long.
    pub(super) fn begin_get(
        &mut self,
        pushed_at: Instant,
        tag: u64,
        key: &[u8],
        (long, ttl_ms): (&LongValue, Option<NonZeroU32>),
        lens: PieceLens,
    ) {
        self.begin(pushed_at, tag, key, State::Ask { asked: false }, Vec::new(), Terms::NONE);
        if self.list.len() <= ACTIVE_MAX
            && let Some(transfer) = self.list.back_mut()
        {
            transfer.begin_ranges(long, ttl_ms, lens);
        }
    }

    /// Begins to send a long value.
    pub(super) fn begin_put(&mut self, pushed_at: Instant, tag: u64, key: &[u8], value: &[u8], terms: Terms) {
        let state = State::Begin { asked: false, refused: false, not_before: pushed_at };
        self.begin(pushed_at, tag, key, state, value.to_vec(), terms);
    }

    fn begin(
        &mut self,
        pushed_at: Instant,
        tag: u64,
        key: &[u8],
        state: State,
        value: Vec<u8>,
        terms: Terms,
    ) {
        let number = self.next_number(state.is_put());
        self.list.push_back(Transfer {
            number,
            tag,
            key: key.into(),
            pushed_at,
            state,
            terms,
            value,
            version: 0,
            ttl_ms: None,
            piece_len: 0,
            next: 0,
            rests: Vec::new(),
            missing: 0,
            restarts: 0,
        });
    }

    /// Counts up to 2^32 - 1 and then goes on with 1. Nothing is as old as that, so that no two are taken for one.
    fn next_number(&mut self, is_put: bool) -> u32 {
        let number = if is_put { &mut self.put_number } else { &mut self.get_number };
        *number = number.wrapping_add(1).max(1);
        *number
    }

    /// The transfer that a step with this tag belongs to, unless that has ended or begun again.
    fn position(&self, is_put: bool, tag: u64) -> Option<usize> {
        let number = (tag >> 32) as u32;
        self.list.iter().position(|transfer| transfer.number == number && transfer.is_put() == is_put)
    }

    /// The answer to a step will never come: it is to be sent again.
    pub(super) fn lose(&mut self, is_put: bool, tag: u64) {
        let Some(index) = self.position(is_put, tag) else { return };
        let transfer = &mut self.list[index];
        match &mut transfer.state {
            State::Ask { asked } | State::Begin { asked, .. } => *asked = false,
            State::Ranges | State::Parts => transfer.rests.push(tag as u32 as usize),
            State::Commit { .. } => (),
        }
    }

    /// Offers what is to be sent next to `write` until that refuses or nothing is left.
    pub(super) fn pump(
        &mut self,
        now: Instant,
        lens: PieceLens,
        mut write: impl FnMut(Instant, Step<'_>) -> bool,
    ) {
        let mut index = 0;
        while index < self.list.len().min(ACTIVE_MAX) {
            let transfer = &mut self.list[index];
            while let Some(step) = transfer.step(now, lens) {
                if !write(transfer.pushed_at, step) {
                    return;
                }
                transfer.advance();
            }
            if transfer.state == (State::Commit { written: true }) {
                // From here on it is a write like any other.
                self.list.remove(index);
            } else {
                index += 1;
            }
        }
    }

    /// Takes the answer to a step.
    pub(super) fn take(
        &mut self,
        now: Instant,
        is_put: bool,
        (tag, result, Meta { version, ttl_ms }): (u64, OpResult<'_>, Meta),
        lens: PieceLens,
        data_epoch: u64,
        sink: &mut impl FnMut(Ended<'_>),
    ) {
        let offset = tag as u32;
        let Some(index) = self.position(is_put, tag) else { return };
        let transfer = &mut self.list[index];
        let ended =
            |outcome, version, ttl_ms| Ended { tag: transfer.tag, outcome, version, ttl_ms, data_epoch };
        match (transfer.state, result) {
            (State::Ask { .. }, OpResult::Long(long)) if is_possible(long) => {
                transfer.begin_ranges(long, ttl_ms, lens);
                return;
            }
            (State::Ask { .. }, OpResult::Value(value)) => {
                sink(ended(Outcome::Value(value), version, ttl_ms));
            }
            (State::Ask { .. }, OpResult::NotFound) => sink(ended(Outcome::NotFound, version, None)),
            (State::Ranges, OpResult::Value(bytes)) if offset != QUESTION => {
                let start = offset as usize;
                let end = transfer.piece_end(start);
                if bytes.is_empty() || bytes.len() > end - start {
                    return;
                }
                transfer.value[start..start + bytes.len()].copy_from_slice(bytes);
                if start + bytes.len() < end {
                    // The server knows of a narrower path than this end does.
                    transfer.rests.push(start + bytes.len());
                }
                transfer.missing -= bytes.len();
                if transfer.missing > 0 {
                    return;
                }
                let Some(transfer) = self.list.remove(index) else { return };
                // A version is told when it was asked for: then it comes with each range.
                let version = if version > 0 { transfer.version } else { 0 };
                let outcome = Outcome::Value(&transfer.value);
                let (tag, ttl_ms) = (transfer.tag, transfer.ttl_ms);
                sink(Ended { tag, outcome, version, ttl_ms, data_epoch });
                return;
            }
            (State::Ranges, OpResult::NotFound | OpResult::NotExecuted(Reason::Changed))
                if transfer.restarts < RESTARTS_MAX =>
            {
                transfer.restarts += 1;
                self.restart(index, now);
                return;
            }
            (State::Ranges, OpResult::NotFound) => {
                sink(ended(Outcome::NotExecuted(Reason::Changed), 0, None));
            }
            (State::Begin { .. }, OpResult::Done) => {
                transfer.split(lens.part);
                transfer.state = State::Parts;
                return;
            }
            (State::Begin { .. }, OpResult::NotExecuted(Reason::StagingFull)) => {
                let not_before = now + STAGING_RETRY;
                transfer.state = State::Begin { asked: false, refused: true, not_before };
                return;
            }
            (State::Parts, OpResult::Done) => {
                let start = offset as usize;
                transfer.missing -= transfer.piece_end(start) - start;
                if transfer.missing == 0 {
                    transfer.state = State::Commit { written: false };
                }
                return;
            }
            (State::Begin { .. } | State::Parts, OpResult::NotExecuted(Reason::NotStaged)) => {
                self.restart(index, now);
                return;
            }
            (_, OpResult::NotExecuted(reason)) => sink(ended(Outcome::NotExecuted(reason), 0, None)),
            // No server answers so; the deadline ends what waits for it.
            _ => return,
        }
        self.list.remove(index);
    }

    /// Begins all over again, in a new session.
    pub(super) fn restart_all(&mut self, now: Instant) {
        (0..self.list.len()).for_each(|index| self.restart(index, now));
    }

    /// Begins again under a new number, so that answers to the old one are told apart.
    fn restart(&mut self, index: usize, now: Instant) {
        let number = self.next_number(self.list[index].is_put());
        let transfer = &mut self.list[index];
        transfer.number = number;
        transfer.state = if transfer.is_put() {
            State::Begin { asked: false, refused: false, not_before: now }
        } else {
            transfer.value = Vec::new();
            State::Ask { asked: false }
        };
        (transfer.next, transfer.missing) = (0, 0);
        transfer.rests.clear();
    }

    /// Ends those begun before `deadline`, none of which has had an effect.
    pub(super) fn give_up(
        &mut self,
        begun_before: Instant,
        reason: Reason,
        data_epoch: u64,
        sink: &mut impl FnMut(Ended<'_>),
    ) {
        self.list.retain(|transfer| {
            let keep = transfer.pushed_at > begun_before;
            if !keep {
                let refused = matches!(transfer.state, State::Begin { refused: true, .. });
                let reason = if refused && reason == Reason::Deadline { Reason::StagingFull } else { reason };
                let outcome = Outcome::NotExecuted(reason);
                sink(Ended { tag: transfer.tag, outcome, version: 0, ttl_ms: None, data_epoch });
            }
            keep
        });
    }

    /// When the next step that waits for its time is due.
    pub(super) fn next_at(&self) -> Instant {
        let begins = self.list.iter().take(ACTIVE_MAX).filter_map(|transfer| match transfer.state {
            State::Begin { asked: false, not_before, .. } => Some(not_before),
            _ => None,
        });
        begins.min().unwrap_or(Instant::FAR_FUTURE)
    }
}

/// Whether a server may say so: what it says decides how much memory is set aside.
pub(super) fn is_possible(long: &LongValue) -> bool {
    (1..=VALUE_LEN_MAX as u32).contains(&long.len.get())
}

impl Transfer {
    const fn is_put(&self) -> bool {
        self.state.is_put()
    }

    fn begin_ranges(&mut self, long: &LongValue, ttl_ms: Option<NonZeroU32>, lens: PieceLens) {
        (self.version, self.ttl_ms) = (long.version.get(), ttl_ms);
        self.value = vec![0; long.len.get() as usize];
        self.split(lens.range);
        self.state = State::Ranges;
    }

    fn split(&mut self, piece_len: usize) {
        self.piece_len = piece_len;
        self.next = 0;
        self.missing = self.value.len();
    }

    /// Where the piece ends that `start` lies in.
    fn piece_end(&self, start: usize) -> usize {
        ((start / self.piece_len + 1) * self.piece_len).min(self.value.len())
    }

    /// What is to be sent next, if anything can be sent before more is answered.
    fn step(&self, now: Instant, lens: PieceLens) -> Option<Step<'_>> {
        let tag = |offset: u32| u64::from(self.number) << 32 | u64::from(offset);
        let key = Key::new(&self.key);
        let start = self.rests.last().copied().unwrap_or(self.next);
        match self.state {
            State::Ask { asked: false } => {
                let range = Range { key, version: 0, offset: 0, len: lens.range as u16 };
                Some(Step::Range(range, tag(QUESTION)))
            }
            State::Ranges if start < self.value.len() => {
                let (offset, len) = (start as u32, (self.piece_end(start) - start) as u16);
                Some(Step::Range(Range { key, version: self.version, offset, len }, tag(offset)))
            }
            State::Begin { asked: false, not_before, .. } if now >= not_before => {
                let begin = Piece::Begin { number: self.number, len: self.value.len() as u32 };
                Some(Step::Piece(begin, tag(QUESTION)))
            }
            State::Parts if start < self.value.len() => {
                let bytes = &self.value[start..self.piece_end(start)];
                let part = Piece::Part { number: self.number, offset: start as u32, bytes };
                Some(Step::Piece(part, tag(start as u32)))
            }
            State::Commit { written: false } => Some(Step::Commit(key, self.number, self.terms, self.tag)),
            _ => None,
        }
    }

    /// The step was written.
    fn advance(&mut self) {
        match &mut self.state {
            State::Ask { asked } | State::Begin { asked, .. } => *asked = true,
            State::Ranges | State::Parts => {
                if self.rests.pop().is_none() {
                    self.next += self.piece_len;
                }
                if is_active(Mutant::PartialCommit) && self.is_put() && self.next >= self.value.len() {
                    self.state = State::Commit { written: false };
                }
            }
            State::Commit { written } => *written = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: numbers of puts never jump for the server, however many gets come between, and none ends by overflow.
    /// Method: one before the last number, and gets and puts by turns.
    #[test]
    fn puts_and_gets_are_numbered_apart_and_may_wrap() {
        let mut transfers =
            Transfers { put_number: u32::MAX - 1, get_number: u32::MAX - 1, ..Transfers::default() };
        let long = LongValue { version: 1.into(), len: 2_000.into() };
        let lens = PieceLens { range: 1_430, part: 1_408 };
        for tag in 0..3 {
            transfers.begin_get(Instant::default(), tag, b"key", (&long, None), lens);
            transfers.begin_put(Instant::default(), tag, b"key", &[7; 2_000], Terms::NONE);
        }
        let numbers: Vec<_> =
            transfers.list.iter().map(|transfer| (transfer.is_put(), transfer.number)).collect();
        let expected = [u32::MAX, 1, 2].map(|number| [(false, number), (true, number)]);
        assert_eq!(numbers, expected.as_flattened());
        // The answer to a step of the put is not taken for one of the get of the same number.
        transfers.lose(true, 1 << 32 | u64::from(QUESTION));
        assert!(transfers.list.iter().all(|transfer| transfer.rests.is_empty()));
    }
}
