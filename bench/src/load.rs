//! The closed loop of one client thread: keep so many batches in flight, look at every answer, count.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use linerate_client::{Ended, Instant, Operation, Outcome, PushError, Session, SessionCounters};
use linerate_dataplane::Port;
use linerate_server::stats::thread_cpu_ns;

use crate::{
    check::{Answered, Checker, LaneNumber, ThreadCheck},
    latency::LatencyHistogram,
    value::{check, fill, touch, writer},
    workload::{Draw, RECORDS_MAX, Stream, ValueLen},
};

/// Longest sleep of a thread that sleeps: an operation may wait so long for others to travel with.
const SLEEP_MAX: Duration = Duration::from_millis(1);

/// Operations between looking up where a record's version lies and reading it: pushing one takes some 10 ns, memory
/// some 100 ns to answer.
const LOOK_AHEAD: usize = 16;

/// What one thread does.
#[derive(Clone, Copy, Debug)]
pub struct LoadPlan {
    /// Number of the process, part of what its values carry.
    pub process: u16,
    /// Number of the thread, from 1 on, also part of it.
    pub thread: u16,
    /// Operations per batch.
    pub batch: usize,
    /// Batches in flight.
    pub batches_in_flight: usize,
    /// Lengths of the values put.
    pub value_len: ValueLen,
    /// Whether each value got must be one that was put at its key.
    pub verify: bool,
    /// Whether to sleep while nothing arrives: threads that share a CPU must let each other, and the server, have it.
    pub sleeps: bool,
    /// Time before counting starts.
    pub warmup: Duration,
    /// Time that is counted.
    pub duration: Duration,
}

/// What one thread has counted during [`LoadPlan::duration`].
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Time that was really counted.
    pub elapsed: Duration,
    /// Gets answered.
    pub gets: u64,
    /// Of these, with a value.
    pub hits: u64,
    /// Puts answered.
    pub puts: u64,
    /// Operations that were not executed.
    pub errors: u64,
    /// Puts whose outcome is unknown.
    pub outcome_unknown: u64,
    /// Values that were never put at the key they were got from.
    pub wrong_values: u64,
    /// Time from the start of an operation's batch to its answer.
    pub latency: LatencyHistogram,
    /// Time from the start of a batch to its last answer.
    pub batch_latency: LatencyHistogram,
    /// What the session counted.
    pub counters: SessionCounters,
    /// CPU time of the thread.
    pub cpu: Duration,
    /// Depends on every byte received, so that reading them can not be left out.
    pub touched: u64,
}

/// A batch in flight.
#[derive(Clone, Copy, Debug, Default)]
struct Batch {
    begun: Instant,
    left: u32,
}

/// Everything that the outcomes change.
struct Tally<'a> {
    report: LoadReport,
    /// What is asked of every answer, if anything.
    check: Option<ThreadCheck<'a>>,
    batches: Vec<Batch>,
    /// Batches that may be begun.
    free: Vec<u32>,
    /// Outcomes of one batch that came one after the other: batch and count. Clock and histogram are used once for all
    /// of them.
    run: (u32, u32),
    value_len: ValueLen,
    verify: bool,
}

impl Tally<'_> {
    #[inline]
    fn take(&mut self, ended: Ended<'_>, clock: impl Fn() -> Instant) {
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
        if tag.batch() == self.run.0 {
            self.run.1 += 1;
        } else {
            self.end_run(clock);
            self.run = (tag.batch(), 1);
        }
    }

    fn end_run(&mut self, clock: impl Fn() -> Instant) {
        let (index, count) = self.run;
        self.run.1 = 0;
        if count == 0 {
            return;
        }
        let batch = &mut self.batches[index as usize];
        let latency_ns = clock().since(batch.begun).as_nanos() as u64;
        self.report.latency.record_n(latency_ns, count.into());
        batch.left -= count;
        if batch.left == 0 {
            self.report.batch_latency.record(latency_ns);
            self.free.push(index);
        }
    }
}

/// What comes back with an outcome:
///
/// ```text
/// │ 6 bits free │ batch 16 │ position in it 8 │ put 1 │ log 2 │ record 31 │
/// ```
#[derive(Clone, Copy, Debug)]
struct Tag(u64);

impl Tag {
    const fn new(place: Place, draw: &Draw, lane: LaneNumber) -> Self {
        let operation = (draw.is_put() as u64) << 33 | (lane.bits() as u64) << 31 | draw.record() as u64;
        Self((place.batch as u64) << 42 | (place.position as u64) << 34 | operation)
    }

    const fn batch(self) -> u32 {
        (self.0 >> 42) as u32
    }

