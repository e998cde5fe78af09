//! The index may be stopped at any step of its growth, and everything done between any two of them.

use linerate_proto::{
    Key,
    wire::{Condition, Terms},
};
use linerate_server::store::{AtCapacity, Probe, Refusal, Store, Sum};

use crate::model::{INDEX_STEP_LEN, ITEM_OVERHEAD_MAX};

const SEEDS: [u64; 4] = [5, 6, 7, 8];

/// Keys while the index grows from 16 buckets to some hundreds: one split per four keys or more.
const KEY_COUNT: u32 = if cfg!(miri) { 70 } else { 1_500 };

/// Keys asked for in one batch. Miri checks all of the store's memory at each access, so that it has little of both.
const BATCH: u32 = if cfg!(miri) { 4 } else { 64 };

struct Numbers(Store);

impl Numbers {
    fn new(memory_len: usize, at_capacity: AtCapacity) -> Self {
        Self(Store::new(memory_len, at_capacity, SEEDS).unwrap())
    }

    fn hash(&self, number: u32) -> u64 {
        self.0.hash(Key::from(&number.to_be_bytes()))
    }

    fn put(&mut self, number: u32, value: &[u8]) -> Result<u64, Refusal> {
        let hash = self.hash(number);
        self.0.put(Key::from(&number.to_be_bytes()), hash, value, Terms::default())
    }

    fn get(&self, number: u32) -> Option<&[u8]> {
        self.0.get(Key::from(&number.to_be_bytes()), self.hash(number)).map(|found| found.value)
    }

    fn delete(&mut self, number: u32) -> bool {
        let hash = self.hash(number);
        self.0.delete(Key::from(&number.to_be_bytes()), hash).is_some()
    }

    /// What each key has, unless a test says otherwise.
    fn value(number: u32) -> [u8; 8] {
        (u64::from(number) << 7).to_be_bytes()
    }

    fn put_own(&mut self, number: u32) -> Result<u64, Refusal> {
        self.put(number, &Self::value(number))
    }

    fn holds(&self, number: u32) -> bool {
        self.get(number) == Some(&Self::value(number))
    }

    fn assert_holds_all(&self, count: u32) {
        for number in 0..count {
            assert!(self.holds(number), "key {number} of {count}: {:?}", self.get(number));
        }
        for number in count..count + 20 {
            assert_eq!(self.get(number), None);
        }
    }

    /// Takes what memory is free: by one long value, and by empty ones what is too short for that.
    fn take_all_memory(&mut self, first: u32) -> u32 {
        let mut len = self.0.memory().free_len.min(1 << 20);
        let mut number = first;
        while len >= 4 {
            match self.put(number, &vec![1; len]) {
                Ok(_) => number += 1,
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::NoSpace);
                    // Almost all at first, and then by halves.
                    len = if number == first { len - 4 } else { len / 2 };
                }
            }
        }
        while self.put(number, b"").is_ok() {
            number += 1;
        }
        number
    }
}

/// Goal: growth that is refused at any step loses nothing, and goes on when there is memory again. Method: before each key,
/// all free memory is taken. Keys that are there are found, overwritten, deleted and put back; new ones fit in the place of
/// others or are refused; then the memory is given back and the next key comes.
#[test]
fn growth_is_refused_at_every_step() {
    const FILLERS: u32 = 1 << 30;
    let mut store = Numbers::new(if cfg!(miri) { 6_000 } else { 160_000 }, AtCapacity::Refuse);
    for count in 0..KEY_COUNT {
        let end = store.take_all_memory(FILLERS);
        let (index_len, free_len) = (store.0.memory().index_len, store.0.memory().free_len);
        assert!(free_len < 4 + ITEM_OVERHEAD_MAX + INDEX_STEP_LEN, "{free_len} bytes left at {count} keys");
        if count % if cfg!(miri) { 20 } else { 50 } == 0 || (count < 300 && !cfg!(miri)) {
            store.assert_holds_all(count);
        }
        if count > 0 {
            for number in [0, count / 2, count - 1] {
                assert!(store.put(number, b"").is_ok());
                assert_eq!(store.get(number), Some(&b""[..]));
                assert!(store.delete(number));
                assert_eq!(store.get(number), None);
                assert!(store.put_own(number).is_ok(), "at {count} keys");
                assert!(store.holds(number));
            }
            let [former, delta] = [Numbers::value(0), 3_u64.to_be_bytes()].map(u64::from_be_bytes);
            let hash = store.hash(0);
            let sum = store.0.add(Key::from(&0_u32.to_be_bytes()), hash, delta, None).unwrap();
            assert_eq!(sum, Sum { former, version: store.0.version() });
            assert!(store.put_own(0).is_ok());
        }
        assert_eq!(store.0.memory().index_len, index_len, "grew without memory");
        assert_eq!(store.0.len(), (count + end - FILLERS) as usize);
        assert!((FILLERS..end).all(|number| store.delete(number)));
        assert!(store.put_own(count).is_ok());
    }
    store.assert_holds_all(KEY_COUNT);
    // With the memory back, the index is as large as one that was never refused any, but for what is still to be caught up.
    let mut unhindered = Numbers::new(160_000, AtCapacity::Refuse);
    (0..KEY_COUNT).for_each(|number| assert!(unhindered.put_own(number).is_ok()));
    for number in KEY_COUNT..3 * KEY_COUNT {
        assert!(store.put_own(number).is_ok() && store.delete(number));
    }
    assert!(store.0.memory().index_len >= unhindered.0.memory().index_len);
}

