//! The second half of a run: nothing goes wrong any more, and every client must come to an end within bounded time.
//!
//! For a moment a little is still lost, so that it shows when losses are not noticed; then nothing is. A client first gets
//! rid of what the first half has left behind; then it pushes whole rounds of operations until one succeeds, and
//! at last one round of which every operation must.

use std::time::Duration;

use linerate_client::{Outcome, Reason};
use linerate_dataplane::sim::Faults;
use linerate_proto::{session::TRANSFER_IDLE_MAX, wire::Statistic};

use super::{Client, World};
use crate::check::Rule;

/// Once all is well, leases that have run out meanwhile are noticed within this: they are looked for once a second.
const SETTLE: Duration = Duration::from_millis(2_500);

/// Share of the datagrams that is still lost when all else is well, at first.
const MILD_LOSS: f64 = 0.05;

/// How far a client is in the second half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// What is open ends, and sessions are found again. So many operations are still to be pushed, into a network that
    /// only loses a little.
    Settling(u32),
    /// A round that may still meet what the first half has left behind, and is repeated until it does not.
    Recovering(u32),
    /// A round of which each must end in a result.
    Proving(u32),
    /// Nothing is left to do.
    Done,
}

impl Stage {
    /// Whether there are operations to push.
    pub(super) const fn has_more(self) -> bool {
        matches!(self, Self::Settling(1..) | Self::Recovering(1..) | Self::Proving(1..))
    }
}

/// Whether an operation may end so when all is well: in a result, or refused because there is no memory left for it or
/// others keep replacing a value of many pieces.
pub(super) const fn is_proof(outcome: Outcome<'_>) -> bool {
    match outcome {
        Outcome::NotExecuted(reason) => {
            matches!(reason, Reason::NoSpace | Reason::StagingFull | Reason::Changed | Reason::Exists)
        }
        outcome => !matches!(outcome, Outcome::OutcomeUnknown),
    }
}

impl World {
    /// Ends all faults.
    pub(super) fn heal(&mut self) {
        self.say(format_args!("all is well"));
        // What is lost now must be sent again: without a loss nobody would notice that it is not.
        self.network.set_faults(Faults { loss: MILD_LOSS, ..self.faultless() });
        self.network.clear_obstacles();
        self.healed_at = Some(self.now);
        self.first_healed = self.checker.next_tag().into();
        self.server_starts_at = self.server_starts_at.min(self.now);
        for core in self.server.iter_mut().flat_map(|server| &mut server.cores) {
            core.pace.heal(self.now, self.params.core_interval);
        }
        for client in &mut self.clients {
            client.starts_at = client.starts_at.min(self.now);
            if let Some(life) = &mut client.life {
                life.pace.heal(self.now, Duration::ZERO);
            }
        }
    }

    /// The network with nothing wrong: its paths and queues are as they are.
    fn faultless(&self) -> Faults {
        let Faults { queue_len, datagram_len_max, .. } = self.params.faults;
        Faults { queue_len, datagram_len_max, ..Faults::NONE }
    }

    /// Ends the last losses, once everybody has had time to find a session.
    fn settle(&mut self) {
        self.say(format_args!("nothing is lost any more"));
        self.network.set_faults(self.faultless());
        let overflowed = self.server_sum(Statistic::RxOverflowDrops);
        if let Some(server) = &mut self.server {
            server.overflowed_before = Some(overflowed);
        }
    }

    /// Moves a client on to its next stage when it is done with its present one.
    pub(super) fn advance_stage(&mut self, number: usize) {
        let round = 2 * self.params.keys.len() as u32;
        let missing = self.plan.ops.saturating_sub(self.pushed);
        let client = &mut self.clients[number];
        let is_open = client.life.as_ref().is_some_and(|life| life.session.is_open());
        let settled = self.healed_at.is_some_and(|healed_at| self.now >= healed_at + SETTLE);
        if client.open > 0 {
            return;
        }
        let next = match client.stage {
            // Whoever found no session in time goes on without this round.
            Stage::Settling(_) if settled && is_open => Stage::Recovering(round + missing),
            Stage::Recovering(0) if client.failed => Stage::Recovering(round),
            Stage::Recovering(0) if is_open => Stage::Proving(round),
            Stage::Proving(0) => Stage::Done,
            _ => return,
        };
        client.stage = next;
        client.failed = false;
    }

