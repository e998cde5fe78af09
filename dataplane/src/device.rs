//! What a network device tells about itself by ioctl(2): flags, MTU, driver and queues.

use std::{
    ffi::{c_char, c_int},
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Commands of `SIOCETHTOOL` (linux/ethtool.h).
const ETHTOOL_GDRVINFO: u32 = 0x3;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// The set of strings that names the features of devices (`enum ethtool_stringset`).
const ETH_SS_FEATURES: u32 = 4;

/// Bytes of each name (`ETH_GSTRING_LEN`).
const NAME_LEN: usize = 32;

/// Features are told in blocks of 32 bits; the kernel has three at most.
const BLOCKS_MAX: usize = 4;

/// `struct ethtool_drvinfo` (linux/ethtool.h).
#[derive(Clone, Copy)]
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    _rest: [u8; 160],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// `struct ethtool_channels` (linux/ethtool.h): most and present numbers of queues.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Channels {
    command: u32,
    max: [u32; 4],
    rx_count: u32,
    tx_count: u32,
    other_count: u32,
    combined_count: u32,
}

/// More of them, and `UDP_V4_FLOW` with the flag that a rule has more fields than the old ones.
const ETHTOOL_GRXCLSRLCNT: u32 = 0x2e;
const ETHTOOL_GRXCLSRULE: u32 = 0x2f;
const ETHTOOL_GRXCLSRLALL: u32 = 0x30;
const UDP_V4_FLOW: u32 = 0x02;

/// Rules that are looked at. A card has room for hundreds; ours are few.
const RULES_MAX: usize = 1_024;

/// How a network card treats UDP over IPv4 to a port: a rule of `ethtool -n`. Fields that the rule does not look at are
/// `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UdpRule {
    pub(crate) to: Option<Ipv4Addr>,
    pub(crate) to_port: Option<u16>,
    /// Whether it looks at nothing else.
    pub(crate) is_plain: bool,
    /// Where it brings them; drops are no queue.
    pub(crate) queue: Option<u32>,
}

/// `struct ethtool_tcpip4_spec` at the beginning of `union ethtool_flow_union`, in network byte order.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct FlowFields {
    from: [u8; 4],
    to: [u8; 4],
    from_port: [u8; 2],
    to_port: [u8; 2],
    tos: u8,
    rest: [[u8; 13]; 3],
}

/// `struct ethtool_rx_flow_spec`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct FlowSpec {
    flow_type: u32,
    fields: FlowFields,
    _more_fields: [u8; 20],
    masks: FlowFields,
    more_masks: [u8; 20],
    ring_cookie: u64,
    location: u32,
}

/// `struct ethtool_rxnfc`, with room for the places of rules.
#[derive(Clone, Copy)]
#[repr(C)]
struct FlowRules {
    command: u32,
    _flow_type: u32,
    _data: u64,
    spec: FlowSpec,
    count: u32,
    places: [u32; RULES_MAX],
}

const _: () = assert!(size_of::<FlowFields>() == 52 && size_of::<FlowSpec>() == 168);
const _: () = assert!(std::mem::offset_of!(FlowRules, places) == 188);

/// How many queues a device has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queues {
    /// Queues that receive.
    pub(crate) rx: u32,
    /// Whether they are set together with the sending ones (`ethtool -L … combined`), or apart (`rx … tx …`).
    pub(crate) combined: bool,
}

/// `IFF_UP` and the like (netdevice(7)).
pub(crate) fn flags(socket: BorrowedFd<'_>, name: &str) -> io::Result<c_int> {
    let mut request = request(name)?;
    ask(socket, libc::SIOCGIFFLAGS as _, &mut request)?;
    // SAFETY: SIOCGIFFLAGS fills this member of the union (netdevice(7)).
    Ok(unsafe { request.ifr_ifru.ifru_flags }.into())
}

/// Largest packet in bytes, Ethernet header not counted.
pub(crate) fn mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<usize> {
    let mut request = request(name)?;
    ask(socket, libc::SIOCGIFMTU as _, &mut request)?;
    // SAFETY: SIOCGIFMTU fills this member of the union (netdevice(7)).
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as usize)
}

