//! Admits payloads: limits the open ones, and checks their headers.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;

use super::body::{Body, Payload};
use super::config::{PayloadConfig, PayloadConfigError};
use super::lease::Lease;
use super::report::Reporter;
use super::slots::{Permit, Slots};
use super::watch::{Mover, State, Watch};
use super::wire::{self, Hash, Header, MAX_FIELDS};
use crate::error::payload::MessageError;
use crate::error::payload::{PayloadError, code};
use crate::events::PayloadDirection;
use crate::substream::{Shared, Substream};

/// Receives a limited number of payloads at once.
///
/// Clones share the limit. A payload releases its slot when it has been received, has failed or is
/// dropped. If several connections share a receiver, one peer can hold all slots unless
/// [`Payloads`](super::Payloads) limits its share ([`PayloadConfig::max_open_per_connection`]);
/// with [`Receiver::receive`], use one receiver per connection, or limit the substreams.
#[derive(Debug, Clone)]
pub struct Receiver(Arc<Limits>);

#[derive(Debug)]
struct Limits {
    config: PayloadConfig,
    slots: Arc<Slots>,
}

/// A substream with a slot, whose header has not arrived yet.
#[derive(Debug)]
pub(super) struct Admitted {
    lease: Lease,
    permit: Permit,
    watch: Watch,
}

/// With the default limits.
impl Default for Receiver {
    fn default() -> Self {
        Self::with(PayloadConfig::default())
    }
}

impl Receiver {
    /// Creates a receiver with limits of its own.
    ///
    /// # Errors
    /// [`PayloadConfigError`] if `config` does not [validate](PayloadConfig::validate).
    pub fn new(config: PayloadConfig) -> Result<Self, PayloadConfigError> {
        config.validate()?;
        Ok(Self::with(config))
    }

    fn with(config: PayloadConfig) -> Self {
        Self(Arc::new(Limits {
            config,
            slots: Arc::default(),
        }))
    }

    /// Number of open payloads, including those whose header has not arrived yet.
    pub fn open(&self) -> usize {
        self.0.slots.open()
    }

    /// Takes over a substream on which the peer sends a payload, and reads the header.
    ///
    /// # Errors
    /// [`PayloadError::TooMany`] at once if [`PayloadConfig::max_open`] payloads are open;
    /// [`PayloadError::TooLarge`] and [`PayloadError::BadHeader`] for the header;
    /// [`PayloadError::Expired`] if there is none in time. The substream is reset with the matching
    /// [`code`](super::code).
    ///
    /// # Cancel safety
    /// Dropping the future cancels the payload.
    pub async fn receive(&self, substream: Substream) -> Result<Payload, PayloadError> {
        let admitted = self.admit(substream, None)?;
        self.read_header(admitted).await
    }

    /// Takes a slot, or refuses the new payload; open ones within their time limit are not
    /// affected. `of_connection` counts those of its connection.
    pub(super) fn admit(
        &self,
        substream: Substream,
        of_connection: Option<&Arc<AtomicUsize>>,
    ) -> Result<Admitted, PayloadError> {
        let config = &self.0.config;
        let watch = Watch::new(Mover(State::new(None)), config);
        let of_connection = of_connection.map(|open| (open, config.max_open_per_connection));
        let until = (&*watch.state, watch.deadline());
        let slots = &self.0.slots;
        match slots.take(config.max_open, of_connection, until, substream.shared()) {
            Ok(permit) => Ok(Admitted {
                lease: Lease::new(substream),
                permit,
                watch,
            }),
            Err(error) => {
                substream.reset(code::TOO_MANY);
                report_refused(substream.shared(), &error);
                Err(error)
            }
        }
    }

    pub(super) async fn read_header(&self, admitted: Admitted) -> Result<Payload, PayloadError> {
        let Admitted {
            mut lease,
            permit,
            mut watch,
        } = admitted;
        let config = &self.0.config;
        let state = Arc::clone(&watch.state);
        let header = wire::read::<Header>(&mut lease.read, config.max_metadata + MAX_FIELDS);
        let header = match watch.guard(header).await {
            Ok(Ok(header)) => check(header, config),
            Ok(Err(error)) => Err(PayloadError::message(error, 0, None)),
            Err(interrupt) => Err(PayloadError::interrupted(interrupt, 0)),
        };
        match header {
            Ok(header) => {
                if let Some(total) = header.total_len {
                    state.set_total(total);
                }
                let reporter = Reporter::begin(
                    lease.write.shared(),
                    &state,
                    PayloadDirection::Received,
                    config.progress_interval,
                );
                let max_total = config.max_total;
                let body = Body::new(lease, reporter, watch, permit, header, max_total);
                Ok(Payload::new(body))
            }
            Err(error) => {
                if let Some(code) = error.code() {
                    lease.reset(code);
                }
                report_refused(lease.write.shared(), &error);
                Err(error)
            }
        }
    }
}

fn report_refused(substream: &Shared, error: &PayloadError) {
    substream.siblings.events.emit(|events, connection| {
        events.payload_refused(connection, substream.info(), error);
    });
}

fn check(mut header: Header, config: &PayloadConfig) -> Result<Header, PayloadError> {
    let bad = |error| Err(PayloadError::BadHeader(error));
    let len = header.metadata.as_ref().map_or(0, |bytes| bytes.len());
    let max = config.max_metadata;
    if len > max {
        return bad(MessageError::MetadataTooLong { len, max });
    }
    // The slice would keep the message of the carrier in memory as long as the payload.
    header.metadata = header.metadata.as_deref().map(Bytes::copy_from_slice);
    let kind = header.hash.unwrap_or_default();
    let Ok(kind) = Hash::try_from(kind) else {
        return bad(MessageError::UnknownHash(kind));
    };
    if header.resumable() && (kind == Hash::None || header.total_len.is_none()) {
        return bad(MessageError::NotResumable);
    }
    let max = config.max_total;
    match header.total_len {
        Some(len) if len > max => Err(PayloadError::TooLarge { len, max }),
        _ => Ok(header),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn metadata_does_not_keep_the_message_that_it_came_in() {
        let header = Header {
            metadata: Some(Bytes::from_static(b"name")),
            ..Header::default()
        };
        let mut message = vec![0; 16 * 1024];
        message.splice(0..0, header.encode_to_vec());
        let message = Bytes::from(message);
        let header = Header::decode(message.slice(..header.encoded_len())).expect("a header");
        let header = check(header, &PayloadConfig::default()).expect("within the limits");
        assert_eq!(header.metadata.as_deref(), Some(&b"name"[..]));
        assert!(message.is_unique());
    }
}
