//! gossipsub.

use libp2p_gossipsub as gossipsub;

use super::*;

const NODES: usize = 5;
const MESSAGES: u8 = 20;
/// In several frames.
const LENGTH: usize = 40_000;

fn behaviour(keypair: &Keypair) -> gossipsub::Behaviour {
    let config = gossipsub::ConfigBuilder::default()
        .heartbeat_interval(Duration::from_millis(100))
        .heartbeat_initial_delay(Duration::ZERO)
        // It would drop what waits for longer than a second, on a busy machine.
        .publish_queue_duration(LIMIT)
        .forward_queue_duration(LIMIT)
        .build()
        .expect("a valid configuration");
    let signed = gossipsub::MessageAuthenticity::Signed(keypair.clone());
    gossipsub::Behaviour::new(signed, config).expect("a valid configuration")
}

/// In a chain: most messages have to be forwarded.
async fn run() {
    let topic = gossipsub::IdentTopic::new("anabranch");
    let mut nodes = Nodes::new(NODES, behaviour).await;
    for swarm in &mut nodes.swarms {
        let is_new = swarm.behaviour_mut().subscribe(&topic);
        assert!(is_new.expect("it is allowed"));
    }
    for n in 1..NODES {
        nodes.dial(n, n - 1);
    }
    let is_meshed = |nodes: &Nodes<gossipsub::Behaviour>| {
        nodes.swarms.iter().enumerate().all(|(n, swarm)| {
            let neighbours = if n == 0 || n == NODES - 1 { 1 } else { 2 };
            swarm.behaviour().mesh_peers(&topic.hash()).count() == neighbours
        })
    };
    let meshing = async {
        while !is_meshed(&nodes) {
            // A heartbeat is no event.
            let _ = timeout(Duration::from_millis(50), nodes.next()).await;
        }
    };
    timeout(LIMIT, meshing).await.expect("they find each other");

    let mut expected = HashSet::new();
    for (n, swarm) in nodes.swarms.iter_mut().enumerate() {
        for message in 0..MESSAGES {
            let mut data = vec![message; LENGTH];
            data[0] = n as u8;
            let published = swarm.behaviour_mut().publish(topic.clone(), data);
            published.expect("neighbours have subscribed");
            let receivers = (0..NODES).filter(|receiver| *receiver != n);
            expected.extend(receivers.map(|receiver| (receiver, n as u8, message)));
        }
    }
    while !expected.is_empty() {
        let (receiver, event) = nodes.next().await;
        if let SwarmEvent::Behaviour(gossipsub::Event::Message { message, .. }) = event {
            let [sender, rest @ ..] = message.data.as_slice() else {
                panic!("no bytes");
            };
            assert_eq!(rest.len(), LENGTH - 1);
            assert!(rest.iter().all(|byte| *byte == rest[0]));
            let is_first = expected.remove(&(receiver, *sender, rest[0]));
            assert!(is_first, "{receiver}: {sender}, {}", rest[0]);
        }
    }
}

#[tokio::test]
async fn five_nodes_in_a_chain_receive_every_message_of_the_others_once() {
    for _ in 0..repetitions() {
        run().await;
    }
}
