//! Bundles chunks into packets (RFC 9260 section 6.10).

use bytes::{BufMut, Bytes, BytesMut};

use super::ecn::Counts;
use super::packet::{
    COMMON_HEADER, DATA_HEADER, DataHeader, SEGMENT_HEADER, Segment, kind, put_checksum,
};

/// Length of a SACK without gap ack blocks (RFC 9260 section 3.3.4).
const SACK_HEADER: usize = 16;

/// Maximum memory reserved for the packets of one call. Longer packets are few.
const MAX_RESERVED: usize = 64 * 1024;

/// Bundles chunks into packets.
#[derive(Debug)]
pub(super) struct Packets {
    max: usize,
    /// Longest packet with a SACK that needs the room.
    max_sack: usize,
    header: [u8; 8],
    zero_checksum: bool,
    /// The current packet. Finished packets are split off its front, and share an allocation.
    packet: BytesMut,
    finished: Vec<Bytes>,
}

impl Packets {
    /// `buffer` is the one returned by the previous [`Packets::finish`]: its memory is reused once
    /// the packets in it are dropped.
    pub(super) fn new(
        max: usize,
        (ports, tag): ([u16; 2], u32),
        zero_checksum: bool,
        buffer: BytesMut,
    ) -> Self {
        let mut header = [0; 8];
        let mut fields = &mut header[..];
        fields.put_u16(ports[0]);
        fields.put_u16(ports[1]);
        fields.put_u32(tag);
        Self {
            max,
            max_sack: max,
            header,
            zero_checksum,
            packet: buffer,
            finished: Vec::new(),
        }
    }

    /// Limits SACKs to packets that every path takes: a longer one would be lost with a packet that
    /// the path no longer takes.
    pub(super) fn limit_sacks(&mut self, max: usize) {
        self.max_sack = max;
    }

    /// Bytes of chunks in an empty packet.
    pub(super) fn capacity(&self) -> usize {
        self.max - COMMON_HEADER
    }

    /// Bytes left in the current packet.
    pub(super) fn room(&self) -> usize {
        self.max - self.packet.len().max(COMMON_HEADER)
    }

    /// Number of finished packets.
    pub(super) fn len(&self) -> usize {
        self.finished.len()
    }

    /// Buffer for a chunk of `length` bytes, padding included, which must fit an empty packet.
    fn chunk(&mut self, length: usize) -> &mut BytesMut {
        if length > self.room() {
            self.finish_packet();
        }
        if self.packet.is_empty() {
            if self.packet.capacity() < self.max {
                // For a few packets: most calls send several.
                self.packet
                    .reserve(self.max.max((8 * self.max).min(MAX_RESERVED)));
            }
            self.packet.put_slice(&self.header);
            self.packet.put_u32(0);
        }
        &mut self.packet
    }

    /// Appends a chunk, or nothing if it does not fit a packet.
    pub(super) fn put(&mut self, kind: u8, flags: u8, value: &[u8]) {
        let length = value.len() + 4;
        let padded = length.next_multiple_of(4);
        let Ok(field) = u16::try_from(length) else {
            return;
        };
        if padded > self.max - COMMON_HEADER {
            return;
        }
        let out = self.chunk(padded);
        out.put_slice(&[kind, flags]);
        out.put_u16(field);
        out.put_slice(value);
        out.put_bytes(0, padded - length);
    }

    /// Appends a DATA chunk, whose payload must fit a packet.
    pub(super) fn put_data(&mut self, header: DataHeader, payload: &[u8]) {
        let length = DATA_HEADER + payload.len();
        let padded = length.next_multiple_of(4);
        let Ok(field) = u16::try_from(length) else {
            return;
        };
        let out = self.chunk(padded);
        out.put_slice(&[kind::DATA, header.flags]);
        out.put_u16(field);
        out.put_u32(header.tsn);
        out.put_u16(header.stream);
        out.put_u16(header.ssn);
        out.put_u32(header.ppid);
        out.put_slice(payload);
        out.put_bytes(0, padded - length);
    }

    /// Appends a part of a DATA chunk, which must fit a packet.
    pub(super) fn put_segment(&mut self, segment: Segment<'_>) {
        let Segment {
            header,
            total,
            offset,
            payload,
        } = segment;
        let length = SEGMENT_HEADER + payload.len();
        let padded = length.next_multiple_of(4);
        let (Ok(field), Ok(total), Ok(offset)) = (
            u16::try_from(length),
            u16::try_from(total),
            u16::try_from(offset),
        ) else {
            return;
        };
        let out = self.chunk(padded);
        out.put_slice(&[kind::SEGMENT, header.flags]);
        out.put_u16(field);
        out.put_u32(header.tsn);
        out.put_u16(header.stream);
        out.put_u16(header.ssn);
        out.put_u32(header.ppid);
        out.put_u16(total);
        out.put_u16(offset);
        out.put_slice(payload);
        out.put_bytes(0, padded - length);
    }

    /// Appends a SACK with the first gap ack blocks that fit (RFC 9260 section 3.3.4), and the ECN
    /// counts before it in the same packet.
    pub(super) fn put_sack(
        &mut self,
        cumulative_tsn: u32,
        a_rwnd: u32,
        gaps: impl ExactSizeIterator<Item = (u16, u16)>,
        duplicates: &[u32],
        counts: Option<Counts>,
    ) {
        let before = counts.map_or(0, |_| Counts::CHUNK);
        let most = (self.max_sack - COMMON_HEADER - SACK_HEADER - before) / 4;
        let count = gaps.len().min(most);
        let duplicates = duplicates.get(..most - count).unwrap_or(duplicates);
        let length = SACK_HEADER + 4 * (count + duplicates.len());
        let (Ok(field), Ok(gap_count)) = (u16::try_from(length), u16::try_from(count)) else {
            return;
        };
        if before + length > self.room() {
            self.finish_packet();
        }
        if let Some(counts) = counts {
            self.put(kind::ECN_COUNTS, 0, &counts.encode());
        }
        let out = self.chunk(length);
        out.put_slice(&[kind::SACK, 0]);
        out.put_u16(field);
        out.put_u32(cumulative_tsn);
        out.put_u32(a_rwnd);
        out.put_u16(gap_count);
        out.put_u16(duplicates.len() as u16);
        for (first, last) in gaps.take(count) {
            out.put_u16(first);
            out.put_u16(last);
        }
        for tsn in duplicates {
            out.put_u32(*tsn);
        }
    }

