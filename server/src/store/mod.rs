//! The shard store: keys and values of one core, under a hard memory cap.
//!
//! One thread owns a [`Store`]; there is no lock and no atomic. What a lookup costs is waiting for memory, so lookups
//! are meant to be made in batches, each stage for the whole batch: [`Store::hash`] and [`Store::prefetch_bucket`],
//! then [`Store::probe`], then [`Store::get_probed`]. With 64 or more in flight the waits overlap almost entirely.
//!
//! All memory but the schedule of expiries is one mapping. The index grows from its low end, items are laid from its high
//! end down, and the cap is the mapping's size, so that it cannot be exceeded:
//!
//! ```text
//! | buckets → |          free          | items and holes          |
//! ```
//! Items in the way of the growing index move, as do some when free memory is too scattered for a put. Both happen a
//! few items per put, so that there is no long pause; only where items may be evicted does a long value among short ones
//! wait until a stretch of memory is cleared for it. Nothing is allocated per item, and all but the prefetches and the SIMD
//! comparison is safe code: a wrong reference could give a wrong answer or a panic, never access outside the mapping.

mod arena;
mod eviction;
mod expiry;
mod index;
mod item;
mod keyhash;
#[allow(unsafe_code)]
mod prefetch;
#[allow(unsafe_code)]
mod tags;

use std::{fmt, io, num::NonZeroU32};

use linerate_dataplane::region::Region;
use linerate_proto::{
    Instant, Key,
    mutants::{Mutant, is_active},
    wire::{self, Condition, Terms},
};
use zerocopy::IntoBytes;

use arena::{Arena, GRANULE_LEN, Granule, Removal};
use eviction::{Hands, Uses};
use expiry::{Due, TIMES_APART_MAX, Tick};
use index::{Bucket, Entry, GROUP_GRANULES, GROUP_LINES, Index, Position, Trace, granules_mut, lines_mut};
pub use item::Found;
use item::Shape;
use keyhash::KeyHash;
use prefetch::{LINE_LEN, prefetch_line};

/// Longest key, in bytes; the shortest has 1.
pub const KEY_LEN_MAX: usize = 255;

/// Longest value, in bytes; the shortest is empty.
pub const VALUE_LEN_MAX: usize = wire::VALUE_LEN_MAX;

/// Least and most memory of a store, in bytes: below, an index leaves no room; above, references overflow.
const MEMORY_LEN: std::ops::RangeInclusive<usize> = 4096..=32 << 30;

/// Buckets that a put that has found no room looks into for what has expired, before it tries once more. However much has
/// expired at once, this bounds the time of a put that is refused at some hundred microseconds.
const LAST_EXPIRIES: usize = 64;

/// Items that are evicted one by one for a put. If they left no hole that is long enough, a stretch of memory is cleared.
const EVICTIONS_MAX: usize = 16;

/// The keys and values of one shard.
pub struct Store {
    /// Buckets up to the index's `line_count`, then the arena's granules.
    lines: Region<Bucket>,
    index: Index,
    arena: Arena,
    at_capacity: AtCapacity,
    hands: Hands,
    now: Instant,
    /// The same, in the unit of expiries.
    tick: Tick,
    /// When there was last nothing left that had expired.
    swept: Instant,
    /// Times, modulo 2^32, that items have moved or gone.
    moves: u32,
    /// Puts, additions and deletes that took effect so far.
    version: u64,
    expired: u64,
    evicted: u64,
}

/// What it is and how full, without the keys and values.
impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Store")
            .field("at_capacity", &self.at_capacity)
            .field("len", &self.len())
            .field("memory", &self.memory())
            .finish_non_exhaustive()
    }
}

/// What a store does with a put when its memory is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtCapacity {
    /// Refuses it: nothing is lost that was stored.
    #[default]
    Refuse,
    /// Removes what is least likely to be asked for.
    Evict,
}

/// Why a write had no effect. What was stored before still is.
///
/// The versions are those that a get would have told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The memory is full.
    #[error("no space left in the shard")]
    NoSpace,
    /// A value was wanted that is not there.
    #[error("the key has no value")]
    NotFound,
    /// The key was to be absent.
    #[error("the key has a value, of version {0}")]
    Exists(u64),
    /// The value was to be of another version.
    #[error("the value has version {0}")]
    Changed(u64),
    /// Only a value of eight bytes can be added to.
    #[error("the value is no number of 8 bytes; its version is {0}")]
    NotANumber(u64),
}

/// What an addition found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// The number before; 0 if the key had no value.
    pub former: u64,
    /// The version of the number now.
    pub version: u64,
}

/// Where [`Store::probe`] saw what is probably the item: a hint for [`Store::get_probed`].
///
/// The default is a hint at nothing, with which a get is still right.
#[derive(Clone, Copy, Debug, Default)]
pub struct Probe {
    /// Line of the bucket.
    bucket: u32,
    /// First granule of the item; 0 for none.
    reference: u32,
    /// The store's `moves` at the time of the probe: any after it may have moved or removed the item.
    moves: u32,
}

/// How a store's memory is used; all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// The index, with its part of the schedule of expiries. It grows with the number of keys and does not shrink.
    pub index_len: usize,
    /// Items with their headers and padding.
    pub items_len: usize,
    /// Free for items and index, though not in one piece.
    pub free_len: usize,
    /// The line that ends the arena, and the part of the schedule for what the index may grow to: 0.4 % of the cap.
    pub reserved_len: usize,
    /// The cap: all of the above.
    pub cap_len: usize,
}

