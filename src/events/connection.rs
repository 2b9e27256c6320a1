//! The event listener of one connection.

use std::fmt;
use std::sync::Arc;

use super::{ConnectionInfo, Events};

/// The listener of a connection, if there is one, and the connection it listens to.
#[derive(Clone)]
pub(crate) struct ConnectionEvents {
    pub(crate) info: ConnectionInfo,
    events: Option<Arc<dyn Events>>,
}

impl ConnectionEvents {
    pub(crate) fn new(info: ConnectionInfo, events: Option<Arc<dyn Events>>) -> Self {
        Self { info, events }
    }

    /// Whether there is a listener.
    pub(crate) fn is_enabled(&self) -> bool {
        self.events.is_some()
    }

    /// Calls the listener. Never call this while holding a lock.
    pub(crate) fn emit(&self, event: impl FnOnce(&dyn Events, &ConnectionInfo)) {
        if let Some(events) = &self.events {
            event(events.as_ref(), &self.info);
        }
    }
}

impl fmt::Debug for ConnectionEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}
