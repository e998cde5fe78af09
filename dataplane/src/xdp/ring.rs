//! The two ends of a ring that this process and the kernel share: one writes descriptors, the other takes them.
//!
//! ```text
//!  indices      consumer ──▶ ─────▶ producer ──▶            both count on for ever and wrap at 2³²
//!  slots     │ free │ written │ written │ free │ free │     slot = index & (count − 1)
//! ```
//! Each side stores its own index with release order and loads the other's with acquire order, so that what a slot holds
//! is there before the index says so (Documentation/networking/af_xdp.rst, net/xdp/xsk_queue.h). Both remember what they
//! saw last and look again only when that is not enough.

use std::{marker::PhantomData, ptr::NonNull, sync::atomic::AtomicU32, sync::atomic::Ordering};

use crate::frame_memory::FrameMemory;

/// What a ring lies in: two indices and a power of two of slots.
pub(crate) trait RingMemory {
    /// What a slot holds.
    type Descriptor: Copy;

    /// Number of slots, a power of two.
    fn count(&self) -> u32;

    /// The index that the producer will write to next.
    fn producer(&self, order: Ordering) -> u32;

    /// Tells the consumer how far it may read.
    fn set_producer(&self, index: u32);

    /// The index that the consumer will read next.
    fn consumer(&self, order: Ordering) -> u32;

    /// Tells the producer how far it may write.
    fn set_consumer(&self, index: u32);

    /// What is in the slot of an index.
    ///
    /// # Safety
    /// The index is one that the producer has released and the consumer has not.
    unsafe fn read(&self, index: u32) -> Self::Descriptor;

    /// Fills the slot of an index.
    ///
    /// # Safety
    /// The index is one that the consumer has released and the producer has not.
    unsafe fn write(&self, index: u32, descriptor: Self::Descriptor);
}

/// The end that writes: fill and TX ring.
#[derive(Debug)]
pub(crate) struct Producer<M> {
    memory: M,
    /// The next index to write to; those before it, from what the memory says on, are written and not released yet.
    next: u32,
    /// How far the consumer was when last looked at.
    consumer: u32,
}

impl<M: RingMemory> Producer<M> {
    pub(crate) fn new(memory: M) -> Self {
        let next = memory.producer(Ordering::Relaxed);
        let consumer = memory.consumer(Ordering::Acquire);
        Self { memory, next, consumer }
    }

    /// How many descriptors can be pushed; looks at the consumer only if that seems to be fewer than `wanted`.
    #[inline]
    pub(crate) fn free(&mut self, wanted: u32) -> u32 {
        if self.memory.count() - self.next.wrapping_sub(self.consumer) < wanted {
            self.consumer = self.memory.consumer(Ordering::Acquire);
        }
        let waiting = self.next.wrapping_sub(self.consumer);
        assert!(waiting <= self.memory.count(), "{waiting} descriptors in a ring of {}", self.memory.count());
        self.memory.count() - waiting
    }

    /// Writes one descriptor, which the consumer will see after the next [`release`](Self::release).
    ///
    /// # Panics
    /// When nothing is [free](Self::free).
    #[inline]
    pub(crate) fn push(&mut self, descriptor: M::Descriptor) {
        assert!(self.free(1) > 0, "a push to a full ring");
        // SAFETY: fewer descriptors than there are slots lie between the consumer's index, loaded with acquire order,
        // and this one: the consumer has released the slot, and this index was not released yet.
        unsafe { self.memory.write(self.next, descriptor) };
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the consumer everything pushed.
    #[inline]
    pub(crate) fn release(&mut self) {
        self.memory.set_producer(self.next);
    }

    /// How many descriptors the consumer has not taken yet.
    #[inline]
    pub(crate) fn waiting(&mut self) -> u32 {
        self.consumer = self.memory.consumer(Ordering::Acquire);
        self.next.wrapping_sub(self.consumer)
    }

    pub(crate) const fn memory(&self) -> &M {
        &self.memory
    }
}

/// The end that reads: RX and completion ring.
#[derive(Debug)]
pub(crate) struct Consumer<M> {
    memory: M,
    /// The next index to read; those before it, from what the memory says on, are read and not released yet.
    next: u32,
    /// How far the producer was when last looked at.
    producer: u32,
}

impl<M: RingMemory> Consumer<M> {
    pub(crate) fn new(memory: M) -> Self {
        let next = memory.consumer(Ordering::Relaxed);
        let producer = memory.producer(Ordering::Acquire);
        Self { memory, next, producer }
    }

    /// Takes one descriptor, whose slot the producer gets back with the next [`release`](Self::release).
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<M::Descriptor> {
        if self.producer == self.next {
            self.producer = self.memory.producer(Ordering::Acquire);
            if self.producer == self.next {
                return None;
            }
        }
        let ready = self.producer.wrapping_sub(self.next);
        assert!(ready <= self.memory.count(), "{ready} descriptors in a ring of {}", self.memory.count());
        // SAFETY: the index lies before the producer's, loaded with acquire order, and was not released yet.
        let descriptor = unsafe { self.memory.read(self.next) };
        self.next = self.next.wrapping_add(1);
        Some(descriptor)
    }

