//! Channels without a path. Tests with pairs of engines are in `crates/str0m/tests`.

use std::time::Duration;

use super::channels::{Channels, HeldLimits, MAX_REFUSED};
use crate::engine::Role;

mod ecn;
mod raw;

#[test]
fn a_peer_that_does_not_close_refused_channels_is_cut_off() {
    let limits = HeldLimits {
        data: 1 << 20,
        all: 1 << 20,
    };
    let sctp = super::association(
        [1200; 2],
        1 << 20,
        Duration::from_secs(20),
        anabranch_sctp::CongestionControl::Heed,
        false,
    );
    let mut channels = Channels::new(sctp, Role::Server, limits);
    channels.authenticated();
    for number in 0..=u16::try_from(MAX_REFUSED).expect("fits") {
        // Ids that this side owns: odd ones.
        channels.on_stream(number * 2 + 1);
    }
    assert!(channels.is_ended());
}
