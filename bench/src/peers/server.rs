//! A peer's server: found, started on a free port of loopback, asked who it is, and ended.

use std::{
    env,
    ffi::OsStr,
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::{Pid, Uid},
};

use super::resp;
use crate::{program, run::check_stop, watch::counters::ProcessUse, workload::ValueLen};

/// Folders of servers that a user's PATH may lack.
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Longest time until a server answers.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How often one that starts is asked.
const ASK_INTERVAL: Duration = Duration::from_millis(10);

/// Longest time for an answer to who it is.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest answer to that in bytes.
const ANSWER_LEN_MAX: u64 = 64 << 10;

/// Times that a server is started, each with another port: somebody else may have taken the free one meanwhile.
const TRIES: usize = 3;

/// File with what a server prints.
const LOG: &str = "log";

/// A program that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Redis,
    Valkey,
    Memcached,
}

impl Program {
    /// Its file name.
    pub(super) const fn file_name(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Valkey => "valkey-server",
            Self::Memcached => "memcached",
        }
    }

    /// Where it is, if anywhere.
    pub(super) fn find(self) -> Option<PathBuf> {
        find(self.file_name(), &env::var_os("PATH").unwrap_or_default())
    }

    /// What it is started with: one thread that serves, loopback only, nothing written to a disk, and memory for
    /// `memory_len` bytes.
    fn arguments(self, port: u16, needs: Needs) -> Vec<String> {
        let text = match self {
            Self::Redis | Self::Valkey => format!(
                "--port {port} --bind 127.0.0.1 --io-threads 1 --appendonly no --maxmemory 0 --daemonize no --dir ."
            ),
            Self::Memcached => {
                // As in the table that holds linerate's records, no growing is measured.
                let hash_power = needs.records.next_power_of_two().trailing_zeros().clamp(16, 31);
                let memory_mib = needs.memory_len.div_ceil(1 << 20);
                // It says so when it is full (-M): evicting would be faster, and wrong.
                format!("-p {port} -l 127.0.0.1 -t 1 -M -m {memory_mib} -o hashpower={hash_power}")
            }
        };
        let mut arguments: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        match self {
            Self::Redis | Self::Valkey => arguments.extend(["--save".to_owned(), String::new()]),
            Self::Memcached => {
                arguments.extend(["-U".to_owned(), if needs.udp { port } else { 0 }.to_string()]);
                // Longer items than its default allows: the longest value, with its key.
                if needs.value_len.max() > 512 << 10 {
                    arguments.extend(["-I", "2m"].map(str::to_owned));
                }
                // It refuses to be root unless it is told to; another user would lose the tie to this process.
                if Uid::effective().is_root() {
                    arguments.extend(["-u", "root"].map(str::to_owned));
                }
            }
        }
        arguments
    }

    /// Asks a server who it is.
    fn ask(self, addr: SocketAddr) -> anyhow::Result<Identity> {
        let mut stream = TcpStream::connect(addr).context("takes no connection")?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let question: &[u8] = match self {
            Self::Redis | Self::Valkey => b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n",
            Self::Memcached => b"stats\r\n",
        };
        stream.write_all(question).context("takes no questions")?;
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        let mut limited = stream.take(ANSWER_LEN_MAX);
        loop {
            if let Some(identity) = self.identity(&answer)? {
                return Ok(identity);
            }
            let len = limited.read(&mut part).context("does not say who it is")?;
            anyhow::ensure!(len > 0, "does not say who it is");
            answer.extend_from_slice(&part[..len]);
        }
    }

    /// Who a server is by its answer; `None` when that is not all of it.
    fn identity(self, answer: &[u8]) -> anyhow::Result<Option<Identity>> {
        let (text, separator) = match self {
            Self::Redis | Self::Valkey => match resp::token(answer, ANSWER_LEN_MAX as usize)? {
                None => return Ok(None),
                Some((resp::Token::Bulk(text), _)) => (text, ':'),
                Some(_) => anyhow::bail!("does not say who it is"),
            },
            Self::Memcached if answer.ends_with(b"END\r\n") => (answer, ' '),
            Self::Memcached => return Ok(None),
        };
        let text = String::from_utf8_lossy(text);
        let find = |name: &str| {
            let mut lines = text.lines().map(|line| line.trim_start_matches("STAT "));
            lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(separator)?.trim().to_owned()))
        };
        let (version, pid) = match self {
            Self::Redis => (find("redis_version"), find("process_id")),
            // Which says the version of Redis that it is compatible with, too.
            Self::Valkey => (find("valkey_version"), find("process_id")),
            Self::Memcached => (find("version"), find("pid")),
        };
        let pid = pid.and_then(|pid| pid.parse().ok()).context("does not say which process it is")?;
        Ok(Some(Identity { version: version.context("does not say which version it is")?, pid }))
    }
}

