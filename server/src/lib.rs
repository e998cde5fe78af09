//! The server: a shard store per core, and the loop that serves it.
//!
//! Each core is a thread with its own UDP and TCP port, its own shard and its own sessions ([`worker`]). Cores share
//! nothing while they work; a client addresses the core that owns a key. [`Server`] starts and stops them, for the
//! binary as for programs and tests that embed one.

#![deny(unsafe_code)]

pub mod core_loop;
pub mod memory;
pub mod server;
pub mod stats;
pub mod store;
mod watcher;
pub mod worker;

pub use server::{Datagrams, Server, ServerConfig, StartError};
pub use store::AtCapacity;
