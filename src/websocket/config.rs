//! Every limit of a WebSocket connection, with the need or the attack it answers (docs/reliability.md).

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
    /// How long opening a connection may take, in either direction: TCP, TLS, HTTP and Noise together. Default:
    /// 10 s, as for WebRTC. Answers peers that fall silent in between.
    pub handshake_timeout: Duration,
    /// After how long without a byte from the peer it is pinged. Default: 15 s. Keeps middleboxes from
    /// forgetting the connection.
    pub ping_interval: Duration,
    /// How long no byte may come from the peer before the connection ends with
    /// [`ConnectionError::TimedOut`](crate::ConnectionError::TimedOut). Any byte counts, also of a message
    /// that is not complete. Default: 30 s; it has to be longer than [`Self::ping_interval`].
    pub idle_timeout: Duration,
    /// How long the peer may take to answer a close frame. Default: 1 s.
    pub close_timeout: Duration,
    /// Longest message, and longest frame of one, that is accepted, in bytes; a longer one is refused by its header.
    /// Default: 1 MiB. At least 16 KiB. Answers peers that make this side allocate. A server takes 4 KiB until Noise
    /// has succeeded, and reads nothing behind the message that it waits for.
    pub max_message: usize,
    /// What is queued for the socket is sent as one message, up to this many bytes. Default: 64 KiB, 16 KiB to
    /// 1 MiB. More delays what is urgent behind what is long; the peer has to accept as much.
    pub batch: usize,
    /// Bytes of flags, credit and answers that may wait for a peer that does not read. Default: 256 KiB. From then on
    /// substreams wait with them, and at four times as much the connection ends with
    /// [`WebSocketError::NotReading`](super::WebSocketError::NotReading). Answers peers that ask and never read.
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
    /// Checks that the settings can work together.
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

/// What Noise is bound to, so that nobody in the middle can pass it on.
///
/// Both sides have to be set to the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ChannelBinding {
    /// To nothing: the only choice without TLS, or where something in front of the server ends the TLS. Noise
    /// then proves who the peers are, but not that nobody sits between them.
    #[default]
    None,
    /// To the keys of this TLS session (RFC 9266): who is in the middle has other keys towards each side, and
    /// the handshake fails. For servers that end the TLS themselves.
    TlsExporter,
}

/// How the peers of a connection prove who they are. Both sides have to be set to the same; the subprotocol
/// of the upgrade tells them apart, so that a mismatch is an error of the upgrade.
// There is one in a configuration: its size is no matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Authentication {
    /// Noise with libp2p identities, as over WebRTC: both sides know the
    /// [`PeerId`](crate::PeerId) of the other.
    ///
    /// The keys of Noise protect nothing after that: what is carried is as secret and as unchanged as the
    /// WebSocket is. Over plain `ws://` anybody on the path reads and changes it.
    Noise {
        /// Who this side is.
        identity: Identity,
        /// What the proof is bound to.
        binding: ChannelBinding,
    },
    /// The client knows the server by its TLS certificate; the client is anybody. A client set to this dials
    /// `wss://` only. A server may have the TLS ended in front of it.
    Tls,
    /// Nobody proves anything. For tests, for sockets that are trusted for another reason, and for
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

    /// The subprotocol that stands for it in the upgrade.
    pub fn subprotocol(&self) -> &'static str {
        match self {
            Self::Noise { .. } => super::SUBPROTOCOL_NOISE,
            Self::Tls | Self::DangerNone => super::SUBPROTOCOL,
        }
    }
}

/// How a connection is dialled.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    /// How the peers prove who they are.
    pub authentication: Authentication,
    /// Which TLS certificates are trusted, for `wss://`.
    pub trust: TlsTrust,
    /// Headers added to the request of the upgrade, for servers that want a token or a cookie.
    pub headers: Vec<(String, String)>,
    /// Limits of the WebSocket.
    pub websocket: WebSocketConfig,
    /// Limits of the connection and its substreams.
    pub connection: Arc<Config>,
}

impl ClientConfig {
    /// Defaults, with this authentication.
    pub fn new(authentication: Authentication) -> Self {
        Self {
            authentication,
            trust: TlsTrust::default(),
            headers: Vec::new(),
            websocket: WebSocketConfig::default(),
            connection: Arc::new(Config::default()),
        }
    }
}

/// How connections are accepted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerConfig {
    /// How the peers prove who they are.
    pub authentication: Authentication,
    /// Certificate and key for TLS; `None` for plain `ws://`. Not used by
    /// [`accept_upgraded`](super::accept_upgraded), whose HTTP server has its own.
    pub tls: Option<TlsIdentity>,
    /// Which requests are upgraded. Default: pages of foreign origins are refused where no Noise protects.
    pub requests: RequestPolicy,
    /// Limits of the WebSocket.
    pub websocket: WebSocketConfig,
    /// Limits of the connection and its substreams.
    pub connection: Arc<Config>,
}

impl ServerConfig {
    /// Defaults, with this authentication.
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
/// Who is refused for one of them gets status 503 over plain `ws`, without its request being read; where the listener
/// ends TLS it is closed without an answer, since a handshake for it would cost what the limits save.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ListenerConfig {
    /// Connections that are accepted from the socket and not open yet, waiting or in their handshake; more are
    /// refused. Default: 128, as for WebRTC. Answers floods.
    pub max_handshakes: usize,
    /// The same for one IPv4 address or IPv6 /56. Default: 32.
    pub max_handshakes_per_prefix: usize,
    /// New connections from one IPv4 address or IPv6 /56. Default: 32 at once, and then one each second. Answers
    /// hosts that connect all the time.
    pub connections: RateLimit,
    /// The same for one IPv6 /48. Default: 128 at once, and then four each second.
    pub connections_of_site: RateLimit,
    /// Whether loopback addresses have these limits too. Default: no, for proxies on this machine.
    pub limit_loopback: bool,
    /// Connections at once; more are refused. Default: 16 384.
    pub max_connections: usize,
    /// Proxies in front of the listener, which say where a client is. Default: `None`, nobody is believed.
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
    /// Checks that the settings can work together.
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
