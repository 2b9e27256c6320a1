//! litep2p as a listening peer; over WebRTC it can not dial.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foreign_peer::serve::{self, PROTOCOLS, Records};
use foreign_peer::{Connection, Stack};
use futures::StreamExt;
use futures::future::BoxFuture;
use litep2p::codec::ProtocolCodec;
use litep2p::config::ConfigBuilder;
use litep2p::protocol::{TransportEvent, TransportService, UserProtocol};
use litep2p::transport::webrtc::config::Config;
use litep2p::types::protocol::ProtocolName;
use litep2p::{Litep2p, PeerId};
use tokio_util::compat::TokioAsyncReadCompatExt;

/// litep2p closes a connection that has no substream for so long; tests look at idle ones.
const KEEP_ALIVE: Duration = Duration::from_secs(600);

/// What the substreams of each peer have found out, shared by all protocols.
type AllRecords = Arc<Mutex<HashMap<PeerId, Arc<Records>>>>;

/// One of [`PROTOCOLS`].
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
                tokio::spawn(async move {
                    let stream = Box::new(substream.compat());
                    serve::respond(protocol, stream, &records).await;
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

    async fn listen(address: &str) -> io::Result<String> {
        let webrtc = Config {
            listen_addresses: vec![address.parse().map_err(io::Error::other)?],
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
        let address = litep2p
            .listen_addresses()
            .next()
            .ok_or_else(|| io::Error::other("litep2p listens nowhere"))?
            .to_string();
        tokio::spawn(async move { while litep2p.next_event().await.is_some() {} });
        Ok(address)
    }

    async fn dialler() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn dial(&self, _: &str) -> BoxFuture<'_, io::Result<Box<dyn Connection>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
}

fn main() -> ExitCode {
    foreign_peer::run::<Listener>()
}
