//! Network namespaces of this process's own, and virtual links between them.
//!
//! A namespace here is nothing but an open file. It has no name and no mount, so that the kernel takes it away, with all
//! links in it, when the last file, thread and socket of it is gone: also after SIGKILL. The links are made by ip(8) and
//! ethtool(8), which run for a moment in a thread that has entered the namespace; nothing outside is touched.
//!
//! For measurements and tests. /proc/thread-self/net shows what belongs to the calling thread's namespace, and so does
//! /proc/sys/net; /sys/class/net does not.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    panic::Location,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare},
    unistd::Pid,
};

/// Longest wait for a new link to carry datagrams both ways. It takes milliseconds; a busy machine may take its time.
const LINK_TIMEOUT: Duration = Duration::from_secs(10);

/// A link is tried again after this long without an answer.
const LINK_RETRY: Duration = Duration::from_millis(20);

/// Most hosts on one [`Switch`]: what 10.77.0.0/24 has addresses for, the switch itself and the broadcast aside.
pub const HOSTS_MAX: u8 = 253;

/// The name of a host's interface on a [`Switch`].
pub const HOST_INTERFACE: &str = "veth0";

/// The name of the bridge in a [`Switch`].
const BRIDGE: &str = "bridge0";

/// A network namespace. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Namespace {
    file: Arc<File>,
}

impl Namespace {
    /// An empty namespace whose loopback interface is up.
    ///
    /// # Errors
    /// A sentence that names the missing privilege or program and how to get it.
    pub fn new() -> io::Result<Self> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| refusal("cannot make", errno))?;
            File::open("/proc/thread-self/ns/net")
        };
        let namespace = Self { file: Arc::new(in_thread(make)?) };
        namespace.command("ip", &["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Whether this process can make namespaces and links; for tests. If not, says so on standard error, past the test
    /// harness, which shows nothing of tests that pass.
    ///
    /// # Panics
    /// If not although `LINERATE_RINGS` is `required`.
    #[must_use]
    #[track_caller]
    pub fn is_available() -> bool {
        let all = || {
            let namespace = Self::new()?;
            namespace.command("ethtool", &["--version"])?;
            Pair::new(&namespace, &Self::new()?, PairConfig::default()).map(drop)
        };
        let Err(reason): io::Result<()> = all() else { return true };
        let caller = Location::caller();
        writeln!(io::stderr(), "{caller}: not run: {reason}").expect("standard error takes a line");
        let required = std::env::var_os("LINERATE_RINGS").is_some_and(|value| value == "required");
        assert!(!required, "LINERATE_RINGS=required, but {reason}");
        false
    }

    /// Runs `work` in a thread of its own inside the namespace and waits for it. Sockets that it opens stay in the
    /// namespace for good, also when others use them; threads and processes that it starts begin there.
    ///
    /// # Panics
    /// When `work` does, and when this process may not enter the namespace any more because it gave up its privileges
    /// since it made it.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        in_thread(|| {
            self.enter().expect("the privilege that made the namespace also enters it");
            work()
        })
    }

    /// Moves the calling thread into the namespace for good.
    ///
    /// # Errors
    /// A sentence that names the missing privilege.
    pub fn enter(&self) -> io::Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| refusal("cannot enter", errno))
    }

    /// Runs a program inside the namespace and returns what it printed.
    ///
    /// # Errors
    /// A sentence with what the program said when it failed, or how to get it when it is missing.
    pub fn command(&self, program: &str, arguments: &[&str]) -> io::Result<String> {
        let output = in_thread(|| {
            self.enter()?;
            Command::new(program).args(arguments).stdin(Stdio::null()).output().map_err(|error| {
                if error.kind() == io::ErrorKind::NotFound {
                    missing(program)
                } else {
                    io::Error::new(error.kind(), format!("cannot run `{program}`: {error}"))
                }
            })
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(failure(program, arguments, &String::from_utf8_lossy(&output.stderr)))
    }

    /// Where another process finds the namespace while this one holds it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

/// How a virtual link is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairConfig {
    /// Receive and transmit queues of each end, 1..=4096.
    pub queues: u16,
    /// Largest IP packet in bytes, 68..=65535.
    pub mtu: u16,
    /// What crosses the link.
    pub offloads: Offloads,
}

impl Default for PairConfig {
    /// One queue, 1,500 bytes, real frames.
    fn default() -> Self {
        Self { queues: 1, mtu: 1_500, offloads: Offloads::Frames }
    }
}

/// What crosses a virtual link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offloads {
    /// Frames like on a cable: cut to the MTU and with complete checksums before they cross, put together again by
    /// software behind it (`tx off`, `gro on`).
    #[default]
    Frames,
    /// The same frames, between network cards that sum: no CPU works out or verifies the checksums of what the kernel
    /// sends, which stay partial (`tso off`, `tx-udp-segmentation off`, `gro on`).
    SummedFrames,
    /// What the kernel does by itself: trains cross whole, and checksums are left partial.
    Whole,
}

