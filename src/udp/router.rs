//! Which connection a datagram belongs to.
//!
//! ```text
//! datagram ── known source address ───────────────────────────► that connection's inbox
//!     │            └─ check of another connection, and long unused ─► as from an unknown address
//!     │
//!     ├─ STUN request ── USERNAME known ── integrity holds ───► the same, and its address is known
//!     │      │
//!     │      └─ USERNAME new ── well formed ── integrity holds ─► admission decides
//!     │
//!     └─ answer to a challenge ───────────────────────────────► admission remembers the address
//! ```
//!
//! Anything else is dropped before any state is made for it. DTLS thus only passes from addresses
//! that ICE has heard of with the right password (the ClientHello race of several servers was to
//! take it from anywhere).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use is::stun::StunMessage;
use tokio::time::Instant;

use super::admission::challenge::{
    ChallengeKey, PeerCredentials, Transaction, success, transaction,
};
use super::admission::{Admission, Slot, Verdict};
use super::inbox::Inbox;
use super::socket::Received;
use crate::ufrag::{ServerCredentials, parse_username};
use anabranch_rtc::sha1_hmac;

/// How long a connection has to be unheard of at an address before that may be another's. A peer that is
/// there sends checks more often (RFC 7675 section 5.1).
///
/// A connection may live on at another address for days, while a NAT gives the port that it had to somebody
/// else. In use an address stays where it is: whoever forges it must not take it away.
const ADDRESS_UNUSED: Duration = Duration::from_secs(30);

/// A first contact that passed every check.
#[derive(Debug)]
pub(crate) struct FirstContact {
    pub(crate) credentials: ServerCredentials,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    /// Names the request, for an answer to it.
    pub(crate) request: Transaction,
    pub(crate) slot: Slot,
    pub(crate) route: RouteGuard,
}

/// What is to be done about a stranger.
#[derive(Debug)]
pub(crate) enum Stranger {
    /// It is the first contact of a connection.
    Admitted(Box<FirstContact>),
    /// These two datagrams are to be sent to it, and nothing is to be kept: a challenge, and the
    /// response to its own check, in this order, so that its answer comes before what it does next.
    Challenged {
        source: SocketAddr,
        destination: SocketAddr,
        datagrams: Vec<Vec<u8>>,
    },
}

/// The connections of listening sockets with one port, by address and by ICE user fragment.
#[derive(Debug)]
pub(crate) struct Router {
    admission: Arc<Admission>,
    /// Addresses that one connection may come from; more are refused, none are forgotten for them,
    /// so that a flood can not push the honest ones out (go-libp2p does the same).
    max_addresses: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_address: HashMap<SocketAddr, Known>,
    by_ufrag: HashMap<String, Route>,
}

/// Where datagrams from an address go.
#[derive(Debug)]
struct Known {
    inbox: Arc<Inbox>,
    /// When something of that connection last came from there.
    heard: Instant,
}

#[derive(Debug)]
struct Route {
    inbox: Arc<Inbox>,
    addresses: Vec<SocketAddr>,
}

/// A datagram that is no first contact.
#[derive(Debug)]
struct Unsound;

/// Takes a connection out of its router when it is dropped.
#[derive(Debug)]
pub(crate) struct RouteGuard {
    router: Arc<Router>,
    ufrag: String,
    pub(crate) inbox: Arc<Inbox>,
    /// For challenges to the addresses of this connection.
    pub(crate) peer: PeerCredentials,
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
                // It may have become another's meanwhile.
                if let Entry::Occupied(known) = table.by_address.entry(address)
                    && Arc::ptr_eq(&known.get().inbox, &self.inbox)
                {
                    known.remove();
                }
            }
        }
    }
}

impl Router {
    pub(crate) fn new(admission: Arc<Admission>, max_addresses: usize) -> Self {
        Self {
            admission,
            max_addresses,
            table: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Both maps change together under this lock, and nothing in between can panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Routes what has arrived. `local` stands for the address it came to where the system did not
    /// tell. Returns what is to be done if a stranger sent it.
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
            inbox.push(
                received.source,
                destination,
                received.contents,
                received.stride,
            );
            return None;
        }
        let mut rest = received;
        let stride = received.stride.max(1);
        while !rest.contents.is_empty() {
            let (first, behind) = rest.contents.split_at(stride.min(rest.contents.len()));
            // A sender has to convince us with one datagram. What stands in front of that was glued to it by the
            // system (GRO), and may be of somebody who forges the sender's address.
            if !self.admission.take_answer(now, received.source, first)
                && let Ok(met) = self.meet(now, rest, first, destination)
            {
                return met;
            }
            rest.contents = behind;
        }
        None
    }

