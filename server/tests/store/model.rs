//! Any bytes are operations on a store, and each is judged by a reference model.
//!
//! The random tests, the fuzz target and miri share this file. A [`Run`] follows streams of bytes for as long as it is
//! given any; it panics at the first answer that no right store gives.
//!
//! Two things the model cannot know, and allows for. When exactly a value expires: between its time to live and
//! [`RESOLUTION`] more. And which keys were evicted: only how many, by `len`, so that no more may be missing.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    num::NonZeroU32,
    time::Duration,
};

use linerate_proto::{
    Instant, Key,
    wire::{Condition, Terms},
};
use linerate_server::store::{AtCapacity, Found, Probe, Refusal, Store, Sum, VALUE_LEN_MAX};

/// How much longer than its time to live a value may be seen.
const RESOLUTION: Duration = Duration::from_millis(9);

/// Bytes of memory that an item takes beside key and value, at most: header, time to live and padding.
pub(crate) const ITEM_OVERHEAD_MAX: usize = 32;

/// The step by which the index grows: sixteen buckets, the two they share, their due times, and the nodes above them.
pub(crate) const INDEX_STEP_LEN: usize = 19 * 64 + 20;

/// Gets in flight at once, at most.
const BATCH_MAX: u8 = 128;

/// Puts after which scattered memory must have been gathered for the value that they were refused for.
const GATHERING_PUTS_MAX: usize = 1_000;

/// What is fixed for a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) memory_len: usize,
    pub(crate) at_capacity: AtCapacity,
    pub(crate) seeds: [u64; 4],
    /// How many different keys there are, at most 65,536.
    pub(crate) key_count: u32,
}

impl Settings {
    /// Those that the first bytes of a stream say: small stores, few keys, so that short streams meet the borders.
    // The corpus is files, which miri does not let be read.
    #[cfg_attr(miri, allow(dead_code))]
    pub(crate) fn read(stream: &mut &[u8]) -> Self {
        let sizes = [4_096, 5_120, 8_192, 20_000, 65_536, 200_000, 1 << 20, 1_500_000];
        let choice = byte(stream);
        Self {
            memory_len: sizes[usize::from(choice & 7)],
            at_capacity: if choice & 8 == 0 { AtCapacity::Refuse } else { AtCapacity::Evict },
            seeds: [byte(stream).into(), 2, 3, 4],
            key_count: [8, 300, 1_000, 5_000][usize::from(choice >> 4 & 3)],
        }
    }
}

/// A store and what is known of it.
pub(crate) struct Run {
    settings: Settings,
    store: Store,
    model: Model,
    regime: Regime,
    /// Hints of former batches.
    stale: VecDeque<Probe>,
    operation_count: u64,
    /// Puts and additions that were refused for want of memory.
    pub(crate) refused_count: u64,
    /// Keys that are known to have been evicted.
    pub(crate) evicted_count: u64,
    /// Keys that are known to have expired.
    pub(crate) expired_count: u64,
    /// Longest item that was tried, in bytes.
    item_len_max: usize,
    contents: Contents,
}

/// What the operations are like for a while.
#[derive(Clone, Copy, Debug)]
struct Regime {
    /// Keys in use are those below.
    key_count: u32,
    /// Longest value.
    value_len_max: usize,
    /// How many of 256 puts become deletes.
    delete_share: u8,
    /// How many of 256 puts have a time to live.
    ttl_share: u8,
}

/// Where a run died.
impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("operation {} of {:?}, {:?}", self.operation_count, self.settings, self.regime);
            eprintln!("{:?}, model: {} keys, version {}", self.store, self.model.count, self.model.version);
        }
    }
}

impl Run {
    pub(crate) fn new(settings: Settings) -> Self {
        let Settings { memory_len, at_capacity, seeds, key_count, .. } = settings;
        assert!(key_count <= 65_536);
        let evicts = at_capacity == AtCapacity::Evict;
        Self {
            settings,
            store: Store::new(memory_len, at_capacity, seeds).unwrap(),
            model: Model::new(key_count, evicts),
            regime: Regime { key_count, value_len_max: memory_len / 64, delete_share: 60, ttl_share: 40 },
            stale: VecDeque::new(),
            operation_count: 0,
            refused_count: 0,
            evicted_count: 0,
            expired_count: 0,
            item_len_max: 0,
            contents: Contents::new(),
        }
    }

