//! Which interface, from which address and to which neighbour: asked of the kernel, which goes on to keep them.

use std::{
    fs::File,
    io::{self, Read, Seek},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::ifaddrs::getifaddrs;
use socket2::SockRef;

use crate::{
    device::{self, Queues, Segmentation, UdpRule},
    reservation,
};

/// Port of the discard service (RFC 863). A datagram to it makes the kernel ask for its neighbour's address; whether
/// anybody takes the datagram does not matter.
const DISCARD_PORT: u16 = 9;

/// Longest wait for a neighbour's Ethernet address.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// After as long a silence the addresses of neighbours are looked at again,
const SILENCE: Duration = Duration::from_secs(1);

/// and after as long a time in any case: of several servers one may have moved while the others go on answering.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Time between two looks at the neighbour table while one is waited for.
const RESOLVE_INTERVAL: Duration = Duration::from_millis(2);

/// An interface that is removed is down before; after this long it is only down.
const REMOVAL_TIMEOUT: Duration = Duration::from_millis(100);

/// An entry of the neighbour table that has an address (`ATF_COM`, linux/if_arp.h).
const ATF_COM: u32 = 0x2;

/// A network interface and one of its IPv4 addresses.
#[derive(Debug)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) index: u32,
    /// All zero on the loopback.
    pub(crate) mac: [u8; 6],
    pub(crate) addr: Ipv4Addr,
    netmask: Ipv4Addr,
    /// Largest packet in bytes, Ethernet header not counted.
    pub(crate) mtu: usize,
    /// Name of its driver; empty for the loopback.
    pub(crate) driver: String,
    pub(crate) queues: Queues,
    pub(crate) is_loopback: bool,
    /// Any socket of the interface's network namespace: the thread that asks may be in another one.
    socket: UdpSocket,
}

impl Interface {
    /// The interface that has this address.
    ///
    /// # Errors
    /// `AddrNotAvailable` when none has it, with the address in the message; what the kernel says.
    pub(crate) fn of_address(addr: Ipv4Addr) -> io::Result<Self> {
        let ipv4 = |entry: &nix::ifaddrs::InterfaceAddress| {
            let addr = entry.address.as_ref()?.as_sockaddr_in()?.ip();
            Some((addr, entry.netmask.as_ref()?.as_sockaddr_in()?.ip()))
        };
        let holds = |known: Ipv4Addr, netmask: Ipv4Addr| {
            // All of 127.0.0.0/8 is the loopback's (RFC 1122, section 3.2.1.3).
            known == addr || (known.is_loopback() && addr.is_loopback() && known & netmask == addr & netmask)
        };
        let found = getifaddrs()?.find_map(|entry| {
            let (known, netmask) = ipv4(&entry)?;
            holds(known, netmask).then(|| (without_label(&entry.interface_name).to_owned(), netmask))
        });
        let Some((name, netmask)) = found else {
            let what =
                format!("no interface has the address {addr}: `ip address` lists those that there are");
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, what));
        };
        let link = getifaddrs()?.filter(|entry| entry.interface_name == name).find_map(|entry| {
            let link = *entry.address.as_ref()?.as_link_addr()?;
            Some((link.ifindex() as u32, link.addr()))
        });
        let (index, mac) = link.ok_or_else(|| gone(&name))?;
        let socket = UdpSocket::bind((addr, 0))?;
        // Nobody reads what is sent to it.
        reservation::take_nothing(SockRef::from(&socket))?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            index,
            mac: mac.unwrap_or_default(),
            addr,
            netmask,
            mtu: device::mtu(socket.as_fd(), &name)?,
            driver: device::driver(socket.as_fd(), &name).unwrap_or_default(),
            queues: device::queues(socket.as_fd(), &name),
            // Other addresses than 127.0.0.1 may be there too.
            is_loopback: device::flags(socket.as_fd(), &name)? & libc::IFF_LOOPBACK != 0,
            name,
            socket,
        })
    }

    /// Whether it can still be used.
    ///
    /// # Errors
    /// A sentence: that it is down, or that it was removed.
    pub(crate) fn state(&self) -> io::Result<()> {
        match self.is_up() {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.down()),
            Err(error) => Err(error),
        }
    }

    fn is_up(&self) -> io::Result<bool> {
        match device::flags(self.socket.as_fd(), &self.name) {
            Ok(flags) => Ok(flags & libc::IFF_UP != 0),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Err(gone(&self.name)),
            Err(error) => Err(error),
        }
    }

    /// That it is down; or that it was removed, if that is why.
    fn down(&self) -> io::Error {
        let begun = Instant::now();
        while begun.elapsed() < REMOVAL_TIMEOUT {
            match self.is_up() {
                Ok(_) => std::thread::sleep(RESOLVE_INTERVAL),
                Err(error) => return error,
            }
        }
        down(&self.name)
    }

    /// Asks again for the MTU, which may be changed at any time.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn read_mtu(&mut self) -> io::Result<()> {
        self.mtu = device::mtu(self.socket.as_fd(), &self.name)?;
        Ok(())
    }

    /// What to say of a system call on it that failed with `error`.
    pub(crate) fn named(&self, what: &str, error: &io::Error) -> io::Error {
        match error.raw_os_error() {
            Some(libc::ENETDOWN) => self.down(),
            Some(libc::ENXIO | libc::ENODEV) => gone(&self.name),
            _ => io::Error::new(error.kind(), format!("{what} on {}: {error}", self.name)),
        }
    }

    /// What it does with long frames by itself.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn segmentation(&self) -> io::Result<Segmentation> {
        device::segmentation(self.socket.as_fd(), &self.name)
    }

    /// The rules by which it steers UDP over IPv4 to queues.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when it does not steer; what the kernel says.
    pub(crate) fn udp_rules(&self) -> io::Result<Vec<UdpRule>> {
        device::udp_rules(self.socket.as_fd(), &self.name)
    }

    /// Whether senders on the same machine leave checksums and segmentation to a device that never sees the frame.
    pub(crate) fn is_virtual(&self) -> bool {
        self.is_loopback || self.driver == "veth"
    }
}

