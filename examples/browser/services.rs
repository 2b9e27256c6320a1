//! What the page can open: an echo, a source that sends as fast as it may, and a sink.

use std::io;
use std::sync::Arc;

use anabranch::{Connection, Endpoint, Substream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ECHO: &str = "/echo";
/// Reads a length of 8 bytes, and sends as many bytes.
const SOURCE: &str = "/source";
/// Reads to the end, and answers with the number of bytes, 8 of them.
const SINK: &str = "/sink";

pub(crate) const PROTOCOLS: [&str; 3] = [ECHO, SOURCE, SINK];

/// What a source sends at once. The credit of the page decides when.
const CHUNK: usize = 64 * 1024;

/// Serves the pages that connect by WebRTC, until the endpoint accepts no more.
pub(crate) async fn accept(endpoint: Arc<Endpoint>) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let from = incoming.remote_address();
            match incoming.await {
                Ok(connection) => serve(connection, "WebRTC").await,
                Err(error) => eprintln!("{from}: {error}"),
            }
        });
    }
}

/// Serves a page until its connection ends.
pub(crate) async fn serve(connection: Connection, transport: &str) {
    let id = connection.id();
    println!("connection {id}: {transport}");
    while let Ok(Some(substream)) = connection.accept().await {
        tokio::spawn(async move {
            // A page that stops, resets or goes away is no fault of this side.
            if let Err(error) = respond(substream).await
                && error.kind() == io::ErrorKind::InvalidData
            {
                eprintln!("connection {id}: {error}");
            }
        });
    }
    println!("connection {id}: {}", connection.closed().await);
}

async fn respond(mut substream: Substream) -> io::Result<()> {
    match substream.protocol() {
        Some(SOURCE) => {
            let length = substream.read_u64().await?;
            send(&mut substream, length).await?;
        }
        Some(SINK) => {
            let received = tokio::io::copy(&mut substream, &mut tokio::io::sink()).await?;
            substream.write_u64(received).await?;
        }
        // The endpoint accepts no name beside those of `PROTOCOLS`.
        _ => {
            let (read, write) = substream.split();
            tokio::io::copy(read, write).await?;
        }
    }
    substream.finish().await?;
    Ok(())
}

async fn send(substream: &mut Substream, length: u64) -> io::Result<()> {
    // Shared by all writes: the bytes are not copied before they are framed.
    let chunk: bytes::Bytes = (0..CHUNK).map(|i| (i % 251) as u8).collect();
    let mut left = length;
    while left > 0 {
        let size = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        substream.write_chunk(chunk.slice(..size)).await?;
        left -= size as u64;
    }
    Ok(())
}
