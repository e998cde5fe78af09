//! The README's tables and pictures, made from results that are kept.
//!
//! In the README a part `<!-- generated: NAME from FILE -->` … `<!-- end -->` is replaced by the table NAME of the TOML
//! file FILE, whose rows name result folders beside it, and ports in those of `wire`; a table may have a picture.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{
    chart::{Bar, Bars, shortened, standalone},
    figures::{extent, grouped, median, significant},
    folder::{Folder, number},
    replace,
};

const BEGIN: &str = "<!-- generated: ";
const END: &str = "<!-- end -->";

/// The README's generated parts.
#[derive(Clone, Debug, Args)]
pub struct ReadmeOptions {
    /// Write nothing, and end with 1 when something is not as the results have it
    #[arg(long)]
    pub check: bool,
    /// The folder with README.md, which what it refers to is found from
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub root: PathBuf,
}

/// What the TOML file holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    table: Vec<TableSpec>,
}

/// A table to be made.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableSpec {
    name: String,
    /// Where the picture goes, from the root; none when absent.
    picture: Option<PathBuf>,
    /// What the picture shows, for those who do not see it, and as its title.
    #[serde(default)]
    title: String,
    row: Vec<RowSpec>,
}

/// A row of a table: what was measured, and the results of all its runs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RowSpec {
    label: String,
    /// The label in the picture, which has less room.
    short: Option<String>,
    /// Result folders beside the file.
    runs: Vec<String>,
    /// Which port of results of `wire`; all rows of a table name one, or none does.
    port: Option<String>,
    /// Whether it is that port behind a link of a given rate.
    #[serde(default)]
    shaped: bool,
    /// Which of the picture's colours, 0 to 5.
    #[serde(default)]
    colour: usize,
}

/// A file as it should be.
#[derive(Debug)]
struct Made {
    path: PathBuf,
    text: String,
}

/// Writes what is generated, or with `check` only looks. Returns the files that were not as they should be.
///
/// # Errors
/// When the README, the file that it names or a result cannot be read or says nothing of the kind, and when a file cannot
/// be written; a sentence that names it.
pub fn readme(options: &ReadmeOptions) -> anyhow::Result<Vec<PathBuf>> {
    let path = options.root.join("README.md");
    let text = fs::read_to_string(&path).with_context(|| {
        format!(
            "cannot read \"{}\"; start this in the folder that has it, or name that with --root",
            path.display()
        )
    })?;
    let (text, pictures) =
        generate(&text, &options.root).with_context(|| format!("\"{}\"", path.display()))?;
    let mut changed = Vec::new();
    for made in [Made { path, text }].into_iter().chain(pictures) {
        if fs::read(&made.path).is_ok_and(|bytes| bytes == made.text.as_bytes()) {
            continue;
        }
        if !options.check {
            if let Some(folder) = made.path.parent() {
                fs::create_dir_all(folder)
                    .with_context(|| format!("cannot create the folder \"{}\"", folder.display()))?;
            }
            replace(&made.path, &made.text)?;
        }
        changed.push(made.path);
    }
    Ok(changed)
}

/// The text with its generated parts made anew, and the pictures that belong to them.
fn generate(text: &str, root: &Path) -> anyhow::Result<(String, Vec<Made>)> {
    let mut made = String::with_capacity(text.len());
    let mut pictures = Vec::new();
    let mut rest = text;
    while let Some((before, from_marker)) = rest.split_once(BEGIN) {
        let (marker, behind) =
            from_marker.split_once("-->").context("a mark of a generated part does not end with -->")?;
        let (name, file) = marker
            .trim()
            .split_once(" from ")
            .with_context(|| format!("the mark \"{}\" must say NAME from FILE", marker.trim()))?;
        let (old, after) =
            behind.split_once(END).with_context(|| format!("the generated part \"{name}\" has no {END}"))?;
        anyhow::ensure!(!old.contains(BEGIN), "the generated part \"{name}\" has no {END}");
        let (table, picture) = table(name, file, root)?;
        made += &format!("{before}{BEGIN}{} -->\n{table}{END}", marker.trim());
        pictures.extend(picture);
        rest = after;
    }
    anyhow::ensure!(
        !made.is_empty(),
        "it has no generated part; mark one with {BEGIN}NAME from FILE --> and {END}"
    );
    Ok((made + rest, pictures))
}

