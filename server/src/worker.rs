//! One core's loop body: from a burst of datagrams to the replies, without a lock, a queue or an allocation.

use std::{io, num::NonZeroU32, sync::Arc};

use arrayvec::ArrayVec;
use linerate_dataplane::{Datagram, Outbox, Peer, Port};
use linerate_proto::{
    DropReason, Drops, Instant, Key,
    cluster::Membership,
    hash::key_hash,
    mutants::{Mutant, is_active},
    placement::{PARTITIONS, Partition, Share},
    session::{Control, SessionConfig, SessionTable, Verdict},
    wire::{
        self, Common, DATAGRAM_LEN_MAX, Flags, Gets, Kind, LongValue, Meta, OpResult, OperationKind,
        Operations, Piece, Pieces, Ping, REPLY_DATAGRAMS_MAX, Range, Ranges, Reason, ReplyBuilder,
        ReplyHeader, RequestHeader, Statistics, TRAILER_LEN, Terms,
    },
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    stats::{Published, WorkerCounters},
    store::{Found, Probe, Refusal, Store},
};

/// A batch is executed once it holds this many operations. Prefetching needs some 64 to hide a memory access; more than
/// the first-level cache holds would evict what was fetched first.
const BATCH_OPERATIONS: usize = 128;

/// After a burst of at least so many datagrams the next one is likely waiting already: replies that do not fill a train
/// wait for it. Less than a train of replies is then held back, for less than a turn.
const BUSY_BURST: usize = 8;

/// In a busy burst, complete trains leave once the replies fill this many chunks: what is written next then goes where
/// the cache still is, and the client has something to do meanwhile.
const FLUSH_CHUNKS: usize = 3;

/// The last request that joins a batch may bring it up to this.
const BATCH_OPERATIONS_MAX: usize = BATCH_OPERATIONS + wire::OPERATIONS_MAX;

/// Datagrams of full length that a chunk of the outbox takes.
const DATAGRAMS_PER_CHUNK: usize = 44;

/// Buckets that are looked through after each burst for what has expired, and one more for each write of the burst: so
/// what is stored does not outgrow what goes.
const EXPIRE_BUCKETS: usize = 16;

/// The state of one core: its shard, its sessions and its counters.
#[derive(Debug)]
pub struct Worker {
    store: Store,
    sessions: SessionTable,
    cluster: Arc<Membership>,
    /// The partitions of this core, unless all are.
    share: Option<Share>,
    counters: WorkerCounters,
    drops: Drops,
    published: Published,
}

/// A request admitted to the batch that is being executed.
struct Request<'a> {
    header: &'a RequestHeader,
    /// Its operations as they came, of which the batch holds only what a look-up needs.
    body: &'a [u8],
    peer: &'a Peer,
    task: Task,
    /// Its look-ups are those up to here, from where the previous request's end.
    lookups_end: usize,
}

/// What to answer a request with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    /// The results of its reads.
    Read,
    /// The results of its writes, which its slot keeps.
    Write,
    /// Ranges of long values.
    Ranges,
    /// What became of the pieces of long values.
    Stage,
    /// What its slot has kept.
    Replay,
    /// The same refusal for each operation.
    Refuse(Reason),
}

/// A key on its way to being found.
struct Lookup<'a> {
    key: Key<'a>,
    hash: u64,
    probe: Probe,
}

/// Requests that are executed together, so that their memory accesses overlap.
struct Batch<'a> {
    requests: ArrayVec<Request<'a>, BATCH_OPERATIONS>,
    lookups: ArrayVec<Lookup<'a>, BATCH_OPERATIONS_MAX>,
    /// Most datagrams that the answers can take.
    datagrams_max: usize,
    /// Times that the peer changes from one request to the next.
    peers: usize,
}

impl<'a> Batch<'a> {
    const fn new() -> Self {
        Self { requests: ArrayVec::new_const(), lookups: ArrayVec::new_const(), datagrams_max: 0, peers: 0 }
    }

    /// Whether another datagram can be taken in: its answers will find room in `free_chunks` chunks, whatever it holds.
    fn has_room(&self, free_chunks: usize) -> bool {
        // One datagram more can bring one peer and as many reply datagrams as a request may have.
        let chunks =
            self.peers + 1 + (self.datagrams_max + REPLY_DATAGRAMS_MAX).div_ceil(DATAGRAMS_PER_CHUNK);
        self.lookups.len() < BATCH_OPERATIONS && !self.requests.is_full() && chunks <= free_chunks
    }

    fn push(&mut self, request: Request<'a>) {
        let start = self.requests.last().map_or(0, |last| last.lookups_end);
        self.datagrams_max += (request.lookups_end - start).clamp(1, REPLY_DATAGRAMS_MAX);
        self.peers += usize::from(self.requests.last().is_none_or(|last| last.peer != request.peer));
        self.requests.push(request);
    }
}

