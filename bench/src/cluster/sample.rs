//! What a node is asked once a second: the CPU and memory of its processes, and what its interface and the kernel have
//! counted.

use std::{
    io,
    time::{Duration, Instant},
};

use super::message::Sample;
use crate::{
    watch::counters::{CpuTime, InterfaceCounters, ProcessUse, SocketCounters, SoftnetCounters},
    wire::rate::gbit_per_sec,
};

/// Everything counted up to one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    at: Instant,
    ops: u64,
    processes: ProcessUse,
    host_cpu: Duration,
    interface: InterfaceCounters,
    sockets: SocketCounters,
    softnet: SoftnetCounters,
}

impl Reading {
    /// Reads what concerns these processes and this interface, in the calling thread's network namespace.
    pub(crate) fn take(processes: &[i32], interface: &str, ops: u64) -> io::Result<Self> {
        Ok(Self {
            at: Instant::now(),
            ops,
            processes: ProcessUse::of(processes),
            host_cpu: CpuTime::of_all()?.busy(),
            interface: InterfaceCounters::of(interface)?,
            sockets: SocketCounters::read()?,
            softnet: SoftnetCounters::read()?,
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
            cpu_pct: share(self.processes.cpu(), earlier.processes.cpu()),
            host_cpu_pct: share(self.host_cpu, earlier.host_cpu),
            rss_bytes: self.processes.rss_bytes,
            tx_frames: tx.frames,
            tx_bytes: tx.bytes,
            rx_frames: rx.frames,
            rx_bytes: rx.bytes,
            tx_gbit: gbit_per_sec(tx, seconds),
            rx_gbit: gbit_per_sec(rx, seconds),
            nic_drops: tx.dropped + rx.dropped,
            udp_rcvbuf_errors: self.sockets.minus(earlier.sockets).udp_rcvbuf_errors,
            softnet_drops: self.softnet.minus(earlier.softnet).dropped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::counters::FrameCount;

    /// Goal: a sample has rates of its own interval, and frames with all that is around them. Method: two readings made
    /// by hand.
    #[test]
    fn a_sample_is_what_has_grown() {
        let at = Instant::now();
        let zero = Reading {
            at,
            ops: 10,
            processes: ProcessUse { rss_bytes: 1, ..ProcessUse::default() },
            host_cpu: Duration::ZERO,
            interface: InterfaceCounters::default(),
            sockets: SocketCounters { udp_rcvbuf_errors: 3, ..SocketCounters::default() },
            softnet: SoftnetCounters::default(),
        };
        let tx = FrameCount { frames: 812_743, bytes: 812_743 * 1_514, dropped: 2, ..FrameCount::default() };
        let second = Duration::from_secs(1);
        let later = Reading {
            at: at + 2 * second,
            ops: 30,
            processes: ProcessUse { user: second, system: Duration::ZERO, rss_bytes: 7 },
            host_cpu: 3 * second,
            interface: InterfaceCounters { tx, rx: FrameCount::default() },
            sockets: SocketCounters { udp_rcvbuf_errors: 5, ..SocketCounters::default() },
            softnet: SoftnetCounters { dropped: 1, squeezed: 9 },
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
