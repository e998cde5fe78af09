//! What a run does: workloads, how keys are chosen, how long values are, and the operations drawn from that.
//!
//! A sample of the Zipf law costs 40 to 220 ns, depending on the machine: more than all that the client otherwise spends
//! on an operation. The operations are therefore drawn before the clock starts, and the run repeats them.

use std::{
    error, fmt, iter,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use clap::ValueEnum;
use linerate_client::{HEAD_LEN, Key};
use linerate_proto::wire::{Operation, VALUE_LEN_MAX};
use rand::{
    SeedableRng,
    distr::{Bernoulli, Distribution, Uniform},
    rngs::Xoshiro256PlusPlus,
};
use rand_distr::Zipf;
use serde::{Serialize, Serializer};
use zerocopy::{Immutable, IntoBytes};

use crate::key::{KeyBuffer, key_len};

/// Most records of a run, 2^31 - 1: a [`Draw`] has 31 bits for the record.
pub const RECORDS_MAX: u32 = i32::MAX as u32;

/// Draws of a stream unless said otherwise, 4 Mi: 64 MiB, repeated several times in a second of a fast run. Long enough
/// that a cycle touches the rarely used records too, and read in order, so that it does not displace what is hot.
pub const STREAM_LEN: usize = 4 << 20;

/// Streams that are drawn at most, 256 MiB of them: when there are more threads, several go through the same one, each
/// beginning somewhere else.
pub const STREAMS_MAX: usize = 4;

/// Draws that are made in one go, with a seed of their own, so that several cores can work on one stream and the result
/// does not depend on how many. Some milliseconds.
const CHUNK_LEN: usize = 1 << 16;

/// Share of gets and puts: the workloads A, B and C of YCSB (Cooper et al., SoCC 2010, table 2), whose updates here
/// replace the whole value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// 50 % get, 50 % put.
    A,
    /// 95 % get, 5 % put.
    B,
    /// Gets only.
    C,
}

impl Workload {
    /// Share of puts among the operations, 0 to 1.
    #[must_use]
    pub const fn put_share(self) -> f64 {
        match self {
            Self::A => 0.5,
            Self::B => 0.05,
            Self::C => 0.0,
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::B => "b",
            Self::C => "c",
        })
    }
}

/// Exponent of a Zipf law, 0 to 10: 0 is uniform, and at 10 all but a thousandth of the operations are on one record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Theta(f64);

impl Theta {
    /// YCSB's usual exponent.
    pub const YCSB: Self = Self(0.99);

    /// Takes an exponent.
    ///
    /// # Errors
    /// When it is not a number from 0 to 10.
    pub fn new(theta: f64) -> Result<Self, ThetaError> {
        if (0.0..=10.0).contains(&theta) { Ok(Self(theta)) } else { Err(ThetaError(theta.to_string())) }
    }

    /// The exponent.
    #[must_use]
    pub const fn exponent(self) -> f64 {
        self.0
    }
}

impl FromStr for Theta {
    type Err = ThetaError;

    fn from_str(text: &str) -> Result<Self, ThetaError> {
        text.trim().parse().map_err(|_| ThetaError(text.to_owned())).and_then(Self::new)
    }
}

impl fmt::Display for Theta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What was given as a Zipf exponent and is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThetaError(String);

impl fmt::Display for ThetaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the Zipf exponent \"{}\" is not allowed; it is a number from 0 (uniform) to 10, as in 0.99",
            self.0
        )
    }
}

impl error::Error for ThetaError {}

/// How the record of an operation is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeyDistribution {
    /// All records alike.
    Uniform,
    /// Record `i` with a probability proportional to 1 / (i + 1)^θ. This is the plain law over the records themselves:
    /// record 0 is the hottest, record 1 the next, and with a million records and θ = 0.99 record 0 gets 6.5 % of the
    /// operations. (YCSB's "scrambled" one draws from 10^10 items and hashes them; its hottest record gets 3.8 %. The
    /// order of the records means nothing to linerate, which places keys by their hash.)
    Zipf(Theta),
}

