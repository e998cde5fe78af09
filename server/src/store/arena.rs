//! Space for items: blocks of 8-byte granules that split when taken and merge when returned.
//!
//! Two-level segregated fit (Masmano et al., "TLSF: a new dynamic memory allocator for real-time systems", ECRTS
//! 2004): free blocks hang in lists by size class, bitmaps say which lists hold any, so taking and returning are
//! constant time, and neighbours that are both free become one block at once. Blocks are taken from the high end of
//! free space, because the index grows into the low end. When free memory is there but scattered, items slide together
//! a few at a time, or a stretch of memory is cleared of its items, so that memory freed by small items always serves
//! large ones in the end.
//!
//! The arena holds only its own state; the memory, shared with the index, comes as an argument.
//!
//! ```text
//! granule     0                 1                        last
//! used        flags │ item …    (the item's)
//! free        flags │ next      previous │ length   …    … │ length
//! free, of 1  flags │ 1
//! ```
//! A single free granule is in no list, because there is no room for the links: no item is so short. It is there to be
//! merged.

use super::{item, prefetch::LINE_LEN};

/// The unit of allocation, in bytes. A `u32` counts granules, so an arena reaches 32 GiB.
pub(super) const GRANULE_LEN: usize = size_of::<Granule>();

/// One unit of allocation, as the words that block headers are made of.
pub(super) type Granule = [u32; 2];

/// Granules of a cache line.
const LINE_GRANULES: usize = LINE_LEN / GRANULE_LEN;

/// Word 0 of a block: it is free.
const FREE: u32 = 1 << 31;
/// Word 0 of a block: the block before it is free, and its length stands in the word before this one.
const PREVIOUS_FREE: u32 = 1 << 30;
/// The bits of word 0 that an item must leave alone.
pub(super) const BLOCK_FLAGS: u32 = FREE | PREVIOUS_FREE;
/// Word 0 of a free block: it is a single granule.
const SINGLE: u32 = 1;

/// Blocks below 32 granules (256 bytes) have a class per length; above, each doubling is cut into 32 classes, so that
/// a class's blocks differ by 3 % at most.
const COLUMNS: u32 = 32;
/// Row 0 holds lengths below `COLUMNS`; one more row for each further bit of a `u32`.
const ROWS: usize = (u32::BITS - COLUMNS.ilog2() + 1) as usize;

/// How many blocks of a class are tried when only the class of the wanted length itself can hold a fit. Bounds the
/// time of a take that is about to fail.
const LAST_TRIES: usize = 16;

/// Blocks that one `compact` looks at, and granules (128 KiB) that it moves, at most, but for the last item, which may
/// have 1 MiB. Both bound the pause at some ten microseconds, or a hundred with such an item: each block costs about two
/// cache misses, here and in the index.
const COMPACT_BLOCKS_MAX: u32 = 256;
const COMPACT_GRANULES_MAX: u32 = 16_384;

/// Which granules are free, and where.
#[derive(Debug)]
pub(super) struct Arena {
    /// First free block of each class; 0 for none (granule 0 belongs to the index).
    heads: Box<[[u32; COLUMNS as usize]; ROWS]>,
    /// Bit per row with any free block.
    rows: u32,
    /// Bit per class with any free block.
    columns: [u32; ROWS],
    /// Where the arena starts: a block, or the sentinel.
    start: u32,
    /// One used granule that ends the arena, so that every block has one after it. It begins a cache line, from which
    /// blocks are laid downwards: those of whole or half lines then touch no more lines than they must.
    sentinel: u32,
    free_count: u32,
    /// The block where `compact` goes on.
    cursor: u32,
}

impl Arena {
    /// Makes the granules from `start` (at least 1) to the last cache line of the memory one free block.
    ///
    /// # Panics
    /// When that line is below `start`, or there are granules beyond 2^32.
    pub(super) fn new(granules: &mut [Granule], start: u32) -> Self {
        let last_line = (granules.len() - 1) / LINE_GRANULES * LINE_GRANULES;
        let sentinel = u32::try_from(last_line).expect("an arena of at most 2^32 granules");
        assert!(0 < start && start <= sentinel, "no room for an arena");
        let mut arena = Self {
            heads: Box::new([[0; COLUMNS as usize]; ROWS]),
            rows: 0,
            columns: [0; ROWS],
            start,
            sentinel,
            free_count: 0,
            cursor: start,
        };
        granules[sentinel as usize] = [0; 2];
        if start < sentinel {
            arena.insert(granules, start, sentinel - start);
        }
        arena
    }

