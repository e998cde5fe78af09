//! The Redis serialisation protocol as far as GET, SET, MGET and INFO need it (redis.io, "RESP protocol description").
//!
//! A command is an array of bulk strings; an answer is one of the [`Token`]s, or an array of them, whose head is a token
//! of its own here: so nothing needs to be kept between two of them.

use super::wire::{Malformed, line, number, push_number};

/// Longest line of an answer in bytes. Error messages are the longest ones.
const LINE_LEN_MAX: usize = 1024;

/// One piece of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// So many tokens follow that belong together.
    Array(usize),
    /// A value.
    Bulk(&'a [u8]),
    /// No value.
    Null,
    /// A short text, such as `OK`.
    Simple(&'a [u8]),
    /// A refusal.
    Error(&'a [u8]),
}

/// Takes the token at the beginning of `bytes` and says how long it is; `None` when there is only a part of it.
///
/// # Errors
/// When this is no beginning of a token, or of one with a value of more than `value_len_max` bytes.
#[inline]
pub(super) fn token(bytes: &[u8], value_len_max: usize) -> Result<Option<(Token<'_>, usize)>, Malformed> {
    let Some(&kind) = bytes.first() else { return Ok(None) };
    if !b"$*+-".contains(&kind) {
        return Err(Malformed("an answer that begins like none of RESP"));
    }
    let Some(text) = line(&bytes[1..], LINE_LEN_MAX)? else { return Ok(None) };
    let head_len = 1 + text.len() + 2;
    let whole = |token| Ok(Some((token, head_len)));
    match kind {
        b'+' => whole(Token::Simple(text)),
        b'-' => whole(Token::Error(text)),
        _ if text == b"-1" => whole(Token::Null),
        b'*' => whole(Token::Array(number(text).ok_or(Malformed("an array of a length that is no number"))?)),
        _ => {
            let len = number(text).ok_or(Malformed("a value of a length that is no number"))?;
            if len > value_len_max {
                return Err(Malformed("a value that is longer than any that was stored"));
            }
            let Some(rest) = bytes.get(head_len..head_len + len + 2) else { return Ok(None) };
            let (value, end) = rest.split_at(len);
            if end != b"\r\n" {
                return Err(Malformed("a value that does not end where it should"));
            }
            Ok(Some((Token::Bulk(value), head_len + len + 2)))
        }
    }
}

/// Appends the head of a command of so many words.
#[inline]
pub(super) fn push_array(out: &mut Vec<u8>, words: usize) {
    out.push(b'*');
    push_number(out, words);
    out.extend_from_slice(b"\r\n");
}

/// Appends one word of a command.
#[inline]
pub(super) fn push_bulk(out: &mut Vec<u8>, word: &[u8]) {
    out.push(b'$');
    push_number(out, word.len());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(word);
    out.extend_from_slice(b"\r\n");
}

/// Appends a get of one key.
#[inline]
pub(super) fn push_get(out: &mut Vec<u8>, key: &[u8]) {
    out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n");
    push_bulk(out, key);
}

/// Appends a put.
#[inline]
pub(super) fn push_set(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.extend_from_slice(b"*3\r\n$3\r\nSET\r\n");
    push_bulk(out, key);
    push_bulk(out, value);
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

    use super::*;

    const SEED: u64 = 7;
    const LEN_MAX: usize = 64;

    /// All tokens of a stream that ends with one.
    fn tokens(mut bytes: &[u8]) -> Vec<Token<'_>> {
        let mut tokens = Vec::new();
        while let Some((token, len)) = token(bytes, LEN_MAX).unwrap() {
            tokens.push(token);
            bytes = &bytes[len..];
        }
        assert_eq!(bytes, b"", "a part of a token");
        tokens
    }

    /// Goal: answers are understood, and a part of one is waited for. Method: each kind with golden bytes; every
    /// truncation, and what follows, leaves the same tokens.
    #[test]
    fn answers_are_read_at_every_split() {
        let stream = b"*3\r\n$5\r\nab\r\nc\r\n$-1\r\n$0\r\n\r\n+OK\r\n-ERR no\r\n*0\r\n*-1\r\n";
        let expected = [
            Token::Array(3),
            Token::Bulk(b"ab\r\nc"),
            Token::Null,
            Token::Bulk(b""),
            Token::Simple(b"OK"),
            Token::Error(b"ERR no"),
            Token::Array(0),
            Token::Null,
        ];
        assert_eq!(tokens(stream), expected);
        for split in 0..stream.len() {
            let mut begin = 0;
            let mut read = Vec::new();
            for end in [split, stream.len()] {
                while let Some((token, len)) = token(&stream[begin..end], LEN_MAX).unwrap() {
                    read.push(token);
                    begin += len;
                }
            }
            assert_eq!(read, expected, "split at {split}");
        }
    }

    /// Goal: what no server may say is refused, and nothing makes the reader wait for ever or go out of bounds. Method:
    /// wrong bytes of each kind; a line without an end; random bytes, and good ones with one changed.
    #[test]
    fn hostile_answers_are_refused() {
        for bytes in [
            &b"x"[..],
            b":1\r\n",
            b"$65\r\n",
            b"$1\r\nabc\r\n",
            b"$\r\n",
            b"$-2\r\n",
            b"$99999999999999999999\r\n",
            b"*x\r\n",
            b"$1 \r\n",
            b"+OK\rx",
        ] {
            assert!(token(bytes, LEN_MAX).is_err(), "{}", bytes.escape_ascii());
        }
        assert_eq!(token(&[b'+'; LINE_LEN_MAX], LEN_MAX), Ok(None));
        assert!(token(&[b'+'; LINE_LEN_MAX + 3], LEN_MAX).is_err());
        println!("seed {SEED}");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let good = b"*2\r\n$5\r\nabcde\r\n$-1\r\n+OK\r\n";
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
        let mut out = Vec::new();
        push_get(&mut out, b"17");
        push_set(&mut out, b"0", b"a value of 16 b.");
        push_array(&mut out, 101);
        let expected = "*2|$3|GET|$2|17|*3|$3|SET|$1|0|$16|a value of 16 b.|*101|".replace('|', "\r\n");
        assert_eq!(out.escape_ascii().to_string(), expected.as_bytes().escape_ascii().to_string());
    }
}
