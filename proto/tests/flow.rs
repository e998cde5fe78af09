//! The client's flow, from outside: what it sends, when it sends again, and how each operation ends.
//!
//! A model server (the real session table over a hash map) answers on virtual time.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use linerate_proto::{
    DropReason, Instant,
    cluster::{ClusterSpec, Member, Membership},
    flow::{Ended, Flow, FlowConfig, Outcome, PushError, check_lengths},
    placement::Placement,
    session::{Control, SessionConfig, SessionTable, Verdict},
    wire::{
        Condition, DATAGRAM_LEN_MAX, Flags, Hello, Kind, Meta, OpResult, Operation, OperationKind,
        Operations, Piece, Pieces, Ping, REQUEST_LEN_MIN, Reason, RefusalReason, ReplyBuilder, ReplyHeader,
        RequestHeader, STAT_COUNT, Statistics, TRAILER_LEN, Terms, VALUE_LEN_MAX, client_id, generation,
        nonce_of, open, seal, write_trailer,
    },
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;

/// A server core over a hash map. It knows how often each write took effect.
struct Server {
    config: SessionConfig,
    table: SessionTable,
    store: HashMap<Vec<u8>, Vec<u8>>,
    /// Executions of each put, by its value.
    effects: HashMap<Vec<u8>, u32>,
    /// Results per reply datagram to a read.
    per_reply: usize,
    /// Results per read; the others are `ReplyFull`.
    results_max: usize,
    addr: SocketAddr,
    /// Whether clients come over a stream, where credits are no limit.
    stream: bool,
}

impl Server {
    fn new(queue_datagrams: usize) -> Self {
        let config = SessionConfig {
            secret: [7; 16],
            boot_id: 1,
            data_epoch: 1,
            base_port: 4_100,
            cores: 4,
            core: 0,
            map_digest: 0,
            node_id: 0,
            epoch: 1,
            memory_len_max: 1 << 20,
            staging_len_max: 4 << 20,
            lease: Duration::from_secs(60),
            queue_datagrams,
        };
        Self {
            config,
            table: SessionTable::new(config),
            store: HashMap::new(),
            effects: HashMap::new(),
            per_reply: usize::MAX,
            results_max: usize::MAX,
            addr: "127.0.0.1:5000".parse().unwrap(),
            stream: queue_datagrams == usize::MAX,
        }
    }

    /// Forgets sessions and contents, as a volatile server does.
    fn restart(&mut self) {
        self.config.boot_id += 1;
        self.config.data_epoch += 1;
        self.config.secret[0] = self.config.secret[0].wrapping_add(1);
        self.table = SessionTable::new(self.config);
        self.store.clear();
    }

    fn handle(&mut self, now: Instant, datagram: &[u8]) -> Vec<Vec<u8>> {
        let mut out = [0; DATAGRAM_LEN_MAX];
        let Ok((common, body)) = open(datagram) else { return vec![] };
        let len = match common.kind {
            Kind::REQUEST => match self.request(now, datagram, body) {
                Ok(replies) => return replies,
                Err(DropReason::UnknownSession) => self.table.no_session(common, datagram.len(), &mut out),
                Err(_) => None,
            },
            Kind::PING | Kind::STATS => match self.table.attend(now, common, &self.addr, self.stream) {
                Ok(_) => Some(answer_control(datagram, &mut out)),
                Err(DropReason::UnknownSession) => self.table.no_session(common, datagram.len(), &mut out),
                Err(_) => None,
            },
            _ => match self.table.control(now, datagram, &self.addr, self.stream, &mut out) {
                Ok(Control::Answer(len)) => Some(len),
                _ => None,
            },
        };
        len.map(|len| out[..len].to_vec()).into_iter().collect()
    }

    fn request(&mut self, now: Instant, datagram: &[u8], body: &[u8]) -> Result<Vec<Vec<u8>>, DropReason> {
        let (header, _) = RequestHeader::ref_from_prefix(datagram).map_err(|_| DropReason::Truncated)?;
        let verdict = self.table.admit(now, header, datagram.len(), &self.addr, self.stream)?;
        let reads = header.common.flags.contains(Flags::READ_ONLY);
        let operations: Result<Vec<_>, _> = Operations::new(&body[8..], header.count, reads).collect();
        let operations = match operations {
            Ok(operations) if header.count > 0 => operations,
            _ if verdict == Verdict::Replay => vec![],
            _ => return Err(DropReason::Malformed),
        };
        self.table.occupy(header);
        self.table.expire(now);
        let terms = self.table.reply_terms(header, self.table.share());
        let reply = ReplyHeader {
            common: linerate_proto::wire::Common { kind: Kind::REPLY, flags: terms.flags, ..header.common },
            seq: header.seq,
            first: 0,
            count: 0,
            credit: terms.credit,
            queue_delay: 0,
        };
        let mut out = [0; DATAGRAM_LEN_MAX];
        if verdict == Verdict::Replay {
            let mut builder = ReplyBuilder::new(&mut out, DATAGRAM_LEN_MAX, Flags::NONE);
            for (result, version) in self.table.kept(header) {
                assert!(builder.push(result, Meta { version, ttl_ms: None }));
            }
            let len = builder.finish(reply, 0);
            return Ok(vec![out[..len].to_vec()]);
        }
        let per_reply = if reads { self.per_reply } else { usize::MAX };
        if !reads {
            self.table.slot(header).begin(0);
        }
        let mut replies = vec![];
        let mut first = 0;
        while first < operations.len() {
            let mut builder = ReplyBuilder::new(&mut out, DATAGRAM_LEN_MAX, Flags::NONE);
            for (index, operation) in operations.iter().enumerate().skip(first).take(per_reply) {
                let former;
                let result = if reads && index >= self.results_max {
                    OpResult::NotExecuted(Reason::ReplyFull)
                } else {
                    match operation.kind {
                        OperationKind::Get => {
                            let value = self.store.get(operation.key.bytes());
                            value.map_or(OpResult::NotFound, |value| OpResult::Value(value))
                        }
                        OperationKind::Put => {
                            self.store.insert(operation.key.bytes().to_vec(), operation.value.to_vec());
                            *self.effects.entry(operation.value.to_vec()).or_default() += 1;
                            OpResult::Done
                        }
                        OperationKind::PutOn(terms) => self.put_on(operation, terms),
                        OperationKind::Add { delta, .. } => {
                            assert!(self.table.has_room_for_number(header));
                            let number = self
                                .store
                                .entry(operation.key.bytes().to_vec())
                                .or_insert_with(|| vec![0; 8]);
                            former = u64::from_be_bytes(number[..].try_into().unwrap()).to_be_bytes();
                            *number = u64::from_be_bytes(former).wrapping_add(delta).to_be_bytes().to_vec();
                            OpResult::Value(&former)
                        }
                        OperationKind::Commit(..) => OpResult::NotExecuted(Reason::NotStaged),
                        OperationKind::Delete => match self.store.remove(operation.key.bytes()) {
                            Some(_) => OpResult::Done,
                            None => OpResult::NotFound,
                        },
                    }
                };
                if !builder.push(result, Meta::default()) {
                    break;
                }
                match result {
                    _ if reads => {}
                    OpResult::Value(former) => {
                        self.table.keep_sum(header, u64::from_be_bytes(former.try_into().unwrap()));
                    }
                    result => self.table.slot(header).keep(&result),
                }
            }
            let count = usize::from(builder.count());
            let len = builder.finish(ReplyHeader { first: first as u8, ..reply }, 0);
            replies.push(out[..len].to_vec());
            first += count;
        }
        Ok(replies)
    }
}

impl Server {
    fn put_on(&mut self, operation: &Operation<'_>, terms: Terms) -> OpResult<'static> {
        let is_there = self.store.contains_key(operation.key.bytes());
        match (terms.condition, is_there) {
            (Condition::Absent, true) => OpResult::NotExecuted(Reason::Exists),
            (Condition::Present | Condition::Version(_), false) => OpResult::NotFound,
            (Condition::Version(_), true) => OpResult::NotExecuted(Reason::Changed),
            _ => {
                self.store.insert(operation.key.bytes().to_vec(), operation.value.to_vec());
                OpResult::Done
            }
        }
    }
}

fn answer_control(datagram: &[u8], out: &mut [u8]) -> usize {
    let (ping, _) = Ping::ref_from_prefix(datagram).unwrap();
    if ping.common.kind == Kind::PING {
        let mut pong = *ping;
        pong.common.kind = Kind::PONG;
        pong.common.flags = Flags::CHECKSUM;
        return seal(&pong, out);
    }
    let mut statistics = Statistics::new_zeroed();
    statistics.common = ping.common;
    statistics.common.kind = Kind::STATISTICS;
    statistics.common.flags = Flags::CHECKSUM;
    statistics.values[STAT_COUNT - 1] = 42.into();
    seal(&statistics, out)
}

/// An outcome that owns its value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Value(Vec<u8>),
    NotFound,
    Done,
    NotExecuted(Reason),
    Unknown,
}

/// A flow and its server, with a clock in nanoseconds, and all that ended so far.
struct Pair {
    flow: Flow,
    server: Server,
    now: u64,
    ends: Vec<(u64, End)>,
}

const CONFIG: FlowConfig = FlowConfig {
    window: 8,
    operations_max: 8,
    checksum: false,
    versions: false,
    lifetimes: false,
    reply_datagrams_max: usize::MAX,
    rto_floor: Duration::from_micros(200),
    timeout: Duration::from_secs(2),
    core: Some(0),
    epoch: 1,
    seed: *b"flow test seed 1",
};

impl Pair {
    /// A pair with an open session.
    fn open(config: FlowConfig, server: Server) -> Self {
        let mut pair = Self { flow: Flow::new(config), server, now: 1_000 * MS, ends: vec![] };
        pair.settle();
        assert!(pair.flow.is_open());
        pair
    }

