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
    pusher::{Due, Pusher},
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
    /// Batches in flight. In an open loop as many operations as these have are in flight at most, and later ones wait.
    pub batches_in_flight: usize,
    /// When operations are begun; `None` for a closed loop, in which a batch is begun as soon as one has ended.
    pub pace: Option<Pace>,
    /// Lengths of the values put.
    pub value_len: ValueLaw,
    /// Whether each value got must be one that was put at its key.
    pub verify: bool,
    /// Whether to sleep while nothing arrives: threads that share a CPU must let each other, and the server, have it.
    pub sleeps: bool,
}

/// When the sessions of one thread begin to be counted, and when they end.
#[derive(Clone, Copy, Debug)]
pub struct LoadTimes {
    /// Time before counting starts.
    pub warmup: Duration,
    /// Time that is counted.
    pub duration: Duration,
    /// Time after which what was counted is handed over, again and again.
    pub interval: Duration,
    /// Longest time, after all that, for what is still to be sent, and as long again for what is then in flight.
    pub patience: Duration,
}

/// The end of the interval that begins `from` after the beginning of what is counted. The last one ends with everything, rather
/// than leave a short one behind it.
#[must_use]
pub fn interval_end(from: Duration, interval: Duration, duration: Duration) -> Duration {
    let end = from + interval;
    if end + interval / 2 > duration { duration } else { end }
}

/// What the sessions of one thread have counted in some time.
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
    /// Operations that were due in this time and have been begun, in an open loop.
    pub due: u64,
    /// Operations that were due and could not be sent even after the end: the server had stood still for too long. Their
    /// latencies count up to when they were given up.
    pub unsent: u64,
    /// Values that were never put at the key they were got from.
    pub wrong_values: u64,
    /// Time from the start of an operation's batch to its answer; in an open loop from when the operation was due.
    pub latency: LatencyHistogram,
    /// Time from the start of a batch to its last answer; nothing in an open loop.
    pub batch_latency: LatencyHistogram,
    /// What the sessions counted.
    pub counters: SessionCounters,
    /// CPU time of the thread.
    pub cpu: Duration,
    /// Time in which no session had anything to send and nothing came.
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

    /// Of the operations that were begun for themselves, those that were answered: a record that is got and then put is one.
    #[must_use]
    pub const fn begun_and_answered(&self) -> u64 {
        (self.gets + self.puts).saturating_sub(self.rmws)
    }

    /// Adds what was counted in the time after this one, or by another thread in the same time. `elapsed` is left alone:
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
        self.due += other.due;
        self.unsent += other.unsent;
        self.wrong_values += other.wrong_values;
        self.latency.merge(&other.latency);
        self.batch_latency.merge(&other.batch_latency);
        self.counters = self.counters.plus(&other.counters);
        self.cpu += other.cpu;
        self.idle += other.idle;
        self.touched ^= other.touched;
    }

    /// The same memory with nothing in it.
    #[must_use]
    pub fn emptied(self) -> Self {
        let Self { rmw_latency, latency, batch_latency, .. } = self;
        Self {
            rmw_latency: rmw_latency.emptied(),
            latency: latency.emptied(),
            batch_latency: batch_latency.emptied(),
            ..Self::default()
        }
    }
}

