//! The closed loop of the client: keep so many requests in flight on each connection, look at every answer, count.
//!
//! As tight as linerate's own client is: one thread that never sleeps, no allocation and as few system calls as the depth
//! allows, large buffers, answers parsed where they were received.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use linerate_dataplane::{Peer, Port, UdpConfig, UdpPort};
use linerate_server::stats::thread_cpu_ns;
use zerocopy::{FromBytes, IntoBytes};

use super::{
    memcached::{self, Frame},
    request::{InFlight, Look, Tally, Values, move_gets_to_front, write},
    resp,
    setting::{Dialect, Setting, fitting},
};
use crate::{
    run::check_stop,
    workload::{Draw, Stream, ValueLen},
};

/// What is received at once, at most, beside what is there of a longer value.
const RECEIVE_LEN: usize = 256 << 10;

/// Bursts of datagrams that are received at most before requests are sent again.
const BURSTS_MAX: usize = 4;

/// Longest value that memcached sends in one datagram together with its key (`UDP_MAX_PAYLOAD_SIZE` is 1,400; the
/// announcement and the line end take up to 40).
pub(super) const DATAGRAM_VALUE_LEN_MAX: usize = 1_300;

/// After so long without an answer, datagrams in flight are taken for lost.
const LOST_AFTER: Duration = Duration::from_millis(200);

/// After so long without an answer, a peer is taken for dead.
const DEAD_AFTER: Duration = Duration::from_secs(5);

/// Operations of a request that stores records.
const PRELOAD_BATCH: usize = 64;

/// Requests in flight that store records.
const PRELOAD_WINDOW: usize = 8;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'a> {
    pub(super) addr: SocketAddr,
    pub(super) setting: Setting,
    pub(super) look: Look,
    /// Time before counting starts.
    pub(super) warmup: Duration,
    /// Time that is counted.
    pub(super) duration: Duration,
    /// Whether the server has to have this thread's CPU while there is nothing to do.
    pub(super) yields: bool,
    /// Ends the measurement early, with an error.
    pub(super) stop: &'a AtomicBool,
}

/// What was counted.
#[derive(Clone, Debug)]
pub(super) struct Driven {
    /// Time that was really counted.
    pub(super) elapsed: Duration,
    pub(super) tally: Tally,
    /// CPU time of this thread.
    pub(super) client_cpu: Duration,
    /// Time in which there was nothing to send or receive.
    pub(super) idle: Duration,
    /// CPU time of the server, if it can be told.
    pub(super) server_cpu: Option<Duration>,
}

impl Driven {
    /// Operations answered per second.
    pub(super) fn ops_per_sec(&self) -> f64 {
        self.tally.ops() as f64 / self.seconds()
    }

    /// Part of the time, in %.
    pub(super) fn pct(&self, part: Duration) -> f64 {
        part.as_secs_f64() / self.seconds() * 100.0
    }

