//! What every back-end has in common: the `Port` trait, the datagrams it lends and its counters.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
};

use crate::{frame::FrameFault, frame_memory::LentMemory, outbox::Outbox};

/// What to say when a port has [`rx_truncated`](PortCounters::rx_truncated) datagrams.
pub const FRAMES_CUT_OFF: &str = "frames longer than those of the ring arrive and are lost: on virtual links a sender's \
                                  trains cross whole unless its `ethtool -K INTERFACE tx-udp-segmentation off` has them cut";

/// One end of a link, owned by one thread: bursts of datagrams in, bursts of datagrams out.
///
/// A port owns its memory and lends it. What [`rx_burst`](Port::rx_burst) received stays readable until the next
/// `rx_burst`; replies are written straight into the outbox and leave with [`tx_flush`](Port::tx_flush). Nobody
/// outside a port needs `unsafe`, and nothing is copied between the system call and the protocol.
///
/// Loss is not an error here: a datagram that could not be sent or did not fit is counted and dropped, since the
/// protocol above retransmits anyway. An `Err` means that the port itself is no longer usable.
pub trait Port {
    /// Takes what has arrived, at most one burst, and returns how many datagrams that is. Never blocks.
    ///
    /// # Errors
    /// Only when the port is broken for good, with the interface or address in the message.
    fn rx_burst(&mut self) -> io::Result<usize>;

    /// The datagrams of the last burst, and the outbox for the answers.
    fn split(&mut self) -> (Received<'_>, &mut Outbox);

    /// Sends everything in the outbox and makes its room free again. Waits at most 1 ms at a time for a device that is
    /// behind, then drops what is left, or keeps it for the next burst where it lies in a ring.
    ///
    /// # Errors
    /// Only when the port is broken for good, with the interface or address in the message.
    fn tx_flush(&mut self) -> io::Result<()>;

    /// Sends what is not worth waiting for: trains that are complete. Others may stay in the outbox until the next
    /// [`tx_flush`](Port::tx_flush) or until they are complete too, for a caller that has more to add at once.
    ///
    /// # Errors
    /// As `tx_flush`.
    fn tx_flush_complete(&mut self) -> io::Result<()> {
        self.tx_flush()
    }

    /// The address that peers reach this port at.
    fn local_addr(&self) -> SocketAddr;

    /// Sees to it that datagrams can be sent to all of these addresses, beside those before; `false` when only another
    /// port can, since this one is connected.
    ///
    /// # Errors
    /// A sentence that names the address which no port of this kind can send to.
    fn reach(&mut self, addrs: &[SocketAddr]) -> io::Result<bool>;

    /// What has passed and what was lost so far.
    fn counters(&self) -> PortCounters;

    /// How many waiting datagrams of `len` bytes the receive queue can hold, charged for as the kernel does; `usize::MAX`
    /// when none is ever dropped (TCP).
    fn rx_queue_datagrams(&self, len: usize) -> usize;

    /// Looks after what no burst shows: whether the interface is still there, and what the kernel has dropped. To be
    /// called some fifty times a second.
    ///
    /// # Errors
    /// Only when the port is broken for good, with the interface or address in the message.
    fn check(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Bytes of memory that the port takes once all of it is in use: buffers, rings, frames, and the lists that go with
    /// them. It never takes more.
    fn memory_len(&self) -> usize;

    /// Takes the memory that the system has only promised so far, from the calling thread's NUMA node. Rings and frames are
    /// there from the beginning.
    ///
    /// # Errors
    /// When there is not so much.
    fn populate(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The descriptor that becomes readable when there is work, for [`wait`](crate::wait::wait); `None` for a port
    /// without one.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;
}

/// Who sent a datagram, and therefore where its answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Remote address and port.
    pub addr: SocketAddr,
    /// Local address that the datagram was sent to, when the port is bound to several: the answer must leave from it.
    pub local: Option<IpAddr>,
    /// The connection it came over, for stream ports; their number is never used twice by one port.
    pub connection: Option<u32>,
    /// Ethernet address that its frames come from, for ports that see frames; all zero when that is not known.
    pub mac: [u8; 6],
}

impl Peer {
    /// A peer of a datagram port with one local address.
    #[must_use]
    pub const fn datagram(addr: SocketAddr) -> Self {
        Self { addr, local: None, connection: None, mac: [0; 6] }
    }

    /// Whether it speaks over a connection, whose address was proven by the transport's own handshake.
    #[must_use]
    pub const fn is_stream(&self) -> bool {
        self.connection.is_some()
    }
}

/// One datagram, lent by its port until the next `rx_burst`.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Sender.
    pub peer: &'a Peer,
    /// UDP payload.
    pub bytes: &'a [u8],
}

/// The datagrams of one burst, lent by their port until the next `rx_burst`.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    memory: LentMemory<'a>,
    index: &'a Inbox,
}

