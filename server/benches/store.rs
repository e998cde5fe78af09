//! What operations on a shard store cost, by value length, records, skew and batch depth, one of them varied at a time.
//!
//! `cargo bench -p linerate-server --bench store` measures; `cargo test` runs each once with few records, so that none
//! rots. Operations are made in the stages of the worker, a batch at a time, and keys are drawn before the clock starts.
//! For medians over alternating rounds, hash tables to compare with and memory per record: `linerate-bench store`.

use std::{
    env,
    hint::black_box,
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use linerate_proto::{Key, key::HEAD_LEN, wire::Terms};
use linerate_server::store::{AtCapacity, Probe, Store};
use rand::{RngExt, SeedableRng, distr::Distribution, rngs::Xoshiro256PlusPlus};
use rand_distr::Zipf;

const SEED: u64 = 7;

/// Operations that are drawn, and gone through again and again: a multiple of each batch.
const DRAWS: usize = 1 << 20;

/// Deepest batch.
const BATCH_MAX: usize = 256;

/// Share of puts among mixed operations: one in so many.
const PUT_EVERY: u32 = 20;

/// What is measured, and with what.
#[derive(Clone, Copy)]
struct Shape {
    value_len: usize,
    records: u32,
    /// Exponent of the Zipf law; 0 is uniform.
    theta: f64,
    batch: usize,
}

impl Shape {
    /// As in most benchmarks of key-value stores; few records unless it is measured.
    fn usual() -> Self {
        Self {
            value_len: 128,
            records: if is_measured() { 1_000_000 } else { 1_000 },
            theta: 0.99,
            batch: 64,
        }
    }

    /// Values of another length, in about as much memory.
    fn with_values(self, value_len: usize) -> Self {
        let records = (self.records as usize * self.value_len / value_len.max(self.value_len)) as u32;
        Self { value_len, records, ..self }
    }
}

/// Whether times are wanted: cargo says so to a benchmark that `cargo bench` runs, and nothing in a test.
fn is_measured() -> bool {
    env::args().any(|argument| argument == "--bench")
}

/// An operation that was drawn.
#[derive(Clone, Copy)]
struct Draw {
    key: [u8; HEAD_LEN],
    key_len: usize,
    is_put: bool,
}

impl Draw {
    fn new(record: u32, is_put: bool) -> Self {
        let text = record.to_string();
        let mut key = [0; HEAD_LEN];
        key[..text.len()].copy_from_slice(text.as_bytes());
        Self { key, key_len: text.len(), is_put }
    }

    fn key(&self) -> Key<'_> {
        Key::in_window(&self.key, self.key_len)
    }
}

/// A loaded store and the operations to come.
struct Bench {
    store: Store,
    draws: Vec<Draw>,
    next: usize,
    batch: usize,
    value: Vec<u8>,
    reply: Vec<u8>,
}

/// A key on its way to being found.
struct Lookup<'k> {
    key: Key<'k>,
    hash: u64,
    probe: Probe,
}

impl Bench {
    fn new(shape: Shape) -> Self {
        let Shape { value_len, records, theta, batch } = shape;
        let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let memory_len = records as usize * (value_len + 64) * 5 / 4 + (4 << 20);
        let seeds = std::array::from_fn(|_| random.random());
        let mut store = Store::new(memory_len, AtCapacity::Refuse, seeds).unwrap();
        let value = vec![0x5a; value_len];
        for record in 0..records {
            let draw = Draw::new(record, true);
            store.put(draw.key(), store.hash(draw.key()), &value, Terms::default()).unwrap();
        }
        let ranks = Zipf::new(f64::from(records), theta).unwrap();
        let draw = |_| {
            let record = (ranks.sample(&mut random) as u32 - 1).min(records - 1);
            Draw::new(record, random.random_ratio(1, PUT_EVERY))
        };
        let draws = (0..if is_measured() { DRAWS } else { BATCH_MAX }).map(draw).collect();
        Self { store, draws, next: 0, batch, reply: vec![0; value_len], value }
    }

