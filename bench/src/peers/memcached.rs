//! The text protocol of memcached as far as `get`, `set` and `stats` need it (memcached: doc/protocol.txt).
//!
//! ```text
//! get 17 4 99            VALUE 17 0 128        set 4 0 0 128        STORED
//!                        …128 bytes…           …128 bytes…
//!                        VALUE 99 0 128
//!                        …
//!                        END
//! ```
//!
//! Over UDP each datagram begins with a [`Frame`]; a request is one datagram, and the answer is at least one for each value
//! and one for the end.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian::U16};

use super::wire::{Malformed, line, number, push_number};

/// Longest line of an answer in bytes: a key of 250 bytes with three numbers, or the reason of a refusal.
const LINE_LEN_MAX: usize = 1024;

/// What every datagram begins with, in both directions (doc/protocol.txt, "UDP protocol").
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Frame {
    /// Chosen by the client, and the same in all datagrams of the answer.
    pub(super) request: U16,
    /// Place of this datagram among those that belong together, from 0 on.
    pub(super) sequence: U16,
    /// How many belong together: those of one value, not those of one request.
    pub(super) count: U16,
    /// 0.
    pub(super) reserved: U16,
}

const _: () = assert!(size_of::<Frame>() == 8);

impl Frame {
    /// That of a request, which is always one datagram.
    pub(super) const fn of_request(request: u16) -> Self {
        let zero = U16::ZERO;
        Self { request: U16::new(request), sequence: zero, count: U16::new(1), reserved: zero }
    }
}

/// One piece of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// What is stored at a key.
    Value {
        /// The key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// No more values.
    End,
    /// A value was stored.
    Stored,
    /// Any other line: a refusal.
    Other(&'a [u8]),
}

/// Takes the token at the beginning of `bytes` and says how long it is; `None` when there is only a part of it.
///
/// # Errors
/// When this is no beginning of a token, or of one with a value of more than `value_len_max` bytes.
#[inline]
pub(super) fn token(bytes: &[u8], value_len_max: usize) -> Result<Option<(Token<'_>, usize)>, Malformed> {
    let Some(text) = line(bytes, LINE_LEN_MAX)? else { return Ok(None) };
    let head_len = text.len() + 2;
    let Some(words) = text.strip_prefix(b"VALUE ") else {
        let token = match text {
            b"END" => Token::End,
            b"STORED" => Token::Stored,
            other => Token::Other(other),
        };
        return Ok(Some((token, head_len)));
    };
    // The flags are ours, always 0: with a version (`gets`) there would be one word more.
    let mut words = words.split(|&byte| byte == b' ');
    let (Some(key), Some(b"0"), Some(len), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Malformed("a value that is not announced as one should be"));
    };
    let len = number(len).ok_or(Malformed("a value of a length that is no number"))?;
    if len > value_len_max {
        return Err(Malformed("a value that is longer than any that was stored"));
    }
    let Some(rest) = bytes.get(head_len..head_len + len + 2) else { return Ok(None) };
    let (value, end) = rest.split_at(len);
    if end != b"\r\n" {
        return Err(Malformed("a value that does not end where it should"));
    }
    Ok(Some((Token::Value { key, value }, head_len + len + 2)))
}

/// Appends one key of a get.
#[inline]
pub(super) fn push_key(out: &mut Vec<u8>, key: &[u8]) {
    out.push(b' ');
    out.extend_from_slice(key);
}

/// Appends a put that never expires.
#[inline]
pub(super) fn push_set(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.extend_from_slice(b"set ");
    out.extend_from_slice(key);
    out.extend_from_slice(b" 0 0 ");
    push_number(out, value.len());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

    use super::*;

    const SEED: u64 = 7;
    const LEN_MAX: usize = 64;

    /// Goal: answers are understood, and a part of one is waited for. Method: each kind with golden bytes, at every split.
    #[test]
    fn answers_are_read_at_every_split() {
        let stream =
            b"VALUE 17 0 5\r\nab\r\nc\r\nVALUE 4 0 0\r\n\r\nEND\r\nSTORED\r\nSERVER_ERROR out of memory\r\n";
        let expected = [
            Token::Value { key: b"17", value: b"ab\r\nc" },
            Token::Value { key: b"4", value: b"" },
            Token::End,
            Token::Stored,
            Token::Other(b"SERVER_ERROR out of memory"),
        ];
        for split in 0..=stream.len() {
            let mut begin = 0;
            let mut read = Vec::new();
            for end in [split, stream.len()] {
                while let Some((token, len)) = token(&stream[begin..end], LEN_MAX).unwrap() {
                    read.push(token);
                    begin += len;
                }
            }
            assert_eq!((read, begin), (expected.to_vec(), stream.len()), "split at {split}");
        }
    }

    /// Goal: what no server may say is refused, and nothing makes the reader wait for ever or go out of bounds. Method:
    /// wrong bytes of each kind; random bytes, and good ones with one changed.
    #[test]
    fn hostile_answers_are_refused() {
        for bytes in [
            &b"VALUE 1 0 65\r\n"[..],
            b"VALUE 1 0 1\r\nabc\r\n",
            b"VALUE 1 0\r\n",
            b"VALUE 1 0 \r\n",
            b"VALUE 1 0 1 7\r\na\r\n",
            b"VALUE 1 1 1\r\na\r\n",
            b"VALUE 1 0 99999999999999999999\r\n",
            b"END\rx",
            &[b'a'; LINE_LEN_MAX + 1],
        ] {
            assert!(token(bytes, LEN_MAX).is_err(), "{}", bytes.escape_ascii());
        }
        println!("seed {SEED}");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let good = b"VALUE 17 0 5\r\nabcde\r\nEND\r\nSTORED\r\n";
        for _ in 0..20_000 {
            let mut bytes = good.to_vec();
            let index = random.random_range(0..bytes.len());
            bytes[index] = random.random();
            let arbitrary: [u8; 24] = random.random();
            for bytes in [&bytes[..], &arbitrary] {
                let mut rest = bytes;
                while let Ok(Some((_, len))) = token(rest, LEN_MAX) {
                    assert!(len > 0);
                    rest = &rest[len..];
                }
            }
        }
    }

    #[test]
    fn commands_are_those_of_the_protocol() {
        let mut out = Frame::of_request(0x0102).as_bytes().to_vec();
        assert_eq!(out, [1, 2, 0, 0, 0, 1, 0, 0]);
        out.clear();
        out.extend_from_slice(b"get");
        push_key(&mut out, b"17");
        push_key(&mut out, b"4");
        assert_eq!(out, b"get 17 4");
        out.clear();
        push_set(&mut out, b"4", b"a value of 16 b.");
        assert_eq!(out, b"set 4 0 0 16\r\na value of 16 b.\r\n");
    }
}
