//! libp2p-webrtc as a peer.

use std::io;
use std::process::ExitCode;

use anabranch_peer::run;
use libp2p_core::Transport;
use libp2p_core::muxing::StreamMuxerBox;
use libp2p_core::transport::Boxed;
use libp2p_identity::{Keypair, PeerId};
use libp2p_peers::{Kind, Libp2p};
use libp2p_webrtc::tokio::{self, Certificate};

/// Maximum length of a message that it can read; a longer one fails with "Short buffer". Its own
/// writes are longer, and several that wait for a flush become one message.
const MAX_MESSAGE: usize = 8192;

struct WebRtc;

impl Kind for WebRtc {
    const NAME: &'static str = "webrtc-peer";
    const LISTEN: &'static str = "/ip4/127.0.0.1/udp/0/webrtc-direct";
    const ONE_SOCKET_EACH: bool = true;

    fn max_unflushed() -> Option<usize> {
        let asked = std::env::var("WEBRTC_PEER_MAX_MESSAGE").ok();
        Some(asked.map_or(MAX_MESSAGE, |bytes| bytes.parse().expect("a number")))
    }

    fn transport(keypair: Keypair) -> io::Result<Boxed<(PeerId, StreamMuxerBox)>> {
        let certificate = Certificate::generate(&mut rand::rng()).map_err(io::Error::other)?;
        let transport = tokio::Transport::new(keypair, certificate);
        Ok(transport
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
            .boxed())
    }
}

fn main() -> ExitCode {
    // With two providers in a build and none installed, rustls panics in a task of libp2p-webrtc.
    let installed = rustls::crypto::ring::default_provider().install_default();
    if installed.is_err() {
        eprintln!("another provider of rustls was installed before");
    }
    run::<Libp2p<WebRtc>>()
}
