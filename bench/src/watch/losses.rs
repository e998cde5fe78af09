//! Where datagrams were lost on their way up: at the card, between the CPUs, at the socket, in the port or at the session.

use std::net::{IpAddr, UdpSocket};

use comfy_table::Cell;
use linerate_dataplane::PortCounters;
use linerate_proto::{
    DropReason, Drops,
    wire::{STAT_COUNT, Statistic},
};
use serde::{Deserialize, Serialize};

use super::host::HostSample;
use crate::output::{number, plain_table, shown};

/// Datagrams lost, by the layer that lost them, each counted once. The names are a contract, as those of
/// [`Report`](crate::output::Report).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// Frames that the interface dropped or found broken, both ways, without those that are counted again at `softnet`. They may
    /// be anybody's.
    pub nic: u64,
    /// Packets that found the queue of a CPU full. They may be anybody's.
    pub softnet: u64,
    /// Datagrams that did not get into a socket or ring: the buffer was full, UDP had no memory, the checksum was wrong.
    pub socket: u64,
    /// Datagrams that a port gave up: cut off, broken, without room to be handed to another core, or refused by the kernel when
    /// they were to be sent.
    pub port: u64,
    /// Datagrams that arrived and were of no use: of another version, session or peer, malformed, or without room for an answer.
    pub session: u64,
    /// Copies and answers that came when nobody needed them any more. They are no loss but what is left of one: of a datagram
    /// that was sent again, or delivered twice.
    pub late: u64,
}

/// What is known of the measured time.
#[derive(Clone, Copy, Debug, Default)]
pub struct LossFacts<'a> {
    /// What this machine did; empty when nobody watched.
    pub hosts: &'a [HostSample],
    /// What the clients' ports counted.
    pub client_port: PortCounters,
    /// What the clients' sessions dropped.
    pub client_drops: Drops,
    /// The servers, if they told.
    pub server: Option<ServerLossFacts<'a>>,
}

/// What the servers counted: sums over their cores at the beginning and at the end.
#[derive(Clone, Copy, Debug)]
pub struct ServerLossFacts<'a> {
    /// In the order of [`STAT_NAMES`](linerate_proto::wire::STAT_NAMES).
    pub before: &'a [u64; STAT_COUNT],
    /// The same.
    pub after: &'a [u64; STAT_COUNT],
    /// Whether their sockets are in the network namespace that `hosts` is of.
    pub is_here: bool,
}

