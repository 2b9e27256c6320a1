//! A foreign program that `interop/rust/setup.sh` builds, and one that listens.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Time limit for a listener to start.
const LIMIT: Duration = Duration::from_secs(60);

/// `interop/rust/setup.sh` builds into the directory that `CARGO_TARGET_DIR` names, if it names
/// one.
pub(crate) fn executable(program: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/rust");
    // A relative path is relative to where cargo runs, which for that script is its own directory.
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let path = workspace.join(target).join("release").join(program);
    assert!(
        path.exists(),
        "{} is missing: run interop/rust/setup.sh, or scripts/test.sh",
        path.display()
    );
    path
}

/// A foreign listener.
pub(crate) struct Listener(Child);

impl Listener {
    pub(crate) fn start(command: &mut Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        Self(command.spawn().expect("the program starts"))
    }

    /// The address in its only line.
    pub(crate) async fn address(&mut self) -> String {
        let stdout = self.0.stdout.take().expect("asked for once");
        let mut line = String::new();
        timeout(LIMIT, BufReader::new(stdout).read_line(&mut line))
            .await
            .expect("it listens")
            .expect("lines of text");
        let (_, rest) = line.split_once("\"listen\":\"").expect("an address");
        rest.split('"').next().expect("an address").to_owned()
    }

    pub(crate) async fn kill(mut self) {
        self.0.kill().await.expect("it still ran");
    }
}
