//! A peer to test and measure any other peer against: the program of `crates/peer` on anabranch.
//!
//! ```text
//! cargo build --release --example peer
//! target/release/examples/peer listen
//! target/release/examples/peer dial MULTIADDR --up 64m --down 64m --streams 4
//! ```
//!
//! `listen` prints one line of JSON with its address; `dial` prints one line of JSON for each
//! repeat. Everything else goes to stderr. `peer --help` lists the options, and
//! `anabranch_peer::serve` describes the protocols. `RUST_LOG=debug` logs what anabranch does.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anabranch::{
    Address, Config, Endpoint, EndpointConfig, FinishError, ReadHalf, WebRtcDirectVersion,
    WriteHalf,
};
use anabranch_peer::serve::{self, PROTOCOLS, Records};
use anabranch_peer::{
    Chunk, Connection, Finished, Flag, Reader, Settings, Stack, Substream, Writer,
};
use futures_util::FutureExt;

/// Code of the reset of a responder that fails, for example because of wrong content.
const FAILED: u32 = 0xbad;

/// Substreams that a peer may hold open, for `--idle-streams`.
const MAX_SUBSTREAMS: usize = 20_000;

/// How long `--nofin` waits for the FIN_ACK of peers that may not support it.
const NOFIN_ACK: Duration = Duration::from_secs(1);

const VERSION_2: &str = "--v2";

/// anabranch, ready to dial.
struct Anabranch {
    endpoint: Endpoint,
    version: WebRtcDirectVersion,
    nofin: bool,
}

/// Settings of both the listener and the dialler: either side may open substreams.
fn config() -> Config {
    let mut config = Config::default();
    config.max_inbound_substreams = MAX_SUBSTREAMS;
    config.protocols = PROTOCOLS.map(str::to_owned).to_vec();
    config
}

/// Settings of the endpoints of both sides, with the engine of the environment.
fn endpoint_config() -> io::Result<EndpointConfig> {
    let mut config = EndpointConfig::default();
    config.engine = anabranch_str0m::from_env().map_err(io::Error::other)?;
    Ok(config)
}

impl Stack for Anabranch {
    const NAME: &'static str = "peer";
    const LISTEN: &'static str = "/ip4/127.0.0.1/udp/0/webrtc-direct";
    const FLAGS: &'static [Flag] = &[Flag {
        name: VERSION_2,
        help: "webrtc-direct v2",
    }];
    const HELP: &'static str = "
ANABRANCH_ENGINE in the environment selects the engine: direct or str0m.";

    type Address = Address;
    type Connection = Dialled;

    async fn listen(addresses: &[Address]) -> io::Result<Vec<String>> {
        let addresses: Vec<SocketAddr> = addresses.iter().map(Address::socket_addr).collect();
        let endpoint = Endpoint::builder()
            .config(config())
            .endpoint_config(endpoint_config()?)
            .bind(&addresses[..])
            .await
            .map_err(io::Error::other)?;
        let all = endpoint.addresses();
        tokio::spawn(accept(endpoint));
        Ok(all.iter().map(ToString::to_string).collect())
    }

    async fn dialler(settings: &Settings) -> io::Result<Self> {
        let mut config = config();
        if settings.nofin {
            config.fin_ack_timeout = NOFIN_ACK;
        }
        let endpoint = Endpoint::builder()
            .config(config)
            .endpoint_config(endpoint_config()?)
            .dial_only()
            .map_err(io::Error::other)?;
        let version = match settings.flags.contains(&VERSION_2) {
            true => WebRtcDirectVersion::V2,
            false => WebRtcDirectVersion::V1,
        };
        Ok(Self {
            endpoint,
            version,
            nofin: settings.nofin,
        })
    }

    async fn dial(&self, address: &Address) -> io::Result<Dialled> {
        let connecting = self.endpoint.connect_with(address, self.version);
        let connection = connecting.await.map_err(io::Error::other)?;
        // Foreign peers open substreams as well, for example for ping.
        tokio::spawn(respond_to_all(connection.clone()));
        Ok(Dialled {
            connection,
            nofin: self.nofin,
        })
    }

    async fn close(&self) {
        self.endpoint.close().await;
    }
}

/// Accepts connections and answers the substreams that their peers open.
async fn accept(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        // A task each: a peer with a slow handshake delays nobody else.
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            match incoming.accept().await {
                Ok(connection) => respond_to_all(connection).await,
                Err(error) => tracing::warn!(%remote, %error, "handshake failed"),
            }
        });
    }
}

/// Answers the substreams that the peer of a connection opens, until the connection ends.
async fn respond_to_all(connection: anabranch::Connection) {
    let records = Arc::<Records>::default();
    loop {
        match connection.accept().await {
            Ok(Some(substream)) => {
                let protocol = substream.protocol().unwrap_or_default().to_owned();
                let substream = Halves::of(substream, false);
                let responding = serve::respond(protocol, substream, Arc::clone(&records));
                tokio::spawn(responding.map(|done| match done {
                    Ok(()) => tracing::debug!("substream done"),
                    Err(error) => tracing::warn!(%error, "substream failed"),
                }));
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "connection failed");
                return;
            }
        }
    }
}

