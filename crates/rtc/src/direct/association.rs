//! The configuration of the SCTP association.

use std::time::Duration;

use anabranch_sctp::{Association, Config, CongestionControl};

/// Maximum overhead of DTLS per packet: header 13, explicit nonce 8, tag 16 (1.2 with AES-GCM).
const DTLS_OVERHEAD: usize = 37;

/// Longest accepted message. Those of libp2p have 16 KiB at most.
const MAX_MESSAGE: usize = 64 * 1024;

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
