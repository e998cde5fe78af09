//! Whether the difference of two measurements is larger than their noise.
//!
//! Both ways end in a t-interval (95 %) of the difference of two means whose variances may differ:
//! B. L. Welch, "The generalization of 'Student's' problem when several different population variances are involved",
//! Biometrika 34 (1947), with the degrees of freedom of Satterthwaite (1946):
//!
//! ```text
//! a − b ± t(0.975, f) √(Va + Vb),   f = (Va + Vb)² / (Va² / (na − 1) + Vb² / (nb − 1)),   V = s² / n
//! ```
//!
//! The seconds of one run resemble their neighbours, so n of them tell less than n independent figures would. They
//! count as n′ = n (1 − r) / (1 + r), where r is the correlation of a second with the next (G. V. Bayley and
//! J. M. Hammersley, "The 'effective' number of independent observations in an autocorrelated time series", Journal of
//! the Royal Statistical Society 8 (1946), for a process whose memory is one step). What a short series shows as r is
//! too small on average, by (1 + 4 r) / n (M. G. Kendall, "Note on bias in the estimation of autocorrelation",
//! Biometrika 41 (1954)); that is made up for. A series that gets slower by and by has a large r, and so a wide interval.
//!
//! The seconds of two runs say nothing about what differs from start to start, such as where memory came to lie: runs
//! that are repeated do, and are preferred.

use std::fmt;

use statrs::distribution::{ContinuousCDF, StudentsT};

/// Seconds that a run needs before anything is concluded from them: the correction of the correlation has n − 4 in its
/// denominator, and below twice that it is noise itself.
pub const SECONDS_MIN: usize = 8;

/// No series is taken for more dependent than this; what is has no mean that could be compared.
const CORRELATION_MAX: f64 = 0.95;

/// The difference of two means, relative to the second, with the half of its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// (a − b) / b.
    pub relative: f64,
    /// Half of the interval's width, in the same unit.
    pub half_width: f64,
}

impl Difference {
    /// Whether the interval leaves out zero.
    #[must_use]
    pub fn is_beyond_noise(self) -> bool {
        self.relative.abs() > self.half_width
    }

    /// The verdict as a sentence on `a` and `b`, of which the one with more is called the first word and the other the second.
    #[must_use]
    pub fn sentence(self, a: &str, b: &str, (more, less): (&str, &str)) -> String {
        if self.is_beyond_noise() {
            let (word, size) = if self.relative > 0.0 { (more, self) } else { (less, -self) };
            format!("{a} is {word} than {b} by {size}: larger than the noise")
        } else {
            format!("{a} and {b}: no difference beyond the noise ({self})")
        }
    }
}

impl std::ops::Neg for Difference {
    type Output = Self;

    fn neg(self) -> Self {
        Self { relative: -self.relative, ..self }
    }
}

/// In per cent, like `4.1 % ± 1.2 %`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.1} % ± {:.1} %", self.relative * 100.0, self.half_width * 100.0);
        f.write_str(&text.replace('-', "−"))
    }
}

/// Compares two runs by what each second of theirs has shown. `None` when one has fewer than [`SECONDS_MIN`] seconds, or
/// `b` is zero on average.
#[must_use]
pub fn by_seconds(a: &[f64], b: &[f64]) -> Option<Difference> {
    welch(Mean::of_series(a)?, Mean::of_series(b)?)
}

/// Compares repeats, each of which gave one figure. Where one side was run once and the other at least three times, its
/// runs are taken to scatter as much as the others do. `None` when both were run once, one of them once and the other
/// twice, or `b` is zero on average.
#[must_use]
pub fn by_repeats(a: &[f64], b: &[f64]) -> Option<Difference> {
    match (a, b) {
        ([_, _, ..], [_, _, ..]) => welch(Mean::of_repeats(a), Mean::of_repeats(b)),
        (&[once], [_, _, _, ..]) => {
            let known = Mean::of_repeats(b);
            relative_to(known.mean, once - known.mean, t(known.count - 1.0) * known.deviation_of_one_more())
        }
        ([_, _, _, ..], &[once]) => {
            let known = Mean::of_repeats(a);
            relative_to(once, known.mean - once, t(known.count - 1.0) * known.deviation_of_one_more())
        }
        _ => None,
    }
}

