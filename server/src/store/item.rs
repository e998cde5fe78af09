//! An item: what the arena holds for one key, and how it is found to be the right one.
//!
//! ```text
//! bit 0        8              30   32            64           128
//! | key len 8 | value len 22 | 2* | hash, low 32 | version 64 | key | value | up to 15 bytes of padding
//! ```
//! Words are in the machine's byte order. The two bits marked * belong to the arena. The hash is stored so that the
//! index can grow and items can move without a key being hashed again.

use linerate_proto::Key;
use zerocopy::IntoBytes;

use super::arena::{BLOCK_FLAGS, GRANULE_LEN, Granule};

/// Bytes before the key.
const HEADER_LEN: usize = 16;

/// What is stored for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'memory> {
    /// The value, as it was put.
    pub value: &'memory [u8],
    /// The shard's version after that put.
    pub version: u64,
}

/// Lengths of one item's key and value, as its header holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths(u32);

impl Lengths {
    /// `key_len` in 0..=255 and `value_len` in 0..2^22, which the caller has checked.
    pub(super) fn new(key_len: usize, value_len: usize) -> Self {
        debug_assert!(key_len <= 0xff && value_len < 1 << 22, "lengths that the header cannot hold");
        Self(key_len as u32 | (value_len as u32) << 8)
    }

    #[inline]
    fn from_header(word: u32) -> Self {
        Self(word & !BLOCK_FLAGS)
    }

    #[inline]
    pub(super) fn key_len(self) -> usize {
        (self.0 & 0xff) as usize
    }

    #[inline]
    pub(super) fn value_len(self) -> usize {
        (self.0 >> 8) as usize
    }

    /// Granules that such an item takes, header and padding included.
    pub(super) fn granule_count(self) -> u32 {
        (HEADER_LEN + self.key_len() + self.value_len()).div_ceil(GRANULE_LEN) as u32
    }
}

/// Lengths of the item at granule `start`.
pub(super) fn lengths(granules: &[Granule], start: u32) -> Lengths {
    Lengths::from_header(granules[start as usize][0])
}

/// The low 32 bits of the key hash of the item at granule `start`.
pub(super) fn stored_hash(granules: &[Granule], start: u32) -> u32 {
    granules[start as usize][1]
}

/// Writes an item into the block at granule `start`, whose header the arena has set up.
pub(super) fn write(granules: &mut [Granule], start: u32, hash: u64, key: Key<'_>, found: Found<'_>) {
    let Found { value, version } = found;
    let lengths = Lengths::new(key.len(), value.len());
    let header = &mut granules[start as usize];
    header[0] = header[0] & BLOCK_FLAGS | lengths.0;
    header[1] = hash as u32;
    header[2] = version as u32;
    header[3] = (version >> 32) as u32;
    let item = &mut granules[start as usize..][..lengths.granule_count() as usize];
    let body = &mut item.as_flattened_mut().as_mut_bytes()[HEADER_LEN..];
    let (key_bytes, rest) = body.split_at_mut(key.len());
    key_bytes.copy_from_slice(key.bytes());
    rest[..value.len()].copy_from_slice(value);
}

/// Value and version of the item at granule `start` if its key is `key`.
///
/// `None` too for a `start` at which no whole item can be: bytes are compared, never believed.
#[inline(always)]
pub(super) fn found_at<'memory>(memory: &'memory [u8], start: u32, key: Key<'_>) -> Option<Found<'memory>> {
    let item = memory.get(start as usize * GRANULE_LEN..)?;
    let (header, body) = item.split_first_chunk::<HEADER_LEN>()?;
    // One load: byte by byte, the compiler would not see that it is one.
    let [lengths, _, low, high]: [u32; 4] = zerocopy::transmute!(*header);
    let lengths = Lengths::from_header(lengths);
    // One branch for both, which goes the same way whenever the tag was right.
    if (lengths.key_len() != key.len()) | !key.is_prefix_of(body) {
        return None;
    }
    let value = body.get(key.len()..key.len() + lengths.value_len())?;
    Some(Found { value, version: u64::from(low) | u64::from(high) << 32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an item reads back, and only under its own key. Method: write one with the extremes of both lengths,
    /// arena flags set, and look at every field.
    #[test]
    fn an_item_reads_back() {
        for (key_len, value_len) in [(1, 0), (1, 7), (1, 8), (255, 0), (255, 1 << 20), (8, 128)] {
            let (key, value) = (vec![3; key_len], vec![5; value_len]);
            let found = Found { value: &value, version: 0x1122_3344_5566_7788 };
            let mut granules = vec![[u32::MAX; 4]; 70_000];
            granules[2][0] = BLOCK_FLAGS;
            write(&mut granules, 2, 0xaaaa_bbbb_cccc_dddd, Key::new(&key), found);
            assert_eq!(granules[2][0] & BLOCK_FLAGS, BLOCK_FLAGS);
            assert_eq!(lengths(&granules, 2), Lengths::new(key_len, value_len));
            assert_eq!(stored_hash(&granules, 2), 0xcccc_dddd);
            assert_eq!(granules[2 + lengths(&granules, 2).granule_count() as usize], [u32::MAX; 4]);
            let memory = granules.as_bytes();
            assert_eq!(found_at(memory, 2, Key::new(&key)), Some(found));
            assert_eq!(found_at(memory, 2, Key::new(&vec![4; key_len])), None);
            assert_eq!(found_at(memory, 2, Key::new(&key[1..])), None);
        }
    }

    /// Goal: no reference is unsafe to follow. Method: arbitrary bytes as memory, cut at every length, every start.
    #[test]
    fn garbage_is_no_item() {
        let memory = [0xff_u8; 80];
        for len in 0..memory.len() {
            for start in (0..6).chain([u32::MAX]) {
                assert_eq!(found_at(&memory[..len], start, Key::new(b"key")), None);
            }
        }
    }
}
