//! The kernel program that tells our datagrams from everything else on an interface, for both ports on rings.
//!
//! Ours is a frame to our MAC and IPv4 address, without a VLAN tag, that carries an unfragmented UDP datagram to one of
//! our ports. Everything else is passed on to the kernel untouched; what might have been meant for us all the same is
//! counted by reason.

use std::{
    io,
    net::Ipv4Addr,
    sync::atomic::Ordering::{AcqRel, Relaxed},
};

use crate::bpf::{
    Alu::{Add, And, Move, ShiftLeft, ShiftRight},
    Assembler,
    Condition::{AnyBit, Equal, Greater, GreaterOrEqual, NotEqual},
    Program, ProgramKind,
    Register::{R0, R1, R2, R3, R5, R6, R7, R8, R9},
    Width::{U8, U16, U32, U64},
    WordsMap, XskMap,
};

// Offsets in a frame with the shortest IPv4 header (IEEE 802.3, RFC 791, RFC 768).
const ETHERTYPE: i16 = 12;
const IPV4: i16 = 14;
const IPV4_FRAGMENT: i16 = 20;
const IPV4_PROTOCOL: i16 = 23;
const IPV4_DESTINATION: i16 = 30;
const UDP_PORT: i16 = 36;
const HEADERS_LEN: i32 = 42;
const IPV6_NEXT_HEADER: i16 = 20;
const IPV6_UDP_PORT: i16 = 56;
const IPV4_HEADERS_LEN: i32 = 34;
const IPV6_HEADERS_LEN: i32 = 62;
/// Version 4, and a header of five words: one without options.
const IPV4_SHORTEST: i32 = 0x45;
/// The more-fragments flag and the offset; the don't-fragment flag and the reserved one do not matter.
const FRAGMENT_MASK: u16 = 0x3fff;
const UDP: i32 = 17;

// Helpers of linux/bpf.h.
const BPF_SKB_PULL_DATA: i32 = 39;
const BPF_REDIRECT_MAP: i32 = 51;

// Verdicts of linux/bpf.h.
const XDP_PASS: i32 = 2;
const TC_ACT_SHOT: i32 = 2;
const TCX_NEXT: i32 = -1;

/// What a program takes for ours, beside the ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ours {
    /// MAC address of the interface.
    pub(crate) mac: [u8; 6],
    /// IPv4 address that peers send to.
    pub(crate) addr: Ipv4Addr,
}

/// Frames that were passed on to the kernel although they might have been meant for us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// IPv4 frames that are too short for their headers or claim impossible ones.
    pub(crate) bad_frames: u64,
    /// Frames longer than the buffer that they would go to.
    pub(crate) too_long: u64,
    /// Fragments of IPv4 packets that carry UDP to our address.
    pub(crate) fragments: u64,
    /// Frames with a VLAN tag, whatever is in them.
    pub(crate) vlan: u64,
    /// UDP over IPv6, to one of our ports.
    pub(crate) ipv6: u64,
    /// UDP to one of our ports at another MAC or IPv4 address.
    pub(crate) wrong_destination: u64,
}

/// Index of each count among the words of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// 0 is what r9 says of a datagram that may be ours; nothing is counted under it through r9.
    BadFrame,
    TooLong,
    Fragment,
    Vlan,
    Ipv6,
    WrongDestination,
}

const REASONS: usize = 6;

/// What programs look up and count in; several programs may share it.
#[derive(Debug)]
pub(crate) struct Classifier {
    /// One bit per port. Its index is the port as the machine reads it from a frame, so that a program need not swap.
    ports: WordsMap,
    passed: WordsMap,
}

#[cfg(test)]
impl Passed {
    fn words(self) -> [u64; REASONS] {
        [self.bad_frames, self.too_long, self.fragments, self.vlan, self.ipv6, self.wrong_destination]
    }
}

