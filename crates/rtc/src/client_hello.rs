//! Reassembles the first ClientHello before DTLS sees any of it.
//!
//! Browsers send a ClientHello that does not fit one datagram, and fragment it differently when
//! they retransmit it (Firefox after three losses: 1 383 + 78 bytes become 1 163 + 298). dimpl's
//! DTLS 1.2 server keeps fragments by their offset, never replaces one, and so waits forever for a
//! gap to close. A single record hides the fragmentation: the handshake hash covers the message,
//! not its fragments (RFC 6347 section 4.2.6).
//!
//! Nothing protects a ClientHello, and anybody who can forge the peer's address can send fragments
//! of one. A message reassembled with a forged fragment fails at the end of the handshake. So
//! fragments are kept as they arrived, and of all messages that they form the one is chosen that
//!
//! 1. is a complete ClientHello,
//! 2. consists of fragments that arrived in order after its beginning, as those of a peer do: one
//!    with an earlier fragment has to wait for `GRACE`,
//! 3. most flights agree with; a repeated fragment counts as another flight if it arrives after
//!    `REPETITION`. While there is a tie, none is chosen until the peer retransmits, for at most
//!    `DISPUTE`.
//!
//! That leaves a forger the time between the datagrams of a flight, and a complete ClientHello: the
//! response to it reaches the peer, whatever follows (RFC 9147 section 11 leaves both to the
//! network).

use std::time::{Duration, Instant};

/// Longest ClientHello. Chromium's with X25519MLKEM768 has about 1 460 bytes.
const MAX_LENGTH: usize = 8192;

/// Maximum bytes and fragments kept.
const MAX_KEPT: usize = 2 * MAX_LENGTH;
const MAX_PIECES: usize = 16;

/// Maximum steps of one reassembly. Genuine fragments take one each.
const MAX_STEPS: usize = 64;

/// Maximum candidate messages. The fragments of an honest peer form one.
const MAX_CANDIDATES: usize = 8;

/// How long a fragment that arrived before the beginning of its message waits for one that
/// contradicts it. Reordering within a flight takes less.
const GRACE: Duration = Duration::from_millis(50);

/// Minimum delay of a retransmission. The shortest known timer is that of libwebrtc, which starts
/// at 50 ms; RFC 9147 section 5.8.2 recommends a second, and 400 ms with DTLS-SRTP.
const REPETITION: Duration = Duration::from_millis(40);

/// How long candidates in a tie wait for retransmissions: two of a peer whose timer starts at a
/// second.
const DISPUTE: Duration = Duration::from_millis(3500);

const RECORD_HEADER: usize = 13;
const HANDSHAKE_HEADER: usize = 12;
const CONTENT_TYPE_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;

/// What to do with a datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it to DTLS unchanged: there is nothing to reassemble.
    Pass,
    /// It was kept, or dropped as malformed; [`ClientHelloAssembler::poll`] returns what to pass to
    /// DTLS.
    Held,
}

/// Reassembles the first ClientHello of a connection.
#[derive(Debug, Default)]
pub struct ClientHelloAssembler {
    /// In the order of first arrival.
    pieces: Vec<Piece>,
    /// Arrivals so far.
    arrivals: u32,
    /// Something arrived since the last poll.
    is_new: bool,
    /// When to poll again if nothing arrives.
    poll_at: Option<Instant>,
    /// Since when candidates have been in a tie.
    disputed_since: Option<Instant>,
    done: bool,
}

/// A kept fragment.
#[derive(Debug)]
struct Piece {
    /// Content type, version, epoch and sequence number of its record.
    header: [u8; RECORD_HEADER - 2],
    /// `message_seq` of the handshake message (RFC 6347 section 4.2.2).
    sequence: [u8; 2],
    total: usize,
    offset: usize,
    data: Vec<u8>,
    /// Flights that contained it.
    flights: u32,
    /// Index of its arrival, or of its last retransmission.
    arrival: u32,
    /// Time of that; `None` until the end of the batch.
    at: Option<Instant>,
    /// It arrived again in this batch.
    is_repeated: bool,
}

