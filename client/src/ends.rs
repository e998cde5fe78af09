//! How calls of the blocking client end that can end in more than one way.

use std::time::Duration;

/// What became of a put on terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The value is stored.
    Done {
        /// Its version.
        version: u64,
    },
    /// The key was to have no value, and has one.
    Exists {
        /// That value's version.
        version: u64,
    },
    /// The key's value was to have another version.
    Changed {
        /// The version that it has.
        version: u64,
    },
    /// The key was to have a value, and has none.
    NotFound,
}

impl Written {
    /// Whether the value is stored.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self, Self::Done { .. })
    }
}

/// What became of an add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is done.
    Sum {
        /// The number now; two's complement, so that it can be understood as unsigned too.
        number: i64,
        /// Its version.
        version: u64,
    },
    /// The key's value is none of exactly 8 bytes, and stays as it was.
    NotANumber {
        /// That value's version.
        version: u64,
    },
}

/// A value with what the server knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Vec<u8>,
    /// Number of the write that stored it, for [`compare_and_put`](crate::Client::compare_and_put).
    pub version: u64,
    /// Milliseconds that it has left to live, up to 9 less than is true; `None`: it does not expire.
    pub ttl: Option<Duration>,
}