impl Classifier {
    /// A classifier that takes nothing for ours.
    ///
    /// # Errors
    /// `EPERM` without CAP_BPF; else as bpf(2).
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { ports: WordsMap::new((1 << 16) / 64)?, passed: WordsMap::new(REASONS)? })
    }

    /// From now on, also in programs that run already, `port` is ours, or not.
    pub(crate) fn set_port(&self, port: u16, ours: bool) {
        let index = port.to_be();
        let (word, bit) = (&self.ports.words()[usize::from(index) / 64], 1 << (index % 64));
        if ours {
            word.fetch_or(bit, AcqRel)
        } else {
            word.fetch_and(!bit, AcqRel)
        };
    }

    /// What all programs have passed on so far.
    pub(crate) fn passed(&self) -> Passed {
        let count = |reason: Reason| self.passed.words()[reason as usize].load(Relaxed);
        Passed {
            bad_frames: count(Reason::BadFrame),
            too_long: count(Reason::TooLong),
            fragments: count(Reason::Fragment),
            vlan: count(Reason::Vlan),
            ipv6: count(Reason::Ipv6),
            wrong_destination: count(Reason::WrongDestination),
        }
    }

    /// An XDP program that sends ours to the socket in `sockets` of the queue that they came in at. Frames longer than
    /// `frame_len_max`, and those of a queue without a socket, go to the kernel.
    ///
    /// # Errors
    /// As [`Program::load`].
    pub(crate) fn redirect(&self, ours: Ours, frame_len_max: u16, sockets: &XskMap) -> io::Result<Program> {
        self.assemble(ProgramKind::Xdp, ours, Some(frame_len_max), Ending::Redirect(sockets))
    }

    /// A program for the entry to the network stack that drops ours: a packet socket has a copy by then.
    ///
    /// # Errors
    /// As [`Program::load`].
    pub(crate) fn drop_ours(&self, ours: Ours) -> io::Result<Program> {
        let ending = Ending::Verdicts { ours: TC_ACT_SHOT, pass: TCX_NEXT };
        self.assemble(ProgramKind::TcxIngress, ours, None, ending)
    }

    /// r6 is the context, r7 and r8 the frame's start and end; r9 is 0 while a datagram may be ours, else what it is.
    fn assemble(
        &self,
        kind: ProgramKind,
        ours: Ours,
        frame_len_max: Option<u16>,
        ending: Ending<'_>,
    ) -> io::Result<Program> {
        let mut program = Assembler::default();
        let [fragment, look_up, not_ours, options, other_ethertype, short, pass] =
            [(); 7].map(|()| program.label());
        let counts = [(); REASONS].map(|()| program.label());
        let count = |reason: Reason| counts[reason as usize];

        program.alu(Move, R6, R1);
        load_frame(&mut program, kind);
        match kind {
            ProgramKind::Xdp => program.jump_if(R2, Greater, R8, short),
            ProgramKind::TcxIngress => {
                // The interface may have taken the tag out of the frame (`vlan_present` of __sk_buff).
                program.load(U32, R3, R6, 20);
                program.jump_if(R3, NotEqual, 0, count(Reason::Vlan));
                // Only what lies in the skb's linear part can be read; the headers are moved there if need be.
                let readable = program.label();
                program.jump_if(R8, GreaterOrEqual, R2, readable);
                program.alu(Move, R1, R6);
                program.alu(Move, R2, HEADERS_LEN);
                program.call(BPF_SKB_PULL_DATA);
                load_frame(&mut program, kind);
                program.jump_if(R2, Greater, R8, short);
                program.place(readable);
            }
        }

        program.load(U16, R2, R7, ETHERTYPE);
        program.jump_if(R2, NotEqual, network(0x0800), other_ethertype);
        program.load(U8, R2, R7, IPV4_PROTOCOL);
        program.jump_if(R2, NotEqual, UDP, pass);
        let addressed = program.label();
        program.alu(Move, R9, 0);
        program.load(U32, R2, R7, IPV4_DESTINATION);
        program.jump_if_u32(R2, Equal, u32::from_ne_bytes(ours.addr.octets()), addressed);
        program.alu(Move, R9, Reason::WrongDestination as i32);
        program.place(addressed);
        program.load(U16, R2, R7, IPV4_FRAGMENT);
        program.jump_if(R2, AnyBit, network(FRAGMENT_MASK), fragment);
        program.load(U8, R2, R7, IPV4);
        program.load(U16, R3, R7, UDP_PORT);
        program.jump_if(R2, NotEqual, IPV4_SHORTEST, options);

        // r3 is the destination port as it was read.
        program.place(look_up);
        program.alu(Move, R5, R3);
        program.alu(ShiftRight, R5, 6);
        program.alu(ShiftLeft, R5, 3);
        program.load_words(R2, &self.ports);
        program.alu(Add, R2, R5);
        program.load(U64, R2, R2, 0);
        program.alu(And, R3, 63);
        program.alu(ShiftRight, R2, R3);
        program.alu(And, R2, 1);
        program.jump_if(R2, Equal, 0, pass);
        program.jump_if(R9, NotEqual, 0, not_ours);
        let [a, b, c, d, e, f] = ours.mac;
        program.load(U32, R2, R7, 0);
        program.jump_if_u32(R2, NotEqual, u32::from_ne_bytes([a, b, c, d]), count(Reason::WrongDestination));
        program.load(U16, R2, R7, 4);
        program.jump_if(R2, NotEqual, i32::from(u16::from_ne_bytes([e, f])), count(Reason::WrongDestination));
        if let Some(len_max) = frame_len_max {
            program.alu(Move, R2, R7);
            program.alu(Add, R2, i32::from(len_max) + 1);
            // The comparison that the verifier understands; the other way round says the same.
            let fits = program.label();
            program.jump_if(R2, Greater, R8, fits);
            program.jump(count(Reason::TooLong));
            program.place(fits);
        }
        let pass_verdict = match ending {
            Ending::Redirect(sockets) => {
                program.load_map(R1, sockets);
                // `rx_queue_index` of xdp_md; the verdict without a socket there.
                program.load(U32, R2, R6, 16);
                program.alu(Move, R3, XDP_PASS);
                program.call(BPF_REDIRECT_MAP);
                XDP_PASS
            }
            Ending::Verdicts { ours, pass } => {
                program.alu(Move, R0, ours);
                pass
            }
        };
        program.exit();

        // r2 is the first byte of the IPv4 header: version and length in words.
        program.place(options);
        program.alu(Move, R3, R2);
        program.alu(ShiftRight, R3, 4);
        program.jump_if(R3, NotEqual, 4, count(Reason::BadFrame));
        program.alu(And, R2, 15);
        // One way for each length: without CAP_PERFMON the verifier lets nobody add a variable to a packet's address.
        let ways = [(); 10].map(|()| program.label());
        for (words, &way) in (6..).zip(&ways) {
            program.jump_if(R2, Equal, words, way);
        }
        program.jump(count(Reason::BadFrame));
        for (words, &way) in (6..).zip(&ways) {
            let udp = IPV4 + 4 * words;
            program.place(way);
            program.alu(Move, R2, R7);
            program.alu(Add, R2, i32::from(udp) + 8);
            program.jump_if(R2, Greater, R8, count(Reason::BadFrame));
            program.load(U16, R3, R7, udp + 2);
            program.jump(look_up);
        }

        program.place(other_ethertype);
        program.jump_if(R2, Equal, network(0x8100), count(Reason::Vlan));
        program.jump_if(R2, Equal, network(0x88a8), count(Reason::Vlan));
        program.jump_if(R2, NotEqual, network(0x86dd), pass);
        program.alu(Move, R2, R7);
        program.alu(Add, R2, IPV6_HEADERS_LEN);
        program.jump_if(R2, Greater, R8, pass);
        program.load(U8, R2, R7, IPV6_NEXT_HEADER);
        program.jump_if(R2, NotEqual, UDP, pass);
        program.alu(Move, R9, Reason::Ipv6 as i32);
        program.load(U16, R3, R7, IPV6_UDP_PORT);
        program.jump(look_up);

        program.place(not_ours);
        program.jump_if(R9, Equal, Reason::Ipv6 as i32, count(Reason::Ipv6));
        program.jump(count(Reason::WrongDestination));

        program.place(fragment);
        program.jump_if(R9, Equal, 0, count(Reason::Fragment));
        program.jump(pass);

        // A frame without room for all headers. Above 34 bytes it may still be the end of a fragmented datagram.
        program.place(short);
        let tiny = program.label();
        program.alu(Move, R2, R7);
        program.alu(Add, R2, IPV4_HEADERS_LEN);
        program.jump_if(R2, Greater, R8, tiny);
        program.load(U16, R2, R7, ETHERTYPE);
        program.jump_if(R2, NotEqual, network(0x0800), pass);
        program.load(U8, R2, R7, IPV4_PROTOCOL);
        program.jump_if(R2, NotEqual, UDP, pass);
        program.load(U32, R2, R7, IPV4_DESTINATION);
        program.jump_if_u32(R2, NotEqual, u32::from_ne_bytes(ours.addr.octets()), pass);
        program.load(U16, R2, R7, IPV4_FRAGMENT);
        program.jump_if(R2, AnyBit, network(FRAGMENT_MASK), count(Reason::Fragment));
        program.jump(count(Reason::BadFrame));
        program.place(tiny);
        program.alu(Move, R2, R7);
        program.alu(Add, R2, i32::from(IPV4));
        program.jump_if(R2, Greater, R8, pass);
        program.load(U16, R2, R7, ETHERTYPE);
        program.jump_if(R2, Equal, network(0x0800), count(Reason::BadFrame));
        program.jump(pass);

        for (reason, label) in counts.into_iter().enumerate() {
            if reason == Reason::TooLong as usize && frame_len_max.is_none() {
                // The verifier refuses what nothing jumps to.
                continue;
            }
            program.place(label);
            program.load_words(R1, &self.passed);
            program.alu(Move, R2, 1);
            program.atomic_add(R1, reason as i16 * 8, R2);
            program.jump(pass);
        }
        program.place(pass);
        program.alu(Move, R0, pass_verdict);
        program.exit();
        Program::load(kind, program, c"Dual MIT/GPL")
    }
}

