//! The layout of the sources: lengths of lines and of files.

use std::collections::BTreeSet;

use super::{files, read, says};

/// Comments and strings included, which rustfmt does not wrap.
#[test]
fn lines_of_code_have_at_most_100_columns() {
    let mut long = Vec::new();
    for file in files() {
        let is_code = [".rs", ".py"].iter().any(|ending| file.ends_with(ending));
        if is_code {
            let text = read(&file);
            let lines = text.lines().enumerate();
            let lines = lines.filter(|(_, line)| line.chars().count() > 100);
            long.extend(lines.map(|(number, _)| format!("{file}:{}", number + 1)));
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

/// Files that were longer when the rule was introduced.
const LONG: [&str; 7] = [
    "crates/rtc/src/client_hello.rs",
    "crates/sctp/src/differential.rs",
    "crates/str0m/src/engine.rs",
    "src/websocket/tests/connections.rs",
    "tests/connection_flow.rs",
    "tests/connection_limits.rs",
    "tests/substream_close.rs",
];

/// The rule of `CONTRIBUTING.md`.
#[test]
fn files_are_short() {
    says("CONTRIBUTING.md", "New files stay under 600 lines", true);
    let is_long = |file: &String| file.ends_with(".rs") && read(file).lines().count() > 600;
    let long: BTreeSet<_> = files().into_iter().filter(is_long).collect();
    // A file that has become short leaves the list.
    assert_eq!(long, LONG.map(str::to_owned).into());
}
