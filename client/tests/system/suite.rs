//! Each behaviour once, for every network. `seed` decides everything random.

use std::{collections::HashMap, time::Duration};

use linerate_client::{Condition, Operation, Order, PushError, Reason, SessionConfig, Terms};
use linerate_proto::{
    hash::key_hash,
    placement::{Partition, core_of},
    wire::{REPLY_DATAGRAMS_MAX, Statistic, VALUE_LEN_MAX},
};
use rand::{Rng, RngExt, rngs::StdRng};

use crate::{
    register::{self, Access},
    rig::{Rig, Setup},
    system::{Ended, System},
};

/// Goal: the plain life of a key. Method: one operation at a time, each answer known.
pub(crate) fn puts_gets_and_deletes<R: Rig>(seed: u64) {
    let mut system = System::<R>::with_caller(seed, Setup::cores(1));
    assert_eq!(system.get(b"key"), Ended::NotFound);
    assert_eq!(system.delete(b"key"), Ended::NotFound);
    assert_eq!(system.put(b"key", b"one"), Ended::Done);
    assert_eq!(system.get(b"key"), Ended::Value(b"one".to_vec()));
    assert_eq!(system.put(b"key", b"another, longer one"), Ended::Done);
    assert_eq!(system.get(b"key"), Ended::Value(b"another, longer one".to_vec()));
    assert_eq!(system.get(b"kez"), Ended::NotFound);
    assert_eq!(system.delete(b"key"), Ended::Done);
    assert_eq!(system.get(b"key"), Ended::NotFound);
    assert_eq!(system.delete(b"key"), Ended::NotFound);
    system.expect_stat(Statistic::Puts, 2);
    system.expect_stat(Statistic::Deletes, 3);
    system.expect_stat(Statistic::Records, 0);
}

/// Goal: the limits of keys and values are where they are said to be. Method: shortest and longest of each, together
/// and apart, then one byte less or more, which is refused with the limit and without a trace.
pub(crate) fn keys_and_values_of_all_lengths<R: Rig>(seed: u64) {
    let mut system = System::<R>::with_caller(seed, Setup::cores(1));
    let key_lens = [1, 2, 254, 255];
    let mut expected = Vec::new();
    for key_len in key_lens {
        let longest = Operation::inline_value_len_max(key_len);
        for value_len in [0, 1, 1_000, longest - 1, longest, longest + 1, 1_500, 20_000] {
            let (key, value) = (vec![b'k'; key_len], filled(&mut system.random, value_len));
            system.push(0, Operation::put(&key, &value));
            system.settle();
            assert_eq!(system.get(&key), Ended::Value(value.clone()), "{key_len} and {value_len} bytes");
            expected.retain(|(other, _)| *other != key);
            expected.push((key, value));
        }
    }
    let too_long = vec![0; VALUE_LEN_MAX + 1];
    let refused = PushError::ValueLen(VALUE_LEN_MAX + 1);
    assert_eq!(refusal(&mut system, Operation::put(b"k", &too_long)), refused);
    assert!(refused.to_string().contains("0..=1048576 bytes"), "{refused}");
    for key_len in [0, 256] {
        let key = vec![b'k'; key_len];
        let operations = [Operation::get(&key), Operation::put(&key, b"v"), Operation::delete(&key)];
        for operation in operations {
            let refused = refusal(&mut system, operation);
            assert_eq!(refused, PushError::KeyLen(key_len));
            assert!(refused.to_string().contains("1..=255 bytes"), "{refused}");
        }
    }
    for (key, value) in expected {
        assert_eq!(system.get(&key), Ended::Value(value));
    }
    system.expect_stat(Statistic::Records, key_lens.len() as u64);
}

