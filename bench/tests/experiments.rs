//! `linerate-bench sweep`, `compare` and `search` as their users start them, only shorter.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use linerate_dataplane::netns::Namespace;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_linerate-bench");

/// What keeps a run short, but long enough for both ends to get their turns beside other tests.
const SHORT: &str = "--records 2000 --warmup 0 --duration 0.3 --verify";

fn bench(arguments: &str) -> Output {
    Command::new(BENCH).args(arguments.split_whitespace()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(arguments: &str) -> Value {
    let output = bench(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A folder to start the program in, as results are kept below the current one; removed in the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("linerate-experiments-{:016x}", rand::random::<u64>()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn start(&self, arguments: &str) -> Child {
        let mut command = Command::new(BENCH);
        command.args(arguments.split_whitespace()).current_dir(&self.0);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn run(&self, arguments: &str) -> Output {
        self.start(arguments).wait_with_output().unwrap()
    }

    /// The only result kept here.
    fn kept(&self) -> Option<PathBuf> {
        let entries = fs::read_dir(self.0.join("results")).ok()?.map(|entry| entry.unwrap().path());
        // What begins with a dot is not finished.
        let is_result = |path: &PathBuf| !path.file_name().unwrap().to_string_lossy().starts_with('.');
        let mut results = entries.filter(is_result);
        let folder = results.next()?;
        assert!(results.next().is_none(), "one result is kept");
        Some(folder)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn result(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("result.json")).unwrap()).unwrap()
}

/// The points that have been measured.
fn measured(sweep: &Value) -> usize {
    let points = sweep["points"].as_array().unwrap();
    points.iter().filter(|point| !point["report"].is_null()).count()
}

/// Goal: a sweep measures all points with what they are said to have. Method: two axes over loopback; the reports' own
/// configurations, and the table.
#[test]
fn a_sweep_measures_all_points() {
    let sweep =
        json(&format!("sweep --over batch=16,64 --over transport=udp,tcp --repeats 2 {SHORT} --json -"));
    assert_eq!((&sweep["kind"], &sweep["partial"]), (&"sweep".into(), &false.into()));
    assert_eq!(sweep["axes"][1]["option"], "transport");
    let points = sweep["points"].as_array().unwrap();
    let expected = [(16, "udp"), (16, "tcp"), (64, "udp"), (64, "tcp")];
    assert_eq!(points.len(), expected.len());
    for (point, (batch, transport)) in points.iter().zip(expected) {
        assert_eq!(point["error"], Value::Null);
        let config = &point["report"]["config"];
        assert_eq!((&config["batch"], &config["transport"]), (&batch.into(), &transport.into()));
        assert_eq!((&config["records"], &point["report"]["wrong_values"]), (&2_000.into(), &0.into()));
        assert!(point["report"]["ops_per_sec"].as_f64().unwrap() > 0.0);
        assert_eq!(point["rounds_ops_per_sec"].as_array().unwrap().len(), 2);
    }
    let output = bench(&format!("sweep --over verify=true,false {}", SHORT.replace("--verify", "")));
    let table = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(table.contains("p99 in µs") && table.contains("false"), "{table}");
}

/// Goal: a point that fails does not keep the others from being measured. Method: a transport that loopback does not have.
#[test]
fn a_sweep_survives_a_point_that_fails() {
    let output = bench(&format!("sweep --over transport=packet,udp {SHORT} --json -"));
    let (sweep, error): (Value, _) = (serde_json::from_slice(&output.stdout).unwrap(), text(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.contains("1 of 2 points failed; transport=packet: rings are those of an interface"),
        "{error}"
    );
    assert!(sweep["points"][0]["error"].as_str().unwrap().contains("linerate-bench wire"), "{sweep}");
    assert_eq!((measured(&sweep), &sweep["partial"]), (1, &false.into()));
}

/// Begins a sweep of 12 points and sends it a signal when it has measured one.
fn interrupted_sweep(signal: Signal) -> (Place, Output) {
    let place = Place::new();
    let values: Vec<_> = (1..=12).map(|batch| batch.to_string()).collect();
    let axis = values.join(",");
    let mut child = place.start(&format!("sweep --over batch={axis} {SHORT} --keep swept"));
    while place.kept().is_none_or(|folder| measured(&result(&folder)) == 0) {
        assert_eq!(child.try_wait().unwrap(), None, "it has kept nothing");
        thread::sleep(Duration::from_millis(10));
    }
    // It is there to be signalled until it is waited for.
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    (place, child.wait_with_output().unwrap())
}

/// Goal: a sweep that is interrupted, gently or not, is kept with what it has measured, says how to go on, and measures
/// only the rest then. Method: Ctrl-C and kill -9 when the first point is there; resume with an option that differs, and
/// without.
#[test]
fn a_sweep_is_resumed() {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        // The signal may come when all is done already, on a machine that has much to do: then again.
        let mut interrupted = (0..20).map(|_| interrupted_sweep(signal));
        let (place, output) = interrupted.find(|(_, output)| !output.status.success()).unwrap();
        let folder = place.kept().unwrap();
        let before = result(&folder);
        let count = measured(&before);
        assert!((1..12).contains(&count) && before["partial"] == true, "{count}");
        if signal == Signal::SIGINT {
            let error = text(&output.stderr);
            assert!(
                error.contains(&format!("interrupted when {count} of 12 points were measured")),
                "{error}"
            );
            assert!(error.contains("sweep --resume results/"), "{error}");
        }
        let other = place.run(&format!("sweep --resume {} --records 3000", folder.display()));
        assert_eq!(other.status.code(), Some(2));
        assert!(text(&other.stderr).contains("--records=3000 differs"), "{}", text(&other.stderr));
        assert_eq!(result(&folder), before, "nothing was written");
        let output = place.run(&format!("sweep --resume {} --json -", folder.display()));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let after = result(&folder);
        assert!(folder.join("report.html").is_file());
        let manifest: Value =
            serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest["partial"], false);
        assert_eq!((measured(&after), &after["partial"]), (12, &false.into()));
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), after);
        for index in 0..count {
            assert_eq!(after["points"][index], before["points"][index], "it was not measured again");
        }
    }
}

/// Goal: transports are compared in rounds over loopback. Method: JSON and table of three, one of them the baseline.
#[test]
fn transports_are_compared() {
    let report =
        json(&format!("compare udp tcp udp-plain --baseline tcp --rounds 3 {SHORT} --check --json -"));
    assert_eq!((&report["kind"], &report["medium"]), (&"compare".into(), &"loopback".into()));
    assert_eq!((&report["rounds"], &report["partial"]), (&3.into(), &false.into()));
    for (candidate, name) in report["candidates"].as_array().unwrap().iter().zip(["udp", "tcp", "udp-plain"])
    {
        assert_eq!(
            (&candidate["name"], &candidate["report"]["config"]["transport"]),
            (&name.into(), &name.into())
        );
        assert_eq!(candidate["rounds_ops_per_sec"].as_array().unwrap().len(), 3);
        assert_eq!(candidate["report"]["check"]["violations"], 0);
        assert_eq!(candidate["report"]["wrong_values"], 0);
    }
    let plain = &report["candidates"][2]["report"]["mode"];
    assert_ne!(*plain, report["candidates"][0]["report"]["mode"], "{plain}");
    let ratios = report["ratios"].as_array().unwrap();
    assert_eq!(ratios.len(), 2);
    for ratio in ratios {
        let of = |name: &str| ratio[name].as_f64().unwrap();
        assert!(ratio["to"] == "tcp" && of("min") <= of("ratio") && of("ratio") <= of("max"), "{ratio}");
    }
    let output = bench(&format!("compare udp tcp --rounds 1 {SHORT}"));
    let table = text(&output.stdout);
    assert!(table.contains("to tcp") && table.contains("1 rounds are too few"), "{table}");
}

/// Goal: what is kept has the seed, how the command ended and the seconds of the run that counts most, wherever it is to be, and it is
/// kept before anybody hears of it. Method: a comparison whose reader has gone.
#[test]
fn a_comparison_is_kept_first() {
    let place = Place::new();
    let mut child = place
        .start(&format!("compare udp tcp --rounds 1 --seed 7 {SHORT} --keep both --results kept --json -"));
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("cannot write the result to the standard output"), "{error}");
    let folder = fs::read_dir(place.0.join("kept")).unwrap().next().unwrap().unwrap().path();
    let manifest: Value = serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    assert_eq!((&manifest["seed"], &manifest["partial"]), (&7.into(), &false.into()));
    assert!(!manifest["nic"].is_null(), "{manifest}");
    for file in ["series.csv", "summary.csv", "latency.hlog", "report.html"] {
        assert!(folder.join(file).is_file(), "{file}");
    }
}

/// Goal: a trace is replayed by whatever is compared. Method: a short one, to the port that runs do not have and to one that they
/// have.
#[test]
fn a_trace_is_compared() {
    let place = Place::new();
    let rows: String = (0..200).map(|row| format!("{row},key{},5,100,1,get,0\n", row % 50)).collect();
    fs::write(place.0.join("trace.csv"), rows).unwrap();
    let short = "--rounds 1 --warmup 0 --duration 0.3 --json -";
    let output = place.run(&format!("compare udp udp-plain --trace trace.csv {short}"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for candidate in report["candidates"].as_array().unwrap() {
        let config = &candidate["report"]["config"];
        assert_eq!(
            (&config["workload"], &config["trace"]["rows"]),
            (&"trace".into(), &200.into()),
            "{config}"
        );
    }
}

/// Goal: with rings among them all are compared on virtual cables, and who may have none is told what is missing. Method: as
/// root the comparison, otherwise the refusal.
#[test]
fn rings_are_compared_on_cables() {
    // Who looks at the cable has to get a turn while it is used.
    let longer = SHORT.replace("0.3", "0.5");
    let compare = || bench(&format!("compare udp tcp packet --rounds 1 {longer} --json -"));
    let mut output = compare();
    if !Namespace::is_available() {
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("there are not two transports left to compare; udp, tcp: "), "{error}");
        return;
    }
    // Somebody else may keep all CPUs busy, and then nothing is known of the cables.
    let is_busy = |output: &Output| (text(&output.stderr) + &text(&output.stdout)).contains("too busy");
    for _ in 0..10 {
        if is_busy(&output) {
            output = compare();
        }
    }
    if is_busy(&output) {
        eprintln!("not run: the machine is too busy");
        return;
    }
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (candidates, refused) = (&report["candidates"], &report["refused"]);
    assert_eq!((&report["medium"], &candidates[0]["name"]), (&"cable".into(), &"udp".into()));
    assert_eq!(candidates.as_array().unwrap().len() + refused.as_array().unwrap().len(), 3, "{report}");
    for candidate in candidates.as_array().unwrap() {
        assert_eq!(candidate["report"]["config"]["transport"], candidate["name"]);
        assert_eq!(candidate["report"]["wrong_values"], 0);
    }
    if let Some(refused) = refused[0]["error"].as_str() {
        assert_eq!(refused.lines().count(), 1, "{refused}");
        eprintln!("not run: packet: {refused}");
    }
}

/// Goal: a search ends with a rate or with a sentence. Method: objectives that everything keeps but the rate itself, and
/// one that nothing keeps.
#[test]
fn a_search_ends() {
    let short = "--records 2000 --warmup 0 --duration 0.1 --precision 100% --repeats 1";
    let output = bench(&format!("search --slo max=60s --max-loss 100% {short} --json -"));
    let (report, error): (Value, _) = (serde_json::from_slice(&output.stdout).unwrap(), text(&output.stderr));
    assert_eq!((&report["kind"], &report["partial"]), (&"search".into(), &false.into()));
    assert!(report["closed_loop_ops_per_sec"].as_f64().unwrap() > 0.0);
    let trials = report["trials"].as_array().unwrap();
    assert!(trials.iter().all(|trial| trial["kept"] == trial["why"].is_null()), "{report}");
    // A machine that is busy with other things may not keep any rate.
    match report["rate"].as_f64() {
        Some(rate) => {
            assert!(output.status.success(), "{error}");
            assert_eq!(report["lower"], rate);
            assert!(report["upper"].as_f64().is_none_or(|upper| upper > rate));
            assert!(report["confidence"]["pass_probability_min"].as_f64().unwrap() > 0.5);
            assert!(report["report"]["ops_per_sec"].as_f64().unwrap() > 0.0);
        }
        None => assert!(error.contains("does not keep the objectives"), "{error}"),
    }
    let output = bench(&format!("search --slo p50=1ns {short}"));
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("even 1,000 op/s does not keep the objectives: "), "{error}");
    assert!(text(&output.stdout).contains("no rate was found that keeps p50 ≤ 0.001 µs"));
}

/// Goal: bad input is refused in a sentence, with exit code 2, and nothing is written. Method: one of each.
#[test]
fn bad_input_is_refused() {
    let place = Place::new();
    fs::create_dir(place.0.join("other")).unwrap();
    fs::write(place.0.join("other/result.json"), r#"{ "kind": "run" }"#).unwrap();
    for (arguments, words) in [
        ("sweep", "--over"),
        ("sweep --over batch", "give an option and its values"),
        ("sweep --over speed=1,2", "`speed` is no option of a run"),
        ("sweep --over batch=1,256", "256 is not in 1..=255"),
        ("sweep --over batch=1,2 --batch 3", "leave one of them out"),
        ("sweep --over workload=a,d --check", "--over workload=d: --check knows the records"),
        ("sweep --over trace=nowhere.csv,other.csv", "--over trace=nowhere.csv: "),
        ("sweep --over target=embedded,nowhere", "--over target=nowhere: --target takes"),
        ("sweep --over batch=1,2 --keep ../x", "use 1 to 64 letters"),
        ("sweep --resume nowhere", "nowhere holds no sweep"),
        ("sweep --resume other", "holds no sweep, its kind is run"),
        ("sweep --over batch=1,2 --check-shared /x", "--check-shared cannot be given here"),
        ("compare udp", "2 values required"),
        ("compare udp udp", "udp is there twice"),
        ("compare udp pigeon", "pigeon"),
        ("compare udp tcp --transport udp", "--transport cannot be given here"),
        ("compare udp tcp --baseline xdp", "not among udp, tcp"),
        ("compare udp xdp --threads 2", "one core at each end"),
        ("compare udp udp-plain --workload d --check", "--check knows the records"),
        ("compare udp packet --hotspot-set 0.5", "give --distribution hotspot with them"),
        ("compare udp udp-plain --trace nowhere.csv", "nowhere.csv"),
        ("run --json nowhere/x.json", "cannot write the result to \"nowhere/x.json\""),
        ("compare udp tcp --json nowhere/x.json", "cannot write the result to"),
        ("sweep --over batch=1,2 --json nowhere/x.json", "cannot write the result to"),
        ("search --json nowhere/x.json", "cannot write the result to"),
        ("peers --json nowhere/x.json", "cannot write the result to"),
        ("store --json nowhere/x.json", "cannot write the result to"),
        ("cache --keep a/b", "use 1 to 64 letters"),
        ("peers --keep a/b", "use 1 to 64 letters"),
        ("wire --keep a/b", "use 1 to 64 letters"),
        ("store --keep x --results other/result.json", "cannot create the folder"),
        ("search --slo p98=1ms", "`p98` is no quantile"),
        ("search --slo p99=1", "`1` is no time"),
        ("search --slo p99=1ms --slo p99=2ms", "--slo names p99 twice"),
        ("search --rate 5", "--rate cannot be given here"),
        ("search --max-loss 2", "give a share of 0 to 1"),
        ("search --target nowhere", "host:port"),
    ] {
        let output = place.run(arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {error}");
        assert!(error.contains(words), "{arguments}: {error}");
        assert!(place.kept().is_none(), "{arguments}");
    }
}
