//! Two nodes behind NATs of the kernel, and a relay: circuit relay v2, DCUtR, identify, AutoNAT and
//! Kademlia, each node a process in a network namespace of its own.
//!
//! Needs root, iproute2 and nftables. Without them the tests report that on standard error, past
//! the capture of test output, and pass.

#![cfg(target_os = "linux")]

use std::io::{self, Write};

mod net;
mod node;
mod process;

use net::{Mapping, Nat, Net, PORT, RELAY, Side};
use node::Role;
use process::Process;

/// Of each stored record.
const DIALS: usize = 20;

/// More than what the relay forwards at most.
const MIB: usize = 1 << 20;

/// A relay that has an address, and the network that it is in.
struct World {
    // Before the network: it lives there.
    relay: Process,
    /// With the peer id of the relay.
    relay_address: String,
    relay_peer: String,
    net: Net,
}

impl World {
    /// `None`, after a word of it, where namespaces or NATs can not be made.
    fn new(test: &str, a: Nat, b: Nat) -> Option<Self> {
        let net = Net::new(test, a, b).inspect_err(|reason| {
            // Set where the tests must not be skipped.
            let required = std::env::var_os("ANABRANCH_REQUIRE_NAMESPACES");
            assert!(required.is_none(), "{reason}");
            let skipped = format!("\nSKIPPED nat::{test}: no NATs here: {reason}\n");
            writeln!(io::stderr(), "{skipped}").expect("standard error");
        });
        let net = net.ok()?;
        let mut relay = Process::new("relay", &net.internet(), "relay_process");
        let relay_peer = relay.line("peer ");
        relay.command(&format!("listen /ip4/{RELAY}/udp/{PORT}/webrtc-direct"));
        let address = relay.line("listens at ");
        Some(Self {
            relay_address: format!("{address}/p2p/{relay_peer}"),
            relay,
            relay_peer,
            net,
        })
    }

    fn circuit(&self) -> String {
        format!("{}/p2p-circuit", self.relay_address)
    }

    /// A node that listens behind a NAT. Returns it with its peer id.
    fn node(&self, name: &'static str, side: Side, port: u16) -> (Process, String) {
        let mut node = Process::new(name, &self.net.host(side), "client_process");
        let peer = node.line("peer ");
        node.command(&format!("listen /ip4/0.0.0.0/udp/{port}/webrtc-direct"));
        node.line("listens at /ip4/192.168.1.2/");
        (node, peer)
    }

    /// A node that has a reservation of the relay, and has been observed by it.
    fn listener(&self) -> (Process, String) {
        let (mut node, peer) = self.node("a", Side::A, PORT);
        node.command(&format!("listen {}", self.circuit()));
        node.line("reserved");
        node.line(&format!("identified {}", self.relay_peer));
        (node, peer)
    }

    /// A node that is connected to the relay, and has been observed by it.
    fn dialler(&self, port: u16) -> (Process, String) {
        let (mut node, peer) = self.node("b", Side::B, port);
        node.command(&format!("dial {}", self.relay_address));
        node.line(&format!("identified {}", self.relay_peer));
        (node, peer)
    }
}

/// The address at which a node can be reached from outside, without its certhash.
fn external(side: Side, port: u16) -> String {
    format!("/ip4/{}/udp/{port}/webrtc-direct", side.public())
}

/// The port that a NAT shows for [`PORT`].
fn port_outside(nat: Nat) -> u16 {
    match nat.mapping {
        Mapping::ChangePort(port) => port,
        Mapping::KeepPort | Mapping::Random => PORT,
    }
}

/// Connects by the relay, and expects that the connection becomes a direct one, on which bytes
/// arrive when there is no relay any more.
fn punch(test: &str, a: Nat, b: Nat) {
    let Some(world) = World::new(test, a, b) else {
        return;
    };
    let (mut listener, listener_peer) = world.listener();
    let (mut dialler, dialler_peer) = world.dialler(PORT);
    let (outside_a, outside_b) = (
        external(Side::A, port_outside(a)),
        external(Side::B, port_outside(b)),
    );
    listener.line(&format!("candidate {outside_a}/certhash/"));
    dialler.line(&format!("candidate {outside_b}/certhash/"));

    dialler.command(&format!("dial {}/p2p/{listener_peer}", world.circuit()));
    dialler.line(&format!("connected {listener_peer} relayed"));
    dialler.line(&format!("connected {listener_peer} direct {outside_a}/"));
    listener.line(&format!("connected {dialler_peer} direct {outside_b}"));
    dialler.line(&format!("upgraded {listener_peer}"));
    listener.line(&format!("upgraded {dialler_peer}"));

    dialler.command("close-relayed");
    dialler.line(&format!("closed {listener_peer} relayed"));
    listener.line(&format!("closed {dialler_peer} relayed"));
    let World { relay, net, .. } = world;
    drop(relay);
    dialler.command(&format!("fetch {listener_peer} {MIB}"));
    listener.command(&format!("fetch {dialler_peer} {MIB}"));
    dialler.line(&format!("fetched {MIB}"));
    listener.line(&format!("fetched {MIB}"));
    for node in [&mut listener, &mut dialler] {
        assert!(!node.has_said("not upgraded"), "{}", node.transcript());
    }
    drop((listener, dialler, net));
}

