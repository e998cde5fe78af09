//! A network inside one thread: ports joined by links that lose, duplicate, delay, reorder and damage datagrams.
//!
//! Time stands still until it is [advanced](SimNetwork::advance) and everything random comes from one seed, so the same
//! seed and the same calls give the same run, datagram by datagram.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io,
    net::SocketAddr,
    os::fd::BorrowedFd,
    rc::Rc,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use crate::{
    outbox::{Framing, Outbox},
    port::{Inbox, Peer, Port, PortCounters, Received},
    region::Region,
};

/// Datagrams received in one burst.
const BURST_MAX: usize = 64;

/// Longest datagram that a link carries.
const DATAGRAM_LEN_MAX: usize = 2_048;

/// How badly a network treats datagrams; the shares are probabilities, 0.0..=1.0, each decided for itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Faults {
    /// Share that never arrives.
    pub loss: f64,
    /// Share that arrives a second time, later.
    pub duplication: f64,
    /// Share that is held back for up to ten times the longest delay, so that others overtake it.
    pub reordering: f64,
    /// Share of which one bit is flipped.
    pub corruption: f64,
    /// Shortest and longest time on the way.
    pub delay: (Duration, Duration),
    /// Datagrams that fit a port's receive queue; more are dropped.
    pub queue_max: usize,
}

impl Faults {
    /// A network that does nothing wrong and takes 10 µs.
    pub const NONE: Self = Self {
        loss: 0.0,
        duplication: 0.0,
        reordering: 0.0,
        corruption: 0.0,
        delay: (Duration::from_micros(10), Duration::from_micros(10)),
        queue_max: 4_096,
    };
}

/// What a network has done so far, in datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Handed over by ports.
    pub sent: u64,
    /// Lost.
    pub lost: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// Damaged.
    pub corrupted: u64,
    /// Dropped at a full receive queue, or for want of a port at their address.
    pub undeliverable: u64,
}

/// The network that sim ports are plugged into.
#[derive(Clone, Debug)]
pub struct SimNetwork(Rc<RefCell<Network>>);

#[derive(Debug)]
struct Network {
    now: Duration,
    random: Xoshiro256PlusPlus,
    faults: Faults,
    counters: FaultCounters,
    queues: HashMap<SocketAddr, BinaryHeap<Reverse<InTransit>>>,
    /// Number of the next datagram: makes those that arrive at the same time arrive in order.
    next_number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InTransit {
    arrives: Duration,
    number: u64,
    from: SocketAddr,
    bytes: Vec<u8>,
}

impl SimNetwork {
    /// A network at time zero without ports.
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self(Rc::new(RefCell::new(Network {
            now: Duration::ZERO,
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            faults,
            counters: FaultCounters::default(),
            queues: HashMap::new(),
            next_number: 0,
        })))
    }

    /// Plugs a port in at `addr`. A port that is dropped is unplugged, and what is on the way to it is lost.
    ///
    /// # Errors
    /// `AddrInUse` when there is a port at that address, or what mmap(2) says.
    pub fn port(&self, addr: SocketAddr) -> io::Result<SimPort> {
        let memory = Region::zeroed(BURST_MAX * DATAGRAM_LEN_MAX)?;
        let outbox = Outbox::new(32, Framing::Segments)?;
        let mut network = self.0.borrow_mut();
        if network.queues.contains_key(&addr) {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("the network has a port at {addr}"),
            ));
        }
        network.queues.insert(addr, BinaryHeap::new());
        Ok(SimPort {
            network: self.clone(),
            addr,
            memory,
            inbox: Inbox::with_capacity(BURST_MAX, BURST_MAX),
            outbox,
            counters: PortCounters::default(),
        })
    }

    /// Time since the network was made.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.borrow().now
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.0.borrow_mut().now += by;
    }

    /// When the next datagram arrives anywhere; `None` when none is on the way.
    #[must_use]
    pub fn next_arrival(&self) -> Option<Duration> {
        let network = self.0.borrow();
        network.queues.values().filter_map(|queue| queue.peek()).map(|Reverse(next)| next.arrives).min()
    }

    /// Treats datagrams sent from now on differently.
    pub fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> FaultCounters {
        self.0.borrow().counters
    }
}

