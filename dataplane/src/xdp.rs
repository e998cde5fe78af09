//! AF_XDP sockets: frames past the kernel's network stack, from and to memory that driver or kernel fill in place.
//!
//! A program at the interface's entry sends datagrams to our ports to the sockets of their queues and leaves everything
//! else to the kernel. Each core owns queues with their rings and frames; what a queue received for another core is handed
//! over without a copy, and counted, since it means that the card steers wrongly.

#[forbid(unsafe_code)]
mod group;
mod ring;
mod socket;
#[forbid(unsafe_code)]
mod steering;
#[forbid(unsafe_code)]
mod umem;

use std::{
    fmt, io,
    net::{SocketAddr, SocketAddrV4},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_queue::ArrayQueue;

use self::{
    group::{Attached, Group, HandedOver, Mailbox, wait_on_any},
    ring::MappedRing,
    socket::{Binding, RingCounts, Umem, XskSocket},
    umem::{Frames, RxFrames, TxFrames},
};
use crate::{
    bpf::{Hook, Link, Program, XskMap},
    classify::{Classifier, Ours},
    destination::{HeaderCache, destination},
    frame::{self, Checksums, HEADERS_LEN, Local},
    frame_memory::{FrameMemory, LentMemory},
    interface::{self, Interface, Neighbours},
    outbox::{
        Outbox,
        frames::{FrameLayout, FrameOrder, WrittenFrame},
    },
    port::{Inbox, Peer, Port, PortCounters, Received},
    privilege,
    reservation::Reservation,
};

/// Datagrams taken by one [`Port::rx_burst`].
const BURST_MAX: usize = 64;

/// Bytes of a frame: half a page, the smallest that holds 1,500 bytes.
const FRAME_LEN: u32 = 2_048;

/// Bytes in front of a received frame that the kernel keeps (`XDP_PACKET_HEADROOM`, linux/bpf.h).
const RX_HEADROOM_LEN: u32 = 256;

/// Longest Ethernet frame that is received.
const RX_LEN_MAX: u32 = FRAME_LEN - RX_HEADROOM_LEN;

/// Where a payload starts in a frame that is sent: at a cache line, with room for headers before it.
const PAYLOAD_AT: usize = 64;

/// Longest wait for a device that is behind.
const SEND_TIMEOUT: Duration = Duration::from_millis(1);

/// Longest wait for a queue whose last owner is gone, and time between two tries.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
const RELEASE_RETRY: Duration = Duration::from_millis(5);

/// Bytes of an Ethernet header, which the MTU does not count.
const ETHERNET_LEN: usize = 14;

/// Where the program that redirects is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// Where it is faster: generic on veth, whose driver would copy each frame once more; native with other drivers,
    /// generic if they refuse.
    #[default]
    Fastest,
    /// In the driver.
    Native,
    /// At the socket buffers that any driver makes.
    Generic,
}

/// How XDP ports are set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpConfig {
    /// Frames to receive into per queue, a power of two from 2 to 65,536.
    pub rx_frames: u32,
    /// Of these, the most that wait for the device at a time, or filled for us. Fewer stay in the cache better; more
    /// take longer bursts.
    pub rx_waiting: u32,
    /// Frames to send from per core, a power of two from 2 to 65,536.
    pub tx_frames: u32,
    /// Where the program is attached.
    pub attach: Attach,
}

impl Default for XdpConfig {
    /// 2,048 frames each way.
    fn default() -> Self {
        Self { rx_frames: 2_048, rx_waiting: 2_048, tx_frames: 2_048, attach: Attach::Fastest }
    }
}

/// The ports of a server, one per core, which take what is sent to `addrs`: UDP ports of one IPv4 address. Port `i` owns the
/// receive queues `q` of the interface for which `q` modulo the number of ports is `i`.
///
/// # Errors
/// A sentence with the interface or address in it: `PermissionDenied` without the capabilities, `InvalidInput` for
/// addresses that are not of one interface or more cores than it has queues, `ResourceBusy` when somebody else has its
/// queues or a program there, `AddrInUse`, `InvalidInput` for a configuration that is out of range; else what the kernel
/// says.
pub fn open(addrs: &[SocketAddr], config: XdpConfig) -> io::Result<Vec<XdpPort>> {
    let addrs = addrs.iter().copied().map(ipv4).collect::<io::Result<Vec<_>>>()?;
    let first = *addrs.first().ok_or_else(|| invalid("no address given"))?.ip();
    if addrs.iter().any(|addr| *addr.ip() != first) {
        return Err(invalid("all XDP ports of a server listen at one address: give one"));
    }
    if first.is_unspecified() {
        return Err(invalid("an XDP port listens on one interface: give it the interface's IPv4 address"));
    }
    let ports: Vec<_> = addrs.iter().map(SocketAddrV4::port).collect();
    open_group(Interface::of_address(first)?, &ports, true, config)
}