impl Worker {
    /// The worker of one core of a node of `cluster`.
    #[must_use]
    pub fn new(
        store: Store,
        sessions: SessionConfig,
        cluster: Arc<Membership>,
        published: Published,
    ) -> Self {
        let share = cluster.share_of(sessions.core);
        Self {
            store,
            share: (share.len() < PARTITIONS).then_some(share),
            cluster,
            sessions: SessionTable::new(sessions),
            counters: WorkerCounters::default(),
            drops: Drops::default(),
            published,
        }
    }

    /// Takes all memory of the store from the system now, by the calling thread.
    ///
    /// # Errors
    /// When there is not so much.
    pub fn prefault(&mut self) -> io::Result<()> {
        self.store.prefault()
    }

    /// Takes one burst from `port` and answers all of it; returns how many datagrams it had.
    ///
    /// # Errors
    /// When the port is broken for good.
    pub fn turn<P: Port>(&mut self, port: &mut P, clock: impl Fn() -> Instant) -> io::Result<usize> {
        let count = port.rx_burst()?; // 1 receive
        if count == 0 && !port.split().1.is_empty() {
            port.tx_flush()?; // What was held back for company leaves: none has come.
        }
        let arrived = clock();
        self.store.advance(arrived);
        let writes_before = self.counters.writes();
        let mut next = 0;
        while next < count {
            let (free_chunks, used_chunks) = {
                let (received, outbox) = port.split();
                let mut batch = Batch::new();
                while next < count && batch.has_room(outbox.free_chunks()) {
                    let datagram = received.datagram(next); // 2 parse
                    if may_end_session(datagram) && !batch.requests.is_empty() {
                        break;
                    }
                    next += 1;
                    if let Err(reason) = self.parse(arrived, datagram, &mut batch, outbox) {
                        self.drops.count(reason);
                    }
                }
                self.prefetch(&mut batch); // 3 prefetch
                self.answer(&batch, queue_delay(arrived, clock()), outbox); // 4 execute, 5 emit
                (outbox.free_chunks(), outbox.used_chunks())
            };
            let busy = count >= BUSY_BURST;
            if !Batch::new().has_room(free_chunks) {
                port.tx_flush()?; // 6 transmit
                if !Batch::new().has_room(port.split().1.free_chunks()) {
                    // Only slow readers of a stream port can hold all room. What is left of the burst is as good as
                    // lost on the way; its senders ask again.
                    (next..count).for_each(|_| self.drops.count(DropReason::NoRoom));
                    break;
                }
            } else if busy && (next == count || used_chunks >= FLUSH_CHUNKS) {
                port.tx_flush_complete()?; // 6 transmit
            } else if next == count {
                port.tx_flush()?; // 6 transmit
            }
        }
        let writes = self.counters.writes() - writes_before;
        self.store.expire(EXPIRE_BUCKETS + writes as usize);
        self.sessions.expire(arrived);
        Ok(count)
    }

