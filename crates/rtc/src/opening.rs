//! Opens the data records of established DTLS 1.3 connections without dimpl.
//!
//! For each record dimpl 0.9 allocates a structure of 8.7 KB, with room for handshake messages, and
//! moves it several times: for packets of 1 450 bytes that took a third of a receiver's time. Here
//! a record is unmasked, opened in place in a buffer of the thread, and handed on. dimpl keeps the
//! handshake, everything that is sent, and every record that holds no data.
//!
//! dimpl does not give away its keys, but asks for every cryptographic operation ([`Watched`]).
//! When it opens a data record, everything that later ones need is there: the keys for the data and
//! for the number, and the nonce, which is the IV XOR the number (RFC 8446 section 5.3). Nothing is
//! ever sealed here: a nonce that is used twice would break AES-GCM.
//!
//! The keys of an epoch have one replay window ([`Epoch`]), for what is opened here and for what
//! dimpl opens. A record that is opened here and holds no data is passed to dimpl, which may then
//! open it once. Every thousandth record goes to dimpl too, which otherwise could not complete the
//! numbers of others: a header has 16 bits of them.

use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::aead::{self, LessSafeKey, UnboundKey};
use dimpl::crypto::{Aad, Buf, Cipher, Dtls13CipherSuite, Nonce, TmpBuf};
use dimpl::{CryptoError, CryptoOperation};
use zeroize::Zeroizing;

use super::record_number::Mask;

/// Data records that dimpl opens before this takes over: a connection that carries little does not
/// hold the keys twice.
const FIRST_RECORDS: u32 = 64;

/// Numbers between two records that go to dimpl.
const FORWARD_EVERY: u64 = 1024;

/// Numbers after the last of them beyond which dimpl would complete them wrongly.
const MAX_AHEAD: u64 = 1 << 15;

/// `ContentType`s.
const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;

/// `AlertDescription`, after which a peer sends no data (RFC 9147 section 5.10).
const CLOSE_NOTIFY: u8 = 0;

/// The two low bits of the first epoch with data (RFC 9147 section 6.1).
const FIRST_EPOCH: u8 = 3;

/// Longest header: flags, number, length.
const MAX_HEADER: usize = 5;

/// A key.
#[derive(Clone)]
struct Key(Zeroizing<Box<[u8]>>);

impl Key {
    fn new(key: &[u8]) -> Self {
        Self(Zeroizing::new(key.into()))
    }
}

/// What dimpl and this share of the keys of one epoch that is received.
#[derive(Default)]
struct Epoch(Mutex<EpochState>);

#[derive(Default)]
struct EpochState {
    window: Window,
    /// A record that was opened here, which dimpl may open as well.
    admitted: Option<u64>,
}

impl Epoch {
    fn state(&self) -> MutexGuard<'_, EpochState> {
        // Consistent between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// The IV XOR the number.
    nonce: [u8; 12],
    number: u64,
    flags: u8,
    epoch: Arc<Epoch>,
    age: u64,
}

thread_local! {
    /// Set while dimpl handles a record from which keys are taken.
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };

    /// Records are opened here. One for each connection would cost each 16 KiB.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Ends a watch, also if dimpl panics.
struct Watching;

impl Watching {
    fn begin() -> Self {
        WATCH.set(Some(Watch::default()));
        Self
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        WATCH.set(None);
    }
}

/// The key for the number of a record is used.
pub(super) fn note_number_key(key: &[u8]) {
    WATCH.with_borrow_mut(|watch| {
        if let Some(watch) = watch {
            watch.number_key = Some(Key::new(key));
        }
    });
}

/// A cipher of dimpl that shows how it opens a record, and opens none twice.
pub(super) struct Watched {
    inner: Box<dyn Cipher>,
    suite: Dtls13CipherSuite,
    /// Until something is sealed: then it is a key to send with.
    key: Option<Key>,
    /// Once something is opened: then it is a key to receive with.
    epoch: Option<Arc<Epoch>>,
    /// Ciphers that are made later have a greater one.
    age: u64,
}

impl Watched {
    /// Wraps a cipher, unless its suite is none that is opened here.
    pub(super) fn wrap(
        inner: Box<dyn Cipher>,
        suite: Dtls13CipherSuite,
        key: &[u8],
    ) -> Box<dyn Cipher> {
        if algorithm(suite).is_none() {
            return inner;
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Box::new(Self {
            inner,
            suite,
            key: Some(Key::new(key)),
            epoch: None,
            age: NEXT.fetch_add(1, Ordering::Relaxed),
        })
    }
}

fn algorithm(suite: Dtls13CipherSuite) -> Option<&'static aead::Algorithm> {
    match suite {
        Dtls13CipherSuite::AES_128_GCM_SHA256 => Some(&aead::AES_128_GCM),
        Dtls13CipherSuite::AES_256_GCM_SHA384 => Some(&aead::AES_256_GCM),
        _ => None,
    }
}