/// The ports of a client process with as many threads, on the interface that leads to the servers, each at a UDP port of
/// the kernel's choosing.
///
/// # Errors
/// As [`open`], and as [`XdpPort::set_servers`].
pub fn connect(servers: &[SocketAddr], ports: usize, config: XdpConfig) -> io::Result<Vec<XdpPort>> {
    let first = ipv4(*servers.first().ok_or_else(|| invalid("no server address given"))?)?;
    let interface = interface::towards(*first.ip())?;
    let mut opened = open_group(interface, &vec![0; ports], false, config)?;
    for port in &mut opened {
        port.set_servers(servers)?;
    }
    Ok(opened)
}

/// Whether the driver of an interface would fill frames in place, without a copy. Asked by binding a socket to its first
/// queue for a moment.
///
/// # Errors
/// Why not, in a few words.
pub(crate) fn probe_zero_copy(interface: &Interface) -> io::Result<()> {
    const COUNT: u32 = 64;
    let len = (COUNT * FRAME_LEN) as usize;
    let umem = Umem { memory: Arc::new(FrameMemory::anonymous(len)?), start: 0, len, frame_len: FRAME_LEN };
    let counts = RingCounts { fill: COUNT, rx: COUNT, tx: COUNT, completion: COUNT };
    let binding = Binding { interface_index: interface.index, queue: 0, copy: false };
    let (socket, _) = open_patiently(&umem, counts, binding)
        .map_err(|error| interface.named("no AF_XDP socket", &error))?;
    if socket.is_zero_copy() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::Unsupported, format!("the driver of {} copies", interface.name)))
}

fn open_group(
    interface: Interface,
    ports: &[u16],
    is_server: bool,
    config: XdpConfig,
) -> io::Result<Vec<XdpPort>> {
    if ports.is_empty() {
        return Err(invalid("no ports asked for"));
    }
    privilege::require(&format!("AF_XDP on {}", interface.name), privilege::XDP)?;
    if interface.is_loopback {
        // What is sent as a frame there comes in as if from a wire, where the addresses of 127.0.0.0/8 are refused
        // (`ip_route_input_slow`, net/ipv4/route.c).
        return Err(invalid("the kernel takes no AF_XDP frames from the loopback: use the udp transport"));
    }
    interface.state()?;
    let queues = interface.queues.rx;
    if (queues as usize) < ports.len() {
        return Err(invalid(&too_few_queues(&interface, ports.len())));
    }
    let reservations = ports
        .iter()
        .map(|&port| Reservation::take(SocketAddrV4::new(interface.addr, port)))
        .collect::<io::Result<Vec<_>>>()?;
    let classifier = Classifier::new().map_err(|error| interface.named("no program", &error))?;
    let attached = attach(&interface, &classifier, config.attach)?;

    // The sockets of all queues, whose UMEMs lie behind one another. Only the first one of each port sends.
    let [rx_len, tx_len] = umem_lens(config)?;
    let sends = |queue: u32| (queue as usize) < ports.len();
    let start_of = |queue: u32| rx_len * queue as usize + tx_len * (queue as usize).min(ports.len());
    if start_of(queues) > u32::MAX as usize {
        // An inbox counts its bytes in 32 bits.
        return Err(invalid("the frames of all queues together take more than 4 GiB: give fewer"));
    }
    let memory = Arc::new(FrameMemory::anonymous(start_of(queues))?);
    let mut members: Vec<_> = ports.iter().map(|_| Vec::new()).collect();
    for number in 0..queues {
        let umem = Umem {
            memory: Arc::clone(&memory),
            start: start_of(number),
            len: rx_len + if sends(number) { tx_len } else { 0 },
            frame_len: FRAME_LEN,
        };
        let queue = Queue::open(&interface, attached.hook, number, umem, config)?;
        attached
            .sockets
            .insert(number, queue.socket.as_fd())
            .map_err(|error| interface.named("cannot redirect to AF_XDP", &error))?;
        members[number as usize % ports.len()].push(queue);
    }
    let mailboxes = reservations.iter().map(|reservation| Ok((reservation.addr().port(), Mailbox::new()?)));
    let group = Arc::new(Group {
        is_server,
        attached,
        classifier,
        memory,
        members: mailboxes.collect::<io::Result<_>>()?,
        returns: (0..queues).map(|_| ArrayQueue::new(config.rx_frames as usize)).collect(),
        interface,
    });
    let opened = reservations.into_iter().zip(members).enumerate();
    let opened = opened.map(|(index, (reservation, queues))| {
        XdpPort::new(Arc::clone(&group), index, queues, reservation, config)
    });
    let opened = opened.collect::<io::Result<Vec<_>>>()?;
    for (port, _) in &group.members {
        group.classifier.set_port(*port, true);
    }
    Ok(opened)
}

