//! What the kernel counts, read in one place: frames of an interface, packets between CPUs, datagrams at sockets, and where
//! the time of CPUs and processes went.
//!
//! All that is of a network namespace is that of the calling thread (`/proc/thread-self/net`): `/proc/net` would be that of
//! the thread which `main` began in.

use std::{fs, io, time::Duration};

use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// Frames and their bytes so far, without what Ethernet puts around them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCount {
    /// Frames.
    pub frames: u64,
    /// Their bytes, each with 14 of Ethernet header.
    pub bytes: u64,
    /// Frames that were broken, as the driver sees it.
    pub errors: u64,
    /// Frames that found no room and are not among the others. The kernel adds those here that the card itself had no room
    /// for (`rx_missed_errors`; `dev_seq_printf_stats` in net/core/net-procfs.c).
    pub dropped: u64,
    /// Frames that overran a queue of the card; some drivers count them among the errors, too.
    pub fifo: u64,
}

impl FrameCount {
    /// What was counted since an earlier reading: nothing, where an interface has begun anew.
    #[must_use]
    pub const fn minus(self, earlier: Self) -> Self {
        Self {
            frames: self.frames.saturating_sub(earlier.frames),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            errors: self.errors.saturating_sub(earlier.errors),
            dropped: self.dropped.saturating_sub(earlier.dropped),
            fifo: self.fifo.saturating_sub(earlier.fifo),
        }
    }

    /// Frames that did not get through, whatever the reason; none is counted twice, also where errors include overruns.
    #[must_use]
    pub fn lost(self) -> u64 {
        self.dropped.saturating_add(self.errors.max(self.fifo))
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
/// drop, fifo, …) and eight for what was sent.
fn interface_counters(text: &str, interface: &str) -> Option<InterfaceCounters> {
    // Names may have colons in them (`eth0:1`), numbers have none.
    let (_, numbers) =
        text.lines().filter_map(|line| line.rsplit_once(':')).find(|(name, _)| name.trim() == interface)?;
    let numbers = numbers_of(numbers)?;
    let count = |first: usize| {
        let &[bytes, frames, errors, dropped, fifo] = numbers.get(first..first + 5)? else { return None };
        Some(FrameCount { frames, bytes, errors, dropped, fifo })
    };
    Some(InterfaceCounters { rx: count(0)?, tx: count(8)? })
}

fn numbers_of(text: &str) -> Option<Vec<u64>> {
    text.split_whitespace().map(|number| number.parse().ok()).collect()
}

/// What happened to packets on their way from the cards to the protocols, on all CPUs and in all namespaces together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoftnetCounters {
    /// Packets that found the queue of a CPU full (`net.core.netdev_max_backlog`). The interface counts them as dropped,
    /// too (`enqueue_to_backlog` in net/core/dev.c).
    pub dropped: u64,
    /// Rounds of receiving that ended with work left (`net.core.netdev_budget`).
    pub squeezed: u64,
}

impl SoftnetCounters {
    /// Reads them.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/thread-self/net/softnet_stat")?;
        softnet_counters(&text).ok_or_else(|| unreadable("/proc/net/softnet_stat"))
    }

    /// What was counted since an earlier reading.
    #[must_use]
    pub const fn minus(self, earlier: Self) -> Self {
        Self {
            dropped: self.dropped.saturating_sub(earlier.dropped),
            squeezed: self.squeezed.saturating_sub(earlier.squeezed),
        }
    }
}

/// Reads /proc/net/softnet_stat: a line per CPU with numbers in hexadecimal, the second for packets dropped, the third for
/// rounds cut short (`softnet_seq_show` in net/core/net-procfs.c).
fn softnet_counters(text: &str) -> Option<SoftnetCounters> {
    let mut sum = SoftnetCounters::default();
    for line in text.lines() {
        let mut numbers = line.split_whitespace().map(|number| u64::from_str_radix(number, 16).ok());
        let (dropped, squeezed) = (numbers.nth(1)??, numbers.next()??);
        sum.dropped = sum.dropped.saturating_add(dropped);
        sum.squeezed = sum.squeezed.saturating_add(squeezed);
    }
    Some(sum)
}

/// What happened to datagrams and segments at the sockets of the calling thread's network namespace. A counter that this
/// kernel does not have stays 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketCounters {
    /// UDP datagrams that did not get into their socket, for all of the reasons below and others.
    pub udp_in_errors: u64,
    /// Of these, because the socket's receive buffer was full.
    pub udp_rcvbuf_errors: u64,
    /// Of these, because all of UDP had no more memory (`net.ipv4.udp_mem`).
    pub udp_memory_errors: u64,
    /// Of these, because the checksum was wrong.
    pub udp_checksum_errors: u64,
    /// Times that a datagram could not be sent because the send buffer was full; whoever sends may have tried again.
    pub udp_sndbuf_errors: u64,
    /// TCP segments sent again.
    pub tcp_retransmits: u64,
}

