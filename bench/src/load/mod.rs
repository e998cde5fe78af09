//! The load of one client thread: keep so many batches in flight, or begin operations when they are due; look at every
//! answer; count.

mod pusher;
pub mod schedule;
mod tally;

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use linerate_client::{Ended, Instant, Outcome, PushError, Session, SessionCounters};
use linerate_dataplane::Port;
use linerate_server::stats::thread_cpu_ns;

use self::{
    pusher::Pusher,
    schedule::{Pace, Schedule},
    tally::{Batch, Place, Rmws, Run, Tag, Tally},
};
use crate::{
    check::{Checker, ThreadCheck},
    latency::LatencyHistogram,
    workload::{Draw, Stream, ValueLaw},
};

/// Longest sleep of a thread that sleeps: an operation may wait so long for others to travel with.
const SLEEP_MAX: Duration = Duration::from_millis(1);

/// Longest sleep of one with several sessions: it cannot wait for datagrams of all of them.
const SLEEP_MAX_SEVERAL: Duration = Duration::from_micros(50);

/// Most operations in flight in an open loop: a tag has 24 bits for which one it is.
const OPEN_IN_FLIGHT_MAX: usize = 1 << 24;

/// What one session does.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Number of the process, part of what its values carry.
    pub process: u16,
    /// Number of the session in its process, from 1 on, also part of it.
    pub client: u16,
    /// Operations per batch.
    pub batch: usize,
    /// Batches in flight. In an open loop these are as many operations in flight at most, and later ones wait for room.
    pub batches_in_flight: usize,
    /// When operations are begun; `None` for a closed loop, in which a batch is begun as soon as one has ended.
    pub pace: Option<Pace>,
    /// Lengths of the values put.
    pub value_len: ValueLaw,
    /// Whether each value got must be one that was put at its key.
    pub verify: bool,
    /// Whether to sleep while nothing arrives: threads that share a CPU must let each other, and the server, have it.
    pub sleeps: bool,
    /// Time before counting starts.
    pub warmup: Duration,
    /// Time that is counted.
    pub duration: Duration,
    /// Time after which what was counted is handed over, again and again.
    pub interval: Duration,
    /// Longest time, after all that, for what is still to be sent and to be answered.
    pub patience: Duration,
}

/// What one session has counted in some time.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Time that was really counted.
    pub elapsed: Duration,
    /// Gets answered.
    pub gets: u64,
    /// Of these, with a value.
    pub hits: u64,
    /// Puts answered, and whatever else writes.
    pub puts: u64,
    /// Of these, such that changed nothing because their condition was not met.
    pub conditions_unmet: u64,
    /// Records that were got and then put, which are a get and a put each.
    pub rmws: u64,
    /// Time from the start of such a get's batch, or from when it was due, to the answer to the put.
    pub rmw_latency: LatencyHistogram,
    /// Operations that were not executed.
    pub errors: u64,
    /// Puts whose outcome is unknown.
    pub outcome_unknown: u64,
    /// Operations that were due and could not be sent even after the end: the server had stood still for too long. Their
    /// latencies count up to when they were given up.
    pub unsent: u64,
    /// Values that were never put at the key they were got from.
    pub wrong_values: u64,
    /// Time from the start of an operation's batch to its answer; in an open loop from when the operation was due.
    pub latency: LatencyHistogram,
    /// Time from the start of a batch to its last answer; nothing in an open loop.
    pub batch_latency: LatencyHistogram,
    /// What the session counted.
    pub counters: SessionCounters,
    /// CPU time of the thread, with the first of its sessions.
    pub cpu: Duration,
    /// Time in which there was nothing to send and nothing came.
    pub idle: Duration,
    /// Depends on every byte received, so that reading them can not be left out.
    pub touched: u64,
}

impl LoadReport {
    /// Operations that travelled and were answered.
    #[must_use]
    pub const fn ops(&self) -> u64 {
        (self.gets + self.puts).saturating_sub(self.counters.coalesced)
    }

    /// Adds what was counted in the time after this one, or by another session in the same time. `elapsed` is left alone:
    /// whether times add up depends on which it is.
    pub fn absorb(&mut self, other: &Self) {
        self.gets += other.gets;
        self.hits += other.hits;
        self.puts += other.puts;
        self.conditions_unmet += other.conditions_unmet;
        self.rmws += other.rmws;
        self.rmw_latency.merge(&other.rmw_latency);
        self.errors += other.errors;
        self.outcome_unknown += other.outcome_unknown;
        self.unsent += other.unsent;
        self.wrong_values += other.wrong_values;
        self.latency.merge(&other.latency);
        self.batch_latency.merge(&other.batch_latency);
        self.counters = self.counters.plus(&other.counters);
        self.cpu += other.cpu;
        self.idle += other.idle;
        self.touched ^= other.touched;
    }
}

/// What one session has counted from one moment to the next.
#[derive(Clone, Debug)]
pub struct Interval {
    /// Number of the session, as in its plan.
    pub client: u16,
    /// 0 for the first interval of what is counted; `None` for what ended after all of them: too late to be counted as
    /// done, but how late belongs to the latencies, and what failed to what failed.
    pub index: Option<u32>,
    /// What was counted.
    pub report: LoadReport,
}

