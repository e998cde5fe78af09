//! One TCP connection: frames out of its receive slice, trains into its socket.
//!
//! ```text
//!                  ┌─ a slice (128 KiB) of the burst's memory ───────────────────────┐
//!  after a read    │len│datagram │len│datagram │len│ datagram │len│ part │    free     │
//!                  └──────────────────────────────────────────┴──────────┴─────────────┘
//!  kept            │len│ part │
//!  at the next     │len│ part │ ◀─ read continues here                                 │
//! ```

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read},
    ops::Range,
    time::{Duration, Instant},
};

use nix::sys::epoll::EpollFlags;
use socket2::Socket;

use super::TcpConfig;
use crate::{
    outbox::{Outbox, STREAM_PREFIX_LEN, Train},
    port::{Inbox, Peer, PortCounters},
};

/// Longest read. One costs a system call per so many bytes, and the slice of a busy connection stays in a second-level
/// cache. The longest frame, 2 + 65,535 bytes, must fit.
pub(super) const RX_SLICE_LEN: usize = 128 << 10;

/// Shortest frame: a length and one byte.
pub(super) const FRAME_LEN_MIN: usize = STREAM_PREFIX_LEN + 1;

/// How long a connection may hold chunks without progress while they are scarce.
const STALL_MAX: Duration = Duration::from_secs(1);

/// How long connecting may take: a SYN is repeated after 1 and 3 seconds (RFC 6298), and may well get lost.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The peer has finished. Half-closed connections are of no use to the protocol, so its answers are given up.
    Finished,
    /// The socket failed: reset, refused, unreachable, timed out.
    Failed,
    /// The peer sent a frame that is empty or too long, after which no byte can be trusted to be a length.
    BrokeFraming,
    /// The peer takes its answers too slowly while chunks are scarce.
    Slow,
    /// Nothing has arrived for too long.
    Idle,
}

/// A train on its way into the socket; it owns its chunk until then.
#[derive(Debug)]
struct Queued {
    train: Train,
    /// Bytes that the socket has taken.
    sent: usize,
}

/// Bytes of memory that a connection with a full queue takes, without what is kept of its next frame.
pub(super) fn memory_len(config: &TcpConfig) -> usize {
    // A queue doubles its room when it needs more, from 4 on.
    let queue = config.tx_chunks_per_connection.max(4).next_power_of_two();
    size_of::<Option<Connection>>() + queue * size_of::<Queued>()
}

/// A socket, what has arrived of the next frame, and what waits to be sent.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: Socket,
    pub(super) peer: Peer,
    /// What epoll was last told to watch for.
    interest: EpollFlags,
    /// Bytes kept of an incomplete frame.
    kept_len: usize,
    queue: VecDeque<Queued>,
    connecting: bool,
    /// When something last arrived, or reading began.
    rx_at: Instant,
    /// When the socket last took something, or the queue was last empty.
    tx_at: Instant,
}

impl Connection {
    pub(super) fn new(socket: Socket, peer: Peer, connecting: bool, now: Instant) -> Self {
        Self {
            socket,
            peer,
            interest: EpollFlags::empty(),
            kept_len: 0,
            queue: VecDeque::new(),
            connecting,
            rx_at: now,
            tx_at: now,
        }
    }

    pub(super) const fn is_connecting(&self) -> bool {
        self.connecting
    }

