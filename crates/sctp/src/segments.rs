//! Reassembly of DATA chunks that arrive in segments (docs/wire.md, section 9).
//!
//! A chunk keeps its TSN and its length for ever, so one that was sent before the path began to
//! carry less can not be retransmitted whole, and must not depend on IP fragmentation, which many
//! paths drop.

use std::collections::VecDeque;

use super::Violation;
use super::packet::{DataHeader, Segment};

/// Maximum chunks of which only a part has arrived. Beyond it the oldest is dropped, as if the path
/// had lost it.
const MAX_CHUNKS: usize = 32;

/// Maximum ranges of one chunk: those of a chunk of 16 KiB in segments of 256 bytes.
const MAX_RANGES: usize = 64;

/// Maximum bytes of one chunk: the longest DTLS record (RFC 9147 section 4).
const MAX_CHUNK: usize = 16 * 1024;

#[derive(Debug)]
struct Partial {
    header: DataHeader,
    bytes: Vec<u8>,
    /// What has arrived, as disjoint ranges.
    arrived: Vec<(usize, usize)>,
}

/// The incomplete chunks of an association: at most half a megabyte.
#[derive(Debug, Default)]
pub(super) struct Segments(VecDeque<Partial>);

impl Segments {
    /// Adds a segment. Returns the chunk once it is complete.
    pub(super) fn add(
        &mut self,
        segment: Segment<'_>,
    ) -> Result<Option<(DataHeader, Vec<u8>)>, Violation> {
        let Segment {
            header,
            total,
            offset,
            payload,
        } = segment;
        let end = offset + payload.len();
        if payload.is_empty() || end > total || total > MAX_CHUNK {
            return Err(Violation::InvalidSegment);
        }
        let known = self
            .0
            .iter()
            .position(|partial| partial.header.tsn == header.tsn && partial.bytes.len() == total);
        let index = known.unwrap_or_else(|| {
            self.forget(header.tsn);
            if self.0.len() == MAX_CHUNKS {
                self.0.pop_front();
            }
            self.0.push_back(Partial {
                header,
                bytes: vec![0; total],
                arrived: Vec::new(),
            });
            self.0.len() - 1
        });
        let Some(partial) = self.0.get_mut(index) else {
            return Ok(None);
        };
        if let Some(place) = partial.bytes.get_mut(offset..end) {
            place.copy_from_slice(payload);
        }
        partial.add_range(offset, end);
        if !partial.is_complete() {
            return Ok(None);
        }
        let complete = self.0.remove(index);
        Ok(complete.map(|partial| (partial.header, partial.bytes)))
    }

    /// The chunk has arrived otherwise, or is not awaited any more.
    pub(super) fn forget(&mut self, tsn: u32) {
        self.0.retain(|partial| partial.header.tsn != tsn);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Partial {
    fn add_range(&mut self, mut start: usize, mut end: usize) {
        self.arrived.retain(|(other_start, other_end)| {
            let is_apart = *other_end < start || *other_start > end;
            if !is_apart {
                start = start.min(*other_start);
                end = end.max(*other_end);
            }
            is_apart
        });
        if self.arrived.len() < MAX_RANGES {
            self.arrived.push((start, end));
        }
    }

    fn is_complete(&self) -> bool {
        self.arrived == [(0, self.bytes.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(tsn: u32, total: usize, offset: usize, payload: &[u8]) -> Segment<'_> {
        Segment {
            header: DataHeader {
                flags: 3,
                tsn,
                stream: 1,
                ssn: 2,
                ppid: 53,
            },
            total,
            offset,
            payload,
        }
    }

    #[test]
    fn a_chunk_is_complete_once_all_of_it_has_arrived_in_any_order_and_division() {
        let whole: Vec<u8> = (0..100).collect();
        let mut segments = Segments::default();
        for (start, end) in [(80, 100), (0, 10), (5, 30), (0, 10), (50, 90)] {
            let added = segments.add(segment(7, 100, start, &whole[start..end]));
            assert_eq!(added, Ok(None));
        }
        let (header, bytes) = segments
            .add(segment(7, 100, 20, &whole[20..60]))
            .expect("valid")
            .expect("complete");
        assert_eq!((header.tsn, bytes), (7, whole));
        assert!(segments.is_empty());
    }

    #[test]
    fn what_can_not_be_is_a_violation() {
        let long = vec![0; MAX_CHUNK + 1];
        for invalid in [
            segment(7, 100, 0, &[]),
            segment(7, 100, 99, &[1, 2]),
            segment(7, 0, 0, &[1]),
            segment(7, MAX_CHUNK + 1, 0, &long),
        ] {
            let result = Segments::default().add(invalid);
            assert_eq!(result, Err(Violation::InvalidSegment));
        }
    }

    #[test]
    fn incomplete_chunks_are_few_and_small() {
        let mut segments = Segments::default();
        for tsn in 0..1_000 {
            assert_eq!(segments.add(segment(tsn, MAX_CHUNK, 0, &[1])), Ok(None));
        }
        assert_eq!(segments.0.len(), MAX_CHUNKS);
        for offset in (0..MAX_CHUNK).step_by(2) {
            assert_eq!(
                segments.add(segment(999, MAX_CHUNK, offset, &[1])),
                Ok(None)
            );
        }
        assert!(
            segments
                .0
                .iter()
                .all(|partial| partial.arrived.len() <= MAX_RANGES)
        );
        segments.forget(999);
        assert_eq!(segments.0.len(), MAX_CHUNKS - 1);
    }
}
