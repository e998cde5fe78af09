//! Conditions, counters and times to live, for every network. `seed` decides everything random.

use std::num::NonZeroU32;

use linerate_client::{Condition, Operation, Reason, SessionConfig, Terms};
use linerate_proto::wire::Statistic;
use rand::RngExt;

use crate::{
    rig::{Rig, Setup},
    system::{Ended, System},
};

const fn refused(reason: Reason) -> Ended {
    Ended::NotExecuted(reason)
}

fn number(number: u64) -> Ended {
    Ended::Value(number.to_be_bytes().to_vec())
}

fn ttl(milliseconds: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(milliseconds)
}

/// A server and one session that is told everything.
fn told<R: Rig>(seed: u64) -> System<R> {
    let mut system = System::start(seed, Setup::cores(1));
    let config = SessionConfig { versions: true, lifetimes: true, ..system.config() };
    system.attach(1, config);
    system
}

/// Goal: each condition is met when it says so and not otherwise, and a refusal tells of the version in the way. Method: one
/// operation at a time, each answer known, for values of one datagram and of many.
pub(crate) fn conditions_are_met_or_not<R: Rig>(seed: u64) {
    let mut system = told::<R>(seed);
    let (mut writes, mut failed) = (0, 0);
    for (key, len) in [(b"short", 100), (b"pages", 20_000)] {
        let value = |byte: u8| vec![byte; len];
        let mut put = |system: &mut System<R>, byte, condition| {
            writes += 1;
            let value = value(byte);
            system.execute_told(Operation::put_on(key, &value, Terms::only_if(condition)))
        };
        let (end, absent_at) = system.execute_told(Operation::get(key));
        assert_eq!(end, Ended::NotFound);
        for condition in [Condition::Present, Condition::Version(1), Condition::Version(u64::MAX)] {
            assert_eq!(put(&mut system, 1, condition), (Ended::NotFound, absent_at), "{condition:?}");
        }
        let (end, first) = put(&mut system, 2, Condition::Absent);
        assert_eq!((end, first), (Ended::Done, absent_at + 1));
        assert_eq!(put(&mut system, 3, Condition::Absent), (refused(Reason::Exists), first));
        for version in [first - 1, first + 1].into_iter().filter(|&version| version > 0) {
            let end = put(&mut system, 4, Condition::Version(version));
            assert_eq!(end, (refused(Reason::Changed), first));
            failed += 1;
        }
        assert_eq!(system.get(key), Ended::Value(value(2)), "what was refused changed nothing");
        assert_eq!(put(&mut system, 5, Condition::Version(first)), (Ended::Done, first + 1));
        assert_eq!(put(&mut system, 6, Condition::Present), (Ended::Done, first + 2));
        assert_eq!(put(&mut system, 7, Condition::Version(first + 1)), (refused(Reason::Changed), first + 2));
        assert_eq!(system.get(key), Ended::Value(value(6)));
        failed += 5;
    }
    system.expect_stat(Statistic::Puts, writes);
    system.expect_stat(Statistic::ConditionsFailed, failed);
}

/// Goal: a counter is a number of eight bytes, told as it was before, wherever its ends are. Method: one operation at a time;
/// the same request again and again is one add each.
pub(crate) fn counters_count<R: Rig>(seed: u64) {
    let mut system = told::<R>(seed);
    let add = |system: &mut System<R>, delta: i64| {
        system.execute(0, Operation::add(b"counter", delta.cast_unsigned(), None))
    };
    assert_eq!(add(&mut system, 5), number(0));
    assert_eq!(add(&mut system, -7), number(5));
    assert_eq!(add(&mut system, 0), number((-2_i64).cast_unsigned()));
    assert_eq!(add(&mut system, i64::MIN), number((-2_i64).cast_unsigned()));
    assert_eq!(add(&mut system, 3), number((-2_i64).wrapping_add(i64::MIN).cast_unsigned()));
    assert_eq!(system.get(b"counter"), number((1_i64).wrapping_add(i64::MIN).cast_unsigned()));
    assert_eq!(system.put(b"counter", &41_u64.to_be_bytes()), Ended::Done);
    assert_eq!(add(&mut system, 1), number(41));
    for value in [&b""[..], b"1234567", b"123456789", &[0; 20_000]] {
        assert_eq!(system.put(b"text", value), Ended::Done);
        let (_, version) = system.execute_told(Operation::get(b"text"));
        let end = system.execute_told(Operation::add(b"text", 1, None));
        assert_eq!(end, (refused(Reason::NotANumber), version), "{} bytes", value.len());
        assert_eq!(system.get(b"text"), Ended::Value(value.to_vec()));
    }
    assert_eq!(system.delete(b"counter"), Ended::Done);
    assert_eq!(add(&mut system, 1), number(0));
    system.expect_stat(Statistic::Adds, 11);
    system.expect_stat(Statistic::ConditionsFailed, 4);
    system.expect_stat(Statistic::Version, 13);
}

