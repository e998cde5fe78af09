//! Packet sockets: frames straight from and to rings that the kernel shares with the process.
//!
//! What arrives for the port is copied by the kernel into a ring and read there without a system call. What leaves is
//! written into a ring and costs one system call per flush. Where the kernel cuts trains of datagrams for the device it is
//! given trains: a pass through the kernel costs the same for one as for forty. On a veth pair of real 1,500-byte frames,
//! one core each side and 140 bytes asked for 1,460, that made 1,010,000 replies a second where devices sum and 877,000
//! where they do not; one frame per datagram made 412,000 and 410,000, and a UDP socket without trains 280,000 and 275,000.
//! Without the program that keeps what the ring took from the stack, trains made no more than 303,000.
//!
//! On the loopback packet ports reach each other, and kernel sockets reach them; the kernel's own stack takes frames for
//! 127.0.0.0/8 only from its own sockets, so that the other way needs `sysctl net.ipv4.conf.lo.route_localnet=1` and
//! `net.ipv4.conf.lo.accept_local=1`.

mod filter;
mod group;
#[allow(unsafe_code)]
mod ring;
mod stack;
#[cfg(test)]
mod tests;
mod walk;

use std::{
    fmt, io,
    net::{SocketAddr, SocketAddrV4},
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use self::{
    ring::{RxRing, Sending, Sent, TxRing},
    stack::{KeptFromStack, Place},
};
use crate::{
    destination::{HeaderCache, destination},
    frame::{self, Local},
    interface::{self, Interface, Neighbours},
    outbox::{
        Outbox,
        frames::{FrameOrder, WrittenFrame},
    },
    port::{Inbox, Peer, Port, PortCounters, Received},
    privilege,
    reservation::Reservation,
};

/// Frames taken by one [`Port::rx_burst`].
const BURST_MAX: usize = 256;

/// Bytes of a receive frame that the kernel keeps for its own header and alignment: 66 in front of an Ethernet frame
/// (`tpacket_rcv`, net/packet/af_packet.c), and the Ethernet header itself.
const RX_OVERHEAD_LEN: usize = 128;

/// Longest receive frame: jumbo frames of 9,000 bytes fit. The loopback's MTU of 64 KiB is nothing that peers use.
const RX_FRAME_LEN_MAX: usize = 16 << 10;

/// A frame that holds the 1,500 bytes that nearly all links have.
const RX_FRAME_LEN_MIN: usize = 2 << 10;

/// Frames to send trains from, and their length. A frame takes 44 full datagrams.
const TRAIN_FRAMES: u32 = 64;
const TRAIN_FRAME_LEN: usize = 64 << 10;

/// Frames to send single datagrams from: at least 23 of the outbox's chunks.
const DATAGRAM_FRAMES: u32 = 1_024;

/// First kernel whose packet sockets take trains of UDP datagrams (`VIRTIO_NET_HDR_GSO_UDP_L4`, linux/virtio_net.h).
const TRAINS_SINCE: [u32; 2] = [6, 2];

/// Longest wait for a device that is behind.
const SEND_TIMEOUT: Duration = Duration::from_millis(1);

/// Bytes of an Ethernet header, which the MTU does not count.
const ETHERNET_LEN: usize = 14;

/// How a packet port is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketConfig {
    /// Frames in the receive ring, a multiple of 32; together less than 4 GiB.
    pub rx_frames: u32,
    /// Whether to send trains where the kernel cuts them.
    pub trains: bool,
    /// Whether to keep from the kernel's stack what the ring has taken, if the process may.
    pub keep_from_stack: bool,
}

impl Default for PacketConfig {
    /// 4,096 frames to receive, trains, nothing twice.
    fn default() -> Self {
        Self { rx_frames: 4_096, trains: true, keep_from_stack: true }
    }
}

/// A packet socket with its rings.
pub struct PacketPort {
    rx: RxRing,
    inbox: Inbox,
    tx: TxRing,
    outbox: Outbox,
    /// Datagrams and bytes in each frame that was handed over.
    handed_over: Vec<Load>,
    local: Local,
    headers: HeaderCache,
    neighbours: Neighbours,
    interface: Interface,
    /// Or the reason why not. Gone before somebody else can have the UDP port.
    kept_from_stack: Result<KeptFromStack, String>,
    _reservation: Reservation,
    sending: Sending,
    counters: PortCounters,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    datagrams: u64,
    bytes: u64,
}

