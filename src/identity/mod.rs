//! Peer identities: key pair, public key and peer id.
//!
//! These are libp2p identities, encoded as in the libp2p `peer-ids` specification, so that a peer
//! has the same id in every libp2p implementation.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

#[cfg(feature = "transport")]
mod file;
#[cfg(feature = "transport")]
mod keys;
#[cfg(feature = "serde")]
mod text;

#[cfg(feature = "transport")]
pub use file::IdentityFileError;
#[cfg(feature = "transport")]
pub(crate) use keys::StaticKey;
#[cfg(feature = "transport")]
pub use keys::{Identity, IdentityError, PublicKey};

#[cfg(feature = "serde")]
pub(crate) use text::serialize_as_text;

/// Maximum length of a text that is parsed as a peer id.
///
/// The longest valid one, a CID of an identity multihash, has about 75 characters. Base58 decoding
/// takes quadratic time, so its input has to be limited.
const MAX_PEER_ID_TEXT: usize = 128;

/// Prefix of a peer id as a binary CID: version 1, codec `libp2p-key`.
const CID_PREFIX: [u8; 2] = [0x01, 0x72];

/// Multihash codes: the identity of a key, and the SHA-256 digest of a key.
const IDENTITY: u8 = 0x00;
const SHA2_256: u8 = 0x12;

/// Length of a SHA-256 digest.
const DIGEST_LEN: usize = 32;

/// peer-ids, section "Peer Ids": keys up to this length are inlined in the id.
const MAX_INLINE_KEY: usize = 42;

/// The id of a peer: its public key, or the hash of one that is too long to be inlined.
///
/// `Display` writes base58 (`12D3KooW...`, `Qm...`). Parsing accepts that, and CIDs (`bafz...`, in
/// any multibase).
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PeerId {
    // Not the type of `libp2p-identity`, which has room for every multihash: at 80 bytes, an error
    // with two of them makes every `Result` too large.
    code: u8,
    len: u8,
    /// Zero after `len`, so that equal ids have equal bytes.
    digest: [u8; MAX_INLINE_KEY],
}

impl PeerId {
    /// Uses at most `MAX_INLINE_KEY` bytes of the digest; every caller checks its length.
    fn new(code: u8, digest: &[u8]) -> Self {
        let mut id = Self {
            code,
            len: 0,
            digest: [0; MAX_INLINE_KEY],
        };
        for (to, from) in id.digest.iter_mut().zip(digest) {
            *to = *from;
            id.len += 1;
        }
        id
    }

    /// Decodes the binary form, a multihash.
    ///
    /// # Errors
    /// [`PeerIdError::InvalidMultihash`] and [`PeerIdError::DigestLength`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PeerIdError> {
        // Code and length are varints, but all valid ones have one byte.
        let [code @ (IDENTITY | SHA2_256), len, digest @ ..] = bytes else {
            return Err(PeerIdError::InvalidMultihash);
        };
        if digest.len() != usize::from(*len) {
            return Err(PeerIdError::InvalidMultihash);
        }
        let fits = match *code {
            IDENTITY => digest.len() <= MAX_INLINE_KEY,
            _ => digest.len() == DIGEST_LEN,
        };
        if !fits {
            return Err(PeerIdError::DigestLength(digest.len()));
        }
        Ok(Self::new(*code, digest))
    }

    /// The binary form, a multihash.
    pub fn to_bytes(self) -> Vec<u8> {
        let digest = self.digest.iter().take(self.len.into());
        [self.code, self.len]
            .iter()
            .chain(digest)
            .copied()
            .collect()
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({self})")
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&multibase::Base::Base58Btc.encode(self.to_bytes()))
    }
}

#[cfg(feature = "serde")]
serialize_as_text!(PeerId, "a peer id");

impl FromStr for PeerId {
    type Err = PeerIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_PEER_ID_TEXT {
            return Err(PeerIdError::TooLong(text.len()));
        }
        // peer-ids, section "Decoding": "1" and "Qm" begin base58, anything else is a CID.
        if text.starts_with('1') || text.starts_with("Qm") {
            let bytes = multibase::Base::Base58Btc
                .decode(text)
                .map_err(|_| PeerIdError::InvalidText)?;
            return Self::from_bytes(&bytes);
        }
        let (_, bytes) = multibase::decode(text).map_err(|_| PeerIdError::InvalidText)?;
        match bytes.strip_prefix(&CID_PREFIX) {
            Some(multihash) => Self::from_bytes(multihash),
            None => Err(PeerIdError::NotALibp2pKey),
        }
    }
}

/// Why a peer id could not be parsed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum PeerIdError {
    /// A hash does not have 32 bytes, or a key is too long to be inlined.
    #[error("invalid digest length of {0} bytes")]
    DigestLength(usize),
    /// The bytes are not a multihash, or not one of a peer id.
    #[error("not the multihash of a peer id")]
    InvalidMultihash,
    /// The text is neither base58 nor multibase.
    #[error("neither base58 nor a CID")]
    InvalidText,
    /// The text is a CID with another codec.
    #[error("not the CID of a libp2p key")]
    NotALibp2pKey,
    /// The text is longer than any valid peer id.
    #[error("{0} characters are too long for a peer id")]
    TooLong(usize),
}
