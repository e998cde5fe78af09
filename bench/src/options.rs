//! What is typed on the command line, and what follows from it on this machine.

use std::{
    collections::BTreeSet,
    fmt, iter,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use bytesize::ByteSize;
use clap::{
    ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
    error::{ContextKind, ContextValue},
    parser::ValueSource,
};
use linerate_client::{Order, SessionConfig, contact_points};
use linerate_dataplane::{
    FaultyConfig, UdpConfig,
    pin::allowed_cores,
    transport::{self, Transport, Wanted},
};
use linerate_proto::{Key, hash::key_hash};
use linerate_server::core_loop::Idle;

use crate::{
    cache::CacheOptions,
    check::{Checker, versions::TableShape},
    cluster::ClusterCommand,
    compare::CompareOptions,
    line_rate::ModelOptions,
    load::{
        LoadPlan, LoadTimes,
        schedule::{Arrivals, Pace},
    },
    output::{Config, JsonTarget, memory_bytes},
    peers::PeersOptions,
    report::{ReportOptions, readme::ReadmeOptions},
    results::KeepOptions,
    search::SearchOptions,
    series::interval,
    sweep::SweepOptions,
    wire::{WirePort, rate::Rate},
    workload::{
        Hotspot, INSERTS_MAX, INSERTS_MIN, Inserts, KeyDistribution, RECORDS_MAX, STREAM_LEN, STREAMS_MAX,
        Share, Stream, StreamLaw, Theta, Trace, TraceFile, ValueLaw, ValueLen, Workload,
    },
};

/// Seconds of load before each measurement of a comparison, which has many.
const WIRE_WARMUP: f64 = 0.3;

/// Inserts per second and server core that room is made for: 5 % of 10 M op/s, which is what a 10 GbE card carries.
const INSERTS_PER_SEC: f64 = 500_000.0;

/// Operations per second that no client machine begins, for how many are worth drawing.
const OPS_PER_SEC_MAX: f64 = 60e6;

/// Fewest operations of a stream, which draw in some milliseconds.
const STREAM_LEN_MIN: usize = 1 << 16;

/// Operations of a stream for each record, and how many are enough however few records there are.
const STREAM_LEN_PER_RECORD: usize = 16;
const STREAM_LEN_VARIOUS: usize = 1 << 17;

/// Records that the store can be measured with: fewer would not fill a few batches, more have no place in one store.
const STORE_RECORDS: std::ops::RangeInclusive<i64> = 1_000..=100_000_000;

/// Measures linerate with the workloads of YCSB. Without a command: the demo.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Options {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// UDP against TCP on the standard workload, with a server of its own
    Demo(DemoOptions),
    /// One measurement
    Run(RunOptions),
    /// What the packets allow: the same datagrams without a store
    Ceiling(RunOptions),
    /// One run for each value of one or two options; can be interrupted and resumed
    Sweep(SweepOptions),
    /// Transports against each other in alternating rounds
    Compare(CompareOptions),
    /// The highest rate of an open loop that keeps service level objectives
    Search(SearchOptions),
    /// All ports on real frames, between network namespaces of their own (needs root)
    Wire(WireOptions),
    /// The store alone, without a network: time per operation, memory per record, and hash tables beside it
    Store(StoreOptions),
    /// What a store that evicts keeps, against LRU, S3-FIFO and W-TinyLFU in the same room
    Cache(CacheOptions),
    /// The same operations with Redis, Valkey and memcached, as far as they are installed
    Peers(PeersOptions),
    /// Many servers and clients: on hosts that ssh reaches, in network namespaces, or on this machine's loopback
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// What servers and clients with full network cards could do: a calculation, nothing is measured
    Model(ModelOptions),
    /// One HTML file of a result that was kept, or of several side by side
    Report(ReportOptions),
    /// The README's tables and pictures, made anew from results that are kept
    Readme(ReadmeOptions),
}

/// The demo can be made shorter, and nothing else.
#[derive(Clone, Debug, Args)]
pub struct DemoOptions {
    /// Seconds to measure each transport
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub duration: f64,
    /// Records stored before
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(RECORDS_MAX)))]
    pub records: u32,
}

/// Which options were typed. Those that have defaults do not tell: what is typed and then does nothing is refused, a default
/// is not. Must come before all other fields, which take what was typed away.
#[derive(Clone, Default)]
pub struct Typed(BTreeSet<String>);

impl Typed {
    /// Whether this option was typed.
    fn has(&self, field: &str) -> bool {
        self.0.contains(field)
    }
}

/// Says nothing: options that are the same look the same, whether or not they were typed.
impl fmt::Debug for Typed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Typed")
    }
}

