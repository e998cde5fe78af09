//! Which requests may go now, and their bytes.

use std::collections::VecDeque;

use zerocopy::IntoBytes;

use super::{
    Control, ESTIMATE_ONE, Flow, Run,
    bits::Bits,
    slot::{CLASS_FLAGS, CLASSES, RANGES, READS},
    types::ServerInfo,
};
use crate::{
    mutants::{Mutant, is_active},
    session::{CREDIT_LIFETIME, CREDIT_UNLIMITED},
    time::Instant,
    wire::{
        Common, Flags, Kind, Operation, Ping, REPLY_DATAGRAMS_MAX, REQUEST_LEN_MIN, Range, RequestHeader,
        TRAILER_LEN, write_trailer,
    },
};

/// Requests whose lengths are evened out together: the segments of one train.
const RUN_MAX: usize = 64;

impl Flow {
    pub(super) const fn trailer_len(&self) -> usize {
        match self.info {
            Some(ServerInfo { checksum: false, .. }) => 0,
            _ => TRAILER_LEN,
        }
    }

    pub(super) fn datagram_len(&self, index: u8) -> usize {
        (usize::from(self.slots[index as usize].len) + self.trailer_len()).max(REQUEST_LEN_MIN)
    }

    /// Requests that may join those in flight: as many as the server has credited, the delays allow and the answers find
    /// room for.
    #[inline]
    pub(super) fn room(&self, now: Instant) -> usize {
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
    pub(super) fn expected_of(&self, index: u8) -> u16 {
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
    pub(super) fn next_run(&self, room: usize) -> Run {
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

    pub(super) fn emit_request(&mut self, now: Instant, index: u8, out: &mut [u8]) {
        let expected = self.expected_of(index);
        let extras = self.extras(self.slots[index as usize].class.into());
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
                flags: CLASS_FLAGS[usize::from(slot.class)].with(Flags::CHECKSUM.when(checksum)).with(extras),
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
    pub(super) fn emit_again(&mut self, now: Instant, index: u8, out: &mut [u8]) {
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
    pub(super) fn keep_missing(&mut self, index: u8) {
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

    pub(super) fn emit_control(&mut self, now: Instant, control: Control, out: &mut [u8]) {
        self.control = None;
        let kind = match control {
            Control::Ping => Kind::PING,
            Control::Stats => Kind::STATS,
            Control::Map => Kind::MAP,
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
        let echo = match control {
            Control::Map => self.paged_map.as_ref().map_or(0, |map| map.len() as u64),
            Control::Ping | Control::Stats | Control::Close => now.as_nanos(),
        };
        let message = Ping { common, echo: echo.into() };
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
}