impl Store {
    /// An empty store in `memory_len` bytes, rounded down to whole cache lines. Pages are touched as they fill.
    ///
    /// `seeds` are the keys of the table's hash: to be random at each start, so that nobody can choose keys that
    /// collide.
    ///
    /// # Errors
    /// `InvalidInput` when `memory_len` is below 4 KiB or above 32 GiB; `ENOMEM` when the kernel refuses the mapping.
    pub fn new(memory_len: usize, at_capacity: AtCapacity, seeds: [u64; 4]) -> io::Result<Self> {
        if !MEMORY_LEN.contains(&memory_len) {
            let message = format!("a shard's memory must be 4 KiB to 32 GiB, not {memory_len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let schedule_len = Index::schedule_len(memory_len / LINE_LEN);
        let mut lines = Region::<Bucket>::zeroed((memory_len - schedule_len) / LINE_LEN)?;
        let arena = Arena::new(granules_mut(&mut lines), GROUP_GRANULES);
        let index = Index::new(KeyHash::new(seeds), &mut lines);
        Ok(Self {
            lines,
            index,
            arena,
            at_capacity,
            hands: Hands::default(),
            now: Instant::default(),
            tick: Tick::default(),
            swept: Instant::default(),
            moves: 0,
            version: 0,
            expired: 0,
            evicted: 0,
        })
    }

    /// Takes all memory from the system now, by the calling thread, instead of as it fills.
    ///
    /// # Errors
    /// As [`Region::populate`].
    pub fn prefault(&mut self) -> io::Result<()> {
        self.lines.populate()
    }

    /// Tells the store the time, which decides what has expired; it never goes back. To be called once per burst. When
    /// something that expired was left for 100 days, all that has is removed first.
    #[inline]
    pub fn advance(&mut self, now: Instant) {
        if now.since(self.swept) > TIMES_APART_MAX {
            self.catch_up(now);
        }
        self.set_now(self.now.max(now));
    }

    /// Removes what expires until `now`, in steps that keep all times comparable.
    #[cold]
    fn catch_up(&mut self, now: Instant) {
        while now.since(self.swept) > TIMES_APART_MAX {
            self.set_now(self.now.max(self.swept + TIMES_APART_MAX));
            self.expire(usize::MAX);
        }
    }

    fn set_now(&mut self, now: Instant) {
        self.now = now;
        self.tick = Tick::at(now);
    }

    /// Removes what has expired, looking into at most `buckets_max` buckets; returns how many keys went. Nothing is looked
    /// at unless something is due; what is due longest goes first.
    pub fn expire(&mut self, buckets_max: usize) -> usize {
        let before = self.expired;
        for _ in 0..buckets_max {
            let Some(bucket) = self.index.next_due(&self.lines, self.tick) else {
                self.swept = self.now;
                break;
            };
            while let Some((hash, position)) = self.index.find_expired(&mut self.lines, bucket, self.tick) {
                self.remove(hash, position);
                self.expired += 1;
            }
        }
        (self.expired - before) as usize
    }

    /// Keys removed so far because their time had come.
    pub const fn expired(&self) -> u64 {
        self.expired
    }

    /// Keys removed so far to make room for others.
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Milliseconds that a found value has left to live at least: what it was put with, or up to 9 less; 1 at its end. `None`:
    /// it does not expire.
    #[must_use]
    pub fn ttl_ms(&self, found: &Found<'_>) -> Option<NonZeroU32> {
        found.due.ms_after(self.now)
    }

    /// The hash that every other method wants beside the key. Differs from store to store with the seeds.
    #[inline(always)]
    pub fn hash(&self, key: Key<'_>) -> u64 {
        self.index.hash.of(key)
    }

    /// Asks for the cache line that [`Store::probe`] looks at; the hint says which, and nothing of an item yet.
    #[inline]
    pub fn prefetch_bucket(&self, hash: u64) -> Probe {
        let line = self.index.home(hash);
        prefetch_line(self.lines.as_bytes(), line * LINE_LEN);
        Probe { bucket: line as u32, reference: 0, moves: self.moves }
    }

    /// Looks for the hash in its bucket, and asks for all cache lines of the item that seems to be it. Where items may be
    /// evicted, this counts as a use of that item.
    #[inline]
    pub fn probe(&mut self, hash: u64, probe: Probe) -> Probe {
        let (reference, slot) = self.index.probe(&self.lines, probe.bucket, hash);
        if self.at_capacity == AtCapacity::Evict && reference != 0 {
            self.index.count_use(&mut self.lines, probe.bucket, slot);
        }
        Probe { reference, ..probe }
    }

    /// Value and version of a key.
    #[inline]
    pub fn get(&self, key: Key<'_>, hash: u64) -> Option<Found<'_>> {
        let (_, found) = self.index.find(&self.lines, key, hash)?;
        (!found.due.has_come(self.tick)).then_some(found)
    }

    /// The same as [`Store::get`], faster after a probe of the same hash.
    ///
    /// The hint is checked against the key, and not followed once items have moved: the answer is always right. Only a
    /// hint that is older than 2^32 moves could be taken for a new one.
    #[inline(always)]
    pub fn get_probed(&self, key: Key<'_>, hash: u64, probe: Probe) -> Option<Found<'_>> {
        match self.hinted(key, probe) {
            Some(found) => Some(found),
            None => self.get_again(key, hash),
        }
    }

    /// What a hint leads to, if that is the key's value.
    #[inline(always)]
    fn hinted(&self, key: Key<'_>, probe: Probe) -> Option<Found<'_>> {
        if probe.moves != self.moves || probe.reference == 0 {
            return None;
        }
        item::found_at(self.lines.as_bytes(), probe.reference, key)
            .filter(|found| !found.due.has_come(self.tick))
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

    /// Stores a value, in place of the key's former one and its time to live, and returns its version.
    ///
    /// A value that takes no more memory than the former one is never refused for want of memory.
    ///
    /// # Errors
    /// What kept it from having any effect: a condition of `terms` that is not met; or [`Refusal::NoSpace`] when there is
    /// no room for the item or for its entry in the index. If enough memory is free but scattered, or held by what has
    /// expired, this call has gathered some of it, and a later one succeeds.
    ///
    /// # Panics
    /// When the key is empty or longer than [`KEY_LEN_MAX`], or the value longer than [`VALUE_LEN_MAX`]: bytes from
    /// the network are to be checked where they are parsed.
    pub fn put(&mut self, key: Key<'_>, hash: u64, value: &[u8], terms: Terms) -> Result<u64, Refusal> {
        self.put_probed(key, hash, Probe::default(), value, terms)
    }

    /// The same as [`put`](Self::put), faster after a probe of the same hash.
    ///
    /// # Errors
    /// As `put`.
    ///
    /// # Panics
    /// As `put`.
    #[inline]
    pub fn put_probed(
        &mut self,
        key: Key<'_>,
        hash: u64,
        probe: Probe,
        value: &[u8],
        terms: Terms,
    ) -> Result<u64, Refusal> {
        assert!((1..=KEY_LEN_MAX).contains(&key.len()), "a key of {} bytes", key.len());
        assert!(value.len() <= VALUE_LEN_MAX, "a value of {} bytes", value.len());
        let due = Due::after(self.now, terms.ttl_ms);
        if let Some(former) = self.hinted(key, probe)
            && former.value.len() == value.len()
            && former.due.is_some() == due.is_some()
        {
            check(terms.condition, Some(former.version))?;
            return Ok(self.overwrite(key, hash, probe.reference, value, due));
        }
        self.put_anew(key, hash, value, terms.condition, due)
    }

    /// The way of a put that does not find a value of the same length where it was told to look.
    #[inline(never)]
    fn put_anew(
        &mut self,
        key: Key<'_>,
        hash: u64,
        value: &[u8],
        condition: Condition,
        due: Due,
    ) -> Result<u64, Refusal> {
        let former = self.find_to_write(key, hash);
        check(condition, former.map(|former| former.version))?;
        let next = Found { value, version: self.next_version(), due };
        let stored = |store: &mut Self, former| match former {
            Some(former) => store.replace(key, hash, next, former),
            None => store.insert(key, hash, next, None),
        };
        let mut outcome = stored(self, former);
        if outcome.is_err() && self.expire(LAST_EXPIRIES) > 0 {
            let former = self.find_to_write(key, hash);
            outcome = stored(self, former);
        }
        outcome?;
        if due.is_some() {
            self.index.note_due(&mut self.lines, hash, due, self.tick);
        }
        self.version = next.version;
        Ok(next.version)
    }

    /// Adds to the number that a key's value is: eight bytes in network order. The sum is taken modulo 2^64, so that the
    /// number may be understood as signed or unsigned. An absent key counts as 0 and gets the time to live `ttl_ms`; a
    /// present one keeps its own.
    ///
    /// # Errors
    /// [`Refusal::NotANumber`] and, for an absent key, [`Refusal::NoSpace`].
    ///
    /// # Panics
    /// As [`put`](Self::put).
    pub fn add(
        &mut self,
        key: Key<'_>,
        hash: u64,
        delta: u64,
        ttl_ms: Option<NonZeroU32>,
    ) -> Result<Sum, Refusal> {
        let Some(former) = self.find_to_write(key, hash) else {
            let terms = Terms { condition: Condition::Always, ttl_ms };
            return self
                .put(key, hash, &delta.to_be_bytes(), terms)
                .map(|version| Sum { former: 0, version });
        };
        let Entry { reference, .. } = self.index.entry(&self.lines, former.position);
        let found = item::found_at(self.lines.as_bytes(), reference, key).expect("it was found there");
        let Ok(&bytes) = <&[u8; 8]>::try_from(found.value) else {
            return Err(Refusal::NotANumber(found.version));
        };
        let (number, due) = (u64::from_be_bytes(bytes), found.due);
        let sum = number.wrapping_add(delta).to_be_bytes();
        let version = self.overwrite(key, hash, reference, &sum, due);
        Ok(Sum { former: number, version })
    }

    /// Removes a key and returns the version of its absence; `None` when there was none.
    pub fn delete(&mut self, key: Key<'_>, hash: u64) -> Option<u64> {
        let former = self.find_to_write(key, hash)?;
        self.remove(hash, former.position);
        self.version += 1;
        Some(self.version)
    }

    /// Keys that are stored, those included that have expired and not been removed yet.
    pub fn len(&self) -> usize {
        self.index.entry_count()
    }

    /// Whether no key is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How the memory is used at the moment.
    pub fn memory(&self) -> MemoryUse {
        let index_lines = self.index.line_count();
        let (schedule_len, used_len) =
            (Index::schedule_len(self.lines.len()), Index::schedule_len(index_lines));
        MemoryUse {
            index_len: index_lines * LINE_LEN + used_len,
            items_len: self.arena.used_count() as usize * GRANULE_LEN,
            free_len: self.arena.free_count() as usize * GRANULE_LEN,
            reserved_len: LINE_LEN + schedule_len - used_len,
            cap_len: self.lines.len() * LINE_LEN + schedule_len,
        }
    }

    /// The version that the next effective write has.
    fn next_version(&self) -> u64 {
        self.version + u64::from(!is_active(Mutant::VersionKept) || self.version == 0)
    }

    /// What a write finds at its key; what has expired is removed.
    fn find_to_write(&mut self, key: Key<'_>, hash: u64) -> Option<Former> {
        let (position, found) = self.index.find(&self.lines, key, hash)?;
        if found.due.has_come(self.tick) {
            self.remove(hash, position);
            self.expired += 1;
            return None;
        }
        let shape = Shape::new(key.len(), found.value.len(), found.due);
        Some(Former { position, version: found.version, granule_count: shape.granule_count() })
    }

    /// Writes a value over one of the same length, whose end, if it has one, is replaced; returns its version.
    #[inline(always)]
    fn overwrite(&mut self, key: Key<'_>, hash: u64, reference: u32, value: &[u8], due: Due) -> u64 {
        self.version = self.next_version();
        let next = Found { value, version: self.version, due };
        item::overwrite(granules_mut(&mut self.lines), reference, key.len(), next);
        if due.is_some() {
            self.index.note_due(&mut self.lines, hash, due, self.tick);
        }
        self.version
    }

    /// From here on, no hint that was given before is followed.
    fn outdate_hints(&mut self) {
        self.moves = self.moves.wrapping_add(1);
    }

    fn remove(&mut self, hash: u64, position: Position) {
        self.remove_item(hash, position, Trace::None);
    }

    /// Removes the entry at a position and its item.
    fn remove_item(&mut self, hash: u64, position: Position, trace: Trace) {
        self.outdate_hints();
        let reference = self.index.entry(&self.lines, position).reference;
        let granule_count = item::shape(index::granules(&self.lines), reference).granule_count();
        self.index.remove(&mut self.lines, hash, position, trace);
        self.arena.give_back(granules_mut(&mut self.lines), reference, granule_count);
    }

    fn replace(&mut self, key: Key<'_>, hash: u64, next: Found<'_>, former: Former) -> Result<(), Refusal> {
        let shape = Shape::new(key.len(), next.value.len(), next.due);
        let Former { position, granule_count: former_count, .. } = former;
        let Entry { reference, .. } = self.index.entry(&self.lines, position);
        let wanted_count = shape.granule_count();
        if wanted_count <= former_count {
            self.arena.shorten(granules_mut(&mut self.lines), reference, former_count, wanted_count);
            self.write(key, hash, next, position, reference);
            return Ok(());
        }
        if self.at_capacity == AtCapacity::Evict {
            if !self.can_hold(wanted_count) {
                return Err(Refusal::NoSpace);
            }
            // Otherwise it could be the former item that makes room.
            let uses = self.index.entry(&self.lines, position).uses();
            self.remove(hash, position);
            return self.insert(key, hash, next, Some(uses));
        }
        self.outdate_hints();
        let start = self.take(wanted_count)?;
        // Only now: taking may have moved the former item. Its entry stays where it is, as nothing is removed.
        let Entry { reference, .. } = self.index.entry(&self.lines, position);
        self.arena.give_back(granules_mut(&mut self.lines), reference, former_count);
        self.write(key, hash, next, position, start);
        Ok(())
    }

    /// Writes an item in place of another of the same key.
    fn write(&mut self, key: Key<'_>, hash: u64, next: Found<'_>, position: Position, start: u32) {
        let shape = Shape::new(key.len(), next.value.len(), next.due);
        let uses = self.index.entry(&self.lines, position).uses();
        item::write(granules_mut(&mut self.lines), start, key, next);
        self.index.replace(&mut self.lines, position, Entry::new(hash, start, shape, uses));
    }

    fn insert(
        &mut self,
        key: Key<'_>,
        hash: u64,
        next: Found<'_>,
        uses: Option<Uses>,
    ) -> Result<(), Refusal> {
        let shape = Shape::new(key.len(), next.value.len(), next.due);
        let evicts = self.at_capacity == AtCapacity::Evict;
        if evicts && !self.can_hold(shape.granule_count()) {
            return Err(Refusal::NoSpace);
        }
        // Room in the index first: growing may move items or evict them, so the new one must not be there yet.
        let has_ghost = evicts && uses.is_none() && self.index.take_ghost(&mut self.lines, hash);
        if evicts {
            self.grow_if_crowded();
        }
        while !self.index.has_room(&self.lines, hash) {
            self.grow()?;
        }
        let start = self.take(shape.granule_count())?;
        item::write(granules_mut(&mut self.lines), start, key, next);
        let mut entry = Entry::new(hash, start, shape, uses.unwrap_or(Uses::NEWCOMER));
        if has_ghost && uses.is_none() {
            entry = Entry::new(hash, start, shape, Uses::returned(self.index.bulk(entry)));
        }
        self.index.insert(&mut self.lines, hash, entry);
        // What is not evicted must not take the room of what is being stored.
        if !evicts {
            self.grow_if_crowded();
        }
        Ok(())
    }

    fn grow_if_crowded(&mut self) {
        if self.index.is_crowded() {
            // Refused when memory is full; lookups then get slower by the longer chains, nothing else.
            let _ = self.grow();
        }
    }

    /// A block for an item; other items may have moved or gone.
    fn take(&mut self, granule_count: u32) -> Result<u32, Refusal> {
        if let Some(start) = self.arena.take(granules_mut(&mut self.lines), granule_count) {
            return Ok(start);
        }
        match self.at_capacity {
            AtCapacity::Refuse => self.take_gathered(granule_count),
            AtCapacity::Evict => self.take_evicting(granule_count),
        }
    }

    /// A block of memory that was scattered.
    #[cold]
    fn take_gathered(&mut self, granule_count: u32) -> Result<u32, Refusal> {
        self.outdate_hints();
        let granules = granules_mut(&mut self.lines);
        let follow = |granules: &mut [Granule], removal| follow(&mut self.index, granules, removal);
        if !self.arena.compact(granules, granule_count, follow) {
            return Err(Refusal::NoSpace);
        }
        self.arena.take(granules, granule_count).ok_or(Refusal::NoSpace)
    }

    /// A block of memory that other items have to leave.
    #[cold]
    fn take_evicting(&mut self, granule_count: u32) -> Result<u32, Refusal> {
        self.outdate_hints();
        for _ in 0..EVICTIONS_MAX {
            if self.expire(1) == 0 && !self.evict() {
                break;
            }
            if let Some(start) = self.arena.take(granules_mut(&mut self.lines), granule_count) {
                return Ok(start);
            }
        }
        let before = self.index.entry_count();
        let follow = |granules: &mut [Granule], removal| follow(&mut self.index, granules, removal);
        let start = self.arena.take_cleared(granules_mut(&mut self.lines), granule_count, follow);
        self.evicted += (before - self.index.entry_count()) as u64;
        start.ok_or(Refusal::NoSpace)
    }

    /// Whether an item of so many granules can be stored if others go, even if the index grows for it.
    fn can_hold(&self, granule_count: u32) -> bool {
        granule_count + GROUP_GRANULES <= self.arena.free_count() + self.arena.used_count()
    }

    /// Adds one bucket to the index.
    fn grow(&mut self) -> Result<(), Refusal> {
        if self.index.split_needs_group() {
            self.outdate_hints();
            let first_new = self.index.line_count();
            let granules = granules_mut(&mut self.lines);
            let before = self.index.entry_count();
            let evict = self.at_capacity == AtCapacity::Evict;
            let mut follow = |granules: &mut [Granule], removal| follow(&mut self.index, granules, removal);
            if let Err(homeless_count) = self.arena.cede(granules, GROUP_GRANULES, &mut follow, evict) {
                // Nothing else gathers room for a long item in the way, and without it the index could never grow.
                let gathered = self.arena.compact(granules, homeless_count, &mut follow);
                if !gathered || self.arena.cede(granules, GROUP_GRANULES, &mut follow, evict).is_err() {
                    return Err(Refusal::NoSpace);
                }
            }
            self.evicted += (before - self.index.entry_count()) as u64;
            self.lines[first_new..][..GROUP_LINES].fill(Bucket::EMPTY);
        }
        self.index.split(&mut self.lines, self.tick);
        Ok(())
    }

    /// Removes the item that is least likely to be asked for; `false` when there is none, or none near.
    fn evict(&mut self) -> bool {
        let Some(position) = self.hands.victim(&mut self.index, &mut self.lines) else { return false };
        let Entry { reference, .. } = self.index.entry(&self.lines, position);
        self.remove_item(self.index.hash_at(&self.lines, reference), position, Trace::Ghost);
        self.evicted += 1;
        true
    }
}

/// What a write finds at its key.
#[derive(Clone, Copy)]
struct Former {
    position: Position,
    version: u64,
    granule_count: u32,
}

/// Whether a put may take effect on a key whose value has this version, or that has none.
#[inline(always)]
fn check(condition: Condition, version: Option<u64>) -> Result<(), Refusal> {
    match (condition, version) {
        (Condition::Absent, Some(version)) => Err(Refusal::Exists(version)),
        (Condition::Present | Condition::Version(_), None) => Err(Refusal::NotFound),
        (Condition::Version(wanted), Some(version)) if version != wanted => Err(Refusal::Changed(version)),
        _ => Ok(()),
    }
}

/// Tells the index what became of an item that was in the way.
fn follow(index: &mut Index, granules: &mut [Granule], removal: Removal) {
    let lines = lines_mut(granules);
    match removal {
        Removal::Moved { from, to } => index.item_moved(lines, from, to),
        Removal::Dropped(reference) => index.item_dropped(lines, reference, Trace::Ghost),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    const SEEDS: [u64; 4] = [1, 2, 3, 4];

    impl Store {
        fn new_refusing(memory_len: usize, seeds: [u64; 4]) -> io::Result<Self> {
            Self::new(memory_len, AtCapacity::Refuse, seeds)
        }

        fn put_key(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
            self.put(key.into(), self.hash(key.into()), value, Terms::default()).map(|_| ())
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
            let mut references = self.index.check(&self.lines, self.tick);
            self.arena.check(granules, |block| {
                let shape = item::shape(granules, block);
                assert_eq!(
                    references.remove(&block),
                    Some(index::span(block, shape)),
                    "entry of item {block}"
                );
                shape.granule_count()
            });
            assert!(references.is_empty(), "entries without an item: {references:?}");
            let memory = self.memory();
            let known = memory.index_len + memory.items_len + memory.free_len + memory.reserved_len;
            assert_eq!(known, memory.cap_len);
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
        let mut store = Store::new_refusing(8 << 20, SEEDS).unwrap();
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
            let mut store = Store::new_refusing(memory_len, random.random()).unwrap();
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
                            Err(refusal) => {
                                assert_eq!(refusal, Refusal::NoSpace);
                                refused += 1;
                            }
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
            let mut store = Store::new_refusing(memory_len, SEEDS).unwrap();
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
        let mut store = Store::new_refusing(CAP_LEN, SEEDS).unwrap();
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
        let mut store = Store::new_refusing(4 << 20, SEEDS).unwrap();
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
        let mut store = Store::new_refusing(4 << 20, SEEDS).unwrap();
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
        let mut store = Store::new_refusing(1 << 20, SEEDS).unwrap();
        // A bit for the bucket and one for the tag.
        store.index.hash.mask = 1 | 1 << 63;
        for number in 0..700_u32 {
            store.put_key(&number.to_be_bytes(), &[1; 20]).unwrap();
            store.put_key(&u64::from(number).to_be_bytes(), b"other").unwrap();
            store.put_key(&number.to_be_bytes(), &number.to_le_bytes()).unwrap();
        }
        store.check();
        assert_eq!(store.len(), 1_400);
        for number in 0..700_u32 {
            let key = number.to_be_bytes();
            let hash = store.hash(Key::from(&key));
            let probe = store.probe(hash, store.prefetch_bucket(hash));
            let found = store.get(Key::from(&key), hash);
            assert_eq!(found.map(|found| found.value), Some(&number.to_le_bytes()[..]));
            assert_eq!(store.get_probed(Key::from(&key), hash, probe), found);
            assert_eq!(store.get_key(&u64::from(number).to_be_bytes()), Some(&b"other"[..]));
        }
        for number in (0..700_u32).map(|number| number * 37 % 700) {
            assert!(store.delete_key(&number.to_be_bytes()));
            assert!(!store.delete_key(&number.to_be_bytes()));
        }
        store.check();
        assert_eq!(store.len(), 700);
    }

    /// Goal: equal hashes do no harm where items are evicted and expire either: chains of many buckets lose entries at both
    /// ends, under the hands and under hints. Method: random writes on few hashes; every value found, by whatever hint, is
    /// the latest, and all parts agree after each step.
    #[test]
    fn keys_with_one_hash_are_evicted() {
        for (seed, mask) in
            [(1, 0), (2, 1), (3, 0x23), (4, 1 << 63), (5, 1 << 63 | 7), (6, u64::from(u32::MAX))]
        {
            println!("seed {seed}");
            let mut random = SmallRng::seed_from_u64(seed);
            let mut store = Store::new(20_000, AtCapacity::Evict, SEEDS).unwrap();
            store.index.hash.mask = mask;
            let mut model = HashMap::new();
            let mut probes = vec![Probe::default()];
            for step in 0..2_000_u64 {
                store.advance(at_ms(step * 5));
                store.expire(random.random_range(0..3));
                let key = random.random_range(0..200_u32).to_be_bytes();
                let hash = store.hash(Key::from(&key));
                probes.push(store.probe(hash, store.prefetch_bucket(hash)));
                let probe = probes[random.random_range(probes.len().saturating_sub(100)..probes.len())];
                if let Some(found) = store.get_probed(Key::from(&key), hash, probe) {
                    assert_eq!(Some(&(found.version, found.value.len())), model.get(&key));
                }
                assert_eq!(store.get_probed(Key::from(&key), hash, probe), store.get(Key::from(&key), hash));
                if random.random_bool(0.1) {
                    let removed = model.remove(&key).is_some();
                    assert!(store.delete(Key::from(&key), hash).is_none() || removed);
                    continue;
                }
                let value = vec![step as u8; random_len(&mut random, 1_000)];
                let ttl_ms = NonZeroU32::new(random.random_range(0..400)).filter(|_| step % 3 == 0);
                let terms = Terms { ttl_ms, ..Terms::default() };
                // With one chain for all keys, the index may have taken so much that a long value is refused.
                if let Ok(version) = store.put_probed(Key::from(&key), hash, probe, &value, terms) {
                    model.insert(key, (version, value.len()));
                    assert_eq!(store.get_key(&key), Some(&value[..]));
                }
                store.check();
            }
            println!("{} evicted, {} expired", store.evicted(), store.expired());
            assert!(store.evicted() > 100 && store.expired() > 100);
        }
    }

    /// Goal: a hint never makes an answer wrong. Method: probes taken at all times, of all keys, used for their own
    /// key and for others' after writes that move, remove and overwrite; and probes of another store.
    #[test]
    fn stale_probes_are_harmless() {
        let mut random = SmallRng::seed_from_u64(9);
        let mut store = Store::new_refusing(100_000, SEEDS).unwrap();
        let mut full = Store::new_refusing(1 << 20, [5, 6, 7, 8]).unwrap();
        full.fill(0);
        let mut probes = Vec::new();
        for number in 0..2_000_u32 {
            let hash = full.hash(Key::from(&number.to_be_bytes()));
            probes.push(full.probe(hash, full.prefetch_bucket(hash)));
        }
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
                if store.put(Key::from(&key), hash, &value, Terms::default()).is_ok() {
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
        let mut store = Store::new_refusing(4 << 20, SEEDS).unwrap();
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
        let mut store = Store::new_refusing(64 << 10, SEEDS).unwrap();
        let put = |store: &mut Store, key: &[u8], value: &[u8]| {
            store.put(key.into(), store.hash(key.into()), value, Terms::default())
        };
        let delete = |store: &mut Store, key: &[u8]| store.delete(key.into(), store.hash(key.into()));
        assert_eq!(put(&mut store, b"a", b"1"), Ok(1));
        assert_eq!(put(&mut store, b"b", b"2"), Ok(2));
        assert_eq!(put(&mut store, b"a", b"3"), Ok(3));
        assert_eq!(delete(&mut store, b"b"), Some(4));
        assert_eq!(delete(&mut store, b"b"), None);
        assert_eq!(put(&mut store, b"c", &[0; 70_000]), Err(Refusal::NoSpace));
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
        let mut store = Store::new_refusing(100_000, SEEDS).unwrap();
        let count = store.fill(500);
        assert_eq!(store.put_key(&0_u32.to_be_bytes(), &[1; 5_000]), Err(Refusal::NoSpace));
        assert_eq!(store.get_key(&0_u32.to_be_bytes()), Some(&[9; 500][..]));
        for value_len in [500, 499, 30, 0] {
            for number in 0..count {
                assert_eq!(store.put_key(&number.to_be_bytes(), &vec![2; value_len]), Ok(()));
            }
            store.check();
        }
        assert!(store.fill(500) > 0);
    }

    /// Goal: what is printed of a store is short, whatever its size. Method: a large one.
    #[test]
    fn a_store_prints_in_a_line() {
        let mut store = Store::new_refusing(1 << 30, SEEDS).unwrap();
        store.put_key(b"key", b"value").unwrap();
        let line = format!("{store:?}");
        assert!(line.len() < 300 && line.contains("len: 1,"), "{line}");
    }

    /// Goal: caps that cannot work are refused, the smallest allowed one works. Method: the limits.
    #[test]
    fn memory_limits() {
        for memory_len in [0, 4095, (32 << 30) + 1, usize::MAX] {
            let error = Store::new_refusing(memory_len, SEEDS).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        let mut store = Store::new_refusing(4096, SEEDS).unwrap();
        assert!(store.fill(0) >= 90);
        store.check();
    }

    /// Goal: what an item costs beside key and value stays within the target: 32 bytes on average over a round of splits,
    /// with lengths that leave every amount of padding, and 4 more with a time to live. Method: count bytes.
    #[test]
    fn overhead_per_record() {
        for ttl_ms in [None, NonZeroU32::new(60_000)] {
            let mut store = Store::new_refusing(32 << 20, SEEDS).unwrap();
            let (mut payload_len, mut overheads) = (0, Vec::new());
            for number in 0..80_000_u32 {
                let (key, value) = (number.to_be_bytes(), &[0; 200][..(number % 200) as usize]);
                let terms = Terms { ttl_ms, ..Terms::default() };
                store.put(Key::from(&key), store.hash(Key::from(&key)), value, terms).unwrap();
                payload_len += 4 + value.len();
                if number > 20_000 && number % 1_000 == 0 {
                    let memory = store.memory();
                    let overhead =
                        (memory.index_len + memory.items_len - payload_len) as f64 / store.len() as f64;
                    overheads.push(overhead);
                }
            }
            let max = overheads.iter().copied().fold(0.0, f64::max);
            let allowed = if ttl_ms.is_some() { 36.0 } else { 32.0 };
            println!("{max} bytes per record at most");
            assert!(max <= allowed, "{max} bytes per record");
        }
    }

    fn put_for(store: &mut Store, key: &[u8], value: &[u8], ttl_ms: u32) -> Result<u64, Refusal> {
        let terms = Terms { ttl_ms: NonZeroU32::new(ttl_ms), ..Terms::default() };
        store.put(key.into(), store.hash(key.into()), value, terms)
    }

    fn at_ms(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// Goal: a value is gone when its time has come, for every operation, whether it was removed already or not, and a put
    /// without a time to live makes it stay. Method: each case by itself, at times around the end.
    #[test]
    fn values_expire() {
        let mut store = Store::new_refusing(1 << 20, SEEDS).unwrap();
        store.advance(at_ms(1_000));
        for key in [b"a", b"b", b"c", b"d", b"e"] {
            put_for(&mut store, key, &7_u64.to_be_bytes(), 500).unwrap();
        }
        let hash = |key: &[u8]| store.hash(key.into());
        let (a, b, c, d, e) = (hash(b"a"), hash(b"b"), hash(b"c"), hash(b"d"), hash(b"e"));
        store.advance(at_ms(1_499));
        let found = store.get(Key::from(b"a"), a).unwrap();
        assert!((1..=10).contains(&store.ttl_ms(&found).unwrap().get()));
        assert_eq!(store.expire(100), 0);
        store.put_key(b"b", b"stays").unwrap();
        assert_eq!(
            store.add(Key::from(b"c"), c, 5, NonZeroU32::new(9_999)),
            Ok(Sum { former: 7, version: 7 })
        );
        store.check();
        store.advance(at_ms(1_510));
        let version = store.version();
        assert_eq!(store.get_key(b"a"), None);
        let probe = store.probe(a, store.prefetch_bucket(a));
        assert_eq!(store.get_probed(Key::from(b"a"), a, probe), None);
        let only = |condition| Terms { condition, ttl_ms: None };
        assert_eq!(store.put(Key::from(b"a"), a, b"x", only(Condition::Present)), Err(Refusal::NotFound));
        assert_eq!(store.expired(), 1);
        assert_eq!(store.delete(Key::from(b"d"), d), None);
        // A counter keeps its own end, and begins again after it.
        assert_eq!(store.add(Key::from(b"c"), c, 5, None), Ok(Sum { former: 0, version: version + 1 }));
        assert_eq!(store.put(Key::from(b"e"), e, b"new", only(Condition::Absent)), Ok(version + 2));
        store.check();
        assert_eq!((store.expire(100), store.expired()), (0, 4));
        assert_eq!(store.get(Key::from(b"b"), b).map(|found| store.ttl_ms(&found)), Some(None));
        assert_eq!((store.len(), store.get_key(b"e")), (3, Some(&b"new"[..])));
        store.check();
    }

    /// Goal: what has expired is removed without being asked for, all of it and in proportion: buckets looked into do not
    /// exceed the puts. Method: many keys with lives of all lengths, some overwritten or deleted, while the index grows;
    /// then time passes in steps.
    #[test]
    fn expiry_is_complete_and_proportional() {
        let mut random = SmallRng::seed_from_u64(11);
        let mut store = Store::new_refusing(8 << 20, SEEDS).unwrap();
        let mut ends = HashMap::new();
        let mut puts = 0;
        for step in 0..30_000_u64 {
            store.advance(at_ms(step));
            let number: u32 = random.random_range(0..20_000);
            if random.random_bool(0.1) {
                store.delete_key(&number.to_be_bytes());
                ends.remove(&number);
                continue;
            }
            let ttl_ms = if random.random_bool(0.2) { 0 } else { random.random_range(1..=100_000_u32) };
            put_for(&mut store, &number.to_be_bytes(), &[1; 20], ttl_ms).unwrap();
            puts += u64::from(ttl_ms > 0);
            ends.insert(number, (ttl_ms > 0).then(|| step + u64::from(ttl_ms)));
        }
        store.check();
        let mut looks = 0;
        for step in (30_000..140_000).step_by(500) {
            store.advance(at_ms(step));
            while store.index.next_due(&store.lines, store.tick).is_some() {
                looks += 1;
                store.expire(1);
            }
            let live = ends.values().filter(|end| end.is_none_or(|end| end + 9 > step)).count();
            let surely_live = ends.values().filter(|end| end.is_none_or(|end| end > step)).count();
            assert!((surely_live..=live).contains(&store.len()), "{} at {step}", store.len());
        }
        store.check();
        println!("{looks} looks for {puts} puts with an end; {} expired", store.expired());
        assert!(looks <= puts);
        assert_eq!(store.len(), ends.values().filter(|end| end.is_none()).count());
    }

    /// Goal: what has expired makes room before anything is refused. Method: a full store all of whose values expire.
    #[test]
    fn the_expired_make_room() {
        let mut store = Store::new_refusing(200_000, SEEDS).unwrap();
        let count =
            (0_u32..).find(|number| put_for(&mut store, &number.to_be_bytes(), &[1; 100], 50).is_err());
        store.advance(at_ms(100));
        for number in 0..count.unwrap() {
            assert_eq!(store.put_key(&u64::from(number).to_be_bytes(), &[2; 90]), Ok(()), "{number}");
        }
        store.check();
    }

    /// Goal: however much has expired at once, one put that finds no room does a bounded part of the work, and repeated ones
    /// get their room. Method: a store full of short values that have all expired; then a long one until it is stored.
    #[test]
    fn a_put_does_not_wait_for_all_that_has_expired() {
        let mut store = Store::new_refusing(4 << 20, SEEDS).unwrap();
        let count = (0_u32..).find(|number| put_for(&mut store, &number.to_be_bytes(), &[1; 8], 50).is_err());
        assert!(count.unwrap() > 80_000);
        store.advance(at_ms(100));
        let mut puts = 0;
        while store.get_key(b"long").is_none() {
            let before = store.expired();
            let _ = store.put_key(b"long", &[2; 1 << 20]);
            let gone = (store.expired() - before) as usize;
            assert!(gone <= LAST_EXPIRIES * 2 * tags::SLOTS, "{gone} at once");
            puts += 1;
            assert!(puts < 1_000, "refused for ever: {:?}", store.memory());
        }
        assert!(puts > 1 && !store.is_empty());
        store.check();
    }

    /// Goal: a store that evicts takes everything, keeps what it says it has, and evicts only for want of room. Method:
    /// random puts, gets, additions and deletes of all sizes at several caps; every value found is the latest, what was
    /// just put is found, and the memory stays in use.
    #[test]
    fn eviction_takes_everything() {
        for (seed, memory_len, key_count, value_len_max) in [
            (1, 10_000, 400, 60),
            (2, 60_000, 3_000, 700),
            (3, 4 << 20, 3_000, 1 << 20),
            (4, 200_000, 20_000, 300),
        ] {
            println!("seed {seed}");
            let mut random = SmallRng::seed_from_u64(seed);
            let mut store = Store::new(memory_len, AtCapacity::Evict, random.random()).unwrap();
            let mut model = HashMap::<u32, (usize, u8)>::new();
            let (mut hits, mut gets) = (0, 0);
            for step in 0..30_000 {
                store.advance(at_ms(step / 100));
                let number: u32 = random.random_range(0..key_count);
                let key = number.to_be_bytes();
                match random.random_range(0..10) {
                    0..5 => {
                        let hash = store.hash(Key::from(&key));
                        let probe = store.probe(hash, store.prefetch_bucket(hash));
                        gets += 1;
                        if let Some(found) = store.get_probed(Key::from(&key), hash, probe) {
                            let (len, byte) = model[&number];
                            assert!(
                                found.value.len() == len && found.value.iter().all(|&value| value == byte)
                            );
                            hits += 1;
                        }
                    }
                    5..9 => {
                        let value = vec![step as u8; random_len(&mut random, value_len_max)];
                        let ttl_ms = if random.random_bool(0.1) { random.random_range(1..50) } else { 0 };
                        let put = put_for(&mut store, &key, &value, ttl_ms);
                        assert!(put.is_ok(), "step {step}: {} bytes, {:?}", value.len(), store.memory());
                        assert_eq!(store.get_key(&key), Some(&value[..]));
                        model.insert(number, (value.len(), step as u8));
                    }
                    _ => {
                        store.delete_key(&key);
                        model.remove(&number);
                    }
                }
                if step % 1_000 == 0 {
                    store.check();
                }
            }
            store.check();
            println!("{hits} of {gets} hits, {} evicted, {:?}", store.evicted(), store.memory());
            assert!(hits > 0 && store.evicted() > 0);
        }
    }

    /// Goal: an index that has grown for many more keys than there are now costs no more than a bounded look at it, and
    /// still everything is taken. Method: many keys, deleted; then long values, each a good part of the memory.
    #[test]
    fn eviction_in_a_sparse_index() {
        let mut store = Store::new(4 << 20, AtCapacity::Evict, SEEDS).unwrap();
        for number in 0..90_000_u32 {
            store.put_key(&number.to_be_bytes(), b"").unwrap();
        }
        for number in 0..90_000_u32 {
            store.delete_key(&number.to_be_bytes());
        }
        assert!(store.is_empty() && store.memory().index_len > 1 << 20);
        for number in 0..100_u64 {
            let value = vec![number as u8; 300_000];
            assert_eq!(store.put_key(&number.to_be_bytes(), &value), Ok(()));
            assert_eq!(store.get_key(&number.to_be_bytes()), Some(&value[..]));
        }
        store.check();
        assert!(store.len() >= 5 && store.evicted() >= 90, "{} keys", store.len());
    }

    /// Goal: what is used stays while what is read once passes through. Method: keys that are asked for again and again
    /// fill half of the memory; between them, ten times the memory of keys that never return.
    #[test]
    fn a_scan_passes_through() {
        let mut store = Store::new(1 << 20, AtCapacity::Evict, SEEDS).unwrap();
        let value = [1; 100];
        let ask = |store: &mut Store, key: &[u8]| {
            let hash = store.hash(key.into());
            let probe = store.probe(hash, store.prefetch_bucket(hash));
            let found = store.get_probed(key.into(), hash, probe).is_some();
            if !found {
                store.put(key.into(), hash, &value, Terms::default()).unwrap();
            }
            found
        };
        let mut hits = 0;
        for round in 0..20_u64 {
            for number in 0..3_500_u32 {
                hits += u32::from(ask(&mut store, &number.to_be_bytes()) && round >= 5);
                assert!(!ask(&mut store, &(round << 32 | u64::from(number)).to_be_bytes()));
            }
        }
        store.check();
        let share = f64::from(hits) / (15.0 * 3_500.0);
        println!("{share} of the gets hit");
        assert!(share > 0.95, "{share} of the gets hit");
    }

    /// Goal: each condition lets pass just what it says, and refusals tell the version. Method: all conditions on an
    /// absent and on a present key.
    #[test]
    fn conditions() {
        let mut store = Store::new_refusing(1 << 20, SEEDS).unwrap();
        let hash = store.hash(Key::from(b"k"));
        let mut put = |condition| store.put(Key::from(b"k"), hash, b"v", Terms { condition, ttl_ms: None });
        assert_eq!(put(Condition::Present), Err(Refusal::NotFound));
        assert_eq!(put(Condition::Version(0)), Err(Refusal::NotFound));
        assert_eq!(put(Condition::Absent), Ok(1));
        assert_eq!(put(Condition::Absent), Err(Refusal::Exists(1)));
        assert_eq!(put(Condition::Present), Ok(2));
        assert_eq!(put(Condition::Version(1)), Err(Refusal::Changed(2)));
        assert_eq!(put(Condition::Version(2)), Ok(3));
        assert_eq!(put(Condition::Always), Ok(4));
        assert_eq!(store.add(Key::from(b"k"), hash, 1, None), Err(Refusal::NotANumber(4)));
        assert_eq!(store.delete(Key::from(b"k"), hash), Some(5));
        assert_eq!(store.add(Key::from(b"k"), hash, 3, None), Ok(Sum { former: 0, version: 6 }));
        assert_eq!(store.add(Key::from(b"k"), hash, u64::MAX - 1, None), Ok(Sum { former: 3, version: 7 }));
        assert_eq!(store.get_key(b"k"), Some(&1_u64.to_be_bytes()[..]));
        store.check();
    }
}