impl Piece {
    fn end(&self) -> usize {
        self.offset.saturating_add(self.data.len())
    }

    fn is_same_message(&self, other: &Self) -> bool {
        self.sequence == other.sequence && self.total == other.total
    }

    /// Whether the fragment matches the message, as far as that goes.
    fn agrees_with(&self, message: &[u8]) -> bool {
        let known = message.get(self.offset..).unwrap_or_default();
        known
            .iter()
            .zip(&self.data)
            .all(|(known, own)| known == own)
    }
}

/// A complete message formed by fragments.
#[derive(Debug)]
struct Candidate {
    body: Vec<u8>,
    /// Index of its first fragment.
    first: usize,
    /// No fragment arrived before the first.
    in_order: bool,
    /// Flights of fragments that agree with it.
    support: u32,
}

/// A handshake fragment in a plaintext record.
struct Fragment<'a> {
    sequence: [u8; 2],
    total: usize,
    offset: usize,
    data: &'a [u8],
}

impl ClientHelloAssembler {
    /// Handles a datagram that a server received before its handshake is complete.
    pub fn handle(&mut self, datagram: &[u8]) -> Verdict {
        if self.done || !starts_with_client_hello(datagram) {
            return Verdict::Pass;
        }
        let mut rest = datagram;
        while let Some((header, record, after)) = split_record(rest) {
            rest = after;
            if let Some(fragment) = parse_fragment(record) {
                self.insert(header, &fragment);
            }
        }
        Verdict::Held
    }

    /// The ClientHello in one record once it is decided. To be called after each batch of
    /// datagrams, and at [`Self::timeout`].
    pub fn poll(&mut self, now: Instant) -> Option<Vec<u8>> {
        let is_due = self.poll_at.is_some_and(|at| at <= now);
        if self.done || !(std::mem::take(&mut self.is_new) || is_due) {
            return None;
        }
        self.poll_at = None;
        self.stamp(now);
        let mut candidates = self.candidates();
        candidates.sort_by_key(|candidate| (candidate.in_order, candidate.support));
        let best = candidates.pop()?;
        let is_settled_at = self.pieces.get(best.first)?.at? + GRACE;
        if !best.in_order && now < is_settled_at {
            self.poll_at = Some(is_settled_at);
            return None;
        }
        let rank = |candidate: &Candidate| (candidate.in_order, candidate.support);
        if candidates
            .last()
            .is_some_and(|second| rank(second) == rank(&best))
        {
            let until = *self.disputed_since.get_or_insert(now) + DISPUTE;
            if now < until {
                self.poll_at = Some(until);
                return None;
            }
        }
        let record = self.record(&best);
        // What follows is a retransmission, or belongs to the next flight.
        *self = Self {
            done: true,
            ..Self::default()
        };
        record
    }

    /// When [`Self::poll`] may decide without further datagrams.
    pub fn timeout(&self) -> Option<Instant> {
        self.poll_at
    }

    /// Timestamps what arrived in this batch.
    fn stamp(&mut self, now: Instant) {
        for piece in &mut self.pieces {
            let is_repeated = std::mem::take(&mut piece.is_repeated);
            match piece.at {
                None => piece.at = Some(now),
                Some(at) if is_repeated && now.saturating_duration_since(at) >= REPETITION => {
                    piece.flights = piece.flights.saturating_add(1);
                    piece.at = Some(now);
                    self.arrivals = self.arrivals.saturating_add(1);
                    piece.arrival = self.arrivals;
                }
                Some(_) => {}
            }
        }
    }