/// A mean and how well it is known.
#[derive(Clone, Copy, Debug)]
struct Mean {
    mean: f64,
    /// Of the mean, not of the figures.
    variance: f64,
    /// Figures, or as many as they are worth.
    count: f64,
}

impl Mean {
    /// Of independent figures, of which there are two at least.
    fn of_repeats(figures: &[f64]) -> Self {
        let count = figures.len() as f64;
        let mean = figures.iter().sum::<f64>() / count;
        let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
        Self { mean, variance: squares / (count - 1.0) / count, count }
    }

    /// Of the seconds of a run.
    fn of_series(figures: &[f64]) -> Option<Self> {
        if figures.len() < SECONDS_MIN {
            return None;
        }
        let length = figures.len() as f64;
        let mean = figures.iter().sum::<f64>() / length;
        let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
        let neighbours: f64 = figures.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
        let shown = if squares > 0.0 { neighbours / squares } else { 0.0 };
        let correlation = ((length * shown + 1.0) / (length - 4.0)).clamp(0.0, CORRELATION_MAX);
        let count = (length * (1.0 - correlation) / (1.0 + correlation)).max(2.0);
        // The mean square is too small by the variance of the mean, which is a part 1 / count of it.
        let variance = squares / length * count / (count - 1.0);
        Some(Self { mean, variance: variance / count, count })
    }

    /// Standard deviation of the difference between this mean and one more figure of the same kind.
    fn deviation_of_one_more(self) -> f64 {
        (self.variance * self.count + self.variance).sqrt()
    }
}

fn welch(a: Mean, b: Mean) -> Option<Difference> {
    let variance = a.variance + b.variance;
    let freedom =
        variance.powi(2) / (a.variance.powi(2) / (a.count - 1.0) + b.variance.powi(2) / (b.count - 1.0));
    // Without any variance there is nothing to be uncertain about.
    let half_width = if variance > 0.0 { t(freedom) * variance.sqrt() } else { 0.0 };
    relative_to(b.mean, a.mean - b.mean, half_width)
}

fn relative_to(base: f64, difference: f64, half_width: f64) -> Option<Difference> {
    let result = Difference { relative: difference / base, half_width: half_width / base.abs() };
    (result.relative.is_finite() && result.half_width.is_finite()).then_some(result)
}

