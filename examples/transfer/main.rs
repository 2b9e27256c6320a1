//! A listener and a dialler over real sockets in one process: sends data from one to the other,
//! with a progress bar, checks every byte, closes, and prints the speed.
//!
//! ```text
//! cargo run --release --example transfer
//! cargo run --release --example transfer -- --size 1g --streams 4 --websocket
//! ```
//!
//! With `--payload` it sends a file, as a payload with its hash, to a receiver in another process.
//! `send` with the same `--identity`, and `receive`, resume an attempt that was killed.
//! Everything goes over WebRTC, or with `--websocket` over one WebSocket.
//!
//! ```text
//! cargo run --release --example transfer -- --payload --size 1g
//! cargo run --release --example transfer -- receive received    # prints its address
//! cargo run --release --example transfer -- send --identity me.key ADDRESS FILE
//! ```

use std::error::Error;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anabranch::Substream;
use anabranch::address::PeerAddress;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

mod carrier;
mod files;
mod two_processes;

use carrier::{Listener, connect, dialler};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const PROTOCOL: &str = "/transfer/1.0.0";
const USAGE: &str = "usage: transfer [--size N] [--streams K] [--websocket]
       transfer --payload [--size N] [--no-hash] [--websocket] [--json]
       transfer receive [--once] [--websocket] DIRECTORY
       transfer send [--no-hash] [--identity KEY] ADDRESS FILE

  --size N      bytes to send in all; N may end in k, m or g; default 256m
  --streams K   substreams to send them on at once, at most 256; default 1
  --payload     send a file of that size, default 1g, to a receiver in another process
  --no-hash     without a hash, and so from the beginning always
  --identity KEY
                file of the sender's key, made if it is not there: only the sender that has begun a
                file can resume it; without it, each attempt is one of another sender
  --once        end with the first connection
  --websocket   listen for a WebSocket in place of WebRTC; send goes by the address
  --json        print the figures of a payload as one line of JSON";

/// The byte at offset i of a substream is `i % PERIOD`.
const PERIOD: usize = 251;
const CHUNK: usize = 64 << 10;

