//! What a rate has to keep: latencies, loss, and the rate itself.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::{
    latency::LatencyUs,
    load::schedule::Arrivals,
    options::RunOptions,
    output::{Report, shown},
};

/// Least share of the operations offered that must have been answered: below it generator or system are behind.
const ACHIEVED_MIN: f64 = 0.999;

/// Standard deviations by which more operations may be in flight at the end of a run than at its beginning.
const CHANCE: f64 = 3.0;

/// Longest latency that can be asked for in µs: that of [`crate::latency::LATENCY_NS_MAX`].
const LIMIT_US_MAX: f64 = 60e6;

/// The quantiles that a run reports.
const QUANTILES: [Quantile; 6] = [
    ("p50", 0.5, |latency| latency.p50),
    ("p90", 0.9, |latency| latency.p90),
    ("p99", 0.99, |latency| latency.p99),
    ("p99.9", 0.999, |latency| latency.p999),
    ("p99.99", 0.9999, |latency| latency.p9999),
    ("max", 1.0, |latency| latency.max),
];

/// Name, share, and where it is.
type Quantile = (&'static str, f64, fn(&LatencyUs) -> f64);

/// Units of time in µs, the longer names first.
const UNITS: [(&str, f64); 6] =
    [("ns", 1e-3), ("us", 1.0), ("µs", 1.0), ("μs", 1.0), ("ms", 1e3), ("s", 1e6)];

/// A quantile of the latencies and its limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Index in [`QUANTILES`].
    quantile: usize,
    /// In µs.
    limit_us: f64,
}

impl Objective {
    /// Name of the quantile, as it is typed.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        QUANTILES[self.quantile].0
    }

    /// What was measured of it, in µs.
    #[must_use]
    pub fn of(&self, latency: &LatencyUs) -> f64 {
        QUANTILES[self.quantile].2(latency)
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ≤ {} µs", self.name(), self.limit_us)
    }
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, limit) = text.split_once('=').ok_or("give a quantile and its limit, such as p99=500us")?;
        let plain = match name.trim() {
            "p999" => "p99.9",
            "p9999" => "p99.99",
            name => name,
        };
        let quantile = QUANTILES.iter().position(|(known, ..)| *known == plain).ok_or_else(|| {
            let known: Vec<_> = QUANTILES.iter().map(|(known, ..)| *known).collect();
            format!("`{plain}` is no quantile: give one of {}", known.join(", "))
        })?;
        let limit = limit.trim();
        let in_unit = UNITS.iter().find_map(|(unit, us)| {
            let value: f64 = limit.strip_suffix(unit)?.trim().parse().ok()?;
            Some(value * us)
        });
        let limit_us = in_unit.ok_or_else(|| {
            format!("`{limit}` is no time: give a number and one of the units ns, us, ms and s")
        })?;
        if !(1e-3..=LIMIT_US_MAX).contains(&limit_us) {
            return Err("give 1ns to 60s".to_owned());
        }
        Ok(Self { quantile, limit_us })
    }
}

impl Serialize for Objective {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Objective", 2)?;
        fields.serialize_field("quantile", &QUANTILES[self.quantile].1)?;
        fields.serialize_field("limit_us", &self.limit_us)?;
        fields.end()
    }
}

/// What one run at a certain rate has shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// Operations per second offered.
    pub rate: f64,
    /// Operations per second answered.
    pub ops_per_sec: f64,
    /// From the time that an operation was meant to begin.
    pub latency_us: LatencyUs,
    /// [`loss`] of the run.
    pub loss: f64,
    /// Requests sent again, which are no loss: their latency tells.
    pub retransmits: u64,
    /// Whether everything was kept.
    pub kept: bool,
    /// If not, the first thing that was not.
    pub why: Option<String>,
}

impl Trial {
    /// Judges a run with these options at `rate`.
    #[must_use]
    pub fn of(report: &Report, options: &RunOptions, rate: f64, slo: &[Objective], max_loss: f64) -> Self {
        let (latency, loss, achieved) = (report.latency_us, loss(report), achieved(report));
        // By chance it may be more or less than the rate.
        let due = report.due_ops_per_sec.unwrap_or(rate);
        let in_flight = in_flight_more(options, due * latency.p50 / 1e6);
        let least = ACHIEVED_MIN * due - in_flight / report.duration_s.max(1e-9);
        let missed = slo.iter().find(|objective| objective.of(&latency) > objective.limit_us);
        let why = if achieved < least {
            let [achieved, due] = [achieved, due].map(|rate| shown(Some(rate), 0));
            Some(format!("{achieved} op/s of {due} were achieved"))
        } else if loss > max_loss {
            let Report { errors, outcome_unknown, unsent, .. } = report;
            Some(format!(
                "{} datagrams were lost, {errors} operations were not executed, {unsent} could not be sent, and of \
                 {outcome_unknown} the outcome is unknown",
                datagrams_lost(report)
            ))
        } else {
            missed.map(|objective| {
                let us = shown(Some(objective.of(&latency)), 1);
                format!("{} was {us} µs, the limit is {} µs", objective.name(), objective.limit_us)
            })
        };
        let (ops_per_sec, retransmits) = (achieved, report.retransmits);
        Self { rate, ops_per_sec, latency_us: latency, loss, retransmits, kept: why.is_none(), why }
    }
}

