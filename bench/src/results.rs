//! Results worth keeping: a folder each, with the raw numbers, the command, and the machine.
//!
//! ```text
//! <root>/<date>-<name>/
//!   manifest.json   command, seed, sources, machine, network card and how it is tuned
//!   result.json     all figures, as `--json` has them
//!   summary.csv     those of the table
//!   series.csv      those of each second
//!   latency.hlog    latencies of each second, an HdrHistogram V2 interval log
//!   report.html     the same for people
//! ```

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process,
};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::{
    output::{Environment, Report, json, replace_file, summary_csv, write_file},
    watch::nic::{NicFacts, tune_status},
};

/// Files of the kernel whose content decides what a figure means, with what they are.
const MACHINE_FILES: [(&str, &str); 10] = [
    ("clock source", "/sys/devices/system/clocksource/clocksource0/current_clocksource"),
    ("frequency governor", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    ("turbo off", "/sys/devices/system/cpu/intel_pstate/no_turbo"),
    ("hyper-threading", "/sys/devices/system/cpu/smt/control"),
    ("isolated cores", "/sys/devices/system/cpu/isolated"),
    ("huge pages", "/sys/kernel/mm/transparent_hugepage/enabled"),
    ("net.core.rmem_max", "/proc/sys/net/core/rmem_max"),
    ("net.core.wmem_max", "/proc/sys/net/core/wmem_max"),
    ("loopback MTU", "/sys/class/net/lo/mtu"),
    ("load average", "/proc/loadavg"),
];

/// Whether a result is kept, and where: the same for all commands that measure.
#[derive(Clone, Debug, Default, Args)]
pub struct KeepOptions {
    /// Keep the result as a directory of this name
    #[arg(long, value_name = "NAME")]
    pub keep: Option<String>,
    /// Where results are kept [default: bench/results in a checkout, else results]
    #[arg(long, value_name = "DIR", requires = "keep")]
    pub results: Option<PathBuf>,
}

impl KeepOptions {
    /// The folder that results' folders are in.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        root(self.results.as_deref())
    }

    /// Checks that the result could be kept, before anything is measured in vain.
    ///
    /// # Errors
    /// As [`keep`]; what was made to find out is removed again.
    pub fn check(&self) -> io::Result<()> {
        self.keep.as_ref().map_or(Ok(()), |name| check(&self.root(), name))
    }
}

/// What is kept with a result.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// The arguments of this process, the first of which is the program.
    pub command: &'a [String],
    /// Where and from what it was measured.
    pub environment: &'a Environment,
    /// Seed of all random choices; `None` when there are none.
    pub seed: Option<u64>,
    /// Whether less was measured than was asked for.
    pub partial: bool,
    /// The run whose seconds and latencies are kept too, if it is one, or has one that counts most.
    pub run: Option<&'a Report>,
}

/// Everything about a result but its figures.
#[derive(Debug, Serialize)]
struct Manifest<'a> {
    name: &'a str,
    date: &'a str,
    /// The program without its folder: that is different on every machine.
    command: Vec<String>,
    seed: Option<u64>,
    partial: bool,
    environment: &'a Environment,
    /// What the kernel says of its settings; what it does not tell is left out.
    machine: BTreeMap<&'static str, String>,
    nic: Option<&'a NicFacts>,
    /// What `setup/tune-nic.sh status --json` says, where that script is.
    tune: Option<Value>,
}

/// Where results are kept: in `given`, or else in `bench/results` of a checkout, or in `results` here.
#[must_use]
pub fn root(given: Option<&Path>) -> PathBuf {
    let default = || if Path::new("bench/Cargo.toml").is_file() { "bench/results" } else { "results" };
    given.map_or_else(|| default().into(), Path::to_owned)
}

/// Checks that a result could be kept under this name, before anything is measured in vain.
///
/// # Errors
/// As [`keep`]; what was made to find out is removed again.
pub fn check(root: &Path, name: &str) -> io::Result<()> {
    check_name(name)?;
    let is_new = !root.exists();
    let probe = unfinished(root)?;
    fs::remove_dir(&probe)?;
    if is_new {
        // It may have got company meanwhile.
        let _ = fs::remove_dir(root);
    }
    Ok(())
}

