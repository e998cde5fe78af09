//! The shard store: keys and values of one core, under a hard memory cap.
//!
//! One thread owns a [`Store`]; there is no lock and no atomic. What a lookup costs is waiting for memory, so lookups
//! are meant to be made in batches, each stage for the whole batch: [`Store::hash`] and [`Store::prefetch_bucket`],
//! then [`Store::probe`], then [`Store::get_probed`]. With 64 or more in flight the waits overlap almost entirely.
//!
//! All memory is one mapping. The index grows from its low end, items are laid from its high end down, and the cap is
//! the mapping's size, so that it cannot be exceeded:
//!
//! ```text
//! | buckets → |          free          | items and holes          |
//! ```
//! Items in the way of the growing index move, as do some when free memory is too scattered for a put. Both happen a
//! few items per put: there is no long pause. Nothing is allocated per item, and all but the prefetches and the SIMD
//! comparison is safe code: a wrong reference could give a wrong answer or a panic, never access outside the mapping.

mod arena;
mod index;
mod item;
#[allow(unsafe_code)]
mod prefetch;
#[allow(unsafe_code)]
mod tags;

use std::{
    fmt,
    hash::{BuildHasher, Hasher},
    io,
};

use ahash::RandomState;
use linerate_dataplane::region::Region;
use linerate_proto::{
    Key,
    key::HEAD_LEN,
    mutants::{Mutant, is_active},
    wire,
};
use zerocopy::IntoBytes;

use arena::{Arena, GRANULE_LEN, Granule};
use index::{Bucket, Entry, GROUP_GRANULES, GROUP_LINES, Index, Position, granules_mut, lines_mut};
pub use item::Found;
use item::Lengths;
use prefetch::{LINE_LEN, prefetch_line};

/// Longest key, in bytes; the shortest has 1.
pub const KEY_LEN_MAX: usize = 255;

/// Longest value, in bytes; the shortest is empty.
pub const VALUE_LEN_MAX: usize = wire::VALUE_LEN_MAX;

/// Least and most memory of a store, in bytes: below, an index leaves no room; above, references overflow.
const MEMORY_LEN: std::ops::RangeInclusive<usize> = 4096..=64 << 30;

/// The keys and values of one shard.
pub struct Store {
    /// Buckets up to the index's `line_count`, then the arena's granules.
    lines: Region<Bucket>,
    index: Index,
    arena: Arena,
    hasher: RandomState,
    /// Puts and deletes tried so far, modulo 2^32: after any of them items may lie elsewhere.
    writes: u32,
    /// Puts and deletes that took effect so far.
    version: u64,
}

/// What it is and how full, without the keys and values.
impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, .. } = self;
        formatter
            .debug_struct("Store")
            .field("index", index)
            .field("memory", &self.memory())
            .finish_non_exhaustive()
    }
}

/// The store is full: the put was refused, and what was stored before still is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no space left in the shard")]
pub struct NoSpace;

/// Where [`Store::probe`] saw what is probably the item: a hint for [`Store::get_probed`].
///
/// The default is a hint at nothing, with which a get is still right.
#[derive(Clone, Copy, Debug, Default)]
pub struct Probe {
    /// Line of the bucket.
    bucket: u32,
    /// First granule of the item; 0 for none.
    reference: u32,
    /// Writes to the store before the probe: any after it may have moved or removed the item.
    writes: u32,
}

/// How a store's memory is used; all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// The index. It grows with the number of keys and does not shrink.
    pub index_len: usize,
    /// Items with their headers and padding.
    pub items_len: usize,
    /// Free for items and index, though not in one piece.
    pub free_len: usize,
    /// The cap: all of the above and the 64 bytes that end the arena.
    pub cap_len: usize,
}

