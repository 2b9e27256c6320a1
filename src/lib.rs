//! Reliable, backpressured, cleanly closing byte streams over WebRTC data channels.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod message;
