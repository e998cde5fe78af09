//! Packet ports on links between namespaces of this process's own: against kernel sockets, against each other, with bad
//! input, and with interfaces that go away.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, UdpSocket},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use super::*;
use crate::{
    frame::Headers,
    netns::{End, Namespace, Offloads, Pair, PairConfig},
    rings_testing::or_say,
};

/// Long enough that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(20);

const SMALL: PacketConfig = PacketConfig { rx_frames: 256, trains: true, keep_from_stack: true };

const PLAIN: PacketConfig = PacketConfig { trains: false, ..SMALL };

/// A link between two namespaces, or why there is none.
#[track_caller]
fn link(offloads: Offloads) -> Option<Pair> {
    let make = || {
        let pair = Pair::new(
            &Namespace::new()?,
            &Namespace::new()?,
            PairConfig { offloads, ..PairConfig::default() },
        );
        pair.inspect(|pair| {
            // Nobody may speak but the test.
            for end in [&pair.a, &pair.b] {
                let _ = end.namespace.command("sysctl", &["-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
            }
        })
    };
    or_say("a packet port on a veth pair", make())
}

/// Each kind of link, how a port on it is set up, and whether it then sends trains.
#[track_caller]
fn links() -> [(Option<Pair>, PacketConfig, bool); 4] {
    [
        (link(Offloads::Frames), SMALL, true),
        (link(Offloads::Frames), PLAIN, false),
        (link(Offloads::Whole), SMALL, false),
        (link(Offloads::SummedFrames), SMALL, true),
    ]
}

fn bind(end: &End, config: PacketConfig) -> PacketPort {
    end.namespace.run(|| PacketPort::bind((end.addr, 0).into(), config)).unwrap()
}

fn connect(end: &End, server: SocketAddr, config: PacketConfig) -> PacketPort {
    end.namespace.run(|| PacketPort::connect(&[server], config)).unwrap()
}

fn kernel_socket(end: &End) -> UdpSocket {
    let socket = end.namespace.run(|| UdpSocket::bind((end.addr, 0))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A payload that no other length has.
fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 + len) as u8).collect()
}

fn send(port: &mut PacketPort, to: &Peer, len: usize) {
    let slot = port.split().1.begin(to, 1_472).expect("room");
    slot.bytes[..len].copy_from_slice(&payload(len));
    port.split().1.commit(len);
}

/// Receives until `count` datagrams are there.
fn receive(port: &mut PacketPort, count: usize) -> Vec<(Peer, Vec<u8>)> {
    let begun = Instant::now();
    let mut all = Vec::new();
    while all.len() < count {
        assert!(begun.elapsed() < PATIENCE, "{} of {count} datagrams: {:?}", all.len(), port.counters());
        port.rx_burst().unwrap();
        all.extend(port.split().0.iter().map(|datagram| (*datagram.peer, datagram.bytes.to_vec())));
    }
    all
}

/// Waits until the counters say so; what is received meanwhile is forgotten.
fn count_until(port: &mut PacketPort, done: impl Fn(&PortCounters) -> bool) {
    let begun = Instant::now();
    while !done(&port.counters()) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", port.counters());
        port.rx_burst().unwrap();
        port.check().unwrap();
    }
}

/// A raw socket that sends whole frames.
fn raw(end: &End) -> socket2::Socket {
    end.namespace.run(|| {
        let interface = Interface::of_address(end.addr).unwrap();
        ring::raw_sender(interface.index).unwrap()
    })
}

fn mac(end: &End) -> [u8; 6] {
    end.namespace.run(|| Interface::of_address(end.addr).unwrap().mac)
}

/// The counts in a line of /proc/net/snmp, as the kernel names them.
fn snmp(end: &End, protocol: &str, name: &str) -> u64 {
    let text = end.namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with(&format!("{protocol}: ")));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let (_, value) = names.split(' ').zip(values.split(' ')).find(|(known, _)| *known == name).unwrap();
    value.parse().unwrap()
}

