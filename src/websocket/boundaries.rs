//! Finds the ends of WebSocket frames (RFC 6455), so that a tungstenite instance that will be
//! replaced has read nothing of the next frame.

/// Maximum length of a frame header: two bytes, a length of eight, a mask of four (RFC 6455 section
/// 5.2).
const MAX_HEADER: usize = 14;

/// Tracks the frames of a stream, and how much of it may be read at once.
#[derive(Debug, Default)]
pub(super) struct FrameBoundaries {
    header: [u8; MAX_HEADER],
    /// Bytes of the header that have been read.
    filled: usize,
    /// Missing bytes of the payload, once the header is complete.
    missing: u64,
}

impl FrameBoundaries {
    /// Bytes up to the next boundary: the end of the payload, or of the header as far as its length
    /// is known.
    pub(super) fn wanted(&self) -> usize {
        if self.missing > 0 {
            return usize::try_from(self.missing).unwrap_or(usize::MAX);
        }
        self.header_len().saturating_sub(self.filled)
    }

    /// Whether the stream is at a frame boundary.
    pub(super) fn is_between_frames(&self) -> bool {
        self.filled == 0 && self.missing == 0
    }

    /// Records bytes that were read, at most [`Self::wanted`].
    pub(super) fn read(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.wanted(), "no more than was wanted");
        if self.missing > 0 {
            self.missing = self.missing.saturating_sub(bytes.len() as u64);
            return;
        }
        for byte in bytes {
            if let Some(place) = self.header.get_mut(self.filled) {
                *place = *byte;
                self.filled += 1;
            }
        }
        if self.filled == self.header_len() {
            self.missing = self.payload_len();
            self.filled = 0;
        }
    }

    /// Length of the header, as far as it is known.
    fn header_len(&self) -> usize {
        if self.filled < 2 {
            return 2;
        }
        let [_, second, ..] = self.header;
        let length = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        2 + length + mask
    }

    fn payload_len(&self) -> u64 {
        let [_, second, a, b, c, d, e, f, g, h, ..] = self.header;
        match second & 0x7f {
            126 => u64::from(u16::from_be_bytes([a, b])),
            127 => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            length => u64::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn no_read_goes_beyond_the_end_of_a_frame() {
        for seed in crate::random::seeds(500) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut stream = Vec::new();
            let mut ends = vec![];
            for _ in 0..20 {
                let len = match rng.random_range(0..4) {
                    0 => 0,
                    1 => rng.random_range(0..126),
                    2 => rng.random_range(126..1000),
                    _ => rng.random_range(60_000..70_000_usize),
                };
                let mask = if rng.random() { 0x80 } else { 0 };
                stream.push(0x82);
                match len {
                    0..126 => stream.push(mask | len as u8),
                    126..65_536 => {
                        stream.push(mask | 126);
                        stream.extend_from_slice(&(len as u16).to_be_bytes());
                    }
                    _ => {
                        stream.push(mask | 127);
                        stream.extend_from_slice(&(len as u64).to_be_bytes());
                    }
                }
                stream.extend_from_slice(&[0; 4][..if mask == 0 { 0 } else { 4 }]);
                stream.resize(stream.len() + len, 0xff);
                ends.push(stream.len());
            }
            let mut boundaries = FrameBoundaries::default();
            let (mut at, mut seen) = (0, Vec::new());
            while at < stream.len() {
                let wanted = boundaries.wanted();
                assert!(wanted > 0, "seed {seed}");
                let len = rng.random_range(1..=wanted.min(stream.len() - at));
                boundaries.read(&stream[at..at + len]);
                at += len;
                if boundaries.is_between_frames() {
                    seen.push(at);
                }
            }
            assert_eq!(seen, ends, "seed {seed}");
        }
    }
}
