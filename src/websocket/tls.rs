//! TLS: whom each side trusts, and the certificates with which both authenticate.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{
    self, AlertDescription, ClientConfig as RustlsClient, DigitallySignedStruct, DistinguishedName,
    RootCertStore, ServerConfig as RustlsServer, SignatureScheme,
};

use crate::certificate::{Certificate, Fingerprint};

/// Which server certificates a client accepts.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum TlsTrust {
    /// Those that chain to a root of Mozilla's list, for the dialled name.
    #[default]
    WebPki,
    /// Those that chain to one of these roots (DER), for the dialled name.
    Roots(Vec<Vec<u8>>),
    /// Those with one of these SHA-256 fingerprints, as in webrtc-direct, whatever their issuer,
    /// names and validity period.
    Certificates(Vec<Fingerprint>),
}

/// Which client certificates a server accepts: see [`TlsIdentity::with_client_trust`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum TlsClientTrust {
    /// Those that chain to one of these roots (DER), are valid now, and may be used by clients.
    Roots(Vec<Vec<u8>>),
    /// Those with one of these SHA-256 fingerprints, whatever their issuer, names and validity
    /// period.
    Certificates(Vec<Fingerprint>),
}

/// Why a certificate and key can not be used for TLS.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TlsIdentityError {
    /// The PEM text is malformed.
    #[error("PEM: {0}")]
    Pem(String),
    /// Certificate and key do not match, or their type is not supported.
    #[error("{0}")]
    Unusable(String),
}

/// A certificate chain and its key: of a server, or of a client whose server requires one.
#[derive(Clone)]
pub struct TlsIdentity {
    key: Arc<CertifiedKey>,
    server: Arc<RustlsServer>,
    requires_clients: bool,
}

impl TlsIdentity {
    /// Parses a chain, its own certificate first, and a key (PKCS #8, SEC1 or PKCS #1).
    ///
    /// # Errors
    /// [`TlsIdentityError`] if they can not be parsed or used.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, TlsIdentityError> {
        let pem = |error: rustls::pki_types::pem::Error| TlsIdentityError::Pem(error.to_string());
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(pem)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(pem)?;
        Self::new(chain, key)
    }

    /// Uses a certificate of the kind that WebRTC uses. It is self-signed, so clients need its
    /// fingerprint ([`TlsTrust::Certificates`]).
    ///
    /// # Errors
    /// [`TlsIdentityError::Unusable`], which certificates of this crate do not cause.
    pub fn from_certificate(certificate: &Certificate) -> Result<Self, TlsIdentityError> {
        let key = PrivateKeyDer::try_from(certificate.private_key().to_vec())
            .map_err(|error| TlsIdentityError::Unusable(error.to_owned()))?;
        Self::new(vec![certificate.der().to_vec().into()], key)
    }

    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, TlsIdentityError> {
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(unusable)?;
        Self::of_server(Arc::new(key), None)
    }

    /// Requires a certificate of every client: mutual TLS. Others are refused, with
    /// [`ClientCertificateMissing`](super::HandshakeError::ClientCertificateMissing) or
    /// [`ClientCertificateRefused`](super::HandshakeError::ClientCertificateRefused) on both sides.
    /// [`Connection::peer_certificate`](crate::Connection::peer_certificate) has that of a client.
    /// On the client it has no effect.
    ///
    /// Every connection presents it anew: sessions are not resumed.
    ///
    /// Web pages can not present one without a dialogue of the browser. A proxy that terminates TLS
    /// has to check the certificates itself.
    ///
    /// # Errors
    /// [`TlsIdentityError::Unusable`] if a root can not be parsed, or the list is empty: it would
    /// refuse every client.
    pub fn with_client_trust(self, trust: &TlsClientTrust) -> Result<Self, TlsIdentityError> {
        let unusable = |error: &dyn fmt::Display| TlsIdentityError::Unusable(error.to_string());
        let is_empty = match trust {
            TlsClientTrust::Roots(ders) => ders.is_empty(),
            TlsClientTrust::Certificates(fingerprints) => fingerprints.is_empty(),
        };
        if is_empty {
            return Err(unusable(&"no client is trusted"));
        }
        let verifier: Arc<dyn ClientCertVerifier> = match trust {
            TlsClientTrust::Roots(ders) => {
                let roots = root_store(ders).map_err(|error| unusable(&error))?;
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                    .build()
                    .map_err(|error| unusable(&error))?
            }
            TlsClientTrust::Certificates(fingerprints) => Arc::new(Pinned {
                fingerprints: fingerprints.clone(),
                provider: provider(),
            }),
        };
        Self::of_server(self.key, Some(verifier))
    }

    fn of_server(
        key: Arc<CertifiedKey>,
        clients: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<Self, TlsIdentityError> {
        let builder = RustlsServer::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let requires_clients = clients.is_some();
        let builder = match clients {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let resolver = SingleCertAndKey::from(Arc::clone(&key));
        let mut server = builder.with_cert_resolver(Arc::new(resolver));
        if requires_clients {
            // A resumed session has the certificate of the first, and rustls does not verify it
            // again: it may have expired since. `RustlsServer` has no ticketer by default.
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
        }
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Without the extended master secret the exporter of TLS 1.2 is no binding (RFC 9266
        // section 4.2).
        server.require_ems = true;
        Ok(Self {
            key,
            server: Arc::new(server),
            requires_clients,
        })
    }

    pub(super) fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        Arc::clone(&self.server).into()
    }

    /// Whether clients have to present a certificate.
    pub(super) fn requires_clients(&self) -> bool {
        self.requires_clients
    }
}

fn unusable(error: rustls::Error) -> TlsIdentityError {
    TlsIdentityError::Unusable(error.to_string())
}

fn root_store(ders: &[Vec<u8>]) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for der in ders {
        roots.add(der.clone().into())?;
    }
    Ok(roots)
}