    fn insert(&mut self, header: [u8; RECORD_HEADER - 2], fragment: &Fragment<'_>) {
        let end = fragment.offset.saturating_add(fragment.data.len());
        if fragment.total > MAX_LENGTH || end > fragment.total || fragment.data.is_empty() {
            return;
        }
        self.is_new = true;
        let known = self.pieces.iter_mut().find(|piece| {
            piece.sequence == fragment.sequence
                && piece.total == fragment.total
                && piece.offset == fragment.offset
                && piece.data == fragment.data
        });
        if let Some(piece) = known {
            piece.is_repeated = true;
            return;
        }
        self.arrivals = self.arrivals.saturating_add(1);
        self.pieces.push(Piece {
            header,
            sequence: fragment.sequence,
            total: fragment.total,
            offset: fragment.offset,
            data: fragment.data.to_vec(),
            flights: 1,
            arrival: self.arrivals,
            at: None,
            is_repeated: false,
        });
        // The latest arrivals most likely belong to the current flight.
        let mut kept: usize = self.pieces.iter().map(|piece| piece.data.len()).sum();
        while kept > MAX_KEPT || self.pieces.len() > MAX_PIECES {
            let oldest = self.pieces.iter().enumerate();
            let Some((oldest, _)) = oldest.min_by_key(|(_, piece)| (piece.flights, piece.arrival))
            else {
                break;
            };
            kept = kept.saturating_sub(self.pieces.remove(oldest).data.len());
        }
    }

    /// The distinct messages that the fragments form.
    fn candidates(&self) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        let mut steps = 0;
        for (first, piece) in self.pieces.iter().enumerate() {
            if piece.offset == 0 {
                self.complete(first, piece.data.clone(), true, &mut candidates, &mut steps);
            }
        }
        candidates
    }

    /// Extends `body` with every fragment that continues it.
    fn complete(
        &self,
        first: usize,
        body: Vec<u8>,
        in_order: bool,
        candidates: &mut Vec<Candidate>,
        steps: &mut usize,
    ) {
        let Some(beginning) = self.pieces.get(first) else {
            return;
        };
        *steps += 1;
        if *steps > MAX_STEPS || candidates.len() >= MAX_CANDIDATES {
            return;
        }
        if body.len() == beginning.total {
            return self.add_candidate(first, body, in_order, candidates);
        }
        let comes_in_order = |piece: &Piece| in_order && piece.arrival >= beginning.arrival;
        let mut next: Vec<&Piece> = self
            .pieces
            .iter()
            .filter(|piece| piece.is_same_message(beginning))
            .filter(|piece| piece.offset <= body.len() && piece.end() > body.len())
            .filter(|piece| piece.agrees_with(&body))
            .collect();
        // Longest first, so that a genuine message is complete in few steps.
        next.sort_by_key(|piece| std::cmp::Reverse((comes_in_order(piece), piece.end())));
        let mut tried: Vec<&[u8]> = Vec::new();
        for piece in next {
            let known = body.len().saturating_sub(piece.offset);
            let added = piece.data.get(known..).unwrap_or_default();
            // A prefix of a longer fragment leads to the same messages.
            if tried.iter().any(|longer| longer.starts_with(added)) {
                continue;
            }
            tried.push(added);
            let longer = [&body[..], added].concat();
            self.complete(first, longer, comes_in_order(piece), candidates, steps);
        }
    }

    fn add_candidate(
        &self,
        first: usize,
        body: Vec<u8>,
        in_order: bool,
        candidates: &mut Vec<Candidate>,
    ) {
        if let Some(known) = candidates
            .iter_mut()
            .find(|candidate| candidate.body == body)
        {
            if in_order && !known.in_order {
                known.in_order = true;
                known.first = first;
            }
            return;
        }
        let Some(beginning) = self.pieces.get(first) else {
            return;
        };
        if !is_client_hello(&body) {
            return;
        }
        let support = self
            .pieces
            .iter()
            .filter(|piece| piece.is_same_message(beginning) && piece.agrees_with(&body))
            .map(|piece| piece.flights)
            .fold(0, u32::saturating_add);
        candidates.push(Candidate {
            body,
            first,
            in_order,
            support,
        });
    }

    /// A record with the complete message as one fragment. Version, epoch and sequence number are
    /// those of the latest of its records.
    fn record(&self, candidate: &Candidate) -> Option<Vec<u8>> {
        let beginning = self.pieces.get(candidate.first)?;
        let last = self
            .pieces
            .iter()
            .filter(|piece| piece.is_same_message(beginning) && piece.agrees_with(&candidate.body))
            .max_by_key(|piece| piece.arrival)?;
        let body = &candidate.body;
        let total = u32::try_from(body.len()).ok()?.to_be_bytes();
        let length = u16::try_from(body.len() + HANDSHAKE_HEADER).ok()?;
        let mut record = Vec::with_capacity(RECORD_HEADER + HANDSHAKE_HEADER + body.len());
        record.extend_from_slice(&last.header);
        record.extend_from_slice(&length.to_be_bytes());
        record.push(HANDSHAKE_CLIENT_HELLO);
        record.extend_from_slice(&total[1..]);
        record.extend_from_slice(&beginning.sequence);
        record.extend_from_slice(&[0, 0, 0]);
        record.extend_from_slice(&total[1..]);
        record.extend_from_slice(body);
        Some(record)
    }
}

