//! Numbers as people read them: grouped, with a unit, and with no more decimals than they carry.

pub(super) use crate::median::median;
use crate::output::shown;

/// A number with commas between thousands; what is none is a dash.
pub(super) fn grouped(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let text = shown(Some(value), decimals);
    let is_zero = !text.bytes().any(|byte| (b'1'..=b'9').contains(&byte));
    if is_zero { text.replace('-', "") } else { text.replace('-', "−") }
}

/// With three digits that count, or all of the whole part; whole numbers without decimals.
pub(super) fn significant(value: f64) -> String {
    let is_whole = value.fract() == 0.0 && value.abs() < 1e15;
    if is_whole { grouped(value, 0) } else { three_digits(value) }
}

/// With three digits that count, or all of the whole part.
fn three_digits(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        0.0 => 0,
        small => (2 - small.log10().floor() as i32).clamp(0, 9) as usize,
    };
    grouped(value, decimals)
}

/// A unit, and how many of the plain one it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Unit {
    pub(super) name: &'static str,
    pub(super) size: f64,
}

impl Unit {
    /// For operations per second up to `max`.
    pub(super) fn of_rates(max: f64) -> Self {
        match max {
            1e6.. => Self { name: "M op/s", size: 1e6 },
            1e4.. => Self { name: "k op/s", size: 1e3 },
            _ => Self { name: "op/s", size: 1.0 },
        }
    }

    /// For counts per second up to `max`.
    pub(super) fn of_counts(max: f64) -> Self {
        match max {
            1e6.. => Self { name: "million per second", size: 1e6 },
            1e4.. => Self { name: "thousand per second", size: 1e3 },
            _ => Self { name: "per second", size: 1.0 },
        }
    }
}

/// Operations per second with their unit.
pub(super) fn rate(ops_per_sec: f64) -> String {
    let unit = Unit::of_rates(ops_per_sec.abs());
    let figure = ops_per_sec / unit.size;
    format!("{} {}", if unit.size == 1.0 { significant(figure) } else { three_digits(figure) }, unit.name)
}

/// A share of nearly all in per cent, with as many decimals as tell it from the next nine.
pub(super) fn nines(share: f64) -> String {
    let count = -(1.0 - share).log10();
    let decimals = if count.is_finite() { (count.floor() + 1.0).clamp(0.0, 9.0) as usize } else { 0 };
    let text = grouped(share * 100.0, decimals);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The name of a quantile; that of the whole is the maximum.
pub(super) fn quantile_name(share: f64) -> String {
    if share >= 1.0 { "max".to_owned() } else { format!("p{}", nines(share)) }
}

/// A time given in µs.
pub(super) fn micros(us: f64) -> String {
    match us.abs() {
        1e6.. => format!("{} s", significant(us / 1e6)),
        1e4.. => format!("{} ms", significant(us / 1e3)),
        _ => format!("{} µs", significant(us)),
    }
}

/// The least and the largest. `None` of nothing.
pub(super) fn extent(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values.into_iter().fold(None, |extent, value| {
        let (least, most) = extent.unwrap_or((value, value));
        Some((value.min(least), value.max(most)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_rounded() {
        for (value, decimals, expected) in [
            (0.0, 0, "0"),
            (999.0, 0, "999"),
            (1000.0, 0, "1,000"),
            (1_234_567.891, 2, "1,234,567.89"),
            (-12_345.6, 1, "−12,345.6"),
            (-0.001, 1, "0.0"),
            (f64::INFINITY, 0, "–"),
            (f64::NAN, 0, "–"),
        ] {
            assert_eq!(grouped(value, decimals), expected);
        }
        for (value, expected) in [
            (28.397, "28.4"),
            (0.012_34, "0.0123"),
            (1234.5, "1,234"),
            (9.0, "9"),
            (0.0, "0"),
            (1e-12, "0.000000000"),
        ] {
            assert_eq!(significant(value), expected);
        }
    }

    #[test]
    fn units_follow_the_size() {
        assert_eq!(rate(28_397_184.7), "28.4 M op/s");
        assert_eq!(rate(31e6), "31.0 M op/s");
        assert_eq!(rate(12_340.0), "12.3 k op/s");
        assert_eq!(rate(7.0), "7 op/s");
        assert_eq!(micros(147.455), "147 µs");
        assert_eq!(micros(96_000.0), "96 ms");
        assert_eq!(micros(1_500_000.0), "1.50 s");
    }

    #[test]
    fn nines_are_told_apart() {
        for (share, expected) in [
            (0.5, "p50"),
            (0.9, "p90"),
            (0.975, "p97.5"),
            (0.99, "p99"),
            (0.999, "p99.9"),
            (0.9999, "p99.99"),
            (0.999_95, "p99.995"),
            (0.999_999_8, "p99.99998"),
            (1.0, "max"),
        ] {
            assert_eq!(quantile_name(share), expected);
        }
        assert_eq!(nines(0.0), "0");
    }

    #[test]
    fn extents() {
        assert_eq!(extent([2.0, -1.0, 5.0]), Some((-1.0, 5.0)));
        assert_eq!(extent([]), None);
    }
}
