//! Latency histograms of a run and the figures reported of them.

use hdrhistogram::{
    Histogram,
    serialization::{Serializer as _, V2Serializer},
};
use serde::{Deserialize, Serialize};

/// Longest latency that is told apart, in ns; longer ones count as this. 60 s is beyond every deadline of a client.
pub const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Significant decimal digits kept: a reported latency is at most 0.1 % above the true one. Costs 220 KiB per
/// histogram, of which recording touches a few cache lines.
const DIGITS: u8 = 3;

/// Points of a distribution between one half of what is left and the next.
const POINTS_PER_HALF: u32 = 5;

/// Latencies in ns, 1 ns to 60 s, saturating at both ends. One per thread and second, merged as they come.
///
/// It takes its memory with the first latency: then, and when it is emptied, 220 KiB are written.
#[derive(Clone, Debug, Default)]
pub struct LatencyHistogram(Option<Box<Histogram<u64>>>);

impl LatencyHistogram {
    /// An empty histogram.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    fn with_memory() -> Box<Histogram<u64>> {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS);
        // It never grows.
        Box::new(histogram.expect("1 to 6e10 with three digits is a legal range"))
    }

    /// Records one latency in ns.
    #[inline]
    pub fn record(&mut self, latency_ns: u64) {
        self.record_n(latency_ns, 1);
    }

    /// Records the same latency in ns for `count` operations, at the price of one: the operations of a datagram are
    /// sent and answered together.
    #[inline]
    pub fn record_n(&mut self, latency_ns: u64, count: u64) {
        let histogram = self.0.get_or_insert_with(Self::with_memory);
        histogram.saturating_record_n(latency_ns.max(1), count);
    }

    /// Adds what another thread has recorded.
    pub fn merge(&mut self, other: &Self) {
        match (&mut self.0, &other.0) {
            (Some(own), Some(other)) => own.add(&**other).expect("all histograms have the same range"),
            (own @ None, Some(other)) => *own = Some(other.clone()),
            (_, None) => {}
        }
    }

    /// The same memory with nothing in it.
    #[must_use]
    pub fn emptied(mut self) -> Self {
        if let Some(histogram) = &mut self.0
            && !histogram.is_empty()
        {
            histogram.reset();
        }
        self
    }

    /// Latencies recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, |histogram| histogram.len())
    }

    /// The reported figures; all 0 when nothing was recorded.
    #[must_use]
    pub fn summary(&self) -> LatencyUs {
        let Some(histogram) = &self.0 else { return LatencyUs::default() };
        let us = |latency_ns: u64| latency_ns as f64 / 1e3;
        let quantile = |quantile| us(histogram.value_at_quantile(quantile));
        LatencyUs {
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            p9999: quantile(0.9999),
            max: us(histogram.max()),
        }
    }

    /// The distribution: latencies in µs, rising, each with the share of all that took at most so long. Five points from
    /// one half of what is left to the next, which makes the tail as fine as the middle; empty when nothing was recorded.
    #[must_use]
    pub fn distribution(&self) -> Vec<[f64; 2]> {
        let Some(histogram) = self.0.as_ref().filter(|histogram| !histogram.is_empty()) else {
            return Vec::new();
        };
        let points = histogram
            .iter_quantiles(POINTS_PER_HALF)
            .map(|point| [point.value_iterated_to() as f64 / 1e3, point.quantile()]);
        let mut points: Vec<_> = points.collect();
        // Neighbours may lie in the same step of the histogram.
        points.dedup_by(|next, kept| {
            let is_same = next[0] <= kept[0];
            kept[1] = if is_same { next[1] } else { kept[1] };
            is_same
        });
        points
    }

    /// The histogram in HdrHistogram's format V2, in ns.
    #[must_use]
    pub fn to_v2(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut serializer = V2Serializer::new();
        let written = match &self.0 {
            Some(histogram) => serializer.serialize(histogram, &mut bytes),
            None => serializer.serialize(&Self::with_memory(), &mut bytes),
        };
        written.expect("memory takes whatever is written to it");
        bytes
    }
}

/// Latencies in µs: so many per cent of the operations took at most so long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyUs {
    /// 50 %, the median.
    pub p50: f64,
    /// 90 %.
    #[serde(default)]
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p999: f64,
    /// 99.99 %.
    #[serde(default)]
    pub p9999: f64,
    /// All of them.
    pub max: f64,
}

