//! The measurements with one number of records.

use std::{
    collections::HashMap,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use linerate_proto::wire::Terms;
use linerate_server::{
    stats::thread_cpu_ns,
    store::{MemoryUse, Store},
};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus, seq::index};

use super::{
    Measure, Times,
    growth::Growth,
    new_store,
    peers::{self, Peers},
    staged::{self, Reply, Values, chunk_len, len_of, timed},
};
use crate::{
    key::key_len,
    options::StoreOptions,
    run::{check_stop, progress_bar},
    value,
    workload::{Draw, ValueLen},
};

/// Rounds of inserting, at most: each needs a store of its own.
const GROWTH_ROUNDS_MAX: u8 = 3;

/// Keys that are deleted in turn, at most.
const DELETES_MAX: usize = 1 << 18;

/// Operations that are checked in batches of reads and writes.
const CHECKED_OPERATIONS: usize = 1 << 18;

/// Records after which the progress bar and the stop flag are looked after.
const PROGRESS_RECORDS: usize = 1 << 14;

/// Chunks of operations after which the stop flag is looked at: some tens of milliseconds at most.
const STOP_CHUNKS: u64 = 64;

/// A day to live: none of the records expires meanwhile.
const TTL_MS: u32 = 86_400_000;

/// What was found out.
pub(super) struct Measured {
    pub(super) times: Times,
    pub(super) growth: Growth,
    /// The loaded store.
    pub(super) memory: MemoryUse,
    /// One whose records expire some day.
    pub(super) memory_with_ttl: MemoryUse,
    /// Bytes of all keys and values.
    pub(super) stored_len: u64,
    /// Operations of the timed loops that did not find their key, or were refused.
    pub(super) misses: u64,
    /// Values that were not what was put, in the passes between them.
    pub(super) wrong_values: u64,
    /// Least share of the CPU that a measurement had.
    pub(super) core_share_min: f64,
}

