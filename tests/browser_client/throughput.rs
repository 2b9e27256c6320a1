//! Figures, for a release build on a quiet machine:
//!
//! ```text
//! cargo test --release --features interop --test browser_client -- \
//!     --ignored --nocapture --test-threads 1 throughput
//! ```

use tokio::process::Command;

use crate::driver::{self, Browser};
use crate::program::{Listener, executable};
use crate::server::{PLAIN, Server, Way};
use crate::{BROWSERS, CLOSED, NOISE, WEBSOCKET};

const ROUNDS: usize = 5;

/// MiB of each transfer.
const MIB: f64 = 64.0;

/// The number of `name` in a line of JSON.
fn number(line: &str, name: &str) -> f64 {
    let (_, rest) = line.split_once(&format!("\"{name}\":")).expect(name);
    let number = rest.split([',', '}']).next().expect("a number");
    number.parse().expect("a number")
}

fn median(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// MiB/s of 64 MiB up, and of 64 MiB down.
#[derive(Default)]
struct Rates([Vec<f64>; 2]);

impl Rates {
    fn add(&mut self, line: &str) {
        self.0[0].push(number(line, "up-mib-s"));
        self.0[1].push(number(line, "down-mib-s"));
    }
}

/// Runs our case, and returns its line.
async fn ours(browser: Browser, way: Way) -> String {
    let server = Server::start(browser.ip(), way, |_| ()).await;
    let printed = driver::run(browser, &server.parameters(), &["throughput"]).await;
    server.finish(&[CLOSED]).await;
    printed[0].clone()
}

async fn js_libp2p(browser: Browser, rates: &mut Rates) {
    let server = Server::start(browser.ip(), NOISE, |_| ()).await;
    let address = server.endpoint.peer_addresses()[0].to_string();
    let cases = ["up-64m", "down-64m"];
    let printed = driver::run_js_libp2p(browser, &address, &cases).await;
    // It leaves when its page does.
    server.close().await;
    for (rates, case) in rates.0.iter_mut().zip(cases) {
        let line = printed.iter().find(|line| line.contains(case)).expect(case);
        rates.push(MIB * 1000.0 / number(line, "ms"));
    }
}

async fn qmux(browser: Browser, rates: &mut Rates) {
    let mut listener = Listener::start(&mut Command::new(executable("qmux-peer")));
    let parameters = format!(r#"{{"qmux":"{}"}}"#, listener.address().await);
    let printed = driver::run(browser, &parameters, &["qmux-throughput"]).await;
    listener.kill().await;
    rates.add(&printed[0]);
}

/// Prints the medians, and returns the directions in which ours is below `least` times theirs.
fn compare(name: &str, ours: &Rates, theirs: &Rates, their_name: &str, least: f64) -> Vec<String> {
    let mut short = Vec::new();
    for (direction, (ours, theirs)) in ["up", "down"].iter().zip(ours.0.iter().zip(&theirs.0)) {
        let (ours, theirs) = (median(ours), median(theirs));
        let ratio = ours / theirs;
        println!("{name}, {direction}: {ours:.0} MiB/s, {ratio:.2} x {their_name} ({theirs:.0})");
        if ratio < least {
            short.push(format!("{name}, {direction}: {ratio:.2} x {their_name}"));
        }
    }
    short
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "figures: for a release build"]
async fn throughput_beside_raw_channels_and_js_libp2p() {
    let mut short = Vec::new();
    for browser in BROWSERS {
        let [mut mine, mut raw, mut theirs] = [(); 3].map(|()| Rates::default());
        for _ in 0..ROUNDS {
            let line = ours(browser, PLAIN).await;
            mine.add(&line);
            for rates in &mut raw.0 {
                rates.push(number(&line, "raw-mib-s"));
            }
            js_libp2p(browser, &mut theirs).await;
        }
        let name = browser.name();
        short.extend(compare(&name, &mine, &raw, "two raw channels", 0.8));
        short.extend(compare(&name, &mine, &theirs, "js-libp2p", 0.8));
    }
    assert!(short.is_empty(), "{short:#?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "figures: for a release build"]
async fn throughput_over_a_websocket_beside_qmux() {
    let mut short = Vec::new();
    for browser in BROWSERS {
        let [mut mine, mut theirs] = [(); 2].map(|()| Rates::default());
        for _ in 0..ROUNDS {
            mine.add(&ours(browser, WEBSOCKET).await);
            qmux(browser, &mut theirs).await;
        }
        let name = format!("{} over a WebSocket", browser.name());
        short.extend(compare(&name, &mine, &theirs, "QMux", 0.7));
    }
    assert!(short.is_empty(), "{short:#?}");
}
