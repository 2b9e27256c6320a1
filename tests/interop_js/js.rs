//! A Node process with lines of JSON on its standard streams.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::record::Record;

/// Longer than the deadline of the programs, 120 s.
const DEADLINE: Duration = Duration::from_secs(150);

pub(crate) struct Js {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Js {
    pub(crate) fn start(program: &str, arguments: &[&str]) -> Self {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/js");
        assert!(
            std::path::Path::new(directory)
                .join("node_modules")
                .exists(),
            "npm packages are missing: run interop/js/setup.sh, or scripts/test.sh"
        );
        let mut child = Command::new("node")
            .arg(program)
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node is installed");
        let stdout = child.stdout.take().expect("stdout is piped");
        let lines = BufReader::new(stdout).lines();
        Self { child, lines }
    }

    /// Runs a program to its end and asserts that it succeeds, and has run exactly `cases`.
    pub(crate) async fn run(program: &str, arguments: &[&str], cases: &[&str], record: &Record) {
        let mut js = Self::start(program, arguments);
        let mut ran = Vec::new();
        let status = timeout(DEADLINE, async {
            while let Some(line) = js.lines.next_line().await.expect("lines of text") {
                println!("{program}: {line}");
                assert!(line.contains("\"ok\":true"), "{line}");
                let case = value_of(&line, "case").expect("the name of a case");
                record.passed_with(&case, &figure(&line));
                ran.push(case);
            }
            js.child.wait().await.expect("the process ends")
        })
        .await
        .expect("the program keeps its own deadline");
        assert!(status.success(), "{status}");
        assert_eq!(ran, cases, "the cases that ran, and those that had to");
    }

    /// The address in the first line of `listen`.
    pub(crate) async fn listen_address(&mut self) -> String {
        let line = timeout(DEADLINE, self.lines.next_line())
            .await
            .expect("js listens")
            .expect("lines of text")
            .expect("a line");
        value_of(&line, "listen").expect("an address")
    }

    /// Ends a `listen`, and asserts that exactly the responders of `failed` have failed.
    pub(crate) async fn finish(mut self, failed: &[&str]) {
        drop(self.child.stdin.take());
        let mut failures = Vec::new();
        let status = timeout(DEADLINE, async {
            while let Some(line) = self.lines.next_line().await.expect("lines of text") {
                println!("js: {line}");
                failures.push(value_of(&line, "responder").unwrap_or(line));
            }
            self.child.wait().await.expect("status")
        })
        .await
        .expect("js ends");
        assert_eq!(
            failures, failed,
            "the responders that failed, and those that had to"
        );
        assert_eq!(status.success(), failed.is_empty(), "{status}");
    }
}

/// The string value of `key` in a line of JSON.
fn value_of(line: &str, key: &str) -> Option<String> {
    let (_, rest) = line.split_once(&format!("\"{key}\":\""))?;
    rest.split('"').next().map(str::to_owned)
}

/// The duration of a case, if its line has it.
fn figure(line: &str) -> String {
    let time = line.split_once("\"ms\":").map(|(_, rest)| rest);
    let digits = time.and_then(|time| time.split(['}', ',']).next());
    digits.map_or_else(String::new, |digits| format!("{digits} ms"))
}
