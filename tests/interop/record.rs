//! Records of passed cases with foreign peers, a line of JSON each. `scripts/interop.py` generates
//! the tables of `docs/interop.md` from them, and compares.
#![allow(dead_code)] // Each suite uses a part of it.

use std::fmt::Debug;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anabranch::{Config, EndpointConfig, WebRtcDirectVersion};

/// Who dials, and who opens the substreams. "local" in the name of a case is the opener.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    ItDials,
    WeDial,
    ItDialsWeOpen,
    TwoOfTheirs,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::ItDials => "it dials us",
            Self::WeDial => "we dial it",
            Self::ItDialsWeOpen => "it dials us, we open",
            Self::TwoOfTheirs => "between two of theirs",
        }
    }
}

/// What one test asserts for one peer, in one direction, under one set of conditions.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    peer: String,
    release: String,
    direction: Direction,
    transport: &'static str,
    conditions: Vec<String>,
    test: String,
}

impl Record {
    /// The recorder of the current thread's test.
    pub(crate) fn new(peer: &str, release: &str, direction: Direction) -> Self {
        let thread = std::thread::current();
        let test = thread.name().expect("the thread of a test");
        Self {
            peer: peer.to_owned(),
            release: release.to_owned(),
            direction,
            transport: "v1",
            conditions: Vec::new(),
            test: format!("{}::{test}", env!("CARGO_CRATE_NAME")),
        }
    }

    pub(crate) fn version(mut self, version: WebRtcDirectVersion) -> Self {
        self.transport = match version {
            WebRtcDirectVersion::V2 => "v2",
            _ => "v1",
        };
        self
    }

    pub(crate) fn websocket(mut self) -> Self {
        self.transport = "WebSocket";
        self
    }

    /// A condition that a user of the peer does not have by default.
    pub(crate) fn under(mut self, condition: impl Into<String>) -> Self {
        self.conditions.push(condition.into());
        self
    }

    /// The settings of ours that are not the defaults.
    pub(crate) fn config(self, config: &Config) -> Self {
        let mut config = config.clone();
        // The protocols of the application are no setting.
        config.protocols = Config::default().protocols;
        self.differences(&config, &Config::default())
    }

    /// Our settings that are not the defaults. The engine is recorded separately.
    pub(crate) fn endpoint(self, config: &EndpointConfig) -> Self {
        let mut config = config.clone();
        config.engine = EndpointConfig::default().engine;
        self.differences(&config, &EndpointConfig::default())
    }

    fn differences(mut self, used: &impl Debug, default: &impl Debug) -> Self {
        let (used, default) = (fields(used), fields(default));
        let differing = used.into_iter().filter(|field| !default.contains(field));
        self.conditions.extend(differing);
        self
    }

    /// Records that this case has passed.
    pub(crate) fn passed(&self, case: &str) {
        self.passed_with(case, "");
    }

    pub(crate) fn passed_in(&self, case: &str, time: Duration) {
        self.passed_with(case, &format!("{} ms", time.as_millis()));
    }

    pub(crate) fn all_passed(&self, cases: &[impl AsRef<str>]) {
        for case in cases {
            self.passed(case.as_ref());
        }
    }

    pub(crate) fn passed_with(&self, case: &str, figure: &str) {
        let engine = engine();
        let fields = [
            ("peer", self.peer.as_str()),
            ("release", &self.release),
            ("direction", self.direction.name()),
            ("transport", self.transport),
            ("conditions", &self.conditions.join("; ")),
            ("case", case),
            ("figure", figure),
            ("engine", &engine),
            ("test", &self.test),
        ];
        let fields = fields.map(|(key, value)| format!("{}:{}", quoted(key), quoted(value)));
        let line = format!("{{{}}}\n", fields.join(","));
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop");
        fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join(format!("{}.jsonl", self.test.replace("::", "-")));
        let file = OpenOptions::new().create(true).append(true).open(path);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.expect("a line in a file");
    }
}

/// The engine that `ANABRANCH_ENGINE` names.
pub(crate) fn engine() -> String {
    std::env::var("ANABRANCH_ENGINE").unwrap_or_else(|_| "direct".to_owned())
}

/// `name: value` of each field of a struct.
fn fields(of: &impl Debug) -> Vec<String> {
    let mut fields = Vec::<String>::new();
    for line in format!("{of:#?}").lines() {
        match line.strip_prefix("    ") {
            // The beginning or end of a field of the struct, or a part of one.
            Some(line) if !line.starts_with([' ', '}', ']', ')']) => fields.push(line.to_owned()),
            Some(line) => {
                let field = fields.last_mut().expect("a field");
                field.push(' ');
                field.push_str(line.trim_start());
            }
            None => {}
        }
    }
    let trimmed = |field: String| field.trim_end_matches(',').replace(", }", " }");
    fields.into_iter().map(trimmed).collect()
}

/// A string of JSON.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control < ' ' => quoted.push(' '),
            other => quoted.push(other),
        }
    }
    quoted + "\""
}

/// The output of a program, or "not found".
pub(crate) fn printed_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok());
    text.map_or_else(|| "not found".to_owned(), |text| text.trim().to_owned())
}

/// The part of `text` after `before` and up to `end`: the release in a lock file.
pub(crate) fn between<'a>(text: &'a str, before: &str, end: char) -> &'a str {
    let (_, rest) = text.split_once(before).expect("it is locked");
    rest.split(end).next().expect("a part")
}
