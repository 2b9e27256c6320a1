//! The deadline of a handshake, and Noise on stream 0.

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
use crate::connection::Config;
use crate::identity::{Identity, PeerId};
use crate::message::{FrameDecoder, Message};
use crate::noise::{Handshake, Peer};

/// The prefix of the Noise prologue, before the channel binding.
const PROLOGUE_PREFIX: &[u8] = b"anabranch-websocket-noise:";

/// The exporter label of the channel binding (RFC 9266).
pub(super) const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// The phase of a handshake, still readable after a timeout has dropped its future.
#[derive(Debug, Default)]
pub(super) struct HandshakeProgress {
    phase: AtomicU8,
    /// The address of the client that a trusted proxy has reported.
    client: OnceLock<SocketAddr>,
}

impl HandshakeProgress {
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

/// The deadline for all phases of a handshake together.
#[derive(Debug)]
pub(super) struct Deadline<'a> {
    at: Instant,
    after: Duration,
    progress: &'a HandshakeProgress,
}

impl<'a> Deadline<'a> {
    /// A deadline `after` from now.
    pub(super) fn new(after: Duration, progress: &'a HandshakeProgress) -> Self {
        Self {
            at: Instant::now() + after,
            after,
            progress,
        }
    }

    /// Runs a phase, or a part of one, within the deadline.
    pub(super) async fn run<T>(&self, phase: impl Future<Output = T>) -> Result<T, HandshakeError> {
        timeout_at(self.at, phase)
            .await
            .map_err(|_| HandshakeError::TimedOut {
                phase: self.progress.phase(),
                after: self.after,
            })
    }
}

/// Runs Noise and returns the peer. `binding` is the channel binding, or empty.
pub(super) async fn prove<S>(
    carrier: &mut WebSocketCarrier<S>,
    is_client: bool,
    identity: &Identity,
    binding: &[u8],
    expected: Option<PeerId>,
    config: &Config,
) -> Result<Peer, HandshakeError>
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
    if config.takes_labels() {
        noise = noise.taking_labels();
    }
    loop {
        while let Some(bytes) = noise.poll_send() {
            carrier.send_on_zero(&Message::data(Bytes::from(bytes)).encode());
        }
        if let Some(peer) = noise.peer() {
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
        // Whole frames: the carrier has parsed them already.
        while let Ok(Some(message)) = decoder.next_message() {
            if message.flag.is_some() || noise.finished().is_some() {
                return Err(HandshakeError::Aborted);
            }
            noise.receive(&message.payload)?;
        }
    }
}
