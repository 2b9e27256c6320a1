//! The Noise handshake on data channel 0, which authenticates the peer.
//!
//! ```text
//!    server = Noise initiator                          client = Noise responder
//!           | -- 1: e ------------------------------------------> |
//!           | <----------------- 2: e, ee, s, es, its identity -- |  client authenticated
//!           | -- 3: s, se, its identity ------------------------> |  server authenticated
//! ```
//!
//! It is the libp2p Noise handshake (`Noise_XX_25519_ChaChaPoly_SHA256`) with two differences, both
//! from the webrtc-direct specification. The server is the initiator, since only the client knows
//! beforehand that there will be a connection. And the prologue contains the hashes of both DTLS
//! certificates: with a man in the middle, whose certificates differ, the two sides have different
//! prologues.
//!
//! The resulting keys are discarded; DTLS protects the data.
//!
//! A [`Handshake`] has no I/O and no clock: the caller transports the bytes, and limits the
//! duration. Endpoints and the WebSocket upgrade run it by themselves; it is public for carriers of
//! your own and for tests with hostile peers.
//!
//! ```
//! use anabranch::certificate::Certificate;
//! use anabranch::identity::Identity;
//! use anabranch::noise::Handshake;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let [alice, bob] = [Identity::generate(), Identity::generate()];
//! let [client_print, server_print] = [Certificate::generate(), Certificate::generate()]
//!     .map(|certificate| certificate.fingerprint());
//! let mut client = Handshake::client(&alice, &client_print, &server_print)?
//!     .expecting(Some(bob.peer_id()));
//! let mut server = Handshake::server(&bob, &client_print, &server_print)?;
//! while client.finished().is_none() {
//!     if let Some(bytes) = server.poll_send() {
//!         client.receive(&bytes)?;
//!     }
//!     if let Some(bytes) = client.poll_send() {
//!         server.receive(&bytes)?;
//!     }
//! }
//! let remote = server.finished().expect("both sides have finished");
//! assert_eq!(remote.peer_id, alice.peer_id());
//! # Ok(())
//! # }
//! ```

mod resolver;

use std::fmt;
use std::mem;

use prost::Message;
use snow::HandshakeState;
use thiserror::Error;

use crate::certificate::Fingerprint;
use crate::identity::Identity;
use crate::identity::PeerId;
use crate::identity::{PublicKey, StaticKey};

use proto::{NoiseExtensions, NoiseHandshakePayload};
use resolver::Resolver;

const PATTERN: &str = "Noise_XX_25519_ChaChaPoly_SHA256";

/// webrtc-direct specification, section "Noise handshake".
const PROLOGUE_PREFIX: &[u8] = b"libp2p-webrtc-noise:";

/// noise specification, section "Static Key Authentication".
const SIGNATURE_PREFIX: &[u8] = b"noise-libp2p-static-key:";

/// Maximum length of a handshake message. Noise allows 65 535.
///
/// With an Ed25519 identity the longest has 206 bytes, with RSA of 4096 bits about 1 200.
const MAX_MESSAGE: usize = 4096;

/// Size of the length prefix of each message.
const PREFIX_LEN: usize = 2;

/// One side of a handshake.
///
/// Pass bytes from the peer to [`Handshake::receive`], and send those of [`Handshake::poll_send`]
/// after each call, until [`Handshake::finished`] returns the peer. An error is final: the
/// handshake then sends nothing more, and every later call with bytes fails.
///
/// It buffers at most one incomplete message of 4096 bytes, and one message to send.
///
/// # Drop
/// Sends nothing: the peer sees only what the caller does with its carrier.
pub struct Handshake {
    state: State,
    /// Boxed, since it has more than a kilobyte.
    noise: Box<HandshakeState>,
    /// The encoded payload with the local identity.
    payload: Vec<u8>,
    expected: Option<PeerId>,
    peer_takes_labels: bool,
    /// The incomplete message with its length prefix: at most `PREFIX_LEN + MAX_MESSAGE`.
    incoming: Vec<u8>,
    outgoing: Option<Vec<u8>>,
}

