//! Incoming streams: reading, ignoring and ending them.

use std::collections::VecDeque;

use super::{Event, Inbound, InboundState, Message, OVERHEAD, Receiver};
use crate::tally::lower;

impl Receiver {
    /// Creates a stream on which nothing has arrived; `false` if it exists.
    pub(crate) fn open(&mut self, id: u16) -> bool {
        let is_new = !self.streams.contains_key(&id);
        if is_new {
            self.streams.insert(id, Inbound::default());
        }
        is_new
    }

    /// Whether the stream exists and the peer has not reset it.
    pub(crate) fn is_open(&self, id: u16) -> bool {
        self.streams.get(&id).is_some_and(Inbound::is_open)
    }

    /// The next message of a stream.
    pub(crate) fn read(&mut self, id: u16, events: &mut VecDeque<Event>) -> Option<Message> {
        let message = self.streams.get_mut(&id)?.ready.pop_front();
        if let Some(message) = &message {
            lower(&mut self.held, message.bytes.len() + OVERHEAD);
        }
        self.end_if_read(id, events);
        message
    }

    /// Drops what the stream holds, and what arrives on it from now on.
    pub(crate) fn ignore(&mut self, id: u16, events: &mut VecDeque<Event>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.ignored = true;
        let waiting = std::mem::take(&mut stream.waiting);
        let ready = std::mem::take(&mut stream.ready);
        for message in ready.into_iter().chain(waiting.into_values()) {
            lower(&mut self.held, message.bytes.len() + OVERHEAD);
        }
        self.end_if_read(id, events);
    }

    /// The outgoing direction of a stream was reset.
    pub(crate) fn on_outgoing_reset(&mut self, id: u16) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.outgoing_reset = true;
        }
    }

    /// The peer has reset a stream: what arrives now belongs to the next stream on its id.
    pub(crate) fn reset(&mut self, id: u16, events: &mut VecDeque<Event>) {
        let stream = match self.successors.get_mut(&id).and_then(VecDeque::back_mut) {
            Some(last) => Some(last),
            None => self.streams.get_mut(&id),
        };
        let Some(stream) = stream else {
            return;
        };
        if stream.is_open() {
            stream.state = InboundState::Reset;
        }
        // These wait for a message that the peer never sent.
        for message in std::mem::take(&mut stream.waiting).into_values() {
            lower(&mut self.held, message.bytes.len() + OVERHEAD);
        }
        self.end_if_read(id, events);
    }

    /// Ends a stream that was reset and is read to its end.
    pub(super) fn end_if_read(&mut self, id: u16, events: &mut VecDeque<Event>) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.state == InboundState::Reset
            && stream.ready.is_empty()
        {
            stream.state = InboundState::Finished;
            events.push_back(Event::Finished { id });
        }
    }

    /// Removes an ended stream once its end was reported. The next one on its id takes its place:
    /// what was read before belongs to the old one, what is read from now on to the new one.
    pub(crate) fn retire(&mut self, id: u16, events: &mut VecDeque<Event>) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        if stream.outgoing_reset {
            events.push_back(Event::ResetComplete { id });
        } else {
            self.ended_streams.push(id);
        }
        let Some(successors) = self.successors.get_mut(&id) else {
            return;
        };
        let next = successors.pop_front();
        if successors.is_empty() {
            self.successors.remove(&id);
        }
        if let Some(next) = next {
            events.push_back(Event::Opened { id });
            events.extend(next.ready.iter().map(|_| Event::Readable { id }));
            self.streams.insert(id, next);
            self.end_if_read(id, events);
        }
    }

    /// Takes the ids of streams that have ended and are to be reset in our direction too.
    pub(crate) fn take_ended(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.ended_streams)
    }
}
