//! Several servers that are one store, and what clients do when they are not, or become another.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use linerate_client::{Client, ConnectError, Error, Outcome, Reason, Session, SessionConfig};
use linerate_dataplane::{
    Port, UdpPort,
    netns::{End, PairConfig, Switch},
    pin::allowed_cores,
};
use linerate_proto::{
    cluster::{ClusterSpec, Member, Membership},
    placement::Placement,
    wire::Statistic,
};
use linerate_server::{Datagrams, Server, ServerConfig, StartError};

use crate::blocking::{Connect, patient};

over_udp_and_tcp! {
    servers_of_a_cluster_share_the_keys,
    a_changed_cluster_is_followed,
    what_is_no_cluster_is_refused,
    servers_at_wrong_places_are_found,
    what_ended_well_is_told_whatever_the_map,
    a_lone_server_is_found_beside_a_silent_address,
    a_lone_server_with_other_cores_is_followed,
}

/// A server on loopback.
fn start(spec: &ClusterSpec, id: u64) -> Result<Server, StartError> {
    let membership = Membership::new(spec.clone(), id).unwrap();
    let Member { addr, cores, .. } = *membership.member();
    let cpus = allowed_cores().unwrap();
    Server::start(&ServerConfig {
        listen: addr.ip(),
        port: addr.port(),
        cpus: cpus.into_iter().cycle().take(cores.into()).collect(),
        memory_len: usize::from(cores) * (64 << 20),
        cluster: Some(Arc::new(membership)),
        ..ServerConfig::default()
    })
}

/// Nodes 1, 2, … of so many cores, at ports that are free and below those that the kernel gives to others meanwhile.
fn started(placement: Placement, cores: &[u8]) -> (ClusterSpec, Vec<Server>) {
    for _ in 0..100 {
        let port = rand::random_range(12_000..31_000);
        let spec = spec(1, placement, port, cores);
        if let Ok(servers) = spec.members().iter().map(|member| start(&spec, member.id)).collect() {
            return (spec, servers);
        }
    }
    panic!("no free ports");
}

fn spec(epoch: u16, placement: Placement, port: u16, cores: &[u8]) -> ClusterSpec {
    let member = |(id, &cores): (u64, &u8)| {
        let port = port + 16 * id as u16;
        Member { id, addr: SocketAddr::new([127, 0, 0, 1].into(), port), cores }
    };
    ClusterSpec::new(epoch, placement, (1..).zip(cores).map(member).collect()).unwrap()
}

fn addrs(spec: &ClusterSpec) -> Vec<SocketAddr> {
    spec.members().iter().map(|member| member.addr).collect()
}

fn stat(server: &Server, statistic: Statistic) -> u64 {
    server.stats()[statistic as usize]
}

/// Goal: several servers are one store, whichever of them a client is told. Method: servers of different sizes, both ways to
/// place keys; every key is found again by clients that know one server each, or several of which some are not there; each
/// server has its part, and nothing came to the wrong one.
fn servers_of_a_cluster_share_the_keys<P: Port>(connect: Connect<P>) {
    for placement in [Placement::Rendezvous, Placement::Modulo] {
        let (spec, servers) = started(placement, &[1, 2, 1]);
        let addrs = addrs(&spec);
        let pairs: Vec<_> = (0..900u32).map(|number| (number.to_be_bytes(), number.to_string())).collect();
        connect(&addrs[..1], patient()).unwrap().multi_put(&pairs).unwrap();
        let keys: Vec<_> = pairs.iter().map(|(key, _)| key).collect();
        let nobody = SocketAddr::new(addrs[0].ip(), addrs[0].port() - 8);
        for contacts in [vec![addrs[1]], vec![addrs[2], addrs[0]], vec![nobody, addrs[2]]] {
            let mut client = connect(&contacts, patient()).unwrap();
            assert_eq!(client.session().cluster(), &spec);
            let values = client.multi_get(&keys).unwrap();
            assert!(
                values.iter().zip(&pairs).all(|(found, (_, put))| found.as_deref() == Some(put.as_bytes()))
            );
            // What a server was asked before it tells its statistics is in them.
            assert!(client.statistics().unwrap().iter().all(|(_, values)| values.is_some()));
        }
        for (server, share) in servers.iter().zip([225, 450, 225]) {
            let records = stat(server, Statistic::Records);
            assert!((share / 3 * 2..share / 2 * 3).contains(&records), "{records} of {share} records");
            assert_eq!((stat(server, Statistic::WrongCore), stat(server, Statistic::Moved)), (0, 0));
        }
    }
}

