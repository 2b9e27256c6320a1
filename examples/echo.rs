//! The smallest working program: a listener and a dialler in one process, and the echo of one line.
//!
//! ```text
//! cargo run --example echo
//! ```

use anabranch::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = Endpoint::builder()
        .protocol("/echo/1.0.0")
        .bind("127.0.0.1:0")
        .await?;
    let address = listener.addresses().remove(0);
    println!("listening on {address}");
    tokio::spawn(async move {
        let incoming = listener.accept().await.ok_or("the listener was closed")?;
        let connection = incoming.accept().await?;
        while let Some(mut substream) = connection.accept().await? {
            let (reader, writer) = substream.split();
            tokio::io::copy(reader, writer).await?;
            substream.finish().await?;
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    });

    let dialler = Endpoint::builder().dial_only()?;
    let connection = dialler.connect(&address).await?;
    let mut substream = connection.open("/echo/1.0.0").await?;
    substream.write_all(b"Hello over a data channel!").await?;
    let outcome = substream.finish().await?; // FIN and FIN_ACK: the peer has every byte.
    let mut answer = String::new();
    substream.read_to_string(&mut answer).await?;
    println!("{answer} ({outcome:?})");
    connection.close().await;
    Ok(())
}
