//! When a connection has lived, or carried, enough.

use std::time::Duration;

use tokio::time::Instant;

/// Limits of a carrier; from [`EndpointConfig`](crate::EndpointConfig).
#[derive(Debug, Clone, Copy)]
pub(crate) struct CarrierLimits {
    pub(crate) max_in_flight: usize,
    pub(crate) silence_timeout: Duration,
    pub(crate) max_dtls12_records: u64,
}

/// Counts against [`CarrierLimits`].
#[derive(Debug)]
pub(super) struct Lifetime {
    limits: CarrierLimits,
    /// When something last came from the peer, once it is authenticated: the handshake has a
    /// time limit of its own.
    heard: Option<Instant>,
    /// When a peer that is silent was last asked for a sign of life.
    asked: Option<Instant>,
    /// That the keys are used up was reported.
    reported: bool,
}

impl Lifetime {
    pub(super) fn new(limits: CarrierLimits) -> Self {
        Self {
            limits,
            heard: None,
            asked: None,
            reported: false,
        }
    }

    /// The handshake is done: from now on silence counts.
    pub(super) fn begin(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// Something came from the peer.
    pub(super) fn heard(&mut self, now: Instant) {
        if self.heard.is_some() {
            self.heard = Some(now);
        }
    }

    /// When the peer counts as dead, if nothing comes before.
    pub(super) fn silent_at(&self) -> Option<Instant> {
        Some(self.heard? + self.limits.silence_timeout)
    }

    /// When to ask a peer for a sign of life, if nothing comes before: twice until it counts as dead.
    pub(super) fn ask_at(&self) -> Option<Instant> {
        let heard = self.heard?;
        let timeout = self.limits.silence_timeout;
        Some(match self.asked {
            Some(asked) if asked > heard => asked + timeout / 4,
            _ => heard + timeout / 2,
        })
    }

    /// A silent peer was asked for a sign of life.
    pub(super) fn asked(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// Whether keys of DTLS 1.2 that have protected so many records are used up now; `true` once.
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
