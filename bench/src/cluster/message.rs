//! What coordinator and nodes say to each other: a JSON object per line, orders into a node's standard input, events out of
//! its standard output. A node whose input has ended ends itself.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::check::Elsewhere;

/// What the coordinator wants of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Answer with [`Event::Clock`].
    Tell,
    /// Say by which interface these addresses are reached: [`Event::Routes`].
    Routes {
        /// Addresses of the other nodes.
        to: Vec<IpAddr>,
    },
    /// Start a server, and say so when it answers: [`Event::Serving`].
    Serve(Serve),
    /// Be a client: [`Event::Stored`] if it stores the records, [`Event::Ready`], [`Event::Ended`], [`Event::Done`].
    Load(Load),
    /// All records are stored.
    Stored,
    /// Begin the load, or look at the server, from this moment of the node's own clock on.
    Measure(Measure),
    /// All clients have ended.
    Ended(Elsewhere),
}

/// A server to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Serve {
    /// The program.
    pub(crate) program: String,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// CPUs for its cores and nothing else, or the first so many that the node may use.
    pub(crate) cpus: CpuChoice,
    /// The cluster map, written to a file beside the log whose path is appended to the arguments.
    pub(crate) map: Option<String>,
    /// Where it is asked whether it answers; `None` when that is not possible from the node itself.
    pub(crate) ping: Option<String>,
    /// Whether it is asked over TCP.
    pub(crate) is_tcp: bool,
}

/// Which CPUs a server gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CpuChoice {
    /// These.
    These(Vec<usize>),
    /// The first so many.
    First(usize),
}

/// A load to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    /// The arguments of `linerate-bench run`.
    pub(crate) arguments: Vec<String>,
    /// The CPUs to use, if not all.
    pub(crate) cpus: Option<Vec<usize>>,
    /// The cluster map, written to a file whose path is appended to the arguments.
    pub(crate) map: Option<String>,
    /// Number of the process in the values that it writes.
    pub(crate) process: u16,
    /// Whether it stores the records.
    pub(crate) stores: bool,
    /// Whether others want the same CPUs.
    pub(crate) shares_cpus: bool,
}

/// When to measure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measure {
    /// Beginning of the load in the node's clock, nanoseconds since 1970.
    pub(crate) at_unix_ns: u64,
    /// Seconds before counting.
    pub(crate) warmup_s: f64,
    /// Seconds that are counted.
    pub(crate) duration_s: f64,
}

/// What a node has to say.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// The first thing that it says.
    Hello(Box<Hello>),
    /// Its clock, nanoseconds since 1970.
    Clock {
        /// The time.
        unix_ns: u64,
    },
    /// The interface towards each address asked for.
    Routes {
        /// Names of interfaces.
        interfaces: Vec<String>,
        /// The one of the control network, if this machine has such a thing.
        control: Option<String>,
    },
    /// The server answers.
    Serving {
        /// What it said.
        line: String,
    },
    /// The records are stored.
    Stored,
    /// Waits for [`Order::Measure`].
    Ready,
    /// What was measured of one interval.
    Sample(Sample),
    /// Nothing of this client is in flight any more.
    Ended {
        /// Puts acknowledged.
        acknowledged: u64,
        /// Puts of unknown outcome.
        unknown: u64,
    },
    /// All is measured. A client has a report.
    Done {
        /// The report of `linerate-bench run`.
        report: Option<Value>,
        /// What each server core said before and after.
        servers: Vec<ServerStatistics>,
    },
    /// It cannot go on.
    Failed {
        /// Why, in one sentence.
        error: String,
    },
}

/// What a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Of linerate-bench.
    pub(crate) version: String,
    /// Checksums of linerate-bench and linerate-server, where they could differ.
    pub(crate) builds: Vec<String>,
    /// The host's own name.
    pub(crate) host: String,
    /// Release of the kernel.
    pub(crate) kernel: String,
    /// Physical cores that it may use.
    pub(crate) cores: usize,
    /// Process id.
    pub(crate) pid: i32,
    /// What `setup/tune-nic.sh status --json` says, where it is.
    pub(crate) tune: Option<Value>,
}

/// What one interval has shown of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Number of the interval, from 0 on.
    pub(crate) index: u32,
    /// Its length.
    pub(crate) seconds: f64,
    /// Operations that clients saw end.
    pub(crate) ops: u64,
    /// CPU time of the node's processes, in per cent of one core.
    pub(crate) cpu_pct: f64,
    /// CPU time of the whole machine, in per cent of one core.
    pub(crate) host_cpu_pct: f64,
    /// Resident memory of the node's processes.
    pub(crate) rss_bytes: u64,
    /// Frames sent and received by the node's interface, and their bytes with Ethernet header.
    pub(crate) tx_frames: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_frames: u64,
    pub(crate) rx_bytes: u64,
    /// What these took on a cable.
    pub(crate) tx_gbit: f64,
    pub(crate) rx_gbit: f64,
    /// Frames that the interface dropped.
    pub(crate) nic_drops: u64,
    /// Datagrams that found a full receive buffer.
    pub(crate) udp_rcvbuf_errors: u64,
    /// Packets that found a full queue of a CPU.
    pub(crate) softnet_drops: u64,
}

/// The statistics of a server core by name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServerStatistics {
    /// Its address.
    pub(crate) addr: String,
    /// When counting began.
    pub(crate) before: BTreeMap<String, u64>,
    /// When it ended.
    pub(crate) after: BTreeMap<String, u64>,
}
