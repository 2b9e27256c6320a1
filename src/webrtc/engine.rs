//! The seam below the WebRTC carrier: ICE, DTLS, SCTP and data channels without I/O.
//!
//! Datagrams and time go in; datagrams and events come out. An engine owns no socket, no timer and
//! no task, so that any of them runs on the real network and in a simulator alike.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::reachability::Challenge;
use super::transmit::TransmitQueue;
use crate::carrier::{CarrierEvent, ChannelId, Class, OpenChannelError, Written};
use crate::certificate::Fingerprint;
use crate::connection::ConnectionError;

/// The channel that both sides open without asking: SCTP stream 0, for Noise.
pub(crate) const CHANNEL_ZERO: ChannelId = ChannelId::new(0);

/// Which end of a connection an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// ICE controlling, DTLS active, even channel numbers.
    Client,
    /// ICE lite and controlled, DTLS passive, odd channel numbers.
    Server,
}

/// What an engine reports.
#[derive(Debug)]
pub(crate) enum EngineEvent {
    /// A candidate pair works.
    IceConnected,
    /// The peer has shown that it receives at this address, which is another than that of the handshake.
    AddressValidated(SocketAddr),
    /// DTLS is up; the peer's certificate has this fingerprint.
    DtlsConnected(Fingerprint),
    /// SCTP is up and channel 0 is open.
    ChannelZeroOpen,
    /// The listener does not want this connection. Reported by the carrier, not by engines.
    Refused,
    /// Nobody listens at the port that was dialled. Reported by the carrier as well.
    Unreachable {
        /// The address.
        remote: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Something for the connection above.
    Carrier(CarrierEvent),
    /// The connection is gone.
    Ended(ConnectionError),
}

/// One WebRTC connection without I/O.
///
/// After any call, [`Engine::poll`] is due before the caller waits; it then says until when.
pub(crate) trait Engine: Send {
    /// Takes in one datagram. Never fails: what can not be used is dropped.
    fn handle_datagram(
        &mut self,
        now: Instant,
        source: SocketAddr,
        destination: SocketAddr,
        datagram: &[u8],
        out: &mut TransmitQueue,
    );

    /// Finds the events in what was taken in, and leaves the answers to [`Engine::poll`]. `false`
    /// where they can not wait: the connection has ended, or the engine does both at once.
    fn take_in(&mut self, _now: Instant, _out: &mut TransmitQueue) -> bool {
        false
    }

    /// Takes in the time.
    fn handle_timeout(&mut self, now: Instant);

    /// Does what is due and puts datagrams to send into `out`. Returns when to call
    /// [`Engine::handle_timeout`] next.
    fn poll(&mut self, now: Instant, out: &mut TransmitQueue) -> Instant;

    /// The next event, if there is one.
    fn next_event(&mut self) -> Option<EngineEvent>;

    /// Opens a data channel in-band (RFC 8832), ordered and reliable.
    fn open(&mut self, label: &str) -> Result<ChannelId, OpenChannelError>;

    /// Hands a message to SCTP, whole or not at all. It is given in pieces that follow each other.
    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], class: Class) -> Written;

    /// The same for a message in one piece.
    #[cfg(any(test, feature = "fuzzing"))]
    fn write(&mut self, channel: ChannelId, message: &[u8]) -> Written {
        self.write_vectored(channel, &[message], Class::Data)
    }

    /// The next message of a channel.
    fn read(&mut self, channel: ChannelId) -> Option<Bytes>;

    /// Whether reads have left something to do for [`Engine::poll`].
    fn wants_poll(&self) -> bool {
        false
    }

    /// Bytes written that the peer's SCTP has not acknowledged, over all channels.
    fn unacknowledged(&self) -> usize;

    /// Asks for one `Delivered` when the peer's SCTP has acknowledged all of a channel.
    fn notify_delivered(&mut self, channel: ChannelId);

    /// Closes a channel after what was written to it (RFC 8831 section 6.7).
    fn close_channel(&mut self, channel: ChannelId);

    /// Drops what a channel has unread, and what still arrives on it.
    fn ignore_channel(&mut self, channel: ChannelId);

    /// Whether this side opened the channel, and so owns its number.
    fn is_own_channel(&self, channel: ChannelId) -> bool;

    /// The peer is who it should be: the limits of an unknown peer are lifted.
    fn authenticated(&mut self);

    /// Whether an unread channel holds back its sender.
    fn holds_back_unread(&self) -> bool;

    /// Lets readers that stall shut the window of the whole connection, where they would have to be read
    /// otherwise.
    fn allow_shut_window(&mut self) {}

    /// Time for which data may wait below, beyond the round trip, for the tasks of both sides to run.
    /// Zero where every byte in flight costs the engine time.
    fn latency_allowance(&self) -> Duration {
        Duration::ZERO
    }

    /// Records under the keys of DTLS 1.2, which live as long as the connection: those sent or those received, whichever
    /// are more. Zero with any other version.
    fn dtls12_records(&self) -> u64;

    /// Bytes of a message that one packet carries, if that is known.
    fn packet_payload(&self) -> Option<usize> {
        None
    }

    /// The system sends from `local` now: makes it the only candidate of this side, and checks it at once.
    ///
    /// For a [`Role::Client`]; a listener stays at its address.
    fn move_to(&mut self, now: Instant, local: SocketAddr);

    /// Whether something authentic has come from the peer since this was last asked. Anybody can forge an address, and
    /// junk from that of a dead peer must not keep its connection.
    ///
    /// An engine that can not tell says yes if anything has been `received`.
    fn take_heard(&mut self, received: bool) -> bool {
        received
    }

    /// Whether the engine finds out by itself that the peer receives at a further address, with
    /// [`Engine::next_probe`], and does not move there before it has.
    fn validates_addresses(&self) -> bool {
        false
    }

    /// A datagram that asks a further address for a proof, if one is due. Lost if it is not sent at once, and repeated.
    /// [`EngineEvent::AddressValidated`] follows when it has come back.
    fn next_probe(&mut self, _now: Instant, _out: &mut TransmitQueue) -> Option<Challenge> {
        None
    }

    /// Tells the peer that the connection is over.
    fn close(&mut self, now: Instant);
}
