//! The thread of one core: turns on its ports, housekeeping, and what to do when there is nothing to do.

use std::{
    io,
    os::fd::BorrowedFd,
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use linerate_dataplane::{Port, PortCounters, TcpPort, wait::wait};
use linerate_proto::Instant;

use crate::worker::Worker;

/// How often statistics are published and ports are looked after.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_millis(20);

/// An idle core that may sleep keeps looking for this long first: a client's next burst is usually nearer than the tens
/// of microseconds that going to sleep and waking up take.
const SPIN_BEFORE_SLEEP: Duration = Duration::from_micros(50);

/// Longest sleep: a request to stop is noticed within it.
const SLEEP_MAX: Duration = Duration::from_millis(50);

/// Bursts that are still answered after a request to stop.
const LAST_BURSTS_MAX: usize = 1_000;

/// What a core does when nothing arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Looks again at once, using a whole CPU.
    Spin,
    /// Looks for a while, then sleeps until something arrives.
    #[default]
    Epoll,
}

impl FromStr for Idle {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "spin" => Ok(Self::Spin),
            "epoll" => Ok(Self::Epoll),
            _ => Err(format!("`{text}` is no way to wait: give spin or epoll")),
        }
    }
}

/// The ports of one core.
#[derive(Debug)]
pub(crate) struct CorePorts<P> {
    pub(crate) datagrams: Option<P>,
    pub(crate) tcp: Option<TcpPort>,
}

impl<P: Port> CorePorts<P> {
    fn counters(&self) -> PortCounters {
        let datagrams = self.datagrams.as_ref().map(Port::counters).unwrap_or_default();
        let tcp = self.tcp.as_ref().map(Port::counters).unwrap_or_default();
        datagrams.plus(tcp)
    }

    /// Takes the memory of the ports from the system now, by the calling thread.
    pub(crate) fn populate(&mut self) -> io::Result<()> {
        self.datagrams.as_mut().map_or(Ok(()), Port::populate)?;
        self.tcp.as_mut().map_or(Ok(()), Port::populate)
    }

    fn check(&mut self) -> io::Result<()> {
        self.datagrams.as_mut().map_or(Ok(()), Port::check)?;
        self.tcp.as_mut().map_or(Ok(()), Port::check)
    }
}

/// Serves until `stop` is set, then answers what has already arrived.
///
/// # Errors
/// When a port is broken for good.
pub(crate) fn run<P: Port>(
    mut worker: Worker,
    mut ports: CorePorts<P>,
    idle: Idle,
    stop: &AtomicBool,
    clock: impl Fn() -> Instant,
) -> io::Result<()> {
    let mut last_busy = clock();
    let mut next_housekeeping = last_busy;
    while !stop.load(Ordering::Relaxed) {
        let count = turn(&mut worker, &mut ports, &clock)?;
        let now = clock();
        if now >= next_housekeeping {
            next_housekeeping = now + HOUSEKEEPING_INTERVAL;
            ports.check()?;
            worker.publish(&ports.counters(), now.since(Instant::default()));
        }
        if count > 0 {
            last_busy = now;
        } else if idle == Idle::Epoll && now.since(last_busy) > SPIN_BEFORE_SLEEP {
            sleep(&ports)?;
            // What woke the core gets a full spin of its own.
            last_busy = clock();
        }
    }
    for _ in 0..LAST_BURSTS_MAX {
        if turn(&mut worker, &mut ports, &clock)? == 0 {
            break;
        }
    }
    worker.publish(&ports.counters(), clock().since(Instant::default()));
    Ok(())
}

fn turn<P: Port>(
    worker: &mut Worker,
    ports: &mut CorePorts<P>,
    clock: impl Fn() -> Instant,
) -> io::Result<usize> {
    let datagrams = ports.datagrams.as_mut().map_or(Ok(0), |port| worker.turn(port, &clock))?;
    let tcp = ports.tcp.as_mut().map_or(Ok(0), |tcp| worker.turn(tcp, &clock))?;
    Ok(datagrams + tcp)
}

fn sleep<P: Port>(ports: &CorePorts<P>) -> io::Result<()> {
    let datagrams = ports.datagrams.as_ref().and_then(Port::wait_fd);
    let tcp = ports.tcp.as_ref().and_then(Port::wait_fd);
    match (datagrams, tcp) {
        (Some(datagrams), Some(tcp)) => wait(&[datagrams, tcp], SLEEP_MAX),
        (Some(fd), None) | (None, Some(fd)) => wait(&[fd], SLEEP_MAX),
        (None, None) => wait(&[] as &[BorrowedFd<'_>], SLEEP_MAX),
    }
}
