//! Our side of the protocols that the pion peer opens.

use std::io;
use std::sync::{Arc, Mutex as Held};
use std::time::Duration;

use anabranch::{Connection, FinishError, Finished, PublicKey, Substream, SubstreamError};
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

/// The codes with which openers and responders reset where a protocol wants a reset.
pub(crate) const OPENERS_CODE: u32 = 9;
pub(crate) const RESPONDERS_CODE: u32 = 7;

/// The content of every test: byte i is i % 251.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

/// What went wrong in responders, for the test to look at.
#[derive(Clone, Default)]
pub(crate) struct Failures(Arc<Held<Vec<String>>>);

impl Failures {
    pub(crate) fn add(&self, what: &str, error: &dyn std::fmt::Display) {
        println!("{what}: {error}");
        let mut all = self.0.lock().expect("nobody panics with it");
        all.push(format!("{what}: {error}"));
    }

    pub(crate) fn assert_none(&self) {
        let all = self.0.lock().expect("nobody panics with it");
        assert!(all.is_empty(), "{all:#?}");
    }
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

/// Serves a connection until it has ended, and every substream with it.
pub(crate) async fn serve(connection: Connection, own: PublicKey, failures: Failures) {
    let records = Arc::new(Records {
        half_close: Record::new(),
        reset: Record::new(),
    });
    let mut responding = JoinSet::new();
    while let Ok(Some(substream)) = connection.accept().await {
        let records = Arc::clone(&records);
        let own = own.clone();
        let failures = failures.clone();
        responding.spawn(async move {
            let protocol = substream.protocol().unwrap_or_default().to_owned();
            if let Err(error) = respond(substream, &protocol, &own, &records).await {
                failures.add(&protocol, &error);
            }
        });
        while let Some(done) = responding.try_join_next() {
            done.expect("responders do not panic");
        }
    }
    while let Some(done) = responding.join_next().await {
        done.expect("responders do not panic");
    }
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
            let right = got
                .iter()
                .zip(&expected)
                .take_while(|(a, b)| a == b)
                .count();
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
            let code = end.as_ref().err().and_then(reset_code);
            let _ = records.reset.put.send(code == Some(OPENERS_CODE));
            match code {
                Some(OPENERS_CODE) => Ok(()),
                _ => Err(io::Error::other(format!("no reset with its code: {end:?}"))),
            }
        }
        "/reset-result/1.0.0" => {
            let reset = records.reset.wait().await.unwrap_or(false);
            stream.write_all(&[u8::from(reset)]).await?;
            finish(stream).await
        }
        "/reset-you/1.0.0" => {
            stream.read_exact(&mut [0]).await?;
            stream.reset(RESPONDERS_CODE);
            Ok(())
        }
        other => Err(io::Error::other(format!("nobody negotiated {other}"))),
    }
}

/// The peer's code, if the error is of a reset by the peer.
pub(crate) fn reset_code(error: &io::Error) -> Option<u32> {
    let error = error.get_ref()?.downcast_ref::<SubstreamError>()?;
    match error {
        SubstreamError::ResetByPeer(code) => *code,
        _ => None,
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

/// The pion peer acknowledges every FIN.
fn finished(outcome: Result<Finished, FinishError>) -> io::Result<()> {
    match outcome? {
        Finished::Acked => Ok(()),
        Finished::Delivered => Err(io::Error::other("FIN was not acknowledged")),
    }
}