/// Bytes of the frames of a queue, and of those that a port sends from.
fn umem_lens(config: XdpConfig) -> io::Result<[usize; 2]> {
    let counts = [config.rx_frames, config.tx_frames];
    let is_good = |count: &u32| count.is_power_of_two() && (2..=65_536).contains(count);
    if !counts.iter().all(is_good) || config.rx_waiting == 0 {
        return Err(invalid(&format!(
            "{config:?}: give powers of two from 2 to 65536, and some frames that wait"
        )));
    }
    Ok(counts.map(|count| (count * FRAME_LEN) as usize))
}

fn attach(interface: &Interface, classifier: &Classifier, attach: Attach) -> io::Result<Attached> {
    let sockets = XskMap::new(interface.queues.rx).map_err(|error| interface.named("no program", &error))?;
    let ours = Ours { mac: interface.mac, addr: interface.addr };
    let program: Program = classifier
        .redirect(ours, RX_LEN_MAX as u16, &sockets)
        .map_err(|error| interface.named("no program", &error))?;
    let hooks: &[Hook] = match attach {
        Attach::Fastest if interface.is_virtual() => &[Hook::XdpGeneric],
        Attach::Fastest => &[Hook::XdpNative, Hook::XdpGeneric],
        Attach::Native => &[Hook::XdpNative],
        Attach::Generic => &[Hook::XdpGeneric],
    };
    let mut refused = None;
    for &hook in hooks {
        match Link::attach(&program, &interface.name, interface.index, hook) {
            Ok(link) => return Ok(Attached { hook, sockets, _link: link }),
            // In the other mode it would be the same.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Err(error),
            Err(error) => refused = Some(error),
        }
    }
    let refused = refused.expect("there is a hook to try");
    Err(interface.named("the driver takes no XDP program", &refused))
}

/// One receive queue of the interface.
#[derive(Debug)]
struct Queue {
    number: u32,
    socket: XskSocket,
    rx: RxFrames<MappedRing<u64>, MappedRing<libc::xdp_desc>>,
    /// Its sending half; frames only where the port sends.
    tx: TxFrames<MappedRing<libc::xdp_desc>, MappedRing<u64>>,
    /// First byte of its UMEM, counted from the start of the group's memory.
    start: usize,
    /// Bytes of its frames, of its rings, and of the lists that go with them.
    memory_len: usize,
}

impl Queue {
    fn open(
        interface: &Interface,
        hook: Hook,
        number: u32,
        umem: Umem,
        config: XdpConfig,
    ) -> io::Result<Self> {
        let start = umem.start;
        let rx = Frames { first: 0, frame_len: FRAME_LEN, count: config.rx_frames };
        let tx_count = umem.len as u32 / FRAME_LEN - config.rx_frames;
        let first = u64::from(config.rx_frames) * u64::from(FRAME_LEN);
        let tx = Frames { first, frame_len: FRAME_LEN, count: tx_count };
        // The kernel wants all four rings, or at least one slot in each.
        let sent = tx_count.max(2);
        let counts =
            RingCounts { fill: 2 * config.rx_frames, rx: config.rx_frames, tx: 2 * sent, completion: sent };
        let copy = hook == Hook::XdpGeneric;
        let binding = Binding { interface_index: interface.index, queue: number, copy };
        let locked = umem.len >> 10;
        let (socket, rings) = open_patiently(&umem, counts, binding).map_err(|error| {
            let name = &interface.name;
            match error.raw_os_error() {
                Some(libc::EBUSY) => io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    format!("queue {number} of {name} belongs to another AF_XDP process: stop that one first"),
                ),
                Some(libc::ENOBUFS) => io::Error::new(
                    io::ErrorKind::OutOfMemory,
                    format!(
                        "queue {number} of {name} needs {locked} KiB more of locked memory: raise `ulimit -l`, or give \
                         the program CAP_IPC_LOCK too"
                    ),
                ),
                _ => interface.named(&format!("no AF_XDP socket at queue {number}"), &error),
            }
        })?;
        let rings_len = rings.fill.memory_len()
            + rings.rx.memory_len()
            + rings.tx.memory_len()
            + rings.completion.memory_len();
        // Each frame to receive into is noted as free, as lent, and as returned by other cores: with a stamp there.
        let noted_len = config.rx_frames as usize * (2 * size_of::<u32>() + 2 * size_of::<usize>());
        let memory_len = umem.len + rings_len + noted_len;
        let mut rx = RxFrames::new(rx, rings.fill, rings.rx, config.rx_waiting.min(config.rx_frames));
        rx.refill();
        Ok(Self { number, socket, rx, tx: TxFrames::new(tx, rings.tx, rings.completion), start, memory_len })
    }
}

