//! js-libp2p in headless Firefox, with each of Firefox's two implementations of SCTP.
//!
//! Firefox gathers no candidate in 127.0.0.0/8: it dials another address of this machine. Where there is none,
//! `interop/js/setup.sh` makes one.

use std::net::{IpAddr, UdpSocket};

use crate::{dialled_on, proven_by, runs};

/// What Firefox looks up its own address with.
const LOOKUP_TARGET: &str = "8.8.8.8:53";

/// What has to run with both implementations.
const CASES: [&str; 10] = [
    "identify",
    "ping",
    "echo-100k",
    "bulk-1x4m",
    "sequential-50",
    "half-close-local",
    "half-close-remote",
    "reset-local",
    "reset-remote",
    "close",
];

/// Firefox with usrsctp hangs when several channels send much at once, towards any peer: it fills the buffer
/// with a part of one message behind whole ones, usrsctp sends nothing before the rest of that message, and
/// Firefox waits for more room than the part has left.
const NOT_WITH_USRSCTP: &str = "bulk-3x4m";

/// The address on which Firefox gathers its candidate. Nothing is sent.
fn address_of_firefox() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket
        .connect(LOOKUP_TARGET)
        .expect("a route: run interop/js/setup.sh");
    let ip = socket.local_addr().expect("an address").ip();
    assert!(!ip.is_loopback(), "{ip}");
    ip
}

/// Runs `command` in Firefox with this SCTP, and demands that exactly `cases` have run.
async fn dialled_by_firefox(sctp: &str, command: &[&str], cases: &[&str]) {
    let arguments = [command, &["--firefox", sctp]].concat();
    for _ in 0..runs() {
        let ran = dialled_on(address_of_firefox(), "browser.mjs", &arguments).await;
        assert_eq!(ran, cases);
    }
}

/// Runs every case that `sctp` can, and `connect` before them.
async fn run_the_cases(sctp: &str, options: &[&str]) {
    let mut cases = CASES.to_vec();
    if sctp == "dcsctp" {
        let place = cases.iter().position(|&case| case == "bulk-1x4m");
        cases.insert(place.expect("a case") + 1, NOT_WITH_USRSCTP);
    }
    let command = [&["dial"], &cases[..], options].concat();
    cases.insert(0, "connect");
    dialled_by_firefox(sctp, &command, &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_firefox_with_dcsctp_dials_us() {
    run_the_cases("dcsctp", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_firefox_with_usrsctp_dials_us() {
    run_the_cases("usrsctp", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_firefox_with_dcsctp_dials_us_with_v2() {
    run_the_cases("dcsctp", &["--v2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_firefox_with_usrsctp_dials_us_with_v2() {
    run_the_cases("usrsctp", &["--v2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn firefox_gets_the_first_noise_message_over_v2() {
    for sctp in ["dcsctp", "usrsctp"] {
        dialled_by_firefox(sctp, &["v2"], &["v2"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_firefox_answers_a_challenge() {
    let arguments = ["dial", "--firefox", "dcsctp"];
    proven_by(address_of_firefox(), "browser.mjs", &arguments).await;
}
