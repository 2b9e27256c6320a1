//! UDP: sockets, the addresses and ports of this machine, who is let in, and which connection a
//! datagram is of.

pub(crate) mod admission;
pub(crate) mod inbox;
pub(crate) mod interfaces;
mod port_watch;
pub(crate) mod router;
pub(crate) mod socket;
pub(crate) mod sockets;
