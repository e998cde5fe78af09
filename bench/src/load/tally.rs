//! What the ends of operations change: counts, latencies, and which batches are free again.

use std::collections::VecDeque;

use linerate_client::{Ended, Instant, Outcome, Reason};

use super::LoadReport;
use crate::{
    check::{Answered, LaneNumber, ThreadCheck},
    value::{check, touch},
    workload::{Draw, InsertLane, Kind, RECORDS_MAX, ValueLen},
};

/// Ends that a reading of the clock serves in an open loop: less than a microsecond's.
const ENDS_PER_READING: u32 = 32;

/// A batch in flight; `begun` is when its first operation was pushed, or was due.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Batch {
    pub(super) begun: Instant,
    pub(super) left: u32,
}

/// Everything that the outcomes change.
pub(super) struct Tally<'a> {
    /// What is asked of every answer, if anything.
    pub(super) check: Option<ThreadCheck<'a>>,
    pub(super) batches: Vec<Batch>,
    /// Batches that may be begun.
    pub(super) free: Vec<u32>,
    /// Outcomes of one batch that came one after the other. Clock and histogram are used once for all of them.
    pub(super) run: Run,
    pub(super) rmws: Rmws,
    /// What this thread inserts, if it does.
    pub(super) inserts: Option<InsertLane>,
    /// Whether operations are due for themselves, each a batch of one.
    pub(super) is_open: bool,
    /// When the clock was last read for an end, and how many ends ago.
    pub(super) clock_read: Option<(Instant, u32)>,
    pub(super) value_len: ValueLen,
    pub(super) verify: bool,
}

