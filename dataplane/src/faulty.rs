//! A port that loses, duplicates and reorders the datagrams of another one: a bad network on a good machine.
//!
//! What is untouched is not copied on its way in (only the index of the burst changes) and copied once on its way out.
//! A reordered datagram is held back until a few later ones have passed; nothing is held for ever, since every poll
//! brings the end of the wait nearer, also while nothing else is on the way.

use std::{io, net::SocketAddr, os::fd::BorrowedFd};

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use crate::{
    outbox::{Framing, Outbox},
    port::{Inbox, Peer, Port, PortCounters, Received},
};

/// Most datagrams that overtake one that is held back. A request's replies are some ten datagrams, so that this reaches
/// into the replies of the next.
const OVERTAKEN_BY_MAX: u32 = 16;

/// Calls of `rx_burst` after which a datagram leaves that nothing has overtaken.
const POLLS_MAX: u32 = 32;

/// Datagrams held back in each direction; when there are so many, no more are.
const HELD_MAX: usize = 256;

/// How badly a [`FaultyPort`] treats datagrams of both directions, and the seed of its choices. The shares are
/// probabilities, 0.0..=1.0, each decided for itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultyConfig {
    /// Share that never arrives.
    pub loss: f64,
    /// Share that arrives twice.
    pub duplication: f64,
    /// Share that up to 16 later ones overtake.
    pub reordering: f64,
    /// Same seed, same datagrams, same calls: same faults.
    pub seed: u64,
}

/// What was done to the datagrams of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultTotals {
    /// Datagrams looked at.
    pub seen: u64,
    /// Of these, lost.
    pub lost: u64,
    /// Of these, passed on twice.
    pub duplicated: u64,
    /// Copies held back.
    pub reordered: u64,
}

/// What a [`FaultyPort`] has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultyCounters {
    /// To what arrived.
    pub rx: FaultTotals,
    /// To what was sent.
    pub tx: FaultTotals,
}

/// A datagram port behind a bad network.
///
/// Its [`counters`](Port::counters) are those of the port inside: what really passed the system calls. What was done to
/// it is in [`faults`](FaultyPort::faults).
#[derive(Debug)]
pub struct FaultyPort<P: Port> {
    port: P,
    rx_faults: Faults,
    tx_faults: Faults,
    inbox: Inbox,
    /// Memory of a burst that consists of datagrams held back before; other bursts lie in the memory of `port`.
    released: Option<Vec<u8>>,
    /// Held back within the burst at hand: index in it, and how many more have to pass.
    delayed: Vec<(usize, u32)>,
    rx_held: Vec<Held>,
    outbox: Outbox,
    tx_held: Vec<Held>,
    /// Memory for the next burst of held-back datagrams.
    spare: Vec<u8>,
}

/// A datagram held back.
#[derive(Debug)]
struct Held {
    peer: Peer,
    bytes: Vec<u8>,
    /// Datagrams that have yet to overtake it.
    overtaken_by: u32,
    /// Calls of `rx_burst` after which it leaves anyway.
    polls: u32,
}

impl Held {
    fn new(peer: Peer, bytes: &[u8], overtaken_by: u32) -> Self {
        Self { peer, bytes: bytes.to_vec(), overtaken_by, polls: POLLS_MAX }
    }

    const fn is_due(&self) -> bool {
        self.overtaken_by == 0 || self.polls == 0
    }
}

/// The dice of one direction.
#[derive(Debug)]
struct Faults {
    config: FaultyConfig,
    random: Xoshiro256PlusPlus,
    totals: FaultTotals,
}

impl Faults {
    /// How many copies of the next datagram go on: 0, 1 or 2.
    #[inline]
    fn copies(&mut self) -> usize {
        self.totals.seen += 1;
        if self.random.random_bool(self.config.loss) {
            self.totals.lost += 1;
            return 0;
        }
        let twice = self.random.random_bool(self.config.duplication);
        self.totals.duplicated += u64::from(twice);
        1 + usize::from(twice)
    }

    /// How many later datagrams overtake a copy, if it is held back.
    #[inline]
    fn hold(&mut self, held: usize) -> Option<u32> {
        if held >= HELD_MAX || !self.random.random_bool(self.config.reordering) {
            return None;
        }
        self.totals.reordered += 1;
        Some(self.random.random_range(1..=OVERTAKEN_BY_MAX))
    }
}

