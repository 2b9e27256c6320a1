//! Which connection a datagram belongs to.
//!
//! ```text
//! datagram ── known source address ───────────────────────────► that connection's inbox
//!     │
//!     └─ STUN request ── USERNAME known ── integrity holds ───► the same, and its address is known
//!            │
//!            └─ USERNAME new ── well formed ── integrity holds ─► a new connection, if there is room
//! ```
//!
//! Anything else is dropped before any state is made for it. DTLS thus only passes from addresses
//! that ICE has heard of with the right password (the ClientHello race of several servers was to
//! take it from anywhere).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use str0m::ice::StunMessage;

use super::inbox::Inbox;
use super::socket::Received;
use crate::ufrag::{ServerCredentials, parse_username};
use crate::webrtc::sha1_hmac;

/// Addresses that one connection may come from; more are refused, none are forgotten for them, so
/// that a flood can not push the honest ones out (go-libp2p does the same).
const MAX_ADDRESSES: usize = 32;

/// A first contact that passed every check.
#[derive(Debug)]
pub(super) struct FirstContact {
    pub(super) credentials: ServerCredentials,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) route: RouteGuard,
}

/// The connections of one listening socket by address and by ICE user fragment.
#[derive(Debug, Default)]
pub(super) struct Router {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_address: HashMap<SocketAddr, Arc<Inbox>>,
    by_ufrag: HashMap<String, Route>,
}

#[derive(Debug)]
struct Route {
    inbox: Arc<Inbox>,
    password: String,
    addresses: Vec<SocketAddr>,
}

/// Takes a connection out of its router when it is dropped.
#[derive(Debug)]
pub(crate) struct RouteGuard {
    router: Arc<Router>,
    ufrag: String,
    pub(crate) inbox: Arc<Inbox>,
}

impl Drop for RouteGuard {
    fn drop(&mut self) {
        self.inbox.close();
        let mut table = self.router.lock();
        if let Some(route) = table.by_ufrag.remove(&self.ufrag) {
            for address in route.addresses {
                table.by_address.remove(&address);
            }
        }
    }
}

impl Router {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // Both maps change together under this lock, and nothing in between can panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Routes what has arrived. `local` stands for the address it came to where the system did not
    /// tell. Returns the first contacts in it; `admit` says whether there is room for one more.
    pub(super) fn route(
        self: &Arc<Self>,
        received: Received<'_>,
        local: SocketAddr,
        admit: impl Fn() -> bool,
    ) -> Option<FirstContact> {
        let destination = SocketAddr::new(
            received
                .destination
                .map_or_else(|| local.ip(), |ip: IpAddr| ip.to_canonical()),
            local.port(),
        );
        let mut table = self.lock();
        if let Some(inbox) = table.by_address.get(&received.source) {
            let inbox = Arc::clone(inbox);
            drop(table);
            inbox.push(
                received.source,
                destination,
                received.contents,
                received.stride,
            );
            return None;
        }
        // The first datagram of an unknown sender is the one that has to convince us.
        let first = received.contents.chunks(received.stride).next()?;
        let message = parse_request(first)?;
        let username = message.username()?;
        let ufrag = username.split(':').next()?;
        if let Some(route) = table.by_ufrag.get_mut(ufrag) {
            if route.addresses.len() >= MAX_ADDRESSES
                || !message.verify(route.password.as_bytes(), sha1_hmac)
            {
                return None;
            }
            route.addresses.push(received.source);
            let inbox = Arc::clone(&route.inbox);
            table.by_address.insert(received.source, Arc::clone(&inbox));
            drop(table);
            inbox.push(
                received.source,
                destination,
                received.contents,
                received.stride,
            );
            return None;
        }
        let credentials = parse_username(username)
            .inspect_err(|error| {
                let source = received.source;
                tracing::debug!(target: "anabranch::endpoint", %source, %error, "STUN refused");
            })
            .ok()?;
        if !message.verify(credentials.local_pwd.as_bytes(), sha1_hmac) || !admit() {
            return None;
        }
        let inbox = Arc::new(Inbox::default());
        inbox.push(
            received.source,
            destination,
            received.contents,
            received.stride,
        );
        let ufrag = credentials.local_ufrag.clone();
        table.by_address.insert(received.source, Arc::clone(&inbox));
        table.by_ufrag.insert(
            ufrag.clone(),
            Route {
                inbox: Arc::clone(&inbox),
                password: credentials.local_pwd.clone(),
                addresses: vec![received.source],
            },
        );
        Some(FirstContact {
            credentials,
            source: received.source,
            destination,
            route: RouteGuard {
                router: Arc::clone(self),
                ufrag,
                inbox,
            },
        })
    }

    /// Whether no connection is left.
    pub(super) fn is_empty(&self) -> bool {
        let table = self.lock();
        table.by_address.is_empty() && table.by_ufrag.is_empty()
    }
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
