//! From key hash to items: cache-line buckets that grow one at a time (linear hashing).
//!
//! A bucket's ten slots hold a tag (10 bits of the hash) and a reference into the arena, so that a lookup touches one
//! line here and then, nearly always, only the item wanted. The table grows by splitting one bucket into two (Litwin,
//! "Linear hashing: a new tool for file and table addressing", VLDB 1980): no pause, no second table. A full bucket
//! continues in an overflow bucket.
//!
//! ```text
//! line    0 1 … 15  16  17  18  19 20 … 34  35  36  37  38 …   a group: sixteen buckets, two overflow buckets for
//! bucket  0 1 … 15   o   o   d  16 17 … 31   o   o   d  32 …   whichever need them, and the sixteen's due times
//! ```
//! Chains are compact: every bucket but the last of a chain is full, and no overflow bucket is empty. A chain that is
//! split therefore never needs more overflow buckets than it had.
//!
//! Slots in use are the first ones of a bucket. The others may hold ghosts, the tags of keys that were evicted, the
//! latest first: a ghost has no reference, and makes way for any entry.

use linerate_proto::Key;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    arena::{GRANULE_LEN, Granule},
    eviction::Uses,
    expiry::{Due, FAN, Schedule, Tick, earliest},
    item::{self, Found, Shape},
    keyhash::KeyHash,
    prefetch::{LINE_LEN, prefetch_line, prefetch_lines},
    tags::{self, HASH_MASK, SLOTS, SPAN_MASK, USES_MASK, USES_SHIFT},
};

/// Buckets whose due times fill a line.
const GROUP: u32 = FAN as u32;

/// Overflow buckets that come with a group. At the load below, up to 7 % of the buckets overflow (Poisson, half-way
/// through a round), and without an overflow bucket a full store would refuse keys for which it has room.
const GROUP_OVERFLOWS: usize = 2;

/// Lines of a group: its buckets, the overflow buckets and the due times.
pub(super) const GROUP_LINES: usize = FAN + GROUP_OVERFLOWS + 1;

/// Granules of a group, which is the step by which the index grows and its size when new.
pub(super) const GROUP_GRANULES: u32 = (GROUP_LINES * LINE_LEN / GRANULE_LEN) as u32;

/// Entries of two buckets above which the index grows: 5.5 per bucket, which makes 13.8 bytes of index for each. A bucket
/// that is not yet split in a round has up to twice as many. Against 5 per bucket, a get takes 0.5 to 1 ns more.
const LOAD_OF_TWO: usize = 11;

/// One cache line of the index.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    /// Hash bits, uses and line counts (see [`tag_of`]); 0 in an empty slot.
    tags: [u16; SLOTS],
    /// First granule of each item; 0 in an empty slot and in a ghost's.
    references: [u32; SLOTS],
    /// Line of the bucket that continues this one; 0 for none (line 0 is no overflow bucket).
    overflow: u32,
}

const _: () = assert!(size_of::<Bucket>() == LINE_LEN && align_of::<Bucket>() == LINE_LEN);

/// The hash bits of a tag: the top 10, far from the bits that choose the bucket; never all zero, which means empty.
#[inline(always)]
fn tag_of(hash: u64) -> u16 {
    ((hash >> 48) as u16 & HASH_MASK).max(HASH_MASK & HASH_MASK.wrapping_neg())
}

/// Cache lines that an item touches, as a class: 1 to 4 lines, 5 to 8, 9 to 24, and more. The class's number is how many
/// lines are asked for; beyond, the processor's own prefetcher has seen the pattern.
pub(super) fn span(start: u32, shape: Shape) -> u16 {
    let granules_per_line = (LINE_LEN / GRANULE_LEN) as u32;
    let end_in_line = start % granules_per_line + shape.granule_count();
    match end_in_line.div_ceil(granules_per_line) {
        lines @ ..=4 => lines as u16,
        5..=8 => 5,
        9..=24 => 6,
        _ => 7,
    }
}

