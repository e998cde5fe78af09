//! `linerate cluster`: what is shown of maps and servers, and what a change would move.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use linerate_dataplane::pin::allowed_cores;
use linerate_proto::{
    cluster::{ClusterSpec, Member, Membership},
    placement::Placement,
};
use linerate_server::{Server, ServerConfig};

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("linerate-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, map: &ClusterSpec) -> String {
        let path = self.0.join(name);
        fs::write(&path, map.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Nodes 1, 2, … of these cores.
fn spec(epoch: u16, cores: &[u8]) -> ClusterSpec {
    let member =
        |(id, &cores): (u8, &u8)| Member { id: id.into(), addr: ([10, 10, 1, id], 4_100).into(), cores };
    ClusterSpec::new(epoch, Placement::Rendezvous, (1..).zip(cores).map(member).collect()).unwrap()
}

/// What the program printed, once it has ended with `code`.
fn linerate(cluster: &str, arguments: &str, code: i32) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linerate"));
    command.args(["--cluster", cluster, "--timeout-ms", "3000", "cluster"]).args(arguments.split(' '));
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!(status.code(), Some(code), "{command:?}\n{stdout}\n{stderr}");
    (stdout, stderr)
}

fn json(cluster: &str, arguments: &str, code: i32) -> serde_json::Value {
    serde_json::from_str(&linerate(cluster, &format!("{arguments} --json"), code).0).unwrap()
}

/// Goal: a map is shown as it is. Method: golden outputs of one with equal nodes and one with unlike ones.
#[test]
fn maps_are_shown() {
    let folder = Folder::new("shown");
    let even = folder.write("even.toml", &spec(7, &[8, 8, 8, 8]));
    let (shown, said) = linerate(&even, "show", 0);
    assert_eq!(said, "");
    assert_eq!(
        shown,
        "epoch 7, rendezvous, digest 3cfc5f7c6a32e7ef
  node  address         cores  partitions     share  from fair  per core
     1  10.10.1.1:4100      8        1024   25.00 %    +0.00 %       128
     2  10.10.1.2:4100      8        1024   25.00 %    +0.00 %       128
     3  10.10.1.3:4100      8        1024   25.00 %    +0.00 %       128
     4  10.10.1.4:4100      8        1024   25.00 %    +0.00 %       128
"
    );
    let unlike = spec(3, &[3, 8]);
    let shown = json(&folder.write("unlike.toml", &unlike), "show", 0);
    assert_eq!(
        (&shown["epoch"], &shown["placement"], &shown["partitions"]),
        (&3.into(), &"rendezvous".into(), &4096.into())
    );
    assert_eq!(shown["digest"], format!("{:016x}", unlike.digest()));
    assert_eq!(
        (&shown["servers"], shown["disagreements"].as_array().unwrap().len()),
        (&serde_json::Value::Null, 0)
    );
    let counts = unlike.map().counts();
    for (node, counts) in shown["nodes"].as_array().unwrap().iter().zip(&counts) {
        let sum: usize = counts.iter().sum();
        assert_eq!(node["partitions"], sum);
        assert_eq!(node["partitions_per_core_min"], *counts.iter().min().unwrap());
        assert_eq!(node["partitions_per_core_max"], *counts.iter().max().unwrap());
        let fair = 4_096.0 * counts.len() as f64 / 11.0;
        assert!((node["deviation_pct"].as_f64().unwrap() - (sum as f64 / fair - 1.0) * 100.0).abs() < 1e-9);
        assert!((node["share"].as_f64().unwrap() - sum as f64 / 4_096.0).abs() < 1e-12);
    }
}

/// Goal: a plan says what moves. Method: golden output of a node added; of one removed, of several changes at once, and of
/// another placement the sums, which must be those of the maps.
#[test]
fn plans_say_what_moves() {
    let folder = Folder::new("plans");
    let map = folder.write("map.toml", &spec(7, &[8, 8, 8, 8]));
    assert_eq!(
        linerate(&map, "plan --add 10.10.1.5", 0).0,
        "epoch 7 to 8
moves 867 of 4096 partitions, 21.17 %; the least for fair shares is 20.00 % (+5.8 %)
  node  address         cores  before   gains   loses   after
     1  10.10.1.1:4100      8    1024      10     212     822
     2  10.10.1.2:4100      8    1024      10     217     817
     3  10.10.1.3:4100      8    1024      14     220     818
     4  10.10.1.4:4100      8    1024      11     218     817
     5  10.10.1.5:4100      8       0     822       0     822
"
    );
    for (change, ids) in [
        ("plan --remove 4", vec![1, 2, 3, 4]),
        // The id of a node that goes is not given to the one that comes.
        ("plan --remove 4 --remove 1 --add 10.10.1.9:5000/4 --add [::1]", vec![1, 2, 3, 4, 5, 6]),
        ("plan --placement modulo", vec![1, 2, 3, 4]),
    ] {
        let plan = json(&map, change, 0);
        let nodes = plan["nodes"].as_array().unwrap();
        assert_eq!(nodes.iter().map(|node| node["id"].as_u64().unwrap()).collect::<Vec<_>>(), ids);
        let sum = |name: &str| nodes.iter().map(|node| node[name].as_u64().unwrap()).sum::<u64>();
        assert_eq!((sum("before"), sum("after")), (4_096, 4_096), "{change}");
        assert_eq!(
            (sum("gains"), sum("loses")),
            (plan["moved"].as_u64().unwrap(), plan["moved"].as_u64().unwrap())
        );
        for node in nodes {
            let of = |name: &str| node[name].as_u64().unwrap();
            assert_eq!(of("before") + of("gains"), of("after") + of("loses"), "{node}");
        }
        assert_eq!(plan["deviation_pct"].is_null(), change.contains("modulo"));
        assert_eq!(plan["new_placement"], if change.contains("modulo") { "modulo" } else { "rendezvous" });
    }
}

/// Goal: an equal node that comes or goes moves 1/N of the partitions, ± 20 %. Method: clusters of two to six nodes of eight
/// cores, and to seven of one.
#[test]
fn an_equal_node_moves_its_share() {
    let folder = Folder::new("moves");
    for (nodes, cores) in (2..=6).map(|nodes| (nodes, 8)).chain((2..=7).map(|nodes| (nodes, 1))) {
        let map = folder.write(&format!("{nodes}-{cores}.toml"), &spec(1, &vec![cores; nodes]));
        for (change, ideal) in
            [("--add 10.10.1.200", 1.0 / (nodes + 1) as f64), ("--remove 1", 1.0 / nodes as f64)]
        {
            let plan = json(&map, &format!("plan {change}"), 0);
            assert!((plan["ideal_share"].as_f64().unwrap() - ideal).abs() < 1e-9, "{plan}");
            let deviation = plan["deviation_pct"].as_f64().unwrap();
            assert!(
                (-20.0..=20.0).contains(&deviation),
                "{nodes} nodes of {cores} cores, {change}: {deviation} %"
            );
        }
    }
}

/// Goal: a planned map is written whole, with the next epoch, over nothing that is there. Method: written, read back, refused
/// and forced; nothing else is left behind.
#[test]
fn plans_are_written() {
    let folder = Folder::new("written");
    let map = folder.write("map.toml", &spec(7, &[2, 2]));
    let path = folder.0.join("next.toml");
    let next = path.to_str().unwrap();
    let read = || fs::read_to_string(Path::new(next)).unwrap().parse::<ClusterSpec>().unwrap();
    let (_, said) = linerate(&map, &format!("plan --add 10.10.1.3 --write {next}"), 0);
    assert_eq!(said, format!("linerate: wrote the cluster map of epoch 8 to {next}\n"));
    assert_eq!(read(), spec(8, &[2, 2, 2]));
    let (shown, said) = linerate(&map, &format!("plan --remove 1 --write {next}"), 2);
    assert_eq!(
        (&shown[..], said),
        ("", format!("linerate: {next} is there already: give --force to replace it, or another name\n"))
    );
    assert_eq!(read(), spec(8, &[2, 2, 2]));
    linerate(&map, &format!("plan --remove 2 --write {next} --force"), 0);
    assert_eq!(read(), spec(8, &[2]));
    // From there back to the first: its nodes, but a later epoch.
    linerate(next, &format!("plan --to {map} --write {next} --force"), 0);
    assert_eq!(read(), spec(9, &[2, 2]));
    assert_eq!(folder.names(), ["map.toml", "next.toml"]);
    let (_, said) = linerate(&map, "plan --remove 1 --write /no/such/folder/map.toml", 2);
    assert!(
        said.starts_with("linerate: can not write the cluster map to /no/such/folder/map.toml: No such"),
        "{said}"
    );
}

/// Goal: what can not be planned is refused in a sentence that says why. Method: one of each.
#[test]
fn bad_changes_are_refused() {
    let folder = Folder::new("refused");
    let map = folder.write("map.toml", &spec(7, &[2, 3]));
    let last = folder.write("last.toml", &spec(65_535, &[2]));
    let broken = folder.0.join("broken.toml");
    fs::write(&broken, "epoch = 1\nnodes = 3\n").unwrap();
    for (map, change, sentence) in [
        (&map, "plan --remove 9", "the cluster map has no node 9: its nodes are 1, 2"),
        (&map, "plan --remove 1 --remove 1", "node 1 is removed twice: name it once"),
        (&map, "plan --remove 1 --remove 2", "a cluster needs at least one node"),
        (
            &map,
            "plan --add 10.10.1.3",
            "`10.10.1.3` does not say how many cores it has, and the nodes differ in theirs: give 10.10.1.3/CORES",
        ),
        (
            &map,
            "plan --add 10.10.1.3/300",
            "`10.10.1.3/300` has no number of cores behind the slash: give 1 to 255",
        ),
        (&map, "plan --add 10.10.1.1:4101/2", "nodes [1, 3] share port 4101 of 10.10.1.1"),
        (&map, "plan --add 1.2.3.4:x/2", "`1.2.3.4:x` is no server"),
        (&map, "plan --to gone.toml", "can not read the cluster map gone.toml: No such file"),
        (&last, "plan --add 10.10.1.3", "epoch 65535 is the last"),
        (
            &broken.to_str().unwrap().to_owned(),
            "show",
            &format!("{} is no cluster map: line 2: unknown field", broken.display()),
        ),
    ] {
        let (shown, said) = linerate(map, change, 2);
        assert_eq!((&shown[..], said.lines().count()), ("", 1), "{change}: {said}");
        assert!(said.starts_with(&format!("linerate: {sentence}")), "{change}: {said}");
    }
    for (change, words) in [
        ("plan", "required"),
        ("plan --json", "required"),
        ("plan --write next.toml", "required"),
        ("plan --remove 1 --force", "--write"),
        ("plan --to a.toml --remove 1", "cannot be used with"),
        ("plan --placement ring", "rendezvous, modulo"),
    ] {
        let (_, said) = linerate(&map, change, 2);
        assert!(said.contains(words), "{change}: {said}");
    }
}

/// Ports for the cores of nodes on loopback, free a moment ago.
fn loopback(epoch: u16, cores: &[u8]) -> ClusterSpec {
    let hosts = (1..).zip(cores).map(|(id, &cores)| {
        let ip = [127, 77, (std::process::id() % 250) as u8 + 1, id];
        let port = (20_000..30_000).step_by(10).find(|&port| {
            (0..u16::from(cores)).all(|core| UdpSocket::bind(SocketAddr::from((ip, port + core))).is_ok())
        });
        Member { id: id.into(), addr: (ip, port.unwrap()).into(), cores }
    });
    ClusterSpec::new(epoch, Placement::Rendezvous, hosts.collect()).unwrap()
}

/// Node `id` of a map, running.
fn start(map: &ClusterSpec, id: u64) -> Server {
    let membership = Membership::new(map.clone(), id).unwrap();
    let Member { addr, cores, .. } = *membership.member();
    Server::start(&ServerConfig {
        listen: addr.ip(),
        port: addr.port(),
        cpus: allowed_cores().unwrap().into_iter().cycle().take(cores.into()).collect(),
        memory_len: usize::from(cores) * (32 << 20),
        cluster: Some(Arc::new(membership)),
        ..ServerConfig::default()
    })
    .unwrap()
}

/// Goal: servers are asked, each of them, and it is said which two differ, and how. Method: three servers with one map; then
/// one is of another epoch, has another map of the same epoch, is another node, is alone, or is not there.
#[test]
fn servers_are_asked_whether_they_agree() {
    let map = loopback(5, &[1, 2, 1]);
    let addrs: Vec<_> = map.members().iter().map(|member| member.addr).collect();
    let contact = addrs[1].to_string();
    let _first = start(&map, 1);
    let _second = start(&map, 2);
    {
        let _third = start(&map, 3);
        for transport in ["udp", "tcp"] {
            let (shown, said) = linerate(&contact, &format!("show --transport {transport}"), 0);
            assert_eq!(said, "");
            let header = format!("epoch 5, rendezvous, digest {:016x}\n", map.digest());
            assert!(
                shown.starts_with(&header) && shown.ends_with("\nall 3 servers have this map\n"),
                "{shown}"
            );
        }
        let shown = json(&contact, "show", 0);
        assert_eq!(shown["servers"].as_array().unwrap().len(), 3);
        assert_eq!(json(&contact, "plan --remove 3", 0)["nodes"][2]["after"], 0);
    }
    let with =
        |nodes: &[Member], epoch| ClusterSpec::new(epoch, Placement::Rendezvous, nodes.to_vec()).unwrap();
    let members = map.members();
    let moved = [members[0], members[1], Member { id: 7, ..members[2] }];
    let cases = [
        (
            Some((with(members, 4), 3)),
            format!("{} has the cluster map of epoch 4, {contact} that of epoch 5", addrs[2]),
        ),
        (
            Some((ClusterSpec::new(5, Placement::Modulo, members.to_vec()).unwrap(), 3)),
            format!("{contact} and {} have different cluster maps of the same epoch 5", addrs[2]),
        ),
        (
            Some((with(&moved, 6), 7)),
            format!("{contact} has the cluster map of epoch 5, {} that of epoch 6", addrs[2]),
        ),
        (None, format!("no answer from {} within", addrs[2])),
    ];
    for (other, sentence) in cases {
        let third = other.as_ref().map(|(map, id)| start(map, *id));
        let asked = if third.is_some() { format!("{contact},{}", addrs[2]) } else { contact.clone() };
        for command in ["show", "plan --remove 1"] {
            let (shown, said) = linerate(&asked, command, 1);
            assert!(
                said.lines().any(|line| line.starts_with(&format!("linerate: {sentence}"))),
                "{sentence}\n{said}"
            );
            assert_eq!(shown.is_empty(), command != "show", "nothing is planned from a doubtful map");
            assert!(!shown.contains("all 3"), "{shown}");
        }
    }
    let alone =
        Server::start(&ServerConfig { port: 0, memory_len: 32 << 20, ..ServerConfig::default() }).unwrap();
    let (_, said) = linerate(&format!("{},{contact}", alone.addr()), "show", 1);
    let sentence = format!(
        "linerate: {} is alone and owns all keys, while {contact} has the cluster map of epoch 5\n",
        alone.addr()
    );
    assert!(said.contains(&sentence), "{said}");
    let (shown, _) = linerate(&alone.addr().to_string(), "show", 0);
    assert!(shown.starts_with("epoch 0, ") && shown.contains(&alone.addr().to_string()), "{shown}");
    let (_, said) = linerate(&alone.addr().to_string(), "plan --add 10.10.1.5", 2);
    assert!(said.starts_with("linerate: a server that is alone has no cluster map to change"), "{said}");
}
