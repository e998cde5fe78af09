//! How many bits of a cable frames take, and rates as people write them.

use std::{fmt, str::FromStr};

use serde::Serialize;

use crate::watch::counters::FrameCount;

/// What Ethernet adds around each frame that the kernel counts: preamble and start 8 bytes, checksum 4, and the gap to the
/// next frame 12 (IEEE 802.3, clauses 3 and 4.4).
const AROUND_FRAME_LEN: u64 = 8 + 4 + 12;

/// Bytes before the IP packet in what the kernel counts as a frame: two addresses and a type.
const ETHERNET_HEADER_LEN: u64 = 14;

/// Bits per second of the network card that the project is made for.
pub const LINE_RATE: Rate = Rate(10_000_000_000);

/// Bytes that an IP packet takes on a cable: 38 more than its own. Shorter ones than Ethernet carries are filled up
/// (IEEE 802.3, clause 4.2.3.3: 64 bytes with the checksum).
#[must_use]
pub const fn wire_len(packet_len: usize) -> usize {
    const PACKET_LEN_MIN: usize = 46;
    let packet_len = if packet_len < PACKET_LEN_MIN { PACKET_LEN_MIN } else { packet_len };
    packet_len + ETHERNET_HEADER_LEN as usize + AROUND_FRAME_LEN as usize
}

/// Longest frame as the kernel counts it, in bytes, on a link with this MTU.
#[must_use]
pub const fn frame_len_max(mtu: u16) -> u64 {
    mtu as u64 + ETHERNET_HEADER_LEN
}

/// Gigabits per second that frames take on a cable, with all that is around them.
#[must_use]
pub fn gbit_per_sec(frames: FrameCount, seconds: f64) -> f64 {
    let bytes = frames.bytes + AROUND_FRAME_LEN * frames.frames;
    bytes as f64 * 8.0 / seconds / 1e9
}

/// Bits per second, 1 Mbit/s to 100 Gbit/s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Rate(u64);

impl Rate {
    /// Bits per second.
    #[must_use]
    pub const fn bits_per_sec(self) -> u64 {
        self.0
    }

    /// Which share of this rate so many gigabits per second are; 1 is all of it.
    #[must_use]
    pub fn share(self, gbit_per_sec: f64) -> f64 {
        gbit_per_sec * 1e9 / self.0 as f64
    }

    /// The rate at which a queueing discipline must let bytes through so that full frames take this rate on a cable. It
    /// counts the Ethernet header, but nothing of what is around the frame.
    #[must_use]
    pub const fn without_gaps(self, mtu: u16) -> Self {
        let len = frame_len_max(mtu) as u128;
        Self((self.0 as u128 * len / (len + AROUND_FRAME_LEN as u128)) as u64)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const ALLOWED: &str = "give 1mbit to 100gbit, such as 10gbit";
        let units = [("gbit", 1e9), ("mbit", 1e6)];
        let (number, unit) = units
            .iter()
            .find_map(|&(name, unit)| Some((text.strip_suffix(name)?, unit)))
            .ok_or_else(|| format!("`{text}` is no rate: {ALLOWED}"))?;
        let number: f64 = number.parse().map_err(|_| format!("`{text}` is no rate: {ALLOWED}"))?;
        let bits = number * unit;
        if (1e6..=1e11).contains(&bits) { Ok(Self(bits as u64)) } else { Err(ALLOWED.to_owned()) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Gbit/s", self.0 as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: line rate is what IEEE 802.3 makes of 1,500-byte packets. Method: 812,743 of them a second fill 10 Gbit/s, and
    /// other figures worked out by hand.
    #[test]
    fn full_frames_fill_the_line() {
        assert_eq!(frame_len_max(1_500), 1_514);
        for (frames, bytes, seconds, gbit, share) in [
            (812_743, 812_743 * 1_514, 1.0, 10.0, 1.0),
            (812_743, 812_743 * 1_514, 2.0, 5.0, 0.5),
            (1_000_000, 60_000_000, 1.0, 0.672, 0.0672),
            (0, 0, 1.0, 0.0, 0.0),
        ] {
            let got = gbit_per_sec(FrameCount { frames, bytes, ..FrameCount::default() }, seconds);
            assert!((got - gbit).abs() < 1e-4, "{frames}: {got}");
            assert!((LINE_RATE.share(got) - share).abs() < 1e-5, "{frames}");
        }
        let half: Rate = "5gbit".parse().unwrap();
        assert_eq!(half.share(5.0), 1.0);
    }

    #[test]
    fn packets_have_38_bytes_around_them() {
        assert_eq!([0, 46, 47, 1_500].map(wire_len), [84, 84, 85, 1_538]);
    }

    /// Goal: a shaper that does not know of gaps is given a rate with which full frames take the wanted one. Method: frames
    /// per second at both.
    #[test]
    fn a_shaper_is_told_less() {
        for mtu in [1_500, 9_000] {
            let frame_len = frame_len_max(mtu) as f64;
            let frames = LINE_RATE.without_gaps(mtu).bits_per_sec() as f64 / 8.0 / frame_len;
            let wanted = 10e9 / 8.0 / (frame_len + 24.0);
            assert!((frames - wanted).abs() < 1.0, "{frames} {wanted}");
        }
        assert_eq!(LINE_RATE.without_gaps(1_500).bits_per_sec(), 9_843_953_185);
    }

    /// Goal: rates are read as people write them, and others are refused with what is allowed. Method: some of each.
    #[test]
    fn rates_are_read() {
        for (text, bits) in [
            ("10gbit", 10_000_000_000),
            ("2.5gbit", 2_500_000_000),
            ("100gbit", 100_000_000_000),
            ("1mbit", 1_000_000),
            ("0.001gbit", 1_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Rate(bits)), "{text}");
        }
        for text in ["", "gbit", "10", "10gb", "0gbit", "0.9mbit", "101gbit", "-1gbit", "nangbit", "infgbit"]
        {
            let error = text.parse::<Rate>().expect_err(text);
            assert!(error.contains("1mbit to 100gbit"), "{text}: {error}");
        }
        assert_eq!(LINE_RATE.to_string(), "10 Gbit/s");
    }
}
