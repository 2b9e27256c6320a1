//! The silence timeout, and the key usage limit of DTLS 1.2.

use std::time::Duration;

use tokio::time::Instant;

/// The limits of a carrier, from [`EndpointConfig`](crate::EndpointConfig).
#[derive(Debug, Clone, Copy)]
pub(crate) struct CarrierLimits {
    pub(crate) max_in_flight: usize,
    pub(crate) silence_timeout: Duration,
    pub(crate) max_dtls12_records: u64,
}

/// Tracks a connection against its [`CarrierLimits`].
#[derive(Debug)]
pub(super) struct Lifetime {
    limits: CarrierLimits,
    /// When the peer was last heard, once it is authenticated: the handshake has a time limit of
    /// its own.
    heard: Option<Instant>,
    /// When the liveness of a silent peer was last checked.
    checked: Option<Instant>,
    /// The key usage limit has been reported.
    reported: bool,
}

impl Lifetime {
    pub(super) fn new(limits: CarrierLimits) -> Self {
        Self {
            limits,
            heard: None,
            checked: None,
            reported: false,
        }
    }

    /// Maximum unacknowledged data.
    pub(super) fn max_in_flight(&self) -> usize {
        self.limits.max_in_flight
    }

    /// The handshake is complete: the silence timeout begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// A datagram of the peer was received.
    pub(super) fn heard(&mut self, now: Instant) {
        if self.heard.is_some() {
            self.heard = Some(now);
        }
    }

    /// When the silence timeout expires.
    pub(super) fn silent_at(&self) -> Option<Instant> {
        Some(self.heard? + self.limits.silence_timeout)
    }

    /// When to check the liveness of a silent peer: after half and after three quarters of the
    /// silence timeout.
    pub(super) fn check_at(&self) -> Option<Instant> {
        let heard = self.heard?;
        let timeout = self.limits.silence_timeout;
        Some(match self.checked {
            Some(checked) if checked > heard => checked + timeout / 4,
            _ => heard + timeout / 2,
        })
    }

    /// The liveness of a silent peer was checked.
    pub(super) fn checked(&mut self, now: Instant) {
        self.checked = Some(now);
    }

    /// Whether `records` reaches the key usage limit of DTLS 1.2; `true` once.
    pub(super) fn keys_used_up(&mut self, records: u64) -> bool {
        let used_up = !self.reported && records >= self.limits.max_dtls12_records;
        self.reported |= used_up;
        used_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn keys_are_used_up_once() {
        let mut lifetime = Lifetime::new(CarrierLimits {
            max_in_flight: 0,
            silence_timeout: Duration::from_secs(15),
            max_dtls12_records: 1000,
        });
        assert!(!lifetime.keys_used_up(999));
        assert!(lifetime.keys_used_up(1000));
        assert!(!lifetime.keys_used_up(1001));
    }
}
