//! Kernel UDP: trains of datagrams by UDP_SEGMENT and UDP_GRO, many trains by one recvmmsg or sendmmsg.
//!
//! A pass through the kernel costs microseconds whether it carries 16 bytes or 64 KiB, so only fewer passes help. With
//! segmentation offload a train of up to 64 equal datagrams crosses the stack as one packet, and on a virtual link it
//! even arrives as one. Devices that refuse are noticed at run time, and the port goes on with single datagrams.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    mmsg::{RxRing, TxRing},
    outbox::{CHUNK_LEN, Framing, Outbox, Train},
    port::{Inbox, Peer, Port, PortCounters, Received},
};

/// Trains or datagrams handed over by one system call.
const BURST_MAX: usize = 64;

/// How often in a row a system call is repeated that failed for a reason which repeating may cure.
const RETRIES_MAX: usize = 8;

/// How a UDP port is set up.
#[derive(Clone, Copy, Debug)]
pub struct UdpConfig {
    /// Receive buffer to ask the kernel for, in bytes as it charges them (it doubles what `SO_RCVBUF` says, socket(7)).
    pub receive_buffer_len: usize,
    /// Whether to send and receive trains.
    pub trains: bool,
    /// Buffers of 64 KiB for receiving, 1..=64.
    pub rx_buffers: usize,
    /// Chunks of 64 KiB for sending.
    pub tx_chunks: usize,
}

impl Default for UdpConfig {
    /// 64 MiB of receive buffer, trains, 16 buffers to receive into and 32 chunks to send from.
    fn default() -> Self {
        Self { receive_buffer_len: 64 << 20, trains: true, rx_buffers: 16, tx_chunks: 32 }
    }
}

/// A receive buffer smaller than asked for: what there is, and how to get more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferShortfall {
    /// Bytes that the kernel granted.
    pub granted_len: usize,
    /// Bytes asked for.
    pub wanted_len: usize,
}

impl fmt::Display for BufferShortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the receive buffer is {} KiB instead of {} KiB, so bursts may be dropped: run as root, or \
             `sysctl -w net.core.rmem_max={}`",
            self.granted_len >> 10,
            self.wanted_len >> 10,
            self.wanted_len / 2,
        )
    }
}

/// Whether this kernel's sockets can send trains at all; a device may still refuse them.
pub(crate) fn has_trains() -> bool {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP));
    socket.is_ok_and(|socket| setsockopt(&socket, sockopt::UdpGsoSegment, &0).is_ok())
}

/// A UDP socket with its buffers.
pub struct UdpPort {
    socket: Socket,
    local_addr: SocketAddr,
    /// Set on a connected socket, which neither needs nor tells addresses.
    connected: Option<Peer>,
    rx: RxRing,
    inbox: Inbox,
    tx: TxRing,
    outbox: Outbox,
    /// Which train each message in `tx` is of.
    message_trains: Vec<usize>,
    trains: bool,
    receive_buffer_len: usize,
    wanted_buffer_len: usize,
    /// The kernel's 32-bit count of overflow drops when last seen.
    overflow_seen: u32,
    counters: PortCounters,
}

impl fmt::Debug for UdpPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpPort").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

impl UdpPort {
    /// A port at a fixed address, for a server core. Nobody else can bind the same address.
    ///
    /// # Errors
    /// What socket(2), setsockopt(2) or bind(2) say, with the address in the message.
    pub fn bind(addr: SocketAddr, config: UdpConfig) -> io::Result<Self> {
        Self::open(addr, None, config).map_err(|error| named("cannot bind UDP", addr, &error))
    }

