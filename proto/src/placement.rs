//! Where a key lives: key → hash → partition (4,096 of them) → (node, core).
//!
//! Partitions stand between keys and machines so that a cluster is a table of 4,096 owners: short enough to compare and
//! to print, and finding the owner of a key is one array load. Which *node* owns a partition is the cluster's decision;
//! which *core* of that node is arithmetic ([`core_of`]), so a core knows its own partitions without knowing the
//! cluster.
//!
//! The table is a pure function of the nodes' ids and core counts. Nobody has to distribute it: whoever knows the same
//! nodes computes the same owners, in any language and from any order of the list.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{hash::key_hash, key::Key};

/// The number of partitions of the key space: 2¹², so that the hash's top bits name one. Enough that 64 cores hold 64
/// each and shares can be equal to 2 %; few enough that the owners of all fit a first-level cache (16 KiB).
pub const PARTITIONS: usize = 4096;

/// One of the 4,096 parts of the key space. Below [`PARTITIONS`] by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(u16);

impl Partition {
    /// The partition of a key whose [`key_hash`] is `hash`: its high 12 bits.
    #[inline]
    #[must_use]
    pub fn of(hash: u64) -> Self {
        Self((hash >> (u64::BITS - PARTITIONS.ilog2())) as u16)
    }

    /// All partitions, in ascending order.
    pub fn all() -> impl ExactSizeIterator<Item = Self> + DoubleEndedIterator {
        (0..PARTITIONS as u16).map(Self)
    }

    /// Its number, 0..4096.
    #[inline]
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The core that serves `partition` on any node of `cores` cores (1..=255): `partition % cores`, whatever the rest of
/// the cluster is. A server checks ownership between its own cores by this alone.
///
/// # Panics
///
/// If `cores` is 0.
#[inline]
#[must_use]
pub fn core_of(partition: Partition, cores: u8) -> u8 {
    // The remainder is less than `cores`, so it fits.
    (partition.0 % u16::from(cores)) as u8
}

/// A machine of the cluster, as placement sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Any number that no other node has and that this one keeps for life; where nodes have names, the [`key_hash`] of
    /// the name. Ids decide who owns what, so a changed id is another node.
    pub id: u64,
    /// How many cores serve, 1..=255. A node's share of the partitions is proportional to it.
    pub cores: u8,
}

/// Who serves a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Index into [`ClusterMap::nodes`].
    pub node: u16,
    /// Core of that node, 0..cores.
    pub core: u8,
}

/// The owner of every partition, valid for one epoch.
///
/// Equal nodes and epoch give equal maps. 16 KiB in one piece, so keep it behind a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterMap {
    epoch: u16,
    nodes: Vec<Node>,
    owners: [Owner; PARTITIONS],
}

/// How partitions are placed on nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// [`ClusterMap::rendezvous`].
    #[default]
    Rendezvous,
    /// [`ClusterMap::modulo`].
    Modulo,
}

impl ClusterMap {
    /// Places partitions in one of the ways there are.
    ///
    /// # Errors
    ///
    /// As for [`Self::rendezvous`].
    pub fn new(placement: Placement, nodes: &[Node], epoch: u16) -> Result<Self, PlacementError> {
        match placement {
            Placement::Rendezvous => Self::rendezvous(nodes, epoch),
            Placement::Modulo => Self::modulo(nodes, epoch),
        }
    }

    /// The map of one server alone, at epoch 0: id 0, `cores` cores (1..=255).
    ///
    /// # Errors
    ///
    /// [`PlacementError::NoCores`] if `cores` is 0.
    pub fn single(cores: u8) -> Result<Self, PlacementError> {
        // With nobody to choose from, all placements agree; this one is the cheapest.
        Self::modulo(&[Node { id: 0, cores }], 0)
    }

    /// Places partitions by rendezvous hashing with bounded load; the order of `nodes` does not matter.
    ///
    /// Every (node, partition) pair has a pseudo-random score, a node of more cores a proportionally better chance of a
    /// high one; a partition goes to the node that scores highest among those with room for it. So nearly all that
    /// moves when a node comes is what the newcomer takes, and nearly all that moves when one goes is what it held.
    /// Room means that the core which would serve the partition holds fewer than a fair share, rounded up. With
    /// unlike core counts one of the last partitions may find no room, and an earlier one makes place for it. Should
    /// that fail too, all is done again with a bound one higher; none of 300 random clusters needed it.
    ///
    /// The idea is from Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998), and
    /// Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads" (2018). Integer arithmetic only, so
    /// that every language computes the same table. It takes about 4,096 hashes per core of the cluster.
    ///
    /// # Errors
    ///
    /// If there are no nodes or more than [`PARTITIONS`], a node without cores, or two nodes of one id.
    pub fn rendezvous(nodes: &[Node], epoch: u16) -> Result<Self, PlacementError> {
        let nodes = checked(nodes)?;
        let scores: Vec<u64> =
            Partition::all().flat_map(|p| nodes.iter().map(move |n| score(n, p))).collect();
        let cores: usize = nodes.iter().map(|n| usize::from(n.cores)).sum();
        // One core can hold everything, so the search ends.
        let owners = (PARTITIONS.div_ceil(cores)..=PARTITIONS)
            .find_map(|cap| assign(&nodes, &scores, cap))
            .expect("a bound of all partitions bounds nothing");
        Ok(Self { epoch, nodes, owners })
    }