impl<P: Port> FaultyPort<P> {
    /// Puts a bad network in front of `port`, which must be a datagram port: a stream that loses bytes is no stream.
    ///
    /// # Errors
    /// What mmap(2) says of the memory to send from, as much as `port` has.
    ///
    /// # Panics
    /// When a share is not in 0.0..=1.0.
    pub fn new(mut port: P, config: FaultyConfig) -> io::Result<Self> {
        for share in [config.loss, config.duplication, config.reordering] {
            assert!((0.0..=1.0).contains(&share), "a share of {share}");
        }
        let mut random = Xoshiro256PlusPlus::seed_from_u64(config.seed);
        let mut faults = || Faults { config, random: random.fork(), totals: FaultTotals::default() };
        let chunks = port.split().1.free_chunks();
        Ok(Self {
            rx_faults: faults(),
            tx_faults: faults(),
            port,
            inbox: Inbox::default(),
            released: None,
            delayed: Vec::new(),
            rx_held: Vec::new(),
            outbox: Outbox::new(chunks, Framing::Segments)?,
            tx_held: Vec::new(),
            spare: Vec::new(),
        })
    }

    /// What was done to the datagrams so far.
    #[must_use]
    pub const fn faults(&self) -> FaultyCounters {
        FaultyCounters { rx: self.rx_faults.totals, tx: self.tx_faults.totals }
    }

    /// Makes a burst of the held-back datagrams whose time has come, if there are any.
    fn release(&mut self) -> usize {
        let due = self.rx_held.extract_if(.., |held| held.is_due());
        let mut memory = std::mem::take(&mut self.spare);
        memory.clear();
        for held in due {
            push_peer(&mut self.inbox, held.peer);
            self.inbox.push(memory.len(), held.bytes.len());
            memory.extend_from_slice(&held.bytes);
        }
        if self.inbox.count() == 0 {
            self.spare = memory;
        } else {
            self.released = Some(memory);
        }
        self.inbox.count()
    }

    /// Takes a burst of `port` and decides what becomes of it.
    fn pass_on(&mut self) -> io::Result<usize> {
        if self.port.rx_burst()? == 0 {
            self.rx_held.iter_mut().for_each(|held| held.polls -= 1);
            return Ok(0);
        }
        // A later burst has passed.
        self.rx_held.iter_mut().for_each(|held| held.overtaken_by = 0);
        let (received, _) = self.port.split();
        let (inbox, faults, delayed) = (&mut self.inbox, &mut self.rx_faults, &mut self.delayed);
        let push = |inbox: &mut Inbox, index: usize| {
            let datagram = received.datagram(index);
            push_peer(inbox, *datagram.peer);
            inbox.push(received.start(index), datagram.bytes.len());
        };
        for index in 0..received.count() {
            for _ in 0..faults.copies() {
                match faults.hold(self.rx_held.len() + delayed.len()) {
                    Some(overtaken_by) => delayed.push((index, overtaken_by)),
                    None => {
                        push(inbox, index);
                        delayed.retain_mut(|(held, overtaken_by)| {
                            *overtaken_by -= 1;
                            let wait = *overtaken_by > 0;
                            if !wait {
                                push(inbox, *held);
                            }
                            wait
                        });
                    }
                }
            }
        }
        for (index, overtaken_by) in delayed.drain(..) {
            let datagram = received.datagram(index);
            self.rx_held.push(Held::new(*datagram.peer, datagram.bytes, overtaken_by));
        }
        Ok(self.inbox.count())
    }

    /// Lets held-back datagrams go that have waited long enough for others to overtake them.
    fn poll_held_tx(&mut self) -> io::Result<()> {
        self.tx_held.iter_mut().for_each(|held| held.polls -= 1);
        if send_due(&mut self.port, &mut self.tx_held)? {
            self.port.tx_flush()?;
        }
        Ok(())
    }