    /// Granules that are free.
    pub(super) fn free_count(&self) -> u32 {
        self.free_count
    }

    /// Granules that are taken.
    pub(super) fn used_count(&self) -> u32 {
        self.sentinel - self.start - self.free_count
    }

    /// Takes a block of `count` (at least 1) granules and returns its first; word 0 of the block is set up for an item.
    ///
    /// `None` when no block that long is to be found; nothing has changed then.
    pub(super) fn take(&mut self, granules: &mut [Granule], count: u32) -> Option<u32> {
        let block = self.find_fit(granules, count)?;
        let len = free_len(granules, block);
        self.remove(granules, block);
        let rest = len - count;
        let taken = block + rest;
        granules[taken as usize][0] = 0;
        if rest > 0 {
            // Sets PREVIOUS_FREE in the taken block, too.
            self.insert(granules, block, rest);
        }
        granules[(taken + count) as usize][0] &= !PREVIOUS_FREE;
        Some(taken)
    }

    /// Returns the block at `block` of `count` granules, which `take` handed out.
    pub(super) fn give_back(&mut self, granules: &mut [Granule], block: u32, count: u32) {
        let (mut first, mut end) = (block, block + count);
        debug_assert!(self.start <= block && end <= self.sentinel, "a block outside the arena");
        debug_assert_eq!(granules[block as usize][0] & FREE, 0, "a block given back twice");
        if granules[end as usize][0] & FREE != 0 {
            let next_count = free_len(granules, end);
            self.remove(granules, end);
            end += next_count;
        }
        if granules[block as usize][0] & PREVIOUS_FREE != 0 {
            first -= granules[block as usize - 1][1];
            self.remove(granules, first);
        }
        self.insert(granules, first, end - first);
    }

    /// Returns the last granules of the used block at `block`, so that `keep` of `count` remain.
    pub(super) fn shorten(&mut self, granules: &mut [Granule], block: u32, count: u32, keep: u32) {
        if keep < count {
            granules[(block + keep) as usize][0] = 0;
            self.give_back(granules, block + keep, count - keep);
        }
    }

    /// Moves the start of the arena up by `count` granules, for the index to grow into; they are no longer the
    /// arena's. Items in the way move elsewhere, or go: see [`clear`](Self::clear).
    ///
    /// # Errors
    /// As `clear`, with `u32::MAX` also when the arena ends too soon. The start has not moved then (items may have).
    pub(super) fn cede(
        &mut self,
        granules: &mut [Granule],
        count: u32,
        follow: impl FnMut(&mut [Granule], Removal),
        drops: bool,
    ) -> Result<(), u32> {
        let end = self.start + count;
        if end > self.sentinel {
            return Err(u32::MAX);
        }
        let cleared = self.clear(granules, self.start, count, follow, drops)?;
        self.start = end;
        if self.cursor < cleared {
            self.cursor = end;
        }
        granules[cleared as usize][0] &= !PREVIOUS_FREE;
        if end < cleared {
            granules[end as usize][0] = 0;
            self.give_back(granules, end, cleared - end);
        }
        Ok(())
    }

    /// Takes a block of `count` granules from a stretch of memory whose items move elsewhere or are dropped; the next
    /// call goes on behind it.
    ///
    /// `None` when the arena is shorter than that.
    pub(super) fn take_cleared(
        &mut self,
        granules: &mut [Granule],
        count: u32,
        follow: impl FnMut(&mut [Granule], Removal),
    ) -> Option<u32> {
        if self.sentinel - self.start < count {
            return None;
        }
        let mut block = self.cursor;
        // The stretch may not reach beyond the end, and begins at a block.
        if self.sentinel - block < count {
            block = self.start;
        }
        if granules[block as usize][0] & PREVIOUS_FREE != 0 {
            block -= granules[block as usize - 1][1];
        }
        let cleared = self.clear(granules, block, count, follow, true).ok()?;
        granules[block as usize][0] = 0;
        granules[cleared as usize][0] &= !PREVIOUS_FREE;
        self.cursor = block;
        if block + count < cleared {
            granules[(block + count) as usize][0] = 0;
            self.give_back(granules, block + count, cleared - block - count);
        }
        self.cursor = block + count;
        Some(block)
    }