    /// Takes a request into the batch. Anything else is answered here and now.
    fn parse<'a>(
        &mut self,
        now: Instant,
        datagram: Datagram<'a>,
        batch: &mut Batch<'a>,
        outbox: &mut Outbox,
    ) -> Result<(), DropReason> {
        let Datagram { peer, bytes } = datagram;
        if bytes.len() > DATAGRAM_LEN_MAX {
            return Err(DropReason::Oversized);
        }
        let (common, _) = Common::ref_from_prefix(bytes).map_err(|_| DropReason::Truncated)?;
        if common.kind != Kind::REQUEST {
            batch.peers += 1;
            return self.control(now, datagram, outbox);
        }
        let (_, body) = wire::open(bytes)?;
        let (header, _) = RequestHeader::ref_from_prefix(bytes).map_err(|_| DropReason::Truncated)?;
        let body =
            body.get(size_of::<RequestHeader>() - size_of::<Common>()..).ok_or(DropReason::Truncated)?;
        let verdict = match self.sessions.admit(now, header, bytes.len(), &peer.addr, peer.is_stream()) {
            Ok(verdict) => verdict,
            Err(DropReason::UnknownSession) => {
                batch.peers += 1;
                self.disown(peer, common, bytes.len(), outbox);
                return Err(DropReason::UnknownSession);
            }
            Err(reason) => return Err(reason),
        };
        let start = batch.lookups.len();
        let task = match verdict {
            Verdict::Replay if !(is_active(Mutant::AddRepeated) && has_add(header, body)) => Task::Replay,
            Verdict::Replay | Verdict::Execute => match self.collect(header, body, batch) {
                Ok(task) => task,
                Err(reason) => {
                    batch.lookups.truncate(start);
                    return Err(reason);
                }
            },
        };
        self.sessions.occupy(header);
        if matches!(task, Task::Refuse(_)) {
            batch.lookups.truncate(start);
        }
        let lookups_end = batch.lookups.len();
        batch.push(Request { header, body, peer, task, lookups_end });
        Ok(())
    }

    /// Hashes a request's operations into the batch.
    fn collect<'a>(
        &self,
        header: &RequestHeader,
        body: &'a [u8],
        batch: &mut Batch<'a>,
    ) -> Result<Task, DropReason> {
        let read_only = header.common.flags.contains(Flags::READ_ONLY);
        if header.count == 0 {
            return Err(DropReason::Malformed);
        }
        let first = batch.lookups.len();
        if header.common.flags.contains(Flags::TRANSFER) {
            return self.collect_steps(header, body, batch);
        }
        let mut owned = header.epoch.get() == self.cluster.spec().epoch();
        if read_only {
            for key in Gets::new(body, header.count) {
                owned &= self.look_up(key?, batch);
            }
        } else {
            for operation in Operations::new(body, header.count, false) {
                owned &= self.look_up(operation?.key, batch);
            }
        }
        Ok(match (owned, read_only) {
            (false, _) => Task::Refuse(self.misdirected(header, &batch.lookups[first..])),
            (true, true) => Task::Read,
            (true, false) => Task::Write,
        })
    }

    /// Checks the steps of transfers, and hashes the keys of ranges into the batch.
    #[cold]
    fn collect_steps<'a>(
        &self,
        header: &RequestHeader,
        body: &'a [u8],
        batch: &mut Batch<'a>,
    ) -> Result<Task, DropReason> {
        let first = batch.lookups.len();
        let mut owned = header.epoch.get() == self.cluster.spec().epoch();
        if !header.common.flags.contains(Flags::READ_ONLY) {
            Pieces::new(body, header.count).try_for_each(|piece| piece.map(|_| ()))?;
            return Ok(if owned { Task::Stage } else { Task::Refuse(self.misdirected(header, &[])) });
        }
        if usize::from(header.count) > REPLY_DATAGRAMS_MAX {
            return Err(DropReason::Malformed);
        }
        for range in Ranges::new(body, header.count) {
            owned &= self.look_up(range?.key, batch);
        }
        Ok(if owned { Task::Ranges } else { Task::Refuse(self.misdirected(header, &batch.lookups[first..])) })
    }

    /// Why this core does not execute a request. Who goes by another map is told so, whoever owns the keys: maps of two
    /// epochs give some keys two owners.
    #[cold]
    fn misdirected(&self, header: &RequestHeader, lookups: &[Lookup<'_>]) -> Reason {
        let epoch = self.cluster.spec().epoch();
        let is_ours = |lookup: &Lookup<'_>| self.cluster.owns(Partition::of(key_hash(lookup.key)));
        if header.epoch.get() == epoch && lookups.iter().all(is_ours) {
            Reason::WrongCore
        } else {
            Reason::Moved { epoch }
        }
    }

    /// Hashes a key into the batch and sets its bucket on its way; returns whether the key belongs to this core.
    #[inline(always)]
    fn look_up<'a>(&self, key: Key<'a>, batch: &mut Batch<'a>) -> bool {
        let hash = self.store.hash(key);
        let probe = self.store.prefetch_bucket(hash);
        batch.lookups.push(Lookup { key, hash, probe });
        self.share.as_ref().is_none_or(|share| share.has(Partition::of(key_hash(key))))
    }

    /// Finds all items of the batch, whose buckets are on their way since they were hashed, and sets the items' lines
    /// on their way.
    fn prefetch(&mut self, batch: &mut Batch<'_>) {
        for lookup in &mut batch.lookups {
            lookup.probe = self.store.probe(lookup.hash, lookup.probe);
        }
    }

    /// Executes the batch in order and writes the replies. Nothing else touches keys.
    fn answer(&mut self, batch: &Batch<'_>, queue_delay: u8, outbox: &mut Outbox) {
        let share = self.sessions.share();
        let mut start = 0;
        for request in &batch.requests {
            let lookups = &batch.lookups[start..request.lookups_end];
            start = request.lookups_end;
            if request.task == Task::Replay && !self.sessions.can_replay(request.header) {
                // A newer request of the slot is in this batch: nobody waits for the older one any more.
                self.drops.count(DropReason::Stale);
                continue;
            }
            let terms = self.sessions.reply_terms(request.header, share);
            let reply = Reply {
                header: ReplyHeader {
                    common: Common {
                        kind: Kind::REPLY,
                        flags: terms.flags.with(extras(request.header)),
                        ..request.header.common
                    },
                    seq: request.header.seq,
                    first: 0,
                    count: 0,
                    credit: terms.credit,
                    queue_delay,
                },
                peer: request.peer,
                datagram_len: terms.datagram_len,
            };
            match request.task {
                Task::Read => self.read(lookups, &reply, outbox),
                Task::Write => {
                    self.write(request, lookups);
                    self.reply_kept(request.header, &reply, outbox);
                    if is_active(Mutant::RefusalNotRecorded) {
                        self.forget_refused(request.header);
                    }
                }
                Task::Ranges => self.read_ranges(request, lookups, &reply, outbox),
                Task::Stage => self.stage(request, &reply, outbox),
                Task::Replay => {
                    self.counters.replays += 1;
                    self.reply_kept(request.header, &reply, outbox);
                }
                Task::Refuse(reason) => self.refuse(request.header, reason, &reply, outbox),
            }
        }
    }

    /// Answers gets, in as many datagrams as their values take.
    fn read(&mut self, lookups: &[Lookup<'_>], reply: &Reply<'_>, outbox: &mut Outbox) {
        self.counters.requests += 1;
        self.counters.gets += lookups.len() as u64;
        let mut left = lookups;
        let mut first = 0;
        for datagram in 1..=REPLY_DATAGRAMS_MAX {
            let slot = outbox.begin(reply.peer, DATAGRAM_LEN_MAX).expect("the batch was sized by the room");
            let mut builder = reply.builder(slot.bytes);
            // The last datagram must have a word on every operation that is left.
            let is_last = datagram == REPLY_DATAGRAMS_MAX;
            (left, builder) = match (is_last, reply.has(Flags::LIFETIMES), reply.has(Flags::VERSIONS)) {
                (true, _, _) => self.fill_last(left, builder),
                (false, true, _) => self.fill_mortal(left, builder),
                (false, false, false) => self.fill::<false>(left, builder),
                (false, false, true) => self.fill::<true>(left, builder),
            };
            let count = builder.count();
            let len = builder.finish(ReplyHeader { first, ..reply.header }, slot.segment_len);
            outbox.commit(len);
            if left.is_empty() {
                break;
            }
            first += count;
        }
    }

    /// Copies values into a datagram until one does not fit; returns the look-ups that are left.
    ///
    /// Kept apart from the rest of the way so that its few variables stay in registers: this loop is where a core spends
    /// most of its own time.
    #[inline(never)]
    fn fill<'l, 'k, 'o, const VERSIONS: bool>(
        &mut self,
        lookups: &'l [Lookup<'k>],
        mut builder: ReplyBuilder<'o>,
    ) -> (&'l [Lookup<'k>], ReplyBuilder<'o>) {
        let mut left = lookups;
        let mut shortest = usize::MAX;
        let mut misses = 0;
        let mut at_long = false;
        while let Some((lookup, behind)) = left.split_first() {
            // A write earlier in the batch may have moved the item: then this looks again.
            let found = self.store.get_probed(lookup.key, lookup.hash, lookup.probe);
            let (result, version) = self.result_of(found);
            let room = builder.room();
            if !builder.push_as::<VERSIONS>(result, version) {
                at_long = found.is_some_and(|found| found.value.len() > builder.value_len_max());
                break;
            }
            if found.is_none() {
                misses += 1;
            }
            left = behind;
            shortest = shortest.min(room - builder.room());
            if builder.room() < shortest {
                // The next value is hardly shorter than all before it: it need not be looked at twice.
                break;
            }
        }
        self.counters.hits += (lookups.len() - left.len()) as u64 - misses;
        if at_long { self.fill_from_long::<VERSIONS>(left, builder) } else { (left, builder) }
    }

    /// The same for look-ups of which the first finds a value that is too long for any datagram. Only here does anybody
    /// else write to the builder, so that in the loop above it is not in memory.
    #[cold]
    #[inline(never)]
    fn fill_from_long<'l, 'k, 'o, const VERSIONS: bool>(
        &mut self,
        lookups: &'l [Lookup<'k>],
        mut builder: ReplyBuilder<'o>,
    ) -> (&'l [Lookup<'k>], ReplyBuilder<'o>) {
        let Some((lookup, left)) = lookups.split_first() else { return (lookups, builder) };
        let found = self.store.get_probed(lookup.key, lookup.hash, lookup.probe);
        let (_, version) = self.result_of(found);
        if !push_long(&mut builder, found, Meta { version, ttl_ms: None }) {
            return (lookups, builder);
        }
        self.counters.hits += 1;
        self.fill::<VERSIONS>(left, builder)
    }

    /// The same with the time that each value has left to live. Who asks for that waits a little longer.
    #[cold]
    #[inline(never)]
    fn fill_mortal<'l, 'k, 'o>(
        &mut self,
        lookups: &'l [Lookup<'k>],
        mut builder: ReplyBuilder<'o>,
    ) -> (&'l [Lookup<'k>], ReplyBuilder<'o>) {
        let mut left = lookups;
        while let Some((lookup, behind)) = left.split_first() {
            let found = self.store.get_probed(lookup.key, lookup.hash, lookup.probe);
            let (result, meta) = self.mortal_result_of(found);
            if !builder.push(result, meta) && !push_long(&mut builder, found, meta) {
                break;
            }
            self.counters.hits += u64::from(found.is_some());
            left = behind;
        }
        (left, builder)
    }

    /// The same for the last datagram that a reply may have: values that do not fit any more are refused.
    #[cold]
    fn fill_last<'l, 'k, 'o>(
        &mut self,
        lookups: &'l [Lookup<'k>],
        mut builder: ReplyBuilder<'o>,
    ) -> (&'l [Lookup<'k>], ReplyBuilder<'o>) {
        for (lookup, left) in lookups.iter().zip((0..lookups.len()).rev()) {
            let found = self.store.get_probed(lookup.key, lookup.hash, lookup.probe);
            let (result, meta) = self.mortal_result_of(found);
            if builder.fits(&result, left) {
                self.counters.hits += u64::from(found.is_some());
                assert!(builder.push(result, meta), "it fits");
            } else if builder.fits_long(left) && push_long(&mut builder, found, meta) {
                self.counters.hits += 1;
            } else if !builder.push(OpResult::NotExecuted(Reason::ReplyFull), Meta::default()) {
                break; // More operations than a datagram has words for: the client asks for the rest again.
            }
        }
        (&[], builder)
    }

    /// The result of a get and its version.
    #[inline(always)]
    fn result_of<'s>(&self, found: Option<Found<'s>>) -> (OpResult<'s>, u64) {
        match found {
            Some(Found { value, version, .. }) => (OpResult::Value(value), version),
            None => (OpResult::NotFound, self.store.version()),
        }
    }

    /// The result of a get with all that can be told beside it.
    #[cold]
    fn mortal_result_of<'s>(&self, found: Option<Found<'s>>) -> (OpResult<'s>, Meta) {
        let (result, version) = self.result_of(found);
        (result, Meta { version, ttl_ms: found.and_then(|found| self.store.ttl_ms(&found)) })
    }

    /// Answers ranges of long values.
    #[cold]
    fn read_ranges(
        &mut self,
        request: &Request<'_>,
        lookups: &[Lookup<'_>],
        reply: &Reply<'_>,
        outbox: &mut Outbox,
    ) {
        self.counters.requests += 1;
        let ranges = Ranges::new(request.body, request.header.count);
        let mut left = ranges.zip(lookups).peekable();
        let mut first = 0;
        while left.peek().is_some() {
            let slot = outbox.begin(reply.peer, DATAGRAM_LEN_MAX).expect("the batch was sized by the room");
            let mut builder = reply.builder(slot.bytes);
            while let Some((range, lookup)) = left.peek() {
                let range = range.expect("the request was parsed when it joined the batch");
                let found = self.store.get_probed(lookup.key, lookup.hash, lookup.probe);
                let (_, Meta { version, ttl_ms }) = self.mortal_result_of(found);
                // The pieces of a value that was asked about before need not tell it again.
                let meta = Meta { version, ttl_ms: ttl_ms.filter(|_| range.version == 0) };
                let result = range_of(found, &range, builder.value_len_max());
                let pushed = match result {
                    Some(result) => builder.push(result, meta),
                    None => push_long(&mut builder, found, meta),
                };
                if !pushed {
                    break; // It fits the next datagram: nothing is longer than an empty one has room for.
                }
                left.next();
            }
            let count = builder.count();
            let len = builder.finish(ReplyHeader { first, ..reply.header }, slot.segment_len);
            outbox.commit(len);
            first += count;
        }
    }

    /// Takes pieces of long values in; nobody sees them before they are committed.
    #[cold]
    fn stage(&mut self, request: &Request<'_>, reply: &Reply<'_>, outbox: &mut Outbox) {
        self.counters.requests += 1;
        let slot = outbox.begin(reply.peer, DATAGRAM_LEN_MAX).expect("the batch was sized by the room");
        let mut builder = reply.builder(slot.bytes);
        for piece in Pieces::new(request.body, request.header.count) {
            let taken = match piece.expect("the request was parsed when it joined the batch") {
                Piece::Begin { number, len } => self.sessions.begin(request.header, number, len),
                Piece::Part { number, offset, bytes } => {
                    self.sessions.part(request.header, number, offset, bytes)
                }
            };
            let result = taken.map_or_else(OpResult::NotExecuted, |()| OpResult::Done);
            if !builder.push(result, Meta::default()) {
                break; // As in `reply_kept`.
            }
        }
        let len = builder.finish(reply.header, slot.segment_len);
        outbox.commit(len);
    }

    /// Executes writes in order, keeping their results in the slot.
    fn write(&mut self, request: &Request<'_>, lookups: &[Lookup<'_>]) {
        self.counters.requests += 1;
        self.sessions.slot(request.header).begin(self.store.version());
        let operations = Operations::new(request.body, request.header.count, false);
        for (operation, lookup) in operations.zip(lookups) {
            let operation = operation.expect("the request was parsed when it joined the batch");
            let result = match operation.kind {
                OperationKind::Put => self.put(lookup, operation.value),
                OperationKind::Delete => {
                    self.counters.deletes += 1;
                    match self.store.delete(lookup.key, lookup.hash) {
                        Some(_) => OpResult::Done,
                        None => OpResult::NotFound,
                    }
                }
                OperationKind::PutOn(terms) => {
                    self.put_on(request.header, lookup, operation.value, terms);
                    continue;
                }
                OperationKind::Commit(number, terms) => match self.sessions.take(request.header, number) {
                    Some(value) => {
                        self.put_on(request.header, lookup, &value, terms);
                        continue;
                    }
                    None => OpResult::NotExecuted(Reason::NotStaged),
                },
                OperationKind::Add { delta, ttl_ms } => {
                    self.add(request.header, lookup, delta, ttl_ms);
                    continue;
                }
                OperationKind::Get => unreachable!("a request of writes holds no get: Operations::new"),
            };
            self.sessions.slot(request.header).keep(&result);
        }
    }

    #[inline]
    fn put(&mut self, lookup: &Lookup<'_>, value: &[u8]) -> OpResult<'static> {
        self.counters.puts += 1;
        if is_active(Mutant::LostWrite) && self.counters.puts.is_multiple_of(16) {
            return OpResult::Done;
        }
        match self.store.put_probed(lookup.key, lookup.hash, lookup.probe, value, Terms::NONE) {
            Ok(_) => OpResult::Done,
            Err(refusal) => self.refused(refusal).0,
        }
    }

    /// Stores a value on terms and keeps the result.
    #[inline(never)]
    fn put_on(&mut self, header: &RequestHeader, lookup: &Lookup<'_>, value: &[u8], terms: Terms) {
        self.counters.puts += 1;
        let terms =
            if is_active(Mutant::ConditionIgnored) { Terms::NONE.for_ms(terms.ttl_ms) } else { terms };
        match self.store.put_probed(lookup.key, lookup.hash, lookup.probe, value, terms) {
            Ok(_) => self.sessions.slot(header).keep(&OpResult::Done),
            Err(refusal) => self.keep_refusal(header, refusal),
        }
    }

    /// Adds to a number and keeps what it was before.
    #[inline(never)]
    fn add(&mut self, header: &RequestHeader, lookup: &Lookup<'_>, delta: u64, ttl_ms: Option<NonZeroU32>) {
        self.counters.adds += 1;
        if !self.sessions.has_room_for_number(header) {
            return self.keep_refusal(header, Refusal::NoSpace);
        }
        match self.store.add(lookup.key, lookup.hash, delta, ttl_ms) {
            Ok(sum) => self.sessions.keep_sum(header, sum.former),
            Err(refusal) => self.keep_refusal(header, refusal),
        }
    }

    /// Keeps the result of a write that had no effect, with the version that its key has if that was asked for.
    #[cold]
    fn keep_refusal(&mut self, header: &RequestHeader, refusal: Refusal) {
        match self.refused(refusal) {
            (OpResult::NotExecuted(reason), Some(version))
                if header.common.flags.contains(Flags::VERSIONS) =>
            {
                self.sessions.keep_refusal(header, reason, version);
            }
            (result, _) => self.sessions.slot(header).keep(&result),
        }
    }

    /// The result of a write that had no effect, and the version of what was in its way.
    #[cold]
    fn refused(&mut self, refusal: Refusal) -> (OpResult<'static>, Option<u64>) {
        let (result, version) = match refusal {
            Refusal::NoSpace => {
                self.counters.no_space += 1;
                return (OpResult::NotExecuted(Reason::NoSpace), None);
            }
            Refusal::NotFound => (OpResult::NotFound, None),
            Refusal::Exists(version) => (OpResult::NotExecuted(Reason::Exists), Some(version)),
            Refusal::Changed(version) => (OpResult::NotExecuted(Reason::Changed), Some(version)),
            Refusal::NotANumber(version) => (OpResult::NotExecuted(Reason::NotANumber), Some(version)),
        };
        self.counters.conditions_failed += 1;
        (result, version)
    }

    /// Forgets a write all of which was refused.
    #[cold]
    fn forget_refused(&mut self, header: &RequestHeader) {
        if self.sessions.kept(header).all(|(result, _)| matches!(result, OpResult::NotExecuted(_))) {
            self.sessions.slot(header).forget();
        }
    }

    /// Answers a write, for the first time or again, with what its slot has kept.
    fn reply_kept(&mut self, header: &RequestHeader, reply: &Reply<'_>, outbox: &mut Outbox) {
        let slot = outbox.begin(reply.peer, DATAGRAM_LEN_MAX).expect("the batch was sized by the room");
        let mut builder = reply.builder(slot.bytes);
        for (result, version) in self.sessions.kept(header) {
            if !builder.push(result, Meta { version, ttl_ms: None }) {
                break; // A client keeps to what fits one datagram; one that does not is not told the rest.
            }
        }
        let len = builder.finish(reply.header, slot.segment_len);
        outbox.commit(len);
    }

    /// Refuses all operations of a request for good; a write's slot keeps the refusal, so that no late duplicate is
    /// executed after the client was told.
    fn refuse(&mut self, header: &RequestHeader, reason: Reason, reply: &Reply<'_>, outbox: &mut Outbox) {
        self.counters.requests_refused += 1;
        *match reason {
            Reason::Moved { .. } => &mut self.counters.moved,
            _ => &mut self.counters.wrong_core,
        } += u64::from(header.count);
        let result = OpResult::NotExecuted(reason);
        if is_write(header) {
            let slot = self.sessions.slot(header);
            slot.begin(self.store.version());
            (0..header.count).for_each(|_| slot.keep(&result));
            return self.reply_kept(header, reply, outbox);
        }
        let slot = outbox.begin(reply.peer, DATAGRAM_LEN_MAX).expect("the batch was sized by the room");
        let mut builder = reply.builder(slot.bytes);
        for _ in 0..header.count {
            if !builder.push(result, Meta::default()) {
                break; // As in `reply_kept`.
            }
        }
        let len = builder.finish(reply.header, slot.segment_len);
        outbox.commit(len);
    }

    /// Answers what is not a request: handshakes, pings and questions for statistics.
    fn control(
        &mut self,
        now: Instant,
        datagram: Datagram<'_>,
        outbox: &mut Outbox,
    ) -> Result<(), DropReason> {
        let Datagram { peer, bytes } = datagram;
        let (common, body) = wire::open(bytes)?;
        // As good as lost on the way: the client asks again.
        let slot = outbox.begin(peer, DATAGRAM_LEN_MAX).ok_or(DropReason::NoRoom)?;
        let len = match common.kind {
            Kind::PING | Kind::STATS | Kind::MAP => {
                if body.len() < size_of::<Ping>() - size_of::<Common>() {
                    return Err(DropReason::Truncated);
                }
                let (ping, _) = Ping::ref_from_prefix(bytes).map_err(|_| DropReason::Truncated)?;
                match self.sessions.attend(now, common, &peer.addr, peer.is_stream()) {
                    Ok(flags) if common.kind == Kind::PING => reply_with(
                        &Ping { common: Common { kind: Kind::PONG, flags, ..*common }, ..*ping },
                        slot.bytes,
                    ),
                    Ok(flags) if common.kind == Kind::MAP => {
                        let common = Common { kind: Kind::MAP_PAGE, flags, ..*common };
                        let len = self.cluster.write_page(common, ping.echo, slot.bytes);
                        sealed_len(flags, len, slot.bytes)
                    }
                    Ok(flags) => {
                        // What was executed before the question is in the answer.
                        self.publish_own();
                        let common = Common { kind: Kind::STATISTICS, flags, ..*common };
                        reply_with(
                            &Statistics {
                                common,
                                echo: ping.echo,
                                values: self.published.values().map(Into::into),
                            },
                            slot.bytes,
                        )
                    }
                    Err(DropReason::UnknownSession) => {
                        self.disown(peer, common, bytes.len(), outbox);
                        return Err(DropReason::UnknownSession);
                    }
                    Err(reason) => return Err(reason),
                }
            }
            _ => match self.sessions.control(now, bytes, &peer.addr, peer.is_stream(), slot.bytes)? {
                Control::Answer(len) => len,
                Control::Done => {
                    self.counters.controls += 1;
                    return Ok(());
                }
            },
        };
        self.counters.controls += 1;
        outbox.commit(len);
        Ok(())
    }

    /// Tells a client that its session is not known.
    fn disown(&self, peer: &Peer, common: &Common, question_len: usize, outbox: &mut Outbox) {
        if let Some(slot) = outbox.begin(peer, DATAGRAM_LEN_MAX)
            && let Some(len) = self.sessions.no_session(common, question_len, slot.bytes)
        {
            outbox.commit(len);
        }
    }

    /// Publishes the counters, together with those of the core's ports.
    pub fn publish(&mut self, ports: &linerate_dataplane::PortCounters, uptime: std::time::Duration) {
        self.publish_own();
        self.published.store_system(ports, uptime);
    }

    fn publish_own(&self) {
        self.published.store_worker(&self.counters, &self.drops, &self.sessions, &self.store);
    }
}

