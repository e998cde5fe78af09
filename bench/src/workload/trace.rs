//! Operations that a cache of Twitter has seen: rows of the published traces
//! (<https://github.com/twitter/cache-trace>; Yang, Yue and Rashmi, OSDI 2020).
//!
//! ```text
//! timestamp,anonymized key,key size,value size,client id,operation,TTL
//! ```
//!
//! Rows are replayed as fast as the run goes, whatever their timestamps. The anonymized key is the key, whatever the key size
//! says. Everything is read and checked before anything is started, since reading a row costs more than sending it.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt, fs,
    io::Read,
    iter,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use ahash::RandomState;
use anyhow::Context;
use csv::ByteRecord;
use hashbrown::HashTable;
use linerate_client::{HEAD_LEN, Key};
use linerate_proto::hash::key_hash;
use serde::Serialize;

use super::{Draw, Kind, Stream, ValueLen};

/// Most rows, 2^27: 2 GiB of operations, and as much again while they are shared out.
const ROWS_MAX: usize = 1 << 27;

/// Longest key in bytes.
const KEY_LEN_MAX: usize = 255;

/// Bytes of a number, which is what a key's value is when the trace ever counts with it.
const NUMBER_LEN: u32 = 8;

/// Shares of sessions in a trace that differ more than this make a mix that is not the trace's.
const UNEVEN_MIN: f64 = 1.5;

/// Columns of a row.
const COLUMNS: [&str; 7] =
    ["timestamp", "anonymized key", "key size", "value size", "client id", "operation", "TTL"];

/// Keys one behind the other, found by their number.
pub struct KeyTable {
    /// With room for a head behind the last one.
    bytes: Box<[u8]>,
    /// Where each key ends; the first begins at 0.
    ends: Box<[u64]>,
}

impl KeyTable {
    /// The key with this number.
    ///
    /// # Panics
    /// When there are not so many.
    #[inline]
    #[must_use]
    pub fn key(&self, number: u32) -> Key<'_> {
        let end = self.ends[number as usize];
        let start = (number as usize).checked_sub(1).map_or(0, |before| self.ends[before]);
        let (start, len) = (start as usize, (end - start) as usize);
        Key::split_from(&self.bytes[start..], len).expect("keys end within their bytes").0
    }

    /// Number of keys.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.ends.len()
    }
}

impl fmt::Debug for KeyTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyTable of {} keys", self.count())
    }
}

/// A trace that has been read.
pub struct Trace {
    name: String,
    keys: Arc<KeyTable>,
    draws: Vec<Draw>,
    rows_of: BTreeMap<&'static str, u64>,
    rows_of_hottest: u32,
    lens: ValueLen,
    memory_len: u64,
}

/// What is reported of a trace.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TraceConfig {
    /// The file, as it was named.
    pub trace: String,
    /// Rows, after which it begins again.
    pub rows: u64,
    /// Distinct keys.
    pub keys: u64,
    /// Share of each of the trace's operations that occur, 0 to 1.
    pub mix: BTreeMap<&'static str, f64>,
}