impl fmt::Debug for PacketPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { interface, local, .. } = self;
        f.debug_struct("PacketPort")
            .field("interface", &interface.name)
            .field("local", local)
            .finish_non_exhaustive()
    }
}

impl PacketPort {
    /// A port at a fixed IPv4 address of one of this machine's interfaces, for a server core. Nobody else can have the
    /// same UDP port; 0 lets the kernel choose one.
    ///
    /// # Errors
    /// A sentence with the interface or address in it: `PermissionDenied` without CAP_NET_RAW, `InvalidInput` for an
    /// address that is not a single IPv4 address, `AddrNotAvailable`, `AddrInUse`; else what the kernel says.
    ///
    /// # Panics
    /// When the ring's number of frames is not a multiple of 32, or they take 4 GiB or more.
    pub fn bind(addr: SocketAddr, config: PacketConfig) -> io::Result<Self> {
        let addr = ipv4(addr)?;
        if addr.ip().is_unspecified() {
            return Err(invalid(
                "a packet port listens on one interface: give it the interface's IPv4 address",
            ));
        }
        Self::open(Interface::of_address(*addr.ip())?, addr.port(), config)
    }

    /// A port for a client of the given servers: on the interface that leads to them, at a UDP port of the kernel's
    /// choosing.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), and as [`set_servers`](Self::set_servers).
    ///
    /// # Panics
    /// As `bind`.
    pub fn connect(servers: &[SocketAddr], config: PacketConfig) -> io::Result<Self> {
        let first = ipv4(*servers.first().ok_or_else(|| invalid("no server address given"))?)?;
        let interface = interface::towards(*first.ip())?;
        let mut port = Self::open(interface, 0, config)?;
        port.set_servers(servers)?;
        Ok(port)
    }

    /// Finds out where frames for these servers go, in addition to those known already.
    ///
    /// # Errors
    /// A sentence: `InvalidInput` for a server that is not reached over the port's interface, `TimedOut` for one whose
    /// Ethernet address nobody tells.
    pub fn set_servers(&mut self, servers: &[SocketAddr]) -> io::Result<()> {
        let servers = servers.iter().copied().map(ipv4).collect::<io::Result<Vec<_>>>()?;
        self.neighbours.resolve_servers(&self.interface, &servers)
    }

    /// How the port works, in one line for people.
    #[must_use]
    pub fn mode(&self) -> String {
        let sending = match self.sending {
            Sending::Trains { .. } => {
                format!("trains from {TRAIN_FRAMES} frames of 64 KiB, cut by the kernel")
            }
            Sending::Datagrams => {
                let bypass = if self.tx.bypasses_qdisc() { ", past the qdisc" } else { "" };
                format!("datagrams from {DATAGRAM_FRAMES} frames{bypass}")
            }
        };
        let stack = match &self.kept_from_stack {
            Ok(_) => "what it took is kept from the stack (TCX)".to_owned(),
            Err(reason) => format!("the stack handles what it took once more ({reason})"),
        };
        format!(
            "AF_PACKET on {}: receives into {} frames (TPACKET_V2), sends {sending}; {stack}",
            self.interface.name,
            self.rx.count(),
        )
    }

    fn open(interface: Interface, port: u16, config: PacketConfig) -> io::Result<Self> {
        privilege::require(&format!("AF_PACKET on {}", interface.name), privilege::PACKET)?;
        interface.state()?;
        let reservation = Reservation::take(SocketAddrV4::new(interface.addr, port))?;
        let port = reservation.addr().port();
        let failed = |what, error| interface.named(what, &error);
        let rx_frame_len = rx_frame_len(&interface);
        let place = Place::of(&interface)?;
        let rx = RxRing::open(place, interface.index, reservation.addr(), rx_frame_len, config.rx_frames)
            .map_err(|error| failed("no receive ring", error))?;
        let sending = if config.trains { sending(&interface) } else { Sending::Datagrams };
        let (frame_len, frames) = match sending {
            Sending::Trains { .. } => (TRAIN_FRAME_LEN, TRAIN_FRAMES),
            Sending::Datagrams => (rx_frame_len, DATAGRAM_FRAMES),
        };
        let tx = TxRing::open(interface.index, sending, frame_len, frames)
            .map_err(|error| failed("no send ring", error))?;
        let (memory, layout) = tx.frames();
        let kept_from_stack = if config.keep_from_stack {
            KeptFromStack::new(place, &interface, port).map_err(|error| why_not_kept(&error))
        } else {
            Err("not asked to keep it".to_owned())
        };
        Ok(Self {
            rx,
            inbox: Inbox::with_capacity(BURST_MAX, BURST_MAX),
            tx,
            outbox: Outbox::of_frames(memory, layout, FrameOrder::Ring)?,
            handed_over: vec![Load::default(); frames as usize],
            local: Local { mac: interface.mac, addr: interface.addr, port },
            headers: HeaderCache::new(),
            neighbours: Neighbours::new()?,
            interface,
            _reservation: reservation,
            kept_from_stack,
            sending,
            counters: PortCounters::default(),
        })
    }

