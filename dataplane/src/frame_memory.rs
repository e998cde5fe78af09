//! Memory that the kernel reads and writes too: the frames of packet rings and of UMEMs.

use std::{
    ffi::c_void, io, marker::PhantomData, num::NonZeroUsize, os::fd::BorrowedFd, ptr::NonNull,
    sync::atomic::AtomicU32,
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::region::map_private;

/// Frames in a mapping that this process shares with the kernel.
///
/// Which of the two may touch a frame is settled by the rings that go with it, never by the type: whoever asks for the
/// bytes of a frame has to know that they are its own.
#[derive(Debug)]
pub(crate) struct FrameMemory {
    start: NonNull<c_void>,
    mapped_len: NonZeroUsize,
}

// SAFETY: the mapping belongs to this value alone and gives out nothing but atomics, and slices whose callers answer for
// who else touches them.
unsafe impl Send for FrameMemory {}

// SAFETY: as above.
unsafe impl Sync for FrameMemory {}

impl FrameMemory {
    /// Zeroed memory of this process, for a UMEM; on huge pages where the kernel has them.
    ///
    /// # Errors
    /// `ENOMEM` of mmap(2); `InvalidInput` for no bytes or more than can be addressed.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        if len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (start, mapped_len) = map_private(len)?;
        Ok(Self { start, mapped_len })
    }

    /// `len` bytes of a socket's rings, from `offset` of its mapping on (packet_mmap, AF_XDP).
    ///
    /// # Errors
    /// What mmap(2) says; `InvalidInput` for no bytes.
    pub(crate) fn of_socket(socket: BorrowedFd<'_>, len: usize, offset: i64) -> io::Result<Self> {
        let mapped_len = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a mapping at an address of the kernel's choosing aliases no memory of this process. That the kernel
        // writes to it is what `bytes` and `word` are made for.
        let start = unsafe { mmap(None, mapped_len, access, flags, socket, offset) }?;
        Ok(Self { start, mapped_len })
    }

    /// Where the memory starts; at a page's beginning.
    pub(crate) const fn start_ptr(&self) -> *mut u8 {
        self.start.as_ptr().cast()
    }

    /// Bytes mapped.
    pub(crate) const fn len(&self) -> usize {
        self.mapped_len.get()
    }

    /// `len` bytes from `start` on.
    ///
    /// # Panics
    /// When they are not all inside.
    ///
    /// # Safety
    /// Nobody, the kernel included, may write to them while the slice lives.
    #[inline]
    pub(crate) unsafe fn bytes(&self, start: usize, len: usize) -> &[u8] {
        let place = self.place(start, len);
        // SAFETY: `place` checked that the range is inside the mapping, which is readable and lives as long as `self`;
        // that nobody writes to it is the caller's promise.
        unsafe { std::slice::from_raw_parts(place, len) }
    }

    /// `len` bytes from `start` on, to write to.
    ///
    /// # Panics
    /// When they are not all inside.
    ///
    /// # Safety
    /// Nobody else, the kernel included, may write to them while the slice lives, and nobody of this process read them.
    #[inline]
    #[expect(clippy::mut_from_ref, reason = "whose the bytes are is settled by the rings")]
    pub(crate) unsafe fn bytes_mut(&self, start: usize, len: usize) -> &mut [u8] {
        let place = self.place(start, len);
        // SAFETY: as in `bytes`; the mapping is writable, and that the slice is the only one is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(place, len) }
    }

    /// The word at `offset`, which the kernel may change at any time.
    ///
    /// # Panics
    /// When it is not inside, or not aligned to 4 bytes.
    #[inline]
    pub(crate) fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "a word at byte {offset}");
        let place = self.place(offset, size_of::<u32>());
        #[expect(
            clippy::cast_ptr_alignment,
            reason = "the mapping starts at a page, the offset is a multiple of 4"
        )]
        let place = place.cast::<u32>();
        // SAFETY: the word is inside the mapping, aligned, and only ever accessed atomically on this side.
        unsafe { AtomicU32::from_ptr(place) }
    }

    #[inline]
    fn place(&self, start: usize, len: usize) -> *mut u8 {
        let inside = start <= self.len() && len <= self.len() - start;
        assert!(inside, "{len} bytes at {start} of {}", self.len());
        self.start_ptr().wrapping_add(start)
    }
}

impl Drop for FrameMemory {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping made at construction, unmapped nowhere else, and no borrow outlives `self`.
        let unmapped = unsafe { munmap(self.start, self.mapped_len.get()) };
        debug_assert_eq!(unmapped, Ok(()), "munmap of an own mapping");
    }
}

/// The memory that the datagrams of a burst lie in, of which some parts may meanwhile be written to by the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LentMemory<'a> {
    start: NonNull<u8>,
    len: usize,
    lender: PhantomData<&'a [u8]>,
}

impl<'a> From<&'a [u8]> for LentMemory<'a> {
    fn from(memory: &'a [u8]) -> Self {
        Self { start: NonNull::from(memory).cast(), len: memory.len(), lender: PhantomData }
    }
}

impl<'a> LentMemory<'a> {
    /// Frames of a ring.
    ///
    /// # Safety
    /// While the result lives, nobody may write to the ranges that its [`bytes`](Self::bytes) are asked for, which are
    /// those in the burst's `Inbox`.
    pub(crate) unsafe fn of_frames(memory: &'a FrameMemory) -> Self {
        Self { start: memory.start.cast(), len: memory.len(), lender: PhantomData }
    }

    /// `len` bytes from `start` on.
    ///
    /// # Panics
    /// When they are not all inside.
    #[inline]
    pub(crate) fn bytes(self, start: usize, len: usize) -> &'a [u8] {
        let inside = start <= self.len && len <= self.len - start;
        assert!(inside, "{len} bytes at {start} of {}", self.len);
        let place = self.start.as_ptr().wrapping_add(start);
        // SAFETY: the range is inside memory that is borrowed for `'a`. Nobody writes to it: either all of the memory is
        // borrowed as a slice, or that was promised for this range to `of_frames`.
        unsafe { std::slice::from_raw_parts(place, len) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn bytes_and_words_are_of_the_same_memory() {
        let memory = FrameMemory::anonymous(5_000).unwrap();
        assert_eq!(memory.len(), 8_192);
        memory.word(4_096).store(u32::from_ne_bytes(*b"abcd"), Relaxed);
        // SAFETY: nobody else knows this memory.
        let bytes = unsafe { memory.bytes_mut(4_094, 8) };
        assert_eq!(bytes, b"\0\0abcd\0\0");
        bytes[1] = b'!';
        // SAFETY: as above; the slice written through is not used any more.
        let lent = unsafe { LentMemory::of_frames(&memory) };
        assert_eq!(lent.bytes(4_095, 3), b"!ab");
        assert_eq!(lent.bytes(8_192, 0), b"");
    }

    #[test]
    #[should_panic(expected = "2 bytes at 8191 of 8192")]
    fn bytes_outside_are_a_bug() {
        let memory = FrameMemory::anonymous(8_192).unwrap();
        // SAFETY: nobody else knows this memory.
        let lent = unsafe { LentMemory::of_frames(&memory) };
        lent.bytes(8_191, 2);
    }

    #[test]
    fn no_memory_is_an_error() {
        assert_eq!(FrameMemory::anonymous(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
