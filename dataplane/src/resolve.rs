//! From what people type to an address.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
};

/// The address of `host:port`, or of `host` at `default_port`. Of a name with both, such as localhost, the IPv4 address:
/// servers listen there unless told otherwise.
///
/// # Errors
/// A sentence that names the text.
pub fn resolve(text: &str, default_port: u16) -> io::Result<SocketAddr> {
    let has_port = text.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
    let with_port = if has_port { text.to_owned() } else { format!("{text}:{default_port}") };
    let addrs: Vec<_> = match with_port.to_socket_addrs() {
        Ok(addrs) => addrs.collect(),
        Err(error) => {
            let sentence = format!("`{text}` is no server: give host:port, such as 127.0.0.1:4100 ({error})");
            return Err(io::Error::new(error.kind(), sentence));
        }
    };
    let preferred = addrs.iter().find(|addr| addr.is_ipv4()).or_else(|| addrs.first());
    preferred.copied().ok_or_else(|| io::Error::other(format!("`{text}` has no address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a text means what people mean by it. Method: each form, and each kind of mistake.
    #[test]
    fn texts_are_addresses() {
        let addr = |text| resolve(text, 4100).map(|addr| addr.to_string());
        for (text, expected) in [
            ("127.0.0.1:4200", "127.0.0.1:4200"),
            ("127.0.0.1", "127.0.0.1:4100"),
            ("[::1]", "[::1]:4100"),
            ("[::2]:7", "[::2]:7"),
            ("localhost", "127.0.0.1:4100"),
        ] {
            assert_eq!(addr(text).unwrap(), expected);
        }
        for bad in ["", "10.0.0.1:port", "10.0.0.1:70000", "two words"] {
            let error = addr(bad).unwrap_err().to_string();
            let sentence = format!("`{bad}` is no server: give host:port, such as 127.0.0.1:4100 (");
            assert!(error.starts_with(&sentence), "{error}");
        }
    }
}
