//! What a client keeps for one server core: the session, the slots with their requests, and when to send again.
//!
//! One operation travels like this: [`push`](Flow::push) writes it into the request that is being filled;
//! [`poll_transmit`](Flow::poll_transmit) and [`emit`](Flow::emit) put the request on the wire; what comes back goes
//! through [`receive`](Flow::receive), which hands each result to a sink together with the operation's tag. Losses are
//! noticed by [`poll_timers`](Flow::poll_timers). Each operation pushed ends in the sink exactly once.

mod bits;
mod transfer;
mod types;

use std::{collections::VecDeque, time::Duration};

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::{
    drops::DropReason,
    mutants::{Mutant, is_active},
    rtt::Rtt,
    session::{CREDIT_LIFETIME, CREDIT_UNLIMITED, part_len},
    time::Instant,
    wire::{
        Common, Cookie, CookieReply, DATAGRAM_LEN_MAX, DATAGRAM_LEN_MIN, DATAGRAM_LENS, Flags, Hello,
        KEY_LEN_MAX, Kind, NoSession, Nonce, OPERATIONS_MAX, OpResult, Open, Opened, Operation, Operations,
        Ping, REPLY_DATAGRAMS_MAX, REQUEST_LEN_MIN, Range, Reason, RefusalReason, Refused, ReplyHeader,
        RequestHeader, Results, STAT_COUNT, TRAILER_LEN, TRAILER_LEN_MAX, VALUE_LEN_MAX, client_id,
        generation, nonce_of, open, seal_padded, write_trailer,
    },
};

use bits::Bits;
use transfer::{PieceLens, Step, Transfers};
pub use types::{Ended, FlowConfig, FlowCounters, Outcome, PushError, ServerInfo};

/// HELLO with its trailer.
const HELLO_LEN: usize = size_of::<Hello>() + TRAILER_LEN;

/// First wait for an answer to HELLO or OPEN, doubled each time.
const HANDSHAKE_RTO: Duration = Duration::from_millis(20);

/// Longest wait for an answer to OPEN: the path may not carry its length, so that waiting longer does not help.
const PROBE_RTO_MAX: Duration = Duration::from_millis(160);

/// How often an OPEN of one length is sent before a shorter one is.
const PROBES_PER_LEN: u32 = 4;

/// RTO before the first sample.
const RTO_INITIAL: Duration = Duration::from_millis(5);

/// A request is taken for lost when one sent this many requests later was answered (RFC 9002 §6.1.1).
const REORDERING_MAX: u64 = 3;

/// A session is renewed after this many requests. Far below the largest sequence number, because reads in flight may still
/// be asked for again under new ones.
const SESSION_REQUESTS_MAX: u32 = u32::MAX / 2;

/// Result of a write, and of one with its version.
const RESULT_LEN: usize = 2;
const VERSIONED_RESULT_LEN: usize = 10;

/// Ranges that one request asks for; each is answered by a datagram of its own.
const RANGES_MAX: u8 = 32;

/// Long values on their way beyond which nothing else is taken.
const TRANSFERS_MAX: usize = 1_024;

/// Unit of the factor that jitters timeouts.
const SCALE_ONE: u32 = 1_024;

/// Unit of the estimate of datagrams per get.
const ESTIMATE_ONE: u32 = 256;

/// Requests whose lengths are evened out together: the segments of one train.
const RUN_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
enum State {
    /// Sends HELLO.
    Greeting,
    /// Sends OPEN with this cookie.
    Opening(Cookie),
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    /// Takes operations.
    Filling,
    /// Complete, not sent in this session.
    Ready,
    InFlight,
}

/// A request's state; its bytes and tags lie in arrays beside, so that scans stay short.
#[derive(Clone, Debug)]
struct Slot {
    phase: Phase,
    class: u8,
    /// Whether any copy was ever sent, in any session.
    exposed: bool,
    /// Waits in `resend`.
    lost: bool,
    attempt: u8,
    seq: u32,
    count: u8,
    /// Operations without a result.
    missing: u8,
    /// Bytes, header included.
    len: u16,
    pushed_at: Instant,
    sent_at: Instant,
    /// Number of the latest transmission, counted over the flow.
    number: u64,
    /// Datagrams that the answer is expected to take while it is in flight, and those that have come.
    expected: u16,
    replies: u16,
    received: Bits,
    /// Operations that the server had no room for in its reply.
    refused: Bits,
}

impl Slot {
    const FREE: Self = Self {
        phase: Phase::Free,
        class: 0,
        exposed: false,
        lost: false,
        attempt: 0,
        seq: 0,
        count: 0,
        missing: 0,
        len: 0,
        pushed_at: Instant::from_nanos(0),
        sent_at: Instant::from_nanos(0),
        number: 0,
        expected: 0,
        replies: 0,
        received: Bits::NONE,
        refused: Bits::NONE,
    };