impl<'a> Received<'a> {
    pub(crate) fn new(memory: impl Into<LentMemory<'a>>, index: &'a Inbox) -> Self {
        Self { memory: memory.into(), index }
    }

    /// Number of datagrams.
    #[must_use]
    pub fn count(&self) -> usize {
        self.index.entries.len()
    }

    /// The datagram at `index`, in order of arrival per peer.
    ///
    /// # Panics
    /// When `index` is not below [`count`](Self::count).
    #[inline]
    #[must_use]
    pub fn datagram(&self, index: usize) -> Datagram<'a> {
        let entry = self.index.entries[index];
        Datagram {
            peer: &self.index.peers[entry.peer as usize],
            bytes: self.memory.bytes(entry.start as usize, entry.len as usize),
        }
    }

    /// The memory that all datagrams lie in.
    pub(crate) const fn memory(&self) -> LentMemory<'a> {
        self.memory
    }

    /// Where in [`memory`](Self::memory) the datagram at `index` starts.
    #[inline]
    pub(crate) fn start(&self, index: usize) -> usize {
        self.index.entries[index].start as usize
    }

    /// All datagrams in order.
    pub fn iter(&self) -> impl Iterator<Item = Datagram<'a>> + use<'a> {
        let received = *self;
        (0..self.count()).map(move |index| received.datagram(index))
    }
}

/// Where the datagrams of a burst lie in a port's receive memory. Built once, cleared per burst.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    peers: Vec<Peer>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u32,
    len: u32,
    peer: u32,
}

impl Inbox {
    pub(crate) fn with_capacity(peers: usize, datagrams: usize) -> Self {
        Self { peers: Vec::with_capacity(peers), entries: Vec::with_capacity(datagrams) }
    }

    pub(crate) fn clear(&mut self) {
        self.peers.clear();
        self.entries.clear();
    }

    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }

    /// Datagrams that there is still room for without more memory.
    pub(crate) fn free_count(&self) -> usize {
        self.entries.capacity() - self.entries.len()
    }

    /// Bytes that it takes.
    pub(crate) fn memory_len(&self) -> usize {
        Self::memory_len_of(self.peers.capacity(), self.entries.capacity())
    }

    /// Bytes that one with room for so many takes.
    pub(crate) const fn memory_len_of(peers: usize, datagrams: usize) -> usize {
        peers * size_of::<Peer>() + datagrams * size_of::<Entry>()
    }

    /// Everything pushed after this comes from `peer`.
    pub(crate) fn push_peer(&mut self, peer: Peer) {
        self.peers.push(peer);
    }

    /// The peer pushed last.
    pub(crate) fn last_peer(&self) -> Option<&Peer> {
        self.peers.last()
    }

    /// A datagram of the peer pushed last, at `start` in the port's receive memory.
    #[inline]
    pub(crate) fn push(&mut self, start: usize, len: usize) {
        let peer = self.peers.len().checked_sub(1).expect("push_peer comes before push");
        self.entries.push(Entry { start: start as u32, len: len as u32, peer: peer as u32 });
    }
}

