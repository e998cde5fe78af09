//! Memory for outgoing datagrams in frames of a ring, with room for headers in front: one datagram each, or a train where
//! the kernel cuts a frame into datagrams.
//!
//! ```text
//!  frame │ … │ headers 42 │ payload (1,472) │ … │
//!              payload_at ▲
//!  train │ … │ headers 42 │ segment │ segment │ segment │ short │ … │
//! ```

use std::{collections::VecDeque, sync::Arc};

use crate::{
    frame::HEADERS_LEN,
    frame_memory::FrameMemory,
    outbox::{DATAGRAMS_PER_CHUNK, Slot},
    port::Peer,
};

/// Where the frames lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameLayout {
    /// First byte of frame 0, counted from the memory's start.
    pub(crate) first: usize,
    /// Bytes from one frame to the next.
    pub(crate) frame_len: usize,
    /// First byte of the payload, counted from the frame's start; at least as many as the headers take.
    pub(crate) payload_at: usize,
    /// Number of frames.
    pub(crate) count: u32,
    /// Most datagrams in a frame: 1, or what the kernel cuts a train into.
    pub(crate) segments_max: u32,
}

impl FrameLayout {
    /// Longest payload.
    const fn payload_len_max(&self) -> usize {
        self.frame_len - self.payload_at
    }

    const fn payload_start(&self, frame: u32) -> usize {
        self.first + frame as usize * self.frame_len + self.payload_at
    }
}

/// Which of the free frames is taken next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameOrder {
    /// The one freed last, which is still in the cache.
    Newest,
    /// The one freed first: frames that are freed in the order of a ring are taken in it, 0 first.
    Ring,
}

/// A datagram or a train written and not yet sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WrittenFrame<'a> {
    pub(crate) frame: u32,
    /// Bytes of payload.
    pub(crate) len: u32,
    /// Bytes of payload of each datagram but the last, which may be shorter.
    pub(crate) segment_len: u32,
    /// Number of datagrams.
    pub(crate) count: u32,
    pub(crate) peer: &'a Peer,
}

#[derive(Clone, Copy, Debug)]
struct Written {
    frame: u32,
    len: u32,
    segment_len: u32,
    count: u32,
    peer: u32,
}

/// A peer, and the train of its that may still grow.
#[derive(Clone, Copy, Debug)]
struct Open {
    peer: Peer,
    /// Index in `written`; `None` when the next datagram starts a frame.
    train: Option<u32>,
}

/// The frames that wait for the next `tx_flush` of a port, and those that nobody uses.
///
/// It is the only one that touches the bytes of its frames, from [`FrameLayout::payload_at`] less the headers on; the
/// kernel reads those that were handed to it and writes none.
#[derive(Debug)]
pub(crate) struct FrameOutbox {
    memory: Arc<FrameMemory>,
    layout: FrameLayout,
    order: FrameOrder,
    free: VecDeque<u32>,
    written: Vec<Written>,
    peers: Vec<Open>,
    /// Those of `peers` that something was committed for. At most one more was begun for, which the next one replaces:
    /// what is answered with nothing must not make the list longer.
    known_peers: usize,
    /// How many of `written` the last flush has held back.
    held: u32,
    /// Index in `peers` of the one that `begin` was last called for.
    current: usize,
}

impl FrameOutbox {
    pub(crate) fn new(memory: Arc<FrameMemory>, layout: FrameLayout, order: FrameOrder) -> Self {
        let end = layout.first + layout.count as usize * layout.frame_len;
        assert!(end <= memory.len(), "frames up to byte {end} of {}", memory.len());
        assert!(HEADERS_LEN <= layout.payload_at && layout.payload_at < layout.frame_len, "{layout:?}");
        let count = layout.count as usize;
        let mut free = VecDeque::with_capacity(count);
        free.extend(0..layout.count);
        Self {
            memory,
            layout,
            order,
            free,
            written: Vec::with_capacity(count),
            peers: Vec::with_capacity(count + 1),
            known_peers: 0,
            held: 0,
            current: 0,
        }
    }

