//! The key hash of the wire, "linerate hash v1": the same 64 bits for the same key everywhere, for ever.
//!
//! Client and server place a key by this hash ([`crate::placement`]), so every language must compute it alike, and it
//! may never change under this name. It is small on purpose: sixteen bytes as two little-endian words, and the one strong
//! mixing instruction that all 64-bit processors share, the multiplication 64 × 64 → 128. The idea (a short key is
//! nothing but two words, and the two halves of the product are folded together) is that of wyhash and rapidhash; code
//! and constants are our own, and the values differ from theirs.
//!
//! It is **not keyed** and does not resist flooding: whoever wants can make keys that collide, or that all fall into
//! one partition. Nothing but placement may rest on it; the table in the server has a hash of its own, seeded per boot.

use crate::key::{HEAD_LEN, Key};

// The first 256 bits of the fractional part of pi, 64 at a time: numbers that nobody chose.
const PI_0: u64 = 0x243f_6a88_85a3_08d3;
const PI_1: u64 = 0x1319_8a2e_0370_7344;
const PI_2: u64 = 0xa409_3822_299f_31d0;
const PI_3: u64 = 0x082e_fa98_ec4e_6c89;

/// The 64-bit wire hash of `key`, of any length; an empty key is legal here though not on the wire.
///
/// The high 12 bits name the partition ([`crate::placement::Partition::of`]). All 64 are well mixed, so that other
/// bits may serve other purposes. A key of at most 16 bytes costs two multiplications and no branch on its length, each
/// further 16 bytes one more.
#[inline]
#[must_use]
pub fn key_hash(key: Key<'_>) -> u64 {
    let mut chain = PI_1;
    let [mut first, mut last] = key.head();
    if let (true, Some(tail)) = (key.len() > HEAD_LEN, key.bytes().last_chunk::<HEAD_LEN>()) {
        let mut rest = key.bytes();
        // The last 1..=16 bytes are covered by `tail`, which overlaps what this loop has read.
        while let Some((block, after)) = rest.split_first_chunk::<HEAD_LEN>()
            && !after.is_empty()
        {
            let [low, high] = Key::new(block).head();
            chain = fold(low ^ PI_0, high ^ chain);
            rest = after;
        }
        [first, last] = Key::new(tail).head();
    }
    let product = u128::from(first ^ PI_0) * u128::from(last ^ chain);
    let (low, high) = (product as u64, (product >> 64) as u64);
    // The length enters here and not above: there, a byte of the key could cancel it. It also tells keys apart that
    // differ only in zeros at their end.
    fold(low ^ PI_2 ^ key.len() as u64, high ^ PI_3)
}

