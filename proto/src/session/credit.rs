//! How many requests each session may have in flight, so that together they fit into the receive queue.
//!
//! Three quarters of the queue are given out; the rest is for handshakes, late duplicates and retransmissions. What was
//! given to a session counts until it is sure that the client does not use it any more:
//! - A reply may give more at once, if there is more.
//! - A reply may ask for less at once, but that frees room only when the client has heard it. A new request in the slot of
//!   that reply shows this: a slot has one request at a time. (A client that gives a request up without an answer has to
//!   take its credit for 1.)
//! - A client that has heard nothing for [`CREDIT_LIFETIME`] sends one request at a time, so a session that is silent
//!   for twice as long counts one; the second half is for what is on its way.

use std::time::Duration;

use crate::{time::Instant, wire::RefusalReason};

/// A client lets its credit fall to 1 when it has heard nothing from the core for so long.
pub const CREDIT_LIFETIME: Duration = Duration::from_millis(100);

/// The credit of a session whose requests do not meet a receive queue of datagrams; the client need not let it fall.
pub const CREDIT_UNLIMITED: u8 = u8::MAX;

/// From this long a silence on a session counts one.
const SILENCE_MAX: Duration = CREDIT_LIFETIME.saturating_mul(2);

/// What a new session may use before its first reply, if there is plenty: enough to keep a request on the way while
/// another is answered.
const CREDIT_INITIAL: usize = 2;

/// A part of what can be given out, one in so many, is kept for sessions that are opened while others use all the rest.
const RESERVE: usize = 8;

/// What all sessions of a core have been given together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credits {
    /// Datagrams that can be given out, at least 1; `None`: no queue limits them.
    budget: Option<usize>,
    granted: usize,
    sessions: usize,
    /// Sessions heard from of late.
    active: usize,
}

/// What one session has been given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    /// Whether the session takes part at all.
    limited: bool,
    active: bool,
    /// Most that the session can use.
    useful: u8,
    /// What counts of it.
    granted: u8,
    /// Most that it was told since it was last asked for less, while that has not been confirmed.
    asked: Option<u8>,
    /// How often it was asked for less.
    round: u32,
}

impl Credits {
    pub(super) const fn new(queue_datagrams: usize) -> Self {
        let budget = match queue_datagrams {
            usize::MAX => None,
            0..=2 => Some(1),
            // In wide numbers, so that nothing is rounded away and nothing overflows.
            datagrams => Some((datagrams as u128 * 3 / 4) as usize),
        };
        Self { budget, granted: 0, sessions: 0, active: 0 }
    }

    /// Whether any session could fall silent.
    pub(super) const fn has_active(&self) -> bool {
        self.active > 0
    }

    /// Datagrams given out now.
    pub(super) const fn granted(&self) -> usize {
        self.granted
    }

    /// Sessions that can have one datagram each in flight.
    pub(super) const fn sessions_max(&self) -> usize {
        match self.budget {
            Some(budget) => budget,
            None => usize::MAX,
        }
    }

    /// What a new session of a window of `slots` begins with.
    ///
    /// # Errors
    /// `QUEUE_FULL` and when to try again.
    pub(super) fn begin(&mut self, stream: bool, slots: usize) -> Result<Grant, (RefusalReason, Duration)> {
        let useful = slots.min(usize::from(CREDIT_UNLIMITED - 1)) as u8;
        let grant = Grant { limited: false, active: true, useful, granted: 1, asked: None, round: 0 };
        let Some(budget) = self.budget.filter(|_| !stream) else { return Ok(grant) };
        if self.sessions >= budget {
            return Err((RefusalReason::QUEUE_FULL, super::RETRY_AFTER));
        }
        if self.granted >= budget {
            // Others were given what this one needs; they have all used or lost it by then.
            return Err((RefusalReason::QUEUE_FULL, SILENCE_MAX));
        }
        let plenty = self.granted + CREDIT_INITIAL <= budget - reserve(budget);
        let granted = if plenty { CREDIT_INITIAL.min(slots) as u8 } else { 1 };
        self.granted += usize::from(granted);
        self.sessions += 1;
        self.active += 1;
        Ok(Grant { limited: true, granted, ..grant })
    }

    pub(super) fn end(&mut self, grant: &Grant) {
        if grant.limited {
            self.granted -= usize::from(grant.granted);
            self.sessions -= 1;
            self.active -= usize::from(grant.active);
        }
    }

    /// An even share for each active session, in which the others count one each.
    #[inline]
    pub(super) fn share(&self) -> u8 {
        let Some(budget) = self.budget else { return CREDIT_UNLIMITED - 1 };
        let idle = self.sessions - self.active;
        let share = (budget - reserve(budget)).saturating_sub(idle) / self.active.max(1);
        share.clamp(1, usize::from(CREDIT_UNLIMITED - 1)) as u8
    }

    /// The session was heard from.
    #[inline]
    pub(super) const fn hear(&mut self, grant: &mut Grant) {
        if !grant.active {
            grant.active = true;
            if grant.limited {
                self.active += 1;
            }
        }
    }

    /// Time has passed since the session was last heard from.
    pub(super) fn lapse(&mut self, now: Instant, last_heard: Instant, grant: &mut Grant) {
        if !grant.active || now.since(last_heard) <= SILENCE_MAX {
            return;
        }
        grant.active = false;
        if grant.limited {
            self.active -= 1;
            self.granted -= usize::from(grant.granted) - 1;
            grant.granted = 1;
            grant.asked = None;
        }
    }

    /// What to tell the session in a reply, when `share` is what it should have.
    #[inline]
    pub(super) fn tell(&mut self, grant: &mut Grant, share: u8) -> u8 {
        if !grant.limited {
            return CREDIT_UNLIMITED;
        }
        let wanted = share.min(grant.useful);
        if wanted > grant.granted
            && let Some(budget) = self.budget
        {
            let room = (budget - reserve(budget)).saturating_sub(self.granted);
            let more = usize::from(wanted - grant.granted).min(room);
            grant.granted += more as u8;
            self.granted += more;
        }
        let told = wanted.min(grant.granted);
        if told == grant.granted {
            grant.asked = None;
        } else if let Some(asked) = &mut grant.asked {
            *asked = told.max(*asked);
        } else {
            grant.round = grant.round.wrapping_add(1);
            grant.asked = Some(told);
        }
        told
    }

    /// The client has heard a reply that was written in this round.
    #[inline]
    pub(super) fn confirm(&mut self, grant: &mut Grant, round: u32) {
        if round == grant.round
            && let Some(asked) = grant.asked.take()
        {
            self.granted -= usize::from(grant.granted - asked);
            grant.granted = asked;
        }
    }
}

impl Grant {
    /// What the session may use at the least, for OPENED.
    pub(super) const fn opening(&self) -> u8 {
        if self.limited { self.granted } else { CREDIT_UNLIMITED }
    }

    /// The number that replies of now carry in mind: how often the session was asked for less.
    #[inline]
    pub(super) const fn round(&self) -> u32 {
        self.round
    }
}

const fn reserve(budget: usize) -> usize {
    budget / RESERVE
}
