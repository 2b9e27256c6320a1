//! The fingerprint of a certificate, which addresses contain.

use std::fmt;
use std::str::FromStr;

use sha2::Digest;
use sha2::Sha256;
use thiserror::Error;

/// Code of SHA2-256 in the multihash table.
const SHA2_256: u64 = 0x12;

/// Length of a SHA2-256 digest.
const DIGEST_LEN: usize = 32;

/// Maximum length of a text that is parsed as a certhash.
///
/// A SHA2-256 multihash has 273 characters in the longest multibase (base 2).
const MAX_CERTHASH_TEXT: usize = 300;

/// SHA2-256 hash of a DTLS certificate in DER.
///
/// `Display` writes the notation of SDP (`AF:12:...`), [`Fingerprint::to_certhash`] that of
/// multiaddrs (`uEi...`). Parsing accepts both.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Fingerprint([u8; DIGEST_LEN]);

impl Fingerprint {
    /// The fingerprint with this digest.
    pub const fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The fingerprint of a certificate in DER.
    pub fn of(certificate_der: &[u8]) -> Self {
        Self(Sha256::digest(certificate_der).into())
    }

    /// Decodes a multihash.
    ///
    /// # Errors
    /// [`FingerprintError`] unless it is SHA2-256.
    pub fn from_multihash(multihash: &[u8]) -> Result<Self, FingerprintError> {
        let (code, rest) = unsigned_varint::decode::u64(multihash)
            .map_err(|_| FingerprintError::InvalidMultihash)?;
        let (length, digest) =
            unsigned_varint::decode::u64(rest).map_err(|_| FingerprintError::InvalidMultihash)?;
        if u64::try_from(digest.len()) != Ok(length) {
            return Err(FingerprintError::InvalidMultihash);
        }
        if code != SHA2_256 {
            return Err(FingerprintError::UnsupportedHash(code));
        }
        <[u8; DIGEST_LEN]>::try_from(digest)
            .map(Self)
            .map_err(|_| FingerprintError::DigestLength(digest.len()))
    }

    /// Parses a certhash as in a multiaddr: a multihash in any multibase.
    ///
    /// # Errors
    /// [`FingerprintError`] unless it is SHA2-256.
    pub fn from_certhash(text: &str) -> Result<Self, FingerprintError> {
        if text.len() > MAX_CERTHASH_TEXT {
            return Err(FingerprintError::TooLong(text.len()));
        }
        let (_, multihash) =
            multibase::decode(text).map_err(|_| FingerprintError::InvalidMultibase)?;
        Self::from_multihash(&multihash)
    }

    /// The digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The multihash: code 0x12, length 0x20, digest.
    pub fn to_multihash(&self) -> Vec<u8> {
        [&[0x12, 0x20], &self.0[..]].concat()
    }

    /// The certhash for a multiaddr: the multihash in base64url, as by all deployed peers.
    pub fn to_certhash(&self) -> String {
        multibase::encode(multibase::Base::Base64Url, self.to_multihash())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// As in an SDP `fingerprint` attribute (RFC 8122, section 5): upper-case hex between colons.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(":")?;
            }
            write!(f, "{byte:02X}")?;
        }
        Ok(())
    }
}

#[cfg(feature = "serde")]
crate::identity::serialize_as_text!(Fingerprint, "a fingerprint");

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // No multibase has a colon in its alphabet.
        if !text.contains(':') {
            return Self::from_certhash(text);
        }
        let mut digest = [0; DIGEST_LEN];
        let mut pairs = text.split(':');
        for byte in &mut digest {
            let pair = pairs.next().ok_or(FingerprintError::InvalidHex)?;
            // `from_str_radix` alone would accept a sign.
            if pair.len() != 2 || !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(FingerprintError::InvalidHex);
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| FingerprintError::InvalidHex)?;
        }
        if pairs.next().is_some() {
            return Err(FingerprintError::InvalidHex);
        }
        Ok(Self(digest))
    }
}