/// What the sessions of one thread have counted from one moment to the next.
#[derive(Clone, Debug)]
pub struct Interval {
    /// Number of the thread, from 0 on.
    pub thread: usize,
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
    /// Whether there is nothing special about its operations.
    is_plain: bool,
    /// When counting begins, and when all ends, by the session's clock.
    counting_from: Instant,
    end: Instant,
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
        let pusher = Pusher::new(plan.process, plan.client, batch, &plan.value_len);
        let never = Instant::FAR_FUTURE;
        let is_plain = plan.pace.is_none() && checker.is_none() && stream.is_plain();
        Self {
            is_plain,
            session,
            stream,
            plan,
            tally,
            pusher,
            schedule: None,
            counting_from: never,
            end: never,
        }
    }

    /// Looks after the port while there is nothing to do; returns how many datagrams have come.
    ///
    /// # Errors
    /// When the port is broken for good.
    pub fn look_after(&mut self) -> io::Result<usize> {
        self.session.poll(self.session.now(), &mut |_| {})
    }

    fn begin(&mut self, times: &LoadTimes) {
        let now = self.session.now();
        self.schedule = self.plan.pace.as_ref().map(|pace| Schedule::new(pace, now));
        self.counting_from = now + times.warmup;
        self.end = self.counting_from + times.duration;
    }

    /// Sends what is due and takes what has come; returns whether that was anything.
    #[inline]
    fn turn(&mut self, report: &mut LoadReport) -> io::Result<bool> {
        if self.is_plain { self.turn_as::<true>(report) } else { self.turn_as::<false>(report) }
    }

    #[inline]
    fn turn_as<const PLAIN: bool>(&mut self, report: &mut LoadReport) -> io::Result<bool> {
        let now = self.session.now();
        if let Some(check) = &mut self.tally.check {
            check.turn();
        }
        let due = Due { now, until: now.min(self.end), counting_from: self.counting_from };
        let (session, stream, tally) = (&mut *self.session, &mut self.stream, &mut self.tally);
        let has_pushed =
            self.pusher.fill::<P, PLAIN>(due, session, stream, tally, self.schedule.as_mut(), report)?;
        let clock = session.clock();
        let arrived = session.poll(now, &mut |ended| tally.take::<PLAIN>(report, ended, clock))?;
        tally.end_burst(report, clock);
        if self.plan.sleeps && arrived == 0 {
            session.flush(now, &mut |ended| tally.take::<PLAIN>(report, ended, clock))?;
            tally.end_burst(report, clock);
        }
        Ok(has_pushed || arrived > 0)
    }

    /// Sends what was due before the end, as long as `may_push`, and takes what comes; returns whether nothing is left, and
    /// whether anything has come.
    fn drain(&mut self, may_push: bool, report: &mut LoadReport) -> io::Result<(bool, bool)> {
        let now = self.session.now();
        let (session, stream, tally) = (&mut *self.session, &mut self.stream, &mut self.tally);
        let clock = session.clock();
        let mut has_more = false;
        if may_push {
            has_more = match &mut self.schedule {
                Some(schedule) => {
                    let due = Due { now, until: self.end, counting_from: self.counting_from };
                    self.pusher.fill::<P, false>(due, session, stream, tally, Some(schedule), report)?;
                    schedule.next() < self.end || self.pusher.has_begun()
                }
                None => !self.pusher.push_updates(now, session, tally)?,
            };
        }
        let arrived = session.flush(now, &mut |ended| tally.take::<false>(report, ended, clock))?;
        tally.end_burst(report, clock);
        let has_ended = !has_more && tally.rmws.waiting.is_empty() && session.is_idle();
        Ok((has_ended, arrived > 0))
    }

    /// Counts what was due before the end and was never sent as having waited until now.
    fn give_up(&mut self, report: &mut LoadReport) {
        let now = self.session.now();
        let Some(schedule) = &mut self.schedule else { return };
        if self.pusher.has_begun() {
            let due = self.tally.batches[self.pusher.begun()].begun;
            report.unsent += 1;
            report.latency.record(now.since(due).as_nanos() as u64);
        }
        schedule.rest(self.end, |due, count| {
            report.unsent += count;
            report.latency.record_n(now.since(due).as_nanos() as u64, count);
        });
    }

    /// Time until an operation is due.
    fn time_left(&self) -> Duration {
        self.schedule.as_ref().map_or(SLEEP_MAX, |schedule| schedule.next().since(self.session.now()))
    }
}

/// What of a thread's sessions is counted now.
struct Counted {
    index: u32,
    /// By the clock of the first session, as everything here.
    since: Instant,
    /// From the beginning of what is counted.
    from: Duration,
    counters: SessionCounters,
    cpu: Duration,
}

