//! Zeroed memory straight from the kernel, on huge pages where it gives them; and words that processes share.

use std::{
    ffi::c_void,
    fs::File,
    io,
    marker::PhantomData,
    num::NonZeroUsize,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, BorrowedFd},
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use zerocopy::{FromBytes, IntoBytes};

/// The page size that `MADV_HUGEPAGE` asks for on x86-64 and on aarch64 with 4 KiB base pages.
const HUGE_PAGE_LEN: usize = 2 << 20;

/// An owned, zeroed array of `T` in its own anonymous mapping.
///
/// Unlike a `Vec`, its pages are not touched before they are used, and regions of at least 2 MiB are offered to the
/// kernel as huge pages: random access to a large table otherwise pays for a TLB miss at nearly every step.
#[derive(Debug)]
pub struct Region<T> {
    start: NonNull<c_void>,
    mapped_len: NonZeroUsize,
    count: usize,
    elements: PhantomData<T>,
}

// SAFETY: the region owns its mapping exclusively, as a `Box<[T]>` owns its allocation, so it may move to another
// thread whenever its elements may.
unsafe impl<T: Send> Send for Region<T> {}

impl<T: FromBytes + IntoBytes> Region<T> {
    /// Maps `count` elements, all bytes zero.
    ///
    /// # Errors
    /// `ENOMEM` of mmap(2) when the address space or the overcommit limit is exhausted; `InvalidInput` when the size
    /// overflows `usize`.
    pub fn zeroed(count: usize) -> io::Result<Self> {
        let wanted = count.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?;
        let rounding = if wanted >= HUGE_PAGE_LEN { HUGE_PAGE_LEN } else { 4096 };
        let mapped_len = wanted.max(1).checked_next_multiple_of(rounding).and_then(NonZeroUsize::new);
        let mapped_len = mapped_len.ok_or(io::ErrorKind::InvalidInput)?;
        let start = map_private(mapped_len)?;
        // mmap aligns to 4 KiB; no element type of this project wants more.
        assert!(align_of::<T>() <= 4096, "elements aligned to more than a page");
        Ok(Self { start, mapped_len, count, elements: PhantomData })
    }
}

/// Maps zeroed memory of this process's own, on huge pages if it is long enough for one and the kernel has them.
pub(crate) fn map_private(mapped_len: NonZeroUsize) -> io::Result<NonNull<c_void>> {
    // SAFETY: a private anonymous mapping at an address of the kernel's choosing aliases no existing memory.
    let start = unsafe {
        mmap_anonymous(None, mapped_len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
    }?;
    if mapped_len.get() >= HUGE_PAGE_LEN {
        // SAFETY: the range is exactly the mapping made above. The advice changes only the page size; a refusal
        // (kernel without huge pages) leaves ordinary pages, which is why the result is not looked at.
        let _ = unsafe { madvise(start, mapped_len.get(), MmapAdvise::MADV_HUGEPAGE) };
    }
    Ok(start)
}

impl<T> Deref for Region<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds at least `count` elements, is readable, page-aligned, and lives as long as
        // `self`; the kernel zeroed it and all-zero bytes are a valid `T` (`FromBytes` at construction).
        unsafe { std::slice::from_raw_parts(self.start.cast::<T>().as_ptr(), self.count) }
    }
}