/// What a server says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    version: String,
    pid: u32,
}

/// What a server has to be able to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    pub(super) records: u32,
    pub(super) value_len: ValueLen,
    /// Memory for the records in bytes.
    pub(super) memory_len: usize,
    /// Whether it listens to datagrams too.
    pub(super) udp: bool,
    /// CPU of all its threads.
    pub(super) cpu: usize,
}

/// The first executable file of this name in the folders of `path` and in the usual ones of servers.
fn find(name: &str, path: &OsStr) -> Option<PathBuf> {
    let folders = env::split_paths(path).chain(FOLDERS.map(PathBuf::from));
    // A relative folder would mean another one wherever this is run from.
    let mut files = folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join(name));
    files.find(|file| {
        file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    })
}

/// A server that runs, until this is dropped.
#[derive(Debug)]
pub(super) struct PeerServer {
    pub(super) addr: SocketAddr,
    pub(super) version: String,
    child: Running,
}

impl PeerServer {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// A sentence that fits behind its name: what it did, or why it cannot be.
    pub(super) fn start(
        program: Program,
        file: &Path,
        needs: Needs,
        stop: &AtomicBool,
    ) -> anyhow::Result<Self> {
        let mut tried = 1;
        loop {
            match Self::start_once(program, file, needs, stop) {
                Err(_) if tried < TRIES && !stop.load(Ordering::Relaxed) => tried += 1,
                result => return result,
            }
        }
    }

    fn start_once(program: Program, file: &Path, needs: Needs, stop: &AtomicBool) -> anyhow::Result<Self> {
        let port = free_port(needs.udp).context("gets no free port")?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let folder = TemporaryFolder::new().context("gets no folder for temporary files")?;
        let log = File::create_new(folder.0.join(LOG)).context("gets no file for what it prints")?;
        let mut child = program::command(file, Some(needs.cpu))
            .args(program.arguments(port, needs))
            .current_dir(&folder.0)
            .stdout(log.try_clone()?)
            .stderr(Stdio::from(log))
            .spawn()
            .map(|child| Running { child, status: None, folder })
            .context("cannot be started")?;
        let identity = child.wait_for(program, addr, stop)?;
        anyhow::ensure!(
            identity.pid == child.child.id(),
            "did not get port {port}, which another process has taken"
        );
        Ok(Self { addr, version: identity.version, child })
    }

    /// CPU time that it has had; `None` when it has ended.
    pub(super) fn cpu(&self) -> Option<Duration> {
        ProcessUse::of_one(self.child.child.id() as i32).map(ProcessUse::cpu)
    }

    /// What it did, if it has ended meanwhile, or is about to: connections are closed before that.
    pub(super) fn end(&mut self) -> Option<String> {
        (0..20).find_map(|_| {
            let ended = self.child.ended();
            if ended.is_none() {
                thread::sleep(ASK_INTERVAL);
            }
            ended
        })
    }
}

/// A process, killed and waited for with all of its group when this is dropped, and then its folder removed.
#[derive(Debug)]
struct Running {
    child: Child,
    /// How it ended, once it has been waited for: its number may be another one's then.
    status: Option<ExitStatus>,
    folder: TemporaryFolder,
}

impl Running {
    fn wait_for(
        &mut self,
        program: Program,
        addr: SocketAddr,
        stop: &AtomicBool,
    ) -> anyhow::Result<Identity> {
        let begun = Instant::now();
        loop {
            check_stop(stop)?;
            if let Some(end) = self.ended() {
                anyhow::bail!(end);
            }
            match program.ask(addr) {
                Ok(identity) => return Ok(identity),
                Err(error) if begun.elapsed() > START_TIMEOUT => {
                    return Err(error.context(format!("does not serve after {} s", START_TIMEOUT.as_secs())));
                }
                Err(_) => thread::sleep(ASK_INTERVAL),
            }
        }
    }

    /// What it did, and its last words, if it has ended.
    fn ended(&mut self) -> Option<String> {
        if self.status.is_none() && self.has_ended() {
            self.kill();
        }
        let status = self.status?;
        let log = fs::read(self.folder.0.join(LOG)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let last = log.lines().rev().map(str::trim).find(|line| !line.is_empty());
        Some(match last {
            Some(words) => format!("ended by itself ({status}): {}", words.escape_debug()),
            None => format!("ended by itself ({status})"),
        })
    }
}

impl Running {
    /// Whether it has ended. It is not waited for: until then its group keeps its number.
    fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(self.pid()), flags).is_ok_and(|status| status != WaitStatus::StillAlive)
    }

    /// Ends what is left of its group, and waits for it.
    fn kill(&mut self) {
        // It has nothing to save. Its group, since it may be started by a script.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        self.status = self.child.wait().ok();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.kill();
        }
    }
}