/// A connection that was dialled.
struct Dialled {
    connection: anabranch::Connection,
    nofin: bool,
}

impl Connection for Dialled {
    type Substream = Halves;

    async fn open(&self, protocol: &'static str) -> io::Result<Halves> {
        let opening = self.connection.open(protocol);
        let substream = opening.await.map_err(io::Error::other)?;
        Ok(Halves::of(substream, self.nofin))
    }

    async fn close(&self) -> io::Result<()> {
        if let Some(cause) = self.connection.close_reason() {
            return Err(io::Error::other(format!("ended too early: {cause}")));
        }
        self.connection.close().await;
        match self.connection.close_reason() {
            Some(cause) if !cause.is_orderly() => Err(io::Error::other(cause)),
            _ => Ok(()),
        }
    }
}

/// The halves of a substream.
struct Halves {
    read: ReadHalf,
    write: WriteHalf,
    nofin: bool,
}

impl Halves {
    fn of(substream: anabranch::Substream, nofin: bool) -> Self {
        let (read, write) = substream.into_split();
        Self { read, write, nofin }
    }
}

impl Substream for Halves {
    type Reader = ReadEnd;
    type Writer = WriteEnd;

    fn into_split(self) -> (ReadEnd, WriteEnd) {
        let Self { read, write, nofin } = self;
        (ReadEnd(read), WriteEnd { write, nofin })
    }

    fn reset(_: ReadEnd, writer: WriteEnd) {
        writer.write.reset(FAILED);
    }
}

struct ReadEnd(ReadHalf);

impl Reader for ReadEnd {
    async fn read(&mut self, max: usize) -> io::Result<Chunk<'_>> {
        let chunk = self.0.read_chunk(max).await?;
        Ok(Chunk::Shared(chunk.unwrap_or_default()))
    }

    fn unread(&self) -> Option<u64> {
        Some(self.0.unread() as u64)
    }
}

struct WriteEnd {
    write: WriteHalf,
    nofin: bool,
}

impl Writer for WriteEnd {
    async fn write(&mut self, chunk: Chunk<'_>) -> io::Result<()> {
        self.write.write_chunk(chunk.into_bytes()).await
    }

    /// Whatever is written is on its way.
    async fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Peers for which there is `--nofin` end a stream in their own ways, after the protocol has
    /// confirmed all bytes.
    async fn finish(&mut self) -> io::Result<Finished> {
        match self.write.finish().await {
            Ok(anabranch::Finished::Acked) => Ok(Finished::Confirmed),
            Err(FinishError::TimedOut | FinishError::Stopped(_) | FinishError::ChannelClosed)
                if self.nofin =>
            {
                Ok(Finished::Sent)
            }
            Ok(outcome) => Err(io::Error::other(format!("{outcome:?} without FIN_ACK"))),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// A drop delivers what was written and the FIN.
    async fn close(self) -> io::Result<()> {
        Ok(())
    }
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(io::stderr)
        .init();
    anabranch_peer::run::<Anabranch>()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// The content of the program.
    fn content(length: u64) -> Vec<u8> {
        (0..length).map(|i| (i % 251) as u8).collect()
    }

    /// Sends `content` and the end, and returns the length of the answer.
    async fn answer(
        connection: &anabranch::Connection,
        protocol: &str,
        content: &[u8],
    ) -> io::Result<usize> {
        let mut substream = connection.open(protocol).await.unwrap();
        substream.write_u64(1000).await?;
        substream.write_u64(10).await?;
        substream.write_all(content).await?;
        substream.finish().await?;
        let mut answer = Vec::new();
        substream.read_to_end(&mut answer).await
    }

    #[tokio::test]
    async fn wrong_content_is_answered_with_a_reset() {
        let any = Anabranch::LISTEN.parse().unwrap();
        let addresses = Anabranch::listen(&[any]).await.unwrap();
        let dialler = Endpoint::builder().dial_only().unwrap();
        let address = addresses[0].parse().unwrap();
        let connection = dialler.connect(&address).await.unwrap();

        let right = content(1000);
        let mut wrong = right.clone();
        wrong[999] ^= 1;
        let bench = "/bench/1.0.0";
        let nofin = "/bench-nofin/1.0.0";
        let stall = "/stall/1.0.0";
        assert_eq!(answer(&connection, bench, &right).await.unwrap(), 10);
        assert_eq!(answer(&connection, stall, &right).await.unwrap(), 1 + 8);
        for protocol in [bench, stall, nofin] {
            for content in [&wrong[..], &right[..999], &content(1001)] {
                if protocol == nofin && content.len() > 1000 {
                    // The additional byte is part of this protocol.
                    continue;
                }
                let error = answer(&connection, protocol, content).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{protocol}");
            }
        }
        connection.close().await;
    }
}
