//! `linerate-sim`: runs seeds, and says what they have shown.

#![forbid(unsafe_code)]

mod options;

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use linerate_proto::mutants::Mutant;
use linerate_sim::{
    campaign::{Summary, run_seeds},
    mutants::{Fate, Fates, hunt},
    run::{OPS_DEFAULT, Plan, quiet_panics, run_seed},
};
use options::{JsonTarget, Options};
use serde::Serialize;

fn main() -> ExitCode {
    match execute(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("linerate-sim: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn execute(options: &Options) -> anyhow::Result<ExitCode> {
    let stop = stop_on_signals()?;
    quiet_panics();
    if let Some(mutant) = options.mutant {
        activate(Some(mutant))?;
    }
    if options.trace {
        return trace(options);
    }
    if options.mutants {
        return mutants(options, &stop);
    }
    let plan = Plan { ops: options.ops, ..Plan::default() };
    let threads = threads(options)?;
    let seeds = options.range();
    let bar = progress_bar(seeds.end - seeds.start)?;
    let mut failed = 0u64;
    let summary = run_seeds(seeds, &plan, threads, &stop, |report| {
        failed += u64::from(!report.is_clean());
        if failed > 0 {
            bar.set_message(format!("{failed} failed"));
        }
        bar.inc(1);
    });
    bar.finish_and_clear();
    match &options.json {
        Some(target) => write_json(target, &summary)?,
        None => say(format_args!("{}", Readable(&summary)))?,
    }
    if let Some(failure) = &summary.first_failure {
        eprintln!("linerate-sim: seed {} failed: {}", failure.seed, failure.what);
        let ops = if options.ops == OPS_DEFAULT { String::new() } else { format!(" --ops {}", options.ops) };
        let mutant = options.mutant.map_or_else(String::new, |mutant| format!(" --mutant {}", mutant.name()));
        eprintln!("linerate-sim: replay it with: linerate-sim --seed {}{ops}{mutant} --trace", failure.seed);
    }
    if stop.load(Ordering::Relaxed) {
        eprintln!("linerate-sim: interrupted after {} seeds; the result is of these", summary.seeds);
        return Ok(ExitCode::from(130));
    }
    Ok(if summary.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn threads(options: &Options) -> anyhow::Result<usize> {
    match options.threads {
        Some(threads) => Ok(threads.into()),
        None => Ok(thread::available_parallelism().context("cannot tell how many cores there are")?.get()),
    }
}

/// Runs seeds against each mutant; one that survives is a failure.
fn mutants(options: &Options, stop: &AtomicBool) -> anyhow::Result<ExitCode> {
    let plan = Plan { ops: options.ops, ..Plan::default() };
    let threads = threads(options)?;
    let bar = progress_bar(Mutant::ALL.len() as u64)?;
    let mut fates = Fates::default();
    for &mutant in Mutant::ALL {
        bar.set_message(mutant.name());
        activate(Some(mutant))?;
        fates.mutants.push(hunt(mutant, threads, stop, |seed| run_seed(seed, &plan).failure()));
        bar.inc(1);
        if stop.load(Ordering::Relaxed) {
            eprintln!("linerate-sim: interrupted");
            return Ok(ExitCode::from(130));
        }
    }
    activate(None)?;
    bar.finish_and_clear();
    match &options.json {
        Some(target) => write_json(target, &fates)?,
        None => {
            for Fate { name, killed_at_seed, found } in &fates.mutants {
                let seed =
                    killed_at_seed.map_or_else(|| "survived".to_owned(), |seed| format!("seed {seed}"));
                say(format_args!("{name:30} {seed:10} {}", found.as_deref().unwrap_or_default()))?;
            }
        }
    }
    let survivors: Vec<_> = fates.survivors().map(|fate| fate.name).collect();
    if survivors.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("linerate-sim: no seed has found {}", survivors.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Has the code under test make a mistake.
#[cfg(feature = "mutants")]
fn activate(mutant: Option<Mutant>) -> anyhow::Result<()> {
    linerate_proto::mutants::activate(mutant);
    Ok(())
}

#[cfg(not(feature = "mutants"))]
fn activate(_mutant: Option<Mutant>) -> anyhow::Result<()> {
    anyhow::bail!("this build makes no mistakes on purpose: build with --features mutants")
}

/// Replays one seed before everybody's eyes.
fn trace(options: &Options) -> anyhow::Result<ExitCode> {
    let plan = Plan { ops: options.ops, events: Some(print_event) };
    let report = run_seed(options.range().start, &plan);
    for violation in &report.violations {
        say(format_args!("violation: {violation}"))?;
    }
    if let Some(who) = &report.stuck {
        say(format_args!("stuck: {who}"))?;
    }
    let counts = format!("{} operations, {} datagrams", report.ops, report.datagrams);
    say(format_args!(
        "seed {}: {counts}, {} violations, trace hash {:016x}",
        report.seed, report.violation_count, report.trace_hash
    ))?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_event(at: Duration, what: fmt::Arguments<'_>) {
    let written = writeln!(io::stdout(), "{:>15.9} {what}", at.as_secs_f64());
    if written.is_err() {
        // Whoever read this has gone, as `head` does.
        std::process::exit(0);
    }
}

/// Prints; that nobody reads it is an error like any other.
fn say(text: fmt::Arguments<'_>) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("cannot print the result")
}

fn write_json(target: &JsonTarget, summary: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string(summary)? + "\n";
    match target {
        JsonTarget::Stdout => io::stdout().write_all(text.as_bytes()).context("cannot print the result"),
        JsonTarget::File(path) => std::fs::write(path, text)
            .with_context(|| format!("cannot write the result to \"{}\"", path.display())),
    }
}

fn progress_bar(seeds: u64) -> anyhow::Result<ProgressBar> {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(seeds), target);
    let template = "{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left {msg}";
    bar.set_style(ProgressStyle::with_template(template).context("the progress bar's template")?);
    Ok(bar)
}

/// A flag that SIGINT and its like set; the second one ends the process at once.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in signal_hook::consts::TERM_SIGNALS {
        signal_hook::flag::register_conditional_shutdown(*signal, 130, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(*signal, Arc::clone(&stop)))
            .context("cannot catch signals")?;
    }
    Ok(stop)
}

/// A summary for people.
struct Readable<'a>(&'a Summary);

impl fmt::Display for Readable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { seeds, ops, datagrams, violations, stuck, .. } = self.0;
        writeln!(f, "{seeds} seeds, {ops} operations, {datagrams} datagrams")?;
        writeln!(
            f,
            "  results {}, not executed {}, unknown {}",
            self.0.ops_with_result, self.0.ops_not_executed, self.0.ops_unknown
        )?;
        let faults: Vec<_> = self.0.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
        for line in faults.chunks(6) {
            writeln!(f, "  {}", line.join(", "))?;
        }
        writeln!(
            f,
            "  {:.0} s of virtual time in {:.1} s, {:.0} seeds per hour on {} threads, trace hash {}",
            self.0.virtual_s, self.0.wall_s, self.0.seeds_per_hour, self.0.threads, self.0.trace_hash
        )?;
        write!(f, "{violations} violations, {stuck} stuck")
    }
}
