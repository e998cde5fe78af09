//! How a peer is asked: the dialects, and the depths that are tried of each.

use std::fmt;

use crate::workload::ValueLen;

/// In which form operations are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// RESP, a GET or SET for each operation, written one behind the other.
    RespGet,
    /// RESP, one MGET for all gets of a request, and SETs behind it.
    RespMget,
    /// The text protocol of memcached, one `get` of many keys, and `set`s behind it.
    Text,
    /// The same over UDP: a datagram for the gets and one for each put.
    Datagrams,
}

impl Dialect {
    /// Whether all gets of a request are one command.
    #[inline]
    pub(super) const fn groups_gets(self) -> bool {
        !matches!(self, Self::RespGet)
    }

    /// Whether it is the protocol of Redis and Valkey.
    #[inline]
    pub(super) const fn is_resp(self) -> bool {
        matches!(self, Self::RespGet | Self::RespMget)
    }
}

/// One way to drive a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) dialect: Dialect,
    /// Operations of a request.
    pub(super) batch: usize,
    /// Requests that a connection has in flight.
    pub(super) window: usize,
    pub(super) connections: usize,
}

/// Bytes of values that a request carries or asks for at most, so that what is in flight stays a matter of megabytes.
const VALUES_LEN_MAX: usize = 256 << 10;

/// Operations of a request whose values are so long that there should not be as many as wanted; at least one.
pub(super) fn fitting(operations: usize, value_len: ValueLen) -> usize {
    operations.min(VALUES_LEN_MAX / value_len.max().max(1)).max(1)
}

/// What is to be tried with such values: each once.
pub(super) fn fitting_settings(settings: &[Setting], value_len: ValueLen) -> Vec<Setting> {
    let mut all: Vec<Setting> = Vec::with_capacity(settings.len());
    for &setting in settings {
        let setting = Setting { batch: fitting(setting.batch, value_len), ..setting };
        if !all.contains(&setting) {
            all.push(setting);
        }
    }
    all
}

const fn setting(dialect: Dialect, batch: usize, window: usize, connections: usize) -> Setting {
    Setting { dialect, batch, window, connections }
}

/// What is tried with Redis and Valkey. Around 100 keys with several requests in flight they are fastest; one request at a
/// time and few keys are there for machines that are different.
pub(super) const RESP: [Setting; 10] = [
    setting(Dialect::RespMget, 100, 8, 4),
    setting(Dialect::RespMget, 50, 8, 4),
    setting(Dialect::RespMget, 50, 2, 16),
    setting(Dialect::RespMget, 100, 4, 1),
    setting(Dialect::RespMget, 100, 2, 16),
    setting(Dialect::RespMget, 200, 4, 4),
    setting(Dialect::RespMget, 400, 2, 4),
    setting(Dialect::RespGet, 50, 4, 4),
    setting(Dialect::RespGet, 100, 4, 1),
    setting(Dialect::RespGet, 200, 4, 4),
];

/// What is tried with memcached over TCP.
pub(super) const TEXT: [Setting; 7] = [
    setting(Dialect::Text, 100, 8, 4),
    setting(Dialect::Text, 50, 8, 4),
    setting(Dialect::Text, 100, 4, 1),
    setting(Dialect::Text, 100, 2, 16),
    setting(Dialect::Text, 200, 4, 4),
    setting(Dialect::Text, 200, 8, 4),
    setting(Dialect::Text, 400, 2, 4),
];

/// What is tried with memcached over UDP. It has one socket per thread whatever the clients have, and what is in flight must
/// fit the client's receive queue, each value a datagram; 100 keys of ten digits just fit a request.
pub(super) const DATAGRAMS: [Setting; 7] = [
    setting(Dialect::Datagrams, 16, 4, 1),
    setting(Dialect::Datagrams, 16, 16, 1),
    setting(Dialect::Datagrams, 50, 4, 1),
    setting(Dialect::Datagrams, 100, 1, 1),
    setting(Dialect::Datagrams, 100, 2, 1),
    setting(Dialect::Datagrams, 100, 4, 1),
    setting(Dialect::Datagrams, 50, 2, 2),
];

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dialect, batch, window, connections } = self;
        let (requests, over) = match dialect {
            Dialect::RespGet => ("GET, pipelines of", "connections"),
            Dialect::RespMget => ("MGET", "connections"),
            Dialect::Text => ("get of", "connections"),
            Dialect::Datagrams => ("UDP get of", "sockets"),
        };
        let over = if *connections == 1 { over.trim_end_matches('s') } else { over };
        write!(f, "{requests} {batch} × {window} in flight × {connections} {over}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_readable() {
        assert_eq!(RESP[0].to_string(), "MGET 100 × 8 in flight × 4 connections");
        assert_eq!(RESP[8].to_string(), "GET, pipelines of 100 × 4 in flight × 1 connection");
        assert_eq!(TEXT[0].to_string(), "get of 100 × 8 in flight × 4 connections");
        assert_eq!(DATAGRAMS[0].to_string(), "UDP get of 16 × 4 in flight × 1 socket");
    }

    /// Goal: long values are asked for in smaller requests, usual ones as planned. Method: the usual length, and the longest
    /// one, where settings become the same.
    #[test]
    fn long_values_make_small_requests() {
        let len = |len| ValueLen::new(0, len).unwrap();
        for usual in [0, 128, 600] {
            assert_eq!(fitting_settings(&RESP, len(usual)), RESP);
        }
        let long = fitting_settings(&RESP, len(ValueLen::MAX));
        assert!(long.len() < RESP.len() && long.iter().all(|setting| setting.batch == 1), "{long:?}");
        assert_eq!(fitting(64, len(8 << 10)), 32);
    }

    /// Goal: a request over UDP is one datagram of an Ethernet frame, as memcached's documentation asks for. Method: the
    /// longest keys.
    #[test]
    fn requests_fit_a_datagram() {
        let longest = DATAGRAMS.iter().map(|setting| setting.batch).max().unwrap();
        assert!(8 + "get".len() + longest * (1 + 10) + 2 <= 1_472);
    }
}
