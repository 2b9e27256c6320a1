//! Routes each datagram to its connection.
//!
//! ```text
//! datagram ── known source address ───────────────────────────► inbox of that connection
//!     │            └─ check of another connection, and long unused ─► treated as unknown
//!     │
//!     ├─ STUN request ── USERNAME known ── integrity holds ───► inbox; adds its address
//!     │      │
//!     │      └─ USERNAME new ── well formed ── integrity holds ─► admission decides
//!     │
//!     └─ answer to a challenge ───────────────────────────────► admission stores the answer
//! ```
//!
//! A dial from a shared port registers its remote address ([`Router::dial`]). Two endpoints that
//! dial each other at once, both from the port they listen on, have one pair of addresses for two
//! connections. It goes to the dial with the greater server ufrag, which both see; the other begins
//! again from a new port ([`Dialling`]).
//!
//! Anything else is dropped before any state is allocated. DTLS is thus accepted only from
//! addresses with a STUN check that has the right MESSAGE-INTEGRITY (several servers accepted a
//! ClientHello from anywhere, and lost the race against an attacker).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use is::stun::StunMessage;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::challenge::{
    ChallengeKey, PeerCredentials, Transaction, refusal, success, transaction,
};
use super::admission::{Admission, Slot, Verdict};
use super::inbox::Inbox;
use super::socket::Received;
use crate::ufrag::{ClientCredentials, ServerCredentials, parse_username};
use crate::waiters::Waiters;
use anabranch_rtc::sha1_hmac;

/// How long an address has to be silent before another connection may take it over. A peer that
/// still uses it sends checks more often (RFC 7675 section 5.1).
///
/// A connection may continue at another address for days while a NAT assigns its old port to
/// somebody else. An address in use is not taken over: a forged source must not hijack it.
const ADDRESS_UNUSED: Duration = Duration::from_secs(30);

/// A first contact that passed all checks and was admitted.
#[derive(Debug)]
pub(crate) struct FirstContact {
    pub(crate) credentials: ServerCredentials,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    /// The transaction ID of the request, for the response.
    pub(crate) request: Transaction,
    pub(crate) slot: Slot,
    pub(crate) route: RouteGuard,
}

/// What the listener has to do about datagrams from an unknown address.
#[derive(Debug)]
pub(crate) enum Stranger {
    /// Offer this first contact to the application.
    Admitted(Box<FirstContact>),
    /// Send these datagrams and keep no state: a refusal; or a challenge, then the response to the
    /// check of the peer, in this order, so that the answer arrives before the next check.
    Answered {
        source: SocketAddr,
        destination: SocketAddr,
        datagrams: Vec<Vec<u8>>,
    },
}

/// The connections of the sockets of one listening address, by remote address and by ICE user
/// fragment.
#[derive(Debug)]
pub(crate) struct Router {
    admission: Arc<Admission>,
    /// Maximum remote addresses of one connection. Further ones are ignored and none is evicted, so
    /// that a flood can not displace the honest ones (as in go-libp2p).
    max_addresses: usize,
    table: Mutex<Table>,
    /// Wakes those who wait for the end.
    end: Waiters,
}

#[derive(Debug, Default)]
struct Table {
    by_address: HashMap<SocketAddr, Known>,
    by_ufrag: HashMap<String, Route>,
    lifetime: Lifetime,
}

impl Table {
    fn is_empty(&self) -> bool {
        self.by_address.is_empty() && self.by_ufrag.is_empty()
    }
}

/// How long the sockets of a router are needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Lifetime {
    /// Until their endpoint ends: peers are admitted.
    #[default]
    OfEndpoint,
    /// As long as there are connections: peers are refused.
    OfConnections,
    /// There were none: nobody receives any more.
    Over,
}

/// The connection of a remote address.
#[derive(Debug)]
struct Known {
    inbox: Arc<Inbox>,
    /// When a datagram of the connection last came from the address.
    heard: Instant,
    /// Boxed: most connections are inbound.
    dial: Option<Box<Dial>>,
}

/// A dial from a shared port.
#[derive(Debug)]
struct Dial {
    server_ufrag: String,
    /// Closed once it is established. Its drop tells the dial that it has lost the address.
    lost: oneshot::Sender<Never>,
}

