//! How much of its memory a store can fill with keys and values: right away, and after it has been written ten times
//! over with values of ever other lengths.

use std::{net::Ipv4Addr, sync::atomic::AtomicBool, thread};

use linerate_client::Key;
use linerate_dataplane::{Port, UdpConfig, UdpPort};
use linerate_proto::wire::Terms;
use linerate_server::{
    memory::Plan,
    stats::thread_cpu_ns,
    store::{AtCapacity, Store},
};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use serde::Serialize;

use crate::{
    key::KeyBuffer,
    run::check_stop,
    value::{self, writer},
    workload::ValueLen,
};

/// Lengths of the values, 16 bytes to 4 KiB.
const LEN_MIN: usize = 16;
const LEN_MAX: usize = 4_096;

/// How often the memory is written over.
const TURNOVERS: u64 = 10;

/// Operations between two looks at the stop flag.
const STOP_INTERVAL: u64 = 4_096;

/// The two laws of lengths, and the lower share.
#[derive(Clone, Debug, Serialize)]
pub struct UsableMemory {
    /// Bytes that the server would have been started with.
    pub memory_bytes: u64,
    /// How many of them its store would have got, or all when they are too few for a server.
    pub store_bytes: u64,
    /// Every doubling of the length has the same probability: most values are short, most bytes are in long ones.
    pub log_uniform: Usable,
    /// All lengths alike.
    pub uniform: Usable,
}

impl UsableMemory {
    /// The share that can be relied on.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.log_uniform.share.min(self.uniform.share)
    }

    /// Values that were wrong, or there although deleted.
    #[must_use]
    pub const fn wrong_values(&self) -> u64 {
        self.log_uniform.wrong_values + self.uniform.wrong_values
    }
}

/// What one law of lengths left.
#[derive(Clone, Debug, Serialize)]
pub struct Usable {
    /// Bytes of keys and values that were stored, as a share of all memory: the least of the last of ten turnovers.
    pub share: f64,
    /// The same when a put was refused for the first time.
    pub share_filled: f64,
    /// Keys at the end.
    pub records: u64,
    /// Puts that were refused before enough was deleted.
    pub refusals: u64,
    /// Puts that were accepted.
    pub puts: u64,
    /// Nanoseconds per accepted put at the brink, with all that it took: refusals, deletions, other lengths. Time on the CPU, of
    /// which both laws at a time take one each.
    pub ns_per_put: f64,
    /// Values that were wrong at the end, or there although deleted.
    pub wrong_values: u64,
}

/// Bytes of its memory that a server of one core, with its usual ports for UDP and TCP, gives to the store. What is too
/// little for a server is all the store's.
fn store_len(memory_len: usize) -> anyhow::Result<usize> {
    let port = UdpPort::bind((Ipv4Addr::LOCALHOST, 0).into(), UdpConfig::default())?;
    let plan = Plan::new(memory_len, &[port.memory_len()], true);
    Ok(plan.map_or(memory_len, |plan| plan.cores[0].store_len))
}

/// Fills the store of a server of `memory_len` bytes with each of the two laws, at the same time. Meanwhile `progress` is told how much
/// more is done, 1 being all.
///
/// # Errors
/// When the stores cannot be had, or `stop` is set.
pub(super) fn usable_memory(
    memory_len: usize,
    seed: u64,
    stop: &AtomicBool,
    progress: impl Fn(f64) + Sync,
) -> anyhow::Result<UsableMemory> {
    let store_len = store_len(memory_len)?;
    let fill = |law| Filling::new(memory_len, store_len, law, seed)?.run(stop, |share| progress(share / 2.0));
    let (log_uniform, uniform) = thread::scope(|scope| {
        let log_uniform = scope.spawn(|| fill(Law::LogUniform));
        let uniform = fill(Law::Uniform);
        (log_uniform.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), uniform)
    });
    Ok(UsableMemory {
        memory_bytes: memory_len as u64,
        store_bytes: store_len as u64,
        log_uniform: log_uniform?,
        uniform: uniform?,
    })
}

#[derive(Clone, Copy, Debug)]
enum Law {
    LogUniform,
    Uniform,
}

