//! The places of a receiver, each of which holds one payload from its first byte to its end.
//!
//! A payload that is polled ends by its own timer. One that nobody polls has none, and would keep
//! its place for ever: it is ended when its time is over and a newcomer asks for a place.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::Instant;

use super::watch::State;
use crate::error::payload::{PayloadError, code};
use crate::substream::Shared;

/// How many payloads are open, and which of them has to end first.
#[derive(Debug, Default)]
pub(super) struct Places {
    open: Arc<AtomicUsize>,
    /// By deadline, then by a number of its own. As many as are open.
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    by_deadline: BTreeMap<(Instant, u64), Holder>,
}

/// Whose place it is.
#[derive(Debug)]
struct Holder {
    state: Arc<State>,
    substream: Weak<Shared>,
    _all: Place,
    _of_connection: Option<Place>,
}

/// The place of one payload. Dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Permit {
    places: Arc<Places>,
    key: (Instant, u64),
}

/// One of a limited number.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>, max: usize) -> Result<Self, PayloadError> {
        let more = |open| (open < max).then_some(open + 1);
        match open.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(Self(Arc::clone(open))),
            Err(open) => Err(PayloadError::TooMany { open, max }),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Places {
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// A place of `max`, and one of those of a connection, until `deadline` if somebody else wants
    /// it then.
    pub(super) fn take(
        self: &Arc<Self>,
        max: usize,
        of_connection: Option<(&Arc<AtomicUsize>, usize)>,
        (state, deadline): (&Arc<State>, Instant),
        substream: &Arc<Shared>,
    ) -> Result<Permit, PayloadError> {
        self.end_expired();
        let of_connection = of_connection
            .map(|(open, max)| Place::take(open, max))
            .transpose()?;
        let all = Place::take(&self.open, max)?;
        let mut held = self.lock();
        let key = (deadline, held.next);
        held.next += 1;
        held.by_deadline.insert(
            key,
            Holder {
                state: Arc::clone(state),
                substream: Arc::downgrade(substream),
                _all: all,
                _of_connection: of_connection,
            },
        );
        Ok(Permit {
            places: Arc::clone(self),
            key,
        })
    }

    /// Ends those whose time is over: nobody has polled them, or they would have ended themselves.
    fn end_expired(&self) {
        let now = Instant::now();
        loop {
            let mut held = self.lock();
            let Some(entry) = held.by_deadline.first_entry() else {
                return;
            };
            if entry.key().0 > now {
                return;
            }
            let holder = entry.remove();
            // What wakes others does so without the lock.
            drop(held);
            if holder.state.expire()
                && let Some(substream) = holder.substream.upgrade()
            {
                substream.reset(code::EXPIRED);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let holder = self.places.lock().by_deadline.remove(&self.key);
        drop(holder);
    }
}
