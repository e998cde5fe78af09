//! What strangers and broken clients may send: nothing of it may do more than move a counter.
//!
//! The worker alone over a simulated link takes the volume; raw UDP and TCP sockets take a real server through the
//! same. Every test ends with a normal client that is served as if nothing had been.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    time::{Duration, Instant as SystemInstant},
};

use linerate_client::{Client, Outcome, Session, SessionConfig};
use linerate_dataplane::{
    Peer, Port,
    pin::allowed_cores,
    sim::{Faults, SimNetwork, SimPort},
};
use linerate_proto::{
    DropReason, Instant, Key,
    cluster::{ClusterSpec, Member, Membership},
    placement::{Owner, Placement},
    session,
    wire::{
        self, Common, Condition, CookieReply, DATAGRAM_LEN_MAX, Flags, Hello, Kind, NoSession, OpResult,
        Open, Opened, Operation, Ping, Range, Reason, ReplyHeader, RequestHeader, Results, STAT_COUNT,
        STAT_NAMES, Statistic, TRAILER_LEN, Terms,
    },
};
use linerate_server::{
    Server, ServerConfig,
    stats::{self, Published, accounted},
    store::{AtCapacity, Store},
    worker::Worker,
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const SERVER: ([u8; 4], u16) = ([10, 0, 0, 1], 4_100);

/// Cap on the memory of the simulated server's sessions.
const SESSIONS_LEN_MAX: usize = 64 << 10;

/// Lease of the simulated server's sessions.
const LEASE: Duration = Duration::from_secs(60);

// ---- datagrams made by hand ----

const fn common(kind: Kind, flags: Flags) -> Common {
    Common {
        kind,
        flags,
        slot: 0,
        attempt: 0,
        session: zerocopy::network_endian::U32::ZERO,
        token: zerocopy::network_endian::U64::ZERO,
    }
}

fn sealed<M: IntoBytes + zerocopy::Immutable>(message: &M) -> Vec<u8> {
    let mut out = vec![0; size_of::<M>() + TRAILER_LEN];
    wire::seal(message, &mut out);
    out
}

fn hello(nonce: u8) -> Vec<u8> {
    let common = common(Kind::HELLO, Flags::CHECKSUM);
    sealed(&Hello { common, nonce: [nonce; 16], ..Hello::new_zeroed() })
}

fn open(nonce: u8, cookie: wire::Cookie, window: u16, checksum: bool) -> Vec<u8> {
    let common = common(Kind::OPEN, Flags::CHECKSUM);
    let (window, checksum) = (window.into(), checksum.into());
    let request = Open { common, nonce: [nonce; 16], cookie, window, checksum, ..Open::new_zeroed() };
    let mut out = vec![0; DATAGRAM_LEN_MAX];
    wire::seal_padded(&request, DATAGRAM_LEN_MAX, &mut out);
    out
}

/// A session opened by hand.
#[derive(Clone, Copy, Debug)]
struct Speaker {
    session: u32,
    token: u64,
    checksum: bool,
    epoch: u16,
}

impl Speaker {
    /// Shakes hands; `ask` sends a datagram and returns its answer. `None` when the server has no room.
    fn open(nonce: u8, window: u16, checksum: bool, mut ask: impl FnMut(&[u8]) -> Vec<u8>) -> Option<Self> {
        let reply = ask(&hello(nonce));
        let (cookie, _) = CookieReply::ref_from_prefix(&reply).unwrap();
        assert_eq!(cookie.common.kind, Kind::COOKIE);
        let reply = ask(&open(nonce, cookie.cookie, window, checksum));
        let (opened, _) = Opened::ref_from_prefix(&reply).ok()?;
        assert_eq!(opened.common.kind, Kind::OPENED);
        Some(Self {
            session: opened.common.session.get(),
            token: opened.common.token.get(),
            checksum: opened.checksum == 1,
            epoch: opened.epoch.get(),
        })
    }

    fn common(&self, kind: Kind, flags: Flags) -> Common {
        let flags = flags.with(Flags::CHECKSUM.when(self.checksum));
        Common { session: self.session.into(), token: self.token.into(), ..common(kind, flags) }
    }

    /// Appends the trailer if the session has one.
    fn finish(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if self.checksum {
            bytes.extend([0; TRAILER_LEN]);
            wire::write_trailer(&mut bytes);
        }
        bytes
    }

    /// A request of bytes that need not be operations.
    fn raw(&self, slot: u8, seq: u32, read_only: bool, count: u8, body: &[u8]) -> Vec<u8> {
        let common = Common { slot, ..self.common(Kind::REQUEST, Flags::READ_ONLY.when(read_only)) };
        let header = RequestHeader { common, seq: seq.into(), count, epoch: self.epoch.into(), spare: 0 };
        self.finish([header.as_bytes(), body].concat())
    }

    fn request(&self, slot: u8, seq: u32, operations: &[Operation<'_>]) -> Vec<u8> {
        self.raw(slot, seq, operations[0].is_read(), operations.len() as u8, &body(operations))
    }

    fn ranges(&self, slot: u8, seq: u32, ranges: &[Range<'_>]) -> Vec<u8> {
        let flags = Flags::TRANSFER.with(Flags::READ_ONLY);
        let common = Common { slot, ..self.common(Kind::REQUEST, flags) };
        let (count, epoch) = (ranges.len() as u8, self.epoch.into());
        let mut request =
            RequestHeader { common, seq: seq.into(), count, epoch, spare: 0 }.as_bytes().to_vec();
        for range in ranges {
            let mut out = [0; 300];
            let len = range.write(&mut out).unwrap();
            request.extend_from_slice(&out[..len]);
        }
        self.finish(request)
    }

    fn control(&self, kind: Kind) -> Vec<u8> {
        let ping = Ping { common: self.common(kind, Flags::NONE), echo: 7.into() };
        self.finish(ping.as_bytes().to_vec())
    }

    /// One valid datagram of each kind that names this session.
    fn valid(&self) -> Vec<Vec<u8>> {
        vec![
            self.request(0, 1, &[Operation::put(b"key", b"value"), Operation::delete(b"other")]),
            self.request(1, 1, &[Operation::get(b"key"), Operation::get(b"other")]),
            self.control(Kind::PING),
            self.control(Kind::STATS),
            self.control(Kind::MAP),
            self.control(Kind::CLOSE),
        ]
    }

    /// Datagrams that must be dropped, each with why; `NO_SESSION` is the only answer that any may get.
    fn bad(&self) -> Vec<(&'static str, Vec<u8>, DropReason)> {
        let get = [Operation::get(b"key")];
        let mixed = body(&[Operation::get(b"key"), Operation::put(b"key", b"value")]);
        let other_token = Self { token: self.token ^ 1, ..*self };
        let other_session = Self { session: self.session + 1_000, ..*self };
        let last_session = Self { session: u32::MAX, ..*self };
        let with_kind = |mut bytes: Vec<u8>, kind: u8| {
            bytes[0] = kind;
            if bytes[1] & 1 == 1 {
                wire::write_trailer(&mut bytes);
            }
            bytes
        };
        let mut wrong_sum = self.control(Kind::PING);
        wrong_sum[1] |= 1;
        let last = wrong_sum.len() - 1;
        wrong_sum[last] ^= 1;
        let mut unflagged = hello(9);
        unflagged[1] = 0;
        vec![
            ("a single byte", vec![Kind::REQUEST.0], DropReason::Truncated),
            ("a header cut off", vec![Kind::REQUEST.0; 15], DropReason::Truncated),
            ("zeros", vec![0; 64], DropReason::Version),
            ("version 2", with_kind(self.request(0, 1, &get), 0x26), DropReason::Version),
            ("version 15", with_kind(hello(9), 0xf1), DropReason::Version),
            ("kind 0", with_kind(hello(9), 0x10), DropReason::Kind),
            ("kind 15", with_kind(self.control(Kind::PING), 0x1f), DropReason::Kind),
            ("a reply", with_kind(self.request(0, 1, &get), Kind::REPLY.0), DropReason::Kind),
            ("a cookie", with_kind(hello(9), Kind::COOKIE.0), DropReason::Kind),
            ("an opened", with_kind(hello(9), Kind::OPENED.0), DropReason::Kind),
            ("a no-session", with_kind(self.control(Kind::PING), Kind::NO_SESSION.0), DropReason::Kind),
            ("a wrong sum", wrong_sum, DropReason::Checksum),
            ("a hello without a sum", unflagged, DropReason::Checksum),
            ("a made-up cookie", open(9, [9; 16], 1, false), DropReason::Cookie),
            ("a wrong token", other_token.request(0, 1, &get), DropReason::UnknownSession),
            ("a wrong token in a ping", other_token.control(Kind::PING), DropReason::UnknownSession),
            ("a wrong token in a goodbye", other_token.control(Kind::CLOSE), DropReason::UnknownSession),
            ("an unknown session", other_session.request(0, 1, &get), DropReason::UnknownSession),
            ("the last session", last_session.control(Kind::STATS), DropReason::UnknownSession),
            ("a slot beyond the window", self.request(8, 1, &get), DropReason::Slot),
            ("the last slot", self.request(255, 1, &get), DropReason::Slot),
            ("sequence number 0", self.request(2, 0, &get), DropReason::Stale),
            ("no operations", self.raw(2, 1, true, 0, &body(&get)), DropReason::Malformed),
            ("fewer operations than said", self.raw(2, 1, true, 2, &body(&get)), DropReason::Malformed),
            ("a body without operations", self.raw(2, 1, false, 255, &[]), DropReason::Malformed),
            ("a read with a write", self.raw(2, 1, true, 2, &mixed), DropReason::Malformed),
            ("a write with a read", self.raw(2, 1, false, 2, &mixed), DropReason::Malformed),
            ("an unknown opcode", self.raw(2, 1, true, 1, b"\x04\x01k"), DropReason::Malformed),
            ("an option set", self.raw(2, 1, true, 1, b"\x11\x01k"), DropReason::Malformed),
            ("an option of puts in a delete", self.raw(2, 1, false, 1, b"\x23\x01k"), DropReason::Malformed),
            ("an unknown condition", self.raw(2, 1, false, 1, b"\x82\x01\x00\x00k"), DropReason::Malformed),
            (
                "a time to live of nothing",
                self.raw(2, 1, false, 1, b"\x12\x01\x00\x00\x00\x00\x00\x00k"),
                DropReason::Malformed,
            ),
            (
                "a version that no value has",
                self.raw(2, 1, false, 1, b"\x62\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00k"),
                DropReason::Malformed,
            ),
            (
                "an add on a condition",
                self.raw(2, 1, false, 1, b"\x28\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01k"),
                DropReason::Malformed,
            ),
            ("a delta cut off", self.raw(2, 1, false, 1, b"\x08\x01\x00\x00\x00"), DropReason::Malformed),
            (
                "an add in a read",
                self.raw(2, 1, true, 1, &body(&[Operation::add(b"k", 1, None)])),
                DropReason::Malformed,
            ),
            ("an empty key", self.raw(2, 1, true, 1, b"\x01\x00k"), DropReason::Malformed),
            ("a key cut off", self.raw(2, 1, true, 1, b"\x01\xffk"), DropReason::Malformed),
            ("a value cut off", self.raw(2, 1, false, 1, b"\x02\x01\xff\xffk"), DropReason::Malformed),
        ]
    }
}

fn body(operations: &[Operation<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for operation in operations {
        let mut out = [0; 2_048];
        let len = operation.write(&mut out).expect("longer than any operation");
        body.extend(&out[..len]);
    }
    body
}

/// The results of one reply datagram, in words.
fn results(reply: &[u8]) -> Vec<String> {
    let (_, body) = wire::open(reply).unwrap();
    let (header, _) = ReplyHeader::ref_from_prefix(reply).unwrap();
    assert_eq!(header.common.kind, Kind::REPLY);
    let body = &body[size_of::<ReplyHeader>() - size_of::<Common>()..];
    Results::new(body, header.count, header.common.flags)
        .map(|result| format!("{:?}", result.unwrap().0))
        .collect()
}

fn word(result: OpResult<'_>) -> String {
    format!("{result:?}")
}

/// Changes a valid datagram in up to three ways; half of the time the checksum is made right afterwards, so that what
/// lies behind it is reached.
fn mutated(random: &mut StdRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.random_range(0..corpus.len())].clone();
    for _ in 0..random.random_range(1..=3) {
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..8) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 => bytes[at % 24] = random.random(),
            3 => bytes[0] = 0x10 | random.random_range(0..16),
            4 => bytes.truncate(at.max(1)),
            5 => bytes.resize(random.random_range(bytes.len()..=1_600), 0),
            6 => {
                let other = &corpus[random.random_range(0..corpus.len())];
                let cut = at.min(other.len());
                bytes.truncate(at.max(1));
                bytes.extend(&other[cut..]);
            }
            _ => {
                bytes = vec![0; random.random_range(1..1_600)];
                random.fill_bytes(&mut bytes);
            }
        }
        bytes.truncate(1_600);
    }
    if bytes.len() >= 20 && random.random_bool(0.5) {
        bytes[1] |= Flags::CHECKSUM.0;
        wire::write_trailer(&mut bytes);
    }
    bytes
}

// ---- the worker over a simulated link ----

struct Sim {
    network: SimNetwork,
    worker: Worker,
    port: SimPort,
    published: Published,
    peers: HashMap<SocketAddr, SimPort>,
}

impl Sim {
    fn new() -> Self {
        Self::with(1, 1 << 20)
    }

    /// A server of so many cores, of which this is the first.
    fn with(cores: u8, store_len: usize) -> Self {
        Self::of(Membership::alone(cores), store_len)
    }

    /// The first core of a node.
    fn of(cluster: Membership, store_len: usize) -> Self {
        let network = SimNetwork::new(0, Faults::NONE);
        let port = network.port(SERVER.into()).unwrap();
        let published = Published::default();
        let sessions = session::SessionConfig {
            secret: [7; 16],
            boot_id: 1,
            data_epoch: 1,
            base_port: SERVER.1,
            cores: cluster.member().cores,
            core: 0,
            epoch: cluster.spec().epoch(),
            map_digest: cluster.spec().digest(),
            node_id: cluster.member().id,
            memory_len_max: SESSIONS_LEN_MAX,
            staging_len_max: 4 << 20,
            lease: LEASE,
            queue_datagrams: 4_096,
        };
        let store = Store::new(store_len, AtCapacity::Refuse, [1, 2, 3, 4]).unwrap();
        let worker = Worker::new(store, sessions, Arc::new(cluster), published.clone());
        Self { network, worker, port, published, peers: HashMap::new() }
    }

    fn send(&mut self, from: SocketAddr, datagram: &[u8]) {
        let network = &self.network;
        let port = self.peers.entry(from).or_insert_with(|| network.port(from).unwrap());
        let slot = port.split().1.begin(&Peer::datagram(SERVER.into()), datagram.len()).unwrap();
        slot.bytes[..datagram.len()].copy_from_slice(datagram);
        port.split().1.commit(datagram.len());
        port.tx_flush().unwrap();
    }

    /// Lets what was sent arrive and be answered.
    fn serve(&mut self) {
        self.network.advance(Duration::from_micros(10));
        let now = Instant::from_nanos(self.network.now().as_nanos() as u64);
        while self.worker.turn(&mut self.port, || now).unwrap() > 0 {}
        self.network.advance(Duration::from_micros(10));
    }

    /// What has arrived at an address.
    fn received(&mut self, at: SocketAddr) -> Vec<Vec<u8>> {
        let port = self.peers.get_mut(&at).unwrap();
        let mut all = Vec::new();
        while port.rx_burst().unwrap() > 0 {
            all.extend(port.split().0.iter().map(|datagram| datagram.bytes.to_vec()));
        }
        all
    }

    fn exchange(&mut self, from: SocketAddr, datagram: &[u8]) -> Vec<Vec<u8>> {
        self.send(from, datagram);
        self.serve();
        self.received(from)
    }

    /// The only answer to a datagram.
    fn ask(&mut self, from: SocketAddr, datagram: &[u8]) -> Vec<u8> {
        let mut answers = self.exchange(from, datagram);
        assert_eq!(answers.len(), 1, "answers to {datagram:?}");
        answers.remove(0)
    }

    fn speaker(&mut self, at: SocketAddr, nonce: u8) -> Speaker {
        Speaker::open(nonce, 8, false, |datagram| self.ask(at, datagram)).unwrap()
    }

    /// The next generation of nonce 1, with an OPEN of so many bytes.
    fn narrow_speaker(&mut self, at: SocketAddr, datagram_len: usize) -> Speaker {
        let mut cookie = hello(1);
        cookie[31] = 2;
        wire::write_trailer(&mut cookie);
        let answer = self.ask(at, &cookie);
        let (reply, _) = CookieReply::ref_from_prefix(&answer).unwrap();
        let mut request = open(1, reply.cookie, 8, false);
        request[31] = 2;
        request.truncate(datagram_len);
        wire::write_trailer(&mut request);
        let answer = self.ask(at, &request);
        assert_eq!(answer.len(), datagram_len);
        let (opened, _) = Opened::ref_from_prefix(&answer).unwrap();
        let (session, token) = (opened.common.session.get(), opened.common.token.get());
        Speaker { session, token, checksum: true, epoch: opened.epoch.get() }
    }

    fn stats(&mut self) -> [u64; STAT_COUNT] {
        self.worker.publish(&self.port.counters(), self.network.now());
        self.published.values()
    }

    fn drops(&mut self) -> Vec<u64> {
        drops(&self.stats())
    }

    /// A normal client at an address of its own puts, gets and leaves.
    fn serves_a_normal_client(&mut self) {
        let port = self.network.port(([10, 9, 9, 9], 9_999).into()).unwrap();
        let mut session = Session::attach(port, &[SERVER.into()], SessionConfig::default(), 1);
        let mut pushed = 0;
        let mut outcomes = Vec::new();
        for _ in 0..1_000 {
            let now = Instant::from_nanos(self.network.now().as_nanos() as u64);
            if session.is_open() && pushed == outcomes.len() {
                let operation =
                    if pushed == 0 { Operation::put(b"normal", b"value") } else { Operation::get(b"normal") };
                session.push(now, operation, 0).unwrap();
                pushed += 1;
            }
            session
                .flush(now, &mut |linerate_client::Ended { outcome, .. }| {
                    outcomes.push(matches!(outcome, Outcome::Done | Outcome::Value(b"value")))
                })
                .unwrap();
            if outcomes.len() == 2 {
                break;
            }
            self.serve();
        }
        assert_eq!(outcomes, [true, true], "a normal client is served");
        drop(session);
        self.serve();
        let stats = self.stats();
        assert_eq!(accounted(&stats), stats[Statistic::RxDatagrams as usize], "all that has ever arrived");
    }
}

fn drops(stats: &[u64; STAT_COUNT]) -> Vec<u64> {
    stats::drops(stats).to_vec()
}

fn addr(host: u8, port: u16) -> SocketAddr {
    ([10, 0, 1, host], port).into()
}

const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 5_000);

