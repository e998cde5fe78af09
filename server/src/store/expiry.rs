//! When values expire, and which bucket of the index to look into next.
//!
//! Each bucket has a due time: the earliest at which one of its items expires, or earlier than that when the item has
//! been overwritten or removed since. The due times are the leaves of a tree of minima, sixteen children to a node, so
//! that the next bucket is found, and a time changed, in a handful of cache lines whatever the number of keys. What a
//! bucket is looked into for and finds gone costs no more than the put that had set the time: the work is proportional
//! to the values put with a time to live, and nothing is ever scanned as a whole.
//!
//! The leaves are lines of the index, one for each group of sixteen buckets; the levels above are here.

use std::{num::NonZeroU32, time::Duration};

use linerate_proto::Instant;

/// Children of a node, and buckets of a group.
pub(super) const FAN: usize = 16;

/// Nanoseconds of a tick, as a power of two: 8.4 ms. Times are counted in ticks modulo 2^31 and compared as far as they
/// are less than half of that apart, 104 days: twice the longest time to live.
const TICK_SHIFT: u32 = 23;

/// How long the clock may go on from a time at which nothing was left that had expired: everything noted since then or
/// before, being later than that time, is still less than half of all ticks away.
pub(super) const TIMES_APART_MAX: Duration = Duration::from_secs(100 * 86_400);

/// The bits of a tick.
const TICK_MASK: u32 = (1 << 31) - 1;

/// Half of the ticks.
const HALF: u32 = 1 << 30;

/// A tick of the store's clock, modulo 2^31.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tick(u32);

impl Tick {
    pub(super) fn at(now: Instant) -> Self {
        Self((now.as_nanos() >> TICK_SHIFT) as u32 & TICK_MASK)
    }
}

/// A tick at which something expires, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due(u32);

impl Due {
    pub(super) const NEVER: Self = Self(0);

    /// The first tick that begins `ttl_ms` after `now` or later.
    pub(super) fn after(now: Instant, ttl_ms: Option<NonZeroU32>) -> Self {
        let Some(ttl_ms) = ttl_ms else { return Self::NEVER };
        let end = now.as_nanos().saturating_add(u64::from(ttl_ms.get()) * 1_000_000);
        Self((end.div_ceil(1 << TICK_SHIFT)) as u32 | !TICK_MASK)
    }

    /// What [`to_word`](Self::to_word) gave. Any word is some time.
    #[inline(always)]
    pub(super) const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// How it is stored: 0 for never, else the tick and a set bit above it.
    pub(super) const fn to_word(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub(super) const fn is_some(self) -> bool {
        self.0 != 0
    }

    /// Whether the time has come.
    #[inline(always)]
    pub(super) const fn has_come(self, now: Tick) -> bool {
        self.is_some() && now.0.wrapping_sub(self.0) & TICK_MASK < HALF
    }

    /// Milliseconds from `now` that are left at least, rounded up: what was asked for, or up to a tick less; 1 at the end.
    pub(super) fn ms_after(self, now: Instant) -> Option<NonZeroU32> {
        if !self.is_some() {
            return None;
        }
        let ticks = self.0.wrapping_sub(Tick::at(now).0) & TICK_MASK;
        let ticks = if ticks < HALF { u64::from(ticks) } else { 0 };
        let since_tick = now.as_nanos() & ((1 << TICK_SHIFT) - 1);
        // The time was rounded up to a whole tick.
        let left = Duration::from_nanos((ticks.saturating_sub(1) << TICK_SHIFT).saturating_sub(since_tick));
        let ms = left.as_nanos().div_ceil(1_000_000).max(1);
        Some(NonZeroU32::new(u32::try_from(ms).unwrap_or(u32::MAX)).expect("at least 1"))
    }

    /// A number that is the lower the earlier this is, never above all.
    #[inline(always)]
    const fn rank(self, now: Tick) -> u32 {
        if self.is_some() { self.0.wrapping_sub(now.0).wrapping_add(HALF) & TICK_MASK } else { u32::MAX }
    }

    /// The earlier of two.
    #[inline(always)]
    pub(super) const fn earlier(self, other: Self, now: Tick) -> Self {
        if other.rank(now) < self.rank(now) { other } else { self }
    }
}

/// The levels above the leaves: the earliest due time of each group, of each sixteen groups, and so on up to the root.
#[derive(Debug)]
pub(super) struct Schedule {
    /// From the groups up; the last has one node.
    levels: Vec<Vec<Due>>,
}

impl Schedule {
    /// For as many groups as there may ever be. Memory is touched as groups come into use.
    pub(super) fn new(group_count_max: usize) -> Self {
        let mut levels = Vec::new();
        let mut count = group_count_max.max(1);
        loop {
            levels.push(vec![Due::NEVER; count]);
            if count == 1 {
                return Self { levels };
            }
            count = count.div_ceil(FAN);
        }
    }

    /// Bytes that a schedule takes.
    pub(super) fn memory_len(group_count_max: usize) -> usize {
        let (mut nodes, mut count) = (0, group_count_max.max(1));
        while count > 1 {
            nodes += count;
            count = count.div_ceil(FAN);
        }
        (nodes + 1) * size_of::<Due>()
    }