/// One table as Markdown, and its picture.
fn table(name: &str, file: &str, root: &Path) -> anyhow::Result<(String, Option<Made>)> {
    let path = root.join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read \"{}\"", path.display()))?;
    let tables: Tables =
        toml::from_str(&text).with_context(|| format!("\"{}\" is damaged", path.display()))?;
    let spec = tables.table.iter().find(|table| table.name == name);
    let spec = spec.with_context(|| format!("\"{}\" has no table \"{name}\"", path.display()))?;
    let folder = path.parent().unwrap_or(root);
    let rows: Vec<Row<'_>> = spec.row.iter().map(|row| Row::read(row, folder)).collect::<Result<_, _>>()?;
    let of_ports = rows.iter().filter(|row| row.spec.port.is_some()).count();
    anyhow::ensure!(
        of_ports == 0 || of_ports == rows.len(),
        "of the table \"{name}\" some rows name a port and some do not, which have other columns"
    );
    let mut markdown = if of_ports > 0 {
        let gbit = number(&rows[0].folders[0].result, "/line_rate_bits_per_sec").map(|bits| bits / 1e9);
        let gbit = gbit.with_context(|| format!("the results of the table \"{name}\" have no line rate"))?;
        format!(
            "| | M op/s, median | slowest to fastest | M reply datagrams/s | share of {} Gbit/s, % |\n|---|---|---|---|---|\n",
            significant(gbit)
        )
    } else {
        String::from("| | M op/s, median | slowest to fastest | p50 / p99 µs |\n|---|---|---|---|\n")
    };
    for row in &rows {
        markdown += &row.markdown();
    }
    markdown += &format!("\n{}\n", origin(&rows, Path::new(file).parent().unwrap_or_else(|| Path::new(""))));
    let Some(picture) = &spec.picture else { return Ok((markdown, None)) };
    markdown += &format!("\n![{}]({})\n", escaped_markdown(&spec.title), picture.display());
    let bars = Bars {
        title: spec.title.clone(),
        label: "M op/s".to_owned(),
        bars: rows.iter().map(Row::bar).collect(),
    };
    let svg = bars.svg("chart").with_context(|| format!("the table \"{name}\" has no row to draw"))?;
    Ok((markdown, Some(Made { path: root.join(picture), text: standalone(&svg) })))
}

/// A row with its results.
struct Row<'a> {
    spec: &'a RowSpec,
    folders: Vec<Folder>,
    /// Of the runs, in M op/s.
    median: f64,
    spread: (f64, f64),
}

impl<'a> Row<'a> {
    fn read(spec: &'a RowSpec, root: &Path) -> anyhow::Result<Self> {
        let folders: Vec<Folder> =
            spec.runs.iter().map(|run| Folder::read(&root.join(run))).collect::<Result<_, _>>()?;
        let rate = |folder: &Folder| {
            let ops = match port(spec, folder) {
                None if spec.port.is_none() => folder.ops_per_sec(),
                port => port.and_then(|port| number(port, "/ops_per_sec")),
            };
            ops.map(|ops| ops / 1e6).with_context(|| {
                let of =
                    spec.port.as_ref().map_or_else(String::new, |port| format!(" of the port \"{port}\""));
                format!("\"{}\" has no operations per second{of}", root.join(&folder.name).display())
            })
        };
        let rates: Vec<f64> = folders.iter().map(rate).collect::<Result<_, _>>()?;
        let none = || format!("the row \"{}\" names no runs", spec.label);
        let median = median(&rates).with_context(none)?;
        let spread = extent(rates).with_context(none)?;
        Ok(Self { spec, folders, median, spread })
    }

