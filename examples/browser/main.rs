//! A page that shows the library at work: `http://127.0.0.1:8080` in a browser, which connects back
//! by WebRTC or by WebSocket, with no certificate of an authority and no signalling server.
//!
//! ```text
//! cargo run --release --example browser
//! cargo run --release --example browser -- 0.0.0.0:8080    # for phones in the same network
//! ```
//!
//! HTTP and the WebSocket share a TCP port, and WebRTC has the UDP port of the same number. The
//! page needs nothing else: its files are part of the program.

mod pages;
mod services;

use std::collections::BTreeSet;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anabranch::{Config, Endpoint, Negotiation, Security};
use tokio::net::TcpListener;

/// How long substreams may take to end when the program is stopped.
const LIMIT: Duration = Duration::from_secs(5);

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
    let endpoint = Arc::new(endpoint);
    tokio::spawn(services::accept(Arc::clone(&endpoint)));
    tokio::select! {
        result = pages::serve(listener, Arc::clone(&endpoint)) => result?,
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
