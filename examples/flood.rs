//! A flood of first contacts to a listener that serves an honest transfer meanwhile.
//!
//! ```text
//! cargo run --release --example flood
//! cargo run --release --example flood -- --packets 200000 --rate 20000 --garbage 10
//! ```
//!
//! The listener is a process of its own, which sends a stream to this one all the time. The flood
//! comes from sockets on many addresses of 127.0.0.0/8, and goes to that listener alone. Most of
//! its datagrams are those that cost a listener the most: STUN requests with credentials of their
//! own and a valid integrity, followed by nothing. Loopback addresses have no rate limit by
//! default, so this tests the remaining defences: the bound on handshakes, and challenges.
//!
//! Every half second a newcomer connects. Prints one line of JSON:
//! - `growth_mib`: maximum growth of the listener's resident memory;
//! - `calm_MBps`, `flood_MBps`, `after_MBps`, `ratio`: goodput before, during and after the flood,
//!   and the second divided by the mean of the others, since the load of other programs varies;
//! - `control_MBps`: goodput while the same datagrams go to a socket that nobody reads. On a
//!   machine with few cores sending the flood takes processor time from everybody; this shows how
//!   much;
//! - `newcomers`, `admitted`, `connect_p50_ms`, `connect_max_ms`: connections attempted during the
//!   flood.
//!
//! Exits with 1 if the listener grew by more than 16 MiB, the ratio is below 0.7, or a newcomer was
//! not admitted.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anabranch::{Address, Connection, Endpoint};
use is::stun::{StunMessage, TransId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const PROTOCOL: &str = "/pour/1.0.0";
const USAGE: &str = "usage: flood [--packets N] [--rate N] [--garbage PERCENT]

  --packets N         datagrams to send, at most 1000000; default 200000
  --rate N            datagrams a second, at most 200000; default 20000
  --garbage PERCENT   how many of them are random bytes; default 10";

/// Sockets of the flood, each on an address of its own; fewer if the limit of open files is lower.
const SOURCES: u32 = 2000;

/// How long goodput is measured before the flood, and after it.
const CALM: Duration = Duration::from_secs(5);

const NEWCOMER_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy)]
struct Arguments {
    packets: u32,
    rate: u32,
    garbage: u32,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut arguments = std::env::args().skip(1);
    let mut parsed = Arguments {
        packets: 200_000,
        rate: 20_000,
        garbage: 10,
    };
    while let Some(name) = arguments.next() {
        if name == "listen" {
            runtime.block_on(listen())?;
            return Ok(true);
        }
        let mut value = || -> Result<u32> { Ok(arguments.next().ok_or(USAGE)?.parse()?) };
        match name.as_str() {
            "--packets" => parsed.packets = value()?.min(1_000_000),
            "--rate" => parsed.rate = value()?.clamp(1, 200_000),
            "--garbage" => parsed.garbage = value()?.min(100),
            _ => return Err(USAGE.into()),
        }
    }
    runtime.block_on(flood(parsed))
}

/// The listener: accepts every connection, and sends on every substream until it is reset. Ends
/// when its standard input ends, and so with the process that started it.
async fn listen() -> Result<()> {
    let endpoint = Endpoint::builder()
        .protocol(PROTOCOL)
        .bind("127.0.0.1:0")
        .await?;
    println!("{}", endpoint.addresses().first().ok_or("no address")?);
    thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            // Contacts of the flood fail here.
            if let Ok(connection) = incoming.accept().await {
                pour(connection).await;
            }
        });
    }
    Ok(())
}

async fn pour(connection: Connection) {
    while let Ok(Some(mut substream)) = connection.accept().await {
        tokio::spawn(async move { while substream.write_all(&[7; 65_536]).await.is_ok() {} });
    }
}

/// Kills the listener when the measurement is over, also after an error.
struct Listener(Child);

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The datagrams of the flood and their sockets.
struct Flood {
    datagrams: Vec<Vec<u8>>,
    sources: Vec<UdpSocket>,
}

async fn flood(arguments: Arguments) -> Result<bool> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("listen")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    let pid = child.id();
    let _listener = Listener(child);
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let address: Address = line.trim().parse()?;
    if !address.socket_addr().ip().is_loopback() {
        return Err("floods go to this machine only".into());
    }

    // Before any measurement: this memory belongs to the dialler.
    let flood = Arc::new(Flood {
        datagrams: make_datagrams(arguments),
        sources: bind_sources(),
    });
    let dialler = Endpoint::builder().dial_only()?;
    let connection = dialler.connect(&address).await?;
    let received = Arc::new(AtomicU64::new(0));
    let transfer = tokio::spawn(receive(connection.clone(), Arc::clone(&received)));

    sleep(Duration::from_secs(2)).await;
    let calm = goodput(&received, sleep(CALM)).await;

    let sink = UdpSocket::bind("127.0.0.1:0")?;
    let third = flood.datagrams.len() / 3;
    let control = send(&flood, third, arguments.rate, sink.local_addr()?);
    let control = goodput(&received, control).await;
    drop(sink);

    let before = resident(pid).ok_or("no figures for memory")?;
    let most = Arc::new(AtomicU64::new(before));
    let done = Arc::new(AtomicBool::new(false));
    let watching = tokio::spawn(watch(pid, Arc::clone(&most), Arc::clone(&done)));
    let newcomers = tokio::spawn(newcomers(
        dialler.clone(),
        address.clone(),
        Arc::clone(&done),
    ));
    let count = flood.datagrams.len();
    let begin = Instant::now();
    let sending = send(&flood, count, arguments.rate, address.socket_addr());
    let during = goodput(&received, sending).await;
    let seconds = begin.elapsed().as_secs_f64();
    done.store(true, Ordering::Relaxed);
    let (tried, mut connects) = newcomers.await?;
    watching.await?;

    let after = goodput(&received, sleep(CALM)).await;
    transfer.abort();
    connection.close().await;
    dialler.close().await;

    connects.sort_unstable();
    let milliseconds = |at: usize| {
        connects
            .get(at)
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
    };
    let growth = (most.load(Ordering::Relaxed) - before) as f64 / 1024.0;
    let ratio = during / ((calm + after) / 2.0);
    println!(
        "{{\"packets\":{count},\"sources\":{},\"flood_seconds\":{seconds:.1},\
         \"growth_mib\":{growth:.1},\"calm_MBps\":{calm:.1},\"control_MBps\":{control:.1},\
         \"flood_MBps\":{during:.1},\"after_MBps\":{after:.1},\"ratio\":{ratio:.2},\
         \"newcomers\":{tried},\"admitted\":{},\"connect_p50_ms\":{:.1},\"connect_max_ms\":{:.1}}}",
        flood.sources.len(),
        connects.len(),
        milliseconds(connects.len() / 2),
        milliseconds(connects.len().wrapping_sub(1)),
    );
    Ok(growth <= 16.0 && ratio >= 0.7 && connects.len() == tried && tried > 0)
}

