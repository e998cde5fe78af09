//! The TCP port through real loopback sockets. Deadlines only turn a hang into a failure; nothing depends on speed.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use linerate_dataplane::{
    Peer, Port, PortCounters,
    tcp::{TcpConfig, TcpPort},
    wait::wait,
};
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

/// Far more than any step here takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waiting so long means that the wake-up did not come.
const FOREVER: Duration = Duration::from_secs(2 * DEADLINE.as_secs());

/// Repeats `step` until it returns true, which must be before the deadline.
fn until(goal: &str, mut step: impl FnMut() -> bool) {
    let start = Instant::now();
    let mut reached = false;
    while !reached {
        reached = step();
        assert!(start.elapsed() < DEADLINE, "not reached: {goal}");
    }
}

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn listen(config: TcpConfig) -> TcpPort {
    TcpPort::listen(any_port(), config).unwrap()
}

fn connect_raw(port: &TcpPort) -> TcpStream {
    let stream = TcpStream::connect(port.local_addr()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn frame(datagram: &[u8]) -> Vec<u8> {
    [&(datagram.len() as u16).to_be_bytes()[..], datagram].concat()
}

/// Writes one datagram into the outbox; false when it is full.
fn put(port: &mut TcpPort, peer: &Peer, datagram: &[u8]) -> bool {
    let (_, outbox) = port.split();
    let Some(slot) = outbox.begin(peer, datagram.len()) else { return false };
    slot.bytes.copy_from_slice(datagram);
    outbox.commit(datagram.len());
    true
}

/// One burst, answered with its own datagrams.
fn echo(port: &mut TcpPort) {
    port.rx_burst().unwrap();
    let (received, outbox) = port.split();
    for datagram in received.iter() {
        let slot =
            outbox.begin(datagram.peer, datagram.bytes.len()).expect("room for the answers to one burst");
        slot.bytes.copy_from_slice(datagram.bytes);
        outbox.commit(datagram.bytes.len());
    }
    port.tx_flush().unwrap();
}

/// Bursts until something has arrived; the datagrams of that burst with their senders.
fn receive(port: &mut TcpPort) -> Vec<(Peer, Vec<u8>)> {
    until("a datagram", || port.rx_burst().unwrap() > 0);
    port.split().0.iter().map(|datagram| (*datagram.peer, datagram.bytes.to_vec())).collect()
}

/// Sends one frame over `stream` and waits for its echo.
fn assert_echoes(port: &mut TcpPort, stream: &mut TcpStream, datagram: &[u8]) {
    stream.write_all(&frame(datagram)).unwrap();
    let before = port.counters().rx_datagrams;
    until("the datagram to echo", || {
        echo(port);
        port.counters().rx_datagrams > before
    });
    let mut answer = vec![0; datagram.len() + 2];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, frame(datagram));
}

/// Datagram number `sequence`: its length and its bytes follow from the seed.
fn datagram(seed: u64, sequence: u64, len_max: usize) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(seed ^ sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bytes = vec![0; rng.random_range(8..=len_max)];
    rng.fill_bytes(&mut bytes);
    bytes[..8].copy_from_slice(&sequence.to_be_bytes());
    bytes
}

/// Goal: what goes in comes out, once, in order and unchanged, in both directions and over several connections, and
/// the counters are exact. Method: a client port sends numbered pseudo-random datagrams of 8 to 1,472 bytes to two
/// servers that echo them, with a window that never lets anything be dropped.
#[test]
fn datagrams_of_all_sizes_are_echoed_in_order() {
    const COUNT: u64 = 20_000;
    const WINDOW: u64 = 500;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut servers = [listen(TcpConfig::default()), listen(TcpConfig::default())];
    let addrs = [servers[0].local_addr(), servers[1].local_addr()];
    let mut client = TcpPort::connect(&[addrs[0], addrs[1], addrs[0]], TcpConfig::default()).unwrap();
    until("both connections are up", || {
        client.rx_burst().unwrap();
        client.counters().connections_opened == 2
    });

    let (mut sent, mut received) = ([0; 2], [0; 2]);
    let mut bytes = 0;
    until("every echo", || {
        for to in 0..2 {
            while sent[to] < COUNT && sent[to] - received[to] < WINDOW {
                let datagram = datagram(seed, sent[to], 1_472);
                bytes += datagram.len() as u64;
                assert!(put(&mut client, &Peer::datagram(addrs[to]), &datagram));
                sent[to] += 1;
            }
        }
        client.tx_flush().unwrap();
        servers.iter_mut().for_each(echo);
        client.rx_burst().unwrap();
        for echoed in client.split().0.iter() {
            let from = usize::from(echoed.peer.addr == addrs[1]);
            assert!(echoed.peer.is_stream());
            assert_eq!(echoed.bytes, datagram(seed, received[from], 1_472));
            received[from] += 1;
        }
        received == [COUNT; 2]
    });

    let served = servers[0].counters().plus(servers[1].counters());
    for counters in [client.counters(), served] {
        assert_eq!((counters.rx_datagrams, counters.tx_datagrams), (2 * COUNT, 2 * COUNT));
        assert_eq!((counters.rx_bytes, counters.tx_bytes), (bytes, bytes));
        assert_eq!((counters.tx_dropped, counters.soft_errors, counters.connections_opened), (0, 0, 2));
    }
}

/// Goal: a frame may be cut anywhere. Method: a plain stream sends three frames byte by byte, and each byte is read
/// by itself before the next is sent.
#[test]
fn frames_cut_at_every_byte_are_put_together() {
    let mut port = listen(TcpConfig::default());
    let mut stream = connect_raw(&port);
    let datagrams = [vec![1], (0..300).map(|byte| byte as u8).collect::<Vec<_>>(), vec![2; 2]];
    let mut arrived = Vec::new();
    for byte in datagrams.iter().flat_map(|datagram| frame(datagram)) {
        let reads = port.counters().rx_trains;
        stream.write_all(&[byte]).unwrap();
        until("one more read", || {
            port.rx_burst().unwrap();
            port.counters().rx_trains > reads
        });
        arrived.extend(port.split().0.iter().map(|datagram| datagram.bytes.to_vec()));
    }
    assert_eq!(arrived, datagrams);
}

/// Goal: a peer that breaks the framing loses its connection and nobody else's; what it sent before still counts.
/// Method: a good frame and then a bad length, beside a connection that goes on.
#[test]
fn an_empty_or_too_long_frame_closes_only_its_connection() {
    let mut port = listen(TcpConfig { datagram_len_max: 100, ..TcpConfig::default() });
    let mut good = connect_raw(&port);
    assert_echoes(&mut port, &mut good, &[7; 100]);
    for (index, bad_len) in [0_u16, 101, u16::MAX].into_iter().enumerate() {
        let mut bad = connect_raw(&port);
        bad.write_all(&[frame(b"fine"), bad_len.to_be_bytes().to_vec()].concat()).unwrap();
        assert_eq!(receive(&mut port)[0].1, b"fine");
        until("the close", || {
            port.rx_burst().unwrap();
            port.counters().connections_dropped == index as u64 + 1
        });
        assert_eq!(bad.read(&mut [0; 8]).unwrap_or(0), 0, "closed or reset");
        assert_echoes(&mut port, &mut good, &[8; 99]);
    }
    assert_eq!(port.counters().connections_opened, 4);
}

/// Goal: a reader that takes nothing costs bounded memory, is not read from, and does not disturb others; a waiting
/// server wakes when it reads again, and every datagram is accounted for. Method: far more answers than sockets hold
/// go to a plain stream that is not read, then a thread reads it to the end.
#[test]
fn a_slow_reader_is_held_back_and_others_are_served() {
    const DATAGRAM: [u8; 1_000] = [3; 1_000];
    let config = TcpConfig { tx_chunks: 32, tx_chunks_per_connection: 8, ..TcpConfig::default() };
    let mut port = listen(config);
    let mut slow = connect_raw(&port);
    slow.write_all(&frame(b"hello")).unwrap();
    let slow_peer = receive(&mut port)[0].0;
    let mut other = connect_raw(&port);

    let mut committed: u64 = 0;
    until("a thousand dropped datagrams", || {
        for _ in 0..200 {
            committed += u64::from(put(&mut port, &slow_peer, &DATAGRAM));
        }
        port.tx_flush().unwrap();
        let held = config.tx_chunks - port.split().1.free_chunks();
        assert!(held <= config.tx_chunks_per_connection, "{held} chunks queued");
        port.counters().tx_dropped >= 1_000
    });
    let read_before = port.counters().rx_datagrams;
    slow.write_all(&frame(b"not read before the answers are")).unwrap();
    for size in 1..100 {
        assert_echoes(&mut port, &mut other, &vec![size; usize::from(size)]);
        committed += 1;
    }
    assert_eq!(port.counters().rx_datagrams, read_before + 99, "nothing was read from the slow reader");

    let expected_len = {
        // What neither went out nor was dropped is still queued, and arrives.
        let counters = port.counters();
        (committed - 99 - counters.tx_dropped) * (DATAGRAM.len() as u64 + 2)
    };
    let reader = thread::spawn(move || {
        let mut bytes = vec![0; expected_len as usize];
        slow.read_exact(&mut bytes).unwrap();
        assert!(bytes.chunks_exact(1_002).all(|bytes| bytes == frame(&DATAGRAM)));
        slow
    });
    let mut requests = 0;
    until("the queue is sent, and the request that was held back is read", || {
        wait(&[port.wait_fd().unwrap()], FOREVER).unwrap();
        requests += port.rx_burst().unwrap();
        requests == 1
    });
    assert_eq!(port.split().1.free_chunks(), config.tx_chunks);
    reader.join().unwrap();
    let PortCounters { tx_datagrams, tx_dropped, connections_dropped, .. } = port.counters();
    assert_eq!((tx_datagrams + tx_dropped, connections_dropped), (committed, 0));
}

/// Goal: no datagrams are so short that a burst of them takes more memory than settings say; and none is lost. Method: three
/// connections send ten times as many of one byte as a burst has room for, beside one whose datagrams are long.
#[test]
fn floods_of_tiny_datagrams_take_no_more_memory() {
    const TINY: u64 = 150_000;
    const LONG: u64 = 500;
    let config = TcpConfig { rx_slices: 2, ..TcpConfig::for_connections(4) };
    let mut port = listen(config);
    let memory_len = port.memory_len();
    assert!(memory_len <= config.memory_len());
    let senders: Vec<_> = (0..4)
        .map(|number| {
            let mut stream = connect_raw(&port);
            let (datagram, count) =
                if number < 3 { (vec![number], TINY) } else { (vec![number; 1_472], LONG) };
            thread::spawn(move || {
                let frames = frame(&datagram).repeat(count as usize);
                stream.write_all(&frames).unwrap();
                stream
            })
        })
        .collect();
    let mut arrived = [0; 4];
    let mut burst_max = 0;
    until("all of them", || {
        burst_max = burst_max.max(port.rx_burst().unwrap());
        for datagram in port.split().0.iter() {
            let number = datagram.bytes[0];
            let len = if number < 3 { 1 } else { 1_472 };
            assert!(datagram.bytes.len() == len && datagram.bytes.iter().all(|&byte| byte == number));
            arrived[usize::from(number)] += 1;
        }
        arrived == [TINY, TINY, TINY, LONG]
    });
    println!("bursts of up to {burst_max}");
    assert_eq!(port.memory_len(), memory_len);
    assert_eq!(port.counters().connections_dropped, 0);
    senders.into_iter().for_each(|sender| drop(sender.join().unwrap()));
}

/// Goal: the table is bounded and places come back. Method: one connection more than it holds, then one leaves.
#[test]
fn a_full_table_turns_connections_away() {
    let mut port = listen(TcpConfig { connections_max: 2, ..TcpConfig::default() });
    let mut kept = [connect_raw(&port), connect_raw(&port)];
    for stream in &mut kept {
        assert_echoes(&mut port, stream, b"inside");
    }
    let mut refused = connect_raw(&port);
    until("the refusal", || {
        port.rx_burst().unwrap();
        port.counters().connections_refused == 1
    });
    assert_eq!(refused.read(&mut [0]).unwrap(), 0);
    let [mut first, second] = kept;
    assert_echoes(&mut port, &mut first, b"still inside");

    drop(second);
    let mut next = loop {
        let mut stream = connect_raw(&port);
        let opened = port.counters();
        until("a verdict", || {
            echo(&mut port);
            let now = port.counters();
            now.connections_opened > opened.connections_opened
                || now.connections_refused > opened.connections_refused
        });
        if port.counters().connections_opened > opened.connections_opened {
            break stream;
        }
        let _ = stream.read(&mut [0]);
    };
    assert_echoes(&mut port, &mut next, b"inside, too");
}

/// Goal: a client survives a server's restart without an error, counts what it drops meanwhile, and does not reuse the
/// connection's number. Method: the server's port is closed and opened again on the same address.
#[test]
fn a_client_connects_again_after_a_restart() {
    let mut server = listen(TcpConfig::default());
    let addr = server.local_addr();
    let mut client = TcpPort::connect(&[addr], TcpConfig::default()).unwrap();
    let exchange = |client: &mut TcpPort, server: &mut TcpPort| {
        let mut peer = None;
        until("an echo", || {
            put(client, &Peer::datagram(addr), b"hello");
            client.tx_flush().unwrap();
            echo(server);
            client.rx_burst().unwrap();
            peer = client.split().0.iter().map(|datagram| *datagram.peer).last();
            peer.is_some()
        });
        peer.unwrap()
    };
    let first = exchange(&mut client, &mut server);
    drop(server);
    let dropped_before = client.counters().tx_dropped;
    until("drops while the server is gone", || {
        put(&mut client, &Peer::datagram(addr), b"nobody listens");
        client.tx_flush().unwrap();
        client.rx_burst().unwrap();
        client.counters().tx_dropped > dropped_before + 10
    });
    let mut server = TcpPort::listen(addr, TcpConfig::default()).unwrap();
    let second = exchange(&mut client, &mut server);
    assert_eq!(second.addr, first.addr);
    assert_ne!(second.connection, first.connection);
    // The old connection's number names nothing any more.
    let dropped_before = client.counters().tx_dropped;
    put(&mut client, &first, b"too late");
    client.tx_flush().unwrap();
    assert_eq!(client.counters().tx_dropped, dropped_before + 1);
}

/// Goal: a server that does not exist, or that the client was not told of, costs datagrams and never an error.
#[test]
fn datagrams_to_nobody_are_dropped_and_counted() {
    let closed = TcpListener::bind(any_port()).unwrap().local_addr().unwrap();
    let mut client = TcpPort::connect(&[closed], TcpConfig::default()).unwrap();
    let unknown = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    for sent in (2..=100).step_by(2) {
        assert!(put(&mut client, &Peer::datagram(closed), b"closed"));
        assert!(put(&mut client, &Peer::datagram(unknown), b"unknown"));
        client.tx_flush().unwrap();
        client.rx_burst().unwrap();
        assert_eq!((client.counters().tx_dropped, client.counters().tx_datagrams), (sent, 0));
    }
}

/// Goal: answers to a peer that has left are dropped and counted, and a successor does not get them. Method: a
/// request, the peer leaves, another comes, then the answer.
#[test]
fn answers_to_a_closed_connection_are_dropped() {
    let mut port = listen(TcpConfig { connections_max: 1, ..TcpConfig::default() });
    let mut gone = connect_raw(&port);
    gone.write_all(&frame(b"request")).unwrap();
    let peer = receive(&mut port)[0].0;
    drop(gone);
    let mut successor = loop {
        let stream = connect_raw(&port);
        let before = port.counters();
        until("a verdict", || {
            port.rx_burst().unwrap();
            port.counters().connections_opened + port.counters().connections_refused
                > before.connections_opened + before.connections_refused
        });
        if port.counters().connections_opened > before.connections_opened {
            break stream;
        }
    };
    assert!(put(&mut port, &peer, b"answer"));
    port.tx_flush().unwrap();
    assert_eq!((port.counters().tx_dropped, port.counters().tx_datagrams), (1, 0));
    assert_echoes(&mut port, &mut successor, b"mine");
}

/// Goal: a reset while answers are queued frees their chunks, and each datagram is counted once. Method: queue beyond
/// the socket, then close the unread stream, which resets it.
#[test]
fn a_reset_gives_back_the_chunks_of_its_queue() {
    let config = TcpConfig { tx_chunks: 32, ..TcpConfig::default() };
    let mut port = listen(config);
    let mut stream = connect_raw(&port);
    stream.write_all(&frame(b"request")).unwrap();
    let peer = receive(&mut port)[0].0;
    let mut committed: u64 = 0;
    until("a queue of 4 chunks", || {
        for _ in 0..100 {
            committed += u64::from(put(&mut port, &peer, &[5; 1_472]));
        }
        port.tx_flush().unwrap();
        port.split().1.free_chunks() <= config.tx_chunks - 4
    });
    drop(stream);
    until("all chunks are free", || {
        port.rx_burst().unwrap();
        port.split().1.free_chunks() == config.tx_chunks
    });
    let PortCounters { tx_datagrams, tx_dropped, soft_errors, .. } = port.counters();
    assert_eq!((tx_datagrams + tx_dropped, soft_errors), (committed, 1));
    assert!(tx_dropped > 0);
}
