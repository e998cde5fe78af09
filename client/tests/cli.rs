//! The `linerate` program: outputs, exit codes and refusals.

use std::{
    io::Write,
    net::{SocketAddr, UdpSocket},
    process::{Command, Output, Stdio},
};

use linerate_dataplane::{
    netns::{Namespace, Pair, PairConfig},
    pin::allowed_cores,
};
use linerate_server::{Datagrams, Server, ServerConfig};

fn server(cores: usize) -> Server {
    let cpus = allowed_cores().unwrap().into_iter().cycle().take(cores).collect();
    Server::start(&ServerConfig { port: 0, cpus, memory_len: cores * (32 << 20), ..ServerConfig::default() })
        .unwrap()
}

/// The program with the address of a server and a patience for busy machines.
fn linerate(addr: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linerate"));
    command
        .args(["--servers", &addr.to_string(), "--timeout-ms", "10000"])
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// What the program printed, once it has ended with `code`.
fn ended(command: &mut Command, code: i32) -> (String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!(status.code(), Some(code), "{command:?}\n{stdout}\n{stderr}");
    (stdout, stderr)
}

/// The sentence of a refusal: one line on standard error, nothing else, exit code 2.
fn refusal(command: &mut Command) -> String {
    let (stdout, stderr) = ended(command, 2);
    assert_eq!(stdout, "", "{command:?}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{command:?}: {stderr}");
    stderr
}

/// Goal: scripts can rely on outputs and exit codes. Method: the life of a key over both transports.
#[test]
fn operations_print_their_answers_and_tell_by_their_exit_code() {
    let server = server(2);
    for transport in ["udp", "tcp"] {
        let run = |arguments: &[&str], code| {
            ended(linerate(server.addr(), arguments).args(["--transport", transport]), code)
        };
        let missing = (String::new(), "linerate: not found\n".to_owned());
        assert_eq!(run(&["get", "key"], 1), missing);
        assert_eq!(run(&["put", "key", "some value"], 0), (String::new(), String::new()));
        assert_eq!(run(&["get", "key"], 0), ("some value".to_owned(), String::new()));
        assert_eq!(run(&["put", "key", ""], 0).0, "");
        assert_eq!(run(&["get", "key"], 0).0, "");
        assert_eq!(run(&["del", "key"], 0), (String::new(), String::new()));
        assert_eq!(run(&["del", "key"], 1), missing);
        assert_eq!(run(&["get", "key"], 1), missing);
    }
}

/// Goal: conditions, counters and times to live can be used from scripts. Method: each option met and not met; versions are
/// read from what `get --meta` tells.
#[test]
fn conditions_and_counters_tell_by_their_exit_code() {
    let server = server(2);
    for transport in ["udp", "tcp"] {
        let run = |arguments: &[&str], code| {
            ended(linerate(server.addr(), arguments).args(["--transport", transport]), code)
        };
        let nothing = (String::new(), String::new());
        assert_eq!(run(&["put", "k", "v", "--if-present"], 1).1, "linerate: not found\n");
        assert_eq!(run(&["put", "k", "v", "--if-version", "3"], 1).1, "linerate: not found\n");
        assert_eq!(run(&["put", "k", "one", "--if-absent"], 0), nothing);
        let (value, meta) = run(&["get", "k", "--meta"], 0);
        let version =
            meta.strip_prefix("linerate: version ").and_then(|rest| rest.split(',').next()).unwrap();
        assert_eq!(
            (&value[..], &meta[..]),
            ("one", &format!("linerate: version {version}, does not expire\n")[..])
        );
        let refused = format!("linerate: not stored: the key has a value already, of version {version}\n");
        assert_eq!(run(&["put", "k", "two", "--if-absent"], 1), (String::new(), refused));
        assert_eq!(run(&["put", "k", "two", "--if-version", version], 0), nothing);
        let (_, refused) = run(&["put", "k", "three", "--if-version", version], 1);
        assert!(refused.starts_with("linerate: not stored: the value has version "), "{refused}");
        assert_eq!(run(&["put", "k", "three", "--if-present"], 0), nothing);
        assert_eq!(run(&["get", "k"], 0).0, "three");
        assert!(run(&["add", "k", "1"], 2).1.contains("adding needs one of exactly 8 bytes"));
        assert_eq!(run(&["del", "k"], 0), nothing);

        assert_eq!(run(&["add", "n", "5"], 0), ("5\n".to_owned(), String::new()));
        assert_eq!(run(&["add", "n", "-7"], 0).0, "-2\n");
        assert_eq!(run(&["add", "n", "9223372036854775807"], 0).0, "9223372036854775805\n");
        assert_eq!(run(&["del", "n"], 0), nothing);
    }
}

/// Goal: the program speaks over rings, to a server on rings, and `auto` says what it chose. Method: the life of a key from
/// one host to another, in namespaces of their own.
#[test]
fn rings_carry_operations() {
    if !Namespace::is_available() {
        return;
    }
    let (here, there) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    let hosts = Pair::new(&here, &there, PairConfig { queues: 2, ..PairConfig::default() }).unwrap();
    for (datagrams, transport) in
        [(Datagrams::Packet, "packet"), (Datagrams::Xdp, "xdp"), (Datagrams::Xdp, "auto")]
    {
        let cpus = allowed_cores().unwrap().into_iter().cycle().take(2).collect();
        let config = ServerConfig {
            listen: hosts.a.addr.into(),
            port: 0,
            cpus,
            memory_len: 64 << 20,
            datagrams: Some(datagrams),
            tcp: false,
            insecure_no_auth: true,
            ..ServerConfig::default()
        };
        let server = here.run(|| Server::start(&config)).unwrap();
        let run = |arguments: &[&str], code| {
            let mut command = linerate(server.addr(), arguments);
            there.run(|| ended(command.args(["--transport", transport]), code))
        };
        assert_eq!(run(&["put", "key", "some value"], 0).0, "");
        let (value, said) = run(&["get", "key"], 0);
        assert_eq!(value, "some value");
        assert_eq!(said.contains("chose udp: no zero-copy AF_XDP"), transport == "auto", "{said}");
        assert_eq!(run(&["del", "key"], 0).0, "");
        assert!(run(&["get", "key"], 1).1.contains("not found"));
    }
}

/// Goal: values may come from a pipe. Method: a value with line ends in it, through standard input.
#[test]
fn a_value_is_read_from_standard_input() {
    let server = server(1);
    let value = "line\n".repeat(284) + "end";
    let mut put = linerate(server.addr(), &["put", "piped", "-"]);
    let mut child = put.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(ended(&mut linerate(server.addr(), &["get", "piped"]), 0).0, value);
}

/// Goal: somebody can look at a server from outside. Method: pings and statistics of two cores, with what a put and a
/// get must have counted.
#[test]
fn pings_and_statistics_name_each_core() {
    let server = server(2);
    ended(&mut linerate(server.addr(), &["put", "key", "value"]), 0);
    ended(&mut linerate(server.addr(), &["get", "key"]), 0);
    let (pings, _) = ended(&mut linerate(server.addr(), &["ping", "--count", "5"]), 0);
    assert_eq!(pings.lines().count(), 2);
    for (line, addr) in pings.lines().zip(server.addrs()) {
        assert!(line.starts_with(&format!("{addr}: min ")) && line.ends_with("0 of 5 lost"), "{line}");
    }
    // The server publishes its counters some fifty times a second.
    let told = (0..100).any(|_| {
        let (stats, _) = ended(&mut linerate(server.addr(), &["stats"]), 0);
        assert!(server.addrs().iter().all(|addr| stats.contains(&addr.to_string())), "{stats}");
        assert!(!stats.contains("no_space"), "zeros are left out: {stats}");
        let count = |name: &str| stats.lines().filter(|line| line.split_whitespace().eq([name, "1"])).count();
        (count("gets"), count("puts"), count("records")) == (1, 1, 1)
    });
    assert!(told, "one get, one put and one record are counted");
    let (all, _) = ended(&mut linerate(server.addr(), &["stats", "--all"]), 0);
    assert!(all.contains("no_space"), "{all}");
}

/// Goal: each wrong input is answered by one sentence with the allowed range. Method: keys and values of all wrong
/// lengths, in each command that takes them.
#[test]
fn keys_and_values_outside_the_limits_are_refused_with_them() {
    let server = server(1);
    let long = "k".repeat(256);
    for key in ["", &long] {
        for arguments in [&["get", key][..], &["put", key, "value"], &["del", key]] {
            let sentence = refusal(&mut linerate(server.addr(), arguments));
            let expected = format!("key of {} bytes: a key has 1..=255 bytes", key.len());
            assert!(sentence.contains(&expected), "{sentence}");
        }
    }
    for (value_len, code) in [(1 << 20, 0), ((1 << 20) + 1, 2)] {
        let mut put = linerate(server.addr(), &["put", "piped", "-"]);
        let mut child = put.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&vec![b'v'; value_len]).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        let sentence = String::from_utf8(output.stderr).unwrap();
        assert_eq!(sentence.contains("value of 1048577 bytes: a value has 0..=1048576 bytes"), code == 2);
    }
    let (value, _) = ended(&mut linerate(server.addr(), &["get", "piped"]), 0);
    assert_eq!(value.len(), 1 << 20, "the longest value, and nothing else");
}