/// Goal: datagrams of all lengths arrive whole both ways, with checksums that the kernel verifies. Method: a kernel socket
/// at the other end of every kind of link, for every way to send.
#[test]
fn the_kernel_understands_all_lengths() {
    for (pair, config, trains) in links() {
        let Some(pair) = pair else { return };
        let mut port = bind(&pair.a, config);
        assert_eq!(port.mode().contains("trains"), trains, "{}", port.mode());
        let kernel = kernel_socket(&pair.b);
        let mut bytes = [0; 2_000];
        for len in 0..=1_472 {
            kernel.send_to(&payload(len), port.local_addr()).unwrap();
            let (peer, received) = receive(&mut port, 1).remove(0);
            assert_eq!(received, payload(len), "{len} bytes");
            assert_eq!((peer.addr, peer.mac), (kernel.local_addr().unwrap(), mac(&pair.b)));
            if len > 0 {
                send(&mut port, &peer, len);
                port.tx_flush().unwrap();
                let (received_len, from) = kernel.recv_from(&mut bytes).unwrap();
                assert_eq!((&bytes[..received_len], from), (&payload(len)[..], port.local_addr()));
            }
        }
        assert_eq!(snmp(&pair.b, "Udp", "InCsumErrors"), 0);
        assert_eq!(port.counters().tx_dropped, 0);
    }
}

/// Goal: two packet ports understand each other, in bursts and trains. Method: all lengths in bursts, there and back.
#[test]
fn ports_understand_each_other() {
    for (pair, config, trains) in links() {
        let Some(pair) = pair else { return };
        let mut server = bind(&pair.a, config);
        let mut client = connect(&pair.b, server.local_addr(), config);
        // As clients know it: without an Ethernet address.
        let to = Peer::datagram(server.local_addr());
        for first in (1..=1_472).step_by(23) {
            let lens = [first, first, first, first + 22, first + 5].map(|len: usize| len.min(1_472));
            lens.iter().for_each(|&len| send(&mut client, &to, len));
            client.tx_flush().unwrap();
            for (peer, received) in receive(&mut server, lens.len()) {
                assert_eq!(received, payload(received.len()));
                send(&mut server, &peer, received.len());
            }
            server.tx_flush().unwrap();
            let mut back: Vec<_> =
                receive(&mut client, lens.len()).into_iter().map(|(_, bytes)| bytes).collect();
            back.sort();
            let mut sent = lens.map(payload);
            sent.sort();
            assert_eq!(back, sent);
        }
        let (client, server) = (client.counters(), server.counters());
        assert_eq!((client.tx_datagrams, client.rx_datagrams), (server.rx_datagrams, server.tx_datagrams));
        assert_eq!(client.tx_trains < client.tx_datagrams, trains, "{client:?}");
    }
}

/// Goal: a burst to many peers reaches each, in order, also when what is complete leaves early. Method: kernel sockets.
#[test]
fn trains_of_many_peers_arrive_in_order() {
    let Some(pair) = link(Offloads::Frames) else { return };
    let mut port = bind(&pair.a, SMALL);
    let sockets: Vec<_> = (0..20).map(|_| kernel_socket(&pair.b)).collect();
    let peers: Vec<_> = sockets
        .iter()
        .map(|socket| Peer { mac: mac(&pair.b), ..Peer::datagram(socket.local_addr().unwrap()) })
        .collect();
    let lens = [700, 700, 650, 900, 30, 1_470];
    for round in 0..3 {
        for (index, &len) in lens.iter().enumerate() {
            peers.iter().for_each(|peer| send(&mut port, peer, len + round));
            if index % 2 == 1 {
                port.tx_flush_complete().unwrap();
            }
        }
        port.tx_flush().unwrap();
        for socket in &sockets {
            for len in lens.map(|len| len + round) {
                let mut bytes = [0; 2_000];
                let received_len = socket.recv(&mut bytes).unwrap();
                assert_eq!(bytes[..received_len], payload(len), "{len} bytes");
            }
        }
    }
}

