//! The `linerate-server` program: what it refuses at its start, what it prints, and how it ends.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use linerate_client::{Client, SessionConfig};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long to wait for a line or an end, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(10);

fn command(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linerate-server"));
    command.args(options).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program to an end that must be a refusal, and returns its one sentence.
fn refusal(options: &[&str]) -> String {
    let output = command(options).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{options:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{options:?} is refused before anything is announced");
    stderr
}

/// A server that runs, its first address, and the lines that it prints.
struct Running {
    child: Child,
    addr: SocketAddr,
    lines: Receiver<String>,
}

impl Running {
    fn start(options: &[&str]) -> Self {
        Self::start_at("0", options)
    }

    fn start_at(port: &str, options: &[&str]) -> Self {
        Self::start_in(port, options, &[])
    }

    fn start_in(port: &str, options: &[&str], environment: &[(&str, &str)]) -> Self {
        let all = [&["--port", port, "--memory", "32MiB"], options].concat();
        let mut child = command(&all).envs(environment.iter().copied()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let plan = lines.recv_timeout(PATIENCE).expect("the server says where its memory goes");
        assert!(plan.starts_with("linerate-server: memory 32.0 MiB: "), "{plan}");
        assert!(plan.contains("huge pages") && plan.contains("when full it "), "{plan}");
        let first = lines.recv_timeout(PATIENCE).expect("the server says that it serves");
        let addr = first.split(' ').find_map(|word| word.trim_end_matches(',').parse().ok());
        Self { child, addr: addr.unwrap_or_else(|| panic!("no address in `{first}`")), lines }
    }

    /// Sends the signal and returns the lines printed until the end, which must be a success.
    fn stop(mut self, signal: Signal) -> Vec<String> {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        let mut lines = Vec::new();
        // The channel closes when the program has closed its output.
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            lines.push(line);
        }
        let status = self.child.wait().unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(status.code(), Some(0), "{signal}: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        lines
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only a test that fails leaves it running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Goal: nobody serves the world by accident. Method: addresses that are not loopback, without the option that says so.
#[test]
fn a_public_address_is_refused_without_consent() {
    for listen in ["0.0.0.0", "::", "10.0.0.1"] {
        let sentence = refusal(&["--listen", listen, "--port", "0"]);
        assert!(sentence.contains(&format!("refusing to listen at {listen}")), "{sentence}");
        assert!(sentence.contains("--insecure-no-auth"), "{sentence}");
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
    }
}

/// Goal: a port that is taken is named. Method: a socket of the test holds it, for UDP and for TCP.
#[test]
fn a_port_in_use_is_named() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    for (addr, transport) in [(udp.local_addr().unwrap(), "udp"), (tcp.local_addr().unwrap(), "tcp")] {
        let port = addr.port().to_string();
        let sentence = refusal(&["--port", &port, "--transports", transport, "--memory", "32MiB"]);
        assert!(sentence.contains(&addr.to_string()) && sentence.contains("in use"), "{sentence}");
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
    }
}

/// Goal: servers of one map are one store, each saying which node it is. Method: a map in a file for two servers; a client that
/// is told one of them, and a key for each; a list of servers means the same.
#[test]
fn a_map_makes_servers_a_cluster() {
    let folder = Folder::new();
    let port = free_ports();
    let map = folder.file(
        "map.toml",
        &format!(
            "epoch = 3\n[[node]]\nid = 10\naddr = \"127.0.0.1:{port}\"\ncores = 1\n\
             [[node]]\nid = 20\naddr = \"127.0.0.1:{}\"\ncores = 1\n",
            port + 1
        ),
    );
    let list = format!("127.0.0.1:{port},127.0.0.1:{}/1", port + 1);
    for (cluster, ids, epoch) in [(&map, ["10", "20"], 3), (&list, ["1", "2"], 1)] {
        let ports = [port, port + 1];
        let servers = ports
            .iter()
            .zip(ids)
            .map(|(port, id)| Running::start_at(&port.to_string(), &["--cluster", cluster, "--node-id", id]));
        let servers: Vec<_> = servers.collect();
        for (server, id) in servers.iter().zip(ids) {
            let line = server.lines.recv_timeout(PATIENCE).unwrap();
            let expected =
                format!("linerate-server: node {id} of 2, epoch {epoch} of the cluster map, digest ");
            assert!(line.starts_with(&expected), "{line}");
        }
        let mut client = Client::connect_udp(&[servers[1].addr], SessionConfig::default()).unwrap();
        assert_eq!(client.session().cluster().epoch(), epoch);
        let pairs: Vec<_> = (0..64u32).map(|number| (number.to_be_bytes(), b"value")).collect();
        client.multi_put(&pairs).unwrap();
        drop(client);
        for server in servers {
            let lines = server.stop(Signal::SIGTERM);
            let total = lines.last().unwrap();
            let puts: u64 = total
                .split(' ')
                .zip(total.split(' ').skip(1))
                .find(|pair| pair.1 == "puts,")
                .unwrap()
                .0
                .parse()
                .unwrap();
            assert!((8..=56).contains(&puts) && !total.contains("wrong"), "{total}");
        }
    }
}

/// Goal: a server that is not what its map says does not start. Method: each wrong in one way.
#[test]
fn a_wrong_map_is_refused() {
    let folder = Folder::new();
    let node = "[[node]]\nid = 1\naddr = \"127.0.0.1:11000\"\ncores = 1\n";
    let map = folder.file("map.toml", &format!("epoch = 1\n{node}"));
    let twice = folder.file("twice.toml", &format!("epoch = 1\n{node}{node}"));
    let broken = folder.file("broken.toml", &format!("epoch = 1\n{node}cores = 2\n"));
    let cases: [(&[&str], &str); 7] = [
        (&["--cluster", &map], "--node-id"),
        (&["--node-id", "1"], "--cluster"),
        (&["--cluster", &map, "--node-id", "2"], "the cluster map has no node 2: its nodes are 1"),
        (
            &["--cluster", &map, "--node-id", "1", "--port", "11001"],
            "node 1 is at 127.0.0.1:11000 with 1 cores in the cluster map, but this server listens at 127.0.0.1:11001",
        ),
        (&["--cluster", &twice, "--node-id", "1"], "twice.toml is no cluster map: node id 1 is used twice"),
        (&["--cluster", &broken, "--node-id", "1"], "broken.toml is no cluster map: line 6: duplicate key"),
        (&["--cluster", "gone.toml", "--node-id", "1"], "can not read the cluster map gone.toml"),
    ];
    for (options, expected) in cases {
        let sentence = refusal(options);
        assert!(sentence.contains(expected), "{options:?}: {sentence}");
    }
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("linerate-test-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Writes a file, and returns its path.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The first of two ports that are free, below those that the kernel gives to others meanwhile.
fn free_ports() -> u16 {
    let is_free = |port: u16| {
        UdpSocket::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok()
    };
    let mut ports = (0..1_000).map(|_| rand::random_range(12_000..32_000));
    ports.find(|&port| is_free(port) && is_free(port + 1)).expect("some ports are free")
}

/// Goal: a wrong option is answered with what would be right. Method: each wrong in one way.
#[test]
fn wrong_options_are_refused_with_the_range() {
    let cases: [(&[&str], &str); 15] = [
        (&["--cores", "x"], "0-3 or 0,2,4-5"),
        (&["--cores", ""], "0-3 or 0,2,4-5"),
        (&["--cores", "3-1"], "write 1-3"),
        (&["--cores", "0,0"], "core 0 is listed twice"),
        (&["--cores", "99999"], "from 0 to at most"),
        (&["--cores", "1023"], "the allowed cores are"),
        (&["--memory", "1MiB"], "1.0 MiB of memory for 1 cores: give at least 18 MiB"),
        (&["--memory", "1MiB", "--transport", "udp"], "because buffers and program count too"),
        (&["--at-capacity", "forget"], "give refuse or evict"),
        (&["--memory", "much"], "--memory"),
        (&["--port", "65536"], "65535"),
        (&["--listen", "nowhere"], "--listen"),
        (&["--idle", "sleep"], "spin or epoll"),
        (&["--transports", "quic"], "udp, packet, xdp, tcp or auto"),
        (&["--stats-interval", "often"], "--stats-interval"),
    ];
    for (options, expected) in cases {
        let sentence = refusal(options);
        assert!(sentence.contains(expected), "{options:?}: {sentence}");
    }
}

/// Goal: both signals that ask a program to end are obeyed after what has arrived is answered. Method: a client writes,
/// the signal comes, and the totals on standard output include the writes. The client waits long enough that none is sent
/// twice on however busy a machine.
#[test]
fn signals_end_it_with_totals() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let running = Running::start(&["--stats-interval", "0"]);
        let config = SessionConfig { timeout: PATIENCE, rto_floor: PATIENCE / 2, ..SessionConfig::default() };
        let mut client = Client::connect_udp(&[running.addr], config).unwrap();
        client.put(b"key", b"value").unwrap();
        client.put(b"other", b"value").unwrap();
        assert!(client.get(b"key").unwrap().is_some());
        drop(client);
        let lines = running.stop(signal);
        assert_eq!(lines.len(), 1, "no other statistics were asked for: {lines:?}");
        let expected = "total: 1 gets, 2 puts, 0 deletes, hit ratio 1.0000, 0 replays, 1 sessions, 2 records";
        assert!(lines[0].starts_with(expected), "{lines:?}");
    }
}

/// Goal: somebody who watches sees what happens. Method: with an interval of a second, lines of statistics come, and
/// one tells of the record that was put and of the datagram that was dropped.
#[test]
fn a_line_of_statistics_comes_each_interval() {
    let running = Running::start(&["--stats-interval", "1"]);
    let config = SessionConfig { timeout: PATIENCE, ..SessionConfig::default() };
    Client::connect_tcp(&[running.addr], config).unwrap().put(b"key", b"value").unwrap();
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[0x26; 32], running.addr).unwrap();
    let (mut counted, mut dropped) = (false, false);
    for _ in 0..10 {
        let line = running.lines.recv_timeout(PATIENCE).expect("a line each second");
        for part in ["get/s", "put/s", "ops/s", "hit ratio", "records", "sessions"] {
            assert!(line.contains(part), "no {part} in `{line}`");
        }
        counted |= line.contains("  1 records");
        dropped |= line.contains("dropped: 1 version");
        if counted && dropped {
            break;
        }
    }
    assert!(counted && dropped);
    let lines = running.stop(Signal::SIGTERM);
    assert!(lines.last().unwrap().starts_with("total: 0 gets, 1 puts"), "{lines:?}");
}

/// Goal: it listens at the address that it announces, and only on what was asked for. Method: TCP alone, and a client of
/// each transport.
#[test]
fn it_serves_where_and_how_it_says() {
    let running = Running::start(&["--transports", "tcp", "--stats-interval", "0"]);
    let config = SessionConfig { timeout: Duration::from_millis(200), ..SessionConfig::default() };
    assert!(Client::connect_udp(&[running.addr], config).is_err(), "UDP was not asked for");
    let config = SessionConfig { timeout: PATIENCE, ..config };
    assert_eq!(Client::connect_tcp(&[running.addr], config).unwrap().get(b"key").unwrap(), None);
    running.stop(Signal::SIGTERM);
}

/// A service manager as a server sees it: the socket that it tells how it is.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("linerate-{name}-{}", std::process::id()));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path }
    }

    /// The next message, line by line.
    fn told(&self) -> Vec<String> {
        let mut buffer = [0; 1_024];
        let len = self.socket.recv(&mut buffer).expect("the server says how it is");
        String::from_utf8_lossy(&buffer[..len]).lines().map(str::to_owned).collect()
    }

    /// The first message with this line.
    fn wait_for(&self, line: &str) -> Vec<String> {
        for _ in 0..1_000 {
            let told = self.told();
            if told.iter().any(|told| told == line) {
                return told;
            }
        }
        panic!("a thousand messages without {line}");
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Goal: a service manager hears that the server serves once it does and not before, that it lives for as long as it does,
/// and that it stops. Method: the test is the manager; the first message names an address, which takes a connection at once.
#[test]
fn a_service_manager_is_told() {
    let manager = Manager::new("told");
    let environment = [("NOTIFY_SOCKET", manager.path.to_str().unwrap()), ("WATCHDOG_USEC", "90000")];
    let running = Running::start_in("0", &["--stats-interval", "1"], &environment);
    let ready = manager.told();
    assert_eq!(ready, ["READY=1".to_owned(), format!("STATUS=serving at {}", running.addr)]);
    TcpStream::connect(running.addr).unwrap();
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    let figures = (0..1_000).map(|_| manager.told().remove(0)).find(|told| told.starts_with("STATUS="));
    assert!(figures.as_ref().is_some_and(|told| told.contains("ops/s")), "{figures:?}");
    running.stop(Signal::SIGTERM);
    assert_eq!(manager.wait_for("STOPPING=1").len(), 1);
    manager.socket.set_nonblocking(true).unwrap();
    let after = manager.socket.recv(&mut [0; 1_024]).unwrap_err();
    assert_eq!(after.kind(), ErrorKind::WouldBlock, "a server that stops has nothing more to say");
}

/// Goal: a manager that does not wait for signs of life gets none, one that waits for another process's neither, and a
/// server that does not start is never ready. Method: servers with other environments.
#[test]
fn a_service_manager_is_told_no_more_than_it_wants() {
    let manager = Manager::new("quiet");
    let path = manager.path.to_str().unwrap();
    let elsewhere = [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")];
    for environment in [&elsewhere[..1], &elsewhere[..]] {
        let running = Running::start_in("0", &["--stats-interval", "1"], environment);
        assert!(manager.told().contains(&"READY=1".to_owned()));
        assert!(manager.told()[0].starts_with("STATUS="), "after a second, and nothing before");
        running.stop(Signal::SIGINT);
        manager.wait_for("STOPPING=1");
    }
    let failed = command(&["--listen", "0.0.0.0"]).env("NOTIFY_SOCKET", path).output().unwrap();
    assert_eq!(failed.status.code(), Some(2));
    manager.socket.set_nonblocking(true).unwrap();
    assert_eq!(manager.socket.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// Goal: a service manager that can not be reached is a warning, and the server serves. Method: a socket that is not there.
#[test]
fn a_service_manager_that_is_gone_is_no_reason_to_stop() {
    let mut running =
        Running::start_in("0", &["--stats-interval", "0"], &[("NOTIFY_SOCKET", "/nowhere/linerate")]);
    TcpStream::connect(running.addr).unwrap();
    let stderr = BufReader::new(running.child.stderr.as_mut().unwrap());
    // What the system's huge pages deserve may be said before.
    let warning = stderr.lines().map_while(Result::ok).find(|line| line.contains("$NOTIFY_SOCKET"));
    let warning = warning.expect("a warning");
    assert!(warning.contains("No such file"), "{warning}");
    running.stop(Signal::SIGTERM);
}
