//! Data channels on the streams of an SCTP association (RFC 8831).
//!
//! ```text
//! we open        Open ───────────────────────────────► (close_channel) Closing ─► gone
//! the peer opens AwaitOpen ─► (DATA_CHANNEL_OPEN) Open ─► (its reset) gone
//!                         └─► (anything else) Refused ─► gone
//! ```
//!
//! A channel is gone when the peer has reset its stream and everything before that was read. Its
//! number is free when our own reset is acknowledged as well (RFC 8831 section 6.7).

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::super::engine::{CHANNEL_ZERO, EngineEvent, Role};
use super::dcep::{self, Dcep};
use super::numbers::Numbers;
use super::{
    MAX_CHANNELS, MAX_EARLY_CHANNELS, MAX_LABEL, MAX_REFUSED, MAX_UNREAD_MESSAGES,
    MAX_UNREAD_MESSAGES_OF_ONE,
};
use crate::carrier::{CarrierEvent, ChannelId, OpenChannelError, Written};
use crate::connection::ConnectionError;
use crate::sctp::{Association, Event, Lost, Protocol};

/// Where a channel is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The peer uses the stream, and has not said for what.
    AwaitOpen,
    /// Open on our side; data may follow our own OPEN at once (RFC 8832 section 6).
    Open,
    /// We have reset our side, and wait for the peer's.
    Closing,
    /// As `Closing`, but nobody was ever told of the channel.
    Refused,
}

#[derive(Debug)]
struct Channel {
    name: ChannelId,
    stage: Stage,
    own: bool,
    /// The peer's OPEN is not acknowledged, as our reset of the channel before this one is not
    /// complete. libdatachannel uses a number again without waiting for that, and does not call
    /// its channel open before it has the acknowledgement.
    ack_owed: bool,
    /// A message taken from SCTP ahead of its reader.
    unread: Option<Bytes>,
    /// Whole messages that SCTP holds, or fewer: those behind a gap come without notice.
    messages: usize,
    /// `Readable` was reported, and not everything has been read since.
    readable: bool,
    /// Nobody reads it any more.
    ignored: bool,
    /// Bytes that the peer has not acknowledged.
    unacknowledged: usize,
    /// In `Channels::sending`.
    sending: bool,
    notify_delivered: bool,
}

/// The channels of a connection.
pub(super) struct Channels {
    pub(super) sctp: Association,
    numbers: Numbers,
    max_unacknowledged: usize,
    /// By stream number.
    table: HashMap<u16, Channel>,
    /// Names are never used again, numbers are: a name is a count of channels above its number.
    generation: u64,
    /// The last message of channels that are gone, for as long as their reader has not come.
    leftovers: HashMap<ChannelId, Bytes>,
    /// Channels with something unacknowledged.
    sending: Vec<ChannelId>,
    unacknowledged: usize,
    /// Entries in `table` that the peer opened, and those that were refused.
    inbound: usize,
    refused: usize,
    /// Sum of `messages` over all channels.
    messages: usize,
    /// The window is nearly shut: everything is to be read, so that no channel is stopped by
    /// another.
    relieving: bool,
    authenticated: bool,
    established: bool,
    ended: bool,
    events: VecDeque<EngineEvent>,
}

