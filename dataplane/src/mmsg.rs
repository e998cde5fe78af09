//! recvmmsg(2) and sendmmsg(2) over arrays that are built once.
//!
//! The arrays are raw because the ready-made ones do not fit: nix's `MultiHeaders` does not reset `msg_controllen` and
//! `msg_namelen`, so that control messages vanish after the first batch without any, and shares one control message
//! among all messages of a send, which rules out a segment length per train.

use std::{
    ffi::c_void,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use socket2::{SockAddr, SockAddrStorage};

use crate::region::Region;

/// Room for the control messages of one message: UDP_GRO (int) or UDP_SEGMENT (u16), SO_RXQ_OVFL (u32), and
/// in6_pktinfo (20 bytes), each behind a 16-byte header and rounded up to 8.
const CONTROL_LEN: usize = 128;

/// Control message memory, aligned as `cmsghdr` demands (cmsg(3)).
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// Bytes of a message's header and what goes with it, without its payload.
const MESSAGE_LEN: usize =
    size_of::<libc::mmsghdr>() + size_of::<libc::iovec>() + size_of::<SockAddrStorage>() + CONTROL_LEN;

/// What the kernel said about one received buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// Sender; `None` on a connected socket.
    pub(crate) from: Option<SocketAddr>,
    /// Address it was sent to, where the socket asked for it.
    pub(crate) to: Option<IpAddr>,
    /// Bytes received.
    pub(crate) len: usize,
    /// Length of all datagrams in it but the last; `len` when it is a single one.
    pub(crate) segment_len: usize,
    /// Whether the buffer was too short.
    pub(crate) truncated: bool,
    /// The socket's total of datagrams dropped at a full queue, modulo 2^32, if there were any.
    pub(crate) overflow_drops: Option<u32>,
}

/// Buffers and headers for receiving.
pub(crate) struct RxRing {
    headers: Box<[libc::mmsghdr]>,
    // The headers point into the following; none of them is ever resized.
    _iovecs: Box<[libc::iovec]>,
    names: Box<[SockAddrStorage]>,
    _controls: Box<[Control]>,
    memory: Region<u8>,
    buffer_len: usize,
    named: bool,
}

// SAFETY: all pointers in the headers lead into allocations that the ring owns exclusively and that do not move with
// it, so it may be used from whichever thread owns it.
unsafe impl Send for RxRing {}

impl RxRing {
    /// A ring of `buffers` buffers of `buffer_len` bytes. `named`: whether to ask for senders.
    pub(crate) fn new(buffers: usize, buffer_len: usize, named: bool) -> io::Result<Self> {
        let mut memory = Region::zeroed(buffers * buffer_len)?;
        let mut names: Box<[_]> = (0..buffers).map(|_| SockAddrStorage::zeroed()).collect();
        let mut controls = vec![Control([0; CONTROL_LEN]); buffers].into_boxed_slice();
        let mut iovecs: Box<[libc::iovec]> = memory
            .chunks_exact_mut(buffer_len)
            .map(|buffer: &mut [u8]| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer_len,
            })
            .collect();
        let headers = (0..buffers)
            .map(|index| {
                let name: *mut c_void =
                    if named { ptr::from_mut(&mut names[index]).cast() } else { ptr::null_mut() };
                message(name, &mut iovecs[index], &mut controls[index])
            })
            .collect();
        Ok(Self { headers, _iovecs: iovecs, names, _controls: controls, memory, buffer_len, named })
    }

    /// The receive memory: buffer `i` starts at `i * buffer_len`.
    pub(crate) fn memory(&self) -> &[u8] {
        &self.memory
    }

    pub(crate) const fn buffer_len(&self) -> usize {
        self.buffer_len
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory_len(&self) -> usize {
        self.memory.memory_len() + self.headers.len() * MESSAGE_LEN
    }

    /// As [`Region::populate`].
    pub(crate) fn populate(&mut self) -> io::Result<()> {
        self.memory.populate()
    }

    /// Receives into as many buffers as there is something for, without waiting, and returns their number.
    pub(crate) fn receive(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: recvmmsg(2) writes at most `headers.len()` messages, each within the name, iovec and control lengths
        // given in its header; `new` pointed these at allocations of exactly those lengths that this ring owns, and
        // `arrival` restores the lengths that the kernel shortens. A null timeout is allowed. The receive memory is
        // lent out only through `&self`, so nobody reads it during this call.
        let received = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        if received < 0 { Err(io::Error::last_os_error()) } else { Ok(received as usize) }
    }

    /// What arrived in buffer `index` by the last `receive`; to be called once for each, since it makes the header ready
    /// for the next.
    pub(crate) fn arrival(&mut self, index: usize) -> Arrival {
        let header = &mut self.headers[index];
        let len = header.msg_len as usize;
        let mut arrival = Arrival {
            from: None,
            to: None,
            len,
            segment_len: len,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            overflow_drops: None,
        };
        if self.named {
            let storage = std::mem::replace(&mut self.names[index], SockAddrStorage::zeroed());
            // SAFETY: the kernel wrote a socket address of `msg_namelen` bytes into this storage, which was all zeros before.
            arrival.from = unsafe { SockAddr::new(storage, header.msg_hdr.msg_namelen) }.as_socket();
            header.msg_hdr.msg_namelen = size_of::<SockAddrStorage>() as libc::socklen_t;
        }
        read_control(&header.msg_hdr, &mut arrival);
        header.msg_hdr.msg_controllen = CONTROL_LEN as _;
        header.msg_hdr.msg_flags = 0;
        arrival
    }
}

