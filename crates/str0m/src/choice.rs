//! Selects an engine by name.

use std::time::Instant;

use anabranch_rtc::{EndReason, Engine, EngineFactory, MakeEngine, Setup};

use crate::Str0mEngine;

/// Creates [`Str0mEngine`]s.
#[derive(Debug, Clone, Copy)]
pub struct Str0m;

impl MakeEngine for Str0m {
    fn name(&self) -> &'static str {
        "str0m"
    }

    fn make(&self, setup: Setup, now: Instant) -> Result<Box<dyn Engine>, EndReason> {
        Ok(Box::new(Str0mEngine::new(setup, now)?))
    }
}

/// Engines on str0m.
pub const STR0M: EngineFactory = EngineFactory::new(&Str0m);

/// Unknown engine name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown engine {0:?}: expected \"direct\" or \"str0m\"")]
pub struct UnknownEngine(String);

/// The engine of this name: `direct` or `str0m`.
///
/// # Errors
/// If the name is unknown.
pub fn named(name: &str) -> Result<EngineFactory, UnknownEngine> {
    match name {
        "direct" => Ok(EngineFactory::DIRECT),
        "str0m" => Ok(STR0M),
        other => Err(UnknownEngine(other.to_owned())),
    }
}

/// The engine named by the environment variable `ANABRANCH_ENGINE`; `direct` if it is not set.
///
/// # Errors
/// If the name is unknown.
pub fn from_env() -> Result<EngineFactory, UnknownEngine> {
    match std::env::var("ANABRANCH_ENGINE") {
        Ok(name) => named(&name),
        Err(_) => Ok(EngineFactory::DIRECT),
    }
}
