//! An item: what the arena holds for one key, and how it is found to be the right one.
//!
//! ```text
//! bit 0        8             29        30    32                  88      96
//! | key len 8 | value len 21 | expires | 2* | version, low 56 bits | 0    | [due 32] | key | value | up to 7 bytes of padding
//! ```
//! Words are in the machine's byte order. The two bits marked * belong to the arena. The due time is there if the bit
//! *expires* is set. At thirty million writes a second, versions of 56 bits last for 76 years.

use linerate_proto::{Key, key::HEAD_LEN};
use zerocopy::IntoBytes;

use super::{
    arena::{BLOCK_FLAGS, GRANULE_LEN, Granule},
    expiry::Due,
};

/// Bytes before the key, or before the due time.
const HEADER_LEN: usize = 12;

/// Bytes of the due time.
const DUE_LEN: usize = size_of::<u32>();

const EXPIRES_SHIFT: u32 = 29;
const EXPIRES: u32 = 1 << EXPIRES_SHIFT;
const VALUE_LEN_SHIFT: u32 = 8;
const VALUE_LEN_MASK: u32 = (EXPIRES - 1) >> VALUE_LEN_SHIFT;
const VERSION_MASK: u64 = (1 << 56) - 1;

/// What is stored for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'memory> {
    /// The value, as it was put.
    pub value: &'memory [u8],
    /// The shard's version after that put.
    pub version: u64,
    /// When it expires.
    pub(super) due: Due,
}

/// First word of an item: the lengths of its key and value, and whether it expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape(u32);

impl Shape {
    /// `key_len` in 0..=255 and `value_len` in 0..2^21, which the caller has checked.
    pub(super) fn new(key_len: usize, value_len: usize, due: Due) -> Self {
        debug_assert!(
            key_len <= 0xff && value_len <= VALUE_LEN_MASK as usize,
            "lengths that the header cannot hold"
        );
        Self(
            key_len as u32
                | (value_len as u32) << VALUE_LEN_SHIFT
                | u32::from(due.is_some()) << EXPIRES_SHIFT,
        )
    }

    #[inline(always)]
    fn from_header(word: u32) -> Self {
        Self(word & !BLOCK_FLAGS)
    }

    #[inline(always)]
    pub(super) fn key_len(self) -> usize {
        (self.0 & 0xff) as usize
    }

    #[inline(always)]
    pub(super) fn value_len(self) -> usize {
        (self.0 >> VALUE_LEN_SHIFT & VALUE_LEN_MASK) as usize
    }

    /// Bytes before the key.
    #[inline(always)]
    fn head_len(self) -> usize {
        HEADER_LEN + (self.0 >> EXPIRES_SHIFT) as usize * DUE_LEN
    }

    #[inline(always)]
    fn expires(self) -> bool {
        self.0 & EXPIRES != 0
    }

    /// Granules that such an item takes, header and padding included: two at least.
    pub(super) fn granule_count(self) -> u32 {
        (self.head_len() + self.key_len() + self.value_len()).div_ceil(GRANULE_LEN) as u32
    }
}

/// The shape of the item at granule `start`.
#[inline]
pub(super) fn shape(granules: &[Granule], start: u32) -> Shape {
    Shape::from_header(granules[start as usize][0])
}

/// When the item at granule `start` expires.
#[inline]
pub(super) fn due(granules: &[Granule], start: u32) -> Due {
    if shape(granules, start).expires() {
        Due::from_word(granules[start as usize + 1][1])
    } else {
        Due::NEVER
    }
}

/// The key of the item at granule `start`.
pub(super) fn key(granules: &[Granule], start: u32) -> Key<'_> {
    let shape = shape(granules, start);
    let item = &granules[start as usize..][..shape.granule_count() as usize];
    Key::new(&item.as_bytes()[shape.head_len()..][..shape.key_len()])
}

/// Writes an item into the block at granule `start`, whose header the arena has set up.
pub(super) fn write(granules: &mut [Granule], start: u32, key: Key<'_>, found: Found<'_>) {
    let shape = Shape::new(key.len(), found.value.len(), found.due);
    let item = &mut granules[start as usize..][..shape.granule_count() as usize];
    item[0][0] = item[0][0] & BLOCK_FLAGS | shape.0;
    let body = &mut item.as_mut_bytes()[shape.head_len()..];
    body[..key.len()].copy_from_slice(key.bytes());
    overwrite(granules, start, key.len(), found);
}

