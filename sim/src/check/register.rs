//! The black box: whether what clients saw of one key can be explained at all, by times and contents alone.
//!
//! A value is written once, so all accesses to it form a cluster, and the value must have held from the first end among
//! them to the last start. If the first comes before the last, that time is the cluster's forward zone; otherwise the
//! value may have come and gone within its backward zone. Such a history is that of a register if and only if no
//! two forward zones overlap, no backward zone lies within a forward one, and nothing is read before it is written
//! (Gibbons and Korach, "Testing shared memories", SIAM J. Comput. 26(4), 1997).
//!
//! Absence is not written once: each delete, and the beginning, makes the key absent. So absence makes no clusters; a
//! delete and a sight of absence are each a backward zone of its own, a sight of absence after a value needs a
//! delete that can have come between, and each delete that removed something a write of its own before it. That is
//! necessary for a correct history, not sufficient: no history is accused wrongly.

use std::{collections::HashMap, fmt};

/// When an operation began and had ended, in ticks that are all different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Tick of its call.
    pub start: u64,
    /// Tick of its end; `u64::MAX` when it may still take effect at any time.
    pub end: u64,
}

/// What an operation on the key did or saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Wrote this value, or may have and was read.
    Write(u64),
    /// Read this value.
    Read(u64),
    /// Found the key absent.
    Absent,
    /// Removed the key.
    Removed,
    /// May have removed the key, or may yet.
    MayRemove,
    /// May have written a value that nobody read, or may yet.
    MayWrite,
}

/// Why there is no explanation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contradiction {
    /// The value was read, but not written.
    NeverWritten(u64),
    /// The value was read before its write began.
    ReadTooEarly(u64),
    /// Both values must have held at the same time.
    HeldAtOnce(u64, u64),
    /// Something else was written or seen while the value must have held all along.
    Interrupted(u64),
    /// The key was found absent after the value was there, and nothing can have removed it.
    Vanished(u64),
    /// More deletes removed something than there was to be removed.
    RemovedTwice,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverWritten(value) => write!(f, "value {value} was read and never written"),
            Self::ReadTooEarly(value) => write!(f, "value {value} was read before it was written"),
            Self::HeldAtOnce(one, other) => {
                write!(f, "values {one} and {other} must have held at the same time")
            }
            Self::Interrupted(value) => {
                write!(f, "something else was there while value {value} must have held")
            }
            Self::Vanished(value) => write!(f, "value {value} vanished without a delete"),
            Self::RemovedTwice => write!(f, "more was removed than was written"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    value: u64,
    written: bool,
    write_start: u64,
    first_end: u64,
    last_start: u64,
}

/// Looks for a contradiction in all accesses to a key that was absent at first.
///
/// # Errors
/// The first contradiction found.
pub fn check(accesses: &[(Span, Access)]) -> Result<(), Contradiction> {
    let zones = zones(accesses)?;
    let (mut forward, backward): (Vec<Zone>, Vec<Zone>) =
        zones.iter().partition(|zone| zone.first_end < zone.last_start);
    forward.sort_unstable_by_key(|zone| zone.first_end);
    if let Some(pair) = forward.windows(2).find(|pair| pair[1].first_end < pair[0].last_start) {
        return Err(Contradiction::HeldAtOnce(pair[0].value, pair[1].value));
    }
    let lone = accesses.iter().filter(|(_, access)| matches!(access, Access::Absent | Access::Removed));
    let lone = lone.map(|&(span, _)| span);
    let backward = backward.iter().map(|zone| Span { start: zone.last_start, end: zone.first_end });
    for inner in backward.chain(lone) {
        // Forward zones do not overlap: only the last that begins before can still last.
        let before = forward.partition_point(|outer| outer.first_end < inner.start);
        if let Some(outer) = before.checked_sub(1).map(|index| forward[index])
            && inner.end < outer.last_start
        {
            return Err(Contradiction::Interrupted(outer.value));
        }
    }
    check_absences(accesses, zones)?;
    check_removals(accesses)
}