/// Operations by which there may be more in flight at the end of a run than at its beginning, when there are so many on average:
/// they were due and are not answered in time, although nobody is behind.
fn in_flight_more(options: &RunOptions, average: f64) -> f64 {
    let together = match options.arrivals() {
        Arrivals::Fixed | Arrivals::Poisson => 1,
        Arrivals::Burst(count) => count,
    };
    // Their number at either end has about the variance of Poisson's law.
    options.clients() as f64 * f64::from(together) + CHANCE * (2.0 * average).sqrt()
}

/// Operations per second that were answered, counted as the rate counts them: a record that was got and then put is one, and
/// gets that were told the answer of an equal one have been answered, too.
#[must_use]
pub(crate) fn achieved(report: &Report) -> f64 {
    report.ops_per_sec - report.rmws_per_sec.unwrap_or(0.0) + report.coalesced_per_sec.unwrap_or(0.0)
}

/// What was lost, per operation: datagrams lost at any layer, operations that were not executed or could not be sent, and those
/// whose outcome is unknown. A datagram has several operations, and is sent again; so this mixes the two, is no share of
/// operations, and may even be above 1, but it is 0 exactly when nothing was lost anywhere that is counted.
#[must_use]
pub fn loss(report: &Report) -> f64 {
    let Report { ops, errors, outcome_unknown, unsent, .. } = report;
    let operations = errors + outcome_unknown + unsent;
    (datagrams_lost(report) + operations) as f64 / (ops + operations).max(1) as f64
}

/// Datagrams lost at the card, between CPUs, at sockets, in ports and at sessions; copies and answers that came too late are no
/// loss. Of a run that was not watched those at full receive queues, which is all that is known.
fn datagrams_lost(report: &Report) -> u64 {
    report.loss_by_layer.map_or(report.rx_overflow_drops, |lost| {
        let layers = [lost.nic, lost.softnet, lost.socket, lost.port, lost.session];
        layers.into_iter().fold(0, u64::saturating_add).max(report.rx_overflow_drops)
    })
}

