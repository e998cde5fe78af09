//! Datagrams that no node of the simulation sends by itself.

use linerate_dataplane::sim::mix;
use linerate_proto::wire::{
    Common, DATAGRAM_LEN_MAX, Flags, Hello, Kind, Ping, REQUEST_LEN_MIN, VERSION, seal, write_trailer,
};
use rand::{Rng, RngExt, rngs::Xoshiro256PlusPlus};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// The goodbye of the session that a datagram of its client names, or `None` when it names none.
///
/// A session that is dropped says this itself, but with the time of a real clock in it.
pub(crate) fn farewell(datagram: &[u8]) -> Option<Vec<u8>> {
    let (common, _) = Common::ref_from_prefix(datagram).ok()?;
    if !matches!(common.kind, Kind::REQUEST | Kind::PING) {
        return None;
    }
    let checksum = common.flags.contains(Flags::CHECKSUM);
    let common =
        Common { kind: Kind::CLOSE, flags: Flags::CHECKSUM.when(checksum), slot: 0, attempt: 0, ..*common };
    let message = Ping { common, echo: 0.into() };
    let mut bytes = vec![0; REQUEST_LEN_MIN];
    bytes[..size_of::<Ping>()].copy_from_slice(message.as_bytes());
    if checksum {
        write_trailer(&mut bytes);
    }
    Some(bytes)
}

/// Bytes without meaning: noise, a message of some kind with noise in it, or a greeting by nobody.
pub(crate) fn garbage(random: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(0..=DATAGRAM_LEN_MAX)];
    random.fill_bytes(&mut bytes);
    match random.random_range(0..4) {
        0 => bytes,
        1 => {
            let hello = Hello { common: Common::new_zeroed(), nonce: random.random(), ..Hello::new_zeroed() };
            let common = Common { kind: Kind::HELLO, flags: Flags::CHECKSUM, ..hello.common };
            let mut bytes = vec![0; DATAGRAM_LEN_MAX];
            let len = seal(&Hello { common, ..hello }, &mut bytes);
            bytes.truncate(len);
            bytes
        }
        // A plausible head, and now and then a right checksum.
        _ => {
            bytes.resize(bytes.len().max(REQUEST_LEN_MIN), 0);
            let checksum = random.random_bool(0.5);
            bytes[0] = VERSION << 4 | random.random_range(0..16);
            bytes[1] = Flags::CHECKSUM.when(checksum).0 | (mix(0, random.random()) as u8 & !1);
            bytes[4..8].copy_from_slice(&random.random_range(0..8u32).to_be_bytes());
            if checksum {
                write_trailer(&mut bytes);
            }
            bytes
        }
    }
}
