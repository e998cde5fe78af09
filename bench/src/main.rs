//! `linerate-bench`: measures, and says what it measured.

#![forbid(unsafe_code)]

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Context;
use clap::Parser;
use linerate_bench::{
    cache::{CacheOptions, cache, cache_table},
    ceiling::ceiling,
    cluster::{ClusterCommand, ClusterRunOptions, cluster_run, cluster_table, exec, node, reap},
    compare::{CompareOptions, compare, compare_table},
    line_rate::{ModelOptions, prediction_table},
    options::{Command, DemoOptions, Options, RunOptions, StoreOptions, WireOptions},
    output::{Environment, JsonTarget, Report, table},
    peers::{PeersOptions, peers, peers_table, peers_verdict},
    repeated::Wrong,
    report::{
        ReportOptions,
        readme::{ReadmeOptions, readme},
        report,
    },
    results::{self, KeepOptions, Kept},
    run::{run, stop_on_signals},
    search::{SearchOptions, search, search_table},
    store::{StoreReport, store, store_sweep, store_table, sweep_table},
    sweep::{SweepOptions, points_table, sweep},
    wire::{WireResult, wire, wire_table},
};
use linerate_dataplane::transport::{Transport, Wanted};
use serde::Serialize;

fn main() -> ExitCode {
    match execute(Options::parse()) {
        Ok(Verdict::Right) => ExitCode::SUCCESS,
        Ok(Verdict::Violated) => ExitCode::from(1),
        Err(error) => {
            eprintln!("linerate-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What a check has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing wrong, or not asked.
    Right,
    /// Operations that no linearizable store can have answered, or files that are not as the results have them.
    Violated,
}

fn execute(options: Options) -> anyhow::Result<Verdict> {
    let stop = stop_on_signals()?;
    let measures =
        !matches!(options.command, Some(Command::Report(_) | Command::Readme(_) | Command::Model(_)));
    if cfg!(debug_assertions) && measures {
        eprintln!("linerate-bench: warning: built without --release, so the figures mean nothing");
    }
    let defaults = || DemoOptions { duration: 5.0, records: RunOptions::defaults().records };
    match options.command.unwrap_or_else(|| Command::Demo(defaults())) {
        Command::Demo(demo) => show_demo(&demo, &stop),
        Command::Run(options) => show_run(&options, || run(&options, &stop)),
        Command::Ceiling(options) => show_run(&options, || ceiling(&options, &stop)),
        Command::Sweep(options) => show_sweep(&options, &stop),
        Command::Compare(options) => show_compare(&options, &stop),
        Command::Search(options) => show_search(&options, &stop),
        Command::Wire(options) => show_wire(&options, &stop),
        Command::Store(options) => show_store(&options, &stop),
        Command::Cache(options) => show_cache(&options, &stop),
        Command::Peers(options) => show_peers(&options, &stop),
        Command::Cluster(ClusterCommand::Run(options)) => show_cluster(&options, &stop),
        Command::Cluster(ClusterCommand::Node(options)) => node(&options, &stop).map(|()| Verdict::Right),
        Command::Cluster(ClusterCommand::Reap(options)) => reap(&options).map(|()| Verdict::Right),
        Command::Cluster(ClusterCommand::Exec(options)) => exec(&options).map(|()| Verdict::Right),
        Command::Model(options) => show_model(&options),
        Command::Report(options) => write_report(&options),
        Command::Readme(options) => write_readme(&options),
    }
}

/// UDP and TCP one after the other, with the same operations.
fn show_demo(demo: &DemoOptions, stop: &AtomicBool) -> anyhow::Result<Verdict> {
    let options = |transport| RunOptions {
        transport: Wanted::Is(transport),
        records: demo.records,
        duration: demo.duration,
        verify: true,
        ..RunOptions::defaults()
    };
    eprintln!(
        "linerate demo: YCSB-B (95 % get, 5 % put), Zipf 0.99, {} records of 128 bytes; one server core, one client core",
        demo.records
    );
    let (mut legs, mut failure): (Vec<(&str, Report)>, _) = (Vec::new(), None);
    for (name, transport) in [("UDP", Transport::Udp), ("TCP", Transport::Tcp)] {
        match run(&options(transport), stop) {
            Ok(report) => {
                failure = report.failure.clone();
                legs.push((name, report));
            }
            Err(error) if legs.is_empty() => return Err(error),
            Err(_) if stop.load(Ordering::Relaxed) => failure = Some("interrupted".to_owned()),
            Err(error) => failure = Some(format!("{name}: {error:#}")),
        }
        if failure.is_some() {
            break;
        }
    }
    let columns: Vec<_> = legs.iter().map(|(name, report)| (*name, report)).collect();
    match failure {
        None => say(&table(&columns))?,
        // A part of one cannot be compared with the other.
        Some(_) => columns.chunks(1).try_for_each(|column| say(&table(column)))?,
    }
    let verdict = check_all(legs.iter().map(|(_, report)| report))?;
    whole_or(
        verdict,
        failure.map(|failure| format!("{failure}: what is shown is what was measured until then")),
    )
}

/// Where a result goes.
#[derive(Clone, Copy)]
struct Places<'a> {
    json: Option<&'a JsonTarget>,
    keep: &'a KeepOptions,
}

/// What is kept of a result beside its figures.
struct About<'a> {
    environment: &'a Environment,
    seed: u64,
    partial: bool,
    /// The run that it is, or that counts most of several.
    run: Option<&'a Report>,
}

impl<'a> Places<'a> {
    /// Checks before anything is measured that a result can go there.
    fn check(json: Option<&'a JsonTarget>, keep: &'a KeepOptions) -> anyhow::Result<Self> {
        json.map_or(Ok(()), JsonTarget::check)?;
        keep.check()?;
        Ok(Self { json, keep })
    }

    fn of_run(options: &'a RunOptions) -> anyhow::Result<Self> {
        Self::check(options.json.as_ref(), &options.place)
    }

    /// Keeps a result, if it is to be kept, and shows it. One that cannot be kept is shown all the same.
    fn put(
        self,
        result: &impl Serialize,
        about: &About<'_>,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        let kept = self.keep.keep.as_ref().map_or(Ok(()), |name| self.keep(name, result, about));
        show(self.json, result, text)?;
        kept
    }

    fn keep(self, name: &str, result: &impl Serialize, about: &About<'_>) -> anyhow::Result<()> {
        let &About { environment, seed, partial, run } = about;
        let command: Vec<_> = env::args().collect();
        let kept = Kept { command: &command, environment, seed: Some(seed), partial, run };
        let folder = results::keep(&self.keep.root(), name, result, &kept)?;
        eprintln!("linerate-bench: kept in {}", folder.display());
        report(&ReportOptions { folders: vec![folder], output: None })
            .context("the result is kept, but not its report")?;
        Ok(())
    }
}

/// Writes a result as JSON, or says what it means.
fn show(
    json: Option<&JsonTarget>,
    result: &impl Serialize,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    match json {
        Some(target) => Ok(target.write(result)?),
        None => say(&text()),
    }
}

/// The verdict on what was measured whole. Of a part of it a violation is still one, and anything else an error.
fn whole_or(verdict: Verdict, failure: Option<String>) -> anyhow::Result<Verdict> {
    match (verdict, failure) {
        (Verdict::Right, Some(failure)) => anyhow::bail!(failure),
        (Verdict::Violated, Some(failure)) => {
            eprintln!("linerate-bench: {failure}");
            Ok(verdict)
        }
        (verdict, None) => Ok(verdict),
    }
}

fn show_run(
    options: &RunOptions,
    measure: impl FnOnce() -> anyhow::Result<Report>,
) -> anyhow::Result<Verdict> {
    let places = Places::of_run(options)?;
    let report = measure()?;
    let about = About {
        environment: &report.environment,
        seed: options.seed,
        partial: report.partial,
        run: Some(&report),
    };
    places.put(&report, &about, || {
        let verdicts = report.verdicts.iter().map(|verdict| format!("\n{}", verdict.text));
        table(&[(&report.config.transport, &report)]) + &verdicts.collect::<String>()
    })?;
    let failure = report.failure.as_ref();
    whole_or(
        check(&report)?,
        failure.map(|failure| format!("{failure}: what is reported is what was measured until then")),
    )
}

/// Shows all points that there are; it is an error when some are missing. A sweep has kept itself.
fn show_sweep(options: &SweepOptions, stop: &AtomicBool) -> anyhow::Result<Verdict> {
    let json = options.run.options.json.as_ref();
    json.map_or(Ok(()), JsonTarget::check)?;
    let swept = sweep(options, &env::args().collect::<Vec<_>>(), stop)?;
    let reported = swept.folder.clone().map_or(Ok(()), |folder| {
        let reported = report(&ReportOptions { folders: vec![folder], output: None });
        reported.map(drop).context("the result is kept, but not its report")
    });
    show(json, &swept, || points_table(&swept))?;
    reported?;
    whole_or(if swept.is_violated() { Verdict::Violated } else { Verdict::Right }, swept.failure())
}

fn show_compare(options: &CompareOptions, stop: &AtomicBool) -> anyhow::Result<Verdict> {
    let run = &options.run.options;
    let places = Places::of_run(run)?;
    let report = compare(options, stop)?;
    let best = report.candidates.iter().max_by(|one, other| one.ops_per_sec.total_cmp(&other.ops_per_sec));
    let about = About {
        environment: &report.environment,
        seed: run.seed,
        partial: report.partial,
        run: best.map(|best| &best.report),
    };
    places.put(&report, &about, || compare_table(&report))?;
    let verdict = check_all(report.candidates.iter().map(|candidate| &candidate.report))?;
    whole_or(verdict, report.failure.clone())
}

/// Shows all trials; it is an error when no rate was found.
fn show_search(options: &SearchOptions, stop: &AtomicBool) -> anyhow::Result<Verdict> {
    let run = &options.run.options;
    let places = Places::of_run(run)?;
    let report = search(options, stop)?;
    let about = About {
        environment: &report.environment,
        seed: run.seed,
        partial: report.partial,
        run: report.report.as_ref(),
    };
    places.put(&report, &about, || search_table(&report))?;
    whole_or(check_all(&report.report)?, report.failure())
}

/// Shows all ports, also those that could not be measured; it is an error when none could.
fn show_wire(options: &WireOptions, stop: &AtomicBool) -> anyhow::Result<Verdict> {
    let places = Places::check(options.json.as_ref(), &options.place)?;
    let report = wire(options, stop)?;
    let measured = || report.ports.iter().filter_map(|(_, result)| Some(&result.measured()?.report));
    let run = measured().max_by(|one, other| one.ops_per_sec.total_cmp(&other.ops_per_sec));
    let about = About { environment: &report.environment, seed: options.seed, partial: false, run };
    places.put(&report, &about, || wire_table(&report))?;
    if let (Some((name, WireResult::Refused { error })), None) = (report.ports.first(), run) {
        anyhow::bail!("no port could be measured; {name}: {error}");
    }
    check_all(measured())
}

fn show_store(options: &StoreOptions, stop: &AtomicBool) -> anyhow::Result<Verdict> {
    let places = Places::check(options.json.as_ref(), &options.place)?;
    let Some(records_max) = options.sweep else {
        let report = store(options, stop)?;
        places.put(&report, &about_store(options, &report, false), || store_table(&report))?;
        return check_store([&report]);
    };
    let sweep = store_sweep(options, records_max, stop)?;
    let text = || sweep_table(&sweep);
    match sweep.points.first() {
        Some(first) => places.put(&sweep, &about_store(options, first, sweep.ended.is_some()), text)?,
        None => show(places.json, &sweep, text)?,
    }
    check_store(&sweep.points)
}

fn about_store<'a>(options: &StoreOptions, report: &'a StoreReport, partial: bool) -> About<'a> {
    About { environment: &report.environment, seed: options.seed, partial, run: None }
}

