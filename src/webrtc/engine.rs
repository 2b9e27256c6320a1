//! Converts the types of the engine's crate into those of this one.

use std::io;
use std::net::SocketAddr;

use anabranch_rtc as rtc;

use crate::carrier::{CarrierEvent, ChannelId, Class, OpenChannelError, Written};
use crate::certificate::Fingerprint;
use crate::error::{ConnectionError, WebRtcError};

/// The pre-negotiated channel for Noise: SCTP stream 0.
pub(crate) const CHANNEL_ZERO: ChannelId = ChannelId::new(rtc::CHANNEL_ZERO.get());

/// An event of the engine, or of the carrier during the handshake.
#[derive(Debug)]
pub(crate) enum EngineEvent {
    /// A candidate pair is valid.
    IceConnected,
    /// The peer has proved that it receives at this further address.
    AddressValidated(SocketAddr),
    /// DTLS is up; the peer's certificate has this fingerprint.
    DtlsConnected(Fingerprint),
    /// SCTP is up and channel 0 is open.
    ChannelZeroOpen,
    /// The listener has refused the connection. Reported by the carrier, not by engines.
    Refused,
    /// Nobody listens at the dialled port. Reported by the carrier as well.
    Unreachable {
        /// The address.
        remote: SocketAddr,
        /// The error of the system.
        source: io::Error,
    },
    /// An event for the driver of the connection.
    Carrier(CarrierEvent),
    /// The connection has ended.
    Ended(ConnectionError),
}

impl EngineEvent {
    /// Returns `None` for an event that this version does not support.
    pub(super) fn from_engine(event: rtc::Event) -> Option<Self> {
        Some(match event {
            rtc::Event::IceConnected => Self::IceConnected,
            rtc::Event::AddressValidated(address) => Self::AddressValidated(address),
            rtc::Event::DtlsConnected { sha256 } => {
                Self::DtlsConnected(Fingerprint::from_bytes(sha256))
            }
            rtc::Event::ChannelZeroOpen => Self::ChannelZeroOpen,
            rtc::Event::Opened { channel, label } => Self::Carrier(CarrierEvent::Opened {
                channel: channel.into(),
                label,
            }),
            rtc::Event::Readable { channel } => Self::Carrier(CarrierEvent::Readable {
                channel: channel.into(),
            }),
            rtc::Event::Writable => Self::Carrier(CarrierEvent::Writable),
            rtc::Event::Delivered { channel } => Self::Carrier(CarrierEvent::Delivered {
                channel: channel.into(),
            }),
            rtc::Event::Closed { channel } => Self::Carrier(CarrierEvent::Closed {
                channel: channel.into(),
            }),
            rtc::Event::Ended(reason) => Self::Ended(reason.into()),
            _ => return None,
        })
    }
}

impl From<rtc::ChannelId> for ChannelId {
    fn from(id: rtc::ChannelId) -> Self {
        Self::new(id.get())
    }
}

impl From<ChannelId> for rtc::ChannelId {
    fn from(id: ChannelId) -> Self {
        Self::new(id.get())
    }
}

impl From<Class> for rtc::Class {
    fn from(class: Class) -> Self {
        match class {
            Class::Data => Self::Data,
            Class::Control => Self::Control,
        }
    }
}

impl From<rtc::Written> for Written {
    fn from(written: rtc::Written) -> Self {
        match written {
            rtc::Written::Taken => Self::Taken,
            rtc::Written::Busy => Self::Busy,
            rtc::Written::NotOpen => Self::NotOpen,
            rtc::Written::Closed => Self::Closed,
        }
    }
}

impl From<rtc::OpenError> for OpenChannelError {
    fn from(error: rtc::OpenError) -> Self {
        match error {
            rtc::OpenError::Exhausted => Self::Exhausted,
            rtc::OpenError::NotNow => Self::NotNow,
            rtc::OpenError::LabelTooLong { len, max } => Self::LabelTooLong { len, max },
            _ => Self::Closed,
        }
    }
}

impl From<rtc::EndReason> for ConnectionError {
    fn from(reason: rtc::EndReason) -> Self {
        match reason {
            rtc::EndReason::ClosedByPeer => Self::ClosedByPeer,
            rtc::EndReason::TimedOut => Self::TimedOut,
            rtc::EndReason::NoProgress => Self::NoProgress,
            rtc::EndReason::Aborted => Self::WebRtc(WebRtcError::Aborted),
            rtc::EndReason::Violation(violation) => Self::WebRtc(WebRtcError::Violation(violation)),
            rtc::EndReason::Limit(limit) => Self::WebRtc(WebRtcError::Limit(limit)),
            rtc::EndReason::NoCertificate => Self::WebRtc(WebRtcError::NoCertificate),
            rtc::EndReason::Dtls(text) => Self::WebRtc(WebRtcError::Dtls(text)),
            other => Self::WebRtc(WebRtcError::Engine(other.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;
    use crate::error::{LimitExceeded, SctpViolation};

    #[test]
    fn causes_of_an_engine_stay_typed() {
        let cause = |reason: rtc::EndReason| ConnectionError::from(reason);
        let violation = SctpViolation::AcknowledgedUnsent;
        let error = cause(rtc::EndReason::Violation(violation));
        assert_eq!(error, WebRtcError::Violation(violation).into());
        let webrtc = error.source().expect("a cause");
        let sctp = webrtc.source().expect("its cause");
        assert_eq!(sctp.downcast_ref::<SctpViolation>(), Some(&violation));
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidData);
        let limit = LimitExceeded::EarlyData;
        let expected = [
            (rtc::EndReason::ClosedByPeer, ConnectionError::ClosedByPeer),
            (rtc::EndReason::TimedOut, ConnectionError::TimedOut),
            (rtc::EndReason::NoProgress, ConnectionError::NoProgress),
            (rtc::EndReason::Aborted, WebRtcError::Aborted.into()),
            (
                rtc::EndReason::Limit(limit),
                WebRtcError::Limit(limit).into(),
            ),
            (
                rtc::EndReason::NoCertificate,
                WebRtcError::NoCertificate.into(),
            ),
        ];
        for (reason, error) in expected {
            assert_eq!(cause(reason), error);
        }
    }
}
