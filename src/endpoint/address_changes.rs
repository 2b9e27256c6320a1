//! The addresses of an endpoint as they come and go.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::time::sleep;

use super::inner::Inner;
use crate::address::PeerAddress;
use crate::waiters::Waiters;

/// How often the interfaces of the machine are listed.
const INTERVAL: Duration = Duration::from_secs(5);

/// A change of the addresses at which peers can dial an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressEvent {
    /// Peers can dial this address from now on.
    Added(PeerAddress),
    /// Peers can not dial it any more: its listener was closed, or its interface is gone.
    /// Connections live on where the system lets them.
    Expired(PeerAddress),
}

/// The changes of [`Endpoint::peer_addresses`](super::Endpoint::peer_addresses): see
/// [`Endpoint::address_changes`](super::Endpoint::address_changes).
///
/// It does not hold the endpoint. Dropping it has no effect.
#[derive(Debug)]
pub struct AddressChanges {
    endpoint: Weak<Inner>,
    changed: Arc<Waiters>,
    seen: Seen,
}

#[derive(Debug, Default)]
struct Seen {
    addresses: Vec<PeerAddress>,
    events: VecDeque<AddressEvent>,
}

impl Seen {
    fn compare(&mut self, now: Vec<PeerAddress>) {
        let expired = self.addresses.iter().filter(|old| !now.contains(old));
        self.events
            .extend(expired.cloned().map(AddressEvent::Expired));
        let added = now.iter().filter(|new| !self.addresses.contains(new));
        self.events.extend(added.cloned().map(AddressEvent::Added));
        self.addresses = now;
    }
}

impl AddressChanges {
    pub(super) fn new(endpoint: &Arc<Inner>) -> Self {
        Self {
            endpoint: Arc::downgrade(endpoint),
            changed: Arc::clone(endpoint.ports.changed()),
            seen: Seen::default(),
        }
    }

    /// The next change; at first [`AddressEvent::Added`] for every address that there is. `None`
    /// when the endpoint is closed or dropped and every address has expired.
    ///
    /// A listener that is added or closed is reported at once. The interfaces of the machine are
    /// listed by each call that does not find a change noted already, and every 5 s while it waits.
    ///
    /// # Cancel safety
    /// No change is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<AddressEvent> {
        let Self {
            endpoint,
            changed,
            seen,
        } = self;
        loop {
            let look = || {
                if let Some(event) = seen.events.pop_front() {
                    return Poll::Ready(Some(event));
                }
                let endpoint = endpoint.upgrade().filter(|endpoint| !endpoint.is_closed());
                let now = endpoint.as_ref().map(|endpoint| endpoint.peer_addresses());
                seen.compare(now.unwrap_or_default());
                match seen.events.pop_front() {
                    None if endpoint.is_some() => Poll::Pending,
                    event => Poll::Ready(event),
                }
            };
            let tick = pin!(sleep(INTERVAL));
            match select(pin!(changed.wait(look)), tick).await {
                Either::Left((event, _)) => return event,
                Either::Right(((), _)) => {}
            }
        }
    }
}
