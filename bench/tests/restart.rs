//! A server that restarts empty under load, seen through the library that programs use.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use linerate_client::{Ended, Operation, Order, Outcome, PushError, Reason, Session, SessionConfig};
use linerate_dataplane::{FaultyConfig, FaultyPort, Port, UdpConfig, UdpPort, pin::allowed_cores};
use linerate_server::{Server, ServerConfig};

/// Times that the server restarts.
const RESTARTS: usize = 4;

/// Keys in use: more than operations that can be in flight.
const KEYS: u64 = 500;

/// Operations that are answered by each life of the server, at least.
const ANSWERS_PER_LIFE: usize = 2_000;

/// Turns of the session while there is no server: enough to hear the last answers and to send the window full once more.
const TURNS_WITHOUT_SERVER: usize = 30;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// An operation and what became of it.
#[derive(Clone, Copy, Debug)]
struct Access {
    key: u64,
    is_put: bool,
    /// Data epoch that the session knew of when it took the operation.
    known_epoch: u64,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    what: What,
    data_epoch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Done,
    /// The put that wrote what was found.
    Found(u64),
    NotFound,
    NotExecuted(Reason),
    Unknown,
}

/// One session under load, and everything that it was told, in that order.
struct Caller<P: Port> {
    session: Session<P>,
    accesses: Vec<Access>,
    /// Tags in the order in which the operations ended.
    ended: Vec<u64>,
}

impl<P: Port> Caller<P> {
    fn epoch(&self) -> u64 {
        let mut infos = self.session.cores().filter_map(|(_, info)| info);
        infos.next().expect("the session was open once").data_epoch
    }

    /// Hands over operations until the session takes no more: two puts and a get by turns, now and then a long value.
    fn fill(&mut self) {
        self.fill_with(|tag| tag % 3 != 2);
    }

    fn fill_with(&mut self, is_put: impl Fn(u64) -> bool) {
        loop {
            let tag = self.accesses.len() as u64;
            let (key, is_put) = (tag * 7 % KEYS, is_put(tag));
            let name = key.to_be_bytes();
            let value = value_of(tag);
            let operation = if is_put { Operation::put(&name, &value) } else { Operation::get(&name) };
            match self.session.push(self.session.now(), operation, tag) {
                Ok(()) => {
                    self.accesses.push(Access { key, is_put, known_epoch: self.epoch(), end: None });
                }
                Err(error) => {
                    assert_eq!(error, PushError::Full);
                    return;
                }
            }
        }
    }

    /// Sends what is due and takes what has arrived.
    fn turn(&mut self) {
        let (accesses, ended) = (&mut self.accesses, &mut self.ended);
        let sink = &mut |end: Ended<'_>| take(accesses, ended, end);
        if self.session.flush(self.session.now(), sink).unwrap() == 0 {
            self.session.wait(Duration::from_millis(1)).unwrap();
        }
    }

    /// Waits for all that is on its way.
    fn finish(&mut self) {
        let (accesses, ended) = (&mut self.accesses, &mut self.ended);
        self.session.run(|end| take(accesses, ended, end)).unwrap();
    }

    /// Keeps the session busy until so many operations were answered by a server of a data epoch other than `before`.
    fn run_until_answered(&mut self, count: usize, before: Option<u64>) {
        let begun = Instant::now();
        let mut answered = 0;
        while answered < count {
            self.fill();
            let seen = self.ended.len();
            self.turn();
            answered += self.ended[seen..]
                .iter()
                .filter_map(|&tag| self.accesses[tag as usize].end)
                .filter(|end| matches!(end.what, What::Done | What::Found(_) | What::NotFound))
                .filter(|end| Some(end.data_epoch) != before)
                .count();
            assert!(begun.elapsed() < PATIENCE, "{answered} operations were answered");
        }
    }
}

fn take(accesses: &mut [Access], ended: &mut Vec<u64>, end: Ended<'_>) {
    let access = &mut accesses[end.tag as usize];
    assert_eq!(access.end, None, "operation {} ends twice", end.tag);
    let what = match end.outcome {
        Outcome::Done => What::Done,
        Outcome::Value(value) => {
            let tag = u64::from_be_bytes(*value.first_chunk().expect("a value names its put"));
            assert_eq!(value, value_of(tag), "a value that nobody put");
            What::Found(tag)
        }
        Outcome::NotFound => What::NotFound,
        Outcome::NotExecuted(reason) => What::NotExecuted(reason),
        Outcome::OutcomeUnknown => What::Unknown,
    };
    access.end = Some(End { what, data_epoch: end.data_epoch });
    ended.push(end.tag);
}

/// Whether the value of the put with this tag is too long for a datagram.
const fn is_long(tag: u64) -> bool {
    tag.is_multiple_of(50)
}

/// The value of the put with this tag.
fn value_of(tag: u64) -> Vec<u8> {
    let len = if is_long(tag) { 4_000 } else { 8 + tag as usize % 100 };
    let mut value = vec![tag as u8; len];
    value[..8].copy_from_slice(&tag.to_be_bytes());
    value
}

fn start(port: u16) -> Server {
    let cpu = *allowed_cores().unwrap().last().unwrap();
    Server::start(&ServerConfig { port, cpus: vec![cpu], memory_len: 64 << 20, ..ServerConfig::default() })
        .unwrap()
}

