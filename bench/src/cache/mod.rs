//! How many gets a store that evicts answers, beside well-known policies in the same room.
//!
//! Each record of a [`trace`] is asked for as a server asks, and put when it is not there. First the store does that,
//! with memory for about a share of the key space. Then the [`references`] do, with as much room as the store turned out to
//! have: with values of one length as many entries as the store held on average while it was measured, with mixed ones as
//! many bytes of keys and values. So the figures compare what is kept, and neither how compact it is stored nor how fast.

pub mod references;
pub mod trace;

use std::{fmt, str::FromStr, sync::atomic::AtomicBool, time::SystemTime};

use anyhow::Context;
use clap::Args;
use comfy_table::Cell;
use linerate_proto::wire::Terms;
use linerate_server::store::{AtCapacity, Store};
use serde::{Serialize, Serializer};

use crate::{
    key::{KeyBuffer, key_len},
    output::{Environment, JsonTarget, number, plain_table},
    results::KeepOptions,
    run::{check_stop, progress_bar},
};
use references::{Policy, Reference, mixed};
use trace::{TRACES, TraceLaw};

/// One part in this many of a trace comes before what is measured.
const WARM_UP_PART: usize = 3;

/// Times that the entries in the store are counted while it is measured.
const COUNTS: usize = 4;

/// Bytes that the store needs for a record beside key and value, about: 12 of the header, 4 of padding, 14 of the index.
const OVERHEAD_LEN: usize = 30;

/// Memory of the smallest store.
const MEMORY_LEN_MIN: usize = 4096;

/// A comparison of what is kept when there is not room for all.
#[derive(Clone, Debug, Args)]
pub struct CacheOptions {
    /// Records of the key space, 10000 to 10000000; scans come on top
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10_000..=10_000_000))]
    pub keys: u32,
    /// Accesses of a trace, 100000 to 1000000000; the first third is not measured [default: 30 per key]
    #[arg(long, value_parser = clap::value_parser!(u32).range(100_000..=1_000_000_000))]
    pub accesses: Option<u32>,
    /// Traces, by name [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub traces: Vec<TraceLaw>,
    /// Parts of the key space that there is memory for, in %, 1 to 90
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',', default_value = "1,5,10,25,50", value_parser = clap::value_parser!(u8).range(1..=90))]
    pub shares: Vec<u8>,
    /// Bytes per value: a number from 0 to 4096, or mixed (16 to 4096, all orders of magnitude alike)
    #[arg(long, default_value = "128")]
    pub value_len: ValueLens,
    /// Seed of the traces, the lengths and the store's hash
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the result as JSON to this file, - for standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<JsonTarget>,
    /// Whether and where it is kept.
    #[command(flatten)]
    pub place: KeepOptions,
}

/// How long values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueLens {
    /// All alike.
    Fixed(u16),
    /// 16 to 4096 bytes, the logarithm uniform.
    Mixed,
}

impl ValueLens {
    const MAX: u16 = 4096;

    fn of(self, record: u32, seed: u64) -> usize {
        match self {
            Self::Fixed(len) => len.into(),
            Self::Mixed => {
                let uniform = (mixed(mixed(seed) ^ u64::from(record)) >> 11) as f64 / (1_u64 << 53) as f64;
                (16.0 * 256_f64.powf(uniform)) as usize
            }
        }
    }
}

impl FromStr for ValueLens {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(len @ ..=Self::MAX) => Ok(Self::Fixed(len)),
            Err(_) if text == "mixed" => Ok(Self::Mixed),
            _ => Err(format!("`{text}` is no length; give 0 to {} bytes, or mixed", Self::MAX)),
        }
    }
}

impl fmt::Display for ValueLens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(len) => len.fmt(f),
            Self::Mixed => f.write_str("mixed"),
        }
    }
}

