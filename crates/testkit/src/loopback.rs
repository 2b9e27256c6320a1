//! Two connected WebRTC carriers over UDP on the loopback interface.

use anabranch::Certificate;
use anabranch::carrier::Carrier;
use anabranch::endpoint::{
    EndpointConfig, EngineFactory, IceCredentials, Signalling, connect_signalled,
};
use anabranch::rtc::Role;
use anabranch::udp::{Sockets, SystemSockets};

/// Connects two WebRTC carriers, each on its own socket on 127.0.0.1, in real time.
///
/// `engines[0]` drives the first carrier, which dials; `engines[1]` drives the second, which
/// listens. ICE, DTLS and SCTP are real; there is no Noise handshake. Each side may have 1 MiB in
/// flight and advertises a receive buffer of 4 MiB.
///
/// # Panics
/// If 127.0.0.1 cannot be bound, or if the two do not connect within
/// [`EndpointConfig::connect_timeout`].
///
/// # Cancel safety
/// Dropping the future ends the attempt and closes both sockets.
pub async fn webrtc_pair(engines: [EngineFactory; 2]) -> (impl Carrier, impl Carrier) {
    let sockets = [(); 2].map(|()| {
        let any_port = "127.0.0.1:0".parse().expect("a valid address");
        SystemSockets::new()
            .bind(any_port)
            .expect("127.0.0.1 is available")
    });
    let addresses = [0, 1].map(|i: usize| sockets[i].local_addr().expect("the socket is bound"));
    let certificates = [(); 2].map(|()| Certificate::generate());
    let credentials = [(); 2].map(|()| IceCredentials::generate());
    let roles = [Role::Client, Role::Server];
    let [client, server] = [0, 1].map(|own: usize| {
        let other = 1 - own;
        let signalling = Signalling::new(
            roles[own],
            certificates[own].clone(),
            credentials[own].clone(),
            addresses[other],
            certificates[other].fingerprint(),
            credentials[other].clone(),
        );
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