/// The interface's name in what getifaddrs(3) tells of an address: an address may have a label of its own, `eth0:1`, and no
/// name of an interface has a colon in it (`dev_valid_name`, net/core/dev.c).
fn without_label(name: &str) -> &str {
    name.split_once(':').map_or(name, |(interface, _)| interface)
}

fn down(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NetworkDown, format!("interface {name} is down: `ip link set {name} up`"))
}

fn gone(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("interface {name} was removed"))
}

/// The interface by which the kernel reaches `to`.
///
/// # Errors
/// What the kernel says, with the address in the message.
pub(crate) fn towards(to: Ipv4Addr) -> io::Result<Interface> {
    // Connecting a UDP socket sends nothing: it only looks the route up (udp(7)).
    let chosen = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect((to, DISCARD_PORT)).map(|()| socket))
        .and_then(|socket| socket.local_addr())
        .map_err(|error| io::Error::new(error.kind(), format!("no route to {to}: {error}")))?;
    match chosen {
        SocketAddr::V4(addr) => Interface::of_address(*addr.ip()),
        SocketAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

/// The Ethernet addresses of those that datagrams are sent to, as the kernel's own table has them.
#[derive(Debug)]
pub(crate) struct Neighbours {
    /// Opened files of /proc show the network namespace of the thread that opened them.
    arp: File,
    routes: File,
    text: String,
    known: Vec<Neighbour>,
    /// Datagrams received when one was last seen to have arrived, and when that was.
    heard: (u64, Instant),
    /// When `known` was last looked at.
    looked: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Neighbour {
    to: Ipv4Addr,
    next_hop: Ipv4Addr,
    mac: [u8; 6],
}

impl Neighbours {
    /// # Errors
    /// A sentence, when /proc is not there.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            arp: open("/proc/thread-self/net/arp")?,
            routes: open("/proc/thread-self/net/route")?,
            text: String::new(),
            known: Vec::new(),
            heard: (0, Instant::now()),
            looked: Instant::now(),
        })
    }

    /// Finds out where frames for these servers go, in addition to those known already.
    ///
    /// # Errors
    /// A sentence: `InvalidInput` for a server that is not reached over this interface, `TimedOut` for one whose Ethernet
    /// address nobody tells.
    pub(crate) fn resolve_servers(
        &mut self,
        interface: &Interface,
        servers: &[SocketAddrV4],
    ) -> io::Result<()> {
        for server in servers {
            let to = *server.ip();
            if self.mac_of(to).is_some() {
                continue;
            }
            let name = &interface.name;
            let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
            if !interface.is_loopback && Interface::of_address(to).is_ok() {
                return Err(invalid(format!(
                    "{to} is an address of this machine, which {name} does not lead to: use the udp transport, or 127.0.0.1"
                )));
            }
            let towards = towards(to)?;
            if towards.index != interface.index {
                return Err(invalid(format!(
                    "{to} is reached over {} and other servers over {name}: a port on rings has one interface",
                    towards.name
                )));
            }
            self.resolve(interface, to, RESOLVE_TIMEOUT)?;
        }
        Ok(())
    }

    /// Looks again at what was resolved, if it is time. To be called some fifty times a second with the number of datagrams
    /// received so far.
    ///
    /// # Errors
    /// What reading /proc says.
    pub(crate) fn look_after(
        &mut self,
        interface: &Interface,
        received: u64,
        now: Instant,
    ) -> io::Result<()> {
        if self.heard.0 != received {
            self.heard = (received, now);
        }
        let unseen = now - self.looked;
        if unseen > LOOK_INTERVAL || (unseen > SILENCE && now - self.heard.1 > SILENCE) {
            self.looked = now;
            self.refresh(interface)?;
        }
        Ok(())
    }

    /// Finds out where frames for `to` go and remembers it, waiting for the neighbour to answer for at most `timeout`.
    ///
    /// # Errors
    /// `TimedOut`, with addresses and interface in the message; what reading /proc says.
    fn resolve(&mut self, interface: &Interface, to: Ipv4Addr, timeout: Duration) -> io::Result<[u8; 6]> {
        let next_hop = self.next_hop(interface, to)?;
        let begun = Instant::now();
        let mac = loop {
            if interface.is_loopback {
                break interface.mac;
            }
            if let Some(mac) = self.look_up(interface, next_hop)? {
                break mac;
            }
            if begun.elapsed() > timeout {
                let what = format!(
                    "{next_hop}, the way to {to}, does not answer on {}: is its host up, and the cable in?",
                    interface.name
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            nudge(interface, next_hop);
            std::thread::sleep(RESOLVE_INTERVAL);
        };
        self.known.retain(|neighbour| neighbour.to != to);
        self.known.push(Neighbour { to, next_hop, mac });
        Ok(mac)
    }

    /// Where frames for `to` go, if that was resolved.
    #[inline]
    pub(crate) fn mac_of(&self, to: Ipv4Addr) -> Option<[u8; 6]> {
        self.known.iter().find(|neighbour| neighbour.to == to).map(|neighbour| neighbour.mac)
    }

    /// Looks again at what was resolved, and has the kernel ask those that it has lost sight of.
    ///
    /// # Errors
    /// What reading /proc says.
    fn refresh(&mut self, interface: &Interface) -> io::Result<()> {
        for index in 0..self.known.len() {
            let Neighbour { next_hop, .. } = self.known[index];
            if !interface.is_loopback {
                nudge(interface, next_hop);
                if let Some(mac) = self.look_up(interface, next_hop)? {
                    self.known[index].mac = mac;
                }
            }
        }
        Ok(())
    }

    fn next_hop(&mut self, interface: &Interface, to: Ipv4Addr) -> io::Result<Ipv4Addr> {
        if to & interface.netmask == interface.addr & interface.netmask {
            return Ok(to);
        }
        read_again(&mut self.routes, &mut self.text)?;
        Ok(gateway(&self.text, &interface.name, to).unwrap_or(to))
    }

    fn look_up(&mut self, interface: &Interface, next_hop: Ipv4Addr) -> io::Result<Option<[u8; 6]>> {
        read_again(&mut self.arp, &mut self.text)?;
        Ok(neighbour(&self.text, &interface.name, next_hop))
    }
}

/// Makes the kernel ask for a neighbour's address unless it knows it for sure.
fn nudge(interface: &Interface, next_hop: Ipv4Addr) {
    // It is the attempt that counts; an answer to an earlier one may be reported here as an error.
    let _ = interface.socket.send_to(&[], SocketAddrV4::new(next_hop, DISCARD_PORT));
}

fn open(path: &str) -> io::Result<File> {
    File::open(path).map_err(|error| {
        let what = format!("cannot read {path}, which tells where frames go: {error}; is /proc mounted?");
        io::Error::new(error.kind(), what)
    })
}

fn read_again(file: &mut File, text: &mut String) -> io::Result<()> {
    text.clear();
    file.rewind()?;
    file.read_to_string(text).map(drop)
}

/// Finds an address in /proc/net/arp: lines of address, type, flags, Ethernet address, mask and device (arp(7)).
fn neighbour(table: &str, interface: &str, addr: Ipv4Addr) -> Option<[u8; 6]> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let is_its = fields.next()?.parse() == Ok(addr);
        let flags = u32::from_str_radix(fields.nth(1)?.strip_prefix("0x")?, 16).ok()?;
        let mac = fields.next()?;
        let is_here = fields.nth(1)? == interface;
        (is_its && is_here && flags & ATF_COM != 0).then(|| parse_mac(mac)).flatten()
    })
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut bytes = text.split(':');
    for place in &mut mac {
        *place = u8::from_str_radix(bytes.next()?, 16).ok()?;
    }
    bytes.next().is_none().then_some(mac)
}

