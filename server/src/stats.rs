//! Counters of a core, and where other threads read them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use linerate_dataplane::PortCounters;
use linerate_proto::{
    DropReason, Drops,
    session::SessionTable,
    wire::{STAT_COUNT, Statistic},
};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};

use crate::{memory::CorePlan, store::Store};

/// What a worker counts itself. Written by one thread only.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WorkerCounters {
    pub(crate) gets: u64,
    pub(crate) hits: u64,
    pub(crate) puts: u64,
    pub(crate) deletes: u64,
    pub(crate) adds: u64,
    pub(crate) conditions_failed: u64,
    pub(crate) no_space: u64,
    pub(crate) wrong_core: u64,
    pub(crate) moved: u64,
    pub(crate) requests: u64,
    pub(crate) replays: u64,
    pub(crate) requests_refused: u64,
    pub(crate) controls: u64,
}

impl WorkerCounters {
    /// Writes executed, with an effect or without.
    pub(crate) const fn writes(&self) -> u64 {
        self.puts + self.deletes + self.adds
    }
}

/// The latest statistics of one core: written by its worker at least twenty times a second, read by anybody.
///
/// Each number is whole, but they are not read at one instant: sums over them may be off by what happened meanwhile.
#[derive(Clone, Debug)]
pub struct Published(Arc<[AtomicU64; STAT_COUNT]>);

impl Default for Published {
    fn default() -> Self {
        Self(Arc::new([const { AtomicU64::new(0) }; STAT_COUNT]))
    }
}

impl Published {
    /// All statistics in the order of [`STAT_NAMES`](linerate_proto::wire::STAT_NAMES).
    #[must_use]
    pub fn values(&self) -> [u64; STAT_COUNT] {
        std::array::from_fn(|index| self.0[index].load(Ordering::Relaxed))
    }

    /// Whether somebody else writes to it or reads it.
    #[cfg(test)]
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn set(&self, statistic: Statistic, value: u64) {
        self.0[statistic as usize].store(value, Ordering::Relaxed);
    }

    /// What the worker knows itself; costs no system call.
    pub(crate) fn store_worker(
        &self,
        worker: &WorkerCounters,
        drops: &Drops,
        sessions: &SessionTable,
        store: &Store,
    ) {
        let set = |statistic: Statistic, value: u64| self.set(statistic, value);
        let memory = store.memory();
        set(Statistic::Gets, worker.gets);
        set(Statistic::Hits, worker.hits);
        set(Statistic::Puts, worker.puts);
        set(Statistic::Deletes, worker.deletes);
        set(Statistic::Adds, worker.adds);
        set(Statistic::ConditionsFailed, worker.conditions_failed);
        set(Statistic::NoSpace, worker.no_space);
        set(Statistic::WrongCore, worker.wrong_core);
        set(Statistic::Moved, worker.moved);
        set(Statistic::Requests, worker.requests);
        set(Statistic::Replays, worker.replays);
        set(Statistic::RequestsRefused, worker.requests_refused);
        set(Statistic::Controls, worker.controls);
        set(Statistic::Sessions, sessions.count() as u64);
        set(Statistic::SessionsOpened, sessions.opened());
        set(Statistic::SessionsRefused, sessions.refused());
        set(Statistic::SessionsFenced, sessions.fenced());
        set(Statistic::SessionsBytes, sessions.memory_len() as u64);
        set(Statistic::StagedBytes, sessions.staged_len() as u64);
        set(Statistic::Records, store.len() as u64);
        set(Statistic::Expired, store.expired());
        set(Statistic::Evicted, store.evicted());
        set(Statistic::Version, store.version());
        set(Statistic::ItemsBytes, memory.items_len as u64);
        set(Statistic::IndexBytes, memory.index_len as u64);
        set(Statistic::MemoryBytes, memory.cap_len as u64);
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            self.0[Statistic::DropTruncated as usize + index].store(drops.of(reason), Ordering::Relaxed);
        }
    }

    /// What was planned at the start.
    pub(crate) fn store_plan(&self, plan: &CorePlan) {
        self.set(Statistic::BuffersBytes, plan.buffers_len as u64);
        self.set(Statistic::MemoryLimitBytes, plan.memory_len() as u64);
    }

    /// What the whole process takes.
    pub(crate) fn store_process(&self, rss_len: u64, huge_page_len: u64) {
        self.set(Statistic::RssBytes, rss_len);
        self.set(Statistic::HugePageBytes, huge_page_len);
    }

    /// What the system and the ports know.
    pub(crate) fn store_system(&self, ports: &PortCounters, uptime: Duration) {
        let set = |statistic: Statistic, value: u64| self.set(statistic, value);
        set(Statistic::CpuNs, thread_cpu_ns());
        set(Statistic::UptimeNs, u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX));
        set(Statistic::RxDatagrams, ports.rx_datagrams);
        set(Statistic::RxBytes, ports.rx_bytes);
        set(Statistic::RxTrains, ports.rx_trains);
        set(Statistic::RxTruncated, ports.rx_truncated);
        set(Statistic::RxOverflowDrops, ports.rx_overflow_drops);
        set(Statistic::TxDatagrams, ports.tx_datagrams);
        set(Statistic::TxBytes, ports.tx_bytes);
        set(Statistic::TxTrains, ports.tx_trains);
        set(Statistic::TxDropped, ports.tx_dropped);
        set(Statistic::SoftErrors, ports.soft_errors);
        set(Statistic::ConnectionsOpened, ports.connections_opened);
        set(Statistic::ConnectionsRefused, ports.connections_refused);
        set(Statistic::ConnectionsDropped, ports.connections_dropped);
        set(Statistic::RxBadFrames, ports.rx_bad_frames);
        set(Statistic::RxBadChecksums, ports.rx_bad_checksums);
        set(Statistic::RxFragments, ports.rx_fragments);
        set(Statistic::RxVlan, ports.rx_vlan);
        set(Statistic::RxIpv6, ports.rx_ipv6);
        set(Statistic::RxWrongDestination, ports.rx_wrong_destination);
        set(Statistic::RxHandedOver, ports.rx_handed_over);
        set(Statistic::RxHandoverDrops, ports.rx_handover_drops);
    }
}

