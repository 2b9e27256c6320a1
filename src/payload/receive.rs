//! Admitting payloads: the cap on those that are open, and the header.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;

use super::body::{Body, Payload};
use super::config::{PayloadConfig, PayloadConfigError};
use super::lease::Lease;
use super::places::{Permit, Places};
use super::tell::Teller;
use super::watch::{State, Watch};
use super::wire::{self, Hash, Header, MAX_FIELDS};
use crate::error::payload::MessageError;
use crate::error::payload::{PayloadError, code};
use crate::events::PayloadDirection;
use crate::substream::{Shared, Substream};

/// Receives payloads, a limited number at once.
///
/// Clones share the limit. One peer can hold all the places of a receiver that several connections share,
/// unless [`Payloads`](super::Payloads) bound its part ([`PayloadConfig::max_open_per_connection`]); who calls
/// [`Receiver::receive`] uses a receiver for each connection, or refuses substreams above it. It is held by nothing else: a payload gives its place back when it was read
/// to its end, failed or dropped.
#[derive(Debug, Clone)]
pub struct Receiver(Arc<Limits>);

#[derive(Debug)]
struct Limits {
    config: PayloadConfig,
    places: Arc<Places>,
}

/// A substream that has a place, and no header yet.
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
    /// A receiver of its own, with nothing open.
    ///
    /// # Errors
    /// If `config` does not [validate](PayloadConfig::validate).
    pub fn new(config: PayloadConfig) -> Result<Self, PayloadConfigError> {
        config.validate()?;
        Ok(Self::with(config))
    }

    fn with(config: PayloadConfig) -> Self {
        Self(Arc::new(Limits {
            config,
            places: Arc::default(),
        }))
    }

    /// Payloads that are open, those included whose header has not come yet.
    pub fn open(&self) -> usize {
        self.0.places.open()
    }

    /// Takes a substream over on which the peer sends a payload, and reads the header.
    ///
    /// # Errors
    /// [`PayloadError::TooMany`] at once if [`PayloadConfig::max_open`] payloads are open, and
    /// [`PayloadError::TooLarge`] when the header is there; the substream is then reset, and the
    /// sender told why. [`PayloadError::BadHeader`] and [`PayloadError::Expired`] if there is no
    /// header, or a bad one.
    ///
    /// # Cancel safety
    /// If the future is dropped the payload is cancelled.
    pub async fn receive(&self, substream: Substream) -> Result<Payload, PayloadError> {
        let admitted = self.admit(substream, None)?;
        self.read_header(admitted).await
    }

    /// Refuses the new one, never one that is running in its time. `of_connection` counts those of its connection.
    pub(super) fn admit(
        &self,
        substream: Substream,
        of_connection: Option<&Arc<AtomicUsize>>,
    ) -> Result<Admitted, PayloadError> {
        let config = &self.0.config;
        let watch = Watch::new(State::new(None), config);
        let of_connection = of_connection.map(|open| (open, config.max_open_per_connection));
        let until = (&watch.state, watch.deadline());
        let places = &self.0.places;
        match places.take(config.max_open, of_connection, until, substream.shared()) {
            Ok(permit) => Ok(Admitted {
                lease: Lease::new(substream),
                permit,
                watch,
            }),
            Err(error) => {
                substream.reset(code::TOO_MANY);
                tell_refused(substream.shared(), &error);
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
                let teller = Teller::begin(
                    lease.write.shared(),
                    &state,
                    PayloadDirection::Received,
                    config.progress_interval,
                );
                let max_total = config.max_total;
                let body = Body::new(lease, teller, watch, permit, header, max_total);
                Ok(Payload::new(body))
            }
            Err(error) => {
                if let Some(code) = error.code() {
                    lease.reset(code);
                }
                tell_refused(lease.write.shared(), &error);
                Err(error)
            }
        }
    }
}

fn tell_refused(substream: &Shared, error: &PayloadError) {
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
    // It is a slice, which would keep the message of the carrier in memory as long as the payload.
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
