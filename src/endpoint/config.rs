//! The limits of an endpoint, each with the need or the attack that it answers
//! (docs/reliability.md).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anabranch_rtc::{
    Certificate, CongestionControl, Engine, EngineFactory, MAX_ADDRESSES, Role, Setup,
};
use tokio::time::Instant;

use super::error::ConnectError;
use super::handshake::Phase;
use crate::connection::ConfigError;
use crate::rates::RateLimit;
use crate::webrtc::CarrierLimits;

/// Maximum of [`EndpointConfig::sockets`]: more cores than a program spares for receiving.
const MAX_SOCKETS: usize = 64;

/// Limits and settings of an endpoint.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EndpointConfig {
    /// Maximum duration of a handshake, in either direction. Default: 10 s, as in go-libp2p.
    /// Answers peers that fall silent in the handshake.
    pub connect_timeout: Duration,
    /// How long [`Endpoint::connect_any`](crate::Endpoint::connect_any) tries webrtc-direct
    /// addresses before it dials WebSocket addresses too. Default: 300 ms, longer than most
    /// handshakes take, and hardly noticed by a user where UDP is blocked.
    pub websocket_head_start: Duration,
    /// Delay between two addresses of one kind in
    /// [`Endpoint::connect_any`](crate::Endpoint::connect_any), so that a peer does not get all
    /// attempts at once. Default: 100 ms (RFC 8305 recommends 250 ms; these lists are short).
    pub address_delay: Duration,
    /// Maximum concurrent first contacts and inbound handshakes; more are dropped. Default: 128, as
    /// in go-libp2p. Answers floods of first contacts. From half of it on, a peer has to validate
    /// its address by answering a STUN check before any state is kept for it.
    pub max_handshakes: usize,
    /// The same for one IPv4 address or IPv6 /56, of which half is also reserved for validated
    /// addresses. Default: 32. Answers single hosts that would take all handshakes.
    pub max_handshakes_per_prefix: usize,
    /// Rate of first contacts from one IPv4 address or IPv6 /56. A peer beyond it has to validate
    /// its address, and is then counted against a second limit of the same rate, for validated
    /// addresses. Default: 32 at once, then one every 5 s, as in go-libp2p. Answers hosts that
    /// begin handshakes all the time.
    pub first_contacts: RateLimit,
    /// The same for one IPv6 /48, which a single customer may have. Default: 128 at once, then four
    /// every 5 s.
    pub first_contacts_of_site: RateLimit,
    /// Whether the limits of first contacts also apply to loopback addresses. Default: no: a
    /// program that dials itself often, or a local proxy, is no attacker.
    pub limit_loopback: bool,
    /// Maximum remote addresses of one connection; further ones are ignored, and none is evicted. 1
    /// to 32. Default: 32, as in go-libp2p. Answers peers that send from address after address.
    pub max_addresses: usize,
    /// Maximum connections and attempts at once, in both directions. Beyond it first contacts are
    /// refused as by [`Incoming::refuse`](super::Incoming::refuse), and dials fail. Default: 16
    /// 384. Answers peers that connect and stay.
    pub max_connections: usize,
    /// How long the peer may be silent before the connection and its substreams end with
    /// [`ConnectionError::TimedOut`](crate::ConnectionError::TimedOut). An idle peer still sends
    /// every few seconds: its ICE checks (RFC 7675), or its answers to those that a listener sends
    /// after half of this time. Default: 15 s. More than 23 s has no effect on diallers, whose ICE
    /// gives up by then.
    pub silence_timeout: Duration,
    /// Maximum records in one direction of a DTLS 1.2 connection, which is then closed in an
    /// orderly way with [`ConnectionError::KeysUsedUp`](crate::ConnectionError::KeysUsedUp). At
    /// least one. Default: 2^26, that is 75 GB in full packets, or 64 MiB in messages of one byte
    /// that are flushed one by one.
    ///
    /// DTLS 1.2 has no rekeying, and the explicit nonces of its AES-GCM are random here and in
    /// pion, 64 bits: of 2^26 nonces two are equal with a probability of 2^-13, which exposes what
    /// they protect. DTLS 1.3, which is preferred, uses a counter.
    pub max_dtls12_records: u64,
    /// Number of sockets for each listening address, each with a task of its own, among which the
    /// system distributes the peers (SO_REUSEPORT). 1 to 64. Default: 1. More only help listeners
    /// that receive more than one core can process. Systems without SO_REUSEPORT, and the
    /// simulator, always use one.
    pub sockets: usize,
    /// Maximum UDP payload to send on every path, in bytes; clamped to 576 to 1 500. Default:
    /// 1 200, which passes everywhere.
    pub mtu: usize,
    /// The same towards loopback addresses. Default: 1 450.
    pub loopback_mtu: usize,
    /// Maximum UDP payload to send where the path carries more, in bytes; at most 16 376 are used.
    /// Between two direct engines of this crate probes find that out once data flows (DPLPMTUD, RFC
    /// 8899), and a path that begins to carry less is noticed. Ethernet carries 1 472 over IPv4,
    /// jumbo frames 8 952. Default: 1 200, which means no probes: in a queue of a quarter of the
    /// bandwidth-delay product, longer packets may take two thirds from QUIC
    /// (`docs/congestion.md`).
    pub max_mtu: usize,
    /// The same towards loopback addresses. Default: 16 376.
    pub loopback_max_mtu: usize,
    /// Maximum unacknowledged bytes of a connection. How much of it is used follows the congestion
    /// window. Default: 8 MiB, which is 671 Mbit/s at 100 ms. The
    /// memory that SCTP holds for it, including bookkeeping and what arrived after a gap, is at
    /// most a quarter more, plus 1 MiB for control frames.
    pub max_in_flight: usize,
    /// Maximum unread bytes that a connection buffers before the senders have to wait, in engines
    /// with receive flow control. Default: 8 MiB, which is 671 Mbit/s at 100 ms.
    pub receive_buffer: usize,
    /// How long the peer may acknowledge nothing, while its receive window is open, before the
    /// connection ends with [`ConnectionError::NoProgress`](crate::ConnectionError::NoProgress).
    /// Default: 30 s, a dozen retransmissions. Answers paths that drop data only, and peers whose
    /// SCTP has died while their ICE lives: `silence_timeout` detects neither. Checked with each
    /// retransmission, so up to 3 s late. Only the direct engine supports it.
    pub progress_timeout: Duration,
    /// The congestion controller. Default: `Heed`, which is fair to others that react to loss,
    /// ignores losses that are no sign of congestion and keeps the queue short. `Cubic` takes every
    /// loss for congestion (RFC 9438). Only the direct engine lets it be chosen.
    pub congestion: CongestionControl,
    /// Whether to use explicit congestion notification (ECN, RFC 3168): a router with a full queue
    /// can then mark a packet where it would have dropped it, and the sender slows down without a
    /// retransmission. Default: yes. It is used between two direct engines of this crate that both
    /// want it, and as long as the path delivers the marks, which is validated as in QUIC (RFC 9000
    /// section 13.4.2).
    pub ecn: bool,
    /// Creates the engine of each connection: ICE, DTLS, SCTP and data channels. Default: `direct`,
    /// the engine of `anabranch-rtc`.
    pub engine: EngineFactory,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            websocket_head_start: Duration::from_millis(300),
            address_delay: Duration::from_millis(100),
            max_handshakes: 128,
            max_handshakes_per_prefix: 32,
            first_contacts: RateLimit::new(Duration::from_secs(5), 32),
            first_contacts_of_site: RateLimit::new(Duration::from_millis(1250), 128),
            limit_loopback: false,
            max_addresses: MAX_ADDRESSES,
            max_connections: 16_384,
            silence_timeout: Duration::from_secs(15),
            max_dtls12_records: 1 << 26,
            sockets: 1,
            mtu: 1200,
            loopback_mtu: 1450,
            max_mtu: 1200,
            loopback_max_mtu: 16_376,
            max_in_flight: 8 * 1024 * 1024,
            receive_buffer: 8 * 1024 * 1024,
            progress_timeout: Duration::from_secs(30),
            congestion: CongestionControl::Heed,
            ecn: true,
            engine: EngineFactory::default(),
        }
    }
}

