//! What the machine did in each second: its CPUs, an interface, and what was dropped between them.

use std::{
    io,
    time::{Duration, Instant},
};

use linerate_dataplane::pin::allowed_cores;
use serde::{Deserialize, Serialize};

use super::counters::{CpuShares, CpuTime, InterfaceCounters, SocketCounters, SoftnetCounters};
use crate::{options::Cpus, wire::rate::gbit_per_sec};

/// What a CPU is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A core of an embedded server, and perhaps client threads beside it.
    Server,
    /// Client threads.
    Client,
}

/// A CPU to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedCpu {
    /// Its number.
    pub cpu: usize,
    /// What it is for; `None` when it has nothing to do with the run, except that interrupts may go there.
    pub role: Option<Role>,
}

impl WatchedCpu {
    /// All CPUs that this process may use, with their roles. To be called before the calling thread is pinned.
    ///
    /// # Errors
    /// When the kernel does not tell which these are.
    pub fn all(cpus: &Cpus) -> io::Result<Vec<Self>> {
        let role = |cpu| {
            let server = cpus.server.contains(&cpu).then_some(Role::Server);
            server.or_else(|| cpus.clients.contains(&cpu).then_some(Role::Client))
        };
        Ok(allowed_cores()?.iter().map(|&cpu| Self { cpu, role: role(cpu) }).collect())
    }
}

/// Everything counted up to one moment.
#[derive(Clone, Debug)]
pub struct HostReading {
    at: Instant,
    cpus: Vec<(WatchedCpu, CpuTime)>,
    interface: String,
    frames: InterfaceCounters,
    sockets: SocketCounters,
    softnet: SoftnetCounters,
}

impl HostReading {
    /// Reads what concerns this interface and these CPUs, in the calling thread's network namespace. Five small files: it takes
    /// a fraction of a millisecond, which is for a thread that has nothing else to do.
    ///
    /// # Errors
    /// A sentence that names the interface or the CPU of which the kernel does not tell.
    pub fn take(interface: &str, cpus: &[WatchedCpu]) -> io::Result<Self> {
        let numbers: Vec<_> = cpus.iter().map(|watched| watched.cpu).collect();
        Ok(Self {
            at: Instant::now(),
            cpus: cpus.iter().copied().zip(CpuTime::of(&numbers)?).collect(),
            interface: interface.to_owned(),
            frames: InterfaceCounters::of(interface)?,
            sockets: SocketCounters::read()?,
            softnet: SoftnetCounters::read()?,
        })
    }

    /// What happened since an earlier reading of the same interface and CPUs.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> HostSample {
        // As short as this it is no interval, and its rates are nothing.
        let seconds =
            self.at.saturating_duration_since(earlier.at).max(Duration::from_micros(1)).as_secs_f64();
        let (rx, tx) = (self.frames.rx.minus(earlier.frames.rx), self.frames.tx.minus(earlier.frames.tx));
        let sockets = self.sockets.minus(earlier.sockets);
        let softnet = self.softnet.minus(earlier.softnet);
        let cpus = self.cpus.iter().zip(&earlier.cpus);
        HostSample {
            cpus: cpus
                .map(|(&(WatchedCpu { cpu, role }, now), &(_, before))| CpuSample {
                    cpu,
                    role,
                    shares: now.shares_since(before),
                })
                .collect(),
            interface: self.interface.clone(),
            rx_gbit: gbit_per_sec(rx, seconds),
            tx_gbit: gbit_per_sec(tx, seconds),
            rx_frames: rx.frames,
            tx_frames: tx.frames,
            nic_drops: rx.lost().saturating_add(tx.lost()),
            softnet_drops: softnet.dropped,
            softnet_squeezed: softnet.squeezed,
            udp_in_errors: sockets.udp_in_errors,
            udp_rcvbuf_errors: sockets.udp_rcvbuf_errors,
            udp_sndbuf_errors: sockets.udp_sndbuf_errors,
            udp_checksum_errors: sockets.udp_checksum_errors,
            udp_memory_errors: sockets.udp_memory_errors,
            tcp_retransmits: sockets.tcp_retransmits,
        }
    }
}

