//! Memory for outgoing datagrams: fixed chunks in which the datagrams of one peer are written back to back.
//!
//! ```text
//!            ┌─ chunk (64 KiB) ─────────────────────────────────────────────────┐
//!  datagrams │ segment │ segment │ segment │ short │ longer │ longer │   free   │   two trains: 3 × segment + short,
//!            └──────────────────────────────────────────────────────────────────┘   2 × longer
//!  stream    │len│datagram │len│datagram │len│ datagram │        free           │   one train, prefixed
//! ```
//! A train is what one system call takes for one peer. For datagram ports its segments are equal but for the last,
//! which may be shorter: that is what `UDP_SEGMENT` wants (udp(7)). For stream ports each datagram carries its length
//! in front. Ports whose kernel side takes frames have a third way, one frame for each datagram or train.

#[allow(unsafe_code)]
pub(crate) mod frames;

use std::{io, sync::Arc};

use self::frames::{FrameLayout, FrameOrder, FrameOutbox};
use crate::{frame_memory::FrameMemory, port::Peer, region::Region};

/// Chunk size: one train is at most one UDP datagram before segmentation, 65,507 bytes on IPv4.
pub const CHUNK_LEN: usize = 64 << 10;

/// Largest train: 65,535 bytes of IP packet less 20 of IPv4 or 40 of IPv6 and 8 of UDP header, the smaller of both.
const TRAIN_LEN_MAX: usize = 65_535 - 40 - 8;

/// Segments in a train: 64 was `UDP_MAX_SEGMENTS` (linux/udp.h) until kernel 6.9 made it 128.
const SEGMENTS_MAX: usize = 64;

/// Full datagrams that a chunk takes: what a chunk is to those who count in frames.
const DATAGRAMS_PER_CHUNK: usize = 44;

/// Length of the prefix in front of each datagram on a stream: a big-endian u16.
pub(crate) const STREAM_PREFIX_LEN: usize = 2;

/// How datagrams are laid out in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Equal segments, nothing between them.
    Segments,
    /// A length prefix before each datagram.
    Stream,
}

/// Datagrams of one peer that travel in one system call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Train {
    pub(crate) peer: Peer,
    pub(crate) chunk: u32,
    /// First byte, counted from the chunk's start.
    pub(crate) start: u32,
    /// Bytes, prefixes included.
    pub(crate) len: u32,
    /// Length of every datagram but the last; 0 on streams.
    pub(crate) segment_len: u32,
    /// Datagrams.
    pub(crate) count: u32,
    closed: bool,
    /// Whether a flush has passed over it.
    held: bool,
}

/// The chunk that a peer's datagrams currently go to.
#[derive(Clone, Copy, Debug)]
struct Open {
    peer: Peer,
    chunk: u32,
    used: u32,
    /// Index in `trains` of the train that may still grow; `u32::MAX` for none.
    train: u32,
}

/// The datagrams that wait for the next `tx_flush` of a port.
#[derive(Debug)]
pub struct Outbox {
    memory: Region<u8>,
    framing: Framing,
    free: Vec<u32>,
    /// Chunks taken since they were last given back.
    taken: Vec<u32>,
    open: Vec<Open>,
    trains: Vec<Train>,
    /// Most trains, so that their list has a limit: as many as there can be datagrams if all of them are full.
    trains_max: usize,
    /// Index in `open` of the peer that `begin` was last called for.
    current: usize,
    /// Longest datagram that the slot handed out by `begin` may take; 0 when there is none.
    begun_len_max: usize,
    /// Where datagrams go when each has a frame of its own; there are no chunks and trains then.
    frames: Option<Box<FrameOutbox>>,
}

/// Room for one datagram, to be filled from the front and then [committed](Outbox::commit).
#[derive(Debug)]
pub struct Slot<'a> {
    /// At least as long as asked for.
    pub bytes: &'a mut [u8],
    /// The segment length of the train that this datagram would join, or 0 when it starts one. Padding a shorter
    /// datagram with zeros up to this length keeps the train together; a longer one starts a train of its own.
    pub segment_len: usize,
}