impl Serialize for ValueLens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fixed(len) => serializer.serialize_u16(*len),
            Self::Mixed => serializer.serialize_str("mixed"),
        }
    }
}

/// All of a comparison. The names are a contract, as those of [`Report`](crate::output::Report).
#[derive(Clone, Debug, Serialize)]
pub struct CacheReport {
    /// Records of the key space.
    pub keys: u32,
    /// Accesses of each trace, those included that were not measured.
    pub accesses: u32,
    /// Bytes per value, or `mixed`.
    pub value_len: ValueLens,
    /// Seed of all random choices.
    pub seed: u64,
    /// A line for each trace and share.
    pub cells: Vec<CacheCell>,
    /// Where it ran.
    pub environment: Environment,
}

/// One trace, and room for one share of its records.
#[derive(Clone, Debug, Serialize)]
pub struct CacheCell {
    /// The trace's name.
    pub trace: &'static str,
    /// Part of the key space that there was memory for, in %, about.
    pub share_pct: u8,
    /// Records that the store held, on average.
    pub entries: u64,
    /// Bytes of their keys and values.
    pub payload_len: u64,
    /// Hits of the store in %, of all accesses that were measured.
    #[serde(serialize_with = "rounded")]
    pub store_pct: f64,
    /// Those of each policy in the same room.
    #[serde(serialize_with = "rounded_by_policy")]
    pub references_pct: [f64; Policy::ALL.len()],
}

impl CacheCell {
    /// Hits of the best of the references, in %.
    #[must_use]
    pub fn best_pct(&self) -> f64 {
        self.references_pct.into_iter().fold(0.0, f64::max)
    }

    /// The store's lead over the best of the references in points of a per cent; negative when it is behind.
    #[must_use]
    pub fn lead(&self) -> f64 {
        self.store_pct - self.best_pct()
    }
}

/// To the third decimal: more would not be the same on the next seed.
fn rounded<S: Serializer>(pct: &f64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64((pct * 1e3).round() / 1e3)
}

fn rounded_by_policy<S: Serializer>(pcts: &[f64], to: S) -> Result<S::Ok, S::Error> {
    let rounded = pcts.iter().map(|pct| (pct * 1e3).round() / 1e3);
    to.collect_map(Policy::ALL.into_iter().zip(rounded))
}

/// Makes the comparison. Ends early, with an error, when `stop` is set.
///
/// # Errors
/// When there is no memory for a store, or it was interrupted.
pub fn cache(options: &CacheOptions, stop: &AtomicBool) -> anyhow::Result<CacheReport> {
    let environment = Environment::look(SystemTime::now());
    let accesses = options.accesses.unwrap_or_else(|| options.keys.saturating_mul(30).min(1_000_000_000));
    let traces = if options.traces.is_empty() { &TRACES[..] } else { &options.traces[..] };
    let steps = traces.len() * (1 + options.shares.len() * (1 + Policy::ALL.len()));
    let progress = progress_bar(steps as u64, "hit ratios");
    let mut cells = Vec::with_capacity(traces.len() * options.shares.len());
    for law in traces {
        progress.set_message(law.name);
        let trace = law.draw(options.keys, accesses as usize, options.seed);
        progress.inc(1);
        let records = trace.iter().copied().max().unwrap_or(0).max(options.keys - 1);
        let lens = |record| key_len(record) + options.value_len.of(record, options.seed);
        let payload_lens: Vec<u32> = (0..=records).map(|record| lens(record) as u32).collect();
        let key_space = KeySpace { count: options.keys, payload_lens: &payload_lens };
        for &share_pct in &options.shares {
            check_stop(stop)?;
            let Kept { entries, payload_len, hit_ratio } =
                store_hits(&trace, key_space, share_pct, options.seed)
                    .with_context(|| format!("no store for {share_pct} % of {} keys", options.keys))?;
            progress.inc(1);
            let ones;
            let (capacity, weights) = match options.value_len {
                ValueLens::Fixed(_) => {
                    ones = vec![1; payload_lens.len()];
                    (entries, &ones)
                }
                ValueLens::Mixed => (payload_len, &payload_lens),
            };
            let references_pct = Policy::ALL.map(|policy| {
                let mut reference = Reference::new(policy, capacity, entries, weights);
                let hit_ratio = measured(&trace, |record| reference.access(record));
                progress.inc(1);
                hit_ratio * 100.0
            });
            let store_pct = hit_ratio * 100.0;
            cells.push(CacheCell {
                trace: law.name,
                share_pct,
                entries,
                payload_len,
                store_pct,
                references_pct,
            });
        }
    }
    progress.finish_and_clear();
    let CacheOptions { keys, value_len, seed, .. } = *options;
    Ok(CacheReport { keys, accesses, value_len, seed, cells, environment })
}