impl Tally<'_> {
    /// Counts an end. `PLAIN`: as for [`Pusher::fill`](super::Pusher::fill).
    ///
    /// Always inlined: so the end is not written to memory first, and its kind, which the flow has just found out, is not asked
    /// again.
    #[inline(always)]
    pub(super) fn take<const PLAIN: bool>(
        &mut self,
        report: &mut LoadReport,
        ended: Ended<'_>,
        clock: impl Fn() -> Instant,
    ) {
        let tag = Tag(ended.tag);
        let mut is_wrong = false;
        match ended.outcome {
            // An addition tells the number that was there.
            Outcome::Value(_) if !PLAIN && tag.is_write() => report.puts += 1,
            Outcome::Value(value) => {
                report.gets += 1;
                report.hits += 1;
                if self.verify && (PLAIN || tag.kind() != Kind::GetNumber) {
                    is_wrong = !check(value, tag.record(), self.value_len);
                    report.wrong_values += u64::from(is_wrong);
                } else {
                    report.touched ^= touch(value);
                }
            }
            Outcome::NotFound if !PLAIN && tag.is_write() => {
                report.puts += 1;
                report.conditions_unmet += u64::from(tag.kind() == Kind::PutIfPresent);
            }
            Outcome::NotFound => report.gets += 1,
            Outcome::Done => report.puts += 1,
            Outcome::NotExecuted(reason) if !PLAIN && is_condition(tag.kind(), reason) => {
                report.puts += 1;
                report.conditions_unmet += 1;
            }
            Outcome::NotExecuted(_) => report.errors += 1,
            Outcome::OutcomeUnknown => report.outcome_unknown += 1,
        }
        if !PLAIN && let Some(check) = &mut self.check {
            check.ended(tag.answered(is_wrong), &ended);
        }
        if !PLAIN && tag.has_sequel() && tag.kind() == Kind::Update {
            self.rmws.ended.push((tag.place(), ended.outcome == Outcome::Done));
            return;
        }
        let batch = if PLAIN { tag.place().batch.into() } else { self.batch_of(tag.place()) };
        if batch != self.run.batch {
            self.end_run(report, clock);
            self.run.batch = batch;
        }
        self.run.count += 1;
        if !PLAIN && tag.has_sequel() {
            self.go_on(tag, ended.outcome);
        }
    }

    /// What follows the end of an operation of a run.
    fn go_on(&mut self, tag: Tag, outcome: Outcome<'_>) {
        if tag.kind() == Kind::Rmw {
            if matches!(outcome, Outcome::Value(_) | Outcome::NotFound) {
                self.rmws.waiting.push_back((tag.place(), tag.record()));
                self.run.going_on += 1;
            }
        } else if let Some(inserts) = &mut self.inserts {
            inserts.ended(tag.record());
        }
    }

    /// The batch that has this place.
    #[inline]
    const fn batch_of(&self, place: Place) -> u32 {
        if self.is_open { place.index() as u32 } else { place.batch as u32 }
    }

    /// The time of an end. In an open loop, where each operation ends for itself, reading the clock would cost as much as
    /// everything else: it is read for every so many ends, and again after each burst.
    #[inline]
    fn now(&mut self, clock: impl Fn() -> Instant) -> Instant {
        match &mut self.clock_read {
            Some((now, age)) if self.is_open && *age < ENDS_PER_READING => {
                *age += 1;
                *now
            }
            read => read.insert((clock(), 1)).0,
        }
    }

    /// A burst is over.
    #[inline]
    pub(super) fn end_burst(&mut self, report: &mut LoadReport, clock: impl Fn() -> Instant) {
        self.end_run(report, clock);
        self.clock_read = None;
    }

    fn end_run(&mut self, report: &mut LoadReport, clock: impl Fn() -> Instant) {
        let Run { batch, count, going_on } = self.run;
        if count == 0 && self.rmws.ended.is_empty() {
            return;
        }
        self.run = Run { batch, count: 0, going_on: 0 };
        let now = self.now(clock);
        if count > 0 {
            let latency_ns = ns_between(self.batches[batch as usize].begun, now);
            report.latency.record_n(latency_ns, count.into());
            // Their puts are due now, whenever there is room for them.
            let first = self.rmws.waiting.len() - going_on as usize;
            for &(place, _) in self.rmws.waiting.range(first..) {
                self.rmws.put_begun[place.index()] = now;
            }
            self.end_in_batch(report, batch, count - going_on, latency_ns);
        }
        while let Some((place, is_done)) = self.rmws.ended.pop() {
            let (batch, put_begun) = (self.batch_of(place), self.rmws.put_begun[place.index()]);
            report.latency.record(ns_between(put_begun, now));
            let latency_ns = ns_between(self.batches[batch as usize].begun, now);
            if is_done {
                report.rmws += 1;
                report.rmw_latency.record(latency_ns);
            }
            self.end_in_batch(report, batch, 1, latency_ns);
        }
    }

    fn end_in_batch(&mut self, report: &mut LoadReport, index: u32, count: u32, latency_ns: u64) {
        let batch = &mut self.batches[index as usize];
        batch.left -= count;
        if count > 0 && batch.left == 0 {
            if !self.is_open {
                report.batch_latency.record(latency_ns);
            }
            self.free.push(index);
        }
    }
}

/// Nanoseconds from one moment to a later one.
#[inline]
const fn ns_between(earlier: Instant, later: Instant) -> u64 {
    later.as_nanos().saturating_sub(earlier.as_nanos())
}

/// Whether the answer says no more than that what the operation asked for was not so.
fn is_condition(kind: Kind, reason: Reason) -> bool {
    match kind {
        Kind::PutIfAbsent | Kind::PutIfPresent => matches!(reason, Reason::Exists | Reason::Changed),
        Kind::Increment | Kind::Decrement => reason == Reason::NotANumber,
        _ => false,
    }
}

/// Outcomes that came one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Run {
    batch: u32,
    count: u32,
    /// Of these, gets whose place a put takes now.
    going_on: u32,
}

/// Gets that are followed by a put at the same record.
pub(super) struct Rmws {
    /// Place and record of those that have their value, and whose put is to be pushed.
    pub(super) waiting: VecDeque<(Place, u32)>,
    /// When the put of each place was due: as soon as its get had ended.
    pub(super) put_begun: Box<[Instant]>,
    /// Places of the puts that have ended, and whether well.
    ended: Vec<(Place, bool)>,
}

impl Rmws {
    /// Room for `places` operations in flight. Nothing grows later; what is not used takes no memory.
    pub(super) fn new(places: usize) -> Self {
        Self {
            waiting: VecDeque::with_capacity(places),
            put_begun: vec![Instant::default(); places].into(),
            ended: Vec::with_capacity(places),
        }
    }
}

