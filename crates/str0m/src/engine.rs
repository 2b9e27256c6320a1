//! The engine on str0m.
//!
//! `str0m::Rtc` requires that its output is drained to a timeout after every change. Only
//! `Str0mEngine::drain` calls `poll_output`, and every entry point that changes the `Rtc` either
//! drains or is followed by [`Engine::poll`].

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use str0m::channel::{ChannelConfig, ChannelId as Str0mChannel, Reliability};
use str0m::config::{DtlsVersion, Fingerprint as Str0mFingerprint};
use str0m::crypto::dtls::DtlsCert;
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, IceConnectionState, IceCreds, Input, Output, Rtc, RtcConfig};

use anabranch_rtc::client_hello::{ClientHelloAssembler, Verdict};
use anabranch_rtc::{
    CHANNEL_ZERO, CONTROL_ROOM, ChannelId, Class, Datagram, EndReason, Engine,
    Event as EngineEvent, LimitExceeded, MAX_ADDRESSES, MAX_CHANNELS, MAX_DATAGRAM,
    MAX_EARLY_CHANNELS, MAX_LABEL, OpenError, Protected, Role, Setup, TransmitQueue, Written,
};

use crate::budget::Budget;
use crate::dtls::{crypto_provider, take_protected};

/// Datagrams handled between two drains. str0m's DTLS queues many more, but its SCTP is most
/// efficient with batches of this size, and acknowledgements should not wait longer.
const DATAGRAMS_PER_DRAIN: u32 = 24;

/// Maximum due timeouts handled in one drain; opening a channel takes a few, one for each step.
const MAX_DUE_TIMEOUTS: usize = 8;

/// Maximum unread bytes before the peer is authenticated. Noise needs less than 2 KiB.
const MAX_EARLY_BYTES: usize = 128 * 1024;

/// A data channel.
#[derive(Debug)]
struct Channel {
    handle: Str0mChannel,
    /// Writable: str0m refuses writes before DCEP is acknowledged.
    open: bool,
    inbound: VecDeque<Bytes>,
    /// Bytes written and not acknowledged by the peer's SCTP.
    unacknowledged: usize,
    notify_delivered: bool,
    /// This side opened the channel, and so owns its stream id.
    own: bool,
    /// Nobody reads the channel any more.
    ignored: bool,
    /// Closed by this side; removed when str0m reports the close.
    closing: bool,
    /// Closed by the peer; removed once it is read.
    closed: bool,
}

/// One connection on str0m.
pub struct Str0mEngine {
    rtc: Rtc,
    /// Record counts of its DTLS.
    record_counts: Arc<Protected>,
    role: Role,
    /// The local candidate.
    local: SocketAddr,
    /// Destinations of a dialler's DTLS, which only ICE chooses: str0m accepts DTLS from anywhere.
    /// A listener's router only forwards DTLS from verified addresses.
    dtls_destinations: Vec<SocketAddr>,
    channels: HashMap<ChannelId, Channel>,
    ids: HashMap<Str0mChannel, ChannelId>,
    next_id: u64,
    /// Channels with unacknowledged bytes.
    sending: Vec<ChannelId>,
    unacknowledged: usize,
    budget: Budget,
    /// Bytes written since the last poll, when the time is known again.
    written: usize,
    events: VecDeque<EngineEvent>,
    next_timeout: Instant,
    client_hello: ClientHelloAssembler,
    /// Source and destination of its last fragment.
    hello_path: Option<(SocketAddr, SocketAddr)>,
    datagrams_since_drain: u32,
    /// Bytes in the inbound queues of all channels.
    unread: usize,
    /// The handshake is complete: the driver reads, and limits what arrives.
    authenticated: bool,
    is_dtls_up: bool,
    ended: bool,
}

impl std::fmt::Debug for Str0mEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Str0mEngine")
            .field("role", &self.role)
            .field("channels", &self.channels.len())
            .field("unacknowledged", &self.unacknowledged)
            .finish_non_exhaustive()
    }
}

