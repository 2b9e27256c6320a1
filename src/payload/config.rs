//! The limits of payloads.

use std::time::Duration;

use super::wire::MAX_METADATA;

/// Limits of sent and received payloads.
///
/// Start from [`PayloadConfig::default`] and change its fields. Every use calls
/// [`PayloadConfig::validate`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PayloadConfig {
    /// Maximum length of a payload, in bytes. Default: 64 MiB. A receiver refuses a longer one by
    /// its header, and one of unknown length when it exceeds this; a sender fails before the first
    /// byte, or, if it does not know the length, when it has read more. Answers payloads that fill
    /// memory or disk.
    pub max_total: u64,
    /// Maximum length of the metadata, in bytes. Default and maximum: 4 KiB.
    pub max_metadata: usize,
    /// How long either side waits without progress: for the header, for bytes, for room to write,
    /// for the confirmation. Default: 60 s. It does not run while the application does not poll.
    /// While one side hashes the skipped part of a resumed payload, only
    /// [`PayloadConfig::time_limit`] applies.
    ///
    /// Progress of a sender depends on the credit of the receiver. A receiver whose application
    /// pauses for longer than this, or takes longer than this to consume half a window
    /// ([`Config::receive_window`](crate::Config::receive_window)), grants none meanwhile, and the
    /// sender expires: use a longer timeout with receivers that are so slow.
    ///
    /// Answers peers that begin and fall silent.
    pub idle_timeout: Duration,
    /// Maximum total duration of a payload, from the beginning of its sending or receiving.
    /// Default: 1 hour. Answers peers that send a byte just before each idle timeout. An expired
    /// payload that is not polled ends when a new one needs its slot: the peer gets RESET_STREAM
    /// with [`code::EXPIRED`](super::code::EXPIRED), and a later poll
    /// [`PayloadError::Expired`](super::PayloadError::Expired).
    pub time_limit: Duration,
    /// Maximum open payloads of one [`Receiver`](super::Receiver), from their first byte to their
    /// end. Default: 8. Further ones are reset with [`code::TOO_MANY`](super::code::TOO_MANY); open
    /// ones within [`PayloadConfig::time_limit`] are not affected. Answers peers that begin many
    /// and end none.
    ///
    /// One connection can hold all of them for [`PayloadConfig::time_limit`]: if a receiver serves
    /// several connections, set [`PayloadConfig::max_open_per_connection`] too.
    pub max_open: usize,
    /// The same for one [`Payloads`](super::Payloads), and so for one connection. Default: 8, which
    /// is all of them. [`Receiver::receive`](super::Receiver::receive) does not check it. Answers
    /// peers that leave no slot to others.
    pub max_open_per_connection: usize,
    /// Bytes between two calls of [`Events::payload_progress`](crate::Events::payload_progress).
    /// Default: 1 MiB. A write or frame that spans several intervals causes one call.
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

/// A setting that is out of range.
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
    /// [`PayloadConfig::max_metadata`] is more than a header can hold.
    #[error("max_metadata is {value}, more than {max}")]
    MetadataTooLong {
        /// Its value.
        value: usize,
        /// Its maximum.
        max: usize,
    },
}

impl PayloadConfig {
    /// Checks that every setting is in its range.
    ///
    /// # Errors
    /// [`PayloadConfigError`] names the field that is not.
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
