//! Where a server's memory goes: one figure that covers all of it, cut before anything is served.
//!
//! ```text
//!  --memory │ process │ core 0: ports │ sessions │ long values │ store │ core 1: … │
//! ```
//! Each part is a hard limit of its own, so that the sum is one too. What ports for datagrams take follows from their
//! rings and buffers; the rest is shared out: all cores' stores are equally large, since keys are spread evenly.

use std::fmt;

use bytesize::ByteSize;
use linerate_dataplane::{region::MAPPING_UNIT, tcp::TcpConfig};
use linerate_proto::wire::VALUE_LEN_MAX;

/// Bytes for the program itself: its code and libc's as far as they are used (3.6 MiB measured, 5.8 in builds for
/// debugging), the main thread, and what the allocator has lying about.
const PROCESS_LEN: usize = 5 << 20;

/// Bytes for each core's thread: its stack (80 KiB measured), the allocator's for it, and what tables take when empty.
const THREAD_LEN: usize = 512 << 10;

/// Part of a core's memory for its sessions: 2,400 of 48 slots in a GiB.
const SESSIONS_SHARE: usize = 32;

/// Least memory for a core's sessions: 36 of 48 slots.
const SESSIONS_LEN_MIN: usize = 512 << 10;

/// Part of a core's memory for long values on their way in: 15 of the longest in a GiB.
const STAGING_SHARE: usize = 64;

/// Least memory for long values on their way in: one of the longest, and what is kept beside it.
const STAGING_LEN_MIN: usize = VALUE_LEN_MAX + (64 << 10);

/// Part of a core's memory for TCP: 106 connections in a GiB, and the most there can be, 256, from 2.4 GiB on.
const TCP_SHARE: usize = 64;

/// Least memory of a core's store: less holds no two long values beside an index.
const STORE_LEN_MIN: usize = 4 << 20;

/// The memory of a server, in bytes, part by part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// All of it: the sum of the others.
    pub memory_len: usize,
    /// What belongs to no core, and what is left over by rounding.
    pub process_len: usize,
    /// By core.
    pub cores: Vec<CorePlan>,
    /// How TCP is set up on each core, if it is listened on.
    pub tcp: Option<TcpConfig>,
}

/// The memory of one core in bytes, part by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorePlan {
    /// Buffers, rings and frames of its ports.
    pub buffers_len: usize,
    /// Sessions with their slots.
    pub sessions_len: usize,
    /// Long values on their way in.
    pub staging_len: usize,
    /// Index and items.
    pub store_len: usize,
}

impl CorePlan {
    /// All of it.
    #[must_use]
    pub const fn memory_len(&self) -> usize {
        self.buffers_len + self.sessions_len + self.staging_len + self.store_len
    }
}

impl Plan {
    /// Shares `memory_len` bytes out to as many cores as `datagrams_lens` has entries: what each one's port for datagrams
    /// takes, 0 for none. `tcp`: whether there is one for TCP beside it.
    ///
    /// # Errors
    /// The least memory that would do, when this is less.
    ///
    /// # Panics
    /// When there are no cores.
    pub fn new(memory_len: usize, datagrams_lens: &[usize], tcp: bool) -> Result<Self, usize> {
        let cores = datagrams_lens.len();
        assert!(cores > 0, "a server without cores");
        let fixed_len = PROCESS_LEN + cores * THREAD_LEN + datagrams_lens.iter().sum::<usize>();
        let tcp_len_of = |tcp: Option<TcpConfig>| tcp.map_or(0, |tcp| tcp.memory_len());
        let tcp_within = |len| tcp.then(|| TcpConfig::within(len));
        let least_per_core = tcp_len_of(tcp_within(0)) + SESSIONS_LEN_MIN + STAGING_LEN_MIN + STORE_LEN_MIN;
        let least_len = fixed_len + cores * least_per_core;
        if memory_len < least_len {
            return Err(least_len);
        }
        let per_core = (memory_len - fixed_len) / cores;
        let tcp = tcp_within(per_core / TCP_SHARE);
        let sessions_len = (per_core / SESSIONS_SHARE).max(SESSIONS_LEN_MIN);
        let staging_len = (per_core / STAGING_SHARE).max(STAGING_LEN_MIN);
        let store_len = per_core - tcp_len_of(tcp) - sessions_len - staging_len;
        let core_of = |&datagrams_len: &usize| CorePlan {
            buffers_len: datagrams_len + tcp_len_of(tcp),
            sessions_len,
            staging_len,
            store_len: store_len / MAPPING_UNIT * MAPPING_UNIT,
        };
        let cores: Vec<_> = datagrams_lens.iter().map(core_of).collect();
        let process_len = memory_len - cores.iter().map(CorePlan::memory_len).sum::<usize>();
        Ok(Self { memory_len, process_len, cores, tcp })
    }

    /// A part of all cores together.
    fn sum(&self, part: impl Fn(&CorePlan) -> usize) -> ByteSize {
        ByteSize(self.cores.iter().map(part).sum::<usize>() as u64)
    }
}

/// In a line for people.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "memory {}: {} for keys and values, {} for sessions, {} for long values on their way in, {} of buffers, {} for \
             the program",
            ByteSize(self.memory_len as u64),
            self.sum(|core| core.store_len),
            self.sum(|core| core.sessions_len),
            self.sum(|core| core.staging_len),
            self.sum(|core| core.buffers_len),
            ByteSize(self.process_len as u64),
        )
    }
}