/// Opens a socket, waiting a little for a queue that is taken, and for memory that others have locked: the kernel lets go of
/// both in the background, a moment after their last owner is gone (`xp_put_pool`, net/xdp/xsk_buff_pool.c).
fn open_patiently(
    umem: &Umem,
    counts: RingCounts,
    binding: Binding,
) -> io::Result<(XskSocket, socket::Rings)> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        match XskSocket::open(umem.clone(), counts, binding) {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOBUFS))
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(RELEASE_RETRY);
            }
            opened => return opened,
        }
    }
}

/// The queues of one core of a server or thread of a client.
///
/// The network card spreads datagrams over the queues of all ports that were opened together, whomever they are for. So all
/// of them have to be polled, and are best dropped together: what comes in at the queues of one that is idle waits, and of
/// one that is gone is lost.
pub struct XdpPort {
    group: Arc<Group>,
    /// Which of the group's ports this is.
    index: usize,
    local: Local,
    checksums: Checksums,
    /// At least one; the first one sends.
    queues: Vec<Queue>,
    /// Which queue is asked first in the next burst.
    next_queue: usize,
    /// Frames of other ports' queues that are lent until the next burst.
    borrowed: Vec<HandedOver>,
    /// Frames that could not be sent; empty but while a flush is made ready.
    unsent: Vec<u32>,
    /// Whether the last flush left something in the TX ring that the device had no room for.
    is_behind: bool,
    rx_waiting: u32,
    inbox: Inbox,
    outbox: Outbox,
    headers: HeaderCache,
    neighbours: Neighbours,
    /// What to wait on when there is more than one queue or port.
    any: Option<OwnedFd>,
    counters: PortCounters,
    _reservation: Reservation,
}

impl fmt::Debug for XdpPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, local, .. } = self;
        f.debug_struct("XdpPort")
            .field("interface", &group.interface.name)
            .field("local", local)
            .finish_non_exhaustive()
    }
}

impl XdpPort {
    fn new(
        group: Arc<Group>,
        index: usize,
        queues: Vec<Queue>,
        reservation: Reservation,
        config: XdpConfig,
    ) -> io::Result<Self> {
        let layout = FrameLayout {
            first: queues[0].start + (config.rx_frames * FRAME_LEN) as usize,
            frame_len: FRAME_LEN as usize,
            payload_at: PAYLOAD_AT,
            count: config.tx_frames,
            segments_max: 1,
        };
        let outbox = Outbox::of_frames(Arc::clone(&group.memory), layout, FrameOrder::Newest)?;
        let mut fds: Vec<_> = queues.iter().map(|queue| queue.socket.as_fd()).collect();
        if group.members.len() > 1 {
            fds.push(group.mailbox(index).bell());
        }
        let any = if fds.len() > 1 { Some(wait_on_any(&fds)?) } else { None };
        let Interface { mac, addr, .. } = group.interface;
        // In generic mode, frames of senders on the same machine come by as their kernel left them.
        let may_be_partial = group.interface.is_virtual() || group.attached.hook == Hook::XdpGeneric;
        Ok(Self {
            index,
            local: Local { mac, addr, port: reservation.addr().port() },
            checksums: if may_be_partial { Checksums::VerifyOrPartial } else { Checksums::Verify },
            queues,
            next_queue: 0,
            borrowed: Vec::with_capacity(BURST_MAX),
            unsent: Vec::with_capacity(config.tx_frames as usize),
            is_behind: false,
            rx_waiting: config.rx_waiting.min(config.rx_frames),
            inbox: Inbox::with_capacity(BURST_MAX, BURST_MAX),
            outbox,
            headers: HeaderCache::new(),
            neighbours: Neighbours::new()?,
            any,
            counters: PortCounters::default(),
            _reservation: reservation,
            group,
        })
    }

