//! One run for each point of one or two axes: any options of a run, each with several values.
//!
//! Everything that can be wrong with a point's options, and with the traces and servers that they name, is found before the first
//! is measured. A sweep that is kept has its
//! folder from the beginning, and the result in it is replaced as a whole after every run, so that whatever ends the program
//! leaves what was measured until then: `--resume` measures the rest. A point that fails is told with the reason, and the
//! others are measured all the same.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use clap::Args;
use comfy_table::Cell;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    median::middle,
    options::RunOptions,
    output::{Environment, number, plain_table, shown},
    repeated::{TypedRun, about, name_of, run_whole, tell, word, wrong},
    results::{self, Kept},
    run::Drawn,
    workload::TraceFile,
};

/// Points of a sweep at most: at five seconds each that is more than half an hour.
const POINTS_MAX: usize = 400;

/// What a run takes beside load, in seconds, until it is known: drawing operations, storing records.
const OVERHEAD_S: f64 = 1.5;

/// One run for each point of one or two axes.
#[derive(Clone, Debug, Args)]
pub struct SweepOptions {
    /// An axis: any option of a run with its values, such as batch=16,64,110; once or twice. Values that have commas are
    /// separated by semicolons; flags are true or false
    #[arg(long, value_name = "OPTION=VALUE,…", required_unless_present = "resume")]
    pub over: Vec<Axis>,
    /// Runs of each point, 1 to 99: each point once, then backwards, and so on; the median by throughput counts [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=99))]
    pub repeats: Option<u8>,
    /// Go on with the sweep in this folder, with the options that it was begun with
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
    /// What all points have in common.
    #[command(flatten)]
    pub run: TypedRun,
}

/// An option and its values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axis {
    /// Its long name.
    pub option: String,
    /// The values as they are typed.
    pub values: Vec<String>,
}

impl FromStr for Axis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (option, values) =
            text.split_once('=').ok_or("give an option and its values, such as batch=16,64,110")?;
        let separator = if values.contains(';') { ';' } else { ',' };
        let values: Vec<_> = values.split(separator).map(|value| value.trim().to_owned()).collect();
        if values.iter().any(String::is_empty) {
            return Err("a value is missing".to_owned());
        }
        Ok(Self { option: option.trim().trim_start_matches("--").to_owned(), values })
    }
}

/// What a sweep has measured so far. The names are a contract, like those of [`crate::output::Report`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SweepReport {
    kind: SweepKind,
    /// What was varied.
    pub axes: Vec<Axis>,
    /// What all points have in common, as it was typed.
    pub options: Vec<String>,
    /// Runs of each point.
    pub repeats: u8,
    /// All points; the last axis is the fastest.
    pub points: Vec<SweepPoint>,
    /// Whether points are missing.
    pub partial: bool,
    /// Where it was begun.
    pub environment: Value,
    /// Where it is kept.
    #[serde(skip)]
    pub folder: Option<PathBuf>,
}

/// What kind of result it is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SweepKind {
    Sweep,
}

/// One point.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SweepPoint {
    /// One of each axis.
    pub values: Vec<String>,
    /// The median of its runs so far, or the one whose answers were wrong.
    pub report: Option<Value>,
    /// Why it was not measured, or what was wrong with it.
    pub error: Option<String>,
    /// Operations per second of each run.
    pub rounds_ops_per_sec: Vec<f64>,
    /// The runs of a point that has not had all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    runs: Vec<Value>,
}

impl SweepPoint {
    /// Takes in another run.
    fn add(&mut self, run: Value, repeats: u8) {
        self.rounds_ops_per_sec.push(ops_per_sec(&run));
        self.runs.push(run);
        self.report = middle(self.runs.clone(), ops_per_sec);
        if self.rounds_ops_per_sec.len() >= repeats.into() {
            self.runs.clear();
        }
    }

    /// Whether it is to be measured in this round, of which the first is 0.
    fn lacks(&self, round: u8) -> bool {
        self.error.is_none() && self.rounds_ops_per_sec.len() <= round.into()
    }

    fn is_violated(&self) -> bool {
        self.has("/check/violations")
    }

