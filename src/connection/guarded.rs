//! A future that keeps something until it is done.

use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

pin_project! {
    /// A future, and a guard that is dropped after it.
    ///
    /// In place of an `async` block, which has room for the future twice: captured and awaited. Of
    /// a driver that was 2 KiB for each connection.
    pub(crate) struct Guarded<F, G> {
        #[pin]
        future: F,
        guard: G,
    }
}

impl<F, G> Guarded<F, G> {
    pub(crate) fn new(future: F, guard: G) -> Self {
        Self { future, guard }
    }
}

impl<F: Future, G> Future for Guarded<F, G> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(cx)
    }
}
