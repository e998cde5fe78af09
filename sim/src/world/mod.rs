//! One seed's system: a server and clients of the production code on a simulated network, on virtual time.
//!
//! A run has two halves. In the first the clients push operations while everything goes wrong that the seed has in
//! store ([`havoc`]). In the second all is well, and every client must come to an end ([`recovery`]).

mod havoc;
mod recovery;

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use linerate_client::{Condition, Ended, Operation, Outcome, PushError, Reason, Session, Terms};
use linerate_dataplane::{
    Port,
    sim::{PortId, SimNetwork, SimPort, Tapped, mix},
};
use linerate_proto::{cluster::Membership, session::SessionConfig, wire::Statistic};
use linerate_server::{
    stats::Published,
    store::{AtCapacity, Store},
    worker::Worker,
};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use self::recovery::{Stage, is_proof};
use crate::{
    check::{Ask, Call, Checker, Rule, name},
    forge::farewell,
    monitor::{CreditMonitor, ProofMonitor},
    node::{Clock, Pace},
    run::Plan,
    swarm::{ClientParams, NodeFault, Params, magnitude},
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

/// When all is well, a client that waits so long for an answer gets it, in spite of clocks that were set back and of the
/// little that is still lost.
const PATIENT: Duration = Duration::from_secs(5);

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
        let cluster = Arc::new(Membership::alone(self.params.cores));
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
                map_digest: 0,
                node_id: 0,
                memory_len_max: self.params.sessions_memory_len,
                staging_len_max: self.params.staging_len,
                lease: self.params.lease,
                queue_datagrams: port.rx_queue_datagrams(1_472),
            };
            let store = Store::new(self.params.store_memory_len, AtCapacity::Refuse, self.random.random());
            let published = Published::default();
            let store = store.expect("memory for a small store");
            let worker = Worker::new(store, sessions, Arc::clone(&cluster), published.clone());
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
            let Ended { tag, outcome, version, data_epoch, .. } = ended;
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
            None if self.random.random_bool(self.params.adds) => {
                // The key numbers of counters come after those of all others.
                (keys + number, Ask::Add { delta: self.random.random_range(1..=1_000) })
            }
            None => {
                let hot = self.random.random_bool(self.params.hot);
                let key = if hot { 0 } else { self.random.random_range(0..keys) };
                let (puts, deletes) = self.params.writes;
                let share = self.random.random_range(0.0..1.0);
                let ask = match share {
                    share if share < puts => match self.draw_condition(key as u16) {
                        Condition::Always => Ask::Put { len: 0 },
                        condition => Ask::PutOn { len: 0, condition },
                    },
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
        let name = match key.checked_sub(keys) {
            Some(counter) => &self.params.counters[counter],
            None => &self.params.keys[key],
        };
        let mut value = Vec::new();
        let (operation, ask) = match ask {
            Ask::Add { delta } => (Operation::add(&name.bytes, delta, None), ask),
            Ask::PutOn { condition, .. } => {
                let len = self.params.draw_value_len(&mut self.random, key as u16);
                write_value(&mut value, Origin { key: key as u16, writer: client.number, tag }, len);
                let terms = Terms::only_if(condition);
                (Operation::put_on(&name.bytes, &value, terms), Ask::PutOn { len, condition })
            }
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
}

impl World {
    /// On what condition a put is, if on any: of a version, it is the newest that was told, or one before.
    fn draw_condition(&mut self, key: u16) -> Condition {
        if !self.random.random_bool(self.params.conditional) {
            return Condition::Always;
        }
        let newest = self.checker.newest_version(key);
        match self.random.random_range(0..4) {
            0 => Condition::Absent,
            1 => Condition::Present,
            2 => Condition::Version(newest.max(1)),
            _ => Condition::Version(newest.saturating_sub(1).max(1)),
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
