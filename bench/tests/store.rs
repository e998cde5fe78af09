//! `linerate-bench store` as its users start it, only shorter.

use std::{
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_linerate-bench");

/// As little as it takes to measure everything.
const SHORT: &str = "--duration 0.05 --rounds 1 --fill-memory 2MiB";

fn bench(arguments: &str) -> Output {
    Command::new(BENCH).arg("store").args(arguments.split_whitespace()).output().unwrap()
}

fn json(arguments: &str) -> Value {
    let output = bench(&format!("{arguments} {SHORT} --json -"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Goal: the JSON has the names that scripts rely on, and no value is wrong. Method: a short run with each kind of
/// value length, and relations that hold at any speed.
#[test]
fn the_json_keeps_its_contract() {
    for (value_len, least_len) in [("128", 128), ("0-300", 0), ("5", 5)] {
        let report = json(&format!("--records 2000 --value-len {value_len} --batch 48"));
        let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name}: {report}"));
        let times = [
            "get_ns",
            "get_uniform_ns",
            "put_ns",
            "put_uniform_ns",
            "insert_ns",
            "insert_untouched_ns",
            "mixed_ns",
            "delete_ns",
            "hashbrown_get_ns",
            "hashbrown_get_uniform_ns",
            "std_get_ns",
            "dashmap_get_ns",
        ];
        for name in times {
            let spread = &report["spread"][name];
            let [min, max] = ["min", "max"].map(|end| spread[end].as_f64().unwrap());
            assert!(0.0 < min && min <= number(name) && number(name) <= max, "{name}: {report}");
            assert_eq!(spread["rounds"].as_array().unwrap().len(), 1);
        }
        assert_eq!((&report["wrong_values"], &report["misses"]), (&0.into(), &0.into()), "{value_len}");
        assert!(number("overhead_bytes_per_record") > 0.0);
        assert!(number("overhead_bytes_per_record_with_ttl") >= number("overhead_bytes_per_record"));
        assert!(number("index_bytes_per_record") > 0.0);
        assert!((0.3..1.0).contains(&number("usable_memory_share")), "{report}");
        for law in ["log_uniform", "uniform"] {
            let usable = &report["usable_memory"][law];
            assert!(usable["share"].as_f64().unwrap() >= number("usable_memory_share"), "{usable}");
            assert!(usable["refusals"].as_u64().unwrap() > 0 && usable["ns_per_put"].as_f64().unwrap() > 0.0);
        }
        assert!(number("lines_per_get") > 2.0 + f64::from(least_len) / 64.0);
        assert!(number("memory_bandwidth_gb_per_sec") > 0.0);
        assert!(number("resize_p9999_us") <= number("resize_max_us"));
        assert!(number("resize_max_us") <= number("resize_noisy_max_us"));
        let share = number("core_share_min");
        assert!(0.0 < share && share <= 1.0);
        let config = &report["config"];
        assert_eq!((&config["records"], &config["batch"]), (&2_000.into(), &48.into()));
        assert_eq!((&config["keys"], &config["seed"]), (&"decimal".into(), &1.into()));
        assert!(report["environment"]["kernel"].is_string());
    }
}

/// Goal: what a seed decides does not change, and beyond a number of records the peers are left out. Method: the same run
/// twice.
#[test]
fn a_seed_decides_and_peers_can_be_left_out() {
    let runs = [(); 2].map(|()| json("--records 1500 --seed 9 --peers-records-max 1499 --cpu 0"));
    let memory = ["overhead_bytes_per_record", "usable_memory_share", "lines_per_get"];
    for name in memory {
        assert_eq!(runs[0][name], runs[1][name], "{name}");
    }
    for name in ["hashbrown_get_ns", "hashbrown_get_uniform_ns", "std_get_ns", "dashmap_get_ns"] {
        assert_eq!(runs[0][name], Value::Null, "{name}");
    }
    assert!(runs[0]["get_ns"].is_f64());
    assert_eq!(runs[0]["config"]["cpu"], 0);
}

/// Goal: people get a table with every measurement and its spread. Method: the words that matter.
#[test]
fn people_get_a_table() {
    let output = bench(&format!("--records 1000 {SHORT}"));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for word in ["median", "hashbrown get", "overhead per record", "usable memory", "wrong values", "1,000"] {
        assert!(table.contains(word), "{word} is missing from\n{table}");
    }
}

/// Goal: a sweep has a report for each number of records, or a column. Method: the two smallest.
#[test]
fn a_sweep_goes_up_in_steps_of_ten() {
    let sweep = json("--sweep 99999");
    assert_eq!(sweep["ended"], Value::Null);
    let points = sweep["points"].as_array().unwrap();
    let records: Vec<_> = points.iter().map(|point| point["config"]["records"].as_u64().unwrap()).collect();
    assert_eq!(records, [1_000, 10_000]);
    assert!(points.iter().all(|point| point["get_ns"].as_f64() > Some(0.0) && point["wrong_values"] == 0));
    let output = bench(&format!("--sweep 1000 {SHORT}"));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("1,000") && table.contains("dashmap get"), "{table}");
}

/// Goal: bad input is refused in a sentence that says what would be right, before anything is measured. Method: one of
/// each.
#[test]
fn bad_input_names_the_allowed_range() {
    for (arguments, words) in [
        ("--records 999", "1000..=100000000"),
        ("--records 100000001", "1000..=100000000"),
        ("--value-len 1048577", "1048576"),
        ("--value-len 9-3", "9-3"),
        ("--theta 11", "10"),
        ("--batch 0", "1..=1024"),
        ("--batch 1025", "1..=1024"),
        ("--duration 0", "0.05"),
        ("--rounds 0", "1..=99"),
        ("--rounds 100", "1..=99"),
        ("--cpu 1023", "the allowed cores are"),
        ("--cpu 1024", "0 to at most 1023"),
        ("--fill-memory 1023KiB", "1MiB to 32GiB"),
        ("--fill-memory 33GiB", "1MiB to 32GiB"),
        ("--fill-memory much", "256MiB"),
        ("--sweep --records 1000", "--records"),
        ("--sweep 999", "1000..=100000000"),
        ("--records 100000000 --value-len 1048576", "are available: give fewer --records"),
    ] {
        let output = bench(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {error}");
        assert!(error.contains(words), "{arguments}: {error}");
    }
}

/// Goal: Ctrl-C ends a measurement with a sentence. Method: one that would take hours, interrupted after a while.
#[test]
fn ctrl_c_ends_a_measurement() {
    let child = Command::new(BENCH)
        .args("store --records 1000 --duration 3600 --fill-memory 1MiB".split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_secs(1));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error.lines().last(), Some("linerate-bench: interrupted"), "{error}");
}
