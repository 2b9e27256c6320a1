//! The responders: those of `examples/peer/serve.rs`, and those of `interop/js/README.md`.
//!
//! A responder that finds a wrong or missing byte drops the substream before it was closed, which
//! resets it.

use std::io;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};

use crate::Substream;
use crate::content::{self, Checker};

pub(crate) const BENCH: &str = "/bench/1.0.0";
pub(crate) const BENCH_NOFIN: &str = "/bench-nofin/1.0.0";
pub(crate) const ECHO: &str = "/echo/1.0.0";
pub(crate) const STALL: &str = "/stall/1.0.0";
pub(crate) const HALF_CLOSE: &str = "/half-close/1.0.0";
pub(crate) const RESET_ME: &str = "/reset-me/1.0.0";
pub(crate) const RESET_RESULT: &str = "/reset-result/1.0.0";
pub(crate) const RESET_YOU: &str = "/reset-you/1.0.0";

/// All protocols that [`respond`] knows.
pub const PROTOCOLS: [&str; 9] = [
    BENCH,
    BENCH_NOFIN,
    ECHO,
    STALL,
    HALF_CLOSE,
    RESET_ME,
    RESET_RESULT,
    RESET_YOU,
    "/ipfs/ping/1.0.0",
];

/// Bytes that a half-close is answered with.
pub(crate) const HALF_CLOSE_BYTES: u64 = 65_536;

/// What the responder of [`STALL`] sends before it falls silent.
pub(crate) const STALLED: u8 = b'S';

/// Bytes of an echo that are read at once.
const ECHO_CHUNK: usize = 64 << 10;

/// How long a peer without half-close may take to end a substream whose bytes all came.
const NOFIN_END: Duration = Duration::from_secs(5);

/// How long [`RESET_RESULT`] waits for the result.
const RECORD_WAIT: Duration = Duration::from_secs(2);

/// What one substream of a connection finds out and another one asks for.
#[derive(Debug)]
pub struct Records {
    reset: tokio::sync::watch::Sender<Option<bool>>,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            reset: tokio::sync::watch::Sender::new(None),
        }
    }
}

/// Answers a substream that the peer opened.
pub async fn respond(protocol: String, mut stream: Substream, records: &Records) {
    let result = match protocol.as_str() {
        BENCH => bench(&mut stream).await,
        BENCH_NOFIN => bench_nofin(&mut stream).await,
        ECHO | "/ipfs/ping/1.0.0" => echo(&mut stream).await,
        STALL => stall(&mut stream).await,
        HALF_CLOSE => half_close(&mut stream).await,
        RESET_ME => reset_me(&mut stream, records).await,
        RESET_RESULT => reset_result(&mut stream, records).await,
        // Dropped without a close.
        RESET_YOU => stream.read_exact(&mut [0]).await,
        _ => Err(content::invalid("no such protocol".to_owned())),
    };
    if let Err(error) = result {
        eprintln!("responder of {protocol}: {error}");
    }
}

async fn bench(stream: &mut Substream) -> io::Result<()> {
    let up = content::read_u64(stream).await?;
    let down = content::read_u64(stream).await?;
    Checker::new().receive_all(stream, up).await?;
    content::send(stream, down, content::DEFAULT_CHUNK, |_| {}).await?;
    stream.close().await
}

async fn bench_nofin(stream: &mut Substream) -> io::Result<()> {
    let up = content::read_u64(stream).await?;
    let down = content::read_u64(stream).await?;
    Checker::new().receive(stream, up).await?;
    content::send(stream, down, content::DEFAULT_CHUNK, |_| {}).await?;
    stream.read_exact(&mut [0]).await?;
    stream.close().await?;
    // All is there; whether and how the peer ends its direction is no matter any more.
    let _ = tokio::time::timeout(NOFIN_END, content::end(stream)).await;
    Ok(())
}

async fn echo(stream: &mut Substream) -> io::Result<()> {
    let mut buffer = vec![0; 4 << 10];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return stream.close().await;
        }
        stream.write_all(&buffer[..count]).await?;
        stream.flush().await?;
        if count == buffer.len() {
            buffer.resize(ECHO_CHUNK, 0);
        }
    }
}

async fn stall(stream: &mut Substream) -> io::Result<()> {
    let up = content::read_u64(stream).await?;
    let hold = Duration::from_millis(content::read_u64(stream).await?);
    stream.write_all(&[STALLED]).await?;
    stream.flush().await?;
    tokio::time::sleep(hold).await;
    let mut checker = Checker::new();
    checker.receive_all(stream, up).await?;
    stream.write_all(&checker.received().to_be_bytes()).await?;
    stream.close().await
}

async fn half_close(stream: &mut Substream) -> io::Result<()> {
    stream.read_to_end(&mut Vec::new()).await?;
    content::send(stream, HALF_CLOSE_BYTES, content::DEFAULT_CHUNK, |_| {}).await?;
    stream.close().await
}

async fn reset_me(stream: &mut Substream, records: &Records) -> io::Result<()> {
    let mut got = [0; 1024];
    stream.read_exact(&mut got).await?;
    stream.write_all(&got[1023..]).await?;
    stream.flush().await?;
    records
        .reset
        .send_replace(Some(ended_by_reset(stream).await));
    Ok(())
}

/// Reads to the end and says whether that was a reset. In libp2p-webrtc it looks like an orderly end
/// to the read that meets it, and like a reset to the next one.
pub(crate) async fn ended_by_reset(stream: &mut Substream) -> bool {
    let is_reset = |error: io::Error| error.kind() == io::ErrorKind::ConnectionReset;
    match stream.read_to_end(&mut Vec::new()).await {
        Err(error) => is_reset(error),
        Ok(_) => stream.read(&mut [0]).await.is_err_and(is_reset),
    }
}

async fn reset_result(stream: &mut Substream, records: &Records) -> io::Result<()> {
    let mut record = records.reset.subscribe();
    // Without a record in time it is `None`, as if no reset was seen.
    let _ = tokio::time::timeout(RECORD_WAIT, record.wait_for(Option::is_some))
        .await
        .map(drop);
    let reset = records.reset.send_replace(None) == Some(true);
    stream.write_all(&[u8::from(reset)]).await?;
    stream.close().await
}
