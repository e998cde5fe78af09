//! `linerate-bench`: measures, and says what it measured.

#![forbid(unsafe_code)]

use std::{
    env,
    io::{self, Write},
    path::Path,
    process::ExitCode,
    sync::atomic::AtomicBool,
};

use anyhow::Context;
use clap::Parser;
use linerate_bench::{
    cache::{CacheOptions, CacheReport, cache, cache_table},
    ceiling::ceiling,
    cluster::{
        ClusterCommand, ClusterResult, ClusterRunOptions, cluster_run, cluster_table, exec, node, reap,
    },
    compare::{CompareOptions, compare, compare_table},
    line_rate::{ModelOptions, prediction_table},
    options::{Command, DemoOptions, Options, RunOptions, StoreOptions, WireOptions},
    output::{Environment, Report, table},
    peers::{PeersOptions, PeersReport, peers, peers_table, peers_verdict},
    report::{
        ReportOptions,
        readme::{ReadmeOptions, readme},
        report,
    },
    results::{self, Kept},
    run::{run, stop_on_signals},
    search::{SearchOptions, search, search_table},
    store::{StoreReport, store, store_sweep, store_table, sweep_table},
    sweep::{SweepOptions, points_table, sweep},
    wire::{WireReport, WireResult, wire, wire_table},
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
        Command::Run(options) => show(&options, || run(&options, &stop)),
        Command::Ceiling(options) => show(&options, || ceiling(&options, &stop)),
        Command::Sweep(options) => show_sweep(&options, &stop),
        Command::Compare(options) => show_compare(&options, &stop),
        Command::Search(options) => show_search(&options, &stop),
        Command::Wire(options) => show_wire(&options, &wire(&options, &stop)?),
        Command::Store(options) => show_store(&options, &stop),
        Command::Cache(options) => show_cache(&options, &cache(&options, &stop)?),
        Command::Peers(options) => show_peers(&options, &peers(&options, &stop)?),
        Command::Cluster(ClusterCommand::Run(options)) => {
            show_cluster(&options, &cluster_run(&options, &stop)?)
        }
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
    let udp = run(&options(Transport::Udp), stop)?;
    let tcp = run(&options(Transport::Tcp), stop)?;
    say(&table(&[("UDP", &udp), ("TCP", &tcp)]))?;
    check(&udp)?;
    check(&tcp)
}

fn show(options: &RunOptions, measure: impl FnOnce() -> anyhow::Result<Report>) -> anyhow::Result<Verdict> {
    let root = results::root(options.results.as_deref());
    // What can not be kept should show before, not after minutes.
    options.keep.as_ref().map_or(Ok(()), |name| results::check(&root, name))?;
    let report = measure()?;
    match &options.json {
        Some(target) => target.write(&report)?,
        None => {
            say(&table(&[(&report.config.transport, &report)]))?;
            for verdict in &report.verdicts {
                say(&verdict.text)?;
            }
        }
    }
    if let Some(name) = &options.keep {
        let (command, partial) = (command(), report.partial);
        let (environment, seed, run) = (&report.environment, Some(options.seed), Some(&report));
        keep_in(&root, name, &report, &Kept { command: &command, environment, seed, partial, run })?;
    }
    let verdict = check(&report)?;
    match &report.failure {
        Some(failure) => anyhow::bail!("{failure}: what is reported is what was measured until then"),
        None => Ok(verdict),
    }
}

/// Shows all points that there are; it is an error when some are missing. A sweep has kept itself.
fn show_sweep(options: &SweepOptions, stop: &AtomicBool) -> anyhow::Result<Verdict> {
    let swept = sweep(options, &command(), stop)?;
    match &options.run.options.json {
        Some(target) => target.write(&swept)?,
        None => say(&points_table(&swept))?,
    }
    if let Some(folder) = swept.folder.clone() {
        report(&ReportOptions { folders: vec![folder], output: None })
            .context("the result is kept, but not its report")?;
    }
    match swept.failure() {
        Some(failure) if swept.is_violated() => {
            eprintln!("linerate-bench: {failure}");
            Ok(Verdict::Violated)
        }
        Some(failure) => anyhow::bail!(failure),
        None => Ok(Verdict::Right),
    }
}

