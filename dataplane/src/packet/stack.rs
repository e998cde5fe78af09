//! Keeping from the kernel's network stack what a ring has taken already.
//!
//! A packet socket sees a copy of each frame; the frame itself goes on to the stack, which looks up a route and a socket
//! for it before it is dropped there. A program at the entry to the stack drops it at once. There is one for all ports of
//! the process on an interface, and it goes with the last of them; other processes may have theirs in the same place.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{
    bpf::{Hook, Link},
    classify::{Classifier, Ours},
    interface::Interface,
};

/// The programs that ports of this process hold.
static PROGRAMS: Mutex<Vec<(Place, Ipv4Addr, Weak<Program>)>> = Mutex::new(Vec::new());

/// An interface, also among those of other network namespaces, which may have the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    namespace: u64,
    interface_index: u32,
}

impl Place {
    /// Of an interface in the calling thread's namespace.
    ///
    /// # Errors
    /// When /proc is not there.
    pub(crate) fn of(interface: &Interface) -> io::Result<Self> {
        let path = "/proc/thread-self/ns/net";
        let namespace = fs::metadata(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}; is /proc mounted?")))?
            .ino();
        Ok(Self { namespace, interface_index: interface.index })
    }
}

#[derive(Debug)]
struct Program {
    classifier: Classifier,
    _link: Link,
}

/// While it lives, the stack does not see datagrams to one UDP port.
#[derive(Debug)]
pub(crate) struct KeptFromStack {
    program: Arc<Program>,
    port: u16,
}

impl KeptFromStack {
    /// Keeps datagrams to `port` at the interface's address from the stack.
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_BPF and CAP_NET_ADMIN; what bpf(2) says on a kernel before 6.6, which has no TCX.
    pub(crate) fn new(place: Place, interface: &Interface, port: u16) -> io::Result<Self> {
        let addr = interface.addr;
        // Nothing below leaves the list half changed, so that a panic elsewhere does not matter.
        let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
        programs.retain(|(_, _, program)| program.strong_count() > 0);
        let known = programs.iter().find(|(at, of, _)| *at == place && *of == addr);
        let shared = known.and_then(|(_, _, program)| program.upgrade());
        let program = match shared {
            Some(program) => program,
            None => {
                let classifier = Classifier::new()?;
                let program = classifier.drop_ours(Ours { mac: interface.mac, addr })?;
                let link = Link::attach(&program, &interface.name, interface.index, Hook::TcxIngress)?;
                let program = Arc::new(Program { classifier, _link: link });
                programs.push((place, addr, Arc::downgrade(&program)));
                program
            }
        };
        program.classifier.set_port(port, true);
        Ok(Self { program, port })
    }
}

#[cfg(test)]
impl KeptFromStack {
    /// Which program that is.
    pub(super) fn program_id(&self) -> usize {
        Arc::as_ptr(&self.program).addr()
    }
}

impl Drop for KeptFromStack {
    fn drop(&mut self) {
        self.program.classifier.set_port(self.port, false);
    }
}