    /// Clears the blocks from `first` on, which has no free block before it, until `count` granules or more are in no
    /// block and in no list; returns where they end. Items move elsewhere where there is room; others are dropped if
    /// `drops`. `follow` hears of each.
    ///
    /// # Errors
    /// When an item could neither move nor be dropped: the granules that it needs in one piece; nothing is cleared then,
    /// though items may have moved.
    fn clear(
        &mut self,
        granules: &mut [Granule],
        first: u32,
        count: u32,
        mut follow: impl FnMut(&mut [Granule], Removal),
        drops: bool,
    ) -> Result<u32, u32> {
        // What lies below `cleared` is in no list, so that no item moves there.
        let mut cleared = first;
        while cleared < first + count {
            let block = cleared;
            if granules[block as usize][0] & FREE != 0 {
                cleared += free_len(granules, block);
                self.remove(granules, block);
                continue;
            }
            let len = item::shape(granules, block).granule_count();
            cleared += len;
            match self.take(granules, len) {
                Some(to) => {
                    move_item(granules, block, to, len);
                    follow(granules, Removal::Moved { from: block, to });
                }
                None if drops => follow(granules, Removal::Dropped(block)),
                None => {
                    if first < block {
                        granules[first as usize][0] = 0;
                        granules[block as usize][0] &= !PREVIOUS_FREE;
                        self.give_back(granules, first, block - first);
                    }
                    return Err(len);
                }
            }
        }
        Ok(cleared)
    }

    /// Slides items towards the start until some free block has `count` granules; `follow` hears of each item that has
    /// moved. `take` of `count` then succeeds.
    ///
    /// `false` when that many are not free, or when this call has done its share of work; the next one goes on from
    /// there, so that repeated calls succeed in the end.
    pub(super) fn compact(
        &mut self,
        granules: &mut [Granule],
        count: u32,
        mut follow: impl FnMut(&mut [Granule], Removal),
    ) -> bool {
        if self.free_count < count {
            return false;
        }
        let mut moved_count = 0;
        for _ in 0..COMPACT_BLOCKS_MAX {
            if moved_count >= COMPACT_GRANULES_MAX {
                return false;
            }
            let block = self.cursor;
            if block == self.sentinel {
                self.cursor = self.start;
                continue;
            }
            if granules[block as usize][0] & FREE == 0 {
                self.cursor += item::shape(granules, block).granule_count();
                continue;
            }
            let hole_len = free_len(granules, block);
            if hole_len >= count {
                // First of its list, or a take might give up among shorter blocks before it comes to this one.
                self.remove(granules, block);
                self.insert(granules, block, hole_len);
                return true;
            }
            let from = block + hole_len;
            if from == self.sentinel {
                self.cursor = self.start;
                continue;
            }
            let len = item::shape(granules, from).granule_count();
            self.remove(granules, block);
            granules.copy_within(from as usize..(from + len) as usize, block as usize);
            // Whatever is before a free block is used.
            granules[block as usize][0] &= !BLOCK_FLAGS;
            let hole = block + len;
            granules[hole as usize][0] = 0;
            self.give_back(granules, hole, hole_len);
            self.cursor = hole;
            moved_count += len;
            follow(granules, Removal::Moved { from, to: block });
        }
        false
    }

    /// A free block of at least `count` granules: of the smallest class whose every block is long enough.
    fn find_fit(&self, granules: &[Granule], count: u32) -> Option<u32> {
        let own = Class::of(count);
        let class = if granules_round_to_class(count) { own } else { own.next() };
        if let Some(class) = self.class_at_or_above(class) {
            return Some(self.heads[class.row][class.column as usize]);
        }
        let mut block = self.heads[own.row][own.column as usize];
        for _ in 0..LAST_TRIES {
            if block == 0 {
                return None;
            }
            if free_len(granules, block) >= count {
                return Some(block);
            }
            block = granules[block as usize][1];
        }
        None
    }

