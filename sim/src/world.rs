//! One seed's system: a server and clients of the production code on a simulated network, on virtual time.
//!
//! A run has two halves. In the first the clients push operations while everything goes wrong that the seed has in
//! store. In the second all is well, and every client must come to an end: what it has open ends, it finds a session
//! with every core again, and a full round of fresh operations ends in results.

use std::{fmt, net::SocketAddr, time::Duration};

use linerate_client::{Ended, Operation, Outcome, PushError, Reason, Session};
use linerate_dataplane::{
    Port,
    sim::{Faults, PortId, SimNetwork, SimPort, Tapped, mix},
};
use linerate_proto::{
    session::{SessionConfig, TRANSFER_IDLE_MAX},
    wire::Statistic,
};
use linerate_server::{stats::Published, store::Store, worker::Worker};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use crate::{
    check::{Ask, Call, Checker, Rule, name},
    forge::{farewell, garbage},
    monitor::{CreditMonitor, ProofMonitor},
    node::{Clock, Pace},
    run::Plan,
    swarm::{ClientParams, NodeFault, Params, magnitude, pick},
    trace::describe,
    value::{Origin, write_value},
};

/// The first half ends after this much time, however few operations there were: what is left is pushed in the second.
const LOAD_TIME_MAX: Duration = Duration::from_secs(60);

/// A turn that had more than one datagram is followed by another after this, for what was held back for company.
const BUSY_REST: Duration = Duration::from_micros(1);

/// A core without work looks after its leases this often.
const IDLE_REST: Duration = Duration::from_millis(100);

/// A client that waits for nothing takes a turn this often, for keep-alives.
const CLIENT_IDLE_REST: Duration = Duration::from_millis(20);

/// A client that has not heard anything for so long looks less and less often, but at least so often.
const SILENCES: [(Duration, Duration); 2] = [
    (Duration::from_millis(300), Duration::from_millis(10)),
    (Duration::from_millis(2), Duration::from_millis(2)),
];

/// Share of the datagrams that is still lost when all else is well, at first.
const MILD_LOSS: f64 = 0.05;

/// A client that waits so long for an answer gets it in spite of that, and of clocks that were set back.
const PATIENT: Duration = Duration::from_secs(5);

/// Clocks are set back by this much in all, so that the wait for it is bounded.
const BACK_MAX: Duration = Duration::from_secs(3);

/// Once all is well, leases that have run out meanwhile are noticed within this: they are looked for once a second.
const SETTLE: Duration = Duration::from_millis(2_500);

pub(crate) struct World {
    plan: Plan,
    params: Params,
    network: SimNetwork,
    random: Xoshiro256PlusPlus,
    pub(crate) checker: Checker,
    now: Duration,
    server: Option<Server>,
    /// When a server that is down starts again.
    server_starts_at: Duration,
    clients: Vec<Client>,
    /// Somebody on the network who never speaks by itself.
    stranger: SimPort,
    /// Room for what passed a port.
    tapped: Vec<Tapped>,
    /// Outcomes so far; deliveries are hashed by the network.
    hash: u64,
    pushed: u32,
    next_fault_at: (u32, Duration),
    node_faults: [u64; NodeFault::ALL.len()],
    set_back: Duration,
    /// Operations of patient clients, pushed when all was well, that were given up.
    given_up: Vec<String>,
    /// Tag of the first operation pushed when all was well.
    first_healed: u64,
    /// Since when all is well.
    healed_at: Option<Duration>,
    pub(crate) stuck: Option<String>,
}

struct Server {
    data_epoch: u64,
    cores: Vec<Core>,
    /// Addresses that have shaken hands, with the core.
    proven: Vec<(SocketAddr, u8)>,
    proof: ProofMonitor,
    /// Datagrams dropped at full receive queues until all was well.
    overflowed_before: Option<u64>,
}

struct Core {
    worker: Worker,
    port: SimPort,
    published: Published,
    clock: Clock,
    pace: Pace,
}

struct Client {
    number: u16,
    lives: u16,
    addr: SocketAddr,
    params: ClientParams,
    life: Option<Life>,
    /// When one that is down starts again.
    starts_at: Duration,
    /// Operations open.
    open: usize,
    stage: Stage,
    /// Whether an operation of the round has ended otherwise than it does when all is well.
    failed: bool,
}