/// Goal: the loopback is an interface too. Method: a kernel socket and a second port on 127.0.0.1. The kernel takes frames
/// for 127.0.0.0/8 that did not come from its own sockets only where it is told to (`route_localnet`, `accept_local`).
#[test]
fn the_loopback_works() {
    let Some(namespace) = or_say("a packet port on the loopback", Namespace::new()) else { return };
    namespace
        .command("sysctl", &["-qw", "net.ipv4.conf.lo.route_localnet=1", "net.ipv4.conf.lo.accept_local=1"])
        .unwrap();
    namespace.run(|| {
        let mut server = PacketPort::bind((Ipv4Addr::LOCALHOST, 0).into(), SMALL).unwrap();
        let mut client = PacketPort::connect(&[server.local_addr()], SMALL).unwrap();
        let kernel = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        kernel.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = [0; 2_000];
        for len in (1..=1_472).step_by(7) {
            kernel.send_to(&payload(len), server.local_addr()).unwrap();
            send(&mut client, &Peer::datagram(server.local_addr()), len);
            client.tx_flush().unwrap();
            for (peer, received) in receive(&mut server, 2) {
                assert_eq!(received, payload(len));
                send(&mut server, &peer, len);
            }
            server.tx_flush().unwrap();
            let received_len = kernel.recv(&mut bytes).unwrap();
            assert_eq!(bytes[..received_len], payload(len));
            assert_eq!(receive(&mut client, 1)[0].1, payload(len));
        }
    });
}

/// Goal: what is not taken is counted by its reason. Method: frames made by hand, one fault each, and a good one at the
/// end.
#[test]
fn bad_frames_are_counted_by_reason() {
    let Some(pair) = link(Offloads::Frames) else { return };
    let mut port = bind(&pair.a, SMALL);
    let raw = raw(&pair.b);
    let there = Local { mac: mac(&pair.b), addr: pair.b.addr, port: 4_000 };
    let good = |len| {
        let mut headers = [0; frame::HEADERS_LEN];
        let to = SocketAddrV4::new(pair.a.addr, port.local.port);
        Headers::new(&there, port.local.mac, to).write(&mut headers, &payload(len));
        [&headers[..], &payload(len)].concat()
    };
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = good(100);
        change(&mut frame);
        let mut ip = smoltcp::wire::Ipv4Packet::new_unchecked(&mut frame[14..]);
        ip.fill_checksum();
        frame
    };
    let ipv6 = {
        let mut frame =
            [&port.local.mac[..], &there.mac, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 12, 17, 64]].concat();
        frame.resize(14 + 40 + 12, 0);
        frame[56..58].copy_from_slice(&port.local.port.to_be_bytes());
        frame
    };
    let mut tagged = good(100);
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    let frames = [
        changed(&|frame| frame[20] = 0x20),
        tagged,
        ipv6,
        changed(&|frame| frame[60] ^= 1),
        changed(&|frame| frame.truncate(120)),
        changed(&|frame| frame[5] ^= 4),
        changed(&|frame| frame[33] = 77),
        good(100),
        // Later fragments and other ports are nobody's.
        changed(&|frame| frame[21] = 9),
        changed(&|frame| frame[36] ^= 1),
    ];
    for frame in &frames {
        raw.send(frame).unwrap();
    }
    raw.send(&good(50)).unwrap();
    let received = receive(&mut port, 2);
    assert_eq!(received.iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [100, 50]);
    assert_eq!(received[0].0.mac, there.mac);
    let counted = port.counters();
    let by_reason = [
        counted.rx_fragments,
        counted.rx_vlan,
        counted.rx_ipv6,
        counted.rx_bad_checksums,
        counted.rx_bad_frames,
    ];
    assert_eq!(by_reason, [1; 5], "{counted:?}");
    assert_eq!(counted.rx_wrong_destination, 2, "MAC and address");
}

/// Goal: a frame longer than the buffer is counted. Method: a train that crosses the link whole.
#[test]
fn trains_that_cross_whole_are_too_long() {
    let Some(pair) = link(Offloads::Whole) else { return };
    let mut port = bind(&pair.a, SMALL);
    let config = crate::UdpConfig { rx_buffers: 2, tx_chunks: 2, ..crate::UdpConfig::default() };
    let server = port.local_addr();
    let mut sender = pair.b.namespace.run(|| crate::UdpPort::connect(&[server], config)).unwrap();
    let to = Peer::datagram(port.local_addr());
    for _ in 0..10 {
        let slot = sender.split().1.begin(&to, 1_400).unwrap();
        slot.bytes.fill(1);
        sender.split().1.commit(1_400);
    }
    sender.tx_flush().unwrap();
    count_until(&mut port, |counters| counters.rx_truncated == 1);
    assert_eq!(port.counters().rx_datagrams, 0);
}