    fn seconds(&self) -> f64 {
        self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Measures once. `server_cpu` tells the CPU time that the server has had; `live` grows as operations end.
///
/// # Errors
/// A sentence that fits behind the peer's name: what it did.
pub(super) fn drive(
    plan: &Plan<'_>,
    stream: &mut Stream,
    live: &AtomicU64,
    server_cpu: &dyn Fn() -> Option<Duration>,
) -> anyhow::Result<Driven> {
    let Setting { dialect, batch, window, connections } = plan.setting;
    let mut links = (0..connections)
        .map(|_| Link::connect(plan.addr, dialect, batch * window, plan.look))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut source = Source {
        stream,
        values: Values::new(1, plan.look.value_len),
        draws: Vec::with_capacity(batch),
        out: Vec::new(),
    };
    let mut tally = Tally::default();
    let begun = Instant::now();
    let counting_from = begun + plan.warmup;
    let end = counting_from + plan.duration;
    let mut counting = None;
    let (mut idle, mut seen) = (Duration::ZERO, 0);
    let (mut last, mut answered_at, mut given_up_at) = (begun, begun, begun);
    let mut was_idle = false;
    loop {
        let now = Instant::now();
        if was_idle {
            idle += now - last;
        }
        last = now;
        if counting.is_none() && now >= counting_from {
            counting = Some((now, Duration::from_nanos(thread_cpu_ns()), server_cpu()));
            (tally, idle, seen) = (Tally::default(), Duration::ZERO, 0);
        }
        // On a busy machine one of the two may not have run at all: until then it goes on, which the figures allow for.
        if now >= end && (tally.ops() > 0 || now >= end + DEAD_AFTER) {
            break;
        }
        check_stop(plan.stop)?;
        let mut received = 0;
        was_idle = true;
        for link in &mut links {
            while link.in_flight.operations() + batch <= batch * window {
                link.send(&mut source, batch, now)?;
                was_idle = false;
            }
            received += link.turn(&mut tally)?;
        }
        if received > 0 {
            was_idle = false;
            answered_at = now;
            live.fetch_add(tally.ops() - seen, Ordering::Relaxed);
            seen = tally.ops();
        } else if was_idle {
            let silence = now - answered_at;
            anyhow::ensure!(silence < DEAD_AFTER, "has not answered for {} s", DEAD_AFTER.as_secs());
            if dialect == Dialect::Datagrams && silence.min(now - given_up_at) >= LOST_AFTER {
                given_up_at = now;
                links.iter_mut().for_each(|link| link.in_flight.give_up(&mut tally));
            }
            if plan.yields {
                thread::yield_now();
            }
        }
    }
    let (since, client_cpu, cpu_before) = counting.context("was not measured at all")?;
    Ok(Driven {
        elapsed: last - since,
        client_cpu: Duration::from_nanos(thread_cpu_ns()).saturating_sub(client_cpu),
        idle,
        server_cpu: server_cpu().zip(cpu_before).map(|(after, before)| after.saturating_sub(before)),
        tally,
    })
}

/// Stores every record once; `progress` is told how many there are.
///
/// # Errors
/// A sentence that fits behind the peer's name: what it did.
pub(super) fn preload(
    addr: SocketAddr,
    dialect: Dialect,
    records: u32,
    value_len: ValueLen,
    stop: &AtomicBool,
    progress: impl Fn(u64),
) -> anyhow::Result<()> {
    let batch = fitting(PRELOAD_BATCH, value_len);
    let window = batch * PRELOAD_WINDOW;
    let look = Look { value_len, verify: false };
    let mut link = Link::connect(addr, dialect, window, look)?;
    let mut values = Values::new(0, value_len);
    let (mut tally, mut next, mut answered_at) = (Tally::default(), 0, Instant::now());
    let (mut draws, mut out) = (Vec::new(), Vec::new());
    while tally.puts < u64::from(records) {
        check_stop(stop)?;
        let now = Instant::now();
        while next < records && link.in_flight.operations() + batch <= window {
            let end = (next + batch as u32).min(records);
            draws.clear();
            draws.extend((next..end).map(Draw::put));
            out.clear();
            write(dialect, &draws, &mut values, &mut out);
            link.send_written(&draws, &out, now)?;
            next = end;
        }
        if link.turn(&mut tally)? > 0 {
            answered_at = now;
            progress(tally.puts);
        } else {
            let silence = now - answered_at;
            anyhow::ensure!(silence < DEAD_AFTER, "has not answered for {} s", DEAD_AFTER.as_secs());
            // It may be that the server has to have this CPU.
            thread::yield_now();
        }
    }
    Ok(())
}

/// Where requests come from.
struct Source<'a> {
    stream: &'a mut Stream,
    values: Values,
    draws: Vec<Draw>,
    out: Vec<u8>,
}

/// One connection, with what is in flight on it.
struct Link {
    dialect: Dialect,
    socket: Socket,
    in_flight: InFlight,
    look: Look,
    input: Input,
    /// Id of the next datagram.
    next_id: u16,
}

enum Socket {
    /// With what could not be sent yet, from an index on.
    Tcp { stream: TcpStream, unsent: Vec<u8>, begin: usize },
    /// The port that linerate's client has, without trains, which memcached neither sends nor takes.
    Udp { port: Box<UdpPort>, server: Peer },
}

/// What was received and is not understood yet.
struct Input {
    bytes: Box<[u8]>,
    begin: usize,
    end: usize,
}

impl Link {
    fn connect(addr: SocketAddr, dialect: Dialect, operations: usize, look: Look) -> anyhow::Result<Self> {
        let socket = match dialect {
            Dialect::Datagrams => {
                // Only root may have more than the system's limit; with less there are losses, which show.
                let config = UdpConfig { trains: false, ..UdpConfig::default() };
                let port = UdpPort::connect(&[addr], config).context("cannot be sent datagrams")?;
                Socket::Udp { port: Box::new(port), server: Peer::datagram(addr) }
            }
            _ => {
                let stream = TcpStream::connect(addr).context("takes no connection")?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Socket::Tcp { stream, unsent: Vec::new(), begin: 0 }
            }
        };
        // One token fits even when it begins behind all that is received at once.
        let input_len = RECEIVE_LEN + look.value_len.max() + 4096;
        Ok(Self {
            dialect,
            socket,
            in_flight: InFlight::with_capacity(operations, operations),
            look,
            input: Input { bytes: vec![0; input_len].into(), begin: 0, end: 0 },
            next_id: 0,
        })
    }

