//! What a client's caller is told when something goes wrong.

use std::{io, net::SocketAddr, time::Duration};

use linerate_proto::{
    flow::PushError,
    wire::{Reason, RefusalReason},
};

/// Why no session came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing was heard.
    #[error(
        "no answer from {0} within {1:?}: is a linerate server running there, and does the address have its first port?"
    )]
    NoAnswer(SocketAddr, Duration),
    /// The server did not want another session.
    #[error("{0} has refused a session, {1}")]
    Refused(SocketAddr, RefusalReason),
    /// No cluster map.
    #[error("{0} has answered, but has not told its cluster map within {1:?}: is it of another version?")]
    NoMap(SocketAddr, Duration),
    /// A server that owns all keys, and another one.
    #[error(
        "{alone} is alone and owns all keys, so it shares none with {beside}: start each server with --node-id and the same \
         --cluster, or name one server only"
    )]
    Alone {
        /// A server that is alone.
        alone: SocketAddr,
        /// Another one.
        beside: SocketAddr,
    },
    /// Two cluster maps of one epoch.
    #[error(
        "{} and {} have different cluster maps of the same epoch {epoch}: start all servers with the same map, and a \
         changed one with a higher epoch", .servers[0], .servers[1]
    )]
    Disagreement {
        /// What both say.
        epoch: u16,
        /// Two that disagree.
        servers: [SocketAddr; 2],
    },
    /// A server that was left behind.
    #[error(
        "{server} has the cluster map of epoch {epoch}, others that of epoch {newest}: start it again with the newer map"
    )]
    Outdated {
        /// The server.
        server: SocketAddr,
        /// Its epoch.
        epoch: u16,
        /// The newest.
        newest: u16,
    },
    /// Servers that have changed places.
    #[error(
        "the cluster map has node {expected} at {server}, but node {node} answers there: check its --node-id"
    )]
    OtherNode {
        /// Where it is.
        server: SocketAddr,
        /// What it is.
        node: u64,
        /// What the map says.
        expected: u64,
    },
    /// A map that does not suit the way there.
    #[error(
        "node {node} is at {addr} in the cluster map of {server}: one client reaches IPv4 or IPv6, not both"
    )]
    AddressFamily {
        /// Who has the map.
        server: SocketAddr,
        /// The node.
        node: u64,
        /// Its address.
        addr: SocketAddr,
    },
    /// One change after the other.
    #[error("the servers' cluster map changes faster than it can be asked for: try again")]
    Unsettled,
    /// What the system said.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why an operation has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Key or value outside the limits.
    #[error("{0}")]
    Invalid(PushError),
    /// It had no effect, and never will.
    #[error("not executed: {0}")]
    NotExecuted(Reason),
    /// It was sent and not answered.
    #[error(
        "outcome unknown: the write was sent, but no answer came; it took effect once or not at all (data epoch of the \
         server now: {data_epoch:016x}; when that changes, all data were lost)"
    )]
    OutcomeUnknown {
        /// Newest data epoch that is known.
        data_epoch: u64,
    },
    /// An answer that no server gives to this operation.
    #[error("the server's answer does not belong to the operation: is it of another version?")]
    Unexpected,
    /// No session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// What the system said.
    #[error(transparent)]
    Io(#[from] io::Error),
}
