//! The state of a network: hosts, sockets, and the datagrams in flight.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::Waker;

use bytes::Bytes;
use tokio::time::Instant;

use super::conditions::Conditions;
use super::link::{self, Link};
use anabranch::udp::Ecn;

/// First ephemeral port, for sockets bound to port 0 (RFC 6335 section 6).
const FIRST_EPHEMERAL_PORT: u16 = 49_152;

/// First public port of rebound hosts.
const FIRST_TRANSLATED_PORT: u16 = 20_000;

/// Default receive buffer of a socket: what endpoints request of the system.
const RECEIVE_BUFFER: usize = 2 * 1024 * 1024;

/// Overhead of a datagram in a receive buffer, in bytes.
pub(super) const DATAGRAM_COST: usize = 128;

/// A datagram in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    /// The address of the sending host, which selects the link.
    from: IpAddr,
    pub(super) source: SocketAddr,
    destination: SocketAddr,
    pub(super) contents: Bytes,
    ecn: Ecn,
}

/// A datagram in a receive buffer.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) source: SocketAddr,
    pub(super) contents: Bytes,
    pub(super) ecn: Ecn,
}

impl Arrived {
    pub(super) fn cost(&self) -> usize {
        self.contents.len() + DATAGRAM_COST
    }
}

/// A bound socket.
#[derive(Debug, Default)]
pub(super) struct Port {
    /// Ordered by arrival time, then by the order of sending.
    pub(super) in_flight: BTreeMap<(Instant, u64), InFlight>,
    pub(super) arrived: VecDeque<Arrived>,
    /// Total cost of `arrived`.
    pub(super) bytes: usize,
    pub(super) waker: Option<Waker>,
}

/// Address translation of a host that was rebound or renumbered.
#[derive(Debug)]
pub(super) struct Nat {
    pub(super) public: IpAddr,
    /// From local to public address.
    pub(super) mappings: BTreeMap<SocketAddr, SocketAddr>,
    /// `public` is the host's own address (`Network::renumber`), and ports are not translated.
    pub(super) is_own: bool,
}

#[derive(Debug)]
pub(super) struct HostState {
    next_port: u16,
    pub(super) nat: Option<Nat>,
    /// The host has no address.
    pub(super) is_unplugged: bool,
    pub(super) receive_buffer: usize,
    pub(super) offload: bool,
}

impl Default for HostState {
    fn default() -> Self {
        Self {
            next_port: FIRST_EPHEMERAL_PORT,
            nat: None,
            is_unplugged: false,
            receive_buffer: RECEIVE_BUFFER,
            offload: true,
        }
    }
}

