//! The timers of all substreams of a connection: one `Sleep` for the earliest of them.

use std::collections::BTreeSet;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::carrier::ChannelId;

/// What happens when a deadline passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DeadlineKind {
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
    /// The connection has had no substreams for the idle timeout. Uses [`NO_CHANNEL`].
    Idle,
}

/// Marks deadlines of the connection as a whole.
pub(super) const NO_CHANNEL: ChannelId = ChannelId::new(u64::MAX);

/// One deadline, ordered by time. Two of one kind on one channel never coexist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Deadline {
    at: Instant,
    pub(crate) channel: ChannelId,
    pub(crate) kind: DeadlineKind,
}

/// The time at which a timeout that begins now is over.
pub(super) fn deadline_after(timeout: Duration) -> Instant {
    let now = Instant::now();
    // A timeout beyond the clock's range never passes in practice.
    now.checked_add(timeout)
        .unwrap_or_else(|| now + Duration::from_secs(86_400 * 365))
}

pin_project! {
    /// Deadlines that can be set, cancelled and polled. Holds at most one entry per kind and
    /// channel, so its size is bounded by the number of substreams and of those that ended
    /// unaccepted within the accept timeout.
    #[derive(Debug)]
    pub(crate) struct Deadlines {
        pending: BTreeSet<Deadline>,
        // What `sleep` is set to; `None` while it is not armed.
        armed: Option<Instant>,
        #[pin]
        sleep: Sleep,
    }
}

impl Deadlines {
    pub(crate) fn new() -> Self {
        Self {
            pending: BTreeSet::new(),
            armed: None,
            sleep: sleep_until(Instant::now()),
        }
    }

    /// Sets a deadline and returns the key to cancel it.
    pub(crate) fn set(
        self: std::pin::Pin<&mut Self>,
        channel: ChannelId,
        kind: DeadlineKind,
        after: Duration,
    ) -> Deadline {
        let deadline = Deadline {
            at: deadline_after(after),
            channel,
            kind,
        };
        self.project().pending.insert(deadline);
        deadline
    }

    pub(crate) fn cancel(self: std::pin::Pin<&mut Self>, deadline: Deadline) {
        self.project().pending.remove(&deadline);
    }

    /// The next deadline that has passed. `Pending` arranges a wake-up for the earliest one.
    pub(crate) fn poll_next(
        self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Deadline> {
        let mut this = self.project();
        loop {
            let Some(first) = this.pending.first().copied() else {
                return Poll::Pending;
            };
            if first.at <= Instant::now() {
                this.pending.pop_first();
                return Poll::Ready(first);
            }
            if *this.armed != Some(first.at) {
                this.sleep.as_mut().reset(first.at);
                *this.armed = Some(first.at);
            }
            std::task::ready!(this.sleep.as_mut().poll(cx));
            *this.armed = None;
        }
    }
}
