//! What a cluster can answer at most when its network cards are full: operations per second from bytes on the cable.
//!
//! Nothing here is measured but one number, the CPU time of a server for each datagram that it sends. All else follows from
//! the protocol's own writers, from what Ethernet, IP and UDP put around a datagram, from the law by which keys are chosen,
//! and from the cluster map. `docs/line-rate.md` has the formulas and an example.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context;
use clap::Args;
use comfy_table::Cell;
use linerate_proto::{
    cluster::{ClusterSpec, Member, PORT},
    hash::key_hash,
    key::Key,
    placement::{Partition, Placement},
    wire::{
        BODY_LEN_MAX, Common, DATAGRAM_LEN_MAX, DATAGRAM_LEN_MIN, Flags, Kind, OpResult, Operation,
        REQUEST_LEN_MIN, ReplyBuilder, ReplyHeader, RequestHeader, TRAILER_LEN,
    },
};
use serde::Serialize;

use crate::{
    key::{KeyBuffer, key_len},
    options::Distribution,
    output::{JsonTarget, number, plain_table, shown},
    wire::rate::{Rate, wire_len},
    workload::{KeyDistribution, RECORDS_MAX, StreamLaw, Theta, ValueLen, ValueLenError, Workload},
};

/// What IPv4 and UDP put before a datagram's payload (RFC 791 §3.1, RFC 768).
const IP_UDP_LEN: usize = 20 + 8;

/// Records whose owners and probabilities are looked at one by one. Of larger stores the rest, each record of which is one in
/// a hundred million operations, is spread over the cores by their numbers of partitions.
const RECORDS_SUMMED: u32 = 4_000_000;

/// Requests that are packed to find the mean where lengths differ. They are spread evenly over the law of lengths instead of
/// being drawn, so that 1,024 are good for four digits.
const REQUESTS_PACKED: usize = 1_024;

/// Requests that travel as one train, padded to the longest: what a session of the bench collects.
const TRAIN_REQUESTS: usize = 16;

/// Gets of one answer at most. A core with hardly more keys than a request has places never fills one, and how many gets
/// join then is up to the callers.
const GETS_PER_ANSWER_MAX: f64 = 100.0;

/// What the model is asked about.
#[derive(Clone, Debug)]
pub struct ModelInput {
    /// The servers: each has a network card, some cores and a share of the partitions.
    pub cluster: ClusterSpec,
    /// Clients, each with a network card like a server's.
    pub clients: u16,
    /// Share of puts, law of keys and number of records. Every get finds a value.
    pub law: StreamLaw,
    /// Lengths of values, each of which fits a datagram.
    pub value_len: ValueLen,
    /// Operations of a request, at most.
    pub batch: u8,
    /// Of each network card and in each direction.
    pub line_rate: Rate,
    /// Largest IP packet on the way.
    pub mtu: u16,
    /// CPU time that a server was measured to take for each datagram that it sends, all that comes with it included.
    pub ns_per_datagram: Option<f64>,
}

/// What the model says. Rates are per second; bytes are those on the cable, with all that is around a frame.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Servers.
    pub servers: usize,
    /// Clients.
    pub clients: u16,
    /// Results of gets in a full reply datagram.
    pub results_per_datagram: f64,
    /// Bytes of UDP payload of a full reply datagram.
    pub reply_len: usize,
    /// Such datagrams that one network card sends.
    pub reply_datagrams_per_sec: f64,
    /// What a get takes.
    pub get: OperationCost,
    /// What a put takes; `None` without puts.
    pub put: Option<OperationCost>,
    /// What one network card of a server allows.
    pub node_ops_per_sec: f64,
    /// What all cards allow if every server has the same share of the operations.
    pub even_ops_per_sec: f64,
    /// Share of the operations that the busiest server has by the law of the keys, 0 to 1.
    pub busiest_share: f64,
    /// What all cards allow by the law of the keys, when every operation travels.
    pub ops_per_sec: f64,
    /// What is full then.
    pub limit: Limit,
    /// The same if answers to puts were never padded; `None` without puts.
    pub unpadded_ops_per_sec: Option<f64>,
    /// The same when gets of one request and key travel once.
    pub coalesced: Coalesced,
    /// Cores that the busiest server needs to send the datagrams of `ops_per_sec`, if it was said what one costs.
    pub cores: Option<f64>,
    /// What the busiest core of all has to do of that. No other core can help it, so that more than 1 is out of reach.
    pub busiest_core: Option<f64>,
}

/// What an operation takes on the cable.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OperationCost {
    /// Operations of a request.
    pub per_request: f64,
    /// Bytes from the client to the server.
    pub request_bytes: f64,
    /// Bytes from the server to the client; of a put when its answer travels in a train behind those of gets, and is as long.
    pub reply_bytes: f64,
    /// The same if it travels for itself.
    pub unpadded_reply_bytes: f64,
    /// Datagrams from the server to the client.
    pub reply_datagrams: f64,
}