    /// Hands the trains that `is_due` says are to `port`, as far as they survive, and has it send them.
    fn send(&mut self, is_due: impl Fn(&Outbox, usize) -> bool) -> io::Result<()> {
        let (faults, held, outbox) = (&mut self.tx_faults, &mut self.tx_held, &self.outbox);
        for (index, train) in outbox.trains().iter().enumerate() {
            if !is_due(outbox, index) {
                continue;
            }
            for bytes in outbox.bytes(train).chunks(train.segment_len as usize) {
                for _ in 0..faults.copies() {
                    if let Some(overtaken_by) = faults.hold(held.len()) {
                        held.push(Held::new(train.peer, bytes, overtaken_by));
                        continue;
                    }
                    hand_over(&mut self.port, &train.peer, bytes)?;
                    if !held.is_empty() {
                        held.iter_mut().for_each(|held| held.overtaken_by -= 1);
                        send_due(&mut self.port, held)?;
                    }
                }
            }
        }
        // All of it, also when the caller keeps what may still grow: it can not see what waits in the port inside.
        self.port.tx_flush()
    }
}

impl<P: Port> Port for FaultyPort<P> {
    fn rx_burst(&mut self) -> io::Result<usize> {
        if !self.tx_held.is_empty() {
            self.poll_held_tx()?;
        }
        self.inbox.clear();
        if let Some(memory) = self.released.take() {
            self.spare = memory;
        }
        if !self.rx_held.is_empty() && self.release() > 0 {
            return Ok(self.inbox.count());
        }
        self.pass_on()
    }

    fn split(&mut self) -> (Received<'_>, &mut Outbox) {
        let memory = match &self.released {
            Some(memory) => memory.as_slice().into(),
            None => self.port.split().0.memory(),
        };
        (Received::new(memory, &self.inbox), &mut self.outbox)
    }

    fn tx_flush(&mut self) -> io::Result<()> {
        self.send(|_, _| true)?;
        self.outbox.reset();
        Ok(())
    }

    fn tx_flush_complete(&mut self) -> io::Result<()> {
        self.send(|outbox, index| !outbox.is_growing(index))?;
        self.outbox.keep_growing();
        Ok(())
    }

    fn local_addr(&self) -> SocketAddr {
        self.port.local_addr()
    }

    fn reach(&mut self, addrs: &[SocketAddr]) -> io::Result<bool> {
        self.port.reach(addrs)
    }

    fn counters(&self) -> PortCounters {
        self.port.counters()
    }

    fn rx_queue_datagrams(&self, len: usize) -> usize {
        self.port.rx_queue_datagrams(len)
    }

    fn check(&mut self) -> io::Result<()> {
        self.port.check()
    }

    /// That of the port and of its own outbox, and what is held back now.
    fn memory_len(&self) -> usize {
        let held: usize = self.rx_held.iter().chain(&self.tx_held).map(|held| held.bytes.capacity()).sum();
        let lists = (self.rx_held.capacity() + self.tx_held.capacity()) * size_of::<Held>();
        let memory = self.released.as_ref().map_or(0, Vec::capacity) + self.spare.capacity();
        self.port.memory_len() + self.outbox.memory_len() + self.inbox.memory_len() + held + lists + memory
    }

    fn populate(&mut self) -> io::Result<()> {
        self.port.populate()?;
        self.outbox.populate()
    }

    /// `None` while something is held back: then there is work without anything arriving.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        if self.rx_held.is_empty() && self.tx_held.is_empty() { self.port.wait_fd() } else { None }
    }
}

#[inline]
fn push_peer(inbox: &mut Inbox, peer: Peer) {
    if inbox.last_peer() != Some(&peer) {
        inbox.push_peer(peer);
    }
}

/// Hands over what is due in the order in which it was held back; returns whether that was anything.
fn send_due(port: &mut impl Port, held: &mut Vec<Held>) -> io::Result<bool> {
    let mut any = false;
    for due in held.extract_if(.., |held| held.is_due()) {
        hand_over(port, &due.peer, &due.bytes)?;
        any = true;
    }
    Ok(any)
}