/// Runs the load of one thread over its sessions. `live` is added to as operations end, for whoever shows progress; when
/// `stop` is set the run ends early. `sink` is handed what was counted, interval by interval, with its index (see
/// [`Interval`]), and returns memory for the next.
///
/// # Errors
/// When a session's port is broken for good; what was counted until then has been handed over.
///
/// # Panics
/// Without a session.
pub fn run_load<P: Port>(
    lanes: &mut [Lane<'_, P>],
    times: &LoadTimes,
    live: &AtomicU64,
    stop: &AtomicBool,
    mut sink: impl FnMut(Option<u32>, LoadReport) -> LoadReport,
) -> io::Result<()> {
    let begun = lanes[0].session.now();
    lanes.iter_mut().for_each(|lane| lane.begin(times));
    let counting_from = begun + times.warmup;
    let end = counting_from + times.duration;
    let sleeps = lanes[0].plan.sleeps;
    let mut report = LoadReport::default();
    let mut counted: Option<Counted> = None;
    let mut next_mark = counting_from;
    let (mut last_turn, mut was_idle) = (begun, false);
    // Operations told to whoever watches, of those in the present interval.
    let (mut seen, mut coalesced_before) = (0, coalesced(lanes));
    let failure = loop {
        let now = lanes[0].session.now();
        if was_idle {
            report.idle += now.since(last_turn);
        }
        last_turn = now;
        let is_stopped = stop.load(Ordering::Relaxed);
        if now >= next_mark || is_stopped {
            let from = match &counted {
                Some(former) => {
                    let filled = cut(former, now, lanes, report);
                    report = sink(Some(former.index), filled);
                    interval_end(former.from, times.interval, times.duration)
                }
                None => {
                    report = report.emptied();
                    Duration::ZERO
                }
            };
            if now >= end || is_stopped {
                break None;
            }
            let index = counted.as_ref().map_or(0, |former| former.index + 1);
            counted = Some(Counted { index, since: now, from, counters: counters(lanes), cpu: thread_cpu() });
            next_mark = counting_from + interval_end(from, times.interval, times.duration);
            (seen, coalesced_before) = (0, coalesced(lanes));
        }
        let mut is_busy = false;
        let turned = lanes.iter_mut().try_for_each(|lane| {
            is_busy |= lane.turn(&mut report)?;
            io::Result::Ok(())
        });
        if let Err(error) = turned {
            if let Some(former) = &counted {
                let now = lanes[0].session.now();
                report = sink(Some(former.index), cut(former, now, lanes, report));
            }
            break Some(error);
        }
        was_idle = !is_busy;
        if is_busy {
            // What did not travel must not look like work.
            let ended =
                (report.gets + report.puts).saturating_sub(coalesced(lanes).wrapping_sub(coalesced_before));
            live.fetch_add(ended.saturating_sub(seen), Ordering::Relaxed);
            seen = ended;
        } else if sleeps {
            let longest = if lanes.len() == 1 { SLEEP_MAX } else { SLEEP_MAX_SEVERAL };
            let left = lanes.iter().map(Lane::time_left).fold(longest, Duration::min);
            match lanes {
                [lane] => lane.session.wait(left)?,
                _ => thread::sleep(left),
            }
        }
    };
    if let Some(error) = failure {
        return Err(error);
    }
    let late = finish(lanes, times, stop, report.emptied())?;
    sink(None, late);
    Ok(())
}

/// What was counted since `former`.
fn cut<P: Port>(former: &Counted, now: Instant, lanes: &[Lane<'_, P>], report: LoadReport) -> LoadReport {
    LoadReport {
        elapsed: now.since(former.since),
        counters: counters(lanes).since(&former.counters),
        cpu: thread_cpu().saturating_sub(former.cpu),
        ..report
    }
}

/// Sends what was due before the end, waits for what is in flight, and returns what became of it: such of it as belongs to
/// latencies and failures.
fn finish<P: Port>(
    lanes: &mut [Lane<'_, P>],
    times: &LoadTimes,
    stop: &AtomicBool,
    mut report: LoadReport,
) -> io::Result<LoadReport> {
    let begun = lanes[0].session.now();
    if stop.load(Ordering::Relaxed) {
        // What would have been due later is nobody's loss.
        lanes.iter_mut().for_each(|lane| lane.end = lane.end.min(lane.session.now()));
    }
    let mut last_busy = begun;
    loop {
        let now = lanes[0].session.now();
        let waited = now.since(begun);
        let may_push = waited < times.patience && !stop.load(Ordering::Relaxed);
        let (mut has_ended, mut is_busy) = (true, false);
        for lane in &mut *lanes {
            let (lane_has_ended, lane_is_busy) = lane.drain(may_push, &mut report)?;
            has_ended &= lane_has_ended;
            is_busy |= lane_is_busy;
        }
        // Operations are given up after the same time, so that this is only for those that were sent last.
        if has_ended || waited > 2 * times.patience {
            break;
        }
        if is_busy {
            last_busy = now;
        } else if now.since(last_busy) > SLEEP_MAX {
            thread::sleep(SLEEP_MAX_SEVERAL);
        }
    }
    lanes.iter_mut().for_each(|lane| lane.give_up(&mut report));
    let LoadReport { errors, outcome_unknown, due, unsent, wrong_values, latency, batch_latency, .. } =
        report;
    Ok(LoadReport {
        errors,
        outcome_unknown,
        due,
        unsent,
        wrong_values,
        latency,
        batch_latency,
        rmw_latency: report.rmw_latency,
        ..LoadReport::default()
    })
}

fn counters<P: Port>(lanes: &[Lane<'_, P>]) -> SessionCounters {
    let each = lanes.iter().map(|lane| lane.session.counters());
    each.fold(SessionCounters::default(), |sum, counters| sum.plus(&counters))
}

fn coalesced<P: Port>(lanes: &[Lane<'_, P>]) -> u64 {
    lanes.iter().map(|lane| lane.session.coalesced()).sum()
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
    let mut pusher = Pusher::new(checker.map_or(0, Checker::process), 0, 1, value_len);
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
        while pusher.push(session.now(), session, &draw, || draw.key(), Place { batch: 0, position: 0 }, None)
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
