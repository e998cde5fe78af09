//! Long values on their way in: pieces in any order, and what becomes of those that are never completed.

use linerate_proto::{
    session::{
        PART_UNIT, STAGED_LEN_MAX, SessionConfig, SessionTable, TRANSFER_IDLE_MAX, TRANSFERS_MAX, part_len,
    },
    wire::{DATAGRAM_LENS, Flags, Kind, Opened, Ping, Reason, RequestHeader, VALUE_LEN_MAX, nonce_of},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::SliceRandom};

use crate::{CONFIG, addr, admit, at, at_ms, client, close, opened, request, sealed, send, session};

/// An admitted request of pieces.
fn pieces(table: &mut SessionTable, opened: &Opened, seq: u32) -> RequestHeader {
    pieces_at(table, opened, seq, 1)
}

fn pieces_at(table: &mut SessionTable, opened: &Opened, seq: u32, seconds: u64) -> RequestHeader {
    let header = request(opened, 0, seq, Flags::TRANSFER);
    admit(table, at(seconds), &header, client(), false).unwrap();
    header
}

/// Goal: a piece fills what datagrams of each length have room for. Method: by hand.
#[test]
fn pieces_fill_their_datagrams() {
    assert_eq!(DATAGRAM_LENS.map(part_len), [1_408, 1_344, 1_280, 1_152]);
    for len in 576..=1_472 {
        let part_len = part_len(len);
        assert_eq!(part_len % PART_UNIT, 0);
        assert!((len - 24 - 16 - 12 - PART_UNIT + 1..=len - 24 - 16 - 12).contains(&part_len), "{len}");
    }
}

/// Goal: a value arrives whole, in whatever order and how often its pieces come, and is not taken before. Method: random
/// lengths, shuffled and repeated pieces, beginnings in between.
#[test]
fn a_value_is_whole_when_all_its_pieces_were_there() {
    for seed in 0..100 {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut table, opened) = opened(1);
        let header = pieces(&mut table, &opened, 1);
        let len = match seed {
            0 => VALUE_LEN_MAX,
            1 => 1,
            2 => PART_UNIT,
            _ => rng.random_range(1..30_000),
        };
        let piece_len = part_len(DATAGRAM_LENS[seed as usize % 4]);
        let value: Vec<u8> = (0..len).map(|_| rng.random()).collect();
        let mut order: Vec<_> = (0..len.div_ceil(piece_len)).collect();
        order.extend_from_within(..order.len() / 2);
        order.shuffle(&mut rng);
        let mut missing: std::collections::HashSet<_> = order.iter().copied().collect();
        assert_eq!(table.begin(&header, 5, len as u32), Ok(()));
        for index in order {
            assert_eq!(table.take(&header, 5).is_some(), missing.is_empty());
            if missing.is_empty() {
                break;
            }
            if rng.random_bool(0.2) {
                assert_eq!(table.begin(&header, 5, len as u32), Ok(()), "again is done again");
            }
            let start = index * piece_len;
            let piece = &value[start..(start + piece_len).min(len)];
            assert_eq!(table.part(&header, 5, start as u32, piece), Ok(()));
            missing.remove(&index);
            if missing.is_empty() {
                assert!(table.staged_len() >= len);
                assert_eq!(table.take(&header, 5).as_deref(), Some(&value[..]));
                assert_eq!((table.take(&header, 5), table.staged_len()), (None, 0));
                assert_eq!(table.part(&header, 5, start as u32, piece), Err(Reason::NotStaged));
                assert_eq!(table.begin(&header, 5, len as u32), Err(Reason::NotStaged), "it is over");
                break;
            }
        }
        assert!(missing.is_empty());
    }
}

/// Goal: a session outlives the numbers of transfers. Method: begins around the last number, and a late one from before.
#[test]
fn numbers_of_transfers_may_wrap() {
    let (mut table, opened) = opened(1);
    let header = pieces(&mut table, &opened, 1);
    for number in [u32::MAX - 1, u32::MAX, 1, 2] {
        assert_eq!(table.begin(&header, number, 1), Ok(()), "{number}");
        assert_eq!(table.part(&header, number, 0, b"v"), Ok(()));
        assert_eq!(table.take(&header, number).as_deref(), Some(&b"v"[..]));
    }
    for number in [0, 1, 2, u32::MAX] {
        assert_eq!(table.begin(&header, number, 1), Err(Reason::NotStaged), "{number} is over");
    }
}

