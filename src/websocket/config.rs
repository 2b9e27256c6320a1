//! The limits of WebSocket connections, each with the need or the attack that it answers
//! (docs/reliability.md).

use std::sync::Arc;
use std::time::Duration;

use super::proxy::TrustedProxies;
use super::request::policy::RequestPolicy;
use super::tls::{TlsIdentity, TlsTrust};
use crate::connection::{Config, ConfigError};
use crate::identity::Identity;
use crate::rates::RateLimit;

/// Limits and timers of one WebSocket.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WebSocketConfig {
    /// Maximum duration of the handshake, in either direction: TCP, TLS, HTTP and Noise together.
    /// Default: 10 s, as for WebRTC. Answers peers that fall silent in between.
    pub handshake_timeout: Duration,
    /// How long the peer may be silent before it is pinged. Default: 15 s. Keeps middleboxes from
    /// dropping the connection.
    pub ping_interval: Duration,
    /// How long the peer may be silent before the connection ends with
    /// [`ConnectionError::TimedOut`](crate::ConnectionError::TimedOut). Any byte counts, also of an
    /// incomplete message. Default: 30 s; has to be longer than [`Self::ping_interval`].
    pub idle_timeout: Duration,
    /// How long to wait for the peer's close frame. Default: 1 s.
    pub close_timeout: Duration,
    /// Maximum length of an accepted message, and of a WebSocket frame, in bytes; a longer one is
    /// rejected by its header. 16 KiB to 64 MiB. Default: 1 MiB. Answers peers that make this side
    /// allocate. Until Noise has succeeded, a server accepts 4 KiB, and reads nothing after the
    /// message that it expects.
    pub max_message: usize,
    /// Maximum length of a sent message, in bytes; what is queued for the socket is sent as one
    /// message up to it. 16 KiB to 1 MiB. Default: 64 KiB. Larger messages delay control frames;
    /// the peer has to accept as much.
    pub batch: usize,
    /// Maximum bytes of control frames (flags, credit, answers) queued for a peer that does not
    /// read. 4 KiB to 64 MiB. Default: 256 KiB. Beyond it substreams hold theirs back, and at four
    /// times as much the connection ends with
    /// [`WebSocketError::NotReading`](super::WebSocketError::NotReading). Answers peers that send
    /// requests and never read.
    pub control_backlog: usize,
}

impl Default for WebSocketConfig {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(1),
            max_message: 1024 * 1024,
            batch: 64 * 1024,
            control_backlog: 256 * 1024,
        }
    }
}

impl WebSocketConfig {
    /// Checks that every setting is in its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the field that is not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::require_time("handshake_timeout", self.handshake_timeout)?;
        ConfigError::require_time("ping_interval", self.ping_interval)?;
        ConfigError::require_time("idle_timeout", self.idle_timeout)?;
        ConfigError::require_time("close_timeout", self.close_timeout)?;
        let millis =
            |duration: Duration| usize::try_from(duration.as_millis()).unwrap_or(usize::MAX);
        const MIB: usize = 1024 * 1024;
        for (name, value, range) in [
            (
                "idle_timeout",
                millis(self.idle_timeout),
                millis(self.ping_interval).saturating_add(1)..=usize::MAX,
            ),
            ("max_message", self.max_message, 16 * 1024..=64 * MIB),
            ("batch", self.batch, 16 * 1024..=MIB),
            ("control_backlog", self.control_backlog, 4096..=64 * MIB),
        ] {
            ConfigError::require_range(name, value, range)?;
        }
        Ok(())
    }
}

/// The channel binding of Noise, against a man in the middle who relays the handshake.
///
/// Both sides have to agree on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ChannelBinding {
    /// No binding: the only choice without TLS, or where a proxy terminates TLS. Noise then
    /// authenticates the peers, but does not exclude a man in the middle.
    #[default]
    None,
    /// The exported keys of the TLS session (RFC 9266). A man in the middle has different keys
    /// towards each side, and the handshake fails. For servers that terminate TLS themselves.
    TlsExporter,
}

/// How the peers of a connection authenticate. Both sides have to agree on it: it selects the
/// subprotocol, so that a mismatch fails in the upgrade.
// A configuration has only one, so its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Authentication {
    /// Noise with libp2p identities, as over WebRTC: each side learns the [`PeerId`](crate::PeerId)
    /// of the other.
    ///
    /// Noise protects nothing after the handshake: confidentiality and integrity are those of the
    /// WebSocket. Over plain `ws://` everybody on the path can read and change the data.
    Noise {
        /// The identity of this side.
        identity: Identity,
        /// The channel binding.
        binding: ChannelBinding,
    },
    /// The client authenticates the server by its TLS certificate, and stays anonymous itself,
    /// unless the server requires a certificate of it
    /// ([`TlsIdentity::with_client_trust`](super::TlsIdentity::with_client_trust)). Such a client
    /// dials `wss://` only. A proxy may terminate TLS for the server.
    Tls,
    /// No authentication. For tests, for streams that are trusted for another reason, and for
    /// programs that authenticate in their own protocol.
    DangerNone,
}