    /// Whether answers were wrong. That is a result, which another run does not undo.
    fn is_wrong(&self) -> bool {
        self.is_violated() || self.has("/wrong_values")
    }

    /// Whether this figure of the report is above 0.
    fn has(&self, figure: &str) -> bool {
        let count = self.report.as_ref().and_then(|report| report.pointer(figure));
        count.and_then(Value::as_u64).is_some_and(|count| count > 0)
    }
}

fn ops_per_sec(run: &Value) -> f64 {
    run["ops_per_sec"].as_f64().unwrap_or(0.0)
}

impl SweepReport {
    /// Points that have been measured as often as asked for.
    #[must_use]
    pub fn finished(&self) -> usize {
        self.points.iter().filter(|point| !point.lacks(self.repeats - 1)).count()
    }

    fn is_partial(&self) -> bool {
        self.finished() < self.points.len()
    }

    /// Whether a check has found answers that no linearizable store gives.
    #[must_use]
    pub fn is_violated(&self) -> bool {
        self.points.iter().any(SweepPoint::is_violated)
    }

    /// Why this is not a whole and right result, if it is not, as one sentence.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let total = self.points.len();
        if self.partial {
            let finished = self.finished();
            let remedy = match &self.folder {
                Some(folder) => format!("`sweep --resume {}` goes on from there", folder.display()),
                None => "with --keep it could be resumed".to_owned(),
            };
            return Some(format!("interrupted when {finished} of {total} points were measured; {remedy}"));
        }
        let failed: Vec<_> =
            self.points.iter().filter_map(|point| Some((point, point.error.as_ref()?))).collect();
        let (point, error) = failed.first()?;
        Some(format!(
            "{} of {total} points failed; {}: {error}",
            failed.len(),
            label(&self.axes, &point.values)
        ))
    }
}

/// Measures all points, or those that a sweep lacks. `command` is kept with the result. When `stop` is set the report is what
/// was measured until then.
///
/// # Errors
/// A sentence that names what is wrong with the options or the folder; nothing was measured then. Or that the result could
/// not be written.
pub fn sweep(options: &SweepOptions, command: &[String], stop: &AtomicBool) -> anyhow::Result<SweepReport> {
    options.run.refuse(&["check-shared"], "a sweep is of one process, whose answers --check checks alone")?;
    let mut report = match &options.resume {
        Some(folder) => {
            let mut found = read(folder)?;
            agree(options, &found, folder)?;
            found.folder = Some(folder.clone());
            try_again(&mut found);
            found
        }
        None => begin(options)?,
    };
    let points = plan(&report.axes, &report.options)?;
    check_named(&report.axes, &points)?;
    if let (Some(name), None) = (&options.run.options.place.keep, &options.resume) {
        let root = options.run.options.place.root();
        let environment = Environment::look(SystemTime::now());
        let seed = RunOptions::of_arguments(&report.options)?.seed;
        let kept = Kept { command, environment: &environment, seed: Some(seed), partial: true, run: None };
        let folder = results::keep(&root, name, &report, &kept)?;
        eprintln!("linerate-bench: kept in {} after every run", folder.display());
        report.folder = Some(folder);
    }
    let mut drawn = Drawn::default();
    measure(
        &mut report,
        stop,
        |index| {
            run_whole(&points[index], stop, &mut drawn)
                .and_then(|report| Ok((serde_json::to_value(&report)?, wrong(&report))))
        },
        &points,
    )?;
    Ok(report)
}

