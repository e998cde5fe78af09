//! Hosts that the system's ssh reaches: one connection each, kept open by a master process for all that goes over it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

use anyhow::Context;

use super::{
    ground::Programs,
    node::{SERVER_LOG, checksum},
    spec::{PlannedNode, Spec},
};

/// What is always asked of ssh: no questions, no endless waiting, a dead host noticed within half a minute.
const OPTIONS: [&str; 5] = [
    "BatchMode=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    // Long enough for the pause between two runs of a series, short enough to leave nothing after a crash.
    "ControlPersist=30",
];

/// The connections of one run.
pub(crate) struct Ssh {
    /// For the masters' sockets. Their paths may be 108 bytes long.
    sockets: PathBuf,
    options: Vec<String>,
    /// Folder of the programs on each host.
    directory: String,
    /// Folder of this run on each host.
    folder: String,
    hosts: Vec<String>,
    /// Whether programs were not copied, so that hosts may have different ones.
    is_foreign: bool,
}

impl Ssh {
    /// Connects to all hosts at once, makes this run's folders there, and copies the programs where they differ.
    pub(crate) fn connect(spec: &Spec, programs: &Programs) -> anyhow::Result<Self> {
        let sockets = env::temp_dir().join(format!("linerate-ssh-{:08x}", rand::random::<u32>()));
        fs::create_dir_all(&sockets).with_context(|| format!("cannot create {}", sockets.display()))?;
        let directory = spec.directory.display().to_string();
        let is_plain = |char: char| char.is_ascii_alphanumeric() || "/-_.".contains(char);
        anyhow::ensure!(
            directory.starts_with('/') && directory.chars().all(is_plain),
            "directory: `{directory}` is not allowed, give an absolute path of letters, digits and the signs / - _ ."
        );
        let ssh = Self {
            sockets,
            options: spec.ssh_options.clone(),
            folder: format!("{directory}/run-{:08x}", rand::random::<u32>()),
            directory,
            hosts: spec.nodes.iter().map(|node| host(node).to_owned()).collect(),
            is_foreign: !spec.copy,
        };
        let wanted = [("linerate-bench", &programs.bench), ("linerate-server", &programs.server)];
        let wanted: Vec<_> = wanted
            .map(|(name, path)| anyhow::Ok((name, path.as_path(), checksum(path)?)))
            .into_iter()
            .collect::<anyhow::Result<_>>()?;
        if spec.copy {
            eprintln!("cluster: copying programs where they differ");
        }
        let prepared = thread::scope(|scope| {
            let all: Vec<_> = spec
                .nodes
                .iter()
                .map(|node| scope.spawn(|| ssh.prepare(node, if spec.copy { &wanted } else { &[] })))
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, anyhow::Result<()>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            all.into_iter().map(join).collect::<Vec<_>>()
        });
        prepared.into_iter().collect::<anyhow::Result<()>>()?;
        Ok(ssh)
    }

    fn prepare(&self, node: &PlannedNode, wanted: &[(&str, &Path, String)]) -> anyhow::Result<()> {
        self.run(node, &format!("mkdir -p {}", self.folder))?;
        for (name, path, sum) in wanted {
            let there = self.program(name);
            // A file that is missing has no checksum.
            let found = self.run(node, &format!("sha256sum {there} 2>/dev/null || true"))?;
            if found.split_whitespace().next() == Some(sum.as_str()) {
                continue;
            }
            // A program that runs can not be written to, but another one can take its place.
            let new = format!("{there}.{:08x}", rand::random::<u32>());
            self.copy(
                node,
                path.to_str().context("the path of a program is no text")?,
                &self.at(node, &new),
            )?;
            self.run(node, &format!("chmod 755 {new} && mv -f {new} {there}"))?;
        }
        Ok(())
    }

    /// Where a program is on each host.
    pub(crate) fn program(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    /// The command that is a node on its host.
    pub(crate) fn node(&self, node: &PlannedNode) -> Command {
        let bench = self.program("linerate-bench");
        let mut words = format!("exec {bench} cluster node --folder {}", self.folder_of(node));
        if self.is_foreign {
            words += &format!(" --sum {bench} --sum {}", self.program("linerate-server"));
        }
        let mut command = self.command("ssh");
        command.args(["-T", host(node), &words]);
        command
    }

    /// Ends what a node has left, fetches the log of its server, and removes its folder.
    pub(crate) fn tidy(&self, node: &PlannedNode, to: &Path) -> anyhow::Result<()> {
        let folder = self.folder_of(node);
        let log = format!("{folder}/{SERVER_LOG}");
        let reaped = self.run(node, &format!("{} cluster reap {folder}", self.program("linerate-bench")));
        if self.run(node, &format!("test -e {log} && echo there || true"))?.trim() == "there" {
            let to = to.join(SERVER_LOG);
            self.copy(node, &self.at(node, &log), to.to_str().context("the folder's name is no text")?)?;
        }
        reaped?;
        self.run(node, &format!("rm -r {folder}; rmdir {} 2>/dev/null || true", self.folder)).map(drop)
    }

    fn folder_of(&self, node: &PlannedNode) -> String {
        format!("{}/{}", self.folder, node.name)
    }

    /// A file of a host for scp.
    fn at(&self, node: &PlannedNode, path: &str) -> String {
        let name = host(node);
        let (user, host) = name.split_once('@').map_or(("", name), |(user, host)| (user, host));
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        if user.is_empty() { format!("{host}:{path}") } else { format!("{user}@{host}:{path}") }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in OPTIONS {
            command.args(["-o", option]);
        }
        let path = self.sockets.join("%C");
        command.args(["-o", "ControlMaster=auto", "-o", &format!("ControlPath={}", path.display())]);
        command.args(&self.options);
        command
    }

    /// Runs a command on a host and returns what it printed.
    fn run(&self, node: &PlannedNode, words: &str) -> anyhow::Result<String> {
        let output = self.command("ssh").args([host(node), words]).stdin(Stdio::null()).output();
        let output = output.context("cannot run `ssh`: install the package openssh-client")?;
        anyhow::ensure!(
            output.status.success(),
            "node {}: ssh to {} failed: {}",
            node.name,
            host(node),
            last_line(&output)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn copy(&self, node: &PlannedNode, from: &str, to: &str) -> anyhow::Result<()> {
        let output = self.command("scp").args(["-q", from, to]).stdin(Stdio::null()).output();
        let output = output.context("cannot run `scp`: install the package openssh-client")?;
        anyhow::ensure!(
            output.status.success(),
            "node {}: cannot copy {from} to {to}: {}",
            node.name,
            last_line(&output)
        );
        Ok(())
    }
}

impl Drop for Ssh {
    /// Ends the masters.
    fn drop(&mut self) {
        for host in &self.hosts {
            // A host that was never reached has none.
            let _ = self.command("ssh").args(["-O", "exit", host]).stdin(Stdio::null()).output();
        }
        let _ = fs::remove_dir_all(&self.sockets);
    }
}

/// What ssh calls a node.
fn host(node: &PlannedNode) -> &str {
    node.ssh.as_deref().unwrap_or(&node.name)
}

/// What a program said at last: the reason, after warnings.
fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    last.map_or_else(|| output.status.to_string(), str::to_owned)
}
