//! FORWARD-TSN (RFC 3758): TSNs that will not arrive.

use std::collections::VecDeque;

use bytes::BytesMut;

use super::super::packet::{DataHeader, ForwardTsn, flag};
use super::{Event, MAX_AHEAD, Receiver, Violation};

impl Receiver {
    /// Handles a FORWARD-TSN (RFC 3758 section 3.6).
    ///
    /// The TSNs that this crate skips never carried anything. Only a message of a stream that is
    /// not read can be abandoned: a channel is reliable, and a partially reliable one is reset as
    /// soon as it is opened.
    pub(crate) fn forward(
        &mut self,
        forward: ForwardTsn<'_>,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        self.sack_now = true;
        let mut tsn = self.extend(forward.cumulative_tsn);
        if let Some(hold) = self.hold_after {
            // The rest follows when the reset is performed and the peer has retransmitted.
            tsn = tsn.min(hold);
        }
        if tsn <= self.cumulative_tsn || tsn - self.cumulative_tsn > MAX_AHEAD {
            return Ok(());
        }
        while self.cumulative_tsn < tsn {
            let missing = (self.gap_blocks.first()).map_or(tsn, |run| tsn.min(run.start() - 1));
            if missing > self.cumulative_tsn {
                self.abandon_partial()?;
                self.cumulative_tsn = missing;
            }
            self.take_buffered_until(Some(tsn), events)?;
        }
        for (id, ssn) in forward.streams() {
            self.abandon(id, ssn)?;
        }
        self.take_buffered(events)
    }

    /// Whether a fragment begins a message, or continues the partial one.
    pub(super) fn continues(&self, header: DataHeader) -> bool {
        let is_of_it = |first: DataHeader| (first.stream, first.ssn) == (header.stream, header.ssn);
        header.flags & flag::BEGIN != 0 || self.partial.is_some_and(is_of_it)
    }

    /// Drops the partial message, whose rest will not arrive.
    fn abandon_partial(&mut self) -> Result<(), Violation> {
        if let Some(header) = self.partial.take() {
            self.reassembly = BytesMut::new();
            self.abandon(header.stream, header.ssn)?;
        }
        Ok(())
    }

    /// Skips the messages of a stream up to `ssn`.
    pub(super) fn abandon(&mut self, id: u16, ssn: u16) -> Result<(), Violation> {
        match self.streams.get_mut(&id) {
            Some(stream) if stream.next.wrapping_sub(ssn).cast_signed() > 0 => Ok(()),
            Some(stream) if stream.ignored => {
                stream.next = ssn.wrapping_add(1);
                Ok(())
            }
            Some(_) => Err(Violation::AbandonedMessage),
            // The stream was reset since, and the peer does not know yet.
            None => Ok(()),
        }
    }
}
