//! The tasks that receive on UDP ports: one for each socket.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::{Poll, ready};

use anabranch_rtc::Ecn;
use futures_util::future::select;
use tokio::time::{Instant, sleep_until};

use super::incoming::Incoming;
use super::inner::Inner;
use super::ports::UdpPort;
use crate::udp::router::Stranger;
use crate::udp::{DatagramSocket, Transmit};

/// Receive calls in one poll of the task, before it yields to other tasks.
const RECEIVES_PER_POLL: usize = 16;

/// Receives on a socket of `port` until its endpoint is dropped, or the port is closed and has no
/// connections.
///
/// Never waits for a connection or the application: datagrams without room are dropped.
pub(super) async fn receive(
    port: Arc<UdpPort>,
    socket: Arc<dyn DatagramSocket>,
    endpoint: Weak<Inner>,
) {
    let ended = pin!(port.router.ended());
    let receiving = pin!(receive_all(&port, &socket, endpoint));
    select(receiving, ended).await;
}

async fn receive_all(port: &Arc<UdpPort>, socket: &Arc<dyn DatagramSocket>, endpoint: Weak<Inner>) {
    let mut expiry = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        let Some(endpoint) = endpoint.upgrade() else {
            return Poll::Ready(());
        };
        // Here as well, for a socket that is so busy that this never returns `Pending` below.
        endpoint.incoming.drop_expired();
        for _ in 0..RECEIVES_PER_POLL {
            let mut strangers = Vec::new();
            let now = Instant::now();
            let polled = socket.poll_receive(cx, &mut |received| {
                strangers.extend(port.router.route(now, received, port.local));
            });
            for stranger in strangers {
                handle_stranger(port, socket, &endpoint, stranger);
            }
            match polled {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    // Errors of a UDP socket concern single datagrams. A broken socket fails again,
                    // at the pace of the scheduler.
                    tracing::warn!(target: "anabranch::endpoint", %error, "receive failed");
                    break;
                }
                Poll::Pending => {
                    // After the first contacts that have just arrived.
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

fn handle_stranger(
    port: &Arc<UdpPort>,
    socket: &Arc<dyn DatagramSocket>,
    endpoint: &Arc<Inner>,
    stranger: Stranger,
) {
    match stranger {
        Stranger::Admitted(contact) => {
            let incoming = Incoming::by_datagram(contact, port.id, socket, endpoint);
            endpoint.offer(incoming, || port.listens());
        }
        Stranger::Answered {
            source,
            destination,
            datagrams,
        } => {
            for datagram in datagrams {
                send_once(&**socket, &datagram, destination, source);
            }
        }
    }
}

/// Sends a datagram if the socket takes it at once, and drops it otherwise.
pub(super) fn send_once(
    socket: &dyn DatagramSocket,
    contents: &[u8],
    from: SocketAddr,
    to: SocketAddr,
) {
    let transmit = Transmit {
        destination: to,
        source: from.ip(),
        contents,
        segment_size: None,
        ecn: Ecn::NotEct,
    };
    if let Err(error) = socket.try_send(&transmit) {
        tracing::trace!(target: "anabranch::endpoint", %to, %error, "answer not sent");
    }
}
