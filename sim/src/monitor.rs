//! Promises about datagrams, which no outcome shows when they are broken: watched where they are sent.
//!
//! A monitor accuses nobody wrongly: what it cannot know it takes for kept.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use linerate_dataplane::sim::Tapped;
use linerate_proto::wire::{Common, CookieReply, Kind, Nonce, Opened, ReplyHeader, RequestHeader};
use zerocopy::FromBytes;

/// Watches one server: a session is opened only to an address that was told a cookie for it.
#[derive(Debug, Default)]
pub(crate) struct ProofMonitor {
    told: HashSet<(SocketAddr, Nonce)>,
}

impl ProofMonitor {
    /// Looks at what a core has sent; returns what is wrong with it.
    pub(crate) fn watch(&mut self, tapped: &Tapped) -> Option<String> {
        let Tapped { sent: true, peer, ref bytes } = *tapped else { return None };
        match Kind(*bytes.first()?) {
            Kind::COOKIE => {
                let (cookie, _) = CookieReply::ref_from_prefix(bytes).ok()?;
                self.told.insert((peer, cookie.nonce));
                None
            }
            Kind::OPENED => {
                let (opened, _) = Opened::ref_from_prefix(bytes).ok()?;
                let proven = self.told.contains(&(peer, opened.nonce));
                (!proven).then(|| format!("{peer} got a session without a cookie of its own"))
            }
            _ => None,
        }
    }
}

/// Watches one client: it has no more requests in flight in a session than it was ever credited with there.
///
/// In flight is taken to be what no answer at all has come to. What the client has given up is not known from its
/// datagrams: [`forget`](Self::forget) it then.
#[derive(Debug, Default)]
pub(crate) struct CreditMonitor {
    /// By token.
    sessions: HashMap<u64, Flight>,
}

#[derive(Debug, Default)]
struct Flight {
    credit_max: usize,
    /// By slot, the number of the last request if no answer to it has come.
    unanswered: HashMap<u8, u32>,
}

impl CreditMonitor {
    /// Looks at what has passed the client's port; returns what is wrong with it.
    pub(crate) fn watch(&mut self, tapped: &Tapped) -> Option<String> {
        let Tapped { sent, peer, ref bytes } = *tapped;
        let (common, _) = Common::ref_from_prefix(bytes).ok()?;
        let token = common.token.get();
        if (common.kind, sent) == (Kind::OPENED, false) {
            let (opened, _) = Opened::ref_from_prefix(bytes).ok()?;
            let flight = self.sessions.entry(token).or_default();
            flight.credit_max = flight.credit_max.max(opened.credit.into());
            return None;
        }
        // Of a session whose beginning was not understood here, nothing is known.
        let flight = self.sessions.get_mut(&token)?;
        match (common.kind, sent) {
            (Kind::REPLY, false) => {
                let (reply, _) = ReplyHeader::ref_from_prefix(bytes).ok()?;
                flight.credit_max = flight.credit_max.max(reply.credit.into());
                if flight.unanswered.get(&common.slot) == Some(&reply.seq.get()) {
                    flight.unanswered.remove(&common.slot);
                }
                None
            }
            (Kind::REQUEST, true) => {
                let (request, _) = RequestHeader::ref_from_prefix(bytes).ok()?;
                flight.unanswered.insert(common.slot, request.seq.get());
                let (in_flight, credit) = (flight.unanswered.len(), flight.credit_max.max(1));
                (in_flight > credit).then(|| {
                    format!("{in_flight} requests in flight to {peer}, which gave credit for {credit}")
                })
            }
            _ => None,
        }
    }

    /// The client may have given up anything.
    pub(crate) fn forget(&mut self) {
        self.sessions.values_mut().for_each(|flight| flight.unanswered.clear());
    }
}

