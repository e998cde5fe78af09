//! The whole system, client and server together: one suite of behaviours over all networks.
//!
//! [`suite`] says each behaviour once; [`rig`] runs it over a simulated network with faults on virtual time, over UDP
//! and over TCP on loopback, and, where this process may, over AF_PACKET and AF_XDP rings between network namespaces. The simulation runs many seeds; a failing one is printed, and `LINERATE_SEED=n` runs that
//! one alone. [`faults`] holds what only virtual time can show, [`blocking`] what only the blocking client does.

mod blocking;
mod faults;
mod flow_control;
mod register;
mod rig;
mod suite;
mod system;

use rig::{PacketRig, SimRig, TcpRig, UdpRig, XdpRig};

/// Makes one test per behaviour and network; the number is that of the seeds on the simulated one.
macro_rules! behaviours {
    ($($name:ident: $seeds:literal,)+) => {
        mod sim {
            $(#[test] fn $name() { super::rig::for_seeds($seeds, super::suite::$name::<super::SimRig>); })+
        }
        mod udp {
            $(#[test] fn $name() { super::suite::$name::<super::UdpRig>(0); })+
        }
        mod tcp {
            $(#[test] fn $name() { super::suite::$name::<super::TcpRig>(0); })+
        }
        mod packet {
            $(#[test] fn $name() { super::rig::with_rings(super::suite::$name::<super::PacketRig>); })+
        }
        mod xdp {
            $(#[test] fn $name() { super::rig::with_rings(super::suite::$name::<super::XdpRig>); })+
        }
    };
}

behaviours! {
    puts_gets_and_deletes: 200,
    keys_and_values_of_all_lengths: 100,
    batches_span_many_requests: 20,
    long_values_are_whole: 20,
    orders_are_kept: 100,
    replies_span_many_datagrams: 100,
    random_operations_match_a_hash_map: 100,
    shared_keys_are_linearizable: 100,
    keys_spread_over_all_cores: 30,
    a_full_memory_refuses_puts_only: 30,
    a_restarted_server_is_found_again: 100,
    a_lost_server_ends_everything_by_the_deadline: 100,
    another_count_of_cores_is_refused: 100,
}
