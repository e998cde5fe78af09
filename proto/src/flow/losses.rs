//! What is lost or late: when to send again, when to send less, and when to give up.

use std::time::Duration;

use super::{
    Flow, Run, SCALE_ONE,
    slot::{PARTS, Phase, RANGES},
    types::{Ended, Outcome},
};
use crate::{
    mutants::{Mutant, is_active},
    session::CREDIT_UNLIMITED,
    time::Instant,
    wire::Reason,
};

impl Flow {
    /// Halves the congestion window, at most once per round trip, when answers wait long at the server, and lets it grow
    /// by one with each window of answers that do not: many clients of one server must not fill its queue together.
    #[inline]
    pub(super) fn watch_delay(&mut self, now: Instant, queue_delay: u8) {
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
    pub(super) fn halve_window(&mut self, now: Instant) {
        if now.since(self.halved_at) > self.rtt.smoothed() {
            self.congestion_window = (self.congestion_window / 2).max(1);
            self.undelayed = 0;
            self.halved_at = now;
        }
    }

    /// Whether this transmission is the latest of a request that is not answered yet.
    #[inline]
    pub(super) fn is_current(&self, index: u8, number: u64) -> bool {
        let slot = &self.slots[index as usize];
        slot.phase == Phase::InFlight && slot.number == number
    }

    pub(super) fn mark_lost(&mut self, index: u8) {
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
    pub(super) fn loss_at(&self, index: u8) -> Instant {
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
    pub(super) fn detect_losses(&mut self, now: Instant) {
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

    pub(super) fn give_up(&mut self, now: Instant, sink: &mut impl FnMut(Ended<'_>)) {
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
    pub(super) fn fail(&mut self, index: u8, reason: Reason, sink: &mut impl FnMut(Ended<'_>)) {
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
                sink(Ended { tag, outcome, version: 0, ttl_ms: None, data_epoch: self.data_epoch });
            }
        }
        self.release(index);
    }

    /// Makes a slot free, whatever becomes of its request.
    pub(super) fn release(&mut self, index: u8) {
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
    pub(super) fn jittered(&mut self, duration: Duration) -> Duration {
        duration * self.draw_scale() / SCALE_ONE
    }

    /// 0.75 to 1.25, in [`SCALE_ONE`]ths.
    pub(super) fn draw_scale(&mut self) -> u32 {
        // xorshift64, Marsaglia 2003.
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        SCALE_ONE * 3 / 4 + (self.jitter >> 48) as u32 % (SCALE_ONE / 2)
    }
}
