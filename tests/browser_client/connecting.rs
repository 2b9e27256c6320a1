//! Dials that fail with a typed error, other ways to connect, and how sessions end.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::driver::{self, Browser};
use crate::server::{PLAIN, Server, Way};
use crate::{BROWSERS, CHROMIUM, CLOSED, FIREFOX, NOISE, WEBSOCKET, WEBSOCKET_NOISE, passes};

/// Chromium, when it refuses the SDP that version 1 needs: for every address, and for some.
const REFUSES_MUNGING: [Browser; 2] = [
    Browser::ChromiumWith(&["--force-fieldtrials=WebRTC-NoSdpMangleUfrag/Enabled/"]),
    Browser::ChromiumWith(&[
        "--force-fieldtrials=WebRTC-NoSdpMangleUfragRestrictedAddresses/127.0.0.1:*/",
    ]),
];

/// The page counts as one of the internet, and may not reach this machine.
const DENIES_LOOPBACK: Browser = Browser::ChromiumWith(&[
    "--ip-address-space-overrides={page}=public",
    "--enable-features=LocalNetworkAccessChecksWebRTC",
]);

/// Runs cases without asking what the listener notes of attempts that fail.
async fn fails(browser: Browser, way: Way, cases: &[&str]) {
    let server = Server::start(browser.ip(), way, |_| ()).await;
    driver::run(browser, &server.parameters(), cases).await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_addresses_and_certificates_are_typed_errors() {
    for browser in BROWSERS {
        fails(
            browser,
            PLAIN,
            &["bad-addresses", "wrong-certhash", "aborted-dial"],
        )
        .await;
        fails(browser, NOISE, &["wrong-peer", "wrong-certhash"]).await;
        fails(browser, WEBSOCKET_NOISE, &["wrong-peer"]).await;
    }
    // Firefox reports nothing earlier than its own timeout either.
    fails(CHROMIUM, PLAIN, &["nobody-listens"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn version_1_works_until_a_browser_refuses_it() {
    for browser in BROWSERS {
        passes(browser, PLAIN, &["echo-over-version1"], &[]).await;
    }
    for browser in REFUSES_MUNGING {
        fails(browser, PLAIN, &["munging-is-refused"]).await;
        passes(browser, PLAIN, &["echo"], &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_without_the_permission_for_this_machine_learns_that_within_a_second() {
    fails(DENIES_LOOPBACK, PLAIN, &["local-network-is-denied"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_address_that_works_wins() {
    for browser in BROWSERS {
        let cases = ["any-prefers-webrtc", "any-falls-back"];
        passes(browser, WEBSOCKET_NOISE, &cases, &[]).await;
        fails(browser, NOISE, &["all-fail"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_have_the_channels_of_their_page() {
    let cases = [
        "echo-in-a-worker",
        "opened-by-the-listener-in-a-worker",
        "many-substreams-in-a-worker",
    ];
    for browser in BROWSERS {
        fails(browser, PLAIN, &["dial-in-a-worker"]).await;
        passes(browser, PLAIN, &cases, &[]).await;
        passes(browser, NOISE, &cases, &[]).await;
        passes(browser, PLAIN, &["page-is-busy"], &[]).await;
    }
}

/// The listener closes one session, and drains another.
pub(crate) async fn listener_closes_and_drains(browser: Browser, way: Way) {
    let server = Server::start(browser.ip(), way, |_| ()).await;
    let cases = ["listener-closes", "listener-drains", "echo"];
    driver::run(browser, &server.parameters(), &cases).await;
    let notes = [
        "ended: closed locally: maintenance (code 0x11170)",
        "ended: closed locally",
        CLOSED,
    ];
    server.finish(&notes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_closes_and_drains() {
    for browser in [CHROMIUM, FIREFOX] {
        for way in [PLAIN, WEBSOCKET] {
            listener_closes_and_drains(browser, way).await;
        }
    }
}

/// What was written arrives, and what nobody reads holds nothing up.
#[tokio::test(flavor = "multi_thread")]
async fn a_close_delivers_what_was_written_and_stops_downloads() {
    let cases = ["close-right-after-writing", "close-within-a-download"];
    let notes = [
        "arrived: 3145728",
        "/download: the peer stopped reading (code Some(7))",
    ];
    for browser in [CHROMIUM, FIREFOX, Browser::Firefox("usrsctp")] {
        passes(browser, PLAIN, &cases, &notes).await;
    }
    for browser in BROWSERS {
        passes(browser, WEBSOCKET, &cases, &notes).await;
    }
}

/// A page that is closed says nothing. Its listener notices, and serves the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_closed_leaves_nothing_behind() {
    for (browser, way) in [(CHROMIUM, PLAIN), (FIREFOX, PLAIN), (CHROMIUM, WEBSOCKET)] {
        let server = Server::start(browser.ip(), way, |_| ()).await;
        driver::run(browser, &server.parameters(), &["page-leaves", "echo"]).await;
        server
            .finish(&["left: in the middle", CLOSED, "ended: "])
            .await;
    }
}

/// The carrier that the listener of a process of its own is asked for.
const SERVES: &str = "BROWSER_CLIENT_SERVES";

/// A process with a listener, which can be killed.
struct Process {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(browser: Browser, carrier: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args([
                "--exact",
                "connecting::serves_until_it_is_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(SERVES, format!("{} {carrier}", browser.ip()))
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("this program starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let stdout = BufReader::new(stdout).lines();
        Self { child, stdout }
    }

    /// Waits for a line with this word.
    async fn line(&mut self, word: &str) -> String {
        let found = async {
            loop {
                let line = self.stdout.next_line().await.expect("lines of text");
                let line = line.expect("the listener does not end");
                if line.contains(word) {
                    return line;
                }
            }
        };
        timeout(Duration::from_secs(60), found)
            .await
            .expect("a line in time")
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the process of a_dead_listener_is_noticed_within_15_seconds"]
async fn serves_until_it_is_killed() {
    let asked = std::env::var(SERVES).expect("the test says what to serve");
    let (ip, carrier) = asked.split_once(' ').expect("an address and a carrier");
    let way = match carrier {
        "websocket" => WEBSOCKET,
        _ => PLAIN,
    };
    let server = Server::start(ip.parse().expect("an address"), way, |_| ()).await;
    println!("{}", server.parameters());
    std::future::pending().await
}

/// A listener that is killed says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_listener_is_noticed_within_15_seconds() {
    for (browser, carrier) in [
        (CHROMIUM, "webrtc"),
        (FIREFOX, "webrtc"),
        (CHROMIUM, "websocket"),
    ] {
        let mut listener = Process::start(browser, carrier);
        let parameters = listener.line("\"address\"").await;
        let death = async {
            listener.line("dying").await;
            listener.child.kill().await.expect("it was alive");
        };
        let cases = ["listener-dies"];
        tokio::join!(driver::run(browser, &parameters, &cases), death);
    }
}