/// About how many bytes the items of a class have.
const SIZES: [usize; 8] = [0, 48, 96, 160, 224, 416, 1_024, 2_560];

impl Bucket {
    pub(super) const EMPTY: Self = Self { tags: [0; SLOTS], references: [0; SLOTS], overflow: 0 };

    /// A bit per slot whose tag has the same hash bits, ghosts included.
    #[inline(always)]
    fn matches(&self, tag: u16) -> u32 {
        let halves: &[[u64; 4]; 2] = zerocopy::transmute_ref!(self);
        tags::matches(&halves[0], tag)
    }

    /// Slots in use, which are the first ones.
    fn used(&self) -> usize {
        self.references.iter().position(|&reference| reference == 0).unwrap_or(SLOTS)
    }

    fn entry(&self, slot: usize) -> Entry {
        Entry { tag: self.tags[slot], reference: self.references[slot] }
    }

    fn set(&mut self, slot: usize, entry: Entry) {
        self.tags[slot] = entry.tag;
        self.references[slot] = entry.reference;
    }

    /// Moves the ghosts from `slot` on to the slots behind; the last falls off when there is no empty one.
    fn displace_ghosts(&mut self, slot: usize) {
        let mut displaced = std::mem::take(&mut self.tags[slot]);
        for tag in &mut self.tags[slot + 1..] {
            if displaced == 0 {
                return;
            }
            std::mem::swap(tag, &mut displaced);
        }
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    tag: u16,
    /// First granule of the item.
    pub(super) reference: u32,
}

impl Entry {
    pub(super) fn new(hash: u64, reference: u32, shape: Shape, uses: Uses) -> Self {
        Self { tag: tag_of(hash) | uses.bits() << USES_SHIFT | span(reference, shape), reference }
    }

    /// The eviction policy's account of it.
    #[inline(always)]
    pub(super) const fn uses(self) -> Uses {
        Uses::from_bits((self.tag & USES_MASK) >> USES_SHIFT)
    }

    /// About how many bytes its item has.
    const fn size(self) -> usize {
        SIZES[(self.tag & SPAN_MASK) as usize]
    }
}

/// A slot of the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    line: u32,
    pub(super) slot: u32,
}

/// What becomes of a removed entry's tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trace {
    /// Nothing of it stays.
    None,
    /// It stays as a ghost as long as nobody needs its slot.
    Ghost,
}

/// How many buckets there are, where the next split is, and what is due next. The buckets themselves are the first lines
/// of the memory.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) hash: KeyHash,
    bucket_count: u32,
    /// Buckets at the start of this round of splits, minus 1; a power of two minus 1.
    round_mask: u32,
    /// First of the overflow buckets that no chain uses, linked by `overflow`; 0 for none.
    spare: u32,
    entry_count: usize,
    /// Sizes of all entries together, as their classes tell them.
    size: usize,
    /// Those of the newcomers among them.
    newcomer_size: usize,
    schedule: Schedule,
}

impl Index {
    /// An empty index in the first `GROUP_LINES` of `lines`, which are zeroed.
    pub(super) fn new(hash: KeyHash, lines: &mut [Bucket]) -> Self {
        let schedule = Schedule::new(lines.len() / GROUP_LINES);
        let mut index = Self {
            hash,
            bucket_count: GROUP,
            round_mask: GROUP - 1,
            spare: 0,
            entry_count: 0,
            size: 0,
            newcomer_size: 0,
            schedule,
        };
        index.release_group(lines, 0);
        index
    }

    /// Bytes beside the memory that an index in `line_count` lines may take.
    pub(super) fn schedule_len(line_count: usize) -> usize {
        Schedule::memory_len(line_count / GROUP_LINES)
    }

    pub(super) fn entry_count(&self) -> usize {
        self.entry_count
    }

    /// Whether the newcomers, as the eviction policy calls them, have more than one part in `share` of the memory of all
    /// items.
    pub(super) fn newcomers_exceed(&self, share: usize) -> bool {
        self.newcomer_size * share > self.size
    }