/// Goal: values of any length are stored and read whole, also while others replace them. Method: one session puts values
/// of all sizes up to 1 MiB at a few keys, each filled with one byte that tells it apart; two others get them meanwhile.
pub(crate) fn long_values_are_whole<R: Rig>(seed: u64) {
    let mut system =
        System::<R>::start(seed, Setup { faultless: false, ..Setup::cores(1 + (seed % 2) as u8) });
    let cores = 1 + (seed % 2) as u8;
    let config = SessionConfig { timeout: Duration::from_secs(60), ..system.config() };
    for _ in 0..3 {
        system.attach(cores, config);
    }
    for caller in 0..3 {
        system.until("a session", |system| system.session(caller).is_open());
    }
    let lens = [0, 100, 1_422, 1_423, 1_500, 3_000, 10_000, 60_000, 200_000, VALUE_LEN_MAX];
    let key = |number: usize| [b'a' + (number % 3) as u8];
    let (mut puts, mut gets) = (Vec::new(), Vec::new());
    for (number, len) in lens.into_iter().enumerate() {
        let value = vec![number as u8; len];
        puts.push(system.push(0, Operation::put(&key(number), &value)));
        for caller in [1, 2] {
            gets.push((caller, system.push(caller, Operation::get(&key(number)))));
        }
        if number % 3 == 2 {
            system.settle();
        }
    }
    system.settle();
    for &tag in &puts {
        assert_eq!(system.ended(0, tag), Some(&Ended::Done));
    }
    for (caller, tag) in gets {
        match system.ended(caller, tag).expect("it has ended") {
            Ended::NotFound | Ended::NotExecuted(Reason::Changed) => {}
            Ended::Value(value) => {
                let number = value.first().map_or(0, |&byte| usize::from(byte));
                assert!(value.iter().all(|&byte| usize::from(byte) == number), "parts of two values");
                assert_eq!(value.len(), lens[number]);
            }
            other => panic!("a get ended in {other:?}"),
        }
    }
    // The latest of each key, whole.
    for (number, &len) in lens.iter().enumerate().skip(lens.len() - 3) {
        assert_eq!(system.get(&key(number)), Ended::Value(vec![number as u8; len]));
    }
    system.expect_stat(Statistic::Puts, lens.len() as u64);
    system.expect_stat(Statistic::StagedBytes, 0);
}

/// Goal: an order is kept whatever happens on the way. Method: one session pushes puts of growing numbers, deletes and
/// gets on a few keys without waiting; each get must find what the calls before it left at its key. In strict order a
/// second session reads two keys that are written one after the other, in the opposite order: what it sees of the first
/// is never older.
pub(crate) fn orders_are_kept<R: Rig>(seed: u64) {
    let cores = 1 + (seed % 2) as u8;
    let strict = (seed / 2).is_multiple_of(2);
    let mut system = System::<R>::start(seed, Setup::cores(cores));
    for _ in 0..2 {
        let order = if strict { Order::Strict } else { Order::Key };
        let config = SessionConfig { order, ..system.config() };
        system.attach(cores, config);
    }
    let mut model = HashMap::new();
    let (mut expected, mut pairs) = (Vec::new(), Vec::new());
    for number in 0..120u64 {
        let key = [b'a' + system.random.random_range(0..4) as u8];
        let (operation, ended) = match system.random.random_range(0..6) {
            0..3 => (
                Operation::get(&key),
                model
                    .get(&key)
                    .map_or(Ended::NotFound, |&value: &u64| Ended::Value(value.to_be_bytes().to_vec())),
            ),
            3..5 => {
                model.insert(key, number);
                expected.push((system.push(0, Operation::put(&key, &number.to_be_bytes())), Ended::Done));
                continue;
            }
            _ => {
                let ended = if model.remove(&key).is_some() { Ended::Done } else { Ended::NotFound };
                (Operation::delete(&key), ended)
            }
        };
        expected.push((system.push(0, operation), ended));
        if strict && number % 8 == 0 {
            for key in [b"first", b"later"] {
                system.push(0, Operation::put(key, &number.to_be_bytes()));
            }
            let later = system.push(1, Operation::get(b"later"));
            system.until("the first read", |system| system.ended(1, later).is_some());
            pairs.push((later, system.push(1, Operation::get(b"first"))));
        }
    }
    system.settle();
    for (tag, ended) in expected {
        assert_eq!(system.ended(0, tag), Some(&ended), "operation {tag}");
    }
    let number = |system: &System<R>, tag| match system.ended(1, tag) {
        Some(Ended::Value(value)) => Some(u64::from_be_bytes(value[..].try_into().expect("8 bytes"))),
        _ => None,
    };
    for (later, first) in pairs {
        assert!(number(&system, later) <= number(&system, first), "the later write was seen, the first not");
    }
}

