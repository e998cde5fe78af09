//! XDP ports on virtual links between network namespaces of the test's own: against the kernel's sockets, against each
//! other, and against what a network can do to them.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use linerate_dataplane::{
    Peer, Port, PortCounters, XdpConfig, XdpPort,
    netns::{Namespace, Offloads, Pair, PairConfig},
    privilege, wait, xdp,
};

/// A time that no passing test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Set for the process that the SIGKILL test starts: the address to open a port at.
const VICTIM: &str = "LINERATE_XDP_VICTIM";

const SMALL: XdpConfig =
    XdpConfig { rx_frames: 512, rx_waiting: 512, tx_frames: 1_024, attach: xdp::Attach::Fastest };

/// A link between two namespaces, or a line that says why there is none.
#[track_caller]
fn link(config: PairConfig) -> Option<Pair> {
    if !Namespace::is_available() {
        return None;
    }
    let [a, b] = [(); 2].map(|()| Namespace::new().unwrap());
    Some(Pair::new(&a, &b, config).unwrap())
}

/// A server's ports at the link's first end.
fn serve(pair: &Pair, ports: &[u16]) -> io::Result<Vec<XdpPort>> {
    let addrs: Vec<SocketAddr> = ports.iter().map(|&port| (pair.a.addr, port).into()).collect();
    pair.a.namespace.run(|| xdp::open(&addrs, SMALL))
}

fn server(pair: &Pair) -> XdpPort {
    serve(pair, &[4_100]).unwrap().remove(0)
}

/// A client's port at the link's second end.
fn client(pair: &Pair, server: SocketAddr) -> XdpPort {
    pair.b.namespace.run(|| xdp::connect(&[server], 1, SMALL)).unwrap().remove(0)
}

/// A socket of the kernel at the link's second end.
fn kernel_socket(pair: &Pair) -> UdpSocket {
    let socket = pair.b.namespace.run(|| UdpSocket::bind((pair.b.addr, 0))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + len) as u8).collect()
}

/// Polls until `count` datagrams are here or none has come for a while, and hands each to `each`.
fn receive(port: &mut XdpPort, count: usize, mut each: impl FnMut(&Peer, &[u8])) -> usize {
    let mut received = 0;
    let mut last = Instant::now();
    while received < count && last.elapsed() < PATIENCE {
        let burst = port.rx_burst().unwrap();
        if burst > 0 {
            last = Instant::now();
            port.split().0.iter().for_each(|datagram| each(datagram.peer, datagram.bytes));
            received += burst;
        } else {
            thread::yield_now();
        }
    }
    received
}

fn send(port: &mut XdpPort, to: &Peer, bytes: &[u8]) {
    let slot = port.split().1.begin(to, 1_472).unwrap();
    slot.bytes[..bytes.len()].copy_from_slice(bytes);
    port.split().1.commit(bytes.len());
}

/// Goal: datagrams of every length cross both ways with checksums that the kernel accepts, also where the kernel leaves
/// its own unfinished. Method: a socket of the kernel sends each length, the port sends it back.
#[test]
fn every_length_there_and_back_to_a_kernel_socket() {
    for offloads in [Offloads::Frames, Offloads::Whole] {
        let Some(pair) = link(PairConfig { offloads, ..PairConfig::default() }) else { return };
        let mut port = server(&pair);
        assert_eq!(port.mode(), "AF_XDP on veth0 queue 0, generic mode, copy, need_wakeup");
        let socket = kernel_socket(&pair);
        let mut buffer = [0; 2_048];
        for len in 0..=1_472 {
            socket.send_to(&payload(len), port.local_addr()).unwrap();
            let mut from = None;
            let received = receive(&mut port, 1, |peer, bytes| {
                assert_eq!(bytes, payload(len));
                from = Some(*peer);
            });
            assert_eq!(received, 1, "{len} bytes");
            let from = from.unwrap();
            assert_eq!(from.addr, socket.local_addr().unwrap());
            // A port sends no datagrams without payload.
            let answer = payload(len.max(1));
            send(&mut port, &from, &answer);
            port.tx_flush().unwrap();
            let (got, sender) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..got], sender), (&answer[..], port.local_addr()));
        }
        port.check().unwrap();
        let counters = port.counters();
        assert_eq!((counters.rx_datagrams, counters.tx_datagrams), (1_473, 1_473));
        let clean = PortCounters {
            rx_datagrams: 1_473,
            rx_trains: 1_473,
            rx_bytes: counters.rx_bytes,
            tx_datagrams: 1_473,
            tx_trains: 1_473,
            tx_bytes: counters.tx_bytes,
            ..PortCounters::default()
        };
        assert_eq!(counters, clean, "nothing was lost or refused");
    }
}