impl Str0mEngine {
    /// Creates an engine for one connection.
    ///
    /// # Errors
    /// If an address can not be a candidate, or DTLS does not start.
    pub fn new(setup: Setup, now: Instant) -> Result<Self, EndReason> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            EndReason::Failed(format!("{what}: {error}"))
        };
        let client = setup.role == Role::Client;
        let mut rtc = RtcConfig::new()
            .set_crypto_provider(crypto_provider())
            .set_dtls_cert(DtlsCert {
                certificate: setup.certificate.der,
                private_key: setup.certificate.private_key,
            })
            .set_dtls_version(DtlsVersion::Auto)
            .set_ice_lite(!client)
            // The dialler verifies the certificate hash, and Noise binds it.
            .set_fingerprint_verification(false)
            .clear_codecs()
            .clear_extension_map()
            .set_mtu(setup.mtu..=1500)
            .set_sctp_max_buffered_amount(setup.max_in_flight.saturating_add(CONTROL_ROOM))
            .build(now);
        let record_counts = take_protected();
        let local = Candidate::host(setup.local, "udp")
            .map_err(|error| failed("invalid local address", &error))?;
        rtc.add_local_candidate(local);
        if let Some(remote) = setup.remote {
            let remote = Candidate::host(remote, "udp")
                .map_err(|error| failed("invalid remote address", &error))?;
            rtc.add_remote_candidate(remote);
        }
        let credentials = |(ufrag, pass)| IceCreds { ufrag, pass };
        let mut api = rtc.direct_api();
        api.set_local_ice_credentials(credentials(setup.local_credentials));
        api.set_remote_ice_credentials(credentials(setup.remote_credentials));
        api.set_ice_controlling(client);
        // Required by str0m although the verification is off.
        api.set_remote_fingerprint(Str0mFingerprint {
            hash_func: "sha-256".to_owned(),
            bytes: vec![0; 32],
        });
        api.start_dtls(client)
            .map_err(|error| failed("DTLS does not start", &error))?;
        api.start_sctp(client);
        let zero = api.create_data_channel(ChannelConfig {
            negotiated: Some(0),
            ..ChannelConfig::default()
        });
        let mut engine = Self {
            rtc,
            record_counts,
            role: setup.role,
            local: setup.local,
            dtls_destinations: Vec::new(),
            channels: HashMap::new(),
            ids: HashMap::new(),
            next_id: CHANNEL_ZERO.get() + 1,
            sending: Vec::new(),
            unacknowledged: 0,
            budget: Budget::new(setup.max_in_flight),
            written: 0,
            events: VecDeque::new(),
            next_timeout: now,
            client_hello: ClientHelloAssembler::default(),
            hello_path: None,
            datagrams_since_drain: 0,
            unread: 0,
            authenticated: false,
            is_dtls_up: false,
            ended: false,
        };
        engine.insert(CHANNEL_ZERO, zero, true);
        Ok(engine)
    }

    fn insert(&mut self, id: ChannelId, handle: Str0mChannel, own: bool) {
        self.ids.insert(handle, id);
        self.channels.insert(
            id,
            Channel {
                handle,
                open: false,
                inbound: VecDeque::new(),
                unacknowledged: 0,
                notify_delivered: false,
                own,
                ignored: false,
                closing: false,
                closed: false,
            },
        );
    }

    fn new_id(&mut self) -> ChannelId {
        let id = ChannelId::new(self.next_id);
        self.next_id += 1;
        id
    }

    fn remove(&mut self, id: ChannelId) {
        if let Some(channel) = self.channels.remove(&id) {
            self.ids.remove(&channel.handle);
        }
    }

    fn end(&mut self, cause: EndReason) {
        if !std::mem::replace(&mut self.ended, true) {
            self.rtc.disconnect();
            self.events.push_back(EngineEvent::Ended(cause));
        }
    }

    fn handle_input(
        &mut self,
        now: Instant,
        source: SocketAddr,
        destination: SocketAddr,
        bytes: &[u8],
    ) {
        let receive = match Receive::new(Protocol::Udp, source, destination, bytes) {
            Ok(receive) => receive,
            Err(error) => {
                tracing::trace!(target: "anabranch::webrtc", %source, %error, "datagram dropped");
                return;
            }
        };
        // Errors concern one datagram, and anybody who can forge the peer's address can cause them:
        // it counts as lost. What ends the connection is reported as an event.
        if let Err(error) = self.rtc.handle_input(Input::Receive(now, receive)) {
            tracing::debug!(target: "anabranch::webrtc", %source, %error, "datagram refused");
        }
    }

    /// Drains str0m to its next timeout, and handles timeouts that are already due: it opens
    /// channels in that way, and a timer would take a millisecond for each step.
    fn drain(&mut self, now: Instant, out: &mut TransmitQueue) {
        self.datagrams_since_drain = 0;
        if let Some((source, destination)) = self.hello_path
            && let Some(record) = self.client_hello.poll(now)
        {
            self.handle_input(now, source, destination, &record);
        }
        let mut due = 0;
        while !self.ended {
            match self.rtc.poll_output() {
                Ok(Output::Timeout(at)) if at <= now && due < MAX_DUE_TIMEOUTS => {
                    due += 1;
                    self.handle_timeout(now);
                }
                Ok(Output::Timeout(at)) => {
                    self.next_timeout = at;
                    break;
                }
                Ok(Output::Transmit(transmit)) => {
                    if is_dtls(&transmit.contents) {
                        self.record_dtls_destination(transmit.destination);
                    }
                    out.push(
                        &transmit.contents,
                        transmit.source.ip(),
                        transmit.destination,
                    );
                }
                Ok(Output::Event(event)) => self.on_event(event),
                Err(error) => self.end(EndReason::Failed(error.to_string())),
            }
        }
        self.count_unacknowledged(now);
    }

    fn record_dtls_destination(&mut self, remote: SocketAddr) {
        let known = &mut self.dtls_destinations;
        if self.role == Role::Client && known.len() < MAX_ADDRESSES && !known.contains(&remote) {
            known.push(remote);
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::IceConnectionStateChange(
                IceConnectionState::Connected | IceConnectionState::Completed,
            ) => self.events.push_back(EngineEvent::IceConnected),
            // A lite agent only sees STUN, and pion sends no checks while there is traffic: a
            // silent peer is detected by the layer above.
            Event::IceConnectionStateChange(IceConnectionState::Disconnected)
                if self.role == Role::Client || !self.is_dtls_up =>
            {
                self.end(EndReason::TimedOut);
            }
            Event::Connected => self.on_dtls_connected(),
            Event::ChannelOpen(handle, label) => self.on_channel_open(handle, label),
            Event::ChannelData(data) => {
                if let Some(&channel) = self.ids.get(&data.id)
                    && let Some(entry) = self.channels.get_mut(&channel)
                    && !entry.ignored
                {
                    self.unread += data.data.len();
                    entry.inbound.push_back(Bytes::from(data.data));
                    // One event until everything is read: the reader takes all messages.
                    if entry.inbound.len() == 1 {
                        self.events.push_back(EngineEvent::Readable { channel });
                    }
                    if !self.authenticated && self.unread > MAX_EARLY_BYTES {
                        self.end(EndReason::Limit(LimitExceeded::EarlyData));
                    }
                }
            }
            Event::ChannelClose(handle) => self.on_channel_close(handle),
            Event::Closed => self.end(EndReason::ClosedByPeer),
            _ => {}
        }
    }

    fn on_dtls_connected(&mut self) {
        self.is_dtls_up = true;
        let fingerprint = self
            .rtc
            .direct_api()
            .remote_dtls_fingerprint()
            .and_then(|print| {
                let bytes = <[u8; 32]>::try_from(print.bytes.as_slice()).ok()?;
                (print.hash_func == "sha-256").then_some(bytes)
            });
        match fingerprint {
            Some(sha256) => self.events.push_back(EngineEvent::DtlsConnected { sha256 }),
            None => self.end(EndReason::NoCertificate),
        }
    }

    fn on_channel_open(&mut self, handle: Str0mChannel, label: String) {
        if let Some(&channel) = self.ids.get(&handle) {
            if let Some(entry) = self.channels.get_mut(&channel) {
                entry.open = true;
                if entry.closing {
                    // Closed before it had a stream id, when str0m could not close it.
                    self.rtc.direct_api().close_data_channel(handle);
                    return;
                }
            }
            if channel == CHANNEL_ZERO {
                self.events.push_back(EngineEvent::ChannelZeroOpen);
            } else {
                self.events.push_back(EngineEvent::Writable);
            }
            return;
        }
        // An unordered or partially reliable channel can not carry a byte stream (docs/wire.md
        // section 4).
        let fit = self.rtc.channel(handle).is_some_and(|channel| {
            channel
                .config()
                .is_some_and(|config| config.ordered && config.reliability == Reliability::Reliable)
        });
        let max_channels = if self.authenticated {
            MAX_CHANNELS
        } else {
            MAX_EARLY_CHANNELS
        };
        if !fit || label.len() > MAX_LABEL || self.channels.len() >= max_channels {
            tracing::debug!(target: "anabranch::webrtc", fit, "inbound channel refused");
            self.rtc.direct_api().close_data_channel(handle);
            return;
        }
        let channel = self.new_id();
        self.insert(channel, handle, false);
        if let Some(entry) = self.channels.get_mut(&channel) {
            entry.open = true;
        }
        self.events
            .push_back(EngineEvent::Opened { channel, label });
    }

    fn on_channel_close(&mut self, handle: Str0mChannel) {
        let Some(&channel) = self.ids.get(&handle) else {
            return;
        };
        let Some(entry) = self.channels.get_mut(&channel) else {
            return;
        };
        if entry.ignored || entry.inbound.is_empty() {
            self.remove(channel);
        } else {
            entry.open = false;
            entry.closed = true;
        }
        // Channel 0 carried the Noise handshake, which is over: js-libp2p may close it without
        // harm.
        if channel != CHANNEL_ZERO {
            self.events.push_back(EngineEvent::Closed { channel });
        }
    }

    /// Updates the unacknowledged bytes of the channels that are sending.
    fn count_unacknowledged(&mut self, now: Instant) {
        let before = self.unacknowledged;
        self.budget
            .on_written(now, std::mem::take(&mut self.written), before);
        let mut total = 0;
        let mut index = 0;
        while let Some(&id) = self.sending.get(index) {
            let left = match self.channels.get_mut(&id) {
                Some(channel) => {
                    let left = self
                        .rtc
                        .channel(channel.handle)
                        .map_or(0, |mut c| c.buffered_amount());
                    channel.unacknowledged = left;
                    left
                }
                None => 0,
            };
            total += left;
            if left > 0 {
                index += 1;
                continue;
            }
            self.sending.swap_remove(index);
            if let Some(channel) = self.channels.get_mut(&id)
                && std::mem::take(&mut channel.notify_delivered)
            {
                self.events
                    .push_back(EngineEvent::Delivered { channel: id });
            }
        }
        self.unacknowledged = total;
        self.budget.on_unacknowledged(now, total);
        if total < before {
            self.events.push_back(EngineEvent::Writable);
        }
    }
}

