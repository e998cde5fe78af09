//! Capabilities: what is missing to open rings, and giving all up once they are open (capabilities(7)).

use std::io;

use caps::{CapSet, Capability};

/// What AF_PACKET sockets need (packet(7)).
pub(crate) const PACKET: &[Capability] = &[Capability::CAP_NET_RAW];

/// What AF_XDP sockets and their program need: the socket, its queue, and bpf(2).
pub(crate) const XDP: &[Capability] =
    &[Capability::CAP_NET_RAW, Capability::CAP_NET_ADMIN, Capability::CAP_BPF];

/// What is good to have beside [`XDP`]: the memory of its rings is locked, and few may lock as much (getrlimit(2)).
const XDP_BESIDES: &[Capability] = &[Capability::CAP_IPC_LOCK];

/// Which of the capabilities the calling thread lacks.
pub(crate) fn missing(needed: &[Capability]) -> Vec<Capability> {
    // A kernel that does not tell is asked by trying.
    let held = caps::read(None, CapSet::Effective).unwrap_or_else(|_| needed.iter().copied().collect());
    // Before kernel 5.8, CAP_SYS_ADMIN was what CAP_BPF is now, and it still includes it.
    let has = |capability: &Capability| {
        held.contains(capability)
            || (*capability == Capability::CAP_BPF && held.contains(&Capability::CAP_SYS_ADMIN))
    };
    needed.iter().filter(|capability| !has(capability)).copied().collect()
}

/// An error that names what the calling thread lacks to open `what`, and the remedy; `Ok` when it lacks nothing.
pub(crate) fn require(what: &str, needed: &[Capability]) -> io::Result<()> {
    let missing = missing(needed);
    if missing.is_empty() {
        return Ok(());
    }
    let program =
        std::env::current_exe().map_or_else(|_| "PROGRAM".to_owned(), |path| path.display().to_string());
    let besides = if needed == XDP { XDP_BESIDES } else { &[] };
    let message = format!(
        "{what} needs {}: run it with sudo, or once `sudo setcap {}+ep {program}`",
        names(&missing, ", "),
        names(&[needed, besides].concat(), ",").to_lowercase(),
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

/// The names of capabilities, separated.
pub(crate) fn names(capabilities: &[Capability], separator: &str) -> String {
    capabilities.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

/// Gives up all capabilities of the calling thread and of threads that it starts from now on, for good: a program that it
/// executes, even as root, gets none back. What is open stays open.
///
/// # Errors
/// What capset(2) and prctl(2) say.
pub fn drop_all() -> io::Result<()> {
    // Kernels before 4.3 have no ambient set, and then there is nothing in it.
    let _ = caps::clear(None, CapSet::Ambient);
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set)
            .map_err(|error| io::Error::other(format!("cannot give up capabilities: {error}")))?;
    }
    // Without this, execve(2) gives root all of them again (capabilities(7)).
    Ok(nix::sys::prctl::set_no_new_privs()?)
}

/// Gives up the calling thread's capabilities but `kept`, as far as it has them.
#[cfg(test)]
pub(crate) fn keep_only(kept: &[Capability]) -> io::Result<()> {
    let held = caps::read(None, CapSet::Effective).map_err(io::Error::other)?;
    let still = held.into_iter().filter(|capability| kept.contains(capability)).collect();
    caps::set(None, CapSet::Effective, &still).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what was given up is missing, and the error says how to get it. Method: a thread of its own gives up all.
    #[test]
    fn a_thread_without_capabilities_says_what_it_lacks() {
        std::thread::spawn(|| {
            drop_all().unwrap();
            assert_eq!(missing(XDP), XDP);
            let executed = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
            let status = String::from_utf8(executed.stdout).unwrap();
            assert!(status.contains("CapEff:\t0000000000000000\n"), "{status}");
            let error = require("AF_XDP on veth0", XDP).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            let text = error.to_string();
            assert!(
                text.starts_with("AF_XDP on veth0 needs CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF: "),
                "{text}"
            );
            assert!(
                text.contains("sudo setcap cap_net_raw,cap_net_admin,cap_bpf,cap_ipc_lock+ep /"),
                "{text}"
            );
        })
        .join()
        .unwrap();
    }
}
