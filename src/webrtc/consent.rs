//! Whether the address that is sent to still wants it (RFC 7675).
//!
//! Who has received at an address once may be gone: a port of a NAT and the address of a phone become another's, and a peer
//! that goes on to acknowledge what it can not have received directs a transfer at that one. So the address is asked while
//! it is sent to, and the answer has to be signed. An idle connection costs nothing: nothing is sent, nothing is asked.

use std::time::Duration;

use tokio::time::Instant;

/// Time between two questions that are answered (RFC 7675 section 5.1).
const INTERVAL: Duration = Duration::from_secs(5);

/// Time until one that is not answered is put again: sooner, so that a path with losses is not taken for a refusal.
const REPETITION: Duration = Duration::from_secs(1);

/// How long after the first unanswered question the consent expires (RFC 7675 section 5.1)...
const EXPIRY: Duration = Duration::from_secs(30);

/// ...after this many at least. Who pauses is asked rarely.
const LEAST_QUESTIONS: u32 = 10;

/// The consent of one address.
#[derive(Debug)]
pub(super) struct Consent {
    /// When the address last answered.
    given: Instant,
    unanswered: Option<Unanswered>,
}

/// Questions since then.
#[derive(Debug)]
struct Unanswered {
    first: Instant,
    last: Instant,
    count: u32,
}

impl Consent {
    /// That of an address which has just shown that it receives.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            given: now,
            unanswered: None,
        }
    }

    /// The address has answered.
    pub(super) fn renew(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// Whether it is time to ask, if the address is sent to.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        match &self.unanswered {
            Some(unanswered) => now >= unanswered.last + REPETITION,
            None => now >= self.given + INTERVAL,
        }
    }

    /// The address was asked.
    pub(super) fn asked(&mut self, now: Instant) {
        let unanswered = self.unanswered.get_or_insert(Unanswered {
            first: now,
            last: now,
            count: 0,
        });
        unanswered.last = now;
        unanswered.count = unanswered.count.saturating_add(1);
    }

    /// Whether nothing may be sent to the address any more.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.unanswered.as_ref().is_some_and(|unanswered| {
            unanswered.count >= LEAST_QUESTIONS && now >= unanswered.first + EXPIRY
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_that_does_not_answer_is_asked_each_second_and_has_half_a_minute() {
        let start = Instant::now();
        let mut consent = Consent::new(start);
        let (mut asked, mut expired) = (Vec::new(), None);
        for tenth in 0..600 {
            let now = start + Duration::from_millis(100 * tenth);
            if consent.is_expired(now) {
                expired = Some(now - start);
                break;
            }
            if consent.is_due(now) {
                consent.asked(now);
                asked.push((now - start).as_secs());
            }
        }
        assert_eq!(asked, (5..35).collect::<Vec<_>>());
        assert_eq!(expired, Some(Duration::from_secs(35)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_renews_the_consent_and_who_is_asked_rarely_keeps_it() {
        let start = Instant::now();
        let mut consent = Consent::new(start);
        consent.asked(start + INTERVAL);
        assert!(
            !consent.is_expired(start + EXPIRY * 100),
            "one question is none"
        );
        consent.renew(start + INTERVAL * 2);
        assert!(!consent.is_due(start + INTERVAL * 3 - Duration::from_millis(1)));
        assert!(consent.is_due(start + INTERVAL * 3));
    }
}
