//! Transports against each other in alternating rounds of one command.
//!
//! A machine's speed drifts with its temperature, its neighbours and its memory, by more than transports often differ.
//! So each round measures every candidate, another one first each time, and what is compared are the two figures of one
//! round: the ratio reported is the median of the rounds' ratios. Whether it is more than noise is decided by Student's t
//! on the logarithms of these ratios: the difference counts when the 95 % confidence interval of their mean leaves out zero.
//! A sign test would ask for less (no law of the noise), but with five rounds it can never be that sure: all of five
//! signs alike happen by chance in one of sixteen cases.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Instant, SystemTime},
};

use clap::Args;
use comfy_table::Cell;
use linerate_client::{Session, SessionConfig};
use linerate_dataplane::{
    UdpPort,
    transport::{Transport, Wanted},
};
use linerate_server::{Datagrams, Server, ServerConfig};
use serde::Serialize;

use crate::{
    median::{median, middle},
    options::{Cpus, RunOptions},
    output::{Environment, Report, number, plain_table, shown},
    repeated::{TypedRun, about, run_whole, tell, whole},
    report::noise::t,
    run::{Drawn, RunPorts, run_over},
    wire::{Bench, WirePort, rate::LINE_RATE},
};

/// Rounds that a difference can be told from noise with: two have a spread, but one that says next to nothing.
const ROUNDS_MIN: usize = 3;

/// How it is decided whether a difference is more than noise.
const NOISE_TEST: &str = "Student's t on the logarithms of the rounds' ratios, 95 %";

/// Transports against each other.
#[derive(Clone, Debug, Args)]
pub struct CompareOptions {
    /// What to compare, two or more. Without --target on loopback, or with packet or xdp among them on virtual cables (needs
    /// root)
    #[arg(required = true, num_args = 2.., value_name = "TRANSPORT")]
    pub candidates: Vec<WirePort>,
    /// Rounds, in each of which each is measured once for --duration
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=99))]
    pub rounds: u8,
    /// What the others are compared to [default: the last one]
    #[arg(long, value_name = "TRANSPORT")]
    pub baseline: Option<WirePort>,
    /// What they have in common.
    #[command(flatten)]
    pub run: TypedRun,
}

/// What was between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Medium {
    /// The loopback interface.
    Loopback,
    /// A virtual cable between two network namespaces, as in [`crate::wire`].
    Cable,
    /// The network between this host and that of running servers.
    Target,
}

impl Medium {
    const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Cable => "virtual cables",
            Self::Target => "the network to the target",
        }
    }
}

/// A comparison. The names are a contract, like those of [`Report`].
#[derive(Clone, Debug, Serialize)]
pub struct CompareReport {
    kind: CompareKind,
    /// What was between client and server.
    pub medium: Medium,
    /// Rounds in which all candidates were measured, as many as the one with the fewest has.
    pub rounds: usize,
    /// What was measured, in the order asked for.
    pub candidates: Vec<Candidate>,
    /// Each but the baseline to it.
    pub ratios: Vec<Ratio>,
    /// What could not be measured, not even once.
    pub refused: Vec<Refused>,
    /// How `is_beyond_noise` was decided.
    pub noise_test: &'static str,
    /// Whether there are fewer rounds than asked for; one that was not complete does not count.
    pub partial: bool,
    /// Why, in one sentence.
    pub failure: Option<String>,
    /// Where it ran.
    pub environment: Environment,
}

/// What kind of result it is.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum CompareKind {
    Compare,
}

/// What a candidate reached.
#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    /// Which it is.
    pub name: &'static str,
    /// Operations per second of each round.
    pub rounds_ops_per_sec: Vec<f64>,
    /// Their median.
    pub ops_per_sec: f64,
    /// The slowest.
    pub min: f64,
    /// The fastest.
    pub max: f64,
    /// The run of the median round; wrong values and violations are those of all rounds.
    pub report: Report,
}

/// How much faster one candidate is than another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The one.
    pub of: &'static str,
    /// The other.
    pub to: &'static str,
    /// The median of the rounds' ratios.
    pub ratio: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// The 95 % confidence interval of their geometric mean; `None` when there are too few rounds.
    pub confidence: Option<[f64; 2]>,
    /// Whether it leaves out 1; never when there are too few rounds.
    pub is_beyond_noise: bool,
}

