//! What a full store holds, and that nothing of its memory is lost however it is emptied.

use std::{num::NonZeroU32, time::Duration};

use linerate_proto::{
    Instant, Key,
    wire::{Condition, Terms},
};
use linerate_server::store::{AtCapacity, MemoryUse, Refusal, Store, VALUE_LEN_MAX};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::model::{INDEX_STEP_LEN, ITEM_OVERHEAD_MAX};

const SEEDS: [u64; 4] = [1, 2, 3, 4];

/// Bytes of an item without a time to live beside key and value, at most: a header of 12 bytes, and padding to 8.
const OVERHEAD_MAX: usize = 12 + 7;

/// Keys are numbers.
const KEY_LEN: usize = 4;

fn put(store: &mut Store, number: u32, value: &[u8], ttl_ms: Option<NonZeroU32>) -> Result<u64, Refusal> {
    let key = number.to_be_bytes();
    let terms = Terms { condition: Condition::Always, ttl_ms };
    store.put(Key::from(&key), store.hash(Key::from(&key)), value, terms)
}

fn get(store: &Store, number: u32) -> Option<&[u8]> {
    let key = number.to_be_bytes();
    store.get(Key::from(&key), store.hash(Key::from(&key))).map(|found| found.value)
}

fn delete(store: &mut Store, number: u32) -> bool {
    let key = number.to_be_bytes();
    store.delete(Key::from(&key), store.hash(Key::from(&key))).is_some()
}

/// Puts values of these lengths in turn until one is refused; returns how many were not.
fn fill(store: &mut Store, lens: &[usize], ttl_ms: Option<NonZeroU32>) -> u32 {
    let value = vec![0xa5; lens.iter().copied().max().unwrap_or_default()];
    let mut number = 0;
    while put(store, number, &value[..lens[number as usize % lens.len()]], ttl_ms).is_ok() {
        number += 1;
    }
    number
}

/// Lengths of values whose items are about as long as the shortest of each size class of the arena: one granule less, the
/// same, one more. Classes are 8 bytes apart up to 512, and beyond cut each doubling into 32.
fn class_boundaries() -> Vec<usize> {
    let short = (0..64).map(|count| count * 8);
    let long = (9..20).flat_map(|bit| (32..64_usize).map(move |step| step << (bit - 5)));
    let starts = short.chain(long).chain([VALUE_LEN_MAX]);
    let mut lens: Vec<_> = starts
        .flat_map(|len| [8, 12, 16, 20, 24].map(|less| len.saturating_sub(less + KEY_LEN)))
        .chain([VALUE_LEN_MAX - 1, VALUE_LEN_MAX])
        .collect();
    lens.sort_unstable();
    lens.dedup();
    lens
}

/// Goal: a store is full only when it is full, at every length. Method: fill an empty one with values of one length; what
/// is not items and index is less than the room for one more item and one more step of the index, items have no more than [`OVERHEAD_MAX`] beside key and value, and both take 90 % of the memory. Full, it answers, deletes, takes a value in place of one that
/// was deleted, and then no second one.
#[test]
fn a_full_store_is_full_at_every_length() {
    let (mut used_least, mut used_least_len) = (1.0, 0);
    for value_len in class_boundaries() {
        let item_len = KEY_LEN + value_len + ITEM_OVERHEAD_MAX;
        let memory_len = (40_000 + value_len % 64 * 61).max(item_len * 24);
        let mut store = Store::new(memory_len, AtCapacity::Refuse, SEEDS).unwrap();
        let count = fill(&mut store, &[value_len], None);
        let MemoryUse { free_len, index_len, items_len, cap_len, .. } = store.memory();
        assert!(
            free_len < item_len + INDEX_STEP_LEN,
            "{value_len}: {free_len} of {cap_len} bytes free at {count} values"
        );
        let overhead_len = items_len - count as usize * (KEY_LEN + value_len);
        assert!(
            overhead_len <= count as usize * OVERHEAD_MAX,
            "{value_len}: {overhead_len} bytes beside the values"
        );
        let used = (items_len + index_len) as f64 / cap_len as f64;
        if used < used_least {
            (used_least, used_least_len) = (used, value_len);
        }
        assert!(used >= 0.9, "{value_len}: {used:.3} of the memory is in use");

        assert_eq!(store.len(), count as usize);
        assert!((0..count).all(|number| get(&store, number).is_some_and(|value| value.len() == value_len)));
        let value = vec![0x5a; value_len];
        for number in [0, count / 2, count - 1] {
            assert_eq!(put(&mut store, count, &value, None), Err(Refusal::NoSpace), "{value_len}");
            assert!(put(&mut store, number, &value, None).is_ok(), "{value_len}: overwriting");
            assert!(delete(&mut store, number));
            assert_eq!(get(&store, number), None);
            assert!(put(&mut store, count, &value, None).is_ok(), "{value_len}: in place of {number}");
            assert_eq!(get(&store, count), Some(&value[..]));
            assert!(delete(&mut store, count));
            assert!(put(&mut store, number, &value, None).is_ok(), "{value_len}: back");
        }
        assert!((0..count).all(|number| get(&store, number).is_some_and(|value| value.len() == value_len)));
    }
    println!("at least {used_least:.3} of the memory in use, with values of {used_least_len} bytes");
}

/// How a store is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Emptying {
    Deleting,
    /// Nothing is asked for meanwhile.
    Expiring,
    /// Each value in turn by one of another length, and only then deletes.
    Overwriting,
}

