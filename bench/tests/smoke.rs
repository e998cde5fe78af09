//! The `linerate-bench` program as its users start it, only shorter.

use std::{
    process::{Command, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_linerate-bench");

fn bench(arguments: &str) -> Output {
    Command::new(BENCH).args(arguments.split_whitespace()).output().unwrap()
}

fn json(arguments: &str) -> Value {
    let output = bench(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Goal: the README's first command shows UDP against TCP and ends well. Method: the demo with few records and for a
/// moment; it fails by itself when a value is wrong.
#[test]
fn the_demo_compares_udp_with_tcp() {
    let output = bench("demo --duration 0.3 --records 2000");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for word in ["UDP", "TCP", "UDP : TCP", "throughput", "p99", "wrong values"] {
        assert!(table.contains(word), "{word} is missing from\n{table}");
    }
}

/// Goal: a run does what it says, on every transport and workload. Method: JSON of short runs: operations happened in
/// the right proportion, all gets hit, every value was right, nothing failed.
#[test]
fn runs_report_the_contract_and_are_correct() {
    for (transport, workload, puts) in [("udp", "b", 0.05), ("tcp", "a", 0.5), ("udp", "c", 0.0)] {
        let report = json(&format!(
            "run --transport {transport} --workload {workload} --records 3000 --duration 0.4 --warmup 0.1 \
             --value-len 64-256 --threads 2 --server-cores 2 --order none --verify --checksum --json -"
        ));
        let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name}: {}", report[name]));
        assert!(number("ops") > 0.0 && number("ops_per_sec") > 0.0);
        let share = number("puts_per_sec") / number("ops_per_sec");
        assert!((share - puts).abs() < 0.05, "{transport} {workload}: {share} puts");
        assert_eq!(number("hit_ratio"), 1.0);
        for zero in ["wrong_values", "errors", "outcome_unknown"] {
            assert_eq!(number(zero), 0.0, "{transport} {workload}: {zero}");
        }
        assert!(report["latency_us"]["p50"].as_f64().unwrap() > 0.0);
        assert!(report["batch_latency_us"]["max"].as_f64() >= report["batch_latency_us"]["p50"].as_f64());
        assert_eq!(report["config"]["transport"], transport);
        assert_eq!(report["config"]["server_cores"], 2);
        assert!(number("server_rss_bytes") > 0.0 && number("server_cpu_pct") > 0.0);
    }
}

/// The operations of four batches of 20 in flight for each of up to six threads and cores, as a share of those that have
/// ended: so much do the shares of a short run depend on where it was cut off.
fn in_flight_share(report: &Value) -> f64 {
    480.0 / report["ops"].as_f64().unwrap()
}

/// Goal: inserted records are read, the newest most, by all threads, and every get hits. Method: workload d with one thread
/// and with three, by its own law and by another, values checked.
#[test]
fn workload_d_reads_what_it_inserts() {
    for options in ["--transport tcp --order key", "--threads 3 --server-cores 2", "--distribution hotspot"] {
        let report = json(&format!(
            "run --workload d --records 2000 --duration 0.5 --warmup 0.1 --window 4 --batch 20 --verify {options} --json -"
        ));
        let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name}: {}", report[name]));
        let share = number("puts_per_sec") / number("ops_per_sec");
        assert!(
            number("ops") > 0.0 && (share - 0.05).abs() < 0.02 + in_flight_share(&report),
            "{options}: {share}"
        );
        assert_eq!(number("hit_ratio"), 1.0, "{options}");
        for zero in ["wrong_values", "errors", "outcome_unknown"] {
            assert_eq!(number(zero), 0.0, "{options}: {zero}");
        }
        let law = if options.contains("hotspot") { "hotspot" } else { "latest" };
        assert_eq!(report["config"]["distribution"], law);
        assert!(report["config"]["inserts_max"].as_u64().unwrap() >= 8_192);
    }
}

/// Goal: read-modify-writes are a get and a put each, also where every operation is checked. Method: workload f plain,
/// checked, in strict order, and with loss: half of the gets have a put behind them.
#[test]
fn workload_f_puts_what_it_has_got() {
    for options in
        ["--verify --threads 2", "--check --order strict", "--check --order key --coalesce --loss 0.01"]
    {
        let report = json(&format!(
            "run --workload f --records 2000 --duration 0.5 --warmup 0.1 --window 4 --batch 20 {options} --json -"
        ));
        let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name}: {}", report[name]));
        let coalesced = report["coalesced_per_sec"].as_f64().unwrap_or(0.0);
        let share = number("puts_per_sec") / (number("gets_per_sec") + coalesced);
        assert!(
            (share - 0.5).abs() < 0.05 + 4.0 * in_flight_share(&report),
            "{options}: {share} puts per get"
        );
        let (puts, rmws) = (number("puts_per_sec"), number("rmws_per_sec"));
        assert!((puts / rmws - 1.0).abs() < 0.05, "{options}: {puts} puts, {rmws} of both");
        let us = |name: &str, quantile: &str| report[name][quantile].as_f64().unwrap();
        assert!(us("rmw_latency_us", "p50") > us("latency_us", "p50"), "{options}: {report}");
        for zero in ["wrong_values", "errors", "outcome_unknown"] {
            assert_eq!(number(zero), 0.0, "{options}: {zero}");
        }
        assert_eq!(number("hit_ratio"), 1.0);
        if options.contains("--check") {
            assert_eq!(report["check"]["violations"], 0, "{options}: {}", report["check"]);
        }
    }
}

/// Goal: laws of keys and values do what their names say in a run, and the report names them. Method: short runs, and what
/// is known of each.
#[test]
fn laws_of_keys_and_values_are_reported() {
    for (options, name, hottest) in [
        ("--distribution scrambled --records 100000", "scrambled", 0.0378),
        (
            "--distribution latest --read-share 0.7 --records 1000 --value-len 100:0.7,1000-1200:0.3",
            "latest",
            0.1294,
        ),
        ("--distribution hotspot --hotspot-set 0.1 --hotspot-ops 0.5 --records 1000", "hotspot", 0.005),
        ("--distribution uniform --records 1000 --value-len etc", "uniform", 0.001),
    ] {
        let report = json(&format!(
            "run {options} --duration 0.5 --warmup 0.1 --verify --window 4 --batch 20 --json -"
        ));
        let config = &report["config"];
        assert_eq!(config["distribution"], name);
        let share = config["hottest_key_share"].as_f64().unwrap();
        assert!((share / hottest - 1.0).abs() < 0.02, "{options}: {share}");
        assert_eq!((&report["wrong_values"], &report["hit_ratio"]), (&0.into(), &1.0.into()), "{options}");
        assert_eq!((&report["errors"], &config["trace"]), (&0.into(), &Value::Null));
        if options.contains("--read-share") {
            let share = report["gets_per_sec"].as_f64().unwrap() / report["ops_per_sec"].as_f64().unwrap();
            assert!((share - 0.7).abs() < 0.05 + in_flight_share(&report), "{share}");
            assert_eq!((&config["workload"], config["read_share"].as_f64()), (&"mix".into(), Some(0.7)));
            assert_eq!(config["value_len"], "100:0.7,1000-1200:0.3");
        }
    }
}

/// Goal: a trace is replayed over a cold store, with every operation it has. Method: the sample trace with one thread and with
/// three: what is not there misses, conditions fail, nothing else does, and the report names rows, keys and mix.
#[test]
fn traces_are_replayed() {
    const TRACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cache-trace.csv");
    for options in ["--order key", "--threads 3 --server-cores 2", "--transport tcp"] {
        let report = json(&format!(
            "run --trace {TRACE} --duration 0.5 --warmup 0.1 --window 4 --batch 20 --verify {options} --json -"
        ));
        let config = &report["config"];
        assert_eq!((&config["workload"], &config["distribution"]), (&"trace".into(), &"trace".into()));
        assert_eq!((&config["records"], &config["trace"]["rows"]), (&0.into(), &180.into()));
        assert_eq!(config["trace"]["mix"]["get"].as_f64(), Some(80.0 / 180.0));
        for zero in ["wrong_values", "errors", "outcome_unknown"] {
            assert_eq!(report[zero], 0, "{options}: {report}");
        }
        let hit_ratio = report["hit_ratio"].as_f64().unwrap();
        assert!(0.1 < hit_ratio && hit_ratio < 1.0, "{options}: {hit_ratio}");
        assert!(report["conditions_unmet"].as_u64().unwrap() > 0);
        let gets = report["gets_per_sec"].as_f64().unwrap() / report["ops_per_sec"].as_f64().unwrap();
        assert!((gets - 89.0 / 180.0).abs() < 0.1 + in_flight_share(&report), "{options}: {gets}");
    }
}

/// Goal: loads that can not be are refused in one sentence, before anything is started. Method: each of them.
#[test]
fn impossible_loads_are_refused() {
    let folder = std::env::temp_dir().join(format!("linerate-bench-trace-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let broken = folder.join("broken.csv");
    std::fs::write(&broken, "1,key,3,10,0,get,0\n1,key,3,ten,0,get,0\n").unwrap();
    let broken = broken.to_str().unwrap();
    for (options, reason) in [
        (
            "--workload e",
            "workload e scans ranges of keys, which have no order here: give one of a, b, c, d, f",
        ),
        ("--workload d --check", "--check knows the records that are stored before the run"),
        ("--read-share 0.5 --workload f", "--read-share"),
        ("--read-share 1.5", "it is a number from 0 to 1"),
        ("--hotspot-set 0.5", "give --distribution hotspot with them"),
        ("--workload d --records 2147483647", "--records may be up to"),
        ("--value-len 100:1,200", "lacks its weight"),
        (&format!("--trace {broken}"), "broken.csv: line 2: the value size \"ten\" is no whole number"),
        (&format!("--trace {broken} --check"), "a trace brings its own"),
        (&format!("--trace {broken} --workload b"), "cannot be used with"),
        ("--trace /nowhere.csv", "cannot read the trace \"/nowhere.csv\""),
    ] {
        let output = bench(&format!("run --duration 0.1 {options}"));
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{options}: {error}");
        assert!(error.contains(reason), "{options}: {error}");
        assert!(output.stdout.is_empty());
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Goal: every operation is checked, on good networks and bad ones, the writes add up, and the JSON says so. Method:
/// short runs on each transport, with faults, with many threads, and with values too short for the black box.
#[test]
fn checked_runs_find_nothing_wrong() {
    for (options, sampled) in [
        ("--transport udp --workload a --threads 2 --server-cores 2", true),
        ("--transport tcp --workload b --value-len 64-256", true),
        ("--workload a --order key", true),
        ("--workload a --order strict --loss 0.01", true),
        ("--workload a --loss 0.02 --dup 0.02 --reorder 0.05", true),
        ("--workload b --threads 40 --window 4 --batch 20", true),
        ("--workload a --coalesce --server-cores 2 --loss 0.01", true),
        ("--workload b --coalesce --order strict", true),
        ("--workload b --coalesce --value-len 0-20000 --records 100 --window 4 --batch 10", false),
        ("--workload a --value-len 8", false),
        ("--workload a --value-len 0-100000 --records 100 --window 4 --batch 10", false),
    ] {
        let records = if options.contains("--records") { "" } else { "--records 3000" };
        let report = json(&format!("run {options} --check {records} --duration 0.4 --warmup 0.1 --json -"));
        let check = &report["check"];
        assert_eq!(check["violations"], 0, "{options}: {check}");
        assert_eq!(check["first_violation"], Value::Null);
        assert_eq!(check["data_epochs"], 1);
        assert!(check["ops_checked"].as_u64() >= report["ops"].as_u64(), "{options}: {report}");
        assert_eq!(check["sampled_ops"].as_u64().unwrap() > 0, sampled, "{options}: {check}");
        assert_eq!(check["not_sampled"].is_null(), sampled);
        let audit = |name: &str| check["audit"][name].as_u64().unwrap();
        assert_eq!(check["audit"]["impossible"], Value::Null);
        assert!(audit("acknowledged") >= if records.is_empty() { 100 } else { 3_000 }, "{options}: {check}");
        let grown = audit("acknowledged")..=audit("acknowledged") + audit("unknown");
        assert!(grown.contains(&audit("grown")), "{options}: {check}");
        assert_eq!(report["wrong_values"], 0);
        let coalesces = options.contains("--coalesce");
        assert_eq!(report["config"]["coalesce"], coalesces);
        assert_eq!(report["coalesced_per_sec"].as_f64().is_some_and(|rate| rate > 0.0), coalesces);
        let order =
            options.split("--order ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("none");
        assert_eq!(report["config"]["order"], order);
        assert_eq!((&report["config"]["check"], &report["config"]["verify"]), (&true.into(), &true.into()));
        let faulty = report["config"]["loss"].as_f64().unwrap() > 0.0;
        assert!(!faulty || report["retransmits"].as_u64().unwrap() > 10, "{report}");
    }
}

/// Goal: a get that did not travel is in no headline. Method: gets of ten records, nearly all of which join others; what the
/// server executed bounds what is reported as done.
#[test]
fn coalesced_gets_are_counted_apart() {
    let report = json(
        "run --coalesce --workload c --records 10 --distribution uniform --warmup 0.1 --duration 0.4 --verify --json -",
    );
    let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name}: {}", report[name]));
    assert_eq!(number("ops_per_sec"), number("gets_per_sec"));
    assert!(number("coalesced_per_sec") > 3.0 * number("ops_per_sec"), "{report}");
    assert!((number("ops") - number("ops_per_sec") * number("duration_s")).abs() < 1.0);
    // A request has ten gets at most.
    assert!(number("ops") <= 10.0 * number("datagrams_tx") + 1e4, "{report}");
    assert_eq!((number("hit_ratio"), number("wrong_values")), (1.0, 0.0));
}

/// Goal: two processes check each other, and one of them does the audit of both. Method: a server of its own, two
/// processes at once with one file.
#[test]
fn processes_share_a_check() {
    let server = linerate_server::Server::start(&linerate_server::ServerConfig {
        port: 0,
        memory_len: 128 << 20,
        ..Default::default()
    })
    .unwrap();
    let path = std::env::temp_dir().join(format!("linerate-smoke-check-{}", std::process::id()));
    let arguments = format!(
        "run --target {} --workload a --check-shared {} --records 2000 --duration 1 --warmup 0.5 --json -",
        server.addr(),
        path.display()
    );
    let start = || {
        Command::new(BENCH)
            .args(arguments.split(' '))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let both = [start(), start()];
    let reports = both.map(|child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["check"].clone()
    });
    for check in &reports {
        assert_eq!(check["violations"], 0, "{check}");
    }
    let mut audits: Vec<_> = reports.iter().map(|check| &check["audit"]).collect();
    audits.sort_by_key(|audit| audit["impossible"].is_null());
    assert!(audits[0]["impossible"].as_str().unwrap().contains("last process"), "{audits:?}");
    assert_eq!(audits[1]["impossible"], Value::Null);
    assert_eq!(audits[1]["acknowledged"], audits[1]["grown"], "{audits:?}");
    assert!(audits[1]["acknowledged"].as_u64().unwrap() > 4_000, "{audits:?}");
    std::fs::remove_file(&path).unwrap();
    server.stop().unwrap();
}

/// Goal: a server that comes back empty is no violation, and is said to be one that lost its contents. Method: stop and
/// start it at the same port while a checked run goes on.
#[test]
fn a_server_that_restarts_empty_is_told_from_a_wrong_one() {
    let config = linerate_server::ServerConfig { port: 0, memory_len: 128 << 20, ..Default::default() };
    let server = linerate_server::Server::start(&config).unwrap();
    let addr = server.addr();
    let path = std::env::temp_dir().join(format!("linerate-smoke-restart-{}", std::process::id()));
    let mut checked = Command::new(BENCH)
        .args(format!("run --target {addr} --records 500 --workload a --json -").split(' '))
        .args("--duration 2 --warmup 0 --check-shared".split(' '))
        .arg(&path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The run has begun when somebody has seen versions: the entries of the table are behind 8,320 bytes of header.
    let has_begun =
        || std::fs::read(&path).is_ok_and(|table| table.iter().skip(8_320).any(|&byte| byte != 0));
    while !has_begun() {
        assert_eq!(checked.try_wait().unwrap(), None, "the run has ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(500));
    server.stop().unwrap();
    let server =
        linerate_server::Server::start(&linerate_server::ServerConfig { port: addr.port(), ..config })
            .unwrap();
    let output = checked.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let check = &report["check"];
    assert_eq!((&check["violations"], &check["data_epochs"]), (&0.into(), &2.into()), "{report}");
    assert!(check["audit"]["impossible"].as_str().unwrap().contains("lost its contents"), "{check}");
    assert!(report["hit_ratio"].as_f64().unwrap() < 1.0, "{report}");
    std::fs::remove_file(&path).unwrap();
    server.stop().unwrap();
}

/// Goal: writes that nobody was told of are found, with exit code 1 and a sentence. Method: somebody else writes another
/// key of the same server all the time.
#[test]
fn writes_of_somebody_else_are_found() {
    let server = linerate_server::Server::start(&linerate_server::ServerConfig {
        port: 0,
        memory_len: 128 << 20,
        ..Default::default()
    })
    .unwrap();
    let mut somebody =
        linerate_client::Client::connect_udp(&[server.addr()], linerate_client::SessionConfig::default())
            .unwrap();
    let mut checked = Command::new(BENCH)
        .args(format!("run --target {} --records 500 --check --json -", server.addr()).split(' '))
        .args("--duration 0.5 --warmup 0.5".split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while checked.try_wait().unwrap().is_none() {
        somebody.put(b"something else", b"value").unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = checked.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("writes took effect, but"), "{error}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["check"]["violations"], 1, "{report}");
    server.stop().unwrap();
}

/// Goal: the ceiling runs the same shapes without a store. Method: as above; latencies are not measured there.
#[test]
fn ceilings_are_measured_on_both_transports() {
    for transport in ["udp", "tcp"] {
        let report =
            json(&format!("ceiling --transport {transport} --records 3000 --duration 1 --warmup 0 --json -"));
        assert!(report["ops_per_sec"].as_f64().unwrap() > 0.0);
        assert_eq!((&report["kind"], &report["loop"]), (&"ceiling".into(), &"closed".into()));
        assert_eq!((&report["client_busy_share"], &report["wrong_values"]), (&Value::Null, &Value::Null));
        assert_eq!((&report["config"]["memory_bytes"], &report["partial"]), (&Value::Null, &false.into()));
    }
}

/// Goal: an interrupted ceiling reports what it has measured, and ends with 2. Method: a long one, interrupted after a while.
#[test]
fn an_interrupted_ceiling_is_reported() {
    let child = Command::new(BENCH)
        .args("ceiling --records 1000 --duration 3600 --warmup 0 --json -".split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It has begun when it has the threads of both ends; before that there is nothing to report.
    let threads = || std::fs::read_dir(format!("/proc/{}/task", child.id())).map_or(0, Iterator::count);
    let mut both_since = None;
    for _ in 0..6_000 {
        std::thread::sleep(Duration::from_millis(10));
        both_since =
            if threads() >= 3 { both_since.or_else(|| Some(std::time::Instant::now())) } else { None };
        if both_since.is_some_and(|since| since.elapsed() > Duration::from_secs(2)) {
            break;
        }
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("interrupted after") && error.contains("of the 3600 s"), "{error}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["partial"], &report["kind"]), (&true.into(), &"ceiling".into()));
    assert!(report["ops"].as_u64().unwrap() > 0 && report["duration_s"].as_f64().unwrap() < 3_000.0);
}

/// Goal: bad input is refused in a sentence that says what would be right, with a non-zero exit. Method: one of each.
#[test]
fn bad_input_names_the_allowed_range() {
    for (arguments, words) in [
        ("run --value-len 1048577", "1048576"),
        ("ceiling --value-len 1428 --records 1", "1427"),
        ("run --value-len 9-3", "9-3"),
        ("run --theta 11", "10"),
        ("run --duration 0", "0.05"),
        ("run --records 0", "1.."),
        ("run --batch 0", "1.."),
        ("run --window 129", "128"),
        ("run --order sideways", "none"),
        ("run --loss 0.6", "0 to 0.5"),
        ("run --dup nan", "0 to 0.5"),
        ("run --reorder 0.1 --transport tcp", "another --transport"),
        ("run --transport packet", "linerate-bench wire"),
        ("run --transport xdp", "linerate-bench wire"),
        ("run --transport pigeon", "udp, packet, xdp, tcp or auto"),
        ("run --check-shared /proc/none", "/proc/none"),
        ("ceiling --check", "no store to check"),
        ("ceiling --rate 1000", "leave out --rate"),
        ("run --theta 0.5 --distribution uniform", "leave out --theta"),
        ("run --target 127.0.0.1:1 --idle spin", "leave out --idle"),
        ("run --target nowhere", "host:port"),
        ("model --servers 0", "1.."),
        ("model --value-len 2000", "too long"),
        ("model --mtu 500", "604..=9000"),
        ("model --placement ring", "rendezvous or modulo"),
        ("model --ns-per-datagram 0", "1 to 1000000"),
        ("model --line-rate 10", "1mbit to 100gbit"),
        ("ceiling --target 127.0.0.1:1", "embedded"),
    ] {
        let output = bench(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments}");
        assert!(error.contains(words), "{arguments}: {error}");
    }
}

/// Goal: the model is told without a measurement, one prediction for each number of servers. Method: JSON and table; twice
/// the servers asked alike can twice as much.
#[test]
fn the_model_is_told() {
    let predictions = json(
        "model --servers 2,4 --workload b --distribution uniform --records 5000 --ns-per-datagram 1000 --json -",
    );
    let of = |index: usize, name: &str| {
        predictions[index][name].as_f64().unwrap_or_else(|| panic!("{name}: {predictions}"))
    };
    assert_eq!(predictions.as_array().unwrap().len(), 2);
    assert!((of(1, "even_ops_per_sec") / of(0, "even_ops_per_sec") - 2.0).abs() < 1e-9);
    assert!(of(0, "ops_per_sec") <= of(0, "even_ops_per_sec") && of(0, "busiest_share") >= 0.5);
    assert!(predictions[0]["coalesced"]["answered_per_sec"].as_f64().unwrap() >= of(0, "ops_per_sec"));
    assert_eq!(predictions[1]["limit"], "server_replies");
    assert!(of(1, "cores") > of(1, "busiest_core"));
    let table = String::from_utf8(bench("model --servers 4 --clients 2").stdout).unwrap();
    assert!(table.contains("4 servers") && table.contains("client replies"), "{table}");
}

/// Goal: an unreachable server is an error, not a wait without end. Method: a target where nobody listens.
#[test]
fn an_unreachable_target_is_named() {
    let output = bench("run --target 127.0.0.1:9 --records 10 --duration 0.1");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(error.contains("127.0.0.1:9"), "{error}");
}

/// Goal: Ctrl-C ends a run early, and says so. Method: a long run, interrupted after a while; were the signal ignored,
/// the test would take an hour.
#[test]
fn ctrl_c_ends_a_run() {
    let child = Command::new(BENCH)
        .args("run --records 1000 --duration 3600 --warmup 0".split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("interrupted"), "{error}");
}
