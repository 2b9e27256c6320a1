//! The queue of a direction: drop-tail, with CoDel or marking above a threshold.

use std::collections::VecDeque;
use std::time::Duration;

use crate::codel::CoDel;
use crate::packet::Packet;

/// Packets in the order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    packets: VecDeque<Packet>,
    bytes: usize,
}

impl Backlog {
    pub(crate) fn push(&mut self, packet: Packet) {
        self.bytes += packet.len();
        self.packets.push_back(packet);
    }

    /// Takes the head, whose time in the queue ends.
    pub(crate) fn take(&mut self, now: Duration) -> Option<Packet> {
        let mut packet = self.packets.pop_front()?;
        self.bytes -= packet.len();
        packet.waited = now.saturating_sub(packet.entered);
        Some(packet)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue {
    backlog: Backlog,
    /// Maximum number of bytes.
    limit: usize,
    codel: Option<CoDel>,
    /// Queueing delay above which packets are marked.
    mark: Option<Duration>,
}

impl Queue {
    pub(crate) fn new(limit: usize, codel: Option<CoDel>, mark: Option<Duration>) -> Self {
        Self {
            backlog: Backlog::default(),
            limit,
            codel,
            mark,
        }
    }

    /// Appends a packet, or returns it if it finds no room.
    pub(crate) fn push(&mut self, mut packet: Packet) -> Result<(), Packet> {
        if self.backlog.bytes + packet.len() > self.limit {
            // That of the packet that leaves next, which shows how long the queue is.
            let head = self.head_entered().unwrap_or(packet.entered);
            packet.waited = packet.entered.saturating_sub(head);
            return Err(packet);
        }
        self.backlog.push(packet);
        Ok(())
    }

    /// Takes the next packet to send. Pushes those that CoDel drops to `dropped`.
    pub(crate) fn pop(&mut self, now: Duration, dropped: &mut Vec<Packet>) -> Option<Packet> {
        let mut packet = match &mut self.codel {
            Some(codel) => codel.dequeue(&mut self.backlog, now, dropped)?,
            None => self.backlog.take(now)?,
        };
        if self.mark.is_some_and(|threshold| packet.waited > threshold) {
            packet.mark();
        }
        Some(packet)
    }

    /// When the head arrived.
    pub(crate) fn head_entered(&self) -> Option<Duration> {
        self.backlog.packets.front().map(|packet| packet.entered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::tests::udp;

    const MS: Duration = Duration::from_millis(1);

    fn packet(entered: Duration, len: usize, ecn: u8) -> Packet {
        Packet::new(udp(len, ecn), 0, entered)
    }

    #[test]
    fn the_tail_is_dropped_at_the_limit_in_bytes() {
        let mut queue = Queue::new(2500, None, None);
        queue.push(packet(MS, 1500, 0)).expect("room");
        let refused = queue.push(packet(4 * MS, 1500, 0)).expect_err("no room");
        assert_eq!(refused.waited, 3 * MS);
        queue.push(packet(4 * MS, 1000, 0)).expect("exactly fits");
        let mut dropped = Vec::new();
        let head = queue.pop(9 * MS, &mut dropped).expect("a packet");
        assert_eq!((head.len(), head.waited), (1500, 8 * MS));
        queue.push(packet(9 * MS, 1500, 0)).expect("room again");
        assert_eq!(queue.pop(9 * MS, &mut dropped).map(|p| p.len()), Some(1000));
        assert_eq!(queue.pop(9 * MS, &mut dropped).map(|p| p.len()), Some(1500));
        assert!(queue.pop(9 * MS, &mut dropped).is_none() && dropped.is_empty());
        assert_eq!(queue.head_entered(), None);
    }

    #[test]
    fn a_delay_above_the_threshold_is_marked() {
        let mut queue = Queue::new(10_000, None, Some(5 * MS));
        let mut marked = |waited: Duration, ecn: u8| {
            queue.push(packet(Duration::ZERO, 100, ecn)).expect("room");
            let mut dropped = Vec::new();
            queue.pop(waited, &mut dropped).expect("a packet").marked
        };
        assert!(!marked(5 * MS, 0b01));
        assert!(marked(6 * MS, 0b01));
        assert!(marked(6 * MS, 0b10));
        assert!(!marked(6 * MS, 0b00));
    }
}
