//! Stream resets (RFC 6525), with which RFC 8831 closes data channels.
//!
//! ```text
//! outgoing: Sender: Draining ─► everything acknowledged ─► request ─► performed
//!                                                            ▲ │ in progress, no response
//!                                                            └─┘
//! incoming: request ─► performed at once, or when all DATA up to its last TSN has arrived
//! ```

use std::time::{Duration, Instant};

use super::packet::{Fields, parameters, put_parameter};
use super::sender::RTO_MAX;

/// Parameters of RE-CONFIG (RFC 6525 section 4).
const OUTGOING_REQUEST: u16 = 13;
const INCOMING_REQUEST: u16 = 14;
const ASSOCIATION_REQUEST: u16 = 15;
const RESPONSE: u16 = 16;
const ADD_OUTGOING: u16 = 17;
const ADD_INCOMING: u16 = 18;

/// Results of a response (RFC 6525 section 4.4).
const NOTHING_TO_DO: u32 = 0;
const PERFORMED: u32 = 1;
const DENIED: u32 = 2;
const ANOTHER_IN_PROGRESS: u32 = 4;
const BAD_NUMBER: u32 = 5;
const IN_PROGRESS: u32 = 6;

/// Maximum distance of a request ahead of the expected sequence number.
const MAX_AHEAD: u32 = 64;

/// Streams in one request: 2 bytes each, and the request has to fit the smallest packet.
pub(super) const MAX_STREAMS: usize = 200;

/// A request of the peer that waits for DATA.
#[derive(Debug)]
struct Deferred {
    last_tsn: u32,
    streams: Vec<u16>,
}

/// Our outstanding request.
#[derive(Debug)]
struct Request {
    streams: Vec<u16>,
    last_tsn: u32,
    at: Option<Instant>,
    /// Transmissions so far.
    sent: u32,
}

/// Resets of an association. At most one request is outstanding in each direction.
#[derive(Debug)]
pub(super) struct Resets {
    /// Re-configuration request sequence number of our outstanding or next request.
    own_sequence: u32,
    own: Option<Request>,
    /// Sequence number of the peer's next request.
    peer_sequence: u32,
    deferred: Option<Deferred>,
    /// Result of the peer's last request.
    last_result: u32,
}

/// What a RE-CONFIG chunk causes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ResetOutcome {
    /// The peer has reset its direction of these streams.
    PeerReset(Vec<u16>),
    /// Our direction of these streams is reset.
    Done(Vec<u16>),
    /// The peer denied the reset of these streams.
    Failed(Vec<u16>),
}

impl Resets {
    /// Sequence numbers start at the initial TSN (RFC 6525 section 4.1).
    pub(super) fn new(own_first_tsn: u32, peer_first_tsn: u32) -> Self {
        Self {
            own_sequence: own_first_tsn,
            own: None,
            peer_sequence: peer_first_tsn,
            deferred: None,
            last_result: NOTHING_TO_DO,
        }
    }

    /// Handles a RE-CONFIG chunk and appends the value of the response chunk to `answer`. `reached`
    /// returns whether all DATA up to a TSN has arrived.
    pub(super) fn handle(
        &mut self,
        value: &[u8],
        reached: impl Fn(u32) -> bool,
        answer: &mut Vec<u8>,
    ) -> Vec<ResetOutcome> {
        let mut outcomes = Vec::new();
        // At most two parameters (RFC 6525 section 3.1).
        for (kind, value) in parameters(value).take(2) {
            let mut fields = Fields(value);
            match kind {
                OUTGOING_REQUEST => {
                    let (Some(sequence), Some(_), Some(last_tsn)) =
                        (fields.u32(), fields.u32(), fields.u32())
                    else {
                        continue;
                    };
                    let mut streams = Vec::new();
                    while let Some(stream) = fields.u16() {
                        streams.push(stream);
                    }
                    let result =
                        self.handle_request(sequence, last_tsn, streams, &reached, &mut outcomes);
                    if let Some(result) = result {
                        put_response(answer, sequence, result);
                    }
                }
                RESPONSE => {
                    if let (Some(sequence), Some(result)) = (fields.u32(), fields.u32()) {
                        outcomes.extend(self.handle_response(sequence, result));
                    }
                }
                // Not used by data channels.
                INCOMING_REQUEST | ASSOCIATION_REQUEST | ADD_OUTGOING | ADD_INCOMING => {
                    if let Some(sequence) = fields.u32() {
                        let is_new = sequence == self.peer_sequence && self.deferred.is_none();
                        if is_new {
                            self.complete(DENIED);
                        }
                        let result = if is_new { DENIED } else { BAD_NUMBER };
                        put_response(answer, sequence, result);
                    }
                }
                _ => {}
            }
        }
        outcomes
    }