impl Store {
    /// An empty store in `memory_len` bytes, rounded down to whole cache lines. Pages are touched as they fill.
    ///
    /// `seeds` are the keys of the table's hash: to be random at each start, so that nobody can choose keys that
    /// collide.
    ///
    /// # Errors
    /// `InvalidInput` when `memory_len` is below 4 KiB or above 64 GiB; `ENOMEM` when the kernel refuses the mapping.
    pub fn new(memory_len: usize, seeds: [u64; 4]) -> io::Result<Self> {
        if !MEMORY_LEN.contains(&memory_len) {
            let message = format!("a shard's memory must be 4 KiB to 64 GiB, not {memory_len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut lines = Region::<Bucket>::zeroed(memory_len / LINE_LEN)?;
        let arena = Arena::new(granules_mut(&mut lines), GROUP_GRANULES);
        let [seed0, seed1, seed2, seed3] = seeds;
        let hasher = RandomState::with_seeds(seed0, seed1, seed2, seed3);
        Ok(Self { lines, index: Index::new(), arena, hasher, writes: 0, version: 0 })
    }

    /// The hash that every other method wants beside the key. Differs from store to store with the seeds.
    #[inline]
    pub fn hash(&self, key: Key<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        if key.len() <= HEAD_LEN {
            let [low, high] = key.head();
            // The length tells keys apart that differ only in zeros at their end. Only a key of all sixteen bytes has
            // something else in the top byte; it can collide with one shorter key, which does no harm.
            let high = high ^ (key.len() as u64) << 56;
            hasher.write_u128(u128::from(low) | u128::from(high) << 64);
        } else {
            // Not `key.hash`, which would mix the length in a second time.
            hasher.write(key.bytes());
        }
        hasher.finish()
    }

    /// Asks for the cache line that [`Store::probe`] looks at; the hint says which, and nothing of an item yet.
    #[inline]
    pub fn prefetch_bucket(&self, hash: u64) -> Probe {
        let line = self.index.home(hash);
        prefetch_line(self.lines.as_bytes(), line * LINE_LEN);
        Probe { bucket: line as u32, reference: 0, writes: self.writes }
    }

    /// Looks for the hash in its bucket, and asks for all cache lines of the item that seems to be it.
    #[inline]
    pub fn probe(&self, hash: u64, probe: Probe) -> Probe {
        Probe { reference: self.index.probe(&self.lines, probe.bucket, hash), ..probe }
    }

    /// Value and version of a key.
    #[inline]
    pub fn get(&self, key: Key<'_>, hash: u64) -> Option<Found<'_>> {
        self.index.find(&self.lines, key, hash).map(|(_, found)| found)
    }

    /// The same as [`Store::get`], faster after a probe of the same hash.
    ///
    /// The hint is checked against the key, and not followed after any write: the answer is always right. Only a hint
    /// that is older than 2^32 writes could be taken for a new one.
    #[inline(always)]
    pub fn get_probed(&self, key: Key<'_>, hash: u64, probe: Probe) -> Option<Found<'_>> {
        if probe.writes == self.writes
            && probe.reference != 0
            && let Some(found) = item::found_at(self.lines.as_bytes(), probe.reference, key)
        {
            return Some(found);
        }
        self.get_again(key, hash)
    }

    /// The rare way on, kept out of the loops that the usual one is part of.
    #[cold]
    #[inline(never)]
    fn get_again(&self, key: Key<'_>, hash: u64) -> Option<Found<'_>> {
        self.get(key, hash)
    }

    /// Writes that have taken effect so far; the latest has this number as its version. An absent key was so at this
    /// version.
    #[inline]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Stores a value, in place of the key's former one, and returns its version.
    ///
    /// A value that takes no more memory than the former one is never refused.
    ///
    /// # Errors
    /// [`NoSpace`] when there is no room for the item or for its entry in the index. What is stored is unchanged then.
    /// If enough memory is free but scattered, this call has gathered some of it, and a later one succeeds.
    ///
    /// # Panics
    /// When the key is empty or longer than [`KEY_LEN_MAX`], or the value longer than [`VALUE_LEN_MAX`]: bytes from
    /// the network are to be checked where they are parsed.
    pub fn put(&mut self, key: Key<'_>, hash: u64, value: &[u8]) -> Result<u64, NoSpace> {
        assert!((1..=KEY_LEN_MAX).contains(&key.len()), "a key of {} bytes", key.len());
        assert!(value.len() <= VALUE_LEN_MAX, "a value of {} bytes", value.len());
        self.writes = self.writes.wrapping_add(1);
        let step = u64::from(!is_active(Mutant::VersionKept) || self.version == 0);
        let next = Found { value, version: self.version + step };
        match self.index.find(&self.lines, key, hash) {
            Some((position, former)) => {
                let former = Lengths::new(key.len(), former.value.len());
                self.replace(key, hash, next, position, former)?;
            }
            None => self.insert(key, hash, next)?,
        }
        self.version = next.version;
        Ok(next.version)
    }

    /// Removes a key and returns the version of its absence; `None` when there was none.
    pub fn delete(&mut self, key: Key<'_>, hash: u64) -> Option<u64> {
        self.writes = self.writes.wrapping_add(1);
        let (position, found) = self.index.find(&self.lines, key, hash)?;
        let granule_count = Lengths::new(key.len(), found.value.len()).granule_count();
        let start = self.index.entry(&self.lines, position).reference;
        self.index.remove(&mut self.lines, hash, position);
        self.arena.give_back(granules_mut(&mut self.lines), start, granule_count);
        self.version += 1;
        Some(self.version)
    }

    /// Keys that are stored.
    pub fn len(&self) -> usize {
        self.index.entry_count()
    }

    /// Whether no key is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How the memory is used at the moment.
    pub fn memory(&self) -> MemoryUse {
        MemoryUse {
            index_len: self.index.line_count() * LINE_LEN,
            items_len: self.arena.used_count() as usize * GRANULE_LEN,
            free_len: self.arena.free_count() as usize * GRANULE_LEN,
            cap_len: self.lines.len() * LINE_LEN,
        }
    }

    fn replace(
        &mut self,
        key: Key<'_>,
        hash: u64,
        next: Found<'_>,
        position: Position,
        former: Lengths,
    ) -> Result<(), NoSpace> {
        let wanted = Lengths::new(key.len(), next.value.len());
        let (former_count, wanted_count) = (former.granule_count(), wanted.granule_count());
        let start = if wanted_count <= former_count {
            let start = self.index.entry(&self.lines, position).reference;
            self.arena.shorten(granules_mut(&mut self.lines), start, former_count, wanted_count);
            start
        } else {
            let start = self.take(wanted_count)?;
            // Only now: taking may have moved the former item.
            let former_start = self.index.entry(&self.lines, position).reference;
            self.arena.give_back(granules_mut(&mut self.lines), former_start, former_count);
            start
        };
        let granules = granules_mut(&mut self.lines);
        item::write(granules, start, hash, key, next);
        self.index.replace(&mut self.lines, position, Entry::new(hash, start, wanted));
        Ok(())
    }

    fn insert(&mut self, key: Key<'_>, hash: u64, next: Found<'_>) -> Result<(), NoSpace> {
        // Room in the index first: growing may move items, so none must be half stored while it does.
        while !self.index.has_room(&self.lines, hash) {
            self.grow()?;
        }
        let lengths = Lengths::new(key.len(), next.value.len());
        let start = self.take(lengths.granule_count())?;
        item::write(granules_mut(&mut self.lines), start, hash, key, next);
        self.index.insert(&mut self.lines, hash, Entry::new(hash, start, lengths));
        if self.index.is_crowded() {
            // Refused when memory is full; lookups then get slower by the longer chains, nothing else.
            let _ = self.grow();
        }
        Ok(())
    }

    /// A block for an item; other items may have moved.
    fn take(&mut self, granule_count: u32) -> Result<u32, NoSpace> {
        let granules = granules_mut(&mut self.lines);
        if let Some(start) = self.arena.take(granules, granule_count) {
            return Ok(start);
        }
        let follow =
            |granules: &mut [Granule], from, to| self.index.item_moved(lines_mut(granules), from, to);
        if !self.arena.compact(granules, granule_count, follow) {
            return Err(NoSpace);
        }
        self.arena.take(granules, granule_count).ok_or(NoSpace)
    }

    /// Adds one bucket to the index.
    fn grow(&mut self) -> Result<(), NoSpace> {
        if self.index.split_needs_group() {
            let first_new = self.index.line_count();
            let follow =
                |granules: &mut [Granule], from, to| self.index.item_moved(lines_mut(granules), from, to);
            let granules = granules_mut(&mut self.lines);
            if let Err(homeless_count) = self.arena.cede(granules, GROUP_GRANULES, follow) {
                // Nothing else gathers room for a long item in the way, and without it the index could never grow.
                let gathered = self.arena.compact(granules, homeless_count, follow);
                if !gathered || self.arena.cede(granules, GROUP_GRANULES, follow).is_err() {
                    return Err(NoSpace);
                }
            }
            self.lines[first_new..][..GROUP_LINES].fill(Bucket::EMPTY);
        }
        self.index.split(&mut self.lines);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    const SEEDS: [u64; 4] = [1, 2, 3, 4];

    impl Store {
        fn put_key(&mut self, key: &[u8], value: &[u8]) -> Result<(), NoSpace> {
            self.put(key.into(), self.hash(key.into()), value).map(|_| ())
        }

        fn get_key(&self, key: &[u8]) -> Option<&[u8]> {
            self.get(key.into(), self.hash(key.into())).map(|found| found.value)
        }

        fn delete_key(&mut self, key: &[u8]) -> bool {
            self.delete(key.into(), self.hash(key.into())).is_some()
        }

        /// Every block, list, chain, entry and sum agrees with every other.
        fn check(&self) {
            let granules = index::granules(&self.lines);
            let mut references = self.index.check(&self.lines);
            self.arena.check(granules, |block| {
                let lengths = item::lengths(granules, block);
                assert_eq!(
                    references.remove(&block),
                    Some(index::span(block, lengths)),
                    "entry of item {block}"
                );
                lengths.granule_count()
            });
            assert!(references.is_empty(), "entries without an item: {references:?}");
            let memory = self.memory();
            assert_eq!(memory.index_len + memory.items_len + memory.free_len + LINE_LEN, memory.cap_len);
        }

        fn fill(&mut self, value_len: usize) -> u32 {
            let value = vec![9; value_len];
            (0_u32..).find(|number| self.put_key(&number.to_be_bytes(), &value).is_err()).unwrap()
        }
    }

    fn random_bytes(random: &mut SmallRng, len: usize) -> Vec<u8> {
        (0..len).map(|_| random.random()).collect()
    }

    /// A length up to `max`, of any order of magnitude.
    fn random_len(random: &mut SmallRng, max: usize) -> usize {
        let shift = random.random_range(0..=max.ilog2());
        random.random_range(0..=max >> shift)
    }

    /// Goal: no new key is refused for ever while plenty is free: the index grows over a long value in its way once the
    /// scattered free memory has been gathered for it. Method: values of 1 MiB low in memory, holes of 1 KiB elsewhere;
    /// then short keys, each tried a bounded number of times, until a quarter of the holes' memory is left.
    #[test]
    fn a_long_value_does_not_stop_the_index_for_ever() {
        let mut store = Store::new(8 << 20, SEEDS).unwrap();
        for number in 0..3_000_u32 {
            store.put_key(&number.to_be_bytes(), &[1; 1_000]).unwrap();
        }
        let long =
            (0_u64..).find(|number| store.put_key(&number.to_be_bytes(), &[2; 1 << 20]).is_err()).unwrap();
        assert!(long >= 3, "{long} long values");
        // What is left between the index and the long values is filled but for a little.
        let mut value_len = 1 << 19;
        for number in 0..1_000_u32 {
            if store.put_key(&[&b"filler"[..], &number.to_be_bytes()].concat(), &vec![3; value_len]).is_err()
            {
                value_len = value_len / 2 + 1_000;
            }
        }
        for number in (0..3_000_u32).step_by(2) {
            assert!(store.delete_key(&number.to_be_bytes()));
        }
        let free = store.memory().free_len;
        assert!(free > 1_400_000, "{free} bytes free");
        for number in 0..u32::MAX {
            if store.memory().free_len < free / 4 {
                break;
            }
            let key = [&b"new"[..], &number.to_be_bytes()].concat();
            let stored = (0..1_000).any(|_| store.put_key(&key, b"").is_ok());
            assert!(stored, "key {number}: {:?}", store.memory());
        }
        store.check();
    }

    /// Goal: the store is a map. Method: random operations of random sizes on few keys, at caps from "nearly always
    /// full" to "never full", against `HashMap`; a refused put must change nothing.
    #[test]
    fn behaves_like_a_map() {
        for (seed, memory_len, key_count, value_len_max) in [
            (1, 4_096, 120, 60),
            (2, 20_000, 500, 100),
            (3, 60_000, 300, 5_000),
            (4, 1 << 20, 2_000, 65_535),
            (5, 16 << 20, 20_000, 300),
        ] {
            println!("seed {seed}");
            let mut random = SmallRng::seed_from_u64(seed);
            let mut store = Store::new(memory_len, random.random()).unwrap();
            let mut model = HashMap::<Vec<u8>, Vec<u8>>::new();
            let keys = (0..key_count)
                .map(|_| {
                    let len = random_len(&mut random, KEY_LEN_MAX).max(1);
                    random_bytes(&mut random, len)
                })
                .collect::<Vec<_>>();
            let mut refused = 0;
            for step in 0..60_000 {
                let key = &keys[random.random_range(0..keys.len())];
                match random.random_range(0..10) {
                    0..4 => {
                        assert_eq!(store.get_key(key), model.get(key).map(|value| &value[..]), "step {step}")
                    }
                    4..8 => {
                        let value = vec![step as u8; random_len(&mut random, value_len_max)];
                        match store.put_key(key, &value) {
                            Ok(()) => drop(model.insert(key.clone(), value)),
                            Err(NoSpace) => refused += 1,
                        }
                    }
                    _ => assert_eq!(store.delete_key(key), model.remove(key).is_some(), "step {step}"),
                }
                assert_eq!(store.len(), model.len());
                if step % (key_count * 10) == 0 {
                    store.check();
                }
            }
            println!("{} keys, {refused} puts refused, {:?}", store.len(), store.memory());
            assert_eq!(refused > 0, seed != 5, "the caps are meant to cover both cases");
            for key in &keys {
                assert_eq!(store.get_key(key), model.get(key).map(|value| &value[..]));
            }
            for key in model.keys() {
                assert!(store.delete_key(key));
            }
            store.check();
            assert!(store.is_empty() && store.memory().items_len == 0);
        }
    }

    /// Goal: nothing leaks. Method: fill until refused, delete all, fill again; with several sizes, so that each fill
    /// finds the memory as another size left it.
    #[test]
    fn refills_to_the_same_count() {
        for memory_len in [10_000, 1 << 20] {
            let mut store = Store::new(memory_len, SEEDS).unwrap();
            let mut counts = HashMap::<usize, u32>::new();
            // The smallest first: after it, the index has the size that it keeps.
            for value_len in [0, 0, 4_000, 100, 0, 100, 4_000, 1_000, 0, 1_000] {
                let count = store.fill(value_len);
                store.check();
                assert!(
                    (0..count).all(|number| store.get_key(&number.to_be_bytes()).unwrap().len() == value_len)
                );
                assert!((0..count).all(|number| store.delete_key(&number.to_be_bytes())));
                assert_eq!(*counts.entry(value_len).or_insert(count), count, "values of {value_len} bytes");
                assert!(store.is_empty());
                store.check();
            }
        }
    }

    /// Goal: mixed sizes do not strand memory. Method: at the cap, ten times the capacity is written in values of
    /// very different sizes, random keys deleted whenever there is no room; then what is stored counts.
    #[test]
    fn mixed_sizes_keep_memory_usable() {
        const CAP_LEN: usize = 2 << 20;
        let mut random = SmallRng::seed_from_u64(7);
        let mut store = Store::new(CAP_LEN, SEEDS).unwrap();
        let mut stored = Vec::new();
        let (mut written_len, mut usable_len_min, mut payload_len) = (0, usize::MAX, 0);
        let mut number = 0_u32;
        while written_len < 10 * CAP_LEN {
            let value = vec![1; random_len(&mut random, 20_000)];
            number += 1;
            while store.put_key(&number.to_be_bytes(), &value).is_err() {
                if written_len > CAP_LEN {
                    usable_len_min = usable_len_min.min(payload_len);
                }
                let (key, len): (u32, usize) = stored.swap_remove(random.random_range(0..stored.len()));
                assert!(store.delete_key(&key.to_be_bytes()));
                payload_len -= len;
            }
            stored.push((number, 4 + value.len()));
            payload_len += 4 + value.len();
            written_len += 4 + value.len();
        }
        store.check();
        println!("at least {usable_len_min} bytes of keys and values at each refusal, {:?}", store.memory());
        assert!(usable_len_min >= CAP_LEN * 9 / 10);
    }

    /// Goal: small items find room where large ones were, also when the index must grow into occupied memory.
    /// Method: a store full of large values with a tiny index is turned over to small ones, oldest last, so that the
    /// items next to the index stay until it needs their place.
    #[test]
    fn the_index_grows_into_a_full_store() {
        let mut store = Store::new(4 << 20, SEEDS).unwrap();
        let large_count = store.fill(8_000);
        let index_len_before = store.memory().index_len;
        let mut small_count = 0_u32;
        for number in 0..large_count - 10 {
            assert!(store.delete_key(&number.to_be_bytes()));
            for _ in 0..80 {
                store.put_key(&u64::from(small_count).to_be_bytes(), &[1; 32]).unwrap();
                small_count += 1;
            }
        }
        store.check();
        assert!(store.memory().index_len > 20 * index_len_before);
        assert!(
            small_count as usize * LINE_LEN <= 7 * store.memory().index_len,
            "chains grew instead of the index"
        );
        assert!(
            (0..small_count).all(|number| store.get_key(&u64::from(number).to_be_bytes()) == Some(&[1; 32]))
        );
        assert!((large_count - 10..large_count).all(|number| store.get_key(&number.to_be_bytes()).is_some()));
    }

    /// Goal: no key is lost or doubled at any size of the index. Method: after each put of several rounds of splits,
    /// the new key and a random one; all of them and all structures every so often.
    #[test]
    fn every_growth_keeps_all_keys() {
        let mut random = SmallRng::seed_from_u64(8);
        let mut store = Store::new(4 << 20, SEEDS).unwrap();
        for number in 0..12_000_u32 {
            assert_eq!(store.get_key(&number.to_be_bytes()), None);
            store.put_key(&number.to_be_bytes(), &number.to_le_bytes()).unwrap();
            for number in [number, random.random_range(0..=number)] {
                assert_eq!(store.get_key(&number.to_be_bytes()), Some(&number.to_le_bytes()[..]));
            }
            if number % 1_000 == 0 || number < 200 {
                store.check();
                let found = |number: u32| store.get_key(&number.to_be_bytes()) == Some(&number.to_le_bytes());
                assert!((0..=number).all(found));
            }
        }
        assert_eq!(store.len(), 12_000);
    }

    /// Goal: equal hashes cost time, not keys. Method: many keys under one hash between keys with their own; all are
    /// found, plainly and after a probe, overwritten and deleted in another order.
    #[test]
    fn keys_with_one_hash_are_kept_apart() {
        let mut store = Store::new(1 << 20, SEEDS).unwrap();
        let hash = store.hash(Key::from(b"a"));
        for number in 0..700_u32 {
            store.put(Key::from(&number.to_be_bytes()), hash, &[1; 20]).unwrap();
            store.put_key(&u64::from(number).to_be_bytes(), b"other").unwrap();
            store.put(Key::from(&number.to_be_bytes()), hash, &number.to_le_bytes()).unwrap();
        }
        store.check();
        assert_eq!(store.len(), 1_400);
        let probe = store.probe(hash, store.prefetch_bucket(hash));
        for number in 0..700_u32 {
            let found = store.get(Key::from(&number.to_be_bytes()), hash);
            assert_eq!(found.map(|found| found.value), Some(&number.to_le_bytes()[..]));
            assert_eq!(store.get_probed(Key::from(&number.to_be_bytes()), hash, probe), found);
            assert_eq!(store.get_key(&u64::from(number).to_be_bytes()), Some(&b"other"[..]));
        }
        for number in (0..700_u32).map(|number| number * 37 % 700) {
            assert!(store.delete(Key::from(&number.to_be_bytes()), hash).is_some());
            assert_eq!(store.delete(Key::from(&number.to_be_bytes()), hash), None);
        }
        store.check();
        assert_eq!(store.len(), 700);
    }

    /// Goal: a hint never makes an answer wrong. Method: probes taken at all times, of all keys, used for their own
    /// key and for others' after writes that move, remove and overwrite; and probes of another store.
    #[test]
    fn stale_probes_are_harmless() {
        let mut random = SmallRng::seed_from_u64(9);
        let mut store = Store::new(100_000, SEEDS).unwrap();
        let mut full = Store::new(1 << 20, [5, 6, 7, 8]).unwrap();
        full.fill(0);
        let mut probes = (0..2_000_u32)
            .map(|number| full.hash(Key::from(&number.to_be_bytes())))
            .map(|hash| full.probe(hash, full.prefetch_bucket(hash)))
            .collect::<Vec<_>>();
        let mut model = HashMap::new();
        for step in 0..20_000 {
            let key = random.random_range(0..300_u32).to_be_bytes();
            let hash = store.hash(Key::from(&key));
            probes.push(store.probe(hash, store.prefetch_bucket(hash)));
            if step % 3 == 0 {
                store.delete(Key::from(&key), hash);
                model.remove(&key);
            } else {
                let value = vec![step as u8; random.random_range(0..200)];
                if store.put(Key::from(&key), hash, &value).is_ok() {
                    model.insert(key, value);
                }
            }
            for _ in 0..4 {
                let key = random.random_range(0..300_u32).to_be_bytes();
                let probe = probes[random.random_range(0..probes.len())];
                let value = store.get_probed(Key::from(&key), store.hash(Key::from(&key)), probe);
                assert_eq!(
                    value.map(|found| found.value),
                    model.get(&key).map(|value| &value[..]),
                    "step {step}"
                );
            }
        }
    }

    /// Goal: the limits of lengths are as documented. Method: the shortest and longest keys and values, and beyond.
    #[test]
    fn lengths_at_the_limits() {
        let mut store = Store::new(4 << 20, SEEDS).unwrap();
        for (key_len, value_len) in
            [(1, 0), (1, VALUE_LEN_MAX), (KEY_LEN_MAX, 0), (KEY_LEN_MAX, VALUE_LEN_MAX)]
        {
            let (key, value) = (vec![b'k'; key_len], vec![b'v'; value_len]);
            assert_eq!(store.put_key(&key, &value), Ok(()));
            assert_eq!(store.get_key(&key), Some(&value[..]));
        }
        assert_eq!((store.len(), store.get_key(b"kk")), (2, None));
        store.check();
        for (key_len, value_len) in [(0, 1), (256, 1), (1, VALUE_LEN_MAX + 1)] {
            let (key, value) = (vec![b'k'; key_len], vec![b'v'; value_len]);
            let put = std::panic::AssertUnwindSafe(|| store.put_key(&key, &value));
            assert!(std::panic::catch_unwind(put).is_err(), "{key_len} {value_len}");
        }
        assert_eq!((store.get_key(b""), store.get_key(&[b'k'; 256])), (None, None));
    }

    /// Goal: versions count the writes that took effect, and stay with what they wrote. Method: each kind of write, with
    /// and without effect, and an index that grows meanwhile.
    #[test]
    fn versions_count_effective_writes() {
        let mut store = Store::new(64 << 10, SEEDS).unwrap();
        let put = |store: &mut Store, key: &[u8], value: &[u8]| {
            store.put(key.into(), store.hash(key.into()), value)
        };
        let delete = |store: &mut Store, key: &[u8]| store.delete(key.into(), store.hash(key.into()));
        assert_eq!(put(&mut store, b"a", b"1"), Ok(1));
        assert_eq!(put(&mut store, b"b", b"2"), Ok(2));
        assert_eq!(put(&mut store, b"a", b"3"), Ok(3));
        assert_eq!(delete(&mut store, b"b"), Some(4));
        assert_eq!(delete(&mut store, b"b"), None);
        assert_eq!(put(&mut store, b"c", &[0; 70_000]), Err(NoSpace));
        assert_eq!(store.version(), 4);
        for number in 0..200_u32 {
            assert_eq!(put(&mut store, &number.to_be_bytes(), b"x"), Ok(5 + u64::from(number)));
        }
        let version = |key: &[u8]| store.get(key.into(), store.hash(key.into())).map(|found| found.version);
        assert_eq!((version(b"a"), version(b"b"), version(&7_u32.to_be_bytes())), (Some(3), None, Some(12)));
    }

    /// Goal: at the cap, a value may always be replaced by one that is not longer. Method: full store, every value
    /// shrunk twice, and longer ones refused without loss.
    #[test]
    fn shrinking_is_never_refused() {
        let mut store = Store::new(100_000, SEEDS).unwrap();
        let count = store.fill(500);
        assert_eq!(store.put_key(&0_u32.to_be_bytes(), &[1; 5_000]), Err(NoSpace));
        assert_eq!(store.get_key(&0_u32.to_be_bytes()), Some(&[9; 500][..]));
        for value_len in [500, 499, 30, 0] {
            for number in 0..count {
                assert_eq!(store.put_key(&number.to_be_bytes(), &vec![2; value_len]), Ok(()));
            }
            store.check();
        }
        assert!(store.fill(500) > 0);
    }

    /// Goal: caps that cannot work are refused, the smallest allowed one works. Method: the limits.
    #[test]
    fn memory_limits() {
        for memory_len in [0, 4095, (64 << 30) + 1, usize::MAX] {
            let error = Store::new(memory_len, SEEDS).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        let mut store = Store::new(4096, SEEDS).unwrap();
        assert!(store.fill(0) >= 90);
        store.check();
    }

    /// Goal: what an item costs beside key and value stays within the target. Method: count bytes at sizes all over a
    /// round of splits, with lengths that leave every amount of padding.
    #[test]
    fn overhead_per_record() {
        let mut store = Store::new(32 << 20, SEEDS).unwrap();
        let mut payload_len = 0;
        for number in 0..65_536_u32 {
            let value = &[0; 200][..(number % 200) as usize];
            store.put_key(&number.to_be_bytes(), value).unwrap();
            payload_len += 4 + value.len();
            if number > 10_000 && number % 1_000 == 0 {
                let memory = store.memory();
                let overhead = (memory.index_len + memory.items_len - payload_len) / store.len();
                assert!(overhead <= 41, "{overhead} bytes per record at {} records", store.len());
            }
        }
    }
}
