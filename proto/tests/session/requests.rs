//! Requests: which are executed, which are answered from their slot, and which are dropped.

use linerate_proto::{
    DropReason,
    session::{SessionTable, Verdict},
    wire::{Flags, OpResult, Opened, Reason},
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use zerocopy::FromBytes;

use crate::{CONFIG, NONCE, admit, ask, at, client, close, cookie, opened, request, send};

/// Goal: the fate of a write by its number: new, again, late, far ahead, none. Method: send and expect.
#[test]
fn writes_by_sequence_number() {
    let (mut table, opened) = opened(2);
    let results =
        [OpResult::Done, OpResult::NotFound, OpResult::NotExecuted(Reason::NoSpace), OpResult::Done];
    let mut admit = |slot, seq| {
        let header = request(&opened, slot, seq, Flags::NONE);
        let verdict = admit(&mut table, at(1), &header, client(), false)?;
        if verdict == Verdict::Execute {
            assert_eq!(table.kept(&header).count(), 0, "nothing of the last request is left");
            table.slot(&header).begin(seq.into());
            results.iter().for_each(|result| table.slot(&header).keep(result));
        } else {
            let version = u64::from(seq);
            let versions = [version + 1, version + 1, 0, version + 2];
            assert!(table.kept(&header).eq(results.into_iter().zip(versions)));
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
    let mut admit = |seq, flags| admit(&mut table, at(1), &request(&opened, 0, seq, flags), client(), false);
    assert_eq!(admit(1, Flags::READ_ONLY), Ok(Verdict::Execute));
    assert_eq!(admit(1, Flags::READ_ONLY), Ok(Verdict::Execute));
    assert_eq!(admit(1, Flags::NONE), Err(DropReason::Malformed));
    assert_eq!(admit(2, Flags::NONE), Ok(Verdict::Execute));
    assert_eq!(admit(2, Flags::READ_ONLY), Err(DropReason::Malformed));
    assert_eq!(admit(1, Flags::READ_ONLY), Err(DropReason::Stale));
    assert_eq!(admit(3, Flags::READ_ONLY), Ok(Verdict::Execute));
    assert_eq!(admit(2, Flags::NONE), Err(DropReason::Stale));
}

/// Goal: a write that does not parse leaves no trace: it may come again in one piece, and what was answered before stays
/// answered. Method: broken copies, which a worker admits and does not let occupy the slot, between whole ones.
#[test]
fn a_malformed_write_leaves_no_trace() {
    let (mut table, opened) = opened(1);
    let write = |seq| request(&opened, 0, seq, Flags::NONE);
    let broken = |table: &mut SessionTable, seq| table.admit(at(1), &write(seq), 100, &client(), false);
    assert_eq!(broken(&mut table, 3), Ok(Verdict::Execute));
    assert_eq!(admit(&mut table, at(1), &write(3), client(), false), Ok(Verdict::Execute));
    table.slot(&write(3)).begin(70);
    table.slot(&write(3)).keep(&OpResult::Done);
    for seq in [4, 9, u32::MAX] {
        assert_eq!(broken(&mut table, seq), Ok(Verdict::Execute));
        // The answer to 3 was lost: it is asked for again.
        assert_eq!(admit(&mut table, at(1), &write(3), client(), false), Ok(Verdict::Replay));
        assert!(table.can_replay(&write(3)));
        assert!(table.kept(&write(3)).eq([(OpResult::Done, 71)]));
    }
    assert_eq!(admit(&mut table, at(1), &write(4), client(), false), Ok(Verdict::Execute));
    assert_eq!(broken(&mut table, 3), Err(DropReason::Stale), "an answered number never becomes new");
}

/// Goal: a late copy of an answered write is not answered with what a newer request of the slot has kept. Method: both in
/// one batch, where the newer one occupies the slot before the copy is answered.
#[test]
fn a_replay_overtaken_by_a_newer_request_is_not_answered() {
    let newer = [(Flags::NONE, 2), (Flags::READ_ONLY, 2), (Flags::TRANSFER, 7)];
    for (flags, seq) in newer {
        let (mut table, opened) = opened(1);
        let write = request(&opened, 0, 1, Flags::NONE);
        admit(&mut table, at(1), &write, client(), false).unwrap();
        table.slot(&write).begin(0);
        table.slot(&write).keep(&OpResult::Done);
        assert_eq!(admit(&mut table, at(1), &write, client(), false), Ok(Verdict::Replay));
        assert!(table.can_replay(&write));
        let newer = request(&opened, 0, seq, flags);
        assert_eq!(admit(&mut table, at(1), &newer, client(), false), Ok(Verdict::Execute));
        assert!(!table.can_replay(&write) && !table.can_replay(&newer));
        if flags == Flags::NONE {
            table.slot(&newer).begin(1);
            table.slot(&newer).keep(&OpResult::NotFound);
            assert!(table.can_replay(&newer) && !table.can_replay(&write));
        }
        send(&mut table, at(1), client(), &close(&opened)).unwrap();
        assert!(!table.can_replay(&newer), "and not after the session has ended");
    }
}

/// Goal: pieces of long values are taken again as often as they come, like reads. Method: by number.
#[test]
fn pieces_by_sequence_number() {
    let (mut table, opened) = opened(2);
    let mut admit = |seq, flags| admit(&mut table, at(1), &request(&opened, 0, seq, flags), client(), false);
    assert_eq!(admit(1, Flags::TRANSFER), Ok(Verdict::Execute));
    assert_eq!(admit(1, Flags::TRANSFER), Ok(Verdict::Execute));
    assert_eq!(admit(1, Flags::NONE), Err(DropReason::Malformed));
    assert_eq!(admit(2, Flags::TRANSFER.with(Flags::READ_ONLY)), Ok(Verdict::Execute));
    assert_eq!(admit(2, Flags::READ_ONLY), Ok(Verdict::Execute));
    assert_eq!(admit(1, Flags::TRANSFER), Err(DropReason::Stale));
    assert_eq!(admit(3, Flags::NONE), Ok(Verdict::Execute));
    assert_eq!(admit(3, Flags::TRANSFER), Err(DropReason::Malformed));
    assert_eq!(admit(3, Flags::NONE), Ok(Verdict::Replay));
}

/// Goal: 255 results of any sort come back as they were, with the versions that they had. Method: random ones.
#[test]
fn a_slot_gives_back_what_it_keeps() {
    for seed in 0..50 {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut table, opened) = opened(1);
        let write = request(&opened, 0, 1, Flags::NONE);
        admit(&mut table, at(1), &write, client(), false).unwrap();
        let mut version = rng.random::<u64>() / 2;
        let slot = table.slot(&write);
        slot.begin(version);
        let mut expected = vec![];
        for _ in 0..rng.random_range(1..=255) {
            let (result, number) = match rng.random_range(0..4) {
                0 => {
                    version += 1;
                    (OpResult::Done, version)
                }
                1 => (OpResult::NotFound, version),
                2 => (OpResult::NotExecuted(Reason::Moved { epoch: CONFIG.epoch }), 0),
                _ => (OpResult::NotExecuted(Reason::from_code(rng.random_range(1..249))), 0),
            };
            slot.keep(&result);
            expected.push((result, number));
        }
        assert!(table.kept(&write).eq(expected));
    }
}

/// Goal: a request counts only with its session's index, token and address; over a stream the token is enough.
#[test]
fn requests_of_strangers_are_refused() {
    let (mut table, opened) = opened(2);
    let write = request(&opened, 0, 1, Flags::NONE);
    for stranger in ["127.0.0.1:5001", "127.0.0.2:5000", "[::1]:5000"] {
        let stranger = stranger.parse().unwrap();
        assert_eq!(admit(&mut table, at(1), &write, stranger, false), Err(DropReason::WrongPeer));
        assert_eq!(table.attend(at(1), &write.common, &stranger, false), Err(DropReason::WrongPeer));
    }
    for (session, token) in
        [(0, opened.common.token.get() ^ 1), (1, opened.common.token.get()), (u32::MAX, 0)]
    {
        let mut wrong = write;
        wrong.common.session = session.into();
        wrong.common.token = token.into();
        assert_eq!(admit(&mut table, at(1), &wrong, client(), true), Err(DropReason::UnknownSession));
    }
    let stranger = "127.0.0.2:5000".parse().unwrap();
    assert_eq!(admit(&mut table, at(1), &write, stranger, true), Ok(Verdict::Execute));
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
        assert_eq!(admit(&mut table, at(1), &bare, addr, false), expected);
        let summed = request(opened, 0, 2, Flags::CHECKSUM);
        assert_eq!(admit(&mut table, at(1), &summed, addr, false), Ok(Verdict::Execute));
        assert_eq!(table.reply_terms(&summed, 1).flags.contains(Flags::CHECKSUM), demanded);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

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
            let Ok(verdict) = table.admit(at(1), &header, 100, &client(), false) else { continue };
            if broken {
                continue; // It does not parse.
            }
            table.occupy(&header);
            if verdict == Verdict::Execute && !reads {
                table.slot(&header).keep(&OpResult::Done);
                prop_assert!(executed.insert((slot, seq)));
            } else if verdict == Verdict::Replay {
                prop_assert!(executed.contains(&(slot, seq)));
            }
        }
    }
}