/// Walks the control messages of a received message.
fn read_control(header: &libc::msghdr, arrival: &mut Arrival) {
    // SAFETY: the header is one that recvmmsg(2) filled in: `msg_control` leads to `msg_controllen` valid, aligned bytes.
    let mut cursor = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a pointer to a whole `cmsghdr` inside the control buffer.
    while let Some(control) = unsafe { cursor.as_ref() } {
        // SAFETY: CMSG_DATA only computes the address behind a header that is inside the buffer.
        let data = unsafe { libc::CMSG_DATA(cursor) };
        #[expect(clippy::unnecessary_cast, reason = "musl counts in socklen_t")]
        let data_len = (control.cmsg_len as usize).saturating_sub(data as usize - cursor as usize);
        // SAFETY: the kernel counts in `cmsg_len` only bytes that it wrote inside the buffer.
        let data = unsafe { std::slice::from_raw_parts(data, data_len) };
        match (control.cmsg_level, control.cmsg_type) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let segment_len = data.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                if segment_len > 0 {
                    arrival.segment_len = segment_len as usize;
                }
            }
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                arrival.overflow_drops = data.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
            }
            // struct in_pktinfo { int ipi_ifindex; in_addr ipi_spec_dst; in_addr ipi_addr; }, ip(7): `spec_dst` is the
            // local address.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if data.len() >= 12 => {
                let octets: [u8; 4] = data[4..8].try_into().expect("4 bytes");
                arrival.to = Some(IpAddr::V4(Ipv4Addr::from(octets)));
            }
            // struct in6_pktinfo { in6_addr ipi6_addr; int ipi6_ifindex; }, ipv6(7).
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if data.len() >= 20 => {
                let octets: [u8; 16] = data[..16].try_into().expect("16 bytes");
                arrival.to = Some(IpAddr::V6(Ipv6Addr::from(octets)));
            }
            _ => {}
        }
        // SAFETY: `cursor` was returned by these macros for this very header.
        cursor = unsafe { libc::CMSG_NXTHDR(header, cursor) };
    }
}

/// Headers for sending.
pub(crate) struct TxRing {
    headers: Box<[libc::mmsghdr]>,
    // The headers point into the following; none of them is ever resized.
    iovecs: Box<[libc::iovec]>,
    names: Box<[SockAddrStorage]>,
    _controls: Box<[Control]>,
    /// Datagrams in each message.
    datagrams: Box<[u64]>,
    filled: usize,
}

// SAFETY: as for `RxRing`; the iovecs' pointers into lent payloads live only from `push` to the `send` or `clear` that
// follows, within one borrow of the payloads by the owner.
unsafe impl Send for TxRing {}

impl TxRing {
    /// Bytes of memory that it takes.
    pub(crate) fn memory_len(&self) -> usize {
        self.headers.len() * (MESSAGE_LEN + size_of::<u64>())
    }

    pub(crate) fn new(messages: usize) -> Self {
        let mut names: Box<[_]> = (0..messages).map(|_| SockAddrStorage::zeroed()).collect();
        let mut controls = vec![Control([0; CONTROL_LEN]); messages].into_boxed_slice();
        let mut iovecs =
            vec![libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; messages].into_boxed_slice();
        let headers = (0..messages)
            .map(|index| {
                let name = ptr::from_mut(&mut names[index]).cast();
                message(name, &mut iovecs[index], &mut controls[index])
            })
            .collect();
        let datagrams = vec![0; messages].into_boxed_slice();
        Self { headers, iovecs, names, _controls: controls, datagrams, filled: 0 }
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.filled == self.headers.len()
    }