    fn class_at_or_above(&self, class: Class) -> Option<Class> {
        let columns = self.columns.get(class.row)? & (u32::MAX << class.column);
        if columns != 0 {
            return Some(Class { row: class.row, column: columns.trailing_zeros() });
        }
        // Rows are at most 28, so the shift is by less than 32.
        let rows = self.rows & (u32::MAX << (class.row + 1));
        let row = rows.trailing_zeros() as usize;
        let column = self.columns.get(row)?.trailing_zeros();
        Some(Class { row, column })
    }

    /// Makes a free block of granules that are in no list and whose neighbours are used.
    fn insert(&mut self, granules: &mut [Granule], block: u32, len: u32) {
        self.free_count += len;
        if (block..block + len).contains(&self.cursor) {
            self.cursor = block;
        }
        granules[(block + len) as usize][0] |= PREVIOUS_FREE;
        if len == 1 {
            granules[block as usize] = [FREE | SINGLE, 1];
            return;
        }
        let class = Class::of(len);
        let head = &mut self.heads[class.row][class.column as usize];
        let next = std::mem::replace(head, block);
        self.rows |= 1 << class.row;
        self.columns[class.row] |= 1 << class.column;
        granules[block as usize] = [FREE, next];
        granules[block as usize + 1] = [0, len];
        granules[(block + len - 1) as usize][1] = len;
        if next != 0 {
            granules[next as usize + 1][0] = block;
        }
    }

    /// Takes a free block out of its list; its neighbours' flags are the caller's business.
    fn remove(&mut self, granules: &mut [Granule], block: u32) {
        let [flags, next] = granules[block as usize];
        if flags & SINGLE != 0 {
            self.free_count -= 1;
            return;
        }
        let [previous, len] = granules[block as usize + 1];
        self.free_count -= len;
        if next != 0 {
            granules[next as usize + 1][0] = previous;
        }
        if previous != 0 {
            granules[previous as usize][1] = next;
            return;
        }
        let class = Class::of(len);
        self.heads[class.row][class.column as usize] = next;
        if next == 0 {
            self.columns[class.row] &= !(1 << class.column);
            if self.columns[class.row] == 0 {
                self.rows &= !(1 << class.row);
            }
        }
    }
}

/// What became of an item that was in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// It is now at granule `to`; what is at `from` is no longer to be read.
    Moved {
        /// First granule before.
        from: u32,
        /// First granule now.
        to: u32,
    },
    /// It is still at this granule, but not for longer than the call.
    Dropped(u32),
}

/// Copies an item of `len` granules to another block, whose flags stay.
fn move_item(granules: &mut [Granule], from: u32, to: u32, len: u32) {
    let (from, to) = (from as usize, to as usize);
    let flags = granules[to][0] & BLOCK_FLAGS;
    granules.copy_within(from..from + len as usize, to);
    granules[to][0] = granules[to][0] & !BLOCK_FLAGS | flags;
}

/// Granules of the free block at `block`.
fn free_len(granules: &[Granule], block: u32) -> u32 {
    if granules[block as usize][0] & SINGLE != 0 { 1 } else { granules[block as usize + 1][1] }
}

/// A list of free blocks of about the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Class {
    row: usize,
    column: u32,
}

impl Class {
    /// The class that a block of `len` granules hangs in.
    fn of(len: u32) -> Self {
        if len < COLUMNS {
            return Self { row: 0, column: len };
        }
        let shift = len.ilog2() - COLUMNS.ilog2();
        Self { row: shift as usize + 1, column: len >> shift & (COLUMNS - 1) }
    }

    fn next(self) -> Self {
        match self.column + 1 {
            COLUMNS => Self { row: self.row + 1, column: 0 },
            column => Self { row: self.row, column },
        }
    }
}

/// Whether `len` is the shortest length of its class.
fn granules_round_to_class(len: u32) -> bool {
    len < COLUMNS || len.trailing_zeros() >= len.ilog2() - COLUMNS.ilog2()
}