fn is_no_session(answer: &[u8]) -> bool {
    answer.len() == size_of::<NoSession>() + TRAILER_LEN && answer[0] == Kind::NO_SESSION.0
}

/// Goal: each way to be wrong has its own counter, moves it by one and nothing else. Method: one datagram per way, from
/// sessions with and without checksums.
#[test]
fn each_fault_is_counted_under_its_own_reason() {
    for from in [LOOPBACK.into(), addr(1, 5_000)] {
        let mut sim = Sim::new();
        let speaker = sim.speaker(from, 1);
        let before = sim.stats();
        let mut bad = speaker.bad();
        bad.push(("too long", vec![Kind::REQUEST.0; 1_473], DropReason::Oversized));
        for (what, datagram, reason) in bad {
            let mut expected = sim.drops();
            expected[reason as usize] += 1;
            let answers = sim.exchange(from, &datagram);
            assert_eq!(sim.drops(), expected, "{what}");
            assert!(answers.len() <= 1, "{what}");
            for answer in answers {
                assert!(is_no_session(&answer) && answer.len() <= datagram.len(), "{what}: {answer:?}");
            }
        }
        let mut expected = sim.drops();
        for (number, datagram) in (1..).zip(speaker.valid()) {
            assert!(sim.exchange(addr(2, 5_000), &datagram).is_empty(), "to another address");
            expected[DropReason::WrongPeer as usize] += 1;
            assert_eq!(sim.drops(), expected, "datagram {number} from another address");
        }
        if speaker.checksum {
            let without = Speaker { checksum: false, ..speaker };
            for datagram in without.valid() {
                assert!(sim.exchange(from, &datagram).is_empty());
                expected[DropReason::Checksum as usize] += 1;
                assert_eq!(sim.drops(), expected, "a session's datagram without its sum");
            }
        }
        let cookie_of_another = {
            let reply = sim.ask(addr(3, 5_000), &hello(3));
            CookieReply::ref_from_prefix(&reply).unwrap().0.cookie
        };
        assert!(sim.exchange(from, &open(3, cookie_of_another, 1, false)).is_empty());
        expected[DropReason::Cookie as usize] += 1;
        assert_eq!(sim.drops(), expected, "a cookie made for another address");

        let after = sim.stats();
        for unchanged in
            [Statistic::Requests, Statistic::SessionsBytes, Statistic::SessionsOpened, Statistic::Records]
        {
            assert_eq!(after[unchanged as usize], before[unchanged as usize], "{unchanged:?}");
        }
        assert_eq!(
            results(&sim.ask(from, &speaker.request(2, 1, &[Operation::get(b"key")]))),
            [word(OpResult::NotFound)]
        );
        sim.serves_a_normal_client();
    }
}

