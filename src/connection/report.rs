//! Events about substreams that the driver and the handles report.

use super::shared::ConnectionShared;
use crate::events::Initiator;
use crate::substream::{CloseOutcome, Ended, Shared, Substream};

/// Reports that the protocol of a substream was negotiated.
pub(super) fn negotiated(conn: &ConnectionShared, substream: &Substream) {
    // No event may follow the end event.
    if substream.shared().state().end().is_none()
        && let Some(protocol) = substream.protocol()
    {
        let info = substream.shared().info();
        conn.emit(|events, connection| events.substream_negotiated(connection, info, protocol));
    }
}

/// Reports the end of a substream; called once, when the driver forgets it.
pub(super) fn ended(conn: &ConnectionShared, shared: &Shared) {
    conn.emit(|events, connection| {
        let stats = shared.stats();
        let by = match shared.state().end() {
            Some(Ended::ResetByPeer) => Initiator::Remote,
            Some(Ended::ResetLocally) => Initiator::Local,
            Some(Ended::Closed | Ended::Lost) | None => {
                let outcome = shared.outcome().unwrap_or(CloseOutcome::Lost);
                return events.substream_closed(connection, shared.info(), outcome, &stats);
            }
        };
        let code = shared.reset_code();
        events.substream_reset(connection, shared.info(), code, by, &stats);
    });
}