/// One end of a link: an interface of a namespace.
#[derive(Clone, Debug)]
pub struct End {
    /// The namespace that it is in.
    pub namespace: Namespace,
    /// Its name there.
    pub interface: String,
    /// Its address, in a network of 24 bits.
    pub addr: Ipv4Addr,
}

impl End {
    /// Gives the interface its address, and brings it up.
    fn set_up(&self) -> io::Result<()> {
        let Self { namespace, interface, addr } = self;
        namespace.command("ip", &["address", "add", &format!("{addr}/24"), "dev", interface])?;
        self.bring_up()
    }

    fn bring_up(&self) -> io::Result<()> {
        let Self { namespace, interface, .. } = self;
        // No word of IPv6 that nobody asked for; without IPv6 there is none anyway.
        let _ = namespace.command("ip", &["link", "set", interface, "addrgenmode", "none"]);
        namespace.command("ip", &["link", "set", interface, "up"])?;
        Ok(())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        // Without segmentation of TCP a veth(4) has the frames that it receives put together (drivers/net/veth.c).
        let features: &[&str] = match offloads {
            Offloads::Frames => &["tx", "off", "gro", "on"],
            Offloads::SummedFrames => &["tso", "off", "tx-udp-segmentation", "off", "gro", "on"],
            Offloads::Whole => return Ok(()),
        };
        self.namespace.command("ethtool", &[&["-K", &self.interface], features].concat()).map(drop)
    }
}

impl End {
    /// No longer has the frames that arrive put together again (`gro off`): a ring wants them as they are.
    ///
    /// # Errors
    /// A sentence with what ethtool(8) said.
    pub fn leave_apart(&self) -> io::Result<()> {
        self.namespace.command("ethtool", &["-K", &self.interface, "gro", "off"]).map(drop)
    }

    /// Has a thread of the kernel on `cpu` take in what arrives (threaded NAPI, Documentation/networking/napi.rst), as the
    /// interrupts of a network card do on the core that they go to. Otherwise the sender does it too, within the system
    /// call that sends. Threads of this process on that CPU must let the kernel's have it.
    ///
    /// # Errors
    /// A sentence: without the privilege to mount, or on kernels before 5.12.
    pub fn receive_on(&self, cpu: usize) -> io::Result<()> {
        self.namespace.run(|| self.start_receiver(cpu)).map_err(|error| {
            let text = format!("no thread receives for {}: {error}", self.interface);
            io::Error::new(error.kind(), text)
        })
    }

    /// Runs in the namespace, in a thread that ends with this.
    fn start_receiver(&self, cpu: usize) -> io::Result<()> {
        // A sysfs of this namespace, which nobody else sees.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let nothing: Option<&str> = None;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), nothing)?;
        let before = receivers(&self.interface)?;
        fs::write(format!("/sys/class/net/{}/threaded", self.interface), "1")?;
        let mut only = CpuSet::new();
        only.set(cpu)?;
        for thread in receivers(&self.interface)?.into_iter().filter(|thread| !before.contains(thread)) {
            sched_setaffinity(thread, &only)?;
        }
        Ok(())
    }
}

/// The kernel's threads that receive for interfaces of this name, in any namespace.
fn receivers(interface: &str) -> io::Result<Vec<Pid>> {
    let name = format!("napi/{interface}-");
    let processes = fs::read_dir("/proc")?.filter_map(Result::ok);
    let numbers = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    let is_its = |number: &i32| {
        fs::read_to_string(format!("/proc/{number}/comm")).is_ok_and(|comm| comm.starts_with(&name))
    };
    Ok(numbers.filter(is_its).map(Pid::from_raw).collect())
}

/// A link between two namespaces: a pair of veth(4) interfaces, `veth0` with 10.77.0.1 and `veth1` with 10.77.0.2.
///
/// It exists as long as both namespaces do, whether or not this value does.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The end in the first namespace.
    pub a: End,
    /// The end in the second namespace.
    pub b: End,
}

