//! Values that tell who wrote them: key, writer, number of the write, length and a checksum over all of it.
//!
//! ```text
//! │ key (2) │ writer (2) │ tag (4) │ length (4) │ checksum (4) │ filling that follows from the tag … │
//! ```

use linerate_dataplane::sim::{mix, mix_bytes};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be};

/// Shortest value that has room for all of that.
pub const VALUE_LEN_MIN: usize = size_of::<Head>();

#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    key: be::U16,
    writer: be::U16,
    tag: be::U32,
    len: be::U32,
    checksum: be::U32,
}

const _: () = assert!(size_of::<Head>() == 16);

/// Who wrote a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Key that it was written to.
    pub key: u16,
    /// Client that wrote it.
    pub writer: u16,
    /// Number of the write among all operations.
    pub tag: u32,
}

/// Replaces the contents of `out` by a value of `len` bytes, at least [`VALUE_LEN_MIN`].
pub fn write_value(out: &mut Vec<u8>, origin: Origin, len: usize) {
    out.clear();
    out.resize(len.max(VALUE_LEN_MIN), 0);
    let (head, filling) = out.split_at_mut(size_of::<Head>());
    let mut word = mix(origin.tag.into(), 0);
    let (words, rest) = filling.as_chunks_mut::<8>();
    for filled in words {
        *filled = word.to_le_bytes();
        word = word.wrapping_mul(5).wrapping_add(1);
    }
    rest.copy_from_slice(&word.to_le_bytes()[..rest.len()]);
    let mut written = Head {
        key: origin.key.into(),
        writer: origin.writer.into(),
        tag: origin.tag.into(),
        len: (len as u32).into(),
        checksum: 0.into(),
    };
    written.checksum = checksum(&written, filling).into();
    head.copy_from_slice(written.as_bytes());
}

/// Who wrote a value, or `None` when nobody did: its length or checksum is wrong.
#[must_use]
pub fn read_value(value: &[u8]) -> Option<Origin> {
    let (head, filling) = Head::read_from_prefix(value).ok()?;
    let intact = head.len.get() as usize == value.len()
        && head.checksum.get() == checksum(&Head { checksum: 0.into(), ..head }, filling);
    intact.then(|| Origin { key: head.key.get(), writer: head.writer.get(), tag: head.tag.get() })
}

fn checksum(head: &Head, filling: &[u8]) -> u32 {
    (mix_bytes(mix_bytes(0, head.as_bytes()), filling) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a value is recognised whole and only whole. Method: lengths of all kinds, then every byte changed and every
    /// length cut.
    #[test]
    fn only_whole_values_are_recognised() {
        let origin = Origin { key: 7, writer: 3, tag: 77 };
        let mut value = Vec::new();
        for len in [16, 17, 23, 24, 25, 100, 1_173] {
            write_value(&mut value, origin, len);
            assert_eq!((value.len(), read_value(&value)), (len, Some(origin)));
            for index in 0..len {
                value[index] ^= 0x40;
                assert_eq!(read_value(&value), None, "byte {index} of {len}");
                value[index] ^= 0x40;
                assert_eq!(read_value(&value[..index]), None, "{index} bytes of {len}");
            }
        }
        assert_eq!(read_value(&[0; 16]), None);
    }
}
