//! Packet sockets with their rings mapped into the process (packet(7), Documentation/networking/packet_mmap.rst).
//!
//! ```text
//!  frame │ tpacket2_hdr 32 │ sockaddr_ll │ … │ Ethernet … │        received: the header says where
//!  frame │ tpacket2_hdr 32 │ Ethernet │ IPv4 │ UDP │ payload │    sent
//!  frame │ tpacket2_hdr 32 │ virtio_net_hdr 10 │ Ethernet │ …     sent, for the kernel to cut
//! ```
//! The first word of a frame says whose it is. The kernel walks around the ring frame by frame, and so does the port: it
//! never has to search. TPACKET_V2 and not V3: V3 hands over whole blocks of frames, either full ones or, by a timer of at
//! least a millisecond, what there is. On a veth pair with one request in flight a round trip took 4.8 µs with V2 and
//! 1,081 µs with V3; with 16 in flight V2 moved 376,000 replies a second and V3 15,000; with 256 in flight 377,000 and
//! 341,000. The timer is also longer than the 200 µs after which a client asks again.

use std::{
    io,
    mem::{offset_of, size_of},
    net::SocketAddrV4,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed, Release},
    },
};

use libc::{
    TP_STATUS_AVAILABLE, TP_STATUS_COPY, TP_STATUS_CSUM_VALID, TP_STATUS_CSUMNOTREADY, TP_STATUS_KERNEL,
    TP_STATUS_SEND_REQUEST, TP_STATUS_SENDING, TP_STATUS_USER, TP_STATUS_VLAN_VALID, tpacket2_hdr,
};
use socket2::{Domain, Socket, Type};

use super::{filter, group::Membership, stack::Place, walk::Walk};
use crate::{
    frame::{Checksums, HEADERS_LEN},
    frame_memory::{FrameMemory, LentMemory},
    outbox::frames::FrameLayout,
    port::{Inbox, Received},
};

/// Where a frame to be sent starts: behind the header, rounded to `TPACKET_ALIGNMENT` (`tpacket_parse_header`,
/// net/packet/af_packet.c).
const SEND_AT: usize = size_of::<tpacket2_hdr>().next_multiple_of(16);

/// `struct virtio_net_hdr` without the count of buffers (linux/virtio_net.h).
const SEGMENTATION_LEN: usize = 10;

/// The kernel finishes the checksum.
const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;

/// The kernel cuts UDP datagrams; since Linux 6.2 (`virtio_net_hdr_to_skb`, linux/virtio_net.h).
const VIRTIO_NET_HDR_GSO_UDP_L4: u8 = 5;

/// Where the checksum's area starts, behind Ethernet and IPv4, and where in it the checksum is.
const CHECKSUM_START: u16 = 34;
const CHECKSUM_OFFSET: u16 = 6;

/// Bytes that ring memory is allocated by. Blocks are contiguous in physical memory, so large ones are hard to get.
const BLOCK_LEN: usize = 64 << 10;

/// A length that the kernel refuses, so that with `PACKET_LOSS` it frees the frame and goes on to the next. It reads it as
/// -1, which it refuses without a word; one that is too long it also writes to its log (`tpacket_parse_header`,
/// net/packet/af_packet.c).
const LEN_REFUSED: u32 = u32::MAX;

/// What the socket may have queued in devices, in bytes as the kernel charges them.
const SEND_BUFFER_LEN: usize = 64 << 20;

/// A frame that has arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArrivedFrame {
    /// First byte, counted from the memory's start.
    pub(crate) start: usize,
    pub(crate) len: usize,
    /// Whether it did not fit: only its beginning is there.
    pub(crate) truncated: bool,
    /// Whether it had a VLAN tag, which the kernel has taken out.
    pub(crate) vlan: bool,
    /// What is known of its checksums.
    pub(crate) checksums: Checksums,
}

/// A socket that receives into a ring.
#[derive(Debug)]
pub(crate) struct RxRing {
    socket: Socket,
    memory: Arc<FrameMemory>,
    frame_len: usize,
    /// The frames that the port has been given and holds.
    walk: Walk,
    /// Behind the socket and its memory, which are dropped before it in this order.
    _membership: Membership,
}