/// Whether datagrams to this address arrive at sockets of the calling thread's network namespace: a socket can have it. (With
/// `net.ipv4.ip_nonlocal_bind` it can have any; then servers elsewhere are taken for ones here, and the losses at their sockets
/// show only as far as they exceed those of this namespace.)
#[must_use]
pub fn is_here(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// What a port has given up.
const PORT_FAULTS: [Statistic; 5] = [
    Statistic::RxTruncated,
    Statistic::RxBadFrames,
    Statistic::RxBadChecksums,
    Statistic::RxHandoverDrops,
    Statistic::TxDropped,
];

/// Reasons of a session that tell of a loss elsewhere, or of a network that delivers twice.
const LATE: [DropReason; 2] = [DropReason::Stale, DropReason::Unexpected];

impl Losses {
    /// Adds up what each layer has counted.
    ///
    /// The same datagram is often counted at two places, and then once here:
    ///
    /// - A packet that finds a CPU's queue full is also one that its interface dropped (`enqueue_to_backlog`, net/core/dev.c),
    ///   so `nic` is without as many. A loss at the card is thus overlooked in a second in which as many packets of other
    ///   interfaces were lost between CPUs.
    /// - A socket that refuses a datagram counts it (`SO_RXQ_OVFL`), and so does UDP as a whole (`InErrors`), which also sees
    ///   sockets of others; rings count only for themselves. `socket` is the greater of the two, with what servers elsewhere say.
    #[must_use]
    pub fn of(facts: &LossFacts<'_>) -> Self {
        let hosts =
            |count: fn(&HostSample) -> u64| facts.hosts.iter().map(count).fold(0, u64::saturating_add);
        let server = |statistic: usize| {
            facts.server.map_or(0, |server| server.after[statistic].saturating_sub(server.before[statistic]))
        };
        let port = facts.client_port;
        let client_faults = [
            port.rx_truncated,
            port.rx_bad_frames,
            port.rx_bad_checksums,
            port.rx_handover_drops,
            port.tx_dropped,
        ];
        let server_faults = PORT_FAULTS.map(|fault| server(fault as usize));
        let dropped = |is_late: bool| {
            let reasons = DropReason::ALL.into_iter().filter(|reason| LATE.contains(reason) == is_late);
            sum(reasons.map(|reason| {
                let of_server = server(Statistic::DropTruncated as usize + reason as usize);
                facts.client_drops.of(reason).saturating_add(of_server)
            }))
        };
        let at_server = server(Statistic::RxOverflowDrops as usize);
        let (here, elsewhere) = match facts.server {
            Some(ServerLossFacts { is_here: true, .. }) => (at_server, 0),
            _ => (0, at_server),
        };
        let sockets = port.rx_overflow_drops.saturating_add(here).max(hosts(|host| host.udp_in_errors));
        Self {
            nic: hosts(|host| host.nic_drops.saturating_sub(host.softnet_drops)),
            softnet: hosts(|host| host.softnet_drops),
            socket: sockets.saturating_add(elsewhere),
            port: sum(client_faults.into_iter().chain(server_faults)),
            session: dropped(false),
            late: dropped(true),
        }
    }

    /// Each layer with its name and its count, from the card up.
    #[must_use]
    pub const fn by_layer(&self) -> [(&'static str, u64); 5] {
        [
            ("nic", self.nic),
            ("softnet", self.softnet),
            ("socket", self.socket),
            ("port", self.port),
            ("session", self.session),
        ]
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        sum(self.by_layer().into_iter().map(|(_, count)| count))
    }
}

fn sum(counts: impl IntoIterator<Item = u64>) -> u64 {
    counts.into_iter().fold(0, u64::saturating_add)
}

/// What people read: a line for each layer.
#[must_use]
pub fn losses_table(losses: &Losses) -> String {
    let what = [
        "frames dropped or broken at the interface",
        "packets at a full queue of a CPU",
        "datagrams at a full or refusing socket or ring",
        "datagrams given up by a port",
        "datagrams of no use to a session",
    ];
    let mut table = plain_table();
    table.set_header(vec![Cell::new("lost at"), Cell::new("what"), number("count".to_owned())]);
    let count = |count: u64| number(shown(Some(count as f64), 0));
    for ((layer, lost), what) in losses.by_layer().into_iter().zip(what) {
        table.add_row(vec![Cell::new(layer), Cell::new(what), count(lost)]);
    }
    table.add_row(vec![
        Cell::new("(late)"),
        Cell::new("copies that nobody needed, no loss"),
        count(losses.late),
    ]);
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(values: &[(Statistic, u64)]) -> [u64; STAT_COUNT] {
        let mut all = [1_000; STAT_COUNT];
        values.iter().for_each(|&(statistic, value)| all[statistic as usize] += value);
        all
    }

    /// Goal: each counter gets into its layer, and only there. Method: one counter at a time, at each side.
    #[test]
    fn counters_belong_to_layers() {
        let before = statistics(&[]);
        let port = PortCounters::default();
        let one = |facts: &LossFacts<'_>, losses: Losses| assert_eq!(Losses::of(facts), losses, "{facts:?}");
        one(&LossFacts::default(), Losses::default());
        let at_port = Losses { port: 7, ..Losses::default() };
        for client_port in [
            PortCounters { rx_truncated: 7, ..port },
            PortCounters { rx_bad_frames: 7, ..port },
            PortCounters { rx_bad_checksums: 7, ..port },
            PortCounters { rx_handover_drops: 7, ..port },
            PortCounters { tx_dropped: 7, ..port },
        ] {
            one(&LossFacts { client_port, ..LossFacts::default() }, at_port);
        }
        // Left to the kernel, or no datagrams.
        let client_port =
            PortCounters { rx_fragments: 1, rx_vlan: 2, soft_errors: 3, rx_handed_over: 4, ..port };
        one(&LossFacts { client_port, ..LossFacts::default() }, Losses::default());
        let at_server = |statistic, is_here, losses| {
            let after = statistics(&[(statistic, 7)]);
            let server = Some(ServerLossFacts { before: &before, after: &after, is_here });
            one(&LossFacts { server, ..LossFacts::default() }, losses);
        };
        for fault in PORT_FAULTS {
            at_server(fault, true, at_port);
        }
        at_server(Statistic::Gets, true, Losses::default());
        for (reason, statistic) in [
            (DropReason::Truncated, Statistic::DropTruncated),
            (DropReason::Checksum, Statistic::DropChecksum),
            (DropReason::NoRoom, Statistic::DropNoRoom),
            (DropReason::Budget, Statistic::DropBudget),
            (DropReason::Stale, Statistic::DropStale),
            (DropReason::Unexpected, Statistic::DropUnexpected),
        ] {
            let is_late = LATE.contains(&reason);
            let losses = |count| {
                let (session, late) = if is_late { (0, count) } else { (count, 0) };
                Losses { session, late, ..Losses::default() }
            };
            at_server(statistic, false, losses(7));
            let mut client_drops = Drops::default();
            client_drops.count(reason);
            one(&LossFacts { client_drops, ..LossFacts::default() }, losses(1));
        }
    }

    /// Goal: what two places count is lost once, and what a server elsewhere says is added. Method: sockets and interface of one
    /// machine with the server on it, and off it.
    #[test]
    fn nothing_is_lost_twice() {
        let host = HostSample { nic_drops: 12, softnet_drops: 5, udp_in_errors: 9, ..HostSample::default() };
        // In this second the card lost nothing of its own.
        let other = HostSample { nic_drops: 2, softnet_drops: 3, ..HostSample::default() };
        let hosts = [host, other];
        let client_port = PortCounters { rx_overflow_drops: 4, ..PortCounters::default() };
        let (before, after) = (statistics(&[]), statistics(&[(Statistic::RxOverflowDrops, 5)]));
        for (is_here, socket) in [(true, 9), (false, 14)] {
            let server = Some(ServerLossFacts { before: &before, after: &after, is_here });
            let facts = LossFacts { hosts: &hosts, client_port, server, ..LossFacts::default() };
            let expected = Losses { nic: 7, softnet: 8, socket, ..Losses::default() };
            assert_eq!(Losses::of(&facts), expected);
        }
        // Nobody watched: what the sockets say is enough.
        let server = Some(ServerLossFacts { before: &before, after: &after, is_here: true });
        let facts = LossFacts { client_port, server, ..LossFacts::default() };
        assert_eq!(Losses::of(&facts).socket, 9);
        // A server that was restarted counts from 0.
        let server = Some(ServerLossFacts { before: &after, after: &before, is_here: true });
        assert_eq!(Losses::of(&LossFacts { server, ..LossFacts::default() }), Losses::default());
        let endless = HostSample { udp_in_errors: u64::MAX, ..HostSample::default() };
        let losses = Losses::of(&LossFacts { hosts: &[endless.clone(), endless], ..LossFacts::default() });
        assert_eq!((losses.socket, losses.total()), (u64::MAX, u64::MAX));
    }

    /// Goal: a server of this machine is known by any of its addresses. Method: a loopback address, the one that stands for all
    /// of this machine, and one of TEST-NET-1 (RFC 5737), which nobody has.
    #[test]
    fn addresses_of_this_machine_are_known() {
        for (address, is_one) in [("127.0.0.9", true), ("0.0.0.0", true), ("192.0.2.1", false)] {
            assert_eq!(is_here(address.parse().unwrap()), is_one, "{address}");
        }
    }

    #[test]
    fn losses_are_shown_by_layer() {
        let losses = Losses { nic: 1, softnet: 20, socket: 3_000, port: 4, session: 5, late: 6 };
        let table = losses_table(&losses);
        println!("{table}");
        let line = |start: &str| {
            let line = table.lines().find(|line| line.trim_start().starts_with(start)).expect(start);
            line.split_whitespace().last().unwrap().to_owned()
        };
        for (layer, count) in
            [("nic", "1"), ("softnet", "20"), ("socket", "3,000"), ("port", "4"), ("(late)", "6")]
        {
            assert_eq!(line(layer), count);
        }
        let value = serde_json::to_value(losses).unwrap();
        for (layer, count) in losses.by_layer() {
            assert_eq!(value[layer], count);
        }
        assert_eq!(losses.total(), 3_030);
    }
}