    fn handle_request(
        &mut self,
        sequence: u32,
        last_tsn: u32,
        streams: Vec<u16>,
        reached: impl Fn(u32) -> bool,
        outcomes: &mut Vec<ResetOutcome>,
    ) -> Option<u32> {
        let ahead = sequence.wrapping_sub(self.peer_sequence);
        if ahead == u32::MAX {
            // A retransmission.
            return Some(self.last_result);
        }
        // Out-of-order requests are ignored, so that the peer retransmits them: pion has several
        // requests outstanding, and drops each one that is answered, whatever the result.
        if (1..=MAX_AHEAD).contains(&ahead) {
            return None;
        }
        if ahead != 0 {
            return Some(BAD_NUMBER);
        }
        if self.deferred.is_some() {
            return None;
        }
        if streams.is_empty() {
            // An empty list resets all streams, which data channels do not use.
            self.complete(DENIED);
            return Some(DENIED);
        }
        if reached(last_tsn) {
            self.complete(PERFORMED);
            outcomes.push(ResetOutcome::PeerReset(streams));
            return Some(PERFORMED);
        }
        // Not answered: "in progress" makes older dcSCTP retry with another sequence number.
        self.deferred = Some(Deferred { last_tsn, streams });
        None
    }

    /// Last TSN before a deferred reset.
    pub(super) fn deferred_until(&self) -> Option<u32> {
        self.deferred.as_ref().map(|deferred| deferred.last_tsn)
    }

    /// Records the result of the peer's current request.
    fn complete(&mut self, result: u32) {
        self.peer_sequence = self.peer_sequence.wrapping_add(1);
        self.last_result = result;
    }

    /// Performs the deferred reset if its DATA has arrived, and appends the value of the response
    /// chunk to `answer`.
    pub(super) fn perform_deferred(
        &mut self,
        reached: impl Fn(u32) -> bool,
        answer: &mut Vec<u8>,
    ) -> Option<Vec<u16>> {
        let deferred = self
            .deferred
            .take_if(|deferred| reached(deferred.last_tsn))?;
        put_response(answer, self.peer_sequence, PERFORMED);
        self.complete(PERFORMED);
        Some(deferred.streams)
    }

    fn handle_response(&mut self, sequence: u32, result: u32) -> Option<ResetOutcome> {
        if sequence != self.own_sequence {
            return None;
        }
        let request = self.own.as_mut()?;
        if matches!(result, IN_PROGRESS | ANOTHER_IN_PROGRESS) {
            // Retried after the timeout.
            request.sent = request.sent.min(1);
            return None;
        }
        let streams = self.own.take()?.streams;
        self.own_sequence = self.own_sequence.wrapping_add(1);
        Some(match result {
            NOTHING_TO_DO | PERFORMED => ResetOutcome::Done(streams),
            _ => ResetOutcome::Failed(streams),
        })
    }

    /// Whether no request is outstanding.
    pub(super) fn is_free(&self) -> bool {
        self.own.is_none()
    }

    /// Starts a request to reset these streams after `last_tsn`.
    pub(super) fn request(&mut self, streams: Vec<u16>, last_tsn: u32) {
        self.own = Some(Request {
            streams,
            last_tsn,
            at: None,
            sent: 0,
        });
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.own.as_ref()?.at
    }

    /// The value of the RE-CONFIG chunk to send, if it is due.
    pub(super) fn poll(&mut self, now: Instant, timeout: Duration) -> Option<Vec<u8>> {
        let request = self.own.as_mut()?;
        if request.at.is_some_and(|at| at > now) {
            return None;
        }
        // Capped as the RTO of DATA is: an application may be waiting for the stream id.
        let timeout = timeout.saturating_mul(1 << request.sent.min(3));
        request.at = Some(now + timeout.min(RTO_MAX));
        request.sent += 1;
        let mut value = Vec::new();
        value.extend(self.own_sequence.to_be_bytes());
        // Response sequence number: this answers no incoming reset request (RFC 6525 section 4.1).
        value.extend(self.peer_sequence.wrapping_sub(1).to_be_bytes());
        value.extend(request.last_tsn.to_be_bytes());
        for stream in &request.streams {
            value.extend(stream.to_be_bytes());
        }
        let mut chunk = Vec::new();
        put_parameter(&mut chunk, OUTGOING_REQUEST, &value);
        Some(chunk)
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.own.is_none() && self.deferred.is_none()
    }
}

