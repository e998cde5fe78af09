//! The order of a session's operations: which of them may be in flight together.

use std::{collections::HashSet, str::FromStr};

use linerate_proto::{flow::Ended, wire::Operation};

/// Which operations of a session may be in flight together. Those that may not take effect in the order of the calls; only
/// a write whose outcome is unknown may take effect, if at all, after what was called later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// All. Their effects may come in any order.
    #[default]
    None,
    /// Those on different keys.
    Key,
    /// Reads. A write waits for everything before it, and ends before anything after it begins.
    Strict,
}

impl Order {
    /// The name on command lines and in results.
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
        let named = [Self::None, Self::Key, Self::Strict].into_iter().find(|order| order.name() == text);
        named.ok_or_else(|| format!("`{text}` is no order of operations: give none, key or strict"))
    }
}

/// What is in flight of a session whose operations have an order. Each operation gets a ticket, which travels in place of
/// the caller's tag.
#[derive(Debug)]
pub(crate) struct InFlight {
    order: Order,
    tickets: Vec<Ticket>,
    free: Vec<u32>,
    /// Keys in flight, if the order is by key.
    keys: HashSet<Box<[u8]>>,
    /// Whether the operation in flight is a write, which then is alone.
    writing: bool,
}

#[derive(Debug)]
struct Ticket {
    tag: u64,
    key: Box<[u8]>,
}

impl InFlight {
    /// Nothing in flight; `None` for operations without an order.
    pub(crate) fn of(order: Order) -> Option<Self> {
        let none =
            Self { order, tickets: Vec::new(), free: Vec::new(), keys: HashSet::new(), writing: false };
        (order != Order::None).then_some(none)
    }

    /// Whether the operation may be in flight together with those that are.
    pub(crate) fn admits(&self, operation: &Operation<'_>) -> bool {
        match self.order {
            Order::None => true,
            Order::Key => !self.keys.contains(operation.key.bytes()),
            Order::Strict => self.is_empty() || (operation.is_read() && !self.writing),
        }
    }

    /// The ticket of an operation that begins now.
    pub(crate) fn begin(&mut self, operation: &Operation<'_>, tag: u64) -> u64 {
        self.writing = !operation.is_read();
        let key: Box<[u8]> = match self.order {
            Order::Key => operation.key.bytes().into(),
            Order::None | Order::Strict => Box::default(),
        };
        if self.order == Order::Key {
            self.keys.insert(key.clone());
        }
        let ticket = Ticket { tag, key };
        let index = match self.free.pop() {
            Some(index) => {
                self.tickets[index as usize] = ticket;
                index
            }
            None => {
                self.tickets.push(ticket);
                self.tickets.len() as u32 - 1
            }
        };
        index.into()
    }

    /// The caller's tag of an operation that has ended, or was not taken after all.
    pub(crate) fn end(&mut self, ticket: u64) -> u64 {
        let Ticket { tag, key } = &self.tickets[ticket as usize];
        if self.order == Order::Key {
            self.keys.remove(key);
        }
        self.free.push(ticket as u32);
        *tag
    }

    /// The end of an operation as the caller is to hear of it.
    #[inline]
    pub(crate) fn end_of<'a>(&mut self, ended: Ended<'a>) -> Ended<'a> {
        Ended { tag: self.end(ended.tag), ..ended }
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.tickets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each order admits just what it says. Method: a get, a put or nothing in flight, and each operation beside it,
    /// on the same key and on another.
    #[test]
    fn orders_admit_what_they_say() {
        let (get, put) = (Operation::get(b"a"), Operation::put(b"a", b"1"));
        let (other_get, other_put) = (Operation::get(b"b"), Operation::delete(b"b"));
        let all = [get, put, other_get, other_put];
        for (order, in_flight, expected) in [
            (Order::Key, None, [true, true, true, true]),
            (Order::Key, Some(get), [false, false, true, true]),
            (Order::Key, Some(put), [false, false, true, true]),
            (Order::Strict, None, [true, true, true, true]),
            (Order::Strict, Some(get), [true, false, true, false]),
            (Order::Strict, Some(put), [false, false, false, false]),
        ] {
            let mut flying = InFlight::of(order).unwrap();
            let ticket = in_flight.map(|operation| flying.begin(&operation, 7));
            assert_eq!(all.map(|operation| flying.admits(&operation)), expected, "{order:?} {in_flight:?}");
            if let Some(ticket) = ticket {
                assert_eq!(flying.end(ticket), 7);
            }
            assert!(all.iter().all(|operation| flying.admits(operation)), "{order:?}: nothing is in flight");
        }
        assert!(InFlight::of(Order::None).is_none());
    }

    #[test]
    fn names_are_read_back() {
        for order in [Order::None, Order::Key, Order::Strict] {
            assert_eq!(order.name().parse(), Ok(order));
        }
        assert!("fifo".parse::<Order>().unwrap_err().contains("none, key or strict"));
    }
}
