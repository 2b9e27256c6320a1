//! `examples/file_service` as processes: a server, and clients over both carriers.
#![cfg(unix)]
#![allow(missing_docs)]

mod ends;
mod processes;
#[path = "../common/programs.rs"]
mod programs;
mod refusals;

use std::fs;

use processes::{Carrier, Client, Directory, Server, content};

/// Sizes about the pieces of files, frames and reads.
const SIZES: [usize; 4] = [0, 1, 65_537, 3_000_017];

#[test]
fn files_go_up_and_come_back_the_same_over_both_carriers() {
    let directory = Directory::new();
    let server = Server::start(&directory, &[]);
    for carrier in [Carrier::WebRtc, Carrier::WebSocket] {
        let address = server.address(carrier);
        for size in SIZES {
            let (name, content) = (format!("{carrier:?} {size} ä.bin"), content(size));
            let source = directory.write(&name, &content);
            let put = Client::start(&["put", address, &source]).end();
            put.succeeds(&format!("{size} bytes, of which 0 were there already\n"));
            assert_eq!(directory.stored(&name), Some(content.clone()), "{name}");
            let into = directory.path("fetched");
            let get = Client::start(&["get", "--into", &into, address, &name]).end();
            get.succeeds(&format!("{size} bytes, of which 0 were there already\n"));
            let fetched = fs::read(directory.0.join("fetched").join(&name));
            assert!(fetched.expect("it was fetched") == content, "{name}");
        }
    }
    directory.has_no_parts();
    server.stop();
}

#[test]
fn the_page_and_the_addresses_are_served_over_http() {
    let directory = Directory::new();
    let server = Server::start(&directory, &["--max-transfers", "3"]);
    let [webrtc, websocket] = [Carrier::WebRtc, Carrier::WebSocket].map(|c| server.address(c));
    assert!(webrtc.contains("/webrtc-direct/certhash/"), "{webrtc}");
    let addresses = server.request("GET /address HTTP/1.1", &[]);
    assert_eq!(addresses.status, 200);
    assert_eq!(addresses.body, format!("{webrtc}\n{websocket}\n"));
    let page = server.request("GET / HTTP/1.1", &[]);
    assert_eq!(page.status, 200);
    assert_eq!(page.content_type(), "text/html; charset=utf-8");
    assert!(page.body.contains(webrtc) && page.body.contains("0 of 3 transfers"));
    // Its addresses survive a restart, with the certificate hash.
    let hash = |address: &str| address.split("/certhash/").nth(1).map(str::to_owned);
    let before = hash(webrtc);
    server.stop();
    let server = Server::start(&directory, &[]);
    assert_eq!(hash(server.address(Carrier::WebRtc)), before);
    server.stop();
}