impl Pair {
    /// Makes the link, and waits until it carries datagrams both ways: the addresses of both ends are resolved then.
    ///
    /// # Errors
    /// A sentence that names the missing privilege or program and how to get it, or what ip(8) said, as to a second link
    /// between the same namespaces.
    pub fn new(a: &Namespace, b: &Namespace, config: PairConfig) -> io::Result<Self> {
        let end = |namespace: &Namespace, interface: &str, number| End {
            namespace: namespace.clone(),
            interface: interface.to_owned(),
            addr: addr(number),
        };
        let pair = Self { a: end(a, "veth0", 1), b: end(b, "veth1", 2) };
        add_veth(&pair.a, &pair.b, config)?;
        pair.a.set_up()?;
        pair.b.set_up()?;
        wait_for_link(&pair.a, &pair.b)?;
        Ok(pair)
    }
}

/// A switch with any number of hosts, each a namespace with an interface of its own: a bridge in its own namespace.
///
/// The hosts' links exist as long as the switch does.
#[derive(Debug)]
pub struct Switch {
    bridge: End,
    config: PairConfig,
    hosts: u8,
}

impl Switch {
    /// A switch without hosts, whose links will all be of this kind. Its own address is 10.77.0.254.
    ///
    /// # Errors
    /// A sentence that names the missing privilege or program and how to get it.
    pub fn new(config: PairConfig) -> io::Result<Self> {
        let namespace = Namespace::new()?;
        let mtu = config.mtu.to_string();
        // Without snooping the bridge says nothing by itself.
        let options = ["type", "bridge", "mcast_snooping", "0"];
        namespace.command("ip", &[&["link", "add", BRIDGE, "mtu", &mtu][..], &options].concat())?;
        let bridge = End { namespace, interface: BRIDGE.to_owned(), addr: addr(HOSTS_MAX + 1) };
        bridge.set_up()?;
        Ok(Self { bridge, config, hosts: 0 })
    }

    /// Adds a host: a new namespace with the interface [`HOST_INTERFACE`] and the next address from 10.77.0.1 on. It
    /// reaches the switch and all hosts before it.
    ///
    /// # Errors
    /// A sentence that names what went wrong.
    ///
    /// # Panics
    /// Beyond [`HOSTS_MAX`].
    pub fn host(&mut self) -> io::Result<End> {
        assert!(self.hosts < HOSTS_MAX, "a switch has room for {HOSTS_MAX} hosts");
        self.hosts += 1;
        let namespace = Namespace::new()?;
        let host = End { namespace, interface: HOST_INTERFACE.to_owned(), addr: addr(self.hosts) };
        let port = End { interface: self.port(&host), ..self.bridge.clone() };
        add_veth(&host, &port, self.config)?;
        port.namespace.command("ip", &["link", "set", &port.interface, "master", BRIDGE])?;
        port.bring_up()?;
        host.set_up()?;
        wait_for_link(&host, &self.bridge)?;
        Ok(host)
    }

    /// The switch's own namespace.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.bridge.namespace
    }

    /// The name of a host's interface on the switch's side.
    #[must_use]
    pub fn port(&self, host: &End) -> String {
        format!("port{}", host.addr.octets()[3])
    }
}

/// Address number `host` of the network that all links share: each is in namespaces of its own.
const fn addr(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, host)
}

/// Makes both ends, neither of them up yet.
fn add_veth(a: &End, b: &End, config: PairConfig) -> io::Result<()> {
    let (queues, mtu) = (config.queues.to_string(), config.mtu.to_string());
    let shape = ["mtu", &mtu, "numtxqueues", &queues, "numrxqueues", &queues];
    let path = b.namespace.path();
    let arguments = [
        &["link", "add", &a.interface][..],
        &shape,
        &["type", "veth", "peer", "name", &b.interface],
        &shape,
        &["netns", &path],
    ];
    a.namespace.command("ip", &arguments.concat())?;
    a.set_offloads(config.offloads)?;
    b.set_offloads(config.offloads)
}

