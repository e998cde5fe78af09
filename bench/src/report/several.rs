//! Several results side by side, and whether they differ by more than the noise.

use serde_json::Value;

use super::{
    chart::{Axis, Chart, Scale, Series},
    figures::{Unit, extent, grouped, median, rate},
    folder::{Folder, number, plain},
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
    fields.filter(|(name, _)| *name != "seed").map(|(name, value)| (name.clone(), plain(value))).collect()
}

/// Those that repeat each other together, in the order of the first of each.
pub(super) fn groups<'a>(folders: &[&'a Folder]) -> Vec<Group<'a>> {
    let is_repeat = |a: &Folder, b: &Folder| {
        let known = folder_has_configuration(a);
        let facts = MACHINE.iter().chain(&["commit"]);
        known
            && a.kind == b.kind
            && configuration(a) == configuration(b)
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

/// Each against the first, in sentences. Runs that are all repeats of one command are compared one by one.
pub(super) fn verdicts(groups: &[Group<'_>]) -> Vec<String> {
    let mut verdicts = Vec::new();
    if let [group] = groups {
        let figures = group.figures();
        if let (Some(median), Some((least, most))) = (median(&figures), extent(figures.iter().copied())) {
            let spread = if median > 0.0 { (most - least) / median * 100.0 } else { 0.0 };
            verdicts.push(format!(
                "All are repeats of one configuration on one machine: median {}, and from the slowest to the fastest {} % of it.",
                rate(median),
                grouped(spread, 1)
            ));
        }
        let [first, rest @ ..] = &group.folders[..] else { return verdicts };
        verdicts.extend(rest.iter().filter_map(|folder| {
            let difference = noise::by_seconds(&folder.seconds(), &first.seconds())?;
            Some(format!(
                "{}, judged by the seconds of each.",
                difference.sentence(&folder.name, &first.name)
            ))
        }));
        return verdicts;
    }
    let [first, rest @ ..] = groups else { return verdicts };
    for group in rest {
        verdicts.push(against(group, first));
    }
    verdicts
}

fn against(group: &Group<'_>, base: &Group<'_>) -> String {
    let (name, base_name) = (group.described(), base.described());
    if let Some(difference) = noise::by_repeats(&group.figures(), &base.figures()) {
        return format!("{}, judged by the repeats.", difference.sentence(&name, &base_name));
    }
    if let ([one], [other]) = (&group.folders[..], &base.folders[..])
        && let Some(difference) = noise::by_seconds(&one.seconds(), &other.seconds())
    {
        return format!(
            "{}, judged by the seconds of each; what differs from start to start only repeats can tell.",
            difference.sentence(&name, &base_name)
        );
    }
    match (median(&group.figures()), median(&base.figures())) {
        (Some(ops), Some(base_ops)) if base_ops > 0.0 => format!(
            "{name} and {base_name}: {} against {}, but whether that is more than noise cannot be told: it takes \
             {SECONDS_MIN} seconds of both, or repeats (two of both, or three of one).",
            rate(ops),
            rate(base_ops)
        ),
        _ => format!("{name} and {base_name}: not comparable, as not both have operations per second."),
    }
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
    let mut series = lines(groups, |folder| {
        let seconds = folder.seconds().into_iter().enumerate();
        seconds.map(|(second, ops)| (second as f64 + 0.5, ops)).collect()
    });
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
    use super::*;

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