impl RxRing {
    /// A ring of `count` frames of `frame_len` bytes that takes what is sent to a UDP port at an interface, but not what
    /// this machine sends.
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_NET_RAW; what socket(2), setsockopt(2), mmap(2) and bind(2) say.
    pub(crate) fn open(
        place: Place,
        interface_index: u32,
        addr: SocketAddrV4,
        frame_len: usize,
        count: u32,
    ) -> io::Result<Self> {
        // Without a protocol nothing arrives before everything is set up: a foreign frame in the ring would stay there.
        let socket = packet_socket()?;
        set_option(&socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as libc::c_int))?;
        set_option(&socket, libc::PACKET_IGNORE_OUTGOING, &1)?;
        socket.attach_filter(&filter::for_port(addr.port()))?;
        let memory = Arc::new(map_ring(&socket, libc::PACKET_RX_RING, frame_len, count)?);
        bind(&socket, interface_index, libc::ETH_P_ALL as u16)?;
        let membership = Membership::join((place, *addr.ip()), addr.port(), &socket, Arc::clone(&memory))?;
        Ok(Self { socket, memory, frame_len, walk: Walk::new(count), _membership: membership })
    }

    /// Bytes of the ring, which the process and the kernel share.
    pub(crate) fn memory_len(&self) -> usize {
        self.memory.len()
    }

    /// Frames in the ring.
    pub(crate) const fn count(&self) -> u32 {
        self.walk.count()
    }

    /// The next frame that has arrived. It is the port's until [`give_back`](Self::give_back).
    #[inline]
    pub(crate) fn take(&mut self) -> Option<ArrivedFrame> {
        let frame = self.walk.next()? as usize * self.frame_len;
        // Acquire: what the kernel wrote before it handed the frame over is seen after this.
        let status = self.memory.word(frame + offset_of!(tpacket2_hdr, tp_status)).load(Acquire);
        if status & TP_STATUS_USER == 0 {
            return None;
        }
        self.walk.take();
        let header = |offset| self.memory.word(frame + offset).load(Relaxed);
        let full_len = header(offset_of!(tpacket2_hdr, tp_len)) as usize;
        let [mac_at, _network_at] = halves(header(offset_of!(tpacket2_hdr, tp_mac)));
        let mac_at = usize::from(mac_at);
        let room = self.frame_len.saturating_sub(mac_at);
        let len = (header(offset_of!(tpacket2_hdr, tp_snaplen)) as usize).min(room);
        Some(ArrivedFrame {
            start: frame + mac_at,
            len,
            truncated: len < full_len || status & TP_STATUS_COPY != 0,
            vlan: status & TP_STATUS_VLAN_VALID != 0,
            checksums: checksums(status),
        })
    }

    /// Gives all frames back to the kernel, oldest first.
    #[inline]
    pub(crate) fn give_back(&mut self) {
        while let Some(frame) = self.walk.oldest() {
            let status = frame as usize * self.frame_len + offset_of!(tpacket2_hdr, tp_status);
            // Release: the port has read what it wanted before the kernel may write.
            self.memory.word(status).store(TP_STATUS_KERNEL, Release);
            self.walk.let_go();
        }
    }

    /// The bytes of a frame that was just taken.
    #[inline]
    pub(crate) fn bytes(&self, frame: &ArrivedFrame) -> &[u8] {
        // SAFETY: the frame was taken, and giving it back needs `&mut self`; until then the kernel does not write to it
        // (packet_mmap.rst, "Ring buffer"), and nobody of this process ever does.
        unsafe { self.memory.bytes(frame.start, frame.len) }
    }

    /// What `inbox` says lies in the frames held.
    ///
    /// # Panics
    /// In the result: when a place in `inbox` is outside of the ring.
    #[inline]
    pub(crate) fn received<'a>(&'a self, inbox: &'a Inbox) -> Received<'a> {
        // SAFETY: as in `bytes`: `inbox` is cleared whenever frames are given back (`rx_burst` is the only place that does
        // either), so that it holds places in frames that are taken; they stay so while `self` is borrowed.
        Received::new(unsafe { LentMemory::of_frames(&self.memory) }, inbox)
    }

    /// How many frames found no room since the last call.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub(crate) fn take_drops(&mut self) -> io::Result<u64> {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        read_option(&self.socket, libc::PACKET_STATISTICS, &mut statistics)?;
        Ok(statistics.tp_drops.into())
    }

    /// Becomes readable when there is a frame.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
impl RxRing {
    /// The fanout group that it is in; 0 for none.
    pub(super) fn group(&self) -> u16 {
        group(&self.socket).unwrap()
    }
}

