//! The store alone: what an operation costs on one core without a network, what a record costs in memory, and what
//! hash tables that programs use instead do with the same keys.
//!
//! Operations are made as the server's worker makes them, a batch at a time: all keys are hashed and their buckets asked
//! for, then all are probed and their items asked for, then each is executed, a get with a copy of its value into a
//! buffer like that of replies. Keys are drawn, and the values of puts made, before the clock starts. The clock is that of
//! the thread's time on the CPU. Yet other programs of the machine empty caches and disturb a round more than the next
//! one, so all measurements take turns and the median of all rounds counts.

mod growth;
mod measure;
mod peers;
mod report;
mod staged;
mod usable;

use std::{sync::atomic::AtomicBool, thread, time::SystemTime};

use anyhow::Context;
use bytesize::ByteSize;
use linerate_dataplane::pin::{CoreList, allowed_cores, pin_to_core};
use linerate_server::store::{AtCapacity, Store};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use crate::{
    key::key_len,
    options::StoreOptions,
    output::{Environment, memory_bytes},
    run::{check_stop, progress_bar},
    workload::{Draw, KeyDistribution, STREAM_LEN, StreamLaw, ValueLen, Workload, draw_streams},
};
use measure::measure;
pub use report::{Measure, StoreConfig, StoreReport, StoreSweep, Times, store_table, sweep_table};
use staged::chunk_len;
use usable::usable_memory;
pub use usable::{Usable, UsableMemory};

/// Bytes that a record takes beside its key and value, with some to spare: this store's header, padding and share of the
/// index.
const RECORD_OVERHEAD: u64 = 48;

/// The same for three hash tables together: two allocations each with up to 23 bytes of the allocator's, and an entry
/// of 33 bytes in a table that may be half empty.
const PEERS_RECORD_OVERHEAD: u64 = 3 * 112;

/// Memory of all that does not grow with the records: drawn operations, buffers, the program.
const BASE_LEN: u64 = (2 * STREAM_LEN * size_of::<Draw>()) as u64 + (64 << 20);

/// Least operations of a cycle, of which branch predictors learn none by heart.
const STREAM_LEN_MIN: usize = 1 << 17;

/// Least records of a sweep; each further step has ten times as many.
const SWEEP_FROM: u32 = 1_000;

/// Measures the store with `options.records` records.
///
/// # Errors
/// What cannot be had, such as the memory, in a sentence; or `stop` was set.
pub fn store(options: &StoreOptions, stop: &AtomicBool) -> anyhow::Result<StoreReport> {
    let cpu = cpu(options)?;
    check_memory(options, options.records)?;
    let usable = usable(options, stop)?;
    point(options, options.records, cpu, &usable, stop)
}

/// Measures the store with 1,000 records, 10,000 and so on, as long as the memory suffices and up to `records_max`.
///
/// # Errors
/// As [`store`].
pub fn store_sweep(
    options: &StoreOptions,
    records_max: u32,
    stop: &AtomicBool,
) -> anyhow::Result<StoreSweep> {
    let cpu = cpu(options)?;
    check_memory(options, SWEEP_FROM)?;
    let usable = usable(options, stop)?;
    let mut sweep = StoreSweep { points: Vec::new(), ended: None };
    let mut records = SWEEP_FROM;
    while records <= records_max {
        if let Err(error) = check_memory(options, records) {
            sweep.ended = Some(error.to_string());
            break;
        }
        sweep.points.push(point(options, records, cpu, &usable, stop)?);
        records = records.saturating_mul(10);
    }
    Ok(sweep)
}

/// The CPU to measure on: the last one usually has fewer interrupts to serve.
fn cpu(options: &StoreOptions) -> anyhow::Result<usize> {
    let allowed = allowed_cores().context("cannot tell which CPUs this process may use")?;
    let cpu = options.cpu.or_else(|| allowed.last().copied()).unwrap_or(0);
    CoreList::new(vec![cpu])?.check(&allowed)?;
    Ok(cpu)
}