/// Goal: no cut-off datagram does anything. Method: every truncation of every valid datagram, with and without a
/// checksum; each is counted once and not answered. The whole ones work afterwards.
#[test]
fn every_truncation_is_dropped_and_counted() {
    for from in [LOOPBACK.into(), addr(1, 5_000)] {
        let mut sim = Sim::new();
        let speaker = sim.speaker(from, 1);
        let reply = sim.ask(from, &hello(2));
        let cookie = CookieReply::ref_from_prefix(&reply).unwrap().0.cookie;
        let mut valid = vec![hello(2), open(2, cookie, 1, false)];
        valid.extend(speaker.valid());
        let close = valid.pop().unwrap();
        for datagram in &valid {
            for len in 1..datagram.len() {
                let before: u64 = sim.drops().iter().sum();
                assert_eq!(
                    sim.exchange(from, &datagram[..len]),
                    Vec::<Vec<u8>>::new(),
                    "{len} bytes of {datagram:?}"
                );
                let counted = sim.drops().iter().sum::<u64>() - before;
                assert_eq!(counted, 1, "{len} bytes of {datagram:?}");
            }
        }
        for len in 1..size_of::<Common>() {
            assert!(sim.exchange(from, &close[..len]).is_empty());
        }
        for datagram in valid {
            assert_eq!(sim.exchange(from, &datagram).len(), 1, "{datagram:?}");
        }
        assert_eq!(sim.stats()[Statistic::Puts as usize], 1);
        assert_eq!(sim.stats()[Statistic::Sessions as usize], 2);
        assert!(sim.exchange(from, &close).is_empty());
        assert_eq!(sim.stats()[Statistic::Sessions as usize], 1);
        sim.serves_a_normal_client();
    }
}

