//! `/bench/1.0.0` and `/bench-nofin/1.0.0`: bulk transfer on several substreams at once.
//!
//! - `open_ms`: until all substreams are open and negotiated; they are opened at once.
//! - `seconds`: from the first byte to the last close; with `--nofin` to the last byte.
//! - `up_MBps`: all bytes up, from the first byte until the upload of every substream was
//!   confirmed: by the stack, as FIN_ACK does it, by the first byte of the answer, or by its end.
//! - `down_MBps`: all bytes down, from the first of these confirmations to the last byte.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::task::JoinSet;

use crate::args::Options;
use crate::content::{self, Checker};
use crate::dial::{Dialler, Failure, Phase, SubstreamOf};
use crate::json::Object;
use crate::serve::{BENCH, BENCH_NOFIN};
use crate::{Finished, Stack, Substream, Writer};

/// When the steps of one substream were done.
struct Times {
    up_done: Instant,
    down_done: Instant,
    closed: Instant,
}

/// Runs all substreams and adds the figures to `line`.
pub(crate) async fn run<S: Stack>(
    dialler: &Dialler<S>,
    connection: &S::Connection,
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
        let options = Arc::clone(options);
        transfers.spawn(async move { transfer(&options, substream).await });
    }
    let mut done = Vec::new();
    let mut failure = None;
    while let Some(joined) = transfers.join_next().await {
        let of_task = |error| Failure::new(Phase::Transfer, format_args!("task: {error}"));
        match joined.map_err(of_task).flatten() {
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
    let down_time = last_down.saturating_sub(first_up);
    let line = line
        .millis("open_ms", open)
        .seconds("seconds", last_close)
        .number("up_MBps", rate(options.up, last_up))
        .number("down_MBps", rate(options.down, down_time))
        .integer("streams_ok", done.len() as u64);
    Ok(cpu.report(line))
}

async fn open_all<S: Stack>(
    dialler: &Dialler<S>,
    connection: &S::Connection,
) -> Result<Vec<SubstreamOf<S>>, Failure> {
    let protocol = match dialler.options.settings.nofin {
        true => BENCH_NOFIN,
        false => BENCH,
    };
    let opening = (0..dialler.options.streams).map(|_| dialler.open(connection, protocol));
    try_join_all(opening).await
}

async fn transfer<A>(options: &Options<A>, substream: impl Substream) -> Result<Times, Failure> {
    match options.settings.nofin {
        true => transfer_nofin(options, substream).await,
        false => transfer_fin(options, substream).await,
    }
}

async fn transfer_fin<A>(
    options: &Options<A>,
    substream: impl Substream,
) -> Result<Times, Failure> {
    let (mut reader, mut writer) = substream.into_split();
    let upload = async {
        let header = content::header(options.up, options.down);
        writer.write(header.into()).await?;
        content::send(&mut writer, options.up, options.chunk, |_| {}).await?;
        Ok((writer.finish().await, Instant::now()))
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
    let ((outcome, finished), (first, down_done)) = options.within(Phase::Transfer, both).await?;
    let confirmed = match outcome.map_err(Failure::unclean_close)? {
        Finished::Confirmed => finished,
        Finished::Sent => down_done,
    };
    Ok(Times {
        up_done: first.map_or(confirmed, |first| first.min(confirmed)),
        down_done,
        closed: finished.max(down_done),
    })
}

async fn transfer_nofin<A>(
    options: &Options<A>,
    substream: impl Substream,
) -> Result<Times, Failure> {
    let (mut reader, mut writer) = substream.into_split();
    let exchange = async {
        let header = content::header(options.up, options.down);
        writer.write(header.into()).await?;
        content::send(&mut writer, options.up, options.chunk, |_| {}).await?;
        let mut up_done = Instant::now();
        let mut checker = Checker::default();
        if options.down > 0 {
            checker.receive_some(&mut reader, options.down).await?;
            up_done = Instant::now();
            checker.receive(&mut reader, options.down).await?;
        }
        let down_done = Instant::now();
        content::send_bytes(&mut writer, content::at(0, 1)).await?;
        Ok::<_, std::io::Error>((up_done, down_done))
    };
    let (up_done, down_done) = options.within(Phase::Transfer, exchange).await?;
    let closing = async { std::io::Result::Ok(writer.finish().await) };
    let outcome = options.within(Phase::Close, closing).await?;
    outcome.map_err(Failure::unclean_close)?;
    Ok(Times {
        up_done,
        down_done,
        closed: down_done,
    })
}
