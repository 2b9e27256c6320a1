//! Progress, cancellation and timeouts of a payload.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use tokio::time::{Instant, Sleep, sleep_until};

use super::config::PayloadConfig;
use crate::error::payload::{Interrupt, TimeLimit};
use crate::substream::Shared;
use crate::waiters::Waiters;

/// `total` of a payload of unknown length.
const UNKNOWN: u64 = u64::MAX;
/// `end` of a running payload; above every code.
const RUNNING: u64 = u64::MAX;
/// `end` of a complete payload.
const COMPLETE: u64 = u64::MAX - 1;
/// `end` of a payload that expired without being polled.
const EXPIRED: u64 = u64::MAX - 2;

#[derive(Debug)]
pub(super) struct State {
    transferred: AtomicU64,
    total: AtomicU64,
    /// [`RUNNING`], [`COMPLETE`], [`EXPIRED`], or the code of the cancellation.
    end: AtomicU64,
    /// Wakes the task that polls the payload.
    waker: AtomicWaker,
    /// What moves the payload was dropped: nothing changes any more.
    is_over: AtomicBool,
    /// A watcher sets it before it reads the values; a change wakes nobody unless it is set.
    /// Sequentially consistent with the values, so that the watcher or the change sees the other.
    is_watched: AtomicBool,
    watchers: Waiters,
}

impl State {
    pub(super) fn new(total: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            transferred: AtomicU64::new(0),
            total: AtomicU64::new(total.unwrap_or(UNKNOWN)),
            end: AtomicU64::new(RUNNING),
            waker: AtomicWaker::new(),
            is_over: AtomicBool::new(false),
            is_watched: AtomicBool::new(false),
            watchers: Waiters::default(),
        })
    }

    pub(super) fn transferred(&self) -> u64 {
        self.transferred.load(Ordering::SeqCst)
    }

    /// `None` while it is not known.
    pub(super) fn total(&self) -> Option<u64> {
        Some(self.total.load(Ordering::SeqCst)).filter(|total| *total != UNKNOWN)
    }

    pub(super) fn set_total(&self, total: u64) {
        self.total.store(total, Ordering::SeqCst);
        self.changed();
    }

    pub(super) fn set_transferred(&self, bytes: u64) {
        self.transferred.store(bytes, Ordering::SeqCst);
        self.changed();
    }

    pub(super) fn add_transferred(&self, bytes: usize) {
        self.transferred.fetch_add(bytes as u64, Ordering::SeqCst);
        self.changed();
    }

    fn changed(&self) {
        if self.is_watched.load(Ordering::SeqCst) && self.is_watched.swap(false, Ordering::SeqCst) {
            self.watchers.wake_all();
        }
    }

    /// Whether nothing changes any more.
    fn has_ended(&self) -> bool {
        self.is_over.load(Ordering::SeqCst) || self.end.load(Ordering::SeqCst) != RUNNING
    }

    /// Marks the payload as complete; it can not be cancelled any more. Returns `false` if it has
    /// ended before.
    pub(super) fn complete(&self) -> bool {
        self.try_end(COMPLETE)
    }

    /// Marks the payload as expired. Returns `false` if it has ended before.
    pub(super) fn expire(&self) -> bool {
        self.try_end(EXPIRED)
    }

    fn try_end(&self, end: u64) -> bool {
        let ended = self
            .end
            .compare_exchange(RUNNING, end, Ordering::SeqCst, Ordering::Acquire);
        self.changed();
        ended.is_ok()
    }

    pub(super) fn cancelled(&self) -> Option<u32> {
        u32::try_from(self.end.load(Ordering::Acquire)).ok()
    }
}

/// Holds the state for what moves the payload, and marks its end on drop, whatever the cause.
#[derive(Debug)]
pub(super) struct Mover(pub(super) Arc<State>);

impl Drop for Mover {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
        self.0.changed();
    }
}

impl std::ops::Deref for Mover {
    type Target = Arc<State>;

    fn deref(&self) -> &Arc<State> {
        &self.0
    }
}

/// The progress of one payload. Cheap to clone, and readable from any task.
///
/// ```
/// use anabranch::payload::Progress;
///
/// async fn draw(mut progress: Progress) {
///     while progress.changed().await {
///         println!("{} of {:?} bytes", progress.transferred(), progress.total());
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Progress {
    state: Arc<State>,
    /// What [`Progress::changed`] has returned for.
    seen: (u64, Option<u64>),
}

impl Progress {
    pub(super) fn new(state: &Arc<State>) -> Self {
        let mut progress = Self {
            state: Arc::clone(state),
            seen: (0, None),
        };
        progress.seen = progress.now();
        progress
    }

    /// A handle that has seen what there is now.
    pub(super) fn anew(&self) -> Self {
        Self::new(&self.state)
    }

    fn now(&self) -> (u64, Option<u64>) {
        (self.transferred(), self.total())
    }

