//! Who the client is: its certificate, and what the hook of the request has found out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::connections::{client, idle, server};
use crate::certificate::{Certificate, Fingerprint};
use crate::connection::Connection;
use crate::websocket::*;

const LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Authority {
    pub(super) der: Vec<u8>,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let issuer = rcgen::Issuer::new(params, key);
        Self { der, issuer }
    }

    /// A certificate with its key.
    pub(super) fn sign(
        &self,
        purpose: rcgen::ExtendedKeyUsagePurpose,
    ) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = ["127.0.0.1", "localhost"].map(str::to_owned);
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![purpose];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// The same for this crate, and the DER of the certificate.
    pub(super) fn issue(&self, purpose: rcgen::ExtendedKeyUsagePurpose) -> (TlsIdentity, Vec<u8>) {
        let (leaf, key) = self.sign(purpose);
        let identity = TlsIdentity::from_pem(&leaf.pem(), &key.serialize_pem()).unwrap();
        (identity, leaf.der().to_vec())
    }
}

pub(super) async fn listen(tls: TlsIdentity, authentication: Authentication) -> WebSocketListener {
    let mut config = server(authentication);
    config.tls = Some(tls);
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let bound = WebSocketListener::bind(any, config, ListenerConfig::default());
    bound.await.unwrap()
}

type Outcome = Result<Connection, HandshakeError>;

/// Dials. The listener's side first.
async fn dial(listener: &WebSocketListener, config: &ClientConfig) -> (Outcome, Outcome) {
    let address = listener.address();
    let accepting = async { listener.accept().await.unwrap().accept().await };
    let both = async { tokio::join!(accepting, connect(&address, config)) };
    timeout(LIMIT, both)
        .await
        .expect("both sides come to an end")
}

async fn close(listener: &WebSocketListener, dialled: Connection, accepted: Connection) {
    timeout(LIMIT, dialled.close()).await.expect("it closes");
    timeout(LIMIT, accepted.closed()).await.expect("it is told");
    idle(listener).await;
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_where_one_is_required() {
    let authority = Authority::new();
    let (own, own_der) = authority.issue(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    let (good, good_der) = authority.issue(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
    let (stranger, _) = Authority::new().issue(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
    let roots = TlsClientTrust::Roots(vec![authority.der.clone()]);
    let pinned = TlsClientTrust::Certificates(vec![Fingerprint::of(&good_der)]);
    for trust in [roots, pinned] {
        let required = own.clone().with_client_trust(&trust).unwrap();
        let listener = listen(required, Authentication::Tls).await;
        let mut config = client(Authentication::Tls);
        config.trust = TlsTrust::Roots(vec![authority.der.clone()]);

        let (accepted, dialled) = dial(&listener, &config).await;
        for refused in [accepted, dialled] {
            let error = refused.expect_err("it has no certificate");
            let is_missing = matches!(error, HandshakeError::ClientCertificateMissing);
            assert!(is_missing, "{trust:?}: {error:?}");
            let kind = std::io::Error::from(error).kind();
            assert_eq!(kind, std::io::ErrorKind::PermissionDenied);
        }
        config.certificate = Some(stranger.clone());
        let (accepted, dialled) = dial(&listener, &config).await;
        for refused in [accepted, dialled] {
            let error = refused.expect_err("nobody knows its certificate");
            let is_refused = matches!(error, HandshakeError::ClientCertificateRefused(_));
            assert!(is_refused, "{trust:?}: {error:?}");
        }
        idle(&listener).await;

        config.certificate = Some(good.clone());
        let (accepted, dialled) = dial(&listener, &config).await;
        let (accepted, dialled) = (accepted.unwrap(), dialled.unwrap());
        assert_eq!(accepted.peer_certificate(), Some(&good_der[..]));
        assert_eq!(dialled.peer_certificate(), Some(&own_der[..]));
        close(&listener, dialled, accepted).await;
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_requires_is_not_sent() {
    let certificate = Certificate::generate();
    let tls = TlsIdentity::from_certificate(&certificate).unwrap();
    let listener = listen(tls.clone(), Authentication::Tls).await;
    let mut config = client(Authentication::Tls);
    config.trust = TlsTrust::Certificates(vec![certificate.fingerprint()]);
    config.certificate = Some(tls);
    let (accepted, dialled) = dial(&listener, &config).await;
    let (accepted, dialled) = (accepted.unwrap(), dialled.unwrap());
    assert_eq!(accepted.peer_certificate(), None);
    assert_eq!(dialled.peer_certificate(), Some(certificate.der()));
    close(&listener, dialled, accepted).await;
}

#[tokio::test]
async fn a_trust_that_no_client_can_meet_is_refused_when_it_is_set() {
    let tls = TlsIdentity::from_certificate(&Certificate::generate()).unwrap();
    let set = |trust| match tls.clone().with_client_trust(&trust) {
        Err(TlsIdentityError::Unusable(text)) => text,
        other => panic!("{trust:?}: {other:?}"),
    };
    let no_roots = set(TlsClientTrust::Roots(Vec::new()));
    let no_certificates = set(TlsClientTrust::Certificates(Vec::new()));
    assert_eq!(no_roots, no_certificates);
    let unparsed = set(TlsClientTrust::Roots(vec![b"no certificate".to_vec()]));
    assert_ne!(unparsed, no_roots);
}

#[derive(Debug, PartialEq)]
struct User {
    path: String,
    name: String,
}

#[tokio::test]
async fn what_the_hook_returns_is_at_the_connection_and_freed_with_it() {
    let lives = Arc::new(());
    let mut config = server(Authentication::DangerNone);
    let held = Arc::clone(&lives);
    config.requests = RequestPolicy::default().with_hook(move |request| {
        let name = request.header("x-user");
        let name = name.ok_or_else(|| UpgradeError::refused(401, "Who are you?"))?;
        let user = User {
            path: request.path().to_owned(),
            name: name.to_owned(),
        };
        Ok((user, Arc::clone(&held)))
    });
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = WebSocketListener::bind(any, config, ListenerConfig::default());
    let listener = listener.await.unwrap();
    let mut config = client(Authentication::DangerNone);
    let (accepted, dialled) = dial(&listener, &config).await;
    assert!(accepted.is_err());
    assert_eq!(dialled.expect_err("no user").status(), Some(401));
    assert_eq!(
        Arc::strong_count(&lives),
        2,
        "the hook's, and none of a refused one"
    );

    config.headers = vec![("x-user".to_owned(), "alice".to_owned())];
    let (accepted, dialled) = dial(&listener, &config).await;
    let (accepted, dialled) = (accepted.unwrap(), dialled.unwrap());
    let alice = User {
        path: "/".to_owned(),
        name: "alice".to_owned(),
    };
    let attached = accepted.attachment::<(User, Arc<()>)>();
    assert_eq!(attached.map(|(user, _)| user), Some(&alice));
    assert_eq!(accepted.attachment::<User>(), None, "another type");
    assert!(dialled.attachment::<(User, Arc<()>)>().is_none());
    assert_eq!(Arc::strong_count(&lives), 3);
    timeout(LIMIT, dialled.close()).await.expect("it closes");
    timeout(LIMIT, accepted.closed()).await.expect("it is told");
    drop((accepted, dialled));
    idle(&listener).await;
    assert_eq!(Arc::strong_count(&lives), 2);
}
