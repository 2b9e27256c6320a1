//! The network path: ICE, and which of the peer's addresses are validated.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use is::stun::{StunMessage, StunPacket, TransId};
use is::{Candidate, IceAgent, IceAgentEvent, IceConnectionState, IceCreds, Protocol};

use super::validation::Validations;
use crate::engine::MAX_ADDRESSES;
use crate::engine::{EndReason, Role, Setup};
use crate::hmac::{HMAC, sha1_hmac};
use crate::transmit::TransmitQueue;
use anabranch_sctp::{Nonce, PathChange};

/// Maximum ICE timeouts handled in one call: the agent makes one check for each.
const MAX_DUE_STEPS: usize = 8;

/// Interval of consent checks on a working path (RFC 7675 section 5.1). An unanswered check is
/// retransmitted sooner.
const CONSENT_INTERVAL: Duration = Duration::from_secs(5);

/// Minimum timeout of a lite agent with a route: it sends no checks, and a silent peer is detected
/// by the layer above.
const LITE_INTERVAL: Duration = Duration::from_secs(15);

/// How long the peer's address has to be silent before its nomination of a less preferred one is
/// followed. A peer that uses a pair sends a check every 2.5 s at the latest, and data at once.
const ROUTE_SILENCE: Duration = Duration::from_secs(1);

/// The first bytes of a check (RFC 8489 section 5).
const BINDING_REQUEST: [u8; 2] = [0, 1];

/// Longest check: a USERNAME has at most 513 bytes (RFC 8489 section 14.3).
const MAX_CHECK: usize = 1024;

/// Local preference of the first candidate: the middle of the range (RFC 8445 section 5.1.2.1), so
/// that its successors can be preferred.
const FIRST_PREFERENCE: u32 = 1 << 15;

/// Maximum local preference.
const MAX_PREFERENCE: u32 = (1 << 16) - 1;

/// Source and destination of outgoing datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// Events of ICE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathEvent {
    /// There is a route. Emitted once.
    Found,
    /// The peer stopped responding.
    Lost,
}

/// An ICE agent and its route.
#[derive(Debug)]
pub(super) struct Path {
    agent: IceAgent,
    role: Role,
    local: SocketAddr,
    /// The address that this side dials.
    dialled: Option<SocketAddr>,
    /// The peer's password, and the last check to it. Dialler only.
    password: Option<String>,
    check: Vec<u8>,
    /// A copy of it that nominates has to be sent.
    is_check_due: bool,
    /// Remote addresses from which a message with valid integrity arrived.
    known_remotes: Vec<SocketAddr>,
    route: Option<Route>,
    /// The handshake went to more than one address.
    has_moved: bool,
    /// Addresses at which the peer has proven to receive. Listener only.
    validations: Validations,
    /// DTLS records have arrived: the handshake is answered to their source. Listener only.
    has_dtls_records: bool,
    /// The route moves to validated addresses only.
    requires_validation: bool,
    /// The peer's PRIORITY of the remote address, from its nomination. Listener only.
    priority: u32,
    /// An address that the peer nominated with a lower priority, and its priority. Listener only.
    fallback: Option<(SocketAddr, u32)>,
    /// When something last arrived from the remote address of the route.
    last_received: Instant,
    event: Option<PathEvent>,
    change: Option<PathChange>,
    next_timeout: Instant,
}

fn candidate(address: SocketAddr) -> Result<Candidate, EndReason> {
    Candidate::host(address, Protocol::Udp)
        .map_err(|error| EndReason::Failed(format!("invalid candidate address: {error}")))
}

