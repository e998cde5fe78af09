//! How operations are written as requests, and what the answers say about those in flight.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{memcached, resp, setting::Dialect};
use crate::{
    latency::LatencyHistogram,
    value::{check, fill, touch, writer},
    workload::{Draw, ValueLen},
};

/// Bytes of a refusal that are told.
const REFUSAL_LEN_MAX: usize = 120;

/// What the answers of one measurement say together.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Gets answered with a value.
    pub(super) hits: u64,
    /// Gets that found nothing.
    pub(super) misses: u64,
    /// Puts acknowledged.
    pub(super) puts: u64,
    /// Operations without an answer, since datagrams can be lost.
    pub(super) unanswered: u64,
    /// Values that were never put at the key they were got from.
    pub(super) wrong_values: u64,
    /// Depends on every byte received, so that reading them can not be left out.
    pub(super) touched: u64,
    /// From writing a request until its last answer, once for each of its operations.
    pub(super) latency: LatencyHistogram,
}

impl Tally {
    /// Operations answered.
    pub(super) const fn ops(&self) -> u64 {
        self.hits + self.misses + self.puts
    }
}

/// How values that were got are looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Lengths that values have.
    pub(super) value_len: ValueLen,
    /// Whether each must be one that was put at its key; otherwise its bytes are only read.
    pub(super) verify: bool,
}

impl Look {
    #[inline]
    fn at(self, value: &[u8], draw: &Draw, tally: &mut Tally) {
        tally.hits += 1;
        if self.verify {
            tally.wrong_values += u64::from(!check(value, draw.record(), self.value_len));
        } else {
            tally.touched ^= touch(value);
        }
    }
}

/// Makes the values that are put, each another one.
#[derive(Clone, Debug)]
pub(super) struct Values {
    thread: u16,
    sequence: u64,
    value_len: ValueLen,
    value: Box<[u8]>,
}

impl Values {
    /// Values that name this thread as their writer.
    pub(super) fn new(thread: u16, value_len: ValueLen) -> Self {
        Self { thread, sequence: 0, value_len, value: vec![0; value_len.max()].into() }
    }

    /// The next value, for `record`.
    #[inline]
    fn next(&mut self, record: u32) -> &[u8] {
        // As a client of linerate chooses lengths: they need not be random, only mixed.
        let random = (self.sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
        let value = &mut self.value[..self.value_len.pick(random)];
        fill(value, record, writer(0, self.thread, self.sequence));
        self.sequence += 1;
        value
    }
}

/// Appends a request for these operations, all gets before all puts if the dialect asks for many keys at once.
#[inline]
pub(super) fn write(dialect: Dialect, draws: &[Draw], values: &mut Values, out: &mut Vec<u8>) {
    let grouped = if dialect.groups_gets() { gets_at_front(draws) } else { 0 };
    let (gets, rest) = draws.split_at(grouped);
    match dialect {
        _ if gets.is_empty() => {}
        Dialect::RespMget => {
            resp::push_array(out, gets.len() + 1);
            resp::push_bulk(out, b"MGET");
            gets.iter().for_each(|draw| resp::push_bulk(out, draw.key().bytes()));
        }
        Dialect::Text | Dialect::Datagrams => {
            out.extend_from_slice(b"get");
            gets.iter().for_each(|draw| memcached::push_key(out, draw.key().bytes()));
            out.extend_from_slice(b"\r\n");
        }
        Dialect::RespGet => unreachable!("gets are not grouped"),
    }
    for draw in rest {
        let key = draw.key();
        match (dialect.is_resp(), draw.is_put()) {
            (true, false) => resp::push_get(out, key.bytes()),
            (true, true) => resp::push_set(out, key.bytes(), values.next(draw.record())),
            (false, _) => memcached::push_set(out, key.bytes(), values.next(draw.record())),
        }
    }
}

fn gets_at_front(draws: &[Draw]) -> usize {
    draws.iter().take_while(|draw| !draw.is_put()).count()
}

/// Puts all gets before all puts. There is no order to keep among operations that are in flight together.
#[inline]
pub(super) fn move_gets_to_front(draws: &mut [Draw]) {
    let mut gets = 0;
    for index in 0..draws.len() {
        if !draws[index].is_put() {
            draws.swap(gets, index);
            gets += 1;
        }
    }
}

/// A request that was written, and is not answered as a whole.
#[derive(Clone, Copy, Debug)]
struct Request {
    /// What its datagrams are known by.
    id: u16,
    /// Its operations.
    count: u32,
    /// Those of them that are not answered.
    left: u32,
    /// Those of them that are gets of a group.
    grouped_left: u32,
    /// Whether the head of a group's answer is still to come (of an array), or its end (of a list).
    is_open: bool,
    begun: Instant,
}

/// What a connection has in flight, which is answered in the order in which it was written.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    draws: VecDeque<Draw>,
    requests: VecDeque<Request>,
}