/// Why a fingerprint could not be parsed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum FingerprintError {
    /// The multihash is SHA2-256, but its digest has another length than 32 bytes.
    #[error("a sha2-256 digest has 32 bytes, not {0}")]
    DigestLength(usize),
    /// The text between colons is not 32 bytes in hex.
    #[error("not 32 bytes as hex with colons between them")]
    InvalidHex,
    /// The text is not multibase.
    #[error("not multibase")]
    InvalidMultibase,
    /// The bytes are not a multihash.
    #[error("not a multihash")]
    InvalidMultihash,
    /// The text is longer than any certhash.
    #[error("a certhash does not have {0} characters")]
    TooLong(usize),
    /// The multihash has another hash function than SHA2-256.
    #[error("hash function 0x{0:x} is not sha2-256")]
    UnsupportedHash(u64),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn certhash_of_the_specification() {
        // The example address of the webrtc-direct specification.
        let certhash = "uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g";
        let fingerprint = Fingerprint::from_certhash(certhash).unwrap();
        assert_eq!(fingerprint.to_certhash(), certhash);
        assert_eq!(certhash.parse(), Ok(fingerprint));
        assert_eq!(fingerprint.to_multihash()[..2], [0x12, 0x20]);
        assert_eq!(
            Fingerprint::from_multihash(&fingerprint.to_multihash()),
            Ok(fingerprint)
        );
    }

    #[test]
    fn other_multibases_are_read() {
        let fingerprint = Fingerprint::from_bytes([0xa5; 32]);
        for base in [
            multibase::Base::Base2,
            multibase::Base::Base16Lower,
            multibase::Base::Base58Btc,
            multibase::Base::Base64Pad,
        ] {
            let text = multibase::encode(base, fingerprint.to_multihash());
            assert_eq!(text.parse(), Ok(fingerprint), "{text}");
        }
    }

    #[test]
    fn hex_of_rfc_8122() {
        let fingerprint = Fingerprint::of(b"certificate");
        let text = fingerprint.to_string();
        assert_eq!(text.len(), 95);
        assert_eq!(text.parse(), Ok(fingerprint));
        assert_eq!(text.to_lowercase().parse(), Ok(fingerprint));
        assert_eq!(format!("{fingerprint:?}"), format!("Fingerprint({text})"));
    }

    #[test]
    fn broken_texts() {
        let good = Fingerprint::from_bytes([1; 32]).to_string();
        let parse = |text: &str| text.parse::<Fingerprint>().unwrap_err();
        assert_eq!(parse(&good[3..]), FingerprintError::InvalidHex);
        assert_eq!(parse(&format!("{good}:00")), FingerprintError::InvalidHex);
        assert_eq!(
            parse(&good.replace("01", "+1")),
            FingerprintError::InvalidHex
        );
        assert_eq!(
            parse(&good.replace("01", "001")),
            FingerprintError::InvalidHex
        );
        assert_eq!(parse(""), FingerprintError::InvalidMultibase);
        assert_eq!(parse("u"), FingerprintError::InvalidMultihash);
        assert_eq!(parse("u="), FingerprintError::InvalidMultibase);
        assert_eq!(parse("\u{1f980}uEi"), FingerprintError::InvalidMultibase);
        assert_eq!(parse(&"u".repeat(301)), FingerprintError::TooLong(301));
    }

    #[test]
    fn broken_multihashes() {
        let read = |bytes: &[u8]| Fingerprint::from_multihash(bytes).unwrap_err();
        assert_eq!(read(&[]), FingerprintError::InvalidMultihash);
        assert_eq!(read(&[0x12]), FingerprintError::InvalidMultihash);
        assert_eq!(read(&[0xff; 12]), FingerprintError::InvalidMultihash);
        let with = |prefix: &[u8], len: usize| [prefix, &vec![0; len]].concat();
        assert_eq!(
            read(&with(&[0x12, 0x20], 31)),
            FingerprintError::InvalidMultihash
        );
        assert_eq!(
            read(&with(&[0x12, 0x20], 33)),
            FingerprintError::InvalidMultihash
        );
        assert_eq!(
            read(&with(&[0x12, 0x1f], 31)),
            FingerprintError::DigestLength(31)
        );
        assert_eq!(
            read(&with(&[0x13, 0x40], 64)),
            FingerprintError::UnsupportedHash(0x13)
        );
        // The code of SHA2-256 as an overlong varint.
        assert_eq!(
            read(&with(&[0x92, 0x00, 0x20], 32)),
            FingerprintError::InvalidMultihash
        );
    }

    proptest! {
        #![proptest_config(crate::random::cases(256))]

        #[test]
        fn no_input_panics(text in "\\PC*", bytes: Vec<u8>) {
            let _ = text.parse::<Fingerprint>();
            let _ = Fingerprint::from_multihash(&bytes);
        }

        #[test]
        fn all_notations_round_trip(digest: [u8; 32]) {
            let fingerprint = Fingerprint::from_bytes(digest);
            prop_assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
            prop_assert_eq!(fingerprint.to_certhash().parse(), Ok(fingerprint));
        }
    }
}
