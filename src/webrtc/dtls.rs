//! DTLS for both engines: dimpl, with configurations that are made once.
//!
//! Building a `dimpl::Config` runs the self-tests of the crypto library, 1.1 ms each time, and
//! str0m's own provider builds one for every connection: 800 first contacts a second would fill a
//! core.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use str0m::config::DtlsVersion;
use str0m::crypto::dtls::{
    DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, ProtocolVersion,
};
use str0m::crypto::{CryptoError, CryptoProvider};

use super::downgrade::is_downgrade;
use super::records::{Protected, records};
use crate::connection::ConnectionError;

/// Datagrams that may wait in a DTLS instance between two polls. More than an engine feeds at a
/// time, so that a burst does not look like loss.
const MAX_QUEUE_RX: usize = 256;

/// Datagrams that may wait to be taken out of a DTLS instance. More than an engine encrypts
/// between two polls.
const MAX_QUEUE_TX: usize = 64;

/// What dimpl encrypts with.
static DIMPL_PROVIDER: LazyLock<dimpl::crypto::CryptoProvider> =
    LazyLock::new(super::record_number::crypto_provider);

static CONFIGS: SharedConfigs = SharedConfigs {
    by_mtu: Mutex::new(BTreeMap::new()),
};

/// Timeouts that a DTLS instance takes within [`TIMEOUT_WINDOW`]. The first steps need two at once.
///
/// While a message in the middle of the peer's flight is missing, dimpl 0.9 acknowledges the others
/// at once, and at the next timeout again; and str0m lets a timeout follow every datagram. Together
/// that is a loop without end within one `Rtc::poll_output`, which a lossy path, or a peer
/// that wants to, sets off.
const MAX_TIMEOUTS: u32 = 4;

/// See [`MAX_TIMEOUTS`]. Short beside the second after which a flight is sent again.
const TIMEOUT_WINDOW: Duration = Duration::from_millis(100);

/// The provider for every connection of this process.
pub(super) fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            dtls_provider: &CONFIGS,
            ..str0m::crypto::from_feature_flags()
        })
    });
    Arc::clone(&PROVIDER)
}

/// Makes the first handshake of a process as quick as the others, by having the crypto library
/// test itself and gather its entropy now: 25 to 80 ms.
pub(crate) fn warm_up() {
    let provider = crypto_provider();
    let now = Instant::now();
    let certificate = crate::certificate::Certificate::generate().to_dtls();
    match provider
        .dtls_provider
        .new_dtls(&certificate, now, DtlsVersion::Auto, None)
    {
        Ok(mut dtls) => {
            dtls.set_active(true);
            // The first flight takes random numbers and a key pair.
            let _ = dtls.handle_timeout(now);
        }
        Err(error) => tracing::debug!(target: "anabranch::webrtc", %error, "no warm-up"),
    }
}

thread_local! {
    /// Counts of the instance that the provider has made last. str0m makes it while an `Rtc` is built, and hands it to nobody.
    static LAST_MADE: Cell<Option<Arc<Protected>>> = const { Cell::new(None) };
}

/// Counts of the DTLS instance that str0m was given last on this thread.
pub(super) fn take_protected() -> Arc<Protected> {
    LAST_MADE.take().unwrap_or_default()
}

/// A DTLS instance for the direct engine, with the shared configuration for `mtu`.
///
/// 1.3 where the peer has it, 1.2 otherwise.
pub(super) fn new_dtls(
    certificate: &DtlsCert,
    mtu: usize,
    now: Instant,
) -> Result<PacedDtls, ConnectionError> {
    let config = CONFIGS
        .get(Some(mtu))
        .map_err(|error| ConnectionError::Carrier(error.to_string()))?;
    #[cfg(test)]
    if forced::is_12(mtu) {
        let dtls = dimpl::Dtls::new_12(config, certificate.clone(), now);
        return Ok(PacedDtls::new(dtls, DtlsVersion::Dtls12, now));
    }
    let dtls = dimpl::Dtls::new_auto(config, certificate.clone(), now);
    Ok(PacedDtls::new(dtls, DtlsVersion::Auto, now))
}

/// One configuration for each MTU in use; MTUs come from our own settings, not from peers.
#[derive(Debug)]
struct SharedConfigs {
    by_mtu: Mutex<BTreeMap<usize, Arc<dimpl::Config>>>,
}

