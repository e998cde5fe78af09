//! Ethernet, IPv4 and UDP around a payload: what arrives is taken apart and checked, what leaves gets its headers.
//!
//! ```text
//!  │ Ethernet 14 │ IPv4 20 │ UDP 8 │ payload │        RFC 894, RFC 791, RFC 768
//! ```
//! Only what linerate itself sends is taken: no VLAN tags, no fragments, no IPv6. IPv4 options are skipped.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IPV4_HEADER_LEN,
        IpProtocol, Ipv4Packet, Ipv4Repr, UDP_HEADER_LEN, UdpPacket,
    },
};

/// Bytes of all headers in front of a payload that this side sends.
pub(crate) const HEADERS_LEN: usize = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN + UDP_HEADER_LEN;

/// Where the UDP header starts in what this side sends.
const UDP_AT: usize = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN;

/// The value that most systems start with (RFC 1700); a data centre has fewer hops.
const HOP_LIMIT: u8 = 64;

/// Tags of IEEE 802.1Q and 802.1ad.
const VLAN_ETHERTYPES: [u16; 2] = [0x8100, 0x88a8];

/// Who this side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Local {
    pub(crate) mac: [u8; 6],
    pub(crate) addr: Ipv4Addr,
    pub(crate) port: u16,
}

/// What is asked of a datagram's checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksums {
    /// They must be right.
    Verify,
    /// As `Verify`, but the sum over the pseudo-header alone will do for UDP: a sender on the same machine leaves the rest
    /// to a device that will never see the frame (`CHECKSUM_PARTIAL`, include/linux/skbuff.h).
    VerifyOrPartial,
    /// The kernel or the device has verified them.
    Trust,
}

/// Why a frame is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameFault {
    /// A header does not parse, or the frame ends before the datagram does.
    BadFrame,
    /// A checksum is wrong.
    BadChecksum,
    /// A part of a datagram.
    Fragment,
    /// Tagged.
    Vlan,
    /// IPv6.
    Ipv6,
    /// For another Ethernet or IP address.
    WrongDestination,
}

/// A datagram in its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// Who sent the frame.
    pub(crate) mac: [u8; 6],
    /// Who sent the datagram.
    pub(crate) from: SocketAddrV4,
    pub(crate) to_port: u16,
    /// First byte of the payload, counted from the frame's start.
    pub(crate) start: usize,
    /// Bytes of payload.
    pub(crate) len: usize,
}

/// Takes a frame apart. The destination port is told, not checked.
///
/// # Errors
/// Why the frame is not taken.
#[inline]
pub(crate) fn parse(frame: &[u8], local: &Local, checksums: Checksums) -> Result<Arrived, FrameFault> {
    let ethernet = EthernetFrame::new_checked(frame).map_err(|_| FrameFault::BadFrame)?;
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {}
        EthernetProtocol::Ipv6 => return Err(FrameFault::Ipv6),
        EthernetProtocol::Unknown(tag) if VLAN_ETHERTYPES.contains(&tag) => return Err(FrameFault::Vlan),
        _ => return Err(FrameFault::BadFrame),
    }
    if ethernet.dst_addr().0 != local.mac {
        return Err(FrameFault::WrongDestination);
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).map_err(|_| FrameFault::BadFrame)?;
    if ip.version() != 4 || ip.next_header() != IpProtocol::Udp {
        return Err(FrameFault::BadFrame);
    }
    if ip.more_frags() || ip.frag_offset() != 0 {
        return Err(FrameFault::Fragment);
    }
    if ip.dst_addr() != local.addr {
        return Err(FrameFault::WrongDestination);
    }
    let udp = UdpPacket::new_checked(ip.payload()).map_err(|_| FrameFault::BadFrame)?;
    // Nobody can be answered at port 0 (RFC 768: "if not used, a value of zero is inserted").
    if udp.src_port() == 0 || !is_somebody(ethernet.src_addr(), ip.src_addr(), local) {
        return Err(FrameFault::BadFrame);
    }
    if checksums != Checksums::Trust {
        let is_partial = checksums == Checksums::VerifyOrPartial;
        if !ip.verify_checksum() || !is_summed(&ip, &udp, is_partial) {
            return Err(FrameFault::BadChecksum);
        }
    }
    Ok(Arrived {
        mac: ethernet.src_addr().0,
        from: SocketAddrV4::new(ip.src_addr(), udp.src_port()),
        to_port: udp.dst_port(),
        start: ETHERNET_HEADER_LEN + usize::from(ip.header_len()) + UDP_HEADER_LEN,
        len: udp.payload().len(),
    })
}

