//! `linerate-bench cluster run` as its users start it: what it prints and keeps, what it says when something is wrong, and that
//! it leaves nothing behind however it ends.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Output, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use linerate_dataplane::netns::{End, Namespace, PairConfig, Switch};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_linerate-bench");

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A load that a build without optimisation carries in a moment.
const SHORT: [&str; 8] = ["--records", "2000", "--duration", "0.5", "--warmup", "0.1", "--memory", "64MiB"];

/// Builds the server beside the program under test, as `cargo test -p linerate-bench` does not.
fn build_server() {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = Path::new(BENCH).parent().unwrap();
        let profile = match folder.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            name => name,
        };
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let arguments = ["build", "--locked", "-p", "linerate-server", "--bins", "--profile", profile];
        let built = Command::new(cargo)
            .args(arguments)
            .arg("--target-dir")
            .arg(folder.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    });
}

/// A folder of a test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("linerate-cluster-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Processes that were started with a path in this folder.
    fn processes(&self) -> Vec<String> {
        let folder = self.0.to_str().unwrap();
        let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let commands = entries.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
        let commands = commands.map(|command| command.replace('\0', " "));
        commands.filter(|command| command.contains(folder) && !command.contains("sshd")).collect()
    }

    /// Nothing runs any more. A process that was killed by the kernel may take a moment to be gone.
    fn assert_empty(&self) {
        let begun = Instant::now();
        while !self.processes().is_empty() {
            assert!(begun.elapsed() < PATIENCE, "left behind: {:#?}", self.processes());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn command(arguments: &[&str]) -> Command {
    build_server();
    let mut command = Command::new(BENCH);
    command.args(["cluster", "run"]).args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// The sentence of a run that must be refused.
fn refusal(arguments: &[&str]) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    stderr
        .lines()
        .find(|line| line.starts_with("linerate-bench: ") && !line.contains("warning"))
        .unwrap()
        .to_owned()
}

/// The result of a run that must succeed.
fn result(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"))
}

/// The fields that scripts rely on, in a run that went well.
fn check_contract(report: &Value, launcher: &str, servers: usize, clients: usize) {
    assert_eq!((&report["kind"], &report["launcher"]), (&"cluster".into(), &launcher.into()));
    assert_eq!((&report["partial"], &report["failure"]), (&false.into(), &Value::Null), "{report}");
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value}: {report}"));
    assert!(number(&report["total_ops_per_sec"]) > 0.0, "{report}");
    assert!(number(&report["total_ops_per_sec_mean"]) > 0.0, "{report}");
    assert_eq!(report["misrouted"], 0, "{report}");
    assert!(number(&report["partition_balance_pct"]) <= 5.0, "{report}");
    assert_eq!((&report["errors"], &report["outcome_unknown"]), (&0.into(), &0.into()), "{report}");
    let nodes = report["nodes"].as_array().unwrap();
    let of_role = |role: &str| nodes.iter().filter(|node| node["role"] == role).count();
    assert_eq!((of_role("server"), of_role("client")), (servers, clients));
    for node in nodes {
        assert!(node["name"].is_string() && number(&node["median_ops_per_sec"]) > 0.0, "{node}");
        assert!(number(&node["cpu_pct"]) >= 0.0 && number(&node["rss_bytes"]) > 1e6, "{node}");
        for name in ["tx_gbit", "rx_gbit", "line_rate_share"] {
            if launcher == "local" {
                assert!(node[name].is_null(), "{node}");
            } else {
                assert!(number(&node[name]) > 0.0, "{name}: {node}");
            }
        }
    }
}

fn check_checked(report: &Value, tables: usize) {
    let check = &report["check"];
    assert_eq!((&check["violations"], &check["tables"]), (&0.into(), &tables.into()), "{check}");
    assert!(check["ops_checked"].as_u64().unwrap() > 0, "{check}");
    assert_eq!(check["audit"]["impossible"], Value::Null, "{check}");
    assert!(check["audit"]["grown"].as_u64().unwrap() >= 2_000, "{check}");
    assert_eq!(report["wrong_values"], 0);
}

/// Goal: a cluster on loopback, which needs no privilege, is measured, checked and kept. Method: a short run, its JSON, and
/// the files.
#[test]
fn a_cluster_on_loopback_is_measured() {
    let folder = Folder::new("local");
    let out = folder.path("out");
    let arguments = ["--launcher", "local", "--preset", "s2c2", "--check", "--out", &out, "--json", "-"];
    let report = result(&run(&[&arguments[..], &SHORT].concat()));
    check_contract(&report, "local", 2, 2);
    check_checked(&report, 1);
    for file in [
        "spec.toml",
        "cluster.toml",
        "report.json",
        "server1/server.log",
        "server2/node.log",
        "client1/result.json",
        "client2/samples.jsonl",
    ] {
        let text = fs::read_to_string(folder.0.join("out").join(file))
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(!text.is_empty() || file.ends_with("node.log"), "{file}");
    }
    let spec = fs::read_to_string(folder.0.join("out/spec.toml")).unwrap();
    assert!(spec.contains("records = 2000\n") && spec.contains("launcher = \"local\"\n"), "{spec}");
    folder.assert_empty();

    let again = refusal(&[&arguments[..], &SHORT].concat());
    assert!(again.contains("--out: ") && again.contains("holds something already"), "{again}");
}

/// Goal: the clients of an open loop offer the rate together, each by moments and operations of its own, and insert different
/// records. Method: two clients, what each was asked for, and how much was
/// due.
#[test]
fn clients_share_a_rate() {
    let folder = Folder::new("rate-of-all");
    let spec = folder.path("spec.toml");
    let text = "launcher = \"local\"\npreset = \"s1c2\"\n[servers]\nmemory = \"128MiB\"\n\
                [load]\nworkload = \"d\"\nrecords = 2000\nrate = 3000\nduration = 1\nwarmup = 0\nseed = 5\n";
    fs::write(&spec, text).unwrap();
    let report = result(&run(&[&spec, "--out", &folder.path("out"), "--json", "-"]));
    check_contract(&report, "local", 1, 2);
    let of = |name: &str| -> Value {
        let file = folder.path(&format!("out/{name}/result.json"));
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    };
    let both = ["client1", "client2"].map(of);
    for client in &both {
        assert_eq!(client["offered_ops_per_sec"], 1_500.0, "{client}");
        let due = client["latency_count"].as_f64().unwrap();
        assert!((due - 1_500.0).abs() < 150.0, "{due} were due");
        assert_eq!((&client["hit_ratio"], &client["errors"]), (&1.0.into(), &0.into()), "{client}");
    }
    let [first, second] = both.map(|client| client["config"]["seed"].as_u64().unwrap());
    assert!(first == 5 && second != 5, "{first} {second}");
    folder.assert_empty();
}

/// Goal: a series has a point for each run, and a table for people. Method: both orders, from a spec file.
#[test]
fn a_series_has_points() {
    let folder = Folder::new("series");
    let spec = folder.path("spec.toml");
    let text = "launcher = \"local\"\npreset = \"order\"\n[servers]\nmemory = \"64MiB\"\ntransport = \"tcp\"\n\
                [load]\nrecords = 2000\nduration = 0.3\nwarmup = 0.1\nbatch = 16\n";
    fs::write(&spec, text).unwrap();
    let output = run(&[&spec, "--out", &folder.path("out")]);
    let (table, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    assert!(table.contains("order none") && table.contains("order strict"), "{table}");
    let report: Value = serde_json::from_slice(&fs::read(folder.path("out/report.json")).unwrap()).unwrap();
    let points = report["points"].as_array().unwrap();
    assert_eq!(points.len(), 2);
    for (point, order) in points.iter().zip(["none", "strict"]) {
        check_contract(point, "local", 1, 1);
        assert_eq!(
            (&point["label"], &point["spec"]["load"]["order"]),
            (&format!("order {order}").into(), &order.into())
        );
        assert!(Path::new(&folder.path(&format!("out/order-{order}/report.json"))).exists());
    }
    folder.assert_empty();
}

/// A run in the background, which has got as far as measuring.
struct Measuring {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Measuring {
    fn start(arguments: &[&str]) -> Self {
        let mut child = command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("cluster: measuring") {
            assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
        }
        Self { child, stderr }
    }

    /// Waits for its end; returns the exit code, what it printed, and its last words.
    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        self.stderr.read_to_string(&mut stderr).unwrap();
        (self.child.wait().unwrap().code(), stdout, stderr)
    }
}

/// The process of a node.
fn node(folder: &Folder, name: &str, file: &str) -> Pid {
    let text = fs::read_to_string(folder.path(&format!("out/{name}/{file}"))).unwrap();
    Pid::from_raw(text.split(' ').next().unwrap().parse().unwrap())
}

/// Goal: the whole path over a switch, also when a node dies on the way: the failure names it and its log, what there is stays,
/// and no process does. Method: kill a client, a server and a server's node, each in a run of its own.
#[test]
fn a_dead_node_is_named_and_nothing_is_left() {
    if !Namespace::is_available() {
        return;
    }
    for (name, file, words) in [
        ("client2", "node.pid", "node client2 (client): ended before its time (signal: 9"),
        ("server1", "server.pid", "node server1 (server): linerate-server ended by itself (signal: 9"),
        ("server2", "node.pid", "node server2 (server): ended before its time (signal: 9"),
    ] {
        let folder = Folder::new(&format!("dead-{name}"));
        let out = folder.path("out");
        let arguments = [
            "--launcher",
            "netns",
            "--preset",
            "s2c2",
            "--records",
            "2000",
            "--duration",
            "100",
            "--out",
            &out,
        ];
        let measuring = Measuring::start(
            &[&arguments[..], &["--warmup", "0", "--memory", "64MiB", "--json", "-"]].concat(),
        );
        kill(node(&folder, name, file), Signal::SIGKILL).unwrap();
        let (code, stdout, stderr) = measuring.end();
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(words) && stderr.contains("; its log is /"), "{stderr}");
        let report: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(report["partial"], true);
        assert!(report["failure"].as_str().unwrap().contains(words), "{report}");
        assert!(Path::new(&out).join("report.json").exists());
        folder.assert_empty();
    }
}

/// Goal: a run that is interrupted, asked to end or killed leaves no process. Method: each signal in mid-run.
#[test]
fn a_signal_ends_everything() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let folder = Folder::new(&format!("signal-{signal}"));
        let out = folder.path("out");
        let arguments = ["--launcher", "local", "--preset", "s1c1", "--records", "2000", "--duration", "100"];
        let measuring = Measuring::start(&[&arguments[..], &["--out", &out]].concat());
        assert!(folder.processes().len() >= 3, "{:?}", folder.processes());
        kill(Pid::from_raw(measuring.child.id() as i32), signal).unwrap();
        let (code, _, stderr) = measuring.end();
        if signal != Signal::SIGKILL {
            assert_eq!(code, Some(2), "{stderr}");
            assert!(stderr.contains("linerate-bench: interrupted"), "{stderr}");
        }
        folder.assert_empty();
    }
}

