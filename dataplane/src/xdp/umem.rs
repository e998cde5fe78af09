//! Which frame of a UMEM is where: every frame is in exactly one place, and only moves along the arrows.
//!
//! ```text
//!  RX   free ──▶ with the kernel (fill ring, driver, RX ring) ──▶ lent ──▶ free
//!                                                                  └────▶ away at another core ──▶ free
//!  TX   free (outbox) ──▶ with the kernel (TX ring, device, completion ring) ──▶ free
//! ```
//! Tests and builds with debug assertions keep a ledger and check every move against it.

use super::ring::{Consumer, Producer, RingMemory};

/// A stretch of a UMEM that is cut into frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frames {
    /// First byte of frame 0, counted from the UMEM's start.
    pub(crate) first: u64,
    /// Bytes of a frame, a power of two.
    pub(crate) frame_len: u32,
    /// Number of frames.
    pub(crate) count: u32,
}

impl Frames {
    const fn start(&self, frame: u32) -> u64 {
        self.first + frame as u64 * self.frame_len as u64
    }

    /// The frame that an address lies in.
    fn at(&self, address: u64) -> u32 {
        let frame = address.wrapping_sub(self.first) / u64::from(self.frame_len);
        assert!(frame < u64::from(self.count), "address {address} of the kernel is in none of the {self:?}");
        frame as u32
    }
}

/// Where a frame may be.
#[cfg_attr(not(any(test, debug_assertions)), allow(dead_code, reason = "the ledger is not kept"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Free,
    Kernel,
    Lent,
    Away,
}

/// Where each frame is.
#[derive(Debug)]
struct Ledger {
    #[cfg(any(test, debug_assertions))]
    places: Vec<Place>,
}

#[cfg_attr(not(any(test, debug_assertions)), expect(clippy::needless_pass_by_ref_mut, unused_variables))]
impl Ledger {
    fn new(count: u32) -> Self {
        Self {
            #[cfg(any(test, debug_assertions))]
            places: vec![Place::Free; count as usize],
        }
    }

    #[inline]
    fn move_frame(&mut self, frame: u32, from: Place, to: Place) {
        #[cfg(any(test, debug_assertions))]
        {
            let place = &mut self.places[frame as usize];
            assert_eq!(*place, from, "frame {frame} on its way to {to:?}");
            *place = to;
        }
    }
}

/// A frame that the kernel has filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) frame: u32,
    /// First byte, counted from the UMEM's start.
    pub(crate) start: u64,
    pub(crate) len: u32,
}

/// The receiving half of a UMEM: frames, fill ring and RX ring.
#[derive(Debug)]
pub(crate) struct RxFrames<F, R> {
    frames: Frames,
    fill: Producer<F>,
    rx: Consumer<R>,
    /// Most frames to leave with the kernel.
    kernel_max: u32,
    with_kernel: u32,
    away: u32,
    free: Vec<u32>,
    /// Lent until the next burst.
    lent: Vec<u32>,
    ledger: Ledger,
}