    const fn record(self) -> u32 {
        self.0 as u32 & RECORDS_MAX
    }

    const fn answered(self, is_wrong: bool) -> Answered {
        Answered {
            place: (self.0 >> 34) as usize,
            record: self.record(),
            is_put: self.0 >> 33 & 1 == 1,
            lane: LaneNumber::from_bits((self.0 >> 31) as u8),
            is_wrong,
        }
    }
}

/// Where among the operations in flight one is.
#[derive(Clone, Copy, Debug)]
struct Place {
    batch: u16,
    position: u8,
}

impl Place {
    /// Places of one batch.
    const PER_BATCH: usize = 1 << 8;

    const fn index(self) -> usize {
        (self.batch as usize) << 8 | self.position as usize
    }
}

/// Runs the load of one thread over `session`, and has `checker`, if there is one, look at every answer. `live` is added
/// to as operations end, for whoever shows progress; when `stop` is set the run ends early.
///
/// # Errors
/// When the session's port is broken for good.
pub fn run_load<P: Port>(
    session: &mut Session<P>,
    stream: &mut Stream,
    plan: &LoadPlan,
    checker: Option<&Checker>,
    live: &AtomicU64,
    stop: &AtomicBool,
) -> io::Result<LoadReport> {
    let places = plan.batches_in_flight * Place::PER_BATCH;
    let mut tally = Tally {
        report: LoadReport::default(),
        check: checker.map(|checker| ThreadCheck::new(checker, usize::from(plan.thread) - 1, places)),
        batches: vec![Batch::default(); plan.batches_in_flight],
        free: (0..plan.batches_in_flight as u32).rev().collect(),
        run: (0, 0),
        value_len: plan.value_len,
        verify: plan.verify,
    };
    let clock = session.clock();
    let mut pusher = Pusher::new(plan);
    let begun = session.now();
    let counting_from = begun + plan.warmup;
    let end = counting_from + plan.duration;
    let mut counting = None;
    let (mut seen, mut coalesced_before) = (0, session.coalesced());
    loop {
        let now = session.now();
        if counting.is_none() && now >= counting_from {
            counting = Some((now, session.counters(), thread_cpu()));
            tally.report = LoadReport::default();
            (seen, coalesced_before) = (0, session.coalesced());
        }
        if now >= end || stop.load(Ordering::Relaxed) {
            break;
        }
        if let Some(check) = &mut tally.check {
            check.turn();
        }
        pusher.fill(now, session, stream, &mut tally)?;
        let arrived = session.poll(now, &mut |ended| tally.take(ended, clock))?;
        tally.end_run(clock);
        if plan.sleeps && arrived == 0 {
            session.flush(now, &mut |ended| tally.take(ended, clock))?;
            tally.end_run(clock);
            session.wait(SLEEP_MAX)?;
        }
        // What did not travel must not look like work.
        let coalesced = session.coalesced() - coalesced_before;
        let ended = (tally.report.gets + tally.report.puts).saturating_sub(coalesced);
        live.fetch_add(ended.saturating_sub(seen), Ordering::Relaxed);
        seen = ended;
    }
    let ended = session.now();
    let (since, counters, cpu) = counting.unwrap_or_else(|| (ended, session.counters(), thread_cpu()));
    let counted = LoadReport {
        elapsed: ended.since(since),
        counters: session.counters().since(&counters),
        cpu: thread_cpu().saturating_sub(cpu),
        ..tally.report.clone()
    };
    // What is still in flight is waited for. It came too late to be counted, but how late belongs to the latencies: a
    // server that stalls at the end must show.
    session.run(|ended| tally.take(ended, clock))?;
    tally.end_run(clock);
    let LoadReport { errors, outcome_unknown, wrong_values, latency, batch_latency, .. } = tally.report;
    Ok(LoadReport { errors, outcome_unknown, wrong_values, latency, batch_latency, ..counted })
}

/// Turns draws into operations.
struct Pusher {
    batch: usize,
    value_len: ValueLen,
    process: u16,
    thread: u16,
    sequence: u64,
    /// The batch being pushed, and how many of its operations are still to come.
    current: Option<(u32, usize)>,
    /// A draw that found no room.
    waiting: Option<Draw>,
    value: Box<[u8]>,
}

impl Pusher {
    fn new(plan: &LoadPlan) -> Self {
        Self {
            batch: plan.batch,
            value_len: plan.value_len,
            process: plan.process,
            thread: plan.thread,
            sequence: 0,
            current: None,
            waiting: None,
            value: vec![0; plan.value_len.max()].into(),
        }
    }