impl Known {
    fn new(inbox: &Arc<Inbox>, heard: Instant) -> Self {
        Self {
            inbox: Arc::clone(inbox),
            heard,
            dial: None,
        }
    }

    /// The dial, until it is established.
    fn dialling(&self) -> Option<&Dial> {
        self.dial.as_deref().filter(|dial| !dial.lost.is_closed())
    }
}

/// Is never sent.
#[derive(Debug)]
enum Never {}

/// A dial from a shared port, until it is established.
///
/// # Drop
/// The connection keeps the address.
#[derive(Debug)]
pub(crate) struct Dialling(oneshot::Receiver<Never>);

impl Dialling {
    /// Completes when the address has gone to a connection of the peer, which dials at the same
    /// time. Cancel safe.
    pub(crate) async fn displaced(&mut self) {
        if let Ok(never) = (&mut self.0).await {
            match never {}
        }
    }
}

/// Why a port can not be shared by a dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unshared {
    /// Another connection has this pair of addresses.
    Taken,
    /// Nobody receives on the port any more.
    Over,
}

#[derive(Debug)]
struct Route {
    inbox: Arc<Inbox>,
    addresses: Vec<SocketAddr>,
    max_addresses: usize,
}

/// The datagram is not a valid STUN check.
#[derive(Debug)]
struct InvalidCheck;

/// Removes a connection from its router on drop.
#[derive(Debug)]
pub(crate) struct RouteGuard {
    router: Arc<Router>,
    ufrag: String,
    pub(crate) inbox: Arc<Inbox>,
}

impl RouteGuard {
    pub(crate) fn challenge_key(&self) -> &Arc<ChallengeKey> {
        self.router.admission.key()
    }
}

impl Drop for RouteGuard {
    fn drop(&mut self) {
        self.inbox.close();
        let mut table = self.router.lock();
        if let Some(route) = table.by_ufrag.remove(&self.ufrag) {
            for address in route.addresses {
                // Another connection may have taken the address over.
                if let Entry::Occupied(known) = table.by_address.entry(address)
                    && Arc::ptr_eq(&known.get().inbox, &self.inbox)
                {
                    known.remove();
                }
            }
        }
        let was_last = table.is_empty() && table.lifetime != Lifetime::OfEndpoint;
        drop(table);
        if was_last {
            self.router.end.wake_all();
        }
    }
}

