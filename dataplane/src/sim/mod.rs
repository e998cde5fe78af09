//! A network inside one thread: ports joined by links that lose, duplicate, delay, reorder and damage datagrams.
//!
//! Time stands still until it is [advanced](SimNetwork::advance) and everything random comes from one seed, so the same
//! seed and the same calls give the same run, datagram by datagram; [`SimNetwork::trace_hash`] tells whether two runs
//! were the same. A datagram first is on the way, where nothing holds it up but its delay and links that stand still,
//! and then waits in its port's receive queue, whose size is that of a socket's: an owner that does not look loses what
//! does not fit.

mod faults;
mod port;

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

pub use faults::{Fate, FaultCounters, Faults};
pub use port::SimPort;

use crate::udp::charge;

/// Datagrams of the past that are kept to be sent once more.
const RECORDED_MAX: usize = 256;

/// The network that sim ports are plugged into.
#[derive(Clone, Debug)]
pub struct SimNetwork(Rc<RefCell<Network>>);

/// Names a port for as long as it is plugged in; no other port ever has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortId {
    /// Index in `ports`.
    socket: usize,
    /// Number of ports plugged in before.
    number: u64,
}

/// Bytes exchanged by one port with one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Taken by the port's owner, in the name of that address.
    pub rx_bytes: u64,
    /// Sent there by the port's owner.
    pub tx_bytes: u64,
}

/// What happened to a datagram, for people to read.
#[derive(Clone, Debug)]
pub struct NetworkEvent {
    /// Time since the network was made.
    pub at: Duration,
    /// What happened.
    pub fate: Fate,
    /// Sender, or who is said to be.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// UDP payload.
    pub bytes: Rc<[u8]>,
}

/// A datagram that passed a tapped port.
#[derive(Clone, Debug)]
pub struct Tapped {
    /// Whether the port has sent it; otherwise its owner has taken it.
    pub sent: bool,
    /// The other side.
    pub peer: SocketAddr,
    /// UDP payload.
    pub bytes: Rc<[u8]>,
}

#[derive(Debug)]
struct Network {
    now: Duration,
    random: Xoshiro256PlusPlus,
    faults: Faults,
    counters: FaultCounters,
    /// Sockets are used again, so that an index stays small; few, so that all are searched for an address.
    ports: Vec<Option<Plugged>>,
    ports_plugged: u64,
    transit: BinaryHeap<Reverse<InTransit>>,
    obstacles: Vec<Obstacle>,
    recorded: Vec<Recorded>,
    /// Number of the next datagram: makes those that arrive at the same time arrive in order.
    next_number: u64,
    hash: u64,
    events: Option<Vec<NetworkEvent>>,
}

#[derive(Debug)]
struct Plugged {
    number: u64,
    addr: SocketAddr,
    queue: VecDeque<(SocketAddr, Rc<[u8]>)>,
    /// What the kernel would charge for the queue, in bytes.
    queue_len: usize,
    overflow_drops: u64,
    peers: Vec<SimPeer>,
    tap: Option<Vec<Tapped>>,
}

