//! Values that carry their key and their writer, so that a wrong one is noticed.
//!
//! ```text
//! │ record (8) │ writer (8) │ fill (8) │ fill (8) │ … cut off at the wanted length
//! ```
//!
//! All words are little-endian. The fill word is mixed from record, writer and length, and for a given record and length
//! different writers have different fills. So in a value of at least 24 bytes every flipped bit is noticed: in the
//! record, because the reader knows which one it asked for; in the writer, because the fill no longer fits; in the
//! fill, because its words differ. So are the value of another record, a mix of two values of the same record, and a
//! value that was cut off or extended. Shorter values have less to check: under 24 bytes the fill is cut off and a
//! damaged writer is noticed only with luck (never at 16 bytes and below), and under 8 bytes only the low bytes of the
//! record are left.

use crate::workload::ValueLen;

/// Bytes before the fill.
const HEADER_LEN: usize = 16;

/// Bytes gone through at a time: four 16-byte vectors, which fit the registers of every x86-64 and aarch64.
const BLOCK_LEN: usize = 64;

/// Names who wrote a value: the process among those that share a check (otherwise a random number), the thread, and
/// which of its writes it was. The preload is thread 0.
#[inline]
#[must_use]
pub const fn writer(process: u16, thread: u16, sequence: u64) -> u64 {
    // 13, 11 and 40 bits: 2^40 writes of one thread take hours at 50 M a second, and nobody looks back that far.
    let (process, thread) = (process as u64 % (1 << 13), thread as u64 % (1 << 11));
    process << 51 | thread << 40 | (sequence & ((1 << 40) - 1))
}

/// Who wrote `value`; `None` when it is too short to say.
#[inline]
#[must_use]
pub fn writer_of(value: &[u8]) -> Option<u64> {
    let word = value.get(8..HEADER_LEN)?.first_chunk()?;
    Some(u64::from_le_bytes(*word))
}

/// Makes all of `out` the value that `writer` stores at `record`.
#[inline]
pub fn fill(out: &mut [u8], record: u32, writer: u64) {
    let word = fill_word(record, writer, out.len());
    let (record, writer) = (u64::from(record).to_le_bytes(), writer.to_le_bytes());
    if let Some((header, fill)) = out.split_first_chunk_mut::<HEADER_LEN>() {
        header[..8].copy_from_slice(&record);
        header[8..].copy_from_slice(&writer);
        if !(fill_by::<BLOCK_LEN>(fill, word) || fill_by::<8>(fill, word)) {
            fill.iter_mut().zip(word.to_le_bytes()).for_each(|(byte, word)| *byte = word);
        }
    } else {
        let header = record.into_iter().chain(writer);
        out.iter_mut().zip(header).for_each(|(byte, header)| *byte = header);
    }
}

/// Whether `value` may be what a get of `record` returns: one that [`fill`] made for this record, of a length in
/// `lens`. Reads every byte.
#[inline]
#[must_use]
pub fn check(value: &[u8], record: u32, lens: ValueLen) -> bool {
    let record_bytes = u64::from(record).to_le_bytes();
    let Some((header, fill)) = value.split_first_chunk::<HEADER_LEN>() else {
        let known = value.len().min(record_bytes.len());
        return lens.contains(value.len()) && value[..known] == record_bytes[..known];
    };
    let ([header_record, header_writer], _) = header.as_chunks::<8>() else {
        unreachable!("16 bytes are two words")
    };
    let word = fill_word(record, u64::from_le_bytes(*header_writer), value.len());
    let fill_difference =
        difference_by::<BLOCK_LEN>(fill, word).or_else(|| difference_by::<8>(fill, word)).unwrap_or_else(
            || fill.iter().zip(word.to_le_bytes()).fold(0, |all, (byte, word)| all | u64::from(byte ^ word)),
        );
    let record_difference = u64::from_le_bytes(*header_record) ^ u64::from(record);
    (fill_difference | record_difference) == 0 && lens.contains(value.len())
}

/// Reads every byte of `value` and returns something that depends on each: a client that did not look at what it
/// received would be measured faster than any real one. The caller must use the result, if only by adding it up.
#[inline]
#[must_use]
pub fn touch(value: &[u8]) -> u64 {
    sum_by::<BLOCK_LEN>(value)
        .or_else(|| sum_by::<8>(value))
        .unwrap_or_else(|| value.iter().fold(0, |all, &byte| (all << 8) | u64::from(byte)))
}

// The three functions below go through a slice in blocks of `N` bytes, a multiple of 8. The last block is that of the
// last `N` bytes and may overlap the one before: so there is no remainder to go through byte by byte. They do nothing,
// and say so, when the slice is shorter than one block. Inside a block there are no branches, so that the compiler uses
// vectors.