/// Measures with the keys of two streams, on the CPU of the calling thread.
pub(super) fn measure(
    options: &StoreOptions,
    records: u32,
    zipf: &[Draw],
    uniform: &[Draw],
    stop: &AtomicBool,
) -> anyhow::Result<Measured> {
    let (lens, batch) = (options.value_len, usize::from(options.batch));
    let mut times = Times::default();

    let growth_rounds = options.rounds.min(GROWTH_ROUNDS_MAX);
    let bar = progress_bar(growth_rounds.into(), "inserting records");
    let mut growth = Growth::default();
    for _ in 0..growth_rounds {
        growth.round(records, lens, batch, options.seed, stop)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    growth.insert_ns.iter().for_each(|&ns| times.add(Measure::Insert, ns));

    let ttl = Terms { ttl_ms: TTL_MS.try_into().ok(), ..Terms::default() };
    let memory_with_ttl = load(options, records, ttl, stop)?.0.memory();
    let (store, load_ns) = load(options, records, Terms::default(), stop)?;
    times.add(Measure::InsertUntouched, load_ns);
    let memory = store.memory();

    let peers =
        (records <= options.peers_records_max).then(|| load_peers(records, lens, stop)).transpose()?;
    let deletes = deletes(records, options.seed);
    let mut bench = Bench {
        store,
        peers,
        zipf: Cursor::new(zipf),
        uniform: Cursor::new(uniform),
        deletes: Cursor::new(&deletes),
        values: Values::new(lens),
        reply: Reply::new(lens.max()),
        lens,
        batch,
        duration: Duration::from_secs_f64(options.duration),
        misses: 0,
        core_share_min: 1.0,
        stop,
    };
    let mut wrong_values = bench.wrong_values(records)?;
    let bar = progress_bar(u64::from(options.rounds) * Measure::IN_ROUNDS.len() as u64, "measuring");
    for _ in 0..options.rounds {
        for measure in Measure::IN_ROUNDS {
            bar.set_message(measure.name());
            if let Some(ns) = bench.measure(measure)? {
                times.add(measure, ns);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    wrong_values += bench.wrong_in_batches(zipf) + bench.wrong_values(records)?;
    let stored = |record: u32| (key_len(record) + len_of(record, lens)) as u64;
    Ok(Measured {
        times,
        growth,
        memory,
        memory_with_ttl,
        stored_len: (0..records).map(stored).sum(),
        misses: bench.misses,
        wrong_values,
        core_share_min: bench.core_share_min,
    })
}

/// A store with all records, and nanoseconds per record.
fn load(
    options: &StoreOptions,
    records: u32,
    terms: Terms,
    stop: &AtomicBool,
) -> anyhow::Result<(Store, f64)> {
    let (lens, batch) = (options.value_len, usize::from(options.batch));
    let mut store = new_store(records, lens, options.seed)?;
    store.advance(linerate_proto::Instant::from_nanos(1));
    let mut values = Values::new(lens);
    let mut spent = Duration::ZERO;
    for_chunks(records, chunk_len(batch, lens), "storing records", stop, |draws| {
        values.make(draws, |_| true);
        let mut lookups = Vec::with_capacity(batch);
        let (time, done) = timed(|| {
            let put = |(number, batch_draws)| {
                staged::puts(&mut store, batch_draws, &mut lookups, &values, number * batch, terms)
            };
            draws.chunks(batch).enumerate().map(put).sum::<usize>()
        });
        spent += time;
        let count = store.len();
        anyhow::ensure!(done == draws.len(), "the store is full after {count} of {records} records");
        Ok(())
    })?;
    Ok((store, spent.as_nanos() as f64 / f64::from(records)))
}

fn load_peers(records: u32, lens: ValueLen, stop: &AtomicBool) -> anyhow::Result<Peers> {
    let mut peers = Peers::new(records);
    for_chunks(records, PROGRESS_RECORDS, "storing in peers", stop, |draws| {
        draws.iter().for_each(|draw| peers.insert(draw.record(), lens));
        Ok(())
    })?;
    Ok(peers)
}

/// Goes through all records in order.
fn for_chunks(
    records: u32,
    chunk_len: usize,
    what: &'static str,
    stop: &AtomicBool,
    mut each: impl FnMut(&[Draw]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let bar = progress_bar(records.into(), what);
    let mut draws = Vec::with_capacity(chunk_len);
    for first in (0..records).step_by(chunk_len) {
        draws.clear();
        draws.extend((first..records.min(first.saturating_add(chunk_len as u32))).map(Draw::put));
        each(&draws)?;
        check_stop(stop)?;
        bar.inc(draws.len() as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Different records in random order.
fn deletes(records: u32, seed: u64) -> Vec<Draw> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let count = DELETES_MAX.min(records as usize);
    index::sample(&mut random, records as usize, count)
        .iter()
        .map(|record| Draw::put(record as u32))
        .collect()
}

/// Operations that are gone through again and again.
struct Cursor<'a> {
    draws: &'a [Draw],
    next: usize,
}

impl<'a> Cursor<'a> {
    const fn new(draws: &'a [Draw]) -> Self {
        Self { draws, next: 0 }
    }

    /// The next `len` operations, or all if there are fewer.
    fn take(&mut self, len: usize) -> &'a [Draw] {
        let len = len.min(self.draws.len());
        if self.next + len > self.draws.len() {
            self.next = 0;
        }
        let start = self.next;
        self.next += len;
        &self.draws[start..self.next]
    }
}

/// All that is measured.
struct Bench<'a> {
    store: Store,
    peers: Option<Peers>,
    zipf: Cursor<'a>,
    uniform: Cursor<'a>,
    deletes: Cursor<'a>,
    values: Values,
    reply: Reply,
    lens: ValueLen,
    batch: usize,
    duration: Duration,
    misses: u64,
    core_share_min: f64,
    stop: &'a AtomicBool,
}

impl<'a> Bench<'a> {
    /// Nanoseconds per operation, once; `None` when there is nothing to measure.
    fn measure(&mut self, measure: Measure) -> anyhow::Result<Option<f64>> {
        let Self { store, values, reply, batch, .. } = self;
        let batch = *batch;
        let mut lookups = Vec::with_capacity(batch);
        let pace = Pace { duration: self.duration, chunk_len: chunk_len(batch, self.lens), stop: self.stop };
        let batches = |draws: &'a [Draw]| draws.chunks(batch).zip((0..).step_by(batch));
        let cursor = match measure {
            Measure::GetUniform | Measure::PutUniform | Measure::HashbrownGetUniform => &mut self.uniform,
            Measure::Delete => &mut self.deletes,
            _ => &mut self.zipf,
        };
        let pass = match measure {
            Measure::Get | Measure::GetUniform => pace.run(cursor, |draws| {
                timed(|| {
                    batches(draws).map(|(batch, _)| staged::gets(store, batch, &mut lookups, reply)).sum()
                })
            }),
            Measure::Put | Measure::PutUniform => pace.run(cursor, |draws| {
                values.make(draws, |_| true);
                let terms = Terms::default();
                timed(|| {
                    let put = |(batch, first)| staged::puts(store, batch, &mut lookups, values, first, terms);
                    batches(draws).map(put).sum()
                })
            }),
            Measure::Mixed => pace.run(cursor, |draws| {
                values.make(draws, Draw::is_put);
                timed(|| {
                    let mixed = |(batch, first)| {
                        staged::mixed(store, batch, &mut lookups, values, first, |_, value| reply.push(value))
                    };
                    batches(draws).map(mixed).sum()
                })
            }),
            Measure::Delete => pace.run(cursor, |draws| {
                values.make(draws, |_| true);
                let deleted = timed(|| {
                    batches(draws).map(|(batch, _)| staged::deletes(store, batch, &mut lookups)).sum()
                });
                // Back again before they are missed.
                for (batch, first) in batches(draws) {
                    staged::puts(store, batch, &mut lookups, values, first, Terms::default());
                }
                deleted
            }),
            Measure::HashbrownGet | Measure::HashbrownGetUniform | Measure::StdGet | Measure::DashmapGet => {
                let Some(peers) = &self.peers else { return Ok(None) };
                pace.run(cursor, |draws| {
                    timed(|| match measure {
                        Measure::StdGet => peers::gets(draws, reply, |key| peers.std.get(key)),
                        Measure::DashmapGet => peers::gets(draws, reply, |key| peers.dashmap.get(key)),
                        _ => peers::gets(draws, reply, |key| peers.hashbrown.get(key)),
                    })
                })
            }
            Measure::Insert | Measure::InsertUntouched => return Ok(None),
        }?;
        self.misses += pass.misses;
        self.core_share_min = self.core_share_min.min(pass.core_share);
        Ok(Some(pass.ns))
    }

    /// Looks at the values of all records, and at those of the peers; returns how many are wrong or missing.
    fn wrong_values(&mut self, records: u32) -> anyhow::Result<u64> {
        let Self { store, peers, lens, batch, .. } = self;
        let mut wrong = 0;
        for_chunks(records, PROGRESS_RECORDS, "checking values", self.stop, |draws| {
            let mut lookups = Vec::with_capacity(*batch);
            for batch in draws.chunks(*batch) {
                staged::gets_with(store, batch, &mut lookups, |index, found| {
                    let is_right =
                        found.is_some_and(|value| value::check(value, batch[index].record(), *lens));
                    wrong += u64::from(!is_right);
                });
            }
            if let Some(peers) = peers {
                wrong += draws.iter().map(|draw| peers.wrong_values(draw.record(), *lens)).sum::<u64>();
            }
            Ok(())
        })?;
        Ok(wrong)
    }

    /// Executes reads and writes together as when they are measured; returns how many reads did not see the latest write
    /// before them, in the same batch or an earlier one.
    fn wrong_in_batches(&mut self, draws: &[Draw]) -> u64 {
        let Self { store, values, lens, batch, .. } = self;
        let mut latest: HashMap<u32, Vec<u8>> = HashMap::new();
        let mut wrong = 0;
        let draws = &draws[..draws.len().min(CHECKED_OPERATIONS)];
        for batch in draws.chunks(*batch) {
            values.make(batch, Draw::is_put);
            let mut expected = Vec::with_capacity(batch.len());
            for (index, draw) in batch.iter().enumerate() {
                if draw.is_put() {
                    latest.insert(draw.record(), values.of(index, draw.record()).to_vec());
                }
                expected.push(latest.get(&draw.record()).cloned());
            }
            let mut lookups = Vec::with_capacity(batch.len());
            let done = staged::mixed(store, batch, &mut lookups, values, 0, |index, value| {
                let is_right = match &expected[index] {
                    Some(expected) => value == expected,
                    None => value::check(value, batch[index].record(), *lens),
                };
                wrong += u64::from(!is_right);
            });
            wrong += (batch.len() - done) as u64;
        }
        wrong
    }
}

/// How long one measurement takes.
struct Pace<'a> {
    duration: Duration,
    /// Operations between two looks at the clock.
    chunk_len: usize,
    stop: &'a AtomicBool,
}

/// One measurement.
struct Pass {
    /// Nanoseconds per operation.
    ns: f64,
    /// Operations that found nothing.
    misses: u64,
    /// Time on the CPU by time that went by.
    core_share: f64,
}

impl Pace<'_> {
    /// Repeats `step`, which takes operations and returns how long they have taken and how many of them succeeded. What
    /// came before has emptied the caches: a quarter of the time goes to filling them again, and is not counted.
    fn run<'a>(
        &self,
        cursor: &mut Cursor<'a>,
        mut step: impl FnMut(&'a [Draw]) -> (Duration, usize),
    ) -> anyhow::Result<Pass> {
        let mut warmup = Duration::ZERO;
        while warmup < self.duration / 4 {
            warmup += step(cursor.take(self.chunk_len)).0;
            check_stop(self.stop)?;
        }
        let (begun, cpu_ns) = (Instant::now(), thread_cpu_ns());
        let (mut spent, mut count, mut misses) = (Duration::ZERO, 0, 0);
        for number in 0_u64.. {
            if spent >= self.duration {
                break;
            }
            if number.is_multiple_of(STOP_CHUNKS) {
                check_stop(self.stop)?;
            }
            let draws = cursor.take(self.chunk_len);
            let (time, done) = step(draws);
            spent += time;
            count += draws.len();
            misses += (draws.len() - done) as u64;
        }
        let cpu = (thread_cpu_ns() - cpu_ns) as f64;
        Ok(Pass {
            ns: spent.as_nanos() as f64 / count as f64,
            misses,
            core_share: (cpu / begun.elapsed().as_nanos() as f64).min(1.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a cursor starts over before it runs out, and hands out all there is when there is little. Method: chunks
    /// that do not divide the operations.
    #[test]
    fn a_cursor_starts_over() {
        let draws: Vec<_> = (0..5).map(Draw::put).collect();
        let mut cursor = Cursor::new(&draws);
        let records = |draws: &[Draw]| draws.iter().map(Draw::record).collect::<Vec<_>>();
        assert_eq!(records(cursor.take(2)), [0, 1]);
        assert_eq!(records(cursor.take(2)), [2, 3]);
        assert_eq!(records(cursor.take(2)), [0, 1]);
        assert_eq!(records(cursor.take(9)), [0, 1, 2, 3, 4]);
    }

    /// Goal: time per operation, misses and an interruption come out right. Method: steps of known length.
    #[test]
    fn a_pass_divides_time_by_operations() {
        let draws: Vec<_> = (0..100).map(Draw::put).collect();
        let stop = AtomicBool::new(false);
        let pace = Pace { duration: Duration::from_micros(30), chunk_len: 10, stop: &stop };
        let pass =
            pace.run(&mut Cursor::new(&draws), |draws| (Duration::from_micros(1), draws.len() - 1)).unwrap();
        assert_eq!((pass.ns, pass.misses), (100.0, 30));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let stopped = pace.run(&mut Cursor::new(&draws), |draws| (Duration::from_micros(1), draws.len()));
        assert_eq!(stopped.err().unwrap().to_string(), "interrupted");
    }

    /// Goal: each record is deleted at most once before it is back. Method: draw from few and from many.
    #[test]
    fn deletes_are_of_different_records() {
        for records in [1_000, 1_000_000] {
            let mut drawn: Vec<_> = deletes(records, 7).iter().map(Draw::record).collect();
            let count = drawn.len();
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!((drawn.len(), count), (count, DELETES_MAX.min(records as usize)));
            assert!(drawn[count - 1] < records);
        }
    }
}
