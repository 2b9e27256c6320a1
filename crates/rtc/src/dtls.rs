//! DTLS: dimpl with shared configurations.
//!
//! Building a `dimpl::Config` runs the self-tests of the crypto library, 1.1 ms each time: with one
//! per connection, 800 handshakes a second would occupy a core.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dimpl::{DtlsCertificate, Error, Output, ProtocolVersion};

use super::downgrade::is_downgrade;
use super::opening::Opener;
use super::records::{Protected, records};
use crate::engine::{Certificate, EndReason};

/// Maximum datagrams queued in a DTLS instance between two polls. More than an engine passes at a
/// time, so that a burst does not cause loss.
const MAX_QUEUE_RX: usize = 256;

/// Maximum datagrams queued for output in a DTLS instance. More than an engine encrypts between two
/// polls.
const MAX_QUEUE_TX: usize = 64;

/// The crypto provider of dimpl.
static DIMPL_PROVIDER: LazyLock<dimpl::crypto::CryptoProvider> =
    LazyLock::new(super::record_number::crypto_provider);

/// One configuration per MTU in use; MTUs come from our own settings, not from peers.
static BY_MTU: Mutex<BTreeMap<usize, Arc<dimpl::Config>>> = Mutex::new(BTreeMap::new());

/// Maximum timeouts passed to a DTLS instance within [`TIMEOUT_WINDOW`]. The first steps need two
/// at once.
///
/// While a message in the middle of the peer's flight is missing, dimpl 0.9 acknowledges the others
/// at once, and again at the next timeout; and str0m follows every datagram with a timeout.
/// Together that is an endless loop within one `Rtc::poll_output`, which a lossy path or a
/// malicious peer triggers.
const MAX_TIMEOUTS: u32 = 4;

/// See [`MAX_TIMEOUTS`]. Short compared to the second after which a flight is retransmitted.
const TIMEOUT_WINDOW: Duration = Duration::from_millis(100);

/// The versions that one side supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    /// 1.3 if the peer supports it, 1.2 otherwise.
    Both,
    /// 1.2.
    Only12,
    /// 1.3.
    Only13,
}

/// Makes the first handshake of a process as fast as later ones: the crypto library runs its
/// self-tests and gathers entropy now, which takes 25 to 80 ms. Any certificate will do.
pub fn warm_up(certificate: Certificate) {
    let now = Instant::now();
    match PacedDtls::new(certificate, Versions::Both, None, now) {
        Ok(mut dtls) => {
            dtls.set_active(true);
            // The first flight needs random numbers and a key pair.
            let _ = dtls.handle_timeout(now);
        }
        Err(error) => tracing::debug!(target: "anabranch::webrtc", %error, "warm-up failed"),
    }
}

fn config(mtu: Option<usize>) -> Result<Arc<dimpl::Config>, EndReason> {
    let mut by_mtu = BY_MTU.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(config) = by_mtu.get(&mtu.unwrap_or(0)) {
        return Ok(Arc::clone(config));
    }
    let mut builder = config_builder();
    if let Some(mtu) = mtu {
        builder = builder.mtu(mtu);
    }
    let config = builder
        .build()
        .map_err(|error| EndReason::Dtls(format!("invalid configuration: {error}")))?;
    let config = Arc::new(config);
    by_mtu.insert(mtu.unwrap_or(0), Arc::clone(&config));
    Ok(config)
}

fn config_builder() -> dimpl::ConfigBuilder {
    // No cookie: ICE has proven that the peer receives at its address.
    dimpl::Config::builder()
        .with_crypto_provider(DIMPL_PROVIDER.clone())
        .use_server_cookie(false)
        .max_queue_rx(MAX_QUEUE_RX)
        .max_queue_tx(MAX_QUEUE_TX)
}

