//! litep2p as a listening peer: over WebRTC it cannot dial.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anabranch_peer::serve::{self, PROTOCOLS, Records};
use anabranch_peer::{Connection, IoSubstream, Settings, Stack};
use futures::StreamExt;
use litep2p::codec::ProtocolCodec;
use litep2p::config::ConfigBuilder;
use litep2p::protocol::{TransportEvent, TransportService, UserProtocol};
use litep2p::transport::webrtc::config::Config;
use litep2p::types::multiaddr::Multiaddr;
use litep2p::types::protocol::ProtocolName;
use litep2p::{Litep2p, PeerId};
use tokio_util::compat::TokioAsyncReadCompatExt;

/// litep2p closes a connection without substreams after this time; tests have idle ones.
const KEEP_ALIVE: Duration = Duration::from_secs(600);

/// The records of each peer's connection, shared by all protocols.
type AllRecords = Arc<Mutex<HashMap<PeerId, Arc<Records>>>>;

/// The responder of one of [`PROTOCOLS`].
struct Responder {
    protocol: &'static str,
    records: AllRecords,
}

#[async_trait::async_trait]
impl UserProtocol for Responder {
    fn protocol(&self) -> ProtocolName {
        ProtocolName::from(self.protocol)
    }

    /// Bare bytes.
    fn codec(&self) -> ProtocolCodec {
        ProtocolCodec::Unspecified
    }

    async fn run(self: Box<Self>, mut service: TransportService) -> litep2p::Result<()> {
        while let Some(event) = service.next().await {
            if let TransportEvent::SubstreamOpened {
                peer, substream, ..
            } = event
            {
                let records = {
                    let mut all = self.records.lock().unwrap_or_else(PoisonError::into_inner);
                    Arc::clone(all.entry(peer).or_default())
                };
                let protocol = self.protocol.to_owned();
                let substream = IoSubstream::new(substream.compat());
                tokio::spawn(async move {
                    if let Err(error) = serve::respond(protocol, substream, records).await {
                        eprintln!("responder: {error}");
                    }
                });
            }
        }
        Ok(())
    }
}

struct Listener;

impl Stack for Listener {
    const NAME: &'static str = "litep2p-peer";
    const LISTEN: &'static str = "/ip4/127.0.0.1/udp/0/webrtc-direct";

    type Address = Multiaddr;
    type Connection = NoConnection;

    async fn listen(addresses: &[Multiaddr]) -> io::Result<Vec<String>> {
        let webrtc = Config {
            listen_addresses: addresses.to_vec(),
            ..Config::default()
        };
        let records = AllRecords::default();
        let mut config = ConfigBuilder::new()
            .with_webrtc(webrtc)
            .with_keep_alive_timeout(KEEP_ALIVE);
        for protocol in PROTOCOLS {
            config = config.with_user_protocol(Box::new(Responder {
                protocol,
                records: Arc::clone(&records),
            }));
        }
        let mut litep2p = Litep2p::new(config.build()).map_err(io::Error::other)?;
        let addresses = litep2p.listen_addresses().map(ToString::to_string);
        let addresses = addresses.collect();
        tokio::spawn(async move { while litep2p.next_event().await.is_some() {} });
        Ok(addresses)
    }

    async fn dialler(_: &Settings) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn dial(&self, _: &Multiaddr) -> io::Result<NoConnection> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The connection of a stack that cannot dial.
enum NoConnection {}

impl Connection for NoConnection {
    type Substream = IoSubstream;

    async fn open(&self, _: &'static str) -> io::Result<IoSubstream> {
        match *self {}
    }

    async fn close(&self) -> io::Result<()> {
        match *self {}
    }
}

fn main() -> ExitCode {
    anabranch_peer::run::<Listener>()
}
