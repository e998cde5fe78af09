//! Loads as users ask for them: open loops, many sessions, nobody to answer, and runs that end before their time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use linerate_proto::wire::Statistic;
use linerate_server::{Server, ServerConfig};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_linerate-bench");

fn bench(arguments: &str) -> Output {
    Command::new(BENCH).args(arguments.split_whitespace()).stdin(Stdio::null()).output().unwrap()
}

fn json(arguments: &str) -> Value {
    let output = bench(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(report: &Value, name: &str) -> f64 {
    report[name].as_f64().unwrap_or_else(|| panic!("{name}: {}", report[name]))
}

/// A server of this test's own.
fn server() -> Server {
    Server::start(&ServerConfig { port: 0, memory_len: 128 << 20, ..Default::default() }).unwrap()
}

/// Waits until somebody has got something from the server, and half a second longer.
fn wait_for_load(server: &Server, child: &mut Child) {
    while server.stats()[Statistic::Gets as usize] == 0 {
        assert_eq!(child.try_wait().unwrap(), None, "the run has ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(500));
}

/// A folder of this test's own, which is gone when the test is.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("linerate-load-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn names(&self, below: &Path) -> Vec<String> {
        let entries = fs::read_dir(self.0.join(below)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Goal: in an open loop each operation that was due has a latency, however slow the machine, and none is there twice.
/// Method: count them, for each law of arrivals, over one session and over several.
#[test]
fn every_operation_that_was_due_has_a_latency() {
    for (arrivals, sessions, tolerance) in
        [("fixed", 1, 1.0), ("fixed", 3, 3.0), ("burst:50", 1, 50.0), ("poisson", 1, 250.0)]
    {
        let report = json(&format!(
            "run --rate 5000 --arrivals {arrivals} --sessions {sessions} --duration 1 --warmup 0 --records 500 --verify \
             --json -"
        ));
        assert_eq!((&report["loop"], &report["offered_ops_per_sec"]), (&"open".into(), &5_000.0.into()));
        assert_eq!(report["config"]["arrivals"], arrivals);
        assert_eq!(report["config"]["sessions"], sessions);
        let due = number(&report, "latency_count");
        assert!((due - 5_000.0).abs() <= tolerance, "{arrivals}: {due} were due");
        assert!(number(&report, "ops") <= due, "{report}");
        assert_eq!((number(&report, "hit_ratio"), number(&report, "wrong_values")), (1.0, 0.0));
        let last = report["latency_cdf"].as_array().unwrap().last().unwrap();
        assert_eq!(last[1], 1.0);
    }
}

/// Goal: a server that stands still is seen in the latencies of an open loop, also when it does so at the end. Method:
/// 200 ms of one second: of all operations, those that have waited longest, one and a half per cent, have waited for some
/// 185 ms or longer.
#[test]
fn a_stall_is_seen() {
    let report = json("run --rate 5000 --stall 200 --duration 1 --warmup 0 --records 500 --json -");
    let cdf = report["latency_cdf"].as_array().unwrap();
    let late = cdf.iter().find(|point| point[1].as_f64() >= Some(0.985)).unwrap()[0].as_f64().unwrap();
    assert!(late >= 170_000.0, "{late} µs");
    assert_eq!(report["config"]["stall_ms"], 200);
}

/// Goal: the client alone can be measured, with every kind of loop. Method: operations end, in the right proportion.
#[test]
fn a_client_runs_without_a_server() {
    for options in ["--batch 64", "--threads 2 --sessions 5", "--rate 2000 --value-len 0-300"] {
        let report = json(&format!(
            "run --target null --workload a {options} --records 1000 --duration 0.3 --warmup 0.1 --json -"
        ));
        let share = number(&report, "puts_per_sec") / number(&report, "ops_per_sec");
        assert!((share - 0.5).abs() < 0.1, "{options}: {share} puts");
        assert!(number(&report, "generator_ns_per_op") > 0.0, "{report}");
        assert_eq!((number(&report, "hit_ratio"), number(&report, "errors")), (1.0, 0.0));
        assert_eq!((&report["kind"], &report["server_cpu_pct"]), (&"null".into(), &Value::Null));
    }
}

/// Goal: one thread drives several sessions, each an own client to server and check. Method: a checked run in which the
/// writes add up.
#[test]
fn several_sessions_of_a_thread_are_checked() {
    let report = json(
        "run --workload a --threads 2 --sessions 7 --window 4 --batch 20 --check --records 500 --duration 0.5 --warmup 0.1 \
         --json -",
    );
    assert_eq!(report["check"]["violations"], 0, "{report}");
    assert_eq!(report["check"]["audit"]["acknowledged"], report["check"]["audit"]["grown"], "{report}");
    assert_eq!((&report["config"]["threads"], &report["config"]["sessions"]), (&2.into(), &7.into()));
}

/// Goal: a run is told second by second, with what client, server and host did, and how good it is. Method: the series of
/// a short run; without watching it has one point.
#[test]
fn a_run_has_a_series() {
    let report = json("run --records 500 --duration 2.2 --warmup 0 --threads 2 --json -");
    let series = report["series"].as_array().unwrap();
    assert_eq!(series.len(), 2, "{series:?}");
    let answered: f64 = series
        .iter()
        .map(|point| number(point, "ops_per_sec") * (number(point, "to_s") - number(point, "from_s")))
        .sum();
    assert!((answered - number(&report, "ops")).abs() <= 1e-6 * answered + 1.0, "{answered}: {report}");
    for point in series {
        assert!(number(&point["latency_us"], "p9999") >= number(&point["latency_us"], "p50"));
        // On a busy machine the server may not have been running in this second.
        assert!(point["server"]["rx_datagrams"].is_u64(), "{point}");
        assert!(number(&point["client"], "rss_bytes") > 0.0, "{point}");
        assert_eq!(point["host"]["interface"], "lo");
        assert!(!point["host"]["cpus"].as_array().unwrap().is_empty());
    }
    assert!(!report["verdicts"].as_array().unwrap().is_empty());
    assert!(report["loss_by_layer"]["socket"].is_u64());
    let report = json("run --no-watch --records 500 --duration 2.2 --warmup 0 --json -");
    let series = report["series"].as_array().unwrap();
    assert_eq!((series.len(), &series[0]["host"]), (1, &Value::Null));
}

/// Goal: what an interrupted run has measured is kept whole and marked, and the exit code says that it is not all. Method:
/// interrupt a long run, and look at everything that is kept.
#[test]
fn an_interrupted_run_is_kept_and_marked() {
    let folder = Folder::new("interrupted");
    let server = server();
    let mut child = Command::new(BENCH)
        .args(format!("run --target {} --records 500 --duration 3600 --warmup 0", server.addr()).split(' '))
        .args(["--keep", "broken-off", "--results"])
        .arg(&folder.0)
        .args(["--json", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_load(&server, &mut child);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("interrupted after") && error.contains("of the 3600 s"), "{error}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["partial"], true);
    assert!(number(&report, "duration_s") < 3_000.0 && number(&report, "ops") > 0.0);
    let kept = folder.names(Path::new(""));
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(kept[0].ends_with("-broken-off"), "{kept:?}");
    let files = folder.names(Path::new(&kept[0]));
    let expected =
        ["latency.hlog", "manifest.json", "report.html", "result.json", "series.csv", "summary.csv"];
    assert_eq!(files, expected);
    let read = |name: &str| fs::read_to_string(folder.0.join(&kept[0]).join(name)).unwrap();
    let manifest: Value = serde_json::from_str(&read("manifest.json")).unwrap();
    assert_eq!(manifest["partial"], true);
    assert_eq!(manifest["seed"], 1);
    assert_eq!(serde_json::from_str::<Value>(&read("result.json")).unwrap()["ops"], report["ops"]);
}

/// Goal: a server that dies costs the rest of a run, not what was measured before. Method: stop it in the middle.
#[test]
fn what_was_measured_before_the_server_died_is_reported() {
    let server = server();
    let mut child = Command::new(BENCH)
        .args(format!("run --target {} --records 500 --json -", server.addr()).split(' '))
        .args("--duration 3 --warmup 0".split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_load(&server, &mut child);
    server.stop().unwrap();
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("has not told its statistics"), "{error}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["partial"], &report["server_cpu_pct"]), (&true.into(), &Value::Null));
    assert!(number(&report, "ops") > 0.0);
}

/// Goal: what contradicts itself, or could not be kept, is refused before anything is measured, in a sentence that says what
/// would be right. Method: one of each.
#[test]
fn contradictions_are_refused_before() {
    for (arguments, words) in [
        ("--rate 0", "0.001 to 1000000000 operations per second"),
        ("--rate many", "no number of operations per second"),
        ("--rate 1000 --arrivals burst:0", "burst:N with N from 1"),
        ("--arrivals fixed", "--rate"),
        ("--sessions 2 --threads 3", "each thread needs one"),
        ("--stall 100 --target 127.0.0.1:1", "not ours to stop"),
        ("--stall 600 --duration 1", "at most half of --duration"),
        ("--memory 1KiB", "give 64MiB to 16TiB"),
        ("--memory 64MiB --target 127.0.0.1:1", "have theirs already"),
        ("--target null --check", "--check cannot go with --target null"),
        ("--target null --transport tcp", "--transport cannot go with --target null"),
        ("--target null --loss 0.1", "--loss"),
        ("--target null --server-cores 2", "leave out --server-cores"),
        ("--target null --value-len 9000", "too long"),
        ("--results /tmp", "--keep"),
        ("--keep a/b", "use 1 to 64 letters"),
        ("--keep x --results /proc/none", "cannot create the folder \"/proc/none\""),
    ] {
        let output = bench(&format!("run --records 100 {arguments}"));
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {error}");
        assert!(error.contains(words), "{arguments}: {error}");
        assert!(output.stdout.is_empty(), "{arguments}");
    }
}
