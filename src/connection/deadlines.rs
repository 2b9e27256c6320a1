//! The timers of a connection and its substreams: one `Sleep` for the earliest of them.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::carrier::ChannelId;

/// What happens when a deadline passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DeadlineKind {
    /// The wait for FIN_ACK is over.
    FinAck,
    /// The time for a dropped substream to close is over.
    Teardown,
    /// The time for the peer to send credit is over.
    Credit,
    /// The time for the application to accept is over.
    Accept,
    /// The time for the peer to announce its substream limit is over; opens wait for it. Uses
    /// [`NO_CHANNEL`].
    Opening,
    /// The time for the peer to answer that this side drains the connection is over. Uses
    /// [`NO_CHANNEL`].
    Draining,
    /// The connection has had no substreams for the idle timeout. Uses [`NO_CHANNEL`].
    Idle,
}

/// Marks deadlines of the connection as a whole.
pub(super) const NO_CHANNEL: ChannelId = ChannelId::new(u64::MAX);

/// One deadline, ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Deadline {
    at: Instant,
    pub(super) channel: ChannelId,
    pub(super) kind: DeadlineKind,
}

/// The time at which a timeout that begins now is over.
pub(super) fn deadline_after(timeout: Duration) -> Instant {
    let now = Instant::now();
    // A timeout beyond the clock's range never passes in practice.
    now.checked_add(timeout)
        .unwrap_or_else(|| now + Duration::from_secs(86_400 * 365))
}

/// Deadlines that can be set, cancelled and polled.
///
/// Holds at most one entry per kind and channel, so its size is bounded by the number of substreams
/// and of those that ended unaccepted within the accept timeout.
#[derive(Debug)]
pub(super) struct Deadlines {
    pending: BTreeSet<Deadline>,
    /// The times of `pending`, to find an entry by its key. A hash map would keep the memory of its
    /// largest size (`leaks::substreams`).
    times: BTreeMap<(ChannelId, DeadlineKind), Instant>,
    /// The time that `sleep` is set to; `None` while it is not armed.
    armed: Option<Instant>,
    sleep: Pin<Box<Sleep>>,
}

impl Deadlines {
    pub(super) fn new() -> Self {
        Self {
            pending: BTreeSet::new(),
            times: BTreeMap::new(),
            armed: None,
            sleep: Box::pin(sleep_until(Instant::now())),
        }
    }

    /// Sets a deadline unless it is set already. Returns whether it was not.
    pub(super) fn set(&mut self, channel: ChannelId, kind: DeadlineKind, after: Duration) -> bool {
        if self.times.contains_key(&(channel, kind)) {
            return false;
        }
        let at = deadline_after(after);
        self.times.insert((channel, kind), at);
        self.pending.insert(Deadline { at, channel, kind });
        true
    }

    pub(super) fn cancel(&mut self, channel: ChannelId, kind: DeadlineKind) {
        if let Some(at) = self.times.remove(&(channel, kind)) {
            self.pending.remove(&Deadline { at, channel, kind });
        }
    }

    /// The next deadline that has passed. `Pending` arranges a wake-up for the earliest one.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Deadline> {
        loop {
            let Some(first) = self.pending.first().copied() else {
                // An emptied tree keeps a node of 368 bytes, which an idle connection does without.
                (self.pending, self.times) = (BTreeSet::new(), BTreeMap::new());
                return Poll::Pending;
            };
            if first.at <= Instant::now() {
                self.pending.pop_first();
                self.times.remove(&(first.channel, first.kind));
                return Poll::Ready(first);
            }
            if self.armed != Some(first.at) {
                self.sleep.as_mut().reset(first.at);
                self.armed = Some(first.at);
            }
            std::task::ready!(self.sleep.as_mut().poll(cx));
            self.armed = None;
        }
    }
}