/// Whether this is DTLS, by the first byte (RFC 7983).
fn is_dtls(datagram: &[u8]) -> bool {
    matches!(datagram.first(), Some(20..=63))
}

impl Engine for Str0mEngine {
    fn handle_datagram(&mut self, now: Instant, datagram: Datagram<'_>, out: &mut TransmitQueue) {
        let Datagram {
            source,
            destination,
            contents: datagram,
            ..
        } = datagram;
        // STUN or DTLS (RFC 7983); there is no media.
        let wanted = match self.role {
            _ if !is_dtls(datagram) => matches!(datagram.first(), Some(0..=3)),
            Role::Client => self.dtls_destinations.contains(&source),
            Role::Server => true,
        };
        if self.ended || !wanted || datagram.len() > MAX_DATAGRAM {
            return;
        }
        if self.role == Role::Server && !self.is_dtls_up {
            match self.client_hello.handle(datagram) {
                Verdict::Pass => self.handle_input(now, source, destination, datagram),
                Verdict::Held => self.hello_path = Some((source, destination)),
            }
        } else {
            self.handle_input(now, source, destination, datagram);
        }
        self.datagrams_since_drain += 1;
        if self.datagrams_since_drain >= DATAGRAMS_PER_DRAIN {
            self.drain(now, out);
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if !self.ended
            && let Err(error) = self.rtc.handle_input(Input::Timeout(now))
        {
            self.end(EndReason::Failed(error.to_string()));
        }
    }

    fn poll(&mut self, now: Instant, out: &mut TransmitQueue) -> Instant {
        if self.ended {
            return now + Duration::from_secs(3600);
        }
        self.drain(now, out);
        let timeouts = self.client_hello.timeout().into_iter();
        timeouts.fold(self.next_timeout, Instant::min)
    }

    fn next_event(&mut self) -> Option<EngineEvent> {
        self.events.pop_front()
    }

    fn open(&mut self, label: &str) -> Result<ChannelId, OpenError> {
        if self.ended {
            return Err(OpenError::Closed);
        }
        if label.len() > MAX_LABEL {
            return Err(OpenError::LabelTooLong {
                len: label.len(),
                max: MAX_LABEL,
            });
        }
        if self.channels.len() >= MAX_CHANNELS {
            return Err(OpenError::Exhausted);
        }
        let handle = self.rtc.direct_api().create_data_channel(ChannelConfig {
            label: label.to_owned(),
            ..ChannelConfig::default()
        });
        let id = self.new_id();
        self.insert(id, handle, true);
        Ok(id)
    }

    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], _class: Class) -> Written {
        if self.ended {
            return Written::Closed;
        }
        let Some(entry) = self.channels.get_mut(&channel) else {
            return Written::Closed;
        };
        if entry.closing || entry.closed {
            return Written::Closed;
        }
        if !entry.open {
            return Written::NotOpen;
        }
        let Some(mut handle) = self.rtc.channel(entry.handle) else {
            return Written::Closed;
        };
        let joined;
        let message = match pieces {
            [message] => *message,
            _ => {
                joined = pieces.concat();
                &joined[..]
            }
        };
        match handle.write(true, message) {
            Ok(true) => {
                if entry.unacknowledged == 0 {
                    self.sending.push(channel);
                }
                entry.unacknowledged += message.len();
                self.unacknowledged += message.len();
                self.written += message.len();
                Written::Taken
            }
            Ok(false) => Written::Busy,
            Err(error) => {
                tracing::debug!(target: "anabranch::webrtc", %channel, %error, "write refused");
                Written::Closed
            }
        }
    }

    fn read(&mut self, channel: ChannelId) -> Option<Bytes> {
        let entry = self.channels.get_mut(&channel)?;
        let message = entry.inbound.pop_front();
        let length = message.as_ref().map_or(0, Bytes::len);
        debug_assert!(self.unread >= length, "{length} of {} bytes", self.unread);
        self.unread = self.unread.saturating_sub(length);
        if entry.closed && entry.inbound.is_empty() {
            self.remove(channel);
        }
        message
    }

    fn unacknowledged(&self) -> usize {
        self.unacknowledged
    }

    fn write_limit(&self) -> usize {
        self.budget.bytes()
    }

    fn notify_delivered(&mut self, channel: ChannelId) {
        let Some(entry) = self.channels.get_mut(&channel) else {
            return;
        };
        if entry.unacknowledged == 0 {
            self.events.push_back(EngineEvent::Delivered { channel });
        } else {
            entry.notify_delivered = true;
        }
    }

    fn close_channel(&mut self, channel: ChannelId) {
        let Some(entry) = self.channels.get_mut(&channel) else {
            return;
        };
        let handle = entry.handle;
        let was_closing = std::mem::replace(&mut entry.closing, true);
        self.ignore_channel(channel);
        if !was_closing && self.channels.contains_key(&channel) {
            self.rtc.direct_api().close_data_channel(handle);
        }
    }

    fn ignore_channel(&mut self, channel: ChannelId) {
        if let Some(entry) = self.channels.get_mut(&channel) {
            entry.ignored = true;
            let unread = std::mem::take(&mut entry.inbound);
            let length: usize = unread.iter().map(Bytes::len).sum();
            debug_assert!(self.unread >= length, "{length} of {} bytes", self.unread);
            self.unread = self.unread.saturating_sub(length);
            if entry.closed || self.ended {
                self.remove(channel);
            }
        }
    }

    fn is_own_channel(&self, channel: ChannelId) -> bool {
        self.channels.get(&channel).is_some_and(|entry| entry.own)
    }

    fn authenticated(&mut self) {
        self.authenticated = true;
    }

    fn holds_back_unread(&self) -> bool {
        // str0m reads every channel when it is polled.
        false
    }

    fn dtls12_records(&self) -> u64 {
        self.record_counts.most()
    }

    fn move_to(&mut self, now: Instant, local: SocketAddr) {
        let host = |address| Candidate::host(address, "udp");
        let (Ok(new), Ok(old)) = (host(local), host(self.local)) else {
            return;
        };
        if self.ended || local == self.local || self.rtc.add_local_candidate(new).is_none() {
            return;
        }
        // In this order: without any pair the agent would give up.
        self.rtc.direct_api().invalidate_candidate(&old);
        self.local = local;
        self.handle_timeout(now);
    }

    fn close(&mut self, _now: Instant) {
        if !self.ended
            && let Err(error) = self.rtc.close()
        {
            tracing::debug!(target: "anabranch::webrtc", %error, "close_notify failed");
        }
    }
}
