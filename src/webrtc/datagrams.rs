//! Receives and sends the datagrams of a connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use anabranch_rtc::{Datagram, Ecn, Probe, Run};
use tokio::time::Instant;

use super::reachability::{ChallengeAnswer, Excess};
use super::{Phase, Refusal, Source, WebRtcCarrier};
use crate::udp::Transmit;
use crate::udp::admission::challenge::is_refusal;

/// Maximum bytes queued for an address that is not proven. More are dropped, which counts as packet
/// loss.
const MAX_HELD: usize = 64 * 1024;

impl WebRtcCarrier {
    pub(super) fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        let Self {
            engine,
            socket,
            source,
            local,
            unsent,
            source_watch,
            reachability,
            refusal,
            port_watch,
            lifetime,
            ..
        } = self;
        let now = Instant::now();
        let mut handle = |from: SocketAddr, to: SocketAddr, contents: &[u8], stride: usize, ecn| {
            if let Some(reachability) = reachability {
                reachability.received(from, to, contents.len());
            }
            for datagram in contents.chunks(stride.max(1)) {
                if let Some(reachability) = reachability {
                    match reachability.take_answer(now, from, datagram) {
                        ChallengeAnswer::No => {}
                        ChallengeAnswer::Unsigned => continue,
                        ChallengeAnswer::OfPeer => {
                            lifetime.heard(now);
                            if let Some(check) = reachability.take_withheld(from) {
                                let check = Datagram::new(from, to, &check);
                                engine.handle_datagram(now.into_std(), check, unsent);
                            }
                            continue;
                        }
                    }
                    if reachability.withholds(from, datagram) {
                        continue;
                    }
                }
                if let Refusal::Expected(password) = refusal
                    && is_refusal(datagram, password)
                {
                    *refusal = Refusal::Received;
                }
                let datagram = Datagram::new(from, to, datagram).with_ecn(ecn);
                engine.handle_datagram(now.into_std(), datagram, unsent);
            }
        };
        // What a dial receives.
        let mut handle_dialled = |remote: SocketAddr, from, contents: &[u8], stride, ecn| {
            // A listener of webrtc-direct has one address. A forged check from another one would
            // redirect everything that this side sends.
            if !is_same_address(from, remote) {
                return;
            }
            *port_watch = None;
            if let Some(watch) = source_watch {
                watch.received(now, contents);
            }
            // The one local candidate of ICE, whichever local address it was sent to.
            handle(from, *local, contents, stride, ecn);
        };
        let received = match source {
            Source::Socket { remote } => {
                let polled = socket.poll_receive(cx, &mut |received| {
                    handle_dialled(
                        *remote,
                        received.source,
                        received.contents,
                        received.stride,
                        received.ecn,
                    );
                });
                match polled {
                    Poll::Ready(Ok(())) => true,
                    Poll::Ready(Err(error)) => {
                        tracing::debug!(target: "anabranch::webrtc", %error, "receive failed");
                        false
                    }
                    Poll::Pending => false,
                }
            }
            Source::SharedPort { remote, route, .. } => {
                let handle = |from, _, contents: &[u8], stride, ecn| {
                    handle_dialled(*remote, from, contents, stride, ecn);
                };
                route.inbox.poll_receive(cx, handle)
            }
            Source::Inbox { route, .. } => route.inbox.poll_receive(cx, handle),
        };
        self.dirty |= received;
        received
    }

    /// Sends queued datagrams. Returns whether any were sent.
    pub(super) fn send(&mut self, cx: &mut Context<'_>) -> bool {
        let mut sent = self.challenge();
        if !self.unsent.is_empty()
            && let Some(watch) = &mut self.source_watch
        {
            let now = Instant::now();
            watch.will_send(now);
            self.watch_source(now);
        }
        loop {
            if let Some(blocked) = &mut self.blocked {
                if blocked.as_mut().poll(cx).is_pending() {
                    return sent;
                }
                self.blocked = None;
            }
            let mut max_segments = self.socket.max_segments();
            let Some(mut run) = self.unsent.front(max_segments) else {
                return self.probe() || sent;
            };
            if let Some(reachability) = &mut self.reachability {
                let room = reachability.room(run.destination);
                if run.contents.len() > room {
                    let size = run.segment_size.unwrap_or(run.contents.len());
                    max_segments = room / size.max(1);
                    let is_lost =
                        reachability.excess() == Excess::Drop || self.unsent.len() > MAX_HELD;
                    if max_segments == 0 && is_lost {
                        reachability.request_challenge(run.destination);
                        self.unsent.pop(1);
                        continue;
                    }
                    let Some(shorter) = self.unsent.front(max_segments.max(1)) else {
                        return sent;
                    };
                    if max_segments == 0 {
                        // Held until the address is proven, or more has arrived from it.
                        reachability.request_challenge(shorter.destination);
                        let (challenged, probed) = (self.challenge(), self.probe());
                        return challenged || probed || sent;
                    }
                    run = shorter;
                }
            }
            let mut transmit = Transmit::from(run);
            if let Some(watch) = &self.source_watch {
                transmit.source = watch.unspecified();
            }
            match self.socket.try_send(&transmit) {
                Ok(()) => {
                    if let Some(reachability) = &mut self.reachability {
                        reachability.sent(transmit.destination, transmit.contents);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = Some(Arc::clone(&self.socket).writable());
                    continue;
                }
                // Counts as packet loss: ICE and SCTP detect whether it lasts.
                Err(error) => {
                    tracing::debug!(target: "anabranch::webrtc", %error, "datagrams not sent");
                    if let Some(watch) = &mut self.source_watch {
                        watch.send_failed();
                    }
                }
            }
            self.unsent.pop(max_segments);
            sent = true;
            // Before what follows the first response: pion waits for it (`reachability.rs`).
            self.challenge();
        }
    }
}