    /// Finds out where frames for these servers go, in addition to those known already.
    ///
    /// # Errors
    /// A sentence: `InvalidInput` for a server that is not reached over the port's interface, `TimedOut` for one whose
    /// Ethernet address nobody tells.
    pub fn set_servers(&mut self, servers: &[SocketAddr]) -> io::Result<()> {
        let servers = servers.iter().copied().map(ipv4).collect::<io::Result<Vec<_>>>()?;
        self.neighbours.resolve_servers(&self.group.interface, &servers)
    }

    /// How the port works, in one line for people.
    #[must_use]
    pub fn mode(&self) -> String {
        let numbers: Vec<_> = self.queues.iter().map(|queue| queue.number.to_string()).collect();
        let (name, s) = (&self.group.interface.name, if numbers.len() == 1 { "" } else { "s" });
        let hook = if self.group.attached.hook == Hook::XdpNative { "native" } else { "generic" };
        let copies = if self.queues[0].socket.is_zero_copy() { "zero-copy" } else { "copy" };
        format!("AF_XDP on {name} queue{s} {}, {hook} mode, {copies}, need_wakeup", numbers.join(", "))
    }

    /// Whether the network card may bring a server's datagrams in at other cores than those that they are for, and the
    /// remedy. Nothing for a client, whose UDP ports change from run to run.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        if !self.group.is_server {
            return None;
        }
        let ports: Vec<_> = self.group.members.iter().map(|&(port, _)| port).collect();
        steering::warning(&self.group.interface, &ports)
    }

    /// Sorts a frame that came in at one of this port's queues.
    #[inline]
    fn sort(&mut self, index: usize, filled: umem::Filled) {
        let Self { group, queues, local, inbox, counters, .. } = self;
        let queue = &mut queues[index];
        let start = queue.start + filled.start as usize;
        // SAFETY: the frame is lent by the kernel since it was received, and is not given back before this function or
        // the burst ends; nobody else of this process knows it.
        let bytes = unsafe { group.memory.bytes(start, filled.len as usize) };
        let datagram = match frame::parse(bytes, local, self.checksums) {
            Ok(datagram) => datagram,
            Err(fault) => {
                counters.count_fault(fault);
                return queue.rx.give_back(filled.frame);
            }
        };
        if datagram.to_port == local.port {
            queue.rx.lend(filled.frame);
            return deliver(inbox, counters, start, &datagram);
        }
        if !queue.rx.can_spare() {
            counters.rx_handover_drops += 1;
            return queue.rx.give_back(filled.frame);
        }
        let handed_over = HandedOver { queue: queue.number, frame: filled.frame, start, len: filled.len };
        // Away before it is left there: it may come back at once.
        queue.rx.send_away(filled.frame);
        let owner = group.owner_of(datagram.to_port);
        match owner.filter(|&owner| group.mailbox(owner).leave(handed_over)) {
            Some(owner) if group.mailbox(owner).is_open() => group.mailbox(owner).ring(),
            Some(owner) => group.clear_out(owner),
            None => {
                counters.rx_handover_drops += 1;
                queue.rx.come_back(filled.frame);
            }
        }
    }

    /// Takes what other ports received for this one.
    fn take_over(&mut self) {
        let Self { group, local, inbox, counters, borrowed, .. } = self;
        let mailbox = group.mailbox(self.index);
        if !mailbox.look() {
            return;
        }
        while inbox.count() < BURST_MAX {
            let Some(handed_over) = mailbox.take() else { return };
            // SAFETY: whoever left it there keeps the frame away from the kernel until it is given back, and reads it no
            // more.
            let bytes = unsafe { group.memory.bytes(handed_over.start, handed_over.len as usize) };
            // Summed where it came in.
            match frame::parse(bytes, local, Checksums::Trust) {
                Ok(datagram) => {
                    borrowed.push(handed_over);
                    counters.rx_handed_over += 1;
                    deliver(inbox, counters, handed_over.start, &datagram);
                }
                Err(fault) => {
                    counters.count_fault(fault);
                    group.give_back(handed_over);
                }
            }
        }
    }

    /// Ends the loans of the last burst.
    fn end_loans(&mut self) {
        self.inbox.clear();
        for handed_over in self.borrowed.drain(..) {
            self.group.give_back(handed_over);
        }
        for queue in &mut self.queues {
            queue.rx.end_loans();
            if queue.rx.away() > 0 {
                while let Some(frame) = self.group.returns[queue.number as usize].pop() {
                    queue.rx.come_back(frame);
                }
            }
        }
    }

    /// Writes headers and hands everything written to the TX ring.
    fn submit(&mut self) {
        let Self { group, queues, outbox, headers, neighbours, local, counters, unsent, .. } = self;
        let (tx, outbox) = (&mut queues[0].tx, outbox.frames_mut());
        let payload_max = group.interface.mtu + ETHERNET_LEN - HEADERS_LEN;
        for index in 0..outbox.written_count() {
            let WrittenFrame { frame, len, peer, .. } = outbox.written(index);
            let len = len as usize;
            let to = destination(peer, neighbours, group.interface.is_loopback);
            let Some((addr, mac)) = to.filter(|_| len <= payload_max) else {
                counters.tx_dropped += 1;
                unsent.push(frame);
                continue;
            };
            let headers = headers.to(local, addr, mac);
            let (place, payload) = outbox.headers_and_payload(frame, len);
            headers.write(place, payload);
            tx.submit(frame, (PAYLOAD_AT - HEADERS_LEN) as u32, (HEADERS_LEN + len) as u32);
            counters.tx_datagrams += 1;
            counters.tx_trains += 1;
            counters.tx_bytes += len as u64;
        }
        outbox.detach();
        unsent.drain(..).for_each(|frame| outbox.release(frame));
        tx.release();
    }

    /// Has the kernel send what is in the TX ring, waiting a little for a device that is behind.
    fn transmit(&mut self) -> io::Result<()> {
        let mut deadline = None;
        while !self.kick()? {
            let now = Instant::now();
            if now >= *deadline.get_or_insert(now + SEND_TIMEOUT) {
                // The rest goes with the next burst, also if nothing is sent then.
                self.is_behind = true;
                return Ok(());
            }
            std::hint::spin_loop();
        }
        self.is_behind = false;
        Ok(())
    }

    /// Has the kernel send what it will, takes back what it is through with, and tells whether that is enough.
    fn kick(&mut self) -> io::Result<bool> {
        let Self { group, queues, outbox, counters, .. } = self;
        let Queue { socket, tx, number, .. } = &mut queues[0];
        // Without zero-copy nothing moves but in this call; with it the device may be at work already.
        let is_idle = !socket.is_zero_copy() || tx.tx_ring().needs_wakeup();
        if is_idle && tx.waiting() > 0 {
            match socket.transmit().map_err(|error| (error.raw_os_error(), error)) {
                Ok(()) | Err((Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR), _)) => {}
                // One frame was taken and dropped (`__xsk_generic_xmit`, net/xdp/xsk.c).
                Err((Some(libc::EBUSY), _)) => {
                    counters.tx_dropped += 1;
                    counters.tx_datagrams = counters.tx_datagrams.saturating_sub(1);
                }
                Err((_, error)) => {
                    return Err(group.interface.named(&format!("cannot send at queue {number}"), &error));
                }
            }
        }
        let frames = outbox.frames_mut();
        tx.reap(|frame| frames.release(frame));
        // What the device still holds comes back later; there has to be room for what is written next. A device that reads
        // the ring itself goes on meanwhile.
        let has_room = frames.free_count() >= tx.with_kernel() as usize;
        Ok(has_room && (tx.waiting() == 0 || (socket.is_zero_copy() && !is_idle)))
    }
}