/// Goal: a rate is kept on every link, and the headline is the share of it. Method: a slow link, whose rate a short run fills.
#[test]
fn a_rate_is_kept_in_namespaces() {
    if !Namespace::is_available() {
        return;
    }
    let folder = Folder::new("rate");
    let out = folder.path("out");
    let arguments = ["--launcher", "netns", "--preset", "s1c1", "--rate", "50mbit", "--check", "--out", &out];
    let short =
        ["--records", "2000", "--duration", "1", "--warmup", "0.5", "--memory", "64MiB", "--json", "-"];
    let report = result(&run(&[&arguments[..], &short].concat()));
    check_contract(&report, "netns", 1, 1);
    check_checked(&report, 1);
    assert_eq!(report["line_rate_bits_per_sec"], 50_000_000);
    let share = report["line_rate_share_max"].as_f64().unwrap();
    // A bucket of 256 KiB beyond the rate is 4 % of a second.
    assert!((0.3..1.1).contains(&share), "{share}");
    for node in report["nodes"].as_array().unwrap() {
        assert!(node["tx_frame_bytes"].as_f64().unwrap() <= 1_514.0, "{node}");
    }
    folder.assert_empty();
}

/// Goal: what is wrong is said before anything starts, with the node or field. Method: one mistake after the other.
#[test]
fn mistakes_are_named() {
    let folder = Folder::new("mistakes");
    let spec = folder.path("bad.toml");
    for (text, words) in [
        ("[load]\nrecords = 0\n", "bad.toml: load.records: 0 is not allowed: 0 is not in 1..=2147483647"),
        ("launcher = \"ssh\"\n", "the launcher ssh needs hosts"),
        ("[load]\nstall = 100\n", "bad.toml: load.stall: unknown, the fields of load are workload"),
        (
            "[load]\narrivals = \"fixed\"\n",
            "bad.toml: load: --arrivals fixed is for an open loop: give --rate, too",
        ),
        ("nodes = 3\n", "bad.toml, line 1: unknown field `nodes`"),
    ] {
        fs::write(&spec, text).unwrap();
        let error = refusal(&[&spec, "--out", &folder.path("out")]);
        assert!(error.contains(words), "{error}");
    }
    let missing = refusal(&[&folder.path("none.toml")]);
    assert!(missing.contains("cannot read the spec") && missing.contains("none.toml"), "{missing}");

    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    fs::write(&spec, format!("launcher = \"local\"\n[servers]\nport = {port}\n")).unwrap();
    let error = refusal(&[&[&spec[..], "--out", &folder.path("port")], &SHORT[..]].concat());
    assert!(error.contains("node server1 (server): ") && error.contains(&port.to_string()), "{error}");
    assert!(error.contains("/server1/server.log"), "{error}");
    folder.assert_empty();
}

