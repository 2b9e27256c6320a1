//! The DTLS certificate of an endpoint, whose hash is part of its addresses.
//!
//! It is self-signed, and its names have no meaning: the dialler compares its SHA2-256 hash with
//! the one in the address. An address is therefore valid only as long as the certificate is used.
//! [`Certificate::derive`] returns the same certificate for an identity on every start;
//! [`Certificate::generate`] with [`Certificate::to_pem`] is for applications that store it.

mod der;
mod fingerprint;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use p256::ecdsa::SigningKey;
use p256::pkcs8::DecodePrivateKey;
use p256::pkcs8::DecodePublicKey;
use p256::pkcs8::EncodePrivateKey;
use p256::pkcs8::SecretDocument;
use thiserror::Error;
use x509_cert::der::Decode;
use x509_cert::der::Encode;

use crate::identity::Identity;

pub use fingerprint::Fingerprint;
pub use fingerprint::FingerprintError;

/// The HKDF labels of a derived certificate. An attempt counter byte follows the first.
const KEY_DOMAIN: &[u8] = b"anabranch webrtc-direct certificate v1 key";
const SERIAL_DOMAIN: &[u8] = b"anabranch webrtc-direct certificate v1 serial";

const PEM_CERTIFICATE: &str = "CERTIFICATE";
const PEM_PRIVATE_KEY: &str = "PRIVATE KEY";
/// The label and the extra block of rust-libp2p's `libp2p-webrtc`. Its files are supported so that
/// a node that migrates keeps its address.
const PEM_PRIVATE_KEY_RUST: &str = "PRIVATE_KEY";
const PEM_EXPIRES_RUST: &str = "EXPIRES";

/// A self-signed ECDSA P-256 certificate with its private key.
///
/// P-256 is the one kind that all browsers and deployed peers support. Cloning is cheap. `Debug`
/// does not show the private key.
#[derive(Clone)]
pub struct Certificate {
    inner: Arc<Inner>,
}

struct Inner {
    der: Vec<u8>,
    private_key: SecretDocument,
    fingerprint: Fingerprint,
    not_after: SystemTime,
}

impl Certificate {
    /// Generates a certificate with a random key, valid from 2020 to 2120.
    ///
    /// # Panics
    ///
    /// If the operating system provides no randomness.
    pub fn generate() -> Self {
        // Rejection sampling: every value below the order of the curve is equally likely, and the
        // rest, one of 2^32, is drawn again.
        let key = loop {
            if let Ok(key) = SigningKey::from_slice(&rand::random::<[u8; 32]>()) {
                break key;
            }
        };
        Self::new(&key, rand::random())
    }

    /// Derives the certificate of an identity: always the same, byte for byte, so that the address
    /// of a listener survives restarts and only the identity has to be stored.
    ///
    /// Key and serial number are derived by HKDF-SHA256 (RFC 5869) from the secret key of the
    /// identity, without salt and with these infos:
    ///
    /// - `anabranch webrtc-direct certificate v1 key` ++ n for the private key, n being the first
    ///   of the bytes 0, 1, ... that gives a valid P-256 scalar (FIPS 186-5, A.2.2);
    /// - `anabranch webrtc-direct certificate v1 serial`, its first 16 bytes, for the serial
    ///   number.
    ///
    /// The signature is deterministic (RFC 6979), everything else fixed. The certificate reveals
    /// nothing about the secret key of the identity, but that key reveals the private key of the
    /// certificate.
    pub fn derive(identity: &Identity) -> Self {
        let key = (0..=u8::MAX)
            .find_map(|attempt| {
                let candidate = identity.derive_secret(&[KEY_DOMAIN, &[attempt]].concat());
                SigningKey::from_slice(&candidate).ok()
            })
            // unwrap: each attempt fails with a probability of 2^-32, so all of them do in 2^-8192.
            .expect("one of 256 hashes is a p-256 scalar");
        let mut serial = [0; 16];
        serial.copy_from_slice(&identity.derive_secret(SERIAL_DOMAIN)[..16]);
        Self::new(&key, serial)
    }

    fn new(key: &SigningKey, serial: [u8; 16]) -> Self {
        let der = der::self_signed(key, serial);
        // unwrap: the encoding has a fixed, small size; only an overflow of a length could fail.
        let private_key = key
            .to_pkcs8_der()
            .expect("a p-256 key can be encoded as pkcs#8");
        Self {
            inner: Arc::new(Inner {
                fingerprint: Fingerprint::of(&der),
                der,
                private_key,
                not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(der::NOT_AFTER_UNIX),
            }),
        }
    }

