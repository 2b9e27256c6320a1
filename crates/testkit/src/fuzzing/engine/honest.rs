//! Two engines that keep the rules, on a network that loses, repeats and delays datagrams, as bytes say.
//!
//! The oracle: a channel yields what was written to it and to no earlier one on its number, in order; what its writer was
//! told of as delivered was there for its reader; both sides live, and in the end nothing is left.

use std::collections::HashMap;
use std::time::Duration;

use super::session::Session;
use crate::fuzzing::Input;
use anabranch_rtc::Engine;
use anabranch_rtc::{ChannelId, Class, Event, OpenError, Written};

/// Steps of a session, so that a long input does not make it endless.
const MAX_STEPS: usize = 200;

/// Streams that each side takes: few, so that numbers are used again.
const STREAMS: u16 = 40;

/// Channels of a whole session.
const MAX_OPENED: usize = 500;

/// Bytes that one side of a session writes.
const MAX_WRITTEN: usize = 400_000;

/// Exchanges in a row without any time passing.
const MAX_ROUNDS: usize = 8;

/// How often a session came to what it is for.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Reached {
    /// Messages of at most 20 bytes.
    pub(crate) small: usize,
    /// Closes of channels with unacknowledged data.
    pub(crate) resets_in_flight: usize,
    /// Messages that were read after their reader had left them for a while.
    pub(crate) read_late: usize,
    /// Opens that found no number free.
    pub(crate) waits_for_number: usize,
    /// Channels on a number that an earlier one had.
    pub(crate) reused: usize,
    /// Datagrams that were lost, came twice or late.
    pub(crate) mistreated: usize,
    /// Writes that had to wait.
    pub(crate) refused: usize,
    /// Bytes of which the writer was told that they are delivered.
    pub(crate) delivered: usize,
}

/// A channel, as both ends know it.
#[derive(Debug, Default)]
struct Channel {
    names: [Option<ChannelId>; 2],
    written: [usize; 2],
    /// Bytes of the other end that were read.
    read: [usize; 2],
    /// Bytes that were written when `Delivered` was asked for, and those of which it was told.
    asked: [Option<usize>; 2],
    delivered: [usize; 2],
    /// The end was closed, or is ignored: it is not read any more.
    left: [bool; 2],
    /// The end is gone.
    gone: [bool; 2],
}

/// What the network does to datagrams, of 256 each.
#[derive(Debug, Default, Clone, Copy)]
struct Fate {
    lost: u64,
    twice: u64,
    late: u64,
}

struct Honest {
    session: Session,
    channels: Vec<Channel>,
    /// By the name at each end.
    by_name: [HashMap<ChannelId, usize>; 2],
    fate: Fate,
    random: u64,
    late: [Vec<Vec<u8>>; 2],
    numbers: [HashMap<u64, usize>; 2],
    reached: Reached,
}

/// Runs the session that `input` describes, and returns the longest that one datagram kept an engine.
///
/// # Panics
/// If the oracle is wrong.
pub(crate) fn run(mut input: Input<'_>) -> (Duration, Reached) {
    let mut session = Session::with_streams(STREAMS);
    for end in &mut session.ends {
        end.keeps = true;
    }
    let mut honest = Honest {
        session,
        channels: Vec::new(),
        by_name: Default::default(),
        fate: Fate::default(),
        random: u64::from(input.u8()) + 1,
        late: Default::default(),
        numbers: Default::default(),
        reached: Reached::default(),
    };
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        honest.step(&mut input);
        honest.look();
    }
    honest.calm()
}

/// What an end writes at an offset of a channel.
fn content(channel: usize, side: usize, from: usize, length: usize) -> Vec<u8> {
    (from..from + length)
        .map(|offset| (offset * 31 + offset / 251 + channel * 7 + side * 101) as u8)
        .collect()
}