/// Where a reply goes and how its header begins.
struct Reply<'a> {
    header: ReplyHeader,
    peer: &'a Peer,
    /// Longest datagram that gets there.
    datagram_len: usize,
}

impl Reply<'_> {
    #[inline]
    fn builder<'o>(&self, bytes: &'o mut [u8]) -> ReplyBuilder<'o> {
        ReplyBuilder::new(bytes, self.datagram_len, self.header.common.flags)
    }

    #[inline]
    fn has(&self, flags: Flags) -> bool {
        self.header.common.flags.contains(flags)
    }
}

/// Tells of a found value that is too long for any datagram; `false` when it is not, or there is no room even for that.
#[cold]
fn push_long(builder: &mut ReplyBuilder<'_>, found: Option<Found<'_>>, meta: Meta) -> bool {
    let Some(Found { value, version, .. }) =
        found.filter(|found| found.value.len() > builder.value_len_max())
    else {
        return false;
    };
    let long = LongValue { version: version.into(), len: (value.len() as u32).into() };
    builder.push(OpResult::Long(&long), meta)
}

/// The answer to a range; `None` when it asks for whatever there is and that is too long for a datagram.
fn range_of<'s>(found: Option<Found<'s>>, range: &Range<'_>, len_max: usize) -> Option<OpResult<'s>> {
    let Some(Found { value, version, .. }) = found else { return Some(OpResult::NotFound) };
    if range.version == 0 {
        return (value.len() <= len_max).then_some(OpResult::Value(value));
    }
    let start = range.offset as usize;
    let end = (start + usize::from(range.len).min(len_max)).min(value.len());
    let bytes =
        value.get(start..end).filter(|_| version == range.version || is_active(Mutant::RangeOfAnyVersion));
    Some(bytes.map_or(OpResult::NotExecuted(Reason::Changed), OpResult::Value))
}