impl KeyDistribution {
    /// `uniform` or `zipf`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf(_) => "zipf",
        }
    }

    /// Exponent of the law; that of a uniform one is 0.
    #[must_use]
    pub const fn exponent(self) -> f64 {
        match self {
            Self::Uniform => 0.0,
            Self::Zipf(theta) => theta.exponent(),
        }
    }
}

impl fmt::Display for KeyDistribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => write!(f, "uniform"),
            Self::Zipf(theta) => write!(f, "Zipf {theta}"),
        }
    }
}

/// Lengths of values in bytes: always the same (`128`), or any from a range with the same probability (`64-256`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueLen {
    min: u32,
    max: u32,
}

impl ValueLen {
    /// Longest value. One that does not fit a datagram travels in pieces.
    pub const MAX: usize = VALUE_LEN_MAX;

    /// Values of `min` to `max` bytes, both included.
    ///
    /// # Errors
    /// When the range runs backwards or reaches beyond [`Self::MAX`].
    pub const fn new(min: usize, max: usize) -> Result<Self, ValueLenError> {
        if min > max {
            return Err(ValueLenError::Backwards { min, max });
        }
        if max > Self::MAX {
            return Err(ValueLenError::TooLong { len: max, max: Self::MAX });
        }
        Ok(Self { min: min as u32, max: max as u32 })
    }

    /// Checks that each value fits a datagram together with the longest key of `records` records.
    ///
    /// # Errors
    /// [`ValueLenError::TooLong`] when the longest does not.
    pub const fn check_fits_datagram(self, records: u32) -> Result<(), ValueLenError> {
        let max = Operation::inline_value_len_max(key_len(records.saturating_sub(1)));
        if self.max() > max { Err(ValueLenError::TooLong { len: self.max(), max }) } else { Ok(()) }
    }

    /// Shortest length.
    #[inline]
    #[must_use]
    pub const fn min(self) -> usize {
        self.min as usize
    }

    /// Longest length.
    #[inline]
    #[must_use]
    pub const fn max(self) -> usize {
        self.max as usize
    }

    /// Whether `len` is one of the lengths.
    #[inline]
    #[must_use]
    pub const fn contains(self, len: usize) -> bool {
        self.min() <= len && len <= self.max()
    }

    /// The length that belongs to a uniformly random number.
    #[inline]
    #[must_use]
    pub const fn pick(self, random: u32) -> usize {
        // Scales instead of dividing (Lemire, "Fast random integer generation in an interval", 2019). Without his
        // rejection step a length is off its probability by at most 1 in 2^12 if there are 2^20 of them, 1 in 2^22 if
        // there are a thousand.
        let count = (self.max - self.min) as u64 + 1;
        self.min() + ((random as u64 * count) >> 32) as usize
    }
}

impl FromStr for ValueLen {
    type Err = ValueLenError;

    fn from_str(text: &str) -> Result<Self, ValueLenError> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let parse = |len: &str| len.trim().parse().map_err(|_| ValueLenError::Malformed(text.to_owned()));
        Self::new(parse(min)?, parse(max)?)
    }
}

impl fmt::Display for ValueLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min) } else { write!(f, "{}-{}", self.min, self.max) }
    }
}

/// A number when there is one length, the text `64-256` when there are many: what was asked for, in both cases.
impl Serialize for ValueLen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.min == self.max { serializer.serialize_u32(self.min) } else { serializer.collect_str(self) }
    }
}

/// Why a length of values is refused; displayed as one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueLenError {
    /// Neither a number nor a range of two.
    Malformed(String),
    /// The range counts down.
    Backwards {
        /// Its left end.
        min: usize,
        /// Its right end, smaller.
        max: usize,
    },
    /// No value can have `len` bytes.
    TooLong {
        /// What was asked for.
        len: usize,
        /// What would fit.
        max: usize,
    },
}

