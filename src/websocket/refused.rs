//! Connections for which there is no room: told so without their requests being read, and kept for a moment, since the
//! answer is lost if their requests find the socket closed.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream as StdTcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

/// Most that are kept; the oldest goes for one more.
const MAX_KEPT: usize = 32;

/// How long one is kept: for a request that is under way to arrive, and the answer to be read.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// Most bytes of a request that are read when its connection goes.
const MAX_READ: usize = 16 * 1024;

/// The last that were refused.
#[derive(Debug, Default)]
pub(super) struct Refused(Mutex<VecDeque<(Instant, Goodbye)>>);

impl Refused {
    fn kept(&self) -> MutexGuard<'_, VecDeque<(Instant, Goodbye)>> {
        // Nothing under this lock panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers with these bytes, which fit into the empty buffer of a new socket, and closes this side.
    pub(super) fn tell(&self, stream: TcpStream, answer: &[u8]) {
        // Off the runtime's books: nothing waits for it any more.
        let Ok(stream) = stream.into_std() else {
            return;
        };
        let told = (&stream).write_all(answer).is_ok() && stream.shutdown(Shutdown::Write).is_ok();
        if !told {
            return;
        }
        let mut kept = self.kept();
        let oldest = if kept.len() >= MAX_KEPT {
            kept.pop_front()
        } else {
            None
        };
        kept.push_back((Instant::now() + KEPT_FOR, Goodbye(stream)));
        drop(kept);
        drop(oldest);
    }

    /// Lets those go whose time is over. For ever, as there may be new ones.
    pub(super) async fn expire(&self) {
        loop {
            let next = self.kept().front().map(|(until, _)| *until);
            let Some(next) = next else {
                // Who adds one looks after it.
                return std::future::pending().await;
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

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.kept().len()
    }
}

/// A connection whose answer is sent. With its request read it is closed, and not reset.
#[derive(Debug)]
struct Goodbye(StdTcpStream);

impl Drop for Goodbye {
    fn drop(&mut self) {
        let mut scrap = [0; 2048];
        let mut read = 0;
        while read < MAX_READ {
            match self.0.read(&mut scrap) {
                Ok(0) => return,
                Ok(len) => read += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing more has come.
                Err(_) => return,
            }
        }
    }
}
