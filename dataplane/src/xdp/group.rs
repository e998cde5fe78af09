//! What the ports of one process on one interface share: the program, the memory, and how datagrams change cores.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crossbeam_queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{
    bpf::{Hook, Link, XskMap},
    classify::{Classifier, Passed},
    frame_memory::FrameMemory,
    interface::Interface,
};

/// Datagrams that may wait for a core to take them over. More than a few bursts mean that it is not keeping up.
const HANDOVER_MAX: usize = 1_024;

/// A datagram on its way to the core that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HandedOver {
    /// The queue whose frame it is in, and which gets it back.
    pub(crate) queue: u32,
    pub(crate) frame: u32,
    /// First byte of the Ethernet frame, counted from the start of the group's memory.
    pub(crate) start: usize,
    /// Bytes of the Ethernet frame.
    pub(crate) len: u32,
}

/// Where a port gets what other ports received for it.
#[derive(Debug)]
pub(crate) struct Mailbox {
    waiting: ArrayQueue<HandedOver>,
    /// Whether the port is still there to take it.
    open: AtomicBool,
    /// Whether the port was woken for what waits.
    rung: AtomicBool,
    bell: EventFd,
}

impl Mailbox {
    /// Bytes of memory that one takes: each place has a stamp beside what is in it.
    pub(crate) const MEMORY_LEN: usize = HANDOVER_MAX * (size_of::<HandedOver>() + size_of::<usize>());

    pub(crate) fn new() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self {
            waiting: ArrayQueue::new(HANDOVER_MAX),
            open: AtomicBool::new(true),
            rung: AtomicBool::new(false),
            bell,
        })
    }

    /// Leaves a datagram; `false` when the mailbox is full or its port gone.
    pub(crate) fn leave(&self, datagram: HandedOver) -> bool {
        self.is_open() && self.waiting.push(datagram).is_ok()
    }

    /// Whether the port is still there. To be asked again after something was left: a port that went meanwhile may have
    /// emptied its mailbox before.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// Wakes the port for what was left, unless it was woken and has not looked yet.
    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Fails only when the counter is at its end, and then the port is woken all the same (eventfd(2)).
            let _ = self.bell.write(1);
        }
    }

    /// Whether there is something to take. As long as there is, the bell stays rung.
    #[inline]
    pub(crate) fn look(&self) -> bool {
        if self.waiting.is_empty() && self.rung.load(Ordering::Relaxed) {
            let _ = self.bell.read();
            // Whoever left something and found the bell rung did so before this, and it is seen below.
            self.rung.swap(false, Ordering::AcqRel);
        }
        !self.waiting.is_empty()
    }

    #[inline]
    pub(crate) fn take(&self) -> Option<HandedOver> {
        self.waiting.pop()
    }

    /// Nothing more is left here.
    pub(crate) fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// The program at the interface, and what keeps it there.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) hook: Hook,
    pub(crate) sockets: XskMap,
    /// Taken away when the last port is gone.
    pub(crate) _link: Link,
}

/// What all ports of a group share.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) interface: Interface,
    pub(crate) is_server: bool,
    pub(crate) attached: Attached,
    pub(crate) classifier: Classifier,
    pub(crate) memory: Arc<FrameMemory>,
    /// The UDP port and the mailbox of each port of the group.
    pub(crate) members: Vec<(u16, Mailbox)>,
    /// By queue: its frames that other ports are through with. As long as there are frames.
    pub(crate) returns: Vec<ArrayQueue<u32>>,
}

impl Group {
    /// Which port of the group has a UDP port.
    #[inline]
    pub(crate) fn owner_of(&self, port: u16) -> Option<usize> {
        self.members.iter().position(|&(number, _)| number == port)
    }

    pub(crate) fn mailbox(&self, index: usize) -> &Mailbox {
        &self.members[index].1
    }

    /// What the program left to the kernel since it was attached.
    pub(crate) fn passed(&self) -> Passed {
        self.classifier.passed()
    }

    /// Gives everything back that waits for a port that is gone.
    pub(crate) fn clear_out(&self, index: usize) {
        while let Some(datagram) = self.mailbox(index).take() {
            self.give_back(datagram);
        }
    }

    /// Gives a frame back to the queue that it came in at.
    pub(crate) fn give_back(&self, datagram: HandedOver) {
        let returned = self.returns[datagram.queue as usize].push(datagram.frame);
        assert!(returned.is_ok(), "more frames returned to queue {} than it has", datagram.queue);
    }
}

/// What a thread waits on that has more than one thing to wait for.
pub(crate) fn wait_on_any(fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (index, fd) in fds.iter().enumerate() {
        epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
    }
    Ok(epoll.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wait::wait;

    const DATAGRAM: HandedOver = HandedOver { queue: 0, frame: 3, start: 6_400, len: 60 };

    /// Goal: what is left is found, once, and a sleeper is woken for it. Method: leave, ring, wait without end, take;
    /// again after the first look; and a full and a closed mailbox.
    #[test]
    fn a_mailbox_wakes_its_owner_and_refuses_when_full_or_closed() {
        let mailbox = Mailbox::new().unwrap();
        for _ in 0..3 {
            assert!(!mailbox.look());
            assert!(mailbox.leave(DATAGRAM) && mailbox.leave(DATAGRAM));
            (0..2).for_each(|_| mailbox.ring());
            let epoll = wait_on_any(&[mailbox.bell()]).unwrap();
            wait(&[epoll.as_fd()], Duration::from_secs(3_600)).unwrap();
            assert!(mailbox.look());
            assert_eq!(
                [mailbox.take(), mailbox.take(), mailbox.take()],
                [Some(DATAGRAM), Some(DATAGRAM), None]
            );
        }
        assert!(!mailbox.look());
        assert_eq!((0..2 * HANDOVER_MAX).filter(|_| mailbox.leave(DATAGRAM)).count(), HANDOVER_MAX);
        mailbox.take();
        mailbox.close();
        assert!(!mailbox.leave(DATAGRAM));
    }
}
