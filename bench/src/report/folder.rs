//! A result folder as it is found: of this version or an older one, complete or not, from here or from elsewhere.
//!
//! Nothing is taken for granted but that `result.json` is JSON and holds a result: what else is missing was not measured.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde_json::Value;

use super::figures::grouped;
use crate::results::command_line;

/// The largest file that is read: a run of a day with its seconds has a tenth of that.
const FILE_LEN_MAX: u64 = 256 << 20;

/// What a result is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Run,
    Ceiling,
    Compare,
    Sweep,
    Search,
    Peers,
    Cluster,
    ClusterSeries,
    Wire,
    Store,
    StoreSweep,
    Cache,
}

impl Kind {
    /// As its field says, or else as a field says that only it has.
    fn of(result: &Value) -> Option<Self> {
        let has = |name: &str| result.get(name).is_some();
        Some(match text(result, "/kind") {
            Some("run" | "null") => Self::Run,
            Some("ceiling") => Self::Ceiling,
            Some("compare") => Self::Compare,
            Some("sweep") => Self::Sweep,
            Some("search") => Self::Search,
            Some("peers") => Self::Peers,
            Some("cluster") => Self::Cluster,
            Some(_) => return None,
            None if has("ports") => Self::Wire,
            None if has("cells") => Self::Cache,
            None if has("get_ns") => Self::Store,
            None if has("series") && has("points") => Self::ClusterSeries,
            None if has("points") => Self::StoreSweep,
            None => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Run => "Run",
            Self::Ceiling => "Ceiling: the same datagrams without a store",
            Self::Compare => "Comparison in alternating rounds",
            Self::Sweep => "Sweep",
            Self::Search => "Search for the highest rate",
            Self::Peers => "Comparison with other stores",
            Self::Cluster => "Cluster run",
            Self::ClusterSeries => "Series of cluster runs",
            Self::Wire => "Ports on a virtual cable",
            Self::Store => "The store alone",
            Self::StoreSweep => "The store alone, by records",
            Self::Cache => "Hit ratios of a store that evicts",
        }
    }
}

/// One result.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    /// Of the folder, without what it lies in.
    pub(super) name: String,
    pub(super) kind: Kind,
    /// What `result.json` holds.
    pub(super) result: Value,
    /// The command as one line for a shell.
    pub(super) command: Option<String>,
    /// About the machine: name and value.
    pub(super) facts: Vec<(String, String)>,
    /// Files beside the result that could not be used, and why.
    pub(super) notes: Vec<String>,
    is_partial: bool,
}

