//! Real endpoints, from ICE to substreams, on a simulated network in virtual time.

mod ecn;
mod handshakes;
mod liveness;
mod outages;
mod path_mtu;
mod paths;
mod payload;
mod rebinds;
mod seeds;
mod tally;
mod world;