    /// Places partitions by the remainder of a division: cores are numbered through all nodes, in ascending order of
    /// node id, and partition `p` goes to the node of core `p % cores`.
    ///
    /// Shares are as equal as they can be, but almost every partition moves when a node comes or goes. It exists to be
    /// compared with [`Self::rendezvous`].
    ///
    /// # Errors
    ///
    /// As for [`Self::rendezvous`].
    pub fn modulo(nodes: &[Node], epoch: u16) -> Result<Self, PlacementError> {
        let nodes = checked(nodes)?;
        let node_of_core: Vec<usize> = nodes
            .iter()
            .enumerate()
            .flat_map(|(index, node)| std::iter::repeat_n(index, usize::from(node.cores)))
            .collect();
        let owners = std::array::from_fn(|index| {
            let node = node_of_core[index % node_of_core.len()];
            owner(&nodes, node, Partition(index as u16))
        });
        Ok(Self { epoch, nodes, owners })
    }

    /// The node and core that serve `partition`.
    #[inline]
    #[must_use]
    pub fn owner(&self, partition: Partition) -> Owner {
        self.owners[partition.index()]
    }

    /// The node and core that serve `key`.
    #[inline]
    #[must_use]
    pub fn owner_of_key(&self, key: Key<'_>) -> Owner {
        self.owner(Partition::of(key_hash(key)))
    }

    /// The epoch this map is valid for.
    #[inline]
    #[must_use]
    pub fn epoch(&self) -> u16 {
        self.epoch
    }

    /// The nodes, in ascending order of their ids.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The partitions that satisfy `owned`.
    #[must_use]
    pub fn share(&self, owned: impl Fn(Owner) -> bool) -> Share {
        let mut share = Share { bits: [0; PARTITIONS / 64] };
        for partition in Partition::all().filter(|&partition| owned(self.owner(partition))) {
            share.bits[partition.index() / 64] |= 1 << (partition.index() % 64);
        }
        share
    }

    /// How many partitions each core of each node owns.
    #[must_use]
    pub fn counts(&self) -> Vec<Vec<usize>> {
        let mut counts: Vec<_> = self.nodes.iter().map(|node| vec![0; usize::from(node.cores)]).collect();
        for Owner { node, core } in Partition::all().map(|partition| self.owner(partition)) {
            counts[usize::from(node)][usize::from(core)] += 1;
        }
        counts
    }
}

/// A set of partitions, 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    bits: [u64; PARTITIONS / 64],
}

