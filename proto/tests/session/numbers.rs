//! Results with numbers: what adds have found, and versions that kept a write from its effect.

use linerate_proto::{
    DropReason,
    session::{SessionConfig, SessionTable, Verdict},
    wire::{Flags, OpResult, Opened, Reason, RequestHeader},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::{CONFIG, NONCE, addr, admit, at, client, close, opened, request, send, session};

/// A write of `count` operations.
fn write(opened: &Opened, slot: u8, seq: u32, count: u8) -> RequestHeader {
    RequestHeader { count, ..request(opened, slot, seq, Flags::NONE) }
}

/// Adds, as a worker does: `false` when there was no room.
fn add(table: &mut SessionTable, header: &RequestHeader, former: u64) -> bool {
    let has_room = table.has_room_for_number(header);
    if has_room {
        table.keep_sum(header, former);
    } else {
        table.slot(header).keep(&OpResult::NotExecuted(Reason::NoSpace));
    }
    has_room
}

fn kept(table: &mut SessionTable, header: &RequestHeader) -> Vec<(String, u64)> {
    table.kept(header).map(|(result, version)| (format!("{result:?}"), version)).collect()
}

/// Goal: an add by its number: new, again, late, and after a newer one. Method: send and expect what it has found.
#[test]
fn adds_by_sequence_number() {
    let (mut table, opened) = opened(2);
    let run = |table: &mut SessionTable, slot, seq, former: u64| {
        let header = write(&opened, slot, seq, 1);
        let verdict = admit(table, at(1), &header, client(), false)?;
        if verdict == Verdict::Execute {
            table.slot(&header).begin(seq.into());
            assert!(add(table, &header, former));
        }
        let (result, version) = table.kept(&header).next().expect("one result");
        let OpResult::Value(bytes) = result else { panic!("{result:?}") };
        Ok((verdict, u64::from_be_bytes(bytes.try_into().unwrap()), version))
    };
    assert_eq!(run(&mut table, 0, 1, 70), Ok((Verdict::Execute, 70, 2)), "new");
    assert_eq!(run(&mut table, 0, 1, 71), Ok((Verdict::Replay, 70, 2)), "again");
    assert_eq!(run(&mut table, 1, 1, 80), Ok((Verdict::Execute, 80, 2)), "slots are independent");
    assert_eq!(run(&mut table, 0, 9, u64::MAX), Ok((Verdict::Execute, u64::MAX, 10)), "newer");
    assert_eq!(run(&mut table, 0, 9, 0), Ok((Verdict::Replay, u64::MAX, 10)), "again");
    assert_eq!(run(&mut table, 0, 1, 0), Err(DropReason::Stale), "late");
    assert_eq!(run(&mut table, 1, 1, 0), Ok((Verdict::Replay, 80, 2)), "untouched");
}

/// Goal: results with and without numbers come back in their order, whatever the slot kept before. Method: random ones, in
/// requests that follow each other in two slots.
#[test]
fn results_of_all_sorts_come_back_in_order() {
    for seed in 0..50 {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut table, opened) = opened(2);
        for seq in 1..20 {
            let slot = rng.random_range(0..2);
            let count = rng.random_range(1..=79);
            let header = write(&opened, slot, seq, count);
            admit(&mut table, at(1), &header, client(), false).unwrap();
            let mut version = rng.random::<u64>() / 2;
            table.slot(&header).begin(version);
            let mut expected = vec![];
            for _ in 0..count {
                let number = rng.random();
                let reason = [Reason::Changed, Reason::Exists, Reason::NotANumber][rng.random_range(0..3)];
                expected.push(match rng.random_range(0..4) {
                    0 => {
                        version += 1;
                        assert!(add(&mut table, &header, number));
                        (format!("{:?}", OpResult::Value(&number.to_be_bytes())), version)
                    }
                    1 => {
                        table.keep_refusal(&header, reason, number);
                        (format!("{:?}", OpResult::NotExecuted(reason)), number)
                    }
                    2 => {
                        // Versions were not asked for.
                        table.slot(&header).keep(&OpResult::NotExecuted(reason));
                        (format!("{:?}", OpResult::NotExecuted(reason)), 0)
                    }
                    _ => {
                        version += 1;
                        table.slot(&header).keep(&OpResult::Done);
                        (format!("{:?}", OpResult::Done), version)
                    }
                });
            }
            assert_eq!(kept(&mut table, &header), expected);
        }
    }
}