    /// Sends the next `batch` operations.
    #[inline]
    fn send(&mut self, source: &mut Source<'_>, batch: usize, now: Instant) -> anyhow::Result<()> {
        let Source { stream, values, draws, out } = source;
        draws.clear();
        draws.extend(stream.take(batch));
        if self.dialect.groups_gets() {
            move_gets_to_front(draws);
        }
        if self.dialect != Dialect::Datagrams {
            out.clear();
            write(self.dialect, draws, values, out);
            return self.send_written(draws, out, now);
        }
        let (gets, puts) = draws.split_at(draws.iter().take_while(|draw| !draw.is_put()).count());
        let puts = puts.chunks(1);
        for draws in [gets].into_iter().filter(|gets| !gets.is_empty()).chain(puts) {
            out.clear();
            out.extend_from_slice(Frame::of_request(self.next_id).as_bytes());
            write(self.dialect, draws, values, out);
            self.send_written(draws, out, now)?;
        }
        Ok(())
    }

    /// Sends what [`write()`] has written.
    #[inline]
    fn send_written(&mut self, draws: &[Draw], out: &[u8], now: Instant) -> anyhow::Result<()> {
        self.in_flight.push(self.dialect, draws, self.next_id, now);
        match &mut self.socket {
            Socket::Tcp { unsent, .. } => unsent.extend_from_slice(out),
            Socket::Udp { port, server } => {
                self.next_id = self.next_id.wrapping_add(1);
                let mut slot = port.split().1.begin(server, out.len());
                if slot.is_none() {
                    port.tx_flush().context("cannot be sent datagrams")?;
                    slot = port.split().1.begin(server, out.len());
                }
                slot.context("cannot be sent datagrams")?.bytes.copy_from_slice(out);
                port.split().1.commit(out.len());
            }
        }
        Ok(())
    }