#[test]
fn a_relayed_connection_becomes_direct_through_two_nats() {
    let nat = Nat::new(Mapping::KeepPort);
    punch("keep", nat, nat);
}

/// What peers observe is then the port of the NAT, not that of a listener.
#[test]
fn a_relayed_connection_becomes_direct_through_nats_that_change_ports() {
    let (a, b) = (Mapping::ChangePort(24_001), Mapping::ChangePort(25_001));
    punch("change", Nat::new(a), Nat::new(b));
}

/// The dial is answered with errors until the other side has opened its NAT.
#[test]
fn a_relayed_connection_becomes_direct_through_nats_that_answer_with_errors() {
    let nat = Nat {
        rejects: true,
        ..Nat::new(Mapping::KeepPort)
    };
    punch("reject", nat, nat);
}

/// The dial arrives whether the other side has opened its NAT or not.
#[test]
fn a_relayed_connection_becomes_direct_if_the_port_of_the_listener_is_forwarded() {
    let nat = Nat::new(Mapping::KeepPort);
    let forwarding = Nat {
        forwards: true,
        ..nat
    };
    punch("half", forwarding, nat);
}

#[test]
fn behind_a_symmetric_nat_dcutr_reports_its_failure_and_the_relayed_connection_lives_on() {
    let (a, b) = (Nat::new(Mapping::KeepPort), Nat::new(Mapping::Random));
    let Some(world) = World::new("symmetric", a, b) else {
        return;
    };
    let (mut listener, listener_peer) = world.listener();
    let (mut dialler, dialler_peer) = world.dialler(PORT);
    dialler.line(&format!("candidate /ip4/{}/udp/", Side::B.public()));
    dialler.command(&format!("dial {}/p2p/{listener_peer}", world.circuit()));
    dialler.line(&format!("connected {listener_peer} relayed"));
    let error = listener.line(&format!("not upgraded {dialler_peer}: "));
    assert!(error.contains("3 dial attempts"), "{error}");
    // With what identify exchanges, less than what the relay forwards at most.
    dialler.command(&format!("fetch {listener_peer} 5000"));
    dialler.line("fetched 5000");
    listener.command(&format!("fetch {dialler_peer} 5001"));
    listener.line("fetched 5001");
    for (node, peer) in [
        (&mut listener, &dialler_peer),
        (&mut dialler, &listener_peer),
    ] {
        let is_direct = node.has_said(&format!("connected {peer} direct"));
        let is_closed = node.has_said(&format!("closed {peer}"));
        assert!(!is_direct && !is_closed, "{}", node.transcript());
    }
}

/// The listener sees another port than the relay, and knows its peer by the identity.
#[test]
fn a_relayed_connection_becomes_direct_from_a_symmetric_nat_to_a_forwarded_port() {
    let forwarding = Nat {
        forwards: true,
        ..Nat::new(Mapping::KeepPort)
    };
    let symmetric = Nat::new(Mapping::Random);
    let Some(world) = World::new("random", forwarding, symmetric) else {
        return;
    };
    let (mut listener, listener_peer) = world.listener();
    let (mut dialler, dialler_peer) = world.dialler(PORT);
    listener.line(&format!("candidate {}/", external(Side::A, PORT)));
    dialler.line(&format!("candidate /ip4/{}/udp/", Side::B.public()));
    dialler.command(&format!("dial {}/p2p/{listener_peer}", world.circuit()));
    dialler.line(&format!("connected {listener_peer} relayed"));
    dialler.line(&format!("upgraded {listener_peer}"));
    listener.line(&format!("upgraded {dialler_peer}"));
    dialler.command("close-relayed");
    dialler.line(&format!("closed {listener_peer} relayed"));
    dialler.command(&format!("fetch {listener_peer} {MIB}"));
    dialler.line(&format!("fetched {MIB}"));
}

/// The addresses of `peer` in the routing table of the relay, as a stranger finds them.
/// Kademlia dials the peer too, so another node has to dial the record.
fn find(world: &World, peer: &str) -> Vec<String> {
    let (mut stranger, _) = world.dialler(0);
    stranger.command(&format!("find {peer}"));
    let record = stranger.line(&format!("found {peer} "));
    stranger.line("found all");
    record.split(' ').map(str::to_owned).collect()
}

