#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod conformance;
pub mod fuzzing;
pub mod loopback;
pub mod memory;
pub mod simulator;