fn empty(store: &mut Store, count: u32, emptying: Emptying, now: &mut Instant, random: &mut SmallRng) {
    // In an order without pattern.
    let mut numbers: Vec<_> = (0..count).collect();
    for index in (1..numbers.len()).rev() {
        numbers.swap(index, random.random_range(0..=index));
    }
    if emptying == Emptying::Overwriting {
        let value = vec![0x11; store.memory().cap_len / 16];
        for &number in &numbers {
            let former_len = get(store, number).unwrap().len();
            assert!(
                put(store, number, &value[..random.random_range(0..=former_len.min(value.len()))], None)
                    .is_ok()
            );
            // Longer ones may be refused, and then the former one stays.
            let stays = get(store, number).unwrap().len();
            let wanted = random.random_range(0..=value.len());
            let done = put(store, number, &value[..wanted], None).is_ok();
            assert_eq!(get(store, number).unwrap().len(), if done { wanted } else { stays });
        }
    }
    if emptying == Emptying::Expiring {
        *now = *now + Duration::from_secs(60);
        store.advance(*now);
        let (lines, mut expired) = (store.memory().index_len / 64, 0);
        for _ in 0..lines.div_ceil(7) {
            expired += store.expire(7);
        }
        assert_eq!((expired, store.len()), (count as usize, 0));
        return;
    }
    assert!(numbers.into_iter().all(|number| delete(store, number)));
}

/// Goal: no byte is ever lost. Method: fill, empty in one of the ways, and the same again for many rounds; each mix of
/// lengths fits as often as it did the first time, takes as many bytes, and leaves none.
#[test]
fn every_fill_takes_as_much_as_the_first() {
    const SEED: u64 = 17;
    println!("seed {SEED}");
    let mut random = SmallRng::seed_from_u64(SEED);
    let boundaries = class_boundaries();
    for emptying in [Emptying::Deleting, Emptying::Expiring, Emptying::Overwriting] {
        for memory_len in [10_000, 300_000, 4 << 20] {
            let mut store = Store::new(memory_len, AtCapacity::Refuse, SEEDS).unwrap();
            let mut now = Instant::default();
            let ttl_ms = NonZeroU32::new(1_000).filter(|_| emptying == Emptying::Expiring);
            // The index grows to the size that it then keeps.
            while {
                let index_len = store.memory().index_len;
                let count = fill(&mut store, &[0], ttl_ms);
                empty(&mut store, count, emptying, &mut now, &mut random);
                store.memory().index_len > index_len
            } {}
            let index_len = store.memory().index_len;
            let usable: Vec<_> = boundaries.iter().copied().filter(|len| len * 8 < memory_len).collect();
            let mixes: Vec<Vec<usize>> = (0..40)
                .map(|mix| match mix {
                    0 => vec![0],
                    1..30 => {
                        let start = random.random_range(0..usable.len());
                        usable[start..].iter().copied().take(mix).collect()
                    }
                    _ => (0..100).map(|_| usable[random.random_range(0..usable.len())]).collect(),
                })
                .collect();
            let mut first = vec![None; mixes.len()];
            for round in 0..4 {
                for (mix, first) in mixes.iter().zip(&mut first) {
                    let count = fill(&mut store, mix, ttl_ms);
                    let taken = (count, store.memory().items_len, store.memory().free_len);
                    assert_eq!(*first.get_or_insert(taken), taken, "{emptying:?}, round {round}, {mix:?}");
                    empty(&mut store, count, emptying, &mut now, &mut random);
                    assert_eq!(
                        (store.len(), store.memory().items_len),
                        (0, 0),
                        "{emptying:?}, round {round}"
                    );
                    assert_eq!(store.memory().index_len, index_len);
                }
            }
        }
    }
}

/// Goal: a store begins to evict only where it would refuse, nearly. Method: the same new keys for one that refuses and one that
/// evicts; the second holds all of them up to the first refusal, and from there on as many bytes as the first, nearly.
#[test]
fn eviction_begins_where_refusal_does() {
    for value_len in [0, 40, 300, 3_000, 30_000] {
        let memory_len = (value_len * 40).max(60_000);
        let mut refusing = Store::new(memory_len, AtCapacity::Refuse, SEEDS).unwrap();
        let mut evicting = Store::new(memory_len, AtCapacity::Evict, SEEDS).unwrap();
        let count = fill(&mut refusing, &[value_len], None);
        let value = vec![7; value_len];
        for number in 0..count {
            assert!(put(&mut evicting, number, &value, None).is_ok());
        }
        // The one that evicts makes room for a last step of the index, which the other does without.
        let step_count = INDEX_STEP_LEN.div_ceil(KEY_LEN + value_len) + 1;
        assert!(evicting.len() + step_count >= count as usize, "{value_len}: {} of {count}", evicting.len());
        for number in count..10 * count {
            let result = put(&mut evicting, number, &value, None);
            assert!(result.is_ok(), "{value_len}: key {number} of {count}");
            if result.is_ok() {
                assert_eq!(get(&evicting, number), Some(&value[..]));
            }
            let MemoryUse { free_len, cap_len, .. } = evicting.memory();
            let item_len = KEY_LEN + value_len + ITEM_OVERHEAD_MAX;
            assert!(
                free_len <= cap_len / 10 + item_len + INDEX_STEP_LEN,
                "{value_len}: {free_len} bytes free"
            );
        }
        let found = (0..10 * count).filter(|&number| get(&evicting, number).is_some()).count();
        assert_eq!(found, evicting.len());
    }
}