impl Trace {
    /// Reads a file.
    ///
    /// # Errors
    /// A sentence that names the file, the line and what is wrong there.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display().to_string();
        let file = fs::File::open(path).with_context(|| format!("cannot read the trace \"{shown}\""))?;
        Self::parse(file, &shown)
    }

    fn parse(rows: impl Read, name: &str) -> anyhow::Result<Self> {
        // A row of another length is ours to complain about, and keys may hold quotes.
        let mut reader =
            csv::ReaderBuilder::new().has_headers(false).flexible(true).quoting(false).from_reader(rows);
        let mut reading = Reading::default();
        let mut row = ByteRecord::new();
        let line = |row: &ByteRecord| row.position().map_or(0, csv::Position::line);
        while reader
            .read_byte_record(&mut row)
            .with_context(|| format!("cannot read the trace \"{name}\""))?
        {
            reading.take(&row).map_err(|wrong| anyhow::anyhow!("{name}: line {}: {wrong}", line(&row)))?;
        }
        anyhow::ensure!(!reading.draws.is_empty(), "{name}: a trace of no rows; give one with some");
        Ok(reading.finish(name))
    }

    /// The rows for each of so many sessions, so that all of a key are with one session and in their order.
    ///
    /// # Errors
    /// A sentence when a session would have none.
    pub fn streams(&self, sessions: usize) -> anyhow::Result<Vec<Stream>> {
        let owner = |draw: &Draw| (key_hash(self.keys.key(draw.record())) % sessions as u64) as usize;
        let mut counts = vec![0_usize; sessions];
        self.draws.iter().for_each(|draw| counts[owner(draw)] += 1);
        anyhow::ensure!(
            counts.iter().all(|&count| count > 0),
            "{} has only {} keys, which leaves some of the {sessions} sessions nothing to do, as all operations of a key belong \
             to one: give fewer --sessions, or fewer --threads",
            self.name,
            self.keys.count()
        );
        let mut shares: Vec<_> = counts.into_iter().map(Vec::with_capacity).collect();
        self.draws.iter().for_each(|draw| shares[owner(draw)].push(*draw));
        let stream = |draws: Vec<Draw>| Stream {
            draws: draws.into(),
            next: 0,
            keys: Some(Arc::clone(&self.keys)),
            inserts: None,
            is_plain: false,
        };
        Ok(shares.into_iter().map(stream).collect())
    }

    /// Share of the rows that one of its streams has, 0 to 1: that of the rate which is the stream's in an open loop, so that the
    /// mix is the trace's.
    #[must_use]
    pub fn share(&self, stream: &Stream) -> f64 {
        stream.draws().len() as f64 / self.draws.len() as f64
    }

    /// What is to be said of streams that go as fast as each can: the smaller ones begin again sooner than the larger ones, and
    /// have too large a part in the mix. Nothing when they are nearly alike.
    #[must_use]
    pub fn unevenness(&self, streams: &[Stream]) -> Option<String> {
        let lens = || streams.iter().map(|stream| stream.draws().len());
        let (least, most) = (lens().min()?, lens().max()?);
        (most as f64 > UNEVEN_MIN * least as f64).then(|| {
            format!(
                "the sessions have from {least} to {most} rows of {} and go through them at the same speed, so that what is done \
                 has another mix than the trace: give --rate, which is shared out by rows, or fewer --sessions",
                self.name
            )
        })
    }

    /// Shortest and longest value put.
    #[must_use]
    pub const fn lens(&self) -> ValueLen {
        self.lens
    }

    /// Bytes of all keys and of the longest value of each, with what a store adds.
    #[must_use]
    pub const fn memory_len(&self) -> u64 {
        self.memory_len
    }

    /// Share of the rows that are of the key with the most, 0 to 1.
    #[must_use]
    pub fn hottest_share(&self) -> f64 {
        f64::from(self.rows_of_hottest) / self.draws.len() as f64
    }

    /// What is reported of it.
    #[must_use]
    pub fn config(&self) -> TraceConfig {
        let rows = self.draws.len() as u64;
        let share = |(&name, &count): (&&'static str, &u64)| (name, count as f64 / rows as f64);
        TraceConfig {
            trace: self.name.clone(),
            rows,
            keys: self.keys.count() as u64,
            mix: self.rows_of.iter().map(share).collect(),
        }
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace {} of {} rows", self.name, self.draws.len())
    }
}

/// What a trace's operation is here.
fn kind_of(operation: &[u8]) -> Option<(&'static str, Kind)> {
    Some(match operation {
        b"get" => ("get", Kind::Get),
        b"gets" => ("gets", Kind::Get),
        b"set" => ("set", Kind::Put),
        b"add" => ("add", Kind::PutIfAbsent),
        b"replace" => ("replace", Kind::PutIfPresent),
        // Which version was meant is not in the trace.
        b"cas" => ("cas", Kind::PutIfPresent),
        b"append" => ("append", Kind::Put),
        b"prepend" => ("prepend", Kind::Put),
        b"delete" => ("delete", Kind::Delete),
        b"incr" => ("incr", Kind::Increment),
        b"decr" => ("decr", Kind::Decrement),
        _ => return None,
    })
}