impl Port for XdpPort {
    fn rx_burst(&mut self) -> io::Result<usize> {
        self.end_loans();
        if self.is_behind {
            self.is_behind = !self.kick()?;
        }
        self.take_over();
        for turn in 0..self.queues.len() {
            let index = (self.next_queue + turn) % self.queues.len();
            while self.inbox.count() < BURST_MAX {
                let Some(filled) = self.queues[index].rx.receive() else { break };
                self.sort(index, filled);
            }
            let queue = &mut self.queues[index];
            queue.rx.release_slots();
            queue.rx.refill();
            if queue.rx.fill_ring().needs_wakeup() {
                // Whether it is down is told by `check`.
                let _ = queue.socket.wake_receiver();
            }
        }
        self.next_queue = (self.next_queue + 1) % self.queues.len();
        let count = self.inbox.count();
        self.counters.rx_datagrams += count as u64;
        self.counters.rx_trains += count as u64;
        Ok(count)
    }

    fn split(&mut self) -> (Received<'_>, &mut Outbox) {
        // SAFETY: what the inbox names lies in frames that are lent to this port until its next burst, which needs it
        // exclusively: the kernel and other ports get them back only then.
        let memory = unsafe { LentMemory::of_frames(&self.group.memory) };
        (Received::new(memory, &self.inbox), &mut self.outbox)
    }

