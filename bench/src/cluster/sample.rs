//! What a node is asked once a second: the CPU and memory of its processes, and what its interface and the kernel have
//! counted.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use nix::unistd::{SysconfVar, sysconf};

use super::message::Sample;
use crate::{watch::counters::InterfaceCounters, wire::rate::gbit_per_sec};

/// Everything counted up to one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    at: Instant,
    ops: u64,
    cpu: Duration,
    host_cpu: Duration,
    rss_bytes: u64,
    interface: InterfaceCounters,
    udp_rcvbuf_errors: u64,
    softnet_drops: u64,
}

impl Reading {
    /// Reads what concerns these processes and this interface, in the calling thread's network namespace.
    pub(crate) fn take(processes: &[i32], interface: &str, ops: u64) -> io::Result<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let tick = tick();
        let ticks: u64 =
            processes.iter().filter_map(|pid| process_ticks(&read(&format!("/proc/{pid}/stat")))).sum();
        let page_len = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
        let pages: u64 =
            processes.iter().filter_map(|pid| resident_pages(&read(&format!("/proc/{pid}/statm")))).sum();
        Ok(Self {
            at: Instant::now(),
            ops,
            cpu: tick * ticks as u32,
            host_cpu: tick * busy_ticks(&read("/proc/stat")).unwrap_or(0) as u32,
            rss_bytes: pages * page_len,
            interface: InterfaceCounters::of(interface)?,
            udp_rcvbuf_errors: udp_rcvbuf_errors(&read("/proc/thread-self/net/snmp")).unwrap_or(0),
            softnet_drops: softnet_drops(&read("/proc/thread-self/net/softnet_stat")),
        })
    }

    /// What happened since an earlier one.
    pub(crate) fn since(&self, earlier: &Self, index: u32) -> Sample {
        let seconds = (self.at - earlier.at).as_secs_f64().max(1e-9);
        let tx = self.interface.tx.minus(earlier.interface.tx);
        let rx = self.interface.rx.minus(earlier.interface.rx);
        let share =
            |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64() / seconds * 100.0;
        Sample {
            index,
            seconds,
            ops: self.ops.saturating_sub(earlier.ops),
            cpu_pct: share(self.cpu, earlier.cpu),
            host_cpu_pct: share(self.host_cpu, earlier.host_cpu),
            rss_bytes: self.rss_bytes,
            tx_frames: tx.frames,
            tx_bytes: tx.bytes,
            rx_frames: rx.frames,
            rx_bytes: rx.bytes,
            tx_gbit: gbit_per_sec(tx, seconds),
            rx_gbit: gbit_per_sec(rx, seconds),
            nic_drops: tx.dropped + rx.dropped,
            udp_rcvbuf_errors: self.udp_rcvbuf_errors.saturating_sub(earlier.udp_rcvbuf_errors),
            softnet_drops: self.softnet_drops.saturating_sub(earlier.softnet_drops),
        }
    }
}

/// Unit of the kernel's CPU times.
fn tick() -> Duration {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().filter(|&count| count > 0).unwrap_or(100);
    Duration::from_secs(1) / per_second as u32
}

/// Time in programs and in the kernel of a /proc/PID/stat: fields 14 and 15 of proc(5).
fn process_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Second field of a /proc/PID/statm.
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse().ok()
}

/// Ticks in which a CPU had something to do, from /proc/stat: all but idle and waiting for I/O, without what was stolen.
fn busy_ticks(stat: &str) -> Option<u64> {
    let numbers = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let numbers: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
    let &[user, nice, system, _, _, irq, softirq, ..] = &numbers[..] else { return None };
    Some(user + nice + system + irq + softirq)
}

/// The column of that name in the lines `Udp:` of /proc/net/snmp, the first of which has the names.
fn udp_rcvbuf_errors(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let place = lines.next()?.split_whitespace().position(|name| name == "RcvbufErrors")?;
    lines.next()?.split_whitespace().nth(place)?.parse().ok()
}

/// Second column of all CPUs in /proc/net/softnet_stat, in hexadecimal.
fn softnet_drops(softnet: &str) -> u64 {
    let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    softnet.lines().filter_map(dropped).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::counters::FrameCount;

    /// Goal: each number is taken from its place. Method: texts with a different number in each place.
    #[test]
    fn the_kernels_numbers_are_found() {
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 100 23 14 15 16 17 18 19 20";
        assert_eq!(process_ticks(stat), Some(123));
        assert_eq!(process_ticks("7 (a) S 1"), None);
        assert_eq!(resident_pages("10 20 30 1 0 1 0"), Some(20));
        assert_eq!(resident_pages(""), None);
        assert_eq!(busy_ticks("cpu  1 2 4 8 16 32 64 128 256 512\ncpu0 9 9"), Some(1 + 2 + 4 + 32 + 64));
        assert_eq!(busy_ticks("cpu0 1 2 3 4 5 6 7"), None);
        let snmp =
            "Ip: a\nIp: 1\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\nUdp: 1 2 3 4 55 6\n";
        assert_eq!(udp_rcvbuf_errors(snmp), Some(55));
        assert_eq!(udp_rcvbuf_errors("Udp: RcvbufErrors\n"), None);
        assert_eq!(softnet_drops("00000001 0000000a 3\n00000001 00000010 3\nnothing\n"), 26);
    }

    /// Goal: a sample has rates of its own interval, and frames with all that is around them. Method: two readings made
    /// by hand.
    #[test]
    fn a_sample_is_what_has_grown() {
        let at = Instant::now();
        let zero = Reading {
            at,
            ops: 10,
            cpu: Duration::ZERO,
            host_cpu: Duration::ZERO,
            rss_bytes: 1,
            interface: InterfaceCounters::default(),
            udp_rcvbuf_errors: 3,
            softnet_drops: 0,
        };
        let tx = FrameCount { frames: 812_743, bytes: 812_743 * 1_514, dropped: 2 };
        let later = Reading {
            at: at + Duration::from_secs(2),
            ops: 30,
            cpu: Duration::from_secs(1),
            host_cpu: Duration::from_secs(3),
            rss_bytes: 7,
            interface: InterfaceCounters { tx, rx: FrameCount::default() },
            udp_rcvbuf_errors: 5,
            softnet_drops: 1,
        };
        let sample = later.since(&zero, 4);
        assert_eq!((sample.index, sample.ops, sample.rss_bytes), (4, 20, 7));
        assert_eq!((sample.cpu_pct, sample.host_cpu_pct), (50.0, 150.0));
        assert_eq!((sample.nic_drops, sample.udp_rcvbuf_errors, sample.softnet_drops), (2, 2, 1));
        assert!((sample.tx_gbit - 5.0).abs() < 1e-3, "{sample:?}");
        assert_eq!((sample.tx_frames, sample.rx_frames, sample.rx_gbit), (812_743, 0, 0.0));
    }

    /// Goal: this machine tells. Method: read of this process twice.
    #[test]
    fn this_process_is_sampled() {
        let own = [std::process::id() as i32];
        let first = Reading::take(&own, "lo", 0).unwrap();
        let sample = Reading::take(&own, "lo", 5).unwrap().since(&first, 0);
        assert!(sample.rss_bytes > 1 << 20 && sample.ops == 5, "{sample:?}");
        let error = Reading::take(&own, "nothing0", 0).unwrap_err().to_string();
        assert!(error.contains("nothing0"), "{error}");
    }
}
