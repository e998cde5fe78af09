//! Where a client finds its cluster: what people type, resolved.

use std::{fs, io, net::SocketAddr, path::Path};

use linerate_dataplane::resolve::resolve;
use linerate_proto::cluster::{ClusterError, ClusterSpec, PORT};

/// Why a text names no servers.
#[derive(Debug, thiserror::Error)]
pub enum ContactError {
    /// Not an address.
    #[error("{0}; or give the file of a cluster map")]
    Server(io::Error),
    /// A file that can not be read.
    #[error("can not read the cluster map {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file that is no map.
    #[error("{path} is no cluster map: {error}")]
    Map {
        /// The file.
        path: String,
        /// What is wrong with it.
        error: ClusterError,
    },
}

/// Whether a text names a file: one that is there, or would be called a map.
#[must_use]
pub fn is_map_file(text: &str) -> bool {
    Path::new(text).is_file() || Path::new(text).extension().is_some_and(|extension| extension == "toml")
}

/// Reads a cluster map from its file.
///
/// # Errors
/// A sentence that names the file, and the line or node that is wrong.
pub fn read_map(path: &str) -> Result<ClusterSpec, ContactError> {
    let text =
        fs::read_to_string(path).map_err(|source| ContactError::Read { path: path.to_owned(), source })?;
    text.parse().map_err(|error| ContactError::Map { path: path.to_owned(), error })
}

/// The servers that a client may ask first: those of a cluster map's file, or the ones listed as host:port,… of which one
/// is enough. The port may be left out.
///
/// # Errors
/// A sentence that names the part that is wrong.
pub fn contact_points(text: &str) -> Result<Vec<SocketAddr>, ContactError> {
    if is_map_file(text) {
        return Ok(read_map(text)?.members().iter().map(|member| member.addr).collect());
    }
    text.split(',').map(|name| resolve(name.trim(), PORT).map_err(ContactError::Server)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a list names its servers, and an error the part that is wrong. Method: some of each.
    #[test]
    fn texts_name_servers() {
        let addrs = contact_points("127.0.0.1, 10.0.0.2:5000").unwrap();
        assert_eq!(addrs, ["127.0.0.1:4100".parse().unwrap(), "10.0.0.2:5000".parse().unwrap()]);
        for (bad, sentence) in [
            ("127.0.0.1,", "`` is no server: give host:port, such as 127.0.0.1:4100 ("),
            ("1.2.3.4:x", "`1.2.3.4:x` is no server: give host:port"),
            ("nowhere/map.toml", "can not read the cluster map nowhere/map.toml: No such file"),
        ] {
            let error = contact_points(bad).unwrap_err().to_string();
            assert!(error.starts_with(sentence), "{error}");
        }
    }
}
