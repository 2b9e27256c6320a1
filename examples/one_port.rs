//! QUIC (quinn) and anabranch on one UDP port: datagrams are told apart by their first byte
//! (RFC 7983, RFC 9443). Runs two nodes with one port each, loads both protocols between them at
//! once, and checks every byte.
//!
//! ```text
//! cargo run --release --example one_port -- 64    # MiB over each protocol
//! ```

use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use anabranch::Endpoint;
use anabranch::endpoint::{DialOptions, PortUse};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;

#[path = "one_port/port.rs"]
mod port;
#[cfg(test)]
#[path = "one_port/tests.rs"]
mod tests;

use port::{OnePort, quic_config};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// What QUIC calls this protocol in its handshake, and anabranch on a substream.
const ALPN: &[u8] = b"echo";
const PROTOCOL: &str = "/echo/1.0.0";

/// Substreams, and streams of QUIC, at once.
const STREAMS: usize = 4;

/// One UDP port, and an endpoint of each protocol on it.
struct Node {
    port: OnePort,
    webrtc: Endpoint,
    quic: quinn::Endpoint,
    certificate: CertificateDer<'static>,
}

impl Node {
    fn start() -> Result<Self> {
        let port = OnePort::bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let webrtc = Endpoint::builder().protocol(PROTOCOL).dial_only()?;
        webrtc.listen_on_socket(port.webrtc())?;
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        let certificate = CertificateDer::from(made.cert);
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let tls = QuicServerConfig::try_from(tls)?;
        let quic = quinn::Endpoint::new_with_abstract_socket(
            quic_config(),
            Some(quinn::ServerConfig::with_crypto(Arc::new(tls))),
            port.quic(),
            Arc::new(quinn::TokioRuntime),
        )?;
        tokio::spawn(echo_webrtc(webrtc.clone()));
        tokio::spawn(echo_quic(quic.clone()));
        Ok(Self {
            port,
            webrtc,
            quic,
            certificate,
        })
    }

    /// How a QUIC client of any kind recognises this node.
    fn client_config(&self) -> Result<quinn::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let mut tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let tls = QuicClientConfig::try_from(tls)?;
        Ok(quinn::ClientConfig::new(Arc::new(tls)))
    }

    async fn close(self) {
        self.quic.close(0_u32.into(), b"");
        self.quic.wait_idle().await;
        self.webrtc.close().await;
    }
}

async fn echo_webrtc(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            while let Ok(Some(substream)) = connection.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = substream.into_split();
                    tokio::io::copy(&mut read, &mut write).await?;
                    write.finish().await.map_err(io::Error::other)
                });
            }
        });
    }
}

async fn echo_quic(endpoint: quinn::Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            while let Ok((mut write, mut read)) = connection.accept_bi().await {
                tokio::spawn(async move {
                    tokio::io::copy(&mut read, &mut write).await?;
                    write.finish().map_err(io::Error::other)
                });
            }
        });
    }
}

/// A byte that depends on its place, with a period that no buffer has.
fn content(stream: usize, bytes: usize) -> Vec<u8> {
    (stream..stream + bytes).map(|i| (i % 251) as u8).collect()
}

/// Sends `bytes`, and compares what comes back.
async fn exchange(
    mut write: impl AsyncWrite + Unpin,
    mut read: impl AsyncRead + Unpin,
    content: Vec<u8>,
) -> Result<()> {
    let sending = async {
        write.write_all(&content).await?;
        write.shutdown().await
    };
    let receiving = async {
        let mut left = &content[..];
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = read.read(&mut buffer).await?;
            let Some((expected, rest)) = left.split_at_checked(len) else {
                return Err(io::Error::other("more came back than was sent"));
            };
            match len {
                0 if rest.is_empty() => return Ok(()),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ if buffer[..len] != *expected => return Err(io::ErrorKind::InvalidData.into()),
                _ => left = rest,
            }
        }
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

/// Loads a connection of each protocol at once, with `bytes` on every stream.
async fn load(
    webrtc: &anabranch::Connection,
    quic: &quinn::Connection,
    bytes: usize,
) -> Result<()> {
    let mut exchanges = JoinSet::new();
    for stream in 0..STREAMS {
        let (read, write) = webrtc.open(PROTOCOL).await?.into_split();
        exchanges.spawn(exchange(write, read, content(stream, bytes)));
        let (write, read) = quic.open_bi().await?;
        exchanges.spawn(exchange(write, read, content(STREAMS + stream, bytes)));
    }
    while let Some(exchanged) = exchanges.join_next().await {
        exchanged??;
    }
    Ok(())
}

/// Connects `from` to `to` with both protocols, from its one port to the other.
async fn connect(from: &Node, to: &Node) -> Result<(anabranch::Connection, quinn::Connection)> {
    let address = to.webrtc.addresses().remove(0);
    let options = DialOptions::default().with_port(PortUse::Reuse);
    let webrtc = from.webrtc.connect_with(&address, options).await?;
    let address = to.quic.local_addr()?;
    let connecting = from
        .quic
        .connect_with(to.client_config()?, address, "localhost")?;
    Ok((webrtc, connecting.await?))
}

#[tokio::main]
async fn main() -> Result<()> {
    let mib: usize = match std::env::args().nth(1) {
        Some(mib) => mib.parse()?,
        None => 16,
    };
    let [listener, dialler] = [Node::start()?, Node::start()?];
    println!("both protocols on {}", listener.quic.local_addr()?);
    let (webrtc, quic) = connect(&dialler, &listener).await?;
    let began = Instant::now();
    load(&webrtc, &quic, (mib << 20) / STREAMS).await?;
    let seconds = began.elapsed().as_secs_f64();
    println!("{mib} MiB there and back over each of both, every byte the same, in {seconds:.2} s");
    webrtc.close().await;
    quic.close(0_u32.into(), b"");
    let ports = [&listener, &dialler].map(|node| node.port.clone());
    listener.close().await;
    dialler.close().await;
    for (name, port) in ["listener", "dialler"].into_iter().zip(ports) {
        println!("{name}: {:?}", port.counts());
    }
    Ok(())
}