#[cfg(test)]
mod tests {
    use std::{hint::black_box, time::Instant};

    use super::*;

    /// Whether `reported` is `exact` or at most 0.1 % above it.
    fn is_close(reported: f64, exact: f64) -> bool {
        (exact..=exact * 1.001).contains(&reported)
    }

    /// Goal: percentiles are those of the recorded latencies. Method: 1 to 100,000 µs once each, whose percentiles
    /// are known.
    #[test]
    fn percentiles_of_a_known_law() {
        let mut histogram = LatencyHistogram::new();
        for us in 1..=100_000 {
            histogram.record(us * 1_000);
        }
        let summary = histogram.summary();
        assert_eq!(histogram.count(), 100_000);
        for (reported, exact) in [
            (summary.p50, 50_000.0),
            (summary.p90, 90_000.0),
            (summary.p99, 99_000.0),
            (summary.p999, 99_900.0),
            (summary.p9999, 99_990.0),
            (summary.max, 100_000.0),
        ] {
            assert!(is_close(reported, exact), "{reported} for {exact}");
        }
    }

    /// Goal: the distribution rises to 1 and agrees with the percentiles. Method: a known law, and an empty histogram.
    #[test]
    fn the_distribution_is_that_of_a_known_law() {
        let mut histogram = LatencyHistogram::new();
        assert!(histogram.distribution().is_empty());
        (1..=100_000).for_each(|us| histogram.record(us * 1_000));
        let points = histogram.distribution();
        assert!((40..400).contains(&points.len()), "{} points", points.len());
        assert!(points.windows(2).all(|pair| pair[0][0] < pair[1][0] && pair[0][1] <= pair[1][1]));
        assert_eq!(points.last().unwrap()[1], 1.0);
        for [us, share] in points {
            assert!((us / 100_000.0 - share).abs() < 0.002, "{us} µs: {share}");
        }
    }

    /// Goal: a latency recorded for n operations weighs n. Method: 999 fast ones and one slow one, once in two calls
    /// and once in a thousand.
    #[test]
    fn many_at_once_are_like_one_by_one() {
        let (mut at_once, mut one_by_one) = (LatencyHistogram::new(), LatencyHistogram::new());
        at_once.record_n(2_000, 999);
        at_once.record(70_000);
        (0..999).for_each(|_| one_by_one.record(2_000));
        one_by_one.record(70_000);
        assert_eq!(at_once.summary(), one_by_one.summary());
        assert!(is_close(at_once.summary().p999, 2.0));
        assert!(is_close(at_once.summary().max, 70.0));
    }

    /// Goal: merging histograms is recording everything in one. Method: two interleaved halves against the whole.
    #[test]
    fn merged_halves_are_the_whole() {
        let (mut even, mut odd, mut whole) =
            (LatencyHistogram::new(), LatencyHistogram::new(), LatencyHistogram::new());
        for latency_ns in 1..10_000 {
            if latency_ns % 2 == 0 {
                even.record(latency_ns)
            } else {
                odd.record(latency_ns)
            }
            whole.record(latency_ns);
        }
        even.merge(&odd);
        assert_eq!(even.summary(), whole.summary());
        assert_eq!(even.count(), whole.count());
    }

    /// Goal: no latency is out of range and an empty histogram has figures too. Method: the extremes of the type.
    #[test]
    fn extremes_saturate() {
        let mut histogram = LatencyHistogram::new();
        assert_eq!(histogram.summary(), LatencyUs::default());
        histogram.record(0);
        assert_eq!(histogram.summary().max, 0.001);
        histogram.record_n(u64::MAX, 3);
        assert!(is_close(histogram.summary().p50, 60e6));
        assert!(is_close(histogram.summary().max, 60e6));
    }

    /// Goal: what recording costs can be looked up any time. Method: latencies that jump about; printed only.
    #[test]
    fn ns_per_record() {
        const RECORDS: u64 = 1_000_000;
        let mut histogram = LatencyHistogram::new();
        let start = Instant::now();
        for index in 0..RECORDS {
            histogram.record_n(black_box(10_000 + index * 7_919 % 50_000), 100);
        }
        println!("{:.2} ns per record", start.elapsed().as_nanos() as f64 / RECORDS as f64);
        assert_eq!(black_box(&histogram).count(), RECORDS * 100);
    }
}
