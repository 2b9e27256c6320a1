//! Two honest engines on a network that loses, duplicates and delays datagrams, as directed by an
//! input.
//!
//! The oracle: a channel yields the bytes written to it, in order, and none of an earlier channel
//! with its stream id; bytes reported as delivered were readable; both sides stay connected, and
//! nothing is left at the end.

use std::collections::HashMap;
use std::time::Duration;

use super::session::Session;
use crate::fuzzing::Input;
use anabranch_rtc::Engine;
use anabranch_rtc::{ChannelId, Class, Event, OpenError, Written};

/// Maximum steps of a session, which bounds the time of a long input.
const MAX_STEPS: usize = 200;

/// Inbound streams of each side: few, so that stream ids are reused.
const STREAMS: u16 = 40;

/// Maximum channels of a session.
const MAX_OPENED: usize = 500;

/// Maximum bytes that one side of a session writes.
const MAX_WRITTEN: usize = 400_000;

/// Maximum rounds of an exchange without the clock advancing.
const MAX_ROUNDS: usize = 8;

/// How often a session reached the situations that it is meant to reach.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Coverage {
    /// Messages of at most 20 bytes.
    pub(crate) small: usize,
    /// Closes of channels while data is unacknowledged.
    pub(crate) resets_in_flight: usize,
    /// Messages read after a pause of their reader.
    pub(crate) read_late: usize,
    /// Opens that found no free stream id.
    pub(crate) no_free_id: usize,
    /// Channels on a stream id that an earlier channel had.
    pub(crate) reused: usize,
    /// Datagrams that were lost, duplicated or delayed.
    pub(crate) impaired: usize,
    /// Writes that were refused as busy.
    pub(crate) refused: usize,
    /// Bytes reported as delivered to their writer.
    pub(crate) delivered: usize,
}

/// A channel. Arrays are indexed by side.
#[derive(Debug, Default)]
struct Channel {
    ids: [Option<ChannelId>; 2],
    written: [usize; 2],
    /// Bytes of the other side that were read.
    read: [usize; 2],
    /// Bytes written when `Delivered` was requested last, while it is due.
    requested: [Option<usize>; 2],
    /// Bytes written when `Delivered` was requested that was reported last.
    delivered: [usize; 2],
    /// The side has closed or ignores the channel, and reads it no more.
    left: [bool; 2],
    /// The side has reported `Closed`.
    closed: [bool; 2],
}

/// Rates of impairments, in 1/256 of the datagrams.
#[derive(Debug, Default, Clone, Copy)]
struct Impairments {
    lost: u64,
    duplicated: u64,
    delayed: u64,
}

struct Honest {
    session: Session,
    channels: Vec<Channel>,
    /// Index of a channel by its id, for each side.
    by_id: [HashMap<ChannelId, usize>; 2],
    impairments: Impairments,
    random: u64,
    delayed: [Vec<Vec<u8>>; 2],
    /// Number of channels that a side has opened on a stream id.
    uses: [HashMap<u64, usize>; 2],
    coverage: Coverage,
}

/// Runs the session encoded in `input`. Returns the CPU time of the slowest datagram.
///
/// # Panics
/// If the oracle is violated.
pub(crate) fn run(mut input: Input<'_>) -> (Duration, Coverage) {
    let mut session = Session::with_streams(STREAMS);
    for end in &mut session.ends {
        end.records = true;
    }
    let mut honest = Honest {
        session,
        channels: Vec::new(),
        by_id: Default::default(),
        impairments: Impairments::default(),
        random: u64::from(input.u8()) + 1,
        delayed: Default::default(),
        uses: Default::default(),
        coverage: Coverage::default(),
    };
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        honest.step(&mut input);
        honest.check_progress();
    }
    honest.finish()
}

