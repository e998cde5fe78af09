//! Gets that travel for others too.

use std::{collections::HashMap, time::Duration};

use linerate_client::{Operation, Order, Reason, SessionConfig};
use linerate_proto::wire::Statistic;
use rand::{
    RngExt,
    distr::{Distribution, weighted::WeightedIndex},
};

use crate::{
    register,
    rig::{Rig, Setup},
    suite::access,
    system::{Ended, System},
};

/// A session of one core that coalesces, with much room in a request.
fn joining<R: Rig>(system: &mut System<R>, operations_max: u8) -> SessionConfig {
    SessionConfig { coalesce: true, operations_max, window: 16, ..system.config() }
}

/// Goal: gets of one key that are pushed together are one get to the server, and each is told the answer; others are not
/// touched. Method: forty gets of three keys, one of which does not exist, among puts of another key; the server counts.
pub(crate) fn equal_gets_travel_once<R: Rig>(seed: u64) {
    let mut system = System::<R>::start(seed, Setup { faultless: true, ..Setup::cores(1) });
    let config = SessionConfig { order: Order::None, ..joining(&mut system, 255) };
    system.attach(1, config);
    system.until("a session", |system| system.session(0).is_open());
    assert_eq!(system.put(b"a", b"one"), Ended::Done);
    assert_eq!(system.put(b"long", &[7; 5_000]), Ended::Done);
    let keys: [&[u8]; 4] = [b"a", b"long", b"absent", b"a"];
    // Without a turn between them, all are in the request that is being filled.
    let mut tags = Vec::new();
    for number in 0..40 {
        let key = keys[number % keys.len()];
        tags.push((system.try_push(0, Operation::get(key)).unwrap(), key));
        if number % 10 == 0 {
            system.try_push(0, Operation::put(b"else", b"value")).unwrap();
        }
    }
    assert_eq!(system.session(0).counters().coalesced, 0, "what is not answered is not counted");
    system.settle();
    for &(tag, key) in &tags {
        let expected = match key {
            b"a" => Ended::Value(b"one".to_vec()),
            b"long" => Ended::Value(vec![7; 5_000]),
            _ => Ended::NotFound,
        };
        assert_eq!(system.ended(0, tag), Some(&expected));
        let (call, first) = (system.call(0, tag), tags.iter().find(|(_, other)| *other == key).unwrap());
        let first = system.call(0, first.0);
        assert_eq!((call.version, call.ttl_ms), (first.version, first.ttl_ms), "one answer, told to all");
    }
    assert_eq!(system.session(0).counters().coalesced, 40 - 3);
    system.expect_stat(Statistic::Puts, 6);
    system.expect_at_least(Statistic::Gets, 3);
    let gets = system.stats()[Statistic::Gets as usize];
    assert!((3..40).contains(&gets), "three gets and the ranges of a long value, not {gets}");
}

/// Goal: a request that was sent takes no more gets along, for its answer may be older than they are. Method: a get, then
/// as soon as it was sent another one, of which the server must know; and requests of one operation, which nothing joins.
pub(crate) fn what_was_sent_is_not_joined<R: Rig>(seed: u64) {
    let mut system = System::<R>::start(seed, Setup { faultless: true, ..Setup::cores(1) });
    for operations_max in [255, 1] {
        let config = SessionConfig { order: Order::None, ..joining(&mut system, operations_max) };
        system.attach(1, config);
    }
    system.until("two sessions", |system| (0..2).all(|caller| system.session(caller).is_open()));
    assert_eq!(system.put(b"key", b"value"), Ended::Done);
    for number in 1..=5 {
        let sent = system.session(0).counters().flows.requests;
        system.push(0, Operation::get(b"key"));
        system.until("it to be sent", |system| system.session(0).counters().flows.requests > sent);
        system.push(0, Operation::get(b"key"));
        system.settle();
        system.expect_at_least(Statistic::Gets, 2 * number);
    }
    for _ in 0..10 {
        system.push(1, Operation::get(b"key"));
    }
    system.settle();
    system.expect_at_least(Statistic::Gets, 20);
    let coalesced = |caller| system.session(caller).counters().coalesced;
    assert_eq!((coalesced(0), coalesced(1)), (0, 0));
}

