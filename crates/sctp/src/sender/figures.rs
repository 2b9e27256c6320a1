//! What a sender has counted, for those who observe it.

use std::time::Duration;

use super::Sender;

impl Sender {
    /// Bytes of chunks in flight.
    pub(in super::super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Bytes of chunks that were ever sent.
    pub(in super::super) fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    /// Bytes of chunks that ever counted as lost.
    pub(in super::super) fn bytes_lost(&self) -> u64 {
        self.bytes_lost
    }

    /// The least RTT, once there is a sample.
    pub(in super::super) fn least_rtt(&self) -> Option<Duration> {
        self.srtt.map(|_| self.min_rtt)
    }
}
