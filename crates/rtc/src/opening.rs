//! Opens the data records of established DTLS 1.3 connections without dimpl.
//!
//! For each record dimpl 0.9 allocates a structure of 8.7 KB, with room for handshake messages, and
//! moves it several times: for packets of 1 450 bytes that took a third of a receiver's time. Here
//! a record is unmasked, opened in place in a buffer of the thread, and handed on. dimpl keeps the
//! handshake, everything that is sent, and every record that holds no data.
//!
//! dimpl does not give away its keys, but asks for every cryptographic operation ([`Watched`]).
//! When it opens a data record, everything that later ones need is there: the keys for the data and
//! for the number, and the nonce, which is the IV XOR the number (RFC 8446 section 5.3). Only keys
//! to open with are taken, and nothing is ever sealed here: a nonce that is used twice would break
//! AES-GCM.
//!
//! A record that is opened here is noted in the replay window before dimpl gets it, if it holds no
//! data. Every few thousandth record goes to dimpl too, which otherwise could not complete the
//! numbers of others: a header has 16 bits of them.

use std::cell::RefCell;
use std::fmt;

use aes::cipher::{Block, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes256};
use aws_lc_rs::aead::{self, LessSafeKey, UnboundKey};
use dimpl::CryptoError;
use dimpl::crypto::{Aad, Buf, Cipher, Dtls13CipherSuite, Nonce, TmpBuf};
use zeroize::Zeroizing;

/// Data records that dimpl opens before this takes over: a connection that carries little does not
/// hold the keys twice.
const FIRST_RECORDS: u32 = 64;

/// Numbers between two records that go to dimpl.
const FORWARD_EVERY: u64 = 8192;

/// `ContentType` of application data.
const APPLICATION_DATA: u8 = 23;

/// The two low bits of the first epoch with data (RFC 9147 section 6.1).
const FIRST_EPOCH: u8 = 3;

/// Length of the sample that masks a number (RFC 9147 section 4.2.3).
const SAMPLE: usize = 16;

/// Longest header: flags, number, length.
const MAX_HEADER: usize = 5;

/// A key of one of the suites.
#[derive(Clone, Default)]
struct Key {
    bytes: Zeroizing<[u8; 32]>,
    length: usize,
}

impl Key {
    /// `None` if it is longer than those of the suites.
    fn new(key: &[u8]) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        bytes.get_mut(..key.len())?.copy_from_slice(key);
        Some(Self {
            bytes,
            length: key.len(),
        })
    }

    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// What dimpl does with the record that it handles.
#[derive(Default)]
struct Watch {
    number_key: Option<Key>,
    opened: Option<Seen>,
}

/// How dimpl has opened a record.
struct Seen {
    suite: Dtls13CipherSuite,
    key: Key,
    number_key: Key,
    nonce: [u8; 12],
    header: [u8; MAX_HEADER],
}

thread_local! {
    /// Set while dimpl handles a record from which keys are taken.
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };

    /// Records are opened here. One for each connection would cost each 16 KiB.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The key for the number of a record is used.
pub(super) fn note_number_key(key: &[u8]) {
    WATCH.with_borrow_mut(|watch| {
        if let Some(watch) = watch {
            watch.number_key = Key::new(key);
        }
    });
}

/// A cipher of dimpl that shows how it opens a record.
pub(super) struct Watched {
    inner: Box<dyn Cipher>,
    suite: Dtls13CipherSuite,
    key: Key,
}

impl Watched {
    pub(super) fn new(inner: Box<dyn Cipher>, suite: Dtls13CipherSuite, key: &[u8]) -> Self {
        Self {
            inner,
            suite,
            key: Key::new(key).unwrap_or_default(),
        }
    }
}

impl Cipher for Watched {
    fn encrypt(&mut self, plaintext: &mut Buf, aad: Aad, nonce: Nonce) -> Result<(), CryptoError> {
        self.inner.encrypt(plaintext, aad, nonce)
    }

