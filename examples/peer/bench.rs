//! `/bench/1.0.0` and `/bench-nofin/1.0.0`: bulk transfer on several substreams at once.
//!
//! - `open_ms`: until all substreams are open and negotiated; they are opened at once.
//! - `seconds`: from the first byte to the last close; with `--nofin` to the last byte.
//! - `up_MBps`: all bytes up, from the first byte until every substream's up was confirmed by
//!   FIN_ACK or by the first byte of the answer.
//! - `down_MBps`: all bytes down, from the first of these confirmations to the last byte.

use std::time::{Duration, Instant};

use anabranch::{Connection, Substream};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::try_join_all;
use tokio::task::JoinSet;

use crate::content::{self, Checker};
use crate::dial::{Dialler, Failure, Phase};
use crate::json::Object;
use crate::serve::{BENCH, BENCH_NOFIN};

/// Moments in the life of one substream.
struct Times {
    up_done: Instant,
    down_done: Instant,
    closed: Instant,
}

/// Runs all substreams and adds the figures to `line`.
pub(crate) async fn run(
    dialler: &Dialler,
    connection: &Connection,
    line: Object,
) -> Result<Object, Failure> {
    let options = &dialler.options;
    let start = Instant::now();
    let substreams = open_all(dialler, connection).await?;
    let open = start.elapsed();

    let cpu = dialler.cpu();
    let start = Instant::now();
    let mut transfers = JoinSet::new();
    for substream in substreams {
        let dialler = dialler.clone();
        transfers.spawn(async move { transfer(&dialler, substream).await });
    }
    let mut done = Vec::new();
    let mut failure = None;
    while let Some(joined) = transfers.join_next().await {
        match joined
            .map_err(Failure::of(Phase::Transfer, "task"))
            .flatten()
        {
            Ok(times) => done.push(times),
            Err(error) => {
                failure.get_or_insert(error);
            }
        }
    }
    let cpu = dialler.cpu().since(cpu);
    if let Some(failure) = failure {
        let context = format!("{} of {} substreams ok", done.len(), options.streams);
        return Err(failure.context(context));
    }

    let since_start = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| at - start);
    let first_up = since_start(done.iter().map(|times| times.up_done).min());
    let last_up = since_start(done.iter().map(|times| times.up_done).max());
    let last_down = since_start(done.iter().map(|times| times.down_done).max());
    let last_close = since_start(done.iter().map(|times| times.closed).max());
    let rate = |bytes: u64, time: Duration| match bytes {
        0 => 0.0,
        _ => bytes as f64 * done.len() as f64 / 1e6 / time.as_secs_f64(),
    };
    let line = line
        .millis("open_ms", open)
        .seconds("seconds", last_close)
        .number("up_MBps", rate(options.up, last_up))
        .number(
            "down_MBps",
            rate(options.down, last_down.saturating_sub(first_up)),
        )
        .integer("streams_ok", done.len() as u64);
    Ok(cpu.report(line))
}

async fn open_all(dialler: &Dialler, connection: &Connection) -> Result<Vec<Substream>, Failure> {
    let protocol = if dialler.options.nofin {
        BENCH_NOFIN
    } else {
        BENCH
    };
    let opening = (0..dialler.options.streams).map(|_| dialler.open(connection, protocol));
    try_join_all(opening).await
}

async fn transfer(dialler: &Dialler, substream: Substream) -> Result<Times, Failure> {
    if dialler.options.nofin {
        transfer_nofin(dialler, substream).await
    } else {
        transfer_fin(dialler, substream).await
    }
}

async fn transfer_fin(dialler: &Dialler, substream: Substream) -> Result<Times, Failure> {
    let options = &dialler.options;
    let (mut reader, mut writer) = substream.into_split();
    let upload = async {
        writer.write_chunk(header(options.up, options.down)).await?;
        content::send(&mut writer, options.up, options.chunk, |_| {}).await?;
        let outcome = writer.finish().await;
        Ok((outcome, Instant::now()))
    };
    let download = async {
        let mut checker = Checker::default();
        if options.down > 0 {
            checker.receive_some(&mut reader, options.down).await?;
        }
        let first = (checker.received() > 0).then(Instant::now);
        checker.receive_all(&mut reader, options.down).await?;
        Ok::<_, std::io::Error>((first, Instant::now()))
    };
    let both = async { tokio::try_join!(upload, download) };
    let ((outcome, acked), (first, down_done)) = dialler.within(Phase::Transfer, both).await?;
    dialler.check_outcome(outcome)?;
    Ok(Times {
        up_done: first.map_or(acked, |first| first.min(acked)),
        down_done,
        closed: acked.max(down_done),
    })
}

async fn transfer_nofin(dialler: &Dialler, mut substream: Substream) -> Result<Times, Failure> {
    let options = &dialler.options;
    let (reader, writer) = substream.split();
    let exchange = async {
        writer.write_chunk(header(options.up, options.down)).await?;
        content::send(writer, options.up, options.chunk, |_| {}).await?;
        let mut up_done = Instant::now();
        let mut checker = Checker::default();
        if options.down > 0 {
            checker.receive_some(reader, options.down).await?;
            up_done = Instant::now();
            checker.receive(reader, options.down).await?;
        }
        let down_done = Instant::now();
        writer.write_chunk(content::at(0, 1)).await?;
        Ok::<_, std::io::Error>((up_done, down_done))
    };
    let (up_done, down_done) = dialler.within(Phase::Transfer, exchange).await?;
    let closing = async { std::io::Result::Ok(substream.finish().await) };
    let outcome = dialler.within(Phase::Close, closing).await?;
    dialler.check_outcome(outcome)?;
    Ok(Times {
        up_done,
        down_done,
        closed: down_done,
    })
}

/// What the opener sends first.
pub(crate) fn header(first: u64, second: u64) -> Bytes {
    let mut header = BytesMut::with_capacity(16);
    header.put_u64(first);
    header.put_u64(second);
    header.freeze()
}
