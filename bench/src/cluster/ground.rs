//! Where nodes run: what has to be there before they start, how they are started, and what is left to fetch and to remove.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use linerate_dataplane::netns::{End, Namespace, Offloads, Pair, PairConfig, Switch};
use linerate_proto::cluster::PORT;

use super::{
    pidfile,
    spec::{Launcher, PlannedNode, Spec},
    ssh::Ssh,
};
use crate::wire::shape;

/// Time for a process that was asked to end.
const GRACE: Duration = Duration::from_secs(2);

/// Ports that are tried for servers on loopback.
const LOCAL_PORTS: std::ops::Range<u16> = 21_000..31_000;

/// The programs that nodes are made of.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) bench: PathBuf,
    pub(crate) server: PathBuf,
}

impl Programs {
    /// Those beside this program, or in the folder that the spec names.
    pub(crate) fn find(spec: &Spec) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("cannot tell where this program is")?;
        let folder = match &spec.binaries {
            Some(folder) => folder.as_path(),
            None => own.parent().context("this program is in no folder")?,
        };
        let bench = if spec.binaries.is_some() { folder.join("linerate-bench") } else { own.clone() };
        let server = folder.join("linerate-server");
        for program in [&bench, &server] {
            anyhow::ensure!(
                program.is_file(),
                "{} is missing: build all programs with `{}`, or name their folder as binaries in the spec",
                program.display(),
                build_command(folder)
            );
        }
        Ok(Self { bench, server })
    }
}

/// How the programs of a folder of cargo's are built.
fn build_command(folder: &Path) -> &'static str {
    if folder.ends_with("debug") { "cargo build --bins" } else { "cargo build --release --bins" }
}

/// Where the nodes of one run are.
pub(crate) enum Ground {
    /// Side by side on loopback.
    Local,
    /// One network namespace each. Two are connected by a cable, more by a switch, which lives as long as this.
    Netns { ends: Vec<End>, _switch: Option<Switch> },
    /// On hosts.
    Ssh(Ssh),
}

impl Ground {
    /// Makes everything ready for the nodes of `spec`.
    pub(crate) fn prepare(spec: &Spec, programs: &Programs) -> anyhow::Result<Self> {
        Ok(match spec.launcher {
            Launcher::Local => Self::Local,
            Launcher::Netns => Self::netns(spec)?,
            Launcher::Ssh => Self::Ssh(Ssh::connect(spec, programs)?),
        })
    }

    fn netns(spec: &Spec) -> io::Result<Self> {
        let mtu = spec.network.mtu;
        let config = PairConfig { queues: 1, mtu, offloads: Offloads::SummedFrames };
        let (ends, switch) = if spec.nodes.len() == 2 {
            let Pair { a, b } = Pair::new(&Namespace::new()?, &Namespace::new()?, config)?;
            (vec![a, b], None)
        } else {
            let mut switch = Switch::new(config)?;
            let ends = spec.nodes.iter().map(|_| switch.host()).collect::<io::Result<_>>()?;
            (ends, Some(switch))
        };
        if let Some(rate) = spec.network.rate {
            ends.iter().try_for_each(|end| shape(end, rate, mtu))?;
        }
        Ok(Self::Netns { ends, _switch: switch })
    }

    /// The address at which node `index` is found by the others.
    pub(crate) fn addr(&self, index: usize, node: &PlannedNode) -> anyhow::Result<IpAddr> {
        match self {
            Self::Local => Ok(Ipv4Addr::LOCALHOST.into()),
            Self::Netns { ends, .. } => Ok(ends[index].addr.into()),
            Self::Ssh(_) => {
                if let Some(addr) = node.addr {
                    return Ok(addr);
                }
                let name = node.ssh.as_deref().unwrap_or(&node.name);
                let host = name.rsplit('@').next().unwrap_or(name);
                let mut addrs = (host, 0).to_socket_addrs().with_context(|| {
                    format!("node {}: the host {host} is unknown, give its addr", node.name)
                })?;
                let addr =
                    addrs.next().with_context(|| format!("node {}: {host} has no address", node.name))?;
                Ok(addr.ip())
            }
        }
    }

    /// The port of the first core of each server.
    pub(crate) fn ports(&self, spec: &Spec) -> anyhow::Result<Vec<u16>> {
        let cores = u16::from(spec.servers.cores);
        let count = spec.servers.count;
        let each = |first: u16| (0..count as u16).map(|server| first + server * cores).collect();
        match self {
            Self::Local => {
                let needed = cores as usize * count;
                let first = match spec.servers.port {
                    Some(port) => port,
                    None => free_ports(needed)
                        .context("no free ports on loopback for so many servers and cores")?,
                };
                anyhow::ensure!(
                    usize::from(first) + needed <= 65_536,
                    "servers.port: {needed} ports from {first} on end beyond 65535"
                );
                Ok(each(first))
            }
            _ => Ok(vec![spec.servers.port.unwrap_or(PORT); count]),
        }
    }

    /// Starts the process of node `index`, whose pipes are free and whose complaints go to `log`.
    pub(crate) fn spawn(
        &self,
        index: usize,
        spec: &Spec,
        programs: &Programs,
        folder: &Path,
        log: File,
    ) -> anyhow::Result<Child> {
        let mut command = match self {
            Self::Local | Self::Netns { .. } => {
                let mut command = Command::new(&programs.bench);
                command.args(["cluster", "node", "--folder"]).arg(folder);
                command
            }
            Self::Ssh(ssh) => ssh.node(&spec.nodes[index]),
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0);
        let spawned = match self {
            Self::Netns { ends, .. } => ends[index].namespace.run(|| command.spawn()),
            _ => command.spawn(),
        };
        spawned.with_context(|| format!("cannot start the process of node {}", spec.nodes[index].name))
    }

    /// Where node `index` has the server program.
    pub(crate) fn server_program(&self, programs: &Programs) -> String {
        match self {
            Self::Ssh(ssh) => ssh.program("linerate-server"),
            _ => programs.server.display().to_string(),
        }
    }

    /// Ends what is left of a node whose own process is gone, and fetches its files. Returns what could not be done.
    pub(crate) fn tidy(&self, node: &PlannedNode, folder: &Path) -> Option<String> {
        match self {
            Self::Ssh(ssh) => ssh.tidy(node, folder).err().map(|error| format!("{error:#}")),
            _ => {
                let left = pidfile::reap(folder, GRACE);
                (!left.is_empty()).then(|| format!("the processes of {left:?} do not end"))
            }
        }
    }
}

/// The first of so many neighbouring ports of loopback that nobody uses now.
fn free_ports(count: usize) -> Option<u16> {
    let free = |port: u16| {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        UdpSocket::bind(addr).is_ok() && TcpListener::bind(addr).is_ok()
    };
    // Runs side by side begin at different places.
    let width = LOCAL_PORTS.len() / count.max(1);
    let start = rand::random_range(0..width.max(1));
    (0..width.min(256))
        .map(|number| LOCAL_PORTS.start + (((start + number) % width) * count) as u16)
        .find(|&first| (first..first + count as u16).all(free))
}
