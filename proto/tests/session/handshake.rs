//! HELLO, OPEN and CLOSE: who gets a session, who does not, and whose older one ends.

use linerate_proto::{
    DropReason,
    session::{SessionConfig, SessionTable, Verdict},
    wire::{
        Common, DATAGRAM_LEN_MAX, DATAGRAM_LEN_MIN, DATAGRAM_LENS, Flags, Kind, NoSession, OpResult, Opened,
        Ping, RefusalReason, TRAILER_LEN, client_id, nonce_of, open, write_trailer,
    },
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use zerocopy::{FromBytes, FromZeros};

use crate::{
    CONFIG, NONCE, addr, admit, ask, ask_long, at, at_ms, client, close, common, cookie, hello, opened,
    request, sealed, send, send_over, session, try_session,
};

/// Goal: HELLO leaves no trace, OPEN makes a session that says what the server is. Method: both, field by field.
#[test]
fn handshake_opens_a_session() {
    let mut table = SessionTable::new(CONFIG);
    let cookie = cookie(&mut table, at(1), client(), NONCE);
    assert_eq!((table.count(), table.opened(), table.memory_len()), (0, 0, 0));
    let answer = send(&mut table, at(1), client(), &ask(NONCE, cookie, 48, 0)).unwrap().unwrap();
    let (opened, _) = Opened::ref_from_prefix(&answer).unwrap();
    assert_eq!((table.count(), table.opened(), table.refused()), (1, 1, 0));
    assert!((48 * 260..20_000).contains(&table.memory_len()), "{}", table.memory_len());
    assert_eq!((opened.common.session.get(), opened.window.get(), opened.checksum), (0, 48, 0));
    assert_ne!(opened.common.token.get(), 0);
    assert_eq!((opened.boot_id.get(), opened.data_epoch.get()), (CONFIG.boot_id, 9));
    assert_eq!((opened.base_port.get(), opened.cores, opened.core, opened.epoch.get()), (4_100, 4, 2, 5));
    assert_eq!((opened.lease_s.get(), usize::from(opened.datagram_len_max.get())), (30, DATAGRAM_LEN_MAX));
    assert_eq!((opened.credit, table.granted()), (2, 2));
}

/// Goal: OPENED may get lost. Method: OPEN again, before and after a request; then the session counts its slots on.
#[test]
fn a_repeated_open_gets_the_same_session() {
    let (mut table, first) = opened(4);
    assert_eq!(
        admit(&mut table, at(1), &request(&first, 0, 1, Flags::NONE), client(), false),
        Ok(Verdict::Execute)
    );
    table.slot(&request(&first, 0, 1, Flags::NONE)).keep(&OpResult::Done);
    let second = session(&mut table, at(20), client(), NONCE, 4);
    assert_eq!((second.common.session, second.common.token), (first.common.session, first.common.token));
    assert_eq!((table.count(), table.opened()), (1, 1));
    assert_eq!(
        admit(&mut table, at(20), &request(&first, 0, 1, Flags::NONE), client(), false),
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
    assert!(send(&mut table, at(119), client(), &ask(NONCE, cookie, 4, 0)).is_ok());
    assert_eq!(send(&mut table, at(120), client(), &ask(NONCE, cookie, 4, 0)), Err(DropReason::Cookie));
    let mut restarted = SessionTable::new(SessionConfig { secret: [8; 16], ..CONFIG });
    assert_eq!(send(&mut restarted, at(60), client(), &ask(NONCE, cookie, 4, 0)), Err(DropReason::Cookie));
}

/// Goal: who learns of a nonce neither gets its session nor ends it. Method: another address uses it, before and after the
/// owner, and with later generations.
#[test]
fn someone_elses_nonce_is_no_use() {
    let mut table = SessionTable::new(CONFIG);
    let thief = addr("127.0.0.2:5000");
    let early = session(&mut table, at(1), thief, NONCE, 4);
    let own = session(&mut table, at(1), client(), NONCE, 4);
    let late = session(&mut table, at(1), thief, NONCE, 4);
    assert_eq!(early.common.token, late.common.token);
    assert_ne!(own.common.session, late.common.session);
    assert_ne!(own.common.token, late.common.token);
    session(&mut table, at(1), thief, nonce_of(client_id(&NONCE), u64::MAX), 4);
    assert_eq!((table.count(), table.fenced()), (2, 1), "the thief has fenced itself");
    assert!(table.attend(at(1), &own.common, &client(), false).is_ok());
}

/// Goal: handshakes that are cut short have no effect, with or without a trailer that fits the rest. Method: every length.
#[test]
fn truncated_handshakes_are_refused_at_every_length() {
    let mut table = SessionTable::new(CONFIG);
    let cookie = cookie(&mut table, at(1), client(), NONCE);
    for (whole, stream) in [
        (hello(NONCE), false),
        (ask_long(NONCE, cookie, 4, 0, 576), false),
        (ask_long(NONCE, cookie, 4, 0, 256), true),
    ] {
        let mut send = |datagram: &[u8]| send_over(&mut table, at(1), client(), stream, datagram);
        for len in 0..whole.len() {
            let expected = if len < 16 { DropReason::Truncated } else { DropReason::Checksum };
            assert_eq!(send(&whole[..len]), Err(expected), "{len} bytes");
            if len >= 20 {
                let mut resealed = whole[..len].to_vec();
                write_trailer(&mut resealed);
                assert_eq!(send(&resealed), Err(DropReason::Truncated), "{len} bytes");
            }
        }
        let mut bare = whole.clone();
        bare[1] = 0;
        assert_eq!(send(&bare), Err(DropReason::Checksum), "no trailer");
        let mut corrupt = whole.clone();
        corrupt[100] ^= 1;
        assert_eq!(send(&corrupt), Err(DropReason::Checksum));
        let mut version = whole;
        version[0] ^= 0x30;
        assert_eq!(send(&version), Err(DropReason::Version));
    }
    assert_eq!(table.count(), 0);
}

/// Goal: the memory cap holds, and what is affordable is granted. Method: open sessions until one is refused, end one,
/// open again.
#[test]
fn the_memory_cap_shrinks_windows_and_then_refuses() {
    let config = SessionConfig { memory_len_max: 50_000, ..CONFIG };
    let mut table = SessionTable::new(config);
    let mut granted = vec![];
    for number in 0.. {
        let answer = try_session(&mut table, at(1), client(), false, nonce_of(number, 1), 64);
        assert!(table.memory_len() <= config.memory_len_max);
        match answer {
            Ok(opened) => granted.push(opened),
            Err(refused) => {
                assert_eq!(
                    (refused.reason, refused.retry_after_ms.get()),
                    (RefusalReason::SESSIONS_FULL, 1_000)
                );
                break;
            }
        }
    }
    let windows: Vec<_> = granted.iter().map(|opened| opened.window.get()).collect();
    assert_eq!((windows[0], windows[1]), (64, 64));
    assert!((1..64).contains(&windows[2]), "{windows:?}");
    assert_eq!((table.refused(), table.count()), (1, windows.len()));
    assert_eq!(send(&mut table, at(2), client(), &close(granted.last().unwrap())), Ok(None));
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
        assert_eq!(admit(&mut table, at(1), &last, client(), false), Ok(Verdict::Execute));
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
    assert_eq!(admit(&mut table, at(63), &write, client(), false), Err(DropReason::UnknownSession));
}

/// Goal: CLOSE ends the session of its sender only; index and nonce may be used again, the token never is.
#[test]
fn close_ends_a_session() {
    let (mut table, opened) = opened(4);
    let close = close(&opened);
    let stranger = "127.0.0.1:6666".parse().unwrap();
    assert_eq!(send(&mut table, at(1), stranger, &close), Err(DropReason::WrongPeer));
    assert_eq!(send(&mut table, at(1), client(), &close), Ok(None));
    assert_eq!(send(&mut table, at(1), client(), &close), Err(DropReason::UnknownSession));
    assert_eq!((table.count(), table.memory_len()), (0, 0));
    let next = session(&mut table, at(1), client(), NONCE, 4);
    assert_eq!(next.common.session, opened.common.session);
    assert_ne!(next.common.token, opened.common.token);
    let write = request(&opened, 0, 1, Flags::NONE);
    assert_eq!(admit(&mut table, at(1), &write, client(), false), Err(DropReason::UnknownSession));
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
            assert!(len < 36, "{len} bytes deserve an answer");
            continue;
        };
        assert!(answer_len <= len);
        open(&out[..answer_len]).unwrap();
        let (answer, _) = NoSession::ref_from_prefix(&out).unwrap();
        assert_eq!(answer.common, Common { kind: Kind::NO_SESSION, ..asked });
        assert_eq!((answer.boot_id.get(), answer.data_epoch.get()), (CONFIG.boot_id, CONFIG.data_epoch));
    }
}