/// It is an error when a value was wrong.
fn check_store<'a>(reports: impl IntoIterator<Item = &'a StoreReport>) -> anyhow::Result<Verdict> {
    for report in reports {
        let (wrong, misses, records) = (report.wrong_values, report.misses, report.config.records);
        anyhow::ensure!(
            wrong == 0 && misses == 0,
            "with {records} records {wrong} values were wrong and {misses} operations did not find their key: this is a bug"
        );
    }
    Ok(Verdict::Right)
}

fn show_cache(options: &CacheOptions, stop: &AtomicBool) -> anyhow::Result<Verdict> {
    let places = Places::check(options.json.as_ref(), &options.place)?;
    let report = cache(options, stop)?;
    let about = About { environment: &report.environment, seed: options.seed, partial: false, run: None };
    places.put(&report, &about, || cache_table(&report))?;
    Ok(Verdict::Right)
}

/// Shows what could be measured, also without a peer; that is an error then.
fn show_peers(options: &PeersOptions, stop: &AtomicBool) -> anyhow::Result<Verdict> {
    let places = Places::check(options.json.as_ref(), &options.place)?;
    let report = peers(options, stop)?;
    let run = &report.linerate.report;
    let about = About {
        environment: &report.environment,
        seed: options.seed,
        partial: report.partial,
        run: Some(run),
    };
    places.put(&report, &about, || peers_table(&report))?;
    let verdict = check(run)?;
    whole_or(verdict, peers_verdict(&report).err().map(|error| error.to_string()))
}

