//! One attempt to connect, whose end is always reported.

use std::error::Error;
#[cfg(feature = "websocket")]
use std::net::SocketAddr;
use std::sync::Arc;

use super::{ConnectionInfo, Events};

/// Reports the start at once, and a failure when dropped before success.
#[derive(Debug)]
pub(crate) struct Attempt {
    events: Option<Arc<dyn Events>>,
    info: ConnectionInfo,
}

impl Attempt {
    pub(crate) fn begin(events: Option<&Arc<dyn Events>>, info: ConnectionInfo) -> Self {
        if let Some(events) = events {
            events.connection_opening(&info);
        }
        Self {
            events: events.cloned(),
            info,
        }
    }

    /// A proxy has resolved the peer's address; later events carry it.
    #[cfg(feature = "websocket")]
    pub(crate) fn set_remote(&mut self, remote: SocketAddr) {
        self.info.remote = Some(remote);
    }

    /// The connection takes over; the next event is that it is open.
    pub(crate) fn succeeded(mut self) -> ConnectionInfo {
        self.events = None;
        self.info.clone()
    }

    pub(crate) fn failed(mut self, error: &(dyn Error + 'static)) {
        self.end(Some(error));
    }

    fn end(&mut self, error: Option<&(dyn Error + 'static)>) {
        if let Some(events) = self.events.take() {
            events.connect_failed(&self.info, error);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.end(None);
    }
}
