//! The whole of linerate in one thread: production clients and server cores on a simulated network, clock by clock.
//!
//! A seed is a number from which everything follows: how many cores and clients there are and how they are set up
//! ([`swarm`]), what they do, and what goes wrong meanwhile ([`run`]). Whatever happened, a judge ([`check`]) says whether
//! a correct store can have answered like that, and every operation must have come to its end once all is well again.
//! The same seed gives the same run, to the last datagram, so that whatever was found once can be looked at.
//!
//! Nothing here is a model: the code that runs is the code that ships, and only the ports, the clocks and the turns
//! are simulated.

#![forbid(unsafe_code)]

pub mod campaign;
pub mod check;
mod forge;
mod monitor;
pub mod mutants;
mod node;
pub mod run;
pub mod swarm;
mod trace;
pub mod value;
mod world;
