//! What the packets allow: requests and replies of the same shape, without a store.
//!
//! Both ends do as little as honesty permits. The server looks at the header of each request, copies every value of the
//! reply from a buffer that stays in its cache, and sends the same trains as the real one; the client sends requests
//! that were written beforehand and reads every byte of the replies. Keys are neither hashed nor looked up, nothing is
//! retransmitted, and there are no sessions.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use linerate_dataplane::{
    PacketPort, Peer, Port, PortCounters, TcpPort, UdpPort, packet::PacketConfig, pin::pin_to_core,
    tcp::TcpConfig, transport::Transport, udp::UdpConfig,
};
use linerate_proto::{
    key::HEAD_LEN,
    wire::{
        BODY_LEN_MAX, Common, DATAGRAM_LEN_MAX, Flags, Kind as MessageKind, OpResult, Operation,
        ReplyBuilder, ReplyHeader, RequestHeader,
    },
};
use linerate_server::stats::thread_cpu_ns;
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    load::LoadReport,
    options::{Cpus, RunOptions},
    output::{Config, Environment, Kind, Report},
    run::{check_stop, core_to_core, draw, finished, progress_bar, summarise, worse},
    value::touch,
    workload::{Kind as DrawKind, Stream, ValueLaw},
};

/// Memory that values are copied from: small enough for the first-level cache.
const VALUES_LEN: usize = 8 << 10;

/// Requests written beforehand. Together they are longer than what is in flight, and small enough for the cache, as the
/// real client's requests are.
const TEMPLATES: usize = 64;

/// After this long without a reply, what is in flight is taken for lost and sent again.
const STALL: Duration = Duration::from_millis(50);

/// Chunks of the outbox that a request's replies can take: 255 datagrams, 44 to a chunk.
const CHUNKS_PER_REQUEST: usize = 255usize.div_ceil(44) + 1;

/// Measures once without a store. Stops early when `stop` is set, and reports what was measured until then.
///
/// # Errors
/// A sentence that names what went wrong.
pub fn ceiling(options: &RunOptions, stop: &AtomicBool) -> anyhow::Result<Report> {
    let local = "127.0.0.1:0".parse().expect("an address");
    options.check_ceiling()?;
    let (options, transport, _) = &options.settled()?;
    let label = transport.name();
    let streams = draw(options)?;
    let enter = || Ok(());
    match transport {
        Transport::Udp => {
            let listen = || UdpPort::bind(local, UdpConfig::default());
            let connect = |addr| UdpPort::connect(&[addr], UdpConfig::default());
            ceiling_over(
                options,
                stop,
                CeilingPorts { label, enter, listen: each_core(listen), connect, shares_cpus: false },
                &streams,
            )
        }
        Transport::Packet => {
            let listen = || PacketPort::bind(local, PacketConfig::default());
            let connect = |addr| PacketPort::connect(&[addr], PacketConfig::default());
            ceiling_over(
                options,
                stop,
                CeilingPorts { label, enter, listen: each_core(listen), connect, shares_cpus: false },
                &streams,
            )
        }
        Transport::Xdp => anyhow::bail!(
            "the queues of an interface serve one end only: `linerate-bench wire` measures the ceiling of xdp between two"
        ),
        Transport::Tcp => {
            let listen = || TcpPort::listen(local, TcpConfig::default());
            let connect = |addr| TcpPort::connect(&[addr], TcpConfig::default());
            ceiling_over(
                options,
                stop,
                CeilingPorts { label, enter, listen: each_core(listen), connect, shares_cpus: false },
                &streams,
            )
        }
    }
}

/// The ports that a ceiling is measured over.
pub(crate) struct CeilingPorts<Enter, Listen, Connect> {
    /// What they are called while it runs.
    pub(crate) label: &'static str,
    /// Takes the thread of a server core to where its port is.
    pub(crate) enter: Enter,
    /// Opens the ports of so many server cores.
    pub(crate) listen: Listen,
    /// Opens the port of a client thread to one of them.
    pub(crate) connect: Connect,
    /// Whether the threads' CPUs have something else to do for them.
    pub(crate) shares_cpus: bool,
}

/// Opens the ports of several cores one after the other.
pub(crate) fn each_core<P>(listen: impl Fn() -> io::Result<P>) -> impl Fn(usize) -> io::Result<Vec<P>> {
    move |cores| (0..cores).map(|_| listen()).collect()
}