    /// Operations so far; a batch counts as its gets.
    pub(crate) fn operation_count(&self) -> u64 {
        self.operation_count
    }

    /// Does what `stream` says, to its end. What is missing at the end is taken for zeros.
    pub(crate) fn follow(&mut self, stream: &mut &[u8]) {
        while !stream.is_empty() {
            self.step(stream);
        }
    }

    /// One operation, or one batch of them.
    pub(crate) fn step(&mut self, stream: &mut &[u8]) {
        self.operation_count += 1;
        match byte(stream) {
            choice @ 0..80 => self.get(self.regime.key(stream), choice),
            80..86 => self.batch(stream),
            86..232 => self.write(stream),
            232..242 => self.advance(stream),
            242..250 => self.expire(usize::from(byte(stream)) / 8),
            250..254 => self.regime = Regime::read(stream, &self.settings),
            254..=255 => match byte(stream) {
                0..2 => self.drain(),
                2..6 => self.check_all(),
                6..20 => self.sweep(),
                _ => self.expire(1),
            },
        }
        self.check_sums();
    }

    fn hash(&self, key: &KeyBytes) -> u64 {
        self.store.hash(key.key())
    }

    fn get(&mut self, number: u32, choice: u8) {
        let key = KeyBytes::new(number);
        let hash = self.hash(&key);
        let found = match choice % 8 {
            0 => self.store.get_probed(key.key(), hash, Probe::default()),
            1 => self.store.get_probed(key.key(), hash, self.stale.front().copied().unwrap_or_default()),
            2 => {
                let probe = self.store.prefetch_bucket(hash);
                let probe = self.store.probe(hash, probe);
                self.store.get_probed(key.key(), hash, probe)
            }
            _ => self.store.get(key.key(), hash),
        };
        let found = found.map(|found| Read::of(&self.store, &found));
        let known = self.model.judge_get(number, found, self.store.len());
        self.count(known);
    }

    /// Gets in three stages as a worker makes them, with writes between the stages.
    fn batch(&mut self, stream: &mut &[u8]) {
        let count = byte(stream) % BATCH_MAX + 1;
        let writes = byte(stream);
        let keys: Vec<_> = (0..count)
            .map(|index| {
                let number = if index % 4 == 3 { 0 } else { self.regime.key(stream) };
                let key = KeyBytes::new(number);
                let hash = self.hash(&key);
                (number, key, hash)
            })
            .collect();
        let mut probes: Vec<_> = keys.iter().map(|&(_, _, hash)| self.store.prefetch_bucket(hash)).collect();
        (0..writes & 3).for_each(|_| self.write(stream));
        for (probe, &(_, _, hash)) in probes.iter_mut().zip(&keys) {
            *probe = self.store.probe(hash, *probe);
        }
        if writes & 0x40 != 0 {
            self.advance(stream);
        }
        (0..writes >> 2 & 3).for_each(|_| self.write(stream));
        for (&probe, (number, key, hash)) in probes.iter().zip(&keys) {
            let found = self.store.get_probed(key.key(), *hash, probe);
            let found = found.map(|found| Read::of(&self.store, &found));
            let known = self.model.judge_get(*number, found, self.store.len());
            self.count(known);
            if writes & 0x80 != 0 && number % 8 == 0 {
                self.write(stream);
            }
        }
        self.stale.push_front(probes[0]);
        self.stale.truncate(16);
        self.operation_count += u64::from(count);
    }

    fn write(&mut self, stream: &mut &[u8]) {
        let number = self.regime.key(stream);
        match byte(stream) {
            0..20 => self.add(number, stream),
            20..40 => self.delete(number),
            _ if byte(stream) < self.regime.delete_share => self.delete(number),
            _ => self.put(number, stream),
        }
    }