/// A `dimpl::Dtls` with a shared configuration, which accepts at most 4 timeouts in 100 ms and
/// drops a ServerHello that was downgraded to DTLS 1.2.
pub struct PacedDtls {
    dtls: dimpl::Dtls,
    /// The peer may choose 1.3.
    offers_13: bool,
    is_connected: bool,
    protected: Arc<Protected>,
    opener: Opener,
    /// When the current timeout window began.
    window_start: Instant,
    /// Timeouts passed in it.
    timeouts: u32,
}

impl PacedDtls {
    /// Creates an instance for datagrams of at most `mtu` bytes.
    ///
    /// # Errors
    /// If the crypto library fails its self-tests.
    pub fn new(
        certificate: Certificate,
        versions: Versions,
        mtu: Option<usize>,
        now: Instant,
    ) -> Result<Self, EndReason> {
        #[cfg(feature = "testing")]
        let versions = match forced::is_12(mtu) {
            true => Versions::Only12,
            false => versions,
        };
        Ok(Self::with_config(config(mtu)?, certificate, versions, now))
    }

    /// With keys that seal this many records at most.
    #[cfg(test)]
    pub(super) fn with_key_limit(certificate: Certificate, limit: u64, now: Instant) -> Self {
        let config = config_builder()
            .mtu(1200)
            .aead_encryption_limit(limit)
            .build();
        let config = Arc::new(config.expect("valid settings"));
        Self::with_config(config, certificate, Versions::Both, now)
    }

    fn with_config(
        config: Arc<dimpl::Config>,
        certificate: Certificate,
        versions: Versions,
        now: Instant,
    ) -> Self {
        let certificate = DtlsCertificate {
            certificate: certificate.der,
            private_key: certificate.private_key,
        };
        let dtls = match versions {
            Versions::Both => dimpl::Dtls::new_auto(config, certificate, now),
            Versions::Only12 => dimpl::Dtls::new_12(config, certificate, now),
            Versions::Only13 => dimpl::Dtls::new_13(config, certificate, now),
        };
        Self {
            dtls,
            offers_13: versions != Versions::Only12,
            is_connected: false,
            protected: Arc::default(),
            opener: Opener::default(),
            window_start: now,
            timeouts: 0,
        }
    }

    /// Counts of protected records.
    pub fn protected(&self) -> &Arc<Protected> {
        &self.protected
    }

    /// Whether this record must not reach DTLS.
    fn is_refused(&self, record: &[u8]) -> bool {
        let may_be_hello = !self.is_connected && self.offers_13 && self.dtls.is_active();
        may_be_hello && is_downgrade(record)
    }

    /// Until when no timeout is passed, if the limit is reached.
    fn paused_until(&self) -> Option<Instant> {
        (self.timeouts >= MAX_TIMEOUTS).then(|| self.window_start + TIMEOUT_WINDOW)
    }

    /// Sets whether this side starts the handshake.
    pub fn set_active(&mut self, active: bool) {
        self.dtls.set_active(active);
    }

    /// Handles a datagram, record by record.
    ///
    /// dimpl accepts a datagram as a whole or not at all, but remembers the numbers of the records
    /// it has read. An attacker who sees a datagram with several records and delivers a part of it
    /// first would make dimpl reject the original as a replay; and dimpl rejects a datagram with
    /// more than 8 records.
    ///
    /// # Errors
    /// The error of the last invalid record. All others were handled.
    pub fn handle_packet(&mut self, packet: &[u8]) -> Result<(), Error> {
        let mut result = Ok(());
        for record in records(packet) {
            // The records after an invalid one may be valid.
            if let Err(error) = self.handle_record(record) {
                result = Err(error);
            }
        }
        result
    }

    fn handle_record(&mut self, record: &[u8]) -> Result<(), Error> {
        if self.is_refused(record) {
            tracing::debug!(target: "anabranch::webrtc", "downgraded ServerHello dropped");
            return Ok(());
        }
        self.dtls.handle_packet(record)
    }

