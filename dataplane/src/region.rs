//! Zeroed memory straight from the kernel, on huge pages where it gives them.

use std::{
    ffi::c_void,
    io,
    marker::PhantomData,
    num::NonZeroUsize,
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
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
        // SAFETY: a private anonymous mapping at an address of the kernel's choosing aliases no existing memory.
        let start = unsafe {
            mmap_anonymous(
                None,
                mapped_len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            )
        }?;
        if mapped_len.get() >= HUGE_PAGE_LEN {
            // SAFETY: the range is exactly the mapping made above. The advice changes only the page size; a refusal
            // (kernel without huge pages) leaves ordinary pages, which is why the result is not looked at.
            let _ = unsafe { madvise(start, mapped_len.get(), MmapAdvise::MADV_HUGEPAGE) };
        }
        // mmap aligns to 4 KiB; no element type of this project wants more.
        assert!(align_of::<T>() <= 4096, "elements aligned to more than a page");
        Ok(Self { start, mapped_len, count, elements: PhantomData })
    }
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

#[cfg(test)]
mod tests {
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
}