impl FromArgMatches for Typed {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let is_typed = |id: &&clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        Ok(Self(matches.ids().filter(is_typed).map(ToString::to_string).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Typed {
    fn augment_args(command: clap::Command) -> clap::Command {
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        command
    }
}

/// One measurement.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// Which of these were typed.
    #[command(flatten)]
    pub typed: Typed,
    /// `embedded` starts a server for the run, `null` answers in the client's thread, to measure the client alone; otherwise
    /// running servers of one cluster, as host:port,… with the first port
    /// of each (one is enough), or the file of the cluster map
    #[arg(long, visible_alias = "cluster", default_value = "embedded")]
    pub target: String,
    /// What to speak: udp, tcp, packet (AF_PACKET rings), xdp (AF_XDP rings) or auto (the best of udp, packet and xdp)
    #[arg(long, default_value = "udp")]
    pub transport: Wanted,
    /// Workload of YCSB: a 50 % get, b 95 %, c 100 %, and puts; d 95 %, and inserts; f 50 %, and gets with a put behind them
    #[arg(long, default_value = "b")]
    pub workload: Workload,
    /// Share of gets, 0 to 1, instead of a workload's; the others are puts
    #[arg(long, value_name = "SHARE", conflicts_with = "workload")]
    pub read_share: Option<Share>,
    /// Law by which keys are chosen [default: zipf, and latest with workload d]
    #[arg(long)]
    pub distribution: Option<Distribution>,
    /// Share of the records that are hot with --distribution hotspot [default: 0.2]
    #[arg(long, value_name = "SHARE")]
    pub hotspot_set: Option<Share>,
    /// Share of the operations that are on these [default: 0.8]
    #[arg(long, value_name = "SHARE")]
    pub hotspot_ops: Option<Share>,
    /// Replay the rows of a Twitter cache trace (CSV) over a store that is empty at first, again and again
    #[arg(long, value_name = "FILE", conflicts_with_all = ["workload", "read_share", "distribution", "theta", "hotspot_set",
        "hotspot_ops", "records", "value_len"])]
    pub trace: Option<TraceFile>,
    /// Exponent of the Zipf law, 0 to 10; not for --distribution uniform and hotspot, which have none
    #[arg(long, default_value = "0.99")]
    pub theta: Theta,
    /// Records stored before the run
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(RECORDS_MAX)))]
    pub records: u32,
    /// Bytes per value: a number, a range such as 64-256, a weighted list such as 100:0.7,4096-8192:0.3, or etc (Facebook's)
    #[arg(long, default_value = "128")]
    pub value_len: ValueLaw,
    /// Cores of an embedded server
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub server_cores: u8,
    /// Memory of an embedded server, such as 2GiB [default: what the records need]
    #[arg(long, value_name = "SIZE", value_parser = server_memory)]
    pub memory: Option<ByteSize>,
    /// Client threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
    /// Sessions of all threads together, each with a window of its own; at least as many as threads [default: as many]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub sessions: Option<u16>,
    /// Begin so many operations per second, whether or not answers come (an open loop), and count latencies from when each
    /// was due; without it a batch is begun when one has ended (a closed loop)
    #[arg(long, value_name = "OPS", value_parser = rate)]
    pub rate: Option<f64>,
    /// Law by which the operations of each session are due with --rate: fixed, poisson or burst:N [default: poisson]
    #[arg(long)]
    pub arrivals: Option<Arrivals>,
    /// Make an embedded server stand still for so many milliseconds in the middle of the run, to see what the figures make
    /// of it
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub stall: Option<u32>,
    /// Seconds to measure
    #[arg(long, default_value_t = 8.0, value_parser = seconds)]
    pub duration: f64,
    /// Seconds of load before that
    #[arg(long, default_value_t = 1.0, value_parser = seconds_or_none)]
    pub warmup: f64,
    /// Order of the operations of one session: none, key (those on one key) or strict (a write alone, reads together)
    #[arg(long, default_value = "none")]
    pub order: Order,
    /// Send gets of one key that would travel in the same request once; what others' answers served is counted apart
    #[arg(long)]
    pub coalesce: bool,
    /// Operations of a batch, and at most of a request, 1 to 255
    #[arg(long, default_value_t = 110, value_parser = clap::value_parser!(u8).range(1..))]
    pub batch: u8,
    /// Batches in flight per session and server core, 1 to 128
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub window: u16,
    /// Check that each value got was put at its key
    #[arg(long)]
    pub verify: bool,
    /// Check every operation for linearizability, and every value as --verify does; nobody else may write meanwhile
    #[arg(long)]
    pub check: bool,
    /// As --check, together with all processes of this machine that name the same file, such as /dev/shm/linerate
    #[arg(long, value_name = "PATH")]
    pub check_shared: Option<PathBuf>,
    /// Share of the datagrams to lose in each direction, 0 to 0.5 (not tcp)
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = fault_share)]
    pub loss: f64,
    /// Share of the datagrams to deliver twice
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = fault_share)]
    pub dup: f64,
    /// Share of the datagrams to hold back until others have overtaken them
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = fault_share)]
    pub reorder: f64,
    /// Make a mistake on purpose, for --check to find
    #[cfg(feature = "mutants")]
    #[arg(long, value_name = "NAME")]
    pub mutant: Option<linerate_proto::mutants::Mutant>,
    /// Have every datagram carry a checksum even over loopback
    #[arg(long)]
    pub checksum: bool,
    /// What an embedded server does when nothing arrives: spin or epoll
    #[arg(long, default_value = "epoll")]
    pub idle: Idle,
    /// Do not look at the client, the servers and the host each second
    #[arg(long)]
    pub no_watch: bool,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Which of several runs with the same operations it is: each draws anew when they are due and what gets lost.
    #[arg(skip)]
    pub trial: u64,
    /// Write the result as JSON to this file, - for standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<JsonTarget>,
    /// Whether and where it is kept.
    #[command(flatten)]
    pub place: KeepOptions,
}

