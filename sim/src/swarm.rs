//! What one seed is like: every parameter is drawn anew, so that no two seeds test the same system.
//!
//! Ranges are wide and many faults are absent from many seeds. A fault that is always there hides what only shows without
//! it: with 30 % loss no queue ever overflows.

use std::{net::SocketAddr, time::Duration};

use linerate_client::{Key, Operation, Order, SessionConfig};
use linerate_dataplane::sim::Faults;
use linerate_proto::{
    hash::key_hash,
    placement::{Partition, core_of},
    wire::VALUE_LEN_MAX,
};
use rand::{Rng, RngExt, rngs::Xoshiro256PlusPlus};

use crate::value::VALUE_LEN_MIN;

/// Lengths of values in bytes, each as likely as it is often here.
const VALUE_LENS: [usize; 8] = [VALUE_LEN_MIN, VALUE_LEN_MIN, 17, 40, 100, 128, 600, 1_200];

/// Lengths that need more than a datagram, around the edges of its pieces, for seeds that have such.
const LONG_VALUE_LENS: [usize; 5] = [1_473, 2_816, 2_817, 5_000, 20_000];

/// How long values of a seed can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lengths {
    /// Each fits a datagram.
    Short,
    /// Some are of up to 20 KB.
    Long,
    /// And a few of up to 1 MiB.
    Longest,
}

/// Lengths of keys in bytes: the edges of the store's and the hash's short paths, and the limits.
const KEY_LENS: [usize; 7] = [1, 2, 8, 16, 17, 60, 255];

/// Operations pushed from one node fault to the next, on average over a seed.
const NODE_FAULT_INTERVALS: [u32; 5] = [15, 40, 100, 300, 1_000];

/// Kinds of node faults, in the order of their weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeFault {
    /// A core stands still.
    PauseCore,
    /// All cores stand still.
    PauseServer,
    /// A client stands still, perhaps for longer than its lease.
    PauseClient,
    /// The server dies with all that it knows, and starts anew.
    KillServer,
    /// A client dies without a word, and starts anew, perhaps elsewhere.
    KillClient,
    /// A client takes leave and starts anew.
    LeaveClient,
    /// A clock jumps forward, perhaps beyond the lease.
    ClockForward,
    /// A clock jumps back.
    ClockBack,
    /// The server forgets one session.
    EvictSession,
    /// A core or client takes turns only now and then, for a while.
    SlowDown,
    /// A link, or all links of one port, stand still.
    Clog,
    /// A link loses everything one way.
    Part,
    /// Bytes without meaning arrive.
    Garbage,
}

impl NodeFault {
    /// All kinds.
    pub const ALL: [Self; 13] = [
        Self::PauseCore,
        Self::PauseServer,
        Self::PauseClient,
        Self::KillServer,
        Self::KillClient,
        Self::LeaveClient,
        Self::ClockForward,
        Self::ClockBack,
        Self::EvictSession,
        Self::SlowDown,
        Self::Clog,
        Self::Part,
        Self::Garbage,
    ];

    /// Name in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PauseCore => "pause_core",
            Self::PauseServer => "pause_server",
            Self::PauseClient => "pause_client",
            Self::KillServer => "restart_server",
            Self::KillClient => "kill_client",
            Self::LeaveClient => "leave_client",
            Self::ClockForward => "clock_forward",
            Self::ClockBack => "clock_back",
            Self::EvictSession => "evict_session",
            Self::SlowDown => "slow_down",
            Self::Clog => "clog",
            Self::Part => "partition",
            Self::Garbage => "garbage",
        }
    }
}

/// A key of the run and where it lives.
#[derive(Clone, Debug)]
pub struct RunKey {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Core that owns it.
    pub shard: u8,
}