/// Whether an answer would go to one other host: sources that are groups, nobody, or this host itself are made up, and
/// never get past the kernel's own stack either (RFC 1122, section 3.2.1.3; `ip_route_input_slow`, net/ipv4/route.c).
fn is_somebody(mac: EthernetAddress, addr: Ipv4Addr, local: &Local) -> bool {
    // Only the loopback has no MAC of its own, and everything there comes from this host.
    let is_elsewhere = local.mac == [0; 6] || !(addr.is_loopback() || addr == local.addr);
    let is_group = mac.is_multicast() || addr.is_multicast() || addr.is_broadcast();
    is_elsewhere && !is_group && !addr.is_unspecified()
}

/// Whether a datagram has no checksum, the right one, or, where that is allowed, the sum of its pseudo-header.
fn is_summed(ip: &Ipv4Packet<&[u8]>, udp: &UdpPacket<&[u8]>, partial: bool) -> bool {
    let stored = udp.checksum();
    if stored == 0 {
        return true;
    }
    let pseudo_header = pseudo_header_sum(ip.src_addr(), ip.dst_addr(), udp.len());
    let datagram = &ip.payload()[..usize::from(udp.len())];
    // The cheap one first.
    (partial && stored == fold(pseudo_header)) || fold(pseudo_header + sum(datagram)) == 0xffff
}

/// The headers of all datagrams from one place to another, but for what depends on the payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Headers {
    template: [u8; HEADERS_LEN],
    /// Sum of the IPv4 header without its total length.
    ip_sum: u64,
    /// Sum of the pseudo-header and the UDP header without the datagram's length, which is in both.
    udp_sum: u64,
}

impl Headers {
    pub(crate) fn new(local: &Local, to_mac: [u8; 6], to: SocketAddrV4) -> Self {
        let mut template = [0; HEADERS_LEN];
        let ethernet = EthernetRepr {
            src_addr: EthernetAddress(local.mac),
            dst_addr: EthernetAddress(to_mac),
            ethertype: EthernetProtocol::Ipv4,
        };
        ethernet.emit(&mut EthernetFrame::new_unchecked(&mut template[..]));
        let ip = Ipv4Repr {
            src_addr: local.addr,
            dst_addr: *to.ip(),
            next_header: IpProtocol::Udp,
            payload_len: 0,
            hop_limit: HOP_LIMIT,
        };
        // Identification 0 and "don't fragment", which belong together (RFC 6864, section 4.1).
        let mut packet = Ipv4Packet::new_unchecked(&mut template[ETHERNET_HEADER_LEN..UDP_AT]);
        ip.emit(&mut packet, &ChecksumCapabilities::ignored());
        packet.set_total_len(0);
        packet.set_checksum(0);
        let mut udp = UdpPacket::new_unchecked(&mut template[UDP_AT..]);
        udp.set_src_port(local.port);
        udp.set_dst_port(to.port());
        udp.set_len(0);
        udp.set_checksum(0);
        let ip_sum = sum(&template[ETHERNET_HEADER_LEN..UDP_AT]);
        let udp_sum = sum(&template[UDP_AT..]) + pseudo_header_sum(local.addr, *to.ip(), 0);
        Self { template, ip_sum, udp_sum }
    }

