//! The attack: rounds of trains of every kind, each from source ports of its own.

use std::{
    collections::VecDeque,
    fmt::Write,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use linerate_client::{Session, SessionConfig};
use linerate_dataplane::{UdpConfig, UdpPort};
use linerate_proto::{
    Key,
    wire::{
        Common, Cookie, CookieReply, DATAGRAM_LEN_MAX, DATAGRAM_LEN_MIN, Flags, Hello, Kind, Nonce, Open,
        Opened, Operation, Piece, RequestHeader, TRAILER_LEN, VALUE_LEN_MAX, nonce_of, seal, seal_padded,
        write_trailer,
    },
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use zerocopy::{
    FromBytes, FromZeros, IntoBytes,
    network_endian::{U32, U64},
};

use crate::{
    mutation::{LEN_MAX, mutate},
    recording::{Keys, Recording, Speaker, record},
    socket::{Count, Socket},
};

/// Datagrams of one train.
const TRAIN: usize = 16;

/// Rounds of a core after which those who hold a session open a new one, since goodbyes and used-up slots spoil it.
const ROUNDS_PER_RECORDING: u64 = 32;

/// Sessions that are opened together and left alone.
const ABANDONED_PER_ROUND: usize = 4;

/// Clients that abandon their sessions, each new one ending the one before, until the attack is to fill the memory.
const ABANDONING_CLIENTS: u64 = 64;

/// What a source port sends, and how many trains of it in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    /// Random bytes of every length from none to more than a datagram may have.
    Random,
    /// Others' datagrams, changed.
    MutatedByStranger,
    /// Others' datagrams as they were, and the server's own.
    ReplayedByStranger,
    /// HELLOs without end.
    Hellos,
    /// OPENs with cookies that are made up or another's.
    Opens,
    /// Datagrams of its own session, changed.
    MutatedByHolder,
    /// Datagrams of its own session as they were, in any order.
    ReplayedByHolder,
    /// Sessions opened, begun to be used, and left alone.
    Abandoned,
}

impl Sort {
    const ALL: [Self; 8] = [
        Self::Random,
        Self::MutatedByStranger,
        Self::ReplayedByStranger,
        Self::Hellos,
        Self::Opens,
        Self::MutatedByHolder,
        Self::ReplayedByHolder,
        Self::Abandoned,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Random => "random bytes",
            Self::MutatedByStranger => "mutated, by a stranger",
            Self::ReplayedByStranger => "replayed, from another port",
            Self::Hellos => "HELLOs",
            Self::Opens => "OPENs with a wrong cookie",
            Self::MutatedByHolder => "mutated, in a session",
            Self::ReplayedByHolder => "replayed, from the right port",
            Self::Abandoned => "sessions opened and left",
        }
    }

    /// Whether its sockets complete handshakes.
    const fn has_sessions(self) -> bool {
        matches!(self, Self::MutatedByHolder | Self::ReplayedByHolder | Self::Abandoned)
    }

    /// Each has an address of its own, so that none uses up the handshakes of another.
    fn addr(self) -> IpAddr {
        [127, 0, 1, 1 + self as u8].into()
    }

    /// Trains in a round.
    const fn trains(self) -> usize {
        match self {
            Self::Random => 16,
            Self::MutatedByStranger => 14,
            Self::ReplayedByStranger | Self::Hellos | Self::Opens => 8,
            // What they are answered has to fit their receive queue.
            Self::MutatedByHolder | Self::ReplayedByHolder => 4,
            Self::Abandoned => 0,
        }
    }
}

/// Sockets and memory of what is aimed at one core.
struct Front {
    sockets: [Socket; Sort::ALL.len()],
    /// For datagrams without a single byte, which trains can not have.
    empty: UdpSocket,
    empty_sent: u64,
    /// What the holders of sessions have recorded: those who mutate and those who replay.
    mutated: Recording,
    replayed: Recording,
    keys: Keys,
    next_seq: u32,
    cookies: VecDeque<(Nonce, Cookie)>,
    sessions: VecDeque<Common>,
    rounds: u64,
    abandoned: u64,
}

/// Everything that is aimed at a server.
pub(crate) struct Attack {
    fronts: Vec<Front>,
    /// Well-behaved: its ping comes back when all that was sent before was looked at.
    control: Session<UdpPort>,
    random: StdRng,
    generation: u64,
    next_len: usize,
    turn: usize,
    /// Whether abandoned sessions are as many and as large as the server has room for.
    fills: bool,
}