/// Goal: the stack neither processes nor answers what the ring took. Method: its own counters at the receiver, and a
/// connected sender, who would be told of a port unreachable. Without the program the socket that holds the port counts.
#[test]
fn the_stack_does_not_see_what_the_ring_took() {
    let Some(pair) = link(Offloads::Frames) else { return };
    for keep_from_stack in [true, false] {
        let mut port = bind(&pair.a, PacketConfig { keep_from_stack, ..SMALL });
        let told = "what it took is kept from the stack";
        assert_eq!(port.mode().contains(told), keep_from_stack, "{}", port.mode());
        let counts = || {
            let udp = ["InDatagrams", "NoPorts", "InErrors"].map(|name| snmp(&pair.a, "Udp", name));
            (udp, snmp(&pair.a, "Icmp", "OutMsgs"))
        };
        let before = counts();
        let kernel = kernel_socket(&pair.b);
        kernel.connect(port.local_addr()).unwrap();
        for _ in 0..10 {
            kernel.send(&payload(100)).unwrap();
        }
        assert_eq!(receive(&mut port, 10).len(), 10);
        assert!(kernel.take_error().unwrap().is_none());
        assert_eq!(before == counts(), keep_from_stack, "{:?}", counts());
        assert_eq!(snmp(&pair.a, "Icmp", "OutMsgs"), before.1, "no ICMP either way");
    }
}

/// Goal: ports of one process share a program, and each takes its own away. Method: of two ports one goes; then kernel
/// sockets in their places.
#[test]
fn each_port_keeps_only_its_own_from_the_stack() {
    let Some(pair) = link(Offloads::Frames) else { return };
    let (first, mut second) = (bind(&pair.a, SMALL), bind(&pair.a, SMALL));
    let addr = first.local_addr();
    let programs = |port: &PacketPort| port.kept_from_stack.as_ref().unwrap().program_id();
    assert_eq!(programs(&first), programs(&second));
    drop(first);
    let kernel = pair.a.namespace.run(|| UdpSocket::bind(addr)).unwrap();
    kernel.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = kernel_socket(&pair.b);
    sender.send_to(b"to the kernel", addr).unwrap();
    sender.send_to(b"to the ring", second.local_addr()).unwrap();
    assert_eq!(kernel.recv(&mut [0; 100]).unwrap(), 13);
    assert_eq!(receive(&mut second, 1)[0].1, b"to the ring");
    assert_eq!(second.counters().rx_datagrams, 1);
}

/// A child process of [`nothing_is_left_of_a_killed_process`]: holds a port until it is killed.
#[test]
fn child_that_holds_a_port() {
    let Ok(addr) = std::env::var("LINERATE_CHILD_ADDR") else { return };
    let port = PacketPort::bind(addr.parse().unwrap(), SMALL).unwrap();
    println!("\nholds {}: {}", port.local_addr(), port.mode());
    thread::sleep(PATIENCE);
}

/// Goal: a killed process leaves nothing behind. Method: a child holds a port, is killed, and the kernel has the port
/// again.
#[test]
fn nothing_is_left_of_a_killed_process() {
    let Some(pair) = link(Offloads::Frames) else { return };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "packet::tests::child_that_holds_a_port", "--nocapture"]);
    command.env("LINERATE_CHILD_ADDR", format!("{}:7077", pair.a.addr)).stdout(Stdio::piped());
    let mut child = pair.a.namespace.run(|| command.spawn()).unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.starts_with("holds ")).expect("the child's port");
    assert!(line.contains("kept from the stack"), "{line}");
    let addr: SocketAddr = (pair.a.addr, 7_077).into();
    let taken = pair.a.namespace.run(|| UdpSocket::bind(addr)).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    child.kill().unwrap();
    child.wait().unwrap();
    let kernel = pair.a.namespace.run(|| UdpSocket::bind(addr)).unwrap();
    kernel.set_nonblocking(true).unwrap();
    let sender = kernel_socket(&pair.b);
    let begun = Instant::now();
    // The kernel takes programs away in its own time.
    while kernel.recv(&mut [0; 100]).is_err() {
        assert!(begun.elapsed() < PATIENCE, "the program is still there");
        sender.send_to(b"free?", addr).unwrap();
        thread::sleep(Duration::from_millis(5));
    }
}