impl Folder {
    /// # Errors
    /// One sentence that names the file and what is wrong with it.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let metadata = fs::metadata(path);
        let metadata =
            metadata.with_context(|| format!("cannot read the result folder \"{}\"", path.display()))?;
        anyhow::ensure!(
            metadata.is_dir(),
            "\"{}\" is a file; give the folder that has result.json in it",
            path.display()
        );
        let file = path.join("result.json");
        let result = match json(&file) {
            Ok(Some(result)) => result,
            Ok(None) => anyhow::bail!("\"{}\" is no result folder: it has no result.json", path.display()),
            Err(error) => anyhow::bail!("\"{}\" {error}", file.display()),
        };
        let Some(kind) = Kind::of(&result) else {
            anyhow::bail!(
                "\"{}\" holds no result that this version knows: {}",
                file.display(),
                text(&result, "/kind").map_or_else(
                    || "it names no kind".to_owned(),
                    |kind| format!("its kind is \"{}\"", kind.escape_debug())
                )
            );
        };
        let mut notes = Vec::new();
        let manifest = json(&path.join("manifest.json")).unwrap_or_else(|error| {
            notes.push(format!("manifest.json {error}, so nothing of it is shown."));
            None
        });
        let manifest = manifest.unwrap_or(Value::Null);
        // The folder's own name, however it was given: "." has one too.
        let full = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let name =
            full.file_name().map_or_else(|| "result".into(), |name| name.to_string_lossy().into_owned());
        let command = match list(&manifest, "/command") {
            [] => lines(path, "command.txt", &mut notes).map(|text| text.trim().to_owned()),
            words => {
                let words: Vec<String> = words.iter().map(plain).collect();
                Some(command_line(&words).trim().to_owned())
            }
        };
        let is_partial =
            [&manifest, &result].iter().any(|value| value.pointer("/partial") == Some(&Value::Bool(true)));
        let facts = facts(&result, &manifest, lines(path, "machine.txt", &mut notes).as_deref());
        Ok(Self {
            name,
            kind,
            command: command.filter(|text| !text.is_empty()),
            facts,
            notes,
            is_partial,
            result,
        })
    }

    /// A result that lies nowhere.
    #[cfg(test)]
    pub(super) fn of(name: &str, result: Value) -> Self {
        Self {
            name: name.to_owned(),
            kind: Kind::of(&result).expect("the kind is known"),
            command: None,
            facts: facts(&result, &Value::Null, None),
            notes: Vec::new(),
            is_partial: result.pointer("/partial") == Some(&Value::Bool(true)),
            result,
        }
    }

    /// Whether it was interrupted, or part of it failed.
    pub(super) fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// A fact about the machine.
    pub(super) fn fact(&self, name: &str) -> Option<&str> {
        self.facts.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// The report of the one run that it is of, or that stands for it.
    pub(super) fn run(&self) -> Option<&Value> {
        match self.kind {
            Kind::Run | Kind::Ceiling => Some(&self.result),
            Kind::Search => at(&self.result, "/report").filter(|report| report.is_object()),
            _ => None,
        }
    }

    /// Operations per second, the figure that it is about; `None` for what has several or another.
    pub(super) fn ops_per_sec(&self) -> Option<f64> {
        match self.kind {
            Kind::Run | Kind::Ceiling | Kind::Search => number(&self.result, "/ops_per_sec"),
            Kind::Cluster => number(&self.result, "/total_ops_per_sec"),
            Kind::Peers => number(&self.result, "/linerate/ops_per_sec"),
            _ => None,
        }
    }

    /// The middle of each second measured, and operations per second in it; empty when only the total is known.
    pub(super) fn seconds(&self) -> Vec<(f64, f64)> {
        match self.kind {
            Kind::Cluster => {
                let seconds = list(&self.result, "/ops_per_sec").iter().enumerate();
                seconds.filter_map(|(second, ops)| Some((second as f64 + 0.5, ops.as_f64()?))).collect()
            }
            _ => self.run().map_or_else(Vec::new, |run| over_time(list(run, "/series"), "/ops_per_sec")),
        }
    }

    /// What every run in it has reported, and what the run is called; the only one has no name. With those that failed,
    /// as their reasons must not be overlooked.
    pub(super) fn reports(&self) -> Vec<(String, &Value)> {
        let result = &self.result;
        let named = |list: &'static str, name: &dyn Fn(&Value) -> String| -> Vec<(String, &Value)> {
            let of = self::list(result, list).iter();
            of.filter_map(|one| Some((name(one), at(one, "/report")?))).collect()
        };
        let mut reports = match self.kind {
            Kind::Compare => named("/candidates", &|one| text(one, "/name").unwrap_or("unnamed").to_owned()),
            Kind::Sweep => named("/points", &|point| point_name(result, point)),
            Kind::Search => at(result, "/report").map(|report| (String::new(), report)).into_iter().collect(),
            Kind::Peers => {
                let ours = at(result, "/linerate/report").map(|report| ("linerate".to_owned(), report));
                ours.into_iter().collect()
            }
            Kind::Wire => {
                let ports = result.get("ports").and_then(Value::as_object).into_iter().flatten();
                let with_shaped = |(name, port)| {
                    let shaped = at(port, "/shaped").map(|shaped| (format!("{name}, shaped link"), shaped));
                    [(String::clone(name), port)].into_iter().chain(shaped)
                };
                ports.flat_map(with_shaped).collect()
            }
            Kind::ClusterSeries => {
                let points = list(result, "/points").iter();
                points.map(|point| (text(point, "/label").unwrap_or("unnamed").to_owned(), point)).collect()
            }
            Kind::Run | Kind::Ceiling | Kind::Cluster => vec![(String::new(), result)],
            Kind::Store | Kind::StoreSweep | Kind::Cache => Vec::new(),
        };
        reports.retain(|(_, report)| report.is_object());
        reports
    }

    /// What was asked for: of a cluster its spec.
    pub(super) fn config(&self) -> Option<&Value> {
        let of = self.run().unwrap_or(&self.result);
        of.get("config").or_else(|| of.get("spec"))
    }
}