    /// The same for a connection whose handshake is complete: most data goes to `data` at once, and
    /// only the rest through [`PacedDtls::poll_output`].
    ///
    /// # Errors
    /// As [`PacedDtls::handle_packet`].
    pub fn open_packet(&mut self, packet: &[u8], mut data: impl FnMut(&[u8])) -> Result<(), Error> {
        let mut result = Ok(());
        for record in records(packet) {
            if self.opener.open(record, &mut data) {
                continue;
            }
            let handled = (self.opener).watch(record, || self.dtls.handle_packet(record));
            if let Err(error) = handled {
                result = Err(error);
            }
        }
        result
    }

    /// The next output: a packet, data or event, or a timeout if there is nothing else.
    pub fn poll_output<'a>(&mut self, buf: &'a mut [u8]) -> Output<'a> {
        let paused_until = self.paused_until();
        let output = self.dtls.poll_output(buf);
        match &output {
            Output::Packet(datagram) => {
                let version = self.dtls.protocol_version();
                self.protected.sent(version, datagram);
            }
            Output::ApplicationData(_) => {
                let version = self.dtls.protocol_version();
                self.protected.opened(version);
                self.opener.on_data();
            }
            Output::Connected => self.is_connected = true,
            _ => {}
        }
        match output {
            Output::Timeout(at) => Output::Timeout(paused_until.map_or(at, |until| at.max(until))),
            output => output,
        }
    }

    /// Advances the time.
    ///
    /// # Errors
    /// If the handshake was retransmitted too often.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        if now >= self.window_start + TIMEOUT_WINDOW {
            self.window_start = now;
            self.timeouts = 0;
        }
        if self.paused_until().is_some() {
            return Ok(());
        }
        self.timeouts += 1;
        self.dtls.handle_timeout(now)
    }

    /// Encrypts a message for [`PacedDtls::poll_output`]; returns how much of it was accepted.
    ///
    /// # Errors
    /// Before the handshake is complete, and after [`PacedDtls::close`].
    pub fn send_application_data(&mut self, data: &[u8]) -> Result<usize, Error> {
        self.dtls.send_application_data(data)
    }

    /// Whether this side starts the handshake.
    pub fn is_active(&self) -> bool {
        self.dtls.is_active()
    }

    /// The negotiated version.
    pub fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.dtls.protocol_version()
    }

    /// Whether close_notify was sent.
    pub fn is_closing(&self) -> bool {
        self.dtls.is_closing()
    }

    /// Whether close_notify was received.
    pub fn is_closed(&self) -> bool {
        self.dtls.is_closed()
    }

    /// Queues close_notify.
    ///
    /// # Errors
    /// Before the handshake is complete.
    pub fn close(&mut self) -> Result<(), Error> {
        self.dtls.close()
    }
}

impl fmt::Debug for PacedDtls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dtls")
    }
}

/// Peers that only support DTLS 1.2, for tests.
#[cfg(feature = "testing")]
pub mod forced {
    use std::cell::Cell;

