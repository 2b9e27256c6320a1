//! Wire format of packets and chunks (RFC 9260 section 3).

use bytes::BufMut;

/// Length of the common header (RFC 9260 section 3.1).
pub(crate) const COMMON_HEADER: usize = 12;

/// Length of the header of a DATA chunk (RFC 9260 section 3.3.1).
pub(crate) const DATA_HEADER: usize = 16;

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
    /// Padding (RFC 4820 section 3).
    pub(crate) const PAD: u8 = 132;
    /// A part of a DATA chunk (docs/wire.md). Not assigned by IANA, as the next two.
    pub(crate) const SEGMENT: u8 = 188;
    /// Only listed among the extensions, never sent: this side needs no cookie (docs/wire.md).
    pub(crate) const WITHOUT_COOKIE: u8 = 189;
    /// ECN counts (docs/wire.md). Those who do not know it skip it without a
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

/// A part of a DATA chunk that is too long for the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    /// Header of the whole chunk.
    pub(super) header: DataHeader,
    /// Length of its user data.
    pub(super) total: usize,
    /// Where in it the payload belongs.
    pub(super) offset: usize,
    pub(super) payload: &'a [u8],
}

/// Header of a SEGMENT chunk.
pub(super) const SEGMENT_HEADER: usize = DATA_HEADER + 4;

impl<'a> Segment<'a> {
    pub(super) fn parse(chunk: Chunk<'a>) -> Option<Self> {
        let (header, rest) = DataHeader::parse(chunk)?;
        let mut fields = Fields(rest);
        Some(Self {
            header,
            total: fields.u16()?.into(),
            offset: fields.u16()?.into(),
            payload: fields.0,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

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