    fn put(&mut self, number: u32, stream: &mut &[u8]) {
        let key = KeyBytes::new(number);
        let hash = self.hash(&key);
        let content = self.contents.read(stream, key.len, self.regime.value_len_max);
        let known = self.model.entries[number as usize].as_ref().map_or(0, |entry| entry.version);
        let condition = match byte(stream) {
            0..16 => Condition::Absent,
            16..32 => Condition::Present,
            32..48 => Condition::Version(known),
            48..52 => Condition::Version(known.wrapping_sub(1)),
            _ => Condition::Always,
        };
        let terms = Terms { condition, ttl_ms: self.regime.ttl_ms(stream) };
        let before = self.before(key.len + content.bytes().len());
        let result = self.store.put(key.key(), hash, content.bytes(), terms);
        let presence = match (condition, result) {
            (_, Err(Refusal::Exists(_) | Refusal::Changed(_))) => Some(true),
            (_, Err(Refusal::NotFound)) => Some(false),
            (_, Err(Refusal::NotANumber(_))) => panic!("a put that adds"),
            (Condition::Always, _) => None,
            (Condition::Absent, _) => Some(false),
            (Condition::Present | Condition::Version(_), _) => Some(true),
        };
        if let Some(presence) = presence {
            let known = self.model.judge_presence(number, presence, before.count);
            self.count(known);
        }
        let former = self.model.entries[number as usize].as_ref();
        match (result, condition) {
            (Err(Refusal::Exists(version)), Condition::Absent) => {
                assert_eq!(Some(version), former.map(|former| former.version));
            }
            (Err(Refusal::Changed(version)), Condition::Version(wanted)) => {
                assert_eq!(Some(version), former.map(|former| former.version));
                assert_ne!(version, wanted);
            }
            (Err(Refusal::NotFound), Condition::Present | Condition::Version(_)) => (),
            (Err(Refusal::NoSpace), _) => {
                let fits = former.is_some_and(|former| {
                    former.state(self.model.now) == State::Lives
                        && former.content.bytes().len() >= content.bytes().len()
                        && (terms.ttl_ms.is_none() || former.ttl_ms.is_some())
                });
                assert!(!fits || self.model.evicts, "refused in place of a value that is not shorter");
                self.judge_refusal(before);
                self.gather(number, &key, hash, content, terms, before);
            }
            (Ok(version), _) => {
                if let Condition::Version(wanted) = condition {
                    assert_eq!(former.map(|former| former.version), Some(wanted));
                }
                self.stored(number, &key, hash, content, version, terms.ttl_ms);
            }
            (result, condition) => panic!("{result:?} of a put with {condition:?}"),
        }
        self.judge_effect(before);
        self.judge_eviction(before);
    }

    /// Free memory that is only scattered must be gathered by later puts of the same.
    fn gather(
        &mut self,
        number: u32,
        key: &KeyBytes,
        hash: u64,
        content: Content,
        terms: Terms,
        before: Before,
    ) {
        // Room for the longest item in the index's way, too, and for some growth of the index.
        let wanted = before.item_len + self.item_len_max + 4 * INDEX_STEP_LEN;
        let scattered = before.free_len >= wanted;
        if !scattered || !self.refused_count.is_multiple_of(8) {
            return;
        }
        let terms = Terms { condition: Condition::Always, ..terms };
        let version = (0..GATHERING_PUTS_MAX)
            .find_map(|_| self.store.put(key.key(), hash, content.bytes(), terms).ok())
            .unwrap_or_else(|| panic!("{} bytes free, {} wanted, refused for ever", before.free_len, wanted));
        self.stored(number, key, hash, content, version, terms.ttl_ms);
    }

    fn add(&mut self, number: u32, stream: &mut &[u8]) {
        let key = KeyBytes::new(number);
        let hash = self.hash(&key);
        let delta = u64::from(byte(stream)).wrapping_sub(128) << (byte(stream) & 0x38);
        let ttl_ms = self.regime.ttl_ms(stream);
        // Whether the key is there decides about its time to live, and a former number of 0 would not tell.
        self.get(number, 7);
        let before = self.before(key.len + 8);
        let former = self.model.entries[number as usize].as_ref();
        let former = former.filter(|former| former.state(self.model.now) != State::Gone);
        match (self.store.add(key.key(), hash, delta, ttl_ms), former) {
            (Err(Refusal::NotANumber(version)), Some(former)) => {
                assert_ne!(former.content.bytes().len(), 8);
                assert_eq!(version, former.version);
            }
            (Err(Refusal::NoSpace), None) => self.judge_refusal(before),
            (Ok(Sum { former: 0, version }), None) => {
                self.stored(number, &key, hash, Content::Number(delta.to_be_bytes()), version, ttl_ms);
            }
            (Ok(Sum { former, version }), Some(entry)) => {
                let bytes: [u8; 8] = entry.content.bytes().try_into().expect("added to what is no number");
                assert_eq!(former, u64::from_be_bytes(bytes));
                let content = Content::Number(former.wrapping_add(delta).to_be_bytes());
                let kept = (entry.ttl_ms, entry.deadline);
                self.model.store(number, content, version, kept);
                self.get(number, 7);
            }
            (result, former) => panic!("{result:?} of an addition to {former:?}"),
        }
        self.judge_effect(before);
        self.judge_eviction(before);
    }

