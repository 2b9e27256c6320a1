//! The addresses of WebSocket listeners, as multiaddrs and as URLs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::{
    AddressError, Component, MAX_ADDRESS_LEN, Port, components, extra, misplaced, peer_id, value,
};
use crate::identity::PeerId;

/// The host of a listener.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Host {
    /// An IP address.
    Ip(IpAddr),
    /// A name, resolved to addresses of any family.
    Dns(String),
    /// A name, resolved to IPv4 addresses.
    Dns4(String),
    /// A name, resolved to IPv6 addresses.
    Dns6(String),
}

impl Host {
    /// The address or name, as written in a URL.
    pub(crate) fn in_url(&self) -> String {
        match self {
            Self::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
            Self::Ip(ip) => ip.to_string(),
            Self::Dns(name) | Self::Dns4(name) | Self::Dns6(name) => name.clone(),
        }
    }
}

/// The address of a WebSocket listener.
///
/// ```
/// use anabranch::address::WebSocketAddress;
///
/// let address: WebSocketAddress = "/dns4/example.org/tcp/443/wss".parse()?;
/// assert!(address.is_tls());
/// assert_eq!(address.url(), "wss://example.org:443/");
/// assert_eq!(WebSocketAddress::from_url("wss://example.org/")?.url(), address.url());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct WebSocketAddress {
    host: Host,
    port: u16,
    tls: bool,
    /// Path and query, which a multiaddr can not have.
    path: String,
    peer_id: Option<PeerId>,
}

impl WebSocketAddress {
    /// The address of a listener on a socket address, `wss` with TLS and `ws` without.
    pub fn new(socket_addr: SocketAddr, tls: bool) -> Self {
        Self {
            host: Host::Ip(socket_addr.ip()),
            port: socket_addr.port(),
            tls,
            path: "/".to_owned(),
            peer_id: None,
        }
    }

    /// Parses a `ws://` or `wss://` URL. The default port is 80 or 443.
    ///
    /// # Errors
    /// [`AddressError`] if it is invalid, or has user information or a fragment.
    pub fn from_url(url: &str) -> Result<Self, AddressError> {
        if url.len() > MAX_ADDRESS_LEN {
            return Err(AddressError::TooLong(url.len()));
        }
        let invalid = |component, value: &str| AddressError::InvalidValue {
            component,
            value: value.to_owned(),
        };
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| invalid(Component::WebSocket, url))?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "ws" => false,
            "wss" => true,
            _ => return Err(invalid(Component::WebSocket, scheme)),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let visible = |c: char| c.is_ascii_graphic() && c != '#';
        if !path.chars().all(visible) {
            return Err(invalid(Component::WebSocket, path));
        }
        // The last colon begins the port, unless it is within the brackets of an IPv6 address.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let port: Port = port.parse().map_err(|()| invalid(Component::Tcp, port))?;
                (host, port.0)
            }
            _ => (authority, if tls { 443 } else { 80 }),
        };
        let host = match host.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')) {
            Some(ip) => ip.parse::<Ipv6Addr>().ok().map(|ip| Host::Ip(ip.into())),
            None => match host.parse::<Ipv4Addr>() {
                Ok(ip) => Some(Host::Ip(ip.into())),
                Err(_) => is_name(host).then(|| Host::Dns(host.to_owned())),
            },
        };
        let path = match path {
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        Ok(Self {
            host: host.ok_or_else(|| invalid(Component::Host, authority))?,
            port,
            tls,
            path,
            peer_id: None,
        })
    }

    /// Sets the id of the listening peer.
    #[must_use]
    pub fn with_peer_id(mut self, peer_id: PeerId) -> Self {
        self.peer_id = Some(peer_id);
        self
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is `wss`.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The id of the listening peer, if the address has one.
    pub fn peer_id(&self) -> Option<PeerId> {
        self.peer_id
    }

    /// Whether a multiaddr has all of it: that has no path.
    #[cfg(feature = "serde")]
    pub(super) fn is_multiaddr(&self) -> bool {
        self.path == "/"
    }

    /// The URL, with its port and path.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "wss" } else { "ws" };
        let host = self.host.in_url();
        format!("{scheme}://{host}:{}{}", self.port, self.path)
    }
}

impl fmt::Display for WebSocketAddress {
    /// Writes the multiaddr, without the path of an address from a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V4(ip)) => write!(f, "/ip4/{ip}")?,
            Host::Ip(IpAddr::V6(ip)) => write!(f, "/ip6/{ip}")?,
            Host::Dns(name) => write!(f, "/dns/{name}")?,
            Host::Dns4(name) => write!(f, "/dns4/{name}")?,
            Host::Dns6(name) => write!(f, "/dns6/{name}")?,
        }
        write!(f, "/tcp/{}", self.port)?;
        f.write_str(if self.tls { "/wss" } else { "/ws" })?;
        if let Some(peer_id) = &self.peer_id {
            write!(f, "/p2p/{peer_id}")?;
        }
        Ok(())
    }
}

#[cfg(feature = "serde")]
crate::identity::serialize_as_text!(WebSocketAddress, "a multiaddr", Self::is_multiaddr);

