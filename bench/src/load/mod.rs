//! The closed loop of one client thread: keep so many batches in flight, look at every answer, count.

mod pusher;
mod tally;

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use linerate_client::{Ended, Outcome, PushError, Session, SessionCounters};
use linerate_dataplane::Port;
use linerate_server::stats::thread_cpu_ns;

use self::{
    pusher::Pusher,
    tally::{Batch, Place, Tag, Tally},
};
use crate::{
    check::{Checker, ThreadCheck},
    latency::LatencyHistogram,
    workload::{Draw, Stream, ValueLen},
};

/// Longest sleep of a thread that sleeps: an operation may wait so long for others to travel with.
const SLEEP_MAX: Duration = Duration::from_millis(1);

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
