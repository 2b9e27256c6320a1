//! libp2p-quic as a peer.

use std::io;
use std::process::ExitCode;

use anabranch_peer::run;
use libp2p_core::Transport;
use libp2p_core::muxing::StreamMuxerBox;
use libp2p_core::transport::Boxed;
use libp2p_identity::{Keypair, PeerId};
use libp2p_peers::{Kind, Libp2p};
use libp2p_quic::tokio;

struct Quic;

impl Kind for Quic {
    const NAME: &'static str = "quic-peer";
    const LISTEN: &'static str = "/ip4/127.0.0.1/udp/0/quic-v1";
    const ONE_SOCKET_EACH: bool = false;

    fn transport(keypair: Keypair) -> io::Result<Boxed<(PeerId, StreamMuxerBox)>> {
        // With the defaults: a limit above their 256 substreams costs memory for each of them
        // before any is open.
        let transport = tokio::Transport::new(libp2p_quic::Config::new(&keypair));
        Ok(transport
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
            .boxed())
    }
}

fn main() -> ExitCode {
    run::<Libp2p<Quic>>()
}