impl SocketCounters {
    /// Reads them.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/thread-self/net/snmp")?;
        // Not there when IPv6 is switched off.
        let of_ipv6 = fs::read_to_string("/proc/thread-self/net/snmp6").unwrap_or_default();
        socket_counters(&text, &of_ipv6).ok_or_else(|| unreadable("/proc/net/snmp and snmp6"))
    }

    /// What was counted since an earlier reading.
    #[must_use]
    pub const fn minus(self, earlier: Self) -> Self {
        Self {
            udp_in_errors: self.udp_in_errors.saturating_sub(earlier.udp_in_errors),
            udp_rcvbuf_errors: self.udp_rcvbuf_errors.saturating_sub(earlier.udp_rcvbuf_errors),
            udp_memory_errors: self.udp_memory_errors.saturating_sub(earlier.udp_memory_errors),
            udp_checksum_errors: self.udp_checksum_errors.saturating_sub(earlier.udp_checksum_errors),
            udp_sndbuf_errors: self.udp_sndbuf_errors.saturating_sub(earlier.udp_sndbuf_errors),
            tcp_retransmits: self.tcp_retransmits.saturating_sub(earlier.tcp_retransmits),
        }
    }
}

/// Reads /proc/net/snmp, which has two lines per protocol, names and numbers, and adds what /proc/net/snmp6 has of UDP over
/// IPv6. Those of TCP are of both.
fn socket_counters(text: &str, of_ipv6: &str) -> Option<SocketCounters> {
    let (udp, tcp) = (SnmpLines::of(text, "Udp:")?, SnmpLines::of(text, "Tcp:")?);
    let udp =
        |name: &str| Some(udp.number(name)?.saturating_add(snmp6_number(of_ipv6, &format!("Udp6{name}"))?));
    Some(SocketCounters {
        udp_in_errors: udp("InErrors")?,
        udp_rcvbuf_errors: udp("RcvbufErrors")?,
        udp_memory_errors: udp("MemErrors")?,
        udp_checksum_errors: udp("InCsumErrors")?,
        udp_sndbuf_errors: udp("SndbufErrors")?,
        tcp_retransmits: tcp.number("RetransSegs")?,
    })
}

/// The number in the line of that name, 0 when there is none.
fn snmp6_number(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(char::is_whitespace));
    lines.find(|&(first, _)| first == name).map_or(Some(0), |(_, number)| number.trim().parse().ok())
}

/// The two lines of one protocol.
struct SnmpLines<'a> {
    names: Vec<&'a str>,
    numbers: Vec<&'a str>,
}

impl<'a> SnmpLines<'a> {
    fn of(text: &'a str, protocol: &str) -> Option<Self> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol));
        let mut words = || lines.next().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let (names, numbers) = (words()?, words()?);
        (names.len() == numbers.len()).then_some(Self { names, numbers })
    }

    /// 0 when there is none of that name: which there are depends on the kernel.
    fn number(&self, name: &str) -> Option<u64> {
        let place = self.names.iter().position(|&other| other == name);
        place.map_or(Some(0), |place| self.numbers[place].parse().ok())
    }
}

fn unreadable(file: &str) -> io::Error {
    io::Error::other(format!("cannot understand what the kernel says in {file}"))
}

/// Unit of the kernel's CPU times.
fn tick() -> Duration {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().filter(|&count| count > 0).unwrap_or(100);
    Duration::from_secs(1) / per_second as u32
}

fn ticks(count: u64) -> Duration {
    tick().saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Time of one CPU so far, or of all together, in ticks of the kernel's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    user: u64,
    system: u64,
    softirq: u64,
    idle: u64,
    stolen: u64,
}

/// Where the time of a CPU went, in shares of 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
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
        cpus.iter().map(|&cpu| cpu_time(&text, &format!("cpu{cpu}")).ok_or_else(|| unknown(cpu))).collect()
    }

    /// That of all CPUs of the machine together.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn of_all() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        cpu_time(&text, "cpu").ok_or_else(|| unreadable("/proc/stat"))
    }

    /// Time with something to do: neither idle nor stolen.
    #[must_use]
    pub fn busy(self) -> Duration {
        ticks(self.user.saturating_add(self.system).saturating_add(self.softirq))
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
fn cpu_time(text: &str, name: &str) -> Option<CpuTime> {
    let (_, numbers) =
        text.lines().filter_map(|line| line.split_once(' ')).find(|(first, _)| *first == name)?;
    let numbers = numbers_of(numbers)?;
    let &[user, nice, system, idle, iowait, irq, softirq, stolen, ..] = &numbers[..] else { return None };
    Some(CpuTime {
        user: user.saturating_add(nice),
        system,
        softirq: irq.saturating_add(softirq),
        idle: idle.saturating_add(iowait),
        stolen,
    })
}

/// What processes have used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessUse {
    /// CPU time in programs, to a tick (some 10 ms).
    pub user: Duration,
    /// CPU time in the kernel on their behalf.
    pub system: Duration,
    /// Resident memory in bytes.
    pub rss_bytes: u64,
}

