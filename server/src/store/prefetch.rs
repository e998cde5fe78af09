//! Hints that bring memory into the cache before it is read.

/// What one prefetch brings in, in bytes.
pub(super) const LINE_LEN: usize = 64;

/// Lines of an item that are asked for without a branch: an item of 128 bytes spans 3. A loop over each item's own
/// count costs 1 ns more per uniform get.
const LINES_UNCONDITIONAL: usize = 4;

/// Brings the cache line that holds byte `start` of `memory` into all cache levels.
///
/// A hint: it changes nothing but speed, and a `start` outside `memory` is harmless.
#[inline(always)]
pub(super) fn prefetch_line(memory: &[u8], start: usize) {
    prefetch(memory.as_ptr().wrapping_add(start));
}

/// Like [`prefetch_line`] for `line_count` lines on end; 0 is treated as 1.
#[inline(always)]
pub(super) fn prefetch_lines(memory: &[u8], start: usize, line_count: usize) {
    let first = memory.as_ptr().wrapping_add(start);
    let last = line_count.saturating_sub(1);
    for line in 0..LINES_UNCONDITIONAL {
        prefetch(first.wrapping_add(line.min(last) * LINE_LEN));
    }
    for line in LINES_UNCONDITIONAL..line_count {
        prefetch(first.wrapping_add(line * LINE_LEN));
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: the intrinsic demands SSE, which every x86-64 processor has, and nothing of the address: a prefetch of
    // an address that cannot be read is ignored and raises no exception, and memory is not changed (Intel SDM vol. 2,
    // PREFETCHh).
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

/// Other processors have no stable intrinsic; there the store is correct and slower.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn prefetch(_address: *const u8) {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a hint never faults. Method: prefetch inside, beyond the end of, and far away from a slice.
    #[test]
    fn any_range_is_harmless() {
        let memory = [7_u8; 256];
        for (start, line_count) in [(0, 4), (255, 16), (7, 0), (usize::MAX, 2), (1 << 46, 1)] {
            prefetch_line(&memory, start);
            prefetch_lines(&memory, start, line_count);
        }
        assert_eq!(memory, [7; 256]);
    }
}
