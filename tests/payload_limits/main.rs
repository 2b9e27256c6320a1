//! Payloads that do not arrive: limits, deadlines, lies, cuts and cancels.

#![allow(missing_docs)]

mod broken;
mod cancels;
#[path = "../common/mod.rs"]
mod common;
mod deadlines;
mod payloads;
mod refusals;
