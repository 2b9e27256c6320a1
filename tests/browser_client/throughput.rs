//! Figures, for a release build on a quiet machine:
//!
//! ```text
//! cargo test --release --features interop --test browser_client -- \
//!     --ignored --nocapture throughput
//! ```

use crate::driver::{self, Browser};
use crate::server::{PLAIN, Server};
use crate::{BROWSERS, CLOSED, NOISE};

const ROUNDS: usize = 5;

/// MiB of each transfer.
const MIB: f64 = 64.0;

/// The number of `name` in a line of JSON.
fn number(line: &str, name: &str) -> f64 {
    let (_, rest) = line.split_once(&format!("\"{name}\":")).expect(name);
    let number = rest.split([',', '}']).next().expect("a number");
    number.parse().expect("a number")
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// MiB/s of two raw channels of the browser, and of js-libp2p and this package, up and down.
#[derive(Default)]
struct Figures {
    raw: Vec<f64>,
    ours: [Vec<f64>; 2],
    js_libp2p: [Vec<f64>; 2],
}

impl Figures {
    async fn measure(&mut self, browser: Browser) {
        let server = Server::start(browser.ip(), PLAIN, |_| ()).await;
        let printed = driver::run(browser, &server.parameters(), &["throughput"]).await;
        server.finish(&[CLOSED]).await;
        self.raw.push(number(&printed[0], "raw-mib-s"));
        self.ours[0].push(number(&printed[0], "up-mib-s"));
        self.ours[1].push(number(&printed[0], "down-mib-s"));

        let server = Server::start(browser.ip(), NOISE, |_| ()).await;
        let address = server.endpoint.peer_addresses()[0].to_string();
        let cases = ["up-64m", "down-64m"];
        let printed = driver::run_js_libp2p(browser, &address, &cases).await;
        // It leaves when its page does.
        server.close().await;
        for (of, case) in [(0, "up-64m"), (1, "down-64m")] {
            let line = printed.iter().find(|line| line.contains(case)).expect(case);
            self.js_libp2p[of].push(MIB * 1000.0 / number(line, "ms"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "figures: for a release build"]
async fn at_least_80_percent_of_raw_channels_and_twice_js_libp2p() {
    let mut short = Vec::new();
    for browser in BROWSERS {
        let mut figures = Figures::default();
        for _ in 0..ROUNDS {
            figures.measure(browser).await;
        }
        let Figures {
            raw,
            ours,
            js_libp2p,
        } = figures;
        let raw = median(raw);
        for (direction, (ours, theirs)) in
            ["up", "down"].iter().zip(ours.into_iter().zip(js_libp2p))
        {
            let (ours, theirs) = (median(ours), median(theirs));
            let name = browser.name();
            println!(
                "{name}, {direction}: {ours:.0} MiB/s; {:.2} x two raw channels ({raw:.0}), \
                 {:.2} x js-libp2p ({theirs:.1})",
                ours / raw,
                ours / theirs
            );
            if ours < 0.8 * raw || ours < 2.0 * theirs {
                short.push(format!("{name}, {direction}"));
            }
        }
    }
    assert!(short.is_empty(), "{short:?}");
}
