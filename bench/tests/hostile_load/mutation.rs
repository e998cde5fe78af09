//! Trains of datagrams that are almost right.

use linerate_proto::wire::{Flags, Kind, TRAILER_LEN, write_trailer};
use rand::{Rng, RngExt, rngs::StdRng};

/// Longest datagram sent: more than the protocol has, and more than fits an Ethernet frame.
pub(crate) const LEN_MAX: usize = 1_600;

/// Slots that mutated requests use: those of the recorded session.
const SLOTS: u8 = 16;

// Where fields are: PROTOCOL.md, "header".
const SLOT: usize = 2;
const SESSION: usize = 4;
const TOKEN: usize = 8;
const SEQ: usize = 16;
const COUNT: usize = 20;
const BODY: usize = 24;
const OPEN_WINDOW: usize = 48;

/// What is done to all datagrams of a train, so that they are of one length.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// One to three bits, found by the checksum where there is one.
    Flip,
    /// Another length; the checksum made right or not.
    Resize { len: usize, right: bool },
    /// One field, with the checksum made right.
    Field,
}

/// Makes `count` mutations of one datagram and hands them to `send`. `next_seq` is for those who hold the session: most
/// of their requests get a number that is new, so that the rest of them is looked at, and all ask for versions, so that
/// every write is known by its answer.
pub(crate) fn mutate(
    random: &mut StdRng,
    base: &[u8],
    count: usize,
    mut next_seq: Option<&mut u32>,
    mut send: impl FnMut(&[u8]),
) {
    let change = match random.random_range(0..4) {
        0 => Change::Flip,
        1 => Change::Resize { len: random.random_range(1..base.len()), right: random.random() },
        2 => Change::Resize { len: random.random_range(base.len()..=LEN_MAX), right: random.random() },
        _ => Change::Field,
    };
    let mut bytes = Vec::with_capacity(LEN_MAX);
    for _ in 0..count {
        bytes.clear();
        bytes.extend_from_slice(base);
        if let Some(seq) = &mut next_seq
            && random.random_bool(0.75)
        {
            renew(random, &mut bytes, seq);
        }
        match change {
            Change::Flip => {
                for _ in 0..random.random_range(1..=3) {
                    let bit = random.random_range(0..bytes.len() * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            }
            Change::Resize { len, right } => {
                let start = bytes.len();
                bytes.resize(len, 0);
                if len > start && random.random() {
                    random.fill_bytes(&mut bytes[start..]);
                }
                if right {
                    correct(&mut bytes);
                }
            }
            Change::Field => {
                change_field(random, &mut bytes);
                correct(&mut bytes);
            }
        }
        if next_seq.is_some() && bytes.len() > 1 && bytes[1] & Flags::VERSIONS.0 == 0 {
            let had_sum = is_right(&bytes);
            bytes[1] |= Flags::VERSIONS.0;
            if had_sum {
                correct(&mut bytes);
            }
        }
        send(&bytes);
    }
}

/// Gives a request a number that its slot has not seen.
fn renew(random: &mut StdRng, bytes: &mut [u8], next_seq: &mut u32) {
    if bytes[0] != Kind::REQUEST.0 || bytes.len() < BODY {
        return;
    }
    *next_seq += 1;
    bytes[SLOT] = random.random_range(0..SLOTS);
    bytes[SEQ..SEQ + 4].copy_from_slice(&next_seq.to_be_bytes());
    correct(bytes);
}

/// Makes the checksum right where there is one.
fn correct(bytes: &mut [u8]) {
    if has_sum(bytes) {
        write_trailer(bytes);
    }
}

fn has_sum(bytes: &[u8]) -> bool {
    bytes.len() >= 2 + TRAILER_LEN && bytes[1] & Flags::CHECKSUM.0 != 0
}

fn is_right(bytes: &[u8]) -> bool {
    has_sum(bytes) && linerate_proto::wire::check_trailer(bytes).is_ok()
}

/// Sets one field to something that it may not be: the number of a session, its token, slot, number, count, kind, flags,
/// window, or a length or other byte near the start of an operation.
fn change_field(random: &mut StdRng, bytes: &mut [u8]) {
    let any: u32 = random.random();
    let number = match random.random_range(0..4) {
        0 => 0,
        1 => u32::MAX,
        2 => any % 512,
        _ => any,
    };
    let (at, len) = match random.random_range(0..12) {
        // Seldom, because most sessions would end by it.
        0 if random.random_bool(0.2) => (0, 1),
        1 => (1, 1),
        2 => (SLOT, 1),
        3 => (SESSION, 4),
        4 => (TOKEN + 4, 4),
        // Seldom, because a slot whose number is at its end takes no more requests.
        5 if random.random_bool(0.1) => (SEQ, 4),
        6 => (COUNT, 1),
        7 => (OPEN_WINDOW, 2),
        8 => (BODY + random.random_range(0..4), 1),
        9 => (BODY + 2, 2),
        10 => (BODY + random.random_range(0..16), 4),
        _ => (random.random_range(0..bytes.len()), 2),
    };
    let Some(field) = bytes.get_mut(at..at + len) else { return };
    field.copy_from_slice(&number.to_be_bytes()[4 - len..]);
    if at == 0 {
        // The version stays, so that the kind is looked at.
        bytes[0] = Kind::REQUEST.0 & 0xf0 | bytes[0] & 0x0f;
    }
}
