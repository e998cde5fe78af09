//! Sleeping until a port has work, for threads that do not spin.

use std::{array, io, os::fd::BorrowedFd, time::Duration};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

/// Most descriptors in one [`wait`]: a thread has a port or two and perhaps something that wakes it up to stop.
pub const WAIT_FDS_MAX: usize = 4;

/// Blocks until one of `fds` is readable, has failed or was hung up on, at most for `timeout`.
///
/// It may return early and for no reason (a signal), so the caller looks at all its ports after every return; which
/// descriptor was ready is not told for that reason. Without descriptors it only sleeps. The timeout has nanosecond
/// resolution (ppoll(2)) but the kernel adds the thread's timer slack, 50 µs unless changed (prctl(2)).
///
/// # Errors
/// Those of ppoll(2): `EINVAL` and `ENOMEM`. `EINTR` is a return, not an error.
///
/// # Panics
/// With more than [`WAIT_FDS_MAX`] descriptors.
pub fn wait(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<()> {
    assert!(fds.len() <= WAIT_FDS_MAX, "wait for {} descriptors", fds.len());
    let Some(&first) = fds.first() else { return sleep_on(&mut [], timeout) };
    // The entries beyond `fds.len()` only fill the array; the kernel does not see them.
    let mut polled: [_; WAIT_FDS_MAX] =
        array::from_fn(|index| PollFd::new(*fds.get(index).unwrap_or(&first), PollFlags::POLLIN));
    sleep_on(&mut polled[..fds.len()], timeout)
}

fn sleep_on(fds: &mut [PollFd<'_>], timeout: Duration) -> io::Result<()> {
    match ppoll(fds, Some(TimeSpec::from(timeout)), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, UdpSocket},
        os::fd::AsFd,
    };

    use super::*;

    /// A timeout that no test run reaches: a wait that should have been woken hangs instead of passing by luck.
    const FOREVER: Duration = Duration::from_secs(3_600);

    fn socket() -> UdpSocket {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    /// Goal: any of the descriptors ends the wait. Method: of four sockets, one after the other has a datagram; a
    /// wait that missed it would last an hour.
    #[test]
    fn each_of_four_descriptors_ends_the_wait() {
        for readable in 0..WAIT_FDS_MAX {
            let sockets: [_; WAIT_FDS_MAX] = array::from_fn(|_| socket());
            socket().send_to(b"wake up", sockets[readable].local_addr().unwrap()).unwrap();
            let fds: [_; WAIT_FDS_MAX] = array::from_fn(|index| sockets[index].as_fd());
            wait(&fds, FOREVER).unwrap();
        }
    }

    /// Goal: a wait ends without an event, also one far below poll(2)'s millisecond. Method: silent sockets.
    #[test]
    fn the_timeout_ends_the_wait() {
        let silent = socket();
        for timeout in [Duration::ZERO, Duration::from_micros(50), Duration::from_millis(2)] {
            wait(&[silent.as_fd()], timeout).unwrap();
            wait(&[], timeout).unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "wait for 5 descriptors")]
    fn a_fifth_descriptor_is_a_bug() {
        let silent = socket();
        let _ = wait(&[silent.as_fd(); 5], Duration::ZERO);
    }
}