impl Outbox {
    /// An outbox of `chunks` times 64 KiB.
    pub(crate) fn new(chunks: usize, framing: Framing) -> io::Result<Self> {
        let trains_max = match framing {
            Framing::Segments => chunks * DATAGRAMS_PER_CHUNK,
            // There a chunk is one train.
            Framing::Stream => chunks,
        };
        Ok(Self {
            memory: Region::zeroed(chunks * CHUNK_LEN)?,
            framing,
            free: (0..chunks as u32).rev().collect(),
            taken: Vec::with_capacity(chunks),
            open: Vec::with_capacity(chunks),
            trains: Vec::with_capacity(trains_max),
            trains_max,
            current: 0,
            begun_len_max: 0,
            frames: None,
        })
    }

    /// An outbox of one frame per datagram.
    pub(crate) fn of_frames(
        memory: Arc<FrameMemory>,
        layout: FrameLayout,
        order: FrameOrder,
    ) -> io::Result<Self> {
        let frames = Some(Box::new(FrameOutbox::new(memory, layout, order)));
        Ok(Self { frames, ..Self::new(0, Framing::Segments)? })
    }

    /// Chunks that nobody uses: each takes at least 44 full datagrams of one peer.
    #[must_use]
    pub fn free_chunks(&self) -> usize {
        match &self.frames {
            Some(frames) => frames.free_chunks(),
            // A chunk is also the promise of as many trains as it may take.
            None if self.framing == Framing::Segments => {
                self.free.len().min((self.trains_max - self.trains.len()) / DATAGRAMS_PER_CHUNK)
            }
            None => self.free.len(),
        }
    }

    /// Bytes of memory that it takes, without that of frames.
    pub(crate) fn memory_len(&self) -> usize {
        let lists = self.free.capacity() * size_of::<u32>()
            + self.taken.capacity() * size_of::<u32>()
            + self.open.capacity() * size_of::<Open>()
            + self.trains.capacity() * size_of::<Train>();
        let frames = self.frames.as_ref().map_or(0, |frames| frames.memory_len());
        self.memory.memory_len() + lists + frames
    }

    /// Bytes of memory that one of so many chunks for streams takes, up to rounding.
    pub(crate) const fn memory_len_of(chunks: usize) -> usize {
        let lists = 2 * size_of::<u32>() + size_of::<Open>() + size_of::<Train>();
        chunks * (CHUNK_LEN + lists)
    }

    /// As [`Region::populate`].
    pub(crate) fn populate(&mut self) -> io::Result<()> {
        self.memory.populate()
    }

    /// Chunks written to since the last flush.
    #[must_use]
    pub fn used_chunks(&self) -> usize {
        match &self.frames {
            Some(frames) => frames.used_chunks(),
            None => self.taken.len(),
        }
    }