/// What coalescing gains.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Coalesced {
    /// Operations answered, whether or not they travelled.
    pub answered_per_sec: f64,
    /// Of these, those that travelled: what a run reports as its headline.
    pub ops_per_sec: f64,
    /// What is full then.
    pub limit: Limit,
}

/// Which cards are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// That of the busiest server, sending.
    ServerReplies,
    /// The same, receiving.
    ServerRequests,
    /// Those of the clients, receiving.
    ClientReplies,
    /// The same, sending.
    ClientRequests,
}

impl Limit {
    const fn name(self) -> &'static str {
        match self {
            Self::ServerReplies => "server replies",
            Self::ServerRequests => "server requests",
            Self::ClientReplies => "client replies",
            Self::ClientRequests => "client requests",
        }
    }
}

/// What `linerate-bench model` is asked.
#[derive(Clone, Debug, Args)]
pub struct ModelOptions {
    /// Servers, each with a network card; a list makes a column of each
    #[arg(long, value_delimiter = ',', default_value = "1,2,4", value_parser = clap::value_parser!(u8).range(1..=128))]
    pub servers: Vec<u8>,
    /// Cores of each server
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub cores: u8,
    /// Clients, each with a network card [default: as many as servers]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub clients: Option<u16>,
    /// How partitions are placed: rendezvous or modulo
    #[arg(long, default_value = "rendezvous", value_parser = placement)]
    pub placement: Placement,
    /// Workload of YCSB: a 50 % get, b 95 %, c 100 %, and puts; d 95 %, and inserts; f 50 %, and gets with a put behind them
    #[arg(long, default_value = "c")]
    pub workload: Workload,
    /// Law by which keys are chosen: zipf or uniform
    #[arg(long, default_value = "zipf")]
    pub distribution: Distribution,
    /// Exponent of the Zipf law, 0 to 10
    #[arg(long, default_value = "0.99")]
    pub theta: Theta,
    /// Records stored
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(RECORDS_MAX)))]
    pub records: u32,
    /// Bytes per value: a number, or a range such as 64-256
    #[arg(long, default_value = "128")]
    pub value_len: ValueLen,
    /// Operations of a request, at most, 1 to 255
    #[arg(long, default_value_t = 110, value_parser = clap::value_parser!(u8).range(1..))]
    pub batch: u8,
    /// Of each network card, such as 10gbit
    #[arg(long, default_value = "10gbit")]
    pub line_rate: Rate,
    /// Largest IP packet, 604 to 9000 bytes; datagrams are cut to it, and are never longer than 1500 allows
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(604..=9000))]
    pub mtu: u16,
    /// CPU time of a server per datagram that it sends, as a run measured it: then the cores needed are told
    #[arg(long, value_name = "NS", value_parser = nanoseconds)]
    pub ns_per_datagram: Option<f64>,
    /// Write the result as JSON to this file, - for standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<JsonTarget>,
}

impl ModelOptions {
    /// What the model says for each number of servers.
    ///
    /// # Errors
    /// What can not be modelled.
    pub fn predict(&self) -> anyhow::Result<Vec<Prediction>> {
        let keys = match self.distribution {
            Distribution::Zipf => KeyDistribution::Zipf(self.theta),
            Distribution::Uniform => KeyDistribution::Uniform,
            _ => anyhow::bail!(
                "the model adds up the laws zipf and uniform only: give one of these as --distribution"
            ),
        };
        let law = StreamLaw { workload: self.workload, read_share: None, keys, records: self.records };
        let prediction = |&servers: &u8| {
            let input = ModelInput {
                cluster: cluster(servers, self.cores, self.placement)?,
                clients: self.clients.unwrap_or_else(|| servers.into()),
                law,
                value_len: self.value_len,
                batch: self.batch,
                line_rate: self.line_rate,
                mtu: self.mtu,
                ns_per_datagram: self.ns_per_datagram,
            };
            predict(&input).context("the model knows only values that fit a datagram")
        };
        self.servers.iter().map(prediction).collect()
    }
}

/// Equal servers with the ids and addresses that a list of hosts gives them.
fn cluster(servers: u8, cores: u8, placement: Placement) -> anyhow::Result<ClusterSpec> {
    let member = |number: u8| {
        let ip = IpAddr::from(Ipv4Addr::new(10, 10, 1, number));
        Member { id: number.into(), addr: SocketAddr::new(ip, PORT), cores }
    };
    Ok(ClusterSpec::new(1, placement, (1..=servers).map(member).collect())?)
}

fn placement(text: &str) -> Result<Placement, String> {
    match text {
        "rendezvous" => Ok(Placement::Rendezvous),
        "modulo" => Ok(Placement::Modulo),
        _ => Err("give rendezvous or modulo".to_owned()),
    }
}

fn nanoseconds(text: &str) -> Result<f64, String> {
    let ns = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if (1.0..=1e6).contains(&ns) { Ok(ns) } else { Err("give 1 to 1000000 nanoseconds".to_owned()) }
}