/// What could not be measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Refused {
    /// Which it is.
    pub name: &'static str,
    /// Why, in one sentence.
    pub error: String,
}

/// Compares. When `stop` is set, the report is of the rounds that were complete. A candidate that fails is measured once more;
/// when it fails again in a later round it has as many rounds as were complete, and the others go on.
///
/// # Errors
/// A sentence that names options that contradict, or why fewer than two candidates could be measured.
pub fn compare(options: &CompareOptions, stop: &AtomicBool) -> anyhow::Result<CompareReport> {
    let medium = check(options)?;
    // The same for all, whatever they go through: a trace is read, and what does not go together is refused.
    let run = &options.run.options.settled()?.0;
    let environment = Environment::look(SystemTime::now());
    let cpus = Cpus::assign(1, 1)?;
    let mut drawn = Drawn::default();
    rounds(options, medium, environment, stop, |candidate| match (medium, candidate) {
        (Medium::Cable, _) => {
            // A new cable each time, as in `wire`.
            let bench = Bench::new(candidate, &cpus, stop)?;
            whole(bench.run(run, drawn.streams(run)?, LINE_RATE)?.report)
        }
        (_, WirePort::UdpPlain) => run_udp_plain(run, stop, &mut drawn),
        (_, WirePort::Udp) => run_on(Transport::Udp, run, stop, &mut drawn),
        (_, WirePort::Tcp) => run_on(Transport::Tcp, run, stop, &mut drawn),
        (_, WirePort::Packet) => run_on(Transport::Packet, run, stop, &mut drawn),
        (_, WirePort::Xdp) => run_on(Transport::Xdp, run, stop, &mut drawn),
    })
}

fn run_on(
    transport: Transport,
    options: &RunOptions,
    stop: &AtomicBool,
    drawn: &mut Drawn,
) -> anyhow::Result<Report> {
    run_whole(&RunOptions { transport: Wanted::Is(transport), ..options.clone() }, stop, drawn)
}

/// Measures sockets that send each datagram for itself.
fn run_udp_plain(options: &RunOptions, stop: &AtomicBool, drawn: &mut Drawn) -> anyhow::Result<Report> {
    let start =
        |config| Server::start(&ServerConfig { datagrams: Some(Datagrams::UdpPlain), tcp: false, ..config });
    let connect = |servers: &[SocketAddr], config: SessionConfig, _| {
        let config = SessionConfig { trains: false, ..config };
        Session::connect(servers, config, |addrs| UdpPort::connect(addrs, options.port(&config)))
    };
    let control = |servers: &[SocketAddr], config| connect(servers, config, 0);
    let label = WirePort::UdpPlain.name();
    let ports = RunPorts { label, start, connect, control, shares_cpus: false };
    let mut report = run_over(options, stop, ports, drawn.streams(options)?, &mut || Ok(()), None)?;
    report.config.transport = label.to_owned();
    whole(report)
}

/// Refuses what contradicts, and chooses the medium.
fn check(options: &CompareOptions) -> anyhow::Result<Medium> {
    let CompareOptions { candidates, baseline, run, .. } = options;
    for (index, candidate) in candidates.iter().enumerate() {
        anyhow::ensure!(!candidates[..index].contains(candidate), "{} is there twice", candidate.name());
    }
    if let Some(baseline) = baseline.filter(|baseline| !candidates.contains(baseline)) {
        let names: Vec<_> = candidates.iter().map(|candidate| candidate.name()).collect();
        anyhow::bail!("--baseline {} is not among {}", baseline.name(), names.join(", "));
    }
    run.refuse(&["transport"], "what is compared are transports")?;
    run.refuse(&["check-shared"], "a comparison is of one process, whose answers --check checks alone")?;
    anyhow::ensure!(run.options.target != "null", "--target null has no transports to compare");
    run.options.check()?;
    let has = |of: &[WirePort]| candidates.iter().find(|candidate| of.contains(candidate));
    if run.options.faults(0).is_some()
        && let Some(candidate) = has(&[WirePort::Tcp, WirePort::UdpPlain])
    {
        anyhow::bail!("--loss, --dup and --reorder cannot be had with {}: leave it out", candidate.name());
    }
    if run.options.servers()?.is_some() {
        return Ok(Medium::Target);
    }
    let Some(ring) = has(&[WirePort::Packet, WirePort::Xdp]) else { return Ok(Medium::Loopback) };
    let on_cable = format!("with {} and without --target all are compared on virtual cables", ring.name());
    anyhow::ensure!(run.options.faults(0).is_none(), "{on_cable}, which have no --loss, --dup or --reorder");
    let (cores, threads, sessions) = (run.options.server_cores, run.options.threads, run.options.clients());
    anyhow::ensure!(
        cores == 1 && threads == 1 && sessions == 1,
        "{on_cable}, which have one core at each end: more --server-cores, --threads or --sessions than one are not allowed"
    );
    Ok(Medium::Cable)
}