/// All that is known about the machine and the build, each once: from the manifest, or else from `machine.txt`, or else
/// from the result.
fn facts(result: &Value, manifest: &Value, machine: Option<&str>) -> Vec<(String, String)> {
    const ENVIRONMENT: [(&str, &str); 8] = [
        ("date", "date"),
        ("version", "version"),
        ("commit", "commit"),
        ("build", "build"),
        ("kernel", "kernel"),
        ("processor", "cpu_model"),
        ("cores", "cores"),
        ("memory", "memory_bytes"),
    ];
    let mut facts: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: String| {
        if !value.is_empty() && !facts.iter().any(|(known, _)| known == name) {
            facts.push((name.to_owned(), value));
        }
    };
    let environments = [
        manifest.get("environment"),
        result.get("environment"),
        result.pointer("/report/environment"),
        result.pointer("/points/0/environment"),
    ];
    for environment in environments.into_iter().flatten() {
        for (name, field) in ENVIRONMENT {
            match environment.get(field) {
                None | Some(Value::Null) => {}
                Some(bytes) if field == "memory_bytes" => {
                    add(name, bytes.as_f64().map_or_else(String::new, mebibytes));
                }
                Some(value) => add(name, plain(value)),
            }
        }
    }
    if let Some(nic) = manifest.get("nic").filter(|nic| nic.is_object()) {
        let part = |field: &str| nic.get(field).filter(|value| !value.is_null()).map(plain);
        let speed = part("speed_mbit").map(|speed| format!("{speed} Mbit/s"));
        let mtu = part("mtu").map(|mtu| format!("MTU {mtu}"));
        let queues = part("rx_queues").zip(part("tx_queues")).map(|(rx, tx)| format!("{rx} + {tx} queues"));
        let parts = [part("interface"), part("driver"), speed, mtu, queues];
        add("network card", parts.into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
    match manifest.get("tune") {
        None => {}
        Some(Value::Null) => add("tuning", "not known".to_owned()),
        Some(tune) => {
            let profile = text(tune, "/profile").unwrap_or("unnamed profile");
            let applied = tune.get("applied").and_then(Value::as_bool);
            let words = applied.map_or("", |applied| if applied { "applied" } else { "not applied" });
            add("tuning", format!("{profile} {words}").trim().to_owned());
        }
    }
    if let Some(seed) =
        manifest.get("seed").or_else(|| result.pointer("/config/seed")).or_else(|| result.get("seed"))
    {
        add("seed", if seed.is_null() { String::new() } else { plain(seed) });
    }
    for (name, value) in manifest.get("machine").and_then(Value::as_object).into_iter().flatten() {
        add(name, plain(value));
    }
    for (name, value) in machine.unwrap_or("").lines().filter_map(|line| line.split_once(':')) {
        add(name.trim(), value.trim().to_owned());
    }
    facts
}

/// Bytes as MiB.
pub(super) fn mebibytes(bytes: f64) -> String {
    format!("{} MiB", grouped((bytes / 1_048_576.0).floor(), 0))
}

/// JSON of a file; `None` when there is no such file, and an error that says what is wrong with it.
fn json(path: &PathBuf) -> Result<Option<Value>, String> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}")),
        Ok(metadata) if !metadata.is_file() => return Err("is no file".to_owned()),
        Ok(metadata) if metadata.len() > FILE_LEN_MAX => {
            return Err(format!("has more than {} MiB, so it is no result", FILE_LEN_MAX >> 20));
        }
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    match serde_json::from_slice(&bytes) {
        Ok(value @ Value::Object(_)) => Ok(Some(value)),
        Ok(_) => Err("is damaged: it holds no JSON object".to_owned()),
        Err(error) => Err(format!("is damaged: {error}")),
    }
}

/// A small text file beside the result, which may be missing.
fn lines(folder: &Path, name: &str, notes: &mut Vec<String>) -> Option<String> {
    match fs::read(folder.join(name)) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            notes.push(format!("{name} cannot be read: {error}."));
            None
        }
    }
}

/// A point of a sweep by its options and their values.
pub(super) fn point_name(sweep: &Value, point: &Value) -> String {
    let axes = list(sweep, "/axes").iter().map(|axis| text(axis, "/option").unwrap_or("setting"));
    let values = list(point, "/values").iter().map(plain);
    axes.zip(values).map(|(axis, value)| format!("{axis} {value}")).collect::<Vec<_>>().join(" · ")
}

/// What is there, whatever it is; `None` when nothing is.
pub(super) fn at<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    #[cfg(test)]
    super::drift::note(value, pointer);
    value.pointer(pointer)
}

