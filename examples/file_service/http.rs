//! The HTTP server: a page, the addresses, and upgrades to WebSockets, all on one port.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anabranch::Endpoint;
use anabranch::address::WebSocketAddress;
use anabranch::websocket::{Answer, ServerConfig, UpgradeError, UpgradeRequest};
use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE};
use axum::http::{Method, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, get};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::service::{Service, with_causes};

/// Connections that speak HTTP at once. Further ones wait in the backlog of the system. One that
/// is upgraded counts among those of the endpoint instead.
const MAX_CONNECTIONS: usize = 256;

/// How long a client may take to send the headers of a request.
const HEADERS: Duration = Duration::from_secs(10);

/// How long answers may take to be sent once the server stops.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Pause after an error of the system, for example that file descriptors are exhausted.
const PAUSE: Duration = Duration::from_millis(100);

/// What the handlers share.
pub(crate) struct Web {
    endpoint: Endpoint,
    service: Arc<Service>,
    upgrades: ServerConfig,
}

/// The two ends of the TCP connection of a request.
#[derive(Debug, Clone, Copy)]
struct Ends {
    remote: SocketAddr,
    local: SocketAddr,
}

impl Web {
    pub(crate) fn new(endpoint: Endpoint, service: Arc<Service>) -> Self {
        Self {
            upgrades: endpoint.upgrade_config(),
            endpoint,
            service,
        }
    }

    /// The addresses of both carriers, for a client that has reached `local` over HTTP.
    pub(crate) fn addresses(&self, local: SocketAddr) -> String {
        let websocket = WebSocketAddress::new(local, false).with_peer_id(self.endpoint.peer_id());
        let webrtc = self.endpoint.addresses().into_iter();
        let mut text: String = webrtc.map(|address| format!("{address}\n")).collect();
        text.push_str(&format!("{websocket}\n"));
        text
    }
}

pub(crate) fn router(web: Arc<Web>) -> Router {
    Router::new()
        // Upgrades too: a multiaddr has no path, so libp2p peers ask for `/`.
        .route("/", any(front))
        .route("/address", get(address))
        .fallback(nothing)
        .with_state(web)
}

async fn front(
    State(web): State<Arc<Web>>,
    Extension(ends): Extension<Ends>,
    request: Request,
) -> Response {
    if request.headers().contains_key(UPGRADE) {
        return upgrade(&web, ends, request);
    }
    match *request.method() {
        Method::GET | Method::HEAD => page(&web, ends.local),
        _ => failure(
            request.headers(),
            &UpgradeError::refused(405, "only GET").answer(),
        ),
    }
}

fn upgrade(web: &Arc<Web>, ends: Ends, mut request: Request) -> Response {
    let checked = match web.endpoint.is_draining() {
        true => Err(UpgradeError::refused(503, "this server is shutting down")),
        false => UpgradeRequest::check_http(
            &request,
            |head| {
                head.with_remote_address(ends.remote)
                    .with_local_address(ends.local)
            },
            &web.upgrades,
        ),
    };
    let upgrade = match checked {
        Ok(upgrade) => upgrade,
        Err(error) => return failure(request.headers(), &error.answer()),
    };
    // The upgrade completes once the response below has been sent.
    let upgraded = hyper::upgrade::on(&mut request);
    let web = Arc::clone(web);
    tokio::spawn(async move {
        let Ok(stream) = upgraded.await else {
            return;
        };
        match web.endpoint.accept_upgraded(TokioIo::new(stream)).await {
            Ok(connection) => Arc::clone(&web.service).serve(connection).await,
            Err(error) => eprintln!("{}: {}", ends.remote, with_causes(&error)),
        }
    });
    upgrade.http_response().map(|()| Body::empty())
}

async fn address(State(web): State<Arc<Web>>, Extension(ends): Extension<Ends>) -> String {
    web.addresses(ends.local)
}

async fn nothing(headers: HeaderMap) -> Response {
    let error = UpgradeError::refused(404, "there is nothing here");
    failure(&headers, &error.answer())
}

/// The answer to a request that fails: a page for browsers, and plain text for everybody else.
fn failure(headers: &HeaderMap, answer: &Answer) -> Response {
    let mut response = answer.http_response();
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    if accepted.is_some_and(|accepted| accepted.contains("text/html")) {
        let status = response.status();
        *response.body_mut() = document(&status.to_string(), &paragraph(answer.body()));
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, html);
    }
    response.map(Body::from)
}

fn page(web: &Web, local: SocketAddr) -> Response {
    let limits = web.service.limits();
    let text = format!(
        "<p>Files over WebRTC, or over a WebSocket on this port: \
         <code>file_service get ADDRESS NAME</code>.</p>\n<pre>{}</pre>\n\
         <p>{} of {} transfers are under way. A file has at most {} bytes.</p>\n",
        web.addresses(local),
        web.service.transfers(),
        limits.max_transfers,
        limits.max_size,
    );
    (StatusCode::OK, Html(document("File service", &text))).into_response()
}

fn paragraph(text: &str) -> String {
    let text = text.trim_end().replace('&', "&amp;").replace('<', "&lt;");
    format!("<p>{text}</p>\n")
}

fn document(title: &str, body: &str) -> String {
    format!("<!doctype html>\n<title>{title}</title>\n<h1>{title}</h1>\n{body}")
}

/// Serves `router` until the server drains, and the answers that are under way then.
///
/// `axum::serve` does the same without a deadline for headers and without a limit of connections,
/// which is right behind a proxy that has both.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    mut draining: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            Some(_) = connections.join_next() => continue,
            _ = draining.wait_for(|draining| *draining) => break,
        };
        let (Ok(place), Ok((stream, remote))) = (place, accepted) else {
            sleep(PAUSE).await;
            continue;
        };
        let connection = serve_connection(stream, remote, router.clone(), draining.clone());
        connections.spawn(async move {
            // An error is the client's trouble: it has gone, or has sent no HTTP.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    let _ = timeout(LAST_ANSWERS, connections.join_all()).await;
}

async fn serve_connection(
    stream: TcpStream,
    remote: SocketAddr,
    router: Router,
    mut draining: watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Ends { remote, local });
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving.with_upgrades());
    tokio::select! {
        served = serving.as_mut() => return served.map_err(io::Error::other),
        _ = draining.wait_for(|draining| *draining) => {}
    }
    serving.as_mut().graceful_shutdown();
    serving.await.map_err(io::Error::other)
}