    thread_local! {
        static MTU: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    /// From now on, connections of this thread with this MTU only support DTLS 1.2.
    pub fn set_12(mtu: usize) {
        MTU.set(mtu);
    }

    pub(super) fn is_12(mtu: Option<usize>) -> bool {
        mtu == Some(MTU.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(versions: Versions, is_active: bool, now: Instant) -> PacedDtls {
        let made = rcgen::generate_simple_self_signed(vec!["test".into()]).unwrap();
        let certificate = Certificate {
            der: made.cert.der().to_vec(),
            private_key: made.signing_key.serialize_der(),
        };
        let mut dtls = PacedDtls::new(certificate, versions, Some(1200), now).unwrap();
        dtls.set_active(is_active);
        dtls.handle_timeout(now).unwrap();
        dtls
    }

    /// The datagrams to send, and the number of messages received.
    fn outputs(dtls: &mut PacedDtls) -> (Vec<Vec<u8>>, usize) {
        let (mut datagrams, mut messages) = (Vec::new(), 0);
        let mut buffer = [0; 2048];
        loop {
            match dtls.poll_output(&mut buffer) {
                Output::Packet(datagram) => datagrams.push(datagram.to_vec()),
                Output::ApplicationData(_) => messages += 1,
                Output::Timeout(_) => return (datagrams, messages),
                _ => {}
            }
        }
    }

    /// The same record with the downgrade mark in its random.
    fn marked(hello: &[u8]) -> Vec<u8> {
        let mut marked = hello.to_vec();
        assert_eq!((marked[0], marked[13]), (22, 2), "a ServerHello");
        marked[13 + 12 + 2 + 24..13 + 12 + 2 + 32].copy_from_slice(b"DOWNGRD\x01");
        marked
    }

    /// Runs a handshake in which `change` modifies each flight of the server.
    fn handshake(
        client: &mut PacedDtls,
        server: &mut PacedDtls,
        mut change: impl FnMut(Vec<u8>) -> Vec<Vec<u8>>,
    ) {
        for _ in 0..10 {
            for datagram in outputs(client).0 {
                let _ = server.handle_packet(&datagram);
            }
            for datagram in outputs(server).0 {
                for datagram in change(datagram) {
                    let _ = client.handle_packet(&datagram);
                }
            }
        }
    }

    fn split(datagram: &[u8]) -> Vec<Vec<u8>> {
        records(datagram).map(<[u8]>::to_vec).collect()
    }

    fn is_hello(record: &[u8]) -> bool {
        record.first() == Some(&22)
            && record.get(3..5) == Some(&[0, 0])
            && record.get(13) == Some(&2)
    }

    #[test]
    fn a_forged_hello_with_the_mark_of_a_downgrade_does_not_disturb_a_handshake() {
        let now = Instant::now();
        let mut client = instance(Versions::Both, true, now);
        let mut server = instance(Versions::Only12, false, now);
        let mut forged = 0;
        handshake(&mut client, &mut server, |datagram| {
            let mut all = split(&datagram);
            if all.first().is_some_and(|first| is_hello(first)) {
                all.insert(0, marked(&all[0]));
                forged += 1;
            }
            all
        });
        assert!(forged > 0);
        assert!(client.is_connected && server.is_connected);
        let version = Some(ProtocolVersion::DTLS1_2);
        assert_eq!(
            (client.protocol_version(), server.protocol_version()),
            (version, version)
        );
    }

    #[test]
    fn a_listener_that_was_made_to_choose_dtls_1_2_is_not_answered() {
        let now = Instant::now();
        let mut client = instance(Versions::Both, true, now);
        let mut server = instance(Versions::Only12, false, now);
        let mut hellos = 0;
        handshake(&mut client, &mut server, |datagram| {
            let all = split(&datagram).into_iter();
            all.map(|record| match is_hello(&record) {
                true => {
                    hellos += 1;
                    marked(&record)
                }
                false => record,
            })
            .collect()
        });
        assert!(hellos > 0);
        assert!(!client.is_connected && !server.is_connected);
        assert_eq!(
            client.protocol_version(),
            None,
            "it still waits for a hello"
        );
    }

    #[test]
    fn tiny_messages_use_up_a_key_of_dtls_1_2_record_by_record_in_both_directions() {
        for version in [Versions::Only12, Versions::Both] {
            let now = Instant::now();
            let mut client = instance(version, true, now);
            let mut server = instance(version, false, now);
            handshake(&mut client, &mut server, |datagram| vec![datagram]);
            assert!(client.is_connected && server.is_connected);
            let before = [client.protected.most(), server.protected.most()];
            let mut received = 0;
            for _ in 0..100 {
                // Two messages that share a datagram.
                client.send_application_data(b"x").unwrap();
                client.send_application_data(b"y").unwrap();
                for datagram in outputs(&mut client).0 {
                    server.handle_packet(&datagram).unwrap();
                }
                received += outputs(&mut server).1;
            }
            assert_eq!(received, 200);
            let after = [client.protected.most(), server.protected.most()];
            let expected = match version {
                Versions::Only12 => [before[0] + 200, 200],
                _ => [0, 0],
            };
            assert_eq!(after, expected);
        }
    }
}