    fn new() -> Self {
        Self::open(CONFIG, Server::new(usize::MAX))
    }

    fn at(&self) -> Instant {
        Instant::from_nanos(self.now)
    }

    fn push(&mut self, operation: Operation<'_>, tag: u64) {
        self.flow.push(self.at(), operation, tag).unwrap();
    }

    /// A request of its own with one get.
    fn get(&mut self, tag: u64) {
        self.push(Operation::get(&tag.to_be_bytes()), tag);
        self.flow.flush();
    }

    /// A request of its own with one put of its tag, at its tag.
    fn put(&mut self, tag: u64) {
        self.push(Operation::put(&tag.to_be_bytes(), &tag.to_be_bytes()), tag);
        self.flow.flush();
    }

    /// All that the flow wants to send now.
    fn sent(&mut self) -> Vec<Vec<u8>> {
        let mut datagrams = vec![];
        while let Some(len) = self.flow.poll_transmit(self.at()) {
            let mut out = vec![0xee; len];
            self.flow.emit(self.at(), &mut out);
            datagrams.push(out);
            assert!(datagrams.len() < 10_000, "the flow sends without end");
        }
        datagrams
    }

    fn serve(&mut self, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let now = self.at();
        datagrams.iter().flat_map(|datagram| self.server.handle(now, datagram)).collect()
    }

    fn receive(&mut self, datagram: &[u8]) -> Result<(), DropReason> {
        let now = self.at();
        self.flow.receive(now, datagram, &mut collect(&mut self.ends))
    }

    /// Lets time pass.
    fn advance(&mut self, nanos: u64) {
        self.now += nanos;
        let now = self.at();
        self.flow.poll_timers(now, &mut collect(&mut self.ends));
    }

    /// Exchanges datagrams, without loss or delay, until nobody has anything to say.
    fn settle(&mut self) {
        loop {
            let sent = self.sent();
            if sent.is_empty() {
                return;
            }
            for reply in self.serve(&sent) {
                let _ = self.receive(&reply);
            }
        }
    }

    fn take_ends(&mut self) -> Vec<(u64, End)> {
        let mut ends = std::mem::take(&mut self.ends);
        ends.sort_by_key(|end| end.0);
        ends
    }
}

