//! A mixed load with faults, of any duration, that compares every byte.
//!
//! ```text
//! cargo run --release --example soak -- --seconds 300
//! cargo run --release --example soak -- --seconds 300 --network udp
//! ```
//!
//! Several diallers, each with a host of its own, connect to one listener again and again. On every
//! connection some substreams echo, upload and download at once; readers stall, either side resets,
//! stops or drops in the middle; connections are closed, dropped, abandoned while they are
//! established, or lose their peer. `--network simulated` runs on a network in virtual time that
//! loses, reorders, duplicates and corrupts datagrams, has outages and forgets mappings;
//! `--network udp` on loopback sockets, without faults of the network.
//!
//! Bytes count as lost if the received ones differ from those sent, if a stream ends in order
//! before its end, if a confirmed stream is not complete at the peer, or if a transfer neither
//! progresses nor ends. Prints the count of each kind of end, the resident memory at the start, in
//! the middle and at the end, and the objects that remain.
//!
//! Exits with 1 if anything is lost or remains.

mod content;
mod faults;
mod load;
mod tally;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch::{Config, Endpoint, EndpointBuilder, EndpointConfig, EngineFactory, RateLimit};
use anabranch_testkit::simulator::{Host, Network};
use tokio::time::{sleep, timeout};

use load::{ECHO, SINK, SOURCE};
use tally::{Tally, resident_kib};

const USAGE: &str = "usage: soak [--seconds N] [--seed S] [--network simulated|udp] [--diallers N]
            [--engine direct|str0m]

  --seconds N         how long, by the clock on the wall; default 60
  --seed S            of the load and of the simulated network; default 1
  --network NAME      simulated, in virtual time with faults (the default), or udp, on loopback
  --diallers N        1 to 100 hosts that connect; default 6
  --engine NAME       direct (the default) or str0m";

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

#[derive(Debug, Clone)]
struct Arguments {
    seconds: u64,
    seed: u64,
    simulated: bool,
    diallers: u8,
    engine: EngineFactory,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut parsed = Arguments {
        seconds: 60,
        seed: 1,
        simulated: true,
        diallers: 6,
        engine: EngineFactory::DIRECT,
    };
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(USAGE)?;
        match &*name {
            "--seconds" => parsed.seconds = value.parse()?,
            "--seed" => parsed.seed = value.parse()?,
            "--diallers" => parsed.diallers = value.parse()?,
            "--engine" => parsed.engine = anabranch_str0m::named(&value)?,
            "--network" if value == "simulated" => parsed.simulated = true,
            "--network" if value == "udp" => parsed.simulated = false,
            _ => return Err(USAGE.into()),
        }
    }
    if !(1..=100).contains(&parsed.diallers) || parsed.seconds == 0 {
        return Err(USAGE.into());
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let runtime = if arguments.simulated {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
    } else {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
    };
    let sound = runtime
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match sound {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn builder(arguments: &Arguments, host: Option<&Host>) -> EndpointBuilder {
    let mut config = Config::default();
    config.protocols = [ECHO, SINK, SOURCE].map(str::to_owned).to_vec();
    // The frequent resets of this load are no attack.
    config.max_unused_substreams = u32::MAX;
    let mut endpoint = EndpointConfig::default();
    endpoint.engine = arguments.engine;
    endpoint.first_contacts = RateLimit::new(Duration::from_millis(1), 10_000);
    let builder = Endpoint::builder().config(config).endpoint_config(endpoint);
    match host {
        Some(host) => builder.sockets(host.clone()),
        None => builder,
    }
}

async fn run(arguments: Arguments) -> Result<bool> {
    let tally = Arc::new(Tally::default());
    let network = arguments.simulated.then(|| Network::new(arguments.seed));
    let host = |last: u8| {
        network
            .as_ref()
            .map(|network| network.host([10, 0, 0, last]))
    };
    let server = builder(&arguments, host(200).as_ref())
        .bind(if arguments.simulated {
            "10.0.0.200:4001"
        } else {
            "127.0.0.1:0"
        })
        .await?;
    let serving = tokio::spawn(load::serve(
        server.clone(),
        Arc::clone(&tally),
        arguments.seed,
    ));
    let virtually = tokio::time::Instant::now();
    let deadline = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut tasks = Vec::new();
    let mut clients = Vec::new();
    let mut hosts = Vec::new();
    for index in 0..arguments.diallers {
        let host = host(index + 1);
        let client = builder(&arguments, host.as_ref()).dial_only()?;
        clients.push(client.clone());
        let dialler = load::Dialler {
            client,
            address: server.addresses().remove(0),
            tally: Arc::clone(&tally),
            seed: arguments.seed.wrapping_mul(1009).wrapping_add(index.into()),
            network: network.clone().zip(host.clone()),
            deadline,
        };
        hosts.extend(host);
        tasks.push(tokio::spawn(dialler.run()));
    }
    if let (Some(network), Some(host)) = (&network, host(200)) {
        let story = faults::run(network.clone(), host, hosts, arguments.seed, deadline);
        tasks.push(tokio::spawn(story));
    }
    // Not a task: virtual time would wait for it.
    let memory = std::thread::spawn(move || tally::watch_memory(deadline));
    for task in tasks {
        task.await?;
    }
    let took = virtually.elapsed();
    // Memory is sampled for as long as the load lasts.
    let memory = memory.join().map_err(|_| "memory was not watched")?;

    let closing = async {
        for client in &clients {
            client.close().await;
        }
        server.close().await;
        let served = serving.await;
        // Transfers that were ending when their endpoint was closed.
        sleep(Duration::from_secs(30)).await;
        served
    };
    timeout(Duration::from_secs(120), closing).await??;
    let idle = server.is_idle() && clients.iter().all(Endpoint::is_idle);
    drop((server, clients));
    sleep(Duration::from_secs(1)).await;
    let sockets = network.as_ref().map_or(0, Network::sockets);
    let left = tally.left();
    let running = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();

    println!(
        "{} s on the wall, {:.0} s of the network's, seed {}",
        arguments.seconds,
        took.as_secs_f64(),
        arguments.seed
    );
    tally.print();
    if let Some(network) = &network {
        println!("network: {:?}", network.counters());
    }
    println!(
        "resident KiB at the start, in the middle, at the end, after it: {memory:?}, {}",
        resident_kib()
    );
    println!(
        "left: maps empty: {idle}, sockets {sockets}, tasks {running}, transfers {left}; lost: {}",
        tally.lost()
    );
    Ok(idle && sockets == 0 && running == 0 && left == 0 && tally.lost() == 0)
}
