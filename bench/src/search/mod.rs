//! The highest rate of an open loop that keeps service level objectives: latencies, loss, and the rate itself.
//!
//! It begins with a closed loop, whose throughput is about what the system can do at all, and then [`bisect`](mod@bisect)s on the rate.
//! Every trial is a run of its own, judged by [`slo`].

pub mod bisect;
pub mod slo;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use clap::Args;
use comfy_table::Cell;
use serde::Serialize;

use self::{
    bisect::{CONFIRMATIONS_MIN, Confidence, Found, Plan, RATE_MIN, search as bisect},
    slo::{Objective, Trial, achieved, share},
};
use crate::{
    median::middle,
    options::RunOptions,
    output::{Environment, Report, number, plain_table, shown},
    repeated::{TypedRun, run_whole, tell, wrong},
    run::{Drawn, check_stop},
};

/// Seconds of a trial when nothing else was said.
const DURATION: &str = "2";

/// The highest rate that keeps service level objectives.
#[derive(Clone, Debug, Args)]
pub struct SearchOptions {
    /// A quantile of the latencies and its limit, such as p99=500us; p50, p90, p99, p99.9, p99.99 or max. Once or several
    /// times, or not at all for a limit by loss alone
    #[arg(long, value_name = "QUANTILE=TIME")]
    pub slo: Vec<Objective>,
    /// What may be lost per operation: datagrams at any layer, operations not executed, not sent or of unknown outcome
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    pub max_loss: f64,
    /// How close the highest rate kept and the lowest missed have to be, 0.001 to 1, or in %
    #[arg(long, value_name = "SHARE", default_value = "2%", value_parser = precision)]
    pub precision: f64,
    /// Trials of a rate at most, of which most decide, 1 to 99
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=99))]
    pub repeats: u8,
    /// Trials that the rate found has to hold in afterwards, 5 to 99; more when it does not and a lower one has to
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(i64::from(CONFIRMATIONS_MIN)..=99))]
    pub confirmations: u8,
    /// The runs, of 2 seconds unless --duration says something else.
    #[command(flatten)]
    pub run: TypedRun,
}

fn precision(text: &str) -> Result<f64, String> {
    let precision = share(text)?;
    if precision >= 0.001 { Ok(precision) } else { Err("give a share of 0.001 to 1".to_owned()) }
}

/// What a search has found. The names are a contract, like those of [`Report`].
#[derive(Clone, Debug, Serialize)]
pub struct SearchReport {
    kind: SearchKind,
    /// The latencies that were to be kept.
    pub slo: Vec<Objective>,
    /// What might be lost per operation.
    pub max_loss: f64,
    /// How close `lower` and `upper` had to be.
    pub precision: f64,
    /// Operations per second of a closed loop, which the search began with.
    pub closed_loop_ops_per_sec: f64,
    /// The highest rate that held; `None` when none did.
    pub rate: Option<f64>,
    /// Operations per second answered at that rate, counted as the rate counts them.
    pub ops_per_sec: Option<f64>,
    /// The highest rate kept so far; at the end that which held.
    pub lower: Option<f64>,
    /// The lowest rate missed above it; `None` when all were kept.
    pub upper: Option<f64>,
    /// The highest rate that is tried: twice the closed loop's throughput.
    pub highest_rate: f64,
    /// Whether even that was kept, so that `rate` is where the search ends, and the system may be able to do more.
    pub is_highest_rate: bool,
    /// How sure it is that a run keeps the rate.
    pub confidence: Option<Confidence>,
    /// All runs but the closed loop, in their order.
    pub trials: Vec<Trial>,
    /// A run of that rate: of those that kept it the median by throughput. Or the run that was wrong.
    pub report: Option<Report>,
    /// Whether it was ended before there was a result.
    pub partial: bool,
    /// Why it was, in one sentence.
    pub failure: Option<String>,
    /// Where it ran.
    pub environment: Environment,
}

/// What kind of result it is.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum SearchKind {
    Search,
}

impl SearchReport {
    /// Why there is no rate, if there is none, as one sentence.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if self.partial {
            let known = match (self.lower, self.upper) {
                (Some(lower), _) => format!("{} op/s were kept so far", shown(Some(lower), 0)),
                (None, Some(upper)) => format!("{} op/s were missed", shown(Some(upper), 0)),
                (None, None) => "nothing is known yet".to_owned(),
            };
            let ended = self.failure.as_deref().unwrap_or("interrupted");
            return Some(format!("{ended} (after {} trials; {known})", self.trials.len()));
        }
        if self.rate.is_some() {
            return None;
        }
        let last = self.trials.iter().rev().find(|trial| !trial.kept)?;
        let why = last.why.as_deref().unwrap_or("missed");
        Some(format!("even {} op/s does not keep the objectives: {why}", shown(Some(last.rate), 0)))
    }
}