/// What comes back with an outcome:
///
/// ```text
/// │ 2 bits free │ kind 4 │ batch 16 │ position in it 8 │ put 1 │ log 2 │ record 31 │
/// ```
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag(pub(super) u64);

impl Tag {
    pub(super) const fn new(place: Place, draw: &Draw, lane: LaneNumber) -> Self {
        let operation = (draw.is_put() as u64) << 33 | (lane.bits() as u64) << 31 | draw.record() as u64;
        let kind = (draw.kind_bits() as u64) << 58;
        Self(kind | (place.batch as u64) << 42 | (place.position as u64) << 34 | operation)
    }

    pub(super) const fn kind(self) -> Kind {
        Kind::from_bits((self.0 >> 58) as u8)
    }

    /// Whether it writes: as [`Kind::is_write`], at less cost.
    const fn is_write(self) -> bool {
        self.0 >> 33 & 1 == 1
    }

    /// As [`Kind::has_sequel`], at less cost.
    const fn has_sequel(self) -> bool {
        self.0 >> 58 >= Kind::Insert as u64
    }

    pub(super) const fn place(self) -> Place {
        Place { batch: (self.0 >> 42) as u16, position: (self.0 >> 34) as u8 }
    }

    pub(super) const fn record(self) -> u32 {
        self.0 as u32 & RECORDS_MAX
    }

    pub(super) const fn answered(self, is_wrong: bool) -> Answered {
        Answered {
            place: self.place().index(),
            record: self.record(),
            is_put: self.is_write(),
            lane: LaneNumber::from_bits((self.0 >> 31) as u8),
            is_wrong,
        }
    }
}

/// Where among the operations in flight one is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) batch: u16,
    pub(super) position: u8,
}

impl Place {
    /// Places of one batch.
    pub(super) const PER_BATCH: usize = 1 << 8;

    /// The place of an operation of a batch; in an open loop, where a batch is one operation, these are dense.
    pub(super) const fn of(batch: u32, position: usize, is_open: bool) -> Self {
        if is_open {
            Self { batch: (batch >> 8) as u16, position: batch as u8 }
        } else {
            Self { batch: batch as u16, position: position as u8 }
        }
    }

    pub(super) const fn index(self) -> usize {
        (self.batch as usize) << 8 | self.position as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::ValueLen;

    fn tally(batches: usize, of: u32) -> Tally<'static> {
        let begun = Instant::from_nanos(1_000);
        Tally {
            check: None,
            batches: vec![Batch { begun, left: of }; batches],
            free: Vec::new(),
            run: Run::default(),
            rmws: Rmws::new(batches * Place::PER_BATCH),
            inserts: None,
            is_open: false,
            clock_read: None,
            value_len: ValueLen::new(0, 8).unwrap(),
            verify: true,
        }
    }

    fn end(tally: &mut Tally<'_>, report: &mut LoadReport, place: Place, kind: Kind, outcome: Outcome<'_>) {
        let tag = Tag::new(place, &Draw::new(7, kind), LaneNumber::NONE);
        assert_eq!((tag.kind(), tag.record()), (kind, 7));
        assert_eq!((tag.is_write(), tag.has_sequel()), (kind.is_write(), kind.has_sequel()));
        assert_eq!((tag.place().batch, tag.place().position), (place.batch, place.position));
        let ended = Ended { tag: tag.0, outcome, version: 0, ttl_ms: None, data_epoch: 0 };
        tally.take::<false>(report, ended, || Instant::from_nanos(3_000));
    }

