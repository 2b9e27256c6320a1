//! A WebRTC carrier between two ends that know each other already, from signalling of their own.

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

/// What the signalling of an application has exchanged.
#[derive(Debug, Clone)]
pub struct Signalling {
    /// Which end this is: the client sends the first STUN check and the ClientHello.
    pub role: Role,
    /// The DTLS certificate of this end.
    pub certificate: Certificate,
    /// The address of the peer.
    pub remote: SocketAddr,
    /// The fingerprint of the peer's certificate. It authenticates the peer.
    pub fingerprint: Fingerprint,
    /// ICE ufrag and password of this end (RFC 8839 section 5.4).
    pub local_credentials: (String, String),
    /// ICE ufrag and password of the peer.
    pub remote_credentials: (String, String),
}

/// Connects two ends over one socket each: ICE, DTLS and SCTP, without Noise. The carrier is for
/// [`Connection::over`](crate::Connection::over).
///
/// `config` gives the engine, packet sizes, limits and deadlines; what it says of listening does
/// not apply.
///
/// # Errors
/// [`ConnectError::CertificateMismatch`] if the peer has another certificate,
/// [`ConnectError::TimedOut`] after [`EndpointConfig::connect_timeout`],
/// [`ConnectError::Socket`] if the socket has no address, and [`ConnectError::Ended`].
///
/// # Cancel safety
/// If the future is dropped, the attempt ends.
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