impl<T> DerefMut for Region<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` proves that no other reference into the mapping is alive.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast::<T>().as_ptr(), self.count) }
    }
}

impl<T> Drop for Region<T> {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping that `zeroed` made, unmapped nowhere else, and no borrow outlives `self`.
        let unmapped = unsafe { munmap(self.start, self.mapped_len.get()) };
        debug_assert_eq!(unmapped, Ok(()), "munmap of an own mapping");
    }
}

/// Words that threads, or processes with the same file, read and write together; each access is atomic, so that there is
/// nothing that a careless process could break but the numbers themselves.
#[derive(Debug)]
pub struct SharedWords {
    start: NonNull<c_void>,
    mapped_len: NonZeroUsize,
    count: usize,
}

// SAFETY: the mapping belongs to this value alone and is only ever seen as `AtomicU64`, which any thread may use and
// drop.
unsafe impl Send for SharedWords {}

// SAFETY: as above: a shared reference gives nothing but atomic accesses.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// `count` zeroed words for the threads of this process.
    ///
    /// # Errors
    /// As [`Region::zeroed`].
    pub fn anonymous(count: usize) -> io::Result<Self> {
        let mapped_len = Self::mapped_len(count)?;
        let start = map_private(mapped_len)?;
        Ok(Self { start, mapped_len, count })
    }

    /// The first `count` words of `file`, shared with every process that maps it. Nobody may make the file shorter
    /// while it is mapped: an access beyond its end kills the process (`SIGBUS`, mmap(2)).
    ///
    /// # Errors
    /// `UnexpectedEof` when the file is shorter than that, and what fstat(2) or mmap(2) say.
    pub fn of_file(file: &File, count: usize) -> io::Result<Self> {
        if file.metadata()?.len() < (count * size_of::<u64>()) as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Self::of_fd(file.as_fd(), count)
    }

    /// The first `count` words of what `fd` stands for: a file that is long enough, or a BPF map of that size.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub(crate) fn of_fd(fd: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let mapped_len = Self::mapped_len(count)?;
        // SAFETY: a mapping at an address of the kernel's choosing aliases no memory of this process. Other processes
        // may change its bytes at any time, which atomic accesses, the only ones there are, allow for.
        let start = unsafe {
            mmap(None, mapped_len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, 0)
        }?;
        Ok(Self { start, mapped_len, count })
    }

    /// Asks the processor to bring the word at `index` into its caches, without waiting for it. Costs next to nothing,
    /// changes nothing, and is nothing on processors without a stable intrinsic for it.
    #[inline]
    pub fn prefetch(&self, index: usize) {
        let address = self.start.cast::<AtomicU64>().as_ptr().wrapping_add(index.min(self.count));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the intrinsic demands SSE, which every x86-64 processor has, and nothing of the address (Intel SDM
        // vol. 2, PREFETCHh).
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = address;
    }

    fn mapped_len(count: usize) -> io::Result<NonZeroUsize> {
        let wanted = count.checked_mul(size_of::<u64>()).ok_or(io::ErrorKind::InvalidInput)?;
        let mapped_len = wanted.max(1).checked_next_multiple_of(4096).and_then(NonZeroUsize::new);
        mapped_len.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds at least `count` words, is readable and writable, page-aligned, and lives as long
        // as `self`. Every bit pattern is an `AtomicU64`, and interior mutability allows others to write to it.
        unsafe { std::slice::from_raw_parts(self.start.cast::<AtomicU64>().as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping made at construction, unmapped nowhere else, and no borrow outlives `self`.
        let unmapped = unsafe { munmap(self.start, self.mapped_len.get()) };
        debug_assert_eq!(unmapped, Ok(()), "munmap of an own mapping");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn starts_zeroed_and_keeps_what_is_written() {
        let mut region = Region::<u64>::zeroed(300_000).unwrap();
        assert_eq!(region.len(), 300_000);
        assert!(region.iter().all(|&word| word == 0));
        region[299_999] = 7;
        assert_eq!(region[299_999], 7);
    }

    #[test]
    fn an_empty_region_is_an_empty_slice() {
        assert!(Region::<u8>::zeroed(0).unwrap().is_empty());
    }

    #[test]
    fn a_size_beyond_the_address_space_is_an_error() {
        assert!(Region::<u64>::zeroed(usize::MAX / 4).is_err());
        assert!(Region::<u8>::zeroed(usize::MAX / 2).is_err());
    }

    #[test]
    fn words_are_shared_between_threads() {
        let words = SharedWords::anonymous(300_000).unwrap();
        [0, 299_999, 300_000, usize::MAX].into_iter().for_each(|index| words.prefetch(index));
        assert!(words.iter().all(|word| word.load(Relaxed) == 0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for word in &*words {
                        word.fetch_add(1, Relaxed);
                    }
                });
            }
        });
        assert!(words.len() == 300_000 && words.iter().all(|word| word.load(Relaxed) == 4));
        assert!(SharedWords::anonymous(usize::MAX / 4).is_err());
    }

    /// Goal: two mappings of one file are the same words, and they stay in the file. Method: write through one, read
    /// through the other and from the file.
    #[test]
    fn words_of_a_file_are_shared() {
        let path = std::env::temp_dir().join(format!("linerate-words-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        assert_eq!(SharedWords::of_file(&file, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        file.set_len(80).unwrap();
        let (one, other) =
            (SharedWords::of_file(&file, 10).unwrap(), SharedWords::of_file(&file, 10).unwrap());
        one[9].store(7, Relaxed);
        assert_eq!(other[9].load(Relaxed), 7);
        assert_eq!(std::fs::read(&path).unwrap()[72..], 7u64.to_ne_bytes());
        std::fs::remove_file(&path).unwrap();
    }
}