pub(crate) fn ceiling_over<P: Port + Send, Q: Port>(
    options: &RunOptions,
    stop: &AtomicBool,
    ports: CeilingPorts<
        impl Fn() -> io::Result<()> + Sync,
        impl FnOnce(usize) -> io::Result<Vec<P>>,
        impl Fn(SocketAddr) -> io::Result<Q> + Sync,
    >,
    streams: &[Stream],
) -> anyhow::Result<Report> {
    options
        .value_len
        .lens()
        .check_fits_datagram(options.records)
        .context("the ceiling has one value per result only")?;
    let shares_cpus = ports.shares_cpus;
    let environment = Environment::look(SystemTime::now());
    let cpus = Cpus::assign(options.server_cores.into(), options.threads.into())?;
    let before_ns = core_to_core(&cpus)?;
    let is_over = AtomicBool::new(false);
    let live = AtomicU64::new(0);
    let servers = (ports.listen)(cpus.server.len())?;
    let addrs: Vec<_> = servers.iter().map(Port::local_addr).collect();
    let (warmup, duration) = options.times();
    let reports = thread::scope(|scope| {
        // Also when a client thread panics: the scope waits for the servers.
        let finish = SetOnDrop(&is_over);
        let cores: Vec<_> = servers
            .into_iter()
            .zip(&cpus.server)
            .map(|(port, &cpu)| {
                let (is_over, value_len, enter) = (&is_over, &options.value_len, &ports.enter);
                scope.spawn(move || {
                    pin_to_core(cpu)?;
                    enter()?;
                    serve(port, value_len, shares_cpus, is_over)
                })
            })
            .collect();
        let clients: Vec<_> = streams
            .iter()
            .zip(&cpus.clients)
            .zip(addrs.iter().cycle())
            .map(|((stream, &cpu), &addr)| {
                let (live, connect) = (&live, &ports.connect);
                scope.spawn(move || {
                    pin_to_core(cpu)?;
                    load(connect(addr)?, Peer::datagram(addr), stream, options, shares_cpus, live, stop)
                })
            })
            .collect();
        let bar = progress_bar((warmup + duration).as_millis() as u64, "measuring ceiling");
        let begun = Instant::now();
        let mut last = (begun, 0);
        while begun.elapsed() < warmup + duration && !stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(100));
            let (now, count) = (Instant::now(), live.load(Ordering::Relaxed));
            let rate = (count - last.1) as f64 / (now - last.0).as_secs_f64().max(1e-9);
            last = (now, count);
            bar.set_position(begun.elapsed().as_millis() as u64);
            bar.set_message(format!("{}: {:.1} Mop/s", ports.label, rate / 1e6));
        }
        bar.finish_and_clear();
        let reports: io::Result<Vec<_>> = clients.into_iter().map(joined).collect();
        let reports = reports.context("a client thread lost its port")?;
        drop(finish);
        let served = cores.into_iter().try_for_each(joined);
        served.context("a server thread lost its port")?;
        anyhow::Ok(reports)
    })?;
    let elapsed = reports.iter().map(|report| report.elapsed).max().unwrap_or_default();
    if elapsed.is_zero() {
        check_stop(stop)?;
    }
    let mut total = LoadReport { elapsed, ..LoadReport::default() };
    reports.iter().for_each(|report| total.absorb(report));
    let after_ns = core_to_core(&cpus)?;
    let report = summarise(Kind::Ceiling, options, &total, environment);
    let report = Report {
        core_to_core_ns: worse(before_ns, after_ns),
        core_to_core_before_ns: before_ns,
        core_to_core_after_ns: after_ns,
        wrong_values: None,
        client_busy_share: None,
        config: Config {
            memory_bytes: None,
            verify: false,
            watch: false,
            idle: "spin".to_owned(),
            ..report.config.clone()
        },
        ..report
    };
    finished(report, options, None, stop)
}

