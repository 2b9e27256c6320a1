//! The addresses at which a bound socket can be reached.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Mutex, PoisonError};

/// An address of the machine.
#[derive(Debug, Clone, Copy)]
struct Assigned {
    ip: IpAddr,
    /// Whether its interface is up.
    is_up: bool,
}

/// Returns `socket` itself, or nothing while its address is gone; for a wildcard address those of
/// all interfaces, of its family.
///
/// Loopback addresses are returned only if there are no others: other machines cannot dial them.
pub(crate) fn concrete(socket: SocketAddr) -> Vec<SocketAddr> {
    let assigned = assigned();
    if !socket.ip().is_unspecified() {
        return match is_there(socket.ip(), &assigned, is_ours) {
            true => vec![socket],
            false => Vec::new(),
        };
    }
    let up = assigned.into_iter().filter(|address| address.is_up);
    let candidates = up
        .map(|address| address.ip)
        .filter(|ip| ip.is_ipv4() == socket.is_ipv4() && !is_link_local(*ip));
    let (loopback, others): (Vec<_>, Vec<_>) = candidates.partition(IpAddr::is_loopback);
    let chosen = if others.is_empty() { loopback } else { others };
    chosen
        .into_iter()
        .map(|ip| SocketAddr::new(ip, socket.port()))
        .collect()
}

/// Whether the machine has this address, also on an interface without a carrier, such as a bridge
/// without ports: its own programs reach it. An address that no interface has, such as 127.0.0.2,
/// may be the machine's nevertheless.
fn is_there(ip: IpAddr, assigned: &[Assigned], is_ours: impl Fn(IpAddr) -> bool) -> bool {
    assigned.iter().any(|address| address.ip == ip) || is_ours(ip)
}

/// Whether the system binds a socket to this address. Any other error says nothing about it.
fn is_ours(ip: IpAddr) -> bool {
    match UdpSocket::bind(SocketAddr::new(ip, 0)) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
    }
}

/// The addresses of the interfaces. Those of the last time, if they can not be listed now, for
/// example because the process has no file descriptor left: that says nothing about them.
fn assigned() -> Vec<Assigned> {
    static LAST: Mutex<Vec<Assigned>> = Mutex::new(Vec::new());
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    match if_addrs::get_if_addrs() {
        Ok(all) => {
            let assigned = all.iter().map(|interface| Assigned {
                ip: interface.ip(),
                is_up: interface.is_oper_up(),
            });
            *last = assigned.collect();
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
    fn an_address_that_is_gone_stands_for_nothing() {
        // Reserved for documentation (RFC 5737): no machine has it.
        let gone = SocketAddr::from(([192, 0, 2, 1], 4001));
        assert_eq!(concrete(gone), []);
        // No interface has it, and sockets can be bound to it: on Linux all of 127.0.0.0/8.
        if cfg!(target_os = "linux") {
            let unlisted = SocketAddr::from(([127, 0, 0, 77], 4001));
            assert_eq!(concrete(unlisted), [unlisted]);
        }
    }

    #[test]
    fn an_address_is_there_while_an_interface_has_it() {
        let [ip, other] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let with = |is_up| Assigned { ip, is_up };
        let never = |_| panic!("it is listed");
        assert!(is_there(ip, &[with(true)], never));
        assert!(is_there(ip, &[with(false)], never), "without a carrier");
        assert!(!is_there(other, &[with(true)], |_| false));
        assert!(is_there(other, &[with(true)], |_| true));
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
