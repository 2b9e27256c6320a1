//! A listener of QMux over WebSocket, for browser pages that measure it.
//!
//! Prints `{"listen":"ws://…"}` and runs until it is killed. On each bidirectional stream it reads
//! a header, the length of the upload and of the download as 64-bit numbers in network byte order,
//! then the upload until its end, and sends the download.

use std::error::Error;
use std::net::Ipv4Addr;
use std::sync::LazyLock;

use qmux::Session;
use tokio::net::{TcpListener, TcpStream};
use web_transport_trait::{RecvStream, SendStream, Session as _};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Bytes of a header.
const HEADER: usize = 16;

/// A download is this again and again: the byte at `offset` is `offset % 251`.
static PIECE: LazyLock<Vec<u8>> = LazyLock::new(|| (0..=250).cycle().take(251 * 256).collect());

#[tokio::main]
async fn main() -> Outcome<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!(r#"{{"listen":"ws://{}"}}"#, listener.local_addr()?);
    loop {
        let (socket, _) = listener.accept().await?;
        tokio::spawn(async move { reported("session", serve(socket).await) });
    }
}

fn reported(what: &str, outcome: Outcome<()>) {
    if let Err(error) = outcome {
        eprintln!("{what}: {error}");
    }
}

async fn serve(socket: TcpStream) -> Outcome<()> {
    socket.set_nodelay(true)?;
    let session: Session = qmux::ws::Server::new().accept(socket).await?;
    // A session that its page closes ends this loop.
    while let Ok((send, recv)) = session.accept_bi().await {
        tokio::spawn(async move { reported("stream", answer(send, recv).await) });
    }
    Ok(())
}

async fn answer(mut send: impl SendStream, mut recv: impl RecvStream) -> Outcome<()> {
    let mut header = Vec::new();
    let mut uploaded = 0;
    while let Some(chunk) = recv.read_chunk(PIECE.len()).await? {
        let rest = HEADER.saturating_sub(header.len()).min(chunk.len());
        header.extend_from_slice(&chunk[..rest]);
        uploaded += chunk.len() - rest;
    }
    let [upload, download] = lengths(&header)?;
    if uploaded as u64 != upload {
        return Err(format!("{uploaded} bytes of {upload}").into());
    }
    let mut left = download;
    while left > 0 {
        let length = left.min(PIECE.len() as u64);
        send.write_all(&PIECE[..length as usize]).await?;
        left -= length;
    }
    send.finish()?;
    Ok(())
}

fn lengths(header: &[u8]) -> Outcome<[u64; 2]> {
    let (upload, rest) = header.split_first_chunk().ok_or("no header")?;
    let (download, _) = rest.split_first_chunk().ok_or("half a header")?;
    Ok([u64::from_be_bytes(*upload), u64::from_be_bytes(*download)])
}
