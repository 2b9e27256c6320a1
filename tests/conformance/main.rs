//! Every carrier passes the conformance suite. That of the carrier in memory is in `anabranch-testkit`.

mod webrtc;
#[cfg(feature = "websocket")]
mod websocket;