/// A comparison of ports on a virtual cable: one server core, one client core.
#[derive(Clone, Debug, Args)]
pub struct WireOptions {
    /// Which of these were typed.
    #[command(flatten)]
    pub typed: Typed,
    /// Ports to compare
    #[arg(long, value_delimiter = ',', default_value = "udp,udp-plain,packet,xdp,tcp")]
    pub ports: Vec<WirePort>,
    /// Seconds to measure each port
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub duration: f64,
    /// Measure udp over a cable of this rate too, such as 10gbit
    #[arg(long)]
    pub rate: Option<Rate>,
    /// Workload of YCSB: a 50 % get, b 95 %, c 100 %, and puts; d 95 %, and inserts; f 50 %, and gets with a put behind them
    #[arg(long, default_value = "b")]
    pub workload: Workload,
    /// Law by which keys are chosen [default: zipf, and latest with workload d]
    #[arg(long)]
    pub distribution: Option<Distribution>,
    /// Exponent of the Zipf law, 0 to 10
    #[arg(long, default_value = "0.99")]
    pub theta: Theta,
    /// Records stored before
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(RECORDS_MAX)))]
    pub records: u32,
    /// Bytes per value: a number, a range such as 64-256, a weighted list such as 100:0.7,4096-8192:0.3, or etc (Facebook's)
    #[arg(long, default_value = "128")]
    pub value_len: ValueLaw,
    /// Operations of a batch, and at most of a request, 1 to 255
    #[arg(long, default_value_t = 110, value_parser = clap::value_parser!(u8).range(1..))]
    pub batch: u8,
    /// Batches in flight, 1 to 128
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub window: u16,
    /// What the server does when nothing arrives: spin or epoll
    #[arg(long, default_value = "epoll")]
    pub idle: Idle,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the result as JSON to this file, - for standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<JsonTarget>,
    /// Whether and where it is kept.
    #[command(flatten)]
    pub place: KeepOptions,
}

/// The store of one core, measured alone.
#[derive(Clone, Debug, Args)]
pub struct StoreOptions {
    /// Records stored
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(STORE_RECORDS))]
    pub records: u32,
    /// Measure 1,000 records, 10,000 and so on, up to so many or as far as the memory of this machine goes
    #[arg(long, conflicts_with = "records", num_args = 0..=1, default_missing_value = "100000000",
        value_name = "RECORDS", value_parser = clap::value_parser!(u32).range(STORE_RECORDS))]
    pub sweep: Option<u32>,
    /// Bytes per value: a number, or a range such as 64-256
    #[arg(long, default_value = "128")]
    pub value_len: ValueLen,
    /// Exponent of the Zipf law, 0 to 10
    #[arg(long, default_value = "0.99")]
    pub theta: Theta,
    /// Operations that are looked up together, 1 to 1024
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub batch: u16,
    /// Seconds of each measurement in each round
    #[arg(long, default_value_t = 0.2, value_parser = seconds)]
    pub duration: f64,
    /// Rounds, in each of which everything is measured once; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=99))]
    pub rounds: u8,
    /// CPU to measure on [default: the last one allowed]
    #[arg(long)]
    pub cpu: Option<usize>,
    /// Hash tables to compare with are left out beyond so many records; 0 leaves them out
    #[arg(long, default_value_t = 10_000_000, value_name = "RECORDS")]
    pub peers_records_max: u32,
    /// Memory of the server whose store is filled until it refuses, 1MiB to 32GiB; all is the store's when it is too little
    /// for a server
    #[arg(long, default_value = "256MiB", value_name = "SIZE", value_parser = fill_memory)]
    pub fill_memory: ByteSize,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the result as JSON to this file, - for standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<JsonTarget>,
    /// Whether and where it is kept.
    #[command(flatten)]
    pub place: KeepOptions,
}

impl WireOptions {
    /// The run that each port is measured with.
    #[must_use]
    pub fn run(&self) -> RunOptions {
        RunOptions {
            typed: self.typed.clone(),
            workload: self.workload,
            distribution: self.distribution,
            theta: self.theta,
            records: self.records,
            value_len: self.value_len.clone(),
            duration: self.duration,
            warmup: WIRE_WARMUP.min(self.duration),
            batch: self.batch,
            window: self.window,
            verify: true,
            idle: self.idle,
            seed: self.seed,
            ..RunOptions::defaults()
        }
    }
}

/// `linerate-bench run` by itself.
#[derive(Parser)]
struct RunCommand {
    #[command(flatten)]
    options: RunOptions,
}

/// What clap says of an option, as one sentence without the option's name.
fn complaint(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    // The value is shown where it was typed.
    let reason = first.rsplit_once(">': ").map_or(first, |(_, reason)| reason);
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(allowed)) if !allowed.is_empty() => {
            format!("{reason}: give one of {}", allowed.join(", "))
        }
        _ => reason.to_owned(),
    }
}

/// A law for keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// Record i with probability proportional to 1 / (i + 1)^θ.
    Zipf,
    /// All alike.
    Uniform,
    /// As YCSB draws its "zipfian": a rank out of 10^10 by a Zipf law, hashed.
    Scrambled,
    /// The newest records most, by a Zipf law.
    Latest,
    /// A part of the records gets a part of the operations.
    Hotspot,
}

impl RunOptions {
    /// The options that `linerate-bench run` has when none is given.
    #[must_use]
    pub fn defaults() -> Self {
        RunCommand::parse_from(["run"]).options
    }

