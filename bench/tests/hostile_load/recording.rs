//! Real traffic to attack with: what a client library says to a server through a relay that listens.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use linerate_client::{Operation, PushError, Session, SessionConfig};
use linerate_dataplane::{UdpConfig, UdpPort};
use linerate_proto::{
    Key,
    hash::key_hash,
    placement::{Partition, core_of},
    wire::Kind,
};

use crate::socket::Socket;

/// Longest wait for a session, or an answer in it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Pause of the relay when nothing arrives.
const PAUSE: Duration = Duration::from_micros(50);

/// Datagrams in the order in which they were sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recording {
    /// What the client said: HELLO, OPEN, requests of every sort, PING, STATS, CLOSE.
    pub(crate) asked: Vec<Vec<u8>>,
    /// What the server said.
    pub(crate) answered: Vec<Vec<u8>>,
}

/// Keys of the attackers.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// Of the core that is attacked.
    own: Vec<Vec<u8>>,
    /// Of another core.
    foreign: Vec<u8>,
}

impl Keys {
    /// For core number `core` of `cores`, which are at least two.
    pub(crate) fn of(core: u8, cores: u8) -> Self {
        let is_own = |key: &Vec<u8>| core_of(Partition::of(key_hash(Key::new(key))), cores) == core;
        let keys = || (0..).map(|number| format!("attacker's key {number}").into_bytes());
        Self {
            own: keys().filter(is_own).take(43).collect(),
            foreign: keys().find(|key| !is_own(key)).expect("every core has keys"),
        }
    }
}

/// Who speaks, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speaker {
    /// The same speaker again ends its older session.
    pub(crate) client_id: u64,
    /// Higher each time.
    pub(crate) generation: u64,
    pub(crate) checksum: bool,
}

/// Has a client open a session and use all of the protocol through `socket`. The goodbye is recorded and not sent, so
/// that the session lives on in the hands of whoever has the socket. `None` when the server had no room for it.
pub(crate) fn record(socket: &mut Socket, keys: &Keys, speaker: Speaker) -> Option<Recording> {
    let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    front.set_nonblocking(true).unwrap();
    let addr = front.local_addr().unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let relay = scope.spawn(|| relay(&front, socket, &over));
        let udp = UdpConfig { receive_buffer_len: 1 << 20, rx_buffers: 4, tx_chunks: 4, trains: true };
        let config = SessionConfig {
            window: 16,
            operations_max: 20,
            checksum: speaker.checksum,
            versions: true,
            client_id: Some(speaker.client_id),
            timeout: PATIENCE,
            ..SessionConfig::default()
        };
        let port = UdpPort::connect(&[addr], udp).unwrap();
        let mut session = Session::attach(port, &[addr], config, speaker.generation);
        let opened = speak(&mut session, keys);
        drop(session);
        over.store(true, Ordering::Relaxed);
        let recording = relay.join().unwrap();
        opened.then_some(recording)
    })
}

/// Uses all of the protocol; `false` when there was no session to use it in. The relay looks like a server of one core,
/// so that a foreign key is asked for all the same.
fn speak(session: &mut Session<UdpPort>, keys: &Keys) -> bool {
    let begun = Instant::now();
    while !session.is_open() {
        session.flush(session.now(), &mut |_| {}).unwrap();
        session.wait(Duration::from_millis(1)).unwrap();
        if begun.elapsed() > PATIENCE {
            return false;
        }
    }
    for number in 0..30 {
        let value = vec![number as u8; 10 * number];
        push(session, Operation::put(&keys.own[number], &value));
        // One request each for some, many in one for others.
        if number % 3 == 0 {
            session.flush(session.now(), &mut |_| {}).unwrap();
        }
    }
    session.run(|_| {}).unwrap();
    for number in 0..40 {
        push(session, Operation::get(&keys.own[number]));
    }
    session.run(|_| {}).unwrap();
    for number in 0..10 {
        push(session, Operation::delete(&keys.own[4 * number]));
    }
    for number in 40..43 {
        push(session, Operation::put(&keys.own[number], &[number as u8; 5_000]));
    }
    session.run(|_| {}).unwrap();
    for number in 40..43 {
        push(session, Operation::get(&keys.own[number]));
    }
    session.run(|_| {}).unwrap();
    push(session, Operation::get(&keys.foreign));
    push(session, Operation::put(&keys.foreign, b"value"));
    session.run(|_| {}).unwrap();
    session.ping(&mut |_| {}).unwrap();
    session.statistics(&mut |_| {}).unwrap();
    true
}

/// Hands an operation over as soon as there is room.
fn push(session: &mut Session<UdpPort>, operation: Operation<'_>) {
    while let Err(error) = session.push(session.now(), operation, 0) {
        assert_eq!(error, PushError::Full);
        session.flush(session.now(), &mut |_| {}).unwrap();
        session.wait(Duration::from_millis(1)).unwrap();
    }
}

/// Carries datagrams both ways until the client has left.
fn relay(front: &UdpSocket, socket: &mut Socket, over: &AtomicBool) -> Recording {
    let mut recording = Recording::default();
    let mut client = None;
    let mut buffer = [0; 2_048];
    loop {
        // Looked at before the socket is: a goodbye that was sent before has arrived.
        let last = over.load(Ordering::Relaxed);
        let mut idle = true;
        while let Ok((len, from)) = front.recv_from(&mut buffer) {
            idle = false;
            client = Some(from);
            recording.asked.push(buffer[..len].to_vec());
            if buffer[0] != Kind::CLOSE.0 {
                socket.send(&buffer[..len]);
            }
        }
        socket.flush();
        socket.drain(|answer| {
            idle = false;
            recording.answered.push(answer.to_vec());
            if let Some(client) = client {
                // A client that has left hears nothing.
                let _ = front.send_to(answer, client);
            }
        });
        if idle {
            if last {
                return recording;
            }
            thread::sleep(PAUSE);
        }
    }
}