/// Measures the candidates by `run` in rounds.
fn rounds(
    options: &CompareOptions,
    medium: Medium,
    environment: Environment,
    stop: &AtomicBool,
    mut run: impl FnMut(WirePort) -> anyhow::Result<Report>,
) -> anyhow::Result<CompareReport> {
    let (begun, mut done) = (Instant::now(), 0_u32);
    let rounds = usize::from(options.rounds);
    let mut left: Vec<(WirePort, Vec<Report>)> =
        options.candidates.iter().map(|&of| (of, Vec::new())).collect();
    // Those that failed after some rounds, and those that did at once.
    let (mut failed, mut refused) = (Vec::new(), Vec::new());
    let (mut complete, mut failures) = (rounds, Vec::new());
    'rounds: for round in 0..rounds {
        let (later, sooner) = options.candidates.split_at(round % options.candidates.len());
        for &candidate in sooner.iter().chain(later) {
            let Some(index) = left.iter().position(|(of, _)| *of == candidate) else { continue };
            let more = match done {
                0 => String::new(),
                done => {
                    let runs: usize = left.iter().map(|(_, reports)| rounds - reports.len()).sum();
                    format!(", {}", about(begun.elapsed() / done * runs as u32))
                }
            };
            tell(format!("round {} of {rounds}: {}{more}", round + 1, candidate.name()));
            let mut result = run(candidate);
            if let (Err(error), false) = (&result, stop.load(Ordering::Relaxed)) {
                tell(format!("{} is measured once more: {error:#}", candidate.name()));
                result = run(candidate);
            }
            if stop.load(Ordering::Relaxed) {
                anyhow::ensure!(round > 0, "interrupted before the first round was complete");
                complete = round;
                failures.push(format!("interrupted after {round} of {rounds} rounds"));
                break 'rounds;
            }
            done += 1;
            let error = match result {
                Ok(report) => {
                    left[index].1.push(report);
                    continue;
                }
                Err(error) => error,
            };
            let name = candidate.name();
            let (_, reports) = left.remove(index);
            if round == 0 {
                refused.push(Refused { name, error: format!("{error:#}") });
                ensure_two(&left, &refused, options.baseline)?;
                continue;
            }
            failures.push(format!("{name} failed in round {}, twice: {error:#}", round + 1));
            failed.push((candidate, reports));
            if ensure_two(&left, &[], options.baseline).is_err() {
                complete = round;
                break 'rounds;
            }
        }
    }
    left.extend(failed);
    left.sort_by_key(|(of, _)| options.candidates.iter().position(|candidate| candidate == of));
    let candidates: Vec<_> = left
        .into_iter()
        .filter_map(|(port, mut reports)| {
            reports.truncate(complete);
            candidate(port.name(), reports)
        })
        .collect();
    let counts = candidates.iter().map(|candidate| candidate.rounds_ops_per_sec.len());
    let baseline = options.baseline.map(WirePort::name);
    Ok(CompareReport {
        kind: CompareKind::Compare,
        medium,
        rounds: counts.min().unwrap_or(0),
        ratios: ratios(&candidates, baseline),
        candidates,
        refused,
        noise_test: NOISE_TEST,
        partial: !failures.is_empty(),
        failure: (!failures.is_empty()).then(|| failures.join("; ")),
        environment,
    })
}