#[cfg(test)]
impl Arena {
    /// Checks all blocks, flags and lists against each other; calls `used` with each used block and gets its length.
    pub(super) fn check(&self, granules: &[Granule], mut used: impl FnMut(u32) -> u32) {
        let (mut block, mut previous_free, mut free) = (self.start, false, Vec::new());
        let mut cursor_found = self.cursor == self.sentinel;
        while block < self.sentinel {
            cursor_found |= block == self.cursor;
            let header = granules[block as usize];
            assert_eq!(header[0] & PREVIOUS_FREE != 0, previous_free, "flag of block {block}");
            let is_free = header[0] & FREE != 0;
            assert!(!(is_free && previous_free), "free neighbours at {block}");
            let len = if is_free { free_len(granules, block) } else { used(block) };
            if is_free {
                assert_eq!(granules[(block + len - 1) as usize][1], len, "end of block {block}");
                free.push((block, len));
            }
            previous_free = is_free;
            block += len;
        }
        assert_eq!(block, self.sentinel, "the last block ends elsewhere");
        assert!(cursor_found, "the cursor is inside a block");
        assert_eq!(granules[block as usize][0], if previous_free { PREVIOUS_FREE } else { 0 });

        let mut listed = Vec::new();
        for row in 0..ROWS {
            assert_eq!(self.rows >> row & 1 != 0, self.columns[row] != 0);
            for column in 0..COLUMNS {
                let (mut block, mut previous) = (self.heads[row][column as usize], 0);
                assert_eq!(self.columns[row] >> column & 1 != 0, block != 0);
                while block != 0 {
                    assert_eq!(granules[block as usize + 1][0], previous);
                    let len = free_len(granules, block);
                    assert_eq!(Class::of(len), Class { row, column });
                    listed.push((block, len));
                    (previous, block) = (block, granules[block as usize][1]);
                }
            }
        }
        listed.sort_unstable();
        assert_eq!(free.iter().map(|&(_, len)| len).sum::<u32>(), self.free_count);
        free.retain(|&(_, len)| len > 1);
        assert_eq!(listed, free, "blocks in lists and blocks that are free");
    }
}

#[cfg(test)]
mod tests {
    use linerate_proto::Key;

    use super::super::{expiry::Due, item::Found};

    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::{super::item::Shape, *};

    /// Goal: the classes cover all lengths in order and `find_fit` may trust them. Method: walk lengths around every
    /// class boundary.
    #[test]
    fn classes_are_in_order() {
        let lens = (0..28).flat_map(|bit| (0..64_u32).map(move |step| (32 + step / 2) << bit | step & 1));
        let mut lens = (1..200).chain(lens).chain([u32::MAX]).collect::<Vec<_>>();
        lens.sort_unstable();
        for pair in lens.windows(2) {
            let (lower, upper) = (Class::of(pair[0]), Class::of(pair[1]));
            assert!((lower.row, lower.column) <= (upper.row, upper.column), "{pair:?}");
            assert!(upper.row < ROWS);
            assert_eq!(
                granules_round_to_class(pair[1]),
                pair[1] == 1 || Class::of(pair[1] - 1) != upper,
                "{pair:?}"
            );
        }
    }

    /// Goal: blocks never overlap, never leak, and all merge into one again. Method: random takes, returns and
    /// shortenings against a list of what is held, checking every block after each.
    #[test]
    fn random_takes_and_returns_keep_the_arena_whole() {
        for seed in 0..5 {
            println!("seed {seed}");
            let mut random = SmallRng::seed_from_u64(seed);
            let mut granules = vec![[0; 2]; 3_000];
            let mut arena = Arena::new(&mut granules, 5);
            let mut held = Vec::<(u32, u32)>::new();
            for _ in 0..1_500 {
                if random.random_bool(0.55) {
                    let bits = random.random_range(0..9);
                    let count = random.random_range(1..=1_u32 << bits);
                    if let Some(block) = arena.take(&mut granules, count) {
                        granules[block as usize][1..].fill(u32::MAX);
                        granules[block as usize + 1..][..count as usize - 1].fill([u32::MAX; 2]);
                        held.push((block, count));
                    }
                } else if !held.is_empty() {
                    let (block, count) = held.swap_remove(random.random_range(0..held.len()));
                    let keep = random.random_range(0..=count);
                    if keep == 0 {
                        arena.give_back(&mut granules, block, count);
                    } else {
                        arena.shorten(&mut granules, block, count, keep);
                        held.push((block, keep));
                    }
                }
                let lens = held.iter().copied().collect::<std::collections::HashMap<_, _>>();
                arena.check(&granules, |block| lens[&block]);
                assert_eq!(held.iter().map(|&(_, count)| count).sum::<u32>(), arena.used_count());
            }
            for (block, count) in held {
                arena.give_back(&mut granules, block, count);
            }
            assert_eq!(arena.take(&mut granules, 2_987), Some(5), "not one block of all granules again");
            assert_eq!(arena.take(&mut granules, 1), None);
        }
    }