    /// Bytes of all packets.
    pub(super) fn bytes(&self) -> usize {
        self.finished.iter().map(Bytes::len).sum::<usize>() + self.packet.len()
    }

    /// Drops all packets.
    pub(super) fn clear(&mut self) {
        self.finished.clear();
        self.packet.clear();
    }

    /// Finishes the current packet.
    pub(super) fn finish_packet(&mut self) {
        if self.packet.is_empty() {
            return;
        }
        let mut packet = self.packet.split();
        // Packets with INIT or COOKIE-ECHO always have a checksum (RFC 9653 section 5.2).
        let first = packet.get(COMMON_HEADER);
        if !self.zero_checksum || matches!(first, Some(&kind::INIT | &kind::COOKIE_ECHO)) {
            put_checksum(&mut packet);
        }
        self.finished.push(packet.freeze());
    }

    /// Finishes the current packet and appends those of `others`.
    pub(super) fn append(&mut self, others: Self) {
        self.finish_packet();
        self.finished.extend(others.finish().0);
    }

    /// Returns the packets, and the buffer for the next ones.
    pub(super) fn finish(mut self) -> (Vec<Bytes>, BytesMut) {
        self.finish_packet();
        (self.finished, self.packet)
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Sack, flag, parse};
    use super::*;

    fn packets(max: usize) -> Packets {
        Packets::new(max, ([5000, 5001], 7), false, BytesMut::new())
    }

    #[test]
    fn what_is_written_is_read() {
        let mut out = packets(1160);
        let header = DataHeader {
            flags: flag::BEGIN | flag::END,
            tsn: 9,
            stream: 3,
            ssn: 4,
            ppid: 53,
        };
        out.put_sack(1, 2, [(2, 3), (5, 9)].into_iter(), &[1, 7], None);
        out.put_data(header, b"payload");
        let finished = out.finish().0;
        assert_eq!(finished.len(), 1);
        let (common, chunks) = parse(&finished[0]).expect("a packet");
        assert_eq!(
            (common.source, common.destination, common.tag),
            (5000, 5001, 7)
        );
        let chunks: Vec<_> = chunks.collect();
        let sack = Sack::parse(chunks[0].value).expect("a SACK");
        assert_eq!((sack.cumulative_tsn, sack.a_rwnd), (1, 2));
        assert_eq!(sack.gaps().collect::<Vec<_>>(), [(2, 3), (5, 9)]);
        assert_eq!(sack.duplicates().collect::<Vec<_>>(), [1, 7]);
        assert_eq!(
            DataHeader::parse(chunks[1]),
            Some((header, &b"payload"[..]))
        );
    }

    #[test]
    fn a_packet_with_another_checksum_is_none_and_one_without_is() {
        let mut out = packets(1160);
        out.put(kind::COOKIE_ACK, 0, &[]);
        let packet = out.finish().0.remove(0).to_vec();
        assert!(parse(&packet).is_some());
        for at in 0..packet.len() {
            let mut changed = packet.clone();
            changed[at] ^= 1;
            assert!(parse(&changed).is_none(), "byte {at}");
            assert!(parse(&packet[..at]).is_none(), "{at} bytes");
        }
        let mut without = packet.clone();
        without[8..12].fill(0);
        assert!(parse(&without).is_some());
    }

    #[test]
    fn packets_are_filled_and_not_overfilled() {
        for max in [600, 1159, 1160] {
            let mut out = packets(max);
            let header = DataHeader {
                flags: 0,
                tsn: 0,
                stream: 0,
                ssn: 0,
                ppid: 0,
            };
            for length in [100, 500, 1, 2, 3, 0, 400, 572, 12, 13] {
                out.put_data(header, &[1; 600][..length]);
            }
            out.put(kind::HEARTBEAT_ACK, 0, &vec![1; max]);
            let finished = out.finish().0;
            let lengths: Vec<_> = finished.iter().map(Bytes::len).collect();
            assert!(lengths.iter().all(|length| *length <= max), "{lengths:?}");
            let chunks = |packet| parse(packet).expect("a packet").1.count();
            assert_eq!(
                finished.iter().map(|packet| chunks(packet)).sum::<usize>(),
                10
            );
        }
    }

    #[test]
    fn a_sack_tells_of_the_gaps_that_fit() {
        for gaps in [0_u16, 10, 283, 284, 4000] {
            let mut out = packets(1160);
            let all: Vec<_> = (0..gaps).map(|gap| (2 * gap + 2, 2 * gap + 2)).collect();
            out.put_sack(9, 1 << 20, all.iter().copied(), &[1, 2], None);
            let finished = out.finish().0;
            assert_eq!(finished.len(), 1);
            assert!(finished[0].len() <= 1160);
            let chunk = parse(&finished[0])
                .expect("a packet")
                .1
                .next()
                .expect("one");
            let parsed: Vec<_> = Sack::parse(chunk.value).expect("valid").gaps().collect();
            assert_eq!(parsed, all[..usize::from(gaps.min(283))]);
        }
    }
}