/// One session and what it is to do.
pub struct Lane<'a, P: Port> {
    session: &'a mut Session<P>,
    stream: Stream,
    plan: LoadPlan,
    tally: Tally<'a>,
    pusher: Pusher,
    schedule: Option<Schedule>,
    counted: Option<Counted>,
    /// When counting begins or is interrupted next, and when all ends.
    next_mark: Instant,
    end: Instant,
    is_over: bool,
    /// The last turn's time, and whether it found nothing to do.
    last_turn: Instant,
    was_idle: bool,
    /// Operations told to whoever watches, of those in the present interval.
    seen: u64,
    coalesced_before: u64,
}

/// Where the present interval began.
#[derive(Clone, Copy)]
struct Counted {
    index: u32,
    since: Instant,
    counters: SessionCounters,
    cpu: Duration,
}

impl<'a, P: Port> Lane<'a, P> {
    /// A session that will go through `stream`, and has `checker`, if there is one, look at every answer.
    pub fn new(
        session: &'a mut Session<P>,
        stream: Stream,
        plan: LoadPlan,
        checker: Option<&'a Checker>,
    ) -> Self {
        let (batch, in_flight, places) = match plan.pace {
            None => (plan.batch, plan.batches_in_flight, plan.batches_in_flight * Place::PER_BATCH),
            // Each operation is due for itself.
            Some(_) => {
                let in_flight = (plan.batch * plan.batches_in_flight).min(OPEN_IN_FLIGHT_MAX);
                (1, in_flight, in_flight)
            }
        };
        let tally = Tally {
            report: LoadReport::default(),
            check: checker.map(|checker| ThreadCheck::new(checker, usize::from(plan.client) - 1, places)),
            batches: vec![Batch::default(); in_flight],
            free: (0..in_flight as u32).rev().collect(),
            run: Run::default(),
            rmws: Rmws::new(places),
            inserts: stream.insert_lane(),
            is_open: plan.pace.is_some(),
            clock_read: None,
            value_len: plan.value_len.lens(),
            verify: plan.verify,
        };
        let (never, pusher) = (Instant::FAR_FUTURE, Pusher::new(&plan, batch));
        Self {
            session,
            stream,
            plan,
            tally,
            pusher,
            schedule: None,
            counted: None,
            next_mark: never,
            end: never,
            is_over: false,
            last_turn: Instant::default(),
            was_idle: false,
            seen: 0,
            coalesced_before: 0,
        }
    }

    fn begin(&mut self) {
        let now = self.session.now();
        self.schedule = self.plan.pace.as_ref().map(|pace| Schedule::new(pace, now));
        self.next_mark = now + self.plan.warmup;
        self.end = self.next_mark + self.plan.duration;
        self.last_turn = now;
    }

    /// Sends what is due and takes what has come; returns how many datagrams that were.
    #[inline]
    fn turn(
        &mut self,
        is_first: bool,
        is_stopped: bool,
        live: &AtomicU64,
        sink: &mut impl FnMut(Interval),
    ) -> io::Result<usize> {
        let now = self.session.now();
        if self.was_idle {
            self.tally.report.idle += now.since(self.last_turn);
        }
        self.last_turn = now;
        if now >= self.next_mark {
            self.mark(now, is_first, sink);
        }
        if is_stopped || now >= self.end {
            self.is_over = true;
            self.cut(now, is_first, sink);
            return Ok(0);
        }
        if let Some(check) = &mut self.tally.check {
            check.turn();
        }
        let pushed = self.pusher.fill(
            now,
            now,
            self.session,
            &mut self.stream,
            &mut self.tally,
            self.schedule.as_mut(),
        )?;
        let clock = self.session.clock();
        let tally = &mut self.tally;
        let arrived = self.session.poll(now, &mut |ended| tally.take(ended, clock))?;
        tally.end_burst(clock);
        if self.plan.sleeps && arrived == 0 {
            self.session.flush(now, &mut |ended| tally.take(ended, clock))?;
            tally.end_burst(clock);
        }
        self.was_idle = arrived == 0 && !pushed;
        // What did not travel must not look like work.
        let coalesced = self.session.coalesced() - self.coalesced_before;
        let ended = (self.tally.report.gets + self.tally.report.puts).saturating_sub(coalesced);
        live.fetch_add(ended.saturating_sub(self.seen), Ordering::Relaxed);
        self.seen = ended;
        Ok(arrived)
    }

    /// Begins to count, or hands over what was counted.
    fn mark(&mut self, now: Instant, is_first: bool, sink: &mut impl FnMut(Interval)) {
        if self.counted.is_some() {
            self.cut(now, is_first, sink);
        } else {
            self.tally.report = LoadReport::default();
            self.count_from(now, 0, is_first);
        }
        // The last interval ends with everything else, rather than a moment earlier.
        let next = self.next_mark + self.plan.interval;
        self.next_mark = if next + self.plan.interval / 2 > self.end { self.end } else { next };
    }

