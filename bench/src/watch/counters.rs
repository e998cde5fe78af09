//! What the kernel counts besides: frames of an interface, and where the time of a CPU went.

use std::{fs, io};

use serde::Serialize;

/// Frames and their bytes so far, without what Ethernet puts around them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCount {
    /// Frames.
    pub frames: u64,
    /// Their bytes, each with 14 of Ethernet header.
    pub bytes: u64,
    /// Frames that found no room and are not among the others.
    pub dropped: u64,
}

impl FrameCount {
    /// What was counted since an earlier reading.
    #[must_use]
    pub const fn minus(self, earlier: Self) -> Self {
        Self {
            frames: self.frames.wrapping_sub(earlier.frames),
            bytes: self.bytes.wrapping_sub(earlier.bytes),
            dropped: self.dropped.wrapping_sub(earlier.dropped),
        }
    }
}

/// What an interface has received and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// Received.
    pub rx: FrameCount,
    /// Sent.
    pub tx: FrameCount,
}

impl InterfaceCounters {
    /// Those of an interface in the calling thread's network namespace.
    ///
    /// # Errors
    /// A sentence that names the interface.
    pub fn of(interface: &str) -> io::Result<Self> {
        let text = fs::read_to_string("/proc/thread-self/net/dev")?;
        interface_counters(&text, interface)
            .ok_or_else(|| io::Error::other(format!("the kernel counts nothing for interface {interface}")))
    }
}

/// Reads /proc/net/dev (proc(5)): a line per interface with eight numbers for what was received (bytes, packets, errs,
/// drop, …) and eight for what was sent.
fn interface_counters(text: &str, interface: &str) -> Option<InterfaceCounters> {
    let (_, numbers) =
        text.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == interface)?;
    let numbers: Vec<u64> = numbers.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let count = |first: usize| {
        let &[bytes, frames, _, dropped] = numbers.get(first..first + 4)? else { return None };
        Some(FrameCount { frames, bytes, dropped })
    };
    Some(InterfaceCounters { rx: count(0)?, tx: count(8)? })
}

/// Time of one CPU so far, in ticks of the kernel's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    user: u64,
    system: u64,
    softirq: u64,
    idle: u64,
    stolen: u64,
}

/// Where the time of a CPU went, in shares of 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CpuShares {
    /// In programs.
    pub user: f64,
    /// In the kernel on behalf of programs.
    pub system: f64,
    /// In the kernel on behalf of devices: interrupts and what they put off, receiving above all.
    pub softirq: f64,
    /// Nothing to do.
    pub idle: f64,
    /// Taken away by the machine below a virtual one.
    pub stolen: f64,
}

impl CpuTime {
    /// Those of all CPUs with these numbers.
    ///
    /// # Errors
    /// When the kernel does not tell, with the number in the message.
    pub fn of(cpus: &[usize]) -> io::Result<Vec<Self>> {
        let text = fs::read_to_string("/proc/stat")?;
        let unknown =
            |cpu| io::Error::other(format!("the kernel does not tell where the time of CPU {cpu} goes"));
        cpus.iter().map(|&cpu| cpu_time(&text, cpu).ok_or_else(|| unknown(cpu))).collect()
    }

    /// Where the time since an earlier reading went; all zero when no tick has passed.
    #[must_use]
    pub fn shares_since(self, earlier: Self) -> CpuShares {
        let parts = |time: Self| [time.user, time.system, time.softirq, time.idle, time.stolen];
        let (now, before) = (parts(self), parts(earlier));
        // Idle time may be corrected downwards (proc(5)).
        let spent: Vec<f64> =
            now.iter().zip(before).map(|(now, before)| now.saturating_sub(before) as f64).collect();
        let all = spent.iter().sum::<f64>().max(1.0);
        CpuShares {
            user: spent[0] / all,
            system: spent[1] / all,
            softirq: spent[2] / all,
            idle: spent[3] / all,
            stolen: spent[4] / all,
        }
    }
}

/// Reads a line `cpuN` of /proc/stat (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal; time of guests is
/// part of user and nice.
fn cpu_time(text: &str, cpu: usize) -> Option<CpuTime> {
    let name = format!("cpu{cpu}");
    let (_, numbers) =
        text.lines().filter_map(|line| line.split_once(' ')).find(|(first, _)| *first == name)?;
    let numbers: Vec<u64> = numbers.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let &[user, nice, system, idle, iowait, irq, softirq, stolen, ..] = &numbers[..] else { return None };
    Some(CpuTime { user: user + nice, system, softirq: irq + softirq, idle: idle + iowait, stolen })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    1000      10    0    0    0     0          0         0     1000      10    0    0    0     0       0          0
 veth0:18446744073709551615      21    1    2    3     4          5         6      31      32    7    8    9    10      11         12
veth01:       1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16
";

    /// Goal: the columns are told apart, and names are whole. Method: a text with a different number in each place.
    #[test]
    fn interface_counters_are_read() {
        let expected = InterfaceCounters {
            rx: FrameCount { frames: 21, bytes: u64::MAX, dropped: 2 },
            tx: FrameCount { frames: 32, bytes: 31, dropped: 8 },
        };
        assert_eq!(interface_counters(DEV, "veth0"), Some(expected));
        assert_eq!(interface_counters(DEV, "veth01").unwrap().tx.frames, 10);
        for missing in ["veth", "eth0", ""] {
            assert_eq!(interface_counters(DEV, missing), None, "{missing}");
        }
        assert_eq!(interface_counters("veth0: 1 2 3", "veth0"), None);
        assert_eq!(interface_counters("veth0: 1 2 x 4 5 6 7 8 9 10 11 12 13 14 15 16", "veth0"), None);
        let earlier = FrameCount { frames: 1, bytes: 1, dropped: 2 };
        assert_eq!(expected.tx.minus(earlier), FrameCount { frames: 31, bytes: 30, dropped: 6 });
        assert!(InterfaceCounters::of("lo").is_ok());
        assert!(InterfaceCounters::of("nothing0").unwrap_err().to_string().contains("nothing0"));
    }

    const STAT: &str = "\
cpu  100 200 300 400 500 600 700 800 900 1000
cpu0 1 2 4 8 16 32 64 128 256 512
cpu1 10 0 20 30 0 0 40 0 0 0
cpu10 5 5 5 5 5 5 5 5 5 5
intr 1 2 3
";

    /// Goal: each tick is counted once, in the right place, and the shares add up to one. Method: powers of two for the
    /// sums, then two readings.
    #[test]
    fn time_of_a_cpu_is_split() {
        let first = cpu_time(STAT, 0).unwrap();
        assert_eq!(first, CpuTime { user: 3, system: 4, softirq: 96, idle: 24, stolen: 128 });
        let second = cpu_time(STAT, 1).unwrap();
        let shares = second.shares_since(CpuTime::default());
        let expected = CpuShares { user: 0.1, system: 0.2, softirq: 0.4, idle: 0.3, stolen: 0.0 };
        assert_eq!(shares, expected);
        assert_eq!(second.shares_since(second), CpuShares::default());
        assert_eq!(cpu_time(STAT, 2), None);
        assert_eq!(cpu_time("cpu0 1 2 3\n", 0), None);
        // Idle time that shrinks is none.
        let shrunk = second.shares_since(CpuTime { idle: 31, ..CpuTime::default() });
        assert_eq!(shrunk.idle, 0.0);
        assert!(CpuTime::of(&[usize::MAX]).is_err());
    }
}
