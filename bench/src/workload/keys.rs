//! How keys are chosen.

use std::{error, fmt, str::FromStr};

/// Exponent of a Zipf law, 0 to 10: 0 is uniform, and at 10 all but a thousandth of the operations are on one record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Theta(f64);

impl Theta {
    /// YCSB's usual exponent.
    pub const YCSB: Self = Self(0.99);

    /// Takes an exponent.
    ///
    /// # Errors
    /// When it is not a number from 0 to 10.
    pub fn new(theta: f64) -> Result<Self, ThetaError> {
        if (0.0..=10.0).contains(&theta) { Ok(Self(theta)) } else { Err(ThetaError(theta.to_string())) }
    }

    /// The exponent.
    #[must_use]
    pub const fn exponent(self) -> f64 {
        self.0
    }
}

impl FromStr for Theta {
    type Err = ThetaError;

    fn from_str(text: &str) -> Result<Self, ThetaError> {
        text.trim().parse().map_err(|_| ThetaError(text.to_owned())).and_then(Self::new)
    }
}

impl fmt::Display for Theta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What was given as a Zipf exponent and is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThetaError(String);

impl fmt::Display for ThetaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the Zipf exponent \"{}\" is not allowed; it is a number from 0 (uniform) to 10, as in 0.99",
            self.0
        )
    }
}

impl error::Error for ThetaError {}

/// How the record of an operation is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeyDistribution {
    /// All records alike.
    Uniform,
    /// Record `i` with a probability proportional to 1 / (i + 1)^θ. This is the plain law over the records themselves:
    /// record 0 is the hottest, record 1 the next, and with a million records and θ = 0.99 record 0 gets 6.5 % of the
    /// operations. (YCSB's "scrambled" one draws from 10^10 items and hashes them; its hottest record gets 3.8 %. The
    /// order of the records means nothing to linerate, which places keys by their hash.)
    Zipf(Theta),
}

impl KeyDistribution {
    /// `uniform` or `zipf`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf(_) => "zipf",
        }
    }

    /// Exponent of the law; that of a uniform one is 0.
    #[must_use]
    pub const fn exponent(self) -> f64 {
        match self {
            Self::Uniform => 0.0,
            Self::Zipf(theta) => theta.exponent(),
        }
    }
}

impl fmt::Display for KeyDistribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => write!(f, "uniform"),
            Self::Zipf(theta) => write!(f, "Zipf {theta}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_checked() {
        for (text, exponent) in [("0.99", 0.99), ("0", 0.0), ("10", 10.0), (" 1.2 ", 1.2)] {
            assert_eq!(text.parse::<Theta>().map(Theta::exponent), Ok(exponent));
        }
        for text in ["-0.1", "10.1", "NaN", "inf", "", "high"] {
            let error = text.parse::<Theta>().expect_err(text).to_string();
            assert!(error.contains("is not allowed; it is a number from 0 (uniform) to 10"), "{error}");
        }
        assert_eq!(Theta::YCSB.to_string(), "0.99");
        assert_eq!(KeyDistribution::Zipf(Theta::YCSB).to_string(), "Zipf 0.99");
    }
}