/// Name of the driver; `None` for a device without one, such as the loopback.
pub(crate) fn driver(socket: BorrowedFd<'_>, name: &str) -> Option<String> {
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], _rest: [0; 160] };
    ask_ethtool(socket, name, &mut info).ok()?;
    let end = info.driver.iter().position(|&byte| byte == 0).unwrap_or(info.driver.len());
    Some(String::from_utf8_lossy(&info.driver[..end]).into_owned())
}

/// How many queues there are; a device that does not tell has one.
pub(crate) fn queues(socket: BorrowedFd<'_>, name: &str) -> Queues {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    match ask_ethtool(socket, name, &mut channels) {
        Ok(()) => {
            let combined = channels.combined_count > 0;
            Queues { rx: (channels.combined_count + channels.rx_count).max(1), combined }
        }
        Err(_) => Queues { rx: 1, combined: true },
    }
}

/// What a device does with long frames by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segmentation {
    /// It cuts trains of UDP datagrams, or passes them on whole.
    pub(crate) cuts_udp: bool,
    /// It gathers a frame from several pieces of memory.
    pub(crate) gathers: bool,
}

/// What a device does with long frames by itself, as it is set up now.
pub(crate) fn segmentation(socket: BorrowedFd<'_>, name: &str) -> io::Result<Segmentation> {
    let active = active_features(socket, name)?;
    let has = |feature| active.iter().any(|known| known == feature);
    Ok(Segmentation { cuts_udp: has("tx-udp-segmentation"), gathers: has("tx-scatter-gather") })
}

/// Names of the features that are on, as `ethtool -k` prints them.
fn active_features(socket: BorrowedFd<'_>, name: &str) -> io::Result<Vec<String>> {
    /// `struct ethtool_sset_info` for one set.
    #[repr(C)]
    struct SetInfo {
        command: u32,
        reserved: u32,
        mask: u64,
        count: u32,
        padding: u32,
    }
    /// `struct ethtool_gstrings` with room for all names, however many that become.
    #[repr(C)]
    struct Names {
        command: u32,
        set: u32,
        count: u32,
        names: [[u8; NAME_LEN]; 32 * BLOCKS_MAX],
    }
    /// `struct ethtool_gfeatures`.
    #[repr(C)]
    struct Features {
        command: u32,
        blocks: u32,
        features: [Block; BLOCKS_MAX],
    }
    /// `struct ethtool_get_features_block`.
    #[derive(Clone, Copy, Default)]
    #[repr(C)]
    struct Block {
        available: u32,
        requested: u32,
        active: u32,
        never_changed: u32,
    }
    let mut info = SetInfo {
        command: ETHTOOL_GSSET_INFO,
        reserved: 0,
        mask: 1 << ETH_SS_FEATURES,
        count: 0,
        padding: 0,
    };
    ask_ethtool(socket, name, &mut info)?;
    // The kernel writes all names, however many there is room for.
    if info.mask == 0 || info.count as usize > 32 * BLOCKS_MAX {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let empty = [[0; NAME_LEN]; 32 * BLOCKS_MAX];
    let mut names =
        Box::new(Names { command: ETHTOOL_GSTRINGS, set: ETH_SS_FEATURES, count: 0, names: empty });
    ask_ethtool(socket, name, &mut *names)?;
    let blocks = BLOCKS_MAX as u32;
    let features = [Block::default(); BLOCKS_MAX];
    let mut features = Features { command: ETHTOOL_GFEATURES, blocks, features };
    ask_ethtool(socket, name, &mut features)?;
    let is_active = |index: usize| features.features[index / 32].active >> (index % 32) & 1 == 1;
    let text = |name: &[u8; NAME_LEN]| {
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(NAME_LEN);
        String::from_utf8_lossy(&name[..end]).into_owned()
    };
    let named = names.names.iter().take(info.count as usize).enumerate();
    Ok(named.filter(|(index, _)| is_active(*index)).map(|(_, name)| text(name)).collect())
}

/// The rules by which it steers UDP over IPv4.
///
/// # Errors
/// `EOPNOTSUPP` from a device that does not steer; what the kernel says.
pub(crate) fn udp_rules(socket: BorrowedFd<'_>, name: &str) -> io::Result<Vec<UdpRule>> {
    let ask = |command, spec, count| {
        let places = [0; RULES_MAX];
        let mut rules = FlowRules { command, _flow_type: 0, _data: 0, spec, count, places };
        ask_ethtool(socket, name, &mut rules).map(|()| rules)
    };
    let count = ask(ETHTOOL_GRXCLSRLCNT, FlowSpec::default(), 0)?.count.min(RULES_MAX as u32);
    let all = ask(ETHTOOL_GRXCLSRLALL, FlowSpec::default(), count)?;
    let mut found = Vec::new();
    for &location in &all.places[..all.count.min(count) as usize] {
        let spec = FlowSpec { location, ..FlowSpec::default() };
        found.extend(udp_rule(&ask(ETHTOOL_GRXCLSRULE, spec, 0)?.spec));
    }
    Ok(found)
}

/// What a rule says of UDP over IPv4; `None` for another protocol.
fn udp_rule(spec: &FlowSpec) -> Option<UdpRule> {
    /// Rules that look at VLAN tags or MAC addresses too have flags in the upper bits.
    const PROTOCOL: u32 = 0xff;
    /// `RX_CLS_FLOW_DISC` and `RX_CLS_FLOW_WAKE`.
    const NO_QUEUE: u64 = u64::MAX - 1;
    let FlowSpec { fields, masks, .. } = spec;
    (spec.flow_type & PROTOCOL == UDP_V4_FLOW).then(|| UdpRule {
        to: (masks.to == [0xff; 4]).then(|| fields.to.into()),
        to_port: (masks.to_port == [0xff; 2]).then(|| u16::from_be_bytes(fields.to_port)),
        is_plain: spec.flow_type == UDP_V4_FLOW
            && masks.from == [0; 4]
            && masks.from_port == [0; 2]
            && masks.tos == 0
            && spec.more_masks == [0; 20]
            && (masks.to == [0; 4] || masks.to == [0xff; 4]),
        queue: (spec.ring_cookie < NO_QUEUE).then_some(spec.ring_cookie as u32),
    })
}

/// A request about the device of this name.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is a plain C struct for which all bytes zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the name's end.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as c_char;
    }
    Ok(request)
}

