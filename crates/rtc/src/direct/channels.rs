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

use super::dcep::{self, Dcep};
use super::numbers::Numbers;
use crate::engine::{CHANNEL_ZERO, ChannelId, Class, EndReason, Event, OpenError, Role, Written};
use crate::limits::{MAX_CHANNELS, MAX_EARLY_CHANNELS, MAX_LABEL};
use anabranch_sctp::{self as sctp, Association, Ppid};

/// Messages without payload that one look for payload skips. A peer can have sent a hundred thousand of
/// them: the reader comes again for the rest, and its driver counts each time (`connection/work.rs`).
const SKIPPED_PER_LOOK: usize = 16;

/// Channels that were refused and that the peer has not closed.
pub(super) const MAX_REFUSED: usize = 1024;

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
    /// `Readable` was reported, and not everything has been read since.
    readable: bool,
    /// Nobody reads it any more.
    ignored: bool,
    notify_delivered: bool,
}

/// What a look for payload has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filled {
    /// Payload for the reader.
    Payload,
    /// Nothing, and nothing is left.
    Nothing,
    /// Nothing yet: there may be more behind what was skipped.
    Unfinished,
}

/// How much memory SCTP may hold of what was written, entries included, before writes have to wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldLimits {
    /// For data.
    pub(super) data: usize,
    /// For data and control frames together.
    pub(super) all: usize,
}

/// The channels of a connection.
pub(super) struct Channels {
    pub(super) sctp: Association,
    numbers: Numbers,
    limits: HeldLimits,
    /// By stream number.
    table: HashMap<u16, Channel>,
    /// Names are never used again, numbers are: a name is a count of channels above its number.
    generation: u64,
    /// The last message of channels that are gone, for as long as their reader has not come.
    leftovers: HashMap<ChannelId, Bytes>,
    /// Entries in `table` that the peer opened, and those that were refused.
    inbound: usize,
    refused: usize,
    /// The window is nearly shut: everything is to be read, so that no channel is stopped by
    /// another.
    relieving: bool,
    /// The window may shut: the peer waits, with all of its channels, until a reader has made room.
    may_shut_window: bool,
    authenticated: bool,
    established: bool,
    ended: bool,
    events: VecDeque<Event>,
}