/// Goal: the numbers of transfers grow; what does not fit a transfer is refused and changes nothing. Method: each case.
#[test]
fn what_does_not_fit_is_not_staged() {
    let (mut table, opened) = opened(1);
    let header = pieces(&mut table, &opened, 1);
    for (transfer, len) in [(0, 10), (1, 0), (1, VALUE_LEN_MAX as u32 + 1), (1, u32::MAX)] {
        assert_eq!(table.begin(&header, transfer, len), Err(Reason::NotStaged), "{transfer}: {len}");
    }
    assert_eq!(table.staged_len(), 0);
    assert_eq!(table.begin(&header, 4, 200), Ok(()));
    assert_eq!(table.begin(&header, 4, 201), Err(Reason::NotStaged), "of another length");
    assert_eq!(table.begin(&header, 3, 200), Err(Reason::NotStaged), "numbers grow");
    assert_eq!(table.begin(&header, 9, 10), Ok(()), "gaps are legal");
    let bytes = [7; 300];
    for (transfer, offset, len) in [
        (5, 0, 64),
        (4, 0, 0),
        (4, 200, 0),
        (4, 1, 64),
        (4, 32, 64),
        (4, 0, 63),
        (4, 64, 65),
        (4, 192, 7),
        (4, 192, 9),
        (4, 192, 64),
        (4, 256, 64),
        (4, u32::MAX - 63, 64),
        (4, 0, 201),
    ] {
        let outcome = table.part(&header, transfer, offset, &bytes[..len]);
        assert_eq!(outcome, Err(Reason::NotStaged), "{transfer}: {len} at {offset}");
    }
    assert_eq!(table.take(&header, 4), None);
    assert_eq!(table.part(&header, 4, 192, &bytes[..8]), Ok(()));
    assert_eq!(table.take(&header, 4), None);
    assert_eq!(table.part(&header, 4, 0, &bytes[..192]), Ok(()));
    assert_eq!(table.take(&header, 4).as_deref(), Some(&bytes[..200]));
    assert_eq!(table.take(&header, 9), None);
}

/// Goal: caps on a session's transfers, their bytes, and the memory of all; a refusal allocates nothing and may be tried
/// again. Method: reach each.
#[test]
fn staging_is_bounded() {
    let (mut table, opened) = opened(1);
    let header = pieces(&mut table, &opened, 1);
    let mib = VALUE_LEN_MAX as u32;
    for transfer in 1..=4 {
        assert_eq!(table.begin(&header, transfer, mib), Ok(()));
    }
    let full = table.staged_len();
    assert!((STAGED_LEN_MAX..STAGED_LEN_MAX + 4 * 4_096).contains(&full), "{full}");
    assert_eq!(table.begin(&header, 5, 1), Err(Reason::StagingFull), "4 MiB of a session");
    assert_eq!((table.begin(&header, 4, mib), table.staged_len()), (Ok(()), full), "what is there stays");
    let other = session(&mut table, at(1), client(), nonce_of(9, 9), 1);
    let others = pieces(&mut table, &other, 1);
    for transfer in 1..=TRANSFERS_MAX as u32 {
        assert_eq!(table.begin(&others, transfer, 64), Ok(()));
    }
    assert_eq!(table.begin(&others, 17, 64), Err(Reason::StagingFull), "16 of a session");
    assert_eq!(table.part(&others, 3, 0, &[1; 64]), Ok(()));
    assert!(table.take(&others, 3).is_some());
    assert_eq!(table.begin(&others, 17, 64), Ok(()), "the refused one, again");

    let config = SessionConfig { staging_len_max: VALUE_LEN_MAX + 4_096, ..CONFIG };
    let mut table = SessionTable::new(config);
    let opened = session(&mut table, at(1), client(), nonce_of(1, 1), 1);
    let header = pieces(&mut table, &opened, 1);
    assert_eq!(table.begin(&header, 1, mib), Ok(()), "one of the longest always fits");
    assert_eq!(table.begin(&header, 2, 5_000), Err(Reason::StagingFull), "the core's memory");
    assert!(table.staged_len() <= config.staging_len_max);
}

/// Goal: what is never completed is forgotten after three seconds, and with its session. Method: silence of a transfer, a
/// close, a fence and the end of a lease.
#[test]
fn what_is_never_completed_is_forgotten() {
    let (mut table, opened) = opened(1);
    let header = pieces_at(&mut table, &opened, 1, 1);
    table.begin(&header, 1, 1_000).unwrap();
    table.begin(&header, 2, 1_000).unwrap();
    let header = pieces_at(&mut table, &opened, 2, 3);
    table.part(&header, 2, 0, &[1; 64]).unwrap();
    table.expire(at(4));
    let both = table.staged_len();
    assert!(both > 2_000, "nothing is over yet");
    assert_eq!(TRANSFER_IDLE_MAX.as_secs(), 3);
    table.expire(at(6));
    assert_eq!(table.staged_len(), both / 2, "the one that is silent is gone");
    assert_eq!(table.part(&header, 1, 0, &[1; 64]), Err(Reason::NotStaged));
    assert_eq!(table.part(&header, 2, 64, &[1; 64]), Ok(()));
    // A word in the session keeps the session, not its transfers.
    for second in 7..15 {
        let ping = Ping { common: opened.common, echo: 0.into() };
        assert!(table.attend(at(second), &ping.common, &client(), false).is_ok());
        table.expire(at(second));
    }
    assert_eq!((table.staged_len(), table.count()), (0, 1));

    for end in 0..3 {
        let mut table = SessionTable::new(CONFIG);
        let opened = session(&mut table, at(1), client(), nonce_of(1, 1), 1);
        let header = pieces(&mut table, &opened, 1);
        table.begin(&header, 1, 1_000).unwrap();
        assert!(table.staged_len() > 1_000);
        match end {
            0 => assert_eq!(send(&mut table, at(2), client(), &close(&opened)), Ok(None)),
            1 => {
                session(&mut table, at(2), client(), nonce_of(1, 2), 1);
            }
            _ => table.expire(at(40)),
        }
        assert_eq!(table.staged_len(), 0);
        assert_eq!(table.part(&header, 1, 0, &[1; 64]), Err(Reason::NotStaged), "the session has ended");
        assert_eq!(table.begin(&header, 2, 64), Err(Reason::NotStaged));
        assert_eq!(table.take(&header, 1), None);
    }
}

