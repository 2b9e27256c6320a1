//! Encodes self-signed certificates.
//!
//! By hand and not with an X.509 library, since the addresses of listeners depend on every byte: an
//! update of a dependency must not change them. The fields are those of the certificates of
//! libwebrtc: version 3, no extensions, the common name `WebRTC`.

use p256::ecdsa::Signature;
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// Context-specific, constructed, 0: the version of a `TBSCertificate` (RFC 5280, section 4.1).
const EXPLICIT_0: u8 = 0xa0;

/// 1.2.840.10045.4.3.2, `ecdsa-with-SHA256`.
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// 1.2.840.10045.2.1, `id-ecPublicKey`.
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// 1.2.840.10045.3.1.7, `prime256v1`.
const PRIME256V1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// 2.5.4.3, `commonName`.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The same common name as in the certificates of browsers, which reveals nothing to an observer.
const NAME: &[u8] = b"WebRTC";

// A fixed and long validity: the certificate must not depend on the clock, and users complain about
// addresses that expire. RFC 5280, section 4.1.2.5: years from 2050 on are `GeneralizedTime`.
const NOT_BEFORE: &[u8] = b"200101000000Z";
const NOT_AFTER: &[u8] = b"21200101000000Z";

/// [`NOT_AFTER`] in seconds since 1970.
pub(super) const NOT_AFTER_UNIX: u64 = 4_733_510_400;

/// A certificate for the public key of `key`, signed with `key`.
///
/// Serial numbers must be unique: NSS (Firefox) rejects a second certificate with the same issuer
/// and serial number, and the issuer is always the same here.
pub(super) fn self_signed(key: &SigningKey, mut serial: [u8; 16]) -> Vec<u8> {
    // RFC 5280, section 4.1.2.2: positive. The first bits are 01, so that it is positive, and has
    // no leading zeros, which DER forbids.
    serial[0] = serial[0] & 0x7f | 0x40;

    let algorithm = tlv(SEQUENCE, &[&tlv(OID, &[ECDSA_WITH_SHA256])]);
    let common_name = tlv(
        SEQUENCE,
        &[&tlv(OID, &[COMMON_NAME]), &tlv(UTF8_STRING, &[NAME])],
    );
    let name = tlv(SEQUENCE, &[&tlv(SET, &[&common_name])]);
    let validity = tlv(
        SEQUENCE,
        &[
            &tlv(UTC_TIME, &[NOT_BEFORE]),
            &tlv(GENERALIZED_TIME, &[NOT_AFTER]),
        ],
    );
    let point = key.verifying_key().to_sec1_point(false);
    let public_key = tlv(
        SEQUENCE,
        &[
            &tlv(
                SEQUENCE,
                &[&tlv(OID, &[EC_PUBLIC_KEY]), &tlv(OID, &[PRIME256V1])],
            ),
            // The first byte of a bit string counts the unused bits of the last one.
            &tlv(BIT_STRING, &[&[0], point.as_bytes()]),
        ],
    );
    let to_be_signed = tlv(
        SEQUENCE,
        &[
            // Version 3 is 2.
            &tlv(EXPLICIT_0, &[&tlv(INTEGER, &[&[2]])]),
            &tlv(INTEGER, &[&serial]),
            &algorithm,
            &name,
            &validity,
            &name,
            &public_key,
        ],
    );
    // Deterministic (RFC 6979).
    let signature: Signature = key.sign(&to_be_signed);
    tlv(
        SEQUENCE,
        &[
            &to_be_signed,
            &algorithm,
            &tlv(BIT_STRING, &[&[0], signature.to_der().as_bytes()]),
        ],
    )
}

/// Encodes tag, length and value (X.690, sections 8.1.3 and 10.1), the value in parts.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let len = parts.iter().map(|part| part.len()).sum::<usize>();
    let mut out = Vec::with_capacity(len + 4);
    out.push(tag);
    match len {
        0..0x80 => out.push(len as u8),
        0x80..0x100 => out.extend([0x81, len as u8]),
        // The whole certificate has less than 400 bytes.
        _ => {
            out.push(0x82);
            out.extend((len as u16).to_be_bytes());
        }
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}
