//! What a connection makes of a path, in virtual time.
//!
//! `cargo run --release --features testing --example simulated_throughput [seconds]`

use std::error::Error;
use std::time::Duration;

use anabranch::simulator::{Conditions, Network};
use anabranch::{Connection, Endpoint};
use tokio::time::{Instant, timeout};

const PROTOCOL: &str = "/sink/1";

/// Bytes per second of 100 Mbit/s.
const RATE: u64 = 12_500_000;

fn main() -> Result<(), Box<dyn Error>> {
    let seconds = match std::env::args().nth(1) {
        Some(seconds) => seconds.parse()?,
        None => 30,
    };
    println!("100 Mbit/s, a queue of one round trip, {seconds} s of virtual time each");
    println!("round trip    loss  goodput Mbit/s    lost  queue full  datagrams  real time");
    for loss in [0.0, 0.001, 0.01] {
        for round_trip in [20, 50, 100] {
            let conditions = Conditions {
                loss,
                rate: Some(RATE),
                queue: RATE as usize * round_trip as usize / 1000,
                ..Conditions::round_trip(Duration::from_millis(round_trip))
            };
            let real = std::time::Instant::now();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()?;
            let network = Network::new(1);
            network.set_conditions(conditions);
            let duration = Duration::from_secs(seconds);
            let received = runtime.block_on(measure(&network, duration))?;
            let counters = network.counters();
            println!(
                "{round_trip:7} ms  {:4.1} %  {:14.1}  {:6}  {:10}  {:9}  {:6.1} s",
                loss * 100.0,
                received as f64 * 8.0 / 1e6 / duration.as_secs_f64(),
                counters.lost,
                counters.dropped_by_queue,
                counters.sent,
                real.elapsed().as_secs_f64(),
            );
        }
    }
    Ok(())
}

/// Sends on one substream for `duration` and returns the bytes that were read meanwhile.
async fn measure(network: &Network, duration: Duration) -> Result<u64, Box<dyn Error>> {
    let hosts = [network.host([10, 0, 0, 1]), network.host([10, 0, 0, 2])];
    let mut config = anabranch::Config::default();
    config.receive_window = 16 * 1024 * 1024;
    config.substream_ceiling = 32 * 1024 * 1024;
    config.connection_ceiling = 64 * 1024 * 1024;
    let server = Endpoint::builder()
        .simulated(&hosts[0])
        .config(config)
        .protocol(PROTOCOL)
        .bind("10.0.0.1:4001")
        .await?;
    let client = Endpoint::builder().simulated(&hosts[1]).dial_only()?;
    let address = server.addresses().remove(0);
    let (connection, accepted) = tokio::join!(client.connect(&address), accept(&server));
    let (connection, accepted) = (connection?, accepted?);
    let receive = async {
        let substream = accepted.accept().await?.ok_or("no substream")?;
        let (mut reader, _writer) = substream.into_split();
        let start = Instant::now();
        let mut received = 0;
        while let Ok(chunk) =
            timeout(duration - start.elapsed(), reader.read_chunk(usize::MAX)).await
        {
            received += chunk?.ok_or("an early end")?.len() as u64;
            if start.elapsed() >= duration {
                break;
            }
        }
        Ok::<_, Box<dyn Error>>(received)
    };
    let send = async {
        let substream = connection.open(PROTOCOL).await?;
        let (_reader, mut writer) = substream.into_split();
        let block = bytes::Bytes::from(vec![7; 64 * 1024]);
        loop {
            writer.write_chunk(block.clone()).await?;
        }
    };
    tokio::select! {
        received = receive => received,
        sent = send => sent,
    }
}

async fn accept(server: &Endpoint) -> Result<Connection, Box<dyn Error>> {
    Ok(server.accept().await.ok_or("closed")?.accept().await?)
}