    fn count_from(&mut self, now: Instant, index: u32, is_first: bool) {
        let cpu = if is_first { thread_cpu() } else { Duration::ZERO };
        self.counted = Some(Counted { index, since: now, counters: self.session.counters(), cpu });
        (self.seen, self.coalesced_before) = (0, self.session.coalesced());
    }

    /// Hands over what was counted since the last time, if counting has begun, and goes on to count.
    fn cut(&mut self, now: Instant, is_first: bool, sink: &mut impl FnMut(Interval)) {
        let Some(Counted { index, since, counters, cpu }) =
            self.counted.filter(|counted| counted.since < now)
        else {
            return;
        };
        self.count_from(now, index + 1, is_first);
        let begun = self.counted.expect("it was just set");
        let report = LoadReport {
            elapsed: now.since(since),
            counters: begun.counters.since(&counters),
            cpu: begun.cpu.saturating_sub(cpu),
            ..std::mem::take(&mut self.tally.report)
        };
        sink(Interval { client: self.plan.client, index: Some(index), report });
    }

    /// Sends what was due before the end, waits for what is in flight, and hands over what became of it.
    fn finish(&mut self, stop: &AtomicBool, sink: &mut impl FnMut(Interval)) -> io::Result<()> {
        self.tally.report = LoadReport::default();
        let clock = self.session.clock();
        let deadline = self.session.now() + self.plan.patience;
        while let Some(schedule) = self.schedule.as_mut().filter(|schedule| schedule.next() < self.end) {
            let now = clock();
            if now >= deadline || stop.load(Ordering::Relaxed) {
                break;
            }
            let (session, tally) = (&mut *self.session, &mut self.tally);
            self.pusher.fill(now, self.end, session, &mut self.stream, tally, Some(schedule))?;
            let arrived = session.poll(now, &mut |ended| tally.take(ended, clock))?;
            tally.end_burst(clock);
            if self.plan.sleeps && arrived == 0 {
                session.wait(SLEEP_MAX)?;
            }
        }
        let tally = &mut self.tally;
        self.session.run(|ended| tally.take(ended, clock))?;
        tally.end_burst(clock);
        let now = clock();
        let mut report = std::mem::take(&mut self.tally.report);
        if let Some(schedule) = self.schedule.as_mut().filter(|_| !stop.load(Ordering::Relaxed)) {
            while schedule.next() < self.end {
                report.unsent += 1;
                report.latency.record(now.since(schedule.next()).as_nanos() as u64);
                schedule.advance();
            }
        }
        let LoadReport { errors, outcome_unknown, unsent, wrong_values, latency, batch_latency, .. } = report;
        let late = LoadReport {
            rmw_latency: report.rmw_latency,
            errors,
            outcome_unknown,
            unsent,
            wrong_values,
            latency,
            batch_latency,
            ..LoadReport::default()
        };
        sink(Interval { client: self.plan.client, index: None, report: late });
        Ok(())
    }
}

/// Runs the load of one thread over its sessions. `live` is added to as operations end, for whoever shows progress; when
/// `stop` is set the run ends early. `sink` is handed what was counted, interval by interval, and last, for each session,
/// what ended after all of them.
///
/// # Errors
/// When a session's port is broken for good.
pub fn run_load<P: Port>(
    lanes: &mut [Lane<'_, P>],
    live: &AtomicU64,
    stop: &AtomicBool,
    sink: &mut impl FnMut(Interval),
) -> io::Result<()> {
    lanes.iter_mut().for_each(Lane::begin);
    loop {
        let is_stopped = stop.load(Ordering::Relaxed);
        let (mut arrived, mut is_over) = (0, true);
        for (index, lane) in lanes.iter_mut().enumerate().filter(|(_, lane)| !lane.is_over) {
            arrived += lane.turn(index == 0, is_stopped, live, sink)?;
            is_over &= lane.is_over;
        }
        if is_over {
            break;
        }
        match &*lanes {
            [lane] if lane.plan.sleeps && arrived == 0 => lane.session.wait(SLEEP_MAX)?,
            [lane, ..] if lane.plan.sleeps && arrived == 0 => thread::sleep(SLEEP_MAX_SEVERAL),
            _ => {}
        }
    }
    lanes.iter_mut().try_for_each(|lane| lane.finish(stop, sink))
}

/// Stores every record once, as thread 0 of `process`; `checker`, if there is one, learns the versions.
///
/// # Errors
/// When the session's port is broken for good, or a record could not be stored, with the reason.
pub fn preload<P: Port>(
    session: &mut Session<P>,
    records: u32,
    value_len: &ValueLaw,
    checker: Option<&Checker>,
    stop: &AtomicBool,
    progress: impl Fn(u64),
) -> io::Result<()> {
    let mut pusher = Pusher::of(checker.map_or(0, Checker::process), 0, 1, value_len);
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
        while pusher.push(session.now(), session, &draw, draw.key(), Place { batch: 0, position: 0 }, None)
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