/// Challenges and probes, which bypass the queue.
impl WebRtcCarrier {
    /// Checks the liveness of a silent peer.
    pub(super) fn check_liveness(&mut self, now: Instant) {
        let is_due = self.lifetime.check_at().is_some_and(|at| at <= now);
        if is_due && let Some(reachability) = &mut self.reachability {
            reachability.request_check();
            self.lifetime.checked(now);
        }
    }

    /// Challenges an address if that is due. Returns whether a datagram was sent.
    fn challenge(&mut self) -> bool {
        let Some(reachability) = &mut self.reachability else {
            return false;
        };
        let now = Instant::now();
        match reachability.next_challenge(now) {
            Some(challenge) => self.send_challenge(&challenge),
            None => false,
        }
    }

    /// Sends the next address validation of the engine. Returns whether a datagram was sent. The
    /// queue has to be empty: DTLS tolerates only little reordering of records.
    fn probe(&mut self) -> bool {
        let Some(reachability) = &mut self.reachability else {
            return false;
        };
        let now = Instant::now().into_std();
        let Some(probe) = self.engine.next_probe(now, &mut self.unsent) else {
            return false;
        };
        reachability.reserve(probe.destination, probe.contents.len()) && self.send_challenge(&probe)
    }

    fn send_challenge(&self, challenge: &Probe) -> bool {
        let transmit = Transmit {
            destination: challenge.destination,
            source: challenge.source.ip(),
            contents: &challenge.contents,
            segment_size: None,
            ecn: Ecn::NotEct,
        };
        // A failed send counts as packet loss: the challenge is repeated.
        let _ = self.socket.try_send(&transmit);
        true
    }
}

impl Drop for WebRtcCarrier {
    /// A connection that is dropped without a close, in the handshake or with its task, still
    /// notifies the peer, which would otherwise wait for a timeout. Once, and only if the socket
    /// takes it.
    fn drop(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        let now = Instant::now().into_std();
        self.engine.close(now);
        self.engine.poll(now, &mut self.unsent);
        while let Some(run) = self.unsent.front(1) {
            if let Some(reachability) = &mut self.reachability
                && run.contents.len() > reachability.room(run.destination)
            {
                // Skips datagrams to an unproven address, so that they do not hold up the close.
                self.unsent.pop(1);
                continue;
            }
            let mut transmit = Transmit::from(run);
            if let Some(watch) = &self.source_watch {
                transmit.source = watch.unspecified();
            }
            if self.socket.try_send(&transmit).is_err() {
                break;
            }
            self.unsent.pop(1);
        }
    }
}

/// Whether two addresses are equal except for the scope of link-local ones, which a datagram lacks.
fn is_same_address(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.ip().to_canonical() == b.ip().to_canonical()
}

impl<'a> From<Run<'a>> for Transmit<'a> {
    fn from(run: Run<'a>) -> Self {
        Self {
            destination: run.destination,
            source: run.source,
            contents: run.contents,
            segment_size: run.segment_size,
            ecn: run.ecn,
        }
    }
}
