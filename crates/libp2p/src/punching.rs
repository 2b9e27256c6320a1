//! Hole punching: the side that a relay has made the listener opens its NAT, and waits for the
//! dial of the other.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anabranch::endpoint::PunchError;
use anabranch::{Endpoint, Incoming};
use futures_util::future::{Either, select};
use libp2p_identity::PeerId;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::connection::Connection;
use crate::error::Error;

/// Between two datagrams. A NAT keeps the hole for at least 30 s; the datagrams may be lost, or
/// arrive before the peer has opened its own.
const INTERVAL: Duration = Duration::from_millis(100);

/// A peer that was expected.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// Its first datagram has arrived.
    First(Incoming),
    /// It had arrived before it was expected.
    Accepted(PeerId, Connection),
}

/// A peer that is expected.
#[derive(Debug)]
struct Expectation {
    peer: Option<PeerId>,
    sender: oneshot::Sender<Arrival>,
}

/// How long a peer that has arrived counts as one that a hole punch has missed: more than the
/// error of DCUtR's measurement of half a round trip.
const MISSED: Duration = Duration::from_secs(2);

/// Peers that are remembered for that time. The hole punch for an older one times out.
const MAX_ARRIVED: usize = 64;

#[derive(Debug, Default)]
struct Peers {
    expected: HashMap<SocketAddr, Expectation>,
    /// The address from which a peer is expected, the last one if there are several.
    addresses: HashMap<PeerId, SocketAddr>,
    /// Addresses of those who have arrived last, expected by nobody.
    arrived: VecDeque<(Instant, SocketAddr)>,
}

impl Peers {
    /// Removes what nobody waits for any more.
    fn clean(&mut self) {
        self.expected
            .retain(|_, expected| !expected.sender.is_closed());
        let expected = &self.expected;
        self.addresses
            .retain(|_, address| expected.contains_key(address));
        self.forget();
    }

    /// Forgets who has arrived some time ago.
    fn forget(&mut self) {
        let is_old = |&(at, _): &(Instant, _)| at.elapsed() > MISSED;
        while self.arrived.front().is_some_and(is_old) || self.arrived.len() > MAX_ARRIVED {
            self.arrived.pop_front();
        }
    }

    fn expect(
        &mut self,
        remote: SocketAddr,
        peer: Option<PeerId>,
    ) -> Result<oneshot::Receiver<Arrival>, Error> {
        self.clean();
        if let Some(index) = self.arrived.iter().position(|(_, other)| *other == remote) {
            self.arrived.remove(index);
            return Err(Error::AlreadyConnected);
        }
        let Entry::Vacant(entry) = self.expected.entry(remote) else {
            return Err(Error::PunchInProgress);
        };
        let (sender, receiver) = oneshot::channel();
        entry.insert(Expectation { peer, sender });
        if let Some(peer) = peer {
            self.addresses.insert(peer, remote);
        }
        Ok(receiver)
    }

    /// Hands it to the one who expects a peer from there, or returns it.
    fn take(&mut self, remote: SocketAddr, arrival: Arrival) -> Option<Arrival> {
        let Some(Expectation { peer, sender }) = self.expected.remove(&remote) else {
            return Some(arrival);
        };
        if let Some(peer) = peer
            && self.addresses.get(&peer) == Some(&remote)
        {
            self.addresses.remove(&peer);
        }
        sender.send(arrival).err()
    }
}

/// The peers that are expected from behind a NAT.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expected(Arc<Mutex<Peers>>);

impl Expected {
    fn peers(&self) -> MutexGuard<'_, Peers> {
        // Valid after a panic: a peer that is half entered is only not found by its id.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Expects this peer, or any one, from this address.
    pub(crate) fn expect(
        &self,
        remote: SocketAddr,
        peer: Option<PeerId>,
    ) -> Result<oneshot::Receiver<Arrival>, Error> {
        self.peers().expect(remote, peer)
    }

    /// Hands a peer whose first datagram has arrived to the one who expects any peer from there, or
    /// returns it. Who expects a certain one waits until it has proven its identity: whoever asks
    /// for the hole names the address, which may be that of another peer.
    pub(crate) fn take_first(&self, incoming: Incoming) -> Option<Incoming> {
        let remote = incoming.remote_address();
        let mut peers = self.peers();
        let expected = peers.expected.get(&remote);
        if expected.is_some_and(|expected| expected.peer.is_some()) {
            return Some(incoming);
        }
        match peers.take(remote, Arrival::First(incoming)) {
            Some(Arrival::First(incoming)) => Some(incoming),
            None | Some(Arrival::Accepted(..)) => None,
        }
    }

    /// Hands a connection to the one who expects the peer, or returns it.
    ///
    /// Where no NAT keeps it out, the dial of the peer may arrive before it is expected: DCUtR
    /// waits for half of a round trip that it has measured. And a NAT may show it with another
    /// port than to the relay.
    pub(crate) fn take_accepted(
        &self,
        remote: SocketAddr,
        (peer, connection): (PeerId, Connection),
    ) -> Result<(PeerId, Connection), Error> {
        let mut peers = self.peers();
        let expected = match peers.expected.get(&remote) {
            Some(expected) if expected.peer.is_none_or(|other| other == peer) => Some(remote),
            _ => peers.addresses.get(&peer).copied(),
        };
        let arrival = Arrival::Accepted(peer, connection);
        let left = match expected {
            Some(expected) => peers.take(expected, arrival),
            None => Some(arrival),
        };
        match left {
            Some(Arrival::Accepted(peer, connection)) => {
                peers.arrived.push_back((Instant::now(), remote));
                peers.forget();
                Ok((peer, connection))
            }
            None | Some(Arrival::First(_)) => Err(Error::Punched),
        }
    }
}

/// Sends datagrams to `remote` until the peer arrives from there.
pub(crate) async fn punch(
    endpoint: &Endpoint,
    remote: SocketAddr,
    arrival: oneshot::Receiver<Arrival>,
    limit: Duration,
) -> Result<Arrival, Error> {
    let punching = Box::pin(async {
        loop {
            // Other datagrams may get through.
            if let Err(PunchError::NoListener { .. }) = endpoint.punch(remote) {
                return Error::NoListener;
            }
            sleep(INTERVAL).await;
        }
    });
    match timeout(limit, select(arrival, punching)).await {
        Ok(Either::Left((Ok(arrival), _))) => Ok(arrival),
        // The transport is gone.
        Ok(Either::Left((Err(_), _))) => Err(Error::NoListener),
        Ok(Either::Right((error, _))) => Err(error),
        Err(_) => Err(Error::NotPunched),
    }
}