    /// The connection that is known at the address which this came from.
    fn inbox_of(&self, now: Instant, received: &Received<'_>) -> Option<Arc<Inbox>> {
        let mut table = self.lock();
        let Table {
            by_address,
            by_ufrag,
        } = &mut *table;
        let known = by_address.get_mut(&received.source)?;
        let is_own = |ufrag: &str| {
            let route = by_ufrag.get(ufrag);
            route.is_some_and(|route| Arc::ptr_eq(&route.inbox, &known.inbox))
        };
        if ufrag_of_check(received).is_none_or(is_own) {
            known.heard = now;
        } else if now >= known.heard + ADDRESS_UNUSED {
            by_address.remove(&received.source);
            return None;
        }
        Some(Arc::clone(&known.inbox))
    }

    /// Looks at the `first` datagram of those that came from an unknown address; what it is no first
    /// contact for is [`Unsound`].
    fn meet(
        self: &Arc<Self>,
        now: Instant,
        received: Received<'_>,
        first: &[u8],
        destination: SocketAddr,
    ) -> Result<Option<Stranger>, Unsound> {
        let source = received.source;
        let message = parse_request(first).ok_or(Unsound)?;
        let request = transaction(first).ok_or(Unsound)?;
        let username = message.username().ok_or(Unsound)?;
        let credentials = parse_username(username)
            .inspect_err(|error| {
                tracing::debug!(target: "anabranch::endpoint", %source, %error, "STUN refused");
            })
            .map_err(|_| Unsound)?;
        // The password is no secret, but in the request itself: this only tells who speaks ICE.
        let is_intact = || message.verify(credentials.local_pwd.as_bytes(), sha1_hmac);
        let mut table = self.lock();
        if let Some(route) = table.by_ufrag.get_mut(&credentials.local_ufrag) {
            // It may have been there before, and the address another's meanwhile.
            let is_new = !route.addresses.contains(&source);
            if is_new && route.addresses.len() >= self.max_addresses {
                return Ok(None);
            }
            if !is_intact() {
                return Err(Unsound);
            }
            if is_new {
                route.addresses.push(source);
            }
            let inbox = Arc::clone(&route.inbox);
            let known = Known {
                inbox: Arc::clone(&inbox),
                heard: now,
            };
            table.by_address.insert(source, known);
            drop(table);
            inbox.push(source, destination, received.contents, received.stride);
            return Ok(None);
        }
        // Nobody who dials a lite agent is controlled (RFC 8445 section 6.1.1): this is the challenge of another listener,
        // which must not have our response for a proof of our address.
        if message.ice_controlled().is_some() {
            return Err(Unsound);
        }
        let peer_password = &credentials.remote_pwd;
        let admitted = self.admission.admit(now, source, username, peer_password);
        let slot = match admitted {
            Verdict::Admitted(slot) if is_intact() => slot,
            Verdict::Challenged => {
                drop(table);
                if !is_intact() {
                    return Err(Unsound);
                }
                let peer = PeerCredentials::from(&credentials);
                let challenge = self.admission.key().challenge(now, source, &peer);
                let mut datagrams = vec![challenge];
                // A check that nominates already, as Firefox sends first, would be the last for seconds if it were
                // answered. Without an answer it is repeated, and then admitted.
                if !message.use_candidate() {
                    datagrams.push(success(request, source, &credentials.local_pwd));
                }
                return Ok(Some(Stranger::Challenged {
                    source,
                    destination,
                    datagrams,
                }));
            }
            Verdict::Admitted(_) => return Err(Unsound),
            Verdict::Dropped => return Ok(None),
        };
        let peer = PeerCredentials::from(&credentials);
        let inbox = Arc::new(Inbox::default());
        inbox.push(source, destination, received.contents, received.stride);
        let ufrag = credentials.local_ufrag.clone();
        let known = Known {
            inbox: Arc::clone(&inbox),
            heard: now,
        };
        table.by_address.insert(source, known);
        table.by_ufrag.insert(
            ufrag.clone(),
            Route {
                inbox: Arc::clone(&inbox),
                addresses: vec![source],
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
                peer,
            },
        }))))
    }

    /// Whether no connection is left.
    pub(crate) fn is_empty(&self) -> bool {
        let table = self.lock();
        table.by_address.is_empty() && table.by_ufrag.is_empty()
    }
}

/// The ufrag of this side in a check at the beginning of a batch, if there is one.
fn ufrag_of_check<'a>(received: &Received<'a>) -> Option<&'a str> {
    let first = received.contents.chunks(received.stride.max(1)).next()?;
    let request = parse_request(first)?;
    let (ufrag, _) = request.username()?.split_once(':')?;
    Some(ufrag)
}

/// A STUN binding request, if it is one (RFC 8489; the first byte tells STUN apart, RFC 7983).
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
