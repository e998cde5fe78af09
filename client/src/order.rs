//! The order of a session's operations: which of them may be in flight together.

use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
};

use linerate_proto::{
    flow::{Ended, PushError},
    wire::Operation,
};

/// Which operations of a session are in flight together; those that are not take effect in the order of the calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// All: their effects may come in any order.
    #[default]
    None,
    /// All of different keys: operations on one key take effect in the order of the calls.
    Key,
    /// Reads. A write waits for everything before it and ends before anything after it: the effects of all operations
    /// come in the order of the calls, except for reads between the same writes.
    Strict,
}

impl Order {
    /// The name on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Key => "key",
            Self::Strict => "strict",
        }
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::None, Self::Key, Self::Strict];
        let named = all.into_iter().find(|order| order.name() == text);
        named.ok_or_else(|| format!("`{text}` is no order of operations: give none, key or strict"))
    }
}

/// Holds operations back that may not be in flight yet. An operation that is taken gets a ticket, which stands for the
/// caller's tag until it ends.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    order: Order,
    tickets: Vec<Ticket>,
    free: Vec<u32>,
    /// Keys in flight, of order `Key`.
    keys: HashSet<Box<[u8]>>,
    count: usize,
    writing: bool,
}

#[derive(Debug, Default)]
struct Ticket {
    tag: u64,
    key: Box<[u8]>,
}