    fn delete(&mut self, number: u32) {
        let key = KeyBytes::new(number);
        let hash = self.hash(&key);
        let before = self.before(0);
        let deleted = self.store.delete(key.key(), hash);
        let known = self.model.judge_presence(number, deleted.is_some(), before.count);
        self.count(known);
        if let Some(version) = deleted {
            assert_eq!(version, before.version + 1);
            self.model.remove(number);
            self.model.version = version;
        }
        assert!(self.store.len() <= before.count - usize::from(deleted.is_some()));
        self.judge_effect(before);
        assert_eq!(self.store.get(key.key(), hash), None, "deleted");
    }

    fn advance(&mut self, stream: &mut &[u8]) {
        let amount = u64::from(byte(stream));
        let nanos = match byte(stream) {
            0..20 => 0,
            20..60 => amount,
            60..100 => amount * 10_000,
            100..180 => amount * 200_000,
            180..220 => amount * 8_388_608 + amount % 3,
            220..246 => amount * 1_000_000_000,
            246..253 => amount * 60_000_000_000,
            // Up to 50 days, the longest time to live.
            253..=255 => amount * 16_940_000_000_000,
        };
        self.model.advance(nanos);
        self.store.advance(Instant::from_nanos(self.model.now));
    }

    fn expire(&mut self, buckets_max: usize) {
        let before = self.before(0);
        let removed = self.store.expire(buckets_max);
        assert_eq!(before.count - self.store.len(), removed);
        assert!(buckets_max > 0 || removed == 0);
        self.judge_effect(before);
    }

    /// Looks into all buckets: nothing that has expired is left.
    fn sweep(&mut self) {
        let line_count = self.store.memory().index_len / 64;
        self.expire(line_count);
        let now = self.model.now;
        let gone = |entry: &&Entry| entry.state(now) == State::Gone;
        let gone_count = self.model.entries.iter().flatten().filter(gone).count();
        let left_max = self.model.count - gone_count;
        assert!(self.store.len() <= left_max, "{} keys, {left_max} have not expired", self.store.len());
        for number in 0..self.settings.key_count {
            if self.model.entries[number as usize]
                .as_ref()
                .is_some_and(|entry| entry.state(now) == State::Gone)
            {
                self.expired_count += 1;
                self.model.remove(number);
            }
        }
    }

    /// All keys are what they should be.
    pub(crate) fn check_all(&mut self) {
        for number in 0..self.settings.key_count {
            self.get(number, 7);
        }
        self.sweep();
        self.check_sums();
        // Now all evicted keys are known.
        let now = self.model.now;
        let waning = self.model.entries.iter().flatten().filter(|entry| entry.state(now) == State::Wanes);
        let certain = self.model.count - waning.count();
        assert!((certain..=self.model.count).contains(&self.store.len()), "{} keys", self.store.len());
    }

    /// Deletes all, after which all memory is free.
    fn drain(&mut self) {
        for number in 0..self.settings.key_count {
            let number = number.wrapping_mul(0x9e37_79b1) % self.settings.key_count;
            self.delete(number);
        }
        for number in 0..self.settings.key_count {
            if self.model.entries[number as usize].is_some() {
                self.delete(number);
            }
        }
        self.sweep();
        self.check_sums();
        assert_eq!((self.store.len(), self.store.memory().items_len), (0, 0));
        assert!(self.store.is_empty());
        self.item_len_max = 0;
    }

    fn before(&mut self, payload_len: usize) -> Before {
        let memory = self.store.memory();
        let item_len = payload_len + ITEM_OVERHEAD_MAX;
        self.item_len_max = self.item_len_max.max(item_len);
        Before {
            count: self.store.len(),
            version: self.store.version(),
            free_len: memory.free_len,
            index_len: memory.index_len,
            item_len,
        }
    }

