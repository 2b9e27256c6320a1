//! Our side of the protocols that libp2p-webrtc opens.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anabranch::{Connection, Substream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

pub(crate) const PROTOCOLS: [&str; 7] = [
    "/bench/1.0.0",
    "/echo/1.0.0",
    "/stall/1.0.0",
    "/half-close/1.0.0",
    "/reset-me/1.0.0",
    "/reset-result/1.0.0",
    "/reset-you/1.0.0",
];

pub(crate) const HALF_CLOSE_BYTES: usize = 65_536;

/// What begins the silence of a stalled responder.
pub(crate) const STALLED: u8 = b'S';

/// The content of every test: byte i is i % 251.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

/// Serves a connection until it ends.
pub(crate) async fn serve(connection: Connection) {
    // Whether the last substream of reset-me ended in a reset.
    let reset = Arc::new(watch::Sender::new(None));
    while let Ok(Some(substream)) = connection.accept().await {
        let reset = Arc::clone(&reset);
        tokio::spawn(async move {
            let protocol = substream.protocol().unwrap_or_default().to_owned();
            if let Err(error) = respond(substream, &protocol, &reset).await {
                println!("responder of {protocol}: {error}");
            }
        });
    }
}

async fn respond(
    mut stream: Substream,
    protocol: &str,
    reset: &watch::Sender<Option<bool>>,
) -> io::Result<()> {
    match protocol {
        "/bench/1.0.0" => {
            let up = length(&mut stream).await?;
            let down = length(&mut stream).await?;
            receive(&mut stream, up).await?;
            stream.write_all(&pattern(down)).await?;
        }
        "/echo/1.0.0" => {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
        }
        "/stall/1.0.0" => {
            let up = length(&mut stream).await?;
            let hold = Duration::from_millis(stream.read_u64().await?);
            stream.write_u8(STALLED).await?;
            sleep(hold).await;
            receive(&mut stream, up).await?;
            stream.write_u64(up as u64).await?;
        }
        "/half-close/1.0.0" => {
            stream.read_to_end(&mut Vec::new()).await?;
            stream.write_all(&pattern(HALF_CLOSE_BYTES)).await?;
        }
        "/reset-me/1.0.0" => {
            let mut got = [0; 1024];
            stream.read_exact(&mut got).await?;
            stream.write_all(&got[1023..]).await?;
            let end = stream.read_to_end(&mut Vec::new()).await;
            let seen = end.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
            reset.send_replace(Some(seen));
            return Ok(());
        }
        "/reset-result/1.0.0" => {
            let mut record = reset.subscribe();
            let seen = match timeout(Duration::from_secs(2), record.wait_for(Option::is_some)).await
            {
                Ok(Ok(record)) => *record == Some(true),
                _ => false,
            };
            stream.write_u8(u8::from(seen)).await?;
        }
        "/reset-you/1.0.0" => {
            stream.read_exact(&mut [0]).await?;
            stream.reset(7);
            return Ok(());
        }
        other => return Err(io::Error::other(format!("nobody negotiated {other}"))),
    }
    // libp2p-webrtc never confirms it.
    stream.finish().await?;
    Ok(())
}

async fn length(stream: &mut Substream) -> io::Result<usize> {
    usize::try_from(stream.read_u64().await?).map_err(io::Error::other)
}

/// Reads to the end; resets the substream unless that was `length` bytes of content.
async fn receive(stream: &mut Substream, length: usize) -> io::Result<()> {
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await?;
    if got == pattern(length) {
        return Ok(());
    }
    stream.reset(1);
    let count = got.len();
    Err(io::Error::other(format!(
        "{count} bytes, or wrong ones, of {length}"
    )))
}