/// Goal: memory for numbers is charged, is no more than a request needs, and comes back with the session. Method: adds one
/// by one and many at once; a goodbye.
#[test]
fn numbers_are_charged_to_the_sessions() {
    let (mut table, opened) = opened(4);
    let before = table.memory_len();
    let run = |table: &mut SessionTable, slot, seq, count| {
        let header = write(&opened, slot, seq, count);
        admit(table, at(1), &header, client(), false).unwrap();
        table.slot(&header).begin(0);
        (0..count).for_each(|_| assert!(add(table, &header, 1)));
    };
    let table_len = 4 * 16;
    run(&mut table, 1, 1, 1);
    assert_eq!(table.memory_len(), before + table_len + 8);
    run(&mut table, 1, 2, 1);
    assert_eq!(table.memory_len(), before + table_len + 8, "the slot has it already");
    run(&mut table, 1, 3, 10);
    run(&mut table, 2, 1, 143);
    assert_eq!(table.memory_len(), before + table_len + 8 * 153);
    send(&mut table, at(1), client(), &close(&opened)).unwrap();
    assert_eq!(table.memory_len(), 0);
}

/// Goal: without room an add is refused before it has an effect, and that is kept; a refusal becomes one for want of space.
/// Method: caps around what a number takes, and more numbers than a reply carries.
#[test]
fn without_room_for_a_number_nothing_is_done() {
    let session_len = opened(1).0.memory_len();
    for (more_len, expected) in [(0, "NoSpace"), (16 + 7, "NoSpace"), (16 + 8, "Value")] {
        let mut table = SessionTable::new(SessionConfig { memory_len_max: session_len + more_len, ..CONFIG });
        let opened = session(&mut table, at(1), client(), NONCE, 1);
        let header = write(&opened, 0, 1, 1);
        admit(&mut table, at(1), &header, client(), false).unwrap();
        table.slot(&header).begin(0);
        assert_eq!(add(&mut table, &header, 1), expected == "Value");
        assert!(kept(&mut table, &header)[0].0.contains(expected), "{:?}", kept(&mut table, &header));
        assert!(table.memory_len() <= session_len + more_len);
        let header = write(&opened, 0, 2, 1);
        admit(&mut table, at(1), &header, client(), false).unwrap();
        table.slot(&header).begin(0);
        table.keep_refusal(&header, Reason::Changed, 5);
        let reason = if expected == "Value" { "Changed" } else { expected };
        assert!(kept(&mut table, &header)[0].0.contains(reason), "{:?}", kept(&mut table, &header));
    }
    let (mut table, opened) = opened(1);
    let header = write(&opened, 0, 1, 255);
    admit(&mut table, at(1), &header, client(), false).unwrap();
    table.slot(&header).begin(0);
    assert_eq!((0..255).filter(|&former| add(&mut table, &header, former)).count(), 143);
    assert_eq!(kept(&mut table, &header).len(), 255);
}

/// Goal: one source does not take the room of all. Method: it has half the memory, and another source adds.
#[test]
fn a_source_has_its_share_only() {
    let session_len = opened(1).0.memory_len();
    let mut table = SessionTable::new(SessionConfig { memory_len_max: 2 * session_len + 100, ..CONFIG });
    let (first, second) = (addr("192.0.2.1:1"), addr("192.0.2.2:1"));
    for (from, count, expected) in [(first, 4, true), (second, 5, false)] {
        let opened = session(&mut table, at(1), from, NONCE, 1);
        let mut header = write(&opened, 0, 1, count);
        header.common.flags = Flags::CHECKSUM;
        admit(&mut table, at(1), &header, from, false).unwrap();
        table.slot(&header).begin(0);
        assert_eq!(add(&mut table, &header, 1), expected, "{from}: half is {}", session_len + 50);
    }
}