/// What a thread returned; its panic goes on here.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Sets a flag when it goes out of scope.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Answers every request with results of the wanted length.
fn serve<P: Port>(
    mut port: P,
    value_len: &ValueLaw,
    shares_cpus: bool,
    finished: &AtomicBool,
) -> io::Result<()> {
    let values: Vec<u8> = (0..VALUES_LEN).map(|index| index as u8).collect();
    let mut drawn = 0u32;
    while !finished.load(Ordering::Relaxed) {
        let count = port.rx_burst()?;
        if count == 0 && shares_cpus {
            thread::yield_now();
        }
        let mut next = 0;
        while next < count {
            let full = {
                let (received, outbox) = port.split();
                while next < count && outbox.free_chunks() >= CHUNKS_PER_REQUEST {
                    let datagram = received.datagram(next);
                    next += 1;
                    let Ok((request, _)) = RequestHeader::ref_from_prefix(datagram.bytes) else { continue };
                    let mut first = 0;
                    while first < request.count {
                        let slot =
                            outbox.begin(datagram.peer, DATAGRAM_LEN_MAX).expect("room was looked for");
                        let mut reply = ReplyBuilder::new(slot.bytes, DATAGRAM_LEN_MAX, Flags::NONE);
                        while reply.count() < request.count - first {
                            drawn = drawn.wrapping_add(0x9e37_79b9);
                            let result = if request.common.flags.contains(Flags::READ_ONLY) {
                                let len = value_len.pick(drawn);
                                let start = drawn as usize % (VALUES_LEN - len);
                                OpResult::Value(&values[start..start + len])
                            } else {
                                OpResult::Done
                            };
                            if !reply.push_as::<false>(result, 0) {
                                break;
                            }
                        }
                        let header = ReplyHeader {
                            common: Common { kind: MessageKind::REPLY, ..request.common },
                            seq: request.seq,
                            first,
                            count: 0,
                            credit: 0,
                            queue_delay: 0,
                        };
                        first += reply.count();
                        let len = reply.finish(header, slot.segment_len);
                        outbox.commit(len);
                    }
                }
                outbox.free_chunks() < CHUNKS_PER_REQUEST
            };
            if full || next == count {
                port.tx_flush()?;
            }
        }
    }
    Ok(())
}

/// A request written beforehand.
struct Template {
    bytes: Vec<u8>,
    count: u8,
    writes: bool,
}

/// Packs the operations of a stream as the real client does: gets and puts apart, as many to a request as fit.
fn templates(stream: &Stream, options: &RunOptions) -> Vec<Template> {
    let mut done = Vec::with_capacity(TEMPLATES);
    let mut open: [Option<Template>; 2] = [None, None];
    let value = vec![0x5a; options.value_len.lens().max()];
    let mut cycle = stream.clone();
    while done.len() < TEMPLATES {
        let draw = cycle.next().expect("streams never end");
        let key = draw.key();
        let writes: &[bool] = match draw.kind() {
            DrawKind::Rmw => &[false, true],
            kind => &[kind.is_write()],
        };
        for &writes in writes {
            let operation = if writes {
                let len = options.value_len.pick(draw.record().wrapping_mul(0x9e37_79b9));
                Operation::put(key, &value[..len])
            } else {
                Operation::get(key)
            };
            let open = &mut open[usize::from(writes)];
            let full_len = size_of::<RequestHeader>() + BODY_LEN_MAX;
            let is_full = |template: &Template| {
                template.count == options.batch || template.bytes.len() + operation.wire_len() > full_len
            };
            if open.as_ref().is_some_and(is_full) {
                done.extend(open.take());
            }
            let template = open.get_or_insert_with(|| Template {
                bytes: vec![0; size_of::<RequestHeader>()],
                count: 0,
                writes,
            });
            let start = template.bytes.len();
            template.bytes.resize(start + operation.wire_len() + HEAD_LEN, 0);
            let len = operation.write(&mut template.bytes[start..]).expect("the length was made to fit");
            template.bytes.truncate(start + len);
            template.count += 1;
        }
    }
    for template in &mut done {
        let header = RequestHeader {
            common: Common {
                kind: MessageKind::REQUEST,
                flags: Flags::READ_ONLY.when(!template.writes),
                slot: 0,
                attempt: 0,
                session: 0.into(),
                token: 0.into(),
            },
            seq: 0.into(),
            count: template.count,
            epoch: 0.into(),
            spare: 0,
        };
        template.bytes[..size_of::<RequestHeader>()].copy_from_slice(header.as_bytes());
    }
    done
}

/// A request in flight.
#[derive(Clone, Copy, Debug, Default)]
struct InFlight {
    template: usize,
    missing: u8,
}