/// Writes the folder `<root>/<date>-<name>/` and returns its path. It appears under that name when all of it is written, and
/// nothing is ever overwritten: a second folder of that name gets `-2` behind it, and so on.
///
/// # Errors
/// When `name` is not made of 1 to 64 letters, digits, `-`, `_` and `.` (the path stays inside `root`), and when a file
/// or folder cannot be written; a sentence that names it.
pub fn keep(root: &Path, name: &str, result: &impl Serialize, kept: &Kept<'_>) -> io::Result<PathBuf> {
    check_name(name)?;
    let folder = unfinished(root)?;
    let date = &kept.environment.date;
    let (day, _) = date.split_once('T').unwrap_or((date, ""));
    let finished = fill(&folder, name, result, kept).and_then(|()| {
        let name = format!("{day}-{name}");
        let mut path = root.join(&name);
        for copy in 2.. {
            match fs::rename(&folder, &path) {
                // A folder with something in it is not replaced (rename(2)).
                Err(error) if is_taken(&error) => path = root.join(format!("{name}-{copy}")),
                Err(error) => return Err(create_error(&path, &error)),
                Ok(()) => break,
            }
        }
        Ok(path)
    });
    if finished.is_err() {
        let _ = fs::remove_dir_all(&folder);
    }
    finished
}

/// Replaces the result in a folder that [`keep`] has made, and what the manifest says of its being whole. Whoever reads a file
/// meanwhile, or after this process was killed, finds the old content or the new one.
///
/// # Errors
/// A sentence that names the file.
pub(crate) fn replace(folder: &Path, result: &impl Serialize, partial: bool) -> io::Result<()> {
    replace_file(&folder.join("result.json"), &json(result)?)?;
    let path = folder.join("manifest.json");
    let text = fs::read_to_string(&path).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot read \"{}\": {error}", path.display()))
    })?;
    let mut manifest: Value = serde_json::from_str(&text)?;
    if manifest["partial"] != partial {
        manifest["partial"] = partial.into();
        replace_file(&path, &json(&manifest)?)?;
    }
    Ok(())
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory
    )
}

fn fill(folder: &Path, name: &str, result: &impl Serialize, kept: &Kept<'_>) -> io::Result<()> {
    let &Kept { command, environment, seed, partial, run } = kept;
    let manifest = Manifest {
        name,
        date: &environment.date,
        command: without_folder(command),
        seed,
        partial,
        environment,
        machine: machine(),
        nic: run.and_then(|run| run.nic.as_ref()),
        tune: tune_status(),
    };
    write_file(&folder.join("manifest.json"), json(&manifest)?)?;
    write_file(&folder.join("result.json"), json(result)?)?;
    if let Some(run) = run {
        write_file(&folder.join("summary.csv"), summary_csv(run))?;
        write_file(&folder.join("series.csv"), run.series.csv())?;
        write_file(&folder.join("latency.hlog"), run.series.interval_log()?)?;
    }
    Ok(())
}

fn check_name(name: &str) -> io::Result<()> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=64).contains(&name.len()) && name.bytes().all(is_allowed) {
        return Ok(());
    }
    let reason = format!("\"{name}\" cannot name a result; use 1 to 64 letters, digits and the signs - _ .");
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// A folder that nobody takes for a result yet.
fn unfinished(root: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(root).map_err(|error| create_error(root, &error))?;
    let path = root.join(format!(".unfinished-{}", process::id()));
    // One that a killed process of the same number has left.
    let _ = fs::remove_dir_all(&path);
    fs::create_dir(&path).map_err(|error| create_error(&path, &error))?;
    Ok(path)
}

fn create_error(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot create the folder \"{}\": {error}", path.display()))
}

/// Makes a folder of this name, or of one like it if there is one already.
pub(crate) fn new_folder(root: &Path, name: &str) -> io::Result<PathBuf> {
    fs::create_dir_all(root).map_err(|error| create_error(root, &error))?;
    let mut path = root.join(name);
    for copy in 2.. {
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                path = root.join(format!("{name}-{copy}"))
            }
            Err(error) => return Err(create_error(&path, &error)),
            Ok(()) => break,
        }
    }
    Ok(path)
}

/// The command as one line for a shell, the program without its folder: that is different on every machine.
pub(crate) fn command_line(command: &[String]) -> String {
    without_folder(command).iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ") + "\n"
}

