//! The last bytes of a datagram: a CRC32C of everything before them.

use zerocopy::{FromBytes, network_endian as be};

use crate::{
    drops::DropReason,
    mutants::{Mutant, is_active},
};

/// Length of the CRC32C in bytes.
pub const TRAILER_LEN: usize = 4;

/// Returns the datagram without its trailer.
///
/// UDP's own 16-bit sum misses one in 65,536 corruptions at best, and network cards that verify it do so before the
/// bytes cross the bus: too weak for a store. The polynomial is Castagnoli's (RFC 3720 §B.4 has test vectors).
///
/// # Errors
/// `Checksum` when it is too short for a trailer or the sum differs.
#[inline]
pub fn check_trailer(datagram: &[u8]) -> Result<&[u8], DropReason> {
    let (covered, sum) = be::U32::ref_from_suffix(datagram).map_err(|_| DropReason::Checksum)?;
    if crc32c::crc32c(covered) == sum.get() || is_active(Mutant::ChecksumIgnored) {
        Ok(covered)
    } else {
        Err(DropReason::Checksum)
    }
}

/// Writes the trailer into the last [`TRAILER_LEN`] bytes.
///
/// # Panics
/// When the datagram is shorter than a trailer.
#[inline]
pub fn write_trailer(datagram: &mut [u8]) {
    let (covered, sum) = datagram.split_at_mut(datagram.len() - TRAILER_LEN);
    sum.copy_from_slice(&crc32c::crc32c(covered).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the polynomial is Castagnoli's. Method: RFC 3720 §B.4, 32 bytes of zeros; and the usual check string.
    #[test]
    fn is_crc32c() {
        let mut zeros = [0; 36];
        write_trailer(&mut zeros);
        assert_eq!(zeros[32..], 0x8a91_36aau32.to_be_bytes());
        let mut digits = *b"123456789....";
        write_trailer(&mut digits);
        assert_eq!(digits[9..], 0xe306_9283u32.to_be_bytes());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let mut datagram = [0x5a; 40];
        write_trailer(&mut datagram);
        assert!(check_trailer(&datagram).is_ok());
        for bit in 0..datagram.len() * 8 {
            datagram[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check_trailer(&datagram), Err(DropReason::Checksum), "bit {bit}");
            datagram[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