impl Authentication {
    /// Noise without a channel binding.
    pub fn noise(identity: Identity) -> Self {
        Self::Noise {
            identity,
            binding: ChannelBinding::None,
        }
    }

    /// The subprotocol that it selects in the upgrade.
    pub fn subprotocol(&self) -> &'static str {
        match self {
            Self::Noise { .. } => super::SUBPROTOCOL_NOISE,
            Self::Tls | Self::DangerNone => super::SUBPROTOCOL,
        }
    }
}

/// The configuration of a dial.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    /// How the peers authenticate.
    pub authentication: Authentication,
    /// Which TLS certificates are accepted from `wss://` servers.
    pub trust: TlsTrust,
    /// The certificate for `wss://` servers that require one of their clients. Default: `None`.
    pub certificate: Option<TlsIdentity>,
    /// Headers to add to the upgrade request, for servers that require a token or a cookie.
    pub headers: Vec<(String, String)>,
    /// Limits of the WebSocket.
    pub websocket: WebSocketConfig,
    /// Limits of the connection and its substreams.
    pub connection: Arc<Config>,
}

impl ClientConfig {
    /// The default settings, with this authentication.
    pub fn new(authentication: Authentication) -> Self {
        Self {
            authentication,
            trust: TlsTrust::default(),
            certificate: None,
            headers: Vec::new(),
            websocket: WebSocketConfig::default(),
            connection: Arc::new(Config::default()),
        }
    }
}

/// The configuration of accepted connections.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerConfig {
    /// How the peers authenticate.
    pub authentication: Authentication,
    /// Certificate and key for TLS; `None` for plain `ws://`. Not used by
    /// [`accept_upgraded`](super::accept_upgraded), whose HTTP server has its own.
    pub tls: Option<TlsIdentity>,
    /// Which requests are upgraded. Default: pages of foreign origins are refused without Noise.
    pub requests: RequestPolicy,
    /// Limits of the WebSocket.
    pub websocket: WebSocketConfig,
    /// Limits of the connection and its substreams.
    pub connection: Arc<Config>,
}

impl ServerConfig {
    /// The default settings, with this authentication.
    pub fn new(authentication: Authentication) -> Self {
        Self {
            authentication,
            tls: None,
            requests: RequestPolicy::default(),
            websocket: WebSocketConfig::default(),
            connection: Arc::new(Config::default()),
        }
    }
}

/// Limits of a [`WebSocketListener`](super::WebSocketListener).
///
/// A connection beyond a limit is answered with status 503 over plain `ws`, without reading its
/// request. With TLS it is closed without an answer, since a TLS handshake would cost what the
/// limits save.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ListenerConfig {
    /// Maximum accepted connections that are not established, queued or in their handshake; more
    /// are refused. Default: 128, as for WebRTC. Answers floods.
    pub max_handshakes: usize,
    /// The same for one IPv4 address or IPv6 /56. Default: 32.
    pub max_handshakes_per_prefix: usize,
    /// Rate of connections from one IPv4 address or IPv6 /56. Default: 32 at once, then one every
    /// second. Answers hosts that connect all the time.
    pub connections: RateLimit,
    /// The same for one IPv6 /48. Default: 128 at once, then four every second.
    pub connections_of_site: RateLimit,
    /// Whether these limits also apply to loopback addresses. Default: no, for local proxies.
    pub limit_loopback: bool,
    /// Maximum open connections; more are refused. Default: 16 384.
    pub max_connections: usize,
    /// Trusted proxies, which report the addresses of clients. Default: `None`.
    pub proxies: Option<TrustedProxies>,
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            max_handshakes: 128,
            max_handshakes_per_prefix: 32,
            connections: RateLimit::new(Duration::from_secs(1), 32),
            connections_of_site: RateLimit::new(Duration::from_millis(250), 128),
            limit_loopback: false,
            max_connections: 16_384,
            proxies: None,
        }
    }
}

impl ListenerConfig {
    /// Checks that every setting is in its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the field that is not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (name, value) in [
            ("max_handshakes", self.max_handshakes),
            ("max_handshakes_per_prefix", self.max_handshakes_per_prefix),
            ("max_connections", self.max_connections),
        ] {
            ConfigError::require_range(name, value, 1..=usize::MAX)?;
        }
        Ok(())
    }
}
