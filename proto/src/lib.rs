//! The protocol of linerate, without a socket, a clock or a thread.
//!
//! Bytes and structs ([`wire`]), which core owns a key ([`hash`], [`placement`]), and the two state machines: what a
//! client keeps per core ([`flow`]) and what a core keeps per client ([`session`]). Both take `now` and bytes as
//! arguments and return bytes, so that the same code runs behind a real port, under a simulator and in a test.
//!
//! Why slots and not acknowledgements: a slot has one request in flight, so "have I executed this?" is one comparison
//! of sequence numbers, and a new request in the slot acknowledges the previous one for free.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod drops;
pub mod flow;
pub mod hash;
pub mod key;
pub mod mutants;
pub mod placement;
pub mod rtt;
pub mod session;
pub mod time;
pub mod wire;

pub use drops::{DropReason, Drops};
pub use key::Key;
pub use time::Instant;
