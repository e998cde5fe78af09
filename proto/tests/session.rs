//! The server's session table, from outside: handshake, admission of requests, and the end of sessions.

use std::{net::SocketAddr, time::Duration};

use linerate_proto::{
    DropReason, Instant,
    session::{Control, SessionConfig, SessionTable, Verdict},
    wire::{
        Common, CookieReply, DATAGRAM_LEN_MAX, Flags, Hello, Kind, NoSession, Nonce, OpResult, Open, Opened,
        Ping, Reason, Refused, RequestHeader, TRAILER_LEN, open, seal, write_trailer,
    },
};
use proptest::prelude::*;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const CONFIG: SessionConfig = SessionConfig {
    secret: [7; 16],
    boot_id: 0x0102_0304_0506_0708,
    data_epoch: 9,
    base_port: 4_100,
    cores: 4,
    core: 2,
    epoch: 5,
    memory_len_max: 1 << 20,
    lease: Duration::from_secs(30),
    queue_datagrams: 1_000,
};

const NONCE: Nonce = *b"a client's nonce";

fn client() -> SocketAddr {
    "127.0.0.1:5000".parse().unwrap()
}

const fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

const fn common(kind: Kind) -> Common {
    Common {
        kind,
        flags: Flags::CHECKSUM,
        slot: 0,
        attempt: 0,
        session: zerocopy::network_endian::U32::ZERO,
        token: zerocopy::network_endian::U64::ZERO,
    }
}

fn sealed(message: &(impl IntoBytes + zerocopy::Immutable)) -> Vec<u8> {
    let mut out = [0; DATAGRAM_LEN_MAX];
    let len = seal(message, &mut out);
    out[..len].to_vec()
}

fn hello(nonce: Nonce) -> Vec<u8> {
    sealed(&Hello { common: common(Kind::HELLO), nonce, ..Hello::new_zeroed() })
}

fn ask(nonce: Nonce, cookie: [u8; 16], window: u16, checksum: u8) -> Vec<u8> {
    let window = window.into();
    sealed(&Open { common: common(Kind::OPEN), nonce, cookie, window, checksum, ..Open::new_zeroed() })
}

/// Sends a message, and checks of each answer that it is sealed and not longer than the question.
fn send(
    table: &mut SessionTable,
    now: Instant,
    from: SocketAddr,
    datagram: &[u8],
) -> Result<Option<Vec<u8>>, DropReason> {
    let mut out = [0xee; DATAGRAM_LEN_MAX];
    match table.control(now, datagram, &from, false, &mut out)? {
        Control::Done => Ok(None),
        Control::Answer(len) => {
            assert!(len <= datagram.len(), "an answer of {len} bytes to a question of {}", datagram.len());
            open(&out[..len]).unwrap();
            Ok(Some(out[..len].to_vec()))
        }
    }
}

fn cookie(table: &mut SessionTable, now: Instant, from: SocketAddr, nonce: Nonce) -> [u8; 16] {
    let answer = send(table, now, from, &hello(nonce)).unwrap().unwrap();
    let (reply, _) = CookieReply::ref_from_prefix(&answer).unwrap();
    assert_eq!((reply.common.kind, reply.nonce), (Kind::COOKIE, nonce));
    reply.cookie
}

fn session(table: &mut SessionTable, now: Instant, from: SocketAddr, nonce: Nonce, window: u16) -> Opened {
    let cookie = cookie(table, now, from, nonce);
    let answer = send(table, now, from, &ask(nonce, cookie, window, 0)).unwrap().unwrap();
    let (opened, _) = Opened::read_from_prefix(&answer).unwrap();
    assert_eq!((opened.common.kind, opened.nonce), (Kind::OPENED, nonce));
    opened
}

fn request(opened: &Opened, slot: u8, seq: u32, flags: Flags) -> RequestHeader {
    let common = Common { kind: Kind::REQUEST, flags, slot, ..opened.common };
    RequestHeader { common, seq: seq.into(), count: 1, epoch: 0.into(), spare: 0 }
}