impl Router {
    pub(crate) fn new(admission: Arc<Admission>, max_addresses: usize) -> Self {
        Self {
            admission,
            max_addresses,
            table: Mutex::default(),
            end: Waiters::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Both maps change under one lock, and nothing in between can panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Routes what arrives from `remote` to a dial with these credentials.
    pub(crate) fn dial(
        self: &Arc<Self>,
        now: Instant,
        remote: SocketAddr,
        credentials: &ClientCredentials,
    ) -> Result<(RouteGuard, Dialling), Unshared> {
        let ufrag = &credentials.local_ufrag;
        let mut table = self.lock();
        let Table {
            by_address,
            by_ufrag,
            lifetime,
        } = &mut *table;
        if *lifetime == Lifetime::Over {
            return Err(Unshared::Over);
        }
        let (Entry::Vacant(address), Entry::Vacant(own)) =
            (by_address.entry(remote), by_ufrag.entry(ufrag.clone()))
        else {
            return Err(Unshared::Taken);
        };
        let inbox = Arc::new(Inbox::default());
        let (lost, is_lost) = oneshot::channel();
        address.insert(Known {
            dial: Some(Box::new(Dial {
                server_ufrag: credentials.remote_ufrag.clone(),
                lost,
            })),
            ..Known::new(&inbox, now)
        });
        own.insert(Route {
            inbox: Arc::clone(&inbox),
            addresses: vec![remote],
            // A listener of webrtc-direct has one address.
            max_addresses: 1,
        });
        let route = RouteGuard {
            router: Arc::clone(self),
            ufrag: ufrag.clone(),
            inbox,
        };
        Ok((route, Dialling(is_lost)))
    }

    /// From now on [`Self::ended`] completes when there is no connection.
    pub(crate) fn end_when_empty(&self) {
        let mut table = self.lock();
        if table.lifetime == Lifetime::OfEndpoint {
            table.lifetime = Lifetime::OfConnections;
        }
        drop(table);
        self.end.wake_all();
    }

    /// Completes when no connection needs the sockets any more; no dial is added then. Cancel safe.
    pub(crate) async fn ended(&self) {
        let is_over = || {
            let mut table = self.lock();
            if table.lifetime == Lifetime::OfConnections && table.is_empty() {
                table.lifetime = Lifetime::Over;
            }
            table.lifetime == Lifetime::Over
        };
        self.end.until(is_over).await;
    }

    /// Whether peers are admitted.
    pub(crate) fn admits(&self) -> bool {
        self.lock().lifetime == Lifetime::OfEndpoint
    }

    /// Routes received datagrams. `local` is the destination where the system did not report one.
    /// Returns what to do if they are the check of a new peer.
    pub(crate) fn route(
        self: &Arc<Self>,
        now: Instant,
        received: Received<'_>,
        local: SocketAddr,
    ) -> Option<Stranger> {
        let destination = SocketAddr::new(
            received
                .destination
                .map_or_else(|| local.ip(), |ip: IpAddr| ip.to_canonical()),
            local.port(),
        );
        if let Some(inbox) = self.inbox_of(now, &received) {
            deliver(&inbox, &received, destination);
            return None;
        }
        let mut rest = received;
        let stride = received.stride.max(1);
        while !rest.contents.is_empty() {
            let (first, others) = rest.contents.split_at(stride.min(rest.contents.len()));
            // One valid datagram suffices. Those before it were coalesced with it by the system
            // (GRO), and may be of an attacker who forges the source.
            if !self.admission.take_answer(now, received.source, first)
                && let Ok(stranger) = self.handle_unknown(now, rest, first, destination)
            {
                return stranger;
            }
            rest.contents = others;
        }
        None
    }

    /// The inbox of the connection that owns the source address.
    fn inbox_of(&self, now: Instant, received: &Received<'_>) -> Option<Arc<Inbox>> {
        let mut table = self.lock();
        let Table {
            by_address,
            by_ufrag,
            lifetime,
        } = &mut *table;
        let known = by_address.get_mut(&received.source)?;
        let is_own = |ufrag: &str| {
            let route = by_ufrag.get(ufrag);
            route.is_some_and(|route| Arc::ptr_eq(&route.inbox, &known.inbox))
        };
        let checked = ufrag_of_check(received);
        if let Some(dial) = known.dialling() {
            // The peer dials too, and has been challenged.
            for datagram in received.contents.chunks(received.stride.max(1)) {
                self.admission.take_answer(now, received.source, datagram);
            }
            let yields = |ufrag: &str| !is_own(ufrag) && *dial.server_ufrag < *ufrag;
            if *lifetime == Lifetime::OfEndpoint && checked.is_some_and(yields) {
                // If the check is admitted, the address goes to its connection.
                return None;
            }
        }
        if checked.is_none_or(is_own) {
            known.heard = now;
        } else if known.dialling().is_none() && now >= known.heard + ADDRESS_UNUSED {
            by_address.remove(&received.source);
            return None;
        }
        Some(Arc::clone(&known.inbox))
    }

    /// Handles the `first` datagram of a batch from an unknown address. Returns [`InvalidCheck`]
    /// unless it is a valid STUN check.
    fn handle_unknown(
        self: &Arc<Self>,
        now: Instant,
        received: Received<'_>,
        first: &[u8],
        destination: SocketAddr,
    ) -> Result<Option<Stranger>, InvalidCheck> {
        let source = received.source;
        let message = parse_request(first).ok_or(InvalidCheck)?;
        let request = transaction(first).ok_or(InvalidCheck)?;
        let username = message.username().ok_or(InvalidCheck)?;
        let credentials = parse_username(username)
            .inspect_err(|error| {
                tracing::debug!(target: "anabranch::endpoint", %source, %error, "invalid USERNAME");
            })
            .map_err(|_| InvalidCheck)?;
        // The password is derived from the request, so this does not authenticate the sender.
        let is_intact = || message.verify(credentials.local_pwd.as_bytes(), sha1_hmac);
        let mut table = self.lock();
        if let Some(route) = table.by_ufrag.get_mut(&credentials.local_ufrag) {
            // The connection may have used the address before and lost it to another.
            let is_new = !route.addresses.contains(&source);
            if is_new && route.addresses.len() >= route.max_addresses {
                return Ok(None);
            }
            if !is_intact() {
                return Err(InvalidCheck);
            }
            if is_new {
                route.addresses.push(source);
            }
            let inbox = Arc::clone(&route.inbox);
            table.by_address.insert(source, Known::new(&inbox, now));
            drop(table);
            deliver(&inbox, &received, destination);
            return Ok(None);
        }
        // A dialler of a lite agent is controlling (RFC 8445 section 6.1.1), so this is the
        // challenge of another listener. A response to it would validate the address of this one.
        if message.ice_controlled().is_some() {
            return Err(InvalidCheck);
        }
        if table.lifetime != Lifetime::OfEndpoint {
            drop(table);
            if !is_intact() {
                return Err(InvalidCheck);
            }
            return Ok(Some(Stranger::Answered {
                source,
                destination,
                datagrams: vec![refusal(request, &credentials.local_pwd)],
            }));
        }
        let peer_password = &credentials.remote_pwd;
        let admitted = self.admission.admit(now, source, username, peer_password);
        let slot = match admitted {
            Verdict::Admitted(slot) if is_intact() => slot,
            Verdict::Challenged => {
                drop(table);
                if !is_intact() {
                    return Err(InvalidCheck);
                }
                let peer = PeerCredentials::from(&credentials);
                let challenge = self.admission.key().challenge(now, source, &peer);
                let mut datagrams = vec![challenge];
                // A check with USE-CANDIDATE, which Firefox sends first, is not answered: the next
                // one would follow only after seconds. Without a response Firefox repeats it, and
                // the repetition is admitted.
                if !message.use_candidate() {
                    datagrams.push(success(request, source, &credentials.local_pwd));
                }
                return Ok(Some(Stranger::Answered {
                    source,
                    destination,
                    datagrams,
                }));
            }
            Verdict::Admitted(_) => return Err(InvalidCheck),
            Verdict::Dropped => return Ok(None),
        };
        let inbox = Arc::new(Inbox::default());
        deliver(&inbox, &received, destination);
        let ufrag = credentials.local_ufrag.clone();
        // Drops the entry of a dial to the same address, which learns it that way.
        table.by_address.insert(source, Known::new(&inbox, now));
        table.by_ufrag.insert(
            ufrag.clone(),
            Route {
                inbox: Arc::clone(&inbox),
                addresses: vec![source],
                max_addresses: self.max_addresses,
            },
        );
        Ok(Some(Stranger::Admitted(Box::new(FirstContact {
            credentials,
            source,
            destination,
            request,
            slot,
            route: RouteGuard {
                router: Arc::clone(self),
                ufrag,
                inbox,
            },
        }))))
    }

    /// Whether there are no connections.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

fn deliver(inbox: &Inbox, received: &Received<'_>, destination: SocketAddr) {
    inbox.push(
        received.source,
        destination,
        received.contents,
        received.stride,
        received.ecn,
    );
}

/// The local ufrag of the STUN check at the beginning of a batch, if there is one.
fn ufrag_of_check<'a>(received: &Received<'a>) -> Option<&'a str> {
    let first = received.contents.chunks(received.stride.max(1)).next()?;
    let request = parse_request(first)?;
    let (ufrag, _) = request.username()?.split_once(':')?;
    Some(ufrag)
}

/// Parses a STUN binding request (RFC 8489; RFC 7983 for the first byte).
fn parse_request(datagram: &[u8]) -> Option<StunMessage<'_>> {
    if !matches!(datagram.first(), Some(0..=3)) || datagram.len() < 20 {
        return None;
    }
    StunMessage::parse(datagram)
        .ok()
        .filter(StunMessage::is_binding_request)
}

#[cfg(test)]
mod tests;
