//! Where the sockets of an endpoint come from.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::interfaces;
use super::port_watch;
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

    /// Completes when it is clear that nobody listens at `remote`; see [`port_watch`]. A simulated network never
    /// says so.
    pub(super) fn watch_port(&self, remote: SocketAddr) -> BoxFuture<'static, io::Error> {
        match self {
            Self::System => Box::pin(port_watch::watch(remote)),
            #[cfg(any(test, feature = "testing"))]
            Self::Simulated(_) => Box::pin(std::future::pending()),
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
