//! How much goodput a busy substream loses to others of its connection: idle ones, and ones whose
//! readers have stopped.
//!
//! `cargo run --release --example neighbours [--json] [rounds]`
//!
//! Both endpoints are in this process, over UDP on loopback. Each round measures all cases in
//! turn, each on a connection of its own. The table shows medians, the lines of JSON all values.

use std::error::Error;
use std::time::{Duration, Instant};

use anabranch::{Config, Connection, Endpoint, Substream};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The responder reads to the end.
const SINK: &str = "/sink/1";

/// The responder answers the first byte, and reads nothing more.
const STALL: &str = "/stall/1";

/// Bytes of the busy substream in one measurement.
const BYTES: usize = 128 << 20;

/// The other substreams of the connection.
#[derive(Debug, Clone, Copy)]
enum Beside {
    Idle(usize),
    Stalled(usize),
}

const CASES: [Beside; 5] = [
    Beside::Idle(0),
    Beside::Idle(1_000),
    Beside::Idle(10_000),
    Beside::Stalled(0),
    Beside::Stalled(50),
];

#[derive(Debug, Default)]
struct Figures {
    goodput: Vec<f64>,
    cpu: Vec<f64>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (mut rounds, mut json) = (5_usize, false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--json" => json = true,
            number => rounds = number.parse()?,
        }
    }
    let mut config = Config::default();
    config.max_inbound_substreams = 20_000;
    let server = Endpoint::builder()
        .config(config)
        .protocol(SINK)
        .protocol(STALL)
        .bind("127.0.0.1:0")
        .await?;
    let address = server.addresses().remove(0);
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            tokio::spawn(async move {
                if let Ok(connection) = incoming.accept().await {
                    serve(connection).await;
                }
            });
        }
    });
    let client = Endpoint::builder().dial_only()?;
    let mut figures: [Figures; CASES.len()] = Default::default();
    for _ in 0..rounds {
        for (case, figures) in CASES.into_iter().zip(&mut figures) {
            let connection = client.connect(&address).await?;
            let (goodput, cpu) = measure(&connection, case).await?;
            connection.close().await;
            figures.goodput.push(goodput);
            figures.cpu.push(cpu);
        }
    }
    if json {
        for (case, figures) in CASES.into_iter().zip(&figures) {
            let (what, count) = match case {
                Beside::Idle(count) => ("idle", count),
                Beside::Stalled(count) => ("stalled", count),
            };
            println!(
                "{{\"beside\":\"{what}\",\"count\":{count},\"MBps\":{:.1?},\
                 \"cpu_s_per_GB\":{:.3?}}}",
                figures.goodput, figures.cpu
            );
        }
        return Ok(());
    }
    println!("beside               MB/s  CPU s/GB  goodput  CPU (medians of {rounds})");
    let mut alone = (0.0, 0.0);
    for (case, figures) in CASES.into_iter().zip(&mut figures) {
        let (goodput, cpu) = (median(&mut figures.goodput), median(&mut figures.cpu));
        if matches!(case, Beside::Idle(0) | Beside::Stalled(0)) {
            alone = (goodput, cpu);
        }
        println!(
            "{:16} {goodput:8.1}  {cpu:8.2}  {:5.0} %  {:4.0} %",
            format!("{case:?}"),
            goodput / alone.0 * 100.0,
            cpu / alone.1 * 100.0,
        );
    }
    Ok(())
}

async fn serve(connection: Connection) {
    while let Ok(Some(substream)) = connection.accept().await {
        tokio::spawn(async move {
            // The opener reports how the substream ended.
            let _ = respond(substream).await;
        });
    }
}

async fn respond(mut substream: Substream) -> Result<(), Box<dyn Error + Send + Sync>> {
    if substream.protocol() == Some(STALL) {
        let mut first = [0];
        substream.read_exact(&mut first).await?;
        substream.write_all(&first).await?;
        let (_unread, mut writer) = substream.into_split();
        writer.stopped().await;
        return Ok(());
    }
    let (mut reader, _writer) = substream.into_split();
    while reader.read_chunk(usize::MAX).await?.is_some() {}
    Ok(())
}

/// Goodput of the busy substream in MB/s, and CPU seconds of both sides for a GB.
async fn measure(connection: &Connection, beside: Beside) -> Result<(f64, f64), Box<dyn Error>> {
    // Kept alive until the end.
    let mut others = Vec::new();
    match beside {
        Beside::Idle(count) => {
            for _ in 0..count {
                others.push(connection.open(SINK).await?);
            }
        }
        Beside::Stalled(count) => {
            for _ in 0..count {
                let mut substream = connection.open(STALL).await?;
                substream.write_all(b"?").await?;
                substream.read_exact(&mut [0]).await?;
                let (_, mut writer) = substream.into_split();
                // Writes until the window stops it, and ends with the connection.
                tokio::spawn(async move {
                    let block = Bytes::from_static(&[7; 16 << 10]);
                    while writer.write_chunk(block.clone()).await.is_ok() {}
                });
            }
        }
    }
    // Until the stalled substreams have used up their windows.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = cpu_seconds();
    let start = Instant::now();
    let busy = connection.open(SINK).await?;
    let (_, mut writer) = busy.into_split();
    let block = Bytes::from_static(&[7; 64 << 10]);
    for _ in 0..BYTES / block.len() {
        writer.write_chunk(block.clone()).await?;
    }
    writer.finish().await?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - before;
    Ok((BYTES as f64 / 1e6 / seconds, cpu / (BYTES as f64 / 1e9)))
}

/// User and system time of this process, in steps of 10 ms; 0 if the system does not report it.
fn cpu_seconds() -> f64 {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else {
        return 0.0;
    };
    // After the name of the program, which may contain anything (proc(5)).
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    ticks as f64 / 100.0
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
