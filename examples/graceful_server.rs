//! A server that ends in peace: on SIGTERM, or Ctrl-C, it accepts no more peers, lets every
//! substream finish, and says what it had to cut off after half a minute.
//!
//! ```text
//! cargo run --example graceful_server -- 127.0.0.1:4001
//! ```

use std::error::Error;
use std::time::Duration;

use anabranch::{Connection, Endpoint, Substream};

/// How long substreams may take to end: less than a service manager waits before it kills.
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1);
    let address = address.unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let endpoint = Endpoint::builder()
        .protocol("/echo/1.0.0")
        .bind(address)
        .await?;
    let stopped = stopped()?;
    for address in endpoint.addresses() {
        println!("listening on {address}");
    }
    let accepting = tokio::spawn(accept(endpoint.clone()));
    stopped.await;
    println!("draining");
    let drained = endpoint.drain(LIMIT).await;
    accepting.await?;
    println!(
        "{} connections and {} substreams were cut off",
        drained.cut_connections, drained.cut_substreams
    );
    Ok(())
}

/// Completes when the system or the user ends the program. Signals are caught from this call on, so
/// that none kills a program that has said that it runs.
fn stopped() -> std::io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        Ok(async move {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
        })
    }
    #[cfg(not(unix))]
    Ok(async {
        // Without the signal it runs until it is killed.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    })
}

/// Serves every peer until the endpoint accepts no more.
async fn accept(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let from = incoming.remote_address();
            match incoming.await {
                Ok(connection) => serve(connection).await,
                // Of this peer alone: the server goes on.
                Err(error) => eprintln!("{from}: {error}"),
            }
        });
    }
}

/// Serves a connection until it ends, also while it is drained.
async fn serve(connection: Connection) {
    while let Ok(Some(substream)) = connection.accept().await {
        tokio::spawn(async move {
            if let Err(error) = echo(substream).await {
                eprintln!("{error}");
            }
        });
    }
}

async fn echo(mut substream: Substream) -> Result<(), Box<dyn Error + Send + Sync>> {
    let (read, write) = substream.split();
    tokio::io::copy(read, write).await?;
    // The peer has every byte.
    substream.finish().await?;
    Ok(())
}