/// Goal: coalescing changes no answer, in whatever order operations are. Method: three sessions get and put twelve keys by
/// a Zipf law; every operation ends once (the rig sees to that), and each key's history is a register's.
pub(crate) fn every_get_is_answered_whatever_it_joined<R: Rig>(seed: u64) {
    const OPERATIONS: usize = 600;
    const KEYS: usize = 12;
    let cores = 1 + (seed % 3) as u8;
    let mut system = System::<R>::start(seed, Setup::cores(cores));
    let orders = [Order::None, [Order::None, Order::Key, Order::Strict][(seed / 3 % 3) as usize]];
    for caller in 0..3 {
        let config = SessionConfig { coalesce: true, order: orders[caller % 2], ..system.config() };
        system.attach(cores, config);
    }
    let zipf = WeightedIndex::new((1..=KEYS).map(|rank| 1.0 / rank as f64)).expect("a law");
    let mut pushed: Vec<(usize, usize, usize, u64)> = Vec::new();
    let mut puts = 0;
    while pushed.len() < OPERATIONS {
        let (caller, number) = (system.random.random_range(0..3), zipf.sample(&mut system.random));
        let value = if system.random.random_bool(0.2) { pushed.len() as u64 + 1 } else { 0 };
        let (key, bytes) = ([b'a' + number as u8; 3], value.to_be_bytes());
        let operation = if value > 0 { Operation::put(&key, &bytes) } else { Operation::get(&key) };
        let tag = system.try_push(caller, operation);
        if let Some(tag) = tag {
            puts += u64::from(value > 0);
            pushed.push((caller, tag, number, value));
        }
        if tag.is_none() || system.random.random_bool(0.05) {
            system.turn();
        }
    }
    system.settle();
    let mut histories: HashMap<usize, Vec<_>> = HashMap::new();
    for &(caller, tag, number, value) in &pushed {
        histories.entry(number).or_default().push(access(&system, caller, tag, value));
    }
    for (number, history) in histories {
        if let Err(broken) = register::check(&history) {
            panic!("key {number}: {broken}");
        }
    }
    system.expect_stat(Statistic::Puts, puts);
}

/// Goal: what becomes of a get becomes of all that joined it, also without an answer. Method: gets of one key pushed
/// together to a core that it is not of, then while the server stands still for good; and after a restart the session
/// goes on, with puts between.
pub(crate) fn joined_gets_end_with_the_one_that_travels<R: Rig>(seed: u64) {
    let mut system = System::<R>::start(seed, Setup { faultless: true, ..Setup::cores(2) });
    let timeout = Duration::from_millis(300);
    let config = SessionConfig { timeout, order: Order::None, ..joining(&mut system, 20) };
    // It believes that the first core is all there is.
    system.attach(1, config);
    system.until("a session", |system| system.session(0).is_open());
    let together = |system: &mut System<R>, key: &[u8]| {
        let before = system.session(0).counters().coalesced;
        let tags: Vec<_> = (0..10).map(|_| system.push(0, Operation::get(key))).collect();
        system.settle();
        let ended: Vec<_> = tags.iter().map(|&tag| system.ended(0, tag).unwrap().clone()).collect();
        assert!(ended.iter().all(|other| *other == ended[0]), "{ended:?}");
        (ended[0].clone(), system.session(0).counters().coalesced - before)
    };
    let keys: Vec<_> = (0..20u32).map(u32::to_be_bytes).collect();
    let (mut owned, mut foreign) = (None, 0);
    for key in &keys {
        match together(&mut system, key) {
            (Ended::NotFound, 9) => owned = Some(*key),
            (Ended::NotExecuted(Reason::WrongCore), 0) => foreign += 1,
            other => panic!("gets of a key ended in {other:?}"),
        }
    }
    assert!((1..20).contains(&foreign), "{foreign} of 20 keys are the other core's");
    let owned = owned.expect("some keys are this core's");
    system.rig.stop();
    let lost = system.push(0, Operation::put(&owned, b"lost"));
    assert_eq!(together(&mut system, &owned), (Ended::NotExecuted(Reason::Deadline), 0));
    assert_eq!(system.ended(0, lost), Some(&Ended::Unknown));
    system.rig.restart();
    let mut tries = 0;
    while system.put(&owned, b"again") != Ended::Done {
        tries += 1;
        assert!(tries < 100, "the server is back and not used");
    }
    assert_eq!(together(&mut system, &owned), (Ended::Value(b"again".to_vec()), 9));
}
