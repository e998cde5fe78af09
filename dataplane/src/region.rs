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

/// What the length of a mapping on huge pages is rounded up to: the largest base page that Linux has (arm64 and ppc64 with
/// 64 KiB), since munmap(2) takes whole ones only. The rest of the last huge page is not mapped, so that it takes no memory.
pub const MAPPING_UNIT: usize = 64 << 10;

/// Smallest base page.
const PAGE_LEN: usize = 4096;

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
        let (start, mapped_len) = map_private(wanted)?;
        // mmap aligns to 4 KiB; no element type of this project wants more.
        assert!(align_of::<T>() <= PAGE_LEN, "elements aligned to more than a page");
        Ok(Self { start, mapped_len, count, elements: PhantomData })
    }
}

impl<T> Region<T> {
    /// Bytes that the region takes once all of it has been written to.
    #[must_use]
    pub const fn memory_len(&self) -> usize {
        self.mapped_len.get()
    }

    /// Takes all memory of the region from the system now, by the calling thread and so on its NUMA node, instead of page by
    /// page when it is first written to. Changes no element.
    ///
    /// # Errors
    /// What madvise(2) says of `MADV_POPULATE_WRITE`: `ENOMEM` or `EFAULT` when the memory is not to be had.
    pub fn populate(&mut self) -> io::Result<()> {
        // SAFETY: the range is exactly the mapping, which is private, anonymous and writable; the advice changes no byte.
        let advised =
            unsafe { libc::madvise(self.start.as_ptr(), self.mapped_len.get(), libc::MADV_POPULATE_WRITE) };
        if advised == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
        // A kernel before 5.14 does not know the advice.
        self.write_to_pages();
        Ok(())
    }

    /// Writes to each page what is there.
    fn write_to_pages(&mut self) {
        let start = self.start.cast::<u8>().as_ptr();
        for offset in (0..self.mapped_len.get()).step_by(PAGE_LEN) {
            let place = start.wrapping_add(offset);
            // SAFETY: the byte is inside the mapping, which is readable and initialised by the kernel.
            let byte = unsafe { place.read_volatile() };
            // SAFETY: the mapping is writable, and `&mut self` proves that nobody else refers to the byte.
            unsafe { place.write_volatile(byte) };
        }
    }
}

/// Maps zeroed memory of this process's own, at least `len` bytes. If it is long enough for a huge page it starts at one, so
/// that its first bytes can be on one too, and the kernel is asked for them.
pub(crate) fn map_private(len: usize) -> io::Result<(NonNull<c_void>, NonZeroUsize)> {
    let is_huge = len >= HUGE_PAGE_LEN;
    let unit = if is_huge { MAPPING_UNIT } else { PAGE_LEN };
    let mapped_len = len.max(1).checked_next_multiple_of(unit).and_then(NonZeroUsize::new);
    let mapped_len = mapped_len.ok_or(io::ErrorKind::InvalidInput)?;
    // Somewhere in so much more a huge page begins; mmap(2) itself promises no more than a base page.
    let spare_len = if is_huge { HUGE_PAGE_LEN } else { 0 };
    let asked_len = mapped_len.checked_add(spare_len).ok_or(io::ErrorKind::InvalidInput)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a private anonymous mapping at an address of the kernel's choosing aliases no existing memory.
    let start = unsafe { mmap_anonymous(None, asked_len, access, MapFlags::MAP_PRIVATE) }?;
    if !is_huge {
        return Ok((start, mapped_len));
    }
    let skipped_len = start.addr().get().next_multiple_of(HUGE_PAGE_LEN) - start.addr().get();
    // SAFETY: at most `HUGE_PAGE_LEN` bytes are skipped, which is what was asked for in addition.
    let aligned = unsafe { start.byte_add(skipped_len) };
    // SAFETY: as above: what was asked for reaches at least to there.
    let end = unsafe { aligned.byte_add(mapped_len.get()) };
    for (surplus, surplus_len) in [(start, skipped_len), (end, spare_len - skipped_len)] {
        if surplus_len > 0 {
            // SAFETY: these are bytes of the mapping made above: [start, aligned), and [end, start + asked_len), since
            // `end` is `skipped_len` + `mapped_len` behind `start`. Nobody has been given a pointer to them. `start` is at a
            // page (mmap(2)), `aligned` at a huge one, and `end` a multiple of 64 KiB behind that, so that each range
            // begins at a page and no page of what is kept lies in it.
            unsafe { munmap(surplus, surplus_len) }?;
        }
    }
    // SAFETY: the range is what is left of the mapping. The advice changes only the page size; a refusal (kernel without
    // huge pages) leaves ordinary pages, which is why the result is not looked at.
    let _ = unsafe { madvise(aligned, mapped_len.get(), MmapAdvise::MADV_HUGEPAGE) };
    Ok((aligned, mapped_len))
}

