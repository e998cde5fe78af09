//! The blocking client.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use linerate_client::{Added, Client, ConnectError, Entry, Error, PushError, Reason, SessionConfig, Written};
use linerate_dataplane::Port;
use linerate_proto::wire::Statistic;

use crate::rig::{Live, LiveRig, Rig, Setup, with_rings};

/// Opens a client.
pub(crate) type Connect<P> = fn(&[SocketAddr], SessionConfig) -> Result<Client<P>, ConnectError>;

macro_rules! over_rings {
    ($($name:ident,)+) => {
        mod packet {
            $(#[test] fn $name() {
                super::with_rings(|_| super::$name(linerate_client::Client::connect_packet));
            })+
        }
        mod xdp {
            $(#[test] fn $name() {
                super::with_rings(|_| super::$name(linerate_client::Client::connect_xdp));
            })+
        }
    };
}

over_udp_and_tcp! {
    calls_return_their_answers,
    conditions_and_sums_are_told_apart,
    a_restart_costs_the_calls_under_way_only,
    a_server_that_is_not_there_is_named,
}

// An address without anybody is on no network.
over_rings! {
    calls_return_their_answers,
    conditions_and_sums_are_told_apart,
    a_restart_costs_the_calls_under_way_only,
}

/// Settings of a client that nothing ends for lack of time.
pub(crate) fn patient() -> SessionConfig {
    SessionConfig {
        timeout: Duration::from_secs(20),
        rto_floor: Duration::from_millis(1),
        ..SessionConfig::default()
    }
}

/// Goal: each call does what its name says, whatever its size. Method: single calls, then batches many times larger
/// than the window, on three cores; lengths outside the limits; pings and statistics; and the session's end.
fn calls_return_their_answers<P: Live>(connect: Connect<P>) {
    let mut rig = LiveRig::<P>::start(0, Setup::cores(3));
    let mut client = rig.client(connect, SessionConfig { window: 2, ..patient() }).unwrap();
    assert_eq!(client.get(b"key").unwrap(), None);
    client.put(b"key", b"value").unwrap();
    assert_eq!(client.get(b"key").unwrap().as_deref(), Some(&b"value"[..]));
    assert!(client.delete(b"key").unwrap());
    assert!(!client.delete(b"key").unwrap());

    let pairs: Vec<_> = (0..3_000u32).map(|number| (number.to_be_bytes(), number.to_string())).collect();
    client.multi_put(&pairs).unwrap();
    let keys: Vec<_> = (1_000..4_000u32).map(u32::to_be_bytes).collect();
    for (value, number) in client.multi_get(&keys).unwrap().into_iter().zip(1_000u32..) {
        assert_eq!(value, (number < 3_000).then(|| number.to_string().into_bytes()), "key {number}");
    }

    let long = vec![0; 256];
    for key in [&[][..], &long] {
        let refused = client.put(key, b"value").unwrap_err();
        assert!(matches!(refused, Error::Invalid(PushError::KeyLen(len)) if len == key.len()), "{refused}");
    }
    // One wrong pair, and none is stored.
    let refused =
        client.multi_put(&[(&b"good"[..], &b"value"[..]), (b"bad", &vec![0; 1_500_000])]).unwrap_err();
    assert!(matches!(refused, Error::Invalid(PushError::ValueLen(1_500_000))), "{refused}");
    assert_eq!(client.get(b"good").unwrap(), None);

    assert!(client.ping().unwrap().iter().all(|(_, time)| time.is_some()));
    let statistics = client.statistics().unwrap();
    assert_eq!(statistics.len(), 3);
    assert!(statistics.iter().all(|(_, values)| values.is_some()));

    drop(client);
    let sessions =
        |rig: &mut LiveRig<P>| rig.stats().iter().map(|core| core[Statistic::Sessions as usize]).sum::<u64>();
    while sessions(&mut rig) > 0 {
        assert!(rig.elapsed() < rig.patience(), "goodbyes were sent to all cores");
        rig.pass(false);
    }
    rig.stop();
}

