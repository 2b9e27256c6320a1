//! DTLS for str0m: that of `anabranch-rtc`, because str0m's own provider builds a configuration for
//! every connection.

use std::cell::Cell;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use anabranch_rtc::dtls::{PacedDtls, Versions};
use anabranch_rtc::{Certificate, Protected};
use str0m::config::DtlsVersion;
use str0m::crypto::dtls::{
    DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, ProtocolVersion,
};
use str0m::crypto::{CryptoError, CryptoProvider};

/// The provider for every connection of this process.
pub(crate) fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            dtls_provider: &Shared,
            ..str0m::crypto::from_feature_flags()
        })
    });
    Arc::clone(&PROVIDER)
}

thread_local! {
    /// Record counts of the instance that the provider created last. str0m creates it while an
    /// `Rtc` is built, and does not expose it.
    static LAST_MADE: Cell<Option<Arc<Protected>>> = const { Cell::new(None) };
}

/// Takes the record counts of the DTLS instance created last on this thread.
pub(crate) fn take_protected() -> Arc<Protected> {
    LAST_MADE.take().unwrap_or_default()
}

/// Creates instances with the shared configurations.
#[derive(Debug)]
struct Shared;

impl DtlsProvider for Shared {
    fn generate_certificate(&self) -> Option<DtlsCert> {
        // Every connection uses the certificate of its endpoint.
        None
    }

    fn new_dtls(
        &self,
        certificate: &DtlsCert,
        now: Instant,
        version: DtlsVersion,
        mtu: Option<usize>,
    ) -> Result<Box<dyn DtlsInstance>, CryptoError> {
        let certificate = Certificate {
            der: certificate.certificate.clone(),
            private_key: certificate.private_key.clone(),
        };
        let versions = match version {
            DtlsVersion::Dtls12 => Versions::Only12,
            DtlsVersion::Dtls13 => Versions::Only13,
            _ => Versions::Both,
        };
        let dtls = PacedDtls::new(certificate, versions, mtu, now)
            .map_err(|error| CryptoError::Other(error.to_string()))?;
        LAST_MADE.set(Some(Arc::clone(dtls.protected())));
        Ok(Box::new(Instance(dtls)))
    }
}

#[derive(Debug)]
struct Instance(PacedDtls);

impl DtlsInstance for Instance {
    fn set_active(&mut self, active: bool) {
        self.0.set_active(active);
    }

    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), DtlsImplError> {
        self.0.handle_packet(packet)
    }

    fn poll_output<'a>(&mut self, buf: &'a mut [u8]) -> DtlsOutput<'a> {
        self.0.poll_output(buf)
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        self.0.handle_timeout(now)
    }

    fn send_application_data(&mut self, data: &[u8]) -> Result<usize, DtlsImplError> {
        self.0.send_application_data(data)
    }

    fn is_active(&self) -> bool {
        self.0.is_active()
    }

    fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.0.protocol_version()
    }

    fn is_closing(&self) -> bool {
        self.0.is_closing()
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    fn close(&mut self) -> Result<(), DtlsImplError> {
        self.0.close()
    }
}