impl<T> Deref for Region<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `zeroed` mapped at least `count` × `size_of::<T>()` bytes, readable, at a page, and asserted that no `T`
        // wants more alignment; they stay mapped until `drop`, and a mapping is never longer than `isize::MAX`, of which
        // user space has but a part. The kernel zeroed them, any bytes are a valid `T` (`FromBytes`, demanded by
        // `zeroed`), and who writes does so through `&mut self`, which this borrow excludes.
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
        let (start, mapped_len) = map_private(Self::len_of(count)?)?;
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
        let mapped_len = Self::len_of(count)?.max(1).checked_next_multiple_of(PAGE_LEN);
        let mapped_len = mapped_len.and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
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

    fn len_of(count: usize) -> io::Result<usize> {
        count.checked_mul(size_of::<u64>()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
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

    /// Words of more than a huge page; miri knows no advice about those.
    const COUNT: usize = if cfg!(miri) { 1_000 } else { 300_000 };

    #[test]
    fn starts_zeroed_and_keeps_what_is_written() {
        let mut region = Region::<u64>::zeroed(COUNT).unwrap();
        assert_eq!(region.len(), COUNT);
        assert!(region.iter().all(|&word| word == 0));
        region[COUNT - 1] = 7;
        assert_eq!(region[COUNT - 1], 7);
    }

    #[test]
    fn an_empty_region_is_an_empty_slice() {
        assert!(Region::<u8>::zeroed(0).unwrap().is_empty());
    }

    #[test]
    #[cfg_attr(miri, ignore = "miri ends at what it cannot allocate")]
    fn a_size_beyond_the_address_space_is_an_error() {
        assert!(Region::<u64>::zeroed(usize::MAX / 4).is_err());
        assert!(Region::<u8>::zeroed(usize::MAX / 2).is_err());
        assert!(SharedWords::anonymous(usize::MAX / 4).is_err());
    }

    /// Goal: huge pages can be used from the first byte on, and no memory is taken beyond what was asked for. Method: lengths
    /// around one and several huge pages; all of each is written, at the places where pages begin and end.
    #[test]
    #[cfg_attr(miri, ignore = "miri gives no part of a mapping back")]
    fn long_regions_start_at_a_huge_page() {
        let mut regions = Vec::new();
        for len in [1, HUGE_PAGE_LEN - 1, HUGE_PAGE_LEN, HUGE_PAGE_LEN + 1, 5 * HUGE_PAGE_LEN + 70_000] {
            let mut region = Region::<u8>::zeroed(len).unwrap();
            let is_huge = len >= HUGE_PAGE_LEN;
            assert_eq!(region.as_ptr().addr() % if is_huge { HUGE_PAGE_LEN } else { PAGE_LEN }, 0, "{len}");
            let unit = if is_huge { MAPPING_UNIT } else { PAGE_LEN };
            assert_eq!(region.memory_len(), len.next_multiple_of(unit));
            for index in (0..len).step_by(PAGE_LEN).chain([len - 1]) {
                region[index] = index as u8 | 1;
            }
            regions.push(region);
        }
        // All at once: none was unmapped with another's surplus.
        for region in &regions {
            let places = (0..region.len()).step_by(PAGE_LEN).chain([region.len() - 1]);
            assert!(places.into_iter().all(|index| region[index] == index as u8 | 1));
        }
    }

    /// Goal: populated memory is there and holds what it held. Method: both ways, on a region that was partly written to.
    #[test]
    #[cfg_attr(miri, ignore = "miri gives no part of a mapping back")]
    fn populating_takes_all_memory_and_changes_nothing() {
        let resident = |region: &Region<u8>| {
            let mut pages = vec![0_u8; region.memory_len() / PAGE_LEN];
            // SAFETY: the mapping is as long as said, and there is a byte for each of its pages, or more.
            let told =
                unsafe { libc::mincore(region.start.as_ptr(), region.memory_len(), pages.as_mut_ptr()) };
            assert_eq!(told, 0);
            pages.iter().filter(|&page| page & 1 == 1).count() * PAGE_LEN
        };
        let ways: [fn(&mut Region<u8>); 2] =
            [|region| region.populate().unwrap(), |region| region.write_to_pages()];
        for way in ways {
            let mut region = Region::<u8>::zeroed(3 * HUGE_PAGE_LEN + 1).unwrap();
            region[PAGE_LEN] = 7;
            assert!(resident(&region) < region.memory_len());
            way(&mut region);
            assert_eq!(resident(&region), region.memory_len());
            assert_eq!(region.iter().map(|&byte| usize::from(byte)).sum::<usize>(), 7);
            assert_eq!(region[PAGE_LEN], 7);
        }
    }

    #[test]
    fn words_are_shared_between_threads() {
        let words = SharedWords::anonymous(COUNT).unwrap();
        [0, COUNT - 1, COUNT, usize::MAX].into_iter().for_each(|index| words.prefetch(index));
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
        assert!(words.len() == COUNT && words.iter().all(|word| word.load(Relaxed) == 4));
    }

    /// Goal: two mappings of one file are the same words, and they stay in the file. Method: write through one, read
    /// through the other and from the file.
    #[test]
    #[cfg_attr(miri, ignore = "miri maps no files")]
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
