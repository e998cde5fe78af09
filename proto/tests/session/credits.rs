//! Credits: what clients may have in flight together fits the receive queue, and all of it is given out.

use std::collections::VecDeque;

use linerate_proto::{
    DropReason, Instant,
    session::{CREDIT_LIFETIME, CREDIT_UNLIMITED, SessionConfig, SessionTable, Verdict},
    wire::{Flags, Opened, nonce_of},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::{CONFIG, admit, at, at_ms, client, close, request, send, session, try_session};

/// Answers a new read of a session; returns the credit that it is told.
fn read(table: &mut SessionTable, now: Instant, opened: &Opened, slot: u8, seq: u32) -> u8 {
    let header = request(opened, slot, seq, Flags::READ_ONLY);
    assert_eq!(admit(table, now, &header, client(), false), Ok(Verdict::Execute));
    let share = table.share();
    table.reply_terms(&header, share).credit
}

/// Goal: more is given at once; less is asked for at once, and frees room when the client has shown that it has heard
/// that. Method: two sessions, step by step.
#[test]
fn credits_rise_at_once_and_fall_when_heard() {
    // 75 can be given out, of which 9 are for newcomers.
    let mut table = SessionTable::new(SessionConfig { queue_datagrams: 100, ..CONFIG });
    let first = session(&mut table, at(1), client(), nonce_of(1, 1), 256);
    assert_eq!((first.credit, table.granted()), (2, 2));
    assert_eq!(read(&mut table, at(1), &first, 0, 1), 66);
    assert_eq!(read(&mut table, at(1), &first, 1, 1), 66);
    assert_eq!(table.granted(), 66);

    let second = session(&mut table, at(1), client(), nonce_of(2, 1), 256);
    assert_eq!((second.credit, table.granted(), table.share()), (1, 67, 33), "of what is kept for newcomers");
    assert_eq!(read(&mut table, at(1), &second, 0, 1), 1, "there is no more yet");
    assert_eq!(read(&mut table, at(1), &first, 2, 1), 33);
    assert_eq!(table.granted(), 67, "the client may not know it yet");
    // A repeated request, and a new one in a slot that was answered before, do not show that it does.
    assert_eq!(read(&mut table, at(1), &first, 2, 1), 33);
    assert_eq!(read(&mut table, at(1), &first, 1, 2), 33);
    assert_eq!(table.granted(), 67);
    assert_eq!(read(&mut table, at(1), &first, 2, 2), 33);
    assert_eq!(table.granted(), 34, "now it does");
    assert_eq!(read(&mut table, at(1), &second, 0, 2), 33);
    assert_eq!(table.granted(), 66);
}

/// Goal: what a client may still hear of counts. Method: it is told less, then more or less again, in slots of which one
/// shows that it was heard; what counts is the most that it was told since it was first asked for less.
#[test]
fn what_may_still_be_heard_counts() {
    for (told, in_slots, counted) in [
        (&[10, 20][..], [1, 2], 20),
        (&[20, 10], [1, 2], 20),
        (&[10, 20, 15], [1, 2], 20),
        (&[10, 66], [1, 2], 66),
        (&[10, 66, 30], [3, 3], 30),
        // Slot 0 was answered before the client was asked for less, though again since.
        (&[10], [0, 0], 66),
        (&[10], [0, 1], 10),
    ] {
        let mut table = SessionTable::new(SessionConfig { queue_datagrams: 100, ..CONFIG });
        let opened = session(&mut table, at(1), client(), nonce_of(1, 1), 256);
        assert_eq!(read(&mut table, at(1), &opened, 0, 1), 66);
        for (&share, slot) in told.iter().zip(1..) {
            let header = request(&opened, slot, 1, Flags::READ_ONLY);
            admit(&mut table, at(1), &header, client(), false).unwrap();
            assert_eq!(table.reply_terms(&header, share).credit, share);
        }
        let again = request(&opened, 0, 1, Flags::READ_ONLY);
        admit(&mut table, at(1), &again, client(), false).unwrap();
        table.reply_terms(&again, told[told.len() - 1]);
        assert_eq!(table.granted(), 66);
        for slot in in_slots {
            let next = request(&opened, slot, 2, Flags::READ_ONLY);
            admit(&mut table, at(1), &next, client(), false).unwrap();
        }
        assert_eq!(table.granted(), counted, "told {told:?}, then heard from {in_slots:?}");
    }
}

/// Goal: a window needs no more than its slots, and a stream has no limit.
#[test]
fn credits_know_windows_and_streams() {
    let mut table = SessionTable::new(SessionConfig { queue_datagrams: 100, ..CONFIG });
    let narrow = session(&mut table, at(1), client(), nonce_of(1, 1), 3);
    assert_eq!((read(&mut table, at(1), &narrow, 0, 1), table.granted()), (3, 3));

    for queue_datagrams in [usize::MAX, 100, 1] {
        let mut table = SessionTable::new(SessionConfig { queue_datagrams, ..CONFIG });
        let opened = try_session(&mut table, at(1), client(), true, nonce_of(1, 1), 256).unwrap();
        let header = request(&opened, 0, 1, Flags::READ_ONLY);
        admit(&mut table, at(1), &header, client(), true).unwrap();
        let share = table.share();
        assert_eq!(table.reply_terms(&header, share).credit, CREDIT_UNLIMITED);
        assert_eq!((opened.credit, table.granted()), (CREDIT_UNLIMITED, 0));
    }
    let mut table = SessionTable::new(SessionConfig { queue_datagrams: usize::MAX, ..CONFIG });
    let opened = session(&mut table, at(1), client(), nonce_of(1, 1), 256);
    assert_eq!(read(&mut table, at(1), &opened, 0, 1), CREDIT_UNLIMITED);
}

/// Goal: a silent session counts one, and others get what it had. Method: one falls silent, one goes on.
#[test]
fn silence_gives_credits_back() {
    let mut table = SessionTable::new(SessionConfig { queue_datagrams: 100, ..CONFIG });
    let first = session(&mut table, at(1), client(), nonce_of(1, 1), 256);
    assert_eq!(read(&mut table, at(1), &first, 0, 1), 66);
    let second = session(&mut table, at(1), client(), nonce_of(2, 1), 256);
    let mut now = at(1);
    let mut told = vec![];
    for seq in 1..=30 {
        now = now + CREDIT_LIFETIME / 10;
        table.expire(now);
        told.push(read(&mut table, now, &second, 0, seq));
    }
    assert!(told[..19].iter().all(|&credit| credit == 1), "{told:?}");
    assert_eq!(told[29], 65, "{told:?}");
    assert_eq!(table.granted(), 66);
    // The silent one comes back with the one that it still has.
    assert_eq!(read(&mut table, now, &first, 1, 1), 1);
    assert_eq!(read(&mut table, now, &second, 0, 31), 33);
    assert_eq!(read(&mut table, now, &second, 0, 32), 33);
    assert_eq!(read(&mut table, now, &first, 1, 2), 33);
}

/// A client that keeps to its credits.
struct Client {
    opened: Opened,
    /// Sequence number of each slot, and when its request was sent if it is not answered yet.
    slots: Vec<(u32, Option<u64>)>,
    credit: u8,
    heard_at: u64,
    busy: bool,
    retransmitted_at: u64,
    /// Replies on their way: when they arrive, slot, number, credit.
    replies: VecDeque<(u64, usize, u32, u8)>,
}

impl Client {
    fn in_flight(&self) -> usize {
        self.slots.iter().filter(|(_, sent_at)| sent_at.is_some()).count()
    }

    fn allowance(&self, now: u64) -> usize {
        let lapsed = now - self.heard_at > CREDIT_LIFETIME.as_millis() as u64;
        if lapsed { 1 } else { self.credit.into() }
    }
}

/// Goal: the datagrams that clients have on the way and in the queue never exceed three quarters of it, and in the end
/// all that can be given out is in use. Method: clients that obey, come, go, fall silent and lose datagrams either way;
/// a server that stands still now and then; datagrams of one direction and client keep their order. In milliseconds.
#[test]
fn what_is_in_flight_fits_the_queue() {
    for seed in 0..40 {
        println!("seed {seed}");
        run(seed);
    }
}

fn run(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let queue_datagrams = rng.random_range(4..200);
    let budget = queue_datagrams * 3 / 4;
    let clients_max = rng.random_range(1..=budget.min(30));
    let loss = if rng.random() { rng.random_range(0.0..0.3) } else { 0.0 };
    let delay_max = rng.random_range(1..10);
    let mut table = SessionTable::new(SessionConfig { queue_datagrams, ..CONFIG });
    let mut clients: Vec<Client> = vec![];
    // On their way to the server or in its queue: when they arrive, token, header.
    let mut queue: VecDeque<(u64, linerate_proto::wire::RequestHeader)> = VecDeque::new();
    let (mut number, mut paused_until) = (0, 0);
    for now in 1_000..6_000u64 {
        // In the last second all who are there are busy, and nobody comes or goes.
        let settling = now >= 5_000;
        if !settling && clients.len() < clients_max && rng.random_bool(0.05) {
            number += 1;
            if let Ok(opened) = try_session(
                &mut table,
                at_ms(now),
                client(),
                false,
                nonce_of(number, 1),
                rng.random_range(1..100),
            ) {
                clients.push(Client {
                    opened,
                    slots: vec![(0, None); opened.window.get().into()],
                    credit: opened.credit,
                    heard_at: now,
                    busy: true,
                    retransmitted_at: 0,
                    replies: VecDeque::new(),
                });
            }
        }
        if !settling && rng.random_bool(0.002) {
            // Those who go have nothing left on the way.
            if let Some(index) = clients.iter().position(|client| client.in_flight() == 0) {
                let gone = clients.swap_remove(index);
                send(&mut table, at_ms(now), client(), &close(&gone.opened)).unwrap();
            }
        }
        for client in &mut clients {
            if rng.random_bool(0.01) {
                client.busy = !client.busy;
            }
            client.busy |= settling;
            while let Some(&(arrival, slot, seq, credit)) = client.replies.front()
                && arrival <= now
            {
                client.replies.pop_front();
                if client.slots[slot].0 == seq && client.slots[slot].1.is_some() {
                    client.slots[slot].1 = None;
                    (client.credit, client.heard_at) = (credit, now);
                }
            }
            let arrival = now + rng.random_range(0..=delay_max);
            let arrival = queue.back().map_or(arrival, |&(last, _)| arrival.max(last));
            let mut room = client.allowance(now).saturating_sub(client.in_flight());
            for slot in 0..client.slots.len() {
                let (seq, sent_at) = client.slots[slot];
                // Longer than any path takes: what is sent again was lost. One at a time until something is heard.
                let may_resend =
                    client.heard_at > client.retransmitted_at || now - client.retransmitted_at > 120;
                let again = may_resend && sent_at.is_some_and(|sent_at| now - sent_at > 120);
                let new = sent_at.is_none() && client.busy && room > 0;
                room -= usize::from(new);
                if again {
                    client.retransmitted_at = now;
                } else if !new {
                    continue;
                }
                let seq = seq + u32::from(new);
                client.slots[slot] = (seq, Some(now));
                if settling || !rng.random_bool(loss) {
                    queue.push_back((arrival, request(&client.opened, slot as u8, seq, Flags::READ_ONLY)));
                }
            }
        }
        // What each may have on the way: as much as it believes, and no less than it has.
        let allowed: usize = clients
            .iter()
            .map(|client| {
                let token = client.opened.common.token;
                let queued = queue.iter().filter(|(_, header)| header.common.token == token).count();
                queued.max(client.allowance(now).min(client.slots.len()))
            })
            .sum();
        assert!(allowed <= budget, "{allowed} datagrams at {now} ms, {budget} fit");
        assert!(table.granted() <= budget, "{} given out at {now} ms, {budget} fit", table.granted());
        if now >= paused_until {
            table.expire(at_ms(now));
            let share = table.share();
            while let Some(&(arrival, header)) = queue.front()
                && arrival <= now
            {
                queue.pop_front();
                match admit(&mut table, at_ms(now), &header, client(), false) {
                    Ok(_) => (),
                    Err(DropReason::Stale) => continue,
                    Err(reason) => panic!("{reason:?}"),
                }
                let credit = table.reply_terms(&header, share).credit;
                let token = header.common.token;
                let Some(client) = clients.iter_mut().find(|client| client.opened.common.token == token)
                else {
                    continue;
                };
                let arrival = now + rng.random_range(0..=delay_max);
                let arrival = client.replies.back().map_or(arrival, |&(last, ..)| arrival.max(last));
                if settling || !rng.random_bool(loss) {
                    client.replies.push_back((arrival, header.common.slot.into(), header.seq.get(), credit));
                }
            }
            if !settling && rng.random_bool(0.02) {
                paused_until = now + rng.random_range(1..40);
            }
        }
    }
    let share = usize::from(table.share());
    let fair = clients.iter().all(|client| usize::from(client.credit) >= share.min(client.slots.len()));
    let held: Vec<_> = clients
        .iter()
        .map(|client| (client.credit, client.slots.len(), client.in_flight(), client.heard_at))
        .collect();
    assert!(fair, "{held:?} of {share}, {} of {budget} given out", table.granted());
}