    /// Where each numbered item is, kept up by what the arena says.
    fn follow_numbers(
        items: &mut std::collections::BTreeMap<u32, u32>,
        granules: &[Granule],
        removal: Removal,
    ) {
        let number = |block| u32::from_be_bytes(item::key(granules, block).bytes().try_into().unwrap());
        match removal {
            Removal::Moved { from, to } => assert_eq!(items.insert(number(to), to), Some(from)),
            Removal::Dropped(block) => assert_eq!(items.remove(&number(block)), Some(block)),
        }
    }

    fn value_at(granules: &[Granule], block: u32, number: u32) -> Option<&[u8]> {
        let memory = zerocopy::IntoBytes::as_bytes(granules);
        item::found_at(memory, block, Key::from(&number.to_be_bytes())).map(|found| found.value)
    }

    /// Puts an item with its number as key.
    fn put_number(arena: &mut Arena, granules: &mut [Granule], number: u32, value: &[u8]) -> Option<u32> {
        let shape = Shape::new(4, value.len(), Due::NEVER);
        let block = arena.take(granules, shape.granule_count())?;
        let found = Found { value, version: 1, due: Due::NEVER };
        item::write(granules, block, Key::from(&number.to_be_bytes()), found);
        Some(block)
    }

    /// Goal: `cede` moves exactly the items that are in the way, or refuses. Method: items from the low end on, then
    /// cede until it fails, reading the items after each step.
    #[test]
    fn ceding_moves_items_out_of_the_way() {
        let mut granules = vec![[0; 2]; 208];
        let mut arena = Arena::new(&mut granules, 2);
        let blocks: Vec<_> = (0..66)
            .map(|number| put_number(&mut arena, &mut granules, number, &[number as u8; 8]).unwrap())
            .collect();
        let mut items: std::collections::BTreeMap<_, _> = (0..).zip(blocks).collect();
        // Every second one goes, the lowest (last) stays: 99 granules of 198 in use, none of them in one piece.
        for number in (0..66).step_by(2) {
            arena.give_back(&mut granules, items.remove(&number).unwrap(), 3);
        }
        let mut ceded = 0;
        let refusal = loop {
            let follow = |granules: &mut [Granule], removal| follow_numbers(&mut items, granules, removal);
            if let Err(homeless_count) = arena.cede(&mut granules, 4, follow, false) {
                break homeless_count;
            }
            ceded += 4;
            arena.check(&granules, |block| item::shape(&granules, block).granule_count());
            for number in (1..66_u32).step_by(2) {
                assert_eq!(value_at(&granules, items[&number], number), Some(&[number as u8; 8][..]));
            }
        };
        assert!(refusal == 3 || refusal == u32::MAX, "{refusal} granules of an item of 3");
        arena.check(&granules, |block| item::shape(&granules, block).granule_count());
        assert!(ceded >= 90, "{ceded} of 99 free granules ceded");
        assert_eq!(arena.used_count(), 99);
        assert_eq!(arena.free_count(), 99 - ceded);
    }

