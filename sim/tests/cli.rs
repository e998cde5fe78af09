//! The program as scripts see it: what it prints, and how it ends.

use std::{
    fs,
    process::{Command, Output},
};

use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_linerate-sim")).args(arguments).output().expect("the program was built")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the program prints UTF-8")
}

/// Goal: scripts find what they look for. Method: every field of the contract, with its type.
#[test]
fn json_has_the_fields_of_the_contract() {
    let output = run(&["--seeds", "3..6", "--ops", "50", "--threads", "2", "--json", "-"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(json["seeds"], 3);
    assert!(json["ops"].as_u64().unwrap() >= 150);
    assert_eq!((&json["violations"], &json["stuck"]), (&0.into(), &0.into()));
    assert!(json["seeds_per_hour"].as_f64().unwrap() > 0.0);
    let hash = json["trace_hash"].as_str().unwrap();
    assert!(hash.len() == 16 && u64::from_str_radix(hash, 16).is_ok(), "{hash}");
    let faults = json["faults"].as_object().unwrap();
    for name in [
        "drop",
        "duplicate",
        "reorder",
        "delay",
        "truncate",
        "flip",
        "cross_deliver",
        "spoof",
        "replay",
        "clog",
        "partition",
        "rx_overflow",
        "pause_core",
        "restart_server",
        "kill_client",
        "clock_forward",
        "clock_back",
        "evict_session",
        "slow_down",
    ] {
        assert!(faults[name].is_u64(), "{name}");
    }
    assert!(json["first_failure"].is_null() && json["complete"] == true);
}

/// Goal: a seed's trace hash is the same in two processes, and for any number of threads.
#[test]
fn two_processes_agree() {
    let hash = |threads| {
        let output = run(&["--seeds", "0..4", "--ops", "100", "--threads", threads, "--json", "-"]);
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        json["trace_hash"].as_str().unwrap().to_owned()
    };
    assert_eq!(hash("1"), hash("3"));
}

#[test]
fn json_goes_to_a_file() {
    let path = std::env::temp_dir().join(format!("linerate-sim-{}.json", std::process::id()));
    let output = run(&["--seed", "1", "--ops", "20", "--json", path.to_str().unwrap()]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), ""));
    let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(json["seeds"], 1);
    let output = run(&["--seed", "1", "--ops", "1", "--json", "/no/such/folder/x.json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("cannot write the result to \"/no/such/folder/x.json\""));
}

#[test]
fn a_trace_tells_everything_in_order() {
    let output = run(&["--seed", "5", "--ops", "30", "--trace"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines: Vec<_> = text(&output.stdout).lines().collect();
    let last = lines.last().unwrap();
    assert!(last.starts_with("seed 5: ") && last.contains("0 violations, trace hash "), "{last}");
    let times: Vec<f64> = lines[..lines.len() - 1]
        .iter()
        .map(|line| line.split_whitespace().next().unwrap().parse().unwrap())
        .collect();
    assert!(times.len() > 100 && times.is_sorted());
    for word in ["server starts", "client 0 starts", "HELLO", "OPENED", "REQUEST", "operation 0", "delivered"]
    {
        assert!(lines.iter().any(|line| line.contains(word)), "{word}");
    }
}

#[test]
fn wrong_arguments_name_the_range() {
    let cases = [
        (&["--seeds", "9..3"][..], "0..2000"),
        (&["--seeds", "many"], "0..2000"),
        (&["--ops", "0"], "1..=1000000"),
        (&["--threads", "0"], "1..=1024"),
        (&["--trace"], "--seed"),
        (&["--seeds", "0..9", "--seed", "3"], "--seed"),
    ];
    for (arguments, told) in cases {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(told), "{arguments:?}: {}", text(&output.stderr));
    }
}
