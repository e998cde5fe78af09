//! The packet port's data path does not allocate.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use linerate_dataplane::{
    PacketConfig, PacketPort, Peer, Port,
    netns::{Namespace, Pair, PairConfig},
};

/// Counts what this thread allocates: the test harness has threads of its own.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments; the counter needs no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends has no counter any more.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`, which is the system's too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above; `start` came from the system's allocator.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const BURST: usize = 50;

/// Sends a burst to `to`, and takes `count` datagrams in, however long that takes.
fn turn(port: &mut PacketPort, to: &[Peer], count: usize) -> Option<Peer> {
    for peer in to {
        let (_, outbox) = port.split();
        let slot = outbox.begin(peer, 1_472).expect("room");
        slot.bytes[..700].fill(7);
        outbox.commit(700);
    }
    port.tx_flush().expect("an interface that is up");
    let (begun, mut left, mut last) = (Instant::now(), count, None);
    while left > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{left} of {count} datagrams are missing");
        left -= port.rx_burst().expect("an interface that is up");
        last = port.split().0.iter().last().map(|datagram| *datagram.peer).or(last);
    }
    last
}

/// Goal: no burst allocates, whether it sends trains or datagrams. Method: two ports and bursts there and back under an
/// allocator that counts, after one round that may still fill buffers.
#[test]
fn bursts_do_not_allocate() {
    if !Namespace::is_available() {
        return;
    }
    let [a, b] = [(); 2].map(|()| Namespace::new().unwrap());
    let pair = Pair::new(&a, &b, PairConfig::default()).unwrap();
    for trains in [true, false] {
        let config = PacketConfig { trains, rx_frames: 256, ..PacketConfig::default() };
        let at_a = || PacketPort::bind((pair.a.addr, 0).into(), config);
        let mut server = pair.a.namespace.run(at_a).expect("a port");
        let addr = server.local_addr();
        let mut client = pair.b.namespace.run(|| PacketPort::connect(&[addr], config)).expect("a port");
        let unreachable = Peer::datagram((Ipv4Addr::new(10, 77, 0, 99), 9).into());
        let mut to_server = vec![Peer::datagram(addr); BURST];
        to_server.push(unreachable);
        let mut before = 0;
        for round in 0..100 {
            if round == 1 {
                before = ALLOCATIONS.get();
            }
            turn(&mut client, &to_server, 0);
            let back = turn(&mut server, &[], BURST).expect("datagrams");
            turn(&mut server, &[back; BURST], 0);
            turn(&mut client, &[], BURST);
            client.check().expect("an interface that is up");
            server.check().expect("an interface that is up");
        }
        assert_eq!(ALLOCATIONS.get(), before, "trains: {trains}");
        assert_eq!(client.counters().rx_datagrams, 100 * BURST as u64);
    }
}