/// All accesses of each value, in the order of the values.
fn zones(accesses: &[(Span, Access)]) -> Result<Vec<Zone>, Contradiction> {
    let mut index_of: HashMap<u64, usize> = HashMap::new();
    let mut zones: Vec<Zone> = Vec::new();
    for &(Span { start, end }, access) in accesses {
        let (Access::Write(value) | Access::Read(value)) = access else { continue };
        let index = *index_of.entry(value).or_insert_with(|| {
            zones.push(Zone { value, written: false, write_start: 0, first_end: u64::MAX, last_start: 0 });
            zones.len() - 1
        });
        let zone = &mut zones[index];
        zone.first_end = zone.first_end.min(end);
        zone.last_start = zone.last_start.max(start);
        if matches!(access, Access::Write(_)) {
            zone.written = true;
            zone.write_start = start;
        }
    }
    for zone in &zones {
        if !zone.written {
            return Err(Contradiction::NeverWritten(zone.value));
        }
        if zone.first_end < zone.write_start {
            return Err(Contradiction::ReadTooEarly(zone.value));
        }
    }
    Ok(zones)
}

/// Each sight of absence after a value needs a delete that can have come between: one that had not ended when the
/// value's write began, and had begun when the absence was seen.
fn check_absences(accesses: &[(Span, Access)], mut zones: Vec<Zone>) -> Result<(), Contradiction> {
    zones.sort_unstable_by_key(|zone| zone.first_end);
    let latest_written = running_max(zones.iter().map(|zone| (zone.write_start, zone.value)));
    let mut removals: Vec<Span> = accesses
        .iter()
        .filter(|(_, access)| matches!(access, Access::Removed | Access::MayRemove))
        .map(|&(span, _)| span)
        .collect();
    removals.sort_unstable_by_key(|span| span.start);
    let latest_end = running_max(removals.iter().map(|span| span.end));
    for (span, access) in accesses {
        if *access != Access::Absent {
            continue;
        }
        let there_before = zones.partition_point(|zone| zone.first_end < span.start);
        let Some(&(write_start, value)) = there_before.checked_sub(1).map(|index| &latest_written[index])
        else {
            continue;
        };
        let begun = removals.partition_point(|removal| removal.start < span.end);
        let removed = begun.checked_sub(1).is_some_and(|index| latest_end[index] > write_start);
        if !removed {
            return Err(Contradiction::Vanished(value));
        }
    }
    Ok(())
}

/// By the end of the n-th delete that removed something, n writes must have begun.
fn check_removals(accesses: &[(Span, Access)]) -> Result<(), Contradiction> {
    let sorted = |time: fn(&Span) -> u64, wanted: fn(&Access) -> bool| {
        let times = accesses.iter().filter(|(_, access)| wanted(access)).map(|(span, _)| time(span));
        let mut times: Vec<u64> = times.collect();
        times.sort_unstable();
        times
    };
    let begun = sorted(|span| span.start, |access| matches!(access, Access::Write(_) | Access::MayWrite));
    let removed = sorted(|span| span.end, |access| *access == Access::Removed);
    let short =
        removed.iter().zip(1..).any(|(&end, count)| begun.partition_point(|&start| start < end) < count);
    if short { Err(Contradiction::RemovedTwice) } else { Ok(()) }
}

