//! Proportional rate reduction (RFC 9937): what may be sent while the window is reduced.
//!
//! Without it a sender is silent until the packets in flight fit the smaller window, and then sends
//! the rest at once.

/// The recovery after one reduction. Ends when a packet sent after it is acknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recovery {
    /// The first packet sent after the reduction.
    pub(super) end: u64,
    /// Bytes in flight when it began (RecoverFS).
    in_flight: usize,
    /// Bytes delivered and sent since (prr_delivered, prr_out).
    delivered: usize,
    sent: usize,
    /// Bytes delivered by the last SACK, and sent before it.
    last_delivered: usize,
    sent_before: usize,
}

impl Recovery {
    pub(super) fn new(end: u64, in_flight: usize) -> Self {
        Self {
            end,
            in_flight: in_flight.max(1),
            delivered: 0,
            sent: 0,
            last_delivered: 0,
            sent_before: 0,
        }
    }

    pub(super) fn on_delivered(&mut self, bytes: usize) {
        self.delivered += bytes;
        self.last_delivered = bytes;
        self.sent_before = self.sent;
    }

    pub(super) fn on_sent(&mut self, bytes: usize) {
        self.sent += bytes;
    }

    /// Bytes that may be sent now, of the window `cwnd` (which is ssthresh) with `in_flight` bytes
    /// in flight.
    pub(super) fn allowance(&self, cwnd: usize, in_flight: usize, max_packet: usize) -> usize {
        let allowance = if in_flight > cwnd {
            let target = (self.delivered as u128 * cwnd as u128).div_ceil(self.in_flight as u128);
            usize::try_from(target)
                .unwrap_or(usize::MAX)
                .saturating_sub(self.sent)
        } else {
            // PRR-SSRB: losses have made more room than the reduction takes.
            let limit = self.delivered.saturating_sub(self.sent_before);
            let limit = limit.max(self.last_delivered) + max_packet;
            let limit = limit.saturating_sub(self.sent - self.sent_before);
            (cwnd - in_flight).min(limit)
        };
        // The first retransmission goes out at once.
        let first = if self.sent == 0 { max_packet } else { 0 };
        allowance.max(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: usize = 1000;

    #[test]
    fn the_window_shrinks_with_what_is_delivered() {
        // 100 packets in flight, one of which is lost; the new window is 70.
        let cwnd = 70 * PACKET;
        let mut in_flight = 99 * PACKET;
        let mut recovery = Recovery::new(100, 100 * PACKET);
        let mut sent = 0;
        for _ in 0..99 {
            in_flight -= PACKET;
            recovery.on_delivered(PACKET);
            while recovery.allowance(cwnd, in_flight, PACKET) >= PACKET {
                recovery.on_sent(PACKET);
                in_flight += PACKET;
                sent += 1;
            }
        }
        assert!((68..=72).contains(&sent), "{sent}");
        assert!((68..=71).contains(&(in_flight / PACKET)), "{in_flight}");
    }

    #[test]
    fn heavy_loss_is_followed_by_slow_growth_and_no_burst() {
        let mut recovery = Recovery::new(100, 100 * PACKET);
        recovery.on_delivered(PACKET);
        // 80 packets are lost at once: the window has room for 60.
        let (cwnd, mut in_flight) = (70 * PACKET, 10 * PACKET);
        for acked in 1..=5 {
            let mut sent = 0;
            while recovery.allowance(cwnd, in_flight, PACKET) >= PACKET {
                recovery.on_sent(PACKET);
                in_flight += PACKET;
                sent += 1;
            }
            assert!(sent <= 2, "{sent} packets after {acked} acknowledgements");
            recovery.on_delivered(PACKET);
            in_flight -= PACKET;
        }
    }
}
