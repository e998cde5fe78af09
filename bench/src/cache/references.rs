//! Policies to compare the store with. They keep records, not values, in as much room as they are given, and need
//! memory and time that the store has not got: that is the point of the comparison.

use std::collections::VecDeque;

use lru::LruCache;
use serde::Serialize;

/// A policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// What was not used for longest goes.
    Lru,
    /// S3-FIFO as in Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023: what was used twice leaves
    /// the small queue for the main one.
    S3Fifo,
    /// The same, where one use is enough, as in most implementations.
    S3FifoOnce,
    /// W-TinyLFU, Einziger, Friedman and Manes, "TinyLFU: a highly efficient cache admission policy", ACM ToS 2017, with a
    /// window of 1 % of the room.
    #[serde(rename = "w_tinylfu_1")]
    WTinyLfu1,
    /// The same with a window of 10 %, better where popularity changes.
    #[serde(rename = "w_tinylfu_10")]
    WTinyLfu10,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Lru, Self::S3Fifo, Self::S3FifoOnce, Self::WTinyLfu1, Self::WTinyLfu10];

    /// For the head of a table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lru => "LRU",
            Self::S3Fifo => "S3-FIFO",
            Self::S3FifoOnce => "S3-FIFO ≥ 1",
            Self::WTinyLfu1 => "W-TinyLFU 1 %",
            Self::WTinyLfu10 => "W-TinyLFU 10 %",
        }
    }
}

/// An empty cache of a policy.
pub struct Reference<'a>(Cache<'a>);

enum Cache<'a> {
    Lru(Lru<'a>),
    S3Fifo(S3Fifo<'a>),
    WTinyLfu(WTinyLfu<'a>),
}

impl<'a> Reference<'a> {
    /// `weights` says how much room each record takes, at least 1 and at most a hundredth of `capacity`; `entries` is
    /// about how many records fit.
    #[must_use]
    pub fn new(policy: Policy, capacity: u64, entries: u64, weights: &'a [u32]) -> Self {
        let weights = Weights(weights);
        Self(match policy {
            Policy::Lru => Cache::Lru(Lru::new(capacity, weights)),
            Policy::S3Fifo => Cache::S3Fifo(S3Fifo::new(capacity, weights, 2)),
            Policy::S3FifoOnce => Cache::S3Fifo(S3Fifo::new(capacity, weights, 1)),
            Policy::WTinyLfu1 => Cache::WTinyLfu(WTinyLfu::new(capacity, weights, entries, capacity / 100)),
            Policy::WTinyLfu10 => Cache::WTinyLfu(WTinyLfu::new(capacity, weights, entries, capacity / 10)),
        })
    }

    /// Asks for a record, and stores it if it is not there; whether it was.
    pub fn access(&mut self, record: u32) -> bool {
        match &mut self.0 {
            Cache::Lru(cache) => cache.access(record),
            Cache::S3Fifo(cache) => cache.access(record),
            Cache::WTinyLfu(cache) => cache.access(record),
        }
    }
}

#[derive(Clone, Copy)]
struct Weights<'a>(&'a [u32]);

impl Weights<'_> {
    fn of(self, record: u32) -> u64 {
        self.0[record as usize].into()
    }
}

struct Lru<'a> {
    records: LruCache<u32, ()>,
    weights: Weights<'a>,
    capacity: u64,
    weight: u64,
}

impl<'a> Lru<'a> {
    fn new(capacity: u64, weights: Weights<'a>) -> Self {
        Self { records: LruCache::unbounded(), weights, capacity, weight: 0 }
    }

    fn access(&mut self, record: u32) -> bool {
        if self.records.get(&record).is_some() {
            return true;
        }
        self.weight += self.weights.of(record);
        while self.weight > self.capacity {
            let Some((oldest, ())) = self.records.pop_lru() else { break };
            self.weight -= self.weights.of(oldest);
        }
        self.records.put(record, ());
        false
    }
}

/// A tenth for the small queue; as many ghosts as the main queue has room for; uses are counted up to 3.
struct S3Fifo<'a> {
    small: Queue,
    main: Queue,
    /// Records with the number that `ghost_of` has for them, if they have not come back since.
    ghosts: VecDeque<(u32, u32)>,
    ghosts_weight: u64,
    ghost_of: Vec<u32>,
    ghost_count: u32,
    uses: Vec<u8>,
    is_stored: Vec<bool>,
    weights: Weights<'a>,
    capacity: u64,
    /// Uses that lead from the small queue to the main one.
    promoted_from: u8,
}

#[derive(Default)]
struct Queue {
    records: VecDeque<u32>,
    weight: u64,
}