impl SharedConfigs {
    fn get(&self, mtu: Option<usize>) -> Result<Arc<dimpl::Config>, CryptoError> {
        let mut by_mtu = self.by_mtu.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = by_mtu.get(&mtu.unwrap_or(0)) {
            return Ok(Arc::clone(config));
        }
        // ICE has shown that the peer receives at its address: a cookie would show it again.
        let mut builder = dimpl::Config::builder()
            .with_crypto_provider(DIMPL_PROVIDER.clone())
            .use_server_cookie(false)
            .max_queue_rx(MAX_QUEUE_RX)
            .max_queue_tx(MAX_QUEUE_TX);
        if let Some(mtu) = mtu {
            builder = builder.mtu(mtu);
        }
        let config = builder
            .build()
            .map_err(|error| CryptoError::Other(format!("no DTLS configuration: {error}")))?;
        let config = Arc::new(config);
        by_mtu.insert(mtu.unwrap_or(0), Arc::clone(&config));
        Ok(config)
    }
}

impl DtlsProvider for SharedConfigs {
    fn generate_certificate(&self) -> Option<DtlsCert> {
        // Every connection gets the certificate of its endpoint.
        None
    }

    fn new_dtls(
        &self,
        certificate: &DtlsCert,
        now: Instant,
        version: DtlsVersion,
        mtu: Option<usize>,
    ) -> Result<Box<dyn DtlsInstance>, CryptoError> {
        #[cfg(test)]
        let version = match forced::is_12(mtu.unwrap_or(0)) {
            true => DtlsVersion::Dtls12,
            false => version,
        };
        let config = self.get(mtu)?;
        let certificate = certificate.clone();
        let dtls = match version {
            DtlsVersion::Dtls12 => dimpl::Dtls::new_12(config, certificate, now),
            DtlsVersion::Dtls13 => dimpl::Dtls::new_13(config, certificate, now),
            _ => dimpl::Dtls::new_auto(config, certificate, now),
        };
        let dtls = PacedDtls::new(dtls, version, now);
        LAST_MADE.set(Some(Arc::clone(&dtls.protected)));
        Ok(Box::new(dtls))
    }
}

/// A `dimpl::Dtls` that takes no more timeouts than [`MAX_TIMEOUTS`], and no hello of a listener that was made to choose
/// DTLS 1.2.
pub(super) struct PacedDtls {
    dtls: dimpl::Dtls,
    /// The other side may choose 1.3.
    offers_13: bool,
    is_connected: bool,
    protected: Arc<Protected>,
    /// When the running window of timeouts began.
    window: Instant,
    /// Timeouts taken in it.
    timeouts: u32,
}

impl PacedDtls {
    fn new(dtls: dimpl::Dtls, version: DtlsVersion, now: Instant) -> Self {
        Self {
            dtls,
            offers_13: version != DtlsVersion::Dtls12,
            is_connected: false,
            protected: Arc::default(),
            window: now,
            timeouts: 0,
        }
    }

    /// Counts of its records.
    pub(super) fn protected(&self) -> &Arc<Protected> {
        &self.protected
    }

    /// Whether this record is to be kept from DTLS.
    fn is_refused(&self, record: &[u8]) -> bool {
        let may_be_hello = !self.is_connected && self.offers_13 && self.dtls.is_active();
        may_be_hello && is_downgrade(record)
    }

    /// Until when no timeout is taken any more.
    fn paused_until(&self) -> Option<Instant> {
        (self.timeouts >= MAX_TIMEOUTS).then(|| self.window + TIMEOUT_WINDOW)
    }
}

impl fmt::Debug for PacedDtls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dtls")
    }
}

impl DtlsInstance for PacedDtls {
    fn set_active(&mut self, active: bool) {
        self.dtls.set_active(active);
    }