/// Predictions side by side. Ends without a line feed.
#[must_use]
pub fn prediction_table(predictions: &[Prediction]) -> String {
    type Row = (&'static str, &'static str, fn(&Prediction) -> String);
    let rows: [Row; 19] = [
        ("clients", "", |prediction| prediction.clients.to_string()),
        ("results in a full reply", "", |prediction| shown(Some(prediction.results_per_datagram), 1)),
        ("its payload", "bytes", |prediction| prediction.reply_len.to_string()),
        ("such replies per card", "/s", |prediction| shown(Some(prediction.reply_datagrams_per_sec), 0)),
        ("a get, to the server", "bytes", |prediction| shown(Some(prediction.get.request_bytes), 1)),
        ("  and back", "bytes", |prediction| shown(Some(prediction.get.reply_bytes), 1)),
        ("a put, to the server", "bytes", |prediction| shown(prediction.put.map(|put| put.request_bytes), 1)),
        ("  and back", "bytes", |prediction| shown(prediction.put.map(|put| put.reply_bytes), 1)),
        ("one card", "Mop/s", |prediction| shown(Some(prediction.node_ops_per_sec / 1e6), 2)),
        ("servers asked alike", "Mop/s", |prediction| shown(Some(prediction.even_ops_per_sec / 1e6), 2)),
        ("busiest server's share", "%", |prediction| shown(Some(prediction.busiest_share * 100.0), 2)),
        ("by the law of keys", "Mop/s", |prediction| shown(Some(prediction.ops_per_sec / 1e6), 2)),
        ("  full cards", "", |prediction| prediction.limit.name().to_owned()),
        ("  puts' answers not padded", "Mop/s", |prediction| {
            shown(prediction.unpadded_ops_per_sec.map(|ops| ops / 1e6), 2)
        }),
        ("coalesced, answered", "Mop/s", |prediction| {
            shown(Some(prediction.coalesced.answered_per_sec / 1e6), 2)
        }),
        ("  of these travelled", "Mop/s", |prediction| {
            shown(Some(prediction.coalesced.ops_per_sec / 1e6), 2)
        }),
        ("  full cards", "", |prediction| prediction.coalesced.limit.name().to_owned()),
        ("busiest server", "cores", |prediction| shown(prediction.cores, 2)),
        ("busiest core", "cores", |prediction| shown(prediction.busiest_core, 2)),
    ];
    let mut table = plain_table();
    let servers = predictions.iter().map(|prediction| match prediction.servers {
        1 => "1 server".to_owned(),
        servers => format!("{servers} servers"),
    });
    table.set_header(["", ""].map(str::to_owned).into_iter().chain(servers).map(number));
    for (name, unit, of) in rows {
        let values = predictions.iter().map(|prediction| number(of(prediction)));
        table.add_row([Cell::new(name), Cell::new(unit)].into_iter().chain(values));
    }
    table.trim_fmt()
}

/// Says what the cards allow.
///
/// # Errors
/// When not every value fits a datagram: the pieces of long ones are not modelled.
pub fn predict(input: &ModelInput) -> Result<Prediction, ValueLenError> {
    input.value_len.check_fits_datagram(input.law.records)?;
    let load = Load::of(input);
    let packing = Packing::of(input, &load);
    let put_share = input.law.put_share();
    let bytes_per_sec = input.line_rate.bits_per_sec() as f64 / 8.0;

    let everything = vec![1.0; load.cores.len()];
    let travelling: Vec<f64> =
        load.cores.iter().map(|core| travelling_share(core, packing.get.per_request)).collect();
    let (full, limit) = most(input, &load, &packing, put_share, &everything);
    let (joined, joined_limit) = most(input, &load, &packing, put_share, &travelling);
    let gets_travelling: f64 =
        load.cores.iter().zip(&travelling).map(|(core, travelling)| core.share * travelling).sum();

    let per_op =
        |of: fn(&OperationCost) -> f64| (1.0 - put_share) * of(&packing.get) + put_share * of(&packing.put);
    let node_bytes = per_op(|cost| cost.reply_bytes).max(per_op(|cost| cost.request_bytes));
    let node_ops_per_sec = bytes_per_sec / node_bytes;
    let servers = input.cluster.members().len();
    let busiest_share = load.node_shares(&everything).into_iter().fold(0.0, f64::max);
    let busiest_core_share = load.cores.iter().map(|core| core.share).fold(0.0, f64::max);
    let cores_for = |share: f64| {
        let datagrams = full * share * per_op(|cost| cost.reply_datagrams);
        input.ns_per_datagram.map(|ns| datagrams * ns / 1e9)
    };
    Ok(Prediction {
        servers,
        clients: input.clients,
        results_per_datagram: packing.results_per_datagram,
        reply_len: packing.reply_len,
        reply_datagrams_per_sec: bytes_per_sec / wire_len(packing.reply_len + IP_UDP_LEN) as f64,
        get: packing.get,
        put: (put_share > 0.0).then_some(packing.put),
        node_ops_per_sec,
        even_ops_per_sec: node_ops_per_sec * servers.min(input.clients.into()) as f64,
        busiest_share,
        ops_per_sec: full,
        limit,
        unpadded_ops_per_sec: (put_share > 0.0)
            .then(|| most(input, &load, &packing.unpadded(), put_share, &everything).0),
        coalesced: Coalesced {
            answered_per_sec: joined,
            ops_per_sec: joined * (put_share + (1.0 - put_share) * gets_travelling),
            limit: joined_limit,
        },
        cores: cores_for(busiest_share),
        busiest_core: cores_for(busiest_core_share),
    })
}

