//! Which operations are logged for the zone check, for how long, and how the logs of all client threads come together.
//!
//! A lane is a choice of keys. While its window is open every thread logs each operation on them; the window closes for
//! all threads when a second has passed or somebody's log is full. When what was in flight then has ended, each thread
//! hands its log over, and the next window opens with another choice. Memory is bounded by the logs, time by one window
//! of a lane per second. It does no harm that threads notice the end of a window a moment later than others: any part of
//! a linearizable history is linearizable.

use std::{
    mem,
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Acquire, Release},
        },
    },
    time::{Duration, Instant},
};

use crate::check::zone::{Event, NEVER};

/// Longest time that a window is open, and shortest between two openings.
const WINDOW: Duration = Duration::from_secs(1);

/// Events that all threads together log in a window of a lane: 4 MiB, and some milliseconds of checking.
const EVENTS_MAX: usize = 1 << 17;

/// Events that a thread may log in any case.
const EVENTS_MIN: usize = 1 << 9;

/// Which keys a lane logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Record 0, the hottest one of a Zipf law: contention is where an order is most likely to be broken.
    Hottest,
    /// One of 1,024 of the other records, other ones in each window.
    Sample,
}

/// A choice of keys and the state of its window.
#[derive(Debug)]
pub struct Lane {
    choice: Choice,
    /// Number of the window, from 1 on, times two; plus one while it is open.
    gate: AtomicU64,
    /// A random odd number by which the window's records are chosen. Changes only while the window is closed.
    salt: AtomicU64,
    logs: Box<[Mutex<Log>]>,
    events_max: usize,
}

/// What a thread has handed over.
#[derive(Debug, Default)]
struct Log {
    /// The window it was of.
    window: u64,
    /// Whether the thread has ended: there will be no more.
    is_last: bool,
    events: Vec<Event>,
}

impl Lane {
    /// A lane for so many threads. It has no window yet.
    #[must_use]
    pub fn new(choice: Choice, threads: usize) -> Self {
        Self {
            choice,
            gate: AtomicU64::new(0),
            salt: AtomicU64::new(0),
            logs: (0..threads).map(|_| Mutex::default()).collect(),
            events_max: (EVENTS_MAX / threads.max(1)).max(EVENTS_MIN),
        }
    }

    fn open(&self, salt: u64) {
        self.salt.store(salt | 1, Release);
        let gate = self.gate.load(Acquire);
        self.gate.store((gate | 1) + 2, Release);
    }

    /// Closes a window, if it is still open.
    fn close(&self, gate: u64) {
        // Fails when somebody else has closed it.
        let _ = self.gate.compare_exchange(gate | 1, gate & !1, AcqRel, Acquire);
    }

    fn log(&self, thread: usize) -> std::sync::MutexGuard<'_, Log> {
        // A thread that panicked while it held the lock ends the run anyway.
        self.logs[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens and closes the windows of a lane; of the thread that watches the others.
#[derive(Debug)]
pub struct LaneKeeper<'a> {
    lane: &'a Lane,
    opened: Option<Instant>,
}

impl<'a> LaneKeeper<'a> {
    /// The keeper of `lane`; there is one.
    #[must_use]
    pub const fn new(lane: &'a Lane) -> Self {
        Self { lane, opened: None }
    }

    /// Does what is due at `now`; `salt` is a random number. When a window is complete its events are put behind those
    /// in `events`, and the return value is `true`.
    pub fn turn(&mut self, now: Instant, salt: u64, events: &mut Vec<Event>) -> bool {
        let gate = self.lane.gate.load(Acquire);
        let is_over = self.opened.is_none_or(|opened| now - opened >= WINDOW);
        if gate & 1 == 1 {
            if is_over {
                self.lane.close(gate);
            }
            return false;
        }
        let threads = 0..self.lane.logs.len();
        let is_complete = threads.clone().all(|thread| {
            let log = self.lane.log(thread);
            log.is_last || log.window == gate / 2
        });
        if !is_complete {
            return false;
        }
        // A window that was complete before waits for the second to be over.
        let is_new = threads.fold(false, |any, thread| {
            let log = &mut self.lane.log(thread).events;
            let is_new = !log.is_empty();
            events.append(log);
            any | is_new
        });
        if is_over {
            self.opened = Some(now);
            self.lane.open(salt);
        }
        is_new
    }

