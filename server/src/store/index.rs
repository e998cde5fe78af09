//! From key hash to items: cache-line buckets that grow one at a time (linear hashing).
//!
//! A bucket's ten slots hold a tag (12 bits of the hash) and a reference into the arena, so that a lookup touches one
//! line here and then, nearly always, only the item wanted. The table grows by splitting one bucket into two (Litwin,
//! "Linear hashing: a new tool for file and table addressing", VLDB 1980): no pause, no second table. A full bucket
//! continues in an overflow bucket.
//!
//! ```text
//! line    0 1 2 … 15  16  17 18 … 32  33  34 …     a group: sixteen buckets, and an overflow bucket
//! bucket  0 1 2 … 15   o  16 17 … 31   o  32 …     for whichever bucket needs it
//! ```
//! Chains are compact: every bucket but the last of a chain is full, and no overflow bucket is empty. A chain that is
//! split therefore never needs more overflow buckets than it had.

use linerate_proto::Key;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    arena::{GRANULE_LEN, Granule},
    item::{self, Found, Lengths},
    prefetch::{LINE_LEN, prefetch_line, prefetch_lines},
    tags::{self, SLOTS, SPAN_MASK},
};

/// Buckets that share one overflow bucket, a power of two. At the load below, at most 2 % of the
/// buckets overflow (Poisson), so that one for sixteen is more than enough.
const GROUP: u32 = 16;

/// Lines of a group: its buckets and the overflow bucket.
pub(super) const GROUP_LINES: usize = GROUP as usize + 1;

/// Granules of a group, which is the step by which the index grows and its size when new.
pub(super) const GROUP_GRANULES: u32 = (GROUP_LINES * LINE_LEN / GRANULE_LEN) as u32;

/// Entries per bucket above which the index grows. A bucket that is not yet split in a round has up to twice as many,
/// so 4 keeps nearly all entries out of overflow buckets, whose items `probe` cannot prefetch: uniform gets of 1 M
/// records take 16.5 ns; with 5 they take 20 ns and an entry 3.6 bytes less, with 6 they take 22 to 27 ns.
const LOAD: u32 = 4;

/// One cache line of the index.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    /// Hash bits and line counts (see [`tag_of`]); 0 in an empty slot.
    tags: [u16; SLOTS],
    /// First granule of each item.
    references: [u32; SLOTS],
    /// Line of the bucket that continues this one; 0 for none (line 0 is no overflow bucket).
    overflow: u32,
}

const _: () = assert!(size_of::<Bucket>() == LINE_LEN && align_of::<Bucket>() == LINE_LEN);

/// The hash bits of a tag: the top 12, far from the bits that choose the bucket; never all zero, which means empty.
#[inline(always)]
fn tag_of(hash: u64) -> u16 {
    ((hash >> 48) as u16 & !SPAN_MASK).max(1 << 4)
}

/// Cache lines that an item touches, at most 15: beyond, the processor's own prefetcher has seen the pattern.
pub(super) fn span(start: u32, lengths: Lengths) -> u16 {
    let granules_per_line = (LINE_LEN / GRANULE_LEN) as u32;
    let end_in_line = start % granules_per_line + lengths.granule_count();
    end_in_line.div_ceil(granules_per_line).min(u32::from(SPAN_MASK)) as u16
}

impl Bucket {
    pub(super) const EMPTY: Self = Self { tags: [0; SLOTS], references: [0; SLOTS], overflow: 0 };

    /// A bit per slot whose tag has the same hash bits; with 0, a bit per empty slot.
    #[inline(always)]
    fn matches(&self, tag: u16) -> u32 {
        let halves: &[[u64; 4]; 2] = zerocopy::transmute_ref!(self);
        tags::matches(&halves[0], tag)
    }

    /// Slots in use, which are the first ones.
    fn used(&self) -> usize {
        self.matches(0).trailing_zeros().min(SLOTS as u32) as usize
    }

    fn entry(&self, slot: usize) -> Entry {
        Entry { tag: self.tags[slot], reference: self.references[slot] }
    }

    fn set(&mut self, slot: usize, entry: Entry) {
        self.tags[slot] = entry.tag;
        self.references[slot] = entry.reference;
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    tag: u16,
    /// First granule of the item.
    pub(super) reference: u32,
}

impl Entry {
    pub(super) fn new(hash: u64, reference: u32, lengths: Lengths) -> Self {
        Self { tag: tag_of(hash) | span(reference, lengths), reference }
    }
}

/// A slot of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    line: u32,
    slot: u32,
}

