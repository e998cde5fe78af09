//! What the client threads have counted, second by second and in all.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, SystemTime},
};

use hdrhistogram::{
    Histogram,
    serialization::{Deserializer, V2DeflateSerializer, interval_log::IntervalLogWriterBuilder},
};
use linerate_proto::wire::Statistic;
use serde::{Serialize, Serializer};

use crate::{
    latency::LatencyUs,
    load::{Interval, LoadReport},
    run::EachCore,
    watch::host::HostSample,
};

/// Longest series: intervals are a second long unless there would be more than these.
const POINTS_MAX: u32 = 3_600;

/// Seconds for which a thread that says nothing is waited for.
const LATE_MAX: usize = 10;

/// Length of an interval of a measurement that takes so long.
#[must_use]
pub fn interval(duration: Duration) -> Duration {
    Duration::from_secs(1).max(duration / POINTS_MAX)
}

/// One second of a run, or one longer interval of a long run.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Where it begins, in seconds from the beginning of what is measured.
    pub from_s: f64,
    /// Where it ends.
    pub to_s: f64,
    /// Operations that travelled and were answered, per second.
    pub ops_per_sec: f64,
    /// Gets of these.
    pub gets_per_sec: f64,
    /// Puts of these.
    pub puts_per_sec: f64,
    /// Operations that were not executed, or whose outcome is unknown.
    pub errors: u64,
    /// Latencies of what was answered in this second.
    pub latency_us: LatencyUs,
    /// This process.
    pub client: ClientPoint,
    /// The servers, as far as they have told; `None` when one has not.
    pub server: Option<ServerPoint>,
    /// This machine; `None` when it was not watched.
    pub host: Option<HostSample>,
}

/// What was seen beside the clients in a second.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) server: Option<ServerPoint>,
    pub(crate) host: Option<HostSample>,
    pub(crate) client_rss_bytes: u64,
}

/// What the clients have counted in a second.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ClientPoint {
    /// CPU time of all client threads in per cent of one CPU.
    pub cpu_pct: f64,
    /// Resident memory of this process in bytes, with that of an embedded server; 0 when nobody looked.
    pub rss_bytes: u64,
    /// Share of the time in which there was something to send or something came, 0 to 1: a client that spins uses
    /// all of its CPU whatever it does.
    pub busy_share: f64,
    /// Datagrams sent.
    pub tx_datagrams: u64,
    /// Datagrams received.
    pub rx_datagrams: u64,
    /// Requests sent again.
    pub retransmits: u64,
    /// Datagrams that found the receive queue full.
    pub rx_overflow_drops: u64,
    /// Datagrams without effect, for any reason.
    pub drops: u64,
}

/// What the servers have counted in a second.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ServerPoint {
    /// CPU time of all cores in per cent of one CPU.
    pub cpu_pct: f64,
    /// Resident memory in bytes.
    pub rss_bytes: u64,
    /// Operations executed per second.
    pub ops_per_sec: f64,
    /// Datagrams received.
    pub rx_datagrams: u64,
    /// Datagrams sent.
    pub tx_datagrams: u64,
    /// Datagrams that found the receive queue full.
    pub rx_overflow_drops: u64,
    /// Datagrams without effect, for any reason.
    pub drops: u64,
}

impl ServerPoint {
    /// What all cores have counted between two readings; `None` without cores.
    #[must_use]
    pub(crate) fn between(before: &EachCore, after: &EachCore) -> Option<Self> {
        if after.is_empty() {
            return None;
        }
        let sum = |grown: &dyn Fn(Statistic) -> u64, statistics: &[Statistic]| {
            statistics.iter().map(|&statistic| grown(statistic)).sum::<u64>()
        };
        let mut point = Self::default();
        for (before, after) in before.iter().zip(after) {
            let grown =
                |statistic: Statistic| after[statistic as usize].saturating_sub(before[statistic as usize]);
            let seconds = (grown(Statistic::UptimeNs) as f64 / 1e9).max(1e-9);
            point.cpu_pct += grown(Statistic::CpuNs) as f64 / 1e7 / seconds;
            let ops = sum(&grown, &[Statistic::Gets, Statistic::Puts, Statistic::Deletes]);
            point.ops_per_sec += ops as f64 / seconds;
            // It is the process's, and each core tells it.
            point.rss_bytes = point.rss_bytes.max(after[Statistic::RssBytes as usize]);
            point.rx_datagrams += grown(Statistic::RxDatagrams);
            point.tx_datagrams += grown(Statistic::TxDatagrams);
            point.rx_overflow_drops += grown(Statistic::RxOverflowDrops);
            point.drops += (Statistic::DropTruncated as usize..after.len())
                .map(|index| after[index].saturating_sub(before[index]))
                .sum::<u64>();
        }
        Some(point)
    }
}