/// Whether the system gives huge pages to those who ask for them, as the server does for all large tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// To those who ask, or to all: the word that the system has for it.
    Given(String),
    /// To nobody, or the system has none.
    Never,
}

impl HugePages {
    /// What the system says (Documentation/admin-guide/mm/transhuge.rst).
    #[must_use]
    pub fn of_system() -> Self {
        let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        Self::chosen(&text.unwrap_or_default())
    }

    /// The word in brackets.
    fn chosen(text: &str) -> Self {
        let word = text.split(['[', ']']).nth(1).unwrap_or("never");
        if word == "never" { Self::Never } else { Self::Given(word.to_owned()) }
    }

    /// What is lost, and the remedy.
    #[must_use]
    pub fn warning(&self) -> Option<&'static str> {
        (*self == Self::Never).then_some(
            "the system gives no huge pages, without which look-ups in much memory take longer: as root, `echo madvise > \
             /sys/kernel/mm/transparent_hugepage/enabled` before the server starts",
        )
    }
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(word) => write!(f, "huge pages: {word}"),
            Self::Never => write!(f, "no huge pages"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// What ports take: none, UDP, packet rings, XDP rings, and packet rings of jumbo frames.
    const DATAGRAMS_LENS: [usize; 5] = [0, 3_300_000, 12_700_000, 8_500_000, 70_000_000];

    /// Goal: the parts are the whole, for every combination. Method: sums, each part's least, and equal stores.
    #[test]
    fn the_parts_add_up() {
        for cores in [1, 2, 3, 7, 16, 255] {
            for tcp in [false, true] {
                for lens in DATAGRAMS_LENS {
                    // XDP queues are not always spread evenly.
                    let lens: Vec<_> =
                        (0..cores).map(|core| lens * (1 + usize::from(core % 3 == 1))).collect();
                    let least = Plan::new(0, &lens, tcp).unwrap_err();
                    for extra in [0, 1, 4_095, 65_537, 77 * MIB + 5, 1 << 30, (40 << 30) + 12_345] {
                        let plan = Plan::new(least + extra, &lens, tcp).unwrap();
                        let parts: usize = plan.cores.iter().map(CorePlan::memory_len).sum();
                        assert_eq!(plan.process_len + parts, least + extra, "{plan:?}");
                        assert_eq!(plan.cores.len(), cores);
                        assert!(plan.process_len >= PROCESS_LEN + cores * THREAD_LEN);
                        assert_eq!(plan.tcp.is_some(), tcp);
                        let tcp_len = plan.tcp.map_or(0, |tcp| tcp.memory_len());
                        for (core, datagrams_len) in plan.cores.iter().zip(&lens) {
                            assert_eq!(core.buffers_len, datagrams_len + tcp_len);
                            assert_eq!(core.store_len, plan.cores[0].store_len);
                            assert!(core.store_len >= STORE_LEN_MIN && core.store_len % MAPPING_UNIT == 0);
                            assert!(core.sessions_len >= SESSIONS_LEN_MIN);
                            assert!(core.staging_len >= STAGING_LEN_MIN);
                        }
                    }
                    assert_eq!(Plan::new(least - 1, &lens, tcp), Err(least));
                }
            }
        }
    }

    /// Goal: nearly all memory is for keys and values where there is plenty, and little suffices. Method: UDP and TCP.
    #[test]
    fn most_is_for_the_store() {
        let share = |memory_len: usize, cores: usize| {
            let plan = Plan::new(memory_len, &vec![DATAGRAMS_LENS[1]; cores], true).unwrap();
            plan.cores.iter().map(|core| core.store_len).sum::<usize>() * 1_000 / memory_len
        };
        assert!(share(1 << 30, 1) >= 920, "{}", share(1 << 30, 1));
        assert!(share(16 << 30, 8) >= 920, "{}", share(16 << 30, 8));
        assert!(share(64 * MIB, 1) >= 700, "{}", share(64 * MIB, 1));
        let least = Plan::new(0, &[DATAGRAMS_LENS[1]], true).unwrap_err();
        assert!(least <= 18 * MIB, "{least}");
        // As the protocol's description says.
        let connections = |memory_len| {
            Plan::new(memory_len, &[DATAGRAMS_LENS[1]], true).unwrap().tcp.unwrap().connections_max
        };
        assert_eq!([18 * MIB, 1 << 30, 2_458 * MIB].map(connections), [16, 106, 256]);
    }

    #[test]
    fn a_plan_is_told_in_a_line() {
        let plan = Plan::new(1 << 30, &[DATAGRAMS_LENS[1]], true).unwrap().to_string();
        assert!(plan.starts_with("memory 1.0 GiB: 9") && !plan.contains('\n'), "{plan}");
        for part in ["MiB for keys and values", "MiB for sessions", "MiB of buffers"] {
            assert!(plan.contains(part), "{plan}");
        }
    }

    #[test]
    fn the_systems_choice_of_huge_pages_is_understood() {
        assert_eq!(HugePages::chosen("always [madvise] never\n"), HugePages::Given("madvise".to_owned()));
        assert_eq!(HugePages::chosen("[always] madvise never\n").to_string(), "huge pages: always");
        for never in ["always madvise [never]\n", ""] {
            assert!(HugePages::chosen(never).warning().unwrap().contains("echo madvise"));
        }
        assert_eq!(HugePages::chosen("[always] madvise never\n").warning(), None);
    }
}
