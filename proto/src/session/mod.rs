//! What a server core keeps of its clients: sessions, and in each the slots that make requests exactly-once.
//!
//! A session is minted, used and expired on one core, so nothing here is shared. Nothing is kept for a source that has
//! not proven its address with a cookie, and a session is never created by a request that merely names it.
//!
//! A request goes through here like this: [`admit`](SessionTable::admit) decides by its number what it deserves;
//! [`occupy`](SessionTable::occupy) makes it the last of its slot once it is known to be well-formed;
//! [`slot`](SessionTable::slot) keeps the results of a write; [`reply_terms`](SessionTable::reply_terms) says how to
//! answer.

mod budget;
mod cookie;
mod credit;
mod handshake;
mod numbers;
mod slot;
mod staging;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use self::{
    budget::{Budget, Source},
    cookie::Keys,
    credit::{Credits, Grant},
    numbers::{NUMBERS_MAX, Numbers},
    slot::Age,
    staging::{Staging, StagingMemory},
};
pub use self::{
    credit::{CREDIT_LIFETIME, CREDIT_UNLIMITED},
    slot::Slot,
    staging::{PART_UNIT, STAGED_LEN_MAX, TRANSFER_IDLE_MAX, TRANSFERS_MAX, part_len},
};
use crate::{
    drops::DropReason,
    mutants::{Mutant, is_active},
    time::Instant,
    wire::{
        Common, DATAGRAM_LEN_MAX, DATAGRAM_LEN_MIN, Flags, Kind, NoSession, Nonce, OpResult, Reason,
        RequestHeader, TRAILER_LEN, open, seal,
    },
};

/// What a session occupies beside its slots. The list is at least half full while it grows, and hash tables 7/16, hence the
/// factor.
const SESSION_LEN: usize = 2 * size_of::<Option<Session>>()
    + 2 * size_of::<((IpAddr, u64), u32)>()
    + 2 * size_of::<(Source, SourceUse)>();

/// When room for a session may have appeared: leases are looked at once a second.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How often sessions are looked at that have fallen silent: often enough to give their credits to others, and seldom
/// enough to cost nothing.
const SWEEP_INTERVAL: Duration = Duration::from_millis(20);

/// What a table needs to know about its core, fixed at start.
#[derive(Clone, Copy, Debug)]
pub struct SessionConfig {
    /// Random per boot, the same on all cores of a server: cookies and tokens derive from it.
    pub secret: [u8; 16],
    /// Random number of this run of the server.
    pub boot_id: u64,
    /// Changes whenever the contents of the store are lost.
    pub data_epoch: u64,
    /// Port of core 0.
    pub base_port: u16,
    /// Cores of this node.
    pub cores: u8,
    /// This core.
    pub core: u8,
    /// Epoch of the cluster map; 0 for a server that is alone.
    pub epoch: u16,
    /// Digest of the cluster map.
    pub map_digest: u64,
    /// Id of this node in the cluster map.
    pub node_id: u64,
    /// Cap on the memory of all sessions in bytes, without what is staged.
    pub memory_len_max: usize,
    /// Cap on the memory of long values that are on their way in, in bytes. One value takes up to 1 MiB and 4 KiB.
    pub staging_len_max: usize,
    /// A session ends after this long without a word.
    pub lease: Duration,
    /// Full datagrams that the receive queue holds; shared out as credits. `usize::MAX` when nothing limits them.
    pub queue_datagrams: usize,
}

#[derive(Debug)]
struct Session {
    token: u64,
    nonce: Nonce,
    /// The address that opened it. A session of a datagram port is bound to it; one opened over a connection may be
    /// attached to from any connection that knows its token.
    addr: SocketAddr,
    stream: bool,
    checksum: bool,
    /// Whether anything was heard in it, which means that its client has got the OPENED.
    used: bool,
    /// Longest datagram to send: the shortest of the opens, because it is not known whose answer the client has got.
    datagram_len: u16,
    /// Longest request to take: the longest of the opens.
    request_len_max: u16,
    last_heard: Instant,
    grant: Grant,
    slots: Box<[Slot]>,
    numbers: Numbers,
    staging: Staging,
}

/// What the sessions of one source occupy together.
#[derive(Clone, Copy, Debug, Default)]
struct SourceUse {
    /// Sessions that take part in the receive queue of datagrams.
    queued: usize,
    memory_len: usize,
    /// Of long values on their way in, in bytes.
    staged_len: usize,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not seen before, or without effects that could not be repeated: execute it.
    Execute,
    /// A write that was executed before: answer from its slot.
    Replay,
}