    /// How much longer an item is than the average: 0 below half of it, 1, 2 from twice and 3 from 4 times on.
    ///
    /// Less than twice would tell items of one length apart by where they lie: of 212 bytes, for instance, one in eight
    /// touches a line more and is of the next class, 1.7 times the average.
    pub(super) fn bulk(&self, entry: Entry) -> u16 {
        let (size, mean) = (entry.size(), self.size / self.entry_count.max(1));
        u16::from(size * 2 >= mean) + u16::from(size >= mean * 2) + u16::from(size >= mean * 4)
    }

    /// An entry has come.
    fn account_for(&mut self, entry: Entry) {
        self.size += entry.size();
        self.newcomer_size += if entry.uses().is_newcomer() { entry.size() } else { 0 };
    }

    /// An entry has gone.
    fn discount(&mut self, entry: Entry) {
        self.size -= entry.size();
        self.newcomer_size -= if entry.uses().is_newcomer() { entry.size() } else { 0 };
    }

    /// Lines in use, from the start of the memory.
    pub(super) fn line_count(&self) -> usize {
        self.bucket_count.div_ceil(GROUP) as usize * GROUP_LINES
    }

    /// The bucket that a hash belongs to. Only the low 32 bits matter.
    #[inline(always)]
    fn bucket_of(&self, hash: u64) -> u32 {
        let hash = hash as u32;
        let bucket = hash & (self.round_mask << 1 | 1);
        if bucket < self.bucket_count { bucket } else { hash & self.round_mask }
    }

    /// Line of the bucket that a hash belongs to.
    #[inline(always)]
    pub(super) fn home(&self, hash: u64) -> usize {
        line_of(self.bucket_of(hash))
    }

    /// First granule of the item in the bucket at `line`, the hash's home, whose tag matches, after asking for its cache
    /// lines; 0 without one, after asking for the overflow bucket.
    #[inline(always)]
    pub(super) fn probe(&self, lines: &[Bucket], line: u32, hash: u64) -> (u32, usize) {
        let Some(bucket) = lines.get(line as usize) else { return (0, SLOTS) };
        let slot = bucket.matches(tag_of(hash)).trailing_zeros() as usize;
        let (Some(&tag), Some(&reference)) = (bucket.tags.get(slot), bucket.references.get(slot)) else {
            if bucket.overflow != 0 {
                prefetch_line(lines.as_bytes(), bucket.overflow as usize * LINE_LEN);
            }
            return (0, SLOTS);
        };
        prefetch_lines(lines.as_bytes(), reference as usize * GRANULE_LEN, usize::from(tag & SPAN_MASK));
        (reference, slot)
    }