/// Goal: a client goes on when its servers have become another cluster. Method: servers that are started again with another placement and one more node; a blocking client's calls
/// work within a few tries, and go by the new map.
fn a_changed_cluster_is_followed<P: Port>(connect: Connect<P>) {
    let (old, servers) = started(Placement::Modulo, &[1, 1]);
    let config = SessionConfig { timeout: Duration::from_secs(2), ..patient() };
    let mut client = connect(&addrs(&old)[..1], config).unwrap();
    let pairs: Vec<_> = (0..100u32).map(|number| (number.to_be_bytes(), number.to_string())).collect();
    client.multi_put(&pairs).unwrap();
    servers.into_iter().for_each(drop);
    let port = old.members()[0].addr.port() - 16;
    let new = spec(2, Placement::Rendezvous, port, &[1, 1, 1]);
    let servers: Vec<_> = new.members().iter().map(|member| start(&new, member.id).unwrap()).collect();
    let mut tries = 0;
    // What was under way when the servers went may be lost with them.
    while let Err(error) = client.multi_put(&pairs) {
        tries += 1;
        assert!(tries < 100, "{error}");
    }
    assert_eq!(client.session().cluster(), &new);
    let keys: Vec<_> = pairs.iter().map(|(key, _)| key).collect();
    assert!(client.multi_get(&keys).unwrap().iter().all(Option::is_some));
    assert!(client.statistics().unwrap().iter().all(|(_, values)| values.is_some()));
    assert!(servers.iter().all(|server| stat(server, Statistic::Records) > 10));
}

/// Goal: a session tells of a changed cluster and does nothing by halves. Method: the same with a session: an operation ends
/// as moved, with the new epoch, and had no effect; the session is stale until it is refreshed, and counts go on.
#[test]
fn a_session_knows_that_it_is_stale() {
    let (old, servers) = started(Placement::Rendezvous, &[2]);
    let mut session = Session::connect_udp(&addrs(&old), patient()).unwrap();
    session.put(b"key", b"old", 1).unwrap();
    session.run(|ended| assert_eq!(ended.outcome, Outcome::Done)).unwrap();
    assert!(!session.is_stale());
    servers.into_iter().for_each(drop);
    let members = old.members().to_vec();
    let new = ClusterSpec::new(4_097, Placement::Rendezvous, members).unwrap();
    let server = start(&new, 1).unwrap();
    let mut outcomes = Vec::new();
    for tag in 0..100 {
        session.put(b"key", b"new", tag).unwrap();
        session
            .run(|ended| match ended.outcome {
                Outcome::NotExecuted(reason) => outcomes.push(reason),
                outcome => assert_eq!(outcome, Outcome::OutcomeUnknown, "by a former map nothing is done"),
            })
            .unwrap();
        if outcomes.last() == Some(&Reason::Moved { epoch: 1 }) {
            break;
        }
    }
    assert_eq!(outcomes.last(), Some(&Reason::Moved { epoch: 1 }), "{outcomes:?}");
    assert!(session.is_stale());
    let before = session.counters();
    session.refresh(|addrs| UdpPort::connect(addrs, Default::default())).unwrap();
    assert!(!session.is_stale());
    assert_eq!(session.cluster().epoch(), 4_097);
    let since = session.counters().since(&before);
    assert_eq!(since.flows.sessions, 2, "one with each core");
    assert!((1..1_000).contains(&since.port.tx_datagrams), "{since:?}");
    session.get(b"key", 7).unwrap();
    session.run(|ended| assert_eq!((ended.tag, ended.outcome), (7, Outcome::NotFound))).unwrap();
    assert_eq!(stat(&server, Statistic::Puts), 0);
}