impl<F, R> RxFrames<F, R>
where
    F: RingMemory<Descriptor = u64>,
    R: RingMemory<Descriptor = libc::xdp_desc>,
{
    /// All frames free. Of them the kernel gets at most `kernel_max` at a time.
    ///
    /// # Panics
    /// When the RX ring has fewer slots than there are frames, or the fill ring fewer than twice as many.
    pub(crate) fn new(frames: Frames, fill: F, rx: R, kernel_max: u32) -> Self {
        // The kernel says that it took frames from the fill ring only when it looks for more (`__xskq_cons_release`,
        // net/xdp/xsk_queue.h); until then their slots are taken twice over.
        assert!(fill.count() >= 2 * frames.count && rx.count() >= frames.count, "rings take all frames");
        Self {
            frames,
            fill: Producer::new(fill),
            rx: Consumer::new(rx),
            kernel_max,
            with_kernel: 0,
            away: 0,
            free: (0..frames.count).rev().collect(),
            lent: Vec::with_capacity(frames.count as usize),
            ledger: Ledger::new(frames.count),
        }
    }

    /// Gives free frames to the kernel.
    pub(crate) fn refill(&mut self) {
        let count = (self.kernel_max - self.with_kernel).min(self.free.len() as u32);
        if count == 0 {
            return;
        }
        for _ in 0..count {
            let frame = self.free.pop().expect("as many are free");
            self.ledger.move_frame(frame, Place::Free, Place::Kernel);
            self.fill.push(self.frames.start(frame));
        }
        self.with_kernel += count;
        self.fill.release();
    }

    /// The next frame that the kernel has filled. It is lent until it is given back or sent away.
    #[inline]
    pub(crate) fn receive(&mut self) -> Option<Filled> {
        let descriptor = self.rx.pop()?;
        let frame = self.frames.at(descriptor.addr);
        self.ledger.move_frame(frame, Place::Kernel, Place::Lent);
        self.with_kernel -= 1;
        Some(Filled { frame, start: descriptor.addr, len: descriptor.len })
    }

    /// Frees the slots of the RX ring that were received from.
    pub(crate) fn release_slots(&mut self) {
        self.rx.release();
    }

    /// Notes a lent frame that is to be given back by [`end_loans`](Self::end_loans).
    #[inline]
    pub(crate) fn lend(&mut self, frame: u32) {
        self.lent.push(frame);
    }

    /// Takes back everything noted by [`lend`](Self::lend).
    pub(crate) fn end_loans(&mut self) {
        for frame in self.lent.drain(..) {
            self.ledger.move_frame(frame, Place::Lent, Place::Free);
            self.free.push(frame);
        }
    }

    /// Takes back a lent frame at once.
    pub(crate) fn give_back(&mut self, frame: u32) {
        self.ledger.move_frame(frame, Place::Lent, Place::Free);
        self.free.push(frame);
    }

    /// Whether another frame may go to another core. Half of them stay: a core that is slow to take its datagrams, or that
    /// nobody polls, must not leave this queue without frames.
    pub(crate) const fn can_spare(&self) -> bool {
        self.away < self.frames.count / 2
    }

    /// A lent frame goes to another core.
    pub(crate) fn send_away(&mut self, frame: u32) {
        self.ledger.move_frame(frame, Place::Lent, Place::Away);
        self.away += 1;
    }

    /// A frame comes back from another core.
    pub(crate) fn come_back(&mut self, frame: u32) {
        self.ledger.move_frame(frame, Place::Away, Place::Free);
        self.away -= 1;
        self.free.push(frame);
    }

    /// The ring that may ask for a wake-up.
    pub(crate) const fn fill_ring(&self) -> &F {
        self.fill.memory()
    }

    /// Number of frames that wait at other cores.
    pub(crate) const fn away(&self) -> u32 {
        self.away
    }

    /// Number of frames that the kernel has.
    #[cfg(test)]
    pub(crate) const fn with_kernel(&self) -> u32 {
        self.with_kernel
    }

    /// Whether every frame is accounted for, exactly once.
    #[cfg(test)]
    pub(crate) fn assert_complete(&self) {
        let sum = self.free.len() as u32 + self.with_kernel + self.away + self.lent.len() as u32;
        assert_eq!(sum, self.frames.count, "{self:?}", self = (self.free.len(), self.with_kernel, self.away));
        for (place, count) in [
            (Place::Free, self.free.len()),
            (Place::Kernel, self.with_kernel as usize),
            (Place::Lent, self.lent.len()),
            (Place::Away, self.away as usize),
        ] {
            assert_eq!(self.ledger.places.iter().filter(|&&at| at == place).count(), count, "{place:?}");
        }
        assert!(self.free.iter().all(|&frame| self.ledger.places[frame as usize] == Place::Free));
    }
}

/// The sending half of a UMEM: TX ring and completion ring. The frames that are free are the outbox's to keep.
#[derive(Debug)]
pub(crate) struct TxFrames<T, C> {
    frames: Frames,
    tx: Producer<T>,
    completion: Consumer<C>,
    with_kernel: u32,
    ledger: Ledger,
}

