//! Upgrade requests to a WebSocket listener, from arbitrary clients.

use std::net::SocketAddr;

use super::Input;
use super::lines::request_text;
use anabranch::identity::Identity;
use anabranch::websocket::{
    Authentication, Origins, RequestHead, ServerConfig, UpgradeError, UpgradeRequest,
};

/// Longest request head that a listener reads, in bytes.
const MAX_HEAD: usize = 8 * 1024;

/// Checks one request. Returns whether it was upgraded.
pub(super) fn run(bytes: &[u8]) -> bool {
    check_request(&mut Input::new(bytes))
}

fn check_request(input: &mut Input<'_>) -> bool {
    let has_noise = input.bool();
    let authentication = match has_noise {
        true => Authentication::noise(identity()),
        false => Authentication::DangerNone,
    };
    let mut config = ServerConfig::new(authentication);
    let local: SocketAddr = input
        .pick(&["203.0.113.1:80", "127.0.0.1:80", "[fd00::1]:80"])
        .parse()
        .expect("an address");
    if input.bool() {
        config.requests.hosts = Some(vec!["example.org".to_owned()]);
    }
    if input.bool() {
        config.requests.paths = Some(vec!["/a".to_owned()]);
    }
    config.requests.origins = match input.below(3) {
        0 => Origins::ByAuthentication,
        1 => Origins::Same,
        _ => Origins::Only(vec!["http://example.org".to_owned()]),
    };
    let mut bytes = request_text(input);
    bytes.truncate(MAX_HEAD);
    let checked = RequestHead::parse(&bytes)
        .map(|request| request.with_local_address(local))
        .and_then(|request| UpgradeRequest::check(&request, &config));
    match checked {
        Ok(_) => {
            // Empty lines before a request are skipped (RFC 9112 section 2.2).
            let start = bytes.iter().position(|byte| !b"\r\n".contains(byte));
            let head = &bytes[start.expect("a request")..];
            check_upgraded(head, &config, has_noise, local);
            true
        }
        Err(error) => {
            check_answer(&error);
            false
        }
    }
}

/// Generated once, as generating is slow and the identity does not matter.
fn identity() -> Identity {
    static IDENTITY: std::sync::LazyLock<Identity> = std::sync::LazyLock::new(Identity::generate);
    IDENTITY.clone()
}

/// Checks the text of an upgraded request against the rules.
fn check_upgraded(head: &[u8], config: &ServerConfig, has_noise: bool, local: SocketAddr) {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let words: Vec<&str> = lines.next().expect("a line").split(' ').collect();
    let &["GET", target, "HTTP/1.1"] = &words[..] else {
        panic!("{words:?}");
    };
    let headers: Vec<(String, &str)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
        .collect();
    let all = |name: &str| -> Vec<&str> {
        let found = headers.iter().filter(|(own, _)| own == name);
        found.map(|(_, value)| *value).collect()
    };
    let [host] = all("host")[..] else {
        panic!("{headers:?}");
    };
    assert_eq!(all("sec-websocket-version"), ["13"]);
    assert_eq!(all("sec-websocket-key").len(), 1);
    assert!(all("transfer-encoding").is_empty());
    assert!(all("content-length").iter().all(|length| *length == "0"));
    let list = |name: &str, wanted: &str| {
        let joined = all(name).join(",").to_ascii_lowercase();
        joined.split(',').any(|member| member.trim() == wanted)
    };
    assert!(list("connection", "upgrade") && list("upgrade", "websocket"));
    let subprotocol = config.authentication.subprotocol();
    assert!(list("sec-websocket-protocol", subprotocol));
    if config.requests.paths.is_some() {
        let path = target.strip_prefix("http://example.org").unwrap_or(target);
        assert_eq!(path.split('?').next(), Some("/a"));
    }
    // A listed host matches with any port.
    let is_listed = host.eq_ignore_ascii_case("example.org") || host.starts_with("example.org:");
    assert!(config.requests.hosts.is_none() || is_listed, "{host}");
    let origin = match all("origin")[..] {
        [] => return,
        [origin] => origin,
        _ => panic!("{headers:?}"),
    };
    match config.requests.origins {
        Origins::ByAuthentication if has_noise => {}
        Origins::Only(_) => assert!(
            origin
                .to_ascii_lowercase()
                .starts_with("http://example.org")
        ),
        _ => {
            let name = |authority: &str| match authority.find(']') {
                Some(end) => authority[..=end].to_ascii_lowercase(),
                None => authority
                    .split(':')
                    .next()
                    .expect("one")
                    .to_ascii_lowercase(),
            };
            let (_, page) = origin.split_once("://").expect("a scheme");
            let host = name(host);
            assert_eq!(name(page), host);
            let is_number = host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok();
            let is_local = host.trim_end_matches('.').ends_with("localhost");
            let is_public = local.ip().to_string() == "203.0.113.1";
            let is_listed = config.requests.hosts.is_some();
            assert!(is_number || is_local || is_public || is_listed, "{origin}");
        }
    }
}

/// Checks that the answer to a rejected request is valid HTTP.
fn check_answer(error: &UpgradeError) {
    let answer = error.answer();
    let bytes = answer.encode(true);
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(&bytes).expect("HTTP");
    let httparse::Status::Complete(len) = parsed else {
        panic!("the head of the answer does not end");
    };
    assert_eq!(response.code, Some(answer.status()));
    assert!((400..600).contains(&answer.status()));
    let value = |name: &str| {
        let found = response.headers.iter().find(|header| header.name == name);
        String::from_utf8_lossy(found.expect("the header").value).into_owned()
    };
    assert_eq!(value("content-length"), (bytes.len() - len).to_string());
    assert!(value("connection").starts_with("close"));
}
