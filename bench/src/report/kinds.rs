//! The sections on results of several measurements: comparisons, sweeps, searches, and those of one part of the system.

use serde_json::Value;

use super::{
    chart::{Axis, Bar, Bars, Chart, Mark, Scale, Series},
    figures::{Unit, extent, grouped, micros, quantile_name, rate, significant},
    folder::{Folder, Kind, at, flag, list, number, plain, point_name, text},
    page::{Drawing, Key, Section, Table},
    run::{self, PERCENTILES, line, us},
};

/// Rows of a table of all numbers, at most.
const NUMBERS_MAX: usize = 400;

/// Bars of one chart, at most.
const BARS_MAX: usize = 40;

/// The figure that a result is about.
pub(super) fn key(folder: &Folder) -> Option<Key> {
    let result = &folder.result;
    let words = |words: &str| words.to_owned();
    if folder.kind == Kind::Search {
        let kept = number(result, "/rate")?;
        return Some(Key {
            figure: rate(kept),
            words: format!("the highest rate that keeps {}", objective(result)),
        });
    }
    if folder.kind == Kind::Store {
        let ns = number(result, "/get_ns")?;
        return Some(Key { figure: format!("{} ns", significant(ns)), words: words("per get in a batch") });
    }
    let figure = rate(folder.ops_per_sec()?);
    let words = match folder.kind {
        Kind::Run | Kind::Ceiling => run::in_a_line(result),
        Kind::Cluster => match number(result, "/line_rate_share_max") {
            Some(share) => {
                format!("of all nodes; {} % of line rate at the busiest", grouped(share * 100.0, 1))
            }
            None => words("of all nodes"),
        },
        Kind::Peers => {
            format!("linerate over {}", text(result, "/linerate/transport").unwrap_or("its own protocol"))
        }
        _ => String::new(),
    };
    Some(Key { figure, words })
}

/// What the result says in plain words, and what its runs say.
pub(super) fn verdicts(folder: &Folder) -> Vec<String> {
    let mut verdicts = own_verdicts(folder);
    verdicts.extend(verdicts_of(&folder.reports()));
    verdicts
}

/// What the result says in plain words.
pub(super) fn own_verdicts(folder: &Folder) -> Vec<String> {
    let result = &folder.result;
    let mut verdicts = Vec::new();
    let of_candidates = if folder.kind == Kind::Compare { list(result, "/ratios") } else { &[] };
    for ratio in of_candidates {
        let name = |pointer: &str| text(ratio, pointer).unwrap_or("one").to_owned();
        let Some(median) = number(ratio, "/ratio") else { continue };
        let spread = number(ratio, "/min").zip(number(ratio, "/max"));
        let spread =
            spread.map_or_else(String::new, |(least, most)| format!(" (rounds: {least:.2} to {most:.2})"));
        let noise = match (flag(ratio, "/is_beyond_noise"), at(ratio, "/confidence")) {
            (Some(true), _) => ", larger than the noise",
            (Some(false), Some(Value::Null)) => ", of too few rounds to tell it from noise",
            (Some(false), _) => ", not beyond the noise",
            (None, _) => "",
        };
        verdicts.push(format!(
            "{} does {median:.2} times what {} does{spread}{noise}.",
            name("/of"),
            name("/to")
        ));
    }
    if folder.kind == Kind::Peers
        && let Some(ratios) = at(result, "/ratios").and_then(Value::as_object)
    {
        for (name, ratio) in ratios {
            if let Some(ratio) = ratio.as_f64() {
                verdicts.push(format!("linerate does {} times what {name} does.", significant(ratio)));
            }
        }
    }
    if folder.kind == Kind::Search {
        verdicts.extend(found(result));
    }
    verdicts
}

/// Between which rates the one that was searched for lies.
fn found(result: &Value) -> Option<String> {
    let trials = list(result, "/trials");
    Some(match (number(result, "/lower"), number(result, "/upper")) {
        (Some(lower), Some(upper)) => format!("{} kept it, {} missed it.", rate(lower), rate(upper)),
        (Some(lower), None) if has_ended_early(result) => {
            format!("{} kept it, and nothing had missed it when the search ended.", rate(lower))
        }
        (Some(lower), None) => format!(
            "{} kept it, and no rate missed it: even twice the throughput of a closed loop was kept, and higher ones are not \
             tried. The limit is not known.",
            rate(lower)
        ),
        (None, Some(upper)) if flag(result, "/partial") == Some(true) => {
            format!(
                "No rate had kept it when the search ended; {} was the lowest that had missed it.",
                rate(upper)
            )
        }
        (None, Some(upper)) => format!("No rate kept it; {} was the lowest that missed it.", rate(upper)),
        (None, None) => {
            let last = trials.iter().rev().find(|trial| flag(trial, "/kept") == Some(false))?;
            let why = text(last, "/why").unwrap_or("it was missed");
            format!("No rate kept it, not even {}: {why}.", rate(number(last, "/rate")?))
        }
    })
}

/// Whether a search ended before it knew.
fn has_ended_early(result: &Value) -> bool {
    flag(result, "/partial") == Some(true) || number(result, "/rate").is_none()
}

/// Kinds of verdicts that are no reason to doubt the figure of one run among several.
const UNREMARKABLE: [&str; 2] = ["healthy", "server-limited"];

/// Runs with the same verdict that have a sentence each; of more it is told of all together.
const ALIKE_MAX: usize = 2;