impl Share {
    /// Whether `partition` is in it.
    #[inline]
    #[must_use]
    pub fn has(&self, partition: Partition) -> bool {
        self.bits[partition.index() / 64] >> (partition.index() % 64) & 1 == 1
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bits.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a list of nodes makes no cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PlacementError {
    /// The list is empty.
    #[error("a cluster needs at least one node")]
    NoNodes,
    /// More nodes than there are partitions to own.
    #[error("{count} nodes cannot share {PARTITIONS} partitions: at most one node per partition")]
    TooManyNodes {
        /// Nodes in the list.
        count: usize,
    },
    /// A node serves on no core.
    #[error("node {id} has no cores: each node needs 1 to 255")]
    NoCores {
        /// The node.
        id: u64,
    },
    /// Two nodes cannot be told apart.
    #[error("node id {id} is used twice: each node needs an id of its own")]
    DuplicateId {
        /// The id.
        id: u64,
    },
}

/// The nodes by ascending id, or what is wrong with them.
fn checked(nodes: &[Node]) -> Result<Vec<Node>, PlacementError> {
    if nodes.is_empty() {
        return Err(PlacementError::NoNodes);
    }
    if nodes.len() > PARTITIONS {
        return Err(PlacementError::TooManyNodes { count: nodes.len() });
    }
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable_by_key(|node| node.id);
    if let Some(node) = nodes.iter().find(|node| node.cores == 0) {
        return Err(PlacementError::NoCores { id: node.id });
    }
    if let Some(pair) = nodes.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(PlacementError::DuplicateId { id: pair[0].id });
    }
    Ok(nodes)
}

/// How much `node` wants `partition`: each of its cores draws the hash of id, partition and core (11 bytes in network
/// byte order), and the best draw counts. So of two nodes the one with twice the cores wins twice as often.
fn score(node: &Node, partition: Partition) -> u64 {
    let mut draw = [0; 11];
    draw[..8].copy_from_slice(&node.id.to_be_bytes());
    draw[8..10].copy_from_slice(&partition.0.to_be_bytes());
    (0..node.cores).fold(0, |best, core| {
        draw[10] = core;
        best.max(key_hash(Key::new(&draw)))
    })
}

/// Gives each partition, in ascending order, to the node of highest score whose core has room, that is holds fewer than
/// `cap`; of equal scores the lower id wins. If none has room, the lowest earlier partition that sits on one of these
/// cores and has room elsewhere moves there and leaves its place. `None` if no such partition exists either.
fn assign(nodes: &[Node], scores: &[u64], cap: usize) -> Option<[Owner; PARTITIONS]> {
    let mut loads: Vec<Vec<usize>> = nodes.iter().map(|node| vec![0; usize::from(node.cores)]).collect();
    let mut owners = [Owner { node: 0, core: 0 }; PARTITIONS];
    let best_with_room = |loads: &[Vec<usize>], partition: Partition| {
        let scores = &scores[partition.index() * nodes.len()..][..nodes.len()];
        (0..nodes.len())
            .filter(|&node| loads[node][usize::from(core_of(partition, nodes[node].cores))] < cap)
            .max_by_key(|&node| (scores[node], Reverse(node)))
            .map(|node| owner(nodes, node, partition))
    };
    for partition in Partition::all() {
        let place = if let Some(free) = best_with_room(&loads, partition) {
            loads[usize::from(free.node)][usize::from(free.core)] += 1;
            free
        } else {
            let (earlier, refuge) = Partition::all()
                .take(partition.index())
                .filter(|earlier| {
                    let held = owners[earlier.index()];
                    held.core == core_of(partition, nodes[usize::from(held.node)].cores)
                })
                .find_map(|earlier| Some((earlier, best_with_room(&loads, earlier)?)))?;
            loads[usize::from(refuge.node)][usize::from(refuge.core)] += 1;
            std::mem::replace(&mut owners[earlier.index()], refuge)
        };
        owners[partition.index()] = place;
    }
    Some(owners)
}

/// Node number `node` as the owner of `partition`.
fn owner(nodes: &[Node], node: usize, partition: Partition) -> Owner {
    // `checked` lets at most 4,096 nodes pass, so the index fits.
    Owner { node: node as u16, core: core_of(partition, nodes[node].cores) }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};

    use super::*;

    const SEED: u64 = 0x706c_6163_656d_656e;

    /// Core counts that do not divide each other, as a cluster that grew over years has them.
    const MIXED: [&[u8]; 8] = [
        &[1, 8],
        &[2, 3],
        &[1, 2, 4, 8],
        &[3, 5, 7],
        &[8, 8, 4],
        &[6, 10, 16],
        &[16, 16, 32, 24],
        &[12, 8, 8, 8, 6],
    ];

    /// Nodes of these core counts, with random ids.
    fn nodes(random: &mut StdRng, cores: &[u8]) -> Vec<Node> {
        cores.iter().map(|&cores| Node { id: random.next_u64(), cores }).collect()
    }

    fn random() -> StdRng {
        println!("seed {SEED:#x}");
        StdRng::seed_from_u64(SEED)
    }

    /// Partitions per core, for each node; checks on the way that every owner exists and obeys [`core_of`].
    fn loads(map: &ClusterMap) -> Vec<Vec<usize>> {
        for partition in Partition::all() {
            let owner = map.owner(partition);
            assert_eq!(owner.core, core_of(partition, map.nodes()[usize::from(owner.node)].cores));
        }
        map.counts()
    }

    /// How many partitions have another node in `after` than in `before`, of all.
    fn moved(before: &ClusterMap, after: &ClusterMap) -> f64 {
        let id = |map: &ClusterMap, partition| map.nodes()[usize::from(map.owner(partition).node)].id;
        let count = Partition::all().filter(|&p| id(before, p) != id(after, p)).count();
        count as f64 / PARTITIONS as f64
    }

