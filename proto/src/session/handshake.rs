//! How a session is opened: HELLO and OPEN, and when an OPEN ends an older session or is refused.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use zerocopy::{FromBytes, FromZeros};

use super::{
    RETRY_AFTER, SESSION_LEN, Session, SessionTable, budget::Source, numbers::Numbers, session_len,
    slot::Slot, source_room, staging::Staging,
};
use crate::{
    drops::DropReason,
    time::Instant,
    wire::{
        Common, CookieReply, DATAGRAM_LEN_MAX, DATAGRAM_LEN_MIN, Flags, Hello, Kind, Nonce, Open, Opened,
        RefusalReason, Refused, TRAILER_LEN, client_id, generation, seal, seal_padded,
    },
};

/// Largest window: slots are numbered by one byte.
const WINDOW_MAX: u16 = 256;

/// What an OPEN means beside the session that its client has.
enum Standing {
    /// The same OPEN again: its OPENED was lost.
    Again,
    /// A newer session of the client.
    Newer,
    /// An older one, or one that is not the client's: a late duplicate must never end a newer session.
    Older,
}

impl SessionTable {
    pub(super) fn hello(
        &mut self,
        now: Instant,
        datagram: &[u8],
        addr: &SocketAddr,
        out: &mut [u8],
    ) -> Result<usize, DropReason> {
        let hello = handshake::<Hello>(datagram)?;
        if !self.hello_budget.take(now, Source::of(addr.ip()), &self.keys) {
            return Err(DropReason::Budget);
        }
        let common = Common { kind: Kind::COOKIE, ..hello.common };
        let cookie = self.keys.cookie(now, addr, &hello.nonce);
        let boot_id = self.config.boot_id.into();
        Ok(seal(&CookieReply { common, nonce: hello.nonce, cookie, boot_id, spare: [0; 4] }, out))
    }

