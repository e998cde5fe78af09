//! Several results side by side, and whether they differ by more than the noise.

use serde_json::Value;

use super::{
    chart::{Axis, Chart, Scale, Series},
    figures::{Unit, extent, grouped, median, micros, rate},
    folder::{Folder, Kind, list, number, over_time, plain, text},
    kinds::{self, Point, Rate},
    noise::{self, SECONDS_MIN},
    page::{Drawing, Section, Table},
    run::{self, PERCENTILES},
};

/// Facts that make two results ones of different machines.
const MACHINE: [&str; 4] = ["processor", "cores", "kernel", "memory"];

/// Results of the same configuration, commit and machine.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub(super) name: String,
    pub(super) folders: Vec<&'a Folder>,
}

impl Group<'_> {
    fn figures(&self) -> Vec<f64> {
        self.folders.iter().filter_map(|folder| folder.ops_per_sec()).collect()
    }

    /// The p99 of each run in µs.
    fn latencies(&self) -> Vec<f64> {
        self.folders.iter().filter_map(|folder| number(folder.run()?, "/latency_us/p99")).collect()
    }

    /// What the group's name stands for in a sentence.
    pub(super) fn described(&self) -> String {
        match self.folders.len() {
            1 => self.name.clone(),
            count => format!("{} ({count} runs)", self.name),
        }
    }
}

/// The configuration without what repeats may differ in.
fn configuration(folder: &Folder) -> Vec<(String, String)> {
    let fields = folder.config().and_then(Value::as_object).into_iter().flatten();
    // The rate of a search's run is what was found, and no setting.
    let is_setting = |name: &str| name != "seed" && !(name == "rate" && folder.kind == Kind::Search);
    fields.filter(|(name, _)| is_setting(name)).map(|(name, value)| (name.clone(), plain(value))).collect()
}

/// What a result tells about a system, which only a result that tells the same is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Measure {
    /// How much it can do: a closed loop.
    Throughput,
    /// How long operations take at this rate: an open loop. Its throughput is what was asked for.
    Latency(f64),
    /// The highest rate that keeps objectives.
    HighestRate,
}

fn measure(folder: &Folder) -> Measure {
    let offered = number(&folder.result, "/offered_ops_per_sec");
    match folder.kind {
        Kind::Search => Measure::HighestRate,
        _ if text(&folder.result, "/loop") == Some("open") || offered.is_some() => {
            Measure::Latency(offered.unwrap_or(0.0))
        }
        _ => Measure::Throughput,
    }
}

/// Whether it is known which program it was: sources that were changed may be any.
fn has_known_program(folder: &Folder) -> bool {
    folder.fact("commit").is_some_and(|commit| !commit.ends_with("-dirty") && commit != "–")
}

/// Those that repeat each other together, in the order of the first of each.
pub(super) fn groups<'a>(folders: &[&'a Folder]) -> Vec<Group<'a>> {
    let is_repeat = |a: &Folder, b: &Folder| {
        let facts = MACHINE.iter().chain(&["commit", "build"]);
        has_known_program(a)
            && is_configured_alike(a, b)
            && facts.into_iter().all(|fact| a.fact(fact) == b.fact(fact))
    };
    let mut groups: Vec<Group<'a>> = Vec::new();
    for &folder in folders {
        match groups.iter_mut().find(|group| is_repeat(group.folders[0], folder)) {
            Some(group) => group.folders.push(folder),
            None => groups.push(Group { name: folder.name.clone(), folders: vec![folder] }),
        }
    }
    for group in groups.iter_mut().filter(|group| group.folders.len() > 1) {
        let mut stems = group.folders.iter().map(|folder| stem(&folder.name));
        let first = stem(&group.folders[0].name);
        if stems.all(|stem| stem == first) {
            group.name = first.to_owned();
        }
    }
    groups
}

fn is_configured_alike(a: &Folder, b: &Folder) -> bool {
    folder_has_configuration(a)
        && a.kind == b.kind
        && measure(a) == measure(b)
        // A search is told by what was searched for; its run has another rate each time.
        && ["/slo", "/max_loss"].iter().all(|what| a.result.pointer(what) == b.result.pointer(what))
        && configuration(a) == configuration(b)
}

fn folder_has_configuration(folder: &Folder) -> bool {
    folder.config().and_then(Value::as_object).is_some_and(|config| !config.is_empty())
}