/// Goal: an interface that is down or gone is named, and nothing spins. Method: take it down, up and away under a port
/// that receives, sends and checks.
#[test]
fn an_interface_that_goes_away_is_named() {
    for config in [SMALL, PLAIN] {
        let Some(pair) = link(Offloads::Frames) else { return };
        let mut port = bind(&pair.a, config);
        let peer = Peer { mac: mac(&pair.b), ..Peer::datagram((pair.b.addr, 9).into()) };
        port.check().unwrap();
        for (arguments, reason) in [
            (["link", "set", "veth0", "down"].as_slice(), "is down"),
            (&["link", "del", "veth0"], "was removed"),
        ] {
            pair.a.namespace.command("ip", arguments).unwrap();
            let error = port.check().unwrap_err().to_string();
            assert!(error.contains("veth0") && error.contains(reason), "{error}");
            assert_eq!(port.rx_burst().unwrap(), 0);
            send(&mut port, &peer, 100);
            let error = port.tx_flush().unwrap_err().to_string();
            assert!(error.contains("veth0") && error.contains(reason), "{error}");
        }
    }
}

/// Goal: what finds no room in the ring is counted. Method: more datagrams than frames before the first burst.
#[test]
fn a_full_ring_is_counted() {
    let Some(pair) = link(Offloads::Frames) else { return };
    let mut port = bind(&pair.a, PacketConfig { rx_frames: 32, ..SMALL });
    let sender = kernel_socket(&pair.b);
    for _ in 0..100 {
        sender.send_to(&payload(200), port.local_addr()).unwrap();
    }
    count_until(&mut port, |counters| counters.rx_datagrams + counters.rx_overflow_drops == 100);
    assert_eq!((port.counters().rx_datagrams, port.counters().rx_overflow_drops), (32, 68));
    assert_eq!(port.rx_burst().unwrap(), 0, "gives back what it was lent");
    sender.send_to(&payload(300), port.local_addr()).unwrap();
    assert_eq!(receive(&mut port, 1)[0].1, payload(300));
    assert!(port.rx_queue_datagrams(1_472) <= 32);
}

/// Goal: what can not be sent is dropped and counted, and the rest is sent. Method: datagrams beyond the MTU, to IPv6 and
/// to a neighbour that is not known, between good ones.
#[test]
fn what_can_not_be_sent_is_dropped() {
    for config in [SMALL, PLAIN] {
        let Some(pair) = link(Offloads::Frames) else { return };
        let mut port = bind(&pair.a, config);
        let kernel = kernel_socket(&pair.b);
        let good = Peer { mac: mac(&pair.b), ..Peer::datagram(kernel.local_addr().unwrap()) };
        let unknown = Peer::datagram((Ipv4Addr::new(10, 77, 0, 99), 9).into());
        let ipv6 = Peer::datagram("[::1]:9".parse().unwrap());
        for round in 0..2_000 {
            send(&mut port, &good, 100);
            let long = port.split().1.begin(&good, 1_900).unwrap();
            long.bytes.fill(0);
            port.split().1.commit(1_473);
            send(&mut port, &unknown, 100);
            send(&mut port, &ipv6, 100);
            port.tx_flush().unwrap();
            let counters = port.counters();
            assert_eq!((counters.tx_datagrams, counters.tx_dropped), (round + 1, 3 * (round + 1)));
            assert_eq!(kernel.recv(&mut [0; 2_000]).unwrap(), 100);
        }
    }
}

