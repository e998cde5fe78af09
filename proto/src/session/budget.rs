//! How many handshakes are answered: so many per second of one source, and so many of all sources together.
//!
//! A handshake costs a hash or two before it is known to be worth anything. Without a limit, whoever can send datagrams
//! could keep a core busy with them; with a table of sources, they could fill its memory. So a source's budget lies in
//! one of a fixed number of buckets, chosen by a hash that nobody outside can compute: who wants to use up the budget of
//! a certain other source cannot aim.

use std::{net::IpAddr, time::Duration};

use super::cookie::Keys;
use crate::time::Instant;

/// Buckets that sources share. With some tens of machines it is unlikely that two share one, and it costs 8 KiB.
const BUCKETS: usize = 1_024;

/// Per source: 256 sessions of one machine, each tried twice at once, and then 1,000 a second.
const SOURCE: Rate = Rate { interval: Duration::from_millis(1), burst: 512 };

/// All sources together: HELLO and OPEN cost about a microsecond each, so 5,000 a second of each kind keep the two
/// within 1 % of a core; the burst is two milliseconds of work.
const ALL: Rate = Rate { interval: Duration::from_micros(200), burst: 2_048 };

/// Whoever holds one IPv4 address, or one /64 of IPv6, which is the least that a site is given (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source(u128);

impl Source {
    /// The source that `ip` belongs to. An IPv4 address is the same source when it comes as an IPv6 one.
    pub(super) const fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            // No address of a /64 becomes this: their lower half is zero, and that of a mapped address is not.
            IpAddr::V4(ip) => Self(ip.to_ipv6_mapped().to_bits()),
            IpAddr::V6(ip) => Self(ip.to_bits() >> 64 << 64),
        }
    }

    pub(super) const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Time in which one more may come.
    interval: Duration,
    /// How many may come at once after silence.
    burst: u32,
}

/// A token bucket as the time at which it will be full again ("virtual scheduling", ITU-T I.371 annex A).
#[derive(Clone, Copy, Debug, Default)]
struct Bucket(Instant);

impl Bucket {
    fn has_token(self, now: Instant, rate: Rate) -> bool {
        self.0.since(now) + rate.interval <= rate.interval * rate.burst
    }

    fn take(&mut self, now: Instant, rate: Rate) {
        self.0 = self.0.max(now) + rate.interval;
    }
}

/// The budget for one kind of message.
///
/// HELLO and OPEN have one each, so that a flood of the former, whose senders need not exist, cannot keep those out who
/// have got their cookie.
#[derive(Debug)]
pub(super) struct Budget {
    all: Bucket,
    sources: Box<[Bucket; BUCKETS]>,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { all: Bucket::default(), sources: Box::new([Bucket::default(); BUCKETS]) }
    }

    /// Whether one more message of `source` may be looked at; counts it if so.
    pub(super) fn take(&mut self, now: Instant, source: Source, keys: &Keys) -> bool {
        if !self.all.has_token(now, ALL) {
            return false;
        }
        let bucket = &mut self.sources[keys.bucket(source) as usize % BUCKETS];
        if !bucket.has_token(now, SOURCE) {
            // It does not count for all: one loud source must not use up what is there for the others.
            return false;
        }
        bucket.take(now, SOURCE);
        self.all.take(now, ALL);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: Keys = Keys { secret: [3; 16], boot_id: 4, core: 0 };

    fn source(number: u32) -> Source {
        Source::of(IpAddr::V4(number.into()))
    }

    /// Goal: a burst and then the rate, per source. Method: as many as possible at once, then for ten seconds.
    #[test]
    fn a_source_has_its_burst_and_then_its_rate() {
        let mut budget = Budget::new();
        let mut taken = |nanos| u32::from(budget.take(Instant::from_nanos(nanos), source(1), &KEYS));
        assert_eq!((0..1_000).map(|_| taken(0)).sum::<u32>(), 512);
        let later: u32 = (1..=100_000).map(|tick| taken(tick * 100_000)).sum();
        assert_eq!(later, 10_000, "a thousand a second");
        assert_eq!((0..1_000).map(|_| taken(60_000_000_000)).sum::<u32>(), 512, "never more than the burst");
    }

    /// Goal: all sources together have a limit, and one that is over its own takes nothing from it. Method: one source
    /// asks in vain many times; then ever new ones ask until nothing is left.
    #[test]
    fn all_sources_share_a_limit_that_one_alone_cannot_use_up() {
        let mut budget = Budget::new();
        let mut taken = |number| budget.take(Instant::default(), source(number), &KEYS);
        assert_eq!((0..10_000).filter(|_| taken(1)).count(), 512);
        assert_eq!((0..10_000).filter(|_| taken(2)).count(), 512);
        let others = (3..100_000).filter(|&number| taken(number)).count();
        assert_eq!(others, 2_048 - 2 * 512);
    }

    /// Goal: a source is one IPv4 address or one /64. Method: neighbours.
    #[test]
    fn sources_are_addresses_or_prefixes() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:ffff:ffff:ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }
}