    /// Pushes operations until all batches are in flight or the session takes no more.
    fn fill<P: Port>(
        &mut self,
        now: Instant,
        session: &mut Session<P>,
        stream: &mut Stream,
        tally: &mut Tally,
    ) -> io::Result<()> {
        loop {
            let (index, mut left) = match self.current.take() {
                Some(current) => current,
                None => {
                    let Some(index) = tally.free.pop() else { return Ok(()) };
                    tally.batches[index as usize] = Batch { begun: now, left: self.batch as u32 };
                    (index, self.batch)
                }
            };
            while left > 0 {
                let draw = self.waiting.take().unwrap_or_else(|| stream.next().expect("streams never end"));
                if let (Some(check), Some(draw)) = (&tally.check, stream.ahead(LOOK_AHEAD)) {
                    check.expect(draw.record());
                }
                let place = Place { batch: index as u16, position: (self.batch - left) as u8 };
                match self.push(now, session, &draw, place, tally.check.as_mut()) {
                    Ok(()) => left -= 1,
                    Err(PushError::Full) => {
                        self.waiting = Some(draw);
                        self.current = Some((index, left));
                        return Ok(());
                    }
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
        }
    }

    #[inline]
    fn push<P: Port>(
        &mut self,
        now: Instant,
        session: &mut Session<P>,
        draw: &Draw,
        place: Place,
        check: Option<&mut ThreadCheck<'_>>,
    ) -> Result<(), PushError> {
        let record = draw.record();
        // Looked up each time that it is tried: what is known grows while an operation waits for room.
        let (lo, lane) = check.as_ref().map_or((0, LaneNumber::NONE), |check| check.before_push(record));
        let tag = Tag::new(place, draw, lane).0;
        let written = if draw.is_put() {
            Some(self.push_put(now, session, draw, tag)?)
        } else {
            session.push(now, Operation::get(draw.key()), tag)?;
            None
        };
        if let Some(check) = check {
            check.pushed(place.index(), record, written, lo, lane);
        }
        Ok(())
    }

    /// Returns who wrote the value.
    #[inline]
    fn push_put<P: Port>(
        &mut self,
        now: Instant,
        session: &mut Session<P>,
        draw: &Draw,
        tag: u64,
    ) -> Result<u64, PushError> {
        // Lengths need not be random, only mixed: a multiplication spreads the sequence over the range.
        let random = (self.sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
        let value = &mut self.value[..self.value_len.pick(random)];
        let writer = writer(self.process, self.thread, self.sequence);
        fill(value, draw.record(), writer);
        session.push(now, Operation::put(draw.key(), value), tag)?;
        self.sequence += 1;
        Ok(writer)
    }
}

/// Stores every record once, as thread 0 of `process`; `checker`, if there is one, learns the versions.
///
/// # Errors
/// When the session's port is broken for good, or a record could not be stored, with the reason.
pub fn preload<P: Port>(
    session: &mut Session<P>,
    records: u32,
    value_len: ValueLen,
    checker: Option<&Checker>,
    stop: &AtomicBool,
    progress: impl Fn(u64),
) -> io::Result<()> {
    let mut pusher = Pusher::new(&LoadPlan {
        process: checker.map_or(0, Checker::process),
        thread: 0,
        batch: 1,
        batches_in_flight: 1,
        value_len,
        verify: false,
        sleeps: false,
        warmup: Duration::ZERO,
        duration: Duration::ZERO,
    });
    let failed = std::cell::RefCell::new(None);
    let mut sink = |ended: Ended<'_>| {
        if ended.outcome != Outcome::Done {
            failed.borrow_mut().get_or_insert_with(|| format!("{:?}", ended.outcome));
        }
        if let Some(checker) = checker {
            checker.preloaded(Tag(ended.tag).record(), &ended);
        }
    };
    for record in 0..records {
        let draw = Draw::put(record);
        while pusher.push(session.now(), session, &draw, Place { batch: 0, position: 0 }, None)
            == Err(PushError::Full)
        {
            session.poll(session.now(), &mut sink)?;
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        if failed.borrow().is_some() {
            break;
        }
        if record % 4096 == 0 {
            progress(record.into());
        }
    }
    session.run(&mut sink)?;
    progress(records.into());
    match failed.into_inner() {
        None => Ok(()),
        Some(outcome) => Err(io::Error::other(format!(
            "not all of the {records} records could be stored ({outcome}): give the server more --memory, or use fewer \
             --records"
        ))),
    }
}

/// CPU time of the calling thread.
fn thread_cpu() -> Duration {
    Duration::from_nanos(thread_cpu_ns())
}