/// Goal: a source without a session gains nothing: no more bytes than it sent, no state, no effect. Method: 120,000
/// mutated and random datagrams, based on what living sessions of others send, from eight addresses in bursts; each is
/// either counted as dropped or is a hello, answered by a cookie.
#[test]
fn strangers_get_no_more_than_they_give() {
    const DATAGRAMS: u64 = 120_000;
    let seed = 1;
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut sim = Sim::new();
    let (with_sum, without) = (addr(1, 5_000), LOOPBACK.into());
    let speakers = [sim.speaker(with_sum, 1), sim.speaker(without, 2)];
    assert!(speakers[0].checksum && !speakers[1].checksum);
    let mut corpus: Vec<_> = speakers.iter().flat_map(Speaker::valid).collect();
    corpus.extend(speakers.iter().flat_map(|speaker| speaker.bad().into_iter().map(|(_, bytes, _)| bytes)));
    let reply = sim.ask(with_sum, &hello(3));
    corpus.push(open(3, CookieReply::ref_from_prefix(&reply).unwrap().0.cookie, 8, true));
    corpus.push(hello(4));

    let before = sim.stats();
    let strangers: Vec<_> = (0..8).map(|host| addr(100 + host, 6_000)).collect();
    let mut balance: HashMap<SocketAddr, (usize, usize)> = HashMap::new();
    let (mut sent, mut cookies) = (0, 0);
    while sent < DATAGRAMS {
        // Now and then one of them asks for more cookies than it may have, which leaves the others theirs.
        let flood = random.random_bool(0.01).then_some(strangers[0]);
        for _ in 0..if flood.is_some() { 600 } else { random.random_range(1..200) } {
            let from = flood.unwrap_or_else(|| strangers[random.random_range(0..strangers.len())]);
            let datagram = if flood.is_some() { hello(5) } else { mutated(&mut random, &corpus) };
            balance.entry(from).or_default().0 += datagram.len();
            sent += 1;
            sim.send(from, &datagram);
        }
        sim.serve();
        for &stranger in &strangers {
            let Some((bytes_in, bytes_out)) = balance.get_mut(&stranger) else { continue };
            for answer in sim.received(stranger) {
                *bytes_out += answer.len();
                assert!(is_no_session(&answer) || answer[0] == Kind::COOKIE.0, "{answer:?}");
                cookies += u64::from(answer[0] == Kind::COOKIE.0);
            }
            assert!(*bytes_out <= *bytes_in, "{stranger} gave {bytes_in} and got {bytes_out} bytes");
        }
    }
    let after = sim.stats();
    let dropped = drops(&after).iter().sum::<u64>() - drops(&before).iter().sum::<u64>();
    assert_eq!(dropped + cookies, sent, "each datagram is counted or answered");
    assert!(cookies > 0, "some mutations of a hello are hellos");
    for reason in DropReason::ALL {
        // Stale and Slot need a session, a server expects no answers, and only connections can use up all room.
        let unreachable = matches!(
            reason,
            DropReason::Stale
                | DropReason::Slot
                | DropReason::Unexpected
                | DropReason::Malformed
                | DropReason::NoRoom
        );
        let grown = drops(&after)[reason as usize] > drops(&before)[reason as usize];
        assert!(grown || unreachable, "no datagram was dropped for {}", reason.name());
    }
    for unchanged in [
        Statistic::Sessions,
        Statistic::SessionsOpened,
        Statistic::SessionsBytes,
        Statistic::Requests,
        Statistic::Records,
        Statistic::Replays,
        Statistic::TxDropped,
    ] {
        assert_eq!(after[unchanged as usize], before[unchanged as usize], "{unchanged:?}");
    }
    let (given, got) = balance.values().fold((0, 0), |sum, each| (sum.0 + each.0, sum.1 + each.1));
    println!("{sent} datagrams, {given} bytes in, {got} bytes out, {cookies} cookies");
    sim.serves_a_normal_client();
}

/// Goal: a session in bad hands does no harm beyond its own operations. Method: 60,000 mutations of its own datagrams in
/// bursts, among them goodbyes between requests; it is opened again whenever it has ended.
#[test]
fn a_broken_client_harms_nobody() {
    let seed = 2;
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut sim = Sim::new();
    let from = [addr(1, 5_000), LOOPBACK.into()];
    let mut nonce = 0u8;
    let mut sent = 0;
    while sent < 60_000 {
        nonce = nonce.wrapping_add(1);
        let speakers = from.map(|from| sim.speaker(from, nonce));
        let mut seqs = 0;
        while sim.stats()[Statistic::Sessions as usize] > 0 {
            seqs += 1;
            let mut corpus: Vec<_> = speakers.iter().flat_map(|speaker| speaker.valid()).collect();
            let values = [vec![1; 1_400], vec![2; 10]];
            for (number, speaker) in speakers.iter().enumerate() {
                let many: Vec<_> = (0..200).map(|_| Operation::get(b"k")).collect();
                corpus.push(speaker.request(2, seqs, &[Operation::put(b"k", &values[number])]));
                corpus.push(speaker.request(3, seqs, &many));
                corpus.push(speaker.request(4, seqs, &[Operation::delete(b"key")]));
            }
            for _ in 0..random.random_range(1..100) {
                let datagram = if random.random_bool(0.2) {
                    corpus[random.random_range(0..corpus.len())].clone()
                } else {
                    mutated(&mut random, &corpus)
                };
                sent += 1;
                sim.send(from[random.random_range(0..2)], &datagram);
            }
            sim.serve();
            for at in from {
                sim.received(at);
            }
            if seqs > 50 {
                speakers.iter().zip(from).for_each(|(speaker, from)| {
                    sim.exchange(from, &speaker.control(Kind::CLOSE));
                });
            }
        }
        assert_eq!(
            sim.stats()[Statistic::SessionsBytes as usize],
            0,
            "nothing is kept of sessions that ended"
        );
    }
    sim.serves_a_normal_client();
}

/// Goal: what was executed once is not executed again, however late and often it is repeated. Method: recorded requests
/// are replayed after another session has changed the keys: older ones are dropped, the last is answered as it was.
#[test]
fn replayed_requests_are_answered_or_dropped_never_executed() {
    let (mine, others) = (addr(1, 5_000), addr(2, 5_000));
    let mut sim = Sim::new();
    let (speaker, other) = (sim.speaker(mine, 1), sim.speaker(others, 2));
    let requests: Vec<_> = (1..=5)
        .map(|seq| {
            speaker.request(3, seq * 10, &[Operation::put(b"key", &[seq as u8]), Operation::delete(b"x")])
        })
        .collect();
    for request in &requests {
        assert_eq!(results(&sim.ask(mine, request)), [word(OpResult::Done), word(OpResult::NotFound)]);
    }
    sim.ask(
        others,
        &other.request(0, 1, &[Operation::put(b"key", b"newer"), Operation::put(b"x", b"there now")]),
    );
    let before = sim.stats();
    for round in 1..=20 {
        for old in &requests[..4] {
            assert!(sim.exchange(mine, old).is_empty(), "a late duplicate");
        }
        let again = sim.ask(mine, &requests[4]);
        assert_eq!(results(&again), [word(OpResult::Done), word(OpResult::NotFound)], "as the first time");
        let stats = sim.stats();
        assert_eq!(stats[Statistic::DropStale as usize] - before[Statistic::DropStale as usize], 4 * round);
        assert_eq!(stats[Statistic::Replays as usize] - before[Statistic::Replays as usize], round);
        assert_eq!(stats[Statistic::Puts as usize], before[Statistic::Puts as usize]);
        assert_eq!(stats[Statistic::Deletes as usize], before[Statistic::Deletes as usize]);
    }
    let read = [Operation::get(b"key"), Operation::get(b"x")];
    let found = [word(OpResult::Value(b"newer")), word(OpResult::Value(b"there now"))];
    assert_eq!(results(&sim.ask(others, &other.request(1, 1, &read))), found);

    // The same number for other operations: what was stored under it is repeated, nothing is executed.
    let forged =
        speaker.request(3, 50, &[Operation::put(b"key", b"forged"), Operation::put(b"x", b"forged")]);
    assert_eq!(results(&sim.ask(mine, &forged)), [word(OpResult::Done), word(OpResult::NotFound)]);
    // A read under a write's number is neither.
    assert!(sim.exchange(mine, &speaker.request(3, 50, &read)).is_empty());
    // A read may be asked again and sees what is there now.
    let reading = speaker.request(4, 1, &read);
    assert_eq!(results(&sim.ask(mine, &reading)), found);
    sim.ask(others, &other.request(0, 2, &[Operation::delete(b"key")]));
    assert_eq!(results(&sim.ask(mine, &reading)), [word(OpResult::NotFound), found[1].clone()]);

    // After the goodbye the session's number and token are worth nothing.
    sim.exchange(mine, &speaker.control(Kind::CLOSE));
    for request in &requests {
        assert!(is_no_session(&sim.ask(mine, request)));
    }
    sim.serves_a_normal_client();
}

