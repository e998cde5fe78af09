//! Ports of one process at one address of an interface: which of them a frame is offered to.
//!
//! Every packet socket has its filter, but the kernel runs the filters of all of them for every frame. In a fanout group
//! (`PACKET_FANOUT`, packet(7)) one program says which socket is asked. On a veth pair, sending trains, 1,460-byte
//! replies a second with the receiver's socket and its neighbours:
//!
//! | sockets | filters alone | fanout |
//! |---|---|---|
//! | 1 | 689,000 | 648,000 |
//! | 2 | 615,000 | 669,000 |
//! | 4 | 563,000 | 644,000 |
//! | 8 | 430,000 | 607,000 |
//!
//! So a port alone has its filter, and from the second on all form a group. The filters stay: they keep foreign frames out
//! of the rings, whoever is asked.

use std::{
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use libc::sock_filter;
use socket2::Socket;

use super::{ring, stack::Place};
use crate::frame_memory::FrameMemory;

/// The ports of this process.
static GROUPS: Mutex<Vec<Group>> = Mutex::new(Vec::new());

struct Group {
    /// Ports of other addresses may have the same numbers.
    place: (Place, Ipv4Addr),
    /// The kernel's number of it, once it has one.
    id: Option<u16>,
    /// In the order of the kernel's own table.
    members: Vec<Member>,
}

/// A socket with all that keeps it alive, so that it leaves the kernel's table when its entry here goes.
struct Member {
    port: u16,
    socket: Socket,
    _memory: Arc<FrameMemory>,
}

/// A port's place among those of its interface. It has to be dropped after everything else that holds the socket.
#[derive(Debug)]
pub(crate) struct Membership {
    place: (Place, Ipv4Addr),
    port: u16,
}

impl Membership {
    /// Has the socket of UDP port `port`, which receives already, share its interface with the others of its address.
    ///
    /// # Errors
    /// What the kernel says of the system calls that also worked for the others.
    pub(crate) fn join(
        place: (Place, Ipv4Addr),
        port: u16,
        socket: &Socket,
        memory: Arc<FrameMemory>,
    ) -> io::Result<Self> {
        let mut groups = lock();
        let known = groups.iter().position(|group| group.place == place);
        let index = known.unwrap_or_else(|| {
            groups.push(Group { place, id: None, members: Vec::new() });
            groups.len() - 1
        });
        let member = Member { port, socket: socket.try_clone()?, _memory: memory };
        let added = groups[index].add(member);
        drop(groups);
        // If the last step failed, what was done goes with it.
        let membership = Self { place, port };
        added.map(|()| membership)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut groups = lock();
        let Some(index) = groups.iter().position(|group| group.place == self.place) else { return };
        groups[index].remove(self.port);
        if groups[index].members.is_empty() {
            groups.swap_remove(index);
        }
    }
}

impl Group {
    fn add(&mut self, member: Member) -> io::Result<()> {
        if let Some(first) = self.members.first()
            && self.id.is_none()
        {
            // A kernel without groups that number themselves (before 4.12) runs all filters.
            self.id = ring::found_group(&first.socket).ok();
        }
        if let Some(id) = self.id {
            ring::join_group(&member.socket, id)?;
        }
        self.members.push(member);
        self.tell_kernel()
    }

    /// Lets the socket go, which leaves the kernel's table as it leaves this one: the last takes its place
    /// (`__fanout_unlink`, net/packet/af_packet.c).
    fn remove(&mut self, port: u16) {
        if let Some(index) = self.members.iter().position(|member| member.port == port) {
            drop(self.members.swap_remove(index));
            // It worked before, with more ports. If it fails all the same, ports hear less than they should, which shows.
            let _ = self.tell_kernel();
        }
    }

    fn tell_kernel(&self) -> io::Result<()> {
        match (self.id, self.members.first()) {
            (Some(_), Some(first)) => {
                let ports: Vec<_> = self.members.iter().map(|member| member.port).collect();
                ring::set_group_program(&first.socket, &mut choose_by_port(&ports))
            }
            _ => Ok(()),
        }
    }
}

fn lock() -> std::sync::MutexGuard<'static, Vec<Group>> {
    // Nothing leaves the list half changed, so that a panic elsewhere does not matter.
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program that returns the index of a frame's UDP destination port, and 0 for all else. It sees frames from the network
/// header on, unlike socket filters.
fn choose_by_port(ports: &[u16]) -> Vec<sock_filter> {
    // Classic BPF as in linux/bpf_common.h: load a byte, a half word, a half word at X; X = IPv4 header length; shift
    // right; jump if equal, jump; return.
    let (load_u8, load_u16, load_u16_at_x, load_x_header_len) = (0x30, 0x28, 0x48, 0xb1);
    let (shift_right, jump_equal, jump, return_constant) = (0x74, 0x15, 0x05, 0x06);
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let mut program = vec![
        instruction(load_u8, 0, 0, 0),
        instruction(shift_right, 0, 0, 4),
        instruction(jump_equal, 3, 0, 6),
        instruction(load_x_header_len, 0, 0, 0),
        instruction(load_u16_at_x, 0, 0, 2),
        instruction(jump, 0, 0, 1),
        // IPv6: 40 bytes of header, and the UDP header's second field.
        instruction(load_u16, 0, 0, 42),
    ];
    for (index, &port) in ports.iter().enumerate() {
        program.push(instruction(jump_equal, 0, 1, port.into()));
        program.push(instruction(return_constant, 0, 0, index as u32));
    }
    program.push(instruction(return_constant, 0, 0, 0));
    program
}