impl Queue {
    fn push(&mut self, record: u32, weights: Weights<'_>) {
        self.records.push_back(record);
        self.weight += weights.of(record);
    }

    fn pop(&mut self, weights: Weights<'_>) -> Option<u32> {
        let record = self.records.pop_front()?;
        self.weight -= weights.of(record);
        Some(record)
    }
}

impl<'a> S3Fifo<'a> {
    fn new(capacity: u64, weights: Weights<'a>, promoted_from: u8) -> Self {
        let record_count = weights.0.len();
        Self {
            small: Queue::default(),
            main: Queue::default(),
            ghosts: VecDeque::new(),
            ghosts_weight: 0,
            ghost_of: vec![0; record_count],
            ghost_count: 0,
            uses: vec![0; record_count],
            is_stored: vec![false; record_count],
            weights,
            capacity,
            promoted_from,
        }
    }

    fn main_capacity(&self) -> u64 {
        self.capacity - self.capacity / 10
    }

    fn access(&mut self, record: u32) -> bool {
        let uses = &mut self.uses[record as usize];
        if self.is_stored[record as usize] {
            *uses = (*uses + 1).min(3);
            return true;
        }
        *uses = 0;
        while self.small.weight + self.main.weight + self.weights.of(record) > self.capacity {
            if self.small.weight >= self.capacity / 10 || self.main.records.is_empty() {
                self.evict_small();
            } else {
                self.evict_main();
            }
        }
        self.is_stored[record as usize] = true;
        let had_ghost = std::mem::take(&mut self.ghost_of[record as usize]) != 0;
        let queue = if had_ghost { &mut self.main } else { &mut self.small };
        queue.push(record, self.weights);
        false
    }

    fn evict_small(&mut self) {
        while let Some(record) = self.small.pop(self.weights) {
            if self.uses[record as usize] < self.promoted_from {
                self.is_stored[record as usize] = false;
                self.leave_ghost(record);
                return;
            }
            self.uses[record as usize] = 0;
            self.main.push(record, self.weights);
            if self.main.weight > self.main_capacity() {
                self.evict_main();
            }
        }
    }

    fn evict_main(&mut self) {
        while let Some(record) = self.main.pop(self.weights) {
            let uses = &mut self.uses[record as usize];
            if *uses == 0 {
                self.is_stored[record as usize] = false;
                return;
            }
            *uses -= 1;
            self.main.push(record, self.weights);
        }
    }

    fn leave_ghost(&mut self, record: u32) {
        self.ghost_count += 1;
        self.ghost_of[record as usize] = self.ghost_count;
        self.ghosts.push_back((record, self.ghost_count));
        self.ghosts_weight += self.weights.of(record);
        while self.ghosts_weight > self.main_capacity() {
            let Some((oldest, number)) = self.ghosts.pop_front() else { break };
            self.ghosts_weight -= self.weights.of(oldest);
            let ghost = &mut self.ghost_of[oldest as usize];
            if *ghost == number {
                *ghost = 0;
            }
        }
    }
}

/// A window (LRU) and a main part (SLRU, 80 % protected), which a record enters from the window if it was asked for more
/// often than those together that it displaces.
struct WTinyLfu<'a> {
    lists: Lists<'a>,
    /// The list that each record is in.
    places: Vec<Place>,
    frequencies: Frequencies,
    window_capacity: u64,
    main_capacity: u64,
    protected_capacity: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Window,
    Probation,
    Protected,
}

impl<'a> WTinyLfu<'a> {
    fn new(capacity: u64, weights: Weights<'a>, entries: u64, window_capacity: u64) -> Self {
        let record_count = weights.0.len();
        let main_capacity = capacity - window_capacity.max(1);
        Self {
            lists: Lists::new(weights),
            places: vec![Place::Nowhere; record_count],
            frequencies: Frequencies::new(entries),
            window_capacity: window_capacity.max(1),
            main_capacity,
            protected_capacity: main_capacity / 5 * 4,
        }
    }

    fn access(&mut self, record: u32) -> bool {
        self.frequencies.count(record);
        match self.places[record as usize] {
            Place::Window => self.move_to(record, Place::Window),
            Place::Probation | Place::Protected => {
                self.move_to(record, Place::Protected);
                while self.lists.weight(Place::Protected) > self.protected_capacity {
                    let oldest = self.lists.last(Place::Protected).expect("it weighs something");
                    self.move_to(oldest, Place::Probation);
                }
            }
            Place::Nowhere => {
                self.move_to(record, Place::Window);
                while self.lists.weight(Place::Window) > self.window_capacity {
                    let candidate = self.lists.last(Place::Window).expect("it weighs something");
                    self.admit_or_drop(candidate);
                }
                return false;
            }
        }
        true
    }

