//! Acknowledgements, round trips, loss and the timers that find it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::packet::{Sack, flag};
use super::super::{Event, Violation};
use super::{ENTRY, RTO_INITIAL, RTO_MAX, Sender, Sent, State, chunk_size};
use crate::tally::lower;

/// RFC 9260 says 1 s. It has to be above the 200 ms that peers delay an acknowledgement for.
const RTO_MIN: Duration = Duration::from_millis(300);

/// How long a peer may wait with the acknowledgement of a lone packet (RFC 9260 section 6.2).
const PEER_SACK_DELAY: Duration = Duration::from_millis(200);

/// Shortest time for the same (RFC 9002 section 6.1.2).
const GRANULARITY: Duration = Duration::from_millis(1);

const MAX_REORDERING: u64 = 96;

/// Chunks that were acknowledged before and that one SACK may walk through again.
const MAX_WALKED: usize = 1024;

impl Sender {
    /// Takes in a SACK.
    pub(crate) fn handle_sack(
        &mut self,
        now: Instant,
        sack: Sack<'_>,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        let distance = sack
            .cumulative_tsn
            .wrapping_sub(self.first_tsn().wrapping_sub(1));
        if distance.cast_signed() < 0 {
            // An old one.
            return Ok(());
        }
        let mut news = News::default();
        let freed = self.handle_cumulative(now, distance, &mut news)?;
        self.handle_gaps(now, sack, distance, &mut news)?;
        if let Some(at) = news.round_trip {
            self.note_round_trip(now.saturating_duration_since(at));
        }
        self.arrived = self.arrived.max(news.packet);
        self.note_reported();
        self.note_reached(now);
        if news.bytes > 0 {
            self.congestion.on_acknowledged(news.bytes, self.limited);
        }
        if news.bytes > 0 || distance > 0 {
            self.backoff = 0;
            self.probed = false;
        }
        self.find_losses(now);
        if self
            .arrived
            .is_some_and(|arrived| arrived >= self.round_end)
        {
            self.round_end = self.next_packet;
            self.congestion.on_round();
            self.withholding.on_round(self.congestion.window());
        }
        self.peer_window.advertise(sack.window, self.outstanding);
        let has_share = self.peer_window.settle(&mut self.streams) | news.share;
        self.release(news.written, freed, events);
        if has_share {
            self.report_room(events);
        }
        let is_shut = |first: &Sent| sack.window < first.payload.len() as u32;
        let first = self.sent.iter().find(|sent| !sent.is_skipped());
        if distance > 0 || first.is_none_or(is_shut) {
            self.progress_at = Some(now);
        }
        if self.sent.is_empty() {
            self.timeout_at = None;
            self.probe_at = None;
            self.loss_at = None;
        } else if distance > 0 || news.bytes > 0 {
            self.timeout_at = Some(now + self.timeout());
            self.arm_probe(now);
        }
        for id in news.acknowledged {
            self.on_stream_acknowledged(id, events);
        }
        Ok(())
    }

    /// Takes in the cumulative number of a SHUTDOWN, which says nothing of gaps or the window (RFC 9260 section 9.2).
    pub(crate) fn handle_shutdown(
        &mut self,
        now: Instant,
        cumulative_tsn: u32,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        let distance = cumulative_tsn.wrapping_sub(self.reached_tsn());
        // pion, and what was made after it, puts the number in that its own DATA has reached with us.
        if distance.cast_signed() <= 0 || distance as usize > self.sent.len() {
            return Ok(());
        }
        let mut news = News::default();
        let freed = self.handle_cumulative(now, distance, &mut news)?;
        for (first, last) in &mut self.known_gaps {
            *first = first.saturating_sub(distance);
            *last = last.saturating_sub(distance);
        }
        self.known_gaps.retain(|(_, last)| *last > 0);
        self.note_reached(now);
        self.progress_at = Some(now);
        if self.sent.is_empty() {
            (self.timeout_at, self.probe_at, self.loss_at) = (None, None, None);
        }
        self.release(news.written, freed, events);
        for id in news.acknowledged {
            self.on_stream_acknowledged(id, events);
        }
        Ok(())
    }