impl Network {
    fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.counters.sent += 1;
        if self.random.random_bool(self.faults.loss) {
            self.counters.lost += 1;
            return;
        }
        if self.random.random_bool(self.faults.duplication) {
            self.counters.duplicated += 1;
            self.carry(from, to, bytes.to_vec());
        }
        self.carry(from, to, bytes.to_vec());
    }

    fn carry(&mut self, from: SocketAddr, to: SocketAddr, mut bytes: Vec<u8>) {
        let (shortest, longest) = self.faults.delay;
        let mut delay = self.random.random_range(shortest..=longest);
        if self.random.random_bool(self.faults.reordering) {
            self.counters.reordered += 1;
            delay += self.random.random_range(Duration::ZERO..=longest * 10);
        }
        if !bytes.is_empty() && self.random.random_bool(self.faults.corruption) {
            self.counters.corrupted += 1;
            let bit = self.random.random_range(0..bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let number = self.next_number;
        self.next_number += 1;
        let arrives = self.now + delay;
        match self.queues.get_mut(&to) {
            Some(queue) if queue.len() < self.faults.queue_max => {
                queue.push(Reverse(InTransit { arrives, number, from, bytes }));
            }
            _ => self.counters.undeliverable += 1,
        }
    }

    fn take_arrived(&mut self, at: SocketAddr) -> Option<InTransit> {
        let queue = self.queues.get_mut(&at)?;
        if queue.peek()?.0.arrives > self.now {
            return None;
        }
        queue.pop().map(|Reverse(datagram)| datagram)
    }
}

/// One port of a [`SimNetwork`].
#[derive(Debug)]
pub struct SimPort {
    network: SimNetwork,
    addr: SocketAddr,
    memory: Region<u8>,
    inbox: Inbox,
    outbox: Outbox,
    counters: PortCounters,
}

impl Port for SimPort {
    fn rx_burst(&mut self) -> io::Result<usize> {
        self.inbox.clear();
        let mut network = self.network.0.borrow_mut();
        for buffer in 0..BURST_MAX {
            let Some(datagram) = network.take_arrived(self.addr) else { break };
            let start = buffer * DATAGRAM_LEN_MAX;
            let len = datagram.bytes.len();
            self.memory[start..start + len].copy_from_slice(&datagram.bytes);
            self.inbox.push_peer(Peer::datagram(datagram.from));
            self.inbox.push(start, len);
            self.counters.rx_trains += 1;
            self.counters.rx_datagrams += 1;
            self.counters.rx_bytes += len as u64;
        }
        Ok(self.inbox.count())
    }

    fn split(&mut self) -> (Received<'_>, &mut Outbox) {
        (Received::new(&self.memory, &self.inbox), &mut self.outbox)
    }

    fn tx_flush(&mut self) -> io::Result<()> {
        let mut network = self.network.0.borrow_mut();
        for train in self.outbox.trains() {
            self.counters.tx_trains += 1;
            for datagram in self.outbox.bytes(train).chunks(train.segment_len as usize) {
                self.counters.tx_datagrams += 1;
                self.counters.tx_bytes += datagram.len() as u64;
                network.send(self.addr, train.peer.addr, datagram);
            }
        }
        self.outbox.reset();
        Ok(())
    }

    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn rx_queue_datagrams(&self, _len: usize) -> usize {
        self.network.0.borrow().faults.queue_max
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimPort {
    fn drop(&mut self) {
        self.network.0.borrow_mut().queues.remove(&self.addr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    fn send(port: &mut SimPort, to: u16, bytes: &[u8]) {
        let (_, outbox) = port.split();
        outbox.begin(&Peer::datagram(addr(to)), 100).unwrap().bytes[..bytes.len()].copy_from_slice(bytes);
        outbox.commit(bytes.len());
        port.tx_flush().unwrap();
    }

    fn receive(port: &mut SimPort) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while port.rx_burst().unwrap() > 0 {
            all.extend(port.split().0.iter().map(|datagram| datagram.bytes.to_vec()));
        }
        all
    }

    #[test]
    fn delivers_in_order_when_the_time_has_come() {
        let network = SimNetwork::new(1, Faults::NONE);
        let (mut a, mut b) = (network.port(addr(1)).unwrap(), network.port(addr(2)).unwrap());
        send(&mut a, 2, b"one");
        send(&mut a, 2, b"two");
        assert!(receive(&mut b).is_empty(), "still on the way");
        assert_eq!(network.next_arrival(), Some(Duration::from_micros(10)));
        network.advance(Duration::from_micros(10));
        assert_eq!(receive(&mut b), [b"one", b"two"]);
        assert_eq!(network.next_arrival(), None);
    }

    /// Goal: each fault happens as often as asked for, and a seed replays. Method: 20,000 datagrams, counted.
    #[test]
    fn faults_have_their_probabilities_and_replay_from_the_seed() {
        let seed = 7;
        println!("seed {seed}");
        let faults = Faults {
            loss: 0.1,
            duplication: 0.05,
            reordering: 0.2,
            corruption: 0.02,
            delay: (Duration::from_micros(5), Duration::from_micros(50)),
            queue_max: usize::MAX,
        };
        let run = || {
            let network = SimNetwork::new(seed, faults);
            let (mut a, mut b) = (network.port(addr(1)).unwrap(), network.port(addr(2)).unwrap());
            for number in 0..20_000u32 {
                send(&mut a, 2, &number.to_be_bytes());
            }
            network.advance(Duration::from_secs(1));
            (network.counters(), receive(&mut b))
        };
        let (counters, received) = run();
        let near = |count: u64, share: f64, of: u64| (count as f64 / of as f64 - share).abs() < share * 0.15;
        assert!(near(counters.lost, 0.1, 20_000), "{counters:?}");
        assert!(near(counters.duplicated, 0.05, 18_000), "{counters:?}");
        assert!(near(counters.reordered, 0.2, 18_900), "{counters:?}");
        assert!(near(counters.corrupted, 0.02, 18_900), "{counters:?}");
        assert_eq!(received.len() as u64, 20_000 - counters.lost + counters.duplicated);
        assert!(received.windows(2).any(|pair| pair[0] > pair[1]), "some were overtaken");
        assert_eq!(run(), (counters, received), "the same seed gives the same run");
    }

    #[test]
    fn full_queues_and_absent_ports_drop() {
        let network = SimNetwork::new(1, Faults { queue_max: 3, ..Faults::NONE });
        let (mut a, mut b) = (network.port(addr(1)).unwrap(), network.port(addr(2)).unwrap());
        for _ in 0..5 {
            send(&mut a, 2, b"x");
        }
        send(&mut a, 3, b"x");
        assert_eq!(network.counters().undeliverable, 3);
        network.advance(Duration::from_secs(1));
        assert_eq!(receive(&mut b).len(), 3);
        assert_eq!(network.port(addr(1)).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(b);
        assert!(network.port(addr(2)).is_ok(), "an address is free again after its port is dropped");
    }
}
