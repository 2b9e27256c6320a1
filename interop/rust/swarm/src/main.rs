//! One node of rust-libp2p that runs over each transport. The functions `over_*` are all that
//! differs: they are what a program changes.
//!
//! ```text
//! swarm-peer anabranch|libp2p-webrtc|quic listen         prints its address, serves until killed
//! swarm-peer anabranch|libp2p-webrtc|quic dial ADDRESS   pings, identifies, fetches; says so
//! swarm-peer anabranch|libp2p-webrtc|quic crowd COUNT    what a node costs that has COUNT peers
//! ```

mod crowd;

use std::error::Error;
use std::time::Duration;

use futures::StreamExt;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::identity::Keypair;
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, StreamProtocol, Swarm, SwarmBuilder, Transport, identify, ping};
use serde_bytes::ByteBuf;

type AnyError = Box<dyn Error + Send + Sync>;

const FETCHES: usize = 4;
const SIZE: usize = 8 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// Between pings, where they are what is tested.
const PING_OFTEN: Duration = Duration::from_millis(100);

/// Between pings, as a node has it.
const PING_IDLE: Duration = Duration::from_secs(15);

#[derive(NetworkBehaviour)]
struct Behaviour {
    ping: ping::Behaviour,
    identify: identify::Behaviour,
    /// The response has the length that the request names.
    fetch: request_response::cbor::Behaviour<u64, ByteBuf>,
}

fn behaviour(keypair: &Keypair, ping: Duration) -> Behaviour {
    let ping = ping::Config::new().with_interval(ping);
    let identify = identify::Config::new("/swarm-peer/1".to_owned(), keypair.public());
    let fetch = request_response::cbor::Behaviour::new(
        [(StreamProtocol::new("/fetch/1"), ProtocolSupport::Full)],
        request_response::Config::default().with_request_timeout(LIMIT),
    );
    Behaviour {
        ping: ping::Behaviour::new(ping),
        identify: identify::Behaviour::new(identify),
        fetch,
    }
}

fn over_anabranch(ping: Duration) -> Result<Swarm<Behaviour>, AnyError> {
    Ok(SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_other_transport(|keypair| Ok(anabranch_libp2p::Transport::new(keypair)?))?
        .with_behaviour(|keypair| behaviour(keypair, ping))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(10 * LIMIT))
        .build())
}

fn over_libp2p_webrtc(ping: Duration) -> Result<Swarm<Behaviour>, AnyError> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_other_transport(|keypair| {
            Ok(libp2p_webrtc::tokio::Transport::new(
                keypair.clone(),
                libp2p_webrtc::tokio::Certificate::generate(&mut rand::rng())?,
            )
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection))))
        })?
        .with_behaviour(|keypair| behaviour(keypair, ping))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(10 * LIMIT))
        .build())
}

#[cfg(feature = "quic")]
fn over_quic(ping: Duration) -> Result<Swarm<Behaviour>, AnyError> {
    Ok(SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|keypair| behaviour(keypair, ping))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(10 * LIMIT))
        .build())
}

fn over(transport: &str, ping: Duration) -> Result<Swarm<Behaviour>, AnyError> {
    match transport {
        "anabranch" => over_anabranch(ping),
        "libp2p-webrtc" => over_libp2p_webrtc(ping),
        #[cfg(feature = "quic")]
        "quic" => over_quic(ping),
        other => Err(format!("no transport {other}").into()),
    }
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [transport, command @ ..] = arguments.as_slice() else {
        return Err("a transport".into());
    };
    let ping = match command {
        ["serve"] => PING_IDLE,
        _ => PING_OFTEN,
    };
    if let ["crowd", count] = command {
        return crowd::crowd(transport, count.parse()?).await;
    }
    let mut swarm = over(transport, ping)?;
    // The dialler too: libp2p-webrtc can not dial without.
    let any = match *transport {
        "quic" => "/ip4/127.0.0.1/udp/0/quic-v1",
        _ => "/ip4/127.0.0.1/udp/0/webrtc-direct",
    };
    swarm.listen_on(any.parse()?)?;
    match command {
        ["listen" | "serve"] => listen(swarm).await,
        ["dial", address] => dial(swarm, address.parse()?).await,
        other => Err(format!("no command {other:?}").into()),
    }
}

fn content(length: usize) -> ByteBuf {
    ByteBuf::from((0..length).map(|i| (i % 251) as u8).collect::<Vec<u8>>())
}

async fn listen(mut swarm: Swarm<Behaviour>) -> Result<(), AnyError> {
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { address, .. } => {
                println!("{}/p2p/{}", address, swarm.local_peer_id());
            }
            SwarmEvent::Behaviour(BehaviourEvent::Fetch(request_response::Event::Message {
                message:
                    request_response::Message::Request {
                        request, channel, ..
                    },
                ..
            })) => {
                let response = content(usize::try_from(request)?);
                let fetch = &mut swarm.behaviour_mut().fetch;
                fetch
                    .send_response(channel, response)
                    .map_err(|_| "the peer has gone")?;
            }
            _ => {}
        }
    }
}

async fn dial(mut swarm: Swarm<Behaviour>, address: Multiaddr) -> Result<(), AnyError> {
    swarm.dial(address)?;
    let (mut is_connected, mut pings, mut fetched, mut agent) = (false, 0, 0, None);
    // Of both directions: libp2p-webrtc resets a stream whose sender still closes it.
    let mut identify_errors = Vec::new();
    let end = tokio::time::sleep(LIMIT);
    let mut end = std::pin::pin!(end);
    while pings < 3 || fetched < FETCHES || agent.is_none() {
        let event = tokio::select! {
            event = swarm.select_next_some() => event,
            () = &mut end => {
                return Err(format!(
                    "no end within {LIMIT:?}: connected: {is_connected}, {pings} pings, \
                     {fetched} fetches, identified: {}, {identify_errors:?}",
                    agent.is_some()
                )
                .into());
            }
        };
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                is_connected = true;
                for _ in 0..FETCHES {
                    let fetch = &mut swarm.behaviour_mut().fetch;
                    fetch.send_request(&peer_id, SIZE as u64);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => {
                event.result?;
                pings += 1;
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                info,
                ..
            })) => agent = Some(info.protocol_version),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Error {
                error,
                ..
            })) => identify_errors.push(error),
            SwarmEvent::Behaviour(BehaviourEvent::Fetch(event)) => match event {
                request_response::Event::Message {
                    message: request_response::Message::Response { response, .. },
                    ..
                } => {
                    if response != content(SIZE) {
                        return Err("other bytes".into());
                    }
                    fetched += 1;
                }
                request_response::Event::OutboundFailure { error, .. } => return Err(error.into()),
                _ => {}
            },
            SwarmEvent::ConnectionClosed { cause, .. } => {
                return Err(format!("closed: {cause:?}").into());
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
            _ => {}
        }
    }
    println!(
        "{pings} pings, {fetched} fetches of {SIZE} bytes, {}",
        agent.unwrap_or_default()
    );
    Ok(())
}
