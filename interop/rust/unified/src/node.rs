//! A swarm over each of the stacks, and the address of a listener.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, Swarm, SwarmBuilder};

use crate::{AnyError, Environment, Stack};

/// Longer than any pause of a measurement.
const IDLE: Duration = Duration::from_secs(600);

/// A node over the stack of the environment. A listener listens, and so does a dialler of
/// libp2p-webrtc, which can not dial without.
///
/// # Errors
/// The stack is not in this build, or can not be set up.
pub async fn node<B: NetworkBehaviour>(
    environment: &Environment,
    behaviour: impl FnOnce(&Keypair) -> B,
) -> Result<Swarm<B>, AnyError> {
    let builder = SwarmBuilder::with_new_identity().with_tokio();
    macro_rules! over {
        ($transport:expr) => {
            $transport
                .with_behaviour(behaviour)?
                .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE))
                .build()
        };
    }
    let mut swarm = match environment.stack {
        Stack::Anabranch(version) => over!(builder.with_other_transport(|keypair| {
            let config = anabranch_libp2p::Config::new(keypair)?.with_version(version);
            Ok(anabranch_libp2p::Transport::with_config(config))
        })?),
        #[cfg(feature = "libp2p-webrtc")]
        Stack::Libp2pWebrtc => {
            use libp2p::Transport;
            use libp2p::core::muxing::StreamMuxerBox;
            let _ = rustls::crypto::ring::default_provider().install_default();
            over!(builder.with_other_transport(|keypair| {
                let certificate = libp2p_webrtc::tokio::Certificate::generate(&mut rand::rng())?;
                let transport = libp2p_webrtc::tokio::Transport::new(keypair.clone(), certificate);
                Ok(transport.map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection))))
            })?)
        }
        #[cfg(feature = "quic")]
        Stack::Quic => over!(builder.with_quic()),
        #[cfg(feature = "tcp")]
        Stack::Tcp => over!(builder.with_tcp(
            libp2p::tcp::Config::default(),
            libp2p::noise::Config::new,
            libp2p::yamux::Config::default,
        )?),
        #[cfg(not(all(feature = "libp2p-webrtc", feature = "quic", feature = "tcp")))]
        other => return Err(format!("this build has no {other:?}").into()),
    };
    if !environment.is_dialer {
        swarm.listen_on(any_port(environment.stack, environment.listener_ip))?;
    } else if environment.stack == Stack::Libp2pWebrtc {
        swarm.listen_on(any_port(environment.stack, environment.listener_ip))?;
        listening_address(&mut swarm, environment).await?;
    }
    Ok(swarm)
}

fn any_port(stack: Stack, ip: IpAddr) -> Multiaddr {
    let address = Multiaddr::from(ip);
    match stack {
        Stack::Anabranch(_) | Stack::Libp2pWebrtc => {
            address.with(Protocol::Udp(0)).with(Protocol::WebRTCDirect)
        }
        Stack::Quic => address.with(Protocol::Udp(0)).with(Protocol::QuicV1),
        Stack::Tcp => address.with(Protocol::Tcp(0)),
    }
}

/// Waits for an address at which another host reaches this listener, and completes it with the
/// peer id. Loopback counts only if it was asked for.
///
/// # Errors
/// None is announced within [`Environment::timeout`], or the listener has failed.
pub async fn listening_address<B: NetworkBehaviour>(
    swarm: &mut Swarm<B>,
    environment: &Environment,
) -> Result<Multiaddr, AnyError> {
    let announced = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { address, .. }
                    if environment.listener_ip.is_loopback() || !is_loopback(&address) =>
                {
                    return Ok(address);
                }
                SwarmEvent::ListenerError { error, .. } => return Err(error),
                SwarmEvent::ListenerClosed {
                    reason: Err(error), ..
                } => return Err(error),
                _ => {}
            }
        }
    };
    let address = tokio::time::timeout(environment.timeout, announced).await;
    let address = address.map_err(|_| "no address but loopback is announced")??;
    let peer = Protocol::P2p(*swarm.local_peer_id());
    Ok(match address.iter().last() {
        Some(Protocol::P2p(_)) => address,
        _ => address.with(peer),
    })
}

fn is_loopback(address: &Multiaddr) -> bool {
    address.iter().any(|part| match part {
        Protocol::Ip4(ip) => ip.is_loopback(),
        Protocol::Ip6(ip) => ip.is_loopback(),
        _ => false,
    })
}
