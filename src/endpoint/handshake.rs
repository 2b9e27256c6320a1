//! The handshake, from the first datagram to an authenticated connection.
//!
//! ```text
//! Ice ──► Dtls ──► DataChannel ──► Noise ──► done
//!  pair    certificate  channel 0    identity
//!  works   known        open         proven
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::ConnectError;
use crate::carrier::{Carrier, CarrierEvent, Class, Written};
use crate::certificate::Fingerprint;
use crate::error::{ConnectionError, WebRtcError};
use crate::identity::{Identity, PeerId};
use crate::message::{FrameDecoder, Message};
use crate::noise::{Handshake, NoiseError, Peer};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::webrtc::WebRtcCarrier;
use crate::webrtc::engine::{CHANNEL_ZERO, EngineEvent};
use anabranch_rtc::Role;

/// A phase of the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// ICE looks for a path; no valid answer of the peer has arrived yet.
    Ice,
    /// The DTLS handshake.
    Dtls,
    /// SCTP association setup, and the first data channel.
    DataChannel,
    /// The Noise handshake, which proves the identities.
    Noise,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ice => "ICE",
            Self::Dtls => "DTLS",
            Self::DataChannel => "data channel",
            Self::Noise => "Noise",
        })
    }
}

/// The phase of a handshake, still readable after a timeout has dropped its future.
#[derive(Debug, Default)]
pub(crate) struct HandshakeProgress(AtomicU8);

impl HandshakeProgress {
    fn set(&self, phase: Phase) {
        let number = match phase {
            Phase::Ice => 0,
            Phase::Dtls => 1,
            Phase::DataChannel => 2,
            Phase::Noise => 3,
        };
        self.0.fetch_max(number, Ordering::Relaxed);
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Ice,
            1 => Phase::Dtls,
            2 => Phase::DataChannel,
            _ => Phase::Noise,
        }
    }
}

/// The local identity, and what is expected of the peer.
#[derive(Debug)]
pub(crate) struct Expectations<'a> {
    pub(crate) role: Role,
    /// Accepted certificate hashes of the peer; empty for any.
    pub(crate) certhashes: &'a [Fingerprint],
    pub(crate) own_fingerprint: Fingerprint,
    /// The identity for Noise; `None` if certificates alone authenticate.
    pub(crate) identity: Option<&'a Identity>,
    pub(crate) peer_id: Option<PeerId>,
    /// Whether this side takes protocols in the labels of channels.
    pub(crate) takes_labels: bool,
    /// Whether the peer may open channel 0 only some time after SCTP is up.
    pub(crate) late_channel_zero: bool,
}

/// Delay of the first Noise message to a peer that may open channel 0 late.
///
/// libp2p-webrtc 0.10.0-alpha takes a message on a channel that it has not opened yet for a remote
/// channel, then fails to open its own, and gives up after 10 s. Nothing on the wire shows when a
/// negotiated channel is open. Such a peer needs 200 ms to get here.
const LATE_CHANNEL_ZERO: Duration = Duration::from_millis(20);

/// Runs the handshake. Returns the peer, if Noise was run.
///
/// What the peer opens meanwhile stays in the carrier: nothing reaches the application before the
/// peer is authenticated (CVE-2021-28681: data channels usable before the fingerprint check).
pub(crate) async fn establish(
    carrier: &mut WebRtcCarrier,
    expectations: Expectations<'_>,
    progress: &HandshakeProgress,
) -> Result<Option<Peer>, ConnectError> {
    let mut early = VecDeque::new();
    let mut decoder = FrameDecoder::new();
    let result = run(carrier, &expectations, progress, &mut early, &mut decoder).await;
    if result.is_ok() {
        carrier.authenticated(early, decoder);
    }
    result
}

async fn run(
    carrier: &mut WebRtcCarrier,
    expectations: &Expectations<'_>,
    progress: &HandshakeProgress,
    early: &mut VecDeque<CarrierEvent>,
    decoder: &mut FrameDecoder,
) -> Result<Option<Peer>, ConnectError> {
    let mut peer_fingerprint = None;
    loop {
        match next_event(carrier).await {
            EngineEvent::IceConnected => progress.set(Phase::Dtls),
            EngineEvent::DtlsConnected(fingerprint) => {
                let expected = expectations.certhashes;
                if !expected.is_empty() && !expected.contains(&fingerprint) {
                    return Err(ConnectError::CertificateMismatch { got: fingerprint });
                }
                peer_fingerprint = Some(fingerprint);
                progress.set(Phase::DataChannel);
            }
            EngineEvent::ChannelZeroOpen => break,
            EngineEvent::Carrier(event) => early.push_back(event),
            EngineEvent::AddressValidated(_) => {}
            EngineEvent::Refused => return Err(ConnectError::Refused),
            EngineEvent::Unreachable { remote, source } => {
                let source = source.into();
                return Err(ConnectError::Unreachable { remote, source });
            }
            EngineEvent::Ended(cause) => return Err(ended(progress, cause)),
        }
    }
    let Some(peer_fingerprint) = peer_fingerprint else {
        let cause = WebRtcError::NoCertificate.into();
        return Err(ended(progress, cause));
    };
    let Some(identity) = expectations.identity else {
        return Ok(None);
    };
    progress.set(Phase::Noise);
    let own = &expectations.own_fingerprint;
    let noise = match expectations.role {
        Role::Client => Handshake::client(identity, own, &peer_fingerprint)?,
        Role::Server => Handshake::server(identity, &peer_fingerprint, own)?,
    };
    let mut noise = noise.expecting(expectations.peer_id);
    if expectations.takes_labels {
        noise = noise.taking_labels();
    }
    let hold = expectations
        .late_channel_zero
        .then(|| Instant::now() + LATE_CHANNEL_ZERO);
    exchange(carrier, noise, progress, early, decoder, hold)
        .await
        .map(Some)
}

