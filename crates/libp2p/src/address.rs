//! Addresses of libp2p and of anabranch.

use std::net::{IpAddr, SocketAddr};

use anabranch::{Address, Fingerprint};
use libp2p_core::multiaddr::{Multiaddr, Protocol};

/// `/ip4|ip6/<ip>/udp/<port>/webrtc-direct`, with certhashes and a peer id, in this order and
/// nothing else; `None` for every other address, which another transport may support.
pub(crate) fn parse(address: &Multiaddr) -> Option<Address> {
    // Other components are not even looked at: their text has no end.
    let is_known = |protocol: Protocol<'_>| {
        matches!(
            protocol,
            Protocol::Ip4(_)
                | Protocol::Ip6(_)
                | Protocol::Udp(_)
                | Protocol::WebRTCDirect
                | Protocol::Certhash(_)
                | Protocol::P2p(_)
        )
    };
    if !address.iter().all(is_known) {
        return None;
    }
    address.to_string().parse().ok()
}

/// An address to dial: with a certhash, a port and an address of one machine.
pub(crate) fn parse_remote(address: &Multiaddr) -> Option<Address> {
    let address = parse(address)?;
    (is_concrete(&address) && address.certhash().is_some()).then_some(address)
}

/// An address from which a peer dials: the certhash is its matter.
pub(crate) fn parse_dialler(address: &Multiaddr) -> Option<Address> {
    parse(address).filter(is_concrete)
}

/// Whether it has a port and an address of one machine.
fn is_concrete(address: &Address) -> bool {
    let socket = address.socket_addr();
    socket.port() != 0 && !socket.ip().is_unspecified()
}

/// The address of a socket, without certhash.
pub(crate) fn of_socket(socket: SocketAddr) -> Multiaddr {
    Multiaddr::from(socket.ip())
        .with(Protocol::Udp(socket.port()))
        .with(Protocol::WebRTCDirect)
}

/// The address of a listener, which the certhash is part of.
pub(crate) fn of_listener(socket: SocketAddr, certhash: Fingerprint) -> Multiaddr {
    let address = Address::new(socket).with_certhash(certhash);
    // Both are multiaddrs; without the certhash nobody could dial it.
    address
        .to_string()
        .parse()
        .unwrap_or_else(|_| of_socket(socket))
}

/// Whether both are IPv4, or both IPv6.
pub(crate) fn is_same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTHASH: &str = "/certhash/uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g";
    const PEER: &str = "/p2p/12D3KooWRNQrS2BCPWXLUQPJ9hTcbPRRpxLmFRmQ5WTo8S6sDZ7Q";

    fn multiaddr(text: &str) -> Multiaddr {
        text.parse().expect("a multiaddr")
    }

    #[test]
    fn addresses_to_dial_have_a_certhash_a_port_and_an_ip_of_one_machine() {
        for (text, is_ours) in [
            (
                format!("/ip4/192.0.2.1/udp/4001/webrtc-direct{CERTHASH}"),
                true,
            ),
            (
                format!("/ip6/2001:db8::1/udp/4001/webrtc-direct{CERTHASH}"),
                true,
            ),
            (
                format!("/ip4/192.0.2.1/udp/4001/webrtc-direct{CERTHASH}{PEER}"),
                true,
            ),
            (
                format!("/ip4/192.0.2.1/udp/4001/webrtc-direct{CERTHASH}{CERTHASH}"),
                true,
            ),
            ("/ip4/192.0.2.1/udp/4001/webrtc-direct".to_owned(), false),
            (
                format!("/ip4/192.0.2.1/udp/0/webrtc-direct{CERTHASH}"),
                false,
            ),
            (
                format!("/ip4/0.0.0.0/udp/4001/webrtc-direct{CERTHASH}"),
                false,
            ),
            (format!("/ip6/::/udp/4001/webrtc-direct{CERTHASH}"), false),
            ("/ip4/192.0.2.1/udp/4001/quic-v1".to_owned(), false),
            ("/ip4/192.0.2.1/tcp/4001/ws".to_owned(), false),
            (
                format!("/dns4/example.org/udp/4001/webrtc-direct{CERTHASH}"),
                false,
            ),
            (
                format!("/ip4/192.0.2.1/udp/4001/webrtc-direct{CERTHASH}{PEER}/p2p-circuit"),
                false,
            ),
            (
                format!("/ip4/192.0.2.1/udp/4001/webrtc-direct{CERTHASH}/webrtc"),
                false,
            ),
            (String::new(), false),
        ] {
            assert_eq!(parse_remote(&multiaddr(&text)).is_some(), is_ours, "{text}");
        }
    }

    #[test]
    fn the_address_of_a_listener_can_be_dialled() {
        let certhash = anabranch::Certificate::generate().fingerprint();
        for socket in ["192.0.2.1:4001", "[2001:db8::1]:4001"] {
            let socket: SocketAddr = socket.parse().expect("an address");
            let listener = of_listener(socket, certhash);
            let remote = parse_remote(&listener).expect("it has everything");
            assert_eq!(remote.socket_addr(), socket);
            assert_eq!(remote.certhash(), Some(certhash));
        }
    }
}
