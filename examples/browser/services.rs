//! What the page can open: an echo, a source that sends as fast as it may, a sink, transfers that
//! can be resumed, records at a fixed rate, and the end of its own path.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anabranch::{Connection, Endpoint, Substream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::gate::Cut;
use crate::relay::Relay;
use crate::transfers::Uploads;
use crate::{records, transfers};

const ECHO: &str = "/echo";
/// Reads a length of 8 bytes, and sends as many bytes.
const SOURCE: &str = "/source";
/// Reads to the end, and answers with the number of bytes, 8 of them.
const SINK: &str = "/sink";
/// Cuts the path of its own connection without a word. Reset if that is a direct one.
const CUT: &str = "/cut";

pub(crate) const PROTOCOLS: [&str; 7] = [
    ECHO,
    SOURCE,
    SINK,
    CUT,
    transfers::DOWNLOAD,
    transfers::UPLOAD,
    records::PROTOCOL,
];

/// The code of the reset of `/cut` on a path that can not be cut.
const NOT_CUT: u32 = 1;

/// What a source sends at once. The credit of the page decides when.
const CHUNK: usize = 64 * 1024;

/// What all connections share.
pub(crate) struct Services {
    pub(crate) endpoint: Endpoint,
    /// A relay that only can be cut, and one that loses packets as well.
    pub(crate) relays: [Relay; 2],
    uploads: Uploads,
    epoch: Instant,
}

/// By what a page has connected.
pub(crate) enum Carrier {
    WebRtc,
    WebSocket(Cut),
}

impl Services {
    pub(crate) fn new(endpoint: Endpoint, relays: [Relay; 2]) -> Self {
        Self {
            endpoint,
            relays,
            uploads: Uploads::default(),
            epoch: Instant::now(),
        }
    }

    /// Serves the pages that connect by WebRTC, until the endpoint accepts no more.
    pub(crate) async fn accept(self: Arc<Self>) {
        while let Some(incoming) = self.endpoint.accept().await {
            let services = Arc::clone(&self);
            tokio::spawn(async move {
                let from = incoming.remote_address();
                match incoming.await {
                    Ok(connection) => services.serve(connection, Carrier::WebRtc).await,
                    Err(error) => eprintln!("{from}: {error}"),
                }
            });
        }
    }

    /// Serves a page until its connection ends.
    pub(crate) async fn serve(self: Arc<Self>, connection: Connection, carrier: Carrier) {
        let id = connection.id();
        let name = match carrier {
            Carrier::WebRtc => "WebRTC",
            Carrier::WebSocket(_) => "WebSocket",
        };
        println!("connection {id}: {name}");
        let carrier = Arc::new(carrier);
        while let Ok(Some(substream)) = connection.accept().await {
            let (services, carrier) = (Arc::clone(&self), Arc::clone(&carrier));
            let connection = connection.clone();
            tokio::spawn(async move {
                // A page that stops, resets or goes away is no fault of this side.
                if let Err(error) = services.respond(substream, &carrier, &connection).await
                    && error.kind() == io::ErrorKind::InvalidData
                {
                    eprintln!("connection {id}: {error}");
                }
            });
        }
        println!("connection {id}: {}", connection.closed().await);
    }

    async fn respond(
        &self,
        mut substream: Substream,
        carrier: &Carrier,
        connection: &Connection,
    ) -> io::Result<()> {
        match substream.protocol() {
            Some(SOURCE) => {
                let length = substream.read_u64().await?;
                send(&mut substream, length).await?;
            }
            Some(SINK) => {
                let received = tokio::io::copy(&mut substream, &mut tokio::io::sink()).await?;
                substream.write_u64(received).await?;
            }
            Some(CUT) => {
                if !self.cut(carrier, connection.remote_address()) {
                    substream.reset(NOT_CUT);
                }
                return Ok(());
            }
            Some(transfers::DOWNLOAD) => return transfers::download(substream).await,
            Some(transfers::UPLOAD) => return self.uploads.receive(substream).await,
            Some(records::PROTOCOL) => return records::serve(substream, self.epoch).await,
            // The endpoint accepts no name beside those of `PROTOCOLS`.
            _ => {
                let (read, write) = substream.split();
                tokio::io::copy(read, write).await?;
            }
        }
        substream.finish().await?;
        Ok(())
    }

    /// Returns whether the path could be cut.
    fn cut(&self, carrier: &Carrier, remote: Option<SocketAddr>) -> bool {
        match carrier {
            Carrier::WebSocket(cut) => {
                cut.cut();
                true
            }
            Carrier::WebRtc => {
                remote.is_some_and(|remote| self.relays.iter().any(|relay| relay.cut(remote)))
            }
        }
    }
}

async fn send(substream: &mut Substream, length: u64) -> io::Result<()> {
    // Shared by all writes: the bytes are not copied before they are framed.
    let chunk: bytes::Bytes = (0..CHUNK).map(|i| (i % 251) as u8).collect();
    let mut left = length;
    while left > 0 {
        let size = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        substream.write_chunk(chunk.slice(..size)).await?;
        left -= size as u64;
    }
    Ok(())
}
