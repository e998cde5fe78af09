//! What server cores and clients have in common as nodes of the simulation: a clock, and when they take turns.

use std::time::Duration;

use linerate_client::Instant;

/// Where clocks start: far enough from zero that they can be set back.
const CLOCK_START: Duration = Duration::from_secs(1_000_000);

/// The clock that a node is told, which need not agree with anybody's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// Ahead of the network's time by this.
    ahead: Duration,
}

impl Clock {
    pub(crate) const fn new() -> Self {
        Self { ahead: CLOCK_START }
    }

    pub(crate) fn at(&self, now: Duration) -> Instant {
        Instant::from_nanos((now + self.ahead).as_nanos() as u64)
    }

    pub(crate) fn jump_forward(&mut self, by: Duration) {
        self.ahead += by;
    }

    pub(crate) fn jump_back(&mut self, by: Duration) {
        self.ahead -= by;
    }
}

/// When a node takes its turns.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// It stands still until then.
    paused_until: Duration,
    /// Not before that, whatever arrives.
    earliest: Duration,
    /// Then at the latest, even if nothing arrives.
    wake_at: Duration,
    /// Least time between turns.
    interval: Duration,
    /// A longer one, and until when it holds.
    slow: (Duration, Duration),
}

/// No node takes two turns at one instant.
const INTERVAL_MIN: Duration = Duration::from_nanos(200);

impl Pace {
    pub(crate) fn new(now: Duration, interval: Duration) -> Self {
        Self { earliest: now, wake_at: now, interval, ..Self::default() }
    }

    /// When the next turn is due. `has_mail`: something waits to be received.
    #[inline]
    pub(crate) fn next(&self, has_mail: bool) -> Duration {
        let due = if has_mail { self.earliest } else { self.wake_at.max(self.earliest) };
        due.max(self.paused_until)
    }

    /// A turn was taken; the next is due after `rest` unless something arrives.
    pub(crate) fn turned(&mut self, now: Duration, rest: Duration) {
        let interval = if now < self.slow.1 { self.slow.0 } else { self.interval };
        self.earliest = now + interval.max(INTERVAL_MIN);
        self.wake_at = now + rest;
    }

    pub(crate) fn pause(&mut self, until: Duration) {
        self.paused_until = self.paused_until.max(until);
    }

    pub(crate) fn slow_down(&mut self, interval: Duration, until: Duration) {
        self.slow = (interval, until);
    }

    /// Forgets all pauses, and takes turns this far apart from now on.
    pub(crate) fn heal(&mut self, now: Duration, interval: Duration) {
        *self = Self::new(now, interval);
    }
}