/// Sends datagrams from one end to the other and back until each has arrived, so that the carrier is there and both
/// have resolved each other's address.
fn wait_for_link(a: &End, b: &End) -> io::Result<()> {
    let open = |end: &End| end.namespace.run(|| UdpSocket::bind((end.addr, 0)));
    let (at_a, at_b) = (open(a)?, open(b)?);
    let deadline = Instant::now() + LINK_TIMEOUT;
    for (from, to) in [(&at_a, &at_b), (&at_b, &at_a)] {
        to.set_read_timeout(Some(LINK_RETRY))?;
        loop {
            // Not yet reachable is no error until the time is over.
            let _ = from.send_to(b"link", to.local_addr()?);
            match to.recv(&mut [0; 4]) {
                Ok(_) => break,
                Err(_) if Instant::now() < deadline => {}
                Err(error) => {
                    let (a, b) = (&a.interface, &b.interface);
                    let text = format!("the link from {a} to {b} carries nothing: {error}");
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
    }
    Ok(())
}

/// Runs `work` in a thread of its own, since entering a namespace can not be taken back without knowing the former one.
fn in_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| {
        let thread = scope.spawn(work);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn refusal(what: &str, errno: Errno) -> io::Error {
    let text = match errno {
        Errno::EPERM => {
            format!("{what} a network namespace without CAP_SYS_ADMIN and CAP_NET_ADMIN: run it with sudo")
        }
        Errno::EINVAL => format!("{what} a network namespace: this kernel was built without them"),
        _ => format!("{what} a network namespace: {}", errno.desc()),
    };
    io::Error::new(io::Error::from(errno).kind(), text)
}

fn missing(program: &str) -> io::Error {
    let package = match program {
        "ip" | "tc" => "iproute2",
        other => other,
    };
    let text = format!("the program `{program}` is missing: install the package {package}");
    io::Error::new(io::ErrorKind::NotFound, text)
}

/// A program's complaint as one sentence.
fn failure(program: &str, arguments: &[&str], said: &str) -> io::Error {
    let command = format!("`{program} {}`", arguments.join(" "));
    if said.contains("Operation not permitted") {
        let text = format!("{command} needs CAP_NET_ADMIN: run it with sudo");
        return io::Error::new(io::ErrorKind::PermissionDenied, text);
    }
    let said = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it did not say why");
    io::Error::other(format!("{command} failed: {said}"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use nix::sched::sched_getaffinity;

    use super::*;

    fn socket(end: &End) -> UdpSocket {
        let socket = end.namespace.run(|| UdpSocket::bind((end.addr, 0))).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    fn interfaces(namespace: &Namespace) -> String {
        namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap()
    }

    /// Goal: a link carries datagrams between two namespaces, and nowhere else. Method: one datagram each way; the
    /// interfaces are seen from inside only.
    #[test]
    fn two_namespaces_exchange_datagrams() {
        if !Namespace::is_available() {
            return;
        }
        let (a, b) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let pair = Pair::new(&a, &b, PairConfig::default()).unwrap();
        let (at_a, at_b) = (socket(&pair.a), socket(&pair.b));
        for (from, to) in [(&at_a, &at_b), (&at_b, &at_a)] {
            from.send_to(b"colour", to.local_addr().unwrap()).unwrap();
            let mut bytes = [0; 16];
            assert_eq!(to.recv_from(&mut bytes).unwrap(), (6, from.local_addr().unwrap()));
            assert_eq!(&bytes[..6], b"colour");
        }
        assert!(interfaces(&a).contains("veth0:") && !interfaces(&a).contains("veth1:"));
        assert!(interfaces(&b).contains("veth1:") && !interfaces(&b).contains("veth0:"));
        let second = Pair::new(&a, &b, PairConfig::default()).unwrap_err().to_string();
        assert!(second.contains("`ip link add veth0 ") && second.contains("exists"), "{second}");
    }

    /// Goal: nothing is left of a namespace that is dropped. Method: its end of a link takes the other end along, which
    /// a namespace that is still there shows.
    #[test]
    fn nothing_is_left_when_dropped() {
        if !Namespace::is_available() {
            return;
        }
        let (a, b) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let pair = Pair::new(&a, &b, PairConfig::default()).unwrap();
        assert!(interfaces(&b).contains("veth1:"));
        drop((a, pair));
        // The kernel clears up in its own time.
        while interfaces(&b).contains("veth1:") {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Goal: hosts of a switch reach each other. Method: three hosts, a datagram from each to each.
    #[test]
    fn hosts_of_a_switch_reach_each_other() {
        if !Namespace::is_available() {
            return;
        }
        let mut switch = Switch::new(PairConfig { queues: 2, ..PairConfig::default() }).unwrap();
        let hosts: Vec<_> = (0..3).map(|_| switch.host().unwrap()).collect();
        let sockets: Vec<_> = hosts.iter().map(socket).collect();
        for from in &sockets {
            for to in sockets.iter().filter(|to| !std::ptr::eq(*to, from)) {
                from.send_to(b"?", to.local_addr().unwrap()).unwrap();
                assert_eq!(to.recv_from(&mut [0; 2]).unwrap(), (1, from.local_addr().unwrap()));
            }
        }
        assert_eq!(switch.port(&hosts[2]), "port3");
        assert!(interfaces(switch.namespace()).contains("port3:"));
    }

    /// Goal: a thread of the kernel receives, on the CPU that was named, for this interface only. Method: the threads with its
    /// name before and after, their CPUs, and a datagram that arrives all the same.
    #[test]
    fn a_thread_receives() {
        if !Namespace::is_available() {
            return;
        }
        let (here, there) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let pair = Pair::new(&here, &there, PairConfig::default()).unwrap();
        let cpu = crate::pin::allowed_cores().unwrap()[0];
        let before = receivers("veth1").unwrap();
        pair.b.receive_on(cpu).unwrap();
        let after = receivers("veth1").unwrap();
        let is_new = |thread: &&Pid| !before.contains(thread);
        let mut only = CpuSet::new();
        only.set(cpu).unwrap();
        assert!(after.iter().filter(is_new).any(|&thread| sched_getaffinity(thread) == Ok(only)));
        wait_for_link(&pair.a, &pair.b).unwrap();
        pair.a.leave_apart().unwrap();
        wait_for_link(&pair.a, &pair.b).unwrap();
    }

    /// Goal: the features say what crosses. Method: ask ethtool(8).
    #[test]
    fn offloads_are_set_as_asked() {
        if !Namespace::is_available() {
            return;
        }
        for (offloads, checksums, segments) in [
            (Offloads::Frames, "off", "off"),
            (Offloads::SummedFrames, "on", "off"),
            (Offloads::Whole, "on", "on"),
        ] {
            let (a, b) = (Namespace::new().unwrap(), Namespace::new().unwrap());
            let config = PairConfig { queues: 3, mtu: 9_000, offloads };
            let pair = Pair::new(&a, &b, config).unwrap();
            for end in [&pair.a, &pair.b] {
                let features = end.namespace.command("ethtool", &["-k", &end.interface]).unwrap();
                assert!(features.contains(&format!("tx-checksumming: {checksums}\n")), "{features}");
                assert!(features.contains(&format!("tx-udp-segmentation: {segments}")), "{features}");
                let link = end.namespace.command("ip", &["-d", "link", "show", &end.interface]).unwrap();
                assert!(link.contains("mtu 9000 ") && link.contains("numrxqueues 3 "), "{link}");
            }
        }
    }

    /// Goal: a thread enters for good, and what it starts is inside too. Method: the namespaces that threads see.
    #[test]
    fn threads_enter_and_stay() {
        if !Namespace::is_available() {
            return;
        }
        let here = || fs::read_link("/proc/thread-self/ns/net").unwrap();
        let outside = here();
        let namespace = Namespace::new().unwrap();
        let (entered, started) = namespace.run(|| (here(), thread::spawn(here).join().unwrap()));
        assert_eq!(entered, started);
        assert_ne!(entered, outside);
        let stayed = in_thread(|| {
            namespace.enter().unwrap();
            here()
        });
        assert_eq!(stayed, entered);
        assert_eq!(here(), outside);
        assert_eq!(PathBuf::from(namespace.path()).read_link().unwrap(), entered);
    }

    /// Goal: whoever lacks something reads what, why, and how to get it. Method: each refusal.
    #[test]
    fn refusals_are_sentences() {
        let privilege = refusal("cannot make", Errno::EPERM);
        assert_eq!(
            privilege.to_string(),
            "cannot make a network namespace without CAP_SYS_ADMIN and CAP_NET_ADMIN: run it with sudo"
        );
        assert_eq!(privilege.kind(), io::ErrorKind::PermissionDenied);
        for (program, package) in [("ip", "iproute2"), ("tc", "iproute2"), ("ethtool", "ethtool")] {
            let text = missing(program).to_string();
            assert_eq!(text, format!("the program `{program}` is missing: install the package {package}"));
        }
        let denied = failure("ip", &["link"], "RTNETLINK answers: Operation not permitted\n").to_string();
        assert_eq!(denied, "`ip link` needs CAP_NET_ADMIN: run it with sudo");
        let other = failure("ip", &["link"], "\nError: no.\nmore\n").to_string();
        assert_eq!(other, "`ip link` failed: Error: no.");
    }
}