    fn tx_flush(&mut self) -> io::Result<()> {
        if !self.outbox.is_empty() {
            self.submit();
        }
        if self.queues[0].tx.with_kernel() > 0 { self.transmit() } else { Ok(()) }
    }

    fn local_addr(&self) -> SocketAddr {
        SocketAddrV4::new(self.local.addr, self.local.port).into()
    }

    fn counters(&self) -> PortCounters {
        let mut counters = self.counters;
        if self.index == 0 {
            // What the program saw is nobody's in particular.
            let passed = self.group.passed();
            counters.rx_bad_frames += passed.bad_frames;
            counters.rx_truncated += passed.too_long;
            counters.rx_fragments += passed.fragments;
            counters.rx_vlan += passed.vlan;
            counters.rx_ipv6 += passed.ipv6;
            counters.rx_wrong_destination += passed.wrong_destination;
        }
        counters
    }

    fn reach(&mut self, addrs: &[SocketAddr]) -> io::Result<bool> {
        self.set_servers(addrs).map(|()| true)
    }

    fn rx_queue_datagrams(&self, _len: usize) -> usize {
        self.rx_waiting as usize
    }

    fn check(&mut self) -> io::Result<()> {
        let interface = &self.group.interface;
        interface.state()?;
        let mut drops = 0;
        for queue in &self.queues {
            let statistics = queue.socket.statistics();
            let statistics = statistics.map_err(|error| {
                interface.named(&format!("no statistics of queue {}", queue.number), &error)
            })?;
            // Frames that found the fill ring empty are among the first.
            drops += statistics.rx_dropped + statistics.rx_ring_full;
        }
        self.counters.rx_overflow_drops = drops;
        self.neighbours.look_after(interface, self.counters.rx_datagrams, Instant::now())
    }

    fn memory_len(&self) -> usize {
        self.queues.iter().map(|queue| queue.memory_len).sum::<usize>()
            + Mailbox::MEMORY_LEN
            + self.borrowed.capacity() * size_of::<HandedOver>()
            + self.unsent.capacity() * size_of::<u32>()
            + self.inbox.memory_len()
            + self.outbox.memory_len()
            + self.headers.memory_len()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.any.as_ref().map_or_else(|| self.queues[0].socket.as_fd(), AsFd::as_fd))
    }
}

impl Drop for XdpPort {
    fn drop(&mut self) {
        self.group.classifier.set_port(self.local.port, false);
        // Others get their frames back.
        self.group.mailbox(self.index).close();
        self.group.clear_out(self.index);
        for handed_over in self.borrowed.drain(..) {
            self.group.give_back(handed_over);
        }
    }
}

/// Puts a datagram in the inbox whose frame begins at `start` of the group's memory.
#[inline]
fn deliver(inbox: &mut Inbox, counters: &mut PortCounters, start: usize, datagram: &frame::Arrived) {
    let peer = Peer { mac: datagram.mac, ..Peer::datagram(datagram.from.into()) };
    if inbox.last_peer() != Some(&peer) {
        inbox.push_peer(peer);
    }
    counters.rx_bytes += datagram.len as u64;
    inbox.push(start + datagram.start, datagram.len);
}

fn too_few_queues(interface: &Interface, ports: usize) -> String {
    let Interface { name, queues, .. } = interface;
    let remedy = if queues.combined { format!("combined {ports}") } else { format!("rx {ports} tx {ports}") };
    format!(
        "{ports} cores or threads need as many receive queues and {name} has {}: `ethtool -L {name} {remedy}`, or use fewer",
        queues.rx
    )
}

