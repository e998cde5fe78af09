//! Record index → key: its decimal digits, `0`, `1`, … `999999`.
//!
//! Keys of varying length that share their first bytes are what a store must cope with, people can type them into a
//! command line, and every other load generator can be told to use the same.

use linerate_client::{HEAD_LEN, Key};

/// Room for one key at a time; making a key costs no allocation and a nanosecond or two.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyBuffer([u8; HEAD_LEN]);

impl KeyBuffer {
    /// An empty buffer.
    #[inline]
    #[must_use]
    pub const fn new() -> Self {
        Self([0; HEAD_LEN])
    }

    /// The key of `record`, 1 to 10 bytes, valid until the next call.
    ///
    /// All ten digits are computed side by side and the leading zeros shifted out: a loop over the digits, or a case
    /// for each length, would cost a mispredicted branch for nearly every key.
    #[inline]
    #[must_use]
    pub fn key(&mut self, record: u32) -> Key<'_> {
        let (high, low) = (record / 100_000_000, record % 100_000_000);
        // Byte i is digit i, the most significant first.
        let digits = u128::from((high / 10) | ((high % 10) << 8)) | u128::from(eight_digits(low)) << 16;
        // The last digit is never left out, so that 0 is "0".
        let zeros = (digits | 1 << 72).trailing_zeros() / 8;
        let text = (digits + 0x3030_3030_3030_3030_3030) >> (8 * zeros);
        self.0 = text.to_le_bytes();
        Key::in_window(&self.0, 10 - zeros as usize)
    }
}

/// The eight decimal digits of a number below 100,000,000, one per byte, the most significant in the lowest byte.
///
/// Three steps halve 8 digits into 4 + 4, 2 + 2 + 2 + 2 and single ones, each in all lanes at once. The divisions are
/// multiplications by a rounded-up reciprocal, exact for all numbers that occur.
#[inline]
fn eight_digits(number: u32) -> u64 {
    let fours = u64::from(number / 10_000) | u64::from(number % 10_000) << 32;
    let hundreds = ((fours * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let twos = hundreds | (fours - 100 * hundreds) << 16;
    let tens = ((twos * 103) >> 10) & 0x000f_000f_000f_000f;
    tens | (twos - 10 * tens) << 8
}

/// Length in bytes of the key of `record`: with `records` records the longest is that of `records - 1`.
#[must_use]
pub const fn key_len(record: u32) -> usize {
    match record.checked_ilog10() {
        Some(digits) => digits as usize + 1,
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::{hint::black_box, time::Instant};

    use super::*;

    /// Goal: a key is the plain decimal number of its record, of the length foretold. Method: compare with the
    /// standard library around every change of length, and the largest.
    #[test]
    fn keys_are_decimal_numbers() {
        let mut buffer = KeyBuffer::new();
        let around = (0..10).map(|digits| 10_u32.pow(digits)).flat_map(|power| [power - 1, power, power + 1]);
        for record in around.chain([42, 999_999, i32::MAX as u32, u32::MAX]) {
            assert_eq!(buffer.key(record).bytes(), record.to_string().as_bytes());
            assert_eq!(buffer.key(record), Key::new(record.to_string().as_bytes()));
            assert_eq!(key_len(record), record.to_string().len());
        }
    }

    /// Goal: the reciprocals are exact. Method: every four digits in both halves.
    #[test]
    fn every_four_digits_are_right() {
        for four in 0..10_000 {
            let number = four * 10_000 + 9_999 - four;
            let digits = eight_digits(number).to_le_bytes().map(|digit| digit + b'0');
            assert_eq!(digits, format!("{number:08}").as_bytes());
        }
    }

    /// Goal: what a key costs can be looked up any time (`cargo test --release -- --nocapture ns_per_key`). Method:
    /// keys of a million records in a scattered order, the best of many rounds; printed, never asserted.
    #[test]
    fn ns_per_key() {
        const ROUND_LEN: usize = 1_000;
        // 611,953 is prime, so this visits every record once.
        let records: Vec<_> = (0..1_000_000_u64).map(|index| (index * 611_953 % 1_000_000) as u32).collect();
        let mut buffer = KeyBuffer::new();
        let rounds = records.chunks(ROUND_LEN).map(|round| {
            let start = Instant::now();
            for &record in round {
                black_box(buffer.key(record));
            }
            start.elapsed()
        });
        let best = rounds.min().unwrap_or_default();
        println!("{:.2} ns per key", best.as_nanos() as f64 / ROUND_LEN as f64);
    }
}