/// Goal: two ports speak to each other, and a sleeping one wakes up. Method: every length both ways in bursts, each side
/// waiting for its descriptor.
#[test]
fn every_length_between_two_ports() {
    let Some(pair) = link(PairConfig::default()) else { return };
    let mut server = server(&pair);
    let mut client = client(&pair, server.local_addr());
    assert!(client.reach(&[server.local_addr()]).unwrap());
    let to = Peer::datagram(server.local_addr());
    let lens: Vec<usize> = (1..=1_472).collect();
    for burst in lens.chunks(100) {
        burst.iter().for_each(|&len| send(&mut client, &to, &payload(len)));
        client.tx_flush().unwrap();
        wait::wait(&[server.wait_fd().unwrap()], PATIENCE).unwrap();
        let mut answers = Vec::new();
        receive(&mut server, burst.len(), |peer, bytes| answers.push((*peer, bytes.to_vec())));
        answers.iter().for_each(|(peer, bytes)| send(&mut server, peer, bytes));
        server.tx_flush().unwrap();
        wait::wait(&[client.wait_fd().unwrap()], PATIENCE).unwrap();
        let mut back = Vec::new();
        receive(&mut client, burst.len(), |_, bytes| back.push(bytes.to_vec()));
        assert_eq!(back, burst.iter().map(|&len| payload(len)).collect::<Vec<_>>());
    }
}

/// Goal: who asks for the loopback learns at once that answers would not arrive there.
#[test]
fn the_loopback_is_refused() {
    let Some(pair) = link(PairConfig::default()) else { return };
    let local = "127.0.0.1:4100".parse().unwrap();
    let error = pair.a.namespace.run(|| xdp::open(&[local], SMALL)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("use the udp transport"), "{error}");
}

/// Raw frames in and out of one end of a link.
struct Wire {
    socket: socket2::Socket,
    interface_index: i32,
}

impl Wire {
    fn open(end: &linerate_dataplane::netns::End) -> Self {
        end.namespace.run(|| {
            let all = i32::from((libc::ETH_P_ALL as u16).to_be());
            let kind = socket2::Type::RAW;
            let socket = socket2::Socket::new(socket2::Domain::PACKET, kind, Some(all.into())).unwrap();
            socket.set_nonblocking(true).unwrap();
            let interface_index = nix::net::if_::if_nametoindex(end.interface.as_str()).unwrap() as i32;
            Self { socket, interface_index }
        })
    }

    fn send(&self, frame: &[u8]) {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: self.interface_index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0; 8],
        };
        // SAFETY: frame and address are as long as said and outlive the call.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    /// All frames that wait.
    fn receive(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = [0; 65_536];
        while let Ok(len) = (&self.socket).read(&mut buffer) {
            frames.push(buffer[..len].to_vec());
        }
        frames
    }
}

fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = start + words.sum::<u32>();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Goal: each kind of bad input is counted under its reason, what the program leaves alone reaches the kernel, and good
/// datagrams go on arriving. Method: frames by hand through a raw socket, each wrong in one way, with a tap behind the
/// program.
#[test]
fn bad_input_is_counted_by_reason() {
    let Some(pair) = link(PairConfig::default()) else { return };
    let mut port = server(&pair);
    let (wire, tap) = (Wire::open(&pair.b), Wire::open(&pair.a));
    // A good frame, as the kernel makes it.
    kernel_socket(&pair).send_to(b"good", port.local_addr()).unwrap();
    let good = wire.receive().into_iter().rfind(|frame| frame.ends_with(b"good")).unwrap();
    assert_eq!(receive(&mut port, 1, |_, _| {}), 1);
    tap.receive();
    let ip_again = |mut frame: Vec<u8>| {
        frame[24..26].fill(0);
        let header = sum(&frame[14..34], 0);
        frame[24..26].copy_from_slice(&header.to_be_bytes());
        frame
    };
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let long = {
        // 1,794 bytes of Ethernet frame: two more than fit behind the kernel's headroom.
        let mut frame = good.clone();
        frame.resize(1_794, 7);
        frame[16..18].copy_from_slice(&1_780_u16.to_be_bytes());
        frame[38..42].copy_from_slice(&[(1_760_u16 >> 8) as u8, 1_760_u16 as u8, 0, 0]);
        ip_again(frame)
    };
    let tagged = [&good[..12], &[0x81, 0, 0, 5], &good[12..]].concat();
    let ipv6 = {
        let mut frame = [&good[..12], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 12, 17, 64]].concat();
        frame.extend([0xfe; 32]);
        frame.extend(&good[34..]);
        frame
    };
    type Count = fn(&PortCounters) -> u64;
    let cases: [(&str, Vec<u8>, bool, Count); 12] = [
        ("first fragment", ip_again(with(20, &[0x20, 0])), true, |c| c.rx_fragments),
        ("last fragment", ip_again(with(20, &[0, 5])), true, |c| c.rx_fragments),
        ("VLAN", tagged, true, |c| c.rx_vlan),
        ("IPv6", ipv6, true, |c| c.rx_ipv6),
        ("another MAC address", with(5, &[good[5] ^ 1]), true, |c| c.rx_wrong_destination),
        ("another IP address", ip_again(with(33, &[77])), true, |c| c.rx_wrong_destination),
        ("larger than the buffer", long, true, |c| c.rx_truncated),
        ("cut in the IP header", good[..30].to_vec(), true, |c| c.rx_bad_frames),
        ("cut in the UDP header", good[..40].to_vec(), true, |c| c.rx_bad_frames),
        ("cut in the payload", good[..44].to_vec(), false, |c| c.rx_bad_frames),
        ("wrong UDP checksum", with(45, b"D"), false, |c| c.rx_bad_checksums),
        ("wrong IP checksum", with(22, &[63]), false, |c| c.rx_bad_checksums),
    ];
    for end in [&pair.a, &pair.b] {
        end.namespace.command("ip", &["link", "set", &end.interface, "mtu", "1800"]).unwrap();
    }
    for (what, frame, is_passed, count) in cases {
        let before = port.counters();
        wire.send(&frame);
        wire.send(&good);
        assert_eq!(receive(&mut port, 1, |_, bytes| assert_eq!(bytes, b"good")), 1, "after: {what}");
        let counted = port.counters().minus(before);
        assert_eq!((count(&counted), counted.rx_datagrams), (1, 1), "{what}: {counted:?}");
        let kinds = [
            counted.rx_fragments,
            counted.rx_vlan,
            counted.rx_ipv6,
            counted.rx_wrong_destination,
            counted.rx_truncated,
            counted.rx_bad_frames,
            counted.rx_bad_checksums,
        ];
        assert_eq!(kinds.iter().sum::<u64>(), 1, "{what}: counted once: {counted:?}");
        let seen = tap.receive();
        let tail = &frame[frame.len() - 4..];
        // A tap shows a VLAN tag apart from the frame.
        let reached = seen.iter().any(|seen| seen.ends_with(tail) && seen[..6] == frame[..6]);
        assert_eq!(reached, is_passed, "{what}: {seen:02x?}");
    }
}

