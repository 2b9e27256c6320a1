//! The substreams of a connection, as the driver keeps them.
//!
//! The only place where a substream is added and forgotten, so that the start and the end of each
//! are counted and reported once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::deadlines::{DeadlineKind, Deadlines};
use super::entry::{Entry, ReadProgress};
use super::report;
use super::shared::ConnectionShared;
use super::unused::UnusedSubstreams;
use crate::carrier::ChannelId;
use crate::events::Initiator;
use crate::substream::{Ended, Shared, SubstreamEvent, Usage};

/// Queues shorter than this are not worth removing ended substreams from.
const MIN_QUEUE_TO_PRUNE: usize = 64;

/// The table of substreams, and the counts that follow from it.
#[derive(Debug)]
pub(super) struct Substreams {
    conn: Arc<ConnectionShared>,
    /// Boxed: a table has up to twice as many places as entries.
    entries: HashMap<ChannelId, Box<Entry>>,
    /// Entries that the peer opened.
    inbound: usize,
    /// Entries whose reading is paused.
    paused: usize,
    /// Limits rapid open and reset.
    pub(super) unused: UnusedSubstreams,
}

impl Substreams {
    pub(super) fn new(conn: Arc<ConnectionShared>) -> Self {
        Self {
            conn,
            entries: HashMap::new(),
            inbound: 0,
            paused: 0,
            unused: UnusedSubstreams::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of substreams that the peer opened.
    pub(super) fn inbound(&self) -> usize {
        self.inbound
    }

    pub(super) fn contains(&self, channel: ChannelId) -> bool {
        self.entries.contains_key(&channel)
    }

    pub(super) fn get(&self, channel: ChannelId) -> Option<&Entry> {
        self.entries.get(&channel).map(|entry| &**entry)
    }

    pub(super) fn get_mut(&mut self, channel: ChannelId) -> Option<&mut Entry> {
        self.entries.get_mut(&channel).map(|entry| &mut **entry)
    }

    pub(super) fn channels(&self) -> Vec<ChannelId> {
        self.entries.keys().copied().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Shared>> {
        self.entries.values().map(|entry| &entry.shared)
    }

    /// Adds a substream that was opened, with its receive window.
    pub(super) fn insert(&mut self, shared: Arc<Shared>, window: u32) {
        let info = shared.info();
        self.conn
            .emit(|events, connection| events.substream_opened(connection, info));
        if shared.origin == Initiator::Remote {
            self.inbound += 1;
        }
        let entry = Entry::new(Arc::clone(&shared), window);
        self.entries.insert(shared.id, Box::new(entry));
    }

    /// Forgets a substream that has ended, and reports its end. Returns whether it existed.
    pub(super) fn forget(&mut self, channel: ChannelId, deadlines: &mut Deadlines) -> bool {
        self.resume(channel);
        let Some(entry) = self.entries.remove(&channel) else {
            return false;
        };
        for kind in [
            DeadlineKind::FinAck,
            DeadlineKind::Teardown,
            DeadlineKind::Credit,
        ] {
            deadlines.cancel(channel, kind);
        }
        // An unaccepted substream can still be accepted, and waits no longer than any other.
        if entry.shared.usage() != Usage::Waiting {
            deadlines.cancel(channel, DeadlineKind::Accept);
        }
        if entry.shared.origin == Initiator::Remote {
            debug_assert!(self.inbound > 0, "a substream that was not counted");
            self.inbound = self.inbound.saturating_sub(1);
            if ended_unused(&entry.shared) {
                self.unused.count();
            }
        }
        self.conn.on_forgotten(&entry.shared);
        report::ended(&self.conn, &entry.shared);
        true
    }

    /// The length of a queue of which the larger part is of no use any more.
    pub(super) fn max_queue(&self) -> usize {
        2 * self.len() + MIN_QUEUE_TO_PRUNE
    }

    /// Removes ended substreams from a queue once they are the larger part of it.
    ///
    /// Otherwise they are skipped when their turn comes; but a peer that lets nothing through could
    /// open and reset meanwhile.
    pub(super) fn prune(&self, queue: &mut VecDeque<ChannelId>) {
        if queue.len() > self.max_queue() {
            queue.retain(|channel| self.contains(*channel));
        }
    }

    /// Ends all substreams, without a frame to the peer. Reports their ends if `report` is set.
    pub(super) fn abandon(&mut self, report: bool) {
        for (_, entry) in self.entries.drain() {
            entry.shared.apply(SubstreamEvent::CarrierLost);
            if report {
                report::ended(&self.conn, &entry.shared);
            }
        }
    }

    /// Leaves a channel unread until its reader has made room.
    pub(super) fn pause(&mut self, channel: ChannelId) {
        let Some(entry) = self.entries.get_mut(&channel) else {
            return;
        };
        if entry.reading == ReadProgress::Paused {
            return;
        }
        entry.reading = ReadProgress::Paused;
        self.paused += 1;
        self.conn.siblings.set_reads_awaited(true);
        // The reader may have taken everything before reads requested service.
        entry.shared.request_service();
    }

    /// Ends the pause of a channel, if it has one.
    pub(super) fn resume(&mut self, channel: ChannelId) {
        let Some(entry) = self.entries.get_mut(&channel) else {
            return;
        };
        if entry.reading != ReadProgress::Paused {
            return;
        }
        entry.reading = ReadProgress::Idle;
        debug_assert!(self.paused > 0, "a pause that was not counted");
        self.paused = self.paused.saturating_sub(1);
        self.conn.siblings.set_reads_awaited(self.paused > 0);
    }

    /// Reports that data begins to wait for credit, if it does.
    pub(super) fn report_stalled(&mut self, shared: &Shared) {
        if self.conn.siblings.events.is_enabled()
            && shared.waits_for_credit()
            && let Some(entry) = self.entries.get_mut(&shared.id)
            && entry.stalled_since.is_none()
        {
            entry.stalled_since = Some(Instant::now());
            let info = entry.shared.info();
            self.conn
                .emit(|events, connection| events.credit_stalled(connection, info));
        }
    }

    /// Reports that there is credit again, if data has waited for it.
    pub(super) fn report_resumed(&mut self, channel: ChannelId) {
        if let Some(entry) = self.entries.get_mut(&channel)
            && let Some(since) = entry.stalled_since
            && entry.shared.has_sendable_data()
        {
            entry.stalled_since = None;
            let info = entry.shared.info();
            let waited = since.elapsed();
            self.conn
                .emit(|events, connection| events.credit_resumed(connection, info, waited));
        }
    }
}

/// Whether a substream of the peer ended before the application used it: the peer ended it before
/// the application wrote to it, or it was refused before the application saw it.
fn ended_unused(shared: &Shared) -> bool {
    match (shared.usage(), shared.state().end()) {
        (Usage::Answered, _) => false,
        (_, Some(Ended::ResetByPeer | Ended::Closed)) => true,
        (Usage::Negotiating, Some(Ended::ResetLocally)) => true,
        _ => false,
    }
}
