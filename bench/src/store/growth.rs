//! Puts into an empty store while its index grows: what they cost on average, and the longest pause.
//!
//! Every round does the same work, as the seeds are the same, so the shortest time that a batch took in any round is
//! what it costs without the other programs of the machine; the longest of these is the pause that a growing index
//! makes.

use std::{
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use linerate_proto::wire::Terms;

use crate::{
    run::check_stop,
    store::{
        new_store,
        staged::{self, Values, chunk_len, timed},
    },
    workload::{Draw, ValueLen},
};

/// What inserting has taken.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// Nanoseconds per insert in each round.
    pub(super) insert_ns: Vec<f64>,
    /// Nanoseconds of each batch, the least of all rounds.
    batches_ns: Vec<u32>,
    /// The longest batch of any round.
    longest_ns: u32,
}

impl Growth {
    /// Inserts all records into an empty store once more.
    ///
    /// # Errors
    /// When the store cannot be had or refuses a record, or `stop` is set.
    pub(super) fn round(
        &mut self,
        records: u32,
        lens: ValueLen,
        batch: usize,
        seed: u64,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        let mut store = new_store(records, lens, seed)?;
        store.prefault()?;
        let mut values = Values::new(lens);
        let chunk_len = chunk_len(batch, lens);
        let mut draws = Vec::with_capacity(chunk_len);
        let mut spent = Duration::ZERO;
        let mut number = 0;
        for first in (0..records).step_by(chunk_len) {
            check_stop(stop)?;
            draws.clear();
            draws.extend((first..records.min(first.saturating_add(chunk_len as u32))).map(Draw::put));
            values.make(&draws, |_| true);
            let mut lookups = Vec::with_capacity(batch);
            let (time, done) = timed(|| {
                let mut done = 0;
                for (batch, first) in draws.chunks(batch).zip((0..).step_by(batch)) {
                    let begun = Instant::now();
                    done += staged::puts(&mut store, batch, &mut lookups, &values, first, Terms::default());
                    self.note(number, begun.elapsed());
                    number += 1;
                }
                done
            });
            spent += time;
            anyhow::ensure!(done == draws.len(), "the store is full after {first} of {records} records");
        }
        self.insert_ns.push(spent.as_nanos() as f64 / f64::from(records));
        Ok(())
    }

    fn note(&mut self, number: usize, time: Duration) {
        let ns = u32::try_from(time.as_nanos()).unwrap_or(u32::MAX);
        self.longest_ns = self.longest_ns.max(ns);
        match self.batches_ns.get_mut(number) {
            Some(least) => *least = (*least).min(ns),
            None => self.batches_ns.push(ns),
        }
    }

    /// Microseconds that a batch takes at this quantile, 0 to 1, of the times that are the least of all rounds.
    pub(super) fn quantile_us(&self, quantile: f64) -> f64 {
        let mut sorted = self.batches_ns.clone();
        sorted.sort_unstable();
        let index = ((sorted.len() as f64 * quantile) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(index).map_or(0.0, |&ns| f64::from(ns) / 1e3)
    }

    /// Microseconds of the longest batch of any round, whatever kept it.
    pub(super) fn longest_us(&self) -> f64 {
        f64::from(self.longest_ns) / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the pause is that of the work and not of the machine. Method: three rounds of known times, of which each
    /// has a disturbed batch.
    #[test]
    fn what_disturbs_one_round_does_not_count() {
        let mut growth = Growth::default();
        for round in [[1_000, 9_000, 3_000], [8_000, 2_000, 4_000], [1_500, 2_500, 70_000]] {
            round
                .into_iter()
                .enumerate()
                .for_each(|(number, ns)| growth.note(number, Duration::from_nanos(ns)));
        }
        assert_eq!(growth.batches_ns, [1_000, 2_000, 3_000]);
        assert_eq!((growth.quantile_us(1.0), growth.quantile_us(0.5)), (3.0, 2.0));
        assert_eq!(growth.longest_us(), 70.0);
        assert_eq!(Growth::default().quantile_us(1.0), 0.0);
    }

    /// Goal: every batch of a round is noted, also one that is not whole. Method: a number of records that is no multiple.
    #[test]
    fn every_batch_is_noted() {
        let lens = ValueLen::new(100, 100).unwrap();
        let mut growth = Growth::default();
        growth.round(5_000, lens, 64, 7, &AtomicBool::new(false)).unwrap();
        assert_eq!(growth.batches_ns.len(), 5_000_usize.div_ceil(64));
        assert!(growth.insert_ns[0] > 0.0);
    }
}