    /// Parses a certificate and its key in PEM, in any order: one `CERTIFICATE` block, and one
    /// `PRIVATE KEY` block with PKCS#8.
    ///
    /// Files of rust-libp2p's `libp2p-webrtc` are supported too. The validity period is not
    /// checked, since peers compare the hash only; see [`Certificate::not_after`].
    ///
    /// # Errors
    /// [`CertificateError`] if the text is not such a pair.
    pub fn from_pem(pem: &str) -> Result<Self, CertificateError> {
        let blocks = pem::parse_many(pem)
            .map_err(|error| CertificateError::InvalidPem(error.to_string()))?;
        let mut certificate = None;
        let mut private_key = None;
        for block in blocks {
            let slot = match block.tag() {
                PEM_CERTIFICATE => &mut certificate,
                PEM_PRIVATE_KEY | PEM_PRIVATE_KEY_RUST => &mut private_key,
                PEM_EXPIRES_RUST => continue,
                other => return Err(CertificateError::UnexpectedBlock(other.to_owned())),
            };
            if slot.is_some() {
                return Err(CertificateError::DuplicateBlock(block.tag().to_owned()));
            }
            *slot = Some(block.into_contents());
        }
        let der = certificate.ok_or(CertificateError::MissingBlock(PEM_CERTIFICATE))?;
        let private_key = private_key.ok_or(CertificateError::MissingBlock(PEM_PRIVATE_KEY))?;

        let key = p256::SecretKey::from_pkcs8_der(&private_key)
            .map_err(|error| CertificateError::InvalidPrivateKey(error.to_string()))?;
        let parsed = x509_cert::Certificate::from_der(&der)
            .map_err(|error| CertificateError::InvalidCertificate(error.to_string()))?;
        let tbs = parsed.tbs_certificate();
        let public_key = tbs
            .subject_public_key_info()
            .to_der()
            .map_err(|error| CertificateError::InvalidCertificate(error.to_string()))?;
        let public_key = p256::PublicKey::from_public_key_der(&public_key)
            .map_err(|error| CertificateError::UnsupportedPublicKey(error.to_string()))?;
        if public_key != key.public_key() {
            return Err(CertificateError::KeyMismatch);
        }
        let not_after = SystemTime::UNIX_EPOCH
            .checked_add(tbs.validity().not_after.to_unix_duration())
            .ok_or_else(|| {
                CertificateError::InvalidCertificate("not after: out of range".into())
            })?;
        // Re-encoded, so that the key for DTLS always includes the public key.
        let private_key = key
            .to_pkcs8_der()
            .map_err(|error| CertificateError::InvalidPrivateKey(error.to_string()))?;
        Ok(Self {
            inner: Arc::new(Inner {
                fingerprint: Fingerprint::of(&der),
                der,
                private_key,
                not_after,
            }),
        })
    }

    /// The certificate and its **private key** in PEM: a secret.
    pub fn to_pem(&self) -> String {
        let line_feed = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        pem::encode_many_config(
            &[
                pem::Pem::new(PEM_CERTIFICATE, self.der()),
                pem::Pem::new(PEM_PRIVATE_KEY, self.private_key()),
            ],
            line_feed,
        )
    }

    /// The hash that is part of the addresses.
    pub fn fingerprint(&self) -> Fingerprint {
        self.inner.fingerprint
    }

    /// The end of the validity.
    ///
    /// Browsers and libp2p peers do not look at it in WebRTC.
    pub fn not_after(&self) -> SystemTime {
        self.inner.not_after
    }

    /// The certificate in DER.
    pub(crate) fn der(&self) -> &[u8] {
        &self.inner.der
    }

    /// The private key in PKCS#8 DER.
    pub(crate) fn private_key(&self) -> &[u8] {
        self.inner.private_key.as_bytes()
    }
}

/// The certificate as engines take it.
#[cfg(feature = "webrtc")]
impl From<&Certificate> for anabranch_rtc::Certificate {
    fn from(certificate: &Certificate) -> Self {
        Self {
            der: certificate.der().to_vec(),
            private_key: certificate.private_key().to_vec(),
        }
    }
}

/// Initializes the cryptography, so that the first handshake of a process is as fast as the others.
#[cfg(feature = "webrtc")]
pub(crate) fn warm_up() {
    anabranch_rtc::dtls::warm_up((&Certificate::generate()).into());
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("fingerprint", &self.inner.fingerprint)
            .field("not_after", &self.inner.not_after)
            .finish_non_exhaustive()
    }
}

/// Why a certificate could not be parsed from PEM.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum CertificateError {
    /// There are two blocks of one kind.
    #[error("there is more than one pem block {0:?}")]
    DuplicateBlock(String),
    /// The certificate is not X.509 in DER.
    #[error("the certificate is not x.509: {0}")]
    InvalidCertificate(String),
    /// The text is not PEM.
    #[error("not pem: {0}")]
    InvalidPem(String),
    /// The private key is not a P-256 key in PKCS#8.
    #[error("the private key is not pkcs#8 with an ecdsa p-256 key: {0}")]
    InvalidPrivateKey(String),
    /// The private key belongs to another certificate.
    #[error("the private key is not that of the certificate")]
    KeyMismatch,
    /// A block is missing.
    #[error("there is no pem block {0:?}")]
    MissingBlock(&'static str),
    /// A block of another kind, for example `EC PRIVATE KEY`, which is not PKCS#8.
    #[error("the pem block {0:?} is neither \"CERTIFICATE\" nor \"PRIVATE KEY\"")]
    UnexpectedBlock(String),
    /// The certificate has another kind of key.
    #[error("the certificate is not for an ecdsa p-256 key: {0}")]
    UnsupportedPublicKey(String),
}

#[cfg(test)]
mod tests;
