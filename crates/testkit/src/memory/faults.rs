//! Faults on demand.

use std::sync::{Arc, Mutex};

use anabranch::ConnectionError;
use anabranch::message::Flag;

use super::{Side, Wire, lock};

/// Injects faults between a [`pair`](super::pair) of carriers.
///
/// Clones are cheap and act on the same pair. Dropping it undoes no fault.
#[derive(Debug, Clone)]
pub struct Faults {
    pub(super) wire: Arc<Mutex<Wire>>,
}

impl Faults {
    /// Drops every message in both directions from now on, without an error on either side.
    ///
    /// Messages in flight are dropped as well.
    pub fn silence(&self) {
        let mut wire = lock(&self.wire);
        for side in &mut wire.sides {
            side.silent = true;
        }
    }

    /// Fails both carriers with [`ConnectionError::Carrier`], after the messages in flight have
    /// been delivered.
    pub fn kill(&self) {
        let mut wire = lock(&self.wire);
        for side in &mut wire.sides {
            side.dead = Some(ConnectionError::Carrier("killed by the test".to_owned()));
            side.wake();
        }
    }

    /// Drops every frame with this flag in both directions from now on.
    ///
    /// The carrier accepts such a frame with `Written::Taken`. Frames in flight still arrive.
    pub fn drop_flag(&self, flag: Flag) {
        lock(&self.wire).drop_flags.push(flag);
    }

    /// Returns the number of messages in flight or unread, on both sides. Zero when idle.
    pub fn in_flight(&self) -> usize {
        let wire = lock(&self.wire);
        let count = |side: &Side| {
            side.inbound.len()
                + side
                    .channels
                    .values()
                    .map(|c| c.unread.len())
                    .sum::<usize>()
        };
        wire.sides.iter().map(count).sum()
    }

    /// Returns the number of open channels, summed over both sides.
    pub fn open_channels(&self) -> usize {
        lock(&self.wire)
            .sides
            .iter()
            .map(|side| side.channels.len())
            .sum()
    }
}
