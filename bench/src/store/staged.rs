//! Operations on a store as the server's worker makes them: each stage for a whole batch.

use std::time::Duration;

use linerate_client::Key;
use linerate_proto::wire::Terms;
use linerate_server::{
    stats::thread_cpu_ns,
    store::{Probe, Store},
};

use crate::{
    value::{self, writer},
    workload::{Draw, ValueLen},
};

/// Bytes that values are copied to, again from the beginning when they are full: about a chunk of replies.
const REPLY_LEN: usize = 64 << 10;

/// Bytes of values that are prepared in one go. They stay in a second-level cache, where those that a core has just
/// received are.
const VALUES_LEN: usize = 128 << 10;

/// Operations between two looks at the clock, at most. A look is a system call of some 100 ns.
const CHUNK_LEN: usize = 1_024;

/// Operations between two looks at the clock: as many whole batches as [`CHUNK_LEN`] and the room for values allow, at
/// least one.
pub(super) fn chunk_len(batch: usize, lens: ValueLen) -> usize {
    let len = (VALUES_LEN / lens.max().max(1)).min(CHUNK_LEN);
    batch * (len / batch).max(1)
}

/// How long some work has this thread on the CPU, and what it returns. What other programs do there meanwhile does not
/// count, though it empties the caches.
#[inline(always)]
pub(super) fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let begun = thread_cpu_ns();
    let result = work();
    (Duration::from_nanos(thread_cpu_ns() - begun), result)
}

/// Length of all values of a record.
#[inline]
pub(super) fn len_of(record: u32, lens: ValueLen) -> usize {
    // The golden ratio spreads consecutive records over all lengths.
    lens.pick(record.wrapping_mul(0x9e37_79b9))
}

/// Where the values of replies go.
pub(super) struct Reply {
    bytes: Box<[u8]>,
    len: usize,
}

impl Reply {
    /// A buffer that takes values of up to `value_len_max` bytes.
    pub(super) fn new(value_len_max: usize) -> Self {
        Self { bytes: vec![0; REPLY_LEN.max(value_len_max)].into(), len: 0 }
    }

    /// Copies a value behind the one before.
    #[inline(always)]
    pub(super) fn push(&mut self, value: &[u8]) {
        if value.len() > self.bytes.len() - self.len {
            self.len = 0;
        }
        self.bytes[self.len..self.len + value.len()].copy_from_slice(value);
        self.len += value.len();
    }
}

/// The values of the puts that come next, made before the clock starts.
pub(super) struct Values {
    bytes: Vec<u8>,
    lens: ValueLen,
    /// Values made so far: the writer's own number.
    written: u64,
}

impl Values {
    /// None yet, of these lengths.
    pub(super) const fn new(lens: ValueLen) -> Self {
        Self { bytes: Vec::new(), lens, written: 0 }
    }

    /// Makes a value for each put among `draws`.
    pub(super) fn make(&mut self, draws: &[Draw], is_wanted: impl Fn(&Draw) -> bool) {
        let stride = self.stride();
        self.bytes.resize(draws.len() * stride, 0);
        for (draw, room) in draws.iter().zip(self.bytes.chunks_exact_mut(stride)) {
            if is_wanted(draw) {
                self.written += 1;
                let len = len_of(draw.record(), self.lens);
                value::fill(&mut room[..len], draw.record(), writer(0, 1, self.written));
            }
        }
    }

    /// The value of the draw at `index`, which is of `record`.
    #[inline(always)]
    pub(super) fn of(&self, index: usize, record: u32) -> &[u8] {
        &self.bytes[index * self.stride()..][..len_of(record, self.lens)]
    }

    /// Distance between two values; empty ones have something between them, too.
    fn stride(&self) -> usize {
        self.lens.max().max(1)
    }
}

/// A key on its way to being found.
pub(super) struct Lookup<'k> {
    key: Key<'k>,
    hash: u64,
    probe: Probe,
}

/// The first two stages for a batch: hashes all keys and asks for their buckets, then probes these and asks for the
/// items.
#[inline(always)]
fn look_up<'k>(store: &mut Store, batch: &'k [Draw], lookups: &mut Vec<Lookup<'k>>) {
    lookups.clear();
    lookups.extend(batch.iter().map(|draw| {
        let key = draw.key();
        let hash = store.hash(key);
        Lookup { key, hash, probe: store.prefetch_bucket(hash) }
    }));
    for lookup in lookups {
        lookup.probe = store.probe(lookup.hash, lookup.probe);
    }
}