/// Goal: a call that fails because servers disagree has had no effect, and does no harm to the session. Method: one of two
/// servers is started again by a newer map, of which the client learns; adds to the other one's keys fail, and were not executed; then
/// that server is started by the former map, and all is as before.
fn what_ended_well_is_told_whatever_the_map<P: Port>(connect: Connect<P>) {
    let (old, mut servers) = started(Placement::Rendezvous, &[1, 1]);
    let config = SessionConfig { timeout: Duration::from_secs(1), ..patient() };
    let mut client = connect(&addrs(&old), config).unwrap();
    drop(servers.pop());
    let newer = ClusterSpec::new(2, Placement::Rendezvous, old.members().to_vec()).unwrap();
    let second = start(&newer, 2).unwrap();
    let is_followed = (0..100).any(|_| {
        client.ping().unwrap();
        client.session().is_stale()
    });
    assert!(is_followed);
    for number in 0..8u8 {
        let error = client.add(&[number], 1, None).unwrap_err();
        assert!(
            matches!(error, Error::Connect(ConnectError::Outdated { epoch: 1, newest: 2, .. })),
            "{error}"
        );
    }
    client.statistics().unwrap();
    assert_eq!(stat(&servers[0], Statistic::Adds), 0);
    assert_eq!((client.session().cluster(), client.session().cores().count()), (&old, 2));
    drop(second);
    servers.push(start(&old, 2).unwrap());
    for number in 0..8u8 {
        let mut tries = 0;
        while let Err(error) = client.put(&[number], b"value") {
            tries += 1;
            assert!(tries < 20, "{error}");
        }
    }
    assert_eq!(client.session().cluster(), &old);
}

/// A server by itself, at `port` or one of the kernel's choice.
fn lone(port: u16, cores: usize) -> Server {
    Server::start(&ServerConfig {
        port,
        memory_len: cores * (64 << 20),
        cpus: allowed_cores().unwrap().into_iter().cycle().take(cores).collect(),
        ..ServerConfig::default()
    })
    .unwrap()
}

/// Goal: a server that is alone is used, and nobody else, when another address that was named is silent. Method: a server of
/// one core and of two, with the silent address before it and behind it.
fn a_lone_server_is_found_beside_a_silent_address<P: Port>(connect: Connect<P>) {
    for cores in [1, 2] {
        let server = lone(0, cores);
        let silent = |host| SocketAddr::from(([127, 0, 0, host], 9));
        for contacts in [[silent(1), server.addr()], [server.addr(), silent(2)]] {
            let mut client = connect(&contacts, patient()).unwrap();
            assert_eq!(client.session().cores().count(), cores);
            client.put(b"key", b"value").unwrap();
        }
    }
}

/// Goal: what was refused because another core has the key now is tried again there. Method: a server that is alone is
/// started again with another number of cores.
fn a_lone_server_with_other_cores_is_followed<P: Port>(connect: Connect<P>) {
    let (spec, servers) = started(Placement::Rendezvous, &[3]);
    let port = spec.members()[0].addr.port();
    drop(servers);
    let server = lone(port, 2);
    let config = SessionConfig { timeout: Duration::from_secs(1), ..patient() };
    let mut client = connect(&[server.addr()], config).unwrap();
    let pairs: Vec<_> = (0..50u8).map(|number| ([number], [number])).collect();
    client.multi_put(&pairs).unwrap();
    drop(server);
    let server = lone(port, 3);
    let mut tries = 0;
    while let Err(error) = client.multi_put(&pairs) {
        assert!(!matches!(error, Error::NotExecuted(Reason::WrongCore)), "{error}");
        tries += 1;
        assert!(tries < 100, "{error}");
    }
    client.statistics().unwrap();
    assert_eq!(client.session().cores().count(), 3);
    assert_eq!(stat(&server, Statistic::Records), 50);
}

