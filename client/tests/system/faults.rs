//! What only virtual time can show: rare orders of events, long waits, exact deadlines, and that a seed replays.

use std::{collections::HashMap, time::Duration};

use linerate_client::{Operation, Reason, Session, SessionConfig};
use linerate_dataplane::sim::{FaultCounters, Faults};
use linerate_proto::{
    flow::Outcome,
    wire::{STAT_COUNT, Statistic},
};
use rand::RngExt;

use crate::{
    register::{self, Access},
    rig::{Rig, Setup, SimRig, for_seeds},
    suite::access,
    system::{Ended, System},
};

/// A workload of puts and gets by two sessions; what it did to the network and the server.
fn mixed_run(seed: u64) -> (FaultCounters, [u64; STAT_COUNT], Duration) {
    let mut system = System::<SimRig>::start(seed, Setup::cores(1));
    for _ in 0..2 {
        let config = system.config();
        system.attach(1, config);
    }
    for number in 0..300u32 {
        let caller = (number % 2) as usize;
        let key = (number % 37).to_be_bytes();
        let is_put = number % 3 == 0;
        system.push(caller, if is_put { Operation::put(&key, b"value") } else { Operation::get(&key) });
    }
    system.settle();
    let mut stats = system.stats();
    // What the machine does is not part of the run.
    stats[Statistic::CpuNs as usize] = 0;
    (system.rig.network.counters(), stats, system.rig.elapsed())
}

/// Goal: a seed printed by a failure shows the failure again. Method: each run twice, compared in all that was counted.
#[test]
fn a_seed_replays_its_run() {
    for_seeds(10, |seed| assert_eq!(mixed_run(seed), mixed_run(seed)));
}

/// Goal: the suite's networks are as bad as they are meant to be. Method: over 40 seeds each fault has happened, and
/// each defence was used.
#[test]
fn the_simulated_faults_are_met() {
    let runs: Vec<_> = (0..40).map(mixed_run).collect();
    let faults =
        |count: fn(&FaultCounters) -> u64| runs.iter().map(|(faults, ..)| count(faults)).sum::<u64>();
    assert!(faults(|faults| faults.lost) > 100);
    assert!(faults(|faults| faults.duplicated) > 100);
    assert!(faults(|faults| faults.reordered) > 100);
    assert!(faults(|faults| faults.corrupted) > 20);
    for defence in [Statistic::Replays, Statistic::DropStale, Statistic::DropChecksum] {
        let met: u64 = runs.iter().map(|(_, stats, _)| stats[defence as usize]).sum();
        assert!(met > 10, "{defence:?}: {met}");
    }
}

/// Goal: nothing of the old server's life leaks into the new one's, whenever it restarts. Method: random operations
/// while the server stops, stays away and starts again at random moments. Of each life, what began in it or was under
/// way must be a register's history in which unknown writes may or may not count; what had ended before is gone.
#[test]
fn restarts_at_any_moment_lose_everything_and_invent_nothing() {
    const OPERATIONS: u64 = 300;
    for_seeds(150, |seed| {
        let mut system = System::<SimRig>::start(seed, Setup::cores(1));
        for _ in 0..3 {
            let config = SessionConfig { timeout: Duration::from_millis(500), ..system.config() };
            system.attach(1, config);
        }
        // Session, tag, key and the value written, or 0 for a read.
        let mut pushed: Vec<(usize, usize, u8, u64)> = Vec::new();
        let mut lives = vec![0];
        let mut up = true;
        while pushed.len() < OPERATIONS as usize {
            if system.random.random_bool(0.005) {
                // A mark that all later pushes and ends are above.
                lives.extend((!up).then(|| system.mark()));
                if up {
                    system.rig.stop()
                } else {
                    system.rig.restart()
                }
                up = !up;
            }
            let (caller, key) = (system.random.random_range(0..3), system.random.random_range(0..3));
            let value = if system.random.random_bool(0.5) { pushed.len() as u64 + 1 } else { 0 };
            let (name, bytes) = ([key], value.to_be_bytes());
            let operation = if value > 0 { Operation::put(&name, &bytes) } else { Operation::get(&name) };
            if let Some(tag) = system.try_push(caller, operation) {
                pushed.push((caller, tag, key, value));
            }
            if system.random.random_bool(0.5) {
                system.turn();
            }
        }
        if !up {
            lives.push(system.mark());
            system.rig.restart();
        }
        system.settle();

        lives.push(u64::MAX);
        for key in 0..3 {
            let executed = |&&(caller, tag, of, _): &&(usize, usize, u8, u64)| {
                of == key && !matches!(system.ended(caller, tag), Some(Ended::NotExecuted(_)))
            };
            let all: Vec<_> = pushed
                .iter()
                .filter(executed)
                .map(|&(caller, tag, _, value)| {
                    (system.call(caller, tag).end, access(&system, caller, tag, value))
                })
                .collect();
            for life in lives.windows(2) {
                let of_life = all.iter().filter(|(end, access)| {
                    let begun_before = access.start < life[0];
                    // A read that spans a restart may have seen either life.
                    let within = !begun_before && *end < life[1];
                    access.start < life[1] && *end > life[0] && (access.write || within)
                });
                // A write that spans the restart before may have taken effect in the life before.
                let possible = |&(_, access): &(u64, Access)| match access.start < life[0] {
                    true => Access { end: u64::MAX, ..access },
                    false => access,
                };
                let history: Vec<_> = of_life.map(possible).collect();
                if let Err(broken) = register::check(&history) {
                    panic!("key {key} between {life:?}: {broken}");
                }
            }
        }
    });
}

