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
    /// The FIN_ACK wait is over.
    FinAck,
    /// A dropped substream has had its time to close.
    Teardown,
    /// The peer has had its time to show credit.
    Credit,
    /// The application has had its time to accept.
    Accept,
    /// The peer has had its time to show what it is, and opens wait for that. On [`NO_CHANNEL`].
    Opening,
    /// The connection has been without substreams for long enough. On [`NO_CHANNEL`].
    Idle,
}

/// Stands for the connection as a whole.
pub(super) const NO_CHANNEL: ChannelId = ChannelId::new(u64::MAX);

/// One deadline, in the order of time. Two of the same kind on one channel never coexist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Deadline {
    at: Instant,
    pub(crate) channel: ChannelId,
    pub(crate) kind: DeadlineKind,
}

/// The end of a timeout that begins now.
pub(super) fn deadline_after(timeout: Duration) -> Instant {
    let now = Instant::now();
    // A timeout beyond the clock's range is none that anybody will see pass.
    now.checked_add(timeout)
        .unwrap_or_else(|| now + Duration::from_secs(86_400 * 365))
}

pin_project! {
    /// Deadlines that can be set, cancelled and waited for. Holds at most one entry a kind and
    /// channel, so it is bounded by the number of substreams, and of those that ended unaccepted within
    /// the accept timeout.
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

    /// Sets a deadline; keep what is returned to cancel it.
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