    /// Writes the headers of the first `count` written frames and hands them to the ring.
    fn hand_over(&mut self, count: usize) {
        let outbox = self.outbox.frames_mut();
        for index in 0..count {
            let WrittenFrame { frame, len, segment_len, count, peer } = outbox.written(index);
            let load = Load { datagrams: count.into(), bytes: len.into() };
            let fits = segment_len as usize + frame::HEADERS_LEN <= self.interface.mtu + ETHERNET_LEN;
            let to = destination(peer, &self.neighbours, self.interface.is_loopback).filter(|_| fits);
            let Some((addr, mac)) = to else {
                // The frame has its place in the ring; the kernel passes over it.
                self.tx.hand_over_nothing(frame);
                self.handed_over[frame as usize] = Load::default();
                self.counters.tx_dropped += load.datagrams;
                continue;
            };
            let headers = self.headers.to(&self.local, addr, mac);
            let (place, payload) = outbox.headers_and_payload(frame, len as usize);
            match self.sending {
                Sending::Datagrams => headers.write(place, payload),
                Sending::Trains { .. } => headers.write_partial(place, payload.len()),
            }
            self.tx.hand_over(frame, len, segment_len);
            self.handed_over[frame as usize] = load;
            self.counters.tx_trains += 1;
            self.counters.tx_datagrams += load.datagrams;
            self.counters.tx_bytes += load.bytes;
        }
        outbox.detach_first(count);
    }

    /// Sends what was handed over.
    fn transmit(&mut self) -> io::Result<()> {
        let mut deadline = None;
        loop {
            if self.tx.is_waiting() {
                self.kick()?;
            }
            self.reap();
            // What the device still holds comes back later; there has to be room for what is written next.
            let is_full = self.tx.in_flight_count() as usize > self.handed_over.len() / 2;
            if !self.tx.is_waiting() && !is_full {
                return Ok(());
            }
            let now = Instant::now();
            if now >= *deadline.get_or_insert(now + SEND_TIMEOUT) {
                break;
            }
            std::hint::spin_loop();
        }
        let Self { tx, handed_over, counters, .. } = self;
        tx.give_up_waiting(|frame| take_back(counters, &mut handed_over[frame as usize]));
        if self.tx.is_waiting() {
            self.kick()?;
        }
        self.reap();
        Ok(())
    }