/// The most operations per second that no card stands against, and which one does beyond. `travelling`: the share of each
/// core's gets that travel.
fn most(
    input: &ModelInput,
    load: &Load,
    packing: &Packing,
    put_share: f64,
    travelling: &[f64],
) -> (f64, Limit) {
    let all = load.node_shares(&vec![1.0; travelling.len()]);
    let gets = load.node_shares(travelling);
    let bytes = |of: fn(&OperationCost) -> f64| -> Vec<f64> {
        let both = all.iter().zip(&gets);
        both.map(|(all, gets)| {
            (1.0 - put_share) * gets * of(&packing.get) + put_share * all * of(&packing.put)
        })
        .collect()
    };
    let (replies, requests) = (bytes(|cost| cost.reply_bytes), bytes(|cost| cost.request_bytes));
    let busiest = |nodes: &[f64]| nodes.iter().copied().fold(0.0, f64::max);
    let client = |nodes: &[f64]| nodes.iter().sum::<f64>() / f64::from(input.clients);
    let loads = [
        (busiest(&replies), Limit::ServerReplies),
        (busiest(&requests), Limit::ServerRequests),
        (client(&replies), Limit::ClientReplies),
        (client(&requests), Limit::ClientRequests),
    ];
    // Of equal ones the first: a server's card, if they are all full together.
    let (bytes, limit) = loads
        .into_iter()
        .reduce(|most, other| if other.0 > most.0 * (1.0 + 1e-9) { other } else { most })
        .expect("four");
    (input.line_rate.bits_per_sec() as f64 / 8.0 / bytes, limit)
}

/// The operations that each core gets.
#[derive(Debug)]
struct Load {
    cores: Vec<CoreLoad>,
    /// Cores of each node; those of one lie together.
    cores_of: Vec<usize>,
    /// Share of the operations whose key has so many digits, from one on.
    key_lens: Vec<f64>,
}

#[derive(Clone, Debug, Default)]
struct CoreLoad {
    /// Share of all operations, 0 to 1.
    share: f64,
    /// Probability of each of its keys among its own operations.
    keys: Vec<f64>,
    /// Share of its operations that are on keys of which each is so rare that it is hardly ever asked for twice in a
    /// request.
    rare: f64,
}

impl Load {
    fn of(input: &ModelInput) -> Self {
        let (map, records) = (input.cluster.map(), input.law.records);
        let cores_of: Vec<usize> = map.nodes().iter().map(|node| node.cores.into()).collect();
        let first: Vec<usize> =
            cores_of.iter().scan(0, |next, cores| Some(std::mem::replace(next, *next + cores))).collect();
        let core_of = |partition: Partition| {
            let owner = map.owner(partition);
            first[usize::from(owner.node)] + usize::from(owner.core)
        };
        let mut cores = vec![CoreLoad::default(); cores_of.iter().sum()];
        let mut key_lens = vec![0.0; key_len(records - 1)];
        let theta = input.law.keys.exponent();
        let mut buffer = KeyBuffer::new();
        for record in 0..records.min(RECORDS_SUMMED) {
            let weight = f64::from(record + 1).powf(-theta);
            let core = &mut cores[core_of(Partition::of(key_hash(Key::new(buffer.key(record).bytes()))))];
            core.keys.push(weight);
            core.share += weight;
            key_lens[key_len(record) - 1] += weight;
        }
        let mut tail = 0.0;
        let mut from = RECORDS_SUMMED;
        while from < records {
            let until = records.min(10_u32.saturating_pow(key_len(from) as u32));
            let weight = integral(f64::from(from) + 0.5, f64::from(until) + 0.5, theta);
            key_lens[key_len(from) - 1] += weight;
            tail += weight;
            from = until;
        }
        let partitions = Partition::all();
        let part = tail / partitions.len() as f64;
        for partition in partitions {
            let core = &mut cores[core_of(partition)];
            core.rare += part;
            core.share += part;
        }
        let all: f64 = cores.iter().map(|core| core.share).sum();
        for core in &mut cores {
            let own = core.share.max(f64::MIN_POSITIVE);
            core.keys.iter_mut().for_each(|weight| *weight /= own);
            core.rare /= own;
            core.share /= all;
        }
        key_lens.iter_mut().for_each(|weight| *weight /= all);
        Self { cores, cores_of, key_lens }
    }

