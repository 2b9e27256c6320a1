//! Who is told of one connection.

use std::fmt;
use std::sync::Arc;

use super::{ConnectionInfo, Events};

/// The listener of a connection, if it has one, and which connection it is.
#[derive(Clone)]
pub(crate) struct Audience {
    pub(crate) info: ConnectionInfo,
    events: Option<Arc<dyn Events>>,
}

impl Audience {
    pub(crate) fn new(info: ConnectionInfo, events: Option<Arc<dyn Events>>) -> Self {
        Self { info, events }
    }

    /// Whether anybody listens.
    pub(crate) fn is_there(&self) -> bool {
        self.events.is_some()
    }

    /// Tells whoever listens. Never under a lock.
    pub(crate) fn tell(&self, event: impl FnOnce(&dyn Events, &ConnectionInfo)) {
        if let Some(events) = &self.events {
            event(events.as_ref(), &self.info);
        }
    }
}

impl fmt::Debug for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}
