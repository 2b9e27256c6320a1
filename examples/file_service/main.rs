//! A file service: uploads and downloads as payloads, with progress, cancellation and resumption,
//! over WebRTC and over a WebSocket inside an axum server, both on one endpoint.
//!
//! ```text
//! cargo run --example file_service -- serve DIRECTORY      # prints its addresses
//! cargo run --example file_service -- put ADDRESS FILE
//! cargo run --example file_service -- get ADDRESS NAME
//! ```
//!
//! On SIGTERM, or Ctrl-C, the server lets transfers finish. Ctrl-C at a client cancels its
//! transfer; the same command resumes it, and one that was killed on either side.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anabranch::address::PeerAddress;
use anabranch::{Config, Endpoint, Identity};
use tokio::net::TcpListener;
use tokio::sync::watch;

mod client;
mod http;
mod pace;
mod protocol;
mod service;
mod store;

use client::Job;
use service::{Limits, Service};
use store::Store;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const USAGE: &str = "usage: file_service serve [OPTIONS] DIRECTORY
       file_service put [--identity KEY] ADDRESS FILE
       file_service get [--identity KEY] [--into DIRECTORY] ADDRESS NAME

  --udp ADDRESS, --http ADDRESS
                      where to listen; default 127.0.0.1:0
  --max-size N        bytes of a file; default 1 GiB
  --max-files N       files, and parts of files, that are kept; default 1000
  --max-transfers N   transfers at once; default 32
  --rate N            bytes a second of one transfer; without a limit by default
  --identity KEY      file of the key of this client, made if it is not there: an upload is resumed
                      by the client that has begun it; default a new key, which resumes none";

/// How long transfers may take to end: less than a service manager waits before it kills.
const DRAIN: Duration = Duration::from_secs(60);

/// Transfers of one client at once.
const TRANSFERS_OF_PEER: usize = 8;

#[tokio::main]
async fn main() -> ExitCode {
    let task = match Arguments::parse(std::env::args().skip(1)) {
        Ok(task) => task,
        Err(error) => {
            eprintln!("file_service: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match task.run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("file_service: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A parsed command line.
struct Arguments {
    command: String,
    words: Vec<String>,
    udp: String,
    http: String,
    limits: Limits,
    identity: Option<PathBuf>,
    into: PathBuf,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut parsed = Self {
            command: words.next().ok_or("what is to be done?")?,
            words: Vec::new(),
            udp: "127.0.0.1:0".to_owned(),
            http: "127.0.0.1:0".to_owned(),
            limits: Limits {
                max_size: 1 << 30,
                max_files: 1000,
                max_transfers: 32,
                rate: None,
            },
            identity: None,
            into: PathBuf::new(),
        };
        while let Some(word) = words.next() {
            let Some(option) = word.strip_prefix("--") else {
                parsed.words.push(word);
                continue;
            };
            let value = words
                .next()
                .ok_or_else(|| format!("{word} needs a value"))?;
            match option {
                "udp" => parsed.udp = value,
                "http" => parsed.http = value,
                "max-size" => parsed.limits.max_size = value.parse()?,
                "max-files" => parsed.limits.max_files = value.parse()?,
                "max-transfers" => parsed.limits.max_transfers = value.parse()?,
                "rate" => parsed.limits.rate = Some(value.parse()?),
                "identity" => parsed.identity = Some(value.into()),
                "into" => parsed.into = value.into(),
                _ => return Err(format!("unknown option {word}").into()),
            }
        }
        Ok(parsed)
    }

    async fn run(self) -> Result<ExitCode> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let (address, job) = match (self.command.as_str(), &words[..]) {
            ("serve", [directory]) => {
                let directory = PathBuf::from(directory);
                serve(directory, &self.udp, &self.http, self.limits).await?;
                return Ok(ExitCode::SUCCESS);
            }
            ("put", [address, file]) => (address, Job::Put(file.as_ref())),
            ("get", [address, name]) => {
                let into = &self.into;
                (address, Job::Get { name, into })
            }
            _ => return Err(USAGE.into()),
        };
        let address: PeerAddress = address.parse()?;
        let identity = match &self.identity {
            Some(key) => Identity::load_or_generate(key)?,
            None => Identity::generate(),
        };
        Ok(match client::run(address, identity, job).await {
            Ok(moved) => {
                let client::Moved { total, resumed } = moved;
                println!("{total} bytes, of which {resumed} were there already");
                ExitCode::SUCCESS
            }
            Err(failure) => failure.report(),
        })
    }
}

/// Serves a directory until the system or the user ends the program.
async fn serve(directory: PathBuf, udp: &str, http: &str, limits: Limits) -> Result<()> {
    let store = Store::open(&directory, limits.max_files)?;
    // The addresses, with their certificate hash, stay the same from one start to the next.
    let identity = Identity::load_or_generate(directory.join("identity.key"))?;
    let mut config = Config::default();
    config.protocols = vec![protocol::PUT.to_owned(), protocol::GET.to_owned()];
    config.max_inbound_substreams = TRANSFERS_OF_PEER;
    let builder = Endpoint::builder().identity(identity).config(config);
    let endpoint = builder.bind(udp).await?;
    let listener = TcpListener::bind(http).await?;
    let local = listener.local_addr()?;

    let service = Arc::new(Service::new(store, limits)?);
    let (drain, draining) = watch::channel(false);
    let web = http::Web::new(endpoint.clone(), Arc::clone(&service));
    let stopped = stopped()?;
    println!("page: http://{local}/");
    print!("{}", web.addresses(local));
    let router = http::router(Arc::new(web));
    let serving = tokio::spawn(http::serve(listener, router, draining));
    let accepting = tokio::spawn(service.accept(endpoint.clone()));

    stopped.await;
    println!("draining");
    drain.send_replace(true);
    let drained = endpoint.drain(DRAIN).await;
    serving.await?;
    accepting.await?;
    println!(
        "{} connections and {} substreams were cut off",
        drained.cut_connections, drained.cut_substreams
    );
    Ok(())
}

/// Completes when the system or the user ends the program. Signals are caught from this call on, so
/// that none kills a program that has said that it runs.
fn stopped() -> std::io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        Ok(async move {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
        })
    }
    #[cfg(not(unix))]
    Ok(async {
        // Without the signal it runs until it is killed.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    })
}