/// Tells threads to stop when it is dropped: also when an assertion fails, so that they end.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Goal: what is not ours goes its way while the port works. Method: ping and a TCP connection across the same interface,
/// and datagrams to another port, while datagrams are echoed.
#[test]
fn the_kernels_own_traffic_goes_on() {
    let Some(pair) = link(PairConfig::default()) else { return };
    let mut port = server(&pair);
    let addr = port.local_addr();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let mut echoes = Vec::new();
                if port.rx_burst().unwrap() == 0 {
                    wait::wait(&[port.wait_fd().unwrap()], Duration::from_millis(5)).unwrap();
                }
                port.split()
                    .0
                    .iter()
                    .for_each(|datagram| echoes.push((*datagram.peer, datagram.bytes.to_vec())));
                echoes.iter().for_each(|(peer, bytes)| send(&mut port, peer, bytes));
                port.tx_flush().unwrap();
            }
        });
        let _stopping = Stop(&stop);
        let socket = kernel_socket(&pair);
        let echo = |round: usize| {
            socket.send_to(&payload(round + 1), addr).unwrap();
            let mut buffer = [0; 2_048];
            let len = socket.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..len], payload(round + 1));
        };
        let host = pair.a.addr.to_string();
        match Command::new("ping").arg("-V").output() {
            Ok(_) => {
                let said =
                    pair.b.namespace.command("ping", &["-c", "3", "-i", "0.05", "-W", "5", &host]).unwrap();
                assert!(said.contains("3 received"), "{said}");
            }
            Err(error) => writeln!(io::stderr(), "not run: ping: {error}").expect("standard error"),
        }
        echo(0);
        let listener = pair.a.namespace.run(|| TcpListener::bind((pair.a.addr, 0))).unwrap();
        let mut sender = pair.b.namespace.run(|| TcpStream::connect(listener.local_addr().unwrap())).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        let reading = scope.spawn(move || {
            let mut all = Vec::new();
            receiver.read_to_end(&mut all).unwrap();
            all
        });
        for round in 0..100 {
            sender.write_all(&[round as u8; 10_000]).unwrap();
            echo(round);
        }
        drop(sender);
        let all = reading.join().unwrap();
        assert!(all.chunks(10_000).enumerate().all(|(round, chunk)| chunk == [round as u8; 10_000]));
        assert_eq!(all.len(), 1_000_000);
        let other = pair.a.namespace.run(|| UdpSocket::bind((pair.a.addr, 4_101))).unwrap();
        socket.send_to(b"not for the port", other.local_addr().unwrap()).unwrap();
        assert_eq!(other.recv(&mut [0; 100]).unwrap(), 16);
    });
}

fn shows_program(pair: &Pair) -> bool {
    let shown = pair.a.namespace.command("ip", &["link", "show", "dev", &pair.a.interface]).unwrap();
    shown.contains("xdp")
}

/// Goal: the program goes with the port. Method: what ip(8) shows before, meanwhile and after.
#[test]
fn a_closed_port_leaves_no_program() {
    let Some(pair) = link(PairConfig::default()) else { return };
    assert!(!shows_program(&pair));
    let mut ports = serve(&pair, &[4_100]).unwrap();
    assert!(shows_program(&pair));
    ports.clear();
    eventually(|| if shows_program(&pair) { Err("a program is left".into()) } else { Ok(()) });
    eventually(|| serve(&pair, &[4_100]).map(drop).map_err(|error| error.to_string()));
}

