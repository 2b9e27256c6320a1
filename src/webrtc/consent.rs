//! Consent freshness (RFC 7675): whether the remote address still agrees to receive.
//!
//! A peer that once received at an address may be gone: the port of a NAT or the address of a phone
//! is reassigned, and a peer that keeps acknowledging what it can not have received directs a
//! transfer at the new owner. So the address is checked while it is sent to, and the answer has to
//! be signed. An idle connection costs nothing: without traffic there are no checks.

use std::time::Duration;

use tokio::time::Instant;

/// Interval of checks that are answered (RFC 7675 section 5.1).
const INTERVAL: Duration = Duration::from_secs(5);

/// Interval of checks that are not answered: shorter, so that packet loss is not taken for lost
/// consent.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How long after the first unanswered check the consent expires, at the earliest. RFC 7675 section
/// 5.1 counts from the last answer, which is up to [`INTERVAL`] before.
const EXPIRY: Duration = Duration::from_secs(30);

/// How many checks have to be unanswered: with pauses in the traffic there are few.
const MIN_CHECKS: u32 = 10;

/// The consent of one remote address.
#[derive(Debug)]
pub(super) struct Consent {
    /// When the address last answered a check.
    given: Instant,
    unanswered: Option<Unanswered>,
}

/// Checks since then.
#[derive(Debug)]
struct Unanswered {
    first: Instant,
    last: Instant,
    count: u32,
}

impl Consent {
    /// The consent of an address that has just proved that it receives.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            given: now,
            unanswered: None,
        }
    }

    /// The address has answered a check.
    pub(super) fn renew(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// Whether a check is due, given that data is sent to the address.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        match &self.unanswered {
            Some(unanswered) => now >= unanswered.last + RETRY_INTERVAL,
            None => now >= self.given + INTERVAL,
        }
    }

    /// A check was sent.
    pub(super) fn checked(&mut self, now: Instant) {
        let unanswered = self.unanswered.get_or_insert(Unanswered {
            first: now,
            last: now,
            count: 0,
        });
        unanswered.last = now;
        unanswered.count = unanswered.count.saturating_add(1);
    }

    /// Whether the consent has expired, so that nothing more may be sent.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.unanswered.as_ref().is_some_and(|unanswered| {
            unanswered.count >= MIN_CHECKS && now >= unanswered.first + EXPIRY
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
                consent.checked(now);
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
        consent.checked(start + INTERVAL);
        assert!(
            !consent.is_expired(start + EXPIRY * 100),
            "one check is not enough"
        );
        consent.renew(start + INTERVAL * 2);
        assert!(!consent.is_due(start + INTERVAL * 3 - Duration::from_millis(1)));
        assert!(consent.is_due(start + INTERVAL * 3));
    }
}