/// Names in a sentence, at most.
const NAMES_MAX: usize = 8;

/// What runs say of themselves. The only one says all of it, and several what makes their figures doubtful.
pub(super) fn verdicts_of(reports: &[(String, &Value)]) -> Vec<String> {
    if let [(name, report)] = reports
        && name.is_empty()
    {
        return run::verdicts(report).into_iter().map(|(_, sentence)| sentence.to_owned()).collect();
    }
    let mut by_kind: Vec<(&str, Vec<(&str, &str)>)> = Vec::new();
    for (name, report) in reports {
        for (kind, sentence) in run::verdicts(report) {
            if UNREMARKABLE.contains(&kind) {
                continue;
            }
            match by_kind.iter_mut().find(|(known, _)| *known == kind && !kind.is_empty()) {
                Some((_, alike)) => alike.push((name, sentence)),
                None => by_kind.push((kind, vec![(name, sentence)])),
            }
        }
    }
    let mut verdicts = Vec::new();
    for (kind, alike) in by_kind {
        if alike.len() <= ALIKE_MAX {
            verdicts.extend(alike.iter().map(|(name, sentence)| format!("{name}: {sentence}")));
            continue;
        }
        let mut names: Vec<&str> = alike.iter().map(|(name, _)| *name).collect();
        names.dedup();
        let more = match names.len().saturating_sub(NAMES_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        names.truncate(NAMES_MAX);
        verdicts.push(format!(
            "{} of {} runs have the verdict {kind}: {}{more}. Of the first: {}",
            alike.len(),
            reports.len(),
            names.join(", "),
            alike[0].1
        ));
    }
    verdicts
}

/// Warnings on runs, at most.
const WARNINGS_MAX: usize = 40;

/// What is wrong with runs, which nobody must overlook.
pub(super) fn warnings_of(reports: &[(String, &Value)]) -> Vec<String> {
    let mut warnings: Vec<String> = Vec::new();
    for (name, report) in reports {
        let of = if name.is_empty() { String::new() } else { format!("{name}: ") };
        if let Some(wrong) = number(report, "/wrong_values").filter(|&wrong| wrong > 0.0) {
            warnings.push(format!("{of}{} values were wrong.", grouped(wrong, 0)));
        }
        if let Some(count) = number(report, "/check/violations").filter(|&count| count > 0.0) {
            warnings.push(format!("{of}{} times the store was not linearizable.", grouped(count, 0)));
        }
        match text(report, "/failure") {
            Some(failure) => warnings.push(format!("{of}{failure}")),
            None if !name.is_empty() && flag(report, "/partial") == Some(true) => {
                warnings.push(format!("{of}ended early."));
            }
            None => {}
        }
    }
    if warnings.len() > WARNINGS_MAX {
        let more = warnings.len() - WARNINGS_MAX;
        warnings.truncate(WARNINGS_MAX);
        warnings.push(format!("And {more} more."));
    }
    warnings
}

/// What must not be overlooked in all of a result, without what its folder says.
pub(super) fn alarms(folder: &Folder) -> Vec<String> {
    let result = &folder.result;
    let mut warnings = warnings_of(&folder.reports());
    if matches!(folder.kind, Kind::Compare | Kind::Peers)
        && let Some(failure) = text(result, "/failure")
    {
        warnings.insert(0, failure.to_owned());
    }
    match folder.kind {
        Kind::Search => {
            if let Some(failure) = text(result, "/failure") {
                warnings.insert(0, format!("The search ended before it knew: {failure}."));
            }
        }
        Kind::Sweep => {
            let points = list(result, "/points");
            let mut failed = points.iter().filter_map(|point| Some((point, text(point, "/error")?)));
            if let Some((point, error)) = failed.next() {
                warnings.push(format!(
                    "{} of {} points have no valid result; {}: {error}",
                    1 + failed.count(),
                    points.len(),
                    point_name(result, point)
                ));
            }
        }
        Kind::Peers => {
            for peer in list(result, "/peers") {
                if let Some(wrong) = number(peer, "/wrong_values").filter(|&wrong| wrong > 0.0) {
                    let name = text(peer, "/name").unwrap_or("unnamed");
                    warnings.push(format!("{name}: {} values were wrong.", grouped(wrong, 0)));
                }
            }
        }
        _ => {}
    }
    warnings
}

/// What must not be overlooked.
pub(super) fn warnings(folder: &Folder) -> Vec<String> {
    let mut warnings = Vec::new();
    if folder.is_partial() {
        warnings.push(
            "PARTIAL: it was interrupted or a part of it failed. What is shown was measured until then."
                .into(),
        );
    }
    if folder.fact("build") == Some("debug") {
        warnings.push("Built without --release, so the figures mean nothing.".to_owned());
    }
    warnings.extend(alarms(folder));
    warnings.extend(folder.notes.iter().cloned());
    warnings
}

/// All sections on a result.
pub(super) fn sections(folder: &Folder, drawing: &mut Drawing) -> Vec<Section> {
    let result = &folder.result;
    let mut sections = match folder.kind {
        Kind::Run | Kind::Ceiling => return run::sections(result, drawing),
        Kind::Compare => {
            let mut sections = compare(result, drawing);
            sections.push(refused(result));
            sections
        }
        Kind::Sweep => vec![sweep(result, drawing)],
        Kind::Search => search(result, drawing),
        Kind::Peers => {
            let mut missing = Section::new("Not measured");
            missing.paragraphs.extend(list(result, "/missing").iter().map(plain));
            vec![peers(result, drawing), run::settings(at(result, "/linerate/report/config")), missing]
        }
        Kind::Cluster => vec![cluster(result, drawing), run::settings(at(result, "/spec"))],
        Kind::ClusterSeries => cluster_series(result, drawing),
        Kind::Wire => wire(result, drawing),
        Kind::Store => vec![store(result, drawing), run::settings(at(result, "/config"))],
        Kind::StoreSweep => vec![numbers(result)],
        Kind::Cache => vec![cache(result, drawing)],
    };
    sections.retain(|section| !section.is_empty());
    sections
}

/// Least and largest, where a result has both.
fn spread(of: &Value) -> Option<(f64, f64)> {
    match number(of, "/min").zip(number(of, "/max")) {
        Some((least, most)) => Some((least, most)),
        None => extent(list(of, "/rounds_ops_per_sec").iter().filter_map(Value::as_f64)),
    }
}

/// A result that is one bar among others: its name, operations per second, their spread, and its colour.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    pub(super) name: String,
    pub(super) ops: f64,
    pub(super) spread: Option<(f64, f64)>,
    pub(super) colour: usize,
}

