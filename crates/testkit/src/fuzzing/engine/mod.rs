//! Sessions of two engines in which a side or the network misbehaves, as directed by an input.

mod chunks;
mod datagrams;
mod honest;
mod packets;
mod session;
mod validation;

pub(crate) use datagrams::run as changed_datagrams;
#[cfg(test)]
pub(crate) use honest::run as honest;
pub(crate) use packets::run as changed_packets;
pub(crate) use validation::run as path_validation;
