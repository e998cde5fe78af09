//! A port without a network: what is sent is answered on the spot, in the same thread, by a function.
//!
//! It costs next to nothing, so what is left of a program that runs over it is the program itself: that is how a load
//! generator is measured. Nothing is copied on the way. The answers are written where they are then lent from, and a
//! place keeps what was written to it until it is written to again: who answers much the same all the time need write
//! only what differs.

use std::{io, net::SocketAddr, os::fd::BorrowedFd};

use crate::{
    outbox::{Framing, Outbox},
    port::{Inbox, Peer, Port, PortCounters, Received},
    region::Region,
};

/// Bytes of a place: the longest answer, and a multiple of a cache line.
const PLACE_LEN: usize = 1_536;

/// Answers that can wait to be taken. A burst of requests that asks for more loses what is beyond, as in a full queue.
/// There are twice as many places: what a burst has lent stays as it is while answers to what is sent next are written.
const WAITING_MAX: usize = 4_096;

/// Chunks to send from.
const CHUNKS: usize = 24;

/// A port that is answered by `Answer`, which is called with each datagram sent and writes what comes back.
#[derive(Debug)]
pub struct AnsweringPort<Answer> {
    answer: Answer,
    addr: SocketAddr,
    memory: Region<u8>,
    /// What was answered since the last burst, and what the last burst has taken.
    waiting: Inbox,
    inbox: Inbox,
    /// Index of the first place for what waits: 0, or that of the second half.
    first: usize,
    outbox: Outbox,
    counters: PortCounters,
}

/// Where answers to one datagram go.
#[derive(Debug)]
pub struct Answers<'a> {
    memory: &'a mut [u8],
    first: usize,
    waiting: &'a mut Inbox,
    counters: &'a mut PortCounters,
}

impl Answers<'_> {
    /// The longest answer in bytes.
    pub const LEN_MAX: usize = PLACE_LEN;

    /// Calls `write` with the next place, its index (below [`COUNT`](Self::COUNT)) and what it held last, and sends as many
    /// bytes as that returns; nothing for 0. When all places are taken `write` is not called and
    /// the answer is lost, and counted: `false`.
    ///
    /// # Panics
    /// When `write` returns more than [`LEN_MAX`](Self::LEN_MAX).
    #[inline]
    pub fn send(&mut self, write: impl FnOnce(usize, &mut [u8; PLACE_LEN]) -> usize) -> bool {
        if self.waiting.count() == WAITING_MAX {
            self.counters.rx_overflow_drops += 1;
            return false;
        }
        let index = self.first + self.waiting.count();
        let start = index * PLACE_LEN;
        let place = self.memory[start..].first_chunk_mut().expect("places are whole");
        let len = write(index, place);
        assert!(len <= PLACE_LEN, "an answer of {len} bytes");
        if len == 0 {
            return true;
        }
        self.waiting.push(start, len);
        self.counters.rx_datagrams += 1;
        self.counters.rx_bytes += len as u64;
        true
    }

    /// Number of places.
    pub const COUNT: usize = 2 * WAITING_MAX;
}

impl<Answer: FnMut(&[u8], &mut Answers<'_>)> AnsweringPort<Answer> {
    /// A port whose only peer is `addr`, an address that is never used.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(addr: SocketAddr, answer: Answer) -> io::Result<Self> {
        let inbox = || Inbox::with_capacity(1, WAITING_MAX);
        Ok(Self {
            answer,
            addr,
            memory: Region::zeroed(Answers::COUNT * PLACE_LEN)?,
            waiting: inbox(),
            inbox: inbox(),
            first: 0,
            outbox: Outbox::new(CHUNKS, Framing::Segments)?,
            counters: PortCounters::default(),
        })
    }
}

