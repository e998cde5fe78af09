//! The table's hash: keyed by random seeds at each start, so that nobody can choose keys that meet in one bucket.

use std::hash::{BuildHasher, Hasher};

use ahash::RandomState;
use linerate_proto::{Key, key::HEAD_LEN};

/// The hash of one store.
#[derive(Debug)]
pub(super) struct KeyHash {
    state: RandomState,
    /// Bits that are kept: tests let keys collide.
    #[cfg(test)]
    pub(super) mask: u64,
}

impl KeyHash {
    pub(super) fn new([seed0, seed1, seed2, seed3]: [u64; 4]) -> Self {
        Self {
            state: RandomState::with_seeds(seed0, seed1, seed2, seed3),
            #[cfg(test)]
            mask: u64::MAX,
        }
    }

    #[inline(always)]
    pub(super) fn of(&self, key: Key<'_>) -> u64 {
        let mut hasher = self.state.build_hasher();
        if key.len() <= HEAD_LEN {
            let [low, high] = key.head();
            // The length tells keys apart that differ only in zeros at their end. Only a key of all sixteen bytes has
            // something else in the top byte; it can collide with one shorter key, which does no harm.
            let high = high ^ (key.len() as u64) << 56;
            hasher.write_u128(u128::from(low) | u128::from(high) << 64);
        } else {
            // Not `key.hash`, which would mix the length in a second time.
            hasher.write(key.bytes());
        }
        #[cfg(test)]
        return hasher.finish() & self.mask;
        #[cfg(not(test))]
        hasher.finish()
    }
}
