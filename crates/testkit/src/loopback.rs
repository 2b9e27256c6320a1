//! Two WebRTC carriers over UDP on loopback.

use anabranch::Certificate;
use anabranch::carrier::Carrier;
use anabranch::endpoint::{EndpointConfig, EngineFactory, Signalling, connect_signalled};
use anabranch::rtc::Role;
use anabranch::udp::{Sockets, SystemSockets};

/// Two carriers on sockets of their own, connected, without Noise. The first one dialled.
///
/// # Panics
/// If the machine has no loopback, or the two do not connect.
pub async fn webrtc_pair(engines: [EngineFactory; 2]) -> (impl Carrier, impl Carrier) {
    let sockets = [(); 2].map(|()| {
        let any = "127.0.0.1:0".parse().expect("an address");
        SystemSockets.bind(any).expect("a socket")
    });
    let addresses = [0, 1].map(|i: usize| sockets[i].local_addr().expect("an address"));
    let certificates = [(); 2].map(|()| Certificate::generate());
    let credentials = ["a", "b"].map(|name| (name.repeat(4), name.repeat(24)));
    let roles = [Role::Client, Role::Server];
    let [client, server] = [0, 1].map(|own: usize| {
        let other = 1 - own;
        let signalling = Signalling {
            role: roles[own],
            certificate: certificates[own].clone(),
            remote: addresses[other],
            fingerprint: certificates[other].fingerprint(),
            local_credentials: credentials[own].clone(),
            remote_credentials: credentials[other].clone(),
        };
        let mut config = EndpointConfig::default();
        config.engine = engines[own];
        config.loopback_mtu = 1200;
        config.max_in_flight = 1024 * 1024;
        config.receive_buffer = 4 * 1024 * 1024;
        let socket = sockets[own].clone();
        async move { connect_signalled(&config, socket, signalling).await }
    });
    let (client, server) = tokio::join!(client, server);
    (
        client.expect("the client connects"),
        server.expect("the server connects"),
    )
}
