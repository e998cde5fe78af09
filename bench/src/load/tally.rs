//! What the ends of operations change: counts, latencies, and which batches are free again.

use linerate_client::{Ended, Instant, Outcome};

use super::LoadReport;
use crate::{
    check::{Answered, LaneNumber, ThreadCheck},
    value::{check, touch},
    workload::{Draw, RECORDS_MAX, ValueLen},
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
    pub(super) report: LoadReport,
    /// What is asked of every answer, if anything.
    pub(super) check: Option<ThreadCheck<'a>>,
    pub(super) batches: Vec<Batch>,
    /// Batches that may be begun.
    pub(super) free: Vec<u32>,
    /// Outcomes of one batch that came one after the other: batch and count. Clock and histogram are used once for all
    /// of them.
    pub(super) run: (u32, u32),
    /// Whether operations are due for themselves, each a batch of one.
    pub(super) is_open: bool,
    /// When the clock was last read for an end, and how many ends ago.
    pub(super) clock_read: Option<(Instant, u32)>,
    pub(super) value_len: ValueLen,
    pub(super) verify: bool,
}

impl Tally<'_> {
    #[inline]
    pub(super) fn take(&mut self, ended: Ended<'_>, clock: impl Fn() -> Instant) {
        let tag = Tag(ended.tag);
        let report = &mut self.report;
        let mut is_wrong = false;
        match ended.outcome {
            Outcome::Value(value) => {
                report.gets += 1;
                report.hits += 1;
                if self.verify {
                    is_wrong = !check(value, tag.record(), self.value_len);
                    report.wrong_values += u64::from(is_wrong);
                } else {
                    report.touched ^= touch(value);
                }
            }
            Outcome::NotFound => report.gets += 1,
            Outcome::Done => report.puts += 1,
            Outcome::NotExecuted(_) => report.errors += 1,
            Outcome::OutcomeUnknown => report.outcome_unknown += 1,
        }
        if let Some(check) = &mut self.check {
            check.ended(tag.answered(is_wrong), &ended);
        }
        let batch = if self.is_open { tag.place() } else { tag.batch() };
        if batch == self.run.0 {
            self.run.1 += 1;
        } else {
            self.end_run(clock);
            self.run = (batch, 1);
        }
    }

    fn end_run(&mut self, clock: impl Fn() -> Instant) {
        let (index, count) = self.run;
        self.run.1 = 0;
        if count == 0 {
            return;
        }
        let now = self.now(clock);
        let batch = &mut self.batches[index as usize];
        let latency_ns = now.since(batch.begun).as_nanos() as u64;
        self.report.latency.record_n(latency_ns, count.into());
        batch.left -= count;
        if batch.left == 0 {
            if !self.is_open {
                self.report.batch_latency.record(latency_ns);
            }
            self.free.push(index);
        }
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
    pub(super) fn end_burst(&mut self, clock: impl Fn() -> Instant) {
        self.end_run(clock);
        self.clock_read = None;
    }
}

/// What comes back with an outcome:
///
/// ```text
/// │ 6 bits free │ batch 16 │ position in it 8 │ put 1 │ log 2 │ record 31 │
/// ```
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag(pub(super) u64);

impl Tag {
    pub(super) const fn new(place: Place, draw: &Draw, lane: LaneNumber) -> Self {
        let operation = (draw.is_put() as u64) << 33 | (lane.bits() as u64) << 31 | draw.record() as u64;
        Self((place.batch as u64) << 42 | (place.position as u64) << 34 | operation)
    }

    pub(super) const fn batch(self) -> u32 {
        (self.0 >> 42) as u32
    }

    const fn place(self) -> u32 {
        (self.0 >> 34) as u32 & 0xff_ffff
    }

    pub(super) const fn record(self) -> u32 {
        self.0 as u32 & RECORDS_MAX
    }

    pub(super) const fn answered(self, is_wrong: bool) -> Answered {
        Answered {
            place: self.place() as usize,
            record: self.record(),
            is_put: self.0 >> 33 & 1 == 1,
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
