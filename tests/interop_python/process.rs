//! A Python process with lines of JSON on its standard streams.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::record::Record;

pub(crate) const LIBP2P: &str = "libp2p_peer.py";
pub(crate) const AIORTC: &str = "aiortc_peer.py";
pub(crate) const AIORTC_GAP: &str = "aiortc_gap.py";

/// Longer than the deadline of the programs, 180 s.
const DEADLINE: Duration = Duration::from_secs(200);

pub(crate) struct Python {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    program: &'static str,
}

impl Python {
    pub(crate) fn start(program: &'static str, arguments: &[&str]) -> Self {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/python");
        let python = std::path::Path::new(directory).join(".venv/bin/python");
        assert!(
            python.exists(),
            "Python packages are missing: run interop/python/setup.sh, or scripts/test.sh"
        );
        let mut child = Command::new(python)
            .arg(program)
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Python starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let lines = BufReader::new(stdout).lines();
        Self {
            child,
            lines,
            program,
        }
    }

    /// Starts a listener and returns it with its address.
    pub(crate) async fn listen(program: &'static str) -> (Self, String) {
        let mut python = Self::start(program, &["listen"]);
        let line = python.next_line_with("\"listen\"").await;
        let (_, rest) = line.split_once("\"listen\": \"").expect("an address");
        let address = rest.split('"').next().expect("an address").to_owned();
        (python, address)
    }

    async fn next_line(&mut self) -> Option<String> {
        let line = timeout(DEADLINE, self.lines.next_line()).await;
        let line = line.expect("the program keeps its own deadline");
        let line = line.expect("lines of text");
        if let Some(line) = &line {
            println!("{}: {line}", self.program);
        }
        line
    }

    /// The next line that contains `text`. No line before may report a failure.
    pub(crate) async fn next_line_with(&mut self, text: &str) -> String {
        loop {
            let line = self.next_line().await;
            let line = line.unwrap_or_else(|| panic!("no line with {text}"));
            let is_it = line.contains(text);
            let is_failure = line.contains("\"error\"");
            assert!(!is_failure, "{line}");
            if is_it {
                return line;
            }
        }
    }

    /// The next line, which has to be a failure that contains `text`.
    pub(crate) async fn next_failure_with(&mut self, text: &str) {
        let line = self.next_line().await.expect("a line");
        let (_, error) = line.split_once("\"error\"").expect("a failure");
        assert!(error.contains(text), "{line}");
    }

    /// Runs a dialler to its end and asserts that exactly these cases run, after `connect`, and
    /// succeed.
    pub(crate) async fn run(
        program: &'static str,
        arguments: &[&str],
        cases: &[&str],
        record: &Record,
    ) {
        let lines = Self::start(program, arguments).succeed().await;
        let value = |line: &str, key: &str| {
            let (_, rest) = line.split_once(&format!("\"{key}\": "))?;
            Some(rest.split([',', '}']).next()?.trim_matches('"').to_owned())
        };
        let mut ran = Vec::new();
        for line in &lines {
            let case = value(line, "case").expect("the name of a case");
            // As in the other suites: the opener does not read.
            let name = case.replace("stall-up", "stall-remote");
            let figure = value(line, "ms").map(|ms| format!("{ms} ms"));
            record.passed_with(&name, &figure.unwrap_or_default());
            ran.push(case);
        }
        let expected = [&["connect"], cases].concat();
        assert_eq!(ran, expected, "the cases that ran, and those that had to");
    }

    /// Ends a `listen` or a `serve`, and asserts that it has answered everything.
    pub(crate) async fn finish(mut self) {
        drop(self.child.stdin.take());
        self.succeed().await;
    }

    /// Reads to the end, and returns what it read.
    pub(crate) async fn succeed(mut self) -> Vec<String> {
        let (mut lines, mut failures) = (Vec::new(), Vec::new());
        while let Some(line) = self.next_line().await {
            if line.contains("\"ok\": true") {
                lines.push(line);
            } else {
                failures.push(line);
            }
        }
        let status = self.child.wait().await.expect("the process ends");
        assert!(failures.is_empty(), "{failures:#?}");
        assert!(status.success(), "{status}");
        lines
    }

    /// Kills it as `kill -9` does.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("it still ran");
    }
}
