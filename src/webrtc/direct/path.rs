//! The path of datagrams: ICE, and which addresses it has validated.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use is::stun::{StunMessage, StunPacket};
use is::{Candidate, IceAgent, IceAgentEvent, IceConnectionState, IceCreds, Protocol};

use super::super::MAX_ADDRESSES;
use super::super::dtls::crypto_provider;
use super::super::engine::Role;
use super::super::str0m_engine::EngineSetup;
use super::super::transmit::TransmitQueue;
use crate::connection::ConnectionError;

/// Steps of ICE worked off at once: it does one check each time that it is told the time.
const MAX_DUE_STEPS: usize = 8;

/// Time between consent checks on a path that works (RFC 7675 section 5.1). A check that stays
/// unanswered is repeated sooner.
const CONSENT_INTERVAL: Duration = Duration::from_secs(5);

/// How long a lite agent with a route is left alone where no STUN comes: it sends no checks, and that the
/// peer has fallen silent is noticed above it.
const LITE_INTERVAL: Duration = Duration::from_secs(15);

/// Where datagrams go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// What ICE found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathEvent {
    /// There is a route; it is reported once.
    Found,
    /// The peer does not answer any more.
    Lost,
}

/// An ICE agent and what it has found.
#[derive(Debug)]
pub(super) struct Path {
    agent: IceAgent,
    role: Role,
    local: SocketAddr,
    /// Remote addresses from which messages with the right integrity came.
    validated: Vec<SocketAddr>,
    route: Option<Route>,
    event: Option<PathEvent>,
    next_timeout: Instant,
}

impl Path {
    pub(super) fn new(setup: &EngineSetup<'_>, now: Instant) -> Result<Self, ConnectionError> {
        let credentials = |(ufrag, pass): &(String, String)| IceCreds {
            ufrag: ufrag.clone(),
            pass: pass.clone(),
        };
        let candidate = |address| {
            Candidate::host(address, Protocol::Udp)
                .map_err(|error| ConnectionError::Carrier(format!("no candidate: {error}")))
        };
        let local_credentials = credentials(&setup.local_credentials);
        let hmac = crypto_provider().sha1_hmac_provider;
        let mut agent = IceAgent::with_hmac(local_credentials, hmac);
        let client = setup.role == Role::Client;
        agent.set_ice_lite(!client);
        agent.set_controlling(client);
        agent.set_remote_credentials(credentials(&setup.remote_credentials));
        agent.set_max_candidate_pairs(MAX_ADDRESSES);
        agent.add_local_candidate(candidate(setup.local)?);
        if let Some(remote) = setup.remote {
            agent.add_remote_candidate(candidate(remote)?);
        }
        let mut path = Self {
            agent,
            role: setup.role,
            local: setup.local,
            validated: Vec::new(),
            route: None,
            event: None,
            next_timeout: now,
        };
        path.handle_timeout(now);
        Ok(path)
    }

    /// Takes in a STUN message. What has no valid integrity changes nothing.
    pub(super) fn handle_stun(
        &mut self,
        now: Instant,
        source: SocketAddr,
        destination: SocketAddr,
        datagram: &[u8],
    ) {
        let Ok(message) = StunMessage::parse(datagram) else {
            return;
        };
        let packet = StunPacket {
            proto: Protocol::Udp,
            source,
            destination,
            message,
        };
        if self.agent.handle_packet(now, packet) {
            // What follows from it is due now: left to the agent's timer, the nomination came 50 ms
            // later, and str0m as the listener sends no DTLS before that.
            self.agent.handle_timeout(now);
        }
        self.take_events();
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.agent.handle_timeout(now);
        self.take_events();
    }

    /// Puts what ICE has to send into `out`, and returns when it wants to know of the time.
    pub(super) fn poll(&mut self, now: Instant, out: &mut TransmitQueue) -> Instant {
        for step in 0.. {
            while let Some(transmit) = self.agent.poll_transmit() {
                out.push(
                    &transmit.contents,
                    transmit.source.ip(),
                    transmit.destination,
                );
            }
            self.next_timeout = self
                .agent
                .poll_timeout()
                .unwrap_or(now + Duration::from_millis(50));
            if self.next_timeout > now || step == MAX_DUE_STEPS {
                break;
            }
            self.handle_timeout(now);
        }
        if self.role == Role::Server && self.route.is_some() {
            self.next_timeout = self.next_timeout.max(now + LITE_INTERVAL);
        }
        self.next_timeout
    }

    /// Whether ICE knows the address as one of the peer's.
    pub(super) fn is_validated(&self, address: SocketAddr) -> bool {
        self.validated.contains(&address)
    }

    pub(super) fn route(&self) -> Option<Route> {
        self.route
    }

    pub(super) fn next_event(&mut self) -> Option<PathEvent> {
        self.event.take()
    }

    fn take_events(&mut self) {
        while let Some(event) = self.agent.poll_event() {
            match event {
                IceAgentEvent::DiscoveredRecv { source, .. } => {
                    if self.validated.len() < MAX_ADDRESSES && !self.is_validated(source) {
                        self.validated.push(source);
                    }
                    // A lite agent hears of the nomination half a second later, and a client that
                    // sends from a validated address receives there too.
                    if self.role == Role::Server && self.route.is_none() {
                        self.set_route(Route {
                            local: self.local,
                            remote: source,
                        });
                    }
                }
                IceAgentEvent::NominatedSend {
                    source: local,
                    destination: remote,
                    ..
                } => self.set_route(Route { local, remote }),
                // A lite agent with a route is not told of anything but STUN, and pion sends no check while there
                // is traffic: whether the peer has fallen silent is known above it.
                IceAgentEvent::IceConnectionStateChange(IceConnectionState::Disconnected)
                    if self.role == Role::Client || self.route.is_none() =>
                {
                    self.event = Some(PathEvent::Lost);
                }
                _ => {}
            }
        }
    }

    fn set_route(&mut self, route: Route) {
        if self.route.replace(route).is_none() {
            self.agent.set_max_stun_rto(CONSENT_INTERVAL);
            self.event = Some(PathEvent::Found);
        }
    }
}
