//! The socket filter that lets into a ring what was sent to one UDP port, and nothing else.

use socket2::SockFilter;

// Instructions of classic BPF (linux/filter.h, linux/bpf_common.h): class, size and mode of each.
const LOAD_U16: u16 = 0x28;
const LOAD_U8: u16 = 0x30;
/// Of the frame at X plus a constant.
const LOAD_U16_AT_X: u16 = 0x48;
/// X = 4 * (byte & 15): the length of an IPv4 header.
const LOAD_X_HEADER_LEN: u16 = 0xb1;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

// Offsets in a frame (IEEE 802.3, RFC 791, RFC 8200, RFC 768).
const ETHERTYPE: u32 = 12;
const NETWORK: u32 = 14;
const IPV4_FRAGMENT: u32 = 6;
const IPV4_PROTOCOL: u32 = 9;
const IPV6_NEXT_HEADER: u32 = 6;
const IPV6_HEADER_LEN: u32 = 40;
const UDP_PORT: u32 = 2;
const VLAN_LEN: u32 = 4;

const UDP: u32 = 17;

/// Offset of an IPv4 fragment; all but the first are somewhere behind the UDP header.
const FRAGMENT_OFFSET: u32 = 0x1fff;

const COUNT: usize = 26;

/// Indices of instructions that are jumped to.
const IPV4_AT: usize = 6;
const IPV6_AT: usize = 13;
const VLAN_AT: usize = 17;
const KEEP_AT: usize = COUNT - 2;
const LEAVE_AT: usize = COUNT - 1;