/// Goal: a server that cannot be reached is named. Method: a port whose socket was closed, and names that are none.
#[test]
fn unreachable_servers_are_named() {
    let addr = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for transport in ["udp", "tcp"] {
        // The later option wins over the patience of `linerate`.
        let mut command = Command::new(env!("CARGO_BIN_EXE_linerate"));
        let options = ["--servers", &addr.to_string(), "--timeout-ms", "200", "--transport", transport];
        let sentence = refusal(command.args(options).args(["get", "key"]).stdin(Stdio::null()));
        assert!(sentence.contains(&format!("no answer from {addr} within 200ms")), "{sentence}");
    }
    for name in ["nonsense", "127.0.0.1:", "127.0.0.1:70000", ""] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_linerate"));
        let sentence = refusal(command.args(["--servers", name, "get", "key"]).stdin(Stdio::null()));
        assert!(sentence.contains("give host:port, such as 127.0.0.1:4100"), "{sentence}");
    }
}

/// Goal: wrong options name what is allowed. Method: one of each; the answer is that of the option parser, several
/// lines, so only its content and the exit code are looked at.
#[test]
fn wrong_options_are_refused_with_what_is_allowed() {
    let cases: [(&[&str], &str); 14] = [
        (&["--timeout-ms", "0", "get", "key"], "1..=600000"),
        (&["--timeout-ms", "600001", "get", "key"], "1..=600000"),
        (&["ping", "--count", "0"], "1..=1000000"),
        (&["--transport", "quic", "get", "key"], "udp, packet, xdp, tcp or auto"),
        (&["get"], "<KEY>"),
        (&["put", "key"], "<VALUE>"),
        (&["steal", "key"], "steal"),
        (&["put", "key", "value", "--ttl", "0s"], "give 1ms to 4294967295ms, such as 500ms, 5s or 2h"),
        (&["put", "key", "value", "--ttl", "50d"], "give 1ms to 4294967295ms"),
        (&["put", "key", "value", "--ttl", "soon"], "`soon` is no time to live"),
        (&["put", "key", "value", "--if-absent", "--if-present"], "--if-present"),
        (&["put", "key", "value", "--if-version", "0"], "1.."),
        (&["add", "key", "half"], "half"),
        (&["add", "key", "1", "--ttl=-1s"], "`-1s` is no time to live"),
    ];
    for (arguments, expected) in cases {
        let mut command = Command::new(env!("CARGO_BIN_EXE_linerate"));
        let (stdout, stderr) = ended(command.args(arguments).stdin(Stdio::null()), 2);
        assert_eq!(stdout, "");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
}