    /// Gives the producer everything popped to write to again.
    #[inline]
    pub(crate) fn release(&mut self) {
        self.memory.set_consumer(self.next);
    }
}

/// Where the parts of a ring lie in its mapping: `struct xdp_ring_offset`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingOffsets {
    pub(crate) producer: usize,
    pub(crate) consumer: usize,
    pub(crate) flags: usize,
    pub(crate) descriptors: usize,
}

/// A ring in memory that the kernel shares.
#[derive(Debug)]
pub(crate) struct MappedRing<D> {
    /// Keeps what the pointers below point to.
    memory: FrameMemory,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    descriptors: NonNull<D>,
    mask: u32,
    owned: PhantomData<D>,
}

// SAFETY: the mapping belongs to this value alone; indices and flags are atomics, and descriptors are plain numbers that
// are accessed by whoever holds the ring's only end on this side.
unsafe impl<D: Send> Send for MappedRing<D> {}

impl<D: Copy> MappedRing<D> {
    /// Bytes of whole pages that the process and the kernel share.
    pub(crate) const fn memory_len(&self) -> usize {
        self.memory.len().next_multiple_of(4096)
    }

    /// The ring with `count` slots at `offsets` of `memory`.
    ///
    /// # Panics
    /// When it does not lie in there or is not aligned, and when `count` is not a power of two.
    pub(crate) fn new(memory: FrameMemory, offsets: RingOffsets, count: u32) -> Self {
        assert!(count.is_power_of_two(), "a ring of {count} slots");
        let end = offsets.descriptors + count as usize * size_of::<D>();
        assert!(end <= memory.len(), "slots up to byte {end} of {}", memory.len());
        // Aligned to 8 as the mapping is to 4,096.
        assert!(offsets.descriptors.is_multiple_of(8) && align_of::<D>() <= 8);
        let word = |offset| NonNull::from(memory.word(offset));
        let descriptors = memory.start_ptr().wrapping_add(offsets.descriptors).cast::<D>();
        Self {
            producer: word(offsets.producer),
            consumer: word(offsets.consumer),
            flags: word(offsets.flags),
            descriptors: NonNull::new(descriptors).expect("no mapping reaches around the end of memory"),
            mask: count - 1,
            owned: PhantomData,
            memory,
        }
    }

