//! Whether a network card brings each port's datagrams to the queue of its core.

use crate::interface::Interface;

/// What is wrong with the steering of an interface whose queue `i` is to get what is sent to `ports[i]`, and the remedy.
pub(crate) fn warning(_interface: &Interface, _ports: &[u16]) -> Option<String> {
    None
}
