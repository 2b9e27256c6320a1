//! Backpressure in both directions, and throughput.

use crate::driver::Browser;
use crate::{BROWSERS, CHROMIUM, FIREFOX, PLAIN, WEBSOCKET, passes};

const STALLS: [&str; 2] = ["stalled-in-the-page", "stalled-in-the-listener"];

/// What the listener notes of the first of them, which the page cancels at the end.
pub(crate) const STOPPED: &str = "/download: the peer stopped reading (code Some(0))";

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_reader_holds_up_only_its_own_writer() {
    for browser in [CHROMIUM, FIREFOX, Browser::Firefox("usrsctp")] {
        passes(browser, PLAIN, &STALLS, &[STOPPED]).await;
    }
    for browser in BROWSERS {
        passes(browser, WEBSOCKET, &STALLS, &[STOPPED]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_mebibytes_go_each_way() {
    for browser in BROWSERS {
        passes(browser, PLAIN, &["throughput"], &[]).await;
        passes(browser, WEBSOCKET, &["throughput"], &[]).await;
    }
}