    pub(super) fn open(
        &mut self,
        now: Instant,
        datagram: &[u8],
        addr: &SocketAddr,
        stream: bool,
        out: &mut [u8],
    ) -> Result<usize, DropReason> {
        let request = handshake::<Open>(datagram)?;
        if !stream && datagram.len() < DATAGRAM_LEN_MIN {
            return Err(DropReason::Truncated);
        }
        if !self.open_budget.take(now, Source::of(addr.ip()), &self.keys) {
            return Err(DropReason::Budget);
        }
        if !self.keys.is_cookie(&request.cookie, now, addr, &request.nonce) {
            return Err(DropReason::Cookie);
        }
        let known = self.by_client.get(&client_of(addr, &request.nonce)).copied();
        let index = match known.map(|index| (index, self.standing(index, request, addr, stream))) {
            Some((index, Standing::Again)) => index,
            Some((index, Standing::Older)) => {
                // Room appears when the newer session's lease runs out.
                let heard = self.sessions[index as usize].as_ref().map(|session| session.last_heard);
                let left = self.config.lease.saturating_sub(now.since(heard.unwrap_or(now)));
                return Ok(self.refuse(request, RefusalReason::FENCED, left.max(RETRY_AFTER), out));
            }
            Some((index, Standing::Newer)) => {
                self.remove(index);
                self.fenced += 1;
                match self.mint(now, request, addr, stream) {
                    Ok(index) => index,
                    Err((reason, retry_after)) => return Ok(self.refuse(request, reason, retry_after, out)),
                }
            }
            None => match self.mint(now, request, addr, stream) {
                Ok(index) => index,
                Err((reason, retry_after)) => return Ok(self.refuse(request, reason, retry_after, out)),
            },
        };
        let len = datagram.len().min(DATAGRAM_LEN_MAX);
        let datagram_len = if stream { DATAGRAM_LEN_MAX } else { len } as u16;
        let session = self.sessions[index as usize].as_mut().expect("by_client names living sessions");
        session.last_heard = now;
        session.datagram_len = session.datagram_len.min(datagram_len);
        session.request_len_max = session.request_len_max.max(datagram_len);
        self.credits.hear(&mut session.grant);
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
            credit: session.grant.opening(),
            checksum: u8::from(session.checksum),
            datagram_len_max: datagram_len.into(),
            lease_s: (self.config.lease.as_secs().min(u64::from(u16::MAX)) as u16).into(),
            epoch: self.config.epoch.into(),
            map_digest: self.config.map_digest.into(),
            node_id: self.config.node_id.into(),
            spare: [0; 14],
        };
        Ok(seal_padded(&opened, len, out))
    }

    /// How an OPEN stands to the session that its client has.
    fn standing(&self, index: u32, request: &Open, addr: &SocketAddr, stream: bool) -> Standing {
        let session = self.sessions[index as usize].as_ref().expect("by_client names living sessions");
        let (held, asked) = (generation(&session.nonce), generation(&request.nonce));
        if asked != held {
            return if asked > held { Standing::Newer } else { Standing::Older };
        }
        match session.addr == *addr && session.stream == stream {
            true => Standing::Again,
            // A client that reconnected in the midst of its handshake does not know of the session yet; but one that is
            // used is known to its client, which then asks in a later generation.
            false if !session.used => Standing::Newer,
            false => Standing::Older,
        }
    }

    /// Makes a session with as many slots as were asked for, or as many as there is memory for.
    ///
    /// # Errors
    /// What there is not even room for one slot in, and when to ask again.
    fn mint(
        &mut self,
        now: Instant,
        request: &Open,
        addr: &SocketAddr,
        stream: bool,
    ) -> Result<u32, (RefusalReason, Duration)> {
        let source = Source::of(addr.ip());
        let usage = self.by_source.get(&source).copied().unwrap_or_default();
        let room = self.config.memory_len_max.saturating_sub(self.memory_len);
        let is_loopback = addr.ip().to_canonical().is_loopback();
        if !is_loopback && !stream && usage.queued > 0 && usage.queued >= self.credits.sessions_max() / 2 {
            return Err((RefusalReason::SOURCE_FULL, RETRY_AFTER));
        }
        let source_room = source_room(&self.config, addr.ip(), usage.memory_len);
        if room < session_len(1) {
            return Err((RefusalReason::SESSIONS_FULL, RETRY_AFTER));
        }
        if source_room < session_len(1) {
            return Err((RefusalReason::SOURCE_FULL, RETRY_AFTER));
        }
        let affordable = (room.min(source_room) - SESSION_LEN) / size_of::<Slot>();
        let window = usize::from(request.window.get().clamp(1, WINDOW_MAX)).min(affordable);
        let grant = self.credits.begin(stream, window)?;
        let session = Session {
            token: self.keys.token(self.opened),
            nonce: request.nonce,
            addr: *addr,
            stream,
            checksum: request.checksum != 0 || !addr.ip().to_canonical().is_loopback(),
            used: false,
            datagram_len: DATAGRAM_LEN_MAX as u16,
            request_len_max: 0,
            last_heard: now,
            grant,
            slots: vec![Slot::EMPTY; window].into_boxed_slice(),
            numbers: Numbers::default(),
            staging: Staging::default(),
        };
        self.opened += 1;
        let len = session_len(window);
        self.memory_len += len;
        let usage = self.by_source.entry(source).or_default();
        usage.memory_len += len;
        usage.queued += usize::from(!stream);
        let index = self.free.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            self.sessions.len() as u32 - 1
        });
        self.sessions[index as usize] = Some(session);
        self.by_client.insert(client_of(addr, &request.nonce), index);
        Ok(index)
    }

    /// Makes the session that a message names, as if its client had opened it: a mistake for the checks to find.
    #[cold]
    pub(super) fn adopt(&mut self, now: Instant, common: &Common, addr: &SocketAddr, stream: bool) {
        let place = common.session.get() as usize;
        if common.token.get() == 0 || place >= 64 || self.sessions.get(place).is_some_and(Option::is_some) {
            return;
        }
        while self.sessions.len() <= place {
            self.free.push(self.sessions.len() as u32);
            self.sessions.push(None);
        }
        let mut open = Open::new_zeroed();
        open.nonce[..8].copy_from_slice(&common.token.get().to_be_bytes());
        open.window = WINDOW_MAX.into();
        self.free.retain(|&index| index as usize != place);
        self.free.push(place as u32);
        if let Ok(index) = self.mint(now, &open, addr, stream) {
            let session = self.sessions[index as usize].as_mut().expect("minted just now");
            session.token = common.token.get();
            session.request_len_max = DATAGRAM_LEN_MAX as u16;
        }
    }

    fn refuse(
        &mut self,
        request: &Open,
        reason: RefusalReason,
        retry_after: Duration,
        out: &mut [u8],
    ) -> usize {
        self.refused += 1;
        let refused = Refused {
            common: Common { kind: Kind::REFUSED, ..request.common },
            nonce: request.nonce,
            reason,
            spare: 0,
            retry_after_ms: (retry_after.as_millis().min(u128::from(u16::MAX)) as u16).into(),
        };
        seal(&refused, out)
    }
}

/// The client that asks with `nonce` from `addr`; the port does not matter, because a client may get another.
pub(super) fn client_of(addr: &SocketAddr, nonce: &Nonce) -> (IpAddr, u64) {
    (addr.ip().to_canonical(), client_id(nonce))
}

/// A handshake message of at least its length, with the trailer that all of them must have.
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
