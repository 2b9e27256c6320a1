//! A page that shows the library at work: `http://127.0.0.1:8080` in a browser, which connects back
//! by WebRTC or by WebSocket, with no certificate of an authority and no signalling server.
//!
//! ```text
//! cargo run --release --example browser
//! cargo run --release --example browser -- 0.0.0.0:8080    # for phones in the same network
//! ```
//!
//! HTTP and the WebSocket share a TCP port, and WebRTC has the UDP port of the same number, beside
//! two of relays: one by which a transfer can be cut, and one that loses and delays packets. The
//! page needs nothing else: its files are part of the program.

mod gate;
mod pages;
mod records;
mod relay;
mod services;
mod transfers;

use std::collections::BTreeSet;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anabranch::{Config, Endpoint, Negotiation, Security};
use tokio::net::TcpListener;

use crate::relay::{Path, Relay};
use crate::services::Services;

/// How long substreams may take to end when the program is stopped.
const LIMIT: Duration = Duration::from_secs(5);

/// A path that does nothing to packets, until it is cut.
const CLEAN: Path = Path {
    loss_per_mille: 0,
    delay: Duration::ZERO,
    seed: 0,
};

/// Of 2 % loss each way, and a round trip of 50 ms.
const LOSSY: Path = Path {
    loss_per_mille: 20,
    delay: Duration::from_millis(25),
    seed: 1,
};

type BoxError = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let address = std::env::args().nth(1);
    let address: SocketAddr = address.as_deref().unwrap_or("127.0.0.1:8080").parse()?;
    let mut config = Config::default();
    // A page that was written for this program offers one protocol for each substream.
    config.negotiation = Negotiation::ChannelLabel;
    config.protocols = services::PROTOCOLS.map(str::to_owned).to_vec();
    let endpoint = Endpoint::builder()
        // Visitors of a page have no identity to prove; the page gets the certificate hash.
        .security(Security::CertificateHash)
        .config(config)
        .bind(address)
        .await?;
    let listener = TcpListener::bind(address).await?;
    for url in urls(&endpoint, listener.local_addr()?) {
        println!("{url}");
    }
    let target = *endpoint.local_addresses().first().ok_or("no socket")?;
    let relays = [
        Relay::bind(address.ip(), target, CLEAN).await?,
        Relay::bind(address.ip(), target, LOSSY).await?,
    ];
    let services = Arc::new(Services::new(endpoint.clone(), relays));
    tokio::spawn(Arc::clone(&services).accept());
    tokio::select! {
        result = pages::serve(listener, services) => result?,
        result = tokio::signal::ctrl_c() => result?,
    }
    endpoint.drain(LIMIT).await;
    Ok(())
}

/// Where the page is, this machine first: on it a browser counts `localhost` as secure.
fn urls(endpoint: &Endpoint, listening: SocketAddr) -> Vec<String> {
    let port = listening.port();
    let url = |ip: IpAddr| format!("http://{}/", SocketAddr::new(ip, port));
    if !listening.ip().is_unspecified() {
        return vec![url(listening.ip())];
    }
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let addresses = endpoint.addresses();
    let others: BTreeSet<_> = addresses.iter().map(|a| a.socket_addr().ip()).collect();
    let others = others.into_iter().filter(|ip| *ip != loopback);
    std::iter::once(loopback).chain(others).map(url).collect()
}