/// Goal: a client is never told that something is there which a restart has taken away, and a write that was on its way
/// is unknown, in a data epoch other than the one it was begun in. Method: a session that keeps the order of each key,
/// always as busy as it can be; the server stops and starts again, empty, with requests unanswered. Then each key's
/// history is gone through: what a data epoch holds begins with nothing, and only its own acknowledged puts are found.
fn restarts_are_told<P: Port>(connect: impl Fn(SocketAddr, SessionConfig) -> Session<P>) {
    let mut server = start(0);
    let addr = server.addr();
    let config = SessionConfig {
        window: 16,
        operations_max: 8,
        order: Order::Key,
        timeout: PATIENCE,
        ..SessionConfig::default()
    };
    let session = connect(addr, config);
    let mut caller = Caller { session, accesses: Vec::new(), ended: Vec::new() };
    let mut epochs = vec![caller.epoch()];
    for restart in 0..RESTARTS {
        caller.run_until_answered(ANSWERS_PER_LIFE, None);
        if restart % 2 == 0 {
            // As it comes: some are answered before the server stops, when nobody listens yet; others are never heard.
            caller.fill();
            caller.turn();
            server.stop().unwrap();
        } else {
            // Nothing is on its way but writes to nobody.
            caller.finish();
            server.stop().unwrap();
            caller.fill_with(|_| true);
        }
        for _ in 0..TURNS_WITHOUT_SERVER {
            caller.turn();
            caller.fill();
        }
        server = start(addr.port());
        caller.run_until_answered(1, epochs.last().copied());
        epochs.push(caller.epoch());
    }
    caller.run_until_answered(ANSWERS_PER_LIFE, None);
    caller.finish();
    let Caller { mut session, mut accesses, mut ended } = caller;
    for key in 0..KEYS {
        let tag = accesses.len() as u64;
        accesses.push(Access { key, is_put: false, known_epoch: epochs[RESTARTS], end: None });
        while session.get(&key.to_be_bytes(), tag).is_err() {
            session.poll(session.now(), &mut |end| take(&mut accesses, &mut ended, end)).unwrap();
        }
    }
    session.run(|end| take(&mut accesses, &mut ended, end)).unwrap();
    assert_eq!(accesses.len(), ended.len(), "every operation ends");

    let unknown = judge(&accesses, &ended, &epochs);
    println!("{} operations, unknown in each data epoch: {unknown:?}", accesses.len());
    assert_eq!(unknown[0], 0);
    let certain: Vec<_> = unknown.iter().skip(2).step_by(2).collect();
    assert!(certain.iter().all(|&&count| count > 0), "writes to nobody are unknown: {unknown:?}");
    server.stop().unwrap();
}

/// Goes through what was told of each key; returns how many outcomes are unknown in each data epoch.
fn judge(accesses: &[Access], ended: &[u64], epochs: &[u64]) -> Vec<usize> {
    let life_of = |epoch| {
        let known = epochs.iter().position(|&known| known == epoch);
        known.unwrap_or_else(|| panic!("data epoch {epoch} is none of {epochs:?}"))
    };
    assert!((1..epochs.len()).all(|life| life_of(epochs[life]) == life), "a data epoch is used twice");
    let mut unknown = vec![0; epochs.len()];
    // Of each key the life that was heard of last, and the put whose value it then has.
    let mut keys: HashMap<u64, (usize, Option<u64>)> = HashMap::new();
    for &tag in ended {
        let access = accesses[tag as usize];
        let End { what, data_epoch } = access.end.expect("it has ended");
        let life = life_of(data_epoch);
        let (last_life, value) = keys.entry(access.key).or_default();
        assert!(life >= *last_life, "operation {tag} is of a data epoch that is over: {access:?}");
        if life > *last_life {
            (*last_life, *value) = (life, None);
        }
        match what {
            What::Done if access.is_put => *value = Some(tag),
            What::Found(put) if !access.is_put => {
                assert_eq!(*value, Some(put), "operation {tag}: {access:?}")
            }
            What::NotFound if !access.is_put => assert_eq!(*value, None, "operation {tag}: {access:?}"),
            What::NotExecuted(Reason::SessionLost) => {}
            // Its pieces went to the server that is gone, and the rest of it to the new one.
            What::NotExecuted(Reason::NotStaged) if access.is_put && is_long(tag) => {}
            What::Unknown if access.is_put => {
                assert_ne!(data_epoch, access.known_epoch, "operation {tag}: {access:?}");
                unknown[life] += 1;
            }
            _ => panic!("operation {tag} pretends: {access:?}"),
        }
    }
    unknown
}

#[test]
fn a_server_that_restarts_empty_is_told_over_udp() {
    restarts_are_told(|addr, config| Session::connect_udp(&[addr], config).unwrap());
}

#[test]
fn a_server_that_restarts_empty_is_told_over_tcp() {
    restarts_are_told(|addr, config| Session::connect_tcp(&[addr], config).unwrap());
}

/// With losses, some writes have taken effect before the restart, and nobody heard of it.
#[test]
fn a_server_that_restarts_empty_is_told_over_a_bad_network() {
    let seed = 1;
    println!("seed {seed}");
    let faults = FaultyConfig { loss: 0.2, duplication: 0.05, reordering: 0.1, seed };
    restarts_are_told(|addr, config| {
        let open =
            |addrs: &[SocketAddr]| FaultyPort::new(UdpPort::connect(addrs, UdpConfig::default())?, faults);
        Session::connect(&[addr], config, open).unwrap()
    });
}