fn ensure_two(
    left: &[(WirePort, Vec<Report>)],
    refused: &[Refused],
    baseline: Option<WirePort>,
) -> anyhow::Result<()> {
    let reasons = || {
        let mut by_error: Vec<(String, &str)> = Vec::new();
        for Refused { name, error } in refused {
            match by_error.iter_mut().find(|(_, other)| other == error) {
                Some((names, _)) => *names += &format!(", {name}"),
                None => by_error.push(((*name).to_owned(), error)),
            }
        }
        let reasons = by_error.iter().map(|(names, error)| format!("{names}: {error}"));
        reasons.collect::<Vec<_>>().join("; ")
    };
    anyhow::ensure!(left.len() >= 2, "there are not two transports left to compare; {}", reasons());
    let has_baseline = baseline.is_none_or(|baseline| left.iter().any(|(of, _)| *of == baseline));
    anyhow::ensure!(has_baseline, "the baseline could not be measured; {}", reasons());
    Ok(())
}

/// What rounds of one candidate come to; `None` without any.
fn candidate(name: &'static str, reports: Vec<Report>) -> Option<Candidate> {
    let rounds_ops_per_sec: Vec<_> = reports.iter().map(|report| report.ops_per_sec).collect();
    let wrong_values =
        reports.iter().filter_map(|report| report.wrong_values).reduce(|one, other| one + other);
    let violated = reports.iter().filter_map(|report| report.check.clone());
    let violated = violated.max_by_key(|check| check.violations).filter(|check| check.violations > 0);
    let min = rounds_ops_per_sec.iter().copied().reduce(f64::min)?;
    let max = rounds_ops_per_sec.iter().copied().reduce(f64::max)?;
    let mut report = middle(reports, |report| report.ops_per_sec)?;
    report.wrong_values = wrong_values;
    report.check = violated.or(report.check);
    Some(Candidate { name, ops_per_sec: median(&rounds_ops_per_sec)?, rounds_ops_per_sec, min, max, report })
}

/// Each to the baseline, by default the last one.
fn ratios(candidates: &[Candidate], baseline: Option<&str>) -> Vec<Ratio> {
    let named = candidates.iter().find(|candidate| Some(candidate.name) == baseline);
    let Some(to) = named.or_else(|| candidates.last()) else { return Vec::new() };
    let others = candidates.iter().filter(|of| of.name != to.name);
    others
        .filter_map(|of| ratio((of.name, &of.rounds_ops_per_sec), (to.name, &to.rounds_ops_per_sec)))
        .collect()
}

/// The ratio of rounds that were measured together: as many as both have. `None` when there is none.
fn ratio((of, ones): (&'static str, &[f64]), (to, others): (&'static str, &[f64])) -> Option<Ratio> {
    let ratios: Vec<f64> =
        ones.iter().zip(others).map(|(one, other)| one / other.max(f64::MIN_POSITIVE)).collect();
    let confidence = confidence(&ratios);
    Some(Ratio {
        of,
        to,
        ratio: median(&ratios)?,
        min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
        max: ratios.iter().copied().fold(0.0, f64::max),
        confidence,
        is_beyond_noise: confidence.is_some_and(|[low, high]| low > 1.0 || high < 1.0),
    })
}

/// The 95 % confidence interval of the geometric mean of ratios, when there are enough of them.
fn confidence(ratios: &[f64]) -> Option<[f64; 2]> {
    let count = ratios.len();
    // A round in which nothing was done has no logarithm.
    if count < ROUNDS_MIN || ratios.iter().any(|&ratio| ratio <= 0.0) {
        return None;
    }
    let logs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
    let mean = logs.iter().sum::<f64>() / count as f64;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
    let half = t((count - 1) as f64) * (variance / count as f64).sqrt();
    Some([(mean - half).exp(), (mean + half).exp()])
}