    /// For each node the sum over its cores of their shares, each times `factors`.
    fn node_shares(&self, factors: &[f64]) -> Vec<f64> {
        let mut cores = self.cores.iter().zip(factors).map(|(core, factor)| core.share * factor);
        self.cores_of.iter().map(|&count| cores.by_ref().take(count).sum()).collect()
    }
}

/// ∫ x^-θ dx.
fn integral(from: f64, until: f64, theta: f64) -> f64 {
    if (theta - 1.0).abs() < 1e-9 {
        return (until / from).ln();
    }
    (until.powf(1.0 - theta) - from.powf(1.0 - theta)) / (1.0 - theta)
}

/// The share of a core's gets that travel when a request holds `distinct` gets of different keys: as many as are asked for
/// until that many different ones have come, on average. With probabilities qᵢ of its keys, t gets ask for
/// D(t) = Σ (1 − (1 − qᵢ)^t) keys; the t with D(t) = `distinct` is found by Newton's method, which comes up to it from below,
/// as D grows ever slower.
fn travelling_share(core: &CoreLoad, distinct: f64) -> f64 {
    let logs: Vec<f64> = core.keys.iter().map(|&key| (-key.min(1.0 - 1e-12)).ln_1p()).collect();
    let most = distinct * GETS_PER_ANSWER_MAX;
    let mut gets = distinct;
    for _ in 0..64 {
        let (mut keys, mut slope) = (core.rare * gets, core.rare);
        for log in &logs {
            let missing = (gets * log).exp();
            keys += 1.0 - missing;
            slope -= log * missing;
        }
        let step = (distinct - keys) / slope;
        gets = (gets + step).min(most);
        if step < 1e-9 * gets || gets >= most {
            break;
        }
    }
    distinct / gets
}

/// How operations fill datagrams.
#[derive(Clone, Copy, Debug)]
struct Packing {
    get: OperationCost,
    put: OperationCost,
    results_per_datagram: f64,
    /// Of a full reply datagram.
    reply_len: usize,
}

impl Packing {
    fn of(input: &ModelInput, load: &Load) -> Self {
        let datagram_len =
            usize::from(input.mtu).saturating_sub(IP_UDP_LEN).clamp(DATAGRAM_LEN_MIN, DATAGRAM_LEN_MAX);
        let body_len = BODY_LEN_MAX - (DATAGRAM_LEN_MAX - datagram_len);
        let lengths = |index: usize| {
            // Multiples of two numbers that no fraction comes close to spread evenly over the unit square.
            let place = |irrational: f64| (index as f64 * irrational).fract();
            let mut left = place(0.754_877_666_246_692_7);
            let digits = load.key_lens.iter().position(|share| {
                left -= share;
                left < 0.0
            });
            let value = input.value_len.pick((place(0.569_840_290_998_053_3) * 2f64.powi(32)) as u32);
            (digits.map_or(load.key_lens.len(), |position| position + 1), value)
        };
        let (keys, values) = ([b'0'; 16], vec![0; input.value_len.max()]);
        let key = |len: usize| Key::new(&keys[..len]);
        let get = |index| Operation::get(key(lengths(index).0)).wire_len();
        let put = |index| {
            let (key_len, value_len) = lengths(index);
            Operation::put(key(key_len), &values[..value_len]).wire_len()
        };
        let gets = requests(input.batch, body_len, get);
        let puts = requests(input.batch, body_len, put);

        // Replies to gets, datagram by datagram as a server fills them.
        let (mut datagrams, mut full, mut in_full, mut reply_len) = (0, 0, 0, 0);
        let mut next = 0;
        for count in &gets.counts {
            let end = next + count;
            while next < end {
                let begun = next;
                let len = reply(datagram_len, |builder| {
                    while next < end
                        && builder.push_as::<false>(OpResult::Value(&values[..lengths(next).1]), 0)
                    {
                        next += 1;
                    }
                });
                datagrams += 1;
                reply_len = reply_len.max(len);
                if next < end {
                    full += 1;
                    in_full += next - begun;
                }
            }
        }
        let results_per_datagram = if full > 0 {
            f64::from(in_full as u32) / f64::from(full)
        } else {
            next as f64 / f64::from(datagrams)
        };
        let put_reply_len = reply(datagram_len, |builder| {
            (0..puts.counts[0])
                .for_each(|_| assert!(builder.push_as::<false>(OpResult::Done, 0), "results of writes fit"));
        });
        let cost = |requests: &Requests, datagrams: f64, len: usize| {
            let operations = requests.counts.iter().sum::<usize>() as f64;
            OperationCost {
                per_request: operations / requests.counts.len() as f64,
                request_bytes: requests.bytes as f64 / operations,
                // In a train all datagrams have one length, but the last.
                reply_bytes: datagrams * wire_len(len.max(reply_len) + IP_UDP_LEN) as f64 / operations,
                unpadded_reply_bytes: datagrams * wire_len(len + IP_UDP_LEN) as f64 / operations,
                reply_datagrams: datagrams / operations,
            }
        };
        Self {
            get: cost(&gets, f64::from(datagrams), reply_len),
            put: cost(&puts, puts.counts.len() as f64, put_reply_len),
            results_per_datagram,
            reply_len,
        }
    }
}

