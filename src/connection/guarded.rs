//! The tasks of connections and listeners: futures that keep something until they are done.

use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::task::JoinHandle;

pin_project! {
    /// A future, and a guard that is dropped after it.
    ///
    /// In place of an `async` block, which has room for the future twice: captured and awaited. Of
    /// a driver that was 2 KiB for each connection.
    struct Guarded<F, G> {
        #[pin]
        future: F,
        guard: G,
    }
}

/// Runs `future` in a task of its own, and drops `guard` after it. tokio-console shows the name.
pub(crate) fn spawn<F, G>(name: &str, future: F, guard: G) -> JoinHandle<()>
where
    F: Future + Send + 'static,
    G: Send + 'static,
{
    let task = Guarded { future, guard };
    // tokio names tasks only where it is built for that.
    #[cfg(tokio_unstable)]
    {
        let builder = tokio::task::Builder::new().name(name);
        // unwrap: fails only outside a runtime, where `tokio::spawn` panics too.
        builder.spawn(task).expect("within a runtime")
    }
    #[cfg(not(tokio_unstable))]
    {
        let _ = name;
        tokio::spawn(task)
    }
}

impl<F: Future, G> Future for Guarded<F, G> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().future.poll(cx).map(drop)
    }
}
