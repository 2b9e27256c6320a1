//! The responder of every protocol.
//!
//! Integers are big-endian; the byte of the content at offset i is `i % 251`, in each direction.
//!
//! - `/bench/1.0.0`: the opener sends u64 N_up, u64 N_down, N_up bytes, and closes its write half;
//!   the responder reads to the end, sends N_down bytes, and closes.
//! - `/bench-nofin/1.0.0`: the same header; the responder answers with N_down bytes as soon as N_up
//!   bytes have come; the opener, when it has them all, sends one byte more; then both close.
//! - `/echo/1.0.0`: echo until the end, then close.
//! - `/stall/1.0.0`: the opener sends u64 N_up, u64 hold_ms; the responder sends one byte `S`, does
//!   not read for hold_ms, then reads to the end, sends u64 count, and closes.
//! - `/half-close/1.0.0`, `/reset-me/1.0.0`, `/reset-result/1.0.0`, `/reset-you/1.0.0`: those of
//!   `interop/js/README.md`.
//! - `/ipfs/ping/1.0.0`: libp2p's ping, which to the responder is an echo of 32 bytes at a time.
//!
//! A responder that finds a wrong or missing byte resets the substream.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::content::{self, Checker};
use crate::{Reader, Substream, Writer};

pub(crate) const BENCH: &str = "/bench/1.0.0";
pub(crate) const BENCH_NOFIN: &str = "/bench-nofin/1.0.0";
pub(crate) const ECHO: &str = "/echo/1.0.0";
pub(crate) const STALL: &str = "/stall/1.0.0";
pub(crate) const HALF_CLOSE: &str = "/half-close/1.0.0";
pub(crate) const RESET_ME: &str = "/reset-me/1.0.0";
pub(crate) const RESET_RESULT: &str = "/reset-result/1.0.0";
pub(crate) const RESET_YOU: &str = "/reset-you/1.0.0";
const PING: &str = "/ipfs/ping/1.0.0";

/// All protocols that [`respond`] supports.
pub const PROTOCOLS: [&str; 9] = [
    BENCH,
    BENCH_NOFIN,
    ECHO,
    STALL,
    HALF_CLOSE,
    RESET_ME,
    RESET_RESULT,
    RESET_YOU,
    PING,
];

/// Bytes of the answer to a half-close.
pub(crate) const HALF_CLOSE_BYTES: u64 = 65_536;

/// What the responder of [`STALL`] sends before it stops reading.
pub(crate) const STALLED: u8 = b'S';

/// Maximum of the bytes that an echo holds.
const ECHO_CHUNK: usize = 64 << 10;

/// How long a peer without half-close may take to end a substream after its last byte.
const NOFIN_END: Duration = Duration::from_secs(5);

/// How long [`RESET_RESULT`] waits for the result.
const RECORD_WAIT: Duration = Duration::from_secs(2);

/// What one substream of a connection observes and another one asks for.
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

/// How a responder leaves a substream.
enum End {
    Closed,
    Reset,
}

/// Answers a substream that the peer opened. `records` are those of its connection. The future is
/// small for an idle echo, and fit to be a task itself: to await it in another one costs its size
/// again.
///
/// # Errors
/// Those of the substream, and wrong or missing content, with the name of the protocol. The
/// substream has been reset.
pub fn respond<S: Substream>(
    protocol: String,
    substream: S,
    records: Arc<Records>,
) -> impl Future<Output = io::Result<()>> + Send {
    let (mut reader, mut writer) = substream.into_split();
    async move {
        let (r, w) = (&mut reader, &mut writer);
        // Boxed: the task of an idle echo need not be as large as that of the largest protocol.
        let result = match protocol.as_str() {
            BENCH => Box::pin(bench(r, w)).await,
            BENCH_NOFIN => Box::pin(bench_nofin(r, w)).await,
            ECHO | PING => echo(r, w).await,
            STALL => Box::pin(stall(r, w)).await,
            HALF_CLOSE => Box::pin(half_close(r, w)).await,
            RESET_ME => Box::pin(reset_me(r, w, &records)).await,
            RESET_RESULT => Box::pin(reset_result(w, &records)).await,
            RESET_YOU => Box::pin(reset_you(r)).await,
            _ => Err(content::invalid("no such protocol".to_owned())),
        };
        if !matches!(result, Ok(End::Closed)) {
            S::reset(reader, writer);
        }
        match result {
            Ok(_) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), format!("{protocol}: {error}"))),
        }
    }
}