/// Bars of operations per second.
pub(super) fn rates(title: &str, rates: &[Rate]) -> Bars {
    let unit = Unit::of_rates(extent(rates.iter().map(|one| one.ops)).map_or(0.0, |(_, most)| most));
    let bar = |one: &Rate| Bar {
        label: one.name.clone(),
        value: one.ops / unit.size,
        spread: one.spread.map(|(least, most)| (least / unit.size, most / unit.size)),
        shown: rate(one.ops),
        colour: one.colour,
    };
    let bars = rates.iter().take(BARS_MAX).map(bar).collect();
    Bars { title: title.to_owned(), label: unit.name.to_owned(), bars }
}

fn compare(result: &Value, drawing: &mut Drawing) -> Vec<Section> {
    let mut section = Section::new("Throughput");
    let candidates = list(result, "/candidates");
    let of = |(colour, one): (usize, &Value)| {
        let (name, ops) = (text(one, "/name")?.to_owned(), number(one, "/ops_per_sec")?);
        Some(Rate { name, ops, spread: spread(one), colour })
    };
    let named: Vec<_> = candidates.iter().enumerate().filter_map(of).collect();
    if let Some(mut figure) = drawing.bars(&rates("Median of the rounds, with their spread", &named)) {
        figure.note =
            Some("The line at the end of a bar goes from the slowest round to the fastest.".to_owned());
        section.figures.push(figure);
    }
    let mut lines: Vec<Series> = Vec::new();
    for (index, one) in candidates.iter().enumerate() {
        let rounds = list(one, "/rounds_ops_per_sec").iter().filter_map(Value::as_f64);
        let points = rounds.enumerate().map(|(round, ops)| (round as f64 + 1.0, ops)).collect();
        lines.push(line(text(one, "/name").unwrap_or("unnamed"), index, points));
    }
    let most = extent(lines.iter().flat_map(|one| &one.points).map(|point| point.1));
    let unit = Unit::of_rates(most.map_or(0.0, |(_, most)| most));
    for point in lines.iter_mut().flat_map(|one| &mut one.points) {
        point.1 /= unit.size;
    }
    let chart = Chart {
        title: "Round by round".into(),
        x: Axis::new("round", Scale::Linear),
        y: Axis::new(unit.name, Scale::FromZero),
        series: lines,
        y_max: None,
    };
    section.figures.extend(drawing.chart(&chart));
    let mut table =
        Table::new("Candidates", &["", "op/s, median", "least", "most", "p50 µs", "p99 µs", "p99.9 µs"]);
    for one in candidates {
        let ops = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| grouped(value, 0));
        let latency = |field: &str| us(number(one, &format!("/report/latency_us/{field}")));
        let spread = spread(one);
        table.rows.push(vec![
            text(one, "/name").unwrap_or("unnamed").to_owned(),
            ops(number(one, "/ops_per_sec")),
            ops(spread.map(|spread| spread.0)),
            ops(spread.map(|spread| spread.1)),
            latency("p50"),
            latency("p99"),
            latency("p999"),
        ]);
    }
    section.tables.push(table);
    section.tables.extend(ratios(result));
    if let Some(test) = text(result, "/noise_test").filter(|_| !list(result, "/ratios").is_empty()) {
        section.paragraphs.push(format!("What is noise is decided by {test}."));
    }
    if let Some(medium) = text(result, "/medium") {
        let rounds = number(result, "/rounds")
            .map_or_else(String::new, |rounds| format!(", {} rounds", grouped(rounds, 0)));
        section.paragraphs.push(format!("Over: {medium}{rounds}. The candidates took turns in each round."));
    }
    let reports: Vec<(String, &Value)> = candidates
        .iter()
        .filter_map(|one| Some((text(one, "/name")?.to_owned(), at(one, "/report")?)))
        .collect();
    let config = reports.first().and_then(|(_, report)| at(report, "/config"));
    vec![section, distributions(&reports, drawing), run::settings(config)]
}