fn show_compare(options: &CompareOptions, stop: &AtomicBool) -> anyhow::Result<Verdict> {
    let run = &options.run.options;
    let report = may_keep(run, || compare(options, stop))?;
    match &run.json {
        Some(target) => target.write(&report)?,
        None => say(&compare_table(&report))?,
    }
    keep_many(run, &report, report.partial, &report.environment)?;
    let verdict = report.candidates.iter().try_fold(Verdict::Right, |verdict, candidate| {
        let other = check(&candidate.report)?;
        anyhow::Ok(if verdict == Verdict::Right { other } else { verdict })
    })?;
    match &report.failure {
        Some(failure) if verdict == Verdict::Right => anyhow::bail!("{failure}"),
        _ => Ok(verdict),
    }
}

/// Shows all trials; it is an error when no rate was found.
fn show_search(options: &SearchOptions, stop: &AtomicBool) -> anyhow::Result<Verdict> {
    let run = &options.run.options;
    let report = may_keep(run, || search(options, stop))?;
    match &run.json {
        Some(target) => target.write(&report)?,
        None => say(&search_table(&report))?,
    }
    keep_many(run, &report, report.partial, &report.environment)?;
    if let Some(run) = &report.report
        && check(run)? == Verdict::Violated
    {
        return Ok(Verdict::Violated);
    }
    match report.failure() {
        Some(failure) => anyhow::bail!(failure),
        None => Ok(Verdict::Right),
    }
}

/// Shows all ports, also those that could not be measured; it is an error when none could.
fn show_wire(options: &WireOptions, report: &WireReport) -> anyhow::Result<Verdict> {
    match &options.json {
        Some(target) => target.write(report)?,
        None => say(&wire_table(report))?,
    }
    keep(options.keep.as_deref(), report, &report.environment)?;
    if let [(name, WireResult::Refused { error }), rest @ ..] = &report.ports[..]
        && rest.iter().all(|(_, result)| result.measured().is_none())
    {
        anyhow::bail!("no port could be measured; {name}: {error}");
    }
    let mut measured = report.ports.iter().filter_map(|(_, result)| result.measured());
    measured.try_fold(Verdict::Right, |_, measured| check(&measured.report))
}

fn show_store(options: &StoreOptions, stop: &AtomicBool) -> anyhow::Result<Verdict> {
    let Some(records_max) = options.sweep else {
        let report = store(options, stop)?;
        return show_measured(options, &report, &[&report], || store_table(&report));
    };
    let sweep = store_sweep(options, records_max, stop)?;
    let points: Vec<_> = sweep.points.iter().collect();
    show_measured(options, &sweep, &points, || sweep_table(&sweep))
}

/// Shows what was measured of the store, however much of it; it is an error when a value was wrong.
fn show_measured(
    options: &StoreOptions,
    result: &impl Serialize,
    reports: &[&StoreReport],
    table: impl Fn() -> String,
) -> anyhow::Result<Verdict> {
    match &options.json {
        Some(target) => target.write(result)?,
        None => say(&table())?,
    }
    if let Some(first) = reports.first() {
        keep(options.keep.as_deref(), result, &first.environment)?;
    }
    for report in reports {
        let (wrong, misses, records) = (report.wrong_values, report.misses, report.config.records);
        anyhow::ensure!(
            wrong == 0 && misses == 0,
            "with {records} records {wrong} values were wrong and {misses} operations did not find their key: this is a bug"
        );
    }
    Ok(Verdict::Right)
}

fn show_cache(options: &CacheOptions, report: &CacheReport) -> anyhow::Result<Verdict> {
    match &options.json {
        Some(target) => target.write(report)?,
        None => say(&cache_table(report))?,
    }
    keep(options.keep.as_deref(), report, &report.environment)?;
    Ok(Verdict::Right)
}

