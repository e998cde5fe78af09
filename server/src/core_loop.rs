//! The thread of one core: turns on its ports, housekeeping, and what to do when there is nothing to do.

use std::{
    io,
    os::fd::BorrowedFd,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
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

/// What all cores of a server shall do: serve, stop, or leave everything lying until some moment.
#[derive(Debug, Default)]
pub(crate) struct Orders(AtomicU64);

impl Orders {
    const SERVE: u64 = 0;
    const STOP: u64 = 1;

    /// Has the cores end when they have answered what has arrived.
    pub(crate) fn stop(&self) {
        self.0.store(Self::STOP, Ordering::Relaxed);
    }

    /// Has the cores do nothing until then, unless they are to stop.
    pub(crate) fn pause(&self, until: Instant) {
        let until_ns = until.since(Instant::default()).as_nanos() as u64;
        let change = |order| (order != Self::STOP).then_some(until_ns.max(Self::STOP + 1));
        // A core that is to stop does not pause any more.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    fn latest(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits while the cores are to do nothing.
    fn wait(&self, until_ns: u64, clock: impl Fn() -> Instant) {
        loop {
            let left = Instant::from_nanos(until_ns).since(clock());
            if left.is_zero() || self.latest() != until_ns {
                return;
            }
            thread::sleep(left.min(SLEEP_MAX));
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

/// Serves until it is ordered to stop, then answers what has already arrived.
///
/// # Errors
/// When a port is broken for good.
pub(crate) fn run<P: Port>(
    mut worker: Worker,
    mut ports: CorePorts<P>,
    idle: Idle,
    orders: &Orders,
    clock: impl Fn() -> Instant,
) -> io::Result<()> {
    let mut last_busy = clock();
    let mut next_housekeeping = last_busy;
    let mut order = Orders::SERVE;
    loop {
        let latest = orders.latest();
        if latest != order {
            order = latest;
            if order == Orders::STOP {
                break;
            }
            orders.wait(order, &clock);
            // Another order may have come meanwhile.
            continue;
        }
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Goal: a pause ends when its time has come, when another order comes, and never begins after an order to stop.
    /// Method: a clock that goes on by itself.
    #[test]
    fn a_pause_ends() {
        let at = |ns: u64| Instant::from_nanos(ns);
        let orders = Orders::default();
        assert_eq!(orders.latest(), Orders::SERVE);
        let asked = Cell::new(0);
        let clock = || {
            asked.set(asked.get() + 1);
            at(1_000 * asked.get())
        };
        orders.pause(at(10_000));
        orders.wait(orders.latest(), clock);
        assert_eq!(asked.get(), 10);
        // A moment that is also the number of another order.
        orders.pause(at(1));
        assert!(orders.latest() > Orders::STOP);
        orders.wait(orders.latest(), clock);
        let former = orders.latest();
        orders.stop();
        orders.wait(former, || at(0));
        orders.pause(at(u64::MAX));
        assert_eq!(orders.latest(), Orders::STOP);
    }
}