    /// Goal: a partition is the hash's top 12 bits. Method: the edges.
    #[test]
    fn partition_is_the_top_of_the_hash() {
        assert_eq!(Partition::of(0).index(), 0);
        assert_eq!(Partition::of((1 << 52) - 1).index(), 0);
        assert_eq!(Partition::of(1 << 52).index(), 1);
        assert_eq!(Partition::of(u64::MAX).index(), 4095);
        assert_eq!(Partition::all().len(), PARTITIONS);
        assert!(Partition::all().map(Partition::index).eq(0..PARTITIONS));
    }

    /// Goal: a lone server owns everything, on the core that arithmetic says. Method: every core count;
    /// rendezvous, which has nothing to choose, must agree.
    #[test]
    fn single_node_owns_all() {
        for cores in 1..=255 {
            let map = ClusterMap::single(cores).unwrap();
            assert_eq!(map.epoch(), 0);
            assert!(
                Partition::all()
                    .all(|p| map.owner(p) == Owner { node: 0, core: (p.0 % u16::from(cores)) as u8 })
            );
        }
        assert_eq!(ClusterMap::rendezvous(&[Node { id: 0, cores: 7 }], 0), ClusterMap::single(7));
    }

    /// Goal: cores hold equal shares, and so nodes shares in proportion to their cores. Method: 1..=8 nodes of 1, 2, 4
    /// and 8 cores and the mixed clusters; no core may hold more than the fair share rounded up, and no node be further
    /// than 2 % from its own.
    #[test]
    fn shares_are_fair() {
        let mut random = random();
        let alike = [1u8, 2, 4, 8].into_iter().flat_map(|cores| (1..=8).map(move |count| vec![cores; count]));
        for cores in alike.chain(MIXED.map(<[u8]>::to_vec)) {
            let map = ClusterMap::rendezvous(&nodes(&mut random, &cores), 1).unwrap();
            let loads = loads(&map);
            let total: usize = loads.iter().map(Vec::len).sum();
            let fullest = loads.iter().flatten().max().unwrap();
            assert!(*fullest <= PARTITIONS.div_ceil(total), "{cores:?}: a core holds {fullest}");
            for node in &loads {
                let fair = (PARTITIONS * node.len()) as f64 / total as f64;
                let relative = node.iter().sum::<usize>() as f64 / fair;
                assert!((0.98..=1.02).contains(&relative), "{cores:?}: a node holds {relative} of its share");
            }
        }
    }

    /// Goal: a node that comes or goes moves little more than its own share. Method: grow clusters of 1..=8 equal nodes
    /// by one, and take each node out of the mixed ones (both directions are the same pair of maps); at most half as
    /// many again may move.
    #[test]
    fn little_moves_when_a_node_comes_or_goes() {
        let mut random = random();
        for cores in [1u8, 2, 4, 8] {
            let all = nodes(&mut random, &[cores; 9]);
            for count in 1..=8 {
                let before = ClusterMap::rendezvous(&all[..count], 1).unwrap();
                let after = ClusterMap::rendezvous(&all[..=count], 2).unwrap();
                let relative = moved(&before, &after) * (count + 1) as f64;
                println!("{count} nodes of {cores} cores and one more: {relative:.2} of its share moved");
                assert!((0.95..=1.5).contains(&relative));
            }
        }
        for cores in MIXED {
            let all = nodes(&mut random, cores);
            let total: u32 = cores.iter().map(|&cores| u32::from(cores)).sum();
            let with = ClusterMap::rendezvous(&all, 1).unwrap();
            for gone in 0..all.len() {
                let mut rest = all.clone();
                rest.remove(gone);
                let without = ClusterMap::rendezvous(&rest, 2).unwrap();
                let relative = moved(&with, &without) * f64::from(total) / f64::from(cores[gone]);
                println!("{cores:?} without {}: {relative:.2} of its share moved", cores[gone]);
                assert!((0.95..=1.5).contains(&relative));
            }
        }
    }

    /// Goal: the order of the list does not matter. Method: shuffle it and compare whole maps.
    #[test]
    fn only_ids_matter() {
        let mut random = random();
        for cores in MIXED {
            let mut list = nodes(&mut random, cores);
            let rendezvous = ClusterMap::rendezvous(&list, 7).unwrap();
            let modulo = ClusterMap::modulo(&list, 7).unwrap();
            for _ in 0..3 {
                list.shuffle(&mut random);
                assert_eq!(ClusterMap::rendezvous(&list, 7).unwrap(), rendezvous);
                assert_eq!(ClusterMap::modulo(&list, 7).unwrap(), modulo);
            }
            assert!(rendezvous.nodes().is_sorted_by_key(|node| node.id));
        }
    }