    /// A port at an address of the kernel's choosing, for a client of the given servers. With a single one the socket
    /// is connected, which saves the kernel a route look-up per train.
    ///
    /// # Errors
    /// What socket(2), setsockopt(2), bind(2) or connect(2) say, with the address in the message; `InvalidInput` for no
    /// server or a mixture of IPv4 and IPv6.
    pub fn connect(servers: &[SocketAddr], config: UdpConfig) -> io::Result<Self> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let first = *servers.first().ok_or_else(|| invalid("no server address given"))?;
        if servers.iter().any(|addr| addr.is_ipv4() != first.is_ipv4()) {
            return Err(invalid("servers mix IPv4 and IPv6 addresses: give all of one kind"));
        }
        let any: IpAddr =
            if first.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let connect = (servers.len() == 1).then_some(first);
        Self::open((any, 0).into(), connect, config)
            .map_err(|error| named("cannot open a UDP socket to", first, &error))
    }

    fn open(addr: SocketAddr, connect: Option<SocketAddr>, config: UdpConfig) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        let receive_buffer_len = set_receive_buffer(&socket, config.receive_buffer_len)?;
        setsockopt(&socket, sockopt::RxqOvfl, &1)?;
        forbid_fragments(&socket, addr.is_ipv6())?;
        // A kernel without GRO on sockets (before 5.0) delivers single datagrams, which are received all the same.
        let trains = config.trains && setsockopt(&socket, sockopt::UdpGroSegment, &true).is_ok();
        if addr.ip().is_unspecified() && connect.is_none() {
            // Several local addresses: an answer must leave from the one that was asked.
            if addr.is_ipv6() {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            } else {
                setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
            }
        }
        socket.bind(&addr.into())?;
        if let Some(server) = connect {
            socket.connect(&server.into())?;
        }
        let unknown = || io::Error::other("the socket has no IP address");
        Ok(Self {
            local_addr: socket.local_addr()?.as_socket().ok_or_else(unknown)?,
            socket,
            connected: connect.map(Peer::datagram),
            rx: RxRing::new(config.rx_buffers, CHUNK_LEN, connect.is_none())?,
            inbox: Inbox::with_capacity(config.rx_buffers, config.rx_buffers * 128),
            tx: TxRing::new(BURST_MAX),
            outbox: Outbox::new(config.tx_chunks, Framing::Segments)?,
            message_trains: Vec::with_capacity(BURST_MAX),
            trains,
            receive_buffer_len,
            wanted_buffer_len: config.receive_buffer_len,
            overflow_seen: 0,
            counters: PortCounters::default(),
        })
    }

    /// Whether the kernel granted a smaller receive buffer than asked for.
    #[must_use]
    pub fn buffer_shortfall(&self) -> Option<BufferShortfall> {
        (self.receive_buffer_len < self.wanted_buffer_len).then_some(BufferShortfall {
            granted_len: self.receive_buffer_len,
            wanted_len: self.wanted_buffer_len,
        })
    }

    /// Calls recvmmsg until it says something final.
    fn receive(&mut self) -> io::Result<usize> {
        for _ in 0..RETRIES_MAX {
            match self.rx.receive(self.socket.as_fd()) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) if is_fatal(&error) => {
                    return Err(named("lost the UDP socket", self.local_addr, &error));
                }
                // An earlier datagram's ICMP answer, reported here; it says nothing about those that wait.
                Err(_) => self.counters.soft_errors += 1,
            }
        }
        Ok(0)
    }

    fn count_overflow(&mut self, total: u32) {
        self.counters.rx_overflow_drops += u64::from(total.wrapping_sub(self.overflow_seen));
        self.overflow_seen = total;
    }

    /// Sends the trains that `is_due` says are.
    fn send_trains(&mut self, is_due: impl Fn(&Outbox, usize) -> bool) -> io::Result<()> {
        let trains = self.outbox.trains().len();
        // Where to go on: a train, and how many of its bytes are handed over.
        let (mut index, mut offset) = (0, 0);
        // A train that was refused as such, and goes alone, one datagram at a time.
        let mut refused = None;
        while index < trains {
            self.tx.clear();
            self.message_trains.clear();
            let alone = refused == Some(index);
            let end = if alone { index + 1 } else { trains };
            while index < end && !self.tx.is_full() {
                if !is_due(&self.outbox, index) {
                    index += 1;
                    continue;
                }
                let train = self.outbox.trains()[index];
                let (payload, segment_len) =
                    next_message(&self.outbox, &train, offset, self.trains && !alone);
                let to = self.connected.is_none().then_some(&train.peer.addr);
                // SAFETY: the payload lies in the outbox, which nothing touches before the messages are sent below.
                unsafe { self.tx.push(to, train.peer.local, payload, segment_len) };
                self.message_trains.push(index);
                self.counters.tx_datagrams += self.tx.datagrams(self.tx.count() - 1);
                offset += payload.len();
                if offset == train.len as usize {
                    self.counters.tx_trains += 1;
                    self.counters.tx_bytes += u64::from(train.len);
                    (index, offset) = (index + 1, 0);
                }
            }
            let dropped_before = self.counters.tx_dropped;
            if let Some(message) = self.send_messages()? {
                // Only a whole train is refused this way; it and those behind it are pushed again.
                (index, offset) = (self.message_trains[message], 0);
                for &again in &self.message_trains[message..] {
                    self.counters.tx_trains -= 1;
                    self.counters.tx_bytes -= u64::from(self.outbox.trains()[again].len);
                }
                refused = Some(index);
            } else if alone && self.counters.tx_dropped == dropped_before {
                // The same bytes to the same place are taken one by one: it is the device that can not do trains, and
                // not the destination that can not be reached.
                self.trains = false;
            }
        }
        Ok(())
    }

    /// Sends what `tx` holds; datagrams that can not be sent are dropped. Returns the first message that was refused and
    /// is a train, which may be sent as single datagrams; nothing from it on was sent.
    fn send_messages(&mut self) -> io::Result<Option<usize>> {
        let mut first = 0;
        let mut retries = 0;
        // Counted as sent when they were pushed.
        let drop = |counters: &mut PortCounters, datagrams: u64| {
            counters.tx_dropped += datagrams;
            counters.tx_datagrams -= datagrams;
        };
        while first < self.tx.count() {
            let error = match self.tx.send(self.socket.as_fd(), first) {
                Ok(sent) => {
                    first += sent;
                    retries = 0;
                    continue;
                }
                Err(error) => error,
            };
            if is_fatal(&error) {
                return Err(named("lost the UDP socket", self.local_addr, &error));
            }
            retries += 1;
            match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOBUFS) if retries <= 1 => {
                    // The device is behind. A short wait is cheaper than a retransmission, a long one is not.
                    let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                    let _ =
                        poll(&mut fds, PollTimeout::try_from(Duration::from_millis(1)).expect("1 ms fits"));
                }
                Some(libc::EAGAIN | libc::ENOBUFS) => {
                    drop(
                        &mut self.counters,
                        (first..self.tx.count()).map(|index| self.tx.datagrams(index)).sum(),
                    );
                    return Ok(None);
                }
                // udp(7): EINVAL and EMSGSIZE for segments that do not fit the path, EIO for a device that can not sum
                // their checksums. The first may also say that there is something wrong with the destination.
                Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP)
                    if self.tx.datagrams(first) > 1 =>
                {
                    self.counters.soft_errors += 1;
                    // They are pushed again.
                    self.counters.tx_datagrams -=
                        (first..self.tx.count()).map(|index| self.tx.datagrams(index)).sum::<u64>();
                    return Ok(Some(first));
                }
                Some(libc::EINTR | libc::ECONNREFUSED) if retries <= RETRIES_MAX => {
                    self.counters.soft_errors += 1
                }
                _ => {
                    // This destination is not reachable now; the others may be.
                    self.counters.soft_errors += 1;
                    drop(&mut self.counters, self.tx.datagrams(first));
                    first += 1;
                    retries = 0;
                }
            }
        }
        Ok(None)
    }
}

