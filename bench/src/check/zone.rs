//! Whether what clients saw of single keys can have happened in some order: a black box, no version is trusted.
//!
//! Since no value is written twice, each read tells which write it saw, and linearizability of one key is easy (Gibbons
//! and Korach, "Testing shared memories", SIAM J. Comput. 26(4), 1997). A write and the reads that saw its value are a
//! cluster, which has no other write inside it in any legal order. Say that `first_end` is when the first operation of a
//! cluster ended, and `last_start` when the last one began; then cluster A must come before cluster B when an operation
//! of A ended before one of B began: when A's `first_end` is less than B's `last_start`. A history is linearizable if
//! and only if
//!
//! - no read ended before its write began, and
//! - no two clusters must each come before the other.
//!
//! Keys are independent of each other (Herlihy and Wing, 1990), so that each is judged alone. Any part of a
//! linearizable history is linearizable too: reads whose write is not in the log are a cluster without write.

use std::fmt;

/// `end_ns` of an operation whose outcome is unknown: it may take effect at any time, or never.
pub const NEVER: u64 = u64::MAX;

/// Operations shown around a conflict.
const AROUND_MAX: usize = 200;

/// An operation as a client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it may have begun, in ns of a clock that all clients share; not later than it did.
    pub start_ns: u64,
    /// When it had ended, not earlier than it did; [`NEVER`] when that is unknown.
    pub end_ns: u64,
    /// Names the value written or read; no two writes of a key have the same.
    pub value: u64,
    /// Record of the key.
    pub record: u32,
    /// Whether it wrote; otherwise it read.
    pub is_write: bool,
}

/// Why no order explains what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The key's record.
    pub record: u32,
    /// What is impossible.
    pub reason: Reason,
    /// The operations on that key around it, by their start, at most 200.
    pub around: Vec<Event>,
}

/// What is impossible; the values are those of [`Event::value`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A read returned this value and ended before its write began.
    ReadBeforeWrite(u64),
    /// The first value was seen both before and after the second.
    Interleaved(u64, u64),
    /// Two writes had the same value: the log itself is wrong.
    WrittenTwice(u64),
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no order explains what clients saw of record {}: ", self.record)?;
        match self.reason {
            Reason::ReadBeforeWrite(value) => write!(f, "value {value:#x} was read before it was written")?,
            Reason::Interleaved(one, other) => {
                write!(f, "value {one:#x} was current both before and after {other:#x}")?;
            }
            Reason::WrittenTwice(value) => write!(f, "value {value:#x} was written twice")?,
        }
        let from = self.around.first().map_or(0, |event| event.start_ns);
        write!(f, "; operations around, in ns since the first:")?;
        for event in &self.around {
            let what = if event.is_write { "put" } else { "get" };
            write!(f, " [{} ", event.start_ns - from)?;
            match event.end_ns {
                NEVER => write!(f, "?")?,
                end_ns => write!(f, "{}", end_ns.saturating_sub(from))?,
            }
            write!(f, " {what} {:#x}]", event.value)?;
        }
        Ok(())
    }
}

/// Judges every key of a log; the order of the events does not matter, and is changed. Returns the first conflict of
/// each key that has one.
pub fn conflicts(events: &mut [Event]) -> Vec<Conflict> {
    events.sort_unstable_by_key(|event| (event.record, event.value, !event.is_write));
    let keys = events.chunk_by_mut(|one, other| one.record == other.record);
    keys.filter_map(|key| {
        let reason = judge(key)?;
        Some(Conflict { record: key[0].record, reason, around: around(key, reason) })
    })
    .collect()
}

/// When the operations of a cluster can not all be moved.
#[derive(Clone, Copy, Debug)]
struct Zone {
    first_end: u64,
    last_start: u64,
    value: u64,
}

impl Zone {
    /// Whether one of its operations ended before another began: then its value was current all the time between.
    const fn is_forward(self) -> bool {
        self.first_end < self.last_start
    }

    const fn precedes(self, other: Self) -> bool {
        self.first_end < other.last_start
    }

    const fn conflicts(self, other: Self) -> bool {
        self.precedes(other) && other.precedes(self)
    }
}

