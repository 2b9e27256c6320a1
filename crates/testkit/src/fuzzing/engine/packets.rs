//! SCTP packets that are changed or forged under valid DTLS, during transfers and closes; or, from
//! a first byte of [`HONEST`] on, honest engines on a bad network.

use std::time::Duration;

use super::chunks::Forger;
use super::honest;
use super::session::Session;
use crate::fuzzing::Input;
use anabranch_rtc::Engine;

/// Maximum steps of a session, which bounds the time of a long input.
const MAX_STEPS: usize = 200;

/// First bytes from this on select a session without forged packets.
const HONEST: u8 = 192;

/// Maximum channels that one side of a session opens.
const MAX_OPENED: usize = 24;

/// Maximum rounds of an exchange without the clock advancing.
const MAX_ROUNDS: usize = 8;

/// Runs the session encoded in `bytes`. Returns the CPU time of the slowest datagram.
///
/// # Panics
/// If an engine exceeds a bound.
pub(crate) fn run(bytes: &[u8]) -> Duration {
    let mut input = Input::new(bytes);
    let forges = match input.u8() {
        HONEST.. => return honest::run(input).0,
        choice => [[true, false], [false, true], [true, true]][usize::from(choice % 3)],
    };
    let mut attack = Attack {
        session: Session::connected(|_, _| {}),
        forgers: [Forger::default(), Forger::default()],
        forges,
    };
    // Shows the forgers the tags and TSNs that a plausible forgery needs.
    for side in [0, 1] {
        attack.open(side);
    }
    attack.observe();
    for _ in 0..MAX_STEPS {
        if input.is_empty() || attack.session.ends.iter().all(|end| end.ended.is_some()) {
            break;
        }
        attack.step(&mut input);
    }
    attack.finish()
}

struct Attack {
    session: Session,
    forgers: [Forger; 2],
    forges: [bool; 2],
}

impl Attack {
    fn open(&mut self, side: usize) {
        let end = &mut self.session.ends[side];
        if end.channels.len() < MAX_OPENED
            && let Ok(channel) = end.engine.open("fuzz")
        {
            end.channels.push(channel);
            end.engine.write(channel, &[7; 100]);
        }
    }

    /// Exchanges honest packets, which the forgers observe.
    fn observe(&mut self) {
        for _ in 0..4 {
            for from in [0, 1] {
                let packets = self.session.packets(from);
                for packet in &packets {
                    self.forgers[from].observe(packet);
                }
                for datagram in self.session.encrypt(from, &packets) {
                    self.session.deliver(from, &datagram);
                }
            }
            self.session.run(Duration::from_millis(250));
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        let side = usize::from(choice >> 7);
        let end = &mut self.session.ends[side];
        let channel = |index: u8| {
            let index = usize::from(index).checked_rem(end.channels.len())?;
            end.channels.get(index).copied()
        };
        match choice & 15 {
            0 => self.open(side),
            1 => {
                let length = usize::from(input.u16()) % 20_000;
                if let Some(channel) = channel(input.u8()) {
                    end.engine.write(channel, &vec![7; length]);
                }
            }
            2 => {
                if let Some(channel) = channel(input.u8()) {
                    end.engine.close_channel(channel);
                    end.channels.retain(|open| *open != channel);
                }
            }
            3 => {
                if let Some(channel) = channel(input.u8()) {
                    end.engine.notify_delivered(channel);
                }
            }
            4 => {
                if let Some(channel) = channel(input.u8()) {
                    end.engine.ignore_channel(channel);
                }
            }
            5 => {
                end.reads = !end.reads;
                if end.reads {
                    end.read_all();
                }
            }
            6..=8 => self.exchange(input),
            9 => {
                let time = input.pick(&[1, 5, 20, 100, 200, 300, 500, 1000, 3000, 10_000]);
                self.session.advance(Duration::from_millis(time));
                self.exchange(input);
            }
            10 | 11 => {
                let from = self.forger(side);
                let packets: Vec<_> = self.forgers[from].forge(input).into_iter().collect();
                self.inject(from, &packets);
            }
            12 => {
                let from = self.forger(side);
                let mut packets = Vec::new();
                self.forgers[from].forge_burst(input, &mut packets);
                self.inject(from, &packets);
            }
            13 => {
                let from = self.forger(side);
                let packets: Vec<_> = if input.bool() {
                    self.forgers[from].earlier(input).into_iter().collect()
                } else {
                    std::mem::take(&mut self.forgers[from].held)
                };
                self.inject(from, &packets);
            }
            14 => {
                let from = self.forger(side);
                let packets: Vec<_> = self.forgers[from].raw(input).into_iter().collect();
                self.inject(from, &packets);
            }
            // An orderly close, rarely.
            _ if input.u8() == 0x55 => {
                let now = self.session.now;
                end.engine.close(now);
            }
            _ => {}
        }
    }

    /// `side` if it forges packets, or else the other side.
    fn forger(&self, side: usize) -> usize {
        if self.forges[side] { side } else { 1 - side }
    }

    /// Encrypts and delivers packets.
    fn inject(&mut self, from: usize, packets: &[bytes::Bytes]) {
        for datagram in self.session.encrypt(from, packets) {
            self.session.deliver(from, &datagram);
        }
        // Delivers the replies at once: a session whose clock does not advance would pile them up.
        for datagram in self.session.output(1 - from) {
            self.session.deliver(1 - from, &datagram);
        }
    }

    /// Delivers the datagrams of both sides; those of a forger changed as directed by `input`.
    fn exchange(&mut self, input: &mut Input<'_>) {
        for _ in 0..MAX_ROUNDS {
            let mut moved = false;
            for from in [0, 1] {
                let datagrams = if self.forges[from] {
                    let mut packets = Vec::new();
                    for packet in self.session.packets(from) {
                        self.forgers[from].send(input, &packet, &mut packets);
                    }
                    self.session.encrypt(from, &packets)
                } else {
                    self.session.output(from)
                };
                for datagram in datagrams {
                    moved = true;
                    self.session.deliver(from, &datagram);
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Ends the attack, lets both sides run for a while, and closes them.
    fn finish(mut self) -> Duration {
        for end in &mut self.session.ends {
            end.reads = true;
            end.read_all();
        }
        self.session.exchange();
        self.session.run(Duration::from_secs(10));
        let now = self.session.now;
        for end in &mut self.session.ends {
            end.engine.close(now);
        }
        self.session.exchange();
        self.session.run(Duration::from_secs(1));
        self.session.slowest
    }
}
