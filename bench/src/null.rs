//! The load without a network, a server and a store: what the generator itself costs.
//!
//! Requests are answered in the client's thread by somebody who reads nothing of them but their header. Everything that a
//! client does is done: operations are drawn from the stream and encoded, requests are numbered, kept and freed, replies are
//! parsed and matched, every byte of the values is read, and latencies go into the histogram. What is missing is the kernel.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64},
    time::{Duration, Instant as SystemInstant, SystemTime},
};

use linerate_client::{ConnectError, Instant, Session};
use linerate_dataplane::{AnsweringPort, Answers, Port};
use linerate_proto::{
    session::{CREDIT_UNLIMITED, Control, SessionConfig, SessionTable},
    wire::{
        BODY_LEN_MAX, Common, DATAGRAM_LEN_MAX, Flags, Kind, OpResult, ReplyBuilder, ReplyHeader,
        RequestHeader,
    },
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    options::{Cpus, RunOptions},
    output::{Environment, Kind as ReportKind, Report},
    run::{Beside, Load, Measured, WatchedHost, check_stop, draw, finished, summarise},
    workload::{Inserts, ValueLaw},
};

/// The address of nobody: nothing is ever sent there. Only towards loopback may datagrams go without checksums.
const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4_100);

/// Longest time that the handshake may take, which needs no network.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Bytes before the results of a reply.
const HEADER_LEN: usize = size_of::<ReplyHeader>();

/// Measures the client alone.
///
/// # Errors
/// A sentence that names what goes wrong.
pub(crate) fn null(options: &RunOptions, stop: &AtomicBool) -> anyhow::Result<Report> {
    options.value_len.lens().check_fits_datagram(options.records)?;
    let environment = Environment::look(SystemTime::now());
    let cpus = Cpus::assign(0, options.threads.into())?;
    let mut streams = draw(options)?;
    if options.inserts() {
        Inserts::begin(options.records, 0, options.inserts_max(), &mut streams)?;
    }
    check_stop(stop)?;
    let live = AtomicU64::new(0);
    let host = WatchedHost::towards(None, &cpus);
    let load = Load {
        options,
        stop,
        label: "null",
        live: &live,
        cpus: &cpus.clients,
        server_cores: 1,
        checker: None,
        is_crowded: cpus.is_crowded,
        host: host.as_ref(),
    };
    let connect = |number| open(options, number);
    let mut beside = Beside {
        ready: &mut || Ok(SystemInstant::now()),
        look: &mut || Ok(Vec::new()),
        check: None,
        probe: &mut || Ok(()),
        pause: &|_| {},
    };
    let Measured { total, series, failure, .. } = load.measure(streams, connect, &mut beside)?;
    let report = summarise(ReportKind::Null, options, &total, environment);
    let mode = Some("answered in the client's thread: no network, no server, no store".to_owned());
    finished(Report { mode, series, ..report }, options, failure, stop)
}

/// A session with nobody.
fn open(options: &RunOptions, number: u64) -> Result<Session<impl Port>, ConnectError> {
    let begun = SystemInstant::now();
    let mut nobody = Nobody::new(&options.value_len);
    let port = AnsweringPort::new(NOBODY, move |datagram: &[u8], answers: &mut Answers<'_>| {
        nobody.answer(datagram, answers, || Instant::from_nanos(begun.elapsed().as_nanos() as u64));
    })?;
    let mut session = Session::attach(port, &[NOBODY], options.session(), options.seed.wrapping_add(number));
    while !session.is_open() {
        session.flush(session.now(), &mut |_| {})?;
        if begun.elapsed() > HANDSHAKE_MAX {
            return Err(io::Error::other(
                "the client does not open a session even with itself: this is a bug",
            )
            .into());
        }
    }
    Ok(session)
}

/// Who answers: sessions are real ones, results are always the same.
struct Nobody {
    sessions: SessionTable,
    /// A full reply to gets, and the length up to the end of each result.
    reply: [u8; DATAGRAM_LEN_MAX],
    ends: Vec<u16>,
    /// Bytes behind the header that each place of the port has different from `reply`.
    different: Vec<u16>,
}

