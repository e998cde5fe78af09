//! The `linerate-server` program on rings: who may open them, what goes on beside them, and how they end.
//!
//! Each test has two hosts of its own, joined by a virtual cable. Where this machine does not let us make any, the reason
//! is printed, and `LINERATE_RINGS=required` makes that a failure.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{IpAddr, SocketAddr},
    os::unix::{
        fs::PermissionsExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use linerate_client::{Client, SessionConfig};
use linerate_dataplane::netns::{Namespace, Pair, PairConfig};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};

/// How long to wait for a line or an end, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// User and group of nobody in particular.
const NOBODY: u32 = 65_534;

const RINGS: [&str; 2] = ["packet", "xdp"];

/// Two hosts, or `None` with the reason printed.
fn hosts() -> Option<Pair> {
    if !Namespace::is_available() {
        return None;
    }
    let (here, there) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    Some(Pair::new(&here, &there, PairConfig::default()).unwrap())
}

fn command(program: &str, options: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(options).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A server on the first host.
struct Running {
    child: Child,
    addr: SocketAddr,
    /// The line that says how it serves.
    first: String,
}

impl Running {
    fn start(hosts: &Pair, options: &[&str]) -> Self {
        let listen = hosts.a.addr.to_string();
        let common =
            ["--listen", &listen, "--memory", "32MiB", "--insecure-no-auth", "--stats-interval", "0"];
        let mut command = command(env!("CARGO_BIN_EXE_linerate-server"), &[&common[..], options].concat());
        let mut child = hosts.a.namespace.run(|| command.spawn()).unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("serving at")));
        let Some(Ok(first)) = first else {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("the server did not start: {said}");
        };
        let addr = first.split(' ').find_map(|word| word.trim_end_matches(',').parse().ok());
        Self { child, addr: addr.expect("it says where it serves"), first }
    }

    /// Waits for its end, and returns it with what was said.
    fn end(&mut self) -> (ExitStatus, String) {
        let begun = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(begun.elapsed() < PATIENCE, "the server goes on"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status, said)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only a test that fails leaves it running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Puts and gets from the second host, over the kernel's UDP and over TCP where that is served.
fn ask(hosts: &Pair, addr: SocketAddr, tcp: bool) {
    let config = SessionConfig { timeout: PATIENCE, ..SessionConfig::default() };
    hosts.b.namespace.run(|| {
        let mut udp = Client::connect_udp(&[addr], config).unwrap();
        udp.put(b"key", b"value").unwrap();
        assert_eq!(udp.get(b"key").unwrap().as_deref(), Some(&b"value"[..]));
        if tcp {
            let mut tcp = Client::connect_tcp(&[addr], config).unwrap();
            assert_eq!(tcp.get(b"key").unwrap().as_deref(), Some(&b"value"[..]));
        }
    });
}

/// The program where everybody may run it.
struct Published(PathBuf);

impl Published {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("linerate-rings-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let program = dir.join("linerate-server");
        // Not by this process: what another test starts meanwhile would have the copy open for writing, too, and then nobody
        // may run it (ETXTBSY, execve(2)).
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_linerate-server")).arg(&program).status();
        assert!(copied.unwrap().success());
        Self(program)
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().expect("a file in a folder"));
    }
}

/// Goal: whoever may not open rings learns what is missing and how to get it. Method: the program as nobody, for each kind
/// of rings; runs everywhere.
#[test]
fn a_missing_capability_is_named() {
    let published = Published::new();
    for (ring, capabilities) in
        [("packet", "cap_net_raw+ep"), ("xdp", "cap_net_raw,cap_net_admin,cap_bpf,cap_ipc_lock+ep")]
    {
        let program = published.0.to_str().unwrap();
        let mut command = command(program, &["--transport", ring, "--port", "0", "--memory", "32MiB"]);
        if Uid::effective().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("needs CAP_NET_RAW"), "{said}");
        assert!(said.contains(&format!("sudo setcap {capabilities} {program}")), "{said}");
    }
}

