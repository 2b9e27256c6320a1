//! The listener, and the responder of every protocol.
//!
//! Integers are big-endian; content is that of [`crate::content`] in each direction.
//!
//! - `/bench/1.0.0`: the opener sends u64 N_up, u64 N_down, N_up bytes, and closes its write half;
//!   the responder reads to the end, sends N_down bytes, and closes.
//! - `/bench-nofin/1.0.0`: the same header; the responder answers with N_down bytes as soon as N_up
//!   bytes have come; the opener, when it has them all, sends one byte more; then both close.
//! - `/echo/1.0.0`: echo until the end, then close.
//! - `/stall/1.0.0`: the opener sends u64 N_up, u64 hold_ms; the responder sends one byte `S`, does
//!   not read for hold_ms, then reads to the end, sends u64 count, and closes.
//! - `/ipfs/ping/1.0.0`: libp2p's ping, which to the responder is an echo of 32 bytes at a time.
//!
//! A responder that finds a wrong or missing byte resets the substream.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anabranch::{Config, Connection, Endpoint, EndpointConfig, Finished, Substream};
use anabranch_str0m::UnknownEngine;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::content::{self, Checker};
use crate::json::Object;

pub(crate) const BENCH: &str = "/bench/1.0.0";
pub(crate) const BENCH_NOFIN: &str = "/bench-nofin/1.0.0";
pub(crate) const ECHO: &str = "/echo/1.0.0";
pub(crate) const STALL: &str = "/stall/1.0.0";
pub(crate) const PING: &str = "/ipfs/ping/1.0.0";

/// What the responder of [`STALL`] sends before it falls silent.
pub(crate) const STALLED: u8 = b'S';

/// Code of the reset for content that is wrong or missing.
const WRONG_CONTENT: u32 = 0xbad;

/// Substreams that a peer may hold open, for `--idle-streams`.
const MAX_SUBSTREAMS: usize = 20_000;

/// Most bytes that an echo holds.
const ECHO_CHUNK: usize = 64 << 10;

/// How long a peer without half-close may take to end a substream whose bytes all came.
const NOFIN_END: Duration = Duration::from_secs(5);

/// Settings of both the listener and the dialler: either side may open substreams.
pub(crate) fn config() -> Config {
    let mut config = Config::default();
    config.max_inbound_substreams = MAX_SUBSTREAMS;
    config.protocols = [BENCH, BENCH_NOFIN, ECHO, STALL, PING]
        .map(str::to_owned)
        .to_vec();
    config
}

/// Settings of both sides' endpoints; the engine is that of the environment, if it names one.
pub(crate) fn endpoint_config() -> Result<EndpointConfig, UnknownEngine> {
    let mut config = EndpointConfig::default();
    config.engine = anabranch_str0m::from_env()?;
    Ok(config)
}

/// Listens until the process is killed.
pub(crate) async fn listen(addresses: &[SocketAddr]) -> Result<(), Box<dyn std::error::Error>> {
    let endpoint = Endpoint::builder()
        .config(config())
        .endpoint_config(endpoint_config()?)
        .bind(addresses)
        .await?;
    let all: Vec<String> = endpoint
        .addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    let first = all
        .first()
        .ok_or("the machine has no address to listen on")?;
    let mut line = Object::default()
        .text("listen", first)
        .integer("pid", std::process::id());
    if all.len() > 1 {
        line = line.texts("all", &all);
    }
    println!("{}", line.line());

    while let Some(incoming) = endpoint.accept().await {
        // A task each: a peer that is slow to shake hands holds up nobody else.
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            match incoming.accept().await {
                Ok(connection) => serve(connection).await,
                Err(error) => tracing::warn!(%remote, %error, "handshake failed"),
            }
        });
    }
    Ok(())
}

/// Answers the substreams that the peer of a connection opens, until the connection ends.
pub(crate) async fn serve(connection: Connection) {
    loop {
        match connection.accept().await {
            Ok(Some(substream)) => {
                tokio::spawn(respond(substream));
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "connection failed");
                return;
            }
        }
    }
}