/// A trace as far as it has been read.
#[derive(Default)]
struct Reading {
    numbers: HashTable<u32>,
    hasher: RandomState,
    bytes: Vec<u8>,
    ends: Vec<u64>,
    /// Of each key.
    facts: Vec<KeyFacts>,
    draws: Vec<Draw>,
    rows_of: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct KeyFacts {
    rows: u32,
    /// Its longest value.
    value_len_max: u32,
    /// Whether it is ever counted with.
    is_number: bool,
}

impl Reading {
    /// Takes a row; the error is what is wrong with it.
    fn take(&mut self, row: &ByteRecord) -> Result<(), String> {
        if self.draws.len() == ROWS_MAX {
            return Err(format!(
                "a trace may have up to {ROWS_MAX} rows; cut it off, as with `head -n {ROWS_MAX}`"
            ));
        }
        let Ok([timestamp, key, key_len, value_len, client, operation, ttl_s]) =
            <[&[u8]; 7]>::try_from(row.iter().collect::<Vec<_>>())
        else {
            return Err(format!("{} columns instead of 7: {}", row.len(), COLUMNS.join(", ")));
        };
        for (index, field) in [(0, timestamp), (2, key_len), (4, client)] {
            number(field, COLUMNS[index])?;
        }
        if !(1..=KEY_LEN_MAX).contains(&key.len()) {
            return Err(format!("a key of {} bytes; keys have 1 to {KEY_LEN_MAX}", key.len()));
        }
        let value_len = number(value_len, COLUMNS[3])?;
        if value_len > ValueLen::MAX as u64 {
            return Err(format!("a value of {value_len} bytes; values have up to {}", ValueLen::MAX));
        }
        let ttl_s = u32::try_from(number(ttl_s, COLUMNS[6])?).unwrap_or(u32::MAX);
        let (name, kind) = kind_of(operation).ok_or_else(|| {
            let text = String::from_utf8_lossy(operation);
            format!(
                "the operation \"{}\" is none of get, gets, set, add, replace, cas, append, prepend, delete, incr, decr",
                text.escape_debug()
            )
        })?;
        let record = self.number_of(key);
        let facts = &mut self.facts[record as usize];
        facts.rows += 1;
        facts.is_number |= matches!(kind, Kind::Increment | Kind::Decrement);
        let value_len = if kind.is_write() { value_len as u32 } else { 0 };
        facts.value_len_max = facts.value_len_max.max(value_len);
        self.draws.push(Draw::traced(record, kind, value_len, ttl_s));
        *self.rows_of.entry(name).or_default() += 1;
        Ok(())
    }

    fn number_of(&mut self, key: &[u8]) -> u32 {
        let Self { numbers, hasher, bytes, ends, facts, .. } = self;
        let of = |number: u32| {
            let start = (number as usize).checked_sub(1).map_or(0, |before| ends[before]);
            &bytes[start as usize..ends[number as usize] as usize]
        };
        let hash = hasher.hash_one(key);
        if let Some(&number) = numbers.find(hash, |&number| of(number) == key) {
            return number;
        }
        let number = ends.len() as u32;
        numbers.insert_unique(hash, number, |&number| hasher.hash_one(of(number)));
        bytes.extend_from_slice(key);
        ends.push(bytes.len() as u64);
        facts.push(KeyFacts::default());
        number
    }

