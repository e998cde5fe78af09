//! Keys that an enemy chooses cost no more than random ones.
//!
//! What a lookup costs beside memory is decided by the hash alone: the low bits choose the bucket, the high ones tell the
//! entries of a bucket apart. So the costs are counted from the hashes, in the index as it is for that many keys.

use linerate_proto::{Key, hash::key_hash};
use linerate_server::store::{AtCapacity, Store};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// Entries that a bucket holds, and those that it has on average when the index has grown as far as it does.
const SLOTS: usize = 10;
const LOAD_OF_TWO: usize = 11;

/// Bits of the hash that an entry is told by.
const TAG_BITS: u32 = 10;

/// Half a round of splits beyond 1,024 buckets: some buckets are twice as full as others, and chains as long as they get.
const KEY_COUNT: usize = 6_144;

/// What all keys of a set cost together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cost {
    /// Buckets of the longest chain.
    chain_len_max: usize,
    /// Entries outside their home bucket, which a batch has not prefetched.
    outside: usize,
    /// Keys that are compared in vain when each key is looked up once: those in the same chain with the same tag.
    comparisons: usize,
}

/// Adds up what the keys cost in stores of several seeds.
fn cost(stores: &[Store], keys: &[Vec<u8>]) -> Cost {
    let mut sum = Cost::default();
    for cost in stores.iter().map(|store| cost_in(store, keys)) {
        sum.chain_len_max = sum.chain_len_max.max(cost.chain_len_max);
        sum.outside += cost.outside;
        sum.comparisons += cost.comparisons;
    }
    sum
}

fn cost_in(store: &Store, keys: &[Vec<u8>]) -> Cost {
    // Linear hashing: buckets of this round that are not yet split take what belongs to their second halves.
    let bucket_count = keys.len() * 2 / LOAD_OF_TWO;
    let mask = bucket_count.next_power_of_two() - 1;
    let mut buckets = vec![Vec::new(); bucket_count];
    for key in keys {
        let hash = store.hash(Key::from(key));
        let bucket = hash as usize & mask;
        let bucket = if bucket < bucket_count { bucket } else { bucket & (mask >> 1) };
        buckets[bucket].push(hash >> (u64::BITS - TAG_BITS));
    }
    let mut cost = Cost::default();
    for tags in &mut buckets {
        cost.chain_len_max = cost.chain_len_max.max(tags.len().div_ceil(SLOTS));
        cost.outside += tags.len().saturating_sub(SLOTS);
        tags.sort_unstable();
        cost.comparisons += tags
            .chunk_by(|left, right| left == right)
            .map(|equal| equal.len() * (equal.len() - 1) / 2)
            .sum::<usize>();
    }
    cost
}

/// So many keys that `make` makes of 0, 1, 2, …, passing over those that `wanted` does not want.
fn keys(make: impl Fn(u64) -> Vec<u8>, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    (0..).map(make).filter(|key| wanted(key)).take(KEY_COUNT).collect()
}

/// What enemies send, each with its name.
fn attacks() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let any = |_: &[u8]| true;
    let big = |number: u64| number.to_be_bytes().to_vec();
    let hash = |key: &[u8]| key_hash(Key::from(key));
    let flipped = |base: &[u8], bits: &[usize]| {
        let mut key = base.to_vec();
        bits.iter().for_each(|bit| key[bit / 8] ^= 1 << (bit % 8));
        key
    };
    let pairs: Vec<_> = (0..136).flat_map(|high| (0..high).map(move |low| [low, high])).collect();
    // The wire hash multiplies the two words of a short key, the first xored with this: none of the second is left.
    let annihilator = 0x243f_6a88_85a3_08d3_u64.to_le_bytes();
    vec![
        ("counting up, high byte first", keys(big, any)),
        ("counting up, low byte first", keys(|number| number.to_le_bytes().to_vec(), any)),
        ("counting up in the top bits", keys(|number| (number << 48).to_le_bytes().to_vec(), any)),
        ("steps of 4096", keys(|number| (number * 4096).to_be_bytes().to_vec(), any)),
        ("decimal", keys(|number| format!("user{number:010}").into_bytes(), any)),
        ("long common beginning", keys(|number| [&[b'x'; 240][..], &number.to_be_bytes()].concat(), any)),
        ("long common end", keys(|number| [&number.to_be_bytes()[..], &[b'x'; 240]].concat(), any)),
        (
            "number in the middle",
            keys(|number| [&[0; 100][..], &number.to_le_bytes(), &[0; 100]].concat(), any),
        ),
        ("same number twice", keys(|number| [number.to_le_bytes(), number.to_le_bytes()].concat(), any)),
        (
            "two bits of 17 bytes",
            keys(|number| flipped(&[0x5a; 17], &pairs[number as usize % pairs.len()]), any),
        ),
        (
            "one bit of 255 bytes",
            (0..KEY_COUNT).map(|index| flipped(&[(index / 2_040) as u8; 255], &[index % 2_040])).collect(),
        ),
        ("wire hashes with the same low bits", keys(big, |key| hash(key) & 0xff == 0x5a)),
        ("wire hashes with the same high bits: one partition", keys(big, |key| hash(key) >> 52 == 77)),
        ("one wire hash", keys(|number| [annihilator, number.to_le_bytes()].concat(), any)),
    ]
}

/// Goal: a flood of chosen keys is no worse than one of random keys. Method: with several seeds of the table's hash, the
/// costs of each attack, as counts, against those of random keys. The attacks that aim at the wire hash do hit it.
#[test]
fn chosen_keys_cost_no_more_than_random_ones() {
    const SEED: u64 = 23;
    println!("seed {SEED}");
    let mut random = SmallRng::seed_from_u64(SEED);
    let stores: Vec<_> =
        (0..16).map(|_| Store::new(4_096, AtCapacity::Refuse, random.random()).unwrap()).collect();
    let random_keys: Vec<_> = (0..KEY_COUNT).map(|_| random.random::<[u8; 16]>().to_vec()).collect();
    let usual = cost(&stores, &random_keys);
    println!("random keys: {usual:?}");
    assert!(usual.outside > 400 && usual.comparisons > 30, "too few to compare with");
    let attacks = attacks();
    for (name, keys) in &attacks {
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), KEY_COUNT, "{name}: keys are to be different");
        let cost = cost(&stores, keys);
        println!("{name}: {cost:?}");
        assert!(cost.chain_len_max <= 2 * usual.chain_len_max, "{name}: {cost:?}, random keys: {usual:?}");
        assert!(cost.outside <= 2 * usual.outside, "{name}: {cost:?}, random keys: {usual:?}");
        assert!(cost.comparisons <= 2 * usual.comparisons, "{name}: {cost:?}, random keys: {usual:?}");
    }
    // The yardstick measures: with one bit of the hash fixed, half of the buckets take all keys.
    let low_bit = |key: &Vec<u8>| stores[0].hash(Key::from(key)) & 1 == 0;
    let aimed: Vec<_> =
        (0_u64..).map(|number| number.to_be_bytes().to_vec()).filter(low_bit).take(KEY_COUNT).collect();
    assert!(cost(&stores[..1], &aimed).outside > 3 * cost(&stores[..1], &random_keys).outside);
    let (_, one_hash) = attacks.last().expect("the attacks above");
    assert!(one_hash.iter().all(|key| key_hash(Key::from(key)) == key_hash(Key::from(&one_hash[0]))));
}
