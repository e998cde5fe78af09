//! The shard store from outside: against a model, at its limits, and under attack.

#[cfg(not(miri))]
mod corpus;
#[cfg(not(miri))]
mod flooding;
mod growth;
#[cfg(not(miri))]
mod memory;
mod model;
mod random;
