//! The choice of an engine by its name.

use std::time::Instant;

use anabranch_rtc::{EndReason, Engine, EngineFactory, MakeEngine, Setup};

use crate::Str0mEngine;

/// Makes [`Str0mEngine`]s.
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

/// A name that is no engine's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no engine is called {0:?}: there are \"direct\" and \"str0m\"")]
pub struct UnknownEngine(String);

/// The engine of this name, `direct` or `str0m`.
///
/// # Errors
/// If there is none of that name.
pub fn named(name: &str) -> Result<EngineFactory, UnknownEngine> {
    match name {
        "direct" => Ok(EngineFactory::DIRECT),
        "str0m" => Ok(STR0M),
        other => Err(UnknownEngine(other.to_owned())),
    }
}

/// The engine that `ANABRANCH_ENGINE` in the environment names; `direct` where it is not set.
///
/// # Errors
/// If it names none.
pub fn from_env() -> Result<EngineFactory, UnknownEngine> {
    match std::env::var("ANABRANCH_ENGINE") {
        Ok(name) => named(&name),
        Err(_) => Ok(EngineFactory::DIRECT),
    }
}
