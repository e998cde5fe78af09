//! What is reported of the store: JSON for scripts, a table for people.

use comfy_table::Cell;
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{UsableMemory, measure::Measured};
use crate::{
    median::median,
    output::{Environment, number, plain_table, shown},
    workload::ValueLen,
};

/// Bytes of a cache line.
const LINE_LEN: f64 = 64.0;

/// Something that takes time per operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Gets, Zipf.
    Get,
    /// Gets, all records alike.
    GetUniform,
    /// Puts of a value of the same length, Zipf.
    Put,
    /// The same, all records alike.
    PutUniform,
    /// Puts of new keys into an empty store, whose index grows meanwhile, in memory that was used before.
    Insert,
    /// The same in memory that the kernel provides meanwhile.
    InsertUntouched,
    /// 95 % gets and 5 % puts in one batch, in their order, Zipf.
    Mixed,
    /// Deletes of keys that are there.
    Delete,
    /// Gets from a hashbrown table with ahash, Zipf.
    HashbrownGet,
    /// The same, all records alike.
    HashbrownGetUniform,
    /// Gets from the standard library's table, with its own hash, Zipf.
    StdGet,
    /// Gets from a dashmap with ahash, Zipf.
    DashmapGet,
}

impl Measure {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 12] = [
        Self::Get,
        Self::GetUniform,
        Self::Put,
        Self::PutUniform,
        Self::Insert,
        Self::InsertUntouched,
        Self::Mixed,
        Self::Delete,
        Self::HashbrownGet,
        Self::HashbrownGetUniform,
        Self::StdGet,
        Self::DashmapGet,
    ];

    /// Those that are measured with all records in place, in the order of a round.
    pub(super) const IN_ROUNDS: [Self; 10] = [
        Self::Get,
        Self::HashbrownGet,
        Self::GetUniform,
        Self::HashbrownGetUniform,
        Self::Put,
        Self::StdGet,
        Self::PutUniform,
        Self::DashmapGet,
        Self::Mixed,
        Self::Delete,
    ];

    /// Its name in the JSON: a contract.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get_ns",
            Self::GetUniform => "get_uniform_ns",
            Self::Put => "put_ns",
            Self::PutUniform => "put_uniform_ns",
            Self::Insert => "insert_ns",
            Self::InsertUntouched => "insert_untouched_ns",
            Self::Mixed => "mixed_ns",
            Self::Delete => "delete_ns",
            Self::HashbrownGet => "hashbrown_get_ns",
            Self::HashbrownGetUniform => "hashbrown_get_uniform_ns",
            Self::StdGet => "std_get_ns",
            Self::DashmapGet => "dashmap_get_ns",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::GetUniform => "  uniform",
            Self::Put => "put, same length",
            Self::PutUniform => "  uniform",
            Self::Insert => "insert into an empty store",
            Self::InsertUntouched => "  in memory never used",
            Self::Mixed => "95 % get, 5 % put",
            Self::Delete => "delete, uniform",
            Self::HashbrownGet => "hashbrown get",
            Self::HashbrownGetUniform => "  uniform",
            Self::StdGet => "std get",
            Self::DashmapGet => "dashmap get",
        }
    }
}

/// Nanoseconds on the CPU per operation, a number for each round. As JSON the median of each measurement by its name, `null` for one
/// that was not made, and in `spread` the least, the most and all rounds.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<(Measure, f64)>);

impl Times {
    pub(super) fn add(&mut self, measure: Measure, ns: f64) {
        self.0.push((measure, ns));
    }

    /// One measurement in all rounds.
    #[must_use]
    pub fn rounds(&self, measure: Measure) -> Vec<f64> {
        self.0.iter().filter(|(other, _)| *other == measure).map(|&(_, ns)| ns).collect()
    }

    /// The median of all rounds; `None` when there were none.
    #[must_use]
    pub fn median(&self, measure: Measure) -> Option<f64> {
        median(self.rounds(measure))
    }

    fn spread(&self, measure: Measure) -> Option<Spread> {
        let rounds = self.rounds(measure);
        let min = rounds.iter().copied().reduce(f64::min)?;
        let max = rounds.iter().copied().reduce(f64::max)?;
        Some(Spread { min, max, rounds })
    }
}

impl Serialize for Times {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for measure in Measure::ALL {
            map.serialize_entry(measure.name(), &self.median(measure))?;
        }
        let spread: serde_json::Map<_, _> = Measure::ALL
            .into_iter()
            .filter_map(|measure| {
                Some((measure.name().to_owned(), serde_json::to_value(self.spread(measure)?).ok()?))
            })
            .collect();
        map.serialize_entry("spread", &spread)?;
        map.end()
    }
}

