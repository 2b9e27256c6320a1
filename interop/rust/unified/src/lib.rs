//! What the applications `transport` and `perf` of libp2p's unified-testing have in common:
//! `docs/write-a-transport-test-app.md` and `docs/write-a-perf-test-app.md` there are the contract,
//! `interop/rust/README.md` says what these two add.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod coordination;
mod environment;
mod node;
pub mod perf;
mod statistics;

pub use coordination::{publish, wait_for_listener};
pub use environment::{Environment, Stack, count, number};
pub use node::{listening_address, node};
pub use statistics::Summary;

/// The error of an application, which ends it with a status other than 0.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;