/// How the candidates of a comparison relate.
fn ratios(result: &Value) -> Option<Table> {
    let head = ["", "median of the rounds", "least", "most", "95 % interval", "beyond the noise"];
    let mut table = Table::new("Ratios within a round", &head);
    for ratio in list(result, "/ratios") {
        let name = |pointer: &str| text(ratio, pointer).unwrap_or("one").to_owned();
        let shown =
            |pointer: &str| number(ratio, pointer).map_or_else(|| "–".to_owned(), |value| grouped(value, 3));
        let interval = match (number(ratio, "/confidence/0"), number(ratio, "/confidence/1")) {
            (Some(from), Some(to)) => format!("{} – {}", grouped(from, 3), grouped(to, 3)),
            _ => "too few rounds".to_owned(),
        };
        let is_beyond = match flag(ratio, "/is_beyond_noise") {
            Some(true) => "yes",
            Some(false) if number(ratio, "/confidence/0").is_none() => "cannot be told",
            Some(false) => "no",
            None => "–",
        };
        table.rows.push(vec![
            format!("{} : {}", name("/of"), name("/to")),
            shown("/ratio"),
            shown("/min"),
            shown("/max"),
            interval,
            is_beyond.to_owned(),
        ]);
    }
    (!table.rows.is_empty()).then_some(table)
}

/// The latencies of several runs on the same charts.
pub(super) fn distributions(named: &[(String, &Value)], drawing: &mut Drawing) -> Section {
    let mut section = Section::new("Latency");
    let lines = || -> Vec<Series> {
        let lines = named.iter().enumerate();
        let lines = lines.map(|(index, (name, run))| line(name.clone(), index, run::cdf(run)));
        lines.filter(|line| !line.points.is_empty()).collect()
    };
    section.figures.extend(drawing.chart(&run::distribution(lines())));
    section.figures.extend(drawing.chart(&run::tail(lines())));
    section
}

/// What could not be measured, and why.
fn refused(result: &Value) -> Section {
    let mut section = Section::new("Not measured");
    for one in list(result, "/refused") {
        let (name, error) =
            (text(one, "/name").unwrap_or("unnamed"), text(one, "/error").unwrap_or("no reason given"));
        section.paragraphs.push(format!("{name}: {error}"));
    }
    section
}

/// The number that a value is, when it is one that has a place on an axis.
fn axis_number(value: &str) -> Option<f64> {
    value.parse::<f64>().ok().filter(|number| number.is_finite())
}

fn sweep(result: &Value, drawing: &mut Drawing) -> Section {
    let mut section = Section::new("Scaling");
    let names: Vec<String> = list(result, "/axes")
        .iter()
        .map(|axis| text(axis, "/option").unwrap_or("setting").to_owned())
        .collect();
    let mut points: Vec<Point> = Vec::new();
    let mut table = Table::new("All points", &[]);
    table.head = names.clone();
    let figures =
        ["op/s", "runs, least – most", "p50 µs", "p99 µs", "server CPU %", "client busy %", "verdicts"];
    table.head.extend(figures.map(str::to_owned));
    for point in list(result, "/points") {
        let values: Vec<String> = list(point, "/values").iter().map(plain).collect();
        let mut row = values.clone();
        row.resize(names.len(), "–".to_owned());
        // What is wrong with a point may be known by its report, which is no result then.
        match (text(point, "/error"), at(point, "/report").filter(|report| report.is_object())) {
            (None, Some(report)) => {
                let shown = |pointer: &str, times: f64| {
                    number(report, pointer).map_or_else(|| "–".into(), |value| grouped(value * times, 0))
                };
                let runs = list(point, "/rounds_ops_per_sec");
                let spread = extent(runs.iter().filter_map(Value::as_f64)).filter(|_| runs.len() > 1);
                let kinds: Vec<&str> = run::verdicts(report)
                    .into_iter()
                    .map(|(kind, _)| kind)
                    .filter(|kind| !UNREMARKABLE.contains(kind))
                    .collect();
                row.extend([
                    shown("/ops_per_sec", 1.0),
                    match spread {
                        Some((least, most)) => {
                            format!("{}: {} – {}", runs.len(), grouped(least, 0), grouped(most, 0))
                        }
                        None => runs.len().max(1).to_string(),
                    },
                    us(number(report, "/latency_us/p50")),
                    us(number(report, "/latency_us/p99")),
                    shown("/server_cpu_pct", 1.0),
                    shown("/client_busy_share", 100.0),
                    kinds.join(", "),
                ]);
                if let Some(ops) = number(report, "/ops_per_sec") {
                    points.push(Point {
                        values: values.clone(),
                        ops,
                        p99: number(report, "/latency_us/p99"),
                    });
                }
            }
            (error, _) => row.push(error.unwrap_or("not measured").to_owned()),
        }
        // Behind the reason nothing more is known.
        row.resize(table.head.len(), String::new());
        table.rows.push(row);
    }
    let options: Vec<String> = list(result, "/options").iter().map(plain).collect();
    if !options.is_empty() {
        section
            .paragraphs
            .push(format!("What all points have in common beside defaults: {}.", options.join(" ")));
    }
    section.figures.extend(scaling(&names, &points).iter().filter_map(|chart| drawing.chart(chart)));
    if section.figures.is_empty() {
        let of =
            |point: &Point| Rate { name: point.values.join(" · "), ops: point.ops, spread: None, colour: 0 };
        let named: Vec<_> = points.iter().map(of).collect();
        section.figures.extend(drawing.bars(&rates("Throughput of each point", &named)));
    }
    section.tables.push(table);
    section
}

/// What one set of values has given.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) values: Vec<String>,
    pub(super) ops: f64,
    pub(super) p99: Option<f64>,
}