    /// Sends what waits and takes what has arrived. Returns the bytes received.
    #[inline]
    fn turn(&mut self, tally: &mut Tally) -> anyhow::Result<usize> {
        let Self { dialect, socket, in_flight, look, input, .. } = self;
        match socket {
            Socket::Tcp { stream, unsent, begin } => {
                send_waiting(stream, unsent, begin).context("takes no more requests")?;
                let Some(len) = input.receive(stream)? else { return Ok(0) };
                let now = Instant::now();
                let value_len_max = look.value_len.max();
                loop {
                    let bytes = &input.bytes[input.begin..input.end];
                    let token_len = if dialect.is_resp() {
                        let Some((token, len)) = resp::token(bytes, value_len_max)? else { break };
                        in_flight.take_resp(token, now, *look, tally)?;
                        len
                    } else {
                        let Some((token, len)) = memcached::token(bytes, value_len_max)? else { break };
                        in_flight.take_text(token, now, false, *look, tally)?;
                        len
                    };
                    input.begin += token_len;
                }
                Ok(len)
            }
            Socket::Udp { port, .. } => {
                port.tx_flush().context("cannot be sent datagrams")?;
                let mut received = 0;
                for _ in 0..BURSTS_MAX {
                    if port.rx_burst().context("does not take datagrams any more")? == 0 {
                        break;
                    }
                    let now = Instant::now();
                    for datagram in port.split().0.iter() {
                        received += datagram.bytes.len();
                        take_datagram(datagram.bytes, now, in_flight, *look, tally)?;
                    }
                }
                Ok(received)
            }
        }
    }
}

#[inline]
fn send_waiting(stream: &mut TcpStream, unsent: &mut Vec<u8>, begin: &mut usize) -> io::Result<()> {
    while *begin < unsent.len() {
        match stream.write(&unsent[*begin..]) {
            Ok(len) => *begin += len,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    unsent.clear();
    *begin = 0;
    Ok(())
}

impl Input {
    /// Receives once. `None` when there is nothing to receive.
    #[inline]
    fn receive(&mut self, stream: &mut TcpStream) -> anyhow::Result<Option<usize>> {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.bytes.len() - self.end < RECEIVE_LEN / 2 {
            self.bytes.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        match stream.read(&mut self.bytes[self.end..]) {
            Ok(0) => anyhow::bail!("closed the connection"),
            Ok(len) => {
                self.end += len;
                Ok(Some(len))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error).context("broke the connection"),
        }
    }
}

/// Takes a datagram, which holds whole tokens of one request.
#[inline]
fn take_datagram(
    datagram: &[u8],
    now: Instant,
    in_flight: &mut InFlight,
    look: Look,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let Ok((frame, mut rest)) = Frame::ref_from_prefix(datagram) else {
        anyhow::bail!("sent a datagram without a header")
    };
    if !in_flight.skip_to(frame.request.get(), tally) {
        // An answer to what was given up.
        return Ok(());
    }
    anyhow::ensure!(frame.sequence.get() == 0, "sent a value in several datagrams");
    while !rest.is_empty() {
        let token = memcached::token(rest, look.value_len.max())?;
        let (token, len) = token.context("sent a datagram that ends in the middle of an answer")?;
        in_flight.take_text(token, now, true, look, tally)?;
        rest = &rest[len..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::fake::{Fake, Fault},
        *,
    };
    use crate::workload::{KeyDistribution, StreamLaw, Theta, Workload, draw_streams};

    const DIALECTS: [Dialect; 4] = [Dialect::RespGet, Dialect::RespMget, Dialect::Text, Dialect::Datagrams];

    const RECORDS: u32 = 500;
    const SEED: u64 = 11;

    fn stream(workload: Workload) -> Stream {
        let law = StreamLaw {
            workload,
            read_share: None,
            keys: KeyDistribution::Zipf(Theta::YCSB),
            records: RECORDS,
        };
        draw_streams(&law, 1, 1 << 14, SEED, |_| ()).remove(0)
    }

    fn value_len() -> ValueLen {
        ValueLen::new(24, 300).unwrap()
    }

    /// Stores the records and measures for a moment, or until a mute server is taken for dead.
    fn drive_fake(dialect: Dialect, fault: Fault, stop: &AtomicBool) -> anyhow::Result<Driven> {
        println!("seed {SEED}, {dialect:?}, {fault:?}");
        let fake = Fake::start(dialect, fault);
        let preload_dialect = if dialect == Dialect::Datagrams { Dialect::Text } else { dialect };
        preload(fake.addr, preload_dialect, RECORDS, value_len(), stop, |_| ())?;
        let (batch, window, connections) = (10, 3, 2);
        let plan = Plan {
            addr: fake.addr,
            setting: Setting { dialect, batch, window, connections },
            look: Look { value_len: value_len(), verify: true },
            warmup: Duration::from_millis(20),
            duration: if fault == Fault::Mute { DEAD_AFTER * 10 } else { Duration::from_millis(300) },
            yields: true,
            stop,
        };
        let live = AtomicU64::new(0);
        let cpu = || Some(Duration::from_nanos(thread_cpu_ns()));
        let driven = drive(&plan, &mut stream(Workload::A), &live, &cpu)?;
        assert!(live.load(Ordering::Relaxed) >= driven.tally.ops());
        Ok(driven)
    }

    /// Goal: with a server that is right all operations are counted, in their proportion, and nothing is wrong. Method:
    /// workload A in every dialect; the server splits its answers anywhere.
    #[test]
    fn every_dialect_is_understood() {
        for dialect in DIALECTS {
            let driven = drive_fake(dialect, Fault::None, &AtomicBool::new(false)).unwrap();
            let tally = &driven.tally;
            assert!(tally.hits > 0 && tally.puts > 0, "{dialect:?}: {tally:?}");
            assert_eq!((tally.misses, tally.wrong_values), (0, 0), "{dialect:?}");
            let share = tally.puts as f64 / tally.ops() as f64;
            assert!((0.3..0.7).contains(&share), "{dialect:?}: {share} puts");
            // What is in flight at both ends is counted in one of them.
            assert!(tally.latency.count().abs_diff(tally.ops()) <= 2 * 10 * 3 * 2, "{dialect:?}");
            assert!(driven.ops_per_sec() > 0.0 && driven.server_cpu.is_some());
            assert!(driven.idle <= driven.elapsed && driven.client_cpu <= driven.elapsed.mul_f64(1.1));
        }
    }

    /// Goal: a server that is wrong does not pass for a fast one. Method: the hottest record is forgotten or damaged.
    #[test]
    fn wrong_answers_are_noticed() {
        for dialect in DIALECTS {
            let damaged = drive_fake(dialect, Fault::Damages, &AtomicBool::new(false)).unwrap().tally;
            assert!(damaged.wrong_values > 0 && damaged.wrong_values < damaged.hits, "{damaged:?}");
            let forgotten = drive_fake(dialect, Fault::Forgets, &AtomicBool::new(false)).unwrap().tally;
            let without_value = match dialect {
                // Where it cannot be told from a lost datagram.
                Dialect::Datagrams => forgotten.unanswered,
                _ => forgotten.misses,
            };
            assert!(without_value > 0 && forgotten.hits > 0, "{forgotten:?}");
        }
    }

    /// Goal: a server that breaks off, babbles or refuses is reported with what it did. Method: each, while records are
    /// stored and later, in each dialect over connections.
    #[test]
    fn broken_servers_are_reported() {
        for dialect in [Dialect::RespGet, Dialect::RespMget, Dialect::Text] {
            let error = |fault| drive_fake(dialect, fault, &AtomicBool::new(false)).unwrap_err();
            for after in [7, RECORDS + 7] {
                let closed = format!("{:#}", error(Fault::Closes(after)));
                let expected = ["closed the connection", "broke the connection", "takes no more requests"];
                assert!(expected.iter().any(|text| closed.starts_with(text)), "{closed}");
                let refused = error(Fault::Refuses(after)).to_string();
                assert!(refused.starts_with("refused an operation: "), "{refused}");
                let babbled = error(Fault::Babbles(after)).to_string();
                assert!(babbled.starts_with("answered with "), "{babbled}");
            }
        }
    }

    /// Goal: lost datagrams are counted and cost nothing else, and a server that answers none at all is an error. Method: one
    /// datagram in 50 gets lost, or each.
    #[test]
    fn lost_datagrams_are_counted() {
        let tally = drive_fake(Dialect::Datagrams, Fault::Loses(50), &AtomicBool::new(false)).unwrap().tally;
        assert!(tally.unanswered > 0 && tally.hits > 0, "{tally:?}");
        assert_eq!(tally.wrong_values, 0);
        let error = drive_fake(Dialect::Datagrams, Fault::Mute, &AtomicBool::new(false)).unwrap_err();
        assert_eq!(error.to_string(), "has not answered for 5 s");
    }

    /// Goal: a measurement ends at once when it is told to. Method: it has been told before.
    #[test]
    fn a_measurement_is_interrupted() {
        let error = drive_fake(Dialect::Text, Fault::None, &AtomicBool::new(true)).unwrap_err();
        assert_eq!(error.to_string(), "interrupted");
    }

    /// Goal: nobody there is an error. Method: a port that was free a moment ago.
    #[test]
    fn a_server_that_is_not_there_is_reported() {
        let addr = {
            let fake = Fake::start(Dialect::Text, Fault::None);
            fake.addr
        };
        let stop = AtomicBool::new(false);
        let error = preload(addr, Dialect::Text, 1, value_len(), &stop, |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "takes no connection");
    }
}