    fn admit_or_drop(&mut self, candidate: u32) {
        let main_weight = self.lists.weight(Place::Probation) + self.lists.weight(Place::Protected);
        let missing = (main_weight + self.lists.weights.of(candidate)).saturating_sub(self.main_capacity);
        let frequency = u32::from(self.frequencies.of(candidate));
        let (mut freed, mut victims_frequency, mut victims) = (0, 0, Vec::new());
        for victim in
            self.lists.oldest_first(Place::Probation).chain(self.lists.oldest_first(Place::Protected))
        {
            if freed >= missing || victims_frequency >= frequency {
                break;
            }
            freed += self.lists.weights.of(victim);
            victims_frequency += u32::from(self.frequencies.of(victim));
            victims.push(victim);
        }
        if freed < missing || (missing > 0 && victims_frequency >= frequency) {
            self.move_to(candidate, Place::Nowhere);
            return;
        }
        for victim in victims {
            self.move_to(victim, Place::Nowhere);
        }
        self.move_to(candidate, Place::Probation);
    }

    fn move_to(&mut self, record: u32, place: Place) {
        let former = std::mem::replace(&mut self.places[record as usize], place);
        self.lists.remove(former, record);
        self.lists.push(place, record);
    }
}

/// About how often records were asked for lately: a count-min sketch of four rows in one, which is halved after ten
/// accesses for each record that fits into the cache.
struct Frequencies {
    counts: Vec<u8>,
    counted: u64,
    counted_max: u64,
}

impl Frequencies {
    const MAX: u8 = 15;

    fn new(entries: u64) -> Self {
        let counts = vec![0; (entries * 16).next_power_of_two() as usize];
        Self { counts, counted: 0, counted_max: entries * 10 }
    }

    fn places(&self, record: u32) -> [usize; 4] {
        [0, 1, 2, 3].map(|row| mixed(u64::from(record) * 4 + row) as usize & (self.counts.len() - 1))
    }

    fn of(&self, record: u32) -> u8 {
        self.places(record).map(|place| self.counts[place]).into_iter().min().expect("four rows")
    }

    fn count(&mut self, record: u32) {
        if self.of(record) == Self::MAX {
            return;
        }
        for place in self.places(record) {
            self.counts[place] = (self.counts[place] + 1).min(Self::MAX);
        }
        self.counted += 1;
        if self.counted >= self.counted_max {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.counted /= 2;
        }
    }
}

/// Spreads numbers over all 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
pub(super) const fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// Doubly linked lists, of which a record is in one at most.
struct Lists<'a> {
    links: Vec<Link>,
    ends: [Ends; 3],
    weights: Weights<'a>,
}

#[derive(Clone, Copy, Default)]
struct Link {
    before: Option<u32>,
    behind: Option<u32>,
}

#[derive(Clone, Copy, Default)]
struct Ends {
    first: Option<u32>,
    last: Option<u32>,
    weight: u64,
}

impl Place {
    const fn list(self) -> Option<usize> {
        match self {
            Self::Nowhere => None,
            Self::Window => Some(0),
            Self::Probation => Some(1),
            Self::Protected => Some(2),
        }
    }
}

impl<'a> Lists<'a> {
    fn new(weights: Weights<'a>) -> Self {
        Self { links: vec![Link::default(); weights.0.len()], ends: Default::default(), weights }
    }

    fn ends(&self, place: Place) -> Ends {
        place.list().map_or_else(Ends::default, |list| self.ends[list])
    }

    fn weight(&self, place: Place) -> u64 {
        self.ends(place).weight
    }

    fn last(&self, place: Place) -> Option<u32> {
        self.ends(place).last
    }