/// Throughput and p99 over the first option whose values are numbers, a line for each set of the others. Empty when
/// there is no such option.
pub(super) fn scaling(names: &[String], points: &[Point]) -> Vec<Chart> {
    let is_numeric = |&axis: &usize| {
        let mut values: Vec<f64> =
            points.iter().filter_map(|point| axis_number(point.values.get(axis)?)).collect();
        let count = values.len();
        values.sort_by(f64::total_cmp);
        values.dedup();
        count == points.len() && values.len() > 1
    };
    let Some(axis) = (0..names.len()).find(is_numeric) else { return Vec::new() };
    let chart = |title: String, label: &str, y: Scale, of: &dyn Fn(&Point) -> Option<f64>| {
        let mut series: Vec<Series> = Vec::new();
        for point in points {
            let others = point.values.iter().zip(names).enumerate().filter(|(index, _)| *index != axis);
            let name =
                others.map(|(_, (value, name))| format!("{name} {value}")).collect::<Vec<_>>().join(", ");
            let (Some(x), Some(y)) = (axis_number(&point.values[axis]), of(point)) else { continue };
            match series.iter_mut().find(|one| one.name == name) {
                Some(one) => one.points.push((x, y)),
                None => series.push(line(name, series.len(), vec![(x, y)])),
            }
        }
        for one in &mut series {
            one.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        let values = || series.iter().flat_map(|one| &one.points).map(|point| point.0);
        // From 1 to 64 in doublings would crowd at one end otherwise.
        let is_wide = extent(values()).is_some_and(|(least, most)| least > 0.0 && most / least >= 8.0);
        let scale = if is_wide { Scale::Log } else { Scale::Linear };
        Chart { title, x: Axis::new(names[axis].clone(), scale), y: Axis::new(label, y), series, y_max: None }
    };
    let unit = Unit::of_rates(extent(points.iter().map(|point| point.ops)).map_or(0.0, |(_, most)| most));
    let ops = |point: &Point| Some(point.ops / unit.size);
    vec![
        chart(format!("Throughput by {}", names[axis]), unit.name, Scale::FromZero, &ops),
        chart(format!("p99 by {}", names[axis]), "µs", Scale::Log, &|point| point.p99),
    ]
}

/// The objective of a search in words.
fn objective(result: &Value) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in list(result, "/slo") {
        if let (Some(quantile), Some(limit)) = (number(part, "/quantile"), number(part, "/limit_us")) {
            parts.push(format!("{} within {}", quantile_name(quantile), micros(limit)));
        }
    }
    if let Some(loss) = number(result, "/max_loss") {
        parts.push(if loss == 0.0 {
            "no loss".to_owned()
        } else {
            format!("a loss of at most {} %", significant(loss * 100.0))
        });
    }
    if parts.is_empty() { "the objective".to_owned() } else { parts.join(" and ") }
}

fn search(result: &Value, drawing: &mut Drawing) -> Vec<Section> {
    let mut section = Section::new("Trials");
    let trials = list(result, "/trials");
    // The percentile that the objective names; of several the first.
    let quantile = list(result, "/slo").first().and_then(|part| number(part, "/quantile")).unwrap_or(0.99);
    let named = [(0.5, 0), (0.9, 1), (0.99, 2), (0.999, 3), (0.9999, 4), (1.0, 5)];
    let index =
        named.iter().find(|(known, _)| (known - quantile).abs() < 1e-9).map_or(2, |(_, index)| *index);
    let (field, name) = PERCENTILES[index];
    let rates = trials.iter().filter_map(|trial| number(trial, "/rate"));
    let unit = Unit::of_rates(extent(rates).map_or(0.0, |(_, most)| most));
    let of = |is_kept: bool| -> Vec<(f64, f64)> {
        let those = trials.iter().filter(|trial| flag(trial, "/kept") == Some(is_kept));
        let point = |trial: &Value| {
            Some((number(trial, "/rate")? / unit.size, number(trial, &format!("/latency_us/{field}"))?))
        };
        those.filter_map(point).collect()
    };
    let mut series = vec![
        Series { name: "kept".into(), mark: Mark::Dots, colour: 0, points: of(true) },
        Series { name: "missed".into(), mark: Mark::Rings, colour: 1, points: of(false) },
    ];
    let offered = extent(series.iter().flat_map(|one| &one.points).map(|point| point.0));
    let limit = list(result, "/slo").first().and_then(|part| number(part, "/limit_us"));
    if let (Some((least, most)), Some(limit)) = (offered.filter(|(least, most)| most > least), limit) {
        let points = vec![(least, limit), (most, limit)];
        series.push(Series { name: "objective".into(), mark: Mark::Dashed, colour: 5, points });
    }
    let chart = Chart {
        title: format!("{name} by offered rate"),
        x: Axis::new(format!("offered, {}", unit.name), Scale::Linear),
        y: Axis::new(format!("{name}, µs"), Scale::Log),
        series,
        y_max: None,
    };
    section.figures.extend(drawing.chart(&chart));
    let mut table = Table::new(
        "Trials in their order",
        &["offered op/s", "done op/s", "p50 µs", "p99 µs", "p99.9 µs", "loss %", "kept", "why not"],
    );
    for trial in trials {
        let count =
            |pointer: &str| number(trial, pointer).map_or_else(|| "–".into(), |value| grouped(value, 0));
        let latency = |field: &str| us(number(trial, &format!("/latency_us/{field}")));
        table.rows.push(vec![
            count("/rate"),
            count("/ops_per_sec"),
            latency("p50"),
            latency("p99"),
            latency("p999"),
            number(trial, "/loss").map_or_else(|| "–".into(), |loss| significant(loss * 100.0)),
            at(trial, "/kept").map_or_else(|| "–".into(), plain),
            text(trial, "/why").unwrap_or("").to_owned(),
        ]);
    }
    section.tables.push(table);
    if let Some(confidence) = at(result, "/confidence").and_then(Value::as_object) {
        let mut table = Table::new("How sure that is", &[]);
        table.rows =
            confidence.iter().map(|(name, value)| vec![name.replace('_', " "), plain(value)]).collect();
        table.is_text = true;
        section.tables.push(table);
    }
    let mut sections = vec![section];
    if let Some(report) = at(result, "/report").filter(|report| report.is_object()) {
        // Without a rate it is the run that ended the search.
        let which = match number(result, "/rate") {
            Some(_) => "at the highest rate kept",
            None => "of the run that ended the search",
        };
        let run = run::sections(report, drawing);
        sections.extend(
            run.into_iter()
                .map(|section| Section { heading: format!("{} {which}", section.heading), ..section }),
        );
    }
    sections
}

