//! Mutual TLS with peers that are configured otherwise than those of this crate.

use std::sync::Arc;
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use tokio::io::duplex;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{
    NoClientAuth, ResolvesServerCert, ResolvesServerCertUsingSni, WebPkiClientVerifier,
};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    self, HandshakeKind, RootCertStore, SupportedProtocolVersion, server::danger,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::clients::{Authority, listen};
use super::connections::{client, idle, server};
use crate::address::WebSocketAddress;
use crate::certificate::Fingerprint;
use crate::connection::Connection;
use crate::websocket::*;

const LIMIT: Duration = Duration::from_secs(60);

type Outcome = Result<Connection, HandshakeError>;

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.der.clone().into()).unwrap();
    Arc::new(roots)
}

/// A chain and its key, as rustls has them.
fn presented(
    (leaf, key): &(rcgen::Certificate, rcgen::KeyPair),
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    (vec![leaf.der().clone()], key)
}

/// A client of rustls, of one version of TLS.
fn raw_client(
    version: &'static SupportedProtocolVersion,
    authority: &Authority,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> TlsConnector {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots(authority));
    let config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    Arc::new(config).into()
}

/// A server of rustls for TLS 1.2.
fn raw_server(
    clients: Arc<dyn danger::ClientCertVerifier>,
    resolver: Arc<dyn ResolvesServerCert>,
) -> TlsAcceptor {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_cert_resolver(resolver);
    Arc::new(config).into()
}

/// Accepts one connection over TLS of rustls; `None` if TLS fails. Dials it with `config`.
async fn dial_raw(acceptor: &TlsAcceptor, config: &ClientConfig) -> (Option<Outcome>, Outcome) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let address: WebSocketAddress = format!("/dns4/localhost/tcp/{port}/wss").parse().unwrap();
    let accepting = async {
        let (stream, _) = listener.accept().await.unwrap();
        let tls = acceptor.accept(stream).await.ok()?;
        Some(accept(tls, &server(Authentication::Tls)).await)
    };
    let both = async { tokio::join!(accepting, connect(&address, config)) };
    timeout(LIMIT, both)
        .await
        .expect("both sides come to an end")
}

