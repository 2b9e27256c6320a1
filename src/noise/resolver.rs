//! The cryptography of `snow` with the randomness of the system, and with the X25519 of aws-lc,
//! which takes a third of the time.
//!
//! With a public key of small order the shared secret is zero, whatever the own key is. `snow`
//! accepts that; go-libp2p and js-libp2p fail, as RFC 7748 section 6.1 allows, and so does this:
//! such a key is never an accident.

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey};
use rand::TryRng;
use rand::rngs::SysRng;
use snow::Error;
use snow::params::CipherChoice;
use snow::params::DHChoice;
use snow::params::HashChoice;
use snow::resolvers::CryptoResolver;
use snow::resolvers::DefaultResolver;
use snow::types::Cipher;
use snow::types::Dh;
use snow::types::Hash;
use snow::types::Random;

/// The default cryptography of `snow`, except [`SystemRandom`] and [`X25519`].
pub(super) struct Resolver;

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(SystemRandom))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::new(X25519::default())),
            other => DefaultResolver.resolve_dh(other),
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// The randomness of the operating system, by the `getrandom` version that the rest uses.
struct SystemRandom;

impl Random for SystemRandom {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        SysRng.try_fill_bytes(dest).map_err(|_| Error::Rng)
    }
}

/// Length of a key, and of a shared secret.
pub(super) const KEY_LEN: usize = 32;

/// X25519 (RFC 7748) with contributory behaviour: an all-zero result is an error.
#[derive(Default)]
struct X25519 {
    key: Option<PrivateKey>,
    private: [u8; KEY_LEN],
    public: [u8; KEY_LEN],
}

impl X25519 {
    fn try_set(&mut self, private: [u8; KEY_LEN]) -> Result<(), Error> {
        let key = PrivateKey::from_private_key(&agreement::X25519, &private);
        let key = key.map_err(|_| Error::Dh)?;
        let public = key.compute_public_key().map_err(|_| Error::Dh)?;
        self.public = public.as_ref().try_into().map_err(|_| Error::Dh)?;
        self.private = private;
        self.key = Some(key);
        Ok(())
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_LEN
    }

    fn priv_len(&self) -> usize {
        KEY_LEN
    }

    /// With a key of another length every agreement fails.
    fn set(&mut self, privkey: &[u8]) {
        *self = Self::default();
        if let Ok(private) = privkey.try_into() {
            // Without a key, as above.
            let _ = self.try_set(private);
        }
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut private = [0; KEY_LEN];
        rng.try_fill_bytes(&mut private)?;
        self.try_set(private)
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.private
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let key = self.key.as_ref().ok_or(Error::Dh)?;
        let out = out.get_mut(..KEY_LEN).ok_or(Error::Dh)?;
        // The slice has room for the keys of other curves.
        let pubkey = pubkey.get(..KEY_LEN).ok_or(Error::Dh)?;
        let peer = UnparsedPublicKey::new(&agreement::X25519, pubkey);
        // Fails for an all-zero result.
        agreement::agree(key, peer, Error::Dh, |secret| {
            if secret.len() != KEY_LEN || secret.iter().fold(0, |or, byte| or | byte) == 0 {
                return Err(Error::Dh);
            }
            out.copy_from_slice(secret);
            Ok(())
        })
    }

    fn dh_len(&self) -> usize {
        KEY_LEN
    }
}