/// A copy of a check that nominates its pair, as the aggressive nomination of RFC 5245 section
/// 8.1.1.2 does. The agent does not know it, and ignores the response.
///
/// There is one pair, so nothing is to be chosen, and str0m begins with DTLS only once a pair is
/// nominated. The agent nominates a round trip later, again, when its own check has succeeded.
fn nominating(check: &[u8], password: &str) -> Option<Vec<u8>> {
    let check = StunMessage::parse(check).ok()?;
    let (username, priority) = (check.username()?, check.prio()?);
    let tie_breaker = check.ice_controlling()?;
    let id = TransId::new();
    let copy = StunMessage::binding_request(username, id, true, tie_breaker, priority, true);
    let mut bytes = vec![0; MAX_CHECK];
    let length = copy.to_bytes(Some(password.as_bytes()), &mut bytes, sha1_hmac);
    bytes.truncate(length.ok()?);
    Some(bytes)
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
        // The newest address of this side is preferred: the peer uses the nominated pair with the
        // highest priority, and a dead one until it expires.
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
            dialled: setup.remote.filter(|_| client),
            password: client.then(|| setup.remote_credentials.1.clone()),
            check: Vec::new(),
            is_check_due: client,
            known_remotes: Vec::new(),
            route: None,
            has_moved: false,
            validations: Validations::default(),
            has_dtls_records: false,
            requires_validation: false,
            priority: 0,
            fallback: None,
            last_received: now,
            event: None,
            change: None,
            next_timeout: now,
        };
        path.handle_timeout(now);
        Ok(path)
    }

    /// Handles a STUN message. Returns `false` if its integrity is not valid, which changes
    /// nothing.
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
        // The agent consumes the nomination when it responds, and does not report it.
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
            // Handle what follows from it now: by the agent's timer the nomination came 50 ms
            // later, and str0m as the listener sends no DTLS before that.
            self.agent.handle_timeout(now);
            self.take_events(now);
            if let Some(priority) = nomination {
                self.follow_nomination(now, source, priority);
            }
            self.note_source(now, source);
        }
        self.take_events(now);
        is_authentic
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.agent.handle_timeout(now);
        self.take_events(now);
    }

    /// Handles a nomination of `remote`.
    ///
    /// Of two addresses with the same priority, which a peer has behind a NAT that has lost its
    /// mapping, the agent alone would keep the first. It would keep a dead address of higher
    /// priority for 15 s. Here the last nomination wins, unless the preferred address is still
    /// active. And the peer has to prove that it receives at the address: everything in a
    /// nomination can be read in transit, and its sender may be a peer that wants to direct traffic
    /// at somebody else.
    fn follow_nomination(&mut self, now: Instant, remote: SocketAddr, priority: u32) {
        let Some(route) = self.route else {
            return;
        };
        let is_elsewhere = route.remote != remote;
        if is_elsewhere && self.requires_validation && !self.validations.is_valid(now, remote) {
            return self.validations.challenge(now, remote, priority);
        }
        if is_elsewhere && self.has_dtls_records && !self.requires_validation {
            return;
        }
        let is_silent = now >= self.last_received + ROUTE_SILENCE;
        if route.remote == remote || priority >= self.priority || is_silent {
            self.priority = priority;
            self.set_route(Route { remote, ..route });
            self.last_received = now;
            self.fallback = None;
        } else {
            self.fallback = Some((remote, priority));
        }
    }

    /// Moves to another local address: it is checked at once, and the previous one is dropped.
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

    /// Puts outgoing STUN messages into `out`, and returns the next timeout.
    pub(super) fn poll(&mut self, now: Instant, out: &mut TransmitQueue) -> Instant {
        for step in 0.. {
            while let Some(transmit) = self.agent.poll_transmit() {
                out.push(
                    &transmit.contents,
                    transmit.source.ip(),
                    transmit.destination,
                );
                if transmit.contents.starts_with(&BINDING_REQUEST) && self.password.is_some() {
                    self.check = transmit.contents.into();
                }
            }
            self.send_due_check(out);
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

    /// Checks the route now.
    pub(super) fn check_at_once(&mut self) {
        self.is_check_due = self.password.is_some();
    }

    fn send_due_check(&mut self, out: &mut TransmitQueue) {
        if self.is_check_due
            && let (Some(password), Some(route)) = (&self.password, self.route())
            && let Some(check) = nominating(&self.check, password)
        {
            self.is_check_due = false;
            out.push(&check, route.local.ip(), route.remote);
        }
    }

    /// What has become of the path since the last call, if it has changed.
    pub(super) fn take_change(&mut self) -> Option<PathChange> {
        self.change.take()
    }

    /// Requires validation from now on: the association is established, so that an address can be
    /// challenged. Where the whole handshake went is validated already.
    pub(super) fn require_validation(&mut self, now: Instant) {
        let (Role::Server, false, Some(route)) = (self.role, self.requires_validation, self.route)
        else {
            return;
        };
        self.requires_validation = true;
        if self.has_moved {
            self.validations.challenge(now, route.remote, self.priority);
        } else {
            self.validations.set_valid(now, route.remote);
        }
    }

    /// The next challenge to send, and its source and destination, if one is due.
    pub(super) fn next_challenge(&mut self, now: Instant) -> Option<(Route, Nonce)> {
        let local = self.local;
        let (remote, nonce) = self.validations.next_challenge(now)?;
        Some((Route { local, remote }, nonce))
    }

    /// Whether a challenge to this address is pending.
    pub(super) fn is_validating(&self, source: SocketAddr) -> bool {
        self.validations.is_pending(source)
    }

    /// Handles a response from `source`; `true` if it validates the address.
    pub(super) fn confirm(&mut self, now: Instant, source: SocketAddr, answer: Nonce) -> bool {
        let Some(priority) = self.validations.confirm(now, source, answer) else {
            return false;
        };
        self.follow_nomination(now, source, priority);
        true
    }

    /// Whether DTLS records from this address are accepted.
    ///
    /// A peer can not be challenged before its handshake is complete, and anybody who has read its
    /// credentials can nominate an address where it answers challenges. So until then the route
    /// follows the records, and no nomination changes it (as in QUIC, RFC 9000 section 9).
    pub(super) fn accepts_record(&mut self, now: Instant, source: SocketAddr) -> bool {
        let is_known = self.note_source(now, source);
        if is_known
            && self.role == Role::Server
            && !self.requires_validation
            && let Some(route) = self.route
        {
            self.has_dtls_records = true;
            if route.remote != source {
                self.priority = 0;
                self.fallback = None;
                self.last_received = now;
                self.set_route(Route {
                    remote: source,
                    ..route
                });
            }
        }
        is_known
    }

    /// Notes that something of the peer arrived from `source`; returns whether ICE has verified the
    /// address, or this side has dialled it.
    fn note_source(&mut self, now: Instant, source: SocketAddr) -> bool {
        if self.route.is_some_and(|route| route.remote == source) {
            self.last_received = now;
        } else if let Some((fallback, priority)) = self.fallback
            && fallback == source
        {
            self.follow_nomination(now, source, priority);
        }
        self.known_remotes.contains(&source) || self.dialled == Some(source)
    }

    /// Where records are sent: before a check has succeeded, the dialled address.
    pub(super) fn route(&self) -> Option<Route> {
        let local = self.local;
        self.route
            .or_else(|| self.dialled.map(|remote| Route { local, remote }))
    }

    pub(super) fn next_event(&mut self) -> Option<PathEvent> {
        self.event.take()
    }

    fn take_events(&mut self, now: Instant) {
        while let Some(event) = self.agent.poll_event() {
            match event {
                IceAgentEvent::DiscoveredRecv { source, .. } => {
                    let is_known = self.known_remotes.contains(&source);
                    if self.known_remotes.len() < MAX_ADDRESSES && !is_known {
                        self.known_remotes.push(source);
                    }
                    // A lite agent sees the nomination half a second later, and a client that sends
                    // from a verified address receives there too.
                    if self.role == Role::Server && self.route.is_none() {
                        self.set_route(Route {
                            local: self.local,
                            remote: source,
                        });
                    }
                }
                // A listener follows each nomination itself. Its agent only reports which pair is
                // left when that one is dead.
                IceAgentEvent::NominatedSend {
                    source: local,
                    destination: remote,
                    ..
                } => {
                    if self.role == Role::Client {
                        self.set_route(Route { local, remote });
                    } else if now >= self.last_received + LITE_INTERVAL {
                        self.follow_nomination(now, remote, self.priority);
                    }
                }
                // A lite agent with a route only sees STUN, and pion sends no checks while there is
                // traffic: a silent peer is detected by the layer above.
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
        if let Some(before) = before.filter(|before| *before != route) {
            let is_same_host =
                before.remote.ip() == route.remote.ip() && before.local.ip() == route.local.ip();
            // RFC 9000 section 9.4: a NAT may give another port on the same path.
            if !is_same_host {
                self.change = Some(PathChange::Address);
            } else {
                self.change.get_or_insert(PathChange::Port);
            }
        }
        if before.is_none() {
            self.agent.set_max_stun_rto(CONSENT_INTERVAL);
            self.event = Some(PathEvent::Found);
        }
    }
}
