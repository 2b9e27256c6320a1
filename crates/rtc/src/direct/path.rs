//! The path of datagrams: ICE, and which addresses it has validated.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use is::stun::{StunMessage, StunPacket};
use is::{Candidate, IceAgent, IceAgentEvent, IceConnectionState, IceCreds, Protocol};

use super::validation::Validations;
use crate::engine::MAX_ADDRESSES;
use crate::engine::{EndReason, Role, Setup};
use crate::hmac::HMAC;
use crate::transmit::TransmitQueue;
use anabranch_sctp::Nonce;

/// Steps of ICE worked off at once: it does one check each time that it is told the time.
const MAX_DUE_STEPS: usize = 8;

/// Time between consent checks on a path that works (RFC 7675 section 5.1). A check that stays
/// unanswered is repeated sooner.
const CONSENT_INTERVAL: Duration = Duration::from_secs(5);

/// How long a lite agent with a route is left alone where no STUN comes: it sends no checks, and that the
/// peer has fallen silent is noticed above it.
const LITE_INTERVAL: Duration = Duration::from_secs(15);

/// Silence of the peer at its address after which it is followed to one that it prefers less. A peer that uses
/// a pair sends a check every 2.5 s at the latest, and data at once.
const ROUTE_SILENCE: Duration = Duration::from_secs(1);

/// Preference of the first candidate of this side, in the middle of its range (RFC 8445 section 5.1.2.1), so
/// that those that replace it can be preferred.
const FIRST_PREFERENCE: u32 = 1 << 15;

/// Greatest preference.
const MAX_PREFERENCE: u32 = (1 << 16) - 1;

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
    known: Vec<SocketAddr>,
    route: Option<Route>,
    /// The handshake went to more than one address.
    has_moved: bool,
    /// Where the peer has shown that it receives. A listener's.
    validations: Validations,
    /// Records of DTLS come: the handshake is answered where they come from. A listener's.
    has_records: bool,
    /// A route to an address that is not validated is not taken any more.
    is_guarded: bool,
    /// How much the peer prefers its address of the route, by the PRIORITY of its nomination. A listener's.
    priority: u32,
    /// An address that the peer has nominated and prefers less, and its priority. A listener's.
    second: Option<(SocketAddr, u32)>,
    /// When something last came from the remote address of the route.
    heard: Instant,
    event: Option<PathEvent>,
    next_timeout: Instant,
}

fn candidate(address: SocketAddr) -> Result<Candidate, EndReason> {
    Candidate::host(address, Protocol::Udp)
        .map_err(|error| EndReason::Failed(format!("no candidate: {error}")))
}

impl Path {
    pub(super) fn new(setup: &Setup, now: Instant) -> Result<Self, EndReason> {
        let credentials = |(ufrag, pass): &(String, String)| IceCreds {
            ufrag: ufrag.clone(),
            pass: pass.clone(),
        };
        let local_credentials = credentials(&setup.local_credentials);
        let mut agent = IceAgent::with_hmac(local_credentials, &HMAC);
        let client = setup.role == Role::Client;
        agent.set_ice_lite(!client);
        agent.set_controlling(client);
        agent.set_remote_credentials(credentials(&setup.remote_credentials));
        agent.set_max_candidate_pairs(MAX_ADDRESSES);
        // The address that this side has moved to is the best: its peer takes the nominated pair with the highest
        // priority, and the one that is dead until it expires.
        agent.set_local_preference(|_: &Candidate, before: usize| {
            let before = u32::try_from(before).unwrap_or(u32::MAX);
            FIRST_PREFERENCE.saturating_add(before).min(MAX_PREFERENCE)
        });
        agent.add_local_candidate(candidate(setup.local)?);
        if let Some(remote) = setup.remote {
            agent.add_remote_candidate(candidate(remote)?);
        }
        let mut path = Self {
            agent,
            role: setup.role,
            local: setup.local,
            known: Vec::new(),
            route: None,
            has_moved: false,
            validations: Validations::default(),
            has_records: false,
            is_guarded: false,
            priority: 0,
            second: None,
            heard: now,
            event: None,
            next_timeout: now,
        };
        path.handle_timeout(now);
        Ok(path)
    }

    /// Takes in a STUN message. What has no valid integrity changes nothing, and returns `false`.
    pub(super) fn handle_stun(
        &mut self,
        now: Instant,
        source: SocketAddr,
        destination: SocketAddr,
        datagram: &[u8],
    ) -> bool {
        let Ok(message) = StunMessage::parse(datagram) else {
            return false;
        };
        // The response to a nomination is made with it, and the agent keeps to itself what it was.
        let nomination = (self.role == Role::Server
            && message.is_binding_request()
            && message.use_candidate()
            && destination == self.local)
            .then(|| message.prio().unwrap_or_default());
        let packet = StunPacket {
            proto: Protocol::Udp,
            source,
            destination,
            message,
        };
        let is_authentic = self.agent.handle_packet(now, packet);
        if is_authentic {
            // What follows from it is due now: left to the agent's timer, the nomination came 50 ms
            // later, and str0m as the listener sends no DTLS before that.
            self.agent.handle_timeout(now);
            self.take_events(now);
            if let Some(priority) = nomination {
                self.follow(now, source, priority);
            }
            self.accepts(now, source);
        }
        self.take_events(now);
        is_authentic
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.agent.handle_timeout(now);
        self.take_events(now);
    }