/// A parsed command line.
enum Task {
    Streams {
        size: u64,
        streams: u64,
        websocket: bool,
    },
    Payload {
        size: u64,
        hash: bool,
        websocket: bool,
        json: bool,
    },
    Receive {
        directory: PathBuf,
        once: bool,
        websocket: bool,
    },
    Send {
        address: PeerAddress,
        file: PathBuf,
        hash: bool,
        key: Option<PathBuf>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let task = match arguments() {
        Ok(Some(task)) => task,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("transfer: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let done = match task {
        Task::Streams {
            size,
            streams,
            websocket,
        } => run(size, streams, websocket).await,
        Task::Payload {
            size,
            hash,
            websocket,
            json,
        } => two_processes::both(size, hash, websocket, json).await,
        Task::Receive {
            directory,
            once,
            websocket,
        } => two_processes::receive(&directory, once, websocket).await,
        Task::Send {
            address,
            file,
            hash,
            key,
        } => two_processes::send(&address, &file, hash, key.as_deref()).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("transfer failed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(size: u64, streams: u64, websocket: bool) -> Result<()> {
    let listener = Listener::bind(websocket, PROTOCOL).await?;
    let address = listener.address();
    println!("listening on {address}");
    let bar = progress_bar(size)?;
    let receiving = tokio::spawn(receive_all(listener, streams, bar.clone()));
    let sent = send_all(&address, size, streams).await;
    if sent.is_err() {
        receiving.abort();
        bar.abandon();
    }
    let seconds = sent?.as_secs_f64();
    let received = receiving.await??;
    bar.finish_and_clear();
    if received != size {
        return Err(format!("{received} of {size} bytes arrived").into());
    }
    println!("{size} bytes arrived, each one checked");
    println!("closed: every substream by FIN, confirmed by FIN_ACK");
    println!("{:.1} MB/s ({seconds:.2} s)", size as f64 / 1e6 / seconds);
    Ok(())
}

/// The dialler: sends everything and returns the time until all was confirmed.
async fn send_all(address: &PeerAddress, size: u64, streams: u64) -> Result<Duration> {
    let endpoint = dialler()?;
    let start = Instant::now();
    let connection = connect(&endpoint, address).await?;
    println!("connected in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);

    let start = Instant::now();
    let mut sending = JoinSet::new();
    for i in 0..streams {
        let share = size / streams + u64::from(i < size % streams);
        let substream = connection.open(PROTOCOL).await?;
        sending.spawn(send(substream, share));
    }
    while let Some(joined) = sending.join_next().await {
        joined??;
    }
    let took = start.elapsed();
    connection.close().await;
    endpoint.close().await;
    Ok(took)
}

async fn send(mut substream: Substream, size: u64) -> Result<()> {
    substream.write_u64(size).await?;
    let content = content();
    let mut offset = 0;
    while offset < size {
        let start = (offset % PERIOD as u64) as usize;
        let len = (size - offset).min(CHUNK as u64) as usize;
        substream
            .write_chunk(content.slice(start..start + len))
            .await?;
        offset += len as u64;
    }
    // The receiver answers with the end only, which need not be read.
    substream.finish().await?;
    match substream.read_chunk(1).await? {
        None => Ok(()),
        Some(_) => Err("the receiver sent something".into()),
    }
}

/// The listener: accepts one connection, reads what comes over it, and returns the number of
/// correct bytes.
async fn receive_all(listener: Listener, streams: u64, bar: ProgressBar) -> Result<u64> {
    let handshake = listener.accept().await?.ok_or("the listener was closed")?;
    let connection = handshake.await?;
    let mut receiving = JoinSet::new();
    for _ in 0..streams {
        let substream = connection
            .accept()
            .await?
            .ok_or("the sender closed too early")?;
        receiving.spawn(receive(substream, bar.clone()));
    }
    let mut total = 0;
    while let Some(joined) = receiving.join_next().await {
        total += joined??;
    }
    listener.close().await;
    Ok(total)
}

async fn receive(mut substream: Substream, bar: ProgressBar) -> Result<u64> {
    let size = substream.read_u64().await?;
    let content = content();
    let mut offset = 0;
    while let Some(chunk) = substream.read_chunk(CHUNK).await? {
        let start = (offset % PERIOD as u64) as usize;
        if chunk[..] != content[start..start + chunk.len()] {
            substream.reset(1);
            return Err(format!("wrong content after {offset} bytes").into());
        }
        offset += chunk.len() as u64;
        bar.inc(chunk.len() as u64);
    }
    if offset != size {
        return Err(format!("the stream ended after {offset} of {size} bytes").into());
    }
    substream.finish().await?;
    Ok(size)
}

/// As much of the content as a chunk at any offset needs.
fn content() -> Bytes {
    (0..PERIOD as u8).cycle().take(CHUNK + PERIOD).collect()
}

/// A bar on a terminal; nothing if the output goes to a file or another program.
fn progress_bar(size: u64) -> Result<ProgressBar> {
    let target = if io::stdout().is_terminal() {
        ProgressDrawTarget::stdout()
    } else {
        ProgressDrawTarget::hidden()
    };
    let template = "[{bar:40}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template)?.progress_chars("=> ");
    Ok(ProgressBar::with_draw_target(Some(size), target).with_style(style))
}

/// Parses the command line; `None` asks for help.
fn arguments() -> Result<Option<Task>, String> {
    let (mut size, mut streams) = (None, 1);
    let (mut payload, mut hash, mut once, mut websocket) = (false, true, false, false);
    let mut json = false;
    let mut key = None;
    let mut words = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(option) = args.next() {
        match option.as_str() {
            "--size" | "--streams" => {
                let value = args
                    .next()
                    .ok_or_else(|| format!("{option} needs a value"))?;
                let value =
                    number(&value).ok_or_else(|| format!("{option}: {value:?} is no size"))?;
                if option == "--size" {
                    size = Some(value);
                } else {
                    streams = value;
                }
            }
            "--identity" => key = Some(args.next().ok_or("--identity needs a file")?.into()),
            "--payload" => payload = true,
            "--no-hash" => hash = false,
            "--once" => once = true,
            "--websocket" => websocket = true,
            "--json" => json = true,
            "-h" | "--help" => return Ok(None),
            _ if option.starts_with('-') => return Err(format!("unknown option {option:?}")),
            _ => words.push(option),
        }
    }
    if !(1..=256).contains(&streams) {
        return Err("--streams must be 1 to 256".to_owned());
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(Some(match words[..] {
        [] if payload => Task::Payload {
            size: size.unwrap_or(1 << 30),
            hash,
            websocket,
            json,
        },
        [] => Task::Streams {
            size: size.unwrap_or(256 << 20),
            streams,
            websocket,
        },
        ["receive", directory] => Task::Receive {
            directory: directory.into(),
            once,
            websocket,
        },
        ["send", address, file] => Task::Send {
            address: address.parse().map_err(|error| format!("{error}"))?,
            file: file.into(),
            hash,
            key,
        },
        _ => return Err("send and receive need what stands behind them".to_owned()),
    }))
}

/// A number that may end in k, m or g.
fn number(text: &str) -> Option<u64> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 1 << 10),
        b'm' => (&text[..text.len() - 1], 1 << 20),
        b'g' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}