/// Copies a datagram into the outbox of `port`, which is flushed first when it is full.
#[inline]
fn hand_over(port: &mut impl Port, peer: &Peer, bytes: &[u8]) -> io::Result<()> {
    if port.split().1.begin(peer, bytes.len()).is_none() {
        port.tx_flush()?;
    }
    let (_, outbox) = port.split();
    let slot = outbox.begin(peer, bytes.len()).expect("a datagram port has room after a flush");
    slot.bytes.copy_from_slice(bytes);
    outbox.commit(bytes.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use super::*;
    use crate::sim::{Faults as SimFaults, SimNetwork, SimPort};

    const SEED: u64 = 11;
    const NONE: FaultyConfig = FaultyConfig { loss: 0.0, duplication: 0.0, reordering: 0.0, seed: SEED };

    fn addr(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    /// A good network with a plain port at 1 and a faulty one at 2.
    fn network(config: FaultyConfig) -> (SimNetwork, SimPort, FaultyPort<SimPort>) {
        println!("seed {}", config.seed);
        let faults = SimFaults { queue_len: usize::MAX, ..SimFaults::NONE };
        let network = SimNetwork::new(SEED, faults);
        let (plain, inner) = (network.port(addr(1)).unwrap(), network.port(addr(2)).unwrap());
        (network, plain, FaultyPort::new(inner, config).unwrap())
    }

    fn write(port: &mut impl Port, to: u16, number: u32) {
        let (_, outbox) = port.split();
        let slot = outbox.begin(&Peer::datagram(addr(to)), 40).unwrap();
        slot.bytes.fill(number as u8);
        slot.bytes[..4].copy_from_slice(&number.to_be_bytes());
        outbox.commit(40);
    }

    fn take(port: &mut impl Port, into: &mut Vec<u32>) {
        for datagram in port.split().0.iter() {
            let number = u32::from_be_bytes(datagram.bytes[..4].try_into().unwrap());
            assert!(datagram.bytes[4..].iter().all(|&byte| byte == number as u8), "{:?}", datagram.bytes);
            into.push(number);
        }
    }

    /// Sends `count` datagrams from one port to the other, some at a time, and returns what arrives.
    fn carry(
        network: &SimNetwork,
        from: &mut impl Port,
        to: &mut impl Port,
        at: u16,
        count: u32,
    ) -> Vec<u32> {
        let mut received = Vec::new();
        for number in 0..count {
            write(from, at, number);
            if number % 50 == 49 {
                from.tx_flush().unwrap();
                network.advance(Duration::from_micros(20));
                while to.rx_burst().unwrap() > 0 {
                    take(to, &mut received);
                }
            }
        }
        from.tx_flush().unwrap();
        // What is held back leaves after a few polls of either end.
        for _ in 0..=2 * POLLS_MAX {
            from.rx_burst().unwrap();
            network.advance(Duration::from_micros(20));
            to.rx_burst().unwrap();
            take(to, &mut received);
        }
        received
    }

    /// Goal: without faults nothing changes, in either direction. Method: 10,000 datagrams each way.
    #[test]
    fn without_faults_everything_arrives_in_order() {
        let (network, mut plain, mut faulty) = network(NONE);
        let all: Vec<u32> = (0..10_000).collect();
        assert_eq!(carry(&network, &mut faulty, &mut plain, 1, 10_000), all);
        assert_eq!(carry(&network, &mut plain, &mut faulty, 2, 10_000), all);
        let totals = FaultTotals { seen: 10_000, ..FaultTotals::default() };
        assert_eq!(faulty.faults(), FaultyCounters { rx: totals, tx: totals });
        assert_eq!(faulty.counters().rx_datagrams, 10_000);
        assert_eq!(faulty.counters().tx_datagrams, 10_000);
    }

    /// Goal: each fault happens as often as asked for; what is not lost arrives, as often as it should, and overtaken by
    /// no more than allowed; the same seed does the same. Method: 40,000 datagrams each way, counted.
    #[test]
    fn faults_have_their_rates_and_lose_nothing_else() {
        const COUNT: u32 = 40_000;
        let config = FaultyConfig { loss: 0.05, duplication: 0.04, reordering: 0.1, seed: SEED };
        let run = |outwards: bool| {
            let (network, mut plain, mut faulty) = network(config);
            let received = if outwards {
                carry(&network, &mut faulty, &mut plain, 1, COUNT)
            } else {
                carry(&network, &mut plain, &mut faulty, 2, COUNT)
            };
            assert!(faulty.rx_held.is_empty() && faulty.tx_held.is_empty(), "something is held for ever");
            let faults = faulty.faults();
            (received, if outwards { faults.tx } else { faults.rx })
        };
        for outwards in [false, true] {
            let (received, totals) = run(outwards);
            let near = |count: u64, share: f64, of: u64| {
                (count as f64 / of as f64 - share).abs() < 5.0 * (share / of as f64).sqrt()
            };
            assert_eq!(totals.seen, u64::from(COUNT));
            assert!(near(totals.lost, 0.05, totals.seen), "{totals:?}");
            assert!(near(totals.duplicated, 0.04, totals.seen - totals.lost), "{totals:?}");
            let copies = totals.seen - totals.lost + totals.duplicated;
            assert!(near(totals.reordered, 0.1, copies), "{totals:?}");
            assert_eq!(received.len() as u64, copies);
            let distinct: HashSet<_> = received.iter().collect();
            assert_eq!(distinct.len() as u64, totals.seen - totals.lost);
            // Only what was held back is out of order: without those that a later one precedes, the rest is sorted.
            let mut latest = 0;
            let late = received.iter().filter(|&&number| {
                let is_late = number < latest;
                latest = latest.max(number);
                is_late
            });
            let late = late.count() as u64;
            assert!(late > totals.reordered / 2 && late <= totals.reordered, "{late} of {totals:?}");
            assert_eq!(run(outwards), (received, totals), "the same seed gives the same run");
        }
    }

    /// Goal: nothing is lost when the port inside is full. Method: a whole outbox, all duplicated and reordered, needs
    /// twice the room.
    #[test]
    fn a_full_port_inside_is_flushed() {
        let (network, mut plain, mut faulty) =
            network(FaultyConfig { duplication: 1.0, reordering: 0.2, ..NONE });
        let mut count = 0;
        let to = Peer::datagram(addr(1));
        while let Some(slot) = faulty.split().1.begin(&to, 1_400) {
            slot.bytes.fill(count as u8);
            slot.bytes[..4].copy_from_slice(&u32::to_be_bytes(count));
            faulty.split().1.commit(1_400);
            count += 1;
        }
        faulty.tx_flush().unwrap();
        let mut received = Vec::new();
        for _ in 0..=POLLS_MAX + 2 * count {
            faulty.rx_burst().unwrap();
            network.advance(Duration::from_micros(20));
            plain.rx_burst().unwrap();
            take(&mut plain, &mut received);
        }
        received.sort_unstable();
        let twice: Vec<u32> = (0..count).flat_map(|number| [number, number]).collect();
        assert!(count > 1_000, "{count} filled the outbox");
        assert_eq!(received, twice);
    }

    /// Goal: flushing complete trains keeps the growing one, and what was complete has really left. Method: a train of 64
    /// and one of 3.
    #[test]
    fn complete_trains_leave_and_growing_ones_stay() {
        let (network, mut plain, mut faulty) = network(NONE);
        (0..67).for_each(|number| write(&mut faulty, 1, number));
        faulty.tx_flush_complete().unwrap();
        assert!(!faulty.split().1.is_empty());
        network.advance(Duration::from_micros(20));
        assert_eq!(plain.rx_burst().unwrap(), 64);
        faulty.tx_flush().unwrap();
        assert!(faulty.split().1.is_empty());
        network.advance(Duration::from_micros(20));
        assert_eq!(plain.rx_burst().unwrap(), 3);
    }

    /// Goal: the last datagram of all is delivered too when it is held back. Method: hold every one.
    #[test]
    fn a_lonely_datagram_is_not_held_for_ever() {
        let (network, mut plain, mut faulty) = network(FaultyConfig { reordering: 1.0, ..NONE });
        assert_eq!(carry(&network, &mut faulty, &mut plain, 1, 1), [0]);
        assert_eq!(carry(&network, &mut plain, &mut faulty, 2, 1), [0]);
    }

    #[test]
    #[should_panic(expected = "a share of 1.5")]
    fn a_share_beyond_one_is_a_bug() {
        network(FaultyConfig { loss: 1.5, ..NONE });
    }
}
