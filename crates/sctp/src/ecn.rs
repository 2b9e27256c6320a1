//! Explicit congestion notification (RFC 3168), counted and validated as in QUIC (RFC 9000 section
//! 13.4).
//!
//! ```text
//! Off ─► (both sides list the chunk) Testing ─► (a mark is reported) Capable
//!                                     │  ▲            │
//!      (two timeouts, a count that    │  │            │ (two timeouts)
//!       can not be, no mark arrives)  ▼  └─ (SACK) ─ Suspended
//!                                   Failed
//! ```
//!
//! `Suspended` and `Capable` fail as `Testing` does, but for the timeouts: an outage, or another
//! path. After the third in a row without a report in between they fail too.
//!
//! Only packets with DATA are marked (as RFC 3168 section 6.1.4 says of ACKs of TCP). A timeout
//! reveals a path that drops them, and a SACK one that clears them. Nothing would reveal that of
//! lone SACKs, and a connection would die with them.
//!
//! A peer can only lie to its advantage by hiding CE marks, which is like hiding losses: it
//! fills the queue of the router that has set them, until that drops packets instead.

use std::time::{Duration, Instant};

use super::Association;
use super::packet::Fields;

/// Marked packets that are acknowledged, in a round trip or longer, before a path that reports none
/// counts as one that clears the marks.
const UNREPORTED: usize = 16;

/// Outages in a row, without a report in between, after which the marks count as their cause.
const SUSPENSIONS: u32 = 3;

/// The ECN codepoint of a packet (RFC 3168 section 5): the low two bits of the former TOS octet of
/// IPv4, or of the traffic class of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ecn {
    /// Not ECN-Capable Transport, `00`.
    #[default]
    NotEct,
    /// ECN-Capable Transport, `10`.
    Ect0,
    /// ECN-Capable Transport, `01`. Never sent: it selects the low-latency queue of L4S (RFC 9331).
    Ect1,
    /// Congestion Experienced, `11`.
    Ce,
}

impl Ecn {
    /// The codepoint in the low two bits; the others are ignored.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 0b11 {
            0b10 => Self::Ect0,
            0b01 => Self::Ect1,
            0b11 => Self::Ce,
            _ => Self::NotEct,
        }
    }

    /// The two bits.
    pub const fn bits(self) -> u8 {
        match self {
            Self::NotEct => 0b00,
            Self::Ect0 => 0b10,
            Self::Ect1 => 0b01,
            Self::Ce => 0b11,
        }
    }
}

/// Packets received with each codepoint since the association began. The counts wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) ect0: u32,
    pub(super) ect1: u32,
    pub(super) ce: u32,
}

impl Counts {
    /// Length of the chunk, with its header.
    pub(super) const CHUNK: usize = 16;

    /// Parses the value of the chunk; what follows the counts is ignored.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let mut fields = Fields(value);
        Some(Self {
            ect0: fields.u32()?,
            ect1: fields.u32()?,
            ce: fields.u32()?,
        })
    }

    pub(super) fn encode(self) -> [u8; 12] {
        let mut value = [0; 12];
        for (field, count) in value
            .chunks_exact_mut(4)
            .zip([self.ect0, self.ect1, self.ce])
        {
            field.copy_from_slice(&count.to_be_bytes());
        }
        value
    }

    /// How much each count has risen since; `None` if one has fallen.
    fn since(self, before: Self) -> Option<Self> {
        let rise = |now: u32, before: u32| u32::try_from(now.wrapping_sub(before).cast_signed());
        Some(Self {
            ect0: rise(self.ect0, before.ect0).ok()?,
            ect1: rise(self.ect1, before.ect1).ok()?,
            ce: rise(self.ce, before.ce).ok()?,
        })
    }
}

/// The receiving side.
#[derive(Debug, Default)]
pub(super) struct Received {
    counts: Counts,
    /// Those of the last chunk.
    reported: Counts,
}

impl Received {
    pub(super) fn count(&mut self, codepoint: Ecn, packets: u32) {
        let count = match codepoint {
            Ecn::NotEct => return,
            Ecn::Ect0 => &mut self.counts.ect0,
            Ecn::Ect1 => &mut self.counts.ect1,
            Ecn::Ce => &mut self.counts.ce,
        };
        *count = count.wrapping_add(packets);
    }