/// A line for each candidate, with its ratio to the baseline, and below what that means. Ends without a line feed.
#[must_use]
pub fn compare_table(report: &CompareReport) -> String {
    let baseline = report.ratios.first().map_or("", |ratio| ratio.to);
    let mut table = plain_table();
    let to = format!("to {baseline}");
    let header = ["", "Mop/s", "min", "max", "p50 in µs", "p99", "p99.9", &to, "min", "max", ""];
    table.set_header(header.map(|text| number(text.to_owned())));
    for candidate in &report.candidates {
        let latency = &candidate.report.latency_us;
        let ratio = report.ratios.iter().find(|ratio| ratio.of == candidate.name);
        let mega = [candidate.ops_per_sec, candidate.min, candidate.max].map(|ops| shown(Some(ops / 1e6), 2));
        let us = [latency.p50, latency.p99, latency.p999].map(|us| shown(Some(us), 1));
        let ratios = match ratio {
            Some(ratio) => [ratio.ratio, ratio.min, ratio.max].map(|ratio| shown(Some(ratio), 3)),
            None => [const { String::new() }; 3],
        };
        let noise = match ratio {
            Some(ratio) if ratio.is_beyond_noise => "beyond noise",
            Some(Ratio { confidence: Some(_), .. }) => "within noise",
            Some(_) => "too few rounds to tell",
            None => "",
        };
        let figures = mega.into_iter().chain(us).chain(ratios).map(number);
        table.add_row([Cell::new(candidate.name)].into_iter().chain(figures).chain([Cell::new(noise)]));
    }
    let rounds = report.rounds;
    let most = report.candidates.iter().map(|candidate| candidate.rounds_ops_per_sec.len()).max();
    let most = most.filter(|most| *most > rounds).map_or_else(String::new, |most| format!(" to {most}"));
    let mut text = format!("{}\n\n", table.trim_fmt());
    text += &format!("medians of {rounds}{most} rounds over {}; ", report.medium.name());
    text += &if rounds < ROUNDS_MIN {
        format!(
            "{rounds} rounds are too few to tell a difference from noise, give --rounds {ROUNDS_MIN} or more"
        )
    } else {
        format!("noise: {}", report.noise_test)
    };
    for Refused { name, error } in &report.refused {
        text += &format!("\n{name} was not measured: {error}");
    }
    if let Some(failure) = &report.failure {
        text += &format!("\npartial: {failure}");
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        check::CheckReport,
        output::{json, tests::report},
    };

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        options: CompareOptions,
    }

    fn typed(words: &str) -> CompareOptions {
        Typed::try_parse_from(["compare"].into_iter().chain(words.split_whitespace())).unwrap().options
    }

    fn speed(ops_per_sec: f64) -> Report {
        Report { ops_per_sec, ..report() }
    }

    /// What a comparison of candidates that `run` measures comes to.
    pub(crate) fn compared(
        words: &str,
        stop: &AtomicBool,
        run: impl FnMut(WirePort) -> anyhow::Result<Report>,
    ) -> anyhow::Result<CompareReport> {
        let options = typed(words);
        let medium = check(&options)?;
        rounds(&options, medium, report().environment, stop, run)
    }

    /// Goal: rounds alternate, with another candidate first each time, and ratios are those within a round. Method: three
    /// candidates on a machine whose speed doubles with every round.
    #[test]
    fn what_is_compared_was_measured_together() {
        let mut order = Vec::new();
        let stop = AtomicBool::new(false);
        let report = compared("udp tcp udp-plain --rounds 3 --baseline tcp", &stop, |of| {
            let machine = f64::from(1 << (order.len() / 3));
            order.push(of.name());
            let own = match of {
                WirePort::Udp => 6e6,
                WirePort::Tcp => 2e6,
                _ => 3e6,
            };
            Ok(speed(machine * own))
        })
        .unwrap();
        let expected = ["udp", "tcp", "udp-plain", "tcp", "udp-plain", "udp", "udp-plain", "udp", "tcp"];
        assert_eq!(order, expected);
        assert_eq!((report.medium, report.rounds, report.partial), (Medium::Loopback, 3, false));
        let ratio = |of, ratio| Ratio {
            of,
            to: "tcp",
            ratio,
            min: ratio,
            max: ratio,
            confidence: report.ratios.iter().find(|found| found.of == of).unwrap().confidence,
            is_beyond_noise: true,
        };
        assert_eq!(report.ratios, [ratio("udp", 3.0), ratio("udp-plain", 1.5)]);
        let udp = &report.candidates[0];
        assert_eq!((udp.ops_per_sec, udp.min, udp.max), (12e6, 6e6, 24e6));
        assert_eq!((udp.rounds_ops_per_sec.clone(), udp.report.ops_per_sec), (vec![6e6, 12e6, 24e6], 12e6));
        let value: serde_json::Value = serde_json::from_str(&json(&report).unwrap()).unwrap();
        assert_eq!((&value["kind"], &value["medium"]), (&"compare".into(), &"loopback".into()));
        assert_eq!(value["ratios"][0]["is_beyond_noise"], true);
        let table = compare_table(&report);
        println!("{table}");
        for words in ["to tcp", "3.000", "beyond noise", "medians of 3 rounds over loopback"] {
            assert!(table.contains(words), "{words}");
        }
    }

    /// Goal: what cannot be measured is told, and the others are compared. Method: one that is refused; and too few left.
    #[test]
    fn the_refused_are_told() {
        let stop = AtomicBool::new(false);
        let report = compared("udp tcp packet xdp --rounds 2", &stop, |of| match of {
            WirePort::Xdp => anyhow::bail!("no privilege"),
            _ => Ok(speed(1e6)),
        })
        .unwrap();
        assert_eq!(report.refused, [Refused { name: "xdp", error: "no privilege".to_owned() }]);
        assert_eq!((report.medium, report.partial), (Medium::Cable, false));
        assert_eq!((report.ratios.len(), report.ratios[0].to), (2, "packet"));
        assert!(!report.ratios[0].is_beyond_noise && report.ratios[0].confidence.is_none());
        let table = compare_table(&report);
        let told = ["xdp was not measured: no privilege", "too few rounds to tell", "2 rounds are too few"];
        for words in told.into_iter().chain(["virtual cables"]) {
            assert!(table.contains(words), "{words}: {table}");
        }
        assert!(!table.contains("within noise"), "{table}");
        let fail = |words: &str| {
            compared(words, &stop, |of| match of {
                WirePort::Xdp => anyhow::bail!("no privilege"),
                _ => Ok(speed(1e6)),
            })
        };
        let error = fail("udp xdp").unwrap_err().to_string();
        assert_eq!(error, "there are not two transports left to compare; xdp: no privilege");
        let error = compared("udp packet xdp", &stop, |_| anyhow::bail!("no root")).unwrap_err().to_string();
        assert_eq!(error, "there are not two transports left to compare; udp, packet: no root");
        let error = fail("udp tcp xdp --baseline xdp").unwrap_err().to_string();
        assert_eq!(error, "the baseline could not be measured; xdp: no privilege");
    }

    /// Goal: a late failure costs no round when it does not come again, and otherwise only those of the candidate that failed.
    /// Method: one that fails once, one that fails for good in its third round, and the same with one of two.
    #[test]
    fn late_failures_cost_little() {
        let stop = AtomicBool::new(false);
        let failing = |words: &str, failures: usize| {
            let (mut runs, mut failed) = (0, 0);
            compared(words, &stop, |of| {
                if of == WirePort::Tcp {
                    runs += 1;
                    if runs > 2 && failed < failures {
                        failed += 1;
                        anyhow::bail!("a port was lost");
                    }
                }
                Ok(speed(1e6))
            })
        };
        let counts = |report: &CompareReport| -> Vec<usize> {
            report.candidates.iter().map(|candidate| candidate.rounds_ops_per_sec.len()).collect()
        };
        let once = failing("udp tcp udp-plain --rounds 4 --baseline udp", 1).unwrap();
        assert_eq!((counts(&once), once.partial, once.failure), (vec![4, 4, 4], false, None));
        let twice = failing("udp tcp udp-plain --rounds 4 --baseline udp", 2).unwrap();
        assert_eq!((counts(&twice), twice.rounds, twice.partial), (vec![4, 2, 4], 2, true));
        assert!(twice.refused.is_empty());
        let confidences: Vec<_> = twice.ratios.iter().map(|ratio| ratio.confidence.is_some()).collect();
        assert_eq!(confidences, [false, true], "each has the rounds that both have");
        let failure = "tcp failed in round 3, twice: a port was lost";
        assert_eq!(twice.failure.as_deref(), Some(failure));
        let table = compare_table(&twice);
        assert!(table.contains("medians of 2 to 4 rounds") && table.ends_with(failure), "{table}");
        for words in ["udp tcp --rounds 4", "udp tcp udp-plain --rounds 4 --baseline tcp"] {
            let ended = failing(words, 2).unwrap();
            assert!(counts(&ended).iter().all(|count| *count == 2), "{words}: {:?}", counts(&ended));
            assert_eq!((ended.partial, ended.failure.as_deref()), (true, Some(failure)));
        }
    }

    /// Goal: of an interrupted comparison the complete rounds count. Method: stop in the second round, and in the first.
    #[test]
    fn an_interrupted_comparison_keeps_its_rounds() {
        for (stop_at, expected) in [(4, Some(1)), (2, None)] {
            let (stop, mut count) = (AtomicBool::new(false), 0);
            let result = compared("udp tcp", &stop, |_| {
                count += 1;
                stop.store(count == stop_at, Ordering::Relaxed);
                Ok(speed(1e6))
            });
            match expected {
                Some(rounds) => {
                    let report = result.unwrap();
                    assert_eq!((report.rounds, report.partial), (rounds, true));
                    assert!(report.candidates.iter().all(|of| of.rounds_ops_per_sec.len() == rounds));
                }
                None => assert!(result.unwrap_err().to_string().starts_with("interrupted before the first")),
            }
        }
    }

    /// Goal: wrong answers of any round are reported. Method: they are in rounds that are not the median.
    #[test]
    fn wrong_answers_of_all_rounds_count() {
        let mut reports = [1e6, 2e6, 3e6].map(speed).to_vec();
        reports[0].wrong_values = Some(2);
        reports[2].check = Some(CheckReport { violations: 5, ..CheckReport::default() });
        let candidate = candidate("udp", reports).unwrap();
        assert_eq!((candidate.ops_per_sec, candidate.report.wrong_values), (2e6, Some(2)));
        assert_eq!(candidate.report.check.unwrap().violations, 5);
    }

    /// Goal: noise is called a difference in one of twenty comparisons, and a difference is found. Method: ratios of seeded
    /// generators with lognormal noise of 5 %, around 1 and around 1.2.
    #[test]
    fn noise_is_told_from_a_difference() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut beyond = |true_ratio: f64, rounds: usize| {
            let found = (0..2_000).filter(|_| {
                let mut noisy = |ops: f64| {
                    let normal = (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0;
                    ops * (0.05 * normal).exp()
                };
                let (ones, others): (Vec<_>, Vec<_>) =
                    (0..rounds).map(|_| (noisy(true_ratio * 1e6), noisy(1e6))).unzip();
                ratio(("a", &ones), ("b", &others)).unwrap().is_beyond_noise
            });
            found.count() as f64 / 2_000.0
        };
        for rounds in [3, 5, 40] {
            let share = beyond(1.0, rounds);
            // 5 %, with four standard deviations of 2,000 comparisons.
            assert!((0.03..0.07).contains(&share), "{rounds} rounds: {share}");
        }
        assert_eq!(beyond(1.2, 2), 0.0, "two rounds are too few");
        assert!(beyond(1.2, 5) > 0.9);
    }

    /// Goal: what contradicts is refused in a sentence before anything runs. Method: one of each.
    #[test]
    fn contradictions_are_named() {
        for (words, expected) in [
            ("udp udp", "udp is there twice"),
            ("udp tcp --baseline xdp", "--baseline xdp is not among udp, tcp"),
            ("udp tcp --transport udp", "--transport cannot be given here: "),
            ("udp tcp --check-shared /x", "--check-shared cannot be given here: "),
            ("udp tcp --loss 0.1", "--loss, --dup and --reorder cannot be had with tcp"),
            (
                "udp xdp --dup 0.1",
                "with xdp and without --target all are compared on virtual cables, which have no",
            ),
            (
                "udp packet --threads 2",
                "with packet and without --target all are compared on virtual cables, which have one",
            ),
            (
                "udp packet --sessions 2",
                "with packet and without --target all are compared on virtual cables, which have one",
            ),
            ("udp tcp --target nowhere", "--target takes"),
            ("udp tcp --target null", "--target null has no transports"),
            ("udp tcp --threads 3 --sessions 2", "--sessions 2 are fewer than --threads 3"),
        ] {
            let error = check(&typed(words)).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{words}: {error}");
        }
        assert_eq!(check(&typed("udp xdp --target 127.0.0.1:1")).unwrap(), Medium::Target);
        assert!(Typed::try_parse_from(["compare", "udp"]).is_err(), "one alone is no comparison");
    }
}