impl<T, C> TxFrames<T, C>
where
    T: RingMemory<Descriptor = libc::xdp_desc>,
    C: RingMemory<Descriptor = u64>,
{
    /// All frames with the outbox.
    ///
    /// # Panics
    /// When the completion ring has fewer slots than there are frames, or the TX ring fewer than twice as many.
    pub(crate) fn new(frames: Frames, tx: T, completion: C) -> Self {
        // As with the fill ring: a kernel before 6.17 that copies, and stops before the ring is empty, does not say which
        // slots it is through with (`__xsk_generic_xmit`, net/xdp/xsk.c), although their frames come back completed.
        let fits = tx.count() >= 2 * frames.count && completion.count() >= frames.count;
        assert!(fits, "rings take all frames");
        Self {
            frames,
            tx: Producer::new(tx),
            completion: Consumer::new(completion),
            with_kernel: 0,
            ledger: Ledger::new(frames.count),
        }
    }

    /// Hands `len` bytes from `offset` of a frame on to the kernel, with the next [`release`](Self::release).
    #[inline]
    pub(crate) fn submit(&mut self, frame: u32, offset: u32, len: u32) {
        assert!(offset + len <= self.frames.frame_len, "{len} bytes at {offset} of a frame");
        self.ledger.move_frame(frame, Place::Free, Place::Kernel);
        self.with_kernel += 1;
        let addr = self.frames.start(frame) + u64::from(offset);
        self.tx.push(libc::xdp_desc { addr, len, options: 0 });
    }

    /// Shows the kernel what was submitted.
    pub(crate) fn release(&mut self) {
        self.tx.release();
    }

    /// Frames that the kernel has not taken from the ring yet.
    pub(crate) fn waiting(&mut self) -> u32 {
        self.tx.waiting()
    }

    /// Frames that were submitted and did not come back yet.
    pub(crate) const fn with_kernel(&self) -> u32 {
        self.with_kernel
    }

    /// Takes back what the kernel is through with.
    #[inline]
    pub(crate) fn reap(&mut self, mut free: impl FnMut(u32)) {
        let before = self.with_kernel;
        while let Some(address) = self.completion.pop() {
            let frame = self.frames.at(address);
            self.ledger.move_frame(frame, Place::Kernel, Place::Free);
            self.with_kernel -= 1;
            free(frame);
        }
        if self.with_kernel != before {
            self.completion.release();
        }
    }

    /// The ring that may ask for a wake-up.
    pub(crate) const fn tx_ring(&self) -> &T {
        self.tx.memory()
    }

    /// Whether the ledger agrees with the count.
    #[cfg(test)]
    pub(crate) fn assert_complete(&self) {
        let held = self.ledger.places.iter().filter(|&&place| place == Place::Kernel).count();
        assert_eq!(held, self.with_kernel as usize);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

    use super::*;
    use crate::xdp::ring::tests::mapped;

    const RX: Frames = Frames { first: 0, frame_len: 2_048, count: 32 };
    const TX: Frames = Frames { first: 32 * 2_048, frame_len: 2_048, count: 16 };

    /// Takes one of `frames` out, whichever.
    fn any<T>(random: &mut SmallRng, frames: &mut VecDeque<T>) -> Option<T> {
        (!frames.is_empty())
            .then(|| random.random_range(0..frames.len()))
            .and_then(|index| frames.remove(index))
    }

    /// Goal: no frame is lost or in two places, whatever the kernel does when. Method: a simulated kernel takes frames
    /// from the fill and TX rings and returns them in any order and amount, while this side receives, lends, gives back,
    /// sends away, takes back, submits and reaps at random; after each step both sides' books must agree, and in the end
    /// every frame must be free again.
    #[test]
    fn every_frame_is_in_one_place() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let [fill, kernel_fill] = mapped(64, u32::MAX - 100);
        let [rx, kernel_rx] = mapped(32, u32::MAX - 200);
        let [tx, kernel_tx] = mapped(32, u32::MAX - 300);
        let [completion, kernel_completion] = mapped(16, u32::MAX - 50);
        let mut receiving = RxFrames::new(RX, fill, rx, 28);
        let mut sending = TxFrames::new(TX, tx, completion);
        let (mut kernel_fill, mut kernel_rx) = (Consumer::new(kernel_fill), Producer::new(kernel_rx));
        let (mut kernel_tx, mut kernel_completion) =
            (Consumer::new(kernel_tx), Producer::new(kernel_completion));
        // What the kernel has taken; what is with whom on this side.
        let (mut seen, mut filling) = (VecDeque::new(), VecDeque::new());
        let (mut queued, mut transmitting) = (VecDeque::new(), VecDeque::new());
        let (mut lent, mut away) = (VecDeque::new(), VecDeque::new());
        let mut outbox: VecDeque<u32> = (0..TX.count).collect();
        let mut received = 0;
        for step in 0..50_000 {
            let closing = step >= 45_000;
            let amount = random.random_range(0..8);
            match random.random_range(0..11) {
                0 => {
                    for _ in 0..amount {
                        if seen.is_empty() {
                            // As the kernel does it: what was taken is told only when more is looked for.
                            kernel_fill.release();
                            seen.extend(std::iter::from_fn(|| kernel_fill.pop()));
                        }
                        filling.extend(seen.pop_front());
                    }
                }
                1 => {
                    for _ in 0..amount {
                        let Some(address) = any(&mut random, &mut filling) else { break };
                        let descriptor = libc::xdp_desc { addr: address + 256, len: 60, options: 0 };
                        kernel_rx.push(descriptor);
                    }
                    kernel_rx.release();
                }
                2 => {
                    for _ in 0..amount {
                        if queued.is_empty() {
                            // As before Linux 6.17: what was taken is told only when more is looked for.
                            kernel_tx.release();
                            queued.extend(std::iter::from_fn(|| kernel_tx.pop()));
                        }
                        transmitting
                            .extend(queued.pop_front().map(|descriptor: libc::xdp_desc| descriptor.addr));
                    }
                }
                3 => {
                    for _ in 0..amount {
                        let Some(address) = any(&mut random, &mut transmitting) else { break };
                        kernel_completion.push(address);
                    }
                    kernel_completion.release();
                }
                4 if !closing => receiving.refill(),
                5 => {
                    for _ in 0..amount {
                        let Some(filled) = receiving.receive() else { break };
                        assert_eq!(filled.start, u64::from(filled.frame) * 2_048 + 256);
                        received += 1;
                        match random.random_range(0..4) {
                            0 => receiving.give_back(filled.frame),
                            1 => {
                                receiving.send_away(filled.frame);
                                away.push_back(filled.frame);
                            }
                            _ => {
                                receiving.lend(filled.frame);
                                lent.push_back(filled.frame);
                            }
                        }
                    }
                    receiving.release_slots();
                }
                6 => {
                    receiving.end_loans();
                    lent.clear();
                }
                7 => any(&mut random, &mut away).into_iter().for_each(|frame| receiving.come_back(frame)),
                8 if !closing => {
                    for _ in 0..amount {
                        let Some(frame) = any(&mut random, &mut outbox) else { break };
                        sending.submit(frame, 22, 42 + 100);
                    }
                    sending.release();
                }
                9 => sending.reap(|frame| outbox.push_back(frame)),
                _ => assert!(sending.waiting() <= 2 * TX.count),
            }
            receiving.assert_complete();
            sending.assert_complete();
            assert_eq!(receiving.lent.len(), lent.len());
            assert_eq!(outbox.len() as u32 + sending.with_kernel(), TX.count);
        }
        assert!(received > 5_000, "{received} frames received");
        assert_eq!((receiving.free.len(), outbox.len()), (32, 16), "all came to rest");
    }

    #[test]
    #[should_panic(expected = "on its way to Free")]
    fn a_frame_given_back_twice_is_a_bug() {
        let ([fill, kernel_fill], [rx, kernel_rx]) = (mapped(64, 0), mapped(32, 0));
        let mut receiving = RxFrames::new(RX, fill, rx, 32);
        receiving.refill();
        let address = Consumer::new(kernel_fill).pop().unwrap();
        let mut kernel_rx = Producer::new(kernel_rx);
        kernel_rx.push(libc::xdp_desc { addr: address, len: 60, options: 0 });
        kernel_rx.release();
        let filled = receiving.receive().unwrap();
        receiving.give_back(filled.frame);
        receiving.give_back(filled.frame);
    }
}
