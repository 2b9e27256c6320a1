//! What an association has found out about its path, for those who observe it.

use std::time::Duration;

use super::Association;

impl Association {
    /// Smoothed RTT (RFC 6298), once there is a sample.
    pub fn srtt(&self) -> Option<Duration> {
        self.sender.srtt()
    }

    /// Least RTT on the path, once there is a sample.
    pub fn min_rtt(&self) -> Option<Duration> {
        self.sender.least_rtt()
    }

    /// Bytes of DATA chunks in flight: sent, and neither acknowledged nor taken for lost.
    pub fn in_flight(&self) -> usize {
        self.sender.in_flight()
    }

    /// Bytes of DATA chunks that were ever sent, retransmissions included.
    pub fn bytes_sent(&self) -> u64 {
        self.sender.bytes_sent()
    }

    /// Bytes of DATA chunks that were ever taken for lost, also those that arrived after all.
    pub fn bytes_lost(&self) -> u64 {
        self.sender.bytes_lost()
    }

    /// Longest packet that is sent. It changes with what is known of the path.
    pub fn max_packet(&self) -> usize {
        self.path_mtu.current()
    }
}
