//! Connections from others: one task a listening socket, and the queue of first contacts.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, ready};

use anabranch_rtc::{Role, Setup};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::error::ConnectError;
use super::handshake::{Expectations, Phase};
use crate::connection::Connection;
use crate::udp::admission::challenge::refusal;
use crate::udp::router::{FirstContact, Router, Stranger};
use crate::udp::{DatagramSocket, Transmit};
use crate::ufrag::Version;
use crate::webrtc::{Source, WebRtcCarrier};

/// Receive calls that one poll of the task makes before others get their turn.
const RECEIVES_PER_POLL: usize = 16;

/// A listening socket with its router.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: Arc<dyn DatagramSocket>,
    pub(super) local: SocketAddr,
    pub(super) router: Arc<Router>,
}

/// First contacts that wait for the application. Each holds the place of a handshake, which bounds
/// their number, and goes when its time is over.
#[derive(Debug, Default)]
pub(super) struct IncomingQueue {
    waiting: Mutex<VecDeque<Incoming>>,
    notify: Notify,
}

impl IncomingQueue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Incoming>> {
        // A queue of whole entries.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops those that nobody took in time; they would not answer any more. Returns when the next
    /// one's time is over.
    fn drop_expired(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut expired = Vec::new();
        let next = {
            let mut waiting = self.lock();
            while waiting.front().is_some_and(|first| first.expires <= now) {
                expired.extend(waiting.pop_front());
            }
            waiting.front().map(|first| first.expires)
        };
        // Outside of the lock: dropping one takes it out of its router.
        drop(expired);
        next
    }

    fn push(&self, incoming: Incoming) {
        self.lock().push_back(incoming);
        self.notify.notify_one();
    }

    /// The next first contact; `None` once `is_closed` says so. Cancel safe.
    pub(super) async fn next(&self, is_closed: impl Fn() -> bool) -> Option<Incoming> {
        loop {
            let notified = self.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            self.drop_expired();
            if is_closed() {
                return None;
            }
            {
                let mut waiting = self.lock();
                if let Some(incoming) = waiting.pop_front() {
                    if !waiting.is_empty() {
                        // Another task may wait for what is left.
                        self.notify.notify_one();
                    }
                    return Some(incoming);
                }
            }
            notified.await;
        }
    }

    pub(super) fn close(&self) {
        let waiting = std::mem::take(&mut *self.lock());
        drop(waiting);
        self.notify.notify_waiters();
    }
}