/// How to answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Whether the session wants checksums.
    pub flags: Flags,
    /// Requests that the client may have in flight from now on, 1..=255.
    pub credit: u8,
    /// Longest datagram that the session's path carries, in bytes.
    pub datagram_len: usize,
}

/// A message that needs nothing of the store, and is answered by the table itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Answered: this many bytes were written.
    Answer(usize),
    /// Needs no answer.
    Done,
}

/// All sessions of one core.
#[derive(Debug)]
pub struct SessionTable {
    config: SessionConfig,
    keys: Keys,
    sessions: Vec<Option<Session>>,
    free: Vec<u32>,
    /// The session of each client, who is an address and an id: another address with the same id is another client, so
    /// that nobody can end the session of a client elsewhere.
    by_client: HashMap<(IpAddr, u64), u32>,
    by_source: HashMap<Source, SourceUse>,
    hello_budget: Budget,
    open_budget: Budget,
    credits: Credits,
    staging_memory: StagingMemory,
    memory_len: usize,
    opened: u64,
    refused: u64,
    fenced: u64,
    next_sweep: Instant,
    next_expiry: Instant,
}

impl SessionTable {
    /// An empty table.
    ///
    /// # Panics
    /// When the lease is shorter than the second in which clients are told of it.
    #[must_use]
    pub fn new(config: SessionConfig) -> Self {
        assert!(config.lease >= Duration::from_secs(1), "lease of {:?}", config.lease);
        Self {
            config,
            keys: Keys { secret: config.secret, boot_id: config.boot_id, core: config.core },
            sessions: Vec::new(),
            free: Vec::new(),
            by_client: HashMap::new(),
            by_source: HashMap::new(),
            hello_budget: Budget::new(),
            open_budget: Budget::new(),
            credits: Credits::new(config.queue_datagrams),
            staging_memory: StagingMemory::new(config.staging_len_max),
            memory_len: 0,
            opened: 0,
            refused: 0,
            fenced: 0,
            next_sweep: Instant::default(),
            next_expiry: Instant::default(),
        }
    }

    // ---- requests ----

    /// Decides about a request of a datagram of `len` bytes by its slot, before anything of it is executed. Nothing is
    /// noted of it yet: [`occupy`](Self::occupy) does that.
    ///
    /// New is `seq` above the slot's last (gaps are legal: a client may give a number up); the same again is a replay
    /// for a write, and simply executed again for what may be repeated: reads, and pieces of long values; lower is a late
    /// duplicate.
    ///
    /// # Errors
    /// `UnknownSession`, `WrongPeer`, `Checksum`, `Oversized`, `Slot`, `Stale` or `Malformed`. Only `UnknownSession`
    /// deserves an answer.
    #[inline]
    pub fn admit(
        &mut self,
        now: Instant,
        header: &RequestHeader,
        len: usize,
        addr: &SocketAddr,
        stream: bool,
    ) -> Result<Verdict, DropReason> {
        let session = self.hear(now, &header.common, addr, stream)?;
        if len > usize::from(session.request_len_max) {
            return Err(DropReason::Oversized);
        }
        let slot = session.slots.get(header.common.slot as usize).ok_or(DropReason::Slot)?;
        match slot.age(header) {
            Age::New => Ok(Verdict::Execute),
            Age::Again if slot.writes() && !is_active(Mutant::NoDedup) => Ok(Verdict::Replay),
            Age::Again => Ok(Verdict::Execute),
            Age::Confused => Err(DropReason::Malformed),
            Age::Late => Err(DropReason::Stale),
        }
    }

    /// Makes an admitted request that is well-formed the last of its slot, before the next one is admitted. A request
    /// that is not new changes nothing.
    #[inline]
    pub fn occupy(&mut self, header: &RequestHeader) {
        let Some(session) = named(&mut self.sessions, &header.common) else { return };
        let slot = &mut session.slots[header.common.slot as usize];
        if slot.age(header) != Age::New {
            return;
        }
        if let Some(round) = slot.answered_in() {
            // Whoever sends a new request in a slot has heard the answer to the one before.
            self.credits.confirm(&mut session.grant, round);
        }
        slot.occupy(header);
    }

    /// The slot of a request that was admitted.
    ///
    /// # Panics
    /// When it was not, or its session has ended since.
    #[inline]
    pub fn slot(&mut self, header: &RequestHeader) -> &mut Slot {
        let session = named(&mut self.sessions, &header.common).expect("session was admitted");
        &mut session.slots[header.common.slot as usize]
    }