/// Searches. When `stop` is set or a run fails, the report is of the trials until then.
///
/// # Errors
/// A sentence that names options that contradict, or why not even the closed loop could be measured.
pub fn search(options: &SearchOptions, stop: &AtomicBool) -> anyhow::Result<SearchReport> {
    let mut drawn = Drawn::default();
    search_with(options, stop, |run| run_whole(run, stop, &mut drawn))
}

/// Searches with `run`.
fn search_with(
    options: &SearchOptions,
    stop: &AtomicBool,
    mut run: impl FnMut(&RunOptions) -> anyhow::Result<Report>,
) -> anyhow::Result<SearchReport> {
    let base = base(options)?;
    let environment = Environment::look(SystemTime::now());
    tell("a closed loop first, for what is possible at all");
    let closed = run(&RunOptions { rate: None, arrivals: None, ..base.clone() })?;
    check_stop(stop)?;
    if let Some(wrong) = wrong(&closed) {
        let failure = format!("in the closed loop that comes first {wrong}");
        let report =
            SearchReport { failure: Some(failure), report: Some(closed), ..nothing(options, environment) };
        return Ok(report);
    }
    let plan = Plan {
        throughput: achieved(&closed),
        precision: options.precision,
        repeats: options.repeats.into(),
        confirmations: options.confirmations.into(),
    };
    let mut failure = None;
    // The runs of the rate that was tried last: those of the rate that held at the end.
    let mut kept: Vec<(f64, Report)> = Vec::new();
    let (mut trials, mut count) = (Vec::new(), 0_u32);
    let mut broken = None;
    let found = bisect(&plan, &mut trials, |rate| {
        count += 1;
        tell(format!("trial {count}: {} op/s", shown(Some(rate), 0)));
        // The operations stay the same, but when they are due does not: one schedule may be a lucky one.
        let result = run(&RunOptions { rate: Some(rate), trial: count.into(), ..base.clone() });
        if stop.load(Ordering::Relaxed) {
            failure = Some("interrupted".to_owned());
            return None;
        }
        let report = match result {
            Ok(report) => report,
            Err(error) => {
                failure = Some(format!("a run at {rate} op/s failed: {error:#}"));
                return None;
            }
        };
        if let Some(wrong) = wrong(&report) {
            failure = Some(format!("at {rate} op/s {wrong}"));
            broken = Some(report);
            return None;
        }
        let trial = Trial::of(&report, &base, rate, &options.slo, options.max_loss);
        kept.retain(|(of, _)| *of == rate);
        if trial.kept {
            kept.push((rate, report));
        }
        Some(trial)
    });
    let Found { lower, upper, confidence, is_complete } = found;
    let rate = lower.filter(|_| confidence.is_some());
    let best = middle(kept, |(_, report)| report.ops_per_sec).map(|(_, report)| report);
    let best = best.filter(|_| rate.is_some());
    Ok(SearchReport {
        closed_loop_ops_per_sec: plan.throughput,
        rate,
        ops_per_sec: best.as_ref().map(achieved),
        lower,
        upper,
        highest_rate: plan.highest(),
        is_highest_rate: rate == Some(plan.highest()),
        confidence,
        trials,
        report: broken.or(best),
        partial: !is_complete,
        failure,
        ..nothing(options, environment)
    })
}

/// A search that has found nothing.
fn nothing(options: &SearchOptions, environment: Environment) -> SearchReport {
    SearchReport {
        kind: SearchKind::Search,
        slo: options.slo.clone(),
        max_loss: options.max_loss,
        precision: options.precision,
        closed_loop_ops_per_sec: 0.0,
        rate: None,
        ops_per_sec: None,
        lower: None,
        upper: None,
        highest_rate: 0.0,
        is_highest_rate: false,
        confidence: None,
        trials: Vec::new(),
        report: None,
        partial: true,
        failure: None,
        environment,
    }
}

/// The runs' options, at the lowest rate.
fn base(options: &SearchOptions) -> anyhow::Result<RunOptions> {
    for (index, objective) in options.slo.iter().enumerate() {
        let is_twice = options.slo[..index].iter().any(|other| other.name() == objective.name());
        anyhow::ensure!(!is_twice, "--slo names {} twice", objective.name());
    }
    let run = &options.run;
    run.refuse(&["rate"], "the rate is what is searched for")?;
    run.refuse(&["check-shared"], "a search is of one process, whose answers --check checks alone")?;
    let mut words = vec![format!("--rate={RATE_MIN}")];
    if !run.is_typed("duration") {
        words.push(format!("--duration={DURATION}"));
    }
    let base = run.with(&words)?;
    // What a run would refuse only when records have been stored.
    base.servers()?;
    base.check()?;
    Ok(base)
}