/// Goal: one source has half of the memory, however many sessions it opens, and has it again when its transfers are over.
/// Method: two sessions of one source and one of another; a transfer ends each way there is.
#[test]
fn one_source_can_not_take_all_room_for_long_values() {
    let mut table = SessionTable::new(CONFIG);
    let (greedy, other) = (addr("10.0.0.1:5000"), addr("10.0.0.2:5000"));
    let sessions = [(greedy, 1), (greedy, 2), (other, 3)]
        .map(|(from, id)| (from, session(&mut table, at(1), from, nonce_of(id, 1), 1)));
    let len = VALUE_LEN_MAX as u32;
    let begin = |table: &mut SessionTable, index: usize, second: u64, seq: u32, number: u32| {
        let (from, opened) = &sessions[index];
        let header = request(opened, 0, seq, Flags::TRANSFER.with(Flags::CHECKSUM));
        admit(table, at(second), &header, *from, false).unwrap();
        (table.begin(&header, number, len), header)
    };
    for number in 1..=3 {
        assert_eq!(begin(&mut table, 0, 1, number, number).0, Ok(()));
    }
    assert_eq!(begin(&mut table, 0, 1, 4, 4).0, Err(Reason::StagingFull));
    assert_eq!(
        begin(&mut table, 1, 1, 1, 1).0,
        Err(Reason::StagingFull),
        "another session is the same source"
    );
    assert_eq!(begin(&mut table, 2, 1, 1, 1).0, Ok(()), "others have room");
    // Taken out, forgotten, closed: each makes room.
    let (_, header) = begin(&mut table, 0, 1, 5, 1);
    for offset in (0..len).step_by(1 << 10) {
        table.part(&header, 1, offset, &[1; 1 << 10]).unwrap();
    }
    assert!(table.take(&header, 1).is_some());
    assert_eq!(begin(&mut table, 1, 1, 2, 1).0, Ok(()));
    assert_eq!(begin(&mut table, 1, 1, 3, 2).0, Err(Reason::StagingFull));
    table.expire(at(20));
    assert_eq!(table.staged_len(), 0);
    for number in 11..=13 {
        assert_eq!(begin(&mut table, 0, 20, number, number).0, Ok(()));
    }
    assert_eq!(begin(&mut table, 1, 20, 4, 11).0, Err(Reason::StagingFull));
    assert_eq!(send(&mut table, at(20), greedy, &close(&sessions[0].1)), Ok(None));
    for number in 11..=13 {
        assert_eq!(begin(&mut table, 1, 20, number, number).0, Ok(()));
    }
}

/// Goal: pieces name the session that they belong to, and transfers of two sessions do not meet. Method: the same number
/// in two sessions.
#[test]
fn transfers_belong_to_their_session() {
    let (mut table, first) = opened(1);
    let second = session(&mut table, at(1), client(), nonce_of(2, 2), 1);
    let one = pieces(&mut table, &first, 1);
    let two = pieces(&mut table, &second, 1);
    assert_eq!(table.begin(&one, 1, 64), Ok(()));
    assert_eq!(table.part(&two, 1, 0, &[2; 64]), Err(Reason::NotStaged));
    assert_eq!(table.begin(&two, 1, 64), Ok(()));
    assert_eq!(table.part(&one, 1, 0, &[1; 64]), Ok(()));
    assert_eq!(table.part(&two, 1, 0, &[2; 64]), Ok(()));
    assert_eq!(table.take(&two, 1).as_deref(), Some(&[2; 64][..]));
    assert_eq!(table.take(&one, 1).as_deref(), Some(&[1; 64][..]));
    // A ping is no request, and stages nothing.
    let ping = sealed(&Ping { common: crate::common(Kind::PING), echo: 0.into() });
    assert!(send(&mut table, at_ms(1_001), client(), &ping).is_err());
    assert_eq!(table.staged_len(), 0);
}