/// Finds the gateway of the narrowest route to `to` in /proc/net/route: lines of interface, destination, gateway, flags,
/// three counters and mask; addresses are numbers in hexadecimal whose bytes in memory are those of the address. `None`
/// when the destination is a neighbour itself, or no route leads there.
fn gateway(table: &str, interface: &str, to: Ipv4Addr) -> Option<Ipv4Addr> {
    let addr =
        |text: &str| u32::from_str_radix(text, 16).ok().map(|number| Ipv4Addr::from(number.to_ne_bytes()));
    let matching = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let is_here = fields.next()? == interface;
        let destination = addr(fields.next()?)?;
        let gateway = addr(fields.next()?)?;
        let mask = addr(fields.nth(4)?)?;
        (is_here && to & mask == destination).then_some((mask, gateway))
    });
    let (_, gateway) = matching.max_by_key(|(mask, _)| mask.to_bits())?;
    (!gateway.is_unspecified()).then_some(gateway)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        netns::{Namespace, Pair, PairConfig},
        rings_testing::or_say,
    };

    /// Goal: an address with a label is found on its interface. Method: give the loopback of a namespace one.
    #[test]
    fn labels_of_addresses_are_no_names() {
        let Some(namespace) = or_say("a network namespace", Namespace::new()) else { return };
        namespace.command("ip", &["addr", "add", "10.9.8.7/32", "dev", "lo", "label", "lo:7"]).unwrap();
        namespace.command("ip", &["link", "set", "lo", "up"]).unwrap();
        let interface = namespace.run(|| Interface::of_address([10, 9, 8, 7].into())).unwrap();
        assert_eq!((interface.name.as_str(), interface.is_loopback), ("lo", true));
        interface.state().unwrap();
    }

    /// Goal: a server that has moved is found although others go on answering. Method: the other end of a link gets another
    /// Ethernet address; time passes as it is told, and something is received all the while.
    #[test]
    fn one_that_moves_is_found_while_others_speak() {
        let pair = Namespace::new().and_then(|a| Pair::new(&a, &Namespace::new()?, PairConfig::default()));
        let Some(pair) = or_say("a link", pair) else { return };
        let (interface, mut neighbours) = pair.a.namespace.run(|| {
            let interface = Interface::of_address(pair.a.addr).unwrap();
            let mut neighbours = Neighbours::new().unwrap();
            neighbours.resolve_servers(&interface, &[SocketAddrV4::new(pair.b.addr, 1)]).unwrap();
            (interface, neighbours)
        });
        pair.b.namespace.command("ip", &["link", "set", "veth1", "address", "02:00:00:00:00:99"]).unwrap();
        pair.a.namespace.command("ip", &["neigh", "flush", "dev", "veth0"]).unwrap();
        let (begun, mut now, mut received) = (Instant::now(), Instant::now(), 0);
        while neighbours.mac_of(pair.b.addr) != Some([2, 0, 0, 0, 0, 0x99]) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{neighbours:?}");
            (now, received) = (now + Duration::from_millis(500), received + 1);
            neighbours.look_after(&interface, received, now).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(now - begun > LOOK_INTERVAL, "not looked at all the time");
    }

    const ARP: &str = "\
IP address       HW type     Flags       HW address            Mask     Device
10.77.0.2        0x1         0x2         02:00:00:00:00:0a     *        veth0
10.77.0.3        0x1         0x0         00:00:00:00:00:00     *        veth0
10.77.0.4        0x1         0x6         02:00:00:00:00:0b     *        eth1
short line
10.77.0.5        0x1         0xzz        02:00:00:00:00:0c     *        veth0
10.77.0.6        0x1         0x2         02:00:00:00:00     *        veth0
";

    #[test]
    fn neighbours_are_found_by_address_and_interface() {
        let find = |interface, last| neighbour(ARP, interface, Ipv4Addr::new(10, 77, 0, last));
        assert_eq!(find("veth0", 2), Some([2, 0, 0, 0, 0, 10]));
        assert_eq!(find("eth1", 4), Some([2, 0, 0, 0, 0, 11]));
        assert_eq!(find("eth1", 2), None, "another interface");
        assert_eq!(find("veth0", 3), None, "not answered yet");
        assert_eq!(find("veth0", 5), None, "flags that are no number");
        assert_eq!(find("veth0", 6), None, "an address cut short");
        assert_eq!(find("veth0", 9), None);
    }

    /// Goal: of several routes the narrowest counts, and neighbours need no gateway. Method: a table as the kernel prints
    /// it on a little-endian machine, turned for the others.
    #[test]
    fn gateways_are_those_of_the_narrowest_route() {
        let number = |addr: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(addr));
        let row = |interface: &str, to, gateway, mask| {
            let (to, gateway, mask) = (number(to), number(gateway), number(mask));
            format!("{interface}\t{to}\t{gateway}\t0003\t0\t0\t0\t{mask}\t0\t0\t0\n")
        };
        let table = [
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
                .to_owned(),
            row("eth0", [0, 0, 0, 0], [10, 0, 0, 254], [0, 0, 0, 0]),
            row("eth0", [10, 1, 0, 0], [10, 0, 0, 253], [255, 255, 0, 0]),
            row("eth0", [10, 0, 0, 0], [0, 0, 0, 0], [255, 255, 255, 0]),
            row("eth1", [10, 1, 2, 0], [10, 9, 0, 1], [255, 255, 255, 0]),
        ]
        .concat();
        let find = |to: [u8; 4]| gateway(&table, "eth0", to.into());
        assert_eq!(find([8, 8, 8, 8]), Some([10, 0, 0, 254].into()));
        assert_eq!(find([10, 1, 2, 3]), Some([10, 0, 0, 253].into()));
        assert_eq!(find([10, 0, 0, 7]), None);
        assert_eq!(gateway(&table, "eth2", [8, 8, 8, 8].into()), None);
    }

    #[test]
    fn the_loopback_is_an_interface() {
        let loopback = Interface::of_address([127, 0, 0, 5].into()).unwrap();
        assert!(loopback.is_loopback && loopback.is_virtual());
        assert_eq!((loopback.mac, loopback.addr), ([0; 6], [127, 0, 0, 5].into()));
        assert!(loopback.mtu >= 1_500 && loopback.queues.rx >= 1 && loopback.index > 0);
        loopback.state().unwrap();
        let mut neighbours = Neighbours::new().unwrap();
        let to = Ipv4Addr::new(127, 0, 0, 9);
        assert_eq!(neighbours.mac_of(to), None);
        neighbours.resolve(&loopback, to, Duration::from_secs(1)).unwrap();
        assert_eq!(neighbours.mac_of(to), Some([0; 6]));
        assert_eq!(towards(to).unwrap().name, loopback.name);
    }

    #[test]
    fn an_address_of_nobody_is_named() {
        // TEST-NET-1 (RFC 5737) belongs to no interface.
        let error = Interface::of_address([192, 0, 2, 1].into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(error.to_string().contains("192.0.2.1"), "{error}");
    }
}