/// Goal: servers that do not make one cluster are told apart, in a sentence that names them. Method: servers with different
/// maps of one epoch, a server left behind, and one that is alone.
fn what_is_no_cluster_is_refused<P: Port>(connect: Connect<P>) {
    let config = SessionConfig { timeout: Duration::from_secs(10), ..patient() };
    let refusal = |contacts: &[SocketAddr]| connect(contacts, config).expect_err("no cluster");
    let (spec, mut servers) = started(Placement::Rendezvous, &[1, 1]);
    let both = addrs(&spec);
    let other = ClusterSpec::new(1, Placement::Modulo, spec.members().to_vec()).unwrap();
    servers.truncate(1);
    let second = start(&other, 2).unwrap();
    for contacts in [&both[..], &both[..1], &both[1..]] {
        let error = refusal(contacts);
        assert!(
            matches!(&error, ConnectError::Disagreement { epoch: 1, servers } if both.iter().all(|addr| servers.contains(addr))),
            "{error}"
        );
    }
    drop(second);
    let newer = ClusterSpec::new(2, Placement::Rendezvous, spec.members().to_vec()).unwrap();
    let second = start(&newer, 2).unwrap();
    for contacts in [&both[..], &both[..1], &both[1..]] {
        let error = refusal(contacts);
        let ConnectError::Outdated { server, epoch: 1, newest: 2 } = error else { panic!("{error}") };
        assert_eq!(server, both[0]);
    }
    drop(second);
    let _alone = lone(both[1].port(), 1);
    let error = refusal(&both);
    assert!(
        matches!(error, ConnectError::Alone { alone, beside } if (alone, beside) == (both[1], both[0])),
        "{error}"
    );
    let error = refusal(&both[..1]);
    assert!(
        matches!(error, ConnectError::Alone { alone, beside } if (alone, beside) == (both[1], both[0])),
        "{error}"
    );
    // By itself it is a server like any other.
    connect(&both[1..], config).unwrap().put(b"key", b"value").unwrap();
}

/// Goal: a server that is found where another should be is not taken for it. Method: two nodes of one port at two loopback
/// addresses; one of them listens at both.
fn servers_at_wrong_places_are_found<P: Port>(connect: Connect<P>) {
    let config = SessionConfig { timeout: Duration::from_secs(10), ..patient() };
    let cpus = allowed_cores().unwrap()[..1].to_vec();
    for _ in 0..100 {
        let port = rand::random_range(12_000..31_000);
        let member = |id: u8| Member { id: id.into(), addr: ([127, 0, 0, id], port).into(), cores: 1 };
        let spec = ClusterSpec::new(1, Placement::Rendezvous, vec![member(1), member(2)]).unwrap();
        let started = Server::start(&ServerConfig {
            listen: [0, 0, 0, 0].into(),
            insecure_no_auth: true,
            port,
            cpus: cpus.clone(),
            memory_len: 64 << 20,
            cluster: Some(Arc::new(Membership::new(spec, 2).unwrap())),
            ..ServerConfig::default()
        });
        let Ok(_server) = started else { continue };
        let error = connect(&[([127, 0, 0, 2], port).into()], config).expect_err("no node 1");
        assert!(
            matches!(error, ConnectError::OtherNode { server, node: 2, expected: 1 } if server == ([127, 0, 0, 1], port).into()),
            "{error}"
        );
        return;
    }
    panic!("no free port");
}

/// Goal: a server does not start as another node than the map says. Method: another port, another number of cores, another
/// address; the sentence names both sides.
#[test]
fn servers_are_what_the_map_says() {
    let spec = spec(1, Placement::Rendezvous, 11_000, &[2]);
    let right = ServerConfig {
        port: 11_016,
        cpus: vec![0, 0],
        cluster: Some(Arc::new(Membership::new(spec, 1).unwrap())),
        ..ServerConfig::default()
    };
    for wrong in [
        ServerConfig { port: 11_017, ..right.clone() },
        ServerConfig { cpus: vec![0], ..right.clone() },
        ServerConfig { listen: [127, 0, 0, 2].into(), ..right.clone() },
    ] {
        let error = Server::start(&wrong).unwrap_err().to_string();
        let found =
            format!("this server listens at {}:{} with {}", wrong.listen, wrong.port, wrong.cpus.len());
        assert!(error.starts_with("node 1 is at 127.0.0.1:11016 with 2 cores in the cluster map"), "{error}");
        assert!(error.contains(&found), "{error}");
    }
}

