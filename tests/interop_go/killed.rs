//! Peers that die silently: each side, in each role, detects it within its own timeout.
//!
//! The killed anabranch side is a process of its own: this test binary, with one test that is
//! ignored otherwise.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anabranch::{Address, Connection, ConnectionError, Endpoint, WebRtcDirectVersion};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::failures::Failures;
use super::process::{Pion, text};
use super::record::Direction;
use super::{
    HABITS, connect, dialler, endpoint_config, is_long, openers, record, responders, serve,
};

/// The address that the child process dials; without one it listens.
const DIALS: &str = "ANABRANCH_KILLED_DIALS";

/// Time limit for programs to start and to connect.
const LIMIT: Duration = Duration::from_secs(15);

/// Detects a silent peer sooner than by default, except in the long form.
fn impatient() -> anabranch::EndpointConfig {
    let mut config = endpoint_config();
    if !is_long() {
        config.silence_timeout = Duration::from_secs(3);
    }
    config
}

/// The options of a pion peer with the same timeout, and the time in which it has detected it.
fn impatient_pion() -> (Vec<&'static str>, Duration) {
    if is_long() {
        (Vec::new(), Duration::from_secs(55))
    } else {
        (vec!["--ice-timeouts", "2,2"], Duration::from_secs(8))
    }
}

fn noticed(direction: Direction, options: &[&str]) {
    let mut record = record(direction, WebRtcDirectVersion::V1);
    if !options.is_empty() {
        record = record.under(format!("its {}", options.join(" ")));
    }
    record.passed("we are killed, it notices");
}

/// The open substreams when the peer is killed: one that is read, and one that is written to.
async fn assert_the_end_is_noticed(connection: &Connection, kill: impl Future<Output = ()>) {
    openers::echo(connection, 1000).await;
    let mut read = connection.open("/echo/1.0.0").await.expect("a substream");
    let mut written = connection.open("/echo/1.0.0").await.expect("a substream");
    read.write_all(b"a").await.expect("a write");
    assert_eq!(read.read_u8().await.expect("an echo"), b'a');

    kill.await;
    let began = Instant::now();
    let limit = impatient().silence_timeout + Duration::from_secs(2);
    let reading = async { read.read_u8().await.expect_err("nobody writes") };
    let writing = async {
        loop {
            if let Err(error) = written.write_all(&[0; 10_000]).await {
                return error;
            }
        }
    };
    let all = async { tokio::join!(reading, writing, connection.closed()) };
    let (read, written, closed) = timeout(limit, all).await.expect("it is noticed in time");
    println!(
        "noticed after {:?}: {closed}; {read}; {written}",
        began.elapsed()
    );
    assert!(matches!(closed, ConnectionError::TimedOut), "{closed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn we_notice_that_the_pion_listener_is_killed() {
    let (pion, address) = Pion::listen(&[]).await;
    let endpoint = dialler(impatient());
    let connection = connect(&endpoint, &address, WebRtcDirectVersion::V1).await;
    assert_the_end_is_noticed(&connection, pion.kill()).await;
    drop(connection);
    super::assert_nothing_left(endpoint).await;
    record(Direction::WeDial, WebRtcDirectVersion::V1)
        .endpoint(&impatient())
        .passed("it is killed, we notice");
}

#[tokio::test(flavor = "multi_thread")]
async fn we_notice_that_the_pion_dialler_is_killed() {
    let mut server = serve(impatient()).await;
    let pion = Pion::dial(&server.address(), &["serve"]);
    let connection = server.connection().await;
    assert_the_end_is_noticed(&connection, pion.kill()).await;
    drop(connection);
    server.finish_with(&["the peer does not respond"]).await;
    record(Direction::ItDialsWeOpen, WebRtcDirectVersion::V1)
        .endpoint(&impatient())
        .passed("it is killed, we notice");
}

#[tokio::test(flavor = "multi_thread")]
async fn pion_notices_that_our_listener_is_killed() {
    let (options, limit) = impatient_pion();
    let mut victim = Victim::start(None);
    let address = victim.line("listen").await;
    let address = address.parse().expect("a webrtc-direct address");
    let mut pion = Pion::dial(&address, &[&options[..], &["ping", "serve"]].concat());
    pion.line_of("{\"case\":\"ping\"").await;
    victim.kill().await;
    let line = timeout(limit, pion.line_of("{\"case\":\"serve\"")).await;
    let line = line.expect("it is noticed in time");
    assert_eq!(text(&line, "end"), Some("the peer is silent"));
    pion.finish().await;
    noticed(Direction::ItDials, &options);
}

#[tokio::test(flavor = "multi_thread")]
async fn pion_notices_that_our_dialler_is_killed() {
    let (options, limit) = impatient_pion();
    let (mut pion, address) = Pion::listen(&options).await;
    let mut victim = Victim::start(Some(&address));
    victim.line("dialled").await;
    victim.kill().await;
    let line = timeout(limit, pion.line_of("{\"connection\"")).await;
    let line = line.expect("it is noticed in time");
    assert_eq!(text(&line, "error"), Some("the peer is silent"));
    pion.kill().await;
    noticed(Direction::WeDial, &options);
}

/// A child process that is killed.
struct Victim {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Victim {
    fn start(dials: Option<&Address>) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a path"));
        command.args(["--exact", "killed::is_killed", "--ignored", "--nocapture"]);
        if let Some(address) = dials {
            command.env(DIALS, address.to_string());
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("this program starts");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        Self { child, lines }
    }

    /// The value of `key` in the next line that has it.
    async fn line(&mut self, key: &str) -> String {
        let search = async {
            while let Some(line) = self.lines.next_line().await.expect("lines of text") {
                if let Some(value) = text(&line, key) {
                    return value.to_owned();
                }
            }
            panic!("it ended without {key}");
        };
        timeout(LIMIT, search).await.expect("a line")
    }

    async fn kill(mut self) {
        self.child.kill().await.expect("it still ran");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the process that is killed; ends with its stdin"]
async fn is_killed() {
    let mut builder = Endpoint::builder().endpoint_config(endpoint_config());
    for protocol in responders::PROTOCOLS {
        builder = builder.protocol(protocol);
    }
    let failures = Failures::default();
    let serving = async {
        let (endpoint, connection) = match std::env::var(DIALS) {
            Ok(address) => {
                let endpoint = builder.dial_only().expect("defaults work");
                let address = address.parse().expect("a webrtc-direct address");
                let connection = connect(&endpoint, &address, WebRtcDirectVersion::V1).await;
                openers::ping(&connection).await;
                println!("{{\"dialled\":\"{address}\"}}");
                (endpoint, connection)
            }
            Err(_) => {
                let endpoint = builder.bind("127.0.0.1:0").await.expect("a socket");
                println!("{{\"listen\":\"{}\"}}", endpoint.addresses()[0]);
                let incoming = endpoint.accept().await.expect("a dialler");
                (endpoint, incoming.accept().await.expect("authenticated"))
            }
        };
        let own = endpoint.public_key();
        responders::serve(connection, own, HABITS, failures.clone()).await;
    };
    // A thread of its own, so that the runtime does not wait for a read that may never return.
    let (ended, stdin_ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = ended.send(());
    });
    tokio::select! {
        () = serving => {}
        _ = stdin_ended => {}
    }
    failures.assert_none();
}
