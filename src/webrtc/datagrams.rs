//! The datagrams of a connection, in and out: from whom they are taken, and how much goes to whom.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use anabranch_rtc::{Probe, Run};
use tokio::time::Instant;

use super::reachability::{Answer, Beyond};
use super::{Source, WebRtcCarrier};
use crate::udp::Transmit;
use crate::udp::admission::challenge::is_refusal;

/// Bytes that may wait for the proof of the address they go to. What is beyond it is as good as lost
/// on the way.
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
            refusal_password,
            refused_by_peer,
            port_watch,
            lifetime,
            ..
        } = self;
        let now = Instant::now();
        let mut feed = |from: SocketAddr, to: SocketAddr, contents: &[u8], stride: usize| {
            if let Some(reachability) = reachability {
                reachability.received(from, to, contents.len());
            }
            for datagram in contents.chunks(stride.max(1)) {
                if let Some(reachability) = reachability {
                    match reachability.take_answer(now, from, datagram) {
                        Answer::No => {}
                        Answer::Unsigned => continue,
                        Answer::OfPeer => {
                            lifetime.heard(now);
                            if let Some(check) = reachability.take_withheld(from) {
                                engine.handle_datagram(now.into_std(), from, to, &check, unsent);
                            }
                            continue;
                        }
                    }
                    if reachability.withholds(from, datagram) {
                        continue;
                    }
                }
                if let Some(password) = refusal_password {
                    *refused_by_peer |= is_refusal(datagram, password);
                }
                engine.handle_datagram(now.into_std(), from, to, datagram, unsent);
            }
        };
        let received = match source {
            Source::Socket { remote } => {
                let polled = socket.poll_receive(cx, &mut |received| {
                    // A listener of webrtc-direct has one address. Whoever forges a check from another one would have
                    // all that this side sends directed there.
                    if !is_same_address(received.source, *remote) {
                        return;
                    }
                    *port_watch = None;
                    // Whichever address of this machine it came to: ICE has one candidate.
                    if let Some(watch) = source_watch {
                        watch.received(now, received.contents);
                    }
                    feed(received.source, *local, received.contents, received.stride);
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
            Source::Inbox(route) => route.inbox.poll_receive(cx, feed),
        };
        self.dirty |= received;
        received
    }

    /// Sends what waits; returns whether anything went out.
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
                        reachability.beyond() == Beyond::Lost || self.unsent.len() > MAX_HELD;
                    if max_segments == 0 && is_lost {
                        reachability.want(run.destination);
                        self.unsent.pop(1);
                        continue;
                    }
                    let Some(shorter) = self.unsent.front(max_segments.max(1)) else {
                        return sent;
                    };
                    if max_segments == 0 {
                        // Held until the address is proven, or has sent more.
                        reachability.want(shorter.destination);
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
                // As good as lost on the way: ICE and SCTP find out whether that lasts.
                Err(error) => {
                    tracing::debug!(target: "anabranch::webrtc", %error, "datagrams not sent");
                    if let Some(watch) = &mut self.source_watch {
                        watch.send_failed();
                    }
                }
            }
            self.unsent.pop(max_segments);
            sent = true;
        }
    }
}

/// What asks addresses for proofs, past the queue.
impl WebRtcCarrier {
    /// Asks a peer that has been silent for a while whether it is there.
    pub(super) fn ask_for_life(&mut self, now: Instant) {
        let is_due = self.lifetime.ask_at().is_some_and(|at| at <= now);
        if is_due && let Some(reachability) = &mut self.reachability {
            reachability.ask();
            self.lifetime.asked(now);
        }
    }

    /// Asks an address for a proof where one is wanted; returns whether a datagram went out.
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

    /// Lets the engine ask an address for a proof; returns whether a datagram went out. What was made before has to have
    /// gone out: the records of DTLS may not overtake each other by much.
    fn probe(&mut self) -> bool {
        let Some(reachability) = &mut self.reachability else {
            return false;
        };
        let now = Instant::now().into_std();
        let Some(probe) = self.engine.next_probe(now, &mut self.unsent) else {
            return false;
        };
        reachability.take_room(probe.destination, probe.contents.len())
            && self.send_challenge(&probe)
    }

    fn send_challenge(&self, challenge: &Probe) -> bool {
        let transmit = Transmit {
            destination: challenge.destination,
            source: challenge.source.ip(),
            contents: &challenge.contents,
            segment_size: None,
        };
        // As good as lost if it is not taken: what waits for it asks again.
        let _ = self.socket.try_send(&transmit);
        true
    }
}

impl Drop for WebRtcCarrier {
    /// A connection that is given up, in the handshake or because its task was, still tells the
    /// peer, which would otherwise wait for a timeout. Once, and only if the socket takes it.
    fn drop(&mut self) {
        if self.closing || self.ended {
            return;
        }
        let now = Instant::now().into_std();
        self.engine.close(now);
        self.engine.poll(now, &mut self.unsent);
        while let Some(run) = self.unsent.front(1) {
            if let Some(reachability) = &mut self.reachability
                && run.contents.len() > reachability.room(run.destination)
            {
                // The end may stand behind an answer to an address that a forger has added.
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

/// Whether these are one address, as far as a datagram tells: not the scope of a link-local one.
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
        }
    }
}