/// The 128-bit product of `a` and `b`, its halves xored: each bit of the result depends on nearly all bits of both.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Length → hash of the key whose bytes are 0, 1, 2, … up to that length. From a second, independent
    /// implementation (in Python, written from the text of the protocol).
    const COUNTING: [(usize, u64); 16] = [
        (0, 0xb836_0d13_316c_ba7e),
        (1, 0xc2dd_6566_00ae_9862),
        (2, 0x1a00_88ba_4769_064e),
        (3, 0xd202_8f36_677c_8465),
        (4, 0xa20d_beae_2b7b_58b4),
        (7, 0x7658_abde_9dfb_8877),
        (8, 0xf48c_76d3_f438_1d86),
        (9, 0x43a4_133a_ee8b_ad89),
        (15, 0x57a0_9956_3263_32d5),
        (16, 0xb613_111c_83c2_c8e2),
        (17, 0xa36f_d0ac_332d_5c0d),
        (31, 0xd43a_bc3c_1a0d_b95c),
        (32, 0x18aa_d823_7d6a_0561),
        (33, 0x8de2_7751_88b2_bf86),
        (64, 0xdca3_4a04_a843_bbc6),
        (255, 0xef23_fd65_e6eb_bfc8),
    ];

    /// Key → hash, for keys as people write them, and for keys that only their length tells apart.
    const NAMED: [(&[u8], u64); 8] = [
        (b"\0", 0xc2dd_6566_00ae_9862),
        (b"\0\0", 0xcf78_dab5_53e0_f666),
        (b"0", 0x9c03_a19d_11aa_b9e0),
        (b"1234567", 0x067d_09da_5702_f1c2),
        (b"00000000", 0xcab7_aa48_d4d6_7ac7),
        (b"100000000", 0xae9e_7e14_28a9_02cc),
        (b"user0000000001", 0xcd50_1e15_81fe_8948),
        (b"user0000000001/profile", 0x2900_fb91_66d5_d63f),
    ];

    /// Goal: no version and no language ever disagrees. Method: fixed vectors across every branch and its edges.
    #[test]
    fn vectors() {
        let counting: Vec<u8> = (0..=254).collect();
        for (len, hash) in COUNTING {
            assert_eq!(key_hash(Key::new(&counting[..len])), hash, "length {len}");
        }
        for (key, hash) in NAMED {
            assert_eq!(key_hash(Key::new(key)), hash, "key {key:?}");
        }
    }

    /// Goal: every bit of the key reaches every bit of the hash. Method: flip each bit of many random keys and count
    /// how often each output bit flips; 4,080 trials have a standard deviation of 0.8 %, so 5 % is beyond chance.
    #[test]
    fn avalanche() {
        const SEED: u64 = 0x6c69_6e65_7261_7465;
        println!("seed {SEED:#x}");
        let mut random = StdRng::seed_from_u64(SEED);
        for len in [2, 3, 7, 8, 16, 17, 40] {
            let mut key = vec![0; len];
            let mut flips = vec![[0u32; 64]; len * 8];
            for _ in 0..16 {
                // A byte-wide counter per output bit, eight to a word, holds 255 trials.
                let mut lanes = vec![[0u64; 8]; len * 8];
                for _ in 0..255 {
                    random.fill_bytes(&mut key);
                    let before = key_hash(Key::new(&key));
                    for (bit, lanes) in lanes.iter_mut().enumerate() {
                        key[bit / 8] ^= 1 << (bit % 8);
                        let changed = before ^ key_hash(Key::new(&key));
                        key[bit / 8] ^= 1 << (bit % 8);
                        for (shift, lane) in lanes.iter_mut().enumerate() {
                            *lane += (changed >> shift) & 0x0101_0101_0101_0101;
                        }
                    }
                }
                for (flips, lanes) in flips.iter_mut().zip(&lanes) {
                    for (output, count) in flips.iter_mut().enumerate() {
                        *count += u32::from(lanes[output % 8].to_le_bytes()[output / 8]);
                    }
                }
            }
            for (input, flips) in flips.iter().enumerate() {
                for (output, &count) in flips.iter().enumerate() {
                    let probability = f64::from(count) / 4080.0;
                    assert!(
                        (0.45..=0.55).contains(&probability),
                        "length {len}: input bit {input} flips output bit {output} with probability {probability}"
                    );
                }
            }
        }
    }

    /// Goal: keys that people number fall evenly into the 4,096 partitions. Method: chi-square of a million keys over
    /// the top 12 bits: 4,095 degrees of freedom, standard deviation √8190 ≈ 90.5, accepted within five of them.
    #[test]
    fn numbered_keys_spread_over_partitions() {
        for prefix in ["", "user"] {
            let mut counts = [0u32; 4096];
            each_number(prefix, 6, 1_000_000, |padded| {
                let key = if prefix.is_empty() { decimal(padded) } else { padded };
                counts[(key_hash(Key::new(key)) >> 52) as usize] += 1;
            });
            let expected = 1_000_000.0 / 4096.0;
            let chi_square: f64 = counts.iter().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
            assert!((3642.0..=4548.0).contains(&chi_square), "prefix {prefix:?}: chi-square {chi_square}");
        }
    }

    /// Goal: no two keys of the kinds people use share a hash. Method: three million structured keys in an
    /// open-addressing table indexed by the low bits; chance alone makes one run in three million collide.
    #[test]
    fn structured_keys_do_not_collide() {
        let mut seen = vec![0u64; 1 << 23];
        let mut insert = |key: &[u8]| {
            let hash = key_hash(Key::new(key));
            let mut index = hash as usize % seen.len();
            while seen[index] != 0 {
                assert_ne!(seen[index], hash, "another key collides with {key:?}");
                index = (index + 1) % seen.len();
            }
            seen[index] = hash;
        };
        each_number("", 7, 1_000_000, |padded| insert(decimal(padded)));
        each_number("", 12, 500_000, &mut insert);
        each_number("user", 10, 750_000, &mut insert);
        each_number("tenant/0042/object/", 10, 250_000, &mut insert);
        for number in 1..=500_000u64 {
            insert(&number.to_be_bytes());
        }
        // One byte repeated at every length, and two different bytes; digits were among the numbers already.
        insert(b"");
        for byte in (0..=255u8).filter(|byte| !byte.is_ascii_digit()) {
            (1..=255).for_each(|len| insert(&[byte; 255][..len]));
            (0..=255).filter(|&other| other != byte).for_each(|other| insert(&[byte, other]));
        }
    }

    /// Goal: beyond 16 bytes every byte and the length count. Method: no two of a key's prefixes, and of its copies
    /// with one byte changed, hash alike.
    #[test]
    fn long_keys_use_every_byte() {
        let mut hashes = Vec::new();
        for len in 0..=255 {
            let mut key = vec![0x5a; len];
            hashes.push(key_hash(Key::new(&key)));
            for index in 0..len {
                key[index] ^= 1;
                hashes.push(key_hash(Key::new(&key)));
                key[index] ^= 1;
            }
        }
        let count = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), count);
    }

    /// Calls `visit` with `prefix` followed by 0, 1, 2, … `count - 1` in `digits` decimal digits.
    fn each_number(prefix: &str, digits: usize, count: usize, mut visit: impl FnMut(&[u8])) {
        let mut key = prefix.as_bytes().to_vec();
        key.resize(prefix.len() + digits, b'0');
        for _ in 0..count {
            visit(&key);
            for digit in key[prefix.len()..].iter_mut().rev() {
                if *digit < b'9' {
                    *digit += 1;
                    break;
                }
                *digit = b'0';
            }
        }
    }

    /// The number without its leading zeros.
    fn decimal(padded: &[u8]) -> &[u8] {
        let zeros = padded.iter().take_while(|&&digit| digit == b'0').count();
        &padded[zeros.min(padded.len() - 1)..]
    }
}