    fn oldest_first(&self, place: Place) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(self.last(place), |&record| self.links[record as usize].before)
    }

    fn push(&mut self, place: Place, record: u32) {
        let Some(list) = place.list() else { return };
        let ends = &mut self.ends[list];
        self.links[record as usize] = Link { before: None, behind: ends.first };
        match ends.first {
            Some(first) => self.links[first as usize].before = Some(record),
            None => ends.last = Some(record),
        }
        ends.first = Some(record);
        ends.weight += self.weights.of(record);
    }

    fn remove(&mut self, place: Place, record: u32) {
        let Some(list) = place.list() else { return };
        let ends = &mut self.ends[list];
        let Link { before, behind } = self.links[record as usize];
        match before {
            Some(before) => self.links[before as usize].behind = behind,
            None => ends.first = behind,
        }
        match behind {
            Some(behind) => self.links[behind as usize].before = before,
            None => ends.last = before,
        }
        ends.weight -= self.weights.of(record);
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    /// Goal: no policy holds more than it has room for, and each fills its room. Method: random records of random weights;
    /// what is stored is added up after every access.
    #[test]
    fn nobody_holds_more_than_there_is_room_for() {
        let seed = 7;
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let weights: Vec<u32> = (0..2_000).map(|_| random.random_range(1..=10)).collect();
        for policy in Policy::ALL {
            let mut reference = Reference::new(policy, 1_000, 180, &weights);
            let mut most = 0;
            for _ in 0..20_000 {
                let skewed: f64 = random.random();
                reference.access((skewed * skewed * 2_000.0) as u32);
                let weight = match &reference.0 {
                    Cache::Lru(cache) => {
                        cache.records.iter().map(|(&record, ())| cache.weights.of(record)).sum()
                    }
                    Cache::S3Fifo(cache) => {
                        let stored = (0..2_000).filter(|&record| cache.is_stored[record as usize]);
                        let weight = stored.map(|record| cache.weights.of(record)).sum();
                        assert_eq!(weight, cache.small.weight + cache.main.weight);
                        weight
                    }
                    Cache::WTinyLfu(cache) => {
                        let places = [Place::Window, Place::Probation, Place::Protected];
                        places
                            .map(|place| {
                                let weight = cache
                                    .lists
                                    .oldest_first(place)
                                    .map(|record| cache.lists.weights.of(record))
                                    .sum();
                                assert_eq!(cache.lists.weight(place), weight);
                                weight
                            })
                            .iter()
                            .sum::<u64>()
                    }
                };
                assert!(weight <= 1_000, "{policy:?}: {weight}");
                most = most.max(weight);
            }
            assert!(most > 980, "{policy:?}: {most}");
        }
    }

    fn hits(policy: Policy, capacity: u64, trace: &[u32]) -> Vec<bool> {
        let weights = vec![1; 1_000];
        let mut reference = Reference::new(policy, capacity, capacity, &weights);
        trace.iter().map(|&record| reference.access(record)).collect()
    }

    /// Goal: LRU forgets what was not used for longest. Method: a loop that is one longer than the cache never hits, and
    /// one that fits always does.
    #[test]
    fn lru_forgets_the_oldest() {
        let round: Vec<u32> = (0..101).chain(0..101).collect();
        assert!(hits(Policy::Lru, 100, &round).iter().all(|hit| !hit));
        assert!(hits(Policy::Lru, 101, &round)[101..].iter().all(|hit| *hit));
    }

    /// Goal: S3-FIFO keeps what was used as often as it should have been, once or twice, while one-time records pass
    /// through. Method: a record that is used once or twice, then a scan that is longer than small queue and ghosts.
    #[test]
    fn s3_fifo_promotes_after_its_uses() {
        for (policy, uses, stays) in [
            (Policy::S3Fifo, 1, false),
            (Policy::S3Fifo, 2, true),
            (Policy::S3FifoOnce, 0, false),
            (Policy::S3FifoOnce, 1, true),
        ] {
            let mut trace = vec![0; 1 + uses];
            trace.extend(1..300);
            trace.push(0);
            assert_eq!(hits(policy, 100, &trace).last(), Some(&stays), "{policy:?}, {uses} uses");
        }
    }

    /// Goal: S3-FIFO takes a record that comes back while its ghost is there into the main queue. Method: a record that is
    /// pushed out of the small queue, asked for again, and still there after as many others.
    #[test]
    fn s3_fifo_remembers_who_has_gone() {
        let trace: Vec<u32> = [0].into_iter().chain(1..150).chain([0]).chain(150..300).chain([0]).collect();
        let hits = hits(Policy::S3Fifo, 100, &trace);
        assert_eq!((hits[150], hits.last()), (false, Some(&true)));
    }

    /// Goal: W-TinyLFU does not let a scan displace what is used often, LRU does. Method: fifty records, used often, then a
    /// scan, then those again.
    #[test]
    fn w_tiny_lfu_keeps_what_is_used_often() {
        let mut trace: Vec<u32> = (0..10).flat_map(|_| 0..50).collect();
        trace.extend(100..900);
        trace.extend(0..50);
        let last = |policy| hits(policy, 60, &trace).iter().rev().take(50).filter(|hit| **hit).count();
        assert_eq!(last(Policy::Lru), 0);
        for policy in [Policy::WTinyLfu1, Policy::WTinyLfu10] {
            // The sketch takes some of the scan for records that were used often.
            assert!(last(policy) >= 40, "{policy:?}: {}", last(policy));
        }
    }
}
