//! Real endpoints, from ICE to substreams, on a simulated network in virtual time.
#![cfg(feature = "testing")]

mod handshakes;
mod liveness;
mod outages;
mod paths;
mod payload;
mod seeds;
mod tally;
mod world;
