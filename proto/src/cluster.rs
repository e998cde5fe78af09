//! Who is in the cluster: the nodes of one epoch, as people write them down and as servers tell clients.
//!
//! Owners of partitions follow from it ([`ClusterMap`]), so this is all that has to be agreed on. Its text form is a
//! file that all servers of the cluster are started with:
//!
//! ```toml
//! epoch = 1
//! placement = "rendezvous"
//!
//! [[node]]
//! id = 1
//! addr = "10.10.1.1:4100"
//! cores = 8
//! ```
//! On the wire it is asked for in pages:
//!
//! ```text
//! │ common 16 │ nodes left out 8 │ nodes 2 │ epoch 2 │ placement 1 │ 0 (3) │ digest 8 │ node 32 │ node 32 │ …
//!                                                           node: id 8 │ address 16 │ port 2 │ cores 1 │ 0 (5)
//! ```

use std::{
    fmt,
    net::{Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, de};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian as be};

use crate::{
    drops::DropReason,
    hash::key_hash,
    key::Key,
    placement::{ClusterMap, Node, Owner, PARTITIONS, Partition, Placement, PlacementError, Share},
    wire::{Common, DATAGRAM_LEN_MIN, TRAILER_LEN_MAX},
};

/// Port of a server's core 0 unless it is told another.
pub const PORT: u16 = 4100;

/// Highest node id: what a signed integer of a text form can say.
pub const NODE_ID_MAX: u64 = i64::MAX as u64;

/// Nodes of a page: what every path carries.
const PAGE_NODES: usize =
    (DATAGRAM_LEN_MIN - size_of::<MapPage>() - TRAILER_LEN_MAX) / size_of::<WireMember>();

/// A node of the cluster and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Up to [`NODE_ID_MAX`]; no other node has it, and this one keeps it for life.
    pub id: u64,
    /// Address of its core 0; core i has the port + i. Unspecified for a server that is alone: it is where it was found.
    pub addr: SocketAddr,
    /// Cores that serve, 1..=255.
    pub cores: u8,
}

impl Member {
    /// The addresses of its cores.
    pub fn core_addrs(&self) -> impl Iterator<Item = SocketAddr> {
        let Self { addr, cores, .. } = *self;
        (0..cores).map(move |core| SocketAddr::new(addr.ip(), addr.port().wrapping_add(core.into())))
    }
}

/// The nodes of one epoch. Equal ones have equal digests and, since placement is arithmetic, equal owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSpec {
    epoch: u16,
    placement: Placement,
    /// By ascending id.
    members: Vec<Member>,
    /// Kept, because each page of a map and each look at a session tells it.
    digest: u64,
}

/// Why something is no cluster.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClusterError {
    /// Not of the text form.
    #[error("line {line}: {message}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// The epoch of a server that is alone.
    #[error("epoch 0 is that of a server that is alone: give 1 to 65535, one more than the map before")]
    NoEpoch,
    /// A number that a text form can not say.
    #[error("node id {0}: give 0 to {NODE_ID_MAX}")]
    Id(u64),
    /// An address that is none.
    #[error("node {id} has addr = \"{addr}\": give an IP address and a port, such as 10.10.1.1:4100")]
    Addr {
        /// The node.
        id: u64,
        /// What it has.
        addr: String,
    },
    /// Ports beyond the last.
    #[error("node {id} has {cores} cores from port {} on, which ends beyond 65535", .addr.port())]
    Ports {
        /// The node.
        id: u64,
        /// Its address.
        addr: SocketAddr,
        /// Its cores.
        cores: u8,
    },
    /// Two nodes at one place.
    #[error("nodes {ids:?} share port {port} of {ip}: the cores of a node have consecutive ports of their own", ip = .addr.ip(), port = .addr.port())]
    SameAddr {
        /// The nodes.
        ids: [u64; 2],
        /// What both have.
        addr: SocketAddr,
    },
    /// More cores than partitions.
    #[error("{0} cores can not share {PARTITIONS} partitions: at most one core per partition")]
    TooManyCores(usize),
    /// A node that is not in the map.
    #[error("the cluster map has no node {id}: its nodes are {known}")]
    UnknownNode {
        /// The node.
        id: u64,
        /// Those that it has.
        known: String,
    },
    /// What placement says.
    #[error(transparent)]
    Placement(#[from] PlacementError),
}

