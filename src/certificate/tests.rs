use std::sync::Arc;
use std::time::Instant;

use dimpl::Dtls;
use dimpl::Output;
use p256::ecdsa::VerifyingKey;
use p256::ecdsa::signature::Verifier;
use proptest::prelude::*;

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn identity(seed: u8) -> Identity {
    Identity::from_ed25519_seed([seed; 32])
}

/// If this test fails, a change has altered the addresses of all users with derived certificates.
/// Never adapt the values here; make the change in another way.
#[test]
fn derived_certificate_never_changes() {
    for (seed, certhash) in [
        (0, "uEiDV_8OFQDxhbLpeQgMlt8oKTPgXbQqbbJ3KCdxKtl1z9Q"),
        (42, "uEiDo-TLjSWqwE8Vgboue_aciuiBDBM-bmb2JQPDG5yax-Q"),
    ] {
        let certificate = Certificate::derive(&identity(seed));
        assert_eq!(certificate.fingerprint().to_certhash(), certhash);
    }
}

/// The documented formula, computed with another HKDF (Python's `hmac`) for a seed of zeros.
#[test]
fn derived_key_and_serial_number_are_as_documented() {
    let certificate = Certificate::derive(&identity(0));
    let key = p256::SecretKey::from_pkcs8_der(certificate.private_key()).unwrap();
    assert_eq!(
        hex(&key.to_bytes()),
        "f3dae5e96340d19f683753711268fd304ccce10e4a583c75388feddaa28d6313"
    );
    let parsed = x509_cert::Certificate::from_der(certificate.der()).unwrap();
    assert_eq!(
        hex(parsed.tbs_certificate().serial_number().as_bytes()),
        "7a1cbc112fcd1703e1a4f85f2034af17"
    );
}

#[test]
fn derived_certificate_depends_on_the_identity_only() {
    let first = Certificate::derive(&identity(1));
    let again = Certificate::derive(&identity(1));
    let other = Certificate::derive(&identity(2));
    assert_eq!(first.der(), again.der());
    assert_eq!(first.private_key(), again.private_key());
    assert_ne!(first.fingerprint(), other.fingerprint());
    assert_ne!(first.private_key(), other.private_key());
}

#[test]
fn every_kind_of_identity_has_a_certificate() {
    for keypair in [
        libp2p_identity::Keypair::generate_secp256k1(),
        libp2p_identity::Keypair::generate_ecdsa(),
    ] {
        let identity = Identity::from_protobuf(&keypair.to_protobuf_encoding().unwrap()).unwrap();
        let certificate = Certificate::derive(&identity);
        assert_eq!(certificate.der(), Certificate::derive(&identity).der());
    }
}

#[test]
fn generated_certificates_differ() {
    let (a, b) = (Certificate::generate(), Certificate::generate());
    assert_ne!(a.fingerprint(), b.fingerprint());
    assert_ne!(a.private_key(), b.private_key());
}

#[test]
fn certificate_is_valid_x509() {
    for certificate in [Certificate::generate(), Certificate::derive(&identity(3))] {
        let parsed = x509_cert::Certificate::from_der(certificate.der()).unwrap();
        // DER has one encoding only.
        assert_eq!(parsed.to_der().unwrap(), certificate.der());
        let tbs = parsed.tbs_certificate();
        assert_eq!(tbs.version(), x509_cert::Version::V3);
        assert_eq!(tbs.subject().to_string(), "CN=WebRTC");
        assert_eq!(tbs.issuer(), tbs.subject());
        assert_eq!(tbs.serial_number().as_bytes().len(), 16);
        assert_eq!(
            SystemTime::UNIX_EPOCH + tbs.validity().not_after.to_unix_duration(),
            certificate.not_after()
        );
        assert_eq!(tbs.validity().not_after.to_date_time().year(), 2120);
        assert_eq!(tbs.validity().not_before.to_date_time().year(), 2020);
        let public_key = tbs.subject_public_key_info().to_der().unwrap();
        let key = VerifyingKey::from_public_key_der(&public_key).unwrap();
        let signature =
            p256::ecdsa::Signature::from_der(parsed.signature().as_bytes().unwrap()).unwrap();
        key.verify(&tbs.to_der().unwrap(), &signature).unwrap();
    }
}

/// NSS (Firefox) rejects a second certificate with the same issuer and serial number.
#[test]
fn serial_numbers_differ() {
    let serial = |certificate: &Certificate| {
        let parsed = x509_cert::Certificate::from_der(certificate.der()).unwrap();
        parsed.tbs_certificate().serial_number().clone()
    };
    let derived = [1, 2].map(|seed| serial(&Certificate::derive(&identity(seed))));
    assert_ne!(derived[0], derived[1]);
    assert_ne!(
        serial(&Certificate::generate()),
        serial(&Certificate::generate())
    );
}

