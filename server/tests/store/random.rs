//! Random operations against the model.
//!
//! `LINERATE_STORE_OPERATIONS` says how many operations a run has, `LINERATE_STORE_SEED` which ones.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use linerate_server::store::{AtCapacity, VALUE_LEN_MAX};
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

use crate::model::{Run, Settings};

/// Operations of a run: as many as a debug build does in some twenty seconds on two cores.
const OPERATIONS: u64 = if cfg!(miri) { 1_000 } else { 10_000_000 };

/// Memory, count of keys, and how many of a hundred operations: from nearly always full
/// to never full, from a bucket to thousands.
const STORES: [(usize, u32, u64); 8] = [
    (4_096, 200, 10),
    (4_160, 600, 10),
    (20_000, 700, 15),
    (65_536, 2_000, 15),
    (100_000, 5_000, 15),
    (1 << 20, 20_000, 20),
    (6 << 20, 2_000, 5),
    (20 << 20, 65_536, 10),
];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.replace('_', "").parse().expect(name))
}

/// Follows random bytes for so many operations, on a store of its own.
fn run(settings: Settings, seed: u64, operation_count: u64) -> Run {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut run = Run::new(settings);
    let mut bytes = [0; 4096];
    while run.operation_count() < operation_count {
        random.fill_bytes(&mut bytes);
        run.follow(&mut &bytes[..]);
    }
    run.check_all();
    run
}

fn runs(at_capacity: AtCapacity) {
    let operations = setting("LINERATE_STORE_OPERATIONS", OPERATIONS);
    let seed = setting("LINERATE_STORE_SEED", 1);
    println!("{operations} operations, seed {seed}");
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(&(memory_len, key_count, share)) = STORES.get(next.fetch_add(1, Relaxed)) {
            // Interpreted code is slow, and miri has no advice about huge pages.
            if cfg!(miri) && memory_len > 5_000 {
                continue;
            }
            let seed = seed << 8 | memory_len.ilog2() as u64;
            let seeds = SmallRng::seed_from_u64(seed).random();
            let settings = Settings { memory_len, at_capacity, seeds, key_count };
            let started = std::time::Instant::now();
            let run = run(settings, seed, operations * share / 100);
            let (refused, evicted, expired) = (run.refused_count, run.evicted_count, run.expired_count);
            println!(
                "{memory_len} bytes, {at_capacity:?}: {} operations in {:?}; {refused} writes refused, {evicted} keys evicted, {expired} expired",
                run.operation_count(),
                started.elapsed(),
            );
            // Few operations need not meet all there is.
            if run.operation_count() >= 100_000 {
                assert_eq!(
                    refused > 0,
                    at_capacity == AtCapacity::Refuse || memory_len <= VALUE_LEN_MAX,
                    "full?"
                );
                assert!(expired > 0);
                assert_eq!(evicted > 0, at_capacity == AtCapacity::Evict);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..std::thread::available_parallelism().map_or(1, usize::from))
            .map(|_| scope.spawn(work))
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// Goal: the store is the map it should be, and refuses only for want of memory. Method: random operations against a
/// model, from stores of a page to some of megabytes, with hashes that collide in two of them.
#[test]
fn random_operations_when_full_refused() {
    runs(AtCapacity::Refuse);
}

/// Goal: the same for a store that evicts, where a key may be missing but never wrong. Method: as above.
#[test]
fn random_operations_when_full_evicting() {
    runs(AtCapacity::Evict);
}