/// An address that a port has to do with.
#[derive(Debug)]
struct SimPeer {
    addr: SocketAddr,
    traffic: Traffic,
    last_sent: Option<Rc<[u8]>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InTransit {
    arrives: Duration,
    number: u64,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Rc<[u8]>,
}

#[derive(Clone, Debug)]
struct Recorded {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Rc<[u8]>,
}

/// Something between senders and receivers, for a while; `None` stands for all of them.
#[derive(Clone, Copy, Debug)]
struct Obstacle {
    from: Option<SocketAddr>,
    to: Option<SocketAddr>,
    until: Duration,
    /// Whether datagrams are lost there, or wait.
    loses: bool,
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
            ports: Vec::new(),
            ports_plugged: 0,
            transit: BinaryHeap::new(),
            obstacles: Vec::new(),
            recorded: Vec::new(),
            next_number: 0,
            hash: 0,
            events: None,
        })))
    }

    /// Plugs a port in at `addr`. A port that is dropped is unplugged.
    ///
    /// # Errors
    /// `AddrInUse` when there is a port at that address, or what mmap(2) says.
    pub fn port(&self, addr: SocketAddr) -> io::Result<SimPort> {
        SimPort::new(self.clone(), addr)
    }

    /// Pulls a port's plug, without its owner's knowledge: what it has not taken yet is lost, as is what it sends from
    /// now on, and its address is free. What is on the way to that address stays so.
    pub fn unplug(&self, port: PortId) {
        let mut network = self.0.borrow_mut();
        if network.plugged(port).is_some() {
            network.ports[port.socket] = None;
        }
    }

    /// Time since the network was made.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.borrow().now
    }

    /// Lets time pass; what arrives meanwhile is put into the receive queues.
    pub fn advance(&self, by: Duration) {
        let mut network = self.0.borrow_mut();
        network.now += by;
        network.deliver();
    }

    /// When the next datagram arrives anywhere; `None` when none is on the way.
    #[must_use]
    pub fn next_arrival(&self) -> Option<Duration> {
        self.0.borrow().transit.peek().map(|Reverse(next)| next.arrives)
    }

    /// Datagrams in a port's receive queue; 0 when it is unplugged.
    #[must_use]
    pub fn waiting(&self, port: PortId) -> usize {
        self.0.borrow().plugged(port).map_or(0, |plugged| plugged.queue.len())
    }

    /// Treats datagrams sent from now on differently.
    pub fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    /// Lets what travels from `from` to `to` stand still for a while, and then all arrive at once; `None` stands for
    /// everybody.
    pub fn clog(&self, from: Option<SocketAddr>, to: Option<SocketAddr>, duration: Duration) {
        self.0.borrow_mut().obstruct(from, to, duration, false);
    }

    /// Loses what is sent from `from` to `to` for a while, and not what is sent the other way; `None` stands for
    /// everybody.
    pub fn part(&self, from: Option<SocketAddr>, to: Option<SocketAddr>, duration: Duration) {
        self.0.borrow_mut().obstruct(from, to, duration, true);
    }

    /// Removes everything that datagrams wait at or are lost at. What waits arrives when it would have otherwise.
    pub fn clear_obstacles(&self) {
        self.0.borrow_mut().obstacles.clear();
    }

    /// Sends a datagram that no port has sent, subject to the same faults.
    ///
    /// # Panics
    /// When it is longer than a link carries, 2,048 bytes.
    pub fn inject(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        assert!(bytes.len() <= 2_048, "a datagram of {} bytes", bytes.len());
        self.0.borrow_mut().send(from, to, bytes.into());
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> FaultCounters {
        self.0.borrow().counters
    }

    /// Bytes that a port has exchanged so far, by the address of the other side; nothing when it is unplugged.
    #[must_use]
    pub fn traffic(&self, port: PortId) -> Vec<(SocketAddr, Traffic)> {
        let network = self.0.borrow();
        let peers = network.plugged(port).map(|plugged| plugged.peers.iter());
        peers.into_iter().flatten().map(|peer| (peer.addr, peer.traffic)).collect()
    }

    /// The datagram that a port has sent last to an address, before anything befell it.
    #[must_use]
    pub fn last_sent(&self, port: PortId, to: SocketAddr) -> Option<Rc<[u8]>> {
        let network = self.0.borrow();
        network.plugged(port)?.peers.iter().find(|peer| peer.addr == to)?.last_sent.clone()
    }

    /// Keeps what passes a port from now on, for [`drain_tap`](Self::drain_tap).
    pub fn tap(&self, port: PortId) {
        if let Some(plugged) = self.0.borrow_mut().plugged_mut(port) {
            plugged.tap.get_or_insert_default();
        }
    }

    /// Moves what has passed a tapped port since the last call to the end of `out`, in order.
    pub fn drain_tap(&self, port: PortId, out: &mut Vec<Tapped>) {
        if let Some(tap) = self.0.borrow_mut().plugged_mut(port).and_then(|plugged| plugged.tap.as_mut()) {
            out.append(tap);
        }
    }

    /// A hash of all deliveries so far: their times, addresses and bytes, in order.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.0.borrow().hash
    }

    /// Keeps what happens to each datagram from now on, for [`take_events`](Self::take_events).
    pub fn keep_events(&self) {
        self.0.borrow_mut().events.get_or_insert_default();
    }

    /// What has happened to datagrams since the last call.
    #[must_use]
    pub fn take_events(&self) -> Vec<NetworkEvent> {
        self.0.borrow_mut().events.as_mut().map(std::mem::take).unwrap_or_default()
    }
}

