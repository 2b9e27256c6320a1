//! The socket of a simulated host.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Arrived, Shared};
use anabranch::udp::{DatagramSocket, Received, Transmit};

/// Maximum datagrams of one segmented send or coalesced receive, as on Linux.
const MAX_SEGMENTS: usize = 64;

/// Maximum bytes of one coalesced receive.
const MAX_COALESCED: usize = 64 * 1024;

/// Coalesced receives per call of `poll_receive`.
const RECEIVES_PER_CALL: usize = 8;

/// A UDP socket of a simulated [`Host`](super::Host).
///
/// Endpoints bind their own; this type is for scripted peers and for tests of the network itself.
/// Only one task may receive at a time: a second one replaces the first one's waker.
///
/// # Drop
/// Frees the address at once. Datagrams in flight to it, and those in its receive buffer, are
/// discarded.
pub struct SimulatedSocket {
    network: Arc<Shared>,
    /// As requested by `bind`: the address may be a wildcard.
    local: SocketAddr,
    /// The host's address and the port.
    concrete: SocketAddr,
    receive_timer: Mutex<Option<Pin<Box<Sleep>>>>,
    blocked_until: Mutex<Option<Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each mutex holds a single value, which a panic cannot leave half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimulatedSocket {
    pub(super) fn new(network: Arc<Shared>, local: SocketAddr, concrete: SocketAddr) -> Self {
        Self {
            network,
            local,
            concrete,
            receive_timer: Mutex::new(None),
            blocked_until: Mutex::new(None),
        }
    }

    /// Sends one datagram. Loss on the path is not an error.
    ///
    /// # Errors
    /// - `WouldBlock` if the queue of the path is full, under
    ///   [`Conditions::backpressure`](super::Conditions::backpressure);
    /// - `NetworkUnreachable` after [`Network::unplug`](super::Network::unplug);
    /// - `AddrNotAvailable` if the socket is bound to an address that the host has lost
    ///   ([`Network::renumber`](super::Network::renumber)).
    pub fn send_to(&self, contents: &[u8], destination: SocketAddr) -> io::Result<()> {
        self.try_send(&Transmit::new(destination, contents).with_source(self.local.ip()))
    }

    /// Waits for the next datagram and returns it with its source.
    ///
    /// # Cancel safety
    /// Dropping the future loses no datagram.
    pub async fn receive(&self) -> (Bytes, SocketAddr) {
        poll_fn(|cx| {
            self.poll_arrived(cx, 1).map(|mut arrived| {
                // unwrap: `poll_arrived` is ready with at least one.
                let first = arrived.pop().unwrap();
                (first.contents, first.source)
            })
        })
        .await
    }

    /// Returns the address that the socket is bound to, which may be a wildcard.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Returns at least one received datagram and at most `max`.
    fn poll_arrived(&self, cx: &mut Context<'_>, max: usize) -> Poll<Vec<Arrived>> {
        loop {
            let next = match self.network.receive(self.concrete, max, cx.waker()) {
                Ok(arrived) => return Poll::Ready(arrived),
                Err(next) => next,
            };
            let Some(next) = next else {
                return Poll::Pending;
            };
            let mut timer = lock(&self.receive_timer);
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
            if timer.deadline() != next {
                timer.as_mut().reset(next);
            }
            std::task::ready!(timer.as_mut().poll(cx));
        }
    }
}

impl Drop for SimulatedSocket {
    fn drop(&mut self) {
        self.network.unbind(self.concrete);
    }
}

impl fmt::Debug for SimulatedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimulatedSocket").field(&self.local).finish()
    }
}

impl DatagramSocket for SimulatedSocket {
    fn try_send(&self, outgoing: &Transmit<'_>) -> io::Result<()> {
        let address = self.network.state().address_of(self.concrete.ip())?;
        // A socket that is bound to an address sends only from that address.
        for source in [outgoing.source, self.local.ip()] {
            if !source.is_unspecified() && source != address {
                return Err(io::ErrorKind::AddrNotAvailable.into());
            }
        }
        let length = outgoing.contents.len();
        let size = outgoing.segment_size.unwrap_or(length).max(1);
        if length.div_ceil(size) > self.max_segments() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if let Some(until) = self
            .network
            .blocked_until(self.concrete, outgoing.destination, length)
        {
            *lock(&self.blocked_until) = Some(until);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        for datagram in outgoing.contents.chunks(size) {
            self.network
                .send(self.concrete, outgoing.destination, datagram, outgoing.ecn);
        }
        Ok(())
    }

    fn writable(self: Arc<Self>) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
        Box::pin(async move {
            let until = lock(&self.blocked_until).take();
            if let Some(until) = until {
                tokio::time::sleep_until(until).await;
            }
            Ok(())
        })
    }

    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(Received<'_>),
    ) -> Poll<io::Result<()>> {
        let coalesce = self.max_segments();
        let arrived = std::task::ready!(self.poll_arrived(cx, coalesce * RECEIVES_PER_CALL));
        let mut rest = arrived.as_slice();
        while let Some(first) = rest.first() {
            let run = coalesced(rest, coalesce);
            let (run, after) = rest.split_at(run);
            if first.contents.is_empty() {
                // The system's sockets do not report empty datagrams either.
                rest = after;
                continue;
            }
            let mut contents = BytesMut::new();
            for datagram in run {
                contents.extend_from_slice(&datagram.contents);
            }
            rest = after;
            let received =
                Received::new(first.source, &contents, first.contents.len()).with_ecn(first.ecn);
            sink(received.with_destination(self.concrete.ip()));
        }
        Poll::Ready(Ok(()))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn source_towards(&self, _remote: SocketAddr) -> io::Result<IpAddr> {
        self.network.state().address_of(self.concrete.ip())
    }

    fn max_segments(&self) -> usize {
        if self.network.has_offload(self.concrete.ip()) {
            MAX_SEGMENTS
        } else {
            1
        }
    }

    /// A link drops what is longer than its `mtu`.
    fn may_fragment(&self) -> bool {
        false
    }
}

/// How many datagrams at the front form one coalesced receive: those with the source, the ECN
/// codepoint and the size of the first, and a shorter one after them.
fn coalesced(arrived: &[Arrived], max: usize) -> usize {
    let Some(first) = arrived.first() else {
        return 0;
    };
    let size = first.contents.len();
    let mut bytes = size;
    let mut count = 1;
    for next in arrived.iter().take(max).skip(1) {
        let length = next.contents.len();
        bytes += length;
        if next.source != first.source
            || next.ecn != first.ecn
            || length > size
            || bytes > MAX_COALESCED
        {
            break;
        }
        count += 1;
        if length < size {
            break;
        }
    }
    count
}
