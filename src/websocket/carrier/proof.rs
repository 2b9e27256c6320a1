//! The limits of a carrier before and after the peer is authenticated.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::super::config::WebSocketConfig;
use super::super::error::WebSocketError;
use super::super::heartbeat::Metered;
use super::super::incoming::IncomingFrames;
use super::super::upgrade;
use super::{State, WebSocketCarrier};
use crate::connection::ConnectionError;

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketCarrier<S> {
    /// A server's carrier for an unauthenticated peer. It has small limits, and reads no byte after
    /// the frame that it expects. `socket` reads frame by frame.
    pub(in crate::websocket) fn unproven(
        socket: WebSocketStream<Metered<S>>,
        config: &WebSocketConfig,
    ) -> Self {
        let config = upgrade::unproven(config);
        let incoming = IncomingFrames::limited(config.max_message);
        Self {
            incoming,
            ..Self::new(socket, false, config)
        }
    }

    /// Raises the limits of an [`Self::unproven`] carrier to `config`, once the peer is
    /// authenticated and the queue flushed.
    ///
    /// tungstenite can not change its read buffer later, so there is a new instance. The old one
    /// has read exactly to the end of a frame, and that frame ended a message: nothing is lost with
    /// it.
    pub(in crate::websocket) async fn proven(
        mut self,
        config: &WebSocketConfig,
    ) -> Result<Self, ConnectionError> {
        if !matches!(self.state, State::Running) || self.write_error.is_some() {
            // It has ended already, which the connection will see.
            return Ok(self);
        }
        let mut io = self.socket.into_inner();
        if !io.read_ahead() {
            return Err(WebSocketError::Lost.into());
        }
        let engine = upgrade::engine_config(config);
        self.socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(engine)).await;
        self.incoming.unlimit();
        self.outgoing.set_limit(config.batch);
        self.config = config.clone();
        Ok(self)
    }
}