/// ```text
/// server                AwaitSecond -> Finished
/// client  AwaitFirst -> AwaitThird  -> Finished
/// any                               -> Failed
/// ```
enum State {
    AwaitFirst,
    AwaitSecond,
    AwaitThird,
    Finished(Box<RemoteIdentity>),
    Failed,
}

impl Handshake {
    /// The side of the listener, the initiator: message 1 is ready to be sent.
    ///
    /// The fingerprints are those of the two DTLS certificates, in the same order on both sides.
    ///
    /// # Errors
    /// [`NoiseError::Setup`] if the local cryptography fails, for example without randomness.
    pub fn server(
        identity: &Identity,
        client_fingerprint: &Fingerprint,
        server_fingerprint: &Fingerprint,
    ) -> Result<Self, NoiseError> {
        let prologue = prologue(client_fingerprint, server_fingerprint);
        let mut handshake = Self::new(identity, &prologue, State::AwaitSecond)?;
        // noise specification: the first message has no payload, for it would not be encrypted.
        handshake.write(&[])?;
        Ok(handshake)
    }

    /// The side of the dialler, the responder, which waits for message 1.
    ///
    /// The fingerprints are those of the two DTLS certificates, in the same order on both sides.
    ///
    /// # Errors
    /// As [`Handshake::server`].
    pub fn client(
        identity: &Identity,
        client_fingerprint: &Fingerprint,
        server_fingerprint: &Fingerprint,
    ) -> Result<Self, NoiseError> {
        let prologue = prologue(client_fingerprint, server_fingerprint);
        Self::new(identity, &prologue, State::AwaitFirst)
    }

    /// The side of the listener on a carrier without DTLS, with a prologue of its own.
    ///
    /// The prologue is compared, not sent: both sides have to pass the same bytes, or the handshake
    /// fails with [`NoiseError::Decrypt`]. It has to contain what binds the handshake to the
    /// channel below it.
    ///
    /// # Errors
    /// As [`Handshake::server`].
    pub fn server_with(identity: &Identity, prologue: &[u8]) -> Result<Self, NoiseError> {
        let mut handshake = Self::new(identity, prologue, State::AwaitSecond)?;
        handshake.write(&[])?;
        Ok(handshake)
    }

    /// The side of the dialler on a carrier without DTLS, with a prologue of its own, as
    /// [`Handshake::server_with`].
    ///
    /// # Errors
    /// As [`Handshake::server`].
    pub fn client_with(identity: &Identity, prologue: &[u8]) -> Result<Self, NoiseError> {
        Self::new(identity, prologue, State::AwaitFirst)
    }

    fn new(identity: &Identity, prologue: &[u8], state: State) -> Result<Self, NoiseError> {
        let setup = |error: snow::Error| NoiseError::Setup(error.to_string());
        let builder =
            snow::Builder::with_resolver(PATTERN.parse().map_err(setup)?, Box::new(Resolver));
        // One static key for all connections, as in rust-libp2p. Whoever sees it sees the identity
        // too, which has signed it; secrecy rests on the ephemeral keys.
        let own = identity.static_key(|| {
            let keypair = builder.generate_keypair()?;
            let signature = identity.sign(&signed(&keypair.public));
            Ok(StaticKey {
                private: keypair.private,
                signature,
            })
        });
        let own = own.map_err(setup)?;
        let builder = builder
            .local_private_key(&own.private)
            .and_then(|builder| builder.prologue(prologue))
            .map_err(setup)?;
        let noise = match state {
            State::AwaitSecond => builder.build_initiator(),
            _ => builder.build_responder(),
        };
        let payload = NoiseHandshakePayload {
            identity_key: Some(identity.public_key().to_protobuf().into()),
            identity_sig: Some(own.signature.clone().into()),
            extensions: None,
        };
        Ok(Self {
            state,
            noise: Box::new(noise.map_err(setup)?),
            payload: payload.encode_to_vec(),
            expected: None,
            peer_takes_labels: false,
            incoming: Vec::new(),
            outgoing: None,
        })
    }