/// Goal: adds and conditions are decided once, whatever is repeated and whatever was done to their keys since. Method: one
/// request with each kind of end, new, again after others have changed all its keys, and late; then a session whose memory
/// has no room for what an add has found, which leaves the counter alone, again and again.
#[test]
fn adds_and_conditions_are_decided_once() {
    let (mine, others) = (addr(1, 5_000), addr(2, 5_000));
    let mut sim = Sim::new();
    let (speaker, other) = (sim.speaker(mine, 1), sim.speaker(others, 2));
    let put_on = |key, condition| Operation::put_on(key, b"mine", Terms::only_if(condition));
    let operations = [
        Operation::add(b"n", 5, None),
        put_on(&b"a"[..], Condition::Absent),
        put_on(b"a", Condition::Absent),
        put_on(b"p", Condition::Present),
        put_on(b"a", Condition::Version(1)),
        put_on(b"a", Condition::Version(2)),
        Operation::add(b"n", 1_u64.wrapping_neg(), None),
        Operation::add(b"a", 1, None),
    ];
    let number = |number: u64| word(OpResult::Value(&number.to_be_bytes()));
    let refused = |reason| word(OpResult::NotExecuted(reason));
    let expected = [
        number(0),
        word(OpResult::Done),
        refused(Reason::Exists),
        word(OpResult::NotFound),
        refused(Reason::Changed),
        word(OpResult::Done),
        number(5),
        refused(Reason::NotANumber),
    ];
    let request = speaker.request(3, 10, &operations);
    // With versions there is more to keep.
    let mut told = speaker.request(4, 10, &operations);
    told[1] |= Flags::VERSIONS.0;
    wire::write_trailer(&mut told);
    assert_eq!(results(&sim.ask(mine, &request)), expected);
    let with_versions = sim.ask(mine, &told);
    let without_trailer = |reply: &[u8]| reply[size_of::<ReplyHeader>()..reply.len() - TRAILER_LEN].to_vec();
    assert_eq!(results(&with_versions)[0], number(4), "another request adds again");
    let take = [Operation::put(b"p", b"here"), Operation::delete(b"a"), Operation::delete(b"n")];
    sim.ask(others, &other.request(0, 1, &take));
    let before = sim.stats();
    for _ in 0..10 {
        assert_eq!(results(&sim.ask(mine, &request)), expected, "as the first time");
        let again = sim.ask(mine, &told);
        assert_eq!(without_trailer(&again), without_trailer(&with_versions), "with the same versions");
    }
    sim.ask(mine, &speaker.request(3, 11, &[Operation::delete(b"x")]));
    assert!(sim.exchange(mine, &request).is_empty(), "late");
    let after = sim.stats();
    for statistic in [Statistic::Adds, Statistic::Puts, Statistic::ConditionsFailed, Statistic::Version] {
        assert_eq!(after[statistic as usize], before[statistic as usize], "{statistic:?}");
    }
    assert!(after[Statistic::SessionsBytes as usize] <= SESSIONS_LEN_MAX as u64);

    // Sessions until there is no room for another, and then adds in all slots of one.
    let late = sim.speaker(addr(3, 5_000), 3);
    for nonce in 4..=255 {
        let at = addr(nonce, 5_000); // Each a source of its own, which may have half.
        if Speaker::open(nonce, 8, false, |datagram| sim.ask(at, datagram)).is_none() {
            break;
        }
    }
    let many: Vec<_> = (0..100).map(|_| Operation::add(b"m", 1, None)).collect();
    let mut added = 0;
    for slot in 0..8 {
        let request = late.request(slot, 1, &many);
        let ends = results(&sim.ask(addr(3, 5_000), &request));
        assert_eq!(results(&sim.ask(addr(3, 5_000), &request)), ends);
        for end in ends {
            assert_eq!(end, if end.contains("Value") { number(added) } else { refused(Reason::NoSpace) });
            added += u64::from(end.contains("Value"));
        }
    }
    assert!(added < 800, "the memory of sessions is full");
    let read = results(&sim.ask(addr(3, 5_000), &late.request(0, 2, &[Operation::get(b"m")])));
    assert_eq!(read, [if added > 0 { number(added) } else { word(OpResult::NotFound) }]);
    assert!(sim.stats()[Statistic::SessionsBytes as usize] <= SESSIONS_LEN_MAX as u64);
}

/// Goal: what one burst holds of one session does not get in its own way. Method: a late copy of a write beside the slot's
/// next request, and writes before an open that ends their session.
#[test]
fn a_burst_may_hold_late_copies_and_ends_of_sessions() {
    let mut sim = Sim::new();
    let from = addr(1, 5_000);
    let first = sim.speaker(from, 1);
    let put = |speaker: &Speaker, slot, seq, value: &[u8]| {
        speaker.request(slot, seq, &[Operation::put(b"key", value)])
    };
    let old = put(&first, 0, 1, b"old");
    sim.ask(from, &old);
    let before = sim.stats();
    sim.send(from, &old);
    sim.send(from, &put(&first, 0, 2, b"new"));
    sim.send(from, &old);
    sim.serve();
    let answers = sim.received(from);
    assert_eq!(answers.len(), 1, "nobody waits for the old one any more");
    assert_eq!(results(&answers[0]), [word(OpResult::Done)]);
    let after = sim.stats();
    assert_eq!(after[Statistic::DropStale as usize] - before[Statistic::DropStale as usize], 2);
    assert_eq!(after[Statistic::Puts as usize] - before[Statistic::Puts as usize], 1);
    assert_eq!(after[Statistic::Replays as usize], before[Statistic::Replays as usize]);

    // The next generation of the same client: its nonce differs in the last byte only.
    let mut nonce = [1; 16];
    nonce[15] = 2;
    let common = common(Kind::HELLO, Flags::CHECKSUM);
    let reply = sim.ask(from, &sealed(&Hello { common, nonce, ..Hello::new_zeroed() }));
    let cookie = CookieReply::ref_from_prefix(&reply).unwrap().0.cookie;
    let common = Common { kind: Kind::OPEN, ..common };
    let window = 8.into();
    let request = Open { common, nonce, cookie, window, checksum: 1, ..Open::new_zeroed() };
    let mut open = vec![0; DATAGRAM_LEN_MAX];
    wire::seal_padded(&request, DATAGRAM_LEN_MAX, &mut open);
    sim.send(from, &put(&first, 1, 1, b"last"));
    sim.send(from, &open);
    sim.send(from, &put(&first, 2, 1, b"too late"));
    sim.serve();
    let answers = sim.received(from);
    let kinds: Vec<_> = answers.iter().map(|answer| Kind(answer[0])).collect();
    assert_eq!(kinds, [Kind::REPLY, Kind::OPENED, Kind::NO_SESSION]);
    assert_eq!(results(&answers[0]), [word(OpResult::Done)]);
    assert_eq!(sim.stats()[Statistic::SessionsFenced as usize], 1);
    let other = sim.speaker(addr(2, 5_000), 2);
    let found = sim.ask(addr(2, 5_000), &other.request(0, 1, &[Operation::get(b"key")]));
    assert_eq!(results(&found), [word(OpResult::Value(b"last"))]);
}

