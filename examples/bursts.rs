//! Bursts that once ended connections: many small messages, many opens at once, and a listener that
//! is slow to accept. Over WebRTC on loopback and over a WebSocket. Exits with 0 only if every byte
//! came back and nothing was refused.
//!
//! ```text
//! cargo run --release --example bursts [tiny] [opens] [slow]    default: all
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch::websocket::{
    self, Authentication, ClientConfig, ListenerConfig, ServerConfig, WebSocketListener,
};
use anabranch::{Config, Connection, Endpoint, Identity, Negotiation, Substream};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::sleep;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn config() -> Config {
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    config
}

/// Both ends of a connection over each carrier, and the objects that have to stay alive for them.
async fn pairs() -> Result<Vec<(&'static str, Connection, Connection, Vec<Endpoint>)>> {
    let listener = Endpoint::builder()
        .config(config())
        .bind("127.0.0.1:0")
        .await?;
    let dialler = Endpoint::builder().config(config()).dial_only()?;
    let address = listener.addresses().remove(0);
    let (ours, theirs) = tokio::try_join!(
        async { Result::Ok(dialler.connect(&address).await?) },
        async { Ok(listener.accept().await.ok_or("closed")?.accept().await?) },
    )?;
    let webrtc = ("WebRTC", ours, theirs, vec![listener, dialler]);

    let mut server = ServerConfig::new(Authentication::noise(Identity::generate()));
    server.connection = Arc::new(config());
    let listener =
        WebSocketListener::bind("127.0.0.1:0".parse()?, server, ListenerConfig::default()).await?;
    let mut client = ClientConfig::new(Authentication::noise(Identity::generate()));
    client.connection = Arc::new(config());
    let address = listener.address().clone();
    let (ours, theirs) = tokio::try_join!(
        async { Result::Ok(websocket::connect(&address, &client).await?) },
        async { Ok(listener.accept().await?.accept().await?) },
    )?;
    Ok(vec![webrtc, ("WebSocket", ours, theirs, Vec::new())])
}

/// Echoes every substream, with a pause before each accept.
fn serve(connection: Connection, pause: Duration) {
    tokio::spawn(async move {
        while let Ok(Some(substream)) = connection.accept().await {
            tokio::spawn(echo(substream));
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
    });
}

async fn echo(substream: Substream) -> std::io::Result<()> {
    let (mut reader, mut writer) = substream.into_split();
    tokio::io::copy(&mut reader, &mut writer).await?;
    writer.finish().await?;
    Ok(())
}

/// Writes `messages` of `size` bytes, each flushed, and compares the echo.
async fn exchange(connection: Connection, messages: usize, size: usize) -> Result<()> {
    let (mut reader, mut writer) = connection.open("").await?.into_split();
    let writing = tokio::spawn(async move {
        for index in 0..messages {
            let message: Vec<u8> = (0..size)
                .map(|at| ((index * size + at) % 251) as u8)
                .collect();
            writer.write_all(&message).await?;
            writer.flush().await?;
        }
        Result::Ok(writer.finish().await?)
    });
    let mut position = 0;
    while let Some(bytes) = reader.read_chunk(65_536).await? {
        for byte in bytes {
            if usize::from(byte) != position % 251 {
                return Err(format!("a wrong byte behind {position}").into());
            }
            position += 1;
        }
    }
    writing.await??;
    if position != messages * size {
        return Err(format!("{position} of {} bytes", messages * size).into());
    }
    Ok(())
}

async fn all(tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Eight writers of 200 000 bytes, one at a time.
async fn tiny(connection: &Connection) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        tasks.spawn(exchange(connection.clone(), 200_000, 1));
    }
    all(&mut tasks).await
}

/// 2 000 opens at once beside 60 MB.
async fn opens(connection: &Connection) -> Result<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(exchange(connection.clone(), 60, 1_000_000));
    for _ in 0..2000 {
        tasks.spawn(exchange(connection.clone(), 1, 100));
    }
    all(&mut tasks).await
}

/// 20 000 opens, each written to, finished and read, at a listener that is slow to accept.
async fn slow(connection: &Connection, count: usize) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        tasks.spawn(exchange(connection.clone(), 1, 100));
    }
    all(&mut tasks).await
}

#[tokio::main]
async fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|each| each == name);
    for (name, pause) in [("tiny", 0), ("opens", 0), ("slow", 1), ("slow", 5)] {
        if !runs(name) {
            continue;
        }
        for (carrier, ours, theirs, endpoints) in pairs().await? {
            serve(theirs.clone(), Duration::from_millis(pause));
            let began = Instant::now();
            match name {
                "tiny" => tiny(&ours).await?,
                "opens" => opens(&ours).await?,
                _ => slow(&ours, 20_000).await?,
            }
            let refused = theirs.stats().refused;
            println!(
                "{name} over a {carrier}, {pause} ms an accept: {:?}",
                began.elapsed()
            );
            if refused > 0 || theirs.close_reason().is_some() {
                return Err(format!("{refused} refused, {:?}", theirs.close_reason()).into());
            }
            ours.close().await;
            drop(endpoints);
        }
    }
    Ok(())
}
