//! What the peers' protocols have in common: lines, and decimal numbers.

use std::{error, fmt};

/// Bytes that the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answered with {}", self.0)
    }
}

impl error::Error for Malformed {}

/// The line at the beginning of `bytes`, without its end; `None` when the end is not there yet.
///
/// # Errors
/// When there is no end within `len_max` bytes, or only a half one.
#[inline]
pub(super) fn line(bytes: &[u8], len_max: usize) -> Result<Option<&[u8]>, Malformed> {
    match bytes.iter().take(len_max + 1).position(|&byte| byte == b'\r') {
        None if bytes.len() > len_max => Err(Malformed("a line without an end")),
        None => Ok(None),
        Some(len) => match bytes.get(len + 1) {
            None => Ok(None),
            Some(b'\n') => Ok(Some(&bytes[..len])),
            Some(_) => Err(Malformed("a line that ends by half")),
        },
    }
}

/// A number of 1 to 9 decimal digits.
#[inline]
pub(super) fn number(text: &[u8]) -> Option<usize> {
    if !(1..=9).contains(&text.len()) {
        return None;
    }
    text.iter().try_fold(0, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit <= 9).then_some(number * 10 + usize::from(digit))
    })
}

/// Appends a number of up to nine decimal digits.
#[inline]
pub(super) fn push_number(out: &mut Vec<u8>, number: usize) {
    debug_assert!(number < 1_000_000_000);
    let mut power = 1;
    while number / power >= 10 {
        power *= 10;
    }
    while power > 0 {
        out.push(b'0' + (number / power % 10) as u8);
        power /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_both_ways() {
        for value in [0, 1, 9, 10, 99, 100, 128, 1_023, 1_048_576, 999_999_999] {
            let mut text = Vec::new();
            push_number(&mut text, value);
            assert_eq!(text, value.to_string().into_bytes());
            assert_eq!(number(&text), Some(value));
        }
        for text in [&b""[..], b"-1", b"1x", b" 1", b"+1", b"1234567890", b"/", b":"] {
            assert_eq!(number(text), None, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn lines_end_with_two_bytes() {
        assert_eq!(line(b"ab\r\ncd", 8), Ok(Some(&b"ab"[..])));
        for part in [&b""[..], b"ab", b"ab\r", b"12345678", b"12345678\r"] {
            assert_eq!(line(part, 8), Ok(None), "{}", part.escape_ascii());
        }
        for wrong in [&b"ab\rc"[..], b"123456789", b"123456789\r\n", b"ab\r\r\n"] {
            assert!(line(wrong, 8).is_err(), "{}", wrong.escape_ascii());
        }
    }
}
