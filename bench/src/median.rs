//! The middle of several measurements, which one that was disturbed does not move.

use std::borrow::Borrow;

/// The value in the middle; the mean of the two that are, when their count is even. `None` of nothing.
pub(crate) fn median(values: impl IntoIterator<Item = impl Borrow<f64>>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.into_iter().map(|value| *value.borrow()).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some((sorted[(sorted.len() - 1) / 2] + upper) / 2.0)
}

/// The measurement whose figure is in the middle: of two such the one with the lower figure, since it has to be one that was
/// made. `None` of nothing.
pub(crate) fn middle<T>(mut measured: Vec<T>, figure: impl Fn(&T) -> f64) -> Option<T> {
    measured.sort_by(|one, other| figure(one).total_cmp(&figure(other)));
    let index = measured.len().checked_sub(1)? / 2;
    Some(measured.swap_remove(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        for (values, expected) in [
            (&[][..], None),
            (&[2.0], Some(2.0)),
            (&[3.0, 900.0, 1.0], Some(3.0)),
            (&[4.0, 1.0, 2.0, 3.0], Some(2.5)),
        ] {
            assert_eq!(median(values), expected);
            assert_eq!(median(values.to_vec()), expected);
        }
    }

    #[test]
    fn the_middle_one_was_measured() {
        for (values, expected) in [
            (&[][..], None),
            (&[2.0], Some(2.0)),
            (&[3.0, 900.0, 1.0], Some(3.0)),
            (&[4.0, 1.0, 2.0, 3.0], Some(2.0)),
        ] {
            assert_eq!(middle(values.to_vec(), |value| *value), expected);
        }
    }
}