/// The bytes that a side writes at an offset of a channel.
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
                    && let Some(id) = self.channels[channel].ids[side]
                    && self.channels[channel].requested[side].is_none()
                {
                    let written = self.channels[channel].written[side];
                    self.channels[channel].requested[side] = Some(written);
                    self.session.ends[side].engine.notify_delivered(id);
                }
            }
            8 => {
                if let Some(channel) = self.pick(side, input.u8())
                    && let Some(id) = self.channels[channel].ids[side]
                {
                    self.channels[channel].left[side] = true;
                    self.session.ends[side].engine.ignore_channel(id);
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
                self.impairments = Impairments {
                    lost: input.pick(&[0, 2, 25, 80]),
                    duplicated: input.pick(&[0, 0, 20]),
                    delayed: input.pick(&[0, 0, 10, 60]),
                };
            }
            // Short-lived channels, so that stream ids are reused.
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
                self.session.advance(Duration::from_millis(time));
                self.exchange();
            }
        }
    }

    /// A channel that is open on this side.
    fn pick(&self, side: usize, index: u8) -> Option<usize> {
        let open = self.channels.iter().enumerate().filter(|(_, channel)| {
            channel.ids[side].is_some() && !channel.left[side] && !channel.closed[side]
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
            Ok(id) => {
                end.channels.push(id);
                self.channels.push(Channel::default());
                self.add(side, index, id);
                // The low 16 bits of an engine's channel id are the stream id.
                let uses = self.uses[side].entry(id.get() & 0xffff).or_default();
                self.coverage.reused += usize::from(*uses > 0);
                *uses += 1;
                Some(index)
            }
            Err(OpenError::NotNow | OpenError::Exhausted) => {
                self.coverage.no_free_id += 1;
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn add(&mut self, side: usize, index: usize, id: ChannelId) {
        let earlier = self.channels[index].ids[side].replace(id);
        assert_eq!(earlier, None, "channel {index} is opened twice");
        let earlier = self.by_id[side].insert(id, index);
        assert_eq!(earlier, None, "{id} is used twice");
    }

    fn write(&mut self, side: usize, index: usize, length: usize) {
        let channel = &mut self.channels[index];
        let Some(id) = channel.ids[side] else {
            return;
        };
        if self.session.ends[side].written >= MAX_WRITTEN {
            return;
        }
        let bytes = content(index, side, channel.written[side], length);
        let end = &mut self.session.ends[side];
        match end.engine.write_vectored(id, &[&bytes], Class::Data) {
            Written::Taken => {
                channel.written[side] += length;
                end.written += length;
                self.coverage.small += usize::from(length <= 20);
            }
            Written::Busy | Written::NotOpen => self.coverage.refused += 1,
            // The other side has reset the channel, and this one has not handled the event yet.
            Written::Closed => assert!(
                channel.left[1 - side] || channel.left[side],
                "channel {index} is closed"
            ),
        }
    }

    fn close(&mut self, side: usize, index: usize) {
        let channel = &mut self.channels[index];
        let Some(id) = channel.ids[side] else {
            return;
        };
        channel.left[side] = true;
        let engine = &mut self.session.ends[side].engine;
        let in_flight = engine.unacknowledged() > 0;
        self.coverage.resets_in_flight += usize::from(in_flight);
        engine.close_channel(id);
    }

    fn read_late(&mut self, side: usize) {
        let end = &mut self.session.ends[side];
        let before = end.received.len();
        end.read_all();
        self.coverage.read_late += self.session.ends[side].received.len() - before;
        self.check_progress();
    }

    /// A pseudo-random number below 256 (xorshift).
    fn roll(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 24 & 255
    }

    /// Delivers the datagrams of both sides, subject to the impairments.
    fn exchange(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let mut moved = false;
            for from in [0, 1] {
                let mut datagrams = std::mem::take(&mut self.delayed[from]);
                for datagram in self.session.output(from) {
                    moved = true;
                    let Impairments {
                        lost,
                        duplicated,
                        delayed,
                    } = self.impairments;
                    // The upper bounds of consecutive ranges.
                    let duplicated = lost + duplicated;
                    let delayed = duplicated + delayed;
                    let roll = self.roll();
                    self.coverage.impaired += usize::from(roll < delayed);
                    if roll < lost {
                        continue;
                    }
                    if roll < duplicated {
                        datagrams.push(datagram.clone());
                    }
                    if (duplicated..delayed).contains(&roll) {
                        self.delayed[from].push(datagram);
                    } else {
                        datagrams.push(datagram);
                    }
                }
                for datagram in datagrams {
                    self.session.deliver(from, &datagram);
                }
            }
            self.check_progress();
            if !moved {
                return;
            }
        }
    }

    /// Checks the events and messages recorded since the last call.
    fn check_progress(&mut self) {
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
                        let index = label.parse().expect("a label of the other side");
                        self.add(side, index, channel);
                    }
                    Event::Delivered { channel } => {
                        let channel = &mut self.channels[self.by_id[side][&channel]];
                        let requested = channel.requested[side].take();
                        channel.delivered[side] = requested.expect("Delivered without a request");
                    }
                    Event::Closed { channel } => closed.push(self.by_id[side][&channel]),
                    _ => {}
                }
            }
            for (id, message) in received {
                let index = self.by_id[side][&id];
                let channel = &mut self.channels[index];
                let expected = content(index, 1 - side, channel.read[side], message.len());
                assert!(message == expected, "channel {index}: other bytes");
                channel.read[side] += message.len();
                assert!(channel.read[side] <= channel.written[1 - side]);
            }
            for index in closed {
                self.channels[index].closed[side] = true;
                self.check_complete(side, index);
            }
        }
    }

    /// Checks a channel of which this side can read no more.
    fn check_complete(&mut self, side: usize, index: usize) {
        let channel = &self.channels[index];
        if channel.left[side] {
            return;
        }
        let (read, other) = (channel.read[side], 1 - side);
        assert!(
            read >= channel.delivered[other],
            "channel {index}: {read} bytes read of {} delivered",
            channel.delivered[other]
        );
        // A close delivers everything that was written before it.
        assert_eq!(read, channel.written[other], "{index}: {channel:?}");
    }

    /// Ends the impairments, reads and closes everything, and checks that nothing is left.
    fn finish(mut self) -> (Duration, Coverage) {
        self.impairments = Impairments::default();
        for side in [0, 1] {
            self.session.ends[side].reads = true;
            self.read_late(side);
        }
        self.settle(Duration::from_secs(10));
        for index in 0..self.channels.len() {
            for side in [0, 1] {
                assert!(
                    self.channels[index].ids[side].is_some(),
                    "channel {index} was not opened on side {side}"
                );
                if self.channels[index].closed[side] {
                    continue;
                }
                self.check_complete(side, index);
            }
        }
        self.coverage.delivered = self.channels.iter().flat_map(|each| each.delivered).sum();
        for side in [0, 1] {
            for id in self.session.ends[side].channels.clone() {
                let index = self.by_id[side][&id];
                self.channels[index].left[side] = true;
                self.session.ends[side].engine.close_channel(id);
            }
        }
        self.settle(Duration::from_secs(10));
        for end in &self.session.ends {
            assert!(end.engine.is_idle(), "state is left");
        }
        (self.session.slowest, self.coverage)
    }

    fn settle(&mut self, time: Duration) {
        self.exchange();
        self.session.run(time);
        self.check_progress();
    }
}
