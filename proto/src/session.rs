//! What a server core keeps of its clients: sessions, and in each the slots that make requests exactly-once.
//!
//! A session is minted, used and expired on one core, so nothing here is shared. Nothing is kept for a source that has
//! not proven its address with a cookie, and a session is never created by a request that merely names it.

use std::{collections::HashMap, hash::Hasher, net::SocketAddr, time::Duration};

use siphasher::sip128::{Hasher128, SipHasher24};
use zerocopy::FromBytes;

use crate::{
    drops::DropReason,
    time::Instant,
    wire::{
        Common, Cookie, CookieReply, DATAGRAM_LEN_MAX, Flags, Hello, Kind, NoSession, Nonce, OPERATIONS_MAX,
        OpResult, Open, Opened, Reason, RefusalReason, Refused, RequestHeader, TRAILER_LEN, open, seal,
    },
};

/// Cookies are accepted in the period they were made in and in the next.
const COOKIE_PERIOD: Duration = Duration::from_secs(60);

/// Largest window: slots are numbered by one byte.
const WINDOW_MAX: u16 = 256;

/// What a session occupies beside its slots. Hash tables are at least 7/16 full while they grow, hence the factor.
const SESSION_LEN: usize = size_of::<Option<Session>>() + 2 * size_of::<(Opener, u32)>();

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
    /// Epoch of the cluster map.
    pub epoch: u16,
    /// Cap on the memory of all sessions in bytes.
    pub memory_len_max: usize,
    /// A session ends after this long without a word.
    pub lease: Duration,
    /// Full datagrams that the receive queue holds; shared out as credits.
    pub queue_datagrams: usize,
}

/// The last request of one slot, and its answer if it wrote.
#[derive(Clone, Debug)]
pub struct Slot {
    last_seq: u32,
    wrote: bool,
    /// Results kept of a write.
    count: u8,
    /// The shard's version before the write.
    base_version: u64,
    /// One result each: [`CODE_DONE`], [`CODE_NOT_FOUND`], or above that the reason of a refusal. Their versions follow
    /// from the base, because nobody else writes while a request is executed.
    codes: [u8; OPERATIONS_MAX],
}

const CODE_DONE: u8 = 0;
const CODE_NOT_FOUND: u8 = 1;
const CODE_REASON: u8 = 2;

impl Slot {
    const EMPTY: Self =
        Self { last_seq: 0, wrote: false, count: 0, base_version: 0, codes: [0; OPERATIONS_MAX] };

    /// Begins to keep the results of the write that this slot was admitted for, so that a duplicate is answered and not
    /// executed; the shard has had `base_version` writes so far.
    pub const fn begin(&mut self, base_version: u64) {
        self.base_version = base_version;
        self.count = 0;
    }

    /// Keeps the next result.
    ///
    /// # Panics
    /// When a write cannot have it, or it is the 256th.
    #[inline]
    pub fn keep(&mut self, result: &OpResult<'_>) {
        let code = match result {
            OpResult::Done => CODE_DONE,
            OpResult::NotFound => CODE_NOT_FOUND,
            OpResult::NotExecuted(reason) => CODE_REASON + reason.code() as u8,
            OpResult::Value(_) | OpResult::Long(_) => unreachable!("writes have no values"),
        };
        self.codes[usize::from(self.count)] = code;
        self.count += 1;
    }