/// Goal: adds of many sessions happen one after the other, each once. Method: four sessions add positive numbers to a few
/// counters; what each add has found and added must be one chain from 0 to what is read at the end.
pub(crate) fn adds_happen_once_each<R: Rig>(seed: u64) {
    const ADDS: usize = 500;
    let cores = 1 + (seed % 2) as u8;
    let mut system = System::<R>::start(seed, Setup::cores(cores));
    for _ in 0..4 {
        let config = system.config();
        system.attach(cores, config);
    }
    let key = |counter: usize| format!("counter {counter}").into_bytes();
    let mut pushed = Vec::new();
    while pushed.len() < ADDS {
        let (caller, counter) = (system.random.random_range(0..4), system.random.random_range(0..3));
        let delta = system.random.random_range(1..1_000);
        match system.try_push(caller, Operation::add(&key(counter), delta, None)) {
            Some(tag) if system.random.random_bool(0.8) => pushed.push((counter, caller, tag, delta)),
            Some(tag) => {
                pushed.push((counter, caller, tag, delta));
                system.turn();
            }
            None => system.turn(),
        }
    }
    system.settle();
    for counter in 0..3 {
        let of_counter = pushed.iter().filter(|add| add.0 == counter);
        let mut chain: Vec<(u64, u64)> = of_counter
            .map(|&(_, caller, tag, delta)| match system.ended(caller, tag) {
                Some(Ended::Value(former)) => (u64::from_be_bytes(former[..].try_into().unwrap()), delta),
                end => panic!("an add ended in {end:?}"),
            })
            .collect();
        chain.sort_unstable();
        let mut sum = 0;
        for (former, delta) in chain {
            assert_eq!(former, sum, "counter {counter}");
            sum += delta;
        }
        assert_eq!(system.get(&key(counter)), number(sum));
    }
    system.expect_stat(Statistic::Adds, ADDS as u64);
    system.expect_stat(Statistic::Version, ADDS as u64);
}

/// Goal: a value that is replaced only at the version that was read loses no update, and of many who want to be the first one
/// is. Method: three sessions read a number and put the next until each has succeeded some times; the number at the end is
/// the count of successes.
pub(crate) fn compare_and_put_loses_no_update<R: Rig>(seed: u64) {
    const UPDATES: u64 = 60;
    let mut system = System::<R>::start(seed, Setup::cores(1));
    for _ in 0..3 {
        let config = SessionConfig { versions: true, ..system.config() };
        system.attach(1, config);
    }
    let first: Vec<_> = (0..3)
        .map(|caller| {
            let terms = Terms::only_if(Condition::Absent);
            (caller, system.push(caller, Operation::put_on(b"number", &0_u64.to_be_bytes(), terms)))
        })
        .collect();
    system.settle();
    let done = first.iter().filter(|&&(caller, tag)| system.ended(caller, tag) == Some(&Ended::Done));
    assert_eq!(done.count(), 1);
    let mut updates = 0;
    while updates < UPDATES {
        let gets: Vec<_> = (0..3).map(|caller| system.push(caller, Operation::get(b"number"))).collect();
        system.settle();
        let puts: Vec<_> = gets
            .into_iter()
            .enumerate()
            .map(|(caller, tag)| {
                let Some(Ended::Value(bytes)) = system.ended(caller, tag) else { panic!("it is there") };
                let next = u64::from_be_bytes(bytes[..].try_into().unwrap()) + 1;
                let terms = Terms::only_if(Condition::Version(system.call(caller, tag).version));
                let tag = system.push(caller, Operation::put_on(b"number", &next.to_be_bytes(), terms));
                (caller, tag)
            })
            .collect();
        system.settle();
        let done = puts.iter().filter(|&&(caller, tag)| match system.ended(caller, tag) {
            Some(Ended::Done) => true,
            end => {
                assert_eq!(end, Some(&refused(Reason::Changed)));
                false
            }
        });
        let count = done.count();
        assert_eq!(count, 1, "all have read the same version");
        updates += 1;
    }
    assert_eq!(system.get(b"number"), number(updates));
}

