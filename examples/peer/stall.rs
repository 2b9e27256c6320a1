//! `--stall` and `--stall-down`: a reader that does not read for a while.
//!
//! The writer must stop at the window, the neighbours must not notice, memory must not grow beyond
//! the window, and in the end every byte must arrive.
//!
//! - `idle_probe_p50_ms`, `probe_p50_ms`, `probe_max_ms`: round trips of 1 KiB on other substreams
//!   of the same connection, before and during the stall.
//! - `stalled_bytes`: what the writer could write during the stall; for `--stall-down`, where the
//!   writer is the peer, what has arrived here and is unread.
//! - `own_rss_growth_kib`, `rss_growth_kib`: the largest resident set during the stall, less that
//!   before it, of this process and of the one that `--peer-pid` names.
//! - `resume_seconds`: from the end of the stall until every byte was there and all was closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anabranch::{Connection, Finished};
use tokio::io::AsyncReadExt;

use crate::bench::header;
use crate::content::{self, Checker};
use crate::dial::{Dialler, Failure, Phase};
use crate::echo;
use crate::json::Object;
use crate::measure::{Memory, Samples, growth};
use crate::serve::{BENCH, BENCH_NOFIN, STALL, STALLED};

/// Bytes of a probe.
const PROBE: u64 = 1 << 10;

/// Probes before the stall.
const IDLE_PROBES: usize = 20;

/// Rest between two probes.
const PROBE_PAUSE: Duration = Duration::from_millis(20);

/// How long before the end of the stall the figures are taken: the responder's clock started
/// earlier than ours.
const MARGIN: Duration = Duration::from_millis(50);

/// Longest write here, so that what was accepted is known well enough.
const CHUNK: usize = 16 << 10;

/// What the neighbours of a stall noticed.
struct Neighbours {
    idle: Samples,
    memory_before: Memory,
    memory_peak: Memory,
    stalled: Samples,
}

impl Neighbours {
    /// Probes before the stall.
    async fn idle(dialler: &Dialler, connection: &Connection) -> Result<Self, Failure> {
        let mut idle = Samples::default();
        for _ in 0..IDLE_PROBES {
            idle.push(echo::round_trip(dialler, connection, PROBE).await?);
            tokio::time::sleep(PROBE_PAUSE).await;
        }
        let memory = dialler.memory();
        Ok(Self {
            idle,
            memory_before: memory,
            memory_peak: memory,
            stalled: Samples::default(),
        })
    }

    /// Probes until `end`.
    async fn probe_until(
        &mut self,
        dialler: &Dialler,
        connection: &Connection,
        end: Instant,
    ) -> Result<(), Failure> {
        while Instant::now() + PROBE_PAUSE < end {
            let took = echo::round_trip(dialler, connection, PROBE).await;
            self.stalled
                .push(took.map_err(|failure| failure.context("a probe beside the stall"))?);
            self.memory_peak = self.memory_peak.max(dialler.memory());
            tokio::time::sleep(PROBE_PAUSE).await;
        }
        tokio::time::sleep_until(end.into()).await;
        Ok(())
    }

    fn report(&self, line: Object) -> Object {
        let Self {
            memory_before: before,
            memory_peak: peak,
            ..
        } = self;
        line.millis("idle_probe_p50_ms", self.idle.percentile(50))
            .millis("probe_p50_ms", self.stalled.percentile(50))
            .millis("probe_max_ms", self.stalled.max())
            .integer("probes", self.stalled.len())
            .maybe("own_rss_growth_kib", growth(before.own, peak.own, 1))
            .maybe("rss_growth_kib", growth(before.peer, peak.peer, 1))
    }
}

/// The responder does not read.
pub(crate) async fn up(
    dialler: &Dialler,
    connection: &Connection,
    line: Object,
) -> Result<Object, Failure> {
    let (total, hold) = (dialler.options.up, dialler.options.hold);
    let mut neighbours = Neighbours::idle(dialler, connection).await?;

    let (mut reader, mut writer) = dialler.open(connection, STALL).await?.into_split();
    let ready = async {
        let hold_ms = u64::try_from(hold.as_millis()).unwrap_or(u64::MAX);
        writer.write_chunk(header(total, hold_ms)).await?;
        reader.read_u8().await
    };
    if dialler.within(Phase::Transfer, ready).await? != STALLED {
        return Err(Failure::new(
            Phase::Transfer,
            "the responder did not begin with S",
        ));
    }
    let start = Instant::now();

    let accepted = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&accepted);
    let chunk = dialler.options.chunk.min(CHUNK);
    let upload = tokio::spawn(async move {
        let count = |accepted| counter.store(accepted, Ordering::Relaxed);
        content::send(&mut writer, total, chunk, count).await?;
        std::io::Result::Ok(writer.finish().await)
    });
    let sampled = start + hold.saturating_sub(MARGIN);
    neighbours.probe_until(dialler, connection, sampled).await?;
    let stalled_bytes = accepted.load(Ordering::Relaxed);

    tokio::time::sleep_until((start + hold).into()).await;
    let resumed = Instant::now();
    let rest = async {
        let outcome = upload.await.map_err(std::io::Error::other)??;
        let count = reader.read_u64().await?;
        content::end(&mut reader).await?;
        Ok::<_, std::io::Error>((outcome, count))
    };
    let (outcome, count) = dialler.within(Phase::Transfer, rest).await?;
    dialler.check_outcome(outcome)?;
    if count != total {
        let message = format!("the responder counted {count} of {total} bytes");
        return Err(Failure::new(Phase::Transfer, message));
    }
    let line = line
        .seconds("seconds", start.elapsed())
        .seconds("resume_seconds", resumed.elapsed())
        .integer("stalled_bytes", stalled_bytes);
    Ok(neighbours.report(line))
}

/// This side does not read.
pub(crate) async fn down(
    dialler: &Dialler,
    connection: &Connection,
    line: Object,
) -> Result<Object, Failure> {
    let options = &dialler.options;
    let mut neighbours = Neighbours::idle(dialler, connection).await?;

    let protocol = if options.nofin { BENCH_NOFIN } else { BENCH };
    let (mut reader, mut writer) = dialler.open(connection, protocol).await?.into_split();
    let request = async {
        writer.write_chunk(header(options.up, options.down)).await?;
        content::send(&mut writer, options.up, options.chunk, |_| {}).await?;
        if options.nofin {
            std::io::Result::Ok(Ok(Finished::Acked))
        } else {
            Ok(writer.finish().await)
        }
    };
    let outcome = dialler.within(Phase::Transfer, request).await?;
    dialler.check_outcome(outcome.clone())?;

    let start = Instant::now();
    neighbours
        .probe_until(dialler, connection, start + options.hold)
        .await?;
    let stalled_bytes = reader.unread() as u64;

    let resumed = Instant::now();
    let rest = async {
        let mut checker = Checker::default();
        if !options.nofin {
            checker.receive_all(&mut reader, options.down).await?;
            return std::io::Result::Ok(outcome);
        }
        checker.receive(&mut reader, options.down).await?;
        writer.write_chunk(content::at(0, 1)).await?;
        Ok(writer.finish().await)
    };
    let outcome = dialler.within(Phase::Transfer, rest).await?;
    dialler.check_outcome(outcome)?;
    let line = line
        .seconds("seconds", start.elapsed())
        .seconds("resume_seconds", resumed.elapsed())
        .integer("stalled_bytes", stalled_bytes);
    Ok(neighbours.report(line))
}