    /// A put or an addition has stored a value, which must be there at once.
    fn stored(
        &mut self,
        number: u32,
        key: &KeyBytes,
        hash: u64,
        content: Content,
        version: u64,
        ttl_ms: Option<NonZeroU32>,
    ) {
        let deadline = ttl_ms.map(|ttl_ms| self.model.now + u64::from(ttl_ms.get()) * 1_000_000);
        self.model.store(number, content, version, (ttl_ms, deadline));
        let found = self.store.get(key.key(), hash);
        let found = found.map(|found| Read::of(&self.store, &found)).expect("just stored");
        self.model.judge_get(number, Some(found), self.store.len());
    }

    /// A write was refused for want of memory.
    fn judge_refusal(&mut self, before: Before) {
        self.refused_count += 1;
        if self.model.evicts {
            let memory = self.store.memory();
            let room_len = memory.cap_len - memory.reserved_len - before.index_len;
            assert!(
                before.item_len + 2 * INDEX_STEP_LEN > room_len,
                "an item of at most {} bytes was refused by a store that may evict",
                before.item_len
            );
            let lasting = self.store.len() + self.model.waning_count();
            assert!(lasting >= before.count, "evicted, and still refused");
        }
    }

    /// A write that has had no effect has not changed the sums; all others have been judged.
    fn judge_effect(&self, before: Before) {
        assert_eq!(self.store.version(), self.model.version);
        assert!(self.store.len() <= before.count || self.store.version() > before.version);
    }

    /// Nothing has to go from a store that is nearly empty.
    fn judge_eviction(&self, before: Before) {
        if before.free_len >= before.item_len + self.store.memory().cap_len * 7 / 8 {
            let lasting = self.store.len() + self.model.waning_count();
            assert!(lasting >= before.count, "evicted from a store that is nearly empty");
        }
    }

    fn count(&mut self, known: Known) {
        match known {
            Known::Evicted => self.evicted_count += 1,
            Known::Expired => self.expired_count += 1,
            Known::Nothing => (),
        }
    }

    fn check_sums(&self) {
        let (Self { model, store, .. }, memory) = (self, self.store.memory());
        assert_eq!(store.version(), model.version);
        assert!(store.len() <= model.count, "{} keys, at most {} expected", store.len(), model.count);
        assert!(store.len() >= model.lasting_count || model.evicts, "{} keys, lost some", store.len());
        assert_eq!(
            memory.index_len + memory.items_len + memory.free_len + memory.reserved_len,
            memory.cap_len
        );
        let memory_len = self.settings.memory_len;
        assert!((memory_len - memory_len / 8_192 - 128..=memory_len).contains(&memory.cap_len), "{memory:?}");
        let items_len_max = model.payload_len + model.count * ITEM_OVERHEAD_MAX;
        assert!(
            memory.items_len <= items_len_max,
            "{} bytes of items leaked",
            memory.items_len - items_len_max
        );
        assert!(memory.items_len >= model.lasting_payload_len || model.evicts, "items in each other's place");
    }
}

/// What a get has found.
#[derive(Clone, Copy, Debug)]
struct Read<'a> {
    value: &'a [u8],
    version: u64,
    ttl_ms: Option<NonZeroU32>,
}

impl<'a> Read<'a> {
    fn of(store: &Store, found: &Found<'a>) -> Self {
        Self { value: found.value, version: found.version, ttl_ms: store.ttl_ms(found) }
    }
}

/// What a store was like before an operation, and what that wants.
#[derive(Clone, Copy)]
struct Before {
    count: usize,
    version: u64,
    free_len: usize,
    index_len: usize,
    /// Bytes that the item takes, at most.
    item_len: usize,
}

impl Regime {
    fn read(stream: &mut &[u8], settings: &Settings) -> Self {
        let key_count = match byte(stream) {
            0..40 => settings.key_count.min(4),
            40..100 => settings.key_count.div_ceil(50),
            100..180 => settings.key_count.div_ceil(4),
            _ => settings.key_count,
        };
        let value_len_max = match byte(stream) {
            0..20 => 0,
            20..80 => 40,
            80..200 => (settings.memory_len / 512).max(64),
            200..240 => settings.memory_len / 128,
            240..252 => settings.memory_len / 16,
            252..=255 => settings.memory_len * 9 / 8,
        };
        Self {
            key_count,
            value_len_max: value_len_max.min(VALUE_LEN_MAX),
            delete_share: byte(stream),
            ttl_share: byte(stream),
        }
    }

