//! Admission: counts handshakes and connections, by the address of the client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::config::ListenerConfig;
use super::error::HandshakeError;
use crate::rates::{Prefix, Rates};

/// Counts handshakes and connections against the limits of a listener.
#[derive(Debug)]
pub(super) struct Gate {
    limits: ListenerConfig,
    start: Instant,
    book: Mutex<Book>,
}

#[derive(Debug)]
pub(super) struct Book {
    handshakes: usize,
    /// The same by prefix. No count is zero, so there are at most `max_handshakes` entries.
    by_prefix: HashMap<Prefix, usize>,
    rates: Rates,
    /// Established connections, and accepted ones in their handshake.
    connections: usize,
}

impl Book {
    pub(super) fn is_empty(&self) -> bool {
        self.handshakes == 0 && self.connections == 0 && self.by_prefix.is_empty()
    }
}

impl Gate {
    pub(super) fn new(limits: ListenerConfig) -> Self {
        let rates = Rates::new(limits.connections, limits.connections_of_site);
        Self {
            limits,
            start: Instant::now(),
            book: Mutex::new(Book {
                handshakes: 0,
                by_prefix: HashMap::new(),
                rates,
                connections: 0,
            }),
        }
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        // Only counters; nothing under this lock panics.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a handshake slot for the client at this address, which is `None` if a trusted proxy
    /// has yet to report it.
    pub(super) fn admit(self: &Arc<Self>, client: Option<IpAddr>) -> Option<Slot> {
        let mut book = self.book();
        let limits = &self.limits;
        if book.handshakes >= limits.max_handshakes || book.connections >= limits.max_connections {
            return None;
        }
        book.handshakes += 1;
        drop(book);
        let mut slot = Slot {
            gate: Arc::clone(self),
            prefix: None,
        };
        match client {
            Some(client) if !slot.count(client) => None,
            _ => Some(slot),
        }
    }

    pub(super) fn connect(self: &Arc<Self>) -> Result<Permit, HandshakeError> {
        let mut book = self.book();
        let max = self.limits.max_connections;
        if book.connections >= max {
            return Err(HandshakeError::TooManyConnections { max });
        }
        book.connections += 1;
        Ok(Permit {
            gate: Arc::clone(self),
        })
    }
}

/// A handshake slot, released on drop.
#[derive(Debug)]
pub(super) struct Slot {
    gate: Arc<Gate>,
    /// The prefix in whose share it is counted.
    prefix: Option<Prefix>,
}

impl Slot {
    /// Counts the slot against the limits of the client's prefix. Returns `false` beyond them; the
    /// slot is held until the drop all the same.
    pub(super) fn count(&mut self, client: IpAddr) -> bool {
        debug_assert!(self.prefix.is_none(), "a client has one address");
        let limits = &self.gate.limits;
        let exempt = client.to_canonical().is_loopback() && !limits.limit_loopback;
        let prefix = Prefix::of(client);
        let time = Instant::now().saturating_duration_since(self.gate.start);
        let mut book = self.gate.book();
        let share = book.by_prefix.get(&prefix).copied().unwrap_or_default();
        if !exempt && (share >= limits.max_handshakes_per_prefix || !book.rates.take(time, prefix))
        {
            return false;
        }
        *book.by_prefix.entry(prefix).or_default() += 1;
        drop(book);
        self.prefix = Some(prefix);
        true
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut book = self.gate.book();
        book.handshakes -= 1;
        if let Some(prefix) = self.prefix
            && let Some(share) = book.by_prefix.get_mut(&prefix)
        {
            *share -= 1;
            if *share == 0 {
                book.by_prefix.remove(&prefix);
            }
        }
    }
}

/// The place of a connection, released on drop.
#[derive(Debug)]
pub(super) struct Permit {
    gate: Arc<Gate>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.book().connections -= 1;
    }
}
