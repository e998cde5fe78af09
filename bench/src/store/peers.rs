//! Hash tables that programs use instead, with boxed keys and values as such programs have them, asked one key at a
//! time. They are given what makes them fast: capacity from the start, and ahash where the hash can be chosen.

use std::{collections, ops::Deref};

use ahash::RandomState;
use dashmap::DashMap;

use crate::{
    key::KeyBuffer,
    store::staged::{Reply, len_of},
    value::{self, writer},
    workload::{Draw, ValueLen},
};

/// A key or a value.
pub(super) type Bytes = Box<[u8]>;

/// The same records in each of them.
pub(super) struct Peers {
    pub(super) hashbrown: hashbrown::HashMap<Bytes, Bytes, RandomState>,
    pub(super) std: collections::HashMap<Bytes, Bytes>,
    pub(super) dashmap: DashMap<Bytes, Bytes, RandomState>,
}

impl Peers {
    pub(super) fn new(records: u32) -> Self {
        let count = records as usize;
        Self {
            hashbrown: hashbrown::HashMap::with_capacity_and_hasher(count, RandomState::new()),
            std: collections::HashMap::with_capacity(count),
            dashmap: DashMap::with_capacity_and_hasher(count, RandomState::new()),
        }
    }

    /// Stores a record in all of them.
    pub(super) fn insert(&mut self, record: u32, lens: ValueLen) {
        let mut buffer = KeyBuffer::new();
        let key = buffer.key(record).bytes();
        let mut bytes = vec![0; len_of(record, lens)];
        value::fill(&mut bytes, record, writer(0, 1, 0));
        self.hashbrown.insert(key.into(), bytes.clone().into());
        self.std.insert(key.into(), bytes.clone().into());
        self.dashmap.insert(key.into(), bytes.into());
    }

    /// How many of the values of one record are missing or wrong.
    pub(super) fn wrong_values(&self, record: u32, lens: ValueLen) -> u64 {
        let mut buffer = KeyBuffer::new();
        let key = buffer.key(record).bytes();
        let is_wrong =
            |value: Option<&[u8]>| u64::from(!value.is_some_and(|value| value::check(value, record, lens)));
        is_wrong(self.hashbrown.get(key).map(|value| &**value))
            + is_wrong(self.std.get(key).map(|value| &**value))
            + is_wrong(self.dashmap.get(key).as_deref().map(|value| &**value))
    }
}

/// Gets `draws` one at a time and copies the values; returns how many there were.
#[inline(always)]
pub(super) fn gets<V: Deref<Target = Bytes>>(
    draws: &[Draw],
    reply: &mut Reply,
    find: impl Fn(&[u8]) -> Option<V>,
) -> usize {
    draws.iter().filter_map(|draw| find(draw.key().bytes())).map(|value| reply.push(&value)).count()
}