fn collect(ends: &mut Vec<(u64, End)>) -> impl FnMut(Ended<'_>) + '_ {
    |Ended { tag, outcome, .. }| {
        ends.push((
            tag,
            match outcome {
                Outcome::Value(value) => End::Value(value.to_vec()),
                Outcome::NotFound => End::NotFound,
                Outcome::Done => End::Done,
                Outcome::NotExecuted(reason) => End::NotExecuted(reason),
                Outcome::OutcomeUnknown => End::Unknown,
            },
        ));
    }
}

fn sum(number: u64) -> End {
    End::Value(number.to_be_bytes().to_vec())
}

fn header(datagram: &[u8]) -> &RequestHeader {
    RequestHeader::ref_from_prefix(datagram).unwrap().0
}

fn tags(ends: &[(u64, End)]) -> Vec<u64> {
    ends.iter().map(|end| end.0).collect()
}

/// Goal: a request of gets is open until nothing can be pushed into it, and never again; requests of another class are none.
/// Method: each way for one to be closed, and what is sent again or in another session.
#[test]
fn a_request_of_gets_is_open_while_it_is_filled() {
    let mut pair = Pair::new();
    pair.push(Operation::put(b"k", b"v"), 0);
    assert_eq!(pair.flow.open_gets(), None, "a put is no get");
    for number in 1..=u64::from(CONFIG.operations_max) {
        assert_eq!(pair.flow.open_gets(), (number > 1).then_some(1));
        pair.push(Operation::get(&number.to_be_bytes()), number);
    }
    assert_eq!(pair.flow.open_gets(), None, "it is full");
    pair.push(Operation::get(b"k"), 9);
    assert_eq!(pair.flow.open_gets(), Some(2), "the second of its kind");
    pair.flow.flush();
    assert_eq!(pair.flow.open_gets(), None, "it is to be sent as it is");
    assert_eq!(pair.sent().len(), 3, "lost on the way");
    assert_eq!(pair.flow.open_gets(), None);
    pair.push(Operation::get(b"k"), 10);
    assert_eq!(pair.flow.open_gets(), Some(3));
    pair.server.restart();
    // The others are sent again, in the next session too; what was not sent yet waits for company as before.
    pair.advance(50 * MS);
    pair.settle();
    assert_eq!(pair.flow.open_gets(), Some(3));
    pair.advance(2_000 * MS);
    assert_eq!(pair.flow.open_gets(), None, "it was given up");
    let ends = pair.take_ends();
    assert_eq!(tags(&ends), (0..=10).collect::<Vec<_>>());
    assert_eq!(ends.last().unwrap().1, End::NotExecuted(Reason::Deadline));
}

/// Goal: an add takes effect once, and its copies are told what it found. Method: the answer is lost and the request sent
/// again; another add comes between, so that a number read anew would differ.
#[test]
fn an_add_that_is_sent_again_adds_once() {
    let mut pair = Pair::new();
    pair.push(Operation::add(b"n", 5, None), 1);
    pair.flow.flush();
    let first = pair.sent();
    assert_eq!(pair.serve(&first).len(), 1, "and the answer is lost");
    pair.push(Operation::add(b"n", 10_u64.wrapping_neg(), None), 2);
    pair.flow.flush();
    let second = pair.sent();
    for reply in pair.serve(&second) {
        pair.receive(&reply).unwrap();
    }
    assert_eq!(pair.take_ends(), [(2, sum(5))]);
    pair.advance(50 * MS);
    let again = pair.sent();
    assert_eq!((again.len(), again[0][3], &again[0][24..]), (1, 1, &first[0][24..]), "the same bytes");
    for reply in pair.serve(&again) {
        pair.receive(&reply).unwrap();
    }
    assert_eq!(pair.take_ends(), [(1, sum(0))]);
    assert_eq!(pair.server.store[&b"n"[..]], 5_u64.wrapping_sub(10).to_be_bytes());
    // A late copy of either changes nothing.
    assert_eq!(pair.serve(&[first[0].clone(), second[0].clone()]).len(), 2);
    assert_eq!(pair.server.store[&b"n"[..]], 5_u64.wrapping_sub(10).to_be_bytes());
}

/// Goal: an add is a write: what was sent and not answered when the session was lost is unknown, and not sent again.
#[test]
fn an_add_in_flight_when_the_session_is_lost_is_unknown() {
    let mut pair = Pair::new();
    pair.push(Operation::add(b"n", 1, None), 1);
    pair.flow.flush();
    assert_eq!(pair.sent().len(), 1, "lost on the way");
    pair.server.restart();
    pair.advance(50 * MS);
    pair.settle();
    assert_eq!(pair.take_ends(), [(1, End::Unknown)]);
    assert!(pair.server.store.is_empty());
}

/// Goal: conditions travel and each end is told apart. Method: a put of each kind, met and not.
#[test]
fn conditions_are_told_apart() {
    let mut pair = Pair::new();
    let on = |condition| Terms::only_if(condition);
    let ends = [
        (Condition::Present, End::NotFound),
        (Condition::Version(3), End::NotFound),
        (Condition::Absent, End::Done),
        (Condition::Absent, End::NotExecuted(Reason::Exists)),
        (Condition::Version(3), End::NotExecuted(Reason::Changed)),
        (Condition::Present, End::Done),
    ];
    for (tag, &(condition, _)) in ends.iter().enumerate() {
        pair.push(Operation::put_on(b"k", &[tag as u8], on(condition)), tag as u64);
    }
    pair.flow.flush();
    pair.settle();
    let expected: Vec<_> = (0..).zip(ends.map(|(_, end)| end)).collect();
    assert_eq!(pair.take_ends(), expected);
    let refused = pair.flow.push(pair.at(), Operation::put_on(b"k", b"", on(Condition::Version(0))), 9);
    assert_eq!(refused, Err(PushError::NoVersion));
}

/// Goal: the results of a request's writes fit one datagram, adds with their numbers too. Method: requests of short keys,
/// with versions and without, with adds first, last or not at all; the shortest operations there are.
#[test]
fn adds_make_requests_shorter_by_what_their_results_take() {
    for versions in [false, true] {
        for adds in [0..0, 0..1, 70..71, 100..101, 0..300] {
            let config = FlowConfig { window: 16, operations_max: 255, versions, ..CONFIG };
            let mut pair = Pair::open(config, Server::new(usize::MAX));
            for tag in 0..300 {
                let key = [1];
                let is_add = adds.contains(&tag);
                pair.push(if is_add { Operation::add(&key, 1, None) } else { Operation::delete(&key) }, tag);
            }
            pair.flow.flush();
            let head_len = if versions { 10 } else { 2 };
            let mut count = 0;
            for datagram in pair.sent() {
                let operations = Operations::new(&datagram[24..], header(&datagram).count, false);
                let lens = operations.map(|operation| {
                    count += 1;
                    let is_add = matches!(operation.unwrap().kind, OperationKind::Add { .. });
                    head_len + if is_add { 8 } else { 0 }
                });
                let reply_len: usize = lens.sum();
                assert!(reply_len <= 1_432, "{reply_len} bytes of results, versions {versions}, {adds:?}");
            }
            assert_eq!(count, 300);
        }
    }
}

/// Goal: the terms of a long put are those of its commit. Method: the steps are answered by hand.
#[test]
fn a_long_put_commits_on_its_terms() {
    let mut pair = Pair::new();
    let terms = Terms::only_if(Condition::Version(7)).for_ms(std::num::NonZeroU32::new(500));
    // It would fit without the terms.
    let value = vec![7; Operation::inline_value_len_max(3) - 11];
    pair.push(Operation::put_on(b"key", &value, terms), 1);
    let mut steps = vec![];
    while steps.len() < 4 {
        let mut sent = pair.sent();
        pair.flow.flush();
        sent.extend(pair.sent());
        assert!(!sent.is_empty(), "after {steps:?}");
        for datagram in sent {
            let request = header(&datagram);
            let mut out = [0; DATAGRAM_LEN_MAX];
            let mut builder = ReplyBuilder::new(&mut out, DATAGRAM_LEN_MAX, Flags::NONE);
            if request.common.flags.contains(Flags::TRANSFER) {
                for piece in Pieces::new(&datagram[24..], request.count) {
                    steps.push(match piece.unwrap() {
                        Piece::Begin { len, .. } => format!("begin {len}"),
                        Piece::Part { offset, .. } => format!("part {offset}"),
                    });
                    assert!(builder.push(OpResult::Done, Meta::default()));
                }
            } else {
                let commit = Operations::new(&datagram[24..], 1, false).next().unwrap().unwrap();
                assert_eq!(commit, Operation::commit(b"key", 1, terms));
                steps.push("commit".to_owned());
                assert!(builder.push(OpResult::NotExecuted(Reason::Changed), Meta::default()));
            }
            let common =
                linerate_proto::wire::Common { kind: Kind::REPLY, flags: Flags::NONE, ..request.common };
            let reply =
                ReplyHeader { common, seq: request.seq, first: 0, count: 0, credit: 8, queue_delay: 0 };
            let len = builder.finish(reply, 0);
            pair.receive(&out[..len]).unwrap();
        }
    }
    assert_eq!(
        steps,
        [format!("begin {}", value.len()), "part 0".into(), "part 1408".into(), "commit".into()]
    );
    assert_eq!(pair.take_ends(), [(1, End::NotExecuted(Reason::Changed))]);
}

/// Goal: times to live come with what was read, with versions and without, and with a long value, whose pieces have none.
/// Method: replies made by hand; every truncation of them is refused without an end that is not told.
#[test]
fn times_to_live_come_with_what_was_read() {
    let ttl_ms = std::num::NonZeroU32::new(1_234);
    for versions in [false, true] {
        let config = FlowConfig { versions, lifetimes: true, ..CONFIG };
        let mut pair = Pair::open(config, Server::new(usize::MAX));
        pair.push(Operation::get(b"mortal"), 1);
        pair.push(Operation::get(b"immortal"), 2);
        pair.push(Operation::get(b"absent"), 3);
        pair.flow.flush();
        let sent = pair.sent();
        let request = *header(&sent[0]);
        assert!(request.common.flags.contains(Flags::LIFETIMES));
        let flags = Flags::VERSIONS.when(versions).with(Flags::LIFETIMES);
        let mut out = [0; DATAGRAM_LEN_MAX];
        let mut builder = ReplyBuilder::new(&mut out, DATAGRAM_LEN_MAX, flags);
        assert!(builder.push(OpResult::Value(b"one"), Meta { version: 5, ttl_ms }));
        assert!(builder.push(OpResult::Value(b"two"), Meta { version: 6, ttl_ms: None }));
        assert!(builder.push(OpResult::NotFound, Meta { version: 7, ttl_ms: None }));
        let common = linerate_proto::wire::Common { kind: Kind::REPLY, flags, ..request.common };
        let reply = ReplyHeader { common, seq: request.seq, first: 0, count: 0, credit: 8, queue_delay: 0 };
        let len = builder.finish(reply, 0);
        let mut told = vec![];
        for len in (24..=len).chain([len]) {
            let now = pair.at();
            let _ = pair.flow.receive(now, &out[..len], &mut |Ended { tag, version, ttl_ms, .. }| {
                told.push((tag, version, ttl_ms));
            });
        }
        let version = |version| if versions { version } else { 0 };
        assert_eq!(told, [(1, version(5), ttl_ms), (2, version(6), None), (3, version(7), None)]);
        pair.put(4);
        assert!(!header(&pair.sent()[0]).common.flags.contains(Flags::LIFETIMES), "a write has none");
    }
}

/// Goal: requests are filled to the limit of operations or of bytes, and reads never share one with writes. Method: push
/// and look at the requests.
#[test]
fn operations_are_packed_by_count_by_bytes_and_by_class() {
    let mut pair = Pair::open(FlowConfig { operations_max: 4, ..CONFIG }, Server::new(usize::MAX));
    for tag in 0..10 {
        pair.push(Operation::get(b"key"), tag);
    }
    assert_eq!(pair.flow.ready(), 2);
    assert_eq!(pair.flow.waiting_since(), Some(pair.at()));
    pair.flow.flush();
    let counts: Vec<_> = pair.sent().iter().map(|datagram| header(datagram).count).collect();
    assert_eq!(counts, [4, 4, 2]);
    assert_eq!(pair.flow.waiting_since(), None);

    let mut pair = Pair::new();
    for tag in 0..4 {
        pair.push(Operation::put(b"key", &[1; 700]), tag);
    }
    pair.push(Operation::get(b"key"), 4);
    pair.push(Operation::delete(b"k"), 5);
    pair.flow.flush();
    let sent = pair.sent();
    let kinds: Vec<_> =
        sent.iter().map(|d| (header(d).common.flags.contains(Flags::READ_ONLY), header(d).count)).collect();
    assert_eq!(kinds, [(true, 1), (false, 2), (false, 3)]);
    assert!(sent.iter().all(|datagram| datagram.len() <= DATAGRAM_LEN_MAX));
    for reply in pair.serve(&sent) {
        pair.receive(&reply).unwrap();
    }
    assert_eq!(pair.take_ends().len(), 6);
    assert!(pair.flow.is_idle());
}

/// Goal: one train has segments of one length, which `NO_SESSION` never exceeds. Method: requests of different lengths.
#[test]
fn the_requests_of_a_run_are_padded_to_one_length() {
    for checksum in [false, true] {
        let mut pair = Pair::open(FlowConfig { checksum, ..CONFIG }, Server::new(usize::MAX));
        for (tag, key_len) in [(0, 1), (1, 200), (2, 30)] {
            pair.push(Operation::get(&vec![1; key_len]), tag);
            pair.flow.flush();
        }
        pair.put(3);
        let sent = pair.sent();
        let lens: Vec<_> = sent.iter().map(Vec::len).collect();
        let trailer_len = if checksum { TRAILER_LEN } else { 0 };
        assert_eq!(lens[..3], [24 + 2 + 200 + trailer_len; 3]);
        assert_eq!(lens[3], 24 + 4 + 16 + trailer_len);
        assert!(sent.iter().all(|datagram| open(datagram).is_ok()), "the trailer lies behind the padding");
        assert!(sent[0][27..lens[0] - trailer_len].iter().all(|&byte| byte == 0));
        for reply in pair.serve(&sent) {
            pair.receive(&reply).unwrap();
        }
        assert_eq!(tags(&pair.take_ends()), [0, 1, 2, 3]);
        pair.push(Operation::get(b"k"), 9);
        pair.flow.flush();
        assert_eq!(pair.sent()[0].len(), REQUEST_LEN_MIN, "short requests are padded too");
    }
}

/// Goal: never more in flight than credits, nor than slots. Method: a server with room for 3, who gives 2 at first.
#[test]
fn credits_and_window_limit_what_is_in_flight() {
    let mut pair = Pair::open(CONFIG, Server::new(4));
    for tag in 0..8 {
        pair.get(tag);
    }
    let operation = Operation::get(b"key");
    assert_eq!(pair.flow.push(pair.at(), operation, 8), Err(PushError::Full));
    assert_eq!(PushError::Full.to_string(), "all slots are in use");
    let sent = pair.sent();
    assert_eq!((sent.len(), pair.flow.in_flight(), pair.flow.ready()), (2, 2, 6));
    let replies = pair.serve(&sent);
    pair.receive(&replies[0]).unwrap();
    assert_eq!((pair.sent().len(), pair.flow.in_flight()), (2, 3));
    assert_eq!(pair.flow.push(pair.at(), operation, 8), Ok(()));
    assert_eq!(pair.flow.push(pair.at(), Operation::delete(b"key"), 9), Err(PushError::Full));
}

/// Goal: all 256 slots work, for which their number just fits a byte. Method: fill them all, twice.
#[test]
fn the_largest_window_works() {
    let mut server = Server::new(usize::MAX);
    server.config.memory_len_max = 1 << 20;
    let mut pair = Pair::open(FlowConfig { window: 256, operations_max: 1, ..CONFIG }, server);
    assert_eq!(pair.flow.info().unwrap().window, 256);
    for round in 0..2 {
        for tag in 0..256 {
            pair.put(round * 256 + tag);
        }
        assert_eq!(pair.flow.push(pair.at(), Operation::get(b"k"), 0), Err(PushError::Full));
        let sent = pair.sent().len();
        assert!(sent == 255 || round > 0, "credits count to 255; {sent} were sent");
        pair.now += 1;
        pair.advance(50 * MS);
        while !pair.flow.is_idle() {
            pair.settle();
            pair.advance(50 * MS);
        }
        assert!(pair.take_ends().iter().all(|end| end.1 == End::Done));
    }
    assert!(pair.server.effects.len() == 512 && pair.server.effects.values().all(|&times| times == 1));
}

/// Goal: what can not be sent is refused with its reason, and changes nothing.
#[test]
fn keys_and_values_out_of_range_are_refused() {
    let mut pair = Pair::new();
    let (long, value) = ([1; 256], vec![2; VALUE_LEN_MAX + 1]);
    for (operation, text) in [
        (Operation::get(b""), "key of 0 bytes: a key has 1..=255 bytes"),
        (Operation::get(&long), "key of 256 bytes: a key has 1..=255 bytes"),
        (Operation::put(b"key", &value), "value of 1048577 bytes: a value has 0..=1048576 bytes"),
    ] {
        assert_eq!(check_lengths(&operation).unwrap_err().to_string(), text);
        assert_eq!(pair.flow.push(pair.at(), operation, 1).unwrap_err().to_string(), text);
    }
    assert!(pair.flow.is_idle());
    pair.push(Operation::put(b"key", &value[..1_425]), 1);
    pair.flow.flush();
    assert!(pair.sent()[0].len() <= DATAGRAM_LEN_MAX);
}

/// Goal: the same bytes go again after the timeout, which doubles in silence, and only one request asks for all. Method:
/// a silent server, and the virtual times at which something is sent.
#[test]
fn in_silence_one_request_asks_again_and_the_timeout_doubles() {
    let mut pair = Pair::new();
    for tag in 0..3 {
        pair.put(tag);
    }
    let first = pair.sent();
    pair.advance(0);
    let start = pair.now;
    let mut times = vec![];
    while pair.now < start + 200 * MS {
        let next = pair.flow.next_timeout();
        assert!(next > pair.at(), "a client that sleeps until the next timeout does not spin");
        pair.advance(next.since(pair.at()).as_nanos() as u64);
        let sent = pair.sent();
        assert!(sent.len() <= 1, "one at a time");
        for datagram in sent {
            let original = &first[times.len() % 3];
            assert_eq!(datagram[..3], original[..3]);
            assert_eq!(datagram[3], 1 + (times.len() / 3) as u8, "the attempt");
            assert_eq!(datagram[4..], original[4..]);
            times.push((pair.now - start) / MS);
        }
    }
    let jittered = [5..=5, 12..=17, 26..=42, 56..=92, 116..=193];
    assert_eq!(times.len(), 5);
    assert!(jittered.iter().zip(&times).all(|(range, time)| range.contains(time)), "{times:?}");
    // The server speaks again: the backlog is sent without further ado.
    for reply in pair.serve(&first[..1]) {
        pair.receive(&reply).unwrap();
    }
    pair.advance(500 * MS);
    pair.settle();
    for _ in 0..2 {
        pair.advance(500 * MS);
        pair.settle();
    }
    assert_eq!(tags(&pair.take_ends()), [0, 1, 2]);
    assert_eq!(pair.server.effects.values().copied().max(), Some(1));
}

/// Goal: a request that three later ones have overtaken goes again before its timeout, once. Method: answer all but the
/// first.
#[test]
fn three_later_replies_make_a_request_go_again_early() {
    let mut pair = Pair::new();
    for tag in 0..5 {
        pair.get(tag);
    }
    let sent = pair.sent();
    let replies = pair.serve(&sent);
    pair.advance(100 * US);
    pair.receive(&replies[1]).unwrap();
    pair.receive(&replies[2]).unwrap();
    pair.advance(50 * US);
    assert!(pair.sent().is_empty(), "overtaken by two");
    pair.receive(&replies[3]).unwrap();
    pair.receive(&replies[4]).unwrap();
    let again = pair.sent();
    assert_eq!(again.len(), 1);
    assert_eq!(
        (header(&again[0]).common.slot, header(&again[0]).common.attempt),
        (header(&sent[0]).common.slot, 1)
    );
    assert_eq!(pair.flow.counters().early_retransmits, 1);
    assert!(pair.sent().is_empty());
    pair.receive(&replies[0]).unwrap();
    assert_eq!(tags(&pair.take_ends()), [0, 1, 2, 3, 4]);
    assert_eq!(pair.flow.counters().retransmits, 1);
}

/// Goal: while answers come, what waits behind others is not sent again. Method: five requests answered one at a time,
/// longer after they were sent than the timeout; then silence, and one goes again.
#[test]
fn an_answer_begins_the_wait_anew() {
    let mut pair = Pair::new();
    for tag in 0..20 {
        pair.get(tag);
        let sent = pair.sent();
        pair.advance(10 * US);
        for reply in pair.serve(&sent) {
            pair.receive(&reply).unwrap();
        }
    }
    for tag in 20..25 {
        pair.get(tag);
    }
    let sent = pair.sent();
    let replies = pair.serve(&sent);
    for reply in &replies[..4] {
        pair.advance(150 * US);
        assert!(pair.sent().is_empty(), "answers come");
        pair.receive(reply).unwrap();
    }
    assert!(pair.flow.next_timeout() >= pair.at() + CONFIG.rto_floor);
    pair.advance(pair.flow.next_timeout().since(pair.at()).as_nanos() as u64);
    let again = pair.sent();
    assert_eq!(again.len(), 1);
    assert_eq!(header(&again[0]).common.slot, header(&sent[4]).common.slot);
    assert_eq!(pair.flow.counters().retransmits, 1);
}

/// Goal: a server that stood still and answers in order after the probe does not look like a loss. Method: the answer to
/// the probe's first copy arrives first.
#[test]
fn an_answer_to_an_earlier_copy_proves_no_losses() {
    let mut pair = Pair::new();
    for tag in 0..5 {
        pair.get(tag);
    }
    let sent = pair.sent();
    let replies = pair.serve(&sent);
    pair.advance(6 * MS);
    assert_eq!(pair.sent().len(), 1, "the probe");
    for reply in &replies {
        pair.receive(reply).unwrap();
        assert!(pair.sent().is_empty());
    }
    assert_eq!(pair.flow.counters().early_retransmits, 0);
}

/// Goal: an operation that waits to be sent again, is answered, and whose slot is used again, does not make the new
/// request go twice. Method: just that.
#[test]
fn a_slot_used_again_is_not_sent_on_behalf_of_its_predecessor() {
    let mut pair = Pair::open(FlowConfig { window: 1, ..CONFIG }, Server::new(usize::MAX));
    pair.get(1);
    let sent = pair.sent();
    pair.advance(6 * MS);
    let replies = pair.serve(&sent);
    pair.receive(&replies[0]).unwrap();
    pair.get(2);
    assert_eq!(pair.sent().len(), 1);
    assert!(pair.sent().is_empty());

    // Nor does it go early because its predecessor's transmission was overtaken.
    let mut pair = Pair::new();
    for tag in 0..5 {
        pair.get(tag);
    }
    let sent = pair.sent();
    let replies = pair.serve(&sent);
    pair.advance(100 * US);
    pair.receive(&replies[1]).unwrap();
    pair.get(5);
    let next = pair.sent();
    assert_eq!(header(&next[0]).common.slot, header(&sent[1]).common.slot);
    pair.advance(200 * US);
    pair.receive(&replies[0]).unwrap();
    pair.receive(&replies[4]).unwrap();
    assert!(pair.sent().is_empty() && pair.flow.counters().early_retransmits == 0);
}

fn eight_gets(pair: &mut Pair) -> Vec<Vec<u8>> {
    for tag in 0..8u64 {
        pair.server.store.insert(tag.to_be_bytes().to_vec(), vec![tag as u8; 5]);
        pair.push(Operation::get(&tag.to_be_bytes()), tag);
    }
    pair.flow.flush();
    pair.sent()
}

fn eight_values() -> Vec<(u64, End)> {
    (0..8).map(|tag| (tag, End::Value(vec![tag as u8; 5]))).collect()
}

/// Goal: the datagrams of a reply may come in any order and more than once. Method: all 24 orders of four.
#[test]
fn a_reply_of_many_datagrams_is_put_together_in_any_order() {
    for order in 0..24 {
        let mut pair = Pair::new();
        pair.server.per_reply = 2;
        let sent = eight_gets(&mut pair);
        let mut replies = pair.serve(&sent);
        assert_eq!(replies.len(), 4);
        let mut code = order;
        while let Some(last) = replies.len().checked_sub(1) {
            let reply = replies.remove(code % (last + 1));
            code /= last + 1;
            assert!(!pair.flow.is_idle());
            pair.receive(&reply).unwrap();
            let again = pair.receive(&reply);
            assert_eq!(again, if last == 0 { Err(DropReason::Stale) } else { Ok(()) });
        }
        assert_eq!(pair.take_ends(), eight_values());
        assert!(pair.flow.is_idle());
    }
}

/// Goal: a single loss costs a timeout and two round trips at most. Method: requests one way and replies the other take
/// half a round trip each; after a warm-up one datagram is lost, alone in flight or among others, the request or the reply;
/// 2,000 such losses, of which 99 in 100 must be made good in time.
#[test]
fn a_single_loss_is_made_good_in_time() {
    const RTT: u64 = 40 * US;
    let seed = 11;
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut times = vec![];
    for _ in 0..2_000 {
        let mut pair = Pair::new();
        let in_flight = random.random_range(1..=8);
        let lost_at = random.random_range(100..110);
        let lose_request = random.random_bool(0.5);
        // Datagrams on the way: when they arrive, and whether they go to the server.
        let mut wire: Vec<(u64, bool, Vec<u8>)> = vec![];
        let (mut begun, mut pushed, mut number) = (HashMap::new(), 0, 0);
        let mut lost = None;
        while number < 130 || pair.ends.len() < pushed {
            while pushed < 130 && pushed - pair.ends.len() < in_flight {
                begun.insert(pushed as u64, pair.now);
                pair.get(pushed as u64);
                pushed += 1;
            }
            for datagram in pair.sent() {
                number += 1;
                if number == lost_at {
                    lost = Some(u64::from_be_bytes(datagram[26..34].try_into().unwrap()));
                }
                if number != lost_at || !lose_request {
                    wire.push((pair.now + RTT / 2, true, datagram));
                }
            }
            wire.sort_by_key(|(arrives, ..)| *arrives);
            let timer = pair.flow.next_timeout().max(pair.at()).as_nanos();
            let next = wire.first().map_or(timer, |(arrives, ..)| timer.min(*arrives));
            let ended = pair.ends.len();
            pair.advance(next - pair.now);
            while wire.first().is_some_and(|(arrives, ..)| *arrives <= pair.now) {
                let (_, to_server, datagram) = wire.remove(0);
                if !to_server {
                    pair.receive(&datagram).unwrap();
                    continue;
                }
                // The reply to the request that was counted as the lost one, unless the request was.
                let is_lost = lost.is_some_and(|tag| datagram[26..34] == tag.to_be_bytes())
                    && !lose_request
                    && datagram[3] == 0;
                for reply in pair.serve(&[datagram]).into_iter().filter(|_| !is_lost) {
                    wire.push((pair.now + RTT / 2, false, reply));
                }
            }
            for (tag, end) in &pair.ends[ended..] {
                assert_eq!(*end, End::NotFound);
                if Some(*tag) == lost {
                    times.push(pair.now - begun[tag]);
                }
            }
        }
    }
    times.sort_unstable();
    let (p99, longest) = (times[times.len() * 99 / 100], times[times.len() - 1]);
    println!("{} losses: p50 {}, p99 {p99}, longest {longest} ns", times.len(), times[times.len() / 2]);
    assert!(times.len() > 1_900 && times[0] > RTT, "the losses were met");
    // The timeout is at its floor of 200 µs: four times the deviation is below.
    assert!(p99 < 2 * RTT + 200 * US, "{p99} ns");
}

/// Goal: only what is missing is asked for again, under a new number, and late answers under the old one are ignored.
#[test]
fn what_is_missing_of_a_reply_is_asked_for_again() {
    let mut pair = Pair::new();
    pair.server.per_reply = 2;
    let sent = eight_gets(&mut pair);
    let replies = pair.serve(&sent);
    pair.receive(&replies[0]).unwrap();
    pair.receive(&replies[3]).unwrap();
    pair.advance(6 * MS);
    let again = pair.sent();
    assert_eq!((again.len(), header(&again[0]).count, header(&again[0]).seq.get()), (1, 4, 2));
    assert_eq!(pair.receive(&replies[1]), Err(DropReason::Stale));
    for reply in pair.serve(&again) {
        pair.receive(&reply).unwrap();
    }
    assert_eq!(pair.take_ends(), eight_values());
    assert!(pair.flow.is_idle() && pair.flow.in_flight() == 0);
}

/// Goal: what a reply had no room for is asked for at once, and only once however often that reply comes. Method: a server
/// that answers three of eight.
#[test]
fn what_a_reply_had_no_room_for_is_asked_for_at_once() {
    let mut pair = Pair::new();
    pair.server.results_max = 3;
    let sent = eight_gets(&mut pair);
    let replies = pair.serve(&sent);
    for _ in 0..10 {
        pair.receive(&replies[0]).unwrap();
    }
    assert_eq!(pair.flow.ready(), 1);
    let again = pair.sent();
    assert_eq!((again.len(), header(&again[0]).count), (1, 5));
    for reply in pair.serve(&again) {
        pair.receive(&reply).unwrap();
    }
    pair.settle();
    assert_eq!(pair.take_ends(), eight_values());
    // A server that never has room is not asked in a loop.
    pair.server.results_max = 0;
    let sent = eight_gets(&mut pair);
    let replies = pair.serve(&sent);
    pair.receive(&replies[0]).unwrap();
    assert!(pair.sent().is_empty());
}

/// Goal: only an answer to what is in flight, with its session's token, counts. Method: each field of a good reply wrong
/// in turn.
#[test]
fn replies_that_answer_nothing_are_ignored() {
    let mut pair = Pair::new();
    let sent = eight_gets(&mut pair);
    let reply = pair.serve(&sent).remove(0);
    let slot = usize::from(reply[2]);
    for (offset, byte, reason) in [
        (0, 0x27, DropReason::Version),
        (0, 0x16, DropReason::Checksum),
        (0, 0x1e, DropReason::Checksum),
        (0, 0x1f, DropReason::Unexpected),
        (1, 1, DropReason::Checksum),
        (2, 8, DropReason::Slot),
        (2, 255, DropReason::Slot),
        (2, (slot as u8 + 1) % 8, DropReason::Stale),
        (7, reply[7] + 1, DropReason::UnknownSession),
        (15, !reply[15], DropReason::UnknownSession),
        (19, 0, DropReason::Stale),
        (19, 2, DropReason::Stale),
        (20, 1, DropReason::Malformed),
        (20, 255, DropReason::Malformed),
        (21, 0, DropReason::Malformed),
        (21, 9, DropReason::Malformed),
        (21, 255, DropReason::Malformed),
    ] {
        let mut bad = reply.clone();
        bad[offset] = byte;
        assert_eq!(pair.receive(&bad), Err(reason), "byte {offset} = {byte}");
    }
    for len in 0..24 {
        assert_eq!(pair.receive(&reply[..len]), Err(DropReason::Truncated), "{len} bytes");
    }
    assert!(pair.ends.is_empty());
    pair.receive(&reply).unwrap();
    assert_eq!(pair.receive(&reply), Err(DropReason::Stale));
    assert_eq!(pair.take_ends(), eight_values());
}

/// Goal: results before a broken one count, and no operation ends twice. Method: a reply cut short, then whole; and one
/// whose broken part was answered before.
#[test]
fn a_broken_reply_ends_no_operation_twice() {
    let mut pair = Pair::new();
    pair.server.per_reply = 4;
    let sent = eight_gets(&mut pair);
    let replies = pair.serve(&sent);
    let cut = replies[0].len() - 7;
    assert_eq!(pair.receive(&replies[0][..cut]), Err(DropReason::Malformed));
    assert_eq!(tags(&pair.ends), [0, 1, 2]);
    pair.receive(&replies[1]).unwrap();
    let mut bad = replies[0].clone();
    let len = bad.len();
    bad[21] = 5;
    bad[len - 7..len - 5].copy_from_slice(&[0, 5]);
    bad.extend([0xff, 0xff]);
    assert_eq!(pair.receive(&bad), Err(DropReason::Malformed));
    assert_eq!(pair.take_ends(), eight_values());
    assert!(pair.flow.is_idle(), "all results were there, whatever followed them");
}

/// Goal: a server that answers only a part of a write can neither make the client panic nor make it write otherwise.
#[test]
fn part_of_a_writes_reply_makes_the_same_write_go_again() {
    let mut pair = Pair::new();
    for tag in 0..4u64 {
        pair.push(Operation::put(&[tag as u8], &[tag as u8]), tag);
    }
    pair.flow.flush();
    let sent = pair.sent();
    let reply = pair.serve(&sent).remove(0);
    let mut part = reply.clone();
    part[21] = 2;
    pair.receive(&part).unwrap();
    pair.advance(6 * MS);
    let again = pair.sent();
    assert_eq!((again.len(), again[0][3]), (1, 1));
    assert_eq!(again[0][4..], sent[0][4..]);
    pair.receive(&reply).unwrap();
    assert_eq!(pair.take_ends(), (0..4).map(|tag| (tag, End::Done)).collect::<Vec<_>>());
}

/// Goal: a session with checksums takes nothing without. Method: a good reply with the flag cleared.
#[test]
fn checksums_are_demanded_where_they_were_agreed() {
    let mut pair = Pair::open(FlowConfig { checksum: true, ..CONFIG }, Server::new(usize::MAX));
    let sent = eight_gets(&mut pair);
    let mut reply = pair.serve(&sent).remove(0);
    assert!(reply[1] & 1 == 1);
    reply[1] = 0;
    assert_eq!(pair.receive(&reply), Err(DropReason::Checksum));
    reply[1] = 1;
    pair.receive(&reply).unwrap();
    assert_eq!(pair.take_ends(), eight_values());
}

/// Goal: after the deadline reads and what was never sent had no effect, and writes that were sent are unknown. Method: a
/// silent server with three credits.
#[test]
fn the_deadline_ends_operations_truthfully() {
    let mut pair = Pair::open(CONFIG, Server::new(4));
    pair.get(0);
    pair.settle();
    assert_eq!(tags(&pair.take_ends()), [0], "now all three credits are known");
    pair.put(1);
    pair.get(2);
    pair.get(3);
    assert_eq!(pair.sent().len(), 3);
    pair.put(4);
    pair.get(5);
    pair.push(Operation::put(b"being filled", b""), 6);
    assert!(pair.sent().is_empty());
    for _ in 0..30 {
        pair.advance(100 * MS);
        pair.sent();
    }
    let late = End::NotExecuted(Reason::Deadline);
    let mut expected = vec![(1, End::Unknown)];
    expected.extend((2..=6).map(|tag| (tag, late.clone())));
    assert_eq!(pair.take_ends(), expected);
    assert!(pair.flow.is_idle() && pair.flow.in_flight() == 0 && pair.flow.ready() == 0);
    // The slots are good for more.
    pair.put(7);
    pair.settle();
    assert_eq!(pair.take_ends(), [(7, End::Done)]);
}

/// Goal: when the server has lost the session, writes in flight are unknown, and everything else goes into the next
/// session. Method: restart the server with requests in flight and ready.
#[test]
fn a_lost_session_is_replaced_and_reads_go_on_in_the_next() {
    let mut pair = Pair::open(CONFIG, Server::new(4));
    pair.get(1);
    pair.put(2);
    let sent = pair.sent();
    assert_eq!(sent.len(), 2);
    pair.put(3);
    pair.get(4);
    pair.server.restart();
    let answers = pair.serve(&sent);
    assert!(answers.iter().all(|answer| answer[0] == Kind::NO_SESSION.0));
    let mut forged = answers[0].clone();
    forged[15] ^= 1;
    let len = forged.len();
    write_trailer(&mut forged[..len]);
    assert_eq!(pair.receive(&forged), Err(DropReason::UnknownSession));
    assert!(pair.flow.is_open());
    pair.receive(&answers[0]).unwrap();
    assert_eq!(pair.receive(&answers[1]), Err(DropReason::UnknownSession));
    assert_eq!(pair.take_ends(), [(2, End::Unknown)]);
    assert!(!pair.flow.is_open() && pair.flow.in_flight() == 0);
    pair.settle();
    assert_eq!(pair.take_ends(), [(1, End::NotFound), (3, End::Done), (4, End::NotFound)]);
    assert_eq!((pair.flow.counters().sessions, pair.flow.info().unwrap().boot_id), (2, 2));
}

/// Goal: part of a read's results survives the loss of the session, and the rest is asked for in the next.
#[test]
fn a_read_answered_in_part_asks_the_next_session_for_the_rest() {
    let mut pair = Pair::new();
    pair.server.per_reply = 2;
    let sent = eight_gets(&mut pair);
    let replies = pair.serve(&sent);
    pair.receive(&replies[1]).unwrap();
    pair.server.restart();
    for answer in pair.serve(&sent) {
        pair.receive(&answer).unwrap();
    }
    pair.settle();
    let ends = pair.take_ends();
    assert_eq!(tags(&ends), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(ends.iter().filter(|end| end.1 == End::NotFound).count(), 6);
}

/// Goal: a next session with fewer slots ends what has no slot in it, and no more. Method: a restart with memory for two.
#[test]
fn a_next_session_with_a_smaller_window_ends_what_has_no_slot() {
    let mut pair = Pair::open(CONFIG, Server::new(4));
    for tag in 0..8 {
        if tag % 2 == 0 { pair.get(tag) } else { pair.put(tag) }
    }
    let sent = pair.sent();
    pair.server.config.memory_len_max = 1_600;
    pair.server.restart();
    for answer in pair.serve(&sent) {
        let _ = pair.receive(&answer);
    }
    pair.settle();
    let window = pair.flow.info().unwrap().window;
    assert!((1..8).contains(&window), "{window}");
    let ends = pair.take_ends();
    assert_eq!(tags(&ends), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(ends.iter().any(|end| end.1 == End::NotExecuted(Reason::SessionLost)));
    assert!(pair.flow.is_idle());
    for tag in 0..window.into() {
        pair.get(tag);
    }
    assert_eq!(pair.flow.push(pair.at(), Operation::get(b"k"), 0), Err(PushError::Full));
    // And back to a larger one.
    pair.settle();
    pair.take_ends();
    pair.server.config.memory_len_max = 1 << 20;
    pair.server.restart();
    pair.get(1);
    pair.settle();
    assert_eq!((pair.flow.info().unwrap().window, tags(&pair.take_ends())), (8, vec![1]));
    for tag in 0..8 {
        pair.put(tag);
    }
    pair.settle();
    assert!(pair.take_ends().len() == 8 && pair.flow.is_idle());
}

/// Goal: a next session with shorter datagrams ends the requests that its server would not take, at once and truthfully.
/// Method: a put that fills a datagram waits for the next session, whose path carries no OPEN above 1,232 bytes.
#[test]
fn a_next_session_with_shorter_datagrams_ends_what_is_too_long() {
    let mut pair = Pair::open(CONFIG, Server::new(64));
    pair.get(1);
    let sent = pair.sent();
    pair.server.restart();
    for answer in pair.serve(&sent) {
        pair.receive(&answer).unwrap();
    }
    pair.push(Operation::put(b"long", &[7; 1_300]), 2);
    pair.flow.flush();
    pair.put(3);
    while !pair.flow.is_open() {
        let sent: Vec<_> = pair.sent().into_iter().filter(|datagram| datagram.len() <= 1_232).collect();
        for answer in pair.serve(&sent) {
            pair.receive(&answer).unwrap();
        }
        pair.advance(10 * MS);
    }
    assert_eq!(pair.flow.info().unwrap().datagram_len, 1_232);
    pair.settle();
    assert_eq!(
        pair.take_ends(),
        [(1, End::NotFound), (2, End::NotExecuted(Reason::SessionLost)), (3, End::Done)]
    );
    assert!(pair.flow.is_idle());
}

/// Goal: the deadline of one long value does not stop another that shares a request with it, and a request given up
/// costs the credit. Method: two long puts, the second half a second later, whose begins are lost in one request.
#[test]
fn a_long_value_goes_on_when_another_of_its_request_is_given_up() {
    let mut pair = Pair::open(CONFIG, Server::new(64));
    let begun = pair.now;
    pair.push(Operation::put(b"a", &[1; 2_000]), 1);
    pair.now += 500 * MS;
    pair.push(Operation::put(b"b", &[2; 2_000]), 2);
    let sent = pair.sent();
    assert_eq!(sent.iter().map(|datagram| header(datagram).count).collect::<Vec<_>>(), [2]);
    while pair.now < begun + 2_000 * MS {
        pair.advance(100 * MS);
        if pair.ends.is_empty() {
            pair.sent();
        }
    }
    pair.advance(100 * MS);
    assert_eq!(pair.take_ends(), [(1, End::NotExecuted(Reason::Deadline))]);
    pair.get(3);
    let sent = pair.sent();
    assert_eq!(sent.len(), 1, "one request at a time until an answer gives credit");
    let first = header(&sent[0]);
    assert!(first.common.flags.contains(Flags::TRANSFER) && first.count == 1, "the other begins again");
}

/// Goal: no number of answers without a result is too many. Method: 70,000 of them.
#[test]
fn empty_answers_are_counted_without_end() {
    let mut pair = Pair::new();
    pair.get(1);
    let sent = pair.sent();
    let mut answer = pair.serve(&sent).remove(0);
    answer.truncate(size_of::<ReplyHeader>());
    for _ in 0..70_000 {
        assert_eq!(pair.receive(&answer), Err(DropReason::Malformed));
    }
    let answers = pair.serve(&sent);
    pair.receive(&answers[0]).unwrap();
    assert_eq!(pair.take_ends(), [(1, End::NotFound)]);
}

/// Goal: no write is sent into a session that may have expired, whether or not something is in flight in it. Method: let
/// half the lease pass without a word.
#[test]
fn a_stale_session_is_renewed_before_a_write_is_sent() {
    let mut pair = Pair::new();
    pair.now += 31_000 * MS;
    pair.put(1);
    pair.settle();
    assert_eq!((pair.take_ends(), pair.flow.counters().sessions), (vec![(1, End::Done)], 2));

    let mut pair =
        Pair::open(FlowConfig { timeout: Duration::from_secs(100), ..CONFIG }, Server::new(usize::MAX));
    pair.get(1);
    pair.sent();
    pair.now += 31_000 * MS;
    pair.put(2);
    assert!(pair.sent().is_empty());
    pair.server.restart();
    pair.advance(1);
    pair.settle();
    assert_eq!(pair.take_ends(), [(1, End::NotFound), (2, End::Done)]);
}

/// Goal: an idle session is kept alive by pings. Method: ten leases without an operation.
#[test]
fn an_idle_session_is_kept_alive() {
    let mut pair = Pair::new();
    for _ in 0..600 {
        pair.advance(1_000 * MS);
        let now = pair.at();
        pair.server.table.expire(now);
        pair.settle();
    }
    assert_eq!((pair.server.table.count(), pair.flow.counters().sessions), (1, 1));
    pair.put(1);
    pair.settle();
    assert_eq!((pair.take_ends(), pair.flow.counters().sessions), (vec![(1, End::Done)], 1));
}

#[test]
fn ping_and_statistics_are_answered_once() {
    let mut pair = Pair::new();
    pair.flow.ping();
    let sent = pair.sent();
    let answers = pair.serve(&sent);
    pair.advance(70 * US);
    pair.receive(&answers[0]).unwrap();
    assert_eq!(pair.flow.take_pong(), Some(Duration::from_micros(70)));
    assert_eq!(pair.flow.take_pong(), None);
    pair.flow.ask_statistics();
    let sent = pair.sent();
    let answers = pair.serve(&sent);
    let mut short = answers[0][..answers[0].len() - 8].to_vec();
    write_trailer(&mut short);
    pair.receive(&short).unwrap();
    let of_an_older_server = pair.flow.take_statistics().unwrap();
    assert_eq!(
        of_an_older_server[STAT_COUNT - 1],
        0,
        "what it does not know is 0, and the trailer is no counter"
    );
    pair.receive(&answers[0]).unwrap();
    assert_eq!(pair.flow.take_statistics().unwrap()[STAT_COUNT - 1], 42);
    assert!(pair.flow.take_statistics().is_none());
}

/// Goal: the cluster map is learned page by page, at the cost of those who asked for it only. Method: a map of three pages;
/// one unasked, all in turn, and each once more when the map is complete.
#[test]
fn a_map_is_taken_by_who_asked_for_it() {
    let member = |id| Member { id, addr: SocketAddr::new([10, 0, 0, id as u8].into(), 4_100), cores: 1 };
    let spec = ClusterSpec::new(3, Placement::Rendezvous, (0..40).map(member).collect()).unwrap();
    let server = Membership::new(spec.clone(), 7).unwrap();
    let page = |question: &[u8]| {
        let (ping, _) = Ping::ref_from_prefix(question).unwrap();
        let flags = Flags::CHECKSUM;
        let common = linerate_proto::wire::Common { kind: Kind::MAP_PAGE, flags, ..ping.common };
        let mut out = vec![0; DATAGRAM_LEN_MAX];
        let len = server.write_page(common, ping.echo, &mut out);
        out.truncate(len + TRAILER_LEN);
        write_trailer(&mut out);
        out
    };
    let mut pair = Pair::new();
    pair.flow.ping();
    let unasked = page(&pair.sent()[0]);
    assert_eq!(pair.receive(&unasked), Err(DropReason::Unexpected));
    assert!(pair.sent().is_empty());
    pair.flow.ask_cluster();
    let mut pages = vec![];
    while pair.flow.take_cluster().is_none_or(|learned| {
        assert_eq!(learned, spec);
        false
    }) {
        let [question] = &pair.sent()[..] else { panic!("one question after {} pages", pages.len()) };
        pages.push(page(question));
        pair.receive(pages.last().unwrap()).unwrap();
    }
    assert_eq!(pages.len(), 3);
    for late in &pages {
        assert_eq!(pair.receive(late), Err(DropReason::Unexpected));
    }
    assert!(pair.sent().is_empty() && pair.flow.take_cluster().is_none());
}

/// Goal: a server that has forgotten the session can say so to a question, too. Method: a ping into a session that the
/// server has closed is answered with NO_SESSION, after which the flow shakes hands again and its question is answered.
#[test]
fn a_question_finds_out_that_the_session_is_gone() {
    let mut pair = Pair::new();
    pair.server = Pair::new().server;
    pair.flow.ping();
    for _ in 0..20 {
        pair.settle();
        if pair.flow.take_pong().is_some() {
            return;
        }
        if pair.flow.is_open() {
            pair.flow.ping();
        }
        pair.advance(50 * MS);
    }
    panic!("no pong");
}

/// Goal: a client that sleeps until `next_timeout` sends a lost request again at once. Method: a request without an
/// answer, at its timeout.
#[test]
fn a_loss_noticed_is_due_now() {
    let mut pair = Pair::new();
    pair.put(1);
    assert_eq!(pair.sent().len(), 1);
    let (mut ends, mut due) = (vec![], pair.flow.next_timeout());
    for _ in 0..100 {
        // Some timeouts are for deadlines, which are looked at now and then.
        pair.flow.poll_timers(due, &mut collect(&mut ends));
        if pair.flow.has_urgent() {
            break;
        }
        due = pair.flow.next_timeout();
    }
    assert!(pair.flow.has_urgent() && pair.flow.next_timeout() <= due, "the retransmission waits to be sent");
    assert!(pair.flow.poll_transmit(due).is_some() && ends.is_empty());
}

/// Goal: CLOSE ends the session when nothing needs it any more, and the flow is silent afterwards.
#[test]
fn goodbye_waits_for_the_last_answer_and_is_the_last_word() {
    let mut pair = Pair::new();
    pair.put(1);
    pair.flow.say_goodbye();
    let sent = pair.sent();
    assert_eq!(sent.len(), 1, "the write first");
    for reply in pair.serve(&sent) {
        pair.receive(&reply).unwrap();
    }
    pair.settle();
    assert_eq!((pair.take_ends(), pair.server.table.count()), (vec![(1, End::Done)], 0));
    pair.advance(5_000 * MS);
    assert!(pair.sent().is_empty() && !pair.flow.is_open());

    let mut pair = Pair::new();
    pair.put(1);
    pair.sent();
    pair.put(2);
    let mut ends = vec![];
    pair.flow.abandon(&mut collect(&mut ends));
    assert_eq!(ends, [(1, End::Unknown), (2, End::NotExecuted(Reason::SessionLost))]);
    pair.flow.say_goodbye();
    pair.settle();
    assert_eq!(pair.server.table.count(), 0);
}

/// Goal: a server that is full is asked again no sooner than it says, and a session is opened once there is room.
#[test]
fn a_refusal_is_respected() {
    let mut server = Server::new(usize::MAX);
    server.config.memory_len_max = 0;
    server.restart();
    let mut pair = Pair { flow: Flow::new(CONFIG), server, now: 1_000 * MS, ends: vec![] };
    pair.settle();
    assert_eq!(pair.flow.refusal(), Some(RefusalReason::SESSIONS_FULL));
    assert!(!pair.flow.is_open());
    pair.advance(999 * MS);
    assert!(pair.sent().is_empty());
    pair.server.config.memory_len_max = 1 << 20;
    pair.server.restart();
    for _ in 0..20 {
        pair.advance(1_000 * MS);
        pair.settle();
    }
    assert_eq!(pair.flow.refusal(), None);
    assert!(pair.flow.is_open());
}

/// Goal: every message of the handshake may be lost. Method: lose the first `lost` datagrams of either direction.
#[test]
fn the_handshake_survives_losses_and_a_late_cookie_is_renewed() {
    for lost in 0..20 {
        let mut pair =
            Pair { flow: Flow::new(CONFIG), server: Server::new(usize::MAX), now: 1_000 * MS, ends: vec![] };
        let mut datagrams = 0;
        for _ in 0..1_000 {
            pair.advance(50 * MS);
            for datagram in pair.sent() {
                datagrams += 1;
                if datagrams <= lost {
                    continue;
                }
                for reply in pair.serve(&[datagram]) {
                    datagrams += 1;
                    if datagrams > lost + lost % 3 {
                        let _ = pair.receive(&reply);
                    }
                }
            }
        }
        assert!(pair.flow.is_open(), "{lost} lost");
        assert_eq!(pair.server.table.count(), 1, "{lost} lost");
    }
    // The cookie is of a server that has restarted since.
    let mut pair =
        Pair { flow: Flow::new(CONFIG), server: Server::new(usize::MAX), now: 1_000 * MS, ends: vec![] };
    let hello = pair.sent();
    let cookie = pair.serve(&hello);
    pair.server.restart();
    pair.receive(&cookie[0]).unwrap();
    assert_eq!(pair.receive(&cookie[0]), Err(DropReason::Unexpected));
    for _ in 0..100 {
        pair.advance(50 * MS);
        pair.settle();
    }
    assert!(pair.flow.is_open());
}

/// Goal: the session's datagrams are as long as the path carries, in both directions. Method: paths that lose all that is
/// longer than they carry, one way, the other, or both; how many opens it takes, and how long.
#[test]
fn the_path_is_probed_from_the_longest_datagram_on() {
    for (carried_out, carried_back, proven, opens) in [
        (1_472, 1_472, 1_472, 1),
        (1_471, 1_472, 1_452, 5),
        (1_472, 1_400, 1_392, 9),
        (1_300, 1_472, 1_232, 13),
        (1_232, 1_232, 1_232, 13),
    ] {
        let mut pair =
            Pair { flow: Flow::new(CONFIG), server: Server::new(1_000), now: 1_000 * MS, ends: vec![] };
        let (mut hellos, mut lens) = (0, vec![]);
        let mut longest = 0;
        for turn in 0..4_000 {
            if pair.flow.is_open() && turn % 10 == 0 && pair.flow.is_idle() {
                pair.push(Operation::get(&[turn as u8; 200]), turn);
                (0..20).for_each(|index| {
                    pair.push(Operation::put(&[turn as u8; 20], &[index; 130]), index.into())
                });
                pair.flow.flush();
            }
            for datagram in pair.sent() {
                hellos += u32::from(datagram[0] == Kind::HELLO.0);
                if datagram[0] == Kind::OPEN.0 {
                    lens.push(datagram.len());
                }
                if pair.flow.is_open() {
                    longest = longest.max(datagram.len());
                }
                if datagram.len() <= carried_out {
                    for reply in pair.serve(&[datagram]) {
                        if reply.len() <= carried_back {
                            let _ = pair.receive(&reply);
                        }
                    }
                }
            }
            pair.advance(MS);
        }
        assert_eq!(pair.flow.info().map(|info| info.datagram_len), Some(proven));
        assert_eq!((hellos, lens.len()), (1, opens), "{lens:?}");
        assert!(lens.is_sorted_by(|a, b| a >= b) && lens.ends_with(&[proven]), "{lens:?}");
        assert!((1_100..=proven).contains(&longest), "requests of {longest} bytes");
        let counters = pair.flow.counters();
        assert!(counters.requests > 100 && counters.retransmits == 0, "{counters:?}");
    }
}

/// Goal: a session with another core than the one asked is not taken, whoever says it is from there. Method: a flow that
/// is meant for core 1, and a server that is core 0.
#[test]
fn another_cores_session_is_not_taken() {
    let config = FlowConfig { core: Some(1), ..CONFIG };
    let mut pair =
        Pair { flow: Flow::new(config), server: Server::new(1_000), now: 1_000 * MS, ends: vec![] };
    pair.settle();
    assert!(!pair.flow.is_open());
    let pair = Pair::open(FlowConfig { core: None, ..CONFIG }, Server::new(1_000));
    assert!(pair.flow.is_open(), "any core's, when it is not known which");
}

/// Goal: an answer to the first OPEN that comes after a shorter one was sent does not make the client send more than the
/// server takes. Method: hold the answers to the longer OPENs back until a shorter one is out.
#[test]
fn a_late_opened_is_believed_only_as_far_as_the_server_keeps_to_it() {
    let mut pair =
        Pair { flow: Flow::new(CONFIG), server: Server::new(1_000), now: 1_000 * MS, ends: vec![] };
    let mut held = vec![];
    let mut shortest = usize::MAX;
    while shortest > 1_452 {
        for datagram in pair.sent() {
            let is_open = datagram[0] == Kind::OPEN.0;
            let replies = pair.serve(std::slice::from_ref(&datagram));
            if is_open {
                shortest = shortest.min(datagram.len());
                held.extend(replies);
            } else {
                replies.iter().for_each(|reply| pair.receive(reply).unwrap());
            }
        }
        pair.advance(MS);
    }
    pair.receive(&held[0]).unwrap();
    assert_eq!(pair.flow.info().map(|info| info.datagram_len), Some(1_452));
    (0..50).for_each(|index| pair.push(Operation::put(&[index; 20], &[index; 130]), index.into()));
    pair.flow.flush();
    pair.settle();
    assert!(pair.take_ends().iter().all(|(_, end)| *end == End::Done));
    assert_eq!(pair.flow.counters().retransmits, 0);
}

/// Goal: each handshake of a client is of a later generation, and none of another client. Method: sessions that end, one
/// after the other.
#[test]
fn generations_grow_with_each_handshake() {
    let config = FlowConfig { seed: nonce_of(77, u64::from(u32::MAX)), ..CONFIG };
    let mut pair = Pair::open(config, Server::new(1_000));
    for sessions in 2..10 {
        pair.server.table = SessionTable::new(pair.server.config);
        pair.get(1);
        let mut nonces = vec![];
        for _ in 0..20 {
            pair.advance(20 * MS);
            for datagram in pair.sent() {
                if let Ok((hello, _)) = Hello::ref_from_prefix(&datagram)
                    && hello.common.kind == Kind::HELLO
                {
                    nonces.push((client_id(&hello.nonce), generation(&hello.nonce)));
                }
                for reply in pair.serve(&[datagram]) {
                    let _ = pair.receive(&reply);
                }
            }
        }
        assert_eq!(nonces, [(77, u64::from(u32::MAX) + sessions - 1)]);
        assert_eq!(pair.flow.counters().sessions, sessions);
    }
}

/// One seed of the model: random operations over a lossy, duplicating, reordering link, with restarts, expiries, short
/// replies and a silent phase; then a good link until nothing is left.
fn model(seed: u64) -> u64 {
    let mut rng = SmallRng::seed_from_u64(seed);
    let config = FlowConfig {
        window: rng.random_range(1..=12),
        operations_max: rng.random_range(1..=9),
        checksum: rng.random(),
        timeout: Duration::from_millis(rng.random_range(20..400)),
        ..CONFIG
    };
    let mut server = Server::new(rng.random_range(1..40));
    server.per_reply = rng.random_range(1..=9);
    server.results_max = rng.random_range(1..=9);
    let mut pair =
        Pair { flow: Flow::new(config), server, now: rng.random_range(0..1_000 * MS), ends: vec![] };
    let (loss, duplication) = (rng.random_range(0.0..0.3), rng.random_range(0.0..0.3));
    let (restarts, delay_max) = (rng.random_bool(0.3), rng.random_range(10 * US..5 * MS));
    // Datagrams on their way: when they arrive, whether at the server, and their bytes.
    let mut link: Vec<(u64, bool, Vec<u8>)> = vec![];
    let mut writes: HashMap<u64, bool> = HashMap::new();
    let mut tag = 0;
    for step in 0..4_000 {
        let healed = step >= 600;
        if !healed {
            for _ in 0..rng.random_range(0..4) {
                let put: bool = rng.random();
                let key = [rng.random_range(0..20u8)];
                let value = u64::to_be_bytes(tag);
                let operation = if put { Operation::put(&key, &value) } else { Operation::get(&key) };
                if pair.flow.push(pair.at(), operation, tag).is_ok() {
                    writes.insert(tag, put);
                    tag += 1;
                }
            }
            if restarts && rng.random_bool(0.005) {
                pair.server.restart();
            }
        }
        if rng.random_bool(0.5) {
            pair.flow.flush();
        }
        let mut outgoing: Vec<_> = pair.sent().into_iter().map(|datagram| (true, datagram)).collect();
        let now = pair.now;
        let (arrived, later) = link.into_iter().partition(|datagram| datagram.0 <= now);
        link = later;
        let mut arrived: Vec<(u64, bool, Vec<u8>)> = arrived;
        arrived.sort_by_key(|datagram| datagram.0);
        for (_, to_server, datagram) in arrived {
            if to_server {
                outgoing.extend(pair.serve(&[datagram]).into_iter().map(|reply| (false, reply)));
            } else {
                let _ = pair.receive(&datagram);
            }
        }
        for (to_server, datagram) in outgoing {
            if !healed && rng.random_bool(loss) {
                continue;
            }
            let copies = if !healed && rng.random_bool(duplication) { 2 } else { 1 };
            for _ in 0..copies {
                // Some copies come very late, when their slot has long moved on.
                let late = if !healed && rng.random_bool(0.02) { 50 * MS } else { 0 };
                let delay = if healed { 10 * US } else { rng.random_range(0..delay_max) + late };
                link.push((pair.now + delay, to_server, datagram.clone()));
            }
        }
        pair.advance(rng.random_range(0..400 * US) * if step > 3_000 { 100 } else { 1 });
        if healed && step > 700 && pair.flow.is_idle() && link.is_empty() && pair.flow.is_open() {
            break;
        }
    }
    assert!(pair.flow.is_idle() && pair.flow.in_flight() == 0, "something never ended");
    let ends = pair.take_ends();
    assert_eq!(tags(&ends), (0..tag).collect::<Vec<_>>(), "each operation ends exactly once");
    for (tag, end) in &ends {
        let times = pair.server.effects.get(&tag.to_be_bytes()[..]).copied().unwrap_or(0);
        match (writes[tag], end) {
            (true, End::Done) => assert_eq!(times, 1, "write {tag} took effect {times} times"),
            (true, End::Unknown) => assert!(times <= 1, "write {tag} took effect {times} times"),
            (true, End::NotExecuted(_)) => assert_eq!(times, 0, "write {tag} took effect"),
            (
                false,
                End::Value(_) | End::NotFound | End::NotExecuted(Reason::Deadline | Reason::SessionLost),
            ) => {}
            unexpected => panic!("operation {tag}: {unexpected:?}"),
        }
    }
    // The link is good again, so is the flow. The read comes first, to meet the server that has restarted in the meantime.
    pair.get(u64::MAX - 1);
    pair.settle();
    pair.put(u64::MAX);
    pair.settle();
    assert_eq!(pair.take_ends(), [(u64::MAX - 1, End::NotFound), (u64::MAX, End::Done)]);
    tag
}

/// Goal: every operation ends exactly once and truthfully, and writes take effect at most once, whatever the link does.
/// Method: 200 seeds of the model; a failing one is printed, and `model(seed)` replays it.
#[test]
fn operations_end_once_and_writes_take_effect_once_over_a_bad_link() {
    let mut operations = 0;
    for seed in 0..200 {
        let outcome = std::panic::catch_unwind(|| model(seed));
        operations += outcome.unwrap_or_else(|_| panic!("seed {seed}"));
    }
    assert!(operations > 30_000, "only {operations} operations");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: no bytes can make the client panic, nor end an operation twice. Method: valid answers, each with some bytes
    /// changed and its length cut, with and without a valid trailer, before the answer itself.
    #[test]
    fn mutated_answers_never_panic(
        mutations in proptest::collection::vec((0usize..120, any::<u8>(), any::<bool>(), 0usize..200), 1..40),
        seed: u64,
    ) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let config = FlowConfig { operations_max: 255, timeout: Duration::from_millis(50), ..CONFIG };
        let mut pair = Pair { flow: Flow::new(config), server: Server::new(100), now: 0, ends: vec![] };
        pair.server.per_reply = rng.random_range(1..255);
        pair.server.results_max = rng.random_range(1..300);
        let mut tag = 0;
        for (offset, byte, sealed, cut) in mutations {
            for _ in 0..rng.random_range(0..300) {
                let value = u64::to_be_bytes(tag);
                let operation = if rng.random() { Operation::put(b"k", &value) } else { Operation::get(b"k") };
                tag += u64::from(pair.flow.push(pair.at(), operation, tag).is_ok());
            }
            pair.flow.flush();
            let sent = pair.sent();
            for answer in pair.serve(&sent) {
                for repeat in 0..3 {
                    let mut bad = answer.clone();
                    bad.truncate(bad.len() - cut.min(bad.len()) * usize::from(rng.random_bool(0.3)));
                    // Mostly in the header, past what names the session.
                    let offset = if repeat == 0 { offset } else { 16 + offset % 12 };
                    if let Some(at) = bad.get_mut(offset) {
                        *at = byte;
                    }
                    if sealed && bad.len() >= 20 {
                        bad[1] |= 1;
                        write_trailer(&mut bad);
                    }
                    let _ = pair.receive(&bad);
                }
                if rng.random() {
                    let _ = pair.receive(&answer);
                }
            }
            pair.advance(rng.random_range(0..10 * MS));
        }
        let mut ends = std::mem::take(&mut pair.ends);
        pair.flow.abandon(&mut collect(&mut ends));
        let mut ended = tags(&ends);
        ended.sort_unstable();
        prop_assert_eq!(ended, (0..tag).collect::<Vec<_>>());
        prop_assert!(pair.flow.in_flight() == 0);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..16) {
        let mut pair = Pair::new();
        pair.get(1);
        pair.sent();
        let mut bytes = bytes;
        let _ = pair.receive(&bytes);
        if bytes.len() >= 20 {
            bytes[0] = 0x10 | kind;
            bytes[1] |= 1;
            write_trailer(&mut bytes);
            prop_assert!(pair.receive(&bytes).is_err());
        }
        prop_assert!(pair.flow.is_open());
    }
}

/// Goal: the layouts that the tests above poke into are where they think. Method: literal offsets.
#[test]
fn offsets_are_those_of_the_layout() {
    let mut reply = ReplyHeader::new_zeroed();
    reply.seq = 0x0102_0304.into();
    (reply.first, reply.count, reply.credit) = (5, 6, 7);
    assert_eq!(reply.as_bytes()[16..23], [1, 2, 3, 4, 5, 6, 7]);
}
