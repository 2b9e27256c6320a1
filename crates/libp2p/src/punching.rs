//! Hole punching: the side that a relay has made the listener opens its NAT, and waits for the
//! dial of the other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anabranch::endpoint::PunchError;
use anabranch::{Endpoint, Incoming};
use futures_util::future::{Either, select};
use libp2p_identity::PeerId;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

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

type Senders = HashMap<SocketAddr, oneshot::Sender<Arrival>>;

/// The peers that are expected from behind a NAT.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expected(Arc<Mutex<Senders>>);

impl Expected {
    fn senders(&self) -> MutexGuard<'_, Senders> {
        // Valid after a panic: no entry is half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Expects a peer from this address. `None` if it is expected already.
    pub(crate) fn expect(&self, remote: SocketAddr) -> Option<oneshot::Receiver<Arrival>> {
        let mut senders = self.senders();
        // Nobody waits for them any more.
        senders.retain(|_, expected| !expected.is_closed());
        let Entry::Vacant(entry) = senders.entry(remote) else {
            return None;
        };
        let (sender, receiver) = oneshot::channel();
        entry.insert(sender);
        Some(receiver)
    }

    fn take(&self, remote: SocketAddr, arrival: Arrival) -> Result<(), Arrival> {
        match self.senders().remove(&remote) {
            Some(expected) => expected.send(arrival),
            None => Err(arrival),
        }
    }

    /// Hands the peer to the one who expects it, or returns it.
    pub(crate) fn take_first(&self, incoming: Incoming) -> Option<Incoming> {
        let remote = incoming.remote_address();
        match self.take(remote, Arrival::First(incoming)) {
            Err(Arrival::First(incoming)) => Some(incoming),
            Ok(()) | Err(Arrival::Accepted(..)) => None,
        }
    }

    /// Hands the connection to the one who has begun to expect the peer since it arrived, or
    /// returns it. Where no NAT keeps it out, the dial of the peer may be there first: DCUtR waits
    /// for half of a round trip that it has measured.
    pub(crate) fn take_accepted(
        &self,
        remote: SocketAddr,
        (peer, connection): (PeerId, Connection),
    ) -> Result<(PeerId, Connection), Error> {
        match self.take(remote, Arrival::Accepted(peer, connection)) {
            Err(Arrival::Accepted(peer, connection)) => Ok((peer, connection)),
            Ok(()) | Err(Arrival::First(_)) => Err(Error::Punched),
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
