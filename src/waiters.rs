//! Those who wait for the same thing: futures, any number, and one task that polls.

use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

/// Wakes futures, and the task of the last call of a poll function.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    futures: Notify,
    task: AtomicWaker,
}

impl Waiters {
    /// Wakes one future, or the next that waits, and the task.
    pub(crate) fn wake_one(&self) {
        self.futures.notify_one();
        self.task.wake();
    }

    /// Wakes all that wait now.
    pub(crate) fn wake_all(&self) {
        self.futures.notify_waiters();
        self.task.wake();
    }

    /// Completes when `look` does. It is called again after every wake-up. Cancel safe, if `look`
    /// takes nothing when it is pending.
    pub(crate) async fn wait<T>(&self, mut look: impl FnMut() -> Poll<T>) -> T {
        loop {
            let woken = self.futures.notified();
            tokio::pin!(woken);
            // Before the look: otherwise a wake-up in between could be missed.
            woken.as_mut().enable();
            if let Poll::Ready(found) = look() {
                return found;
            }
            woken.await;
        }
    }

    /// Completes when `is_reached` returns `true`. Cancel safe.
    #[cfg(feature = "webrtc")]
    pub(crate) async fn until(&self, mut is_reached: impl FnMut() -> bool) {
        let look = || match is_reached() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        };
        self.wait(look).await;
    }

    /// [`Self::wait`] as a poll function.
    pub(crate) fn poll_wait<T>(
        &self,
        cx: &Context<'_>,
        mut look: impl FnMut() -> Poll<T>,
    ) -> Poll<T> {
        let found = look();
        if found.is_ready() {
            return found;
        }
        self.task.register(cx.waker());
        // Again: a wake-up in between has found no task.
        look()
    }
}
