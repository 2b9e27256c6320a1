//! Pages that nobody looks at, those whose network goes, and browsers that are killed.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::driver::{self, Browser};
use crate::server::{PLAIN, Server};
use crate::{BROWSERS, CHROMIUM, CLOSED, FIREFOX, WEBSOCKET};

/// The tab is hidden by another one in front of it, and its timers run once in a second: this is
/// the throttling of the browser, not an emulation. No tab is frozen or discarded here.
#[tokio::test(flavor = "multi_thread")]
async fn transfers_go_on_in_a_hidden_tab() {
    for browser in BROWSERS {
        for way in [PLAIN, WEBSOCKET] {
            let server = Server::start(browser.ip(), way, |_| ()).await;
            let cases = ["transfers-in-a-hidden-tab"];
            driver::run_with(&["--throttle"], browser, &server.parameters(), &cases).await;
            server.finish(&[CLOSED]).await;
        }
    }
}

/// Nothing of the page runs after that, and nobody closes a socket in peace.
#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_is_killed_leaves_nothing_behind() {
    for browser in BROWSERS {
        for way in [PLAIN, WEBSOCKET] {
            let server = Server::start(browser.ip(), way, |_| ()).await;
            let parameters = server.parameters();
            driver::run_with(&["--kill"], browser, &parameters, &["page-leaves"]).await;
            driver::run(browser, &parameters, &["echo"]).await;
            let notes = ["left: in the middle", CLOSED, "ended: "];
            server.finish(&notes).await;
        }
    }
}

/// An address of this machine that only a test has, on the loopback interface.
struct Address(IpAddr);

impl Address {
    /// None without the right to add one, or without `ip`.
    fn add(ip: Ipv4Addr) -> Option<Self> {
        let address = Self(ip.into());
        address.change("replace").then_some(address)
    }

    fn change(&self, verb: &str) -> bool {
        let mut ip = Command::new("ip");
        ip.args(["address", verb, &format!("{}/32", self.0), "dev", "lo"]);
        ip.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        self.change("delete");
    }
}

/// Time until the page has noticed, which it asserts to be less.
const GONE: Duration = Duration::from_secs(16);

/// The address of the listener is removed under the connection, and added again: the session ends
/// with a cause within 15 s, and the next one is made at once.
async fn network_goes(browser: Browser, ip: Ipv4Addr) {
    let Some(address) = Address::add(ip) else {
        eprintln!("skipped: no right to add an address");
        return;
    };
    let server = Server::start(address.0, PLAIN, |_| ()).await;
    let network = async {
        let begun = timeout(Duration::from_secs(60), server.noted("dying"));
        begun.await.expect("the page connects");
        let start = Instant::now();
        assert!(address.change("delete"));
        sleep(GONE.saturating_sub(start.elapsed())).await;
        assert!(address.change("replace"));
    };
    let parameters = server.parameters();
    let cases = ["network-goes"];
    tokio::join!(driver::run(browser, &parameters, &cases), network);
    server.finish(&[CLOSED, "ended: ", "dying"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_goes_ends_the_session_of_chromium_within_15_seconds() {
    network_goes(CHROMIUM, Ipv4Addr::new(198, 51, 100, 77)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_goes_ends_the_session_of_firefox_within_15_seconds() {
    network_goes(FIREFOX, Ipv4Addr::new(198, 51, 100, 78)).await;
}