impl Network {
    fn plug(&mut self, addr: SocketAddr) -> io::Result<PortId> {
        if self.find(addr).is_some() {
            let message = format!("the network has a port at {addr}");
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        let number = self.ports_plugged;
        self.ports_plugged += 1;
        let plugged = Plugged {
            number,
            addr,
            queue: VecDeque::new(),
            queue_len: 0,
            overflow_drops: 0,
            peers: Vec::new(),
            tap: None,
        };
        let socket = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len());
        if socket == self.ports.len() {
            self.ports.push(None);
        }
        self.ports[socket] = Some(plugged);
        Ok(PortId { socket, number })
    }

    fn plugged(&self, port: PortId) -> Option<&Plugged> {
        self.ports[port.socket].as_ref().filter(|plugged| plugged.number == port.number)
    }

    fn plugged_mut(&mut self, port: PortId) -> Option<&mut Plugged> {
        self.ports[port.socket].as_mut().filter(|plugged| plugged.number == port.number)
    }

    fn find(&self, addr: SocketAddr) -> Option<usize> {
        self.ports.iter().position(|port| port.as_ref().is_some_and(|plugged| plugged.addr == addr))
    }

    fn overflow_drops(&self, port: PortId) -> u64 {
        self.plugged(port).map_or(0, |plugged| plugged.overflow_drops)
    }

    fn obstruct(
        &mut self,
        from: Option<SocketAddr>,
        to: Option<SocketAddr>,
        duration: Duration,
        loses: bool,
    ) {
        let now = self.now;
        self.obstacles.retain(|obstacle| obstacle.until > now);
        self.obstacles.push(Obstacle { from, to, until: now + duration, loses });
    }

    /// Until when a datagram is lost, or waits.
    fn obstructed(&self, at: Duration, from: SocketAddr, to: SocketAddr, loses: bool) -> Option<Duration> {
        let in_the_way = self.obstacles.iter().filter(|obstacle| {
            obstacle.loses == loses
                && obstacle.until > at
                && obstacle.from.is_none_or(|addr| addr == from)
                && obstacle.to.is_none_or(|addr| addr == to)
        });
        in_the_way.map(|obstacle| obstacle.until).max()
    }

    fn send_from(&mut self, port: PortId, to: SocketAddr, bytes: &[u8]) {
        let Some(plugged) = self.plugged_mut(port) else { return };
        let from = plugged.addr;
        let bytes: Rc<[u8]> = bytes.into();
        if let Some(tap) = &mut plugged.tap {
            tap.push(Tapped { sent: true, peer: to, bytes: Rc::clone(&bytes) });
        }
        let peer = plugged.peer(to);
        peer.traffic.tx_bytes += bytes.len() as u64;
        peer.last_sent = Some(Rc::clone(&bytes));
        self.send(from, to, bytes);
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: Rc<[u8]>) {
        self.counters.sent += 1;
        self.note(Fate::Sent, from, to, &bytes);
        if bytes.len() > self.faults.datagram_len_max {
            self.counters.oversized += 1;
            self.note(Fate::Oversized, from, to, &bytes);
            return;
        }
        if self.faults.replay > 0.0 {
            self.record(from, to, &bytes);
        }
        if self.random.random_bool(self.faults.misdelivery)
            && let Some(stray) = self.other_addr(to)
        {
            self.counters.misdelivered += 1;
            self.note(Fate::Misdelivered, from, stray, &bytes);
            self.carry(from, stray, Rc::clone(&bytes));
        }
        if self.random.random_bool(self.faults.spoofing)
            && let Some(pretended) = self.other_addr(from)
        {
            self.counters.spoofed += 1;
            self.note(Fate::Spoofed, pretended, to, &bytes);
            self.carry(pretended, to, Rc::clone(&bytes));
        }
        if self.random.random_bool(self.faults.replay) {
            let Recorded { from, to, bytes } =
                self.recorded[self.random.random_range(0..self.recorded.len())].clone();
            self.counters.replayed += 1;
            self.note(Fate::Replayed, from, to, &bytes);
            self.carry(from, to, bytes);
        }
        if self.random.random_bool(self.faults.loss) {
            self.counters.lost += 1;
            self.note(Fate::Lost, from, to, &bytes);
            return;
        }
        if self.obstructed(self.now, from, to, true).is_some() {
            self.counters.parted += 1;
            self.note(Fate::Parted, from, to, &bytes);
            return;
        }
        if self.random.random_bool(self.faults.duplication) {
            self.counters.duplicated += 1;
            self.note(Fate::Duplicated, from, to, &bytes);
            self.carry(from, to, Rc::clone(&bytes));
        }
        self.carry(from, to, bytes);
    }