/// A folder's name without the number of the repeat.
fn stem(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((stem, number))
            if matches!(number.len(), 1 | 2) && number.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            stem
        }
        _ => name,
    }
}

/// Each against the first, in sentences, and of repeats how far they lie apart.
pub(super) fn verdicts(groups: &[Group<'_>]) -> Vec<String> {
    let [first, rest @ ..] = groups else { return Vec::new() };
    if !rest.is_empty() {
        return rest.iter().map(|group| against(group, first)).collect();
    }
    // What repeats of one configuration differ by is the noise itself, whatever their seconds say.
    let spread = |figures: &[f64]| {
        let (median, (least, most)) = (median(figures)?, extent(figures.iter().copied())?);
        let share = if median > 0.0 { (most - least) / median * 100.0 } else { 0.0 };
        Some((median, format!("from the least to the most {} % of it", grouped(share, 1))))
    };
    let [_, _, ..] = &first.folders[..] else { return Vec::new() };
    let mut verdicts = Vec::new();
    if let Some((median, spread)) = spread(&first.figures()) {
        verdicts.push(format!(
            "All are repeats of one configuration on one machine: median {}, and {spread}.",
            rate(median)
        ));
    }
    if matches!(measure(first.folders[0]), Measure::Latency(_))
        && let Some((median, spread)) = spread(&first.latencies())
    {
        verdicts.push(format!("Of p99 the median is {}, and {spread}.", micros(median)));
    }
    verdicts
}

fn against(group: &Group<'_>, base: &Group<'_>) -> String {
    let (name, base_name) = (group.described(), base.described());
    match (measure(group.folders[0]), measure(base.folders[0])) {
        (Measure::Throughput, Measure::Throughput) => throughput_against(group, base),
        (Measure::HighestRate, Measure::HighestRate) => rate_against(group, base),
        (Measure::Latency(offered), Measure::Latency(other)) if offered == other => {
            latency_against(group, base)
        }
        (Measure::Latency(offered), Measure::Latency(other)) => format!(
            "{name} and {base_name}: not compared, as {} were offered to the one and {} to the other, which decides \
             both throughput and latency. `linerate-bench search` finds the highest rate that keeps an objective.",
            rate(offered),
            rate(other)
        ),
        (one, other) => format!(
            "{name} and {base_name}: not compared, as the one is {} and the other {}.",
            one.described(),
            other.described()
        ),
    }
}

impl Measure {
    const fn described(self) -> &'static str {
        match self {
            Self::Throughput => "a closed loop, which does as much as it can",
            Self::Latency(_) => "an open loop, which does what it is asked for",
            Self::HighestRate => "a search for the highest rate that keeps an objective",
        }
    }
}

/// Words for more and less throughput.
const SPEEDS: (&str, &str) = ("faster", "slower");

fn throughput_against(group: &Group<'_>, base: &Group<'_>) -> String {
    let (name, base_name) = (group.described(), base.described());
    if let Some(difference) = noise::by_repeats(&group.figures(), &base.figures()) {
        return format!("{}, judged by the repeats.", difference.sentence(&name, &base_name, SPEEDS));
    }
    let seconds = |folder: &Folder| -> Vec<f64> { folder.seconds().iter().map(|point| point.1).collect() };
    if let ([one], [other]) = (&group.folders[..], &base.folders[..])
        && let Some(difference) = noise::by_seconds(&seconds(one), &seconds(other))
    {
        return format!(
            "{}, judged by the seconds of each; what differs from start to start only repeats can tell.",
            difference.sentence(&name, &base_name, SPEEDS)
        );
    }
    untold(
        &format!("{name} and {base_name}"),
        (&group.figures(), &base.figures()),
        rate,
        &format!("{SECONDS_MIN} seconds of both, or repeats (two of both, or three of one)"),
    )
}

fn rate_against(group: &Group<'_>, base: &Group<'_>) -> String {
    let (name, base_name) = (group.described(), base.described());
    if ["/slo", "/max_loss"]
        .iter()
        .any(|what| group.folders[0].result.pointer(what) != base.folders[0].result.pointer(what))
    {
        return format!("{name} and {base_name}: not compared, as they were to keep different objectives.");
    }
    match noise::by_repeats(&group.figures(), &base.figures()) {
        Some(difference) => {
            format!("{}, judged by the repeats.", difference.sentence(&name, &base_name, SPEEDS))
        }
        None => untold(
            &format!("The highest rates of {name} and {base_name}"),
            (&group.figures(), &base.figures()),
            rate,
            "repeats (two searches of both, or three of one)",
        ),
    }
}