    /// Whether the slot of a replay still has the answer: a newer request may have been admitted to the slot since, and
    /// then nobody waits for this one any more.
    #[inline]
    #[must_use]
    pub fn can_replay(&mut self, header: &RequestHeader) -> bool {
        named(&mut self.sessions, &header.common)
            .is_some_and(|session| session.slots[header.common.slot as usize].has_kept(header))
    }

    /// What each session may have in flight now, for [`reply_terms`](Self::reply_terms). It costs a division; one answer
    /// does for a batch.
    #[inline]
    #[must_use]
    pub fn share(&self) -> u8 {
        self.credits.share()
    }

    /// How to answer a request that was admitted. To be called once for each answer that is really sent.
    #[inline]
    pub fn reply_terms(&mut self, header: &RequestHeader, share: u8) -> Terms {
        let Some(session) = named(&mut self.sessions, &header.common) else {
            return Terms { flags: Flags::CHECKSUM, credit: 1, datagram_len: DATAGRAM_LEN_MIN };
        };
        let credit = self.credits.tell(&mut session.grant, share);
        session.slots[header.common.slot as usize].answer(header, session.grant.round());
        Terms {
            flags: Flags::CHECKSUM.when(session.checksum),
            credit,
            datagram_len: session.datagram_len.into(),
        }
    }

    // ---- results of writes ----

    /// What the slot of an admitted write keeps, each result with its version.
    ///
    /// # Panics
    /// As [`slot`](Self::slot).
    #[inline]
    pub fn kept(&mut self, header: &RequestHeader) -> impl Iterator<Item = (OpResult<'_>, u64)> {
        let session = named(&mut self.sessions, &header.common).expect("session was admitted");
        let slot = header.common.slot as usize;
        session.slots[slot].kept(session.numbers.of(slot), self.config.epoch)
    }

    /// Makes room to keep a result that comes with a number; `false` when there is none, in memory or in the reply. To be
    /// called before the operation has any effect.
    #[inline]
    pub fn has_room_for_number(&mut self, header: &RequestHeader) -> bool {
        let Some(session) = named(&mut self.sessions, &header.common) else { return false };
        let slot = header.common.slot as usize;
        session.slots[slot].number_count() < session.numbers.of(slot).len() || self.grow_numbers(header)
    }

    /// Keeps the next result, that of an add which found `former`.
    ///
    /// # Panics
    /// When there [is no room](Self::has_room_for_number), or as [`slot`](Self::slot).
    #[inline]
    pub fn keep_sum(&mut self, header: &RequestHeader, former: u64) {
        let session = named(&mut self.sessions, &header.common).expect("session was admitted");
        let slot = header.common.slot as usize;
        session.slots[slot].keep_sum(former, session.numbers.of_mut(slot));
    }

    /// Keeps the next result, a refusal that tells of the version that the key has. Without room for it, `NoSpace` is
    /// kept: nothing had an effect either way.
    pub fn keep_refusal(&mut self, header: &RequestHeader, reason: Reason, version: u64) {
        if !self.has_room_for_number(header) {
            self.slot(header).keep(&OpResult::NotExecuted(Reason::NoSpace));
            return;
        }
        let session = named(&mut self.sessions, &header.common).expect("session was admitted");
        let slot = header.common.slot as usize;
        session.slots[slot].keep_refusal(reason, version, session.numbers.of_mut(slot));
    }

    /// Gives a slot memory for the numbers of as many results as its request still lacks.
    #[cold]
    fn grow_numbers(&mut self, header: &RequestHeader) -> bool {
        let Some(session) = named(&mut self.sessions, &header.common) else { return false };
        let slot = &session.slots[header.common.slot as usize];
        let lacking = usize::from(header.count).saturating_sub(slot.count());
        let wanted = (slot.number_count() + lacking).min(NUMBERS_MAX);
        if wanted <= slot.number_count() {
            return false;
        }
        let ip = session.addr.ip();
        let usage = self.by_source.entry(Source::of(ip)).or_default();
        let all = self.config.memory_len_max.saturating_sub(self.memory_len);
        let room = all.min(source_room(&self.config, ip, usage.memory_len));
        let before = session.numbers.memory_len();
        let grown = session.numbers.grow(header.common.slot.into(), session.slots.len(), wanted, room);
        let more_len = session.numbers.memory_len() - before;
        self.memory_len += more_len;
        usage.memory_len += more_len;
        grown
    }

    // ---- long values ----

