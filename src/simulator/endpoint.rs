//! Real endpoints on simulated hosts.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::Host;
use crate::endpoint::EndpointBuilder;
use crate::udp::socket::DatagramSocket;
use crate::udp::sockets::Sockets;

impl Sockets for Host {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>> {
        Ok(Arc::new(Self::bind(self, address)?))
    }

    fn concrete(&self, socket: SocketAddr) -> Vec<SocketAddr> {
        vec![SocketAddr::new(self.ip(), socket.port())]
    }
}

impl EndpointBuilder {
    /// Uses the sockets of a simulated host, for listening and for dialling, in place of those of
    /// the system. Addresses have to be literal, and its own or a wildcard.
    pub fn simulated(self, host: &Host) -> Self {
        self.on_sockets(Arc::new(host.clone()))
    }
}