#[cfg(test)]
mod tests {
    use linerate_proto::wire::{Flags, seal};
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    fn addr(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    fn tapped(sent: bool, peer: u16, message: &(impl IntoBytes + zerocopy::Immutable)) -> Tapped {
        let mut bytes = [0; 1_472];
        let len = seal(message, &mut bytes);
        Tapped { sent, peer: addr(peer), bytes: bytes[..len].into() }
    }

    fn common(kind: Kind, slot: u8, token: u64) -> Common {
        Common { kind, flags: Flags::CHECKSUM, slot, attempt: 0, session: 1.into(), token: token.into() }
    }

    #[test]
    fn sessions_without_a_cookie_are_noticed() {
        let mut monitor = ProofMonitor::default();
        let common = |kind| common(kind, 0, 0);
        let cookie =
            CookieReply { common: common(Kind::COOKIE), nonce: [1; 16], ..CookieReply::new_zeroed() };
        let opened = Opened { common: common(Kind::OPENED), nonce: [1; 16], ..Opened::new_zeroed() };
        let other = Opened { nonce: [2; 16], ..opened };
        assert_eq!(monitor.watch(&tapped(true, 1, &cookie)), None);
        assert_eq!(monitor.watch(&tapped(true, 1, &opened)), None);
        assert!(monitor.watch(&tapped(true, 2, &opened)).is_some(), "another address");
        assert!(monitor.watch(&tapped(true, 1, &other)).is_some(), "another handshake");
        assert_eq!(monitor.watch(&tapped(false, 2, &opened)), None, "not sent by the server");
    }

    #[test]
    fn more_in_flight_than_credited_is_noticed() {
        let mut monitor = CreditMonitor::default();
        let opened =
            |token| Opened { common: common(Kind::OPENED, 0, token), credit: 2, ..Opened::new_zeroed() };
        let request = |slot, seq: u32| RequestHeader {
            common: common(Kind::REQUEST, slot, 7),
            seq: seq.into(),
            ..RequestHeader::new_zeroed()
        };
        let reply = |slot, seq: u32, credit| ReplyHeader {
            common: common(Kind::REPLY, slot, 7),
            seq: seq.into(),
            credit,
            ..ReplyHeader::new_zeroed()
        };
        let mut sends = |slot, seq| monitor.watch(&tapped(true, 1, &request(slot, seq))).is_some();
        assert!((0..9).all(|slot| !sends(slot, 1)), "a session that is not known");
        monitor.watch(&tapped(false, 1, &opened(7)));
        let mut sends = |slot, seq| monitor.watch(&tapped(true, 1, &request(slot, seq))).is_some();
        assert_eq!([sends(0, 1), sends(1, 1), sends(1, 1), sends(2, 1)], [false, false, false, true]);
        monitor.watch(&tapped(false, 1, &reply(0, 1, 2)));
        monitor.watch(&tapped(false, 1, &reply(1, 9, 2)));
        let mut sends = |slot, seq| monitor.watch(&tapped(true, 1, &request(slot, seq))).is_some();
        assert_eq!([sends(2, 1), sends(0, 2)], [false, true], "one was answered, and one was not");
        monitor.watch(&tapped(false, 1, &reply(0, 2, 3)));
        let mut sends = |slot, seq| monitor.watch(&tapped(true, 1, &request(slot, seq))).is_some();
        assert_eq!([sends(0, 3), sends(3, 1)], [false, true], "more credit");
        monitor.forget();
        let mut sends = |slot, seq| monitor.watch(&tapped(true, 1, &request(slot, seq))).is_some();
        assert_eq!([sends(4, 1), sends(5, 1), sends(6, 1), sends(7, 1)], [false, false, false, true]);
        monitor.watch(&tapped(false, 1, &opened(8)));
        let of_next = |slot| RequestHeader { common: common(Kind::REQUEST, slot, 8), ..request(slot, 1) };
        let mut sends = |slot| monitor.watch(&tapped(true, 1, &of_next(slot))).is_some();
        assert_eq!([sends(0), sends(1), sends(2)], [false, false, true], "each session counts for itself");
    }
}
