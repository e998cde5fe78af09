//! The client's side of connecting: when to try a server again, and the start of a connection that does not block.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

/// First pause after a failure: far above a round trip inside a data centre, far below what a person notices.
const DELAY_MIN: Duration = Duration::from_millis(10);

/// Longest pause: a server that comes back is found within a second.
const DELAY_MAX: Duration = Duration::from_secs(1);

/// One server address, and when it may be connected to next.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) addr: SocketAddr,
    not_before: Instant,
    delay: Duration,
}

impl Dial {
    pub(super) const fn new(addr: SocketAddr, now: Instant) -> Self {
        Self { addr, not_before: now, delay: DELAY_MIN }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.not_before
    }

    /// The connection, or the attempt at one, has ended.
    pub(super) fn ended(&mut self, now: Instant) {
        self.not_before = now + self.delay;
        self.delay = (self.delay * 2).min(DELAY_MAX);
    }

    /// The server has sent something. Only this resets the pauses, and not that the connection came up: a server
    /// whose table is full accepts and closes at once.
    pub(super) const fn answered(&mut self) {
        self.delay = DELAY_MIN;
    }
}

/// A non-blocking socket on its way to `addr`.
///
/// # Errors
/// Those of socket(2), setsockopt(2) and connect(2) that are known at once.
pub(super) fn connecting(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&addr.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Without a listener on an ephemeral port of this very host, the kernel may pick that port as the source too;
    // simultaneous open (RFC 9293, 3.5) then connects the socket to itself, and keeps the server from binding.
    if socket.local_addr()?.as_socket() == Some(addr) {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: 10 ms doubling to 1 s, and back to 10 ms once the server speaks. Method: made-up instants.
    #[test]
    fn pauses_double_up_to_a_second_and_start_over_after_an_answer() {
        let start = Instant::now();
        let mut dial = Dial::new(([127, 0, 0, 1], 1).into(), start);
        assert!(dial.is_due(start));
        for pause_ms in [10, 20, 40, 80, 160, 320, 640, 1_000, 1_000] {
            dial.ended(start);
            assert!(!dial.is_due(start + Duration::from_millis(pause_ms - 1)), "before {pause_ms} ms");
            assert!(dial.is_due(start + Duration::from_millis(pause_ms)), "after {pause_ms} ms");
        }
        dial.answered();
        dial.ended(start);
        assert!(dial.is_due(start + DELAY_MIN));
    }
}
