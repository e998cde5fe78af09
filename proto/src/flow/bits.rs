//! One bit for each operation of a request.

/// One bit per operation of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits([u64; 4]);

impl Bits {
    pub(super) const NONE: Self = Self([0; 4]);

    #[inline]
    pub(super) const fn has(&self, index: u8) -> bool {
        self.0[index as usize >> 6] >> (index & 63) & 1 == 1
    }

    #[inline]
    pub(super) const fn set(&mut self, index: u8) {
        self.0[index as usize >> 6] |= 1 << (index & 63);
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    /// How many bits are set that are not set in `other`.
    pub(super) fn count_without(&self, other: Self) -> u32 {
        self.0.iter().zip(other.0).map(|(word, other)| (word & !other).count_ones()).sum()
    }

    /// Whether none of the `count` bits from `first` on is set.
    #[inline]
    pub(super) fn has_none_of(&self, first: u8, count: u8) -> bool {
        self.0.iter().zip(Self::range(first, count)).all(|(word, mask)| word & mask == 0)
    }

    /// Sets the `count` bits from `first` on.
    #[inline]
    pub(super) fn set_all(&mut self, first: u8, count: u8) {
        self.0.iter_mut().zip(Self::range(first, count)).for_each(|(word, mask)| *word |= mask);
    }

    /// The bits `first..first + count`, word by word.
    #[inline]
    fn range(first: u8, count: u8) -> [u64; 4] {
        let below = |end: u32, word: usize| {
            let bits = end.saturating_sub(64 * word as u32).min(64);
            u64::MAX.unbounded_shr(64 - bits)
        };
        let (first, end) = (u32::from(first), u32::from(first) + u32::from(count));
        std::array::from_fn(|word| below(end, word) & !below(first, word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: ranges of bits are those bits. Method: every range against bits set one by one.
    #[test]
    fn bit_ranges_are_the_single_bits() {
        for first in 0..=255u8 {
            for count in [0, 1, 2, 11, 63, 64, 65, 128, 255].into_iter().filter(|&count| count <= 255 - first)
            {
                let (mut all, mut single) = (Bits::default(), Bits::default());
                all.set_all(first, count);
                (first..first + count).for_each(|index| single.set(index));
                assert_eq!(all, single, "{count} from {first}");
                assert_eq!(all.has_none_of(first, count), count == 0);
            }
        }
    }
}
