//! `--stall` and `--stall-down`: a reader that does not read for a while.
//!
//! The writer must stop at the window, other substreams must not be delayed, memory must not grow
//! beyond the window, and in the end every byte must arrive.
//!
//! - `idle_probe_p50_ms`, `probe_p50_ms`, `probe_max_ms`: round trips of 1 KiB on other substreams
//!   of the same connection, before and during the stall.
//! - `stalled_bytes`: the bytes that the writer could write during the stall; for `--stall-down`,
//!   where the writer is the peer, those that have arrived here and are unread, if the stack
//!   reports them.
//! - `own_rss_growth_kib`, `rss_growth_kib`: the largest resident set during the stall, less that
//!   before it, of this process and of that of `--peer-pid`.
//! - `resume_seconds`: from the end of the stall until every byte was there and all was closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::content::{self, Checker};
use crate::dial::{Dialler, Failure, Phase};
use crate::echo;
use crate::json::Object;
use crate::measure::{Memory, Samples, growth};
use crate::serve::{BENCH, BENCH_NOFIN, STALL, STALLED};
use crate::{Reader, Stack, Substream, Writer};

/// Bytes of a probe.
const PROBE: u64 = 1 << 10;

/// Probes before the stall.
const IDLE_PROBES: usize = 20;

/// Pause between two probes.
const PROBE_PAUSE: Duration = Duration::from_millis(20);

/// How long before the end of the stall the figures are taken: the responder's clock started
/// earlier than ours.
const MARGIN: Duration = Duration::from_millis(50);

/// Maximum length of a write, which is the resolution of `stalled_bytes`.
const CHUNK: usize = 16 << 10;

/// What other substreams and the memory showed.
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
        connection: &S::Connection,
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

    /// Probes until `end`. A probe that is still under way then counts with the time that it has
    /// waited: some stacks stop as a whole.
    async fn probe_until<S: Stack>(
        &mut self,
        dialler: &Dialler<S>,
        connection: &S::Connection,
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
    connection: &S::Connection,
    line: Object,
) -> Result<Object, Failure> {
    let (total, hold) = (dialler.options.up, dialler.options.hold);
    let mut neighbours = Neighbours::idle(dialler, connection).await?;

    let (mut reader, mut writer) = dialler.open(connection, STALL).await?.into_split();
    let ready = async {
        let hold_ms = u64::try_from(hold.as_millis()).unwrap_or(u64::MAX);
        writer.write(content::header(total, hold_ms).into()).await?;
        writer.flush().await?;
        content::read_bytes(&mut reader).await
    };
    if dialler.within(Phase::Transfer, ready).await? != [STALLED] {
        let message = "the responder did not begin with S";
        return Err(Failure::new(Phase::Transfer, message));
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
    neighbours.probe_until(dialler, connection, sampled).await;
    let stalled_bytes = accepted.load(Ordering::Relaxed);

    tokio::time::sleep_until((start + hold).into()).await;
    let resumed = Instant::now();
    let rest = async {
        let outcome = upload.await.map_err(std::io::Error::other)??;
        let count = content::read_u64(&mut reader).await?;
        content::end(&mut reader).await?;
        Ok::<_, std::io::Error>((outcome, count))
    };
    let (outcome, count) = dialler.within(Phase::Transfer, rest).await?;
    outcome.map_err(Failure::unclean_close)?;
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
    connection: &S::Connection,
    line: Object,
) -> Result<Object, Failure> {
    let options = &dialler.options;
    let nofin = options.settings.nofin;
    let mut neighbours = Neighbours::idle(dialler, connection).await?;

    let protocol = if nofin { BENCH_NOFIN } else { BENCH };
    let (mut reader, mut writer) = dialler.open(connection, protocol).await?.into_split();
    let request = async {
        let header = content::header(options.up, options.down);
        writer.write(header.into()).await?;
        content::send(&mut writer, options.up, options.chunk, |_| {}).await?;
        std::io::Result::Ok(match nofin {
            true => None,
            false => Some(writer.finish().await),
        })
    };
    let finished = dialler.within(Phase::Transfer, request).await?;
    finished.transpose().map_err(Failure::unclean_close)?;

    let start = Instant::now();
    let end = start + options.hold;
    neighbours.probe_until(dialler, connection, end).await;
    let unread = reader.unread();

    let resumed = Instant::now();
    let rest = async {
        let mut checker = Checker::default();
        if !nofin {
            checker.receive_all(&mut reader, options.down).await?;
            return std::io::Result::Ok(None);
        }
        checker.receive(&mut reader, options.down).await?;
        content::send_bytes(&mut writer, content::at(0, 1)).await?;
        Ok(Some(writer.finish().await))
    };
    let finished = dialler.within(Phase::Transfer, rest).await?;
    finished.transpose().map_err(Failure::unclean_close)?;
    let line = line
        .seconds("seconds", start.elapsed())
        .seconds("resume_seconds", resumed.elapsed());
    neighbours.report(match unread {
        Some(bytes) => line.integer("stalled_bytes", bytes),
        None => line,
    })
}
