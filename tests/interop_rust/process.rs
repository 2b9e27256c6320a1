//! A foreign program with lines of JSON on its standard streams.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::program::{Listener, executable};

pub(crate) const WEBRTC: &str = "webrtc-peer";
pub(crate) const LITEP2P: &str = "litep2p-peer";

/// Time limit of a whole dialler: 200 dials of 0.2 s each, with time to spare.
const DEADLINE: Duration = Duration::from_secs(240);

/// Time limit of one operation of a dialler.
const LIMIT: &str = "20";

fn command(program: &str, max_message: usize) -> Command {
    let mut command = Command::new(executable(program));
    command
        .env("WEBRTC_PEER_MAX_MESSAGE", max_message.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

pub(crate) fn listen(program: &str, max_message: usize) -> Listener {
    Listener::start(command(program, max_message).arg("listen"))
}

/// The output and the exit status of a foreign dialler.
pub(crate) struct Report {
    lines: String,
    success: bool,
}

impl Report {
    /// Asserts that there are this many lines, each with all of these parts, and none with an
    /// error.
    pub(crate) fn succeed(&self, lines: usize, shows: &[&str]) {
        let all: Vec<_> = self.lines.lines().collect();
        let errors: Vec<_> = all
            .iter()
            .filter(|line| line.contains("\"error\""))
            .collect();
        assert!(self.success && errors.is_empty(), "{errors:#?}");
        assert_eq!(all.len(), lines, "{all:#?}");
        for line in all {
            for part in shows {
                assert!(line.contains(part), "{part} is not in {line}");
            }
        }
    }

    /// The lines of a dialler that is expected to fail.
    pub(crate) fn fail(self) -> String {
        assert!(!self.success, "{}", self.lines);
        self.lines
    }
}

/// Runs a foreign dialler to its end.
pub(crate) async fn dial(
    program: &str,
    max_message: usize,
    address: &str,
    options: &str,
) -> Report {
    let child = command(program, max_message)
        .args(["dial", address, "--timeout-s", LIMIT])
        .args(options.split(' '))
        .spawn()
        .expect("the program starts");
    let output = timeout(DEADLINE, child.wait_with_output())
        .await
        .expect("the program keeps its own limits")
        .expect("it can be waited for");
    let lines = String::from_utf8(output.stdout).expect("lines of text");
    println!("{program} dial {options}: {}\n{lines}", output.status);
    Report {
        lines,
        success: output.status.success(),
    }
}
