//! `/echo/1.0.0`: open, echo, close, one after another.

use std::time::{Duration, Instant};

use crate::content::{self, Checker};
use crate::dial::{Dialler, Failure, Phase, SubstreamOf};
use crate::json::Object;
use crate::measure::Samples;
use crate::serve::ECHO;
use crate::{Stack, Substream, Writer};

/// Runs all round trips and adds their percentiles to `line`.
pub(crate) async fn run<S: Stack>(
    dialler: &Dialler<S>,
    connection: &S::Connection,
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

/// Runs one round trip on a substream of its own, from opening it to its close.
pub(crate) async fn round_trip<S: Stack>(
    dialler: &Dialler<S>,
    connection: &S::Connection,
    size: u64,
) -> Result<Duration, Failure> {
    let start = Instant::now();
    let substream = dialler.open(connection, ECHO).await?;
    exchange(dialler, substream, size).await?;
    Ok(start.elapsed())
}

/// Sends `size` bytes on an open substream, checks the echo, and closes.
///
/// With `--nofin` nothing is left to confirm when all bytes are back, so the close is not awaited.
pub(crate) async fn exchange<S: Stack>(
    dialler: &Dialler<S>,
    substream: SubstreamOf<S>,
    size: u64,
) -> Result<(), Failure> {
    let options = &dialler.options;
    let (mut reader, mut writer) = substream.into_split();
    let mut checker = Checker::default();
    if options.settings.nofin {
        let both = async {
            tokio::try_join!(
                content::send(&mut writer, size, options.chunk, |_| {}),
                checker.receive(&mut reader, size),
            )?;
            writer.close().await
        };
        return dialler.within(Phase::Transfer, both).await;
    }
    let upload = async {
        content::send(&mut writer, size, options.chunk, |_| {}).await?;
        Ok(writer.finish().await)
    };
    let both = async { tokio::try_join!(upload, checker.receive_all(&mut reader, size)) };
    let (outcome, ()) = dialler.within(Phase::Transfer, both).await?;
    outcome.map_err(Failure::unclean_close)?;
    Ok(())
}