    fn key(&self, stream: &mut &[u8]) -> u32 {
        (u32::from(byte(stream)) << 8 | u32::from(byte(stream))) % self.key_count
    }

    fn ttl_ms(&self, stream: &mut &[u8]) -> Option<NonZeroU32> {
        if byte(stream) >= self.ttl_share {
            return None;
        }
        let amount = u32::from(byte(stream));
        NonZeroU32::new(match byte(stream) {
            0..80 => amount / 8 + 1,
            80..160 => amount * 9,
            160..210 => amount * 1_000,
            210..240 => amount * 1_000_000,
            240..250 => u32::MAX - amount,
            250..=255 => 1,
        })
    }
}

/// The keys' bytes: all lengths, common beginnings and ends, and keys that only zeros at their end tell apart.
#[derive(Clone, Copy)]
pub(crate) struct KeyBytes {
    bytes: [u8; 255],
    len: usize,
}

impl KeyBytes {
    /// Different for each `number` below 65,536.
    pub(crate) fn new(number: u32) -> Self {
        const LENS: [u8; 24] =
            [4, 5, 6, 7, 8, 8, 8, 9, 10, 12, 15, 16, 16, 16, 17, 18, 20, 24, 31, 32, 40, 64, 254, 255];
        let mut bytes = [0; 255];
        if number < 256 {
            bytes[0] = number as u8 % 64;
            return Self { bytes, len: [1, 2, 3, 16][number as usize / 64] };
        }
        let choice = number.wrapping_mul(0x9e37_79b1) >> 20;
        let len = usize::from(LENS[choice as usize % LENS.len()]);
        let at_end = len >= 8 && choice & 1 == 1;
        let place = if at_end { len - 4 } else { 0 };
        bytes[place..place + 4].copy_from_slice(&number.to_le_bytes());
        Self { bytes, len }
    }

    pub(crate) fn key(&self) -> Key<'_> {
        Key::new(&self.bytes[..self.len])
    }
}

/// A value.
#[derive(Clone, Copy)]
enum Content {
    /// A piece of bytes without pattern, so that no value is mistaken for another.
    Piece(&'static [u8]),
    Number([u8; 8]),
}

impl Content {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Piece(bytes) => bytes,
            Self::Number(bytes) => bytes,
        }
    }
}

/// Not the bytes.
impl std::fmt::Debug for Content {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} bytes", self.bytes().len())
    }
}

/// Where values come from.
struct Contents {
    pool: &'static [u8],
    next: usize,
}

impl Contents {
    /// Places at which a value may begin.
    const STARTS: usize = if cfg!(miri) { 1 << 10 } else { 1 << 16 };

    fn new() -> Self {
        static POOL: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            // What is interpreted is too slow for long values.
            let len = if cfg!(miri) { 1 << 12 } else { VALUE_LEN_MAX };
            let mut state = 1_u64;
            let words = (0..(len + Contents::STARTS) / 8).flat_map(|_| {
                // Marsaglia, "Xorshift RNGs", 2003.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            });
            words.collect()
        });
        Self { pool: &POOL, next: 0 }
    }

    fn read(&mut self, stream: &mut &[u8], key_len: usize, len_max: usize) -> Content {
        let len_max = len_max.min(self.pool.len() - Self::STARTS);
        self.next = (self.next + 40_503) % Self::STARTS;
        let number = usize::from(byte(stream)) << 8 | usize::from(byte(stream));
        let len = match byte(stream) {
            0..30 => [0, 1, 2, 7, 8, 9, 15, 16][number % 8],
            30..60 => 8,
            60..70 => len_max,
            // Items that just fill a size class of the arena (of 8- or 16-byte units), or just do not.
            70..150 => {
                let shift = number % 16;
                let class_len = (32 + (number >> 4) % 32) << shift >> 2;
                (class_len + (number >> 9) % 8).saturating_sub(key_len + [12, 16][number >> 12 & 1] + 4)
            }
            // Of any order of magnitude.
            shift => (number * (len_max + 1)) >> 16 >> (shift % 11),
        };
        Content::Piece(&self.pool[self.next..][..len.min(len_max)])
    }
}