/// What each core reports for the whole process.
const SHARED: [Statistic; 3] = [Statistic::RssBytes, Statistic::HugePageBytes, Statistic::UptimeNs];

/// The statistics of all cores of a server as one: counters and memory are summed; of resident memory, huge pages and
/// uptime, which each core reports for the whole process, there is the largest.
#[must_use]
pub fn sum(cores: impl IntoIterator<Item = [u64; STAT_COUNT]>) -> [u64; STAT_COUNT] {
    let mut total = [0; STAT_COUNT];
    for values in cores {
        for (index, (total, value)) in total.iter_mut().zip(values).enumerate() {
            let shared = SHARED.iter().any(|&shared| shared as usize == index);
            *total = if shared { value.max(*total) } else { *total + value };
        }
    }
    total
}

/// Datagrams dropped for any reason, in words: `3 malformed, 1 stale`; empty when there were none.
#[must_use]
pub fn drops_in_words(values: &[u64; STAT_COUNT]) -> String {
    let counts = DropReason::ALL.into_iter().zip(drops(values)).filter(|&(_, &count)| count > 0);
    counts.map(|(reason, count)| format!("{count} {}", reason.name())).collect::<Vec<_>>().join(", ")
}

/// Datagrams dropped, in the order of [`DropReason::ALL`].
#[must_use]
pub fn drops(values: &[u64; STAT_COUNT]) -> &[u64; DropReason::ALL.len()] {
    values[Statistic::DropTruncated as usize..].first_chunk().expect("each reason has a statistic")
}

/// Datagrams whose fate is known: executed, answered again, refused, understood otherwise, or dropped for a reason. At
/// rest these are all that were received.
#[must_use]
pub fn accounted(values: &[u64; STAT_COUNT]) -> u64 {
    let taken = [Statistic::Requests, Statistic::Replays, Statistic::RequestsRefused, Statistic::Controls];
    taken.into_iter().map(|statistic| values[statistic as usize]).chain(drops(values).iter().copied()).sum()
}

/// CPU time of the calling thread in nanoseconds; 0 if the kernel does not tell.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Resident memory of this process in bytes (proc_pid_statm(5), second field, in pages); 0 if the kernel does not tell.
#[must_use]
pub fn process_rss_len() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let page_len = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|len| u64::try_from(len).ok());
    pages.zip(page_len).map_or(0, |(pages, page_len)| pages * page_len)
}

/// Memory of this process in bytes that is on huge pages (proc_pid_smaps(5)); 0 if the kernel does not tell.
#[must_use]
pub fn process_huge_page_len() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("AnonHugePages:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: words name reasons, and nothing that stands behind them. Method: all statistics have a number.
    #[test]
    fn drops_are_those_with_a_reason() {
        let words = drops_in_words(&[2; STAT_COUNT]);
        assert!(words.starts_with("2 truncated, 2 oversized, "), "{words}");
        assert!(words.ends_with(", 2 no_room, 2 budget"), "{words}");
        assert_eq!(words.split(", ").count(), DropReason::ALL.len());
        assert_eq!(drops_in_words(&[0; STAT_COUNT]), "");
    }

    /// Goal: both clocks and memory are those of this thread and process, and memory on huge pages is told where the system
    /// gives them. Method: work shows in the one, touched memory in the others.
    #[test]
    fn what_is_used_shows() {
        let (cpu, rss) = (thread_cpu_ns(), process_rss_len());
        let touched = std::hint::black_box(vec![1u8; 32 << 20]);
        assert!(process_rss_len() >= rss + (24 << 20), "{rss} bytes before");
        assert!(touched.iter().map(|&byte| u64::from(byte)).sum::<u64>() > 0);
        assert!(thread_cpu_ns() > cpu);

        let mut region = linerate_dataplane::region::Region::<u8>::zeroed(64 << 20).unwrap();
        region.populate().unwrap();
        let (huge, rss) = (process_huge_page_len(), process_rss_len());
        println!("{huge} bytes of {rss} on huge pages; {}", crate::memory::HugePages::of_system());
        // How many there are to be had is the system's affair.
        assert!(huge <= rss && huge % (2 << 20) == 0, "{huge}");
        assert!(region.iter().all(|&byte| byte == 0));
    }

    /// Goal: what each core tells of the process is not taken for the core's. Method: two cores.
    #[test]
    fn sums_are_of_cores_and_not_of_the_process() {
        let cores = [Published::default(), Published::default()];
        for (core, buffers_len) in cores.iter().zip([3, 4]) {
            core.store_process(1_000, 500);
            let plan = CorePlan { buffers_len, sessions_len: 10, staging_len: 20, store_len: 30 };
            core.store_plan(&plan);
        }
        let sum = sum(cores.iter().map(Published::values));
        let of = |statistic: Statistic| sum[statistic as usize];
        assert_eq!((of(Statistic::RssBytes), of(Statistic::HugePageBytes)), (1_000, 500));
        assert_eq!((of(Statistic::BuffersBytes), of(Statistic::MemoryLimitBytes)), (7, 127));
    }
}