#[derive(Clone, Debug, Serialize)]
struct Spread {
    min: f64,
    max: f64,
    rounds: Vec<f64>,
}

/// The store with one number of records. The names are a contract: fields may be added, but none is renamed or given
/// another unit.
#[derive(Clone, Debug, Serialize)]
pub struct StoreReport {
    /// Time per operation.
    #[serde(flatten)]
    pub times: Times,
    /// Bytes of index and items per record, without those of keys and values.
    pub overhead_bytes_per_record: f64,
    /// The same when every record has a time to live.
    pub overhead_bytes_per_record_with_ttl: f64,
    /// Bytes of the index per record.
    pub index_bytes_per_record: f64,
    /// Bytes of keys and values as a share of all memory of a server whose store puts keep full, after ten turnovers; the lower one of
    /// two laws of lengths.
    pub usable_memory_share: f64,
    /// More about that.
    pub usable_memory: UsableMemory,
    /// Cache lines that a get touches on average, the copy of the value aside: one of the index, and of an item of `n`
    /// bytes 1 + (n − 1) / 64, as items begin anywhere in a line.
    pub lines_per_get: f64,
    /// Those lines, 64 bytes each, by the time of a uniform get.
    pub memory_bandwidth_gb_per_sec: f64,
    /// Longest batch of inserts while the index grows, in memory that was used before: the shortest time of all rounds
    /// for each batch, and the longest of these.
    pub resize_max_us: f64,
    /// The 99.99th percentile of those.
    pub resize_p9999_us: f64,
    /// The longest of all batches in all rounds, whatever held it up.
    pub resize_noisy_max_us: f64,
    /// Timed operations that did not find their key or were refused; more than 0 is a bug.
    pub misses: u64,
    /// Values that were not what was put, of all records and tables, looked at between the measurements; more than 0 is a
    /// bug.
    pub wrong_values: u64,
    /// Least share of its CPU that a measurement had: well below 1, something else ran there. That
    /// does not count as time, but has emptied the caches.
    pub core_share_min: f64,
    /// What was asked for.
    pub config: StoreConfig,
    /// Where it ran.
    pub environment: Environment,
}

/// What was asked for, after resolving defaults.
#[derive(Clone, Debug, Serialize)]
pub struct StoreConfig {
    /// Records stored.
    pub records: u32,
    /// Bytes per value: a number, or a range like `64-256`.
    pub value_len: ValueLen,
    /// How keys look: `decimal`, the digits of the record's number.
    pub keys: &'static str,
    /// Exponent of the Zipf law.
    pub theta: f64,
    /// Operations that were looked up together.
    pub batch: usize,
    /// Rounds.
    pub rounds: usize,
    /// Seconds of each measurement in each round.
    pub duration_s: f64,
    /// CPU that it ran on.
    pub cpu: usize,
    /// Seed of all random choices.
    pub seed: u64,
}

impl StoreReport {
    pub(super) fn new(
        measured: Measured,
        usable_memory: UsableMemory,
        config: StoreConfig,
        environment: Environment,
    ) -> Self {
        let Measured { times, growth, memory, memory_with_ttl, stored_len, .. } = measured;
        let records = f64::from(config.records);
        let overhead = |index_len: usize, items_len: usize| {
            ((index_len + items_len) as f64 - stored_len as f64) / records
        };
        let lines_per_get = lines_per_get(memory.items_len as f64 / records);
        let uniform_ns = times.median(Measure::GetUniform).unwrap_or(f64::INFINITY);
        Self {
            overhead_bytes_per_record: overhead(memory.index_len, memory.items_len),
            overhead_bytes_per_record_with_ttl: overhead(
                memory_with_ttl.index_len,
                memory_with_ttl.items_len,
            ),
            index_bytes_per_record: memory.index_len as f64 / records,
            usable_memory_share: usable_memory.share(),
            lines_per_get,
            memory_bandwidth_gb_per_sec: lines_per_get * LINE_LEN / uniform_ns,
            resize_max_us: growth.quantile_us(1.0),
            resize_p9999_us: growth.quantile_us(0.9999),
            resize_noisy_max_us: growth.longest_us(),
            misses: measured.misses,
            wrong_values: measured.wrong_values + usable_memory.wrong_values(),
            core_share_min: measured.core_share_min,
            times,
            usable_memory,
            config,
            environment,
        }
    }
}

fn lines_per_get(item_len: f64) -> f64 {
    1.0 + 1.0 + (item_len - 1.0).max(0.0) / LINE_LEN
}

