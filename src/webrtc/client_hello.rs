//! Puts the first ClientHello together before the DTLS crate sees any of it.
//!
//! Browsers send a ClientHello that does not fit one datagram, and cut it differently when they
//! send it again (Firefox after three losses: 1 383 + 78 bytes become 1 163 + 298). dimpl's DTLS 1.2
//! server keeps fragments by their offset, never replaces one, and so waits for ever for a gap to
//! fill. Handing it one whole record hides every cut: the handshake hash is over the message, not
//! over its fragments (RFC 6347 section 4.2.6).

/// Longest ClientHello put together. Chromium's with X25519MLKEM768 has about 1 460 bytes.
const MAX_LENGTH: usize = 8192;

const RECORD_HEADER: usize = 13;
const HANDSHAKE_HEADER: usize = 12;
const CONTENT_TYPE_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;

/// What to do with a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is nothing to put together: hand it on as it is.
    Pass,
    /// It was kept, or dropped as malformed; nothing to hand on yet.
    Held,
    /// The ClientHello is complete: hand on this instead.
    Whole(Vec<u8>),
}

/// Collects the fragments of the first ClientHello of a connection.
#[derive(Debug, Default)]
pub(crate) struct ClientHelloAssembler {
    partial: Option<Partial>,
    done: bool,
}

#[derive(Debug)]
struct Partial {
    /// `message_seq` of the handshake message (RFC 6347 section 4.2.2).
    sequence: [u8; 2],
    body: Vec<u8>,
    /// Received ranges of `body`, sorted, apart from each other.
    received: Vec<(usize, usize)>,
}

/// One handshake fragment of a plaintext record.
struct Fragment<'a> {
    sequence: [u8; 2],
    total: usize,
    offset: usize,
    data: &'a [u8],
}

impl ClientHelloAssembler {
    /// Looks at a datagram that a server received before its handshake is complete.
    pub(crate) fn handle(&mut self, datagram: &[u8]) -> Verdict {
        if self.done || !starts_with_client_hello(datagram) {
            return Verdict::Pass;
        }
        let mut rest = datagram;
        while let Some((record, behind)) = split_record(rest) {
            rest = behind;
            let Some(fragment) = parse_fragment(record) else {
                continue;
            };
            if self.take(&fragment) {
                let header = datagram.get(..RECORD_HEADER).unwrap_or_default();
                return match self
                    .partial
                    .take()
                    .and_then(|partial| partial.into_record(header))
                {
                    Some(record) => {
                        // What comes later is a repetition, or belongs to the next flight.
                        self.done = true;
                        Verdict::Whole(record)
                    }
                    None => Verdict::Held,
                };
            }
        }
        Verdict::Held
    }

    /// Adds a fragment; `true` when the message is complete.
    fn take(&mut self, fragment: &Fragment<'_>) -> bool {
        let end = fragment.offset + fragment.data.len();
        if fragment.total > MAX_LENGTH || end > fragment.total || fragment.total == 0 {
            return false;
        }
        let partial = self.partial.get_or_insert_with(|| Partial {
            sequence: fragment.sequence,
            body: vec![0; fragment.total],
            received: Vec::new(),
        });
        if partial.body.len() != fragment.total || partial.sequence != fragment.sequence {
            // Another message than the one under way: a peer that means it sends it again, and a
            // forger must not be able to replace what the peer has sent.
            return false;
        }
        if let Some(room) = partial.body.get_mut(fragment.offset..end) {
            room.copy_from_slice(fragment.data);
        }
        partial.add_range(fragment.offset, end);
        partial.received == [(0, fragment.total)]
    }
}

impl Partial {
    fn add_range(&mut self, mut start: usize, mut end: usize) {
        if start == end {
            return;
        }
        self.received.retain(|&(from, to)| {
            let apart = to < start || from > end;
            if !apart {
                start = start.min(from);
                end = end.max(to);
            }
            apart
        });
        let at = self.received.partition_point(|&(from, _)| from < start);
        self.received.insert(at, (start, end));
    }

    /// One record with the whole message as one fragment, with the version, epoch and sequence
    /// number of the record that completed it.
    fn into_record(self, header: &[u8]) -> Option<Vec<u8>> {
        let total = u32::try_from(self.body.len()).ok()?.to_be_bytes();
        let length = u16::try_from(self.body.len() + HANDSHAKE_HEADER).ok()?;
        let mut record = Vec::with_capacity(RECORD_HEADER + HANDSHAKE_HEADER + self.body.len());
        record.extend_from_slice(header.get(..RECORD_HEADER - 2)?);
        record.extend_from_slice(&length.to_be_bytes());
        record.push(HANDSHAKE_CLIENT_HELLO);
        record.extend_from_slice(&total[1..]);
        record.extend_from_slice(&self.sequence);
        record.extend_from_slice(&[0, 0, 0]);
        record.extend_from_slice(&total[1..]);
        record.extend_from_slice(&self.body);
        Some(record)
    }
}