/// What happened in one interval. Counts are of this interval; the names are a contract, as those of
/// [`Report`](crate::output::Report).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostSample {
    /// Where the time of each CPU went.
    pub cpus: Vec<CpuSample>,
    /// The interface.
    pub interface: String,
    /// What its frames took on a cable in Gbit/s, with all that is around them, received and sent.
    pub rx_gbit: f64,
    /// See there.
    pub tx_gbit: f64,
    /// Frames received.
    pub rx_frames: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Frames that the interface dropped or found broken, both ways. Among them are those of `softnet_drops` that came by it.
    pub nic_drops: u64,
    /// Packets of all interfaces that found the queue of a CPU full.
    pub softnet_drops: u64,
    /// Rounds of receiving that ended with work left.
    pub softnet_squeezed: u64,
    /// UDP datagrams that did not get into their socket, for whatever reason.
    pub udp_in_errors: u64,
    /// Of these, because the receive buffer was full.
    pub udp_rcvbuf_errors: u64,
    /// Times that a full send buffer took no UDP datagram.
    pub udp_sndbuf_errors: u64,
    /// UDP datagrams with a wrong checksum.
    pub udp_checksum_errors: u64,
    /// UDP datagrams for which all of UDP had no memory.
    pub udp_memory_errors: u64,
    /// TCP segments sent again.
    pub tcp_retransmits: u64,
}

/// Where the time of one CPU went in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuSample {
    /// Its number.
    pub cpu: usize,
    /// What it is for.
    pub role: Option<Role>,
    /// The shares.
    #[serde(flatten)]
    pub shares: CpuShares,
}

/// The greatest share of its time that a CPU with a role was without because the machine below took it, averaged over the
/// samples; `None` without any.
#[must_use]
pub fn stolen_share(samples: &[HostSample]) -> Option<f64> {
    greatest(samples, |role| role.is_some(), |shares| shares.stolen)
}

/// The greatest share of its time that a CPU of this role had something to do, averaged over the samples; `None` without any.
/// It means something where threads sleep that have nothing to do.
#[must_use]
pub fn busy_share(samples: &[HostSample], role: Role) -> Option<f64> {
    greatest(samples, |other| other == Some(role), |shares| shares.user + shares.system + shares.softirq)
}

/// The share of their time, 0 to 1, that CPUs of this role spent in programs other than the one whose threads took `own_pct` per
/// cent of a CPU's time on them; `None` without samples or such CPUs. What the kernel does for devices is nobody's, although
/// it may count as time of the thread that it interrupts, so that others may have had more.
#[must_use]
pub fn others_share(samples: &[HostSample], role: Role, own_pct: f64) -> Option<f64> {
    let count = samples.first()?.cpus.iter().filter(|cpu| cpu.role == Some(role)).count();
    let of_role = samples.iter().flat_map(|sample| &sample.cpus).filter(|cpu| cpu.role == Some(role));
    let in_programs: f64 = of_role.map(|cpu| cpu.shares.user + cpu.shares.system).sum();
    let share = (in_programs / samples.len() as f64 - own_pct / 100.0) / count as f64;
    (count > 0).then_some(share.clamp(0.0, 1.0))
}