    /// Goal: no version and no language ever disagrees on who owns what. Method: the first owners of two small
    /// clusters, and a hash over all (three bytes each: node in network byte order, core), from a second, independent
    /// implementation in Python.
    #[test]
    fn golden_owners() {
        let golden = [
            (
                [(1, 2), (2, 2), (3, 2)],
                [
                    (2, 0),
                    (0, 1),
                    (2, 0),
                    (2, 1),
                    (1, 0),
                    (2, 1),
                    (1, 0),
                    (2, 1),
                    (1, 0),
                    (1, 1),
                    (1, 0),
                    (1, 1),
                ],
                0xfcd6_3a6d_c8c6_92fa,
            ),
            (
                [(10, 1), (20, 4), (30, 8)],
                [
                    (1, 0),
                    (1, 1),
                    (2, 2),
                    (2, 3),
                    (1, 0),
                    (2, 5),
                    (1, 2),
                    (1, 3),
                    (1, 0),
                    (2, 1),
                    (2, 2),
                    (2, 3),
                ],
                0xb3fb_13f9_9d6d_c52a,
            ),
        ];
        for (nodes, first, hash) in golden {
            let map = ClusterMap::rendezvous(&nodes.map(|(id, cores)| Node { id, cores }), 3).unwrap();
            assert_eq!(map.epoch(), 3);
            let owners: Vec<Owner> = Partition::all().map(|p| map.owner(p)).collect();
            assert_eq!(owners[..12], first.map(|(node, core)| Owner { node, core }));
            let bytes: Vec<u8> =
                owners.iter().flat_map(|o| [o.node.to_be_bytes().as_slice(), &[o.core]].concat()).collect();
            assert_eq!(key_hash(Key::new(&bytes)), hash);
        }
    }

    /// Goal: modulo placement is balanced and is what it says. Method: the fullest and emptiest core of equal and of
    /// mixed clusters differ by a few partitions, and equal nodes take partitions in turns of one per core.
    #[test]
    fn modulo_deals_in_turns() {
        let mut random = random();
        for cores in MIXED.into_iter().chain([[4u8; 5].as_slice()]) {
            let map = ClusterMap::modulo(&nodes(&mut random, cores), 1).unwrap();
            let loads = loads(&map);
            let (min, max) = (loads.iter().flatten().min().unwrap(), loads.iter().flatten().max().unwrap());
            assert!(max - min <= 4, "{cores:?}: {min} to {max}");
        }
        let map = ClusterMap::modulo(&nodes(&mut random, &[2, 2]), 1).unwrap();
        let turns: Vec<(u16, u8)> =
            Partition::all().take(6).map(|p| (map.owner(p).node, map.owner(p).core)).collect();
        assert_eq!(turns, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (0, 1)]);
    }

    /// Goal: a key is found through its hash and partition. Method: the long way round for some keys.
    #[test]
    fn owner_of_key_follows_the_hash() {
        let map = ClusterMap::rendezvous(&nodes(&mut random(), &[2, 2, 2]), 1).unwrap();
        for key in [b"".as_slice(), b"1234567", b"user0000000001"] {
            let key = Key::new(key);
            let partition = Partition::all().nth((key_hash(key) >> 52) as usize).unwrap();
            assert_eq!(map.owner_of_key(key), map.owner(partition));
        }
    }

    /// Goal: lists that make no cluster are refused with a reason. Method: one of each kind, for both placements.
    #[test]
    fn errors() {
        let node = |id, cores| Node { id, cores };
        let too_many: Vec<Node> = (0..=PARTITIONS as u64).map(|id| node(id, 1)).collect();
        let cases: [(&[Node], PlacementError, &str); 4] = [
            (&[], PlacementError::NoNodes, "a cluster needs at least one node"),
            (
                &too_many,
                PlacementError::TooManyNodes { count: 4097 },
                "4097 nodes cannot share 4096 partitions: at most one node per partition",
            ),
            (
                &[node(1, 2), node(2, 0)],
                PlacementError::NoCores { id: 2 },
                "node 2 has no cores: each node needs 1 to 255",
            ),
            (
                &[node(9, 2), node(3, 1), node(9, 4)],
                PlacementError::DuplicateId { id: 9 },
                "node id 9 is used twice: each node needs an id of its own",
            ),
        ];
        for (nodes, error, sentence) in cases {
            assert_eq!(ClusterMap::rendezvous(nodes, 0), Err(error));
            assert_eq!(ClusterMap::modulo(nodes, 0), Err(error));
            assert_eq!(error.to_string(), sentence);
        }
        assert_eq!(ClusterMap::single(0), Err(PlacementError::NoCores { id: 0 }));
    }
}