    /// The counts to send with the next SACK, unless none has changed since the last chunk.
    pub(super) fn take_report(&mut self) -> Option<Counts> {
        let is_due = self.counts != self.reported;
        self.reported = self.counts;
        is_due.then_some(self.counts)
    }
}

/// Whether packets are marked; see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Off,
    Testing,
    Capable,
    /// Nothing is marked until a SACK acknowledges something.
    Suspended,
    Failed,
}

/// The sending side.
#[derive(Debug)]
pub(super) struct Marking {
    state: State,
    /// Packets marked with ECT(0), and those of them that were reported.
    sent: u64,
    reported: u64,
    /// The number of the first packet that was marked since marking began or was resumed.
    first: u64,
    counts: Counts,
    /// The packets that are sent now carry DATA.
    carries_data: bool,
    suspensions: u32,
    /// The counts that precede a SACK in its packet.
    pending: Option<Counts>,
    /// Marked packets acknowledged since a mark was reported, and when the first of them was.
    unreported: Option<(usize, Instant)>,
}

/// What a SACK newly acknowledges, as far as marking is concerned.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MarkedAcked {
    packets: usize,
    last: Option<u64>,
}

impl Marking {
    pub(super) fn new() -> Self {
        Self {
            state: State::Off,
            sent: 0,
            reported: 0,
            first: 0,
            counts: Counts::default(),
            carries_data: false,
            suspensions: 0,
            pending: None,
            unreported: None,
        }
    }

    /// Both sides have listed the chunk, and the association is established.
    pub(super) fn start(&mut self, next_packet: u64) {
        if self.state == State::Off {
            self.state = State::Testing;
            self.first = next_packet;
        }
    }

    #[cfg(test)]
    pub(super) fn state(&self) -> State {
        self.state
    }

    fn is_on(&self) -> bool {
        matches!(self.state, State::Testing | State::Capable)
    }

    /// Packets are put together from now on.
    pub(super) fn begin_transmit(&mut self) {
        self.carries_data = false;
    }

    /// One of them carries DATA.
    pub(super) fn on_data_sent(&mut self) {
        self.carries_data = true;
    }

    /// The codepoint of the packets that are sent now.
    pub(super) fn codepoint(&self) -> Ecn {
        if self.is_on() && self.carries_data {
            Ecn::Ect0
        } else {
            Ecn::NotEct
        }
    }

    /// Counts packets that were sent now.
    pub(super) fn on_sent(&mut self, packets: usize) {
        if self.codepoint() == Ecn::Ect0 {
            self.sent = self.sent.saturating_add(packets as u64);
        }
    }

    /// Counts a chunk of the packet `number` that is newly acknowledged.
    pub(super) fn on_chunk_acked(&self, number: u64, acked: &mut MarkedAcked) {
        if self.is_on() && number >= self.first && acked.last != Some(number) {
            acked.packets += 1;
            acked.last = Some(number);
        }
    }

    /// The counts that precede a SACK.
    pub(super) fn set_pending(&mut self, counts: Option<Counts>) {
        self.pending = counts;
    }

    /// Handles the counts that came with a SACK which newly acknowledges something. Any other may
    /// be an older one that was overtaken, whose counts are lower (RFC 9000 section 13.4.2.1).
    /// Returns how many packets are newly reported with CE.
    pub(super) fn on_acked(
        &mut self,
        now: Instant,
        acked: MarkedAcked,
        srtt: Duration,
        next_packet: u64,
    ) -> usize {
        let pending = self.pending.take();
        match self.state {
            State::Off | State::Failed => return 0,
            State::Suspended => {
                self.state = State::Testing;
                self.first = next_packet;
                self.unreported = None;
            }
            State::Testing | State::Capable => {}
        }
        let rise = match pending.map(|counts| self.validate(counts)) {
            Some(None) => return self.fail(),
            Some(Some(rise)) => rise,
            None => Counts::default(),
        };
        if rise.ect0 > 0 || rise.ce > 0 {
            self.state = State::Capable;
            self.unreported = None;
            self.suspensions = 0;
        } else if acked.packets > 0 {
            let (packets, since) = self.unreported.get_or_insert((0, now));
            *packets = packets.saturating_add(acked.packets);
            // Not at once: the report may be lost, and is repeated once more arrives.
            if *packets >= UNREPORTED && now.saturating_duration_since(*since) >= srtt {
                return self.fail();
            }
        }
        rise.ce as usize
    }