/// Goal: a caller may push far more than a request or a window holds. Method: 2,000 puts in a row, then 2,000 gets,
/// half of them of keys that do not exist, on two cores.
pub(crate) fn batches_span_many_requests<R: Rig>(seed: u64) {
    let mut system = System::<R>::with_caller(seed, Setup::cores(2));
    let key = |number: usize| format!("key number {number}").into_bytes();
    let value = |number: usize| format!("value {}", number * number).into_bytes();
    let puts: Vec<_> =
        (0..2_000).map(|number| system.push(0, Operation::put(&key(number), &value(number)))).collect();
    system.settle();
    assert!(puts.iter().all(|&tag| system.ended(0, tag) == Some(&Ended::Done)));
    let gets: Vec<_> = (1_000..3_000).map(|number| system.push(0, Operation::get(&key(number)))).collect();
    system.settle();
    for (tag, number) in gets.into_iter().zip(1_000..) {
        let expected = if number < 2_000 { Ended::Value(value(number)) } else { Ended::NotFound };
        assert_eq!(system.ended(0, tag), Some(&expected), "key {number}");
    }
    system.expect_stat(Statistic::Puts, 2_000);
    system.expect_stat(Statistic::Records, 2_000);
}

/// Goal: a small request may have a reply of more datagrams than are allowed for one; the caller does not notice.
/// Method: 255 values of 1,400 bytes, one per datagram, asked for by one request with short keys.
pub(crate) fn replies_span_many_datagrams<R: Rig>(seed: u64) {
    let mut system = System::<R>::start(seed, Setup::cores(1));
    let config = SessionConfig { operations_max: 255, window: 4, ..system.config() };
    system.attach(1, config);
    let values: Vec<_> = (0..255).map(|_| filled(&mut system.random, 1_400)).collect();
    for (value, number) in values.iter().zip(0u8..) {
        system.push(0, Operation::put(&[number], value));
    }
    system.settle();
    let requests_before = system.stats()[Statistic::Requests as usize];
    // Without a turn between them, all are in the request that is being filled.
    let gets: Vec<_> =
        (0u8..255).map(|number| system.try_push(0, Operation::get(&[number])).unwrap()).collect();
    system.settle();
    for (tag, value) in gets.into_iter().zip(values) {
        assert_eq!(system.ended(0, tag), Some(&Ended::Value(value)));
    }
    let per_request_max = REPLY_DATAGRAMS_MAX as u64;
    system.expect_at_least(Statistic::Requests, requests_before + 255 / per_request_max + 1);
}

/// Goal: every answer is the one that a plain map gives. Method: one to four sessions at once, each with keys and a
/// model of its own; an operation on a key waits for the one before it, so that each answer is certain. Afterwards all
/// keys are read back, and the server must have executed exactly as many writes as were acknowledged.
pub(crate) fn random_operations_match_a_hash_map<R: Rig>(seed: u64) {
    const OPERATIONS: usize = 250;
    let cores = 1 + (seed % 3) as u8;
    let mut system = System::<R>::start(seed, Setup::cores(cores));
    let sessions = system.random.random_range(1..=4);
    let mut models: Vec<Model> = (0..sessions).map(|caller| Model::new(caller, &mut system.random)).collect();
    for _ in 0..sessions {
        let config = system.config();
        system.attach(cores, config);
    }
    let mut left = OPERATIONS * sessions;
    while left > 0 {
        let caller = system.random.random_range(0..sessions);
        models[caller].check_ended(&system, caller);
        if models[caller].push_one(&mut system, caller) {
            left -= 1;
        } else {
            system.turn();
        }
    }
    system.settle();
    let (mut puts, mut deletes, mut adds, mut records) = (0, 0, 0, 0);
    for (caller, model) in models.iter_mut().enumerate() {
        model.check_ended(&system, caller);
        let keys = model.keys.clone();
        let gets: Vec<_> = keys.iter().map(|key| system.push(caller, Operation::get(key))).collect();
        system.settle();
        for (key, tag) in keys.iter().zip(gets) {
            let expected = model.map.get(key).cloned().map_or(Ended::NotFound, Ended::Value);
            assert_eq!(system.ended(caller, tag), Some(&expected), "session {caller}, key {key:?}");
        }
        puts += model.puts;
        deletes += model.deletes;
        adds += model.adds;
        records += model.map.len() as u64;
    }
    system.expect_stat(Statistic::Puts, puts);
    system.expect_stat(Statistic::Deletes, deletes);
    system.expect_stat(Statistic::Adds, adds);
    system.expect_stat(Statistic::Records, records);
}