impl Law {
    fn len(self, random: &mut Xoshiro256PlusPlus) -> usize {
        match self {
            Self::Uniform => random.random_range(LEN_MIN..=LEN_MAX),
            Self::LogUniform => {
                let ratio = (LEN_MAX + 1) as f64 / LEN_MIN as f64;
                let len = LEN_MIN as f64 * ratio.powf(random.random());
                (len as usize).clamp(LEN_MIN, LEN_MAX)
            }
        }
    }
}

/// A store at the brink of refusal, and what is in it.
struct Filling {
    store: Store,
    memory_len: usize,
    law: Law,
    random: Xoshiro256PlusPlus,
    /// Length of each record's value; `None` when it is not stored.
    lens: Vec<Option<u16>>,
    /// Records that are stored, in no order.
    live: Vec<u32>,
    /// Records that were deleted, to be used again.
    free: Vec<u32>,
    live_len: usize,
    written_len: u64,
    puts: u64,
    refusals: u64,
    value: Vec<u8>,
}

impl Filling {
    fn new(memory_len: usize, store_len: usize, law: Law, seed: u64) -> anyhow::Result<Self> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let seeds = std::array::from_fn(|_| random.random());
        Ok(Self {
            store: Store::new(store_len, AtCapacity::Refuse, seeds)?,
            memory_len,
            law,
            random,
            lens: Vec::new(),
            live: Vec::new(),
            free: Vec::new(),
            live_len: 0,
            written_len: 0,
            puts: 0,
            refusals: 0,
            value: vec![0; LEN_MAX],
        })
    }

    fn run(mut self, stop: &AtomicBool, progress: impl Fn(f64)) -> anyhow::Result<Usable> {
        // At the latest the memory is full when as much was put as there is.
        for count in 0..=self.memory_len as u64 / LEN_MIN as u64 {
            if count % STOP_INTERVAL == 0 {
                check_stop(stop)?;
            }
            let (record, len) = (self.next_record(), self.law.len(&mut self.random));
            if !self.put(record, len) {
                break;
            }
        }
        let share_filled = self.share();
        let turnover = self.live_len as u64;
        let (begun, puts, start) = (thread_cpu_ns(), self.puts, self.written_len);
        let end = start + TURNOVERS * turnover;
        let mut share = f64::INFINITY;
        let mut told = start;
        for steps in 0_u64.. {
            if self.written_len >= end {
                break;
            }
            if steps.is_multiple_of(STOP_INTERVAL) {
                check_stop(stop)?;
                progress((self.written_len - told) as f64 / (end - start) as f64);
                told = self.written_len;
            }
            self.step();
            if self.written_len + turnover >= end {
                share = share.min(self.share());
            }
        }
        let ns_per_put = (thread_cpu_ns() - begun) as f64 / (self.puts - puts).max(1) as f64;
        let (refusals, puts, records) = (self.refusals, self.puts, self.live.len() as u64);
        let wrong_values = self.wrong_values();
        Ok(Usable { share, share_filled, records, refusals, puts, ns_per_put, wrong_values })
    }

    /// Half of the steps give a key a value of another length, a quarter stores a new key, and a quarter does that after
    /// deleting one. So keys are put more often than deleted, and it is refusals that keep their number.
    fn step(&mut self) {
        let kind: u32 = self.random.random_range(0..4);
        if kind == 0 {
            self.delete_any();
        }
        let any = self.random.random_range(0..self.live.len().max(1));
        let record = match self.live.get(any) {
            Some(&record) if kind >= 2 => record,
            _ => self.next_record(),
        };
        let len = self.law.len(&mut self.random);
        while !self.put(record, len) {
            assert!(self.delete_any(), "an empty store takes any value");
        }
    }

    /// A record that is not stored.
    fn next_record(&mut self) -> u32 {
        if self.free.is_empty() {
            self.free.push(self.lens.len() as u32);
            self.lens.push(None);
        }
        *self.free.last().expect("one was just put there")
    }

    fn put(&mut self, record: u32, len: usize) -> bool {
        let mut buffer = KeyBuffer::new();
        let key = buffer.key(record);
        let hash = self.store.hash(key);
        value::fill(&mut self.value[..len], record, writer(0, 1, self.puts));
        if self.store.put(key, hash, &self.value[..len], Terms::default()).is_err() {
            self.refusals += 1;
            return false;
        }
        self.puts += 1;
        self.written_len += (key.len() + len) as u64;
        self.live_len += len;
        match self.lens[record as usize].replace(len as u16) {
            Some(former) => self.live_len -= usize::from(former),
            None => {
                // A deletion between two tries may have put another one on top.
                let place = self.free.iter().rposition(|&free| free == record);
                self.free.swap_remove(place.expect("what is not stored is free"));
                self.live.push(record);
                self.live_len += key.len();
            }
        }
        true
    }

    /// Deletes a random key; `false` when there is none.
    fn delete_any(&mut self) -> bool {
        if self.live.is_empty() {
            return false;
        }
        let record = self.live.swap_remove(self.random.random_range(0..self.live.len()));
        let mut buffer = KeyBuffer::new();
        let key = buffer.key(record);
        let hash = self.store.hash(key);
        assert!(self.store.delete(key, hash).is_some(), "record {record} was stored");
        let len = self.lens[record as usize].take().expect("what is live has a length");
        self.live_len -= usize::from(len) + key.len();
        self.free.push(record);
        true
    }

    fn share(&self) -> f64 {
        self.live_len as f64 / self.memory_len as f64
    }

    fn wrong_values(&self) -> u64 {
        let is_right = |record: u32, len: Option<u16>| {
            let mut buffer = KeyBuffer::new();
            let key: Key<'_> = buffer.key(record);
            let found = self.store.get(key, self.store.hash(key));
            match (found, len) {
                (Some(found), Some(len)) => {
                    let lens = ValueLen::new(len.into(), len.into()).expect("4 KiB at most");
                    value::check(found.value, record, lens)
                }
                (found, len) => found.is_none() && len.is_none(),
            }
        };
        (0..).zip(&self.lens).filter(|&(record, &len)| !is_right(record, len)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::key_len;

    /// Goal: a server's other memory counts as not usable. Method: compare with what a server would be given, and with too
    /// little for one.
    #[test]
    fn a_server_keeps_some_of_its_memory() {
        let (memory_len, store_len) = (256 << 20, store_len(256 << 20).unwrap());
        assert!((memory_len / 2..memory_len).contains(&store_len), "{store_len}");
        assert_eq!(super::store_len(1 << 20).unwrap(), 1 << 20);
    }

    /// Goal: the shares are those of what is really stored. Method: fill and churn a small store with a fixed seed, and
    /// add up its keys and values from the store's own answers.
    #[test]
    fn shares_are_of_what_is_stored() {
        const MEMORY_LEN: usize = 1 << 20;
        for law in [Law::LogUniform, Law::Uniform] {
            let mut filling = Filling::new(MEMORY_LEN, MEMORY_LEN, law, 7).unwrap();
            for _ in 0..20_000 {
                filling.step();
            }
            assert!(filling.refusals > 0);
            assert_eq!(filling.wrong_values(), 0);
            assert_eq!(filling.store.len(), filling.live.len());
            let stored =
                |record: &u32| key_len(*record) + usize::from(filling.lens[*record as usize].unwrap());
            assert_eq!(filling.live_len, filling.live.iter().map(stored).sum::<usize>());
            assert!((0.3..1.0).contains(&filling.share()), "{law:?}: {}", filling.share());
        }
    }

    /// Goal: both laws keep to their range and reach both ends of it. Method: many draws.
    #[test]
    fn lengths_keep_to_their_range() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(7);
        for (law, median) in [(Law::LogUniform, 256), (Law::Uniform, 2_056)] {
            let mut lens: Vec<_> = (0..100_000).map(|_| law.len(&mut random)).collect();
            lens.sort_unstable();
            assert!(lens[0] < LEN_MIN + 2 && lens[lens.len() - 1] > LEN_MAX - 10, "{law:?}");
            assert!(lens[lens.len() / 2].abs_diff(median) < median / 20, "{law:?}: {}", lens[lens.len() / 2]);
        }
    }

    /// Goal: a damaged value does not go unnoticed. Method: tell the model of a length that was not stored, and of a
    /// deletion that did not happen.
    #[test]
    fn wrong_values_are_counted() {
        let mut filling = Filling::new(1 << 20, 1 << 20, Law::Uniform, 7).unwrap();
        for _ in 0..10 {
            filling.step();
        }
        let (one, other) = (filling.live[0] as usize, filling.live[1] as usize);
        filling.lens[one] = filling.lens[one].map(|len| len ^ 1);
        filling.lens[other] = None;
        assert_eq!(filling.wrong_values(), 2);
    }
}
