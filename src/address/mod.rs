//! The addresses of listeners, as multiaddrs.
//!
//! ```text
//! Address           /ip4|ip6/<ip>/udp/<port>/webrtc-direct
//!                       [/certhash/<multihash>]...[/p2p/<peer id>]
//! WebSocketAddress  /ip4|ip6|dns|dns4|dns6/<host>/tcp/<port>/ws|wss|tls/ws
//!                       [/p2p/<peer id>]
//! ```
//!
//! They are parsed here and not by a general multiaddr parser: only these forms are supported,
//! errors can name the invalid component, and untrusted input reaches less code.

mod peer;
mod websocket;

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::str::FromStr;
use std::str::Split;

use thiserror::Error;

use crate::certificate::Fingerprint;
use crate::certificate::FingerprintError;
use crate::identity::PeerId;
use crate::identity::PeerIdError;

pub use peer::PeerAddress;
pub use websocket::{Host, WebSocketAddress};

/// Maximum length of a text that is parsed as an address, in bytes.
///
/// Addresses come from untrusted peers (discovery, identify). The longest useful one has a few
/// certhashes of about 60 characters each.
pub const MAX_ADDRESS_LEN: usize = 1024;

/// Protocols of the multiaddr table that are not supported here. Their error differs from that of a
/// misspelled protocol.
const KNOWN_PROTOCOLS: &[&str] = &[
    "dccp",
    "dns",
    "dns4",
    "dns6",
    "dnsaddr",
    "http",
    "http-path",
    "https",
    "ip4",
    "ip6",
    "ip6zone",
    "ipcidr",
    "memory",
    "noise",
    "onion",
    "onion3",
    "p2p-circuit",
    "p2p-webrtc-direct",
    "p2p-webrtc-star",
    "quic",
    "quic-v1",
    "sctp",
    "sni",
    "tcp",
    "tls",
    "udp",
    "udt",
    "unix",
    "utp",
    "webrtc",
    "webrtc-direct",
    "webtransport",
    "ws",
    "wss",
];

/// The address of a webrtc-direct listener.
///
/// An address to dial needs a certhash, which authenticates the listener. An address to listen on
/// has none, since the endpoint has its certificate.
///
/// ```
/// use anabranch::address::Address;
///
/// let address: Address = "/ip4/192.0.2.7/udp/4001/webrtc-direct\
///     /certhash/uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g".parse()?;
/// assert_eq!(address.socket_addr(), "192.0.2.7:4001".parse()?);
/// assert!(address.certhash().is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Address {
    socket_addr: SocketAddr,
    certhashes: Vec<Fingerprint>,
    peer_id: Option<PeerId>,
}

impl Address {
    /// The address of a socket, without certhash and peer id.
    ///
    /// The scope of a link-local IPv6 address is dropped: it has a meaning on this machine only,
    /// and the notation has no place for it.
    pub fn new(socket_addr: SocketAddr) -> Self {
        Self {
            socket_addr: SocketAddr::new(socket_addr.ip(), socket_addr.port()),
            certhashes: Vec::new(),
            peer_id: None,
        }
    }

    /// Adds the hash of a certificate that the listener may use.
    #[must_use]
    pub fn with_certhash(mut self, certhash: Fingerprint) -> Self {
        self.certhashes.push(certhash);
        self
    }

    /// Sets the id of the listening peer.
    #[must_use]
    pub fn with_peer_id(mut self, peer_id: PeerId) -> Self {
        self.peer_id = Some(peer_id);
        self
    }

    /// The address to send datagrams to, or to listen on.
    pub fn socket_addr(&self) -> SocketAddr {
        self.socket_addr
    }

    /// The first certhash.
    pub fn certhash(&self) -> Option<Fingerprint> {
        self.certhashes.first().copied()
    }

    /// All certhashes. The listener uses one of these certificates.
    pub fn certhashes(&self) -> &[Fingerprint] {
        &self.certhashes
    }

    /// The id of the listening peer, if the address has one.
    pub fn peer_id(&self) -> Option<PeerId> {
        self.peer_id
    }
}

impl From<SocketAddr> for Address {
    /// [`Address::new`].
    fn from(socket_addr: SocketAddr) -> Self {
        Self::new(socket_addr)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.socket_addr.ip() {
            IpAddr::V4(ip) => write!(f, "/ip4/{ip}")?,
            IpAddr::V6(ip) => write!(f, "/ip6/{ip}")?,
        }
        write!(f, "/udp/{}/webrtc-direct", self.socket_addr.port())?;
        for certhash in &self.certhashes {
            write!(f, "/certhash/{}", certhash.to_certhash())?;
        }
        if let Some(peer_id) = &self.peer_id {
            write!(f, "/p2p/{peer_id}")?;
        }
        Ok(())
    }
}

