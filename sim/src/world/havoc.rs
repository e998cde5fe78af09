//! What goes wrong with nodes and links in the first half of a run: one fault at a time, chosen by the seed's weights.

use std::time::Duration;

use linerate_dataplane::Port;
use rand::RngExt;

use super::World;
use crate::{
    forge::{farewell, garbage},
    swarm::{NodeFault, magnitude, pick},
};

/// Clocks are set back by this much in all, so that the wait for it is bounded.
const BACK_MAX: Duration = Duration::from_secs(3);

impl World {
    pub(super) fn schedule_fault(&mut self) {
        let interval = self.params.node_fault_interval;
        let ops = self.pushed + self.random.random_range(1..=2 * interval);
        let after = magnitude(&mut self.random, Duration::from_millis(1), Duration::from_secs(2));
        self.next_fault_at = (ops, self.now + after);
    }

    /// One node fault, chosen by the seed's weights.
    pub(super) fn break_something(&mut self) {
        let total: u32 = self.params.node_fault_weights.iter().sum();
        if total == 0 {
            return;
        }
        let mut at = self.random.random_range(0..total);
        let chosen = self.params.node_fault_weights.iter().position(|&weight| {
            let found = at < weight;
            at = at.saturating_sub(weight);
            found
        });
        let index = chosen.expect("below the total");
        if self.commit(NodeFault::ALL[index]) {
            self.node_faults[index] += 1;
        }
    }

    /// Commits a fault; returns whether it could be.
    fn commit(&mut self, fault: NodeFault) -> bool {
        let core = self.random.random_range(0..self.params.cores);
        let number = self.random.random_range(0..self.clients.len());
        let on_core = self.random.random_bool(0.5);
        let micros = Duration::from_micros;
        let draw = |random: &mut _, longest: Duration| magnitude(random, micros(50), longest);
        let short = draw(&mut self.random, Duration::from_millis(300));
        // Now and then for longer than anybody's patience.
        let beyond_lease = self.params.lease.mul_f64(self.random.random_range(1.0..1.5));
        let pause = if self.random.random_bool(0.15) { beyond_lease } else { short };
        self.say(format_args!("{fault:?}: core {core}, client {number}, {on_core}, {short:?}, {pause:?}"));
        let (now, until) = (self.now, self.now + pause);
        match fault {
            NodeFault::PauseCore | NodeFault::PauseServer => {
                let Some(server) = &mut self.server else { return false };
                let all = fault == NodeFault::PauseServer;
                let paused = server.cores.iter_mut().zip(0..).filter(|&(_, other)| all || other == core);
                paused.for_each(|(core, _)| core.pace.pause(until));
            }
            NodeFault::PauseClient => {
                let Some(life) = &mut self.clients[number].life else { return false };
                life.pace.pause(until);
            }
            NodeFault::KillServer => {
                if self.server.is_none() {
                    return false;
                }
                self.stop_server();
                self.server_starts_at = now + if on_core { short } else { Duration::ZERO };
            }
            NodeFault::KillClient | NodeFault::LeaveClient => {
                if self.clients[number].life.is_none() {
                    return false;
                }
                let down = if on_core { short } else { Duration::ZERO };
                self.stop_client(number, fault == NodeFault::LeaveClient, now + down);
            }
            NodeFault::ClockForward | NodeFault::ClockBack => {
                let back = fault == NodeFault::ClockBack;
                let by = match back {
                    true => draw(&mut self.random, Duration::from_millis(500)),
                    // All of a core's leases run out at once.
                    false if self.random.random_bool(0.5) => beyond_lease + Duration::from_secs(1),
                    false => draw(&mut self.random, self.params.lease),
                };
                if back && self.set_back + by > BACK_MAX {
                    return false;
                }
                let clock = if on_core {
                    self.server.as_mut().map(|server| &mut server.cores[usize::from(core)].clock)
                } else {
                    self.clients[number].life.as_mut().map(|life| &mut life.clock)
                };
                let Some(clock) = clock else { return false };
                if back {
                    self.set_back += by;
                    clock.jump_back(by);
                } else {
                    clock.jump_forward(by);
                }
            }
            NodeFault::EvictSession => {
                let client = &self.clients[number];
                let Some(life) = &client.life else { return false };
                let to = self.params.core_addr(core);
                let Some(bytes) = self.network.last_sent(life.port, to).and_then(|sent| farewell(&sent))
                else {
                    return false;
                };
                self.network.inject(client.addr, to, &bytes);
            }
            NodeFault::SlowDown => {
                let interval = draw(&mut self.random, Duration::from_millis(5));
                let pace = if on_core {
                    self.server.as_mut().map(|server| &mut server.cores[usize::from(core)].pace)
                } else {
                    self.clients[number].life.as_mut().map(|life| &mut life.pace)
                };
                let Some(pace) = pace else { return false };
                pace.slow_down(interval, now + short);
            }
            NodeFault::Clog | NodeFault::Part => {
                let (client, core) = (self.clients[number].addr, self.params.core_addr(core));
                let (from, to) = if on_core { (core, client) } else { (client, core) };
                let (from, to) = match self.random.random_range(0..3) {
                    0 => (Some(from), Some(to)),
                    1 => (Some(from), None),
                    _ => (None, Some(to)),
                };
                if fault == NodeFault::Clog {
                    self.network.clog(from, to, short);
                } else {
                    self.network.part(from, to, short);
                }
            }
            NodeFault::Garbage => {
                for _ in 0..self.random.random_range(1..=8) {
                    let bytes = garbage(&mut self.random);
                    let (client, core) = (self.clients[number].addr, self.params.core_addr(core));
                    let stranger = self.stranger.local_addr();
                    let from = pick(&mut self.random, &[stranger, stranger, client, core]);
                    let to = pick(&mut self.random, &[core, core, client]);
                    self.network.inject(from, to, &bytes);
                }
            }
        }
        true
    }
}
