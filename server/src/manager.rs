//! What a service manager such as systemd is told: when the server serves, when it stops, and, as long as every core makes
//! progress, that it is alive (sd_notify(3)). Without one, nothing is said and nothing costs anything.

use std::{
    io,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;

/// How much longer a start that goes on may take, each time it says so.
const START_EXTENSION_US: u32 = 30_000_000;

/// Says that the server serves.
///
/// # Errors
/// When there is a service manager that can not be told; it will take the start for a failure.
pub(crate) fn serving(status: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)])
}

/// Says that the start goes on.
pub(crate) fn starting(status: &str) {
    tell(&[NotifyState::Status(status), NotifyState::ExtendTimeoutUsec(START_EXTENSION_US)]);
}

/// Says how it goes.
pub(crate) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Says that the server stops.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// A service manager that is gone is no reason to stop serving.
fn tell(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}

/// Tells a service manager that wants to hear it that all cores make progress. It ends the server when it has not heard so
/// for as long as it was told to wait.
#[derive(Debug)]
pub(crate) struct Watchdog {
    /// `None`: nobody waits.
    interval: Option<Duration>,
    next: Option<Instant>,
    /// What each core had published when it was last said.
    seen_ns: Vec<u64>,
}

impl Watchdog {
    /// As the environment says.
    pub(crate) fn of_environment() -> Self {
        Self::new(sd_notify::watchdog_enabled())
    }

    /// `patience`: how long the service manager waits.
    fn new(patience: Option<Duration>) -> Self {
        // A third: a core that hangs for half of the time and then goes on is still in time.
        Self { interval: patience.map(|patience| patience / 3), next: None, seen_ns: Vec::new() }
    }

    /// Says it if it is time to. `uptimes_ns`: until when each core is known to have been running.
    pub(crate) fn watch(&mut self, now: Instant, uptimes_ns: impl FnOnce() -> Vec<u64>) {
        if self.is_due(now, uptimes_ns) {
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// Whether it is time, and every core has made progress since it was last said.
    fn is_due(&mut self, now: Instant, uptimes_ns: impl FnOnce() -> Vec<u64>) -> bool {
        let Some(interval) = self.interval else { return false };
        if self.next.is_some_and(|next| now < next) {
            return false;
        }
        let uptimes_ns = uptimes_ns();
        let seen = self.seen_ns.iter().copied().chain(std::iter::repeat(0));
        if uptimes_ns.iter().zip(seen).any(|(&uptime_ns, seen_ns)| uptime_ns <= seen_ns) {
            return false;
        }
        self.seen_ns = uptimes_ns;
        self.next = Some(now + interval);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: nobody who does not wait is told anything, and no statistics are read for it. Method: no patience is given.
    #[test]
    fn without_a_manager_nothing_is_said() {
        let mut watchdog = Watchdog::new(None);
        assert!(!watchdog.is_due(Instant::now(), || unreachable!("nobody asked")));
    }

    /// Goal: one core that hangs is enough for silence, for as long as it hangs; then it goes on. Method: times and uptimes are
    /// the test's.
    #[test]
    fn a_core_that_hangs_silences_it() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut watchdog = Watchdog::new(Some(Duration::from_secs(3)));
        assert!(!watchdog.is_due(at(0), || vec![5, 0]), "the second core has not published anything");
        assert!(watchdog.is_due(at(20), || vec![6, 1]), "the first time at once");
        assert!(!watchdog.is_due(at(1_019), || unreachable!("it is not time yet")));
        assert!(watchdog.is_due(at(1_020), || vec![7, 2]));
        for ms in [2_020, 3_000, 60_000] {
            assert!(!watchdog.is_due(at(ms), || vec![ms, 2]), "the second core hangs");
        }
        assert!(watchdog.is_due(at(60_020), || vec![9, 3]), "it is said as soon as it goes on");
    }
}
