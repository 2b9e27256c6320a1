//! Attacks by unauthenticated peers on a listener, a dialler and third parties, on a simulated
//! network.

mod admission;
#[path = "../allocator/mod.rs"]
mod allocator;
mod attack;
mod floods;
mod harness;
mod meter;
mod reflection;