    /// How much the counts have risen; `None` if that can not be.
    fn validate(&mut self, counts: Counts) -> Option<Counts> {
        if self.counts.since(counts).is_some() {
            // No count has risen: the report is old. One that was overtaken comes with a SACK that
            // acknowledges something new if the later SACK had no room for all gaps.
            return Some(Counts::default());
        }
        let rise = counts.since(self.counts)?;
        self.counts = counts;
        self.reported = self
            .reported
            .saturating_add(u64::from(rise.ect0) + u64::from(rise.ce));
        (rise.ect1 == 0 && self.reported <= self.sent).then_some(rise)
    }

    /// Everything in flight counts as lost.
    pub(super) fn on_timeout(&mut self) {
        match self.state {
            State::Testing if self.sent > 0 && self.reported == 0 => {
                self.fail();
            }
            State::Testing | State::Capable => {
                self.suspensions += 1;
                if self.suspensions >= SUSPENSIONS {
                    self.fail();
                } else {
                    self.state = State::Suspended;
                }
            }
            State::Off | State::Suspended | State::Failed => {}
        }
    }

    /// Marks nothing any more. Returns the CE marks that count then: none.
    fn fail(&mut self) -> usize {
        self.state = State::Failed;
        0
    }
}

/// Explicit congestion notification.
impl Association {
    /// Counts packets that were received with a codepoint other than [`Ecn::NotEct`]. Call it after
    /// [`Association::handle_packet`], and only for what DTLS has authenticated: anybody can forge
    /// a datagram, and forged marks would slow the peer down.
    pub fn count_ecn(&mut self, codepoint: Ecn, packets: u32) {
        self.received_ecn.count(codepoint, packets);
        // RFC 9000 section 13.2.1.
        if codepoint == Ecn::Ce && packets > 0 {
            self.receiver.hasten_sack();
        }
    }

    /// The codepoint to send the packets of the last [`Association::poll_transmit`] with.
    pub fn codepoint(&self) -> Ecn {
        self.sender.marking().codepoint()
    }

