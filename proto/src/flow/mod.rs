//! What a client keeps for one server core: the session, the slots with their requests, and when to send again.
//!
//! One operation travels like this: [`push`](Flow::push) writes it into the request that is being filled;
//! [`poll_transmit`](Flow::poll_transmit) and [`emit`](Flow::emit) put the request on the wire; what comes back goes
//! through [`receive`](Flow::receive), which hands each result to a sink together with the operation's tag. Losses are
//! noticed by [`poll_timers`](Flow::poll_timers). Each operation pushed ends in the sink exactly once.

mod bits;
mod filling;
mod handshake;
mod losses;
mod receiving;
mod sending;
mod slot;
mod transfer;
mod types;

use std::{collections::VecDeque, time::Duration};

use crate::{
    cluster::{ClusterSpec, PagedMap},
    drops::DropReason,
    mutants::{Mutant, is_active},
    rtt::Rtt,
    time::Instant,
    wire::{
        Common, Condition, Cookie, DATAGRAM_LEN_MAX, Flags, KEY_LEN_MAX, Kind, Nonce, OPERATIONS_MAX,
        Operation, OperationKind, Ping, REQUEST_LEN_MIN, Reason, RefusalReason, RequestHeader, STAT_COUNT,
        VALUE_LEN_MAX, open,
    },
};
use slot::{CLASSES, Phase, READS, Slot, WRITES};
use transfer::Transfers;
pub use types::{Ended, FlowConfig, FlowCounters, Outcome, PushError, ServerInfo};

/// RTO before the first sample.
const RTO_INITIAL: Duration = Duration::from_millis(5);

/// A session is renewed after this many requests. Far below the largest sequence number, because reads in flight may still
/// be asked for again under new ones.
const SESSION_REQUESTS_MAX: u32 = u32::MAX / 2;

/// Unit of the factor that jitters timeouts.
const SCALE_ONE: u32 = 1_024;

/// Unit of the estimate of datagrams per get.
const ESTIMATE_ONE: u32 = 256;

#[derive(Clone, Copy, Debug)]
enum State {
    /// Sends HELLO.
    Greeting,
    /// Sends OPEN with this cookie.
    Opening(Cookie),
    Open,
}

/// What the next [`emit`](Flow::emit) writes.
#[derive(Clone, Copy, Debug)]
enum Next {
    Handshake,
    Control(Control),
    /// The front of `resend`.
    Resend(u8),
    /// The front of the ready queue of this class.
    Ready(usize),
}

/// Messages other than requests that wait to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Ping,
    Map,
    Stats,
    Close,
}

/// Ready requests of one class that travel as one train, padded to one length.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    class: usize,
    left: usize,
    len: usize,
}

/// The client's side of one session with one server core.
#[derive(Debug)]
pub struct Flow {
    config: FlowConfig,
    state: State,
    nonce: Nonce,
    session: u32,
    token: u64,
    info: Option<ServerInfo>,
    /// The newest that the server has told of.
    data_epoch: u64,

    slots: Vec<Slot>,
    bytes: Vec<[u8; DATAGRAM_LEN_MAX]>,
    tags: Vec<[u64; OPERATIONS_MAX]>,
    /// Highest slot number granted in this session, plus one.
    window: u16,
    /// Operations per request of each class, and of writes with adds among them.
    operations_max: [u8; CLASSES],
    operations_max_with_adds: u8,
    /// Bytes of a request before padding and trailer.
    full_len: usize,
    free: Vec<u8>,
    filling: [Option<u8>; CLASSES],
    /// Slot of the request of gets that was begun last, and its number among all of them.
    latest_gets: (u8, u64),
    ready: [VecDeque<u8>; CLASSES],
    transfers: Transfers,
    run: Run,
    in_flight: usize,
    credit: u8,
    /// Number of the latest transmission whose reply told of credit.
    credit_number: u64,
    /// Requests that may be in flight as far as the delays that were seen allow; halved when they are long.
    congestion_window: u16,
    /// Replies since it last changed, and when it was last halved.
    undelayed: u16,
    halved_at: Instant,
    /// Datagrams that the requests in flight are expected to be answered with, and how many a get takes.
    expected: usize,
    datagrams_per_get: u32,

