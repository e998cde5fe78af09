//! What an interface is, which one leads somewhere, and how the machine is tuned.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context;
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::host::HostSample;

/// Where the tuning script is, if anywhere: in the sources that one works in, or where CloudLab puts a profile's.
const TUNE_SCRIPTS: [&str; 2] = ["setup/tune-nic.sh", "/local/repository/setup/tune-nic.sh"];

/// What an interface is. What the machine does not tell is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicFacts {
    /// Its name.
    pub interface: String,
    /// Name of its driver; virtual interfaces have no device and so none.
    pub driver: Option<String>,
    /// Megabits per second of its link; unknown to virtual ones, and while the link is down.
    pub speed_mbit: Option<u32>,
    /// Largest IP packet in bytes.
    pub mtu: Option<u32>,
    /// Queues for receiving.
    pub rx_queues: Option<u32>,
    /// Queues for sending.
    pub tx_queues: Option<u32>,
}

impl NicFacts {
    /// Looks at an interface of the calling thread's network namespace. /sys shows those of the namespace that it was mounted in:
    /// for a thread that has gone elsewhere nothing is known but the name.
    #[must_use]
    pub fn of(interface: &str) -> Self {
        let folder = Path::new("/sys/class/net").join(interface);
        if is_shown_in_sys(interface, &folder) {
            Self::in_folder(interface, &folder)
        } else {
            let interface = interface.to_owned();
            Self { interface, driver: None, speed_mbit: None, mtu: None, rx_queues: None, tx_queues: None }
        }
    }

    /// Share of the link's speed that the frames of these samples took in the fuller direction, with all that is around them;
    /// `None` without samples or when the speed is not known.
    #[must_use]
    pub fn line_rate_share(&self, samples: &[HostSample]) -> Option<f64> {
        let gbit = f64::from(self.speed_mbit?) / 1e3;
        let mean =
            |gbit: fn(&HostSample) -> f64| samples.iter().map(gbit).sum::<f64>() / samples.len() as f64;
        let fuller = mean(|sample| sample.rx_gbit).max(mean(|sample| sample.tx_gbit));
        (!samples.is_empty()).then_some(fuller / gbit)
    }

    fn in_folder(interface: &str, folder: &Path) -> Self {
        // The kernel says -1, or nothing, when it does not know.
        let number = |name: &str| number_in(&folder.join(name)).filter(|&number| number > 0);
        let driver = fs::read_link(folder.join("device/driver")).ok();
        let driver = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let queues = |start: &str| {
            let entries = fs::read_dir(folder.join("queues")).ok()?;
            let is_one =
                |name: &str| name.strip_prefix(start).is_some_and(|rest| rest.parse::<u32>().is_ok());
            let count =
                entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_one)).count();
            u32::try_from(count).ok().filter(|&count| count > 0)
        };
        Self {
            interface: interface.to_owned(),
            driver,
            speed_mbit: number("speed"),
            mtu: number("mtu"),
            rx_queues: queues("rx-"),
            tx_queues: queues("tx-"),
        }
    }
}

/// Whether the interface of that name in /sys is that of the calling thread's namespace: the thread is where the process began,
/// and the numbers agree (another namespace may well have an interface of that name, but hardly with both).
fn is_shown_in_sys(interface: &str, folder: &Path) -> bool {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/net")).ok();
    let index = if_nametoindex(interface).ok();
    namespace("thread-self") == namespace("self")
        && index.is_some()
        && index == number_in(&folder.join("ifindex"))
}

