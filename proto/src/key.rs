//! A key together with its first sixteen bytes as two words.
//!
//! Most keys are short and of varying length. Hashing, comparing and copying them byte by byte, or by cases of length,
//! costs a mispredicted branch each time: several nanoseconds, where the rest of a lookup takes ten. As two words with
//! zeros behind the end, all short keys are handled alike.

/// Bytes that the words hold.
pub const HEAD_LEN: usize = 16;

/// `MASKS[n]` keeps the low `n` bytes of a word.
const MASKS: [u64; 9] = {
    let mut masks = [u64::MAX; 9];
    let mut len = 0;
    while len < 8 {
        masks[len] = (1 << (8 * len)) - 1;
        len += 1;
    }
    masks
};

/// A borrowed key of any length, with its head at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    bytes: &'a [u8],
    head: [u64; 2],
    /// What of the head is key and not zeros behind it.
    mask: [u64; 2],
}

impl<'a> Key<'a> {
    /// The key that consists of `bytes`.
    #[inline]
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        let len = bytes.len();
        let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
        let half = |bytes: &[u8; 4]| u64::from(u32::from_le_bytes(*bytes));
        // Chunks from both ends overlap in bytes that are the same, so that they can be put together by `|`.
        let head = if let Some(window) = bytes.first_chunk::<HEAD_LEN>() {
            words(window)
        } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
            [word(first), word(last).unbounded_shr(8 * (HEAD_LEN - len) as u32)]
        } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
            [half(first) | half(last) << (8 * (len - 4)), 0]
        } else if let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) {
            let middle = u64::from(bytes[len / 2]) << (8 * (len / 2));
            [u64::from(first) | middle | u64::from(last) << (8 * (len - 1)), 0]
        } else {
            [0; 2]
        };
        Self { bytes, head, mask: mask(len) }
    }

    /// The key that consists of the first `len` bytes of `window`, without a branch on its length.
    ///
    /// # Panics
    /// When `len` is more than 16.
    #[inline]
    #[must_use]
    pub fn in_window(window: &'a [u8; HEAD_LEN], len: usize) -> Self {
        Self::cut(window, len, &window[..len])
    }

    /// The first `len` bytes of `bytes` as a key, and the bytes behind it; `None` when there are fewer.
    #[inline]
    #[must_use]
    pub fn split_from(bytes: &'a [u8], len: usize) -> Option<(Self, &'a [u8])> {
        let (key, rest) = bytes.split_at_checked(len)?;
        // Only at the very end of a datagram are there fewer than sixteen bytes.
        let key = match bytes.first_chunk::<HEAD_LEN>() {
            Some(window) => Self::cut(window, len, key),
            None => Self::new(key),
        };
        Some((key, rest))
    }

    /// A key of `len` bytes whose first sixteen, and what comes behind it, are in `window`.
    #[inline(always)]
    fn cut(window: &[u8; HEAD_LEN], len: usize, bytes: &'a [u8]) -> Self {
        let (mask, [low, high]) = (mask(len), words(window));
        Self { bytes, head: [low & mask[0], high & mask[1]], mask }
    }

    /// The key's bytes.
    #[inline]
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Length in bytes.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has no bytes.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The first sixteen bytes as two little-endian words, zeros behind the end.
    #[inline]
    #[must_use]
    pub const fn head(&self) -> [u64; 2] {
        self.head
    }

    /// Whether the key is the first `self.len()` bytes of `stored`.
    #[inline]
    #[must_use]
    pub fn is_prefix_of(&self, stored: &[u8]) -> bool {
        match stored.first_chunk::<HEAD_LEN>() {
            Some(window) => {
                self.begins_as(window) && (self.len() <= HEAD_LEN || stored.starts_with(self.bytes))
            }
            None => stored.starts_with(self.bytes),
        }
    }

    /// Whether the key's first sixteen bytes, or all of them if there are fewer, are the first ones of `window`.
    #[inline(always)]
    #[must_use]
    pub fn begins_as(&self, window: &[u8; HEAD_LEN]) -> bool {
        let [low, high] = words(window);
        (low & self.mask[0] ^ self.head[0]) | (high & self.mask[1] ^ self.head[1]) == 0
    }

    /// Copies the key to the start of `out`, and zeros behind it up to sixteen bytes.
    ///
    /// # Panics
    /// When `out` is shorter than the key or than sixteen bytes.
    #[inline]
    pub fn copy_to(&self, out: &mut [u8]) {
        let (low, high) = out[..HEAD_LEN].split_at_mut(8);
        low.copy_from_slice(&self.head[0].to_le_bytes());
        high.copy_from_slice(&self.head[1].to_le_bytes());
        if self.len() > HEAD_LEN {
            out[..self.len()].copy_from_slice(self.bytes);
        }
    }
}

