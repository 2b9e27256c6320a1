//! Payloads that fail: limits, deadlines, wrong announcements, truncation and cancels.

#![allow(missing_docs)]

mod broken;
mod cancels;
#[path = "../common/mod.rs"]
mod common;
mod deadlines;
mod payloads;
mod refusals;
mod unconfirmed;