/// An interval that not all threads have told of yet.
#[derive(Debug, Default)]
struct Pending {
    threads: usize,
    longest: Duration,
    report: LoadReport,
}

/// Puts the intervals of all threads together.
#[derive(Debug)]
pub struct Collector {
    interval: Duration,
    /// Time counted of each thread.
    elapsed: Vec<Duration>,
    total: LoadReport,
    pending: BTreeMap<u32, Pending>,
    points: Vec<Point>,
    /// The histogram of each point, as HdrHistogram V2: a few kilobytes instead of a quarter of a megabyte.
    histograms: Vec<Vec<u8>>,
}

impl Collector {
    /// For so many threads, which hand over what they have counted whenever `interval` has passed.
    #[must_use]
    pub fn new(threads: usize, interval: Duration) -> Self {
        Self {
            interval,
            elapsed: vec![Duration::ZERO; threads],
            total: LoadReport::default(),
            pending: BTreeMap::new(),
            points: Vec::new(),
            histograms: Vec::new(),
        }
    }

    /// Takes what a thread has counted.
    pub fn take(&mut self, interval: &Interval) {
        self.total.absorb(&interval.report);
        let Some(index) = interval.index else { return };
        if let Some(elapsed) = self.elapsed.get_mut(interval.thread) {
            *elapsed += interval.report.elapsed;
        }
        // Only one that has waited in vain for another comes after its successors.
        if (index as usize) < self.points.len() {
            return;
        }
        let pending = self.pending.entry(index).or_default();
        pending.threads += 1;
        pending.longest = pending.longest.max(interval.report.elapsed);
        pending.report.absorb(&interval.report);
        while self
            .pending
            .first_key_value()
            .is_some_and(|(_, first)| first.threads == self.elapsed.len() || self.pending.len() > LATE_MAX)
        {
            self.settle();
        }
    }

    /// Nothing more will come.
    pub fn finish(&mut self) {
        while !self.pending.is_empty() {
            self.settle();
        }
    }

    /// Makes a point of the oldest interval.
    fn settle(&mut self) {
        let Some((index, Pending { longest, report, .. })) = self.pending.pop_first() else { return };
        let from_s = f64::from(index) * self.interval.as_secs_f64();
        let seconds = longest.as_secs_f64().max(1e-9);
        let threads = self.elapsed.len() as f64;
        let coalesced = report.counters.coalesced;
        self.points.push(Point {
            from_s,
            to_s: from_s + seconds,
            ops_per_sec: report.ops() as f64 / seconds,
            gets_per_sec: report.gets.saturating_sub(coalesced) as f64 / seconds,
            puts_per_sec: report.puts as f64 / seconds,
            errors: report.errors + report.outcome_unknown,
            latency_us: report.latency.summary(),
            client: ClientPoint {
                rss_bytes: 0,
                cpu_pct: report.cpu.as_secs_f64() / seconds * 100.0,
                busy_share: (1.0 - report.idle.as_secs_f64() / seconds / threads).clamp(0.0, 1.0),
                tx_datagrams: report.counters.port.tx_datagrams,
                rx_datagrams: report.counters.port.rx_datagrams,
                retransmits: report.counters.flows.retransmits,
                rx_overflow_drops: report.counters.port.rx_overflow_drops,
                drops: report.counters.drops.total(),
            },
            server: None,
            host: None,
        });
        self.histograms.push(report.latency.to_v2());
    }

    /// What was counted in all; its `elapsed` is that of the thread that has counted longest.
    #[must_use]
    pub fn total(&self) -> LoadReport {
        LoadReport { elapsed: self.elapsed.iter().copied().max().unwrap_or_default(), ..self.total.clone() }
    }

    /// The series, and its latencies as the text of an HdrHistogram V2 interval log, in ns.
    #[must_use]
    pub fn into_series(self, begun: SystemTime) -> Series {
        Series { points: self.points, histograms: self.histograms, begun }
    }
}

/// The seconds of a run.
#[derive(Clone, Debug)]
pub struct Series {
    /// In their order.
    pub points: Vec<Point>,
    histograms: Vec<Vec<u8>>,
    begun: SystemTime,
}

