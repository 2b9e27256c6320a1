//! HMAC-SHA1 for STUN (RFC 8489 section 14.5), by the crypto library of DTLS.

use aws_lc_rs::hmac;
use is::Sha1HmacProvider;

/// For the ICE agent.
#[derive(Debug)]
pub(crate) struct Hmac;

pub(crate) static HMAC: Hmac = Hmac;

impl Sha1HmacProvider for Hmac {
    fn sha1_hmac(&self, key: &[u8], payloads: &[&[u8]]) -> [u8; 20] {
        sha1_hmac(key, payloads)
    }
}

/// HMAC-SHA1 over the concatenation of `parts`, for MESSAGE-INTEGRITY of STUN.
pub fn sha1_hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 20] {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
    let mut context = hmac::Context::with_key(&key);
    for part in parts {
        context.update(part);
    }
    let mut result = [0; 20];
    result.copy_from_slice(context.sign().as_ref());
    result
}