impl Honest {
    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        let side = usize::from(choice >> 7);
        match choice & 15 {
            0 | 1 => {
                for _ in 0..input.pick(&[1, 4, 20, 70]) {
                    self.open(side);
                }
            }
            2..=5 => {
                let count = input.pick(&[1, 10, 100]);
                let length = input.pick(&[1, 20, 1000, 5000, 16_000]);
                if let Some(channel) = self.pick(side, input.u8()) {
                    for _ in 0..count {
                        self.write(side, channel, length);
                    }
                }
            }
            6 => {
                if let Some(channel) = self.pick(side, input.u8()) {
                    self.close(side, channel);
                }
            }
            7 => {
                if let Some(channel) = self.pick(side, input.u8())
                    && let Some(name) = self.channels[channel].names[side]
                    && self.channels[channel].asked[side].is_none()
                {
                    let written = self.channels[channel].written[side];
                    self.channels[channel].asked[side] = Some(written);
                    self.session.ends[side].engine.notify_delivered(name);
                }
            }
            8 => {
                if let Some(channel) = self.pick(side, input.u8())
                    && let Some(name) = self.channels[channel].names[side]
                {
                    self.channels[channel].left[side] = true;
                    self.session.ends[side].engine.ignore_channel(name);
                }
            }
            9 => {
                let end = &mut self.session.ends[side];
                end.reads = !end.reads;
                if end.reads {
                    self.read_late(side);
                }
            }
            10 => {
                self.fate = Fate {
                    lost: input.pick(&[0, 2, 25, 80]),
                    twice: input.pick(&[0, 0, 20]),
                    late: input.pick(&[0, 0, 10, 60]),
                };
            }
            // Channels that come and go, so that their numbers are used again.
            11 => {
                for _ in 0..input.pick(&[1, 5, 30]) {
                    if let Some(channel) = self.open(side) {
                        self.write(side, channel, 100);
                        self.close(side, channel);
                    }
                }
                self.exchange();
            }
            12 | 13 => self.exchange(),
            _ => {
                let time = input.pick(&[1, 5, 20, 100, 300, 1000, 3000]);
                self.session.pass(Duration::from_millis(time));
                self.exchange();
            }
        }
    }

    /// A channel that has not been left at this end.
    fn pick(&self, side: usize, index: u8) -> Option<usize> {
        let open = self.channels.iter().enumerate().filter(|(_, channel)| {
            channel.names[side].is_some() && !channel.left[side] && !channel.gone[side]
        });
        let open: Vec<usize> = open.map(|(index, _)| index).collect();
        open.get(usize::from(index).checked_rem(open.len())?)
            .copied()
    }

    fn open(&mut self, side: usize) -> Option<usize> {
        if self.channels.len() >= MAX_OPENED {
            return None;
        }
        let index = self.channels.len();
        let end = &mut self.session.ends[side];
        match end.engine.open(&index.to_string()) {
            Ok(name) => {
                end.channels.push(name);
                self.channels.push(Channel::default());
                self.add(side, index, name);
                // The names of the engine have the number of the stream at their end.
                let number = self.numbers[side].entry(name.get() & 0xffff).or_default();
                self.reached.reused += usize::from(*number > 0);
                *number += 1;
                Some(index)
            }
            Err(OpenError::NotNow | OpenError::Exhausted) => {
                self.reached.waits_for_number += 1;
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn add(&mut self, side: usize, index: usize, name: ChannelId) {
        let earlier = self.channels[index].names[side].replace(name);
        assert_eq!(earlier, None, "channel {index} is opened twice");
        let earlier = self.by_name[side].insert(name, index);
        assert_eq!(earlier, None, "{name} is used twice");
    }

    fn write(&mut self, side: usize, index: usize, length: usize) {
        let channel = &mut self.channels[index];
        let Some(name) = channel.names[side] else {
            return;
        };
        let total: usize = self.session.ends[side].written;
        if total >= MAX_WRITTEN {
            return;
        }
        let bytes = content(index, side, channel.written[side], length);
        let end = &mut self.session.ends[side];
        match end.engine.write_vectored(name, &[&bytes], Class::Data) {
            Written::Taken => {
                channel.written[side] += length;
                end.written += length;
                self.reached.small += usize::from(length <= 20);
            }
            Written::Busy | Written::NotOpen => self.reached.refused += 1,
            // The other end has reset it, which this one may not have read yet.
            Written::Closed => assert!(
                channel.left[1 - side] || channel.left[side],
                "channel {index} is closed"
            ),
        }
    }

    fn close(&mut self, side: usize, index: usize) {
        let channel = &mut self.channels[index];
        let Some(name) = channel.names[side] else {
            return;
        };
        channel.left[side] = true;
        let engine = &mut self.session.ends[side].engine;
        let under_way = engine.unacknowledged() > 0;
        self.reached.resets_in_flight += usize::from(under_way);
        engine.close_channel(name);
    }

    fn read_late(&mut self, side: usize) {
        let end = &mut self.session.ends[side];
        let before = end.received.len();
        end.read_all();
        self.reached.read_late += self.session.ends[side].received.len() - before;
        self.look();
    }

    /// A number below 256.
    fn chance(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 24 & 255
    }

    /// Carries what both send, as the network lets it.
    fn exchange(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let mut moved = false;
            for from in [0, 1] {
                let mut datagrams = std::mem::take(&mut self.late[from]);
                for datagram in self.session.output(from) {
                    moved = true;
                    let Fate { lost, twice, late } = self.fate;
                    let chance = self.chance();
                    self.reached.mistreated += usize::from(chance < lost + twice + late);
                    if chance < lost {
                        continue;
                    }
                    if chance < lost + twice {
                        datagrams.push(datagram.clone());
                    }
                    if (lost + twice..lost + twice + late).contains(&chance) {
                        self.late[from].push(datagram);
                    } else {
                        datagrams.push(datagram);
                    }
                }
                for datagram in datagrams {
                    self.session.deliver(from, &datagram);
                }
            }
            self.look();
            if !moved {
                return;
            }
        }
    }

    /// Holds what has happened against what may.
    fn look(&mut self) {
        for side in [0, 1] {
            let end = &mut self.session.ends[side];
            assert_eq!(end.ended, None, "side {side}");
            let (events, received) = (
                std::mem::take(&mut end.events),
                std::mem::take(&mut end.received),
            );
            let mut closed = Vec::new();
            for event in events {
                match event {
                    Event::Opened { channel, label } => {
                        let index = label.parse().expect("a label of the other end");
                        self.add(side, index, channel);
                    }
                    Event::Delivered { channel } => {
                        let channel = &mut self.channels[self.by_name[side][&channel]];
                        let asked = channel.asked[side].take();
                        channel.delivered[side] = asked.expect("Delivered that nobody asked for");
                    }
                    Event::Closed { channel } => closed.push(self.by_name[side][&channel]),
                    _ => {}
                }
            }
            for (name, message) in received {
                let index = self.by_name[side][&name];
                let channel = &mut self.channels[index];
                let expected = content(index, 1 - side, channel.read[side], message.len());
                assert!(message == expected, "channel {index}: other bytes");
                channel.read[side] += message.len();
                assert!(channel.read[side] <= channel.written[1 - side]);
            }
            for index in closed {
                self.channels[index].gone[side] = true;
                self.check(side, index);
            }
        }
    }

    /// Nothing more comes for the reader of a channel at this end.
    fn check(&mut self, side: usize, index: usize) {
        let channel = &self.channels[index];
        if channel.left[side] {
            return;
        }
        let (read, other) = (channel.read[side], 1 - side);
        assert!(
            read >= channel.delivered[other],
            "channel {index}: {read} read of {} acknowledged",
            channel.delivered[other]
        );
        // Who closes a channel has everything delivered that was written before.
        assert_eq!(read, channel.written[other], "{index}: {channel:?}");
    }

    /// The network is sound, everything is read and closed.
    fn calm(mut self) -> (Duration, Reached) {
        self.fate = Fate::default();
        for side in [0, 1] {
            self.session.ends[side].reads = true;
            self.read_late(side);
        }
        self.settle(Duration::from_secs(10));
        for index in 0..self.channels.len() {
            for side in [0, 1] {
                assert!(
                    self.channels[index].names[side].is_some(),
                    "{index} never came"
                );
                if self.channels[index].gone[side] {
                    continue;
                }
                self.check(side, index);
            }
        }
        self.reached.delivered = self.channels.iter().flat_map(|each| each.delivered).sum();
        for side in [0, 1] {
            for name in self.session.ends[side].channels.clone() {
                let index = self.by_name[side][&name];
                self.channels[index].left[side] = true;
                self.session.ends[side].engine.close_channel(name);
            }
        }
        self.settle(Duration::from_secs(10));
        for end in &self.session.ends {
            assert!(end.engine.is_idle(), "something is left");
        }
        (self.session.slowest, self.reached)
    }

    fn settle(&mut self, time: Duration) {
        self.exchange();
        self.session.run(time);
        self.look();
    }
}