    /// Acknowledges and frees as many TSNs from the first on. Returns the memory that was freed.
    fn handle_cumulative(
        &mut self,
        now: Instant,
        distance: u32,
        news: &mut News,
    ) -> Result<usize, Violation> {
        if distance as usize > self.sent.len() {
            return Err(Violation("an acknowledgement of what was not sent"));
        }
        for index in 0..distance as usize {
            self.acknowledge(index, now, news)?;
        }
        let freed = self.sent.drain(..distance as usize);
        let freed = freed.map(|sent| sent.payload.len() + ENTRY).sum();
        self.judged = self.judged.saturating_sub(distance as usize);
        Ok(freed)
    }

    /// Looks at what was acknowledged behind gaps, and not in the last SACK already.
    ///
    /// A SACK may take gaps back that the next one gives again. What is walked through for that is bounded in each SACK:
    /// gaps beyond it count as not reported, and the next SACK goes on from there.
    fn handle_gaps(
        &mut self,
        now: Instant,
        sack: Sack<'_>,
        distance: u32,
        news: &mut News,
    ) -> Result<(), Violation> {
        let mut known = std::mem::take(&mut self.known_gaps);
        for (first, last) in &mut known {
            *first = first.saturating_sub(distance);
            *last = last.saturating_sub(distance);
        }
        let mut gaps = Vec::new();
        let mut earlier = known.iter().copied().peekable();
        let mut least = 1;
        let mut walked = 0;
        'gaps: for (first, last) in sack.gaps() {
            let (first, last) = (u32::from(first), u32::from(last));
            // They come in order and do not meet; one that does not ends what can be believed.
            if first <= least || last < first || last as usize > self.sent.len() {
                break;
            }
            least = last + 1;
            gaps.push((first, last));
            let mut next = first;
            while next <= last {
                while earlier
                    .peek()
                    .is_some_and(|(_, known_last)| *known_last < next)
                {
                    earlier.next();
                }
                match earlier.peek() {
                    Some((known_first, known_last)) if *known_first <= next => {
                        next = known_last + 1;
                        continue;
                    }
                    _ => {}
                }
                if walked == MAX_WALKED {
                    // What was looked at so far.
                    gaps.pop();
                    if next > first {
                        gaps.push((first, next - 1));
                    }
                    break 'gaps;
                }
                let index = next as usize - 1;
                next += 1;
                if !self.acknowledge(index, now, news)? {
                    walked += 1;
                }
            }
        }
        self.known_gaps = gaps;
        Ok(())
    }

    /// Counts a chunk that has arrived, and returns whether it is news. It is kept until the cumulative number has
    /// reached it: a peer may throw away what came behind a gap (RFC 9260 section 6.2).
    fn acknowledge(
        &mut self,
        index: usize,
        now: Instant,
        news: &mut News,
    ) -> Result<bool, Violation> {
        let Some(sent) = self.sent.get_mut(index) else {
            return Ok(false);
        };
        match sent.state {
            State::Acknowledged => return Ok(false),
            State::Withheld if self.withholding.is_secret() => {
                return Err(Violation("an acknowledgement of what was withheld"));
            }
            State::Withheld => return Ok(true),
            State::InFlight | State::ToRepeat => {}
        }
        let (length, size) = (sent.payload.len(), sent.size());
        lower(&mut self.outstanding, size);
        if sent.state == State::InFlight {
            lower(&mut self.in_flight, size);
        }
        sent.state = State::Acknowledged;
        news.bytes += size;
        // Of one that was sent twice it may have been the first that arrived.
        let is_late = sent.repeated
            && self.smoothed.is_some()
            && now.saturating_duration_since(sent.at) < self.shortest;
        if is_late {
            self.reordering = (self.reordering * 2).min(MAX_REORDERING);
        } else {
            news.packet = news.packet.max(Some(sent.packet));
            if !sent.repeated {
                news.round_trip = news.round_trip.max(Some(sent.at));
            }
        }
        if std::mem::replace(&mut sent.counted, true) {
            return Ok(true);
        }
        news.written += length;
        let id = sent.header.stream;
        if let Some(stream) = self.streams.get_mut(&id) {
            lower(&mut stream.unacknowledged, length);
            news.share |= self.peer_window.acknowledged(id, &mut stream.share, length);
            if stream.unacknowledged == 0 {
                news.acknowledged.push(id);
            }
        }
        Ok(true)
    }

    fn note_reached(&mut self, now: Instant) {
        let (reached, is_drained) = (self.reached_tsn(), self.is_drained());
        let patience = self.loss_patience();
        self.withholding
            .on_reached(reached, is_drained, now, patience);
    }

    /// Looks whether the peer reports just the hole of what is withheld. A gap somewhere above is not enough: a peer
    /// that guesses could report one, and acknowledge the rest with its next SACK.
    fn note_reported(&mut self) {
        let Some(tsn) = self.withholding.awaited() else {
            return;
        };
        let distance = tsn.wrapping_sub(self.reached_tsn());
        let found = (self.known_gaps).binary_search_by_key(&distance, |(first, _)| *first);
        if found.is_ok()
            && let Some(chunk) = self.withholding.on_reported()
        {
            self.to_repeat.push_front(chunk);
        }
    }

    /// How long after its own packet one has to be sent whose acknowledgement shows that it is lost.
    fn loss_patience(&self) -> Duration {
        let patience = self.latest.max(self.smoothed.unwrap_or_default());
        (patience + patience / 8).max(GRANULARITY)
    }

    /// Finds what is lost, first among what was sent once, then among repetitions.
    fn find_losses(&mut self, now: Instant) {
        self.loss_at = None;
        let Some(arrived) = self.arrived else {
            return;
        };
        let patience = self.loss_patience();
        while let Some(sent) = self.sent.get(self.judged) {
            if sent.state == State::InFlight && !sent.repeated {
                if sent.packet > arrived {
                    break;
                }
                if sent.packet + self.reordering > arrived && sent.at + patience > now {
                    self.loss_at = Some(sent.at + patience);
                    break;
                }
                let tsn = self.tsn_at(self.judged);
                self.lose(tsn);
            }
            self.judged += 1;
        }
        while let Some(&(tsn, packet)) = self.repeated.front() {
            let reordering = self.reordering;
            let sent = self.entry(tsn);
            if let Some(sent) = sent
                && sent.state == State::InFlight
                && sent.packet == packet
            {
                if packet > arrived {
                    break;
                }
                let at = sent.at + patience;
                if packet + reordering > arrived && at > now {
                    self.loss_at = Some(self.loss_at.map_or(at, |other| other.min(at)));
                    break;
                }
                self.lose(tsn);
            }
            self.repeated.pop_front();
        }
    }

    fn lose(&mut self, tsn: u32) {
        let Some(sent) = self.entry(tsn) else {
            return;
        };
        sent.state = State::ToRepeat;
        let size = sent.size();
        lower(&mut self.in_flight, size);
        self.to_repeat.push_back(tsn);
        if self.congestion.on_lost(size) {
            self.round_end = self.next_packet;
        }
    }

    fn note_round_trip(&mut self, sample: Duration) {
        self.latest = sample;
        self.shortest = self.shortest.min(sample);
        match self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = sample / 2;
            }
            Some(smoothed) => {
                let difference = smoothed.abs_diff(sample);
                self.variation = (self.variation * 3 + difference) / 4;
                self.smoothed = Some((smoothed * 7 + sample) / 8);
            }
        }
    }

    /// The retransmission timeout (RFC 9260 section 6.3.1), with its doublings.
    pub(crate) fn timeout(&self) -> Duration {
        let timeout = match self.smoothed {
            None => RTO_INITIAL,
            Some(smoothed) => smoothed + self.variation * 4,
        };
        let timeout = timeout.clamp(RTO_MIN, RTO_MAX);
        timeout
            .saturating_mul(1 << self.backoff.min(8))
            .min(RTO_MAX)
    }

    pub(super) fn arm_probe(&mut self, now: Instant) {
        self.probe_at = None;
        let Some(smoothed) = self.smoothed.filter(|_| !self.probed) else {
            return;
        };
        let mut patience = smoothed * 2 + GRANULARITY;
        let is_hasty = |sent: &Sent| sent.header.flags & flag::IMMEDIATE != 0;
        if self.sent.len() == 1 && !self.sent.back().is_some_and(is_hasty) {
            patience += PEER_SACK_DELAY;
        }
        let at = now + patience;
        if self.timeout_at.is_none_or(|timeout| at < timeout) {
            self.probe_at = Some(at);
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        [self.timeout_at, self.loss_at, self.probe_at, self.ask_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether the peer has acknowledged nothing for this long, although its window was open.
    pub(crate) fn is_stuck(&self, now: Instant, limit: Duration) -> bool {
        !self.sent.is_empty()
            && self
                .progress_at
                .is_some_and(|at| now.saturating_duration_since(at) >= limit)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.loss_at.is_some_and(|at| at <= now) {
            self.find_losses(now);
        }
        if self.probe_at.is_some_and(|at| at <= now) {
            self.probe_at = None;
            self.probed = true;
            self.probe_due = true;
            self.withholding.on_probe(self.reached_tsn());
        }
        if self.timeout_at.is_some_and(|at| at <= now) {
            self.on_timeout(now);
        }
    }

    /// Everything that is not acknowledged is sent again, beginning with one packet.
    fn on_timeout(&mut self, now: Instant) {
        let first = self.first_tsn();
        self.to_repeat.clear();
        self.repeated.clear();
        let mut gaps = self.known_gaps.iter().peekable();
        for (tsn, (distance, sent)) in (first..=u32::MAX)
            .chain(0..)
            .zip((1_u32..).zip(&mut self.sent))
        {
            while gaps.next_if(|(_, last)| *last < distance).is_some() {}
            if gaps.peek().is_some_and(|(first, _)| *first <= distance) {
                continue;
            }
            if sent.is_skipped() {
                continue;
            }
            if sent.state == State::Withheld {
                // It counts as withheld until it is sent.
                self.to_repeat.push_back(tsn);
                continue;
            }
            if sent.state == State::Acknowledged {
                // The peer has it no more, or told of too many gaps.
                self.outstanding += chunk_size(sent.payload.len());
            }
            sent.state = State::ToRepeat;
            self.to_repeat.push_back(tsn);
        }
        let is_drained = self.is_drained();
        self.withholding
            .on_timeout(first.wrapping_sub(1), is_drained);
        self.judged = self.sent.len();
        self.in_flight = 0;
        self.probe_at = None;
        self.loss_at = None;
        self.probe_due = false;
        // A peer with its window shut has said so, and has lost nothing.
        let is_one = self.to_repeat.len() <= 1 && self.known_gaps.is_empty();
        let is_shut = self.peer_window.room() == 0 && is_one;
        if !is_shut && !self.to_repeat.is_empty() {
            self.congestion.on_timeout();
        }
        self.round_end = self.next_packet;
        self.backoff += 1;
        self.timeout_at = (!self.sent.is_empty()).then(|| now + self.timeout());
    }
}

/// What a SACK has told.
#[derive(Debug, Default)]
struct News {
    /// Bytes of chunks.
    bytes: usize,
    /// Payload bytes, each counted once however often it is taken back and given again.
    written: usize,
    /// A writer that waits for its part of the peer's window may have room.
    share: bool,
    /// The highest packet that has arrived.
    packet: Option<u64>,
    /// When the latest of what has arrived was sent, of what was sent once.
    round_trip: Option<Instant>,
    /// Streams that have nothing unacknowledged any more.
    acknowledged: Vec<u16>,
}