    /// Transmissions in order: slot and number. Entries whose slot has moved on are skipped.
    sent: VecDeque<(u8, u64)>,
    /// Slots whose request was lost, each once. It is emptied before any new request is sent.
    resend: VecDeque<u8>,
    next_number: u64,
    rtt: Rtt,
    /// When a timeout last had a request sent again, if nothing has been heard since.
    probe_at: Option<Instant>,
    jitter: u64,
    /// Factor of the timeouts that follow one that has passed, in [`SCALE_ONE`]ths.
    rto_scale: u32,

    next: Option<Next>,
    control: Option<Control>,
    pong: Option<Duration>,
    /// What is here of the cluster map while it is asked for, and all of it.
    paged_map: Option<PagedMap>,
    cluster: Option<ClusterSpec>,
    statistics: Option<Box<[u64; STAT_COUNT]>>,
    handshakes: u32,
    /// The shortest OPEN of this handshake, in bytes.
    open_len: usize,
    handshake_at: Instant,
    refusal: Option<RefusalReason>,
    last_heard: Instant,
    /// When the latest reply came.
    answered_at: Instant,
    last_sent: Instant,
    /// Sequence numbers used in this session; no slot's sequence number is higher.
    session_requests: u32,
    next_deadline_check: Instant,
    counters: FlowCounters,
}

impl Flow {
    /// A flow that begins with a handshake.
    ///
    /// # Panics
    /// When `window` or `operations_max` is outside its range.
    #[must_use]
    pub fn new(config: FlowConfig) -> Self {
        assert!((1..=256).contains(&config.window), "window of {} slots", config.window);
        assert!(config.operations_max > 0, "requests without operations");
        let jitter = u64::from_le_bytes(config.seed[..8].try_into().expect("8 of 16 bytes")) | 1;
        Self {
            config,
            state: State::Greeting,
            nonce: config.seed,
            session: 0,
            token: 0,
            info: None,
            data_epoch: 0,
            slots: Vec::new(),
            bytes: Vec::new(),
            tags: Vec::new(),
            window: 0,
            operations_max: [config.operations_max; CLASSES],
            operations_max_with_adds: config.operations_max,
            full_len: 0,
            free: Vec::with_capacity(config.window.into()),
            filling: [None; CLASSES],
            latest_gets: (0, 0),
            ready: std::array::from_fn(|_| VecDeque::with_capacity(config.window.into())),
            transfers: Transfers::default(),
            run: Run::default(),
            in_flight: 0,
            credit: 1,
            credit_number: 0,
            congestion_window: config.window,
            undelayed: 0,
            halved_at: Instant::default(),
            expected: 0,
            datagrams_per_get: ESTIMATE_ONE,
            sent: VecDeque::with_capacity(4 * usize::from(config.window)),
            resend: VecDeque::with_capacity(config.window.into()),
            next_number: 0,
            rtt: Rtt::new(RTO_INITIAL, config.rto_floor),
            probe_at: None,
            jitter,
            rto_scale: SCALE_ONE,
            next: None,
            control: None,
            pong: None,
            paged_map: None,
            cluster: None,
            statistics: None,
            handshakes: 0,
            open_len: DATAGRAM_LEN_MAX,
            handshake_at: Instant::default(),
            refusal: None,
            last_heard: Instant::default(),
            answered_at: Instant::default(),
            last_sent: Instant::default(),
            session_requests: 0,
            next_deadline_check: Instant::default(),
            counters: FlowCounters::default(),
        }
    }

    /// Whether a session is open now.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// What the server said when it last opened a session.
    #[must_use]
    pub const fn info(&self) -> Option<&ServerInfo> {
        self.info.as_ref()
    }

    /// Why the server has refused a session, if that was its latest word.
    #[must_use]
    pub const fn refusal(&self) -> Option<RefusalReason> {
        self.refusal
    }

    /// Requests sent and not answered in full.
    #[inline]
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The request of gets that is being filled, by its number among all of this flow; `None` when there is none. Nothing of
    /// it was sent yet, in this session or another: whatever is pushed before it is sent is concurrent with all that is in
    /// it.
    #[inline]
    #[must_use]
    pub fn open_gets(&self) -> Option<u64> {
        let (index, number) = self.latest_gets;
        let is_unanswered = || {
            let slot = &self.slots[index as usize];
            slot.phase == Phase::InFlight && usize::from(slot.class) == READS && slot.replies == 0
        };
        let is_open = self.filling[READS].is_some()
            || is_active(Mutant::CoalesceInFlight) && number > 0 && is_unanswered();
        is_open.then_some(number)
    }