/// Goal: rings of no single IPv4 interface, and two that want the same port, are refused with what would be right.
#[test]
fn impossible_rings_are_refused() {
    let cases: [(&[&str], &str); 5] = [
        (&["--transport", "xdp", "--listen", "0.0.0.0", "--insecure-no-auth"], "listen at its IPv4 address"),
        (&["--transport", "packet", "--listen", "::1"], "listen at its IPv4 address"),
        (&["--transport", "udp,xdp"], "give one of them"),
        (&["--transport", "packet,auto"], "give one of them"),
        (&["--transport", "quic"], "udp, packet, xdp, tcp or auto"),
    ];
    for (options, expected) in cases {
        let output = command(env!("CARGO_BIN_EXE_linerate-server"), options).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}: {said}");
        assert!(said.contains(expected), "{options:?}: {said}");
    }
}

/// Goal: what is not ours goes on as before, and the kernel's own sockets can talk to rings. Method: while rings serve, a
/// client on kernel UDP and one on TCP ask the same server, and the kernel answers pings.
#[test]
fn the_kernel_goes_on_beside_rings() {
    let Some(hosts) = hosts() else { return };
    for ring in RINGS {
        let mut running = Running::start(&hosts, &["--transport", &format!("{ring},tcp")]);
        assert!(running.first.contains("veth0"), "the mode names the interface: {}", running.first);
        ask(&hosts, running.addr, true);
        let IpAddr::V4(to) = running.addr.ip() else { unreachable!("an IPv4 address was given") };
        hosts.b.namespace.command("ping", &["-c", "3", "-i", "0.01", "-W", "5", &to.to_string()]).unwrap();
        running.signal(Signal::SIGTERM);
        let (status, said) = running.end();
        assert_eq!(status.code(), Some(0), "{said}");
    }
}

/// Goal: nothing is left on the interface, however a server ends, so that the next one starts. Method: after SIGTERM and
/// after SIGKILL the interface has no program, and a server on the same port serves again.
#[test]
fn nothing_is_left_behind() {
    let Some(hosts) = hosts() else { return };
    for ring in RINGS {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let mut running = Running::start(&hosts, &["--transport", ring]);
            ask(&hosts, running.addr, false);
            let link = || hosts.a.namespace.command("ip", &["-details", "link", "show", "veth0"]).unwrap();
            assert_eq!(link().contains("xdp"), ring == "xdp", "{}", link());
            running.signal(signal);
            let (status, said) = running.end();
            match signal {
                Signal::SIGKILL => assert_eq!(status.signal(), Some(libc_sigkill()), "{said}"),
                _ => assert_eq!(status.code(), Some(0), "{said}"),
            }
            assert!(!link().contains("xdp"), "{}", link());
        }
    }
}

const fn libc_sigkill() -> i32 {
    Signal::SIGKILL as i32
}

/// Goal: a server whose interface goes says so and ends. Method: the interface is set down, or removed, under a server
/// that serves.
#[test]
fn an_interface_that_goes_ends_the_server() {
    for ring in RINGS {
        for (act, why) in [(["set", "down", "veth0"], "is down"), (["del", "dev", "veth0"], "was removed")] {
            for idle in ["epoll", "spin"] {
                let Some(hosts) = hosts() else { return };
                let mut running = Running::start(&hosts, &["--transport", ring, "--idle", idle]);
                ask(&hosts, running.addr, false);
                hosts.a.namespace.command("ip", &[&["link"], &act[..]].concat()).unwrap();
                let (status, said) = running.end();
                assert_eq!(status.code(), Some(2), "{ring}, {act:?}: {said}");
                assert!(said.contains("veth0") && said.contains(why), "{ring}, {act:?}: {said}");
                assert!(!said.contains("panicked"), "{ring}, {act:?}: {said}");
            }
        }
    }
}

/// Goal: `auto` chooses what the interface can really do, says why, and serves. Method: on a virtual cable, which has no
/// zero-copy.
#[test]
fn auto_says_why() {
    let Some(hosts) = hosts() else { return };
    let mut running = Running::start(&hosts, &["--transport", "auto"]);
    ask(&hosts, running.addr, false);
    assert!(running.first.contains("UDP sockets"), "{}", running.first);
    running.signal(Signal::SIGINT);
    assert_eq!(running.end().0.code(), Some(0));
}
