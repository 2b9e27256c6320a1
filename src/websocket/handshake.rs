//! Noise on stream 0, before anything else is carried.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::carrier::WebSocketCarrier;
use super::error::{HandshakeError, HandshakePhase};
use crate::identity::{Identity, PeerId};
use crate::message::{FrameDecoder, Message};
use crate::noise::Handshake;

/// In front of the channel binding.
const PROLOGUE_PREFIX: &[u8] = b"anabranch-websocket-noise:";

/// The label of the keys that bind Noise to a TLS session (RFC 9266).
pub(super) const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// The phase of a handshake, readable when its future was dropped by a timeout.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU8);

impl Progress {
    pub(super) fn set(&self, phase: HandshakePhase) {
        let number = match phase {
            HandshakePhase::Tcp => 0,
            HandshakePhase::Tls => 1,
            HandshakePhase::Upgrade => 2,
            HandshakePhase::Noise => 3,
        };
        self.0.fetch_max(number, Ordering::Relaxed);
    }

    pub(super) fn phase(&self) -> HandshakePhase {
        match self.0.load(Ordering::Relaxed) {
            0 => HandshakePhase::Tcp,
            1 => HandshakePhase::Tls,
            2 => HandshakePhase::Upgrade,
            _ => HandshakePhase::Noise,
        }
    }
}

/// Proves the identities to each other. `binding` is what both sides know of the TLS session, or nothing.
pub(super) async fn prove<S>(
    carrier: &mut WebSocketCarrier<S>,
    is_client: bool,
    identity: &Identity,
    binding: &[u8],
    expected: Option<PeerId>,
) -> Result<PeerId, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let prologue = [PROLOGUE_PREFIX, binding].concat();
    let noise = if is_client {
        Handshake::client_with(identity, &prologue)?
    } else {
        Handshake::server_with(identity, &prologue)?
    };
    let mut noise = noise.expecting(expected);
    loop {
        while let Some(bytes) = noise.poll_send() {
            carrier.send_on_zero(&Message::data(Bytes::from(bytes)).encode());
        }
        if let Some(remote) = noise.finished() {
            let peer = remote.peer_id;
            poll_fn(|cx| carrier.poll_sent(cx)).await;
            return Ok(peer);
        }
        let frames =
            poll_fn(|cx| carrier.poll_zero(cx))
                .await
                .map_err(|cause| HandshakeError::Ended {
                    phase: HandshakePhase::Noise,
                    cause,
                })?;
        let mut decoder = FrameDecoder::new();
        decoder.push(frames);
        // A whole frame: the carrier has looked at it already.
        while let Ok(Some(message)) = decoder.next_message() {
            if message.flag.is_some() || noise.finished().is_some() {
                return Err(HandshakeError::Aborted);
            }
            noise.receive(&message.payload)?;
        }
    }
}
