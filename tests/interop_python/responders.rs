//! Our side of the protocols that the Python peers open.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anabranch::{Connection, FinishError, Finished, PublicKey, Substream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::identify;

pub(crate) const PROTOCOLS: [&str; 11] = [
    "/ipfs/id/1.0.0",
    "/ipfs/ping/1.0.0",
    "/echo/1.0.0",
    "/bench/1.0.0",
    "/stall/1.0.0",
    "/half-close/1.0.0",
    "/half-close-remote/1.0.0",
    "/half-close-result/1.0.0",
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

/// What one substream finds out and another one asks for.
struct Record<T> {
    put: mpsc::UnboundedSender<T>,
    take: Mutex<mpsc::UnboundedReceiver<T>>,
}

impl<T> Record<T> {
    fn new() -> Self {
        let (put, take) = mpsc::unbounded_channel();
        Self {
            put,
            take: Mutex::new(take),
        }
    }

    async fn wait(&self) -> Option<T> {
        let mut take = self.take.lock().await;
        timeout(Duration::from_secs(2), take.recv())
            .await
            .ok()
            .flatten()
    }
}

struct Records {
    half_close: Record<u64>,
    reset: Record<bool>,
}

/// Serves a connection until it ends. Returns what went wrong.
pub(crate) async fn serve(connection: Connection, own: PublicKey) -> Vec<String> {
    let records = Arc::new(Records {
        half_close: Record::new(),
        reset: Record::new(),
    });
    let mut responders = JoinSet::new();
    while let Ok(Some(substream)) = connection.accept().await {
        let records = Arc::clone(&records);
        let own = own.clone();
        responders.spawn(async move {
            let protocol = substream.protocol().unwrap_or_default().to_owned();
            match respond(substream, &protocol, &own, &records).await {
                Ok(()) => None,
                Err(error) => Some(format!("responder of {protocol}: {error}")),
            }
        });
    }
    responders.join_all().await.into_iter().flatten().collect()
}

async fn respond(
    mut stream: Substream,
    protocol: &str,
    own: &PublicKey,
    records: &Records,
) -> io::Result<()> {
    match protocol {
        "/ipfs/id/1.0.0" => {
            stream.write_all(&identify::encode(own, &PROTOCOLS)).await?;
            finish(stream).await
        }
        "/ipfs/ping/1.0.0" | "/echo/1.0.0" => {
            let (mut read, mut write) = stream.into_split();
            tokio::io::copy(&mut read, &mut write).await?;
            finished(write.finish().await)
        }
        "/bench/1.0.0" => {
            let up = length(&mut stream).await?;
            let down = length(&mut stream).await?;
            receive(&mut stream, up).await?;
            stream.write_all(&pattern(down)).await?;
            finish(stream).await
        }
        "/stall/1.0.0" => {
            let up = length(&mut stream).await?;
            let hold = Duration::from_millis(stream.read_u64().await?);
            stream.write_u8(STALLED).await?;
            sleep(hold).await;
            receive(&mut stream, up).await?;
            stream.write_u64(up as u64).await?;
            finish(stream).await
        }
        "/half-close/1.0.0" => {
            stream.read_to_end(&mut Vec::new()).await?;
            stream.write_all(&pattern(HALF_CLOSE_BYTES)).await?;
            finish(stream).await
        }
        "/half-close-remote/1.0.0" => {
            stream.write_all(&pattern(HALF_CLOSE_BYTES)).await?;
            finished(stream.finish().await)?;
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await?;
            let expected = pattern(HALF_CLOSE_BYTES);
            let pairs = got.iter().zip(&expected);
            let right = pairs.take_while(|(a, b)| a == b).count();
            let _ = records.half_close.put.send(right as u64);
            Ok(())
        }
        "/half-close-result/1.0.0" => {
            let right = records.half_close.wait().await.unwrap_or(u64::MAX);
            stream.write_all(&right.to_be_bytes()).await?;
            finish(stream).await
        }
        "/reset-me/1.0.0" => {
            let mut got = [0; 1024];
            stream.read_exact(&mut got).await?;
            stream.write_all(&got[1023..]).await?;
            let end = stream.read_to_end(&mut Vec::new()).await;
            let reset = end.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset);
            let _ = records.reset.put.send(reset);
            Ok(())
        }
        "/reset-result/1.0.0" => {
            let reset = records.reset.wait().await.unwrap_or(false);
            stream.write_all(&[u8::from(reset)]).await?;
            finish(stream).await
        }
        "/reset-you/1.0.0" => {
            stream.read_exact(&mut [0]).await?;
            stream.reset(7);
            Ok(())
        }
        other => Err(io::Error::other(format!("nobody negotiated {other}"))),
    }
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

async fn finish(mut stream: Substream) -> io::Result<()> {
    finished(stream.finish().await)
}

/// Both peers acknowledge every FIN, unless they have said that they read no more.
fn finished(outcome: Result<Finished, FinishError>) -> io::Result<()> {
    match outcome {
        Ok(Finished::Acked) | Err(FinishError::Stopped(_)) => Ok(()),
        other => Err(io::Error::other(format!(
            "FIN was not acknowledged: {other:?}"
        ))),
    }
}
