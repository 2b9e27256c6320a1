//! Streams of the peer: what is read, what is thrown away, and how they end.

use std::collections::VecDeque;

use super::{Event, Inbound, Message, OVERHEAD, Receiver};
use crate::tally::lower;

impl Receiver {
    /// Makes a stream that nothing has come on yet; `false` if there is one.
    pub(crate) fn open(&mut self, id: u16) -> bool {
        let is_new = !self.streams.contains_key(&id);
        if is_new {
            self.streams.insert(id, Inbound::default());
        }
        is_new
    }

    /// Whether there is such a stream, and the peer has not reset it.
    pub(crate) fn is_open(&self, id: u16) -> bool {
        self.streams.get(&id).is_some_and(|stream| !stream.ended)
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

    /// Throws away what the stream holds, and what still comes on it.
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

    /// Our own direction of a stream was reset.
    pub(crate) fn answered(&mut self, id: u16) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.answered = true;
        }
    }

    /// The peer has reset a stream: what comes now is of another, with the same number.
    pub(crate) fn reset(&mut self, id: u16, events: &mut VecDeque<Event>) {
        let stream = match self.successors.get_mut(&id).and_then(VecDeque::back_mut) {
            Some(last) => Some(last),
            None => self.streams.get_mut(&id),
        };
        let Some(stream) = stream else {
            return;
        };
        stream.ended = true;
        // Messages that wait for one which the peer has never sent.
        for message in std::mem::take(&mut stream.waiting).into_values() {
            lower(&mut self.held, message.bytes.len() + OVERHEAD);
        }
        self.end_if_read(id, events);
    }

    /// Ends a stream that was reset and has nothing left to read.
    pub(super) fn end_if_read(&mut self, id: u16, events: &mut VecDeque<Event>) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.ended
            && stream.ready.is_empty()
            && !std::mem::replace(&mut stream.finished, true)
        {
            events.push_back(Event::Finished { id });
        }
    }

    /// The end of a stream is known: the next one on its number takes its place. What was read
    /// before belongs to the one, and what is read from now on to the other.
    pub(crate) fn retire(&mut self, id: u16, events: &mut VecDeque<Event>) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        if stream.answered {
            events.push_back(Event::ResetComplete { id });
        } else {
            self.unanswered.push(id);
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

    /// Streams that have ended since this was asked last, and that are to be reset on our side too.
    pub(crate) fn take_unanswered(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.unanswered)
    }
}
