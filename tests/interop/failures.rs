//! Failures on our side with a foreign peer: each of them fails the test.
#![allow(dead_code)] // Each suite uses a part of it.

use std::fmt::Display;
use std::sync::{Arc, Mutex};

#[derive(Clone, Debug, Default)]
pub(crate) struct Failures(Arc<Mutex<Vec<String>>>);

impl Failures {
    pub(crate) fn add(&self, what: &str, error: &dyn Display) {
        println!("{what}: {error}");
        let mut all = self.0.lock().expect("nobody panics with it");
        all.push(format!("{what}: {error}"));
    }

    /// Whether there is one of this beginning.
    pub(crate) fn have(&self, what: &str) -> bool {
        let all = self.0.lock().expect("nobody panics with it");
        all.iter().any(|failure| failure.starts_with(what))
    }

    pub(crate) fn assert_none(&self) {
        self.assert_are(&[]);
    }

    /// Asserts that there are exactly these, in any order, each identified by a part of its text.
    pub(crate) fn assert_are(&self, parts: &[&str]) {
        let all = self.0.lock().expect("nobody panics with it");
        let mut unexpected = all.clone();
        for part in parts {
            let found = unexpected.iter().position(|failure| failure.contains(part));
            let found = found.unwrap_or_else(|| panic!("no failure with {part:?} in {all:#?}"));
            unexpected.remove(found);
        }
        assert!(unexpected.is_empty(), "{unexpected:#?}");
    }
}