/// Parses a share, 0 to 1, or one in per cent.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let (number, factor) = text.strip_suffix('%').map_or((text, 1.0), |number| (number.trim_end(), 0.01));
    let share =
        number.parse::<f64>().map_err(|_| format!("`{text}` is no share: give one such as 0.02 or 2%"))?;
    let share = share * factor;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("give a share of 0 to 1".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{output::tests::report, watch::losses::Losses};

    /// Goal: objectives are understood as typed. Method: all quantiles and units, and one mistake after the other.
    #[test]
    fn objectives_are_parsed() {
        for (text, quantile, limit_us) in [
            ("p50=20us", 0.5, 20.0),
            ("p90=20µs", 0.9, 20.0),
            ("p99=500us", 0.99, 500.0),
            ("p99.9=2ms", 0.999, 2_000.0),
            ("p999 = 2 ms", 0.999, 2_000.0),
            ("p9999=0.5s", 0.9999, 500_000.0),
            ("p99.99=250ns", 0.9999, 0.25),
            ("max=60s", 1.0, 60e6),
        ] {
            let objective: Objective = text.parse().unwrap();
            let json = serde_json::to_value(objective).unwrap();
            assert_eq!(json, serde_json::json!({ "quantile": quantile, "limit_us": limit_us }), "{text}");
        }
        for (text, expected) in [
            ("p99", "give a quantile and its limit"),
            ("p98=1ms", "`p98` is no quantile: give one of p50, p90, p99, p99.9, p99.99, max"),
            ("p99=5", "`5` is no time"),
            ("p99=fast", "`fast` is no time"),
            ("p99=0us", "give 1ns to 60s"),
            ("p99=-1us", "give 1ns to 60s"),
            ("p99=nans", "give 1ns to 60s"),
            ("p99=61s", "give 1ns to 60s"),
        ] {
            let error = text.parse::<Objective>().unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        assert_eq!("p999=2ms".parse::<Objective>().unwrap().to_string(), "p99.9 ≤ 2000 µs");
    }

    #[test]
    fn shares_are_parsed() {
        for (text, expected) in [("0", Ok(0.0)), ("0.02", Ok(0.02)), ("50%", Ok(0.5)), ("100 %", Ok(1.0))] {
            assert_eq!(share(text), expected);
        }
        for text in ["", "%", "two", "1.1", "-1%", "nan"] {
            assert!(share(text).is_err(), "{text}");
        }
    }

    /// Goal: what is in flight at the end is no shortfall. Method: laws and sessions with a known answer.
    #[test]
    fn ends_are_allowed_for() {
        let more = |words: &[&str], average| {
            let words = words.iter().map(|&word| word.to_owned());
            let words: Vec<_> = words.chain(["--rate=1".to_owned()]).collect();
            in_flight_more(&RunOptions::of_arguments(&words).unwrap(), average)
        };
        assert_eq!(more(&[], 50.0), 31.0);
        assert_eq!(more(&["--sessions=4", "--arrivals=fixed"], 0.0), 4.0);
        assert_eq!(more(&["--sessions=4", "--arrivals=burst:100"], 0.0), 400.0);
    }

    /// Goal: each thing that is not kept is told, and nothing else. Method: a run that keeps all, and one change each.
    #[test]
    fn runs_are_judged() {
        let slo = ["p99=100us".parse().unwrap(), "max=5ms".parse().unwrap()];
        let good = Report { ops_per_sec: 1e6, ops: 8_000_000, ..report() };
        let options = RunOptions::defaults();
        let judge = |report: &Report, due, max_loss| {
            let report = Report { due_ops_per_sec: Some(due), ..report.clone() };
            Trial::of(&report, &options, 1e6, &slo, max_loss)
        };
        let trial = judge(&good, 1e6, 0.0);
        assert!(
            trial.kept && trial.why.is_none() && trial.loss == 0.0 && trial.retransmits == 2,
            "{trial:?}"
        );
        let why = |report: &Report, rate| judge(report, rate, 0.0).why.unwrap();
        assert_eq!(why(&good, 1_003_000.0), "1,000,000 op/s of 1,003,000 were achieved");
        assert!(judge(&Report { coalesced_per_sec: Some(2_000.0), ..good.clone() }, 1_003_000.0, 0.0).kept);
        // 0.05 are in flight on average: two more may be by the end.
        let sparse = |ops_per_sec| Report { ops_per_sec, ..good.clone() };
        assert!(judge(&sparse(998.8), 1_000.0, 0.0).kept && !judge(&sparse(998.5), 1_000.0, 0.0).kept);
        let slow = Report { latency_us: LatencyUs { p99: 612.34, ..good.latency_us }, ..good.clone() };
        assert_eq!(why(&slow, 1e6), "p99 was 612.3 µs, the limit is 100 µs");
        let queues = Report {
            loss_by_layer: None,
            rx_overflow_drops: 3,
            errors: 1,
            outcome_unknown: 4,
            ..good.clone()
        };
        assert!(why(&queues, 1e6).starts_with("3 datagrams were lost, 1 operations were not executed"));
        assert!((loss(&queues) - 1e-6).abs() < 1e-9);
        assert!(judge(&queues, 1e6, 1e-5).kept);
        let late = Losses { late: 9, ..Losses::default() };
        let layer = |losses| Report { loss_by_layer: Some(losses), ..good.clone() };
        assert!(judge(&layer(late), 1e6, 0.0).kept, "what is late was not lost");
        for losses in [
            Losses { nic: 1, ..late },
            Losses { softnet: 1, ..late },
            Losses { socket: 1, ..late },
            Losses { port: 1, ..late },
            Losses { session: 1, ..late },
        ] {
            assert!(why(&layer(losses), 1e6).starts_with("1 datagrams were lost, 0 operations"));
        }
        assert!(why(&Report { unsent: 2, ..good.clone() }, 1e6).contains("2 could not be sent"));
        // Of workload f half of the operations have two parts.
        let modified = Report { ops_per_sec: 1.5e6, rmws_per_sec: Some(0.5e6), ..good };
        assert_eq!(judge(&modified, 1e6, 0.0).ops_per_sec, 1e6);
        assert!(!judge(&modified, 1.2e6, 0.0).kept, "1.5 M op/s are not what was asked for");
    }
}