/// Operations of a cycle: enough for every record to have its turns, within what a cycle usually has.
fn stream_len(records: u32) -> usize {
    (16 * records as usize).clamp(STREAM_LEN_MIN, STREAM_LEN)
}

/// Refuses what the machine has no memory for, before any of it is filled.
fn check_memory(options: &StoreOptions, records: u32) -> anyhow::Result<()> {
    let Some(available) = memory_bytes("MemAvailable") else { return Ok(()) };
    let wanted = memory_wanted(options, records);
    anyhow::ensure!(
        wanted <= available,
        "{records} records of {} bytes take about {} of memory, and {} are available: give fewer --records, a shorter \
         --value-len, a smaller --batch, --fill-memory or --peers-records-max",
        options.value_len,
        ByteSize(wanted).display().iec(),
        ByteSize(available).display().iec()
    );
    Ok(())
}

fn memory_wanted(options: &StoreOptions, records: u32) -> u64 {
    let lens = options.value_len;
    let record_len = (key_len(records - 1) + lens.max()) as u64;
    let peers = if records <= options.peers_records_max { 3 * record_len + PEERS_RECORD_OVERHEAD } else { 0 };
    let values = (chunk_len(options.batch.into(), lens) * lens.max()) as u64;
    let stores = store_len(records, lens) + u64::from(records) * peers;
    BASE_LEN + values + stores.max(2 * options.fill_memory.as_u64())
}

/// Memory for a store of all records.
fn store_len(records: u32, lens: ValueLen) -> u64 {
    let record_len = (key_len(records - 1) + lens.max()) as u64 + RECORD_OVERHEAD;
    u64::from(records) * record_len * 9 / 8 + (4 << 20)
}

fn new_store(records: u32, lens: ValueLen, seed: u64) -> anyhow::Result<Store> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let seeds = std::array::from_fn(|_| random.random());
    Ok(Store::new(store_len(records, lens) as usize, AtCapacity::Refuse, seeds)?)
}

fn usable(options: &StoreOptions, stop: &AtomicBool) -> anyhow::Result<UsableMemory> {
    const BAR_LEN: f64 = 1e6;
    let bar = progress_bar(BAR_LEN as u64, "filling memory");
    let memory_len = options.fill_memory.as_u64() as usize;
    let usable = usable_memory(memory_len, options.seed, stop, |share| bar.inc((share * BAR_LEN) as u64));
    bar.finish_and_clear();
    usable
}

/// Runs `work` on a CPU, without binding the calling thread to it, which has yet to draw on all.
fn pinned<T: Send>(cpu: usize, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            pin_to_core(cpu)?;
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Everything there is to measure with so many records.
fn point(
    options: &StoreOptions,
    records: u32,
    cpu: usize,
    usable: &UsableMemory,
    stop: &AtomicBool,
) -> anyhow::Result<StoreReport> {
    let environment = Environment::look(SystemTime::now());
    let draw = |keys, name| {
        let len = stream_len(records);
        let bar = progress_bar(len as u64, name);
        let law = StreamLaw { workload: Workload::B, read_share: None, keys, records };
        let mut streams = draw_streams(&law, 1, len, options.seed, |drawn| bar.inc(drawn as u64));
        bar.finish_and_clear();
        streams.remove(0)
    };
    let zipf = draw(KeyDistribution::Zipf(options.theta), "drawing Zipf keys");
    check_stop(stop)?;
    let uniform = draw(KeyDistribution::Uniform, "drawing keys");
    check_stop(stop)?;
    let measured = pinned(cpu, || measure(options, records, zipf.draws(), uniform.draws(), stop))?;
    let config = StoreConfig {
        records,
        value_len: options.value_len,
        keys: "decimal",
        theta: options.theta.exponent(),
        batch: options.batch.into(),
        rounds: options.rounds.into(),
        duration_s: options.duration,
        cpu,
        seed: options.seed,
    };
    Ok(StoreReport::new(measured, usable.clone(), config, environment))
}
