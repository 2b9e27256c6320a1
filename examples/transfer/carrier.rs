//! Connections over WebRTC or over a WebSocket: all other code is the same for both.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use anabranch::address::PeerAddress;
use anabranch::websocket::{Authentication, ListenerConfig, ServerConfig, WebSocketListener};
use anabranch::{Config, Connection, Endpoint, Identity};

use crate::Result;

/// A listener on a port of the loopback interface that the system chooses.
pub(crate) enum Listener {
    WebRtc(Endpoint),
    WebSocket(WebSocketListener),
}

/// The rest of the handshake, to be awaited where it delays no other connection.
pub(crate) type Handshake = Pin<Box<dyn Future<Output = Result<Connection>> + Send>>;

impl Listener {
    pub(crate) async fn bind(websocket: bool, protocol: &str) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        if !websocket {
            let endpoint = Endpoint::builder().protocol(protocol).bind(address).await?;
            return Ok(Self::WebRtc(endpoint));
        }
        let mut connection = Config::default();
        connection.protocols = vec![protocol.to_owned()];
        let mut config = ServerConfig::new(Authentication::noise(Identity::generate()));
        config.connection = Arc::new(connection);
        let limits = ListenerConfig::default();
        let listener = WebSocketListener::bind(address, config, limits).await?;
        Ok(Self::WebSocket(listener))
    }

    pub(crate) fn address(&self) -> PeerAddress {
        match self {
            Self::WebRtc(endpoint) => PeerAddress::WebRtcDirect(endpoint.addresses().remove(0)),
            Self::WebSocket(listener) => PeerAddress::WebSocket(listener.address()),
        }
    }

    /// The next connection; `None` if there can be no further one. After an error there can be: the
    /// system may have been out of file descriptors.
    pub(crate) async fn accept(&self) -> Result<Option<Handshake>> {
        match self {
            Self::WebRtc(endpoint) => {
                let Some(incoming) = endpoint.accept().await else {
                    return Ok(None);
                };
                Ok(Some(Box::pin(async move { Ok(incoming.accept().await?) })))
            }
            Self::WebSocket(listener) => {
                let incoming = listener.accept().await?;
                Ok(Some(Box::pin(async move { Ok(incoming.accept().await?) })))
            }
        }
    }

    pub(crate) async fn close(self) {
        if let Self::WebRtc(endpoint) = self {
            endpoint.close().await;
        }
    }
}

/// A dialler with a new identity. The path can read the traffic to a `ws` address, and the user who
/// passes one accepts that.
pub(crate) fn dialler() -> Result<Endpoint> {
    dialler_as(Identity::generate())
}

/// A dialler with the given identity.
pub(crate) fn dialler_as(identity: Identity) -> Result<Endpoint> {
    Ok(Endpoint::builder()
        .identity(identity)
        .plaintext_websockets(true)
        .dial_only()?)
}

/// Dials an address of either kind.
pub(crate) async fn connect(endpoint: &Endpoint, address: &PeerAddress) -> Result<Connection> {
    let reached = endpoint.connect_any(std::slice::from_ref(address)).await?;
    Ok(reached.connection)
}