/// Tries until it succeeds. What a port held is closed with it, but programs that other tests start at the same time have
/// a copy of each descriptor until they are executed.
#[track_caller]
fn eventually(mut attempt: impl FnMut() -> Result<(), String>) {
    let begun = Instant::now();
    while let Err(reason) = attempt() {
        assert!(begun.elapsed() < PATIENCE, "{reason}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The process that the next test kills: opens a port and waits for its end.
#[test]
fn victim() {
    let Ok(addr) = std::env::var(VICTIM) else { return };
    let _ports = xdp::open(&[addr.parse().unwrap()], SMALL).unwrap();
    println!("\nopen");
    thread::sleep(Duration::from_secs(600));
}

/// Goal: a killed process leaves nothing. Method: a process of this very program opens a port and gets SIGKILL; then its
/// program is gone and the same port can be opened.
#[test]
fn a_killed_process_leaves_no_program() {
    let Some(pair) = link(PairConfig::default()) else { return };
    let addr = SocketAddr::from((pair.a.addr, 4_100));
    let mut child = pair.a.namespace.run(|| {
        let program = std::env::current_exe().unwrap();
        let arguments = ["--exact", "victim", "--nocapture", "--test-threads", "1"];
        let mut command = Command::new(program);
        command.args(arguments).env(VICTIM, addr.to_string()).stdout(Stdio::piped()).spawn().unwrap()
    });
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let opened = lines.map_while(Result::ok).any(|line| line == "open");
    assert!(opened, "{:?}", child.wait());
    assert!(shows_program(&pair));
    child.kill().unwrap();
    child.wait().unwrap();
    eventually(|| if shows_program(&pair) { Err("a program is left".into()) } else { Ok(()) });
    eventually(|| serve(&pair, &[4_100]).map(drop).map_err(|error| error.to_string()));
}

/// Goal: who opens what is taken is told by whom and what to do. Method: a second port on the same interface; a port
/// number that a socket of the kernel has.
#[test]
fn what_is_taken_is_named() {
    let Some(pair) = link(PairConfig::default()) else { return };
    let held = pair.a.namespace.run(|| UdpSocket::bind((pair.a.addr, 4_102))).unwrap();
    let error = serve(&pair, &[4_102]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&held.local_addr().unwrap().to_string()), "{error}");
    let _port = server(&pair);
    let error = serve(&pair, &[4_101]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    assert!(error.to_string().contains("ip link set dev veth0 xdp off"), "{error}");
}

#[test]
fn fewer_queues_than_cores_are_an_error_with_the_remedy() {
    let Some(pair) = link(PairConfig::default()) else { return };
    let error = serve(&pair, &[4_100, 4_101, 4_102]).unwrap_err().to_string();
    assert!(
        error.contains("3 cores or threads need as many receive queues and veth0 has 1: `ethtool -L veth0 "),
        "{error}"
    );
}

#[test]
fn a_missing_capability_is_named() {
    let Some(pair) = link(PairConfig::default()) else { return };
    let error = pair.a.namespace.run(|| {
        privilege::drop_all().unwrap();
        xdp::open(&[(pair.a.addr, 4_100).into()], SMALL).unwrap_err()
    });
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    let error = error.to_string();
    assert!(error.contains("AF_XDP on veth0 needs CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF"), "{error}");
    assert!(error.contains("sudo setcap"), "{error}");
}

/// Goal: an interface that goes down or away ends the port with its name. Method: take it down, bring it up, remove it.
#[test]
fn an_interface_that_goes_is_named() {
    for (gone, expected) in [
        (&["link", "set", "veth0", "down"][..], "interface veth0 is down"),
        (&["link", "delete", "veth0"][..], "interface veth0 was removed"),
    ] {
        let Some(pair) = link(PairConfig::default()) else { return };
        let mut port = server(&pair);
        port.check().unwrap();
        let socket = kernel_socket(&pair);
        socket.send_to(b"hello", port.local_addr()).unwrap();
        let mut from = None;
        receive(&mut port, 1, |peer, _| from = Some(*peer));
        pair.a.namespace.command("ip", gone).unwrap();
        let error = port.check().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        send(&mut port, &from.unwrap(), b"too late");
        let error = port.tx_flush().unwrap_err().to_string();
        assert!(error.contains("veth0"), "{error}");
    }
}

/// Goal: a datagram reaches the port that it is for, whatever queue it came in at, and its frame comes back. Method: a
/// link with two queues that spreads by source port; from many sockets many more datagrams than there are frames to both
/// ports of a server, each echoed by a thread of its own that sleeps when idle.
#[test]
fn datagrams_at_the_wrong_queue_are_handed_over() {
    const SOCKETS: usize = 32;
    const ROUNDS: usize = 100;
    let Some(pair) = link(PairConfig { queues: 2, ..PairConfig::default() }) else { return };
    let ports = serve(&pair, &[4_100, 4_101]).unwrap();
    assert!(ports[1].mode().contains("queue 1"), "{}", ports[1].mode());
    assert!(ports[0].warning().unwrap().starts_with("veth0 can not be told which port is for which core"));
    let addrs: Vec<_> = ports.iter().map(XdpPort::local_addr).collect();
    let stop = AtomicBool::new(false);
    let sockets: Vec<_> = (0..SOCKETS).map(|_| kernel_socket(&pair)).collect();
    let counters: Vec<PortCounters> = thread::scope(|scope| {
        let stop = &stop;
        let threads: Vec<_> = ports
            .into_iter()
            .map(|mut port| {
                scope.spawn(move || {
                    while !stop.load(Relaxed) {
                        if port.rx_burst().unwrap() == 0 {
                            // Long: a lost wake-up shows.
                            wait::wait(&[port.wait_fd().unwrap()], Duration::from_secs(1)).unwrap();
                            continue;
                        }
                        let mut echoes = Vec::new();
                        port.split().0.iter().for_each(|datagram| {
                            echoes.push((*datagram.peer, datagram.bytes.to_vec()));
                        });
                        echoes.iter().for_each(|(peer, bytes)| send(&mut port, peer, bytes));
                        port.tx_flush().unwrap();
                    }
                    port.check().unwrap();
                    port.counters()
                })
            })
            .collect();
        let stopping = Stop(stop);
        for round in 0..ROUNDS {
            for (index, socket) in sockets.iter().enumerate() {
                socket.send_to(&payload(round + 2 * index + 1), addrs[index % 2]).unwrap();
                socket.send_to(&payload(round + 2 * index + 2), addrs[(index + 1) % 2]).unwrap();
            }
            for (index, socket) in sockets.iter().enumerate() {
                let mut buffer = [0; 2_048];
                let mut seen: Vec<_> = (0..2)
                    .map(|_| {
                        let (len, from) = socket.recv_from(&mut buffer).unwrap();
                        (buffer[..len].to_vec(), from)
                    })
                    .collect();
                seen.sort_by_key(|(bytes, _)| bytes.len());
                let first = (payload(round + 2 * index + 1), addrs[index % 2]);
                let second = (payload(round + 2 * index + 2), addrs[(index + 1) % 2]);
                assert_eq!(seen, [first, second]);
            }
        }
        drop(stopping);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let all = counters[0].plus(counters[1]);
    assert_eq!(all.rx_datagrams as usize, 2 * SOCKETS * ROUNDS);
    // Which of the two gets the other's depends on the processor that sends.
    assert!(all.rx_handed_over > 1_000, "{counters:?}");
    assert_eq!((all.rx_handover_drops, all.rx_overflow_drops, all.tx_dropped), (0, 0, 0));
}

/// Goal: datagrams for a port that nobody polls leave the others their frames. Method: of two ports only one is polled;
/// many more datagrams than a queue has frames go to the other, then some to the first.
#[test]
fn a_port_that_is_not_polled_does_not_stop_the_other() {
    let Some(pair) = link(PairConfig { queues: 2, ..PairConfig::default() }) else { return };
    let mut ports = serve(&pair, &[4_100, 4_101]).unwrap();
    let (sleeper, mut port) = (ports.pop().unwrap(), ports.pop().unwrap());
    let sockets: Vec<_> = (0..32).map(|_| kernel_socket(&pair)).collect();
    let mut send_all = |to: SocketAddr, rounds| {
        for _ in 0..rounds {
            sockets.iter().for_each(|socket| assert_eq!(socket.send_to(b"hello", to).unwrap(), 5));
            port.rx_burst().unwrap();
        }
        port.counters()
    };
    let flooded = send_all(sleeper.local_addr(), 4 * 512 / 16);
    assert!(flooded.rx_handover_drops > 0, "more came in at the first queue than it may spare: {flooded:?}");
    let after = send_all((pair.a.addr, 4_100).into(), 10);
    assert!(after.rx_datagrams > 0, "{after:?}");
}

/// Goal: a port that is gone takes nobody's frames with it, and what is for it is counted. Method: of two ports one is
/// dropped; datagrams to it come in at the other's queue.
#[test]
fn a_port_that_is_gone_does_not_stop_the_other() {
    let Some(pair) = link(PairConfig { queues: 2, ..PairConfig::default() }) else { return };
    let mut ports = serve(&pair, &[4_100, 4_101]).unwrap();
    let gone = ports.pop().unwrap();
    let mut port = ports.pop().unwrap();
    let to_gone = gone.local_addr();
    let sockets: Vec<_> = (0..32).map(|_| kernel_socket(&pair)).collect();
    // Left in the mailbox of the one that goes.
    for socket in &sockets {
        socket.send_to(b"left", to_gone).unwrap();
    }
    receive(&mut port, 0, |_, _| {});
    port.rx_burst().unwrap();
    drop(gone);
    let mut expected = 0;
    for _ in 0..100 {
        for socket in &sockets {
            // The kernel says that nobody listens there any more; that is no concern of the other port.
            let _ = socket.send_to(b"nobody", to_gone);
            while socket.send_to(b"somebody", port.local_addr()).is_err() {}
            expected += 1;
        }
        // The queue of the port that is gone has no socket: what comes in there goes to the kernel.
        port.rx_burst().unwrap();
    }
    let counters = port.counters();
    assert!(counters.rx_datagrams > 0 && counters.rx_datagrams <= expected, "{counters:?}");
    port.check().unwrap();
    assert_eq!(port.counters().rx_overflow_drops, 0, "every frame came back");
}