/// Goal: a session that ends while its last writes still wander through the network harms nobody. Method: duplicates
/// of the writes are held back so that they reach the server together with the goodbye, in either order, in one burst.
#[test]
fn a_goodbye_among_late_duplicates_is_harmless() {
    for_seeds(100, |seed| {
        let mut rig = SimRig::start(seed, Setup { faultless: true, ..Setup::cores(1) });
        let wild = Faults {
            duplication: 1.0,
            reordering: 0.7,
            delay: (Duration::from_micros(5), Duration::from_micros(50)),
            ..Faults::NONE
        };
        let mut leaver = rig.attach(1, SessionConfig::default(), seed);
        pass_until(&mut rig, &mut leaver, &mut |_| {}, Session::is_open);
        rig.network.set_faults(wild);
        let now = rig.now();
        leaver.push(now, Operation::put(b"key", b"value"), 1).unwrap();
        let mut done = false;
        let sink = &mut |ended: linerate_client::Ended<'_>| done = ended.outcome == Outcome::Done;
        pass_until(&mut rig, &mut leaver, sink, Session::is_idle);
        assert!(done);
        drop(leaver);
        // All that is on the way arrives before the server looks.
        rig.network.advance(Duration::from_secs(1));
        rig.serve();

        rig.network.set_faults(Faults::NONE);
        let mut other = rig.attach(1, SessionConfig::default(), seed + 1);
        pass_until(&mut rig, &mut other, &mut |_| {}, Session::is_open);
        let now = rig.now();
        other.push(now, Operation::get(b"key"), 2).unwrap();
        let mut found = false;
        let sink = &mut |ended: linerate_client::Ended<'_>| found = ended.outcome == Outcome::Value(b"value");
        pass_until(&mut rig, &mut other, sink, Session::is_idle);
        assert!(found, "the server serves on");
        let stats = rig.stats()[0];
        assert_eq!(stats[Statistic::Sessions as usize], 1, "the goodbye was understood");
        assert_eq!(stats[Statistic::Puts as usize], 1);
    });
}

/// Goal: a session outlives its lease while its owner polls, and one whose owner slept too long is opened anew without
/// the caller's doing. Method: ten leases of virtual time, polled and then not.
#[test]
fn an_idle_session_lives_while_it_is_polled_and_is_renewed_afterwards() {
    const LEASE: Duration = Duration::from_secs(60);
    for_seeds(3, |seed| {
        let mut system = System::<SimRig>::with_caller(seed, Setup::cores(1));
        assert_eq!(system.put(b"key", b"value"), Ended::Done);
        let until = system.rig.elapsed() + LEASE * 10;
        while system.rig.elapsed() < until {
            system.turn();
            // Coarse steps, but well below a third of the lease, when keep-alives are due.
            system.rig.network.advance(Duration::from_millis(500));
        }
        assert_eq!(system.session(0).counters().flows.sessions, 1);
        assert_eq!(system.get(b"key"), Ended::Value(b"value".to_vec()));

        for _ in 0..10 {
            system.rig.network.advance(LEASE);
            system.rig.serve();
        }
        assert_eq!(system.stats()[Statistic::Sessions as usize], 0, "nobody spoke for ten leases");
        assert_eq!(system.put(b"key", b"other"), Ended::Done, "nothing was in flight, so nothing is unknown");
        assert_eq!(system.get(b"key"), Ended::Value(b"other".to_vec()));
        assert_eq!(system.session(0).counters().flows.sessions, 2);
    });
}

