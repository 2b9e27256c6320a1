//! `/echo/1.0.0`: open, echo, close, one after another.

use std::time::{Duration, Instant};

use anabranch::{Connection, Substream};

use crate::content::{self, Checker};
use crate::dial::{Dialler, Failure, Phase};
use crate::json::Object;
use crate::measure::Samples;
use crate::serve::ECHO;

/// Runs all round trips and adds their percentiles to `line`.
pub(crate) async fn run(
    dialler: &Dialler,
    connection: &Connection,
    line: Object,
) -> Result<Object, Failure> {
    let cpu = dialler.cpu();
    let start = Instant::now();
    let mut samples = Samples::default();
    for i in 0..dialler.options.count {
        let took = round_trip(dialler, connection, dialler.options.size).await;
        samples.push(took.map_err(|failure| failure.context(format_args!("round trip {i}")))?);
    }
    let line = line
        .seconds("seconds", start.elapsed())
        .integer("count", samples.len())
        .millis("p50_ms", samples.percentile(50))
        .millis("p95_ms", samples.percentile(95))
        .millis("max_ms", samples.max());
    Ok(dialler.cpu().since(cpu).report(line))
}

/// One round trip on a substream of its own, from opening it to its close.
pub(crate) async fn round_trip(
    dialler: &Dialler,
    connection: &Connection,
    size: u64,
) -> Result<Duration, Failure> {
    let start = Instant::now();
    let substream = dialler.open(connection, ECHO).await?;
    exchange(dialler, substream, size).await?;
    Ok(start.elapsed())
}

/// Sends `size` bytes on an open substream, checks what comes back, and closes.
///
/// With `--nofin` nothing is left to confirm when all bytes are back, and the substream is dropped,
/// which closes it gracefully without waiting for it.
pub(crate) async fn exchange(
    dialler: &Dialler,
    mut substream: Substream,
    size: u64,
) -> Result<(), Failure> {
    let options = &dialler.options;
    let mut checker = Checker::default();
    let (reader, writer) = substream.split();
    if options.nofin {
        let both = async {
            tokio::try_join!(
                content::send(writer, size, options.chunk, |_| {}),
                checker.receive(reader, size),
            )
        };
        dialler.within(Phase::Transfer, both).await?;
        return Ok(());
    }
    let upload = async {
        content::send(writer, size, options.chunk, |_| {}).await?;
        Ok(writer.finish().await)
    };
    let both = async { tokio::try_join!(upload, checker.receive_all(reader, size)) };
    let (outcome, ()) = dialler.within(Phase::Transfer, both).await?;
    dialler.check_outcome(outcome)
}
