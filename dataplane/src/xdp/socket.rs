//! AF_XDP sockets: the system calls of Documentation/networking/af_xdp.rst, one safe function each.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::Arc,
};

use super::ring::{MappedRing, RingOffsets};
use crate::frame_memory::FrameMemory;

/// Limits how many frames one system call transmits in copy mode; 32 unless set (linux/if_xdp.h since Linux 6.17).
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Bytes of socket buffers that may be under way in copy mode.
const SEND_BUFFER_LEN: libc::c_int = 32 << 20;

/// A part of a frame memory that becomes a UMEM.
#[derive(Clone, Debug)]
pub(crate) struct Umem {
    pub(crate) memory: Arc<FrameMemory>,
    /// First byte; at a page's beginning.
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) frame_len: u32,
}

/// Slots of each ring, powers of two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingCounts {
    pub(crate) fill: u32,
    pub(crate) rx: u32,
    pub(crate) tx: u32,
    pub(crate) completion: u32,
}

/// The four rings of a socket.
#[derive(Debug)]
pub(crate) struct Rings {
    pub(crate) fill: MappedRing<u64>,
    pub(crate) rx: MappedRing<libc::xdp_desc>,
    pub(crate) tx: MappedRing<libc::xdp_desc>,
    pub(crate) completion: MappedRing<u64>,
}

/// How a socket is bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Binding {
    pub(crate) interface_index: u32,
    pub(crate) queue: u32,
    /// Not even to try zero-copy: it needs a program in the driver.
    pub(crate) copy: bool,
}

/// An AF_XDP socket with a UMEM of its own.
#[derive(Debug)]
pub(crate) struct XskSocket {
    fd: OwnedFd,
    is_zero_copy: bool,
    /// The kernel writes to it for as long as the socket is open.
    _umem: Umem,
}

