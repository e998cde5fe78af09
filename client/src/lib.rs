//! The client of linerate.
//!
//! [`Client`] is for programs that ask and wait; [`Session`] is for those that keep thousands of operations in flight
//! from one thread. Both speak to all cores of one or more servers over UDP or TCP, pack operations into datagrams by
//! the core that owns their key, send again what was lost, and say truthfully how each operation ended: with a result,
//! certainly without effect, or unknown.

#![forbid(unsafe_code)]

mod blocking;
mod coalesce;
mod contacts;
mod ends;
mod error;
mod order;
mod session;

pub use blocking::Client;
pub use contacts::{ContactError, contact_points, is_map_file, read_map};
pub use ends::{Added, Entry, Written};
pub use error::{ConnectError, Error};
pub use linerate_proto::key::HEAD_LEN;
pub use linerate_proto::{
    Instant, Key,
    flow::{Ended, Outcome, PushError, ServerInfo},
    wire::{Condition, Operation, Reason, Terms},
};
pub use order::Order;
pub use session::{Session, SessionConfig, SessionCounters};