impl Port for UdpPort {
    fn rx_burst(&mut self) -> io::Result<usize> {
        self.inbox.clear();
        let buffers = self.receive()?;
        for index in 0..buffers {
            let arrival = self.rx.arrival(index);
            if let Some(total) = arrival.overflow_drops {
                self.count_overflow(total);
            }
            self.counters.rx_trains += 1;
            let from =
                arrival.from.map(|addr| Peer { addr, local: arrival.to, connection: None, mac: [0; 6] });
            let Some(peer) = from.or(self.connected).filter(|_| !arrival.truncated) else {
                self.counters.rx_truncated += 1;
                continue;
            };
            if peer.addr.port() == 0 {
                // Nobody can be answered there (RFC 768: "if not used, a value of zero is inserted").
                self.counters.soft_errors += 1;
                continue;
            }
            self.counters.rx_bytes += arrival.len as u64;
            self.inbox.push_peer(peer);
            let buffer = index * self.rx.buffer_len();
            let mut start = 0;
            // A datagram without payload is a datagram too.
            while start < arrival.len || (start == 0 && arrival.len == 0) {
                let len = arrival.segment_len.min(arrival.len - start);
                self.inbox.push(buffer + start, len);
                start += len.max(1);
            }
        }
        self.counters.rx_datagrams += self.inbox.count() as u64;
        Ok(self.inbox.count())
    }

    fn split(&mut self) -> (Received<'_>, &mut Outbox) {
        (Received::new(self.rx.memory(), &self.inbox), &mut self.outbox)
    }

    fn tx_flush(&mut self) -> io::Result<()> {
        self.send_trains(|_, _| true)?;
        self.outbox.reset();
        Ok(())
    }

    fn tx_flush_complete(&mut self) -> io::Result<()> {
        self.send_trains(|outbox, index| !outbox.is_growing(index))?;
        self.outbox.keep_growing();
        Ok(())
    }

    fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    fn reach(&mut self, addrs: &[SocketAddr]) -> io::Result<bool> {
        Ok(self.connected.is_none_or(|server| addrs.iter().all(|addr| *addr == server.addr)))
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn rx_queue_datagrams(&self, len: usize) -> usize {
        self.receive_buffer_len / charge(len)
    }

    fn memory_len(&self) -> usize {
        self.rx.memory_len()
            + self.inbox.memory_len()
            + self.tx.memory_len()
            + self.outbox.memory_len()
            + self.message_trains.capacity() * size_of::<usize>()
    }

    fn populate(&mut self) -> io::Result<()> {
        self.rx.populate()?;
        self.outbox.populate()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}

/// The next message of a train: all of it, or one segment where trains are not sent.
fn next_message<'a>(outbox: &'a Outbox, train: &Train, offset: usize, trains: bool) -> (&'a [u8], usize) {
    let rest = &outbox.bytes(train)[offset..];
    let segment_len = train.segment_len as usize;
    if trains {
        (rest, if train.count > 1 { segment_len } else { 0 })
    } else {
        (&rest[..segment_len.min(rest.len())], 0)
    }
}

/// Bytes that the kernel charges to the receive buffer for one datagram: the socket buffer structure and the power of
/// two that its data are rounded up to (`skb->truesize`, net/core/skbuff.c; measured 832, 2,304 and 16,640 for 176,
/// 1,456 and 8,900 bytes).
pub(crate) const fn charge(len: usize) -> usize {
    if len <= 176 { 832 } else { 256 + (len + 380).next_power_of_two() }
}

/// Sets the receive buffer, past the administrator's limit where the process may, and returns what was granted.
fn set_receive_buffer(socket: &Socket, wanted_len: usize) -> io::Result<usize> {
    let half = wanted_len / 2;
    if setsockopt(socket, sockopt::RcvBufForce, &half).is_err() {
        socket.set_recv_buffer_size(half)?;
    }
    socket.recv_buffer_size()
}

/// Sets "don't fragment" and ignores what routers claim about the path: the protocol never sends more than a packet.
fn forbid_fragments(socket: &Socket, ipv6: bool) -> io::Result<()> {
    let (level, name, value) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
    };
    crate::mmsg::set_int_option(socket.as_fd(), level, name, value)
}

fn is_fatal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT))
}