    /// Rejects every peer but this one with [`NoiseError::UnexpectedPeer`]. With `None`, the
    /// default, every identity is accepted.
    ///
    /// Call it before the first [`Handshake::receive`]. A listener sends its own identity only
    /// after this check; a dialler has sent its own before.
    #[must_use]
    pub fn expecting(mut self, peer: Option<PeerId>) -> Self {
        self.expected = peer;
        self
    }

    /// Announces that the label of a data channel may name the protocol of its substream
    /// (`docs/wire.md`, section 4), in a field of the extensions that other stacks skip.
    ///
    /// Call it before the first [`Handshake::receive`].
    #[must_use]
    pub fn taking_labels(mut self) -> Self {
        let extensions = NoiseExtensions {
            protocol_labels: Some(true),
            ..NoiseExtensions::default()
        };
        // Concatenated messages are merged (protobuf encoding, "Last One Wins").
        let payload = NoiseHandshakePayload {
            extensions: Some(extensions),
            ..NoiseHandshakePayload::default()
        };
        self.payload.extend(payload.encode_to_vec());
        self
    }

    /// Whether the peer has announced what [`Handshake::taking_labels`] does. Known once the
    /// handshake has [finished](Handshake::finished).
    pub fn peer_takes_labels(&self) -> bool {
        self.peer_takes_labels
    }

    /// Takes the next message for the peer, with its length prefix of two bytes.
    ///
    /// Returns `None` if there is nothing to send at this point, or after an error. Each message is
    /// returned once.
    pub fn poll_send(&mut self) -> Option<Vec<u8>> {
        self.outgoing.take()
    }

