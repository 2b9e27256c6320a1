//! Datagrams on their way out, laid out so that runs of them go to the kernel in one call.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// Most bytes one segmented send can carry: a UDP datagram's length field has 16 bits.
const MAX_BATCH: usize = 65_507;

/// A datagram in the buffer of a [`TransmitQueue`].
#[derive(Debug, Clone, Copy)]
struct Segment {
    end: usize,
    destination: SocketAddr,
    source: IpAddr,
}

/// Datagrams in the order of their making, back to back in one buffer.
///
/// Bounded by what SCTP's congestion window and the handshakes let an engine emit at a time, and
/// not filled further while the socket is blocked.
#[derive(Debug, Default)]
pub(crate) struct TransmitQueue {
    buffer: Vec<u8>,
    /// Where the first unsent datagram begins.
    start: usize,
    segments: VecDeque<Segment>,
}

/// A run of datagrams of one size to one destination, the last of which may be shorter.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) contents: &'a [u8],
    /// Size of the datagrams, where there is more than one.
    pub(crate) segment_size: Option<usize>,
    pub(crate) destination: SocketAddr,
    pub(crate) source: IpAddr,
    datagrams: usize,
}

impl TransmitQueue {
    pub(crate) fn push(&mut self, datagram: &[u8], source: IpAddr, destination: SocketAddr) {
        self.buffer.extend_from_slice(datagram);
        self.segments.push_back(Segment {
            end: self.buffer.len(),
            destination,
            source,
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The longest run at the front, of at most `max_segments` datagrams.
    pub(crate) fn front(&self, max_segments: usize) -> Option<Run<'_>> {
        let first = self.segments.front()?;
        let size = first.end - self.start;
        let mut end = first.end;
        let mut datagrams = 1;
        for next in self
            .segments
            .iter()
            .skip(1)
            .take(max_segments.saturating_sub(1))
        {
            let length = next.end - end;
            let same_path = next.destination == first.destination && next.source == first.source;
            if !same_path || length > size || next.end - self.start > MAX_BATCH {
                break;
            }
            end = next.end;
            datagrams += 1;
            if length < size {
                break;
            }
        }
        Some(Run {
            contents: self.buffer.get(self.start..end)?,
            segment_size: (datagrams > 1).then_some(size),
            destination: first.destination,
            source: first.source,
            datagrams,
        })
    }

    /// Removes the run that [`Self::front`] returned with this limit.
    pub(crate) fn pop(&mut self, max_segments: usize) {
        let datagrams = self.front(max_segments).map_or(0, |run| run.datagrams);
        for segment in self.segments.drain(..datagrams) {
            self.start = segment.end;
        }
        if self.segments.is_empty() {
            self.buffer.clear();
            self.start = 0;
            // A burst must not keep its memory: an idle connection is to be small.
            self.buffer.shrink_to(4096);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn queue(datagrams: &[(usize, u16)]) -> TransmitQueue {
        let mut queue = TransmitQueue::default();
        for (length, port) in datagrams {
            queue.push(&vec![0; *length], addr(0).ip(), addr(*port));
        }
        queue
    }

    fn runs(mut queue: TransmitQueue, max_segments: usize) -> Vec<(usize, Option<usize>)> {
        let mut runs = Vec::new();
        while let Some(run) = queue.front(max_segments) {
            runs.push((run.contents.len(), run.segment_size));
            queue.pop(max_segments);
        }
        assert_eq!(queue.len(), 0);
        assert!(queue.is_empty());
        runs
    }

    #[test]
    fn equal_datagrams_go_out_in_one_run_that_a_shorter_one_ends() {
        let sent = queue(&[(1200, 1), (1200, 1), (300, 1), (1200, 1)]);
        assert_eq!(runs(sent, 64), [(2700, Some(1200)), (1200, None)]);
    }

    #[test]
    fn a_longer_datagram_or_another_peer_starts_a_new_run() {
        let sent = queue(&[(300, 1), (1200, 1), (1200, 2), (1200, 2)]);
        assert_eq!(
            runs(sent, 64),
            [(300, None), (1200, None), (2400, Some(1200))]
        );
    }

    #[test]
    fn runs_stay_within_the_segments_and_bytes_of_one_send() {
        assert_eq!(runs(queue(&[(100, 1); 5]), 2).len(), 3);
        assert_eq!(runs(queue(&[(100, 1); 5]), 1), [(100, None); 5]);
        for (length, _) in runs(queue(&[(1400, 1); 200]), 64) {
            assert!(length <= MAX_BATCH, "{length}");
        }
    }
}
