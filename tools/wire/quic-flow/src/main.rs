//! `quic-flow`: one stream over QUIC by quinn, for as many bytes or as long as asked for.
//!
//! Prints a line of JSON for the listener and for each transfer. Keys and certificates are made up
//! and nobody checks them: both ends are processes of one experiment.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lexopt::prelude::*;
use quinn::congestion::{ControllerFactory, CubicConfig, NewRenoConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig, TransportConfig};
use rustls::DigitallySignedStruct;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use socket2::{Domain, Socket, Type};

const USAGE: &str = "\
usage: quic-flow listen ADDRESS:PORT
       quic-flow dial ADDRESS:PORT (--bytes N [--repeat R] | --seconds S) [--newreno]

sends; CUBIC is the congestion control unless --newreno is given";

/// Enough for 100 Mbit/s at a round trip of a second.
const WINDOW: u32 = 16 << 20;

/// Bursts of a whole window fit.
const SOCKET_BUFFER: usize = 4 << 20;

const CHUNK: usize = 64 << 10;

const ALPN: &[u8] = b"quic-flow";

type Failure = Box<dyn Error + Send + Sync>;

enum Command {
    Listen(SocketAddr),
    Dial(Dial),
    Help,
}

struct Dial {
    address: SocketAddr,
    amount: Amount,
    repeat: u32,
    newreno: bool,
}

#[derive(Clone, Copy)]
enum Amount {
    Bytes(u64),
    Time(Duration),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let result = match parse() {
        Ok(Command::Listen(address)) => listen(address).await,
        Ok(Command::Dial(dial)) => repeat(dial).await,
        Ok(Command::Help) => {
            println!("{USAGE}");
            Ok(())
        }
        Err(error) => {
            eprintln!("quic-flow: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quic-flow: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Command, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    let (mut values, mut amount, mut repeat, mut newreno) = (Vec::new(), None, 1, false);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("bytes") => amount = Some(Amount::Bytes(parser.value()?.parse()?)),
            Long("seconds") => {
                let seconds = parser.value()?.parse_with(|text| text.parse::<u32>())?;
                amount = Some(Amount::Time(Duration::from_secs(seconds.into())));
            }
            Long("repeat") => repeat = parser.value()?.parse()?,
            Long("newreno") => newreno = true,
            Short('h') | Long("help") => return Ok(Command::Help),
            Value(value) => values.push(value.string()?),
            _ => return Err(arg.unexpected()),
        }
    }
    let [command, address] =
        <[String; 2]>::try_from(values).map_err(|_| "a command and an address are needed")?;
    let address = address
        .parse()
        .map_err(|_| format!("{address:?} is no ADDRESS:PORT"))?;
    match (command.as_str(), amount) {
        ("listen", None) => Ok(Command::Listen(address)),
        ("dial", Some(amount)) => Ok(Command::Dial(Dial {
            address,
            amount,
            repeat,
            newreno,
        })),
        ("dial", None) => Err("--bytes or --seconds is needed".into()),
        _ => Err("listen or dial is expected".into()),
    }
}

async fn listen(address: SocketAddr) -> Result<(), Failure> {
    let key = rcgen::generate_simple_self_signed(["quic-flow".to_owned()])?;
    let certificate = key.cert.der().clone();
    let private = PrivateKeyDer::try_from(key.signing_key.serialize_der())?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], private)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport(false));
    let endpoint = endpoint(address, Some(config))?;
    println!("{{\"listen\":\"{}\"}}", endpoint.local_addr()?);
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            if let Err(error) = serve(incoming).await {
                eprintln!("quic-flow: a connection ended: {error}");
            }
        });
    }
    Ok(())
}

/// Answers each stream with the number of its bytes.
async fn serve(incoming: quinn::Incoming) -> Result<(), Failure> {
    let connection = incoming.await?;
    loop {
        let (mut tx, mut rx) = connection.accept_bi().await?;
        let mut received = 0u64;
        while let Some(chunk) = rx.read_chunk(usize::MAX, true).await? {
            received += chunk.bytes.len() as u64;
        }
        tx.write_all(&received.to_be_bytes()).await?;
        tx.finish()?;
    }
}

/// A fresh connection for each transfer.
async fn repeat(dial: Dial) -> Result<(), Failure> {
    let mut endpoint = endpoint((Ipv4Addr::UNSPECIFIED, 0).into(), None)?;
    for _ in 0..dial.repeat {
        // A new one for each, so that no session is resumed.
        endpoint.set_default_client_config(client_config(dial.newreno)?);
        let start = Instant::now();
        let connection = endpoint.connect(dial.address, "quic-flow")?.await?;
        let connect = start.elapsed().as_secs_f64() * 1e3;
        let start = Instant::now();
        transfer(&connection, dial.amount).await?;
        let seconds = start.elapsed().as_secs_f64();
        let path = connection.stats().path;
        println!(
            "{{\"connect_ms\":{connect:.1},\"seconds\":{seconds:.4},\"sent_packets\":{},\
             \"lost_packets\":{},\"cwnd\":{}}}",
            path.sent_packets, path.lost_packets, path.cwnd
        );
        connection.close(0u8.into(), b"");
        endpoint.wait_idle().await;
    }
    Ok(())
}

fn client_config(newreno: bool) -> Result<ClientConfig, Failure> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider())))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport(newreno));
    Ok(config)
}

/// Returns when the peer has all bytes, or when the time is over.
async fn transfer(connection: &Connection, amount: Amount) -> Result<(), Failure> {
    let (mut tx, mut rx) = connection.open_bi().await?;
    let chunk = vec![7; CHUNK];
    match amount {
        Amount::Bytes(bytes) => {
            let mut left = bytes;
            while left > 0 {
                let len = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
                tx.write_all(&chunk[..len]).await?;
                left -= len as u64;
            }
            tx.finish()?;
            let mut received = [0; 8];
            rx.read_exact(&mut received).await?;
            match u64::from_be_bytes(received) == bytes {
                true => Ok(()),
                false => Err("the peer has another number of bytes".into()),
            }
        }
        Amount::Time(time) => {
            let endless = async {
                loop {
                    tx.write_all(&chunk).await?;
                }
            };
            match tokio::time::timeout(time, endless).await {
                Ok(ended) => ended,
                Err(_) => Ok(()),
            }
        }
    }
}

fn endpoint(address: SocketAddr, server: Option<ServerConfig>) -> Result<Endpoint, Failure> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    let runtime = Arc::new(quinn::TokioRuntime);
    Ok(Endpoint::new(
        Default::default(),
        server,
        socket.into(),
        runtime,
    )?)
}

fn transport(newreno: bool) -> Arc<TransportConfig> {
    let controller: Arc<dyn ControllerFactory + Send + Sync> = match newreno {
        true => Arc::new(NewRenoConfig::default()),
        false => Arc::new(CubicConfig::default()),
    };
    let mut config = TransportConfig::default();
    config.congestion_controller_factory(controller);
    config.stream_receive_window(WINDOW.into());
    config.receive_window(WINDOW.into());
    config.send_window(WINDOW.into());
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Accepts every certificate, but checks that its key has signed the handshake.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