impl Channels {
    pub(super) fn new(sctp: Association, role: Role, max_unacknowledged: usize) -> Self {
        Self {
            sctp,
            numbers: Numbers::new(role),
            max_unacknowledged,
            table: HashMap::new(),
            generation: 0,
            leftovers: HashMap::new(),
            sending: Vec::new(),
            unacknowledged: 0,
            inbound: 0,
            refused: 0,
            messages: 0,
            relieving: false,
            authenticated: false,
            established: false,
            ended: false,
            events: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn authenticated(&mut self) {
        self.authenticated = true;
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    pub(super) fn next_event(&mut self) -> Option<EngineEvent> {
        self.events.pop_front()
    }

    pub(super) fn push_event(&mut self, event: EngineEvent) {
        self.events.push_back(event);
    }

    /// Ends the connection; the first cause counts.
    pub(super) fn end(&mut self, cause: ConnectionError) {
        if !std::mem::replace(&mut self.ended, true) {
            self.events.push_back(EngineEvent::Ended(cause));
        }
    }

    /// Works off what SCTP has to report.
    pub(super) fn handle_events(&mut self) {
        while !self.ended
            && let Some(event) = self.sctp.next_event()
        {
            match event {
                Event::Connected => self.on_established(),
                Event::Lost(lost) => self.end(match lost {
                    Lost::Closed => ConnectionError::ClosedByPeer,
                    Lost::Aborted => ConnectionError::Carrier("SCTP: aborted by the peer".into()),
                    Lost::Violation(rule) => {
                        ConnectionError::Carrier(format!("SCTP: the peer has sent {}", rule.0))
                    }
                }),
                Event::Opened { id } => self.on_stream(id),
                Event::Readable { id } => self.on_readable(id),
                Event::Finished { id } => self.on_finished(id),
                Event::ResetComplete { id } => self.on_reset_complete(id),
                Event::ResetFailed { id } => self.on_reset_failed(id),
            }
        }
    }

    fn carrier_event(&mut self, event: CarrierEvent) {
        self.events.push_back(EngineEvent::Carrier(event));
    }

    fn on_established(&mut self) {
        self.established = true;
        // Data of the peer may have made it already.
        self.sctp.open_stream(0);
        self.insert(0, CHANNEL_ZERO, Stage::Open, true);
        self.events.push_back(EngineEvent::ChannelZeroOpen);
    }

    fn new_name(&mut self, number: u16) -> ChannelId {
        self.generation += 1;
        ChannelId::new(self.generation << 16 | u64::from(number))
    }

    fn insert(&mut self, number: u16, name: ChannelId, stage: Stage, own: bool) {
        self.table.insert(
            number,
            Channel {
                name,
                stage,
                own,
                ack_owed: false,
                unread: None,
                messages: 0,
                readable: false,
                ignored: false,
                unacknowledged: 0,
                sending: false,
                notify_delivered: false,
            },
        );
    }

    fn get(&mut self, name: ChannelId) -> Option<&mut Channel> {
        self.table
            .get_mut(&number_of(name))
            .filter(|channel| channel.name == name)
    }

    /// The peer uses a stream that did not exist.
    pub(super) fn on_stream(&mut self, number: u16) {
        if self.table.contains_key(&number) {
            // Channel 0, whose stream both sides make.
            return;
        }
        let name = self.new_name(number);
        self.insert(number, name, Stage::AwaitOpen, false);
        self.inbound += 1;
        let max = if self.authenticated {
            MAX_CHANNELS
        } else {
            MAX_EARLY_CHANNELS
        };
        if self.numbers.owns(number) || self.table.len() > max {
            self.refuse(number);
        }
    }

    /// Closes a channel that nobody was told of. SCTP can not keep the peer from using a stream.
    fn refuse(&mut self, number: u16) {
        tracing::debug!(target: "anabranch::webrtc", number, "inbound channel refused");
        if let Some(channel) = self.table.get_mut(&number) {
            let before = std::mem::replace(&mut channel.stage, Stage::Refused);
            self.refused += usize::from(before != Stage::Refused);
        }
        if self.refused > MAX_REFUSED {
            let cause = "more refused channels than the peer closes".to_owned();
            return self.end(ConnectionError::Carrier(cause));
        }
        self.sctp.reset_stream(number);
    }

    fn on_readable(&mut self, number: u16) {
        if let Some(channel) = self.table.get_mut(&number) {
            if matches!(channel.stage, Stage::Closing | Stage::Refused) {
                return;
            }
            channel.messages += 1;
            self.messages += 1;
        }
        if self.fill(number)
            && let Some(channel) = self.table.get_mut(&number)
            && !std::mem::replace(&mut channel.readable, true)
        {
            let channel = channel.name;
            self.carrier_event(CarrierEvent::Readable { channel });
        }
        if self.table.get(&number).is_some_and(|channel| {
            channel.messages > MAX_UNREAD_MESSAGES_OF_ONE
                || (self.messages > MAX_UNREAD_MESSAGES && channel.messages > 1)
        }) {
            self.give_up(number);
        }
    }

    /// Ends a channel with more messages unread than may be. The window counts what
    /// each costs, and still thousands of them say that nobody reads.
    fn give_up(&mut self, number: u16) {
        while self.sctp.read(number).is_some() {}
        self.refuse(number);
        if let Some(channel) = self.table.get_mut(&number) {
            channel.unread = None;
            self.messages -= std::mem::take(&mut channel.messages);
            let channel = channel.name;
            self.carrier_event(CarrierEvent::Closed { channel });
        }
    }

    /// Keeps channels that are left unread from stopping all others, as the window belongs to the
    /// association: with little of it left all is to be read, and the limits of the reader count.
    /// A channel alone is no exception, since the next could not even be opened.
    pub(super) fn relieve(&mut self) {
        let tight = self.sctp.is_window_tight();
        if tight && !self.relieving {
            for channel in self.table.values().filter(|channel| channel.readable) {
                let event = CarrierEvent::Readable {
                    channel: channel.name,
                };
                self.events.push_back(EngineEvent::Carrier(event));
            }
        }
        self.relieving = tight;
    }

    pub(super) fn is_relieving(&self) -> bool {
        self.relieving
    }

    /// Takes messages from SCTP until there is payload for the reader; `false` if there is none.
    fn fill(&mut self, number: u16) -> bool {
        loop {
            let Some(channel) = self.table.get_mut(&number) else {
                return false;
            };
            if channel.unread.is_some() {
                return true;
            }
            if matches!(channel.stage, Stage::Closing | Stage::Refused) {
                return false;
            }
            let Some(message) = self.sctp.read(number) else {
                return false;
            };
            if channel.messages > 0 {
                channel.messages -= 1;
                self.messages -= 1;
            }
            match message.protocol {
                Protocol::Dcep => self.on_dcep(number, Dcep::parse(&message.bytes)),
                // Data in front of OPEN is out of order (RFC 8832 section 6).
                _ if channel.stage == Stage::AwaitOpen => self.refuse(number),
                Protocol::Binary | Protocol::String
                    if !channel.ignored && !message.bytes.is_empty() =>
                {
                    channel.unread = Some(message.bytes);
                }
                // An empty message, sent as one byte (RFC 8831 section 6.6) or as none, which is a
                // fault that costs nothing; or nothing of ours.
                _ => {}
            }
        }
    }

    fn on_dcep(&mut self, number: u16, message: Option<Dcep>) {
        let Some(channel) = self.table.get_mut(&number) else {
            return;
        };
        if channel.stage != Stage::AwaitOpen {
            // The acknowledgement of our own OPEN, which nothing waits for.
            return;
        }
        // What is not ordered and reliable can not carry a byte stream (wire.md section 4).
        let Some(Dcep::Open { label, fit: true }) = message else {
            return self.refuse(number);
        };
        channel.stage = Stage::Open;
        channel.ack_owed = true;
        let channel = channel.name;
        self.send_ack(number);
        self.carrier_event(CarrierEvent::Opened { channel, label });
    }

    fn send_ack(&mut self, number: u16) {
        if let Some(channel) = self.table.get_mut(&number)
            && channel.ack_owed
            && self
                .sctp
                .write(number, Bytes::from_static(&dcep::ACK), Protocol::Dcep)
        {
            channel.ack_owed = false;
            let name = channel.name;
            self.note_written(name, dcep::ACK.len());
        }
    }

    /// The peer has reset its side, and all that came before was read. SCTP has answered with a
    /// reset of ours.
    fn on_finished(&mut self, number: u16) {
        self.numbers.begin_reset(number);
        let Some(channel) = self.remove(number) else {
            return;
        };
        let name = channel.name;
        if let Some(unread) = channel.unread {
            self.leftovers.insert(name, unread);
        }
        // Channel 0 belongs to Noise, which is over: js-libp2p may close it, and nobody minds.
        if matches!(channel.stage, Stage::Open | Stage::Closing) && name != CHANNEL_ZERO {
            self.carrier_event(CarrierEvent::Closed { channel: name });
        }
    }

    fn remove(&mut self, number: u16) -> Option<Channel> {
        let channel = self.table.remove(&number)?;
        self.unacknowledged -= channel.unacknowledged;
        self.inbound -= usize::from(!channel.own);
        self.refused -= usize::from(channel.stage == Stage::Refused);
        self.messages -= channel.messages;
        Some(channel)
    }

    fn on_reset_complete(&mut self, number: u16) {
        let used = self.table.contains_key(&number);
        if self.numbers.complete_reset(number, used) && used {
            // The peer has opened the next channel on it, which could not be written to.
            self.send_ack(number);
            self.carrier_event(CarrierEvent::Writable);
        }
    }

    /// The peer refuses to reset: the number is lost, and a channel on it can not be used.
    fn on_reset_failed(&mut self, number: u16) {
        self.numbers.begin_reset(number);
        // What comes on it is nobody's.
        self.sctp.reset_stream(number);
        if let Some(channel) = self.remove(number)
            && matches!(channel.stage, Stage::Open | Stage::Closing)
        {
            self.carrier_event(CarrierEvent::Closed {
                channel: channel.name,
            });
        }
    }

    pub(super) fn open(&mut self, label: &str) -> Result<ChannelId, OpenChannelError> {
        if self.ended || !self.established {
            return Err(OpenChannelError::Closed);
        }
        if label.len() > MAX_LABEL {
            return Err(OpenChannelError::LabelTooLong {
                len: label.len(),
                max: MAX_LABEL,
            });
        }
        if self.table.len() >= MAX_CHANNELS {
            return Err(OpenChannelError::Exhausted);
        }
        // A number fails if the peer uses it although it is ours: then it is refused, and closed.
        for _ in 0..=MAX_REFUSED {
            let number = self.numbers.take().ok_or(OpenChannelError::Exhausted)?;
            if self.table.contains_key(&number) || !self.sctp.open_stream(number) {
                continue;
            }
            let name = self.new_name(number);
            self.insert(number, name, Stage::Open, true);
            let open = dcep::encode_open(label);
            let length = open.len();
            if !self.sctp.write(number, open.into(), Protocol::Dcep) {
                self.remove(number);
                return Err(OpenChannelError::Closed);
            }
            self.note_written(name, length);
            return Ok(name);
        }
        Err(OpenChannelError::Exhausted)
    }

    pub(super) fn write(&mut self, name: ChannelId, pieces: &[&[u8]]) -> Written {
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let (ended, held, max) = (self.ended, self.unacknowledged, self.max_unacknowledged);
        let Some(channel) = self.get(name) else {
            return Written::Closed;
        };
        if ended || channel.stage != Stage::Open {
            return Written::Closed;
        }
        if length == 0 {
            return Written::Taken;
        }
        let number = number_of(name);
        let full = held > 0 && held.saturating_add(length) > max;
        if full || channel.ack_owed || self.numbers.is_resetting(number) {
            return Written::Busy;
        }
        // SCTP keeps it until it is acknowledged, so it is copied: here, the only time.
        let message = Bytes::from(pieces.concat());
        if !self.sctp.write(number, message, Protocol::Binary) {
            // The peer has reset its side, and what came before that is not read yet.
            return Written::Closed;
        }
        self.note_written(name, length);
        Written::Taken
    }

    fn note_written(&mut self, name: ChannelId, bytes: usize) {
        self.unacknowledged += bytes;
        if let Some(channel) = self.get(name) {
            channel.unacknowledged += bytes;
            if !std::mem::replace(&mut channel.sending, true) {
                self.sending.push(name);
            }
        }
    }

    pub(super) fn read(&mut self, name: ChannelId) -> Option<Bytes> {
        if let Some(leftover) = self.leftovers.remove(&name) {
            return Some(leftover);
        }
        self.get(name)?;
        let filled = self.fill(number_of(name));
        let message = self.get(name)?.unread.take();
        if !filled {
            if let Some(channel) = self.get(name) {
                channel.readable = false;
            }
            // It may have been all that the peer sent in front of its reset.
            self.handle_events();
        }
        message
    }

    pub(super) fn unacknowledged(&self) -> usize {
        self.unacknowledged
    }

    pub(super) fn notify_delivered(&mut self, name: ChannelId) {
        let Some(channel) = self.get(name) else {
            return;
        };
        channel.notify_delivered = channel.unacknowledged > 0;
        if !channel.notify_delivered {
            self.carrier_event(CarrierEvent::Delivered { channel: name });
        }
    }

    /// Counts again what SCTP holds of the channels that are sending.
    pub(super) fn count_unacknowledged(&mut self) {
        let before = self.unacknowledged;
        let mut index = 0;
        while let Some(&name) = self.sending.get(index) {
            let number = number_of(name);
            let left = self.sctp.unacknowledged(number);
            let Some(channel) = self
                .table
                .get_mut(&number)
                .filter(|channel| channel.name == name)
            else {
                self.sending.swap_remove(index);
                continue;
            };
            self.unacknowledged -= channel.unacknowledged;
            self.unacknowledged += left;
            channel.unacknowledged = left;
            if left > 0 {
                index += 1;
                continue;
            }
            channel.sending = false;
            let notify = std::mem::take(&mut channel.notify_delivered);
            self.sending.swap_remove(index);
            if notify {
                self.carrier_event(CarrierEvent::Delivered { channel: name });
            }
        }
        if self.unacknowledged < before {
            self.carrier_event(CarrierEvent::Writable);
        }
    }

    pub(super) fn close(&mut self, name: ChannelId) {
        self.leftovers.remove(&name);
        let Some(channel) = self.get(name) else {
            return;
        };
        if channel.stage != Stage::Open {
            return;
        }
        channel.stage = Stage::Closing;
        channel.unread = None;
        self.sctp.reset_stream(number_of(name));
        self.handle_events();
    }

    pub(super) fn ignore(&mut self, name: ChannelId) {
        self.leftovers.remove(&name);
        if let Some(channel) = self.get(name) {
            channel.ignored = true;
            channel.unread = None;
            self.fill(number_of(name));
            self.handle_events();
        }
    }

    pub(super) fn is_own(&self, name: ChannelId) -> bool {
        self.table
            .get(&number_of(name))
            .is_some_and(|channel| channel.name == name && channel.own)
    }

    /// Whether nothing is left of any channel but channel 0; what tests end with.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.table.keys().all(|number| *number == 0)
            && self.inbound == 0
            && self.refused == 0
            && self.messages
                == self
                    .table
                    .values()
                    .map(|channel| channel.messages)
                    .sum::<usize>()
            && self.numbers.is_idle()
            && self.leftovers.is_empty()
            && self.sending.is_empty()
            && self.unacknowledged == 0
    }
}

/// The number of the stream that a channel is on.
fn number_of(name: ChannelId) -> u16 {
    (name.get() & 0xffff) as u16
}
