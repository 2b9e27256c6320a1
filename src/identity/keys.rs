//! Key pairs and public keys of peers.

use std::fmt;
use std::sync::{Arc, OnceLock};

use libp2p_identity::{KeyType, Keypair};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{IDENTITY, MAX_INLINE_KEY, PeerId, SHA2_256};

/// The key pair of this peer.
///
/// Keep it with [`Identity::load_or_generate`], or store [`Identity::to_protobuf`] yourself: then
/// the peer id is the same after a restart, and so is the DTLS certificate of
/// [`Certificate::derive`].
///
/// Cloning copies the key. `Debug` shows the peer id only. Two with the same public key are equal.
///
/// [`Certificate::derive`]: crate::certificate::Certificate::derive
#[derive(Clone)]
pub struct Identity {
    keypair: Keypair,
    /// Of Noise, made with the first handshake.
    static_key: Arc<OnceLock<StaticKey>>,
}

/// A static key of Noise, signed by an identity.
pub(crate) struct StaticKey {
    pub(crate) private: Vec<u8>,
    pub(crate) signature: Vec<u8>,
}

impl Identity {
    fn of(keypair: Keypair) -> Self {
        Self {
            keypair,
            static_key: Arc::default(),
        }
    }

    /// The static key for Noise, which `make` makes for the first handshake.
    pub(crate) fn static_key<E>(
        &self,
        make: impl FnOnce() -> Result<StaticKey, E>,
    ) -> Result<&StaticKey, E> {
        match self.static_key.get() {
            Some(key) => Ok(key),
            None => {
                let made = make()?;
                // Another task may have been faster.
                Ok(self.static_key.get_or_init(|| made))
            }
        }
    }

    /// Generates a random Ed25519 identity.
    pub fn generate() -> Self {
        Self::of(Keypair::generate_ed25519())
    }

    /// The Ed25519 identity with this secret key (the seed of RFC 8032).
    pub fn from_ed25519_seed(seed: [u8; 32]) -> Self {
        // unwrap: fails only for another length, and every 32 bytes are a seed.
        Self::of(Keypair::ed25519_from_bytes(seed).expect("an ed25519 seed is any 32 bytes"))
    }

    /// Decodes a libp2p private key in protobuf, the format in which libp2p implementations store
    /// and exchange them.
    ///
    /// Supports Ed25519, secp256k1 and ECDSA (P-256) keys. RSA keys are supported for *remote*
    /// peers only (cargo feature `rsa`).
    ///
    /// # Errors
    /// [`IdentityError::InvalidPrivateKey`] and [`IdentityError::UnsupportedPrivateKey`].
    pub fn from_protobuf(bytes: &[u8]) -> Result<Self, IdentityError> {
        let keypair = Keypair::from_protobuf_encoding(bytes)
            .map_err(|error| IdentityError::InvalidPrivateKey(describe(&error)))?;
        match keypair.key_type() {
            KeyType::Ed25519 | KeyType::Secp256k1 | KeyType::Ecdsa => Ok(Self::of(keypair)),
            other => Err(IdentityError::UnsupportedPrivateKey(other.to_string())),
        }
    }

    /// Encodes the **private key** in protobuf: a secret.
    pub fn to_protobuf(&self) -> Vec<u8> {
        // unwrap: only RSA keys can not be encoded, and the constructors refuse those.
        self.keypair
            .to_protobuf_encoding()
            .expect("every key type but rsa can be encoded")
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        // unwrap: only signing with an RSA key can fail, and the constructors refuse those.
        self.keypair
            .sign(message)
            .expect("every key type but rsa can sign")
    }

    /// The id by which peers know this identity.
    pub fn peer_id(&self) -> PeerId {
        self.public_key().peer_id()
    }

    /// The public key.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.keypair.public())
    }

    /// HKDF-SHA256 over the secret key, without salt and with `domain` as info.
    pub(crate) fn derive_secret(&self, domain: &[u8]) -> [u8; 32] {
        // unwrap: only RSA keys have no derivation, and the constructors refuse those.
        self.keypair
            .derive_secret(domain)
            .expect("every key type but rsa has a secret to derive from")
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.keypair.public() == other.keypair.public()
    }
}

impl Eq for Identity {}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("peer_id", &self.peer_id())
            .finish_non_exhaustive()
    }
}

/// The public key of a peer.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PublicKey(libp2p_identity::PublicKey);