impl EndpointConfig {
    /// Checks that every setting is in its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the field that is not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::require_time("connect_timeout", self.connect_timeout)?;
        ConfigError::require_time("silence_timeout", self.silence_timeout)?;
        ConfigError::require_time("progress_timeout", self.progress_timeout)?;
        for (name, value, max) in [
            ("max_handshakes", self.max_handshakes, usize::MAX),
            (
                "max_handshakes_per_prefix",
                self.max_handshakes_per_prefix,
                usize::MAX,
            ),
            ("max_addresses", self.max_addresses, MAX_ADDRESSES),
            ("max_connections", self.max_connections, usize::MAX),
            ("sockets", self.sockets, MAX_SOCKETS),
        ] {
            ConfigError::require_range(name, value, 1..=max)?;
        }
        Ok(())
    }

    pub(crate) fn carrier_limits(&self) -> CarrierLimits {
        CarrierLimits {
            max_in_flight: self.max_in_flight,
            // Capped at a day, so that adding it to an instant can not overflow.
            silence_timeout: self.silence_timeout.min(Duration::from_secs(86_400)),
            max_dtls12_records: self.max_dtls12_records.max(1),
        }
    }

    /// Makes the engine of one connection, with these limits.
    pub(super) fn make_engine(&self, peers: EnginePeers) -> Result<Box<dyn Engine>, ConnectError> {
        let setup = Setup {
            role: peers.role,
            certificate: peers.certificate,
            local: peers.local,
            remote: (peers.role == Role::Client).then_some(peers.remote),
            local_credentials: peers.local_credentials,
            remote_credentials: peers.remote_credentials,
            mtu: self.mtu_towards(peers.remote.ip()),
            max_mtu: match peers.remote.ip().is_loopback() {
                true => self.loopback_max_mtu,
                false => self.max_mtu,
            },
            max_in_flight: self.max_in_flight,
            receive_buffer: self.receive_buffer,
            progress_timeout: self.progress_timeout,
            congestion: self.congestion,
            ecn: self.ecn,
        };
        let engine = self.engine.make(setup, Instant::now().into_std());
        engine.map_err(|cause| ConnectError::Ended {
            phase: Phase::Ice,
            cause: cause.into(),
        })
    }

    fn mtu_towards(&self, remote: IpAddr) -> usize {
        let mtu = if remote.is_loopback() {
            self.loopback_mtu
        } else {
            self.mtu
        };
        mtu.clamp(576, 1500)
    }
}

/// The part of an engine's [`Setup`] that differs between the connections of an endpoint.
pub(super) struct EnginePeers {
    pub(super) role: Role,
    pub(super) certificate: Certificate,
    pub(super) local: SocketAddr,
    /// The dialled address, or the source of the first contact.
    pub(super) remote: SocketAddr,
    /// ufrag and password of this side.
    pub(super) local_credentials: (String, String),
    /// ufrag and password of the peer.
    pub(super) remote_credentials: (String, String),
}