    /// Puts what is left behind the events in `events`; to be called when all threads have ended.
    pub fn finish(&mut self, events: &mut Vec<Event>) {
        (0..self.lane.logs.len()).for_each(|thread| events.append(&mut self.lane.log(thread).events));
    }
}

/// A thread's part of a lane.
#[derive(Debug)]
pub struct LaneLog<'a> {
    lane: &'a Lane,
    thread: usize,
    gate: u64,
    /// Records are logged whose product with `salt` is at least `base` and less than `limit` above it; none is when
    /// that is 0.
    limit: u64,
    salt: u64,
    base: u64,
    events: Vec<Event>,
    /// Events whose operation has not ended.
    in_flight: usize,
}

impl<'a> LaneLog<'a> {
    /// The log of the thread with this index.
    #[must_use]
    pub const fn new(lane: &'a Lane, thread: usize) -> Self {
        Self { lane, thread, gate: 0, limit: 0, salt: 0, base: 0, events: Vec::new(), in_flight: 0 }
    }

    /// Whether operations on `record` are logged now.
    #[inline]
    #[must_use]
    pub const fn wants(&self, record: u32) -> bool {
        (record as u64).wrapping_mul(self.salt).wrapping_sub(self.base) < self.limit
    }

    /// Looks whether the window was closed or a new one opened. To be called often, between operations.
    #[inline]
    pub fn look(&mut self) {
        let gate = self.lane.gate.load(Acquire);
        if gate != self.gate || gate & 1 == 0 {
            self.move_on(gate);
        }
    }

    #[cold]
    fn move_on(&mut self, gate: u64) {
        if gate & 1 == 0 {
            self.limit = 0;
        }
        if self.in_flight > 0 || (gate == self.gate && self.events.is_empty()) {
            return;
        }
        if gate & 1 == 0 {
            let mut log = self.lane.log(self.thread);
            log.window = gate / 2;
            mem::swap(&mut log.events, &mut self.events);
            drop(log);
            self.events.clear();
        } else {
            (self.salt, self.base, self.limit) = match self.lane.choice {
                // Only record 0 has a product of 0.
                Choice::Hottest => (1, 0, 1),
                // The upper bits of a product with a random odd number are evenly spread (Dietzfelbinger et al., "A
                // reliable randomized algorithm for the closest-pair problem", 1997).
                Choice::Sample => (self.lane.salt.load(Acquire), 1, 1 << (64 - 10)),
            };
        }
        self.gate = gate;
    }

    /// Logs an operation that begins now. Returns the number by which it ends.
    pub fn begin(&mut self, event: Event) -> usize {
        self.events.push(event);
        self.in_flight += 1;
        if self.events.len() >= self.lane.events_max {
            self.limit = 0;
            self.lane.close(self.gate);
        }
        self.events.len() - 1
    }

    /// An operation has ended: `change` writes down what is known now.
    pub fn end(&mut self, number: usize, change: impl FnOnce(&mut Event)) {
        self.in_flight -= 1;
        change(&mut self.events[number]);
    }
}

impl Drop for LaneLog<'_> {
    /// Hands over what there is. Operations that have not ended are in it as such.
    fn drop(&mut self) {
        let mut log = self.lane.log(self.thread);
        log.is_last = true;
        log.events.append(&mut self.events);
    }
}

