//! TLS: trust on the client side, and the certificate on the server side.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    self, ClientConfig as RustlsClient, DigitallySignedStruct, RootCertStore,
    ServerConfig as RustlsServer, SignatureScheme,
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

/// A certificate chain and its key, for a server.
#[derive(Clone)]
pub struct TlsIdentity {
    config: Arc<RustlsServer>,
}

impl TlsIdentity {
    /// Parses a chain, the server's own certificate first, and a key (PKCS #8, SEC1 or PKCS #1).
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
        let unusable = |error: rustls::Error| TlsIdentityError::Unusable(error.to_string());
        let mut config = RustlsServer::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Without the extended master secret the exporter of TLS 1.2 is no binding (RFC 9266
        // section 4.2).
        config.require_ems = true;
        Ok(Self {
            config: Arc::new(config),
        })
    }

    pub(super) fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        Arc::clone(&self.config).into()
    }
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

/// The TLS connector for `trust`.
pub(super) fn connector(trust: &TlsTrust) -> io::Result<tokio_rustls::TlsConnector> {
    let failed =
        |error: &dyn fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    let provider = provider();
    let builder = RustlsClient::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?;
    let mut config = match trust {
        TlsTrust::WebPki => {
            let roots = RootCertStore {
                roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
            };
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        TlsTrust::Roots(ders) => {
            let mut roots = RootCertStore::empty();
            for der in ders {
                roots
                    .add(der.clone().into())
                    .map_err(|error| failed(&error))?;
            }
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| failed(&error))?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth()
        }
        TlsTrust::Certificates(fingerprints) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned {
                fingerprints: fingerprints.clone(),
                provider,
            }))
            .with_no_client_auth(),
    };
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

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let got = Fingerprint::of(end_entity);
        if self.fingerprints.contains(&got) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
