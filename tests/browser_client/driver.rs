//! `js/test/browser.mjs`: a headless browser that runs cases in pages, with a line of JSON for
//! each.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// Longer than the deadline of the program, 120 s.
const DEADLINE: Duration = Duration::from_secs(150);

/// A browser, with the arguments that select it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Browser {
    Chromium,
    /// With further arguments.
    ChromiumWith(&'static [&'static str]),
    /// With one of its two implementations of SCTP.
    Firefox(&'static str),
}

impl Browser {
    fn arguments(self) -> Vec<String> {
        match self {
            Self::Chromium => Vec::new(),
            Self::ChromiumWith(arguments) => {
                let option = |argument: &&str| format!("--chromium={argument}");
                arguments.iter().map(option).collect()
            }
            Self::Firefox(sctp) => vec![format!("--firefox={sctp}")],
        }
    }
}

/// Runs `cases` with `parameters`, an object of JSON, and asserts that each of them passes.
pub(crate) async fn run(browser: Browser, parameters: &str, cases: &[&str]) {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/js");
    let is_built = std::path::Path::new(directory)
        .join("dist/index.js")
        .exists();
    assert!(
        is_built,
        "run js/setup.sh and interop/js/setup.sh, or scripts/test.sh"
    );
    let mut driver = Command::new("node")
        .arg("test/browser.mjs")
        .arg(parameters)
        .args(cases)
        .args(browser.arguments())
        .current_dir(directory)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node is installed");
    let stdout = driver.stdout.take().expect("stdout is piped");
    let mut lines = BufReader::new(stdout).lines();
    let mut passed = Vec::new();
    let status = timeout(DEADLINE, async {
        while let Some(line) = lines.next_line().await.expect("lines of text") {
            println!("{line}");
            assert!(line.contains("\"ok\":true"), "{line}");
            let case = line.split("\"case\":\"").nth(1);
            let case = case.and_then(|rest| rest.split('"').next());
            passed.push(case.expect("the name of a case").to_owned());
        }
        driver.wait().await.expect("the process ends")
    })
    .await
    .expect("the program keeps its own deadline");
    assert!(status.success(), "{status}");
    assert_eq!(passed, cases, "the cases that ran, and those that had to");
}