    /// Writes the headers of a datagram.
    #[inline]
    pub(crate) fn write(&self, headers: &mut [u8; HEADERS_LEN], payload: &[u8]) {
        *headers = self.template;
        let udp_len = (UDP_HEADER_LEN + payload.len()) as u16;
        let total_len = IPV4_HEADER_LEN as u16 + udp_len;
        let mut ip = Ipv4Packet::new_unchecked(&mut headers[ETHERNET_HEADER_LEN..UDP_AT]);
        ip.set_total_len(total_len);
        ip.set_checksum(!fold(self.ip_sum + u64::from(total_len.to_be())));
        let mut udp = UdpPacket::new_unchecked(&mut headers[UDP_AT..]);
        udp.set_len(udp_len);
        let checksum = !fold(self.udp_sum + 2 * u64::from(udp_len.to_be()) + sum(payload));
        // Zero would mean that there is none (RFC 768).
        udp.set_checksum(if checksum == 0 { 0xffff } else { checksum });
    }

    /// Writes the headers of a datagram or train of `payload_len` bytes whose checksum the kernel finishes, and also the
    /// IPv4 length and checksum where it cuts: the UDP checksum is the sum of the pseudo-header (`CHECKSUM_PARTIAL`,
    /// include/linux/skbuff.h).
    #[inline]
    pub(crate) fn write_partial(&self, headers: &mut [u8; HEADERS_LEN], payload_len: usize) {
        *headers = self.template;
        let udp_len = (UDP_HEADER_LEN + payload_len) as u16;
        let total_len = IPV4_HEADER_LEN as u16 + udp_len;
        let mut ip = Ipv4Packet::new_unchecked(&mut headers[ETHERNET_HEADER_LEN..UDP_AT]);
        ip.set_total_len(total_len);
        ip.set_checksum(!fold(self.ip_sum + u64::from(total_len.to_be())));
        let pseudo_header = pseudo_header_sum(ip.src_addr(), ip.dst_addr(), udp_len);
        let mut udp = UdpPacket::new_unchecked(&mut headers[UDP_AT..]);
        udp.set_len(udp_len);
        udp.set_checksum(fold(pseudo_header));
    }
}

/// Sum of the pseudo-header of RFC 768 in the machine's byte order.
fn pseudo_header_sum(from: Ipv4Addr, to: Ipv4Addr, udp_len: u16) -> u64 {
    let protocol = u16::from(u8::from(IpProtocol::Udp));
    sum(&from.octets()) + sum(&to.octets()) + u64::from(protocol.to_be()) + u64::from(udp_len.to_be())
}

/// Sum of the 16-bit words of `bytes` in the machine's byte order: the sum of RFC 1071 does not depend on it but for the
/// order of its own two bytes (section 2(B)). Words of 32 bits add up to the same, four times as fast. At most 64 KiB, so
/// that nothing overflows.
#[inline]
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_ne_bytes(last));
    sum
}