impl Attack {
    pub(crate) fn new(cores: &[SocketAddr], control: Session<UdpPort>, seed: u64) -> Self {
        let front = |(number, &core): (usize, &SocketAddr)| {
            let empty = UdpSocket::bind((Sort::Random.addr(), 0)).unwrap();
            empty.connect(core).unwrap();
            empty.set_nonblocking(true).unwrap();
            Front {
                sockets: Sort::ALL.map(|sort| Socket::open(sort.addr(), core)),
                empty,
                empty_sent: 0,
                mutated: Recording::default(),
                replayed: Recording::default(),
                keys: Keys::of(number as u8, cores.len() as u8),
                next_seq: 0,
                cookies: VecDeque::new(),
                sessions: VecDeque::new(),
                rounds: 0,
                abandoned: 0,
            }
        };
        let mut attack = Self {
            fronts: cores.iter().enumerate().map(front).collect(),
            control,
            random: StdRng::seed_from_u64(seed),
            generation: 0,
            next_len: 0,
            turn: 0,
            fills: false,
        };
        for front in 0..attack.fronts.len() {
            attack.record(front);
            assert!(!attack.fronts[front].mutated.asked.is_empty(), "nothing was recorded");
            assert!(!attack.fronts[front].replayed.asked.is_empty(), "nothing was recorded");
        }
        attack
    }

    /// The well-behaved session.
    pub(crate) const fn control(&mut self) -> &mut Session<UdpPort> {
        &mut self.control
    }

    /// Hostile datagrams sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.fronts.iter().map(Front::sent).sum()
    }

    /// All datagrams handed to the kernel, those of the well-behaved session included.
    pub(crate) fn all_sent(&self) -> u64 {
        let handed_over: u64 =
            self.fronts.iter().flat_map(|front| &front.sockets).map(Socket::handed_over).sum();
        let empty: u64 = self.fronts.iter().map(|front| front.empty_sent).sum();
        handed_over + empty + self.control.counters().port.tx_datagrams
    }

    /// From now on abandoned sessions are never replaced by others of their clients: the server is filled with them.
    pub(crate) const fn fill(&mut self) {
        self.fills = true;
    }

    /// Sends trains of every kind to one core, the next one each time, and waits until they were looked at.
    pub(crate) fn round(&mut self) {
        self.turn = (self.turn + 1) % self.fronts.len();
        let front = &mut self.fronts[self.turn];
        front.rounds += 1;
        // A server that is full opens no more.
        if !self.fills && front.rounds.is_multiple_of(ROUNDS_PER_RECORDING) {
            self.record(self.turn);
        }
        let front = &mut self.fronts[self.turn];
        for sort in Sort::ALL {
            for _ in 0..sort.trains() {
                front.train(sort, &mut self.random, &mut self.next_len);
            }
            front.sockets[sort as usize].flush();
        }
        front.abandon(&mut self.random, self.fills);
        self.catch_up();
        let front = &mut self.fronts[self.turn];
        front.drain();
    }

    /// Takes what is still on its way here.
    pub(crate) fn drain(&mut self) {
        self.catch_up();
        // Answers are sent when the burst that they belong to is done with, a moment after that of a ping.
        std::thread::sleep(Duration::from_millis(100));
        self.fronts.iter_mut().for_each(Front::drain);
    }

    /// Waits until the cores have looked at all that was sent: a queue keeps its order.
    fn catch_up(&mut self) {
        let pongs = self.control.ping(&mut |_| {}).unwrap();
        assert!(
            pongs.iter().all(Option::is_some),
            "a core does not answer a well-behaved session: {pongs:?}"
        );
    }

    /// Records sessions for those who need one, in place of their older ones.
    fn record(&mut self, front: usize) {
        self.generation += 1;
        let core = front as u64;
        let front = &mut self.fronts[front];
        for (sort, recording) in
            [(Sort::MutatedByHolder, &mut front.mutated), (Sort::ReplayedByHolder, &mut front.replayed)]
        {
            let speaker = Speaker {
                client_id: 1_000 * core + sort as u64,
                generation: self.generation,
                checksum: self.generation % 2 == sort as u64 % 2,
            };
            if let Some(new) = record(&mut front.sockets[sort as usize], &front.keys, speaker) {
                *recording = new;
            }
        }
        // Above all that the recorded session has used.
        front.next_seq = 10_000;
    }

    /// Asserts that no source without a session has got more than it has sent, or anything but cookies and that its
    /// session is not known; and that those with a session have got no more of these than they have sent.
    pub(crate) fn assert_nothing_gained(&self) {
        for front in &self.fronts {
            for (sort, socket) in Sort::ALL.into_iter().zip(&front.sockets) {
                let name = sort.name();
                if !sort.has_sessions() {
                    let (sent, received) = (socket.sent, socket.received);
                    assert!(received.bytes <= sent.bytes, "{name}: {received:?} for {sent:?}");
                    assert!(received.datagrams <= sent.datagrams, "{name}: {received:?} for {sent:?}");
                    let others = received.datagrams - socket.received_by_anybody.datagrams;
                    assert_eq!(others, 0, "{name}: answers that only a session or a good cookie deserves");
                }
                let received = socket.received_by_anybody;
                assert!(received.bytes <= socket.sent.bytes, "{name}: {received:?} for {:?}", socket.sent);
                assert!(
                    socket.no_sessions <= socket.sent_long,
                    "{name}: {} times NO_SESSION for {} datagrams that were long enough",
                    socket.no_sessions,
                    socket.sent_long
                );
            }
            let answer = front.empty.recv(&mut [0; 16]).map_err(|error| error.kind());
            assert_eq!(answer, Err(std::io::ErrorKind::WouldBlock), "nothing is answered with something");
        }
    }

    /// Writes of the attackers that took effect, each once.
    pub(crate) fn effective_writes(&self) -> u64 {
        self.fronts.iter().flat_map(|front| &front.sockets).map(Socket::effective_writes).sum()
    }

    /// What was sent and received, by kind.
    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        for sort in Sort::ALL {
            let sum = |count: fn(&Socket) -> Count| {
                let counts = self.fronts.iter().map(|front| count(&front.sockets[sort as usize]));
                counts.fold(Count::default(), Count::plus)
            };
            let (sent, received) = (sum(|socket| socket.sent), sum(|socket| socket.received));
            let by_anybody = sum(|socket| socket.received_by_anybody);
            let factor = |bytes: u64| bytes as f64 / sent.bytes.max(1) as f64;
            let _ = writeln!(
                table,
                "{:30} {:>10} sent {:>10} answers, {:.3} bytes per byte, {:.3} without those in sessions",
                sort.name(),
                sent.datagrams,
                received.datagrams,
                factor(received.bytes),
                factor(by_anybody.bytes)
            );
        }
        let empty: u64 = self.fronts.iter().map(|front| front.empty_sent).sum();
        let _ = write!(table, "{:30} {empty:>10} sent", "without a byte");
        table
    }
}

