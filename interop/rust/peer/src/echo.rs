//! `/echo/1.0.0`: open, echo, close, one after another.

use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt};

use crate::content::{self, Checker};
use crate::dial::{Dialler, Failure, Phase};
use crate::json::Object;
use crate::measure::Samples;
use crate::serve::ECHO;
use crate::{Connection, Stack, Substream};

/// Runs all round trips and adds their percentiles to `line`.
pub(crate) async fn run<S: Stack>(
    dialler: &Dialler<S>,
    connection: &dyn Connection,
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
pub(crate) async fn round_trip<S: Stack>(
    dialler: &Dialler<S>,
    connection: &dyn Connection,
    size: u64,
) -> Result<Duration, Failure> {
    let start = Instant::now();
    let substream = dialler.open(connection, ECHO).await?;
    exchange(dialler, substream, size).await?;
    Ok(start.elapsed())
}

/// Sends `size` bytes on an open substream, checks what comes back, and closes.
pub(crate) async fn exchange<S: Stack>(
    dialler: &Dialler<S>,
    stream: Substream,
    size: u64,
) -> Result<(), Failure> {
    let nofin = dialler.options.nofin;
    let chunk = dialler.options.chunk;
    let (mut reader, mut writer) = stream.split();
    let both = async {
        let mut checker = Checker::small();
        if nofin {
            futures::try_join!(
                content::send(&mut writer, size, chunk, |_| {}),
                checker.receive(&mut reader, size),
            )?;
            return writer.close().await;
        }
        let upload = async {
            content::send(&mut writer, size, chunk, |_| {}).await?;
            writer.close().await
        };
        futures::try_join!(upload, checker.receive_all(&mut reader, size))?;
        Ok(())
    };
    dialler.within(Phase::Transfer, both).await
}
