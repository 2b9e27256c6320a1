//! The responders of the protocols of `interop/js/README.md`, which foreign peers open.
#![allow(dead_code)] // Each suite uses a part of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anabranch::{
    Connection, ConnectionError, FinishError, Finished, PublicKey, Substream, SubstreamError,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::failures::Failures;
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

/// Begins the silence of a stalled responder.
pub(crate) const STALLED: u8 = b'S';

/// The codes with which openers and responders reset where a protocol requires it.
pub(crate) const OPENERS_CODE: u32 = 9;
pub(crate) const RESPONDERS_CODE: u32 = 7;

/// How long a result waits for its substream.
const RECORD_WAIT: Duration = Duration::from_secs(2);

/// The content of every test: byte i is i % 251.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

/// The expected behaviour of a peer at the end of substreams. Anything else is a failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// How the peer confirms FIN.
    pub(crate) finished: Finished,
    /// The protocols whose opener may send STOP_SENDING in place of FIN_ACK.
    pub(crate) stops: &'static [&'static str],
    /// The protocols whose opener may reset a substream that it does not need any more.
    pub(crate) drops: &'static [&'static str],
    /// The peer closes the connection when it has read and checked everything, which may be before
    /// FIN is confirmed.
    pub(crate) leaves: bool,
    /// Resets of the peer have the code of its application.
    pub(crate) codes: bool,
}

impl Habits {
    /// Whether this peer may cause an error.
    fn allow(&self, protocol: &str, error: &io::Error) -> bool {
        let error = error.get_ref().and_then(|error| error.downcast_ref());
        match error {
            Some(SubstreamError::Stopped(_)) => self.stops.contains(&protocol),
            Some(SubstreamError::ResetByPeer(_)) => self.drops.contains(&protocol),
            Some(SubstreamError::ConnectionLost(ConnectionError::ClosedByPeer)) => self.leaves,
            _ => false,
        }
    }
}

/// Results of one substream that another one requests.
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
        timeout(RECORD_WAIT, take.recv()).await.ok().flatten()
    }
}

struct Responder {
    habits: Habits,
    own: PublicKey,
    half_close: Record<u64>,
    reset: Record<bool>,
}

/// Serves a connection until it has ended, with all its substreams.
pub(crate) async fn serve(
    connection: Connection,
    own: PublicKey,
    habits: Habits,
    failures: Failures,
) {
    let responder = Arc::new(Responder {
        habits,
        own,
        half_close: Record::new(),
        reset: Record::new(),
    });
    let mut responding = JoinSet::new();
    while let Ok(Some(substream)) = connection.accept().await {
        let (responder, failures) = (Arc::clone(&responder), failures.clone());
        responding.spawn(async move {
            let protocol = substream.protocol().unwrap_or_default().to_owned();
            match responder.respond(substream, &protocol).await {
                Err(error) if habits.allow(&protocol, &error) => {}
                Err(error) => failures.add(&format!("responder of {protocol}"), &error),
                Ok(()) => {}
            }
        });
        while let Some(done) = responding.try_join_next() {
            done.expect("responders do not panic");
        }
    }
    while let Some(done) = responding.join_next().await {
        done.expect("responders do not panic");
    }
    match connection.closed().await {
        ConnectionError::ClosedByPeer
        | ConnectionError::ClosedByPeerWith { .. }
        | ConnectionError::ClosedLocally => {}
        cause => failures.add("a connection was not closed in order", &cause),
    }
}

impl Responder {
    async fn respond(&self, mut stream: Substream, protocol: &str) -> io::Result<()> {
        match protocol {
            "/ipfs/id/1.0.0" => {
                let message = identify::encode(&self.own, &PROTOCOLS);
                stream.write_all(&message).await?;
            }
            "/ipfs/ping/1.0.0" | "/echo/1.0.0" => {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await?;
            }
            "/bench/1.0.0" => {
                let up = length(&mut stream).await?;
                let down = length(&mut stream).await?;
                receive(&mut stream, up).await?;
                stream.write_all(&pattern(down)).await?;
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
            "/half-close-remote/1.0.0" => {
                stream.write_all(&pattern(HALF_CLOSE_BYTES)).await?;
                self.finish(&mut stream).await?;
                let mut got = Vec::new();
                stream.read_to_end(&mut got).await?;
                let expected = pattern(HALF_CLOSE_BYTES);
                let pairs = got.iter().zip(&expected);
                let right = pairs.take_while(|(a, b)| a == b).count();
                let _ = self.half_close.put.send(right as u64);
                return Ok(());
            }
            "/half-close-result/1.0.0" => {
                let right = self.half_close.wait().await.unwrap_or(u64::MAX);
                stream.write_all(&right.to_be_bytes()).await?;
            }
            "/reset-me/1.0.0" => return self.be_reset(stream).await,
            "/reset-result/1.0.0" => {
                let reset = self.reset.wait().await.unwrap_or(false);
                stream.write_all(&[u8::from(reset)]).await?;
            }
            "/reset-you/1.0.0" => {
                stream.read_exact(&mut [0]).await?;
                stream.reset(RESPONDERS_CODE);
                return Ok(());
            }
            other => return Err(io::Error::other(format!("nobody negotiated {other}"))),
        }
        self.finish(&mut stream).await
    }

    async fn be_reset(&self, mut stream: Substream) -> io::Result<()> {
        let mut got = [0; 1024];
        stream.read_exact(&mut got).await?;
        stream.write_all(&got[1023..]).await?;
        let end = stream.read_to_end(&mut Vec::new()).await;
        let seen = match &end {
            Err(error) if self.habits.codes => reset_code(error) == Some(OPENERS_CODE),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            Ok(_) => false,
        };
        let _ = self.reset.put.send(seen);
        if seen {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "no reset as it should be: {end:?}"
        )))
    }

    async fn finish(&self, stream: &mut Substream) -> io::Result<()> {
        let outcome = stream.finish().await;
        match &outcome {
            Ok(finished) if *finished == self.habits.finished => Ok(()),
            Err(FinishError::Stopped(code)) => Err(SubstreamError::Stopped(*code).into()),
            Err(FinishError::ConnectionLost(cause)) => {
                Err(SubstreamError::ConnectionLost(cause.clone()).into())
            }
            _ => Err(io::Error::other(format!("FIN came to {outcome:?}"))),
        }
    }
}

/// The peer's code, if the error is a reset by the peer.
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

/// Reads to the end; resets the substream unless it had `length` bytes of content.
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