impl FromStr for WebSocketAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = components(text)?;
        let host = match parts.next() {
            Some("ip4") => Host::Ip(value::<Ipv4Addr>(&mut parts, Component::Host)?.into()),
            Some("ip6") => Host::Ip(value::<Ipv6Addr>(&mut parts, Component::Host)?.into()),
            Some("dns") => Host::Dns(value::<Name>(&mut parts, Component::Host)?.0),
            Some("dns4") => Host::Dns4(value::<Name>(&mut parts, Component::Host)?.0),
            Some("dns6") => Host::Dns6(value::<Name>(&mut parts, Component::Host)?.0),
            other => return Err(misplaced(other, Component::Host)),
        };
        let port = match parts.next() {
            Some("tcp") => value::<Port>(&mut parts, Component::Tcp)?.0,
            other => return Err(misplaced(other, Component::Tcp)),
        };
        let tls = match parts.next() {
            Some("ws") => false,
            Some("wss") => true,
            Some("tls") => match parts.next() {
                Some("ws") => true,
                other => return Err(misplaced(other, Component::WebSocket)),
            },
            other => return Err(misplaced(other, Component::WebSocket)),
        };
        let peer_id = match parts.next() {
            None => None,
            Some("p2p" | "ipfs") => Some(peer_id(&mut parts)?),
            Some(other) => return Err(extra(other)),
        };
        if let Some(other) = parts.next() {
            return Err(extra(other));
        }
        Ok(Self {
            host,
            port,
            tls,
            path: "/".to_owned(),
            peer_id,
        })
    }
}

/// A host name: letters, digits, hyphens, underscores and dots, which need no escaping in a URL.
struct Name(String);

impl FromStr for Name {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        is_name(text).then(|| Self(text.to_owned())).ok_or(())
    }
}

fn is_name(text: &str) -> bool {
    let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=253).contains(&text.len()) && text.chars().all(of_name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::PeerAddress;
    use super::*;

    const PEER: &str = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5";

    fn parse(text: &str) -> Result<WebSocketAddress, AddressError> {
        text.parse()
    }

    #[test]
    fn all_forms_are_read_and_written() {
        for (text, url) in [
            ("/ip4/192.0.2.7/tcp/80/ws", "ws://192.0.2.7:80/"),
            ("/ip6/2001:db8::1/tcp/443/wss", "wss://[2001:db8::1]:443/"),
            ("/dns/example.org/tcp/1/wss", "wss://example.org:1/"),
            ("/dns4/example.org/tcp/1/ws", "ws://example.org:1/"),
            ("/dns6/a-b.c/tcp/65535/ws", "ws://a-b.c:65535/"),
        ] {
            let address = parse(text).unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(address.url(), url);
            let with_peer = format!("{text}/p2p/{PEER}");
            let address = parse(&with_peer).unwrap();
            assert_eq!(address.peer_id(), Some(PEER.parse().unwrap()));
            assert_eq!(address.to_string(), with_peer);
            let either: PeerAddress = with_peer.parse().unwrap();
            assert_eq!(either, PeerAddress::WebSocket(address));
            assert_eq!(either.to_string(), with_peer);
        }
        let long = parse("/dns4/example.org/tcp/443/tls/ws").unwrap();
        assert_eq!(long, parse("/dns4/example.org/tcp/443/wss").unwrap());
        let webrtc: PeerAddress = "/ip4/192.0.2.7/udp/1/webrtc-direct".parse().unwrap();
        assert!(matches!(webrtc, PeerAddress::WebRtcDirect(_)));
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
        for (text, error) in [
            ("", NotAMultiaddr),
            ("/", Missing(Component::Host)),
            ("/dns4", Missing(Component::Host)),
            ("/dns4/", invalid(Component::Host, "")),
            ("/dns4/a b/tcp/1/ws", invalid(Component::Host, "a b")),
            ("/dnsaddr/a/tcp/1/ws", unsupported("dnsaddr")),
            ("/ip4/::1/tcp/1/ws", invalid(Component::Host, "::1")),
            ("/ip4/1.2.3.4/udp/1/ws", unsupported("udp")),
            (
                "/ip4/1.2.3.4/tcp/65536/ws",
                invalid(Component::Tcp, "65536"),
            ),
            ("/ip4/1.2.3.4/tcp/1", Missing(Component::WebSocket)),
            ("/ip4/1.2.3.4/tcp/1/tls", Missing(Component::WebSocket)),
            ("/ip4/1.2.3.4/tcp/1/tls/wss", unsupported("wss")),
            ("/ip4/1.2.3.4/tcp/1/wsx", unexpected("wsx")),
            ("/ip4/1.2.3.4/tcp/1/ws/ws", unsupported("ws")),
            ("/ip4/1.2.3.4/tcp/1/ws/p2p", Missing(Component::P2p)),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn urls_are_read() {
        let read = |url| WebSocketAddress::from_url(url).map(|address| address.url());
        for (url, full) in [
            ("ws://example.org", "ws://example.org:80/"),
            ("WSS://example.org/a/b?c=d", "wss://example.org:443/a/b?c=d"),
            ("ws://[::1]:8080/x", "ws://[::1]:8080/x"),
            ("ws://[::1]", "ws://[::1]:80/"),
            ("ws://127.0.0.1:9?x", "ws://127.0.0.1:9/?x"),
        ] {
            assert_eq!(read(url), Ok(full.to_owned()));
        }
        for url in [
            "example.org",
            "http://example.org",
            "ws://",
            "ws://user@example.org",
            "ws://example.org:x",
            "ws://example.org/#a",
            "ws://example.org/\r\nx",
            "ws://[::1",
        ] {
            assert!(read(url).is_err(), "{url:?}");
        }
    }

    proptest! {
        #![proptest_config(crate::random::cases(256))]

        #[test]
        fn hostile_text_never_panics(text in "\\PC{0,2000}") {
            let _ = parse(&text);
            let _ = WebSocketAddress::from_url(&text);
            let _ = text.parse::<PeerAddress>();
        }

        #[test]
        fn addresses_round_trip(ip: IpAddr, port: u16, tls: bool) {
            let address = WebSocketAddress::new(SocketAddr::new(ip, port), tls);
            prop_assert_eq!(parse(&address.to_string()), Ok(address.clone()));
            prop_assert_eq!(WebSocketAddress::from_url(&address.url()), Ok(address));
        }
    }
}
