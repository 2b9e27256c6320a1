//! A WebRTC carrier between two peers that have exchanged credentials by signalling of their own.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use anabranch_rtc::Role;
use tokio::time::timeout;

use super::EndpointConfig;
use super::config::EnginePeers;
use super::error::ConnectError;
use super::handshake::{Expectations, HandshakeProgress, establish};
use crate::carrier::Carrier;
use crate::certificate::{Certificate, Fingerprint};
use crate::udp::DatagramSocket;
use crate::webrtc::{Source, WebRtcCarrier};

/// What two peers have exchanged by the signalling of their application.
///
/// `Debug` does not show the ICE passwords.
#[derive(Clone)]
pub struct Signalling {
    /// Role of this side: the client sends the first STUN check and the ClientHello. The peer has
    /// to take the other role.
    pub role: Role,
    /// DTLS certificate of this side.
    pub certificate: Certificate,
    /// Address of the peer.
    pub remote: SocketAddr,
    /// Fingerprint of the peer's certificate. It authenticates the peer, so the signalling has to
    /// protect its integrity.
    pub fingerprint: Fingerprint,
    /// ICE ufrag and password of this side (RFC 8839 section 5.4).
    pub local_credentials: (String, String),
    /// ICE ufrag and password of the peer.
    pub remote_credentials: (String, String),
}

impl fmt::Debug for Signalling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signalling")
            .field("role", &self.role)
            .field("certificate", &self.certificate)
            .field("remote", &self.remote)
            .field("fingerprint", &self.fingerprint)
            .field("local_ufrag", &self.local_credentials.0)
            .field("remote_ufrag", &self.remote_credentials.0)
            .finish_non_exhaustive()
    }
}

/// Connects to a peer over a socket of its own: ICE, DTLS and SCTP, without Noise.
///
/// Both peers call it with matching [`Signalling`]. The carrier is for
/// [`Connection::over`](crate::Connection::over). Dropping it ends the connection and releases the
/// socket.
///
/// `config` sets the engine, packet sizes, limits and timeouts; its settings of listeners do not
/// apply.
///
/// # Errors
/// - [`ConnectError::CertificateMismatch`] if the peer has another certificate;
/// - [`ConnectError::TimedOut`] after [`EndpointConfig::connect_timeout`];
/// - [`ConnectError::Socket`] if the socket has no local address;
/// - [`ConnectError::Ended`] if the connection ends during the handshake.
///
/// # Cancel safety
/// Dropping the future ends the attempt and releases the socket.
pub async fn connect_signalled(
    config: &EndpointConfig,
    socket: Arc<dyn DatagramSocket>,
    signalling: Signalling,
) -> Result<impl Carrier + use<>, ConnectError> {
    let remote = signalling.remote;
    let failed = |source| ConnectError::Socket { remote, source };
    let mut local = socket.local_addr().map_err(failed)?;
    if local.ip().is_unspecified() {
        // ICE needs a candidate with a real address.
        local.set_ip(socket.source_towards(remote).map_err(failed)?);
    }
    let role = signalling.role;
    let engine = config.make_engine(EnginePeers {
        role,
        certificate: (&signalling.certificate).into(),
        local,
        remote,
        local_credentials: signalling.local_credentials,
        remote_credentials: signalling.remote_credentials,
    })?;
    let source = Source::Socket { remote };
    let mut carrier = WebRtcCarrier::new(engine, socket, source, local, config.carrier_limits());
    let expectations = Expectations {
        role,
        certhashes: std::slice::from_ref(&signalling.fingerprint),
        own_fingerprint: signalling.certificate.fingerprint(),
        identity: None,
        peer_id: None,
        late_channel_zero: false,
    };
    let progress = HandshakeProgress::default();
    let limit = config.connect_timeout;
    let handshake = establish(&mut carrier, expectations, &progress);
    match timeout(limit, handshake).await {
        Ok(result) => drop(result?),
        Err(_) => {
            return Err(ConnectError::TimedOut {
                phase: progress.phase(),
                after: limit,
            });
        }
    }
    Ok(carrier)
}