    /// Chunks that wait for the socket.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    pub(super) const fn interest(&self) -> EpollFlags {
        self.interest
    }

    /// Why this connection should end by now, if it should. `scarce` tells whether chunks are.
    pub(super) fn overdue(&self, idle_timeout: Duration, scarce: bool, now: Instant) -> Option<End> {
        let silent = now.saturating_duration_since(self.rx_at);
        let stuck = now.saturating_duration_since(self.tx_at);
        if self.connecting && silent >= CONNECT_TIMEOUT {
            return Some(End::Failed);
        }
        if scarce && !self.queue.is_empty() && stuck >= STALL_MAX {
            return Some(End::Slow);
        }
        // Silence means nothing while nobody listens.
        let reads = self.interest.contains(EpollFlags::EPOLLIN);
        (silent >= idle_timeout && (reads || stuck >= idle_timeout)).then_some(End::Idle)
    }

    /// What to watch for: room in the socket while something waits for it or the handshake is under way, and bytes
    /// to read unless `holds_back` says that requests have to wait while answers do.
    pub(super) fn wanted(&self, holds_back: bool) -> EpollFlags {
        let waits = !self.queue.is_empty();
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLIN, !(holds_back && waits));
        wanted.set(EpollFlags::EPOLLOUT, self.connecting || waits);
        wanted
    }

    /// Notes what epoll has been told to watch for.
    pub(super) fn watched_for(&mut self, interest: EpollFlags, now: Instant) {
        if interest.contains(EpollFlags::EPOLLIN) && !self.interest.contains(EpollFlags::EPOLLIN) {
            self.rx_at = now;
        }
        self.interest = interest;
    }

    /// The outcome of a connect(2) that epoll reports as decided.
    pub(super) fn finish_connecting(&mut self) -> Result<(), End> {
        match self.socket.take_error() {
            Ok(None) => {
                self.connecting = false;
                Ok(())
            }
            Ok(Some(_)) | Err(_) => Err(End::Failed),
        }
    }

    /// One read into `slice`, whose place in the receive memory is `base`, and all frames completed by it into `inbox`. What
    /// is left of the last one goes to `kept`, where it is found the next time. When a frame breaks the rules, those before
    /// it are still delivered.
    pub(super) fn receive(
        &mut self,
        kept: &mut [u8],
        (slice, base): (&mut [u8], usize),
        datagram_len_max: usize,
        inbox: &mut Inbox,
        counters: &mut PortCounters,
        now: Instant,
    ) -> Result<(), End> {
        let kept_len = self.kept_len;
        // As much as there are places for in the list, whatever it is cut into.
        let room = slice.len().min(inbox.free_count() * FRAME_LEN_MIN);
        if room <= kept_len {
            // The next burst finds it in the socket.
            return Ok(());
        }
        slice[..kept_len].copy_from_slice(&kept[..kept_len]);
        // The room is not empty, so 0 means the end.
        let read_len = match self.socket.read(&mut slice[kept_len..room]) {
            Ok(0) => return Err(End::Finished),
            Ok(read_len) => read_len,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(_) => return Err(End::Failed),
        };
        self.rx_at = now;
        counters.rx_trains += 1;
        let mut unread = Frames::new(&slice[..kept_len + read_len], datagram_len_max);
        inbox.push_peer(self.peer);
        for frame in &mut unread {
            inbox.push(base + frame.start, frame.len());
            counters.rx_datagrams += 1;
            counters.rx_bytes += frame.len() as u64;
        }
        if unread.broken {
            return Err(End::BrokeFraming);
        }
        let left = &slice[unread.at..kept_len + read_len];
        kept[..left.len()].copy_from_slice(left);
        self.kept_len = left.len();
        Ok(())
    }

    /// Takes over a train and its chunk.
    pub(super) fn enqueue(&mut self, train: Train, now: Instant) {
        if self.queue.is_empty() {
            self.tx_at = now;
        }
        self.queue.push_back(Queued { train, sent: 0 });
    }

    /// Writes until the socket is full or nothing waits; chunks that went out whole are free again.
    pub(super) fn transmit(
        &mut self,
        outbox: &mut Outbox,
        counters: &mut PortCounters,
        now: Instant,
    ) -> Result<(), End> {
        while let Some(first) = self.queue.front_mut() {
            let rest = &outbox.bytes(&first.train)[first.sent..];
            // Without MSG_NOSIGNAL, a peer that is gone would kill a process that has not ignored SIGPIPE.
            let sent = match self.socket.send_with_flags(rest, libc::MSG_NOSIGNAL) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Err(End::Failed),
            };
            self.connecting = false;
            self.tx_at = now;
            counters.tx_trains += 1;
            if sent < rest.len() {
                // The socket is full; epoll reports when a good part of it is free again.
                first.sent += sent;
                return Ok(());
            }
            counters.tx_datagrams += u64::from(first.train.count);
            counters.tx_bytes += payload_len(&first.train);
            outbox.release(first.train.chunk);
            self.queue.pop_front();
        }
        Ok(())
    }

    /// Gives up what waits: frees the chunks, and counts each datagram as handed to the kernel or as dropped.
    pub(super) fn abandon(&mut self, outbox: &mut Outbox, counters: &mut PortCounters) {
        for Queued { train, sent } in self.queue.drain(..) {
            let bytes = &outbox.bytes(&train)[..sent];
            let mut count = 0;
            for frame in Frames::new(bytes, usize::MAX) {
                count += 1;
                counters.tx_bytes += frame.len() as u64;
            }
            counters.tx_datagrams += count;
            counters.tx_dropped += u64::from(train.count) - count;
            outbox.release(train.chunk);
        }
    }
}