    /// Adds a message. `to`: destination, `None` on a connected socket. `from`: source address to leave by.
    /// `segment_len`: length at which the kernel shall cut `payload` into datagrams, 0 for a single one.
    ///
    /// # Safety
    /// The payload must stay valid and unchanged until the last [`send`](Self::send) before the next
    /// [`clear`](Self::clear).
    pub(crate) unsafe fn push(
        &mut self,
        to: Option<&SocketAddr>,
        from: Option<IpAddr>,
        payload: &[u8],
        segment_len: usize,
    ) {
        let index = self.filled;
        self.filled += 1;
        let header = &mut self.headers[index].msg_hdr;
        if let Some(to) = to {
            let address = SockAddr::from(*to);
            header.msg_namelen = address.len();
            header.msg_name = ptr::from_mut(&mut self.names[index]).cast();
            self.names[index] = address.as_storage();
        } else {
            header.msg_namelen = 0;
            header.msg_name = ptr::null_mut();
        }
        // sendmmsg(2) reads the payload only; iovec has no const form.
        self.iovecs[index] =
            libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
        self.datagrams[index] = if segment_len > 0 { payload.len().div_ceil(segment_len) as u64 } else { 1 };
        let mut control = ControlWriter::new(header);
        if segment_len > 0 {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &(segment_len as u16).to_ne_bytes());
        }
        match from {
            Some(IpAddr::V4(from)) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&from.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(from)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&from.octets());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        control.finish();
    }

    /// Sends the messages from `first` on and returns how many the kernel took.
    pub(crate) fn send(&mut self, fd: BorrowedFd<'_>, first: usize) -> io::Result<usize> {
        let headers = &mut self.headers[first..self.filled];
        // SAFETY: sendmmsg(2) reads `headers.len()` messages, each with name, iovec and control message as `push` set
        // them: names and controls are owned by this ring, payloads are valid as `push` demands.
        let sent = unsafe {
            libc::sendmmsg(
                fd.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as libc::c_uint,
                (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }

    /// Datagrams that the message at `index` becomes.
    pub(crate) fn datagrams(&self, index: usize) -> u64 {
        self.datagrams[index]
    }

    pub(crate) const fn count(&self) -> usize {
        self.filled
    }

    pub(crate) const fn clear(&mut self) {
        self.filled = 0;
    }
}

/// A header over one buffer.
fn message(name: *mut c_void, iovec: &mut libc::iovec, control: &mut Control) -> libc::mmsghdr {
    // SAFETY: mmsghdr is a plain C struct (with private padding on some targets) for which all bytes zero is valid.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_name = name;
    message.msg_hdr.msg_namelen =
        if name.is_null() { 0 } else { size_of::<SockAddrStorage>() as libc::socklen_t };
    message.msg_hdr.msg_iov = iovec;
    message.msg_hdr.msg_iovlen = 1;
    message.msg_hdr.msg_control = ptr::from_mut(control).cast();
    message.msg_hdr.msg_controllen = CONTROL_LEN as _;
    message
}

/// Appends control messages to a header whose `msg_control` leads to `CONTROL_LEN` bytes.
struct ControlWriter<'a> {
    header: &'a mut libc::msghdr,
    cursor: *mut libc::cmsghdr,
    used: usize,
}

impl<'a> ControlWriter<'a> {
    fn new(header: &'a mut libc::msghdr) -> Self {
        header.msg_controllen = CONTROL_LEN as _;
        // SAFETY: `msg_control` leads to `CONTROL_LEN` valid, aligned bytes (see `message`).
        let cursor = unsafe { libc::CMSG_FIRSTHDR(header) };
        Self { header, cursor, used: 0 }
    }

    fn push(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        // SAFETY: CMSG_SPACE is arithmetic on its argument.
        let space = unsafe { libc::CMSG_SPACE(data.len() as u32) };
        // SAFETY: CMSG_LEN is arithmetic on its argument.
        let len = unsafe { libc::CMSG_LEN(data.len() as u32) };
        self.used += space as usize;
        assert!(self.used <= CONTROL_LEN, "control messages of {} bytes", self.used);
        // SAFETY: the assertion above shows that the header and its data lie inside the control buffer, at the aligned
        // address that the CMSG macros computed for the bytes used so far.
        let control = unsafe { &mut *self.cursor };
        control.cmsg_level = level;
        control.cmsg_type = kind;
        control.cmsg_len = len as _;
        // SAFETY: CMSG_DATA computes the address behind a header inside the buffer.
        let target = unsafe { libc::CMSG_DATA(self.cursor) };
        // SAFETY: `data.len()` bytes at `target` are inside the buffer, as asserted, and do not overlap `data`.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
        // SAFETY: the buffer starts at `msg_control` and `used` bytes of it, a multiple of the alignment, are taken; the
        // address computed is inside it or one past its end.
        self.cursor = unsafe { self.header.msg_control.cast::<u8>().add(self.used) }.cast();
    }

    fn finish(self) {
        self.header.msg_controllen = self.used as _;
        if self.used == 0 {
            // An empty control buffer: the kernel then skips parsing it. The pointer stays for the next message.
            self.header.msg_controllen = 0;
        }
    }
}

/// Sets an integer socket option that neither nix nor socket2 knows.
pub(crate) fn set_int_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: setsockopt(2) reads `optlen` bytes at `optval`: those of `value`, which lives across the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