/// Goal: the caller learns whether a condition was met, what was in the way, and what the sum is; an entry's version is the
/// one to compare with. Method: each call in each of its ends, whatever the session was asked to tell; limits of terms.
fn conditions_and_sums_are_told_apart<P: Live>(connect: Connect<P>) {
    let mut rig = LiveRig::<P>::start(0, Setup::cores(2));
    let mut client = rig.client(connect, SessionConfig { window: 2, ..patient() }).unwrap();
    for (key, len) in [(&b"short"[..], 10), (b"pages", 50_000)] {
        let value = |byte| vec![byte; len];
        assert_eq!(client.get_entry(key).unwrap(), None);
        assert_eq!(client.put_if_present(key, &value(1)).unwrap(), Written::NotFound);
        assert_eq!(client.compare_and_put(key, &value(1), 1).unwrap(), Written::NotFound);
        let Written::Done { version } = client.put_if_absent(key, &value(2)).unwrap() else {
            panic!("absent")
        };
        assert_eq!(client.put_if_absent(key, &value(3)).unwrap(), Written::Exists { version });
        let expected = Entry { value: value(2), version, ttl: None };
        assert_eq!(client.get_entry(key).unwrap(), Some(expected));
        let changed = client.compare_and_put(key, &value(4), version + 1).unwrap();
        assert_eq!(changed, Written::Changed { version });
        assert!(client.compare_and_put(key, &value(5), version).unwrap().is_done());
        assert!(client.put_if_present(key, &value(6)).unwrap().is_done());
        assert_eq!(client.get(key).unwrap(), Some(value(6)));
        let version = client.get_entry(key).unwrap().unwrap().version;
        assert_eq!(client.add(key, 1, None).unwrap(), Added::NotANumber { version });
    }
    let refused = client.compare_and_put(b"key", b"value", 0).unwrap_err();
    assert!(matches!(refused, Error::Invalid(PushError::NoVersion)), "{refused}");
    for (delta, expected) in [(5, 5), (-7, -2), (i64::MIN, i64::MIN.wrapping_sub(2)), (0, i64::MAX - 1)] {
        let added = client.add(b"n", delta, None).unwrap();
        assert!(matches!(added, Added::Sum { number, .. } if number == expected), "{added:?}");
    }
    rig.stop();
}

/// Goal: a call without a server fails truthfully and within its time, and the first call after a restart may still
/// fail, but later ones do not. Method: calls before, between and after a stop and a start.
fn a_restart_costs_the_calls_under_way_only<P: Live>(connect: Connect<P>) {
    let mut rig = LiveRig::<P>::start(0, Setup::cores(2));
    let config = SessionConfig { timeout: Duration::from_millis(300), ..patient() };
    let mut client = loop {
        // The deadline is short for what comes; a busy machine may miss it here.
        match rig.client(connect, config) {
            Ok(client) => break client,
            Err(error) => assert!(rig.elapsed() < rig.patience(), "{error}"),
        }
    };
    while client.put(b"key", b"old").is_err() {
        assert!(rig.elapsed() < rig.patience());
    }
    rig.stop();
    assert!(matches!(client.put(b"key", b"lost"), Err(Error::OutcomeUnknown { .. })));
    assert!(matches!(client.get(b"key"), Err(Error::NotExecuted(Reason::Deadline))));
    rig.restart();
    let mut tries = 0;
    while let Err(error) = client.put(b"other", b"new") {
        tries += 1;
        assert!(tries < 100, "after the restart: {error}");
    }
    loop {
        match client.multi_get(&[&b"key"[..], b"other"]) {
            Ok(values) => {
                assert_eq!(values, [None, Some(b"new".to_vec())]);
                break;
            }
            Err(error) => assert!(rig.elapsed() < rig.patience(), "{error}"),
        }
    }
    rig.stop();
    rig.restart();
    while client.statistics().unwrap().iter().any(|(_, values)| values.is_none()) {
        assert!(rig.elapsed() < rig.patience(), "questions find their way into a new session, too");
    }
}

/// Goal: nobody waits for a server that is not there. Method: an address whose socket was closed again.
fn a_server_that_is_not_there_is_named<P: Port>(connect: Connect<P>) {
    let addr = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = SessionConfig { timeout: Duration::from_millis(200), ..SessionConfig::default() };
    let Err(error) = connect(&[addr], config) else { panic!("nobody is there") };
    assert!(matches!(error, ConnectError::NoAnswer(at, _) if at == addr), "{error}");
    assert!(error.to_string().contains(&addr.to_string()));
}
