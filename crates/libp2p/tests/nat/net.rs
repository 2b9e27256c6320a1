//! Network namespaces: two hosts behind NATs of the kernel, and the internet between them.
//!
//! ```text
//! host a  192.168.1.2 ── 192.168.1.1 NAT a 198.51.100.2 ──┐
//!                                                         internet, relay at 192.0.2.1
//! host b  192.168.1.2 ── 192.168.1.1 NAT b 203.0.113.2 ───┘
//! ```
//!
//! Both hosts have the same private address, as behind two routers from one shop.

use std::fmt;
use std::io::Write;
use std::process::{Command, Stdio};

/// The address of the relay, for everybody.
pub(crate) const RELAY: &str = "192.0.2.1";

/// The port on which the nodes behind NATs listen.
pub(crate) const PORT: u16 = 4001;

/// One side of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    A,
    B,
}

impl Side {
    fn name(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
        }
    }

    /// The public address of the NAT, without its last byte.
    fn prefix(self) -> &'static str {
        match self {
            Self::A => "198.51.100",
            Self::B => "203.0.113",
        }
    }

    /// The public address of the NAT.
    pub(crate) fn public(self) -> String {
        format!("{}.2", self.prefix())
    }
}

/// What a NAT does with the port of a datagram that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// Keeps it, for every destination.
    KeepPort,
    /// Changes [`PORT`] to this one, for every destination.
    ChangePort(u16),
    /// A random one for every destination: a symmetric NAT.
    Random,
}

/// The rules of a NAT.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nat {
    pub(crate) mapping: Mapping,
    /// Whether [`PORT`] of the public address is forwarded to the host.
    pub(crate) forwards: bool,
    /// Whether what nobody has asked for is answered with ICMP, and not only dropped.
    pub(crate) rejects: bool,
}

impl Nat {
    pub(crate) fn new(mapping: Mapping) -> Self {
        Self {
            mapping,
            forwards: false,
            rejects: false,
        }
    }
}

impl fmt::Display for Nat {
    /// As `nft -f` reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mapping = match self.mapping {
            Mapping::KeepPort => "masquerade".to_owned(),
            Mapping::ChangePort(port) => format!("udp sport {PORT} masquerade to :{port}"),
            Mapping::Random => "masquerade fully-random".to_owned(),
        };
        let forwarding = match self.forwards {
            true => format!("iifname wan udp dport {PORT} dnat to 192.168.1.2"),
            false => String::new(),
        };
        let otherwise = match self.rejects {
            true => "reject",
            false => "drop",
        };
        // Without the filter a datagram of a peer that is early would take the mapping of the
        // answer, and the answer would leave from another port. Routers have it.
        write!(
            f,
            "table ip nat {{
                chain outward {{
                    type nat hook postrouting priority srcnat
                    oifname wan {mapping}
                }}
                chain inward {{
                    type nat hook prerouting priority dstnat
                    {forwarding}
                }}
            }}
            table ip filter {{
                chain input {{
                    type filter hook input priority filter
                    ct state established,related accept
                    iifname wan {otherwise}
                }}
                chain forward {{
                    type filter hook forward priority filter
                    ct state established,related accept
                    ct status dnat accept
                    iifname wan {otherwise}
                }}
            }}
            "
        )
    }
}

/// The namespaces, removed on drop.
pub(crate) struct Net {
    name: String,
}

fn run(command: &str, input: &str) -> Result<(), String> {
    let mut words = command.split_whitespace();
    let program = words.next().unwrap_or_default();
    let failed = |error: std::io::Error| format!("{command}: {error}");
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{command}: {}", said.trim()))
        }
    }
}

/// For what works wherever there are namespaces.
fn must(command: &str, input: &str) {
    run(command, input).expect("a network of namespaces");
}

impl Net {
    /// # Errors
    /// Why namespaces or NATs can not be made here.
    pub(crate) fn new(test: &str, a: Nat, b: Nat) -> Result<Self, String> {
        let net = Self {
            name: format!("anabranch-{}-{test}", std::process::id()),
        };
        let internet = net.internet();
        run(&format!("ip netns add {internet}"), "")?;
        net.ip(&internet, "link set lo up");
        net.ip(&internet, &format!("addr add {RELAY}/32 dev lo"));
        net.forward(&internet);
        for (side, nat) in [(Side::A, a), (Side::B, b)] {
            net.add_side(side, nat)?;
        }
        Ok(net)
    }

    fn add_side(&self, side: Side, nat: Nat) -> Result<(), String> {
        let (router, host, internet) = (self.router(side), self.host(side), self.internet());
        let (name, prefix) = (side.name(), side.prefix());
        for namespace in [&router, &host] {
            run(&format!("ip netns add {namespace}"), "")?;
            self.ip(namespace, "link set lo up");
        }
        for (one, other) in [
            (
                format!("name {name} netns {internet}"),
                format!("name wan netns {router}"),
            ),
            (
                format!("name lan netns {router}"),
                format!("name eth0 netns {host}"),
            ),
        ] {
            must(&format!("ip link add {one} type veth peer {other}"), "");
        }
        for (namespace, device, address) in [
            (&internet, name.to_string(), format!("{prefix}.1/24")),
            (&router, "wan".to_owned(), format!("{prefix}.2/24")),
            (&router, "lan".to_owned(), "192.168.1.1/24".to_owned()),
            (&host, "eth0".to_owned(), "192.168.1.2/24".to_owned()),
        ] {
            self.ip(namespace, &format!("addr add {address} dev {device}"));
            self.ip(namespace, &format!("link set dev {device} up"));
        }
        self.ip(&router, &format!("route add default via {prefix}.1"));
        self.ip(&host, "route add default via 192.168.1.1");
        self.forward(&router);
        let nft = format!("ip netns exec {router} nft -f -");
        run(&nft, &nat.to_string())
    }

    fn ip(&self, namespace: &str, command: &str) {
        must(&format!("ip -n {namespace} {command}"), "");
    }

    fn forward(&self, namespace: &str) {
        let tee = format!("ip netns exec {namespace} tee /proc/sys/net/ipv4/ip_forward");
        must(&tee, "1");
    }

    /// Adds an address to a host, and removes the one that it had.
    pub(crate) fn renumber(&self, side: Side, old: &str, new: &str) {
        let host = self.host(side);
        // Otherwise the second address goes with the first.
        let promote = "tee /proc/sys/net/ipv4/conf/eth0/promote_secondaries";
        must(&format!("ip netns exec {host} {promote}"), "1");
        self.ip(&host, &format!("addr add {new}/24 dev eth0"));
        self.ip(&host, &format!("addr del {old}/24 dev eth0"));
    }

    /// The namespace of the relay.
    pub(crate) fn internet(&self) -> String {
        format!("{}-i", self.name)
    }

    fn router(&self, side: Side) -> String {
        format!("{}-r{}", self.name, side.name())
    }

    /// The namespace of a host behind its NAT.
    pub(crate) fn host(&self, side: Side) -> String {
        format!("{}-h{}", self.name, side.name())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let sides = [Side::A, Side::B];
        let hosts = sides.map(|side| self.host(side));
        let routers = sides.map(|side| self.router(side));
        for namespace in hosts.iter().chain(&routers).chain([&self.internet()]) {
            let _ = run(&format!("ip netns del {namespace}"), "");
        }
    }
}
