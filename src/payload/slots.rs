//! The slots of a receiver, each of which holds one payload from its first byte to its end.
//!
//! A payload that is polled expires by its own timer. One that is not polled has none, and would
//! hold its slot for ever: it is ended if it has expired when a new payload needs a slot.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::Instant;

use super::watch::State;
use crate::error::payload::{PayloadError, code};
use crate::substream::Shared;

/// The slots, and which of the open payloads expires first.
#[derive(Debug, Default)]
pub(super) struct Slots {
    open: Arc<AtomicUsize>,
    /// By deadline, then by a unique number. One entry for each open payload.
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    by_deadline: BTreeMap<(Instant, u64), Holder>,
}

/// The payload that holds a slot.
#[derive(Debug)]
struct Holder {
    state: Arc<State>,
    substream: Weak<Shared>,
    _all: Unit,
    _of_connection: Option<Unit>,
}

/// The slot of one payload, released on drop.
#[derive(Debug)]
pub(super) struct Permit {
    slots: Arc<Slots>,
    key: (Instant, u64),
}

/// One unit of a limited number.
#[derive(Debug)]
struct Unit(Arc<AtomicUsize>);

impl Unit {
    fn take(open: &Arc<AtomicUsize>, max: usize) -> Result<Self, PayloadError> {
        let more = |open| (open < max).then_some(open + 1);
        match open.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(Self(Arc::clone(open))),
            Err(open) => Err(PayloadError::TooMany { open, max }),
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Slots {
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Takes one of `max` slots, and one of those of a connection. After `deadline` a new payload
    /// may evict it.
    pub(super) fn take(
        self: &Arc<Self>,
        max: usize,
        of_connection: Option<(&Arc<AtomicUsize>, usize)>,
        (state, deadline): (&Arc<State>, Instant),
        substream: &Arc<Shared>,
    ) -> Result<Permit, PayloadError> {
        self.end_expired();
        let of_connection = of_connection
            .map(|(open, max)| Unit::take(open, max))
            .transpose()?;
        let all = Unit::take(&self.open, max)?;
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
            slots: Arc::clone(self),
            key,
        })
    }

    /// Ends expired payloads, which are not polled, since otherwise they would have ended
    /// themselves.
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
            // Wakers run without the lock.
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
        let holder = self.slots.lock().by_deadline.remove(&self.key);
        drop(holder);
    }
}