    /// Complete requests that wait to be sent.
    #[inline]
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready.iter().map(VecDeque::len).sum::<usize>() + self.resend.len()
    }

    /// Whether something waits to be sent that should not wait for company: a handshake, a question, a retransmission.
    #[inline]
    #[must_use]
    pub fn has_urgent(&self) -> bool {
        !self.is_open() || self.control.is_some() || !self.resend.is_empty() || !self.transfers.is_empty()
    }

    /// When the oldest operation that was not sent yet was pushed, or `None` when all were.
    #[must_use]
    pub fn waiting_since(&self) -> Option<Instant> {
        let ready = self.ready.iter().filter_map(|queue| queue.front());
        let waiting = ready.chain(self.filling.iter().flatten());
        waiting.map(|&slot| self.slots[slot as usize].pushed_at).min()
    }

    /// Whether nothing is being filled, ready or in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.free.len() == usize::from(self.window) && self.transfers.is_empty()
    }

    /// Totals so far.
    #[must_use]
    pub const fn counters(&self) -> FlowCounters {
        self.counters
    }

    /// Takes an operation; `tag` comes back with its outcome.
    ///
    /// # Errors
    /// [`PushError::Full`] when there is no slot for it (or no session yet), or what is wrong with key or value.
    #[inline(always)]
    pub fn push(&mut self, now: Instant, operation: Operation<'_>, tag: u64) -> Result<(), PushError> {
        check_lengths(&operation)?;
        let class = if operation.is_read() { READS } else { WRITES };
        let len = operation.wire_len();
        let adds = matches!(operation.kind, OperationKind::Add { .. });
        if adds {
            self.make_room_for_add();
        }
        let index = match self.filling[class] {
            Some(index) if usize::from(self.slots[index as usize].len) + len <= self.full_len => index,
            _ if size_of::<RequestHeader>() + len > self.full_len => {
                // Piece by piece: for a reference to all of it, each operation would be written to memory first.
                return self.push_long(now, operation.key.bytes(), operation.value, operation.terms(), tag);
            }
            _ => self.begin_for_caller(now, class).ok_or(PushError::Full)?,
        };
        let slot = &mut self.slots[index as usize];
        let start = usize::from(slot.len);
        let written = operation.write(&mut self.bytes[index as usize][start..]);
        debug_assert_eq!(written, Some(len), "room was checked above");
        self.tags[index as usize][slot.count as usize] = tag;
        slot.len += len as u16;
        slot.count += 1;
        if adds {
            slot.adds = true;
            slot.limit = self.operations_max_with_adds;
        }
        if slot.count == slot.limit {
            self.close(class);
        }
        Ok(())
    }

    /// Declares the requests that are being filled complete, however short they are.
    pub fn flush(&mut self) {
        (0..CLASSES).for_each(|class| self.close(class));
    }

    /// Asks for a pong; [`take_pong`](Self::take_pong) has the answer.
    pub const fn ping(&mut self) {
        self.control = Some(Control::Ping);
        self.pong = None;
    }

    /// Asks for the core's counters; [`take_statistics`](Self::take_statistics) has the answer.
    pub fn ask_statistics(&mut self) {
        self.control = Some(Control::Stats);
        self.statistics = None;
    }

    /// Asks for the cluster map, page by page; [`take_cluster`](Self::take_cluster) has it when all are here. Asking again
    /// goes on where that was interrupted.
    pub fn ask_cluster(&mut self) {
        self.control = Some(Control::Map);
        self.cluster = None;
        self.paged_map.get_or_insert_default();
    }

    /// Tells the server, as soon as nothing waits for it any more, that the session is no longer needed. Afterwards the flow
    /// sends nothing.
    pub const fn say_goodbye(&mut self) {
        if self.is_open() {
            self.control = Some(Control::Close);
        }
    }

    /// The round-trip time of the latest ping, once.
    pub const fn take_pong(&mut self) -> Option<Duration> {
        self.pong.take()
    }

    /// The counters last asked for, once.
    pub fn take_statistics(&mut self) -> Option<Box<[u64; STAT_COUNT]>> {
        self.statistics.take()
    }

    /// The cluster map last asked for, once.
    pub fn take_cluster(&mut self) -> Option<ClusterSpec> {
        self.cluster.take()
    }

    /// Length of the next datagram to send, or `None` when there is nothing to send now. The datagram is written by the
    /// [`emit`](Self::emit) that follows.
    #[inline]
    pub fn poll_transmit(&mut self, now: Instant) -> Option<usize> {
        if !self.is_open() {
            self.next = (now >= self.handshake_at).then_some(Next::Handshake);
            return self.next.map(|_| self.handshake_len());
        }
        // The server may have ended the session meanwhile. A write sent into it would be refused, and one can not tell that
        // from a write that was executed and whose answer was lost.
        if !self.transfers.is_empty() {
            self.pump_transfers(now);
        }
        let is_waiting = self.ready.iter().any(|ready| !ready.is_empty());
        let must_renew = is_waiting && self.has_gone_stale(now);
        if must_renew && self.in_flight == 0 {
            self.restart(now);
            return self.poll_transmit(now);
        }
        if let Some(control) = self.control
            && (control != Control::Close || self.is_idle())
        {
            self.next = Some(Next::Control(control));
            // As long as the shortest request, so that a server that does not know the session may say so.
            return Some((size_of::<Ping>() + self.trailer_len()).max(REQUEST_LEN_MIN));
        }
        while let Some(&index) = self.resend.front() {
            if self.slots[index as usize].phase == Phase::InFlight {
                self.next = Some(Next::Resend(index));
                return Some(self.datagram_len(index));
            }
            self.resend.pop_front();
        }
        let room = if must_renew { 0 } else { self.room(now) };
        if self.run.left == 0 && room > 0 {
            self.run = self.next_run(room);
        }
        if self.run.left == 0 || room == 0 {
            self.next = None;
            return None;
        }
        self.next = Some(Next::Ready(self.run.class));
        Some(self.run.len)
    }

    /// Writes the datagram announced by [`poll_transmit`](Self::poll_transmit) into `out`, which has that length. Nothing
    /// else may be called in between.
    ///
    /// # Panics
    /// Without such an announcement, or when `out` has another length.
    pub fn emit(&mut self, now: Instant, out: &mut [u8]) {
        self.last_sent = now;
        match self.next.take().expect("poll_transmit comes before emit") {
            Next::Handshake => self.emit_handshake(now, out),
            Next::Control(control) => self.emit_control(now, control, out),
            Next::Resend(index) => {
                self.resend.pop_front();
                self.counters.retransmits += 1;
                self.emit_again(now, index, out);
            }
            Next::Ready(class) => {
                let index = self.ready[class].pop_front().expect("a run counts ready requests");
                self.run.left -= 1;
                self.in_flight += 1;
                self.session_requests += 1;
                self.counters.requests += 1;
                let slot = &mut self.slots[index as usize];
                slot.phase = Phase::InFlight;
                slot.seq += 1;
                slot.attempt = 0;
                self.emit_request(now, index, out);
            }
        }
    }

    /// Takes a datagram that came from the server. Results go to `sink` with the tags of their operations.
    ///
    /// # Errors
    /// The reason for which the datagram, or its rest, has no effect.
    #[inline]
    pub fn receive(
        &mut self,
        now: Instant,
        datagram: &[u8],
        sink: &mut impl FnMut(Ended<'_>),
    ) -> Result<(), DropReason> {
        let (common, body) = open(datagram)?;
        let in_session = matches!(common.kind, Kind::REPLY | Kind::PONG | Kind::STATISTICS | Kind::MAP_PAGE);
        if !common.flags.contains(Flags::CHECKSUM) && (!in_session || self.trailer_len() > 0) {
            return Err(DropReason::Checksum);
        }
        let message = &datagram[..size_of::<Common>() + body.len()];
        match common.kind {
            Kind::REPLY => self.receive_reply(now, message, sink),
            Kind::COOKIE => self.receive_cookie(now, message),
            Kind::OPENED => self.receive_opened(now, message, sink),
            Kind::REFUSED => self.receive_refused(now, message),
            Kind::NO_SESSION => self.receive_no_session(now, message, sink),
            Kind::PONG => self.receive_pong(now, message),
            Kind::STATISTICS => self.receive_statistics(now, message),
            Kind::MAP_PAGE => self.receive_map_page(now, message),
            _ => Err(DropReason::Kind),
        }
    }

    /// Notices what time has done: marks lost requests for sending again and gives up operations past their deadline.
    #[inline]
    pub fn poll_timers(&mut self, now: Instant, sink: &mut impl FnMut(Ended<'_>)) {
        self.detect_losses(now);
        if now >= self.next_deadline_check {
            let interval =
                (self.config.timeout / 8).clamp(Duration::from_millis(1), Duration::from_millis(100));
            self.next_deadline_check = now + interval;
            self.give_up(now, sink);
            self.keep_alive(now);
        }
    }

    /// When to call again at the latest if nothing arrives before.
    #[must_use]
    pub fn next_timeout(&self) -> Instant {
        if self.is_open()
            && (!self.resend.is_empty() || self.control.is_some_and(|control| control != Control::Close))
        {
            return Instant::default();
        }
        let handshake = if self.is_open() { Instant::FAR_FUTURE } else { self.handshake_at };
        let oldest = self.sent.iter().find(|&&(index, number)| self.is_current(index, number));
        let loss = oldest.map_or(Instant::FAR_FUTURE, |&(index, _)| self.loss_at(index));
        // Without a free slot a transfer waits for an answer, whatever its time.
        let transfer = if self.free.is_empty() { Instant::FAR_FUTURE } else { self.transfers.next_at() };
        handshake.min(loss).min(self.next_deadline_check).min(transfer)
    }

    /// Ends everything: what was never sent as not executed, writes in flight as unknown.
    pub fn abandon(&mut self, sink: &mut impl FnMut(Ended<'_>)) {
        for index in 0..self.slots.len() {
            if self.slots[index].phase != Phase::Free {
                self.fail(index as u8, Reason::SessionLost, sink);
            }
        }
        self.transfers.give_up(Instant::FAR_FUTURE, Reason::SessionLost, self.data_epoch, sink);
    }
}

/// Checks key and value against the limits.
///
/// # Errors
/// [`PushError::KeyLen`], [`PushError::ValueLen`] or [`PushError::NoVersion`].
#[inline]
pub fn check_lengths(operation: &Operation<'_>) -> Result<(), PushError> {
    let key_len = operation.key.len();
    if key_len == 0 || key_len > KEY_LEN_MAX {
        return Err(PushError::KeyLen(key_len));
    }
    if operation.value.len() > VALUE_LEN_MAX {
        return Err(PushError::ValueLen(operation.value.len()));
    }
    if let OperationKind::PutOn(terms) = operation.kind
        && terms.condition == Condition::Version(0)
    {
        return Err(PushError::NoVersion);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::TRAILER_LEN_MAX;

    /// Goal: a session is renewed before sequence numbers wrap. Method: one that has used them up, which no test lives to
    /// see, is set up by hand; the next request must greet, and go into the new session with number 1.
    #[test]
    fn a_session_is_renewed_before_its_sequence_numbers_run_out() {
        let config = FlowConfig {
            window: 1,
            operations_max: 1,
            checksum: false,
            versions: false,
            lifetimes: false,
            reply_datagrams_max: usize::MAX,
            rto_floor: Duration::from_micros(200),
            timeout: Duration::from_secs(1),
            core: None,
            epoch: 0,
            seed: [1; 16],
        };
        let mut flow = Flow::new(config);
        let mut out = [0; DATAGRAM_LEN_MAX];
        let info = ServerInfo {
            boot_id: 1,
            data_epoch: 1,
            base_port: 1,
            cores: 1,
            core: 0,
            epoch: 0,
            map_digest: 0,
            node_id: 0,
            window: 1,
            checksum: false,
            datagram_len: DATAGRAM_LEN_MAX,
            lease: Duration::from_secs(60),
        };
        flow.state = State::Open;
        flow.info = Some(info);
        flow.full_len = DATAGRAM_LEN_MAX - TRAILER_LEN_MAX;
        flow.resize(1, &mut |_| ());
        flow.session_requests = SESSION_REQUESTS_MAX;
        let now = Instant::from_nanos(1);
        let operation = Operation::get(&b"k"[..]);
        flow.push(now, operation, 1).unwrap();
        let len = flow.poll_transmit(now).unwrap();
        flow.emit(now, &mut out[..len]);
        assert_eq!(out[0], Kind::HELLO.0);
        flow.state = State::Open;
        let len = flow.poll_transmit(now).unwrap();
        flow.emit(now, &mut out[..len]);
        assert_eq!((out[0], &out[16..20]), (Kind::REQUEST.0, &[0, 0, 0, 1][..]));
    }
}
