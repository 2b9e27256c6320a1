//! The addresses of a socket that is bound to a wildcard address.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

/// Returns `socket` itself, or for a wildcard address those of all interfaces, of its family.
///
/// Loopback addresses are returned only if there are no others: other machines cannot dial them.
pub(crate) fn concrete(socket: SocketAddr) -> Vec<SocketAddr> {
    if !socket.ip().is_unspecified() {
        return vec![socket];
    }
    let candidates = up()
        .into_iter()
        .filter(|ip| ip.is_ipv4() == socket.is_ipv4() && !is_link_local(*ip));
    let (loopback, others): (Vec<_>, Vec<_>) = candidates.partition(IpAddr::is_loopback);
    let chosen = if others.is_empty() { loopback } else { others };
    chosen
        .into_iter()
        .map(|ip| SocketAddr::new(ip, socket.port()))
        .collect()
}

/// The addresses of the interfaces that are up. Those of the last time, if they can not be listed
/// now, for example because the process has no file descriptor left: that says nothing about them.
fn up() -> Vec<IpAddr> {
    static LAST: Mutex<Vec<IpAddr>> = Mutex::new(Vec::new());
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    match if_addrs::get_if_addrs() {
        Ok(all) => {
            let up = all.iter().filter(|interface| interface.is_oper_up());
            *last = up.map(if_addrs::Interface::ip).collect();
        }
        Err(error) => {
            tracing::warn!(target: "anabranch::endpoint", %error, "interfaces not listed");
        }
    }
    last.clone()
}

/// Whether the address is link-local IPv6: it needs a zone, which our multiaddrs cannot express.
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_address_stands_for_itself() {
        let socket = SocketAddr::from(([127, 0, 0, 1], 4001));
        assert_eq!(concrete(socket), [socket]);
    }

    #[test]
    fn a_wildcard_stands_for_concrete_addresses_of_its_family() {
        let found = concrete(SocketAddr::from(([0, 0, 0, 0], 4001)));
        assert!(!found.is_empty());
        for address in found {
            assert!(
                address.is_ipv4() && !address.ip().is_unspecified(),
                "{address}"
            );
            assert_eq!(address.port(), 4001);
        }
    }
}