    /// The median over the runs of a percentile, where it was measured: a ceiling says 0.
    fn latency(&self, field: &str) -> Option<f64> {
        let us = self.folders.iter().map(|folder| number(folder.run()?, &format!("/latency_us/{field}")));
        median(&us.collect::<Option<Vec<_>>>()?).filter(|&us| us > 0.0)
    }

    /// The median over the runs of a figure of its port.
    fn of_port(&self, pointer: &str) -> Option<f64> {
        let figures = self.folders.iter().map(|folder| number(port(self.spec, folder)?, pointer));
        median(&figures.collect::<Option<Vec<_>>>()?)
    }

    /// What is behind the throughput.
    fn others(&self) -> String {
        if let Some(name) = &self.spec.port {
            // What TCP sends is cut into segments by the kernel, which nobody counts.
            let datagrams = self.of_port("/reply_datagrams_per_sec").filter(|_| name != "tcp");
            let datagrams = datagrams.map_or_else(String::new, |datagrams| grouped(datagrams / 1e6, 2));
            let share = self.of_port("/line_rate_share");
            let share = share.map_or_else(String::new, |share| grouped(share * 100.0, 0));
            return format!("{datagrams} | {share}");
        }
        match (self.latency("p50"), self.latency("p99")) {
            (Some(p50), Some(p99)) => format!("{} / {}", grouped(p50, 0), grouped(p99, 0)),
            _ => String::new(),
        }
    }

    fn markdown(&self) -> String {
        let (least, most) = self.spread;
        let label = escaped_markdown(&self.spec.label);
        let cells =
            [grouped(self.median, 1), format!("{} – {}", grouped(least, 1), grouped(most, 1)), self.others()];
        format!("| {label} | {} |\n", cells.join(" | ")).replace("  ", " ")
    }

    fn bar(&self) -> Bar {
        Bar {
            label: shortened(self.spec.short.as_ref().unwrap_or(&self.spec.label), 60),
            value: self.median,
            spread: Some(self.spread),
            shown: format!("{} M op/s", grouped(self.median, 1)),
            colour: self.spec.colour,
        }
    }
}

/// What the row is of in a result of several ports.
fn port<'a>(spec: &RowSpec, folder: &'a Folder) -> Option<&'a Value> {
    let port = folder.result.get("ports")?.get(spec.port.as_ref()?)?;
    if spec.shaped { port.get("shaped") } else { Some(port) }
}

/// Where the figures come from, in a sentence.
fn origin(rows: &[Row<'_>], results: &Path) -> String {
    let all = || rows.iter().flat_map(|row| &row.folders);
    let shared = |fact: &str| {
        let mut values: Vec<&str> = all().filter_map(|folder| folder.fact(fact)).collect();
        values.sort_unstable();
        values.dedup();
        values.into_iter().map(escaped_markdown).collect::<Vec<_>>().join(", ")
    };
    let counts = extent(rows.iter().map(|row| row.folders.len() as f64)).unwrap_or((0.0, 0.0));
    let runs = match counts {
        (1.0, 1.0) => "One run each".to_owned(),
        (least, most) if least == most => format!("Medians of {most} runs each"),
        (least, most) => format!("Medians of {least} to {most} runs each"),
    };
    let mut days: Vec<&str> = all()
        .filter_map(|folder| folder.fact("date"))
        .map(|date| date.split('T').next().unwrap_or(date))
        .collect();
    days.sort_unstable();
    days.dedup();
    format!(
        "{runs}, on {} with {} cores, Linux {}, commit {}, {}; the runs are under `{}/`.",
        shared("processor"),
        shared("cores"),
        shared("kernel"),
        shared("commit"),
        days.join(", "),
        results.display()
    )
}

/// Text that Markdown takes as it is, in a table and beside one.
fn escaped_markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '|' | '[' | ']' | '*' | '_' | '`' | '<' | '>' | '\\' | '&' => escaped.extend(['\\', letter]),
            control if control.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}
