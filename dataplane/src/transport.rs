//! The names of the transports, and which of them is best where.

use std::{fmt, io, net::IpAddr, str::FromStr};

use crate::{
    interface::{Interface, towards},
    privilege, udp, xdp,
};

/// What carries datagrams between clients and servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// UDP sockets of the kernel, in trains.
    Udp,
    /// AF_PACKET rings.
    Packet,
    /// AF_XDP rings.
    Xdp,
    /// TCP connections.
    Tcp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Udp, Self::Packet, Self::Xdp, Self::Tcp];

    /// Its name on command lines and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Packet => "packet",
            Self::Xdp => "xdp",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A transport by name, or the best one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// This one.
    Is(Transport),
    /// The [`best`] one for the interface at hand.
    Auto,
}

impl Wanted {
    /// Its name on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Is(transport) => transport.name(),
            Self::Auto => "auto",
        }
    }
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Transport::ALL.into_iter().find(|transport| transport.name() == text) {
            Some(transport) => Ok(Self::Is(transport)),
            None if text == Self::Auto.name() => Ok(Self::Auto),
            None => Err(format!("`{text}` is no transport: give udp, packet, xdp, tcp or auto")),
        }
    }
}

/// The best of `udp`, `packet` and `xdp` for the interface that has the address `local`, and why.
///
/// A driver that gives AF_XDP its own buffers (zero-copy) does without any pass through the kernel. Where it does not, the
/// kernel copies each frame, and trains of sockets, which pay for one pass per 44 datagrams, carry more than either
/// kind of ring: on a virtual link that is cut into real frames, half as much again as AF_XDP. Rings are still better
/// than sockets without trains.
#[must_use]
pub fn best(local: IpAddr) -> (Transport, String) {
    let IpAddr::V4(local) = local else {
        return (Transport::Udp, "rings speak IPv4 only".to_owned());
    };
    if local.is_loopback() {
        return (Transport::Udp, "trains of 64 KiB cross the loopback whole".to_owned());
    }
    if local.is_unspecified() {
        return (Transport::Udp, "rings need the address of one interface".to_owned());
    }
    let missing = privilege::missing(privilege::XDP);
    let zero_copy = match Interface::of_address(local) {
        Err(error) => return (Transport::Udp, error.to_string()),
        Ok(_) if !missing.is_empty() => Err(format!("not without {}", privilege::names(&missing, ", "))),
        Ok(interface) => match xdp::probe_zero_copy(&interface) {
            Ok(()) => Ok(interface.name),
            Err(error) => Err(error.to_string()),
        },
    };
    match (zero_copy, udp::has_trains()) {
        (Ok(name), _) => (Transport::Xdp, format!("the driver of {name} gives AF_XDP its own buffers")),
        (Err(error), true) => {
            (Transport::Udp, format!("no zero-copy AF_XDP ({error}), and sockets send trains"))
        }
        (Err(_), false) if privilege::missing(privilege::PACKET).is_empty() => {
            (Transport::Packet, "this kernel's sockets send no trains".to_owned())
        }
        (Err(_), false) => {
            (Transport::Udp, "this kernel's sockets send no trains, but rings need CAP_NET_RAW".to_owned())
        }
    }
}

/// The address that datagrams to `to` leave from: what [`best`] asks for on the side of a client.
///
/// # Errors
/// When no route leads there, with the address in the message.
pub fn local_towards(to: IpAddr) -> io::Result<IpAddr> {
    match to {
        IpAddr::V4(to) => Ok(towards(to)?.addr.into()),
        // Which it is does not matter: rings do not speak IPv6.
        IpAddr::V6(_) => Ok(to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::{Namespace, Pair, PairConfig};

    #[test]
    fn names_are_those_of_the_transports() {
        for transport in Transport::ALL {
            assert_eq!(transport.name().parse(), Ok(Wanted::Is(transport)));
        }
        assert_eq!("auto".parse(), Ok(Wanted::Auto));
        let error = "pigeon".parse::<Wanted>().unwrap_err();
        assert!(error.contains("`pigeon`") && error.contains("xdp"), "{error}");
    }

    /// Goal: where rings can not be had, sockets are chosen, and the reason is true. Method: addresses of each kind.
    #[test]
    fn sockets_are_best_where_rings_are_not_to_be_had() {
        for (local, reason) in [("::1", "IPv4"), ("127.0.0.1", "loopback"), ("0.0.0.0", "one interface")] {
            let (transport, why) = best(local.parse().unwrap());
            assert_eq!(transport, Transport::Udp);
            assert!(why.contains(reason), "{local}: {why}");
        }
        let (transport, why) = best("192.0.2.1".parse().unwrap());
        assert_eq!(transport, Transport::Udp);
        assert!(why.contains("192.0.2.1"), "an address of nobody is named: {why}");
    }

    /// Goal: a virtual link, whose driver has no zero-copy, is served by trains. Method: ask on one.
    #[test]
    fn trains_are_best_on_a_virtual_link() {
        if !Namespace::is_available() {
            return;
        }
        let (here, there) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let pair = Pair::new(&here, &there, PairConfig::default()).unwrap();
        let (transport, why) = here.run(|| best(pair.a.addr.into()));
        assert_eq!(transport, Transport::Udp, "{why}");
        assert!(why.contains("zero-copy") && why.contains("veth0"), "{why}");
        assert_eq!(here.run(|| local_towards(pair.b.addr.into())).unwrap(), IpAddr::from(pair.a.addr));
    }
}