impl InFlight {
    /// Nothing, with room for so many operations in so many requests.
    pub(super) fn with_capacity(operations: usize, requests: usize) -> Self {
        Self { draws: VecDeque::with_capacity(operations), requests: VecDeque::with_capacity(requests) }
    }

    /// Operations in flight.
    #[inline]
    pub(super) fn operations(&self) -> usize {
        self.draws.len()
    }

    /// Adds what [`write()`] has written.
    #[inline]
    pub(super) fn push(&mut self, dialect: Dialect, draws: &[Draw], id: u16, now: Instant) {
        let grouped = if dialect.groups_gets() { gets_at_front(draws) } else { 0 } as u32;
        let count = draws.len() as u32;
        self.draws.extend(draws);
        let is_open = grouped > 0;
        self.requests.push_back(Request {
            id,
            count,
            left: count,
            grouped_left: grouped,
            is_open,
            begun: now,
        });
    }

    /// Takes the next piece of an answer in RESP.
    ///
    /// # Errors
    /// When it is no answer to what was asked, or a refusal.
    #[inline]
    pub(super) fn take_resp(
        &mut self,
        token: resp::Token<'_>,
        now: Instant,
        look: Look,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        use resp::Token;
        let Some((request, draw)) = self.requests.front_mut().zip(self.draws.front()) else {
            anyhow::bail!("answered what nobody had asked")
        };
        match token {
            Token::Array(count) if request.is_open && count == request.grouped_left as usize => {
                request.is_open = false;
                return Ok(());
            }
            Token::Bulk(value) if !request.is_open && !draw.is_put() => look.at(value, draw, tally),
            Token::Null if !request.is_open && !draw.is_put() => tally.misses += 1,
            Token::Simple(b"OK") if !request.is_open && draw.is_put() => tally.puts += 1,
            Token::Error(reason) => anyhow::bail!("refused an operation: {}", shown(reason)),
            _ => anyhow::bail!("gave another kind of answer than was asked for"),
        }
        self.draws.pop_front();
        request.left -= 1;
        if request.left == 0 {
            self.end_first(now, tally);
        }
        Ok(())
    }

    /// Takes the next piece of an answer of memcached. A get without one is a miss, or `unanswered` where datagrams can be
    /// lost.
    ///
    /// # Errors
    /// When it is no answer to what was asked, or a refusal.
    #[inline]
    pub(super) fn take_text(
        &mut self,
        token: memcached::Token<'_>,
        now: Instant,
        is_lossy: bool,
        look: Look,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        use memcached::Token;
        let Some(request) = self.requests.front_mut() else {
            anyhow::bail!("answered what nobody had asked")
        };
        let mut pass = |count: u32| {
            let passed: &mut u64 = if is_lossy { &mut tally.unanswered } else { &mut tally.misses };
            *passed += u64::from(count);
        };
        match token {
            Token::Value { key, value } => loop {
                anyhow::ensure!(
                    request.is_open && request.grouped_left > 0,
                    "sent a value of a key that was not asked for"
                );
                let draw = self.draws.pop_front().expect("as many as are left");
                request.grouped_left -= 1;
                request.left -= 1;
                if draw.key().bytes() == key {
                    look.at(value, &draw, tally);
                    return Ok(());
                }
                pass(1);
            },
            Token::End => {
                anyhow::ensure!(request.is_open, "ended a list of values that was not asked for");
                pass(request.grouped_left);
                self.draws.drain(..request.grouped_left as usize);
                request.left -= request.grouped_left;
                (request.grouped_left, request.is_open) = (0, false);
            }
            Token::Stored => {
                anyhow::ensure!(!request.is_open, "stored a value before it answered earlier gets");
                self.draws.pop_front();
                request.left -= 1;
                tally.puts += 1;
            }
            Token::Other(line) => anyhow::bail!("refused an operation: {}", shown(line)),
        }
        if request.left == 0 && !request.is_open {
            self.end_first(now, tally);
        }
        Ok(())
    }

    /// Gives up what was sent before the request with this id. Returns whether that one is in flight.
    #[inline]
    pub(super) fn skip_to(&mut self, id: u16, tally: &mut Tally) -> bool {
        if self.requests.front().is_some_and(|request| request.id == id) {
            return true;
        }
        let Some(skipped) = self.requests.iter().position(|request| request.id == id) else { return false };
        (0..skipped).for_each(|_| self.give_up_first(tally));
        true
    }

    /// Gives up everything.
    pub(super) fn give_up(&mut self, tally: &mut Tally) {
        (0..self.requests.len()).for_each(|_| self.give_up_first(tally));
    }

