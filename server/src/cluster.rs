//! Which node of which cluster a server is: what people type, resolved.

use std::{fs, path::Path};

use anyhow::Context;
use linerate_dataplane::resolve::resolve;
use linerate_proto::{
    cluster::{ClusterSpec, Member, Membership, PORT},
    placement::Placement,
};

/// The epoch of a cluster that is named by a list, which has no way to say another.
const LIST_EPOCH: u16 = 1;

/// The place of node `id` in a cluster that is a map's file or a list of host[:port][/cores],…, whose nodes have the ids 1,
/// 2, … in their order, and `cores` cores each unless they say otherwise.
pub(crate) fn membership(text: &str, id: u64, cores: u8) -> anyhow::Result<Membership> {
    let path = Path::new(text);
    let spec = if path.is_file() || path.extension().is_some_and(|extension| extension == "toml") {
        let map = fs::read_to_string(path).with_context(|| format!("can not read the cluster map {text}"))?;
        map.parse().with_context(|| format!("{text} is no cluster map"))?
    } else {
        listed(text, cores)?
    };
    Ok(Membership::new(spec, id)?)
}

fn listed(text: &str, cores: u8) -> anyhow::Result<ClusterSpec> {
    let member = |(id, part): (u64, &str)| {
        let part = part.trim();
        let (host, cores) = match part.rsplit_once('/') {
            Some((host, count)) => {
                let count = count.parse().with_context(|| {
                    format!("`{part}` has no number of cores behind the slash: give 1 to 255")
                })?;
                (host, count)
            }
            None => (part, cores),
        };
        let addr =
            resolve(host, PORT).context("--cluster takes a cluster map's file or a list of servers")?;
        anyhow::Ok(Member { id, addr, cores })
    };
    let members = (1..).zip(text.split(',')).map(member).collect::<anyhow::Result<_>>()?;
    Ok(ClusterSpec::new(LIST_EPOCH, Placement::Rendezvous, members)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a list is a cluster. Method: all that it can say, then what is wrong with one.
    #[test]
    fn lists_are_clusters() {
        let two = membership("10.0.0.1, 10.0.0.2:5000/3", 2, 8).unwrap();
        let texts: Vec<_> = two.spec().members().iter().map(|member| format!("{member:?}")).collect();
        assert_eq!(
            texts,
            [
                "Member { id: 1, addr: 10.0.0.1:4100, cores: 8 }",
                "Member { id: 2, addr: 10.0.0.2:5000, cores: 3 }"
            ]
        );
        assert_eq!((two.member().id, two.spec().epoch()), (2, 1));
        for (text, id, sentence) in [
            ("10.0.0.1", 2, "the cluster map has no node 2: its nodes are 1"),
            ("10.0.0.1/many", 1, "`10.0.0.1/many` has no number of cores behind the slash: give 1 to 255"),
            ("10.0.0.1,", 1, "--cluster takes a cluster map's file or a list of servers: `` is no server"),
            ("10.0.0.1,10.0.0.1", 1, "nodes [1, 2] share port 4100 of 10.0.0.1"),
            ("gone.toml", 1, "can not read the cluster map gone.toml: No such file"),
        ] {
            let error = format!("{:#}", membership(text, id, 1).unwrap_err());
            assert!(error.starts_with(sentence), "{error}");
        }
    }
}