/// Keeps the window full of requests and reads what comes back.
fn load<P: Port>(
    mut port: P,
    server: Peer,
    stream: &Stream,
    options: &RunOptions,
    shares_cpus: bool,
    live: &AtomicU64,
    stop: &AtomicBool,
) -> io::Result<LoadReport> {
    let templates = templates(stream, options);
    let (warmup, duration) = options.times();
    let session = options.session();
    let mut slots = vec![InFlight::default(); 256];
    // Numbers of slots that may be used; as many operations are in flight as in the real run.
    let operations_max = usize::from(options.window) * usize::from(options.batch);
    let mut free: Vec<u8> = (0..session.window).rev().map(|slot| slot as u8).collect();
    let mut in_flight = 0;
    let mut ready: Vec<u8> = Vec::new();
    let mut next_template = 0;
    let mut report = LoadReport::default();
    let begun = Instant::now();
    let mut counting: Option<(Instant, u64, PortCounters)> = None;
    let mut last_heard = begun;
    let mut seen = 0;
    loop {
        let now = Instant::now();
        if counting.is_none() && now - begun >= warmup {
            counting = Some((now, thread_cpu_ns(), port.counters()));
            report = LoadReport::default();
            seen = 0;
        }
        if now - begun >= warmup + duration || stop.load(Ordering::Relaxed) {
            break;
        }
        while in_flight < operations_max
            && let Some(slot) = free.pop()
        {
            let count = templates[next_template].count;
            slots[slot as usize] = InFlight { template: next_template, missing: count };
            next_template = (next_template + 1) % templates.len();
            in_flight += usize::from(count);
            ready.push(slot);
        }
        if now - last_heard > STALL {
            last_heard = now;
            ready = (0..session.window)
                .map(|slot| slot as u8)
                .filter(|&slot| slots[slot as usize].missing > 0)
                .collect();
        }
        let idle = ready.len() + free.len() == usize::from(session.window);
        if ready.len() >= session.burst || (idle && !ready.is_empty()) {
            send(&mut port, &server, &templates, &slots, &mut ready)?;
        }
        if port.rx_burst()? == 0 {
            if shares_cpus {
                thread::yield_now();
            }
            continue;
        }
        last_heard = now;
        for datagram in port.split().0.iter() {
            report.touched ^= touch(datagram.bytes);
            let Ok((reply, _)) = ReplyHeader::ref_from_prefix(datagram.bytes) else { continue };
            let slot = &mut slots[reply.common.slot as usize];
            // Results that were asked for twice after a stall count once.
            let count = reply.count.min(slot.missing);
            slot.missing -= count;
            in_flight -= usize::from(count);
            if reply.common.flags.contains(Flags::READ_ONLY) {
                report.gets += u64::from(count);
                report.hits += u64::from(count);
            } else {
                report.puts += u64::from(count);
            }
            if count > 0 && slot.missing == 0 {
                free.push(reply.common.slot);
            }
        }
        let ended = report.gets + report.puts;
        live.fetch_add(ended - seen, Ordering::Relaxed);
        seen = ended;
    }
    // What was interrupted before has counted nothing.
    let Some((since, cpu_before, counters)) = counting else { return Ok(LoadReport::default()) };
    report.elapsed = since.elapsed();
    report.cpu = Duration::from_nanos(thread_cpu_ns() - cpu_before);
    report.counters.port = port.counters().minus(counters);
    Ok(report)
}

/// Sends requests as the real client does: gets before puts, each kind padded to one length.
fn send<P: Port>(
    port: &mut P,
    server: &Peer,
    templates: &[Template],
    slots: &[InFlight],
    ready: &mut Vec<u8>,
) -> io::Result<()> {
    let template = |slot: &u8| &templates[slots[*slot as usize].template];
    ready.sort_by_key(|slot| template(slot).writes);
    for kind in ready.chunk_by(|one, other| template(one).writes == template(other).writes) {
        let len = kind.iter().map(|slot| template(slot).bytes.len()).max().unwrap_or(0);
        for slot in kind {
            let (_, outbox) = port.split();
            let Some(room) = outbox.begin(server, len) else { break };
            let bytes = &template(slot).bytes;
            room.bytes[..bytes.len()].copy_from_slice(bytes);
            room.bytes[bytes.len()..].fill(0);
            room.bytes[std::mem::offset_of!(Common, slot)] = *slot;
            outbox.commit(len);
        }
    }
    ready.clear();
    port.tx_flush()
}