/// How many buckets there are and where the next split is. The buckets themselves are the first lines of the memory.
#[derive(Debug)]
pub(super) struct Index {
    bucket_count: u32,
    /// Buckets at the start of this round of splits, minus 1; a power of two minus 1.
    round_mask: u32,
    /// First of the overflow buckets that no chain uses, linked by `overflow`; 0 for none.
    spare: u32,
    entry_count: usize,
}

impl Index {
    /// An empty index in the first `GROUP_LINES` of zeroed memory.
    pub(super) fn new() -> Self {
        Self { bucket_count: GROUP, round_mask: GROUP - 1, spare: GROUP, entry_count: 0 }
    }

    pub(super) fn entry_count(&self) -> usize {
        self.entry_count
    }

    /// Lines in use, from the start of the memory.
    pub(super) fn line_count(&self) -> usize {
        self.bucket_count.div_ceil(GROUP) as usize * GROUP_LINES
    }

    /// Line of the bucket that a hash belongs to. Only the low 32 bits matter.
    #[inline(always)]
    pub(super) fn home(&self, hash: u64) -> usize {
        let hash = hash as u32;
        let bucket = hash & (self.round_mask << 1 | 1);
        line_of(if bucket < self.bucket_count { bucket } else { hash & self.round_mask })
    }

