//! Records at a fixed rate, on a substream for each stream or interleaved on one: what a lost
//! packet or a slow reader does to the others shows in when they arrive.

use std::io;
use std::time::Duration;

use anabranch::Substream;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep_until};

/// The request has two bytes: the first stream, and how many of them share this substream.
pub(crate) const PROTOCOL: &str = "/records";

const STREAMS: u32 = 8;
/// Between two records of a stream. Those of different streams are spread over it.
const INTERVAL: Duration = Duration::from_millis(48);
/// About a packet: stream, the time when it was due in milliseconds, and padding.
const RECORD: usize = 1000;

/// Sends records until the page reads no more.
pub(crate) async fn serve(mut substream: Substream, epoch: Instant) -> io::Result<()> {
    let first = u32::from(substream.read_u8().await?);
    let count = u32::from(substream.read_u8().await?);
    if count == 0 || first + count > STREAMS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("streams {first} + {count} of {STREAMS}"),
        ));
    }
    let mut round = rounds_since(epoch) + 1;
    loop {
        for stream in first..first + count {
            let due = INTERVAL * round + INTERVAL * stream / STREAMS;
            sleep_until(epoch + due).await;
            substream.write_chunk(record(stream, due)).await?;
        }
        // A writer that had to wait does not catch up: the values of a sensor would be stale.
        round = rounds_since(epoch).max(round) + 1;
    }
}

fn rounds_since(epoch: Instant) -> u32 {
    u32::try_from(epoch.elapsed().as_millis() / INTERVAL.as_millis()).unwrap_or(u32::MAX / 2)
}

fn record(stream: u32, due: Duration) -> Bytes {
    let mut record = BytesMut::with_capacity(RECORD);
    record.put_u32(stream);
    record.put_f64(due.as_secs_f64() * 1000.0);
    record.resize(RECORD, 0);
    record.freeze()
}
