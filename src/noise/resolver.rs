//! The cryptography of `snow` with the randomness of the system, and with an X25519 that rejects an
//! all-zero secret.
//!
//! With a public key of small order the shared secret is zero, whatever the own key is. `snow`
//! accepts that; go-libp2p and js-libp2p fail, as RFC 7748 section 6.1 allows, and so does this:
//! such a key is never an accident.

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

/// The default cryptography of `snow`, except [`SystemRandom`] and [`Contributory`].
pub(super) struct Resolver;

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(SystemRandom))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(Contributory(DefaultResolver.resolve_dh(choice)?)))
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

/// A Diffie-Hellman function with contributory behaviour: an all-zero result is an error.
struct Contributory(Box<dyn Dh>);

impl Dh for Contributory {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn pub_len(&self) -> usize {
        self.0.pub_len()
    }

    fn priv_len(&self) -> usize {
        self.0.priv_len()
    }

    fn set(&mut self, privkey: &[u8]) {
        self.0.set(privkey);
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        self.0.generate(rng)
    }

    fn pubkey(&self) -> &[u8] {
        self.0.pubkey()
    }

    fn privkey(&self) -> &[u8] {
        self.0.privkey()
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), Error> {
        self.0.dh(pubkey, out)?;
        // Constant time: does not reveal the position of nonzero bytes.
        let shared = out.get(..self.0.dh_len()).ok_or(Error::Dh)?;
        if shared.iter().fold(0, |or, byte| or | byte) == 0 {
            return Err(Error::Dh);
        }
        Ok(())
    }

    fn dh_len(&self) -> usize {
        self.0.dh_len()
    }
}