    /// Keeps a datagram, in place of any other once there are many: so old ones stay for long.
    fn record(&mut self, from: SocketAddr, to: SocketAddr, bytes: &Rc<[u8]>) {
        let recorded = Recorded { from, to, bytes: Rc::clone(bytes) };
        if self.recorded.len() < RECORDED_MAX {
            self.recorded.push(recorded);
        } else {
            let replaced = self.random.random_range(0..RECORDED_MAX);
            self.recorded[replaced] = recorded;
        }
    }

    /// The address of a port at random, other than this one.
    fn other_addr(&mut self, than: SocketAddr) -> Option<SocketAddr> {
        let ports = self.ports.iter().flatten();
        let others = ports.clone().filter(|plugged| plugged.addr != than).count();
        let chosen = (others > 0).then(|| self.random.random_range(0..others))?;
        ports.filter(|plugged| plugged.addr != than).nth(chosen).map(|plugged| plugged.addr)
    }

    /// Sets one copy of a datagram on its way.
    fn carry(&mut self, from: SocketAddr, to: SocketAddr, mut bytes: Rc<[u8]>) {
        let (shortest, longest) = self.faults.delay;
        let mut delay = self.random.random_range(shortest..=longest);
        if self.random.random_bool(self.faults.reordering) {
            self.counters.reordered += 1;
            delay += self.random.random_range(Duration::ZERO..=longest * 10);
        }
        let (late, latest) = self.faults.tail;
        if self.random.random_bool(late) {
            self.counters.delayed += 1;
            let magnitude = self.random.random_range(0.0..=1.0);
            delay += Duration::from_nanos((latest.as_nanos() as f64).powf(magnitude) as u64);
        }
        if !bytes.is_empty() && self.random.random_bool(self.faults.corruption) {
            self.counters.corrupted += 1;
            let bit = self.random.random_range(0..bytes.len() * 8);
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            bytes = damaged.into();
            self.note(Fate::Corrupted, from, to, &bytes);
        }
        if !bytes.is_empty() && self.random.random_bool(self.faults.truncation) {
            self.counters.truncated += 1;
            let left = self.random.random_range(0..bytes.len());
            bytes = bytes[..left].into();
            self.note(Fate::Truncated, from, to, &bytes);
        }
        let number = self.next_number;
        self.next_number += 1;
        self.transit.push(Reverse(InTransit { arrives: self.now + delay, number, from, to, bytes }));
    }

    /// Puts what has arrived by now into the receive queues.
    fn deliver(&mut self) {
        while let Some(Reverse(next)) = self.transit.peek()
            && next.arrives <= self.now
        {
            let Some(Reverse(datagram)) = self.transit.pop() else { return };
            self.arrive(datagram);
        }
    }

