//! What is looked at while something is measured, and what it says about the figures.
//!
//! A thread that has nothing else to do takes a [`HostReading`](host::HostReading) each second: two of them make a
//! [`HostSample`](host::HostSample). With what ports, sessions and servers have counted these say where datagrams were lost
//! ([`losses`]), and with the rest of what is known of a run whether its figures can be believed ([`verdict`]). What the kernel
//! counts is read in one place ([`counters`]); [`nic`] says what the interface is.
//!
//! Nothing of this runs where operations are counted: client threads write their counters as they do anyway, and are asked for
//! nothing. Server cores are asked for their statistics once a second, a request like any other.

pub mod counters;
pub mod host;
pub mod losses;
pub mod nic;
pub mod verdict;