/// The one's complement sum in 16 bits, in network byte order read as a number.
const fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::from_be(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: Local = Local { mac: [2, 0, 0, 0, 0, 1], addr: Ipv4Addr::new(10, 77, 0, 1), port: 4_100 };
    const THERE: Local = Local { mac: [2, 0, 0, 0, 0, 2], addr: Ipv4Addr::new(10, 77, 0, 2), port: 50_000 };

    /// A frame from there to here.
    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut headers = [0; HEADERS_LEN];
        let to = SocketAddrV4::new(HERE.addr, HERE.port);
        Headers::new(&THERE, HERE.mac, to).write(&mut headers, payload);
        [&headers, payload].concat()
    }

    fn arrived(len: usize) -> Arrived {
        let from = SocketAddrV4::new(THERE.addr, THERE.port);
        Arrived { mac: THERE.mac, from, to_port: HERE.port, start: HEADERS_LEN, len }
    }

    /// Repairs the checksum of the IPv4 header.
    fn sum_header(frame: &mut [u8]) {
        Ipv4Packet::new_unchecked(&mut frame[ETHERNET_HEADER_LEN..]).fill_checksum();
    }

    /// Goal: the headers are those of the RFCs. Method: a frame worked out by hand, byte by byte.
    #[test]
    fn golden_frame() {
        let expected = [
            [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00].as_slice(),
            &[0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0x26, 0x32, 10, 77, 0, 2, 10, 77, 0, 1],
            &[0xc3, 0x50, 0x10, 0x04, 0, 11, 0x53, 0x84],
            b"abc",
        ]
        .concat();
        assert_eq!(frame(b"abc"), expected);
        assert_eq!(parse(&expected, &HERE, Checksums::Verify), Ok(arrived(3)));
    }

    /// Goal: sums agree with another implementation for all lengths. Method: smoltcp verifies what is written here.
    #[test]
    fn checksums_agree_with_another_implementation() {
        for len in 0..=1_472 {
            let payload: Vec<u8> = (0..len).map(|index| (index * 7 + len) as u8).collect();
            let frame = frame(&payload);
            let ip = Ipv4Packet::new_checked(&frame[ETHERNET_HEADER_LEN..]).unwrap();
            assert!(ip.verify_checksum(), "{len} bytes");
            let udp = UdpPacket::new_checked(ip.payload()).unwrap();
            assert!(udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()), "{len} bytes");
            assert_eq!(parse(&frame, &HERE, Checksums::Verify), Ok(arrived(len)));
        }
    }

    /// Goal: what is left to the kernel is what it expects. Method: the receiver accepts it where partial sums may come in,
    /// and only there.
    #[test]
    fn partial_checksums_are_sums_of_the_pseudo_header() {
        let mut headers = [0; HEADERS_LEN];
        let to = SocketAddrV4::new(HERE.addr, HERE.port);
        for len in [0, 1, 100, 1_472] {
            Headers::new(&THERE, HERE.mac, to).write_partial(&mut headers, len);
            let frame = [&headers[..], &vec![7; len]].concat();
            assert_eq!(parse(&frame, &HERE, Checksums::VerifyOrPartial), Ok(arrived(len)));
        }
        let frame = [&headers[..], &[7; 1_472]].concat();
        assert_eq!(parse(&frame, &HERE, Checksums::Verify), Err(FrameFault::BadChecksum));
    }

    #[test]
    fn a_sum_of_zero_is_written_as_all_ones() {
        // The payload makes up for the sum of everything else.
        let rest = frame(&[0, 0]);
        let missing = UdpPacket::new_unchecked(&rest[UDP_AT..]).checksum();
        let frame = frame(&missing.to_be_bytes());
        assert_eq!(UdpPacket::new_unchecked(&frame[UDP_AT..]).checksum(), 0xffff);
        assert_eq!(parse(&frame, &HERE, Checksums::Verify), Ok(arrived(2)));
    }

    /// Goal: every kind of frame that is not taken is refused for its own reason. Method: one change each to a good frame.
    #[test]
    fn each_fault_has_its_reason() {
        let spoiled = |spoil: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = frame(&[1; 100]);
            spoil(&mut frame);
            parse(&frame, &HERE, Checksums::Verify)
        };
        let summed = |at: usize, value: u8| {
            spoiled(&|frame| {
                frame[at] = value;
                sum_header(frame);
            })
        };
        assert_eq!(spoiled(&|_| ()), Ok(arrived(100)));
        assert_eq!(spoiled(&|frame| frame[13] = 0x06), Err(FrameFault::BadFrame), "ARP");
        assert_eq!(spoiled(&|frame| frame[12] = 0x81), Err(FrameFault::Vlan));
        assert_eq!(
            spoiled(&|frame| frame[12..14].copy_from_slice(&[0x88, 0xa8])),
            Err(FrameFault::Vlan),
            "802.1ad"
        );
        assert_eq!(spoiled(&|frame| frame[12..14].copy_from_slice(&[0x86, 0xdd])), Err(FrameFault::Ipv6));
        assert_eq!(spoiled(&|frame| frame[0] ^= 1), Err(FrameFault::WrongDestination), "MAC");
        assert_eq!(summed(33, 9), Err(FrameFault::WrongDestination), "address");
        assert_eq!(summed(14, 0x65), Err(FrameFault::BadFrame), "version 6");
        assert_eq!(summed(14, 0x4f), Err(FrameFault::BadFrame), "a header of 60 bytes");
        assert_eq!(summed(23, 6), Err(FrameFault::BadFrame), "TCP");
        assert_eq!(summed(20, 0x20), Err(FrameFault::Fragment), "first fragment");
        assert_eq!(summed(21, 1), Err(FrameFault::Fragment), "later fragment");
        assert_eq!(spoiled(&|frame| frame[22] ^= 1), Err(FrameFault::BadChecksum), "IPv4 header");
        assert_eq!(spoiled(&|frame| frame[60] ^= 1), Err(FrameFault::BadChecksum), "payload");
        assert_eq!(spoiled(&|frame| frame[40] ^= 1), Err(FrameFault::BadChecksum), "UDP checksum");
        assert_eq!(summed(17, 200), Err(FrameFault::BadFrame), "longer than the frame");
        assert_eq!(spoiled(&|frame| frame[39] = 200), Err(FrameFault::BadFrame), "longer than its packet");
        assert_eq!(spoiled(&|frame| frame[39] = 7), Err(FrameFault::BadFrame), "shorter than its header");
        assert_eq!(
            spoiled(&|frame| frame[34..36].fill(0)),
            Err(FrameFault::BadFrame),
            "a port that can not be answered"
        );
        assert_eq!(spoiled(&|frame| frame[6] |= 1), Err(FrameFault::BadFrame), "a group's MAC");
        for source in [[224, 0, 0, 1], [255; 4], [0; 4], [127, 0, 0, 1], HERE.addr.octets()] {
            let from_there = |frame: &mut Vec<u8>| {
                frame[26..30].copy_from_slice(&source);
                frame[40..42].fill(0);
                sum_header(frame);
            };
            assert_eq!(spoiled(&from_there), Err(FrameFault::BadFrame), "from {source:?}");
        }
        for len in 0..142 {
            assert_eq!(
                spoiled(&|frame| frame.truncate(len)),
                Err(FrameFault::BadFrame),
                "{len} of 142 bytes"
            );
        }
    }

    /// Goal: what Ethernet and IPv4 may add is not taken for payload. Method: padding behind the packet, and options.
    #[test]
    fn padding_and_options_are_skipped() {
        let mut padded = frame(b"abc");
        padded.resize(60, 0);
        assert_eq!(parse(&padded, &HERE, Checksums::Verify), Ok(arrived(3)));
        let mut options = frame(b"abc");
        options.splice(UDP_AT..UDP_AT, [1; 4]);
        options[ETHERNET_HEADER_LEN] = 0x46;
        options[17] += 4;
        sum_header(&mut options);
        let expected = Arrived { start: HEADERS_LEN + 4, ..arrived(3) };
        assert_eq!(parse(&options, &HERE, Checksums::Verify), Ok(expected));
    }

    /// Goal: checksums that are absent, unfinished or verified by others are taken where they may be. Method: each against
    /// each way to ask.
    #[test]
    fn unfinished_checksums_are_taken_only_where_asked() {
        let with_checksum = |checksum: u16| {
            let mut frame = frame(&[3; 64]);
            UdpPacket::new_unchecked(&mut frame[UDP_AT..]).set_checksum(checksum);
            frame
        };
        let partial = fold(pseudo_header_sum(THERE.addr, HERE.addr, 72));
        let asked = [Checksums::Verify, Checksums::VerifyOrPartial, Checksums::Trust];
        let taken = |checksum| asked.map(|asked| parse(&with_checksum(checksum), &HERE, asked).is_ok());
        assert_eq!(taken(0), [true, true, true]);
        assert_eq!(taken(partial), [false, true, true]);
        assert_eq!(taken(partial ^ 1), [false, false, true]);
    }

    proptest! {
        /// Goal: no bytes make it panic, and what is taken lies inside the frame. Method: arbitrary bytes, some behind a
        /// good beginning.
        #[test]
        fn arbitrary_bytes_are_taken_apart_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            good in 0..=HEADERS_LEN,
        ) {
            let mut frame = frame(&[0; 8]);
            frame.truncate(good);
            frame.extend(bytes);
            for checksums in [Checksums::Verify, Checksums::VerifyOrPartial, Checksums::Trust] {
                if let Ok(arrived) = parse(&frame, &HERE, checksums) {
                    prop_assert!(arrived.start + arrived.len <= frame.len());
                }
            }
        }
    }
}
