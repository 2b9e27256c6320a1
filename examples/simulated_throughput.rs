//! Goodput of a connection over a simulated path, in virtual time.
//!
//! `cargo run --release --example simulated_throughput -- --help`

use std::error::Error;
use std::time::Duration;

use anabranch::{Config, Connection, Endpoint, EndpointConfig, EngineFactory};
use anabranch_testkit::simulator::{Conditions, Counters, Network};
use tokio::time::{Instant, timeout};

const PROTOCOL: &str = "/sink/1";

const USAGE: &str = "\
usage: simulated_throughput [options]      one line for each loss, round trip and seed
  --seconds N            virtual time of each, default 30
  --mbit N               rate of the link, default 100
  --round-trips MS,...   default 20,50,100
  --losses P,...         share of the datagrams that is lost, default 0,0.001,0.01
  --queue F              bytes that wait at the link, in bandwidth-delay products, default 1
  --window MIB           receive window and what may be in flight, default: those of the library
  --seed N               default 1
  --seeds N              so many, from that one on; default 1
  --json                 a line of JSON for each in place of the table
ANABRANCH_ENGINE in the environment chooses the engine: direct or str0m.";

/// The command line.
struct Options {
    seconds: u64,
    mbit: u64,
    round_trips: Vec<u64>,
    losses: Vec<f64>,
    queue: f64,
    window: Option<u32>,
    seed: u64,
    seeds: u64,
    json: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, Box<dyn Error>> {
        let mut options = Self {
            seconds: 30,
            mbit: 100,
            round_trips: vec![20, 50, 100],
            losses: vec![0.0, 0.001, 0.01],
            queue: 1.0,
            window: None,
            seed: 1,
            seeds: 1,
            json: false,
        };
        while let Some(name) = args.next() {
            if name == "--help" {
                return Ok(None);
            }
            if name == "--json" {
                options.json = true;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--seconds" => options.seconds = value.parse()?,
                "--mbit" => options.mbit = value.parse()?,
                "--round-trips" => options.round_trips = list(&value)?,
                "--losses" => options.losses = list(&value)?,
                "--queue" => options.queue = value.parse()?,
                "--window" => options.window = Some(value.parse()?),
                "--seed" => options.seed = value.parse()?,
                "--seeds" => options.seeds = value.parse()?,
                _ => return Err(format!("unknown option {name}").into()),
            }
        }
        Ok(Some(options))
    }
}

fn list<T: std::str::FromStr>(value: &str) -> Result<Vec<T>, T::Err> {
    value.split(',').map(str::parse).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let Some(options) = Options::parse(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(());
    };
    let engine = anabranch_str0m::from_env()?;
    if !options.json {
        println!(
            "{} Mbit/s, a queue of {} round trips, {} s of virtual time each",
            options.mbit, options.queue, options.seconds
        );
        println!(
            "round trip    loss  seed  goodput Mbit/s  of link    lost  queue full  datagrams  \
             CPU s"
        );
    }
    for loss in &options.losses {
        for round_trip in &options.round_trips {
            for seed in options.seed..options.seed.saturating_add(options.seeds) {
                let path = Path {
                    loss: *loss,
                    round_trip: *round_trip,
                    seed,
                };
                let figures = run(&options, engine, &path)?;
                if options.json {
                    figures.print_json(&options, engine, &path);
                } else {
                    figures.print(&options, &path);
                }
            }
        }
    }
    Ok(())
}

/// One combination of the settings.
struct Path {
    loss: f64,
    /// In milliseconds.
    round_trip: u64,
    seed: u64,
}

/// The result of a run.
struct Figures {
    /// In Mbit/s.
    goodput: f64,
    counters: Counters,
    /// Of both sides and the simulator, in seconds.
    cpu: f64,
}

fn run(options: &Options, engine: EngineFactory, path: &Path) -> Result<Figures, Box<dyn Error>> {
    let rate = options.mbit * 125_000;
    let conditions = Conditions {
        loss: path.loss,
        rate: Some(rate),
        queue: (rate as f64 * path.round_trip as f64 / 1000.0 * options.queue) as usize,
        ..Conditions::round_trip(Duration::from_millis(path.round_trip))
    };
    let before = cpu_seconds();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()?;
    let network = Network::new(path.seed);
    network.set_conditions(conditions);
    let duration = Duration::from_secs(options.seconds);
    let received = runtime.block_on(measure(&network, duration, engine, options.window))?;
    Ok(Figures {
        goodput: received as f64 * 8.0 / 1e6 / duration.as_secs_f64(),
        counters: network.counters(),
        cpu: cpu_seconds() - before,
    })
}

impl Figures {
    fn print(&self, options: &Options, path: &Path) {
        println!(
            "{:7} ms  {:4.1} %  {:4}  {:14.1}  {:5.1} %  {:6}  {:10}  {:9}  {:5.2}",
            path.round_trip,
            path.loss * 100.0,
            path.seed,
            self.goodput,
            self.goodput / options.mbit as f64 * 100.0,
            self.counters.lost,
            self.counters.dropped_by_queue,
            self.counters.sent,
            self.cpu,
        );
    }

    fn print_json(&self, options: &Options, engine: EngineFactory, path: &Path) {
        println!(
            "{{\"engine\":\"{}\",\"mbit\":{},\"queue\":{},\"seconds\":{},\"round_trip_ms\":{},\
             \"loss\":{},\"seed\":{},\"goodput_mbit\":{:.3},\"lost\":{},\"queue_full\":{},\
             \"datagrams\":{},\"cpu_s\":{:.3}}}",
            engine.name(),
            options.mbit,
            options.queue,
            options.seconds,
            path.round_trip,
            path.loss,
            path.seed,
            self.goodput,
            self.counters.lost,
            self.counters.dropped_by_queue,
            self.counters.sent,
            self.cpu,
        );
    }
}

/// CPU seconds of this process: both sides and the simulator. 0 if the system does not report them.
fn cpu_seconds() -> f64 {
    let Ok(stat) = std::fs::read_to_string("/proc/self/schedstat") else {
        return 0.0;
    };
    let nanoseconds = stat.split(' ').next().and_then(|field| field.parse().ok());
    nanoseconds.unwrap_or(0.0) / 1e9
}

/// Sends on one substream for `duration` and returns the bytes that were read in that time.
async fn measure(
    network: &Network,
    duration: Duration,
    engine: EngineFactory,
    window: Option<u32>,
) -> Result<u64, Box<dyn Error>> {
    let hosts = [network.host([10, 0, 0, 1]), network.host([10, 0, 0, 2])];
    let mut endpoint = EndpointConfig::default();
    endpoint.engine = engine;
    let mut config = Config::default();
    if let Some(mebibytes) = window {
        let bytes = mebibytes.saturating_mul(1024 * 1024);
        config.receive_window = bytes;
        config.substream_ceiling = bytes as usize * 2;
        config.connection_ceiling = bytes as usize * 4;
        endpoint.receive_buffer = bytes as usize;
        endpoint.max_in_flight = bytes as usize;
    }
    let server = Endpoint::builder()
        .sockets(hosts[0].clone())
        .endpoint_config(endpoint.clone())
        .config(config)
        .protocol(PROTOCOL)
        .bind("10.0.0.1:4001")
        .await?;
    let client = Endpoint::builder()
        .sockets(hosts[1].clone())
        .endpoint_config(endpoint)
        .dial_only()?;
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
