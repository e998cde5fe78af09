//! The check of a run can say no: with a deliberate fault in server or client it does. Built with `--features mutants`.

#![cfg(feature = "mutants")]

use std::process::Command;

/// Options of a load in which many clients wait for few short requests: gets that find nothing to join but what was sent.
const SMALL: &str = "--threads 4 --window 4 --batch 10";

/// Runs a short checked load with faults on the way and returns exit code, violations, and what was said.
fn checked(mutant: Option<&str>, options: &str) -> (Option<i32>, u64, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linerate-bench"));
    command.args([
        "run",
        "--check",
        "--workload",
        "a",
        "--records",
        "1000",
        "--warmup",
        "0.1",
        "--duration",
        "1",
    ]);
    command.args(["--coalesce", "--loss", "0.01", "--dup", "0.02", "--reorder", "0.02", "--json", "-"]);
    command.args(options.split_whitespace());
    if let Some(mutant) = mutant {
        command.args(["--mutant", mutant]);
    }
    let output = command.output().expect("the bench runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON, whatever was found");
    (output.status.code(), report["check"]["violations"].as_u64().expect("a number"), said)
}

/// Goal: a run without faults in the programs passes, so that the others mean something.
#[test]
fn without_a_mutant_nothing_is_found() {
    for options in ["", SMALL] {
        let (code, violations, said) = checked(None, options);
        assert_eq!((code, violations), (Some(0), 0), "{said}");
    }
}

/// Goal: each of these mistakes is found. Method: one run each.
#[test]
fn mutants_are_found() {
    for (mutant, options) in [
        ("no_dedup", ""),
        ("lost_write", ""),
        ("version_kept", ""),
        ("stale_reply_accepted", ""),
        ("retransmit_renumbered", ""),
        ("coalesce_in_flight", SMALL),
    ] {
        let (code, violations, said) = checked(Some(mutant), options);
        println!("{mutant}: {violations} violations");
        assert_eq!(code, Some(1), "{mutant}: {said}");
        assert!(violations > 0, "{mutant}: {said}");
        assert!(said.contains("not linearizable"), "{said}");
    }
}