/// A table with one open session of the client.
fn opened(window: u16) -> (SessionTable, Opened) {
    let mut table = SessionTable::new(CONFIG);
    let opened = session(&mut table, at(1), client(), NONCE, window);
    (table, opened)
}

/// Goal: HELLO leaves no trace, OPEN makes a session that says what the server is. Method: both, field by field.
#[test]
fn handshake_opens_a_session() {
    let mut table = SessionTable::new(CONFIG);
    let cookie = cookie(&mut table, at(1), client(), NONCE);
    assert_eq!((table.count(), table.opened(), table.memory_len()), (0, 0, 0));
    let answer = send(&mut table, at(1), client(), &ask(NONCE, cookie, 48, 0)).unwrap().unwrap();
    let (opened, _) = Opened::ref_from_prefix(&answer).unwrap();
    assert_eq!((table.count(), table.opened(), table.refused()), (1, 1, 0));
    assert!(table.memory_len() > 48 * 512);
    assert_eq!((opened.common.session.get(), opened.window.get(), opened.checksum), (0, 48, 0));
    assert_ne!(opened.common.token.get(), 0);
    assert_eq!((opened.boot_id.get(), opened.data_epoch.get()), (CONFIG.boot_id, 9));
    assert_eq!((opened.base_port.get(), opened.cores, opened.core, opened.epoch.get()), (4_100, 4, 2, 5));
    assert_eq!((opened.lease_s.get(), usize::from(opened.datagram_len_max.get())), (30, DATAGRAM_LEN_MAX));
    assert_eq!(opened.credit, table.credit());
}

/// Goal: OPENED may get lost. Method: OPEN again, before and after a request; then the session counts its slots on.
#[test]
fn a_repeated_open_gets_the_same_session() {
    let (mut table, first) = opened(4);
    assert_eq!(
        table.admit(at(1), &request(&first, 0, 1, Flags::NONE), &client(), false),
        Ok(Verdict::Execute)
    );
    table.slot(&request(&first, 0, 1, Flags::NONE)).keep(&OpResult::Done);
    let second = session(&mut table, at(20), client(), NONCE, 4);
    assert_eq!((second.common.session, second.common.token), (first.common.session, first.common.token));
    assert_eq!((table.count(), table.opened()), (1, 1));
    assert_eq!(
        table.admit(at(20), &request(&first, 0, 1, Flags::NONE), &client(), false),
        Ok(Verdict::Replay)
    );
    // The lease runs from the last OPENED, as the client counts it.
    session(&mut table, at(40), client(), NONCE, 4);
    table.expire(at(60));
    assert_eq!(table.count(), 1);
}

