//! What the driver tells of its substreams.

use tokio::time::Instant;

use super::driver::Turn;
use super::entry::Entry;
use super::shared::ConnectionShared;
use crate::carrier::{Carrier, ChannelId};
use crate::events::Initiator;
use crate::substream::{CloseOutcome, Ended, Shared, Substream};

/// A substream has found its protocol.
pub(super) fn negotiated(conn: &ConnectionShared, substream: &Substream) {
    // Its end may have been told already, and that is the last that is told of it.
    if substream.shared().state().end().is_none()
        && let Some(protocol) = substream.protocol()
    {
        let info = substream.shared().info();
        conn.emit(|events, connection| events.substream_negotiated(connection, info, protocol));
    }
}

/// The driver has forgotten a substream, which it does once.
pub(super) fn ended(conn: &ConnectionShared, entry: &Entry) {
    conn.emit(|events, connection| {
        let shared = &entry.shared;
        let stats = shared.stats();
        let by = match shared.state().end() {
            Some(Ended::ResetByPeer) => Initiator::Remote,
            Some(Ended::ResetLocally) => Initiator::Local,
            Some(Ended::Closed | Ended::Lost) | None => {
                let outcome = shared.outcome().unwrap_or(CloseOutcome::Lost);
                return events.substream_closed(connection, entry.shared.info(), outcome, &stats);
            }
        };
        let code = shared.reset_code();
        events.substream_reset(connection, entry.shared.info(), code, by, &stats);
    });
}

impl<C: Carrier> Turn<'_, C> {
    /// Tells when data begins to wait for credit.
    pub(super) fn report_stalled(&mut self, shared: &Shared) {
        if self.core.conn.siblings.events.is_enabled()
            && shared.waits_for_credit()
            && let Some(entry) = self.core.substreams.get_mut(&shared.id)
            && entry.stalled_since.is_none()
        {
            entry.stalled_since = Some(Instant::now());
            let info = entry.shared.info();
            self.core
                .conn
                .emit(|events, connection| events.credit_stalled(connection, info));
        }
    }

    /// Tells when there is credit again.
    pub(super) fn report_resumed(&mut self, channel: ChannelId) {
        if let Some(entry) = self.core.substreams.get_mut(&channel)
            && let Some(since) = entry.stalled_since
            && entry.shared.has_sendable_data()
        {
            entry.stalled_since = None;
            let info = entry.shared.info();
            let waited = since.elapsed();
            self.core
                .conn
                .emit(|events, connection| events.credit_resumed(connection, info, waited));
        }
    }
}