    /// Whether both sides have listed the chunk.
    pub(super) fn has_ecn(&self) -> bool {
        self.own.ecn && self.peer.is_some_and(|peer| peer.ecn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    fn counts(ect0: u32, ect1: u32, ce: u32) -> Counts {
        Counts { ect0, ect1, ce }
    }

    /// A sender that has sent this many marked packets.
    fn marking(sent: usize) -> Marking {
        let mut marking = Marking::new();
        marking.start(0);
        marking.on_data_sent();
        marking.on_sent(sent);
        marking
    }

    fn ack(marking: &mut Marking, now: Instant, packets: usize, report: Option<Counts>) -> usize {
        let acked = MarkedAcked {
            packets,
            last: None,
        };
        marking.set_pending(report);
        marking.on_acked(now, acked, RTT, 1000)
    }

    #[test]
    fn codepoints_are_the_two_bits_of_the_rfc() {
        for bits in 0..=u8::MAX {
            assert_eq!(Ecn::from_bits(bits).bits(), bits & 3);
        }
        assert_eq!([Ecn::Ect1, Ecn::Ect0, Ecn::Ce].map(Ecn::bits), [1, 2, 3]);
    }

    #[test]
    fn counts_are_sent_once_for_each_change() {
        let mut received = Received::default();
        received.count(Ecn::NotEct, 5);
        assert_eq!(received.take_report(), None);
        received.count(Ecn::Ect0, 2);
        received.count(Ecn::Ce, 1);
        assert_eq!(received.take_report(), Some(counts(2, 0, 1)));
        assert_eq!(received.take_report(), None);
        assert_eq!(
            Counts::parse(&counts(2, 3, 1).encode()),
            Some(counts(2, 3, 1))
        );
        assert_eq!(Counts::parse(&[0; 11]), None);
    }

    #[test]
    fn new_ce_marks_are_returned_once() {
        let mut marking = marking(100);
        let now = Instant::now();
        assert_eq!(ack(&mut marking, now, 10, Some(counts(9, 0, 1))), 1);
        assert_eq!(ack(&mut marking, now, 10, Some(counts(9, 0, 1))), 0);
        assert_eq!(ack(&mut marking, now, 10, Some(counts(9, 0, 4))), 3);
        assert_eq!(marking.state(), State::Capable);
    }

    #[test]
    fn counts_that_can_not_be_end_marking_for_good() {
        for lie in [
            counts(3, 0, 2),
            counts(4, 1, 1),
            counts(8, 0, 1),
            counts(4, 0, 7),
            counts(u32::MAX, 0, 2),
            counts(i32::MAX as u32, 0, i32::MAX as u32),
        ] {
            let mut marking = marking(8);
            let now = Instant::now();
            assert_eq!(ack(&mut marking, now, 5, Some(counts(4, 0, 1))), 1);
            assert_eq!(ack(&mut marking, now, 1, Some(lie)), 0, "{lie:?}");
            assert_eq!(
                (marking.state(), marking.codepoint()),
                (State::Failed, Ecn::NotEct)
            );
            assert_eq!(ack(&mut marking, now, 1, Some(counts(4, 0, 2))), 0);
            assert_eq!(marking.state(), State::Failed);
        }
    }

    #[test]
    fn an_old_report_is_ignored_and_counts_as_none() {
        let mut marking = marking(100);
        let now = Instant::now();
        ack(&mut marking, now, 5, Some(counts(4, 0, 1)));
        for old in [counts(3, 0, 1), counts(u32::MAX, u32::MAX, u32::MAX)] {
            assert_eq!(ack(&mut marking, now, 8, Some(old)), 0);
            assert_eq!(marking.state(), State::Capable);
        }
        assert_eq!(ack(&mut marking, now, 0, Some(counts(4, 0, 2))), 1);
        ack(&mut marking, now, 16, Some(counts(4, 0, 2)));
        ack(&mut marking, now + RTT, 1, Some(counts(4, 0, 2)));
        assert_eq!(marking.state(), State::Failed);
    }

    #[test]
    fn counts_may_wrap() {
        let mut marking = marking(10);
        marking.counts = counts(u32::MAX, 0, u32::MAX);
        assert_eq!(
            ack(&mut marking, Instant::now(), 5, Some(counts(3, 0, 0))),
            1
        );
        assert_eq!(marking.state(), State::Capable);
    }

    #[test]
    fn a_path_that_clears_the_marks_is_found_after_16_packets_and_a_round_trip() {
        let now = Instant::now();
        for was_capable in [false, true] {
            let mut marking = marking(100);
            if was_capable {
                ack(&mut marking, now, 5, Some(counts(5, 0, 0)));
            }
            ack(&mut marking, now, 15, None);
            ack(&mut marking, now, 15, None);
            assert_eq!(marking.codepoint(), Ecn::Ect0, "the report may be lost");
            ack(&mut marking, now + RTT, 1, None);
            assert_eq!(marking.state(), State::Failed);
        }
    }

    #[test]
    fn a_path_that_drops_the_first_marked_flight_is_not_marked_again() {
        let mut marking = marking(10);
        marking.on_timeout();
        assert_eq!(marking.state(), State::Failed);
    }

    #[test]
    fn an_outage_suspends_marking_until_something_arrives() {
        let now = Instant::now();
        let mut marking = marking(10);
        ack(&mut marking, now, 1, Some(counts(1, 0, 0)));
        marking.on_timeout();
        assert_eq!(marking.codepoint(), Ecn::NotEct);
        marking.on_timeout();
        assert_eq!(marking.state(), State::Suspended);
        ack(&mut marking, now, 0, None);
        assert_eq!((marking.state(), marking.first), (State::Testing, 1000));
        // The third in a row is no accident.
        marking.on_timeout();
        assert_eq!(marking.state(), State::Suspended);
        ack(&mut marking, now, 1, None);
        marking.on_timeout();
        assert_eq!(marking.state(), State::Failed);
    }
}