#[inline]
fn fill_by<const N: usize>(fill: &mut [u8], word: u64) -> bool {
    let len = fill.len();
    let Some(last) = fill.last_chunk_mut::<N>() else { return false };
    last.as_chunks_mut::<8>().0.fill(word_at(len, word).to_le_bytes());
    // Without the last byte, a block that is the last one is none of these.
    let (blocks, _) = fill[..len - 1].as_chunks_mut::<N>();
    blocks.iter_mut().for_each(|block| block.as_chunks_mut::<8>().0.fill(word.to_le_bytes()));
    true
}

/// All bits in which `fill` differs from a repetition of `word`.
#[inline]
fn difference_by<const N: usize>(fill: &[u8], word: u64) -> Option<u64> {
    let difference_from =
        |block: &[u8; N], word: u64| words(block).fold(0, |difference, other| difference | (other ^ word));
    let last = difference_from(fill.last_chunk()?, word_at(fill.len(), word));
    Some(blocks_before_last(fill).iter().fold(last, |all, block| all | difference_from(block, word)))
}

#[inline]
fn sum_by<const N: usize>(bytes: &[u8]) -> Option<u64> {
    let sum = |block: &[u8; N]| words(block).fold(0, u64::wrapping_add);
    let last = sum(bytes.last_chunk()?);
    Some(blocks_before_last(bytes).iter().fold(last, |all, block| all.wrapping_add(sum(block))))
}

/// Without the last byte, a block that is the last one is none of these.
#[inline]
fn blocks_before_last<const N: usize>(bytes: &[u8]) -> &[[u8; N]] {
    bytes[..bytes.len() - 1].as_chunks().0
}

/// What a word of the fill is like `index` bytes (or 8 more, or 16 …) behind its start.
#[inline]
const fn word_at(index: usize, word: u64) -> u64 {
    word.rotate_right((index % 8 * 8) as u32)
}

#[inline]
fn words<const N: usize>(block: &[u8; N]) -> impl Iterator<Item = u64> {
    block.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
}

/// For each record and length a permutation of the writers: every step can be undone.
#[inline]
const fn fill_word(record: u32, writer: u64, value_len: usize) -> u64 {
    // Out of the fractional part of pi, as in the wire hash: numbers that nobody chose. The last bits were set, as only
    // a multiplication by an odd number can be undone.
    const PI_1: u64 = 0x1319_8a2e_0370_7345;
    const PI_2: u64 = 0xa409_3822_299f_31d1;
    let place = record as u64 | ((value_len as u64) << 32);
    let mixed = (writer ^ place.wrapping_mul(PI_1)).wrapping_mul(PI_2);
    mixed ^ (mixed >> 32)
}

#[cfg(test)]
mod tests {
    use std::{hint::black_box, time::Instant};

    use linerate_proto::wire::Operation;
    use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

    use super::*;
    use crate::workload::RECORDS_MAX;

    const SEED: u64 = 7;

    /// Longest value that a datagram carries.
    const LEN_MAX: usize = Operation::inline_value_len_max(1);

    fn any_len() -> ValueLen {
        ValueLen::new(0, ValueLen::MAX).unwrap()
    }

    fn value(len: usize, record: u32, writer: u64) -> Vec<u8> {
        let mut value = vec![0xee; len];
        fill(&mut value, record, writer);
        value
    }

    /// Goal: the layout is the documented one. Method: golden bytes, cut off at each length of the header.
    #[test]
    fn the_layout_is_as_documented() {
        let whole = value(40, 0x0102_0304, 0x1112_1314_1516_1718);
        assert_eq!(whole[..16], [4, 3, 2, 1, 0, 0, 0, 0, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11]);
        assert_eq!(whole[16..24], whole[24..32]);
        assert_eq!(whole[16..24], whole[32..40]);
        for len in 0..=16 {
            assert_eq!(value(len, 0x0102_0304, 0x1112_1314_1516_1718), whole[..len]);
        }
        assert_eq!(writer(0, 3, 5), 3 << 40 | 5);
        assert_eq!(writer(8_191, 1_025, 1), 8_191 << 51 | 1_025 << 40 | 1);
        assert_eq!(writer(8_192, 1, 1 << 40), writer(0, 1, 0));
        let whole = value(16, 7, writer(1, 2, 3));
        assert_eq!((writer_of(&whole), writer_of(&whole[..15])), (Some(writer(1, 2, 3)), None));
    }

    /// Goal: what was filled passes, at every length that a datagram carries, and beyond. Method: all those
    /// lengths and some longer ones, random records and writers.
    #[test]
    fn every_length_passes() {
        println!("seed {SEED}");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
        for len in (0..=LEN_MAX).chain([65_536, 99_999, ValueLen::MAX]) {
            let record = random.random_range(0..RECORDS_MAX);
            assert!(
                check(&value(len, record, random.random()), record, any_len()),
                "{len} bytes, record {record}"
            );
        }
    }