    /// Record by record: dimpl takes all of a datagram or none, but remembers the numbers of those records
    /// that it has read. Whoever sees a datagram with several and is first with a part of it would make
    /// dimpl take the real one for a repetition; and of more than 8 records it takes none.
    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), DtlsImplError> {
        let mut result = Ok(());
        for record in records(packet) {
            if self.is_refused(record) {
                tracing::debug!(target: "anabranch::webrtc", "a hello that was made to choose DTLS 1.2");
                continue;
            }
            // One that is of no use says nothing about those behind it.
            if let Err(error) = self.dtls.handle_packet(record) {
                result = Err(error);
            }
        }
        result
    }

    fn poll_output<'a>(&mut self, buf: &'a mut [u8]) -> DtlsOutput<'a> {
        let paused_until = self.paused_until();
        let output = self.dtls.poll_output(buf);
        match &output {
            DtlsOutput::Packet(datagram) => {
                let version = self.dtls.protocol_version();
                self.protected.sent(version, datagram);
            }
            DtlsOutput::ApplicationData(_) => {
                let version = self.dtls.protocol_version();
                self.protected.opened(version);
            }
            DtlsOutput::Connected => self.is_connected = true,
            _ => {}
        }
        match output {
            DtlsOutput::Timeout(at) => {
                DtlsOutput::Timeout(paused_until.map_or(at, |until| at.max(until)))
            }
            output => output,
        }
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        if now >= self.window + TIMEOUT_WINDOW {
            self.window = now;
            self.timeouts = 0;
        }
        if self.paused_until().is_some() {
            return Ok(());
        }
        self.timeouts += 1;
        self.dtls.handle_timeout(now)
    }

    fn send_application_data(&mut self, data: &[u8]) -> Result<usize, DtlsImplError> {
        self.dtls.send_application_data(data)
    }

    fn is_active(&self) -> bool {
        self.dtls.is_active()
    }

    fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.dtls.protocol_version()
    }

    fn is_closing(&self) -> bool {
        self.dtls.is_closing()
    }

    fn is_closed(&self) -> bool {
        self.dtls.is_closed()
    }

    fn close(&mut self) -> Result<(), DtlsImplError> {
        self.dtls.close()
    }
}

/// HMAC-SHA1 over the concatenation of `parts`, for the MESSAGE-INTEGRITY of STUN.
pub(crate) fn sha1_hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 20] {
    crypto_provider().sha1_hmac_provider.sha1_hmac(key, parts)
}

/// Peers that know DTLS 1.2 only, for tests.
#[cfg(test)]
pub(crate) mod forced {
    use std::cell::Cell;

    thread_local! {
        static MTU: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    /// From now on, endpoints of this thread with this MTU know DTLS 1.2 only.
    pub(crate) fn set_12(mtu: usize) {
        MTU.set(mtu);
    }

    pub(super) fn is_12(mtu: usize) -> bool {
        MTU.get() == mtu
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Certificate;

    fn instance(version: DtlsVersion, is_active: bool, now: Instant) -> PacedDtls {
        let certificate = Certificate::generate().to_dtls();
        let config = CONFIGS.get(Some(1200)).unwrap();
        let dtls = match version {
            DtlsVersion::Dtls12 => dimpl::Dtls::new_12(config, certificate, now),
            _ => dimpl::Dtls::new_auto(config, certificate, now),
        };
        let mut dtls = PacedDtls::new(dtls, version, now);
        dtls.set_active(is_active);
        dtls.handle_timeout(now).unwrap();
        dtls
    }

    /// Datagrams that an instance has to send, and data that it has received.
    fn outputs(dtls: &mut PacedDtls) -> (Vec<Vec<u8>>, usize) {
        let (mut datagrams, mut messages) = (Vec::new(), 0);
        let mut buffer = [0; 2048];
        loop {
            match dtls.poll_output(&mut buffer) {
                DtlsOutput::Packet(datagram) => datagrams.push(datagram.to_vec()),
                DtlsOutput::ApplicationData(_) => messages += 1,
                DtlsOutput::Timeout(_) => return (datagrams, messages),
                _ => {}
            }
        }
    }

    /// The same record, of a server that was offered less than it speaks.
    fn marked(hello: &[u8]) -> Vec<u8> {
        let mut marked = hello.to_vec();
        assert_eq!((marked[0], marked[13]), (22, 2), "a ServerHello");
        marked[13 + 12 + 2 + 24..13 + 12 + 2 + 32].copy_from_slice(b"DOWNGRD\x01");
        marked
    }

    /// Runs a handshake, with each flight of the server changed.
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
        let mut client = instance(DtlsVersion::Auto, true, now);
        let mut server = instance(DtlsVersion::Dtls12, false, now);
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
        let mut client = instance(DtlsVersion::Auto, true, now);
        let mut server = instance(DtlsVersion::Dtls12, false, now);
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
        for version in [DtlsVersion::Dtls12, DtlsVersion::Auto] {
            let now = Instant::now();
            let mut client = instance(version, true, now);
            let mut server = instance(version, false, now);
            handshake(&mut client, &mut server, |datagram| vec![datagram]);
            assert!(client.is_connected && server.is_connected);
            let before = [client.protected.most(), server.protected.most()];
            let mut received = 0;
            for _ in 0..100 {
                // Two of them share a datagram.
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
                DtlsVersion::Dtls12 => [before[0] + 200, 200],
                _ => [0, 0],
            };
            assert_eq!(after, expected);
        }
    }
}
