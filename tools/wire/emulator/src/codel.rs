//! CoDel (RFC 8289), which drops packets, or marks those of ECN-capable transports.

use std::time::Duration;

use crate::packet::Packet;
use crate::queue::Backlog;

/// CoDel does not drop while no more than this is queued: one packet of the usual MTU.
const MTU: usize = 1500;

/// Parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Acceptable standing delay.
    pub(crate) target: Duration,
    /// About the worst round trip of the flows.
    pub(crate) interval: Duration,
    /// Mark packets of ECN-capable transports instead of dropping them.
    pub(crate) ecn: bool,
}

/// The state variables of section 5, under their names there.
#[derive(Debug)]
pub(crate) struct CoDel {
    settings: Settings,
    /// When packets may be dropped, if the delay stays above target; `first_above_time_`.
    first_above: Option<Duration>,
    drop_next: Duration,
    count: u32,
    last_count: u32,
    dropping: bool,
}

impl CoDel {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            first_above: None,
            drop_next: Duration::ZERO,
            count: 0,
            last_count: 0,
            dropping: false,
        }
    }

    /// The next packet to send. Pushes packets that it drops to `dropped`.
    pub(crate) fn dequeue(
        &mut self,
        backlog: &mut Backlog,
        now: Duration,
        dropped: &mut Vec<Packet>,
    ) -> Option<Packet> {
        let (mut packet, mut may_drop) = self.take(backlog, now);
        if self.dropping {
            self.dropping = may_drop;
            while self.dropping && now >= self.drop_next {
                let (next, was_marked) = self.congest(packet?, dropped);
                self.count += 1;
                if was_marked {
                    self.drop_next = self.control_law(self.drop_next);
                    return next;
                }
                (packet, may_drop) = self.take(backlog, now);
                if may_drop {
                    self.drop_next = self.control_law(self.drop_next);
                } else {
                    self.dropping = false;
                }
            }
        } else if may_drop {
            let (next, was_marked) = self.congest(packet?, dropped);
            packet = match was_marked {
                true => next,
                false => self.take(backlog, now).0,
            };
            self.dropping = true;
            // Goes on near the rate that controlled the queue before, if that is not long ago.
            let delta = self.count - self.last_count;
            let is_recent = now.saturating_sub(self.drop_next) < 16 * self.settings.interval;
            self.count = if delta > 1 && is_recent { delta } else { 1 };
            self.drop_next = self.control_law(now);
            self.last_count = self.count;
        }
        packet
    }

    /// Takes the head of the queue, and returns whether the delay was above target for an interval.
    fn take(&mut self, backlog: &mut Backlog, now: Duration) -> (Option<Packet>, bool) {
        let packet = backlog.take(now);
        let is_above = packet
            .as_ref()
            .is_some_and(|packet| packet.waited >= self.settings.target && backlog.bytes() > MTU);
        if !is_above {
            self.first_above = None;
            return (packet, false);
        }
        let since = self.first_above.get_or_insert(now + self.settings.interval);
        (packet, now >= *since)
    }

    /// Marks the packet and returns it, or drops it.
    fn congest(&self, mut packet: Packet, dropped: &mut Vec<Packet>) -> (Option<Packet>, bool) {
        if self.settings.ecn && packet.mark() {
            return (Some(packet), true);
        }
        dropped.push(packet);
        (None, false)
    }

    fn control_law(&self, from: Duration) -> Duration {
        from + self.settings.interval.div_f64(f64::from(self.count).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::tests::udp;

    const MS: Duration = Duration::from_millis(1);
    const SETTINGS: Settings = Settings {
        target: Duration::from_millis(5),
        interval: Duration::from_millis(100),
        ecn: false,
    };

    /// Dequeues a packet each millisecond with this delay. Returns the times of drops and marks.
    fn signals(settings: Settings, ecn: u8, delay: Duration, ms: u32) -> (Vec<u32>, Vec<u32>) {
        let mut codel = CoDel::new(settings);
        let (mut drops, mut marks) = (Vec::new(), Vec::new());
        for t in 0..ms {
            let now = delay + t * MS;
            let mut backlog = Backlog::default();
            for _ in 0..10 {
                backlog.push(Packet::new(udp(1000, ecn), 0, now - delay));
            }
            let mut dropped = Vec::new();
            let packet = codel.dequeue(&mut backlog, now, &mut dropped);
            if !dropped.is_empty() {
                drops.push(t);
            }
            if packet.expect("one is left").marked {
                marks.push(t);
            }
        }
        (drops, marks)
    }

    #[test]
    fn drops_come_faster_with_the_square_root_of_their_number() {
        let (drops, marks) = signals(SETTINGS, 0, 20 * MS, 400);
        assert_eq!(marks, []);
        // 100 ms of delay, then 100 / sqrt(1), 100 / sqrt(2), 100 / sqrt(3) ms.
        assert_eq!(drops, [100, 200, 271, 329, 379]);
    }

    #[test]
    fn marks_come_in_place_of_drops() {
        let settings = Settings {
            ecn: true,
            ..SETTINGS
        };
        let (drops, marks) = signals(settings, 0b10, 20 * MS, 400);
        assert_eq!((drops, marks), (vec![], vec![100, 200, 271, 329, 379]));
        let (drops, marks) = signals(settings, 0, 20 * MS, 400);
        assert_eq!((drops.len(), marks.len()), (5, 0));
    }

    #[test]
    fn a_delay_below_target_is_no_congestion() {
        assert_eq!(signals(SETTINGS, 0, 4 * MS, 1000), (vec![], vec![]));
    }

    #[test]
    fn a_single_packet_is_never_dropped() {
        let mut codel = CoDel::new(SETTINGS);
        for t in 0..1000 {
            let mut backlog = Backlog::default();
            backlog.push(Packet::new(udp(1000, 0), 0, t * MS));
            let mut dropped = Vec::new();
            let packet = codel.dequeue(&mut backlog, (t + 50) * MS, &mut dropped);
            assert!(packet.is_some() && dropped.is_empty());
        }
    }

    #[test]
    fn a_short_queue_ends_the_dropping_state() {
        let mut codel = CoDel::new(SETTINGS);
        let mut dequeue = |t: u32, delay: u32| {
            let mut backlog = Backlog::default();
            for _ in 0..10 {
                backlog.push(Packet::new(udp(1000, 0), 0, (t - delay) * MS));
            }
            let mut dropped = Vec::new();
            codel.dequeue(&mut backlog, t * MS, &mut dropped);
            dropped.len()
        };
        assert_eq!(dequeue(100, 20), 0);
        assert_eq!(dequeue(200, 20), 1);
        assert_eq!(dequeue(250, 1), 0);
        assert_eq!(
            dequeue(310, 20),
            0,
            "an interval above target is needed again"
        );
        assert_eq!(dequeue(411, 20), 1);
        let mut dropped = Vec::new();
        let empty = codel.dequeue(&mut Backlog::default(), 999 * MS, &mut dropped);
        assert!(empty.is_none() && dropped.is_empty());
    }
}
