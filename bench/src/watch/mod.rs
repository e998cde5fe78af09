//! What is looked at while something is measured.

pub mod counters;
pub mod host;
pub mod losses;
pub mod nic;