    fn give_up_first(&mut self, tally: &mut Tally) {
        if let Some(request) = self.requests.pop_front() {
            self.draws.drain(..request.left as usize);
            tally.unanswered += u64::from(request.left);
        }
    }

    #[inline]
    fn end_first(&mut self, now: Instant, tally: &mut Tally) {
        if let Some(request) = self.requests.pop_front() {
            let latency = now.saturating_duration_since(request.begun);
            tally
                .latency
                .record_n(latency.min(Duration::from_secs(60)).as_nanos() as u64, request.count.into());
        }
    }
}

/// What a server says, as far as it fits a line.
fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(REFUSAL_LEN_MAX)]).trim().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Kind;

    fn look(verify: bool) -> Look {
        Look { value_len: ValueLen::new(16, 16).unwrap(), verify }
    }

    fn get(record: u32) -> Draw {
        Draw::new(record, Kind::Get)
    }

    fn value(record: u32) -> Vec<u8> {
        let mut value = vec![0; 16];
        fill(&mut value, record, 7);
        value
    }

    /// Goal: each answer is counted for the operation it answers, and the request ends with its last one. Method: a request
    /// of each dialect of RESP with a value, a wrong one, a miss and a put.
    #[test]
    fn answers_in_resp_are_counted() {
        use resp::Token;
        for dialect in [Dialect::RespGet, Dialect::RespMget] {
            let mut draws = [get(1), Draw::put(4), get(2), get(3)];
            if dialect.groups_gets() {
                move_gets_to_front(&mut draws);
            }
            let (mut in_flight, mut tally) = (InFlight::with_capacity(8, 2), Tally::default());
            let now = Instant::now();
            in_flight.push(dialect, &draws, 0, now);
            assert_eq!(in_flight.operations(), 4);
            let (one, two) = (value(1), value(9));
            let answers = match dialect {
                Dialect::RespGet => {
                    vec![Token::Bulk(&one), Token::Simple(b"OK"), Token::Bulk(&two), Token::Null]
                }
                _ => {
                    vec![
                        Token::Array(3),
                        Token::Bulk(&one),
                        Token::Bulk(&two),
                        Token::Null,
                        Token::Simple(b"OK"),
                    ]
                }
            };
            for token in answers {
                assert_eq!(tally.latency.count(), 0);
                in_flight.take_resp(token, now, look(true), &mut tally).unwrap();
            }
            assert_eq!((tally.hits, tally.misses, tally.puts, tally.wrong_values), (2, 1, 1, 1));
            assert_eq!((tally.ops(), tally.latency.count(), in_flight.operations()), (4, 4, 0));
            let error = in_flight.take_resp(Token::Null, now, look(true), &mut tally).unwrap_err();
            assert_eq!(error.to_string(), "answered what nobody had asked");
        }
    }

    /// Goal: answers of another kind than was asked for are noticed, and refusals told. Method: each to a get and to a put.
    #[test]
    fn answers_of_the_wrong_kind_are_noticed() {
        use resp::Token;
        for (dialect, draw, tokens) in [
            (Dialect::RespGet, get(1), &[Token::Simple(b"OK"), Token::Array(1), Token::Simple(b"")][..]),
            (Dialect::RespGet, Draw::put(1), &[Token::Bulk(b""), Token::Null, Token::Simple(b"QUEUED")]),
            (Dialect::RespMget, get(1), &[Token::Bulk(b""), Token::Array(2), Token::Null]),
        ] {
            for &token in tokens.iter().chain(&[Token::Error(b"LOADING not yet\n")]) {
                let mut in_flight = InFlight::with_capacity(1, 1);
                in_flight.push(dialect, &[draw], 0, Instant::now());
                let error = in_flight
                    .take_resp(token, Instant::now(), look(false), &mut Tally::default())
                    .unwrap_err();
                let expected = match token {
                    Token::Error(_) => "refused an operation: LOADING not yet",
                    _ => "gave another kind of answer than was asked for",
                };
                assert_eq!(error.to_string(), expected, "{dialect:?} {token:?}");
            }
        }
    }

    /// Goal: with memcached the keys tell which gets found nothing. Method: values of the second and fourth of five keys, the
    /// first and last of which are one key; once where datagrams can be lost.
    #[test]
    fn answers_in_text_are_counted() {
        use memcached::Token;
        for is_lossy in [false, true] {
            let draws = [get(1), get(2), get(3), get(4), get(1), Draw::put(5)];
            let (mut in_flight, mut tally) = (InFlight::with_capacity(8, 2), Tally::default());
            let now = Instant::now();
            in_flight.push(Dialect::Text, &draws, 0, now);
            let (two, four) = (value(2), value(4));
            for token in [
                Token::Value { key: b"2", value: &two },
                Token::Value { key: b"4", value: &four },
                Token::End,
                Token::Stored,
            ] {
                in_flight.take_text(token, now, is_lossy, look(true), &mut tally).unwrap();
            }
            assert_eq!((tally.hits, tally.puts, tally.wrong_values), (2, 1, 0));
            assert_eq!((tally.misses, tally.unanswered), if is_lossy { (0, 3) } else { (3, 0) });
            assert_eq!((tally.latency.count(), in_flight.operations()), (6, 0));
        }
    }

    /// Goal: what a list must not hold, or a put be told, is an error. Method: one of each.
    #[test]
    fn text_of_the_wrong_kind_is_noticed() {
        use memcached::Token;
        let stray = Token::Value { key: b"8", value: b"" };
        for (draw, token, expected) in [
            (get(1), stray, "sent a value of a key that was not asked for"),
            (Draw::put(8), stray, "sent a value of a key that was not asked for"),
            (Draw::put(8), Token::End, "ended a list of values that was not asked for"),
            (get(1), Token::Stored, "stored a value before it answered earlier gets"),
            (get(1), Token::Other(b"SERVER_ERROR no"), "refused an operation: SERVER_ERROR no"),
        ] {
            let mut in_flight = InFlight::with_capacity(1, 1);
            in_flight.push(Dialect::Text, &[draw], 0, Instant::now());
            let (now, mut tally) = (Instant::now(), Tally::default());
            let mut take = |token| in_flight.take_text(token, now, false, look(false), &mut tally);
            // A value of another key may mean that the first ones found nothing; that there is no such key is seen then.
            assert_eq!(take(token).unwrap_err().to_string(), expected);
        }
    }

    /// Goal: an answer to a later request means that the earlier ones are lost, and one to none is ignored. Method: three
    /// requests with ids around the highest one, answers to the last.
    #[test]
    fn lost_datagrams_are_given_up() {
        let (mut in_flight, mut tally) = (InFlight::with_capacity(8, 4), Tally::default());
        let now = Instant::now();
        in_flight.push(Dialect::Datagrams, &[get(1), get(2)], u16::MAX, now);
        in_flight.push(Dialect::Datagrams, &[Draw::put(3)], 0, now);
        in_flight.push(Dialect::Datagrams, &[Draw::put(4)], 1, now);
        assert!(!in_flight.skip_to(7, &mut tally));
        assert!(in_flight.skip_to(u16::MAX, &mut tally));
        assert_eq!(tally.unanswered, 0);
        assert!(in_flight.skip_to(1, &mut tally));
        assert_eq!((tally.unanswered, in_flight.operations()), (3, 1));
        in_flight.take_text(memcached::Token::Stored, now, true, look(false), &mut tally).unwrap();
        in_flight.push(Dialect::Datagrams, &[get(1), get(2)], 2, now);
        in_flight.give_up(&mut tally);
        assert_eq!((tally.unanswered, tally.puts, in_flight.operations()), (5, 1, 0));
    }

    /// Goal: what the client itself does for an operation can be looked up any time, as it must not be the limit. Method: write
    /// requests of MGET and take prepared answers; printed, never asserted.
    #[test]
    fn ns_per_operation() {
        const BATCH: usize = 100;
        let value_len = ValueLen::new(128, 128).unwrap();
        let look = Look { value_len, verify: false };
        let mut draws: Vec<_> = (0..BATCH as u32 - 5).map(|index| get(index % 8)).collect();
        draws.extend((0..5).map(Draw::put));
        let mut answer = b"*95\r\n".to_vec();
        (0..95).for_each(|record| {
            let mut value = [0; 128];
            fill(&mut value, record % 8, 7);
            resp::push_bulk(&mut answer, &value);
        });
        (0..5).for_each(|_| answer.extend_from_slice(b"+OK\r\n"));
        let (mut values, mut out) = (Values::new(1, value_len), Vec::new());
        let (mut in_flight, mut tally) = (InFlight::with_capacity(BATCH, 1), Tally::default());
        let rounds = (0..200).map(|_| {
            let begun = Instant::now();
            out.clear();
            write(Dialect::RespMget, &draws, &mut values, &mut out);
            in_flight.push(Dialect::RespMget, &draws, 0, begun);
            let mut rest = &answer[..];
            while let Some((token, len)) = resp::token(rest, value_len.max()).unwrap() {
                in_flight.take_resp(token, begun, look, &mut tally).unwrap();
                rest = &rest[len..];
            }
            begun.elapsed()
        });
        // The best round is the one that nothing else has disturbed.
        let best = rounds.min().unwrap_or_default();
        println!("{:.2} ns per operation", best.as_nanos() as f64 / BATCH as f64);
        assert_eq!((tally.ops(), tally.misses, in_flight.operations()), (200 * BATCH as u64, 0, 0));
        std::hint::black_box(tally.touched);
    }
}