fn peers(result: &Value, drawing: &mut Drawing) -> Section {
    let mut section = Section::new("Throughput");
    let ours = at(result, "/linerate").filter(|ours| ours.is_object());
    let own_name = match ours.and_then(|ours| text(ours, "/transport")) {
        Some(transport) => format!("linerate ({transport})"),
        None => "linerate".to_owned(),
    };
    let label = |peer: &Value| match (text(peer, "/name"), text(peer, "/version")) {
        (Some(name), Some(version)) => format!("{name} {version}"),
        (name, _) => name.unwrap_or("unnamed").to_owned(),
    };
    let peers = list(result, "/peers");
    let all: Vec<(String, &Value)> = ours
        .map(|ours| (own_name, ours))
        .into_iter()
        .chain(peers.iter().map(|peer| (label(peer), peer)))
        .collect();
    let is_ours = |one: &Value| ours.is_some_and(|ours| std::ptr::eq(ours, one));
    let of = |(name, one): &(String, &Value)| {
        let (ops, colour) = (number(one, "/ops_per_sec")?, usize::from(!is_ours(one)));
        Some(Rate { name: name.clone(), ops, spread: spread(one), colour })
    };
    let named: Vec<_> = all.iter().filter_map(of).collect();
    section.figures.extend(drawing.bars(&rates("Operations per second", &named)));
    let own = ours.and_then(|ours| number(ours, "/ops_per_sec"));
    let ratio_of = |one: &Value| {
        let known = text(one, "/name").and_then(|name| at(result, "/ratios")?.get(name)?.as_f64());
        known.or_else(|| Some(own? / number(one, "/ops_per_sec")?)).filter(|ratio| ratio.is_finite())
    };
    let head = [
        "",
        "op/s",
        "linerate does",
        "limit",
        "server CPU %",
        "client busy %",
        "p50 µs",
        "p99 µs",
        "unanswered",
    ];
    let mut table = Table::new("Each at its best", &head);
    for (name, one) in &all {
        let count =
            |pointer: &str| number(one, pointer).map_or_else(|| "–".into(), |value| grouped(value, 0));
        let ratio = ratio_of(one).filter(|_| !is_ours(one));
        // Of linerate its median round says what it does not say itself.
        let latency = |field: &str| {
            let own = number(one, &format!("/latency_us/{field}"));
            us(own.or_else(|| number(at(one, "/report")?, &format!("/latency_us/{field}"))))
        };
        let busy = number(one, "/client_busy_pct")
            .or_else(|| Some(number(at(one, "/report")?, "/client_busy_share")? * 100.0));
        table.rows.push(vec![
            name.clone(),
            count("/ops_per_sec"),
            ratio.map_or_else(String::new, |ratio| format!("{} ×", significant(ratio))),
            text(one, "/limit").unwrap_or("–").to_owned(),
            count("/server_cpu_pct"),
            busy.map_or_else(|| "–".into(), |busy| grouped(busy, 0)),
            latency("p50"),
            latency("p99"),
            count("/unanswered"),
        ]);
    }
    section.tables.push(table);
    let mut asked = Table::new("How each was asked", &[]);
    asked.is_text = true;
    asked.rows = all
        .iter()
        .map(|(name, one)| vec![name.clone(), at(one, "/settings").map_or_else(|| "–".into(), plain)])
        .collect();
    section.tables.push(asked);
    let mut tried = Table::new("All settings that were tried, each for a moment", &["", "settings", "op/s"]);
    for (name, one) in &all {
        for setting in list(one, "/tried") {
            tried.rows.push(vec![
                name.clone(),
                text(setting, "/settings").unwrap_or("–").to_owned(),
                number(setting, "/ops_per_sec").map_or_else(|| "–".into(), |ops| grouped(ops, 0)),
            ]);
        }
    }
    if !tried.rows.is_empty() {
        tried.is_folded = true;
        section.tables.push(tried);
    }
    section
}