/// Everything drawn for one seed.
#[derive(Clone, Debug)]
pub struct Params {
    /// Cores of the server.
    pub cores: u8,
    /// Clients at a time.
    pub clients: u16,
    /// The keys; the first is the hot one.
    pub keys: Vec<RunKey>,
    /// A key for each client that it adds to, and nobody else.
    pub counters: Vec<RunKey>,
    /// Share of the operations that are adds.
    pub adds: f64,
    /// Share of the puts that are on a condition.
    pub conditional: f64,
    /// Share of the operations that go to the hot key.
    pub hot: f64,
    /// Shares of puts and of deletes; the rest are gets.
    pub writes: (f64, f64),
    /// Whether there is not memory enough for all keys.
    pub tight: bool,
    /// How long values can be.
    pub lengths: Lengths,
    /// Longest of the values that fit a datagram; lengths above are cut to it.
    pub value_len_max: usize,
    /// Whether datagrams carry checksums. Without, nothing damages them.
    pub checksum: bool,
    /// Whether clients live at loopback addresses, which alone may do without checksums.
    pub loopback: bool,
    /// Whether clients share one machine, and so what a server gives to one source.
    pub one_source: bool,
    /// The network while it is bad.
    pub faults: Faults,
    /// Time without a word after which a session ends.
    pub lease: Duration,
    /// Cap on all sessions of a core in bytes.
    pub sessions_memory_len: usize,
    /// Cap on the long values on their way into a core, in bytes.
    pub staging_len: usize,
    /// Memory of a core's store in bytes.
    pub store_memory_len: usize,
    /// Least time from one turn of a core to the next.
    pub core_interval: Duration,
    /// Pushed operations from one node fault to the next, on average.
    pub node_fault_interval: u32,
    /// How likely each of [`NodeFault::ALL`] is, relative to the others.
    pub node_fault_weights: [u32; NodeFault::ALL.len()],
}

/// What is drawn for each life of a client.
#[derive(Clone, Copy, Debug)]
pub struct ClientParams {
    /// How its session is set up.
    pub session: SessionConfig,
    /// Operations that it has open at most.
    pub open_max: usize,
    /// Operations that it pushes in a row at most.
    pub push_max: usize,
    /// Whether it lets operations wait for others to travel with.
    pub lingers: bool,
    /// Least and longest time from one turn to the next while nothing arrives.
    pub stride: (Duration, Duration),
}

impl Params {
    /// Draws everything.
    #[must_use]
    pub fn draw(random: &mut Xoshiro256PlusPlus) -> Self {
        let cores = random.random_range(1..=3);
        let loopback = random.random_bool(0.4);
        let checksum = !loopback || random.random_bool(0.5);
        let key_len = pick(random, &KEY_LENS);
        // Puts are refused then, and deletes make room again.
        let tight = random.random_bool(0.25);
        let keys = if tight { 20 } else { pick(random, &[1, 2, 3, 5, 8, 12, 20]) };
        let lengths = match random.random_range(0..40) {
            _ if tight => Lengths::Short,
            0 => Lengths::Longest,
            1..=9 => Lengths::Long,
            _ => Lengths::Short,
        };
        let long_memory = if lengths == Lengths::Longest { 12 << 20 } else { 1 << 20 };
        let mut node_fault_weights = [0; NodeFault::ALL.len()];
        for weight in &mut node_fault_weights {
            *weight = pick(random, &[0, 1, 1, 2, 5]);
        }
        let clients = random.random_range(1..=6);
        Self {
            cores,
            clients,
            keys: (0..keys).map(|number| key(random, key_len, number, cores)).collect(),
            counters: (0..clients as u8).map(|number| key(random, key_len, keys + number, cores)).collect(),
            adds: pick(random, &[0.0, 0.05, 0.2]),
            conditional: pick(random, &[0.0, 0.2, 0.6]),
            hot: pick(random, &[0.0, 0.2, 0.7]),
            writes: if tight {
                pick(random, &[(0.5, 0.3), (0.4, 0.2), (0.6, 0.3)])
            } else {
                pick(random, &[(0.5, 0.0), (0.3, 0.0), (0.4, 0.2), (0.2, 0.2), (0.05, 0.05), (0.8, 0.1)])
            },
            tight,
            lengths,
            value_len_max: pick(
                random,
                if tight { &[600, 1_200] } else { &[VALUE_LEN_MIN, 100, 600, 1_200] },
            ),
            checksum,
            loopback,
            one_source: random.random_bool(0.5),
            faults: faults(random, checksum, lengths, tight),
            lease: Duration::from_secs(pick(random, &[1, 1, 1, 2, 5, 20, 60])),
            // A slot takes some hundred bytes: from two slots of one session to more than are ever asked for.
            sessions_memory_len: pick(random, &[1 << 20, 1 << 20, 1 << 20, 30_000, 10_000, 3_000]),
            // Room for the longest value at least, and not for many.
            staging_len: match lengths {
                Lengths::Longest => pick(random, &[8 << 20, 1_100 << 10]),
                Lengths::Short | Lengths::Long => pick(random, &[8 << 20, 64 << 10, 21_000]),
            },
            store_memory_len: if tight { pick(random, &[4 << 10, 6 << 10]) } else { long_memory },
            // The longest values take a thousand datagrams and more, which no slow core answers within a timeout.
            core_interval: Duration::from_micros(match lengths {
                Lengths::Short | Lengths::Long => pick(random, &[0, 0, 1, 20, 200, 1_000]),
                Lengths::Longest => pick(random, &[0, 1, 20]),
            }),
            node_fault_interval: pick(random, &NODE_FAULT_INTERVALS),
            node_fault_weights,
        }
    }

