//! The pion peer as a process with lines of JSON on its standard streams.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anabranch::Address;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::record::Record;

/// Longer than the program's own limit in these tests.
const DEADLINE: Duration = Duration::from_secs(310);

/// Time limit of a whole dialler: 100 rounds of 200 echoes.
const TIMEOUT_S: &str = "300";

pub(crate) struct Pion {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// Lines that report an error.
    failures: Vec<String>,
}

impl Pion {
    fn start(arguments: &[&str]) -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/go/peer");
        assert!(
            program.exists(),
            "the pion peer is missing: run interop/go/setup.sh, or scripts/test.sh"
        );
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        Self {
            child,
            lines: BufReader::new(stdout).lines(),
            failures: Vec::new(),
        }
    }

    /// Starts a listener.
    pub(crate) async fn listen(options: &[&str]) -> (Self, Address) {
        let mut pion = Self::start(&[&["listen"], options].concat());
        let line = pion.line().await.expect("it listens");
        let address = text(&line, "listen").expect("an address");
        (pion, address.parse().expect("a webrtc-direct address"))
    }

    /// Starts a dialler.
    pub(crate) fn dial(address: &Address, arguments: &[&str]) -> Self {
        let address = address.to_string();
        let all = ["dial", &address, "--timeout-s", TIMEOUT_S];
        Self::start(&[&all, arguments].concat())
    }

    /// Runs a dialler to its end and asserts that exactly these cases run and succeed. Returns its
    /// lines.
    pub(crate) async fn run(
        address: &Address,
        options: &[&str],
        cases: &[&str],
        record: &Record,
    ) -> Vec<String> {
        let lines = Self::dial(address, &[options, cases].concat())
            .finish()
            .await;
        let mut ran = Vec::new();
        for line in &lines {
            let case = text(line, "case").expect("the name of a case");
            if !case.starts_with("connect") {
                let figure = number(line, "ms").map(|ms| format!("{ms:.0} ms"));
                record.passed_with(case, &figure.unwrap_or_default());
                ran.push(case);
            }
        }
        assert_eq!(ran, cases, "the cases that ran, and those that had to");
        lines
    }

    /// The next line.
    pub(crate) async fn line(&mut self) -> Option<String> {
        let line = timeout(DEADLINE, self.lines.next_line())
            .await
            .expect("the program keeps its own limits")
            .expect("lines of text")?;
        println!("pion: {line}");
        if line.contains("\"error\"") {
            self.failures.push(line.clone());
        }
        Some(line)
    }

    /// The next line with this prefix.
    pub(crate) async fn line_of(&mut self, beginning: &str) -> String {
        loop {
            let line = self.line().await;
            let line = line.unwrap_or_else(|| panic!("no line {beginning}: {:?}", self.failures));
            if line.starts_with(beginning) {
                return line;
            }
        }
    }

    /// Ends a listener, waits for the exit, and asserts that no line was an error.
    pub(crate) async fn finish(mut self) -> Vec<String> {
        drop(self.child.stdin.take());
        let mut lines = Vec::new();
        while let Some(line) = self.line().await {
            lines.push(line);
        }
        let status = timeout(DEADLINE, self.child.wait())
            .await
            .expect("it ends behind its last line")
            .expect("a status");
        assert!(self.failures.is_empty(), "{:#?}", self.failures);
        assert!(status.success(), "{status}");
        lines
    }

    /// Waits for the exit of a process that is expected to fail.
    pub(crate) async fn ended(mut self) {
        while self.line().await.is_some() {}
        let status = self.child.wait().await.expect("a status");
        assert!(!status.success());
    }

    /// Kills it, so that it sends nothing more.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("it still ran");
    }
}

/// The string value of a key in a line, if it has no escapes.
pub(crate) fn text<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("\"{key}\":\""))?;
    rest.split('"').next()
}

/// The numeric value of a key in a line.
pub(crate) fn number(line: &str, key: &str) -> Option<f64> {
    let (_, rest) = line.split_once(&format!("\"{key}\":"))?;
    rest.split([',', '}']).next()?.parse().ok()
}