    /// First granule of the item in the bucket at `line`, the hash's home, whose tag matches, after asking for its cache lines; 0 without one,
    /// after asking for the overflow bucket.
    #[inline(always)]
    pub(super) fn probe(&self, lines: &[Bucket], line: u32, hash: u64) -> u32 {
        let Some(bucket) = lines.get(line as usize) else { return 0 };
        let slot = bucket.matches(tag_of(hash)).trailing_zeros() as usize;
        let (Some(&tag), Some(&reference)) = (bucket.tags.get(slot), bucket.references.get(slot)) else {
            if bucket.overflow != 0 {
                prefetch_line(lines.as_bytes(), bucket.overflow as usize * LINE_LEN);
            }
            return 0;
        };
        prefetch_lines(lines.as_bytes(), reference as usize * GRANULE_LEN, usize::from(tag & SPAN_MASK));
        reference
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
                if let Some(found) = item::found_at(lines.as_bytes(), bucket.references[slot as usize], key) {
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
    pub(super) fn replace(&self, lines: &mut [Bucket], position: Position, entry: Entry) {
        lines[position.line as usize].set(position.slot as usize, entry);
    }

    /// Follows the item that moved from granule `from` to granule `to`.
    ///
    /// # Panics
    /// When no entry refers to the item at `from`.
    pub(super) fn item_moved(&self, lines: &mut [Bucket], from: u32, to: u32) {
        let lengths = item::lengths(granules(lines), to);
        let mut line = self.home(item::stored_hash(granules(lines), to).into());
        loop {
            let bucket = &mut lines[line];
            if let Some(slot) = bucket.references.iter().position(|&reference| reference == from) {
                let tag = bucket.tags[slot] & !SPAN_MASK | span(to, lengths);
                return bucket.set(slot, Entry { tag, reference: to });
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
    }

    /// Removes the entry at a position that `find` gave for this hash.
    pub(super) fn remove(&mut self, lines: &mut [Bucket], hash: u64, position: Position) {
        let (tail, before_tail) = self.tail(lines, self.home(hash));
        let last = lines[tail].used() - 1;
        let entry = lines[tail].entry(last);
        self.replace(lines, position, entry);
        lines[tail].set(last, Entry { tag: 0, reference: 0 });
        if let (0, Some(before)) = (last, before_tail) {
            lines[before].overflow = 0;
            self.release(lines, tail as u32);
        }
        self.entry_count -= 1;
    }

    /// Whether there are more entries than the buckets are meant for.
    #[inline]
    pub(super) fn is_crowded(&self) -> bool {
        self.entry_count > self.bucket_count as usize * LOAD as usize
    }

    /// Whether the next `split` needs `GROUP_GRANULES` more granules, zeroed, behind the lines in use.
    pub(super) fn split_needs_group(&self) -> bool {
        self.bucket_count.is_multiple_of(GROUP)
    }

    /// Adds one bucket and moves the entries there that belong there.
    pub(super) fn split(&mut self, lines: &mut [Bucket]) {
        if self.split_needs_group() {
            self.release(lines, line_of(self.bucket_count) as u32 + GROUP);
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
                let moves = item::stored_hash(granules(lines), entry.reference) & round != 0;
                self.append(lines, if moves { &mut moved } else { &mut keep }, entry);
            }
            if bucket.overflow == 0 {
                return;
            }
            // Released before its entries are appended: that is where they find room if they need it.
            let overflow = bucket.overflow;
            bucket = lines[overflow as usize];
            self.release(lines, overflow);
        }
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
        lines[end.line].set(end.used, entry);
        end.used += 1;
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
    bucket as usize + (bucket / GROUP) as usize
}

/// The memory as the arena sees it.
pub(super) fn granules(lines: &[Bucket]) -> &[Granule] {
    <[Granule]>::ref_from_bytes(lines.as_bytes()).expect("a bucket is aligned and four granules long")
}

/// The memory as the arena sees it, to write.
pub(super) fn granules_mut(lines: &mut [Bucket]) -> &mut [Granule] {
    <[Granule]>::mut_from_bytes(lines.as_mut_bytes()).expect("a bucket is aligned and four granules long")
}

/// The memory as the index sees it; `granules` must be all of it.
pub(super) fn lines_mut(granules: &mut [Granule]) -> &mut [Bucket] {
    <[Bucket]>::mut_from_bytes(granules.as_mut_bytes()).expect("the memory is whole buckets")
}

#[cfg(test)]
impl Index {
    /// Checks all chains and that no overflow bucket is lost; returns every reference with the span noted for it.
    pub(super) fn check(&self, lines: &[Bucket]) -> std::collections::HashMap<u32, u16> {
        let (mut references, mut overflow_count) = (std::collections::HashMap::new(), 0);
        for home in (0..self.bucket_count).map(line_of) {
            let mut line = home;
            loop {
                let bucket = &lines[line];
                let used = bucket.used();
                assert_eq!(bucket.matches(0).count_ones() as usize, SLOTS - used, "a gap in line {line}");
                assert!(bucket.overflow == 0 || used == SLOTS, "line {line} is continued but not full");
                assert!(line == home || used > 0, "an empty overflow bucket in a chain");
                for slot in 0..used {
                    let Entry { tag, reference } = bucket.entry(slot);
                    assert_eq!(self.home(item::stored_hash(granules(lines), reference).into()), home);
                    assert_eq!(
                        references.insert(reference, tag & SPAN_MASK),
                        None,
                        "two entries of one item"
                    );
                }
                if bucket.overflow == 0 {
                    break;
                }
                overflow_count += 1;
                line = bucket.overflow as usize;
            }
        }
        let mut spare = self.spare;
        while spare != 0 {
            overflow_count += 1;
            spare = lines[spare as usize].overflow;
        }
        assert_eq!(overflow_count, self.line_count() / GROUP_LINES, "overflow buckets");
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
        for hash in [0, u64::MAX, 1 << 52, 0xffff_ffff_ffff, 0xfff << 52] {
            assert_ne!(tag_of(hash) & !SPAN_MASK, 0);
            assert_eq!(tag_of(hash) & SPAN_MASK, 0);
        }
        assert_ne!(tag_of(0x123 << 52), tag_of(0x124 << 52));
    }

    /// Goal: `span` counts exactly the lines that an item touches. Method: compare with first and last byte, for all
    /// places in a line and all lengths around the limits.
    #[test]
    fn span_counts_lines() {
        for start in 1..9_u32 {
            for value_len in (0..1_200).chain([65_535, 1 << 20]) {
                let lengths = Lengths::new(8, value_len);
                let first = start as usize * GRANULE_LEN;
                let last = first + lengths.granule_count() as usize * GRANULE_LEN - 1;
                let lines = last / LINE_LEN - first / LINE_LEN + 1;
                assert_eq!(usize::from(span(start, lengths)), lines.min(15));
            }
        }
    }

    /// Goal: at every size each hash has one home, inside the lines in use, and a split moves only hashes of the
    /// bucket that is split. Method: count the homes of many hashes over some rounds of splits.
    #[test]
    fn a_split_moves_one_bucket() {
        let mut lines = vec![Bucket::EMPTY; 1_000];
        let mut index = Index::new();
        let homes = |index: &Index| (0..2_048).map(|hash| index.home(hash)).collect::<Vec<_>>();
        let mut before = homes(&index);
        for step in 0..500 {
            index.split(&mut lines);
            index.check(&lines);
            let after = homes(&index);
            assert!(
                after.iter().all(|&line| line < index.line_count() && line % GROUP_LINES != GROUP_LINES - 1),
                "step {step}"
            );
            let mut changed = before.iter().zip(&after).filter(|(old, new)| old != new).collect::<Vec<_>>();
            assert!(!changed.is_empty());
            changed.dedup();
            assert_eq!(changed.len(), 1, "step {step}: entries of several buckets moved");
            before = after;
        }
    }
}
