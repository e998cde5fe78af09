//! XDP ports do not allocate per burst: an allocator that counts says so.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::SocketAddr,
};

use linerate_dataplane::{
    Peer, Port, XdpConfig, XdpPort,
    netns::{Namespace, Pair, PairConfig},
    xdp,
};

/// The system's allocator, counting what each thread asks of it.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract; counting allocates
// nothing, since the counter is initialised at compile time and needs no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`; what it gives back came from the system's allocator.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn echo(server: &mut XdpPort, client: &mut XdpPort, to: &Peer, count: usize) -> usize {
    for _ in 0..count {
        let outbox = client.split().1;
        outbox.begin(to, 1_472).unwrap().bytes[..100].fill(1);
        outbox.commit(100);
    }
    client.tx_flush().unwrap();
    while server.rx_burst().unwrap() > 0 {
        let (received, outbox) = server.split();
        for datagram in received.iter() {
            outbox.begin(datagram.peer, 1_472).unwrap().bytes[..1_400].fill(2);
            outbox.commit(1_400);
        }
        server.tx_flush().unwrap();
    }
    server.counters();
    let mut answered = 0;
    loop {
        match client.rx_burst().unwrap() {
            0 => return answered,
            count => answered += count,
        }
    }
}

/// Goal: neither side of an exchange allocates, whatever the size of its bursts. Method: after a first round, many rounds
/// in one thread with an allocator that counts.
#[test]
fn bursts_allocate_nothing() {
    if !Namespace::is_available() {
        return;
    }
    let [a, b] = [(); 2].map(|()| Namespace::new().unwrap());
    let pair = Pair::new(&a, &b, PairConfig::default()).unwrap();
    let addr = SocketAddr::from((pair.a.addr, 4_100));
    let config = XdpConfig { rx_frames: 512, tx_frames: 1_024, ..XdpConfig::default() };
    let mut server = a.run(|| xdp::open(&[addr], config)).unwrap().remove(0);
    let mut client = b.run(|| xdp::connect(&[addr], 1, config)).unwrap().remove(0);
    let to = Peer::datagram(addr);
    let before = COUNT.get();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(COUNT.get(), before + 1, "the allocator counts");
    echo(&mut server, &mut client, &to, 10);
    let before = COUNT.get();
    let answered: usize = (0..500).map(|round| echo(&mut server, &mut client, &to, 1 + round % 200)).sum();
    assert_eq!(COUNT.get(), before, "allocations in 500 rounds");
    assert!(answered > 10_000, "{answered} answers");
}
