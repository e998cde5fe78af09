//! What the tests of ports on rings and of kernel programs share: saying why they could not run.

use std::{
    io::{self, Write as _},
    panic::Location,
};

/// What `open` made; without the privilege for it `None`, after a line that says what was not tested.
///
/// # Panics
/// On any other error; and without the privilege if `LINERATE_RINGS` is `required`.
#[track_caller]
pub(crate) fn or_say<T>(what: &str, open: io::Result<T>) -> Option<T> {
    match open {
        Ok(opened) => Some(opened),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // Not `eprintln!`, which the test harness keeps to itself when the test succeeds.
            writeln!(io::stderr(), "{}: not run: {what}: {error}", Location::caller())
                .expect("standard error");
            assert_ne!(std::env::var("LINERATE_RINGS").as_deref(), Ok("required"), "{what}: {error}");
            None
        }
        Err(error) => panic!("{what}: {error}"),
    }
}
