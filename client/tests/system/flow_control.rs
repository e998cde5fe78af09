//! Receive queues never overflow, however much clients want at once.

use std::time::{Duration, Instant as SystemInstant};

use linerate_client::{Ended, Operation, PushError, Session, SessionConfig};
use linerate_dataplane::{UdpPort, pin::allowed_cores};
use linerate_proto::wire::{STAT_NAMES, Statistic};
use linerate_server::{Server, ServerConfig};

/// Receive buffer that a kernel gives every program (`net.core.rmem_default`); it holds 92 full datagrams.
const SMALL_LEN: usize = 212_992;

/// Operations of each session.
const OPERATIONS: u64 = 20_000;

/// Goal: closed-loop clients cannot overflow a receive queue, neither the server's nor their own. Method: sessions whose
/// windows add up to more than twice what the server's queue holds push full requests and ask for long replies as fast as
/// they are let, with the kernel's default buffer on both sides. Between polls they pause, so that answers pile up.
#[test]
fn twice_the_queues_capacity_overflows_nothing() {
    const SESSIONS: usize = 4;
    const WINDOW: u16 = 64;
    let config = ServerConfig {
        port: 0,
        cpus: vec![allowed_cores().unwrap()[0]],
        memory_len: 64 << 20,
        receive_buffer_len: SMALL_LEN,
        ..ServerConfig::default()
    };
    let server = Server::start(&config).unwrap();
    let session = SessionConfig {
        window: WINDOW,
        operations_max: 110,
        receive_buffer_len: SMALL_LEN,
        timeout: Duration::from_secs(60),
        ..SessionConfig::default()
    };
    let mut sessions: Vec<Session<UdpPort>> =
        (0..SESSIONS).map(|_| Session::connect_udp(&[server.addr()], session).unwrap()).collect();
    let capacity = SMALL_LEN / 2_304;
    assert!(SESSIONS * usize::from(WINDOW) > 2 * capacity);

    let value = [7; 1_000];
    let mut pushed = [0; SESSIONS];
    let mut ended = [0; SESSIONS];
    let begun = SystemInstant::now();
    while ended.iter().any(|&ended| ended < OPERATIONS) {
        for (index, session) in sessions.iter_mut().enumerate() {
            let now = session.now();
            while pushed[index] < OPERATIONS {
                let key = (pushed[index] % 100).to_be_bytes();
                let is_put = pushed[index] < 100 || pushed[index] % 4 == 0;
                let operation = if is_put { Operation::put(&key, &value) } else { Operation::get(&key) };
                match session.push(now, operation, 0) {
                    Ok(()) => pushed[index] += 1,
                    Err(PushError::Full) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            let count = &mut ended[index];
            let mut sink = |ended: Ended<'_>| {
                assert!(
                    !matches!(ended.outcome, linerate_client::Outcome::NotExecuted(_)),
                    "{:?}",
                    ended.outcome
                );
                *count += 1;
            };
            session.poll(now, &mut sink).unwrap();
        }
        std::thread::sleep(Duration::from_micros(300));
        assert!(begun.elapsed() < Duration::from_secs(120), "{ended:?} of {OPERATIONS} each");
    }
    for session in &sessions {
        assert_eq!(session.counters().port.rx_overflow_drops, 0);
    }
    drop(sessions);
    let stats = server.stop().unwrap();
    let name = STAT_NAMES[Statistic::RxOverflowDrops as usize];
    assert_eq!(stats[Statistic::RxOverflowDrops as usize], 0, "{name}");
    // Reads may be executed more than once, writes not.
    let puts =
        SESSIONS as u64 * (0..OPERATIONS).filter(|number| *number < 100 || number % 4 == 0).count() as u64;
    assert_eq!(stats[Statistic::Puts as usize], puts);
    assert!(stats[Statistic::Gets as usize] >= SESSIONS as u64 * OPERATIONS - puts);
}

/// Goal: a server says no rather than promise more than its queue holds. Method: with a queue of some fourteen datagrams,
/// open sessions until one is refused; those that are open go on working.
#[test]
fn sessions_beyond_the_queue_are_refused() {
    let config = ServerConfig {
        port: 0,
        cpus: vec![allowed_cores().unwrap()[0]],
        memory_len: 64 << 20,
        receive_buffer_len: 32 << 10,
        ..ServerConfig::default()
    };
    let server = Server::start(&config).unwrap();
    let session = SessionConfig { timeout: Duration::from_millis(700), ..SessionConfig::default() };
    let mut open = Vec::new();
    let refused = loop {
        match Session::connect_udp(&[server.addr()], session) {
            Ok(session) => open.push(session),
            Err(error) => break error,
        }
        assert!(open.len() < 20, "more sessions than datagrams in the queue");
    };
    assert!(open.len() >= 5, "{} sessions", open.len());
    assert!(refused.to_string().contains("receive"), "{refused}");
    for session in &mut open {
        session.put(b"key", b"value", 1).unwrap();
        let mut done = 0;
        session.run(|ended| done += u32::from(ended.outcome == linerate_client::Outcome::Done)).unwrap();
        assert_eq!(done, 1);
        assert_eq!(session.counters().port.rx_overflow_drops, 0);
    }
}