    /// Those of `linerate-bench run` with these arguments.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn of_arguments(arguments: &[String]) -> anyhow::Result<Self> {
        let words = iter::once("run").chain(arguments.iter().map(String::as_str));
        let parsed =
            RunCommand::try_parse_from(words).map_err(|error| anyhow::anyhow!("{}", complaint(&error)));
        Ok(parsed?.options)
    }

    /// The options by their long names, each with whether it has a value.
    #[must_use]
    pub fn names() -> Vec<(String, bool)> {
        let command = RunCommand::command();
        let named = command.get_arguments().filter_map(|argument| {
            let takes_value = argument.get_action().takes_values();
            Some((argument.get_long()?.to_owned(), takes_value))
        });
        named.filter(|(name, _)| name != "help").collect()
    }

    /// The addresses of running servers, or `None` for an embedded one.
    ///
    /// # Errors
    /// What is wrong with an address.
    pub fn servers(&self) -> anyhow::Result<Option<Vec<SocketAddr>>> {
        if matches!(&*self.target, "embedded" | "null") {
            return Ok(None);
        }
        let servers = contact_points(&self.target);
        Ok(Some(servers.context("--target takes `embedded`, `null`, servers, or a cluster map")?))
    }

    /// The same options with a transport chosen, and the reason if it was chosen here; a trace is read.
    ///
    /// # Errors
    /// What is wrong with the target, the trace, or with what was asked for together.
    pub fn settled(&self) -> anyhow::Result<(Self, Transport, Option<String>)> {
        self.check()?;
        let trace = self.trace.as_ref().map(TraceFile::loaded).transpose()?;
        let (transport, why) = match self.transport {
            Wanted::Is(transport) => (transport, None),
            Wanted::Auto => {
                let server = self.servers()?.and_then(|servers| servers.first().map(SocketAddr::ip));
                let local =
                    server.map_or_else(|| Ok(Ipv4Addr::LOCALHOST.into()), transport::local_towards)?;
                let (transport, why) = transport::best(local);
                (transport, Some(why))
            }
        };
        Ok((Self { transport: Wanted::Is(transport), trace, ..self.clone() }, transport, why))
    }

    /// The law of the operations.
    #[must_use]
    pub fn law(&self) -> StreamLaw {
        let usual = if self.workload == Workload::D && self.read_share.is_none() {
            Distribution::Latest
        } else {
            Distribution::Zipf
        };
        let keys = match self.distribution.unwrap_or(usual) {
            Distribution::Zipf => KeyDistribution::Zipf(self.theta),
            Distribution::Uniform => KeyDistribution::Uniform,
            Distribution::Scrambled => KeyDistribution::Scrambled(self.theta),
            Distribution::Latest => KeyDistribution::Latest(self.theta),
            Distribution::Hotspot => KeyDistribution::Hotspot(Hotspot {
                set: self.hotspot_set.unwrap_or(Hotspot::YCSB.set),
                ops: self.hotspot_ops.unwrap_or(Hotspot::YCSB.ops),
            }),
        };
        StreamLaw { workload: self.workload, read_share: self.read_share, keys, records: self.records }
    }

    /// The trace that is replayed, if it has been read.
    #[must_use]
    pub fn replayed(&self) -> Option<&Trace> {
        self.trace.as_ref().and_then(TraceFile::trace)
    }

    /// How long the values are that are put.
    #[must_use]
    pub fn values(&self) -> ValueLaw {
        self.replayed().map_or_else(|| self.value_len.clone(), |trace| trace.lens().into())
    }

    /// Whether records are inserted that were not stored before the run.
    #[must_use]
    pub const fn inserts(&self) -> bool {
        matches!(self.workload, Workload::D) && self.read_share.is_none() && self.trace.is_none()
    }

    /// Records that a process inserts before it begins again with the first one inserted: 500,000 per second and server core,
    /// but no more than [`INSERTS_MAX`], nor than a quarter of this machine's memory has room for.
    #[must_use]
    pub fn inserts_max(&self) -> u32 {
        if !self.inserts() {
            return 0;
        }
        let sessions = self.clients() as u32;
        let seconds = self.warmup + self.duration;
        let expected = INSERTS_PER_SEC * seconds * f64::from(self.server_cores.max(1));
        let room = memory_bytes("MemTotal").unwrap_or(u64::MAX) / 4 / (2 * self.record_len() as u64);
        // Conversions of floats saturate.
        (expected as u32)
            .min(u32::try_from(room).unwrap_or(u32::MAX))
            .clamp(INSERTS_MIN * sessions, INSERTS_MAX)
    }

    /// Whether every operation is checked.
    #[must_use]
    pub const fn checks(&self) -> bool {
        self.check || self.check_shared.is_some()
    }

    /// Whether the bytes of values are checked.
    #[must_use]
    pub const fn verifies(&self) -> bool {
        self.verify || self.checks()
    }

    /// What processes that share a check must have in common.
    #[must_use]
    pub fn table_shape(&self, servers: &[SocketAddr]) -> TableShape {
        let mut names: Vec<_> = servers.iter().map(SocketAddr::to_string).collect();
        names.sort_unstable();
        // Longer lists are told apart by their beginning, which is more than enough.
        let mut name = names.join(",").into_bytes();
        name.truncate(255);
        TableShape {
            records: self.records,
            value_len: self.value_len.lens(),
            servers: key_hash(Key::new(&name)),
        }
    }

    /// The bad network in front of each client's port, if any. Sessions have different seeds: `number` is one's.
    #[must_use]
    pub fn faults(&self, number: u64) -> Option<FaultyConfig> {
        (self.loss > 0.0 || self.dup > 0.0 || self.reorder > 0.0).then_some(FaultyConfig {
            loss: self.loss,
            duplication: self.dup,
            reordering: self.reorder,
            seed: self.trial_seed().wrapping_add(number),
        })
    }

    /// What is different in each trial is drawn from this.
    const fn trial_seed(&self) -> u64 {
        // Numbers of sessions, which have 16 bits, are put into the lower ones.
        self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.trial << 16)
    }

    /// The UDP port of a session. With more than 16 sessions each has less memory, 512 KiB instead of 3 MiB.
    #[must_use]
    pub fn port(&self, session: &SessionConfig) -> UdpConfig {
        let all = UdpConfig {
            trains: session.trains,
            receive_buffer_len: session.receive_buffer_len,
            ..UdpConfig::default()
        };
        if self.clients() > 16 { UdpConfig { rx_buffers: 4, tx_chunks: 4, ..all } } else { all }
    }

    /// How each session is set up.
    #[must_use]
    pub fn session(&self) -> SessionConfig {
        SessionConfig {
            // A batch has a request for its gets and, now and then, one for its puts.
            window: (2 * self.window).clamp(2, 256),
            operations_max: self.batch,
            checksum: self.checksum,
            versions: self.checks(),
            order: self.order,
            coalesce: self.coalesce,
            // A train of a third of what is in flight keeps both sides busy; more than 16 requests gain nothing.
            burst: usize::from(self.window / 3).clamp(1, 16),
            ..SessionConfig::default()
        }
    }

    /// Memory for an embedded server in bytes: twice what the records take with their overhead, since the cores' shares
    /// are not quite equal, and something for each core to begin with. Records that are inserted count as if they were there
    /// from the beginning; a trace has for each of its keys the longest value.
    #[must_use]
    pub fn memory_len(&self) -> usize {
        if let Some(memory) = self.memory {
            return memory.as_u64() as usize;
        }
        let records = self.records as usize + self.inserts_max() as usize;
        let len =
            self.replayed().map_or_else(|| self.record_len() * records, |trace| trace.memory_len() as usize);
        2 * len + usize::from(self.server_cores) * (64 << 20)
    }

    /// Bytes that a record takes in a store, with its key.
    fn record_len(&self) -> usize {
        self.value_len.planned_len() + 16 + 48
    }

    /// Law by which operations are due in an open loop.
    #[must_use]
    pub fn arrivals(&self) -> Arrivals {
        self.arrivals.unwrap_or(Arrivals::Poisson)
    }

    /// Number of sessions.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.sessions.unwrap_or(self.threads).into()
    }

    /// Streams that are drawn: one for each session up to [`STREAMS_MAX`], which more of them share.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        self.clients().min(STREAMS_MAX)
    }

    /// Operations that are drawn for each stream, a power of two from 65,536 to [`STREAM_LEN`]. No more than the sessions that go
    /// through it can begin in the time that there is, at the rate asked for or else at 60 M op/s; and no more than it takes for
    /// each record to be there sixteen times on average, or 131,072, beyond which a cycle shows nothing new.
    #[must_use]
    pub fn stream_len(&self) -> usize {
        let rate = self.rate.unwrap_or(OPS_PER_SEC_MAX);
        let used = (self.warmup + self.duration) * rate / self.stream_count() as f64;
        let various = (STREAM_LEN_PER_RECORD * self.records as usize).max(STREAM_LEN_VARIOUS);
        // Conversions of floats saturate.
        (used.ceil() as usize).min(various).clamp(STREAM_LEN_MIN, STREAM_LEN).next_power_of_two()
    }

    /// What the session with this number does, which goes through `stream`. Sessions have equal parts of the rate, but those of
    /// a trace as much of it as of the rows.
    #[must_use]
    pub(crate) fn plan(
        &self,
        number: u16,
        stream: &Stream,
        server_cores: usize,
        is_crowded: bool,
        checker: Option<&Checker>,
    ) -> LoadPlan {
        let share = self.replayed().map_or_else(|| 1.0 / self.clients() as f64, |trace| trace.share(stream));
        let pace = self.rate.map(|rate| Pace {
            rate: rate * share,
            arrivals: self.arrivals(),
            seed: self.trial_seed() ^ u64::from(number),
        });
        LoadPlan {
            process: checker.map_or(0, Checker::process),
            client: number,
            batch: self.batch.into(),
            batches_in_flight: usize::from(self.window) * server_cores,
            pace,
            value_len: self.values(),
            verify: self.verifies(),
            sleeps: is_crowded,
        }
    }

    /// When what clients do is counted.
    #[must_use]
    pub fn load_times(&self) -> LoadTimes {
        let (warmup, duration) = self.times();
        LoadTimes { warmup, duration, interval: self.interval(), patience: self.session().timeout }
    }

    /// Whether clients, servers and host are looked at each second.
    #[must_use]
    pub const fn watches(&self) -> bool {
        !self.no_watch
    }

    /// Time after which what was counted is handed over, again and again.
    #[must_use]
    pub fn interval(&self) -> Duration {
        let (_, duration) = self.times();
        if self.watches() { interval(duration) } else { duration }
    }

    /// When, from the beginning of the warm-up on, the server is to stand still, and for how long.
    #[must_use]
    pub fn stall_at(&self) -> Option<(Duration, Duration)> {
        let (warmup, duration) = self.times();
        self.stall.map(|ms| (warmup + duration / 2, Duration::from_millis(ms.into())))
    }

    /// Checks that what was asked for goes together, before anything is started. Whatever measures with these options goes
    /// through here, by [`settled`](Self::settled) or before.
    ///
    /// # Errors
    /// A sentence that names the options, the reason and the remedy.
    pub fn check(&self) -> anyhow::Result<()> {
        self.check_sessions()?;
        self.check_law()?;
        self.check_target()
    }

    /// What goes together of threads, sessions and the schedule.
    fn check_sessions(&self) -> anyhow::Result<()> {
        if let Some(sessions) = self.sessions {
            let threads = self.threads;
            anyhow::ensure!(
                sessions >= threads,
                "--sessions {sessions} are fewer than --threads {threads}: each thread needs one at least"
            );
        }
        if let (Some(arrivals), None) = (self.arrivals, self.rate) {
            anyhow::bail!("--arrivals {arrivals} is for an open loop: give --rate, too");
        }
        let stall = Duration::from_millis(self.stall.unwrap_or(0).into());
        anyhow::ensure!(
            2 * stall <= self.times().1,
            "--stall {} ms begins in the middle of the run and ends after it: give at most half of --duration",
            stall.as_millis()
        );
        Ok(())
    }

    /// What goes together of operations, keys and checks.
    fn check_law(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.distribution == Some(Distribution::Hotspot)
                || (self.hotspot_set.is_none() && self.hotspot_ops.is_none()),
            "--hotspot-set and --hotspot-ops say how hot a hotspot is: give --distribution hotspot with them"
        );
        let keys = self.law().keys;
        anyhow::ensure!(
            !(self.typed.has("theta")
                && matches!(keys, KeyDistribution::Uniform | KeyDistribution::Hotspot(_))),
            "--theta is the exponent of a Zipf law, and --distribution {} has none: leave out --theta",
            keys.name()
        );
        anyhow::ensure!(
            !(self.checks() && self.inserts()),
            "--check knows the records that are stored before the run, and workload d inserts others: use --verify, or \
             another workload"
        );
        anyhow::ensure!(
            !(self.checks() && self.trace.is_some()),
            "--check knows the records that are stored before the run, and a trace brings its own: use --verify"
        );
        if self.inserts() {
            Inserts::numbers(self.records, 0, self.inserts_max(), self.clients() as u32)?;
        }
        Ok(())
    }

    /// What goes together with who answers.
    fn check_target(&self) -> anyhow::Result<()> {
        let target = &self.target;
        if target == "embedded" {
            return Ok(());
        }
        anyhow::ensure!(
            self.stall.is_none(),
            "--stall is for an embedded server: those of --target {target} are not ours to stop; leave out --stall"
        );
        anyhow::ensure!(
            self.memory.is_none(),
            "--memory is that of an embedded server: those of --target {target} have theirs already; leave out --memory"
        );
        for (field, option) in [("server_cores", "--server-cores"), ("idle", "--idle")] {
            anyhow::ensure!(
                !self.typed.has(field),
                "{option} is for an embedded server, and --target {target} starts none: leave out {option}"
            );
        }
        if target == "null" {
            let refused = [
                (self.checks(), "--check"),
                (self.verify, "--verify"),
                (self.checksum, "--checksum"),
                (self.trace.is_some(), "--trace"),
                (self.faults(0).is_some(), "--loss, --dup and --reorder"),
                (self.transport != Wanted::Is(Transport::Udp), "--transport"),
            ];
            if let Some((_, option)) = refused.into_iter().find(|(is_given, _)| *is_given) {
                anyhow::bail!(
                    "{option} cannot go with --target null, which has neither a network nor a store: give another --target"
                );
            }
        }
        Ok(())
    }

    /// Refuses what a measurement without a store and without sessions would pay no heed to.
    ///
    /// # Errors
    /// A sentence that names the option, the reason and the remedy.
    pub fn check_ceiling(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.target == "embedded",
            "the ceiling needs both ends to itself: leave --target at embedded"
        );
        let refused = [
            (self.rate.is_some(), "--rate", "keeps as much in flight as --window allows"),
            (self.stall.is_some(), "--stall", "has no server that could stand still"),
            (self.sessions.is_some(), "--sessions", "has no sessions, but a port for each of the --threads"),
            (self.memory.is_some(), "--memory", "has no store"),
            (
                self.trace.is_some(),
                "--trace",
                "sends the same requests again and again, which a trace is not made of",
            ),
            (self.checks(), "--check", "has no store to check"),
            (self.verify, "--verify", "has no store whose values could be wrong"),
            (self.checksum, "--checksum", "writes no checksums of its own"),
            (self.coalesce, "--coalesce", "asks for each value"),
            (self.order != Order::None, "--order", "has no store in which an order would show"),
            (self.faults(0).is_some(), "--loss, --dup and --reorder", "sends nothing again"),
            (self.typed.has("idle"), "--idle", "has both ends spin"),
            (self.no_watch, "--no-watch", "is not watched anyway"),
        ];
        if let Some((_, option, reason)) = refused.into_iter().find(|(is_given, ..)| *is_given) {
            anyhow::bail!("the ceiling {reason}: leave out {option}");
        }
        Ok(())
    }

    /// Seconds of warm-up and of measurement.
    #[must_use]
    pub fn times(&self) -> (Duration, Duration) {
        (Duration::from_secs_f64(self.warmup), Duration::from_secs_f64(self.duration))
    }

    /// What is reported of these options.
    #[must_use]
    pub fn config(&self, server_cores: usize) -> Config {
        let law = self.law();
        Config {
            target: self.target.clone(),
            transport: self.transport.name().to_owned(),
            workload: match (&self.trace, self.read_share) {
                (Some(_), _) => "trace".to_owned(),
                (None, Some(_)) => "mix".to_owned(),
                (None, None) => self.workload.to_string(),
            },
            read_share: if self.trace.is_some() { None } else { Some(1.0 - law.put_share()) },
            theta: if self.trace.is_some() { 0.0 } else { law.keys.exponent() },
            distribution: if self.trace.is_some() { "trace" } else { law.keys.name() }.to_owned(),
            hotspot: match law.keys {
                KeyDistribution::Hotspot(Hotspot { set, ops }) => Some([set.value(), ops.value()]),
                _ => None,
            },
            hottest_key_share: match self.replayed() {
                Some(trace) => trace.hottest_share(),
                None => law.keys.hottest_share(self.records),
            },
            records: if self.trace.is_some() { 0 } else { self.records },
            inserts_max: self.inserts().then(|| self.inserts_max()),
            trace: self.replayed().map(Trace::config),
            value_len: self.values(),
            server_cores,
            threads: self.threads.into(),
            sessions: self.clients(),
            rate: self.rate,
            arrivals: self.rate.map(|_| self.arrivals().to_string()),
            stall_ms: self.stall.map(u64::from),
            memory_bytes: (self.target == "embedded").then(|| self.memory_len() as u64),
            watch: self.watches(),
            duration_s: self.duration,
            warmup_s: self.warmup,
            order: self.order.name().to_owned(),
            coalesce: self.coalesce,
            verify: self.verifies(),
            check: self.checks(),
            loss: self.loss,
            dup: self.dup,
            reorder: self.reorder,
            batch: self.batch.into(),
            window: self.window.into(),
            seed: self.seed,
            checksum: self.checksum,
            idle: match self.idle {
                Idle::Spin => "spin",
                Idle::Epoll => "epoll",
            }
            .to_owned(),
        }
    }
}