/// The p99 of open loops that were offered the same.
fn latency_against(group: &Group<'_>, base: &Group<'_>) -> String {
    const LENGTHS: (&str, &str) = ("longer", "shorter");
    let (name, base_name) =
        (format!("the p99 of {}", group.described()), format!("the p99 of {}", base.described()));
    let offered = "Both are open loops, so their throughput is what was offered; ";
    if let Some(difference) = noise::by_repeats(&group.latencies(), &base.latencies()) {
        let sentence = difference.sentence(&name, &base_name, LENGTHS);
        return format!("{offered}{sentence}, judged by the repeats.");
    }
    let seconds = |folder: &Folder| -> Vec<f64> {
        let series = folder.run().map_or(&[][..], |run| list(run, "/series"));
        over_time(series, "/latency_us/p99").iter().map(|point| point.1).collect()
    };
    if let ([one], [other]) = (&group.folders[..], &base.folders[..])
        && let Some(difference) = noise::by_seconds(&seconds(one), &seconds(other))
    {
        let sentence = difference.sentence(&name, &base_name, LENGTHS);
        return format!(
            "{offered}{sentence}, judged by the p99 of each second; what differs from start to start only repeats can tell."
        );
    }
    let told = untold(
        &format!("{name} and {base_name}"),
        (&group.latencies(), &base.latencies()),
        micros,
        &format!("{SECONDS_MIN} seconds of both, or repeats (two of both, or three of one)"),
    );
    format!("{offered}{told}")
}

/// Two medians of which too little is known.
fn untold(
    names: &str,
    (figures, others): (&[f64], &[f64]),
    shown: fn(f64) -> String,
    it_takes: &str,
) -> String {
    match (median(figures), median(others)) {
        (Some(one), Some(other)) => format!(
            "{names}: {} against {}, but whether that is more than noise cannot be told: it takes {it_takes}.",
            shown(one),
            shown(other)
        ),
        _ => format!("{names}: not comparable, as not both were measured."),
    }
}

/// What the runs of all folders say of themselves.
pub(super) fn own_verdicts(folders: &[&Folder]) -> Vec<String> {
    kinds::verdicts_of(&reports(folders))
}

/// The reports of all folders, each named after its folder.
fn reports<'a>(folders: &[&'a Folder]) -> Vec<(String, &'a Value)> {
    let named = |folder: &&'a Folder| {
        let name = folder.name.clone();
        let of = move |(part, report): (String, &'a Value)| {
            (if part.is_empty() { name.clone() } else { format!("{name} › {part}") }, report)
        };
        folder.reports().into_iter().map(of).collect::<Vec<_>>()
    };
    folders.iter().flat_map(named).collect()
}

/// What else differs than what was asked for.
pub(super) fn warnings(folders: &[&Folder]) -> Vec<String> {
    let mut warnings = Vec::new();
    for fact in MACHINE {
        let mut values: Vec<&str> = folders.iter().filter_map(|folder| folder.fact(fact)).collect();
        values.sort_unstable();
        values.dedup();
        if values.len() > 1 {
            warnings.push(format!(
                "Not the same {fact}: {}. A difference may be the machine's.",
                values.join("; ")
            ));
        }
    }
    let trips = folders.iter().filter_map(|folder| number(folder.run()?, "/core_to_core_ns"));
    if let Some((least, most)) = extent(trips.filter(|&ns| ns > 0.0))
        && most > 2.0 * least
    {
        warnings.push(format!(
            "A cache line took from {} ns to {} ns between the cores of server and client and back: on loopback that alone \
             can make a difference.",
            grouped(least, 0),
            grouped(most, 0)
        ));
    }
    let partial: Vec<&str> =
        folders.iter().filter(|folder| folder.is_partial()).map(|folder| &*folder.name).collect();
    if !partial.is_empty() {
        warnings.push(format!("PARTIAL: {}.", partial.join(", ")));
    }
    let debug: Vec<&str> = folders
        .iter()
        .filter(|folder| folder.fact("build") == Some("debug"))
        .map(|folder| &*folder.name)
        .collect();
    if !debug.is_empty() {
        warnings.push(format!("Built without --release, so the figures mean nothing: {}.", debug.join(", ")));
    }
    let unknown: Vec<&str> =
        folders.iter().filter(|folder| !has_known_program(folder)).map(|folder| &*folder.name).collect();
    let is_alike = |(index, one): (usize, &&Folder)| {
        folders[index + 1..].iter().any(|other| is_configured_alike(one, other))
    };
    if !unknown.is_empty() && folders.iter().enumerate().any(is_alike) {
        warnings.push(format!(
            "Of what sources it was built is not known, so it is no repeat of another: {}.",
            unknown.join(", ")
        ));
    }
    for folder in folders {
        let of = |warning: String| format!("{}: {warning}", folder.name);
        warnings.extend(kinds::alarms(folder).into_iter().chain(folder.notes.iter().cloned()).map(of));
    }
    warnings
}