/// The relay has a record with this address. Returns the end of the line.
fn wait_until_stored(world: &mut World, peer: &str, address: &str) {
    world.relay.line(&format!("stored {peer} {address}"));
}

#[test]
fn a_stored_record_of_a_node_behind_a_nat_is_dialled_20_times_and_becomes_direct() {
    let nat = Nat::new(Mapping::KeepPort);
    let Some(mut world) = World::new("record", nat, nat) else {
        return;
    };
    let (mut listener, listener_peer) = world.listener();
    let outside = external(Side::A, PORT);
    listener.line(&format!("candidate {outside}/certhash/"));
    let circuit = world.circuit();
    wait_until_stored(&mut world, &listener_peer, &circuit);
    for _ in 0..DIALS {
        let record = find(&world, &listener_peer);
        let (mut dialler, dialler_peer) = world.dialler(0);
        dialler.line(&format!("candidate /ip4/{}/udp/", Side::B.public()));
        dialler.command(&format!("dial {listener_peer} {}", record.join(" ")));
        dialler.line(&format!("connected {listener_peer} direct {outside}/"));
        dialler.line(&format!("upgraded {listener_peer}"));
        dialler.command("close-relayed");
        dialler.line(&format!("closed {listener_peer} relayed"));
        dialler.command(&format!("fetch {listener_peer} {MIB}"));
        dialler.line(&format!("fetched {MIB}"));
        assert!(!listener.has_said(&format!("not upgraded {dialler_peer}")));
    }
    // Nobody reaches it without the relay, and it does not claim that.
    listener.line(&format!("unreachable {outside}/certhash/"));
    assert!(!listener.has_said(&format!("external {outside}")));
}

/// AutoNAT confirms the address that the relay has observed, which is then part of the record.
#[test]
fn a_stored_record_of_a_node_whose_port_is_forwarded_is_dialled_directly_20_times() {
    let forwarding = Nat {
        forwards: true,
        ..Nat::new(Mapping::KeepPort)
    };
    let plain = Nat::new(Mapping::KeepPort);
    let Some(mut world) = World::new("forward", forwarding, plain) else {
        return;
    };
    let (mut listener, listener_peer) = world.node("a", Side::A, PORT);
    listener.command(&format!("dial {}", world.relay_address));
    let outside = external(Side::A, PORT);
    let certhash = listener.line(&format!("external {outside}/"));
    let outside = format!("{outside}/{certhash}");
    listener.line(&format!("reachable {outside}"));
    wait_until_stored(&mut world, &listener_peer, &outside);
    for _ in 0..DIALS {
        let record = find(&world, &listener_peer);
        let with_peer = format!("{outside}/p2p/{listener_peer}");
        assert!(
            record.contains(&outside) || record.contains(&with_peer),
            "{record:?}"
        );
        let (mut dialler, _) = world.dialler(0);
        dialler.command(&format!("dial {listener_peer} {}", record.join(" ")));
        dialler.line(&format!("connected {listener_peer} direct {outside}"));
        dialler.command(&format!("fetch {listener_peer} {MIB}"));
        dialler.line(&format!("fetched {MIB}"));
    }
}

/// Of the address that a connection comes from, and that its listener has announced.
#[test]
fn an_address_that_vanishes_expires_and_its_connections_live_on() {
    let nat = Nat::new(Mapping::KeepPort);
    let Some(world) = World::new("expire", nat, nat) else {
        return;
    };
    let (mut node, peer) = world.node("a", Side::A, PORT);
    node.command(&format!("dial {}", world.relay_address));
    node.line(&format!("identified {}", world.relay_peer));
    world.net.renumber(Side::A, "192.168.1.2", "192.168.1.3");
    node.line("listens at /ip4/192.168.1.3/");
    node.line("expired /ip4/192.168.1.2/");
    node.command(&format!("fetch {} {MIB}", world.relay_peer));
    node.line(&format!("fetched {MIB}"));
    let mut relay = world.relay;
    for (node, peer) in [(&mut node, &world.relay_peer), (&mut relay, &peer)] {
        let is_closed = node.has_said(&format!("closed {peer}"));
        assert!(!is_closed, "{}", node.transcript());
    }
    drop((node, relay));
}

fn run(role: Role) {
    if std::env::var_os(Process::ENABLED).is_some() {
        node::run(role).expect("it runs until its input ends");
    }
}

#[test]
#[ignore = "a child of the other tests"]
fn relay_process() {
    run(Role::Relay);
}

#[test]
#[ignore = "a child of the other tests"]
fn client_process() {
    run(Role::Client);
}