/// Dials with TLS of rustls. The listener's side first, and how TLS began.
async fn dial_from_raw(
    listener: &WebSocketListener,
    raw: &TlsConnector,
) -> (Outcome, Option<(HandshakeKind, Outcome)>) {
    let address = listener.address();
    let accepting = async { listener.accept().await.unwrap().accept().await };
    let dialling = async {
        let stream = TcpStream::connect(listener.local_addr()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let tls = raw.connect(name, stream).await.ok()?;
        let kind = tls.get_ref().1.handshake_kind().unwrap();
        let config = client(Authentication::DangerNone);
        Some((kind, connect_over(tls, &address, &config).await))
    };
    let both = async { tokio::join!(accepting, dialling) };
    timeout(LIMIT, both)
        .await
        .expect("both sides come to an end")
}

async fn close(dialled: Connection, accepted: Connection) {
    timeout(LIMIT, dialled.close()).await.expect("it closes");
    timeout(LIMIT, accepted.closed()).await.expect("it is told");
}

fn is_missing(outcome: &Outcome) -> bool {
    matches!(outcome, Err(HandshakeError::ClientCertificateMissing))
}

fn is_refused(outcome: &Outcome) -> bool {
    matches!(outcome, Err(HandshakeError::ClientCertificateRefused(_)))
}

/// rustls sends AccessDenied then.
#[tokio::test]
async fn a_server_without_a_certificate_for_the_name_refuses_no_client_certificate() {
    let authority = Authority::new();
    let nothing = Arc::new(ResolvesServerCertUsingSni::new());
    let acceptor = raw_server(Arc::new(NoClientAuth), nothing);
    let mut config = client(Authentication::Tls);
    config.trust = TlsTrust::Roots(vec![authority.der.clone()]);
    for certificate in [None, Some(authority.issue(ClientAuth).0)] {
        config.certificate = certificate;
        let (accepted, dialled) = dial_raw(&acceptor, &config).await;
        assert!(accepted.is_none());
        let error = dialled.expect_err("it has no certificate");
        assert!(matches!(error, HandshakeError::Tls(_)), "{error:?}");
        assert!(error.to_string().contains("AccessDenied"), "{error}");
    }
}

#[tokio::test]
async fn a_client_has_typed_errors_for_its_certificate_over_tls_1_2() {
    let authority = Authority::new();
    let (chain, key) = presented(&authority.sign(ServerAuth));
    let provider = aws_lc_rs::default_provider();
    let key = CertifiedKey::from_der(chain, key, &provider).unwrap();
    let trusted = roots(&authority);
    let clients = WebPkiClientVerifier::builder_with_provider(trusted, provider.into());
    let resolver = Arc::new(SingleCertAndKey::from(key));
    let acceptor = raw_server(clients.build().unwrap(), resolver);
    let mut config = client(Authentication::Tls);
    config.trust = TlsTrust::Roots(vec![authority.der.clone()]);

    let (accepted, dialled) = dial_raw(&acceptor, &config).await;
    assert!(accepted.is_none());
    assert!(is_missing(&dialled), "{dialled:?}");
    config.certificate = Some(Authority::new().issue(ClientAuth).0);
    let (accepted, dialled) = dial_raw(&acceptor, &config).await;
    assert!(accepted.is_none());
    assert!(is_refused(&dialled), "{dialled:?}");
    config.certificate = Some(authority.issue(ClientAuth).0);
    let (accepted, dialled) = dial_raw(&acceptor, &config).await;
    close(dialled.unwrap(), accepted.unwrap().unwrap()).await;
}

#[tokio::test]
async fn a_listener_has_typed_errors_for_a_client_certificate_over_tls_1_2() {
    let authority = Authority::new();
    let trust = TlsClientTrust::Roots(vec![authority.der.clone()]);
    let own = authority.issue(ServerAuth).0.with_client_trust(&trust);
    let listener = listen(own.unwrap(), Authentication::DangerNone).await;

    let raw = raw_client(&TLS12, &authority, None);
    let (accepted, dialled) = dial_from_raw(&listener, &raw).await;
    assert!(dialled.is_none());
    assert!(is_missing(&accepted), "{accepted:?}");
    let stranger = Authority::new().sign(ClientAuth);
    let raw = raw_client(&TLS12, &authority, Some(presented(&stranger)));
    let (accepted, dialled) = dial_from_raw(&listener, &raw).await;
    assert!(dialled.is_none());
    assert!(is_refused(&accepted), "{accepted:?}");
    let good = authority.sign(ClientAuth);
    let raw = raw_client(&TLS12, &authority, Some(presented(&good)));
    let (accepted, dialled) = dial_from_raw(&listener, &raw).await;
    let (accepted, (_, dialled)) = (accepted.unwrap(), dialled.unwrap());
    assert_eq!(accepted.peer_certificate(), Some(&good.0.der()[..]));
    close(dialled.unwrap(), accepted).await;
    idle(&listener).await;
}

/// rustls would take the certificate of the first session without verifying it again.
#[tokio::test]
async fn a_client_presents_its_certificate_on_every_connection() {
    let authority = Authority::new();
    let good = authority.sign(ClientAuth);
    let pinned = Fingerprint::of(good.0.der());
    let trust = TlsClientTrust::Certificates(vec![pinned]);
    let open = authority.issue(ServerAuth).0;
    let required = open.clone().with_client_trust(&trust).unwrap();
    for (tls, second) in [
        (open, HandshakeKind::Resumed),
        (required, HandshakeKind::Full),
    ] {
        for version in [&TLS12, &TLS13] {
            let listener = listen(tls.clone(), Authentication::DangerNone).await;
            let raw = raw_client(version, &authority, Some(presented(&good)));
            for expected in [HandshakeKind::Full, second] {
                let (accepted, dialled) = dial_from_raw(&listener, &raw).await;
                let (kind, dialled) = dialled.unwrap();
                assert_eq!(kind, expected, "{version:?}");
                close(dialled.unwrap(), accepted.unwrap()).await;
            }
            idle(&listener).await;
        }
    }
}

#[tokio::test]
async fn the_handshake_of_a_client_with_a_certificate_has_24_kib_at_most() {
    let authority = Authority::new();
    let good = authority.sign(ClientAuth);
    let trust = TlsClientTrust::Certificates(vec![Fingerprint::of(good.0.der())]);
    let own = authority.issue(ServerAuth).0.with_client_trust(&trust);
    let listener = listen(own.unwrap(), Authentication::DangerNone).await;
    for (len, fits) in [(20 * 1024, true), (25 * 1024, false)] {
        let (mut chain, key) = presented(&good);
        // Nothing verifies the rest of a chain whose leaf is pinned.
        chain.push(vec![0x30; len].into());
        let raw = raw_client(&TLS13, &authority, Some((chain, key)));
        let (accepted, dialled) = dial_from_raw(&listener, &raw).await;
        match accepted {
            Ok(accepted) => {
                assert!(fits);
                // The leaf alone.
                assert_eq!(accepted.peer_certificate(), Some(&good.0.der()[..]));
                let (_, dialled) = dialled.expect("TLS");
                close(dialled.unwrap(), accepted).await;
            }
            Err(error) => {
                assert!(!fits, "{error}");
                assert!(matches!(error, HandshakeError::Tls(_)), "{error:?}");
                assert!(error.to_string().contains("too many bytes"), "{error}");
            }
        }
    }
    idle(&listener).await;
}

/// The alert is waited for, but the handshake has one deadline.
#[tokio::test(start_paused = true)]
async fn a_client_without_a_certificate_keeps_its_place_until_the_deadline_at_most() {
    let authority = Authority::new();
    let trust = TlsClientTrust::Roots(vec![authority.der.clone()]);
    let own = authority.issue(ServerAuth).0.with_client_trust(&trust);
    let mut config = server(Authentication::DangerNone);
    config.tls = Some(own.unwrap());
    let raw = raw_client(&TLS13, &authority, None);
    for (handshake, close, least) in [(2, 30, 2), (30, 2, 2)] {
        config.websocket.handshake_timeout = Duration::from_secs(handshake);
        config.websocket.close_timeout = Duration::from_secs(close);
        let (near, far) = duplex(64 * 1024);
        let begun = Instant::now();
        let name = ServerName::try_from("localhost").unwrap();
        // With TLS 1.3 its handshake succeeds, and it keeps the stream open.
        let (accepted, held) = tokio::join!(accept(far, &config), raw.connect(name, near));
        assert!(held.is_ok());
        assert!(is_missing(&accepted), "{accepted:?}");
        let least = Duration::from_secs(least);
        let elapsed = begun.elapsed();
        assert!(elapsed >= least, "{elapsed:?}");
        assert!(elapsed < least + Duration::from_millis(100), "{elapsed:?}");
    }
}