    /// The slot of a key and what is stored for it.
    #[inline]
    pub(super) fn find<'memory>(
        &self,
        lines: &'memory [Bucket],
        key: Key<'_>,
        hash: u64,
    ) -> Option<(Position, Found<'memory>)> {
        let tag = tag_of(hash);
        let mut line = self.home(hash);
        loop {
            let bucket = &lines[line];
            let mut matches = bucket.matches(tag);
            while matches != 0 {
                let slot = matches.trailing_zeros();
                let reference = bucket.references[slot as usize];
                // Behind a ghost there are none but ghosts.
                if reference == 0 {
                    break;
                }
                if let Some(found) = item::found_at(lines.as_bytes(), reference, key) {
                    return Some((Position { line: line as u32, slot }, found));
                }
                matches &= matches - 1;
            }
            if bucket.overflow == 0 {
                return None;
            }
            line = bucket.overflow as usize;
        }
    }

    /// What a slot in use holds.
    pub(super) fn entry(&self, lines: &[Bucket], position: Position) -> Entry {
        lines[position.line as usize].entry(position.slot as usize)
    }

    /// Lets a slot in use refer to another item, of a key with the same hash.
    pub(super) fn replace(&mut self, lines: &mut [Bucket], position: Position, entry: Entry) {
        self.discount(self.entry(lines, position));
        self.account_for(entry);
        lines[position.line as usize].set(position.slot as usize, entry);
    }

    /// Follows the item that moved from granule `from` to granule `to`.
    ///
    /// # Panics
    /// When no entry refers to the item at `from`.
    pub(super) fn item_moved(&mut self, lines: &mut [Bucket], from: u32, to: u32) {
        let shape = item::shape(granules(lines), to);
        let position = self.position_of(lines, self.hash_at(lines, to), from);
        let Entry { tag, .. } = self.entry(lines, position);
        self.replace(lines, position, Entry { tag: tag & !SPAN_MASK | span(to, shape), reference: to });
    }

    /// Removes the entry of the item at granule `reference`, which is still there.
    ///
    /// # Panics
    /// When no entry refers to it.
    pub(super) fn item_dropped(&mut self, lines: &mut [Bucket], reference: u32, trace: Trace) {
        let hash = self.hash_at(lines, reference);
        let position = self.position_of(lines, hash, reference);
        self.remove(lines, hash, position, trace);
    }

    /// The hash of the key of the item at granule `reference`.
    pub(super) fn hash_at(&self, lines: &[Bucket], reference: u32) -> u64 {
        self.hash.of(item::key(granules(lines), reference))
    }

    /// The slot that refers to granule `reference`, in the chain of a hash.
    fn position_of(&self, lines: &[Bucket], hash: u64, reference: u32) -> Position {
        let mut line = self.home(hash);
        loop {
            let bucket = &lines[line];
            if let Some(slot) = bucket.references.iter().position(|&other| other == reference) {
                return Position { line: line as u32, slot: slot as u32 };
            }
            assert_ne!(bucket.overflow, 0, "an item that the index does not know");
            line = bucket.overflow as usize;
        }
    }

    /// Whether `insert` would succeed for this hash.
    pub(super) fn has_room(&self, lines: &[Bucket], hash: u64) -> bool {
        self.spare != 0 || lines[self.tail(lines, self.home(hash)).0].used() < SLOTS
    }

    /// Adds an entry for a key that has none.
    ///
    /// # Panics
    /// Unless `has_room` said yes.
    pub(super) fn insert(&mut self, lines: &mut [Bucket], hash: u64, entry: Entry) {
        let (line, _) = self.tail(lines, self.home(hash));
        let used = lines[line].used();
        self.append(lines, &mut ChainEnd { line, used }, entry);
        self.entry_count += 1;
        self.account_for(entry);
    }

    /// Removes the entry at a position that `find` gave for this hash.
    pub(super) fn remove(&mut self, lines: &mut [Bucket], hash: u64, position: Position, trace: Trace) {
        let (tail, before_tail) = self.tail(lines, self.home(hash));
        let last = lines[tail].used() - 1;
        let removed = self.entry(lines, position);
        let ghost = match trace {
            Trace::None => 0,
            Trace::Ghost => removed.tag,
        };
        let entry = lines[tail].entry(last);
        lines[position.line as usize].set(position.slot as usize, entry);
        lines[tail].set(last, Entry { tag: ghost, reference: 0 });
        if let (0, Some(before)) = (last, before_tail) {
            lines[before].overflow = 0;
            self.release(lines, tail as u32);
        }
        self.entry_count -= 1;
        self.discount(removed);
    }

    /// Counts a use of the entry that `probe` found in this slot.
    #[inline(always)]
    pub(super) fn count_use(&self, lines: &mut [Bucket], line: u32, slot: usize) {
        let lines = &mut lines[..self.line_count()];
        let Some(tag) = lines.get_mut(line as usize).and_then(|bucket| bucket.tags.get_mut(slot)) else {
            return;
        };
        let uses = Uses::from_bits((*tag & USES_MASK) >> USES_SHIFT);
        // What is used much is not written any more.
        if uses.more() != uses {
            *tag = *tag & !USES_MASK | uses.more().bits() << USES_SHIFT;
        }
    }

    /// The entry in a slot; `None` behind the last of a line.
    pub(super) fn entry_if_any(&self, lines: &[Bucket], position: Position) -> Option<Entry> {
        let (bucket, slot) = (&lines[position.line as usize], position.slot as usize);
        (slot < SLOTS && bucket.references[slot] != 0).then(|| bucket.entry(slot))
    }

    /// Changes what is noted of the uses of the entry in a slot in use.
    pub(super) fn set_uses(&mut self, lines: &mut [Bucket], position: Position, uses: Uses) {
        let Entry { tag, reference } = self.entry(lines, position);
        let tag = tag & !USES_MASK | uses.bits() << USES_SHIFT;
        self.replace(lines, position, Entry { tag, reference });
    }

    /// The first slot of the next line that holds entries, round and round.
    pub(super) fn next_line(&self, position: &mut Position) {
        let mut line = position.line as usize + 1;
        if line % GROUP_LINES == GROUP_LINES - 1 {
            line += 1;
        }
        // Of a group that is not complete, the buckets that are not there yet are empty.
        *position = Position { line: if line < self.line_count() { line as u32 } else { 0 }, slot: 0 };
    }

    /// Takes the ghost of a hash out of its chain; whether there was one. It may be another key's.
    pub(super) fn take_ghost(&self, lines: &mut [Bucket], hash: u64) -> bool {
        let (tail, _) = self.tail(lines, self.home(hash));
        let bucket = &mut lines[tail];
        let mut matches = bucket.matches(tag_of(hash));
        while matches != 0 {
            let slot = matches.trailing_zeros() as usize;
            if bucket.references[slot] == 0 {
                bucket.tags[slot] = 0;
                return true;
            }
            matches &= matches - 1;
        }
        false
    }

    /// Whether there are more entries than the buckets are meant for.
    #[inline]
    pub(super) fn is_crowded(&self) -> bool {
        self.entry_count * 2 > self.bucket_count as usize * LOAD_OF_TWO
    }

    /// Whether the next `split` needs `GROUP_GRANULES` more granules, zeroed, behind the lines in use.
    pub(super) fn split_needs_group(&self) -> bool {
        self.bucket_count.is_multiple_of(GROUP)
    }

    /// Adds one bucket and moves the entries there that belong there. Ghosts of the bucket that is split are forgotten.
    pub(super) fn split(&mut self, lines: &mut [Bucket], now: Tick) {
        if self.split_needs_group() {
            self.release_group(lines, self.bucket_count);
        }
        let round = self.round_mask + 1;
        let (old, new) = (self.bucket_count - round, self.bucket_count);
        self.bucket_count += 1;
        if self.bucket_count == 2 * round {
            self.round_mask = 2 * round - 1;
        }
        let mut keep = ChainEnd { line: line_of(old), used: 0 };
        let mut moved = ChainEnd { line: line_of(new), used: 0 };
        let mut bucket = std::mem::replace(&mut lines[keep.line], Bucket::EMPTY);
        loop {
            let used = bucket.used();
            for &reference in &bucket.references[..used] {
                prefetch_line(lines.as_bytes(), reference as usize * GRANULE_LEN);
            }
            for slot in 0..used {
                let entry = bucket.entry(slot);
                let moves = self.hash_at(lines, entry.reference) & u64::from(round) != 0;
                self.append(lines, if moves { &mut moved } else { &mut keep }, entry);
            }
            if bucket.overflow == 0 {
                break;
            }
            // Released before its entries are appended: that is where they find room if they need it.
            let overflow = bucket.overflow;
            bucket = lines[overflow as usize];
            self.release(lines, overflow);
        }
        if self.due(lines, old).is_some() {
            self.find_due(lines, old, now);
            self.find_due(lines, new, now);
        }
    }

    /// Notes that something in the bucket of `hash` expires at `due`.
    pub(super) fn note_due(&mut self, lines: &mut [Bucket], hash: u64, due: Due, now: Tick) {
        let bucket = self.bucket_of(hash);
        let former = self.due(lines, bucket);
        let earlier = former.earlier(due, now);
        if earlier != former {
            *due_mut(lines, bucket) = earlier.to_word();
            self.schedule.advance((bucket / GROUP) as usize, earlier, now);
        }
    }

    /// The bucket in which something may have expired, the earliest first.
    pub(super) fn next_due(&self, lines: &[Bucket], now: Tick) -> Option<u32> {
        let group = self.schedule.next(now)?;
        let (bucket, due) = earliest(&dues(lines, group as u32), now);
        debug_assert!(due.has_come(now), "the schedule knows better than the group");
        Some(group as u32 * GROUP + bucket as u32)
    }

    /// An expired entry of `bucket`. Once there is none, the bucket is due when the next of its items is.
    pub(super) fn find_expired(
        &mut self,
        lines: &mut [Bucket],
        bucket: u32,
        now: Tick,
    ) -> Option<(u64, Position)> {
        let mut line = line_of(bucket);
        loop {
            let used = lines[line].used();
            for &reference in &lines[line].references[..used] {
                prefetch_line(lines.as_bytes(), reference as usize * GRANULE_LEN);
            }
            for slot in 0..used {
                let reference = lines[line].references[slot];
                if item::due(granules(lines), reference).has_come(now) {
                    let position = Position { line: line as u32, slot: slot as u32 };
                    return Some((self.hash_at(lines, reference), position));
                }
            }
            if lines[line].overflow == 0 {
                break;
            }
            line = lines[line].overflow as usize;
        }
        self.find_due(lines, bucket, now);
        None
    }

    /// Works out when `bucket` is due.
    fn find_due(&mut self, lines: &mut [Bucket], bucket: u32, now: Tick) {
        let (mut line, mut due) = (line_of(bucket), Due::NEVER);
        loop {
            let used = lines[line].used();
            for &reference in &lines[line].references[..used] {
                due = due.earlier(item::due(granules(lines), reference), now);
            }
            if lines[line].overflow == 0 {
                break;
            }
            line = lines[line].overflow as usize;
        }
        *due_mut(lines, bucket) = due.to_word();
        let group = bucket / GROUP;
        let (_, group_due) = earliest(&dues(lines, group), now);
        self.schedule.set(group as usize, group_due, now);
    }

    fn due(&self, lines: &[Bucket], bucket: u32) -> Due {
        dues(lines, bucket / GROUP)[(bucket % GROUP) as usize]
    }

    /// Last line of a chain, and the one before it.
    fn tail(&self, lines: &[Bucket], home: usize) -> (usize, Option<usize>) {
        let (mut line, mut before) = (home, None);
        while lines[line].overflow != 0 {
            (before, line) = (Some(line), lines[line].overflow as usize);
        }
        (line, before)
    }

    fn append(&mut self, lines: &mut [Bucket], end: &mut ChainEnd, entry: Entry) {
        if end.used == SLOTS {
            let spare = self.spare;
            assert_ne!(spare, 0, "no overflow bucket left");
            self.spare = std::mem::replace(&mut lines[spare as usize], Bucket::EMPTY).overflow;
            lines[end.line].overflow = spare;
            *end = ChainEnd { line: spare as usize, used: 0 };
        }
        let bucket = &mut lines[end.line];
        bucket.displace_ghosts(end.used);
        bucket.set(end.used, entry);
        end.used += 1;
    }

    /// Makes the overflow buckets available that come with the group whose first bucket is `bucket`.
    fn release_group(&mut self, lines: &mut [Bucket], bucket: u32) {
        let first = line_of(bucket) + FAN;
        (first..first + GROUP_OVERFLOWS).for_each(|line| self.release(lines, line as u32));
    }

    /// Makes the overflow bucket at `line` available.
    fn release(&mut self, lines: &mut [Bucket], line: u32) {
        lines[line as usize] = Bucket { overflow: self.spare, ..Bucket::EMPTY };
        self.spare = line;
    }
}