fn ipv4(addr: SocketAddr) -> io::Result<SocketAddrV4> {
    match addr {
        SocketAddr::V4(addr) => Ok(addr),
        SocketAddr::V6(addr) => {
            Err(invalid(&format!("an XDP port speaks IPv4, and {addr} is IPv6: use the udp transport")))
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::{Namespace, Pair, PairConfig};

    /// A link, or a line that says why there is none.
    fn link() -> Option<Pair> {
        if !Namespace::is_available() {
            return None;
        }
        let [a, b] = [(); 2].map(|()| Namespace::new().unwrap());
        Some(Pair::new(&a, &b, PairConfig::default()).unwrap())
    }

    /// Goal: the capabilities that the error names are enough. Method: a thread that gave up all others opens ports.
    #[test]
    fn the_named_capabilities_are_enough() {
        let Some(pair) = link() else { return };
        let config = XdpConfig { rx_frames: 256, rx_waiting: 256, tx_frames: 256, attach: Attach::Fastest };
        pair.a.namespace.run(|| {
            privilege::keep_only(privilege::XDP).unwrap();
            open(&[(pair.a.addr, 4_100).into()], config).unwrap()[0].check().unwrap();
        });
    }

    #[test]
    fn numbers_of_frames_are_checked() {
        let good = XdpConfig::default();
        assert_eq!(umem_lens(good).unwrap(), [4 << 20, 4 << 20]);
        for bad in [
            XdpConfig { rx_frames: 1_000, ..good },
            XdpConfig { rx_frames: 1 << 21, ..good },
            XdpConfig { tx_frames: 0, ..good },
            XdpConfig { rx_waiting: 0, ..good },
        ] {
            assert_eq!(umem_lens(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad:?}");
        }
    }

    /// Goal: after a lot of traffic every frame of a real UMEM is accounted for. Method: 30,000 datagrams across a link and
    /// back, in bursts of all sizes, with bad ones among them that are refused; then the books of both sides are checked
    /// against the ledger, the outboxes must have all their frames, and the kernel all that it may have.
    #[test]
    fn every_frame_is_accounted_for() {
        let Some(pair) = link() else { return };
        let config = XdpConfig { rx_frames: 256, rx_waiting: 200, tx_frames: 128, attach: Attach::Fastest };
        let addr = SocketAddr::from((pair.a.addr, 4_100));
        let mut server = pair.a.namespace.run(|| open(&[addr], config)).unwrap().remove(0);
        let mut client = pair.b.namespace.run(|| connect(&[addr], 1, config)).unwrap().remove(0);
        let to = Peer::datagram(addr);
        let nowhere = Peer::datagram(([192, 0, 2, 1], 9).into());
        let (mut sent, mut answered) = (0, 0);
        while sent < 30_000 {
            let amount = 1 + sent % 100;
            for number in 0..amount {
                // One in eight can not be sent: nobody knows where that is.
                let to = if number % 8 == 7 { &nowhere } else { &to };
                let outbox = client.split().1;
                let Some(slot) = outbox.begin(to, 1_472) else { break };
                slot.bytes[..8].fill(1);
                outbox.commit(8 + number % 1_000);
                sent += 1;
            }
            client.tx_flush().unwrap();
            while server.rx_burst().unwrap() > 0 {
                let (received, outbox) = server.split();
                for datagram in received.iter() {
                    let slot = outbox.begin(datagram.peer, 1_472).unwrap();
                    slot.bytes[..datagram.bytes.len()].copy_from_slice(datagram.bytes);
                    outbox.commit(datagram.bytes.len());
                }
                server.tx_flush().unwrap();
            }
            loop {
                let count = client.rx_burst().unwrap();
                answered += count as u64;
                if count == 0 {
                    break;
                }
            }
        }
        // The kernel may still hold a frame for a moment; nothing new is sent meanwhile.
        let begun = Instant::now();
        for port in [&mut server, &mut client] {
            while port.queues[0].tx.with_kernel() > 0 && begun.elapsed() < Duration::from_secs(20) {
                port.tx_flush().unwrap();
            }
            while port.rx_burst().unwrap() > 0 {}
            let queue = &mut port.queues[0];
            queue.rx.assert_complete();
            queue.tx.assert_complete();
            assert_eq!((queue.rx.with_kernel(), queue.tx.with_kernel()), (200, 0));
            assert_eq!(port.outbox.frames_mut().free_count(), 128);
        }
        let (here, there) = (client.counters(), server.counters());
        assert!(answered > 20_000, "{here:?} {there:?}");
        assert_eq!((here.tx_datagrams + here.tx_dropped), sent as u64);
        assert!(here.tx_dropped >= sent as u64 / 9, "{here:?}");
    }
}