/// Bytes of a train's datagrams, without their prefixes.
fn payload_len(train: &Train) -> u64 {
    u64::from(train.len) - u64::from(train.count) * STREAM_PREFIX_LEN as u64
}

/// Where the datagrams of the complete frames at the front of some bytes are.
struct Frames<'a> {
    bytes: &'a [u8],
    datagram_len_max: usize,
    /// First byte that belongs to no complete frame seen so far.
    at: usize,
    /// Whether the frame at `at` is empty or too long.
    broken: bool,
}

impl<'a> Frames<'a> {
    const fn new(bytes: &'a [u8], datagram_len_max: usize) -> Self {
        Self { bytes, datagram_len_max, at: 0, broken: false }
    }
}

impl Iterator for Frames<'_> {
    type Item = Range<usize>;

    #[inline]
    fn next(&mut self) -> Option<Range<usize>> {
        let (prefix, rest) = self.bytes[self.at..].split_first_chunk::<STREAM_PREFIX_LEN>()?;
        let len = usize::from(u16::from_be_bytes(*prefix));
        self.broken = len == 0 || len > self.datagram_len_max;
        if self.broken || len > rest.len() {
            return None;
        }
        let start = self.at + STREAM_PREFIX_LEN;
        self.at = start + len;
        Some(start..self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the frame rules. Method: bytes in, datagrams, rest and verdict out, for every truncation of two frames.
    #[test]
    fn only_complete_frames_are_taken_from_every_truncation() {
        let bytes = [0, 2, 7, 7, 0, 1, 9];
        for len in 0..=bytes.len() {
            let mut frames = Frames::new(&bytes[..len], 2);
            let found: Vec<_> = frames.by_ref().collect();
            let whole = usize::from(len >= 4) + usize::from(len >= 7);
            assert_eq!(found, [2..4, 6..7][..whole], "{len} bytes");
            assert_eq!(frames.at, [0, 4, 7][whole], "{len} bytes");
            assert!(!frames.broken);
        }
    }

    #[test]
    fn an_empty_or_too_long_frame_ends_the_stream_after_the_good_ones() {
        for bad in [[0, 0], [0, 3], [255, 255]] {
            let mut frames = Frames::new(&[&[0, 2, 7, 7], &bad[..]].concat(), 2).by_ref().collect::<Vec<_>>();
            assert_eq!(frames.pop(), Some(2..4));
            let bytes = [&[0, 2, 7, 7], &bad[..]].concat();
            let mut frames = Frames::new(&bytes, 2);
            assert_eq!(frames.by_ref().count(), 1);
            assert!(frames.broken);
        }
    }
}