impl Packing {
    /// The same if answers to puts travelled for themselves.
    fn unpadded(&self) -> Self {
        Self { put: OperationCost { reply_bytes: self.put.unpadded_reply_bytes, ..self.put }, ..*self }
    }
}

/// Requests as a session fills them.
struct Requests {
    /// Operations of each.
    counts: Vec<usize>,
    /// On the cable, of all of them.
    bytes: usize,
}

/// Fills requests with operations of the lengths that `len_of` gives for 0, 1, 2 and so on.
fn requests(batch: u8, body_len: usize, len_of: impl Fn(usize) -> usize) -> Requests {
    let (mut counts, mut lens) = (Vec::new(), Vec::new());
    let mut next = 0;
    for _ in 0..REQUESTS_PACKED {
        let begun = next;
        let mut len = 0;
        while next - begun < batch.into() && len + len_of(next) <= body_len {
            len += len_of(next);
            next += 1;
        }
        counts.push(next - begun);
        lens.push((size_of::<RequestHeader>() + len + TRAILER_LEN).max(REQUEST_LEN_MIN));
    }
    let bytes = lens.chunks(TRAIN_REQUESTS).map(|train| {
        let longest = train.iter().copied().max().unwrap_or(0);
        train.len() * wire_len(longest + IP_UDP_LEN)
    });
    Requests { counts, bytes: bytes.sum() }
}

