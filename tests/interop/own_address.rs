//! The address of this machine that Firefox dials from.

use std::net::{IpAddr, UdpSocket};

/// The address with which Firefox looks up its own.
const LOOKUP_TARGET: &str = "8.8.8.8:53";

/// The address on which Firefox gathers its candidate. Nothing is sent.
pub(crate) fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket
        .connect(LOOKUP_TARGET)
        .expect("a route: run interop/js/setup.sh");
    let ip = socket.local_addr().expect("an address").ip();
    assert!(!ip.is_loopback(), "{ip}");
    ip
}
