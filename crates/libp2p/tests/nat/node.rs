//! A node of rust-libp2p as a process: it reads commands from standard input, a line each, and
//! prints what happens.

use std::error::Error;
use std::time::Duration;

use anabranch_libp2p::{Config, Transport, WithCerthash};
use futures::StreamExt;
use libp2p_autonat::v2 as autonat;
use libp2p_core::Transport as _;
use libp2p_core::multiaddr::Multiaddr;
use libp2p_core::muxing::StreamMuxerBox;
use libp2p_core::transport::OrTransport;
use libp2p_core::upgrade::Version;
use libp2p_dcutr as dcutr;
use libp2p_identify as identify;
use libp2p_identity::{Keypair, PeerId};
use libp2p_kad as kad;
use libp2p_relay as relay;
use libp2p_request_response as request_response;
use libp2p_swarm::behaviour::toggle::Toggle;
use libp2p_swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p_swarm::{ConnectionId, NetworkBehaviour, StreamProtocol, Swarm, SwarmEvent};
use serde_bytes::ByteBuf;
use tokio::io::{AsyncBufReadExt, BufReader};

type AnyError = Box<dyn Error + Send + Sync>;

/// Longer than any test.
const IDLE: Duration = Duration::from_secs(300);

/// So that a dial that can not succeed ends within a test.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Spoken by a node once it has an external address.
const KAD: StreamProtocol = StreamProtocol::new("/nat/kad/1.0.0");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Relay,
    Client,
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Behaviour {
    identify: WithCerthash<identify::Behaviour>,
    relay: Toggle<relay::Behaviour>,
    autonat_server: Toggle<autonat::server::Behaviour>,
    relay_client: relay::client::Behaviour,
    autonat_client: Toggle<autonat::client::Behaviour>,
    dcutr: Toggle<dcutr::Behaviour>,
    kad: kad::Behaviour<kad::store::MemoryStore>,
    /// The response has the length that the request names.
    fetch: request_response::cbor::Behaviour<u64, ByteBuf>,
}

fn swarm(role: Role) -> Result<Swarm<Behaviour>, AnyError> {
    let keypair = Keypair::generate_ed25519();
    let peer = keypair.public().to_peer_id();
    let mut endpoint = anabranch::EndpointConfig::default();
    endpoint.connect_timeout = CONNECT_TIMEOUT;
    let config = Config::new(&keypair)?.with_endpoint_config(endpoint);
    let direct = Transport::with_config(config);
    let (relayed, relay_client) = relay::client::new(peer);
    let relayed = relayed
        .upgrade(Version::V1Lazy)
        .authenticate(libp2p_noise::Config::new(&keypair)?)
        .multiplex(libp2p_yamux::Config::default());
    let transport = OrTransport::new(
        relayed.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))),
        direct.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))),
    )
    .map(|either, _| either.into_inner())
    .boxed();

    let identify = identify::Config::new("/nat/1.0.0".to_owned(), keypair.public())
        // What a peer announces is read again soon after it has changed.
        .with_interval(Duration::from_millis(500));
    let protocol = StreamProtocol::new("/fetch/1.0.0");
    let is_relay = role == Role::Relay;
    let mut kad = kad::Behaviour::with_config(
        peer,
        kad::store::MemoryStore::new(peer),
        kad::Config::new(KAD),
    );
    if is_relay {
        kad.set_mode(Some(kad::Mode::Server));
    }
    let relay = relay::Config {
        // For many dials from one address, by nodes that end without a word.
        reservation_rate_limiters: Vec::new(),
        circuit_src_rate_limiters: Vec::new(),
        max_circuits: 100,
        max_circuits_per_peer: 100,
        ..relay::Config::default()
    };
    let behaviour = Behaviour {
        identify: WithCerthash::new(identify::Behaviour::new(identify)),
        relay: is_relay.then(|| relay::Behaviour::new(peer, relay)).into(),
        autonat_server: is_relay.then(autonat::server::Behaviour::default).into(),
        relay_client,
        autonat_client: (!is_relay).then(autonat::client::Behaviour::default).into(),
        dcutr: (!is_relay).then(|| dcutr::Behaviour::new(peer)).into(),
        kad,
        fetch: request_response::cbor::Behaviour::new(
            [(protocol, request_response::ProtocolSupport::Full)],
            request_response::Config::default().with_request_timeout(IDLE),
        ),
    };
    let config = libp2p_swarm::Config::with_tokio_executor().with_idle_connection_timeout(IDLE);
    Ok(Swarm::new(transport, behaviour, peer, config))
}

fn content(length: usize) -> ByteBuf {
    ByteBuf::from((0..length).map(|i| (i % 251) as u8).collect::<Vec<u8>>())
}

fn kind(is_relayed: bool) -> &'static str {
    match is_relayed {
        true => "relayed",
        false => "direct",
    }
}

struct Node {
    swarm: Swarm<Behaviour>,
    role: Role,
    relayed: Vec<ConnectionId>,
}

