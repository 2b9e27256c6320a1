//! Outbound connections.
//!
//! Every dial has a socket of its own: on a shared one several connections to one listener would
//! have the same pair of addresses, and a socket that only one task reads needs no routing.

use std::net::SocketAddr;
use std::sync::Arc;

use anabranch_rtc::Role;

use super::Inner;
use super::config::EnginePeers;
use super::error::ConnectError;
use super::handshake::Expectations;
use crate::address::Address;
use crate::connection::Connection;
use crate::udp::wildcard;
use crate::ufrag::{ClientCredentials, Version};
use crate::webrtc::{Source, WebRtcCarrier};

pub(super) async fn dial(
    endpoint: &Arc<Inner>,
    address: &Address,
    version: Version,
) -> Result<Connection, ConnectError> {
    let registration = endpoint.register_dial()?;
    if address.certhashes().is_empty() {
        return Err(ConnectError::MissingCerthash);
    }
    let remote = address.socket_addr();
    let refused = |source| ConnectError::Socket { remote, source };
    // On a wildcard the system selects another source address when the one in use disappears or the
    // route changes.
    let socket = endpoint
        .sockets
        .bind(SocketAddr::new(wildcard(remote), 0))
        .map_err(refused)?;
    // ICE needs a candidate with a real address.
    let source = socket.source_towards(remote).map_err(refused)?;
    let port = socket.local_addr().map_err(refused)?.port();
    let local = SocketAddr::new(source, port);

    let credentials = ClientCredentials::generate(version);
    let config = &endpoint.config;
    let refusal_password = credentials.remote_pwd.clone();
    let engine = config.make_engine(EnginePeers {
        role: Role::Client,
        certificate: (&endpoint.certificate).into(),
        local,
        remote,
        local_credentials: (credentials.local_ufrag, credentials.local_pwd),
        remote_credentials: (credentials.remote_ufrag, credentials.remote_pwd),
    })?;
    let mut carrier = WebRtcCarrier::new(
        engine,
        socket,
        Source::Socket { remote },
        local,
        config.carrier_limits(),
    );
    carrier.expect_refusal(refusal_password);
    carrier.watch_port(endpoint.sockets.watch_port(remote));
    let expectations = Expectations {
        role: Role::Client,
        certhashes: address.certhashes(),
        own_fingerprint: endpoint.certificate.fingerprint(),
        identity: endpoint.noise_identity(),
        peer_id: address.peer_id(),
        takes_labels: endpoint.connection_config.takes_labels(),
        late_channel_zero: false,
    };
    Box::pin(endpoint.establish(registration, carrier, expectations, remote)).await
}