/// Receives until it is cancelled.
async fn receive(connection: Connection, received: Arc<AtomicU64>) -> Result<()> {
    let mut substream = connection.open(PROTOCOL).await?;
    // The listener waits for no request, but its half of the negotiation has to complete.
    substream.flush().await?;
    while let Some(chunk) = substream.read_chunk(1 << 20).await? {
        received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Receives while `meanwhile` runs, and returns the MB per second.
async fn goodput(received: &AtomicU64, meanwhile: impl Future) -> f64 {
    let before = received.load(Ordering::Relaxed);
    let begin = Instant::now();
    meanwhile.await;
    let bytes = received.load(Ordering::Relaxed) - before;
    bytes as f64 / begin.elapsed().as_secs_f64() / 1e6
}

/// Connects every half second until the flood is over. Returns the number of attempts, and the time
/// of each that succeeded.
async fn newcomers(
    dialler: Endpoint,
    address: Address,
    done: Arc<AtomicBool>,
) -> (usize, Vec<Duration>) {
    let (mut tried, mut took) = (0, Vec::new());
    loop {
        sleep(NEWCOMER_INTERVAL).await;
        if done.load(Ordering::Relaxed) {
            return (tried, took);
        }
        tried += 1;
        let begin = Instant::now();
        let dial = timeout(Duration::from_secs(5), dialler.connect(&address));
        match dial.await {
            Ok(Ok(connection)) => {
                took.push(begin.elapsed());
                connection.close().await;
            }
            Ok(Err(error)) => eprintln!("newcomer: {error}"),
            Err(_) => eprintln!("newcomer: not within 5 s"),
        }
    }
}

async fn watch(pid: u32, most: Arc<AtomicU64>, done: Arc<AtomicBool>) {
    while !done.load(Ordering::Relaxed) {
        most.fetch_max(resident(pid).unwrap_or_default(), Ordering::Relaxed);
        sleep(Duration::from_millis(20)).await;
    }
}

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn make_datagrams(arguments: Arguments) -> Vec<Vec<u8>> {
    let mut rng = StdRng::seed_from_u64(1);
    let hmac = str0m::crypto::from_feature_flags().sha1_hmac_provider;
    let mut datagrams = Vec::new();
    for _ in 0..arguments.packets {
        if rng.random_range(0..100) < arguments.garbage {
            let length = rng.random_range(1..600);
            datagrams.push((0..length).map(|_| rng.random()).collect());
            continue;
        }
        let random: String = (0..32)
            .map(|_| char::from(rng.random_range(b'a'..=b'z')))
            .collect();
        let ufrag = format!("libp2p+webrtc+v1/{random}");
        let username = format!("{ufrag}:{ufrag}");
        let request = StunMessage::binding_request(&username, TransId::new(), true, 1, 1, true);
        let mut bytes = vec![0; 300];
        let length = request
            .to_bytes(Some(ufrag.as_bytes()), &mut bytes, |key, parts| {
                hmac.sha1_hmac(key, parts)
            })
            .unwrap_or_default();
        bytes.truncate(length);
        datagrams.push(bytes);
    }
    datagrams
}

/// Sockets on 127.1.0.1 and the following addresses, as many as the system permits.
fn bind_sources() -> Vec<UdpSocket> {
    (0..SOURCES)
        .map_while(|n| UdpSocket::bind((Ipv4Addr::from(0x7f01_0001 + n), 0)).ok())
        .collect()
}

/// Sends the first `count` datagrams to `target`, from one source after another, on a thread of its
/// own.
async fn send(flood: &Arc<Flood>, count: usize, rate: u32, target: SocketAddr) {
    let flood = Arc::clone(flood);
    let sending = tokio::task::spawn_blocking(move || {
        let begin = Instant::now();
        let sources = flood.sources.iter().cycle();
        for (n, (datagram, source)) in flood.datagrams.iter().zip(sources).take(count).enumerate() {
            let due = begin + Duration::from_secs_f64(n as f64 / f64::from(rate));
            // In bursts of a millisecond, the precision of a sleep.
            let early = due.saturating_duration_since(Instant::now());
            if early > Duration::from_millis(1) {
                thread::sleep(early);
            }
            let _ = source.send_to(datagram, target);
        }
    });
    if let Err(error) = sending.await {
        eprintln!("flood: {error}");
    }
}