/// Runs until standard input ends.
pub(crate) fn run(role: Role) -> Result<(), AnyError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut node = Node {
            swarm: swarm(role)?,
            role,
            relayed: Vec::new(),
        };
        // The harness of tests has begun a line.
        println!("\npeer {}", node.swarm.local_peer_id());
        let mut commands = BufReader::new(tokio::io::stdin()).lines();
        loop {
            tokio::select! {
                command = commands.next_line() => match command? {
                    Some(command) => node.obey(&command)?,
                    None => return Ok(()),
                },
                event = node.swarm.select_next_some() => node.report(event)?,
            }
        }
    })
}

impl Node {
    fn obey(&mut self, command: &str) -> Result<(), AnyError> {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["listen", address] => {
                self.swarm.listen_on(address.parse()?)?;
            }
            ["dial", address] => self.swarm.dial(address.parse::<Multiaddr>()?)?,
            ["dial", peer, addresses @ ..] => {
                let addresses = addresses.iter().map(|address| address.parse());
                let dial = DialOpts::peer_id(peer.parse()?)
                    .condition(PeerCondition::Always)
                    .addresses(addresses.collect::<Result<_, _>>()?);
                self.swarm.dial(dial.build())?;
            }
            ["find", peer] => {
                let peer: PeerId = peer.parse()?;
                self.swarm.behaviour_mut().kad.get_closest_peers(peer);
            }
            ["close-relayed"] => {
                for id in self.relayed.drain(..) {
                    self.swarm.close_connection(id);
                }
            }
            ["fetch", peer, length] => {
                let fetch = &mut self.swarm.behaviour_mut().fetch;
                fetch.send_request(&peer.parse()?, length.parse()?);
            }
            other => return Err(format!("no command {other:?}").into()),
        }
        Ok(())
    }

    fn report(&mut self, event: SwarmEvent<BehaviourEvent>) -> Result<(), AnyError> {
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                println!("listens at {address}");
                if self.role == Role::Relay {
                    self.swarm.add_external_address(address);
                }
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => println!("expired {address}"),
            SwarmEvent::NewExternalAddrCandidate { address } => println!("candidate {address}"),
            SwarmEvent::ExternalAddrConfirmed { address } => println!("external {address}"),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                if endpoint.is_relayed() {
                    self.relayed.push(connection_id);
                }
                let kind = kind(endpoint.is_relayed());
                let remote = endpoint.get_remote_address();
                println!("connected {peer_id} {kind} {remote}");
            }
            SwarmEvent::ConnectionClosed {
                peer_id, endpoint, ..
            } => println!("closed {peer_id} {}", kind(endpoint.is_relayed())),
            SwarmEvent::OutgoingConnectionError { error, .. } => println!("no connection: {error}"),
            SwarmEvent::Behaviour(event) => self.report_behaviour(event)?,
            _ => {}
        }
        Ok(())
    }

    fn report_behaviour(&mut self, event: BehaviourEvent) -> Result<(), AnyError> {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                println!("identified {peer_id}, observed at {}", info.observed_addr);
                // Others are no part of its routing table.
                let is_server = info.protocols.contains(&KAD);
                for address in info.listen_addrs.into_iter().filter(|_| is_server) {
                    println!("stored {peer_id} {address}");
                    self.swarm
                        .behaviour_mut()
                        .kad
                        .add_address(&peer_id, address);
                }
            }
            BehaviourEvent::RelayClient(relay::client::Event::ReservationReqAccepted {
                ..
            }) => {
                println!("reserved");
            }
            BehaviourEvent::AutonatClient(event) => match event.result {
                Ok(()) => println!("reachable {}", event.tested_addr),
                Err(error) => println!("unreachable {}: {error}", event.tested_addr),
            },
            BehaviourEvent::Dcutr(event) => match event.result {
                Ok(_) => println!("upgraded {}", event.remote_peer_id),
                Err(error) => println!("not upgraded {}: {error}", event.remote_peer_id),
            },
            BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                result: kad::QueryResult::GetClosestPeers(found),
                ..
            }) => {
                for peer in found?.peers {
                    let addresses: Vec<String> =
                        peer.addrs.iter().map(Multiaddr::to_string).collect();
                    println!("found {} {}", peer.peer_id, addresses.join(" "));
                }
                println!("found all");
            }
            BehaviourEvent::Fetch(event) => self.report_fetch(event)?,
            _ => {}
        }
        Ok(())
    }

    fn report_fetch(
        &mut self,
        event: request_response::Event<u64, ByteBuf>,
    ) -> Result<(), AnyError> {
        match event {
            request_response::Event::Message {
                message:
                    request_response::Message::Request {
                        request, channel, ..
                    },
                ..
            } => {
                let response = content(usize::try_from(request)?);
                let fetch = &mut self.swarm.behaviour_mut().fetch;
                if fetch.send_response(channel, response).is_err() {
                    println!("nobody waits for the response");
                }
            }
            request_response::Event::Message {
                message: request_response::Message::Response { response, .. },
                ..
            } => match response == content(response.len()) {
                true => println!("fetched {}", response.len()),
                false => println!("other bytes"),
            },
            request_response::Event::OutboundFailure { error, .. } => {
                println!("not fetched: {error}");
            }
            _ => {}
        }
        Ok(())
    }
}