/// Length of a reply datagram that is filled so.
fn reply(datagram_len: usize, fill: impl FnOnce(&mut ReplyBuilder<'_>)) -> usize {
    let mut bytes = [0; DATAGRAM_LEN_MAX];
    let mut builder = ReplyBuilder::new(&mut bytes, datagram_len, Flags::NONE);
    fill(&mut builder);
    let common = Common {
        kind: Kind::REPLY,
        flags: Flags::CHECKSUM,
        slot: 0,
        attempt: 0,
        session: 0.into(),
        token: 0.into(),
    };
    builder.finish(ReplyHeader { common, seq: 0.into(), first: 0, count: 0, credit: 0, queue_delay: 0 }, 0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
    use serde_json::Value;

    use super::*;

    const YCSB: KeyDistribution = KeyDistribution::Zipf(Theta::YCSB);

    fn input(servers: u8, cores: u8, workload: Workload, keys: KeyDistribution) -> ModelInput {
        ModelInput {
            cluster: cluster(servers, cores, Placement::Rendezvous).unwrap(),
            clients: servers.into(),
            law: StreamLaw { workload, read_share: None, keys, records: 1_000_000 },
            value_len: ValueLen::new(128, 128).unwrap(),
            batch: 110,
            line_rate: crate::wire::rate::LINE_RATE,
            mtu: 1_500,
            ns_per_datagram: None,
        }
    }

    fn near(left: f64, right: f64, relative: f64) -> bool {
        (left / right - 1.0).abs() <= relative
    }

    /// Goal: bytes are those on the cable. Method: gets of one key length, worked out by hand from PROTOCOL.md.
    #[test]
    fn bytes_are_those_on_the_cable() {
        let law = StreamLaw {
            workload: Workload::B,
            read_share: None,
            keys: KeyDistribution::Uniform,
            records: 10,
        };
        let prediction = predict(&ModelInput { law, ..input(1, 1, Workload::B, YCSB) }).unwrap();
        // Eleven results of 130 bytes make a datagram more than three quarters full: 1,456 bytes and a checksum.
        assert_eq!((prediction.results_per_datagram, prediction.reply_len), (11.0, 1_460));
        assert!(near(prediction.reply_datagrams_per_sec, 10e9 / 8.0 / 1_526.0, 1e-12));
        let get = prediction.get;
        assert!(near(get.reply_bytes, 10.0 * 1_526.0 / 110.0, 1e-12), "{get:?}");
        assert!(near(get.request_bytes, (24.0 + 110.0 * 3.0 + 4.0 + 66.0) / 110.0, 1e-12), "{get:?}");
        // Ten puts of 133 bytes in 1,432, and their answer padded to the train's length.
        let put = prediction.put.unwrap();
        assert_eq!(put.per_request, 10.0);
        assert!(near(put.request_bytes, (24.0 + 1_330.0 + 4.0 + 66.0) / 10.0, 1e-12), "{put:?}");
        assert!(near(put.reply_bytes, 1_526.0 / 10.0, 1e-12), "{put:?}");
        let per_op = 0.95 * get.reply_bytes + 0.05 * put.reply_bytes;
        assert!(near(prediction.ops_per_sec, 10e9 / 8.0 / per_op, 1e-12));
    }

    /// Goal: what limits is what is full. Method: puts, which come in; few clients; narrow links and short values.
    #[test]
    fn the_fullest_card_limits() {
        let writing = input(2, 4, Workload::A, KeyDistribution::Uniform);
        let limit = |input: &ModelInput, padded: bool| {
            let load = Load::of(input);
            let packing = Packing::of(input, &load);
            let packing = if padded { packing } else { packing.unpadded() };
            most(input, &load, &packing, 0.5, &[1.0; 8]).1
        };
        // Half of the operations are puts: requests are the longer, if the answers are as short as they can be.
        assert_eq!(
            [true, false].map(|padded| limit(&writing, padded)),
            [Limit::ServerReplies, Limit::ServerRequests]
        );
        assert_eq!(limit(&ModelInput { clients: 1, ..writing.clone() }, false), Limit::ClientRequests);
        let both = predict(&writing).unwrap();
        assert!(both.unpadded_ops_per_sec.unwrap() > 1.5 * both.ops_per_sec, "{both:?}");
        let one_client = ModelInput { clients: 1, ..input(4, 8, Workload::C, YCSB) };
        let prediction = predict(&one_client).unwrap();
        assert_eq!(
            (prediction.limit, prediction.coalesced.limit),
            (Limit::ClientReplies, Limit::ClientReplies)
        );
        assert!(near(prediction.ops_per_sec, prediction.node_ops_per_sec, 1e-9));
        let slow = ModelInput { line_rate: "1gbit".parse().unwrap(), ..input(4, 8, Workload::C, YCSB) };
        let (slow, fast) = (predict(&slow).unwrap(), predict(&input(4, 8, Workload::C, YCSB)).unwrap());
        assert!(near(slow.ops_per_sec * 10.0, fast.ops_per_sec, 1e-9));
        let narrow = predict(&ModelInput { mtu: 604, ..input(1, 1, Workload::C, YCSB) }).unwrap();
        assert_eq!((narrow.results_per_datagram, narrow.reply_len), (4.0, 564));
        let long =
            ModelInput { value_len: ValueLen::new(0, 2_000).unwrap(), ..input(1, 1, Workload::C, YCSB) };
        assert!(predict(&long).unwrap_err().to_string().contains("too long"));
    }

    /// Goal: values of mixed lengths are packed as a server does. Method: the mean number of results is between those of the
    /// longest and the shortest, near that of the mean; and what is sent is never more than datagrams.
    #[test]
    fn mixed_lengths_are_packed() {
        let mixed =
            ModelInput { value_len: ValueLen::new(64, 256).unwrap(), ..input(1, 8, Workload::B, YCSB) };
        let prediction = predict(&mixed).unwrap();
        let mean = 1_432.0 / 162.0;
        assert!((mean - 1.0..mean).contains(&prediction.results_per_datagram), "{prediction:?}");
        assert!(prediction.get.reply_datagrams > 1.0 / mean);
    }

    /// Goal: the shares of nodes are those of the operations that go there. Method: draws of the law, each placed by its
    /// key as clients do; also beyond the records that are looked at one by one.
    #[test]
    fn shares_are_those_of_drawn_operations() {
        const SEED: u64 = 3;
        println!("seed {SEED}");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
        for records in [1_000, RECORDS_SUMMED + 3_000_000] {
            let law = StreamLaw { workload: Workload::C, read_share: None, keys: YCSB, records };
            let input = ModelInput { law, ..input(3, 2, Workload::C, YCSB) };
            let load = Load::of(&input);
            assert!(near(load.cores.iter().map(|core| core.share).sum(), 1.0, 1e-9));
            assert!(near(load.key_lens.iter().sum(), 1.0, 1e-9));
            let zipf = rand_distr::Zipf::new(f64::from(records), 0.99).unwrap();
            let (map, mut buffer) = (input.cluster.map(), KeyBuffer::new());
            let (mut nodes, mut lens) = ([0.0; 3], vec![0.0; load.key_lens.len()]);
            let draws = 200_000;
            for _ in 0..draws {
                let record = random.sample(zipf) as u32 - 1;
                let key = buffer.key(record);
                nodes[usize::from(map.owner_of_key(key).node)] += 1.0 / f64::from(draws);
                lens[key.len() - 1] += 1.0 / f64::from(draws);
            }
            for (found, expected) in nodes.into_iter().zip(load.node_shares(&[1.0; 6])) {
                assert!((found - expected).abs() < 0.005, "{records}: {nodes:?} and {expected}");
            }
            for (found, expected) in lens.iter().zip(&load.key_lens) {
                assert!((found - expected).abs() < 0.005, "{records}: {lens:?} and {:?}", load.key_lens);
            }
        }
    }

    /// Goal: the share of gets that travel is that of requests filled by draws. Method: laws from flat to steep; requests
    /// filled with so many different keys, over and over.
    #[test]
    fn joined_gets_are_those_of_drawn_requests() {
        const SEED: u64 = 7;
        println!("seed {SEED}");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
        for (records, theta, distinct) in
            [(200, 0.0, 110), (5_000, 0.6, 40), (30_000, 0.99, 110), (30_000, 1.5, 20)]
        {
            let weights: Vec<f64> = (1..=records).map(|rank| f64::from(rank).powf(-theta)).collect();
            let all: f64 = weights.iter().sum();
            let keys: Vec<f64> = weights.iter().map(|weight| weight / all).collect();
            let expected = travelling_share(&CoreLoad { share: 1.0, keys, rare: 0.0 }, f64::from(distinct));
            let zipf = rand_distr::Zipf::new(f64::from(records), theta).unwrap();
            let (mut gets, mut travelled) = (0.0, 0.0);
            for _ in 0..2_000 {
                let mut open = HashSet::new();
                while open.len() < distinct as usize {
                    gets += 1.0;
                    travelled += f64::from(open.insert(random.sample(zipf) as u32));
                }
            }
            let found = travelled / gets;
            assert!(near(found, expected, 0.015), "{records}, {theta}, {distinct}: {found}, not {expected}");
        }
        // A core that is asked for one key only.
        let single = CoreLoad { share: 1.0, keys: vec![1.0], rare: 0.0 };
        assert_eq!(travelling_share(&single, 110.0), 1.0 / GETS_PER_ANSWER_MAX);
        let rare = CoreLoad { share: 1.0, keys: Vec::new(), rare: 1.0 };
        assert_eq!(travelling_share(&rare, 110.0), 1.0);
    }

    fn kept(number: u32) -> Value {
        let path = format!("{}/results/2026-11-20-veth-{number}/result.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Goal: the model is of this program. Method: runs that were kept, on real frames behind a token bucket of 10 Gbit/s;
    /// the model's ceiling times the share of the rate that was used, within 2 %.
    #[test]
    fn kept_runs_are_met() {
        let ceiling = predict(&input(1, 1, Workload::B, YCSB)).unwrap().ops_per_sec;
        for number in 1..=3 {
            let shaped = &kept(number)["ports"]["udp"]["shaped"];
            let of = |name: &str| shaped[name].as_f64().unwrap();
            let expected = ceiling * of("line_rate_share");
            assert!(near(of("ops_per_sec"), expected, 0.02), "{number}: {} {expected}", of("ops_per_sec"));
        }
    }

    /// Median time of the server's core for a datagram that it sends, over the kept runs.
    fn measured_ns_per_datagram() -> f64 {
        let ns = |number| {
            let run = &kept(number)["ports"]["udp"];
            run["server_cpu_pct"].as_f64().unwrap() * 1e7 / run["reply_datagrams_per_sec"].as_f64().unwrap()
        };
        let mut all = [1, 2, 3].map(ns);
        all.sort_by(f64::total_cmp);
        all[1].round()
    }

    /// Goal: the text says what the model says. Method: its tables are what the command prints, and its figures are in it.
    #[test]
    fn the_text_has_the_models_figures() {
        let path = format!("{}/../docs/line-rate.md", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let predictions = |workload, keys| -> Vec<Prediction> {
            [1, 2, 4]
                .map(|servers| {
                    let ns_per_datagram = Some(measured_ns_per_datagram());
                    predict(&ModelInput { ns_per_datagram, ..input(servers, 8, workload, keys) }).unwrap()
                })
                .to_vec()
        };
        for workload in [Workload::C, Workload::B] {
            let predictions = predictions(workload, YCSB);
            let table = prediction_table(&predictions);
            let lines: Vec<_> = table.lines().map(|line| line.trim_end()).collect();
            assert!(text.contains(&lines.join("\n")), "{workload}:\n{}", lines.join("\n"));
        }
        assert!(text.contains(&format!("--ns-per-datagram {}", measured_ns_per_datagram())));
        let four = predictions(Workload::C, YCSB).remove(2);
        // Frames filled to the last byte would be 1 % fewer.
        assert!(near(four.even_ops_per_sec, 4.0 * 812_743.0 * 11.0, 0.01));
        assert!(near(four.ops_per_sec, 30e6, 0.08));
        let even = predict(&input(4, 8, Workload::C, KeyDistribution::Uniform)).unwrap();
        for figure in [
            format!("{:.2} M", four.even_ops_per_sec / 1e6),
            format!("{:.2} M", four.ops_per_sec / 1e6),
            format!("{:.2} %", four.busiest_share * 100.0),
            format!("{:.2} M", even.ops_per_sec / 1e6),
            format!("{:.1} M", four.coalesced.answered_per_sec / 1e6),
            format!("{:.1} M", four.coalesced.ops_per_sec / 1e6),
        ] {
            assert!(text.contains(&figure), "{figure} is not in the text");
        }
    }
}