fn checksums(status: u32) -> Checksums {
    if status & TP_STATUS_CSUM_VALID != 0 {
        Checksums::Trust
    } else if status & TP_STATUS_CSUMNOTREADY != 0 {
        Checksums::VerifyOrPartial
    } else {
        Checksums::Verify
    }
}

/// How frames are given to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sending {
    /// One datagram a frame, complete; past the queueing discipline where the kernel allows it.
    Datagrams,
    /// Trains, which the kernel cuts and sums, behind the queueing discipline.
    Trains {
        /// Whether a train is copied into the kernel before it is cut. Where the device gathers pieces, the datagrams
        /// would otherwise still point into a frame that the kernel has already given back (`skb_segment`,
        /// net/core/skbuff.c, takes over the pages and not the destructor).
        copied: bool,
    },
}

/// A socket that sends from a ring.
#[derive(Debug)]
pub(crate) struct TxRing {
    socket: Socket,
    memory: Arc<FrameMemory>,
    layout: FrameLayout,
    sending: Sending,
    /// The frames that were handed over and not yet seen to be done.
    walk: Walk,
    bypasses_qdisc: bool,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It was handed to the device.
    Done,
    /// The kernel did not like its format.
    WrongFormat,
}

impl TxRing {
    /// A ring of `count` frames of `frame_len` bytes, a multiple of 16, that sends on an interface.
    ///
    /// # Errors
    /// As [`RxRing::open`]; `EOPNOTSUPP` or `EINVAL` for trains where the kernel knows of none.
    pub(crate) fn open(
        interface_index: u32,
        sending: Sending,
        frame_len: usize,
        count: u32,
    ) -> io::Result<Self> {
        let socket = packet_socket()?;
        set_option(&socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as libc::c_int))?;
        // A frame that the kernel refuses is dropped; without this it would stop the ring.
        set_option(&socket, libc::PACKET_LOSS, &1)?;
        // What is cut is refused behind the bypass (`__dev_direct_xmit`, net/core/dev.c).
        let bypasses_qdisc =
            sending == Sending::Datagrams && set_option(&socket, libc::PACKET_QDISC_BYPASS, &1).is_ok();
        let mut payload_at = SEND_AT + HEADERS_LEN;
        if sending != Sending::Datagrams {
            set_option(&socket, libc::PACKET_VNET_HDR, &1)?;
            payload_at += SEGMENTATION_LEN;
        }
        // Without the privilege to go beyond the administrator's limit the kernel takes what it allows.
        if crate::mmsg::set_int_option(
            socket.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            (SEND_BUFFER_LEN / 2) as libc::c_int,
        )
        .is_err()
        {
            socket.set_send_buffer_size(SEND_BUFFER_LEN / 2)?;
        }
        let memory = Arc::new(map_ring(&socket, libc::PACKET_TX_RING, frame_len, count)?);
        // Without a protocol nothing is received.
        bind(&socket, interface_index, 0)?;
        let segments_max = if sending == Sending::Datagrams { 1 } else { SEGMENTS_MAX };
        let layout = FrameLayout { first: 0, frame_len, payload_at, count, segments_max };
        Ok(Self { socket, memory, layout, sending, walk: Walk::new(count), bypasses_qdisc })
    }

    /// Bytes of the ring, which the process and the kernel share.
    pub(crate) fn memory_len(&self) -> usize {
        self.memory.len()
    }

    /// The ring's memory and where its frames lie, for the outbox that writes them.
    pub(crate) fn frames(&self) -> (Arc<FrameMemory>, FrameLayout) {
        (Arc::clone(&self.memory), self.layout)
    }

    /// Whether frames go to the device without a queueing discipline between.
    pub(crate) const fn bypasses_qdisc(&self) -> bool {
        self.bypasses_qdisc
    }

    /// Marks the next frame as to be sent with the next [`kick`](Self::kick): `payload_len` bytes in datagrams of
    /// `segment_len`.
    ///
    /// # Panics
    /// For another frame than the next in the ring.
    #[inline]
    pub(crate) fn hand_over(&mut self, frame: u32, payload_len: u32, segment_len: u32) {
        let mut len = HEADERS_LEN as u32 + payload_len;
        if let Sending::Trains { copied } = self.sending {
            let linear_len = if copied { len } else { HEADERS_LEN as u32 };
            let is_train = segment_len < payload_len;
            let header = segmentation(is_train.then_some(segment_len as u16), linear_len as u16);
            let start = frame as usize * self.layout.frame_len + SEND_AT;
            // SAFETY: the frame was not handed over yet, so the kernel does not look at it, and the outbox touches nothing
            // in front of the Ethernet header.
            unsafe { self.memory.bytes_mut(start, SEGMENTATION_LEN) }.copy_from_slice(&header);
            len += SEGMENTATION_LEN as u32;
        }
        self.mark(frame, len);
    }

    /// Passes over a frame that is not to be sent: the kernel will free it in its turn.
    ///
    /// # Panics
    /// As [`hand_over`](Self::hand_over).
    pub(crate) fn hand_over_nothing(&mut self, frame: u32) {
        self.mark(frame, LEN_REFUSED);
    }

    #[inline]
    fn mark(&mut self, frame: u32, len: u32) {
        assert_eq!(self.walk.next(), Some(frame), "frames leave in the order of the ring");
        let start = frame as usize * self.layout.frame_len;
        self.memory.word(start + offset_of!(tpacket2_hdr, tp_len)).store(len, Relaxed);
        // Release: the kernel sees all that was written before.
        self.status(frame).store(TP_STATUS_SEND_REQUEST, Release);
        self.walk.take();
    }

    /// Has the kernel send what was handed over; it may stop before the end.
    ///
    /// # Errors
    /// What send(2) says: `EAGAIN` and `ENOBUFS` when the device is behind, `ENETDOWN` and `ENXIO` when it is gone.
    pub(crate) fn kick(&self) -> io::Result<()> {
        // SAFETY: no data is passed but what lies in the ring: a null pointer with length 0 (packet_mmap.rst).
        let sent = unsafe {
            libc::send(self.socket.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes back frames that are done, oldest first.
    #[inline]
    pub(crate) fn reap(&mut self, mut each: impl FnMut(u32, Sent)) {
        while let Some(frame) = self.walk.oldest() {
            // Acquire: the kernel has read the frame before it gave it back.
            let status = self.status(frame).load(Acquire);
            if status & (TP_STATUS_SEND_REQUEST | TP_STATUS_SENDING) != 0 {
                break;
            }
            let is_good = status & libc::TP_STATUS_WRONG_FORMAT == 0;
            if !is_good {
                self.status(frame).store(TP_STATUS_AVAILABLE, Relaxed);
            }
            self.walk.let_go();
            each(frame, if is_good { Sent::Done } else { Sent::WrongFormat });
        }
    }

    /// Whether some frame waits for another [`kick`](Self::kick). The last one tells, since they leave in order.
    pub(crate) fn is_waiting(&self) -> bool {
        self.walk.newest().is_some_and(|frame| self.status(frame).load(Acquire) & TP_STATUS_SEND_REQUEST != 0)
    }

    /// Frames that were handed over and not yet taken back.
    pub(crate) const fn in_flight_count(&self) -> u32 {
        self.walk.held_count()
    }

    /// Has the kernel pass over all frames that wait, with the next kick; tells which.
    pub(crate) fn give_up_waiting(&mut self, mut each: impl FnMut(u32)) {
        for frame in self.walk.held() {
            // Only this thread kicks, so that the kernel looks at none of them meanwhile.
            if self.status(frame).load(Acquire) & TP_STATUS_SEND_REQUEST != 0 {
                let start = frame as usize * self.layout.frame_len;
                self.memory.word(start + offset_of!(tpacket2_hdr, tp_len)).store(LEN_REFUSED, Relaxed);
                each(frame);
            }
        }
    }

    #[inline]
    fn status(&self, frame: u32) -> &std::sync::atomic::AtomicU32 {
        self.memory.word(frame as usize * self.layout.frame_len + offset_of!(tpacket2_hdr, tp_status))
    }
}

/// Datagrams in a train: `UDP_MAX_SEGMENTS` before Linux 6.9 (linux/udp.h).
const SEGMENTS_MAX: u32 = 64;

/// `struct virtio_net_hdr` in the machine's byte order, which is that of packet sockets (`vio_le`, linux/virtio_net.h).
fn segmentation(segment_len: Option<u16>, linear_len: u16) -> [u8; SEGMENTATION_LEN] {
    let kind = if segment_len.is_some() { VIRTIO_NET_HDR_GSO_UDP_L4 } else { 0 };
    let [a, b] = linear_len.to_ne_bytes();
    let [c, d] = segment_len.unwrap_or(0).to_ne_bytes();
    let [e, f] = CHECKSUM_START.to_ne_bytes();
    let [g, h] = CHECKSUM_OFFSET.to_ne_bytes();
    [VIRTIO_NET_HDR_F_NEEDS_CSUM, kind, a, b, c, d, e, f, g, h]
}

/// The two 16-bit numbers that lie in a word.
const fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

fn packet_socket() -> io::Result<Socket> {
    Socket::new(Domain::PACKET, Type::RAW, None)
}

/// Makes a ring of `count` frames and maps it.
fn map_ring(socket: &Socket, ring: libc::c_int, frame_len: usize, count: u32) -> io::Result<FrameMemory> {
    let len = frame_len * count as usize;
    let block_len = BLOCK_LEN.max(frame_len).min(len);
    assert!(
        block_len.is_multiple_of(frame_len) && len.is_multiple_of(block_len),
        "{count} frames of {frame_len}"
    );
    let request = libc::tpacket_req {
        tp_block_size: block_len as libc::c_uint,
        tp_block_nr: (len / block_len) as libc::c_uint,
        tp_frame_size: frame_len as libc::c_uint,
        tp_frame_nr: count,
    };
    // An inbox counts its bytes in 32 bits.
    assert!(len <= u32::MAX as usize, "{count} frames of {frame_len} bytes");
    set_option(socket, ring, &request)?;
    FrameMemory::of_socket(socket.as_fd(), len, 0)
}

/// Sets an option of packet sockets whose value is a `T` of plain numbers.
fn set_option<T>(socket: &Socket, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: there are no pointers in `value`.
    unsafe { set_option_with_pointers(socket, option, value) }
}

/// Sets an option of packet sockets whose value is a `T`.
///
/// # Safety
/// Pointers in `value` must be what the option expects, to memory that the kernel may read during the call.
unsafe fn set_option_with_pointers<T>(socket: &Socket, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the length says, which are those of `value`, and what they point to, for
    // which the caller answers.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads an option of packet sockets whose value is a `T` of plain numbers.
fn read_option<T>(socket: &Socket, option: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes no more bytes than `len` says, which are those of `value`; any bytes are valid numbers.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            std::ptr::from_mut(value).cast(),
            &raw mut len,
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a fanout group with a number of its own in which a program chooses, and returns the number.
pub(super) fn found_group(socket: &Socket) -> io::Result<u16> {
    set_option(socket, libc::PACKET_FANOUT, &fanout(0, libc::PACKET_FANOUT_FLAG_UNIQUEID))?;
    group(socket)
}

/// Joins a group made by [`found_group`].
pub(super) fn join_group(socket: &Socket, id: u16) -> io::Result<()> {
    set_option(socket, libc::PACKET_FANOUT, &fanout(id, 0))
}

/// The group that a socket is in; 0 for none.
pub(super) fn group(socket: &Socket) -> io::Result<u16> {
    let mut value = 0_u32;
    read_option(socket, libc::PACKET_FANOUT, &mut value)?;
    // The number is in the low half (`fanout_add`, net/packet/af_packet.c).
    Ok(value as u16)
}

/// The value of `PACKET_FANOUT`: number below, kind and flags above. The group has a flag of its own for what this machine
/// sends.
const fn fanout(id: u16, flags: u32) -> u32 {
    let kind = libc::PACKET_FANOUT_CBPF | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING | flags;
    kind << 16 | id as u32
}

/// Gives a group its program, which returns the index of the member to ask.
pub(super) fn set_group_program(member: &Socket, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel reads as many instructions as `len` says, which outlive the call.
    unsafe { set_option_with_pointers(member, libc::PACKET_FANOUT_DATA, &program) }
}

/// Binds a packet socket to an interface, and with a protocol has it receive.
fn bind(socket: &Socket, interface_index: u32, protocol: u16) -> io::Result<()> {
    let addr = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: interface_index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the kernel reads as many bytes as the length says, which are those of `addr`.
    let answer = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const addr).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket that sends whole frames on an interface, as they are.
#[cfg(test)]
pub(super) fn raw_sender(interface_index: u32) -> io::Result<Socket> {
    let socket = packet_socket()?;
    bind(&socket, interface_index, 0)?;
    Ok(socket)
}
