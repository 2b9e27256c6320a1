//! Loss recovery: what counts for the controller, and when a probe is sent.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::withholding::sack;
use super::*;
use crate::sender::Sender;
use crate::{Ack, CongestionControl, Controller};

/// Connected with `control`, with one stream.
fn connected(control: CongestionControl) -> Pair {
    let mut pair = Pair::controlled(control);
    pair.sides[0].association.open_stream(1);
    pair
}

fn cwnd(pair: &Pair) -> usize {
    pair.sides[0].association.congestion().cwnd()
}

/// Writes as much as the window takes for a time.
fn fill(pair: &mut Pair, time: Duration) {
    let end = pair.now + time;
    while pair.now < end {
        while pair.sides[0].association.total_unacknowledged() < 2 * cwnd(pair) {
            pair.write(0, 1, pattern(1100, 0));
        }
        pair.step();
        pair.sides[1].received.clear();
    }
}

/// A packet that is merely late, long after, says nothing about it.
#[test]
fn a_reduction_by_losses_is_not_undone_by_a_late_packet_later_on() {
    for control in [CongestionControl::Heed, CongestionControl::Cubic] {
        let mut pair = connected(control);
        fill(&mut pair, Duration::from_millis(90));
        // Losses in slow start.
        let lost = Rc::new(RefCell::new(40));
        let left = Rc::clone(&lost);
        pair.passes = Box::new(move |from, _| {
            let mut left = left.borrow_mut();
            let is_lost = from == 0 && *left > 0;
            *left -= usize::from(is_lost);
            !is_lost
        });
        let mut highest = 0;
        for _ in 0..30 {
            fill(&mut pair, Duration::from_millis(10));
            highest = highest.max(cwnd(&pair));
        }
        assert!(cwnd(&pair) < highest, "{} of {highest}", cwnd(&pair));
        let late = Rc::new(RefCell::new(None));
        let held = Rc::clone(&late);
        pair.passes = Box::new(move |from, packet| {
            let mut held = held.borrow_mut();
            let is_held = from == 0 && packet.len() > 1000 && held.is_none();
            if is_held {
                *held = Some(packet.to_vec());
            }
            !is_held
        });
        let reduced = cwnd(&pair);
        fill(&mut pair, Duration::from_millis(15));
        let packet = late.borrow().clone().expect("one is late");
        let now = pair.now;
        pair.sides[1].association.handle_packet(now, &packet);
        fill(&mut pair, Duration::from_millis(100));
        let grown = cwnd(&pair);
        assert!(grown < reduced * 3 / 2, "{control:?}: {reduced} to {grown}");
    }
}

thread_local! {
    static RTTS: RefCell<Vec<Option<Duration>>> = const { RefCell::new(Vec::new()) };
    static WAS_LIMITED: Cell<bool> = const { Cell::new(false) };
}

/// Notes the RTTs that it is given, and whether cwnd was the limit.
#[derive(Debug)]
struct Notes;

/// A sender of the controller [`Notes`] with one stream, which withholds nothing.
fn noting() -> Sender {
    let control = CongestionControl::Custom(|_| Box::new(Notes));
    let mut sender = Sender::new(1000, 1160, control);
    sender.set_peer_window(1 << 20);
    sender.withhold_nothing();
    sender.open(1);
    sender
}

/// Sends what the windows allow; returns the number of packets.
fn send(sender: &mut Sender, now: Instant) -> usize {
    let mut out = Packets::new(1160, ([5000, 5000], 7), true, BytesMut::new());
    sender.fill(now, &mut out);
    out.finish().0.len()
}

fn acknowledge(sender: &mut Sender, now: Instant, cumulative: u32) {
    let value = sack(cumulative, &[]);
    let sack = packet::Sack::parse(&value).expect("valid");
    let handled = sender.handle_sack(now, sack, &mut VecDeque::new());
    handled.expect("honest");
}

impl Controller for Notes {
    fn on_ack(&mut self, ack: &Ack<'_>) {
        RTTS.with_borrow_mut(|rtts| rtts.push(ack.rtt));
        WAS_LIMITED.set(ack.is_cwnd_limited);
    }

    fn on_timeout(&mut self, _now: Instant, _count: u32) {}

    fn cwnd(&self) -> usize {
        1 << 20
    }

    fn pacing_rate(&self) -> Option<f64> {
        None
    }
}

/// The probe goes out after 500 ms, and what was sent first is acknowledged after 600.
#[test]
fn a_path_slower_than_the_first_timeout_is_not_measured_by_its_probe() {
    let mut sender = noting();
    let begin = Instant::now();
    for _ in 0..4 {
        sender.write(1, 53, Bytes::from_static(&[7; 1100]));
    }
    assert_eq!(send(&mut sender, begin), 4);
    let timeout = sender.next_timeout().expect("a timeout");
    sender.handle_timeout(timeout);
    assert_eq!(send(&mut sender, timeout), 2, "probes");
    let now = begin + Duration::from_millis(600);
    for cumulative in 1000..1004 {
        acknowledge(&mut sender, now, cumulative);
    }
    let rtts = RTTS.take();
    let expected = Duration::from_millis(600);
    assert!(rtts.contains(&Some(expected)), "{rtts:?}");
    assert!(
        rtts.iter().flatten().all(|rtt| *rtt == expected),
        "{rtts:?}"
    );
}

#[test]
fn a_probe_is_not_postponed_by_an_application_that_goes_on_writing() {
    let mut pair = connected(CongestionControl::Heed);
    pair.passes = Box::new(|from, _| from == 1);
    // Whatever the handshake left.
    pair.sides[0].association.poll_transmit(pair.now);
    let begin = pair.now;
    let mut sent = 0;
    while pair.now - begin < Duration::from_millis(400) {
        pair.write(0, 1, pattern(50, 0));
        assert!(pair.sides[0].association.poll_transmit(pair.now).is_some());
        sent += 1;
        let due = pair.sides[0].association.next_timeout().expect("a timeout");
        assert!(due - begin <= Duration::from_millis(500), "after {sent}");
        pair.now += Duration::from_millis(50);
    }
    assert!(sent >= 4, "{sent}");
}

/// The packets of one flight, once the path is known to have this RTT. cwnd allows all 400.
fn flight(rtt: Duration, is_same_stack: bool) -> usize {
    let mut sender = noting();
    if is_same_stack {
        sender.lift_nearby_limit();
    }
    let begin = Instant::now();
    sender.write(1, 53, Bytes::from_static(&[7; 1100]));
    assert_eq!(send(&mut sender, begin), 1);
    acknowledge(&mut sender, begin + rtt, 1000);
    for _ in 0..400 {
        sender.write(1, 53, Bytes::from_static(&[7; 1100]));
    }
    let packets = send(&mut sender, begin + rtt);
    acknowledge(&mut sender, begin + 2 * rtt, 1000 + packets as u32);
    // A controller whose window grows while another limit is lower never stops.
    assert!(!WAS_LIMITED.get());
    packets
}

/// A longer queue would stand in the buffers of the peer, which no window announces.
#[test]
fn another_stack_nearby_gets_few_packets_at_once() {
    let (near, far) = (Duration::from_micros(200), Duration::from_millis(20));
    let packets = flight(near, false);
    assert!((24..=27).contains(&packets), "{packets}");
    assert_eq!(flight(near, true), 400);
    assert_eq!(flight(far, false), 400);
}
