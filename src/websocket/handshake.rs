//! The deadline of a handshake, and Noise on stream 0, before anything else is carried.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

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
pub(super) struct Progress {
    phase: AtomicU8,
    /// Where a trusted proxy says that the client is.
    client: OnceLock<SocketAddr>,
}

impl Progress {
    pub(super) fn set(&self, phase: HandshakePhase) {
        let number = match phase {
            HandshakePhase::Tcp => 0,
            HandshakePhase::Tls => 1,
            HandshakePhase::Upgrade => 2,
            HandshakePhase::Noise => 3,
        };
        self.phase.fetch_max(number, Ordering::Relaxed);
    }

    pub(super) fn phase(&self) -> HandshakePhase {
        match self.phase.load(Ordering::Relaxed) {
            0 => HandshakePhase::Tcp,
            1 => HandshakePhase::Tls,
            2 => HandshakePhase::Upgrade,
            _ => HandshakePhase::Noise,
        }
    }

    pub(super) fn found_client(&self, client: SocketAddr) {
        self.client.get_or_init(|| client);
    }

    pub(super) fn client(&self) -> Option<SocketAddr> {
        self.client.get().copied()
    }
}

/// The one deadline of all phases of a handshake.
#[derive(Debug)]
pub(super) struct Deadline<'a> {
    at: Instant,
    after: Duration,
    progress: &'a Progress,
}

impl<'a> Deadline<'a> {
    /// It begins now.
    pub(super) fn new(after: Duration, progress: &'a Progress) -> Self {
        Self {
            at: Instant::now() + after,
            after,
            progress,
        }
    }

    /// Runs a phase, or what is left of one.
    pub(super) async fn run<T>(&self, phase: impl Future<Output = T>) -> Result<T, HandshakeError> {
        timeout_at(self.at, phase)
            .await
            .map_err(|_| HandshakeError::TimedOut {
                phase: self.progress.phase(),
                after: self.after,
            })
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
