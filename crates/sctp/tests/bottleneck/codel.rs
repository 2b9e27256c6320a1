//! Controlled Delay (CoDel, RFC 8289).

use std::collections::VecDeque;
use std::time::Duration;

use super::link::Packet;

/// Bytes that are never too many: one packet may always wait.
const MAX_PACKET: usize = 1514;

/// Parameters of CoDel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CodelConfig {
    /// Acceptable standing queue.
    pub(crate) target: Duration,
    /// How long the queue may exceed `target`.
    pub(crate) interval: Duration,
    /// Marks with Congestion Experienced (RFC 3168) instead of dropping.
    pub(crate) marks: bool,
}

/// State of CoDel, with the names of RFC 8289 section 5.
#[derive(Debug, Default)]
pub(crate) struct Codel {
    first_above_time: Option<Duration>,
    is_dropping: bool,
    drop_next: Duration,
    count: u32,
    last_count: u32,
}

impl Codel {
    /// Takes the next packet from the queue. Returns the number of packets dropped as well.
    pub(crate) fn dequeue(
        &mut self,
        config: CodelConfig,
        now: Duration,
        queue: &mut VecDeque<Packet>,
        queued: &mut usize,
    ) -> (Option<Packet>, usize) {
        let mut dropped = 0;
        let (mut packet, mut is_ok_to_drop) = self.take(config, now, queue, queued);
        if self.is_dropping {
            if !is_ok_to_drop {
                self.is_dropping = false;
            }
            while self.is_dropping && now >= self.drop_next {
                self.count += 1;
                let drop_next = self.control_law(config, self.drop_next);
                if config.marks {
                    mark(&mut packet);
                    self.drop_next = drop_next;
                    break;
                }
                dropped += 1;
                (packet, is_ok_to_drop) = self.take(config, now, queue, queued);
                if is_ok_to_drop {
                    self.drop_next = drop_next;
                } else {
                    self.is_dropping = false;
                }
            }
        } else if is_ok_to_drop {
            if config.marks {
                mark(&mut packet);
            } else {
                dropped += 1;
                (packet, _) = self.take(config, now, queue, queued);
            }
            self.is_dropping = true;
            let delta = self.count.saturating_sub(self.last_count);
            let is_recent = now.saturating_sub(self.drop_next) < config.interval * 16;
            self.count = if delta > 1 && is_recent { delta } else { 1 };
            self.drop_next = self.control_law(config, now);
            self.last_count = self.count;
        }
        (packet, dropped)
    }

    /// Takes a packet, and whether the queue has exceeded the target for an interval.
    fn take(
        &mut self,
        config: CodelConfig,
        now: Duration,
        queue: &mut VecDeque<Packet>,
        queued: &mut usize,
    ) -> (Option<Packet>, bool) {
        let Some(packet) = queue.pop_front() else {
            self.first_above_time = None;
            return (None, false);
        };
        *queued -= packet.size;
        if now - packet.enqueued_at < config.target || *queued <= MAX_PACKET {
            self.first_above_time = None;
            return (Some(packet), false);
        }
        let first_above = *self.first_above_time.get_or_insert(now + config.interval);
        (Some(packet), now >= first_above)
    }

    fn control_law(&self, config: CodelConfig, from: Duration) -> Duration {
        from + config.interval.div_f64(f64::from(self.count).sqrt())
    }
}

fn mark(packet: &mut Option<Packet>) {
    if let Some(packet) = packet {
        packet.ce = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::packet;

    const CONFIG: CodelConfig = CodelConfig {
        target: Duration::from_millis(5),
        interval: Duration::from_millis(100),
        marks: false,
    };

    /// Serves a queue to which twice the rate arrives, a packet each millisecond. Returns the
    /// packets served, marked and dropped in the time.
    fn overload(config: CodelConfig, time: u64) -> (usize, usize, usize) {
        let (mut codel, mut queue, mut queued) = (Codel::default(), VecDeque::new(), 0);
        let (mut served, mut marked, mut dropped) = (0, 0, 0);
        for now in 0..time {
            let now = Duration::from_millis(now);
            for _ in 0..2 {
                queue.push_back(packet(1000, now));
                queued += 1000;
            }
            let (packet, drops) = codel.dequeue(config, now, &mut queue, &mut queued);
            served += usize::from(packet.is_some());
            marked += usize::from(packet.is_some_and(|packet| packet.ce));
            dropped += drops;
        }
        (served, marked, dropped)
    }

    #[test]
    fn a_standing_queue_is_tolerated_for_an_interval() {
        assert_eq!(overload(CONFIG, 100).2, 0);
        assert_eq!(overload(CONFIG, 150).2, 1);
    }

    /// The interval shrinks with the square root of the count: about (2 t / interval)^2 / 4 in t.
    #[test]
    fn drops_become_more_frequent() {
        let (served, marked, dropped) = overload(CONFIG, 1100);
        assert_eq!((served, marked), (1100, 0));
        assert!((20..=36).contains(&dropped), "{dropped}");
    }

    #[test]
    fn marks_come_in_place_of_drops() {
        let config = CodelConfig {
            marks: true,
            ..CONFIG
        };
        let (served, marked, dropped) = overload(config, 1100);
        assert_eq!((served, dropped), (1100, 0));
        assert!((20..=36).contains(&marked), "{marked}");
    }
}
