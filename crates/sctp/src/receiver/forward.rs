//! FORWARD-TSN (RFC 3758): numbers that are missing and will not come.

use std::collections::VecDeque;

use bytes::BytesMut;

use super::super::packet::{DataHeader, ForwardTsn, flag};
use super::{Event, MAX_AHEAD, Receiver, Violation};

impl Receiver {
    /// Takes in a FORWARD-TSN (RFC 3758 section 3.6): numbers that are missing will not come.
    ///
    /// Ours are withheld and have never carried anything. A message that is given up can only be
    /// one of a stream that is not read: a channel is reliable, and a partially reliable one is
    /// reset as soon as it is opened.
    pub(crate) fn forward(
        &mut self,
        forward: ForwardTsn<'_>,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        self.sack_now = true;
        let mut number = self.extend(forward.cumulative_tsn);
        if let Some(hold) = self.hold_after {
            // The rest follows when the reset is performed, and the peer has said it again.
            number = number.min(hold);
        }
        if number <= self.cumulative || number - self.cumulative > MAX_AHEAD {
            return Ok(());
        }
        while self.cumulative < number {
            let missing = (self.runs.first()).map_or(number, |run| number.min(run.start() - 1));
            if missing > self.cumulative {
                self.abandon_at_hand()?;
                self.cumulative = missing;
            }
            self.take_runs(Some(number), events)?;
        }
        for (id, sequence) in forward.streams() {
            self.abandon(id, sequence)?;
        }
        self.take_ahead(events)
    }

    /// Whether a piece begins a message, or is of the one at hand.
    pub(super) fn continues(&self, header: DataHeader) -> bool {
        let is_of_it =
            |first: DataHeader| (first.stream, first.sequence) == (header.stream, header.sequence);
        header.flags & flag::BEGIN != 0 || self.at_hand.is_some_and(is_of_it)
    }

    /// The rest of the message at hand does not come.
    fn abandon_at_hand(&mut self) -> Result<(), Violation> {
        if let Some(header) = self.at_hand.take() {
            self.assembly = BytesMut::new();
            self.abandon(header.stream, header.sequence)?;
        }
        Ok(())
    }

    /// Messages of a stream up to this one do not come.
    pub(super) fn abandon(&mut self, id: u16, sequence: u16) -> Result<(), Violation> {
        match self.streams.get_mut(&id) {
            Some(stream) if stream.next.wrapping_sub(sequence).cast_signed() > 0 => Ok(()),
            Some(stream) if stream.ignored => {
                stream.next = sequence.wrapping_add(1);
                Ok(())
            }
            Some(_) => Err(Violation("a message of a reliable stream that is given up")),
            // It was reset since, and the peer has not heard of that.
            None => Ok(()),
        }
    }
}
