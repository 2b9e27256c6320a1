//! `--stall` and `--stall-down`: a reader that does not read for a while, with the figures of
//! `examples/peer/stall.rs`. What has arrived here and is unread is not known to a stack's user, so
//! `--stall-down` has no `stalled_bytes`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt};

use crate::content::{self, Checker};
use crate::dial::{Dialler, Failure, Phase};
use crate::echo;
use crate::json::Object;
use crate::measure::{Memory, Samples, growth};
use crate::serve::{BENCH, BENCH_NOFIN, STALL, STALLED};
use crate::{Connection, Stack};

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
    /// Why a probe failed.
    failure: Option<Failure>,
}

impl Neighbours {
    /// Probes before the stall.
    async fn idle<S: Stack>(
        dialler: &Dialler<S>,
        connection: &dyn Connection,
    ) -> Result<Self, Failure> {
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
            failure: None,
        })
    }

    /// Probes until `end`. A probe that is still on its way then counts with the time that it has
    /// waited: some stacks stop as a whole.
    async fn probe_until<S: Stack>(
        &mut self,
        dialler: &Dialler<S>,
        connection: &dyn Connection,
        end: Instant,
    ) {
        while self.failure.is_none() && Instant::now() + PROBE_PAUSE < end {
            let start = Instant::now();
            let probe = echo::round_trip(dialler, connection, PROBE);
            match tokio::time::timeout_at(end.into(), probe).await {
                Ok(Ok(took)) => self.stalled.push(took),
                Ok(Err(failure)) => self.failure = Some(failure.context("a probe")),
                Err(_) => self.stalled.push(start.elapsed()),
            }
            self.memory_peak = self.memory_peak.max(dialler.memory());
            tokio::time::sleep(PROBE_PAUSE).await;
        }
        tokio::time::sleep_until(end.into()).await;
    }

    fn report(self, line: Object) -> Result<Object, Failure> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let (before, peak) = (self.memory_before, self.memory_peak);
        Ok(line
            .millis("idle_probe_p50_ms", self.idle.percentile(50))
            .millis("probe_p50_ms", self.stalled.percentile(50))
            .millis("probe_max_ms", self.stalled.max())
            .integer("probes", self.stalled.len())
            .maybe("own_rss_growth_kib", growth(before.own, peak.own, 1))
            .maybe("rss_growth_kib", growth(before.peer, peak.peer, 1)))
    }
}

/// The responder does not read.
pub(crate) async fn up<S: Stack>(
    dialler: &Dialler<S>,
    connection: &dyn Connection,
    line: Object,
) -> Result<Object, Failure> {
    let (total, hold) = (dialler.options.up, dialler.options.hold);
    let mut neighbours = Neighbours::idle(dialler, connection).await?;

    let mut stream = dialler.open(connection, STALL).await?;
    let ready = async {
        let hold_ms = u64::try_from(hold.as_millis()).unwrap_or(u64::MAX);
        stream.write_all(&content::header(total, hold_ms)).await?;
        stream.flush().await?;
        let mut answer = [0];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer[0])
    };
    if dialler.within(Phase::Transfer, ready).await? != STALLED {
        let message = "the responder did not begin with S";
        return Err(Failure::new(Phase::Transfer, message));
    }
    let start = Instant::now();

    let accepted = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&accepted);
    let chunk = dialler.options.chunk.min(CHUNK);
    let upload = tokio::spawn(async move {
        let count = |accepted| counter.store(accepted, Ordering::Relaxed);
        content::send(&mut stream, total, chunk, count).await?;
        stream.close().await?;
        let counted = content::read_u64(&mut stream).await?;
        content::end(&mut stream).await?;
        Ok::<_, std::io::Error>(counted)
    });
    let sampled = start + hold.saturating_sub(MARGIN);
    neighbours.probe_until(dialler, connection, sampled).await;
    let stalled_bytes = accepted.load(Ordering::Relaxed);

    tokio::time::sleep_until((start + hold).into()).await;
    let resumed = Instant::now();
    let rest = async { upload.await.map_err(std::io::Error::other)? };
    let count = dialler.within(Phase::Transfer, rest).await?;
    if count != total {
        let message = format!("the responder counted {count} of {total} bytes");
        return Err(Failure::new(Phase::Transfer, message));
    }
    let line = line
        .seconds("seconds", start.elapsed())
        .seconds("resume_seconds", resumed.elapsed())
        .integer("stalled_bytes", stalled_bytes);
    neighbours.report(line)
}

/// This side does not read.
pub(crate) async fn down<S: Stack>(
    dialler: &Dialler<S>,
    connection: &dyn Connection,
    line: Object,
) -> Result<Object, Failure> {
    let options = &dialler.options;
    let mut neighbours = Neighbours::idle(dialler, connection).await?;

    let protocol = if options.nofin { BENCH_NOFIN } else { BENCH };
    let mut stream = dialler.open(connection, protocol).await?;
    let request = async {
        let header = content::header(options.up, options.down);
        stream.write_all(&header).await?;
        content::send(&mut stream, options.up, options.chunk, |_| {}).await?;
        if !options.nofin {
            stream.close().await?;
        }
        Ok::<_, std::io::Error>(())
    };
    dialler.within(Phase::Transfer, request).await?;

    let start = Instant::now();
    let end = start + options.hold;
    neighbours.probe_until(dialler, connection, end).await;

    let resumed = Instant::now();
    let rest = async {
        let mut checker = Checker::new();
        if !options.nofin {
            return checker.receive_all(&mut stream, options.down).await;
        }
        checker.receive(&mut stream, options.down).await?;
        stream.write_all(content::at(0, 1)).await?;
        stream.close().await
    };
    dialler.within(Phase::Transfer, rest).await?;
    let line = line
        .seconds("seconds", start.elapsed())
        .seconds("resume_seconds", resumed.elapsed());
    neighbours.report(line)
}
