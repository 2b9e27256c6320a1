//! A dialler whose address disappears, or whose route moves to another interface, in the kernel:
//! two network namespaces with two links between them, and this program in both.
//!
//! ```text
//! dialler  c1 10.7.1.2 ─────────── 10.7.1.1 s1  listener at 10.9.0.1
//!          c2 10.7.2.2 ─────────── 10.7.2.1 s2
//! ```
//!
//! Needs iproute2 and the permission to create namespaces. Without them the tests report that on
//! standard error, past the capture of test output, and pass.

#![cfg(target_os = "linux")]

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anabranch::{Address, Endpoint, Finished, Substream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

const PROTOCOL: &str = "/roaming/1";

/// The environment variable with the parameters of a child.
const LISTENER: &str = "ANABRANCH_ROAMING_LISTENER";
const UPLOAD: &str = "ANABRANCH_ROAMING_UPLOAD";
/// Set where the tests must not be skipped.
const REQUIRED: &str = "ANABRANCH_REQUIRE_NAMESPACES";
const LENGTH: &str = "ANABRANCH_ROAMING_LENGTH";

/// 4 MB/s: not limited by the machine, and no load for other tests.
const CHUNK: usize = 4000;
const PACE: Duration = Duration::from_millis(1);

/// Two namespaces, removed on drop.
struct Net {
    server: String,
    client: String,
}

fn run(command: &str) -> Result<(), String> {
    let mut words = command.split_whitespace();
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).output();
    let output = output.map_err(|error| format!("{command}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command}: {}", said.trim()))
}

impl Net {
    fn new(test: &str) -> Result<Self, String> {
        let name = |side| format!("anabranch-{}-{test}-{side}", std::process::id());
        let net = Self {
            server: name('s'),
            client: name('c'),
        };
        let Self { server, client } = &net;
        run(&format!("ip netns add {server}"))?;
        run(&format!("ip netns add {client}"))?;
        for n in [1, 2] {
            run(&format!(
                "ip link add s{n} netns {server} type veth peer name c{n} netns {client}"
            ))?;
            net.server(&format!("addr add 10.7.{n}.1/24 dev s{n}"))?;
            net.client(&format!("addr add 10.7.{n}.2/24 dev c{n}"))?;
            net.server(&format!("link set s{n} up"))?;
            net.client(&format!("link set c{n} up"))?;
            // The first route has priority.
            net.client(&format!(
                "route add 10.9.0.1/32 via 10.7.{n}.1 dev c{n} metric {n}"
            ))?;
        }
        net.server("link set lo up")?;
        net.server("addr add 10.9.0.1/32 dev lo")?;
        Ok(net)
    }

    fn server(&self, command: &str) -> Result<(), String> {
        run(&format!("ip -n {} {command}", self.server))
    }

    fn client(&self, command: &str) -> Result<(), String> {
        run(&format!("ip -n {} {command}", self.client))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.client] {
            let _ = run(&format!("ip netns del {namespace}"));
        }
    }
}