/// What becomes of a frame once it is judged.
enum Ending<'a> {
    Redirect(&'a XskMap),
    Verdicts { ours: i32, pass: i32 },
}

/// `r7 = data`, `r8 = data_end` of the context in r6, and `r2 =` where the headers of a datagram end.
fn load_frame(program: &mut Assembler, kind: ProgramKind) {
    // Offsets in `struct xdp_md` and `struct __sk_buff`.
    let (data, data_end) = match kind {
        ProgramKind::Xdp => (0, 4),
        ProgramKind::TcxIngress => (76, 80),
    };
    program.load(U32, R7, R6, data);
    program.load(U32, R8, R6, data_end);
    program.alu(Move, R2, R7);
    program.alu(Add, R2, HEADERS_LEN);
}

/// A 16-bit value of the network as the machine reads it.
fn network(value: u16) -> i32 {
    i32::from(value.to_be())
}

#[cfg(test)]
mod tests {
    use rand::{Rng, RngExt as _, SeedableRng as _, rngs::SmallRng};

    use super::*;
    use crate::{privilege, rings_testing::or_say};

    const OURS: Ours = Ours { mac: [2, 0, 0, 0, 0, 7], addr: Ipv4Addr::new(10, 9, 8, 7) };
    const PORTS: [u16; 4] = [1, 4_999, 31_000, 65_535];
    const LEN_MAX: u16 = 100;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Verdict {
        Ours,
        Pass(Option<Reason>),
    }

