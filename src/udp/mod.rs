//! UDP: sockets, local addresses and ports, admission of first contacts, and the routing of
//! datagrams to connections.
//!
//! Public is the seam to the sockets: an endpoint binds them through [`Sockets`], by default on the
//! operating system ([`SystemSockets`]), and sends and receives through [`DatagramSocket`].

pub(crate) mod admission;
pub(crate) mod inbox;
mod port_watch;
pub(crate) mod router;
mod socket;
mod sockets;

pub use anabranch_rtc::Ecn;
pub(crate) use port_watch::indication;
pub(crate) use socket::wildcard;
pub use socket::{DatagramSocket, Received, Transmit};
pub use sockets::{Sockets, SystemSockets, from_std};