/// Goal: a cookie serves only the address, port and nonce it was made for. Method: change each.
#[test]
fn a_cookie_is_bound_to_address_port_and_nonce() {
    let mut table = SessionTable::new(CONFIG);
    let cookie = cookie(&mut table, at(1), client(), NONCE);
    let request = ask(NONCE, cookie, 4, 0);
    for stranger in ["127.0.0.1:5001", "127.0.0.2:5000", "[::1]:5000", "[::ffff:127.0.0.1]:5000"] {
        let outcome = send(&mut table, at(1), stranger.parse().unwrap(), &request);
        assert_eq!(outcome, Err(DropReason::Cookie), "{stranger}");
    }
    let other = ask(*b"another's nonce!", cookie, 4, 0);
    assert_eq!(send(&mut table, at(1), client(), &other), Err(DropReason::Cookie));
    for bit in 0..128 {
        let mut wrong = cookie;
        wrong[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(send(&mut table, at(1), client(), &ask(NONCE, wrong, 4, 0)), Err(DropReason::Cookie));
    }
    assert_eq!(table.count(), 0);
    assert!(send(&mut table, at(1), client(), &request).unwrap().is_some());
}

/// Goal: a cookie serves in its period and the next. Method: one made at the very end of a period.
#[test]
fn a_cookie_grows_old() {
    let mut table = SessionTable::new(CONFIG);
    let cookie = cookie(&mut table, at(59), client(), NONCE);
    assert_eq!(send(&mut table, at(120), client(), &ask(NONCE, cookie, 4, 0)), Err(DropReason::Cookie));
    assert!(send(&mut table, at(119), client(), &ask(NONCE, cookie, 4, 0)).is_ok());
    let mut restarted = SessionTable::new(SessionConfig { secret: [8; 16], ..CONFIG });
    assert_eq!(send(&mut restarted, at(60), client(), &ask(NONCE, cookie, 4, 0)), Err(DropReason::Cookie));
}

/// Goal: who learns of a nonce neither gets its session nor keeps it from its owner. Method: another address uses it,
/// before and after the owner.
#[test]
fn someone_elses_nonce_is_no_use() {
    let mut table = SessionTable::new(CONFIG);
    let thief = "127.0.0.1:6666".parse().unwrap();
    let early = session(&mut table, at(1), thief, NONCE, 4);
    let own = session(&mut table, at(1), client(), NONCE, 4);
    let late = session(&mut table, at(1), thief, NONCE, 4);
    assert_eq!(early.common.token, late.common.token);
    assert_ne!(own.common.session, late.common.session);
    assert_ne!(own.common.token, late.common.token);
    assert_eq!(table.count(), 2);
}

/// Goal: handshakes that are cut short have no effect, with or without a trailer that fits the rest. Method: every length.
#[test]
fn truncated_handshakes_are_refused_at_every_length() {
    let mut table = SessionTable::new(CONFIG);
    let cookie = cookie(&mut table, at(1), client(), NONCE);
    for whole in [hello(NONCE), ask(NONCE, cookie, 4, 0)] {
        for len in 0..whole.len() {
            let expected = if len < 16 { DropReason::Truncated } else { DropReason::Checksum };
            assert_eq!(send(&mut table, at(1), client(), &whole[..len]), Err(expected), "{len} bytes");
            if len >= 20 {
                let mut resealed = whole[..len].to_vec();
                write_trailer(&mut resealed);
                assert_eq!(
                    send(&mut table, at(1), client(), &resealed),
                    Err(DropReason::Truncated),
                    "{len} bytes"
                );
            }
        }
        let mut bare = whole.clone();
        bare[1] = 0;
        assert_eq!(send(&mut table, at(1), client(), &bare), Err(DropReason::Checksum), "no trailer");
        let mut corrupt = whole.clone();
        corrupt[100] ^= 1;
        assert_eq!(send(&mut table, at(1), client(), &corrupt), Err(DropReason::Checksum));
        let mut version = whole;
        version[0] ^= 0x30;
        assert_eq!(send(&mut table, at(1), client(), &version), Err(DropReason::Version));
    }
    assert_eq!(table.count(), 0);
}

/// Goal: the memory cap holds, and what is affordable is granted. Method: open sessions until one is refused, end one,
/// open again.
#[test]
fn the_memory_cap_shrinks_windows_and_then_refuses() {
    let config = SessionConfig { memory_len_max: 100_000, ..CONFIG };
    let mut table = SessionTable::new(config);
    let mut windows = vec![];
    let mut last = None;
    for nonce in 0..1_000u128 {
        let nonce = nonce.to_le_bytes();
        let cookie = cookie(&mut table, at(1), client(), nonce);
        let answer = send(&mut table, at(1), client(), &ask(nonce, cookie, 64, 0)).unwrap().unwrap();
        assert!(table.memory_len() <= config.memory_len_max);
        if answer[0] == Kind::REFUSED.0 {
            let (refused, _) = Refused::ref_from_prefix(&answer).unwrap();
            assert_eq!((refused.nonce, refused.retry_after_ms.get()), (nonce, 1_000));
            break;
        }
        let opened = Opened::read_from_prefix(&answer).unwrap().0;
        windows.push(opened.window.get());
        last = Some(opened);
    }
    assert_eq!((windows[0], windows[1]), (64, 64));
    assert!((1..64).contains(&windows[2]), "{windows:?}");
    assert_eq!((table.refused(), table.count()), (1, windows.len()));
    let close = Ping { common: Common { kind: Kind::CLOSE, ..last.unwrap().common }, echo: 0.into() };
    assert_eq!(send(&mut table, at(2), client(), &sealed(&close)), Ok(None));
    let again = session(&mut table, at(2), client(), NONCE, 64);
    assert_eq!(Some(&again.window.get()), windows.last());
}

/// Goal: a window is granted within 1..=256, and all its slots work. Method: the extremes.
#[test]
fn windows_are_clamped() {
    for (asked, granted) in [(0, 1), (1, 1), (256, 256), (257, 256), (u16::MAX, 256)] {
        let (mut table, opened) = opened(asked);
        assert_eq!(opened.window.get(), granted);
        let last = request(&opened, (granted - 1) as u8, 1, Flags::NONE);
        assert_eq!(table.admit(at(1), &last, &client(), false), Ok(Verdict::Execute));
    }
}

/// Goal: a lease ends a silent session and frees its memory, and any word renews it.
#[test]
fn a_lease_expires_in_silence() {
    let (mut table, opened) = opened(4);
    table.expire(at(31));
    assert_eq!(table.count(), 1);
    assert_eq!(table.attend(at(31), &opened.common, &client(), false), Ok(Flags::NONE));
    table.expire(at(61));
    assert_eq!(table.count(), 1);
    table.expire(at(63));
    assert_eq!((table.count(), table.memory_len()), (0, 0));
    let write = request(&opened, 0, 1, Flags::NONE);
    assert_eq!(table.admit(at(63), &write, &client(), false), Err(DropReason::UnknownSession));
}

/// Goal: CLOSE ends the session of its sender only; index and nonce may be used again, the token never is.
#[test]
fn close_ends_a_session() {
    let (mut table, opened) = opened(4);
    let close = sealed(&Ping { common: Common { kind: Kind::CLOSE, ..opened.common }, echo: 0.into() });
    let stranger = "127.0.0.1:6666".parse().unwrap();
    assert_eq!(send(&mut table, at(1), stranger, &close), Err(DropReason::WrongPeer));
    assert_eq!(send(&mut table, at(1), client(), &close), Ok(None));
    assert_eq!(send(&mut table, at(1), client(), &close), Err(DropReason::UnknownSession));
    assert_eq!((table.count(), table.memory_len()), (0, 0));
    let next = session(&mut table, at(1), client(), NONCE, 4);
    assert_eq!(next.common.session, opened.common.session);
    assert_ne!(next.common.token, opened.common.token);
    let write = request(&opened, 0, 1, Flags::NONE);
    assert_eq!(table.admit(at(1), &write, &client(), false), Err(DropReason::UnknownSession));
    assert_eq!(send(&mut table, at(1), client(), &close), Err(DropReason::UnknownSession));
}

/// Goal: `NO_SESSION` repeats what was asked about, token included, and is no longer than the question.
#[test]
fn no_session_echoes_the_token_to_questions_long_enough() {
    let table = SessionTable::new(CONFIG);
    let asked = Common { session: 77.into(), token: 88.into(), slot: 3, attempt: 4, ..common(Kind::REQUEST) };
    for len in 0..=DATAGRAM_LEN_MAX {
        let mut out = [0; DATAGRAM_LEN_MAX];
        let Some(answer_len) = table.no_session(&asked, len, &mut out) else {
            assert!(len < 28, "{len} bytes deserve an answer");
            continue;
        };
        assert!(answer_len <= len);
        open(&out[..answer_len]).unwrap();
        let (answer, _) = NoSession::ref_from_prefix(&out).unwrap();
        assert_eq!(answer.common, Common { kind: Kind::NO_SESSION, ..asked });
        assert_eq!(answer.boot_id.get(), CONFIG.boot_id);
    }
}

/// Goal: the fate of a write by its number: new, again, late, far ahead, none. Method: send and expect.
#[test]
fn writes_by_sequence_number() {
    let (mut table, opened) = opened(2);
    let results =
        [OpResult::Done, OpResult::NotFound, OpResult::NotExecuted(Reason::NoSpace), OpResult::Done];
    let mut admit = |slot, seq| {
        let header = request(&opened, slot, seq, Flags::NONE);
        let verdict = table.admit(at(1), &header, &client(), false)?;
        if verdict == Verdict::Execute {
            assert_eq!(table.slot(&header).kept().count(), 0, "nothing of the last request is left");
            table.slot(&header).begin(seq.into());
            results.iter().for_each(|result| table.slot(&header).keep(result));
        } else {
            let version = u64::from(seq);
            let versions = [version + 1, version + 1, 0, version + 2];
            assert!(table.slot(&header).kept().eq(results.into_iter().zip(versions)));
        }
        Ok(verdict)
    };
    assert_eq!(admit(0, 0), Err(DropReason::Stale), "numbers start at 1");
    assert_eq!(admit(0, 1), Ok(Verdict::Execute), "new");
    assert_eq!(admit(0, 1), Ok(Verdict::Replay), "again");
    assert_eq!(admit(0, 1), Ok(Verdict::Replay), "and again");
    assert_eq!(admit(0, 5), Ok(Verdict::Execute), "gaps are legal");
    assert_eq!(admit(0, 1), Err(DropReason::Stale), "late");
    assert_eq!(admit(0, 4), Err(DropReason::Stale), "late, though never seen");
    assert_eq!(admit(1, 1), Ok(Verdict::Execute), "slots are independent");
    assert_eq!(admit(2, 1), Err(DropReason::Slot));
    assert_eq!(admit(255, 1), Err(DropReason::Slot));
    assert_eq!(admit(0, u32::MAX), Ok(Verdict::Execute));
    assert_eq!(admit(0, u32::MAX), Ok(Verdict::Replay));
    assert_eq!(admit(0, 0), Err(DropReason::Stale), "numbers do not wrap");
}

/// Goal: a read is executed each time, and a number serves one kind of request only.
#[test]
fn reads_by_sequence_number() {
    let (mut table, opened) = opened(2);
    let mut admit = |seq, flags| table.admit(at(1), &request(&opened, 0, seq, flags), &client(), false);
    assert_eq!(admit(1, Flags::READ_ONLY), Ok(Verdict::Execute));
    assert_eq!(admit(1, Flags::READ_ONLY), Ok(Verdict::Execute));
    assert_eq!(admit(1, Flags::NONE), Err(DropReason::Malformed));
    assert_eq!(admit(2, Flags::NONE), Ok(Verdict::Execute));
    assert_eq!(admit(2, Flags::READ_ONLY), Err(DropReason::Malformed));
    assert_eq!(admit(1, Flags::READ_ONLY), Err(DropReason::Stale));
    assert_eq!(admit(3, Flags::READ_ONLY), Ok(Verdict::Execute));
    assert_eq!(admit(2, Flags::NONE), Err(DropReason::Stale));
}

/// Goal: a write that does not parse may come again in one piece, but no rejection makes an answered number new.
#[test]
fn a_rejected_write_may_come_again() {
    let (mut table, opened) = opened(1);
    let write = |seq| request(&opened, 0, seq, Flags::NONE);
    let read = |seq| request(&opened, 0, seq, Flags::READ_ONLY);
    assert_eq!(table.admit(at(1), &write(3), &client(), false), Ok(Verdict::Execute));
    table.slot(&write(3)).keep(&OpResult::Done);
    assert_eq!(table.admit(at(1), &write(4), &client(), false), Ok(Verdict::Execute));
    table.reject(&write(4));
    assert_eq!(table.admit(at(1), &write(4), &client(), false), Ok(Verdict::Execute));
    table.slot(&write(4)).keep(&OpResult::Done);
    // Broken copies of an answered write, and of reads, change nothing.
    assert_eq!(table.admit(at(1), &write(4), &client(), false), Ok(Verdict::Replay));
    table.reject(&write(4));
    assert_eq!(table.admit(at(1), &write(4), &client(), false), Ok(Verdict::Replay));
    for _ in 0..5 {
        assert_eq!(table.admit(at(1), &read(5), &client(), false), Ok(Verdict::Execute));
        table.reject(&read(5));
    }
    assert_eq!(table.admit(at(1), &write(4), &client(), false), Err(DropReason::Stale));
    assert_eq!(table.admit(at(1), &read(4), &client(), false), Err(DropReason::Stale));
}

/// Goal: a request counts only with its session's index, token and address; over a stream the token is enough.
#[test]
fn requests_of_strangers_are_refused() {
    let (mut table, opened) = opened(2);
    let write = request(&opened, 0, 1, Flags::NONE);
    for stranger in ["127.0.0.1:5001", "127.0.0.2:5000", "[::1]:5000"] {
        let stranger = stranger.parse().unwrap();
        assert_eq!(table.admit(at(1), &write, &stranger, false), Err(DropReason::WrongPeer));
        assert_eq!(table.attend(at(1), &write.common, &stranger, false), Err(DropReason::WrongPeer));
    }
    for (session, token) in
        [(0, opened.common.token.get() ^ 1), (1, opened.common.token.get()), (u32::MAX, 0)]
    {
        let mut wrong = write;
        wrong.common.session = session.into();
        wrong.common.token = token.into();
        assert_eq!(table.admit(at(1), &wrong, &client(), true), Err(DropReason::UnknownSession));
    }
    let stranger = "127.0.0.2:5000".parse().unwrap();
    assert_eq!(table.admit(at(1), &write, &stranger, true), Ok(Verdict::Execute));
}

/// Goal: checksums are off only where both want that and the peer is this machine. Method: each case.
#[test]
fn checksums_are_demanded_by_the_session() {
    for (addr, asked, demanded) in [
        ("127.0.0.1:1", 0, false),
        ("[::1]:1", 0, false),
        ("[::ffff:127.0.0.1]:1", 0, false),
        ("127.0.0.1:1", 1, true),
        ("127.0.0.1:1", 255, true),
        ("192.0.2.1:1", 0, true),
        ("[2001:db8::1]:1", 0, true),
    ] {
        let addr = addr.parse().unwrap();
        let mut table = SessionTable::new(CONFIG);
        let cookie = cookie(&mut table, at(1), addr, NONCE);
        let answer = send(&mut table, at(1), addr, &ask(NONCE, cookie, 2, asked)).unwrap().unwrap();
        let (opened, _) = Opened::ref_from_prefix(&answer).unwrap();
        assert_eq!(opened.checksum, u8::from(demanded), "{addr} asking {asked}");
        let bare = request(opened, 0, 1, Flags::NONE);
        let expected = if demanded { Err(DropReason::Checksum) } else { Ok(Verdict::Execute) };
        assert_eq!(table.admit(at(1), &bare, &addr, false), expected);
        let summed = request(opened, 0, 2, Flags::CHECKSUM);
        assert_eq!(table.admit(at(1), &summed, &addr, false), Ok(Verdict::Execute));
        assert_eq!(table.reply_flags(&summed).contains(Flags::CHECKSUM), demanded);
    }
}

/// Goal: credits of all sessions together stay within three quarters of the receive queue, and nobody gets none.
#[test]
fn credits_share_the_receive_queue() {
    let mut table = SessionTable::new(SessionConfig { queue_datagrams: 100, ..CONFIG });
    let mut credits = vec![];
    for nonce in 0..100u128 {
        session(&mut table, at(1), client(), nonce.to_le_bytes(), 1);
        credits.push(table.credit());
    }
    assert_eq!((credits[0], credits[1], credits[2], credits[74], credits[99]), (75, 37, 25, 1, 1));
}

/// Goal: the table handles its three kinds and no others. Method: every first byte.
#[test]
fn other_kinds_are_not_the_tables_business() {
    let (mut table, _) = opened(2);
    for first in 0..=255 {
        let mut datagram = sealed(&Ping { common: common(Kind(first)), echo: 0.into() });
        datagram.resize(256, 0);
        write_trailer(&mut datagram);
        let outcome = send(&mut table, at(1), client(), &datagram);
        match Kind(first) {
            Kind::HELLO => assert!(outcome.unwrap().is_some()),
            Kind::OPEN => assert_eq!(outcome, Err(DropReason::Cookie)),
            Kind::CLOSE => assert_eq!(outcome, Err(DropReason::UnknownSession)),
            kind if kind.version() == 1 => assert_eq!(outcome, Err(DropReason::Kind)),
            _ => assert_eq!(outcome, Err(DropReason::Version)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: bytes out ≤ bytes in, without a panic, for whatever arrives. Method: valid messages with bytes changed, cut or
    /// lengthened, mostly with a trailer that fits; `send` compares the lengths.
    #[test]
    fn no_answer_is_longer_than_its_question(
        which in 0usize..4,
        mutations in proptest::collection::vec((0usize..64, any::<u8>()), 0..4),
        len in prop_oneof![Just(256usize), 0usize..400],
        resealed in prop::bool::weighted(0.8),
        full: bool,
    ) {
        let memory_len_max = if full { 0 } else { CONFIG.memory_len_max };
        let mut table = SessionTable::new(SessionConfig { memory_len_max, ..CONFIG });
        let cookie = cookie(&mut table, at(1), client(), NONCE);
        let mut datagram = match which {
            0 => hello(NONCE),
            1 => ask(NONCE, cookie, 4, 0),
            2 => sealed(&Ping { common: common(Kind::CLOSE), echo: 0.into() }),
            _ => sealed(&request(&Opened::new_zeroed(), 0, 1, Flags::CHECKSUM)),
        };
        if which < 2 || len != 256 {
            datagram.resize(len, 0);
        }
        for (offset, byte) in mutations {
            if let Some(at) = datagram.get_mut(offset) {
                *at = byte;
            }
        }
        if resealed && datagram.len() >= TRAILER_LEN {
            write_trailer(&mut datagram);
        }
        let _ = send(&mut table, at(1), client(), &datagram);
        if let Ok((common, _)) = open(&datagram) {
            let mut out = [0; DATAGRAM_LEN_MAX];
            let answer_len = table.no_session(common, datagram.len(), &mut out);
            prop_assert!(answer_len.is_none_or(|answer_len| answer_len <= datagram.len()));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (mut table, _) = opened(1);
        let _ = send(&mut table, at(1), client(), &bytes);
        prop_assert_eq!(table.count(), 1);
    }

    /// Goal: a write is executed once, whatever copies arrive in whatever order. Method: random numbers in random slots,
    /// compared with the set of those executed.
    #[test]
    fn no_number_is_executed_twice_as_a_write(
        arrivals in proptest::collection::vec((0u8..3, 0u32..8, any::<bool>(), any::<bool>()), 0..200),
    ) {
        let (mut table, opened) = opened(2);
        let mut executed = std::collections::HashSet::new();
        for (slot, seq, reads, broken) in arrivals {
            let header = request(&opened, slot, seq, Flags::READ_ONLY.when(reads));
            let Ok(verdict) = table.admit(at(1), &header, &client(), false) else { continue };
            if broken {
                table.reject(&header);
            } else if verdict == Verdict::Execute && !reads {
                table.slot(&header).keep(&OpResult::Done);
                prop_assert!(executed.insert((slot, seq)));
            } else if verdict == Verdict::Replay {
                prop_assert!(executed.contains(&(slot, seq)));
            }
        }
    }
}