/// Shows what there is of a run; it is an error when that is not all.
fn show_cluster(options: &ClusterRunOptions, stop: &AtomicBool) -> anyhow::Result<Verdict> {
    options.json.as_ref().map_or(Ok(()), JsonTarget::check)?;
    let result = cluster_run(options, stop)?;
    show(options.json.as_ref(), &result, || cluster_table(&result))?;
    let verdict = all(result.reports().map(|report| {
        let (violations, first) = match &report.check {
            Some(check) => (check.violations, check.first_violation.as_deref()),
            None => (0, None),
        };
        told(Wrong::of("cluster", violations, first, report.wrong_values), "")
    }))?;
    let failure = result.failure();
    whole_or(
        verdict,
        failure
            .map(|(failure, folder)| format!("{failure}; what there is of the result is kept in {folder}")),
    )
}

fn show_model(options: &ModelOptions) -> anyhow::Result<Verdict> {
    let predictions = options.predict()?;
    match &options.json {
        Some(target) => target.write(&predictions)?,
        None => say(&prediction_table(&predictions))?,
    }
    Ok(Verdict::Right)
}

fn write_report(options: &ReportOptions) -> anyhow::Result<Verdict> {
    let file = report(options)?;
    say(&format!("written to {}", file.display()))?;
    Ok(Verdict::Right)
}