impl Series {
    /// None.
    #[must_use]
    pub const fn empty() -> Self {
        Self { points: Vec::new(), histograms: Vec::new(), begun: SystemTime::UNIX_EPOCH }
    }

    /// Adds what was seen in each interval.
    pub(crate) fn add_looks(&mut self, looks: Vec<Look>) {
        for (point, Look { server, host, client_rss_bytes }) in self.points.iter_mut().zip(looks) {
            (point.server, point.host) = (server, host);
            point.client.rss_bytes = client_rss_bytes;
        }
    }

    /// What this machine did, as far as it was watched.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostSample> {
        self.points.iter().filter_map(|point| point.host.clone()).collect()
    }

    /// The latencies in ns of each point, as the text of an HdrHistogram interval log (format V2, compressed): the tools of
    /// that project read it, and histograms of several runs can be added up.
    ///
    /// # Errors
    /// What the serializer says; it writes to memory.
    pub fn interval_log(&self) -> io::Result<Vec<u8>> {
        let failed =
            |error: &dyn std::fmt::Debug| io::Error::other(format!("cannot write the latencies: {error:?}"));
        let mut text = Vec::new();
        let mut serializer = V2DeflateSerializer::new();
        let mut writer = IntervalLogWriterBuilder::new()
            .add_comment("linerate-bench: latencies in ns")
            .with_base_time(self.begun)
            .with_max_value_divisor(1e6)
            .begin_log_with(&mut text, &mut serializer)
            .map_err(|error| failed(&error))?;
        for (point, bytes) in self.points.iter().zip(&self.histograms) {
            let histogram: Histogram<u64> =
                Deserializer::new().deserialize(&mut &bytes[..]).map_err(|error| failed(&error))?;
            let from = Duration::from_secs_f64(point.from_s);
            let length = Duration::from_secs_f64(point.to_s - point.from_s);
            writer.write_histogram(&histogram, from, length, None).map_err(|error| failed(&error))?;
        }
        Ok(text)
    }

    /// The points as comma-separated values with a heading.
    #[must_use]
    pub fn csv(&self) -> String {
        let mut text = String::from(
            "from_s,to_s,ops_per_sec,gets_per_sec,puts_per_sec,errors,p50_us,p90_us,p99_us,p999_us,p9999_us,max_us,\
             client_cpu_pct,client_rss_bytes,client_busy_share,client_tx_datagrams,client_rx_datagrams,retransmits,client_rx_overflow_drops,\
             client_drops,server_cpu_pct,server_rss_bytes,server_ops_per_sec,server_rx_datagrams,server_tx_datagrams,\
             server_rx_overflow_drops,server_drops\n",
        );
        for point in &self.points {
            let Point { from_s, to_s, ops_per_sec, gets_per_sec, puts_per_sec, errors, .. } = point;
            let LatencyUs { p50, p90, p99, p999, p9999, max } = point.latency_us;
            let client = point.client;
            let mut cells = vec![
                format!(
                    "{from_s:.3},{to_s:.3},{ops_per_sec:.1},{gets_per_sec:.1},{puts_per_sec:.1},{errors}"
                ),
                format!("{p50:.3},{p90:.3},{p99:.3},{p999:.3},{p9999:.3},{max:.3}"),
                format!("{:.1},{},{:.4}", client.cpu_pct, client.rss_bytes, client.busy_share),
                format!("{},{},{}", client.tx_datagrams, client.rx_datagrams, client.retransmits),
                format!("{},{}", client.rx_overflow_drops, client.drops),
            ];
            cells.push(point.server.map_or_else(
                || ",,,,,,".to_owned(),
                |server| {
                    let ServerPoint { cpu_pct, rss_bytes, ops_per_sec, .. } = server;
                    let (rx, tx) = (server.rx_datagrams, server.tx_datagrams);
                    let (overflow, drops) = (server.rx_overflow_drops, server.drops);
                    format!("{cpu_pct:.1},{rss_bytes},{ops_per_sec:.1},{rx},{tx},{overflow},{drops}")
                },
            ));
            text += &(cells.join(",") + "\n");
        }
        text
    }
}

/// The points alone: histograms go to a file of their own.
impl Serialize for Series {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.points.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;

