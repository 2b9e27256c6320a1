//! The choice of an engine.

use std::time::Instant;

use super::direct::DirectEngine;
use super::engine::Engine;
use super::str0m_engine::{EngineSetup, Str0mEngine};
use crate::connection::ConnectionError;

/// Which WebRTC implementation connections run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum EngineKind {
    /// str0m.
    Str0m,
    /// The crates below str0m, driven by this one: opens channels without a round trip, takes half
    /// the memory, costs less for each idle channel, and lets readers hold back their senders.
    #[default]
    Direct,
}

/// A name that is no engine's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no engine is called {0:?}: there are \"direct\" and \"str0m\"")]
pub struct UnknownEngine(String);

impl std::str::FromStr for EngineKind {
    type Err = UnknownEngine;

    /// Reads `direct` or `str0m`.
    fn from_str(name: &str) -> Result<Self, UnknownEngine> {
        match name {
            "direct" => Ok(Self::Direct),
            "str0m" => Ok(Self::Str0m),
            other => Err(UnknownEngine(other.to_owned())),
        }
    }
}

/// Makes an engine.
pub(crate) fn new_engine(
    kind: EngineKind,
    setup: EngineSetup<'_>,
    now: Instant,
) -> Result<Box<dyn Engine>, ConnectionError> {
    Ok(match kind {
        EngineKind::Str0m => Box::new(Str0mEngine::new(setup, now)?),
        EngineKind::Direct => Box::new(DirectEngine::new(setup, now)?),
    })
}