/// Writes down that an operation had no effect and saw nothing.
pub const fn withdraw(event: &mut Event) {
    event.is_write = false;
    event.end_ns = NEVER;
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

    use super::*;

    fn event(record: u32) -> Event {
        Event { start_ns: 1, end_ns: NEVER, value: 2, record, is_write: true }
    }

    const SALT: u64 = 0x9e37_79b9_7f4a_7c15;

    /// Goal: a window's way: opened, noticed, filled, closed for all, handed over when nothing is in flight, opened
    /// again after a second. Method: two threads by hand.
    #[test]
    fn a_window_opens_closes_and_is_handed_over() {
        let lane = Lane::new(Choice::Hottest, 2);
        let mut keeper = LaneKeeper::new(&lane);
        let (mut one, mut other) = (LaneLog::new(&lane, 0), LaneLog::new(&lane, 1));
        let (start, mut events) = (Instant::now(), Vec::new());
        one.look();
        assert!(!one.wants(0), "no window yet");
        assert!(!keeper.turn(start, SALT, &mut events));
        assert!(!one.wants(0), "not noticed yet");
        one.look();
        other.look();
        assert!(one.wants(0) && !one.wants(1) && other.wants(0));
        let number = one.begin(event(0));
        let number_2 = other.begin(event(0));
        assert!(!keeper.turn(start + WINDOW / 2, SALT, &mut events));
        assert!(!keeper.turn(start + WINDOW, SALT, &mut events), "closes");
        one.look();
        assert!(!one.wants(0), "closed while one is in flight");
        one.end(number, |event| event.end_ns = 5);
        one.look();
        assert!(!keeper.turn(start + WINDOW, SALT, &mut events), "the other one is not ready");
        other.end(number_2, withdraw);
        other.look();
        assert!(keeper.turn(start + WINDOW, SALT, &mut events));
        assert_eq!(events, [Event { end_ns: 5, ..event(0) }, Event { is_write: false, ..event(0) }]);
        one.look();
        other.look();
        assert!(one.wants(0) && other.wants(0), "the next window");
        one.begin(event(0));
        drop(one);
        drop(other);
        keeper.finish(&mut events);
        assert_eq!(events.len(), 3, "what was left is there too");
    }

    /// Goal: a full log closes the window at once for everybody, and the next one waits for its second. Method: fill it.
    #[test]
    fn a_full_log_closes_the_window() {
        let lane = Lane::new(Choice::Hottest, 256);
        let mut keeper = LaneKeeper::new(&lane);
        let mut logs: Vec<_> = (0..256).map(|thread| LaneLog::new(&lane, thread)).collect();
        let (start, mut events) = (Instant::now(), Vec::new());
        keeper.turn(start, SALT, &mut events);
        logs.iter_mut().for_each(LaneLog::look);
        let mut count = 0;
        while logs[7].wants(0) {
            let number = logs[7].begin(event(0));
            logs[7].end(number, |event| event.end_ns = 3);
            count += 1;
        }
        assert_eq!(count, EVENTS_MAX / 256);
        logs.iter_mut().for_each(LaneLog::look);
        assert!(!logs[8].wants(0));
        assert!(keeper.turn(start + WINDOW / 2, SALT, &mut events));
        assert_eq!(events.len(), count);
        assert!(!keeper.turn(start + WINDOW / 2, SALT, &mut events), "nothing new");
        logs.iter_mut().for_each(LaneLog::look);
        assert!(!logs[7].wants(0), "not before the second is over");
        keeper.turn(start + WINDOW, SALT, &mut events);
        logs.iter_mut().for_each(LaneLog::look);
        assert!(logs[7].wants(0) && logs[8].wants(0));
    }

    /// Goal: a thread that ends early holds nobody up. Method: one of two ends while a window is open.
    #[test]
    fn a_thread_that_has_ended_is_not_waited_for() {
        let lane = Lane::new(Choice::Hottest, 2);
        let mut keeper = LaneKeeper::new(&lane);
        let (one, mut other) = (LaneLog::new(&lane, 0), LaneLog::new(&lane, 1));
        let (start, mut events) = (Instant::now(), Vec::new());
        keeper.turn(start, SALT, &mut events);
        drop(one);
        other.look();
        let number = other.begin(event(0));
        other.end(number, |event| event.end_ns = 3);
        keeper.turn(start + WINDOW, SALT, &mut events);
        other.look();
        assert!(keeper.turn(start + WINDOW, SALT, &mut events));
        assert_eq!(events.len(), 1);
    }

    /// Goal: a sample is one record of 1,024, and another one with each salt. Method: count a million records for some
    /// salts.
    #[test]
    fn samples_have_their_share() {
        let lane = Lane::new(Choice::Sample, 1);
        let mut log = LaneLog::new(&lane, 0);
        let mut chosen = Vec::new();
        println!("seed 5");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(5);
        for _ in 0..20 {
            lane.open(random.random());
            log.look();
            assert!(!log.wants(0), "the other lane has record 0");
            let records: Vec<u32> = (0..1_000_000).filter(|&record| log.wants(record)).collect();
            assert!((600..1_400).contains(&records.len()), "{} records", records.len());
            chosen.extend(records);
            lane.close(lane.gate.load(Acquire));
            log.look();
        }
        let count = chosen.len();
        chosen.sort_unstable();
        chosen.dedup();
        assert!(chosen.len() > count / 10 * 9, "{} of {count} are different", chosen.len());
    }
}