    /// Whether nothing waits to be sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.trains.is_empty() && self.frames.as_ref().is_none_or(|frames| frames.written_count() == 0)
    }

    /// The frames of an outbox that has them.
    ///
    /// # Panics
    /// When it has none.
    pub(crate) fn frames_mut(&mut self) -> &mut FrameOutbox {
        self.frames.as_mut().expect("an outbox made by `of_frames`")
    }

    /// Room for a datagram of up to `len_max` bytes to `peer`, or `None` when all chunks are in use, or there are 44 trains
    /// for each of them: flush and try again. A second call without a commit between gives the same room again.
    ///
    /// # Panics
    /// When `len_max` is 0 or more than a chunk holds.
    #[inline]
    pub fn begin(&mut self, peer: &Peer, len_max: usize) -> Option<Slot<'_>> {
        assert!(0 < len_max && len_max <= TRAIN_LEN_MAX - STREAM_PREFIX_LEN, "datagram of {len_max} bytes");
        if self.frames.is_some() {
            self.begun_len_max = len_max;
            return self.frames_mut().begin(peer, len_max);
        }
        if self.framing == Framing::Segments && self.trains.len() == self.trains_max {
            return None;
        }
        let prefix_len = self.prefix_len();
        let room = prefix_len + len_max;
        if self.open.get(self.current).is_none_or(|open| open.peer != *peer) {
            self.current = self.open.iter().position(|open| open.peer == *peer).unwrap_or(self.open.len());
        }
        let needs_chunk =
            self.open.get(self.current).is_none_or(|open| open.used as usize + room > TRAIN_LEN_MAX);
        if needs_chunk {
            let fresh = Open { peer: *peer, chunk: self.free.pop()?, used: 0, train: u32::MAX };
            self.taken.push(fresh.chunk);
            match self.open.get_mut(self.current) {
                Some(open) => *open = fresh,
                None => self.open.push(fresh),
            }
        }
        let open = self.open[self.current];
        let train = self.trains.get(open.train as usize);
        let segment_len = train.filter(|train| !train.closed).map_or(0, |train| train.segment_len as usize);
        self.begun_len_max = len_max;
        let start = open.chunk as usize * CHUNK_LEN + open.used as usize + prefix_len;
        Some(Slot { bytes: &mut self.memory[start..start + len_max], segment_len })
    }

    /// Takes the first `len` bytes of the room last handed out as a datagram.
    ///
    /// # Panics
    /// Without a `begin` before it, and when `len` is 0 or more than was asked for.
    #[inline]
    pub fn commit(&mut self, len: usize) {
        assert!(0 < len && len <= self.begun_len_max, "commit of {len} bytes into {}", self.begun_len_max);
        self.begun_len_max = 0;
        if let Some(frames) = &mut self.frames {
            return frames.commit(len);
        }
        let prefix_len = self.prefix_len();
        let open = &mut self.open[self.current];
        if self.framing == Framing::Stream {
            let start = open.chunk as usize * CHUNK_LEN + open.used as usize;
            self.memory[start..start + STREAM_PREFIX_LEN].copy_from_slice(&(len as u16).to_be_bytes());
        }
        let start = open.used;
        open.used += (prefix_len + len) as u32;
        let joins = self.trains.get_mut(open.train as usize).filter(|train| {
            !train.closed && (self.framing == Framing::Stream || len <= train.segment_len as usize)
        });
        if let Some(train) = joins {
            train.len += (prefix_len + len) as u32;
            train.count += 1;
            let short = len < train.segment_len as usize;
            let full = self.framing == Framing::Segments && train.count as usize == SEGMENTS_MAX;
            train.closed = short || full;
            return;
        }
        open.train = self.trains.len() as u32;
        self.trains.push(Train {
            peer: open.peer,
            chunk: open.chunk,
            start,
            len: (prefix_len + len) as u32,
            segment_len: if self.framing == Framing::Stream { 0 } else { len as u32 },
            count: 1,
            closed: false,
            held: false,
        });
    }

    const fn prefix_len(&self) -> usize {
        match self.framing {
            Framing::Segments => 0,
            Framing::Stream => STREAM_PREFIX_LEN,
        }
    }

    /// The trains in the order in which they were begun.
    pub(crate) fn trains(&self) -> &[Train] {
        &self.trains
    }

    /// The bytes of a train.
    pub(crate) fn bytes(&self, train: &Train) -> &[u8] {
        let start = train.chunk as usize * CHUNK_LEN + train.start as usize;
        &self.memory[start..start + train.len as usize]
    }

    /// Forgets all trains and frees their chunks: everything was sent or given up.
    pub(crate) fn reset(&mut self) {
        self.free.append(&mut self.taken);
        self.forget();
    }

    /// Whether a train may still grow and is worth waiting for. One that was held back once has waited long enough,
    /// whatever company it has found: else a peer that is sent little would wait for as long as others are sent much.
    pub(crate) fn is_growing(&self, index: usize) -> bool {
        let train = &self.trains[index];
        !train.closed && !train.held && self.open.iter().any(|open| open.train as usize == index)
    }

    /// Forgets all trains but those that may still grow, and frees the chunks of the others.
    pub(crate) fn keep_growing(&mut self) {
        let trains = &mut self.trains;
        let is_kept = |train: &Train| !train.closed && !train.held;
        self.open.retain(|open| trains.get(open.train as usize).is_some_and(is_kept));
        // In the order of the trains, each moves to the front without overwriting one that is still to move.
        self.open.sort_unstable_by_key(|open| open.train);
        for (index, open) in self.open.iter_mut().enumerate() {
            trains[index] = Train { held: true, ..trains[open.train as usize] };
            open.train = index as u32;
        }
        trains.truncate(self.open.len());
        let (open, free) = (&self.open, &mut self.free);
        self.taken.retain(|&chunk| {
            let kept = open.iter().any(|open| open.chunk == chunk);
            if !kept {
                free.push(chunk);
            }
            kept
        });
        self.current = 0;
        self.begun_len_max = 0;
    }

    /// Forgets all trains but keeps their chunks in use until each is [released](Self::release); for ports whose
    /// kernel side takes its time. Chunks without a train are freed.
    pub(crate) fn detach(&mut self, mut each: impl FnMut(Train)) {
        for open in self.open.iter().filter(|open| open.used == 0) {
            self.free.push(open.chunk);
        }
        self.taken.clear();
        self.trains.iter().copied().for_each(&mut each);
        self.forget();
    }

    /// Frees a chunk kept by [`detach`](Self::detach).
    pub(crate) fn release(&mut self, chunk: u32) {
        debug_assert!(!self.free.contains(&chunk), "chunk {chunk} released twice");
        self.free.push(chunk);
    }

    fn forget(&mut self) {
        self.trains.clear();
        self.open.clear();
        self.current = 0;
        self.begun_len_max = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> Peer {
        Peer::datagram(([127, 0, 0, 1], port).into())
    }

    fn put(outbox: &mut Outbox, to: u16, len: usize) {
        let slot = outbox.begin(&peer(to), 1_472).unwrap();
        slot.bytes[..len].fill(len as u8);
        outbox.commit(len);
    }

    fn shape(outbox: &Outbox) -> Vec<(u16, u32, u32)> {
        outbox.trains().iter().map(|train| (train.peer.addr.port(), train.segment_len, train.count)).collect()
    }

    /// Goal: the train rules of the module picture. Method: lengths in, trains out.
    #[test]
    fn equal_segments_join_a_short_one_ends_and_a_longer_one_starts_a_train() {
        let mut outbox = Outbox::new(2, Framing::Segments).unwrap();
        for len in [100, 100, 60, 100, 120, 120] {
            put(&mut outbox, 1, len);
        }
        assert_eq!(shape(&outbox), [(1, 100, 3), (1, 100, 1), (1, 120, 2)]);
        let bytes: Vec<_> = outbox.trains().iter().map(|train| outbox.bytes(train).len()).collect();
        assert_eq!(bytes, [260, 100, 240]);
    }

    #[test]
    fn peers_do_not_share_trains_and_chunks_come_back() {
        let mut outbox = Outbox::new(2, Framing::Segments).unwrap();
        for to in [1, 2, 1, 2] {
            put(&mut outbox, to, 50);
        }
        assert_eq!(shape(&outbox), [(1, 50, 2), (2, 50, 2)]);
        assert!(outbox.begin(&peer(3), 50).is_none(), "no third chunk");
        outbox.reset();
        assert_eq!(outbox.free_chunks(), 2);
        assert!(outbox.begin(&peer(3), 50).is_some());
        outbox.reset();
        assert_eq!(outbox.free_chunks(), 2, "a chunk that was begun but not written to is not lost");
    }

    /// Goal: trains that may still grow survive, everything else is given back. Method: a closed and a growing train of
    /// one peer around a growing one of another, then both grow on and all chunks come back.
    #[test]
    fn growing_trains_are_kept() {
        let mut outbox = Outbox::new(3, Framing::Segments).unwrap();
        for (to, len) in [(1, 50), (1, 20), (2, 70), (1, 60), (3, 40), (3, 30)] {
            put(&mut outbox, to, len);
        }
        assert_eq!(shape(&outbox), [(1, 50, 2), (2, 70, 1), (1, 60, 1), (3, 40, 2)]);
        let growing: Vec<_> = (0..4).map(|index| outbox.is_growing(index)).collect();
        assert_eq!(growing, [false, true, true, false]);
        outbox.keep_growing();
        assert_eq!(outbox.free_chunks(), 1);
        put(&mut outbox, 1, 60);
        put(&mut outbox, 2, 70);
        assert_eq!(shape(&outbox), [(2, 70, 2), (1, 60, 2)]);
        assert!(outbox.bytes(&outbox.trains()[1]).iter().all(|&byte| byte == 60));
        assert!(!outbox.is_growing(0) && !outbox.is_growing(1), "nobody waits twice");
        put(&mut outbox, 3, 10);
        outbox.keep_growing();
        assert_eq!(shape(&outbox), [(3, 10, 1)]);
        outbox.reset();
        assert_eq!(outbox.free_chunks(), 3);
    }

    #[test]
    fn a_train_ends_at_64_segments_and_at_the_chunk() {
        let mut outbox = Outbox::new(4, Framing::Segments).unwrap();
        for _ in 0..65 {
            put(&mut outbox, 1, 30);
        }
        assert_eq!(shape(&outbox), [(1, 30, 64), (1, 30, 1)]);
        outbox.reset();
        for _ in 0..45 {
            put(&mut outbox, 1, 1_472);
        }
        assert_eq!(shape(&outbox), [(1, 1_472, 44), (1, 1_472, 1)]);
        outbox.reset();
        assert_eq!(outbox.free_chunks(), 4);
    }

    /// Goal: the list of trains has a limit, and who asks for room before writing never meets it. Method: each datagram
    /// starts a train; as many as the free chunks promise are taken, and then some until one is refused.
    #[test]
    fn trains_are_limited_and_free_chunks_say_so() {
        let mut outbox = Outbox::new(3, Framing::Segments).unwrap();
        let memory_len = outbox.memory_len();
        let mut promised = outbox.free_chunks() * DATAGRAMS_PER_CHUNK;
        let mut trains = 0;
        while let Some(slot) = outbox.begin(&peer(1), 40) {
            let len = if trains % 2 == 0 { 30 } else { 40 };
            slot.bytes[..len].fill(7);
            outbox.commit(len);
            // A longer one is a train of its own, and a shorter one ends a train.
            trains += 1;
            assert!(outbox.trains().len() <= outbox.trains_max);
            promised = promised.saturating_sub(1);
            assert!(outbox.free_chunks() * DATAGRAMS_PER_CHUNK <= outbox.trains_max - outbox.trains().len());
        }
        assert_eq!((promised, outbox.trains().len()), (0, outbox.trains_max));
        assert_eq!(outbox.memory_len(), memory_len, "nothing grew");
        outbox.reset();
        assert_eq!(outbox.free_chunks(), 3);
    }

    #[test]
    fn streams_prefix_each_datagram_with_its_length() {
        let mut outbox = Outbox::new(1, Framing::Stream).unwrap();
        put(&mut outbox, 1, 3);
        put(&mut outbox, 1, 1);
        let train = outbox.trains()[0];
        assert_eq!(outbox.bytes(&train), [0, 3, 3, 3, 3, 0, 1, 1]);
        let mut kept = Vec::new();
        outbox.detach(|train| kept.push(train.chunk));
        assert_eq!(outbox.free_chunks(), 0);
        outbox.release(kept[0]);
        assert_eq!(outbox.free_chunks(), 1);
    }

    #[test]
    #[should_panic(expected = "commit of 11 bytes")]
    fn more_than_was_asked_for_is_a_bug() {
        let mut outbox = Outbox::new(1, Framing::Segments).unwrap();
        let _ = outbox.begin(&peer(1), 10);
        outbox.commit(11);
    }
}