async fn bench(reader: &mut impl Reader, writer: &mut impl Writer) -> io::Result<End> {
    let up = content::read_u64(reader).await?;
    let down = content::read_u64(reader).await?;
    Checker::default().receive_all(reader, up).await?;
    content::send(writer, down, content::DEFAULT_CHUNK, |_| {}).await?;
    writer.finish().await?;
    Ok(End::Closed)
}

async fn bench_nofin(reader: &mut impl Reader, writer: &mut impl Writer) -> io::Result<End> {
    let up = content::read_u64(reader).await?;
    let down = content::read_u64(reader).await?;
    Checker::default().receive(reader, up).await?;
    content::send(writer, down, content::DEFAULT_CHUNK, |_| {}).await?;
    content::read_bytes::<1>(reader).await?;
    // All bytes have arrived: whether and how the peer ends its direction does not matter any more.
    let (finished, _) = tokio::join!(
        writer.finish(),
        tokio::time::timeout(NOFIN_END, content::end(reader)),
    );
    finished?;
    Ok(End::Closed)
}

async fn echo(reader: &mut impl Reader, writer: &mut impl Writer) -> io::Result<End> {
    loop {
        let chunk = reader.read(ECHO_CHUNK).await?;
        if chunk.is_empty() {
            break;
        }
        writer.write(chunk).await?;
        writer.flush().await?;
    }
    writer.finish().await?;
    Ok(End::Closed)
}

async fn stall(reader: &mut impl Reader, writer: &mut impl Writer) -> io::Result<End> {
    let up = content::read_u64(reader).await?;
    let hold = Duration::from_millis(content::read_u64(reader).await?);
    content::send_bytes(writer, &[STALLED]).await?;
    tokio::time::sleep(hold).await;
    let mut checker = Checker::default();
    checker.receive_all(reader, up).await?;
    content::send_bytes(writer, &checker.received().to_be_bytes()).await?;
    writer.finish().await?;
    Ok(End::Closed)
}

async fn half_close(reader: &mut impl Reader, writer: &mut impl Writer) -> io::Result<End> {
    while !reader.read(content::DEFAULT_CHUNK).await?.is_empty() {}
    content::send(writer, HALF_CLOSE_BYTES, content::DEFAULT_CHUNK, |_| {}).await?;
    writer.finish().await?;
    Ok(End::Closed)
}

async fn reset_me(
    reader: &mut impl Reader,
    writer: &mut impl Writer,
    records: &Records,
) -> io::Result<End> {
    let bytes = content::read_bytes::<1024>(reader).await?;
    content::send_bytes(writer, &bytes[1023..]).await?;
    let reset = content::ended_by_reset(reader).await;
    records.reset.send_replace(Some(reset));
    Ok(End::Reset)
}

async fn reset_result(writer: &mut impl Writer, records: &Records) -> io::Result<End> {
    let mut record = records.reset.subscribe();
    // Without a record in time it is `None`, as if there was no reset.
    let _ = tokio::time::timeout(RECORD_WAIT, record.wait_for(Option::is_some))
        .await
        .map(drop);
    let reset = records.reset.send_replace(None) == Some(true);
    content::send_bytes(writer, &[u8::from(reset)]).await?;
    writer.finish().await?;
    Ok(End::Closed)
}

async fn reset_you(reader: &mut impl Reader) -> io::Result<End> {
    content::read_bytes::<1>(reader).await?;
    Ok(End::Reset)
}