    /// What a thread counts in a second in which it gets `ops` answers after so many µs.
    fn interval_of(thread: usize, index: Option<u32>, ops: u64, us: u64) -> Interval {
        let mut report =
            LoadReport { elapsed: Duration::from_secs(1), gets: ops, hits: ops, ..LoadReport::default() };
        report.latency.record_n(us * 1_000, ops);
        Interval { thread, index, report }
    }

    /// Goal: the seconds of several clients are put together, whichever comes first, and what ends too late counts in the
    /// whole alone. Method: two clients that are a second apart.
    #[test]
    fn seconds_of_clients_add_up() {
        let mut collector = Collector::new(2, Duration::from_secs(1));
        for interval in [
            interval_of(0, Some(0), 100, 10),
            interval_of(0, Some(1), 200, 10),
            interval_of(1, Some(0), 1, 1_000),
            interval_of(1, Some(1), 2, 1_000),
            interval_of(0, None, 5, 90_000),
        ] {
            collector.take(&interval);
        }
        collector.finish();
        let total = collector.total();
        assert_eq!((total.elapsed, total.latency.count()), (Duration::from_secs(2), 308));
        let series = collector.into_series(SystemTime::UNIX_EPOCH);
        let rates: Vec<_> = series.points.iter().map(|point| (point.from_s, point.ops_per_sec)).collect();
        assert_eq!(rates, [(0.0, 101.0), (1.0, 202.0)]);
        assert!(series.points[0].latency_us.max > 999.0 && series.points[0].latency_us.p50 < 11.0);
        let csv = series.csv();
        println!("{csv}");
        let columns: Vec<_> = csv.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(columns, [27; 3]);
    }

    /// Goal: a client that falls silent holds nothing up for ever. Method: one of two speaks for longer than one waits.
    #[test]
    fn a_silent_client_is_not_waited_for() {
        let mut collector = Collector::new(2, Duration::from_secs(1));
        for index in 0..30 {
            collector.take(&interval_of(0, Some(index), 7, 1));
        }
        assert_eq!(collector.points.len(), 30 - LATE_MAX);
        // What it says then changes no point, but is counted.
        collector.take(&interval_of(1, Some(0), 1, 1));
        collector.finish();
        assert_eq!((collector.points.len(), collector.total().gets), (30, 211));
        assert!(collector.points.iter().all(|point| point.ops_per_sec == 7.0));
    }

    /// Goal: the log is what other readers of HdrHistogram's logs understand. Method: read it back, and look at times and
    /// percentiles.
    #[test]
    fn the_interval_log_can_be_read() {
        let mut collector = Collector::new(1, Duration::from_secs(1));
        for index in 0..3 {
            collector.take(&interval_of(0, Some(index), 10, u64::from(index) + 1));
        }
        collector.finish();
        let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let log = collector.into_series(begun).interval_log().unwrap();
        println!("{}", String::from_utf8_lossy(&log));
        let mut intervals = 0;
        for entry in IntervalLogIterator::new(&log) {
            match entry.expect("a line that is understood") {
                LogEntry::BaseTime(time) => assert_eq!(time, Duration::from_secs(1_000_000)),
                LogEntry::StartTime(time) => panic!("start time {time:?}"),
                LogEntry::Interval(interval) => {
                    assert_eq!(interval.start_timestamp(), Duration::from_secs(intervals));
                    assert_eq!(interval.duration(), Duration::from_secs(1));
                    let bytes = base64(interval.encoded_histogram());
                    let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
                    assert_eq!(histogram.len(), 10);
                    assert!(histogram.equivalent(histogram.max(), (intervals + 1) * 1_000));
                    intervals += 1;
                }
            }
        }
        assert_eq!(intervals, 3);
    }

    /// Decodes what RFC 4648 calls base64.
    fn base64(text: &str) -> Vec<u8> {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
        for byte in text.bytes().filter(|&byte| byte != b'=') {
            let digit = ALPHABET.iter().position(|&letter| letter == byte).expect("a letter of base64");
            bits = (bits << 6) | digit as u32;
            count += 6;
            if count >= 8 {
                count -= 8;
                bytes.push((bits >> count) as u8);
            }
        }
        bytes
    }

    #[test]
    fn long_runs_have_long_intervals() {
        for (seconds, interval_s) in [(0.1, 1.0), (8.0, 1.0), (3_600.0, 1.0), (36_000.0, 10.0)] {
            assert_eq!(interval(Duration::from_secs_f64(seconds)).as_secs_f64(), interval_s);
        }
    }
}
