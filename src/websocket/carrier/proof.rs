//! What a carrier grants a peer before it has proven who it is, and afterwards.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::super::config::WebSocketConfig;
use super::super::error::WebSocketError;
use super::super::heartbeat::Metered;
use super::super::incoming::Incoming;
use super::super::upgrade;
use super::{State, WebSocketCarrier};
use crate::connection::ConnectionError;

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketCarrier<S> {
    /// A carrier of a server for a peer that has proven nothing: it takes little, and reads no byte behind the frame
    /// that it waits for. `socket` reads frame by frame.
    pub(in crate::websocket) fn unproven(
        socket: WebSocketStream<Metered<S>>,
        config: &WebSocketConfig,
    ) -> Self {
        let config = upgrade::unproven(config);
        let incoming = Incoming::limited(config.max_message);
        Self {
            incoming,
            ..Self::new(socket, false, config)
        }
    }

    /// Gives an [`Self::unproven`] carrier, whose peer is known and whose queue is written, what `config` grants.
    ///
    /// An engine can not be given longer reads afterwards, so there is a new one. The old one has read to the end of a
    /// frame and not further, and the last frame that it gave ended a message: nothing is lost with it.
    pub(in crate::websocket) async fn proven(
        mut self,
        config: &WebSocketConfig,
    ) -> Result<Self, ConnectionError> {
        if !matches!(self.state, State::Running) || self.write_error.is_some() {
            // It is over already, which the connection will see.
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
