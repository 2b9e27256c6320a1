//! Where the sockets of an endpoint come from.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use super::interfaces;
use super::socket::{DatagramSocket, UdpDatagramSocket};
#[cfg(any(test, feature = "testing"))]
use crate::simulator::Host;

/// What sockets are bound on.
#[derive(Debug, Default)]
pub(super) enum SocketFactory {
    /// The operating system.
    #[default]
    System,
    /// A host of a simulated network.
    #[cfg(any(test, feature = "testing"))]
    Simulated(Host),
}

impl SocketFactory {
    /// Binds a socket. Must be called within a tokio runtime.
    pub(super) fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>> {
        Ok(match self {
            Self::System => Arc::new(UdpDatagramSocket::bind(address)?),
            #[cfg(any(test, feature = "testing"))]
            Self::Simulated(host) => Arc::new(host.bind(address)?),
        })
    }

    /// Binds up to `count` sockets to one address; fewer, but at least one, where the system can
    /// not. Must be called within a tokio runtime.
    pub(super) fn bind_many(
        &self,
        address: SocketAddr,
        count: usize,
    ) -> io::Result<Vec<Arc<dyn DatagramSocket>>> {
        match self {
            #[cfg(unix)]
            Self::System if count > 1 => Ok(UdpDatagramSocket::bind_many(address, count)?
                .into_iter()
                .map(|socket| Arc::new(socket) as Arc<dyn DatagramSocket>)
                .collect()),
            _ => Ok(vec![self.bind(address)?]),
        }
    }

    /// The local address that is sent from towards `remote`.
    ///
    /// ICE needs a candidate with a real address, so a wildcard does not do.
    pub(super) fn source_address(&self, remote: SocketAddr) -> io::Result<IpAddr> {
        match self {
            Self::System => system_source_address(remote),
            #[cfg(any(test, feature = "testing"))]
            Self::Simulated(host) => Ok(host.ip()),
        }
    }

    /// The addresses that a bound socket can be reached at.
    pub(super) fn concrete(&self, socket: SocketAddr) -> Vec<SocketAddr> {
        match self {
            Self::System => interfaces::concrete(socket),
            #[cfg(any(test, feature = "testing"))]
            Self::Simulated(host) => vec![SocketAddr::new(host.ip(), socket.port())],
        }
    }
}

fn system_source_address(remote: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let probe = UdpSocket::bind((any, 0))?;
    // Sends nothing: a connected UDP socket only looks the route up.
    probe.connect(remote)?;
    Ok(probe.local_addr()?.ip())
}
