//! DTLS records: their boundaries in a datagram, and how many a key has protected.

use std::sync::atomic::{AtomicU64, Ordering};

use dimpl::ProtocolVersion;

/// The records of a datagram. The last may be truncated or invalid.
pub(super) fn records(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let length = record_length(datagram).unwrap_or(datagram.len());
        let (record, rest) = datagram.split_at(length.min(datagram.len()));
        datagram = rest;
        Some(record)
    })
}

/// Length of the first record; `None` if it extends to the end of the datagram.
fn record_length(datagram: &[u8]) -> Option<usize> {
    let header = match *datagram.first()? {
        // The unified header of DTLS 1.3 (RFC 9147 section 4), 0b001CSLEE. With a connection ID,
        // which was not negotiated, its length is unknown; without L the record extends to the end
        // of the datagram.
        first @ 0x20..=0x3f if first & 0x14 == 0x04 => {
            if first & 0x08 == 0 {
                4
            } else {
                5
            }
        }
        0x20..=0x3f => return None,
        _ => 13,
    };
    let length = datagram.get(header - 2..header)?.try_into().ok()?;
    Some(header + usize::from(u16::from_be_bytes(length)))
}

/// Counts of records under the keys of DTLS 1.2, which never change.
///
/// Its AES-GCM uses random nonces of 64 bits for each record, whatever its length, so the number of
/// records matters. Those of the peer are under another key, but it may choose its nonces in the
/// same way.
#[derive(Debug, Default)]
pub struct Protected {
    sent: AtomicU64,
    opened: AtomicU64,
}

impl Protected {
    /// Counts the records in an outgoing datagram.
    pub(super) fn sent(&self, version: Option<ProtocolVersion>, datagram: &[u8]) {
        if version == Some(ProtocolVersion::DTLS1_2) {
            // Records of epoch 0 are plaintext (RFC 6347 section 4.1).
            let is_protected = |record: &&[u8]| record.get(3..5) != Some(&[0, 0]);
            let records = records(datagram).filter(is_protected).count();
            self.sent.fetch_add(records as u64, Ordering::Relaxed);
        }
    }

    /// Counts an authentic record with data of the peer: nobody else may use up its key.
    pub(super) fn opened(&self, version: Option<ProtocolVersion>) {
        if version == Some(ProtocolVersion::DTLS1_2) {
            self.opened.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records under the key that was used more.
    pub fn most(&self) -> u64 {
        let sent = self.sent.load(Ordering::Relaxed);
        sent.max(self.opened.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_taken_apart_into_its_records() {
        let plain = [&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3][..], b"abc"].concat();
        let short = [&[0x24, 7, 0, 2][..], b"de"].concat();
        let long = [&[0x2c, 7, 7, 0, 2][..], b"fg"].concat();
        let without_length = [&[0x28, 7, 7][..], b"hi"].concat();
        let with_id = [&[0x3c, 7, 7, 0, 2][..], b"jk"].concat();
        let all = [&plain[..], &short, &long, &plain, &without_length].concat();
        let expected = [&plain[..], &short, &long, &plain, &without_length];
        assert_eq!(records(&all).collect::<Vec<_>>(), expected);
        let all = [&with_id[..], &plain].concat();
        assert_eq!(records(&all).collect::<Vec<_>>(), [&all[..]]);
        // Cut anywhere, the parts add up to the datagram.
        let all = [&plain[..], &short, &long].concat();
        for cut in 0..all.len() {
            let parts: Vec<_> = records(&all[..cut]).collect();
            assert_eq!(parts.concat(), all[..cut], "{cut}");
            assert!(parts.iter().all(|part| !part.is_empty()));
        }
    }

    #[test]
    fn protected_records_of_dtls_1_2_are_counted_one_by_one() {
        let record = |epoch, length: u8| {
            let header = [23, 0xfe, 0xfd, 0, epoch, 0, 0, 0, 0, 0, 1, 0, length];
            [&header[..], &vec![0; usize::from(length)]].concat()
        };
        let counts = Protected::default();
        let datagram = [record(1, 25), record(0, 40), record(1, 200)].concat();
        let version = Some(ProtocolVersion::DTLS1_2);
        counts.sent(version, &datagram);
        assert_eq!(counts.most(), 2);
        for other in [None, Some(ProtocolVersion::DTLS1_3)] {
            counts.sent(other, &datagram);
            counts.opened(other);
        }
        assert_eq!(counts.most(), 2);
        for opened in 1..5 {
            counts.opened(version);
            assert_eq!(counts.most(), opened.max(2));
        }
    }
}