    /// The peer has nominated an address of its own.
    ///
    /// The agent alone would stay with the first of two of one priority, as those behind a NAT that has forgotten its
    /// mapping have, and with a better one that is dead for 15 s. Here the last nomination holds, unless the address
    /// that the peer prefers is heard of still. And it has to have shown that it receives there: what a nomination is made
    /// of can be read on its way, and whoever sends one may well be the peer who wants somebody else to be hit.
    fn follow(&mut self, now: Instant, remote: SocketAddr, priority: u32) {
        let Some(route) = self.route else {
            return;
        };
        let is_elsewhere = route.remote != remote;
        if is_elsewhere && self.is_guarded && !self.validations.is_valid(now, remote) {
            return self.validations.ask(now, remote, priority);
        }
        if is_elsewhere && self.has_records && !self.is_guarded {
            return;
        }
        let is_silent = now >= self.heard + ROUTE_SILENCE;
        if route.remote == remote || priority >= self.priority || is_silent {
            self.priority = priority;
            self.set_route(Route { remote, ..route });
            self.heard = now;
            self.second = None;
        } else {
            self.second = Some((remote, priority));
        }
    }

    /// This side sends from another address now: that is checked at once, and the one before is not any more.
    pub(super) fn move_to(&mut self, now: Instant, local: SocketAddr) {
        let (Ok(new), Ok(old)) = (candidate(local), candidate(self.local)) else {
            return;
        };
        if local == self.local || self.agent.add_local_candidate(new).is_none() {
            return;
        }
        // In this order: without any pair the agent would give up.
        self.agent.invalidate_candidate(&old);
        self.local = local;
        self.handle_timeout(now);
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
        if let Some(next) = self.validations.next_timeout(now) {
            self.next_timeout = self.next_timeout.min(next);
        }
        self.next_timeout
    }

    /// The association is up, so that the peer can be asked: from now on it is not followed to where it has not shown that
    /// it receives. It has where the whole handshake went.
    pub(super) fn guard(&mut self, now: Instant) {
        let (Role::Server, false, Some(route)) = (self.role, self.is_guarded, self.route) else {
            return;
        };
        self.is_guarded = true;
        if self.has_moved {
            self.validations.ask(now, route.remote, self.priority);
        } else {
            self.validations.prove(now, route.remote);
        }
    }

    /// What to ask an address for, and from which of ours, if one has to be asked now.
    pub(super) fn next_question(&mut self, now: Instant) -> Option<(Route, Nonce)> {
        let local = self.local;
        let (remote, nonce) = self.validations.next_question(now)?;
        Some((Route { local, remote }, nonce))
    }

    /// Whether an answer of this address is waited for.
    pub(super) fn expects(&self, source: SocketAddr) -> bool {
        self.validations.expects(source)
    }

    /// An answer came from `source`; `true` if that is validated by it.
    pub(super) fn confirm(&mut self, now: Instant, source: SocketAddr, answer: Nonce) -> bool {
        let Some(priority) = self.validations.confirm(now, source, answer) else {
            return false;
        };
        self.follow(now, source, priority);
        true
    }

    /// Whether a record of DTLS is to be taken from this address.
    ///
    /// A peer can not be asked for a nonce before its handshake is over, and whoever has read its
    /// credentials can nominate an address at which it answers challenges. So until then the route
    /// is where records come from, and no nomination changes it (as in QUIC, RFC 9000 section 9).
    pub(super) fn takes_record(&mut self, now: Instant, source: SocketAddr) -> bool {
        let is_known = self.accepts(now, source);
        if is_known
            && self.role == Role::Server
            && !self.is_guarded
            && let Some(route) = self.route
        {
            self.has_records = true;
            if route.remote != source {
                self.priority = 0;
                self.second = None;
                self.heard = now;
                self.set_route(Route {
                    remote: source,
                    ..route
                });
            }
        }
        is_known
    }

    /// Whether ICE knows the address as one of the peer's. Something of it has just come from there.
    fn accepts(&mut self, now: Instant, source: SocketAddr) -> bool {
        if self.route.is_some_and(|route| route.remote == source) {
            self.heard = now;
        } else if let Some((second, priority)) = self.second
            && second == source
        {
            self.follow(now, source, priority);
        }
        self.known.contains(&source)
    }

    pub(super) fn route(&self) -> Option<Route> {
        self.route
    }

    pub(super) fn next_event(&mut self) -> Option<PathEvent> {
        self.event.take()
    }

    fn take_events(&mut self, now: Instant) {
        while let Some(event) = self.agent.poll_event() {
            match event {
                IceAgentEvent::DiscoveredRecv { source, .. } => {
                    let is_known = self.known.contains(&source);
                    if self.known.len() < MAX_ADDRESSES && !is_known {
                        self.known.push(source);
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
                // A listener follows each nomination itself; its agent only says which is left when that one
                // is dead.
                IceAgentEvent::NominatedSend {
                    source: local,
                    destination: remote,
                    ..
                } => {
                    if self.role == Role::Client {
                        self.set_route(Route { local, remote });
                    } else if now >= self.heard + LITE_INTERVAL {
                        self.follow(now, remote, self.priority);
                    }
                }
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
        let before = self.route.replace(route);
        self.has_moved |= before.is_some_and(|before| before.remote != route.remote);
        if before.is_none() {
            self.agent.set_max_stun_rto(CONSENT_INTERVAL);
            self.event = Some(PathEvent::Found);
        }
    }
}
