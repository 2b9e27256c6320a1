//! Hosts as the sockets of real endpoints.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::Host;
use anabranch::udp::DatagramSocket;
use anabranch::udp::Sockets;

impl Sockets for Host {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>> {
        Ok(Arc::new(Self::bind(self, address)?))
    }

    fn concrete(&self, socket: SocketAddr) -> Vec<SocketAddr> {
        vec![SocketAddr::new(self.ip(), socket.port())]
    }
}