/// Which CPUs the threads of a run are pinned to: the server's cores first, the clients on those that follow, from the
/// beginning again when there are not enough.
#[derive(Clone, Debug)]
pub struct Cpus {
    /// One for each core of an embedded server.
    pub server: Vec<usize>,
    /// One for each client thread.
    pub clients: Vec<usize>,
    /// Whether there are fewer CPUs than threads.
    pub is_crowded: bool,
}

impl Cpus {
    /// Distributes the CPUs that this process may use.
    ///
    /// # Errors
    /// When the kernel does not tell which these are.
    pub fn assign(server_cores: usize, threads: usize) -> anyhow::Result<Self> {
        let allowed = allowed_cores().context("cannot tell which CPUs this process may use")?;
        let is_crowded = server_cores + threads > allowed.len();
        let mut cpus = allowed.iter().copied().cycle();
        Ok(Self {
            server: cpus.by_ref().take(server_cores).collect(),
            clients: cpus.by_ref().take(threads).collect(),
            is_crowded,
        })
    }
}

pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    seconds_from(text, 0.05)
}

fn seconds_or_none(text: &str) -> Result<f64, String> {
    seconds_from(text, 0.0)
}

fn fill_memory(text: &str) -> Result<ByteSize, String> {
    size_from(text, ByteSize::mib(1)..=ByteSize::gib(32), "1MiB to 32GiB")
}