impl fmt::Display for ValueLenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(text) => write!(
                f,
                "the value length \"{text}\" is neither a number of bytes like 128 nor a range like 64-256, within 0 to {}",
                ValueLen::MAX
            ),
            Self::Backwards { min, max } => {
                write!(f, "the range of value lengths {min}-{max} runs backwards; write {max}-{min}")
            }
            Self::TooLong { len, max } => {
                write!(f, "values of {len} bytes are too long; the allowed lengths are 0 to {max} bytes")
            }
        }
    }
}

impl error::Error for ValueLenError {}

/// One operation of a [`Stream`]: which record, its key, and whether to put.
///
/// The key is written out here, since making it costs as much as all else that the client does with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Immutable, IntoBytes)]
#[repr(C)]
pub struct Draw {
    key: [u8; 11],
    key_len: u8,
    /// The record in the low 31 bits, and in the highest whether it is a put.
    operation: u32,
}

const _: () = assert!(size_of::<Draw>() == HEAD_LEN);

impl Draw {
    const PUT: u32 = 1 << 31;

    fn new(record: u32, is_put: bool) -> Self {
        debug_assert!(record < RECORDS_MAX);
        let mut buffer = KeyBuffer::new();
        let key = buffer.key(record);
        let mut draw = Self {
            key: [0; 11],
            key_len: key.len() as u8,
            operation: record | if is_put { Self::PUT } else { 0 },
        };
        draw.key[..key.len()].copy_from_slice(key.bytes());
        draw
    }

    /// A put of `record`.
    #[must_use]
    pub fn put(record: u32) -> Self {
        Self::new(record, true)
    }

    /// Index of the record, 0 to `records - 1`.
    #[inline]
    #[must_use]
    pub const fn record(&self) -> u32 {
        self.operation & !Self::PUT
    }

    /// Key of the record.
    #[inline]
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        Key::in_window(zerocopy::transmute_ref!(self), self.key_len.into())
    }

    /// Whether to put; otherwise get.
    #[inline]
    #[must_use]
    pub const fn is_put(&self) -> bool {
        self.operation & Self::PUT != 0
    }
}

impl Default for Draw {
    fn default() -> Self {
        Self::new(0, false)
    }
}

/// The operations of one client thread, for ever: as an iterator it never ends, but starts over.
#[derive(Clone, Debug)]
pub struct Stream {
    draws: Arc<[Draw]>,
    next: usize,
}

impl Stream {
    /// The same operations for another thread, beginning at the share `part / parts` of the cycle.
    #[must_use]
    pub fn share(&self, part: usize, parts: usize) -> Self {
        Self { draws: Arc::clone(&self.draws), next: self.draws.len() * part / parts }
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
        let draw = self.draws[self.next];
        self.next += 1;
        if self.next == self.draws.len() {
            self.next = 0;
        }
        Some(draw)
    }
}

/// From which law streams are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StreamLaw {
    /// Share of puts.
    pub workload: Workload,
    /// How records are chosen.
    pub keys: KeyDistribution,
    /// Number of records, 1 to [`RECORDS_MAX`].
    pub records: u32,
}

/// Draws `count` streams of `len` operations each, on all cores that the calling thread may use.
///
/// The streams depend on `law`, `len` and `seed` alone, and the first ones are the same whatever `count` is; each is
/// independent of the others. Meanwhile `progress` is called from several threads with the number of operations drawn
/// since its last call, some hundred times a second; in all that makes `count × len`.
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
    streams.into_iter().map(|draws| Stream { draws, next: 0 }).collect()
}