/// Where the next entry of a chain goes.
struct ChainEnd {
    line: usize,
    used: usize,
}

#[inline(always)]
fn line_of(bucket: u32) -> usize {
    bucket as usize + (bucket / GROUP) as usize * (GROUP_LINES - FAN)
}

/// Line of the due times of a group.
fn dues_line(group: u32) -> usize {
    (group as usize + 1) * GROUP_LINES - 1
}

fn dues(lines: &[Bucket], group: u32) -> [Due; FAN] {
    let words: &[u32; FAN] = zerocopy::transmute_ref!(&lines[dues_line(group)]);
    words.map(Due::from_word)
}

fn due_mut(lines: &mut [Bucket], bucket: u32) -> &mut u32 {
    let words: &mut [u32; FAN] = zerocopy::transmute_mut!(&mut lines[dues_line(bucket / GROUP)]);
    &mut words[(bucket % GROUP) as usize]
}

/// The memory as the arena sees it.
pub(super) fn granules(lines: &[Bucket]) -> &[Granule] {
    <[Granule]>::ref_from_bytes(lines.as_bytes()).expect("a bucket is aligned and eight granules long")
}

/// The memory as the arena sees it, to write.
pub(super) fn granules_mut(lines: &mut [Bucket]) -> &mut [Granule] {
    <[Granule]>::mut_from_bytes(lines.as_mut_bytes()).expect("a bucket is aligned and eight granules long")
}