impl PublicKey {
    /// Decodes a libp2p public key in protobuf.
    ///
    /// RSA keys require the cargo feature `rsa`.
    ///
    /// # Errors
    /// [`IdentityError::InvalidPublicKey`].
    pub fn from_protobuf(bytes: &[u8]) -> Result<Self, IdentityError> {
        libp2p_identity::PublicKey::try_decode_protobuf(bytes)
            .map(Self)
            .map_err(|error| IdentityError::InvalidPublicKey(describe(&error)))
    }

    /// Encodes the key in protobuf.
    pub fn to_protobuf(&self) -> Vec<u8> {
        self.0.encode_protobuf()
    }

    /// Whether `signature` is a valid signature of `message` by the private key.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.verify(message, signature)
    }

    /// The id of the peer with this key.
    pub fn peer_id(&self) -> PeerId {
        let key = self.to_protobuf();
        if key.len() <= MAX_INLINE_KEY {
            PeerId::new(IDENTITY, &key)
        } else {
            PeerId::new(SHA2_256, &Sha256::digest(&key))
        }
    }
}

/// Why a key could not be decoded.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum IdentityError {
    /// The bytes are not the protobuf encoding of a private key.
    #[error("not a libp2p private key: {0}")]
    InvalidPrivateKey(String),
    /// The bytes are not the protobuf encoding of a public key.
    #[error("not a libp2p public key: {0}")]
    InvalidPublicKey(String),
    /// This type of key is not supported for the local identity.
    #[error("a private key of type {0} can not be an identity")]
    UnsupportedPrivateKey(String),
}