struct Life {
    session: Session<SimPort>,
    port: PortId,
    clock: Clock,
    pace: Pace,
    stride: Duration,
    heard_at: Duration,
    credit: CreditMonitor,
}

/// How far a client is in the second half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
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
    const fn has_more(self) -> bool {
        matches!(self, Self::Settling(1..) | Self::Recovering(1..) | Self::Proving(1..))
    }
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(mix(seed, 0x5eed));
        let params = Params::draw(&mut random);
        let network = SimNetwork::new(random.random(), params.faults);
        if plan.events.is_some() {
            network.keep_events();
        }
        let stranger = network.port(([10, 0, 0, 3], 6_666).into()).expect("an empty network");
        let clients = (0..params.clients).map(|number| Client {
            number,
            lives: 0,
            addr: params.client_addr(number),
            params: params.draw_client(&mut random),
            life: None,
            starts_at: magnitude(&mut random, Duration::from_nanos(100), Duration::from_millis(5)),
            open: 0,
            stage: Stage::Settling(2 * params.keys.len() as u32),
            failed: false,
        });
        Self {
            clients: clients.collect(),
            plan,
            params,
            network,
            random,
            checker: Checker::new(),
            now: Duration::ZERO,
            server: None,
            server_starts_at: Duration::ZERO,
            stranger,
            tapped: Vec::new(),
            hash: 0,
            pushed: 0,
            next_fault_at: (0, Duration::ZERO),
            node_faults: [0; NodeFault::ALL.len()],
            set_back: Duration::ZERO,
            given_up: Vec::new(),
            first_healed: 0,
            healed_at: None,
            stuck: None,
        }
    }

    /// The whole run.
    pub(crate) fn run(&mut self) {
        if self.plan.events.is_some() {
            let params = format!("{:?}", self.params);
            self.say(format_args!("{params}"));
        }
        self.schedule_fault();
        while self.pushed < self.plan.ops && self.now < LOAD_TIME_MAX {
            self.step();
        }
        self.heal();
        self.finish();
        self.stop_server();
        self.checker.finish();
    }

    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    pub(crate) fn network(&self) -> &SimNetwork {
        &self.network
    }

    pub(crate) fn node_faults(&self) -> impl Iterator<Item = (NodeFault, u64)> {
        NodeFault::ALL.into_iter().zip(self.node_faults)
    }

    pub(crate) fn trace_hash(&self) -> u64 {
        mix(self.hash, self.network.trace_hash())
    }

    /// Cuts everybody off, so that what is dropped afterwards neither speaks nor hears.
    pub(crate) fn cut_off(&mut self) {
        let lives = self.clients.iter().filter_map(|client| client.life.as_ref());
        lives.for_each(|life| self.network.unplug(life.port));
    }

    fn say(&self, what: fmt::Arguments<'_>) {
        if let Some(events) = self.plan.events {
            events(self.now, what);
        }
    }

    /// Lets time pass until somebody has something to do, and lets them do it.
    fn step(&mut self) {
        let mut next = self.network.next_arrival().unwrap_or(Duration::MAX);
        match &self.server {
            Some(server) => {
                for core in &server.cores {
                    next = next.min(core.pace.next(self.network.waiting(core.port.id()) > 0));
                }
            }
            None => next = next.min(self.server_starts_at),
        }
        for client in &self.clients {
            next = next.min(client.next(&self.network));
        }
        if self.healed_at.is_none() {
            next = next.min(self.next_fault_at.1);
        }
        if next > self.now {
            self.network.advance(next - self.now);
            self.now = next;
        }
        self.tell_of_network();
        if self.healed_at.is_none()
            && (self.pushed >= self.next_fault_at.0 || self.now >= self.next_fault_at.1)
        {
            self.break_something();
            self.schedule_fault();
        }
        if self.server.is_none() && self.now >= self.server_starts_at {
            self.start_server();
        }
        self.turn_cores();
        for number in 0..self.clients.len() {
            if self.clients[number].next(&self.network) <= self.now {
                self.turn_client(number);
            }
        }
    }

    fn tell_of_network(&self) {
        if let Some(events) = self.plan.events {
            for event in self.network.take_events() {
                events(event.at, format_args!("{}", describe(&event)));
            }
        }
    }

    // ---- server ----

    fn start_server(&mut self) {
        let (data_epoch, boot_id, secret) =
            (self.random.random(), self.random.random(), self.random.random());
        self.checker.server_started(data_epoch);
        self.say(format_args!("server starts, epoch {data_epoch:#x}"));
        let cores = (0..self.params.cores).map(|core| {
            let port = self.network.port(self.params.core_addr(core)).expect("the old port is unplugged");
            self.network.tap(port.id());
            let sessions = SessionConfig {
                secret,
                boot_id,
                data_epoch,
                base_port: self.params.core_addr(0).port(),
                cores: self.params.cores,
                core,
                epoch: 0,
                memory_len_max: self.params.sessions_memory_len,
                staging_len_max: self.params.staging_len,
                lease: self.params.lease,
                queue_datagrams: port.rx_queue_datagrams(1_472),
            };
            let store = Store::new(self.params.store_memory_len, self.random.random());
            let published = Published::default();
            let worker = Worker::new(store.expect("memory for a small store"), sessions, published.clone());
            let pace = Pace::new(self.now, self.params.core_interval);
            Core { worker, port, published, clock: Clock::new(), pace }
        });
        self.server = Some(Server {
            data_epoch,
            cores: cores.collect(),
            proven: Vec::new(),
            proof: ProofMonitor::default(),
            overflowed_before: None,
        });
    }

    /// Ends the server, and judges what it leaves behind.
    fn stop_server(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let mut counts = Vec::new();
        for (core, number) in server.cores.iter_mut().zip(0u8..) {
            core.worker.publish(&core.port.counters(), self.now);
            counts.push(core.published.values()[Statistic::Version as usize]);
            for (addr, traffic) in self.network.traffic(core.port.id()) {
                if traffic.tx_bytes > traffic.rx_bytes && !server.proven.contains(&(addr, number)) {
                    let what = format!("core {number} and {addr}, which shook no hands: {traffic:?}");
                    self.checker.violate(Rule::Amplification, what);
                }
            }
        }
        self.say(format_args!("server stops, versions {counts:?}"));
        self.checker.server_stopped(&counts);
    }

    fn turn_cores(&mut self) {
        let Some(server) = &mut self.server else { return };
        for core in &mut server.cores {
            if core.pace.next(self.network.waiting(core.port.id()) > 0) > self.now {
                continue;
            }
            let clock = core.clock.at(self.now);
            let count = core.worker.turn(&mut core.port, || clock).expect("a sim port never breaks");
            core.pace.turned(self.now, if count > 1 { BUSY_REST } else { IDLE_REST });
            self.network.drain_tap(core.port.id(), &mut self.tapped);
            for wrong in self.tapped.drain(..).filter_map(|tapped| server.proof.watch(&tapped)) {
                self.checker.violate(Rule::Proof, wrong);
            }
        }
    }

    /// A statistic of the server that runs, over its cores.
    fn server_sum(&mut self, statistic: Statistic) -> u64 {
        let Some(server) = &mut self.server else { return 0 };
        let each = server.cores.iter_mut().map(|core| {
            core.worker.publish(&core.port.counters(), self.now);
            core.published.values()[statistic as usize]
        });
        each.sum()
    }

    // ---- clients ----

    fn start_client(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if client.lives > 0 {
            client.params = self.params.draw_client(&mut self.random);
            if self.random.random_bool(0.5) {
                client.addr = self.params.client_addr(client.number + 100 * client.lives);
            }
        }
        client.lives += 1;
        let port = self.network.port(client.addr).expect("the old port is unplugged");
        let cores: Vec<_> = (0..self.params.cores).map(|core| self.params.core_addr(core)).collect();
        let id = port.id();
        if self.params.watches_credit() {
            self.network.tap(id);
        }
        let session = Session::attach(port, &cores, client.params.session, self.random.random());
        client.life = Some(Life {
            session,
            port: id,
            clock: Clock::new(),
            pace: Pace::new(self.now, Duration::ZERO),
            stride: client.params.stride.0,
            heard_at: self.now,
            credit: CreditMonitor::default(),
        });
        let (number, addr) = (client.number, client.addr);
        self.say(format_args!("client {number} starts at {addr}"));
    }

    fn stop_client(&mut self, number: usize, farewells: bool, starts_at: Duration) {
        let client = &mut self.clients[number];
        client.starts_at = starts_at;
        let Some(life) = client.life.take() else { return };
        if farewells {
            for core in 0..self.params.cores {
                let to = self.params.core_addr(core);
                if let Some(bytes) = self.network.last_sent(life.port, to).and_then(|sent| farewell(&sent)) {
                    self.network.inject(client.addr, to, &bytes);
                }
            }
        }
        // Dropping a session says goodbye at a time of its own: nobody must hear that.
        self.network.unplug(life.port);
        drop(life);
        client.open = 0;
        let number = client.number;
        self.checker.client_stopped(number);
        self.say(format_args!("client {number} stops"));
    }

    fn turn_client(&mut self, number: usize) {
        if self.clients[number].life.is_none() {
            self.start_client(number);
        }
        let pushed = self.push_some(number);
        let client = &mut self.clients[number];
        let Some(life) = &mut client.life else { return };
        let now = life.clock.at(self.now);
        let stage = self.healed_at.map(|_| client.stage);
        // A session whose other end is somewhere else is given up after half a lease of silence.
        let patient = client.params.session.timeout >= PATIENT && self.params.lease <= PATIENT;
        let (checker, hash, late) = (&mut self.checker, &mut self.hash, &mut self.given_up);
        let (open, failed) = (&mut client.open, &mut client.failed);
        let (events, at, first_healed) = (self.plan.events, self.now, self.first_healed);
        let mut gave_up = false;
        let mut sink = |ended: Ended<'_>| {
            let Ended { tag, outcome, version, data_epoch } = ended;
            *hash = [tag, outcome_word(outcome), version, data_epoch].into_iter().fold(*hash, mix);
            *open = open.saturating_sub(1);
            if let Some(events) = events {
                let end = name(outcome);
                events(at, format_args!("client {number}: operation {tag} ended: {end}, version {version}"));
            }
            *failed |= !is_proof(outcome);
            gave_up |= matches!(outcome, Outcome::NotExecuted(_) | Outcome::OutcomeUnknown);
            let what = || format!("client {number}: fresh operation {tag} ended as {outcome:?}");
            match stage {
                Some(Stage::Proving(_)) if !is_proof(outcome) => checker.violate(Rule::Healed, what()),
                Some(_)
                    if patient
                        && tag >= first_healed
                        && outcome == Outcome::NotExecuted(Reason::Deadline) =>
                {
                    late.push(what());
                }
                _ => {}
            }
            checker.ended(ended);
        };
        let arrived = if client.params.lingers {
            life.session.poll(now, &mut sink)
        } else {
            life.session.flush(now, &mut sink)
        };
        let arrived = arrived.expect("a sim port never breaks");
        if gave_up {
            life.credit.forget();
        }
        self.network.drain_tap(life.port, &mut self.tapped);
        for wrong in self.tapped.drain(..).filter_map(|tapped| life.credit.watch(&tapped)) {
            if let Some(events) = events {
                events(at, format_args!("client {number}: {wrong}"));
            }
            self.checker.violate(Rule::Credit, format!("client {number}: {wrong}"));
        }
        if arrived > 0
            && let Some(server) = &mut self.server
        {
            let cores = life.session.cores().zip(0..).filter_map(|((_, info), core)| Some((info?, core)));
            for (info, core) in cores {
                if info.data_epoch == server.data_epoch && !server.proven.contains(&(client.addr, core)) {
                    server.proven.push((client.addr, core));
                }
            }
        }
        if arrived > 0 || pushed {
            (life.stride, life.heard_at) = (client.params.stride.0, self.now);
        } else {
            let silence = self.now - life.heard_at;
            let slack = SILENCES.iter().find(|(after, _)| silence > *after);
            let longest = slack.map_or(client.params.stride.1, |&(_, longest)| longest);
            life.stride = (life.stride * 2).min(longest);
        }
        let idle = client.open == 0 && life.session.is_open() && !client.stage.has_more();
        let rest = if idle && stage.is_some() { CLIENT_IDLE_REST } else { life.stride };
        life.pace.turned(self.now, rest);
        if stage.is_some() {
            self.advance_stage(number);
        }
    }

    /// Pushes operations as far as the client may; returns whether it did.
    fn push_some(&mut self, number: usize) -> bool {
        let mut pushed = false;
        for _ in 0..self.clients[number].params.push_max {
            let client = &self.clients[number];
            let (allowed, next) = match (self.healed_at, client.stage) {
                (None, _) => (self.pushed < self.plan.ops, None),
                (Some(_), Stage::Settling(left) | Stage::Recovering(left) | Stage::Proving(left)) => {
                    (left > 0, Some(left))
                }
                (Some(_), Stage::Done) => (false, None),
            };
            if !allowed || client.open >= client.params.open_max || !self.push(number, next) {
                break;
            }
            pushed = true;
            self.pushed += 1;
            if let Stage::Settling(left) | Stage::Recovering(left) | Stage::Proving(left) =
                &mut self.clients[number].stage
                && next.is_some()
            {
                *left -= 1;
            }
        }
        pushed
    }

    /// Pushes one operation: any, or the one of a round with so many left. Returns whether there was room for it.
    fn push(&mut self, number: usize, left: Option<u32>) -> bool {
        let keys = self.params.keys.len();
        let (key, ask) = match left {
            None => {
                let hot = self.random.random_bool(self.params.hot);
                let key = if hot { 0 } else { self.random.random_range(0..keys) };
                let (puts, deletes) = self.params.writes;
                let share = self.random.random_range(0.0..1.0);
                let ask = match share {
                    share if share < puts => Ask::Put { len: 0 },
                    share if share < puts + deletes => Ask::Delete,
                    _ => Ask::Get,
                };
                (key, ask)
            }
            Some(left) => {
                let ask = if left % 2 == 0 { Ask::Put { len: 0 } } else { Ask::Get };
                ((left as usize / 2) % keys, ask)
            }
        };
        let tag = self.checker.next_tag();
        let client = &mut self.clients[number];
        let Some(life) = &mut client.life else { return false };
        let name = &self.params.keys[key];
        let mut value = Vec::new();
        let (operation, ask) = match ask {
            Ask::Get => (Operation::get(&name.bytes), ask),
            Ask::Delete => (Operation::delete(&name.bytes), ask),
            Ask::Put { .. } => {
                let len = self.params.draw_value_len(&mut self.random, key as u16);
                write_value(&mut value, Origin { key: key as u16, writer: client.number, tag }, len);
                (Operation::put(&name.bytes, &value), Ask::Put { len })
            }
        };
        match life.session.push(life.clock.at(self.now), operation, tag.into()) {
            Ok(()) => {
                let call = Call { key: key as u16, shard: name.shard, client: client.number, ask };
                self.checker.called(call);
                client.open += 1;
                self.say(format_args!("client {number}: operation {tag}: {ask:?} of key {key}"));
                true
            }
            Err(PushError::Full) => false,
            Err(error) => panic!("a legal operation was refused: {error}"),
        }
    }

    // ---- faults ----

    fn schedule_fault(&mut self) {
        let interval = self.params.node_fault_interval;
        let ops = self.pushed + self.random.random_range(1..=2 * interval);
        let after = magnitude(&mut self.random, Duration::from_millis(1), Duration::from_secs(2));
        self.next_fault_at = (ops, self.now + after);
    }

    /// One node fault, chosen by the seed's weights.
    fn break_something(&mut self) {
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

    // ---- the second half ----

    /// Ends all faults.
    fn heal(&mut self) {
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
    fn advance_stage(&mut self, number: usize) {
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
    fn finish(&mut self) {
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

impl Client {
    /// When its next turn is due, or it starts.
    #[inline]
    fn next(&self, network: &SimNetwork) -> Duration {
        match &self.life {
            Some(life) => life.pace.next(network.waiting(life.port) > 0),
            None => self.starts_at,
        }
    }
}

/// Whether an operation may end so when all is well: in a result, or refused because there is no memory left for it or
/// others keep replacing a value of many pieces.
const fn is_proof(outcome: Outcome<'_>) -> bool {
    match outcome {
        Outcome::NotExecuted(reason) => {
            matches!(reason, Reason::NoSpace | Reason::StagingFull | Reason::Changed)
        }
        outcome => !matches!(outcome, Outcome::OutcomeUnknown),
    }
}

/// An outcome as one word of the trace.
fn outcome_word(outcome: Outcome<'_>) -> u64 {
    match outcome {
        Outcome::Value(value) => 0x100 + value.len() as u64,
        Outcome::NotFound => 1,
        Outcome::Done => 2,
        Outcome::OutcomeUnknown => 3,
        Outcome::NotExecuted(reason) => 0x1_0000_0000 + u64::from(reason.code()),
    }
}
