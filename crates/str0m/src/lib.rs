#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod budget;
mod choice;
mod dtls;
mod engine;

pub use choice::{STR0M, Str0m, UnknownEngine, from_env, named};
pub use engine::Str0mEngine;
