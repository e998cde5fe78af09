//! Packets in and out.
//!
//! A [`Port`] moves bursts of datagrams between one thread and its peers. Four things hold for every back-end, and the
//! protocol above relies on them: datagrams are lent, not copied; nothing blocks; nothing allocates per datagram;
//! and loss is counted, never reported as an error. This crate knows addresses and bytes, and nothing of keys.

#![deny(unsafe_code)]

pub mod answering;
#[allow(unsafe_code)]
mod bpf;
mod classify;
mod destination;
#[allow(unsafe_code)]
mod device;
pub mod faulty;
mod frame;
#[allow(unsafe_code)]
mod frame_memory;
mod interface;
#[allow(unsafe_code)]
mod mmsg;
pub mod netns;
pub mod outbox;
pub mod packet;
pub mod pin;
pub mod port;
pub mod privilege;
#[allow(unsafe_code)]
pub mod region;
mod reservation;
pub mod resolve;
#[cfg(test)]
mod rings_testing;
pub mod sim;
pub mod tcp;
pub mod transport;
#[allow(unsafe_code)]
pub mod udp;
pub mod wait;
#[allow(unsafe_code)]
pub mod xdp;

pub use answering::{AnsweringPort, Answers};
pub use faulty::{FaultyConfig, FaultyPort};
pub use outbox::Outbox;
pub use packet::{PacketConfig, PacketPort};
pub use port::{Datagram, Peer, Port, PortCounters, Received};
pub use region::SharedWords;
pub use sim::{Faults, SimNetwork, SimPort};
pub use tcp::TcpPort;
pub use udp::{BufferShortfall, UdpConfig, UdpPort};
pub use xdp::{XdpConfig, XdpPort};
