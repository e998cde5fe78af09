//! Results worth keeping: a folder each, with the raw numbers, the command, and the machine.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::output::{Environment, json, write_file};

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

/// Writes the folder `<root>/<date>-<name>/` and returns its path. It holds `result.json` (`result`), `command.txt` (the
/// arguments of this process, the first of which is the program) and `machine.txt`. Nothing is ever overwritten: a
/// second folder of that name gets `-2` behind it, and so on.
///
/// # Errors
/// When `name` is not made of 1 to 64 letters, digits, `-`, `_` and `.` (the path stays inside `root`), and when a file
/// or folder cannot be written; a sentence that names it.
pub fn keep(
    root: &Path,
    name: &str,
    result: &impl Serialize,
    command: &[String],
    environment: &Environment,
) -> io::Result<PathBuf> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !(1..=64).contains(&name.len()) || !name.bytes().all(is_allowed) {
        let reason =
            format!("\"{name}\" cannot name a result; use 1 to 64 letters, digits and the signs - _ .");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let result = json(result)?;
    let (day, _) = environment.date.split_once('T').unwrap_or((&environment.date, ""));
    let folder = new_folder(root, &format!("{day}-{name}"))?;
    write_file(&folder.join("result.json"), &result)?;
    write_file(&folder.join("command.txt"), &command_line(command))?;
    write_file(&folder.join("machine.txt"), &machine(environment))?;
    Ok(folder)
}

/// Makes a folder of this name, or of one like it if there is one already.
pub(crate) fn new_folder(root: &Path, name: &str) -> io::Result<PathBuf> {
    let failed = |path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("cannot create the folder \"{}\": {error}", path.display()))
    };
    fs::create_dir_all(root).map_err(|error| failed(root, error))?;
    let mut path = root.join(name);
    for copy in 2.. {
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                path = root.join(format!("{name}-{copy}"))
            }
            Err(error) => return Err(failed(&path, error)),
            Ok(()) => break,
        }
    }
    Ok(path)
}

/// The command as one line for a shell, the program without its folder: that is different on every machine.
fn command_line(command: &[String]) -> String {
    let program = command.first().map(|program| {
        let path = Path::new(program);
        path.file_name().map_or_else(|| program.clone(), |name| name.to_string_lossy().into_owned())
    });
    let arguments = command.iter().skip(1).cloned();
    let words: Vec<_> = program.into_iter().chain(arguments).map(|word| quoted(&word)).collect();
    words.join(" ") + "\n"
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

/// Lines `name: value`; what the machine does not tell is left out.
fn machine(environment: &Environment) -> String {
    let Environment { date, version, commit, build, kernel, cpu_model, cores, memory_bytes } = environment;
    let known = [
        ("date", Some(date.clone())),
        ("version", Some((*version).to_owned())),
        ("commit", commit.clone()),
        ("build", Some((*build).to_owned())),
        ("kernel", kernel.clone()),
        ("processor", cpu_model.clone()),
        ("cores", Some(cores.to_string())),
        ("memory", memory_bytes.map(|bytes| format!("{} MiB", bytes >> 20))),
    ];
    let files = MACHINE_FILES.map(|(name, path)| (name, fs::read_to_string(path).ok()));
    let mut text = String::new();
    for (name, value) in known.into_iter().chain(files) {
        if let Some(value) = value.as_deref().map(str::trim).filter(|value| !value.is_empty()) {
            writeln!(text, "{name}: {value}").expect("writing to a string cannot fail");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use super::*;
    use crate::output::tests::report;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    /// Goal: a result is kept with all that explains it, and a second one beside it. Method: keep the same report twice
    /// and read the files back.
    #[test]
    fn a_result_is_kept_with_what_explains_it() {
        let root = env::temp_dir().join(format!("linerate-bench-results-{}", process::id()));
        let report = report();
        let command = words(&["somewhere/linerate-bench", "run", "--json", "my result.json"]);
        let keep = || keep(&root, "udp-b", &report, &command, &report.environment).unwrap();
        let (first, second) = (keep(), keep());
        assert_eq!(first, root.join("2026-01-31-udp-b"));
        assert_eq!(second, root.join("2026-01-31-udp-b-2"));
        for folder in [first, second] {
            let read = |name| fs::read_to_string(folder.join(name)).unwrap();
            assert_eq!(read("result.json"), json(&report).unwrap());
            assert_eq!(read("command.txt"), "linerate-bench run --json 'my result.json'\n");
            let machine = read("machine.txt");
            println!("{machine}");
            assert!(
                machine.starts_with("date: 2026-01-31T12:34:56Z\nversion: 0.1.0\nbuild: release\n"),
                "{machine}"
            );
            assert!(machine.contains("\nprocessor: A Processor\ncores: 2\nmemory: 8192 MiB\n"), "{machine}");
        }
        fs::remove_dir_all(&root).unwrap();
    }

    /// Goal: no name leads out of the folder, and a refusal says what is allowed. Method: names of every forbidden kind.
    #[test]
    fn wrong_names_are_refused() {
        let report = report();
        for name in ["", "../up", "a/b", "a b", "ü", &"x".repeat(65)] {
            let error =
                keep(Path::new("never created"), name, &report, &[], &report.environment).unwrap_err();
            assert!(error.to_string().contains("use 1 to 64 letters"), "{name}: {error}");
        }
        assert!(!Path::new("never created").exists());
    }

    /// Goal: a folder that cannot be created is named. Method: a root that is a file.
    #[test]
    fn a_folder_that_cannot_be_created_is_named() {
        let root = env::temp_dir().join(format!("linerate-bench-file-{}", process::id()));
        fs::write(&root, "").unwrap();
        let report = report();
        let error = keep(&root, "x", &report, &[], &report.environment).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot create the folder \"{}\": ", root.display())), "{error}");
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
        assert_eq!(command_line(&words(&["x/y/linerate-bench"])), "linerate-bench\n");
    }
}
