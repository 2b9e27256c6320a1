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

/// Datagrams that one call sends or receives at once, as with the offloads of Linux.
const MAX_SEGMENTS: usize = 64;

/// Bytes of datagrams that one call receives at once.
const MAX_COALESCED: usize = 64 * 1024;

/// Coalesced receives in one call.
const RECEIVES_PER_CALL: usize = 8;

/// A UDP socket of a simulated [`Host`](super::Host).
///
/// Endpoints bind their own; this is for scripted peers and for tests of the network itself.
///
/// # Drop
/// Frees the address. What is under way to it arrives nowhere.
pub struct SimulatedSocket {
    network: Arc<Shared>,
    /// As it was asked for: the address may be a wildcard.
    local: SocketAddr,
    /// The address on the network.
    concrete: SocketAddr,
    receive_timer: Mutex<Option<Pin<Box<Sleep>>>>,
    blocked_until: Mutex<Option<Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Single values.
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

    /// Sends one datagram.
    ///
    /// # Errors
    /// `WouldBlock` under [`Conditions::backpressure`](super::Conditions::backpressure).
    pub fn send_to(&self, contents: &[u8], destination: SocketAddr) -> io::Result<()> {
        self.try_send(&Transmit {
            destination,
            source: self.local.ip(),
            contents,
            segment_size: None,
        })
    }

    /// Waits for the next datagram and returns it with its source. Cancel safe.
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

    /// The address the socket is bound to.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// At least one datagram that has arrived, and at most `max`.
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
        // A socket that is bound to an address sends from that, or not at all.
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
                .send(self.concrete, outgoing.destination, datagram);
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
            let (run, behind) = rest.split_at(run);
            if first.contents.is_empty() {
                // As the socket of the system: nothing is to be said about nothing.
                rest = behind;
                continue;
            }
            let mut contents = BytesMut::new();
            for datagram in run {
                contents.extend_from_slice(&datagram.contents);
            }
            rest = behind;
            sink(Received {
                source: first.source,
                destination: Some(self.concrete.ip()),
                contents: &contents,
                stride: first.contents.len(),
            });
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
}

/// How many datagrams at the front come out of one receive: those of one source and one size, and
/// a shorter one behind them.
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
        if next.source != first.source || length > size || bytes > MAX_COALESCED {
            break;
        }
        count += 1;
        if length < size {
            break;
        }
    }
    count
}
