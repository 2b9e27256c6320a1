//! Connections inside an existing HTTP server: hyper serves pages, and upgrades `/anabranch` to a
//! WebSocket, on one port. An axum handler does the same with its `Request`.
//!
//!     cargo run --example websocket_server -- 127.0.0.1:8080
//!     cargo run --example websocket_server -- dial ws://127.0.0.1:8080/anabranch

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anabranch::address::WebSocketAddress;
use anabranch::websocket::{self, Authentication, ClientConfig, ServerConfig, UpgradeRequest};
use anabranch::{Config, Connection, Identity};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const PROTOCOL: &str = "/echo/1.0.0";

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("dial") => dial(&arguments.next().ok_or("dial URL")?).await,
        Some(address) => serve(address.parse()?).await,
        None => serve(([127, 0, 0, 1], 8080).into()).await,
    }
}

async fn serve(address: SocketAddr) -> Result<(), Error> {
    let mut connection = Config::default();
    connection.protocols = vec![PROTOCOL.to_owned()];
    let mut config = ServerConfig::new(Authentication::noise(Identity::generate()));
    config.connection = Arc::new(connection);
    let config = Arc::new(config);
    let listener = TcpListener::bind(address).await?;
    println!("ws://{}/anabranch", listener.local_addr()?);
    loop {
        let (stream, remote) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let config = Arc::clone(&config);
        let service = service_fn(move |request| {
            let config = Arc::clone(&config);
            answer(request, [remote, local], config)
        });
        tokio::spawn(async move {
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            if let Err(error) = serving.await {
                eprintln!("http: {error}");
            }
        });
    }
}

async fn answer(
    mut request: Request<Incoming>,
    [remote, local]: [SocketAddr; 2],
    config: Arc<ServerConfig>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() != "/anabranch" {
        return Ok(Response::new("a page\n".into()));
    }
    let checked = UpgradeRequest::check_http(
        &request,
        |head| head.with_remote_address(remote).with_local_address(local),
        &config,
    );
    let upgrade = match checked {
        Ok(upgrade) => upgrade,
        Err(error) => return Ok(error.answer().http_response().map(Full::from)),
    };
    // The upgrade completes once this response has been sent.
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let connection = async {
            let io = TokioIo::new(upgraded.await?);
            Ok::<_, Error>(websocket::accept_upgraded(io, &config).await?)
        };
        match connection.await {
            Ok(connection) => echo(connection).await,
            Err(error) => eprintln!("no connection: {error}"),
        }
    });
    Ok(upgrade.http_response().map(|()| Full::default()))
}

async fn echo(connection: Connection) {
    println!("connected: {:?}", connection.peer_id());
    while let Ok(Some(substream)) = connection.accept().await {
        tokio::spawn(async move {
            let (mut read, mut write) = substream.into_split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.finish().await;
        });
    }
    println!("ended: {}", connection.closed().await);
}

async fn dial(url: &str) -> Result<(), Error> {
    let config = ClientConfig::new(Authentication::noise(Identity::generate()));
    let connection = websocket::connect(&WebSocketAddress::from_url(url)?, &config).await?;
    let mut substream = connection.open(PROTOCOL).await?;
    substream.write_all(b"hello\n").await?;
    substream.finish().await?;
    let mut answer = String::new();
    substream.read_to_string(&mut answer).await?;
    print!("{answer}");
    connection.close().await;
    Ok(())
}