pub(super) struct State {
    seed: u64,
    pub(super) conditions: Conditions,
    pub(super) own_conditions: BTreeMap<(IpAddr, IpAddr), Conditions>,
    pub(super) links: BTreeMap<(IpAddr, IpAddr), Link>,
    pub(super) hosts: BTreeMap<IpAddr, HostState>,
    pub(super) ports: BTreeMap<SocketAddr, Port>,
    /// From public to local address, of hosts with a [`Nat`].
    pub(super) translations: BTreeMap<SocketAddr, SocketAddr>,
    next_translated_port: u16,
    pub(super) silent: BTreeSet<IpAddr>,
    /// Number of the next datagram, which orders datagrams that arrive at the same time.
    next_order: u64,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            conditions: Conditions::default(),
            own_conditions: BTreeMap::new(),
            links: BTreeMap::new(),
            hosts: BTreeMap::new(),
            ports: BTreeMap::new(),
            translations: BTreeMap::new(),
            next_translated_port: FIRST_TRANSLATED_PORT,
            silent: BTreeSet::new(),
            next_order: 0,
        }
    }

    pub(super) fn bind(&mut self, ip: IpAddr, port: u16) -> io::Result<u16> {
        let port = if port == 0 { self.free_port(ip)? } else { port };
        let address = SocketAddr::new(ip, port);
        if self.ports.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.ports.insert(address, Port::default());
        Ok(port)
    }

    /// Counts up, so that a freed port is not reused soon.
    fn free_port(&mut self, ip: IpAddr) -> io::Result<u16> {
        let Some(host) = self.hosts.get_mut(&ip) else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        for _ in FIRST_EPHEMERAL_PORT..=u16::MAX {
            let port = host.next_port;
            host.next_port = port.checked_add(1).unwrap_or(FIRST_EPHEMERAL_PORT);
            if !self.ports.contains_key(&SocketAddr::new(ip, port)) {
                return Ok(port);
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    pub(super) fn unbind(&mut self, local: SocketAddr) -> Option<Waker> {
        self.settle(local, Instant::now());
        let port = self.ports.remove(&local)?;
        for datagram in port.in_flight.into_values() {
            self.link(datagram.from, local.ip()).counters.unreachable += 1;
        }
        self.translations.retain(|_, mapped| *mapped != local);
        if let Some(nat) = self
            .hosts
            .get_mut(&local.ip())
            .and_then(|host| host.nat.as_mut())
        {
            nat.mappings.remove(&local);
        }
        port.waker
    }

    /// The current address of the host that was created with the address `ip`.
    pub(super) fn address_of(&self, ip: IpAddr) -> io::Result<IpAddr> {
        let Some(host) = self.hosts.get(&ip) else {
            return Ok(ip);
        };
        if host.is_unplugged {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        let own = host.nat.as_ref().filter(|nat| nat.is_own);
        Ok(own.map_or(ip, |nat| nat.public))
    }

    /// The public address of a socket; creates the mapping if there is none.
    pub(super) fn translate(&mut self, local: SocketAddr) -> SocketAddr {
        let Some(nat) = self
            .hosts
            .get_mut(&local.ip())
            .and_then(|host| host.nat.as_mut())
        else {
            return local;
        };
        if let Some(public) = nat.mappings.get(&local) {
            return *public;
        }
        let public = if nat.is_own {
            SocketAddr::new(nat.public, local.port())
        } else {
            let port = self.next_translated_port;
            self.next_translated_port = port.checked_add(1).unwrap_or(FIRST_TRANSLATED_PORT);
            SocketAddr::new(nat.public, port)
        };
        nat.mappings.insert(local, public);
        self.translations.insert(public, local);
        public
    }

    /// The socket with this public address.
    pub(super) fn resolve(&self, public: SocketAddr) -> Option<SocketAddr> {
        let local = match self.translations.get(&public) {
            Some(local) => *local,
            None if self
                .hosts
                .get(&public.ip())
                .is_some_and(|host| host.nat.is_none() && !host.is_unplugged) =>
            {
                public
            }
            None => return None,
        };
        self.ports.contains_key(&local).then_some(local)
    }

    /// The host with this public address.
    pub(super) fn locate(&self, public: SocketAddr) -> IpAddr {
        self.translations.get(&public).unwrap_or(&public).ip()
    }

    pub(super) fn conditions_of(&self, from: IpAddr, to: IpAddr) -> Conditions {
        self.own_conditions
            .get(&(from, to))
            .copied()
            .unwrap_or(self.conditions)
    }

    pub(super) fn link(&mut self, from: IpAddr, to: IpAddr) -> &mut Link {
        let seed = self.seed;
        self.links
            .entry((from, to))
            .or_insert_with(|| Link::new(seed, from, to))
    }

    /// Sends a datagram on its path. Returns the waker of the receiver if the datagram is to
    /// arrive before all others in flight to it.
    pub(super) fn carry(
        &mut self,
        now: Instant,
        from: IpAddr,
        source: SocketAddr,
        destination: SocketAddr,
        mut contents: Bytes,
        ecn: Ecn,
    ) -> Option<Waker> {
        let receiver = self.resolve(destination);
        let to = self.locate(destination);
        let conditions = self.conditions_of(from, to);
        let silent = self.silent.contains(&from) || self.silent.contains(&to);
        let link = self.link(from, to);
        link.counters.sent += 1;
        link.counters.sent_bytes += contents.len() as u64;
        link.counters.ect += u64::from(ecn != Ecn::NotEct);
        if silent {
            link.counters.dropped_by_blackout += 1;
            return None;
        }
        let number = link.counters.sent;
        let first = contents.first().copied();
        let length = contents.len();
        let carried = link.carry(&conditions, now, destination.ip(), length, ecn);
        tracing::trace!(
            target: "anabranch::simulator",
            %source,
            %destination,
            number,
            length,
            first,
            delay = ?carried.as_ref().map(|c| c.at - now),
        );
        let carried = carried?;
        if let Some(choice) = carried.corruption {
            let mut changed = contents.to_vec();
            link::corrupt(&mut changed, choice);
            contents = changed.into();
        }
        let Some((receiver, port)) =
            receiver.and_then(|receiver| Some((receiver, self.ports.get_mut(&receiver)?)))
        else {
            let copies = 1 + u64::from(carried.second.is_some());
            self.link(from, to).counters.unreachable += copies;
            return None;
        };
        debug_assert_eq!(receiver.ip(), to);
        let earliest = port.in_flight.first_key_value().map(|((at, _), _)| *at);
        for at in [Some(carried.at), carried.second].into_iter().flatten() {
            let datagram = InFlight {
                from,
                source,
                destination,
                contents: contents.clone(),
                ecn: carried.ecn,
            };
            port.in_flight.insert((at, self.next_order), datagram);
            self.next_order += 1;
        }
        if earliest.is_none_or(|earliest| carried.at < earliest) {
            port.waker.take()
        } else {
            None
        }
    }

    pub(super) fn settle_all(&mut self, now: Instant) {
        let ports: Vec<_> = self.ports.keys().copied().collect();
        for port in ports {
            self.settle(port, now);
        }
    }

    /// Moves the datagrams that have arrived at a socket by now into its receive buffer.
    pub(super) fn settle(&mut self, local: SocketAddr, now: Instant) {
        let Some(port) = self.ports.get_mut(&local) else {
            return;
        };
        if port
            .in_flight
            .first_key_value()
            .is_none_or(|((at, _), _)| *at > now)
        {
            return;
        }
        let later = port.in_flight.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut port.in_flight, later);
        let room = self
            .hosts
            .get(&local.ip())
            .map_or(0, |host| host.receive_buffer);
        let silent = self.silent.contains(&local.ip());
        for datagram in due.into_values() {
            let reached = self.resolve(datagram.destination) == Some(local);
            let length = datagram.contents.len();
            let arrived = Arrived {
                source: datagram.source,
                contents: datagram.contents,
                ecn: datagram.ecn,
            };
            let bytes = self.ports.get(&local).map_or(0, |port| port.bytes) + arrived.cost();
            let counters = &mut self.link(datagram.from, local.ip()).counters;
            if silent {
                counters.dropped_by_blackout += 1;
            } else if !reached {
                counters.unreachable += 1;
            } else if bytes > room {
                counters.dropped_by_receiver += 1;
            } else {
                counters.delivered += 1;
                counters.delivered_bytes += length as u64;
                if let Some(port) = self.ports.get_mut(&local) {
                    port.bytes = bytes;
                    port.arrived.push_back(arrived);
                }
            }
        }
    }
}