/// Goal: a device that is behind costs datagrams and not the port. Method: a queue of very low rate, many times what it
/// holds; once it is gone all is sent again.
#[test]
fn a_device_that_is_behind_costs_datagrams() {
    let Some(pair) = link(Offloads::Frames) else { return };
    let mut port = bind(&pair.a, SMALL);
    let tc = |arguments: &[&str]| pair.a.namespace.command("tc", arguments).unwrap();
    let rate = ["rate", "100kbit", "burst", "3000", "limit", "6000"];
    tc(&[&["qdisc", "add", "dev", "veth0", "root", "tbf"][..], &rate].concat());
    let kernel = kernel_socket(&pair.b);
    let peer = Peer { mac: mac(&pair.b), ..Peer::datagram(kernel.local_addr().unwrap()) };
    for burst in 1..=20 {
        for _ in 0..400 {
            send(&mut port, &peer, 1_000);
        }
        port.tx_flush().unwrap();
        let counters = port.counters();
        assert_eq!(counters.tx_datagrams + counters.tx_dropped, burst * 400, "{counters:?}");
        assert!(port.split().1.free_chunks() >= TRAIN_FRAMES as usize / 2, "room for the next");
    }
    let counters = port.counters();
    assert!(counters.tx_dropped > 7_000, "{counters:?}");
    tc(&["qdisc", "del", "dev", "veth0", "root"]);
    send(&mut port, &peer, 500);
    port.tx_flush().unwrap();
    let mut bytes = [0; 2_000];
    while kernel.recv(&mut bytes).unwrap() != 500 {}
    assert_eq!(port.counters().tx_dropped, counters.tx_dropped);
}

/// Goal: what has become too long for the link is not handed to the kernel. Method: the MTU shrinks under a port.
#[test]
fn an_mtu_that_shrinks_is_seen() {
    let Some(pair) = link(Offloads::Frames) else { return };
    let mut port = bind(&pair.a, PLAIN);
    let socket = kernel_socket(&pair.b);
    socket.send_to(b"hello", port.local_addr()).unwrap();
    let begun = Instant::now();
    while port.rx_burst().unwrap() == 0 {
        assert!(begun.elapsed() < PATIENCE);
    }
    let peer = *port.split().0.datagram(0).peer;
    pair.a.namespace.command("ip", &["link", "set", "veth0", "mtu", "600"]).unwrap();
    port.check().unwrap();
    for len in [573, 572] {
        let outbox = port.split().1;
        outbox.begin(&peer, 1_000).unwrap().bytes[..len].fill(1);
        outbox.commit(len);
    }
    port.tx_flush().unwrap();
    assert_eq!((port.counters().tx_dropped, port.counters().tx_datagrams), (1, 1));
    assert_eq!(socket.recv(&mut [0; 1_000]).unwrap(), 572);
}

/// Goal: ports of one number at several addresses of an interface each hear what is sent to them. Method: two addresses,
/// two ports of one number and one of another, and a socket that speaks to all.
#[test]
fn addresses_of_one_interface_do_not_share_ports() {
    let Some(pair) = link(Offloads::Frames) else { return };
    pair.a.namespace.command("ip", &["addr", "add", "10.77.0.9/24", "dev", "veth0"]).unwrap();
    let second = Ipv4Addr::new(10, 77, 0, 9);
    let addrs = [(pair.a.addr, 4_100), (second, 4_100), (second, 4_101)].map(SocketAddr::from);
    let bind = |addr| pair.a.namespace.run(|| PacketPort::bind(addr, SMALL)).unwrap();
    let mut ports = addrs.map(bind);
    let socket = kernel_socket(&pair.b);
    for (port, addr) in ports.iter_mut().zip(addrs) {
        socket.send_to(b"hello", addr).unwrap();
        let begun = Instant::now();
        while port.rx_burst().unwrap() == 0 {
            assert!(begun.elapsed() < PATIENCE, "{addr}: {:?}", port.counters());
        }
    }
}

/// Goal: frames of other ports do not enter a ring. Method: two ports on one interface, each with its own datagrams, and
/// one for nobody.
#[test]
fn each_port_sees_its_own() {
    let Some(pair) = link(Offloads::Frames) else { return };
    let (mut first, mut second) = (bind(&pair.a, SMALL), bind(&pair.a, SMALL));
    let sender = kernel_socket(&pair.b);
    for _ in 0..100 {
        sender.send_to(b"first", first.local_addr()).unwrap();
        sender.send_to(b"nobody", (pair.a.addr, 9)).unwrap();
        sender.send_to(b"second", second.local_addr()).unwrap();
    }
    for (port, expected) in [(&mut first, &b"first"[..]), (&mut second, b"second")] {
        assert!(receive(port, 100).iter().all(|(_, bytes)| bytes == expected));
        assert_eq!(port.rx_burst().unwrap(), 0);
    }
}