/// Measures what is missing, by `run`, which is given the number of the point and returns a report and what is wrong with its
/// answers.
fn measure(
    report: &mut SweepReport,
    stop: &AtomicBool,
    mut run: impl FnMut(usize) -> anyhow::Result<(Value, Option<String>)>,
    points: &[RunOptions],
) -> anyhow::Result<()> {
    let (begun, mut done) = (Instant::now(), 0_u32);
    let (repeats, count) = (report.repeats, report.points.len());
    for round in 0..repeats {
        // Backwards every other time: what changes with time does not favour one end.
        let order: Vec<_> = if round % 2 == 0 { (0..count).collect() } else { (0..count).rev().collect() };
        for index in order {
            if !report.points[index].lacks(round) {
                continue;
            }
            let left: usize = report.points.iter().map(|point| runs_left(point, repeats)).sum();
            let (warmup, duration) = points[index].times();
            let each = match done {
                0 => warmup + duration + Duration::from_secs_f64(OVERHEAD_S),
                done => begun.elapsed() / done,
            };
            let label = label(&report.axes, &report.points[index].values);
            let of = if repeats > 1 { format!(", run {} of {repeats}", round + 1) } else { String::new() };
            let left = about(each * left as u32);
            tell(format!("point {} of {count}{of} ({label}), {left}", index + 1));
            let result = run(index);
            // What was interrupted is measured again as a whole.
            if stop.load(Ordering::Relaxed) {
                return write(report);
            }
            done += 1;
            let point = &mut report.points[index];
            match result {
                Ok((run, None)) => point.add(run, repeats),
                Ok((run, Some(wrong))) => {
                    point.runs.clear();
                    (point.report, point.error) = (Some(run), Some(wrong));
                }
                // The runs before it were whole.
                Err(error) => point.error = Some(format!("{error:#}")),
            }
            write(report)?;
        }
    }
    write(report)
}

/// Lets points that failed be measured again, as that may have been repaired: what their earlier runs have shown is kept. A
/// point whose answers were wrong stays as it was found.
fn try_again(report: &mut SweepReport) {
    report.points.iter_mut().filter(|point| !point.is_wrong()).for_each(|point| point.error = None);
    report.partial = report.is_partial();
}

fn runs_left(point: &SweepPoint, repeats: u8) -> usize {
    if point.error.is_some() {
        0
    } else {
        usize::from(repeats).saturating_sub(point.rounds_ops_per_sec.len())
    }
}

/// Says whether points are missing, and replaces what is kept, if anything is.
fn write(report: &mut SweepReport) -> anyhow::Result<()> {
    report.partial = report.is_partial();
    match &report.folder {
        Some(folder) => Ok(results::replace(folder, report, report.partial)?),
        None => Ok(()),
    }
}

/// A sweep of which nothing was measured.
fn begin(options: &SweepOptions) -> anyhow::Result<SweepReport> {
    let axes = &options.over;
    anyhow::ensure!(axes.len() <= 2, "--over is given {} times: a sweep has one or two axes", axes.len());
    if let [one, other] = &axes[..] {
        anyhow::ensure!(one.option != other.option, "--over names {} twice", one.option);
    }
    if let Some(axis) = axes.iter().find(|axis| options.run.is_typed(&axis.option)) {
        let name = &axis.option;
        anyhow::bail!("--{name} is given for all runs, and --over varies it: leave one of them out");
    }
    let points = all_values(axes)?;
    let report = SweepReport {
        kind: SweepKind::Sweep,
        axes: axes.clone(),
        options: options.run.words().to_vec(),
        repeats: options.repeats.unwrap_or(1),
        points: points.into_iter().map(|values| SweepPoint { values, ..SweepPoint::default() }).collect(),
        partial: true,
        environment: serde_json::to_value(Environment::look(SystemTime::now()))?,
        folder: None,
    };
    Ok(report)
}

/// The values of each point.
fn all_values(axes: &[Axis]) -> anyhow::Result<Vec<Vec<String>>> {
    let count = axes.iter().map(|axis| axis.values.len()).product::<usize>();
    anyhow::ensure!(count <= POINTS_MAX, "--over has {count} points, at most {POINTS_MAX} are allowed");
    let mut points = vec![Vec::new()];
    for axis in axes {
        let longer = points.iter().flat_map(|point: &Vec<String>| {
            axis.values.iter().map(move |value| [&point[..], std::slice::from_ref(value)].concat())
        });
        points = longer.collect();
    }
    Ok(points)
}

