//! The whole system, client and server together: one suite of behaviours over all networks.
//!
//! [`suite`], [`coalescing`] and [`terms`] say each behaviour once; [`rig`] runs it over a simulated network with faults on virtual time, over UDP
//! and over TCP on loopback, and, where this process may, over AF_PACKET and AF_XDP rings between network namespaces. The simulation runs many seeds; a failing one is printed, and `LINERATE_SEED=n` runs that
//! one alone. [`faults`] holds what only virtual time can show, [`blocking`] what only the blocking client does, [`cluster`] what several servers are together.

/// Makes one test per function, over UDP and over TCP.
macro_rules! over_udp_and_tcp {
    ($($name:ident,)+) => {
        mod udp {
            $(#[test] fn $name() { super::$name(linerate_client::Client::connect_udp); })+
        }
        mod tcp {
            $(#[test] fn $name() { super::$name(linerate_client::Client::connect_tcp); })+
        }
    };
}

mod blocking;
mod cluster;
mod coalescing;
mod faults;
mod flow_control;
mod register;
mod rig;
mod suite;
mod system;
mod terms;

use rig::{PacketRig, SimRig, TcpRig, UdpRig, XdpRig};

/// Makes one test per behaviour and network; the number is that of the seeds on the simulated one.
macro_rules! behaviours {
    ($($from:ident::$name:ident: $seeds:literal,)+) => {
        mod sim {
            $(#[test] fn $name() { super::rig::for_seeds($seeds, super::$from::$name::<super::SimRig>); })+
        }
        mod udp {
            $(#[test] fn $name() { super::$from::$name::<super::UdpRig>(0); })+
        }
        mod tcp {
            $(#[test] fn $name() { super::$from::$name::<super::TcpRig>(0); })+
        }
        mod packet {
            $(#[test] fn $name() { super::rig::with_rings(super::$from::$name::<super::PacketRig>); })+
        }
        mod xdp {
            $(#[test] fn $name() { super::rig::with_rings(super::$from::$name::<super::XdpRig>); })+
        }
    };
}

behaviours! {
    suite::puts_gets_and_deletes: 200,
    suite::keys_and_values_of_all_lengths: 100,
    suite::batches_span_many_requests: 20,
    suite::long_values_are_whole: 20,
    suite::orders_are_kept: 100,
    suite::replies_span_many_datagrams: 100,
    suite::random_operations_match_a_hash_map: 100,
    suite::shared_keys_are_linearizable: 100,
    suite::keys_spread_over_all_cores: 30,
    suite::a_full_memory_refuses_puts_only: 30,
    suite::a_restarted_server_is_found_again: 100,
    suite::a_lost_server_ends_everything_by_the_deadline: 100,
    suite::another_count_of_cores_is_refused: 100,
    coalescing::equal_gets_travel_once: 100,
    coalescing::what_was_sent_is_not_joined: 40,
    coalescing::every_get_is_answered_whatever_it_joined: 100,
    coalescing::joined_gets_end_with_the_one_that_travels: 40,
    terms::conditions_are_met_or_not: 40,
    terms::counters_count: 40,
    terms::adds_happen_once_each: 100,
    terms::compare_and_put_loses_no_update: 20,
    terms::values_on_terms_are_read_like_others: 10,
    terms::values_live_as_long_as_they_are_told: 20,
}
