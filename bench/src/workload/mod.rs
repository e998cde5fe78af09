//! What a run does: workloads, how keys are chosen, how long values are, and the operations drawn from that.
//!
//! A sample of the Zipf law costs 40 to 220 ns, depending on the machine: more than all that the client otherwise spends
//! on an operation. The operations are therefore drawn before the clock starts, and the run repeats them.

mod draw;
mod inserts;
mod keys;
mod trace;
mod value_len;

use std::{
    error, fmt, iter,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use linerate_client::Key;
use rand::{
    RngExt, SeedableRng,
    distr::{Bernoulli, Distribution, Uniform},
    rngs::Xoshiro256PlusPlus,
};
use rand_distr::Zipf;
use serde::Serialize;

pub use self::{
    draw::{Draw, Kind},
    inserts::{INSERTS_MAX, INSERTS_MIN, InsertLane, Inserts},
    keys::{Hotspot, KeyDistribution, ScrambledZipf, Share, ShareError, Theta, ThetaError},
    trace::{KeyTable, Trace, TraceConfig, TraceFile},
    value_len::{LenTable, ValueLaw, ValueLen, ValueLenError},
};

/// Most records of a run, 2^31 - 1: a [`Draw`] has 31 bits for the record.
pub const RECORDS_MAX: u32 = i32::MAX as u32;

/// Most draws of a stream, 4 Mi: 64 MiB, repeated several times in a second of a fast run. Long enough
/// that a cycle touches the rarely used records too, and read in order, so that it does not displace what is hot.
pub const STREAM_LEN: usize = 4 << 20;

/// Streams that are drawn at most, 256 MiB of them: when there are more sessions, several go through the same one, each
/// beginning somewhere else.
pub const STREAMS_MAX: usize = 4;

/// Draws that are made in one go, with a seed of their own, so that several cores can work on one stream and the result
/// does not depend on how many. Some milliseconds.
const CHUNK_LEN: usize = 1 << 16;

/// What is done how often: the workloads of YCSB (Cooper et al., SoCC 2010, table 2), whose updates here replace the whole
/// value. There is no E, which scans: keys have no order here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// 50 % get, 50 % put.
    A,
    /// 95 % get, 5 % put.
    B,
    /// Gets only.
    C,
    /// 95 % get, 5 % insert a new record; the newest are read most unless another law is asked for.
    D,
    /// 50 % get, 50 % get and then put the same record.
    F,
}

impl Workload {
    /// Share of puts among the operations, 0 to 1. An insert is a put, and get and put at the same record are two operations.
    #[must_use]
    pub const fn put_share(self) -> f64 {
        match self {
            Self::A => 0.5,
            Self::B | Self::D => 0.05,
            Self::C => 0.0,
            Self::F => 1.0 / 3.0,
        }
    }

    /// What is done instead of a mere get, and how often, 0 to 1.
    const fn writes(self) -> (Kind, f64) {
        match self {
            Self::A | Self::B | Self::C => (Kind::Put, self.put_share()),
            Self::D => (Kind::Insert, 0.05),
            Self::F => (Kind::Rmw, 0.5),
        }
    }
}

impl FromStr for Workload {
    type Err = WorkloadError;

    fn from_str(text: &str) -> Result<Self, WorkloadError> {
        match text {
            "a" => Ok(Self::A),
            "b" => Ok(Self::B),
            "c" => Ok(Self::C),
            "d" => Ok(Self::D),
            "f" => Ok(Self::F),
            "e" => Err(WorkloadError::Scans),
            _ => Err(WorkloadError::Unknown),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::B => "b",
            Self::C => "c",
            Self::D => "d",
            Self::F => "f",
        })
    }
}

/// Why a workload is refused; displayed as one sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadError {
    /// YCSB's E.
    Scans,
    /// None of YCSB's.
    Unknown,
}

impl fmt::Display for WorkloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scans => {
                "workload e scans ranges of keys, which have no order here: give one of a, b, c, d, f"
            }
            Self::Unknown => "give one of a, b, c, d, f",
        })
    }
}

