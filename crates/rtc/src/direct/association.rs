//! The configuration of the SCTP association, and how much is written to it.

use std::time::Duration;

use anabranch_sctp::{Association, Config, CongestionControl};

/// Maximum overhead of DTLS per packet: header 13, explicit nonce 8, tag 16 (1.2 with AES-GCM).
const DTLS_OVERHEAD: usize = 37;

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
    mtu: usize,
    receive_buffer: usize,
    progress_timeout: Duration,
    congestion: CongestionControl,
    ecn: bool,
) -> Association {
    let mut config = Config::default();
    // Chunks are padded to a multiple of four (RFC 9260 section 3.2).
    config.max_packet = mtu.saturating_sub(DTLS_OVERHEAD) & !3;
    config.receive_buffer = receive_buffer;
    config.max_message = MAX_MESSAGE;
    config.progress_timeout = progress_timeout;
    config.congestion = congestion;
    config.ecn = ecn;
    Association::new(config)
}
