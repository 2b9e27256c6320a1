//! DTLS for both engines: dimpl, with configurations that are made once.
//!
//! Building a `dimpl::Config` runs the self-tests of the crypto library, 1.1 ms each time, and
//! str0m's own provider builds one for every connection: 800 first contacts a second would fill a
//! core.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use str0m::config::DtlsVersion;
use str0m::crypto::dtls::{
    DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, ProtocolVersion,
};
use str0m::crypto::{CryptoError, CryptoProvider};

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
        return Ok(PacedDtls::new(dtls, now));
    }
    let dtls = dimpl::Dtls::new_auto(config, certificate.clone(), now);
    Ok(PacedDtls::new(dtls, now))
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
        Ok(Box::new(PacedDtls::new(dtls, now)))
    }
}

/// A `dimpl::Dtls` that takes no more timeouts than [`MAX_TIMEOUTS`].
pub(super) struct PacedDtls {
    dtls: dimpl::Dtls,
    /// When the running window of timeouts began.
    window: Instant,
    /// Timeouts taken in it.
    timeouts: u32,
}

impl PacedDtls {
    fn new(dtls: dimpl::Dtls, now: Instant) -> Self {
        Self {
            dtls,
            window: now,
            timeouts: 0,
        }
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
            // One that is of no use says nothing about those behind it.
            if let Err(error) = self.dtls.handle_packet(record) {
                result = Err(error);
            }
        }
        result
    }

    fn poll_output<'a>(&mut self, buf: &'a mut [u8]) -> DtlsOutput<'a> {
        let paused_until = self.paused_until();
        match self.dtls.poll_output(buf) {
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

/// The records of a datagram. The last may be cut off, or be none.
fn records(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let length = record_length(datagram).unwrap_or(datagram.len());
        let (record, behind) = datagram.split_at(length.min(datagram.len()));
        datagram = behind;
        Some(record)
    })
}

/// Bytes of the record that this begins with; `None` if it is the last, whatever its length.
fn record_length(datagram: &[u8]) -> Option<usize> {
    let header = match *datagram.first()? {
        // The unified header of DTLS 1.3 (RFC 9147 section 4), 0b001CSLEE: with a connection ID, which nobody
        // has agreed on, its length is not known, and without L it is the rest of the datagram.
        first @ 0x20..=0x3f if first & 0x14 == 0x04 => {
            if first & 0x08 == 0 {
                4
            } else {
                5
            }
        }
        0x20..=0x3f => return None,
        _ => 13,
    };
    let length = datagram.get(header - 2..header)?.try_into().ok()?;
    Some(header + usize::from(u16::from_be_bytes(length)))
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

    #[test]
    fn a_datagram_is_taken_apart_into_its_records() {
        let plain = [&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3][..], b"abc"].concat();
        let short = [&[0x24, 7, 0, 2][..], b"de"].concat();
        let long = [&[0x2c, 7, 7, 0, 2][..], b"fg"].concat();
        let without_length = [&[0x28, 7, 7][..], b"hi"].concat();
        let with_id = [&[0x3c, 7, 7, 0, 2][..], b"jk"].concat();
        let all = [&plain[..], &short, &long, &plain, &without_length].concat();
        let expected = [&plain[..], &short, &long, &plain, &without_length];
        assert_eq!(records(&all).collect::<Vec<_>>(), expected);
        let all = [&with_id[..], &plain].concat();
        assert_eq!(records(&all).collect::<Vec<_>>(), [&all[..]]);
        // Cut anywhere it is what is there, and nothing gets lost.
        let all = [&plain[..], &short, &long].concat();
        for cut in 0..all.len() {
            let parts: Vec<_> = records(&all[..cut]).collect();
            assert_eq!(parts.concat(), all[..cut], "{cut}");
            assert!(parts.iter().all(|part| !part.is_empty()));
        }
    }
}