    /// Draws one life of a client.
    #[must_use]
    pub fn draw_client(&self, random: &mut Xoshiro256PlusPlus) -> ClientParams {
        let session = SessionConfig {
            window: pick(random, &[1, 2, 3, 5, 8, 16, 32]),
            // Where puts are refused, some requests are refused as a whole.
            operations_max: pick(random, if self.tight { &[1, 1, 2] } else { &[1, 1, 2, 5, 20, 255] }),
            checksum: self.checksum,
            versions: true,
            order: pick(random, &[Order::None, Order::None, Order::None, Order::Key, Order::Strict]),
            burst: random.random_range(1..=16),
            linger: Duration::from_micros(pick(random, &[0, 20, 200])),
            rto_floor: Duration::from_micros(pick(random, &[200, 1_000])),
            timeout: pick(random, self.timeouts()),
            coalesce: random.random_bool(0.5),
            ..SessionConfig::default()
        };
        let shortest = Duration::from_micros(pick(random, &[5, 20, 50]));
        ClientParams {
            session,
            open_max: pick(random, &[1, 2, 8, 32, 100]),
            push_max: pick(random, &[1, 3, 10, 30]),
            lingers: random.random_bool(0.5),
            stride: (shortest, shortest * pick(random, &[8, 32])),
        }
    }

