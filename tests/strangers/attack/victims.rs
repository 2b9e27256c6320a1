//! Third parties whose addresses the attacker forges, and their behaviour.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anabranch_testkit::simulator::TappedDatagram;
use rand::RngExt;
use rand::rngs::StdRng;

use super::plan::Plan;
use crate::harness::{forged, sign_challenge, stun_server};

/// Addresses of the floods.
const STRANGERS: u32 = 5000;

/// The behaviour of a victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Silent,
    /// Answers STUN as a STUN server.
    StunServer,
    /// The same, up to twenty seconds late.
    Late,
    /// The same, with the source of another victim.
    Mixing,
    /// Sends everything back.
    Echo,
    /// Sends everything back, later and modified.
    Garbling,
    /// Answers a check with the password derived from its USERNAME: a host of the attacker, or
    /// another listener of webrtc-direct.
    Signer,
}

impl Kind {
    /// Behaviours of hosts that can be found on the Internet by the thousand.
    pub(super) const COMMON: [Self; 6] = [
        Self::Silent,
        Self::StunServer,
        Self::Late,
        Self::Mixing,
        Self::Echo,
        Self::Garbling,
    ];
}

/// Hosts that sign answers: so few that their shares leave most handshakes to others.
const SIGNERS: u32 = 2;

fn number(address: SocketAddr) -> Option<u32> {
    let IpAddr::V4(ip) = address.ip() else {
        return None;
    };
    u32::from(ip)
        .checked_sub(0x0b00_0000)
        .filter(|number| *number < STRANGERS)
}

pub(super) fn is_victim(address: SocketAddr) -> bool {
    number(address).is_some()
}

fn kind(plan: &Plan, address: SocketAddr) -> Kind {
    match number(address) {
        Some(number) if number < SIGNERS && plan.has_signers => Kind::Signer,
        Some(number) => plan.kinds[number as usize % plan.kinds.len()],
        None => Kind::Silent,
    }
}

/// A victim of the plan.
pub(super) fn any(plan: &Plan, rng: &mut StdRng) -> SocketAddr {
    let mut victim = forged(rng.random_range(0..plan.victims));
    if rng.random_bool(0.2) {
        victim.set_port(victim.port() + rng.random_range(1..4));
    }
    victim
}

/// An address from which mostly nothing has come yet.
pub(super) fn stranger(rng: &mut StdRng) -> SocketAddr {
    forged(rng.random_range(SIGNERS..STRANGERS))
}

/// A host that signs answers, on any of its ports.
pub(super) fn signer(rng: &mut StdRng) -> SocketAddr {
    let mut signer = forged(rng.random_range(0..SIGNERS));
    signer.set_port(rng.random_range(1024..60_000));
    signer
}

/// An answer of a victim: its source, its delay, and its contents.
pub(super) fn react(
    plan: &Plan,
    rng: &mut StdRng,
    victim: SocketAddr,
    datagram: &TappedDatagram,
) -> Option<(SocketAddr, Duration, Vec<u8>)> {
    let contents = &datagram.contents;
    let soon = Duration::from_millis(rng.random_range(0..60));
    match kind(plan, victim) {
        Kind::Silent => None,
        Kind::StunServer => Some((victim, soon, stun_server(contents)?)),
        Kind::Late => {
            let after = Duration::from_millis(rng.random_range(0..20_000));
            Some((victim, after, stun_server(contents)?))
        }
        Kind::Mixing => Some((any(plan, rng), soon, stun_server(contents)?)),
        Kind::Echo => Some((victim, Duration::ZERO, contents.clone())),
        Kind::Garbling => {
            let after = Duration::from_millis(rng.random_range(0..3000));
            let mut changed = contents.clone();
            change(rng, &mut changed);
            Some((victim, after, changed))
        }
        Kind::Signer => Some((victim, soon, sign_challenge(contents, datagram.source)?)),
    }
}

/// Changes a few bytes, the length, or both.
pub(super) fn change(rng: &mut StdRng, contents: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..4) {
        let index = rng.random_range(0..contents.len().max(1));
        match rng.random_range(0..4) {
            0 => contents.truncate(index),
            1 => contents.extend((0..index % 64).map(|byte| byte as u8)),
            _ => {
                if let Some(byte) = contents.get_mut(index) {
                    *byte ^= 1 << rng.random_range(0..8);
                }
            }
        }
    }
}
