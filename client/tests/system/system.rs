//! A rig with its callers: pushes operations, and sees that each ends exactly once.

use linerate_client::{Operation, Outcome, PushError, Reason, Session, SessionConfig};
use linerate_proto::wire::{STAT_COUNT, Statistic};
use linerate_server::stats::sum;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{num::NonZeroU32, time::Duration};

use crate::rig::{Rig, Setup};

/// How an operation ended, kept beyond the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Value(Vec<u8>),
    NotFound,
    Done,
    NotExecuted(Reason),
    Unknown,
}

impl From<Outcome<'_>> for Ended {
    fn from(outcome: Outcome<'_>) -> Self {
        match outcome {
            Outcome::Value(value) => Self::Value(value.to_vec()),
            Outcome::NotFound => Self::NotFound,
            Outcome::Done => Self::Done,
            Outcome::NotExecuted(reason) => Self::NotExecuted(reason),
            Outcome::OutcomeUnknown => Self::Unknown,
        }
    }
}

/// One operation's life. Times count pushes and ends over the whole system: they tell the order and nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) ended: Option<Ended>,
    /// As the session was told, if it asks.
    pub(crate) version: u64,
    pub(crate) ttl_ms: Option<NonZeroU32>,
}

/// A session and all that was ever pushed into it; tags are positions in `calls`.
struct Caller<R: Rig> {
    session: Session<R::Port>,
    calls: Vec<Call>,
    open: usize,
}

/// A running server with sessions.
pub(crate) struct System<R: Rig> {
    pub(crate) rig: R,
    pub(crate) random: StdRng,
    callers: Vec<Caller<R>>,
    clock: u64,
    /// Whether sessions are polled, which holds requests back to travel together, or flushed.
    lingers: bool,
}

