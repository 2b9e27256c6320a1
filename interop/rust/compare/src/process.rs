//! Builds the programs, runs them, and reads their lines.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::options::{Program, Stack};

/// The directory of this workspace.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Cargo's directory for what it builds of the workspace at `root`.
fn target_of(root: PathBuf) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), absolute)
}

/// A relative directory is relative to the working directory of this program, not to the
/// workspaces.
fn absolute(directory: OsString) -> PathBuf {
    std::path::absolute(&directory).unwrap_or_else(|_| directory.into())
}

fn executable(stack: &Stack) -> PathBuf {
    match stack.program {
        Program::Anabranch(_) => target_of(workspace().join("../..")).join("release/examples/peer"),
        Program::Libp2p(binary, _) => target_of(workspace()).join("release").join(binary),
    }
}

/// Builds the program of a stack. Each has a build of its own, so that none links what only another
/// one needs.
pub(crate) fn build(stack: &Stack) -> io::Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--quiet"]);
    if let Some(directory) = std::env::var_os("CARGO_TARGET_DIR") {
        cargo.env("CARGO_TARGET_DIR", absolute(directory));
    }
    match stack.program {
        Program::Anabranch(_) => cargo
            .args(["--example", "peer"])
            .current_dir(workspace().join("../..")),
        Program::Libp2p(binary, feature) => cargo
            .args(["--package", "libp2p-peers", "--features", feature])
            .args(["--bin", binary])
            .current_dir(workspace()),
    };
    match cargo.status()? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(format!("cargo: {status}"))),
    }
}

fn command(stack: &Stack) -> Command {
    let mut command = Command::new(executable(stack));
    if let Program::Anabranch(engine) = stack.program {
        command.env("ANABRANCH_ENGINE", engine);
    }
    command
}

/// A listener, killed on drop.
pub(crate) struct Listener {
    child: Child,
    address: String,
}

impl Listener {
    pub(crate) fn start(stack: &Stack) -> io::Result<Self> {
        let mut child = command(stack)
            .arg("listen")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut line = String::new();
        // A program that prints nothing exits, which ends its stdout.
        BufReader::new(stdout).read_line(&mut line)?;
        let mut listener = Self {
            child,
            address: String::new(),
        };
        let address = text(&line, "listen");
        listener.address = address.ok_or_else(|| io::Error::other("it printed no address"))?;
        Ok(listener)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may have exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The output of a dialler.
pub(crate) struct Dialled {
    /// Lines without an error.
    pub(crate) lines: Vec<String>,
    pub(crate) failures: Vec<String>,
}

/// Dials a fresh listener. A dialler that is not done within the limit has hung and is killed.
pub(crate) fn dial(stack: &Stack, args: &[String], limit: Duration) -> Dialled {
    let run = || -> io::Result<Dialled> {
        let listener = Listener::start(stack)?;
        let mut dialler = command(stack);
        prepare(&mut dialler, &listener, args, limit);
        finish(dialler.spawn()?, limit)
    };
    run().unwrap_or_else(|error| Dialled {
        lines: Vec::new(),
        failures: vec![error.to_string()],
    })
}

/// The same with `perf stat` for the dialler and the listener: also returns their counts.
pub(crate) fn dial_counted(
    stack: &Stack,
    args: &[String],
    limit: Duration,
    event: &str,
) -> io::Result<(Dialled, u64)> {
    let perf = |rest: &[&str]| {
        let mut perf = Command::new("perf");
        perf.args(["stat", "-x", ",", "-e", event]).args(rest);
        perf.stdin(Stdio::null()).stderr(Stdio::piped());
        perf
    };
    let listener = Listener::start(stack)?;
    let pid = listener.pid().to_string();
    // Exits together with the process that it watches.
    let watcher = perf(&["-p", &pid]).stdout(Stdio::null()).spawn()?;
    // It attaches within milliseconds, less than a dial takes to start.
    thread::sleep(Duration::from_millis(200));
    let program = command(stack);
    let mut dialler = perf(&["--"]);
    dialler.arg(program.get_program());
    for (key, value) in program.get_envs() {
        if let Some(value) = value {
            dialler.env(key, value);
        }
    }
    prepare(&mut dialler, &listener, args, limit);
    dialler.stderr(Stdio::piped());
    let mut child = dialler.spawn()?;
    let report = child.stderr.take();
    let dialled = finish(child, limit)?;
    drop(listener);
    let watched = watcher.wait_with_output()?;
    let mut own = String::new();
    if let Some(mut report) = report {
        report.read_to_string(&mut own)?;
    }
    let listeners = String::from_utf8_lossy(&watched.stderr);
    match (count(&own), count(&listeners)) {
        (Some(own), Some(listeners)) => Ok((dialled, own + listeners)),
        _ => Err(io::Error::other(format!("perf counts nothing: {own}"))),
    }
}

/// The number at the beginning of a line of `perf stat -x ,`.
fn count(report: &str) -> Option<u64> {
    report
        .lines()
        .find_map(|line| line.split(',').next()?.parse().ok())
}

fn prepare(dialler: &mut Command, listener: &Listener, args: &[String], limit: Duration) {
    dialler
        .args(["dial", &listener.address, "--peer-pid"])
        .arg(listener.pid().to_string())
        .arg("--timeout-s")
        .arg(limit.as_secs().to_string())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
}

fn finish(mut child: Child, limit: Duration) -> io::Result<Dialled> {
    let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let reader = thread::spawn(move || -> Vec<String> {
        BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .collect()
    });
    // The program has a limit for each operation; this one is for the whole run.
    let deadline = Instant::now() + limit * 4;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let all = reader.join().unwrap_or_default();
    let (mut failures, lines): (Vec<String>, Vec<String>) = all
        .into_iter()
        .partition(|line| line.starts_with("{\"error\""));
    match status {
        None => failures.push(format!("killed after {:?}", limit * 4)),
        Some(status) if !status.success() && failures.is_empty() => {
            failures.push(status.to_string());
        }
        Some(_) => {}
    }
    Ok(Dialled { lines, failures })
}

/// The number under a key of a flat JSON object.
pub(crate) fn number(line: &str, key: &str) -> Option<f64> {
    let (_, behind) = line.split_once(&format!("\"{key}\":"))?;
    behind.split([',', '}']).next()?.parse().ok()
}

/// The text under a key of a flat JSON object; addresses contain nothing that is escaped.
fn text(line: &str, key: &str) -> Option<String> {
    let (_, behind) = line.split_once(&format!("\"{key}\":\""))?;
    behind.split('"').next().map(str::to_owned)
}