/// A word as a POSIX shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,+@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        word.to_owned()
    } else {
        // Inside single quotes nothing is special but the quote itself, which is put between two quoted parts.
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The arguments with the program's name alone in front.
fn without_folder(command: &[String]) -> Vec<String> {
    let program = command.first().map(|program| {
        let path = Path::new(program);
        path.file_name().map_or_else(|| program.clone(), |name| name.to_string_lossy().into_owned())
    });
    program.into_iter().chain(command.iter().skip(1).cloned()).collect()
}

fn machine() -> BTreeMap<&'static str, String> {
    let told = MACHINE_FILES.iter().filter_map(|&(name, path)| Some((name, fs::read_to_string(path).ok()?)));
    let told = told.map(|(name, text)| (name, text.trim().to_owned()));
    told.filter(|(_, text)| !text.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use super::*;
    use crate::output::tests::report;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn kept<'a>(report: &'a Report, command: &'a [String]) -> Kept<'a> {
        Kept { command, environment: &report.environment, seed: Some(7), partial: false, run: Some(report) }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    /// Goal: a result is kept with all that explains it, a second one beside it, and nothing unfinished is left. Method:
    /// keep the same report twice and read the files back.
    #[test]
    fn a_result_is_kept_with_what_explains_it() {
        let root = env::temp_dir().join(format!("linerate-bench-results-{}", process::id()));
        let report = report();
        let command = words(&["somewhere/linerate-bench", "run", "--json", "my result.json"]);
        let keep = || keep(&root, "udp-b", &report, &kept(&report, &command)).unwrap();
        let (first, second) = (keep(), keep());
        assert_eq!(first, root.join("2026-01-31-udp-b"));
        assert_eq!(second, root.join("2026-01-31-udp-b-2"));
        assert_eq!(names(&root), ["2026-01-31-udp-b", "2026-01-31-udp-b-2"]);
        for folder in [first, second] {
            let files = ["latency.hlog", "manifest.json", "result.json", "series.csv", "summary.csv"];
            assert_eq!(names(&folder), files);
            let read = |name| fs::read_to_string(folder.join(name)).unwrap();
            assert_eq!(read("result.json"), json(&report).unwrap());
            assert!(
                read("summary.csv").contains("\"throughput\",Mop/s,41.234567\n"),
                "{}",
                read("summary.csv")
            );
            let manifest: Value = serde_json::from_str(&read("manifest.json")).unwrap();
            println!("{manifest:#}");
            assert_eq!(
                manifest["command"],
                serde_json::json!(["linerate-bench", "run", "--json", "my result.json"])
            );
            assert_eq!((&manifest["seed"], &manifest["partial"]), (&7.into(), &false.into()));
            assert_eq!(manifest["environment"]["cpu_model"], "A Processor");
            assert!(manifest["machine"]["loopback MTU"].is_string());
        }
        fs::remove_dir_all(&root).unwrap();
    }

    /// Goal: no name leads out of the folder, and a refusal says what is allowed. Method: names of every forbidden kind.
    #[test]
    fn wrong_names_are_refused() {
        let report = report();
        for name in ["", "../up", "a/b", "a b", "ü", &"x".repeat(65)] {
            let never = Path::new("never created");
            let error = keep(never, name, &report, &kept(&report, &[])).unwrap_err();
            assert!(error.to_string().contains("use 1 to 64 letters"), "{name}: {error}");
            assert_eq!(check(never, name).unwrap_err().to_string(), error.to_string());
        }
        assert!(!Path::new("never created").exists());
    }

    /// Goal: a folder that cannot be created is named, before a run and after it, and looking whether one can be leaves
    /// nothing. Method: a root that is a file, and one that is not there yet.
    #[test]
    fn a_folder_that_cannot_be_created_is_named() {
        let root = env::temp_dir().join(format!("linerate-bench-file-{}", process::id()));
        check(&root.join("a"), "x").unwrap();
        assert!(!root.join("a").exists());
        fs::remove_dir(&root).unwrap();
        fs::write(&root, "").unwrap();
        let report = report();
        let expected = format!("cannot create the folder \"{}\": ", root.display());
        for error in [keep(&root, "x", &report, &kept(&report, &[])).map(|_| ()), check(&root, "x")] {
            let error = error.unwrap_err().to_string();
            assert!(error.starts_with(&expected), "{error}");
        }
        fs::remove_file(&root).unwrap();
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (word, expected) in [
            ("run", "run"),
            ("--value-len=64-256", "--value-len=64-256"),
            ("127.0.0.1:4100", "127.0.0.1:4100"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$(rm)", "'$(rm)'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
        assert_eq!(command_line(&[]), "\n");
        assert_eq!(command_line(&words(&["x/y/linerate-bench", "a b"])), "linerate-bench 'a b'\n");
    }
}
