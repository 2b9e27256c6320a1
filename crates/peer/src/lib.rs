//! The program `peer`, over any stack that has connections and substreams.
//!
//! A stack implements [`Stack`]: it listens and passes the substreams that peers open to
//! [`serve::respond`], and it dials. The command line, the protocols and the lines of JSON are
//! here, so that two programs differ in their stack only.
//!
//! `listen` prints one line of JSON with its address; `dial` prints one line of JSON for each
//! repeat. Everything else goes to stderr. [`serve`] describes the protocols.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use args::Command;

mod args;
mod bench;
mod cases;
mod content;
mod dial;
mod echo;
mod idle;
mod io_substream;
mod json;
mod measure;
pub mod serve;
mod stack;
mod stall;

pub use io_substream::{IoReader, IoSubstream, IoWriter};
pub use stack::{Chunk, Connection, Finished, Flag, Reader, Settings, Stack, Substream, Writer};

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
    match Command::<S::Address>::parse(std::env::args().skip(1), S::FLAGS) {
        Ok(Command::Help) => {
            println!("{}", args::usage::<S>());
            ExitCode::SUCCESS
        }
        Ok(Command::Listen(addresses)) => match listen::<S>(addresses).await {
            Ok(line) => {
                println!("{line}");
                // Until the process is killed.
                std::future::pending().await
            }
            Err(error) => fail::<S>(&error),
        },
        Ok(Command::Dial(options)) => dial::run::<S>(*options).await,
        Err(error) => {
            eprintln!("{}: {error}\n\n{}", S::NAME, args::usage::<S>());
            ExitCode::from(USAGE_ERROR)
        }
    }
}

/// Starts the listener and returns its line of JSON.
async fn listen<S: Stack>(mut addresses: Vec<S::Address>) -> std::io::Result<String> {
    if addresses.is_empty() {
        let default = S::LISTEN.parse();
        addresses.push(default.map_err(|error| std::io::Error::other(format!("{error}")))?);
    }
    let all = S::listen(&addresses).await?;
    let Some(first) = all.first() else {
        return Err(std::io::Error::other(
            "the machine has no address to listen on",
        ));
    };
    let line = json::Object::default()
        .text("listen", first)
        .integer("pid", std::process::id());
    Ok(match all.len() {
        1 => line.line(),
        _ => line.texts("all", &all).line(),
    })
}

fn fail<S: Stack>(error: &std::io::Error) -> ExitCode {
    eprintln!("{}: {error}", S::NAME);
    ExitCode::FAILURE
}