impl Channels {
    pub(super) fn new(sctp: Association, role: Role, limits: HeldLimits) -> Self {
        Self {
            sctp,
            numbers: Numbers::new(role),
            limits,
            table: HashMap::new(),
            generation: 0,
            leftovers: HashMap::new(),
            inbound: 0,
            refused: 0,
            relieving: false,
            may_shut_window: false,
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

    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(super) fn push_event(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// Ends the connection; the first cause counts.
    pub(super) fn end(&mut self, cause: EndReason) {
        if !std::mem::replace(&mut self.ended, true) {
            self.events.push_back(Event::Ended(cause));
        }
    }

    /// Works off what SCTP has to report.
    pub(super) fn handle_events(&mut self) {
        while !self.ended
            && let Some(event) = self.sctp.next_event()
        {
            match event {
                sctp::Event::Connected => self.on_established(),
                sctp::Event::Ended(reason) => self.end(match reason {
                    sctp::EndReason::Closed => EndReason::ClosedByPeer,
                    sctp::EndReason::Aborted => EndReason::Aborted,
                    sctp::EndReason::Violation(rule) => EndReason::Violation(rule),
                    sctp::EndReason::NoProgress => EndReason::NoProgress,
                }),
                sctp::Event::Opened { id } => self.on_stream(id),
                sctp::Event::Readable { id } => self.on_readable(id),
                sctp::Event::Finished { id } => self.on_finished(id),
                sctp::Event::ResetComplete { id } => self.on_reset_complete(id),
                sctp::Event::ResetFailed { id } => self.on_reset_failed(id),
                sctp::Event::Acknowledged { id } => self.on_acknowledged(id),
                sctp::Event::Writable => self.events.push_back(Event::Writable),
            }
        }
    }

    fn on_established(&mut self) {
        self.established = true;
        // Data of the peer may have made it already.
        self.sctp.open_stream(0);
        self.insert(0, CHANNEL_ZERO, Stage::Open, true);
        self.events.push_back(Event::ChannelZeroOpen);
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
                readable: false,
                ignored: false,
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
            return self.end(EndReason::Limit(
                "more refused channels than the peer closes",
            ));
        }
        self.sctp.reset_stream(number);
    }

    fn on_readable(&mut self, number: u16) {
        let is_announced = |channel: &Channel| channel.readable;
        if self.table.get(&number).is_some_and(is_announced) {
            // SCTP says it of each message, and a single datagram can complete thousands.
            return;
        }
        if self.fill(number) != Filled::Nothing {
            self.announce(number);
        }
    }

    /// Reports that a channel is to be read.
    fn announce(&mut self, number: u16) {
        if let Some(channel) = self.table.get_mut(&number) {
            channel.readable = true;
            let channel = channel.name;
            self.events.push_back(Event::Readable { channel });
        }
    }

    /// Keeps channels that are left unread from stopping all others, as the window belongs to the
    /// association: with little of it left all is to be read, and the limits of the reader count.
    /// A channel alone is no exception, since the next could not even be opened.
    pub(super) fn relieve(&mut self) {
        let tight = !self.may_shut_window && self.sctp.is_window_tight();
        if tight && !self.relieving {
            for channel in self.table.values().filter(|channel| channel.readable) {
                let event = Event::Readable {
                    channel: channel.name,
                };
                self.events.push_back(event);
            }
        }
        self.relieving = tight;
    }

    /// Lets the window shut in place of that.
    pub(super) fn allow_shut_window(&mut self) {
        self.may_shut_window = true;
    }

    pub(super) fn is_relieving(&self) -> bool {
        self.relieving
    }

    /// Takes messages from SCTP until there is payload for the reader, or it has skipped enough.
    fn fill(&mut self, number: u16) -> Filled {
        for _ in 0..=SKIPPED_PER_LOOK {
            let Some(channel) = self.table.get_mut(&number) else {
                return Filled::Nothing;
            };
            if channel.unread.is_some() {
                return Filled::Payload;
            }
            if matches!(channel.stage, Stage::Closing | Stage::Refused) {
                return Filled::Nothing;
            }
            let Some(message) = self.sctp.read(number) else {
                return Filled::Nothing;
            };
            match message.ppid {
                Ppid::Dcep => self.on_dcep(number, Dcep::parse(&message.bytes)),
                // Data in front of OPEN is out of order (RFC 8832 section 6).
                _ if channel.stage == Stage::AwaitOpen => self.refuse(number),
                Ppid::Binary | Ppid::String if !channel.ignored && !message.bytes.is_empty() => {
                    channel.unread = Some(message.bytes);
                }
                // An empty message, sent as one byte (RFC 8831 section 6.6) or as none, which is a
                // fault that costs nothing; or nothing of ours.
                _ => {}
            }
        }
        Filled::Unfinished
    }

    fn on_dcep(&mut self, number: u16, message: Option<Dcep>) {
        let Some(channel) = self.table.get_mut(&number) else {
            return;
        };
        if channel.stage != Stage::AwaitOpen {
            // The acknowledgement of our own OPEN, which nothing waits for.
            return;
        }
        // What is not ordered and reliable can not carry a byte stream (docs/wire.md section 4).
        let Some(Dcep::Open { label, fit: true }) = message else {
            return self.refuse(number);
        };
        channel.stage = Stage::Open;
        channel.ack_owed = true;
        let channel = channel.name;
        self.send_ack(number);
        self.events.push_back(Event::Opened { channel, label });
    }

    fn send_ack(&mut self, number: u16) {
        if let Some(channel) = self.table.get_mut(&number)
            && channel.ack_owed
            && self
                .sctp
                .write(number, Bytes::from_static(&dcep::ACK), Ppid::Dcep)
        {
            channel.ack_owed = false;
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
            self.events.push_back(Event::Closed { channel: name });
        }
    }

    fn remove(&mut self, number: u16) -> Option<Channel> {
        let channel = self.table.remove(&number)?;
        let (inbound, refused) = (!channel.own, channel.stage == Stage::Refused);
        debug_assert!(
            self.inbound >= usize::from(inbound),
            "an inbound channel uncounted"
        );
        debug_assert!(
            self.refused >= usize::from(refused),
            "a refused channel uncounted"
        );
        self.inbound = self.inbound.saturating_sub(usize::from(inbound));
        self.refused = self.refused.saturating_sub(usize::from(refused));
        Some(channel)
    }

    fn on_reset_complete(&mut self, number: u16) {
        let used = self.table.contains_key(&number);
        if self.numbers.complete_reset(number, used) {
            // The peer may have opened the next channel on it, which could not be written to.
            self.send_ack(number);
            // Or somebody waits for the number.
            self.events.push_back(Event::Writable);
        }
    }

    /// All that was written to a stream has arrived.
    fn on_acknowledged(&mut self, number: u16) {
        if let Some(channel) = self.table.get_mut(&number)
            && std::mem::take(&mut channel.notify_delivered)
        {
            let channel = channel.name;
            self.events.push_back(Event::Delivered { channel });
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
            self.events.push_back(Event::Closed {
                channel: channel.name,
            });
        }
    }

    pub(super) fn open(&mut self, label: &str) -> Result<ChannelId, OpenError> {
        if self.ended || !self.established {
            return Err(OpenError::Closed);
        }
        if label.len() > MAX_LABEL {
            return Err(OpenError::LabelTooLong {
                len: label.len(),
                max: MAX_LABEL,
            });
        }
        if self.table.len() >= MAX_CHANNELS {
            return Err(OpenError::Exhausted);
        }
        // A number fails if the peer uses it although it is ours: then it is refused, and closed.
        for _ in 0..=MAX_REFUSED {
            let number = self.numbers.take(self.sctp.max_streams())?;
            if self.table.contains_key(&number) || !self.sctp.open_stream(number) {
                continue;
            }
            let name = self.new_name(number);
            self.insert(number, name, Stage::Open, true);
            let open = dcep::encode_open(label);
            if !self.sctp.write(number, open.into(), Ppid::Dcep) {
                self.remove(number);
                return Err(OpenError::Closed);
            }
            return Ok(name);
        }
        Err(OpenError::Exhausted)
    }

    pub(super) fn write(&mut self, name: ChannelId, pieces: &[&[u8]], class: Class) -> Written {
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let ended = self.ended;
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
        // Of this channel alone: others go on.
        if channel.ack_owed || self.numbers.is_resetting(number) {
            return Written::NotOpen;
        }
        let held = self.sctp.held();
        let max = match class {
            Class::Data => self.limits.data,
            Class::Control => self.limits.all,
        };
        if held > 0 && held.saturating_add(length) > max {
            return Written::Busy;
        }
        if class == Class::Data && !self.sctp.has_share(number, length) {
            return Written::NotOpen;
        }
        // SCTP keeps it until it is acknowledged, so it is copied: here, the only time.
        let message = Bytes::from(pieces.concat());
        if !self.sctp.write(number, message, Ppid::Binary) {
            // The peer has reset its side, and what came before that is not read yet.
            return Written::Closed;
        }
        Written::Taken
    }

    pub(super) fn read(&mut self, name: ChannelId) -> Option<Bytes> {
        if let Some(leftover) = self.leftovers.remove(&name) {
            return Some(leftover);
        }
        self.get(name)?;
        let filled = self.fill(number_of(name));
        let channel = self.get(name)?;
        let message = channel.unread.take();
        match filled {
            Filled::Payload => {}
            Filled::Nothing => {
                channel.readable = false;
                // It may have been all that the peer sent in front of its reset.
                self.handle_events();
            }
            Filled::Unfinished => self.announce(number_of(name)),
        }
        message
    }

    pub(super) fn unacknowledged(&self) -> usize {
        self.sctp.total_unacknowledged()
    }

    pub(super) fn notify_delivered(&mut self, name: ChannelId) {
        let is_under_way = self.sctp.unacknowledged(number_of(name)) > 0;
        let Some(channel) = self.get(name) else {
            return;
        };
        channel.notify_delivered = is_under_way;
        if !is_under_way {
            self.events.push_back(Event::Delivered { channel: name });
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
            channel.readable = false;
            // Whoever reads it on, as it is announced, reads nothing.
            self.on_readable(number_of(name));
            self.handle_events();
        }
    }

    pub(super) fn is_own(&self, name: ChannelId) -> bool {
        self.table
            .get(&number_of(name))
            .is_some_and(|channel| channel.name == name && channel.own)
    }

    /// Whether nothing is left of any channel but channel 0; what tests end with.
    #[cfg(feature = "testing")]
    pub(super) fn is_idle(&self) -> bool {
        self.table.keys().all(|number| *number == 0)
            && self.inbound == 0
            && self.refused == 0
            && self.numbers.is_idle()
            && self.leftovers.is_empty()
            && self.sctp.held() == 0
    }
}

/// The number of the stream that a channel is on.
fn number_of(name: ChannelId) -> u16 {
    (name.get() & 0xffff) as u16
}