    /// Executes the next batch, and each of its operations by `execute`; returns how many of them succeeded.
    #[inline(always)]
    fn batch(
        &mut self,
        mut execute: impl FnMut(&mut Store, &Lookup<'_>, bool, &[u8], &mut [u8]) -> bool,
    ) -> usize {
        let Self { store, draws, next, batch, value, reply } = self;
        let batch = &draws[*next..*next + *batch];
        *next = (*next + batch.len()) % draws.len();
        let mut lookups: ArrayVec<_, BATCH_MAX> = ArrayVec::new();
        for draw in batch {
            let key = draw.key();
            let hash = store.hash(key);
            lookups.push(Lookup { key, hash, probe: store.prefetch_bucket(hash) });
        }
        for lookup in &mut lookups {
            lookup.probe = store.probe(lookup.hash, lookup.probe);
        }
        let pairs = lookups.iter().zip(batch);
        pairs.filter(|(lookup, draw)| execute(store, lookup, draw.is_put, value, reply)).count()
    }

    fn gets(&mut self) -> usize {
        self.batch(|store, lookup, _, _, reply| get(store, lookup, reply))
    }

    fn puts(&mut self) -> usize {
        self.batch(|store, lookup, _, value, _| put(store, lookup, value))
    }

    fn mixed(&mut self) -> usize {
        self.batch(
            |store, lookup, is_put, value, reply| {
                if is_put { put(store, lookup, value) } else { get(store, lookup, reply) }
            },
        )
    }

    /// Of keys that occur several times in the batch, the first deletes.
    fn deletes(&mut self) -> usize {
        self.batch(|store, lookup, _, _, _| store.delete(lookup.key, lookup.hash).is_some())
    }

    /// Puts the batch again that was last deleted.
    fn put_back(&mut self) {
        self.next = (self.next + self.draws.len() - self.batch) % self.draws.len();
        assert_eq!(self.puts(), self.batch);
    }
}

#[inline(always)]
fn get(store: &Store, lookup: &Lookup<'_>, reply: &mut [u8]) -> bool {
    let found = store.get_probed(lookup.key, lookup.hash, lookup.probe);
    if let Some(found) = found {
        reply.copy_from_slice(found.value);
        black_box(reply);
    }
    found.is_some()
}

#[inline(always)]
fn put(store: &mut Store, lookup: &Lookup<'_>, value: &[u8]) -> bool {
    store.put_probed(lookup.key, lookup.hash, lookup.probe, value, Terms::default()).is_ok()
}

/// All operations in one shape, `parameter` of the group.
fn bench_shape(criterion: &mut Criterion, group: &str, parameter: impl ToString, shape: Shape) {
    let mut bench = Bench::new(shape);
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Elements(shape.batch as u64));
    let parameter = parameter.to_string();
    for (name, operations) in
        [("get", Bench::gets as fn(&mut Bench) -> usize), ("put", Bench::puts), ("mixed", Bench::mixed)]
    {
        group.bench_function(BenchmarkId::new(name, &parameter), |bencher| {
            bencher.iter(|| assert_eq!(operations(&mut bench), shape.batch));
        });
    }
    group.bench_function(BenchmarkId::new("delete", &parameter), |bencher| {
        // By hand, as what was deleted is put back between the batches.
        bencher.iter_custom(|batches| {
            let mut spent = Duration::ZERO;
            for _ in 0..batches {
                let begun = Instant::now();
                let deleted = bench.deletes();
                spent += begun.elapsed();
                assert!((1..=shape.batch).contains(&deleted));
                bench.put_back();
            }
            spent
        });
    });
}

fn by_value_len(criterion: &mut Criterion) {
    for value_len in [16, 128, 1_024, 16_384] {
        bench_shape(criterion, "value length", value_len, Shape::usual().with_values(value_len));
    }
}

/// The index doubles between powers of two: of these numbers some leave it fuller than others.
fn by_records(criterion: &mut Criterion) {
    let usual = Shape::usual();
    for percent in [1, 10, 70, 100, 130] {
        let records = usual.records * percent / 100;
        bench_shape(criterion, "records", records, Shape { records, ..usual });
    }
}

fn by_skew(criterion: &mut Criterion) {
    for theta in [0.0, 0.99] {
        bench_shape(criterion, "skew", theta, Shape { theta, ..Shape::usual() });
    }
}

fn by_batch(criterion: &mut Criterion) {
    for batch in [1, 16, 64, BATCH_MAX] {
        bench_shape(criterion, "batch", batch, Shape { batch, ..Shape::usual() });
    }
}

criterion_group! {
    name = benches;
    // A minute and a half for all of them; the noise of a shared machine is larger than what longer ones would gain.
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_000))
        .sample_size(30);
    targets = by_value_len, by_records, by_skew, by_batch
}
criterion_main!(benches);