fn greatest(
    samples: &[HostSample],
    counts: impl Fn(Option<Role>) -> bool,
    share: impl Fn(CpuShares) -> f64,
) -> Option<f64> {
    let watched = samples.first()?.cpus.iter().filter(|cpu| counts(cpu.role));
    let mean = |number: usize| {
        let of_cpu = samples.iter().flat_map(|sample| &sample.cpus).filter(|cpu| cpu.cpu == number);
        of_cpu.map(|cpu| share(cpu.shares)).sum::<f64>() / samples.len() as f64
    };
    watched.map(|cpu| mean(cpu.cpu)).max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use linerate_dataplane::netns::{Namespace, Pair, PairConfig};

    use super::*;
    use crate::watch::counters::FrameCount;

    /// Goal: what others took is the programs' time without one's own. Method: two server CPUs over two samples, and a client's.
    #[test]
    fn others_have_what_is_not_ones_own() {
        let cpu = |cpu, role, user| CpuSample {
            cpu,
            role: Some(role),
            shares: CpuShares { user, system: 0.1, softirq: 0.3, ..CpuShares::default() },
        };
        let sample = |user| HostSample {
            cpus: vec![cpu(0, Role::Server, user), cpu(1, Role::Server, 0.4), cpu(2, Role::Client, 0.9)],
            ..HostSample::default()
        };
        let samples = [sample(0.5), sample(0.7)];
        let near =
            |share: Option<f64>, wanted: f64| assert!((share.unwrap() - wanted).abs() < 1e-9, "{share:?}");
        // 0.7 and 0.5 of the two CPUs on average, of which 0.9 of one are one's own.
        near(others_share(&samples, Role::Server, 90.0), 0.15);
        near(others_share(&samples, Role::Client, 100.0), 0.0);
        near(others_share(&samples, Role::Client, 200.0), 0.0);
        assert_eq!(others_share(&[], Role::Client, 0.0), None);
        assert_eq!(others_share(&[HostSample::default()], Role::Client, 0.0), None);
    }

    /// Goal: a sample has what has grown, each number in its place, and nothing absurd where a counter has shrunk. Method: two
    /// readings made by hand.
    #[test]
    fn a_sample_is_what_has_grown() {
        let at = Instant::now();
        let watched = WatchedCpu { cpu: 3, role: Some(Role::Client) };
        let zero = HostReading {
            at,
            cpus: vec![(watched, CpuTime::default())],
            interface: "eth0".to_owned(),
            frames: InterfaceCounters::default(),
            sockets: SocketCounters { udp_sndbuf_errors: 9, ..SocketCounters::default() },
            softnet: SoftnetCounters { dropped: 1, squeezed: 1 },
        };
        let rx = FrameCount {
            frames: 812_743,
            bytes: 812_743 * 1_514,
            dropped: 2,
            errors: 3,
            ..FrameCount::default()
        };
        let later = HostReading {
            at: at + Duration::from_secs(2),
            frames: InterfaceCounters { rx, tx: FrameCount { frames: 5, fifo: 4, ..FrameCount::default() } },
            sockets: SocketCounters {
                udp_in_errors: 30,
                udp_rcvbuf_errors: 10,
                udp_memory_errors: 11,
                udp_checksum_errors: 12,
                udp_sndbuf_errors: 2,
                tcp_retransmits: 13,
            },
            softnet: SoftnetCounters { dropped: 6, squeezed: 8 },
            ..zero.clone()
        };
        let sample = later.since(&zero);
        assert!((sample.rx_gbit - 5.0).abs() < 1e-3, "{sample:?}");
        let expected = HostSample {
            cpus: vec![CpuSample { cpu: 3, role: Some(Role::Client), shares: CpuShares::default() }],
            interface: "eth0".to_owned(),
            rx_gbit: sample.rx_gbit,
            tx_gbit: sample.tx_gbit,
            rx_frames: 812_743,
            tx_frames: 5,
            nic_drops: 9,
            softnet_drops: 5,
            softnet_squeezed: 7,
            udp_in_errors: 30,
            udp_rcvbuf_errors: 10,
            udp_sndbuf_errors: 0,
            udp_checksum_errors: 12,
            udp_memory_errors: 11,
            tcp_retransmits: 13,
        };
        assert_eq!(sample, expected);
        assert!(zero.since(&zero).rx_gbit == 0.0);
    }

    /// Goal: what is kept is read back. Method: numbers that decimals hold exactly, as others are read to their last bit but one.
    #[test]
    fn a_sample_is_read_back() {
        let shares = CpuShares { user: 0.5, system: 0.25, softirq: 0.125, idle: 0.0625, stolen: 0.0625 };
        let cpus = vec![
            CpuSample { cpu: 0, role: Some(Role::Server), shares },
            CpuSample { cpu: 9, role: None, shares: CpuShares::default() },
        ];
        let sample = HostSample {
            cpus,
            rx_gbit: 2.5,
            tx_gbit: 0.75,
            udp_memory_errors: u64::MAX,
            ..HostSample::default()
        };
        let text = serde_json::to_string(&sample).unwrap();
        assert_eq!(serde_json::from_str::<HostSample>(&text).unwrap(), sample, "{text}");
    }

    /// Goal: the JSON has the names that were agreed. Method: this machine, told twice.
    #[test]
    fn this_machine_is_sampled() {
        let cpus = WatchedCpu::all(&Cpus { server: vec![0], clients: vec![0, 1], is_crowded: true }).unwrap();
        let first = HostReading::take("lo", &cpus).unwrap();
        let begun = Instant::now();
        const COUNT: u32 = 100;
        for _ in 0..COUNT {
            HostReading::take("lo", &cpus).unwrap();
        }
        println!("a reading of {} CPUs takes {:?}", cpus.len(), begun.elapsed() / COUNT);
        let sample = HostReading::take("lo", &cpus).unwrap().since(&first);
        let value = serde_json::to_value(&sample).unwrap();
        for name in [
            "rx_gbit",
            "tx_gbit",
            "rx_frames",
            "tx_frames",
            "nic_drops",
            "softnet_drops",
            "softnet_squeezed",
            "udp_rcvbuf_errors",
            "udp_sndbuf_errors",
            "udp_checksum_errors",
            "tcp_retransmits",
        ] {
            assert!(value[name].is_number(), "{name}: {value}");
        }
        for name in ["cpu", "user", "system", "softirq", "idle", "stolen"] {
            assert!(value["cpus"][0][name].is_number(), "{name}: {value}");
        }
        assert_eq!(value["interface"], "lo");
        assert!(HostReading::take("nothing0", &cpus).unwrap_err().to_string().contains("nothing0"));
        let missing = [WatchedCpu { cpu: usize::MAX, role: None }];
        assert!(HostReading::take("lo", &missing).unwrap_err().to_string().contains(&usize::MAX.to_string()));
    }

    #[test]
    fn cpus_have_roles() {
        let allowed = allowed_cores().unwrap();
        let first = allowed[0];
        let cpus = Cpus { server: vec![first], clients: vec![first, usize::MAX], is_crowded: true };
        let all = WatchedCpu::all(&cpus).unwrap();
        assert_eq!(all.len(), allowed.len());
        assert_eq!(all[0], WatchedCpu { cpu: first, role: Some(Role::Server) });
        assert!(all[1..].iter().all(|watched| watched.role.is_none()));
        assert_eq!(serde_json::to_value(Role::Server).unwrap(), "server");
    }

    /// Goal: what is read is of the thread's own namespace, not of the process's. Method: the end of a cable that exists nowhere
    /// else.
    #[test]
    fn the_threads_namespace_is_read() {
        if !Namespace::is_available() {
            return;
        }
        let (here, there) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let pair = Pair::new(&here, &there, PairConfig::default()).unwrap();
        let name = &pair.a.interface;
        let first = here.run(|| HostReading::take(name, &[])).unwrap();
        assert_eq!(here.run(|| HostReading::take(name, &[])).unwrap().since(&first).interface, *name);
    }

    /// Goal: the worst CPU counts, over all of the time, and only those with a role. Method: three CPUs in two samples.
    #[test]
    fn the_worst_cpu_counts() {
        let cpu = |cpu, role, stolen| CpuSample {
            cpu,
            role,
            shares: CpuShares { stolen, user: stolen, system: 0.1, softirq: 0.2, idle: 0.7 - 2.0 * stolen },
        };
        let sample = |a, b, c| HostSample {
            cpus: vec![cpu(0, Some(Role::Server), a), cpu(1, Some(Role::Client), b), cpu(2, None, c)],
            ..HostSample::default()
        };
        let samples = [sample(0.0, 0.3, 0.9), sample(0.1, 0.1, 0.9)];
        let near =
            |got: Option<f64>, wanted: f64| assert!((got.unwrap() - wanted).abs() < 1e-9, "{got:?} {wanted}");
        near(stolen_share(&samples), 0.2);
        near(busy_share(&samples, Role::Server), 0.35);
        near(busy_share(&samples, Role::Client), 0.5);
        for nothing in [&[][..], &[HostSample::default()]] {
            assert_eq!((stolen_share(nothing), busy_share(nothing, Role::Server)), (None, None));
        }
    }
}