/// The memory as the index sees it; `granules` must be all of it.
pub(super) fn lines_mut(granules: &mut [Granule]) -> &mut [Bucket] {
    <[Bucket]>::mut_from_bytes(granules.as_mut_bytes()).expect("the memory is whole buckets")
}

#[cfg(test)]
impl Index {
    /// Checks all chains and due times, and that no overflow bucket is lost; returns every reference with the span noted
    /// for it.
    pub(super) fn check(&self, lines: &[Bucket], now: Tick) -> std::collections::HashMap<u32, u16> {
        let (mut references, mut overflow_count) = (std::collections::HashMap::new(), 0);
        for number in 0..self.bucket_count {
            let home = line_of(number);
            let (mut line, mut due) = (home, Due::NEVER);
            loop {
                let bucket = &lines[line];
                let used = bucket.used();
                assert!(
                    bucket.references[used..].iter().all(|&reference| reference == 0),
                    "a gap in line {line}"
                );
                assert!(bucket.tags[..used].iter().all(|tag| tag & HASH_MASK != 0), "no tag in line {line}");
                assert!(bucket.overflow == 0 || used == SLOTS, "line {line} is continued but not full");
                assert!(line == home || used > 0, "an empty overflow bucket in a chain");
                for slot in 0..used {
                    let Entry { tag, reference } = bucket.entry(slot);
                    assert_eq!(self.home(self.hash_at(lines, reference)), home);
                    assert_eq!(tag & HASH_MASK, tag_of(self.hash_at(lines, reference)));
                    due = due.earlier(item::due(granules(lines), reference), now);
                    let former = references.insert(reference, tag & SPAN_MASK);
                    assert_eq!(former, None, "two entries of one item");
                }
                if bucket.overflow == 0 {
                    break;
                }
                overflow_count += 1;
                line = bucket.overflow as usize;
            }
            let noted = self.due(lines, number);
            assert_eq!(noted.earlier(due, now), noted, "bucket {number} is due at {due:?}, noted {noted:?}");
        }
        let mut spare = self.spare;
        while spare != 0 {
            overflow_count += 1;
            spare = lines[spare as usize].overflow;
        }
        assert_eq!(overflow_count, self.line_count() / GROUP_LINES * GROUP_OVERFLOWS, "overflow buckets");
        let in_use =
            lines[..self.line_count()].chunks(GROUP_LINES).flat_map(|group| &group[..GROUP_LINES - 1]);
        let entries = in_use.flat_map(|line| (0..SLOTS).map(|slot| line.entry(slot)));
        let entries: Vec<_> = entries.filter(|entry| entry.reference != 0).collect();
        assert_eq!(entries.iter().map(|entry| entry.size()).sum::<usize>(), self.size);
        let newcomers = entries.iter().filter(|entry| entry.uses().is_newcomer());
        assert_eq!(newcomers.map(|entry| entry.size()).sum::<usize>(), self.newcomer_size);
        assert_eq!(references.len(), self.entry_count);
        references
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an occupied slot never looks empty, and tags tell hashes apart by their top bits. Method: corner values.
    #[test]
    fn tags_are_never_zero() {
        for hash in [0, u64::MAX, 1 << 54, 0xffff_ffff_ffff, 0x3ff << 54] {
            assert_ne!(tag_of(hash) & HASH_MASK, 0);
            assert_eq!(tag_of(hash) & !HASH_MASK, 0);
        }
        assert_ne!(tag_of(0x123 << 54), tag_of(0x124 << 54));
    }

    /// Goal: `span` goes by exactly the lines that an item touches. Method: compare with first and last byte, for all
    /// places in a line and all lengths around the limits.
    #[test]
    fn span_counts_lines() {
        for start in 1..17_u32 {
            for value_len in (0..1_200).chain([65_535, 1 << 20]) {
                let shape = Shape::new(8, value_len, Due::NEVER);
                let first = start as usize * GRANULE_LEN;
                let last = first + shape.granule_count() as usize * GRANULE_LEN - 1;
                let lines = last / LINE_LEN - first / LINE_LEN + 1;
                let class = usize::from(span(start, shape));
                assert_eq!(
                    class,
                    [lines, 5, 6, 7][[5, 9, 25].iter().filter(|&&limit| lines >= limit).count()]
                );
            }
        }
    }

    /// Goal: at every size each hash has one home, inside the lines in use, and a split moves only hashes of the
    /// bucket that is split. Method: count the homes of many hashes over some rounds of splits.
    #[test]
    fn a_split_moves_one_bucket() {
        let mut lines = vec![Bucket::EMPTY; 1_000];
        let mut index = Index::new(KeyHash::new([1, 2, 3, 4]), &mut lines);
        let homes = |index: &Index| (0..2_048).map(|hash| index.home(hash)).collect::<Vec<_>>();
        let mut before = homes(&index);
        for step in 0..500 {
            index.split(&mut lines, Tick::default());
            index.check(&lines, Tick::default());
            let after = homes(&index);
            assert!(
                after.iter().all(|&line| line < index.line_count() && line % GROUP_LINES < FAN),
                "step {step}"
            );
            let mut changed = before.iter().zip(&after).filter(|(old, new)| old != new).collect::<Vec<_>>();
            assert!(!changed.is_empty());
            changed.dedup();
            assert_eq!(changed.len(), 1, "step {step}: entries of several buckets moved");
            before = after;
        }
    }

    /// Goal: ghosts stay, the latest first, as long as there is room for them, and give way to entries. Method: the ghosts
    /// of a bucket with three entries; then entries until the bucket is full.
    #[test]
    fn ghosts_make_way() {
        let mut bucket = Bucket::EMPTY;
        for slot in 0..3 {
            bucket.set(slot, Entry { tag: 1 << 6, reference: slot as u32 + 1 });
        }
        bucket.tags[3..6].copy_from_slice(&[3 << 6, 2 << 6, 4 << 6]);
        bucket.displace_ghosts(3);
        assert_eq!(bucket.tags[3..8], [0, 3 << 6, 2 << 6, 4 << 6, 0]);
        bucket.set(3, Entry { tag: 1 << 6, reference: 9 });
        for used in 4..SLOTS {
            assert_eq!(bucket.used(), used);
            bucket.displace_ghosts(used);
            assert_eq!(bucket.tags[used], 0);
            bucket.set(used, Entry { tag: 1 << 6, reference: 9 });
        }
        assert_eq!(bucket.tags, [1 << 6; SLOTS]);
    }
}
