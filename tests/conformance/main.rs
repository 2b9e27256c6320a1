//! The conformance suite over every carrier but the one in memory, which runs it in
//! `anabranch-testkit`.

mod webrtc;
#[cfg(feature = "websocket")]
mod websocket;