    /// Goal: each kind of answer to each kind of operation is counted as what it is. Method: all that a store gives, one by one.
    #[test]
    fn answers_are_counted_by_kind() {
        let (right, wrong) = (7_u64.to_le_bytes(), 8_u64.to_le_bytes());
        let (yes, other) = (Outcome::Value(&right), Outcome::Value(&wrong));
        let (exists, no_number) =
            (Outcome::NotExecuted(Reason::Exists), Outcome::NotExecuted(Reason::NotANumber));
        // Gets, hits, puts, conditions, errors, wrong values.
        for (kind, outcome, counts) in [
            (Kind::Get, yes, [1, 1, 0, 0, 0, 0]),
            (Kind::Get, other, [1, 1, 0, 0, 0, 1]),
            (Kind::GetNumber, other, [1, 1, 0, 0, 0, 0]),
            (Kind::GetLatest, yes, [1, 1, 0, 0, 0, 0]),
            (Kind::Get, Outcome::NotFound, [1, 0, 0, 0, 0, 0]),
            (Kind::Put, Outcome::Done, [0, 0, 1, 0, 0, 0]),
            (Kind::Put, Outcome::NotExecuted(Reason::NoSpace), [0, 0, 0, 0, 1, 0]),
            (Kind::PutIfAbsent, exists, [0, 0, 1, 1, 0, 0]),
            (Kind::PutIfPresent, Outcome::NotFound, [0, 0, 1, 1, 0, 0]),
            (Kind::PutIfPresent, Outcome::NotExecuted(Reason::Changed), [0, 0, 1, 1, 0, 0]),
            (Kind::PutIfAbsent, Outcome::NotExecuted(Reason::NoSpace), [0, 0, 0, 0, 1, 0]),
            (Kind::Delete, Outcome::NotFound, [0, 0, 1, 0, 0, 0]),
            (Kind::Delete, Outcome::Done, [0, 0, 1, 0, 0, 0]),
            (Kind::Increment, other, [0, 0, 1, 0, 0, 0]),
            (Kind::Decrement, no_number, [0, 0, 1, 1, 0, 0]),
            (Kind::Put, exists, [0, 0, 0, 0, 1, 0]),
        ] {
            let (mut tally, mut report) = (tally(1, 1), LoadReport::default());
            end(&mut tally, &mut report, Place { batch: 0, position: 0 }, kind, outcome);
            tally.end_run(&mut report, || Instant::from_nanos(3_000));
            let LoadReport { gets, hits, puts, conditions_unmet, errors, wrong_values, .. } = report;
            assert_eq!(
                [gets, hits, puts, conditions_unmet, errors, wrong_values],
                counts,
                "{kind:?} {outcome:?}"
            );
            assert_eq!((&tally.free[..], report.latency.count()), (&[0][..], 1));
        }
    }

    /// Goal: a batch ends with the puts behind its gets and not before, and these are timed as operations and as a whole. Method:
    /// two batches of two; one get has a value, one has none, one failed, and one is no more than a get.
    #[test]
    fn a_batch_ends_with_its_last_put() {
        let (mut tally, mut report) = (tally(2, 2), LoadReport::default());
        let place = |batch, position| Place { batch, position };
        let (value, end_run) = (7_u64.to_le_bytes(), |ns| move || Instant::from_nanos(ns));
        end(&mut tally, &mut report, place(0, 0), Kind::Rmw, Outcome::Value(&value));
        end(&mut tally, &mut report, place(0, 1), Kind::Rmw, Outcome::NotFound);
        end(&mut tally, &mut report, place(1, 0), Kind::Rmw, Outcome::NotExecuted(Reason::Deadline));
        end(&mut tally, &mut report, place(1, 255), Kind::Get, Outcome::Value(&value));
        tally.end_run(&mut report, end_run(3_000));
        assert_eq!((&tally.free[..], tally.rmws.waiting.len()), (&[1][..], 2));
        assert_eq!((report.gets, report.errors, report.rmws), (3, 1, 0));
        while let Some((place, record)) = tally.rmws.waiting.pop_front() {
            assert_eq!(record, 7);
            end(&mut tally, &mut report, place, Kind::Update, Outcome::Done);
        }
        assert_eq!(tally.free, [1]);
        tally.end_run(&mut report, end_run(3_500));
        assert_eq!((&tally.free[..], report.puts, report.rmws), (&[1, 0][..], 2, 2));
        assert_eq!(report.begun_and_answered(), 3, "and one that failed");
        assert_eq!(
            (report.latency.count(), report.batch_latency.count(), report.rmw_latency.count()),
            (6, 2, 2)
        );
        let us = |us: f64, expected: f64| assert!((us / expected - 1.0).abs() < 0.01, "{us} for {expected}");
        // From the beginning of the batch at 1 µs, and the puts from when their gets had ended.
        us(report.rmw_latency.summary().max, 2.5);
        us(report.latency.summary().max, 2.0);
        us(report.latency.summary().p50, 2.0);
        us(report.batch_latency.summary().p50, 2.0);
    }
}
