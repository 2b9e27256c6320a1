//! A sender and a receiver of files, each a process of its own.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anabranch::Identity;
use anabranch::address::PeerAddress;

use crate::Result;
use crate::carrier::{Listener, connect, dialler, dialler_as};
use crate::files::{PROTOCOL, Writing, receive_files, send_file};
use anabranch::payload::Sent;

/// Pause after an error of the system, which may persist.
const PAUSE: Duration = Duration::from_millis(100);

/// Receives files into `directory` from all diallers; from only one if `once` is set.
pub(crate) async fn receive(directory: &Path, once: bool, websocket: bool) -> Result<()> {
    fs::create_dir_all(directory)?;
    let listener = Listener::bind(websocket, PROTOCOL).await?;
    println!("{}", listener.address());
    let writing = Writing::default();
    loop {
        // Any peer may dial: a handshake that fails ends nothing else.
        let handshake = match listener.accept().await {
            Ok(Some(handshake)) => handshake,
            Ok(None) => return Err("the listener was closed".into()),
            Err(error) => {
                eprintln!("{error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if once {
            match handshake.await {
                Ok(connection) => {
                    receive_files(&connection, directory, &writing).await?;
                    break;
                }
                Err(error) => eprintln!("{error}"),
            }
            continue;
        }
        let directory = directory.to_owned();
        let writing = writing.clone();
        let serving = async move {
            let connection = handshake.await?;
            receive_files(&connection, &directory, &writing).await
        };
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                eprintln!("{error}");
            }
        });
    }
    listener.close().await;
    print_peak("receiver", peak_memory());
    Ok(())
}

/// Sends a file to a receiver, as the peer whose key is in a file: a receiver lets no other peer
/// resume the payload.
pub(crate) async fn send(
    address: &PeerAddress,
    path: &Path,
    hash: bool,
    key: Option<&Path>,
) -> Result<()> {
    let sent = send_timed(address, path, hash, key).await?;
    sent.print();
    Ok(())
}

/// The report of a sender.
struct Report {
    sent: Sent,
    seconds: f64,
    /// In kB, if the system reports it.
    peak: Option<u64>,
}

impl Report {
    fn print(&self) {
        let new = self.sent.total - self.sent.resumed_from;
        println!(
            "sent {new} of {} bytes, {} were there already; the receiver has confirmed all{}",
            self.sent.total,
            self.sent.resumed_from,
            if self.sent.hash.is_some() {
                ", and their hash"
            } else {
                ""
            }
        );
        let (rate, seconds) = (new as f64 / 1e6 / self.seconds, self.seconds);
        println!("{rate:.1} MB/s ({seconds:.2} s)");
        print_peak("sender", self.peak);
    }
}

async fn send_timed(
    address: &PeerAddress,
    path: &Path,
    hash: bool,
    key: Option<&Path>,
) -> Result<Report> {
    let endpoint = match key {
        Some(key) => dialler_as(identity(key)?)?,
        None => dialler()?,
    };
    let connection = connect(&endpoint, address).await?;
    let began = Instant::now();
    let sent = send_file(&connection, path, hash).await?;
    let seconds = began.elapsed().as_secs_f64();
    connection.close().await;
    endpoint.close().await;
    let peak = peak_memory();
    Ok(Report {
        sent,
        seconds,
        peak,
    })
}

/// The identity in a file, which is created if it does not exist, readable by its owner only.
fn identity(key: &Path) -> Result<Identity> {
    match fs::read(key) {
        Ok(bytes) => return Ok(Identity::from_protobuf(&bytes)?),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let identity = Identity::generate();
    let mut options = fs::File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(key)?.write_all(&identity.to_protobuf())?;
    Ok(identity)
}

/// Runs both with a generated file: the receiver in a process that this one starts.
pub(crate) async fn both(size: u64, hash: bool, websocket: bool, json: bool) -> Result<()> {
    let place = Place::new()?;
    let source = place.0.join("payload.bin");
    make_file(&source, size)?;
    let target = place.0.join("received");
    let mut receiver = Receiving::start(&target, websocket)?;
    let address: PeerAddress = receiver.address()?.parse()?;
    let sent = send_timed(&address, &source, hash, None).await?;
    let lines = receiver.finish()?;
    if !same(&source, &target.join("payload.bin"))? {
        return Err("what arrived is not what was sent".into());
    }
    if json {
        let peak = lines.iter().find_map(|line| {
            let number = line.strip_prefix(RECEIVERS_PEAK)?.strip_suffix(" kB")?;
            number.parse::<u64>().ok()
        });
        let null = || "null".to_owned();
        let number = |peak: Option<u64>| peak.map_or_else(null, |peak| peak.to_string());
        println!(
            "{{\"bytes\":{size},\"hash\":{hash},\"websocket\":{websocket},\"seconds\":{:.3},\
             \"sender_peak_kB\":{},\"receiver_peak_kB\":{}}}",
            sent.seconds,
            number(sent.peak),
            number(peak),
        );
        return Ok(());
    }
    sent.print();
    for line in lines {
        println!("{line}");
    }
    println!("the two files are the same");
    Ok(())
}

/// A directory that is removed on drop.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self> {
        let place = std::env::temp_dir().join(format!("transfer-{}", std::process::id()));
        fs::create_dir_all(&place)?;
        Ok(Self(place))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The process of the receiver; killed if this ends early.
struct Receiving {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Receiving {
    fn start(target: &Path, websocket: bool) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["receive", "--once"])
            .args(websocket.then_some("--websocket"))
            .arg(target)
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
        })
    }

    fn address(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Waits for its end, and returns its output.
    fn finish(&mut self) -> Result<Vec<String>> {
        let lines = self.output.by_ref().lines().collect::<Result<_, _>>()?;
        if !self.child.wait()?.success() {
            return Err("the receiver failed".into());
        }
        Ok(lines)
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // Both fail if the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file without repeated parts, so that the check detects a part in the wrong place.
pub(crate) fn make_file(path: &Path, size: u64) -> Result<()> {
    let mut file = fs::File::create(path)?;
    let mut block = vec![0; 1 << 20];
    let mut state = 1_u64;
    let mut left = size;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            // A linear congruential generator: the content need not be unpredictable.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            word.copy_from_slice(&state.to_le_bytes());
        }
        let now = left.min(block.len() as u64) as usize;
        file.write_all(&block[..now])?;
        left -= now as u64;
    }
    Ok(())
}

fn same(one: &Path, other: &Path) -> Result<bool> {
    let open = |path| fs::File::open(path).map(|file| BufReader::with_capacity(1 << 20, file));
    let (mut one, mut other) = (open(one)?, open(other)?);
    loop {
        let (a, b) = (one.fill_buf()?, other.fill_buf()?);
        let now = a.len().min(b.len());
        if now == 0 {
            return Ok(a.len() == b.len());
        }
        if a[..now] != b[..now] {
            return Ok(false);
        }
        one.consume(now);
        other.consume(now);
    }
}

/// The start of a receiver's line.
const RECEIVERS_PEAK: &str = "most resident memory of the receiver: ";

fn print_peak(who: &str, peak: Option<u64>) {
    if let Some(peak) = peak {
        println!("most resident memory of the {who}: {peak} kB");
    }
}

/// The maximum resident set of this process in kB, if the system reports it.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    peak.trim().strip_suffix(" kB")?.parse().ok()
}
