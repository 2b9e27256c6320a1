//! A WebRTC carrier between two peers that have exchanged credentials by signalling of their own.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anabranch_rtc::Role;
use rand::RngExt;
use rand::distr::Alphanumeric;
use tokio::time::timeout;

use super::EndpointConfig;
use super::config::EnginePeers;
use super::error::ConnectError;
use super::handshake::{Expectations, HandshakeProgress, establish};
use crate::carrier::Carrier;
use crate::certificate::{Certificate, Fingerprint};
use crate::udp::DatagramSocket;
use crate::webrtc::{Source, WebRtcCarrier};

/// Random characters of a ufrag and of a password. RFC 8445 section 5.3 asks for 24 and 128 bits.
const UFRAG_LENGTH: usize = 8;
const PASSWORD_LENGTH: usize = 32;

/// What two peers have exchanged by the signalling of their application.
#[derive(Debug, Clone)]
#[non_exhaustive]
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
    /// ICE credentials of this side.
    pub local_credentials: IceCredentials,
    /// ICE credentials of the peer.
    pub remote_credentials: IceCredentials,
}

/// ICE credentials of one side (RFC 8839 section 5.4).
///
/// `Debug` does not show the password.
#[derive(Clone)]
#[non_exhaustive]
pub struct IceCredentials {
    /// The user name fragment, at least 4 characters of the ICE alphabet.
    pub ufrag: String,
    /// The password, at least 22 characters of the ICE alphabet.
    pub password: String,
}

impl IceCredentials {
    /// Credentials that were exchanged.
    pub fn new(ufrag: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            ufrag: ufrag.into(),
            password: password.into(),
        }
    }

    /// Random credentials, to be signalled to the peer.
    pub fn generate() -> Self {
        let random = |length| -> String {
            let characters = rand::rng().sample_iter(Alphanumeric).take(length);
            characters.map(char::from).collect()
        };
        Self::new(random(UFRAG_LENGTH), random(PASSWORD_LENGTH))
    }
}

impl IceCredentials {
    fn into_pair(self) -> (String, String) {
        (self.ufrag, self.password)
    }
}

impl fmt::Debug for IceCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IceCredentials")
            .field("ufrag", &self.ufrag)
            .finish_non_exhaustive()
    }
}

impl Signalling {
    /// What was exchanged.
    pub fn new(
        role: Role,
        certificate: Certificate,
        local_credentials: IceCredentials,
        remote: SocketAddr,
        fingerprint: Fingerprint,
        remote_credentials: IceCredentials,
    ) -> Self {
        Self {
            role,
            certificate,
            remote,
            fingerprint,
            local_credentials,
            remote_credentials,
        }
    }
}

/// Connects to a peer over a socket of its own: ICE, DTLS and SCTP, without Noise.
///
/// Both peers call it with matching [`Signalling`], within a tokio runtime. Each is reached at
/// exactly one address, that of [`Signalling::remote`], for the whole life of the connection: the
/// server has to be reachable directly, and nobody roams. The carrier is for
/// [`Connection::over`](crate::Connection::over). Dropping it ends the connection and releases the
/// socket.
///
/// `config` sets the engine, packet sizes, limits and timeouts, and has to be
/// [valid](EndpointConfig::validate); its settings of listeners do not apply.
///
/// # Errors
/// - [`ConnectError::CertificateMismatch`] if the peer has another certificate;
/// - [`ConnectError::TimedOut`] after [`EndpointConfig::connect_timeout`];
/// - [`ConnectError::Socket`] if the socket has no local address, or no route to the peer;
/// - [`ConnectError::Ended`] if the connection ends during the handshake, or the addresses or
///   credentials are not those of ICE.
///
/// # Cancel safety
/// Dropping the future ends the attempt and releases the socket.
pub async fn connect_signalled(
    config: &EndpointConfig,
    socket: Arc<dyn DatagramSocket>,
    signalling: Signalling,
) -> Result<impl Carrier + use<>, ConnectError> {
    let remote = signalling.remote;
    let failed = |source: io::Error| {
        let source = source.into();
        ConnectError::Socket { remote, source }
    };
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
        local_credentials: signalling.local_credentials.into_pair(),
        remote_credentials: signalling.remote_credentials.into_pair(),
    })?;
    let source = Source::Socket { remote };
    let mut carrier = WebRtcCarrier::new(engine, socket, source, local, config.carrier_limits());
    carrier.stay_at_source();
    let expectations = Expectations {
        role,
        certhashes: std::slice::from_ref(&signalling.fingerprint),
        own_fingerprint: signalling.certificate.fingerprint(),
        identity: None,
        peer_id: None,
        takes_labels: false,
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
