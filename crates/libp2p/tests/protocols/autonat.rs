//! AutoNAT, with the addresses that identify observes.

use anabranch_libp2p::WithCerthash;
use libp2p_autonat as autonat;
use libp2p_identify as identify;
use libp2p_swarm::behaviour::toggle::Toggle;

use super::*;

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Behaviour {
    identify: WithCerthash<identify::Behaviour>,
    v1: autonat::Behaviour,
    v2_client: Toggle<autonat::v2::client::Behaviour>,
    v2_server: Toggle<autonat::v2::server::Behaviour>,
}

fn behaviour(keypair: &Keypair, is_server: bool) -> Behaviour {
    let identify = identify::Config::new("/test/1.0.0".to_owned(), keypair.public());
    let v1 = autonat::Config {
        boot_delay: Duration::from_millis(100),
        retry_interval: Duration::from_millis(100),
        throttle_server_period: Duration::ZERO,
        throttle_clients_peer_max: 100,
        throttle_clients_global_max: 100,
        confidence_max: 1,
        only_global_ips: false,
        use_connected: !is_server,
        ..autonat::Config::default()
    };
    Behaviour {
        identify: WithCerthash::new(identify::Behaviour::new(identify)),
        v1: autonat::Behaviour::new(keypair.public().to_peer_id(), v1),
        v2_client: (!is_server)
            .then(autonat::v2::client::Behaviour::default)
            .into(),
        v2_server: is_server
            .then(autonat::v2::server::Behaviour::default)
            .into(),
    }
}

async fn run() {
    let is_first = std::cell::Cell::new(true);
    let by_turn = |keypair: &Keypair| behaviour(keypair, is_first.replace(false));
    let mut nodes = Nodes::new(2, by_turn).await;
    let own: Multiaddr = nodes.addresses[1].iter().take(4).collect();
    let with_peer = nodes.addresses[1].clone();
    nodes.dial(1, 0);
    let (mut is_candidate, mut is_public, mut is_confirmed) = (false, false, false);
    while !(is_candidate && is_public && is_confirmed) {
        let (n, event) = nodes.next().await;
        if n == 0 {
            continue;
        }
        match event {
            SwarmEvent::NewExternalAddrCandidate { address } => {
                assert_eq!(address, own);
                is_candidate = true;
            }
            SwarmEvent::Behaviour(BehaviourEvent::V1(autonat::Event::StatusChanged {
                new,
                ..
            })) => {
                let autonat::NatStatus::Public(address) = new else {
                    panic!("{new:?}");
                };
                assert!(address == own || address == with_peer, "{address}");
                is_public = true;
            }
            SwarmEvent::Behaviour(BehaviourEvent::V2Client(event)) => {
                event.result.expect("it can be reached");
                assert_eq!(event.tested_addr, own);
                is_confirmed = true;
            }
            _ => {}
        }
    }
    let external: Vec<&Multiaddr> = nodes.swarms[1].external_addresses().collect();
    assert!(external.contains(&&own), "{external:?}");
}

#[tokio::test]
async fn autonat_confirms_the_address_that_a_peer_has_observed() {
    for _ in 0..repetitions() {
        run().await;
    }
}
