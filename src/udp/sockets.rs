//! The source of an endpoint's sockets.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use super::port_watch;
use super::socket::{DatagramSocket, UdpDatagramSocket};
use crate::interfaces;

/// Binds sockets, of the operating system or of a simulator.
pub trait Sockets: Debug + Send + Sync {
    /// Binds a socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of the system, which end a bind with [`BindError::Socket`](crate::BindError::Socket)
    /// and a dial with [`ConnectError::Socket`](crate::ConnectError::Socket).
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>>;

    /// Binds up to `count` sockets to one address; fewer, but at least one, where the system does
    /// not support it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// As [`Self::bind`].
    fn bind_many(
        &self,
        address: SocketAddr,
        count: usize,
    ) -> io::Result<Vec<Arc<dyn DatagramSocket>>> {
        let _ = count;
        Ok(vec![self.bind(address)?])
    }

    /// Completes when it is certain that nobody listens at `remote`; by default never.
    fn watch_port(&self, remote: SocketAddr) -> Pin<Box<dyn Future<Output = io::Error> + Send>> {
        let _ = remote;
        Box::pin(std::future::pending())
    }

    /// The addresses at which a bound socket can be reached.
    fn concrete(&self, socket: SocketAddr) -> Vec<SocketAddr>;
}

impl<S: Sockets + ?Sized> Sockets for Arc<S> {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>> {
        (**self).bind(address)
    }

    fn bind_many(
        &self,
        address: SocketAddr,
        count: usize,
    ) -> io::Result<Vec<Arc<dyn DatagramSocket>>> {
        (**self).bind_many(address, count)
    }

    fn watch_port(&self, remote: SocketAddr) -> Pin<Box<dyn Future<Output = io::Error> + Send>> {
        (**self).watch_port(remote)
    }

    fn concrete(&self, socket: SocketAddr) -> Vec<SocketAddr> {
        (**self).concrete(socket)
    }
}

/// The sockets of the operating system.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct SystemSockets {}

impl SystemSockets {
    /// With the defaults of the system.
    pub const fn new() -> Self {
        Self {}
    }
}

/// A socket that the application has bound, with options of its own. Must be called within a tokio
/// runtime. The socket becomes non-blocking, and asks the system for larger buffers.
///
/// # Errors
/// Those of the system.
pub fn from_std(socket: std::net::UdpSocket) -> io::Result<Arc<dyn DatagramSocket>> {
    Ok(Arc::new(UdpDatagramSocket::new(socket)?))
}

impl Sockets for SystemSockets {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>> {
        Ok(Arc::new(UdpDatagramSocket::bind(address)?))
    }

    #[cfg(unix)]
    fn bind_many(
        &self,
        address: SocketAddr,
        count: usize,
    ) -> io::Result<Vec<Arc<dyn DatagramSocket>>> {
        if count <= 1 {
            return Ok(vec![self.bind(address)?]);
        }
        let sockets = UdpDatagramSocket::bind_many(address, count)?.into_iter();
        Ok(sockets
            .map(|socket| Arc::new(socket) as Arc<dyn DatagramSocket>)
            .collect())
    }

    /// By the ICMP errors that the operating system reports to a connected socket.
    fn watch_port(&self, remote: SocketAddr) -> Pin<Box<dyn Future<Output = io::Error> + Send>> {
        Box::pin(port_watch::watch(remote))
    }

    fn concrete(&self, socket: SocketAddr) -> Vec<SocketAddr> {
        interfaces::concrete(socket)
    }
}