    /// Whether the kernel sleeps and wants a system call to go on (`XDP_RING_NEED_WAKEUP`).
    #[inline]
    pub(crate) fn needs_wakeup(&self) -> bool {
        Self::word(&self.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    #[inline]
    const fn word(place: &NonNull<AtomicU32>) -> &AtomicU32 {
        // SAFETY: made from a reference into the mapping, which lives as long as the ring that the pointer is part of.
        unsafe { place.as_ref() }
    }

    #[inline]
    const fn slot(&self, index: u32) -> *mut D {
        self.descriptors.as_ptr().wrapping_add((index & self.mask) as usize)
    }
}

impl<D: Copy> RingMemory for MappedRing<D> {
    type Descriptor = D;

    #[inline]
    fn count(&self) -> u32 {
        self.mask + 1
    }

    #[inline]
    fn producer(&self, order: Ordering) -> u32 {
        Self::word(&self.producer).load(order)
    }

    #[inline]
    fn set_producer(&self, index: u32) {
        Self::word(&self.producer).store(index, Ordering::Release);
    }

    #[inline]
    fn consumer(&self, order: Ordering) -> u32 {
        Self::word(&self.consumer).load(order)
    }

    #[inline]
    fn set_consumer(&self, index: u32) {
        Self::word(&self.consumer).store(index, Ordering::Release);
    }

    #[inline]
    unsafe fn read(&self, index: u32) -> D {
        // SAFETY: the slot lies in the mapping and is aligned, as `new` checked; the caller promises that the producer
        // has filled it and does not write to it now.
        unsafe { self.slot(index).read() }
    }

    #[inline]
    unsafe fn write(&self, index: u32, descriptor: D) {
        // SAFETY: the slot lies in the mapping and is aligned, as `new` checked; the caller promises that the consumer
        // does not read it now.
        unsafe { self.slot(index).write(descriptor) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use loom::{cell::UnsafeCell, sync::atomic::AtomicU32 as LoomU32};

    use super::*;

    /// A ring whose every access loom sees: an index that is stored or loaded without the order that makes the slot's
    /// content visible is a data race on the cell.
    struct LoomRing {
        producer: LoomU32,
        consumer: LoomU32,
        slots: Vec<UnsafeCell<u32>>,
    }

    impl LoomRing {
        /// Empty, with both indices at `start`.
        fn new(count: usize, start: u32) -> Arc<Self> {
            let slots = (0..count).map(|_| UnsafeCell::new(u32::MAX)).collect();
            #[expect(clippy::arc_with_non_send_sync, reason = "loom's threads all run on one")]
            Arc::new(Self { producer: LoomU32::new(start), consumer: LoomU32::new(start), slots })
        }

        fn slot(&self, index: u32) -> &UnsafeCell<u32> {
            &self.slots[index as usize & (self.slots.len() - 1)]
        }
    }

    impl RingMemory for Arc<LoomRing> {
        type Descriptor = u32;

        fn count(&self) -> u32 {
            self.slots.len() as u32
        }

        fn producer(&self, order: Ordering) -> u32 {
            self.producer.load(order)
        }

        fn set_producer(&self, index: u32) {
            self.producer.store(index, Ordering::Release);
        }

        fn consumer(&self, order: Ordering) -> u32 {
            self.consumer.load(order)
        }

        fn set_consumer(&self, index: u32) {
            self.consumer.store(index, Ordering::Release);
        }

        unsafe fn read(&self, index: u32) -> u32 {
            // SAFETY: the pointer is that of a live `UnsafeCell`'s content, and loom, told of the read by `with`, ends the
            // test if a write overlaps it.
            self.slot(index).with(|slot| unsafe { *slot })
        }

        unsafe fn write(&self, index: u32, descriptor: u32) {
            // SAFETY: as in `read`; `with_mut` tells loom of the write, which ends the test if any access overlaps it.
            self.slot(index).with_mut(|slot| unsafe { *slot = descriptor });
        }
    }

    /// Goal: every descriptor arrives once, in order and whole, whatever the two sides see of each other when, also where
    /// indices wrap. Method: loom runs all interleavings of a producer and a consumer, and of what they may see of memory,
    /// for rings of 1, 2 and 4 slots that start just below 2³². Neither waits for the other, so that there are finitely
    /// many; what is left in the end is taken when both are through.
    #[test]
    fn all_interleavings_deliver_in_order() {
        for (count, batch) in [(1, 1), (2, 1), (2, 2), (4, 3)] {
            loom::model(move || {
                let ring = LoomRing::new(count, u32::MAX - 1);
                let producer_ring = Arc::clone(&ring);
                let producer = loom::thread::spawn(move || {
                    let mut producer = Producer::new(producer_ring);
                    let mut pushed = 0;
                    for _ in 0..3 {
                        for _ in 0..producer.free(batch).min(batch) {
                            producer.push(pushed);
                            pushed += 1;
                        }
                        producer.release();
                    }
                    pushed
                });
                let mut consumer = Consumer::new(ring);
                let mut popped = 0;
                let mut drain = || {
                    while let Some(descriptor) = consumer.pop() {
                        assert_eq!(descriptor, popped);
                        popped += 1;
                    }
                    consumer.release();
                    popped
                };
                drain();
                drain();
                let pushed = producer.join().unwrap();
                assert_eq!(drain(), pushed);
            });
        }
    }

    /// A mapping with a ring of `count` slots whose indices start at `start`, seen from both ends.
    pub(crate) fn mapped<D: Copy>(count: u32, start: u32) -> [MappedRing<D>; 2] {
        // Two mappings of one file are the same memory, as the kernel's and the process's are.
        let path = std::env::temp_dir().join(format!("linerate-ring-{}", rand::random::<u64>()));
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        let offsets = RingOffsets { producer: 0, consumer: 64, flags: 4, descriptors: 192 };
        [(); 2].map(|()| {
            let memory = FrameMemory::of_socket(std::os::fd::AsFd::as_fd(&file), 1 << 20, 0).unwrap();
            memory.word(offsets.producer).store(start, Ordering::Relaxed);
            memory.word(offsets.consumer).store(start, Ordering::Relaxed);
            MappedRing::new(memory, offsets, count)
        })
    }

    /// Goal: full and empty are told apart and indices wrap, in memory as the kernel's. Method: a ring over the edge of
    /// 2³², filled to the last slot, emptied, and half filled many times.
    #[test]
    fn a_mapped_ring_fills_empties_and_wraps() {
        let [memory, other_side] = mapped::<u64>(8, u32::MAX - 20);
        let (mut producer, mut consumer) = (Producer::new(memory), Consumer::new(other_side));
        let (mut pushed, mut popped) = (0, 0);
        for round in 0..20 {
            assert_eq!(producer.free(8), 8);
            for _ in 0..if round % 2 == 0 { 8 } else { 5 } {
                producer.push(pushed);
                pushed += 1;
            }
            assert_eq!(consumer.pop(), None, "not released yet");
            producer.release();
            while let Some(descriptor) = consumer.pop() {
                assert_eq!(descriptor, popped);
                popped += 1;
            }
            assert_eq!(producer.waiting(), if round % 2 == 0 { 8 } else { 5 }, "not released yet");
            consumer.release();
            assert_eq!((producer.waiting(), popped), (0, pushed));
        }
    }

    #[test]
    fn the_wakeup_flag_is_the_kernels() {
        let [memory, other_side] = mapped::<u64>(1, 0);
        assert!(!memory.needs_wakeup());
        MappedRing::<u64>::word(&other_side.flags).store(libc::XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
        assert!(memory.needs_wakeup());
    }

    #[test]
    #[should_panic(expected = "a push to a full ring")]
    fn a_push_to_a_full_ring_is_a_bug() {
        let [memory, _] = mapped::<u64>(2, 0);
        let mut producer = Producer::new(memory);
        (0..3).for_each(|number| producer.push(number));
    }
}