/// Totals of one port since it was opened; each is a count unless its name says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Datagrams received.
    pub rx_datagrams: u64,
    /// Payload bytes received.
    pub rx_bytes: u64,
    /// Trains received: one per system-call buffer, however many datagrams it held.
    pub rx_trains: u64,
    /// Datagrams cut off or without room in the buffer they arrived in; dropped.
    pub rx_truncated: u64,
    /// Datagrams that the kernel dropped because the receive queue was full (`SO_RXQ_OVFL`, socket(7)).
    pub rx_overflow_drops: u64,
    /// Datagrams handed to the kernel.
    pub tx_datagrams: u64,
    /// Payload bytes handed to the kernel.
    pub tx_bytes: u64,
    /// Trains sent.
    pub tx_trains: u64,
    /// Datagrams dropped because the kernel or a slow reader took no more.
    pub tx_dropped: u64,
    /// Errors of the system calls that were survived (a peer that is gone, a device that refuses trains).
    pub soft_errors: u64,
    /// Connections accepted, for stream ports.
    pub connections_opened: u64,
    /// Connections turned away because the table was full.
    pub connections_refused: u64,
    /// Connections closed because the peer broke the framing, or took its answers too slowly.
    pub connections_dropped: u64,
    /// Frames whose Ethernet, IPv4 or UDP header does not parse, is cut short or names nobody that could be answered; of no
    /// use to anybody (ports that see frames).
    pub rx_bad_frames: u64,
    /// Frames with a wrong IPv4 or UDP checksum; dropped.
    pub rx_bad_checksums: u64,
    /// Fragments of IPv4 datagrams, left to the kernel: linerate's datagrams are never fragmented.
    pub rx_fragments: u64,
    /// Frames with a VLAN tag, left to the kernel.
    pub rx_vlan: u64,
    /// IPv6 datagrams to the port, left to the kernel.
    pub rx_ipv6: u64,
    /// Datagrams to the port at another Ethernet or IP address, left to the kernel.
    pub rx_wrong_destination: u64,
    /// Datagrams that arrived at the queue of another core, which handed them over.
    pub rx_handed_over: u64,
    /// Datagrams for another core that could not be handed over: its queue was full, or nobody polls it.
    pub rx_handover_drops: u64,
}

impl PortCounters {
    /// The sum of two ports' totals.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.combine(other, u64::wrapping_add)
    }

    /// What was counted since an earlier reading.
    #[must_use]
    pub fn minus(self, earlier: Self) -> Self {
        self.combine(earlier, u64::wrapping_sub)
    }

    /// Counts a frame that is not for the port's owner.
    pub(crate) const fn count_fault(&mut self, fault: FrameFault) {
        match fault {
            FrameFault::BadFrame => self.rx_bad_frames += 1,
            FrameFault::BadChecksum => self.rx_bad_checksums += 1,
            FrameFault::Fragment => self.rx_fragments += 1,
            FrameFault::Vlan => self.rx_vlan += 1,
            FrameFault::Ipv6 => self.rx_ipv6 += 1,
            FrameFault::WrongDestination => self.rx_wrong_destination += 1,
        }
    }

    fn combine(self, other: Self, each: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            rx_datagrams: each(self.rx_datagrams, other.rx_datagrams),
            rx_bytes: each(self.rx_bytes, other.rx_bytes),
            rx_trains: each(self.rx_trains, other.rx_trains),
            rx_truncated: each(self.rx_truncated, other.rx_truncated),
            rx_overflow_drops: each(self.rx_overflow_drops, other.rx_overflow_drops),
            tx_datagrams: each(self.tx_datagrams, other.tx_datagrams),
            tx_bytes: each(self.tx_bytes, other.tx_bytes),
            tx_trains: each(self.tx_trains, other.tx_trains),
            tx_dropped: each(self.tx_dropped, other.tx_dropped),
            soft_errors: each(self.soft_errors, other.soft_errors),
            connections_opened: each(self.connections_opened, other.connections_opened),
            connections_refused: each(self.connections_refused, other.connections_refused),
            connections_dropped: each(self.connections_dropped, other.connections_dropped),
            rx_bad_frames: each(self.rx_bad_frames, other.rx_bad_frames),
            rx_bad_checksums: each(self.rx_bad_checksums, other.rx_bad_checksums),
            rx_fragments: each(self.rx_fragments, other.rx_fragments),
            rx_vlan: each(self.rx_vlan, other.rx_vlan),
            rx_ipv6: each(self.rx_ipv6, other.rx_ipv6),
            rx_wrong_destination: each(self.rx_wrong_destination, other.rx_wrong_destination),
            rx_handed_over: each(self.rx_handed_over, other.rx_handed_over),
            rx_handover_drops: each(self.rx_handover_drops, other.rx_handover_drops),
        }
    }
}