/// The messages of an error and its sources, in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::{CID_PREFIX, PeerIdError};

    /// From the test vectors of the libp2p `peer-ids` specification.
    const SPEC_ED25519_PRIVATE: &str = "080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2\
        e148ec9da60fee7d1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e";
    const SPEC_ED25519_PUBLIC: &str =
        "080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e";
    const SPEC_SECP256K1_PRIVATE: &str =
        "0802122053DADF1D5A164D6B4ACDB15E24AA4C5B1D3461BDBD42ABEDB0A4404D56CED8FB";
    const SPEC_SECP256K1_PUBLIC: &str =
        "08021221037777e994e452c21604f91de093ce415f5432f701dd8cd1a7a6fea0e630bfca99";
    const SPEC_ECDSA_PRIVATE: &str = "08031279307702010104203E5B1FE9712E6C314942A750BD67485DE3C1EF\
        E85B1BFB520AE8F9AE3DFA4A4CA00A06082A8648CE3D030107A14403420004DE3D300FA36AE0E8F5D530899D83\
        ABAB44ABF3161F162A4BC901D8E6ECDA020E8B6D5F8DA30525E71D6851510C098E5C47C646A597FB4DCEC034E9\
        F77C409E62";
    const SPEC_ECDSA_PUBLIC: &str = "0803125b3059301306072a8648ce3d020106082a8648ce3d03010703420004\
        de3d300fa36ae0e8f5d530899d83abab44abf3161f162a4bc901d8e6ecda020e8b6d5f8da30525e71d6851510c\
        098e5c47c646a597fb4dcec034e9f77c409e62";

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
            .collect()
    }

    /// A key of 2 048 bits and a signature from OpenSSL; the id is the SHA-256 of the key in
    /// base58.
    const RSA_PUBLIC: &str = "080012a60230820122300d06092a864886f70d01010105000382010f0030\
        82010a0282010100c87a5fd66bba18932634a90a73467c4ea8e7a561a88d5c81267899bc0ddaa149ae5456f7\
        d7e5254f28168eff8b577e5cfb6b6226d88838b775bed80efcbb09b8cfd0fbe163df22011aa7e82d1395042a\
        478d0adbdf1ccd18f8e7640383bab56625859daef2816bb3177bf1ff03355b46414de6be891ce3e9f63ffc2b\
        37d40519c18c7fd41096b2b25454cb6eeb1c020d5cac339cac27f86b4e8744e06a88c4435a8eeb8a4a09fd66\
        c020cd132950442517ea515ea4fde826b31f71c3e79201a919505fab35eb878d3356b5022fa6fb5772c8dcfe\
        d34b431a2fb8c8384a2d490138d2e9e2ea7156c9a5dbf9911c41280b2e99b4db0d39cc3717d23a6690bcf28b\
        0203010001";
    #[cfg(feature = "rsa")]
    const RSA_SIGNATURE: &str = "0b68a70dbb4bd98658b9562ce93afde752cc367121175ae978e61d9f8b8d\
        cc2e00ae9787bedb7cf6b361270fdb088f66345b2083daac1464ac04905781ab93d777e14a4c289cc48932c7\
        9c7df24d5f761b979b75670733a81ea8205b5e308a36b7697d3df8cb35561376209da373436f17e98cb336b4\
        88069329e0b96a83780ebebfd3a7515a347f3b5fa0007707c0f26651113018b8580695a4be7c9b653cf0e68c\
        7e51eef4a5475c86e7df17bb2524fcdc3d50994fdb188ccb79f9781cdab348aec494cc038b6f8067d81d205a\
        382d5b54e48c60be79497a46b979d716f761159c8eba0c6c698e2695e2edbeeabf9bd3c3c7da1739283464d2\
        aa44c7df66f1";
    #[cfg(feature = "rsa")]
    const RSA_MESSAGE: &[u8] = b"an anabranch joins the river again";
    #[cfg(feature = "rsa")]
    const RSA_ID: &str = "QmTU8xE3HAQxbWFE4s9pSH6wGH8FFxcug9vdKgUgx7huEA";

    #[test]
    #[cfg(feature = "rsa")]
    fn a_peer_with_an_rsa_key_is_known_and_believed() {
        let key = PublicKey::from_protobuf(&hex(RSA_PUBLIC)).unwrap();
        assert_eq!(key.peer_id().to_string(), RSA_ID);
        assert_eq!(key.to_protobuf(), hex(RSA_PUBLIC));
        let mut signature = hex(RSA_SIGNATURE);
        assert!(key.verify(RSA_MESSAGE, &signature));
        signature[100] ^= 1;
        assert!(!key.verify(RSA_MESSAGE, &signature));
    }

    #[test]
    #[cfg(not(feature = "rsa"))]
    fn an_rsa_key_is_refused_without_the_feature() {
        assert!(PublicKey::from_protobuf(&hex(RSA_PUBLIC)).is_err());
    }

    #[test]
    fn private_keys_of_the_specification() {
        for (private, public) in [
            (SPEC_ED25519_PRIVATE, SPEC_ED25519_PUBLIC),
            (SPEC_SECP256K1_PRIVATE, SPEC_SECP256K1_PUBLIC),
            (SPEC_ECDSA_PRIVATE, SPEC_ECDSA_PUBLIC),
        ] {
            let identity = Identity::from_protobuf(&hex(private)).unwrap();
            assert_eq!(identity.to_protobuf(), hex(private));
            assert_eq!(identity.public_key().to_protobuf(), hex(public));
            let key = PublicKey::from_protobuf(&hex(public)).unwrap();
            assert_eq!(key, identity.public_key());
            let id = identity.peer_id();
            assert_eq!(key.peer_id(), id);
            let reference = key.0.to_peer_id();
            assert_eq!(id.to_string(), reference.to_string());
            assert_eq!(id.to_bytes(), reference.to_bytes());
            assert_eq!(PeerId::from_bytes(&id.to_bytes()), Ok(id));
            assert_eq!(id.to_string().parse(), Ok(id));
            let signature = identity.sign(b"message");
            assert!(key.verify(b"message", &signature));
            assert!(!key.verify(b"massage", &signature));
            assert!(!key.verify(b"message", b""));
        }
    }

    #[test]
    fn seed_is_the_secret_half_of_the_specification_key() {
        let private = hex(SPEC_ED25519_PRIVATE);
        let seed: [u8; 32] = private[4..36].try_into().unwrap();
        let identity = Identity::from_ed25519_seed(seed);
        assert_eq!(identity.to_protobuf(), private);
    }

    #[test]
    fn generated_identities_differ() {
        assert_ne!(
            Identity::generate().peer_id(),
            Identity::generate().peer_id()
        );
    }

    #[test]
    fn garbage_is_not_a_key() {
        assert!(matches!(
            Identity::from_protobuf(b"garbage"),
            Err(IdentityError::InvalidPrivateKey(_))
        ));
        assert!(matches!(
            PublicKey::from_protobuf(&[8, 1, 0x12, 1, 0]),
            Err(IdentityError::InvalidPublicKey(_))
        ));
        // A point off the curve.
        let mut public = hex(SPEC_SECP256K1_PUBLIC);
        public[5..].fill(0xff);
        assert!(PublicKey::from_protobuf(&public).is_err());
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", Identity::from_ed25519_seed([7; 32]));
        let peer = Identity::from_ed25519_seed([7; 32]).peer_id();
        assert_eq!(shown, format!("Identity {{ peer_id: PeerId({peer}), .. }}"));
    }

    #[test]
    fn peer_ids_in_both_notations() {
        // peer-ids specification, section "String representation".
        let legacy = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N";
        let cid = "bafzbeie5745rpv2m6tjyuugywy4d5ewrqgqqhfnf445he3omzpjbx5xqxe";
        let id: PeerId = legacy.parse().unwrap();
        assert_eq!(cid.parse::<PeerId>().unwrap(), id);
        assert_eq!(id.to_string(), legacy);

        let id = Identity::from_ed25519_seed([1; 32]).peer_id();
        assert!(id.to_string().starts_with("12D3KooW"));
        assert_eq!(id.to_string().parse::<PeerId>().unwrap(), id);
        assert_eq!(PeerId::from_bytes(&id.to_bytes()).unwrap(), id);
        let cid = [&CID_PREFIX, &id.to_bytes()[..]].concat();
        let cid = multibase::encode(multibase::Base::Base36Lower, cid);
        assert_eq!(cid.parse::<PeerId>().unwrap(), id);
    }

    #[test]
    fn broken_peer_ids() {
        let parse = |text: &str| text.parse::<PeerId>().unwrap_err();
        assert_eq!(parse(""), PeerIdError::InvalidText);
        assert_eq!(parse("Qm0OIl"), PeerIdError::InvalidText);
        assert_eq!(parse("\u{1f980}"), PeerIdError::InvalidText);
        assert_eq!(parse(&"1".repeat(129)), PeerIdError::TooLong(129));
        // CID of raw data.
        assert_eq!(parse("f015512200000"), PeerIdError::NotALibp2pKey);

        let read = |prefix: &[u8], len: usize| {
            PeerId::from_bytes(&[prefix, &vec![1; len]].concat()).unwrap_err()
        };
        assert_eq!(read(&[], 0), PeerIdError::InvalidMultihash);
        assert_eq!(read(&[0x00], 0), PeerIdError::InvalidMultihash);
        // SHA-512.
        assert_eq!(read(&[0x13, 0x40], 64), PeerIdError::InvalidMultihash);
        assert_eq!(read(&[0x12, 0x10], 16), PeerIdError::DigestLength(16));
        assert_eq!(read(&[0x00, 43], 43), PeerIdError::DigestLength(43));
        assert_eq!(read(&[0x12, 0x20], 31), PeerIdError::InvalidMultihash);
        // Bytes after the digest, more than a u8 can count.
        assert_eq!(read(&[0x12, 0x20], 32 + 256), PeerIdError::InvalidMultihash);
    }

    proptest! {
        #![proptest_config(crate::random::cases(256))]

        #[test]
        fn no_input_panics(text in "\\PC*", bytes: Vec<u8>) {
            let _ = text.parse::<PeerId>();
            let _ = PeerId::from_bytes(&bytes);
            let _ = PublicKey::from_protobuf(&bytes);
            let _ = Identity::from_protobuf(&bytes);
        }

        #[test]
        fn what_is_a_peer_id_is_one_to_libp2p_too(
            code in prop_oneof![Just(0_u8), Just(0x12), any::<u8>()],
            digest in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let bytes = [&[code, digest.len() as u8], &digest[..]].concat();
            let reference = libp2p_identity::PeerId::from_bytes(&bytes);
            match PeerId::from_bytes(&bytes) {
                Ok(id) => {
                    prop_assert_eq!(id.to_string(), reference.unwrap().to_base58());
                    prop_assert_eq!(id.to_bytes(), bytes);
                }
                // libp2p-identity accepts truncated digests.
                Err(PeerIdError::DigestLength(_)) if code == SHA2_256 => {}
                Err(_) => prop_assert!(reference.is_err()),
            }
        }

        #[test]
        fn every_seed_is_an_identity(seed: [u8; 32]) {
            let identity = Identity::from_ed25519_seed(seed);
            let again = Identity::from_protobuf(&identity.to_protobuf()).unwrap();
            prop_assert_eq!(again.peer_id(), identity.peer_id());
        }
    }
}