    /// Handles bytes from the peer, which may be fragmented and merged in any way.
    ///
    /// An incomplete message is kept until the next call. After a complete one
    /// [`Handshake::poll_send`] returns the answer, if one is due. An empty slice does nothing.
    ///
    /// # Errors
    /// Every error is final, and later calls with bytes return [`NoiseError::AlreadyFailed`]:
    /// - [`NoiseError::MessageTooLong`], [`NoiseError::MessageTooShort`], [`NoiseError::Decrypt`],
    ///   [`NoiseError::LowOrderKey`] and [`NoiseError::InvalidPayload`] for invalid messages;
    /// - [`NoiseError::MissingIdentity`], [`NoiseError::InvalidIdentityKey`] and
    ///   [`NoiseError::InvalidSignature`] if the peer does not prove an identity;
    /// - [`NoiseError::UnexpectedPeer`] if it proves another than expected;
    /// - [`NoiseError::TrailingBytes`] for bytes after the last message, also if the handshake has
    ///   finished before: [`Handshake::finished`] then returns `None` again.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), NoiseError> {
        self.advance(bytes).inspect_err(|_| {
            self.state = State::Failed;
            self.incoming = Vec::new();
            self.outgoing = None;
        })
    }

    fn advance(&mut self, mut bytes: &[u8]) -> Result<(), NoiseError> {
        while !bytes.is_empty() {
            match self.state {
                State::Finished(_) => return Err(NoiseError::TrailingBytes),
                State::Failed => return Err(NoiseError::AlreadyFailed),
                State::AwaitFirst | State::AwaitSecond | State::AwaitThird => {}
            }
            let Some(message) = self.assemble(&mut bytes)? else {
                break;
            };
            self.handle(&message)?;
        }
        Ok(())
    }

    /// Moves bytes to `incoming` until it has a whole message. Returns that without its prefix.
    fn assemble(&mut self, bytes: &mut &[u8]) -> Result<Option<Vec<u8>>, NoiseError> {
        fill(&mut self.incoming, bytes, PREFIX_LEN);
        let Some(prefix) = self.incoming.first_chunk::<PREFIX_LEN>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes(*prefix));
        // Checked before a byte of the message is buffered.
        if len > MAX_MESSAGE {
            return Err(NoiseError::MessageTooLong(len));
        }
        let total = PREFIX_LEN + len;
        fill(&mut self.incoming, bytes, total);
        if self.incoming.len() < total {
            return Ok(None);
        }
        let mut message = mem::take(&mut self.incoming);
        message.drain(..PREFIX_LEN);
        Ok(Some(message))
    }

    fn handle(&mut self, message: &[u8]) -> Result<(), NoiseError> {
        // A payload is never longer than its message.
        let mut payload = vec![0; message.len()];
        let len = self
            .noise
            .read_message(message, &mut payload)
            .map_err(NoiseError::from_snow)?;
        payload.truncate(len);

        match self.state {
            State::AwaitFirst => {
                // A payload of message 1 has no meaning and is ignored, as in go and js.
                let identity = mem::take(&mut self.payload);
                self.write(&identity)?;
                self.state = State::AwaitThird;
            }
            State::AwaitSecond => {
                // The local identity is sent only to the expected peer.
                let remote = self.verify(&payload)?;
                let identity = mem::take(&mut self.payload);
                self.write(&identity)?;
                self.state = State::Finished(Box::new(remote));
            }
            State::AwaitThird => self.state = State::Finished(Box::new(self.verify(&payload)?)),
            State::Finished(_) | State::Failed => return Err(NoiseError::AlreadyFailed),
        }
        Ok(())
    }

    /// Checks that the identity in `payload` has signed the static key of the peer.
    fn verify(&mut self, payload: &[u8]) -> Result<RemoteIdentity, NoiseError> {
        let payload =
            NoiseHandshakePayload::decode(payload).map_err(|_| NoiseError::InvalidPayload)?;
        let key = payload.identity_key.ok_or(NoiseError::MissingIdentity)?;
        let signature = payload.identity_sig.ok_or(NoiseError::MissingIdentity)?;
        let public_key = PublicKey::from_protobuf(&key)
            .map_err(|error| NoiseError::InvalidIdentityKey(error.to_string()))?;
        let static_key = self
            .noise
            .get_remote_static()
            .ok_or(NoiseError::InvalidSignature)?;
        if !public_key.verify(&signed(static_key), &signature) {
            return Err(NoiseError::InvalidSignature);
        }
        let extensions = payload.extensions.unwrap_or_default();
        self.peer_takes_labels = extensions.protocol_labels.unwrap_or(false);
        let peer_id = public_key.peer_id();
        match self.expected {
            Some(expected) if expected != peer_id => Err(NoiseError::UnexpectedPeer {
                expected,
                got: peer_id,
            }),
            _ => Ok(RemoteIdentity {
                peer_id,
                public_key,
            }),
        }
    }

    fn write(&mut self, payload: &[u8]) -> Result<(), NoiseError> {
        let mut message = vec![0; MAX_MESSAGE];
        let len = self
            .noise
            .write_message(payload, &mut message)
            .map_err(NoiseError::from_snow)?;
        message.truncate(len);
        let prefix = u16::try_from(len).map_err(|_| NoiseError::MessageTooLong(len))?;
        self.outgoing = Some([&prefix.to_be_bytes(), &message[..]].concat());
        Ok(())
    }

    /// The result for a connection, once the handshake has [finished](Handshake::finished).
    #[cfg(any(feature = "webrtc", feature = "websocket"))]
    pub(crate) fn peer(&self) -> Option<Peer> {
        let remote = self.finished()?;
        Some(Peer {
            id: remote.peer_id,
            takes_labels: self.peer_takes_labels,
        })
    }

    /// The authenticated peer, once its identity is proven and [`Handshake::poll_send`] has
    /// returned the last message. `None` before that, and after an error.
    pub fn finished(&self) -> Option<&RemoteIdentity> {
        match &self.state {
            State::Finished(remote) if self.outgoing.is_none() => Some(remote),
            _ => None,
        }
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::AwaitFirst => "AwaitFirst",
            State::AwaitSecond => "AwaitSecond",
            State::AwaitThird => "AwaitThird",
            State::Finished(_) => "Finished",
            State::Failed => "Failed",
        };
        f.debug_struct("Handshake")
            .field("state", &state)
            .field("incoming", &self.incoming.len())
            .finish_non_exhaustive()
    }
}