fn named(what: &str, addr: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {addr}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: UdpConfig =
        UdpConfig { receive_buffer_len: 1 << 20, trains: true, rx_buffers: 4, tx_chunks: 4 };

    fn pair(config: UdpConfig) -> (UdpPort, UdpPort) {
        let server = UdpPort::bind("127.0.0.1:0".parse().unwrap(), config).unwrap();
        let client = UdpPort::connect(&[server.local_addr()], config).unwrap();
        (server, client)
    }

    fn send(port: &mut UdpPort, to: &Peer, lens: &[usize]) {
        let (_, outbox) = port.split();
        for &len in lens {
            outbox.begin(to, 1_472).unwrap().bytes[..len].fill(len as u8);
            outbox.commit(len);
        }
        port.tx_flush().unwrap();
    }

    /// Receives until `count` datagrams are here, then returns their senders and lengths.
    fn receive(port: &mut UdpPort, count: usize) -> Vec<(Peer, usize)> {
        let mut all = Vec::new();
        for _ in 0..10_000 {
            port.rx_burst().unwrap();
            for datagram in port.split().0.iter() {
                assert!(datagram.bytes.iter().all(|&byte| byte == datagram.bytes.len() as u8));
                all.push((*datagram.peer, datagram.bytes.len()));
            }
            if all.len() >= count {
                break;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        all
    }

    /// Goal: datagrams arrive cut where they were, with and without trains. Method: lengths through a real loopback
    /// socket and back to the address they came from.
    #[test]
    fn lengths_survive_there_and_back() {
        for trains in [true, false] {
            let (mut server, mut client) = pair(UdpConfig { trains, ..SMALL });
            let lens: Vec<usize> = [[1_454; 40].as_slice(), &[200, 200, 7, 1_472]].concat();
            let to = Peer::datagram(server.local_addr());
            send(&mut client, &to, &lens);
            let there = receive(&mut server, lens.len());
            assert_eq!(there.iter().map(|&(_, len)| len).collect::<Vec<_>>(), lens, "trains: {trains}");
            let from = there[0].0;
            assert_eq!(from.addr.port(), client.local_addr().port());
            send(&mut server, &from, &lens);
            let back = receive(&mut client, lens.len());
            assert_eq!(back.iter().map(|&(_, len)| len).collect::<Vec<_>>(), lens, "trains: {trains}");
            assert_eq!(server.counters().rx_datagrams, lens.len() as u64);
            assert_eq!(server.counters().tx_datagrams, lens.len() as u64);
            assert_eq!(server.counters().rx_bytes, lens.iter().sum::<usize>() as u64);
        }
    }

    /// Goal: headers are made ready again after each burst. Method: bursts with and without trains by turns, for more
    /// rounds than there are buffers.
    #[test]
    fn rings_are_reusable() {
        let (mut server, mut client) = pair(SMALL);
        let to = Peer::datagram(server.local_addr());
        for round in 0..20 {
            let lens = if round % 2 == 0 { vec![100; 30] } else { vec![50] };
            send(&mut client, &to, &lens);
            let there = receive(&mut server, lens.len());
            assert_eq!(there.iter().map(|&(_, len)| len).collect::<Vec<_>>(), lens, "round {round}");
            assert!(there.iter().all(|(peer, _)| peer.addr.port() == client.local_addr().port()));
        }
    }

    #[test]
    fn a_wildcard_port_answers_from_the_address_that_was_asked() {
        let mut server = UdpPort::bind("0.0.0.0:0".parse().unwrap(), SMALL).unwrap();
        let asked: SocketAddr = ([127, 0, 0, 77], server.local_addr().port()).into();
        let mut client = UdpPort::connect(&[asked], SMALL).unwrap();
        send(&mut client, &Peer::datagram(asked), &[10, 10]);
        let from = receive(&mut server, 2)[0].0;
        assert_eq!(from.local, Some([127, 0, 0, 77].into()));
        // A connected socket takes datagrams from the address it is connected to only.
        send(&mut server, &from, &[20]);
        assert_eq!(receive(&mut client, 1).len(), 1);
    }

    #[test]
    fn ipv6_works_alike() {
        let Ok(mut server) = UdpPort::bind("[::1]:0".parse().unwrap(), SMALL) else {
            println!("not run: this machine has no IPv6 loopback address");
            return;
        };
        let mut client = UdpPort::connect(&[server.local_addr()], SMALL).unwrap();
        send(&mut client, &Peer::datagram(server.local_addr()), &[1_200; 5]);
        assert_eq!(receive(&mut server, 5).len(), 5);
    }

    #[test]
    fn a_server_that_is_gone_is_not_an_error() {
        let (server, mut client) = pair(SMALL);
        let to = Peer::datagram(server.local_addr());
        drop(server);
        for _ in 0..10 {
            send(&mut client, &to, &[30, 30]);
            assert_eq!(client.rx_burst().unwrap(), 0);
        }
        assert!(client.counters().soft_errors > 0, "the refusals were noticed");
    }

    /// Goal: a destination that can not be reached costs nobody else the trains. Method: a train to a port that no
    /// datagram can be sent to, between trains to a living one.
    #[test]
    fn an_impossible_destination_does_not_switch_trains_off() {
        let mut server = UdpPort::bind("127.0.0.1:0".parse().unwrap(), SMALL).unwrap();
        let mut other = UdpPort::bind("127.0.0.1:0".parse().unwrap(), SMALL).unwrap();
        let (living, impossible) = (other.local_addr(), SocketAddr::from(([127, 0, 0, 1], 0)));
        let (_, outbox) = server.split();
        for to in [living, impossible, living, impossible] {
            outbox.begin(&Peer::datagram(to), 1_472).unwrap().bytes[..40].fill(40);
            outbox.commit(40);
        }
        server.tx_flush().unwrap();
        assert!(server.trains);
        assert_eq!(receive(&mut other, 2).len(), 2);
        assert_eq!((server.counters().tx_datagrams, server.counters().tx_dropped), (2, 2));
    }

    #[test]
    fn a_full_receive_queue_is_counted() {
        let (mut server, mut client) = pair(UdpConfig { receive_buffer_len: 8 << 10, ..SMALL });
        let to = Peer::datagram(server.local_addr());
        for _ in 0..50 {
            send(&mut client, &to, &[1_400]);
        }
        let received = receive(&mut server, 50).len() as u64;
        send(&mut client, &to, &[1_400]);
        receive(&mut server, 1);
        assert!(received < 50);
        assert_eq!(server.counters().rx_overflow_drops, 50 - received);
    }

    #[test]
    fn a_port_in_use_is_named() {
        let server = UdpPort::bind("127.0.0.1:0".parse().unwrap(), SMALL).unwrap();
        let error = UdpPort::bind(server.local_addr(), SMALL).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&server.local_addr().to_string()), "{error}");
    }

    #[test]
    fn charges_are_the_measured_ones() {
        assert_eq!([64, 176, 1_456, 8_900].map(charge), [832, 832, 2_304, 16_640]);
    }
}