/// Shows what could be measured, also without a peer; that is an error then.
fn show_peers(options: &PeersOptions, report: &PeersReport) -> anyhow::Result<Verdict> {
    match &options.json {
        Some(target) => target.write(report)?,
        None => say(&peers_table(report))?,
    }
    keep(options.keep.as_deref(), report, &report.environment)?;
    peers_verdict(report)?;
    check(&report.linerate.report)
}

/// Shows what there is of a run; it is an error when that is not all.
fn show_cluster(options: &ClusterRunOptions, result: &ClusterResult) -> anyhow::Result<Verdict> {
    match &options.json {
        Some(target) => target.write(result)?,
        None => say(&cluster_table(result))?,
    }
    for report in result.reports() {
        if let Some(check) = report.check.as_ref().filter(|check| check.violations > 0) {
            let first = check.first_violation.as_deref().and_then(|text| text.split(';').next());
            eprintln!(
                "linerate-bench: {} times the cluster was not linearizable, which is a bug; the first time: {}",
                check.violations,
                first.unwrap_or("unknown")
            );
            return Ok(Verdict::Violated);
        }
        let wrong = report.wrong_values.unwrap_or(0);
        anyhow::ensure!(
            wrong == 0,
            "{wrong} values were never put at the key they were got from: this is a bug"
        );
    }
    match result.failure() {
        Some((failure, folder)) => {
            anyhow::bail!("{failure}; what there is of the result is kept in {folder}")
        }
        None => Ok(Verdict::Right),
    }
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

/// Measures when the result could be kept: what can not should show before, not after minutes.
fn may_keep<T>(options: &RunOptions, measure: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let root = results::root(options.results.as_deref());
    options.keep.as_ref().map_or(Ok(()), |name| results::check(&root, name))?;
    measure()
}

/// Keeps the result of many runs, if it is to be kept.
fn keep_many(
    options: &RunOptions,
    result: &impl Serialize,
    partial: bool,
    environment: &Environment,
) -> anyhow::Result<()> {
    let (command, root) = (command(), results::root(options.results.as_deref()));
    let kept = Kept { command: &command, environment, seed: Some(options.seed), partial, run: None };
    options.keep.as_ref().map_or(Ok(()), |name| keep_in(&root, name, result, &kept))
}

/// Keeps a result that has no seconds, if it is to be kept.
fn keep(name: Option<&str>, result: &impl Serialize, environment: &Environment) -> anyhow::Result<()> {
    let command = command();
    let kept = Kept { command: &command, environment, seed: None, partial: false, run: None };
    name.map_or(Ok(()), |name| keep_in(&results::root(None), name, result, &kept))
}

fn keep_in(root: &Path, name: &str, result: &impl Serialize, kept: &Kept<'_>) -> anyhow::Result<()> {
    let folder = results::keep(root, name, result, kept)?;
    // The figures are safe already.
    report(&ReportOptions { folders: vec![folder.clone()], output: None })
        .context("the result is kept, but not its report")?;
    eprintln!("linerate-bench: kept in {}", folder.display());
    Ok(())
}

/// What this process was asked for.
fn command() -> Vec<String> {
    env::args().collect()
}

/// Prints; that nobody reads it is an error like any other.
fn say(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("cannot print the result")
}

/// A wrong answer is a failure of the system under test, whatever its speed.
fn check(report: &Report) -> anyhow::Result<Verdict> {
    if let Some(check) = report.check.as_ref().filter(|check| check.violations > 0) {
        // The operations around it, which follow, are for the JSON.
        let first = check.first_violation.as_deref().and_then(|text| text.split(';').next());
        eprintln!(
            "linerate-bench: {} times the store was not linearizable, which is a bug; the first time: {} (`--json` has the \
             details)",
            check.violations,
            first.unwrap_or("unknown")
        );
        return Ok(Verdict::Violated);
    }
    if let Some(impossible) = report.check.as_ref().and_then(|check| check.audit.impossible.as_ref()) {
        eprintln!("linerate-bench: the writes were not counted up at the end: {impossible}");
    }
    let wrong = report.wrong_values.unwrap_or(0);
    anyhow::ensure!(wrong == 0, "{wrong} values were never put at the key they were got from: this is a bug");
    Ok(Verdict::Right)
}