    fn arrive(&mut self, datagram: InTransit) {
        let InTransit { arrives, from, to, ref bytes, .. } = datagram;
        if let Some(until) = self.obstructed(arrives, from, to, false) {
            self.counters.clogged += 1;
            self.note(Fate::Clogged, from, to, bytes);
            self.transit.push(Reverse(InTransit { arrives: until, ..datagram }));
            return;
        }
        let Some(socket) = self.find(to) else {
            self.counters.undeliverable += 1;
            self.note(Fate::Undeliverable, from, to, bytes);
            return;
        };
        let queue_len_max = self.faults.queue_len;
        let plugged = self.ports[socket].as_mut().expect("found a line above");
        let charge = charge(bytes.len());
        if plugged.queue_len + charge > queue_len_max {
            plugged.overflow_drops += 1;
            self.counters.overflowed += 1;
            self.note(Fate::Overflowed, from, to, bytes);
            return;
        }
        plugged.queue_len += charge;
        plugged.queue.push_back((from, Rc::clone(bytes)));
        self.counters.delivered += 1;
        let mut hash = mix(self.hash, arrives.as_nanos() as u64);
        for addr in [from, to] {
            hash = match addr.ip() {
                IpAddr::V4(ip) => mix_bytes(hash, &ip.octets()),
                IpAddr::V6(ip) => mix_bytes(hash, &ip.octets()),
            };
            hash = mix(hash, addr.port().into());
        }
        self.hash = mix_bytes(hash, bytes);
        self.note(Fate::Delivered, from, to, bytes);
    }

    /// The oldest datagram in a port's receive queue, and who sent it.
    fn take(&mut self, port: PortId) -> Option<(SocketAddr, Rc<[u8]>)> {
        let plugged = self.plugged_mut(port)?;
        let (from, bytes) = plugged.queue.pop_front()?;
        plugged.queue_len -= charge(bytes.len());
        plugged.peer(from).traffic.rx_bytes += bytes.len() as u64;
        if let Some(tap) = &mut plugged.tap {
            tap.push(Tapped { sent: false, peer: from, bytes: Rc::clone(&bytes) });
        }
        Some((from, bytes))
    }

    #[inline]
    fn note(&mut self, fate: Fate, from: SocketAddr, to: SocketAddr, bytes: &Rc<[u8]>) {
        if let Some(events) = &mut self.events {
            events.push(NetworkEvent { at: self.now, fate, from, to, bytes: Rc::clone(bytes) });
        }
    }
}

impl Plugged {
    /// The entry of an address: a port has few.
    fn peer(&mut self, addr: SocketAddr) -> &mut SimPeer {
        let index = self.peers.iter().position(|peer| peer.addr == addr).unwrap_or(self.peers.len());
        if index == self.peers.len() {
            self.peers.push(SimPeer { addr, traffic: Traffic::default(), last_sent: None });
        }
        &mut self.peers[index]
    }
}

/// Takes one word into a hash: multiply and fold, the same everywhere and for ever.
#[must_use]
pub const fn mix(hash: u64, word: u64) -> u64 {
    // The multiplier is the golden ratio's fraction, as in Knuth's multiplicative hashing; 1 keeps zeros from vanishing.
    let product = (hash ^ word ^ 1) as u128 * 0x9e37_79b9_7f4a_7c15;
    (product as u64) ^ (product >> 64) as u64 ^ hash.rotate_left(23)
}