/// What an error of TLS says about the certificate of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientCertificateFault {
    Missing,
    Refused,
}

impl ClientCertificateFault {
    /// Of an error that this side has found as the server.
    pub(super) fn found(error: &io::Error) -> Option<Self> {
        match tls_error(error)? {
            rustls::Error::NoCertificatesPresented => Some(Self::Missing),
            rustls::Error::InvalidCertificate(_) => Some(Self::Refused),
            _ => None,
        }
    }

    /// Of an alert that the server has sent (RFC 8446 section 6.2). Most have other causes too, so
    /// what they say depends on what this client has presented. With TLS 1.3 the alert arrives once
    /// the handshake is complete here.
    pub(super) fn reported(error: &io::Error, presented: Presented) -> Option<Self> {
        let rustls::Error::AlertReceived(alert) = tls_error(error)? else {
            return None;
        };
        match (alert, presented) {
            (AlertDescription::CertificateRequired, _) => Some(Self::Missing),
            // TLS 1.2 has no alert of its own for it (RFC 5246 section 7.4.6); Go's servers send
            // the second.
            (
                AlertDescription::HandshakeFailure | AlertDescription::BadCertificate,
                Presented::Nothing,
            ) => Some(Self::Missing),
            (
                AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                // A signature in its chain does not verify.
                | AlertDescription::DecryptError,
                Presented::Certificate,
            ) => Some(Self::Refused),
            _ => None,
        }
    }
}

/// What a client has presented in a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presented {
    /// The server has not requested a certificate.
    NotRequested,
    /// The server has requested one, and the client has none that the server can verify.
    Nothing,
    /// A certificate.
    Certificate,
}

/// The certificate of a client, if any, and whether it was requested and presented. For one
/// handshake.
#[derive(Debug, Default)]
pub(super) struct ClientCertificate {
    key: Option<Arc<CertifiedKey>>,
    is_requested: AtomicBool,
    is_presented: AtomicBool,
}

impl ClientCertificate {
    pub(super) fn new(identity: Option<&TlsIdentity>) -> Arc<Self> {
        Arc::new(Self {
            key: identity.map(|identity| Arc::clone(&identity.key)),
            ..Self::default()
        })
    }