/// Goal: sessions that write the same keys see one order of all writes, each taking effect exactly once and between its
/// push and its end. Method: four sessions, few keys, values that occur once; every key's history must be that of a
/// register. The server must have executed exactly the writes that were acknowledged.
pub(crate) fn shared_keys_are_linearizable<R: Rig>(seed: u64) {
    const OPERATIONS: u64 = 600;
    const KEYS: usize = 3;
    let cores = 1 + (seed % 2) as u8;
    let mut system = System::<R>::start(seed, Setup::cores(cores));
    for _ in 0..4 {
        let config = system.config();
        system.attach(cores, config);
    }
    let key = |key: usize| format!("shared {key}").into_bytes();
    // Session, tag, key and the value written, or 0 for a read.
    let mut pushed = Vec::new();
    let mut puts = 0;
    while pushed.len() < OPERATIONS as usize {
        let (caller, number) = (system.random.random_range(0..4), system.random.random_range(0..KEYS));
        let value = if system.random.random_bool(0.5) { pushed.len() as u64 + 1 } else { 0 };
        let (key, bytes) = (key(number), value.to_be_bytes());
        let operation = if value > 0 { Operation::put(&key, &bytes) } else { Operation::get(&key) };
        let tag = system.try_push(caller, operation);
        if let Some(tag) = tag {
            puts += u64::from(value > 0);
            pushed.push((caller, tag, number, value));
        }
        if tag.is_none() || system.random.random_bool(0.2) {
            system.turn();
        }
    }
    system.settle();
    for number in 0..KEYS {
        let of_key = pushed.iter().filter(|call| call.2 == number);
        let history: Vec<_> =
            of_key.map(|&(caller, tag, _, value)| access(&system, caller, tag, value)).collect();
        if let Err(broken) = register::check(&history) {
            panic!("key {number}: {broken}");
        }
    }
    system.expect_stat(Statistic::Puts, puts);
}

