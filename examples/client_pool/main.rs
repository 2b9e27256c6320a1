//! Calls with deadlines over a pool of connections that reconnects. The server answers each message
//! with its text in capital letters; kill it and start it again while the client calls.
//!
//! ```text
//! cargo run --example client_pool -- serve 127.0.0.1:4001 server.key
//! cargo run --example client_pool -- call ADDRESS 100
//! ```

mod pool;

use std::time::Duration;

use anabranch::delimited::Messages;
use anabranch::{Address, Connection, Endpoint, Identity, Substream};
use bytes::Bytes;
use pool::{Error, Pool};

const PROTOCOL: &str = "/capitals/1.0.0";
const MAX_MESSAGE: usize = 64 * 1024;
const DEADLINE: Duration = Duration::from_secs(30);
const USAGE: &str = "serve SOCKET-ADDRESS KEY-FILE | call ADDRESS COUNT";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", socket, key] => serve(socket, key).await,
        ["call", address, count] => call(address.parse()?, count.parse()?).await,
        _ => Err(USAGE.into()),
    }
}

async fn serve(socket: &str, key: &str) -> Result<(), Error> {
    // The same address after each start.
    let endpoint = Endpoint::builder()
        .identity(Identity::load_or_generate(key)?)
        .protocol(PROTOCOL)
        .bind(socket)
        .await?;
    for address in endpoint.addresses() {
        println!("{address}");
    }
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            match incoming.await {
                Ok(connection) => answer_all(connection).await,
                Err(error) => eprintln!("{error}"),
            }
        });
    }
    Ok(())
}

async fn answer_all(connection: Connection) {
    while let Ok(Some(substream)) = connection.accept().await {
        tokio::spawn(async move {
            if let Err(error) = answer(substream).await {
                eprintln!("{error}");
            }
        });
    }
}

async fn answer(substream: Substream) -> Result<(), Error> {
    let mut messages = Messages::new(substream, MAX_MESSAGE);
    while let Some(request) = messages.read().await? {
        messages.write(request.to_ascii_uppercase().into()).await?;
    }
    messages.finish().await?;
    Ok(())
}

async fn call(address: Address, count: usize) -> Result<(), Error> {
    let endpoint = Endpoint::builder().dial_only()?;
    let pool = Pool::new(endpoint.clone(), PROTOCOL, MAX_MESSAGE);
    for number in 0..count {
        let request = Bytes::from(format!("call {number}"));
        let response = pool.call(&address, request, DEADLINE).await?;
        println!("{}", String::from_utf8_lossy(&response));
        // Not so fast that nobody can restart the server meanwhile.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{count} calls, {} connections", pool.dials());
    drop(pool);
    endpoint.close().await;
    Ok(())
}
