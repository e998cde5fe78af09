//! Round-trip estimate and retransmission timeout.

use std::time::Duration;

/// Clock and scheduling granularity added to every timeout.
const GRANULARITY: Duration = Duration::from_micros(50);

/// Timeouts never grow beyond this: a server that comes back is noticed within it.
const RTO_MAX: Duration = Duration::from_secs(1);

/// Round-trip time with the gains of RFC 9002 §5.3, and the retransmission timeout (RTO) that follows from it.
///
/// Unlike there, the floor is a parameter of some 100 µs: a local network answers within tens of microseconds, and a
/// floor made for the Internet would turn each loss into a pause of a thousand round trips.
#[derive(Clone, Copy, Debug)]
pub struct Rtt {
    smoothed: Duration,
    variation: Duration,
    floor: Duration,
    expiries: u32,
}

impl Rtt {
    /// An estimator without a sample: its RTO is `initial`, and later ones are at least `floor`.
    #[must_use]
    pub const fn new(initial: Duration, floor: Duration) -> Self {
        Self { smoothed: Duration::ZERO, variation: initial, floor, expiries: 0 }
    }

    /// Takes a round trip that was measured on one attempt's own answer.
    pub fn sample(&mut self, rtt: Duration) {
        self.expiries = 0;
        if self.smoothed.is_zero() {
            self.smoothed = rtt;
            self.variation = rtt / 2;
            return;
        }
        let deviation = self.smoothed.abs_diff(rtt);
        self.variation = (self.variation * 3 + deviation) / 4;
        self.smoothed = (self.smoothed * 7 + rtt) / 8;
    }

    /// Something was heard: the peer is alive, whatever was lost.
    pub const fn heard(&mut self) {
        self.expiries = 0;
    }

    /// A timeout has passed in silence: doubles the next.
    pub const fn expired(&mut self) {
        self.expiries = self.expiries.saturating_add(1);
    }

    /// Whether a timeout has passed since something was last heard.
    #[must_use]
    pub const fn is_backed_off(&self) -> bool {
        self.expiries > 0
    }

    /// Smoothed round trip; zero before the first sample.
    #[must_use]
    pub const fn smoothed(&self) -> Duration {
        self.smoothed
    }

    /// How long to wait for an answer before sending again.
    #[must_use]
    pub fn rto(&self) -> Duration {
        let base = if self.smoothed.is_zero() {
            self.variation
        } else {
            self.smoothed + (self.variation * 4).max(GRANULARITY)
        };
        (base.max(self.floor).min(RTO_MAX) * (1 << self.expiries.min(16))).min(RTO_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: fn(u64) -> Duration = Duration::from_micros;

    #[test]
    fn starts_at_the_initial_value_and_converges_to_the_samples() {
        let mut rtt = Rtt::new(US(5_000), US(200));
        assert_eq!(rtt.rto(), US(5_000));
        rtt.sample(US(100));
        assert_eq!(rtt.rto(), US(300));
        for _ in 0..100 {
            rtt.sample(US(400));
        }
        assert!(rtt.smoothed() > US(395) && rtt.rto() < US(470), "{rtt:?}");
    }

    #[test]
    fn doubles_in_silence_up_to_a_second_and_recovers() {
        let mut rtt = Rtt::new(US(5_000), US(200));
        rtt.sample(US(20));
        assert_eq!(rtt.rto(), US(200), "the floor");
        rtt.expired();
        assert_eq!(rtt.rto(), US(400));
        for _ in 0..100 {
            rtt.expired();
        }
        assert_eq!(rtt.rto(), Duration::from_secs(1));
        rtt.heard();
        assert_eq!(rtt.rto(), US(200));
    }
}