    /// Bytes of its lists; the frames are those of a ring or a UMEM.
    pub(crate) fn memory_len(&self) -> usize {
        self.free.capacity() * size_of::<u32>()
            + self.written.capacity() * size_of::<Written>()
            + self.peers.capacity() * size_of::<Open>()
    }

    /// Chunks in the sense of [`Outbox::free_chunks`](super::Outbox::free_chunks): room for 44 datagrams each.
    pub(crate) fn free_chunks(&self) -> usize {
        match self.layout.segments_max {
            1 => self.free.len() / DATAGRAMS_PER_CHUNK,
            // One stays free for a datagram that is too long for the train that it was begun in.
            _ => self.free.len().saturating_sub(1),
        }
    }

    /// The same of frames that were written to.
    pub(crate) fn used_chunks(&self) -> usize {
        match self.layout.segments_max {
            1 => self.written.len() / DATAGRAMS_PER_CHUNK,
            _ => self.written.len(),
        }
    }

    /// Frames that nobody uses.
    pub(crate) fn free_count(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn written_count(&self) -> usize {
        self.written.len()
    }

    pub(crate) fn written(&self, index: usize) -> WrittenFrame<'_> {
        let Written { frame, len, segment_len, count, peer } = self.written[index];
        WrittenFrame { frame, len, segment_len, count, peer: &self.peers[peer as usize].peer }
    }

    /// Written frames that take no more, up to the first that does: what may leave without waiting for company. A frame
    /// that was held back once has waited long enough, whatever company it has found.
    pub(crate) fn complete_count(&self) -> usize {
        let growing = self.peers.iter().filter_map(|open| open.train).filter(|&train| train >= self.held);
        growing.min().map_or(self.written.len(), |first| first as usize)
    }