/// Runs Noise over channel 0. Sends nothing before `hold`, unless a message of the peer arrives
/// first.
///
/// What follows the last Noise message stays in the carrier and in `decoder`: a listener of this
/// library announces its limit of substreams in the same flight.
async fn exchange(
    carrier: &mut WebRtcCarrier,
    mut noise: Handshake,
    progress: &HandshakeProgress,
    early: &mut VecDeque<CarrierEvent>,
    decoder: &mut FrameDecoder,
    mut hold: Option<Instant>,
) -> Result<Peer, ConnectError> {
    loop {
        while hold.is_none()
            && let Some(bytes) = noise.poll_send()
        {
            let frame = Message::data(Bytes::from(bytes)).encode();
            if carrier.write(CHANNEL_ZERO, &frame, Class::Control) != Written::Taken {
                let cause = WebRtcError::ChannelClosed.into();
                return Err(ended(progress, cause));
            }
        }
        if let Some(peer) = noise.peer() {
            return Ok(peer);
        }
        let event = match hold {
            None => next_event(carrier).await,
            Some(until) => match timeout_at(until, next_event(carrier)).await {
                Ok(event) => event,
                Err(_) => {
                    hold = None;
                    continue;
                }
            },
        };
        match event {
            EngineEvent::Carrier(CarrierEvent::Readable { channel }) if channel == CHANNEL_ZERO => {
                hold = None;
                while noise.finished().is_none()
                    && let Some(bytes) = carrier.read(CHANNEL_ZERO)
                {
                    receive(&mut noise, decoder, bytes)?;
                }
            }
            EngineEvent::Carrier(event) => early.push_back(event),
            EngineEvent::Ended(cause) => return Err(ended(progress, cause)),
            EngineEvent::Refused
            | EngineEvent::Unreachable { .. }
            | EngineEvent::IceConnected
            | EngineEvent::AddressValidated(_)
            | EngineEvent::DtlsConnected(_)
            | EngineEvent::ChannelZeroOpen => {}
        }
    }
}

/// Passes a message of channel 0 to Noise. The payload counts before the flag of the same message.
/// What follows the last Noise message is left: libp2p-webrtc closes the channel right after it.
fn receive(
    noise: &mut Handshake,
    decoder: &mut FrameDecoder,
    bytes: Bytes,
) -> Result<(), ConnectError> {
    decoder.push(bytes);
    while noise.finished().is_none()
        && let Some(message) = decoder.next_message()?
    {
        noise.receive(&message.payload)?;
        if message.flag.is_some() && noise.finished().is_none() {
            return Err(ConnectError::HandshakeAborted);
        }
    }
    Ok(())
}

async fn next_event(carrier: &mut WebRtcCarrier) -> EngineEvent {
    poll_fn(|cx| carrier.poll_engine(cx)).await
}

fn ended(progress: &HandshakeProgress, cause: ConnectionError) -> ConnectError {
    ConnectError::Ended {
        phase: progress.phase(),
        cause,
    }
}

impl From<NoiseError> for ConnectError {
    fn from(error: NoiseError) -> Self {
        match error {
            NoiseError::UnexpectedPeer { expected, got } => Self::UnexpectedPeer { expected, got },
            error => Self::Noise(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Flag;

    /// A client that has sent its second message, and the frame of the server's third.
    fn before_the_last_message() -> (Handshake, Bytes) {
        let identities = [(); 2].map(|()| Identity::generate());
        let hashes = [1, 2].map(|byte| Fingerprint::from_bytes([byte; 32]));
        let [client_hash, server_hash] = &hashes;
        let mut client = Handshake::client(&identities[0], client_hash, server_hash).unwrap();
        let mut server = Handshake::server(&identities[1], client_hash, server_hash).unwrap();
        client.receive(&server.poll_send().unwrap()).unwrap();
        server.receive(&client.poll_send().unwrap()).unwrap();
        let last = Bytes::from(server.poll_send().unwrap());
        assert!(server.finished().is_some());
        (client, Message::data(last).encode())
    }

    fn received(noise: &mut Handshake, frames: &[&[u8]]) -> Result<(), ConnectError> {
        let glued = Bytes::from(frames.concat());
        receive(noise, &mut FrameDecoder::new(), glued)
    }

    #[test]
    fn a_channel_closed_right_after_noise_is_no_failure() {
        let (mut client, last) = before_the_last_message();
        let fin = Message::flag(Flag::Fin).encode();
        received(&mut client, &[&last, &fin, &fin]).unwrap();
        assert!(client.finished().is_some());
    }

    #[test]
    fn a_channel_closed_during_noise_is_a_failure() {
        for flag in [Flag::Fin, Flag::ResetStream] {
            let (mut client, last) = before_the_last_message();
            let error = received(&mut client, &[&Message::flag(flag).encode(), &last]);
            assert!(
                matches!(error, Err(ConnectError::HandshakeAborted)),
                "{error:?}"
            );
        }
    }
}
