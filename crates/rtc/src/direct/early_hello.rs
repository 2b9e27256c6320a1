//! The dialler's ClientHello, sent beside its first check.
//!
//! The dialled address is known, so DTLS need not wait for ICE: that saves a round trip. A listener
//! may drop the ClientHello, because the check was lost or the agent has not handled it yet, and
//! DTLS would repeat it only after a second. So it is sent once more when a check has succeeded and
//! no record has arrived shortly after.

use std::time::{Duration, Instant};

/// Maximum bytes kept. A longer ClientHello is left to DTLS.
const MAX_KEPT: usize = 4 * 1024;

/// Minimum and maximum time for the answer to follow the response to the check. In between, it is
/// [`RTT_SHARE`] of the round trip. A listener computes two signatures in less than the minimum.
const MIN_GRACE: Duration = Duration::from_millis(4);
const MAX_GRACE: Duration = Duration::from_millis(50);

/// Divisor of the round trip: a quarter of it, as much as RACK allows for reordering (RFC 8985
/// section 6.2).
const RTT_SHARE: u32 = 4;

#[derive(Debug, Default)]
pub(super) enum EarlyHello {
    /// Nothing is sent early, or the first flight is answered.
    #[default]
    Done,
    /// DTLS is producing the first flight.
    Recording {
        since: Instant,
        flight: Vec<Vec<u8>>,
    },
    /// It was sent, and no check has succeeded since.
    Sent {
        since: Instant,
        flight: Vec<Vec<u8>>,
    },
    /// A check has succeeded: it is sent again at this time.
    Due { at: Instant, flight: Vec<Vec<u8>> },
}

impl EarlyHello {
    /// The first flight is about to be sent.
    pub(super) fn new(now: Instant) -> Self {
        let flight = Vec::new();
        Self::Recording { since: now, flight }
    }

    /// Notes a datagram that DTLS sends.
    pub(super) fn on_output(&mut self, datagram: &[u8]) {
        let Self::Recording { flight, .. } = self else {
            return;
        };
        let kept = flight.iter().map(Vec::len).sum::<usize>();
        if kept + datagram.len() > MAX_KEPT {
            *self = Self::Done;
            return;
        }
        flight.push(datagram.to_vec());
    }

    /// DTLS is drained.
    pub(super) fn on_drained(&mut self) {
        if let Self::Recording { since, flight } = self
            && !flight.is_empty()
        {
            let (since, flight) = (*since, std::mem::take(flight));
            *self = Self::Sent { since, flight };
        }
    }

    /// A record of the peer has arrived.
    pub(super) fn on_record(&mut self) {
        *self = Self::Done;
    }

    /// A check has succeeded.
    pub(super) fn on_path_found(&mut self, now: Instant) {
        if let Self::Sent { since, flight } = self {
            let round_trip = now.saturating_duration_since(*since);
            let grace = (round_trip / RTT_SHARE).clamp(MIN_GRACE, MAX_GRACE);
            let flight = std::mem::take(flight);
            let at = now + grace;
            *self = Self::Due { at, flight };
        }
    }

    /// The first flight, if it has to be sent again now.
    pub(super) fn take_resend(&mut self, now: Instant) -> Vec<Vec<u8>> {
        match self {
            Self::Due { at, flight } if *at <= now => {
                let flight = std::mem::take(flight);
                *self = Self::Done;
                flight
            }
            _ => Vec::new(),
        }
    }

    /// When the first flight is sent again.
    pub(super) fn timeout(&self) -> Option<Instant> {
        match self {
            Self::Due { at, .. } => Some(*at),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(100);

    fn sent(now: Instant) -> EarlyHello {
        let mut hello = EarlyHello::new(now);
        hello.on_output(b"hello");
        hello.on_drained();
        hello
    }

    #[test]
    fn an_unanswered_hello_is_sent_again_once_a_quarter_round_trip_after_the_check() {
        let now = Instant::now();
        let mut hello = sent(now);
        assert_eq!(hello.timeout(), None, "no check has succeeded");
        let found = now + RTT;
        hello.on_path_found(found);
        let due = found + RTT / 4;
        assert_eq!(hello.timeout(), Some(due));
        assert!(hello.take_resend(found).is_empty());
        assert_eq!(hello.take_resend(due), [b"hello"]);
        assert_eq!(hello.timeout(), None);
        assert!(hello.take_resend(due).is_empty());
    }

    #[test]
    fn an_answered_hello_is_not_sent_again() {
        let now = Instant::now();
        for answer_first in [true, false] {
            let mut hello = sent(now);
            if answer_first {
                hello.on_record();
            }
            hello.on_path_found(now + RTT);
            hello.on_record();
            assert_eq!(hello.timeout(), None);
            assert!(hello.take_resend(now + 2 * RTT).is_empty());
        }
    }

    #[test]
    fn a_long_hello_is_left_to_dtls() {
        let now = Instant::now();
        let mut hello = EarlyHello::new(now);
        hello.on_output(&[0; MAX_KEPT]);
        hello.on_output(&[0; 1]);
        hello.on_drained();
        hello.on_path_found(now + RTT);
        assert_eq!(hello.timeout(), None);
    }
}
