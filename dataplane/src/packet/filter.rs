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
