//! Wire format of packets and chunks (RFC 9260 section 3).

use bytes::{BufMut, Bytes, BytesMut};

use super::ecn::Counts;

/// Length of the common header (RFC 9260 section 3.1).
pub(crate) const COMMON_HEADER: usize = 12;

/// Length of the header of a DATA chunk (RFC 9260 section 3.3.1).
pub(crate) const DATA_HEADER: usize = 16;

/// Length of a SACK without gap ack blocks (RFC 9260 section 3.3.4).
const SACK_HEADER: usize = 16;

/// Chunk types (RFC 9260 section 3.2, RFC 6525).
pub(super) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const INIT: u8 = 1;
    pub(crate) const INIT_ACK: u8 = 2;
    pub(crate) const SACK: u8 = 3;
    pub(crate) const HEARTBEAT: u8 = 4;
    pub(crate) const HEARTBEAT_ACK: u8 = 5;
    pub(crate) const ABORT: u8 = 6;
    pub(crate) const SHUTDOWN: u8 = 7;
    pub(crate) const SHUTDOWN_ACK: u8 = 8;
    pub(crate) const ERROR: u8 = 9;
    pub(crate) const COOKIE_ECHO: u8 = 10;
    pub(crate) const COOKIE_ACK: u8 = 11;
    pub(crate) const SHUTDOWN_COMPLETE: u8 = 14;
    pub(crate) const RE_CONFIG: u8 = 130;
    /// Only listed among the extensions, never sent: this side needs no cookie (docs/wire.md).
    pub(crate) const WITHOUT_COOKIE: u8 = 189;
    /// ECN counts (docs/wire.md). Not assigned by IANA; those who do not know it skip it without a
    /// report (RFC 9260 section 3.2).
    pub(crate) const ECN_COUNTS: u8 = 190;
    pub(crate) const FORWARD_TSN: u8 = 192;
}

/// Flags of a DATA chunk (RFC 9260 section 3.3.1, RFC 7053).
pub(super) mod flag {
    pub(crate) const END: u8 = 1;
    pub(crate) const BEGIN: u8 = 2;
    pub(crate) const UNORDERED: u8 = 4;
    pub(crate) const IMMEDIATE: u8 = 8;
}

const CRC32C: crc::Crc<u32, crc::Table<16>> =
    crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// Writes the checksum of a packet whose checksum field is zero (RFC 9260 section 6.8). A packet
/// shorter than the common header is left unchanged.
pub fn put_checksum(packet: &mut [u8]) {
    let checksum = CRC32C.checksum(packet);
    if let Some(field) = packet.get_mut(8..COMMON_HEADER) {
        field.copy_from_slice(&checksum.to_le_bytes());
    }
}

/// Parses the header and chunks of a packet with a valid checksum.
///
/// Zero is valid, as announced to the peer (RFC 9653): DTLS has verified the packet.
pub(super) fn parse(packet: &[u8]) -> Option<(Header, Chunks<'_>)> {
    let (&[a, b, c, d, e, f, g, h, checksum @ ..], rest) =
        packet.split_first_chunk::<COMMON_HEADER>()?;
    if checksum != [0; 4] {
        let mut digest = CRC32C.digest();
        digest.update(&[a, b, c, d, e, f, g, h, 0, 0, 0, 0]);
        digest.update(rest);
        if digest.finalize().to_le_bytes() != checksum {
            return None;
        }
    }
    let header = Header {
        source: u16::from_be_bytes([a, b]),
        destination: u16::from_be_bytes([c, d]),
        tag: u32::from_be_bytes([e, f, g, h]),
    };
    Some((header, Chunks(rest)))
}

/// The common header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source: u16,
    pub(super) destination: u16,
    pub(super) tag: u32,
}

/// A chunk; its length is that of `value`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk<'a> {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) value: &'a [u8],
}

/// The chunks of a packet, up to the first with an invalid length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunks<'a>(&'a [u8]);

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        let (&[kind, flags, high, low], _) = self.0.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some(value) = self.0.get(4..length) else {
            self.0 = &[];
            return None;
        };
        // The last chunk may lack its padding.
        let next = length.next_multiple_of(4).min(self.0.len());
        self.0 = self.0.get(next..).unwrap_or_default();
        Some(Chunk { kind, flags, value })
    }
}

/// Reads the fields of a chunk or parameter in order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }
}

