//! Handshakes per second of a listener, by the number of its sockets.
//!
//! ```text
//! cargo run --release --example handshakes -- --count 2000 --parallel 32 --sockets 2
//! ```
//!
//! Listener and diallers are in one process, so the figure includes both sides of every handshake.
//! Prints one line of JSON.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anabranch::{Endpoint, EndpointConfig};
use tokio::task::JoinSet;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const USAGE: &str = "usage: handshakes [--count N] [--parallel N] [--sockets N]";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let (mut count, mut parallel, mut sockets) = (2000_usize, 32_usize, 1_usize);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(USAGE)?.parse()?;
        match name.as_str() {
            "--count" => count = value,
            "--parallel" => parallel = value,
            "--sockets" => sockets = value,
            _ => return Err(USAGE.into()),
        }
    }
    let mut config = EndpointConfig::default();
    config.sockets = sockets;
    let listener = Endpoint::builder()
        .endpoint_config(config)
        .bind("127.0.0.1:0")
        .await?;
    let address = listener.addresses().remove(0);
    let accepting = listener.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            tokio::spawn(async move {
                if let Ok(connection) = incoming.accept().await {
                    connection.closed().await;
                }
            });
        }
    });

    let left = Arc::new(AtomicUsize::new(count));
    let begin = Instant::now();
    let mut diallers = JoinSet::new();
    for _ in 0..parallel {
        let (left, address) = (Arc::clone(&left), address.clone());
        diallers.spawn(async move {
            let dialler = Endpoint::builder().dial_only()?;
            let (mut connections, mut took) = (Vec::new(), Vec::new());
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok()
            {
                let begin = Instant::now();
                let connection = dialler.connect(&address).await?;
                took.push(begin.elapsed());
                // A close waits for a delayed acknowledgement, and is not part of the measurement.
                connections.push(connection);
            }
            Ok::<_, Box<dyn Error + Send + Sync>>((dialler, connections, took))
        });
    }
    let (mut took, mut done) = (Vec::new(), Vec::new());
    while let Some(dialler) = diallers.join_next().await {
        let (dialler, connections, mut times) = dialler??;
        took.append(&mut times);
        done.push((dialler, connections));
    }
    let seconds = begin.elapsed().as_secs_f64();
    for (dialler, connections) in done {
        drop(connections);
        dialler.close().await;
    }
    listener.close().await;
    took.sort_unstable();
    let milliseconds = |at: usize| {
        took.get(at)
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
    };
    println!(
        "{{\"handshakes\":{},\"sockets\":{sockets},\"parallel\":{parallel},\"per_second\":{:.0},\
         \"connect_p50_ms\":{:.2},\"connect_p95_ms\":{:.2}}}",
        took.len(),
        took.len() as f64 / seconds,
        milliseconds(took.len() / 2),
        milliseconds(took.len() * 95 / 100),
    );
    Ok(())
}