impl ClusterSpec {
    /// The nodes of an epoch, in any order.
    ///
    /// # Errors
    /// When the epoch is 0, there are no nodes or two of one id or address, or one has no cores, address or ports.
    pub fn new(epoch: u16, placement: Placement, members: Vec<Member>) -> Result<Self, ClusterError> {
        if epoch == 0 {
            return Err(ClusterError::NoEpoch);
        }
        Self::checked(epoch, placement, members)
    }

    /// The cluster that a server is by itself: node 0 in epoch 0, at no address in particular.
    ///
    /// # Panics
    /// If `cores` is 0.
    #[must_use]
    pub fn alone(cores: u8) -> Self {
        assert!(cores > 0, "a server has a core");
        let addr = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        Self::digested(0, Placement::Rendezvous, vec![Member { id: 0, addr, cores }])
    }

    fn checked(epoch: u16, placement: Placement, mut members: Vec<Member>) -> Result<Self, ClusterError> {
        members.sort_unstable_by_key(|member| member.id);
        for member in &members {
            let Member { id, addr, cores } = *member;
            if id > NODE_ID_MAX {
                return Err(ClusterError::Id(id));
            }
            if addr.ip().is_unspecified() || addr.port() == 0 {
                return Err(ClusterError::Addr { id, addr: addr.to_string() });
            }
            if usize::from(addr.port()) + usize::from(cores) > 1 << 16 {
                return Err(ClusterError::Ports { id, addr, cores });
            }
        }
        let mut taken: Vec<_> =
            members.iter().flat_map(|member| member.core_addrs().map(|addr| (addr, member.id))).collect();
        taken.sort_unstable();
        if taken.len() > PARTITIONS {
            return Err(ClusterError::TooManyCores(taken.len()));
        }
        let spec = Self::digested(epoch, placement, members);
        // Ids first: two nodes of one id share an address more often than not.
        ClusterMap::modulo(&spec.nodes(), epoch)?;
        if let Some(pair) = taken.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(ClusterError::SameAddr { ids: [pair[0].1, pair[1].1], addr: pair[0].0 });
        }
        Ok(spec)
    }

    /// Which map of the cluster it is: a later one has a higher epoch. 0: that of a server that is alone.
    #[must_use]
    pub const fn epoch(&self) -> u16 {
        self.epoch
    }

    /// How partitions are placed.
    #[must_use]
    pub const fn placement(&self) -> Placement {
        self.placement
    }

    /// The nodes by ascending id.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether it is a server by itself, whose address is not known to it.
    #[must_use]
    pub const fn is_alone(&self) -> bool {
        self.epoch == 0
    }

    /// The node of this id.
    ///
    /// # Errors
    /// [`ClusterError::UnknownNode`].
    pub fn member(&self, id: u64) -> Result<&Member, ClusterError> {
        self.members.iter().find(|member| member.id == id).ok_or_else(|| ClusterError::UnknownNode {
            id,
            known: self.members.iter().map(|member| member.id.to_string()).collect::<Vec<_>>().join(", "),
        })
    }

    /// The owner of every partition.
    #[must_use]
    pub fn map(&self) -> ClusterMap {
        ClusterMap::new(self.placement, &self.nodes(), self.epoch).expect("checked when it was made")
    }

    /// A number that is the same for equal maps, and hardly ever for others. Not against those who want it to be.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest
    }

    /// `members`: by ascending id.
    fn digested(epoch: u16, placement: Placement, members: Vec<Member>) -> Self {
        let mut bytes = epoch.to_be_bytes().to_vec();
        bytes.push(placement_code(placement));
        for member in &members {
            bytes.extend_from_slice(WireMember::from(member).as_bytes());
        }
        Self { epoch, placement, members, digest: key_hash(Key::new(&bytes)) }
    }

    fn nodes(&self) -> Vec<Node> {
        self.members.iter().map(|&Member { id, cores, .. }| Node { id, cores }).collect()
    }
}

