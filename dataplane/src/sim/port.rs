//! The port of a simulated network.

use std::{io, net::SocketAddr, os::fd::BorrowedFd};

use super::{PortId, SimNetwork};
use crate::{
    outbox::{Framing, Outbox},
    port::{Inbox, Peer, Port, PortCounters, Received},
    region::Region,
    udp::charge,
};

/// Datagrams received in one burst.
const BURST_MAX: usize = 64;

/// Longest datagram that a link carries.
const DATAGRAM_LEN_MAX: usize = 2_048;

/// Chunks to send from: with them a port's memory stays below the size from which regions lie on huge pages, which
/// take longer to zero than a short simulation to run.
const CHUNKS: usize = 24;

/// One port of a [`SimNetwork`].
#[derive(Debug)]
pub struct SimPort {
    network: SimNetwork,
    id: PortId,
    addr: SocketAddr,
    memory: Region<u8>,
    inbox: Inbox,
    outbox: Outbox,
    counters: PortCounters,
}

impl SimPort {
    pub(super) fn new(network: SimNetwork, addr: SocketAddr) -> io::Result<Self> {
        let memory = Region::zeroed(BURST_MAX * DATAGRAM_LEN_MAX)?;
        let outbox = Outbox::new(CHUNKS, Framing::Segments)?;
        let id = network.0.borrow_mut().plug(addr)?;
        let inbox = Inbox::with_capacity(BURST_MAX, BURST_MAX);
        Ok(Self { network, id, addr, memory, inbox, outbox, counters: PortCounters::default() })
    }

    /// Names this port to its network.
    #[must_use]
    pub const fn id(&self) -> PortId {
        self.id
    }

    /// Sends the trains that `is_due` says are.
    fn send_trains(&mut self, is_due: impl Fn(&Outbox, usize) -> bool) {
        let mut network = self.network.0.borrow_mut();
        for (index, train) in self.outbox.trains().iter().enumerate() {
            if !is_due(&self.outbox, index) {
                continue;
            }
            self.counters.tx_trains += 1;
            for datagram in self.outbox.bytes(train).chunks(train.segment_len as usize) {
                self.counters.tx_datagrams += 1;
                self.counters.tx_bytes += datagram.len() as u64;
                network.send_from(self.id, train.peer.addr, datagram);
            }
        }
    }
}

impl Port for SimPort {
    fn rx_burst(&mut self) -> io::Result<usize> {
        self.inbox.clear();
        let mut network = self.network.0.borrow_mut();
        for buffer in 0..BURST_MAX {
            let Some((from, bytes)) = network.take(self.id) else { break };
            let (start, len) = (buffer * DATAGRAM_LEN_MAX, bytes.len());
            self.memory[start..start + len].copy_from_slice(&bytes);
            self.inbox.push_peer(Peer::datagram(from));
            self.inbox.push(start, len);
            self.counters.rx_trains += 1;
            self.counters.rx_datagrams += 1;
            self.counters.rx_bytes += len as u64;
        }
        Ok(self.inbox.count())
    }

    fn split(&mut self) -> (Received<'_>, &mut Outbox) {
        (Received::new(&self.memory[..], &self.inbox), &mut self.outbox)
    }

    fn tx_flush(&mut self) -> io::Result<()> {
        self.send_trains(|_, _| true);
        self.outbox.reset();
        Ok(())
    }

    fn tx_flush_complete(&mut self) -> io::Result<()> {
        self.send_trains(|outbox, index| !outbox.is_growing(index));
        self.outbox.keep_growing();
        Ok(())
    }

    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn reach(&mut self, addrs: &[SocketAddr]) -> io::Result<bool> {
        Ok(!addrs.is_empty())
    }

    fn counters(&self) -> PortCounters {
        PortCounters { rx_overflow_drops: self.network.0.borrow().overflow_drops(self.id), ..self.counters }
    }

    fn rx_queue_datagrams(&self, len: usize) -> usize {
        self.network.0.borrow().faults.queue_len / charge(len)
    }

    fn memory_len(&self) -> usize {
        self.memory.memory_len() + self.inbox.memory_len() + self.outbox.memory_len()
    }

    fn populate(&mut self) -> io::Result<()> {
        self.memory.populate()?;
        self.outbox.populate()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimPort {
    fn drop(&mut self) {
        self.network.unplug(self.id);
    }
}