    fn finish(self, name: &str) -> Trace {
        let Self { mut bytes, ends, facts, mut draws, rows_of, .. } = self;
        for draw in &mut draws {
            // What a key is counted with is a number from the beginning, or counting would fail for ever.
            if facts[draw.record() as usize].is_number {
                let kind = if draw.kind() == Kind::Get { Kind::GetNumber } else { draw.kind() };
                let ttl_s = draw.ttl_ms().map_or(0, |ttl_ms| ttl_ms.get() / 1_000);
                *draw = Draw::traced(draw.record(), kind, NUMBER_LEN, ttl_s);
            }
        }
        let puts = || {
            let stores =
                |draw: &&Draw| matches!(draw.kind(), Kind::Put | Kind::PutIfAbsent | Kind::PutIfPresent);
            draws.iter().filter(stores).map(Draw::value_len)
        };
        let lens = ValueLen::new(puts().min().unwrap_or(0), puts().max().unwrap_or(0));
        let lens = lens.expect("every length was looked at");
        let rows_of_hottest = facts.iter().map(|facts| facts.rows).max().unwrap_or(0);
        let keys_len = bytes.len() as u64;
        // 48: what a record takes besides key and value, as for other runs.
        let memory_len = keys_len
            + facts.iter().map(|facts| u64::from(facts.value_len_max.max(NUMBER_LEN)) + 48).sum::<u64>();
        bytes.extend(iter::repeat_n(0, HEAD_LEN));
        let keys = Arc::new(KeyTable { bytes: bytes.into(), ends: ends.into() });
        Trace { name: name.to_owned(), keys, draws, rows_of, rows_of_hottest, lens, memory_len }
    }
}

fn number(field: &[u8], column: &str) -> Result<u64, String> {
    let text = str::from_utf8(field).ok();
    text.and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
        format!(
            "the {column} \"{}\" is no whole number of 0 or more",
            String::from_utf8_lossy(field).escape_debug()
        )
    })
}

/// What `--trace` takes: a file, and what was read from it.
#[derive(Clone, Debug)]
pub struct TraceFile {
    path: PathBuf,
    trace: Option<Arc<Trace>>,
}

impl TraceFile {
    /// The same with the file read, once.
    ///
    /// # Errors
    /// As [`Trace::read`].
    pub fn loaded(&self) -> anyhow::Result<Self> {
        let trace = match &self.trace {
            Some(trace) => Arc::clone(trace),
            None => Arc::new(Trace::read(&self.path)?),
        };
        Ok(Self { path: self.path.clone(), trace: Some(trace) })
    }

    /// The trace, if it has been read.
    #[must_use]
    pub fn trace(&self) -> Option<&Trace> {
        self.trace.as_deref()
    }
}

impl FromStr for TraceFile {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self { path: text.into(), trace: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Trace> {
        Trace::parse(text.as_bytes(), "a.csv")
    }

    fn sample() -> Trace {
        Trace::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cache-trace.csv"))).unwrap()
    }

    /// Goal: every operation comes out as documented, with its key, length and time to live. Method: one row of each.
    #[test]
    fn rows_become_operations() {
        let rows = [
            ("get", Kind::Get),
            ("gets", Kind::Get),
            ("set", Kind::Put),
            ("add", Kind::PutIfAbsent),
            ("replace", Kind::PutIfPresent),
            ("cas", Kind::PutIfPresent),
            ("append", Kind::Put),
            ("prepend", Kind::Put),
            ("delete", Kind::Delete),
        ];
        let text: String =
            rows.iter().map(|(name, _)| format!("7,nz:u:\"{name},9,300,42,{name},60\n")).collect();
        let trace = parse(&text).unwrap();
        for ((number, (name, kind)), draw) in (0..).zip(rows).zip(&trace.draws) {
            assert_eq!((draw.record(), draw.kind(), draw.is_traced()), (number, kind, true));
            let written = kind.is_write();
            assert_eq!((draw.is_put(), draw.value_len()), (written, if written { 300 } else { 0 }));
            assert_eq!(draw.ttl_ms().map(std::num::NonZeroU32::get), Some(60_000));
            assert_eq!(trace.keys.key(number).bytes(), format!("nz:u:\"{name}").as_bytes());
        }
        assert_eq!((trace.lens.min(), trace.lens.max()), (300, 300));
        let config = trace.config();
        assert_eq!((config.rows, config.keys, config.mix["cas"]), (9, 9, 1.0 / 9.0));
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!((&json["trace"], &json["mix"]["get"]), (&"a.csv".into(), &(1.0 / 9.0).into()));
    }