/// Goal: rings find the servers that the map names, and follow them to the next map. Method: two servers behind a switch, and
/// a client that is told one of them and an address without anybody; then both are started again by a later map.
fn rings_find_the_servers_of_the_map<P: Port + Send>(datagrams: Datagrams, connect: Connect<P>) {
    let mut switch = Switch::new(PairConfig::default()).unwrap();
    let hosts: Vec<_> = (0..2).map(|_| switch.host().unwrap()).collect();
    let host = switch.host().unwrap();
    let member = |(id, host): (u64, &End)| Member { id, addr: (host.addr, 4_100).into(), cores: 1 };
    let members = (1..).zip(&hosts).map(member).collect();
    let spec = ClusterSpec::new(1, Placement::Rendezvous, members).unwrap();
    let cpus = allowed_cores().unwrap()[..1].to_vec();
    let start = |spec: &ClusterSpec, (id, host): (u64, &End)| {
        let config = ServerConfig {
            listen: host.addr.into(),
            insecure_no_auth: true,
            cpus: cpus.clone(),
            memory_len: 64 << 20,
            datagrams: Some(datagrams),
            tcp: false,
            cluster: Some(Arc::new(Membership::new(spec.clone(), id).unwrap())),
            ..ServerConfig::default()
        };
        host.namespace.run(|| Server::start(&config)).unwrap()
    };
    let servers: Vec<_> = (1..).zip(&hosts).map(|node| start(&spec, node)).collect();
    let nobody = SocketAddr::from(([10, 77, 0, 77], 4_100));
    let contacts = [(hosts[1].addr, 4_100).into(), nobody];
    let config = SessionConfig { timeout: Duration::from_secs(3), ..patient() };
    let mut client = host.namespace.run(|| connect(&contacts, config)).unwrap();
    let pairs: Vec<_> = (0..200u32).map(|number| (number.to_be_bytes(), number.to_string())).collect();
    client.multi_put(&pairs).unwrap();
    let keys: Vec<_> = pairs.iter().map(|(key, _)| key).collect();
    assert!(client.multi_get(&keys).unwrap().iter().all(Option::is_some));
    assert!(client.statistics().unwrap().iter().all(|(_, values)| values.is_some()));
    assert!(servers.iter().all(|server| stat(server, Statistic::Records) > 50));

    servers.into_iter().for_each(drop);
    let newer = ClusterSpec::new(2, Placement::Modulo, spec.members().to_vec()).unwrap();
    let servers: Vec<_> = (1..).zip(&hosts).map(|node| start(&newer, node)).collect();
    let mut tries = 0;
    while let Err(error) = host.namespace.run(|| client.multi_put(&pairs)) {
        tries += 1;
        assert!(tries < 20, "{error}");
    }
    assert_eq!(client.session().cluster(), &newer);
    assert!(client.statistics().unwrap().iter().all(|(_, values)| values.is_some()));
    assert!(servers.iter().all(|server| stat(server, Statistic::Records) > 50));
}

mod rings {
    use linerate_client::Client;
    use linerate_server::Datagrams;

    use crate::rig::with_rings;

    #[test]
    fn packet() {
        with_rings(|_| super::rings_find_the_servers_of_the_map(Datagrams::Packet, Client::connect_packet));
    }

    #[test]
    fn xdp() {
        with_rings(|_| super::rings_find_the_servers_of_the_map(Datagrams::Xdp, Client::connect_xdp));
    }
}

/// Goal: a client works over whatever opens ports for it. Method: one that counts what it opens.
#[test]
fn clients_open_ports_of_their_own() {
    let (spec, _servers) = started(Placement::Rendezvous, &[1, 1]);
    let mut opened = 0;
    let open = move |addrs: &[SocketAddr]| {
        opened += 1;
        assert!(opened <= 2, "one port for the contact, one for all");
        UdpPort::connect(addrs, Default::default())
    };
    let mut client = Client::connect(&addrs(&spec)[1..], patient(), open).unwrap();
    client.put(b"key", b"value").unwrap();
    assert_eq!(client.get(b"key").unwrap().as_deref(), Some(&b"value"[..]));
}
