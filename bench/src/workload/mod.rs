//! What a run does: workloads, how keys are chosen, how long values are, and the operations drawn from that.
//!
//! A sample of the Zipf law costs 40 to 220 ns, depending on the machine: more than all that the client otherwise spends
//! on an operation. The operations are therefore drawn before the clock starts, and the run repeats them.

mod draw;
mod keys;
mod value_len;

use std::{
    fmt, iter,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use clap::ValueEnum;
use rand::{
    SeedableRng,
    distr::{Bernoulli, Distribution, Uniform},
    rngs::Xoshiro256PlusPlus,
};
use rand_distr::Zipf;
use serde::Serialize;

pub use self::{
    draw::Draw,
    keys::{KeyDistribution, Theta, ThetaError},
    value_len::{ValueLen, ValueLenError},
};

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

    /// Goal: threads that share a stream go through the same operations, each from its own place. Method: two thirds of
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
        for keys in [KeyDistribution::Uniform, zipf(0.99)] {
            let mut chunk = vec![Draw::default(); CHUNK_LEN];
            let start = Instant::now();
            let law = law(Workload::B, keys, 1_000_000);
            draw_chunk(&law, &mut chunk, &mut Xoshiro256PlusPlus::seed_from_u64(SEED));
            println!("{:.1} ns per draw, {keys}", start.elapsed().as_nanos() as f64 / CHUNK_LEN as f64);
        }
    }
}