/// This program in a namespace, as one of the ignored tests below.
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn new(namespace: &str, role: &str, environment: &[(&str, &str)]) -> Self {
        let this = std::env::current_exe().expect("a path");
        let mut child = Command::new("ip")
            .args(["netns", "exec", namespace])
            .arg(this)
            .args(["--exact", role, "--ignored", "--nocapture"])
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip runs");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, output }
    }

    /// The text after `label` in a line of its output.
    fn line(&mut self, label: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.output.read_line(&mut line).expect("its output");
            assert!(read > 0, "it ended before it said {label:?}");
            if let Some((_, rest)) = line.split_once(label) {
                return rest.trim().to_owned();
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Length of a transfer in bytes: it takes longer than the longest allowed pause.
const SHORT: u64 = 6000 * CHUNK as u64;

/// Transfers `length` bytes while `change` happens.
fn transfer(
    test: &str,
    upload: bool,
    length: u64,
    change: impl FnOnce(&Net) -> Result<(), String>,
) {
    let net = match Net::new(test) {
        Ok(net) => net,
        Err(reason) => {
            assert!(std::env::var_os(REQUIRED).is_none(), "{reason}");
            writeln!(
                io::stderr(),
                "\nSKIPPED roaming::{test}: no network namespaces here: {reason}\n"
            )
            .expect("standard error");
            return;
        }
    };
    let length = length.to_string();
    let environment = [(LISTENER, "10.9.0.1:0"), (LENGTH, &length)];
    let mut listener = Process::new(&net.server, "listen", &environment);
    let address = listener.line("listening at ");
    let direction = if upload { "1" } else { "0" };
    let environment = [
        (LISTENER, address.as_str()),
        (UPLOAD, direction),
        (LENGTH, &length),
    ];
    let mut dialler = Process::new(&net.client, "dial", &environment);
    dialler.line("the transfer runs");
    change(&net).expect("the network changes");
    let report = dialler.line("report ");
    println!("{test}, upload {upload}: {report}");
    let milliseconds: u64 = report.parse().expect("a number");
    // Without the change the pause is well below.
    assert!(milliseconds > 100, "nothing has happened");
    // There may be no route for up to a second.
    assert!(milliseconds < 5000, "{milliseconds} ms");
    assert!(dialler.child.wait().expect("it ends").success());
}

#[test]
fn an_upload_goes_on_when_the_address_disappears() {
    transfer("addr-up", true, SHORT, |net| {
        net.client("addr del 10.7.1.2/24 dev c1")
    });
}

#[test]
fn a_download_goes_on_when_the_address_disappears() {
    transfer("addr-down", false, SHORT, |net| {
        net.client("addr del 10.7.1.2/24 dev c1")
    });
}

#[test]
fn a_download_goes_on_when_the_route_moves_to_another_interface() {
    transfer("route-down", false, SHORT, |net| {
        net.client("route del 10.9.0.1/32 dev c1")
    });
}

#[test]
fn an_upload_goes_on_after_a_second_without_any_route() {
    transfer("gap-up", true, SHORT, |net| {
        net.client("link set c2 down")?;
        net.client("addr del 10.7.1.2/24 dev c1")?;
        std::thread::sleep(Duration::from_secs(1));
        net.client("link set c2 up")?;
        net.client("route add 10.9.0.1/32 via 10.7.2.1 dev c2")
    });
}

/// From one link to the other and back, each time to an address that the peer has not seen.
fn move_five_times(net: &Net) -> Result<(), String> {
    for step in 0_u8..5 {
        let (from, to) = (1 + step % 2, 2 - step % 2);
        let (old, new) = (2 + step / 2, 2 + step.div_ceil(2));
        if step > 0 {
            net.client(&format!("addr add 10.7.{to}.{new}/24 dev c{to}"))?;
            net.client(&format!(
                "route add 10.9.0.1/32 via 10.7.{to}.1 dev c{to} metric {to}"
            ))?;
        }
        net.client(&format!("addr del 10.7.{from}.{old}/24 dev c{from}"))?;
        // Longer than the longest allowed pause.
        std::thread::sleep(Duration::from_secs(3));
    }
    Ok(())
}

#[test]
fn an_upload_of_64_mib_arrives_across_five_changes_of_address() {
    transfer("five-up", true, 64 << 20, move_five_times);
}

#[test]
fn a_download_of_64_mib_arrives_across_five_changes_of_address() {
    transfer("five-down", false, 64 << 20, move_five_times);
}

fn length() -> u64 {
    let length = std::env::var(LENGTH).expect("the parent sets it");
    length.parse().expect("a number")
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// The byte at `position` of the sent data.
fn byte(position: u64) -> u8 {
    (position % 251) as u8
}

/// Sends at [`PACE`].
async fn send(substream: &mut Substream, length: u64) -> io::Result<()> {
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut sent = 0;
    while sent < length {
        ticks.tick().await;
        let chunk: Vec<u8> = (sent..length).map(byte).take(CHUNK).collect();
        substream.write_all(&chunk).await?;
        sent += chunk.len() as u64;
    }
    Ok(())
}

/// Receives to the end; returns the length, and the longest time between two reads.
async fn receive(substream: &mut Substream) -> io::Result<(u64, Duration)> {
    let (mut received, mut longest) = (0, Duration::ZERO);
    let mut at = Instant::now();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = substream.read(&mut buffer).await?;
        if count == 0 {
            return Ok((received, longest));
        }
        longest = longest.max(at.elapsed());
        at = Instant::now();
        for got in &buffer[..count] {
            assert_eq!(*got, byte(received), "at {received}");
            received += 1;
        }
    }
}

#[test]
#[ignore = "a child of the other tests"]
fn listen() {
    let Ok(bind) = std::env::var(LISTENER) else {
        return;
    };
    block_on(async {
        let builder = Endpoint::builder().protocol(PROTOCOL);
        let endpoint = builder.bind(bind.as_str()).await.expect("a socket");
        println!("listening at {}", endpoint.addresses()[0]);
        let incoming = endpoint.accept().await.expect("a dialler");
        let connection = incoming.accept().await.expect("a connection");
        let substream = connection.accept().await.expect("a connection");
        let mut substream = substream.expect("a substream");
        let mut upload = [0];
        substream.read_exact(&mut upload).await.expect("one byte");
        if upload == [1] {
            let (received, longest) = receive(&mut substream).await.expect("all of it");
            let longest = longest.as_millis() as u64;
            for number in [received, longest] {
                let answer = substream.write_all(&number.to_be_bytes()).await;
                answer.expect("a connection");
            }
        } else {
            let sent = send(&mut substream, length()).await;
            sent.expect("a connection");
        }
        let outcome = substream.finish().await.expect("a connection");
        assert_eq!(outcome, Finished::Acked);
        connection.closed().await;
        endpoint.close().await;
    });
}

#[test]
#[ignore = "a child of the other tests"]
fn dial() {
    let (Ok(address), Ok(upload)) = (std::env::var(LISTENER), std::env::var(UPLOAD)) else {
        return;
    };
    let address: Address = address.parse().expect("an address");
    let upload = upload == "1";
    block_on(async {
        let endpoint = Endpoint::builder().dial_only().expect("defaults");
        let connection = endpoint.connect(&address).await.expect("a listener");
        let mut substream = connection.open(PROTOCOL).await.expect("a substream");
        let first = substream.write_all(&[u8::from(upload)]).await;
        first.expect("a connection");
        let announced = tokio::spawn(async {
            sleep(Duration::from_millis(500)).await;
            println!("the transfer runs");
        });
        let longest = if upload {
            let sent = send(&mut substream, length()).await;
            sent.expect("a connection");
            let outcome = substream.finish().await.expect("a connection");
            assert_eq!(outcome, Finished::Acked);
            let mut answer = [[0; 8]; 2];
            for number in &mut answer {
                substream.read_exact(number).await.expect("an answer");
            }
            let [received, longest] = answer.map(u64::from_be_bytes);
            assert_eq!(received, length());
            longest
        } else {
            let (received, longest) = receive(&mut substream).await.expect("all of it");
            assert_eq!(received, length());
            substream.finish().await.expect("a connection");
            longest.as_millis() as u64
        };
        announced.await.expect("no panic");
        println!("report {longest}");
        endpoint.close().await;
    });
}
