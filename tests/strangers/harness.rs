//! A listener, a dialler, and injected datagrams, on a simulated network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anabranch::{Address, Connection, Endpoint, EndpointBuilder, EndpointConfig};
use anabranch_testkit::simulator::{Conditions, Host, Network};
use is::stun::{StunMessage, TransId};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

pub(super) const BULK: &str = "/bulk/1";

pub(super) const STUN_REQUEST: [u8; 2] = [0, 1];
pub(super) const STUN_SUCCESS: [u8; 2] = [1, 1];

/// Settings with the engine that `ANABRANCH_ENGINE` names, `direct` or `str0m`.
pub(super) fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.engine = anabranch_str0m::from_env().expect("a known engine");
    config
}

pub(super) fn network(seed: u64, round_trip_ms: u64) -> (Network, Host, Host) {
    let network = Network::new(seed);
    network.set_conditions(Conditions::round_trip(Duration::from_millis(round_trip_ms)));
    let hosts = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| network.host(ip));
    let [server, client] = hosts;
    (network, server, client)
}

pub(super) async fn listen(host: &Host, config: EndpointConfig) -> (Endpoint, Address) {
    let builder = Endpoint::builder()
        .endpoint_config(config)
        .sockets(host.clone());
    let endpoint = builder
        .protocol(BULK)
        .bind("0.0.0.0:4001")
        .await
        .expect("a socket");
    let address = endpoint.addresses().remove(0);
    (endpoint, address)
}

pub(super) fn dialler(host: &Host) -> Endpoint {
    let builder: EndpointBuilder = Endpoint::builder()
        .endpoint_config(endpoint_config())
        .sockets(host.clone());
    builder.dial_only().expect("defaults work")
}

/// Accepts all peers, and sends endlessly on every substream.
pub(super) fn serve(endpoint: &Endpoint) {
    let endpoint = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                if let Ok(connection) = incoming.accept().await {
                    pour(connection).await;
                }
            });
        }
    });
}

pub(super) async fn pour(connection: Connection) {
    while let Ok(Some(mut substream)) = connection.accept().await {
        tokio::spawn(async move { while substream.write_all(&[7; 4096]).await.is_ok() {} });
    }
}

/// Closes everything and asserts that nothing is left.
pub(super) async fn finish(endpoints: impl IntoIterator<Item = Endpoint>) {
    for endpoint in endpoints {
        timeout(Duration::from_secs(60), endpoint.close())
            .await
            .expect("it closes");
        assert!(endpoint.is_idle());
    }
}

/// A first contact of a dialler, with credentials of its own.
pub(super) fn first_contact(rng: &mut StdRng) -> Vec<u8> {
    let random: String = (0..32)
        .map(|_| char::from(rng.random_range(b'a'..=b'z')))
        .collect();
    let ufrag = format!("libp2p+webrtc+v1/{random}");
    check(&format!("{ufrag}:{ufrag}"), &ufrag)
}

pub(super) fn check(username: &str, password: &str) -> Vec<u8> {
    check_with_priority(username, password, 1)
}

pub(super) fn check_with_priority(username: &str, password: &str, priority: u32) -> Vec<u8> {
    request(username, password, priority, true)
}

/// A connectivity check; with USE-CANDIDATE if the agent is controlling.
pub(super) fn request(username: &str, password: &str, priority: u32, controlling: bool) -> Vec<u8> {
    let request = StunMessage::binding_request(
        username,
        TransId::new(),
        controlling,
        1,
        priority,
        controlling,
    );
    encode(request, password)
}

/// A message with MESSAGE-INTEGRITY for this password.
pub(super) fn encode(message: StunMessage<'_>, password: &str) -> Vec<u8> {
    let hmac = str0m::crypto::from_feature_flags().sha1_hmac_provider;
    let mut bytes = vec![0; 700];
    let length = message
        .to_bytes(Some(password.as_bytes()), &mut bytes, |key, parts| {
            hmac.sha1_hmac(key, parts)
        })
        .expect("room enough");
    bytes.truncate(length);
    bytes
}

/// The `n`-th of many hosts that do not exist.
pub(super) fn forged(n: u32) -> SocketAddr {
    SocketAddr::new(
        IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + n)),
        5000 + (n % 1000) as u16,
    )
}

/// The USERNAME of the last check seen by a tap.
#[derive(Debug, Clone, Default)]
pub(super) struct SeenCheck(Arc<Mutex<Option<(String, SocketAddr)>>>);

impl SeenCheck {
    /// Records a datagram from `source` if it is a check.
    pub(super) fn see(&self, source: SocketAddr, contents: &[u8]) {
        if contents.starts_with(&STUN_REQUEST)
            && let Ok(message) = StunMessage::parse(contents)
            && let Some(username) = message.username()
        {
            *self.0.lock().expect("no panic") = Some((username.to_owned(), source));
        }
    }

    /// USERNAME and source.
    pub(super) fn get(&self) -> (String, SocketAddr) {
        let seen = self.0.lock().expect("no panic").clone();
        seen.expect("a check")
    }
}

/// The answer of a STUN server (RFC 8489) to a binding request: a success response without
/// MESSAGE-INTEGRITY, since it has no password.
pub(super) fn stun_server(request: &[u8]) -> Option<Vec<u8>> {
    if !request.starts_with(&STUN_REQUEST)
        || request.get(4..8) != Some(&[0x21, 0x12, 0xa4, 0x42])
        || request.len() < 20
    {
        return None;
    }
    let mut response = vec![1, 1, 0, 12];
    response.extend_from_slice(&request[4..20]);
    response.extend_from_slice(&[0, 0x20, 0, 8, 0, 1, 1, 2, 3, 4, 5, 6]);
    Some(response)
}

/// The answer of a host that derives the passwords of listener and dialler from the USERNAME: a
/// success response of the dialler, with `to` as its address.
pub(super) fn sign_challenge(check: &[u8], to: SocketAddr) -> Option<Vec<u8>> {
    if !check.starts_with(&STUN_REQUEST) {
        return None;
    }
    let request = StunMessage::parse(check).ok()?;
    let (client, server) = request.split_username()?;
    let password = server.strip_prefix("libp2p+webrtc+v2/").unwrap_or(client);
    let response = StunMessage::binding_reply(request.trans_id(), to);
    Some(encode(response, password))
}