/// The options of each point.
///
/// # Errors
/// What is wrong with those of one, or that two are the same.
fn plan(axes: &[Axis], common: &[String]) -> anyhow::Result<Vec<RunOptions>> {
    let mut planned: Vec<(Vec<String>, RunOptions, String)> = Vec::new();
    for values in all_values(axes)? {
        let mut words = common.to_vec();
        for (axis, value) in axes.iter().zip(&values) {
            let word = word(&axis.option, value).map_err(|error| anyhow::anyhow!("--over: {error}"))?;
            words.extend(word);
        }
        let label = label(axes, &values);
        let options = RunOptions::of_arguments(&words).and_then(|options| options.check().map(|()| options));
        let options = options.map_err(|error| anyhow::anyhow!("--over {label}: {error}"))?;
        let shown = format!("{options:?}");
        if let Some((other, ..)) = planned.iter().find(|(.., other)| *other == shown) {
            let same = if *other == values { "there twice" } else { "the same" };
            let other = self::label(axes, other);
            let which = if *other == label { label } else { format!("{other} and {label}") };
            anyhow::bail!("--over: {which}: {same}");
        }
        planned.push((values, options, shown));
    }
    Ok(planned.into_iter().map(|(_, options, _)| options).collect())
}

/// Checks what the points' options name: servers and traces. Each trace is read once for this.
///
/// # Errors
/// What is wrong with one.
fn check_named(axes: &[Axis], points: &[RunOptions]) -> anyhow::Result<()> {
    let mut traces = HashSet::new();
    for (options, values) in points.iter().zip(all_values(axes)?) {
        let is_new = |trace: &&TraceFile| traces.insert(format!("{trace:?}"));
        let read = options.trace.as_ref().filter(is_new).map_or(Ok(()), |trace| trace.loaded().map(drop));
        let checked = read.and_then(|()| options.servers().map(drop));
        checked.map_err(|error| anyhow::anyhow!("--over {}: {error:#}", label(axes, &values)))?;
    }
    Ok(())
}

/// A point's values with their options.
fn label(axes: &[Axis], values: &[String]) -> String {
    let named = axes.iter().zip(values).map(|(axis, value)| format!("{}={value}", axis.option));
    named.collect::<Vec<_>>().join(" ")
}

/// The sweep in a folder.
fn read(folder: &Path) -> anyhow::Result<SweepReport> {
    let path = folder.join("result.json");
    let shown = path.display();
    let text = fs::read_to_string(&path)
        .with_context(|| format!("--resume: {} holds no sweep: cannot read {shown}", folder.display()))?;
    let damaged = |what: &dyn std::fmt::Display| anyhow::anyhow!("--resume: {shown} is damaged: {what}");
    let value: Value = serde_json::from_str(&text).map_err(|error| damaged(&error))?;
    let kind = value["kind"].as_str().unwrap_or("none");
    anyhow::ensure!(kind == "sweep", "--resume: {shown} holds no sweep, its kind is {kind}");
    let report: SweepReport = serde_json::from_value(value).map_err(|error| damaged(&error))?;
    let values: Vec<_> = report.points.iter().map(|point| point.values.clone()).collect();
    let is_whole = (1..=2).contains(&report.axes.len())
        && report.repeats > 0
        && all_values(&report.axes).is_ok_and(|all| all == values);
    anyhow::ensure!(is_whole, damaged(&"its points are not those of its axes"));
    plan(&report.axes, &report.options).map_err(|error| damaged(&error))?;
    Ok(report)
}

