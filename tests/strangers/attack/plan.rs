//! The plan of a seed.

use std::time::Duration;

use anabranch::{EndpointConfig, EngineFactory};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::primitives::Primitive;
use super::victims::Kind;
use crate::harness::endpoint_config;

/// An attack, its environment, and the limits of its targets. Printed when an invariant is
/// violated.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) round_trip: Duration,
    /// The conditions between the listener and honest peers.
    pub(super) loss: f64,
    pub(super) max_handshakes: usize,
    /// The primitives of the attacker, with multiplicity as weight.
    pub(super) primitives: Vec<Primitive>,
    /// Mean interval of the primitives.
    pub(super) pace: Duration,
    /// Third parties as targets, and their behaviour.
    pub(super) victims: u32,
    pub(super) kinds: Vec<Kind>,
    pub(super) has_signers: bool,
    /// The attacker reads and copies the datagrams of honest peers.
    pub(super) observes: bool,
    /// The malicious peer sends with the sources of victims.
    pub(super) resources: bool,
    /// The malicious peer acknowledges what was sent to victims. Never with `resources`: a peer
    /// that receives at an address and sends from there has moved.
    pub(super) relays: bool,
    /// A neighbour gets another port in the middle of its transfer.
    pub(super) roams: bool,
    /// Number of dials of honest peers, one after the other.
    pub(super) newcomers: u8,
    pub(super) transfer: usize,
}

impl Plan {
    pub(super) fn draw(seed: u64) -> Self {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut primitives: Vec<_> = Primitive::ALL
            .into_iter()
            .filter(|_| rng.random_bool(0.5))
            .collect();
        if primitives.is_empty() {
            primitives.extend(Primitive::ALL.choose(rng));
        }
        // Some primitives have more weight.
        for _ in 0..rng.random_range(0..8) {
            primitives.extend(primitives.choose(rng).copied());
        }
        let mut kinds: Vec<_> = Kind::COMMON
            .into_iter()
            .filter(|_| rng.random_bool(0.4))
            .collect();
        if kinds.is_empty() {
            kinds.extend(Kind::COMMON.choose(rng));
        }
        let observes = rng.random_bool(0.5);
        let resources = rng.random_bool(0.3);
        Self {
            seed,
            round_trip: Duration::from_millis(rng.random_range(2..80)),
            loss: [0.0, 0.0, 0.01][rng.random_range(0..3)],
            max_handshakes: [16, 32, 128][rng.random_range(0..3)],
            primitives,
            pace: Duration::from_micros([1000, 2000, 5000, 20_000][rng.random_range(0..4)]),
            victims: [1, 3, 40][rng.random_range(0..3)],
            kinds,
            // str0m accepts a signed answer as a proof (`docs/security.md`).
            has_signers: rng.random_bool(0.5) && endpoint_config().engine == EngineFactory::DIRECT,
            observes,
            resources,
            relays: !resources && rng.random_bool(0.4),
            // An attacker who reads the ufrag can use up the remote addresses of a connection.
            roams: !observes && rng.random_bool(0.3),
            newcomers: rng.random_range(2..5),
            transfer: rng.random_range(1000..120_000),
        }
    }

    /// Settings of the listener: prefix shares that two hosts with proven addresses can not exhaust
    /// for honest peers.
    pub(super) fn limits(&self) -> EndpointConfig {
        let mut config = endpoint_config();
        config.max_handshakes = self.max_handshakes;
        config.max_handshakes_per_prefix = self.max_handshakes / 8;
        config
    }
}