/// A daemon of ssh in a namespace, with keys of its own.
struct Sshd(Child);

impl Sshd {
    fn start(program: &Path, folder: &Folder, host: &End) -> Self {
        let config = folder.path(&format!("sshd-{}", host.addr));
        let text = format!(
            "Port 2222\nListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PasswordAuthentication no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n",
            host.addr,
            folder.path("host-key"),
            folder.path("key.pub"),
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(program);
        command.args(["-D", "-e", "-f", &config]).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = host.namespace.run(|| command.spawn()).unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("Server listening") {
            assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
        }
        // Its log may not fill the pipe.
        thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Self(child)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Says what does not run and why, and fails where everything has to run.
fn not_run(reason: &str) {
    assert!(
        env::var_os("LINERATE_RINGS").is_none_or(|value| value != "required"),
        "LINERATE_RINGS=required, but {reason}"
    );
    let _ = writeln!(std::io::stderr(), "not run: {reason}");
}

/// Goal: hosts that ssh reaches are a cluster: programs are copied, results and logs come back, and nothing stays, not even
/// ssh's own masters. A host that refuses is named with what ssh says. Method: real daemons in namespaces on a switch, two
/// clients with a version table each, then a host where no daemon listens.
#[test]
fn hosts_are_driven_by_ssh() {
    if !Namespace::is_available() {
        return;
    }
    let programs = ["/usr/sbin/sshd", "/usr/bin/ssh-keygen", "/usr/bin/ssh"].map(Path::new);
    if let Some(missing) = programs.iter().find(|program| !program.exists()) {
        return not_run(&format!(
            "{} is missing: install openssh-server and openssh-client",
            missing.display()
        ));
    }
    // Where sshd keeps nothing, but wants a folder all the same; the package's service makes it.
    fs::create_dir_all("/run/sshd").unwrap();
    let folder = Folder::new("ssh");
    for key in ["key", "host-key"] {
        let made = Command::new(programs[1])
            .args(["-q", "-t", "ed25519", "-N", "", "-f", &folder.path(key)])
            .status();
        assert!(made.unwrap().success());
    }
    let mut switch = Switch::new(PairConfig::default()).unwrap();
    let hosts: Vec<_> = (0..4).map(|_| switch.host().unwrap()).collect();
    let _daemons: Vec<_> = hosts[..3].iter().map(|host| Sshd::start(programs[0], &folder, host)).collect();
    let spec = folder.path("spec.toml");
    let text = format!(
        "launcher = \"ssh\"\ndirectory = \"{}\"\nssh_options = [\"-F\", \"/dev/null\", \"-o\", \"Port=2222\", \"-o\", \
         \"StrictHostKeyChecking=no\", \"-o\", \"UserKnownHostsFile=/dev/null\", \"-o\", \"LogLevel=ERROR\", \"-o\", \
         \"IdentitiesOnly=yes\", \"-i\", \"{}\"]\n",
        folder.path("remote"),
        folder.path("key"),
    );
    fs::write(&spec, text).unwrap();
    let list =
        |hosts: &[End]| hosts.iter().map(|host| format!("root@{}", host.addr)).collect::<Vec<_>>().join(",");
    let start = |hosts: &[End], out: &str| {
        let (out, hosts_list) = (folder.path(out), list(hosts));
        let arguments = [&spec, "--hosts", &hosts_list, "--check", "--out", &out, "--json", "-"];
        let mut command = command(&[&arguments[..], &SHORT].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        switch.namespace().run(|| command.output()).unwrap()
    };
    let report = result(&start(&hosts[..3], "out"));
    check_contract(&report, "ssh", 1, 2);
    check_checked(&report, 2);
    let name = hosts[0].addr.to_string();
    let log = fs::read_to_string(folder.path(&format!("out/{name}/server.log"))).unwrap();
    assert!(log.contains("serving at"), "{log}");
    let left: Vec<_> =
        fs::read_dir(folder.path("remote")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "only the programs stay: {left:?}");
    folder.assert_empty();

    let refused = start(&hosts[1..], "refused");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{stderr}");
    let words = format!(
        "node {0}: ssh to root@{0} failed: ssh: connect to host {0} port 2222: Connection refused",
        hosts[3].addr
    );
    assert!(stderr.contains(&words), "{stderr}");
    folder.assert_empty();
}