impl Cipher for Watched {
    fn encrypt(&mut self, plaintext: &mut Buf, aad: Aad, nonce: Nonce) -> Result<(), CryptoError> {
        self.key = None;
        self.inner.encrypt(plaintext, aad, nonce)
    }

    fn decrypt(
        &mut self,
        ciphertext: &mut TmpBuf<'_>,
        aad: Aad,
        nonce: Nonce,
    ) -> Result<(), CryptoError> {
        let flags = aad.0.first().copied().unwrap_or_default();
        let low = low_bits(&aad.0);
        let bytes = nonce.0;
        let epoch = self.epoch.get_or_insert_default();
        let number = {
            let state = epoch.state();
            let number = low.map_or(state.window.next, |low| low.complete(state.window.next));
            if state.window.is_seen(number) && state.admitted != Some(number) {
                // As if it were forged, which dimpl drops without a word.
                return Err(CryptoError::OperationFailed(CryptoOperation::Decrypt));
            }
            number
        };
        self.inner.decrypt(ciphertext, aad, nonce)?;
        epoch.state().window.note(number);
        WATCH.with_borrow_mut(|watch| {
            if let Some(watch) = watch
                && watch.opened.is_none()
                && let Some(key) = &self.key
                && let Some(number_key) = watch.number_key.take()
            {
                watch.opened = Some(Seen {
                    suite: self.suite,
                    key: key.clone(),
                    number_key,
                    nonce: bytes,
                    number,
                    flags,
                    epoch: Arc::clone(epoch),
                    age: self.age,
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

    /// Opens a record and passes its data on, unless it is a duplicate or forged. Returns `false`
    /// if it is for dimpl.
    pub(super) fn open(&mut self, record: &[u8], data: impl FnOnce(&[u8])) -> bool {
        let keys = self.keys.as_mut();
        keys.is_some_and(|keys| keys.open(record, data).is_some())
    }

    /// Lets dimpl handle a record, and takes the keys that it opens it with, if they are newer.
    pub(super) fn watch<T>(&mut self, record: &[u8], handle: impl FnOnce() -> T) -> T {
        let next_epoch = match &self.keys {
            Some(keys) => (keys.flags + 1) & EPOCH,
            None => FIRST_EPOCH,
        };
        let is_next = header_length(record).is_some()
            && record
                .first()
                .is_some_and(|flags| flags & EPOCH == next_epoch);
        if !is_next || self.records < FIRST_RECORDS {
            let result = handle();
            self.withdraw();
            return result;
        }
        let watching = Watching::begin();
        let result = handle();
        let seen = WATCH.take().and_then(|watch| watch.opened);
        drop(watching);
        let age = self.keys.as_ref().map(|keys| keys.age);
        if let Some(seen) = seen
            // Two bits do not tell the next epoch from one that is over.
            && age.is_none_or(|age| seen.age > age)
            && let Some(keys) = Keys::new(seen)
        {
            self.keys = Some(Box::new(keys));
        }
        result
    }

    /// What dimpl was allowed to open, it has opened now, or has dropped.
    fn withdraw(&mut self) {
        if let Some(keys) = &self.keys {
            keys.epoch.state().admitted = None;
        }
    }
}

/// The bits of the flags that are the low ones of the epoch, and the one for a number of 16 bits.
const EPOCH: u8 = 0b0011;
const LONG_NUMBER: u8 = 0b1000;

/// Length of the header of a record; `None` with a connection ID, which was not negotiated, and for
/// plaintext (RFC 9147 section 4).
fn header_length(record: &[u8]) -> Option<usize> {
    let flags = *record.first()?;
    if flags & 0b1111_0000 != 0b0010_0000 {
        return None;
    }
    let number = if flags & LONG_NUMBER == 0 { 1 } else { 2 };
    let length = 1 + number;
    if flags & 0b0100 == 0 {
        return Some(length);
    }
    let body = u16::from_be_bytes(record.get(length..length + 2)?.try_into().ok()?);
    (record.len() == length + 2 + usize::from(body)).then_some(length + 2)
}

/// The low bits of a number.
#[derive(Clone, Copy)]
enum LowBits {
    Eight(u8),
    Sixteen(u16),
}

/// Those in a header, unmasked.
fn low_bits(header: &[u8]) -> Option<LowBits> {
    match *header {
        [flags, high, low, ..] if flags & LONG_NUMBER != 0 => {
            Some(LowBits::Sixteen(u16::from_be_bytes([high, low])))
        }
        [_, low, ..] => Some(LowBits::Eight(low)),
        _ => None,
    }
}

impl LowBits {
    /// The number with these low bits that is closest to `expected` (RFC 9147 section 4.2.2).
    fn complete(self, expected: u64) -> u64 {
        let (distance, low) = match self {
            Self::Eight(low) => {
                let distance = low.wrapping_sub(expected as u8).cast_signed();
                (i64::from(distance), u64::from(low))
            }
            Self::Sixteen(low) => {
                let distance = low.wrapping_sub(expected as u16).cast_signed();
                (i64::from(distance), u64::from(low))
            }
        };
        expected.checked_add_signed(distance).unwrap_or(low)
    }
}

/// The keys of the last epoch from which data has come.
struct Keys {
    key: LessSafeKey,
    mask: Mask,
    iv: [u8; 12],
    /// Of a header.
    flags: u8,
    epoch: Arc<Epoch>,
    /// Of the cipher of dimpl.
    age: u64,
    /// The last record that dimpl has had.
    forwarded: u64,
    /// The record with close_notify.
    closed_at: Option<u64>,
}

impl Keys {
    fn new(seen: Seen) -> Option<Self> {
        let mask = Mask::new(seen.suite, &seen.number_key.0)?;
        let key = UnboundKey::new(algorithm(seen.suite)?, &seen.key.0).ok()?;
        Some(Self {
            key: LessSafeKey::new(key),
            mask,
            iv: xor(seen.nonce, seen.number),
            flags: seen.flags,
            epoch: seen.epoch,
            age: seen.age,
            forwarded: seen.number,
            closed_at: None,
        })
    }

    /// Opens a record; `None` if it is for dimpl.
    fn open(&mut self, record: &[u8], data: impl FnOnce(&[u8])) -> Option<()> {
        let length = header_length(record)?;
        let (masked, body) = record.split_at_checked(length)?;
        if (masked.first()? ^ self.flags) & EPOCH != 0 {
            return None;
        }
        let mask = self.mask.of(body.first_chunk()?);
        let mut header = [0; MAX_HEADER];
        let header = header.get_mut(..length)?;
        header.copy_from_slice(masked);
        header[1] ^= mask[0];
        if header[0] & LONG_NUMBER != 0 {
            header[2] ^= mask[1];
        }
        let mut state = self.epoch.state();
        let number = low_bits(header)?.complete(state.window.next);
        let is_after_close = self.closed_at.is_some_and(|closed_at| number > closed_at);
        let is_too_far = number >= self.forwarded + MAX_AHEAD;
        if is_after_close || is_too_far || state.window.is_seen(number) {
            return Some(());
        }
        // Taken, so that `data` may open records of other connections.
        let mut buffer = BUFFER.take();
        buffer.clear();
        buffer.extend_from_slice(body);
        let nonce = aead::Nonce::assume_unique_for_key(xor(self.iv, number));
        let header = aead::Aad::from(header);
        let outcome = match self.key.open_in_place(nonce, header, &mut buffer) {
            // Forged.
            Err(_) => Some(()),
            Ok(inner) => {
                state.window.note(number);
                // The type follows the data, and zeros may follow it (RFC 8446 section 5.4).
                let end = inner
                    .iter()
                    .rposition(|byte| *byte != 0)
                    .unwrap_or_default();
                let kind = inner.get(end).copied();
                let content = inner.get(..end).unwrap_or_default();
                if kind == Some(ALERT) && content.get(1) == Some(&CLOSE_NOTIFY) {
                    self.closed_at = Some(number);
                }
                let is_due = number >= self.forwarded + FORWARD_EVERY;
                if is_due || kind != Some(APPLICATION_DATA) {
                    self.forwarded = self.forwarded.max(number);
                    state.admitted = Some(number);
                    None
                } else {
                    drop(state);
                    data(content);
                    Some(())
                }
            }
        };
        BUFFER.set(buffer);
        outcome
    }
}

/// XORs a number into the end of a nonce or IV.
fn xor(mut bytes: [u8; 12], number: u64) -> [u8; 12] {
    for (byte, other) in bytes.iter_mut().skip(4).zip(number.to_be_bytes()) {
        *byte ^= other;
    }
    bytes
}

/// The numbers of the records opened last (RFC 9147 section 4.5.1).
#[derive(Default)]
struct Window {
    /// The number after the highest.
    next: u64,
    /// A bit for each number, by its remainder.
    seen: [u64; Self::WORDS as usize],
}

impl Window {
    /// More than networks and the batches of a system reorder.
    const WORDS: u64 = 4;

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
            // The word of the highest number, or none.
            let last = self.next.div_ceil(64);
            let entered = (number / 64 + 1).saturating_sub(last).min(Self::WORDS);
            for word in 0..entered {
                self.seen[Self::word((last + word) * 64)] = 0;
            }
            self.next = number + 1;
        }
        self.seen[Self::word(number)] |= 1 << (number % 64);
    }
}

#[cfg(test)]
mod tests;
