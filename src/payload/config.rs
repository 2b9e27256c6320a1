//! Every limit of payloads.

use std::time::Duration;

use super::wire::MAX_METADATA;

/// Limits of payloads that are sent and received.
///
/// Change the fields of a [`PayloadConfig::default`]. [`PayloadConfig::validate`] is called wherever
/// one is used.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PayloadConfig {
    /// Longest payload, in bytes. Default: 64 MiB. A receiver refuses longer ones by their header,
    /// and stops one whose length was not told when it has become longer; a sender fails before
    /// the first byte, or, where it does not know the length, when it has read more. Answers
    /// payloads that fill memory or disk.
    pub max_total: u64,
    /// Longest metadata, in bytes. Default and maximum: 4 KiB.
    pub max_metadata: usize,
    /// How long either side waits while not a byte moves: for the header, for bytes, for room to write,
    /// for the confirmation. Default: 60 s. The time in which the application does not ask for
    /// more does not count. While one side hashes what is skipped of a payload that is resumed, only
    /// [`PayloadConfig::time_limit`] counts.
    ///
    /// A sender sees no further than its own buffer and the credit that the receiver gives it. A receiver whose
    /// application pauses for longer than this, or that takes longer than this to consume half a window
    /// ([`Config::receive_window`](crate::Config::receive_window)), gives none meanwhile, and the sender expires:
    /// give it a longer time where receivers are that slow.
    ///
    /// Answers peers that begin and fall silent.
    pub idle_timeout: Duration,
    /// How long one payload may take in all, from the moment at which its sending or receiving
    /// began. Default: 1 hour. Answers peers that send a byte just before each idle timeout. A payload that nobody polls
    /// ends when a newcomer wants its place: the peer gets RESET_STREAM with [`code::EXPIRED`](super::code::EXPIRED),
    /// and who polls it later [`PayloadError::Expired`](super::PayloadError::Expired).
    pub time_limit: Duration,
    /// Payloads that one [`Receiver`](super::Receiver) has open at once, from their first byte to
    /// their end. Default: 8. More are reset with [`code::TOO_MANY`](super::code::TOO_MANY), and none
    /// that is running within [`PayloadConfig::time_limit`] is ended for them. Answers peers that begin many and end none.
    ///
    /// One connection can hold all of them for as long as [`PayloadConfig::time_limit`]: where a receiver serves
    /// several, set [`PayloadConfig::max_open_per_connection`] too.
    pub max_open: usize,
    /// Of those, the ones of one [`Payloads`](super::Payloads), and so of one connection. Default: 8, which
    /// is all of them. [`Receiver::receive`](super::Receiver::receive) does not look at it. Answers
    /// peers that leave no place to others.
    pub max_open_per_connection: usize,
    /// Bytes of a payload between two calls of
    /// [`Events::payload_progress`](crate::Events::payload_progress). Default: 1 MiB. One write or frame that
    /// crosses it several times is one call.
    pub progress_interval: u64,
}

impl Default for PayloadConfig {
    fn default() -> Self {
        Self {
            max_total: 64 * 1024 * 1024,
            max_metadata: MAX_METADATA,
            idle_timeout: Duration::from_secs(60),
            time_limit: Duration::from_secs(3600),
            max_open: 8,
            max_open_per_connection: 8,
            progress_interval: 1024 * 1024,
        }
    }
}

/// A combination of settings that can not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadConfigError {
    /// A timeout is zero.
    #[error("{name} is zero")]
    ZeroTimeout {
        /// The field.
        name: &'static str,
    },
    /// [`PayloadConfig::max_open`] or [`PayloadConfig::max_open_per_connection`] is zero.
    #[error("max_open or max_open_per_connection is zero")]
    NoneOpen,
    /// [`PayloadConfig::progress_interval`] is zero.
    #[error("progress_interval is zero")]
    NoProgressInterval,
    /// [`PayloadConfig::max_metadata`] is more than a header may hold.
    #[error("max_metadata is {value}, more than {max}")]
    MetadataTooLong {
        /// Its value.
        value: usize,
        /// Largest value that works.
        max: usize,
    },
}

impl PayloadConfig {
    /// Checks that the settings can work together.
    pub fn validate(&self) -> Result<(), PayloadConfigError> {
        for (name, value) in [
            ("idle_timeout", self.idle_timeout),
            ("time_limit", self.time_limit),
        ] {
            if value.is_zero() {
                return Err(PayloadConfigError::ZeroTimeout { name });
            }
        }
        if self.max_open == 0 || self.max_open_per_connection == 0 {
            return Err(PayloadConfigError::NoneOpen);
        }
        if self.progress_interval == 0 {
            return Err(PayloadConfigError::NoProgressInterval);
        }
        if self.max_metadata > MAX_METADATA {
            return Err(PayloadConfigError::MetadataTooLong {
                value: self.max_metadata,
                max: MAX_METADATA,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_can_not_work_are_refused() {
        let good = PayloadConfig::default();
        assert_eq!(good.validate(), Ok(()));
        let bad = |change: fn(&mut PayloadConfig)| {
            let mut config = PayloadConfig::default();
            change(&mut config);
            config.validate().expect_err("it can not work")
        };
        assert_eq!(
            bad(|config| config.max_open_per_connection = 0),
            PayloadConfigError::NoneOpen
        );
        let name = "idle_timeout";
        assert_eq!(
            bad(|config| config.idle_timeout = Duration::ZERO),
            PayloadConfigError::ZeroTimeout { name }
        );
        let name = "time_limit";
        assert_eq!(
            bad(|config| config.time_limit = Duration::ZERO),
            PayloadConfigError::ZeroTimeout { name }
        );
        assert_eq!(
            bad(|config| config.max_open = 0),
            PayloadConfigError::NoneOpen
        );
        assert_eq!(
            bad(|config| config.progress_interval = 0),
            PayloadConfigError::NoProgressInterval
        );
        let (value, max) = (4097, 4096);
        assert_eq!(
            bad(|config| config.max_metadata = 4097),
            PayloadConfigError::MetadataTooLong { value, max }
        );
    }
}