/// Flags of what the request wants to be told beside its results.
const fn extras(header: &RequestHeader) -> Flags {
    let flags = header.common.flags;
    let versions = Flags::VERSIONS.when(flags.contains(Flags::VERSIONS));
    versions.with(Flags::LIFETIMES.when(flags.contains(Flags::LIFETIMES)))
}

/// Whether a write has an add among its operations.
fn has_add(header: &RequestHeader, body: &[u8]) -> bool {
    let mut operations = Operations::new(body, header.count, false);
    operations.any(|operation| operation.is_ok_and(|it| matches!(it.kind, OperationKind::Add { .. })))
}

/// Whether a request is one whose results its slot keeps.
const fn is_write(header: &RequestHeader) -> bool {
    !header.common.flags.contains(Flags::READ_ONLY) && !header.common.flags.contains(Flags::TRANSFER)
}

/// Writes a control message, with the trailer if its flags say so, and returns the datagram's length.
fn reply_with<M: IntoBytes + zerocopy::Immutable>(message: &M, out: &mut [u8]) -> usize {
    out[..size_of::<M>()].copy_from_slice(message.as_bytes());
    sealed_len(out_flags(message), size_of::<M>(), out)
}

/// Writes the trailer behind a message of `len` bytes if its flags say so, and returns the datagram's length.
fn sealed_len(flags: Flags, len: usize, out: &mut [u8]) -> usize {
    if !flags.contains(Flags::CHECKSUM) {
        return len;
    }
    wire::write_trailer(&mut out[..len + TRAILER_LEN]);
    len + TRAILER_LEN
}

/// The flags in a message's common part.
fn out_flags<M: IntoBytes + zerocopy::Immutable>(message: &M) -> Flags {
    Flags(message.as_bytes()[std::mem::offset_of!(Common, flags)])
}

/// Whether a datagram may end a session, whose slots the requests before it must find when they are executed. An OPEN
/// ends the older session of its client.
fn may_end_session(datagram: Datagram<'_>) -> bool {
    datagram.bytes.first().is_some_and(|&kind| kind == Kind::CLOSE.0 || kind == Kind::OPEN.0)
}

/// Time since arrival in the unit of the reply header: 4 µs.
fn queue_delay(arrived: Instant, now: Instant) -> u8 {
    (now.since(arrived).as_micros() / 4).min(u8::MAX.into()) as u8
}