    /// Begins a transfer of a value of `total_len` bytes in the session of an admitted request. Again is done again.
    ///
    /// # Errors
    /// `NotStaged` when the number is 0 or not above the last begun before, the length is not 1..=1 MiB, or not that of before;
    /// `StagingFull` when there is no room now, for this session, its source or at all.
    pub fn begin(&mut self, header: &RequestHeader, transfer: u32, total_len: u32) -> Result<(), Reason> {
        let session = named(&mut self.sessions, &header.common).ok_or(Reason::NotStaged)?;
        let ip = session.addr.ip();
        let usage = self.by_source.entry(Source::of(ip)).or_default();
        let share = self.staging_memory.share(ip.to_canonical().is_loopback());
        let room = share.saturating_sub(usage.staged_len);
        let before = self.staging_memory.len();
        let begun =
            session.staging.begin(session.last_heard, transfer, total_len, room, &mut self.staging_memory);
        usage.staged_len += self.staging_memory.len() - before;
        begun
    }

    /// Takes a piece of a transfer's value. Again is done again.
    ///
    /// # Errors
    /// `NotStaged` when there is no such transfer (any more), or the piece does not fit it: `offset` is a multiple of
    /// [`PART_UNIT`], and so is the length unless the piece is the last.
    pub fn part(
        &mut self,
        header: &RequestHeader,
        transfer: u32,
        offset: u32,
        bytes: &[u8],
    ) -> Result<(), Reason> {
        let session = named(&mut self.sessions, &header.common).ok_or(Reason::NotStaged)?;
        session.staging.part(session.last_heard, transfer, offset, bytes)
    }

    /// Takes a value out whose pieces are all here, which ends the transfer.
    pub fn take(&mut self, header: &RequestHeader, transfer: u32) -> Option<Box<[u8]>> {
        let session = named(&mut self.sessions, &header.common)?;
        let before = self.staging_memory.len();
        let value = session.staging.take(transfer, &mut self.staging_memory)?;
        let usage = self.by_source.entry(Source::of(session.addr.ip())).or_default();
        usage.staged_len -= before - self.staging_memory.len();
        Some(value)
    }

    // ---- other messages ----

    /// Checks that a message other than a request comes from a living session, and returns the flags of its answer.
    ///
    /// # Errors
    /// As [`admit`](Self::admit), without the slot's.
    pub fn attend(
        &mut self,
        now: Instant,
        common: &Common,
        addr: &SocketAddr,
        stream: bool,
    ) -> Result<Flags, DropReason> {
        self.hear(now, common, addr, stream).map(|session| Flags::CHECKSUM.when(session.checksum))
    }

    /// Handles HELLO, OPEN and CLOSE. The answer, if any, is written to `out` and never longer than the question.
    ///
    /// OPEN and CLOSE may end a session: requests admitted before are to be executed first.
    ///
    /// # Errors
    /// The reason for which the message is dropped, `Kind` if it is none of these.
    ///
    /// # Panics
    /// When `out` is shorter than [`DATAGRAM_LEN_MAX`].
    pub fn control(
        &mut self,
        now: Instant,
        datagram: &[u8],
        addr: &SocketAddr,
        stream: bool,
        out: &mut [u8],
    ) -> Result<Control, DropReason> {
        assert!(out.len() >= DATAGRAM_LEN_MAX, "room for an answer");
        let (common, _) = open(datagram)?;
        match common.kind {
            Kind::HELLO => self.hello(now, datagram, addr, out).map(Control::Answer),
            Kind::OPEN => self.open(now, datagram, addr, stream, out).map(Control::Answer),
            Kind::CLOSE => {
                self.hear(now, common, addr, stream)?;
                self.remove(common.session.get());
                Ok(Control::Done)
            }
            _ => Err(DropReason::Kind),
        }
    }

    /// Says that the session named by `common` is not known, or `None` when the question was shorter than that answer.
    pub fn no_session(&self, common: &Common, question_len: usize, out: &mut [u8]) -> Option<usize> {
        if question_len < size_of::<NoSession>() + TRAILER_LEN {
            return None;
        }
        let common = Common { kind: Kind::NO_SESSION, flags: Flags::CHECKSUM, ..*common };
        Some(seal(
            &NoSession {
                common,
                boot_id: self.config.boot_id.into(),
                data_epoch: self.config.data_epoch.into(),
            },
            out,
        ))
    }

    // ---- time ----