/// Receives for a listening socket until its endpoint is gone.
///
/// Never waits for a connection or the application: what finds no room is dropped.
pub(super) async fn receive(listener: Arc<Listener>, endpoint: Weak<Inner>) {
    let mut expiry = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        let Some(endpoint) = endpoint.upgrade() else {
            return Poll::Ready(());
        };
        // Also while so much arrives that this never has to wait.
        endpoint.incoming.drop_expired();
        for _ in 0..RECEIVES_PER_POLL {
            let mut strangers = Vec::new();
            let now = Instant::now();
            let polled = listener.socket.poll_receive(cx, &mut |received| {
                strangers.extend(listener.router.route(now, received, listener.local));
            });
            for stranger in strangers {
                meet(&listener, &endpoint, stranger);
            }
            match polled {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    // Errors of a UDP socket are about single datagrams; a socket that is really
                    // broken says so again, at the pace of the scheduler.
                    tracing::warn!(target: "anabranch::endpoint", %error, "receive failed");
                    break;
                }
                Poll::Pending => {
                    // Behind the first contacts that have just come.
                    while let Some(next) = endpoint.incoming.drop_expired() {
                        if expiry.deadline() != next {
                            expiry.as_mut().reset(next);
                        }
                        ready!(expiry.as_mut().poll(cx));
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn meet(listener: &Arc<Listener>, endpoint: &Arc<Inner>, stranger: Stranger) {
    match stranger {
        Stranger::Admitted(contact) => {
            let incoming = Incoming {
                expires: Instant::now() + endpoint.config.connect_timeout,
                contact,
                socket: Arc::downgrade(&listener.socket),
                endpoint: Arc::downgrade(endpoint),
            };
            if endpoint.is_closed() {
                incoming.ignore();
            } else if endpoint.is_full() {
                incoming.refuse();
            } else {
                endpoint.incoming.push(incoming);
            }
        }
        Stranger::Challenged {
            source,
            destination,
            datagrams,
        } => {
            for datagram in datagrams {
                send_once(&*listener.socket, &datagram, destination, source);
            }
        }
    }
}

/// Sends a datagram if the socket takes it at once; it counts as lost otherwise.
fn send_once(socket: &dyn DatagramSocket, contents: &[u8], from: SocketAddr, to: SocketAddr) {
    let transmit = Transmit {
        destination: to,
        source: from.ip(),
        contents,
        segment_size: None,
    };
    if let Err(error) = socket.try_send(&transmit) {
        tracing::trace!(target: "anabranch::endpoint", %to, %error, "no answer to a stranger");
    }
}

/// Somebody who wants to connect, with nothing spent on it yet but a place in the queue.
///
/// It holds one of [`EndpointConfig::max_handshakes`](super::EndpointConfig::max_handshakes) until it
/// is accepted and established, refused, or dropped: decide soon. While it waits for
/// [`Endpoint::accept`](super::Endpoint::accept) it expires after
/// [`EndpointConfig::connect_timeout`](super::EndpointConfig::connect_timeout).
///
/// # Drop
/// As [`Incoming::ignore`].
pub struct Incoming {
    contact: Box<FirstContact>,
    expires: Instant,
    /// Weak: who forgets this somewhere must not keep the port of a closed endpoint.
    socket: Weak<dyn DatagramSocket>,
    /// Weak: a queue that the endpoint owns must not own the endpoint.
    endpoint: Weak<Inner>,
}

impl Incoming {
    /// Where the peer sends from. Not proven yet: it could be forged.
    pub fn remote_address(&self) -> SocketAddr {
        self.contact.source
    }

    /// The version of webrtc-direct that the peer speaks.
    pub fn version(&self) -> Version {
        self.contact.credentials.version
    }

    /// Lets the peer go without an answer; the same as dropping this. Its next check, which comes
    /// soon, is a new first contact.
    pub fn ignore(self) {}

    /// Tells the peer that it is not wanted, and forgets it. Nothing is repeated or waited for: if
    /// the answer is lost, the peer's next check is a new first contact.
    ///
    /// The answer is an error response to the peer's STUN check, with the code 403 (Forbidden). A dial
    /// of this crate then fails at once, with [`ConnectError::Refused`]; libwebrtc, and so Chromium,
    /// gives the pair of candidates up, and its ICE fails once it has no other; str0m ignores the
    /// answer and goes on until its time is over, as after [`Incoming::ignore`].
    pub fn refuse(self) {
        let contact = &self.contact;
        let answer = refusal(contact.request, &contact.credentials.local_pwd);
        if let Some(socket) = self.socket.upgrade() {
            send_once(&*socket, &answer, contact.destination, contact.source);
        }
    }

    /// Sets the connection up: DTLS, the first data channel, and Noise unless the endpoint does
    /// without.
    ///
    /// # Errors
    /// [`ConnectError::TimedOut`] if that takes longer than
    /// [`EndpointConfig::connect_timeout`](super::EndpointConfig::connect_timeout);
    /// [`ConnectError::TooManyConnections`] beyond
    /// [`EndpointConfig::max_connections`](super::EndpointConfig::max_connections).
    ///
    /// # Cancel safety
    /// If the future is dropped, the peer gets no answer any more.
    pub async fn accept(self) -> Result<Connection, ConnectError> {
        let Self {
            contact,
            socket,
            endpoint,
            ..
        } = self;
        let endpoint = endpoint.upgrade().ok_or(ConnectError::EndpointClosed)?;
        let socket = socket.upgrade().ok_or(ConnectError::EndpointClosed)?;
        let registration = endpoint.register()?;
        let FirstContact {
            credentials,
            source,
            destination,
            slot,
            route,
            ..
        } = *contact;
        let config = &endpoint.config;
        let late_channel_zero = credentials.are_of_libp2p_webrtc();
        let setup = Setup {
            role: Role::Server,
            certificate: (&endpoint.certificate).into(),
            local: destination,
            remote: None,
            local_credentials: (credentials.local_ufrag, credentials.local_pwd),
            remote_credentials: (credentials.remote_ufrag, credentials.remote_pwd),
            mtu: config.mtu_towards(source.ip()),
            max_in_flight: config.max_in_flight,
            receive_buffer: config.receive_buffer,
            progress_timeout: config.progress_timeout,
        };
        let engine = config.engine.make(setup, Instant::now().into_std());
        let engine = engine.map_err(|cause| ConnectError::Ended {
            phase: Phase::Ice,
            cause: cause.into(),
        })?;
        let carrier = WebRtcCarrier::new(
            engine,
            socket,
            Source::Inbox(route),
            destination,
            config.carrier_limits(),
        );
        let expectations = Expectations {
            role: Role::Server,
            certhashes: &[],
            own_fingerprint: endpoint.certificate.fingerprint(),
            identity: endpoint.noise_identity(),
            peer_id: None,
            late_channel_zero,
        };
        let established = endpoint
            .establish(registration, carrier, expectations, source)
            .await;
        drop(slot);
        established
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("remote_address", &self.remote_address())
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}