impl ProcessUse {
    /// That of these processes together, without those that have ended.
    #[must_use]
    pub fn of(processes: &[i32]) -> Self {
        let each = processes.iter().filter_map(|&pid| Self::of_one(pid));
        each.fold(Self::default(), |sum, one| Self {
            user: sum.user.saturating_add(one.user),
            system: sum.system.saturating_add(one.system),
            rss_bytes: sum.rss_bytes.saturating_add(one.rss_bytes),
        })
    }

    /// That of one process; `None` when it has ended.
    #[must_use]
    pub fn of_one(pid: i32) -> Option<Self> {
        let page_len = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
        let (user, system) = process_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        let pages = resident_pages(&fs::read_to_string(format!("/proc/{pid}/statm")).ok()?)?;
        Some(Self { user: ticks(user), system: ticks(system), rss_bytes: pages.saturating_mul(page_len) })
    }

    /// CPU time.
    #[must_use]
    pub const fn cpu(self) -> Duration {
        self.user.saturating_add(self.system)
    }
}

/// Time in programs and in the kernel of a /proc/PID/stat: fields 14 and 15 of proc(5). The second field, a name in
/// parentheses, may have anything in it.
fn process_ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Second field of a /proc/PID/statm.
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse().ok()
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
            rx: FrameCount { frames: 21, bytes: u64::MAX, errors: 1, dropped: 2, fifo: 3 },
            tx: FrameCount { frames: 32, bytes: 31, errors: 7, dropped: 8, fifo: 9 },
        };
        assert_eq!(interface_counters(DEV, "veth0"), Some(expected));
        assert_eq!(interface_counters(DEV, "veth01").unwrap().tx.frames, 10);
        for missing in ["veth", "eth0", ""] {
            assert_eq!(interface_counters(DEV, missing), None, "{missing}");
        }
        assert_eq!(interface_counters("veth0: 1 2 3", "veth0"), None);
        assert_eq!(interface_counters("veth0: 1 2 x 4 5 6 7 8 9 10 11 12 13 14 15 16", "veth0"), None);
        let earlier = FrameCount { frames: 1, bytes: 1, errors: 3, dropped: 2, fifo: 10 };
        let grown = FrameCount { frames: 31, bytes: 30, errors: 4, dropped: 6, fifo: 0 };
        assert_eq!(expected.tx.minus(earlier), grown);
        assert_eq!((grown.lost(), expected.tx.lost(), expected.rx.lost()), (10, 17, 5));
        assert_eq!(
            interface_counters("eth0:1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16", "eth0:1").unwrap().rx.frames,
            2
        );
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
        let first = cpu_time(STAT, "cpu0").unwrap();
        assert_eq!(first, CpuTime { user: 3, system: 4, softirq: 96, idle: 24, stolen: 128 });
        let second = cpu_time(STAT, "cpu1").unwrap();
        let shares = second.shares_since(CpuTime::default());
        let expected = CpuShares { user: 0.1, system: 0.2, softirq: 0.4, idle: 0.3, stolen: 0.0 };
        assert_eq!(shares, expected);
        assert_eq!(second.shares_since(second), CpuShares::default());
        assert_eq!(cpu_time(STAT, "cpu2"), None);
        assert_eq!(cpu_time("cpu0 1 2 3\n", "cpu0"), None);
        // Idle time that shrinks is none.
        let shrunk = second.shares_since(CpuTime { idle: 31, ..CpuTime::default() });
        assert_eq!(shrunk.idle, 0.0);
        assert!(CpuTime::of(&[usize::MAX]).is_err());
    }

    #[test]
    fn all_cpus_are_told_together() {
        let all = cpu_time(STAT, "cpu").unwrap();
        assert_eq!(all, CpuTime { user: 300, system: 300, softirq: 1_300, idle: 900, stolen: 800 });
        assert_eq!(all.busy(), tick() * 1_900);
        assert!(CpuTime::of_all().unwrap().busy() > Duration::ZERO);
        let endless = CpuTime { user: u64::MAX, system: u64::MAX, ..all };
        assert_eq!(endless.busy(), tick() * u32::MAX);
    }

    const SOFTNET: &str = "\
00000001 0000000a 00000100 00000000
0000ffff 00000010 0000000F 00000000
";

    const SNMP: &str = "\
Ip: Forwarding DefaultTTL
Ip: 2 64
Tcp: RtoAlgorithm MaxConn RetransSegs InErrs
Tcp: 1 -1 77 9
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 66 1 30 67 15 4 5 0 6
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors
UdpLite: 100 101 102 103 104
";

    const SNMP6: &str = "\
Ip6InReceives                   \t300
Udp6InErrors                    \t1000
Udp6RcvbufErrors                \t2000
UdpLite6RcvbufErrors            \t3000
";

    const PROCESS: &str = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 100 23 14 15 16 17 18 19 20";

    /// Goal: each number is taken from its place. Method: texts with a different number in each place.
    #[test]
    fn the_kernels_numbers_are_found() {
        assert_eq!(softnet_counters(SOFTNET), Some(SoftnetCounters { dropped: 26, squeezed: 0x10f }));
        let expected = SocketCounters {
            udp_in_errors: 30,
            udp_rcvbuf_errors: 15,
            udp_memory_errors: 6,
            udp_checksum_errors: 5,
            udp_sndbuf_errors: 4,
            tcp_retransmits: 77,
        };
        assert_eq!(socket_counters(SNMP, ""), Some(expected));
        let both = SocketCounters { udp_in_errors: 1_030, udp_rcvbuf_errors: 2_015, ..expected };
        assert_eq!(socket_counters(SNMP, SNMP6), Some(both));
        let older = SNMP.replace("InCsumErrors IgnoredMulti MemErrors", "a b c");
        let expected = SocketCounters { udp_memory_errors: 0, udp_checksum_errors: 0, ..expected };
        assert_eq!(socket_counters(&older, ""), Some(expected), "a kernel without these");
        let one = SocketCounters { udp_in_errors: 10, tcp_retransmits: 80, ..SocketCounters::default() };
        let grown = SocketCounters { udp_in_errors: 20, tcp_retransmits: 0, ..expected };
        assert_eq!(expected.minus(one), grown);
        assert_eq!(process_ticks(PROCESS), Some((100, 23)));
        assert_eq!(resident_pages("10 20 30 1 0 1 0"), Some(20));
    }

    /// Goal: whatever the text, there is an answer or none, and never a wrong number in place of one that is missing.
    /// Method: all truncations, and every word in turn replaced by something that does not belong there.
    #[test]
    fn no_text_is_too_strange() {
        let read_all = |text: &str| {
            (
                interface_counters(text, "veth0"),
                (cpu_time(text, "cpu0"), cpu_time(text, "cpu")),
                softnet_counters(text),
                (socket_counters(text, SNMP6), socket_counters(SNMP, text)),
                (process_ticks(text), resident_pages(text)),
            )
        };
        let strange =
            ["", "-1", "18446744073709551616", "1e9", "0x1", "\u{ff11}", "\0", ":", ") ", "Udp:", "cpu0"];
        for text in [DEV, STAT, SOFTNET, SNMP, SNMP6, PROCESS, "10 20 30 1 0 1 0"] {
            for (end, _) in text.char_indices() {
                read_all(&text[..end]);
            }
            for word in text.split_whitespace() {
                for other in strange {
                    read_all(&text.replacen(word, other, 1));
                }
            }
        }
        assert_eq!(softnet_counters("00000001 0000000a\n"), None);
        assert_eq!(softnet_counters("00000001 nothing 3\n"), None);
        let endless = "0 ffffffffffffffff ffffffffffffffff\n".repeat(2);
        assert_eq!(
            softnet_counters(&endless),
            Some(SoftnetCounters { dropped: u64::MAX, squeezed: u64::MAX })
        );
        assert_eq!(socket_counters("Udp: RcvbufErrors\n", ""), None);
        assert_eq!(
            socket_counters(&SNMP.replace("Udp: 66 1 30", "Udp: 66 1"), ""),
            None,
            "a number is missing"
        );
        assert_eq!(socket_counters(&SNMP.replace("77", "-77"), ""), None);
        assert_eq!(process_ticks("7 (a) S 1"), None);
        assert_eq!(resident_pages("1"), None);
        let endless = format!("cpu0{}", format!(" {}", u64::MAX).repeat(8));
        assert_eq!(cpu_time(&endless, "cpu0").map(|time| time.user), Some(u64::MAX));
        assert!(cpu_time(&endless, "cpu0").unwrap().shares_since(CpuTime::default()).user > 0.1);
    }

    /// Goal: this machine tells. Method: read everything, and a process that does not exist.
    #[test]
    fn this_machine_tells() {
        SoftnetCounters::read().unwrap();
        SocketCounters::read().unwrap();
        let own = ProcessUse::of(&[std::process::id() as i32, i32::MAX]);
        assert!(own.rss_bytes > 1 << 20, "{own:?}");
        assert_eq!(own.cpu(), own.user + own.system);
        assert_eq!(ProcessUse::of(&[i32::MAX]), ProcessUse::default());
    }
}