impl error::Error for WorkloadError {}

/// The operations of one session, for ever: as an iterator it never ends, but starts over.
#[derive(Clone, Debug)]
pub struct Stream {
    draws: Arc<[Draw]>,
    next: usize,
    /// Keys that do not fit a draw.
    keys: Option<Arc<KeyTable>>,
    /// What the sessions insert, and which session this one is.
    inserts: Option<(Arc<Inserts>, u32)>,
    is_plain: bool,
}

impl Stream {
    /// The same operations for another session, beginning at the share `part / parts` of the cycle.
    #[must_use]
    pub fn share(&self, part: usize, parts: usize) -> Self {
        Self { next: self.draws.len() * part / parts, ..self.clone() }
    }

    /// Whether it has nothing but gets and puts of records that have decimal keys and are known beforehand.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// The key of one of the draws.
    #[inline]
    #[must_use]
    pub fn key<'a>(&'a self, draw: &'a Draw) -> Key<'a> {
        match &self.keys {
            Some(keys) if draw.is_traced() => keys.key(draw.record()),
            _ => draw.key(),
        }
    }

    /// The state of this session's inserts, if it inserts.
    #[must_use]
    pub fn insert_lane(&self) -> Option<InsertLane> {
        self.inserts.as_ref().map(|(inserts, session)| inserts.lane(*session))
    }

    /// The operation that comes next. Borrowed rather than copied: a copy is written in parts and read whole, for which the
    /// CPU has to wait until the parts are in its cache.
    #[inline]
    #[must_use]
    pub fn current(&self) -> &Draw {
        &self.draws[self.next]
    }

    /// Goes on to the operation after it.
    #[inline]
    pub fn advance(&mut self) {
        self.next += 1;
        if self.next == self.draws.len() {
            self.next = 0;
        }
    }

    /// The operation that comes `ahead` operations after the next one, if that is in the same cycle.
    #[inline]
    #[must_use]
    pub fn ahead(&self, ahead: usize) -> Option<&Draw> {
        self.draws.get(self.next + ahead)
    }

    /// One cycle of the stream, from its beginning.
    #[must_use]
    pub fn draws(&self) -> &[Draw] {
        &self.draws
    }
}

impl Iterator for Stream {
    type Item = Draw;

    #[inline]
    fn next(&mut self) -> Option<Draw> {
        let draw = *self.current();
        self.advance();
        Some(draw)
    }
}

/// From which law streams are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StreamLaw {
    /// What is done how often.
    pub workload: Workload,
    /// Share of gets instead of the workload's; the others are puts.
    pub read_share: Option<Share>,
    /// How records are chosen.
    pub keys: KeyDistribution,
    /// Number of records, 1 to [`RECORDS_MAX`].
    pub records: u32,
}

impl StreamLaw {
    /// Share of puts among the operations, 0 to 1.
    #[must_use]
    pub fn put_share(&self) -> f64 {
        self.read_share.map_or_else(|| self.workload.put_share(), |share| 1.0 - share.value())
    }
}