/// What an answer has told about a key beside the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    Evicted,
    Expired,
}

/// What is known of one key's value.
#[derive(Debug)]
struct Entry {
    content: Content,
    version: u64,
    ttl_ms: Option<NonZeroU32>,
    /// Until when it surely lives, in nanoseconds; `None`: for ever.
    deadline: Option<u64>,
    /// It has been found to have expired.
    seen_gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Must be found, unless evicted.
    Lives,
    /// May have expired.
    Wanes,
    /// Must not be found.
    Gone,
}

impl Entry {
    fn state(&self, now: u64) -> State {
        match self.deadline {
            None => State::Lives,
            Some(deadline) if now < deadline => State::Lives,
            Some(deadline) if self.seen_gone || now > deadline + RESOLUTION.as_nanos() as u64 => State::Gone,
            Some(_) => State::Wanes,
        }
    }
}

/// The map that the store should be. What was evicted or has expired stays in it until it is known to be gone.
struct Model {
    entries: Vec<Option<Entry>>,
    evicts: bool,
    now: u64,
    version: u64,
    /// Entries, and the bytes of their keys and values.
    count: usize,
    payload_len: usize,
    /// The same of those that have surely not expired.
    lasting_count: usize,
    lasting_payload_len: usize,
    /// Deadline, version and number of what will expire.
    deadlines: BinaryHeap<Reverse<(u64, u64, u32)>>,
}

impl Model {
    fn new(key_count: u32, evicts: bool) -> Self {
        Self {
            entries: (0..key_count).map(|_| None).collect(),
            evicts,
            now: 0,
            version: 0,
            count: 0,
            payload_len: 0,
            lasting_count: 0,
            lasting_payload_len: 0,
            deadlines: BinaryHeap::new(),
        }
    }

    fn advance(&mut self, nanos: u64) {
        self.now = (self.now + nanos).min(u64::MAX / 2);
        while let Some(&Reverse((deadline, version, number))) = self.deadlines.peek()
            && deadline <= self.now
        {
            self.deadlines.pop();
            // Otherwise another value has long taken its place.
            if let Some(entry) =
                self.entries[number as usize].as_ref().filter(|entry| entry.version == version)
            {
                self.lasting_count -= 1;
                self.lasting_payload_len -= KeyBytes::new(number).len + entry.content.bytes().len();
            }
        }
    }

    fn store(
        &mut self,
        number: u32,
        content: Content,
        version: u64,
        (ttl_ms, deadline): (Option<NonZeroU32>, Option<u64>),
    ) {
        assert_eq!(version, self.version + 1);
        self.version = version;
        self.remove(number);
        let payload_len = KeyBytes::new(number).len + content.bytes().len();
        self.count += 1;
        self.payload_len += payload_len;
        if deadline.is_none_or(|deadline| self.now < deadline) {
            self.lasting_count += 1;
            self.lasting_payload_len += payload_len;
            self.deadlines.extend(deadline.map(|deadline| Reverse((deadline, version, number))));
        }
        self.entries[number as usize] = Some(Entry { content, version, ttl_ms, deadline, seen_gone: false });
    }

    fn remove(&mut self, number: u32) {
        let Some(entry) = self.entries[number as usize].take() else { return };
        let payload_len = KeyBytes::new(number).len + entry.content.bytes().len();
        self.count -= 1;
        self.payload_len -= payload_len;
        if entry.state(self.now) == State::Lives {
            self.lasting_count -= 1;
            self.lasting_payload_len -= payload_len;
        }
    }

    /// Entries that may have expired, or have.
    fn waning_count(&self) -> usize {
        self.count - self.lasting_count
    }

    /// A store of `count` keys has told whether a key is there.
    fn judge_presence(&mut self, number: u32, presence: bool, count: usize) -> Known {
        let state = self.entries[number as usize].as_ref().map(|entry| entry.state(self.now));
        match (state, presence) {
            (None | Some(State::Gone), true) => {
                panic!("key {number}, which has no value ({state:?}), has one")
            }
            (None | Some(State::Gone), false) | (Some(State::Lives | State::Wanes), true) => Known::Nothing,
            (Some(State::Wanes), false) => {
                if let Some(entry) = &mut self.entries[number as usize] {
                    entry.seen_gone = true;
                }
                Known::Expired
            }
            (Some(State::Lives), false) => {
                assert!(self.evicts, "key {number} is lost");
                assert!(count < self.count, "key {number} is lost: no key was evicted that is not known");
                self.remove(number);
                Known::Evicted
            }
        }
    }

