//! The page of `examples/browser` in headless browsers: the example runs as a process, and
//! `interop/js/page.mjs` clicks, types and reads as a visitor does.
//!
//! `interop/js/setup.sh` installs what this needs; `scripts/test.sh` calls it.

use std::fs::Metadata;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

#[path = "interop/own_address.rs"]
mod own_address;

use own_address::own_address;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The example, which is built beside the tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let target = test.ancestors().nth(2).expect("deps are in a folder");
    let program = target.join("examples/browser");
    // Only this test was asked for, and cargo has not built the examples with it.
    if program.metadata().map_or(true, |built| is_older(&built)) {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--example", "browser", "--features", "interop"]);
        assert!(build.status().expect("cargo").success());
    }
    program
}

/// Whether a file of the example has changed since.
fn is_older(built: &Metadata) -> bool {
    let built = built.modified().expect("the system has times");
    ["examples/browser", "examples/browser/assets"]
        .map(|folder| concat!(env!("CARGO_MANIFEST_DIR"), "/").to_owned() + folder)
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(folder).expect("a folder"))
        .map(|file| file.and_then(|file| file.metadata()).expect("a file"))
        .filter(Metadata::is_file)
        .any(|file| file.modified().expect("the system has times") > built)
}

/// The example as a process, killed at the end.
struct Server {
    child: Child,
    /// Open for as long as it runs: it reports every connection there.
    _stdout: BufReader<ChildStdout>,
    url: String,
}

impl Server {
    fn start(ip: IpAddr) -> Self {
        let mut command = Command::new(program());
        command.arg(SocketAddr::new(ip, 0).to_string());
        command.stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut url = String::new();
        stdout.read_line(&mut url).expect("its address");
        let url = url.trim().to_owned();
        assert!(url.starts_with(&format!("http://{ip}:")), "{url}");
        Self {
            child,
            _stdout: stdout,
            url,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `cases` in a browser, which `arguments` select, and asserts that each of them passes.
fn passes(ip: IpAddr, arguments: &[&str], cases: &[&str]) {
    let server = Server::start(ip);
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/js");
    let output = Command::new("node")
        .arg("page.mjs")
        .arg(&server.url)
        .args(cases)
        .args(arguments)
        .current_dir(directory)
        .stderr(Stdio::inherit())
        .output()
        .expect("node is installed");
    let reports = String::from_utf8(output.stdout).expect("lines of text");
    println!("{reports}");
    let passed: Vec<_> = reports
        .lines()
        .map(|line| {
            assert!(line.contains("\"ok\":true"), "{line}");
            let case = line.split("\"case\":\"").nth(1);
            let case = case.and_then(|rest| rest.split('"').next());
            case.expect("the name of a case")
        })
        .collect();
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(passed, cases, "the cases that ran, and those that had to");
}

/// What every carrier has to do.
const CASES: [&str; 3] = ["connects", "fifty-to-the-end", "pause-one"];

/// Transfers take their time, on a busy machine too.
const PATIENT: &str = "--timeout-s=300";

#[test]
fn fifty_substreams_run_by_webrtc_while_one_is_paused() {
    passes(LOCALHOST, &["--way=webrtc"], &CASES);
}

#[test]
fn fifty_substreams_run_by_websocket_while_one_is_paused() {
    passes(LOCALHOST, &["--way=websocket"], &CASES);
}

/// Firefox gathers no candidate on loopback.
#[test]
fn firefox_runs_fifty_substreams_by_webrtc() {
    let arguments = ["--way=webrtc", "--firefox=dcsctp"];
    passes(own_address(), &arguments, &CASES);
}

#[test]
fn nothing_goes_on_that_was_stopped_while_it_was_opened() {
    for way in ["--way=webrtc", "--way=websocket"] {
        passes(LOCALHOST, &[way], &["stop-while-opening"]);
    }
}

#[test]
fn the_page_reports_which_address_has_won_and_why() {
    passes(LOCALHOST, &[], &["connects", "falls-back", "all-fail"]);
}

#[test]
fn a_file_comes_back_equal_and_a_changed_byte_is_found() {
    passes(LOCALHOST, &["--way=webrtc"], &["file", "changed-file"]);
    passes(LOCALHOST, &["--way=websocket"], &["file"]);
}

/// The program drops all packets of the connection: neither side is told.
#[test]
fn a_cut_transfer_goes_on_where_it_stopped_and_again_after_a_reload() {
    let cases = ["cut-download", "cut-upload"];
    passes(LOCALHOST, &["--way=webrtc", PATIENT], &cases);
}

#[test]
fn a_cut_transfer_by_websocket_goes_on() {
    let cases = ["cut-download", "cut-upload"];
    passes(LOCALHOST, &["--way=websocket", PATIENT], &cases);
}

#[test]
fn a_second_click_starts_no_second_transfer() {
    passes(LOCALHOST, &["--way=webrtc"], &["two-clicks"]);
}

/// Which keeps it in IndexedDB: there is no private file system on a page without TLS.
#[test]
fn a_cut_download_of_firefox_goes_on() {
    let arguments = ["--way=webrtc", "--firefox=dcsctp", PATIENT];
    passes(own_address(), &arguments, &["cut-download"]);
}

#[test]
fn a_lossy_path_delivers_everything_and_a_paused_stream_holds_up_what_shares_its_channel() {
    passes(LOCALHOST, &[PATIENT], &["lossy", "records"]);
}

/// axe-core, 360 and 1280 px, both colour schemes, the keyboard alone, less motion.
#[test]
fn the_page_is_accessible() {
    passes(
        LOCALHOST,
        &[],
        &["accessible", "keyboard", "reduced-motion"],
    );
}