/// Goal: a refusal is as final as a result. Method: a put that found no space is sent again after deletes have made
/// room; the answer is the same, and nothing is stored.
#[test]
fn a_refused_request_stays_refused() {
    let from = addr(1, 5_000);
    let mut sim = Sim::new();
    let speaker = sim.speaker(from, 1);
    // Fills the store of 1 MiB until a put is refused.
    let value = [7; 1_400];
    let mut seq = 0u32;
    let refused = loop {
        seq += 1;
        let request = speaker.request(0, seq, &[Operation::put(&seq.to_be_bytes(), &value)]);
        if results(&sim.ask(from, &request)) == [word(OpResult::NotExecuted(Reason::NoSpace))] {
            break request;
        }
        assert!(seq < 2_000, "the memory never fills");
    };
    let deletes: Vec<_> = (1..100u32).map(u32::to_be_bytes).collect();
    let deletes: Vec<_> = deletes.iter().map(Operation::delete).collect();
    assert_eq!(results(&sim.ask(from, &speaker.request(1, 1, &deletes))).len(), deletes.len());
    // There is room now, but the client was told.
    assert_eq!(results(&sim.ask(from, &refused)), [word(OpResult::NotExecuted(Reason::NoSpace))]);
    assert_eq!(
        results(&sim.ask(from, &speaker.request(2, 1, &[Operation::get(&seq.to_be_bytes())]))),
        [word(OpResult::NotFound)]
    );
    sim.serves_a_normal_client();
}

/// Goal: what was addressed by another map has no effect, and never will. Method: requests of each class with another epoch
/// are refused with the core's own, whatever their keys; the same request with the right epoch is a copy, and gets the
/// same answer; the next one is executed.
#[test]
fn what_was_addressed_by_another_map_stays_refused() {
    let from = addr(1, 5_000);
    let mut sim = Sim::new();
    let speaker = sim.speaker(from, 1);
    let moved = [word(OpResult::NotExecuted(Reason::Moved { epoch: 0 }))];
    let of_epoch = |mut request: Vec<u8>, epoch: u16| {
        request[21..23].copy_from_slice(&epoch.to_be_bytes());
        if speaker.checksum {
            wire::write_trailer(&mut request);
        }
        request
    };
    let put = |seq| speaker.request(0, seq, &[Operation::put(b"key", b"value")]);
    let get = speaker.request(1, 1, &[Operation::get(b"key")]);
    for (seq, epoch) in [(1, 1), (2, 4_096), (3, u16::MAX)] {
        assert_eq!(results(&sim.ask(from, &of_epoch(put(seq), epoch))), moved);
        assert_eq!(results(&sim.ask(from, &put(seq))), moved, "a copy, whatever its epoch");
        assert_eq!(results(&sim.ask(from, &of_epoch(get.clone(), epoch))), moved);
        assert_eq!(results(&sim.ask(from, &get)), [word(OpResult::NotFound)]);
    }
    let range = Range { key: Key::new(b"key"), version: 0, offset: 0, len: 100 };
    let ranges = |epoch| of_epoch(speaker.ranges(3, 1, &[range]), epoch);
    assert_eq!(results(&sim.ask(from, &ranges(1))), moved);
    assert_eq!(results(&sim.ask(from, &ranges(0))), [word(OpResult::NotFound)]);
    let begin = [5, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0];
    let common = Common { slot: 2, ..speaker.common(Kind::REQUEST, Flags::TRANSFER) };
    let header = RequestHeader { common, seq: 1.into(), count: 1, epoch: 9.into(), spare: 0 };
    let request = speaker.finish([header.as_bytes(), &begin].concat());
    assert_eq!(results(&sim.ask(from, &request)), moved);
    assert_eq!(sim.stats()[Statistic::StagedBytes as usize], 0);
    assert_eq!(sim.stats()[Statistic::Moved as usize], 8);
    assert_eq!(results(&sim.ask(from, &put(4))), [word(OpResult::Done)]);
    assert_eq!(
        results(&sim.ask(from, &of_epoch(put(4), 1))),
        [word(OpResult::Done)],
        "a copy of what was done"
    );
    sim.serves_a_normal_client();
}

/// Goal: a server keeps to its node's keys and each core to its own, and says which of both it was. Method: one core of two of
/// one node of two; requests of each class for keys of its own, of its neighbour and of the other node, and for all of these together.
#[test]
fn keys_of_others_are_refused_by_whose_they_are() {
    let member = |id: u8| Member { id: id.into(), addr: addr(id, SERVER.1), cores: 2 };
    let spec = ClusterSpec::new(7, Placement::Rendezvous, vec![member(8), member(9)]).unwrap();
    let map = spec.map();
    let from = addr(1, 5_000);
    let mut sim = Sim::of(Membership::new(spec, 9).unwrap(), 1 << 20);
    let speaker = sim.speaker(from, 1);
    let key_of = |node, core| {
        let owned = |key: &[u8; 2]| map.owner_of_key(Key::new(key)) == Owner { node, core };
        (0..1_000u16).map(u16::to_be_bytes).find(owned).unwrap()
    };
    let (own, next, foreign) = (key_of(1, 0), key_of(1, 1), key_of(0, 0));
    let moved = || word(OpResult::NotExecuted(Reason::Moved { epoch: 7 }));
    let wrong_core = || word(OpResult::NotExecuted(Reason::WrongCore));
    let mut seq = 0;
    for (keys, word_of) in [
        (vec![next], wrong_core as fn() -> String),
        (vec![own, next], wrong_core),
        (vec![foreign], moved),
        (vec![own, next, foreign], moved),
    ] {
        seq += 1;
        let refused = vec![word_of(); keys.len()];
        let puts: Vec<_> = keys.iter().map(|key| Operation::put(key, b"value")).collect();
        assert_eq!(results(&sim.ask(from, &speaker.request(0, seq, &puts))), refused);
        let gets: Vec<_> = keys.iter().map(Operation::get).collect();
        assert_eq!(results(&sim.ask(from, &speaker.request(1, seq, &gets))), refused);
        let range = |key| Range { key: Key::new(key), version: 0, offset: 0, len: 100 };
        let ranges: Vec<_> = keys.iter().map(|key| range(key)).collect();
        assert_eq!(results(&sim.ask(from, &speaker.ranges(2, seq, &ranges))), refused);
    }
    let stats = sim.stats();
    let of = |statistic: Statistic| stats[statistic as usize];
    assert_eq!((of(Statistic::WrongCore), of(Statistic::Moved), of(Statistic::Puts)), (9, 12, 0));
    let put = speaker.request(0, seq + 1, &[Operation::put(&own, b"value")]);
    assert_eq!(results(&sim.ask(from, &put)), [word(OpResult::Done)]);
}

