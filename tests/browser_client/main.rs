//! The package of `js/` in headless Chromium and Firefox, and in Node, against this library.
//!
//! The cases are those of `js/test/page/`. `js/setup.sh` and `interop/js/setup.sh` install what
//! this needs; `scripts/test.sh` calls them.

use std::net::{IpAddr, Ipv4Addr};

mod background;
mod connecting;
mod driver;
#[path = "../interop/failures.rs"]
mod failures;
mod flow;
mod multistream;
mod node;

#[path = "../interop/own_address.rs"]
mod own_address;
mod payloads;
#[path = "../interop/program.rs"]
mod program;
mod responders;
mod server;
mod throughput;

use anabranch::Security;
use driver::Browser;
use own_address::own_address;
use server::{PLAIN, Server, Way};

const CHROMIUM: Browser = Browser::Chromium;

const FIREFOX: Browser = Browser::Firefox("dcsctp");
const BROWSERS: [Browser; 2] = [CHROMIUM, FIREFOX];

/// What the listener notes of a session that the page closes.
const CLOSED: &str = "ended: closed by the peer: done (code 0x7)";

impl Browser {
    /// The address at which it reaches our listener.
    fn ip(self) -> IpAddr {
        match self {
            Self::Firefox(_) => own_address(),
            _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }
}

/// Runs cases that each have one session, and asserts what the listener notes beside its end.
async fn passes(browser: Browser, way: Way, cases: &[&str], notes: &[&str]) {
    let server = Server::start(browser.ip(), way, |_| ()).await;
    driver::run(browser, &server.parameters(), cases).await;
    let notes: Vec<_> = notes
        .iter()
        .copied()
        .chain(cases.iter().map(|_| CLOSED))
        .collect();
    server.finish(&notes).await;
}

const SUBSTREAMS: [&str; 15] = [
    "echo",
    "echo-of-every-size",
    "buffers-of-the-caller",
    "half-close",
    "no-buffer",
    "reset-by-the-listener",
    "abort",
    "abort-with-code",
    "cancel",
    "stop-by-the-listener",
    "opened-by-the-listener",
    "signals",
    "unknown-protocol",
    "many-substreams",
    "echo",
];

/// What the listener notes of them.
const NOTES: [&str; 4] = [
    // `no-buffer`, `abort-with-code`, `signals`, in any order.
    "reset: Some(4102)",
    "reset: Some(9)",
    "reset: Some(4102)",
    "stopped: Some(11)",
];

const NOISE: Way = Way {
    security: Security::Noise,
    is_websocket: false,
};

const WEBSOCKET: Way = Way {
    security: Security::CertificateHash,
    is_websocket: true,
};

const WEBSOCKET_NOISE: Way = Way {
    security: Security::Noise,
    is_websocket: true,
};

#[tokio::test(flavor = "multi_thread")]
async fn substreams_of_chromium() {
    passes(CHROMIUM, PLAIN, &SUBSTREAMS, &NOTES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_substreams() {
    for browser in BROWSERS {
        passes(browser, PLAIN, &["ten-thousand-substreams"], &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn substreams_of_firefox() {
    for sctp in ["dcsctp", "usrsctp"] {
        passes(Browser::Firefox(sctp), PLAIN, &SUBSTREAMS, &NOTES).await;
    }
}

/// Firefox has numbers for 1024 channels at once.
#[tokio::test(flavor = "multi_thread")]
async fn substreams_wait_while_the_browser_has_no_more_channels() {
    for browser in BROWSERS {
        let server = Server::start(browser.ip(), PLAIN, |config| {
            config.max_inbound_substreams = 4096;
        })
        .await;
        let cases = ["more-substreams-than-channels"];
        driver::run(browser, &server.parameters(), &cases).await;
        server.finish(&[CLOSED]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn substreams_with_noise() {
    for browser in BROWSERS {
        passes(browser, NOISE, &SUBSTREAMS, &NOTES).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn substreams_over_a_websocket() {
    for browser in [CHROMIUM, FIREFOX] {
        for way in [WEBSOCKET, WEBSOCKET_NOISE] {
            passes(browser, way, &SUBSTREAMS, &NOTES).await;
        }
    }
}