/// Whether what was typed is what the sweep was begun with.
fn agree(options: &SweepOptions, found: &SweepReport, folder: &Path) -> anyhow::Result<()> {
    let differs = |what: &str, was: &dyn std::fmt::Display| {
        anyhow::anyhow!(
            "{what} differs from the sweep in {}, which has {was}: leave it out, or begin another sweep",
            folder.display()
        )
    };
    anyhow::ensure!(
        options.run.options.place.keep.is_none(),
        "--keep and --resume contradict: what is resumed is kept in its folder"
    );
    anyhow::ensure!(options.over.is_empty() || options.over == found.axes, {
        let axes = found.axes.iter().map(|axis| format!("--over {}={}", axis.option, axis.values.join(",")));
        differs("--over", &axes.collect::<Vec<_>>().join(" "))
    });
    if let Some(repeats) = options.repeats.filter(|&repeats| repeats != found.repeats) {
        return Err(differs(&format!("--repeats {repeats}"), &format!("--repeats {}", found.repeats)));
    }
    let was = format!("{:?}", RunOptions::of_arguments(&found.options)?);
    for typed in options.run.words() {
        let name = name_of(typed);
        let mut words: Vec<_> = found.options.iter().filter(|word| name_of(word) != name).cloned().collect();
        words.push(typed.clone());
        let now = format!("{:?}", RunOptions::of_arguments(&words)?);
        if now != was || found.axes.iter().any(|axis| axis.option == name) {
            let word = found.options.iter().find(|word| name_of(word) == name);
            let was = word.map_or_else(|| format!("no --{name} for all points"), Clone::clone);
            return Err(differs(typed, &was));
        }
    }
    let here = serde_json::to_value(Environment::look(SystemTime::now()))?;
    for what in ["commit", "build", "kernel", "cpu_model", "cores"] {
        if found.environment[what] != here[what] {
            let (was, is) = (&found.environment[what], &here[what]);
            eprintln!("linerate-bench: warning: the sweep was begun with the {what} {was}, this is {is}");
        }
    }
    Ok(())
}

/// Mop/s and p99 of all points: a line each, or a matrix each with two axes. Below what failed. Ends without a line feed.
#[must_use]
pub fn points_table(report: &SweepReport) -> String {
    let ops = |point: &SweepPoint| figure(point, &["ops_per_sec"], 1e-6, 2);
    let p99 = |point: &SweepPoint| figure(point, &["latency_us", "p99"], 1.0, 1);
    let mut text = match &report.axes[..] {
        [rows, columns] => {
            let matrix = |title: &str, of: &dyn Fn(&SweepPoint) -> String| {
                let mut table = plain_table();
                let header = [title.to_owned()].into_iter().chain(columns.values.iter().cloned());
                table.set_header(header.map(number));
                for (value, points) in rows.values.iter().zip(report.points.chunks(columns.values.len())) {
                    table.add_row(
                        [Cell::new(value)].into_iter().chain(points.iter().map(|point| number(of(point)))),
                    );
                }
                format!("{} by {}\n{}", rows.option, columns.option, table.trim_fmt())
            };
            format!("{}\n\n{}", matrix("Mop/s", &ops), matrix("p99 in µs", &p99))
        }
        axes => {
            let mut table = plain_table();
            let name = axes.first().map_or("", |axis| axis.option.as_str());
            table.set_header([name, "Mop/s", "p99 in µs", "runs"].map(|text| number(text.to_owned())));
            for point in &report.points {
                let runs = point.rounds_ops_per_sec.len().to_string();
                let row = [ops(point), p99(point), runs].map(number);
                table.add_row([Cell::new(point.values.concat())].into_iter().chain(row));
            }
            table.trim_fmt()
        }
    };
    for point in &report.points {
        if let Some(error) = &point.error {
            text += &format!("\n{}: {error}", label(&report.axes, &point.values));
        }
    }
    text
}