impl Front {
    fn sent(&self) -> u64 {
        self.empty_sent + self.sockets.iter().map(|socket| socket.sent.datagrams).sum::<u64>()
    }

    fn train(&mut self, sort: Sort, random: &mut StdRng, next_len: &mut usize) {
        let socket = &mut self.sockets[sort as usize];
        match sort {
            Sort::Random => {
                let len = *next_len;
                *next_len = (len + 1) % (LEN_MAX + 1);
                if len == 0 {
                    self.empty_sent += u64::from(self.empty.send(&[]).is_ok());
                    return;
                }
                let mut bytes = [0; LEN_MAX];
                for _ in 0..TRAIN {
                    random.fill_bytes(&mut bytes[..len]);
                    socket.send(&bytes[..len]);
                }
            }
            Sort::MutatedByStranger => {
                let recording = if random.random() { &self.mutated } else { &self.replayed };
                let base = pick(random, &recording.asked);
                mutate(random, base, TRAIN, None, |bytes| socket.send(bytes));
            }
            Sort::ReplayedByStranger => {
                let recording = if random.random() { &self.mutated } else { &self.replayed };
                let list = if random.random_bool(0.8) { &recording.asked } else { &recording.answered };
                (0..TRAIN).for_each(|_| socket.send(pick(random, list)));
            }
            Sort::Hellos => {
                let mut bytes = [0; DATAGRAM_LEN_MAX];
                let len = [size_of::<Hello>() + TRAILER_LEN, DATAGRAM_LEN_MAX]
                    [usize::from(random.random_bool(0.1))];
                for _ in 0..TRAIN {
                    let hello = hello(random.random());
                    seal_padded(&hello, len, &mut bytes);
                    socket.send(&bytes[..len]);
                }
            }
            Sort::Opens => {
                let mut bytes = [0; DATAGRAM_LEN_MAX];
                for _ in 0..TRAIN {
                    // A real cookie, if one is at hand, was made for another address.
                    let real = self.cookies.front().copied().filter(|_| random.random());
                    let (nonce, cookie) = real.unwrap_or_else(|| (random.random(), random.random()));
                    let len = seal_padded(&open(nonce, cookie, 256), DATAGRAM_LEN_MIN, &mut bytes);
                    socket.send(&bytes[..len]);
                }
            }
            Sort::MutatedByHolder => {
                let base = pick(random, &self.mutated.asked);
                if Kind(base[0]) == Kind::CLOSE && random.random_bool(0.95) {
                    return; // As below.
                }
                mutate(random, base, TRAIN, Some(&mut self.next_seq), |bytes| socket.send(bytes));
            }
            Sort::ReplayedByHolder => {
                for _ in 0..TRAIN {
                    let bytes = pick(random, &self.replayed.asked);
                    // A goodbye ends the session for good, and an open begins another.
                    if !matches!(Kind(bytes[0]), Kind::CLOSE | Kind::OPEN) || random.random_bool(0.05) {
                        socket.send(bytes);
                    }
                }
            }
            Sort::Abandoned => {}
        }
    }