    #[inline]
    pub(crate) fn begin(&mut self, peer: &Peer, len_max: usize) -> Option<Slot<'_>> {
        assert!(len_max <= self.layout.payload_len_max(), "datagram of {len_max} bytes");
        // Also for a datagram that joins a train: it may turn out too long for it.
        let free = self.next_free()?;
        if self.peers.get(self.current).is_none_or(|open| open.peer != *peer) {
            let known = self.peers.iter().position(|open| open.peer == *peer);
            if known.is_none() {
                self.peers.truncate(self.known_peers);
                self.peers.push(Open { peer: *peer, train: None });
            }
            self.current = known.unwrap_or(self.known_peers);
        }
        let open = &mut self.peers[self.current];
        if open.train.is_some_and(|train| {
            self.written[train as usize].len as usize + len_max > self.layout.payload_len_max()
        }) {
            open.train = None;
        }
        let (frame, used, segment_len) = match open.train {
            Some(train) => {
                let train = self.written[train as usize];
                (train.frame, train.len as usize, train.segment_len as usize)
            }
            None => (free, 0, 0),
        };
        let start = self.layout.payload_start(frame) + used;
        // SAFETY: the frame is free or written and not handed over: the kernel does not know it, and nothing but this
        // outbox, which is borrowed exclusively for as long as the slice lives, touches it.
        let bytes = unsafe { self.memory.bytes_mut(start, len_max) };
        Some(Slot { bytes, segment_len })
    }

    #[inline]
    pub(crate) fn commit(&mut self, len: usize) {
        let len = len as u32;
        let peer = self.current as u32;
        self.known_peers = self.known_peers.max(self.current + 1);
        if let Some(train) = self.peers[self.current].train {
            let Written { frame, len: used, segment_len, count, .. } = self.written[train as usize];
            if len <= segment_len {
                self.written[train as usize].len += len;
                self.written[train as usize].count += 1;
                if len < segment_len || count + 1 == self.layout.segments_max {
                    self.peers[self.current].train = None;
                }
                return;
            }
            // A longer one starts a train, in a frame of its own; that costs a copy each time the length grows.
            let fresh = self.next_free().expect("begin has seen it");
            let (from, to) =
                (self.layout.payload_start(frame) + used as usize, self.layout.payload_start(fresh));
            // SAFETY: the frame is written and not handed over, so that only this outbox touches it.
            let written = unsafe { self.memory.bytes(from, len as usize) };
            // SAFETY: the frame is free, thus another one, and only this outbox touches it.
            let moved = unsafe { self.memory.bytes_mut(to, len as usize) };
            moved.copy_from_slice(written);
        }
        let frame = match self.order {
            FrameOrder::Newest => self.free.pop_back(),
            FrameOrder::Ring => self.free.pop_front(),
        };
        let frame = frame.expect("begin has seen it");
        self.peers[self.current].train = (self.layout.segments_max > 1).then_some(self.written.len() as u32);
        self.written.push(Written { frame, len, segment_len: len, count: 1, peer });
    }

    fn next_free(&self) -> Option<u32> {
        match self.order {
            FrameOrder::Newest => self.free.back().copied(),
            FrameOrder::Ring => self.free.front().copied(),
        }
    }

    /// The bytes for the headers of a frame that was written and not yet handed to the kernel, and its payload of `len`
    /// bytes.
    ///
    /// # Panics
    /// For a frame beyond the last.
    #[inline]
    pub(crate) fn headers_and_payload(&mut self, frame: u32, len: usize) -> (&mut [u8; HEADERS_LEN], &[u8]) {
        assert!(frame < self.layout.count, "frame {frame} of {}", self.layout.count);
        let start = self.layout.payload_start(frame) - HEADERS_LEN;
        // SAFETY: only written frames are asked for, which the kernel does not know yet; nothing but this outbox, which is
        // borrowed exclusively for as long as the slices live, touches them.
        let bytes = unsafe { self.memory.bytes_mut(start, HEADERS_LEN + len) };
        let (headers, payload) = bytes.split_first_chunk_mut().expect("as long as the headers");
        (headers, payload)
    }

    /// Forgets what was written; its frames stay in use until each is released.
    pub(crate) fn detach(&mut self) {
        self.detach_first(self.written.len());
    }

    /// Forgets the first `count` written frames, at most [`complete_count`](Self::complete_count) or all; they stay in
    /// use until each is released.
    pub(crate) fn detach_first(&mut self, count: usize) {
        self.written.drain(..count);
        self.held = self.written.len() as u32;
        for open in &mut self.peers {
            open.train = open.train.and_then(|train| train.checked_sub(count as u32));
        }
        // Only peers whose frames are held back are remembered: there may be any number of others.
        let mut kept = 0;
        for index in 0..self.peers.len() as u32 {
            if !self.written.iter().any(|written| written.peer == index) {
                continue;
            }
            self.peers[kept as usize] = self.peers[index as usize];
            let its = self.written.iter_mut().filter(|written| written.peer == index);
            its.for_each(|written| written.peer = kept);
            kept += 1;
        }
        self.peers.truncate(kept as usize);
        self.known_peers = self.peers.len();
        self.current = 0;
    }

    /// Frees a frame that was detached.
    #[inline]
    pub(crate) fn release(&mut self, frame: u32) {
        debug_assert!(!self.free.contains(&frame), "frame {frame} released twice");
        debug_assert!(frame < self.layout.count, "frame {frame} of {}", self.layout.count);
        self.free.push_back(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: FrameLayout =
        FrameLayout { first: 4_096, frame_len: 2_048, payload_at: 64, count: 4, segments_max: 1 };

    fn outbox(order: FrameOrder) -> FrameOutbox {
        FrameOutbox::new(Arc::new(FrameMemory::anonymous(16 << 10).unwrap()), LAYOUT, order)
    }

    fn peer(port: u16) -> Peer {
        Peer::datagram(([10, 0, 0, 1], port).into())
    }

    fn put(outbox: &mut FrameOutbox, to: u16, len: usize) {
        outbox.begin(&peer(to), 1_472).unwrap().bytes[..len].fill(len as u8);
        outbox.commit(len);
    }

    /// Goal: ring order is kept whatever is released meanwhile. Method: more datagrams than frames, released in order.
    #[test]
    fn frames_come_in_the_order_of_the_ring() {
        let mut outbox = outbox(FrameOrder::Ring);
        let mut seen = Vec::new();
        for round in 0..5 {
            for to in 0..3 {
                put(&mut outbox, to, 10 + round);
            }
            let frames: Vec<_> = (0..3).map(|index| outbox.written(index).frame).collect();
            outbox.detach();
            frames.iter().for_each(|&frame| outbox.release(frame));
            seen.extend(frames);
        }
        assert_eq!(seen, (0..15).map(|number| number % 4).collect::<Vec<_>>());
    }

    #[test]
    fn the_frame_freed_last_is_taken_first() {
        let mut outbox = outbox(FrameOrder::Newest);
        for _ in 0..3 {
            put(&mut outbox, 1, 5);
            let frame = outbox.written(0).frame;
            assert_eq!(frame, 3);
            outbox.detach();
            outbox.release(frame);
        }
    }

    /// Goal: each datagram keeps its peer, its bytes and its room for headers. Method: peers by turns, then all is read.
    #[test]
    fn written_frames_have_their_peers_and_bytes() {
        let mut outbox = outbox(FrameOrder::Ring);
        for (to, len) in [(1, 100), (2, 50), (1, 1_472), (3, 1)] {
            put(&mut outbox, to, len);
        }
        assert!(outbox.begin(&peer(1), 10).is_none(), "no fifth frame");
        let shape: Vec<_> = (0..outbox.written_count())
            .map(|index| {
                let WrittenFrame { frame, len, peer, .. } = outbox.written(index);
                (frame, len, peer.addr.port())
            })
            .collect();
        assert_eq!(shape, [(0, 100, 1), (1, 50, 2), (2, 1_472, 1), (3, 1, 3)]);
        let (headers, payload) = outbox.headers_and_payload(1, 50);
        headers.fill(9);
        assert!(payload.iter().all(|&byte| byte == 50) && payload.len() == 50);
        outbox.detach();
        assert_eq!((outbox.written_count(), outbox.free_count()), (0, 0));
        outbox.release(2);
        assert!(outbox.begin(&peer(4), 10).is_some());
        assert_eq!(outbox.free_count(), 1, "a frame that was begun and not committed is still free");
    }

    /// Goal: the rules of trains are those of the other layouts, and each train has a frame of its own. Method: lengths by
    /// turns for two peers; a longer datagram takes its bytes along.
    #[test]
    fn trains_grow_in_frames_of_their_own() {
        let layout = FrameLayout { frame_len: 4_096, segments_max: 3, first: 0, ..LAYOUT };
        let memory = Arc::new(FrameMemory::anonymous(16 << 10).unwrap());
        let mut outbox = FrameOutbox::new(memory, layout, FrameOrder::Ring);
        let shape = |outbox: &FrameOutbox| -> Vec<_> {
            let frames = (0..outbox.written_count()).map(|index| outbox.written(index));
            frames.map(|train| (train.frame, train.peer.addr.port(), train.segment_len, train.len)).collect()
        };
        for (to, len) in [(1, 100), (2, 50), (1, 60), (2, 80), (1, 70)] {
            put(&mut outbox, to, len);
        }
        assert_eq!(shape(&outbox), [(0, 1, 100, 160), (1, 2, 50, 50), (2, 2, 80, 80), (3, 1, 70, 70)]);
        assert!(outbox.begin(&peer(1), 10).is_none(), "no frame left in case it grows");
        let (_, payload) = outbox.headers_and_payload(2, 80);
        assert!(payload.iter().all(|&byte| byte == 80), "the longer one was moved");
        assert_eq!(outbox.complete_count(), 2);
        outbox.detach_first(2);
        outbox.release(0);
        outbox.release(1);
        for (to, len) in [(2, 80), (1, 70), (2, 80)] {
            put(&mut outbox, to, len);
        }
        assert_eq!(shape(&outbox), [(2, 2, 80, 240), (3, 1, 70, 140)], "full, and growing");
        assert_eq!(outbox.complete_count(), 2, "also the one that grows was held back already");
        assert_eq!(outbox.begin(&peer(2), 1_472).unwrap().segment_len, 0, "after a full train");
        assert_eq!(outbox.begin(&peer(1), 1_472).unwrap().segment_len, 70);
        assert_eq!((outbox.free_chunks(), outbox.used_chunks()), (1, 2));
        outbox.detach();
        assert_eq!((outbox.written_count(), outbox.complete_count()), (0, 0));
    }

    /// Goal: nobody waits for company for ever. Method: two peers, of which one never fills its train; at the second flush it
    /// leaves, although both go on growing, and a peer without frames is forgotten.
    #[test]
    fn a_train_is_held_back_once() {
        let layout = FrameLayout { frame_len: 4_096, segments_max: 8, first: 0, ..LAYOUT };
        let memory = Arc::new(FrameMemory::anonymous(16 << 10).unwrap());
        let mut outbox = FrameOutbox::new(memory, layout, FrameOrder::Ring);
        put(&mut outbox, 1, 50);
        put(&mut outbox, 2, 50);
        assert_eq!(outbox.complete_count(), 0);
        outbox.detach_first(0);
        put(&mut outbox, 2, 50);
        put(&mut outbox, 3, 50);
        assert_eq!(outbox.complete_count(), 2, "the first two have waited; the third is new");
        outbox.detach_first(2);
        assert_eq!(outbox.peers.len(), 1);
        put(&mut outbox, 2, 50);
        assert_eq!(outbox.written(0).peer, &peer(3));
        assert_eq!((outbox.written(1).peer, outbox.written(1).count), (&peer(2), 1), "a train of its own");
        assert_eq!(outbox.complete_count(), 1);
    }

    /// Goal: a train ends where its frame does. Method: datagrams of a length of which three do not fit.
    #[test]
    fn a_train_ends_with_its_frame() {
        let layout = FrameLayout { frame_len: 4_096, segments_max: 44, first: 0, ..LAYOUT };
        let memory = Arc::new(FrameMemory::anonymous(16 << 10).unwrap());
        let mut outbox = FrameOutbox::new(memory, layout, FrameOrder::Ring);
        for _ in 0..3 {
            put(&mut outbox, 1, 1_472);
        }
        let counts: Vec<_> = (0..outbox.written_count()).map(|index| outbox.written(index).count).collect();
        assert_eq!(counts, [2, 1]);
    }

    /// Goal: strangers do not make the list of peers longer. Method: many peers whose datagrams are begun and not committed,
    /// before and after something is written.
    #[test]
    fn peers_that_get_no_answer_are_forgotten() {
        let mut outbox = outbox(FrameOrder::Newest);
        for to in 0..1_000 {
            assert!(outbox.begin(&peer(to), 10).is_some());
        }
        assert_eq!(outbox.peers.len(), 1);
        put(&mut outbox, 7, 5);
        assert!(outbox.begin(&peer(8), 10).is_some() && outbox.begin(&peer(7), 10).is_some());
        outbox.commit(6);
        put(&mut outbox, 9, 5);
        let peers: Vec<_> = (0..3).map(|index| outbox.written(index).peer.addr.port()).collect();
        assert_eq!((peers, outbox.peers.len()), (vec![7, 7, 9], 2));
    }

    #[test]
    #[should_panic(expected = "datagram of 1985 bytes")]
    fn more_than_a_frame_holds_is_a_bug() {
        let _ = outbox(FrameOrder::Newest).begin(&peer(1), 1_985);
    }
}
