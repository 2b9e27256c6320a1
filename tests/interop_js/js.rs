//! A Node process that speaks in lines of JSON.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// Longer than the programs' own deadline of 120 s.
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

    /// Runs a program to its end and demands that it succeeds. Returns the cases that have run.
    pub(crate) async fn run(program: &str, arguments: &[&str]) -> Vec<String> {
        let mut js = Self::start(program, arguments);
        let (mut cases, mut failures) = (Vec::new(), Vec::new());
        let status = timeout(DEADLINE, async {
            while let Some(line) = js.lines.next_line().await.expect("lines of text") {
                println!("{program}: {line}");
                cases.extend(value_of(&line, "case"));
                if !line.contains("\"ok\":true") {
                    failures.push(line);
                }
            }
            js.child.wait().await.expect("the process ends")
        })
        .await
        .expect("the program keeps its own deadline");
        assert!(failures.is_empty(), "{failures:#?}");
        assert!(status.success(), "{status}");
        cases
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

    /// Ends a `listen`.
    pub(crate) async fn finish(mut self) {
        drop(self.child.stdin.take());
        let status = timeout(DEADLINE, self.child.wait())
            .await
            .expect("js ends")
            .expect("status");
        assert!(status.success(), "{status}");
    }
}

/// The string that a line of JSON has for `key`.
fn value_of(line: &str, key: &str) -> Option<String> {
    let (_, rest) = line.split_once(&format!("\"{key}\":\""))?;
    rest.split('"').next().map(str::to_owned)
}