    /// Brings sessions a step further: a hello, an open, the beginning of a long value, and never again a word.
    fn abandon(&mut self, random: &mut StdRng, fills: bool) {
        let socket = &mut self.sockets[Sort::Abandoned as usize];
        let mut bytes = [0; DATAGRAM_LEN_MAX];
        for _ in 0..ABANDONED_PER_ROUND {
            let number = self.abandoned;
            self.abandoned += 1;
            let nonce = if fills { random.random() } else { nonce_of(number % ABANDONING_CLIENTS, number) };
            let len = seal(&hello(nonce), &mut bytes);
            socket.send(&bytes[..len]);
        }
        for (nonce, cookie) in self.cookies.drain(..) {
            let window = if fills { 256 } else { random.random_range(1..=16) };
            let len = seal_padded(&open(nonce, cookie, window), DATAGRAM_LEN_MAX, &mut bytes);
            socket.send(&bytes[..len]);
        }
        for session in self.sessions.drain(..) {
            let len = VALUE_LEN_MAX as u32;
            let mut body = [0; 64];
            let begin = Piece::Begin { number: 1, len }.write(&mut body).expect("there is room");
            socket.send(&request(session, Flags::TRANSFER, 1, &body[..begin]));
            let part = Piece::Part { number: 1, offset: 64, bytes: &[7; 32] }
                .write(&mut body)
                .expect("there is room");
            socket.send(&request(session, Flags::TRANSFER, 2, &body[..part]));
            let get = Operation::get(Key::new(b"attacker's key 1")).write(&mut body).expect("there is room");
            socket.send(&request(session, Flags::READ_ONLY, 3, &body[..get]));
        }
        socket.flush();
    }

    fn drain(&mut self) {
        for sort in Sort::ALL {
            self.sockets[sort as usize].drain(|answer| {
                if sort != Sort::Abandoned {
                    return;
                }
                if let Ok((reply, _)) = CookieReply::ref_from_prefix(answer)
                    && reply.common.kind == Kind::COOKIE
                {
                    self.cookies.push_back((reply.nonce, reply.cookie));
                }
                if let Ok((opened, _)) = Opened::ref_from_prefix(answer)
                    && opened.common.kind == Kind::OPENED
                {
                    self.sessions.push_back(opened.common);
                }
            });
        }
    }
}

/// A well-behaved session with all cores, of which every datagram is counted.
pub(crate) fn attach(cores: &[SocketAddr]) -> Session<UdpPort> {
    let port = UdpPort::connect(cores, UdpConfig::default()).unwrap();
    let mut session =
        Session::attach(port, cores, SessionConfig { window: 4, ..SessionConfig::default() }, 101);
    open_all(&mut session);
    session
}

/// Waits until a session is open.
pub(crate) fn open_all(session: &mut Session<UdpPort>) {
    let begun = session.now();
    while !session.is_open() {
        session.flush(session.now(), &mut |_| {}).unwrap();
        session.wait(Duration::from_millis(1)).unwrap();
        assert!(session.now().since(begun) < Duration::from_secs(20), "the server opens no session");
    }
}

fn pick<'a>(random: &mut StdRng, datagrams: &'a [Vec<u8>]) -> &'a [u8] {
    &datagrams[random.random_range(0..datagrams.len())]
}

const fn common(kind: Kind) -> Common {
    Common { kind, flags: Flags::CHECKSUM, slot: 0, attempt: 0, session: U32::ZERO, token: U64::ZERO }
}

fn hello(nonce: Nonce) -> Hello {
    Hello { common: common(Kind::HELLO), nonce, ..Hello::new_zeroed() }
}

fn open(nonce: Nonce, cookie: Cookie, window: u16) -> Open {
    let common = common(Kind::OPEN);
    Open { common, nonce, cookie, window: window.into(), checksum: 1, ..Open::new_zeroed() }
}

/// A request of one operation in a session with checksums.
fn request(session: Common, flags: Flags, seq: u32, body: &[u8]) -> Vec<u8> {
    let common = Common { kind: Kind::REQUEST, flags: flags.with(Flags::CHECKSUM), ..session };
    let header = RequestHeader { common, seq: seq.into(), count: 1, epoch: 0.into(), spare: 0 };
    let mut bytes = [header.as_bytes(), body, &[0; TRAILER_LEN]].concat();
    write_trailer(&mut bytes);
    bytes
}
