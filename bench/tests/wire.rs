//! `linerate-bench wire` as its users start it, only shorter: needs root, and leaves nothing behind.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::{
        fs::MetadataExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use linerate_dataplane::{
    netns::{Namespace, Pair, PairConfig},
    pin::allowed_cores,
};
use linerate_server::{Datagrams, Server, ServerConfig};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_linerate-bench");

/// A user without any privilege, on every Linux.
const NOBODY: u32 = 65_534;

fn bench(arguments: &str) -> Output {
    Command::new(BENCH).args(arguments.split_whitespace()).output().unwrap()
}

/// Says what does not run and why, and fails where everything has to run.
fn not_run(reason: &str) {
    assert!(
        std::env::var_os("LINERATE_RINGS").is_none_or(|value| value != "required"),
        "LINERATE_RINGS=required, but {reason}"
    );
    let _ = writeln!(std::io::stderr(), "not run: {reason}");
}

/// The output of a comparison; once more when somebody else has kept all CPUs busy.
fn compare(arguments: &str) -> String {
    for _ in 0..10 {
        let output = bench(arguments);
        let (text, error) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        if !text.contains("too busy") {
            assert!(output.status.success(), "{error}");
            return text;
        }
    }
    panic!("this machine is too busy");
}

/// Goal: the threads of a client share the queues of their interface. Method: `run --check` with two threads, over two
/// queues on each side, against a server of two cores: most datagrams come in at a queue of the other thread or core.
#[test]
fn threads_share_an_interface() {
    if !Namespace::is_available() {
        return;
    }
    let (here, there) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    let pair = Pair::new(&here, &there, PairConfig { queues: 2, ..PairConfig::default() }).unwrap();
    let cpus = allowed_cores().unwrap().into_iter().cycle().take(2).collect();
    for (datagrams, name) in [(Datagrams::Xdp, "xdp"), (Datagrams::Packet, "packet")] {
        let config = ServerConfig {
            listen: pair.a.addr.into(),
            port: 0,
            cpus: Vec::clone(&cpus),
            memory_len: 64 << 20,
            datagrams: Some(datagrams),
            tcp: false,
            insecure_no_auth: true,
            ..ServerConfig::default()
        };
        let server = here.run(|| Server::start(&config)).unwrap();
        let arguments = format!(
            "run --target {} --transport {name} --threads 2 --records 5000 --warmup 0.1 --duration 0.3 --check --json -",
            server.addr()
        );
        let output = there.run(|| bench(&arguments));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {error}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["ops"].as_u64().unwrap() > 0 && report["errors"] == 0, "{name}: {report}");
        assert_eq!(report["check"]["violations"], 0, "{name}: {report}");
    }
}

/// Checks the fields of one measurement.
fn check_measured(name: &str, port: &Value) {
    let number = |field: &str| port[field].as_f64().unwrap_or_else(|| panic!("{name} {field}: {port}"));
    for field in
        ["ops_per_sec", "reply_datagrams_per_sec", "frames_per_sec", "gbit_per_sec", "line_rate_share"]
    {
        assert!(number(field) > 0.0, "{name} {field}: {port}");
    }
    assert_eq!(number("wrong_values"), 0.0, "{name}");
    assert_eq!(number("errors"), 0.0, "{name}");
    assert!(!port["mode"].as_str().unwrap().is_empty());
    assert_eq!(port["config"]["transport"], name);
    assert_eq!(port["rounds_ops_per_sec"].as_array().unwrap().len(), 1);
    for cpu in ["server_cpu", "client_cpu"] {
        let share = |field: &str| port[cpu][field].as_f64().unwrap();
        let sum: f64 = ["user", "system", "softirq", "idle", "stolen"].map(share).iter().sum();
        assert!((sum - 1.0).abs() < 1e-6, "{name} {cpu}: {sum}");
    }
}

/// Goal: the JSON has an object per port in its order, with the names and types that scripts rely on, or the reason why
/// not; the shaped cable is not overrun. Method: a short run of all ports with a slow cable.
#[test]
fn the_json_keeps_its_contract() {
    if !Namespace::is_available() {
        return;
    }
    let text = compare("wire --duration 1 --records 20000 --rate 100mbit --json -");
    let report: Value = serde_json::from_str(&text).unwrap();
    let names = ["udp", "udp-plain", "packet", "xdp", "tcp"];
    let places = names.map(|name| text.find(&format!("\n    \"{name}\": {{")).expect(name));
    assert!(places.is_sorted(), "{places:?}");
    assert_eq!(report["ports"].as_object().unwrap().len(), names.len());
    for name in names {
        let port = &report["ports"][name];
        if let Some(error) = port["error"].as_str() {
            assert!(["packet", "xdp"].contains(&name), "{name}: {error}");
            assert_eq!(port.as_object().unwrap().len(), 1);
            assert!(!error.contains('\n') && !error.is_empty());
            not_run(&format!("{name}: {error}"));
            continue;
        }
        check_measured(name, port);
        assert!(port["ceiling_ops_per_sec"].as_f64().unwrap() > 0.0);
        assert_eq!(port.get("shaped").is_some(), name == "udp");
    }
    let shaped = &report["ports"]["udp"]["shaped"];
    check_measured("udp", shaped);
    // At most a full bucket more than the rate: 256 KiB are 105 % of what 100 Mbit/s carry in half the time.
    assert!(shaped["line_rate_share"].as_f64().unwrap() < 2.1, "{shaped}");
    assert!(shaped["gbit_per_sec"].as_f64().unwrap() < 0.21, "{shaped}");
    assert_eq!(report["shaped_rate_bits_per_sec"], 100_000_000);
    assert_eq!(report["line_rate_bits_per_sec"], 10_000_000_000_u64);
    assert_eq!((&report["mtu"], &report["rounds"]), (&1_500.into(), &1.into()));
}