/// Draws `count` streams of `len` operations each, on all cores that the calling thread may use.
///
/// The streams depend on `law`, `len` and `seed` alone, and the first ones are the same whatever `count` is; each is
/// independent of the others. A shorter stream is the beginning of a longer one. Meanwhile `progress` is called from several
/// threads with the number of operations drawn since its last call, some hundred times a second; in all that makes `count ×
/// len`.
///
/// # Panics
/// When `len` or the number of records is 0, or the latter beyond [`RECORDS_MAX`]: settings are checked at start.
pub fn draw_streams(
    law: &StreamLaw,
    count: usize,
    len: usize,
    seed: u64,
    progress: impl Fn(usize) + Sync,
) -> Vec<Stream> {
    assert!(len > 0, "a stream of no operations");
    assert!((1..=RECORDS_MAX).contains(&law.records), "{} records", law.records);
    let mut streams: Vec<Arc<[Draw]>> =
        (0..count).map(|_| iter::repeat_n(Draw::default(), len).collect()).collect();

    let mut stream_seeds = Xoshiro256PlusPlus::seed_from_u64(seed);
    let chunks = Mutex::new(streams.iter_mut().flat_map(|draws| {
        let mut chunk_seeds = stream_seeds.fork();
        let draws = Arc::get_mut(draws).expect("nobody else has it yet");
        draws.chunks_mut(CHUNK_LEN).map(move |chunk| (chunk, chunk_seeds.fork()))
    }));
    let worker = || {
        // The lock is held for as long as it takes to step to the next chunk; a panicked thread ends the run anyway.
        while let Some((chunk, mut random)) = { chunks.lock().unwrap_or_else(PoisonError::into_inner).next() }
        {
            draw_chunk(law, chunk, &mut random);
            progress(chunk.len());
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        // One worker is the calling thread, which would only wait; without the others it does it all.
        (1..workers).for_each(|_| drop(thread::Builder::new().spawn_scoped(scope, worker)));
        worker();
    });
    let is_plain =
        law.read_share.is_some() || matches!(law.workload, Workload::A | Workload::B | Workload::C);
    let stream = |draws| Stream { draws, next: 0, keys: None, inserts: None, is_plain };
    streams.into_iter().map(stream).collect()
}

