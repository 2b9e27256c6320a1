//! UDP: sockets, local addresses and ports, admission of first contacts, and the routing of
//! datagrams to connections.

pub(crate) mod admission;
pub(crate) mod inbox;
pub(crate) mod interfaces;
mod port_watch;
pub(crate) mod router;
pub(crate) mod socket;
pub(crate) mod sockets;
