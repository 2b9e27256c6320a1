//! Hole punching: the side that a relay has made the listener opens its NAT, and waits for the
//! dial of the other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::time::Duration;

use anabranch::endpoint::PunchError;
use anabranch::{Endpoint, Incoming};
use futures_util::future::{Either, select};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::error::Error;

/// Between two datagrams. A NAT keeps the hole for at least 30 s; the datagrams may be lost, or
/// arrive before the peer has opened its own.
const INTERVAL: Duration = Duration::from_millis(100);

/// The peers that are expected from behind a NAT.
#[derive(Debug, Default)]
pub(crate) struct Expected(HashMap<SocketAddr, oneshot::Sender<Incoming>>);

impl Expected {
    /// Expects a peer from this address. `None` if it is expected already.
    pub(crate) fn expect(&mut self, remote: SocketAddr) -> Option<oneshot::Receiver<Incoming>> {
        // Nobody waits for them any more.
        self.0.retain(|_, expected| !expected.is_closed());
        let Entry::Vacant(entry) = self.0.entry(remote) else {
            return None;
        };
        let (sender, receiver) = oneshot::channel();
        entry.insert(sender);
        Some(receiver)
    }

    /// Hands the peer to the one who expects it, or returns it.
    pub(crate) fn take(&mut self, incoming: Incoming) -> Option<Incoming> {
        match self.0.remove(&incoming.remote_address()) {
            Some(expected) => expected.send(incoming).err(),
            None => Some(incoming),
        }
    }
}

/// Sends datagrams to `remote` until the peer arrives from there.
pub(crate) async fn punch(
    endpoint: &Endpoint,
    remote: SocketAddr,
    arrival: oneshot::Receiver<Incoming>,
    limit: Duration,
) -> Result<Incoming, Error> {
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
        Ok(Either::Left((Ok(incoming), _))) => Ok(incoming),
        // The transport is gone.
        Ok(Either::Left((Err(_), _))) => Err(Error::NoListener),
        Ok(Either::Right((error, _))) => Err(error),
        Err(_) => Err(Error::NotPunched),
    }
}
