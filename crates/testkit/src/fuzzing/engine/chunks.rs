//! SCTP packets of a hostile peer (RFC 9260): changed, replayed and forged ones.

use bytes::{BufMut, Bytes, BytesMut};

use crate::fuzzing::Input;
use anabranch_sctp::put_checksum;

/// Maximum recorded packets of one side, for replays.
const MAX_EARLIER: usize = 32;

/// Longest packet that fits a datagram of 1200 bytes under any cipher.
const MAX_PACKET: usize = 1160;

const COMMON_HEADER: usize = 12;

/// Chunk types of SCTP, and some that are not assigned.
const KINDS: [u8; 22] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 64, 128, 130, 132, 192, 194, 255,
];

/// Offsets from a valid sequence number.
const DISTANCES: [u32; 24] = [
    0,
    1,
    u32::MAX,
    2,
    u32::MAX - 1,
    3,
    10,
    100,
    u32::MAX - 100,
    1000,
    4095,
    4096,
    16_384,
    65_535,
    65_536,
    1 << 20,
    1 << 24,
    1 << 30,
    (1 << 31) - 1,
    1 << 31,
    (1 << 31) + 1,
    3 << 30,
    u32::MAX - 65_536,
    u32::MAX - (1 << 24),
];

/// Changes and forges the packets of one side, with the association state seen in its own packets.
#[derive(Debug, Default)]
pub(super) struct Forger {
    /// Ports and verification tag.
    header: [u8; 8],
    /// TSN of the last DATA chunk.
    tsn: u32,
    /// Last cumulative TSN acknowledged.
    acknowledged: u32,
    /// Sequence number of the last RE-CONFIG request.
    request: u32,
    earlier: Vec<Bytes>,
    /// Delayed packets.
    pub(super) held: Vec<Bytes>,
}

impl Forger {
    /// Records an honest packet of this side.
    pub(super) fn observe(&mut self, packet: &Bytes) {
        if let Some(header) = packet.first_chunk::<8>() {
            self.header = *header;
        }
        for chunk in chunks(packet) {
            let field = |at: usize| {
                let bytes = chunk.get(at..)?.first_chunk::<4>()?;
                Some(u32::from_be_bytes(*bytes))
            };
            match chunk.first() {
                Some(0) => self.tsn = field(4).unwrap_or(self.tsn),
                Some(3) => self.acknowledged = field(4).unwrap_or(self.acknowledged),
                Some(130) => self.request = field(8).unwrap_or(self.request),
                _ => {}
            }
        }
        if self.earlier.len() == MAX_EARLIER {
            self.earlier.remove(0);
        }
        self.earlier.push(packet.clone());
    }

    /// A recorded packet.
    pub(super) fn earlier(&self, input: &mut Input<'_>) -> Option<Bytes> {
        let index = usize::from(input.u8()).checked_rem(self.earlier.len())?;
        self.earlier.get(index).cloned()
    }