fn put_response(out: &mut Vec<u8>, sequence: u32, result: u32) {
    let mut value = [0; 8];
    value[..4].copy_from_slice(&sequence.to_be_bytes());
    value[4..].copy_from_slice(&result.to_be_bytes());
    put_parameter(out, RESPONSE, &value);
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(300);

    fn pair() -> (Resets, Resets) {
        (Resets::new(u32::MAX, 70), Resets::new(70, u32::MAX))
    }

    /// The outcomes at `to` for a request, and at `from` for the response.
    fn exchange(
        value: &[u8],
        from: &mut Resets,
        to: &mut Resets,
        reached: bool,
    ) -> (Vec<ResetOutcome>, Vec<ResetOutcome>) {
        let mut answer = Vec::new();
        let there = to.handle(value, |_| reached, &mut answer);
        let mut nothing = Vec::new();
        let here = from.handle(&answer, |_| true, &mut nothing);
        assert!(nothing.is_empty());
        (there, here)
    }

    #[test]
    fn requests_are_performed_once_and_answered_each_time() {
        let (mut ours, mut theirs) = pair();
        let now = Instant::now();
        for streams in [vec![1], vec![2, 3]] {
            ours.request(streams.clone(), 9);
            let value = ours.poll(now, TIMEOUT).expect("due");
            assert_eq!(ours.poll(now, TIMEOUT), None);
            // The first response is lost.
            let mut lost = Vec::new();
            let there = theirs.handle(&value, |_| true, &mut lost);
            assert_eq!(there, [ResetOutcome::PeerReset(streams.clone())]);
            let again = ours.poll(now + TIMEOUT, TIMEOUT).expect("due again");
            assert_eq!(again, value);
            let (there, here) = exchange(&again, &mut ours, &mut theirs, true);
            assert_eq!((there, here), (vec![], vec![ResetOutcome::Done(streams)]));
        }
        assert!(ours.is_idle() && theirs.is_idle());
    }

    #[test]
    fn a_request_waits_for_the_data_in_front_of_it() {
        let (mut ours, mut theirs) = pair();
        let now = Instant::now();
        ours.request(vec![5], 9);
        let value = ours.poll(now, TIMEOUT).expect("due");
        assert_eq!(
            exchange(&value, &mut ours, &mut theirs, false),
            (vec![], vec![])
        );
        let mut answer = Vec::new();
        assert_eq!(theirs.perform_deferred(|_| false, &mut answer), None);
        let performed = theirs.perform_deferred(|tsn| tsn == 9, &mut answer);
        assert_eq!(performed, Some(vec![5]));
        // The retransmission gets the same result.
        let (there, here) = exchange(&value, &mut ours, &mut theirs, true);
        assert_eq!((there, here), (vec![], vec![ResetOutcome::Done(vec![5])]));
        assert!(ours.is_idle() && theirs.is_idle());
    }

    /// Found by `established_engine`: eight timeouts of 3 s each.
    #[test]
    fn a_request_is_repeated_after_3_s_at_most() {
        let (mut ours, _) = pair();
        ours.request(vec![5], 9);
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(ours.poll(now, Duration::from_secs(1)).is_some());
            let at = ours.next_timeout().expect("it is repeated");
            waits.push((at - now).as_secs());
            now = at;
        }
        assert_eq!(waits, [1, 2, 3, 3, 3, 3, 3, 3]);
    }

    #[test]
    fn requests_that_overtake_others_wait_for_their_turn() {
        let (_, mut theirs) = pair();
        let request = |sequence: u32, stream: u16| {
            let mut value = Vec::new();
            value.extend(sequence.to_be_bytes());
            value.extend([0; 8]);
            value.extend(stream.to_be_bytes());
            let mut chunk = Vec::new();
            put_parameter(&mut chunk, OUTGOING_REQUEST, &value);
            chunk
        };
        let mut answer = Vec::new();
        assert_eq!(theirs.handle(&request(0, 2), |_| true, &mut answer), []);
        assert!(answer.is_empty(), "it is retransmitted");
        for (sequence, stream) in [(u32::MAX, 1), (0, 2)] {
            let outcomes = theirs.handle(&request(sequence, stream), |_| true, &mut answer);
            assert_eq!(outcomes, [ResetOutcome::PeerReset(vec![stream])]);
        }
        // A sequence number far ahead is rejected.
        answer.clear();
        assert_eq!(theirs.handle(&request(1000, 3), |_| true, &mut answer), []);
        assert!(!answer.is_empty());
    }

    #[test]
    fn a_refusal_is_told() {
        let (mut ours, _) = pair();
        ours.request(vec![5], 9);
        for (result, expected) in [
            (IN_PROGRESS, None),
            (ANOTHER_IN_PROGRESS, None),
            (DENIED, Some(ResetOutcome::Failed(vec![5]))),
        ] {
            assert_eq!(ours.handle_response(u32::MAX, result), expected);
        }
        assert_eq!(ours.handle_response(u32::MAX, DENIED), None);
        assert!(ours.is_free());
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        let (_, mut theirs) = pair();
        for (kind, sequence) in [(14, u32::MAX), (15, 0), (17, 1), (18, 2)] {
            let mut value = Vec::new();
            put_parameter(&mut value, kind, &u32::to_be_bytes(sequence));
            let mut answer = Vec::new();
            assert_eq!(theirs.handle(&value, |_| true, &mut answer), []);
            let (_, response) = parameters(&answer).next().expect("an answer");
            let mut fields = Fields(response);
            assert_eq!((fields.u32(), fields.u32()), (Some(sequence), Some(DENIED)));
        }
    }
}