/// Goal: terms do not change how a value is read, and who asks for times to live is told of none where there is none. Method:
/// values of all lengths around what fits a datagram with the extension, read with and without versions.
pub(crate) fn values_on_terms_are_read_like_others<R: Rig>(seed: u64) {
    for (versions, lifetimes) in [(false, true), (true, true), (true, false)] {
        let mut system = System::<R>::start(seed, Setup::cores(1));
        let config = SessionConfig { versions, lifetimes, ..system.config() };
        system.attach(1, config);
        let longest = Operation::inline_value_len_max(3);
        for len in [0, 1, 1_410, longest - 12, longest - 11, longest, longest + 1, 30_000] {
            for terms in [Terms::NONE, Terms::only_if(Condition::Present), Terms::NONE.for_ms(ttl(u32::MAX))]
            {
                let value = vec![len as u8; len];
                let end = system.execute(0, Operation::put_on(b"key", &value, terms));
                assert_eq!(end, Ended::Done, "{len} bytes, {terms:?}");
                assert_eq!(system.get(b"key"), Ended::Value(value), "{len} bytes, {terms:?}");
            }
            system.execute(0, Operation::put(b"key", b"for ever"));
            let tag = system.push(0, Operation::get(b"key"));
            system.settle();
            assert_eq!(system.call(0, tag).ttl_ms, None);
        }
    }
}

/// Goal: a value is there with the time that it has left, until that has passed; a plain put makes it stay again, and an add
/// changes nothing of a time that runs. Method: short values and long ones, a counter; the end is waited for.
pub(crate) fn values_live_as_long_as_they_are_told<R: Rig>(seed: u64) {
    const LONG_MS: u32 = 3_600_000;
    let mut system = told::<R>(seed);
    let left = |system: &mut System<R>, key: &[u8]| {
        let tag = system.push(0, Operation::get(key));
        system.settle();
        system.call(0, tag).ttl_ms.map(NonZeroU32::get)
    };
    for (key, len) in [(b"short", 100), (b"pages", 20_000)] {
        let value = vec![7; len];
        let put = |system: &mut System<R>, terms| {
            assert_eq!(system.execute(0, Operation::put_on(key, &value, terms)), Ended::Done);
        };
        put(&mut system, Terms::NONE.for_ms(ttl(LONG_MS)));
        let told = left(&mut system, key);
        assert!(told.is_some_and(|told| told > 1 && told <= LONG_MS), "{told:?}");
        put(&mut system, Terms::NONE);
        assert_eq!(left(&mut system, key), None, "a put without a time takes it away");
        put(&mut system, Terms::only_if(Condition::Present).for_ms(ttl(40)));
        system.until_absent(key);
        put(&mut system, Terms::only_if(Condition::Absent));
        assert_eq!(left(&mut system, key), None);
    }
    let add = |system: &mut System<R>, ttl_ms| system.execute(0, Operation::add(b"counter", 1, ttl_ms));
    assert_eq!(add(&mut system, ttl(LONG_MS)), number(0));
    assert_eq!(add(&mut system, None), number(1));
    assert_eq!(add(&mut system, ttl(1)), number(2));
    let told = left(&mut system, b"counter");
    assert!(told.is_some_and(|told| told > 1 && told <= LONG_MS), "{told:?}");
    assert_eq!(system.delete(b"counter"), Ended::Done);
    assert_eq!(add(&mut system, ttl(40)), number(0));
    system.until_absent(b"counter");
    assert_eq!(add(&mut system, None), number(0), "it begins anew");
    system.expect_stat(Statistic::Records, 3);
}