    fn kick(&mut self) -> io::Result<()> {
        match self.tx.kick() {
            Err(error) if is_fatal(&error) => Err(self.interface.named("cannot send", &error)),
            // The device is behind, or a signal came: the frames that wait tell.
            Err(_) => {
                self.counters.soft_errors += 1;
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn reap(&mut self) {
        let Self { tx, outbox, handed_over, counters, .. } = self;
        let outbox = outbox.frames_mut();
        tx.reap(|frame, sent| {
            if sent == Sent::WrongFormat {
                counters.soft_errors += 1;
                take_back(counters, &mut handed_over[frame as usize]);
            }
            outbox.release(frame);
        });
    }
}

impl Port for PacketPort {
    fn rx_burst(&mut self) -> io::Result<usize> {
        self.inbox.clear();
        self.rx.give_back();
        for _ in 0..BURST_MAX {
            let Some(arrived) = self.rx.take() else { break };
            if arrived.vlan {
                self.counters.rx_vlan += 1;
                continue;
            }
            if arrived.truncated {
                self.counters.rx_truncated += 1;
                continue;
            }
            match frame::parse(self.rx.bytes(&arrived), &self.local, arrived.checksums) {
                Ok(datagram) => {
                    let peer = Peer { mac: datagram.mac, ..Peer::datagram(datagram.from.into()) };
                    if self.inbox.last_peer() != Some(&peer) {
                        self.inbox.push_peer(peer);
                    }
                    self.counters.rx_bytes += datagram.len as u64;
                    self.inbox.push(arrived.start + datagram.start, datagram.len);
                }
                Err(fault) => self.counters.count_fault(fault),
            }
        }
        let count = self.inbox.count();
        self.counters.rx_datagrams += count as u64;
        self.counters.rx_trains += count as u64;
        Ok(count)
    }

    fn split(&mut self) -> (Received<'_>, &mut Outbox) {
        (self.rx.received(&self.inbox), &mut self.outbox)
    }

    fn tx_flush(&mut self) -> io::Result<()> {
        let count = self.outbox.frames_mut().written_count();
        self.hand_over(count);
        self.transmit()
    }

    fn tx_flush_complete(&mut self) -> io::Result<()> {
        let count = self.outbox.frames_mut().complete_count();
        self.hand_over(count);
        self.transmit()
    }

    fn local_addr(&self) -> SocketAddr {
        SocketAddrV4::new(self.local.addr, self.local.port).into()
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn reach(&mut self, addrs: &[SocketAddr]) -> io::Result<bool> {
        self.set_servers(addrs).map(|()| true)
    }

    fn rx_queue_datagrams(&self, _len: usize) -> usize {
        // Some of the frames may be lent.
        self.rx.count() as usize - BURST_MAX.min(self.rx.count() as usize / 2)
    }

    fn check(&mut self) -> io::Result<()> {
        self.interface.state()?;
        // The kernel writes to its log for each frame that is too long.
        self.interface.read_mtu()?;
        let drops = self.rx.take_drops().map_err(|error| self.interface.named("no statistics", &error))?;
        self.counters.rx_overflow_drops += drops;
        self.neighbours.look_after(&self.interface, self.counters.rx_datagrams, Instant::now())
    }

    fn memory_len(&self) -> usize {
        self.rx.memory_len()
            + self.inbox.memory_len()
            + self.tx.memory_len()
            + self.outbox.memory_len()
            + self.handed_over.capacity() * size_of::<Load>()
            + self.headers.memory_len()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.rx.as_fd())
    }
}

/// Counts what was handed over as dropped.
fn take_back(counters: &mut PortCounters, load: &mut Load) {
    let Load { datagrams, bytes } = std::mem::take(load);
    counters.tx_dropped += datagrams;
    counters.tx_datagrams -= datagrams;
    counters.tx_bytes -= bytes;
}

/// How frames are best sent on an interface.
fn sending(interface: &Interface) -> Sending {
    let Ok(features) = interface.segmentation() else { return Sending::Datagrams };
    // A virtual device that claims to cut passes trains on whole, and a packet socket at the other end has no room for
    // them; a real one needs no help of this kind.
    if features.cuts_udp || !is_kernel(TRAINS_SINCE) {
        return Sending::Datagrams;
    }
    Sending::Trains { copied: features.gathers }
}

/// Whether the kernel is at least of this version.
fn is_kernel(at_least: [u32; 2]) -> bool {
    let Ok(names) = nix::sys::utsname::uname() else { return false };
    let release = names.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    let version: [Option<u32>; 2] = [numbers.next(), numbers.next()];
    version >= at_least.map(Some)
}

/// Room for a frame of the interface's MTU, as far as peers use it.
fn rx_frame_len(interface: &Interface) -> usize {
    let wanted = if interface.is_loopback { 0 } else { interface.mtu + RX_OVERHEAD_LEN };
    wanted.next_power_of_two().clamp(RX_FRAME_LEN_MIN, RX_FRAME_LEN_MAX)
}

fn why_not_kept(error: &io::Error) -> String {
    match error.raw_os_error() {
        _ if error.kind() == io::ErrorKind::PermissionDenied => {
            "CAP_BPF and CAP_NET_ADMIN would keep it away".to_owned()
        }
        Some(libc::EINVAL | libc::EOPNOTSUPP) => format!("the kernel has no TCX before 6.6: {error}"),
        _ => error.to_string(),
    }
}

fn is_fatal(error: &io::Error) -> bool {
    let fatal = [libc::EBADF, libc::ENETDOWN, libc::ENXIO, libc::ENODEV, libc::ENOTSOCK];
    error.raw_os_error().is_some_and(|errno| fatal.contains(&errno))
}

fn ipv4(addr: SocketAddr) -> io::Result<SocketAddrV4> {
    match addr {
        SocketAddr::V4(addr) => Ok(addr),
        SocketAddr::V6(addr) => {
            Err(invalid(&format!("a packet port speaks IPv4, and {addr} is IPv6: use the udp transport")))
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