/// Accesses that come before those that are measured.
fn warm_up_count(trace: &[u32]) -> usize {
    trace.len() / WARM_UP_PART
}

/// Share of hits behind the warm-up.
fn measured(trace: &[u32], mut access: impl FnMut(u32) -> bool) -> f64 {
    let (warm_up, counted) = trace.split_at(warm_up_count(trace));
    for &record in warm_up {
        access(record);
    }
    counted.iter().filter(|&&record| access(record)).count() as f64 / counted.len() as f64
}

/// Records, and how long their keys and values are together.
#[derive(Clone, Copy)]
struct KeySpace<'a> {
    /// Without those of scans.
    count: u32,
    /// Those of scans included.
    payload_lens: &'a [u32],
}

/// What a store held, and how much of what it was asked for.
struct Kept {
    entries: u64,
    payload_len: u64,
    hit_ratio: f64,
}

fn store_hits(trace: &[u32], key_space: KeySpace<'_>, share_pct: u8, seed: u64) -> anyhow::Result<Kept> {
    let KeySpace { count, payload_lens } = key_space;
    let needed: usize = payload_lens[..count as usize].iter().map(|&len| len as usize + OVERHEAD_LEN).sum();
    let memory_len = (needed * usize::from(share_pct) / 100).max(MEMORY_LEN_MIN);
    let seeds = [1, 2, 3, 4].map(|number| mixed(seed ^ number << 32));
    let mut store = Store::new(memory_len, AtCapacity::Evict, seeds)?;
    let value = [0; ValueLens::MAX as usize];
    let mut key = KeyBuffer::new();
    let every = (trace.len() - warm_up_count(trace)) / COUNTS;
    let (mut accesses, mut counts, mut entries, mut payload_len) = (0, 0, 0, 0);
    let hit_ratio = measured(trace, |record| {
        let is_hit = access(&mut store, key.key(record), || {
            &value[..payload_lens[record as usize] as usize - key_len(record)]
        });
        accesses += 1;
        if accesses > warm_up_count(trace) && (trace.len() - accesses).is_multiple_of(every) {
            let (held, held_len) = held(&store, payload_lens);
            (counts, entries, payload_len) = (counts + 1, entries + held, payload_len + held_len);
        }
        is_hit
    });
    Ok(Kept { entries: entries / counts, payload_len: payload_len / counts, hit_ratio })
}

/// A get in the stages of a server, and a put in the same stages if there is nothing.
fn access<'value>(
    store: &mut Store,
    key: linerate_client::Key<'_>,
    value: impl FnOnce() -> &'value [u8],
) -> bool {
    let hash = store.hash(key);
    let probe = store.prefetch_bucket(hash);
    let probe = store.probe(hash, probe);
    if store.get_probed(key, hash, probe).is_some() {
        return true;
    }
    let probe = store.prefetch_bucket(hash);
    let probe = store.probe(hash, probe);
    let stored = store.put_probed(key, hash, probe, value(), Terms::default());
    assert!(
        stored.is_ok(),
        "a store that evicts refused a value of at most {} bytes: {stored:?}",
        ValueLens::MAX
    );
    false
}