fn cluster(result: &Value, drawing: &mut Drawing) -> Section {
    let mut section = Section::new("Throughput");
    let points: Vec<(f64, f64)> = list(result, "/ops_per_sec")
        .iter()
        .enumerate()
        .filter_map(|(second, ops)| Some((second as f64 + 0.5, ops.as_f64()?)))
        .collect();
    let unit = Unit::of_rates(extent(points.iter().map(|point| point.1)).map_or(0.0, |(_, most)| most));
    let points = points.into_iter().map(|(second, ops)| (second, ops / unit.size)).collect();
    let chart = Chart {
        title: "Operations of all clients over time".into(),
        x: Axis::new("seconds", Scale::Linear),
        y: Axis::new(unit.name, Scale::FromZero),
        series: vec![line("all", 0, points)],
        y_max: None,
    };
    section.figures.extend(drawing.chart(&chart));
    let nodes = list(result, "/nodes");
    let of = |node: &Value| {
        let (name, ops) = (text(node, "/name")?.to_owned(), number(node, "/median_ops_per_sec")?);
        Some(Rate { name, ops, spread: None, colour: usize::from(text(node, "/role") == Some("server")) })
    };
    let named: Vec<_> = nodes.iter().filter_map(of).collect();
    section.figures.extend(drawing.bars(&rates("Nodes, median of the seconds", &named)));
    let mut table = Table::new(
        "Nodes",
        &[
            "",
            "op/s",
            "CPU %",
            "sent Gbit/s",
            "received Gbit/s",
            "line rate %",
            "NIC drops",
            "socket drops",
            "p50 µs",
            "p99 µs",
        ],
    );
    for node in nodes {
        let shown = |pointer: &str, times: f64, decimals: usize| {
            number(node, pointer).map_or_else(|| "–".to_owned(), |value| grouped(value * times, decimals))
        };
        table.rows.push(vec![
            text(node, "/name").unwrap_or("unnamed").to_owned(),
            shown("/median_ops_per_sec", 1.0, 0),
            shown("/cpu_pct", 1.0, 0),
            shown("/tx_gbit", 1.0, 2),
            shown("/rx_gbit", 1.0, 2),
            shown("/line_rate_share", 100.0, 1),
            shown("/nic_drops", 1.0, 0),
            shown("/udp_rcvbuf_errors", 1.0, 0),
            us(number(node, "/latency_us/p50")),
            us(number(node, "/latency_us/p99")),
        ]);
    }
    section.tables.push(table);
    section
}

fn cluster_series(result: &Value, drawing: &mut Drawing) -> Vec<Section> {
    let points = list(result, "/points");
    let mut all = Section::new("Runs of the series");
    let of = |point: &Value| {
        let (name, ops) = (text(point, "/label")?.to_owned(), number(point, "/total_ops_per_sec")?);
        Some(Rate { name, ops, spread: None, colour: 0 })
    };
    let named: Vec<_> = points.iter().filter_map(of).collect();
    all.figures.extend(drawing.bars(&rates("Operations of all clients", &named)));
    let mut sections = vec![all];
    for point in points {
        let section = cluster(point, drawing);
        sections.push(Section { heading: text(point, "/label").unwrap_or("unnamed").to_owned(), ..section });
    }
    sections
}

fn wire(result: &Value, drawing: &mut Drawing) -> Vec<Section> {
    let mut section = Section::new("Ports");
    let mut refused = Section::new("Not measured");
    let mut named = Vec::new();
    let mut reports: Vec<(String, &Value)> = Vec::new();
    for (name, port) in result.get("ports").and_then(Value::as_object).into_iter().flatten() {
        if let Some(error) = text(port, "/error") {
            refused.paragraphs.push(format!("{name}: {error}"));
        }
        for (name, port) in [(name.clone(), Some(port)), (format!("{name}, shaped link"), port.get("shaped"))]
        {
            if let Some((port, ops)) = port.and_then(|port| Some((port, number(port, "/ops_per_sec")?))) {
                named.push(Rate { name: name.clone(), ops, spread: spread(port), colour: 0 });
                reports.push((name, port));
            }
        }
    }
    section.figures.extend(drawing.bars(&rates("Median of the rounds, with their spread", &named)));
    let mut table = Table::new(
        "Ports",
        &[
            "",
            "op/s",
            "replies/s",
            "Gbit/s",
            "line rate %",
            "p50 µs",
            "p99 µs",
            "server CPU %",
            "client CPU %",
            "ceiling op/s",
        ],
    );
    for (name, port) in &reports {
        let shown = |pointer: &str, times: f64, decimals: usize| {
            number(port, pointer).map_or_else(|| "–".to_owned(), |value| grouped(value * times, decimals))
        };
        table.rows.push(vec![
            name.clone(),
            shown("/ops_per_sec", 1.0, 0),
            shown("/reply_datagrams_per_sec", 1.0, 0),
            shown("/gbit_per_sec", 1.0, 2),
            shown("/line_rate_share", 100.0, 1),
            us(number(port, "/latency_us/p50")),
            us(number(port, "/latency_us/p99")),
            shown("/server_cpu_pct", 1.0, 0),
            shown("/client_cpu_pct", 1.0, 0),
            shown("/ceiling_ops_per_sec", 1.0, 0),
        ]);
    }
    section.tables.push(table);
    vec![section, refused]
}