fn draw_chunk(law: &StreamLaw, chunk: &mut [Draw], random: &mut Xoshiro256PlusPlus) {
    let puts = Bernoulli::new(law.workload.put_share()).expect("shares are probabilities");
    match law.keys {
        KeyDistribution::Uniform => {
            let records = Uniform::new(0, law.records).expect("at least one record");
            chunk.fill_with(|| Draw::new(records.sample(random), puts.sample(random)));
        }
        KeyDistribution::Zipf(theta) => {
            let ranks =
                Zipf::new(f64::from(law.records), theta.exponent()).expect("at least one record, θ ≥ 0");
            // Ranks start at 1. Rounding inside the sampler could yield a rank one beyond the last.
            let last = law.records - 1;
            chunk.fill_with(|| Draw::new((ranks.sample(random) as u32 - 1).min(last), puts.sample(random)));
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

    use super::*;

    const SEED: u64 = 20_260_101;

    fn law(workload: Workload, keys: KeyDistribution, records: u32) -> StreamLaw {
        StreamLaw { workload, keys, records }
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
        let mut counts = vec![0_u32; cells.len()];
        for draw in stream.draws() {
            let cell = cells.partition_point(|cell| cell.end <= draw.record());
            counts[cell] += 1;
        }
        let total = stream.draws().len() as f64;
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

    /// Goal: each workload has its share of puts, on hot records as on others. Method: counts within five standard
    /// deviations of the binomial law.
    #[test]
    fn workloads_have_their_share_of_puts() {
        for workload in [Workload::A, Workload::B, Workload::C] {
            let stream = draw_one(&law(workload, zipf(0.99), 1_000), 1 << 18);
            let hottest: Vec<_> = stream.draws().iter().filter(|draw| draw.record() == 0).copied().collect();
            for draws in [stream.draws(), &hottest] {
                let (count, share) = (draws.len() as f64, workload.put_share());
                let puts = draws.iter().filter(|draw| draw.is_put()).count() as f64;
                let tolerance = 5.0 * (count * share * (1.0 - share)).sqrt();
                assert!((puts - count * share).abs() <= tolerance, "{workload}: {puts} of {count}");
            }
        }
    }

    /// Goal: seeds decide everything: the same seed gives the same streams whatever their number, another seed or
    /// another thread different ones, and no chunk repeats another. Method: compare, with a last chunk that is short.
    #[test]
    fn streams_depend_on_their_seed_alone() {
        const LEN: usize = 2 * CHUNK_LEN + 5;
        let law = law(Workload::A, KeyDistribution::Uniform, RECORDS_MAX);
        let draw = |count, seed| draw_streams(&law, count, LEN, seed, |_| ());
        let (one, three, other) = (draw(1, SEED), draw(3, SEED), draw(1, SEED + 1));
        assert!(one[0].draws() == three[0].draws());
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
        assert!(streams.iter().flat_map(|stream| stream.draws()).all(|&draw| draw == Draw::new(0, false)));
        assert!(draw_streams(&law, 0, 1, SEED, |_| ()).is_empty());
    }

    /// Goal: the extreme records survive packing. Method: both kinds of the first and last record.
    #[test]
    fn draws_keep_record_and_kind() {
        for (record, is_put) in [(0, false), (0, true), (RECORDS_MAX - 1, false), (RECORDS_MAX - 1, true)] {
            let draw = Draw::new(record, is_put);
            assert_eq!((draw.record(), draw.is_put()), (record, is_put));
        }
    }

    /// Goal: value lengths are read, written and refused as documented. Method: one text per case.
    #[test]
    fn value_lengths_are_read_and_written() {
        for (text, min, max, shown) in [
            ("128", 128, 128, "128"),
            ("64-256", 64, 256, "64-256"),
            (" 64 - 256 ", 64, 256, "64-256"),
            ("0", 0, 0, "0"),
            ("7-7", 7, 7, "7"),
            ("0-1048576", 0, 1_048_576, "0-1048576"),
        ] {
            let lens: ValueLen = text.parse().unwrap();
            assert_eq!((lens.min(), lens.max(), lens.to_string().as_str()), (min, max, shown), "{text}");
        }
        for (text, reason) in [
            ("", "within 0 to 1048576"),
            ("-5", "the value length \"-5\" is neither"),
            ("64-", "the value length \"64-\" is neither"),
            ("1-2-3", "the value length \"1-2-3\" is neither"),
            ("1KiB", "the value length \"1KiB\" is neither"),
            ("256-64", "256-64 runs backwards; write 64-256"),
            ("1048577", "values of 1048577 bytes are too long; the allowed lengths are 0 to 1048576 bytes"),
            ("0-2000000", "values of 2000000 bytes are too long"),
        ] {
            let error = text.parse::<ValueLen>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
        let (fixed, range) = (ValueLen::new(128, 128).unwrap(), ValueLen::new(64, 256).unwrap());
        assert_eq!(serde_json::to_string(&[fixed, range]).unwrap(), r#"[128,"64-256"]"#);
    }

    /// Goal: longer keys leave less room. Method: the number of records at which the longest key grows.
    #[test]
    fn the_longest_value_depends_on_the_number_of_records() {
        for (records, max) in [(1, 1_427), (10, 1_427), (11, 1_426), (1_000_000, 1_422), (1_000_001, 1_421)] {
            assert_eq!(ValueLen::new(0, max).unwrap().check_fits_datagram(records), Ok(()));
            let longer = ValueLen::new(0, max + 1).unwrap().check_fits_datagram(records);
            assert_eq!(longer, Err(ValueLenError::TooLong { len: max + 1, max }), "{records} records");
        }
    }

    /// Goal: threads that share a stream go through the same operations, each from its own place. Method: two thirds of
    /// a stream, and the whole cycle after it.
    #[test]
    fn a_shared_stream_begins_elsewhere() {
        let stream = draw_one(&law(Workload::A, zipf(0.99), 1_000), 300);
        let shared = stream.share(2, 3);
        let cycle: Vec<_> = shared.take(300).collect();
        assert_eq!(cycle, [&stream.draws()[200..], &stream.draws()[..200]].concat());
    }

    /// Goal: picked lengths stay in the range, reach both ends, and are equally frequent. Method: evenly spaced
    /// "random" numbers, and the extremes.
    #[test]
    fn picked_lengths_cover_the_range_evenly() {
        let lens = ValueLen::new(64, 256).unwrap();
        assert_eq!((lens.pick(0), lens.pick(u32::MAX)), (64, 256));
        let mut counts = [0_u32; 257];
        (0..193_000_u64).for_each(|index| counts[lens.pick((index * (1 << 32) / 193_000) as u32)] += 1);
        assert!(counts[64..].iter().all(|count| (999..=1_001).contains(count)), "{counts:?}");
        let fixed = ValueLen::new(128, 128).unwrap();
        assert!([0, 1 << 31, u32::MAX].into_iter().all(|random| fixed.pick(random) == 128));
    }

    #[test]
    fn exponents_are_checked() {
        for (text, exponent) in [("0.99", 0.99), ("0", 0.0), ("10", 10.0), (" 1.2 ", 1.2)] {
            assert_eq!(text.parse::<Theta>().map(Theta::exponent), Ok(exponent));
        }
        for text in ["-0.1", "10.1", "NaN", "inf", "", "high"] {
            let error = text.parse::<Theta>().expect_err(text).to_string();
            assert!(error.contains("is not allowed; it is a number from 0 (uniform) to 10"), "{error}");
        }
        assert_eq!(Theta::YCSB.to_string(), "0.99");
        assert_eq!(zipf(0.99).to_string(), "Zipf 0.99");
    }

    /// Goal: what drawing costs can be looked up any time. Method: one chunk of each distribution on this thread;
    /// printed, never asserted.
    #[test]
    fn ns_per_draw() {
        for keys in [KeyDistribution::Uniform, zipf(0.99)] {
            let mut chunk = vec![Draw::default(); CHUNK_LEN];
            let start = Instant::now();
            let law = law(Workload::B, keys, 1_000_000);
            draw_chunk(&law, &mut chunk, &mut Xoshiro256PlusPlus::seed_from_u64(SEED));
            println!("{:.1} ns per draw, {keys}", start.elapsed().as_nanos() as f64 / CHUNK_LEN as f64);
        }
    }
}