/// How many records a store has, and the bytes of their keys and values.
fn held(store: &Store, payload_lens: &[u32]) -> (u64, u64) {
    let mut buffer = KeyBuffer::new();
    let mut len_if_held = |record, len: u32| {
        let key = buffer.key(record);
        store.get(key, store.hash(key)).map_or(0, |_| u64::from(len))
    };
    let payload_len = (0..).zip(payload_lens).map(|(record, &len)| len_if_held(record, len)).sum();
    (store.len() as u64, payload_len)
}

/// A line for each trace and share, and the worst below. Ends without a line feed.
#[must_use]
pub fn cache_table(report: &CacheReport) -> String {
    let mut table = plain_table();
    let heads = ["trace", "share", "entries", "linerate"].into_iter();
    let heads = heads.chain(Policy::ALL.map(Policy::name)).chain(["lead"]);
    table.set_header(heads.map(|head| number(head.to_owned())));
    for cell in &report.cells {
        let pcts = [cell.store_pct].into_iter().chain(cell.references_pct);
        let row = [
            Cell::new(cell.trace),
            number(format!("{} %", cell.share_pct)),
            number(cell.entries.to_string()),
        ];
        let row = row.into_iter().chain(pcts.map(|pct| number(format!("{pct:.2}"))));
        table.add_row(row.chain([number(format!("{:+.2}", cell.lead()))]));
    }
    let unit = match report.value_len {
        ValueLens::Fixed(_) => "entries",
        ValueLens::Mixed => "bytes",
    };
    let mut text = format!(
        "{}\n\nhits in %; lead: points above (+) or below (-) the best of the others, which have room for as many {unit}",
        table.trim_fmt()
    );
    if let Some(worst) = report.cells.iter().min_by(|a, b| a.lead().total_cmp(&b.lead())) {
        text += &format!("\nworst: {:+.2} on {} at {} %", worst.lead(), worst.trace, worst.share_pct);
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: CacheOptions,
    }

    fn options(line: &str) -> Result<CacheOptions, String> {
        let words = ["cache"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.options).map_err(|error| error.to_string())
    }

    /// Goal: what is typed is understood, and a refusal names what is allowed. Method: good and bad values of each option.
    #[test]
    fn options_are_checked() {
        let good =
            options("--keys 20000 --traces zipf-0.80,scan-20 --shares 5,10 --value-len mixed").unwrap();
        assert_eq!(good.traces.iter().map(|law| law.name).collect::<Vec<_>>(), ["zipf-0.80", "scan-20"]);
        assert_eq!((good.shares, good.value_len), (vec![5, 10], ValueLens::Mixed));
        assert_eq!(options("--value-len 4096").unwrap().value_len, ValueLens::Fixed(4096));
        for (line, allowed) in [
            ("--keys 9999", "10000..=10000000"),
            ("--accesses 5", "100000..=1000000000"),
            ("--traces zipf", "scan-35-twice"),
            ("--shares 0", "1..=90"),
            ("--shares 91", "1..=90"),
            ("--value-len 4097", "0 to 4096 bytes, or mixed"),
            ("--value-len 64-256", "0 to 4096 bytes, or mixed"),
        ] {
            let error = options(line).unwrap_err();
            assert!(error.contains(allowed), "{line}: {error}");
        }
    }

    /// Goal: mixed lengths are as documented. Method: limits, and as many below the middle of the logarithms as above.
    #[test]
    fn mixed_lengths_are_of_all_orders() {
        let lens: Vec<usize> = (0..100_000).map(|record| ValueLens::Mixed.of(record, 1)).collect();
        assert!(lens.iter().all(|len| (16..=4096).contains(len)));
        let below = lens.iter().filter(|&&len| len < 256).count();
        assert!((49_000..51_000).contains(&below), "{below}");
    }
}
