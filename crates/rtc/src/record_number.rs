//! Record number encryption of DTLS 1.3 (RFC 9147 section 4.2.3) without a key setup in the crypto
//! library for each record.
//!
//! The number of every record is masked with one AES block. For each, dimpl's provider creates an
//! aws-lc cipher: allocated, initialised, used for 16 bytes, wiped and freed, which takes 6 % of
//! the time of a receiver. Its interface has no place for a key that is set up once, but a key
//! schedule on the stack takes a few dozen nanoseconds.

use aes::cipher::{Block, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes256};
use dimpl::CryptoError;
use dimpl::crypto::{
    Cipher, CryptoProvider, Dtls13CipherSuite, HashAlgorithm, SupportedDtls13CipherSuite,
};

use super::opening::{Watched, note_number_key};

/// A cipher suite with a faster mask of the record number, whose keys can be watched
/// (`opening.rs`).
#[derive(Debug)]
struct WithQuickMask(&'static dyn SupportedDtls13CipherSuite);

/// The key schedule for the numbers of one epoch and direction.
pub(super) enum Mask {
    Aes128(Aes128),
    Aes256(Aes256),
}

impl Mask {
    /// `None` for other suites than those with AES.
    pub(super) fn new(suite: Dtls13CipherSuite, key: &[u8]) -> Option<Self> {
        match suite {
            Dtls13CipherSuite::AES_128_GCM_SHA256 => {
                Aes128::new_from_slice(key).ok().map(Self::Aes128)
            }
            Dtls13CipherSuite::AES_256_GCM_SHA384 => {
                Aes256::new_from_slice(key).ok().map(Self::Aes256)
            }
            _ => None,
        }
    }

    /// What is XORed with the number, for a sample of the record.
    pub(super) fn of(&self, sample: &[u8; 16]) -> [u8; 16] {
        let mut block = *sample;
        match self {
            Self::Aes128(aes) => aes.encrypt_block(<&mut Block<Aes128>>::from(&mut block)),
            Self::Aes256(aes) => aes.encrypt_block(<&mut Block<Aes256>>::from(&mut block)),
        }
        block
    }
}

impl SupportedDtls13CipherSuite for WithQuickMask {
    fn suite(&self) -> Dtls13CipherSuite {
        self.0.suite()
    }

    fn hash_algorithm(&self) -> HashAlgorithm {
        self.0.hash_algorithm()
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    fn iv_len(&self) -> usize {
        self.0.iv_len()
    }

    fn tag_len(&self) -> usize {
        self.0.tag_len()
    }

    fn min_protected_fragment_len(&self) -> usize {
        self.0.min_protected_fragment_len()
    }

    fn create_cipher(&self, key: &[u8]) -> Result<Box<dyn Cipher>, CryptoError> {
        let cipher = self.0.create_cipher(key)?;
        Ok(Watched::wrap(cipher, self.suite(), key))
    }

    fn encrypt_sn(&self, sn_key: &[u8], sample: &[u8; 16]) -> [u8; 16] {
        note_number_key(sn_key);
        match Mask::new(self.suite(), sn_key) {
            Some(mask) => mask.of(sample),
            None => self.0.encrypt_sn(sn_key, sample),
        }
    }
}

/// dimpl's aws-lc provider with these suites. Leaks a few words: to be called once.
pub(super) fn crypto_provider() -> CryptoProvider {
    let provider = dimpl::crypto::aws_lc_rs::default_provider();
    let suites: Vec<&'static dyn SupportedDtls13CipherSuite> = provider
        .dtls13_cipher_suites
        .iter()
        .map(|suite| {
            let suite: &'static WithQuickMask = Box::leak(Box::new(WithQuickMask(*suite)));
            suite as &'static dyn SupportedDtls13CipherSuite
        })
        .collect();
    CryptoProvider {
        dtls13_cipher_suites: suites.leak(),
        ..provider
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_masks_as_the_crypto_library_does() {
        let quick = crypto_provider();
        let plain = dimpl::crypto::aws_lc_rs::default_provider();
        assert_eq!(
            quick.dtls13_cipher_suites.len(),
            plain.dtls13_cipher_suites.len()
        );
        for (quick, plain) in quick
            .dtls13_cipher_suites
            .iter()
            .zip(plain.dtls13_cipher_suites)
        {
            let key: Vec<u8> = (0..plain.key_len() as u8).map(|byte| byte ^ 0x5a).collect();
            for first in 0..=255 {
                let mut sample = [0x3c; 16];
                sample[0] = first;
                assert_eq!(
                    quick.encrypt_sn(&key, &sample),
                    plain.encrypt_sn(&key, &sample),
                    "{:?}",
                    plain.suite()
                );
            }
        }
    }
}