impl Nobody {
    fn new(value_len: &ValueLaw) -> Self {
        let config = SessionConfig {
            secret: [0; 16],
            boot_id: 1,
            data_epoch: 1,
            base_port: NOBODY.port(),
            cores: 1,
            core: 0,
            epoch: 0,
            map_digest: 0,
            node_id: 0,
            memory_len_max: 16 << 20,
            staging_len_max: 0,
            lease: Duration::from_secs(3_600),
            queue_datagrams: usize::MAX,
        };
        let mut reply = [0; DATAGRAM_LEN_MAX];
        let values: Vec<u8> = (0..DATAGRAM_LEN_MAX).map(|index| index as u8).collect();
        let mut builder = ReplyBuilder::new(&mut reply, DATAGRAM_LEN_MAX, Flags::NONE);
        let mut ends = vec![HEADER_LEN as u16];
        let mut drawn = 0_u32;
        loop {
            drawn = drawn.wrapping_add(0x9e37_79b9);
            let room = builder.room();
            if !builder.push_as::<false>(OpResult::Value(&values[..value_len.pick(drawn)]), 0) {
                break;
            }
            ends.push(ends[ends.len() - 1] + (room - builder.room()) as u16);
        }
        let different = vec![BODY_LEN_MAX as u16; Answers::COUNT];
        Self { sessions: SessionTable::new(config), reply, ends, different }
    }

    #[inline]
    fn answer(&mut self, datagram: &[u8], answers: &mut Answers<'_>, now: impl Fn() -> Instant) {
        match RequestHeader::ref_from_prefix(datagram) {
            Ok((request, _)) if request.common.kind == Kind::REQUEST => self.results(request, answers),
            _ => {
                answers.send(|index, place| {
                    self.different[index] = BODY_LEN_MAX as u16;
                    match self.sessions.control(now(), datagram, &NOBODY, false, place) {
                        Ok(Control::Answer(len)) => len,
                        Ok(Control::Done) | Err(_) => 0,
                    }
                });
            }
        }
    }

    #[inline]
    fn results(&mut self, request: &RequestHeader, answers: &mut Answers<'_>) {
        let reads = request.common.flags.contains(Flags::READ_ONLY);
        let mut first = 0;
        while first < request.count {
            let left = request.count - first;
            let header = ReplyHeader {
                common: Common { kind: Kind::REPLY, flags: Flags::NONE, ..request.common },
                seq: request.seq,
                first,
                count: 0,
                // As many requests as the window allows, and never fewer.
                credit: CREDIT_UNLIMITED,
                queue_delay: 0,
            };
            let is_sent = answers.send(|index, place| {
                let different = &mut self.different[index];
                if reads {
                    let restored = HEADER_LEN..HEADER_LEN + usize::from(*different);
                    place[restored.clone()].copy_from_slice(&self.reply[restored]);
                    *different = 0;
                    let count = left.min((self.ends.len() - 1) as u8);
                    place[..HEADER_LEN].copy_from_slice(ReplyHeader { count, ..header }.as_bytes());
                    first += count;
                    self.ends[usize::from(count)].into()
                } else {
                    let mut builder = ReplyBuilder::new(place, DATAGRAM_LEN_MAX, Flags::NONE);
                    while builder.count() < left && builder.push_as::<false>(OpResult::Done, 0) {}
                    first += builder.count();
                    let len = builder.finish(header, 0);
                    *different = (*different).max((len - HEADER_LEN) as u16);
                    len
                }
            });
            if !is_sent {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use linerate_client::Outcome;

    use super::*;

    /// Goal: a session with nobody behaves like one with a server: every operation ends, gets with a value of an allowed
    /// length, puts as done, whatever the mix, and nothing is sent twice. Method: many small and large batches over the same
    /// places.
    #[test]
    fn nobody_answers_everything() {
        for (batch, lens) in [(1_u8, "0"), (64, "128"), (255, "0-300"), (110, "1400")] {
            let value_len: ValueLaw = lens.parse().unwrap();
            let options =
                RunOptions { value_len: value_len.clone(), batch, window: 8, ..RunOptions::defaults() };
            let mut session = open(&options, 1).unwrap();
            let (mut gets, mut puts) = (0_u64, 0_u64);
            let mut sink = |ended: linerate_client::Ended<'_>| match ended.outcome {
                Outcome::Value(value) if ended.tag == 0 => {
                    assert!(value_len.lens().contains(value.len()), "{} bytes", value.len());
                    gets += 1;
                }
                Outcome::Done if ended.tag == 1 => puts += 1,
                other => panic!("{other:?} of {}", ended.tag),
            };
            let mut pushed = [0_u64; 2];
            for number in 0..20_000_u64 {
                let is_put = number % 7 == 0;
                pushed[usize::from(is_put)] += 1;
                let push = |session: &mut Session<_>| match is_put {
                    true => session.put(b"key", b"value", 1),
                    false => session.get(b"another key", 0),
                };
                while push(&mut session).is_err() {
                    session.poll(session.now(), &mut sink).unwrap();
                }
            }
            session.run(&mut sink).unwrap();
            let counters = session.counters();
            assert_eq!(([gets, puts], counters.flows.retransmits), (pushed, 0), "batches of {batch}");
            assert_eq!((counters.port.rx_overflow_drops, counters.drops.total()), (0, 0));
        }
    }
}
