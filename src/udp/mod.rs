//! UDP: sockets, the addresses and ports of this machine, who is let in, and which connection a
//! datagram is of.
//!
//! Public is the seam to the sockets: an endpoint binds them through [`Sockets`], by default on the
//! system ([`SystemSockets`]), and sends and receives through [`DatagramSocket`].

pub(crate) mod admission;
pub(crate) mod inbox;
mod port_watch;
pub(crate) mod router;
mod socket;
mod sockets;

pub(crate) use socket::wildcard;
pub use socket::{DatagramSocket, Received, Transmit};
pub use sockets::{Sockets, SystemSockets};
