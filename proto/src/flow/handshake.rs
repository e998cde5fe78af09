//! How a session is opened, lost and renewed.

use std::time::Duration;

use zerocopy::{FromBytes, FromZeros};

use super::{
    Control, Flow, RTO_INITIAL, Run, SESSION_REQUESTS_MAX, State,
    slot::{CLASSES, Phase, RANGES, READS, Slot, WRITES},
    types::{Ended, ServerInfo},
};
use crate::{
    drops::DropReason,
    mutants::{Mutant, is_active},
    rtt::Rtt,
    time::Instant,
    wire::{
        Common, CookieReply, DATAGRAM_LEN_MAX, DATAGRAM_LEN_MIN, DATAGRAM_LENS, Flags, Hello, Kind,
        NoSession, OPERATIONS_MAX, Open, Opened, Reason, Refused, ReplyHeader, TRAILER_LEN, TRAILER_LEN_MAX,
        client_id, generation, nonce_of, result_len, seal_padded,
    },
};

/// HELLO with its trailer.
const HELLO_LEN: usize = size_of::<Hello>() + TRAILER_LEN;

/// First wait for an answer to HELLO or OPEN, doubled each time.
const HANDSHAKE_RTO: Duration = Duration::from_millis(20);

/// Longest wait for an answer to OPEN: the path may not carry its length, so that waiting longer does not help.
const PROBE_RTO_MAX: Duration = Duration::from_millis(160);

/// How often an OPEN of one length is sent before a shorter one is.
const PROBES_PER_LEN: u32 = 4;

/// Ranges that one request asks for; each is answered by a datagram of its own.
const RANGES_MAX: u8 = 32;

/// Bytes of the number that the result of an add carries.
const SUM_LEN: usize = size_of::<u64>();

impl Flow {
    /// Length of the next HELLO or OPEN. Opens become shorter until one comes through; when none does, the cookie may be of
    /// a server that has restarted since.
    pub(super) fn handshake_len(&mut self) -> usize {
        if matches!(self.state, State::Opening(_)) {
            if let Some(&len) = DATAGRAM_LENS.get((self.handshakes / PROBES_PER_LEN) as usize) {
                return len;
            }
            self.state = State::Greeting;
        }
        HELLO_LEN
    }

    pub(super) fn emit_handshake(&mut self, now: Instant, out: &mut [u8]) {
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

    pub(super) fn receive_cookie(&mut self, now: Instant, message: &[u8]) -> Result<(), DropReason> {
        let (reply, _) = CookieReply::ref_from_prefix(message).map_err(|_| DropReason::Truncated)?;
        if !matches!(self.state, State::Greeting) || reply.nonce != self.nonce {
            return Err(DropReason::Unexpected);
        }
        self.state = State::Opening(reply.cookie);
        self.handshakes = 0;
        self.handshake_at = now;
        Ok(())
    }

    pub(super) fn receive_opened(
        &mut self,
        now: Instant,
        message: &[u8],
        sink: &mut impl FnMut(Ended<'_>),
    ) -> Result<(), DropReason> {
        let (opened, _) = Opened::ref_from_prefix(message).map_err(|_| DropReason::Truncated)?;
        if !matches!(self.state, State::Opening(_)) || opened.nonce != self.nonce {
            return Err(DropReason::Unexpected);
        }
        if self.config.core.is_some_and(|core| core != opened.core) {
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
            epoch: opened.epoch.get(),
            map_digest: opened.map_digest.get(),
            node_id: opened.node_id.get(),
            window,
            checksum: opened.checksum != 0,
            datagram_len,
            lease,
        });
        self.credit = opened.credit.max(1);
        self.full_len = datagram_len - TRAILER_LEN_MAX;
        let body_len = self.full_len - size_of::<ReplyHeader>();
        let fitting = |result_len: usize| {
            self.config.operations_max.min((body_len / result_len).min(u8::MAX.into()) as u8)
        };
        // The results of a write's operations fit one datagram.
        let write_len = result_len(self.extras(WRITES));
        self.operations_max[WRITES] = fitting(write_len);
        self.operations_max_with_adds = fitting(write_len + SUM_LEN);
        // Those of a read's need not, but there is a word on each in the last that a reply may have.
        self.operations_max[READS] = fitting(result_len(self.extras(READS)));
        self.operations_max[RANGES] = RANGES_MAX;
        self.handshakes = 0;
        self.refusal = None;
        self.last_heard = now;
        self.last_sent = now;
        self.counters.sessions += 1;
        self.resize(window, sink);
        Ok(())
    }

    pub(super) fn receive_refused(&mut self, now: Instant, message: &[u8]) -> Result<(), DropReason> {
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

    pub(super) fn receive_no_session(
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

    /// Begins a new handshake; requests that wait go into the session that it opens.
    pub(super) fn restart(&mut self, now: Instant) {
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
    pub(super) fn resize(&mut self, window: u16, sink: &mut impl FnMut(Ended<'_>)) {
        self.window = window;
        let window = usize::from(window);
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            slot.limit = match slot.adds {
                true => self.operations_max_with_adds,
                false => self.operations_max[usize::from(slot.class)],
            };
            let fits = index < window && usize::from(slot.len) <= self.full_len && slot.count <= slot.limit;
            if slot.phase != Phase::Free && !fits {
                self.fail(index as u8, Reason::SessionLost, sink);
            }
        }
        for class in 0..CLASSES {
            let is_full = |index: u8| self.slots[index as usize].count >= self.slots[index as usize].limit;
            if self.filling[class].is_some_and(is_full) {
                self.close(class);
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
    pub(super) fn has_gone_stale(&self, now: Instant) -> bool {
        let lease = self.info.map_or(Duration::MAX, |info| info.lease);
        now.since(self.last_heard) > lease / 2 || self.session_requests >= SESSION_REQUESTS_MAX
    }

    pub(super) fn keep_alive(&mut self, now: Instant) {
        let lease = self.info.map_or(Duration::MAX, |info| info.lease);
        if self.is_open() && self.control.is_none() && now.since(self.last_sent) > lease / 3 {
            self.control = Some(Control::Ping);
        }
    }
}