/// A folder that only this user can look into, removed with all that is in it when this is dropped.
#[derive(Debug)]
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn new() -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("linerate-peer-{}-{number}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // What cannot be removed is in the folder for temporary files, where it belongs.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A port that nobody has at the moment.
fn free_port(udp: bool) -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    if udp {
        // Otherwise it is tried again.
        UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
    }
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: who a server is is read from its answer, all of it, and nobody else is taken for one. Method: answers of each at
    /// every truncation; refusals, and answers without what is needed.
    #[test]
    fn servers_say_who_they_are() {
        let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
        let redis = bulk("# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nprocess_id:42\r\n");
        let valkey =
            bulk("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\nprocess_id:42\r\n");
        let memcached =
            "STAT pid 42\r\nSTAT uptime 3\r\nSTAT version 1.6.18\r\nSTAT pointer_size 64\r\nEND\r\n";
        for (program, answer, version) in [
            (Program::Redis, redis.as_str(), "7.0.15"),
            (Program::Valkey, &valkey, "8.0.1"),
            (Program::Memcached, memcached, "1.6.18"),
        ] {
            let expected = Identity { version: version.to_owned(), pid: 42 };
            assert_eq!(program.identity(answer.as_bytes()).unwrap(), Some(expected));
            for len in 0..answer.len() {
                assert_eq!(program.identity(&answer.as_bytes()[..len]).unwrap(), None);
            }
        }
        for (program, answer, reason) in [
            (Program::Valkey, redis.as_str(), "does not say which version it is"),
            (Program::Redis, "-NOAUTH who are you\r\n", "does not say who it is"),
            (Program::Redis, "HTTP/1.1 400\r\n", "answered with an answer that begins like none of RESP"),
            (Program::Memcached, "STAT version 1\r\nEND\r\n", "does not say which process it is"),
            (
                Program::Memcached,
                "STAT pid x\r\nSTAT version 1\r\nEND\r\n",
                "does not say which process it is",
            ),
        ] {
            assert_eq!(program.identity(answer.as_bytes()).unwrap_err().to_string(), reason);
        }
    }

    /// Goal: programs are found on the PATH before elsewhere, and only what can be run. Method: a folder with an executable
    /// file, one that is not, and a folder of that name.
    #[test]
    fn programs_are_found() {
        let folder = TemporaryFolder::new().unwrap();
        assert_eq!(folder.0.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let file = |name: &str, mode| {
            let path = folder.0.join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (sh, plain) = (file("sh", 0o755), file("linerate-no-program", 0o644));
        fs::create_dir(folder.0.join("linerate-folder")).unwrap();
        assert_eq!(find("sh", folder.0.as_os_str()), Some(sh));
        assert_ne!(find("sh", OsStr::new("/nowhere:relative")), None);
        for name in ["linerate-folder", plain.file_name().unwrap().to_str().unwrap()] {
            assert_eq!(find(name, folder.0.as_os_str()), None);
        }
        let path = folder.0.clone();
        drop(folder);
        assert!(!path.exists());
    }

    /// Goal: a port that is free for datagrams too is found. Method: take it.
    #[test]
    fn ports_are_free() {
        // Somebody else may take it meanwhile, but not each time.
        let taken = (0..20).any(|_| {
            free_port(true).is_ok_and(|port| {
                let local = (Ipv4Addr::LOCALHOST, port);
                TcpListener::bind(local).is_ok() && UdpSocket::bind(local).is_ok()
            })
        });
        assert!(taken);
    }

    /// Goal: servers are told to keep to loopback and one thread, and to write nothing. Method: the arguments of each.
    #[test]
    fn arguments_are_safe() {
        let needs = Needs {
            records: 1_000_000,
            value_len: ValueLen::new(128, 1 << 20).unwrap(),
            memory_len: (100 << 20) + 1,
            udp: true,
            cpu: 0,
        };
        let redis = Program::Redis.arguments(4_000, needs).join(" ");
        assert!(redis.starts_with("--port 4000 --bind 127.0.0.1 --io-threads 1 --appendonly no"), "{redis}");
        assert!(redis.ends_with("--save "), "{redis}");
        let memcached = Program::Memcached.arguments(4_000, needs).join(" ");
        let expected = "-p 4000 -l 127.0.0.1 -t 1 -M -m 101 -o hashpower=20 -U 4000 -I 2m";
        assert!(memcached.starts_with(expected), "{memcached}");
        let memcached = Program::Memcached.arguments(4_000, Needs { udp: false, ..needs }).join(" ");
        assert!(memcached.contains("-U 0"), "{memcached}");
    }
}
