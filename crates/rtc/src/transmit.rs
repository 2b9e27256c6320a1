//! Outgoing datagrams, laid out so that one system call sends a run of them.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use anabranch_sctp::Ecn;

/// Maximum bytes of one segmented send: the length field of UDP has 16 bits.
const MAX_BATCH: usize = 65_507;

/// Maximum bytes between two timeouts of an idle connection: liveness checks, and acknowledgements
/// of little data.
const IDLE_BYTES: usize = 4096;

/// A datagram in the buffer of a [`TransmitQueue`].
#[derive(Debug, Clone, Copy)]
struct Segment {
    end: usize,
    destination: SocketAddr,
    source: IpAddr,
    ecn: Ecn,
    /// The next datagram is sent by another call.
    ends_run: bool,
}

/// Datagrams in the order of their creation, contiguous in one buffer.
///
/// Bounded by what SCTP's congestion window and the handshakes let an engine send at a time. It is
/// not filled further while the socket is blocked.
#[derive(Debug, Default)]
pub struct TransmitQueue {
    /// Initialised memory, in use up to `end`.
    buffer: Vec<u8>,
    end: usize,
    /// Offset of the first unsent datagram.
    start: usize,
    segments: VecDeque<Segment>,
    /// Bytes sent since the last timeout.
    sent: usize,
    is_idle: bool,
}

/// A run of datagrams of one size to one destination; the last may be shorter.
#[derive(Debug)]
pub struct Run<'a> {
    /// The contiguous datagrams.
    pub contents: &'a [u8],
    /// Size of the datagrams, if there are several.
    pub segment_size: Option<usize>,
    /// Their destination.
    pub destination: SocketAddr,
    /// The local address to send from.
    pub source: IpAddr,
    /// Their ECN codepoint.
    pub ecn: Ecn,
    datagrams: usize,
}

impl TransmitQueue {
    /// Appends a datagram.
    pub fn push(&mut self, datagram: &[u8], source: IpAddr, destination: SocketAddr) {
        if let Some(room) = self.room(datagram.len()).get_mut(..datagram.len()) {
            room.copy_from_slice(datagram);
            self.commit(datagram.len(), source, destination);
        }
    }

    /// At least `length` bytes in which to write the next datagram, for [`Self::commit`].
    pub fn room(&mut self, length: usize) -> &mut [u8] {
        let needed = self.end + length;
        if self.buffer.len() < needed {
            self.buffer.resize(needed.max(2 * self.buffer.len()), 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Appends the first `length` bytes of [`Self::room`] as a datagram.
    pub fn commit(&mut self, length: usize, source: IpAddr, destination: SocketAddr) {
        self.commit_with_ecn(length, source, destination, Ecn::NotEct);
    }

    /// As [`Self::commit`], with an ECN codepoint.
    pub fn commit_with_ecn(
        &mut self,
        length: usize,
        source: IpAddr,
        destination: SocketAddr,
        ecn: Ecn,
    ) {
        self.end = (self.end + length).min(self.buffer.len());
        self.segments.push_back(Segment {
            end: self.end,
            destination,
            source,
            ecn,
            ends_run: false,
        });
    }

    /// Sends the datagrams before this call and those after it by different system calls. A probe
    /// of the path MTU is lost with its whole batch where it is longer than the path carries.
    pub fn end_run(&mut self) {
        if let Some(last) = self.segments.back_mut() {
            last.ends_run = true;
        }
    }

    /// Whether no datagram is queued.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Bytes queued.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// The longest run at the front, of at most `max_segments` datagrams.
    pub fn front(&self, max_segments: usize) -> Option<Run<'_>> {
        let first = self.segments.front()?;
        let size = first.end - self.start;
        let mut end = first.end;
        let mut datagrams = 1;
        let mut is_over = first.ends_run;
        for next in self
            .segments
            .iter()
            .skip(1)
            .take(max_segments.saturating_sub(1))
        {
            let length = next.end - end;
            let same_path = next.destination == first.destination && next.source == first.source;
            // One system call sends with one codepoint.
            let is_alike = same_path && next.ecn == first.ecn;
            if is_over || !is_alike || length > size || next.end - self.start > MAX_BATCH {
                break;
            }
            end = next.end;
            datagrams += 1;
            is_over = next.ends_run;
            if length < size {
                break;
            }
        }
        Some(Run {
            contents: self.buffer.get(self.start..end)?,
            segment_size: (datagrams > 1).then_some(size),
            destination: first.destination,
            source: first.source,
            ecn: first.ecn,
            datagrams,
        })
    }

    /// Removes the run that [`Self::front`] returns for this limit.
    pub fn pop(&mut self, max_segments: usize) {
        let datagrams = self.front(max_segments).map_or(0, |run| run.datagrams);
        for segment in self.segments.drain(..datagrams) {
            self.start = segment.end;
        }
        if self.segments.is_empty() {
            self.sent = self.sent.saturating_add(self.end);
            self.is_idle &= self.sent <= IDLE_BYTES;
            self.start = 0;
            self.end = 0;
        }
    }

    /// Call it after each timeout of the engine: if next to nothing was sent since the last one,
    /// the connection is idle, until more is sent.
    pub fn handle_timeout(&mut self) {
        self.is_idle = std::mem::take(&mut self.sent) <= IDLE_BYTES;
    }

    /// Frees the memory of an idle connection, if no datagram waits. Call it after sending. Any
    /// other keeps it: memory freed between two bursts would be allocated again.
    pub fn trim(&mut self) {
        if self.is_idle && self.is_empty() {
            self.buffer = Vec::new();
            self.segments = VecDeque::new();
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
    fn an_idle_queue_keeps_no_memory() {
        let mut queue = queue(&[(1200, 1); 40]);
        while queue.front(64).is_some() {
            queue.pop(64);
        }
        queue.handle_timeout();
        queue.trim();
        assert!(!queue.buffer.is_empty(), "a burst may follow");
        queue.push(&[0; 100], addr(0).ip(), addr(1));
        queue.handle_timeout();
        queue.trim();
        assert!(!queue.is_empty(), "what waits is kept");
        queue.pop(64);
        queue.trim();
        assert_eq!((queue.buffer.capacity(), queue.segments.capacity()), (0, 0));
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
    fn a_run_ends_where_it_was_ended() {
        let mut queue = queue(&[(1200, 1), (1200, 1)]);
        queue.end_run();
        queue.push(&[0; 1200], addr(0).ip(), addr(1));
        queue.end_run();
        queue.push(&[0; 900], addr(0).ip(), addr(1));
        let expected = [(2400, Some(1200)), (1200, None), (900, None)];
        assert_eq!(runs(queue, 64), expected);
    }

    #[test]
    fn another_codepoint_starts_a_new_run() {
        let mut queue = TransmitQueue::default();
        for ecn in [Ecn::NotEct, Ecn::Ect0, Ecn::Ect0, Ecn::NotEct] {
            queue.room(1200);
            queue.commit_with_ecn(1200, addr(0).ip(), addr(1), ecn);
        }
        let mut found = Vec::new();
        while let Some(run) = queue.front(64) {
            found.push((run.ecn, run.contents.len()));
            queue.pop(64);
        }
        let expected = [(Ecn::NotEct, 1200), (Ecn::Ect0, 2400), (Ecn::NotEct, 1200)];
        assert_eq!(found, expected);
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