    /// What a store of `count` keys has found for a key, with its time to live.
    fn judge_get(&mut self, number: u32, found: Option<Read<'_>>, count: usize) -> Known {
        let known = self.judge_presence(number, found.is_some(), count);
        if let (Some(Read { value, version, ttl_ms }), Some(entry)) = (found, &self.entries[number as usize])
        {
            assert_eq!(version, entry.version, "key {number}");
            assert_eq!(value.len(), entry.content.bytes().len(), "key {number}");
            assert!(value == entry.content.bytes(), "key {number} has another value");
            assert_eq!(ttl_ms.is_some(), entry.deadline.is_some(), "key {number}: {ttl_ms:?}");
            if let (Some(ttl_ms), Some(deadline)) = (ttl_ms, entry.deadline) {
                let most = deadline.saturating_sub(self.now).div_ceil(1_000_000).max(1);
                let least = most.saturating_sub(RESOLUTION.as_millis() as u64);
                let told = u64::from(ttl_ms.get());
                assert!((least..=most).contains(&told), "key {number}: {told} ms left, {least} expected");
            }
        }
        known
    }
}

/// The next byte of a stream, or 0 at its end.
fn byte(stream: &mut &[u8]) -> u8 {
    let Some((&first, rest)) = stream.split_first() else { return 0 };
    *stream = rest;
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(judged: impl FnOnce(&mut Model)) -> bool {
        let mut model = Model::new(4, true);
        model.store(0, Content::Piece(b"value"), 1, (None, None));
        model.store(1, Content::Piece(b"other"), 2, (NonZeroU32::new(10), Some(10_000_000)));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| judged(&mut model))).is_ok()
    }

    /// Goal: the model can say no. Method: right answers and each way to be wrong about a value, a version, a time to
    /// live and an absence.
    #[test]
    fn wrong_answers_are_found() {
        let found = |value, version| Some(Read { value, version, ttl_ms: None });
        assert!(outcome(|model| assert_eq!(model.judge_get(0, found(b"value", 1), 2), Known::Nothing)));
        assert!(!outcome(|model| assert_eq!(model.judge_get(0, found(b"other", 1), 2), Known::Nothing)));
        assert!(!outcome(|model| assert_eq!(model.judge_get(0, found(b"value", 2), 2), Known::Nothing)));
        assert!(!outcome(|model| assert_eq!(model.judge_get(3, found(b"value", 1), 2), Known::Nothing)));
        assert!(!outcome(|model| assert_eq!(model.judge_get(0, None, 2), Known::Nothing)));
        assert!(outcome(|model| assert_eq!(model.judge_get(0, None, 1), Known::Evicted)));
        assert!(!outcome(|model| {
            assert_eq!(model.judge_get(0, None, 1), Known::Evicted);
            model.judge_get(1, None, 1);
        }));
        let waning = |ttl_ms, now| {
            outcome(|model| {
                model.advance(now);
                let found = Read { value: b"other", version: 2, ttl_ms: NonZeroU32::new(ttl_ms) };
                model.judge_get(1, Some(found), 2);
            })
        };
        for (ttl_ms, now, right) in [
            (10, 0, true),
            (11, 0, false),
            (9, 0, true),
            (1, 0, true),
            (20, 0, false),
            (0, 0, false),
            (1, 9_500_000, true),
            (1, 12_000_000, true),
            (1, 19_000_001, false),
        ] {
            assert_eq!(waning(ttl_ms, now), right, "{ttl_ms} ms left at {now}");
        }
        assert!(outcome(|model| {
            model.advance(10_000_000);
            assert_eq!(model.judge_get(1, None, 2), Known::Expired);
            assert_eq!((model.count, model.lasting_count), (2, 1));
        }));
        assert!(!outcome(|model| {
            model.advance(10_000_000);
            model.judge_presence(1, false, 2);
            model.judge_presence(1, true, 2);
        }));
    }
}
