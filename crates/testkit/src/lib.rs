#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod conformance;
#[doc(hidden)]
pub mod fuzzing;
pub mod loopback;
pub mod memory;
pub mod simulator;
