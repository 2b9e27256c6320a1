//! Connections beyond a limit. They are answered without reading their requests, and kept open for
//! a moment: if a request arrived at a closed socket, the answer would be lost.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream as StdTcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Maximum kept connections; the oldest is closed for a new one.
const MAX_KEPT: usize = 32;

/// How long a connection is kept, for its request to arrive and the answer to be read.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// Maximum bytes of a request that are read before the close.
const MAX_READ: usize = 16 * 1024;

/// The connections refused last.
#[derive(Debug, Default)]
pub(super) struct Refused {
    kept: Mutex<VecDeque<(Instant, Lingering)>>,
    /// Wakes [`Self::expire`].
    added: Notify,
}

impl Refused {
    fn kept(&self) -> MutexGuard<'_, VecDeque<(Instant, Lingering)>> {
        // Nothing under this lock panics.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `answer`, which fits into the empty buffer of a new socket, and shuts down the write
    /// half.
    pub(super) fn answer(&self, stream: TcpStream, answer: &[u8]) {
        // Deregistered from the runtime, since no task waits for it.
        let Ok(stream) = stream.into_std() else {
            return;
        };
        let sent = (&stream).write_all(answer).is_ok() && stream.shutdown(Shutdown::Write).is_ok();
        if !sent {
            return;
        }
        let mut kept = self.kept();
        let oldest = if kept.len() >= MAX_KEPT {
            kept.pop_front()
        } else {
            None
        };
        kept.push_back((Instant::now() + KEPT_FOR, Lingering(stream)));
        drop(kept);
        drop(oldest);
        self.added.notify_one();
    }

    /// Closes expired connections. Never completes, as there may be new ones.
    pub(super) async fn expire(&self) {
        loop {
            let next = self.kept().front().map(|(until, _)| *until);
            let Some(next) = next else {
                self.added.notified().await;
                continue;
            };
            sleep_until(next).await;
            let mut kept = self.kept();
            let now = Instant::now();
            let due = kept.iter().take_while(|(until, _)| *until <= now).count();
            let gone: Vec<_> = kept.drain(..due).collect();
            drop(kept);
            drop(gone);
        }
    }

    /// Number of kept connections.
    pub(super) fn len(&self) -> usize {
        self.kept().len()
    }
}

/// An answered connection. The drop reads the request, so that the close is no reset.
#[derive(Debug)]
struct Lingering(StdTcpStream);

impl Drop for Lingering {
    fn drop(&mut self) {
        let mut scrap = [0; 2048];
        let mut read = 0;
        while read < MAX_READ {
            match self.0.read(&mut scrap) {
                Ok(0) => return,
                Ok(len) => read += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing more has arrived.
                Err(_) => return,
            }
        }
    }
}
