//! Connections from others: one task a listening socket, and the queue of first contacts.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Inner;
use super::error::ConnectError;
use super::router::{FirstContact, Router};
use super::socket::DatagramSocket;
use crate::connection::Connection;
use crate::ufrag::Version;
use crate::webrtc::engine::Role;
use crate::webrtc::handshake::{Expectations, Phase};
use crate::webrtc::str0m_engine::EngineSetup;
use crate::webrtc::{Source, WebRtcCarrier, new_engine};

/// Receive calls that one poll of the task makes before others get their turn.
const RECEIVES_PER_POLL: usize = 16;

/// A listening socket with its router.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: Arc<dyn DatagramSocket>,
    pub(super) local: SocketAddr,
    pub(super) router: Arc<Router>,
}

/// First contacts that wait for the application.
#[derive(Debug)]
pub(super) struct IncomingQueue {
    waiting: Mutex<VecDeque<Incoming>>,
    notify: Notify,
    /// One permit for every first contact until its handshake is done.
    handshakes: Arc<Semaphore>,
}

impl IncomingQueue {
    pub(super) fn new(max_handshakes: usize) -> Self {
        Self {
            waiting: Mutex::new(VecDeque::new()),
            notify: Notify::new(),
            handshakes: Arc::new(Semaphore::new(max_handshakes)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Incoming>> {
        // A queue of whole entries.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room by dropping those that nobody took in time; they would not answer any more.
    fn drop_expired(&self) {
        let now = Instant::now();
        let mut expired = Vec::new();
        {
            let mut waiting = self.lock();
            while waiting.front().is_some_and(|first| first.expires <= now) {
                expired.extend(waiting.pop_front());
            }
        }
        // Outside of the lock: dropping one takes it out of its router.
        drop(expired);
    }

    /// Whether there is room for another handshake.
    fn has_room(&self) -> bool {
        self.handshakes.available_permits() > 0
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
    poll_fn(|cx| {
        for _ in 0..RECEIVES_PER_POLL {
            let Some(endpoint) = endpoint.upgrade() else {
                return Poll::Ready(());
            };
            if !endpoint.incoming.has_room() {
                // Here and not below: dropping one takes the router's lock.
                endpoint.incoming.drop_expired();
            }
            let mut contacts = Vec::new();
            let polled = listener.socket.poll_receive(cx, &mut |received| {
                let admit = || endpoint.incoming.has_room() && !endpoint.is_closed();
                if let Some(contact) = listener.router.route(received, listener.local, admit) {
                    contacts.push(contact);
                }
            });
            for contact in contacts {
                accept_contact(&listener, &endpoint, contact);
            }
            match polled {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    // Errors of a UDP socket are about single datagrams; a socket that is really
                    // broken says so again, at the pace of the scheduler.
                    tracing::warn!(target: "anabranch::endpoint", %error, "receive failed");
                    break;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn accept_contact(listener: &Arc<Listener>, endpoint: &Arc<Inner>, contact: FirstContact) {
    let Ok(permit) = Arc::clone(&endpoint.incoming.handshakes).try_acquire_owned() else {
        return;
    };
    endpoint.incoming.push(Incoming {
        expires: Instant::now() + endpoint.config.connect_timeout,
        contact,
        permit,
        socket: Arc::clone(&listener.socket),
        endpoint: Arc::downgrade(endpoint),
    });
}

/// Somebody who wants to connect, with nothing spent on it yet but a place in the queue.
///
/// # Drop
/// Dropping it ignores the peer: it gets no answer, and its next attempt is a new first contact.
pub struct Incoming {
    contact: FirstContact,
    expires: Instant,
    permit: OwnedSemaphorePermit,
    socket: Arc<dyn DatagramSocket>,
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

    /// Lets the peer go without an answer; the same as dropping this.
    pub fn ignore(self) {}

    /// Sets the connection up: DTLS, the first data channel, and Noise unless the endpoint does
    /// without.
    ///
    /// # Errors
    /// [`ConnectError::TimedOut`] if that takes longer than
    /// [`EndpointConfig::connect_timeout`](super::EndpointConfig::connect_timeout).
    ///
    /// # Cancel safety
    /// If the future is dropped, the peer gets no answer any more.
    pub async fn accept(self) -> Result<Connection, ConnectError> {
        let Self {
            contact,
            permit,
            socket,
            endpoint,
            ..
        } = self;
        let endpoint = endpoint.upgrade().ok_or(ConnectError::EndpointClosed)?;
        let registration = endpoint.register().ok_or(ConnectError::EndpointClosed)?;
        let FirstContact {
            credentials,
            source,
            destination,
            route,
        } = contact;
        let config = &endpoint.config;
        let late_channel_zero = credentials.are_of_libp2p_webrtc();
        let setup = EngineSetup {
            role: Role::Server,
            certificate: &endpoint.certificate,
            local: destination,
            remote: None,
            local_credentials: (credentials.local_ufrag, credentials.local_pwd),
            remote_credentials: (credentials.remote_ufrag, credentials.remote_pwd),
            mtu: config.mtu_towards(source.ip()),
            max_in_flight: config.max_in_flight,
            receive_buffer: config.receive_buffer,
        };
        let engine =
            new_engine(config.engine, setup, Instant::now().into_std()).map_err(|cause| {
                ConnectError::Ended {
                    phase: Phase::Ice,
                    cause,
                }
            })?;
        let carrier = WebRtcCarrier::new(
            engine,
            socket,
            Source::Inbox(route),
            destination,
            config.max_in_flight,
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
        drop(permit);
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
