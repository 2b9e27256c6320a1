//! Sessions of two engines in which a side or the network lies, as bytes say.

mod chunks;
mod datagrams;
mod packets;
mod session;
mod validation;

pub(crate) use datagrams::run as changed_datagrams;
pub(crate) use packets::run as changed_packets;
pub(crate) use validation::run as path_validation;