    /// A bucket of `group` became due earlier than all others of the group.
    pub(super) fn advance(&mut self, group: usize, due: Due, now: Tick) {
        let mut index = group;
        for level in &mut self.levels {
            if level[index].rank(now) <= due.rank(now) {
                return;
            }
            level[index] = due;
            index /= FAN;
        }
    }

    /// The due times of a group's buckets have changed; `due` is the earliest.
    pub(super) fn set(&mut self, group: usize, due: Due, now: Tick) {
        let (mut index, mut due) = (group, due);
        for level in 0..self.levels.len() {
            if std::mem::replace(&mut self.levels[level][index], due) == due {
                return;
            }
            let first = index / FAN * FAN;
            let children = &self.levels[level][first..];
            due = earliest(&children[..children.len().min(FAN)], now).1;
            index /= FAN;
        }
    }

    /// The group in which something is due, the earliest first.
    pub(super) fn next(&self, now: Tick) -> Option<usize> {
        let (root, below) = self.levels.split_last().expect("there is a root");
        if !root[0].has_come(now) {
            return None;
        }
        let mut index = 0;
        for level in below.iter().rev() {
            let children = &level[index * FAN..];
            index = index * FAN + earliest(&children[..children.len().min(FAN)], now).0;
        }
        Some(index)
    }
}

/// Place and time of the earliest.
pub(super) fn earliest(dues: &[Due], now: Tick) -> (usize, Due) {
    let mut first = (0, Due::NEVER);
    for (index, &due) in dues.iter().enumerate() {
        if due.rank(now) < first.1.rank(now) {
            first = (index, due);
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    const DAY_MS: u32 = 86_400_000;

    fn ms(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// Goal: nothing ends before its time or more than a tick after it, whenever it began. Method: times to live of
    /// all orders of magnitude, begun at many times, the wraps of the clock among them.
    #[test]
    fn nothing_ends_early_or_late() {
        let wrap_ms = (1_u64 << (31 + TICK_SHIFT)) / 1_000_000;
        for start in [0, 1, 8, 9, 1_000, wrap_ms / 2 - 3, wrap_ms - 1, wrap_ms, 3 * wrap_ms - 40_000] {
            for ttl in [1, 2, 8, 9, 1_000, DAY_MS, 40 * DAY_MS, u32::MAX] {
                let due = Due::after(ms(start), NonZeroU32::new(ttl));
                let end = start + u64::from(ttl);
                assert!(due.is_some());
                assert!(!due.has_come(Tick::at(ms(start))), "{start} {ttl}");
                assert!(!due.has_come(Tick::at(ms(end - 1))), "{start} {ttl}");
                for late in [9, 1_000, 50 * u64::from(DAY_MS)] {
                    assert!(due.has_come(Tick::at(ms(end + late))), "{start} {ttl} {late}");
                }
                let left = due.ms_after(ms(start)).unwrap().get();
                assert!((ttl.saturating_sub(9)..=ttl).contains(&left), "{start} {ttl} {left}");
                assert_eq!(due.ms_after(ms(end + 20)).unwrap().get(), 1);
            }
        }
        assert_eq!(Due::after(ms(5), None), Due::NEVER);
        assert_eq!((Due::NEVER.ms_after(ms(5)), Due::NEVER.has_come(Tick::at(ms(5)))), (None, false));
    }

    /// Goal: the tree gives the groups in the order of their times. Method: random changes against a plain list, at
    /// several sizes and across a wrap of the clock.
    #[test]
    fn the_schedule_is_a_sorted_list() {
        for (seed, count) in [(1, 1), (2, 15), (3, 17), (4, 300), (5, 5_000)] {
            println!("seed {seed}");
            let mut random = SmallRng::seed_from_u64(seed);
            let mut schedule = Schedule::new(count);
            assert_eq!(
                Schedule::memory_len(count),
                schedule.levels.iter().map(|level| level.len() * 4).sum::<usize>()
            );
            let mut model = vec![Due::NEVER; count];
            let mut now_ms = (1_u64 << (31 + TICK_SHIFT)) / 1_000_000 - 2_000;
            for step in 0..3_000 {
                let (now, tick) = (ms(now_ms), Tick::at(ms(now_ms)));
                let group = random.random_range(0..count);
                let due = Due::after(now, NonZeroU32::new(random.random_range(0..3_000)));
                if random.random_bool(0.5) {
                    model[group] = due;
                    schedule.set(group, due, tick);
                } else if due.is_some() {
                    model[group] = model[group].earlier(due, tick);
                    schedule.advance(group, due, tick);
                }
                now_ms += random.random_range(0..5);
                let tick = Tick::at(ms(now_ms));
                while let Some(group) = schedule.next(tick) {
                    assert!(model[group].has_come(tick), "step {step}");
                    model[group] = Due::NEVER;
                    schedule.set(group, Due::NEVER, tick);
                }
                assert!(model.iter().all(|due| !due.has_come(tick)), "step {step}: something is due");
            }
        }
    }
}