/// Goal: a request that asks for more than a reply can even refuse breaks nothing. Method: gets of a long value, of every
/// count, and writes, with versions, which leave the least room for each word; then on the narrowest path.
#[test]
fn more_operations_than_a_reply_has_words_for_are_harmless() {
    for datagram_len in [DATAGRAM_LEN_MAX, 576] {
        let from = addr(1, 5_000);
        let mut sim = Sim::new();
        let mut speaker = sim.speaker(from, 1);
        if datagram_len < DATAGRAM_LEN_MAX {
            speaker = sim.narrow_speaker(from, datagram_len);
        }
        let versioned = |slot, seq: u32, flags: Flags, count, body: &[u8]| {
            let common = Common { slot, ..speaker.common(Kind::REQUEST, flags.with(Flags::VERSIONS)) };
            let header = RequestHeader { common, seq: seq.into(), count, epoch: 0.into(), spare: 0 };
            speaker.finish([header.as_bytes(), body].concat())
        };
        let value = [7; 500];
        let put = speaker.request(0, 1, &[Operation::put(b"k", &value)]);
        assert_eq!(results(&sim.ask(from, &put)), [word(OpResult::Done)]);
        for count in 1..=u8::MAX {
            let body = b"\x01\x01k".repeat(count.into());
            if 24 + body.len() > datagram_len - 16 {
                break;
            }
            let request = versioned(1, count.into(), Flags::READ_ONLY, count, &body);
            let replies = sim.exchange(from, &request);
            assert!(
                (1..=wire::REPLY_DATAGRAMS_MAX).contains(&replies.len()),
                "{datagram_len} {count}: {} {:?}",
                replies.len(),
                sim.drops()
            );
            assert!(replies.iter().all(|reply| reply.len() <= datagram_len && reply[0] == Kind::REPLY.0));
            let body = b"\x03\x01x".repeat(count.into());
            let request = versioned(2, count.into(), Flags::NONE, count, &body);
            assert!(!sim.exchange(from, &request).is_empty());
        }
        sim.serves_a_normal_client();
    }
}

/// Goal: no well-formed operation, in whatever request, slot and company, breaks the worker. Method: bursts of requests
/// of all opcodes and flags over a few keys, values, transfers and numbers, of two sessions, one as narrow as there is,
/// on a single core and on one of two.
#[test]
fn operations_of_all_kinds_in_any_company_are_harmless() {
    for (seed, cores) in [(1, 1), (2, 1), (3, 2), (4, 2)] {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut sim = Sim::with(cores, 8 << 10);
        let (wide_at, narrow_at) = (addr(1, 5_000), addr(2, 5_000));
        let wide = sim.speaker(wide_at, 2);
        sim.speaker(narrow_at, 1);
        let narrow = sim.narrow_speaker(narrow_at, 576);
        let mut seqs = HashMap::new();
        for step in 0..if cfg!(debug_assertions) { 1_500 } else { 10_000 } {
            for _ in 0..random.random_range(1..40) {
                let (at, speaker, len_max) = if random.random_bool(0.5) {
                    (wide_at, wide, DATAGRAM_LEN_MAX)
                } else {
                    (narrow_at, narrow, 576)
                };
                let class = Flags(random.random_range(0..8) << 1);
                let room = len_max - if random.random_bool(0.5) { 40 } else { 28 };
                let wanted = [1, 3, 64, 255][random.random_range(0..4)];
                let (mut body, mut count) = (Vec::new(), 0);
                while count < wanted {
                    let operation = some_operation(&mut random, step / 8, class, room - body.len());
                    if operation.is_empty() || body.len() + operation.len() > room {
                        break;
                    }
                    body.extend(operation);
                    count += 1;
                }
                let slot = random.random_range(0..8);
                let seq: &mut u32 = seqs.entry((speaker.session, slot)).or_insert(1);
                *seq += u32::from(random.random_bool(0.8));
                let common = Common { slot, ..speaker.common(Kind::REQUEST, class) };
                let header = RequestHeader {
                    common,
                    seq: (*seq).into(),
                    count: count as u8,
                    epoch: u16::from(random.random_bool(0.02)).into(),
                    spare: 0,
                };
                sim.send(at, &speaker.finish([header.as_bytes(), &body].concat()));
            }
            sim.serve();
            assert!(sim.received(wide_at).iter().all(|reply| reply[0] == Kind::REPLY.0));
            assert!(
                sim.received(narrow_at).iter().all(|reply| reply[0] == Kind::REPLY.0 && reply.len() <= 576)
            );
        }
        let stats = sim.stats();
        let of = |statistic: Statistic| stats[statistic as usize];
        assert!(of(Statistic::Hits) > 1_000 && of(Statistic::NoSpace) > 0 && of(Statistic::Replays) > 100);
        assert_eq!(of(Statistic::WrongCore) > 0, cores > 1);
        assert!(of(Statistic::Moved) > 100);
    }
}

/// A well-formed operation of at most `room` bytes for a request with these flags, or nothing; of a transfer with about
/// this number.
fn some_operation(random: &mut StdRng, number: u32, class: Flags, room: usize) -> Vec<u8> {
    let key =
        [&b"k"[..], &[random.random_range(0..12)].repeat(if random.random_bool(0.1) { 254 } else { 1 })]
            .concat();
    let key_len = key.len() as u8;
    let number = (number + random.random_range(0..3)).to_be_bytes();
    match (class.contains(Flags::READ_ONLY), class.contains(Flags::TRANSFER)) {
        (true, false) => [&[1, key_len][..], &key].concat(),
        (true, true) => {
            let version: u64 = random.random_range(0..3_000) * u64::from(random.random_bool(0.5));
            let offset: u32 = [0, 1, 1_430, 100_000, 1 << 20, u32::MAX][random.random_range(0..6)];
            let len: u16 = [0, 1, 1_430, u16::MAX][random.random_range(0..4)];
            let head = [&[4, key_len][..], &len.to_be_bytes(), &offset.to_be_bytes(), &version.to_be_bytes()];
            [&head.concat()[..], &key].concat()
        }
        (false, true) if random.random_bool(0.1) => {
            let len: u32 = [1, 64, 1_408, 1_472, 2_880, 1 << 20][random.random_range(0..6)];
            [&[5, 0, 0, 0][..], &number, &len.to_be_bytes()].concat()
        }
        (false, true) => {
            let Some(room) = room.checked_sub(13) else { return vec![] };
            let len = [1, 64, 1_408][random.random_range(0..3)];
            let len = if len > room { room / 64 * 64 } else { len }.max(1).min(room);
            let offset: u32 = [0, 0, 64, 1_408, 2_816, 1 << 20, u32::MAX][random.random_range(0..7)];
            [&[6, 0][..], &(len as u16).to_be_bytes(), &number, &offset.to_be_bytes(), &vec![9; len]].concat()
        }
        (false, false) => match random.random_range(0..4) {
            0 => [&[3, key_len][..], &key].concat(),
            1 => [&[7, key_len, 0, 0][..], &number, &key].concat(),
            _ => {
                let Some(room) = room.checked_sub(4 + key.len()) else { return vec![] };
                let len = [0, 1, 128, 1_400][random.random_range(0..4)].min(room);
                [&[2, key_len][..], &(len as u16).to_be_bytes(), &key, &vec![5; len]].concat()
            }
        },
    }
}

/// Goal: sessions cannot fill the server's memory, and those that fall silent make room again. Method: one source opens
/// sessions until it is refused, for long enough; then the lease passes.
#[test]
fn memory_of_sessions_is_capped_and_comes_back() {
    let mut sim = Sim::new();
    let mut opened = 0;
    for host in 0..200 {
        let from = addr(host, 7_000);
        for nonce in 0..5 {
            opened +=
                u64::from(Speaker::open(nonce, 256, false, |datagram| sim.ask(from, datagram)).is_some());
        }
        let stats = sim.stats();
        assert!(stats[Statistic::SessionsBytes as usize] <= SESSIONS_LEN_MAX as u64);
        assert_eq!(stats[Statistic::Sessions as usize], opened);
    }
    assert!(opened > 0);
    assert_eq!(sim.stats()[Statistic::SessionsRefused as usize], 1_000 - opened);
    sim.network.advance(LEASE + Duration::from_secs(2));
    sim.serve();
    let stats = sim.stats();
    assert_eq!((stats[Statistic::Sessions as usize], stats[Statistic::SessionsBytes as usize]), (0, 0));
    sim.serves_a_normal_client();
}