    /// What the program should say, written down once more from the description.
    fn judge(frame: &[u8], len_max: usize) -> Verdict {
        use Verdict::Pass;
        let u16_at = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let len = frame.len();
        match u16_at(12) {
            0x8100 | 0x88a8 if len >= 42 => return Pass(Some(Reason::Vlan)),
            0x86dd if len >= 62 && frame[20] == 17 && PORTS.contains(&u16_at(56)) => {
                return Pass(Some(Reason::Ipv6));
            }
            0x0800 => {}
            _ => return Pass(None),
        }
        if len < 34 {
            return Pass(Some(Reason::BadFrame));
        }
        let ours = frame[30..34] == OURS.addr.octets();
        if frame[23] != 17 {
            return Pass(None);
        }
        if u16_at(20) & 0x3fff != 0 {
            return Pass(ours.then_some(Reason::Fragment));
        }
        let header_len = usize::from(frame[14] & 15) * 4;
        if len < 42 {
            return Pass(ours.then_some(Reason::BadFrame));
        }
        if frame[14] >> 4 != 4 || header_len < 20 || len < 14 + header_len + 8 {
            return Pass(Some(Reason::BadFrame));
        }
        if !PORTS.contains(&u16_at(14 + header_len + 2)) {
            return Pass(None);
        }
        if !ours || frame[..6] != OURS.mac {
            return Pass(Some(Reason::WrongDestination));
        }
        if len > len_max { Pass(Some(Reason::TooLong)) } else { Verdict::Ours }
    }

    /// A frame that is ours or nearly so: each of its properties is wrong once in a while.
    fn random_frame(random: &mut SmallRng) -> Vec<u8> {
        let mut frame = vec![0; 120];
        random.fill_bytes(&mut frame);
        let mut mostly = |common: u16, other: &[u16]| {
            if random.random_bool(0.85) { common } else { other[random.random_range(0..other.len())] }
        };
        let ethertype = mostly(0x0800, &[0x8100, 0x88a8, 0x86dd, 0x0806, 0x0008]);
        let first = mostly(0x45, &[0x46, 0x4f, 0x44, 0x40, 0x55, 0x4e]);
        let fragment = mostly(0x4000, &[0, 0x8000, 0x2000, 1, 0x1fff, 0x3000]);
        let protocol = mostly(17, &[6, 1, 18]);
        let addr_end = mostly(7, &[8, 0, 255]);
        let mac_end = mostly(7, &[6, 0]);
        let mac_start = mostly(2, &[0, 255]);
        let len =
            usize::from(mostly(60, &[15, 20, 33, 34, 41, 42, 43, 61, 62, 63, 74, 75, 99, 100, 101, 120]));
        let ours = usize::from(mostly(0, &[1, 2, 3]));
        let port = mostly(PORTS[ours], &[0, 2, 256, 4_998, 5_000, 65_534]);
        frame[..6].copy_from_slice(&OURS.mac);
        (frame[0], frame[5]) = (mac_start as u8, mac_end as u8);
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        let port_at = if ethertype == 0x86dd {
            frame[20] = protocol as u8;
            56
        } else {
            frame[14] = first as u8;
            frame[20..22].copy_from_slice(&fragment.to_be_bytes());
            frame[23] = protocol as u8;
            frame[30..34].copy_from_slice(&OURS.addr.octets());
            frame[33] = addr_end as u8;
            14 + usize::from(first & 15) * 4 + 2
        };
        frame[port_at..port_at + 2].copy_from_slice(&port.to_be_bytes());
        frame.truncate(len);
        frame
    }