/// Parameters of a chunk (RFC 9260 section 3.2.1) as type and value, up to the first with an
/// invalid length.
pub(super) fn parameters(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (&[a, b, high, low], _) = bytes.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let value = bytes.get(4..length)?;
        let next = length.next_multiple_of(4).min(bytes.len());
        bytes = bytes.get(next..)?;
        Some((u16::from_be_bytes([a, b]), value))
    })
}

/// Appends a parameter and its padding.
pub(super) fn put_parameter(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let Ok(length) = u16::try_from(value.len() + 4) else {
        return;
    };
    out.put_u16(kind);
    out.put_u16(length);
    out.put_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Header of a DATA chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DataHeader {
    pub(super) flags: u8,
    pub(super) tsn: u32,
    pub(super) stream: u16,
    /// Stream sequence number.
    pub(super) ssn: u16,
    pub(super) ppid: u32,
}

impl DataHeader {
    pub(super) fn parse(chunk: Chunk<'_>) -> Option<(Self, &[u8])> {
        let mut fields = Fields(chunk.value);
        let header = Self {
            flags: chunk.flags,
            tsn: fields.u32()?,
            stream: fields.u16()?,
            ssn: fields.u16()?,
            ppid: fields.u32()?,
        };
        Some((header, fields.0))
    }
}

/// A FORWARD-TSN chunk (RFC 3758 section 3.2).
#[derive(Debug, Clone, Copy)]
pub(super) struct ForwardTsn<'a> {
    pub(super) cumulative_tsn: u32,
    streams: &'a [u8],
}

impl<'a> ForwardTsn<'a> {
    pub(super) fn parse(value: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(value);
        let cumulative_tsn = fields.u32()?;
        Some(Self {
            cumulative_tsn,
            streams: fields.0,
        })
    }

    /// Streams, and the last stream sequence number that is skipped on each.
    pub(super) fn streams(self) -> impl Iterator<Item = (u16, u16)> + use<'a> {
        pairs(self.streams)
    }
}

/// A SACK chunk. The gap ack blocks are parsed on demand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sack<'a> {
    pub(super) cumulative_tsn: u32,
    pub(super) a_rwnd: u32,
    gaps: &'a [u8],
    duplicates: &'a [u8],
}

impl<'a> Sack<'a> {
    pub(super) fn parse(value: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(value);
        let (cumulative_tsn, a_rwnd) = (fields.u32()?, fields.u32()?);
        let (gaps, duplicates) = (fields.u16()?, fields.u16()?);
        let (gaps, rest) = fields.0.split_at_checked(4 * usize::from(gaps))?;
        Some(Self {
            cumulative_tsn,
            a_rwnd,
            gaps,
            // Optional information: cut off rather than refused.
            duplicates: rest.get(..4 * usize::from(duplicates)).unwrap_or(rest),
        })
    }

    /// TSNs that arrived more than once.
    pub(super) fn duplicates(self) -> impl Iterator<Item = u32> + use<'a> {
        let tsns = self.duplicates.chunks_exact(4);
        tsns.filter_map(|tsn| Fields(tsn).u32())
    }

    /// Gap ack blocks: first and last TSN as offsets from the cumulative TSN.
    pub(super) fn gaps(self) -> impl Iterator<Item = (u16, u16)> + use<'a> {
        pairs(self.gaps)
    }
}

fn pairs(bytes: &[u8]) -> impl Iterator<Item = (u16, u16)> + use<'_> {
    bytes.chunks_exact(4).filter_map(|pair| {
        let mut fields = Fields(pair);
        Some((fields.u16()?, fields.u16()?))
    })
}

/// Bundles chunks into packets.
#[derive(Debug)]
pub(super) struct Packets {
    max: usize,
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
            header,
            zero_checksum,
            packet: buffer,
            finished: Vec::new(),
        }
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
                self.packet.reserve(8 * self.max);
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
        let most = (self.max - COMMON_HEADER - SACK_HEADER - before) / 4;
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

    #[test]
    fn lengths_that_lie_end_the_packet() {
        for length in [0, 1, 3, 9, 100, u16::MAX] {
            let mut bytes = vec![4, 0];
            bytes.put_u16(length);
            bytes.put_u32(0);
            assert_eq!(Chunks(&bytes).count(), 0, "{length}");
        }
        assert_eq!(Chunks(&[4, 0, 0, 4, 4, 0, 0, 5, 1]).count(), 2);
        assert_eq!(Chunks(&[4, 0, 0]).count(), 0);
        assert_eq!(parameters(&[0, 1, 0, 3, 0]).count(), 0);
        assert_eq!(parameters(&[0, 1, 0, 4, 0, 2, 0, 5, 9]).count(), 2);
    }
}
