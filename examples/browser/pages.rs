//! The HTTP server: the files of the page, the addresses to connect to, and the upgrade to a
//! WebSocket.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anabranch::websocket::{Answer, RequestHead, UpgradeRequest};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::BoxError;
use crate::gate::{Cut, Gate};
use crate::services::{Carrier, Services};

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const JSON: &str = "application/json";

/// Path, type and content of each file. `anabranch.js` is the package of `js/`, which
/// `js/example.mjs` bundles.
const FILES: [(&str, &str, &str); 13] = [
    ("/", HTML, include_str!("assets/index.html")),
    ("/style.css", STYLE, include_str!("assets/style.css")),
    ("/page.js", SCRIPT, include_str!("assets/page.js")),
    (
        "/connection.js",
        SCRIPT,
        include_str!("assets/connection.js"),
    ),
    ("/format.js", SCRIPT, include_str!("assets/format.js")),
    ("/plot.js", SCRIPT, include_str!("assets/plot.js")),
    (
        "/substreams.js",
        SCRIPT,
        include_str!("assets/substreams.js"),
    ),
    ("/file.js", SCRIPT, include_str!("assets/file.js")),
    ("/dom.js", SCRIPT, include_str!("assets/dom.js")),
    ("/parts.js", SCRIPT, include_str!("assets/parts.js")),
    ("/records.js", SCRIPT, include_str!("assets/records.js")),
    ("/transfer.js", SCRIPT, include_str!("assets/transfer.js")),
    ("/anabranch.js", SCRIPT, include_str!("assets/anabranch.js")),
];

const ADDRESSES: &str = "/addresses";
const WEBSOCKET: &str = "/anabranch";

/// Nothing from elsewhere, and the page in no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
                      connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; \
                      form-action 'none'";

/// Upgraded connections are counted by the endpoint, and not among these.
const MAX_CONNECTIONS: usize = 256;
/// Answers clients that connect and say nothing.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) async fn serve(listener: TcpListener, services: Arc<Services>) -> Result<(), BoxError> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Of that client, or too many open files, which passes.
            Err(error) => {
                eprintln!("http: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let services = Arc::clone(&services);
        tokio::spawn(async move {
            if let Err(error) = serve_connection(stream, services).await {
                eprintln!("http: {error}");
            }
            drop(place);
        });
    }
}

async fn serve_connection(stream: TcpStream, services: Arc<Services>) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let ends = [stream.peer_addr()?, stream.local_addr()?];
    let service = service_fn(move |request| {
        let services = Arc::clone(&services);
        async move { Ok::<_, Infallible>(answer(request, ends, services)) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await?;
    Ok(())
}

fn answer(
    request: Request<Incoming>,
    [remote, local]: [SocketAddr; 2],
    services: Arc<Services>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if path == WEBSOCKET {
        return upgrade(request, [remote, local], services);
    }
    if request.method() != Method::GET {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Only GET.\n");
        let allowed = HeaderValue::from_static("GET");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    if path == ADDRESSES {
        return content(JSON, addresses(&services, local).into());
    }
    match FILES.iter().find(|(file, ..)| *file == path) {
        Some((_, kind, file)) => content(kind, Bytes::from_static(file.as_bytes())),
        None => text(StatusCode::NOT_FOUND, "There is no such page.\n"),
    }
}

/// The addresses at which the page reaches this program, as JSON. They have no character that JSON
/// would escape.
fn addresses(services: &Services, local: SocketAddr) -> String {
    let mut addresses = services.endpoint.addresses();
    // The page has come by this one already; the others are for browsers that leave out loopback.
    addresses.sort_by_key(|address| address.socket_addr().ip() != local.ip());
    let direct: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let [relayed, lossy] = services.relays.each_ref().map(|relay| {
        let port = format!("/udp/{}/", relay.address().port());
        let through = addresses.iter().map(|address| {
            let ours = format!("/udp/{}/", address.socket_addr().port());
            address.to_string().replacen(&ours, &port, 1)
        });
        through.collect::<Vec<_>>()
    });
    let webrtc = format!(r#""direct":{direct:?},"relayed":{relayed:?},"lossy":{lossy:?}"#);
    format!(r#"{{{webrtc},"websocket":"{WEBSOCKET}"}}"#)
}

/// Answers the upgrade, and serves the connection once it is made.
fn upgrade(
    mut request: Request<Incoming>,
    [remote, local]: [SocketAddr; 2],
    services: Arc<Services>,
) -> Response<Full<Bytes>> {
    // Every header field: the check decides which of them may be repeated.
    let headers = request
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()));
    let target = request.uri().to_string();
    let head = RequestHead::new(request.method().as_str(), &target, headers)
        .with_remote_address(remote)
        .with_local_address(local);
    let upgrade = match UpgradeRequest::check(&head, &services.endpoint.upgrade_config()) {
        Ok(upgrade) => upgrade,
        Err(error) => return refuse(&error.answer()),
    };
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in upgrade.response_headers() {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    // The upgrade completes once this response has been sent.
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let cut = Cut::default();
        let connection = async {
            let stream = Gate::new(TokioIo::new(upgraded.await?), cut.clone());
            Ok::<_, BoxError>(services.endpoint.accept_upgraded(stream).await?)
        };
        match connection.await {
            Ok(connection) => {
                let carrier = Carrier::WebSocket(cut);
                Arc::clone(&services).serve(connection, carrier).await;
            }
            Err(error) => eprintln!("{remote}: {error}"),
        }
    });
    response
}

fn refuse(answer: &Answer) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(answer.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = Response::new(answer.body().to_owned().into());
    *response.status_mut() = status;
    for (name, value) in answer.headers() {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(*name, value);
    }
    response
}

fn content(kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    let fields = [
        (CONTENT_TYPE, kind),
        // Another build of this program has other files at the same address.
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("content-security-policy"), POLICY),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
    ];
    for (name, value) in fields {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = content(
        "text/plain; charset=utf-8",
        Bytes::from_static(body.as_bytes()),
    );
    *response.status_mut() = status;
    response
}
