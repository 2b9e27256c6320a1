//! The `peer` program of anabranch (`examples/peer`) over any other stack.
//!
//! A stack brings [`Stack`]: it listens and hands what peers open to [`serve::respond`], and it dials.
//! The command line, the protocols and the lines of JSON are here, so that two programs differ in
//! nothing but their stack.

#![forbid(unsafe_code)]

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite};

use args::Command;

mod args;
mod bench;
mod cases;
mod content;
mod dial;
mod echo;
mod idle;
#[allow(dead_code, reason = "this side lists one address only")]
#[path = "../../../../examples/peer/json.rs"]
mod json;
#[path = "../../../../examples/peer/measure.rs"]
mod measure;
pub mod serve;
mod stall;

/// A substream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A substream of any stack. Closing it ends the write half; dropping it before that resets it.
pub type Substream = Box<dyn Io>;

/// A connection that was dialled.
pub trait Connection: Send + Sync {
    /// Opens a substream and agrees on its protocol.
    fn open<'a>(&'a self, protocol: &'static str) -> BoxFuture<'a, io::Result<Substream>>;

    /// Closes the connection and waits until that is done.
    fn close(&self) -> BoxFuture<'_, io::Result<()>>;
}

/// A stack, ready to dial or to listen.
pub trait Stack: Sized + Send + Sync + 'static {
    /// Name of the program.
    const NAME: &'static str;

    /// Where `listen` binds to if nothing is said.
    const LISTEN: &'static str;

    /// Binds to an address and returns it as diallers need it; serves from then on.
    fn listen(address: &str) -> impl Future<Output = io::Result<String>> + Send;

    /// Makes ready to dial.
    fn dialler() -> impl Future<Output = io::Result<Self>> + Send;

    /// Connects, and authenticates the peer.
    fn dial(&self, address: &str) -> BoxFuture<'_, io::Result<Box<dyn Connection>>>;
}

/// Exit status for a wrong command line.
const USAGE_ERROR: u8 = 2;

/// The `main` of a peer.
pub fn run<S: Stack>() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(main::<S>()),
        Err(error) => fail::<S>(&error),
    }
}

async fn main<S: Stack>() -> ExitCode {
    match Command::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            println!("{}", args::USAGE);
            ExitCode::SUCCESS
        }
        Ok(Command::Listen(address)) => {
            let address = address.as_deref().unwrap_or(S::LISTEN);
            match S::listen(address).await {
                Ok(address) => {
                    let line = json::Object::default()
                        .text("listen", &address)
                        .integer("pid", std::process::id());
                    println!("{}", line.line());
                    // Until the process is killed.
                    std::future::pending().await
                }
                Err(error) => fail::<S>(&error),
            }
        }
        Ok(Command::Dial(options)) => match S::dialler().await {
            Ok(stack) => dial::run(stack, *options).await,
            Err(error) => fail::<S>(&error),
        },
        Err(error) => {
            eprintln!("{}: {error}\n\n{}", S::NAME, args::USAGE);
            ExitCode::from(USAGE_ERROR)
        }
    }
}

fn fail<S: Stack>(error: &io::Error) -> ExitCode {
    eprintln!("{}: {error}", S::NAME);
    ExitCode::FAILURE
}

/// The first port of this machine that is free for UDP now, for stacks that do not say which one
/// they were given.
pub fn free_port() -> io::Result<u16> {
    let address: SocketAddr = ([127, 0, 0, 1], 0).into();
    Ok(std::net::UdpSocket::bind(address)?.local_addr()?.port())
}