/// Goal: each core owns its share of the keys and nobody else's. Method: one, two and three cores; 300 keys are put
/// and found again; each core holds just those that placement gives it, and none was refused.
pub(crate) fn keys_spread_over_all_cores<R: Rig>(seed: u64) {
    for cores in 1..=3u8 {
        let mut system = System::<R>::with_caller(seed, Setup::cores(cores));
        let keys: Vec<_> = (0..300u32).map(|number| number.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
        for key in &keys {
            system.push(0, Operation::put(key, b"value"));
        }
        system.settle();
        let gets: Vec<_> = keys.iter().map(|key| system.push(0, Operation::get(key))).collect();
        system.settle();
        assert!(gets.iter().all(|&tag| system.ended(0, tag) == Some(&Ended::Value(b"value".to_vec()))));
        system.expect_stat(Statistic::Records, 300);
        system.expect_stat(Statistic::WrongCore, 0);
        for (core, stats) in (0..cores).zip(system.rig.stats()) {
            let owned = keys.iter().filter(|key| owner(&key[..], cores) == core).count();
            assert!(owned > 50, "core {core} of {cores} owns {owned} keys");
            assert_eq!(stats[Statistic::Records as usize], owned as u64, "core {core} of {cores}");
        }
        let told: Vec<_> = system.session(0).cores().map(|(_, info)| info.unwrap().core).collect();
        assert_eq!(told, (0..cores).collect::<Vec<_>>());
    }
}

/// Goal: at its memory's end a server refuses puts, and nothing else. Method: large values until some were refused;
/// then what was accepted is read back, what was refused is not there, deletes work, and make room.
pub(crate) fn a_full_memory_refuses_puts_only<R: Rig>(seed: u64) {
    const NO_SPACE: Ended = Ended::NotExecuted(Reason::NoSpace);
    let mut system = System::<R>::with_caller(seed, Setup { small: true, ..Setup::cores(1) });
    let key = |number: u32| number.to_be_bytes();
    let value = filled(&mut system.random, 1_400);
    let mut puts = Vec::new();
    // Beyond the largest memory of any rig: 20,000 × 1,400 bytes.
    while !puts.iter().rev().take(200).any(|&tag| system.ended(0, tag) == Some(&NO_SPACE)) {
        assert!(puts.len() < 20_000, "the memory never fills");
        for _ in 0..40 {
            puts.push(system.push(0, Operation::put(&key(puts.len() as u32), &value)));
        }
        system.settle();
    }
    let kept: Vec<bool> = puts.iter().map(|&tag| system.ended(0, tag) == Some(&Ended::Done)).collect();
    let refused = kept.iter().filter(|&&kept| !kept).count();
    assert!(
        puts.iter().all(|&tag| matches!(system.ended(0, tag), Some(Ended::Done))
            || system.ended(0, tag) == Some(&NO_SPACE))
    );
    system.expect_stat(Statistic::NoSpace, refused as u64);
    system.expect_stat(Statistic::Records, (kept.len() - refused) as u64);

    // The latest 300 include all that were refused.
    let recent = kept.len().saturating_sub(300)..kept.len();
    let gets: Vec<_> =
        recent.clone().map(|number| system.push(0, Operation::get(&key(number as u32)))).collect();
    system.settle();
    for (tag, number) in gets.into_iter().zip(recent) {
        let expected = if kept[number] { Ended::Value(value.clone()) } else { Ended::NotFound };
        assert_eq!(system.ended(0, tag), Some(&expected), "key {number}");
    }

    let gone: Vec<_> = (0..50).map(|number| system.push(0, Operation::delete(&key(number)))).collect();
    system.settle();
    assert!(gone.iter().all(|&tag| system.ended(0, tag) == Some(&Ended::Done)));
    assert_eq!(system.get(&key(0)), Ended::NotFound);
    // Half of the room that was freed, whatever the arena does with the rest.
    for number in 0..25 {
        assert_eq!(system.put(&key(number), &value), Ended::Done, "put {number} after the deletes");
    }
    assert_eq!(system.get(&key(24)), Ended::Value(value));
}

/// Goal: a restart ends what was in flight truthfully, and the session finds the new server by itself. Method: writes
/// and reads are sent while the server is down, then it starts again, empty, at the same address. The writes may not
/// have taken effect there.
pub(crate) fn a_restarted_server_is_found_again<R: Rig>(seed: u64) {
    let cores = 1 + (seed % 2) as u8;
    let mut system = System::<R>::start(seed, Setup::cores(cores));
    let config = SessionConfig { window: 16, operations_max: 4, ..system.config() };
    system.attach(cores, config);
    let key = |number: u32| number.to_be_bytes();
    for number in 0..100 {
        system.push(0, Operation::put(&key(number), b"old"));
    }
    system.settle();

    system.rig.stop();
    let sent_before = system.session(0).counters().flows.requests;
    let puts: Vec<_> =
        (0..8).filter_map(|number| system.try_push(0, Operation::put(&key(number), b"new"))).collect();
    // Some are on the way; credits that nobody renews keep the others back.
    system.until("a request to be sent", |system| system.session(0).counters().flows.requests > sent_before);
    let gets: Vec<_> =
        (50..58).filter_map(|number| system.try_push(0, Operation::get(&key(number)))).collect();
    assert_eq!((puts.len(), gets.len()), (8, 8), "the window has room");
    system.rig.restart();
    system.settle();

    let unknown = puts.iter().filter(|&&tag| system.ended(0, tag) == Some(&Ended::Unknown)).count();
    assert!(unknown > 0, "writes sent to the old server are unknown");
    for &tag in &puts {
        let ended = system.ended(0, tag).unwrap();
        // A request that was not sent before the restart goes to the new server as if nothing had been.
        assert!(matches!(ended, Ended::Unknown | Ended::Done), "a put ended in {ended:?}");
    }
    for &tag in &gets {
        let ended = system.ended(0, tag).unwrap();
        assert!(matches!(ended, Ended::NotFound | Ended::NotExecuted(_)), "a get ended in {ended:?}");
    }
    for (number, &tag) in (0..).zip(&puts) {
        let expected = match system.ended(0, tag) {
            Some(Ended::Done) => Ended::Value(b"new".to_vec()),
            _ => Ended::NotFound,
        };
        assert_eq!(system.get(&key(number)), expected, "key {number}");
    }
    assert_eq!(system.get(&key(99)), Ended::NotFound, "the store is volatile");
    for number in 0..50 {
        system.push(0, Operation::put(&key(number), b"newer"));
    }
    system.settle();
    assert_eq!(system.get(&key(49)), Ended::Value(b"newer".to_vec()));
    system.expect_stat(Statistic::Records, 50);
    system.expect_stat(Statistic::Puts, 50 + (puts.len() - unknown) as u64);
    assert!(system.session(0).counters().flows.sessions >= 2 * u64::from(cores), "each core was found again");
}

/// Goal: without a server every operation still ends, truthfully, and no sooner is all lost than a server that comes
/// back is used. Method: the server stops for good under writes and reads in flight; the first are unknown, the latter
/// not executed. Operations begun later are not executed either, or unknown.
pub(crate) fn a_lost_server_ends_everything_by_the_deadline<R: Rig>(seed: u64) {
    const DEADLINE: Ended = Ended::NotExecuted(Reason::Deadline);
    let mut system = System::<R>::start(seed, Setup { faultless: true, ..Setup::cores(1) });
    let config = SessionConfig {
        window: 4,
        operations_max: 2,
        timeout: Duration::from_millis(300),
        ..system.config()
    };
    system.attach(1, config);
    system.until("a session", |system| system.session(0).is_open());
    assert_eq!(system.put(b"key", b"value"), Ended::Done);
    system.rig.stop();
    let put = system.push(0, Operation::put(b"key", b"value"));
    let get = system.push(0, Operation::get(b"key"));
    system.settle();
    assert_eq!(system.ended(0, put), Some(&Ended::Unknown));
    assert_eq!(system.ended(0, get), Some(&DEADLINE));
    // More than the window: some wait until others are given up.
    let later: Vec<_> = (0..20).map(|_| system.push(0, Operation::get(b"key"))).collect();
    system.settle();
    assert!(later.iter().all(|&tag| system.ended(0, tag) == Some(&DEADLINE)));

    system.rig.restart();
    let mut tries = 0;
    while system.put(b"key", b"again") != Ended::Done {
        tries += 1;
        assert!(tries < 100, "the server is back and not used");
    }
    assert_eq!(system.get(b"key"), Ended::Value(b"again".to_vec()));
}

/// Goal: a client that believes in another number of cores is refused, not served wrongly. Method: a server of two
/// cores, a client of the first alone; keys of the first core work, each of the other's is refused and stored nowhere,
/// and so is a whole request that holds one.
pub(crate) fn another_count_of_cores_is_refused<R: Rig>(seed: u64) {
    const WRONG_CORE: Ended = Ended::NotExecuted(Reason::WrongCore);
    let mut system = System::<R>::start(seed, Setup::cores(2));
    let single = SessionConfig { operations_max: 1, ..system.config() };
    system.attach(1, single);
    let all = SessionConfig { operations_max: 255, ..system.config() };
    system.attach(1, all);
    let keys: Vec<_> = (0..60u32).map(u32::to_be_bytes).collect();
    let mut refused = 0;
    for key in &keys {
        let put = system.push(0, Operation::put(key, b"value"));
        let get = system.push(0, Operation::get(key));
        let delete = system.push(0, Operation::delete(key));
        if owner(key, 2) == 0 {
            continue;
        }
        system.settle();
        refused += 3;
        for tag in [put, get, delete] {
            assert_eq!(system.ended(0, tag), Some(&WRONG_CORE));
        }
    }
    system.settle();
    assert!((30..150).contains(&refused), "{refused} of 180 belong to the other core");
    system.expect_at_least(Statistic::WrongCore, refused);
    let owned = 60 - refused / 3;
    system.expect_stat(Statistic::Puts, owned);

    system.until("a session", |system| system.session(1).is_open());
    let mixed: Vec<_> =
        keys.iter().map(|key| system.try_push(1, Operation::put(key, b"mixed")).unwrap()).collect();
    system.settle();
    assert!(
        mixed.iter().all(|&tag| system.ended(1, tag) == Some(&WRONG_CORE)),
        "a request is refused as a whole"
    );
    system.expect_stat(Statistic::Puts, owned);
}

/// What a session's caller expects of keys that nobody else touches.
struct Model {
    keys: Vec<Vec<u8>>,
    map: HashMap<Vec<u8>, Vec<u8>>,
    /// Keys with an operation under way: its tag, and what it will end in.
    busy: HashMap<usize, (usize, Ended)>,
    puts: u64,
    deletes: u64,
    adds: u64,
}

impl Model {
    fn new(caller: usize, random: &mut StdRng) -> Self {
        let keys = (0..40u8).map(|number| {
            let len = [0, random.random_range(0..20), 253][random.random_range(0..3)];
            [&[caller as u8, number][..], &vec![b'.'; len]].concat()
        });
        Self { keys: keys.collect(), map: HashMap::new(), busy: HashMap::new(), puts: 0, deletes: 0, adds: 0 }
    }

    /// Compares what has ended since the last call.
    fn check_ended<R: Rig>(&mut self, system: &System<R>, caller: usize) {
        self.busy.retain(|&key, (tag, expected)| {
            let ended = system.ended(caller, *tag);
            assert!(
                ended.is_none_or(|ended| ended == expected),
                "session {caller}, key {key}: {ended:?} is not {expected:?}"
            );
            ended.is_none()
        });
    }

    /// Pushes an operation on a key that has none under way; `false` when there is no such key or no room.
    fn push_one<R: Rig>(&mut self, system: &mut System<R>, caller: usize) -> bool {
        let number = system.random.random_range(0..self.keys.len());
        if self.busy.contains_key(&number) {
            return false;
        }
        let key = &self.keys[number];
        let choice = system.random.random_range(0..13);
        let mut value = Vec::new();
        let operation = match choice {
            0..4 => Operation::get(key),
            4..9 => {
                let longest = Operation::inline_value_len_max(key.len()) + 2_000;
                let len = [0, 16, longest / 8, longest][system.random.random_range(0..4)];
                let len = system.random.random_range(0..=len);
                value = filled(&mut system.random, len);
                Operation::put(key, &value)
            }
            9 => Operation::delete(key),
            10 => Operation::add(key, 3, None),
            _ => {
                value = 7_u64.to_be_bytes().to_vec();
                let condition = if choice == 11 { Condition::Absent } else { Condition::Present };
                Operation::put_on(key, &value, Terms::only_if(condition))
            }
        };
        let Some(tag) = system.try_push(caller, operation) else { return false };
        let expected = match choice {
            0..4 => self.map.get(key).cloned().map_or(Ended::NotFound, Ended::Value),
            4..9 => {
                self.puts += 1;
                self.map.insert(key.clone(), value);
                Ended::Done
            }
            9 => {
                self.deletes += 1;
                self.map.remove(key).map_or(Ended::NotFound, |_| Ended::Done)
            }
            10 => {
                self.adds += 1;
                let former =
                    self.map.get(key).map_or(&[0; 8][..], |value| value).try_into().map(u64::from_be_bytes);
                match former {
                    Ok(former) => {
                        self.map.insert(key.clone(), (former + 3).to_be_bytes().to_vec());
                        Ended::Value(former.to_be_bytes().to_vec())
                    }
                    Err(_) => Ended::NotExecuted(Reason::NotANumber),
                }
            }
            _ => {
                self.puts += 1;
                match (choice, self.map.contains_key(key)) {
                    (11, true) => Ended::NotExecuted(Reason::Exists),
                    (12, false) => Ended::NotFound,
                    _ => {
                        self.map.insert(key.clone(), value);
                        Ended::Done
                    }
                }
            }
        };
        self.busy.insert(number, (tag, expected));
        true
    }
}

/// An ended operation as an access of a register.
pub(crate) fn access<R: Rig>(system: &System<R>, caller: usize, tag: usize, written: u64) -> Access {
    let call = system.call(caller, tag);
    let (value, end) = match call.ended.as_ref().expect("all operations have ended") {
        Ended::Done => (written, call.end),
        Ended::Unknown => (written, u64::MAX),
        Ended::NotFound => (0, call.end),
        Ended::Value(bytes) => {
            (u64::from_be_bytes(bytes[..].try_into().expect("8 bytes were written")), call.end)
        }
        ended @ Ended::NotExecuted(_) => panic!("operation {tag} of session {caller} ended in {ended:?}"),
    };
    Access { start: call.start, end, write: written > 0, value }
}

/// Why an operation is not taken; the session stays as it is.
fn refusal<R: Rig>(system: &mut System<R>, operation: Operation<'_>) -> PushError {
    system.refused(0, operation).expect("it is outside the limits")
}

/// The core that owns a key.
fn owner(key: &[u8], cores: u8) -> u8 {
    core_of(Partition::of(key_hash(key.into())), cores)
}

fn filled(random: &mut StdRng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    random.fill_bytes(&mut bytes);
    bytes
}