#[cfg(feature = "serde")]
crate::identity::serialize_as_text!(Address, "a webrtc-direct multiaddr");

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = components(text)?;

        let ip = match parts.next() {
            Some("ip4") => IpAddr::V4(value::<Ipv4Addr>(&mut parts, Component::Ip)?),
            Some("ip6") => IpAddr::V6(value::<Ipv6Addr>(&mut parts, Component::Ip)?),
            other => return Err(misplaced(other, Component::Ip)),
        };
        let port = match parts.next() {
            Some("udp") => value::<Port>(&mut parts, Component::Udp)?.0,
            other => return Err(misplaced(other, Component::Udp)),
        };
        match parts.next() {
            Some("webrtc-direct") => {}
            other => return Err(misplaced(other, Component::WebRtcDirect)),
        }

        let mut address = Self::new(SocketAddr::new(ip, port));
        while let Some(protocol) = parts.next() {
            match protocol {
                "certhash" if address.peer_id.is_none() => {
                    let text = parts
                        .next()
                        .ok_or(AddressError::Missing(Component::Certhash))?;
                    let certhash =
                        Fingerprint::from_certhash(text).map_err(AddressError::Certhash)?;
                    address.certhashes.push(certhash);
                }
                // "ipfs" is the old name of the component, which go, js and rust still accept.
                "p2p" | "ipfs" if address.peer_id.is_none() => {
                    address.peer_id = Some(peer_id(&mut parts)?);
                }
                "certhash" | "p2p" | "ipfs" => {
                    return Err(AddressError::Unexpected(protocol.to_owned()));
                }
                other => return Err(extra(other)),
            }
        }
        Ok(address)
    }
}

/// A component of an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Component {
    /// `ip4` or `ip6` with the address.
    Ip,
    /// `udp` with the port.
    Udp,
    /// `webrtc-direct`.
    WebRtcDirect,
    /// `certhash` with the hash of the certificate.
    Certhash,
    /// `p2p` with the peer id.
    P2p,
    /// `ip4`, `ip6`, `dns`, `dns4` or `dns6` with the host.
    Host,
    /// `tcp` with the port.
    Tcp,
    /// `ws`, `wss` or `tls/ws`.
    WebSocket,
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip4 or ip6",
            Self::Udp => "udp",
            Self::WebRtcDirect => "webrtc-direct",
            Self::Certhash => "certhash",
            Self::P2p => "p2p",
            Self::Host => "ip4, ip6 or dns",
            Self::Tcp => "tcp",
            Self::WebSocket => "ws or wss",
        })
    }
}

/// Why a text is not an address.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum AddressError {
    /// The certhash can not be parsed, or is not SHA2-256.
    #[error("the certhash is invalid")]
    Certhash(#[source] FingerprintError),
    /// The value of the host or port component can not be parsed.
    #[error("the {component} component has the invalid value {value:?}")]
    InvalidValue {
        /// The component.
        component: Component,
        /// The value.
        value: String,
    },
    /// The address ends before this component, or before its value.
    #[error("the {0} component or its value is missing")]
    Missing(Component),
    /// A multiaddr begins with a slash.
    #[error("a multiaddr begins with a slash")]
    NotAMultiaddr,
    /// The peer id can not be parsed.
    #[error("the peer id is invalid")]
    PeerId(#[source] PeerIdError),
    /// The text is longer than [`MAX_ADDRESS_LEN`].
    #[error("an address of {0} bytes is longer than 1024")]
    TooLong(usize),
    /// A component that is not valid at this position.
    #[error("unexpected component {0:?}")]
    Unexpected(String),
    /// A component that exists in multiaddrs, but is not supported at this position.
    #[error("protocol {0:?} is not supported here")]
    Unsupported(String),
}

/// A decimal port. `u16` alone would accept a plus sign, which other parsers reject.
struct Port(u16);

impl FromStr for Port {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(());
        }
        text.parse().map(Self).map_err(|_| ())
    }
}

/// The parts of a multiaddr between its slashes.
fn components(text: &str) -> Result<Split<'_, char>, AddressError> {
    if text.len() > MAX_ADDRESS_LEN {
        return Err(AddressError::TooLong(text.len()));
    }
    let text = text.strip_prefix('/').ok_or(AddressError::NotAMultiaddr)?;
    Ok(text.split('/'))
}