/// A filter for frames that carry UDP to `port`.
///
/// That is IPv4 with a header of any length, and what is only there to be counted: first fragments, IPv6 without
/// extension headers, and IPv4 behind a VLAN tag that is still in the frame. A tag that the kernel has taken out is not
/// looked at; the ring tells of it (`TP_STATUS_VLAN_VALID`, linux/if_packet.h). Later fragments have no port in them, so
/// that nobody could say whose they are.
pub(crate) fn for_port(port: u16) -> [SockFilter; COUNT] {
    let port = u32::from(port);
    let load = |code, at| SockFilter::new(code, 0, 0, at);
    // Jumps are counted from the next instruction.
    let jump = |code, value, here: usize, yes: usize, no: usize| {
        SockFilter::new(code, (yes - here - 1) as u8, (no - here - 1) as u8, value)
    };
    let vlan = NETWORK + VLAN_LEN;
    [
        load(LOAD_U16, ETHERTYPE),
        jump(JUMP_EQUAL, 0x0800, 1, IPV4_AT, 2),
        jump(JUMP_EQUAL, 0x86dd, 2, IPV6_AT, 3),
        jump(JUMP_EQUAL, 0x8100, 3, VLAN_AT, 4),
        jump(JUMP_EQUAL, 0x88a8, 4, VLAN_AT, 5),
        SockFilter::new(RETURN, 0, 0, 0),
        // 6: IPv4
        load(LOAD_U8, NETWORK + IPV4_PROTOCOL),
        jump(JUMP_EQUAL, UDP, 7, 8, LEAVE_AT),
        load(LOAD_U16, NETWORK + IPV4_FRAGMENT),
        jump(JUMP_ANY_BIT, FRAGMENT_OFFSET, 9, LEAVE_AT, 10),
        load(LOAD_X_HEADER_LEN, NETWORK),
        load(LOAD_U16_AT_X, NETWORK + UDP_PORT),
        jump(JUMP_EQUAL, port, 12, KEEP_AT, LEAVE_AT),
        // 13: IPv6
        load(LOAD_U8, NETWORK + IPV6_NEXT_HEADER),
        jump(JUMP_EQUAL, UDP, 14, 15, LEAVE_AT),
        load(LOAD_U16, NETWORK + IPV6_HEADER_LEN + UDP_PORT),
        jump(JUMP_EQUAL, port, 16, KEEP_AT, LEAVE_AT),
        // 17: a tag in the frame
        load(LOAD_U16, ETHERTYPE + VLAN_LEN),
        jump(JUMP_EQUAL, 0x0800, 18, 19, LEAVE_AT),
        load(LOAD_U8, vlan + IPV4_PROTOCOL),
        jump(JUMP_EQUAL, UDP, 20, 21, LEAVE_AT),
        load(LOAD_X_HEADER_LEN, vlan),
        load(LOAD_U16_AT_X, vlan + UDP_PORT),
        jump(JUMP_EQUAL, port, 23, KEEP_AT, LEAVE_AT),
        // 24: all of the frame, or nothing
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Jumps are one byte.
const _: () = assert!(COUNT < 256);

#[cfg(test)]
mod tests {
    use std::{io, os::unix::net::UnixDatagram};

    use socket2::SockRef;

    use super::*;

    const PORT: u16 = 0x1234;

    /// A frame with an IPv4 header of `words` words behind `tags` VLAN tags.
    fn ipv4(tags: usize, words: usize, fragment: u16, protocol: u8, port: u16) -> Vec<u8> {
        let mut frame = vec![0xff; 12];
        (0..tags).for_each(|_| frame.extend([0x81, 0, 0, 7]));
        frame.extend([0x08, 0x00]);
        let mut header = vec![1; words * 4];
        header[0] = 0x40 | words as u8;
        header[6..8].copy_from_slice(&fragment.to_be_bytes());
        header[9] = protocol;
        frame.extend(header);
        frame.extend([0x12, 0x34]);
        frame.extend(port.to_be_bytes());
        frame.extend([0; 30]);
        frame
    }

    fn ipv6(next_header: u8, port: u16) -> Vec<u8> {
        let mut frame = vec![0xff; 12];
        frame.extend([0x86, 0xdd]);
        frame.extend([0x60, 0, 0, 0, 0, 8, next_header, 64]);
        frame.extend([1; 32]);
        frame.extend([0, 1]);
        frame.extend(port.to_be_bytes());
        frame.extend([0; 30]);
        frame
    }

    /// Goal: what is ours passes, whole, and nothing else does. Method: the kernel runs the filter on frames made by hand,
    /// at a local socket, which needs no privilege and hands datagrams to filters as they are.
    #[test]
    fn only_our_port_passes() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        SockRef::from(&receiver).attach_filter(&for_port(PORT)).unwrap();
        let passes = |frame: &[u8]| {
            // Unwanted datagrams are reported to senders of this kind.
            let _ = sender.send(frame);
            let mut bytes = [0; 200];
            match receiver.recv(&mut bytes) {
                Ok(len) => {
                    assert_eq!(&bytes[..len], frame, "all of it");
                    true
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    false
                }
            }
        };
        for words in 5..=15 {
            assert!(passes(&ipv4(0, words, 0x4000, 17, PORT)), "{words} words");
            assert!(passes(&ipv4(1, words, 0x4000, 17, PORT)), "tagged, {words} words");
            assert!(!passes(&ipv4(0, words, 0, 17, PORT + 1)), "another port");
            assert!(!passes(&ipv4(1, words, 0, 17, PORT + 1)), "another port, tagged");
        }
        assert!(passes(&ipv4(0, 5, 0x2000, 17, PORT)), "first fragment");
        assert!(!passes(&ipv4(0, 5, 0x2001, 17, PORT)), "later fragment");
        assert!(!passes(&ipv4(0, 5, 0x1fff, 17, PORT)), "last fragment");
        assert!(!passes(&ipv4(0, 5, 0, 6, PORT)), "TCP");
        assert!(!passes(&ipv4(1, 5, 0, 6, PORT)), "TCP, tagged");
        assert!(!passes(&ipv4(2, 5, 0, 17, PORT)), "two tags");
        assert!(passes(&ipv6(17, PORT)));
        assert!(!passes(&ipv6(17, PORT + 1)) && !passes(&ipv6(6, PORT)));
        let mut other = ipv4(0, 5, 0, 17, PORT);
        other[12..14].copy_from_slice(&[0x08, 0x06]);
        assert!(!passes(&other), "ARP");
        for (frame, headers_len) in
            [(ipv4(0, 5, 0, 17, PORT), 38), (ipv6(17, PORT), 58), (ipv4(1, 5, 0, 17, PORT), 42)]
        {
            for len in 1..frame.len() {
                assert_eq!(passes(&frame[..len]), len >= headers_len, "{len} bytes of it");
            }
        }
    }
}