    /// The results kept, each with its version.
    #[inline]
    pub fn kept(&self) -> impl Iterator<Item = (OpResult<'static>, u64)> + '_ {
        let mut version = self.base_version;
        self.codes[..usize::from(self.count)].iter().map(move |&code| match code {
            CODE_DONE => {
                version += 1;
                (OpResult::Done, version)
            }
            CODE_NOT_FOUND => (OpResult::NotFound, version),
            reason => (OpResult::NotExecuted(Reason::from_code((reason - CODE_REASON).into())), 0),
        })
    }
}

#[derive(Debug)]
struct Session {
    token: u64,
    nonce: Nonce,
    /// The address that opened it. A session of a datagram port is bound to it; one opened over a connection may be
    /// attached to from any connection that knows its token.
    addr: SocketAddr,
    checksum: bool,
    last_heard: Instant,
    slots: Box<[Slot]>,
}

/// Who opened a session, and in which attempt. The address belongs to it: whoever learns of a nonce can neither get its
/// session nor keep it from its owner, and a client that reconnects in the midst of a handshake gets a session too.
type Opener = (SocketAddr, Nonce);

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not seen before, or read-only: execute it.
    Execute,
    /// A write that was executed before: answer from its slot.
    Replay,
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
    sessions: Vec<Option<Session>>,
    free: Vec<u32>,
    by_opener: HashMap<Opener, u32>,
    memory_len: usize,
    opened: u64,
    refused: u64,
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
            sessions: Vec::new(),
            free: Vec::new(),
            by_opener: HashMap::new(),
            memory_len: 0,
            opened: 0,
            refused: 0,
            next_expiry: Instant::default(),
        }
    }

    /// Decides about a request by its slot, before anything of it is executed, and marks a new one as begun.
    ///
    /// New is `seq` above the slot's last (gaps are legal: a client may give a number up); the same again is a replay
    /// for a write, and simply executed again for a read; lower is a late duplicate.
    ///
    /// # Errors
    /// `UnknownSession`, `WrongPeer`, `Checksum`, `Slot` or `Stale`. Only `UnknownSession` deserves an answer.
    #[inline]
    pub fn admit(
        &mut self,
        now: Instant,
        header: &RequestHeader,
        addr: &SocketAddr,
        stream: bool,
    ) -> Result<Verdict, DropReason> {
        let session = self.session(now, &header.common, addr, stream)?;
        let slot = session.slots.get_mut(header.common.slot as usize).ok_or(DropReason::Slot)?;
        let seq = header.seq.get();
        if seq < slot.last_seq || seq == 0 {
            return Err(DropReason::Stale);
        }
        let wrote = !header.common.flags.contains(Flags::READ_ONLY);
        if seq == slot.last_seq {
            return match (slot.wrote, wrote) {
                (true, true) => Ok(Verdict::Replay),
                (false, false) => Ok(Verdict::Execute),
                // The number was used for the other kind of request: no honest client does that.
                _ => Err(DropReason::Malformed),
            };
        }
        slot.last_seq = seq;
        slot.wrote = wrote;
        slot.count = 0;
        Ok(Verdict::Execute)
    }

    /// The slot of a request that was admitted.
    ///
    /// # Panics
    /// When it was not.
    #[inline]
    pub fn slot(&mut self, header: &RequestHeader) -> &mut Slot {
        let session =
            self.sessions[header.common.session.get() as usize].as_mut().expect("session was admitted");
        &mut session.slots[header.common.slot as usize]
    }

    /// Undoes the admission of a new request that turned out not to parse, so that it may come again in one piece.
    ///
    /// A write that has an answer stays as it is, and a read may come again anyway: a number that was answered once never
    /// becomes new.
    pub fn reject(&mut self, header: &RequestHeader) {
        let slot = self.slot(header);
        if slot.wrote && slot.count == 0 && slot.last_seq == header.seq.get() {
            slot.last_seq -= 1;
            slot.wrote = false;
        }
    }

    /// Whether the admitted request's session wants checksums on its replies, as flags.
    #[inline]
    #[must_use]
    pub fn reply_flags(&self, header: &RequestHeader) -> Flags {
        let session = self.sessions[header.common.session.get() as usize].as_ref();
        Flags::CHECKSUM.when(session.is_some_and(|session| session.checksum))
    }

    /// Requests that each session may have in flight: its share of what the receive queue holds.
    #[inline]
    #[must_use]
    pub fn credit(&self) -> u8 {
        // Three quarters, so that handshakes and late duplicates find room too.
        let share = self.config.queue_datagrams / 4 * 3 / self.count().max(1);
        share.clamp(1, u8::MAX as usize) as u8
    }

    /// Looks a session up for any message that names one, and notes that it lives.
    ///
    /// # Errors
    /// `UnknownSession`, `WrongPeer` or `Checksum`.
    #[inline]
    fn session(
        &mut self,
        now: Instant,
        common: &Common,
        addr: &SocketAddr,
        stream: bool,
    ) -> Result<&mut Session, DropReason> {
        let session = self
            .sessions
            .get_mut(common.session.get() as usize)
            .and_then(Option::as_mut)
            .filter(|session| session.token == common.token.get())
            .ok_or(DropReason::UnknownSession)?;
        if !stream && session.addr != *addr {
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
        Ok(session)
    }

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
        self.session(now, common, addr, stream).map(|session| Flags::CHECKSUM.when(session.checksum))
    }

    /// Handles HELLO, OPEN and CLOSE. The answer, if any, is written to `out` and never longer than the question.
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
            Kind::OPEN => self.open(now, datagram, addr, out).map(Control::Answer),
            Kind::CLOSE => {
                self.session(now, common, addr, stream)?;
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

    /// Ends sessions whose lease has run out. Cheap when called often: it looks once a second.
    pub fn expire(&mut self, now: Instant) {
        if now < self.next_expiry {
            return;
        }
        self.next_expiry = now + Duration::from_secs(1);
        for index in 0..self.sessions.len() {
            let expired = self.sessions[index]
                .as_ref()
                .is_some_and(|session| now.since(session.last_heard) > self.config.lease);
            if expired {
                self.remove(index as u32);
            }
        }
    }

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

    /// Bytes that the sessions occupy.
    #[must_use]
    pub const fn memory_len(&self) -> usize {
        self.memory_len
    }

    fn hello(
        &self,
        now: Instant,
        datagram: &[u8],
        addr: &SocketAddr,
        out: &mut [u8],
    ) -> Result<usize, DropReason> {
        let hello = handshake::<Hello>(datagram)?;
        let common = Common { kind: Kind::COOKIE, ..hello.common };
        let cookie = self.cookie(addr, &hello.nonce, cookie_period(now));
        let boot_id = self.config.boot_id.into();
        Ok(seal(&CookieReply { common, nonce: hello.nonce, cookie, boot_id, spare: [0; 4] }, out))
    }

    fn open(
        &mut self,
        now: Instant,
        datagram: &[u8],
        addr: &SocketAddr,
        out: &mut [u8],
    ) -> Result<usize, DropReason> {
        let request = handshake::<Open>(datagram)?;
        let period = cookie_period(now);
        let proven = [Some(period), period.checked_sub(1)]
            .into_iter()
            .flatten()
            .any(|period| self.cookie(addr, &request.nonce, period) == request.cookie);
        if !proven {
            return Err(DropReason::Cookie);
        }
        // A repeated OPEN, whose OPENED was lost, gets the same session.
        let index = match self.by_opener.get(&(*addr, request.nonce)) {
            Some(&index) => index,
            None => match self.mint(now, request, addr) {
                Some(index) => index,
                None => return Ok(self.refuse(request, out)),
            },
        };
        let credit = self.credit();
        let session = self.sessions[index as usize].as_mut().expect("by_opener names living sessions");
        session.last_heard = now;
        let opened = Opened {
            common: Common {
                kind: Kind::OPENED,
                session: index.into(),
                token: session.token.into(),
                ..request.common
            },
            nonce: request.nonce,
            boot_id: self.config.boot_id.into(),
            data_epoch: self.config.data_epoch.into(),
            base_port: self.config.base_port.into(),
            cores: self.config.cores,
            core: self.config.core,
            window: (session.slots.len() as u16).into(),
            credit,
            checksum: u8::from(session.checksum),
            datagram_len_max: (DATAGRAM_LEN_MAX as u16).into(),
            lease_s: (self.config.lease.as_secs().min(u64::from(u16::MAX)) as u16).into(),
            epoch: self.config.epoch.into(),
            spare: [0; 30],
        };
        Ok(seal(&opened, out))
    }

    /// Makes a session with as many slots as were asked for, or as many as there is memory for; `None` when not even one
    /// fits.
    fn mint(&mut self, now: Instant, request: &Open, addr: &SocketAddr) -> Option<u32> {
        let room = self.config.memory_len_max.saturating_sub(self.memory_len);
        let affordable = room.saturating_sub(SESSION_LEN) / size_of::<Slot>();
        let window = usize::from(request.window.get().clamp(1, WINDOW_MAX)).min(affordable);
        if window == 0 {
            return None;
        }
        self.opened += 1;
        let session = Session {
            token: self.token(),
            nonce: request.nonce,
            addr: *addr,
            checksum: request.checksum != 0 || !addr.ip().to_canonical().is_loopback(),
            last_heard: now,
            slots: vec![Slot::EMPTY; window].into_boxed_slice(),
        };
        self.memory_len += session_len(&session);
        let index = self.free.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            self.sessions.len() as u32 - 1
        });
        self.sessions[index as usize] = Some(session);
        self.by_opener.insert((*addr, request.nonce), index);
        Some(index)
    }

    fn refuse(&mut self, request: &Open, out: &mut [u8]) -> usize {
        self.refused += 1;
        let refused = Refused {
            common: Common { kind: Kind::REFUSED, ..request.common },
            nonce: request.nonce,
            reason: RefusalReason::SESSIONS_FULL,
            spare: 0,
            // Room appears when a lease runs out, which is looked for once a second.
            retry_after_ms: 1_000.into(),
        };
        seal(&refused, out)
    }

    fn remove(&mut self, index: u32) {
        if let Some(session) = self.sessions[index as usize].take() {
            self.memory_len -= session_len(&session);
            self.by_opener.remove(&(session.addr, session.nonce));
            self.free.push(index);
        }
    }

    /// The cookie of one address, nonce and period. It needs no memory: anyone may ask, only the address's owner learns
    /// it.
    fn cookie(&self, addr: &SocketAddr, nonce: &Nonce, period: u64) -> Cookie {
        let mut hasher = SipHasher24::new_with_key(&self.config.secret);
        hasher.write(b"cookie");
        match addr.ip() {
            std::net::IpAddr::V4(ip) => hasher.write(&ip.octets()),
            std::net::IpAddr::V6(ip) => hasher.write(&ip.octets()),
        }
        hasher.write(&addr.port().to_le_bytes());
        hasher.write(nonce);
        hasher.write(&period.to_le_bytes());
        hasher.finish128().as_bytes()
    }

    /// A token that nobody can guess and that is never given out twice: a keyed hash of this core and the number of the
    /// session. The key is new at each boot.
    fn token(&self) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.config.secret);
        hasher.write(b"token");
        hasher.write(&[self.config.core]);
        hasher.write(&self.config.boot_id.to_le_bytes());
        hasher.write(&self.opened.to_le_bytes());
        hasher.finish128().h1
    }
}

/// A handshake message of exactly its length, with the trailer that all of them must have.
fn handshake<M: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned>(
    datagram: &[u8],
) -> Result<&M, DropReason> {
    let (common, _) = Common::ref_from_prefix(datagram).map_err(|_| DropReason::Truncated)?;
    if !common.flags.contains(Flags::CHECKSUM) {
        return Err(DropReason::Checksum);
    }
    let message = datagram.get(..size_of::<M>()).ok_or(DropReason::Truncated)?;
    if datagram.len() < size_of::<M>() + TRAILER_LEN {
        return Err(DropReason::Truncated);
    }
    M::ref_from_bytes(message).map_err(|_| DropReason::Truncated)
}

fn cookie_period(now: Instant) -> u64 {
    now.as_nanos() / COOKIE_PERIOD.as_nanos() as u64
}

const fn session_len(session: &Session) -> usize {
    SESSION_LEN + session.slots.len() * size_of::<Slot>()
}
