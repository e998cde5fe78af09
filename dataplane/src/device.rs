//! What a network device tells about itself by ioctl(2): flags, MTU, driver and queues.

use std::{
    ffi::{c_char, c_int},
    io,
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
