//! Comparison of a bucket's tags with the one wanted, eight at a time where the processor can.

/// Tags in one bucket: 10 × (2 + 4) bytes of tags and references and the link fill the cache line.
pub(super) const SLOTS: usize = 10;

/// Low bits of a tag: how many cache lines the item spans, at most 7.
pub(super) const SPAN_MASK: u16 = 0b111;

/// Bits of a tag that the eviction policy keeps its account in.
pub(super) const USES_MASK: u16 = 0b111 << USES_SHIFT;

/// Place of [`USES_MASK`].
pub(super) const USES_SHIFT: u32 = 3;

/// Bits of a tag that are the key hash's.
pub(super) const HASH_MASK: u16 = !(SPAN_MASK | USES_MASK);

/// A bit per slot whose tag has the hash bits of `wanted`, whose other bits are 0.
///
/// `tags` are the first 32 bytes of a bucket in memory order; what is behind the tags is ignored.
#[inline(always)]
pub(super) fn matches(tags: &[u64; 4], wanted: u16) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the callee demands SSE2, which is part of x86-64.
    unsafe {
        matches_sse2(tags, wanted)
    }
    #[cfg(not(target_arch = "x86_64"))]
    matches_portable(tags, wanted)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse2")]
#[inline]
fn matches_sse2(tags: &[u64; 4], wanted: u16) -> u32 {
    use std::arch::x86_64::{
        _mm_and_si128, _mm_cmpeq_epi16, _mm_loadu_si128, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16,
    };
    let halves: &[[u8; 16]; 2] = zerocopy::transmute_ref!(tags);
    // SAFETY: an unaligned load of 16 bytes, which the array has. Built from two integers instead, LLVM loads each
    // half twice.
    let load = |half: &[u8; 16]| unsafe { _mm_loadu_si128(half.as_ptr().cast()) };
    let (hash_bits, wanted) = (_mm_set1_epi16(HASH_MASK as i16), _mm_set1_epi16(wanted as i16));
    let low = _mm_and_si128(load(&halves[0]), hash_bits);
    let high = _mm_and_si128(load(&halves[1]), hash_bits);
    // Equal lanes are all ones, which packing to bytes with saturation keeps.
    let equal = _mm_packs_epi16(_mm_cmpeq_epi16(low, wanted), _mm_cmpeq_epi16(high, wanted));
    _mm_movemask_epi8(equal) as u32 & ((1 << SLOTS) - 1)
}

#[cfg(any(test, not(target_arch = "x86_64")))]
fn matches_portable(tags: &[u64; 4], wanted: u16) -> u32 {
    let tags: &[[u8; 2]; 16] = zerocopy::transmute_ref!(tags);
    let bit = |(slot, &tag)| u32::from(u16::from_ne_bytes(tag) & HASH_MASK == wanted) << slot;
    tags[..SLOTS].iter().enumerate().map(bit).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: both ways of comparing find exactly the equal tags. Method: every tag value in every slot against a few
    /// wanted ones; what is behind the tags is set so that it would match.
    #[test]
    fn both_ways_agree() {
        for value in 0..=u16::MAX {
            for wanted in [0, 0x40, 0x1240, 0xffc0, value & HASH_MASK] {
                let slot = usize::from(value) % SLOTS;
                let mut tags = [wanted; 16];
                tags[..SLOTS].fill(wanted ^ 0x8000);
                tags[slot] = value;
                let expected = u32::from(value & HASH_MASK == wanted) << slot;
                assert_eq!(matches(&zerocopy::transmute!(tags), wanted), expected, "{value:#x} {wanted:#x}");
                assert_eq!(
                    matches_portable(&zerocopy::transmute!(tags), wanted),
                    expected,
                    "{value:#x} {wanted:#x}"
                );
            }
        }
    }
}