#[test]
fn extreme_serial_numbers_stay_positive() {
    let key = SigningKey::from_slice(&[1; 32]).unwrap();
    for byte in [0x00, 0x7f, 0x80, 0xff] {
        let certificate = Certificate::new(&key, [byte; 16]);
        let parsed = x509_cert::Certificate::from_der(certificate.der()).unwrap();
        assert_eq!(parsed.to_der().unwrap(), certificate.der());
        let serial = parsed.tbs_certificate().serial_number().clone();
        assert_eq!(serial.as_bytes().len(), 16);
        assert!((0x40..0x80).contains(&serial.as_bytes()[0]));
    }
}

#[test]
fn pem_round_trip() {
    let certificate = Certificate::generate();
    let pem = certificate.to_pem();
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----\n"));
    assert!(pem.contains("-----BEGIN PRIVATE KEY-----\n"));
    for text in [pem.clone(), pem.replace('\n', "\r\n"), swapped(&pem)] {
        let read = Certificate::from_pem(&text).unwrap();
        assert_eq!(read.der(), certificate.der());
        assert_eq!(read.private_key(), certificate.private_key());
        assert_eq!(read.fingerprint(), certificate.fingerprint());
        assert_eq!(read.not_after(), certificate.not_after());
    }
}

#[test]
fn pem_of_rust_libp2p() {
    let certificate = Certificate::generate();
    let expires = pem::encode(&pem::Pem::new("EXPIRES", [0; 8]));
    let text = expires + &certificate.to_pem().replace("PRIVATE KEY", "PRIVATE_KEY");
    let read = Certificate::from_pem(&text).unwrap();
    assert_eq!(read.fingerprint(), certificate.fingerprint());
}

/// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500`
const OPENSSL: &str = "\
-----BEGIN CERTIFICATE-----
MIIBezCCASGgAwIBAgIUFFOUfLzpwzvurqBXVytPZudd/9IwCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHZml4dHVyZTAgFw0yNjExMjEwNDI5MzBaGA8yMTI2MTAyODA0
MjkzMFowEjEQMA4GA1UEAwwHZml4dHVyZTBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABJkdEWVPr4TeFYptPuhqrFgU7YZcGgV3ZbieMkXIkTMZl7cUFhDJ/GSEnKWt
/LKEVPsAIJGxsD2Cz2gtfYOGb5mjUzBRMB0GA1UdDgQWBBSl2L5AT6NVadt5hHTv
6w1bWfirIDAfBgNVHSMEGDAWgBSl2L5AT6NVadt5hHTv6w1bWfirIDAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQCHz0wIA0+Z3htckFvnpBaowzl4
Caud54wOmdTejJS//QIgP1NiawfLDw8AfCxwuYeQsgD0CJ384EIaRs1mRvOCvy0=
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgk7c2SK8DyntyHmQR
USHlPlO2Ktndx+YcbqNVnV5NsBGhRANCAASZHRFlT6+E3hWKbT7oaqxYFO2GXBoF
d2W4njJFyJEzGZe3FBYQyfxkhJylrfyyhFT7ACCRsbA9gs9oLX2Dhm+Z
-----END PRIVATE KEY-----
";

#[test]
fn pem_of_openssl() {
    let certificate = Certificate::from_pem(OPENSSL).unwrap();
    assert_eq!(
        certificate.fingerprint().to_string(),
        "46:C7:6C:9B:9D:F4:17:4B:77:17:40:28:49:16:3D:80:\
         79:27:9D:34:BF:34:BE:AA:5B:BC:74:DF:92:4F:64:00"
    );
    // 2126-10-28 04:29:30 UTC.
    let not_after = certificate
        .not_after()
        .duration_since(SystemTime::UNIX_EPOCH);
    assert_eq!(not_after.unwrap().as_secs(), 4_948_835_370);
    handshake(0, &certificate, &Certificate::generate());
}

