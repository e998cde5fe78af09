//! What `linerate-bench` is made of: a measurement from beginning to end ([`run`], [`ceiling`], [`wire`], [`store`],
//! [`cache`], [`peers`], [`cluster`]), many of them ([`sweep`], [`compare`], [`search`]: [`repeated`])
//! as it was asked for ([`options`]), what a client thread does ([`load`]: [`workload`], [`key`], [`value`]), whether the answers were those of
//! a linearizable store ([`check`]), what is measured ([`latency`], [`core_to_core`], [`series`]), what is looked at meanwhile
//! ([`watch`]), what could be at most ([`line_rate`]) and what is reported ([`output`], [`results`], [`report`]).
//!
//! The client should cost as little as it can and still do what a real one does, as it shares the machine with the
//! server. So everything that can be done before the clock starts is done then, keys and values are made in a few
//! nanoseconds, and yet every value carries enough to be checked to the last bit.

#![forbid(unsafe_code)]

pub mod cache;
pub mod ceiling;
pub mod check;
pub mod cluster;
pub mod compare;
pub mod core_to_core;
pub mod key;
pub mod latency;
pub mod line_rate;
pub mod load;
mod median;
mod null;
pub mod options;
pub mod output;
pub mod peers;
pub mod program;
pub mod repeated;
pub mod report;
pub mod results;
pub mod run;
pub mod search;
pub mod series;
pub mod store;
pub mod sweep;
pub mod value;
pub mod watch;
pub mod wire;
pub mod workload;
