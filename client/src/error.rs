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
    /// The servers do not make a cluster.
    #[error("these servers can not share the keys: {0}")]
    Placement(String),
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