    /// Goal: what is counted with is a number wherever the trace uses it. Method: a key that is set, got and counted with,
    /// beside one that is not.
    #[test]
    fn numbers_are_numbers_everywhere() {
        let trace = parse(
            "1,a,1,3,0,set,9\n1,a,1,3,0,get,0\n2,b,1,50,0,set,0\n2,b,1,50,0,get,0\n3,a,1,0,0,incr,0\n3,a,1,0,0,decr,0\n",
        )
        .unwrap();
        let kinds: Vec<_> = trace.draws.iter().map(|draw| (draw.kind(), draw.value_len())).collect();
        let expected = [
            (Kind::Put, 8),
            (Kind::GetNumber, 8),
            (Kind::Put, 50),
            (Kind::Get, 0),
            (Kind::Increment, 8),
            (Kind::Decrement, 8),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(trace.draws[0].ttl_ms().map(std::num::NonZeroU32::get), Some(9_000));
        assert_eq!((trace.lens.min(), trace.lens.max()), (8, 50));
        assert_eq!(trace.memory_len, 1 + 8 + 48 + 1 + 50 + 48);
    }

    /// Goal: keys of every length are told apart and come out whole. Method: 1 to 255 bytes, each twice, among them some
    /// that begin alike.
    #[test]
    fn keys_of_every_length_are_kept() {
        let keys: Vec<String> = (1..=KEY_LEN_MAX).map(|len| "k".repeat(len)).collect();
        let row = |key: &String| format!("0,{key},{},0,0,get,0\n", key.len());
        let text: String = keys.iter().chain(keys.iter().rev()).map(row).collect();
        let trace = parse(&text).unwrap();
        assert_eq!((trace.keys.count(), trace.draws.len()), (KEY_LEN_MAX, 2 * KEY_LEN_MAX));
        for (number, key) in (0..).zip(&keys) {
            assert_eq!(trace.keys.key(number), Key::new(key.as_bytes()));
        }
        assert_eq!(trace.draws[KEY_LEN_MAX].record(), KEY_LEN_MAX as u32 - 1);
    }

    /// Goal: a broken row is refused with file, line and reason. Method: one good row, then each mistake.
    #[test]
    fn broken_rows_are_named() {
        let long = "k".repeat(256);
        for (row, reason) in [
            ("1,key,3,10,0,get", "line 2: 6 columns instead of 7: timestamp, anonymized key"),
            ("1,ke,y,3,10,0,get,0", "line 2: 8 columns instead of 7"),
            ("x,key,3,10,0,get,0", "line 2: the timestamp \"x\" is no whole number"),
            ("1,key,3.5,10,0,get,0", "line 2: the key size \"3.5\" is no whole number"),
            ("1,key,3,-1,0,get,0", "line 2: the value size \"-1\" is no whole number"),
            ("1,key,3,10,me,get,0", "line 2: the client id \"me\" is no whole number"),
            ("1,key,3,10,0,get,", "line 2: the TTL \"\" is no whole number"),
            ("1,key,3,10,0,GET,0", "line 2: the operation \"GET\" is none of get, gets, set"),
            ("1,,0,10,0,get,0", "line 2: a key of 0 bytes; keys have 1 to 255"),
            (&format!("1,{long},256,10,0,get,0"), "line 2: a key of 256 bytes"),
            ("1,key,3,1048577,0,set,0", "line 2: a value of 1048577 bytes; values have up to 1048576"),
        ] {
            let error = parse(&format!("1,key,3,10,0,get,0\n{row}\n")).unwrap_err().to_string();
            assert!(error.starts_with(&format!("a.csv: {reason}")), "{row}: {error}");
        }
        assert!(parse("").unwrap_err().to_string().contains("a.csv: a trace of no rows"));
        let error = format!("{:#}", Trace::read(Path::new("/nowhere.csv")).unwrap_err());
        assert!(error.starts_with("cannot read the trace \"/nowhere.csv\": "), "{error}");
    }

    /// Goal: sessions share out the rows by key, keep their order, lose none, and begin again at the end. Method: the sample
    /// trace over three sessions; too many sessions for one key.
    #[test]
    fn sessions_share_out_the_keys() {
        let trace = sample();
        let mut streams = trace.streams(3).unwrap();
        let mut owners = BTreeMap::new();
        let mut rows = 0;
        for (session, stream) in streams.iter().enumerate() {
            rows += stream.draws().len();
            for draw in stream.draws() {
                assert_eq!(*owners.entry(draw.record()).or_insert(session), session);
                assert_eq!(stream.key(draw), trace.keys.key(draw.record()));
            }
        }
        assert_eq!((rows, owners.len()), (trace.draws.len(), trace.keys.count()));
        for record in 0..trace.keys.count() as u32 {
            let of_key =
                |draws: &[Draw]| draws.iter().copied().filter(|draw| draw.record() == record).collect();
            let here: Vec<Draw> = of_key(streams[owners[&record]].draws());
            assert_eq!(here, of_key(&trace.draws));
        }
        let stream = &mut streams[0];
        let cycle = stream.draws().to_vec();
        assert_eq!(stream.by_ref().take(2 * cycle.len()).collect::<Vec<_>>(), [&cycle[..], &cycle].concat());
        let error = parse("1,a,1,0,0,get,0\n").unwrap().streams(2).unwrap_err().to_string();
        assert!(error.ends_with("give fewer --sessions, or fewer --threads"), "{error}");
    }

    /// Goal: shares add up to the whole and follow the rows, and it is said when they are far from equal, with the remedy. Method:
    /// the sample over one session and three; a trace of two keys, one of which has nine rows of ten.
    #[test]
    fn shares_follow_the_rows() {
        let trace = sample();
        assert_eq!(trace.share(&trace.streams(1).unwrap()[0]), 1.0);
        let streams = trace.streams(3).unwrap();
        let sum: f64 = streams.iter().map(|stream| trace.share(stream)).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        // Two keys that belong to different sessions.
        let session_of = |key: &String| key_hash(Key::new(key.as_bytes())) % 2;
        let keys: Vec<String> = (0..100).map(|number| format!("key{number}")).collect();
        let [rare, hot] = [0, 1].map(|session| keys.iter().find(|key| session_of(key) == session).unwrap());
        let row = |key: &str| format!("1,{key},4,1,0,get,0\n");
        let trace = parse(&(row(rare) + &row(hot).repeat(9))).unwrap();
        let streams = trace.streams(2).unwrap();
        assert_eq!([0, 1].map(|session| trace.share(&streams[session])), [0.1, 0.9]);
        let warning = trace.unevenness(&streams).unwrap();
        assert!(warning.starts_with("the sessions have from 1 to 9 rows of a.csv"), "{warning}");
        assert!(
            warning.ends_with("give --rate, which is shared out by rows, or fewer --sessions"),
            "{warning}"
        );
        let even = parse(&(row(rare).repeat(2) + &row(hot).repeat(3))).unwrap();
        assert_eq!(even.unevenness(&even.streams(2).unwrap()), None);
    }

    /// Goal: a file is read once, and says nothing of its rows when shown. Method: load it twice.
    #[test]
    fn a_file_is_read_once() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cache-trace.csv");
        let Ok(file) = path.parse::<TraceFile>();
        assert!(file.trace().is_none());
        let loaded = file.loaded().unwrap();
        let again = loaded.loaded().unwrap();
        assert!(Arc::ptr_eq(loaded.trace.as_ref().unwrap(), again.trace.as_ref().unwrap()));
        assert!(format!("{again:?}").len() < 500);
    }
}