/// Whether the first record is a plaintext (epoch 0) handshake record with a ClientHello.
fn starts_with_client_hello(datagram: &[u8]) -> bool {
    datagram.first() == Some(&CONTENT_TYPE_HANDSHAKE)
        && datagram.get(3..5) == Some(&[0, 0])
        && datagram.get(RECORD_HEADER) == Some(&HANDSHAKE_CLIENT_HELLO)
}

/// Splits the first record, without its header, from what is behind it.
fn split_record(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u16::from_be_bytes(datagram.get(11..13)?.try_into().ok()?);
    let end = RECORD_HEADER + usize::from(length);
    Some((datagram.get(RECORD_HEADER..end)?, datagram.get(end..)?))
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

    fn message(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i % 251) as u8).collect()
    }

    fn cut(body: &[u8], from: usize, to: usize) -> Vec<u8> {
        fragment(body.len(), from, &body[from..to])
    }

    #[test]
    fn a_client_hello_in_one_datagram_is_complete_at_once() {
        let body = message(300);
        let datagram = cut(&body, 0, 300);
        let mut assembler = ClientHelloAssembler::default();
        assert_eq!(
            assembler.handle(&datagram),
            Verdict::Whole(datagram.clone())
        );
        assert_eq!(
            assembler.handle(&datagram),
            Verdict::Pass,
            "later ones pass"
        );
    }

    #[test]
    fn two_fragments_make_one_record_in_either_order() {
        let body = message(1461);
        let whole = Verdict::Whole(cut(&body, 0, 1461));
        for order in [[0, 1], [1, 0]] {
            let parts = [cut(&body, 0, 1383), cut(&body, 1383, 1461)];
            let mut assembler = ClientHelloAssembler::default();
            assert_eq!(assembler.handle(&parts[order[0]]), Verdict::Held);
            assert_eq!(assembler.handle(&parts[order[1]]), whole);
        }
    }

    #[test]
    fn a_client_hello_that_is_cut_differently_when_resent_completes() {
        // What Firefox does after it lost the large datagram three times.
        let body = message(1461);
        let mut assembler = ClientHelloAssembler::default();
        for _ in 0..3 {
            assert_eq!(assembler.handle(&cut(&body, 1383, 1461)), Verdict::Held);
        }
        assert_eq!(assembler.handle(&cut(&body, 0, 1163)), Verdict::Held);
        let whole = Verdict::Whole(cut(&body, 0, 1461));
        assert_eq!(assembler.handle(&cut(&body, 1163, 1461)), whole);
    }

    #[test]
    fn two_records_in_one_datagram_are_both_taken() {
        let body = message(500);
        let mut both = cut(&body, 0, 200);
        both.extend(cut(&body, 200, 500));
        let whole = Verdict::Whole(cut(&body, 0, 500));
        assert_eq!(ClientHelloAssembler::default().handle(&both), whole);
    }

    #[test]
    fn lengths_that_lie_are_not_believed() {
        let body = message(100);
        let liars = [
            fragment(MAX_LENGTH + 1, 0, &body),
            fragment(50, 0, &body),
            fragment(100, 1, &body),
            fragment(0, 0, &[]),
            fragment((1 << 24) - 1, (1 << 24) - 2, &[1]),
        ];
        for liar in liars {
            let mut assembler = ClientHelloAssembler::default();
            assert_eq!(assembler.handle(&liar), Verdict::Held);
            assert!(assembler.partial.is_none(), "nothing is kept");
        }
    }

    #[test]
    fn a_forged_fragment_of_another_length_does_not_replace_the_real_one() {
        let body = message(1000);
        let mut assembler = ClientHelloAssembler::default();
        assert_eq!(assembler.handle(&cut(&body, 0, 600)), Verdict::Held);
        assert_eq!(
            assembler.handle(&fragment(900, 0, &[0; 900])),
            Verdict::Held
        );
        let whole = Verdict::Whole(cut(&body, 0, 1000));
        assert_eq!(assembler.handle(&cut(&body, 600, 1000)), whole);
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
        #[test]
        fn any_cuts_in_any_order_make_the_same_record(
            length in 1_usize..3000,
            cuts in proptest::collection::vec((any::<u16>(), any::<u16>()), 0..12),
        ) {
            let body = message(length);
            let mut assembler = ClientHelloAssembler::default();
            let whole = Verdict::Whole(cut(&body, 0, length));
            let mut complete = false;
            for (a, b) in cuts {
                let (a, b) = (usize::from(a) % (length + 1), usize::from(b) % (length + 1));
                let verdict = assembler.handle(&cut(&body, a.min(b), a.max(b)));
                if complete {
                    prop_assert_eq!(verdict, Verdict::Pass);
                } else if verdict != Verdict::Held {
                    prop_assert_eq!(&verdict, &whole);
                    complete = true;
                }
            }
            if !complete {
                prop_assert_eq!(assembler.handle(&cut(&body, 0, length)), whole);
            }
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
            let _ = assembler.handle(&datagram);
            let _ = assembler.handle(&datagram);
        }
    }
}
