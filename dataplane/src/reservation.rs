//! A UDP port number that the kernel keeps for a port that goes past it.

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
};

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

/// A kernel socket that holds a UDP port and takes nothing.
///
/// Nobody else can have the number meanwhile, and the kernel does not tell senders that nobody listens there (ICMP port
/// unreachable, RFC 1122 section 4.1.3.1): what reaches it, although a ring has already had it, is dropped by a filter.
#[derive(Debug)]
pub(crate) struct Reservation {
    _socket: Socket,
    addr: SocketAddrV4,
}

impl Reservation {
    /// Reserves the port of `addr`; 0 lets the kernel choose one.
    ///
    /// # Errors
    /// What socket(2), setsockopt(2) or bind(2) say, with the address in the message.
    pub(crate) fn take(addr: SocketAddrV4) -> io::Result<Self> {
        Self::open(addr).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot reserve UDP port {}: {error}", SocketAddr::V4(addr)))
        })
    }

    fn open(addr: SocketAddrV4) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        take_nothing(SockRef::from(&socket))?;
        socket.bind(&SocketAddr::V4(addr).into())?;
        let bound = socket.local_addr()?.as_socket_ipv4();
        let addr = bound.ok_or_else(|| io::Error::other("the socket has no IPv4 address"))?;
        Ok(Self { _socket: socket, addr })
    }

    /// The address with its port.
    pub(crate) const fn addr(&self) -> SocketAddrV4 {
        self.addr
    }
}

/// Has the kernel drop whatever comes to a socket.
///
/// # Errors
/// What setsockopt(2) says.
pub(crate) fn take_nothing(socket: SockRef<'_>) -> io::Result<()> {
    /// Return a constant: the number of bytes to keep (linux/bpf_common.h).
    const BPF_RET_K: u16 = 0x06;
    socket.attach_filter(&[SockFilter::new(BPF_RET_K, 0, 0, 0)])
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use super::*;

    /// Goal: a reserved port is nobody else's, takes nothing and sends nothing back. Method: a connected socket, which
    /// would be told of a port unreachable at its second datagram.
    #[test]
    fn a_reserved_port_is_silent() {
        let reserved = Reservation::take(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let error = Reservation::take(reserved.addr()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&reserved.addr().to_string()), "{error}");
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        sender.connect(reserved.addr()).unwrap();
        for _ in 0..3 {
            sender.send(b"anybody there?").unwrap();
        }
        assert!(sender.take_error().unwrap().is_none());
    }
}