    /// Waits until [`Self::transferred`] or [`Self::total`] is another than when this handle was
    /// made, or than when this has last returned `true`. Returns `false` when the payload has
    /// ended, whatever its outcome, and there is nothing new. A chunk that is under way when the
    /// payload is cancelled may still be counted after that.
    ///
    /// Changes between two calls are one, so a display that is slow falls behind in nothing, and
    /// can sleep between them. Each clone has seen what its original has. There is no timer.
    ///
    /// # Cancel safety
    /// No change is lost if the future is dropped.
    pub async fn changed(&mut self) -> bool {
        let look = || {
            self.state.is_watched.store(true, Ordering::SeqCst);
            // Before the values: the last of them is there when the end is.
            let has_ended = self.state.has_ended();
            let now = self.now();
            match now != self.seen {
                true => Poll::Ready(Some(now)),
                false if has_ended => Poll::Ready(None),
                false => Poll::Pending,
            }
        };
        let found = self.state.watchers.wait(look).await;
        self.seen = found.unwrap_or(self.seen);
        found.is_some()
    }

    /// Bytes transferred: delivered to the application on a receiver, accepted by the substream on
    /// a sender. The skipped part of a resumed payload counts.
    pub fn transferred(&self) -> u64 {
        self.state.transferred()
    }

    /// Length of the whole payload in bytes; `None` while it is unknown.
    pub fn total(&self) -> Option<u64> {
        self.state.total()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("transferred", &self.transferred())
            .field("total", &self.total())
            .finish()
    }
}

/// Cancels one payload from any task. Cheap to clone; dropping it has no effect.
#[derive(Clone)]
pub struct Canceller {
    state: Arc<State>,
    substream: Weak<Shared>,
}

impl Canceller {
    pub(super) fn new(state: &Arc<State>, substream: &Arc<Shared>) -> Self {
        Self {
            state: Arc::clone(state),
            substream: Arc::downgrade(substream),
        }
    }

    /// Cancels the payload: the peer gets RESET_STREAM with `code` at once, and the task that polls
    /// the payload an error. Has no effect if the payload is complete or has ended otherwise.
    pub fn cancel(&self, code: u32) {
        if !self.state.try_end(u64::from(code)) {
            return;
        }
        if let Some(substream) = self.substream.upgrade() {
            substream.reset(code);
        }
        self.state.waker.wake();
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canceller").finish_non_exhaustive()
    }
}

/// Runs the operations on a payload within its time limits.
///
/// The timer is polled by the task that waits; no task is spawned for it.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) state: Mover,
    pub(super) idle_timeout: Duration,
    time_limit: Duration,
    deadline: Instant,
    /// Since when a pending operation has made no progress.
    idle_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl Watch {
    pub(super) fn new(state: Mover, config: &PayloadConfig) -> Self {
        let deadline = after(Instant::now(), config.time_limit);
        Self {
            state,
            idle_timeout: config.idle_timeout,
            time_limit: config.time_limit,
            deadline,
            idle_since: None,
            timer: Box::pin(sleep_until(deadline)),
        }
    }

    /// When [`PayloadConfig::time_limit`] expires.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits for `operation`, until the payload is cancelled or expires.
    pub(super) async fn guard<T>(
        &mut self,
        operation: impl Future<Output = T>,
    ) -> Result<T, Interrupt> {
        self.guard_silent(false, operation).await
    }

    /// The same, without the idle timeout if the peer may be `silent` while it hashes.
    pub(super) async fn guard_silent<T>(
        &mut self,
        silent: bool,
        operation: impl Future<Output = T>,
    ) -> Result<T, Interrupt> {
        let idle = if silent {
            Duration::MAX
        } else {
            self.idle_timeout
        };
        let mut operation = pin!(operation);
        poll_fn(|cx| self.poll(cx, idle, |cx| operation.as_mut().poll(cx))).await
    }

    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        idle: Duration,
        operation: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Result<T, Interrupt>> {
        // Registered before the check, so that a concurrent cancel is not missed.
        self.state.waker.register(cx.waker());
        if let Some(code) = self.state.cancelled() {
            return Poll::Ready(Err(Interrupt::Cancelled(code)));
        }
        let now = Instant::now();
        if now >= self.deadline {
            return Poll::Ready(Err(self.expired(TimeLimit::Total)));
        }
        let before = self.state.transferred();
        if let Poll::Ready(done) = operation(cx) {
            self.idle_since = None;
            return Poll::Ready(Ok(done));
        }
        if self.state.transferred() != before {
            self.idle_since = None;
        }
        let idle_since = *self.idle_since.get_or_insert(now);
        let idle_deadline = after(idle_since, idle);
        let next = idle_deadline.min(self.deadline);
        if self.timer.deadline() != next {
            self.timer.as_mut().reset(next);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let limit = if next == self.deadline {
            TimeLimit::Total
        } else {
            TimeLimit::Idle
        };
        Poll::Ready(Err(self.expired(limit)))
    }

    /// Whether the time for the whole payload is over.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    pub(super) fn expired(&self, limit: TimeLimit) -> Interrupt {
        let after = match limit {
            TimeLimit::Idle => self.idle_timeout,
            TimeLimit::Total => self.time_limit,
        };
        Interrupt::Expired { limit, after }
    }
}

/// Adds `duration`, or 30 years if the clock would overflow.
fn after(instant: Instant, duration: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    instant
        .checked_add(duration)
        .unwrap_or_else(|| instant + FAR)
}