/// What a finished handshake has shown about the peer.
#[cfg(any(feature = "webrtc", feature = "websocket"))]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    /// See [`Handshake::peer_takes_labels`].
    pub(crate) takes_labels: bool,
}

/// The proven identity of a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RemoteIdentity {
    /// Its peer id.
    pub peer_id: PeerId,
    /// Its public key, of which the peer id is made.
    pub public_key: PublicKey,
}

/// The Noise handshake of a connection failed: it is not known who the peer is.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum NoiseError {
    /// Bytes came after the handshake had failed.
    #[error("the handshake has failed already")]
    AlreadyFailed,
    /// A message could not be decrypted: it was changed in transit, or the two sides have different
    /// prologues. With DTLS that means different certificates, as with a man in the middle.
    #[error("a message cannot be decrypted, or the peers do not see the same certificates")]
    Decrypt,
    /// The peer's public key is malformed or of an unsupported type. RSA keys need the cargo
    /// feature `rsa`.
    #[error("the peer has no valid identity: {0}")]
    InvalidIdentityKey(String),
    /// The payload of a message is not a valid protobuf message.
    #[error("the payload of a message is not valid")]
    InvalidPayload,
    /// The signature of the static key by the claimed identity is invalid.
    #[error("invalid signature by the claimed identity")]
    InvalidSignature,
    /// The peer sent a key of small order, which yields no shared secret.
    #[error("the peer sent a key of small order")]
    LowOrderKey,
    /// A message announced more than 4096 bytes.
    #[error("a handshake message of {0} bytes is longer than 4096")]
    MessageTooLong(usize),
    /// A message is too short for the keys that it must contain.
    #[error("a handshake message is too short")]
    MessageTooShort,
    /// The payload has no identity key or no signature.
    #[error("the peer sent no identity")]
    MissingIdentity,
    /// The local cryptography could not be set up, for example without randomness.
    #[error("the handshake cannot be set up: {0}")]
    Setup(String),
    /// Bytes follow the last message.
    #[error("bytes follow the last handshake message")]
    TrailingBytes,
    /// The peer proved another identity than the expected one.
    #[error("the peer is {got}, not {expected}")]
    UnexpectedPeer {
        /// The expected identity.
        expected: PeerId,
        /// The identity that the peer proved.
        got: PeerId,
    },
}

impl NoiseError {
    // Not `From`: that would put a type of `snow` in the public interface.
    fn from_snow(error: snow::Error) -> Self {
        match error {
            snow::Error::Decrypt => Self::Decrypt,
            snow::Error::Dh => Self::LowOrderKey,
            snow::Error::Input => Self::MessageTooShort,
            other => Self::Setup(other.to_string()),
        }
    }
}

/// Binds the handshake to the DTLS connection under it.
fn prologue(client: &Fingerprint, server: &Fingerprint) -> Vec<u8> {
    [
        PROLOGUE_PREFIX,
        &client.to_multihash(),
        &server.to_multihash(),
    ]
    .concat()
}

/// The bytes that an identity signs.
fn signed(static_key: &[u8]) -> Vec<u8> {
    [SIGNATURE_PREFIX, static_key].concat()
}

/// Moves bytes from `bytes` to `buffer` until `buffer` has `len`.
fn fill(buffer: &mut Vec<u8>, bytes: &mut &[u8], len: usize) {
    let missing = len.saturating_sub(buffer.len()).min(bytes.len());
    let (taken, rest) = bytes.split_at(missing);
    buffer.extend_from_slice(taken);
    *bytes = rest;
}

#[allow(missing_docs, unreachable_pub)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/anabranch.noise.rs"));
}

#[cfg(test)]
mod tests;