    pub(super) fn presented(&self) -> Presented {
        if self.is_presented.load(Ordering::Relaxed) {
            Presented::Certificate
        } else if self.is_requested.load(Ordering::Relaxed) {
            Presented::Nothing
        } else {
            Presented::NotRequested
        }
    }
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.is_requested.store(true, Ordering::Relaxed);
        let key = self.key.as_ref()?;
        // Without a common scheme rustls presents nothing.
        key.key.choose_scheme(schemes)?;
        self.is_presented.store(true, Ordering::Relaxed);
        Some(Arc::clone(key))
    }

    fn has_certs(&self) -> bool {
        self.key.is_some()
    }
}

/// The certificate of the peer itself, without its chain.
pub(super) fn leaf(chain: Option<&[CertificateDer<'_>]>) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(chain?.first()?))
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

/// Explicit, not the default of the process: a program that links two providers has none.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The TLS connector of a client that trusts these servers, and has this certificate for those that
/// require one. For one handshake.
pub(super) fn connector(
    trust: &TlsTrust,
    certificate: Arc<ClientCertificate>,
) -> io::Result<tokio_rustls::TlsConnector> {
    let failed =
        |error: &dyn fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    let provider = provider();
    let builder = RustlsClient::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?;
    let builder = match trust {
        TlsTrust::WebPki => {
            let roots = RootCertStore {
                roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
            };
            builder.with_root_certificates(roots)
        }
        TlsTrust::Roots(ders) => {
            let roots = root_store(ders).map_err(|error| failed(&error))?;
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| failed(&error))?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(verifier)
        }
        TlsTrust::Certificates(fingerprints) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned {
                fingerprints: fingerprints.clone(),
                provider,
            })),
    };
    let mut config = builder.with_client_cert_resolver(certificate);
    config.require_ems = true;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

/// Accepts certificates by their fingerprint.
#[derive(Debug)]
struct Pinned {
    fingerprints: Vec<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        match self.fingerprints.contains(&Fingerprint::of(certificate)) {
            true => Ok(()),
            false => Err(rustls::CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_tls12(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_tls12(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_about_the_certificate_of_a_client_that_has_presented_one() {
        use AlertDescription as Alert;
        use ClientCertificateFault::{Missing, Refused};
        use Presented::{Certificate, NotRequested, Nothing};
        let reported = |alert, presented| {
            let error = io::Error::other(rustls::Error::AlertReceived(alert));
            ClientCertificateFault::reported(&error, presented)
        };
        for (alert, by_presented) in [
            (Alert::CertificateRequired, [Some(Missing); 3]),
            (Alert::BadCertificate, [None, Some(Missing), Some(Refused)]),
            (Alert::HandshakeFailure, [None, Some(Missing), None]),
            (Alert::UnknownCA, [None, None, Some(Refused)]),
            (Alert::AccessDenied, [None, None, Some(Refused)]),
            (Alert::DecryptError, [None, None, Some(Refused)]),
            (Alert::InternalError, [None; 3]),
        ] {
            let all = [NotRequested, Nothing, Certificate];
            let all = all.map(|presented| reported(alert, presented));
            assert_eq!(all, by_presented, "{alert:?}");
        }
    }

    #[test]
    fn a_client_certificate_without_a_common_scheme_is_not_presented() {
        let own = crate::certificate::Certificate::generate();
        let own = TlsIdentity::from_certificate(&own).expect("a certificate");
        let certificate = ClientCertificate::new(Some(&own));
        assert_eq!(certificate.presented(), Presented::NotRequested);
        let resolved = certificate.resolve(&[], &[SignatureScheme::ED25519]);
        assert!(resolved.is_none());
        assert_eq!(certificate.presented(), Presented::Nothing);
        let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
        assert!(certificate.resolve(&[], &schemes).is_some());
        assert_eq!(certificate.presented(), Presented::Certificate);
    }
}