/// Goal: ports that come and go leave the others what is theirs. Method: five ports on an interface, which go in an order
/// that moves others around in the kernel's table; after each change every port gets its own datagram and no other.
#[test]
fn ports_come_and_go() {
    let Some(pair) = link(Offloads::Frames) else { return };
    let sender = kernel_socket(&pair.b);
    let mut ports = Vec::new();
    let each_hears_its_own = |ports: &mut [PacketPort]| {
        for port in &mut *ports {
            let number = port.local_addr().port().to_be_bytes();
            sender.send_to(&number, port.local_addr()).unwrap();
            assert_eq!(receive(port, 1)[0].1, number);
        }
        for port in ports {
            assert_eq!(port.rx_burst().unwrap(), 0);
        }
    };
    for _ in 0..5 {
        ports.push(bind(&pair.a, SMALL));
        each_hears_its_own(&mut ports);
        assert_eq!(ports.iter().all(|port| port.rx.group() != 0), ports.len() > 1, "alone, or in a group");
    }
    for gone in [1, 0, 2] {
        drop(ports.remove(gone));
        each_hears_its_own(&mut ports);
    }
    ports.push(bind(&pair.a, SMALL));
    each_hears_its_own(&mut ports);
    ports.drain(1..);
    each_hears_its_own(&mut ports);
}

/// Goal: a sleeping thread is woken by a datagram, and not by one that it had. Method: wait in a thread with a channel.
#[test]
fn a_datagram_ends_the_wait() {
    let Some(pair) = link(Offloads::Frames) else { return };
    let mut port = bind(&pair.a, SMALL);
    let (addr, sender) = (port.local_addr(), kernel_socket(&pair.b));
    let (tell, told) = mpsc::channel();
    let waiter = thread::spawn(move || {
        for _ in 0..3 {
            while port.rx_burst().unwrap() == 0 {
                crate::wait::wait(&[port.wait_fd().unwrap()], PATIENCE).unwrap();
            }
            tell.send(port.split().0.count()).unwrap();
        }
    });
    for _ in 0..3 {
        sender.send_to(b"wake up", addr).unwrap();
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), 1);
    }
    waiter.join().unwrap();
}

/// Goal: whoever lacks something reads what. Method: a thread without capabilities, and addresses that will not do.
#[test]
fn refusals_are_sentences() {
    let refused = thread::spawn(|| {
        privilege::drop_all().unwrap();
        PacketPort::bind((Ipv4Addr::LOCALHOST, 0).into(), SMALL).unwrap_err()
    });
    let refused = refused.join().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    let text = refused.to_string();
    assert!(text.starts_with("AF_PACKET on lo needs CAP_NET_RAW: "), "{text}");
    for (addr, what) in [("[::1]:0", "is IPv6"), ("0.0.0.0:0", "one interface"), ("192.0.2.1:0", "192.0.2.1")]
    {
        let error = PacketPort::bind(addr.parse().unwrap(), SMALL).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    assert!(PacketPort::connect(&[], SMALL).unwrap_err().to_string().contains("no server address"));
    let Some(pair) = link(Offloads::Frames) else { return };
    pair.a.namespace.run(|| {
        let own = PacketPort::connect(&[(pair.a.addr, 9).into()], SMALL).unwrap_err().to_string();
        assert!(own.contains("10.77.0.1"), "{own}");
        let silent = PacketPort::connect(&[(Ipv4Addr::new(10, 77, 0, 99), 9).into()], SMALL).unwrap_err();
        assert!(silent.to_string().contains("10.77.0.99"), "{silent}");
    });
}

#[test]
fn kernel_versions_are_compared_by_number() {
    assert!(is_kernel([2, 6]) && is_kernel([3, 0]));
    assert!(!is_kernel([99, 0]));
}