    /// Goal: a block of any length can be had if items may go, and then only those go that find no other place. Method:
    /// a full arena of items of random lengths, from which longer and longer blocks are taken, at all places.
    #[test]
    fn clearing_makes_room_for_anything() {
        for seed in 0..10 {
            println!("seed {seed}");
            let mut random = SmallRng::seed_from_u64(seed);
            let mut granules = vec![[0; 2]; 20_000];
            let mut arena = Arena::new(&mut granules, 1);
            let mut items = std::collections::BTreeMap::new();
            for step in 0..400_u32 {
                for number in step * 10_000.. {
                    let value = vec![number as u8; random.random_range(0..200)];
                    let Some(block) = put_number(&mut arena, &mut granules, number, &value) else { break };
                    items.insert(number, block);
                }
                let number = u32::MAX - step;
                let value = vec![9; random.random_range(100..=100 + 200 * step as usize)];
                let count = Shape::new(4, value.len(), Due::NEVER).granule_count();
                let before = items.len();
                let follow =
                    |granules: &mut [Granule], removal| follow_numbers(&mut items, granules, removal);
                let block = arena.take_cleared(&mut granules, count, follow).unwrap();
                assert!(items.len() <= before);
                let found = Found { value: &value, version: 1, due: Due::NEVER };
                item::write(&mut granules, block, Key::from(&number.to_be_bytes()), found);
                items.insert(number, block);
                arena.check(&granules, |block| item::shape(&granules, block).granule_count());
                let used: u32 =
                    items.values().map(|&block| item::shape(&granules, block).granule_count()).sum();
                assert_eq!(used, arena.used_count());
                assert!(items.iter().all(|(&number, &block)| value_at(&granules, block, number).is_some()));
            }
            assert_eq!(arena.take_cleared(&mut granules, 20_001, |_, _| panic!("cleared in vain")), None);
        }
    }

    /// Goal: what compaction has found or made is taken next, however many shorter blocks of its class were freed after it.
    /// Method: one block that is long enough below many that are one granule too short.
    #[test]
    fn what_is_gathered_is_found() {
        let mut granules = vec![[0; 2]; 1_177];
        let mut arena = Arena::new(&mut granules, 6);
        let short: Vec<_> = (0..17)
            .map(|_| {
                let block = arena.take(&mut granules, 64).unwrap();
                // An item of one granule between each two.
                arena.take(&mut granules, 1).unwrap();
                block
            })
            .collect();
        let long = arena.take(&mut granules, 65).unwrap();
        assert_eq!(arena.free_count(), 0);
        arena.give_back(&mut granules, long, 65);
        short.into_iter().for_each(|block| arena.give_back(&mut granules, block, 64));
        assert!(arena.compact(&mut granules, 65, |_, _| ()));
        assert!(arena.take(&mut granules, 65).is_some());
        arena.check(&granules, |block| if block == long { 65 } else { 1 });
    }

    /// Goal: scattered free memory becomes one block without an item lost, however it is spread. Method: random items,
    /// half of them returned; compact for all that is free, checking after each call.
    #[test]
    fn compaction_gathers_all_free_memory() {
        for seed in 0..10 {
            println!("seed {seed}");
            let mut random = SmallRng::seed_from_u64(seed);
            let mut granules = vec![[0; 2]; 60_000];
            let mut arena = Arena::new(&mut granules, 1);
            let mut items = std::collections::BTreeMap::new();
            let mut lens = std::collections::BTreeMap::new();
            for number in 0_u32.. {
                let value = vec![number as u8; random.random_range(0..300)];
                let Some(block) = put_number(&mut arena, &mut granules, number, &value) else { break };
                items.insert(number, block);
                lens.insert(number, value.len());
            }
            items.retain(|_, block| {
                let keep = random.random_bool(0.5);
                if !keep {
                    let count = item::shape(&granules, *block).granule_count();
                    arena.give_back(&mut granules, *block, count);
                }
                keep
            });
            let (free_count, mut calls) = (arena.free_count(), 1);
            let mut follow =
                |granules: &mut [Granule], removal| follow_numbers(&mut items, granules, removal);
            while !arena.compact(&mut granules, free_count, &mut follow) {
                arena.check(&granules, |block| item::shape(&granules, block).granule_count());
                calls += 1;
                assert!(calls < 200, "no end");
            }
            assert!(!arena.compact(&mut granules, free_count + 1, |_, _| panic!("moved in vain")));
            assert_eq!(arena.take(&mut granules, free_count).map(|_| arena.free_count()), Some(0));
            for (number, block) in items {
                let value = vec![number as u8; lens[&number]];
                assert_eq!(value_at(&granules, block, number), Some(&value[..]));
            }
        }
    }
}