    /// Adds to `out` what is sent instead of `packet`.
    pub(super) fn send(&mut self, input: &mut Input<'_>, packet: &Bytes, out: &mut Vec<Bytes>) {
        self.observe(packet);
        let mut bytes = packet.to_vec();
        match input.below(16) {
            // Many arrive unchanged, or the session would soon be over.
            0..=4 => {}
            5 => return,
            6 => out.push(packet.clone()),
            7 => return self.held.push(packet.clone()),
            8 => {
                for _ in 0..=input.below(4) {
                    let at = COMMON_HEADER + input.below(64);
                    let value = input.u8();
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
            }
            9 => {
                let length = usize::from(input.u16()) % (bytes.len() + 1);
                bytes.truncate(length);
            }
            10 => {
                let kind = input.pick(&KINDS);
                if let Some(first) = bytes.get_mut(COMMON_HEADER) {
                    *first = kind;
                }
            }
            11 => {
                // The TSN field of DATA, SACK, SHUTDOWN and FORWARD-TSN.
                let distance = input.pick(&DISTANCES);
                if let Some(field) = bytes.get_mut(16..20) {
                    let number = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
                    field.copy_from_slice(&number.wrapping_add(distance).to_be_bytes());
                }
            }
            12 => {
                for _ in 0..=input.below(4) {
                    self.forge_chunk(input, &mut bytes);
                }
            }
            13 => {
                bytes.truncate(COMMON_HEADER);
                self.forge_chunk(input, &mut bytes);
                bytes.extend_from_slice(packet.get(COMMON_HEADER..).unwrap_or_default());
            }
            14 => {
                // Without the first chunk, or with the chunks in reverse order.
                let reverse = input.bool();
                let mut all: Vec<_> = chunks(packet).map(<[u8]>::to_vec).collect();
                if reverse {
                    all.reverse();
                } else if !all.is_empty() {
                    all.remove(0);
                }
                bytes.truncate(COMMON_HEADER);
                bytes.extend(all.concat());
            }
            _ => return out.extend(self.forge(input)),
        }
        out.extend(finish(bytes));
    }

    /// A packet of forged chunks.
    pub(super) fn forge(&mut self, input: &mut Input<'_>) -> Option<Bytes> {
        let mut packet = self.start(input);
        for _ in 0..=input.below(4) {
            self.forge_chunk(input, &mut packet);
        }
        finish(packet)
    }

    /// Up to 256 packets, each with one DATA chunk, whose TSNs form an arithmetic sequence.
    pub(super) fn forge_burst(&mut self, input: &mut Input<'_>, out: &mut Vec<Bytes>) {
        let mut tsn = self.tsn.wrapping_add(input.pick(&DISTANCES));
        let step = input.pick(&[1, 2, 3, u32::MAX, 1 << 16]);
        let flags = input.u8();
        let stream = input.u16() % 512;
        let stream_step = u16::from(input.u8() % 3);
        let count = 4 * (1 + input.below(64));
        let body = input.take(8);
        for index in 0..count {
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            let mut packet = [&self.header[..], &[0; 4]].concat();
            let mut value = tsn.to_be_bytes().to_vec();
            value.put_u16(stream.wrapping_add(stream_step.wrapping_mul(index)));
            value.put_u16(index);
            value.put_u32(53);
            value.extend_from_slice(body);
            put_chunk(&mut packet, 0, flags, &value, 0);
            out.extend(finish(packet));
            tsn = tsn.wrapping_add(step);
        }
    }

    /// A packet of arbitrary bytes after a common header that is mostly valid.
    pub(super) fn raw(&mut self, input: &mut Input<'_>) -> Option<Bytes> {
        let mut packet = self.start(input);
        let length = usize::from(input.u8());
        packet.extend_from_slice(input.take(length));
        finish(packet)
    }

    /// A common header, without its checksum. Tag or ports are wrong in 3 of 16 cases.
    fn start(&self, input: &mut Input<'_>) -> Vec<u8> {
        let mut packet = self.header.to_vec();
        match input.below(16) {
            // The verification tag of an INIT.
            0 => packet[4..].fill(0),
            1 => packet[4..].copy_from_slice(&input.u32().to_be_bytes()),
            2 => packet[..4].copy_from_slice(&input.u32().to_be_bytes()),
            _ => {}
        }
        packet.extend_from_slice(&[0; 4]);
        packet
    }

    /// Appends a chunk, mostly of a known type and with plausible contents.
    fn forge_chunk(&mut self, input: &mut Input<'_>, packet: &mut Vec<u8>) {
        let mut value = Vec::new();
        let mut flags = 0;
        let kind = match input.below(16) {
            0..=2 => {
                flags = if input.bool() { 3 } else { input.u8() };
                value.put_u32(self.tsn.wrapping_add(input.pick(&DISTANCES)));
                let stream = match input.below(4) {
                    0 => 0,
                    1 => input.u16(),
                    _ => u16::from(input.u8() % 16),
                };
                value.put_u16(stream);
                value.put_u16(u16::from(input.u8()));
                let protocol = input.pick(&[50, 51, 53, 54, 56, 57, 0]);
                value.put_u32(protocol);
                let is_segment = input.below(6) == 0;
                if is_segment {
                    // Length of the whole and offset.
                    value.put_u16(input.pick(&[0, 1, 100, 256, 16_384, 16_385, u16::MAX]));
                    value.put_u16(input.pick(&[0, 0, 1, 50, 255, 16_383, u16::MAX]));
                }
                if protocol == 50 && input.bool() {
                    put_open(input, &mut value);
                } else {
                    let length = usize::from(input.u8());
                    value.extend_from_slice(input.take(length));
                }
                if is_segment { 188 } else { 0 }
            }
            3 | 4 => {
                put_sack(input, self.acknowledged, &mut value);
                3
            }
            5 | 6 => {
                // FORWARD-TSN or I-FORWARD-TSN: new cumulative TSN, then streams with sequence
                // numbers, or streams with flags and message identifiers.
                value.put_u32(self.tsn.wrapping_add(input.pick(&DISTANCES)));
                let interleaved = input.below(4) == 0;
                for _ in 0..input.below(12) {
                    value.put_u16(u16::from(input.u8()));
                    value.put_u16(u16::from(input.u8()));
                    if interleaved {
                        value.put_u32(input.u32());
                    }
                }
                if interleaved { 194 } else { 192 }
            }
            7 | 8 => {
                for _ in 0..=input.below(3) {
                    self.put_request(input, &mut value);
                }
                130
            }
            9 => {
                // INIT or INIT-ACK: tag, a_rwnd, streams, initial TSN, parameters.
                value.put_u32(input.u32());
                value.put_u32(input.pick(&[0, 1, 1500, 1 << 17, u32::MAX]));
                value.put_u16(input.pick(&[0, 1, 10, u16::MAX]));
                value.put_u16(input.pick(&[0, 1, 10, u16::MAX]));
                value.put_u32(self.tsn.wrapping_add(input.pick(&DISTANCES)));
                for _ in 0..input.below(4) {
                    let kind = input.pick(&[7, 9, 11, 12, 0x8000, 0x8002, 0x8003, 0x8008, 0xc000]);
                    let length = usize::from(input.u8());
                    let body = input.take(length);
                    put_parameter(&mut value, kind, body, input.u8());
                }
                1 + u8::from(input.bool())
            }
            10 => {
                // ABORT or ERROR with error causes.
                for _ in 0..input.below(3) {
                    let kind = u16::from(input.u8() % 16);
                    let length = usize::from(input.u8());
                    let body = input.take(length);
                    put_parameter(&mut value, kind, body, input.u8());
                }
                if input.below(4) == 0 { 6 } else { 9 }
            }
            11 => {
                // HEARTBEAT or HEARTBEAT-ACK.
                let length = usize::from(input.u8());
                let body = input.take(length);
                put_parameter(&mut value, 1, body, input.u8());
                4 + u8::from(input.bool())
            }
            12 => {
                value.put_u32(self.acknowledged.wrapping_add(input.pick(&DISTANCES)));
                input.pick(&[7, 8, 14])
            }
            13 => {
                let length = usize::from(input.u8());
                value.extend_from_slice(input.take(length));
                input.pick(&[10, 11])
            }
            14 => {
                // I-DATA (RFC 8260), which was not negotiated.
                flags = input.u8();
                value.put_u32(self.tsn.wrapping_add(input.pick(&DISTANCES)));
                value.put_u32(input.u32());
                value.put_u32(input.u32());
                value.put_u32(input.u32());
                64
            }
            _ => {
                flags = input.u8();
                let length = usize::from(input.u8());
                value.extend_from_slice(input.take(length));
                input.u8()
            }
        };
        let length_error = if input.below(8) == 0 { input.u8() } else { 0 };
        put_chunk(packet, kind, flags, &value, length_error);
    }

    /// Appends a parameter of RE-CONFIG (RFC 6525).
    fn put_request(&mut self, input: &mut Input<'_>, value: &mut Vec<u8>) {
        let mut body = Vec::new();
        let request = self.request.wrapping_add(input.pick(&DISTANCES));
        let kind = input.pick(&[13, 13, 13, 14, 15, 16, 16, 17, 18]);
        body.put_u32(request);
        match kind {
            13 => {
                body.put_u32(input.u32());
                body.put_u32(self.tsn.wrapping_add(input.pick(&DISTANCES)));
            }
            16 => body.put_u32(u32::from(input.u8() % 8)),
            17 | 18 => body.put_u32(input.u32()),
            _ => {}
        }
        if matches!(kind, 13 | 14) {
            for _ in 0..input.below(40) {
                body.put_u16(u16::from(input.u8() % 64));
            }
        }
        put_parameter(value, kind, &body, input.u8());
    }
}

fn put_sack(input: &mut Input<'_>, acknowledged: u32, value: &mut Vec<u8>) {
    value.put_u32(acknowledged.wrapping_add(input.pick(&DISTANCES)));
    value.put_u32(input.pick(&[0, 1, 1500, 1 << 16, 1 << 20, u32::MAX]));
    let gaps = input.below(64);
    let duplicates = input.below(8);
    // Counts that exceed the blocks that follow.
    let (more_gaps, more_duplicates) = match input.below(8) {
        0 => (u16::from(input.u8()) << 6, 0),
        1 => (0, u16::from(input.u8()) << 8),
        _ => (0, 0),
    };
    value.put_u16(u16::try_from(gaps).unwrap_or(0).wrapping_add(more_gaps));
    value.put_u16(
        u16::try_from(duplicates)
            .unwrap_or(0)
            .wrapping_add(more_duplicates),
    );
    let wide = input.bool();
    for _ in 0..gaps {
        for _ in 0..2 {
            value.put_u16(if wide {
                input.u16()
            } else {
                u16::from(input.u8())
            });
        }
    }
    for _ in 0..duplicates {
        value.put_u32(acknowledged.wrapping_add(input.pick(&DISTANCES)));
    }
}

/// A `DATA_CHANNEL_OPEN` (RFC 8832 section 5.1) whose lengths may be wrong.
fn put_open(input: &mut Input<'_>, value: &mut Vec<u8>) {
    value.put_u8(3);
    value.put_u8(input.pick(&[0, 0, 0, 0x80, 1, 2, 0x81, 0xff]));
    value.put_u16(256);
    value.put_u32(input.pick(&[0, 0, 1, u32::MAX]));
    let length = usize::from(input.u8());
    let label = input.take(length);
    let excess = u16::from(input.u8() % 4);
    value.put_u16(u16::try_from(label.len()).unwrap_or(0).wrapping_add(excess));
    value.put_u16(input.pick(&[0, 0, 1, u16::MAX]));
    value.extend_from_slice(label);
}

fn put_parameter(value: &mut Vec<u8>, kind: u16, body: &[u8], length_error: u8) {
    let length = u16::try_from(body.len() + 4).unwrap_or(u16::MAX);
    value.put_u16(kind);
    value.put_u16(wrong_length(length, length_error));
    value.extend_from_slice(body);
    value.resize(value.len().next_multiple_of(4), 0);
}

fn put_chunk(packet: &mut Vec<u8>, kind: u8, flags: u8, value: &[u8], length_error: u8) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    packet.put_u8(kind);
    packet.put_u8(flags);
    packet.put_u16(wrong_length(length, length_error));
    packet.extend_from_slice(value);
    packet.resize(packet.len().next_multiple_of(4), 0);
}

/// A length that is correct for most values of `error`.
fn wrong_length(length: u16, error: u8) -> u16 {
    match error {
        0..=239 => length,
        240 => 0,
        241 => 3,
        242 => 4,
        243 => u16::MAX,
        244..=249 => length.wrapping_add(u16::from(error - 243)),
        _ => length.wrapping_sub(u16::from(error - 249)),
    }
}

fn chunks(packet: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = packet.get(COMMON_HEADER..).unwrap_or_default();
    std::iter::from_fn(move || {
        let &[_, _, high, low] = rest.first_chunk()?;
        let length = usize::from(u16::from_be_bytes([high, low])).next_multiple_of(4);
        let (chunk, after) = rest.split_at(length.clamp(4, rest.len()));
        rest = after;
        Some(chunk)
    })
}

/// Truncates the packet to [`MAX_PACKET`] and sets its checksum. `None` without a common header.
fn finish(mut packet: Vec<u8>) -> Option<Bytes> {
    packet.truncate(MAX_PACKET);
    packet.get_mut(8..COMMON_HEADER)?.fill(0);
    let mut packet = BytesMut::from(&packet[..]);
    put_checksum(&mut packet);
    Some(packet.freeze())
}