/// The quantile 0.975 of Student's t with so many degrees of freedom, of which there is one at least.
pub(crate) fn t(freedom: f64) -> f64 {
    let freedom = if freedom.is_finite() { freedom.max(1.0) } else { 1.0 };
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::INFINITY, |law| law.inverse_cdf(0.975))
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    use rand_distr::StandardNormal;

    use super::*;

    /// A run of `count` seconds around `mean`, with a standard deviation of 1 and the correlation `rho` of neighbours.
    fn series(mean: f64, rho: f64, count: usize, random: &mut StdRng) -> Vec<f64> {
        let mut noise: f64 = random.sample(StandardNormal);
        let mut next = |random: &mut StdRng| {
            let now = noise;
            noise = rho * noise + (1.0 - rho * rho).sqrt() * random.sample::<f64, _>(StandardNormal);
            mean + now
        };
        (0..count).map(|_| next(random)).collect()
    }

    fn share_found(pairs: usize, mut pair: impl FnMut() -> Option<Difference>) -> f64 {
        let found = (0..pairs).filter(|_| pair().expect("all are long enough").is_beyond_noise()).count();
        found as f64 / pairs as f64
    }

    /// Goal: the quantiles are those of the printed tables. Method: some of them.
    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, expected) in [(1.0, 12.706), (2.0, 4.303), (5.0, 2.571), (30.0, 2.042), (1e6, 1.960)] {
            assert!((t(freedom) - expected).abs() < 5e-4, "{freedom}: {}", t(freedom));
        }
    }

    /// Goal: runs that differ by chance only are told apart in about 5 % of all cases, and not in much more when their
    /// seconds hang together. Method: thousands of pairs of equal law, by length and correlation; 6.5 % is more than three
    /// standard errors above 5 % at 3,000 pairs. The lower bound only says that the test is able to say yes.
    #[test]
    fn chance_is_seldom_taken_for_a_difference() {
        let seed = 7;
        let mut random = StdRng::seed_from_u64(seed);
        for rho in [0.0, 0.3, 0.6, 0.8] {
            for count in [SECONDS_MIN, 20, 60] {
                let found = share_found(3_000, || {
                    by_seconds(
                        &series(100.0, rho, count, &mut random),
                        &series(100.0, rho, count, &mut random),
                    )
                });
                assert!((0.005..0.065).contains(&found), "seed {seed}, {rho}, {count}: {found}");
            }
        }
        let repeats = share_found(3_000, || {
            by_repeats(&series(100.0, 0.0, 3, &mut random), &series(100.0, 0.0, 5, &mut random))
        });
        let once = share_found(3_000, || {
            by_repeats(&series(100.0, 0.0, 1, &mut random), &series(100.0, 0.0, 5, &mut random))
        });
        assert!((0.02..0.065).contains(&repeats) && (0.035..0.065).contains(&once), "{repeats} {once}");
    }

    /// Goal: the plain formula would not do. Method: the same without the correction for what neighbours share.
    #[test]
    fn without_the_correction_chance_would_often_be_taken_for_a_difference() {
        let mut random = StdRng::seed_from_u64(8);
        let found = share_found(1_000, || {
            by_repeats(&series(100.0, 0.6, 30, &mut random), &series(100.0, 0.6, 30, &mut random))
        });
        assert!(found > 0.25, "{found}");
    }

    /// Goal: what is different is found. Method: one and a half standard deviations between runs of 30 seconds, and three
    /// between five repeats.
    #[test]
    fn a_difference_is_found() {
        let mut random = StdRng::seed_from_u64(9);
        let seconds = share_found(1_000, || {
            by_seconds(&series(101.5, 0.3, 30, &mut random), &series(100.0, 0.3, 30, &mut random))
        });
        let repeats = share_found(1_000, || {
            by_repeats(&series(103.0, 0.0, 5, &mut random), &series(100.0, 0.0, 5, &mut random))
        });
        assert!(seconds > 0.9 && repeats > 0.9, "{seconds} {repeats}");
    }

    /// Goal: a run that gets slower by and by is not compared as if it stood still. Method: its interval against that of the
    /// same figures in an order that hangs together in no way.
    #[test]
    fn a_drift_widens_the_interval() {
        let falling: Vec<f64> = (0..30).map(|second| 100.0 - f64::from(second)).collect();
        let shuffled: Vec<f64> = (0..30).map(|second| falling[second * 7 % 30]).collect();
        let still = [85.0; 30];
        let width = |series: &[f64]| by_seconds(series, &still).unwrap().half_width;
        assert!(width(&falling) > 2.0 * width(&shuffled), "{} {}", width(&falling), width(&shuffled));
    }

    /// Goal: nothing is concluded from too little, and nothing breaks. Method: short, equal and zero series.
    #[test]
    fn too_little_gives_no_verdict() {
        assert_eq!(by_seconds(&[1.0; SECONDS_MIN - 1], &[1.0; 30]), None);
        assert_eq!(by_repeats(&[1.0], &[1.0]), None);
        assert_eq!(by_repeats(&[1.0], &[1.0, 2.0]), None);
        assert_eq!(by_repeats(&[], &[1.0, 2.0, 3.0]), None);
        assert_eq!(by_seconds(&[1.0; 9], &[0.0; 9]), None);
        let equal = by_seconds(&[2.0; 9], &[2.0; 9]).unwrap();
        assert_eq!(equal, Difference { relative: 0.0, half_width: 0.0 });
        assert!(!equal.is_beyond_noise());
    }

    #[test]
    fn a_verdict_is_a_sentence() {
        let sentence = |relative, half_width| {
            Difference { relative, half_width }.sentence("udp", "tcp", ("faster", "slower"))
        };
        assert_eq!(sentence(0.041, 0.012), "udp is faster than tcp by 4.1 % ± 1.2 %: larger than the noise");
        assert_eq!(sentence(-0.041, 0.012), "udp is slower than tcp by 4.1 % ± 1.2 %: larger than the noise");
        assert_eq!(sentence(-0.003, 0.015), "udp and tcp: no difference beyond the noise (−0.3 % ± 1.5 %)");
    }
}