// ---- a real server ----

fn live_server() -> Server {
    let cpu = *allowed_cores().unwrap().last().unwrap();
    Server::start(&ServerConfig { port: 0, cpus: vec![cpu], memory_len: 32 << 20, ..ServerConfig::default() })
        .unwrap()
}

/// How long a live server may take to count something on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until the drops are as expected.
fn expect_drops(server: &Server, expected: &[u64]) {
    let begun = SystemInstant::now();
    loop {
        let found = drops(&server.stats());
        if found == expected {
            return;
        }
        let names = &STAT_NAMES[Statistic::DropTruncated as usize..][..DropReason::ALL.len()];
        assert!(begun.elapsed() < PATIENCE, "expected {expected:?}, found {found:?} of {names:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn expect_at_least(server: &Server, statistic: Statistic, least: u64) {
    let begun = SystemInstant::now();
    while server.stats()[statistic as usize] < least {
        assert!(begun.elapsed() < PATIENCE, "{statistic:?} is {}", server.stats()[statistic as usize]);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn serves_normal_clients(server: &Server) {
    let config = SessionConfig { timeout: PATIENCE, ..SessionConfig::default() };
    let mut udp = Client::connect_udp(&[server.addr()], config).unwrap();
    udp.put(b"normal", b"value").unwrap();
    let mut tcp = Client::connect_tcp(&[server.addr()], config).unwrap();
    assert_eq!(tcp.get(b"normal").unwrap().as_deref(), Some(&b"value"[..]));
    assert!(!server.has_failed());
}

fn udp_socket(server: &Server) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server.addr()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn udp_speaker(socket: &UdpSocket, nonce: u8) -> Speaker {
    let ask = |datagram: &[u8]| {
        socket.send(datagram).unwrap();
        let mut answer = vec![0; 2_000];
        let len = socket.recv(&mut answer).expect("loopback loses nothing of a single datagram");
        answer.truncate(len);
        answer
    };
    Speaker::open(nonce, 8, false, ask).unwrap()
}

/// Goal: the real socket path counts as the simulated one does, lengths included that the latter cannot have. Method:
/// the same bad datagrams over a UDP socket, empty and huge ones, and a second socket with the first one's session.
#[test]
fn a_udp_server_counts_each_fault() {
    let server = live_server();
    let socket = udp_socket(&server);
    let speaker = udp_speaker(&socket, 1);
    let mut expected = drops(&server.stats());
    for (_, datagram, reason) in speaker.bad() {
        socket.send(&datagram).unwrap();
        expected[reason as usize] += 1;
    }
    for len in [1_473, 2_000, 9_000, 60_000] {
        socket.send(&vec![Kind::REQUEST.0; len]).unwrap();
        expected[DropReason::Oversized as usize] += 1;
    }
    let other = udp_socket(&server);
    for datagram in speaker.valid() {
        other.send(&datagram).unwrap();
        expected[DropReason::WrongPeer as usize] += 1;
    }
    expect_drops(&server, &expected);
    // An empty datagram may be dropped by the port or by the worker; it must not stop what follows it.
    socket.send(&[]).unwrap();
    socket.send(&speaker.control(Kind::PING)).unwrap();
    serves_normal_clients(&server);
    server.stop().unwrap();
}

/// Goal: a flood of garbage over UDP neither stops a server nor makes it grow. Method: 5,000 mutated datagrams from four
/// sockets; no session was opened and nothing stored but by the normal clients.
#[test]
fn a_udp_server_survives_garbage() {
    let seed = 3;
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let server = live_server();
    let victim = udp_socket(&server);
    let mut corpus = udp_speaker(&victim, 1).valid();
    corpus.push(hello(2));
    expect_at_least(&server, Statistic::Sessions, 1);
    let before = server.stats();
    let sockets: Vec<_> = (0..4).map(|_| udp_socket(&server)).collect();
    for _ in 0..5_000 {
        sockets[random.random_range(0..4)].send(&mutated(&mut random, &corpus)).unwrap();
    }
    expect_at_least(&server, Statistic::DropWrongPeer, 1);
    serves_normal_clients(&server);
    let after = server.stop().unwrap();
    assert_eq!(after[Statistic::SessionsOpened as usize] - before[Statistic::SessionsOpened as usize], 2);
    assert_eq!(after[Statistic::Puts as usize], 1, "the normal client's");
}

fn frame(datagram: &[u8]) -> Vec<u8> {
    [&(datagram.len() as u16).to_be_bytes()[..], datagram].concat()
}

fn read_frame(stream: &mut TcpStream) -> Vec<u8> {
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut datagram = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut datagram).unwrap();
    datagram
}

fn tcp_stream(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn tcp_speaker(stream: &mut TcpStream, nonce: u8) -> Speaker {
    let ask = |datagram: &[u8]| {
        stream.write_all(&frame(datagram)).unwrap();
        read_frame(stream)
    };
    Speaker::open(nonce, 8, false, ask).unwrap()
}

/// Goal: over TCP the same faults are counted, and the connection goes on. Method: the same bad datagrams in frames, in
/// one write and byte by byte; then a valid one is answered on the same connection.
#[test]
fn a_tcp_server_counts_each_fault() {
    let server = live_server();
    let mut stream = tcp_stream(&server);
    stream.set_nodelay(true).unwrap();
    let speaker = tcp_speaker(&mut stream, 1);
    let mut expected = drops(&server.stats());
    let bad = speaker.bad();
    for (_, _, reason) in &bad {
        expected[*reason as usize] += 2;
    }
    let all: Vec<u8> = bad.iter().flat_map(|(_, datagram, _)| frame(datagram)).collect();
    stream.write_all(&all).unwrap();
    for bytes in all.chunks(7) {
        stream.write_all(bytes).unwrap();
    }
    expect_drops(&server, &expected);
    stream.write_all(&frame(&speaker.control(Kind::PING))).unwrap();
    let pong =
        std::iter::repeat_with(|| read_frame(&mut stream)).take(100).find(|answer| !is_no_session(answer));
    assert_eq!(pong.unwrap()[0], Kind::PONG.0);
    serves_normal_clients(&server);
    server.stop().unwrap();
}

/// Goal: a peer that breaks the framing, hangs up in the middle or says nothing costs its connection and no more.
/// Method: connections of each sort, some left open while normal clients come.
#[test]
fn a_tcp_server_survives_broken_framing() {
    let seed = 4;
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let server = live_server();
    let mut left_open = Vec::new();
    for len in [0, 1_473, 9_000, u16::MAX] {
        let mut stream = tcp_stream(&server);
        let speaker = tcp_speaker(&mut stream, len as u8);
        stream.write_all(&frame(&speaker.control(Kind::PING))).unwrap();
        assert_eq!(read_frame(&mut stream)[0], Kind::PONG.0);
        stream.write_all(&len.to_be_bytes()).unwrap();
        // The server closes; whether by a reset depends on what was unread.
        assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)), "a frame of {len} bytes");
    }
    expect_at_least(&server, Statistic::ConnectionsDropped, 4);
    for number in 0..20u8 {
        let mut stream = tcp_stream(&server);
        let mut garbage = vec![0; random.random_range(1..5_000)];
        random.fill_bytes(&mut garbage);
        // The server may have hung up before all is written.
        let _ = stream.write_all(&garbage);
        let mut unfinished = tcp_stream(&server);
        unfinished.write_all(&frame(&hello(number))[..100]).unwrap();
        let silent = tcp_stream(&server);
        // Fewer than the server has places for.
        if number % 8 == 0 {
            left_open.extend([stream, unfinished, silent]);
        }
    }
    serves_normal_clients(&server);
    drop(left_open);
    let totals = server.stop().unwrap();
    assert_eq!(totals[Statistic::Puts as usize], 1, "the normal client's");
}