/// Takes bytes and their length into a hash.
#[must_use]
pub fn mix_bytes(hash: u64, bytes: &[u8]) -> u64 {
    // Four chains side by side: each multiplication waits only for the one before it in its own.
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut lanes = [hash, hash.rotate_left(16), hash.rotate_left(32), hash.rotate_left(48)];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = mix(*lane, u64::from_le_bytes(*word));
        }
    }
    let hash = if blocks.is_empty() { hash } else { lanes.into_iter().fold(hash, mix) };
    let (words, rest) = rest.as_chunks::<8>();
    let hash = words.iter().fold(hash, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(mix(hash, u64::from_le_bytes(last)), bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::{Peer, Port};

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
            truncation: 0.03,
            misdelivery: 0.04,
            spoofing: 0.06,
            replay: 0.07,
            delay: (Duration::from_micros(5), Duration::from_micros(50)),
            tail: (0.08, Duration::from_millis(8)),
            datagram_len_max: 4,
            queue_len: usize::MAX,
        };
        let run = || {
            let network = SimNetwork::new(seed, faults);
            let (mut a, mut b) = (network.port(addr(1)).unwrap(), network.port(addr(2)).unwrap());
            for number in 0..20_000u32 {
                send(&mut a, 2, &number.to_be_bytes());
            }
            network.advance(Duration::from_secs(1));
            (network.counters(), network.trace_hash(), receive(&mut b), receive(&mut a))
        };
        let (counters, hash, received, strayed) = run();
        let near = |count: u64, share: f64, of: u64| (count as f64 / of as f64 - share).abs() < share * 0.15;
        let sent = 20_000;
        assert!(near(counters.lost, 0.1, sent), "{counters:?}");
        assert!(near(counters.duplicated, 0.05, sent - counters.lost), "{counters:?}");
        assert!(near(counters.misdelivered, 0.04, sent), "{counters:?}");
        assert!(near(counters.spoofed, 0.06, sent), "{counters:?}");
        assert!(near(counters.replayed, 0.07, sent), "{counters:?}");
        let copies = counters.duplicated + counters.misdelivered + counters.spoofed + counters.replayed;
        let carried = sent - counters.lost + copies;
        assert!(near(counters.reordered, 0.2, carried), "{counters:?}");
        assert!(near(counters.corrupted, 0.02, carried), "{counters:?}");
        assert!(near(counters.truncated, 0.03, carried), "{counters:?}");
        assert!(near(counters.delayed, 0.08, carried), "{counters:?}");
        assert_eq!((counters.delivered, counters.overflowed, counters.undeliverable), (carried, 0, 0));
        assert_eq!(received.len() + strayed.len(), carried as usize);
        assert_eq!(strayed.len() as u64, counters.misdelivered);
        assert!(received.windows(2).any(|pair| pair[0] > pair[1]), "some were overtaken");
        assert_eq!(run(), (counters, hash, received, strayed), "the same seed gives the same run");
    }

    /// Goal: no byte of a datagram is left out of a trace. Method: every bit of every length up to two blocks and a half.
    #[test]
    fn each_bit_changes_the_hash() {
        for len in 0..80 {
            let mut bytes: Vec<u8> = (0..len).collect();
            let hash = mix_bytes(1, &bytes);
            assert_ne!(hash, mix_bytes(2, &bytes));
            assert_ne!(hash, mix_bytes(1, &[bytes.as_slice(), &[0]].concat()), "{len} bytes and a zero");
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(hash, mix_bytes(1, &bytes), "bit {bit} of {len} bytes");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    /// Goal: the receive queue is a socket's. Method: datagrams that the kernel charges differently for, to one that has
    /// room for two full ones; an absent port has room for none.
    #[test]
    fn full_queues_and_absent_ports_drop() {
        let network =
            SimNetwork::new(1, Faults { queue_len: 2 * 2_304, datagram_len_max: 59, ..Faults::NONE });
        let (mut a, mut b) = (network.port(addr(1)).unwrap(), network.port(addr(2)).unwrap());
        assert_eq!((b.rx_queue_datagrams(1_472), b.rx_queue_datagrams(100)), (2, 5));
        for _ in 0..7 {
            send(&mut a, 2, b"x");
        }
        send(&mut a, 3, b"x");
        send(&mut a, 2, &[0; 60]);
        network.advance(Duration::from_secs(1));
        let counters = network.counters();
        assert_eq!(counters.oversized, 1);
        assert_eq!((counters.delivered, counters.overflowed, counters.undeliverable), (5, 2, 1));
        assert_eq!((b.counters().rx_overflow_drops, network.waiting(b.id())), (2, 5));
        assert_eq!(receive(&mut b).len(), 5);
        send(&mut a, 2, b"x");
        network.advance(Duration::from_secs(1));
        assert_eq!(receive(&mut b).len(), 1, "what is taken makes room");
        let traffic = |addr, rx_bytes, tx_bytes| (addr, Traffic { rx_bytes, tx_bytes });
        assert_eq!(network.traffic(b.id()), [traffic(addr(1), 6, 0)]);
        assert_eq!(network.last_sent(a.id(), addr(3)).as_deref(), Some(b"x".as_slice()));
        assert_eq!(network.last_sent(b.id(), addr(1)), None);
        assert_eq!(network.traffic(a.id()), [traffic(addr(2), 0, 68), traffic(addr(3), 0, 1)]);
        assert_eq!(network.port(addr(1)).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(b);
        assert!(network.port(addr(2)).is_ok(), "an address is free again after its port is dropped");
    }

    #[test]
    fn an_unplugged_port_is_dead_and_harms_no_successor() {
        let network = SimNetwork::new(1, Faults::NONE);
        let (mut a, mut b) = (network.port(addr(1)).unwrap(), network.port(addr(2)).unwrap());
        send(&mut a, 2, b"on the way");
        network.unplug(b.id());
        let mut successor = network.port(addr(2)).unwrap();
        network.advance(Duration::from_secs(1));
        assert!(receive(&mut b).is_empty());
        send(&mut b, 1, b"goodbye");
        drop(b);
        assert_eq!(receive(&mut successor), [b"on the way"]);
        network.advance(Duration::from_secs(1));
        assert!(receive(&mut a).is_empty(), "the dead do not speak");
        send(&mut a, 2, b"still there");
        network.advance(Duration::from_secs(1));
        assert_eq!(receive(&mut successor), [b"still there"]);
    }

    /// Goal: obstacles stand where they are put, for as long as they should. Method: one link clogged and the same one
    /// parted the other way, before, during and after.
    #[test]
    fn clogs_delay_and_partitions_lose_one_way() {
        let network = SimNetwork::new(1, Faults::NONE);
        let (mut a, mut b) = (network.port(addr(1)).unwrap(), network.port(addr(2)).unwrap());
        let millis = Duration::from_millis;
        network.clog(Some(addr(1)), Some(addr(2)), millis(5));
        network.part(Some(addr(2)), None, millis(3));
        send(&mut a, 2, b"waits");
        send(&mut b, 1, b"lost");
        network.advance(millis(4));
        assert!(receive(&mut b).is_empty() && receive(&mut a).is_empty());
        send(&mut a, 2, b"too");
        send(&mut b, 1, b"passes");
        network.advance(millis(1));
        assert_eq!(receive(&mut b), [b"waits".as_slice(), b"too"], "in order");
        assert_eq!(receive(&mut a), [b"passes"]);
        let counters = network.counters();
        assert_eq!((counters.clogged, counters.parted), (2, 1));
        network.part(None, None, millis(100));
        network.clear_obstacles();
        send(&mut a, 2, b"free");
        network.advance(millis(1));
        assert_eq!(receive(&mut b), [b"free"]);
    }

    #[test]
    fn a_tap_shows_what_passes_a_port() {
        let network = SimNetwork::new(1, Faults::NONE);
        let (mut a, mut b) = (network.port(addr(1)).unwrap(), network.port(addr(2)).unwrap());
        network.tap(a.id());
        send(&mut a, 2, b"question");
        send(&mut b, 1, b"answer");
        network.advance(Duration::from_millis(1));
        let mut tapped = Vec::new();
        network.drain_tap(a.id(), &mut tapped);
        assert_eq!(tapped.len(), 1, "the answer waits to be taken");
        receive(&mut a);
        network.drain_tap(a.id(), &mut tapped);
        network.drain_tap(b.id(), &mut tapped);
        let seen: Vec<_> = tapped.iter().map(|tapped| (tapped.sent, tapped.peer, &*tapped.bytes)).collect();
        assert_eq!(seen, [(true, addr(2), b"question".as_slice()), (false, addr(2), b"answer")]);
    }

    /// Goal: what people are shown is what happened. Method: one datagram delivered and one into the void.
    #[test]
    fn events_are_kept_on_request() {
        let network = SimNetwork::new(1, Faults::NONE);
        let mut a = network.port(addr(1)).unwrap();
        send(&mut a, 1, b"unseen");
        network.advance(Duration::from_millis(1));
        assert!(network.take_events().is_empty());
        network.keep_events();
        send(&mut a, 1, b"to myself");
        network.inject(addr(9), addr(8), b"from nobody to nobody");
        network.advance(Duration::from_millis(1));
        let fates: Vec<_> = network.take_events().iter().map(|event| (event.fate, event.to)).collect();
        let (here, there) = (addr(1), addr(8));
        let expected =
            [(Fate::Sent, here), (Fate::Sent, there), (Fate::Delivered, here), (Fate::Undeliverable, there)];
        assert_eq!(fates, expected);
        assert!(network.take_events().is_empty(), "once");
    }
}
