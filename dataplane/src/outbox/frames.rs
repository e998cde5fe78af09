//! Memory for outgoing datagrams in frames of a ring: one datagram each, with room for its headers in front.
//!
//! ```text
//!  frame │ … │ headers 42 │ payload (1,472) │ … │
//!              payload_at ▲
//! ```

use std::{collections::VecDeque, sync::Arc};

use crate::{frame::HEADERS_LEN, frame_memory::FrameMemory, outbox::Slot, port::Peer};

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

/// A datagram written and not yet sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WrittenFrame<'a> {
    pub(crate) frame: u32,
    /// Bytes of payload.
    pub(crate) len: u32,
    pub(crate) peer: &'a Peer,
}

#[derive(Clone, Copy, Debug)]
struct Written {
    frame: u32,
    len: u32,
    peer: u32,
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
    peers: Vec<Peer>,
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
            peers: Vec::with_capacity(count),
            current: 0,
        }
    }

    pub(crate) fn free_count(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn written_count(&self) -> usize {
        self.written.len()
    }

    pub(crate) fn written(&self, index: usize) -> WrittenFrame<'_> {
        let Written { frame, len, peer } = self.written[index];
        WrittenFrame { frame, len, peer: &self.peers[peer as usize] }
    }

    #[inline]
    pub(crate) fn begin(&mut self, peer: &Peer, len_max: usize) -> Option<Slot<'_>> {
        assert!(len_max <= self.layout.payload_len_max(), "datagram of {len_max} bytes");
        let frame = *match self.order {
            FrameOrder::Newest => self.free.back(),
            FrameOrder::Ring => self.free.front(),
        }?;
        if self.peers.get(self.current) != Some(peer) {
            self.current = self.peers.iter().position(|known| known == peer).unwrap_or(self.peers.len());
            if self.current == self.peers.len() {
                self.peers.push(*peer);
            }
        }
        let start = self.layout.payload_start(frame);
        // SAFETY: the frame is free: the kernel has given it back, and nothing but this outbox, which is borrowed
        // exclusively for as long as the slice lives, touches it.
        let bytes = unsafe { self.memory.bytes_mut(start, len_max) };
        Some(Slot { bytes, segment_len: 0 })
    }

    #[inline]
    pub(crate) fn commit(&mut self, len: usize) {
        let frame = match self.order {
            FrameOrder::Newest => self.free.pop_back(),
            FrameOrder::Ring => self.free.pop_front(),
        };
        let frame = frame.expect("begin has seen it");
        self.written.push(Written { frame, len: len as u32, peer: self.current as u32 });
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
        self.written.clear();
        self.peers.clear();
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

    const LAYOUT: FrameLayout = FrameLayout { first: 4_096, frame_len: 2_048, payload_at: 64, count: 4 };

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
                let WrittenFrame { frame, len, peer } = outbox.written(index);
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

    #[test]
    #[should_panic(expected = "datagram of 1985 bytes")]
    fn more_than_a_frame_holds_is_a_bug() {
        let _ = outbox(FrameOrder::Newest).begin(&peer(1), 1_985);
    }
}