/// Goal: people get a table. Method: one port, and the words that matter.
#[test]
fn people_get_a_table() {
    if !Namespace::is_available() {
        return;
    }
    let table = compare("wire --duration 0.2 --records 2000 --ports tcp,tcp");
    for word in ["tcp", "throughput", "reply datagrams", "frames", "Gbit/s", "share of the rate", "softirq"] {
        assert!(table.contains(word), "{word} is missing from\n{table}");
    }
}

/// Goal: values outside their range are refused with it, and nothing is begun. Method: one of each.
#[test]
fn bad_input_names_the_allowed_range() {
    for (arguments, words) in [
        ("--ports none", "udp-plain"),
        ("--rate 10", "1mbit to 100gbit"),
        ("--rate 0gbit", "1mbit to 100gbit"),
        ("--duration 0", "0.05"),
        ("--records 0", "1.."),
        ("--value-len 1048577", "1048576"),
        ("--batch 0", "1.."),
        ("--window 129", "128"),
        ("--idle never", "epoll"),
        ("--threads 2", "unexpected argument"),
    ] {
        let output = bench(&format!("wire {arguments}"));
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {error}");
        assert!(error.contains(words), "{arguments}: {error}");
    }
}

/// The last line on standard error: a debug build warns before.
fn sentence(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned()
}

/// Goal: without privileges there is one sentence that says how to get them. Method: start as nobody.
#[test]
fn without_root_there_is_a_sentence() {
    let output = if fs::metadata("/proc/self").unwrap().uid() == 0 {
        // Nobody may not be able to reach the folder that it was built in.
        let copy = std::env::temp_dir().join(format!("linerate-bench-nobody-{}", std::process::id()));
        // By another process: else what other tests start meanwhile may keep it open for writing (ETXTBSY, execve(2)).
        assert!(Command::new("cp").arg(BENCH).arg(&copy).status().unwrap().success());
        let output = Command::new(&copy).arg("wire").uid(NOBODY).gid(NOBODY).output();
        fs::remove_file(&copy).unwrap();
        output.unwrap()
    } else if Namespace::new().is_err() {
        bench("wire")
    } else {
        return;
    };
    assert_eq!(output.status.code(), Some(2));
    let error = sentence(&output);
    assert!(error.contains("CAP_SYS_ADMIN") && error.ends_with("run it with sudo"), "{error}");
}

/// Goal: a missing program is named with its package. Method: no path to find programs in.
#[test]
fn a_missing_program_is_named() {
    if !Namespace::is_available() {
        return;
    }
    let output = Command::new(BENCH).arg("wire").env("PATH", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = sentence(&output);
    assert_eq!(error, "linerate-bench: the program `ip` is missing: install the package iproute2");
}

/// The network namespaces that a process holds open.
fn held_namespaces(child: &Child) -> BTreeSet<PathBuf> {
    let Ok(files) = fs::read_dir(format!("/proc/{}/fd", child.id())) else { return BTreeSet::new() };
    let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("net:[")).collect()
}

/// The network namespaces of all processes, and those that have a name.
fn used_namespaces() -> BTreeSet<PathBuf> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path().join("ns/net")));
    let used = processes.filter_map(|path| fs::read_link(path).ok());
    let named = fs::read_dir("/run/netns").into_iter().flatten().filter_map(|entry| {
        let inode = entry.ok()?.metadata().ok()?.ino();
        Some(PathBuf::from(format!("net:[{inode}]")))
    });
    used.chain(named).collect()
}

/// The interfaces of this test's own namespace.
fn interfaces() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = text.lines().filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

/// Goal: Ctrl-C ends a comparison with a sentence, and neither that nor SIGKILL leaves a namespace or a link. Method: a
/// comparison that would take hours, while a port is measured; the namespaces that it held are nowhere afterwards.
#[test]
fn nothing_is_left_behind() {
    if !Namespace::is_available() {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let before = interfaces();
        let child = Command::new(BENCH)
            .args("wire --ports udp --records 1000 --duration 3600".split(' '))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let thread_count =
            || fs::read_dir(format!("/proc/{}/task", child.id())).map_or(0, |tasks| tasks.count());
        // The threads of the server and of the load, and the one that watches inside the client's namespace.
        while thread_count() < 4 {
            thread::sleep(Duration::from_millis(5));
        }
        let held = held_namespaces(&child);
        assert_eq!(held.len(), 2, "{held:?}");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        if signal == Signal::SIGINT {
            assert_eq!(output.status.code(), Some(2));
            assert_eq!(sentence(&output), "linerate-bench: interrupted");
        } else {
            assert_eq!(output.status.signal(), Some(Signal::SIGKILL as i32));
        }
        let left: Vec<_> = used_namespaces().intersection(&held).cloned().collect();
        assert!(left.is_empty(), "{left:?}");
        let appeared: Vec<_> = interfaces().difference(&before).cloned().collect();
        assert!(!appeared.iter().any(|name| name.starts_with("veth")), "{appeared:?}");
    }
}
