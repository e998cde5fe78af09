//! A hostile socket: what it sends, what it gets, and what it has written.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use linerate_dataplane::{Peer, Port, UdpConfig, UdpPort};
use linerate_proto::wire::{self, Common, Kind, NoSession, OpResult, ReplyHeader, Results, TRAILER_LEN};
use zerocopy::FromBytes;

/// What any process may have without privileges (net.core.rmem_default): the test is the same wherever it runs.
const RECEIVE_BUFFER_LEN: usize = 212_992;

/// Datagrams and their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
}

impl Count {
    pub(crate) const fn add(&mut self, len: usize) {
        self.datagrams += 1;
        self.bytes += len as u64;
    }

    pub(crate) const fn plus(self, other: Self) -> Self {
        Self { datagrams: self.datagrams + other.datagrams, bytes: self.bytes + other.bytes }
    }
}

/// One source port that speaks to one core.
pub(crate) struct Socket {
    port: UdpPort,
    server: Peer,
    pub(crate) sent: Count,
    /// Of these, those that a `NO_SESSION` would not be longer than.
    pub(crate) sent_long: u64,
    pub(crate) received: Count,
    /// Of these, cookies and unknown sessions: what anybody can get.
    pub(crate) received_by_anybody: Count,
    /// Of these, the unknown sessions.
    pub(crate) no_sessions: u64,
    /// For each session that was seen the highest number of each slot whose writes are counted.
    slots: HashMap<(u32, u64), Box<[u32; 256]>>,
    effective_writes: u64,
}

impl Socket {
    pub(crate) fn open(from: IpAddr, server: SocketAddr) -> Self {
        let config =
            UdpConfig { receive_buffer_len: RECEIVE_BUFFER_LEN, trains: true, rx_buffers: 4, tx_chunks: 2 };
        Self {
            port: UdpPort::bind((from, 0).into(), config).unwrap(),
            server: Peer::datagram(server),
            sent: Count::default(),
            sent_long: 0,
            received: Count::default(),
            received_by_anybody: Count::default(),
            no_sessions: 0,
            slots: HashMap::new(),
            effective_writes: 0,
        }
    }

    /// Puts a datagram into the train that [`flush`](Self::flush) sends. It has at least one byte.
    pub(crate) fn send(&mut self, datagram: &[u8]) {
        if self.port.split().1.begin(&self.server, datagram.len()).is_none() {
            self.flush();
        }
        let (_, outbox) = self.port.split();
        let slot = outbox.begin(&self.server, datagram.len()).expect("a flush makes room");
        slot.bytes[..datagram.len()].copy_from_slice(datagram);
        outbox.commit(datagram.len());
        self.sent.add(datagram.len());
        self.sent_long += u64::from(datagram.len() >= size_of::<NoSession>() + TRAILER_LEN);
    }

    pub(crate) fn flush(&mut self) {
        self.port.tx_flush().unwrap();
    }

    /// Takes everything that has arrived, and hands it to `each`.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(&[u8])) {
        while self.port.rx_burst().unwrap() > 0 {
            for datagram in self.port.split().0.iter() {
                self.received.add(datagram.bytes.len());
                match Kind(datagram.bytes[0]) {
                    Kind::COOKIE => self.received_by_anybody.add(datagram.bytes.len()),
                    Kind::NO_SESSION => {
                        self.received_by_anybody.add(datagram.bytes.len());
                        self.no_sessions += 1;
                    }
                    Kind::REPLY => {
                        self.effective_writes += new_writes(&mut self.slots, datagram.bytes);
                    }
                    _ => {}
                }
                each(datagram.bytes);
            }
        }
    }

    /// Writes that took effect, each once however often it was answered.
    ///
    /// # Panics
    /// When an answer was lost on the way here: then nobody knows.
    pub(crate) fn effective_writes(&self) -> u64 {
        assert_eq!(self.port.counters().rx_overflow_drops, 0, "answers were lost");
        self.effective_writes
    }

    /// Datagrams that the kernel has taken.
    pub(crate) fn handed_over(&self) -> u64 {
        let counters = self.port.counters();
        assert_eq!(counters.tx_dropped, 0, "not everything could be sent");
        assert_eq!(counters.tx_datagrams, self.sent.datagrams);
        counters.tx_datagrams
    }
}

/// The writes that a reply tells of for the first time. Only results of effective writes are done and have a version, or
/// are sums, for which a value of eight bytes is taken, because nobody stores such; a slot's numbers grow, and the same
/// number again is the same answer.
fn new_writes(slots: &mut HashMap<(u32, u64), Box<[u32; 256]>>, reply: &[u8]) -> u64 {
    let (_, body) = wire::open(reply).expect("the server's answers are whole");
    let (header, _) = ReplyHeader::ref_from_prefix(reply).expect("a reply has its header");
    let body = &body[size_of::<ReplyHeader>() - size_of::<Common>()..];
    let results = Results::new(body, header.count, header.common.flags);
    let is_effect = |result: OpResult<'_>| match result {
        OpResult::Done => true,
        OpResult::Value(value) => value.len() == 8,
        _ => false,
    };
    let results = results.map(|result| result.expect("a reply parses"));
    let done = results.filter(|&(result, meta)| is_effect(result) && meta.version > 0).count() as u64;
    let session = (header.common.session.get(), header.common.token.get());
    if done == 0 {
        return 0;
    }
    let slots = slots.entry(session).or_insert_with(|| Box::new([0; 256]));
    let last = &mut slots[usize::from(header.common.slot)];
    if header.seq.get() <= *last {
        return 0;
    }
    *last = header.seq.get();
    done
}