    /// Goal: every flipped bit is noticed from 24 bytes on, and below what the documentation promises. Method: flip
    /// each bit of values of all small lengths (every remainder of blocks and words) and of the longest.
    #[test]
    fn every_flipped_bit_is_noticed() {
        println!("seed {SEED}");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
        for len in (1..=216).chain([LEN_MAX]) {
            let record = random.random_range(0..RECORDS_MAX);
            let mut damaged = value(len, record, random.random());
            for bit in 0..len * 8 {
                // The writer is covered by the fill, of which there is none, or too little, below 24 bytes.
                if len < 24 && (64..128).contains(&bit) {
                    continue;
                }
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(!check(&damaged, record, any_len()), "bit {bit} of {len} bytes, record {record}");
                damaged[bit / 8] ^= 1 << (bit % 8);
            }
            assert!(check(&damaged, record, any_len()));
        }
    }

    /// Goal: the value of another record is noticed, also one with the same writer. Method: neighbours, records that
    /// differ in one bit and random ones, for lengths that hold the whole record.
    #[test]
    fn the_value_of_another_record_is_noticed() {
        println!("seed {SEED}");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
        for len in [4, 8, 15, 16, 23, 24, 100, 128, 256] {
            let (record, writer) = (random.random_range(0..RECORDS_MAX), random.random());
            let stored = value(len, record, writer);
            let one_bit_off = (0..31).map(|bit| record ^ (1 << bit));
            let random_others: Vec<_> = (0..1_000).map(|_| random.random()).collect();
            for other in one_bit_off.chain([record ^ 1, record.wrapping_add(1)]).chain(random_others) {
                assert_eq!(
                    check(&stored, other, any_len()),
                    other == record,
                    "{len} bytes, {record}, {other}"
                );
            }
        }
    }

    /// Goal: values that are cut off, extended or put together from two are noticed. Method: all cuts of one value of
    /// 256 bytes, and all joints of two that differ in the writer only.
    #[test]
    fn cut_and_joined_values_are_noticed() {
        const RECORD: u32 = 123_456;
        let (one, other) = (value(256, RECORD, writer(0, 1, 41)), value(256, RECORD, writer(0, 1, 42)));
        for len in 17..256 {
            assert!(!check(&one[..len], RECORD, any_len()), "cut off at {len} bytes");
            let joined = [&one[..len], &other[len..]].concat();
            assert!(!check(&joined, RECORD, any_len()), "joined at {len} bytes");
        }
        let longer = [&one[..], &one[16..24]].concat();
        assert!(!check(&longer, RECORD, any_len()));
    }

    /// Goal: a length that nobody wrote is noticed even if the bytes fit. Method: lengths around both ends of a range,
    /// shorter and longer than the header.
    #[test]
    fn a_length_out_of_range_is_noticed() {
        for (min, max) in [(64, 256), (4, 8), (128, 128), (0, 0)] {
            let lens = ValueLen::new(min, max).unwrap();
            for len in [0, 3, 4, 8, 9, 63, 64, 127, 128, 129, 256, 257] {
                assert_eq!(
                    check(&value(len, 9, 9), 9, lens),
                    (min..=max).contains(&len),
                    "{len} of {min}-{max}"
                );
            }
        }
    }

    /// Goal: `touch` reads every byte. Method: each changed byte, at lengths of every remainder, changes the result.
    #[test]
    fn touch_depends_on_every_byte() {
        for len in 0..=144 {
            let mut bytes = value(len, 77, 88);
            let whole = touch(&bytes);
            for index in 0..len {
                bytes[index] ^= 0x5a;
                assert_ne!(touch(&bytes), whole, "byte {index} of {len}");
                bytes[index] ^= 0x5a;
            }
        }
    }

    /// Goal: the costs can be looked up any time (`cargo test --release -- --nocapture ns_per_value`). Method: values
    /// that stay in the caches, in the lengths of the benchmarks; printed, never asserted.
    #[test]
    fn ns_per_value() {
        const VALUES: u32 = 256;
        const ROUNDS: u32 = 200;
        for (min, max) in [(16, 16), (100, 100), (128, 128), (64, 256), (1_024, 1_024)] {
            let lens = ValueLen::new(min, max).unwrap();
            let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
            let mut values: Vec<_> = (0..VALUES).map(|_| vec![0; lens.pick(random.random())]).collect();
            // The best round is the one that nothing else has disturbed.
            let ns = |mut round: Box<dyn FnMut() + '_>| {
                let times = (0..ROUNDS).map(|_| {
                    let start = Instant::now();
                    round();
                    start.elapsed()
                });
                times.min().unwrap_or_default().as_nanos() as f64 / f64::from(VALUES)
            };
            let fill_ns = ns(Box::new(|| {
                for (record, value) in (0..).zip(&mut values) {
                    fill(black_box(value), record, black_box(u64::from(record)));
                }
            }));
            let check_ns = ns(Box::new(|| {
                let wrong =
                    (0..).zip(&values).filter(|(record, value)| !check(black_box(value), *record, lens));
                assert_eq!(wrong.count(), 0);
            }));
            let touch_ns = ns(Box::new(|| {
                black_box(values.iter().fold(0, |all, value| all ^ touch(black_box(value))));
            }));
            println!("{lens} bytes: fill {fill_ns:.2} ns, check {check_ns:.2} ns, touch {touch_ns:.2} ns");
        }
    }
}