    /// Goal: the programs judge and count as described. Method: random frames, most of them nearly ours, run through
    /// both kinds of program in the kernel, against the description written down a second time.
    #[test]
    fn programs_judge_as_described() {
        let Some(classifier) = or_say("a program", Classifier::new()) else { return };
        for port in PORTS.into_iter().chain([80]) {
            classifier.set_port(port, true);
        }
        classifier.set_port(80, false);
        let ending = || Ending::Verdicts { ours: 1, pass: 2 };
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let mut seen = [0; REASONS + 2];
        for (kind, len_max) in [(ProgramKind::Xdp, Some(LEN_MAX)), (ProgramKind::TcxIngress, None)] {
            let program = classifier.assemble(kind, OURS, len_max, ending()).unwrap();
            for _ in 0..20_000 {
                let frame = random_frame(&mut random);
                if kind == ProgramKind::TcxIngress && frame.len() < 54 && program.run(&frame).is_err() {
                    // The kernel's test run, not its receive path, refuses skbs shorter than their IP header.
                    continue;
                }
                let before = classifier.passed().words();
                let verdict = program.run(&frame).unwrap();
                let after = classifier.passed().words();
                let counted: Vec<_> =
                    (0..REASONS).filter(|&reason| after[reason] != before[reason]).collect();
                let expected = judge(&frame, len_max.map_or(usize::MAX, usize::from));
                let (wanted_verdict, wanted_counts) = match expected {
                    Verdict::Ours => (1, vec![]),
                    Verdict::Pass(reason) => (2, reason.iter().map(|&reason| reason as usize).collect()),
                };
                assert_eq!(
                    (verdict, &counted),
                    (wanted_verdict, &wanted_counts),
                    "{kind:?} {expected:?} {frame:02x?}"
                );
                seen[counted.first().map_or(REASONS + verdict as usize - 1, |&reason| reason)] += 1;
            }
        }
        assert!(seen.iter().all(|&count| count >= 10), "every outcome occurs: {seen:?}");
    }

    /// Goal: the verifier takes the programs from whoever has the capabilities that ports ask for: it is stricter with
    /// those who lack others. Method: a thread that gave up all but these.
    #[test]
    fn programs_load_with_the_named_capabilities_alone() {
        let loaded = std::thread::spawn(|| {
            privilege::keep_only(privilege::XDP)?;
            let classifier = Classifier::new()?;
            classifier.redirect(OURS, 2_048, &XskMap::new(1)?)?;
            classifier.drop_ours(OURS)
        });
        or_say("a program", loaded.join().unwrap());
    }

    /// Goal: the programs that ports load pass the verifier, and a frame for a queue without a socket is passed.
    #[test]
    fn programs_for_ports_load() {
        let Some(classifier) = or_say("a program", Classifier::new()) else { return };
        classifier.set_port(5_000, true);
        let sockets = XskMap::new(4).unwrap();
        let redirect = classifier.redirect(OURS, 2_048, &sockets).unwrap();
        let drop_ours = classifier.drop_ours(OURS).unwrap();
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&OURS.mac);
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[23] = 17;
        frame[30..34].copy_from_slice(&OURS.addr.octets());
        frame[36..38].copy_from_slice(&5_000_u16.to_be_bytes());
        assert_eq!(redirect.run(&frame).unwrap(), XDP_PASS as u32);
        assert_eq!(drop_ours.run(&frame).unwrap(), TC_ACT_SHOT as u32);
        frame[37] ^= 1;
        assert_eq!(drop_ours.run(&frame).unwrap(), TCX_NEXT as u32);
        assert_eq!(classifier.passed(), Passed::default());
    }
}