/// The sections that show them side by side.
pub(super) fn sections(groups: &[Group<'_>], drawing: &mut Drawing) -> Vec<Section> {
    let folders: Vec<&Folder> = groups.iter().flat_map(|group| &group.folders).copied().collect();
    let sections = [
        throughput(groups, drawing),
        scaling(&folders, drawing),
        latency(groups, drawing),
        differences(&folders),
    ];
    sections.into_iter().filter(|section| !section.is_empty()).collect()
}

/// A line for each folder, in the colour of its group.
fn lines(groups: &[Group<'_>], points: impl Fn(&Folder) -> Vec<(f64, f64)>) -> Vec<Series> {
    let of_group = |(index, group): (usize, &Group<'_>)| -> Vec<Series> {
        let folders = group.folders.iter();
        folders.map(|folder| run::line(folder.name.clone(), index, points(folder))).collect()
    };
    let mut lines: Vec<Series> = groups.iter().enumerate().flat_map(of_group).collect();
    lines.retain(|line| !line.points.is_empty());
    // One group alone has colours to spare.
    if groups.len() == 1 {
        for (index, line) in lines.iter_mut().enumerate() {
            line.colour = index;
        }
    }
    lines
}

fn throughput(groups: &[Group<'_>], drawing: &mut Drawing) -> Section {
    let mut section = Section::new("Throughput");
    let of = |(colour, group): (usize, &Group<'_>)| {
        let figures = group.figures();
        let spread = extent(figures.iter().copied()).filter(|_| figures.len() > 1);
        Some(Rate { name: group.described(), ops: median(&figures)?, spread, colour })
    };
    let named: Vec<_> = groups.iter().enumerate().filter_map(of).collect();
    section.figures.extend(drawing.bars(&kinds::rates("Median of the runs, with their spread", &named)));
    let mut series = lines(groups, Folder::seconds);
    let most = extent(series.iter().flat_map(|one| &one.points).map(|point| point.1));
    let unit = Unit::of_rates(most.map_or(0.0, |(_, most)| most));
    for point in series.iter_mut().flat_map(|one| &mut one.points) {
        point.1 /= unit.size;
    }
    let chart = Chart {
        title: "Operations over time".into(),
        x: Axis::new("seconds", Scale::Linear),
        y: Axis::new(unit.name, Scale::FromZero),
        series,
        y_max: None,
    };
    section.figures.extend(drawing.chart(&chart));

    // What all runs know is a row; each is a column, as there are more figures than runs.
    let columns: Vec<(&str, Vec<(&str, String)>)> = groups
        .iter()
        .flat_map(|group| &group.folders)
        .map(|folder| {
            let rows = match folder.run() {
                Some(run) => run::figures(run),
                None => folder
                    .ops_per_sec()
                    .map(|ops| ("operations", format!("{} op/s", grouped(ops, 0))))
                    .into_iter()
                    .collect(),
            };
            (&*folder.name, rows)
        })
        .collect();
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in columns.iter().flat_map(|(_, rows)| rows) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let mut table = Table::new("What was measured", &[""]);
    table.head.extend(columns.iter().map(|(name, _)| (*name).to_owned()));
    for name in names {
        let cell = |rows: &[(&str, String)]| {
            let found = rows.iter().find(|(known, _)| *known == name);
            found.map_or_else(|| "–".to_owned(), |(_, figure)| figure.clone())
        };
        table
            .rows
            .push([name.to_owned()].into_iter().chain(columns.iter().map(|(_, rows)| cell(rows))).collect());
    }
    section.tables.push(table);
    section
}

/// Options that a system scales with, in the order in which they are looked for.
const SCALES: [&str; 10] = [
    "threads",
    "server_cores",
    "sessions",
    "batch",
    "window",
    "value_len",
    "records",
    "theta",
    "read_share",
    "rate",
];

/// Throughput by what differs between the runs, when that is a number.
fn scaling(folders: &[&Folder], drawing: &mut Drawing) -> Section {
    let mut section = Section::new("Scaling");
    let value = |folder: &Folder, name: &str| -> Option<String> {
        if name == "nodes" {
            return Some(folder.config()?.pointer("/servers/count")?.to_string());
        }
        Some(plain(folder.config()?.get(name)?))
    };
    let differs = |name: &&str| {
        let mut values: Vec<_> = folders.iter().map(|folder| value(folder, name)).collect();
        values.sort();
        values.dedup();
        values.len() > 1 && values.iter().all(Option::is_some)
    };
    let options =
        ["nodes"].into_iter().chain(SCALES).chain(["transport", "workload", "distribution", "idle"]);
    let names: Vec<String> = options.filter(differs).map(str::to_owned).collect();
    let points: Vec<Point> = folders
        .iter()
        .filter_map(|folder| {
            Some(Point {
                values: names.iter().map(|name| value(folder, name)).collect::<Option<_>>()?,
                ops: folder.ops_per_sec()?,
                p99: folder.run().and_then(|run| number(run, "/latency_us/p99")),
            })
        })
        .collect();
    section.figures.extend(kinds::scaling(&names, &points).iter().filter_map(|chart| drawing.chart(chart)));
    section
}

fn latency(groups: &[Group<'_>], drawing: &mut Drawing) -> Section {
    let mut section = Section::new("Latency");
    let cdf = |folder: &Folder| folder.run().map_or_else(Vec::new, run::cdf);
    section.figures.extend(drawing.chart(&run::distribution(lines(groups, cdf))));
    section.figures.extend(drawing.chart(&run::tail(lines(groups, cdf))));
    let mut table = Table::new("Percentiles of each run, µs", &[""]);
    table.head.extend(PERCENTILES.iter().map(|(_, name)| (*name).to_owned()));
    for folder in groups.iter().flat_map(|group| &group.folders) {
        let Some(run) =
            folder.run().filter(|run| number(run, "/latency_us/max").is_some_and(|max| max > 0.0))
        else {
            continue;
        };
        let cells =
            PERCENTILES.iter().map(|(field, _)| run::us(number(run, &format!("/latency_us/{field}"))));
        table.rows.push([folder.name.clone()].into_iter().chain(cells).collect());
    }
    if !table.rows.is_empty() {
        section.tables.push(table);
    }
    section
}

/// Settings and facts that are not the same in all.
fn differences(folders: &[&Folder]) -> Section {
    let mut section = Section::new("What differs");
    let columns: Vec<Vec<(String, String)>> = folders
        .iter()
        .map(|folder| {
            let command = folder.command.iter().map(|command| ("command".to_owned(), command.clone()));
            let seed = folder
                .config()
                .and_then(|config| config.get("seed"))
                .map(|seed| ("seed".to_owned(), plain(seed)));
            let facts = folder.facts.iter().filter(|(name, _)| name != "seed").cloned();
            command.chain(configuration(folder)).chain(seed).chain(facts).collect()
        })
        .collect();
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in columns.iter().flatten() {
        if !names.contains(&&**name) {
            names.push(name);
        }
    }
    let mut table = Table::new("Settings and machine, where they are not the same", &[""]);
    table.head.extend(folders.iter().map(|folder| folder.name.clone()));
    for name in names {
        let values: Vec<&str> = columns
            .iter()
            .map(|column| column.iter().find(|(known, _)| known == name).map_or("–", |(_, value)| value))
            .collect();
        if values.iter().any(|value| *value != values[0]) {
            table.rows.push([name].into_iter().chain(values).map(str::to_owned).collect());
        }
    }
    if table.rows.is_empty() {
        section.paragraphs.push("Nothing that is known.".to_owned());
    } else {
        table.is_text = true;
        section.tables.push(table);
    }
    section
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folder(name: &str, result: Value) -> Folder {
        Folder::of(name, result)
    }

    /// Goal: repeats are only what is the same in all that was asked for, of the same known sources. Method: pairs that differ in
    /// one thing.
    #[test]
    fn repeats_are_alike_in_all() {
        let run = |change: &dyn Fn(&mut Value)| {
            let mut result = json!({"kind": "run", "loop": "open", "offered_ops_per_sec": 1e6, "ops_per_sec": 1e6,
                "config": {"threads": 1, "seed": 1}, "environment": {"commit": "0123456789ab", "build": "release"}});
            change(&mut result);
            folder("a", result)
        };
        let count =
            |one: &dyn Fn(&mut Value), other: &dyn Fn(&mut Value)| groups(&[&run(one), &run(other)]).len();
        let same = |_: &mut Value| {};
        assert_eq!(count(&same, &same), 1);
        assert_eq!(count(&same, &|run| run["config"]["seed"] = 2.into()), 1);
        assert_eq!(count(&same, &|run| run["config"]["threads"] = 2.into()), 2);
        assert_eq!(count(&same, &|run| run["offered_ops_per_sec"] = 2e6.into()), 2);
        assert_eq!(count(&same, &|run| run["environment"]["build"] = "debug".into()), 2);
        let dirty = |run: &mut Value| run["environment"]["commit"] = "0123456789ab-dirty".into();
        assert_eq!(count(&dirty, &dirty), 2);
        let unknown = |run: &mut Value| run["environment"]["commit"] = Value::Null;
        assert_eq!(count(&unknown, &unknown), 2);
        let warned = warnings(&[&run(&dirty), &run(&dirty)]);
        assert!(warned[0].starts_with("Of what sources it was built is not known"), "{warned:?}");
    }

    /// Goal: only what tells the same of a system is compared, and by the figure that tells. Method: closed loops, open loops of
    /// one rate and of two, and one of each.
    #[test]
    fn loops_are_compared_by_what_they_measure() {
        let run = |name: &str, offered: Option<f64>, ops: f64, p99: f64| {
            let point = |second: u32| {
                // No two alike, so that there is noise.
                let part = f64::from(second * 7 % 5) / 1e3 + 1.0;
                json!({"ops_per_sec": ops * part, "latency_us": {"p99": p99 * part}})
            };
            let series: Vec<Value> = (0..12).map(point).collect();
            let kind = if offered.is_some() { "open" } else { "closed" };
            folder(
                name,
                json!({"kind": "run", "loop": kind, "offered_ops_per_sec": offered, "ops_per_sec": ops,
                "latency_us": {"p99": p99}, "series": series}),
            )
        };
        let told = |one: &Folder, other: &Folder| verdicts(&groups(&[one, other])).join(" ");
        let closed = run("a", None, 2e6, 100.0);
        let text = told(&closed, &run("b", None, 1e6, 100.0));
        assert!(text.starts_with("b is slower than a by 50.0 %"), "{text}");
        let open = run("a", Some(1e6), 1e6, 100.0);
        let text = told(&open, &run("b", Some(1e6), 0.9e6, 200.0));
        assert!(
            text.contains("the p99 of b is longer than the p99 of a by 100.0 %") && !text.contains("slower"),
            "{text}"
        );
        let text = told(&open, &run("b", Some(2e6), 2e6, 200.0));
        assert!(
            text.contains("not compared, as 2.00 M op/s were offered to the one and 1.00 M op/s"),
            "{text}"
        );
        let text = told(&closed, &open);
        assert!(text.contains("not compared, as the one is an open loop"), "{text}");
        let search = |name: &str, limit: f64, rate: f64| {
            let slo = json!([{"quantile": 0.99, "limit_us": limit}]);
            folder(name, json!({"kind": "search", "slo": slo, "ops_per_sec": rate}))
        };
        let text = told(&search("a", 500.0, 1e6), &search("b", 500.0, 2e6));
        assert!(text.contains("2.00 M op/s against 1.00 M op/s, but whether"), "{text}");
        let text = told(&search("a", 500.0, 1e6), &search("b", 900.0, 2e6));
        assert!(text.contains("different objectives"), "{text}");
    }

    #[test]
    fn the_number_of_a_repeat_is_left_out() {
        for (name, expected) in [
            ("2026-11-20-veth-1", "2026-11-20-veth"),
            ("a-12", "a"),
            ("a-2026", "a-2026"),
            ("a-b", "a-b"),
            ("a", "a"),
            ("a-", "a-"),
        ] {
            assert_eq!(stem(name), expected);
        }
    }
}