/// Goal: a deadline is kept: not before, and not much later. Method: a server that vanishes under operations of every
/// age, on virtual time.
#[test]
fn outcomes_come_at_the_deadline() {
    const TIMEOUT: Duration = Duration::from_millis(400);
    for_seeds(20, |seed| {
        let mut rig = SimRig::start(seed, Setup { faultless: true, ..Setup::cores(1) });
        let config =
            SessionConfig { timeout: TIMEOUT, window: 256, operations_max: 1, ..SessionConfig::default() };
        let mut session = rig.attach(1, config, seed);
        pass_until(&mut rig, &mut session, &mut |_| {}, Session::is_open);
        rig.stop();
        let mut begun = HashMap::new();
        let mut ended = HashMap::new();
        for tag in 0..200u64 {
            let now = rig.now();
            let is_put = tag % 2 == 0;
            let operation = if is_put { Operation::put(b"key", b"value") } else { Operation::get(b"key") };
            if session.push(now, operation, tag).is_ok() {
                begun.insert(tag, now);
            }
            session.flush(now, &mut |end| record(&mut ended, end.tag, now, end.outcome)).unwrap();
            rig.network.advance(Duration::from_millis(3));
        }
        while !session.is_idle() {
            let now = rig.now();
            session.flush(now, &mut |end| record(&mut ended, end.tag, now, end.outcome)).unwrap();
            rig.network.advance(Duration::from_millis(1));
            assert!(rig.elapsed() < TIMEOUT * 100, "some operation never ends");
        }
        assert!(begun.len() > 100);
        for (tag, begun) in begun {
            let (at, outcome) = &ended[&tag];
            let allowed = match outcome {
                Ended::Unknown => tag % 2 == 0,
                // A put may end so when it was never sent, since nothing told of credit.
                outcome => *outcome == Ended::NotExecuted(Reason::Deadline),
            };
            assert!(allowed, "operation {tag} ended in {outcome:?}");
            let took = at.since(begun);
            // Deadlines are looked at once in an eighth of the timeout.
            assert!(took >= TIMEOUT && took <= TIMEOUT * 5 / 4, "operation {tag} ended after {took:?}");
        }
    });
}

fn record(
    ended: &mut HashMap<u64, (linerate_client::Instant, Ended)>,
    tag: u64,
    now: linerate_client::Instant,
    outcome: Outcome<'_>,
) {
    assert!(ended.insert(tag, (now, outcome.into())).is_none(), "operation {tag} ended twice");
}

/// Lets server and session work until something holds.
fn pass_until<R: Rig>(
    rig: &mut R,
    session: &mut Session<R::Port>,
    sink: &mut impl FnMut(linerate_client::Ended<'_>),
    condition: impl Fn(&Session<R::Port>) -> bool,
) {
    while !condition(session) {
        let now = rig.now(session);
        let arrived = session.flush(now, sink).unwrap();
        rig.pass(arrived > 0);
        assert!(rig.elapsed() < rig.patience(), "waited in vain");
    }
}

/// Goal: a client that starts again under its name does not wait for what its former start has left behind, and the former
/// one learns of it. Method: two sessions of one client id, one after the other; the server then has one, the first
/// session's operation ends without effect, and the second's works.
#[test]
fn a_client_that_starts_again_takes_its_sessions_place() {
    for_seeds(20, |seed| {
        let mut system = System::<SimRig>::start(seed, Setup::cores(1));
        let config = SessionConfig { client_id: Some(7), timeout: Duration::from_secs(2), ..system.config() };
        for generation in [1_000, 2_000] {
            let session = system.rig.attach(1, config, generation);
            system.add(session);
            let caller = usize::from(generation > 1_000);
            system.until("a session", |system| system.session(caller).is_open());
            let put = system.push(caller, Operation::put(b"key", &generation.to_be_bytes()));
            system.until("the put", |system| system.ended(caller, put).is_some());
            assert_eq!(system.ended(caller, put), Some(&Ended::Done));
        }
        system.expect_stat(Statistic::SessionsFenced, 1);
        system.expect_stat(Statistic::Sessions, 1);
        let put = system.push(0, Operation::put(b"key", b"from the past"));
        system.settle();
        let ended = system.ended(0, put);
        assert!(matches!(ended, Some(Ended::Unknown | Ended::NotExecuted(_))), "{ended:?}");
        let get = system.push(1, Operation::get(b"key"));
        system.settle();
        assert_eq!(system.ended(1, get), Some(&Ended::Value(2_000u64.to_be_bytes().to_vec())));
    });
}
