//! Every limit of an endpoint, with the need or the attack it answers (docs/reliability.md).

use std::net::IpAddr;
use std::time::Duration;

use crate::connection::ConfigError;
use crate::rates::RateLimit;
use crate::webrtc::CarrierLimits;
use anabranch_rtc::{EngineFactory, MAX_ADDRESSES};

/// Sockets for one address; more than anybody has cores to spare for.
const MAX_SOCKETS: usize = 64;

/// Limits and settings of an endpoint.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EndpointConfig {
    /// How long a connection may take to be established, in either direction. Default: 10 s, as
    /// go-libp2p. Answers peers that fall silent in the handshake.
    pub connect_timeout: Duration,
    /// How long the webrtc-direct addresses of [`Endpoint::connect_any`](crate::Endpoint::connect_any) are tried
    /// before its WebSocket addresses too. Default: 300 ms: longer than a handshake to most places takes, and a
    /// user hardly notices it where UDP is blocked.
    pub websocket_head_start: Duration,
    /// Time between the attempts at two addresses of one kind there, so that one peer does not get all of them at once
    /// (RFC 8305 has 250 ms; these are few). Default: 100 ms.
    pub address_delay: Duration,
    /// First contacts and handshakes under way at once; more are dropped. Default: 128, as
    /// go-libp2p. Answers floods of first contacts. From half of them on, a peer has to show that
    /// its address is not forged, by answering a STUN check, before anything is kept of it.
    pub max_handshakes: usize,
    /// The same for one IPv4 address or IPv6 /56, with the same half for peers that have shown that their address is
    /// not forged. Default: 32. Answers single hosts that would take all of them.
    pub max_handshakes_per_prefix: usize,
    /// First contacts from one IPv4 address or IPv6 /56. A peer beyond it has to show that its address is
    /// not forged, and is then counted again, with those that have. Default: 32 at once, and then
    /// one each 5 s, as go-libp2p. Answers hosts that begin handshakes all the time.
    pub first_contacts: RateLimit,
    /// The same for one IPv6 /48, which a single customer may have. Default: 128 at once, and then
    /// four each 5 s.
    pub first_contacts_of_site: RateLimit,
    /// Whether loopback addresses have these limits too. Default: no: a program that talks to itself
    /// a lot, or a proxy in front of it, is no attacker.
    pub limit_loopback: bool,
    /// Addresses that one connection may be reached from; more are ignored, and none is forgotten for them.
    /// 1 to 32, the default, as go-libp2p. Answers peers that send from address after address.
    pub max_addresses: usize,
    /// Connections and attempts at once, in both directions. Beyond it first contacts are refused as by
    /// [`Incoming::refuse`](super::Incoming::refuse), and dials fail. Default: 16 384. Answers peers
    /// that connect and stay.
    pub max_connections: usize,
    /// How long nothing may come from the peer of a connection before it counts as dead: the connection then ends
    /// with [`ConnectionError::TimedOut`](crate::ConnectionError::TimedOut), and so does every substream. An
    /// idle peer is heard of every few seconds, by its ICE checks (RFC 7675), or by its answers to those that a
    /// listener sends after half of this time. Default: 15 s. More than
    /// 23 s has no effect on diallers, whose ICE gives up by then.
    pub silence_timeout: Duration,
    /// Records that may go in one direction of a connection with DTLS 1.2, after which it is closed in an orderly way, as
    /// [`ConnectionError::KeysUsedUp`](crate::ConnectionError::KeysUsedUp). Default: 2^26, which are 75 GB in full
    /// packets and 64 MiB in messages of one byte that are flushed one by one; at least one. The nonces of its AES-GCM are
    /// random here and in pion, 64 bits, and there is no rekeying: with 2^26 of them two are equal with odds of 2^-13,
    /// and from then on what they protected can be read. DTLS 1.3, which is preferred, counts them.
    pub max_dtls12_records: u64,
    /// Sockets for each address that is listened on, each with a task of its own, among which the
    /// system divides the peers (SO_REUSEPORT). 1, the default, to 64; more than one only helps listeners on
    /// machines with many cores that receive more than one of them can take. On systems without it,
    /// and in the simulator, there is always one.
    pub sockets: usize,
    /// Largest UDP payload to send, 576 to 1 500 bytes. Default: 1 200, which passes everywhere.
    pub mtu: usize,
    /// Largest UDP payload to send to this machine itself. Default: 1 450.
    pub loopback_mtu: usize,
    /// Most bytes of a connection that may be unacknowledged. How many are used follows the
    /// bandwidth-delay product of the path, as measured. Default: 8 MiB, 671 Mbit/s at 100 ms. The
    /// memory that SCTP holds for them, entries and what arrived behind a gap included, is at most
    /// a quarter more, and 1 MiB for control frames.
    pub max_in_flight: usize,
    /// Most bytes that a connection holds of channels that are not read, before their senders have
    /// to wait, in engines that hold back unread data. Default: 8 MiB, 671 Mbit/s at 100 ms.
    pub receive_buffer: usize,
    /// How long the peer may acknowledge nothing of what was sent, while its receive window is open, before the
    /// connection ends with [`ConnectionError::NoProgress`](crate::ConnectionError::NoProgress). Default: 30 s,
    /// a dozen retransmissions. Answers paths that let everything through but data, and peers whose SCTP has
    /// died while their ICE lives: `silence_timeout` notices neither. Looked at with each retransmission, so
    /// up to 3 s late. The direct engine only.
    pub progress_timeout: Duration,
    /// What makes the engines of connections: ICE, DTLS, SCTP and data channels. Default:
    /// `direct`, that of `anabranch-rtc`.
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
            max_in_flight: 8 * 1024 * 1024,
            receive_buffer: 8 * 1024 * 1024,
            progress_timeout: Duration::from_secs(30),
            engine: EngineFactory::default(),
        }
    }
}

impl EndpointConfig {
    /// Checks that the settings can work together.
    ///
    /// # Errors
    /// [`ConfigError`] names the field.
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
            // Beyond a day it is none, and this can be added to any time.
            silence_timeout: self.silence_timeout.min(Duration::from_secs(86_400)),
            max_dtls12_records: self.max_dtls12_records.max(1),
        }
    }

    pub(super) fn mtu_towards(&self, remote: IpAddr) -> usize {
        let mtu = if remote.is_loopback() {
            self.loopback_mtu
        } else {
            self.mtu
        };
        mtu.clamp(576, 1500)
    }
}