/// Goal: the table handles its three kinds and no others. Method: every first byte.
#[test]
fn other_kinds_are_not_the_tables_business() {
    let (mut table, _) = opened(2);
    for first in 0..=255 {
        let mut datagram = sealed(&Ping { common: common(Kind(first)), echo: 0.into() });
        datagram.resize(DATAGRAM_LEN_MIN, 0);
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

/// Goal: what an OPEN does beside the session that its client has. Method: each case in turn, the late ones too.
#[test]
fn a_newer_session_ends_the_older_one_and_never_the_other_way() {
    let mut table = SessionTable::new(CONFIG);
    let nonce = |generation| nonce_of(7, generation);
    let first = session(&mut table, at(1), client(), nonce(5), 4);
    let write = request(&first, 0, 1, Flags::NONE);
    assert_eq!(admit(&mut table, at(1), &write, client(), false), Ok(Verdict::Execute));

    // Newer, from another port.
    let second = session(&mut table, at(2), addr("127.0.0.1:5001"), nonce(6), 4);
    assert_eq!((table.count(), table.fenced(), table.opened()), (1, 1, 2));
    assert_eq!(second.common.session, first.common.session, "the place is used again");
    assert_ne!(second.common.token, first.common.token);
    let late = admit(&mut table, at(2), &write, client(), false);
    assert_eq!(late, Err(DropReason::UnknownSession), "what the older one has left on the way has no effect");

    // Older, and the same generation from another port once it was used.
    let used = request(&second, 0, 1, Flags::NONE);
    admit(&mut table, at(2), &used, addr("127.0.0.1:5001"), false).unwrap();
    for (from, generation) in
        [("127.0.0.1:5000", 5), ("127.0.0.1:5001", 5), ("127.0.0.1:5000", 6), ("127.0.0.1:9", 0)]
    {
        let refused = try_session(&mut table, at(4), addr(from), false, nonce(generation), 4).unwrap_err();
        assert_eq!((refused.reason, refused.retry_after_ms.get()), (RefusalReason::FENCED, 28_000), "{from}");
    }
    assert!(table.attend(at(4), &second.common, &addr("127.0.0.1:5001"), false).is_ok());
    assert_eq!((table.count(), table.fenced(), table.refused()), (1, 1, 4));

    // The same generation from another port before it was used: the client reconnected amid its handshake.
    let third = session(&mut table, at(5), client(), nonce(7), 4);
    let fourth = session(&mut table, at(5), addr("127.0.0.1:5002"), nonce(7), 4);
    assert_eq!((table.count(), table.fenced()), (1, 3));
    assert!(table.attend(at(5), &third.common, &client(), false).is_err());
    assert!(table.attend(at(5), &fourth.common, &addr("127.0.0.1:5002"), false).is_ok());

    // Another id, and another address, are other clients.
    session(&mut table, at(5), client(), nonce_of(8, 99), 4);
    session(&mut table, at(5), addr("127.0.0.2:5000"), nonce(99), 4);
    assert_eq!((table.count(), table.fenced()), (3, 3));
    // An IPv4 address is the same one when it comes as an IPv6 one.
    session(&mut table, at(5), addr("[::ffff:127.0.0.1]:5000"), nonce(8), 4);
    assert_eq!((table.count(), table.fenced()), (3, 4));
    // After the newer one has ended by itself an older OPEN opens a session: there is nothing that it could harm.
    table.expire(at(40));
    assert_eq!(table.count(), 0);
    session(&mut table, at(40), client(), nonce(1), 4);
    assert_eq!(table.count(), 1);
}

/// Goal: whatever OPENs come in whatever order, an older one never ends a newer session, and memory and credits are
/// those of the sessions that are left. Method: random opens, requests, closes and silences, against a model of one
/// entry per client.
#[test]
fn fencing_in_any_order() {
    for seed in 0..200 {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut table = SessionTable::new(CONFIG);
        let mut held: std::collections::HashMap<(u8, u64), (u64, std::net::SocketAddr, bool, Opened)> =
            std::collections::HashMap::new();
        let mut fenced = 0;
        for step in 0..200 {
            let now = at_ms(1_000 + 20 * step);
            let (ip, port, id) = (rng.random_range(1..3), rng.random_range(1..4), rng.random_range(0..3));
            let from = addr(&format!("127.0.0.{ip}:{port}"));
            if rng.random_bool(0.3) {
                if let Some((_, owner, used, opened)) = held.get_mut(&(ip, id)) {
                    *used = true;
                    let header = request(opened, 0, step as u32 + 1, Flags::NONE);
                    assert_eq!(admit(&mut table, now, &header, *owner, false), Ok(Verdict::Execute));
                }
                continue;
            }
            if rng.random_bool(0.1) {
                if let Some((_, owner, _, opened)) = held.remove(&(ip, id)) {
                    assert_eq!(send(&mut table, now, owner, &close(&opened)), Ok(None));
                }
                continue;
            }
            let generation = rng.random_range(0..6);
            let answer = try_session(&mut table, now, from, false, nonce_of(id, generation), 4);
            match held.get(&(ip, id)) {
                Some(&(known, owner, used, _))
                    if generation < known || (generation == known && owner != from && used) =>
                {
                    assert_eq!(answer.unwrap_err().reason, RefusalReason::FENCED);
                }
                Some(&(known, owner, _, opened)) if generation == known && owner == from => {
                    assert_eq!(answer.unwrap().common.token, opened.common.token);
                }
                older => {
                    fenced += u64::from(older.is_some());
                    held.insert((ip, id), (generation, from, false, answer.unwrap()));
                }
            }
            assert_eq!((table.count(), table.fenced()), (held.len(), fenced));
            for (_, owner, _, opened) in held.values() {
                let mut out = [0; DATAGRAM_LEN_MAX];
                assert!(table.no_session(&opened.common, 100, &mut out).is_some());
                let header = request(opened, 3, 1, Flags::READ_ONLY);
                assert_eq!(table.admit(now, &header, 100, owner, false), Ok(Verdict::Execute));
            }
            held.values_mut().for_each(|held| held.2 = true);
        }
        held.values().for_each(|(_, owner, _, opened)| {
            send(&mut table, at(6), *owner, &close(opened)).unwrap();
        });
        assert_eq!((table.count(), table.memory_len(), table.granted()), (0, 0, 0));
    }
}

/// Goal: sessions of which each could have one datagram in flight fill three quarters of the queue at most; streams do
/// not count. Method: open as many as there are.
#[test]
fn the_queue_limits_the_sessions() {
    let mut table = SessionTable::new(SessionConfig { queue_datagrams: 40, ..CONFIG });
    let mut refused = None;
    let mut count = 0;
    for number in 0..40 {
        match try_session(&mut table, at(1), client(), false, nonce_of(number, 1), 4) {
            Ok(_) => count += 1,
            Err(refusal) => {
                refused.get_or_insert((number, refusal));
            }
        }
        assert!(table.granted() <= 30);
    }
    // The first ones were given two; once they are silent there is room for others.
    let (number, refusal) = refused.unwrap();
    assert_eq!((refusal.reason, refusal.retry_after_ms.get()), (RefusalReason::QUEUE_FULL, 200));
    assert!((15..30).contains(&number), "{number} sessions");
    table.expire(at(2));
    assert_eq!(table.granted(), count);
    for number in 40.. {
        let now = at(2 + number / 8);
        table.expire(now);
        if let Err(refusal) = try_session(&mut table, now, client(), false, nonce_of(number, 1), 4)
            && refusal.retry_after_ms.get() != 200
        {
            assert_eq!((refusal.reason, refusal.retry_after_ms.get()), (RefusalReason::QUEUE_FULL, 1_000));
            break;
        }
    }
    table.expire(at(20));
    assert_eq!((table.count(), table.granted()), (30, 30));
    let opened = try_session(&mut table, at(20), client(), true, nonce_of(1_000, 1), 4).unwrap();
    assert_eq!((opened.credit, table.granted()), (255, 30));
}

/// Goal: one source gets half of the queue's sessions and of the memory, always one session, and loopback is no source.
#[test]
fn one_source_cannot_have_all() {
    let count = |config: SessionConfig, window: u16, from: &dyn Fn(u64) -> String| {
        let mut table = SessionTable::new(config);
        for number in 0.. {
            // Slowly, so that neither budgets nor credits of new sessions matter.
            let now = at_ms(1_000 + 10 * number);
            table.expire(now);
            match try_session(&mut table, now, addr(&from(number)), false, nonce_of(number, 1), window) {
                Ok(_) => (),
                Err(refusal) if refusal.retry_after_ms.get() == 200 => (),
                Err(refusal) => return (table.count(), refusal.reason, table),
            }
        }
        unreachable!("there is no end to sessions");
    };
    let queue = SessionConfig { queue_datagrams: 80, ..CONFIG };
    let (sessions, reason, mut table) = count(queue, 1, &|_| "192.0.2.1:5000".into());
    assert_eq!((sessions, reason), (30, RefusalReason::SOURCE_FULL));
    assert!(
        try_session(&mut table, at(3), addr("192.0.2.2:5000"), false, NONCE, 1).is_ok(),
        "others find room"
    );
    let (sessions, reason, _) = count(queue, 1, &|number| format!("[2001:db8::{number:x}]:5000"));
    assert_eq!((sessions, reason), (30, RefusalReason::SOURCE_FULL), "one /64 is one source");
    let (sessions, reason, _) = count(queue, 1, &|_| "127.0.0.1:5000".into());
    assert_eq!((sessions, reason), (60, RefusalReason::QUEUE_FULL));

    let memory = SessionConfig { memory_len_max: 100_000, ..CONFIG };
    let (_, reason, table) = count(memory, 8, &|_| "192.0.2.1:5000".into());
    assert_eq!(reason, RefusalReason::SOURCE_FULL);
    assert!((45_000..=50_000).contains(&table.memory_len()), "{}", table.memory_len());

    let tiny = SessionConfig { queue_datagrams: 2, memory_len_max: 1_500, ..CONFIG };
    let mut table = SessionTable::new(tiny);
    let opened = session(&mut table, at(1), addr("192.0.2.1:5000"), NONCE, 1);
    assert_eq!((opened.window.get(), opened.credit), (1, 1), "one session is always granted");
}

/// Goal: HELLO and OPEN are answered so many times a second of one source, whatever way they come. Method: as many as
/// possible at once, then the next millisecond, and other sources meanwhile.
#[test]
fn handshakes_have_a_budget_per_source() {
    let mut table = SessionTable::new(CONFIG);
    let stranger = addr("192.0.2.1:5000");
    let mut answered = |now, from, stream, datagram: &[u8]| {
        let outcomes: Vec<_> = (0..600).map(|_| send_over(&mut table, now, from, stream, datagram)).collect();
        let dropped = outcomes.iter().filter(|&outcome| *outcome == Err(DropReason::Budget)).count();
        assert!(outcomes[outcomes.len() - dropped..].iter().all(|outcome| outcome.is_err()), "at the end");
        outcomes.len() - dropped
    };
    let (hello, forged) = (hello(NONCE), ask(NONCE, [0; 16], 4, 0));
    assert_eq!(answered(at_ms(5_000), client(), false, &hello), 512);
    assert_eq!(answered(at_ms(5_000), client(), true, &hello), 0, "streams count too");
    assert_eq!(answered(at_ms(5_000), addr("127.0.0.1:9"), false, &hello), 0, "ports are not sources");
    assert_eq!(answered(at_ms(5_000), client(), false, &forged), 512, "opens count apart");
    assert_eq!(answered(at_ms(5_000), stranger, false, &hello), 512, "others have their own");
    assert_eq!(answered(at_ms(5_003), client(), false, &hello), 3, "one a millisecond");
    let all: usize = (0..50)
        .map(|host| answered(at_ms(5_004), addr(&format!("198.51.100.{host}:1")), false, &hello))
        .sum();
    // Of all: 2,048, less 512 + 512 + 3, and 5 a millisecond back, as far as they had been used.
    assert_eq!(all, 2_048 - 512 - 512 - 3 + 20);
}

/// Goal: an OPEN proves its own length for both directions, and a stream always carries the longest. Method: each
/// length that there is, and those beside.
#[test]
fn an_open_probes_the_path() {
    for (len, stream, proven) in [
        (576, false, 576),
        (1_000, false, 1_000),
        (DATAGRAM_LENS[3], false, 1_232),
        (DATAGRAM_LENS[2], false, 1_392),
        (DATAGRAM_LENS[1], false, 1_452),
        (DATAGRAM_LENS[0], false, 1_472),
        (1_473, false, 1_472),
        (9_000, false, 1_472),
        (256, true, 1_472),
        (1_472, true, 1_472),
    ] {
        let mut table = SessionTable::new(CONFIG);
        let cookie = cookie(&mut table, at(1), client(), NONCE);
        let ask = ask_long(NONCE, cookie, 4, 0, len);
        let answer = send_over(&mut table, at(1), client(), stream, &ask).unwrap().unwrap();
        let (opened, padding) = Opened::read_from_prefix(&answer).unwrap();
        assert_eq!((answer.len(), opened.datagram_len_max.get()), (len.min(1_472), proven), "{len}");
        assert!(padding[..padding.len() - TRAILER_LEN].iter().all(|&byte| byte == 0));
        let header = request(&opened, 0, 1, Flags::NONE);
        let proven = usize::from(proven);
        let too_long = table.admit(at(1), &header, proven + 1, &client(), stream);
        assert_eq!(too_long, Err(DropReason::Oversized));
        assert_eq!(table.admit(at(1), &header, proven, &client(), stream), Ok(Verdict::Execute));
        assert_eq!(table.reply_terms(&header, 1).datagram_len, proven);
    }
    let mut table = SessionTable::new(CONFIG);
    let cookie = cookie(&mut table, at(1), client(), NONCE);
    let short = ask_long(NONCE, cookie, 4, 0, 575);
    assert_eq!(send(&mut table, at(1), client(), &short), Err(DropReason::Truncated));
}

/// Goal: whichever OPENED the client has got, requests of its length are taken and replies fit it. Method: opens of three
/// lengths in any order.
#[test]
fn repeated_opens_of_other_lengths_do_no_harm() {
    for lens in [[1_472, 1_452, 1_232], [1_232, 1_472, 1_452], [1_452, 1_232, 1_472]] {
        let mut table = SessionTable::new(CONFIG);
        let cookie = cookie(&mut table, at(1), client(), NONCE);
        let mut last = None;
        for len in lens {
            let answer =
                send(&mut table, at(1), client(), &ask_long(NONCE, cookie, 4, 0, len)).unwrap().unwrap();
            let (opened, _) = Opened::read_from_prefix(&answer).unwrap();
            assert_eq!(usize::from(opened.datagram_len_max.get()), len);
            last = Some(opened);
        }
        let header = request(&last.unwrap(), 0, 1, Flags::NONE);
        assert_eq!(table.admit(at(1), &header, 1_472, &client(), false), Ok(Verdict::Execute));
        assert_eq!(table.reply_terms(&header, 1).datagram_len, 1_232);
        assert_eq!(table.count(), 1);
    }
}

/// Goal: a session opened over a stream is not within the reach of datagrams.
#[test]
fn datagrams_do_not_reach_the_sessions_of_streams() {
    let mut table = SessionTable::new(CONFIG);
    let opened = try_session(&mut table, at(1), client(), true, NONCE, 4).unwrap();
    let write = request(&opened, 0, 1, Flags::NONE);
    assert_eq!(admit(&mut table, at(1), &write, client(), false), Err(DropReason::WrongPeer));
    assert_eq!(admit(&mut table, at(1), &write, addr("127.0.0.1:9"), true), Ok(Verdict::Execute));
}

/// Goal: no token comes twice, within a run and across runs. Method: many sessions on one place, in two runs and two
/// cores.
#[test]
fn tokens_are_never_given_out_twice() {
    let mut tokens = std::collections::HashSet::new();
    let runs = [CONFIG, SessionConfig { secret: [8; 16], ..CONFIG }, SessionConfig { boot_id: 7, ..CONFIG }];
    for config in [runs[0], runs[1], runs[2], SessionConfig { core: 3, ..CONFIG }] {
        let mut table = SessionTable::new(config);
        for generation in 0..2_000 {
            let now = at_ms(1_000 + 2 * generation);
            let opened = session(&mut table, now, client(), nonce_of(1, generation), 1);
            assert_eq!(opened.common.session.get(), 0);
            assert!(tokens.insert(opened.common.token.get()), "session {generation}");
        }
    }
}

/// Goal: a refusal says what is wrong and what can be done.
#[test]
fn refusals_are_sentences() {
    for reason in 0..=5 {
        let text = RefusalReason(reason).to_string();
        let known = (1..=4).contains(&reason);
        assert_eq!(text.contains(&format!("reason {reason}")), !known, "{text}");
        assert!(text.len() > 30 && !text.contains("  "), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: bytes out ≤ bytes in, without a panic, for whatever arrives. Method: valid messages of each kind, to tables that
    /// have room and that have none, with bytes changed, cut or lengthened, mostly with a trailer that fits; `send`
    /// compares the lengths.
    #[test]
    fn no_answer_is_longer_than_its_question(
        kind in 0u8..16,
        held in 0u64..3,
        mutations in proptest::collection::vec((0usize..64, any::<u8>()), 0..4),
        len in prop_oneof![Just(None), (0usize..1_600).prop_map(Some), Just(Some(256)), Just(Some(576))],
        resealed in prop::bool::weighted(0.8),
        stream: bool,
        memory_len_max in prop_oneof![Just(0), Just(CONFIG.memory_len_max)],
        queue_datagrams in prop_oneof![Just(1), Just(1_000), Just(usize::MAX)],
    ) {
        let mut table = SessionTable::new(SessionConfig { memory_len_max, queue_datagrams, ..CONFIG });
        let nonce = nonce_of(1, 1);
        let cookie = cookie(&mut table, at(1), client(), nonce);
        // What the client has already: nothing, an older session or a newer one.
        if held > 0 {
            let _ = try_session(&mut table, at(1), client(), stream, nonce_of(1, 2 * held - 2), 4);
        }
        let kind = Kind(Kind::HELLO.0 & 0xf0 | kind);
        let mut datagram = match kind {
            Kind::HELLO => hello(nonce),
            Kind::OPEN => ask(nonce, cookie, 4, 0),
            Kind::REQUEST => sealed(&request(&Opened::new_zeroed(), 0, 1, Flags::CHECKSUM)),
            kind => sealed(&Ping { common: common(kind), echo: 0.into() }),
        };
        if let Some(len) = len {
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
        for _ in 0..2 {
            let _ = send_over(&mut table, at(1), client(), stream, &datagram);
        }
        if let Ok((common, _)) = open(&datagram) {
            let mut out = [0; DATAGRAM_LEN_MAX];
            let answer_len = table.no_session(common, datagram.len(), &mut out);
            prop_assert!(answer_len.is_none_or(|answer_len| answer_len <= datagram.len()));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1_600), kind in 0u8..16) {
        let (mut table, _) = opened(1);
        let mut bytes = bytes;
        let _ = send(&mut table, at(1), client(), &bytes);
        if bytes.len() >= 16 {
            bytes[..2].copy_from_slice(&[Kind::HELLO.0 & 0xf0 | kind, 1]);
            write_trailer(&mut bytes);
            let _ = send(&mut table, at(1), client(), &bytes);
        }
        prop_assert_eq!(table.count(), 1);
    }
}