/// Writes what is generated, or says what is not as the results have it.
fn write_readme(options: &ReadmeOptions) -> anyhow::Result<Verdict> {
    let changed = readme(options)?;
    for file in &changed {
        if options.check {
            eprintln!(
                "linerate-bench: \"{}\" is not as the kept results have it; run `linerate-bench readme` and commit it",
                file.display()
            );
        } else {
            say(&format!("written to {}", file.display()))?;
        }
    }
    Ok(if options.check && !changed.is_empty() { Verdict::Violated } else { Verdict::Right })
}

/// Prints; that nobody reads it is an error like any other.
fn say(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("cannot print the result")
}

/// A wrong answer is a failure of the system under test, whatever its speed.
fn check(report: &Report) -> anyhow::Result<Verdict> {
    let verdict = told(Wrong::of_run(report), " (`--json` has the details)")?;
    let audit = report.check.as_ref().filter(|_| verdict == Verdict::Right).map(|check| &check.audit);
    if let Some(impossible) = audit.and_then(|audit| audit.impossible.as_ref()) {
        eprintln!("linerate-bench: the writes were not counted up at the end: {impossible}");
    }
    Ok(verdict)
}

/// The same for several.
fn check_all<'a>(reports: impl IntoIterator<Item = &'a Report>) -> anyhow::Result<Verdict> {
    all(reports.into_iter().map(check))
}

/// One verdict of several, of which a violation counts most.
fn all(verdicts: impl Iterator<Item = anyhow::Result<Verdict>>) -> anyhow::Result<Verdict> {
    let (mut all, mut failure) = (Verdict::Right, None);
    for verdict in verdicts {
        match verdict {
            Ok(Verdict::Violated) => all = Verdict::Violated,
            Ok(Verdict::Right) => {}
            Err(error) => failure = failure.or_else(|| Some(format!("{error:#}"))),
        }
    }
    whole_or(all, failure)
}

/// Tells what is wrong: violations with a code of their own.
fn told(wrong: Option<Wrong>, more: &str) -> anyhow::Result<Verdict> {
    match wrong {
        None => Ok(Verdict::Right),
        Some(Wrong::Values(text)) => anyhow::bail!(text),
        Some(Wrong::Violated(text)) => {
            eprintln!("linerate-bench: {text}{more}");
            Ok(Verdict::Violated)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a violation is never hidden by an interruption or by wrong values, and nothing is made one.
    /// Method: all combinations.
    #[test]
    fn violations_win() {
        let failed = || Some("interrupted".to_owned());
        assert_eq!(whole_or(Verdict::Violated, failed()).unwrap(), Verdict::Violated);
        assert_eq!(whole_or(Verdict::Violated, None).unwrap(), Verdict::Violated);
        assert_eq!(whole_or(Verdict::Right, None).unwrap(), Verdict::Right);
        assert_eq!(whole_or(Verdict::Right, failed()).unwrap_err().to_string(), "interrupted");
        let wrong = || told(Wrong::of("store", 0, None, Some(3)), "");
        let violated = || told(Wrong::of("store", 2, Some("a stale read; around it"), Some(3)), "");
        assert_eq!(all([wrong(), violated()].into_iter()).unwrap(), Verdict::Violated);
        assert_eq!(all([Ok(Verdict::Right)].into_iter()).unwrap(), Verdict::Right);
        assert!(
            all([Ok(Verdict::Right), wrong()].into_iter()).unwrap_err().to_string().starts_with("3 values")
        );
    }
}