/// The number there; `None` when there is none.
pub(super) fn number(value: &Value, pointer: &str) -> Option<f64> {
    at(value, pointer)?.as_f64()
}

/// The text there.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    at(value, pointer)?.as_str()
}

/// Whether it is said there to be so; `None` when nothing is said.
pub(super) fn flag(value: &Value, pointer: &str) -> Option<bool> {
    at(value, pointer)?.as_bool()
}

/// The list there; empty when there is none.
pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    at(value, pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The seconds of a run: the middle of each, and what it shows of a field.
pub(super) fn over_time(series: &[Value], pointer: &str) -> Vec<(f64, f64)> {
    let point = |(index, second)| {
        let (from, to) = ends(index, second);
        Some(((from + to) / 2.0, number(second, pointer)?))
    };
    series.iter().enumerate().filter_map(point).collect()
}

/// The same of what was counted in each interval, which need not be a second long, per second.
pub(super) fn counts_over_time(series: &[Value], pointer: &str) -> Vec<(f64, f64)> {
    let point = |(index, second)| {
        let (from, to) = ends(index, second);
        let length = if to > from { to - from } else { 1.0 };
        Some(((from + to) / 2.0, number(second, pointer)? / length))
    };
    series.iter().enumerate().filter_map(point).collect()
}

/// When an interval begins and ends, in seconds; the one of this index when it does not say.
pub(super) fn ends(index: usize, interval: &Value) -> (f64, f64) {
    let from = number(interval, "/from_s").unwrap_or(index as f64);
    (from, number(interval, "/to_s").unwrap_or(from + 1.0))
}

/// A value as text: strings without their quotes, whole numbers grouped only where that is done.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "–".to_owned(),
        Value::Bool(is) => if *is { "yes" } else { "no" }.to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use serde_json::json;

    use super::*;

    /// Goal: results of all kinds are told apart, also those that name none. Method: what they have at least.
    #[test]
    fn kinds_are_known_by_name_or_fields() {
        for (result, kind) in [
            (json!({"kind": "run"}), Some(Kind::Run)),
            (json!({"kind": "peers"}), Some(Kind::Peers)),
            (json!({"ports": {}}), Some(Kind::Wire)),
            (json!({"cells": []}), Some(Kind::Cache)),
            (json!({"get_ns": 1.0}), Some(Kind::Store)),
            (json!({"points": []}), Some(Kind::StoreSweep)),
            (json!({"series": "s", "points": []}), Some(Kind::ClusterSeries)),
            (json!({"kind": "other"}), None),
            (json!({}), None),
        ] {
            assert_eq!(Kind::of(&result), kind, "{result}");
        }
    }

    /// Goal: what a folder lacks is said in a sentence that names it. Method: folders with something wrong in each.
    #[test]
    fn a_refusal_names_the_file_and_the_reason() {
        let root = env::temp_dir().join(format!("linerate-bench-folders-{}", process::id()));
        let made = |name: &str, result: Option<&str>| {
            let folder = root.join(name);
            fs::create_dir_all(&folder).unwrap();
            if let Some(result) = result {
                fs::write(folder.join("result.json"), result).unwrap();
            }
            folder
        };
        let refused = |folder: &Path| format!("{:#}", Folder::read(folder).unwrap_err());
        let cases = [
            (made("empty", None), "is no result folder: it has no result.json"),
            (made("cut", Some("{\"kind\": \"run\"")), "result.json\" is damaged: EOF while parsing"),
            (made("list", Some("[1]")), "result.json\" is damaged: it holds no JSON object"),
            (made("other", Some("{\"kind\": \"tea\"}")), "knows: its kind is \"tea\""),
            (made("nameless", Some("{}")), "knows: it names no kind"),
            (root.join("missing"), "cannot read the result folder"),
            (root.join("cut/result.json"), "is a file; give the folder"),
        ];
        for (folder, reason) in cases {
            let error = refused(&folder);
            assert!(error.contains(reason) && !error.contains('\n'), "{error}");
            assert!(error.contains(&*folder.file_name().unwrap().to_string_lossy()), "{error}");
        }
        let damaged_beside = made("beside", Some("{\"kind\": \"run\"}"));
        fs::write(damaged_beside.join("manifest.json"), "{").unwrap();
        let folder = Folder::read(&damaged_beside).unwrap();
        assert!(folder.notes[0].starts_with("manifest.json is damaged: EOF"), "{:?}", folder.notes);
        fs::remove_dir_all(&root).unwrap();
    }
}
