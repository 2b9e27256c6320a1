//! `/bench/1.0.0` and `/bench-nofin/1.0.0`, with the figures of `examples/peer/bench.rs`. Here the
//! end of an upload is confirmed by the first byte of the answer or by its end: not every stack has
//! a FIN_ACK.

use std::time::{Duration, Instant};

use futures::AsyncWriteExt;
use futures::future::{join_all, try_join_all};

use crate::content::{self, Checker};
use crate::dial::{Dialler, Failure, Phase};
use crate::json::Object;
use crate::serve::{BENCH, BENCH_NOFIN};
use crate::{Connection, Stack, Substream};

/// Moments in the life of one substream.
struct Times {
    up_done: Instant,
    down_done: Instant,
    closed: Instant,
}

/// Runs all substreams and adds the figures to `line`.
pub(crate) async fn run<S: Stack>(
    dialler: &Dialler<S>,
    connection: &dyn Connection,
    line: Object,
) -> Result<Object, Failure> {
    let options = &dialler.options;
    let start = Instant::now();
    let protocol = if options.nofin { BENCH_NOFIN } else { BENCH };
    let opening = (0..options.streams).map(|_| dialler.open(connection, protocol));
    let substreams = try_join_all(opening).await?;
    let open = start.elapsed();

    let cpu = dialler.cpu();
    let start = Instant::now();
    let (up, down, chunk, nofin) = (options.up, options.down, options.chunk, options.nofin);
    let transfers = substreams.into_iter().map(|substream| {
        let transfer = tokio::spawn(transfer(substream, up, down, chunk, nofin));
        dialler.within(Phase::Transfer, async {
            match transfer.await {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
    });
    let mut done = Vec::new();
    let mut failure = None;
    for result in join_all(transfers).await {
        match result {
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
        .number("up_MBps", rate(up, last_up))
        .number("down_MBps", rate(down, last_down.saturating_sub(first_up)))
        .integer("streams_ok", done.len() as u64);
    Ok(cpu.report(line))
}

async fn transfer(
    mut stream: Substream,
    up: u64,
    down: u64,
    chunk: usize,
    nofin: bool,
) -> std::io::Result<Times> {
    stream.write_all(&content::header(up, down)).await?;
    content::send(&mut stream, up, chunk, |_| {}).await?;
    if !nofin {
        stream.close().await?;
    }
    let mut up_done = Instant::now();
    let mut checker = Checker::new();
    if down > 0 {
        checker.receive_some(&mut stream, down).await?;
        up_done = Instant::now();
    }
    checker.receive(&mut stream, down).await?;
    if nofin {
        let down_done = Instant::now();
        stream.write_all(content::at(0, 1)).await?;
        stream.close().await?;
        return Ok(Times {
            up_done,
            down_done,
            closed: down_done,
        });
    }
    content::end(&mut stream).await?;
    let closed = Instant::now();
    Ok(Times {
        up_done: if down > 0 { up_done } else { closed },
        down_done: closed,
        closed,
    })
}