impl<Answer: FnMut(&[u8], &mut Answers<'_>)> Port for AnsweringPort<Answer> {
    fn rx_burst(&mut self) -> io::Result<usize> {
        std::mem::swap(&mut self.inbox, &mut self.waiting);
        self.waiting.clear();
        self.first = WAITING_MAX - self.first;
        Ok(self.inbox.count())
    }

    fn split(&mut self) -> (Received<'_>, &mut Outbox) {
        (Received::new(&self.memory[..], &self.inbox), &mut self.outbox)
    }

    fn tx_flush(&mut self) -> io::Result<()> {
        if self.waiting.last_peer().is_none() {
            self.waiting.push_peer(Peer::datagram(self.addr));
        }
        let mut answers = Answers {
            memory: &mut self.memory,
            first: self.first,
            waiting: &mut self.waiting,
            counters: &mut self.counters,
        };
        for train in self.outbox.trains() {
            answers.counters.tx_trains += 1;
            for datagram in self.outbox.bytes(train).chunks(train.segment_len as usize) {
                answers.counters.tx_datagrams += 1;
                answers.counters.tx_bytes += datagram.len() as u64;
                (self.answer)(datagram, &mut answers);
            }
        }
        self.outbox.reset();
        Ok(())
    }

    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn reach(&mut self, addrs: &[SocketAddr]) -> io::Result<bool> {
        Ok(addrs == [self.addr])
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn rx_queue_datagrams(&self, _len: usize) -> usize {
        WAITING_MAX
    }

    fn memory_len(&self) -> usize {
        let inboxes = self.inbox.memory_len() + self.waiting.memory_len();
        self.memory.memory_len() + inboxes + self.outbox.memory_len()
    }

    fn populate(&mut self) -> io::Result<()> {
        self.memory.populate()?;
        self.outbox.populate()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "192.0.2.1:1";

    fn sent(port: &mut impl Port, datagrams: &[&[u8]]) {
        let peer = Peer::datagram(PEER.parse().unwrap());
        for datagram in datagrams {
            let outbox = port.split().1;
            outbox.begin(&peer, datagram.len()).unwrap().bytes.copy_from_slice(datagram);
            outbox.commit(datagram.len());
        }
        port.tx_flush().unwrap();
    }

    fn taken(port: &mut impl Port) -> Vec<Vec<u8>> {
        port.rx_burst().unwrap();
        port.split().0.iter().map(|datagram| datagram.bytes.to_vec()).collect()
    }

    /// Goal: each datagram sent is answered once, in order, with as many as the function likes. Method: as many echoes
    /// of a datagram as its first byte says, over several flushes and bursts.
    #[test]
    fn what_is_sent_is_answered() {
        let mut port = AnsweringPort::new(PEER.parse().unwrap(), |datagram, answers| {
            for _ in 0..datagram[0] {
                answers.send(|_, place| {
                    place[..datagram.len()].copy_from_slice(datagram);
                    datagram.len()
                });
            }
        })
        .unwrap();
        assert!(taken(&mut port).is_empty());
        sent(&mut port, &[&[2, 9], &[0, 8], &[1, 7, 7]]);
        sent(&mut port, &[&[1, 6]]);
        assert_eq!(taken(&mut port), [&[2, 9][..], &[2, 9], &[1, 7, 7], &[1, 6]]);
        assert!(taken(&mut port).is_empty());
        let counters = port.counters();
        assert_eq!((counters.tx_datagrams, counters.rx_datagrams, counters.rx_bytes), (4, 4, 9));
    }

    /// Goal: a place keeps what it held, and answers beyond the last place are lost and counted, not written elsewhere.
    /// Method: number the places, ask for more than there are, and look at them again.
    #[test]
    fn places_are_kept_and_bounded() {
        let mut port = AnsweringPort::new(PEER.parse().unwrap(), |datagram, answers| {
            for _ in 0..=WAITING_MAX {
                answers.send(|index, place| {
                    if datagram == b"number" {
                        place[..4].copy_from_slice(&(index as u32).to_le_bytes());
                    }
                    4
                });
            }
        })
        .unwrap();
        let numbers =
            |from: usize| (from..from + WAITING_MAX).map(|index| (index as u32).to_le_bytes().to_vec());
        for (request, from) in
            [(&b"number"[..], 0), (b"number", WAITING_MAX), (b"again", 0), (b"again", WAITING_MAX)]
        {
            sent(&mut port, &[request]);
            assert!(taken(&mut port) == numbers(from).collect::<Vec<_>>());
        }
        assert_eq!(port.counters().rx_overflow_drops, 4);
        // What is lent outlives what is sent meanwhile.
        sent(&mut port, &[b"number"]);
        let lent: Vec<_> = port.split().0.iter().map(|datagram| datagram.bytes.to_vec()).collect();
        assert!(lent == numbers(WAITING_MAX).collect::<Vec<_>>());
    }
}