/// The place of one server in the cluster.
#[derive(Clone, Debug)]
pub struct Membership {
    spec: ClusterSpec,
    map: Box<ClusterMap>,
    /// Position among the nodes.
    node: u16,
}

impl Membership {
    /// Node `id` of a cluster.
    ///
    /// # Errors
    /// [`ClusterError::UnknownNode`].
    pub fn new(spec: ClusterSpec, id: u64) -> Result<Self, ClusterError> {
        spec.member(id)?;
        let node = spec.members.partition_point(|member| member.id < id) as u16;
        Ok(Self { map: Box::new(spec.map()), spec, node })
    }

    /// A server by itself.
    ///
    /// # Panics
    /// If `cores` is 0.
    #[must_use]
    pub fn alone(cores: u8) -> Self {
        let spec = ClusterSpec::alone(cores);
        Self { map: Box::new(spec.map()), spec, node: 0 }
    }

    /// The cluster.
    #[must_use]
    pub const fn spec(&self) -> &ClusterSpec {
        &self.spec
    }

    /// This server.
    #[must_use]
    pub fn member(&self) -> &Member {
        &self.spec.members[usize::from(self.node)]
    }

    /// The partitions of one of its cores.
    #[must_use]
    pub fn share_of(&self, core: u8) -> Share {
        self.map.share(|owner| owner == Owner { node: self.node, core })
    }

    /// Whether `partition` belongs to it, on whichever core.
    #[must_use]
    pub fn owns(&self, partition: Partition) -> bool {
        self.map.owner(partition).node == self.node
    }

    /// Writes a page of the map, without the nodes before `first`, behind the common part of the question, and returns its
    /// length.
    ///
    /// # Panics
    /// When `out` is shorter than [`DATAGRAM_LEN_MIN`].
    pub fn write_page(&self, common: Common, first: be::U64, out: &mut [u8]) -> usize {
        let members = &self.spec.members;
        let left = members.get(usize::try_from(first.get()).unwrap_or(usize::MAX)..).unwrap_or_default();
        let page = MapPage {
            common,
            first,
            node_count: (members.len() as u16).into(),
            epoch: self.spec.epoch.into(),
            placement: placement_code(self.spec.placement),
            spare: [0; 3],
            digest: self.spec.digest().into(),
        };
        let (head, body) = out.split_at_mut(size_of::<MapPage>());
        head.copy_from_slice(page.as_bytes());
        let count = left.len().min(PAGE_NODES);
        for (member, place) in
            left.iter().zip(body.as_chunks_mut::<{ size_of::<WireMember>() }>().0).take(count)
        {
            place.copy_from_slice(WireMember::from(member).as_bytes());
        }
        size_of::<MapPage>() + count * size_of::<WireMember>()
    }
}

/// Server → client: nodes of the cluster map. As many as fit follow, as [`WireMember`]s, and then the trailer.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct MapPage {
    /// Kind; session and token as in the question.
    common: Common,
    /// Nodes left out before, as in the question.
    first: be::U64,
    /// Nodes in all, 1..=4096.
    node_count: be::U16,
    /// Epoch of the map; 0 for a server that is alone.
    epoch: be::U16,
    /// 0 rendezvous, 1 modulo.
    placement: u8,
    /// 0, ignored.
    spare: [u8; 3],
    /// [`ClusterSpec::digest`] of the whole map.
    digest: be::U64,
}

/// A node of the cluster map.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct WireMember {
    id: be::U64,
    /// IPv6, or IPv4 mapped into it (RFC 4291 §2.5.5.2); zeros when it is where it was found.
    ip: [u8; 16],
    port: be::U16,
    cores: u8,
    /// 0, ignored.
    spare: [u8; 5],
}

const _: () = assert!(size_of::<MapPage>() == 40);
const _: () = assert!(size_of::<WireMember>() == 32);