#[test]
fn broken_pem_is_explained() {
    use CertificateError::*;
    let blocks = pem::parse_many(Certificate::generate().to_pem()).unwrap();
    let other = pem::parse_many(Certificate::generate().to_pem()).unwrap();
    let [certificate, key] = <[pem::Pem; 2]>::try_from(blocks).unwrap();
    let join = |blocks: &[&pem::Pem]| {
        let owned = blocks
            .iter()
            .map(|&block| block.clone())
            .collect::<Vec<_>>();
        Certificate::from_pem(&pem::encode_many(&owned)).unwrap_err()
    };
    assert_eq!(
        Certificate::from_pem("").unwrap_err(),
        MissingBlock("CERTIFICATE")
    );
    assert_eq!(join(&[&key]), MissingBlock("CERTIFICATE"));
    assert_eq!(join(&[&certificate]), MissingBlock("PRIVATE KEY"));
    assert_eq!(join(&[&certificate, &other[1]]), KeyMismatch);
    assert_eq!(
        join(&[&certificate, &certificate, &key]),
        DuplicateBlock("CERTIFICATE".into())
    );
    let sec1 = pem::Pem::new("EC PRIVATE KEY", key.contents());
    assert_eq!(
        join(&[&certificate, &sec1]),
        UnexpectedBlock("EC PRIVATE KEY".into())
    );
    let garbage = pem::Pem::new("CERTIFICATE", b"garbage");
    assert!(matches!(join(&[&garbage, &key]), InvalidCertificate(_)));
    // The OID of the curve, changed from prime256v1 to prime239v3.
    let mut other_curve = certificate.contents().to_vec();
    let prime256v1 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let at = other_curve.windows(8).position(|oid| oid == prime256v1);
    other_curve[at.unwrap() + 7] = 0x06;
    let other_curve = pem::Pem::new("CERTIFICATE", other_curve);
    assert!(matches!(
        join(&[&other_curve, &key]),
        UnsupportedPublicKey(_)
    ));
    let garbage = pem::Pem::new("PRIVATE KEY", b"garbage");
    assert!(matches!(
        join(&[&certificate, &garbage]),
        InvalidPrivateKey(_)
    ));
    let mut longer = certificate.contents().to_vec();
    longer.push(0);
    let longer = pem::Pem::new("CERTIFICATE", longer);
    assert!(matches!(join(&[&longer, &key]), InvalidCertificate(_)));
    let text = pem::encode(&certificate).replace("MII", "M?I");
    assert!(matches!(
        Certificate::from_pem(&text).unwrap_err(),
        InvalidPem(_)
    ));
}

#[test]
fn debug_shows_no_key() {
    let certificate = Certificate::derive(&identity(4));
    let shown = format!("{certificate:?}");
    assert!(shown.starts_with("Certificate { fingerprint: Fingerprint("));
    assert!(shown.ends_with(", .. }"));
    assert!(shown.len() < 250, "{shown}");
}

#[test]
fn dtls_accepts_derived_certificates() {
    for version in [12, 13, 0] {
        handshake(
            version,
            &Certificate::derive(&identity(5)),
            &Certificate::derive(&identity(6)),
        );
    }
}

#[test]
fn dtls_accepts_certificates_from_pem() {
    let certificate = Certificate::from_pem(&Certificate::generate().to_pem()).unwrap();
    handshake(0, &certificate, &Certificate::generate());
}

/// A whole DTLS handshake in memory. Each side gets the other's certificate.
fn handshake(version: u8, client_cert: &Certificate, server_cert: &Certificate) {
    let config = Arc::new(dimpl::Config::builder().build().unwrap());
    let now = Instant::now();
    let new = |certificate: &Certificate| match version {
        12 => Dtls::new_12(config.clone(), to_dtls(certificate), now),
        13 => Dtls::new_13(config.clone(), to_dtls(certificate), now),
        _ => Dtls::new_auto(config.clone(), to_dtls(certificate), now),
    };
    let mut client = Side::new(new(client_cert));
    let mut server = Side::new(new(server_cert));
    client.dtls.set_active(true);
    for dtls in [&mut client.dtls, &mut server.dtls] {
        dtls.handle_timeout(now).unwrap();
    }
    for _ in 0..20 {
        client.exchange(&mut server);
        server.exchange(&mut client);
    }
    assert!(client.connected && server.connected);
    assert_eq!(client.peer, Some(server_cert.fingerprint()));
    assert_eq!(server.peer, Some(client_cert.fingerprint()));
}

fn to_dtls(certificate: &Certificate) -> dimpl::DtlsCertificate {
    let anabranch_rtc::Certificate { der, private_key } = certificate.into();
    dimpl::DtlsCertificate {
        certificate: der,
        private_key,
    }
}

struct Side {
    dtls: Dtls,
    connected: bool,
    peer: Option<Fingerprint>,
}

impl Side {
    fn new(dtls: Dtls) -> Self {
        Self {
            dtls,
            connected: false,
            peer: None,
        }
    }

    fn exchange(&mut self, other: &mut Self) {
        let mut buffer = vec![0; 4096];
        loop {
            match self.dtls.poll_output(&mut buffer) {
                Output::Packet(packet) => other.dtls.handle_packet(packet).unwrap(),
                Output::Connected => self.connected = true,
                Output::PeerCert(der) => self.peer = Some(Fingerprint::of(der)),
                Output::Timeout(_) => break,
                _ => {}
            }
        }
    }
}

fn swapped(pem: &str) -> String {
    let (certificate, key) = pem.split_at(pem.find("-----BEGIN PRIVATE KEY").unwrap());
    format!("{key}some words in between\n{certificate}")
}
proptest! {
    #![proptest_config(crate::random::cases(256))]

    #[test]
    fn no_pem_panics(
        label in "(CERTIFICATE|PRIVATE KEY|X)",
        body in "[A-Za-z0-9+/=:\\n -]{0,200}",
    ) {
        let block = format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        prop_assert!(Certificate::from_pem(&block).is_err());
    }
}