/// Whether the lengths in `body` are those of a complete ClientHello (RFC 6347 section 4.2.1, RFC
/// 8446 section 4.1.2).
fn is_client_hello(body: &[u8]) -> bool {
    /// The bytes after a vector whose length field has this many bytes.
    fn skip_vector(bytes: &[u8], length_bytes: usize) -> Option<&[u8]> {
        let (length, rest) = bytes.split_at_checked(length_bytes)?;
        let length = length
            .iter()
            .fold(0, |sum: usize, byte| sum << 8 | usize::from(*byte));
        rest.get(length..)
    }
    let has_lengths = || -> Option<bool> {
        // Version and random, session ID, cookie, cipher suites, compression methods.
        let rest = skip_vector(body.get(34..)?, 1)?;
        let rest = skip_vector(rest, 1)?;
        let rest = skip_vector(rest, 2)?;
        let rest = skip_vector(rest, 1)?;
        if rest.is_empty() {
            return Some(true);
        }
        if !skip_vector(rest, 2)?.is_empty() {
            return Some(false);
        }
        let mut extensions = rest.get(2..)?;
        while !extensions.is_empty() {
            extensions = skip_vector(extensions.get(2..)?, 2)?;
        }
        Some(true)
    };
    has_lengths().unwrap_or(false)
}

/// Whether the first record is a plaintext (epoch 0) handshake record with a ClientHello.
fn starts_with_client_hello(datagram: &[u8]) -> bool {
    datagram.first() == Some(&CONTENT_TYPE_HANDSHAKE)
        && datagram.get(3..5) == Some(&[0, 0])
        && datagram.get(RECORD_HEADER) == Some(&HANDSHAKE_CLIENT_HELLO)
}

/// The `message_seq` of a datagram that starts with a ClientHello; 1 after a HelloRetryRequest.
pub(crate) fn message_sequence(datagram: &[u8]) -> Option<u16> {
    let sequence = datagram.get(RECORD_HEADER + 4..RECORD_HEADER + 6)?;
    starts_with_client_hello(datagram).then_some(u16::from_be_bytes(sequence.try_into().ok()?))
}

/// Splits off the first record: its header without the length, its content, and the rest.
fn split_record(datagram: &[u8]) -> Option<([u8; RECORD_HEADER - 2], &[u8], &[u8])> {
    let header = *datagram.first_chunk()?;
    let length = u16::from_be_bytes(datagram.get(11..13)?.try_into().ok()?);
    let end = RECORD_HEADER + usize::from(length);
    Some((
        header,
        datagram.get(RECORD_HEADER..end)?,
        datagram.get(end..)?,
    ))
}