impl<R: Rig> System<R> {
    pub(crate) fn start(seed: u64, setup: Setup) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
        let lingers = random.random_bool(0.5);
        Self { rig: R::start(seed, setup), random, callers: Vec::new(), clock: 0, lingers }
    }

    /// A server and one session with it.
    pub(crate) fn with_caller(seed: u64, setup: Setup) -> Self {
        let mut system = Self::start(seed, setup);
        let config = system.config();
        system.attach(setup.cores, config);
        system
    }

    /// Settings of a session at random; patient, so that nothing ends for lack of time.
    pub(crate) fn config(&mut self) -> SessionConfig {
        SessionConfig {
            window: [1, 2, 5, 16, 48][self.random.random_range(0..5)],
            operations_max: [1, 3, 20, 255][self.random.random_range(0..4)],
            burst: self.random.random_range(1..20),
            timeout: self.rig.patience(),
            versions: self.random.random_bool(0.5),
            lifetimes: self.random.random_bool(0.3),
            coalesce: self.random.random_bool(0.5),
            ..SessionConfig::default()
        }
    }

    /// Adds a session that believes in `cores` cores; returns its number.
    pub(crate) fn attach(&mut self, cores: u8, config: SessionConfig) -> usize {
        let session = self.rig.attach(cores, config, self.random.random());
        self.add(session)
    }

    /// Adds a session that was made elsewhere; returns its number.
    pub(crate) fn add(&mut self, session: Session<R::Port>) -> usize {
        self.callers.push(Caller { session, calls: Vec::new(), open: 0 });
        self.callers.len() - 1
    }

    /// A time after everything that has happened and before everything that will.
    pub(crate) const fn mark(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub(crate) fn session(&self, caller: usize) -> &Session<R::Port> {
        &self.callers[caller].session
    }

    pub(crate) fn call(&self, caller: usize, tag: usize) -> &Call {
        &self.callers[caller].calls[tag]
    }

    /// How the operation ended, or `None` when it has not yet.
    pub(crate) fn ended(&self, caller: usize, tag: usize) -> Option<&Ended> {
        self.call(caller, tag).ended.as_ref()
    }

    /// Pushes an operation if there is room for it now; returns its tag.
    pub(crate) fn try_push(&mut self, caller: usize, operation: Operation<'_>) -> Option<usize> {
        let Caller { session, calls, open } = &mut self.callers[caller];
        match session.push(self.rig.now(session), operation, calls.len() as u64) {
            Ok(()) => {
                self.clock += 1;
                calls.push(Call { start: self.clock, end: u64::MAX, ended: None, version: 0, ttl_ms: None });
                *open += 1;
                Some(calls.len() - 1)
            }
            Err(PushError::Full) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Why an operation is not taken, other than for lack of room; `None` when it was.
    pub(crate) fn refused(&mut self, caller: usize, operation: Operation<'_>) -> Option<PushError> {
        let Caller { session, .. } = &mut self.callers[caller];
        let pushed = session.push(self.rig.now(session), operation, u64::MAX);
        pushed.err().filter(|error| *error != PushError::Full)
    }

    /// Pushes an operation as soon as there is room; returns its tag.
    pub(crate) fn push(&mut self, caller: usize, operation: Operation<'_>) -> usize {
        let begun = self.rig.elapsed();
        loop {
            if let Some(tag) = self.try_push(caller, operation) {
                return tag;
            }
            self.turn();
            self.assert_alive(begun, "room for an operation");
        }
    }

    /// Pushes an operation and waits for its end.
    pub(crate) fn execute(&mut self, caller: usize, operation: Operation<'_>) -> Ended {
        let tag = self.push(caller, operation);
        self.settle();
        self.ended(caller, tag).expect("everything has ended").clone()
    }

    /// The same for the first session; with the version that it was told.
    pub(crate) fn execute_told(&mut self, operation: Operation<'_>) -> (Ended, u64) {
        let tag = self.push(0, operation);
        self.settle();
        let Call { ended, version, .. } = self.call(0, tag).clone();
        (ended.expect("everything has ended"), version)
    }

    /// Gets a key until it is not there any more.
    pub(crate) fn until_absent(&mut self, key: &[u8]) {
        let begun = self.rig.elapsed();
        while self.get(key) != Ended::NotFound {
            self.turn();
            self.assert_alive(begun, "a key to expire");
        }
    }

    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Ended {
        self.execute(0, Operation::put(key, value))
    }

    pub(crate) fn get(&mut self, key: &[u8]) -> Ended {
        self.execute(0, Operation::get(key))
    }

    pub(crate) fn delete(&mut self, key: &[u8]) -> Ended {
        self.execute(0, Operation::delete(key))
    }

    /// Lets all sessions send and receive once, and time pass.
    pub(crate) fn turn(&mut self) {
        let arrived = self.poll();
        self.rig.pass(arrived > 0);
    }

    /// Lets all sessions send and receive once; returns how many datagrams arrived.
    pub(crate) fn poll(&mut self) -> usize {
        let mut arrived = 0;
        for Caller { session, calls, open } in &mut self.callers {
            let now = self.rig.now(session);
            let clock = &mut self.clock;
            let mut sink = |end: linerate_proto::flow::Ended<'_>| {
                let (tag, outcome) = (end.tag, end.outcome);
                *clock += 1;
                let call = &mut calls[tag as usize];
                assert_eq!(call.ended, None, "operation {tag} ended a second time, now with {outcome:?}");
                call.ended = Some(outcome.into());
                (call.version, call.ttl_ms) = (end.version, end.ttl_ms);
                call.end = *clock;
                *open -= 1;
            };
            let polled =
                if self.lingers { session.poll(now, &mut sink) } else { session.flush(now, &mut sink) };
            arrived += polled.expect("the port holds");
        }
        arrived
    }

    /// Turns until every operation of every caller has ended.
    pub(crate) fn settle(&mut self) {
        let begun = self.rig.elapsed();
        while self.callers.iter().any(|caller| caller.open > 0) {
            self.turn();
            self.assert_alive(begun, "every operation's end");
        }
        assert!(self.callers.iter().all(|caller| caller.session.is_idle()), "nothing is left in a session");
    }

    /// Turns until something holds.
    pub(crate) fn until(&mut self, what: &str, condition: impl Fn(&mut Self) -> bool) {
        let begun = self.rig.elapsed();
        while !condition(self) {
            self.turn();
            self.assert_alive(begun, what);
        }
    }

    /// Turns until the cores' sum of a statistic is `expected`.
    pub(crate) fn expect_stat(&mut self, statistic: Statistic, expected: u64) {
        let begun = self.rig.elapsed();
        let read = |system: &mut Self| system.stats()[statistic as usize];
        // A count above will not come down, and no more will come when the first readings agree: all have ended.
        while read(self) < expected {
            self.turn();
            let found = read(self);
            assert!(!self.is_stuck(begun), "{statistic:?} is {found}, not {expected}");
        }
        assert_eq!(read(self), expected, "{statistic:?}");
    }

    /// Turns until the cores' sum of a statistic is at least `least`.
    pub(crate) fn expect_at_least(&mut self, statistic: Statistic, least: u64) {
        self.until("a statistic to grow", |system| system.stats()[statistic as usize] >= least);
    }

    pub(crate) fn stats(&mut self) -> [u64; STAT_COUNT] {
        sum(self.rig.stats())
    }

    fn is_stuck(&self, begun: Duration) -> bool {
        self.rig.elapsed().saturating_sub(begun) > self.rig.patience()
    }

    fn assert_alive(&self, begun: Duration, what: &str) {
        assert!(!self.is_stuck(begun), "waited in vain for {what}");
    }
}
