//! Which hosts there are: from the command line, a file, or CloudLab itself.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context;

use super::spec::{ClusterRunOptions, Role, SpecFile};

/// CloudLab's program that knows the machines of the experiment.
const TMCC: &str = "/usr/local/etc/emulab/tmcc";

/// A host that a node may run on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Host {
    pub(crate) name: String,
    /// What ssh calls it.
    pub(crate) ssh: String,
    /// Where its data goes, if that was said.
    pub(crate) addr: Option<IpAddr>,
    pub(crate) role: Option<Role>,
}

/// The hosts of the command line, of the file, or of the experiment that this machine is part of; none if nobody says any.
pub(crate) fn find_hosts(
    origin: &str,
    options: &ClusterRunOptions,
    file: &SpecFile,
) -> anyhow::Result<Vec<Host>> {
    let launcher = options.launcher.or(file.launcher);
    if let Some(launcher) = launcher.filter(|launcher| launcher.is_here()) {
        anyhow::ensure!(
            options.hosts.is_empty() && options.hosts_file.is_none(),
            "--hosts: the launcher {} makes its own nodes, hosts are for ssh",
            launcher.name()
        );
        return Ok(Vec::new());
    }
    if !options.hosts.is_empty() {
        return host_list("--hosts", options.hosts.iter().map(String::as_str));
    }
    if let Some(path) = &options.hosts_file {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read the host file {name}"))?;
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        return host_list(&name, lines.filter(|line| !line.is_empty()));
    }
    anyhow::ensure!(
        file.hosts.is_empty() || file.node.is_empty(),
        "{origin}: hosts and [[node]] say the same, give one of them"
    );
    if !file.hosts.is_empty() {
        return host_list(&format!("{origin}: hosts"), file.hosts.iter().map(String::as_str));
    }
    if !file.node.is_empty() {
        let nodes = file.node.iter().map(|node| {
            let name = node.name.as_ref().or(node.ssh.as_ref());
            let name = name.with_context(|| format!("{origin}: a [[node]] has neither name nor ssh"))?;
            let host = host(&format!("{origin}: node"), node.ssh.as_ref().unwrap_or(name))?;
            Ok(Host { name: plain_name(name), addr: node.addr.or(host.addr), role: node.role, ..host })
        });
        return distinct(&format!("{origin}: node"), nodes.collect::<anyhow::Result<_>>()?);
    }
    if Path::new(TMCC).exists() {
        let output = Command::new(TMCC).arg("hostnames").stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot run {TMCC}"))?;
        return distinct("tmcc hostnames", experiment_hosts(&String::from_utf8_lossy(&output.stdout)));
    }
    Ok(Vec::new())
}

fn host_list<'a>(origin: &str, hosts: impl Iterator<Item = &'a str>) -> anyhow::Result<Vec<Host>> {
    distinct(origin, hosts.map(|text| host(origin, text)).collect::<anyhow::Result<_>>()?)
}

/// Reads `name` or `user@name`, perhaps with `=ADDRESS` behind it.
fn host(origin: &str, text: &str) -> anyhow::Result<Host> {
    let (ssh, addr) = text.split_once('=').map_or((text, None), |(ssh, addr)| (ssh, Some(addr)));
    // What begins with a sign would be an option of ssh.
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@:".contains(&byte);
    anyhow::ensure!(
        !ssh.is_empty() && !ssh.starts_with('-') && ssh.bytes().all(is_allowed),
        "{origin}: `{text}` is no host, give name, user@name or name=10.10.1.1"
    );
    let addr = addr.map(str::parse).transpose();
    let addr = addr.map_err(|_| anyhow::anyhow!("{origin}: `{text}` has no IP address behind the ="))?;
    Ok(Host { name: plain_name(ssh), ssh: ssh.to_owned(), addr, role: None })
}

/// A name for people and folders.
fn plain_name(ssh: &str) -> String {
    let host = ssh.rsplit('@').next().unwrap_or(ssh);
    let plain = |char: char| if char.is_ascii_alphanumeric() || "-_.".contains(char) { char } else { '_' };
    host.chars().map(plain).collect::<String>().trim_start_matches('.').to_owned()
}

