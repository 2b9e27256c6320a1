//! What those who have proven nothing can make a listener, a dialler and others suffer; on a simulated network.

mod admission;
#[path = "../allocator/mod.rs"]
mod allocator;
mod attack;
mod floods;
mod harness;
mod meter;
mod reflection;