fn draw_chunk(law: &StreamLaw, chunk: &mut [Draw], random: &mut Xoshiro256PlusPlus) {
    let (write, share) = match law.read_share {
        Some(_) => (Kind::Put, law.put_share()),
        None => law.workload.writes(),
    };
    let writes = Bernoulli::new(share).expect("shares are probabilities");
    let read = match (law.workload, law.keys) {
        (Workload::D, KeyDistribution::Latest(_)) => Kind::GetLatest,
        _ => Kind::Get,
    };
    let mut fill = |mut record: Box<dyn FnMut(&mut Xoshiro256PlusPlus) -> u32>| {
        chunk.fill_with(|| {
            let record = record(random);
            Draw::new(record, if writes.sample(random) { write } else { read })
        });
    };
    let range = |from, until| Uniform::new(from, until).expect("at least one record");
    let last = law.records - 1;
    let zipf = |theta: Theta| {
        let ranks = Zipf::new(f64::from(law.records), theta.exponent()).expect("at least one record, θ ≥ 0");
        // Ranks start at 1. Rounding inside the sampler could yield a rank one beyond the last.
        move |random: &mut Xoshiro256PlusPlus| (ranks.sample(random) as u32 - 1).min(last)
    };
    match law.keys {
        KeyDistribution::Uniform => {
            let records = range(0, law.records);
            fill(Box::new(move |random| records.sample(random)));
        }
        KeyDistribution::Zipf(theta) => fill(Box::new(zipf(theta))),
        KeyDistribution::Latest(theta) => {
            let rank = zipf(theta);
            fill(Box::new(move |random| last - rank(random)));
        }
        KeyDistribution::Scrambled(theta) => {
            let (ranks, records) = (ScrambledZipf::new(theta), law.records);
            fill(Box::new(move |random| ScrambledZipf::record(ranks.rank(random.random()), records)));
        }
        KeyDistribution::Hotspot(hotspot) => {
            let hot = hotspot.hot(law.records);
            let is_hot = Bernoulli::new(hotspot.hot_share(law.records)).expect("shares are probabilities");
            let (hot_ones, cold_ones) = (range(0, hot), range(hot.min(last), law.records));
            fill(Box::new(move |random| {
                if is_hot.sample(random) { hot_ones.sample(random) } else { cold_ones.sample(random) }
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        ops::Range,
        sync::atomic::{AtomicUsize, Ordering},
        time::Instant,
    };

    use super::{keys::harmonic, *};

    const SEED: u64 = 20_260_101;

    fn law(workload: Workload, keys: KeyDistribution, records: u32) -> StreamLaw {
        StreamLaw { workload, read_share: None, keys, records }
    }

    fn zipf(theta: f64) -> KeyDistribution {
        KeyDistribution::Zipf(Theta::new(theta).unwrap())
    }

    fn draw_one(law: &StreamLaw, len: usize) -> Stream {
        println!("seed {SEED}, {law:?}");
        draw_streams(law, 1, len, SEED, |_| ()).remove(0)
    }

    /// Probability of each range of records, added up from the definition of the law.
    fn exact(theta: f64, records: u32, cells: &[Range<u32>]) -> Vec<f64> {
        let weight = |record: u32| (f64::from(record) + 1.0).powf(-theta);
        let total: f64 = (0..records).rev().map(weight).sum();
        cells.iter().map(|cell| cell.clone().rev().map(weight).sum::<f64>() / total).collect()
    }

    /// χ² of the counts in `cells` against the probabilities, in standard deviations above its expectation: its mean
    /// is the degrees of freedom, its variance twice that.
    fn chi_square_sigmas(stream: &Stream, cells: &[Range<u32>], probabilities: &[f64]) -> f64 {
        sigmas(stream.draws().iter().map(Draw::record), cells, probabilities)
    }

    fn sigmas(records: impl Iterator<Item = u32>, cells: &[Range<u32>], probabilities: &[f64]) -> f64 {
        let mut counts = vec![0_u32; cells.len()];
        for record in records {
            counts[cells.partition_point(|cell| cell.end <= record)] += 1;
        }
        let total: f64 = counts.iter().copied().map(f64::from).sum();
        let chi_square: f64 = counts
            .iter()
            .zip(probabilities)
            .map(|(&count, probability)| {
                let expected = total * probability;
                assert!(expected > 5.0, "a cell with too few draws for the test to mean anything");
                (f64::from(count) - expected).powi(2) / expected
            })
            .sum();
        let freedom = cells.len() as f64 - 1.0;
        (chi_square - freedom) / (2.0 * freedom).sqrt()
    }

    /// The first 64 records one by one, the rest in ranges that double.
    fn cells(records: u32) -> Vec<Range<u32>> {
        let mut cells: Vec<_> = (0..records.min(64)).map(|record| record..record + 1).collect();
        let mut start = 64;
        while start < records {
            let end = start.saturating_mul(2).min(records);
            // A short last range would have too few draws of its own.
            let end = if records - end < end / 2 { records } else { end };
            cells.push(start..end);
            start = end;
        }
        cells
    }

    /// Goal: Zipf streams follow the exact law, from the hottest record to the cold end. Method: χ² over single
    /// records and doubling ranges, for exponents below, near, at and above 1 and for few records; five standard
    /// deviations are beyond chance, and the seed is fixed.
    #[test]
    fn zipf_streams_follow_the_exact_law() {
        for (theta, records) in
            [(0.99, 1_000_000), (0.5, 10_000), (1.0, 1_000), (1.2, 10_000), (0.99, 3), (0.0, 500)]
        {
            let stream = draw_one(&law(Workload::B, zipf(theta), records), 1 << 18);
            let cells = cells(records);
            let sigmas = chi_square_sigmas(&stream, &cells, &exact(theta, records, &cells));
            assert!(sigmas < 5.0, "θ = {theta}, {records} records: {sigmas:.1} σ");
        }
    }

    /// Goal: the test above would notice a wrong law. Method: compare a stream with a slightly different exponent.
    #[test]
    fn a_slightly_different_law_is_noticed() {
        let stream = draw_one(&law(Workload::B, zipf(0.97), 1_000_000), 1 << 18);
        let cells = cells(1_000_000);
        let sigmas = chi_square_sigmas(&stream, &cells, &exact(0.99, 1_000_000, &cells));
        assert!(sigmas > 20.0, "{sigmas:.1} σ");
    }

    /// Goal: the figure that the reports quote: the hottest of a million records has 6.5 % at θ = 0.99, and it is
    /// record 0. Method: the exact law, and a stream within five standard deviations (0.24 %) of it.
    #[test]
    fn the_hottest_record_has_six_and_a_half_per_cent() {
        let share = exact(0.99, 1_000_000, &cells(1_000_000))[0];
        assert!((share - 0.065).abs() < 0.000_5, "{share}");
        let stream = draw_one(&law(Workload::B, zipf(0.99), 1_000_000), 1 << 18);
        let drawn = stream.draws().iter().filter(|draw| draw.record() == 0).count() as f64 / 2_f64.powi(18);
        assert!((drawn - share).abs() < 0.002_4, "{drawn} for {share}");
    }

    /// Goal: uniform streams are uniform and reach both ends. Method: χ² over a hundred equal ranges.
    #[test]
    fn uniform_streams_are_uniform() {
        let stream = draw_one(&law(Workload::B, KeyDistribution::Uniform, 1_000), 1 << 18);
        let cells: Vec<_> = (0..100).map(|cell| cell * 10..cell * 10 + 10).collect();
        let sigmas = chi_square_sigmas(&stream, &cells, &[0.01; 100]);
        assert!(sigmas < 5.0, "{sigmas:.1} σ");
        for end in [0, 999] {
            assert!(stream.draws().iter().any(|draw| draw.record() == end));
        }
    }

    /// Probability of each of a few records under YCSB's scrambled law: Gray's formula for the ranks and signed arithmetic
    /// for the hash, written down again as YCSB has them. The first ranks are added up one by one. The others, each with
    /// less than 1.5e-7, are taken to be spread evenly: by their hash they fall on records independently, which leaves
    /// of 1,000 records each 0.3 % off at θ = 0.99, a twentieth of what chance does to the counts.
    fn exact_scrambled(theta: f64, records: u32) -> Vec<f64> {
        const SUMMED: i64 = 1 << 18;
        let items = 10_000_000_001_f64;
        let zeta = if theta == 0.99 { 26.469_028_201_783_02 } else { harmonic(items, theta) };
        let two = 1.0 + 0.5_f64.powf(theta);
        let eta = (1.0 - (2.0 / items).powf(1.0 - theta)) / (1.0 - two / zeta);
        // Numbers below this yield lower ranks.
        let begins = |rank: i64| match rank {
            0 => 0.0,
            1 => 1.0 / zeta,
            _ => ((rank as f64 / items).powf(1.0 - theta) - 1.0 + eta) / eta,
        };
        let mut shares = vec![(1.0 - begins(SUMMED)) / f64::from(records); records as usize];
        for rank in 0..SUMMED {
            let (mut rest, mut hash) = (rank, -3_750_763_034_362_895_579_i64);
            for _ in 0..8 {
                hash = (hash ^ (rest & 255)).wrapping_mul(1_099_511_628_211);
                rest >>= 8;
            }
            shares[(hash.abs() % i64::from(records)) as usize] += begins(rank + 1) - begins(rank);
        }
        shares
    }

    /// Goal: scrambled streams follow YCSB's law, record by record. Method: χ² over all of a thousand records; the plain law
    /// is far from it.
    #[test]
    fn scrambled_streams_follow_ycsb() {
        let cells: Vec<_> = (0..1_000).map(|record| record..record + 1).collect();
        for theta in [0.99, 0.5, 1.2] {
            let keys = KeyDistribution::Scrambled(Theta::new(theta).unwrap());
            let stream = draw_one(&law(Workload::B, keys, 1_000), 1 << 18);
            let shares = exact_scrambled(theta, 1_000);
            let sigmas = chi_square_sigmas(&stream, &cells, &shares);
            assert!(sigmas < 5.0, "θ = {theta}: {sigmas:.1} σ");
            let hottest = shares.into_iter().fold(0.0, f64::max);
            assert!((keys.hottest_share(1_000) / hottest - 1.0).abs() < 0.01, "θ = {theta}: {hottest}");
        }
        let plain = draw_one(&law(Workload::B, zipf(0.99), 1_000), 1 << 18);
        let sigmas = chi_square_sigmas(&plain, &cells, &exact_scrambled(0.99, 1_000));
        assert!(sigmas > 20.0, "{sigmas:.1} σ");
    }

    /// Goal: the latest law is Zipf's from the newest record back, with inserts and without. Method: χ² over the ages of what
    /// is read, in workload b, in d before anything is inserted, and in d with inserts acknowledged.
    #[test]
    fn latest_streams_follow_the_exact_law() {
        const RECORDS: u32 = 10_000;
        let keys = KeyDistribution::Latest(Theta::YCSB);
        let cells = cells(RECORDS);
        let shares = exact(0.99, RECORDS, &cells);
        let check = |records: &mut dyn Iterator<Item = u32>, newest: u32| {
            let sigmas = sigmas(records.map(|record| newest - record), &cells, &shares);
            assert!(sigmas < 5.0, "newest {newest}: {sigmas:.1} σ");
        };
        let stream = draw_one(&law(Workload::B, keys, RECORDS), 1 << 18);
        check(&mut stream.draws().iter().map(Draw::record), RECORDS - 1);
        let mut streams = [draw_one(&law(Workload::D, keys, RECORDS), 1 << 18)];
        Inserts::begin(RECORDS, 0, INSERTS_MAX, &mut streams).unwrap();
        let mut lane = streams[0].insert_lane().unwrap();
        let gets: Vec<_> =
            streams[0].draws().iter().filter(|draw| draw.kind() == Kind::GetLatest).copied().collect();
        let resolved = |lane: &InsertLane, draw: &Draw| lane.resolve(draw).unwrap().record();
        check(&mut gets.iter().map(|draw| resolved(&lane, draw)), RECORDS - 1);
        for _ in 0..3_000 {
            let insert = lane.resolve(&Draw::new(0, Kind::Insert)).unwrap();
            lane.pushed();
            lane.ended(insert.record());
        }
        lane.look();
        check(&mut gets.iter().map(|draw| resolved(&lane, draw)), RECORDS + 2_999);
    }

    /// Goal: a hotspot gets its share, and within and without all records are alike. Method: χ² over a hundred equal ranges,
    /// for a hot set, a cold one, none to speak of, and all.
    #[test]
    fn hotspot_streams_follow_the_exact_law() {
        let share = |share: f64| Share::new(share).unwrap();
        for (set, ops) in [(0.2, 0.8), (0.5, 0.1), (0.01, 0.5), (1.0, 0.3), (0.0, 0.2)] {
            let hotspot = Hotspot { set: share(set), ops: share(ops) };
            let stream = draw_one(&law(Workload::B, KeyDistribution::Hotspot(hotspot), 1_000), 1 << 18);
            // At least one record is hot.
            let hot = if set == 0.0 { 1 } else { (set * 1_000.0) as u32 };
            let starts = iter::once(0).chain((hot.min(10)..1_000).step_by(10));
            let cells: Vec<_> = starts
                .map(|start| start..if start == 0 { hot.min(10) } else { (start + 10).min(1_000) })
                .collect();
            let shares: Vec<f64> = cells
                .iter()
                .map(|cell| {
                    let hot_ones = f64::from(cell.end.min(hot).saturating_sub(cell.start));
                    let cold_ones = f64::from(cell.end - cell.start) - hot_ones;
                    if hot == 1_000 {
                        hot_ones / 1_000.0
                    } else {
                        ops * hot_ones / f64::from(hot) + (1.0 - ops) * cold_ones / f64::from(1_000 - hot)
                    }
                })
                .collect();
            let sigmas = chi_square_sigmas(&stream, &cells, &shares);
            assert!(sigmas < 5.0, "{set}, {ops}: {sigmas:.1} σ");
        }
    }

    /// Goal: each workload has its kinds of operations in their shares, under every law of keys, on hot records as on others; so
    /// has a share of gets. Method: counts within five standard deviations of the binomial law.
    #[test]
    fn workloads_have_their_share_of_puts() {
        let laws = [
            zipf(0.99),
            KeyDistribution::Uniform,
            KeyDistribution::Scrambled(Theta::YCSB),
            KeyDistribution::Latest(Theta::YCSB),
            KeyDistribution::Hotspot(Hotspot::YCSB),
        ];
        let share = |share: f64| Some(Share::new(share).unwrap());
        for keys in laws {
            let read = |latest: bool| if latest { Kind::GetLatest } else { Kind::Get };
            for (workload, read_share, write, writes, read) in [
                (Workload::A, None, Kind::Put, 0.5, Kind::Get),
                (Workload::B, None, Kind::Put, 0.05, Kind::Get),
                (Workload::C, None, Kind::Put, 0.0, Kind::Get),
                (Workload::D, None, Kind::Insert, 0.05, read(matches!(keys, KeyDistribution::Latest(_)))),
                (Workload::F, None, Kind::Rmw, 0.5, Kind::Get),
                (Workload::B, share(0.8), Kind::Put, 0.2, Kind::Get),
                (Workload::B, share(0.0), Kind::Put, 1.0, Kind::Get),
                (Workload::B, share(1.0), Kind::Put, 0.0, Kind::Get),
            ] {
                let law = StreamLaw { read_share, ..law(workload, keys, 1_000) };
                let stream = draw_one(&law, 1 << 16);
                let mut counts = vec![0; 1_000];
                stream.draws().iter().for_each(|draw| counts[draw.record() as usize] += 1);
                let hottest = (0..1_000).max_by_key(|&record| counts[record as usize]).unwrap();
                let on_hottest = stream.draws().iter().filter(|draw| draw.record() == hottest).copied();
                for draws in [stream.draws(), &on_hottest.collect::<Vec<_>>()] {
                    let count = draws.len() as f64;
                    let found = draws.iter().filter(|draw| draw.kind() == write).count() as f64;
                    let others = draws.iter().filter(|draw| draw.kind() == read).count() as f64;
                    let tolerance = 5.0 * (count * writes * (1.0 - writes)).sqrt();
                    assert!((found - count * writes).abs() <= tolerance, "{law:?}: {found} of {count}");
                    assert_eq!(found + others, count);
                }
            }
        }
        assert_eq!([Workload::A, Workload::B, Workload::C].map(Workload::put_share), [0.5, 0.05, 0.0]);
        assert_eq!([Workload::D, Workload::F].map(Workload::put_share), [0.05, 1.0 / 3.0]);
    }

    /// Goal: workloads are read by their letters, and what there is not is refused with the reason. Method: each.
    #[test]
    fn workloads_are_named() {
        for workload in [Workload::A, Workload::B, Workload::C, Workload::D, Workload::F] {
            assert_eq!(workload.to_string().parse(), Ok(workload));
        }
        let error = |text: &str| text.parse::<Workload>().unwrap_err().to_string();
        assert_eq!(
            error("e"),
            "workload e scans ranges of keys, which have no order here: give one of a, b, c, d, f"
        );
        assert_eq!(error("B"), "give one of a, b, c, d, f");
    }

    /// Goal: seeds decide everything: the same seed gives the same streams whatever their number, another seed or
    /// another session different ones, and no chunk repeats another. Method: compare, with a last chunk that is short.
    #[test]
    fn streams_depend_on_their_seed_alone() {
        const LEN: usize = 2 * CHUNK_LEN + 5;
        let law = law(Workload::A, KeyDistribution::Uniform, RECORDS_MAX);
        let draw = |count, seed| draw_streams(&law, count, LEN, seed, |_| ());
        let (one, three, other) = (draw(1, SEED), draw(3, SEED), draw(1, SEED + 1));
        assert!(one[0].draws() == three[0].draws());
        let shorter = draw_streams(&law, 3, CHUNK_LEN + 9, SEED, |_| ());
        for (shorter, longer) in shorter.iter().zip(&three) {
            assert!(shorter.draws() == &longer.draws()[..CHUNK_LEN + 9]);
        }
        let chunks = three.iter().chain(&other).flat_map(|stream| stream.draws().chunks(CHUNK_LEN));
        // Two streams of this length agree in five places about once in 10^45 tries.
        let mut starts: Vec<_> =
            chunks.map(|chunk| chunk[..5].iter().map(|draw| draw.operation).collect::<Vec<_>>()).collect();
        assert_eq!(starts.len(), 12);
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), 12);
    }

    /// Goal: a stream starts over at its end, without losing or repeating a draw. Method: three cycles and a bit of a
    /// short one against its draws.
    #[test]
    fn streams_start_over() {
        let stream = draw_one(&law(Workload::A, KeyDistribution::Uniform, 1_000), 7);
        let cycle = stream.draws().to_vec();
        let drawn: Vec<_> = stream.take(24).collect();
        assert_eq!(drawn, [&cycle[..], &cycle, &cycle, &cycle[..3]].concat());
    }

    /// Goal: a stream that says it is plain is. Method: the kinds of its draws, for each workload.
    #[test]
    fn plain_streams_have_gets_and_puts_alone() {
        for workload in [Workload::A, Workload::B, Workload::C, Workload::D, Workload::F] {
            let keys =
                if workload == Workload::D { KeyDistribution::Latest(Theta::YCSB) } else { zipf(0.99) };
            let stream = draw_one(&law(workload, keys, 1_000), 1 << 12);
            let has_others = stream.draws().iter().any(|draw| !matches!(draw.kind(), Kind::Get | Kind::Put));
            assert_eq!(stream.is_plain(), !has_others, "{workload}");
        }
    }

    /// Goal: progress adds up to what was asked for. Method: count the calls' arguments.
    #[test]
    fn progress_adds_up() {
        let drawn = AtomicUsize::new(0);
        let count = |operations| {
            drawn.fetch_add(operations, Ordering::Relaxed);
        };
        let law = law(Workload::C, KeyDistribution::Uniform, 1);
        let streams = draw_streams(&law, 3, CHUNK_LEN + 1, SEED, count);
        assert_eq!(drawn.into_inner(), 3 * (CHUNK_LEN + 1));
        assert!(streams.iter().flat_map(|stream| stream.draws()).all(|&draw| draw == Draw::default()));
        assert!(draw_streams(&law, 0, 1, SEED, |_| ()).is_empty());
    }

    /// Goal: sessions that share a stream go through the same operations, each from its own place. Method: two thirds of
    /// a stream, and the whole cycle after it.
    #[test]
    fn a_shared_stream_begins_elsewhere() {
        let stream = draw_one(&law(Workload::A, zipf(0.99), 1_000), 300);
        let shared = stream.share(2, 3);
        let cycle: Vec<_> = shared.take(300).collect();
        assert_eq!(cycle, [&stream.draws()[200..], &stream.draws()[..200]].concat());
    }

    /// Goal: what drawing costs can be looked up any time. Method: one chunk of each distribution on this thread;
    /// printed, never asserted.
    #[test]
    fn ns_per_draw() {
        let others = [KeyDistribution::Scrambled(Theta::YCSB), KeyDistribution::Hotspot(Hotspot::YCSB)];
        for keys in [KeyDistribution::Uniform, zipf(0.99)].into_iter().chain(others) {
            let mut chunk = vec![Draw::default(); CHUNK_LEN];
            let start = Instant::now();
            let law = law(Workload::B, keys, 1_000_000);
            draw_chunk(&law, &mut chunk, &mut Xoshiro256PlusPlus::seed_from_u64(SEED));
            println!("{:.1} ns per draw, {keys}", start.elapsed().as_nanos() as f64 / CHUNK_LEN as f64);
        }
    }
}
