//! Where the examples are, for tests that run them as processes.

use std::path::PathBuf;
use std::process::Command;

/// An example, which is built beside the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let target = test.ancestors().nth(2).expect("deps are in a folder");
    let program = target.join("examples").join(name);
    if !program.exists() {
        // Only this test was asked for.
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--example", name]);
        assert!(build.status().expect("cargo").success());
    }
    program
}
