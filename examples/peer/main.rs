//! A peer that any other peer can be tested and measured against.
//!
//! ```text
//! cargo build --release --example peer
//! target/release/examples/peer listen
//! target/release/examples/peer dial MULTIADDR --up 64m --down 64m --streams 4
//! ```
//!
//! `listen` prints one line of JSON with its address; `dial` prints one line of JSON for each
//! repeat. Everything else goes to stderr. `peer --help` lists the options, and [`serve`] describes
//! the protocols. Set `RUST_LOG=debug` to see what happens underneath.

use std::process::ExitCode;

use args::Command;

mod args;
mod bench;
mod content;
mod dial;
mod echo;
mod idle;
mod json;
mod measure;
mod serve;
mod stall;

/// Exit status for a wrong command line.
const USAGE_ERROR: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match Command::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            println!("{}", args::USAGE);
            ExitCode::SUCCESS
        }
        Ok(Command::Listen(addresses)) => match serve::listen(&addresses).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("peer: {error}");
                ExitCode::FAILURE
            }
        },
        Ok(Command::Dial(options)) => dial::run(*options).await,
        Err(error) => {
            eprintln!("peer: {error}\n\n{}", args::USAGE);
            ExitCode::from(USAGE_ERROR)
        }
    }
}