    /// Lets time act: sessions whose lease has run out end, credits that nobody uses come back, and what was never
    /// completed is forgotten. Cheap when called often: it looks fifty times a second at most.
    pub fn expire(&mut self, now: Instant) {
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + SWEEP_INTERVAL;
        if self.credits.has_active() {
            for session in self.sessions.iter_mut().flatten() {
                self.credits.lapse(now, session.last_heard, &mut session.grant);
            }
        }
        if now < self.next_expiry {
            return;
        }
        self.next_expiry = now + RETRY_AFTER;
        for index in 0..self.sessions.len() {
            let Some(session) = &mut self.sessions[index] else { continue };
            if now.since(session.last_heard) > self.config.lease {
                if is_active(Mutant::LeaseForgetsSlots) {
                    session.slots.fill(Slot::EMPTY);
                    continue;
                }
                self.remove(index as u32);
            } else {
                let before = self.staging_memory.len();
                session.staging.expire(now, &mut self.staging_memory);
                let usage = self.by_source.entry(Source::of(session.addr.ip())).or_default();
                usage.staged_len -= before - self.staging_memory.len();
            }
        }
    }

    // ---- counters ----

    /// Sessions open now.
    #[inline]
    #[must_use]
    pub const fn count(&self) -> usize {
        self.sessions.len() - self.free.len()
    }

    /// Sessions opened so far.
    #[must_use]
    pub const fn opened(&self) -> u64 {
        self.opened
    }

    /// Requests for a session that were refused so far.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Sessions ended so far because their client has opened a newer one.
    #[must_use]
    pub const fn fenced(&self) -> u64 {
        self.fenced
    }

    /// Bytes that the sessions occupy, without what is staged.
    #[must_use]
    pub const fn memory_len(&self) -> usize {
        self.memory_len
    }

    /// Bytes that long values on their way in occupy.
    #[must_use]
    pub const fn staged_len(&self) -> usize {
        self.staging_memory.len()
    }

    /// Datagrams that all clients together may have in flight now: at most three quarters of the receive queue.
    #[must_use]
    pub const fn granted(&self) -> usize {
        self.credits.granted()
    }

    /// Looks a session up for any message that names one, and notes that it lives.
    ///
    /// # Errors
    /// `UnknownSession`, `WrongPeer` or `Checksum`.
    #[inline]
    fn hear(
        &mut self,
        now: Instant,
        common: &Common,
        addr: &SocketAddr,
        stream: bool,
    ) -> Result<&mut Session, DropReason> {
        if is_active(Mutant::ImplicitSession) {
            self.adopt(now, common, addr, stream);
        }
        let session = named(&mut self.sessions, common).ok_or(DropReason::UnknownSession)?;
        if !stream && (session.stream || session.addr != *addr) {
            return Err(DropReason::WrongPeer);
        }
        if session.checksum && !common.flags.contains(Flags::CHECKSUM) {
            return Err(DropReason::Checksum);
        }
        if stream && !session.checksum && !addr.ip().to_canonical().is_loopback() {
            // Doing without checksums was granted to loopback, not to whoever learns the token.
            return Err(DropReason::WrongPeer);
        }
        session.last_heard = now;
        session.used = true;
        self.credits.hear(&mut session.grant);
        Ok(session)
    }

    fn remove(&mut self, index: u32) {
        let Some(mut session) = self.sessions[index as usize].take() else { return };
        let len = session_len(session.slots.len()) + session.numbers.memory_len();
        self.memory_len -= len;
        self.credits.end(&session.grant);
        let staged_before = self.staging_memory.len();
        session.staging.clear(&mut self.staging_memory);
        self.by_client.remove(&handshake::client_of(&session.addr, &session.nonce));
        let source = Source::of(session.addr.ip());
        let usage = self.by_source.get_mut(&source).expect("each session is counted for its source");
        usage.memory_len -= len;
        usage.staged_len -= staged_before - self.staging_memory.len();
        usage.queued -= usize::from(!session.stream);
        if usage.memory_len == 0 {
            self.by_source.remove(&source);
        }
        self.free.push(index);
    }
}

/// The session that a message names by index and token.
#[inline]
fn named<'s>(sessions: &'s mut [Option<Session>], common: &Common) -> Option<&'s mut Session> {
    let session = sessions.get_mut(common.session.get() as usize)?.as_mut();
    session.filter(|session| session.token == common.token.get())
}

/// Memory that a source which occupies `memory_len` bytes may have beside them: half of all together, and in any case one
/// session. All programs of the server's own machine are one source, which may have all.
fn source_room(config: &SessionConfig, ip: IpAddr, memory_len: usize) -> usize {
    let share = if ip.to_canonical().is_loopback() {
        config.memory_len_max
    } else {
        (config.memory_len_max / 2).max(session_len(1))
    };
    share.saturating_sub(memory_len)
}

/// Memory that a session of so many slots takes, without numbers.
const fn session_len(slots: usize) -> usize {
    SESSION_LEN + slots * size_of::<Slot>()
}