/// Looks for a conflict among the events of one key, sorted by value, writes first.
fn judge(key: &[Event]) -> Option<Reason> {
    let mut forward = Vec::new();
    let mut backward = Vec::new();
    for cluster in key.chunk_by(|one, other| one.value == other.value) {
        let value = cluster[0].value;
        let writes = cluster.iter().take_while(|event| event.is_write).count();
        // A read without an outcome has seen nothing.
        let reads = || cluster[writes..].iter().filter(|read| read.end_ns != NEVER);
        if writes > 1 {
            return Some(Reason::WrittenTwice(value));
        }
        let write = cluster[..writes].first();
        if write.is_some_and(|write| reads().any(|read| read.end_ns < write.start_ns)) {
            return Some(Reason::ReadBeforeWrite(value));
        }
        let Some(first_end) = reads().chain(write).map(|event| event.end_ns).min() else { continue };
        let last_start = reads().chain(write).map(|event| event.start_ns).max().unwrap_or(0);
        let zone = Zone { first_end, last_start, value };
        if zone.is_forward() { forward.push(zone) } else { backward.push(zone) }
    }
    // Forward zones without conflicts do not overlap: then each is only close to its neighbours.
    forward.sort_unstable_by_key(|zone| zone.first_end);
    let interleaved = |one: Zone, other: Zone| Reason::Interleaved(one.value, other.value);
    let overlap = forward.windows(2).find(|pair| pair[0].conflicts(pair[1]));
    if let Some(pair) = overlap {
        return Some(interleaved(pair[0], pair[1]));
    }
    // Two backward zones never conflict. One conflicts with a forward zone that it lies inside.
    backward.iter().find_map(|&zone| {
        let after = forward.partition_point(|other| other.first_end < zone.last_start);
        let other = forward[..after].last().copied()?;
        other.conflicts(zone).then(|| interleaved(other, zone))
    })
}