fn ask(socket: BorrowedFd<'_>, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the requests asked for (netdevice(7)) read and write one ifreq, which `request` is.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), what, std::ptr::from_mut(request)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `command`: one of the structs above, which begin with their command.
fn ask_ethtool<T>(socket: BorrowedFd<'_>, name: &str, command: &mut T) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = std::ptr::from_mut(command).cast();
    ask(socket, libc::SIOCETHTOOL as _, &mut request)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: rules are read as `ethtool -n` shows them. Method: `flow-type udp4 dst-ip 10.0.0.1 dst-port 4100 action 3`
    /// as the kernel writes it, and the same with one thing different.
    #[test]
    fn rules_of_udp_are_read() {
        let fields =
            FlowFields { to: [10, 0, 0, 1], to_port: 4_100_u16.to_be_bytes(), ..FlowFields::default() };
        let masks = FlowFields { to: [0xff; 4], to_port: [0xff; 2], ..FlowFields::default() };
        let spec = FlowSpec { flow_type: 2, fields, masks, ring_cookie: 3, ..FlowSpec::default() };
        let rule =
            UdpRule { to: Some([10, 0, 0, 1].into()), to_port: Some(4_100), is_plain: true, queue: Some(3) };
        assert_eq!(udp_rule(&spec), Some(rule));
        assert_eq!(udp_rule(&FlowSpec { flow_type: 1, ..spec }), None);
        let tagged = FlowSpec { flow_type: 0x8000_0002, ..spec };
        assert_eq!(udp_rule(&tagged), Some(UdpRule { is_plain: false, ..rule }));
        let dropped = FlowSpec { ring_cookie: u64::MAX, ..spec };
        assert_eq!(udp_rule(&dropped), Some(UdpRule { queue: None, ..rule }));
        let of_one_peer = FlowSpec { masks: FlowFields { from: [0xff; 4], ..masks }, ..spec };
        assert_eq!(udp_rule(&of_one_peer), Some(UdpRule { is_plain: false, ..rule }));
    }
}