fn store(result: &Value, drawing: &mut Drawing) -> Section {
    let mut section = Section::new("Time per operation");
    let fields = result.as_object().into_iter().flatten();
    let bars: Vec<Bar> = fields
        .filter_map(|(field, value)| {
            let ns = value.as_f64()?;
            let name = field.strip_suffix("_ns")?.replace('_', " ");
            let colour =
                usize::from(["hashbrown", "std", "dashmap"].iter().any(|table| name.starts_with(table)));
            let spread = result.get("spread").and_then(|all| spread(all.get(field)?));
            Some(Bar { label: name, value: ns, spread, shown: format!("{} ns", significant(ns)), colour })
        })
        .take(BARS_MAX)
        .collect();
    let bars = Bars {
        title: "Nanoseconds per operation, with the spread of the rounds".into(),
        label: "ns".into(),
        bars,
    };
    section.figures.extend(drawing.bars(&bars));
    for mut table in numbers(result).tables {
        table.is_folded = true;
        section.tables.push(table);
    }
    section
}

fn cache(result: &Value, drawing: &mut Drawing) -> Section {
    let mut section = Section::new("Hit ratios");
    let cells = list(result, "/cells");
    let policies: Vec<String> = cells
        .first()
        .and_then(|cell| cell.get("references_pct")?.as_object())
        .map_or_else(Vec::new, |references| references.keys().cloned().collect());
    let mut traces: Vec<&str> = Vec::new();
    for trace in cells.iter().filter_map(|cell| text(cell, "/trace")) {
        if !traces.contains(&trace) {
            traces.push(trace);
        }
    }
    for trace in traces.iter().take(CHARTS_MAX) {
        let of = |name: &str, colour: usize, pointer: String| {
            let cells = cells.iter().filter(|cell| text(cell, "/trace") == Some(trace));
            line(
                name,
                colour,
                cells
                    .filter_map(|cell| Some((number(cell, "/share_pct")?, number(cell, &pointer)?)))
                    .collect(),
            )
        };
        let mut series = vec![of("linerate", 0, "/store_pct".into())];
        let others = policies.iter().enumerate();
        series.extend(
            others.map(|(index, name)| {
                of(&name.replace('_', " "), index + 1, format!("/references_pct/{name}"))
            }),
        );
        let chart = Chart {
            title: (*trace).to_owned(),
            x: Axis::new("room for % of the keys", Scale::Log),
            y: Axis::new("hits, %", Scale::FromZero),
            series,
            y_max: None,
        };
        section.figures.extend(drawing.chart(&chart));
    }
    let mut table = Table::new("Hits, %", &["trace", "room %", "linerate"]);
    table.head.extend(policies.iter().map(|name| name.replace('_', " ")));
    for cell in cells {
        let shown =
            |pointer: &str| number(cell, pointer).map_or_else(|| "–".to_owned(), |value| grouped(value, 1));
        let mut row = vec![
            text(cell, "/trace").unwrap_or("unnamed").to_owned(),
            cell.get("share_pct").map_or_else(|| "–".into(), plain),
            shown("/store_pct"),
        ];
        row.extend(policies.iter().map(|name| shown(&format!("/references_pct/{name}"))));
        table.rows.push(row);
    }
    section.tables.push(table);
    section
}

/// Small charts of one section, at most.
const CHARTS_MAX: usize = 24;

/// All numbers of a result for which there is no better table.
fn numbers(result: &Value) -> Section {
    let mut table = Table::new("All numbers", &["", "value"]);
    let mut waiting: Vec<(String, &Value)> = vec![(String::new(), result)];
    while let Some((path, value)) = waiting.pop() {
        let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path} › {name}") };
        match value {
            _ if table.rows.len() == NUMBERS_MAX => break,
            Value::Object(fields) => {
                let fields =
                    fields.iter().rev().filter(|(name, _)| !["environment", "config"].contains(&&***name));
                waiting.extend(fields.map(|(name, value)| (below(&name.replace('_', " ")), value)));
            }
            Value::Array(items) => {
                let items = items.iter().enumerate().rev();
                waiting.extend(items.map(|(index, value)| (below(&(index + 1).to_string()), value)));
            }
            Value::Number(number) => {
                table.rows.push(vec![path, number.as_f64().map_or_else(|| number.to_string(), significant)]);
            }
            other => table.rows.push(vec![path, plain(other)]),
        }
    }
    let mut section = Section::new("Numbers");
    if !waiting.is_empty() {
        section.paragraphs.push(format!("The first {NUMBERS_MAX} are shown; result.json has them all."));
    }
    section.tables.push(table);
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(values: &[&str], ops: f64) -> Point {
        Point { values: values.iter().map(|&value| value.to_owned()).collect(), ops, p99: Some(1.0) }
    }

    /// Goal: the axis is the option whose values are numbers, whichever it is, the other ones make the lines, and points are in
    /// order. Method: a sweep of transport by batch in an arbitrary order.
    #[test]
    fn scaling_is_over_the_numbers() {
        let names = ["transport".to_owned(), "batch".to_owned()];
        let points = [
            point(&["udp", "64"], 4.0),
            point(&["tcp", "1"], 1.0),
            point(&["udp", "2"], 2.0),
            point(&["tcp", "9"], 3.0),
        ];
        let charts = scaling(&names, &points);
        assert_eq!((charts.len(), &*charts[0].x.label, charts[0].x.scale), (2, "batch", Scale::Log));
        let lines: Vec<_> = charts[0].series.iter().map(|line| (&*line.name, &*line.points)).collect();
        let udp = [(2.0, 2.0), (64.0, 4.0)];
        let tcp = [(1.0, 1.0), (9.0, 3.0)];
        assert_eq!(lines, [("transport udp", &udp[..]), ("transport tcp", &tcp[..])]);
        assert!(scaling(&names[..1], &[point(&["udp"], 1.0), point(&["tcp"], 1.0)]).is_empty());
    }
}