/// At each place the greatest so far.
fn running_max<T: Ord + Copy>(items: impl Iterator<Item = T>) -> Vec<T> {
    items
        .scan(None, |greatest: &mut Option<T>, item| {
            let next = greatest.map_or(item, |so_far| so_far.max(item));
            *greatest = Some(next);
            Some(next)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn write(value: u64, start: u64, end: u64) -> (Span, Access) {
        (Span { start, end }, Access::Write(value))
    }

    const fn read(value: u64, start: u64, end: u64) -> (Span, Access) {
        (Span { start, end }, Access::Read(value))
    }

    const fn absent(start: u64, end: u64) -> (Span, Access) {
        (Span { start, end }, Access::Absent)
    }

    const fn removed(start: u64, end: u64) -> (Span, Access) {
        (Span { start, end }, Access::Removed)
    }

    const fn may_write(start: u64) -> (Span, Access) {
        (Span { start, end: u64::MAX }, Access::MayWrite)
    }

    const fn may_remove(start: u64) -> (Span, Access) {
        (Span { start, end: u64::MAX }, Access::MayRemove)
    }

    #[test]
    fn histories_with_an_explanation_pass() {
        let legal: [&[(Span, Access)]; 10] = [
            &[write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), read(2, 7, 8)],
            // Concurrent writes in either order.
            &[write(1, 1, 10), write(2, 2, 9), read(2, 3, 4), read(1, 5, 6)],
            &[absent(1, 5), write(1, 2, 3), read(1, 6, 7)],
            // A write that nobody answered takes effect late.
            &[write(1, 1, u64::MAX), absent(2, 3), read(1, 4, 5)],
            &[write(1, 1, 2), removed(3, 4), absent(5, 6), write(2, 7, 8), read(2, 9, 10)],
            // A delete that nobody answered may have come between.
            &[write(1, 1, 2), may_remove(3), read(1, 4, 5), absent(6, 7)],
            &[may_remove(1), write(1, 2, 3), absent(4, 5)],
            // Read while the delete was under way, then gone.
            &[write(1, 1, 2), removed(3, 8), read(1, 4, 5), absent(6, 7), absent(9, 10)],
            &[removed(1, 6), write(1, 2, 3), absent(4, 5)],
            &[write(1, 1, 2), may_write(3), removed(4, 5), removed(6, 7)],
        ];
        for history in legal {
            assert_eq!(check(history), Ok(()), "{history:?}");
        }
    }

    #[test]
    fn histories_without_an_explanation_are_found() {
        use Contradiction::{HeldAtOnce, Interrupted, NeverWritten, ReadTooEarly, RemovedTwice, Vanished};
        let illegal: [(&[(Span, Access)], Contradiction); 13] = [
            // A stale read.
            (&[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)], Interrupted(1)),
            // Overwritten, and back: a write that took effect twice.
            (&[write(1, 1, 10), write(2, 2, 9), read(2, 3, 4), read(1, 5, 6), read(2, 7, 8)], Interrupted(2)),
            (
                &[
                    write(1, 1, 20),
                    write(2, 2, 19),
                    read(1, 3, 4),
                    read(2, 5, 6),
                    read(1, 7, 8),
                    read(2, 9, 10),
                ],
                HeldAtOnce(1, 2),
            ),
            // A lost write.
            (&[write(1, 1, 2), absent(3, 4)], Vanished(1)),
            (&[read(1, 1, 2), write(1, 3, 4)], ReadTooEarly(1)),
            (&[read(7, 1, 2)], NeverWritten(7)),
            // Back from the dead.
            (&[write(1, 1, 2), removed(3, 4), read(1, 5, 6)], Interrupted(1)),
            (&[write(1, 1, 2), may_remove(3), absent(4, 5), read(1, 6, 7)], Interrupted(1)),
            // The delete came before the write, or after the sight of absence.
            (&[removed(1, 2), write(1, 3, 4), absent(5, 6)], Vanished(1)),
            (&[write(1, 1, 2), absent(3, 4), removed(5, 6)], Vanished(1)),
            // Seen, so written, though nobody answered; no delete since.
            (&[write(1, 1, u64::MAX), read(1, 2, 3), absent(4, 5)], Vanished(1)),
            // A delete that took effect twice.
            (&[write(1, 1, 2), removed(3, 4), removed(5, 6)], RemovedTwice),
            (&[removed(1, 2), write(1, 3, 4)], RemovedTwice),
        ];
        for (history, contradiction) in illegal {
            assert_eq!(check(history), Err(contradiction), "{history:?}");
        }
    }
}
