//! Trusted proxies, which report the addresses of clients.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

pub(crate) mod forwarded;
pub(crate) mod preamble;

/// How a proxy reports the address of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProxyHeader {
    /// The PROXY protocol, version 1 or 2, before TLS and HTTP. Each connection has to begin with
    /// it; one without is answered with status 400, or closed if the listener uses TLS.
    ProxyProtocol,
    /// The header `X-Forwarded-For`. It is read from its end: the first address that is not a
    /// trusted proxy is the client. The port is 0 where the header has none.
    XForwardedFor,
    /// The header `Forwarded` (RFC 7239), read in the same way. Reading stops at `unknown` and at
    /// obfuscated identifiers.
    Forwarded,
}

/// The trusted proxies of a [`WebSocketListener`](super::WebSocketListener).
///
/// For connections from these networks, limits, events and
/// [`RequestHead::remote_address`](super::RequestHead) use the client address that the proxy
/// reports. A request without one counts as the proxy's own; a malformed one is answered with
/// status 400. From other networks these headers are ignored, and a PROXY header is answered with
/// status 400.
///
/// Only proxies may be in these networks, and they have to replace or extend the header that a
/// client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrustedProxies {
    /// The networks of the proxies.
    pub networks: Vec<Network>,
    /// How they report the address of the client.
    pub header: ProxyHeader,
}

impl TrustedProxies {
    /// Trusts the proxies in `networks`, which report clients by `header`.
    pub fn new(networks: impl IntoIterator<Item = Network>, header: ProxyHeader) -> Self {
        Self {
            networks: networks.into_iter().collect(),
            header,
        }
    }

    /// Whether `ip` is the address of a trusted proxy.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(ip))
    }
}

/// A range of addresses: `192.0.2.0/24`, `2001:db8::/32`, or one address.
///
/// ```
/// use anabranch::websocket::Network;
///
/// let network: Network = "10.0.0.0/8".parse()?;
/// assert!(network.contains([10, 1, 2, 3].into()));
/// assert!("10.0.0.0/33".parse::<Network>().is_err());
/// # Ok::<(), anabranch::websocket::InvalidNetwork>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

/// The text is not a valid [`Network`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an address nor a network")]
pub struct InvalidNetwork(String);

impl Network {
    /// Whether the network contains `ip`. An IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => {
                let mask = u32::MAX
                    .checked_shl(Ipv4Addr::BITS.saturating_sub(self.prefix))
                    .unwrap_or(0);
                network.to_bits() & mask == ip.to_bits() & mask
            }
            (IpAddr::V6(network), IpAddr::V6(ip)) => {
                let mask = u128::MAX
                    .checked_shl(Ipv6Addr::BITS.saturating_sub(self.prefix))
                    .unwrap_or(0);
                network.to_bits() & mask == ip.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        let prefix = if address.is_ipv4() {
            Ipv4Addr::BITS
        } else {
            Ipv6Addr::BITS
        };
        Self { address, prefix }
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidNetwork(text.to_owned());
        let Some((address, prefix)) = text.split_once('/') else {
            return text
                .parse::<IpAddr>()
                .map(Self::from)
                .map_err(|_| invalid());
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let prefix = decimal(prefix).ok_or_else(invalid)?.into();
        let network = Self { address, prefix };
        let longest = match address {
            IpAddr::V4(_) => Ipv4Addr::BITS,
            // A network of mapped addresses would contain none.
            IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => return Err(invalid()),
            IpAddr::V6(_) => Ipv6Addr::BITS,
        };
        (prefix <= longest).then_some(network).ok_or_else(invalid)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A decimal number without sign and leading zeros.
fn decimal(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit())
        && (text.len() == 1 || !text.starts_with('0'));
    is_plain.then(|| text.parse().ok()).flatten()
}

/// The address, with an IPv4-mapped one converted to IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        // With its scope id.
        IpAddr::V6(_) => address,
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses_only() {
        let network = |text: &str| text.parse::<Network>();
        for (text, within, without) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.0.0.0/8", "::ffff:10.1.1.1", "::10.1.1.1"),
            ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
            ("0.0.0.0/0", "203.0.113.1", "::1"),
            ("::/0", "::1", "203.0.113.1"),
            ("::1", "::1", "::2"),
        ] {
            let network = network(text).unwrap();
            assert!(network.contains(within.parse().unwrap()), "{text}");
            assert!(!network.contains(without.parse().unwrap()), "{text}");
        }
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "::/129",
            "::ffff:10.0.0.0/104",
            "example.org",
        ] {
            assert!(network(text).is_err(), "{text}");
        }
        assert_eq!(network("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
    }
}