    fn decrypt(
        &mut self,
        ciphertext: &mut TmpBuf<'_>,
        aad: Aad,
        nonce: Nonce,
    ) -> Result<(), CryptoError> {
        let mut header = [0; MAX_HEADER];
        let length = aad.0.len().min(MAX_HEADER);
        let is_whole = aad.0.len() == length;
        header[..length].copy_from_slice(&aad.0[..length]);
        let bytes = nonce.0;
        self.inner.decrypt(ciphertext, aad, nonce)?;
        WATCH.with_borrow_mut(|watch| {
            if let Some(watch) = watch
                && watch.opened.is_none()
                && is_whole
                && let Some(number_key) = watch.number_key.take()
            {
                watch.opened = Some(Seen {
                    suite: self.suite,
                    key: self.key.clone(),
                    number_key,
                    nonce: bytes,
                    header,
                });
            }
        });
        Ok(())
    }
}

// Without the key.
impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("suite", &self.suite)
            .finish_non_exhaustive()
    }
}

/// What has become of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its data was handed on, or it is a duplicate.
    Done,
    /// It is for dimpl.
    NotOpened,
}

/// Opens the records of one connection.
#[derive(Default)]
pub(super) struct Opener {
    /// Data records that dimpl has opened.
    records: u32,
    keys: Option<Box<Keys>>,
}

impl Opener {
    /// dimpl has opened a data record.
    pub(super) fn on_data(&mut self) {
        self.records = self.records.saturating_add(1);
    }

    /// Opens a record and passes its data on.
    pub(super) fn open(&mut self, record: &[u8], data: impl FnOnce(&[u8])) -> Outcome {
        match &mut self.keys {
            Some(keys) => keys.open(record, data).unwrap_or(Outcome::NotOpened),
            None => Outcome::NotOpened,
        }
    }

    /// Lets dimpl handle a record, and takes the keys that it opens it with, if they are new.
    pub(super) fn watch<T>(&mut self, record: &[u8], handle: impl FnOnce() -> T) -> T {
        let next_epoch = match &self.keys {
            Some(keys) => (keys.epoch + 1) & 3,
            None => FIRST_EPOCH,
        };
        let is_next = header_length(record).is_some_and(|_| epoch_of(record) == next_epoch);
        if !is_next || self.records < FIRST_RECORDS {
            return handle();
        }
        WATCH.set(Some(Watch::default()));
        let result = handle();
        let seen = WATCH.take().and_then(|watch| watch.opened);
        if let Some(seen) = seen
            && epoch_of(&seen.header) == next_epoch
            && let Some(keys) = Keys::new(&seen)
        {
            self.keys = Some(Box::new(keys));
        }
        result
    }
}

fn epoch_of(header: &[u8]) -> u8 {
    header.first().map_or(0, |flags| flags & 3)
}

/// Length of the header of a record with 16 bits of its number and no connection ID; `None` for
/// others (RFC 9147 section 4).
fn header_length(record: &[u8]) -> Option<usize> {
    let flags = *record.first()?;
    if flags & 0b1111_1000 != 0b0010_1000 {
        return None;
    }
    if flags & 0b0100 == 0 {
        return Some(3);
    }
    let length = u16::from_be_bytes(record.get(3..5)?.try_into().ok()?);
    (record.len() == 5 + usize::from(length)).then_some(5)
}

/// The AES key schedules for numbers.
enum Mask {
    Aes128(Aes128),
    Aes256(Aes256),
}

impl Mask {
    fn of(&self, sample: &[u8; SAMPLE]) -> [u8; 2] {
        let mut block = *sample;
        match self {
            Self::Aes128(aes) => {
                aes.encrypt_block(<&mut Block<Aes128>>::from(&mut block));
            }
            Self::Aes256(aes) => {
                aes.encrypt_block(<&mut Block<Aes256>>::from(&mut block));
            }
        }
        [block[0], block[1]]
    }
}

/// The keys of one epoch, and the records that they have opened.
struct Keys {
    key: LessSafeKey,
    mask: Mask,
    iv: [u8; 12],
    epoch: u8,
    /// Records before this one are for dimpl, which has seen some of them.
    first: u64,
    /// The last record that dimpl has had.
    forwarded: u64,
    window: Window,
}

