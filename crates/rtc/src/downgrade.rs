//! Downgrade protection: a server that supports DTLS 1.3, and whose ServerHello says that it was
//! offered 1.2 only.
//!
//! Such a server ends its random with a mark. The signature over the key exchange protects it, and
//! a client that has offered 1.3 must not continue (RFC 8446 section 4.1.3, RFC 9147 section 5.3):
//! somebody has removed the offer. dimpl does not check the mark. The hello is dropped instead of
//! ending the handshake: it may be forged, and then the genuine one follows.
//!
//! dimpl does not set the mark either, and the random of a listener can not be chosen from outside.
//! So a dialler that checks the mark does not notice that its offer did not reach a listener of
//! this crate. It still has Finished, which covers both hellos.

/// The last bytes of a random for 1.2, and for older versions.
const MARKS: [&[u8; 8]; 2] = [b"DOWNGRD\x01", b"DOWNGRD\x00"];

const RECORD_HEADER: usize = 13;
const HANDSHAKE_HEADER: usize = 12;
const CONTENT_TYPE_HANDSHAKE: u8 = 22;
const HANDSHAKE_SERVER_HELLO: u8 = 2;

/// End of the random in a ServerHello, after the version.
const RANDOM_END: usize = 2 + 32;

/// Whether a plaintext record contains a ServerHello with such a mark, or one fragmented within its
/// random, which no server sends.
pub(super) fn is_downgrade(record: &[u8]) -> bool {
    let is_plaintext_handshake =
        record.first() == Some(&CONTENT_TYPE_HANDSHAKE) && record.get(3..5) == Some(&[0, 0]);
    if !is_plaintext_handshake {
        return false;
    }
    let mut rest = record.get(RECORD_HEADER..).unwrap_or_default();
    while let Some((header, after)) = rest.split_first_chunk::<HANDSHAKE_HEADER>() {
        let [kind, _, _, _, _, _, a, b, c, d, e, f] = *header;
        let u24 = |a, b, c| usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
        let (offset, length) = (u24(a, b, c), u24(d, e, f));
        let (fragment, next) = after.split_at(length.min(after.len()));
        if kind == HANDSHAKE_SERVER_HELLO && offset < RANDOM_END {
            let mark = fragment.get(RANDOM_END - 8..RANDOM_END);
            let is_whole = offset == 0 && mark.is_some();
            if !is_whole || MARKS.iter().any(|known| mark == Some(&known[..])) {
                return true;
            }
        }
        rest = next;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A handshake message, or a fragment of it.
    fn fragment(kind: u8, body: &[u8], from: usize, to: usize) -> Vec<u8> {
        let u24 = |number: usize| u32::try_from(number).unwrap().to_be_bytes();
        let mut message = vec![kind];
        message.extend_from_slice(&u24(body.len())[1..]);
        message.extend_from_slice(&[0, 0]);
        message.extend_from_slice(&u24(from)[1..]);
        message.extend_from_slice(&u24(to - from)[1..]);
        message.extend_from_slice(&body[from..to]);
        message
    }

    fn record(epoch: u8, messages: &[Vec<u8>]) -> Vec<u8> {
        let messages = messages.concat();
        let mut record = vec![22, 254, 253, 0, epoch, 0, 0, 0, 0, 0, 0];
        record.extend(u16::try_from(messages.len()).unwrap().to_be_bytes());
        record.extend(messages);
        record
    }

    fn hello(end: &[u8; 8]) -> Vec<u8> {
        [&[254, 253][..], &[7; 24], end, &[0, 0xc0, 0x2b, 0]].concat()
    }

    #[test]
    fn a_mark_is_found_in_whatever_record_it_comes() {
        for mark in MARKS {
            let body = hello(mark);
            let whole = fragment(2, &body, 0, body.len());
            assert!(is_downgrade(&record(0, std::slice::from_ref(&whole))));
            // After another message, before another, and without its end.
            let other = fragment(11, &[1; 50], 0, 50);
            assert!(is_downgrade(&record(0, &[other.clone(), whole, other])));
            assert!(is_downgrade(&record(0, &[fragment(2, &body, 0, 34)])));
            // Fragmented within the random, which would hide the mark.
            assert!(is_downgrade(&record(0, &[fragment(2, &body, 0, 30)])));
            assert!(is_downgrade(&record(0, &[fragment(2, &body, 30, 36)])));
        }
    }

    #[test]
    fn other_hellos_and_other_messages_have_none() {
        let body = hello(b"DOWNGRD\x02");
        let whole = fragment(2, &body, 0, body.len());
        assert!(!is_downgrade(&record(0, std::slice::from_ref(&whole))));
        assert!(!is_downgrade(&record(0, &[fragment(2, &body, 34, 38)])));
        let marked = hello(MARKS[0]);
        let hello_of_client = fragment(1, &marked, 0, marked.len());
        assert!(!is_downgrade(&record(0, &[hello_of_client])));
        // Not plaintext.
        let whole = fragment(2, &marked, 0, marked.len());
        assert!(!is_downgrade(&record(1, std::slice::from_ref(&whole))));
        let whole = record(0, &[whole]);
        for cut in 0..RECORD_HEADER + HANDSHAKE_HEADER {
            assert!(!is_downgrade(&whole[..cut]), "{cut}");
        }
    }
}
