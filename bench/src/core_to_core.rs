//! How far two cores are apart: the round trip of a cache line between them.
//!
//! Client and server on one machine exchange every byte through caches, so this decides what a figure means; on
//! virtual machines it changes by a factor of five from one second to the next. It is therefore measured before and
//! after each run and recorded with the result.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use linerate_dataplane::pin::pin_to_core;

use crate::median::median;

/// Round trips in a round. With 100 to 500 ns each a round lasts at most a millisecond, less than a time slice, so that
/// most rounds see no interruption.
const ROUND_TRIPS: u32 = 2_000;

/// Rounds to take the median of; odd, so that it is one of them.
const ROUNDS: usize = 21;

/// Ends a measurement on cores that are busy with something else.
const TIME_LIMIT: Duration = Duration::from_millis(50);

/// Polls before a waiting thread gives its core away: some 10 µs, far beyond a round trip, far below a time slice.
const POLLS_BEFORE_YIELD: u32 = 8_192;

/// Keeps the ball's cache line, and the one that is prefetched along with it, free of anything else.
#[repr(align(128))]
struct Padded<T>(T);

/// The ball, and whether the game is over.
struct Court {
    /// How often the ball was hit: even when the server (in the sense of tennis) has it, odd when the other has.
    hits: Padded<AtomicU32>,
    is_over: Padded<AtomicBool>,
    deadline: Instant,
}

/// Median round trip of a cache line between the cores `a` and `b`, in ns: one thread writes, the other sees it and
/// writes, the first sees that. Takes up to 50 ms; the calling thread stays where it is.
///
/// `None` when there is nothing to measure: `a` and `b` are the same, or no round ended within the time because
/// something else keeps the cores busy.
///
/// # Errors
/// A sentence, when a thread cannot be started or pinned ([`pin_to_core`]).
pub fn core_to_core_ns(a: usize, b: usize) -> io::Result<Option<f64>> {
    core_to_core_within(a, b, TIME_LIMIT)
}

fn core_to_core_within(a: usize, b: usize, limit: Duration) -> io::Result<Option<f64>> {
    if a == b {
        return Ok(None);
    }
    let court = Court {
        hits: Padded(AtomicU32::new(0)),
        is_over: Padded(AtomicBool::new(false)),
        deadline: Instant::now() + limit,
    };
    let round_trips_ns = thread::scope(|scope| {
        let returner = thread::Builder::new().spawn_scoped(scope, || court.play(b, Court::return_balls))?;
        let rounds = thread::Builder::new()
            .spawn_scoped(scope, || court.play(a, Court::serve))
            // The returner ends with the deadline at the latest, so this need not stop it.
            .and_then(|server| server.join().expect("serving does not panic"));
        returner.join().expect("returning does not panic")?;
        rounds
    })?;
    Ok(median(round_trips_ns))
}

impl Court {
    /// Pins the calling thread, plays, and ends the game for both, also when pinning has failed.
    fn play<T>(&self, core: usize, game: impl FnOnce(&Self) -> T) -> io::Result<T> {
        let played = pin_to_core(core).map(|()| game(self));
        self.is_over.0.store(true, Ordering::Release);
        played
    }

    /// Hits the ball first, and returns ns per round trip of each round that was played to its end.
    fn serve(&self) -> Vec<f64> {
        let mut rounds = Vec::with_capacity(ROUNDS);
        let mut hits = 0;
        // The first round trip waits for the other thread to start and belongs to no round.
        while rounds.len() < ROUNDS && self.round_trips(1, &mut hits) {
            let start = Instant::now();
            if !self.round_trips(ROUND_TRIPS, &mut hits) {
                break;
            }
            rounds.push(start.elapsed().as_nanos() as f64 / f64::from(ROUND_TRIPS));
        }
        rounds
    }

    /// Whether all of them came back.
    fn round_trips(&self, count: u32, hits: &mut u32) -> bool {
        (0..count).all(|_| {
            self.hits.0.store(*hits + 1, Ordering::Release);
            *hits += 2;
            self.wait_for(*hits)
        })
    }

    fn return_balls(&self) {
        let mut hits = 1;
        while self.wait_for(hits) {
            self.hits.0.store(hits + 1, Ordering::Release);
            hits += 2;
        }
    }

    /// Polls until the ball was hit `hits` times; false when the game is over first.
    fn wait_for(&self, hits: u32) -> bool {
        loop {
            // No spin-loop hint: that would wait for longer than the line takes to arrive.
            if (0..POLLS_BEFORE_YIELD).any(|_| self.hits.0.load(Ordering::Acquire) == hits) {
                return true;
            }
            if self.is_over.0.load(Ordering::Acquire) || Instant::now() >= self.deadline {
                return false;
            }
            // The other thread may be waiting for this very core.
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use linerate_dataplane::pin::{CORES_MAX, allowed_cores};

    use super::*;

    /// Goal: a plausible distance between two real cores, the same in both directions as far as anyone can tell.
    /// Method: measure with more time than the limit, as other tests keep the cores busy; skipped on one core.
    #[test]
    fn two_cores_are_some_distance_apart() {
        let &[a, b, ..] = allowed_cores().unwrap().as_slice() else { return };
        for (from, to) in [(a, b), (b, a)] {
            let round_trip_ns = core_to_core_within(from, to, Duration::from_secs(2)).unwrap();
            println!("core {from} → core {to} → core {from}: {round_trip_ns:?} ns");
            // 10 ns is less than the caches of one core need; interrupted, it may be any time.
            assert!(round_trip_ns.is_some_and(|ns| ns > 10.0), "{round_trip_ns:?}");
        }
    }

    /// Goal: the time limit holds and the caller keeps its cores. Method: measure and look at clock and mask.
    #[test]
    fn a_measurement_is_short_and_leaves_the_caller_alone() {
        let before = allowed_cores().unwrap();
        let &[a, b, ..] = before.as_slice() else { return };
        let start = Instant::now();
        core_to_core_ns(a, b).unwrap();
        // Twenty times the limit: what a busy machine may add until both threads have run once more.
        assert!(start.elapsed() < TIME_LIMIT * 20, "{:?}", start.elapsed());
        assert_eq!(allowed_cores().unwrap(), before);
    }

    #[test]
    fn a_core_has_no_distance_to_itself() {
        assert_eq!(core_to_core_ns(0, 0).unwrap(), None);
    }

    /// Goal: a core that does not exist is an error, on either side, and the other thread does not wait for ever.
    /// Method: the last core of the mask, which no test machine has.
    #[test]
    fn a_core_that_does_not_exist_is_an_error() {
        let (exists, missing) = (allowed_cores().unwrap()[0], CORES_MAX - 1);
        for (a, b) in [(exists, missing), (missing, exists)] {
            let error = core_to_core_ns(a, b).unwrap_err().to_string();
            assert!(error.contains(&format!("core {missing}")), "{error}");
        }
    }

    /// Goal: two threads on one core end instead of hanging, whatever they tell. Method: play both sides on the same
    /// core, behind the check that forbids it.
    #[test]
    fn two_threads_on_one_core_do_not_hang() {
        let core = allowed_cores().unwrap()[0];
        let court = Court {
            hits: Padded(AtomicU32::new(0)),
            is_over: Padded(AtomicBool::new(false)),
            deadline: Instant::now() + TIME_LIMIT,
        };
        thread::scope(|scope| {
            scope.spawn(|| court.play(core, Court::return_balls).unwrap());
            scope.spawn(|| court.play(core, Court::serve).unwrap());
        });
    }
}
