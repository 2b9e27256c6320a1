//! Encrypted datagrams that are lost, changed, truncated, replayed and forged on their path. An
//! attacker without the keys can neither end a connection nor change what it transfers.

use std::net::SocketAddr;
use std::time::Duration;

use super::session::Session;
use crate::fuzzing::Input;
use anabranch_rtc::Engine;
use anabranch_rtc::{ChannelId, Written};

/// Maximum rounds of a session under attack.
const MAX_ROUNDS: usize = 60;

/// Maximum recorded datagrams for replays. Those of the handshake are the first.
const MAX_EARLIER: usize = 256;

/// Runs the session encoded in `bytes`. Returns the CPU time of the slowest datagram.
///
/// # Panics
/// If a connection ends, or transfers other bytes than were sent.
pub(crate) fn run(bytes: &[u8]) -> Duration {
    let mut input = Input::new(bytes);
    let mut earlier: [Vec<Vec<u8>>; 2] = Default::default();
    let mut session = Session::connected(|from, datagram| earlier[from].push(datagram.to_vec()));
    let channel = session.ends[0].engine.open("data").expect("a channel");
    session.exchange();
    session.ends[1].records = true;
    let mut network = Network {
        session,
        earlier,
        held: Vec::new(),
    };
    let mut sent = 0;
    for _ in 0..MAX_ROUNDS {
        if input.is_empty() {
            break;
        }
        sent += network.write(channel, sent, usize::from(input.u16() % 4096));
        network.round(&mut input);
        let time = input.pick(&[0, 1, 5, 20, 50]);
        network.session.advance(Duration::from_millis(time));
    }
    network.finish(channel, sent)
}

struct Network {
    session: Session,
    /// Recorded datagrams, by sender.
    earlier: [Vec<Vec<u8>>; 2],
    /// Delayed datagrams, with their senders.
    held: Vec<(usize, Vec<u8>)>,
}

fn content(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| (at % 251) as u8).collect()
}

impl Network {
    fn write(&mut self, channel: ChannelId, sent: usize, length: usize) -> usize {
        let engine = &mut self.session.ends[0].engine;
        if length > 0 && engine.write(channel, &content(sent, length)) == Written::Taken {
            length
        } else {
            0
        }
    }

    /// Delivers the datagrams of both sides once.
    fn round(&mut self, input: &mut Input<'_>) {
        for from in [0, 1] {
            for datagram in self.session.output(from) {
                self.carry(input, from, datagram);
            }
            if input.below(4) == 0 {
                self.forge(input, from);
            }
        }
        if input.below(4) == 0 {
            for (from, datagram) in std::mem::take(&mut self.held) {
                self.session.deliver(from, &datagram);
            }
        }
    }

    fn carry(&mut self, input: &mut Input<'_>, from: usize, datagram: Vec<u8>) {
        let earlier = &mut self.earlier[from];
        if earlier.len() < MAX_EARLIER {
            earlier.push(datagram.clone());
        }
        let mut changed = datagram.clone();
        match input.below(12) {
            0..=3 => return self.session.deliver(from, &datagram),
            4 => return,
            5 => return self.held.push((from, datagram)),
            6 => self.session.deliver(from, &datagram),
            7 => {
                let at = usize::from(input.u16()) % datagram.len().max(1);
                let mask = input.u8();
                if let Some(byte) = changed.get_mut(at) {
                    *byte ^= mask;
                }
            }
            8 => changed.truncate(usize::from(input.u16()) % (datagram.len() + 1)),
            9 => {
                let length = input.below(64);
                changed.extend_from_slice(input.take(length));
            }
            10 => {
                // Followed by an earlier datagram.
                if let Some(other) = pick(input, &self.earlier[from]) {
                    changed.extend_from_slice(other);
                }
            }
            _ => {
                // The header of this datagram with the body of an earlier one.
                if let Some(other) = pick(input, &self.earlier[from]) {
                    let at = input.below(40);
                    changed.truncate(at);
                    changed.extend_from_slice(other.get(at..).unwrap_or_default());
                }
            }
        }
        self.session.deliver(from, &changed);
        // The original arrives as well, or is lost.
        if input.bool() {
            self.session.deliver(from, &datagram);
        }
    }

    /// Delivers a replayed datagram or arbitrary bytes, from the peer's address or another.
    fn forge(&mut self, input: &mut Input<'_>, from: usize) {
        let stranger = SocketAddr::from(([192, 0, 2, 1], 9));
        let source = if input.bool() {
            stranger
        } else {
            self.session.ends[from].address
        };
        if input.bool() {
            // Of either side: a datagram may also be reflected to its sender.
            let of = input.below(2);
            let Some(datagram) = pick(input, &self.earlier[of]).cloned() else {
                return;
            };
            // Except STUN, whose timely replay from another address takes over the path: detecting
            // that is up to consent (RFC 7675), not to parsing.
            if !matches!(datagram.first(), Some(0..=3)) {
                self.session.deliver_from(source, 1 - from, &datagram);
            }
        } else {
            let mut datagram =
                vec![input.pick(&[0, 1, 20, 21, 22, 23, 24, 25, 26, 44, 46, 47, 63])];
            let length = usize::from(input.u8());
            datagram.extend_from_slice(input.take(length));
            self.session.deliver_from(source, 1 - from, &datagram);
        }
    }

    /// Ends the attack, and checks that everything arrives.
    fn finish(mut self, channel: ChannelId, sent: usize) -> Duration {
        self.write(channel, sent, 1000);
        let sent = sent + 1000;
        let mut waited = Duration::ZERO;
        loop {
            self.session.exchange();
            let end = &self.session.ends[1];
            let arrived: usize = end.received.iter().map(|(_, bytes)| bytes.len()).sum();
            for end in &self.session.ends {
                assert_eq!(end.ended, None, "ended by an attacker without keys");
            }
            if arrived >= sent {
                break;
            }
            assert!(
                waited < Duration::from_secs(60),
                "{arrived} of {sent} bytes have arrived"
            );
            let step = Duration::from_millis(500);
            self.session.run(step);
            waited += step;
        }
        let arrived: Vec<u8> = self.session.ends[1]
            .received
            .iter()
            .flat_map(|(_, bytes)| bytes.to_vec())
            .collect();
        assert!(arrived == content(0, sent), "other bytes than sent");
        self.session.slowest
    }
}

fn pick<'a>(input: &mut Input<'_>, earlier: &'a [Vec<u8>]) -> Option<&'a Vec<u8>> {
    earlier.get(usize::from(input.u8()).checked_rem(earlier.len())?)
}
