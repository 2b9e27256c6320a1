//! The memory of WebSockets with unauthenticated peers.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use anabranch::websocket::{
    Authentication, ListenerConfig, ServerConfig, TlsClientTrust, TlsIdentity, WebSocketListener,
};
use anabranch::{Certificate, Fingerprint, Identity};
use tokio_rustls::rustls::client::WantsClientCert;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConnection, StreamOwned};

mod allocator;
use allocator::Watched;

/// Live bytes of the listener's thread, and their peak.
static BYTES: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    static IS_LISTENER: Cell<bool> = const { Cell::new(false) };
}

fn record(size: usize, sign: isize) {
    if !IS_LISTENER.get() {
        return;
    }
    let size = sign * size.cast_signed();
    let now = BYTES.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

#[global_allocator]
static ALLOCATOR: Watched = Watched {
    allocated: |size| record(size, 1),
    freed: |size| record(size, -1),
};

/// The default limit of a listener.
const SOCKETS: usize = 128;

/// The limit of their total memory.
const LIMIT: isize = 4_000_000;

/// The same where they have to present a certificate.
const LIMIT_WITH_CERTIFICATES: isize = 7_000_000;

/// A certificate chain that fits into the handshake.
const CHAIN: usize = 20 * 1024;

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\
    Connection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: anabranch.noise.v1\r\n\r\n";

/// A listener on a thread of its own.
struct Server {
    address: SocketAddr,
    /// Of the total memory.
    limit: isize,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(tls: Option<TlsIdentity>, limit: isize) -> Self {
        let (told, address) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            IS_LISTENER.set(true);
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(async {
                    let mut config = ServerConfig::new(Authentication::noise(Identity::generate()));
                    config.tls = tls;
                    config.websocket.handshake_timeout = Duration::from_secs(120);
                    let mut limits = ListenerConfig::default();
                    // And some more, to check that everything was read.
                    limits.max_handshakes = SOCKETS + 8;
                    let any = "127.0.0.1:0".parse().expect("an address");
                    let listener = WebSocketListener::bind(any, config, limits)
                        .await
                        .expect("a socket");
                    told.send(listener.local_addr()).expect("the test waits");
                    let serving = async {
                        loop {
                            let incoming = listener.accept().await.expect("a connection");
                            tokio::spawn(async move { incoming.accept().await.map(drop) });
                        }
                    };
                    tokio::select! {
                        () = serving => {}
                        _ = stopped => {}
                    }
                });
            IS_LISTENER.set(false);
        });
        Self {
            address: address.recv().expect("it listens"),
            limit,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).expect("a socket");
        stream.set_write_timeout(limit).expect("a socket");
        stream
    }

    /// Returns when everything written before has been read: its events are older than those of
    /// this connection.
    fn has_read_all(&self) {
        for _ in 0..2 {
            let mut stream = self.connect();
            stream
                .write_all(b"GET / HTTP/1.1\r\n\r\n")
                .expect("it reads");
            let mut answer = Vec::new();
            // TLS closes the connection.
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
        }
    }

    /// The peak memory with that many sockets, each brought into a state by `open`.
    fn keeps<T>(&self, what: &str, open: impl Fn(&Self) -> T) -> isize {
        // Tables have grown.
        drop(open(self));
        self.has_read_all();
        let before = BYTES.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let sockets: Vec<T> = (0..SOCKETS).map(|_| open(self)).collect();
        self.has_read_all();
        let kept = PEAK.load(Ordering::Relaxed) - before;
        println!("{what}: {} bytes each", kept / SOCKETS.cast_signed());
        drop(sockets);
        self.has_read_all();
        let left = BYTES.load(Ordering::Relaxed) - before;
        assert!(left < 200_000, "{what}: {left} bytes are left");
        assert!(kept <= self.limit, "{what}: {kept} bytes");
        kept
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

/// Sends the upgrade request, and reads the first Noise message.
fn upgrade<S: Read + Write>(stream: &mut S) {
    stream.write_all(REQUEST.as_bytes()).expect("it reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    let mut header = [0; 2];
    stream.read_exact(&mut header).expect("a message");
    assert_eq!(header[0], 0x82);
    let mut message = vec![0; usize::from(header[1])];
    stream.read_exact(&mut message).expect("a message");
}

/// The header of a client frame, masked with zeros.
fn frame(opcode: u8, len: usize) -> Vec<u8> {
    let mut header = vec![0x80 | opcode];
    match len {
        0..126 => header.push(0x80 | len as u8),
        126..65_536 => {
            header.push(0x80 | 126);
            header.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    header.extend_from_slice(&[0; 4]);
    header
}

/// After the upgrade: the beginning of a message of the maximum length, countless pings, a frame of
/// 1 MiB.
fn begin_noise<S: Read + Write>(stream: &mut S, how: &str) {
    match how {
        "a long message" => {
            let mut begin = frame(2, 4096);
            begin.resize(begin.len() + 4000, 0);
            stream.write_all(&begin).expect("it reads");
        }
        "many parts" => {
            // The first fragment of a message, and then fragments without an end.
            let mut begin = frame(2, 2000);
            begin[0] = 0x02;
            begin.resize(begin.len() + 2000, 0);
            let mut next = frame(0, 2000);
            next[0] = 0x00;
            next.resize(next.len() + 1900, 0);
            begin.extend_from_slice(&next);
            stream.write_all(&begin).expect("it reads");
        }
        "pings" => {
            let mut ping = frame(9, 125);
            ping.resize(ping.len() + 125, 0);
            // The system buffers some of the answers.
            for _ in 0..50 {
                stream.write_all(&ping).expect("it reads");
            }
        }
        "a frame of 1 MiB" => {
            // It is refused, and later writes may fail.
            let _ = stream.write_all(&frame(2, 1024 * 1024));
        }
        _ => {}
    }
}

const STEPS: [&str; 5] = [
    "nothing",
    "a long message",
    "many parts",
    "pings",
    "a frame of 1 MiB",
];

/// One test, since parallel ones would count each other's bytes.
#[test]
fn peers_that_have_proven_nothing_keep_4_mb_together_and_7_with_certificates() {
    let server = Server::start(None, LIMIT);
    server.keeps("TCP", Server::connect);
    server.keeps("half a request", |server| {
        let mut stream = server.connect();
        let mut head = b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: ".to_vec();
        head.resize(8190, b'a');
        stream.write_all(&head).expect("it reads");
        stream
    });
    for step in STEPS {
        server.keeps(&format!("an upgrade and {step}"), |server| {
            let mut stream = server.connect();
            upgrade(&mut stream);
            begin_noise(&mut stream, step);
            stream
        });
    }
    drop(server);

    let certificate = Certificate::generate();
    let identity = TlsIdentity::from_certificate(&certificate).expect("a certificate");
    let client = client();
    let server = Server::start(Some(identity), LIMIT);
    let name = || ServerName::try_from("localhost").expect("a name");
    let session = || ClientConnection::new(Arc::clone(&client), name()).expect("a session");
    server.keeps("TCP, for TLS", Server::connect);
    server.keeps("a ClientHello", |server| {
        let mut stream = server.connect();
        session().write_tls(&mut stream).expect("it reads");
        let mut first = [0];
        stream.read_exact(&mut first).expect("an answer");
        stream
    });
    for (what, records) in [
        ("a part of a ClientHello of 64 KiB", 4),
        ("a larger part", 10),
    ] {
        server.keeps(what, |server| begin_hello(server, records));
    }
    for step in STEPS {
        server.keeps(&format!("TLS, an upgrade and {step}"), |server| {
            let mut stream = StreamOwned::new(session(), server.connect());
            upgrade(&mut stream);
            begin_noise(&mut stream, step);
            stream.flush().expect("it reads");
            stream
        });
    }
    for (what, len) in [
        ("TLS, and a part of a record", 11_000),
        ("most of it", 16_000),
    ] {
        server.keeps(what, |server| begin_record(server, session(), len));
    }
    drop(server);
    clients_with_certificates_that_have_proven_nothing();
}

fn clients_with_certificates_that_have_proven_nothing() {
    let own = rcgen::generate_simple_self_signed(Vec::new()).expect("a certificate");
    let leaf = own.cert.der().clone();
    let trust = TlsClientTrust::Certificates(vec![Fingerprint::of(&leaf)]);
    let identity = TlsIdentity::from_certificate(&Certificate::generate()).expect("a certificate");
    let identity = identity.with_client_trust(&trust).expect("one client");
    // Nothing verifies the rest of a chain whose leaf is pinned.
    let chain = vec![leaf, vec![0x30; CHAIN].into()];
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
    let client = builder()
        .with_client_auth_cert(chain, key)
        .expect("its key");
    let client = Arc::new(client);
    let server = Server::start(Some(identity), LIMIT_WITH_CERTIFICATES);
    let name = || ServerName::try_from("localhost").expect("a name");
    let session = || ClientConnection::new(Arc::clone(&client), name()).expect("a session");
    for (what, records) in [
        ("mutual TLS, and a part of a ClientHello of 64 KiB", 11),
        ("a larger part", 20),
    ] {
        server.keeps(what, |server| begin_hello(server, records));
    }
    for (what, without) in [
        ("half a certificate chain", CHAIN / 2),
        ("most of it", 2048),
        ("all of it, without Finished", 20),
    ] {
        server.keeps(what, |server| {
            begin_authentication(server, session(), without)
        });
    }
    for step in STEPS {
        server.keeps(&format!("mutual TLS, an upgrade and {step}"), |server| {
            let mut stream = StreamOwned::new(session(), server.connect());
            upgrade(&mut stream);
            begin_noise(&mut stream, step);
            stream.flush().expect("it reads");
            stream
        });
    }
    server.keeps("mutual TLS, and a part of a record", |server| {
        begin_record(server, session(), 11_000)
    });
}

/// The handshake of a client without its last bytes.
fn begin_authentication(
    server: &Server,
    mut session: ClientConnection,
    without: usize,
) -> TcpStream {
    let mut stream = server.connect();
    session.write_tls(&mut stream).expect("it reads");
    while session.is_handshaking() {
        session.read_tls(&mut stream).expect("an answer");
        session.process_new_packets().expect("TLS");
    }
    let mut flight = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut flight).expect("memory");
    }
    let part = &flight[..flight.len() - without];
    stream.write_all(part).expect("it reads");
    stream
}

/// After the upgrade: a record of the maximum length without its end.
fn begin_record(
    server: &Server,
    session: ClientConnection,
    len: usize,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut stream = StreamOwned::new(session, server.connect());
    upgrade(&mut stream);
    let mut record = vec![23, 3, 3, 0x41, 0];
    record.resize(record.len() + len, 0);
    // It may be closed in between.
    let _ = stream.sock.write_all(&record);
    stream
}

/// Records of 2 KiB, of which the first begins a message of 64 KiB.
fn begin_hello(server: &Server, records: usize) -> TcpStream {
    let mut stream = server.connect();
    let mut all = Vec::new();
    for index in 0..records {
        all.extend_from_slice(&[22, 3, 1, 8, 0]);
        let mut fragment = vec![0; 2048];
        if index == 0 {
            fragment[..4].copy_from_slice(&[1, 0, 0xff, 0xf0]);
        }
        all.extend_from_slice(&fragment);
    }
    // It may be closed in between.
    let _ = stream.write_all(&all);
    stream
}

fn client() -> Arc<rustls::ClientConfig> {
    let mut config = builder().with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

fn builder() -> rustls::ConfigBuilder<rustls::ClientConfig, WantsClientCert> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
}

/// The server's certificate does not matter here.
#[derive(Debug)]
struct Anyone;

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