    /// Waits until every client is done. Where the server has no memory for all of them, those that are done make room.
    pub(super) fn finish(&mut self) {
        let longest_timeout = Duration::from_secs(5);
        let patience = self.params.lease * 2 + longest_timeout + self.set_back * 2 + Duration::from_secs(20);
        let refused_at_first = self.server_sum(Statistic::SessionsRefused);
        let settled_at = self.now + SETTLE;
        while self.now < settled_at {
            self.step();
        }
        self.settle();
        let mut deadline = self.now + patience;
        let mut done_before = 0;
        let mut refused_before = refused_at_first;
        loop {
            self.step();
            let done = self.clients.iter().filter(|client| client.stage == Stage::Done).count();
            if done == self.clients.len() {
                break;
            }
            let progress = done > done_before;
            if !progress && self.now < deadline {
                continue;
            }
            done_before = done;
            deadline = self.now + patience;
            let refused = self.server_sum(Statistic::SessionsRefused);
            let starves = refused > refused_before;
            refused_before = refused;
            if starves {
                self.make_room();
            } else if !progress {
                let unfinished = self.clients.iter().filter(|client| client.stage != Stage::Done);
                let states: Vec<_> =
                    unfinished.map(|client| (client.number, client.stage, client.open)).collect();
                self.stuck = Some(format!("client, stage, open operations: {states:?}"));
                return;
            }
        }
        let open = self.checker.open_count();
        if open > 0 {
            self.checker.violate(Rule::Ends, format!("{open} operations have never ended"));
        }
        // Where there was no room for all sessions, an operation may have waited for one in vain.
        if self.server_sum(Statistic::SessionsRefused) == refused_at_first {
            for what in std::mem::take(&mut self.given_up) {
                self.checker.violate(Rule::Healed, what);
            }
        }
        self.check_queues();
        self.check_staging();
    }

    /// What was credited fits the receive queues.
    fn check_queues(&mut self) {
        let overflowed = self.server_sum(Statistic::RxOverflowDrops);
        let before = self.server.as_ref().and_then(|server| server.overflowed_before);
        if self.params.watches_queues() && before.is_some_and(|before| overflowed > before) {
            self.checker
                .violate(Rule::Credit, format!("{overflowed} datagrams overflowed, {before:?} before"));
        }
    }

    /// Waits until pieces of long values that nobody will complete must be forgotten, and looks whether they are.
    fn check_staging(&mut self) {
        if self.server_sum(Statistic::StagedBytes) == 0 {
            return;
        }
        let until = self.now + TRANSFER_IDLE_MAX + SETTLE;
        while self.now < until {
            self.step();
        }
        let staged = self.server_sum(Statistic::StagedBytes);
        if staged > 0 {
            self.checker
                .violate(Rule::Healed, format!("{staged} bytes of values that nobody sends any more"));
        }
    }

    /// Lets those clients leave for good that are done, or if none is, one that is not.
    fn make_room(&mut self) {
        let holds =
            |client: &Client, done: bool| client.life.is_some() && (client.stage == Stage::Done) == done;
        let mut leaving: Vec<_> =
            (0..self.clients.len()).filter(|&number| holds(&self.clients[number], true)).collect();
        if leaving.is_empty() {
            leaving.extend((0..self.clients.len()).find(|&number| holds(&self.clients[number], false)));
        }
        for number in leaving {
            self.stop_client(number, true, Duration::MAX);
            self.clients[number].stage = Stage::Done;
        }
    }
}
