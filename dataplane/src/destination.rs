//! Where frames to a peer go, and the headers that they get.

use std::net::{SocketAddr, SocketAddrV4};

use crate::{
    frame::{Headers, Local},
    interface::Neighbours,
    port::Peer,
};

/// Peers whose headers are kept; a power of two.
const KNOWN_HEADERS: usize = 256;

/// Where a peer's frames go; `None` for one that can not be reached.
pub(crate) fn destination(
    peer: &Peer,
    neighbours: &Neighbours,
    is_loopback: bool,
) -> Option<(SocketAddrV4, [u8; 6])> {
    let SocketAddr::V4(addr) = peer.addr else { return None };
    let mac = match peer.mac {
        // Nobody has it but the loopback.
        [0, 0, 0, 0, 0, 0] if !is_loopback => neighbours.mac_of(*addr.ip())?,
        mac => mac,
    };
    Some((addr, mac))
}

/// Headers of peers that were written to, one in each place.
#[derive(Debug)]
pub(crate) struct HeaderCache {
    places: Box<[Option<Known>]>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    addr: SocketAddrV4,
    mac: [u8; 6],
    headers: Headers,
}

impl HeaderCache {
    pub(crate) fn new() -> Self {
        Self { places: vec![None; KNOWN_HEADERS].into() }
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory_len(&self) -> usize {
        size_of_val(&*self.places)
    }

    #[inline]
    pub(crate) fn to(&mut self, local: &Local, addr: SocketAddrV4, mac: [u8; 6]) -> Headers {
        // Clients differ in their last byte or in their port.
        let [.., last] = addr.ip().octets();
        let place = &mut self.places[(usize::from(last) * 31 + usize::from(addr.port())) % KNOWN_HEADERS];
        match place {
            Some(known) if known.addr == addr && known.mac == mac => known.headers,
            _ => place.insert(Known { addr, mac, headers: Headers::new(local, mac, addr) }).headers,
        }
    }
}
