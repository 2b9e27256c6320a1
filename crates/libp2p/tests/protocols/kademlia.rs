//! Kademlia, with addresses from identify.

use libp2p_identify as identify;
use libp2p_kad as kad;
use libp2p_swarm::StreamProtocol;

use super::*;

const NODES: usize = 10;

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Behaviour {
    identify: identify::Behaviour,
    kad: kad::Behaviour<kad::store::MemoryStore>,
}

fn behaviour(keypair: &Keypair) -> Behaviour {
    let peer = keypair.public().to_peer_id();
    let mut config = kad::Config::new(StreamProtocol::new("/test/kad/1.0.0"));
    // When they begin is up to the test.
    config.set_periodic_bootstrap_interval(None);
    let store = kad::store::MemoryStore::new(peer);
    let mut kad = kad::Behaviour::with_config(peer, store, config);
    kad.set_mode(Some(kad::Mode::Server));
    let identify = identify::Config::new("/test/1.0.0".to_owned(), keypair.public());
    Behaviour {
        identify: identify::Behaviour::new(identify),
        kad,
    }
}

/// The results of the queries of all nodes, once `count` have ended.
async fn results(
    nodes: &mut Nodes<Behaviour>,
    count: usize,
) -> HashMap<usize, Vec<kad::QueryResult>> {
    results_and_met(nodes, count, 0).await
}

/// The same, once the first node has also learned the addresses of `met` others.
async fn results_and_met(
    nodes: &mut Nodes<Behaviour>,
    count: usize,
    met: usize,
) -> HashMap<usize, Vec<kad::QueryResult>> {
    let mut all: HashMap<usize, Vec<kad::QueryResult>> = HashMap::new();
    let mut ended = 0;
    let mut known_to_first = HashSet::new();
    while ended < count || known_to_first.len() < met {
        let (n, event) = nodes.next().await;
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) => {
                if n == 0 {
                    known_to_first.insert(peer_id);
                }
                for address in info.listen_addrs {
                    let kad = &mut nodes.swarms[n].behaviour_mut().kad;
                    kad.add_address(&peer_id, address);
                }
            }
            // A node that learns of another one begins that by itself.
            SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                result: kad::QueryResult::Bootstrap(_),
                ..
            })) => {}
            SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                result,
                step,
                ..
            })) => {
                ended += usize::from(step.last);
                all.entry(n).or_default().push(result);
            }
            _ => {}
        }
    }
    all
}

async fn run() {
    let mut nodes = Nodes::new(NODES, behaviour).await;
    let peers = nodes.peers();
    // All of them know the first alone.
    let first = nodes.addresses[0].clone();
    for swarm in &mut nodes.swarms[1..] {
        let kad = &mut swarm.behaviour_mut().kad;
        kad.add_address(&peers[0], first.clone());
        kad.get_closest_peers(peers[0]);
    }
    // The others find each other by the first, whose query finds nobody that it does not know.
    results_and_met(&mut nodes, NODES - 1, NODES - 1).await;
    for (n, swarm) in nodes.swarms.iter_mut().enumerate() {
        let sought = peers[(n + 1) % NODES];
        swarm.behaviour_mut().kad.get_closest_peers(sought);
    }
    let found = results(&mut nodes, NODES).await;
    for n in 0..NODES {
        let sought = (n + 1) % NODES;
        let [kad::QueryResult::GetClosestPeers(Ok(found))] = found[&n].as_slice() else {
            panic!("{:?}", found[&n]);
        };
        let found = found
            .peers
            .iter()
            .find(|peer| peer.peer_id == peers[sought]);
        let found = found.unwrap_or_else(|| panic!("{n} does not find {sought}"));
        let without_peer: Multiaddr = nodes.addresses[sought].iter().take(4).collect();
        let is_its =
            |address: &Multiaddr| *address == without_peer || *address == nodes.addresses[sought];
        // A peer that no other has told of has none here: it was in the routing table.
        let is_known = found.addrs.is_empty() && nodes.swarms[n].is_connected(&peers[sought]);
        let is_found = found.addrs.iter().any(is_its);
        assert!(is_found || is_known, "{:?}", found.addrs);
    }

    // What one has stored all of the others get.
    let key = kad::RecordKey::new(&"anabranch");
    let record = kad::Record::new(key.clone(), vec![7; 10_000]);
    let last = &mut nodes.swarms[NODES - 1].behaviour_mut().kad;
    let quorum = kad::Quorum::N(NODES.div_ceil(2).try_into().expect("not zero"));
    last.put_record(record, quorum).expect("there is room");
    let stored = results(&mut nodes, 1).await;
    let stored = &stored[&(NODES - 1)];
    assert!(
        matches!(stored.as_slice(), [kad::QueryResult::PutRecord(Ok(_))]),
        "{stored:?}"
    );
    for swarm in &mut nodes.swarms {
        swarm.behaviour_mut().kad.get_record(key.clone());
    }
    let got = results(&mut nodes, NODES).await;
    for (n, results) in got {
        let is_record = |result: &kad::QueryResult| {
            let kad::QueryResult::GetRecord(Ok(kad::GetRecordOk::FoundRecord(found))) = result
            else {
                return false;
            };
            found.record.value == [7; 10_000]
        };
        assert!(results.iter().any(is_record), "{n}: {results:?}");
    }
}

#[tokio::test]
async fn ten_nodes_find_each_other_and_a_record_by_kademlia() {
    for _ in 0..repetitions() {
        run().await;
    }
}