/// Reads lines `NAME=node0-lan IP=10.10.1.1 ALIASES='node0-0 node0'`, and returns hosts in the order of their addresses.
/// Of the names the shortest is that of the node, the others those of its interfaces.
fn experiment_hosts(text: &str) -> Vec<Host> {
    let host = |line: &str| {
        let field = |name: &str| {
            let rest = line.split_once(name)?.1;
            match rest.strip_prefix('\'') {
                Some(quoted) => quoted.split('\'').next(),
                None => rest.split_whitespace().next(),
            }
        };
        let addr = field("IP=")?.parse().ok()?;
        let names = field("ALIASES=").unwrap_or_default().split_whitespace().chain(field("NAME="));
        let name = names.min_by_key(|name| name.len())?;
        Some(Host { name: plain_name(name), ssh: name.to_owned(), addr: Some(addr), role: None })
    };
    let mut hosts: Vec<_> = text.lines().filter_map(host).collect();
    hosts.sort_by_key(|host| host.addr);
    hosts
}

fn distinct(origin: &str, hosts: Vec<Host>) -> anyhow::Result<Vec<Host>> {
    let (mut names, mut addrs) = (BTreeSet::new(), BTreeSet::new());
    for host in &hosts {
        anyhow::ensure!(names.insert(&host.name), "{origin}: the host {} is there twice", host.name);
        if let Some(addr) = host.addr {
            anyhow::ensure!(addrs.insert(addr), "{origin}: the address {addr} is there twice");
        }
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::spec::tests::typed;

    fn list(text: &str) -> anyhow::Result<Vec<Host>> {
        host_list("--hosts", text.split(','))
    }

    /// Goal: hosts are read as people write them, and what is none is named. Method: some of each.
    #[test]
    fn host_lists_are_read() {
        let hosts = list("node0,root@node1=10.10.1.2,10.0.0.3").unwrap();
        let expected = [
            ("node0", "node0", None),
            ("node1", "root@node1", Some("10.10.1.2")),
            ("10.0.0.3", "10.0.0.3", None),
        ];
        for (host, (name, ssh, addr)) in hosts.iter().zip(expected) {
            assert_eq!((host.name.as_str(), host.ssh.as_str()), (name, ssh));
            assert_eq!(host.addr, addr.map(|addr| addr.parse().unwrap()));
        }
        for (text, words) in [
            ("", "`` is no host"),
            ("-oProxyCommand=x", "is no host"),
            ("a b", "`a b` is no host"),
            ("a=b", "`a=b` has no IP address"),
            ("a,root@a", "the host a is there twice"),
            ("a=10.0.0.1,b=10.0.0.1", "the address 10.0.0.1 is there twice"),
        ] {
            let error = list(text).unwrap_err().to_string();
            assert!(error.starts_with("--hosts: ") && error.contains(words), "{error}");
        }
    }

    /// Goal: a host file is a list with comments, and one that is not there is named. Method: one of each.
    #[test]
    fn host_files_are_read() {
        let path = std::env::temp_dir().join(format!("linerate-hosts-{}", std::process::id()));
        fs::write(&path, "# servers\nnode0  # the first\n\n root@node1=10.10.1.2\n").unwrap();
        let options = typed(&format!("--hosts-file {}", path.display()));
        let hosts = find_hosts("x", &options, &SpecFile::default()).unwrap();
        assert_eq!(hosts, list("node0,root@node1=10.10.1.2").unwrap());
        fs::remove_file(&path).unwrap();
        let error = find_hosts("x", &options, &SpecFile::default()).unwrap_err().to_string();
        assert_eq!(error, format!("cannot read the host file {}", path.display()));
    }

    /// Goal: the experiment's own list is understood. Method: lines as CloudLab prints them, out of order.
    #[test]
    fn the_experiments_list_is_read() {
        let text = "NAME=node10-lan0 IP=10.10.1.11 ALIASES='node10-0 node10'\n\
                    NAME=node1-lan0 IP=10.10.1.2 ALIASES='node1-0 node1'\nNAME=node0 IP=10.10.1.1\nnonsense\n";
        let hosts = experiment_hosts(text);
        let names: Vec<_> = hosts.iter().map(|host| host.ssh.as_str()).collect();
        assert_eq!(names, ["node0", "node1", "node10"]);
        assert_eq!(hosts[2].addr, Some("10.10.1.11".parse().unwrap()));
    }
}