impl<'a, B: AsRef<[u8]> + ?Sized> From<&'a B> for Key<'a> {
    #[inline]
    fn from(bytes: &'a B) -> Self {
        Self::new(bytes.as_ref())
    }
}

#[inline]
fn words(window: &[u8; HEAD_LEN]) -> [u64; 2] {
    let word = u128::from_le_bytes(*window);
    [word as u64, (word >> 64) as u64]
}

/// All ones where the first `len` of sixteen bytes are.
#[inline]
const fn mask(len: usize) -> [u64; 2] {
    let (low, high) = (if len < 8 { len } else { 8 }, len.saturating_sub(8));
    [MASKS[low], MASKS[if high < 8 { high } else { 8 }]]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: all ways to a key give the same head. Method: every length up to 40 with distinct bytes, against zeros and
    /// a plain copy.
    #[test]
    fn heads_are_the_first_bytes_however_they_are_read() {
        let bytes: Vec<u8> = (1..=60).collect();
        for len in 0..=40 {
            let mut expected = [0; HEAD_LEN];
            let short = len.min(HEAD_LEN);
            expected[..short].copy_from_slice(&bytes[..short]);
            let key = Key::new(&bytes[..len]);
            assert_eq!(key.head(), words(&expected), "length {len}");
            let (split, rest) = Key::split_from(&bytes, len).unwrap();
            assert_eq!((split, rest), (key, &bytes[len..]));
            assert_eq!(Key::split_from(&bytes[..len], len), Some((key, &[][..])));
            assert_eq!(Key::split_from(&bytes[..len], len + 1), None);
            if len <= HEAD_LEN {
                assert_eq!(Key::in_window(bytes.first_chunk().unwrap(), len), key);
            }
        }
    }

    /// Goal: comparing by words is comparing bytes. Method: every length, every single byte changed, with and without
    /// room for a window.
    #[test]
    fn prefixes_are_compared_to_the_last_byte() {
        let bytes: Vec<u8> = (1..=60).collect();
        for len in 0..=40 {
            let key = Key::new(&bytes[..len]);
            assert!(key.is_prefix_of(&bytes) && key.is_prefix_of(&bytes[..len]));
            for changed in 0..len {
                let mut other = bytes.clone();
                other[changed] ^= 0x80;
                assert!(!key.is_prefix_of(&other), "length {len}, byte {changed}");
                assert!(!key.is_prefix_of(&other[..len]), "length {len}, byte {changed}");
            }
            assert!(len == 0 || !key.is_prefix_of(&bytes[..len - 1]), "length {len}, cut off");
        }
    }

    #[test]
    fn copies_are_whole() {
        let bytes: Vec<u8> = (1..=60).collect();
        for len in 0..=40 {
            let mut out = [0xee; 48];
            Key::new(&bytes[..len]).copy_to(&mut out);
            assert_eq!(out[..len], bytes[..len]);
            assert!(out[len..HEAD_LEN.max(len)].iter().all(|&byte| byte == 0), "length {len}");
        }
    }
}
