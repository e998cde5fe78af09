//! Whether a network card brings each port's datagrams to the queues of its core.

use std::{io, net::Ipv4Addr};

use crate::{device::UdpRule, interface::Interface};

/// What is wrong with the steering of an interface on which `ports[i]` owns the queues `q` for which `q` modulo the number
/// of ports is `i`, and the remedy.
pub(crate) fn warning(interface: &Interface, ports: &[u16]) -> Option<String> {
    judge(&interface.name, interface.addr, ports, interface.udp_rules())
}

fn judge(name: &str, addr: Ipv4Addr, ports: &[u16], rules: io::Result<Vec<UdpRule>>) -> Option<String> {
    if ports.len() < 2 {
        // Whatever comes in at any queue is for the only core.
        return None;
    }
    let rules = match rules {
        Ok(rules) => rules,
        Err(error) => {
            return Some(format!(
                "{name} can not be told which port is for which core ({error}), so that datagrams are handed from core to \
                 core"
            ));
        }
    };
    let is_steered = |index: usize| {
        rules.iter().any(|rule| {
            rule.is_plain
                && rule.to_port == Some(ports[index])
                && rule.to.is_none_or(|to| to == addr)
                && rule.queue.is_some_and(|queue| queue as usize % ports.len() == index)
        })
    };
    let lines: Vec<_> = (0..ports.len())
        .filter(|&index| !is_steered(index))
        .map(|index| {
            let port = ports[index];
            format!("`ethtool -N {name} flow-type udp4 dst-ip {addr} dst-port {port} action {index}`")
        })
        .collect();
    (!lines.is_empty()).then(|| {
        format!(
            "{name} does not bring every port to its core's queue, so that datagrams are handed from core to core: \
             `ethtool -K {name} ntuple on`, then {}",
            lines.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const PORTS: [u16; 2] = [4_100, 4_101];

    fn rule(to_port: u16, queue: u32) -> UdpRule {
        UdpRule { to: Some(ADDR), to_port: Some(to_port), is_plain: true, queue: Some(queue) }
    }

    fn judge_rules(rules: &[UdpRule]) -> Option<String> {
        judge("eth0", ADDR, &PORTS, Ok(rules.to_vec()))
    }

    #[test]
    fn rules_to_the_right_queues_are_enough() {
        assert_eq!(judge_rules(&[rule(4_101, 1), rule(9, 9), rule(4_100, 0)]), None);
        assert_eq!(
            judge_rules(&[rule(4_101, 3), UdpRule { to: None, ..rule(4_100, 2) }]),
            None,
            "four queues"
        );
        assert_eq!(judge("eth0", ADDR, &[4_100], Ok(vec![])), None, "one core");
    }

    /// Goal: the lines that are missing, and no others, are told. Method: rules that do not do.
    #[test]
    fn missing_rules_are_told() {
        let missing = [
            UdpRule { to: Some([10, 0, 0, 2].into()), ..rule(4_101, 1) },
            UdpRule { is_plain: false, ..rule(4_101, 1) },
            UdpRule { queue: None, ..rule(4_101, 1) },
            UdpRule { to_port: None, ..rule(4_101, 1) },
            rule(4_101, 0),
        ];
        for wrong in missing {
            let warning = judge_rules(&[rule(4_100, 0), wrong]).unwrap();
            assert!(
                warning.ends_with(
                    "`ethtool -K eth0 ntuple on`, then \
                     `ethtool -N eth0 flow-type udp4 dst-ip 10.0.0.1 dst-port 4101 action 1`"
                ),
                "{warning}"
            );
        }
        assert_eq!(judge_rules(&[]).unwrap().matches("ethtool -N").count(), 2);
        let refused = judge("veth0", ADDR, &PORTS, Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
        assert!(
            refused.unwrap().starts_with("veth0 can not be told which port is for which core (Operation not")
        );
    }
}