/// A figure of a point as it is shown.
fn figure(point: &SweepPoint, path: &[&str], factor: f64, decimals: usize) -> String {
    match (&point.report, &point.error) {
        (_, Some(_)) => "failed".to_owned(),
        (report, None) => {
            let value = report.as_ref().map(|report| path.iter().fold(report, |value, name| &value[*name]));
            shown(value.and_then(Value::as_f64).map(|value| value * factor), decimals)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        options: SweepOptions,
    }

    fn typed(words: &str) -> SweepOptions {
        Typed::try_parse_from(["sweep"].into_iter().chain(words.split_whitespace())).unwrap().options
    }

    /// A sweep that was begun with these words, and the options of its points.
    fn begun(words: &str) -> anyhow::Result<(SweepReport, Vec<RunOptions>)> {
        let report = begin(&typed(words))?;
        let points = plan(&report.axes, &report.options)?;
        Ok((report, points))
    }

    /// A sweep of which nothing has been measured.
    pub(crate) fn swept(words: &str) -> SweepReport {
        begun(words).unwrap().0
    }

    fn run(ops_per_sec: f64) -> Value {
        json!({ "ops_per_sec": ops_per_sec, "latency_us": { "p99": ops_per_sec / 1e4 } })
    }

    /// A folder that holds this as its result.
    fn folder(result: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("linerate-sweep-{:016x}", rand::random::<u64>()));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("result.json"), result).unwrap();
        fs::write(folder.join("manifest.json"), "{}").unwrap();
        folder
    }

    /// Goal: points are all combinations, with what they have in common. Method: two axes, one of them a flag, and values
    /// with commas.
    #[test]
    fn axes_span_points() {
        let (report, points) =
            begun("--over batch=16,64 --over verify=true,false --records 5 --seed 3").unwrap();
        let values: Vec<_> = report.points.iter().map(|point| point.values.join(" ")).collect();
        assert_eq!(values, ["16 true", "16 false", "64 true", "64 false"]);
        let options: Vec<_> = points.iter().map(|of| (of.batch, of.verify, of.records, of.seed)).collect();
        assert_eq!(options, [(16, true, 5, 3), (16, false, 5, 3), (64, true, 5, 3), (64, false, 5, 3)]);
        assert_eq!(report.options, ["--records=5", "--seed=3"]);
        let commas: Axis = "target=a:1,b:1;c:1".parse().unwrap();
        assert_eq!(commas.values, ["a:1,b:1", "c:1"]);
    }

    /// Goal: everything that is wrong with a sweep is said before anything runs. Method: one mistake after the other.
    #[test]
    fn mistakes_are_named() {
        let many: Vec<_> = (1..=401).map(|records| records.to_string()).collect();
        for (words, expected) in [
            ("--over speed=1", "--over: `speed` is no option of a run: give one of target, transport"),
            ("--over json=a,b", "--over: `json` is no option of a run"),
            ("--over batch=16,0", "--over batch=0: 0 is not in 1..=255"),
            ("--over transport=udp,pigeon", "--over transport=pigeon: "),
            ("--over verify=maybe", "--over: verify=maybe is not allowed: give true or false"),
            ("--over batch=16,64,16", "--over: batch=16: there twice"),
            ("--over theta=0.5,0.50", "--over: theta=0.5 and theta=0.50: the same"),
            ("--over batch=1 --over batch=2", "--over names batch twice"),
            ("--over batch=1 --over seed=2 --over window=3", "--over is given 3 times"),
            ("--over workload=a,d --check", "--over workload=d: --check knows the records"),
            ("--over batch=1,2 --batch 3", "--batch is given for all runs, and --over varies it"),
            (&format!("--over records={}", many.join(",")), "--over has 401 points, at most 400 are allowed"),
        ] {
            let error = begun(words).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{words}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        for (text, expected) in
            [("batch", "give an option and its values"), ("batch=1,,2", "a value is missing")]
        {
            assert!(text.parse::<Axis>().unwrap_err().starts_with(expected), "{text}");
        }
        assert!(Typed::try_parse_from(["sweep"]).is_err(), "without an axis there is nothing to do");
    }

    /// Goal: repeats go through the points forwards and backwards, and the median counts. Method: speeds that are known.
    #[test]
    fn repeats_alternate() {
        let (mut report, points) = begun("--over batch=1,2,3 --repeats 3").unwrap();
        let mut order = Vec::new();
        let stop = AtomicBool::new(false);
        let measured = |index| {
            order.push(index);
            Ok((run([5e6, 1e6, 3e6][(order.len() - 1) / 3]), None))
        };
        measure(&mut report, &stop, measured, &points).unwrap();
        assert_eq!(order, [0, 1, 2, 2, 1, 0, 0, 1, 2]);
        for point in &report.points {
            assert_eq!(point.rounds_ops_per_sec, [5e6, 1e6, 3e6]);
            assert_eq!(point.report.as_ref().unwrap()["ops_per_sec"], 3e6);
            assert!(point.runs.is_empty());
        }
        assert!(!report.partial && report.failure().is_none());
    }

    /// Goal: an interrupted sweep is whole on disk after every run, and goes on where it was, with all its rounds. Method:
    /// stop after each number of runs, read the folder, and go on.
    #[test]
    fn an_interrupted_sweep_goes_on() {
        for stop_after in 0..6 {
            let (mut report, points) = begun("--over batch=1,2,3 --repeats 2 --seed 5").unwrap();
            let folder = folder("");
            report.folder = Some(folder.clone());
            let (stop, mut runs) = (AtomicBool::new(false), 0);
            let interrupted = |index| {
                stop.store(runs == stop_after, Ordering::Relaxed);
                runs += 1;
                Ok((run(1e6 * f64::from(runs) + index as f64), None))
            };
            measure(&mut report, &stop, interrupted, &points).unwrap();
            let mut found = read(&folder).unwrap();
            assert_eq!(serde_json::to_value(&found).unwrap(), serde_json::to_value(&report).unwrap());
            let measured: usize = found.points.iter().map(|point| point.rounds_ops_per_sec.len()).sum();
            assert_eq!((measured, found.partial), (stop_after as usize, true));
            let failure = SweepReport { folder: Some(folder.clone()), ..found.clone() }.failure().unwrap();
            assert!(failure.contains(&format!("sweep --resume {}", folder.display())), "{failure}");
            let options = typed(&format!("--resume {} --seed 5 --records 1000000", folder.display()));
            agree(&options, &found, &folder).unwrap();
            found.folder = Some(folder.clone());
            let mut more = 0;
            let go_on = |_| {
                more += 1;
                Ok((run(9e6), None))
            };
            measure(&mut found, &AtomicBool::new(false), go_on, &points).unwrap();
            assert_eq!((more, found.partial), (6 - stop_after, false));
            let manifest: Value =
                serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
            assert_eq!(manifest["partial"], false);
            assert!(found.points.iter().all(|point| point.rounds_ops_per_sec.len() == 2));
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "nothing lies beside it");
            fs::remove_dir_all(&folder).unwrap();
        }
    }

    /// Goal: a point that fails is told, and so is one whose answers are wrong; the others are measured. Method: the second
    /// of three fails, the third is wrong.
    #[test]
    fn failures_are_points_too() {
        let (mut report, points) = begun("--over batch=1,2,3 --repeats 2").unwrap();
        let measured = |index| match index {
            0 => Ok((run(1e6), None)),
            1 => anyhow::bail!("no route"),
            _ => Ok((json!({ "check": { "violations": 1 } }), Some("not linearizable".to_owned()))),
        };
        measure(&mut report, &AtomicBool::new(false), measured, &points).unwrap();
        assert!(!report.partial && report.is_violated());
        assert_eq!(report.failure().unwrap(), "2 of 3 points failed; batch=2: no route");
        let table = points_table(&report);
        println!("{table}");
        assert!(table.contains("failed") && table.ends_with("batch=2: no route\nbatch=3: not linearizable"));
    }

    /// Goal: what is resumed loses neither earlier runs of a point that failed nor a wrong answer, and is partial until it has all.
    /// Method: three points, one of which fails in its second run and one of which is violated; then an interruption at once,
    /// and the rest.
    #[test]
    fn what_was_found_survives_a_resumption() {
        let (mut report, points) = begun("--over batch=1,2,3 --repeats 3").unwrap();
        let folder = folder("");
        report.folder = Some(folder.clone());
        let never = AtomicBool::new(false);
        let (mut runs, violated) = (0, json!({ "ops_per_sec": 7e6, "check": { "violations": 1 } }));
        let measured = |index| match index {
            0 => Ok((run(1e6), None)),
            1 => {
                runs += 1;
                anyhow::ensure!(runs < 2, "no route");
                Ok((run(4e6), None))
            }
            _ => Ok((violated.clone(), Some("not linearizable".to_owned()))),
        };
        measure(&mut report, &never, measured, &points).unwrap();
        assert_eq!((report.partial, report.points[1].error.as_deref()), (false, Some("no route")));
        assert_eq!(report.points[1].rounds_ops_per_sec, [4e6]);

        let mut found = read(&folder).unwrap();
        found.folder = Some(folder.clone());
        try_again(&mut found);
        let stop = AtomicBool::new(false);
        let interrupted = |_| {
            stop.store(true, Ordering::Relaxed);
            anyhow::bail!("interrupted")
        };
        measure(&mut found, &stop, interrupted, &points).unwrap();
        assert!(found.failure().unwrap().starts_with("interrupted when 2 of 3 points were measured"));
        let mut found = read(&folder).unwrap();
        assert!(found.partial && found.is_violated());
        found.folder = Some(folder.clone());
        try_again(&mut found);
        let mut order = Vec::new();
        let go_on = |index| {
            order.push(index);
            Ok((run(6e6), None))
        };
        measure(&mut found, &never, go_on, &points).unwrap();
        assert_eq!((order, found.partial), (vec![1, 1], false));
        assert_eq!(found.points[1].rounds_ops_per_sec, [4e6, 6e6, 6e6]);
        assert_eq!((&found.points[2].report, found.is_violated()), (&Some(violated), true));
        assert_eq!(found.failure().unwrap(), "1 of 3 points failed; batch=3: not linearizable");
        fs::remove_dir_all(&folder).unwrap();
    }

    /// Goal: only what is a sweep is resumed, and only as it was begun. Method: other folders, damaged files, options that
    /// differ.
    #[test]
    fn another_sweep_is_not_resumed() {
        let (report, _) = begun("--over batch=1,2 --seed 5").unwrap();
        let text = serde_json::to_string(&report).unwrap();
        let whole = folder(&text);
        let found = read(&whole).unwrap();
        for (words, expected) in [
            ("--seed 6", "--seed=6 differs from the sweep in"),
            ("--records 7", "--records=7 differs from the sweep in"),
            ("--batch 7", "--batch=7 differs from the sweep in"),
            ("--over batch=1,3", "--over differs from the sweep in"),
            ("--repeats 2", "--repeats 2 differs from the sweep in"),
            ("--keep x", "--keep and --resume contradict"),
        ] {
            let options = typed(&format!("--resume x {words}"));
            let error = agree(&options, &found, &whole).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{words}: {error}");
        }
        agree(&typed("--resume x --over batch=1,2 --repeats 1 --seed 5"), &found, &whole).unwrap();
        fs::remove_dir_all(&whole).unwrap();
        for (result, expected) in [
            ("", "is damaged: EOF"),
            (&text[..text.len() / 2], "is damaged: EOF"),
            (r#"{ "kind": "compare" }"#, "holds no sweep, its kind is compare"),
            ("[]", "holds no sweep, its kind is none"),
            (r#"{ "kind": "sweep" }"#, "is damaged: missing field"),
            (&text.replace(r#""values":["1"]"#, r#""values":["3"]"#), "its points are not those of its axes"),
            (&text.replace("--seed=5", "--speed=5"), "is damaged: --over"),
            (&text.replace(r#""repeats":1"#, r#""repeats":0"#), "is damaged"),
        ] {
            let folder = folder(result);
            let error = read(&folder).unwrap_err().to_string();
            assert!(error.starts_with("--resume: ") && error.contains(expected), "{result}: {error}");
            fs::remove_dir_all(&folder).unwrap();
        }
        let error = format!("{:#}", read(Path::new("/nonexistent")).unwrap_err());
        assert!(error.starts_with("--resume: /nonexistent holds no sweep: cannot read"), "{error}");
    }

    /// Goal: two axes are shown as matrices, rows by columns. Method: a sweep with known figures.
    #[test]
    fn two_axes_are_a_matrix() {
        let (mut report, points) = begun("--over batch=16,64 --over transport=udp,tcp").unwrap();
        let measured = |index| Ok((run(1e6 * (index as f64 + 1.0)), None));
        measure(&mut report, &AtomicBool::new(false), measured, &points).unwrap();
        let table = points_table(&report);
        println!("{table}");
        let line = |start: &str, number: usize| {
            let mut lines = table.lines().filter(|line| line.trim_start().starts_with(start));
            lines.nth(number).unwrap().split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
        };
        assert_eq!((line("16", 0), line("64", 0)), ("1.00 2.00".to_owned(), "3.00 4.00".to_owned()));
        assert_eq!((line("16", 1), line("64", 1)), ("100.0 200.0".to_owned(), "300.0 400.0".to_owned()));
    }
}