impl From<&Member> for WireMember {
    fn from(member: &Member) -> Self {
        let ip = match member.addr.ip() {
            std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            std::net::IpAddr::V6(ip) => ip,
        };
        Self {
            id: member.id.into(),
            ip: ip.octets(),
            port: member.addr.port().into(),
            cores: member.cores,
            spare: [0; 5],
        }
    }
}

impl From<&WireMember> for Member {
    fn from(member: &WireMember) -> Self {
        let ip = Ipv6Addr::from(member.ip).to_canonical();
        Self { id: member.id.get(), addr: SocketAddr::new(ip, member.port.get()), cores: member.cores }
    }
}

const fn placement_code(placement: Placement) -> u8 {
    match placement {
        Placement::Rendezvous => 0,
        Placement::Modulo => 1,
    }
}

/// Puts a map together from the pages that a server sends.
#[derive(Clone, Debug, Default)]
pub struct PagedMap {
    members: Vec<Member>,
    /// What all pages have in common: nodes, epoch, placement and digest.
    shape: Option<(u16, u16, u8, u64)>,
}

impl PagedMap {
    /// How many nodes are here: what to ask for next.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether none is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes the next page, trailer removed; the map once it is complete. A page that was taken before, or that is not the
    /// next, changes nothing. When the map has become another meanwhile all begins again.
    ///
    /// # Errors
    /// `Truncated` and `Malformed`.
    pub fn take(&mut self, message: &[u8]) -> Result<Option<ClusterSpec>, DropReason> {
        let (page, body) = MapPage::ref_from_prefix(message).map_err(|_| DropReason::Truncated)?;
        let (node_count, epoch) = (page.node_count.get(), page.epoch.get());
        let placement = match page.placement {
            0 => Placement::Rendezvous,
            1 => Placement::Modulo,
            _ => return Err(DropReason::Malformed),
        };
        if node_count == 0 || usize::from(node_count) > PARTITIONS {
            return Err(DropReason::Malformed);
        }
        let shape = Some((node_count, epoch, page.placement, page.digest.get()));
        if self.shape != shape {
            *self = Self { members: Vec::new(), shape };
        }
        if page.first.get() != self.members.len() as u64 {
            return Ok(None);
        }
        let left = usize::from(node_count) - self.members.len();
        let count = (body.len() / size_of::<WireMember>()).min(left);
        if count == 0 {
            return Err(DropReason::Malformed);
        }
        let (members, _) =
            <[WireMember]>::ref_from_prefix_with_elems(body, count).map_err(|_| DropReason::Truncated)?;
        self.members.extend(members.iter().map(Member::from));
        if count < left {
            return Ok(None);
        }
        let members = std::mem::take(&mut self.members);
        let spec = match members[..] {
            [Member { id: 0, addr, cores: cores @ 1.. }] if epoch == 0 && addr.ip().is_unspecified() => {
                ClusterSpec::alone(cores)
            }
            _ => ClusterSpec::new(epoch, placement, members).map_err(|_| DropReason::Malformed)?,
        };
        if spec.digest() != page.digest.get() {
            return Err(DropReason::Malformed);
        }
        Ok(Some(spec))
    }
}

/// The text form.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(deserialize_with = "epoch")]
    epoch: u16,
    #[serde(default)]
    placement: Placement,
    #[serde(default, rename = "node")]
    nodes: Vec<FileNode>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct FileNode {
    #[serde(deserialize_with = "id")]
    id: u64,
    addr: String,
    #[serde(deserialize_with = "cores")]
    cores: u8,
}

fn epoch<'de, D: Deserializer<'de>>(source: D) -> Result<u16, D::Error> {
    number(source, |given| format!("epoch = {given}: give 1 to 65535"))
}

fn id<'de, D: Deserializer<'de>>(source: D) -> Result<u64, D::Error> {
    number(source, |given| format!("id = {given}: give 0 to {NODE_ID_MAX}"))
}

fn cores<'de, D: Deserializer<'de>>(source: D) -> Result<u8, D::Error> {
    number(source, |given| format!("cores = {given}: give 1 to 255"))
}