/// Gets a batch and copies the values; returns how many there were.
#[inline(never)]
pub(super) fn gets<'k>(
    store: &mut Store,
    batch: &'k [Draw],
    lookups: &mut Vec<Lookup<'k>>,
    reply: &mut Reply,
) -> usize {
    look_up(store, batch, lookups);
    let mut hits = 0;
    for lookup in lookups.iter() {
        if let Some(found) = store.get_probed(lookup.key, lookup.hash, lookup.probe) {
            reply.push(found.value);
            hits += 1;
        }
    }
    hits
}

/// Gets a batch and hands what was found to `each`, with its index in the batch.
pub(super) fn gets_with<'k>(
    store: &mut Store,
    batch: &'k [Draw],
    lookups: &mut Vec<Lookup<'k>>,
    mut each: impl FnMut(usize, Option<&[u8]>),
) {
    look_up(store, batch, lookups);
    for (index, lookup) in lookups.iter().enumerate() {
        let found = store.get_probed(lookup.key, lookup.hash, lookup.probe);
        each(index, found.map(|found| found.value));
    }
}

/// Puts a batch, whose values are those from `first` on; returns how many were accepted.
#[inline(never)]
pub(super) fn puts<'k>(
    store: &mut Store,
    batch: &'k [Draw],
    lookups: &mut Vec<Lookup<'k>>,
    values: &Values,
    first: usize,
    terms: Terms,
) -> usize {
    look_up(store, batch, lookups);
    let mut done = 0;
    for ((index, draw), lookup) in (first..).zip(batch).zip(lookups.iter()) {
        let value = values.of(index, draw.record());
        done += usize::from(store.put_probed(lookup.key, lookup.hash, lookup.probe, value, terms).is_ok());
    }
    done
}

/// Gets and puts a batch in its order; returns how many had a value or were accepted.
#[inline(never)]
pub(super) fn mixed<'k>(
    store: &mut Store,
    batch: &'k [Draw],
    lookups: &mut Vec<Lookup<'k>>,
    values: &Values,
    first: usize,
    mut each: impl FnMut(usize, &[u8]),
) -> usize {
    look_up(store, batch, lookups);
    let mut done = 0;
    for ((index, draw), lookup) in (first..).zip(batch).zip(lookups.iter()) {
        if draw.is_put() {
            let value = values.of(index, draw.record());
            done += usize::from(
                store.put_probed(lookup.key, lookup.hash, lookup.probe, value, Terms::default()).is_ok(),
            );
        } else if let Some(found) = store.get_probed(lookup.key, lookup.hash, lookup.probe) {
            each(index, found.value);
            done += 1;
        }
    }
    done
}

/// Deletes a batch; returns how many keys there were.
#[inline(never)]
pub(super) fn deletes<'k>(store: &mut Store, batch: &'k [Draw], lookups: &mut Vec<Lookup<'k>>) -> usize {
    look_up(store, batch, lookups);
    lookups.iter().filter(|lookup| store.delete(lookup.key, lookup.hash).is_some()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the clock is looked at after whole batches, not too often and not too seldom. Method: deep and shallow
    /// batches, short and long values.
    #[test]
    fn chunks_are_whole_batches() {
        for (batch, len, chunk) in [
            (64, 128, 1_024),
            (1, 128, 1_024),
            (100, 128, 1_000),
            (1_024, 16, 1_024),
            (64, 16_384, 64),
            (1, 0, 1_024),
        ] {
            assert_eq!(chunk_len(batch, ValueLen::new(len, len).unwrap()), chunk, "{batch} of {len} bytes");
        }
    }

    /// Goal: values are copied one behind the other and start over instead of beyond the end. Method: fill the buffer
    /// with values that do not divide it, and one of its whole length.
    #[test]
    fn replies_start_over() {
        let mut reply = Reply::new(100_000);
        (0..3).for_each(|number| reply.push(&[number; 40_000]));
        assert_eq!((reply.len, reply.bytes[0], reply.bytes[40_000], reply.bytes[80_000]), (40_000, 2, 1, 0));
        reply.push(&[9; 100_000]);
        assert_eq!((reply.len, reply.bytes[99_999]), (100_000, 9));
    }
}
