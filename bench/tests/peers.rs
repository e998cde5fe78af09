//! Other stores beside linerate, as far as they are installed, and what is said when they are not.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// What every comparison here has in common: few records and little time, as only right and wrong are looked at.
const SHORT: &str = "peers --duration 0.3 --records 2000 --json -";

/// A folder for all files of a program under test, removed with this.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("linerate-peers-{name}-{}", std::process::id()));
        fs::create_dir_all(path.join("tmp")).unwrap();
        Self(path)
    }

    /// Its programs are found before all others, and there its temporary files are.
    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_linerate-bench"));
        let path = env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.0.display())).env("TMPDIR", self.0.join("tmp"));
        command.args(arguments.split_whitespace()).stdin(Stdio::null());
        command
    }

    fn bench(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn script(&self, name: &str, text: &str) {
        self.file(name, &format!("#!/bin/sh\n{text}\n"));
    }

    /// Writes a file that may be executed.
    fn file(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn temporary_files(&self) -> usize {
        fs::read_dir(self.0.join("tmp")).unwrap().count()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn parsed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Whether both are installed; if not, says what is not checked, or fails with LINERATE_PEERS=required.
fn are_installed(programs: &[&str]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> =
        env::split_paths(&path).chain(["/usr/sbin", "/usr/bin"].map(PathBuf::from)).collect();
    let is_there = |program: &&&str| folders.iter().any(|folder: &PathBuf| folder.join(program).is_file());
    let missing: Vec<_> = programs.iter().filter(|program| !is_there(program)).collect();
    if missing.is_empty() {
        return true;
    }
    let reason = format!("not checked: {missing:?} not installed (apt-get install redis-server memcached)");
    assert_ne!(env::var("LINERATE_PEERS").as_deref(), Ok("required"), "{reason}");
    println!("{reason}");
    false
}

/// Goal: the installed stores are measured with the same operations, every value of theirs is right, and nothing is left
/// behind. Method: the real servers, values of many lengths, each checked.
#[test]
fn installed_peers_are_compared() {
    if !are_installed(&["redis-server", "memcached"]) {
        return;
    }
    let folder = Folder::new("real");
    let output = folder.bench(&format!("{SHORT} --value-len 64-256 --workload a --verify"));
    let report = parsed(&output);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(report["linerate"]["ops_per_sec"].as_f64().unwrap() > 0.0);
    assert_eq!(report["linerate"]["transport"], "udp");
    for name in ["redis", "memcached", "memcached-udp"] {
        let peers = report["peers"].as_array().unwrap();
        let peer = peers.iter().find(|peer| peer["name"] == name);
        let peer = peer.unwrap_or_else(|| panic!("{name} is missing: {}", report["missing"]));
        let number = |field: &str| peer[field].as_f64().unwrap_or_else(|| panic!("{name} {field}: {peer}"));
        assert!(number("ops_per_sec") > 0.0 && number("server_cpu_pct") >= 0.0, "{peer}");
        assert_eq!((number("wrong_values"), number("hit_ratio")), (0.0, 1.0), "{peer}");
        assert!(peer["version"].as_str().unwrap().contains('.'), "{peer}");
        assert!(peer["settings"].as_str().unwrap().contains("in flight"), "{peer}");
        assert!(report["ratios"][name].as_f64().unwrap() > 0.0, "{report}");
    }
    assert_eq!(folder.temporary_files(), 0);
}

/// Goal: peers that do not work are named with what they did, linerate is measured all the same, and the program says that
/// there was nothing to compare with. Method: programs in their places that end, or cannot be run.
#[test]
fn peers_that_do_not_work_are_named() {
    let folder = Folder::new("broken");
    folder.script("redis-server", "echo starting; echo 'no luck today' >&2; exit 3");
    folder.file("memcached", "#!/nowhere/interpreter\n");
    let output = folder.bench(&format!("{SHORT} --peers redis,memcached"));
    let report = parsed(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(report["linerate"]["ops_per_sec"].as_f64().unwrap() > 0.0);
    assert_eq!((&report["peers"], &report["ratios"]), (&serde_json::json!([]), &serde_json::json!({})));
    let missing: Vec<_> =
        report["missing"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let found =
        |name: &str, program: &str| format!("{name}: found as {}, but it ", folder.0.join(program).display());
    let [redis, memcached] = missing[..] else { panic!("{missing:?}") };
    assert_eq!(redis, found("redis", "redis-server") + "ended by itself (exit status: 3): no luck today");
    assert!(memcached.starts_with(&found("memcached", "memcached")), "{memcached}");
    assert!(memcached.contains("cannot run"), "{memcached}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("no peer could be measured, so there is nothing to compare linerate with"),
        "{error}"
    );
    assert_eq!(folder.temporary_files(), 0);
}

/// Goal: what a script has started ends with it, also when that has ended by itself. Method: a script that leaves a process
/// behind.
#[test]
fn nothing_is_left_of_a_script_that_ended() {
    let folder = Folder::new("left");
    let pid_file = folder.0.join("pid");
    folder.script("redis-server", &format!("sleep 600 & echo $! > {}; exit 3", pid_file.display()));
    let output = folder.bench(&format!("{SHORT} --peers redis"));
    assert_eq!(output.status.code(), Some(2));
    assert!(parsed(&output)["missing"][0].as_str().unwrap().contains("ended by itself (exit status: 3)"));
    assert_ends(fs::read_to_string(&pid_file).unwrap().trim());
}

/// Waits until a process has ended, which may be nobody's child any more.
fn assert_ends(pid: &str) {
    let stat = Path::new("/proc").join(pid).join("stat");
    let runs = || fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z "));
    for _ in 0..500 {
        if !runs() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("the server still runs");
}

/// Goal: an interrupted comparison shows what there is, says that it is not all, and leaves no process and no file. Method: a
/// server that never serves, and Ctrl-C while it is waited for.
#[test]
fn an_interrupted_comparison_is_partial() {
    let folder = Folder::new("interrupted");
    let pid_file = folder.0.join("pid");
    folder.script(
        "redis-server",
        &format!("echo $$ > {}.new; mv {0}.new {0}; exec sleep 600", pid_file.display()),
    );
    let mut command = folder.command(&format!("{SHORT} --peers redis,memcached"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Linerate's round comes first; what is waited for is bounded by the test's own end.
    let begun = std::time::Instant::now();
    while !pid_file.exists() {
        assert!(begun.elapsed() < Duration::from_secs(120), "the server was not started");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(folder.temporary_files(), 1);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let report = parsed(&output);
    assert_eq!(report["partial"], true);
    assert_eq!(report["linerate"]["rounds_ops_per_sec"].as_array().unwrap().len(), 1);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("interrupted: what was measured until then is not all"), "{error}");
    let pid = fs::read_to_string(&pid_file).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "the server still runs");
    assert_eq!(folder.temporary_files(), 0);
}

/// Goal: a server does not outlive the program, however that ends. Method: kill it while it waits for a server.
#[test]
fn a_server_ends_with_the_program() {
    let folder = Folder::new("killed");
    let pid_file = folder.0.join("pid");
    folder.script(
        "redis-server",
        &format!("echo $$ > {}.new; mv {0}.new {0}; exec sleep 600", pid_file.display()),
    );
    let mut command = folder.command(&format!("{SHORT} --peers redis"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = std::time::Instant::now();
    while !pid_file.exists() {
        assert!(begun.elapsed() < Duration::from_secs(120), "the server was not started");
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_ends(fs::read_to_string(&pid_file).unwrap().trim());
}
