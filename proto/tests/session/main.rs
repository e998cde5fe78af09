//! The server's session table, from outside: what it answers, what it refuses, and what it forgets.

mod credits;
mod handshake;
mod numbers;
mod requests;
mod staging;

use std::{net::SocketAddr, time::Duration};

use linerate_proto::{
    DropReason, Instant,
    session::{Control, SessionConfig, SessionTable, Verdict},
    wire::{
        Common, CookieReply, DATAGRAM_LEN_MAX, Flags, Hello, Kind, Nonce, Open, Opened, Ping, Refused,
        RequestHeader, open, seal, seal_padded,
    },
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const CONFIG: SessionConfig = SessionConfig {
    secret: [7; 16],
    boot_id: 0x0102_0304_0506_0708,
    data_epoch: 9,
    base_port: 4_100,
    cores: 4,
    core: 2,
    map_digest: 0,
    node_id: 0,
    epoch: 5,
    memory_len_max: 1 << 20,
    staging_len_max: 8 << 20,
    lease: Duration::from_secs(30),
    queue_datagrams: 1_000,
};

const NONCE: Nonce = *b"a client's nonce";

fn client() -> SocketAddr {
    addr("127.0.0.1:5000")
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const fn at(seconds: u64) -> Instant {
    at_ms(1_000 * seconds)
}

const fn at_ms(milliseconds: u64) -> Instant {
    Instant::from_nanos(milliseconds * 1_000_000)
}

const fn common(kind: Kind) -> Common {
    Common {
        kind,
        flags: Flags::CHECKSUM,
        slot: 0,
        attempt: 0,
        session: zerocopy::network_endian::U32::ZERO,
        token: zerocopy::network_endian::U64::ZERO,
    }
}

fn sealed(message: &(impl IntoBytes + zerocopy::Immutable)) -> Vec<u8> {
    let mut out = [0; DATAGRAM_LEN_MAX];
    let len = seal(message, &mut out);
    out[..len].to_vec()
}

fn hello(nonce: Nonce) -> Vec<u8> {
    sealed(&Hello { common: common(Kind::HELLO), nonce, ..Hello::new_zeroed() })
}

fn ask(nonce: Nonce, cookie: [u8; 16], window: u16, checksum: u8) -> Vec<u8> {
    ask_long(nonce, cookie, window, checksum, DATAGRAM_LEN_MAX)
}

/// An OPEN of this length.
fn ask_long(nonce: Nonce, cookie: [u8; 16], window: u16, checksum: u8, len: usize) -> Vec<u8> {
    let window = window.into();
    let request = Open { common: common(Kind::OPEN), nonce, cookie, window, checksum, ..Open::new_zeroed() };
    let mut out = vec![0xee; len];
    seal_padded(&request, len, &mut out);
    out
}

fn close(opened: &Opened) -> Vec<u8> {
    sealed(&Ping { common: Common { kind: Kind::CLOSE, ..opened.common }, echo: 0.into() })
}

/// Sends a datagram, and checks of each answer that it is sealed and not longer than the question.
fn send(
    table: &mut SessionTable,
    now: Instant,
    from: SocketAddr,
    datagram: &[u8],
) -> Result<Option<Vec<u8>>, DropReason> {
    send_over(table, now, from, false, datagram)
}

/// The same over a stream or not.
fn send_over(
    table: &mut SessionTable,
    now: Instant,
    from: SocketAddr,
    stream: bool,
    datagram: &[u8],
) -> Result<Option<Vec<u8>>, DropReason> {
    let mut out = [0xee; DATAGRAM_LEN_MAX];
    match table.control(now, datagram, &from, stream, &mut out)? {
        Control::Done => Ok(None),
        Control::Answer(len) => {
            assert!(len <= datagram.len(), "an answer of {len} bytes to a question of {}", datagram.len());
            open(&out[..len]).unwrap();
            Ok(Some(out[..len].to_vec()))
        }
    }
}

fn cookie(table: &mut SessionTable, now: Instant, from: SocketAddr, nonce: Nonce) -> [u8; 16] {
    let answer = send(table, now, from, &hello(nonce)).unwrap().unwrap();
    let (reply, _) = CookieReply::ref_from_prefix(&answer).unwrap();
    assert_eq!((reply.common.kind, reply.nonce), (Kind::COOKIE, nonce));
    reply.cookie
}

/// Shakes hands; the answer to OPEN is a session or a refusal.
fn try_session(
    table: &mut SessionTable,
    now: Instant,
    from: SocketAddr,
    stream: bool,
    nonce: Nonce,
    window: u16,
) -> Result<Opened, Refused> {
    let cookie = cookie(table, now, from, nonce);
    let answer = send_over(table, now, from, stream, &ask(nonce, cookie, window, 0)).unwrap().unwrap();
    if Kind(answer[0]) == Kind::REFUSED {
        let (refused, _) = Refused::read_from_prefix(&answer).unwrap();
        assert_eq!(refused.nonce, nonce);
        return Err(refused);
    }
    let (opened, _) = Opened::read_from_prefix(&answer).unwrap();
    assert_eq!((opened.common.kind, opened.nonce), (Kind::OPENED, nonce));
    Ok(opened)
}

fn session(table: &mut SessionTable, now: Instant, from: SocketAddr, nonce: Nonce, window: u16) -> Opened {
    try_session(table, now, from, false, nonce, window).unwrap()
}

fn request(opened: &Opened, slot: u8, seq: u32, flags: Flags) -> RequestHeader {
    let common = Common { kind: Kind::REQUEST, flags, slot, ..opened.common };
    RequestHeader { common, seq: seq.into(), count: 1, epoch: 0.into(), spare: 0 }
}

/// Admits a well-formed request as a worker does.
fn admit(
    table: &mut SessionTable,
    now: Instant,
    header: &RequestHeader,
    from: SocketAddr,
    stream: bool,
) -> Result<Verdict, DropReason> {
    let verdict = table.admit(now, header, 100, &from, stream)?;
    table.occupy(header);
    Ok(verdict)
}

/// A table with one open session of the client.
fn opened(window: u16) -> (SessionTable, Opened) {
    let mut table = SessionTable::new(CONFIG);
    let opened = session(&mut table, at(1), client(), NONCE, window);
    (table, opened)
}
