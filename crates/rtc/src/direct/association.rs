//! The configuration of the SCTP association, and how much is written to it.

use std::time::Duration;

use anabranch_sctp::{Association, Config, CongestionControl};

/// Maximum overhead of DTLS per packet: header 13, explicit nonce 8, tag 16 (1.2 with AES-GCM).
const DTLS_OVERHEAD: usize = 37;

/// The largest datagram: a quarter of what one segmented send holds (65 507 bytes), and within a
/// DTLS record of 16 KiB.
const LARGEST_DATAGRAM: usize = 16_376;

/// Sizes of packets to look for, without [`DTLS_OVERHEAD`]: UDP payloads of common links, mostly
/// over IPv6, which is 20 bytes shorter. From below: the minimum of IPv6; tunnels (IPsec,
/// WireGuard, 6in4); PPPoE; Ethernet, over IPv6 and IPv4; jumbo frames; loopback.
const PACKET_SIZES: &[usize] = &[
    packet_in(1_232),
    packet_in(1_332),
    packet_in(1_372),
    packet_in(1_392),
    packet_in(1_412),
    packet_in(1_432),
    packet_in(1_444),
    packet_in(1_452),
    packet_in(1_452 + SPARE),
    packet_in(1_472),
    packet_in(1_472 + SPARE),
    packet_in(8_952),
    packet_in(LARGEST_DATAGRAM),
];

/// The longest SCTP packet in a datagram of `mtu` bytes. Chunks are padded to a multiple of four
/// (RFC 9260 section 3.2).
const fn packet_in(mtu: usize) -> usize {
    mtu.saturating_sub(DTLS_OVERHEAD) & !3
}

/// The longest datagram for an SCTP packet of this size.
pub(super) fn datagram_of(packet: usize) -> usize {
    packet + DTLS_OVERHEAD
}

/// The sizes of [`PACKET_SIZES`] up to datagrams of `max_mtu` bytes.
fn packet_sizes(max_mtu: usize) -> &'static [usize] {
    let most = packet_in(max_mtu);
    let count = PACKET_SIZES.partition_point(|size| *size <= most);
    PACKET_SIZES.get(..count).unwrap_or_default()
}

/// How much less DTLS 1.3 adds: header 5, content type 1, tag 16.
const SPARE: usize = DTLS_OVERHEAD - 22;

/// Longest accepted message. Those of libp2p have 16 KiB at most.
const MAX_MESSAGE: usize = 64 * 1024;

/// Minimum data that waits for the congestion window: two messages of the longest kind, so that one
/// is left when the writer is asked for more.
const MIN_WAITING: usize = 32 * 1024;

/// The same as sending time, for the tasks of writers to run.
const WAITING: Duration = Duration::from_millis(1);

/// See [`Engine::write_limit`](crate::Engine::write_limit).
pub(super) fn write_limit(association: &Association) -> usize {
    let window = association.send_window();
    let rate = association.congestion().pacing_rate().unwrap_or(0.0);
    let waiting = (rate * WAITING.as_secs_f64()) as usize;
    // More than the window waits for nothing but the window.
    let waiting = waiting.min(window).max(MIN_WAITING);
    window.saturating_add(waiting)
}

/// Creates an idle association.
pub(super) fn association(
    [mtu, max_mtu]: [usize; 2],
    receive_buffer: usize,
    progress_timeout: Duration,
    congestion: CongestionControl,
    ecn: bool,
) -> Association {
    let mut config = Config::default();
    config.max_packet = packet_in(mtu);
    config.packet_sizes = packet_sizes(max_mtu);
    config.receive_buffer = receive_buffer;
    config.max_message = MAX_MESSAGE;
    config.progress_timeout = progress_timeout;
    config.congestion = congestion;
    config.ecn = ecn;
    Association::new(config)
}