/// The value of a `p2p` component, which is the next part.
fn peer_id(parts: &mut Split<'_, char>) -> Result<PeerId, AddressError> {
    let text = parts.next().ok_or(AddressError::Missing(Component::P2p))?;
    text.parse().map_err(AddressError::PeerId)
}

/// The value of a component, which is the next part.
fn value<T: FromStr>(parts: &mut Split<'_, char>, component: Component) -> Result<T, AddressError> {
    let text = parts.next().ok_or(AddressError::Missing(component))?;
    text.parse().map_err(|_| AddressError::InvalidValue {
        component,
        value: text.to_owned(),
    })
}

/// The error for `found` in place of `wanted`.
fn misplaced(found: Option<&str>, wanted: Component) -> AddressError {
    match found {
        None | Some("") => AddressError::Missing(wanted),
        Some(protocol) => extra(protocol),
    }
}

fn extra(protocol: &str) -> AddressError {
    if KNOWN_PROTOCOLS.contains(&protocol) {
        AddressError::Unsupported(protocol.to_owned())
    } else {
        AddressError::Unexpected(protocol.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::Identity;

    const HASH: &str = "uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g";
    const PEER: &str = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5";

    fn parse(text: &str) -> Result<Address, AddressError> {
        text.parse()
    }

    #[test]
    fn full_address() {
        let text = format!("/ip4/192.0.2.7/udp/4001/webrtc-direct/certhash/{HASH}/p2p/{PEER}");
        let address = parse(&text).unwrap();
        assert_eq!(address.socket_addr(), "192.0.2.7:4001".parse().unwrap());
        assert_eq!(address.certhash().unwrap().to_certhash(), HASH);
        assert_eq!(address.peer_id().unwrap().to_string(), PEER);
        assert_eq!(address.to_string(), text);
    }

    #[test]
    fn listen_address() {
        let address = parse("/ip6/::/udp/0/webrtc-direct").unwrap();
        assert_eq!(address, Address::new("[::]:0".parse().unwrap()));
        assert_eq!(address.certhash(), None);
        assert_eq!(address.peer_id(), None);
        assert_eq!(address.to_string(), "/ip6/::/udp/0/webrtc-direct");
    }

    #[test]
    fn several_certhashes_are_kept_in_order() {
        let other = Fingerprint::from_bytes([9; 32]);
        let text = format!(
            "/ip4/192.0.2.7/udp/1/webrtc-direct/certhash/{HASH}/certhash/{}/p2p/{PEER}",
            other.to_certhash()
        );
        let address = parse(&text).unwrap();
        assert_eq!(address.certhashes(), [HASH.parse().unwrap(), other]);
        assert_eq!(address.certhash(), Some(HASH.parse().unwrap()));
        assert_eq!(address.to_string(), text);
    }

    #[test]
    fn scope_of_a_link_local_address_is_dropped() {
        let scoped = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 4001, 7, 3);
        let address = Address::new(scoped.into());
        assert_eq!(parse(&address.to_string()), Ok(address));
    }

    #[test]
    fn old_name_of_the_peer_id() {
        let address = parse(&format!("/ip4/1.2.3.4/udp/1/webrtc-direct/ipfs/{PEER}")).unwrap();
        assert_eq!(address.peer_id(), Some(PEER.parse().unwrap()));
    }

    #[test]
    fn wrong_components_are_named() {
        use AddressError::*;
        let unsupported = |name: &str| Unsupported(name.to_owned());
        let unexpected = |name: &str| Unexpected(name.to_owned());
        let invalid = |component, value: &str| InvalidValue {
            component,
            value: value.to_owned(),
        };
        let base = "/ip4/1.2.3.4/udp/1/webrtc-direct";
        for (text, error) in [
            (String::new(), NotAMultiaddr),
            ("1.2.3.4:4001".into(), NotAMultiaddr),
            ("ip4/1.2.3.4".into(), NotAMultiaddr),
            ("/".into(), Missing(Component::Ip)),
            ("/ip4".into(), Missing(Component::Ip)),
            ("/ip4/".into(), invalid(Component::Ip, "")),
            ("/ip4/::1/udp/1".into(), invalid(Component::Ip, "::1")),
            (
                "/ip6/1.2.3.4/udp/1".into(),
                invalid(Component::Ip, "1.2.3.4"),
            ),
            (
                "/ip6/fe80::1%eth0".into(),
                invalid(Component::Ip, "fe80::1%eth0"),
            ),
            ("/ip6zone/eth0/ip6/fe80::1".into(), unsupported("ip6zone")),
            ("/dns4/example.org/udp/1".into(), unsupported("dns4")),
            ("/dnsaddr/example.org".into(), unsupported("dnsaddr")),
            ("/ip4/1.2.3.4".into(), Missing(Component::Udp)),
            ("/ip4/1.2.3.4/".into(), Missing(Component::Udp)),
            ("/ip4/1.2.3.4/udp".into(), Missing(Component::Udp)),
            ("/ip4/1.2.3.4/tcp/1".into(), unsupported("tcp")),
            (
                "/ip4/1.2.3.4/udp/65536".into(),
                invalid(Component::Udp, "65536"),
            ),
            ("/ip4/1.2.3.4/udp/+1".into(), invalid(Component::Udp, "+1")),
            ("/ip4/1.2.3.4/udp/-1".into(), invalid(Component::Udp, "-1")),
            ("/ip4/1.2.3.4/udp//".into(), invalid(Component::Udp, "")),
            (
                "/ip4/1.2.3.4/udp/1".into(),
                Missing(Component::WebRtcDirect),
            ),
            ("/ip4/1.2.3.4/udp/1/quic-v1".into(), unsupported("quic-v1")),
            ("/ip4/1.2.3.4/udp/1/webrtc".into(), unsupported("webrtc")),
            (
                "/ip4/1.2.3.4/udp/1/webrtc-direkt".into(),
                unexpected("webrtc-direkt"),
            ),
            (format!("{base}/"), unexpected("")),
            (format!("{base}/ws"), unsupported("ws")),
            (
                format!("{base}/webrtc-direct"),
                unsupported("webrtc-direct"),
            ),
            (format!("{base}/nonsense"), unexpected("nonsense")),
            (format!("{base}/certhash"), Missing(Component::Certhash)),
            (format!("{base}/p2p"), Missing(Component::P2p)),
            (
                format!("{base}/certhash/{HASH}/p2p"),
                Missing(Component::P2p),
            ),
            (format!("{base}/p2p/{PEER}/p2p/{PEER}"), unexpected("p2p")),
            (
                format!("{base}/p2p/{PEER}/certhash/{HASH}"),
                unexpected("certhash"),
            ),
            (
                format!("{base}/p2p/{PEER}/p2p-circuit"),
                unsupported("p2p-circuit"),
            ),
            (
                format!("{base}/certhash/{HASH}x/p2p"),
                Certhash(FingerprintError::InvalidMultibase),
            ),
            (
                format!("{base}/certhash/"),
                Certhash(FingerprintError::InvalidMultibase),
            ),
            // SHA2-512, and SHA2-256 cut to 16 bytes.
            (
                format!("{base}/certhash/f1340{}", "00".repeat(64)),
                Certhash(FingerprintError::UnsupportedHash(0x13)),
            ),
            (
                format!("{base}/certhash/f1210{}", "00".repeat(16)),
                Certhash(FingerprintError::DigestLength(16)),
            ),
            (format!("{base}/p2p/0OIl"), PeerId(PeerIdError::InvalidText)),
            (format!("/{}", "a".repeat(1024)), TooLong(1025)),
        ] {
            assert_eq!(parse(&text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let error = parse("/dns4/example.org/udp/1/webrtc-direct").unwrap_err();
        assert_eq!(error.to_string(), "protocol \"dns4\" is not supported here");
        let error = parse("/ip4/1.2.3.4/udp/http").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the udp component has the invalid value \"http\""
        );
    }

    proptest! {
        #![proptest_config(crate::random::cases(256))]

        #[test]
        fn addresses_round_trip(
            ip: IpAddr,
            port: u16,
            certhashes: [[u8; 32]; 3],
            count in 0..4_usize,
            seed: Option<[u8; 32]>,
        ) {
            let mut address = Address::new(SocketAddr::new(ip, port));
            for digest in certhashes.into_iter().take(count) {
                address = address.with_certhash(Fingerprint::from_bytes(digest));
            }
            if let Some(seed) = seed {
                address = address.with_peer_id(Identity::from_ed25519_seed(seed).peer_id());
            }
            prop_assert_eq!(parse(&address.to_string()), Ok(address));
        }

        #[test]
        fn hostile_text_never_panics(text in "\\PC{0,2000}") {
            let _ = parse(&text);
        }

        #[test]
        fn hostile_components_never_panic(
            tail in "(/(certhash|p2p|ipfs|ip6zone|udp|)(/[a-zA-Z0-9=_:%\u{0}\u{e9}-]{0,80})?){0,6}",
        ) {
            let _ = parse(&tail);
            let _ = parse(&format!("/ip6/::1/udp/1/webrtc-direct{tail}"));
        }
    }
}