/// The store with ever more records.
#[derive(Clone, Debug, Serialize)]
pub struct StoreSweep {
    /// One report for each number of records, ten times as many each time.
    pub points: Vec<StoreReport>,
    /// Why it ended before the most that can be measured.
    pub ended: Option<String>,
}

/// A line of the table that is no time: its name, its unit, how many decimals it has, and where it comes from.
type Line = (&'static str, &'static str, usize, fn(&StoreReport) -> f64);

const LINES: [Line; 12] = [
    ("overhead per record", "bytes", 1, |report| report.overhead_bytes_per_record),
    ("  with a time to live", "bytes", 1, |report| report.overhead_bytes_per_record_with_ttl),
    ("  of which index", "bytes", 1, |report| report.index_bytes_per_record),
    ("usable memory", "%", 1, |report| report.usable_memory_share * 100.0),
    ("longest batch of inserts", "µs", 1, |report| report.resize_max_us),
    ("  p99.99", "µs", 1, |report| report.resize_p9999_us),
    ("cache lines per get", "", 2, |report| report.lines_per_get),
    ("  uniform, from memory", "GB/s", 1, |report| report.memory_bandwidth_gb_per_sec),
    ("misses", "", 0, |report| report.misses as f64),
    ("wrong values", "", 0, |report| report.wrong_values as f64),
    ("least share of the CPU", "%", 0, |report| report.core_share_min * 100.0),
    ("records", "", 0, |report| f64::from(report.config.records)),
];

/// A table of one report, with the spread of each time. Ends without a line feed.
#[must_use]
pub fn store_table(report: &StoreReport) -> String {
    let mut table = plain_table();
    table.set_header(["", "", "median", "least", "most"].map(str::to_owned).map(number));
    for measure in Measure::ALL {
        let spread = report.times.spread(measure);
        let values = [
            report.times.median(measure),
            spread.as_ref().map(|spread| spread.min),
            spread.as_ref().map(|spread| spread.max),
        ];
        let values = values.map(|value| number(shown(value, 1)));
        table.add_row([Cell::new(measure.title()), Cell::new("ns")].into_iter().chain(values));
    }
    for (name, unit, decimals, of) in LINES {
        table.add_row([Cell::new(name), Cell::new(unit), number(shown(Some(of(report)), decimals))]);
    }
    table.trim_fmt()
}

/// A table with a column for each number of records, and below it why there are no more. Ends without a line feed.
#[must_use]
pub fn sweep_table(sweep: &StoreSweep) -> String {
    let mut table = plain_table();
    let records = sweep.points.iter().map(|report| shown(Some(report.config.records.into()), 0));
    table.set_header(["records", ""].map(str::to_owned).into_iter().chain(records).map(number));
    for measure in Measure::ALL {
        let values = sweep.points.iter().map(|report| number(shown(report.times.median(measure), 1)));
        table.add_row([Cell::new(measure.title()), Cell::new("ns")].into_iter().chain(values));
    }
    let (_records, lines) = LINES.split_last().expect("there are lines");
    for (name, unit, decimals, of) in lines {
        let values = sweep.points.iter().map(|report| number(shown(Some(of(report)), *decimals)));
        table.add_row([Cell::new(name), Cell::new(unit)].into_iter().chain(values));
    }
    let ended = sweep.ended.as_ref().map(|why| format!("\n\nended early: {why}"));
    table.trim_fmt() + &ended.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the median counts and the spread is kept, under the names of the contract. Method: three rounds of one
    /// measurement as JSON, none of another.
    #[test]
    fn times_become_medians_with_their_spread() {
        let mut times = Times::default();
        [12.0, 10.0, 17.0].into_iter().for_each(|ns| times.add(Measure::Get, ns));
        let json = serde_json::to_value(&times).unwrap();
        assert_eq!(json["get_ns"], 12.0);
        assert_eq!(
            json["spread"]["get_ns"],
            serde_json::json!({ "min": 10.0, "max": 17.0, "rounds": [12.0, 10.0, 17.0] })
        );
        assert!(json["dashmap_get_ns"].is_null() && json["spread"].get("dashmap_get_ns").is_none());
        assert_eq!(json.as_object().unwrap().len(), Measure::ALL.len() + 1);
    }

    /// Goal: lines are counted as the field's description says. Method: items of one byte and of two lines.
    #[test]
    fn lines_are_counted() {
        assert_eq!(lines_per_get(1.0), 2.0);
        assert_eq!(lines_per_get(129.0), 4.0);
    }
}
