//! `--conns` and `--idle-streams`: the memory of idle connections and substreams.
//!
//! Memory is the resident set in KiB, of this process (`own_...`) and of that of `--peer-pid`,
//! before the first is opened and at the end of the hold. After that each must still work.
//!
//! A process seldom returns memory to the system, so only the first repeat against a fresh listener
//! shows the cost of each.

use std::time::Instant;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::Stack;
use crate::dial::{Dialler, Failure};
use crate::echo;
use crate::json::Object;
use crate::measure::{Memory, Samples, growth};
use crate::serve::ECHO;

/// Bytes of the echo that checks that a connection or substream still works.
const PROBE: u64 = 1 << 10;

/// Holds idle connections and reports their cost.
pub(crate) async fn connections<S: Stack>(
    dialler: &Dialler<S>,
    count: usize,
) -> Result<Object, Failure> {
    // One-time costs of the first connection are not a cost of each.
    let (warm_up, _) = dialler.connect().await?;
    echo::round_trip(dialler, &warm_up, PROBE).await?;
    dialler.close(warm_up).await?;

    let before = dialler.memory();
    let cpu = dialler.cpu();
    let start = Instant::now();
    let mut connections = Vec::with_capacity(count);
    let mut connects = Samples::default();
    let mut dials = stream::iter(0..count)
        .map(|i| async move {
            let result = dialler.connect().await;
            result.map_err(|failure| failure.context(format_args!("connection {i}")))
        })
        .buffer_unordered(dialler.options.parallel);
    while let Some((connection, took)) = dials.try_next().await? {
        connections.push(connection);
        connects.push(took);
    }
    let opened = start.elapsed();
    let cpu = dialler.cpu().since(cpu);
    let idle = dialler.cpu();
    tokio::time::sleep(dialler.options.hold).await;
    let idle = dialler.cpu().since(idle);
    let after = dialler.memory();
    for (i, connection) in connections.iter().enumerate() {
        echo::round_trip(dialler, connection, PROBE)
            .await
            .map_err(|failure| failure.context(format_args!("connection {i} after the hold")))?;
    }
    for connection in connections {
        dialler.close(connection).await?;
    }
    let line = Object::default()
        .integer("conns", count as u64)
        .millis("connect_ms", connects.percentile(50))
        .millis("connect_p95_ms", connects.percentile(95))
        .millis("connect_max_ms", connects.max())
        .seconds("seconds", opened);
    let line = idle
        .report_hold(cpu.report(line))
        .seconds("hold_s", dialler.options.hold);
    Ok(memory(line, "conn", before, after, count))
}

/// Holds idle substreams of one connection and adds their cost to `line`.
pub(crate) async fn substreams<S: Stack>(
    dialler: &Dialler<S>,
    connection: &S::Connection,
    count: usize,
    line: Object,
) -> Result<Object, Failure> {
    echo::round_trip(dialler, connection, PROBE).await?;

    let before = dialler.memory();
    let cpu = dialler.cpu();
    let start = Instant::now();
    let mut substreams = Vec::with_capacity(count);
    let mut opens = Samples::default();
    for i in 0..count {
        let start = Instant::now();
        let substream = dialler
            .open(connection, ECHO)
            .await
            .map_err(|failure| failure.context(format_args!("substream {i}")))?;
        opens.push(start.elapsed());
        substreams.push(substream);
    }
    let opened = start.elapsed();
    let cpu = dialler.cpu().since(cpu);
    tokio::time::sleep(dialler.options.hold).await;
    let after = dialler.memory();
    for (i, substream) in substreams.into_iter().enumerate() {
        echo::exchange(dialler, substream, PROBE)
            .await
            .map_err(|failure| failure.context(format_args!("substream {i} after the hold")))?;
    }
    let line = line
        .integer("streams_ok", count as u64)
        .millis("open_ms", opens.percentile(50))
        .millis("open_p95_ms", opens.percentile(95))
        .millis("open_max_ms", opens.max())
        .seconds("seconds", opened);
    Ok(memory(cpu.report(line), "stream", before, after, count))
}

fn memory(line: Object, of: &str, before: Memory, after: Memory, count: usize) -> Object {
    let kib = |value: Option<u64>| value.map(|value| value as f64);
    line.maybe("rss_kib_before", kib(before.peer))
        .maybe("rss_kib_after", kib(after.peer))
        .maybe(
            &format!("rss_kib_per_{of}"),
            growth(before.peer, after.peer, count),
        )
        .maybe("own_rss_kib_before", kib(before.own))
        .maybe("own_rss_kib_after", kib(after.own))
        .maybe(
            &format!("own_rss_kib_per_{of}"),
            growth(before.own, after.own, count),
        )
}
