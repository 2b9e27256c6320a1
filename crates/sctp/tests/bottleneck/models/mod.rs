//! Controllers of the flows that ours compete with, and the associations that use them.

use anabranch_sctp::{CongestionControl, Controller};

use super::flow::Contender;
use super::link::OVERHEAD;

mod bbr1;
mod cubic;
mod hystart;

use bbr1::Bbr1;
use cubic::Cubic;

/// Longest packet of ours, at first, and of QUIC: the default of `Config`.
const MAX_PACKET: usize = 1200;

/// Longest packet of a flow that stands for TCP: 1500 bytes on the wire, in whole words.
const TCP_PACKET: usize = (1500 - OVERHEAD) / 4 * 4;

/// The default of the crate, with packets that become as long as TCP's: the harder case.
pub(crate) const OURS: Contender = Contender {
    name: "ours",
    control: CongestionControl::Heed,
    max_packet: MAX_PACKET,
    packet_sizes: &[TCP_PACKET],
};

/// CUBIC of a TCP without pacing, as in Linux with the default queueing discipline.
pub(crate) const TCP_CUBIC: Contender = Contender {
    name: "cubic",
    control: CongestionControl::Custom(tcp_cubic),
    max_packet: TCP_PACKET,
    packet_sizes: &[],
};

/// CUBIC with pacing, as in quinn: that of the crate.
pub(crate) const QUIC_CUBIC: Contender = Contender {
    name: "quic",
    control: CongestionControl::Cubic,
    max_packet: MAX_PACKET,
    packet_sizes: &[],
};

/// BBRv1 of a TCP.
pub(crate) const TCP_BBR: Contender = Contender {
    name: "bbr1",
    control: CongestionControl::Custom(tcp_bbr),
    max_packet: TCP_PACKET,
    packet_sizes: &[],
};

/// All, for tables.
pub(crate) const ALL: [Contender; 4] = [OURS, TCP_CUBIC, QUIC_CUBIC, TCP_BBR];

fn tcp_cubic(max_packet: usize) -> Box<dyn Controller> {
    Box::new(Cubic::new(max_packet))
}

fn tcp_bbr(max_packet: usize) -> Box<dyn Controller> {
    Box::new(Bbr1::new(max_packet))
}