impl Keys {
    fn new(seen: &Seen) -> Option<Self> {
        let number_key = seen.number_key.as_slice();
        let (algorithm, mask) = match seen.suite {
            Dtls13CipherSuite::AES_128_GCM_SHA256 => {
                let aes = Aes128::new_from_slice(number_key).ok()?;
                (&aead::AES_128_GCM, Mask::Aes128(aes))
            }
            Dtls13CipherSuite::AES_256_GCM_SHA384 => {
                let aes = Aes256::new_from_slice(number_key).ok()?;
                (&aead::AES_256_GCM, Mask::Aes256(aes))
            }
            _ => return None,
        };
        let key = UnboundKey::new(algorithm, seen.key.as_slice()).ok()?;
        // The first records of an epoch: the number has no more bits than the header has.
        let number = u64::from(u16::from_be_bytes([seen.header[1], seen.header[2]]));
        Some(Self {
            key: LessSafeKey::new(key),
            mask,
            iv: xor(seen.nonce, number),
            epoch: epoch_of(&seen.header),
            first: number + 1,
            forwarded: number,
            window: Window::after(number),
        })
    }

    fn open(&mut self, record: &[u8], data: impl FnOnce(&[u8])) -> Option<Outcome> {
        let length = header_length(record)?;
        if epoch_of(record) != self.epoch {
            return None;
        }
        let (masked, body) = record.split_at_checked(length)?;
        let mask = self.mask.of(body.first_chunk()?);
        let mut header = [0; MAX_HEADER];
        let header = header.get_mut(..length)?;
        header.copy_from_slice(masked);
        header[1] ^= mask[0];
        header[2] ^= mask[1];
        let low = u16::from_be_bytes([header[1], header[2]]);
        let number = complete(low, self.window.next);
        if number < self.first {
            return None;
        }
        if self.window.is_seen(number) {
            return Some(Outcome::Done);
        }
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            buffer.extend_from_slice(body);
            let nonce = aead::Nonce::assume_unique_for_key(xor(self.iv, number));
            let opened = self
                .key
                .open_in_place(nonce, aead::Aad::from(header), buffer);
            // For dimpl, which counts what is forged (RFC 9147 section 4.5.3).
            let inner = opened.ok()?;
            self.window.note(number);
            if number >= self.forwarded + FORWARD_EVERY {
                self.forwarded = number;
                return None;
            }
            // The type follows the data, and zeros may follow it (RFC 8446 section 5.4).
            let end = inner.iter().rposition(|byte| *byte != 0)?;
            let (content, rest) = inner.split_at_checked(end)?;
            if rest.first() != Some(&APPLICATION_DATA) {
                return None;
            }
            data(content);
            Some(Outcome::Done)
        })
    }
}

/// XORs a number into the end of a nonce or IV.
fn xor(mut bytes: [u8; 12], number: u64) -> [u8; 12] {
    for (byte, other) in bytes.iter_mut().skip(4).zip(number.to_be_bytes()) {
        *byte ^= other;
    }
    bytes
}

/// The number with these low bits that is closest to `expected` (RFC 9147 section 4.2.2).
fn complete(low: u16, expected: u64) -> u64 {
    let distance = low.wrapping_sub(expected as u16).cast_signed();
    let number = expected.checked_add_signed(i64::from(distance));
    number.unwrap_or_else(|| u64::from(low))
}

/// The numbers of the records opened last (RFC 9147 section 4.5.1).
struct Window {
    /// The number after the highest.
    next: u64,
    /// A bit for each number, by its remainder.
    seen: [u64; Self::WORDS as usize],
}

impl Window {
    /// More than networks and the batches of a system reorder.
    const WORDS: u64 = 16;

    fn after(number: u64) -> Self {
        Self {
            next: number + 1,
            seen: [0; Self::WORDS as usize],
        }
    }

    fn word(number: u64) -> usize {
        // As small as `WORDS`.
        (number / 64 % Self::WORDS) as usize
    }

    /// Whether a record with this number was opened, or is too old to tell.
    fn is_seen(&self, number: u64) -> bool {
        if number >= self.next {
            return false;
        }
        let is_too_old = (self.next - 1) / 64 - number / 64 >= Self::WORDS;
        is_too_old || self.seen[Self::word(number)] & (1 << (number % 64)) != 0
    }

    fn note(&mut self, number: u64) {
        if number >= self.next {
            let last = (self.next - 1) / 64;
            let entered = (number / 64 - last).min(Self::WORDS);
            for word in 1..=entered {
                self.seen[Self::word((last + word) * 64)] = 0;
            }
            self.next = number + 1;
        }
        self.seen[Self::word(number)] |= 1 << (number % 64);
    }
}

#[cfg(test)]
mod tests;