/// A number, or the sentence about one that is out of range: serde would name the Rust type.
fn number<'de, D: Deserializer<'de>, T: TryFrom<i64>>(
    source: D,
    sentence: impl Fn(i64) -> String,
) -> Result<T, D::Error> {
    let given = i64::deserialize(source)?;
    T::try_from(given).map_err(|_| de::Error::custom(sentence(given)))
}

/// Reads the text form.
impl FromStr for ClusterSpec {
    type Err = ClusterError;

    fn from_str(text: &str) -> Result<Self, ClusterError> {
        let file: File = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count() + 1;
            ClusterError::Syntax { line, message: error.message().replace('\n', ", ") }
        })?;
        let member = |node: FileNode| {
            let FileNode { id, addr, cores } = node;
            let addr = addr.parse().map_err(|_| ClusterError::Addr { id, addr })?;
            Ok(Member { id, addr, cores })
        };
        let members: Result<_, ClusterError> = file.nodes.into_iter().map(member).collect();
        Self::new(file.epoch, file.placement, members?)
    }
}

/// Writes the text form.
impl fmt::Display for ClusterSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node =
            |member: &Member| FileNode { id: member.id, addr: member.addr.to_string(), cores: member.cores };
        let nodes = self.members.iter().map(node).collect();
        let file = File { epoch: self.epoch, placement: self.placement, nodes };
        f.write_str(&toml::to_string(&file).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};
    use zerocopy::FromZeros;

    use super::*;
    use crate::wire::{Flags, Kind, tests::common};

    const TEXT: &str = "epoch = 7\nplacement = \"modulo\"\n\n[[node]]\nid = 1\naddr = \"10.10.1.1:4100\"\ncores = 8\n\n\
                        [[node]]\nid = 2\naddr = \"[fd00::2]:4100\"\ncores = 4\n";

    const GOLDEN_DIGEST: u64 = 0x7d65_68ed_2ae1_9a3b;

    fn member(id: u64, addr: &str, cores: u8) -> Member {
        Member { id, addr: addr.parse().unwrap(), cores }
    }

    fn many(count: u64) -> ClusterSpec {
        let members =
            (0..count).rev().map(|id| member(id, &format!("10.0.{}.{}:4100", id / 256, id % 256), 1));
        ClusterSpec::new(9, Placement::Rendezvous, members.collect()).unwrap()
    }

    /// Goal: the text form says all, in whatever order. Method: a golden text, there and back.
    #[test]
    fn text_is_golden() {
        let spec: ClusterSpec = TEXT.parse().unwrap();
        let members = vec![member(2, "[fd00::2]:4100", 4), member(1, "10.10.1.1:4100", 8)];
        assert_eq!(spec, ClusterSpec::new(7, Placement::Modulo, members).unwrap());
        assert_eq!(spec.to_string(), TEXT);
        let short: ClusterSpec =
            "epoch = 1\nnode = [{ id = 5, addr = '1.2.3.4:5', cores = 1 }]".parse().unwrap();
        assert_eq!((short.placement(), short.member(5).unwrap().cores), (Placement::Rendezvous, 1));
    }

    /// Goal: what is no map is refused in a sentence that names the line or the node. Method: one of each kind.
    #[test]
    fn errors_name_their_place() {
        let node = |id: u64, addr: &str, cores: u8| {
            format!("[[node]]\nid = {id}\naddr = \"{addr}\"\ncores = {cores}\n")
        };
        let one = node(1, "10.0.0.1:4100", 2);
        let cases = [
            (String::new(), "line 1: missing field `epoch`"),
            (format!("epoch = 0\n{one}"), "epoch 0 is that of a server that is alone"),
            (format!("epoch = 70000\n{one}"), "line 1: epoch = 70000: give 1 to 65535"),
            ("epoch = 1".to_owned(), "a cluster needs at least one node"),
            (
                format!("epoch = 1\n{}", one.replace("cores = 2", "cores = 256")),
                "line 5: cores = 256: give 1 to 255",
            ),
            (
                format!("epoch = 1\nplacement = \"ring\"\n{one}"),
                "line 2: unknown variant `ring`, expected `rendezvous` or `modulo`",
            ),
            (format!("epoch = 1\ncolour = 3\n{one}"), "line 2: unknown field `colour`"),
            (
                format!("epoch = 1\n{one}[[node]]\nid = -1\naddr = \"10.0.0.2:1\"\ncores = 1\n"),
                "line 7: id = -1: give 0 to 9223372036854775807",
            ),
            ("epoch = 1\nnode = []".to_owned(), "a cluster needs at least one node"),
            (format!("epoch = 1\n{one}{one}"), "node id 1 is used twice"),
            (
                format!("epoch = 1\n{one}{}", node(2, "10.0.0.1:4101", 2)),
                "nodes [1, 2] share port 4101 of 10.0.0.1",
            ),
            (
                format!("epoch = 1\n{}", node(1, "node0:4100", 2)),
                "node 1 has addr = \"node0:4100\": give an IP",
            ),
            (format!("epoch = 1\n{}", node(1, "0.0.0.0:4100", 2)), "node 1 has addr = \"0.0.0.0:4100\""),
            (format!("epoch = 1\n{}", node(1, "10.0.0.1:65535", 2)), "node 1 has 2 cores from port 65535 on"),
            (format!("epoch = 1\n{}", node(1, "10.0.0.1:4100", 0)), "node 1 has no cores"),
        ];
        for (text, sentence) in cases {
            let error = text.parse::<ClusterSpec>().unwrap_err().to_string();
            assert!(error.starts_with(sentence), "{text}\n{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let crowded = (0..17).map(|id| member(id, &format!("10.0.0.{id}:4100"), 255)).collect();
        let error = ClusterSpec::new(1, Placement::Modulo, crowded).unwrap_err();
        assert_eq!(error, ClusterError::TooManyCores(17 * 255));
        let unknown = many(3).member(3).unwrap_err().to_string();
        assert_eq!(unknown, "the cluster map has no node 3: its nodes are 0, 1, 2");
    }

    /// Goal: no version and no language ever computes another digest. Method: a golden one, from a second implementation
    /// in Python; then each part changed.
    #[test]
    fn digests_tell_maps_apart() {
        let spec: ClusterSpec = TEXT.parse().unwrap();
        assert_eq!(spec.digest(), GOLDEN_DIGEST);
        for (from, to) in [
            ("epoch = 7", "epoch = 8"),
            ("modulo", "rendezvous"),
            ("id = 2", "id = 3"),
            ("10.10.1.1", "10.10.1.2"),
            ("fd00::2]:4100", "fd00::2]:4101"),
            ("cores = 4", "cores = 5"),
        ] {
            let other: ClusterSpec = TEXT.replace(from, to).parse().unwrap();
            assert_ne!(other.digest(), spec.digest(), "{to}");
        }
    }

    /// Goal: each partition belongs to one core of one node, and each server knows which are its own. Method: all shares
    /// of all members of some clusters, added up.
    #[test]
    fn shares_add_up() {
        let two: ClusterSpec = TEXT.parse().unwrap();
        for spec in [two, many(3), ClusterSpec::alone(5)] {
            let mut owners = [0; PARTITIONS];
            for member in spec.members() {
                let membership = Membership::new(spec.clone(), member.id).unwrap();
                assert_eq!(membership.member(), member);
                for core in 0..member.cores {
                    let share = membership.share_of(core);
                    assert!(!share.is_empty());
                    for partition in Partition::all().filter(|&partition| share.has(partition)) {
                        assert!(membership.owns(partition));
                        owners[partition.index()] += 1;
                    }
                }
                let all: usize = (0..member.cores).map(|core| membership.share_of(core).len()).sum();
                assert_eq!(all, Partition::all().filter(|&partition| membership.owns(partition)).count());
            }
            assert!(owners.iter().all(|&count| count == 1));
        }
        assert!(Membership::new(many(3), 3).is_err());
    }

    fn pages(membership: &Membership) -> Vec<Vec<u8>> {
        let mut pages = Vec::new();
        let mut first = 0;
        while first < membership.spec().members().len() {
            let mut out = [0xee; DATAGRAM_LEN_MIN];
            let len =
                membership.write_page(common(Kind::MAP_PAGE, Flags::NONE), (first as u64).into(), &mut out);
            first += (len - 40) / 32;
            pages.push(out[..len].to_vec());
        }
        pages
    }

    /// Goal: a page never changes silently. Method: literal bytes.
    #[test]
    fn page_is_golden() {
        let membership = Membership::new(TEXT.parse().unwrap(), 2).unwrap();
        let page = pages(&membership).remove(0);
        assert_eq!(page.len(), 40 + 2 * 32);
        assert_eq!(page[0], 0x1f);
        assert_eq!(page[16..32], [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 7, 1, 0, 0, 0]);
        assert_eq!(page[32..40], GOLDEN_DIGEST.to_be_bytes());
        assert_eq!(page[40..48], [0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(page[48..64], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 10, 1, 1]);
        assert_eq!(page[64..72], [0x10, 0x04, 8, 0, 0, 0, 0, 0]);
        assert_eq!(page[80..82], [0xfd, 0]);
    }

    /// Goal: a map of any size comes through, whatever is lost, doubled or out of turn. Method: clusters of one page and of
    /// many; the pages shuffled until all are taken, and a map that changes in the midst.
    #[test]
    fn pages_make_the_map() {
        const SEED: u64 = 0x7061_6765;
        println!("seed {SEED:#x}");
        let mut random = SmallRng::seed_from_u64(SEED);
        for spec in
            [ClusterSpec::alone(3), many(1), many(PAGE_NODES as u64), many(PAGE_NODES as u64 + 1), many(700)]
        {
            let membership = Membership::new(spec.clone(), 0).unwrap();
            let pages = pages(&membership);
            let mut map = PagedMap::default();
            let taken =
                (0..1_000_000).find_map(|_| map.take(&pages[random.random_range(0..pages.len())]).unwrap());
            assert_eq!(taken.as_ref(), Some(&spec));
        }
        let (old, new) = (Membership::new(many(40), 0).unwrap(), Membership::new(many(41), 0).unwrap());
        let mut map = PagedMap::default();
        assert_eq!(map.take(&pages(&old)[0]), Ok(None));
        assert_eq!(map.len(), PAGE_NODES);
        let taken = pages(&new).iter().find_map(|page| map.take(page).unwrap());
        assert_eq!(taken.as_ref(), Some(new.spec()));
        // Beyond the end there is nothing, and that is no page.
        let mut out = [0; DATAGRAM_LEN_MIN];
        let len = new.write_page(common(Kind::MAP_PAGE, Flags::NONE), u64::MAX.into(), &mut out);
        assert_eq!((len, map.take(&out[..len])), (40, Ok(None)));
    }

    /// Goal: hostile pages make nothing but errors, and never a map that is none. Method: every truncation, every byte
    /// changed, and random bytes.
    #[test]
    fn broken_pages_are_refused() {
        let spec: ClusterSpec = TEXT.parse().unwrap();
        let good = pages(&Membership::new(spec.clone(), 1).unwrap()).remove(0);
        for len in 0..good.len() {
            assert_ne!(PagedMap::default().take(&good[..len]), Ok(Some(spec.clone())));
        }
        for index in 16..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 0x41;
            let taken = PagedMap::default().take(&bad);
            assert!(!matches!(&taken, Ok(Some(map)) if *map != spec), "byte {index}: {taken:?}");
        }
        let mut empty = MapPage::new_zeroed();
        empty.node_count = 1.into();
        assert_eq!(PagedMap::default().take(empty.as_bytes()), Err(DropReason::Malformed));
        let mut random = SmallRng::seed_from_u64(3);
        for _ in 0..100_000 {
            let mut bytes = [0u8; 200];
            random.fill(&mut bytes[..]);
            bytes[24] = 0;
            bytes[25] %= 8;
            bytes[28] %= 3;
            assert!(!matches!(PagedMap::default().take(&bytes), Ok(Some(_))));
        }
    }
}