/// The trials, and below what was found. Ends without a line feed.
#[must_use]
pub fn search_table(report: &SearchReport) -> String {
    let mut table = plain_table();
    let header = ["offered op/s", "answered", "p50 in µs", "p99", "p99.9", "max", "loss", "resent", ""];
    table.set_header(header.map(|text| number(text.to_owned())));
    for trial in &report.trials {
        let latency = &trial.latency_us;
        let us = [latency.p50, latency.p99, latency.p999, latency.max].map(|us| shown(Some(us), 1));
        let rates = [trial.rate, trial.ops_per_sec].map(|rate| shown(Some(rate), 0));
        let counts = [format!("{:.1e}", trial.loss), shown(Some(trial.retransmits as f64), 0)];
        let figures = rates.into_iter().chain(us).chain(counts).map(number);
        table.add_row(figures.chain([Cell::new(trial.why.as_deref().unwrap_or("kept"))]));
    }
    let mut text = format!("{}\n\n", table.trim_fmt());
    let objectives = report.slo.iter().map(ToString::to_string);
    let objectives: Vec<_> = objectives.chain([format!("loss ≤ {}", report.max_loss)]).collect();
    let objectives = objectives.join(", ");
    text += &match (report.rate, report.confidence) {
        (Some(rate), Some(confidence)) => format!(
            "{} op/s is the highest rate found that keeps {objectives}; {} of {} runs kept it, so with {} % confidence a run \
             does with a probability of at least {:.2}",
            shown(Some(rate), 0),
            confidence.kept,
            confidence.trials,
            confidence.level * 100.0,
            confidence.pass_probability_min
        ),
        _ => format!("no rate was found that keeps {objectives}"),
    };
    text += &match report.upper {
        Some(upper) => format!("\n{} op/s was missed", shown(Some(upper), 0)),
        None if report.is_highest_rate => format!(
            "\nthe search ends at {} op/s: the system may be able to do more",
            shown(Some(report.highest_rate), 0)
        ),
        None => "\nno rate that was tried was missed".to_owned(),
    };
    text += &format!("; a closed loop has {} op/s", shown(Some(report.closed_loop_ops_per_sec), 0));
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashSet;

    use clap::Parser;

    use super::*;
    use crate::{
        latency::LatencyUs,
        output::{json, tests::report},
    };

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        options: SearchOptions,
    }

    fn typed(words: &str) -> SearchOptions {
        Typed::try_parse_from(["search"].into_iter().chain(words.split_whitespace())).unwrap().options
    }

    /// What a search on a system comes to that reports so at a rate, or in a closed loop.
    pub(crate) fn searched(words: &str, mut system: impl FnMut(Option<f64>) -> Report) -> SearchReport {
        search_with(&typed(words), &AtomicBool::new(false), |run| Ok(system(run.rate))).unwrap()
    }

    /// A system that can do 2 Mop/s, with a p99 of 100 µs at half of that and without a limit at all of it.
    fn queue(options: &RunOptions) -> Report {
        const CAPACITY: f64 = 2e6;
        let ops_per_sec = options.rate.unwrap_or(CAPACITY).min(CAPACITY);
        let p99 = 100.0 * (CAPACITY / 2.0) / (CAPACITY - ops_per_sec).max(1.0);
        Report { ops_per_sec, latency_us: LatencyUs { p99, ..LatencyUs::default() }, ..report() }
    }

    /// Goal: the whole of a search is reported. Method: a system whose limit is known, with an objective by latency and
    /// one by loss alone.
    #[test]
    fn a_search_is_reported() {
        let stop = AtomicBool::new(false);
        let stream = Drawn::default().streams(&RunOptions::defaults()).unwrap().remove(0);
        let (mut durations, mut schedules) = (Vec::new(), HashSet::new());
        let report = search_with(&typed("--slo p99=500us --precision 1% --seed 3"), &stop, |run| {
            durations.push((run.duration, run.seed));
            schedules.insert(run.plan(1, &stream, 1, false, None).pace.map(|pace| pace.seed));
            Ok(queue(run))
        })
        .unwrap();
        assert!(durations.iter().all(|of| *of == (2.0, 3)));
        assert_eq!(schedules.len(), durations.len(), "each trial has another schedule");
        let (rate, limit) = (report.rate.unwrap(), 1.8e6);
        assert!(rate <= limit && rate > 0.99 * limit, "{rate}");
        assert_eq!(
            (report.closed_loop_ops_per_sec, report.lower, report.ops_per_sec),
            (2e6, report.rate, report.rate)
        );
        assert!(!report.partial && report.failure().is_none());
        let value: serde_json::Value = serde_json::from_str(&json(&report).unwrap()).unwrap();
        assert_eq!((&value["kind"], &value["slo"][0]["limit_us"]), (&"search".into(), &500.0.into()));
        assert_eq!((&value["confidence"]["kept"], &value["confidence"]["trials"]), (&5.into(), &5.into()));
        assert_eq!(value["report"]["ops_per_sec"], rate);
        let why = report.trials.iter().find_map(|trial| trial.why.clone()).unwrap();
        assert!(why.ends_with("the limit is 500 µs") || why.ends_with("were achieved"), "{why}");
        let table = search_table(&report);
        println!("{table}");
        assert!(table.contains("keeps p99 ≤ 500 µs, loss ≤ 0; 5 of 5 runs kept it"), "{table}");
        assert!(!report.is_highest_rate && value["failure"].is_null());
        let endless = search_with(&typed(""), &stop, |run| {
            let ops_per_sec = run.rate.unwrap_or(1e6);
            Ok(Report { ops_per_sec, ..queue(run) })
        })
        .unwrap();
        assert_eq!((endless.rate, endless.upper, endless.is_highest_rate), (Some(2e6), None, true));
        let table = search_table(&endless);
        assert!(
            table.contains("the search ends at 2,000,000 op/s: the system may be able to do more"),
            "{table}"
        );
        let by_loss = search_with(&typed(""), &stop, |run| Ok(queue(run))).unwrap();
        assert!(by_loss.rate.unwrap() > 1.9e6, "{:?}", by_loss.rate);
    }

    /// Goal: what ends a search early is told, with what is known. Method: nothing that is kept, a failing run, a wrong
    /// answer, an interruption.
    #[test]
    fn a_search_without_a_result_says_why() {
        let never =
            search_with(&typed("--slo p99=1us"), &AtomicBool::new(false), |run| Ok(queue(run))).unwrap();
        let failure = never.failure().unwrap();
        assert!(
            failure.starts_with("even 1,000 op/s does not keep the objectives: p99 was 50.0 µs"),
            "{failure}"
        );
        assert!(!never.partial && search_table(&never).contains("no rate was found that keeps p99 ≤ 1 µs"));
        let after = |count: usize, what: &dyn Fn(&RunOptions, &AtomicBool) -> anyhow::Result<Report>| {
            let (mut runs, stop) = (0, AtomicBool::new(false));
            search_with(&typed("--slo p99=500us"), &stop, |run| {
                runs += 1;
                if runs > count { what(run, &stop) } else { Ok(queue(run)) }
            })
        };
        let failed = after(3, &|_, _| anyhow::bail!("no route")).unwrap();
        assert!(failed.partial && failed.rate.is_none() && failed.trials.len() == 2);
        let failure = failed.failure().unwrap();
        assert_eq!(
            failure,
            "a run at 1500000 op/s failed: no route (after 2 trials; 1,000,000 op/s were kept so far)"
        );
        let wrong = after(1, &|_, _| Ok(Report { wrong_values: Some(1), ..report() })).unwrap();
        assert!(wrong.failure().unwrap().starts_with("at 1000000 op/s 1 values were never put"), "{wrong:?}");
        assert_eq!(wrong.report.unwrap().wrong_values, Some(1));
        let interrupted = after(4, &|run, stop| {
            stop.store(true, Ordering::Relaxed);
            Ok(queue(run))
        })
        .unwrap();
        assert!(interrupted.failure().unwrap().starts_with("interrupted (after 3 trials"), "{interrupted:?}");
        assert_eq!(serde_json::to_value(&interrupted).unwrap()["failure"], "interrupted");
        let at_once = after(0, &|_, _| anyhow::bail!("no route")).unwrap_err().to_string();
        assert_eq!(at_once, "no route");
    }

    /// Goal: what contradicts is refused in a sentence before anything runs. Method: one of each.
    #[test]
    fn contradictions_are_named() {
        for (words, expected) in [
            ("--slo p99=1ms --slo p99=2ms", "--slo names p99 twice"),
            ("--slo p999=1ms --slo p99.9=2ms", "--slo names p99.9 twice"),
            ("--rate 5", "--rate cannot be given here: the rate is what is searched for"),
            ("--check-shared /x", "--check-shared cannot be given here: "),
            ("--target nowhere", "--target takes"),
            ("--threads 3 --sessions 2", "--sessions 2 are fewer than --threads 3"),
        ] {
            let error = base(&typed(words)).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{words}: {error}");
        }
        for words in ["--slo p98=1ms", "--max-loss 2", "--precision 0", "--confirmations 4", "--repeats 0"] {
            let words = ["search"].into_iter().chain(words.split_whitespace());
            assert!(Typed::try_parse_from(words).is_err());
        }
        let other = base(&typed("--duration 3 --arrivals burst:8")).unwrap();
        assert_eq!((other.duration, other.arrivals().to_string().as_str()), (3.0, "burst:8"));
    }
}
