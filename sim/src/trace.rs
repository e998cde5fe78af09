//! Datagrams in words, for people who replay a seed.

use linerate_dataplane::sim::NetworkEvent;
use linerate_proto::wire::{Common, Flags, Kind, ReplyHeader, RequestHeader};
use zerocopy::FromBytes;

/// What happened to a datagram, in one line.
pub(crate) fn describe(event: &NetworkEvent) -> String {
    let NetworkEvent { fate, from, to, bytes, .. } = event;
    let fate = format!("{fate:?}").to_lowercase();
    let mut line = format!("{fate:<13} {from} → {to} {} bytes", bytes.len());
    if let Ok((common, _)) = Common::ref_from_prefix(bytes) {
        let (kind, session) = (kind_name(common.kind), common.session.get());
        line += &format!(": {kind}, session {session}, token {:016x}", common.token.get());
        line += &details(common, bytes).unwrap_or_default();
    }
    line
}

/// What a request or reply says of itself.
fn details(common: &Common, bytes: &[u8]) -> Option<String> {
    let Common { kind, flags, slot, attempt, .. } = *common;
    match kind {
        Kind::REQUEST => {
            let (header, _) = RequestHeader::ref_from_prefix(bytes).ok()?;
            let what = if flags.contains(Flags::READ_ONLY) { "reads" } else { "writes" };
            let (seq, count) = (header.seq.get(), header.count);
            Some(format!(", slot {slot}, seq {seq}, attempt {attempt}, {count} {what}"))
        }
        Kind::REPLY => {
            let (header, _) = ReplyHeader::ref_from_prefix(bytes).ok()?;
            let ReplyHeader { first, count, credit, .. } = *header;
            let seq = header.seq.get();
            Some(format!(
                ", slot {slot}, seq {seq}, attempt {attempt}, {count} from {first}, credit {credit}"
            ))
        }
        _ => None,
    }
}

fn kind_name(kind: Kind) -> String {
    let name = match kind {
        Kind::HELLO => "HELLO",
        Kind::COOKIE => "COOKIE",
        Kind::OPEN => "OPEN",
        Kind::OPENED => "OPENED",
        Kind::REFUSED => "REFUSED",
        Kind::REQUEST => "REQUEST",
        Kind::REPLY => "REPLY",
        Kind::NO_SESSION => "NO_SESSION",
        Kind::PING => "PING",
        Kind::PONG => "PONG",
        Kind::STATS => "STATS",
        Kind::STATISTICS => "STATISTICS",
        Kind::CLOSE => "CLOSE",
        Kind::MAP => "MAP",
        Kind::MAP_PAGE => "MAP_PAGE",
        Kind(other) => return format!("kind {other:#04x}"),
    };
    name.to_owned()
}