/// Goal: whatever the size of the memory, the last step of growth that it allows leaves a whole store. Method: stores from
/// the smallest on, a line more each time, filled with empty values to the first refusal; then half is turned over.
#[test]
#[cfg_attr(miri, ignore = "takes miri a minute, and shows it nothing that the others do not")]
fn every_memory_ends_well() {
    for at_capacity in [AtCapacity::Refuse, AtCapacity::Evict] {
        for memory_len in (4_096..40_000).step_by(64) {
            let mut store = Numbers::new(memory_len, at_capacity);
            let limit = memory_len as u32;
            let count = (0..limit).find(|&number| store.put_own(number).is_err());
            let evicts = at_capacity == AtCapacity::Evict;
            assert_eq!(count.is_none(), evicts, "{memory_len} bytes");
            let Some(count) = count else {
                let found = (0..limit).filter(|&number| store.get(number).is_some());
                assert!(found.map(|number| assert!(store.holds(number))).count() == store.0.len());
                assert!(store.holds(limit - 1));
                continue;
            };
            store.assert_holds_all(count);
            let mut kept = 0;
            for number in (0..count).step_by(2) {
                assert!(store.delete(number));
                let put = store.put_own(count + number);
                // Its bucket may be full, and the index unable to grow into what little is free.
                let free_len = store.0.memory().free_len;
                assert!(put.is_ok() || free_len < INDEX_STEP_LEN + ITEM_OVERHEAD_MAX, "{memory_len} bytes");
                assert_eq!(store.holds(count + number), put.is_ok());
                kept += usize::from(put.is_ok());
            }
            assert!((1..count).step_by(2).all(|number| store.holds(number)), "{memory_len} bytes");
            assert_eq!(store.0.len(), kept + count as usize / 2);
            assert!(kept >= count as usize * 2 / 5, "{kept} of {count} put in another's place");
            let memory = store.0.memory();
            let known = memory.index_len + memory.items_len + memory.free_len + memory.reserved_len;
            assert_eq!(known, memory.cap_len);
        }
    }
}

/// Goal: no operation is hurt by a split in front of it, behind it or between its stages. Method: keys one by one, each
/// of which may split a bucket; hints are taken before it, between and after, of all keys in turn, and each operation is
/// made right after it.
#[test]
#[cfg_attr(miri, ignore = "takes miri a minute, and shows it nothing that the others do not")]
fn all_operations_meet_every_split() {
    let mut store = Numbers::new(400_000, AtCapacity::Refuse);
    let mut splits = 0;
    for count in 0..KEY_COUNT {
        let index_len = store.0.memory().index_len;
        let numbers: Vec<_> =
            (0..BATCH.min(count)).map(|step| count * 7 + step * 13).map(|at| at % count).collect();
        let hints = |store: &Numbers| -> Vec<Probe> {
            numbers.iter().map(|&number| store.0.prefetch_bucket(store.hash(number))).collect()
        };
        let probe = |store: &mut Numbers, hints: &mut [Probe]| {
            for (hint, &number) in hints.iter_mut().zip(&numbers) {
                let hash = store.hash(number);
                *hint = store.0.probe(hash, *hint);
            }
        };
        let mut before = hints(&store);
        let mut between = hints(&store);
        probe(&mut store, &mut before);
        assert!(store.put_own(count).is_ok());
        probe(&mut store, &mut between);
        let mut after = hints(&store);
        probe(&mut store, &mut after);
        for hints in [before, between, after] {
            for (&hint, &number) in hints.iter().zip(&numbers) {
                let found = store.0.get_probed(Key::from(&number.to_be_bytes()), store.hash(number), hint);
                assert_eq!(found.map(|found| found.value), Some(&Numbers::value(number)[..]));
            }
        }
        splits += usize::from(store.0.memory().index_len > index_len);
        let number = count * 31 % (count + 1);
        let (key, hash) = (number.to_be_bytes(), store.hash(number));
        match count % 5 {
            0 => assert!(store.delete(number) && store.get(number).is_none()),
            1 => assert!(store.put(number, &[1; 200]).is_ok_and(|_| store.get(number) == Some(&[1; 200]))),
            2 => assert!(store.put(number, b"").is_ok_and(|_| store.get(number) == Some(b""))),
            3 => {
                let sum = store.0.add(Key::from(&key), hash, 1, None).unwrap();
                assert_eq!(sum.former, u64::from(number) << 7);
            }
            _ => {
                let terms = Terms { condition: Condition::Absent, ttl_ms: None };
                let version = store.0.get(Key::from(&key), hash).unwrap().version;
                let refusal = store.0.put(Key::from(&key), hash, b"", terms).unwrap_err();
                assert_eq!(refusal, Refusal::Exists(version));
            }
        }
        assert_eq!(store.0.expire(3), 0, "nothing has a time to live");
        assert!(store.put_own(number).is_ok());
        assert_eq!(store.0.len(), count as usize + 1);
    }
    store.assert_holds_all(KEY_COUNT);
    assert!(splits >= 10, "the index grew {splits} times");
}