fn number_in(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The name of the interface by which datagrams to `addr` leave, in the calling thread's network namespace.
///
/// # Errors
/// A sentence that names the address, or the program that is missing.
pub fn interface_towards(addr: IpAddr) -> anyhow::Result<String> {
    if addr.is_loopback() {
        return Ok("lo".to_owned());
    }
    let addr = addr.to_string();
    let output = Command::new("ip").args(["-j", "route", "get", &addr]).stdin(Stdio::null()).output();
    let output = output.context("cannot run `ip`: install the package iproute2")?;
    let routes: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let name = routes[0]["dev"].as_str().map(str::to_owned);
    name.with_context(|| {
        format!("no route leads to {addr}: {}", String::from_utf8_lossy(&output.stderr).trim())
    })
}

/// What `setup/tune-nic.sh status --json` says, where the script is. Takes a second or so.
#[must_use]
pub fn tune_status() -> Option<Value> {
    TUNE_SCRIPTS.iter().find_map(|script| status_of(Path::new(script)))
}

fn status_of(script: &Path) -> Option<Value> {
    if !script.is_file() {
        return None;
    }
    let mut command = Command::new("timeout");
    let output =
        command.arg("10").arg(script).args(["status", "--json"]).stdin(Stdio::null()).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

#[cfg(test)]
mod tests {
    use linerate_dataplane::netns::{Namespace, Pair, PairConfig};

    use super::*;

    /// Goal: each fact is taken from its file, and none is made up. Method: folders made by hand, of a card and of a virtual
    /// interface that says little or nonsense.
    #[test]
    fn facts_are_read() {
        let root = std::env::temp_dir().join(format!("linerate-bench-nic-{}", std::process::id()));
        let card = root.join("card");
        fs::create_dir_all(card.join("device")).unwrap();
        std::os::unix::fs::symlink("../../../bus/pci/drivers/mlx4_core", card.join("device/driver")).unwrap();
        for (name, text) in [("speed", "10000\n"), ("mtu", "1500\n")] {
            fs::write(card.join(name), text).unwrap();
        }
        for queue in ["rx-0", "rx-1", "rx-10", "tx-0", "rx-", "rx-x", "other"] {
            fs::create_dir_all(card.join("queues").join(queue)).unwrap();
        }
        let expected = NicFacts {
            interface: "eth2".to_owned(),
            driver: Some("mlx4_core".to_owned()),
            speed_mbit: Some(10_000),
            mtu: Some(1_500),
            rx_queues: Some(3),
            tx_queues: Some(1),
        };
        let facts = NicFacts::in_folder("eth2", &card);
        assert_eq!(facts, expected);
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<NicFacts>(&text).unwrap(), facts);
        let virtual_one = root.join("virtual");
        fs::create_dir_all(&virtual_one).unwrap();
        for (name, text) in [("speed", "-1\n"), ("mtu", "many\n")] {
            fs::write(virtual_one.join(name), text).unwrap();
        }
        let nothing = NicFacts::in_folder("veth0", &virtual_one);
        assert_eq!(nothing, NicFacts::in_folder("veth0", &root.join("missing")));
        assert_eq!(
            (nothing.driver, nothing.speed_mbit, nothing.mtu, nothing.rx_queues),
            (None, None, None, None)
        );
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn the_fuller_direction_counts() {
        let sample = |rx_gbit, tx_gbit| HostSample { rx_gbit, tx_gbit, ..HostSample::default() };
        let samples = [sample(1.0, 9.0), sample(9.5, 10.0)];
        let unknown = NicFacts::in_folder("eth2", Path::new("/nothing"));
        let card = NicFacts { speed_mbit: Some(10_000), ..unknown.clone() };
        let share = card.line_rate_share(&samples).unwrap();
        assert!((share - 0.95).abs() < 1e-9, "{share}");
        assert_eq!((card.line_rate_share(&[]), unknown.line_rate_share(&samples)), (None, None));
    }

    /// Goal: facts are of the thread's own namespace or none, also where another one has the same name. Method: loopback, which
    /// every namespace has.
    #[test]
    fn facts_of_another_namespace_are_not_told() {
        if !Path::new("/sys/class/net/lo").exists() {
            println!("skipped: /sys shows no interfaces here");
            return;
        }
        println!("{:?}", NicFacts::of("lo"));
        assert_eq!(NicFacts::of("nothing0").mtu, None);
        if !Namespace::is_available() {
            return;
        }
        assert!(NicFacts::of("lo").mtu.is_some());
        assert_eq!(Namespace::new().unwrap().run(|| NicFacts::of("lo")).mtu, None);
    }

    /// Goal: the interface of a route is found, and an address without one is named. Method: loopback, which needs no
    /// program, and both ends of a cable.
    #[test]
    fn routes_are_asked_for() {
        assert_eq!(interface_towards("127.0.0.9".parse().unwrap()).unwrap(), "lo");
        if !Namespace::is_available() {
            return;
        }
        let (here, there) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let pair = Pair::new(&here, &there, PairConfig::default()).unwrap();
        assert_eq!(there.run(|| interface_towards(pair.a.addr.into())).unwrap(), pair.b.interface);
        let error = there.run(|| interface_towards("192.0.2.1".parse().unwrap())).unwrap_err();
        assert!(error.to_string().starts_with("no route leads to 192.0.2.1: "), "{error}");
    }

    #[test]
    fn a_missing_script_has_no_status() {
        assert_eq!(status_of(Path::new("/nothing/tune-nic.sh")), None);
        assert_eq!(status_of(Path::new("/dev/null")), None);
    }
}
