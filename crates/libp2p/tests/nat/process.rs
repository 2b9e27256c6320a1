//! A node in a network namespace.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// For each line that is waited for.
const LIMIT: Duration = Duration::from_secs(120);

/// This program in a namespace, as one of the ignored tests.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    commands: ChildStdin,
    lines: Receiver<String>,
    /// All that it has printed and that was read.
    transcript: Vec<String>,
}

impl Process {
    /// The variable that makes the ignored tests run.
    pub(crate) const ENABLED: &str = "ANABRANCH_NAT_NODE";

    pub(crate) fn new(name: &'static str, namespace: &str, role: &str) -> Self {
        let this = std::env::current_exe().expect("a path");
        let mut child = Command::new("ip")
            .args(["netns", "exec", namespace])
            .arg(this)
            .args(["--exact", role, "--ignored", "--nocapture"])
            .env(Self::ENABLED, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip runs");
        let commands = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            name,
            child,
            commands,
            lines,
            transcript: Vec::new(),
        }
    }

    pub(crate) fn command(&mut self, command: &str) {
        self.transcript.push(format!("> {command}"));
        writeln!(self.commands, "{command}").expect("it runs");
    }

    /// The rest of the first line that begins with `label`, printed already or to come.
    pub(crate) fn line(&mut self, label: &str) -> String {
        let of_label = |line: &String| line.strip_prefix(label).map(str::to_owned);
        if let Some(rest) = self.transcript.iter().find_map(of_label) {
            return rest;
        }
        let end = Instant::now() + LIMIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("{} has not said {label:?}", self.name);
            };
            let rest = of_label(&line);
            self.transcript.push(line);
            if let Some(rest) = rest {
                return rest;
            }
        }
    }

    /// Whether a line that was read begins with `label`.
    pub(crate) fn has_said(&mut self, label: &str) -> bool {
        self.transcript.extend(self.lines.try_iter());
        self.transcript.iter().any(|line| line.starts_with(label))
    }

    pub(crate) fn transcript(&self) -> String {
        let mut text = String::new();
        for line in &self.transcript {
            writeln!(text, "  {}: {line}", self.name).expect("memory");
        }
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            self.transcript.extend(self.lines.try_iter());
            eprintln!("{}", self.transcript());
        }
    }
}