async fn respond(mut substream: Substream) {
    let protocol = substream.protocol().unwrap_or_default().to_owned();
    // Boxed: the task of an idle echo need not be as large as that of the largest protocol.
    let result = match protocol.as_str() {
        BENCH => Box::pin(bench(&mut substream)).await,
        BENCH_NOFIN => Box::pin(bench_nofin(&mut substream)).await,
        ECHO | PING => echo(&mut substream).await,
        STALL => Box::pin(stall(&mut substream)).await,
        _ => Err(content::invalid("no such protocol".to_owned())),
    };
    match result {
        Ok(outcome) => tracing::debug!(protocol, ?outcome, "substream done"),
        Err(error) => {
            substream.reset(WRONG_CONTENT);
            tracing::warn!(protocol, %error, "substream failed");
        }
    }
}

async fn bench(substream: &mut Substream) -> io::Result<Finished> {
    let (reader, writer) = substream.split();
    let up = reader.read_u64().await?;
    let down = reader.read_u64().await?;
    Checker::default().receive_all(reader, up).await?;
    content::send(writer, down, content::DEFAULT_CHUNK, |_| {}).await?;
    Ok(writer.finish().await?)
}

async fn bench_nofin(substream: &mut Substream) -> io::Result<Finished> {
    let (reader, writer) = substream.split();
    let up = reader.read_u64().await?;
    let down = reader.read_u64().await?;
    Checker::default().receive(reader, up).await?;
    content::send(writer, down, content::DEFAULT_CHUNK, |_| {}).await?;
    reader.read_u8().await?;
    // All is there; whether and how the peer ends its direction is no matter any more.
    let (outcome, _) = tokio::join!(
        writer.finish(),
        tokio::time::timeout(NOFIN_END, content::end(reader)),
    );
    Ok(outcome?)
}

async fn echo(substream: &mut Substream) -> io::Result<Finished> {
    let (reader, writer) = substream.split();
    while let Some(chunk) = reader.read_chunk(ECHO_CHUNK).await? {
        writer.write_chunk(chunk).await?;
    }
    Ok(writer.finish().await?)
}

async fn stall(substream: &mut Substream) -> io::Result<Finished> {
    let (reader, writer) = substream.split();
    let up = reader.read_u64().await?;
    let hold = Duration::from_millis(reader.read_u64().await?);
    writer.write_u8(STALLED).await?;
    tokio::time::sleep(hold).await;
    let mut checker = Checker::default();
    checker.receive_all(reader, up).await?;
    let count = checker.received().to_be_bytes();
    writer.write_chunk(Bytes::copy_from_slice(&count)).await?;
    Ok(writer.finish().await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::header;

    /// What the opener reads after it sent `content` and the end.
    async fn answer(connection: &Connection, protocol: &str, content: &[u8]) -> io::Result<usize> {
        let mut substream = connection.open(protocol).await.unwrap();
        substream.write_chunk(header(1000, 10)).await?;
        substream.write_all(content).await?;
        substream.finish().await?;
        let mut answer = Vec::new();
        substream.read_to_end(&mut answer).await
    }

    #[tokio::test]
    async fn wrong_content_is_answered_with_a_reset() {
        let listener = Endpoint::builder()
            .config(config())
            .bind("127.0.0.1:0")
            .await
            .unwrap();
        let address = listener.addresses().remove(0);
        let dialler = Endpoint::builder().dial_only().unwrap();
        let accept = async {
            let incoming = listener.accept().await.unwrap();
            tokio::spawn(serve(incoming.accept().await.unwrap()));
        };
        let (connection, ()) = tokio::join!(dialler.connect(&address), accept);
        let connection = connection.unwrap();

        let right = content::at(0, 1000);
        let mut wrong = right.to_vec();
        wrong[999] ^= 1;
        assert_eq!(answer(&connection, BENCH, &right).await.unwrap(), 10);
        assert_eq!(answer(&connection, STALL, &right).await.unwrap(), 1 + 8);
        for protocol in [BENCH, STALL, BENCH_NOFIN] {
            for content in [&wrong[..], &right[..999], &content::at(0, 1001)] {
                if protocol == BENCH_NOFIN && content.len() > 1000 {
                    // The byte more is part of this protocol.
                    continue;
                }
                let error = answer(&connection, protocol, content).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{protocol}");
            }
        }
        connection.close().await;
        listener.close().await;
    }
}
