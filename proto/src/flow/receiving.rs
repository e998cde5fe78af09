//! What the server says in a session.

use zerocopy::FromBytes;

use super::{
    ESTIMATE_ONE, Flow,
    slot::{PARTS, Phase, RANGES, READS},
    transfer::is_possible,
    types::{Ended, Outcome},
};
use crate::{
    drops::DropReason,
    mutants::{Mutant, is_active},
    time::Instant,
    wire::{
        Common, Flags, Meta, OpResult, Operations, Ping, Reason, ReplyHeader, RequestHeader, Results,
        STAT_COUNT,
    },
};

/// A request is taken for lost when one sent this many requests later was answered (RFC 9002 §6.1.1).
const REORDERING_MAX: u64 = 3;

impl Flow {
    #[inline]
    pub(super) fn receive_reply(
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
        if slot.received.has_none_of(header.first, header.count) && !common.flags.contains(Flags::LIFETIMES) {
            // Nearly always: every result is new, and what each means is plain.
            let first = usize::from(header.first);
            for &tag in &tags[first..first + usize::from(header.count)] {
                let (outcome, version, rest) = match OpResult::parse(results, versions) {
                    Ok((OpResult::Value(value), version, rest)) => (Outcome::Value(value), version, rest),
                    Ok((OpResult::NotFound, version, rest)) => (Outcome::NotFound, version, rest),
                    Ok((OpResult::Done, version, rest)) => (Outcome::Done, version, rest),
                    _ => break,
                };
                sink(Ended { tag, outcome, version, ttl_ms: None, data_epoch });
                results = rest;
                done += 1;
            }
            slot.received.set_all(header.first, done);
            slot.missing -= done;
        }
        let mut verdict = Ok(());
        let left = Results::new(results, header.count - done, common.flags);
        for (result, position) in left.zip(header.first + done..) {
            let (result, Meta { version, ttl_ms }) = match result {
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
                OpResult::NotExecuted(reason) => {
                    self.counters.moved += u64::from(matches!(reason, Reason::Moved { .. }));
                    Outcome::NotExecuted(reason)
                }
                OpResult::Long(long) if !writes && is_possible(long) => {
                    slot.received.set(position);
                    slot.missing -= 1;
                    let body = &self.bytes[index as usize][size_of::<RequestHeader>()..];
                    let get = Operations::new(body, slot.count, true).nth(position.into());
                    let key = get.and_then(Result::ok).expect("written by push").key.bytes();
                    let tag = tags[position as usize];
                    self.transfers.begin_get(slot.pushed_at, tag, key, (long, ttl_ms), lens);
                    continue;
                }
                OpResult::Long(_) => {
                    verdict = Err(DropReason::Malformed);
                    break;
                }
            };
            slot.received.set(position);
            slot.missing -= 1;
            sink(Ended { tag: tags[position as usize], outcome, version, ttl_ms, data_epoch });
        }
        if is_active(Mutant::PartialReplyWhole) && !writes {
            for position in (0..slot.count).filter(|&position| !slot.received.has(position)) {
                let tag = tags[usize::from(position)];
                sink(Ended { tag, outcome: Outcome::NotFound, version: 0, ttl_ms: None, data_epoch });
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
    pub(super) fn receive_steps(
        &mut self,
        now: Instant,
        header: &ReplyHeader,
        results: &[u8],
        sink: &mut impl FnMut(Ended<'_>),
    ) -> Result<(), DropReason> {
        let lens = self.piece_lens();
        let slot = &mut self.slots[header.common.slot as usize];
        let tags = &self.tags[header.common.slot as usize];
        let is_put = usize::from(slot.class) == PARTS;
        let results = Results::new(results, header.count, header.common.flags);
        for (result, position) in results.zip(header.first..) {
            let (result, meta) = result?;
            if slot.received.has(position) {
                continue;
            }
            slot.received.set(position);
            slot.missing -= 1;
            self.counters.moved += u64::from(matches!(result, OpResult::NotExecuted(Reason::Moved { .. })));
            let answer = (tags[position as usize], result, meta);
            self.transfers.take(now, is_put, answer, lens, self.data_epoch, sink);
        }
        Ok(())
    }

    /// All results of a request are here: its slot is free again, and requests sent long before it are lost.
    #[inline]
    pub(super) fn complete(&mut self, now: Instant, index: u8, attempt: u8) {
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

    pub(super) fn check_session(&self, common: &Common) -> Result<(), DropReason> {
        let known =
            self.is_open() && common.session.get() == self.session && common.token.get() == self.token;
        if known { Ok(()) } else { Err(DropReason::UnknownSession) }
    }

    pub(super) fn receive_pong(&mut self, now: Instant, message: &[u8]) -> Result<(), DropReason> {
        let (pong, _) = Ping::ref_from_prefix(message).map_err(|_| DropReason::Truncated)?;
        self.check_session(&pong.common)?;
        self.last_heard = now;
        self.pong = Some(now.since(Instant::from_nanos(pong.echo.get())));
        Ok(())
    }

    pub(super) fn receive_map_page(&mut self, now: Instant, message: &[u8]) -> Result<(), DropReason> {
        let (head, _) = Ping::ref_from_prefix(message).map_err(|_| DropReason::Truncated)?;
        self.check_session(&head.common)?;
        self.last_heard = now;
        // Making a map of pages takes time: nobody but who asked for it spends that.
        let paged_map = self.paged_map.as_mut().ok_or(DropReason::Unexpected)?;
        match paged_map.take(message)? {
            Some(cluster) => (self.cluster, self.paged_map) = (Some(cluster), None),
            None => self.control = self.control.or(Some(super::Control::Map)),
        }
        Ok(())
    }

    pub(super) fn receive_statistics(&mut self, now: Instant, message: &[u8]) -> Result<(), DropReason> {
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
}