    const fn writes(&self) -> bool {
        self.class as usize == WRITES
    }
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

/// Kinds of requests.
const READS: usize = 0;
const WRITES: usize = 1;
/// Of long values that are read, and that are written.
const RANGES: usize = 2;
const PARTS: usize = 3;
const CLASSES: usize = 4;

/// Flags that tell the server of which class a request is.
const CLASS_FLAGS: [Flags; CLASSES] =
    [Flags::READ_ONLY, Flags::NONE, Flags::READ_ONLY.with(Flags::TRANSFER), Flags::TRANSFER];

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
    /// Operations per request of each class.
    operations_max: [u8; CLASSES],
    /// Bytes of a request before padding and trailer.
    full_len: usize,
    free: Vec<u8>,
    filling: [Option<u8>; CLASSES],
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
            full_len: 0,
            free: Vec::with_capacity(config.window.into()),
            filling: [None; CLASSES],
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
        let index = match self.filling[class] {
            Some(index) if usize::from(self.slots[index as usize].len) + len <= self.full_len => index,
            _ if size_of::<RequestHeader>() + len > self.full_len => {
                // Piece by piece: for a reference to all of it, each operation would be written to memory first.
                return self.push_long(now, operation.key.bytes(), operation.value, tag);
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
        if slot.count == self.operations_max[class] {
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
        let in_session = matches!(common.kind, Kind::REPLY | Kind::PONG | Kind::STATISTICS);
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
        handshake.min(loss).min(self.next_deadline_check).min(self.transfers.next_at())
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

    // ---- filling ----

    /// Takes a put whose value does not fit a datagram.
    #[cold]
    #[inline(never)]
    fn push_long(&mut self, now: Instant, key: &[u8], value: &[u8], tag: u64) -> Result<(), PushError> {
        if !self.is_open() || !self.transfers.has_room_for_put(value.len()) {
            return Err(PushError::Full);
        }
        self.transfers.begin_put(now, tag, key, value);
        Ok(())
    }

    /// Writes what the transfers have to send into requests, as far as there are slots.
    fn pump_transfers(&mut self, now: Instant) {
        let lens = self.piece_lens();
        let mut transfers = std::mem::take(&mut self.transfers);
        transfers.pump(now, lens, |pushed_at, step| self.push_step(pushed_at, step));
        self.transfers = transfers;
        self.close(RANGES);
        self.close(PARTS);
    }

    /// Writes a step of a transfer into a request; `false` when there is no slot for it.
    fn push_step(&mut self, pushed_at: Instant, step: Step<'_>) -> bool {
        let (class, len) = match &step {
            Step::Range(range, _) => (RANGES, range.wire_len()),
            Step::Piece(piece, _) => (PARTS, piece.wire_len()),
            Step::Commit(key, number, _) => (WRITES, Operation::commit(*key, *number).wire_len()),
        };
        let index = match self.filling[class] {
            Some(index) if usize::from(self.slots[index as usize].len) + len <= self.full_len => index,
            _ => match self.begin(pushed_at, class) {
                Some(index) => index,
                None => return false,
            },
        };
        let slot = &mut self.slots[index as usize];
        let out = &mut self.bytes[index as usize][usize::from(slot.len)..];
        let (written, tag) = match step {
            Step::Range(range, tag) => (range.write(out), tag),
            Step::Piece(piece, tag) => (piece.write(out), tag),
            Step::Commit(key, number, tag) => (Operation::commit(key, number).write(out), tag),
        };
        debug_assert_eq!(written, Some(len), "room was checked above");
        self.tags[index as usize][slot.count as usize] = tag;
        slot.len += len as u16;
        slot.count += 1;
        if slot.count == self.operations_max[class] {
            self.close(class);
        }
        true
    }

    /// Pieces that fill a datagram of this session.
    fn piece_lens(&self) -> PieceLens {
        let body_len = self.full_len - size_of::<RequestHeader>();
        let datagram_len = self.full_len + TRAILER_LEN_MAX;
        PieceLens { range: body_len - self.result_len(), part: part_len(datagram_len) }
    }

    /// Bytes of a result beside its value.
    const fn result_len(&self) -> usize {
        if self.config.versions { VERSIONED_RESULT_LEN } else { RESULT_LEN }
    }

    /// Begins a request of the caller's operations. While long values are on their way, some slots are kept for them: a
    /// caller who refills every slot at once would otherwise never let them go on.
    #[inline(never)]
    fn begin_for_caller(&mut self, now: Instant, class: usize) -> Option<u8> {
        if !self.transfers.is_empty() {
            let kept = usize::from(self.window / 4).max(1);
            if self.free.len() <= kept || self.transfers.count() >= TRANSFERS_MAX {
                return None;
            }
        }
        self.begin(now, class)
    }

    /// Closes what is being filled and begins the next request.
    #[inline(never)]
    fn begin(&mut self, now: Instant, class: usize) -> Option<u8> {
        self.close(class);
        let index = self.free.pop()?;
        let slot = &mut self.slots[index as usize];
        *slot = Slot {
            phase: Phase::Filling,
            class: class as u8,
            seq: slot.seq,
            len: size_of::<RequestHeader>() as u16,
            pushed_at: now,
            ..Slot::FREE
        };
        self.filling[class] = Some(index);
        Some(index)
    }

    fn close(&mut self, class: usize) {
        if let Some(index) = self.filling[class].take() {
            let slot = &mut self.slots[index as usize];
            slot.phase = Phase::Ready;
            slot.missing = slot.count;
            self.ready[class].push_back(index);
        }
    }

    // ---- sending ----

    const fn trailer_len(&self) -> usize {
        match self.info {
            Some(ServerInfo { checksum: false, .. }) => 0,
            _ => TRAILER_LEN,
        }
    }

    fn datagram_len(&self, index: u8) -> usize {
        (usize::from(self.slots[index as usize].len) + self.trailer_len()).max(REQUEST_LEN_MIN)
    }

    /// Requests that may join those in flight: as many as the server has credited, the delays allow and the answers find
    /// room for.
    #[inline]
    fn room(&self, now: Instant) -> usize {
        let credit = match () {
            () if is_active(Mutant::CreditIgnored) => u16::MAX,
            () if self.credit == CREDIT_UNLIMITED || now.since(self.last_heard) <= CREDIT_LIFETIME => {
                u16::from(self.credit)
            }
            () => 1,
        };
        let limit = self.window.min(credit).min(self.congestion_window);
        let room = usize::from(limit).saturating_sub(self.in_flight);
        let answers_left = self.config.reply_datagrams_max.saturating_sub(self.expected);
        if room == 0 || answers_left >= room * REPLY_DATAGRAMS_MAX {
            return room;
        }
        let front = self.ready.iter().filter_map(|queue| queue.front());
        let largest = front.map(|&index| self.expected_of(index)).max().unwrap_or(1);
        // What nothing else is in flight with may be larger than all room: there is no smaller step.
        room.min(answers_left / usize::from(largest)).max(usize::from(self.in_flight == 0))
    }

    /// Datagrams that the answer to a request will probably take.
    fn expected_of(&self, index: u8) -> u16 {
        let slot = &self.slots[index as usize];
        let datagrams = match usize::from(slot.class) {
            READS => (u32::from(slot.count) * self.datagrams_per_get).div_ceil(ESTIMATE_ONE),
            RANGES => slot.count.into(),
            _ => 1,
        };
        datagrams.clamp(1, REPLY_DATAGRAMS_MAX as u32) as u16
    }

    /// The next ready requests that may be sent together. Reads go first, because a train's first reply sets the length
    /// of its segments and replies to reads are the long ones; unless not all may go, then the oldest class does.
    fn next_run(&self, room: usize) -> Run {
        let age = |class: usize| {
            self.ready[class].front().map_or(Instant::FAR_FUTURE, |&slot| self.slots[slot as usize].pushed_at)
        };
        let all_may_go = self.ready.iter().map(VecDeque::len).sum::<usize>() <= room;
        let oldest = (0..CLASSES).min_by_key(|&class| age(class)).unwrap_or(READS);
        let class = if all_may_go && !self.ready[READS].is_empty() { READS } else { oldest };
        let left = self.ready[class].len().min(room).min(RUN_MAX);
        let len =
            self.ready[class].iter().take(left).map(|&index| self.datagram_len(index)).max().unwrap_or(0);
        Run { class, left, len }
    }

    fn emit_request(&mut self, now: Instant, index: u8, out: &mut [u8]) {
        let expected = self.expected_of(index);
        let slot = &mut self.slots[index as usize];
        self.expected = self.expected + usize::from(expected) - usize::from(slot.expected);
        slot.expected = expected;
        slot.exposed = true;
        slot.lost = false;
        slot.sent_at = now;
        slot.number = self.next_number;
        self.sent.push_back((index, self.next_number));
        self.next_number += 1;
        let checksum = self.info.is_none_or(|info| info.checksum);
        let header = RequestHeader {
            common: Common {
                kind: Kind::REQUEST,
                flags: CLASS_FLAGS[usize::from(slot.class)]
                    .with(Flags::CHECKSUM.when(checksum))
                    .with(Flags::VERSIONS.when(self.config.versions)),
                slot: index,
                attempt: slot.attempt,
                session: self.session.into(),
                token: self.token.into(),
            },
            seq: slot.seq.into(),
            count: slot.count,
            epoch: self.config.epoch.into(),
            spare: 0,
        };
        let len = usize::from(slot.len);
        let header_len = size_of::<RequestHeader>();
        out[..header_len].copy_from_slice(header.as_bytes());
        out[header_len..len].copy_from_slice(&self.bytes[index as usize][header_len..len]);
        out[len..].fill(0);
        if checksum {
            write_trailer(out);
        }
    }

    /// Sends a request again: the same bytes under the same number, or, when a read has got part of its results, the
    /// rest of it as a new request.
    fn emit_again(&mut self, now: Instant, index: u8, out: &mut [u8]) {
        let slot = &mut self.slots[index as usize];
        let is_read = matches!(usize::from(slot.class), READS | RANGES);
        if !is_read || slot.missing == slot.count {
            slot.attempt = slot.attempt.wrapping_add(1);
            slot.seq += u32::from(is_active(Mutant::RetransmitRenumbered));
        } else {
            // `out` was sized for the longer request; what is left of it is padding.
            self.keep_missing(index);
            let slot = &mut self.slots[index as usize];
            slot.seq += 1;
            slot.attempt = 0;
            self.session_requests += 1;
        }
        self.emit_request(now, index, out);
    }

    /// Rewrites a request of reads so that it holds only the operations that have no result yet.
    fn keep_missing(&mut self, index: u8) {
        let slot = &mut self.slots[index as usize];
        let header_len = size_of::<RequestHeader>();
        let old = self.bytes[index as usize];
        let new = &mut self.bytes[index as usize];
        let tags = &mut self.tags[index as usize];
        let (mut start, mut len, mut count) = (header_len, header_len, 0);
        for position in 0..slot.count {
            let rest = &old[start..];
            let operation_len = if usize::from(slot.class) == RANGES {
                Range::parse(rest).map(|(range, _)| range.wire_len())
            } else {
                Operation::parse(rest).map(|(operation, _)| operation.wire_len())
            };
            let operation_len = operation_len.expect("written by push");
            if !slot.received.has(position) {
                new[len..len + operation_len].copy_from_slice(&rest[..operation_len]);
                tags[count] = tags[usize::from(position)];
                len += operation_len;
                count += 1;
            }
            start += operation_len;
        }
        slot.len = len as u16;
        slot.count = count as u8;
        slot.missing = slot.count;
        slot.replies = 0;
        slot.received = Bits::NONE;
        slot.refused = Bits::NONE;
    }

    /// Length of the next HELLO or OPEN. Opens become shorter until one comes through; when none does, the cookie may be of
    /// a server that has restarted since.
    fn handshake_len(&mut self) -> usize {
        if matches!(self.state, State::Opening(_)) {
            if let Some(&len) = DATAGRAM_LENS.get((self.handshakes / PROBES_PER_LEN) as usize) {
                return len;
            }
            self.state = State::Greeting;
        }
        HELLO_LEN
    }

    fn emit_handshake(&mut self, now: Instant, out: &mut [u8]) {
        let longest =
            if matches!(self.state, State::Opening(_)) { PROBE_RTO_MAX } else { Duration::from_secs(1) };
        let rto = HANDSHAKE_RTO * 2u32.saturating_pow(self.handshakes.min(6));
        self.handshake_at = now + self.jittered(rto.min(longest));
        self.handshakes += 1;
        let common = Common {
            flags: Flags::CHECKSUM,
            slot: 0,
            attempt: 0,
            kind: Kind::HELLO,
            session: 0.into(),
            token: 0.into(),
        };
        if let State::Opening(cookie) = self.state {
            let request = Open {
                common: Common { kind: Kind::OPEN, ..common },
                nonce: self.nonce,
                cookie,
                window: self.config.window.into(),
                checksum: self.config.checksum.into(),
                ..Open::new_zeroed()
            };
            seal_padded(&request, out.len(), out);
            self.open_len = self.open_len.min(out.len());
        } else {
            let hello = Hello { common, nonce: self.nonce, ..Hello::new_zeroed() };
            seal_padded(&hello, out.len(), out);
        }
    }

    fn emit_control(&mut self, now: Instant, control: Control, out: &mut [u8]) {
        self.control = None;
        let kind = match control {
            Control::Ping => Kind::PING,
            Control::Stats => Kind::STATS,
            Control::Close => Kind::CLOSE,
        };
        let checksum = self.trailer_len() > 0;
        let common = Common {
            kind,
            flags: Flags::CHECKSUM.when(checksum),
            slot: 0,
            attempt: 0,
            session: self.session.into(),
            token: self.token.into(),
        };
        let message = Ping { common, echo: now.as_nanos().into() };
        out[..size_of::<Ping>()].copy_from_slice(message.as_bytes());
        out[size_of::<Ping>()..].fill(0);
        if checksum {
            write_trailer(out);
        }
        if control == Control::Close {
            self.restart(now);
            self.handshake_at = Instant::FAR_FUTURE;
        }
    }

    // ---- receiving ----

    #[inline]
    fn receive_reply(
        &mut self,
        now: Instant,
        message: &[u8],
        sink: &mut impl FnMut(Ended<'_>),
    ) -> Result<(), DropReason> {
        let (header, results) = ReplyHeader::ref_from_prefix(message).map_err(|_| DropReason::Truncated)?;
        let common = &header.common;
        self.check_session(common)?;
        let index = common.slot;
        let slot = self.slots.get_mut(index as usize).ok_or(DropReason::Slot)?;
        let is_answer = slot.seq == header.seq.get() || is_active(Mutant::StaleReplyAccepted);
        if slot.phase != Phase::InFlight || !is_answer {
            return Err(DropReason::Stale);
        }
        if header.count == 0 || u16::from(header.first) + u16::from(header.count) > slot.count.into() {
            return Err(DropReason::Malformed);
        }
        slot.replies = slot.replies.saturating_add(1);
        let writes = slot.writes();
        self.last_heard = now;
        self.answered_at = now;
        self.probe_at = None;
        self.rtt.heard();
        if slot.number >= self.credit_number {
            // What an overtaken reply says was taken back since.
            self.credit_number = slot.number;
            self.credit = header.credit.max(1);
        }
        self.counters.replies += 1;
        self.watch_delay(now, header.queue_delay);
        if usize::from(self.slots[index as usize].class) >= RANGES {
            let verdict = self.receive_steps(now, header, results, sink);
            if self.slots[index as usize].missing == 0 {
                self.complete(now, index, common.attempt);
            }
            return verdict;
        }

        let lens = self.piece_lens();
        let slot = &mut self.slots[index as usize];
        let tags = &self.tags[index as usize];
        let versions = common.flags.contains(Flags::VERSIONS);
        let data_epoch = self.data_epoch;
        let (mut results, mut done) = (results, 0);
        if slot.received.has_none_of(header.first, header.count) {
            // Nearly always: every result is new, and what each means is plain.
            let first = usize::from(header.first);
            for &tag in &tags[first..first + usize::from(header.count)] {
                let (outcome, version, rest) = match OpResult::parse(results, versions) {
                    Ok((OpResult::Value(value), version, rest)) => (Outcome::Value(value), version, rest),
                    Ok((OpResult::NotFound, version, rest)) => (Outcome::NotFound, version, rest),
                    Ok((OpResult::Done, version, rest)) => (Outcome::Done, version, rest),
                    _ => break,
                };
                sink(Ended { tag, outcome, version, data_epoch });
                results = rest;
                done += 1;
            }
            slot.received.set_all(header.first, done);
            slot.missing -= done;
        }
        let mut verdict = Ok(());
        let left = Results::new(results, header.count - done, versions);
        for (result, position) in left.zip(header.first + done..) {
            let (result, version) = match result {
                Ok(_) if slot.received.has(position) => continue,
                Ok(result) => result,
                Err(reason) => {
                    verdict = Err(reason);
                    break;
                }
            };
            let outcome = match result {
                OpResult::NotExecuted(Reason::ReplyFull) if !writes => {
                    slot.refused.set(position);
                    continue;
                }
                OpResult::Value(value) => Outcome::Value(value),
                OpResult::NotFound => Outcome::NotFound,
                OpResult::Done => Outcome::Done,
                OpResult::NotExecuted(reason) => Outcome::NotExecuted(reason),
                OpResult::Long(long) if !writes && transfer::is_possible(long) => {
                    slot.received.set(position);
                    slot.missing -= 1;
                    let body = &self.bytes[index as usize][size_of::<RequestHeader>()..];
                    let get = Operations::new(body, slot.count, true).nth(position.into());
                    let key = get.and_then(Result::ok).expect("written by push").key.bytes();
                    self.transfers.begin_get(slot.pushed_at, tags[position as usize], key, long, lens);
                    continue;
                }
                OpResult::Long(_) => {
                    verdict = Err(DropReason::Malformed);
                    break;
                }
            };
            slot.received.set(position);
            slot.missing -= 1;
            sink(Ended { tag: tags[position as usize], outcome, version, data_epoch });
        }
        if is_active(Mutant::PartialReplyWhole) && !writes {
            for position in (0..slot.count).filter(|&position| !slot.received.has(position)) {
                let tag = tags[usize::from(position)];
                sink(Ended { tag, outcome: Outcome::NotFound, version: 0, data_epoch });
            }
            slot.missing = 0;
        }
        if slot.missing == 0 {
            self.complete(now, index, common.attempt);
        } else if !slot.refused.is_empty()
            && u32::from(slot.missing) == slot.refused.count_without(slot.received)
        {
            if slot.missing < slot.count {
                // All that the server had room for is here: ask for the rest at once.
                self.mark_lost(index);
            } else {
                // Asking again would give the same answer.
                self.fail(index, Reason::ReplyFull, sink);
            }
        }
        verdict
    }

    /// Takes the answers to steps of transfers.
    #[cold]
    fn receive_steps(
        &mut self,
        now: Instant,
        header: &ReplyHeader,
        results: &[u8],
        sink: &mut impl FnMut(Ended<'_>),
    ) -> Result<(), DropReason> {
        let lens = self.piece_lens();
        let versions = header.common.flags.contains(Flags::VERSIONS);
        let slot = &mut self.slots[header.common.slot as usize];
        let tags = &self.tags[header.common.slot as usize];
        let is_put = usize::from(slot.class) == PARTS;
        for (result, position) in Results::new(results, header.count, versions).zip(header.first..) {
            let (result, version) = result?;
            if slot.received.has(position) {
                continue;
            }
            slot.received.set(position);
            slot.missing -= 1;
            let answer = (tags[position as usize], result, version);
            self.transfers.take(now, is_put, answer, lens, self.data_epoch, sink);
        }
        Ok(())
    }

    /// Halves the congestion window, at most once per round trip, when answers wait long at the server, and lets it grow
    /// by one with each window of answers that do not: many clients of one server must not fill its queue together.
    #[inline]
    fn watch_delay(&mut self, now: Instant, queue_delay: u8) {
        let smoothed = self.rtt.smoothed();
        if queue_delay > 0
            && Duration::from_micros(4) * queue_delay.into() > smoothed * 4
            && !smoothed.is_zero()
        {
            self.halve_window(now);
            return;
        }
        if self.congestion_window < self.window {
            self.undelayed += 1;
            if self.undelayed >= self.congestion_window {
                self.congestion_window += 1;
                self.undelayed = 0;
            }
        }
    }

    #[cold]
    fn halve_window(&mut self, now: Instant) {
        if now.since(self.halved_at) > self.rtt.smoothed() {
            self.congestion_window = (self.congestion_window / 2).max(1);
            self.undelayed = 0;
            self.halved_at = now;
        }
    }

    /// All results of a request are here: its slot is free again, and requests sent long before it are lost.
    #[inline]
    fn complete(&mut self, now: Instant, index: u8, attempt: u8) {
        let slot = &mut self.slots[index as usize];
        slot.phase = Phase::Free;
        self.free.push(index);
        self.in_flight -= 1;
        self.expected -= usize::from(slot.expected);
        if usize::from(slot.class) == READS {
            // The estimate follows at once upwards and slowly downwards.
            let datagrams_per_get = u32::from(slot.replies) * ESTIMATE_ONE / u32::from(slot.count).max(1);
            let lower = self.datagrams_per_get - self.datagrams_per_get.div_ceil(16);
            self.datagrams_per_get = datagrams_per_get.max(lower).clamp(1, ESTIMATE_ONE);
        }
        if attempt != slot.attempt {
            // The answer to an earlier copy says nothing of what was sent between that and the latest.
            return;
        }
        let number = slot.number;
        self.rtt.sample(now.since(slot.sent_at));
        while let Some(&(index, sent_number)) = self.sent.front() {
            if self.is_current(index, sent_number) {
                let overtaken = sent_number + REORDERING_MAX <= number;
                let sent_at = self.slots[index as usize].sent_at;
                let late = now.since(sent_at) * 8 >= self.rtt.smoothed() * 9;
                if !(overtaken && late) {
                    break;
                }
                self.counters.early_retransmits += 1;
                self.mark_lost(index);
            }
            self.sent.pop_front();
        }
    }

    fn check_session(&self, common: &Common) -> Result<(), DropReason> {
        let known =
            self.is_open() && common.session.get() == self.session && common.token.get() == self.token;
        if known { Ok(()) } else { Err(DropReason::UnknownSession) }
    }

    fn receive_cookie(&mut self, now: Instant, message: &[u8]) -> Result<(), DropReason> {
        let (reply, _) = CookieReply::ref_from_prefix(message).map_err(|_| DropReason::Truncated)?;
        if !matches!(self.state, State::Greeting) || reply.nonce != self.nonce {
            return Err(DropReason::Unexpected);
        }
        self.state = State::Opening(reply.cookie);
        self.handshakes = 0;
        self.handshake_at = now;
        Ok(())
    }

    fn receive_opened(
        &mut self,
        now: Instant,
        message: &[u8],
        sink: &mut impl FnMut(Ended<'_>),
    ) -> Result<(), DropReason> {
        let (opened, _) = Opened::ref_from_prefix(message).map_err(|_| DropReason::Truncated)?;
        if !matches!(self.state, State::Opening(_)) || opened.nonce != self.nonce {
            return Err(DropReason::Unexpected);
        }
        let window = opened.window.get();
        let lease = Duration::from_secs(opened.lease_s.get().into());
        // An OPENED that comes late says more than the server keeps to after a shorter OPEN.
        let datagram_len = usize::from(opened.datagram_len_max.get()).min(self.open_len);
        let sane = (1..=self.config.window).contains(&window)
            && (DATAGRAM_LEN_MIN..=DATAGRAM_LEN_MAX).contains(&datagram_len)
            && opened.cores > 0
            && !lease.is_zero();
        if !sane {
            return Err(DropReason::Malformed);
        }
        self.state = State::Open;
        self.data_epoch = opened.data_epoch.get();
        self.session = opened.common.session.get();
        self.token = opened.common.token.get();
        self.info = Some(ServerInfo {
            boot_id: opened.boot_id.get(),
            data_epoch: opened.data_epoch.get(),
            base_port: opened.base_port.get(),
            cores: opened.cores,
            core: opened.core,
            window,
            checksum: opened.checksum != 0,
            datagram_len,
            lease,
        });
        self.credit = opened.credit.max(1);
        self.full_len = datagram_len - TRAILER_LEN_MAX;
        // The results of a write's operations fit one datagram.
        let results_max = (self.full_len - size_of::<ReplyHeader>()) / self.result_len();
        let operations_max = self.config.operations_max.min(results_max.min(u8::MAX.into()) as u8);
        self.operations_max[WRITES] = operations_max;
        // Those of a read's need not, but there is a word on each in the last that a reply may have.
        self.operations_max[READS] = operations_max;
        self.operations_max[RANGES] = RANGES_MAX;
        self.handshakes = 0;
        self.refusal = None;
        self.last_heard = now;
        self.last_sent = now;
        self.counters.sessions += 1;
        self.resize(window, sink);
        Ok(())
    }

    fn receive_refused(&mut self, now: Instant, message: &[u8]) -> Result<(), DropReason> {
        let (refused, _) = Refused::ref_from_prefix(message).map_err(|_| DropReason::Truncated)?;
        if !matches!(self.state, State::Opening(_)) || refused.nonce != self.nonce {
            return Err(DropReason::Unexpected);
        }
        self.refusal = Some(refused.reason);
        // The open has come through: there is no need for a shorter one.
        self.handshakes = self.handshakes.saturating_sub(1) / PROBES_PER_LEN * PROBES_PER_LEN;
        let retry_after = Duration::from_millis(refused.retry_after_ms.get().into());
        self.handshake_at = self.handshake_at.max(now + retry_after);
        Ok(())
    }

    fn receive_no_session(
        &mut self,
        now: Instant,
        message: &[u8],
        sink: &mut impl FnMut(Ended<'_>),
    ) -> Result<(), DropReason> {
        let (refusal, _) = NoSession::ref_from_prefix(message).map_err(|_| DropReason::Truncated)?;
        // Who does not know the token can not end the session.
        self.check_session(&refusal.common)?;
        self.data_epoch = refusal.data_epoch.get();
        for index in 0..self.slots.len() as u16 {
            let index = index as u8;
            let slot = &mut self.slots[index as usize];
            if slot.phase != Phase::InFlight {
                continue;
            }
            match usize::from(slot.class) {
                WRITES if !is_active(Mutant::WriteRetriedInNewSession) => {
                    self.fail(index, Reason::SessionLost, sink);
                }
                READS | WRITES => {
                    // Reading again in the next session does no harm.
                    self.keep_missing(index);
                    let slot = &mut self.slots[index as usize];
                    slot.phase = Phase::Ready;
                    self.expected -= usize::from(std::mem::take(&mut slot.expected));
                    self.ready[usize::from(slot.class)].push_front(index);
                    self.in_flight -= 1;
                }
                _ => self.release(index),
            }
        }
        self.restart(now);
        Ok(())
    }

    fn receive_pong(&mut self, now: Instant, message: &[u8]) -> Result<(), DropReason> {
        let (pong, _) = Ping::ref_from_prefix(message).map_err(|_| DropReason::Truncated)?;
        self.check_session(&pong.common)?;
        self.last_heard = now;
        self.pong = Some(now.since(Instant::from_nanos(pong.echo.get())));
        Ok(())
    }

    fn receive_statistics(&mut self, now: Instant, message: &[u8]) -> Result<(), DropReason> {
        let (head, values) = Ping::ref_from_prefix(message).map_err(|_| DropReason::Truncated)?;
        self.check_session(&head.common)?;
        self.last_heard = now;
        // An older server knows fewer, a newer one more.
        let mut statistics = Box::new([0; STAT_COUNT]);
        for (statistic, value) in statistics.iter_mut().zip(values.as_chunks().0) {
            *statistic = u64::from_be_bytes(*value);
        }
        self.statistics = Some(statistics);
        Ok(())
    }

    // ---- sessions ----

    /// Begins a new handshake; requests that wait go into the session that it opens.
    fn restart(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            // What was staged for the old session is lost with it.
            let slot = &self.slots[index];
            if slot.phase != Phase::Free && usize::from(slot.class) >= RANGES {
                self.release(index as u8);
            }
        }
        self.transfers.restart_all(now);
        debug_assert_eq!(self.in_flight, 0, "requests in flight belong to the old session");
        self.state = State::Greeting;
        self.session = 0;
        self.token = 0;
        // A later generation: the server ends what it has of the earlier ones.
        self.nonce = nonce_of(client_id(&self.nonce), generation(&self.nonce).wrapping_add(1));
        self.handshakes = 0;
        self.open_len = DATAGRAM_LEN_MAX;
        self.handshake_at = now;
        self.sent.clear();
        self.resend.clear();
        self.run = Run::default();
        self.probe_at = None;
        self.session_requests = 0;
        self.rtt = Rtt::new(RTO_INITIAL, self.config.rto_floor);
        self.congestion_window = self.config.window;
        self.undelayed = 0;
        for slot in &mut self.slots {
            slot.seq = 0;
        }
    }

    /// Makes as many slots usable as the session has. Requests in slots that it does not have are given up, and those
    /// that were made for longer datagrams than it has: the server would not take them.
    fn resize(&mut self, window: u16, sink: &mut impl FnMut(Ended<'_>)) {
        self.window = window;
        let window = usize::from(window);
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let fits = index < window
                && usize::from(slot.len) <= self.full_len
                && slot.count <= self.operations_max[usize::from(slot.class)];
            if slot.phase != Phase::Free && !fits {
                self.fail(index as u8, Reason::SessionLost, sink);
            }
        }
        if self.slots.len() < window {
            self.slots.resize(window, Slot::FREE);
            self.bytes.resize(window, [0; DATAGRAM_LEN_MAX]);
            self.tags.resize(window, [0; OPERATIONS_MAX]);
        }
        self.free.clear();
        let free = (0..window).rev().filter(|&index| self.slots[index].phase == Phase::Free);
        self.free.extend(free.map(|index| index as u8));
    }

    /// Whether the session may have ended for lack of a word from here, or its sequence numbers are used up.
    fn has_gone_stale(&self, now: Instant) -> bool {
        let lease = self.info.map_or(Duration::MAX, |info| info.lease);
        now.since(self.last_heard) > lease / 2 || self.session_requests >= SESSION_REQUESTS_MAX
    }

    fn keep_alive(&mut self, now: Instant) {
        let lease = self.info.map_or(Duration::MAX, |info| info.lease);
        if self.is_open() && self.control.is_none() && now.since(self.last_sent) > lease / 3 {
            self.control = Some(Control::Ping);
        }
    }

    // ---- losses ----

    /// Whether this transmission is the latest of a request that is not answered yet.
    #[inline]
    fn is_current(&self, index: u8, number: u64) -> bool {
        let slot = &self.slots[index as usize];
        slot.phase == Phase::InFlight && slot.number == number
    }

    fn mark_lost(&mut self, index: u8) {
        let slot = &mut self.slots[index as usize];
        if !slot.lost {
            slot.lost = true;
            self.resend.push_back(index);
        }
    }

    /// When the request in this slot counts as lost.
    ///
    /// Each answer begins the wait anew (RFC 6298 §5.3): as long as answers come, a request that was lost is noticed by
    /// those to later requests, and one that merely waits behind others is not sent twice.
    ///
    /// Silence more likely means a server that stands still than many losses, so one request asks for all: the next is
    /// sent again only after something was heard, or after a timeout twice as long.
    #[inline]
    fn loss_at(&self, index: u8) -> Instant {
        let sent_at = self.slots[index as usize].sent_at.max(self.answered_at);
        let since = self.probe_at.map_or(sent_at, |probe_at| probe_at.max(sent_at));
        since
            + if self.rtt.is_backed_off() {
                self.rtt.rto() * self.rto_scale / SCALE_ONE
            } else {
                self.rtt.rto()
            }
    }

    /// Marks the oldest unanswered request for sending again when its timeout has passed.
    #[inline]
    fn detect_losses(&mut self, now: Instant) {
        if is_active(Mutant::NoRetransmission) {
            return;
        }
        while let Some(&(index, number)) = self.sent.front() {
            if self.is_current(index, number) {
                if now < self.loss_at(index) {
                    return;
                }
                self.sent.pop_front();
                self.mark_lost(index);
                self.probe_at = Some(now);
                self.rtt.expired();
                self.halve_window(now);
                self.rto_scale = self.draw_scale();
                return;
            }
            self.sent.pop_front();
        }
    }

    fn give_up(&mut self, now: Instant, sink: &mut impl FnMut(Ended<'_>)) {
        if !self.transfers.is_empty() && now.since(Instant::default()) >= self.config.timeout {
            let begun_before = now - self.config.timeout;
            self.transfers.give_up(begun_before, Reason::Deadline, self.data_epoch, sink);
        }
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.phase != Phase::Free && now.since(slot.pushed_at) >= self.config.timeout {
                self.fail(index as u8, Reason::Deadline, sink);
            }
        }
    }

    /// Ends a request without an answer: a write that was sent is unknown, everything else had no effect.
    fn fail(&mut self, index: u8, reason: Reason, sink: &mut impl FnMut(Ended<'_>)) {
        let slot = &self.slots[index as usize];
        if slot.phase == Phase::InFlight && self.credit != CREDIT_UNLIMITED {
            // The slot's next request would tell the server that this one's answer, and the credit in it, was heard.
            self.credit = 1;
        }
        if usize::from(slot.class) >= RANGES {
            // Transfers end by their own deadlines. The request had that of its oldest; the others ask again.
            let is_put = usize::from(slot.class) == PARTS;
            for position in (0..slot.count).filter(|&position| !slot.received.has(position)) {
                self.transfers.lose(is_put, self.tags[index as usize][position as usize]);
            }
            return self.release(index);
        }
        let unknown = slot.writes() && slot.exposed && !is_active(Mutant::UnknownIsNotExecuted);
        let outcome = if unknown { Outcome::OutcomeUnknown } else { Outcome::NotExecuted(reason) };
        for position in 0..slot.count {
            if !slot.received.has(position) {
                let tag = self.tags[index as usize][position as usize];
                sink(Ended { tag, outcome, version: 0, data_epoch: self.data_epoch });
            }
        }
        self.release(index);
    }

    /// Makes a slot free, whatever becomes of its request.
    fn release(&mut self, index: u8) {
        let slot = &mut self.slots[index as usize];
        let class = usize::from(slot.class);
        self.expected -= usize::from(std::mem::take(&mut slot.expected));
        match std::mem::replace(&mut slot.phase, Phase::Free) {
            Phase::Free => unreachable!("a free slot has nothing to release"),
            Phase::Filling => self.filling[class] = None,
            Phase::Ready => {
                self.ready[class].retain(|&ready| ready != index);
                self.run = Run::default();
            }
            Phase::InFlight => self.in_flight -= 1,
        }
        self.free.push(index);
    }

    /// `duration` ± 25 %, so that many clients do not retry in step.
    fn jittered(&mut self, duration: Duration) -> Duration {
        duration * self.draw_scale() / SCALE_ONE
    }

    /// 0.75 to 1.25, in [`SCALE_ONE`]ths.
    fn draw_scale(&mut self) -> u32 {
        // xorshift64, Marsaglia 2003.
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        SCALE_ONE * 3 / 4 + (self.jitter >> 48) as u32 % (SCALE_ONE / 2)
    }
}

/// Checks key and value against the limits.
///
/// # Errors
/// [`PushError::KeyLen`] or [`PushError::ValueLen`].
#[inline]
pub fn check_lengths(operation: &Operation<'_>) -> Result<(), PushError> {
    let key_len = operation.key.len();
    if key_len == 0 || key_len > KEY_LEN_MAX {
        return Err(PushError::KeyLen(key_len));
    }
    if operation.value.len() > VALUE_LEN_MAX {
        return Err(PushError::ValueLen(operation.value.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a session is renewed before sequence numbers wrap. Method: one that has used them up, which no test lives to
    /// see, is set up by hand; the next request must greet, and go into the new session with number 1.
    #[test]
    fn a_session_is_renewed_before_its_sequence_numbers_run_out() {
        let config = FlowConfig {
            window: 1,
            operations_max: 1,
            checksum: false,
            versions: false,
            reply_datagrams_max: usize::MAX,
            rto_floor: Duration::from_micros(200),
            timeout: Duration::from_secs(1),
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