impl XskSocket {
    /// Opens a socket, registers its UMEM, maps its rings and binds it to a queue.
    ///
    /// # Errors
    /// What the calls say: `EPERM` without CAP_NET_RAW, `ENOBUFS` when more memory would be locked than RLIMIT_MEMLOCK
    /// allows, `EBUSY` when the queue has a socket.
    pub(crate) fn open(umem: Umem, counts: RingCounts, binding: Binding) -> io::Result<(Self, Rings)> {
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: socket(2) returns a new descriptor, which nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        register(&fd, &umem)?;
        for (name, count) in [
            (libc::XDP_UMEM_FILL_RING, counts.fill),
            (libc::XDP_UMEM_COMPLETION_RING, counts.completion),
            (libc::XDP_RX_RING, counts.rx),
            (libc::XDP_TX_RING, counts.tx),
        ] {
            set_option(&fd, libc::SOL_XDP, name, &count)?;
        }
        let rings = map_rings(fd.as_fd(), counts)?;
        bind(&fd, binding)?;
        let options: libc::xdp_options = option(&fd, libc::XDP_OPTIONS)?;
        let is_zero_copy = options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
        // Both only save system calls; an older kernel, or one that refuses, is asked more often.
        let _ = set_option(&fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &counts.tx);
        let _ = set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER_LEN);
        Ok((Self { fd, is_zero_copy, _umem: umem }, rings))
    }

    /// Whether the device reads and writes the UMEM itself.
    pub(crate) const fn is_zero_copy(&self) -> bool {
        self.is_zero_copy
    }

    /// Has the kernel transmit what is in the TX ring.
    ///
    /// # Errors
    /// `EAGAIN` when more is left than one call takes or the device is behind, `EBUSY` when a frame was dropped,
    /// `ENOBUFS` without memory, `ENETDOWN` and `ENXIO` when the interface is down or gone (net/xdp/xsk.c).
    pub(crate) fn transmit(&self) -> io::Result<()> {
        // SAFETY: sendto(2) with no bytes and no address reads no memory.
        let sent =
            unsafe { libc::sendto(self.fd.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Has the kernel look at the fill ring again.
    ///
    /// # Errors
    /// As for `transmit`.
    pub(crate) fn wake_receiver(&self) -> io::Result<()> {
        // SAFETY: recvfrom(2) with no bytes and no address writes to no memory.
        let received = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        if received < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// What the kernel has counted.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub(crate) fn statistics(&self) -> io::Result<libc::xdp_statistics> {
        option(&self.fd, libc::XDP_STATISTICS)
    }
}

impl AsFd for XskSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn register(fd: &OwnedFd, umem: &Umem) -> io::Result<()> {
    let end = umem.start.checked_add(umem.len).ok_or(io::ErrorKind::InvalidInput)?;
    assert!(end <= umem.memory.len(), "a UMEM up to byte {end} of {}", umem.memory.len());
    // The start of `xdp_umem_reg` as of Linux 5.4; a kernel that knows more takes the rest as zero.
    let request = libc::xdp_umem_reg_v1 {
        addr: umem.memory.start_ptr() as u64 + umem.start as u64,
        len: umem.len as u64,
        chunk_size: umem.frame_len,
        headroom: 0,
    };
    set_option(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &request)
}

fn map_rings(fd: BorrowedFd<'_>, counts: RingCounts) -> io::Result<Rings> {
    let offsets: libc::xdp_mmap_offsets = option(&fd, libc::XDP_MMAP_OFFSETS)?;
    let (rx, tx) = (offsets.rx, offsets.tx);
    Ok(Rings {
        fill: map(fd, offsets.fr, counts.fill, libc::XDP_UMEM_PGOFF_FILL_RING as i64)?,
        rx: map(fd, rx, counts.rx, libc::XDP_PGOFF_RX_RING)?,
        tx: map(fd, tx, counts.tx, libc::XDP_PGOFF_TX_RING)?,
        completion: map(fd, offsets.cr, counts.completion, libc::XDP_UMEM_PGOFF_COMPLETION_RING as i64)?,
    })
}

fn map<D: Copy>(
    fd: BorrowedFd<'_>,
    offsets: libc::xdp_ring_offset,
    count: u32,
    at: i64,
) -> io::Result<MappedRing<D>> {
    let offsets = RingOffsets {
        producer: offsets.producer as usize,
        consumer: offsets.consumer as usize,
        flags: offsets.flags as usize,
        descriptors: offsets.desc as usize,
    };
    let len = offsets.descriptors + count as usize * size_of::<D>();
    Ok(MappedRing::new(FrameMemory::of_socket(fd, len, at)?, offsets, count))
}

fn bind(fd: &OwnedFd, binding: Binding) -> io::Result<()> {
    // Without a choice the kernel tries zero-copy first and falls back to copying (`xp_assign_dev`,
    // net/xdp/xsk_buff_pool.c).
    let mode = if binding.copy { libc::XDP_COPY } else { 0 };
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_USE_NEED_WAKEUP | mode,
        sxdp_ifindex: binding.interface_index,
        sxdp_queue_id: binding.queue,
        sxdp_shared_umem_fd: 0,
    };
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is as long as said and outlives the call.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_option<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value is as long as said and only read. That the kernel writes to the memory which a UMEM request
    // names is what that memory is mapped for; it lives as long as the socket.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, ptr::from_ref(value).cast(), len) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads an option of level SOL_XDP into a plain C struct.
fn option<T: Copy>(fd: &impl AsRawFd, name: libc::c_int) -> io::Result<T> {
    let fd: RawFd = fd.as_raw_fd();
    // SAFETY: the structs asked for (linux/if_xdp.h) hold nothing but integers, for which zero is valid.
    let mut value: T = unsafe { mem::zeroed() };
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which `value` has.
    let got = unsafe { libc::getsockopt(fd, libc::SOL_XDP, name, (&raw mut value).cast(), &raw mut len) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
