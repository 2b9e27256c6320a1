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
    /// No browser: `js/test/node.mjs` runs the cases in its own process.
    Node,
}

impl Browser {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Chromium => "Chromium".to_owned(),
            Self::ChromiumWith(arguments) => format!("Chromium with {arguments:?}"),
            Self::Firefox(sctp) => format!("Firefox with {sctp}"),
            Self::Node => "Node".to_owned(),
        }
    }

    fn arguments(self) -> Vec<String> {
        match self {
            Self::Chromium => Vec::new(),
            Self::ChromiumWith(arguments) => {
                let option = |argument: &&str| format!("--chromium={argument}");
                arguments.iter().map(option).collect()
            }
            Self::Firefox(sctp) => vec![format!("--firefox={sctp}")],
            Self::Node => Vec::new(),
        }
    }

    /// Arguments of Node: what runs the cases, after options of its own.
    fn program(self) -> &'static [&'static str] {
        match self {
            // Node 20 has a WebSocket only with this, and a later one ignores it.
            Self::Node => &["--expose-gc", "--experimental-websocket", "test/node.mjs"],
            _ => &["test/browser.mjs"],
        }
    }
}

/// Runs `cases` with `parameters`, an object of JSON, and asserts that each of them passes. Returns
/// what they print.
pub(crate) async fn run(browser: Browser, parameters: &str, cases: &[&str]) -> Vec<String> {
    run_with(&[], browser, parameters, cases).await
}

/// The same with further options of the program.
pub(crate) async fn run_with(
    options: &[&str],
    browser: Browser,
    parameters: &str,
    cases: &[&str],
) -> Vec<String> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/js");
    let is_built = std::path::Path::new(directory)
        .join("dist/index.js")
        .exists();
    assert!(
        is_built,
        "run js/setup.sh and interop/js/setup.sh, or scripts/test.sh"
    );
    let mut driver = Command::new("node");
    driver.args(browser.program()).arg(parameters);
    driver.args(cases).args(options).current_dir(directory);
    printed_by(driver.args(browser.arguments()), cases).await
}

/// The same with js-libp2p in the page, which dials `address`; it connects before its cases.
pub(crate) async fn run_js_libp2p(browser: Browser, address: &str, cases: &[&str]) -> Vec<String> {
    let mut driver = Command::new("node");
    driver.args(["browser.mjs", "dial", address]).args(cases);
    driver.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/interop/js"));
    if let Browser::Firefox(sctp) = browser {
        driver.args(["--firefox", sctp]);
    }
    let cases: Vec<_> = ["connect"].iter().chain(cases).copied().collect();
    printed_by(&mut driver, &cases).await
}

async fn printed_by(driver: &mut Command, cases: &[&str]) -> Vec<String> {
    driver.stdout(Stdio::piped()).kill_on_drop(true);
    let mut driver = driver.spawn().expect("node is installed");
    let stdout = driver.stdout.take().expect("stdout is piped");
    let mut lines = BufReader::new(stdout).lines();
    let mut passed = Vec::new();
    let mut printed = Vec::new();
    let status = timeout(DEADLINE, async {
        while let Some(line) = lines.next_line().await.expect("lines of text") {
            println!("{line}");
            assert!(line.contains("\"ok\":true"), "{line}");
            let case = line.split("\"case\":\"").nth(1);
            let case = case.and_then(|rest| rest.split('"').next());
            passed.push(case.expect("the name of a case").to_owned());
            printed.push(line);
        }
        driver.wait().await.expect("the process ends")
    })
    .await
    .expect("the program keeps its own deadline");
    assert!(status.success(), "{status}");
    assert_eq!(passed, cases, "the cases that ran, and those that had to");
    printed
}