fn parse_fragment(record: &[u8]) -> Option<Fragment<'_>> {
    let u24 = |at: usize| -> Option<usize> {
        let [a, b, c] = record.get(at..at + 3)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()
    };
    if record.first() != Some(&HANDSHAKE_CLIENT_HELLO) {
        return None;
    }
    let length = u24(9)?;
    Some(Fragment {
        sequence: record.get(4..6)?.try_into().ok()?,
        total: u24(1)?,
        offset: u24(6)?,
        data: record.get(HANDSHAKE_HEADER..HANDSHAKE_HEADER + length)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Number of cases: `ANABRANCH_SEEDS`, as for every randomised test.
    fn cases() -> u32 {
        let asked_for = std::env::var("ANABRANCH_SEEDS").ok();
        asked_for.map_or(256, |count| count.parse().expect("a number"))
    }

    fn fragment(total: usize, offset: usize, data: &[u8]) -> Vec<u8> {
        let u24 = |n: usize| u32::try_from(n).unwrap().to_be_bytes()[1..].to_vec();
        let mut datagram = vec![22, 254, 253, 0, 0, 0, 0, 0, 0, 0, 7];
        let length = u16::try_from(HANDSHAKE_HEADER + data.len()).unwrap();
        datagram.extend(length.to_be_bytes());
        datagram.push(1);
        datagram.extend(u24(total));
        datagram.extend([0, 0]);
        datagram.extend(u24(offset));
        datagram.extend(u24(data.len()));
        datagram.extend(data);
        datagram
    }

    /// Length of the shortest [`message`].
    const SHORTEST: usize = 48;

    /// A ClientHello of this length, filled up by an extension.
    fn message(length: usize) -> Vec<u8> {
        let mut body = vec![254, 253];
        body.extend(0..32);
        // No session ID and no cookie, one cipher suite, no compression.
        body.extend([0, 0, 0, 2, 0x13, 0x01, 1, 0]);
        let extension = length.checked_sub(body.len() + 6).unwrap();
        body.extend(u16::try_from(extension + 4).unwrap().to_be_bytes());
        body.extend([0, 21]);
        body.extend(u16::try_from(extension).unwrap().to_be_bytes());
        body.extend((0..extension).map(|i| (i % 251) as u8));
        assert_eq!(body.len(), length);
        body
    }

    fn cut(body: &[u8], from: usize, to: usize) -> Vec<u8> {
        fragment(body.len(), from, &body[from..to])
    }

    /// The same fragment with other bytes.
    fn forged(body: &[u8], from: usize, to: usize) -> Vec<u8> {
        fragment(body.len(), from, &vec![0xee; to - from])
    }

    /// An assembler and its time.
    struct Listener {
        assembler: ClientHelloAssembler,
        now: Instant,
    }

    impl Listener {
        fn new() -> Self {
            Self {
                assembler: ClientHelloAssembler::default(),
                now: Instant::now(),
            }
        }

        /// Handles a batch of datagrams.
        fn gets(&mut self, batch: &[Vec<u8>]) -> Option<Vec<u8>> {
            for datagram in batch {
                assert_eq!(self.assembler.handle(datagram), Verdict::Held);
            }
            self.assembler.poll(self.now)
        }

        /// Advances the time, and polls at each timeout.
        fn waits(&mut self, time: Duration) -> Option<Vec<u8>> {
            let until = self.now + time;
            while let Some(at) = self.assembler.timeout().filter(|at| *at <= until) {
                self.now = at;
                let whole = self.assembler.poll(at);
                if whole.is_some() {
                    return whole;
                }
            }
            self.now = until;
            None
        }
    }

    #[test]
    fn a_client_hello_in_one_datagram_is_complete_at_once() {
        let body = message(300);
        let datagram = cut(&body, 0, 300);
        let mut listener = Listener::new();
        let whole = listener.gets(std::slice::from_ref(&datagram));
        assert_eq!(whole.as_ref(), Some(&datagram));
        let later = listener.assembler.handle(&datagram);
        assert_eq!(later, Verdict::Pass, "later ones pass");
        assert_eq!(listener.assembler.timeout(), None);
    }

    #[test]
    fn two_fragments_make_one_record_in_either_order() {
        let body = message(1461);
        let whole = cut(&body, 0, 1461);
        let parts = [cut(&body, 0, 1383), cut(&body, 1383, 1461)];
        let mut listener = Listener::new();
        assert_eq!(listener.gets(&parts[..1]), None);
        assert_eq!(listener.gets(&parts[1..]), Some(whole.clone()));
        let mut listener = Listener::new();
        assert_eq!(listener.gets(&parts[1..]), None);
        assert_eq!(listener.gets(&parts[..1]), None);
        assert_eq!(listener.waits(GRACE), Some(whole));
    }

    #[test]
    fn a_client_hello_that_is_cut_differently_when_resent_completes() {
        // What Firefox does after it lost the large datagram three times.
        let body = message(1461);
        let mut listener = Listener::new();
        for seconds in [1, 2, 4] {
            assert_eq!(listener.gets(&[cut(&body, 1383, 1461)]), None);
            assert_eq!(listener.waits(Duration::from_secs(seconds)), None);
        }
        let last = [cut(&body, 0, 1163), cut(&body, 1163, 1461)];
        assert_eq!(listener.gets(&last), Some(cut(&body, 0, 1461)));
    }

    #[test]
    fn two_records_in_one_datagram_are_both_taken() {
        let body = message(500);
        let mut both = cut(&body, 0, 200);
        both.extend(cut(&body, 200, 500));
        assert_eq!(Listener::new().gets(&[both]), Some(cut(&body, 0, 500)));
    }

    #[test]
    fn lengths_that_lie_are_not_believed() {
        let body = message(100);
        let invalid = [
            fragment(MAX_LENGTH + 1, 0, &body),
            fragment(50, 0, &body),
            fragment(100, 1, &body),
            fragment(0, 0, &[]),
            fragment((1 << 24) - 1, (1 << 24) - 2, &[1]),
        ];
        for datagram in invalid {
            let mut listener = Listener::new();
            assert_eq!(listener.gets(&[datagram]), None);
            assert!(listener.assembler.pieces.is_empty(), "nothing is kept");
        }
    }

    #[test]
    fn a_forged_fragment_in_front_of_the_real_ones_does_not_win() {
        let body = message(1461);
        let whole = Some(cut(&body, 0, 1461));
        let real = [cut(&body, 0, 1383), cut(&body, 1383, 1461)];
        for forged in [
            // Of the same message: its end, its middle, its beginning, a part of the end.
            forged(&body, 1383, 1461),
            forged(&body, 700, 1100),
            forged(&body, 0, 1383),
            forged(&body, 1383, 1400),
            // Of another length, and no ClientHello.
            fragment(900, 0, &[0; 900]),
            fragment(1461, 0, &[0; 1461]),
        ] {
            // Long before, just before, and between two that arrive separately.
            let mut listener = Listener::new();
            assert_eq!(listener.gets(std::slice::from_ref(&forged)), None);
            assert_eq!(listener.waits(Duration::from_millis(200)), None);
            assert_eq!(listener.gets(&real), whole);
            let mut listener = Listener::new();
            let batch = [&[forged.clone()][..], &real].concat();
            assert_eq!(listener.gets(&batch), whole);
        }
    }

    #[test]
    fn a_forged_fragment_among_the_real_ones_loses_to_their_repetition() {
        let body = message(1461);
        let whole = Some(cut(&body, 0, 1461));
        let [first, second] = [cut(&body, 0, 1383), cut(&body, 1383, 1461)];
        // It forms a ClientHello as well: the bytes of an extension reveal nothing.
        let end = forged(&body, 1383, 1461);
        let mut listener = Listener::new();
        let batch = [first.clone(), end.clone(), second.clone(), end.clone()];
        assert_eq!(listener.gets(&batch), None);
        assert_eq!(listener.waits(Duration::from_secs(1)), None);
        assert_eq!(listener.gets(&[first.clone(), second.clone()]), whole);
        // A fragment that contradicts the beginning does not belong to the message.
        let batch = [first.clone(), forged(&body, 700, 1461), second.clone()];
        assert_eq!(Listener::new().gets(&batch), whole);
        // A flight that is fragmented differently also counts as a retransmission.
        let mut listener = Listener::new();
        let batch = [first, end, second];
        assert_eq!(listener.gets(&batch), None);
        assert_eq!(listener.waits(Duration::from_secs(1)), None);
        let again = [cut(&body, 0, 1163), cut(&body, 1163, 1461)];
        assert_eq!(listener.gets(&again), whole);
    }

    #[test]
    fn a_dispute_that_nothing_decides_ends() {
        let body = message(1461);
        let mut listener = Listener::new();
        let batch = [
            cut(&body, 0, 1383),
            forged(&body, 1383, 1461),
            cut(&body, 1383, 1461),
        ];
        assert_eq!(listener.gets(&batch), None);
        assert!(listener.waits(DISPUTE).is_some());
        assert_eq!(listener.waits(DISPUTE), None, "once");
    }

    #[test]
    fn pieces_are_bounded_and_the_last_are_kept() {
        let body = message(MAX_LENGTH);
        let mut listener = Listener::new();
        for byte in 0..200 {
            let piece = fragment(MAX_LENGTH, 1000, &vec![byte; 1200]);
            assert_eq!(listener.gets(&[piece]), None);
            let pieces = &listener.assembler.pieces;
            let kept: usize = pieces.iter().map(|piece| piece.data.len()).sum();
            assert!(pieces.len() <= MAX_PIECES && kept <= MAX_KEPT);
        }
        let real: Vec<_> = (0..MAX_LENGTH)
            .step_by(1024)
            .map(|at| cut(&body, at, at + 1024))
            .collect();
        assert_eq!(listener.gets(&real), Some(cut(&body, 0, MAX_LENGTH)));
        assert!(listener.assembler.pieces.is_empty(), "nothing is left");
    }

    #[test]
    fn contradictions_without_end_take_a_bounded_time() {
        // Each fragment in two versions: 2^8 messages.
        let body = message(800);
        let mut listener = Listener::new();
        let batch: Vec<_> = (0..800)
            .step_by(100)
            .flat_map(|at| {
                let real = cut(&body, at, at + 100);
                [real, forged(&body, at, at + 100)]
            })
            .collect();
        for datagram in &batch {
            assert_eq!(listener.assembler.handle(datagram), Verdict::Held);
        }
        assert!(listener.assembler.candidates().len() <= MAX_CANDIDATES);
    }

    #[test]
    fn other_datagrams_pass() {
        let mut assembler = ClientHelloAssembler::default();
        let encrypted = [22, 254, 253, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4];
        for datagram in [&[][..], &[22], &[0, 1, 0, 0], &encrypted] {
            assert_eq!(assembler.handle(datagram), Verdict::Pass);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(cases()))]

        #[test]
        fn any_cuts_in_any_order_make_the_same_record(
            length in SHORTEST..3000,
            cuts in proptest::collection::vec((any::<u16>(), any::<u16>()), 0..12),
            milliseconds in 0_u64..200,
        ) {
            let body = message(length);
            let whole = cut(&body, 0, length);
            let mut listener = Listener::new();
            let mut made = None;
            for (a, b) in cuts {
                let (a, b) = (usize::from(a) % (length + 1), usize::from(b) % (length + 1));
                let datagram = cut(&body, a.min(b), a.max(b));
                if made.is_some() {
                    prop_assert_eq!(listener.assembler.handle(&datagram), Verdict::Pass);
                    continue;
                }
                made = listener
                    .gets(&[datagram])
                    .or_else(|| listener.waits(Duration::from_millis(milliseconds)));
            }
            let made = made.or_else(|| listener.gets(std::slice::from_ref(&whole)));
            prop_assert_eq!(made, Some(whole));
        }

        #[test]
        fn arbitrary_datagrams_never_panic(
            start in proptest::collection::vec(any::<u8>(), 0..40),
            tail in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut datagram = vec![22, 254, 253, 0, 0];
            datagram.extend(start);
            datagram.extend(tail);
            let mut assembler = ClientHelloAssembler::default();
            for _ in 0..2 {
                let _ = assembler.handle(&datagram);
                let _ = assembler.poll(Instant::now());
            }
        }

        #[test]
        fn what_is_cut_off_or_goes_on_is_no_client_hello(
            length in SHORTEST..400,
            cut in 1_usize..40,
        ) {
            let body = message(length);
            prop_assert!(is_client_hello(&body));
            prop_assert!(!is_client_hello(&body[..length - cut.min(length - 43)]));
            let longer = [&body[..], &[0; 5][..]].concat();
            prop_assert!(!is_client_hello(&longer));
        }
    }
}