/// Gives the item at granule `start`, whose key has `key_len` bytes, another value of the same length and another end if
/// it has one.
#[inline(always)]
pub(super) fn overwrite(granules: &mut [Granule], start: u32, key_len: usize, found: Found<'_>) {
    let Found { value, version, due } = found;
    let shape = Shape::new(key_len, value.len(), due);
    let item = &mut granules[start as usize..][..shape.granule_count() as usize];
    debug_assert_eq!(item[0][0] & !BLOCK_FLAGS, shape.0, "another shape");
    let [first, second, ..] = item else { unreachable!("an item has two granules at least") };
    first[1] = version as u32;
    second[0] = ((version & VERSION_MASK) >> 32) as u32;
    if due.is_some() {
        second[1] = due.to_word();
    }
    let start = shape.head_len() + key_len;
    item.as_mut_bytes()[start..start + value.len()].copy_from_slice(value);
}

/// What the item at granule `start` holds if its key is `key`.
///
/// `None` too for a `start` at which no whole item can be: bytes are compared, never believed.
#[inline(always)]
pub(super) fn found_at<'memory>(memory: &'memory [u8], start: u32, key: Key<'_>) -> Option<Found<'memory>> {
    let item = memory.get(start as usize * GRANULE_LEN..)?;
    // Behind the last item there is a line that nobody uses, so the shortest has so many bytes before it, too.
    let window = item.first_chunk::<{ HEADER_LEN + DUE_LEN + HEAD_LEN }>()?;
    // One load: byte by byte, the compiler would not see that it is one.
    let words: [[u32; 4]; 2] = zerocopy::transmute!(*window);
    let [shape, low, high, due] = words[0];
    let shape = Shape::from_header(shape);
    let (head, due) = if shape.expires() {
        (window.last_chunk(), Due::from_word(due))
    } else {
        (window[HEADER_LEN..].first_chunk(), Due::NEVER)
    };
    // One branch for both, which goes the same way whenever the tag was right.
    if (shape.key_len() != key.len()) | !key.begins_as(head?) {
        return None;
    }
    let value_at = shape.head_len() + key.len();
    if key.len() > HEAD_LEN && item.get(shape.head_len()..value_at) != Some(key.bytes()) {
        return None;
    }
    let value = item.get(value_at..value_at + shape.value_len())?;
    Some(Found { value, version: u64::from(low) | u64::from(high) << 32, due })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an item reads back, and only under its own key. Method: write one with the extremes of both lengths,
    /// arena flags set, with and without an end, and look at every field.
    #[test]
    fn an_item_reads_back() {
        for (key_len, value_len) in [(1, 0), (1, 7), (1, 8), (255, 0), (255, 1 << 20), (8, 128)] {
            for due in [Due::NEVER, Due::from_word(u32::MAX)] {
                let (key, value) = (vec![3; key_len], vec![5; value_len]);
                let found = Found { value: &value, version: 0x0022_3344_5566_7788, due };
                let mut granules = vec![[u32::MAX; 2]; 140_000];
                granules[2][0] = BLOCK_FLAGS;
                write(&mut granules, 2, Key::new(&key), found);
                assert_eq!(granules[2][0] & BLOCK_FLAGS, BLOCK_FLAGS);
                assert_eq!(shape(&granules, 2), Shape::new(key_len, value_len, due));
                assert_eq!(super::key(&granules, 2).bytes(), key);
                assert_eq!(super::due(&granules, 2), due);
                assert_eq!(granules[2 + shape(&granules, 2).granule_count() as usize], [u32::MAX; 2]);
                let memory = granules.as_bytes();
                assert_eq!(found_at(memory, 2, Key::new(&key)), Some(found));
                assert_eq!(found_at(memory, 2, Key::new(&vec![4; key_len])), None);
                assert_eq!(found_at(memory, 2, Key::new(&key[1..])), None);
            }
        }
    }

    /// Goal: no reference is unsafe to follow. Method: arbitrary bytes as memory, cut at every length, every start.
    #[test]
    fn garbage_is_no_item() {
        let memory = [0xff_u8; 80];
        for len in 0..memory.len() {
            for start in (0..10).chain([u32::MAX]) {
                assert_eq!(found_at(&memory[..len], start, Key::new(b"key")), None);
            }
        }
    }
}