    /// Timeouts that a sound system keeps when all is well: what takes many turns takes its time.
    const fn timeouts(&self) -> &'static [Duration] {
        const ALL: [Duration; 5] = [
            Duration::from_millis(10),
            Duration::from_millis(50),
            Duration::from_millis(200),
            Duration::from_secs(1),
            Duration::from_secs(5),
        ];
        let (_, slow) = ALL.split_at(2);
        let (_, slowest) = slow.split_at(1);
        let is_slow = self.core_interval.as_micros() >= 200;
        match (self.lengths, is_slow) {
            (Lengths::Short, false) => &ALL,
            (Lengths::Short, true) | (Lengths::Long, false) => slow,
            (Lengths::Long, true) | (Lengths::Longest, _) => slowest,
        }
    }

    /// Draws the length of a value for a key.
    #[must_use]
    pub fn draw_value_len(&self, random: &mut Xoshiro256PlusPlus, key: u16) -> usize {
        let inline = Operation::inline_value_len_max(self.keys[usize::from(key)].bytes.len());
        let is_long = self.lengths != Lengths::Short && random.random_bool(0.2);
        if !is_long {
            let lens: &[usize] = if self.tight { &[100, 600, 1_200] } else { &VALUE_LENS };
            return pick(random, lens).min(self.value_len_max).min(inline);
        }
        if self.lengths == Lengths::Longest && random.random_bool(0.05) {
            return pick(random, &[VALUE_LEN_MAX - 1, VALUE_LEN_MAX, 300_000]);
        }
        // Around what still fits, too.
        if random.random_bool(0.3) {
            inline + random.random_range(0..3)
        } else {
            pick(random, &LONG_VALUE_LENS)
        }
    }

    /// Whether it is known from the datagrams of a client what it has in flight. Pieces of long values are given up without
    /// a word.
    #[must_use]
    pub fn watches_credit(&self) -> bool {
        self.lengths == Lengths::Short && self.faults.datagram_len_max >= 1_452
    }

    /// Whether receive queues have room for handshakes beside what is credited.
    #[must_use]
    pub const fn watches_queues(&self) -> bool {
        self.faults.queue_len >= 24 * 2_304
    }

    /// Where a client is.
    #[must_use]
    pub fn client_addr(&self, number: u16) -> SocketAddr {
        let host = if self.one_source { 2 } else { 2 + number % 100 } as u8;
        (if self.loopback { [127, 0, 0, host] } else { [10, 0, 1, host] }, 5_000 + number).into()
    }

    /// Where a core is.
    #[must_use]
    pub fn core_addr(&self, core: u8) -> SocketAddr {
        ([10, 0, 0, 1], 4_100 + u16::from(core)).into()
    }
}

/// One of the choices.
pub fn pick<T: Copy>(random: &mut Xoshiro256PlusPlus, choices: &[T]) -> T {
    choices[random.random_range(0..choices.len())]
}

/// A duration of which all magnitudes are alike likely.
pub fn magnitude(random: &mut Xoshiro256PlusPlus, shortest: Duration, longest: Duration) -> Duration {
    let (low, high) = ((shortest.as_nanos() as f64).ln(), (longest.as_nanos() as f64).ln());
    Duration::from_nanos((low + (high - low) * random.random_range(0.0..1.0)).exp() as u64)
}

fn key(random: &mut Xoshiro256PlusPlus, len: usize, number: u8, cores: u8) -> RunKey {
    let mut bytes = vec![0; len];
    random.fill_bytes(&mut bytes);
    // What tells keys apart lies at the end, where the long ones' hashes must find it.
    bytes[len - 1] = number;
    let shard = core_of(Partition::of(key_hash(Key::new(&bytes))), cores);
    RunKey { bytes, shard }
}

fn faults(random: &mut Xoshiro256PlusPlus, checksum: bool, lengths: Lengths, tight: bool) -> Faults {
    let longest = magnitude(random, Duration::from_micros(5), Duration::from_millis(2));
    let mut share = |most: f64, allowed: bool| {
        if !allowed || random.random_bool(0.4) { 0.0 } else { random.random_range(0.0..most) }
    };
    Faults {
        loss: share(0.3, true),
        // What was refused may come again when there is room.
        duplication: share(0.3, true).max(if tight { 0.1 } else { 0.0 }),
        reordering: share(0.3, true),
        corruption: share(0.3, checksum),
        truncation: share(0.3, checksum),
        misdelivery: share(0.3, true),
        spoofing: share(0.3, true),
        replay: share(0.3, true),
        tail: (share(0.3, true).max(if tight { 0.1 } else { 0.0 }), Duration::from_millis(8)),
        delay: (Duration::from_micros(5), longest.max(Duration::from_micros(5))),
        // From what Ethernet carries down to the least that clients try.
        datagram_len_max: pick(random, &[1_472, 1_472, 1_472, 1_452, 1_300, 1_232]),
        // From two full datagrams to what nobody fills; the fourth is the kernel's default. Of a long value more pieces are
        // asked for at once than the shortest have room for, which loses most of them each time.
        queue_len: match lengths {
            Lengths::Short => pick(random, &[2 * 2_304, 10_000, 24 * 2_304, 212_992, 212_992, 8 << 20]),
            Lengths::Long | Lengths::Longest => pick(random, &[212_992, 8 << 20]),
        },
    }
}