fn server_memory(text: &str) -> Result<ByteSize, String> {
    size_from(text, ByteSize::mib(64)..=ByteSize::tib(16), "64MiB to 16TiB")
}

fn size_from(text: &str, range: std::ops::RangeInclusive<ByteSize>, shown: &str) -> Result<ByteSize, String> {
    let size: ByteSize =
        text.parse().map_err(|_| format!("`{text}` is no size: give one such as 256MiB or 1GiB"))?;
    if range.contains(&size) { Ok(size) } else { Err(format!("give {shown}")) }
}

/// Parses a rate in operations per second. Below one in a quarter of an hour hardly anything would happen; beyond a thousand
/// million, moments are closer than a clock tells apart.
fn rate(text: &str) -> Result<f64, String> {
    const MIN: f64 = 0.001;
    const MAX: f64 = 1e9;
    let rate = text
        .replace('_', "")
        .parse()
        .map_err(|_| format!("`{text}` is no number of operations per second"))?;
    if (MIN..=MAX).contains(&rate) {
        Ok(rate)
    } else {
        Err(format!("give {MIN} to {MAX} operations per second"))
    }
}

fn fault_share(text: &str) -> Result<f64, String> {
    let share = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if (0.0..=0.5).contains(&share) { Ok(share) } else { Err("give a share of 0 to 0.5".to_owned()) }
}