/// The events near a conflict, by their start.
fn around(key: &mut [Event], reason: Reason) -> Vec<Event> {
    let (Reason::ReadBeforeWrite(value) | Reason::Interleaved(_, value) | Reason::WrittenTwice(value)) =
        reason;
    key.sort_unstable_by_key(|event| (event.start_ns, event.end_ns));
    let at = key.iter().position(|event| event.value == value).unwrap_or(0);
    let from = at.saturating_sub(AROUND_MAX / 2).min(key.len().saturating_sub(AROUND_MAX));
    key[from..].iter().take(AROUND_MAX).copied().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

    use super::*;

    const SEED: u64 = 3;

    fn write(start_ns: u64, end_ns: u64, value: u64) -> Event {
        Event { start_ns, end_ns, value, record: 5, is_write: true }
    }

    fn read(start_ns: u64, end_ns: u64, value: u64) -> Event {
        Event { is_write: false, ..write(start_ns, end_ns, value) }
    }

    fn reason(events: &[Event]) -> Option<Reason> {
        let found = conflicts(&mut events.to_vec());
        found.first().map(|conflict| conflict.reason)
    }

    /// Goal: each rule by itself, at the edges of its intervals. Method: small histories with their verdicts.
    #[test]
    fn each_rule_finds_what_it_is_for() {
        // A stale read: 1 was overwritten by 2 before the read began.
        let stale = [write(0, 1, 1), write(2, 3, 2), read(4, 5, 1)];
        assert!(matches!(reason(&stale), Some(Reason::Interleaved(1, 2))));
        // The same while the second write is still on its way is fine, also at the very moment that it ends.
        for end in [4, 5, NEVER] {
            assert_eq!(reason(&[write(0, 1, 1), write(2, end, 2), read(4, 5, 1)]), None, "{end}");
        }
        assert_eq!(reason(&[read(0, 1, 1), write(2, 3, 1)]), Some(Reason::ReadBeforeWrite(1)));
        assert_eq!(reason(&[read(0, 2, 1), write(2, 3, 1)]), None);
        // Back and forth between two values whose writes are both still on their way, or were never logged.
        let seen = [read(0, 1, 1), read(2, 3, 2), read(4, 5, 1)];
        assert!(reason(&seen).is_some());
        assert!(reason(&[&seen[..], &[write(0, NEVER, 1), write(0, NEVER, 2)]].concat()).is_some());
        // Two forward zones.
        let forward = [read(0, 1, 1), read(6, 7, 1), read(4, 5, 2), read(8, 9, 2)];
        assert!(reason(&forward).is_some());
        assert_eq!(reason(&[write(0, 1, 1), write(0, 1, 1)]), Some(Reason::WrittenTwice(1)));
        // Nobody saw what the second read saw, for it has not ended.
        assert_eq!(reason(&[write(0, 1, 1), write(2, 3, 2), read(4, NEVER, 1)]), None);
    }

    /// Goal: keys are judged alone, and the conflict shows the operations around it. Method: two good keys, a bad one
    /// with a thousand operations.
    #[test]
    fn the_conflict_names_its_key_and_shows_what_was_around() {
        let at = |record, event| Event { record, ..event };
        let mut events: Vec<_> =
            (0..1_000).map(|time| at(7, write(10 * time, 10 * time + 5, time))).collect();
        events.push(at(7, read(5_007, 5_009, 400)));
        events.extend([at(6, write(0, 1, 1)), at(8, read(0, 1, 1)), at(8, read(2, 3, 1))]);
        let found = conflicts(&mut events);
        assert_eq!(found.len(), 1);
        let conflict = &found[0];
        assert_eq!((conflict.record, conflict.around.len()), (7, AROUND_MAX));
        assert!(matches!(conflict.reason, Reason::Interleaved(400, _)), "{:?}", conflict.reason);
        assert!(conflict.around.contains(&at(7, read(5_007, 5_009, 400))) || conflict.around[0].value > 300);
        let text = conflict.to_string();
        assert!(text.contains("record 7: value 0x190 was current both before and after"), "{text}");
    }

    /// Whether some order of a small history is legal, by trying all. `values`: those that no logged write has may be
    /// written once at any time.
    fn is_linearizable(events: &[Event]) -> bool {
        fn search(
            events: &[Event],
            done: u32,
            current: Option<u64>,
            seen: &mut HashSet<(u32, Option<u64>)>,
        ) -> bool {
            let open = |index: &usize| done & (1 << index) == 0;
            let left = || (0..events.len()).filter(open);
            if left().all(|index| events[index].end_ns == NEVER) {
                return true;
            }
            if !seen.insert((done, current)) {
                return false;
            }
            left().any(|index| {
                let event = events[index];
                if left().any(|other| events[other].end_ns < event.start_ns) {
                    return false;
                }
                let done = done | 1 << index;
                if event.is_write {
                    return search(events, done, Some(event.value), seen);
                }
                // A read that never ended has no effect and saw nothing.
                if event.end_ns == NEVER {
                    return search(events, done, current, seen);
                }
                let is_logged = events.iter().any(|other| other.is_write && other.value == event.value);
                // Written by somebody else, once, and not yet: no read has seen it.
                let is_fresh = !is_logged
                    && !(0..events.len()).any(|other| {
                        done & !(1 << index) & (1 << other) != 0 && events[other].value == event.value
                    });
                (current == Some(event.value) || is_fresh) && search(events, done, Some(event.value), seen)
            })
        }
        search(events, 0, None, &mut HashSet::new())
    }

    /// A history of up to seven operations. Half of them are what a register does, some of these with one value
    /// changed; the others are arbitrary.
    fn history(random: &mut Xoshiro256PlusPlus) -> Vec<Event> {
        let count = random.random_range(1..=7);
        let span = random.random_range(4..=30);
        let arbitrary = random.random_bool(0.5);
        let mut operations: Vec<_> = (0..count)
            .map(|index| {
                let start = random.random_range(0..span);
                let end = start + random.random_range(0..=span / 2);
                let is_write = random.random_bool(0.5);
                (random.random_range(start..=end), start, end, is_write, 10 + index as u64)
            })
            .collect();
        operations.sort_unstable();
        let written: Vec<u64> = operations.iter().filter(|op| op.3).map(|op| op.4).collect();
        // 1 and 2 are values that nobody is seen to write.
        let mut current = 1;
        let mut events: Vec<_> = operations
            .into_iter()
            .map(|(_, start, end, is_write, value)| {
                if is_write {
                    current = value;
                }
                let mut any =
                    || *written.iter().chain(&[1, 2]).nth(random.random_range(0..written.len() + 2)).unwrap();
                let value = if !is_write && arbitrary { any() } else { current };
                // Only a put that nobody may have seen can end unknown, or any in an arbitrary history.
                let end = if arbitrary && random.random_bool(0.1) { NEVER } else { end };
                Event { start_ns: start, end_ns: end, value, record: 5, is_write }
            })
            .collect();
        if !arbitrary && random.random_bool(0.3) {
            let index = random.random_range(0..events.len());
            if !events[index].is_write {
                events[index].value = random.random_range(1..=2);
            }
        }
        events
    }

    /// Goal: the zones are exact. Method: 60,000 random histories against an exhaustive search, without a single
    /// disagreement; thousands of them good and thousands bad.
    #[test]
    fn zones_agree_with_exhaustive_search() {
        println!("seed {SEED}");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let mut bad = 0;
        for number in 0..60_000 {
            let events = history(&mut random);
            let expected = is_linearizable(&events);
            bad += u32::from(!expected);
            let found = reason(&events);
            assert_eq!(found.is_none(), expected, "history {number}: {found:?} in {events:#?}");
        }
        println!("{bad} of 60,000 histories are bad");
        assert!((5_000..55_000).contains(&bad), "{bad} bad histories");
    }

    /// Goal: what the check costs can be looked up any time (`cargo test --release -- --nocapture ns_per_event`).
    /// Method: a correct log of a hot key and many cold ones; printed, never asserted.
    #[test]
    fn ns_per_event() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let mut current = [0_u64; 256];
        let mut events: Vec<_> = (0..1 << 16)
            .map(|time| {
                let record = if random.random_bool(0.5) { 0 } else { random.random_range(0..256) };
                let is_write = random.random_bool(0.05);
                if is_write {
                    current[record] = time;
                }
                let start_ns = 10 * time - random.random_range(0..=(10 * time).min(2_000));
                let end_ns = 10 * time + random.random_range(0..2_000);
                Event { start_ns, end_ns, value: current[record], record: record as u32, is_write }
            })
            .collect();
        let start = std::time::Instant::now();
        assert_eq!(conflicts(&mut events), []);
        println!("{:.1} ns per event", start.elapsed().as_nanos() as f64 / events.len() as f64);
    }
}