/// Parses a number of seconds from `min` to a day.
fn seconds_from(text: &str, min: f64) -> Result<f64, String> {
    const MAX: f64 = 86_400.0;
    let seconds = text.parse().map_err(|_| format!("`{text}` is no number of seconds"))?;
    if (min..=MAX).contains(&seconds) { Ok(seconds) } else { Err(format!("give {min} to {MAX} seconds")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::draw_streams;

    fn typed(words: &str) -> RunOptions {
        let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
        RunOptions::of_arguments(&words).unwrap()
    }

    /// Goal: what contradicts something, or would do nothing, is refused in one sentence that names option, reason and remedy;
    /// a default is not. Method: one of each, and the same settings as nobody typed them.
    #[test]
    fn what_would_do_nothing_is_refused() {
        for (words, sentence) in [
            (
                "--sessions 2 --threads 3",
                "--sessions 2 are fewer than --threads 3: each thread needs one at least",
            ),
            ("--arrivals fixed", "--arrivals fixed is for an open loop: give --rate, too"),
            (
                "--theta 0.5 --distribution uniform",
                "--theta is the exponent of a Zipf law, and --distribution uniform has none: leave out --theta",
            ),
            (
                "--theta 0.99 --distribution hotspot",
                "--theta is the exponent of a Zipf law, and --distribution hotspot has none: leave out --theta",
            ),
            (
                "--target 10.0.0.1:1 --server-cores 1",
                "--server-cores is for an embedded server, and --target 10.0.0.1:1 starts none: leave out --server-cores",
            ),
            (
                "--target 10.0.0.1:1 --idle epoll",
                "--idle is for an embedded server, and --target 10.0.0.1:1 starts none: leave out --idle",
            ),
            (
                "--target null --idle spin",
                "--idle is for an embedded server, and --target null starts none: leave out --idle",
            ),
            (
                "--target null --stall 9",
                "--stall is for an embedded server: those of --target null are not ours to stop; leave out --stall",
            ),
            (
                "--stall 600 --duration 1",
                "--stall 600 ms begins in the middle of the run and ends after it: give at most half of \
             --duration",
            ),
        ] {
            assert_eq!(typed(words).check().unwrap_err().to_string(), sentence);
            assert_eq!(typed(words).settled().unwrap_err().to_string(), sentence);
        }
        for words in [
            "--distribution uniform",
            "--theta 0.5 --distribution latest",
            "--theta 0.5 --workload d",
            "--target 10.0.0.1:1",
            "--target null",
            "--server-cores 2 --idle spin",
        ] {
            typed(words).check().unwrap();
        }
        let (default, same) = (typed(""), typed("--theta 0.99 --idle epoll"));
        assert_eq!(format!("{default:?}"), format!("{same:?}"), "what is the same looks the same");
    }

    /// Goal: in an open loop sessions have the rate together: equal parts of it, and with a trace such as their rows are. Method:
    /// the sample trace over three sessions, and a drawn stream.
    #[test]
    fn sessions_share_the_rate() {
        let rates = |options: &RunOptions, streams: &[Stream]| -> Vec<f64> {
            let plan = |(number, stream)| options.plan(number, stream, 1, false, None);
            (1..).zip(streams).map(plan).map(|plan| plan.pace.unwrap().rate).collect()
        };
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cache-trace.csv");
        let (options, ..) = typed(&format!("--trace {path} --rate 900 --sessions 3")).settled().unwrap();
        let streams = options.replayed().unwrap().streams(3).unwrap();
        let expected: Vec<_> =
            streams.iter().map(|stream| stream.draws().len() as f64 * 900.0 / 180.0).collect();
        for (rate, expected) in rates(&options, &streams).into_iter().zip(expected) {
            assert!((rate - expected).abs() < 1e-9, "{rate} instead of {expected}");
        }
        let options = typed("--rate 900 --sessions 3 --records 10");
        let streams = draw_streams(&options.law(), 3, 10, 1, |_| {});
        assert_eq!(rates(&options, &streams), [300.0; 3]);
    }

    /// Goal: streams are as long as a run can use, and not longer; the usual run has full ones. Method: short and slow runs, few
    /// records, and sessions that share streams.
    #[test]
    fn streams_are_as_long_as_they_are_used() {
        for (words, len) in [
            ("", STREAM_LEN),
            ("--threads 1024 --duration 0.5 --warmup 0.1", STREAM_LEN),
            ("--duration 0.05 --warmup 0", STREAM_LEN),
            ("--duration 0.05 --warmup 0 --threads 4", 1 << 20),
            ("--rate 100000 --duration 8 --warmup 1", 1 << 20),
            ("--rate 100000 --duration 8 --warmup 1 --sessions 2", 1 << 19),
            ("--rate 1000", 1 << 16),
            ("--rate 1000000", STREAM_LEN),
            ("--records 1", 1 << 17),
            ("--records 100000", 1 << 21),
            ("--records 2147483647", STREAM_LEN),
            ("--duration 86400 --rate 1000000000", STREAM_LEN),
        ] {
            assert_eq!(typed(words).stream_len(), len, "{words}");
        }
    }

    /// Goal: whatever means nothing without a store and without sessions is refused for a ceiling, with its name and the
    /// reason. Method: each such option, and all the others together.
    #[test]
    fn a_ceiling_refuses_what_it_pays_no_heed_to() {
        for (words, sentence) in [
            ("--rate 1000", "the ceiling keeps as much in flight as --window allows: leave out --rate"),
            ("--stall 10", "the ceiling has no server that could stand still: leave out --stall"),
            (
                "--sessions 2",
                "the ceiling has no sessions, but a port for each of the --threads: leave out --sessions",
            ),
            ("--memory 1GiB", "the ceiling has no store: leave out --memory"),
            ("--no-watch", "the ceiling is not watched anyway: leave out --no-watch"),
            ("--verify", "the ceiling has no store whose values could be wrong: leave out --verify"),
            ("--check", "the ceiling has no store to check: leave out --check"),
            ("--checksum", "the ceiling writes no checksums of its own: leave out --checksum"),
            ("--coalesce", "the ceiling asks for each value: leave out --coalesce"),
            ("--order key", "the ceiling has no store in which an order would show: leave out --order"),
            ("--idle epoll", "the ceiling has both ends spin: leave out --idle"),
            ("--loss 0.1", "the ceiling sends nothing again: leave out --loss, --dup and --reorder"),
            ("--target null", "the ceiling needs both ends to itself: leave --target at embedded"),
        ] {
            assert_eq!(typed(words).check_ceiling().unwrap_err().to_string(), sentence);
        }
        let all = "--transport tcp --workload a --distribution latest --theta 0.5 --records 9 --value-len 8 --server-cores 2 \
                   --threads 2 --duration 1 --warmup 0 --batch 8 --window 8 --seed 7 --json -";
        typed(all).check_ceiling().unwrap();
    }
}
